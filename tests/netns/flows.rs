//! UDP flows in the course of time: what they do when addresses change, when descriptors run out, and when they are over.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    sandbox::{address, asker, echo_udp, forwarding, inside, netns_with_link, pfwd, run},
    support::{Activated, PATIENCE, Process, eventually, skip},
};

fn at(ip: &str, port: u16) -> SocketAddr {
    format!("{ip}:{port}").parse().expect("an address")
}

/// Answers each datagram with the address that it came from, for ever.
fn tell_sender(socket: UdpSocket) {
    thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 100]) {
            let _ = socket.send_to(from.to_string().as_bytes(), from);
        }
    });
}

/// What comes back for a datagram, within a moment.
fn ask(asker: &UdpSocket, server: SocketAddr) -> Option<String> {
    asker.set_read_timeout(Some(Duration::from_millis(20))).expect("not zero");
    asker.send_to(b"who?", server).expect("sent");
    let mut buffer = [0; 100];
    let (len, from) = asker.recv_from(&mut buffer).ok()?;
    assert_eq!(from, server, "the answer comes from where it was asked");
    Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// Asks until somebody answers from the address `from`.
#[track_caller]
fn answered_as(asker: &UdpSocket, server: SocketAddr, from: &str) {
    let from: IpAddr = from.parse().expect("an address");
    let is = |answer: String| answer.parse::<SocketAddr>().is_ok_and(|answer| answer.ip() == from);
    eventually(&format!("{server} is asked from {from}"), || ask(asker, server).is_some_and(is));
}

/// Has `/etc/hosts` of this sandbox hold these lines.
fn hosts(lines: &str) {
    fs::write("/run/hosts", lines).expect("ours");
    let mounted = fs::read_to_string("/proc/self/mountinfo").is_ok_and(|all| all.contains(" /etc/hosts "));
    if !mounted {
        run("mount --bind /run/hosts /etc/hosts");
    }
}

fn restart(service: &mut Activated) {
    let status = service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    assert!(status.success(), "{status}");
}

fn reload(service: &Activated) {
    service.process.signal(Signal::SIGHUP);
    service.process.stderr.wait_for("configuration reloaded");
}

#[test]
fn a_busy_flow_follows_the_address_of_its_host_and_goes_on_to_do_so_after_a_restart_and_a_reload() {
    sandbox!();
    let here = netns_with_link("a", "10.3.0.1/24", "10.3.0.2/24");
    address(None, &here, "fd03::1/64");
    address(Some("a"), "inside", "fd03::2/64");
    for ip in ["10.3.0.2", "[fd03::2]"] {
        tell_sender(inside("a", || UdpSocket::bind(at(ip, 53)).expect("free")));
    }
    let mut service = forwarding(&[
        "udp_listen=127.0.0.1:5300,udp_target=10.3.0.2:53",
        "udp_listen=[::1]:5300,udp_target=[fd03::2]:53",
    ]);
    let (old, new) = (asker("127.0.0.1"), asker("[::1]"));
    let (v4, v6) = (at("127.0.0.1", 5300), at("[::1]", 5300));
    answered_as(&old, v4, "10.3.0.1");
    answered_as(&new, v6, "fd03::1");
    for (round, (gone, come)) in [(1, 3), (3, 4), (4, 5)].into_iter().enumerate() {
        run(&format!("ip addr del 10.3.0.{gone}/24 dev {here}"));
        run(&format!("ip addr del fd03::{gone}/64 dev {here}"));
        address(None, &here, &format!("10.3.0.{come}/24"));
        address(None, &here, &format!("fd03::{come}/64"));
        answered_as(&old, v4, &format!("10.3.0.{come}"));
        answered_as(&new, v6, &format!("fd03::{come}"));
        service.process.stderr.wait_for(&format!("datagrams go to 10.3.0.2:53 from 10.3.0.{come} now, and no longer"));
        service.process.stderr.wait_for(&format!("datagrams go to [fd03::2]:53 from fd03::{come} now, and no longer"));
        match round {
            0 => restart(&mut service),
            1 => reload(&service),
            _ => {}
        }
    }
    assert_eq!(service.log().iter().filter(|line| line.contains("connected after")).count(), 2, "two flows in all");
    service.stop();
}

#[test]
fn a_silent_upstream_is_looked_up_again_and_traffic_in_one_direction_is_left_alone() {
    sandbox!();
    let lo = ["10.5.0.1", "10.5.0.2", "10.5.0.3"];
    let lo6 = ["fd05::1", "fd05::2", "fd05::3"];
    lo.iter().for_each(|ip| address(None, "lo", &format!("{ip}/32")));
    lo6.iter().for_each(|ip| address(None, "lo", &format!("{ip}/128")));
    // the first of each takes datagrams and never answers
    let mute: Vec<UdpSocket> =
        ["10.5.0.1", "[fd05::1]"].iter().map(|ip| UdpSocket::bind(at(ip, 53)).expect("free")).collect();
    for ip in ["10.5.0.2", "[fd05::2]"] {
        tell_sender(UdpSocket::bind(at(ip, 53)).expect("free"));
    }
    hosts("10.5.0.1 four\nfd05::1 six\n10.5.0.3 log\n");
    let sink = UdpSocket::bind("10.5.0.3:514").expect("free");
    let service = forwarding(&[
        "udp_listen=127.0.0.1:5304,udp_target=four:53",
        "udp_listen=127.0.0.1:5306,udp_target=six:53",
        "udp_listen=127.0.0.1:5314,udp_target=log:514",
    ]);
    let askers: Vec<UdpSocket> = (0..3).map(|_| asker("127.0.0.1")).collect();
    let ports = [5304, 5306, 5314];
    let round = || ports.map(|port| ask(&askers[usize::from((port - 5304) / 5)], at("127.0.0.1", port)));
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(200) {
        assert_eq!(round(), [None, None, None]);
    }
    hosts("10.5.0.2 four\nfd05::2 six\n10.5.0.3 log\n");
    let mut answered = [false, false];
    eventually("both names are looked up again", || {
        let [four, six, log] = round();
        assert_eq!(log, None);
        answered[0] |= four.is_some();
        answered[1] |= six.is_some();
        answered == [true, true]
    });
    assert!(began.elapsed() >= Duration::from_secs(5), "{:?}", began.elapsed());
    for moved in ["10.5.0.2:53", "[fd05::2]:53"] {
        let line = service.process.stderr.wait_for(&format!("datagrams go to {moved} from"));
        assert!(line.ends_with(": no datagram came back"), "{line}");
    }
    for mute in &mute {
        assert!(mute.recv(&mut [0; 9]).is_ok());
    }
    // all datagrams of the third flow came from one socket
    sink.set_nonblocking(true).expect("a socket");
    let mut senders: Vec<SocketAddr> = std::iter::from_fn(|| Some(sink.recv_from(&mut [0; 9]).ok()?.1)).collect();
    assert!(senders.len() > 50, "{}", senders.len());
    senders.dedup();
    assert_eq!(senders.len(), 1, "{senders:?}");
    assert_eq!(service.stop().stderr.count("datagrams go to"), 2);
}

#[test]
fn a_refused_flow_goes_to_the_next_address_of_the_name() {
    sandbox!();
    for ip in ["fd05::1/128", "fd05::2/128"] {
        address(None, "lo", ip);
    }
    hosts("127.0.0.2 four\n127.0.0.3 four\nfd05::1 six\nfd05::2 six\n");
    for ip in ["127.0.0.3", "[fd05::2]"] {
        tell_sender(UdpSocket::bind(at(ip, 53)).expect("free"));
    }
    let service =
        forwarding(&["udp_listen=127.0.0.1:5304,udp_target=four:53", "udp_listen=[::1]:5306,udp_target=six:53"]);
    for (asker, server, target) in [
        (asker("127.0.0.1"), at("127.0.0.1", 5304), "127.0.0.3:53"),
        (asker("[::1]"), at("[::1]", 5306), "[fd05::2]:53"),
    ] {
        eventually("the second address answers", || ask(&asker, server).is_some());
        let line = service.process.stderr.wait_for(&format!("datagrams go to {target} from"));
        assert!(line.contains("Connection refused"), "{line}");
    }
    let rest = service.stop();
    assert_eq!(rest.stderr.count(", 1 datagram refused") + rest.stderr.count("; 1 datagram refused"), 2);
}

#[test]
fn the_end_of_a_flow_says_how_many_datagrams_were_refused_or_not_sent_also_after_a_restart_and_a_reload() {
    sandbox!();
    address(None, "lo", "10.5.0.1/32");
    let mut service = pfwd()
        .args(["--forward", "udp_listen=127.0.0.1:5300,udp_target=127.0.0.1:9"])
        .args(["--forward", "udp_listen=127.0.0.1:5301,udp_target=10.5.0.1:9"])
        .with_control()
        .start()
        .ready();
    let asker = asker("127.0.0.1");
    // `bytes` in all that the service has passed on to the target that refuses them
    let refused = |service: &Activated, bytes: u64| {
        asker.send_to(b"x", at("127.0.0.1", 5300)).expect("sent");
        let passed = |session: &serde_json::Value| {
            session["listener"] == "127.0.0.1:5300" && session["up_bytes"].as_u64() == Some(bytes)
        };
        eventually("the datagram is passed on", || service.asking().sessions().iter().any(passed));
    };
    (1..=3).for_each(|bytes| refused(&service, bytes));
    let sink = UdpSocket::bind("10.5.0.1:9").expect("free");
    asker.send_to(b"x", at("127.0.0.1", 5301)).expect("sent");
    sink.recv(&mut [0; 9]).expect("one");
    drop(sink);
    run("ip addr del 10.5.0.1/32 dev lo");
    run("ip route add unreachable 10.5.0.1/32");
    asker.send_to(b"x", at("127.0.0.1", 5301)).expect("sent");
    refused(&service, 4); // which one task passes on after the other
    restart(&mut service);
    asker.send_to(b"x", at("127.0.0.1", 5301)).expect("sent");
    reload(&service);
    refused(&service, 5);
    let rest = service.stop();
    rest.stderr.wait("the losses of the first flow", |lines| {
        lines.iter().find(|line| line.contains(":5300 ") && line.ends_with("; 5 datagrams refused")).cloned()
    });
    rest.stderr.wait("the losses of the second flow", |lines| {
        lines.iter().find(|line| line.contains(":5301 ") && line.ends_with("; 2 datagrams not sent")).cloned()
    });
}

#[test]
fn without_a_descriptor_the_quietest_flow_makes_room_whichever_listener_it_has() {
    sandbox!();
    let server = echo_udp(UdpSocket::bind("127.0.0.1:0").expect("free"));
    let server6 = echo_udp(UdpSocket::bind("[::1]:0").expect("free"));
    let service = pfwd()
        .args(["--forward", &format!("udp_listen=127.0.0.1:5300,udp_target={server}")])
        .args(["--forward", &format!("udp_listen=[::1]:5300,udp_target={server6}")])
        .nofile(64)
        .start()
        .ready();
    let ask = |asker: &UdpSocket, ip: &str| {
        asker.send_to(b"x", at(ip, 5300)).expect("sent");
        assert_eq!(asker.recv(&mut [0; 9]).expect("it is answered"), 1);
    };
    // It has the oldest flow, and is never the quietest.
    let busy = asker("127.0.0.1");
    // all flows are the first listener's before the second has its first
    for ip in ["127.0.0.1", "[::1]"] {
        for _ in 0..80 {
            ask(&busy, "127.0.0.1");
            ask(&asker(ip), ip);
        }
    }
    let line = service.process.stderr.wait_for("no descriptor left");
    assert!(line.contains(": idle after") && line.contains("it made room for another"), "{line}");
    let of_busy = busy.local_addr().expect("bound").to_string();
    let hit = |line: &&String| line.contains("it made room") && line.contains(&format!("{of_busy} "));
    assert_eq!(service.process.stderr.so_far().iter().find(hit), None);
    assert!(service.process.stderr.count("no descriptor left") >= 80);
    assert_eq!(service.stop().stderr.count("dial-failed"), 0);
}

#[test]
fn a_broadcast_address_is_a_target_and_so_is_a_multicast_group() {
    sandbox!();
    let here = netns_with_link("a", "10.3.0.1/24", "10.3.0.2/24");
    run("ip addr change 10.3.0.1/24 broadcast 10.3.0.255 dev LINK".replace("LINK", &here).as_str());
    run(&format!("ip route add 255.255.255.255/32 dev {here}"));
    let sinks = inside("a", || ["0.0.0.0:9", "[::]:10"].map(|at| UdpSocket::bind(at).expect("free")));
    sinks.iter().for_each(|sink| sink.set_read_timeout(Some(Duration::from_millis(200))).expect("not zero"));
    let service = forwarding(&[
        "udp_listen=127.0.0.1:5301,udp_target=10.3.0.255:9",
        "udp_listen=127.0.0.1:5302,udp_target=255.255.255.255:9,udp_responses=0",
        &format!("udp_listen=[::1]:5303,udp_target=[ff02::1]:10,bind_device={here}"),
    ]);
    for (ip, port, sink) in [("127.0.0.1", 5301, 0), ("127.0.0.1", 5302, 0), ("[::1]", 5303, 1)] {
        // again, as who wakes a machine does: a new link takes a moment to be of use for a group
        eventually("the packet arrives", || {
            asker(ip).send_to(port.to_string().as_bytes(), at(ip, port)).expect("sent");
            let mut buffer = [0; 9];
            let received = sinks[sink].recv(&mut buffer);
            received.is_ok_and(|len| buffer[..len] == *port.to_string().as_bytes())
        });
    }
    // one that is never answered, and needs no answer, is over at once
    service.process.stderr.wait("the end of a flow without answers", |lines| {
        lines.iter().find(|line| line.contains("5302 ") && line.contains(": eof after")).cloned()
    });
    assert_eq!(service.stop().stderr.count("5301 to udp 10.3.0.255:9: connected after"), 1);
}

/// A name server for one test: answers A with 192.0.2.7 and AAAA with 2001:db8::7, `late` after the query; queries with
/// a number in `lost` are not answered. The number of queries is sent to `seen`.
fn name_server(socket: UdpSocket, lost: &'static [usize], late: Duration) -> mpsc::Receiver<usize> {
    let (send, seen) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        for number in 0.. {
            let Ok((len, from)) = socket.recv_from(&mut buffer) else { return };
            let _ = send.send(number);
            if lost.contains(&number) {
                continue;
            }
            let end = 12 + buffer[12..len].iter().position(|b| *b == 0).expect("a name") + 5;
            let mut answer = buffer[..end].to_vec();
            // a response, recursion available; one question, one answer (RFC 1035 section 4.1.1)
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            let is_v4 = buffer[end - 3] == 1;
            answer.extend([0xc0, 12, 0, if is_v4 { 1 } else { 28 }, 0, 1, 0, 0, 0, 60, 0, if is_v4 { 4 } else { 16 }]);
            if is_v4 {
                answer.extend([192, 0, 2, 7]);
            } else {
                answer.extend("2001:db8::7".parse::<std::net::Ipv6Addr>().expect("one").octets());
            }
            let socket = socket.try_clone().expect("a descriptor");
            thread::spawn(move || {
                thread::sleep(late);
                let _ = socket.send_to(&answer, from);
            });
        }
    });
    seen
}

