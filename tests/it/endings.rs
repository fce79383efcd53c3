//! How sessions end: every byte before the end arrives, the end itself too, and the log counts what was delivered.
//!
//! Each test uses both kinds of peers (TCP, UNIX) and both kinds of servers.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use crate::support::{
    Activated, Activation, FakeQrexec, Pace, Process, SERVICE_SEED, Server, Sum, Wire, ends, eventually, exchange,
    fake_qrexec::What, receive, send,
};

/// A service with a TCP listener (0) and a UNIX listener (1) that lead to `server`.
fn in_front_of(server: &Server, options: &str) -> Activated {
    let name = format!("{}{options}", server.name());
    Activation::qrexec_connect().tcp(&name).unix(&name).start().ready()
}

/// Tells the story to every pair of kinds: `(service, listener, server)`.
fn with_every_kind(story: impl Fn(&Activated, usize, &Server) + Sync) {
    with_options("", story);
}

fn with_options(options: &str, story: impl Fn(&Activated, usize, &Server) + Sync) {
    let dir = tempfile::tempdir().expect("a directory");
    for server in [Server::tcp(), Server::unix(&dir.path().join("server.sock"))] {
        let service = in_front_of(&server, options);
        let rest = service.process.rest();
        for listener in 0..2 {
            story(&service, listener, &server);
            service.process.wait_for_rest(&rest);
        }
        service.stop();
    }
}

/// The `n`th end event of a service.
#[track_caller]
fn nth_end(service: &Activated, n: usize) -> String {
    service.ends(n + 1)[n].brief()
}

#[test]
fn a_peer_that_half_closes_first_still_gets_the_whole_reply() {
    with_every_kind(|service, listener, server| {
        let mut peer = service.connect(listener);
        let mut far = server.accept();
        let asked = {
            let peer = peer.try_clone().expect("a descriptor");
            thread::spawn(move || {
                send(&peer, 1, 700_000, Pace::HALTING).expect("it is read");
                peer.half_close();
            })
        };
        receive(&mut far, 1, 700_000, Pace::BULK).expect("the question");
        far.expect_end();
        asked.join().expect("no panic");
        let replying = thread::spawn(move || send(&far, 2, 3_000_000, Pace::BULK).expect("it is read"));
        receive(&mut peer, 2, 3_000_000, Pace::CRUMBS).expect("the reply");
        peer.expect_end();
        replying.join().expect("no panic");
        assert_eq!(nth_end(service, listener), "eof up 700000 down 3000000");
    });
}

#[test]
fn a_server_that_half_closes_first_still_gets_the_rest() {
    with_every_kind(|service, listener, server| {
        let mut peer = service.connect(listener);
        let mut far = server.accept();
        send(&far, 3, 5_000, Pace::CRUMBS).expect("it fits");
        far.half_close();
        receive(&mut peer, 3, 5_000, Pace::BULK).expect("what the server sent");
        peer.expect_end();
        let sending = thread::spawn(move || send(&peer, 4, 2_000_000, Pace::BULK).expect("it is read"));
        receive(&mut far, 4, 2_000_000, Pace::HALTING).expect("what the peer sent");
        far.expect_end();
        sending.join().expect("no panic");
        assert_eq!(nth_end(service, listener), "eof up 2000000 down 5000");
    });
}

#[test]
fn a_half_close_alone_ends_nothing() {
    with_every_kind(|service, listener, server| {
        let mut peer = service.connect(listener);
        let mut far = server.accept();
        peer.half_close();
        far.expect_end();
        for _ in 0..3 {
            far.write_all(b"still here").expect("it goes on");
            peer.expect(b"still here");
        }
        assert_eq!(ends(&service.process.stderr.so_far()).len(), listener);
        drop(far);
        peer.expect_end();
        assert_eq!(nth_end(service, listener), "eof up 0 down 30");
    });
}

