//! What comes, goes and comes back: namespaces, configurations, processes.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Instant,
};

use nix::sys::signal::Signal;

use crate::{
    sandbox::{asker, echo_inside, echo_tcp, echo_udp, forwarding, inside, netns, pfwd, run},
    support::{Activated, Activation, Pace, Wire, eventually, exchange, receive, sample, send},
};

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A restart as `systemctl restart` makes it.
fn restart(service: &mut Activated) {
    let status = service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_namespace_that_is_made_anew_is_used_at_the_next_dial() {
    sandbox!();
    netns("a");
    let listener = inside("a", || TcpListener::bind("127.0.0.1:7000").expect("free"));
    echo_tcp(listener, "first");
    let service = forwarding(&["listen=127.0.0.1+4000,namespace=a,target=127.0.0.1+7000"]);
    let mut old = Wire::tcp(at(4000));
    old.expect(b"first");
    // under load
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, served) = (stop.clone(), served.clone());
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    use std::io::Read as _;
                    let mut stream = TcpStream::connect(at(4000)).expect("the listener never goes");
                    let mut got = [0; 5];
                    if stream.read_exact(&mut got).is_ok() {
                        served.fetch_add(1, SeqCst);
                    }
                }
            })
        })
        .collect();
    for round in 0..5 {
        run("ip netns del a");
        netns("a");
        let listener = inside("a", || TcpListener::bind("127.0.0.1:7000").expect("free"));
        echo_tcp(listener, "again");
        let before = served.load(SeqCst);
        eventually("it is served again", || served.load(SeqCst) > before + 10);
        let mut new = Wire::tcp(at(4000));
        new.expect(b"again");
        // the log says which namespace that is
        let now = format!("which is {} now", crate::sandbox::inode_of("a"));
        assert!(service.process.stderr.wait_for(&now).contains("tcp 127.0.0.1:7000 in a"), "round {round}");
    }
    stop.store(true, SeqCst);
    load.into_iter().for_each(|thread| thread.join().expect("no panic"));
    // a session in a namespace that was deleted goes on
    exchange(&mut old, 4, 100_000, Pace::BULK);
    service.stop();
}

#[test]
fn listeners_in_a_namespace_come_and_go_with_it() {
    sandbox!();
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "hello");
    let udp = echo_udp(std::net::UdpSocket::bind("127.0.0.1:0").expect("free"));
    let service = forwarding(&[
        &format!("listen=127.0.0.1+80,listen_namespace=late,target={here}"),
        &format!("udp_listen=10.7.0.1+53,listen_namespace=late,udp_target={udp}"),
        &format!("listen=127.0.0.1+4000,target={here}"),
    ]);
    assert_eq!(service.notifications.status().as_deref(), Some("1 of 3 forwards, 0 sessions"));
    Wire::tcp(at(4000)).expect(b"hello");
    for round in 1..=4 {
        netns("late");
        service.process.stderr.wait_for_nth("127.0.0.1:80 in late (net:[", round);
        service.process.stderr.wait_for_nth("10.7.0.1:53 in late (net:[", round);
        inside("late", || Wire::tcp(at(80)).expect(b"hello"));
        // its address comes after it
        run("ip -n late addr add 10.7.0.1/24 dev lo");
        inside("late", || {
            let asker = asker("10.7.0.1");
            asker.send_to(b"x", "10.7.0.1:53").expect("sent");
            assert_eq!(asker.recv(&mut [0; 9]).expect("answered"), 1);
        });
        service.notifications.wait_for("STATUS", |status| status.starts_with("3 forwards"));
        let mut kept = inside("late", || Wire::tcp(at(80)));
        kept.expect(b"hello");
        let inode = crate::sandbox::inode_of("late");
        run("ip netns del late");
        service.process.stderr.wait_for_nth("127.0.0.1:80 in late is closed: its namespace is gone", round);
        exchange(&mut kept, 2, 10_000, Pace::BULK);
        drop(kept);
        // nothing of ours keeps it alive
        let number = inode.trim_start_matches("net:[").trim_end_matches(']').to_owned();
        eventually("the namespace is gone", || {
            let output = std::process::Command::new("lsns").args(["-t", "net", "-n", "-o", "NS"]).output();
            !String::from_utf8_lossy(&output.expect("util-linux").stdout).contains(&number)
                && !sockets_in(&service, &number)
        });
    }
    service.stop();
}

