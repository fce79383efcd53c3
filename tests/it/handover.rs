//! A restart keeps every session: its bytes, its half-closes, its counts and its one end in the log.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::support::{
    Activated, Activation, Ended, FakeQrexec, Pace, Pattern, SERVICE_SEED, Server, Sum, Wire, ends, eventually,
    exchange, fake_qrexec::What, receive, send, starts,
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
fn sessions_in_every_stage_survive_twenty_restarts() {
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

    for _ in 0..20 {
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
