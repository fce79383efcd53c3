//! Processes that follow one another, on the same listeners and sessions.

use std::{
    fs,
    net::TcpListener,
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
    life::at,
    sandbox::{asker, echo_inside, echo_tcp, forwarding, inside, netns, pfwd},
    support::{Activated, Activation, Pace, Wire, eventually, exchange, receive, send},
};

/// A restart as `systemctl restart` makes it.
pub(crate) fn restart(service: &mut Activated) {
    let status = service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    assert!(status.success(), "{status}");
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
    let current = thread::current();
    command
        .args(["--exact", current.name().expect("libtest names it after the test"), "--nocapture"])
        .env(VICTIM, "1")
        .stdin(std::process::Stdio::null());
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
