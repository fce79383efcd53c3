//! Ranges of ports: one forward, a listener for each port.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::Instant,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    life::at,
    restart::restart,
    sandbox::{asker, echo_tcp, echo_udp, forwarding, inside, netns, pfwd},
    support::{Activated, Pace, Wire, eventually, exchange, run},
};

/// What `pfwd ARGS` prints, and its exit code.
fn said(args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pfwd"));
    command.args(args);
    let output = run(command);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout) + &text(output.stderr))
}

/// Writes the configuration and has the service read it, for the n-th time.
#[track_caller]
fn reload(service: &Activated, text: &str, n: usize) -> String {
    fs::write("/run/new.toml", text).expect("ours");
    fs::rename("/run/new.toml", "/run/pfwd.toml").expect("ours");
    service.process.signal(Signal::SIGHUP);
    service.process.stderr.wait_for_nth("configuration reloaded", n)
}

fn rows(service: &Activated, word: &str) -> Vec<Value> {
    let report = service.asking().say(&["status", "--json", word]).json();
    report["listeners"].as_array().expect("a list").clone()
}

/// There and back; the session lives on.
#[track_caller]
fn echo(wire: &mut Wire) {
    wire.write_all(b"there and back").expect("connected");
    wire.expect(b"there and back");
}

fn ask(from: &UdpSocket, to: SocketAddr) {
    from.send_to(b"asked", to).expect("sent");
    let (len, answered) = from.recv_from(&mut [0; 10]).expect("answered");
    assert_eq!((len, answered), (5, to));
}

#[test]
fn each_port_of_a_range_leads_to_its_target_and_has_its_own_limit() {
    sandbox!();
    netns("a");
    for (ip, text) in [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")] {
        let at = |port: u16| SocketAddr::new(ip.parse().expect("an address"), port);
        for (port, says) in [(9000, "zero "), (9001, "one "), (9002, "two ")] {
            echo_tcp(TcpListener::bind(at(port)).expect("free"), says);
            echo_udp(UdpSocket::bind(at(port)).expect("free"));
        }
        echo_tcp(inside("a", || TcpListener::bind(at(9001)).expect("free")), "inside ");
        let service = forwarding(&[
            &format!("label=web,listen={text}:8000-8002,target={text}:9000-9002,max_connections=1"),
            &format!("listen={text}:8100-8102,target={text}:9001"),
            &format!("listen={text}:8200-8201,listen_namespace=a,namespace=a,target={text}:9000-9001"),
            &format!("udp_listen={text}:8000-8002,udp_target={text}:9000-9002"),
        ]);
        assert_eq!(service.notifications.status().as_deref(), Some("4 forwards, 0 sessions"));
        let mut first = Wire::tcp(at(8000));
        first.expect(b"zero ");
        let mut waits = Wire::tcp(at(8000));
        Wire::tcp(at(8001)).expect(b"one ");
        Wire::tcp(at(8002)).expect(b"two ");
        drop(first);
        waits.expect(b"zero ");
        for port in 8100..=8102 {
            Wire::tcp(at(port)).expect(b"one ");
        }
        inside("a", || Wire::tcp(at(8201)).expect(b"inside "));
        let asker = asker(text);
        (8000..=8002).for_each(|port| ask(&asker, at(port)));
        let told = |line: &String| line.starts_with("web: ") && line.contains(" leads to ");
        assert_eq!(service.process.stderr.so_far().iter().filter(|line| told(line)).count(), 3);
        drop(waits);
        service.stop();
    }
}

