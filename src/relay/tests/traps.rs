//! What schedules do not reach: urgent bytes, passed descriptors, exhausted descriptors and pipes, and time.

use std::{
    io::{IoSlice, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{ControlMessage, MsgFlags, Shutdown, send, sendmsg, shutdown},
    },
};

use super::{
    super::{Counters, Interrupt, Phase, Relay, RelayOutcome, Side, direction::Gear, pool},
    Case, check,
    far::{self, Far, ReadEnd, Script, Step, Then, What},
    run,
};
use crate::{
    crash::{Facts, Names, Region, SavedId, SavedStage, region, set_region},
    stream::StreamKind,
};

const GEARS: [Gear; 3] = [Gear::Small, Gear::Copy, Gear::Splice];

fn script(writes: &[usize], reads: Vec<Step>) -> Script {
    Script { writes: writes.iter().map(|n| Step::Move(*n)).collect(), then: Then::HalfClose, reads, deaf: false }
}

fn case(peer: Script, upstream: Script, gear: Option<Gear>) -> Case {
    Case { peer, upstream, parks: Vec::new(), narrow: false, threads: false, gear, buffer: None }
}

fn current() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Runs a relay whose peer has already written; what its upstream gets while the peer stays open. The upstream is a child
/// without a gear.
fn delivered(what: What, gear: Option<Gear>, write: impl FnOnce(&OwnedFd)) -> usize {
    let runtime = current();
    let _inside = runtime.enter();
    let (peer, near) = far::pair(what, false);
    let (upstream, to) = far::pair(if gear.is_none() { What::Pipes } else { What::Unix }, false);
    write(peer.reading.as_ref().expect("open"));
    std::thread::sleep(Duration::from_millis(5)); // the bytes are there, and no news will come
    let mut relay = Relay::new(near, to, None);
    if let Some(gear) = gear {
        relay = relay.force(gear);
    }
    runtime.block_on(async {
        let (counters, interrupt) = (Counters::default(), Interrupt::default());
        let _ = tokio::time::timeout(Duration::from_millis(50), relay.run(&counters, &interrupt)).await;
    });
    nix::unistd::read(upstream.reading.as_ref().expect("open"), &mut [0; 4096]).unwrap_or(0)
}

/// Every gear between sockets, and none.
fn ways() -> impl Iterator<Item = Option<Gear>> {
    GEARS.into_iter().map(Some).chain([None])
}

#[test]
fn bytes_behind_a_tcp_urgent_mark_are_delivered() {
    for (gear, ends) in ways().flat_map(|gear| [(gear, false), (gear, true)]) {
        let n = delivered(What::Tcp, gear, |fd| {
            send(fd.as_raw_fd(), &[1; 100], MsgFlags::empty()).expect("sent");
            send(fd.as_raw_fd(), &[2; 1], MsgFlags::MSG_OOB).expect("sent");
            send(fd.as_raw_fd(), &[3; 100], MsgFlags::empty()).expect("sent");
            if ends {
                shutdown(fd.as_raw_fd(), Shutdown::Write).expect("a half-close");
            }
        });
        assert_eq!(n, 200, "{gear:?} {ends}: the urgent byte is out of band, the others are not");
    }
}

#[test]
fn bytes_behind_a_passed_descriptor_are_delivered() {
    for gear in ways() {
        let n = delivered(What::Unix, gear, |fd| {
            let rights = [fd.as_raw_fd()];
            let with = [ControlMessage::ScmRights(&rights)];
            for _ in 0..2 {
                sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(&[1; 100])], &with, MsgFlags::empty(), None)
                    .expect("sent");
            }
        });
        assert_eq!(n, 200, "{gear:?}");
    }
}

#[test]
fn a_reply_reaches_a_slow_peer_whose_request_nobody_took() {
    for gear in [None, Some(Gear::Small)] {
        let slow = (0..8).flat_map(|_| [Step::Pause(Duration::from_millis(20)), Step::Move(200_000)]).collect();
        let mut child = script(&[2_000_000], Vec::new());
        child.deaf = true;
        let case = case(script(&[6_000_000], slow), child, gear);
        let ended = run(What::Tcp, What::Pipes, &case);
        assert_eq!((ended.peer.received, ended.peer.end), (2_000_000, ReadEnd::Eof), "{:?}", ended.outcome);
        assert!(matches!(ended.outcome, RelayOutcome::Eof { dropped: 1.. }), "{:?}", ended.outcome);
    }
}