/// Whether a process has a socket that keeps a namespace alive: a listener of ours in it would be seen by its port.
fn sockets_in(service: &Activated, _inode: &str) -> bool {
    // what it holds now that no session is left: epoll, event, signals, journal, three listeners at most
    service.process.descriptors().values().filter(|to| to.starts_with("socket:")).count() > 12
}

#[test]
fn a_reload_adds_removes_and_changes_without_touching_the_others() {
    sandbox!();
    netns("a");
    let one = echo_inside("a", "127.0.0.1", "one");
    let two = echo_inside("a", "127.0.0.1", "two");
    let config = Path::new("/run/pfwd.toml");
    let forward = |port: u16, to: SocketAddr, more: &str| {
        format!("[[forward]]\nlisten = \"127.0.0.1:{port}\"\nnamespace = \"a\"\ntarget = \"{to}\"\n{more}\n")
    };
    let uds = |mode: &str| {
        format!("[[forward]]\nuds = \"/run/x.sock\"\nnamespace = \"a\"\ntarget = \"{one}\"\nmode = \"{mode}\"\n")
    };
    fs::write(config, forward(4001, one, "") + &forward(4002, one, "") + &uds("0600")).expect("ours");
    let service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    let mut kept = [Wire::tcp(at(4001)), Wire::tcp(at(4002)), Wire::unix(Path::new("/run/x.sock"))];
    kept.iter_mut().for_each(|wire| wire.expect(b"one"));
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata("/run/x.sock").expect("served"));

    fs::write(config, forward(4002, two, "") + &forward(4003, two, "") + &uds("0660")).expect("ours");
    let reload = |n: usize| {
        service.process.signal(Signal::SIGHUP);
        service.process.stderr.wait_for_nth("configuration read again", n);
    };
    reload(1);
    assert!(TcpStream::connect(at(4001)).is_err(), "it is gone");
    Wire::tcp(at(4002)).expect(b"two");
    Wire::tcp(at(4003)).expect(b"two");
    let now = fs::metadata("/run/x.sock").expect("served");
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&now), inode);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&now.permissions()) & 0o777, 0o660);
    kept.iter_mut().for_each(|wire| {
        send(&mut *wire, 3, 5000, Pace::BULK).expect("it lives");
        receive(&mut *wire, 3, 5000, Pace::BULK).expect("it lives");
    });

    // a bad one changes nothing
    fs::write(config, "[[forward]]\nlisten = \"127.0.0.1:1\"\ntagret = \"x\"\n").expect("ours");
    service.process.signal(Signal::SIGHUP);
    let line = service.process.stderr.wait_for("the new configuration is not used");
    assert!(line.contains("/run/pfwd.toml:3:1") && line.contains("did you mean \"target\""), "{line}");
    Wire::tcp(at(4002)).expect(b"two");

    // an address that another takes over in the same breath; and sessions of a removed one that are to end
    fs::write(config, forward(4002, two, "on_remove = \"drain\"\ndrain_timeout = 1") + &forward(4003, two, ""))
        .expect("ours");
    reload(2);
    assert!(!Path::new("/run/x.sock").exists());
    let mut ends = Wire::tcp(at(4002));
    ends.expect(b"two");
    fs::write(config, forward(4003, two, "").replace("127.0.0.1:4003", "0.0.0.0:4003")).expect("ours");
    reload(3);
    Wire::tcp(at(4003)).expect(b"two");
    ends.expect_reset();
    let [first, drained, third] = &mut kept;
    drained.expect_reset();
    [first, third].into_iter().for_each(|wire| exchange(wire, 3, 5000, Pace::BULK));
    service.stop();
}