#[test]
fn a_label_means_all_ports_of_a_range_and_a_port_behind_it_means_one() {
    sandbox!();
    let server = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let service = pfwd()
        .args(["--forward", &format!("label=web,listen=127.0.0.1:8000-8002,target={server}")])
        .args(["--forward", &format!("label=web-udp,udp_listen=127.0.0.1:8000-8002,udp_target={server}")])
        .with_control()
        .start()
        .ready();
    let asking = service.asking();
    let states = |word: &str| -> Vec<(String, String)> {
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        rows(&service, word).iter().map(|row| (text(row, "address"), text(row, "state"))).collect()
    };
    let with = |words: [&str; 3]| -> Vec<(String, String)> {
        (8000..).zip(words).map(|(port, state)| (format!("127.0.0.1:{port}"), state.to_owned())).collect()
    };
    assert_eq!(states("web"), with(["serving"; 3]));
    // one, all, one again
    assert_eq!(
        asking.ok(&["pause", "web:8001"]).stdout,
        "127.0.0.1:8001/tcp (web) is paused: connections wait in the backlog\n"
    );
    assert_eq!(states("web"), with(["serving", "paused", "serving"]));
    let mut held = Wire::tcp(at(8001));
    exchange(&mut Wire::tcp(at(8000)), 1, 100, Pace::BULK);
    assert_eq!(asking.ok(&["pause", "web"]).stdout.lines().count(), 3);
    assert_eq!(states("web"), with(["paused"; 3]));
    assert_eq!(states("web-udp"), with(["serving"; 3]), "the other forward");
    asking.ok(&["resume", "web:8002"]);
    assert_eq!(states("web"), with(["paused", "paused", "serving"]));
    assert_eq!(asking.ok(&["resume", "web"]).stdout.lines().count(), 3);
    assert_eq!(states("web"), with(["serving"; 3]));
    exchange(&mut held, 2, 100, Pace::BULK);
    // a word that means listeners of two forwards changes nothing
    for command in ["pause", "kill"] {
        let said = asking.say(&[command, "8001"]);
        assert_eq!(said.code, Some(1), "{said:?}");
        for word in ["127.0.0.1:8001/tcp (web)", "127.0.0.1:8001/udp (web-udp)"] {
            assert!(said.stderr.contains(word), "{said:?}");
        }
    }
    assert_eq!(states("web"), with(["serving"; 3]));
    // a shell is offered the label once
    let mut complete = asking.command(&["--", "qrexec-connect", "pause", "we"]);
    complete.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "2").env("_CLAP_IFS", "\n");
    complete.env("_CLAP_COMPLETE_COMP_TYPE", "9").env("_CLAP_COMPLETE_SPACE", "true");
    let offered = String::from_utf8(run(complete).stdout).expect("text");
    assert_eq!(offered.lines().filter(|word| word.trim() == "web").count(), 1, "{offered}");
    // sessions
    let mut wires: Vec<Wire> = [8000, 8000, 8001, 8002].map(|port| Wire::tcp(at(port))).into();
    wires.iter_mut().for_each(echo);
    drop(held);
    let count = |port: u16| {
        let of = |session: &&Value| session["listener"] == format!("127.0.0.1:{port}") && session["label"] == "web";
        asking.sessions().iter().filter(of).count()
    };
    let counts = || [8000, 8001, 8002].map(count);
    eventually("they are told of", || counts() == [2, 1, 1]);
    assert_eq!(asking.ok(&["kill", "web:8000"]).stdout.lines().count(), 2);
    assert_eq!(counts(), [0, 1, 1]);
    assert_eq!(asking.ok(&["kill", "web"]).stdout.lines().count(), 2);
    assert_eq!(counts(), [0; 3]);
    wires.iter_mut().for_each(Wire::expect_reset);
    // one connection, and counters of each
    let report = asking.ok(&["try", "web:8002", "--json"]).json();
    assert_eq!((&report["listener"], &report["label"]), (&"127.0.0.1:8002".into(), &"web".into()), "{report}");
    let metrics = asking.ok(&["metrics"]).stdout;
    for (port, accepted) in [(8000, 3), (8001, 2), (8002, 2)] {
        let labels = format!("{{listener=\"127.0.0.1:{port}\",transport=\"tcp\",label=\"web\"}}");
        let line = format!("pfwd_sessions_accepted_total{labels} {accepted}");
        assert!(metrics.lines().any(|one| one == line), "{line} is missing in\n{metrics}");
    }
    service.stop();
}