#[test]
fn a_reset_of_the_peer_reaches_the_server() {
    with_every_kind(|service, listener, server| {
        let mut peer = service.connect(listener);
        let mut far = server.accept();
        peer.write_all(b"to be counted").expect("connected");
        far.expect(b"to be counted");
        far.write_all(b"xx").expect("connected");
        eventually("the bytes are in the peer's queue", || peer.unread() == 2);
        peer.reset(); // over UNIX a close with bytes unread comes to the same
        match far {
            Wire::Tcp(_) => far.expect_reset(),
            // a UNIX socket knows no other end when it left nothing unread
            Wire::Unix(_) => far.expect_end(),
        }
        let end = &service.ends(listener + 1)[listener];
        assert_eq!(end.brief(), "reset up 13 down 2");
        assert!(end.note.starts_with("by the peer"), "{end:?}");
    });
}

#[test]
fn a_reset_of_the_server_reaches_the_peer() {
    with_every_kind(|service, listener, server| {
        let mut peer = service.connect(listener);
        let mut far = server.accept();
        far.write_all(b"to be counted").expect("connected");
        peer.expect(b"to be counted");
        peer.write_all(b"xx").expect("connected");
        eventually("the bytes are in the server's queue", || far.unread() == 2);
        far.reset();
        match peer {
            Wire::Tcp(_) => peer.expect_reset(),
            Wire::Unix(_) => peer.expect_end(),
        }
        let end = &service.ends(listener + 1)[listener];
        assert_eq!(end.brief(), "reset up 2 down 13");
        assert!(end.note.starts_with("by the upstream"), "{end:?}");
    });
}

#[test]
fn a_peer_that_half_closed_and_then_vanished_is_noticed_while_the_server_is_silent() {
    let server = Server::tcp();
    let service = in_front_of(&server, "");
    let peer = service.connect(0);
    let mut far = server.accept();
    peer.half_close();
    far.expect_end();
    peer.reset();
    // After an end of stream a reset shows in writes only (EPIPE).
    eventually("the server hears of it", || far.write_all(b"x").is_err());
    assert_eq!(service.end().end, "reset");
    service.stop();
}

#[test]
fn what_a_server_sent_before_it_broke_off_arrives() {
    // A UNIX server that closes with bytes unread: the reset must not overtake what it sent.
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::unix(&dir.path().join("server.sock"));
    let service = in_front_of(&server, "");
    for listener in 0..2 {
        let mut peer = service.connect(listener);
        let far = server.accept();
        peer.write_all(b"never read").expect("connected");
        eventually("it is in the server's queue", || far.unread() == 10);
        let sending = thread::spawn(move || send(&far, 5, 900_000, Pace::BULK).expect("it is read"));
        receive(&mut peer, 5, 900_000, Pace::HALTING).expect("all that was sent before");
        sending.join().expect("no panic");
        assert_eq!(nth_end(&service, listener), "reset up 10 down 900000");
    }
    service.stop();
}

#[test]
fn a_unix_peer_that_writes_and_closes_at_once_loses_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    for server in [Server::tcp(), Server::unix(&dir.path().join("server.sock"))] {
        let service = in_front_of(&server, "");
        for round in 0..20 {
            let peer = service.connect(1);
            send(&peer, round, 100_000, Pace::BULK).expect("the socket holds it");
            drop(peer);
            let mut far = server.accept();
            receive(&mut far, round, 100_000, Pace::CRUMBS).expect("all of it");
            far.expect_end();
        }
        assert!(service.ends(20).iter().all(|e| e.brief() == "eof up 100000 down 0"), "{:#?}", service.ends(20));
        service.stop();
    }
}

#[test]
fn streams_arrive_unchanged_however_they_are_cut() {
    let dir = tempfile::tempdir().expect("a directory");
    let fake = FakeQrexec::new();
    let unix = Server::unix(&dir.path().join("server.sock")).echo();
    let names = [Server::tcp().echo(), unix, "work test.Echo".to_owned()];
    let activation = names.iter().fold(Activation::calling(&fake), |a, name| a.tcp(name).unix(name));
    let service = activation.start().ready();
    let rest = service.process.rest();
    thread::scope(|scope| {
        for listener in 0..6 {
            for (seed, pace, bytes) in
                [(1, Pace::BULK, 20_000_000), (2, Pace::CRUMBS, 2_000_000), (3, Pace::HALTING, 4_000_000)]
            {
                let mut peer = service.connect(listener);
                scope.spawn(move || exchange(&mut peer, seed + 10 * listener as u64, bytes, pace));
            }
        }
    });
    let ends = service.ends(18);
    let count = |what: &str| ends.iter().filter(|e| e.brief().starts_with(what)).count();
    for bytes in [20_000_000, 2_000_000, 4_000_000] {
        assert_eq!(count(&format!("eof up {bytes} down {bytes}")), 6, "{ends:#?}");
    }
    service.process.wait_for_rest(&rest);
    service.stop();
}