#[test]
fn storms_of_reloads_lose_nothing() {
    sandbox!();
    let server = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let config = Path::new("/run/pfwd.toml");
    let text = |from: u16, to: u16| -> String {
        (from..to).map(|port| format!("[[forward]]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"{server}\"\n")).collect()
    };
    let write = |text: String| {
        fs::write("/run/new.toml", text).expect("ours");
        fs::rename("/run/new.toml", config).expect("ours");
    };
    write(text(4000, 4050));
    let service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    let rest = service.process.rest();
    let mut streams: Vec<Wire> = (4000..4050).map(|port| Wire::tcp(at(port))).collect();
    for round in (0..60u16).take(sample("reloads", 25, 60)) {
        write(text(4000 + round % 7, 4050 - round % 5));
        service.process.signal(Signal::SIGHUP);
        // 4020 is always there
        exchange(&mut Wire::tcp(at(4020)), u64::from(round), 100, Pace::BULK);
    }
    write(text(4000, 4050));
    service.process.signal(Signal::SIGHUP);
    eventually("all are back", || (4000..4050).all(|port| TcpStream::connect(at(port)).is_ok()));
    streams.iter_mut().for_each(|wire| exchange(wire, 1, 1000, Pace::BULK));
    drop(streams);
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_restart_with_nothing_but_a_file_loses_neither_a_session_nor_a_client() {
    sandbox!();
    netns("a");
    let there = echo_inside("a", "127.0.0.1", "");
    let udp = crate::sandbox::echo_udp_inside("a", "127.0.0.1");
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let config = format!(
        "[[forward]]\nlisten = \"127.0.0.1:4000\"\nuds = \"/run/p.sock\"\nnamespace = \"a\"\ntarget = \"{there}\"\n\
         [[forward]]\nudp_listen = \"0.0.0.0:5300\"\nnamespace = \"a\"\nudp_target = \"{udp}\"\n\
         [[forward]]\nlisten = \"127.0.0.1:80\"\nlisten_namespace = \"a\"\ntarget = \"{here}\"\n"
    );
    fs::write("/run/pfwd.toml", config).expect("ours");
    let mut service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    // sessions that carry bytes all the time, and clients that keep coming
    let stop = Arc::new(AtomicBool::new(false));
    let came = Arc::new(AtomicU64::new(0));
    let streams: Vec<_> = (0..8u64)
        .map(|seed| {
            let wire = if seed % 2 == 0 { Wire::tcp(at(4000)) } else { Wire::unix(Path::new("/run/p.sock")) };
            let back = wire.try_clone().expect("a descriptor");
            let pace = if seed < 4 { Pace::BULK } else { Pace::CRUMBS };
            let bytes = if seed < 4 { 200_000_000 } else { 600_000 };
            let sender = thread::spawn(move || {
                send(&wire, seed, bytes, pace).expect("it is taken");
                wire.half_close();
            });
            (sender, thread::spawn(move || receive(back, seed, bytes, Pace::BULK).expect("it comes back")))
        })
        .collect();
    let clients: Vec<_> = (0..3)
        .map(|kind| {
            let (stop, came) = (stop.clone(), came.clone());
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    let mut wire = if kind == 0 { Wire::unix(Path::new("/run/p.sock")) } else { Wire::tcp(at(4000)) };
                    exchange(&mut wire, kind, 100, Pace::BULK);
                    came.fetch_add(1, SeqCst);
                }
            })
        })
        .collect();
    let asker = asker("127.0.0.1");
    let ask = |text: &str| {
        asker.send_to(text.as_bytes(), at(5300)).expect("sent");
        let mut buffer = [0; 100];
        let (len, from) = asker.recv_from(&mut buffer).expect("answered");
        assert_eq!((&buffer[..len], from), (text.as_bytes(), at(5300)));
    };
    ask("first");
    let mut inner = inside("a", || Wire::tcp(at(80)));
    for round in 0..20 {
        restart(&mut service);
        ask(&format!("after restart {round}"));
        let before = came.load(SeqCst);
        eventually("clients are served", || came.load(SeqCst) > before + 3);
    }
    stop.store(true, SeqCst);
    clients.into_iter().for_each(|client| client.join().expect("no client was refused"));
    for (sender, receiver) in streams {
        sender.join().expect("no session was cut");
        receiver.join().expect("no session was cut");
    }
    exchange(&mut inner, 1, 1000, Pace::BULK);
    inside("a", || exchange(&mut Wire::tcp(at(80)), 1, 1000, Pace::BULK));
    let log = service.log();
    assert_eq!(
        log.iter().filter(|line| line.contains("udp") && line.contains("connected after")).count(),
        1,
        "one flow"
    );
    assert!(!log.iter().any(|line| line.contains("could not") || line.contains("warning")), "{log:#?}");
    assert!(service.notifications.stored().is_empty());
    service.stop();
    assert!(!Path::new("/run/p.sock").exists());
}

