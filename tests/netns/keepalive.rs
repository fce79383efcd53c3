//! Peers and targets that vanish, idle or with data in flight: `keepalive = "IDLE/INTERVAL/COUNT"`.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::{
    sandbox::{address, forwarding, inside, netns_with_link, run},
    support::{Activated, PATIENCE, eventually},
};

/// A host that lives and one that will vanish: two addresses of one namespace, for each family.
const LIVING: [&str; 2] = ["10.8.0.2", "2001:db8:8::2"];
const VANISHING: [&str; 2] = ["10.8.0.3", "2001:db8:8::3"];

/// Makes both hosts; the name of the link to them.
fn hosts() -> String {
    netns_with_link("far", "10.8.0.1/24", "10.8.0.2/24");
    let route = Command::new("ip").args(["-o", "route", "show", "10.8.0.0/24"]).output().expect("iproute2");
    let route = String::from_utf8(route.stdout).expect("text");
    let link = route.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a link").to_owned();
    address(None, &link, "2001:db8:8::1/64");
    address(Some("far"), "inside", "10.8.0.3/24");
    for v6 in ["2001:db8:8::2/64", "2001:db8:8::3/64"] {
        address(Some("far"), "inside", v6);
    }
    link
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), port)
}

/// A connection from one of the far addresses.
fn from(ip: &str, to: SocketAddr) -> TcpStream {
    inside("far", || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
        socket.bind(&at(ip, 0).into()).expect("its address");
        socket.connect(&to.into()).expect("it listens");
        socket.into()
    })
}

/// Writes until nothing more fits for some time: the other end does not read.
fn fill(stream: &mut TcpStream) -> u64 {
    stream.set_nonblocking(true).expect("fcntl");
    let (mut total, mut full) = (0, 0);
    eventually("all buffers are full", || {
        match stream.write(&[7; 65_536]) {
            Ok(n) => (total, full) = (total + n as u64, 0),
            Err(e) if e.kind() == ErrorKind::WouldBlock => full += 1,
            Err(e) => panic!("{e}"),
        }
        full > 30
    });
    stream.set_nonblocking(false).expect("fcntl");
    total
}

/// A connection through the forward with this label, and the server's end of it.
fn upload(service: &Activated, label: &str, server: &TcpListener) -> (TcpStream, TcpStream) {
    let line = service.process.stderr.wait_for(&format!("{label}: 127.0.0.1:"));
    let listener: SocketAddr = line.split(' ').find_map(|word| word.parse().ok()).expect("an address");
    let client = TcpStream::connect(listener).expect("it listens");
    client.set_read_timeout(Some(PATIENCE)).expect("not zero");
    (client, server.accept().expect("dialled").0)
}

