//! Forwards that lead back to themselves: a connection or a datagram that comes back makes nothing more. And forwards
//! that lead through each other on purpose.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::symlink,
    path::Path,
    thread,
};

use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::{
    restart::restart,
    sandbox::{address, asker, echo_tcp, echo_udp, echo_udp_inside, inside, netns, netns_with_link, pfwd},
    support::{Activated, PATIENCE, Pace, Wire, eventually, exchange},
};

/// The reason in the log.
const BACK: &str = "the forward leads back to this listener (";

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn serve(forwards: &[&str]) -> Activated {
    pfwd().args(forwards.iter().flat_map(|forward| ["--forward", forward])).with_control().start().ready()
}

/// Waits until the listener has refused what came back to it; the circle that the log tells.
#[track_caller]
fn refused_on(service: &Activated, listener: &str) -> String {
    let line = service.process.stderr.wait(&format!("a refusal on {listener}"), |lines| {
        lines.iter().find(|line| line.contains(&format!(" on {listener}: {BACK}"))).cloned()
    });
    line.split(BACK).nth(1).and_then(|rest| rest.split(')').next()).expect("the circle").to_owned()
}

/// How many sessions and flows got their upstream so far.
fn begun(service: &Activated) -> usize {
    service.process.stderr.count("connected after")
}

fn talk(wire: &mut Wire) {
    wire.write_all(b"hello").expect("it lives");
    wire.expect(b"hello");
}

/// Waits until the connection is over. A reset does not pass a Unix socket that carries nothing: behind it there is an
/// end.
fn over(mut wire: Wire) {
    match wire.read(&mut [0; 9]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("instead of an end: {other:?}"),
    }
}

