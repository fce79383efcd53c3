//! A stop: sessions get their time, then they are cut; nobody new is let in; nobody is left.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::support::{Activated, Activation, FakeQrexec, Pace, Server, Wire, eventually, exchange, receive, send};

/// Sends the signal and waits until the service has begun to stop.
#[track_caller]
fn begin_to_stop(service: &Activated, signal: Signal) {
    service.process.signal(signal);
    service.notifications.wait_for("STOPPING", |v| v == "1");
}

#[test]
fn sessions_that_end_within_their_time_are_not_cut() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = Server::tcp();
        let mut service = Activation::qrexec_connect().tcp(&server.name()).start().ready();
        let mut peer = service.connect(0);
        let mut far = server.accept();
        begin_to_stop(&service, signal);
        assert!(service.notifications.status().is_some_and(|s| s.starts_with("stopping, 1 session left")));
        let more: u64 = service.notifications.wait_for("EXTEND_TIMEOUT_USEC", |_| true).parse().expect("a number");
        assert!(more >= 5_000_000, "{more}");
        // it still works, both ways
        let sending = thread::spawn(move || {
            send(&far, 1, 2_000_000, Pace::HALTING).expect("it goes on");
            far.expect(b"thanks");
        });
        receive(&mut peer, 1, 2_000_000, Pace::BULK).expect("all of it");
        peer.write_all(b"thanks").expect("it goes on");
        sending.join().expect("no panic");
        peer.half_close();
        peer.expect_end();
        assert!(service.process.wait().success());
        assert_eq!(service.end().brief(), "eof up 6 down 2000000");
        service.process.stderr.wait_for("1 session was open; it finished");
    }
}

#[test]
fn sessions_that_outlast_their_time_are_cut_and_say_so() {
    let fake = FakeQrexec::new();
    let server = Server::tcp();
    let name = format!("{},drain_timeout=1", server.name());
    let mut service = Activation::calling(&fake)
        .tcp(&name)
        .unix(&name)
        .tcp("work test.Echo drain_timeout=1")
        .tcp("work test.Never drain_timeout=1")
        .tcp("uds=/nonexistent/x.sock,drain_timeout=1,connect_timeout=60")
        .start()
        .ready();
    let mut peers: Vec<Wire> = (0..5).map(|i| service.connect(i)).collect();
    let mut fars = [server.accept(), server.accept()];
    for peer in &mut peers[..3] {
        peer.write_all(b"123").expect("connected");
    }
    fars.iter_mut().for_each(|far| far.expect(b"123"));
    peers[2].expect(b"123");
    fake.wait_for_started(2);
    service.process.stderr.wait_for("does not exist yet");
    let began = Instant::now();
    begin_to_stop(&service, Signal::SIGTERM);
    for peer in &mut peers {
        match peer {
            Wire::Tcp(_) => peer.expect_reset(),
            Wire::Unix(_) => peer.expect_end(),
        }
    }
    assert!(began.elapsed() >= Duration::from_secs(1));
    fars.iter_mut().for_each(Wire::expect_reset);
    assert!(service.process.wait().success());
    let ends = service.ends(5);
    assert_eq!(ends.len(), 5);
    assert!(ends.iter().all(|e| e.end == "drained"), "{ends:#?}");
    let mut counts: Vec<_> = ends.iter().map(|e| (e.up, e.down)).collect();
    counts.sort_unstable();
    assert_eq!(counts, [(0, 0), (0, 0), (3, 0), (3, 0), (3, 3)]);
    service.process.assert_nobody_left();
}

#[test]
fn each_session_has_the_time_of_its_own_listener() {
    let server = Server::tcp();
    let (short, long) = (format!("{},drain_timeout=1", server.name()), format!("{},drain_timeout=20", server.name()));
    let mut service = Activation::qrexec_connect().tcp(&short).tcp(&long).start().ready();
    let mut first = service.connect(0);
    let _far = server.accept();
    let mut second = service.connect(1);
    let mut far = server.accept();
    begin_to_stop(&service, Signal::SIGTERM);
    let more: u64 = service.notifications.wait_for("EXTEND_TIMEOUT_USEC", |_| true).parse().expect("a number");
    assert!(more >= 20_000_000, "{more}");
    first.expect_reset();
    far.write_all(b"still here").expect("it goes on");
    second.expect(b"still here");
    drop((far, second));
    assert!(service.process.wait().success());
}

#[test]
fn a_second_signal_hurries() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let server = Server::tcp();
        let mut service =
            Activation::qrexec_connect().tcp(&format!("{},drain_timeout=600", server.name())).start().ready();
        let mut peer = service.connect(0);
        let _far = server.accept();
        begin_to_stop(&service, Signal::SIGTERM);
        service.process.signal(second);
        peer.expect_reset();
        assert!(service.process.wait().success());
        assert_eq!(service.end().end, "drained");
    }
}

