//! UDP: flows of many peers over one listener.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use nix::sys::{
    resource::{Resource, setrlimit},
    signal::Signal,
};

use crate::{
    sandbox::{address, asker, echo_udp, echo_udp_inside, forwarding, netns, pfwd},
    support::eventually,
};

fn ask(socket: &UdpSocket, server: SocketAddr, bytes: &[u8]) {
    socket.send_to(bytes, server).expect("sent");
    let mut buffer = vec![0; 65_536];
    let (len, from) = socket.recv_from(&mut buffer).expect("answered");
    assert_eq!(from, server, "the answer comes from where it was asked");
    assert_eq!(&buffer[..len], bytes);
}

#[test]
fn datagrams_of_every_size_come_back_over_both_families() {
    sandbox!();
    netns("a");
    for ip in ["127.0.0.1", "[::1]"] {
        let there = echo_udp_inside("a", ip).port();
        let service = forwarding(&[&format!("udp_listen={ip}+5300,namespace=a,udp_target={ip}+{there}")]);
        let server: SocketAddr = format!("{ip}:5300").parse().expect("one");
        let asker = asker(ip);
        for size in [0, 1, 1400, 1472, 8192, 65_507, 0, 3] {
            ask(&asker, server, &vec![size as u8; size]);
        }
        let bytes: usize = 1 + 1400 + 1472 + 8192 + 65_507 + 3;
        service.stop().stderr.wait_for(&format!("{bytes} bytes up, {bytes} down"));
    }
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    sandbox!();
    for one in ["10.8.0.1/24", "10.8.0.2/24", "fd00::1/64", "fd00::2/64"] {
        address(None, "lo", one);
    }
    let server = echo_udp(UdpSocket::bind("127.0.0.1:0").expect("free"));
    let service = forwarding(&[
        &format!("udp_listen=0.0.0.0+5300,udp_target={server}"),
        &format!("udp_listen=[::]+5301,udp_target={server}"),
    ]);
    let asker4 = asker("10.8.0.1");
    let asker6 = asker("[fd00::1]");
    for address in ["127.0.0.1:5300", "10.8.0.1:5300", "10.8.0.2:5300", "10.8.0.2:5301"] {
        ask(&asker4, address.parse().expect("one"), address.as_bytes());
    }
    for address in ["[fd00::1]:5301", "[fd00::2]:5301", "[::1]:5301"] {
        ask(&asker6, address.parse().expect("one"), address.as_bytes());
    }
    // one peer, five addresses asked on one listener: as many flows
    eventually("the flows are counted", || service.notifications.status().is_some_and(|s| s.contains("7 sessions")));
    service.stop();
}

#[test]
fn a_refusal_does_not_end_the_table() {
    sandbox!();
    netns("a");
    let service = forwarding(&["udp_listen=127.0.0.1+5300,namespace=a,udp_target=127.0.0.1+5353"]);
    let server: SocketAddr = "127.0.0.1:5300".parse().expect("one");
    let (first, second) = (asker("127.0.0.1"), asker("127.0.0.1"));
    first.set_read_timeout(Some(Duration::from_millis(50))).expect("not zero");
    for _ in 0..5 {
        first.send_to(b"nobody?", server).expect("sent");
        assert!(first.recv(&mut [0; 10]).is_err(), "nobody answers");
    }
    // somebody comes up: the same flow goes on
    let socket = crate::sandbox::inside("a", || UdpSocket::bind("127.0.0.1:5353").expect("free"));
    echo_udp(socket);
    first.set_read_timeout(Some(support::PATIENCE)).expect("not zero");
    ask(&first, server, b"there?");
    ask(&second, server, b"me too");
    service.process.stderr.wait_for_nth("connected after", 2);
    assert_eq!(service.stop().stderr.count("connected after"), 2);
}

