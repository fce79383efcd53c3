//! A restart keeps every session: its bytes, its half-closes, its counts and its one end in the log.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::support::{
    Activated, Activation, Ended, FakeQrexec, Pace, Process, Server, Wire, ends, eventually, exchange, starts,
};

/// A restart as the manager does it: one that was announced, and one for which the manager has a job.
#[track_caller]
pub(crate) fn restart(service: &mut Activated) {
    let status = service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    assert!(status.success(), "a handover: {status}");
}

/// Holds the log of all processes against each other: one end for each session, one start for each that was connected.
#[track_caller]
pub(crate) fn one_story_each(service: &Activated, sessions: usize) -> Vec<Ended> {
    eventually("each session has its end", || ends(&service.log()).len() >= sessions);
    let lines = service.log();
    let mut told: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    starts(&lines).into_iter().for_each(|id| told.entry(id).or_default().0 += 1);
    let ends = ends(&lines);
    ends.iter().for_each(|e| told.entry(e.id.clone()).or_default().1 += 1);
    assert!(told.values().all(|told| *told == (1, 1)), "(starts, ends): {told:#?}\n{lines:#?}");
    assert_eq!(told.len(), sessions);
    ends
}

#[test]
fn two_thousand_sessions_fit_through_a_socket_of_default_size() {
    let server = Server::tcp();
    let mut service =
        Activation::qrexec_connect().tcp(&format!("{},max_connections=3000", server.name())).start().ready();
    let rest = service.process.rest();
    let mut pairs: Vec<(Wire, Wire)> = (0..2000).map(|_| (service.connect(0), server.accept())).collect();
    service.wait_for_starts(2000);
    for round in 0..3u8 {
        restart(&mut service);
        service.process.stderr.wait_for("2000 sessions");
        for (peer, far) in &mut pairs {
            peer.write_all(&[round]).expect("it goes on");
            far.write_all(&[!round]).expect("it goes on");
        }
        for (peer, far) in &mut pairs {
            far.expect(&[round]);
            peer.expect(&[!round]);
        }
    }
    drop(pairs);
    let ends = one_story_each(&service, 2000);
    assert!(ends.iter().all(|e| (e.up, e.down) == (3, 3)));
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_service_at_its_limit_of_descriptors_hands_over_all_the_same() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&server.name()).nofile(64).start().ready();
    let mut peers: Vec<Wire> = Vec::new();
    while service.process.stderr.count("cannot accept on ") == 0 {
        peers.push(service.connect(0));
        let so_far = peers.len();
        eventually("it is accepted, or cannot be", || {
            let lines = service.process.stderr.so_far();
            starts(&lines).len() + ends(&lines).len() >= so_far || lines.iter().any(|l| l.contains("cannot accept on "))
        });
    }
    let live = starts(&service.process.stderr.so_far()).len();
    assert!(live >= 10, "{live}");
    let mut fars: Vec<Wire> = (0..live).map(|_| server.accept()).collect();
    restart(&mut service);
    let line = service.process.stderr.wait_for("taken up from the previous process");
    assert!(line.contains(&format!("{live} sessions")), "{line}");
    for far in &mut fars {
        far.write_all(b"z").expect("it goes on");
    }
    let mut alive = 0;
    for peer in &mut peers {
        peer.half_close_if_there();
        let mut byte = [0];
        if alive < live && peer.read(&mut byte).is_ok_and(|n| n == 1) {
            alive += 1;
        }
    }
    assert_eq!(alive, live);
    drop((peers, fars));
    service.stop();
}

#[test]
fn a_next_process_with_fewer_descriptors_takes_up_what_it_can() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&server.name()).start().ready();
    let mut pairs: Vec<(Wire, Wire)> = (0..100).map(|_| (service.connect(0), server.accept())).collect();
    service.wait_for_starts(100);
    service.set_nofile(80);
    restart(&mut service);
    let line = service.process.stderr.wait_for("taken up from the previous process");
    let taken: usize = line.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!((20..40).contains(&taken), "{line}");
    let mut alive = 0;
    for (peer, far) in &mut pairs {
        let _ = far.write_all(b"z");
        let mut byte = [0];
        match peer.read(&mut byte) {
            Ok(1) => alive += 1,
            Ok(_) => {} // cut by the kernel, which closes what a full process cannot take
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
        }
    }
    assert_eq!(alive, taken);
    drop(pairs);
    service.stop();
}