#[test]
fn a_reply_reaches_a_peer_that_reads_only_after_a_long_upload_that_nobody_took() {
    // a long reply waits in the relay and in our socket, a short one over UNIX in the peer's
    for (what, reply) in [(What::Tcp, 2_000_000), (What::Unix, 2_000_000), (What::Unix, 50_000)] {
        let late = vec![Step::Pause(Duration::from_millis(1500)), Step::Move(usize::MAX)];
        let mut child = script(&[reply], Vec::new());
        child.deaf = true;
        // more than what a peer may send after it has all of the reply
        let case = case(script(&[40_000_000, 40_000_000, 1_000], late), child, None);
        let ended = run(what, What::Pipes, &case);
        assert_eq!(
            (ended.peer.received, ended.peer.end),
            (reply as u64, ReadEnd::Eof),
            "{what:?}: {:?}",
            ended.outcome
        );
    }
}

#[test]
fn what_was_sent_before_a_reset_reaches_a_slow_upstream() {
    let slow = (0..8).flat_map(|_| [Step::Pause(Duration::from_millis(20)), Step::Move(100_000)]).collect();
    let mut peer = script(&[200_000], Vec::new());
    peer.then = Then::Close; // with the upstream's bytes unread: a UNIX peer's way to reset
    let case = case(peer, script(&[100_000], slow), None);
    let ended = run(What::Unix, What::Tcp, &case);
    assert_eq!(ended.upstream.received, ended.peer.sent, "{:?}", ended.outcome);
}

/// A relay on a clock that jumps whenever nothing moves.
fn timed(
    peer: What,
    upstream: What,
    idle: Option<Duration>,
    gear: Option<Gear>,
    act: impl FnOnce(&mut Far, &mut Far),
) -> (RelayOutcome, Duration, (u64, u64)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let (mut far_peer, peer) = far::pair(peer, false);
        let (mut far_upstream, upstream) = far::pair(upstream, false);
        act(&mut far_peer, &mut far_upstream);
        let mut relay = Relay::new(peer, upstream, idle);
        if let Some(gear) = gear {
            relay = relay.force(gear);
        }
        let (counters, interrupt, began) = (Counters::default(), Interrupt::default(), tokio::time::Instant::now());
        let outcome = relay.run(&counters, &interrupt).await;
        (outcome, began.elapsed(), (counters.up(), counters.down()))
    })
}

fn fill(fd: &OwnedFd) -> u64 {
    let mut sent = 0;
    while let Ok(n) = nix::unistd::write(fd, &[7; 65_536]) {
        sent += n as u64;
    }
    sent
}

#[test]
fn a_relay_without_bytes_ends_after_the_idle_timeout_in_every_gear() {
    let sockets = GEARS.map(|gear| (What::Unix, Some(gear)));
    for (upstream, gear) in sockets.into_iter().chain([(What::Pipes, None), (What::Pipes, Some(Gear::Small))]) {
        let mut sent = 0;
        let (outcome, after, (up, down)) = timed(What::Tcp, upstream, Some(Duration::from_secs(300)), gear, |p, _| {
            sent = fill(p.writing.as_ref().expect("open")); // and nobody reads it
        });
        assert!(matches!(outcome, RelayOutcome::Idle), "{gear:?}: {outcome:?}");
        assert!((300..302).contains(&after.as_secs()), "{gear:?}: {after:?}");
        assert!(up > 0 && up < sent && down == 0, "{gear:?}: {up} of {sent}");
    }
}

#[test]
fn what_a_vanished_peer_left_undelivered_is_no_clean_end() {
    let (outcome, after, _) = timed(What::Unix, What::Tcp, None, None, |peer, upstream| {
        drop(upstream.writing.take());
        fill(peer.writing.as_ref().expect("open"));
        (peer.reading, peer.writing) = (None, None);
    });
    // All fits into the kernel's buffers here, so the upstream merely never answers: a clean end after the grace.
    assert!(matches!(outcome, RelayOutcome::Eof { dropped: 0 }), "{outcome:?}");
    assert!((60..62).contains(&after.as_secs()), "{after:?}");

    let (outcome, after, _) = timed(What::Unix, What::Unix, None, None, |peer, upstream| {
        drop(upstream.writing.take());
        fill(peer.writing.as_ref().expect("open"));
        let narrow = upstream.reading.as_ref().expect("open");
        nix::sys::socket::setsockopt(narrow, nix::sys::socket::sockopt::RcvBuf, &1).expect("an option");
        (peer.reading, peer.writing) = (None, None);
    });
    let by_peer = matches!(outcome, RelayOutcome::Reset { by: Side::Peer, .. });
    assert!(by_peer || matches!(outcome, RelayOutcome::Eof { dropped: 0 }), "{outcome:?}");
    assert!((60..62).contains(&after.as_secs()), "{after:?}");
}