#[test]
fn idle_flows_end_and_the_quietest_makes_room() {
    sandbox!();
    let server = echo_udp(UdpSocket::bind("127.0.0.1:0").expect("free"));
    let service = forwarding(&[
        &format!("udp_listen=127.0.0.1+5300,udp_target={server},max_connections=3"),
        &format!("udp_listen=127.0.0.1+5301,udp_target={server},udp_idle_timeout=1"),
    ]);
    let full: SocketAddr = "127.0.0.1:5300".parse().expect("one");
    let askers: Vec<UdpSocket> = (0..4).map(|_| asker("127.0.0.1")).collect();
    for index in [0, 1, 2, 0] {
        ask(&askers[index], full, b"x");
        std::thread::sleep(Duration::from_millis(3)); // the clock of flows has milliseconds
    }
    ask(&askers[3], full, b"x"); // the quietest is 1
    let line = service.process.stderr.wait_for("made room");
    assert!(
        line.contains(&askers[1].local_addr().expect("bound").to_string()) && line.contains(": idle after"),
        "{line}"
    );
    ask(&askers[0], full, b"x");
    service.process.stderr.wait_for_nth("connected after", 4);
    ask(&askers[1], full, b"x"); // and 1 is let in again
    service.process.stderr.wait_for_nth("connected after", 5);
    assert_eq!(service.process.stderr.count("connected after"), 5, "0 kept its flow");
    // the other one ends by itself
    let rest = service.process.rest();
    ask(&askers[0], "127.0.0.1:5301".parse().expect("one"), b"x");
    service.process.stderr.wait("the end of an idle flow", |lines| {
        lines.iter().find(|line| line.contains(":5301") && line.contains(": idle after")).cloned()
    });
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn five_thousand_clients_get_their_answers() {
    sandbox!();
    netns("a");
    let there = echo_udp_inside("a", "127.0.0.1").port();
    let mut service = pfwd()
        .args([
            "--forward",
            &format!("udp_listen=127.0.0.1+5300,namespace=a,udp_target=127.0.0.1+{there},max_connections=5000"),
        ])
        .nofile(16_384)
        .start()
        .ready();
    let server: SocketAddr = "127.0.0.1:5300".parse().expect("one");
    setrlimit(Resource::RLIMIT_NOFILE, 16_384, 16_384).expect("root may");
    let askers: Vec<UdpSocket> = (0..5000).map(|_| asker("127.0.0.1")).collect();
    for round in 0u32..3 {
        for (index, batch) in askers.chunks(100).enumerate() {
            let text = |n: usize| format!("{round} {index} {n}");
            for (n, asker) in batch.iter().enumerate() {
                asker.send_to(text(n).as_bytes(), server).expect("sent");
            }
            for (n, asker) in batch.iter().enumerate() {
                let mut buffer = [0; 100];
                let len = asker.recv(&mut buffer).expect("answered");
                assert_eq!(&buffer[..len], text(n).as_bytes());
            }
        }
        if round == 1 {
            let status = service.restart(|process| {
                process.signal(Signal::SIGUSR1);
                process.signal(Signal::SIGTERM);
            });
            assert!(status.success(), "{status}");
            service.process.stderr.wait_for("5000 sessions taken up");
        }
    }
    service.process.signal(Signal::SIGTERM);
    assert!(service.process.wait().success());
    service.process.stderr.to_the_end();
    let lines = service.log();
    for text in ["connected after", "drained after"] {
        assert_eq!(lines.iter().filter(|line| line.contains(text)).count(), 5000, "{text}");
    }
}

#[test]
fn datagrams_find_their_namespace_source_and_interface_in_both_families() {
    sandbox!();
    // the same addresses in both, and a listener on the same address in each
    let mut forwards = Vec::new();
    for (index, name) in ["one", "two"].into_iter().enumerate() {
        netns(name);
        for one in ["10.6.0.1/24", "10.6.0.2/24", "fd06::1/64", "fd06::2/64"] {
            address(Some(name), "lo", one);
        }
        for (port, ip, source) in [(5300, "10.6.0.1", "10.6.0.2"), (5310, "[fd06::1]", "fd06::2")] {
            let socket = crate::sandbox::inside(name, || UdpSocket::bind(format!("{ip}:53")).expect("free"));
            tell(socket, name);
            let here = if ip.starts_with('[') { "[::1]" } else { "127.0.0.1" };
            forwards.push(format!(
                "udp_listen={here}+{},namespace={name},udp_target={ip}+53,source={source},bind_device=lo",
                port + index
            ));
            let inner = if ip.starts_with('[') { "[fd06::2]" } else { "10.6.0.2" };
            forwards.push(format!("udp_listen={inner}+54,listen_namespace={name},namespace={name},udp_target={ip}+53"));
        }
    }
    forwards.push("udp_listen=127.0.0.1+5320,namespace=one,udp_target=10.6.0.1+53,allow_from=10.0.0.0/8".to_owned());
    forwards.push("udp_listen=127.0.0.1+5321,namespace=one,udp_target=10.6.0.1+53,bind_device=none".to_owned());
    let service = forwarding(&forwards.iter().map(String::as_str).collect::<Vec<_>>());
    let answer = |asker: &UdpSocket, server: &str| {
        asker.send_to(b"who?", server).expect("sent");
        let mut buffer = [0; 100];
        let (len, from) = asker.recv_from(&mut buffer).expect("answered");
        assert_eq!(from.to_string(), server);
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    for (index, name) in ["one", "two"].into_iter().enumerate() {
        let told = answer(&asker("127.0.0.1"), &format!("127.0.0.1:{}", 5300 + index));
        assert_eq!(told.rsplit_once(':').expect("a port").0, format!("{name} 10.6.0.2"));
        let told = answer(&asker("[::1]"), &format!("[::1]:{}", 5310 + index));
        assert_eq!(told.rsplit_once(':').expect("a port").0, format!("{name} [fd06::2]"));
        crate::sandbox::inside(name, || {
            assert!(answer(&asker("10.6.0.1"), "10.6.0.2:54").starts_with(&format!("{name} 10.6.0.1:")));
            assert!(answer(&asker("[fd06::1]"), "[fd06::2]:54").starts_with(&format!("{name} [fd06::1]:")));
        });
    }
    asker("127.0.0.1").send_to(b"x", "127.0.0.1:5320").expect("sent");
    service.process.stderr.wait_for("not in allow_from");
    asker("127.0.0.1").send_to(b"x", "127.0.0.1:5321").expect("sent");
    service.process.stderr.wait_for("cannot dial through the interface none: No such device");
    service.stop();
}

/// Answers each datagram with `name` and the address that it came from, for ever.
fn tell(socket: UdpSocket, name: &'static str) {
    std::thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 100]) {
            let _ = socket.send_to(format!("{name} {from}").as_bytes(), from);
        }
    });
}