#[test]
fn a_drain_timeout_of_zero_cuts_at_once() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&format!("{},drain_timeout=0", server.name())).start().ready();
    let mut peer = service.connect(0);
    let _far = server.accept();
    begin_to_stop(&service, Signal::SIGTERM);
    peer.expect_reset();
    assert!(service.process.wait().success());
    assert_eq!(service.end().end, "drained");
}

#[test]
fn when_the_whole_manager_goes_down_sessions_have_two_seconds() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&format!("{},drain_timeout=600", server.name())).start().ready();
    let mut peer = service.connect(0);
    let _far = server.accept();
    service.manager_says("stopping");
    let began = Instant::now();
    begin_to_stop(&service, Signal::SIGTERM);
    peer.expect_reset();
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert!(service.process.wait().success());
    assert_eq!(service.end().end, "drained");
}

#[test]
fn nobody_is_let_in_after_the_stop() {
    let server = Server::tcp();
    let name = server.name();
    let mut service = Activation::qrexec_connect().tcp(&name).unix(&name).start().ready();
    let peer = service.connect(0);
    let far = server.accept();
    begin_to_stop(&service, Signal::SIGTERM);
    let mut late = [service.connect(0), service.connect(1)];
    late.iter_mut().for_each(|wire| wire.write_all(b"hello").expect("the kernel's queue takes it"));
    drop(far);
    drop(peer);
    assert!(service.process.wait().success());
    assert!(server.try_accept().is_none());
    assert_eq!(service.end().end, "eof");
    // systemd keeps the sockets, so whoever waits there is served by the next process
    service.start_again();
    for _ in 0..2 {
        server.accept().expect(b"hello");
    }
    late.iter_mut().for_each(Wire::expect_end);
    service.stop();
}

#[test]
fn timing_a_stop_without_sessions_is_immediate() {
    let mut service = Activation::qrexec_connect().tcp(&Server::tcp().name()).start().ready();
    let began = Instant::now();
    begin_to_stop(&service, Signal::SIGTERM);
    assert!(service.process.wait().success());
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_child_that_ignores_sigterm_does_not_outlive_the_stop() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.NeverKill drain_timeout=0").start().ready();
    let mut peer = service.connect(0);
    fake.wait_for_started(1);
    let mut process = {
        let mut service = service;
        begin_to_stop(&service, Signal::SIGTERM);
        peer.expect_reset();
        assert!(service.process.wait().success());
        assert_eq!(service.end().end, "drained");
        service.process.stderr.wait_for("ignored SIGTERM and was killed");
        service
    };
    process.process.assert_nobody_left();
}

#[test]
fn without_a_manager_the_service_drains_as_well() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&server.name()).without_notify().start();
    let mut peer = service.connect(0);
    let mut far = server.accept();
    service.process.signal(Signal::SIGTERM);
    service.process.stderr.wait_for("stopping: up to 5 s for 1 session");
    exchange_by_hand(&mut peer, &mut far);
    drop((peer, far));
    assert!(service.process.wait().success());
}

fn exchange_by_hand(peer: &mut Wire, far: &mut Wire) {
    peer.write_all(b"ping").expect("it goes on");
    far.expect(b"ping");
    far.write_all(b"pong").expect("it goes on");
    peer.expect(b"pong");
}

#[test]
fn the_status_stays_that_of_a_stop_until_the_end() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect().tcp(&server.name()).start().ready();
    let mut pairs: Vec<(Wire, Wire)> = (0..3).map(|_| (service.connect(0), server.accept())).collect();
    service.notifications.wait_for("STATUS", |s| s == "1 listener, 3 sessions");
    begin_to_stop(&service, Signal::SIGTERM);
    pairs.truncate(1);
    service.ends(2);
    let (mut peer, mut far) = pairs.remove(0);
    let since = Instant::now();
    eventually("longer than the least time between two statuses", || since.elapsed() > Duration::from_millis(1200));
    exchange_by_hand(&mut peer, &mut far);
    drop(peer);
    far.expect_end();
    drop(far);
    service.process.wait();
    let after = service.notifications.so_far();
    let stopping = after.iter().position(|m| m.get("STOPPING").is_some()).expect("it was said");
    let later: Vec<_> = after[stopping..].iter().filter_map(|m| m.get("STATUS")).collect();
    assert!(later.iter().all(|s| s.starts_with("stopping")), "{later:?}");
}

#[test]
fn idle_sessions_and_traffic_are_drained_alike_when_all_end_at_once() {
    let name = Server::tcp().echo();
    let mut service = Activation::qrexec_connect().tcp(&name).start().ready();
    let peers: Vec<Wire> = (0..20).map(|_| service.connect(0)).collect();
    service.wait_for_starts(20);
    begin_to_stop(&service, Signal::SIGTERM);
    thread::scope(|scope| {
        for (seed, mut peer) in peers.into_iter().enumerate() {
            scope.spawn(move || exchange(&mut peer, seed as u64, 200_000, Pace::BULK));
        }
    });
    assert!(service.process.wait().success());
    assert!(service.ends(20).iter().all(|e| e.brief() == "eof up 200000 down 200000"));
    service.process.stderr.wait_for("20 sessions were open; 20 finished, 0 cut");
}