#[test]
fn a_silent_host_is_reset_and_one_that_only_does_not_read_lives() {
    sandbox!();
    let link = hosts();
    let mut forwards = Vec::new();
    let mut targets = Vec::new();
    for ip in LIVING.into_iter().chain(VANISHING) {
        let server = inside("far", || TcpListener::bind(at(ip, 90)).expect("free"));
        forwards.push(format!("label=to-{},listen=127.0.0.1:0,target={},keepalive=1/1/1", targets.len(), at(ip, 90)));
        targets.push(server);
    }
    // for peers that vanish: a server here that they do not read from
    let server = TcpListener::bind("127.0.0.1:0").expect("free");
    let here = server.local_addr().expect("bound");
    forwards.push(format!("listen=10.8.0.1:91,target={here},keepalive=1/1/1"));
    forwards.push(format!("listen=[2001:db8:8::1]:91,target={here},keepalive=1/1/1"));
    // without times the kernel decides, after a quarter of an hour
    forwards.push(format!("label=plain,listen=127.0.0.1:0,target={}", at(VANISHING[0], 90)));
    let service = forwarding(&forwards.iter().map(String::as_str).collect::<Vec<_>>());
    let mut living: Vec<_> = (0..2).map(|n| upload(&service, &format!("to-{n}"), &targets[n])).collect();
    let sent: Vec<u64> = living.iter_mut().map(|(client, _)| fill(client)).collect();
    let mut vanishing: Vec<_> = (2..4).map(|n| upload(&service, &format!("to-{n}"), &targets[n])).collect();
    fill(&mut vanishing[1].0);
    let mut plain = upload(&service, "plain", &targets[2]);
    let listeners = [at("10.8.0.1", 91), at("2001:db8:8::1", 91)];
    let mut peers = Vec::new();
    for (from_ip, to) in [(LIVING[0], listeners[0]), (VANISHING[0], listeners[0]), (VANISHING[1], listeners[1])] {
        let peer = from(from_ip, to);
        let mut upstream = server.accept().expect("dialled").0;
        fill(&mut upstream);
        upstream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        peers.push((peer, upstream));
    }
    for gone in VANISHING {
        run(&format!("ip neigh replace {gone} lladdr 02:00:00:00:00:99 nud permanent dev {link}"));
    }
    let vanished = Instant::now();
    // in flight for one, behind a closed window for the other
    vanishing[0].0.write_all(b"in flight").expect("there is room");
    plain.0.write_all(b"in flight").expect("there is room");
    for (client, _) in &mut vanishing {
        let error = client.read(&mut [0]).expect_err("nobody sent anything");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    for (_, upstream) in &mut peers[1..] {
        let error = upstream.read(&mut [0]).expect_err("nobody sent anything");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let ends = service.ends(4);
    let count = |side: &str| {
        let note = format!("the {side} acknowledged nothing for 2 s although data waited for it (keepalive)");
        ends.iter().filter(|end| end.note.contains(&note)).count()
    };
    assert_eq!((count("upstream"), count("peer")), (2, 2), "{ends:?}");
    // Whoever answers the probes of the closed window is there yet, after more than twice that time.
    eventually("time has passed", || vanished.elapsed() > Duration::from_secs(8));
    for ((client, mut server), sent) in living.into_iter().zip(sent) {
        client.shutdown(std::net::Shutdown::Write).expect("it is open");
        let mut received = Vec::new();
        server.read_to_end(&mut received).expect("an end, not a reset");
        assert_eq!(received.len() as u64, sent);
    }
    peers[0].0.set_read_timeout(Some(PATIENCE)).expect("not zero");
    assert!(peers[0].0.read(&mut [0]).is_ok_and(|n| n == 1));
    plain.0.set_nonblocking(true).expect("fcntl");
    let still = plain.0.read(&mut [0]).expect_err("nothing comes");
    assert_eq!(still.kind(), ErrorKind::WouldBlock, "without times it is not reset so soon");
    service.stop();
}

#[test]
fn an_idle_host_that_vanishes_is_reset_and_one_that_is_there_lives() {
    sandbox!();
    let link = hosts();
    let server = TcpListener::bind("127.0.0.1:0").expect("free");
    let mut forwards =
        vec![format!("listen=10.8.0.1:91,target={},keepalive=1/1/1", server.local_addr().expect("bound"))];
    let mut targets = Vec::new();
    for ip in [LIVING[0], VANISHING[0], VANISHING[1]] {
        forwards.push(format!("label=to-{},listen=127.0.0.1:0,target={},keepalive=1/1/1", targets.len(), at(ip, 90)));
        targets.push(inside("far", || TcpListener::bind(at(ip, 90)).expect("free")));
    }
    let service = forwarding(&forwards.iter().map(String::as_str).collect::<Vec<_>>());
    // Not a byte goes through any of them.
    let mut uploads: Vec<_> = (0..3).map(|n| upload(&service, &format!("to-{n}"), &targets[n])).collect();
    let _peer = from(VANISHING[0], at("10.8.0.1", 91));
    let mut upstream = server.accept().expect("dialled").0;
    upstream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    for gone in VANISHING {
        run(&format!("ip neigh replace {gone} lladdr 02:00:00:00:00:99 nud permanent dev {link}"));
    }
    let (mut living_client, mut living_server) = uploads.remove(0);
    for here in uploads.iter_mut().map(|(client, _)| client).chain([&mut upstream]) {
        let error = here.read(&mut [0]).expect_err("nobody sent anything");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    service.ends(3);
    // That one was idle before the others were: its host has answered as many probes as the others left unanswered.
    living_server.write_all(b"x").expect("it is open");
    assert!(living_client.read(&mut [0]).is_ok_and(|n| n == 1));
    drop((living_client, living_server));
    service.ends(4);
    service.stop();
}