#[test]
fn listeners_that_a_new_configuration_does_not_want_are_not_taken_over() {
    sandbox!();
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let line = |listen: &str| format!("[[forward]]\n{listen}\ntarget = \"{here}\"\n");
    fs::write("/run/pfwd.toml", line("listen = \"127.0.0.1:4000\"") + &line("uds = \"/run/a.sock\"")).expect("ours");
    let mut service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    let mut kept = Wire::tcp(at(4000));
    send(&mut kept, 1, 100, Pace::BULK).expect("sent");
    receive(&mut kept, 1, 100, Pace::BULK).expect("came");
    fs::write("/run/pfwd.toml", line("listen = \"127.0.0.1:4001\"")).expect("ours");
    restart(&mut service);
    assert!(TcpStream::connect(at(4000)).is_err());
    assert!(!Path::new("/run/a.sock").exists());
    exchange(&mut Wire::tcp(at(4001)), 1, 100, Pace::BULK);
    exchange(&mut kept, 2, 100, Pace::BULK); // its session goes on
    service.stop();
}

#[test]
fn timing_a_thousand_forwards_start_within_a_second_and_rest() {
    sandbox!();
    netns("a");
    let there = echo_inside("a", "127.0.0.1", "");
    let text: String = (0..1000)
        .map(|n| match n % 4 {
            0 => {
                format!("[[forward]]\nlisten = \"127.0.0.1:{}\"\nnamespace = \"a\"\ntarget = \"{there}\"\n", 10_000 + n)
            }
            1 => format!("[[forward]]\nuds = \"/run/u/{n}\"\nnamespace = \"a\"\ntarget = \"{there}\"\n"),
            2 => format!("[[forward]]\nudp_listen = \"127.0.0.1:{}\"\nudp_target = \"127.0.0.1:9\"\n", 10_000 + n),
            _ => format!(
                "[[forward]]\nlisten = \"127.0.0.1:{}\"\nlisten_namespace = \"a\"\nnamespace = \"a\"\n\
                 target = \"{there}\"\n",
                10_000 + n
            ),
        })
        .collect();
    fs::write("/run/pfwd.toml", text).expect("ours");
    let began = Instant::now();
    let mut service = pfwd().args(["--config", "/run/pfwd.toml"]).nofile(65_536).start().ready();
    let took = began.elapsed();
    assert_eq!(service.notifications.status().as_deref(), Some("1000 forwards, 0 sessions"));
    let pid = service.process.pid();
    let ticks = || -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    };
    // CPU, not the clock: the machine may be busy
    let started = ticks();
    eprintln!("ready after {took:?}, {started} ticks of CPU");
    assert!(started < 100, "{started} ticks of 10 ms");
    thread::sleep(std::time::Duration::from_secs(2)); // what is measured is that nothing happens
    assert!(ticks() - started <= 1, "{} ticks while idle", ticks() - started);
    exchange(&mut Wire::tcp(at(10_000)), 1, 1000, Pace::BULK);
    exchange(&mut Wire::unix(Path::new("/run/u/997")), 1, 1000, Pace::BULK);
    inside("a", || exchange(&mut Wire::tcp(at(10_999)), 1, 1000, Pace::BULK));
    // and all of them are handed over
    let mut kept = Wire::unix(Path::new("/run/u/1"));
    restart(&mut service);
    assert_eq!(service.notifications.status().as_deref(), Some("1000 forwards, 1 session"));
    exchange(&mut kept, 2, 1000, Pace::BULK);
    exchange(&mut Wire::tcp(at(10_996)), 3, 1000, Pace::BULK);
    inside("a", || exchange(&mut Wire::tcp(at(10_003)), 1, 1000, Pace::BULK));
    service.stop();
    assert!(fs::read_dir("/run/u").expect("it stays").next().is_none());
}