/// A connection from an address and port that somebody else had before.
fn connect_from(from: SocketAddr, to: SocketAddr) -> Wire {
    let socket = Socket::new(Domain::for_address(from), Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("a socket");
    socket.bind(&from.into()).expect("the port is free");
    socket.connect(&to.into()).expect("somebody listens");
    let stream = std::net::TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    Wire::from_tcp(stream)
}

/// The peer of the session that a listener has.
#[track_caller]
fn peer_on(service: &Activated, listener: &str) -> SocketAddr {
    let sessions = service.asking().sessions();
    let session = sessions.iter().find(|session| session["listener"] == listener).expect("a session");
    at(session["peer"].as_str().expect("an address"))
}

#[test]
fn a_connection_that_comes_back_is_reset_and_makes_one_session_for_each_forward_of_the_circle() {
    sandbox!();
    address(None, "lo", "10.7.0.1/32");
    address(None, "lo", "fd07::1/128");
    let service = serve(&[
        "listen=127.0.0.1:4000,target=127.0.0.1:4000",
        "listen=[::1]:4001,target=[::1]:4001",
        "listen=[::]:4002,target=127.0.0.1:4002",
        "listen=127.0.0.1:4003,target=[::ffff:127.0.0.1]:4003",
        "listen=0.0.0.0:4004,target=10.7.0.1:4004",
        "listen=[::]:4005,target=[fd07::1]:4005",
        "listen=127.0.0.1:4006,target=0.0.0.0:4006",
        "listen=[::1]:4007,target=[::]:4007",
        "listen=127.0.0.1:4008,target=localhost:4008",
        "listen=0.0.0.0:4009,target=127.0.0.7:4009,source=127.0.0.9",
        // two, three
        "listen=127.0.0.1:4010,target=127.0.0.1:4011",
        "listen=127.0.0.1:4011,target=127.0.0.1:4010",
        "listen=127.0.0.1:4020,target=127.0.0.1:4021",
        "listen=127.0.0.1:4021,target=[::1]:4022",
        "listen=[::1]:4022,target=127.0.0.1:4020",
        // by a Unix socket
        "listen=127.0.0.1:4030,uds=/run/two.sock",
        "uds=/run/two.sock,target=127.0.0.1:4030",
        "listen=127.0.0.1:4031,uds=/run/pipe.sock,target=127.0.0.1:4031",
        "listen=127.0.0.1:4032,uds=@abstract",
        "uds=@abstract,target=127.0.0.1:4032",
    ]);
    let cases = [
        ("127.0.0.1:4000", "127.0.0.1:4000", 1),
        ("[::1]:4001", "[::1]:4001", 1),
        ("127.0.0.1:4002", "[::]:4002", 1),
        ("127.0.0.1:4003", "127.0.0.1:4003", 1),
        ("127.0.0.1:4004", "0.0.0.0:4004", 1),
        ("[::1]:4005", "[::]:4005", 1),
        ("127.0.0.1:4006", "127.0.0.1:4006", 1),
        ("[::1]:4007", "[::1]:4007", 1),
        ("127.0.0.1:4008", "127.0.0.1:4008", 1),
        ("127.0.0.1:4009", "0.0.0.0:4009", 1),
        ("127.0.0.1:4010", "127.0.0.1:4010", 2),
        ("127.0.0.1:4021", "127.0.0.1:4021", 3),
        ("127.0.0.1:4030", "127.0.0.1:4030", 2),
        ("127.0.0.1:4031", "127.0.0.1:4031", 2),
        ("127.0.0.1:4032", "127.0.0.1:4032", 2),
    ];
    let mut before = 0;
    for (to, listener, sessions) in cases {
        let mut client = Wire::tcp(at(to));
        if to < "127.0.0.1:4030" {
            client.expect_reset()
        } else {
            over(client)
        }
        let circle = refused_on(&service, listener);
        assert_eq!(circle.matches(" -> ").count(), sessions, "{circle}");
        eventually("no session is left", || service.asking().sessions().is_empty());
        assert_eq!(begun(&service), before + sessions, "{to}");
        before += sessions;
    }
    assert_eq!(refused_on(&service, "127.0.0.1:4021"), {
        "127.0.0.1:4021 -> [::1]:4022 -> 127.0.0.1:4020 -> 127.0.0.1:4021"
    });
    // each further one is refused, and told about once a minute
    Wire::tcp(at("127.0.0.1:4000")).expect_reset();
    eventually("no session is left", || service.asking().sessions().is_empty());
    assert_eq!(service.process.stderr.count(BACK), cases.len());
    service.stop();
}

#[test]
fn a_unix_socket_that_is_dialled_by_another_path_is_known_from_the_second_round_on() {
    sandbox!();
    symlink("/run", "/run/also").expect("ours");
    let service = serve(&["uds=/run/self.sock,target=127.0.0.1:4000", "listen=127.0.0.1:4000,uds=/run/also/self.sock"]);
    over(Wire::tcp(at("127.0.0.1:4000")));
    refused_on(&service, "/run/self.sock");
    eventually("no session is left", || service.asking().sessions().is_empty());
    assert!(begun(&service) <= 4, "two rounds at most");
    service.stop();
}

#[test]
fn a_circle_through_a_namespace_is_known_and_equal_addresses_in_two_namespaces_are_none() {
    sandbox!();
    netns("a");
    netns("b");
    netns_with_link("c", "10.4.0.1/24", "10.4.0.2/24");
    let service = serve(&[
        // inside one, and from here into one and back
        "listen=127.0.0.1:4000,listen_namespace=a,namespace=a,target=127.0.0.1:4000",
        "listen=127.0.0.1:4001,namespace=a,target=127.0.0.1:4002",
        "listen=127.0.0.1:4002,listen_namespace=a,target=127.0.0.1:4001",
        // over a link
        "listen=10.4.0.1:4003,target=10.4.0.2:4003",
        "listen=0.0.0.0:4003,listen_namespace=c,namespace=c,target=10.4.0.1:4003",
        // none
        "listen=127.0.0.1:4004,listen_namespace=b,namespace=a,target=127.0.0.1:4004",
        "listen=127.0.0.1:4004,listen_namespace=a,namespace=a,target=127.0.0.1:4005",
    ]);
    inside("a", || Wire::tcp(at("127.0.0.1:4000"))).expect_reset();
    refused_on(&service, "127.0.0.1:4000 in a");
    Wire::tcp(at("127.0.0.1:4001")).expect_reset();
    refused_on(&service, "127.0.0.1:4001");
    Wire::tcp(at("10.4.0.1:4003")).expect_reset();
    refused_on(&service, "10.4.0.1:4003");
    eventually("no session is left", || service.asking().sessions().is_empty());
    assert_eq!(begun(&service), 1 + 2 + 2);

    echo_tcp(inside("a", || TcpListener::bind("127.0.0.1:4005").expect("free")), "");
    let mut first = inside("b", || Wire::tcp(at("127.0.0.1:4004")));
    talk(&mut first);
    // in b, a client with the addresses that our socket has in a
    let ours = peer_on(&service, "127.0.0.1:4004 in a");
    let mut second = inside("b", || connect_from(ours, at("127.0.0.1:4004")));
    talk(&mut second);
    drop((first, second));
    service.stop();
}

#[test]
fn forwards_that_lead_through_each_other_serve_everybody_also_after_a_restart() {
    sandbox!();
    netns("a");
    let echo = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let mut service = serve(&[
        "listen=127.0.0.1:4000,target=localhost:4001",
        "listen=0.0.0.0:4001,uds=/run/chain.sock",
        "uds=/run/chain.sock,namespace=a,target=127.0.0.1:4002",
        "listen=127.0.0.1:4002,listen_namespace=a,target=127.0.0.1:4003",
        &format!("listen=127.0.0.1:4003,target={echo}"),
        // the same port as a listener on every address
        "listen=0.0.0.0:4004,target=127.0.0.1:4003",
    ]);
    let mut kept = Wire::tcp(at("127.0.0.1:4000"));
    talk(&mut kept);
    restart(&mut service);
    talk(&mut kept);
    talk(&mut Wire::tcp(at("127.0.0.1:4000")));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(|| (0..250).for_each(|_| exchange(&mut Wire::tcp(at("127.0.0.1:4004")), 1, 10, Pace::BULK)))
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("all are served"));
    talk(&mut kept);
    drop(kept);
    assert_eq!(service.process.stderr.count(BACK), 0);
    service.stop();
}

