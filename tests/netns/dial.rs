//! Dials of targets that have several addresses, no name server, or that come late.

use std::{
    fs,
    io::Read as _,
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    sandbox::{address, asker, echo_tcp, forwarding, netns_with_link, run, told_address},
    support::{Activated, Process, Wire, eventually, skip},
};

/// Replaces `/etc/NAME` in this sandbox.
fn etc(name: &str, text: &str) {
    fs::write(format!("/run/{name}"), text).expect("ours");
    run(&format!("mount --bind /run/{name} /etc/{name}"));
}

/// A host that is there, `10.7.0.200` and `2001:db8:7::200`, beside addresses whose packets vanish: their neighbour entry
/// names a station that nobody is.
fn host_beside_black_holes() {
    netns_with_link("far", "10.7.0.1/24", "10.7.0.200/24");
    let links = Command::new("ip").args(["-o", "route", "show", "10.7.0.0/24"]).output().expect("iproute2");
    let links = String::from_utf8(links.stdout).expect("text");
    let device = links.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a route of the link");
    address(None, device, "2001:db8:7::1/64");
    address(Some("far"), "inside", "2001:db8:7::200/64");
    for hole in ["10.7.0.2", "10.7.0.3", "2001:db8:7::2", "2001:db8:7::3"] {
        run(&format!("ip neigh add {hole} lladdr 02:00:00:00:00:99 nud permanent dev {device}"));
    }
}

/// An echo server of the far host.
fn far_echo(at: &str) {
    let listener = crate::sandbox::inside("far", || TcpListener::bind(at).expect("nobody has it"));
    echo_tcp(listener, "far ");
}

/// TCP connections of this sandbox that nobody has answered (state 02, SYN-SENT, of proc_net_tcp in the kernel's
/// documentation). With the kernel's retries each lasts for two minutes, unless its socket is closed.
fn attempts() -> usize {
    let tables =
        ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).expect("a table"));
    tables.iter().flat_map(|table| table.lines()).filter(|line| line.split_whitespace().nth(3) == Some("02")).count()
}

fn dial(service: &Activated, leads_to: &str) -> Wire {
    Wire::tcp(told_address(service, leads_to))
}

#[test]
fn a_name_is_reached_although_its_first_address_is_a_black_hole() {
    sandbox!();
    host_beside_black_holes();
    for at in ["10.7.0.200:70", "[2001:db8:7::200]:70"] {
        far_echo(at);
    }
    // IPv6 comes first (RFC 6724), and of two IPv4 addresses the nearer one
    etc(
        "hosts",
        "10.7.0.2 four.test\n10.7.0.200 four.test\n2001:db8:7::2 six.test\n2001:db8:7::200 six.test\n\
                  2001:db8:7::2 both.test\n2001:db8:7::3 both.test\n10.7.0.200 both.test\n",
    );
    let names = [("four.test", "10.7.0.200:70"), ("six.test", "[2001:db8:7::200]:70"), ("both.test", "10.7.0.200:70")];
    let forwards = names.map(|(name, _)| format!("listen=127.0.0.1+0,target={name}+70,connect_timeout=5"));
    let service = forwarding(&forwards.each_ref().map(String::as_str));
    for (name, winner) in names {
        let mut wire = dial(&service, &format!("tcp {name}:70"));
        wire.expect(b"far ");
        let line = service.process.stderr.wait_for(&format!("to tcp {name}:70: connected after "));
        assert!(line.ends_with(&format!(" ms to {winner}")), "{line}");
        let ms = line.rsplit("after ").next().and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
        assert!(ms.is_some_and(|ms| ms >= 240), "a black hole was tried first: {line}");
        eventually("the attempts that lost are closed", || attempts() == 0);
        drop(wire);
        // The winner is closed as any other connection: an end, not a reset.
        service.process.stderr.wait_for(&format!("to tcp {name}:70: eof "));
    }
    service.stop();
}