#[test]
fn an_inherited_socket_and_a_file_are_served_together() {
    sandbox!();
    netns("a");
    let there = echo_inside("a", "127.0.0.1", "");
    let config = format!(
        "[[forward]]\nlabel = \"ssh\"\nnamespace = \"a\"\ntarget = \"{there}\"\n\
         [[forward]]\nlabel = \"own\"\nlisten = \"127.0.0.1:4000\"\nnamespace = \"a\"\ntarget = \"{there}\"\n"
    );
    fs::write("/run/pfwd.toml", config).expect("ours");
    let mut service: Activated = Activation::of(env!("CARGO_BIN_EXE_pfwd"))
        .args(["--config", "/run/pfwd.toml"])
        .tcp("ssh")
        .unix("pfwd-own.socket")
        .udp("target=127.0.0.1+9")
        .start()
        .ready();
    // the label `own` belongs to the socket unit of that name now, so its own port is not opened beside it
    for _ in 0..3 {
        exchange(&mut service.connect(0), 1, 1000, Pace::BULK);
        restart(&mut service);
    }
    service.stop();
}

#[test]
fn what_could_not_be_opened_is_opened_as_soon_as_it_can_be() {
    sandbox!();
    netns("a");
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "hello");
    let udp = echo_udp(std::net::UdpSocket::bind("127.0.0.1:0").expect("free"));
    // others have all the places, each for another reason than its namespace
    let tcp = TcpListener::bind(at(4000)).expect("free");
    let inner = inside("a", || TcpListener::bind(at(80)).expect("free"));
    let datagrams = std::net::UdpSocket::bind(at(5300)).expect("free");
    fs::write("/run/file", "").expect("ours");
    let forwards = [
        format!("label=web,listen=127.0.0.1+4000,target={here}"),
        format!("listen=127.0.0.1+80,listen_namespace=a,target={here}"),
        format!("udp_listen=127.0.0.1+5300,udp_target={udp}"),
        format!("uds=/run/file/a.sock,target={here}"), // not a directory
        format!("listen=127.0.0.1+4001,target={here}"),
    ];
    let forwards: Vec<&str> = forwards.iter().map(String::as_str).collect();
    let service = forwarding(&forwards);
    let status = |text: &str| service.notifications.wait_for("STATUS", |status| status.starts_with(text));
    status("1 of 5 forwards");
    Wire::tcp(at(4001)).expect(b"hello");
    let line = service.process.stderr.wait_for("web: tcp 127.0.0.1:4000 is not served");
    assert!(line.contains("Address already in use") && line.ends_with("next try in 1 s"), "{line}");

    drop(tcp);
    let line = service.process.stderr.wait_for("web: 127.0.0.1:4000 leads to");
    assert!(line.contains("before, it was not served: cannot listen on 127.0.0.1:4000"), "{line}");
    status("2 of 5 forwards");
    Wire::tcp(at(4000)).expect(b"hello");
    drop((inner, datagrams));
    fs::remove_file("/run/file").expect("ours");
    status("5 forwards");
    inside("a", || Wire::tcp(at(80)).expect(b"hello"));
    Wire::unix(Path::new("/run/file/a.sock")).expect(b"hello");
    let asker = asker("127.0.0.1");
    asker.send_to(b"x", at(5300)).expect("sent");
    assert_eq!(asker.recv(&mut [0; 9]).expect("answered"), 1);
    // each was told once, however often it was tried
    assert_eq!(service.process.stderr.count("is not served"), 4);
    service.stop();

    // --strict does not wait
    let _taken = TcpListener::bind(at(4001)).expect("free again");
    let uds = format!("uds=/run/strict/a.sock,target={here}");
    let mut strict = pfwd().arg("--strict").args(["--forward", &uds, "--forward", forwards[4]]).start();
    assert_eq!(strict.process.wait().code(), Some(1));
    assert!(fs::read_dir("/run/strict").expect("it was made").next().is_none(), "nothing is left in there");
}