#[test]
fn a_port_that_this_service_had_is_anybodys_after_the_session() {
    sandbox!();
    let echo = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let answers = echo_udp(UdpSocket::bind("127.0.0.1:0").expect("free"));
    let service = serve(&[
        "listen=127.0.0.1:4000,target=127.0.0.1:4001",
        &format!("listen=127.0.0.1:4001,target={echo}"),
        "udp_listen=127.0.0.1:5300,udp_target=127.0.0.1:5301",
        &format!("udp_listen=127.0.0.1:5301,udp_target={answers}"),
    ]);
    let mut first = Wire::tcp(at("127.0.0.1:4000"));
    talk(&mut first);
    let asked = asker("127.0.0.1");
    asked.send_to(b"x", at("127.0.0.1:5300")).expect("sent");
    assert_eq!(asked.recv(&mut [0; 9]).expect("answered"), 1);
    let (tcp, udp) = (peer_on(&service, "127.0.0.1:4001"), peer_on(&service, "127.0.0.1:5301"));
    first.reset();
    service.asking().ok(&["kill", "--all"]);
    eventually("no session is left", || service.asking().sessions().is_empty());
    talk(&mut connect_from(tcp, at("127.0.0.1:4000")));
    let other = UdpSocket::bind(udp).expect("free");
    other.set_read_timeout(Some(PATIENCE)).expect("not zero");
    other.send_to(b"x", at("127.0.0.1:5300")).expect("sent");
    assert_eq!(other.recv(&mut [0; 9]).expect("answered"), 1);
    assert_eq!(service.process.stderr.count(BACK), 0);
    service.stop();
}