#[test]
fn a_restart_that_the_manager_runs_needs_no_announcement() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&server.name()).start().ready();
    let (mut peer, mut far) = (service.connect(0), server.accept());
    service.manager_says("restart");
    let status = service.restart(|process| process.signal(Signal::SIGTERM));
    assert!(status.success(), "{status}");
    far.write_all(b"still here").expect("it goes on");
    peer.expect(b"still here");
    drop((peer, far));
    assert_eq!(one_story_each(&service, 1)[0].brief(), "eof up 0 down 10");
}

#[test]
fn a_refusal_that_comes_across_a_restart_ends_the_session() {
    let fake = FakeQrexec::new();
    let mut service = Activation::calling(&fake).tcp("work test.Refuse+1500").start().ready();
    let mut peer = service.connect(0);
    fake.wait_for_started(1);
    restart(&mut service);
    peer.expect_reset();
    let end = service.end();
    assert_eq!(end.end, "refused");
    assert_eq!(fake.started(), 1, "it is not asked again");
    service.stop();
}

#[test]
fn timing_the_time_for_a_connection_goes_on_over_a_restart() {
    let fake = FakeQrexec::new();
    let dir = tempfile::tempdir().expect("a directory");
    let mut service = Activation::calling(&fake)
        .tcp(&format!("uds={},connect_timeout=2", dir.path().join("never.sock").display()))
        .tcp("work test.Never setup_timeout=2")
        .start()
        .ready();
    let began = std::time::Instant::now();
    let mut peers = [service.connect(0), service.connect(1)];
    fake.wait_for_started(1);
    service.process.stderr.wait_for("does not exist yet");
    let mut done = 0;
    while done < 2 {
        // more often than the time allowed: if each process began again, it would never be over
        let since = std::time::Instant::now();
        eventually("half a second", || since.elapsed() > Duration::from_millis(500));
        restart(&mut service);
        done = ends(&service.log()).len();
        assert!(began.elapsed() < Duration::from_secs(12), "{:#?}", service.log());
    }
    peers.iter_mut().for_each(Wire::expect_reset);
    one_end_each(&service, 2);
    fake.wait_for_ended(1);
    service.stop();
}

/// For sessions that never were connected: one end each.
#[track_caller]
fn one_end_each(service: &Activated, sessions: usize) {
    let mut ids: Vec<String> = ends(&service.log()).into_iter().map(|e| e.id).collect();
    assert_eq!(ids.len(), sessions);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), sessions);
}

#[test]
fn a_session_whose_socket_is_gone_goes_on() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&server.name()).tcp(&server.name()).start().ready();
    let (mut peer, mut far) = (service.connect(0), server.accept());
    service.park();
    service.forget(0);
    service.start_again();
    service.process.stderr.wait_for("1 session goes on after their socket was stopped");
    far.write_all(b"still here").expect("it goes on");
    peer.expect(b"still here");
    drop((peer, far));
    assert_eq!(one_story_each(&service, 1)[0].brief(), "eof up 0 down 10");
}

#[test]
fn without_any_socket_the_service_carries_its_sessions_and_then_ends() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&server.name()).start().ready();
    let (mut peer, mut far) = (service.connect(0), server.accept());
    service.park();
    service.forget(0);
    service.start_again();
    far.write_all(b"still here").expect("it goes on");
    peer.expect(b"still here");
    assert!(service.process.running());
    drop((peer, far));
    assert!(service.process.wait().success());
    assert_eq!(one_story_each(&service, 1)[0].brief(), "eof up 0 down 10");
}

#[test]
fn without_a_manager_a_restart_drains() {
    let server = Server::tcp();
    let name = format!("{},drain_timeout=1", server.name());
    let mut service = Activation::qrexec_connect().tcp(&name).without_notify().start();
    let mut pairs = [0, 0].map(|i| (service.connect(i), server.accept()));
    service.wait_for_starts(2);
    service.process.signal(Signal::SIGUSR1);
    service.process.signal(Signal::SIGTERM);
    service.process.stderr.wait_for("stopping: up to 1 s for 2 sessions to end");
    let (peer, far) = &mut pairs[0];
    far.write_all(b"still here").expect("it goes on");
    peer.expect(b"still here");
    pairs.iter_mut().for_each(|(peer, _)| peer.expect_reset());
    assert!(service.process.wait().success());
    assert!(service.ends(2).iter().all(|e| e.end == "drained"));
}