#[test]
fn a_pipelines_front_half_is_let_in_across_restarts_where_others_are_not() {
    sandbox!();
    netns("a");
    let there = echo_inside("a", "127.0.0.1", "hello");
    // one session for each half: the second to come waits in the backlog of the UNIX socket
    let forward = format!(
        "listen=127.0.0.1+4000,uds=/run/pipe,namespace=a,target={there},allow_uid=65534,mode=0666,max_connections=1"
    );
    let mut service = forwarding(&[&forward]);
    let mut command = std::process::Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.args(["socat", "-u", "UNIX-CONNECT:/run/pipe", "STDOUT"]).stdin(std::process::Stdio::null());
    let first = support::Process::start(command);
    service.process.stderr.wait_for("from uid 65534");
    let mut second = Wire::tcp(at(4000));
    service.process.stderr.wait_for("to unix /run/pipe: connected after");
    // what was dialled by a process that is gone waits through several
    for _ in 0..3 {
        restart(&mut service);
    }
    drop(first);
    second.expect(b"hello");
    exchange(&mut second, 1, 1000, Pace::BULK);
    // it is the process that counts: root is not on the list
    Wire::unix(Path::new("/run/pipe")).expect_end();
    service.process.stderr.wait_for("not in allow_uid");
    service.stop();
}

#[test]
fn a_configuration_that_is_broken_at_a_restart_costs_no_session_and_no_waiting_client() {
    sandbox!();
    netns("a");
    let there = echo_inside("a", "127.0.0.1", "");
    let good = format!(
        "[[forward]]\nlisten = \"127.0.0.1:4000\"\nnamespace = \"a\"\ntarget = \"{there}\"\n\
         [[forward]]\nuds = \"/run/a.sock\"\nnamespace = \"a\"\ntarget = \"{there}\"\n"
    );
    let config = Path::new("/run/pfwd.toml");
    fs::write(config, &good).expect("ours");
    let mut service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata("/run/a.sock").expect("served"));
    let mut old = [Wire::tcp(at(4000)), Wire::unix(Path::new("/run/a.sock"))];
    old.iter_mut().for_each(|wire| {
        send(&mut *wire, 1, 100, Pace::BULK).expect("it is taken");
        receive(&mut *wire, 1, 100, Pace::BULK).expect("it comes back");
    });
    fs::write(config, "[[forward]]\nlisten = 1\n").expect("ours");
    let mut waiting = Vec::new();
    for round in 1..=2 {
        restart(&mut service);
        service.process.stderr.wait_for("the configuration is not used, and no listener is served");
        // who comes now waits
        waiting.extend([Wire::tcp(at(4000)), Wire::unix(Path::new("/run/a.sock"))]);
        old.iter_mut().for_each(|wire| {
            send(&mut *wire, round, 100, Pace::BULK).expect("it is taken");
            receive(&mut *wire, round, 100, Pace::BULK).expect("it comes back");
        });
        assert_eq!(service.process.stderr.count("connected after"), 0);
    }
    // mended, it is in force at the next reload, or the next start
    fs::write(config, &good).expect("ours");
    service.process.signal(Signal::SIGHUP);
    waiting.iter_mut().for_each(|wire| exchange(wire, 3, 1000, Pace::BULK));
    waiting.clear();
    fs::write(config, "[[forward]]\nlisten = 1\n").expect("ours");
    restart(&mut service);
    let mut late = Wire::tcp(at(4000));
    fs::write(config, &good).expect("ours");
    restart(&mut service);
    exchange(&mut late, 4, 1000, Pace::BULK);
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata("/run/a.sock").expect("served")), inode);
    let [tcp, unix] = &mut old;
    exchange(tcp, 5, 1000, Pace::BULK);
    exchange(unix, 6, 1000, Pace::BULK);
    service.stop();
    assert!(!Path::new("/run/a.sock").exists());
}