/// Resident memory in KiB.
fn memory(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("proc(5)");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn a_slow_reader_slows_its_sender_and_costs_no_memory() {
    const BYTES: u64 = 60_000_000;
    let fake = FakeQrexec::new();
    let server = Server::tcp();
    let name = server.name();
    let service =
        Activation::calling(&fake).tcp(&name).unix(&name).tcp(&format!("work test.Source+{BYTES}")).start().ready();
    let before = memory(&service.process);
    let mut peers: Vec<Wire> = Vec::new();
    let mut senders = Vec::new();
    for listener in 0..2 {
        peers.push(service.connect(listener));
        let far = server.accept();
        senders.push(thread::spawn(move || send(&far, SERVICE_SEED, BYTES, Pace::BULK)));
    }
    peers.push(service.connect(2));
    fake.wait_for_connected(1);
    for peer in &peers {
        // the first bytes are here, and then no more come: whoever reads nothing gets nothing more
        let mut last = 0;
        let mut same = 0;
        eventually("the stream stands still", || {
            let now = peer.unread();
            (last, same) = (now, if now == last && now > 0 { same + 1 } else { 0 });
            same > 50
        });
    }
    let grown = memory(&service.process).saturating_sub(before);
    assert!(grown < 16_000, "{grown} KiB for three stalled sessions");
    assert!(senders.iter().all(|s| !s.is_finished()), "60 MB fit nowhere");
    for peer in &mut peers {
        receive(&mut *peer, SERVICE_SEED, BYTES, Pace::BULK).expect("all of it, late");
    }
    senders.into_iter().for_each(|s| s.join().expect("no panic").expect("it was read"));
    peers.iter().for_each(Wire::half_close);
    assert!(service.ends(3).iter().all(|e| e.down == BYTES));
    service.stop();
}

#[test]
fn the_end_of_a_reply_arrives_although_the_peer_still_sends() {
    let fake = FakeQrexec::new();
    let service =
        Activation::calling(&fake).tcp("work test.EndsFirst+300000").unix("work test.EndsFirst+300000").start().ready();
    let rest = service.process.rest();
    for listener in [0, 1, 0, 1] {
        let mut peer = service.connect(listener);
        let sending = {
            let peer = peer.try_clone().expect("a descriptor");
            // whether all of it is taken is up to the one who drops it
            thread::spawn(move || send(&peer, 9, 2_000_000, Pace::BULK).is_ok().then(|| peer.half_close_if_there()))
        };
        receive(&mut peer, SERVICE_SEED, 300_000, Pace::HALTING).expect("the whole reply");
        peer.expect_end();
        sending.join().expect("no panic");
        drop(peer);
        service.process.wait_for_rest(&rest);
    }
    for end in service.ends(4) {
        assert_eq!((end.end.as_str(), end.down, end.exit), ("eof", 300_000, Some(0)), "{end:?}");
    }
    service.stop();
}

#[test]
fn half_closes_pass_through_a_call_both_ways() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake)
        .tcp("work test.HalfCloseUp")
        .unix("work test.HalfCloseUp")
        .unix("work test.HalfCloseDown")
        .start()
        .ready();
    let reply = format!("{}\n", Sum::of_pattern(6, 1_500_000));
    for listener in 0..2 {
        let mut peer = service.connect(listener);
        send(&peer, 6, 1_500_000, Pace::HALTING).expect("it is read");
        peer.half_close();
        assert_eq!(String::from_utf8_lossy(&peer.read_to_end()), reply);
        let expected = format!("eof up 1500000 down {} exit 0", reply.len());
        assert_eq!(nth_end(&service, listener), expected);
    }
    let mut peer = service.connect(2);
    peer.expect_end();
    send(&peer, 7, 800_000, Pace::HALTING).expect("it is read");
    drop(peer);
    assert_eq!(Sum::of(&fake.received()), Sum::of_pattern(7, 800_000));
    assert_eq!(nth_end(&service, 2), "eof up 800000 down 0 exit 0");
    service.stop();
}