#[test]
fn a_reset_that_came_while_nobody_ran_is_noticed() {
    let fake = FakeQrexec::new();
    let server = Server::tcp();
    let mut service = Activation::calling(&fake).tcp(&server.name()).tcp("work test.Echo").start().ready();
    let (peer, mut far) = (service.connect(0), server.accept());
    let mut caller = service.connect(1);
    caller.write_all(b"x").expect("connected");
    caller.expect(b"x");
    service.park();
    peer.reset();
    caller.reset();
    service.start_again();
    far.expect_reset();
    fake.wait_for_ended(1);
    assert!(one_story_each(&service, 2).iter().all(|e| e.end == "reset"));
    service.stop();
}

#[test]
fn an_idle_timeout_goes_on_over_a_restart() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&format!("{},idle_timeout=1", server.name())).start().ready();
    let (mut peer, mut far) = (service.connect(0), server.accept());
    restart(&mut service);
    peer.expect_reset();
    far.expect_reset();
    assert_eq!(one_story_each(&service, 1)[0].brief(), "idle up 0 down 0");
    service.stop();
}

#[test]
fn connecting_clients_see_no_refusal_while_the_service_restarts() {
    let name = Server::tcp().echo();
    let mut service = Activation::qrexec_connect().tcp(&name).unix(&name).start().ready();
    let done = Arc::new(AtomicBool::new(false));
    let addresses: Vec<_> = (0..2).map(|i| service.address(i).clone()).collect();
    let clients: Vec<_> = addresses
        .into_iter()
        .map(|address| {
            let done = done.clone();
            thread::spawn(move || {
                let mut n = 0;
                while !done.load(Ordering::Relaxed) {
                    let mut wire = match &address {
                        support::Address::Tcp(address) => Wire::tcp(*address),
                        support::Address::Unix(path) => Wire::unix(path),
                        other => panic!("{other:?}"),
                    };
                    exchange(&mut wire, n, 3_000, Pace::BULK);
                    n += 1;
                }
                n
            })
        })
        .collect();
    for _ in 0..10 {
        restart(&mut service);
    }
    done.store(true, Ordering::Relaxed);
    let sessions: u64 = clients.into_iter().map(|c| c.join().expect("no refusal")).sum();
    let ends = one_story_each(&service, sessions as usize);
    assert!(ends.iter().all(|e| e.brief() == "eof up 3000 down 3000"));
    service.stop();
}

#[test]
fn a_restart_may_come_at_any_moment_of_a_start() {
    let fake = FakeQrexec::new();
    let server = Server::tcp();
    let mut service = Activation::calling(&fake).tcp(&server.name()).tcp("work test.Echo").start().ready();
    let (mut peer, mut far) = (service.connect(0), server.accept());
    let mut call = service.connect(1);
    exchange_some(&mut call);
    service.manager_says("restart");
    service.process.signal(Signal::SIGTERM);
    service.process.wait();
    for moment in 0..25 {
        service.start_again();
        thread::sleep(Duration::from_micros(400 * moment)); // some moment, not a wait for anything
        service.process.signal(Signal::SIGTERM);
        service.process.wait();
    }
    service.start_again();
    far.write_all(b"still here").expect("it goes on");
    peer.expect(b"still here");
    exchange_some(&mut call);
    drop((peer, far, call));
    let ends = one_story_each(&service, 2);
    assert!(ends.iter().all(|e| e.end == "eof"), "{ends:#?}");
}

fn exchange_some(wire: &mut Wire) {
    wire.write_all(b"some bytes").expect("connected");
    wire.expect(b"some bytes");
}

#[test]
fn sessions_keep_their_places_over_a_restart() {
    let fake = FakeQrexec::new();
    let server = Server::tcp();
    let mut service = Activation::calling(&fake)
        .args(["--calls-per-qube", "2"])
        .tcp(&format!("{},max_connections=2", server.name()))
        .tcp("work test.SpeaksFirst")
        .start()
        .ready();
    let mut pairs: Vec<(Wire, Wire)> = (0..2).map(|_| (service.connect(0), server.accept())).collect();
    let mut calls: Vec<Wire> = (0..2).map(|_| service.connect(1)).collect();
    calls.iter_mut().for_each(|call| call.expect(b"ready\n"));
    service.wait_for_starts(4);
    restart(&mut service);
    let (_late, mut late_call) = (service.connect(0), service.connect(1));
    service.process.stderr.wait_for("max_connections=2 is reached");
    service.process.stderr.wait_for("the limit of calls into work (max_calls=");
    assert!(server.try_accept().is_none());
    assert_eq!(fake.started(), 2);
    drop((pairs.pop(), calls.pop()));
    server.accept();
    late_call.expect(b"ready\n");
    service.stop();
}