#[test]
fn a_session_says_which_namespace_it_entered() {
    sandbox!();
    netns("a");
    let there = echo_inside("a", "127.0.0.1", "");
    let udp = crate::sandbox::echo_udp_inside("a", "127.0.0.1");
    let service = forwarding(&[
        &format!("listen=127.0.0.1+4000,namespace=a,target={there}"),
        &format!("listen=127.0.0.1+4001,setns_path=/run/netns/a,target={there}"),
        &format!("udp_listen=127.0.0.1+5300,namespace=a,udp_target={udp}"),
        "listen=127.0.0.1+4003,target=127.0.0.1+4000",
    ]);
    exchange(&mut Wire::tcp(at(4000)), 1, 100, Pace::BULK);
    exchange(&mut Wire::tcp(at(4001)), 1, 100, Pace::BULK);
    asker("127.0.0.1").send_to(b"x", at(5300)).expect("sent");
    exchange(&mut Wire::tcp(at(4003)), 1, 100, Pace::BULK);
    let inode = crate::sandbox::inode_of("a");
    service.process.stderr.wait_for_nth("connected after", 5);
    for line in service.process.stderr.so_far().iter().filter(|line| line.contains("connected after")) {
        let said = line.ends_with(&format!("(/run/netns/a, {inode})"));
        assert_eq!(said, !line.contains(" on 127.0.0.1:4003 "), "{line}");
    }
    service.stop();
}

#[test]
fn a_test_that_is_killed_leaves_nobody_behind() {
    /// Set in the test process that is to be killed.
    const VICTIM: &str = "FORWARDER_TEST_VICTIM";
    sandbox!();
    if std::env::var_os(VICTIM).is_some() {
        let service = forwarding(&["listen=127.0.0.1+0,target=127.0.0.1+9"]);
        println!("\nstarted {}", service.process.pid());
        loop {
            thread::park();
        }
    }
    let mut command = std::process::Command::new(std::env::current_exe().expect("it has a path"));
    let name = "life::a_test_that_is_killed_leaves_nobody_behind";
    command.args(["--exact", name, "--nocapture"]).env(VICTIM, "1").stdin(std::process::Stdio::null());
    let victim = support::Process::start(command);
    let line = victim.stdout.wait_for("started ");
    let pid = line.rsplit(' ').next().expect("a number").to_owned();
    let lives = || fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "pfwd\n");
    assert!(lives());
    victim.signal(Signal::SIGKILL);
    eventually("its pfwd is gone", || !lives());
}