#[test]
fn a_reload_of_a_range_touches_only_the_ports_that_come_and_go() {
    sandbox!();
    let [one, two] = ["one ", "two "].map(|says| echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), says));
    let udp = echo_udp(UdpSocket::bind("127.0.0.1:0").expect("free"));
    let text = |ports: &str, target: SocketAddr| {
        format!(
            "[[forward]]\nlabel = \"web\"\nlisten = \"127.0.0.1:{ports}\"\ntarget = \"{target}\"\n\
             [[forward]]\nudp_listen = \"127.0.0.1:{ports}\"\nudp_target = \"{udp}\"\n"
        )
    };
    fs::write("/run/pfwd.toml", text("8002-8004", one)).expect("ours");
    let mut service = pfwd().args(["--config", "/run/pfwd.toml"]).with_control().start().ready();
    let inodes = |ports: std::ops::RangeInclusive<u16>| -> Vec<(String, String)> {
        let inode = |table: &str, port: u16| {
            let at = format!(":{port:04X} ");
            let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).expect("/proc is there");
            let listens =
                |fields: &Vec<&str>| (fields[1].to_owned() + " ").ends_with(&at) && fields[2].ends_with(":0000");
            let line = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).skip(1).find(listens);
            line.map(|fields| fields[9].to_owned()).unwrap_or_default()
        };
        ports.map(|port| (inode("tcp", port), inode("udp", port))).collect()
    };
    let asker = asker("127.0.0.1");
    let mut wires: Vec<Wire> = (8002..=8004).map(|port| Wire::tcp(at(port))).collect();
    wires.iter_mut().for_each(|wire| wire.expect(b"one "));
    (8002..=8004).for_each(|port| ask(&asker, at(port)));
    let before = inodes(8002..=8004);
    assert!(before.iter().all(|(tcp, udp)| !tcp.is_empty() && !udp.is_empty()), "{before:?}");
    service.asking().ok(&["pause", "web:8003"]);

    // it grows at both ends, and leads elsewhere
    let line = reload(&service, &text("8000-8006", two), 1);
    assert!(line.contains("3 listeners changed, 8 opened, 0 closed"), "{line}");
    assert_eq!(inodes(8002..=8004), before, "the same sockets");
    wires.iter_mut().for_each(echo);
    Wire::tcp(at(8000)).expect(b"two ");
    Wire::tcp(at(8002)).expect(b"two ");
    ask(&asker, at(8006));
    let states: Vec<Value> = rows(&service, "web").iter().map(|row| row["state"].clone()).collect();
    assert_eq!(states.iter().filter(|state| *state == "paused").count(), 1, "the pause of one stays: {states:?}");

    // it shrinks to the middle; sessions of the ports that go live on
    let line = reload(&service, &text("8003-8003", two), 2);
    assert!(
        line.contains("0 opened, 12 closed: tcp 127.0.0.1:8000-8002, tcp 127.0.0.1:8004-8006, udp 127.0.0.1:8000-8002, udp 127.0.0.1:8004-8006"),
        "{line}"
    );
    assert_eq!(inodes(8003..=8003), before[1..2], "the same sockets");
    assert!([8000, 8002, 8004, 8006].iter().all(|port| TcpStream::connect(at(*port)).is_err()));
    wires.iter_mut().for_each(echo);

    // its own forward takes a port out of the range
    let own = format!("[[forward]]\nlisten = \"127.0.0.1:8003\"\ntarget = \"{one}\"\n");
    let line = reload(&service, &(text("8004-8006", two) + &own), 3);
    assert!(line.contains("6 opened, 1 closed: udp 127.0.0.1:8003"), "{line}");
    assert_eq!(inodes(8003..=8003)[0].0, before[1].0, "the same socket");

    // a fault of the range keeps all of it
    fs::write("/run/pfwd.toml", text("8006-8004", two)).expect("ours");
    service.process.signal(Signal::SIGHUP);
    let line = service.process.stderr.wait_for("the new configuration is not used");
    assert!(line.contains("/run/pfwd.toml:3:21: listen: the range 8006-8004 ends before it begins"), "{line}");
    assert!(line.contains("write: listen = \"127.0.0.1:8004-8006\""), "{line}");
    Wire::tcp(at(8005)).expect(b"two ");

    // a restart takes all of them over, and the next one a range that has changed meanwhile
    fs::write("/run/pfwd.toml", text("8003-8006", two)).expect("ours");
    let before = inodes(8003..=8006);
    restart(&mut service);
    assert_eq!(inodes(8004..=8006), before[1..], "the same sockets");
    assert_eq!(inodes(8003..=8003)[0].0, before[0].0, "the same socket");
    wires.iter_mut().for_each(echo);
    fs::write("/run/pfwd.toml", text("8005-8008", two)).expect("ours");
    restart(&mut service);
    assert_eq!(inodes(8005..=8006), before[2..], "the same sockets");
    assert!(TcpStream::connect(at(8004)).is_err());
    Wire::tcp(at(8008)).expect(b"two ");
    wires.iter_mut().for_each(echo);
    drop(wires);
    service.stop();
}