#[test]
fn timing_a_session_without_bytes_for_its_idle_timeout_ends_and_one_with_bytes_lives() {
    with_options(",idle_timeout=1", |service, listener, server| {
        let mut peer = service.connect(listener);
        let mut far = server.accept();
        peer.write_all(b"12345").expect("connected");
        far.expect(b"12345");
        // the other way counts too: bytes for longer than the timeout, in pauses shorter than it
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(400));
            far.write_all(b"x").expect("it goes on");
            peer.expect(b"x");
        }
        match peer {
            Wire::Tcp(_) => peer.expect_reset(),
            Wire::Unix(_) => peer.expect_end(),
        }
        match far {
            Wire::Tcp(_) => far.expect_reset(),
            Wire::Unix(_) => far.expect_end(),
        }
        assert_eq!(nth_end(service, listener), "idle up 5 down 4");
    });
}

#[test]
fn a_server_that_refuses_resets_the_peer_and_says_so() {
    let port = Server::tcp().port(); // free again
    let name = format!("target=127.0.0.1+{port}");
    let service = Activation::qrexec_connect().tcp(&name).start().ready();
    service.connect(0).expect_reset();
    let end = service.end();
    assert_eq!(end.brief(), "dial-failed up 0 down 0");
    assert!(end.note.contains(&format!("cannot connect to 127.0.0.1:{port}")), "{end:?}");
    assert!(end.note.contains("nobody listens there"), "{end:?}");
    service.stop();
}

#[test]
fn a_server_that_never_answers_times_out() {
    // A listener whose backlog is full: the kernel answers no further connection.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    full.listen(0).expect("it listens");
    let address = full.local_addr().expect("bound").as_socket().expect("IPv4");
    let _first = Wire::tcp(address);
    let name = format!("target=127.0.0.1+{},connect_timeout=1", address.port());
    let service = Activation::qrexec_connect().tcp(&name).unix(&name).start().ready();
    let rest = service.process.rest();
    let (mut tcp, mut unix) = (service.connect(0), service.connect(1));
    tcp.expect_reset();
    unix.expect_end();
    for end in service.ends(2) {
        assert_eq!(end.brief(), "timeout up 0 down 0");
        assert!(end.note.starts_with("not connected within 1 s"), "{end:?}");
    }
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn every_peer_that_goes_away_while_its_server_is_dialled_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let name = format!("uds={}", dir.path().join("later.sock").display());
    let service = Activation::qrexec_connect().tcp(&name).unix(&name).start().ready();
    let rest = service.process.rest();
    for listener in 0..2 {
        let peer = service.connect(listener);
        service.process.stderr.wait_for_nth("does not exist yet", 1);
        peer.reset();
        let end = &service.ends(listener + 1)[listener];
        assert_eq!(end.brief(), "reset up 0 down 0");
        assert!(end.note.contains("disconnected before"), "{end:?}");
    }
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_unix_server_that_appears_later_is_awaited() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("later.sock");
    let service = Activation::qrexec_connect().tcp(&format!("uds={}", path.display())).start().ready();
    let mut peer = service.connect(0);
    peer.write_all(b"early").expect("connected");
    let line = service.process.stderr.wait_for("does not exist yet: its endpoint has not started; next try in ");
    assert!(line.contains(&path.display().to_string()), "{line}");
    let server = Server::unix(&path);
    let mut far = server.accept();
    far.expect(b"early");
    drop(far);
    peer.expect_end();
    drop(server);

    // the path is still there, and nobody listens
    let mut peer = service.connect(0);
    service.process.stderr.wait_for(": its endpoint has stopped");
    std::fs::remove_file(&path).expect("it is there");
    let server = Server::unix(&path);
    let mut far = server.accept();
    far.write_all(b"back again").expect("connected");
    peer.expect(b"back again");
    service.stop();
}