#[test]
fn a_peer_that_sends_for_ever_to_nobody_is_let_go() {
    let (outcome, after, (up, down)) = timed(What::Tcp, What::Pipes, None, None, |peer, child| {
        (child.reading, child.writing) = (None, None);
        let mut socket: std::net::TcpStream = peer.writing.take().expect("open").into();
        socket.set_nonblocking(true).expect("a flag");
        let _ = socket.write_all(&[1; 100_000]);
        peer.writing = Some(socket.into());
    });
    let RelayOutcome::Eof { dropped } = outcome else { panic!("{outcome:?}") };
    assert_eq!((up, down), (0, 0));
    assert!(dropped > 0);
    assert!(after.as_secs() <= 20, "{after:?}");
}

/// Whether this process was started for the one test `name`, whose limits nobody else is to feel; else starts it.
fn alone(name: &str) -> bool {
    const KEY: &str = "RELAY_TEST_ALONE";
    if std::env::var_os(KEY).is_some() {
        return true;
    }
    let exe = std::env::current_exe().expect("a program");
    let name = format!("relay::tests::traps::{name}");
    let out = Command::new(exe).args(["--exact", &name, "--test-threads=1", "--nocapture"]).env(KEY, "1").output();
    let out = out.expect("started");
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
    false
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// A large transfer both ways, in every gear, for every pair of ends.
fn all_pairs() {
    for (peer, upstream) in [
        (What::Tcp, What::Tcp),
        (What::Tcp, What::Unix),
        (What::Unix, What::Tcp),
        (What::Unix, What::Unix),
        (What::Tcp, What::Pipes),
        (What::Unix, What::Pipes),
    ] {
        for gear in [None, Some(Gear::high(StreamKind::Tcp, StreamKind::Tcp))] {
            let big = || script(&[3_000_000], vec![Step::Pause(Duration::from_millis(2))]);
            check(peer, upstream, &case(big(), big(), gear)).expect("every byte");
        }
    }
}

#[test]
fn no_descriptor_and_no_pipe_is_left_behind() {
    if !alone("no_descriptor_and_no_pipe_is_left_behind") {
        return;
    }
    drop(current()); // which leaves two of its own, once
    let before = open_descriptors();
    let mut reset = case(script(&[3_000_000], Vec::new()), script(&[3_000_000], Vec::new()), Some(Gear::Splice));
    reset.peer.then = Then::Reset;
    // A user who is not root shares /proc/sys/fs/pipe-user-pages-soft (pipe(7)) with the tests beside this one: where they
    // have it all, bytes are copied, and the next rounds come when they have less.
    let began = std::time::Instant::now();
    let mut kept = 0;
    while kept == 0 && began.elapsed() < Duration::from_secs(30) {
        for _ in 0..10 {
            check(What::Tcp, What::Tcp, &reset).expect("every byte");
        }
        all_pairs();
        kept = pool::empty();
    }
    assert!(kept > 0, "pipes were used");
    assert_eq!(pool::made(), 0);
    assert_eq!(open_descriptors(), before);
}

#[test]
fn without_descriptors_for_pipes_bytes_are_copied() {
    if !alone("without_descriptors_for_pipes_bytes_are_copied") {
        return;
    }
    let runtime = current();
    let _inside = runtime.enter();
    let ((far_peer, peer), (far_upstream, upstream)) = (far::pair(What::Tcp, false), far::pair(What::Tcp, false));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).expect("a limit"); // those that are open stay open
    let script = script(&[3_000_000], Vec::new());
    let go = |far: Far| {
        std::thread::spawn({
            let script = script.clone();
            move || far.run(&script)
        })
    };
    let (far_peer, far_upstream) = (go(far_peer), go(far_upstream));
    let mut relay = Relay::new(peer, upstream, None).force(Gear::Splice);
    let outcome = runtime.block_on(async { relay.run(&Counters::default(), &Interrupt::default()).await });
    drop(relay);
    assert!(matches!(outcome, RelayOutcome::Eof { dropped: 0 }), "{outcome:?}");
    for far in [far_peer, far_upstream] {
        let report = far.join().expect("no panic");
        assert_eq!((report.received, report.correct), (3_000_000, true));
    }
    assert_eq!(pool::made(), 0);
}