#[test]
fn a_port_that_is_taken_does_not_keep_the_others_of_its_range_from_serving() {
    sandbox!();
    let server = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let taken = TcpListener::bind(at(8001)).expect("free");
    let text = format!("[[forward]]\nlabel = \"web\"\nlisten = \"127.0.0.1:8000-8002\"\ntarget = \"{server}\"\n");
    fs::write("/run/pfwd.toml", &text).expect("ours");
    let (code, out) = said(&["--check", "--config", "/run/pfwd.toml"]);
    assert!(code == Some(78) && out.contains("127.0.0.1:8001 is taken already"), "{out}");
    let (_, out) = said(&["status", "--json", "--config", "/run/pfwd.toml", "web:8001"]);
    assert!(out.matches("\"address\"").count() == 1 && out.contains("127.0.0.1:8001"), "it does not run: {out}");
    let service = pfwd().args(["--config", "/run/pfwd.toml"]).with_control().start().ready();
    let rows = |word: &str| rows(&service, word);
    let states = || rows("web").iter().map(|row| row["state"].clone()).collect::<Vec<_>>();
    assert_eq!(states(), ["serving", "refused", "serving"]);
    assert!(rows("web:8001")[0]["reason"].as_str().expect("a reason").contains("Address already in use"));
    exchange(&mut Wire::tcp(at(8002)), 1, 100, Pace::BULK);
    drop(taken);
    eventually("it is retried", || states() == ["serving"; 3]);
    exchange(&mut Wire::tcp(at(8001)), 1, 100, Pace::BULK);
    service.stop();
}

/// The time is printed; what is asserted is the CPU time of the service.
#[test]
fn timing_a_range_of_1024_ports_opens_and_closes_in_one_reload() {
    sandbox!();
    let server = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    netns("a");
    let text =
        |ports: &str, more: &str| format!("[[forward]]\nlisten = \"127.0.0.1:{ports}\"\ntarget = \"{server}\"\n{more}");
    let there = "listen_namespace = \"a\"\n";
    fs::write("/run/pfwd.toml", text("8000", "") + &text("8000", there)).expect("ours");
    let service = pfwd().args(["--config", "/run/pfwd.toml"]).nofile(65_536).start().ready();
    let stat = format!("/proc/{}/stat", service.process.pid());
    let ticks = || -> u64 {
        let stat = fs::read_to_string(&stat).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    };
    for (n, here, inside, what) in [
        (1, "8000-9023", "8000", "1023 opened"),
        (2, "8000", "8000", "1023 closed: tcp 127.0.0.1:8001-9023"),
        (3, "8000", "8000-9023", "1023 opened"),
        (4, "8000", "8000", "1023 closed: tcp 127.0.0.1:8001-9023 in a"),
    ] {
        let (began, before) = (Instant::now(), ticks());
        let line = reload(&service, &(text(here, "") + &text(inside, there)), n);
        eprintln!("{here}, {inside} inside: {what} after {:?}, {} ticks of CPU", began.elapsed(), ticks() - before);
        assert!(line.contains(what), "{line}");
        assert!(ticks() - before < 100, "{} ticks of 10 ms", ticks() - before);
        exchange(&mut Wire::tcp(at(8000)), 1, 100, Pace::BULK);
        assert_eq!(TcpStream::connect(at(9023)).is_ok(), n == 1);
    }
    service.stop();
}