#[test]
fn a_failed_dial_names_every_address_and_its_error() {
    sandbox!();
    host_beside_black_holes();
    etc("hosts", "10.7.0.2 half.test\n10.7.0.200 half.test\n10.7.0.200 none.test\n2001:db8:7::200 none.test\n");
    let service = forwarding(&[
        "listen=127.0.0.1+0,target=half.test+71,connect_timeout=1",
        "listen=127.0.0.1+0,target=none.test+71,connect_timeout=1",
    ]);
    dial(&service, "tcp half.test:71").expect_reset();
    let line = service.process.stderr.wait_for("half.test:71: timeout");
    assert!(line.contains("half.test:71: not connected within 1 s: "), "{line}");
    assert!(line.contains("10.7.0.2:71 did not answer"), "{line}");
    assert!(line.contains("10.7.0.200:71: Connection refused"), "{line}");
    dial(&service, "tcp none.test:71").expect_reset();
    let line = service.process.stderr.wait_for("none.test:71: dial-failed");
    assert!(line.contains("cannot connect to none.test:71: "), "{line}");
    assert!(line.contains("[2001:db8:7::200]:71: Connection refused"), "{line}");
    assert!(line.contains("10.7.0.200:71: Connection refused"), "{line}");
    service.stop();
}

#[test]
fn timing_a_refusal_begins_the_next_address_at_once() {
    sandbox!();
    host_beside_black_holes();
    far_echo("10.7.0.200:72");
    etc("hosts", "2001:db8:7::200 next.test\n10.7.0.200 next.test\n");
    let service = forwarding(&["listen=127.0.0.1+0,target=next.test+72"]);
    let began = Instant::now();
    dial(&service, "tcp next.test:72").expect(b"far ");
    assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    service.stop();
}

/// The system calls on two sockets, in their order; of setsockopt(2) the option.
struct DialCalls {
    /// On the accepted socket, before anything is read from it.
    accepted: Vec<String>,
    /// On the dialled socket, up to the connection.
    dialled: Vec<String>,
}

/// The system calls of the service's next dial.
fn calls_of_a_dial(service: &Activated, leads_to: &str) -> DialCalls {
    let dir = tempfile::tempdir().expect("a directory");
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-e", "trace=network,desc", "-p", &service.process.pid().to_string(), "-o"]);
    strace.arg(dir.path().join("trace")); // a file for each thread, so that no line is interrupted
    let mut strace = Process::start(strace);
    strace.stderr.wait_for(" attached"); // with all threads
    dial(service, leads_to).expect(b"here ");
    strace.signal(Signal::SIGINT);
    strace.wait();
    let threads = fs::read_dir(dir.path()).expect("ours").map(|file| fs::read_to_string(file.expect("ours").path()));
    let threads: Vec<String> = threads.map(|text| text.expect("text")).collect();
    let words = |line: &&str| match line.split_once('(') {
        Some(("setsockopt", arguments)) => arguments.split(", ").nth(2).unwrap_or_default().to_owned(),
        Some((name, _)) => name.to_owned(),
        None => (*line).to_owned(),
    };
    let accepted = calls_on(&threads, |line| line.starts_with("accept4(") && !line.contains("= -1 "));
    let uses =
        ["recvfrom(", "recvmsg(", "read(", "readv(", "splice(", "ioctl(", "sendto(", "write(", "shutdown(", "close("];
    let unused = accepted.iter().take_while(|line| !uses.iter().any(|call| line.starts_with(call)));
    let dialled = calls_on(&threads, |line| line.starts_with("socket(AF_INET, SOCK_STREAM"));
    // The second call says how the first one ended: mostly that the socket is connected.
    let connects = dialled.iter().enumerate().filter(|(_, line)| line.starts_with("connect("));
    let (end, _) = connects.take(2).last().expect("it connects");
    DialCalls { accepted: unused.map(words).collect(), dialled: dialled[..=end].iter().map(words).collect() }
}

/// The lines of a trace about the socket that the first such line gives, behind that line, in the same thread.
fn calls_on(threads: &[String], gives: impl Fn(&str) -> bool) -> Vec<&str> {
    let thread = threads.iter().find_map(|text| {
        let mut lines = text.lines();
        let first = lines.find(|line| gives(line))?;
        Some((first, lines))
    });
    let (first, lines) = thread.unwrap_or_else(|| panic!("no such call: {threads:#?}"));
    let number = first.rsplit("= ").next().expect("a result");
    let on_it = |line: &&str| {
        let arguments = line.split_once('(').map_or("", |(_, arguments)| arguments);
        let is_it = |argument: &str| argument.trim().trim_start_matches("[{fd=") == number;
        !line.starts_with("epoll_wait") && arguments.split([',', ')']).any(is_it)
    };
    lines.filter(on_it).collect()
}