#[test]
fn beyond_the_quota_of_pipes_bytes_are_copied() {
    if !alone("beyond_the_quota_of_pipes_bytes_are_copied") {
        return;
    }
    if nix::unistd::geteuid().is_root() {
        // The quota is for those without CAP_SYS_RESOURCE.
        nix::unistd::setuid(nix::unistd::Uid::from_raw(65_533)).expect("another user");
    }
    let mut hoard = Vec::new();
    for size in [1 << 20, 256 << 10, 128 << 10] {
        while let Ok(pipe) = nix::unistd::pipe2(OFlag::O_CLOEXEC) {
            if fcntl(&pipe.1, FcntlArg::F_SETPIPE_SZ(size)).is_err() {
                break;
            }
            hoard.push(pipe);
            assert!(hoard.len() < 300, "there is no quota here");
        }
    }
    assert!(pool::pipe().is_none());
    all_pairs();
    assert_eq!(pool::made(), 0);
}

#[test]
fn a_parked_relay_has_what_was_in_its_pipe() {
    let runtime = current();
    let _inside = runtime.enter();
    let ((peer, near), (upstream, to)) = (far::pair(What::Tcp, false), far::pair(What::Unix, false));
    let sent = fill(peer.writing.as_ref().expect("open"));
    let mut relay = Relay::new(near, to, None).force(Gear::Splice);
    // That of the whole process: other tests only save more because of it.
    set_region(Arc::new(Region::create().expect("memory")));
    let counters = Counters::default();
    runtime.block_on(async {
        let _ = tokio::time::timeout(Duration::from_millis(50), relay.run(&counters, &Interrupt::default())).await;
    });
    // Where no pipe was left, it has copied.
    let in_pipe = relay.saved().in_pipe();
    assert!(!counters.checkpoint().is_moving(), "a pipe outlives this process");
    let parked = relay.park(&counters);
    assert_eq!(counters.checkpoint().is_moving(), in_pipe, "memory does not");
    assert_eq!((parked.up.phase, parked.down.phase, parked.up.dropped), (Phase::Open, Phase::Open, 0));
    let held = parked.up.held.into_bytes();
    assert!(!held.is_empty(), "{sent} bytes fill what a UNIX socket takes");
    assert!(held.iter().all(|b| *b == 7));
    assert!(counters.up() + held.len() as u64 <= sent);
    drop(upstream);
}

#[test]
fn what_an_earlier_process_has_noted_of_pipes_and_reads_is_not_believed_again() {
    let runtime = current();
    let _inside = runtime.enter();
    set_region(Arc::new(Region::create().expect("memory")));
    let ((_peer, near), (_upstream, to)) = (far::pair(What::Unix, false), far::pair(What::Unix, false));
    let (counters, relay) = (Counters::default(), Relay::new(near, to, None));
    let checkpoint = counters.checkpoint();
    checkpoint.names(SavedId(1, 2), 0, &Names::default());
    checkpoint.stage(&SavedStage::Waiting { peer: 1, peer_unix: true }, 0, &Facts::default());
    let slot = u32::try_from(checkpoint.number() - 1).expect("a slot");
    let noted = || {
        let saved = region().expect("it is set").read(slot).expect("it is whole");
        (saved.intents.map(|intent| intent.pipe), saved.hears)
    };
    for n in [0, 1] {
        checkpoint.notes(n).in_pipe(70 + n as u64);
        checkpoint.notes(n).heard();
        checkpoint.notes(n).hears(false);
    }
    assert_eq!(noted(), ([70, 71], [true, true]), "a reset that was heard is not forgotten by a later read");
    relay.note(&counters);
    assert_eq!(noted(), ([0, 0], [false, false]));
}

#[test]
fn a_peer_that_vanishes_while_the_child_takes_nothing_is_noticed() {
    for gear in [Some(Gear::Small), None] {
        let (outcome, after, _) = timed(What::Tcp, What::Pipes, None, gear, |peer, child| {
            fcntl(child.reading.as_ref().expect("open"), FcntlArg::F_SETPIPE_SZ(4096)).expect("one page");
            fill(peer.writing.as_ref().expect("open"));
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            let fd = peer.writing.take().expect("open");
            let _ = nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::Linger, &linger);
            peer.reading = None;
        });
        assert!(matches!(outcome, RelayOutcome::Reset { by: Side::Peer, .. }), "{gear:?}: {outcome:?}");
        assert!((10..12).contains(&after.as_secs()), "{gear:?}: {after:?}");
    }
}