/// Has programs of this sandbox resolve names by the name server `ip`, which is asked again after a second.
fn resolve_by(ip: &str) {
    resolve_with(ip, "timeout:1 attempts:3");
}

/// The same, where each question is asked once: no stall of this machine makes a second one. 30 s is the longest that
/// resolv.conf(5) takes.
fn resolve_once_by(ip: &str) {
    resolve_with(ip, "timeout:30 attempts:1");
}

fn resolve_with(ip: &str, options: &str) {
    hosts("127.0.0.1 localhost\n");
    fs::write("/run/resolv.conf", format!("nameserver {ip}\noptions {options}\n")).expect("ours");
    run("mount --bind /run/resolv.conf /etc/resolv.conf");
}

/// getaddrinfo(3) of glibc, in another process: both families are asked from one socket.
fn getaddrinfo(name: &str) -> Command {
    let mut command = Command::new("getent");
    command.args(["ahosts", name]).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn assert_both(output: &[u8]) {
    let text = String::from_utf8_lossy(output);
    assert!(text.contains("192.0.2.7") && text.contains("2001:db8::7"), "{text}");
}

#[test]
fn a_resolver_that_asks_twice_from_one_port_gets_both_answers_and_its_flow_ends() {
    sandbox!();
    let seen = name_server(UdpSocket::bind("127.0.0.1:5353").expect("free"), &[], Duration::ZERO);
    let service = forwarding(&["udp_listen=127.0.0.53:53,udp_target=127.0.0.1:5353,udp_responses=1"]);
    resolve_once_by("127.0.0.53");
    assert_both(&getaddrinfo("both.example").output().expect("getent").stdout);
    let queries = seen.try_iter().count();
    assert_eq!(queries, 2, "A and AAAA");
    // one flow, or one for each query where the first answer came before the second query
    let ends = service.process.stderr.wait("the end of all flows", |lines| {
        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        (count("connected after") > 0 && count("connected after") == count(": eof after")).then(|| count(": eof after"))
    });
    assert!((1..=2).contains(&ends), "{ends}");
    service.stop();
}

#[test]
fn names_are_resolved_through_a_forward_to_dnsmasq_also_after_a_restart() {
    sandbox!();
    if Command::new("dnsmasq").arg("--version").output().is_err() {
        return skip("dnsmasq is missing");
    }
    let mut dnsmasq = Command::new("dnsmasq");
    dnsmasq.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces", "--user=root"]);
    dnsmasq.args(["--pid-file", "--conf-file=/dev/null", "--listen-address=127.0.0.1,::1", "--port=5353"]);
    dnsmasq.arg("--host-record=both.example,once.example,again.example,192.0.2.7,2001:db8::7");
    dnsmasq.args(["--log-queries", "--log-facility=-"]).stdin(Stdio::null());
    let dnsmasq = Process::start(dnsmasq);
    let mut service = forwarding(&[
        "udp_listen=127.0.0.53:53,udp_target=127.0.0.1:5353,udp_responses=1",
        "udp_listen=[::1]:53,udp_target=[::1]:5353,udp_responses=1",
    ]);
    for (ip, name) in [("127.0.0.53", "once.example"), ("::1", "again.example")] {
        resolve_by(ip);
        let resolved = || getaddrinfo("both.example").output().is_ok_and(|output| output.status.success());
        eventually("dnsmasq answers", resolved); // it may still be starting
        restart(&mut service);
        resolve_once_by(ip);
        assert_both(&getaddrinfo(name).output().expect("getent").stdout);
        let asked = || ["A", "AAAA"].map(|kind| dnsmasq.stderr.count(&format!("query[{kind}] {name}")));
        eventually("each question was sent once", || asked() == [1, 1]);
    }
    service.stop();
}

#[test]
fn a_retransmission_and_a_restart_lose_no_answer_and_end_no_flow_early() {
    sandbox!();
    // the first query is lost, and all answers come late enough for both queries to be on their way
    let server = UdpSocket::bind("[::1]:5353").expect("free");
    let seen = name_server(server, &[0], Duration::from_millis(300));
    let mut service = forwarding(&["udp_listen=[::1]:53,udp_target=[::1]:5353,udp_responses=1"]);
    resolve_by("::1");
    let child = getaddrinfo("both.example").spawn().expect("getent");
    assert_eq!((seen.recv_timeout(PATIENCE).expect("a query"), seen.recv_timeout(PATIENCE).expect("another")), (0, 1));
    restart(&mut service); // with an answer on its way
    assert_both(&child.wait_with_output().expect("getent").stdout);
    let more = seen.try_iter().count();
    assert!(more >= 1, "the lost query came again");
    let connected = service.log().iter().filter(|line| line.contains("connected after")).count();
    assert_eq!(connected, 1, "all of it in one flow");
    // the flow waits for the answer that was lost; a further datagram of the same flow would still be expected
    assert_eq!(service.process.stderr.count(": eof after"), 0);
    service.stop();
}

#[test]
fn a_flow_that_was_handed_over_ends_with_its_last_answer() {
    sandbox!();
    let server = asker("127.0.0.1");
    let there = server.local_addr().expect("bound");
    let mut service = forwarding(&[&format!("udp_listen=127.0.0.1:5300,udp_target={there},udp_responses=2")]);
    let asker = asker("127.0.0.1");
    for _ in 0..2 {
        asker.send_to(b"x", at("127.0.0.1", 5300)).expect("sent");
    }
    let mut buffer = [0; 9];
    let (_, from) = server.recv_from(&mut buffer).expect("a datagram");
    server.recv_from(&mut buffer).expect("another");
    for answer in 0..4u8 {
        if answer == 2 {
            restart(&mut service);
        }
        assert_eq!(service.process.stderr.count(": eof after"), 0, "{answer} of 4 answers");
        server.send_to(&[answer], from).expect("sent");
        asker.recv(&mut buffer).expect("the answer");
        assert_eq!(buffer[0], answer);
    }
    let end = service.process.stderr.wait_for(": eof after");
    assert!(end.contains("2 bytes up, 4 down"), "{end}");
    // the next datagram begins another flow
    asker.send_to(b"y", at("127.0.0.1", 5300)).expect("sent");
    assert_ne!(server.recv_from(&mut buffer).expect("a datagram").1, from);
    service.stop();
}

/// As nginx does it: `proxy_responses` ends a session early, and `proxy_timeout` ends the others.
#[test]
fn a_flow_whose_answer_is_lost_ends_by_its_idle_timeout() {
    sandbox!();
    let server = asker("127.0.0.1");
    let there = server.local_addr().expect("bound");
    let service =
        forwarding(&[&format!("udp_listen=127.0.0.1:5300,udp_target={there},udp_responses=1,udp_idle_timeout=1")]);
    let asker = asker("127.0.0.1");
    let mut buffer = [0; 9];
    for _ in 0..2 {
        asker.send_to(b"x", at("127.0.0.1", 5300)).expect("sent");
    }
    let (_, from) = server.recv_from(&mut buffer).expect("a datagram");
    server.recv_from(&mut buffer).expect("another, which is not answered");
    server.send_to(b"y", from).expect("sent");
    asker.recv(&mut buffer).expect("the answer");
    let end = service.process.stderr.wait_for("2 bytes up, 1 down");
    assert!(end.contains(": idle after"), "{end}");
    service.stop();
}

#[test]
fn datagrams_that_wait_for_a_look_up_go_over_a_restart() {
    sandbox!();
    // the look-up of the first process is not answered, that of the next one is
    let seen = name_server(UdpSocket::bind("127.0.0.53:53").expect("free"), &[0, 1], Duration::ZERO);
    resolve_once_by("127.0.0.53");
    for (ip, place) in [("192.0.2.7", "192.0.2.7/32"), ("[2001:db8::7]", "2001:db8::7/128")] {
        address(None, "lo", place);
        echo_udp(UdpSocket::bind(at(ip, 7007)).expect("free"));
    }
    let mut service = forwarding(&["udp_listen=127.0.0.1:5300,udp_target=late.example:7007,connect_timeout=30"]);
    let client = asker("127.0.0.1");
    let sent = ["first", "second", "third"];
    sent.iter().for_each(|text| _ = client.send_to(text.as_bytes(), at("127.0.0.1", 5300)).expect("sent"));
    for _ in 0..2 {
        seen.recv_timeout(PATIENCE).expect("the name is asked for");
    }
    restart(&mut service);
    for text in sent {
        let mut buffer = [0; 9];
        let len = client.recv(&mut buffer).expect("answered");
        assert_eq!(&buffer[..len], text.as_bytes());
    }
    service.process.stderr.wait_for("connected after");
    assert_eq!(service.stop().stderr.count("connected after"), 1, "one flow");
}
