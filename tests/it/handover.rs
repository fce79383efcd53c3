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
    Activated, Activation, Ended, FakeQrexec, Handed, Pace, Pattern, Process, SERVICE_SEED, Server, Sum, Wire, ends,
    eventually, exchange, fake_qrexec::What, receive, sample, send, starts,
};

/// A restart as the manager does it: one that was announced, and one for which the manager has a job.
#[track_caller]
fn restart(service: &mut Activated) {
    let status = service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    assert!(status.success(), "a handover: {status}");
}

/// Sends the pattern of `seed` until `done`, while it verifies that the same comes back; then half-closes and expects
/// the end. How much there was.
fn stream(wire: Wire, seed: u64, done: &AtomicBool) -> u64 {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (mut pattern, mut buffer) = (Pattern::new(seed), vec![0; 30_000]);
            let mut size = 1;
            while !done.load(Ordering::Relaxed) {
                size = size * 7 % 29_989;
                pattern.fill(&mut buffer[..size]);
                (&wire).write_all(&buffer[..size]).unwrap_or_else(|e| panic!("sending at {}: {e}", pattern.at()));
                thread::sleep(Duration::from_micros(300)); // a pace, so that buffers are full at times and empty at others
            }
            wire.half_close();
            pattern.at()
        });
        let (mut pattern, mut buffer) = (Pattern::new(seed), vec![0; 65536]);
        loop {
            match (&wire).read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => pattern.check(&buffer[..n]).unwrap_or_else(|e| panic!("{e}")),
                Err(e) => panic!("reading at {}: {e}", pattern.at()),
            }
        }
        let sent = sender.join().expect("no panic");
        assert_eq!(pattern.at(), sent, "all of it came back");
        sent
    })
}