#[test]
fn a_reload_ends_the_flows_of_the_forward_that_goes_and_of_no_other() {
    sandbox!();
    let server = echo_udp(UdpSocket::bind("127.0.0.1:0").expect("free"));
    let forward = |port: u16| format!("[[forward]]\nudp_listen = \"127.0.0.1:{port}\"\nudp_target = \"{server}\"\n");
    std::fs::write("/run/pfwd.toml", forward(5300) + &forward(5301)).expect("ours");
    let service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    let asker = asker("127.0.0.1");
    for port in [5300, 5301] {
        ask(&asker, SocketAddr::from(([127, 0, 0, 1], port)), b"first");
    }
    std::fs::write("/run/pfwd.toml", forward(5301) + &forward(5302)).expect("ours");
    service.process.signal(Signal::SIGHUP);
    service.process.stderr.wait_for("configuration reloaded");
    service.process.stderr.wait("the end of its flow", |lines| {
        lines.iter().find(|line| line.contains("on 127.0.0.1:5300 ") && line.contains(": drained after")).cloned()
    });
    for port in [5301, 5302] {
        ask(&asker, SocketAddr::from(([127, 0, 0, 1], port)), b"second");
    }
    service.process.stderr.wait_for_nth("connected after", 3);
    assert_eq!(service.process.stderr.count("on 127.0.0.1:5301 to"), 1, "one flow, which goes on");
    service.stop();
}