#[test]
fn a_unix_server_that_never_appears_fails_when_the_time_is_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("never.sock").display().to_string();
    let service = Activation::qrexec_connect().tcp(&format!("uds={path},connect_timeout=1")).start().ready();
    service.connect(0).expect_reset();
    let end = service.end();
    assert_eq!(end.brief(), "dial-failed up 0 down 0");
    assert!(end.note.contains(&path) && end.note.contains("its endpoint has not started"), "{end:?}");
    service.stop();
}

#[test]
fn a_unix_server_with_a_full_backlog_is_awaited() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("full.sock");
    let full = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
    full.bind(&socket2::SockAddr::unix(&path).expect("short")).expect("a new path");
    full.listen(0).expect("it listens");
    let _first = Wire::unix(&path);
    let service = Activation::qrexec_connect().unix(&format!("uds={}", path.display())).start().ready();
    let mut peer = service.connect(0);
    service.process.stderr.wait_for("has a full backlog: its endpoint does not accept");
    let (_taken, _) = full.accept().expect("the first one waits");
    let (far, _) = full.accept().expect("the session");
    let mut far = Wire::from_unix(std::os::fd::OwnedFd::from(far).into());
    far.write_all(b"hello").expect("connected");
    peer.expect(b"hello");
    service.stop();
}

#[test]
fn five_hundred_short_sessions_leave_nothing_behind() {
    let fake = FakeQrexec::new();
    let dir = tempfile::tempdir().expect("a directory");
    let unix = Server::unix(&dir.path().join("server.sock")).echo();
    let service =
        Activation::calling(&fake).tcp(&unix).unix(&Server::tcp().echo()).tcp("work test.Exit+0").start().ready();
    let rest = service.process.rest();
    thread::scope(|scope| {
        for listener in [0, 1] {
            for thread in 0..5 {
                let service = &service;
                scope.spawn(move || {
                    for round in 0..50 {
                        exchange(&mut service.connect(listener), 100 * thread + round, 2_000, Pace::BULK);
                    }
                });
            }
        }
        for _ in 0..20 {
            let mut peer = service.connect(2);
            peer.expect_end();
        }
    });
    let ends = service.ends(520);
    assert_eq!(ends.len(), 520);
    assert!(ends.iter().all(|e| e.end == "eof"), "{ends:#?}");
    assert_eq!(fake.count(|w| matches!(w, What::End { code: 0, .. })), 20);
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_reader_that_reads_only_the_beginning_ends_the_session() {
    with_every_kind(|service, listener, server| {
        let mut peer = service.connect(listener);
        let far = server.accept();
        let sending = thread::spawn(move || send(&far, 1, 50_000_000, Pace::BULK));
        let mut first = [0; 1000];
        peer.read_exact(&mut first).expect("the beginning");
        drop(peer); // with bytes unread: a reset over TCP and UNIX alike
        assert!(sending.join().expect("no panic").is_err(), "the server hears of it");
        assert_eq!(service.ends(listener + 1)[listener].end, "reset");
    });
}

/// Of the connection from `local` (any port where `None`) to `peer`, whether the kernel's timer for an idle one runs
/// (Documentation/networking/proc_net_tcp.rst: timer_active 2).
#[track_caller]
fn is_watched(local: Option<u16>, peer: u16) -> bool {
    let sockets = std::fs::read_to_string("/proc/net/tcp").expect("proc(5)");
    let loopback = |port: u16| format!("0100007F:{port:04X}");
    let mut lines = sockets.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let found = lines.find(|words| {
        words[2] == loopback(peer) && words[3] == "01" && local.is_none_or(|local| words[1] == loopback(local))
    });
    found.expect("the connection stands")[5].starts_with("02:")
}

#[test]
fn a_dead_peer_or_upstream_is_looked_for_unless_that_is_not_wished() {
    for (option, wished) in [("", true), (",keepalive=false", false)] {
        let server = Server::tcp();
        let service = Activation::qrexec_connect().tcp(&format!("{}{option}", server.name())).start().ready();
        let (peer, far) = (service.connect(0), server.accept());
        service.wait_for_starts(1);
        let port = peer.local().rsplit(':').next().and_then(|port| port.parse().ok()).expect("an address");
        assert_eq!(is_watched(Some(service.port(0)), port), wished, "the peer: {option:?}");
        assert_eq!(is_watched(None, server.port()), wished, "the upstream: {option:?}");
        drop((peer, far));
        service.stop();
    }
}