/// Holds the log of all processes against each other: one end for each session, one start for each that was connected.
#[track_caller]
fn one_story_each(service: &Activated, sessions: usize) -> Vec<Ended> {
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
fn sessions_in_every_stage_survive_restart_after_restart() {
    let fake = FakeQrexec::new();
    let dir = tempfile::tempdir().expect("a directory");
    let later = dir.path().join("later.sock");
    let tcp = Server::tcp().echo();
    let unix = Server::unix(&dir.path().join("server.sock")).echo();
    let ours = Server::tcp();
    let mut service = Activation::calling(&fake)
        .tcp(&unix)
        .unix(&tcp)
        .tcp("work test.Echo")
        .unix("work test.Echo")
        .tcp(&ours.name())
        .tcp("work test.HalfCloseDown")
        .unix("work test.Source+3000000")
        .tcp("ask test.Gate+open")
        .tcp(&format!("uds={},connect_timeout=300", later.display()))
        .start()
        .ready();

    // streaming, over every pair of ends
    let done = Arc::new(AtomicBool::new(false));
    let streams: Vec<_> = (0..12u64)
        .map(|i| {
            let (wire, done) = (service.connect((i % 4) as usize), done.clone());
            thread::spawn(move || stream(wire, i, &done))
        })
        .collect();
    // stalled: an echo that nobody reads, so bytes are held on every way, by us too
    let stalled: Vec<_> = (0..4)
        .map(|i| {
            let wire = service.connect(i);
            let sender = wire.try_clone().expect("a descriptor");
            (wire, thread::spawn(move || send(&sender, 77, 12_000_000, Pace::BULK).map(|()| sender.half_close())))
        })
        .collect();
    // half-closed, either way
    let mut half_up = (service.connect(4), ours.accept());
    half_up.0.write_all(b"the question").expect("connected");
    half_up.0.half_close();
    half_up.1.expect(b"the question");
    half_up.1.expect_end();
    let mut half_down = (service.connect(4), ours.accept());
    half_down.1.write_all(b"the answer").expect("connected");
    half_down.1.half_close();
    half_down.0.expect(b"the answer");
    half_down.0.expect_end();
    let mut call_half_down = service.connect(5);
    call_half_down.expect_end();
    let mut call_half_up = service.connect(6);
    call_half_up.half_close();
    // idle
    let mut idle = service.connect(2);
    // in set-up, and queued behind those: four may ask at once, and a fifth when they are undecided
    let asking: Vec<Wire> = (0..7).map(|_| service.connect(7)).collect();
    // an upstream that is not there yet
    let mut early = service.connect(8);
    early.write_all(b"early bird").expect("connected");
    service.process.stderr.wait_for("does not exist yet");
    eventually("four ask", || fake.count(|w| matches!(w, What::Start { target, .. } if target == "ask")) >= 4);

    for _ in 0..sample("restarts", 8, 20) {
        restart(&mut service);
    }

    done.store(true, Ordering::Relaxed);
    let mut expected: Vec<String> = Vec::new();
    for stream in streams {
        let n = stream.join().expect("it went well");
        assert!(n > 100_000, "{n} bytes");
        expected.push(format!("eof up {n} down {n}"));
    }
    for (mut wire, sender) in stalled {
        receive(&mut wire, 77, 12_000_000, Pace::BULK).expect("all of it");
        wire.expect_end();
        sender.join().expect("no panic").expect("it was read in the end");
        expected.push("eof up 12000000 down 12000000".into());
    }
    half_up.1.write_all(b"the answer").expect("it goes on");
    drop(half_up.1);
    half_up.0.expect(b"the answer");
    half_up.0.expect_end();
    expected.push("eof up 12 down 10".into());
    let rest = thread::spawn(move || {
        receive(&mut half_down.1, 5, 500_000, Pace::BULK).expect("the rest");
        half_down.1.expect_end();
    });
    send(&half_down.0, 5, 500_000, Pace::BULK).expect("it is read");
    half_down.0.half_close();
    rest.join().expect("no panic");
    expected.push("eof up 500000 down 10".into());
    send(&call_half_down, 6, 400_000, Pace::BULK).expect("it is read");
    drop(call_half_down);
    assert_eq!(Sum::of(&fake.received()), Sum::of_pattern(6, 400_000));
    expected.push("eof up 400000 down 0".into());
    receive(&mut call_half_up, SERVICE_SEED, 3_000_000, Pace::BULK).expect("all of it");
    call_half_up.expect_end();
    expected.push("eof up 0 down 3000000".into());
    exchange(&mut idle, 8, 1000, Pace::CRUMBS);
    expected.push("eof up 1000 down 1000".into());
    fake.open("open");
    for mut peer in asking {
        exchange(&mut peer, 9, 2_000, Pace::CRUMBS);
        expected.push("eof up 2000 down 2000".into());
    }
    let server = Server::unix(&later);
    let mut far = server.accept();
    far.expect(b"early bird");
    drop(far);
    early.expect_end();
    drop(early);
    expected.push("eof up 10 down 0".into());

    let ends = one_story_each(&service, expected.len());
    let mut said: Vec<String> = ends.iter().map(|e| format!("{} up {} down {}", e.end, e.up, e.down)).collect();
    said.sort();
    expected.sort();
    assert_eq!(said, expected);
    let asked = fake.count(|w| matches!(w, What::Start { target, .. } if target == "ask"));
    assert_eq!(asked, 7, "no question was asked twice");
    assert_eq!(service.notifications.stored(), Vec::<String>::new(), "the store is empty");
    service.stop();
}

/// The id of a record, as its end event in the log begins.
fn id(line: &str) -> &str {
    let at = line.find("\"id\":\"").expect("each record has one") + 6;
    &line[at..at + 8]
}

/// Four sessions over TCP, one of them a call: peers, and the far ends of those that are not.
struct Four {
    fake: FakeQrexec,
    service: Activated,
    peers: Vec<Wire>,
    fars: Vec<Wire>,
}

impl Four {
    fn new() -> Self {
        let (fake, server) = (FakeQrexec::new(), Server::tcp());
        let service = Activation::calling(&fake).tcp(&server.name()).tcp("work test.Echo").start().ready();
        let (mut peers, fars): (Vec<_>, Vec<_>) = (0..3).map(|_| (service.connect(0), server.accept())).unzip();
        let mut call = service.connect(1);
        call.write_all(b"x").expect("connected");
        call.expect(b"x");
        peers.push(call);
        service.wait_for_starts(4);
        Self { fake, service, peers, fars }
    }

    /// Restarts the service with a handover that `damage` has changed.
    fn restart(&mut self, damage: impl FnOnce(&mut Handed)) {
        self.service.park();
        let mut handed = Handed::take(&self.service.notifications);
        assert_eq!(handed.lines().len(), 4);
        damage(&mut handed);
        handed.put_back();
        let ready = self.service.notifications.count("READY", "1");
        self.service.start_again();
        self.service
            .notifications
            .wait("READY", |m| (m.iter().filter(|m| m.get("READY") == Some("1")).count() > ready).then_some(()));
    }

    /// How many of the peers still have their session; the others' connections broke, and not with a plain end.
    fn alive(&mut self) -> usize {
        self.fars.iter_mut().for_each(|far| {
            let _ = far.write_all(b"y");
        });
        let call = self.peers.last_mut().expect("four");
        if let Err(e) = call.write_all(b"y") {
            // told once, here and not to the read
            assert!([std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe].contains(&e.kind()), "{e}");
            self.peers.pop();
        }
        let mut alive = 0;
        for peer in &mut self.peers {
            let mut byte = [0];
            match peer.read(&mut byte) {
                Ok(1) => alive += 1,
                Ok(_) => panic!("a plain end of a session that was lost"),
                Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
            }
        }
        alive
    }
}

/// The lines about the end of the session `id` in the whole log.
fn ends_of(service: &Activated, id: &str) -> Vec<String> {
    let about = format!("session {id}");
    service
        .log()
        .into_iter()
        .filter(|l| l.contains(&about) && (l.contains(" bytes up, ") || l.contains("taken up")))
        .collect()
}

#[test]
fn a_record_of_another_version_ends_that_session_alone() {
    for lost in [0, 3] {
        let mut four = Four::new();
        let mut gone = String::new();
        four.restart(|handed| {
            let mut lines = handed.lines();
            let at = lines.iter().position(|l| l.contains("Pipes") == (lost == 3)).expect("one of them");
            gone = id(&lines[at]).to_owned();
            lines[at] = lines[at].replacen("{\"v\":1,", "{\"v\":99,", 1);
            assert!(lines[at].contains("99"), "{}", lines[at]);
            handed.set_lines(&lines);
        });
        let line = four.service.process.stderr.wait_for("could not be taken up: ");
        assert!(line.contains(&gone) && line.contains("version 99"), "{line}");
        assert_eq!(four.alive(), 3);
        assert_eq!(ends_of(&four.service, &gone).len(), 1);
        if lost == 3 {
            four.fake.wait_for_ended(1);
        }
        drop((four.peers, four.fars));
        four.service.ends(3);
        four.service.stop();
    }
}

#[test]
fn a_damaged_record_ends_that_session_alone() {
    let mut four = Four::new();
    four.restart(|handed| {
        let mut lines = handed.lines();
        let half = lines[1].len() / 2;
        lines[1].truncate(half);
        lines[2] = lines[2].replacen("\"stage\":{\"", "\"stage\":{\"Un", 1);
        handed.set_lines(&lines);
    });
    four.service.process.stderr.wait_for_nth("could not be taken up: its record is damaged", 2);
    assert_eq!(four.alive(), 2);
    drop((four.peers, four.fars));
    four.service.ends(2);
    four.fake.wait_for_ended(1);
    four.service.stop();
}

#[test]
fn a_descriptor_that_does_not_come_ends_that_session_alone() {
    let mut four = Four::new();
    let mut gone = String::new();
    four.restart(|handed| {
        gone = id(handed.lines().last().expect("four")).to_owned();
        handed.batches.last_mut().expect("one").1.pop();
    });
    let line = four.service.process.stderr.wait_for("could not be taken up: ");
    assert!(line.contains(&gone) && line.contains("did not come"), "{line}");
    assert_eq!(four.alive(), 3);
    assert_eq!(ends_of(&four.service, &gone).len(), 1);
    drop((four.peers, four.fars));
    four.service.ends(3);
    four.fake.wait_for_ended(1);
    four.service.stop();
}

#[test]
fn records_that_nobody_can_read_cost_their_sessions_and_not_the_service() {
    for damage in [
        |handed: &mut Handed| handed.records[4] = 77, // a format of the future
        |handed: &mut Handed| handed.records.truncate(30),
        |handed: &mut Handed| handed.records[0] = b'X',
    ] {
        let mut four = Four::new();
        four.restart(damage);
        four.service.process.stderr.wait_for("could not be taken up: ");
        assert_eq!(four.alive(), 0);
        four.fake.wait_for_ended(1);
        exchange(&mut four.service.connect(1), 1, 1000, Pace::BULK);
        assert_eq!(four.service.notifications.stored(), Vec::<String>::new());
        four.service.stop();
    }
}

#[test]
fn a_handover_that_says_what_nobody_sends_is_survived() {
    for (said, with) in [(&b"\xff\xff\xff\xff"[..], 2), (b"more than four bytes", 2), (b"", 1)] {
        let mut four = Four::new();
        four.restart(|handed| {
            let null = || std::fs::File::open("/dev/null").expect("it is there").into();
            let stray = (said.to_vec(), (0..with).map(|_| null()).collect());
            handed.batches.insert(0, stray);
        });
        four.service.process.stderr.wait_for("ready: 2 listeners, ");
        four.alive();
        exchange(&mut four.service.connect(1), 1, 1000, Pace::BULK);
        drop((four.peers, four.fars));
        four.service.stop();
    }
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
        // more often than the time allowed: if each process began anew, it would never be over
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
    service.process.stderr.wait_for("the limit of calls into work (--calls-per-qube) is reached");
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
    service.process.stderr.wait_for("no listener is served until the next start");
    service.notifications.wait_for("STATUS", |status| status.starts_with("0 of 1 listeners"));
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