#[test]
fn one_address_is_dialled_with_no_more_system_calls_than_before_names_had_several() {
    sandbox!();
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("strace is missing");
    }
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "here ");
    etc("hosts", "127.0.0.1 one.test\n");
    let names = [format!("127.0.0.1:{}", here.port()), format!("one.test:{}", here.port())];
    let forwards = names.each_ref().map(|name| format!("listen=0.0.0.0+0,target={name}"));
    let service = forwarding(&forwards.each_ref().map(String::as_str));
    for name in names {
        let leads_to = format!("tcp {name}");
        dial(&service, &leads_to).expect(b"here "); // threads for look-ups are there
        let expected =
            ["TCP_NODELAY", "SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "connect", "connect"];
        let calls = calls_of_a_dial(&service, &leads_to);
        assert_eq!(calls.dialled, expected, "{name}");
        assert_eq!(calls.accepted, ["epoll_ctl"], "{name}: the look for circles takes no system call");
    }
    service.stop();
}

/// A name server that never answers; the number of questions that it got.
fn silent_name_server() -> Arc<AtomicUsize> {
    let server = UdpSocket::bind("127.0.0.53:53").expect("a network of our own");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    thread::spawn(move || {
        while server.recv_from(&mut [0; 512]).is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    etc("resolv.conf", "nameserver 127.0.0.53\n");
    asked
}

fn threads_of(service: &Activated) -> usize {
    fs::read_dir(format!("/proc/{}/task", service.process.pid())).expect("it runs").count()
}

#[test]
fn a_dead_name_server_stops_neither_other_names_nor_the_end_of_the_service() {
    sandbox!();
    let asked = silent_name_server();
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "here ");
    etc("hosts", "127.0.0.1 localhost\n");
    let service = forwarding(&[
        "listen=127.0.0.1+0,target=dead.test+80,connect_timeout=60,drain_timeout=0",
        &format!("listen=127.0.0.1+0,target=localhost+{},connect_timeout=2", here.port()),
        "listen=127.0.0.1+0,target=late.test+80,connect_timeout=1",
        "udp_listen=127.0.0.1:5300,udp_target=flow.test+53,connect_timeout=1",
    ]);
    let dead = told_address(&service, "tcp dead.test:80");
    let crowd: Vec<TcpStream> = (0..700).map(|_| TcpStream::connect(dead).expect("a backlog")).collect();
    eventually("the name is asked for", || asked.load(Ordering::SeqCst) > 0);
    dial(&service, "tcp localhost").expect(b"here ");
    assert!(threads_of(&service) < 40, "{} threads", threads_of(&service));
    // glibc asks for A and AAAA, and again when it has waited (resolv.conf(5))
    assert!(asked.load(Ordering::SeqCst) <= 8, "{} questions for one name", asked.load(Ordering::SeqCst));
    dial(&service, "tcp late.test:80").expect_reset();
    service.process.stderr.wait_for("the name late.test was not resolved within 1 s");
    asker("127.0.0.1").send_to(b"x", "127.0.0.1:5300").expect("sent");
    service.process.stderr.wait_for("the name flow.test was not resolved within 1 s");
    // The look-up still goes on, and nobody waits for it.
    service.stop();
    drop(crowd);
}

#[test]
fn timing_a_stop_does_not_wait_for_a_look_up() {
    sandbox!();
    let asked = silent_name_server();
    let service = forwarding(&["listen=127.0.0.1+0,target=dead.test+80,connect_timeout=60,drain_timeout=0"]);
    let mut peer = TcpStream::connect(told_address(&service, "tcp dead.test:80")).expect("it listens");
    eventually("the name is asked for", || asked.load(Ordering::SeqCst) > 0);
    let began = Instant::now();
    service.stop();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(peer.read(&mut [0]).is_err(), "reset");
}