#[test]
fn a_killed_process_is_followed_by_one_that_serves_the_same_at_once() {
    sandbox!();
    netns("a");
    let there = echo_inside("a", "127.0.0.1", "hello");
    let udp = crate::sandbox::echo_udp_inside("a", "127.0.0.1");
    let forwards = [
        format!("listen=127.0.0.1+4000,uds=/run/k.sock,namespace=a,target={there}"),
        format!("listen=[::1]+4001,namespace=a,target={there}"),
        format!("listen=127.0.0.1+80,listen_namespace=a,namespace=a,target={there}"),
        format!("udp_listen=127.0.0.1+5300,namespace=a,udp_target={udp}"),
    ];
    let forwards: Vec<&str> = forwards.iter().map(String::as_str).collect();
    for _ in 0..3 {
        let mut service = forwarding(&forwards);
        assert_eq!(service.notifications.status().as_deref(), Some("4 forwards, 0 sessions"));
        // connections that stand, so that their addresses linger
        let mut wires = [
            Wire::tcp(at(4000)),
            Wire::tcp("[::1]:4001".parse().expect("one")),
            Wire::unix(Path::new("/run/k.sock")),
            inside("a", || Wire::tcp(at(80))),
        ];
        wires.iter_mut().for_each(|wire| wire.expect(b"hello"));
        let asker = asker("127.0.0.1");
        asker.send_to(b"x", at(5300)).expect("sent");
        assert_eq!(asker.recv(&mut [0; 9]).expect("answered"), 1);
        service.process.signal(Signal::SIGKILL);
        service.process.wait();
    }
}

#[test]
fn a_deleted_namespace_is_kept_by_live_sessions_only_and_busy_flows_move_to_its_successor() {
    sandbox!();
    let make = || crate::sandbox::netns_with_link("a", "10.4.0.1/24", "10.4.0.2/24");
    // when the kernel lets go of a namespace, its end of a link goes, and the other end with it
    let links = || {
        let output = std::process::Command::new("ip").args(["-o", "link", "show", "type", "veth"]).output();
        String::from_utf8(output.expect("iproute2").stdout).expect("text").lines().count()
    };
    make();
    let service = forwarding(&[
        "listen=127.0.0.1+4000,namespace=a,target=10.4.0.2+7000",
        "listen=127.0.0.1+80,listen_namespace=a,target=127.0.0.1+4000",
        "udp_listen=127.0.0.1+5300,namespace=a,udp_target=10.4.0.2+7001,udp_idle_timeout=2",
        "udp_listen=127.0.0.1+5301,namespace=a,udp_target=10.4.0.3+7001",
    ]);
    for _ in 0..3 {
        Wire::tcp(at(4000)).expect_reset(); // nobody listens there
    }
    asker("127.0.0.1").send_to(b"x", at(5300)).expect("sent");
    service.process.stderr.wait_for("udp 10.4.0.2:7001 in a: connected after");
    run("ip netns del a");
    service.process.stderr.wait_for("127.0.0.1:80 in a is closed: its namespace is gone");
    assert_eq!(links(), 1, "a flow lives in it");
    service.process.stderr.wait_for("udp 10.4.0.2:7001 in a: idle after");
    eventually("the namespace is gone for good", || links() == 0);

    // a peer that never pauses: its flow would never be idle
    make();
    let busy = asker("127.0.0.1");
    busy.set_read_timeout(Some(std::time::Duration::from_millis(20))).expect("not zero");
    let answered = || {
        busy.send_to(b"x", at(5301)).expect("sent");
        busy.recv(&mut [0; 9]).is_ok()
    };
    assert!(!answered());
    run("ip -n a link del inside");
    eventually("its flow ends", || {
        assert!(!answered());
        service.process.stderr.count("its namespace has no way there any more") > 0
    });
    run("ip netns del a");
    make();
    run("ip -n a addr add 10.4.0.3/32 dev lo");
    echo_udp(inside("a", || std::net::UdpSocket::bind("10.4.0.3:7001").expect("free")));
    eventually("the successor answers", answered);
    service.stop();
}