#[test]
fn sessions_of_a_socket_that_is_gone_end_where_that_is_wished() {
    let server = Server::tcp();
    let name = format!("{},on_remove=drain,drain_timeout=1", server.name());
    let mut service = Activation::qrexec_connect().tcp(&name).tcp(&server.name()).start().ready();
    let mut gone = (service.connect(0), server.accept());
    let mut kept = (service.connect(1), server.accept());
    service.wait_for_starts(2);
    service.park();
    service.forget(0);
    service.start_again();
    gone.1.write_all(b"for now").expect("it goes on");
    gone.0.expect(b"for now");
    gone.0.expect_reset();
    kept.1.write_all(b"for good").expect("it goes on");
    kept.0.expect(b"for good");
    assert_eq!(service.end().brief(), "drained up 0 down 7");
    drop(kept);
    one_story_each(&service, 2);
    service.stop();
}

#[test]
fn what_a_call_says_on_stderr_is_heard_over_a_restart() {
    let fake = FakeQrexec::new();
    let mut service = Activation::calling(&fake).tcp("work test.StderrEscapes").start().ready();
    let mut peer = service.connect(0);
    exchange_some(&mut peer);
    service.process.stderr.wait_for("red");
    restart(&mut service);
    exchange_some(&mut peer);
    drop(peer);
    one_story_each(&service, 1);
    assert_eq!(service.log().iter().filter(|l| l.contains("red")).count(), 1);
    service.stop();
}

#[test]
fn a_configuration_that_broke_meanwhile_costs_no_session() {
    // Nothing is served by a configuration that nobody can read, but what is under way needs none.
    let server = Server::tcp();
    let activation = Activation::qrexec_connect().tcp("it");
    let file = activation.dir().join("it.toml");
    let toml = format!("[[forward]]\nlabel = \"it\"\ntarget = \"127.0.0.1:{}\"\n", server.port());
    std::fs::write(&file, &toml).expect("writable");
    let mut service = activation.arg("--config").arg(&file).start().ready();
    let (mut peer, mut far) = (service.connect(0), server.accept());
    service.wait_for_starts(1);
    service.park();
    std::fs::write(&file, "[[forward]\n").expect("writable");
    service.start_again();
    far.write_all(b"still here").expect("it goes on");
    peer.expect(b"still here");
    service.process.stderr.wait_for("the configuration has errors: ");
    service
        .notifications
        .wait_for("STATUS", |status| status.starts_with("CONFIG ERROR: ") && status.contains("0 of 1 listener"));
    std::fs::write(&file, &toml).expect("writable");
    restart(&mut service);
    far.write_all(b"and now").expect("it goes on");
    peer.expect(b"and now");
    let (mut another, mut far) = (service.connect(0), server.accept());
    far.write_all(b"served again").expect("connected");
    another.expect(b"served again");
    service.stop();
}

#[test]
fn what_no_next_process_takes_up_is_ended_by_the_keeper_and_told_once() {
    let fake = FakeQrexec::new();
    let server = Server::tcp();
    let service = Activation::calling(&fake).tcp(&server.name()).tcp("work test.Echo");
    let [directory, calls] = ["run/service", "run/service-calls"].map(|name| service.dir().join(name));
    std::fs::create_dir_all(&calls).expect("the test's directory is writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_qrexec-connect"));
    command.arg("keep").env("RUNTIME_DIRECTORY", &calls);
    let mut keeper = Process::start(command);
    eventually("the keeper listens", || calls.join("kept").exists());
    let mut service = service.env("RUNTIME_DIRECTORY", &directory).start().ready();
    let (mut peer, mut far) = (service.connect(0), server.accept());
    let mut call = service.connect(1);
    exchange_some(&mut call);
    service.wait_for_starts(2);
    for _ in 0..3 {
        restart(&mut service); // what was taken up is the next process's
        far.write_all(b"still here").expect("it goes on");
        peer.expect(b"still here");
        exchange_some(&mut call);
    }
    service.park();
    keeper.signal(Signal::SIGTERM);
    assert!(keeper.wait().success());
    peer.expect_reset();
    call.expect_reset();
    far.expect_reset();
    let mut told: Vec<_> = ends(&keeper.stderr.to_the_end()).iter().map(Ended::brief).collect();
    told.sort_unstable();
    assert_eq!(told, ["drained up 0 down 30", "drained up 40 down 40"]);
    assert_eq!(ends(&service.log()).len(), 0, "nobody else tells of them");
    let program = format!("/proc/{}/exe", fake.events()[0].pid); // killed, it may not get to say so in its journal
    eventually("the call is ended", || std::fs::read_link(&program).is_err());
}