#[test]
fn a_datagram_that_comes_back_is_dropped_and_makes_one_flow_for_each_forward_of_the_circle() {
    sandbox!();
    netns("a");
    address(None, "lo", "10.7.0.1/32");
    address(None, "lo", "fd07::1/128");
    netns_with_link("d", "10.8.0.1/24", "10.8.0.2/24"); // broadcasts
    let service = serve(&[
        "udp_listen=127.0.0.1:5300,udp_target=127.0.0.1:5300",
        "udp_listen=[::1]:5301,udp_target=[::1]:5301",
        "udp_listen=[::]:5302,udp_target=127.0.0.1:5302",
        "udp_listen=0.0.0.0:5303,udp_target=10.7.0.1:5303",
        "udp_listen=[::]:5304,udp_target=[fd07::1]:5304",
        "udp_listen=127.0.0.1:5305,udp_target=localhost:5305,source=127.0.0.1",
        "udp_listen=0.0.0.0:5306,udp_target=10.8.0.255:5306",
        "udp_listen=127.0.0.1:5310,udp_target=127.0.0.1:5311",
        "udp_listen=127.0.0.1:5311,udp_target=127.0.0.1:5310",
        "udp_listen=127.0.0.1:5320,udp_target=127.0.0.1:5321",
        "udp_listen=127.0.0.1:5321,namespace=a,udp_target=127.0.0.1:5322",
        "udp_listen=127.0.0.1:5322,listen_namespace=a,udp_target=127.0.0.1:5320",
    ]);
    let cases = [
        ("127.0.0.1:5300", "127.0.0.1:5300", 1),
        ("[::1]:5301", "[::1]:5301", 1),
        ("127.0.0.1:5302", "[::]:5302", 1),
        ("127.0.0.1:5303", "0.0.0.0:5303", 1),
        ("[::1]:5304", "[::]:5304", 1),
        ("127.0.0.1:5305", "127.0.0.1:5305", 1),
        ("127.0.0.1:5306", "0.0.0.0:5306", 1),
        ("127.0.0.1:5310", "127.0.0.1:5310", 2),
        ("127.0.0.1:5321", "127.0.0.1:5321", 3),
    ];
    let mut flows = 0;
    for (to, listener, more) in cases {
        let asker = asker(if to.starts_with('[') { "[::1]" } else { "127.0.0.1" });
        asker.send_to(b"round", at(to)).expect("sent");
        let circle = refused_on(&service, listener);
        assert_eq!(circle.matches(" -> ").count(), more, "{circle}");
        flows += more;
    }
    let sessions = service.asking().sessions();
    assert_eq!(sessions.len(), flows, "{sessions:#?}");
    assert!(sessions.iter().all(|session| session["up_bytes"] == 5), "one datagram each: {sessions:#?}");
    service.stop();
}

#[test]
fn datagrams_pass_forwards_that_lead_through_each_other_also_after_a_restart() {
    sandbox!();
    netns("a");
    let echo = echo_udp_inside("a", "127.0.0.1");
    let mut service = serve(&[
        "udp_listen=127.0.0.1:5300,udp_target=127.0.0.1:5301",
        "udp_listen=0.0.0.0:5301,udp_target=127.0.0.1:5302",
        &format!("udp_listen=127.0.0.1:5302,namespace=a,udp_target={echo}"),
    ]);
    let kept = asker("127.0.0.1");
    let ask = |asker: &UdpSocket| {
        asker.send_to(b"question", at("127.0.0.1:5300")).expect("sent");
        assert_eq!(asker.recv(&mut [0; 99]).expect("answered"), 8);
    };
    ask(&kept);
    restart(&mut service);
    ask(&kept);
    (0..50).for_each(|_| ask(&asker("127.0.0.1")));
    assert_eq!(service.process.stderr.count(BACK), 0);
    service.stop();
}

/// Sessions begin before a restart; the forwards that make a circle of them come with a reload after it.
#[test]
fn what_came_through_which_listener_is_known_after_a_restart() {
    sandbox!();
    let config = Path::new("/run/pfwd.toml");
    let open = "[[forward]]\nlisten = \"127.0.0.1:4000\"\nuds = \"/run/way.sock\"\n\
                [[forward]]\nuds = \"/run/way.sock\"\ntarget = \"127.0.0.1:4001\"\n\
                [[forward]]\nlisten = \"127.0.0.1:4001\"\ntarget = \"127.0.0.1:4002\"\nretry_timeout = 60\n\
                [[forward]]\nudp_listen = \"127.0.0.1:5300\"\nudp_target = \"127.0.0.1:5301\"\n";
    let circle = "[[forward]]\nlisten = \"127.0.0.1:4002\"\ntarget = \"127.0.0.1:4000\"\n\
                  [[forward]]\nudp_listen = \"127.0.0.1:5301\"\nudp_target = \"127.0.0.1:5300\"\n";
    fs::write(config, open).expect("ours");
    let mut service = pfwd().args(["--config", "/run/pfwd.toml"]).with_control().start().ready();
    let mut client = Wire::tcp(at("127.0.0.1:4000"));
    client.write_all(b"x").expect("connected");
    service.process.stderr.wait_for("cannot connect to 127.0.0.1:4002");
    let asker = asker("127.0.0.1");
    asker.send_to(b"x", at("127.0.0.1:5300")).expect("sent");
    service.process.stderr.wait_for("127.0.0.1:5300 to udp 127.0.0.1:5301: connected after");
    restart(&mut service);
    fs::write(config, format!("{open}{circle}")).expect("ours");
    service.process.signal(Signal::SIGHUP);
    over(client);
    let expected = "127.0.0.1:4000 -> /run/way.sock -> 127.0.0.1:4001 -> 127.0.0.1:4002 -> 127.0.0.1:4000";
    assert_eq!(refused_on(&service, "127.0.0.1:4000"), expected);
    service.process.stderr.wait_for("configuration reloaded");
    eventually("the datagram comes back", || {
        asker.send_to(b"x", at("127.0.0.1:5300")).expect("sent");
        service.process.stderr.count(&format!("127.0.0.1:5300: {BACK}")) == 1
    });
    let listeners: Vec<_> = service.asking().sessions().iter().map(|session| session["listener"].to_string()).collect();
    let all: BTreeSet<_> = listeners.iter().collect();
    assert_eq!((listeners.len(), all.len()), (2, 2), "a flow of each listener, and no session: {listeners:?}");
    service.stop();
}