#[test]
fn a_range_becomes_units_and_what_cannot_be_one_says_why() {
    sandbox!();
    let forward = "label=web,listen=127.0.0.1:8000-8002,target=10.0.0.5:9000-9002";
    let (code, text) = said(&["--forward", forward, "--print-units"]);
    assert_eq!(code, Some(0), "{text}");
    for n in 0..3 {
        assert!(text.contains(&format!("pfwd-web-800{n}.socket")), "{text}");
        assert!(text.contains(&format!("ListenStream=127.0.0.1:800{n}\n")), "{text}");
        assert!(text.contains(&format!("FileDescriptorName=target=10.0.0.5+900{n}\n")), "{text}");
    }
    assert_eq!(text.matches("[Socket]").count(), 3, "{text}");
    for (forward, says, next) in [
        ("listen=127.0.0.1:1-3,target=10.0.0.5:1-2", "target has 2 ports, and listen has 3", "one port for all"),
        ("listen=127.0.0.1:9,target=10.0.0.5:1-2", "target has 2 ports, and listen has 1", "one port for all"),
        ("listen=127.0.0.1:1-2,uds=/run/a.sock", "cannot go through a UNIX socket", "a forward for each port"),
        ("uds=/run/a.sock,target=10.0.0.5:1-2", "there is one listening socket", "write one port"),
        ("listen=127.0.0.1:9-5,target=10.0.0.5:1", "ends before it begins", "listen=127.0.0.1:5-9"),
        ("listen=127.0.0.1:0-5,target=10.0.0.5:1", "port 0", "from 1 to 65535"),
        ("listen=127.0.0.1:1-2000,target=10.0.0.5:1", "has 2000 ports; a forward has at most 1024", "127.0.0.1:1-1024"),
        ("listen=127.0.0.1:1-2,target=10.0.0.5:1,source=10.0.0.9:1-2", "is not an IP address", "without a port"),
        ("udp_listen=[::1]:1-3,udp_target=[::1]:1-2", "udp_target has 2 ports, and udp_listen has 3", "one port"),
    ] {
        let (code, text) = said(&["--check", "--forward", forward]);
        assert!(code == Some(78) && text.contains(says) && text.contains(next), "{forward}: {text}");
        assert!(text.contains('^'), "its place is shown: {text}");
    }
    for (one, other, says) in [
        ("127.0.0.1:1-5", "127.0.0.1:3", "two forwards listen on 127.0.0.1:3 (the other is --forward #1)"),
        ("127.0.0.1:1-5", "127.0.0.1:4-9", "two forwards listen on 127.0.0.1:4, and on 1 more port of the range"),
        ("0.0.0.0:2001-2005", "127.0.0.1:2004-2009", "only one of them can listen; the same holds for 1 more port"),
    ] {
        let forwards = [one, other].map(|listen| format!("listen={listen},target=10.0.0.5:1"));
        let (code, text) = said(&["--check", "--forward", &forwards[0], "--forward", &forwards[1]]);
        let text = text.replace("\n", " ");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(code == Some(78) && text.contains(says.split(" (").next().expect("a part")), "{one} {other}: {text}");
    }
    let (code, text) = said(&["--check", "--forward", "listen=127.0.0.1:2001-3024,target=127.0.0.1:2001-3024"]);
    assert_eq!((code, text.matches("makes another one").count()), (Some(78), 1), "{text}");
    // in the name of a socket
    let dir = tempfile::tempdir().expect("a directory");
    let unit = dir.path().join("pfwd-a.socket");
    fs::write(&unit, "[Socket]\nListenStream=127.0.0.1:2001\nFileDescriptorName=target=10.0.0.5+1-2\n").expect("ours");
    let (code, text) = said(&["check", &unit.to_string_lossy()]);
    assert!(code == Some(78) && text.contains("target has 2 ports, and there is one listening socket"), "{text}");
    assert!(Path::new(&unit).exists());
}