#[test]
fn a_circle_whose_connection_waits_in_the_backlog_ends_with_its_session() {
    sandbox!();
    let service = serve(&["listen=127.0.0.1:4050,target=127.0.0.1:4050,max_connections=1"]);
    let client = Wire::tcp(at("127.0.0.1:4050"));
    service.process.stderr.wait_for("connected after");
    service.asking().ok(&["kill", "127.0.0.1:4050"]);
    over(client);
    eventually("no session is left", || service.asking().sessions().is_empty());
    // The backlog is empty, and the listener is as it was.
    let client = Wire::tcp(at("127.0.0.1:4050"));
    eventually("a second session begins", || begun(&service) == 2);
    service.asking().ok(&["kill", "127.0.0.1:4050"]);
    over(client);
    assert_eq!(begun(&service), 2);
    service.stop();
}

/// The kernel keeps a Unix connection whose socket is closed, with its bytes, until it is accepted.
#[test]
fn a_circle_whose_unix_connection_waits_in_the_backlog_ends_with_its_session() {
    sandbox!();
    let echo = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let service = serve(&[
        "uds=/run/wait.sock,target=127.0.0.1:4060,max_connections=1",
        "listen=127.0.0.1:4060,uds=/run/wait.sock",
        // no circle: what waits is served, to the last byte
        "listen=127.0.0.1:4070,uds=/run/line.sock",
        &format!("uds=/run/line.sock,target={echo},max_connections=1"),
    ]);
    // In the first case its socket is closed before it is accepted, in the second case perhaps not yet.
    for (round, killed) in [(1, "127.0.0.1:4060"), (2, "/run/wait.sock")] {
        let sessions = 2 * round;
        let mut client = Wire::unix(Path::new("/run/wait.sock"));
        client.write_all(b"round").expect("it listens");
        eventually("the second connection waits", || begun(&service) == sessions);
        service.asking().ok(&["kill", killed]);
        over(client);
        assert_eq!(refused_on(&service, "/run/wait.sock"), "/run/wait.sock -> 127.0.0.1:4060 -> /run/wait.sock");
        let denied = |line: &&str| {
            line.starts_with("pfwd_peers_denied_total{listener=\"/run/wait.sock\"")
                && line.ends_with(&format!(" {round}"))
        };
        eventually("what waited is refused", || {
            service.asking().ok(&["metrics"]).stdout.lines().any(|line| denied(&line))
        });
        eventually("no session is left", || service.asking().sessions().is_empty());
        assert_eq!(begun(&service), sessions);
    }

    let mut first = Wire::tcp(at("127.0.0.1:4070"));
    talk(&mut first);
    let mut second = Wire::tcp(at("127.0.0.1:4070"));
    second.write_all(b"to the last byte").expect("it listens");
    let bytes = |session: &serde_json::Value| session["up_bytes"].as_u64();
    eventually("its bytes wait", || service.asking().sessions().iter().any(|session| bytes(session) == Some(16)));
    second.reset();
    eventually("only the first is there", || service.asking().sessions().len() == 2);
    drop(first);
    let line = service.process.stderr.wait_for("on /run/line.sock to tcp");
    assert!(line.contains("connected"), "{line}");
    eventually("both were served", || {
        let lines = service.process.stderr.so_far();
        lines.iter().any(|line| line.contains("on /run/line.sock") && line.contains("16 bytes up"))
    });
    service.stop();
}