/// Ports of one range are one finding; the port and the path of one forward are two.
#[test]
fn what_one_process_has_of_a_forward_is_one_finding_for_its_ports_and_one_for_its_path() {
    sandbox!();
    let _path = std::os::unix::net::UnixListener::bind("/run/taken.sock").expect("a new directory");
    let _ports = [8000, 8001, 8002].map(|port| TcpListener::bind(at(port)).expect("free"));
    let (code, out) = said(&["--check", "--forward", "listen=127.0.0.1:8000-8002,target=10.0.0.5:80"]);
    assert_eq!((code, out.matches("is taken already").count()), (Some(78), 1), "{out}");
    assert!(
        out.contains("127.0.0.1:8000 is taken already") && out.contains("the same holds for 2 more ports"),
        "{out}"
    );
    let pipeline = "listen=127.0.0.1:8000,uds=/run/taken.sock,target=10.0.0.5:22";
    let (code, out) = said(&["--check", "--forward", pipeline]);
    assert_eq!((code, out.matches("is taken already").count()), (Some(78), 2), "{out}");
    assert!(out.contains("/run/taken.sock is taken already") && !out.contains("the same holds"), "{out}");
}

#[test]
fn a_range_that_would_leave_no_descriptors_is_refused_and_the_others_are_served() {
    sandbox!();
    let server = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let text = |last: u16| {
        let range =
            format!("[[forward]]\nlabel = \"wide\"\nlisten = \"127.0.0.1:8000-{last}\"\ntarget = \"{server}\"\n");
        range + &format!("[[forward]]\nlisten = \"127.0.0.1:7000\"\ntarget = \"{server}\"\n")
    };
    fs::write("/run/pfwd.toml", text(8599)).expect("ours");
    let service = pfwd().args(["--config", "/run/pfwd.toml"]).with_control().nofile(512).start().ready();
    let why = "600 listeners would leave no descriptors for sessions: the limit is 512, of which listeners may have 368; \
               forward fewer ports, or raise LimitNOFILE= of the service";
    let line = service.process.stderr.wait_for("wide: tcp 127.0.0.1:8000-8599 is not served: ");
    assert!(line.contains(why), "{line}");
    echo(&mut Wire::tcp(at(7000)));
    assert!(TcpStream::connect(at(8000)).is_err());
    let row = &rows(&service, "wide:8599")[0];
    assert!(row["state"] == "refused" && row["reason"].as_str().is_some_and(|reason| reason.contains(why)), "{row}");
    assert_eq!(service.process.stderr.count("is not served"), 1, "one entry for the range");
    // `check` as a start by hand with that limit
    let check = |limit: u32| {
        let mut command = Command::new("sh");
        let program = env!("CARGO_BIN_EXE_pfwd");
        command.args(["-c", &format!("ulimit -n {limit}; exec {program} --check --config /run/pfwd.toml")]);
        let output = run(command);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = check(512);
    assert!(code == Some(78) && said.contains(&format!("/run/pfwd.toml:1: {why}")), "{said}");
    let (_, said) = check(1024);
    assert!(!said.contains("descriptors"), "{said}");

    // What fits is served by a reload; a reload that would open too many leaves what is open.
    reload(&service, &text(8299), 1);
    echo(&mut Wire::tcp(at(8299)));
    let mut kept = Wire::tcp(at(8000));
    echo(&mut kept);
    reload(&service, &text(8599), 2);
    service.process.stderr.wait_for("wide: tcp 127.0.0.1:8300-8599 is not served: 600 listeners would leave");
    echo(&mut kept);
    echo(&mut Wire::tcp(at(8299)));
    assert!(TcpStream::connect(at(8300)).is_err());
    service.stop();
}
