//! Calls through `qrexec-client-vm`: set-up, refusals, prompts, limits, and that no child is left behind.

use std::{
    io::{self, Write},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::support::{
    Activated, Activation, Ended, FakeQrexec, Pace, SERVICE_SEED, Wire, ends, eventually, exchange, fake_qrexec::What,
    receive, send,
};

/// A service with a TCP and a UNIX listener of this name.
fn leading_to(fake: &FakeQrexec, name: &str) -> Activated {
    Activation::calling(fake).tcp(name).unix(name).start().ready()
}

#[test]
fn a_refusal_resets_the_peer_and_tells_the_policy_line() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Refuse+30");
    let rest = service.process.rest();
    let mut peer = service.connect(0);
    peer.write_all(b"a request").expect("connected");
    peer.expect_reset();
    let end = service.end();
    assert_eq!(end.brief(), "refused up 0 down 0 exit 126");
    assert!(end.note.contains("/etc/qubes/policy.d/"), "{end:?}");
    assert!(end.note.ends_with("in dom0: test.Refuse  +30  SOURCE  work  allow"), "{end:?}");
    service.process.stderr.wait_for("Request refused");
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_unix_peer_that_had_asked_something_sees_a_reset_too() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Refuse+30");
    let mut peer = service.connect(1);
    peer.write_all(b"a request").expect("connected");
    peer.expect_reset();
    assert_eq!(service.end().end, "refused");
    service.stop();
}

#[test]
fn a_peer_that_leaves_the_queue_of_those_who_ask_is_not_asked_for() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Gate+open");
    let rest = service.process.rest();
    let asking: Vec<Wire> = (0..5).map(|_| service.connect(0)).collect();
    fake.wait_for_started(5); // four at once, and one more when they have been undecided for two seconds
    let queued: Vec<Wire> = (0..3).map(|i| service.connect(i % 2)).collect();
    service.notifications.wait_for("STATUS", |s| s == "2 listeners, 8 sessions");
    queued.into_iter().for_each(Wire::reset);
    assert!(service.ends(3).iter().all(|e| e.brief() == "reset up 0 down 0"));
    fake.open("open");
    asking.into_iter().for_each(|mut peer| exchange(&mut peer, 1, 1000, Pace::BULK));
    service.ends(8);
    assert_eq!(fake.started(), 5);
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_program_that_cannot_be_run_is_told_from_one_that_is_missing() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("qrexec-client-vm");
    std::fs::write(&program, "no program").expect("a new file");
    let service =
        Activation::qrexec_connect().arg("--qrexec-client").arg(&program).tcp("work test.Echo").start().ready();
    service.connect(0).expect_reset();
    let end = service.end();
    assert!(end.note.contains("Permission denied") && end.note.contains("executable"), "{end:?}");
    service.stop();
}

#[test]
fn what_was_refused_is_not_asked_again_at_once() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Refuse");
    service.connect(0).expect_reset();
    fake.wait_for_ended(1);
    service.connect(0).expect_reset(); // after its turn had come: a second later
    service.connect(0).expect_reset(); // two seconds later
    let at: Vec<Duration> =
        fake.events().iter().filter(|e| matches!(e.what, What::Start { .. })).map(|e| e.at).collect();
    assert_eq!(at.len(), 3);
    assert!(at[1] - at[0] >= Duration::from_millis(980), "{at:?}");
    assert!(at[2] - at[1] >= Duration::from_millis(1980), "{at:?}");
    assert!(service.ends(3).iter().all(|e| e.end == "refused"));
    service.stop();
}

#[test]
fn a_refusal_answers_everybody_who_waits_for_the_same() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Refuse+300");
    let peers: Vec<Wire> = (0..12).map(|i| service.connect(i % 2)).collect();
    for mut peer in peers {
        match peer {
            Wire::Tcp(_) => peer.expect_reset(),
            Wire::Unix(_) => peer.expect_end(),
        }
    }
    assert!(service.ends(12).iter().all(|e| e.end == "refused"), "{:#?}", service.ends(12));
    assert_eq!(fake.started(), 4, "the four that may ask at once");
    service.stop();
}

#[test]
fn each_failure_of_a_call_says_what_it_is() {
    let fake = FakeQrexec::new();
    // before the call is connected: the local agent, and arguments that it does not take
    let service = leading_to(&fake, "work test.LocalFailure");
    service.connect(0).expect_reset();
    let end = service.end();
    assert_eq!(end.brief(), "dial-failed up 0 down 0 exit 1");
    let causes = ["qubes-qrexec-agent.service", "vchan connection timeout"];
    assert!(causes.iter().all(|cause| end.note.contains(cause)), "{end:?}");
    service.process.stderr.wait_for("connect: No such file or directory");
    service.stop();
}

#[test]
fn a_missing_program_is_named() {
    let service = Activation::qrexec_connect()
        .args(["--qrexec-client", "/nonexistent/qrexec-client-vm"])
        .tcp("work test.Echo")
        .start()
        .ready();
    let rest = service.process.rest();
    service.connect(0).expect_reset();
    let end = service.end();
    assert_eq!(end.brief(), "dial-failed up 0 down 0");
    assert!(end.note.contains("start /nonexistent/qrexec-client-vm") && end.note.contains("Qubes"), "{end:?}");
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn exit_codes_of_a_service_are_its_own() {
    let fake = FakeQrexec::new();
    let codes = [0, 3, 124];
    let activation = codes.iter().fold(Activation::calling(&fake), |a, n| a.tcp(&format!("work test.Exit+{n}")));
    let service = activation.tcp("work test.Signal+15").start().ready();
    let rest = service.process.rest();
    for (index, code) in [0, 3, 124, 143].into_iter().enumerate() {
        service.connect(index).expect_end();
        let end = &service.ends(index + 1)[index];
        assert_eq!(end.brief(), format!("eof up 0 down 0 exit {code}"), "{end:?}");
    }
    // none of them was a refusal: nothing is held back
    for index in 0..4 {
        service.connect(index).expect_end();
    }
    assert_eq!(fake.started(), 8);
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_service_that_was_never_there_is_a_failure_and_no_empty_reply() {
    let fake = FakeQrexec::new();
    let names = ["work test.Missing", "work test.Exit+127", "work test.Broken"];
    let activation = names.iter().fold(Activation::calling(&fake), |a, name| a.tcp(name));
    let service = activation.tcp("work test.Die+9").start().ready();
    let rest = service.process.rest();
    for (index, (brief, why)) in [
        ("dial-failed up 0 down 0 exit 127", "work has no service test.Missing"),
        ("dial-failed up 0 down 0 exit 127", "work has no service test.Exit+127"),
        (
            "dial-failed up 0 down 0 exit 125",
            "the other end failed: nothing listens on the port or socket of test.Broken",
        ),
        ("reset up 0 down 0 exit 137", "killed by signal 9"),
    ]
    .into_iter()
    .enumerate()
    {
        service.connect(index).expect_reset();
        let end = &service.ends(index + 1)[index];
        assert_eq!(end.brief(), brief);
        assert!(end.note.contains(why), "{end:?}");
    }
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_call_that_nobody_serves_is_a_failed_dial_however_late_its_exit_code_comes() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.Missing").tcp("work qubes.ConnectTCP+1").start().ready();
    let rest = service.process.rest();
    // the call is connected for a moment, which is seen at one time and not at another
    for round in 0..40 {
        let mut peer = service.connect(round % 2);
        peer.expect_reset();
        let end = &service.ends(round + 1)[round];
        let (code, hint) = [(127, "work has no service test.Missing"), (125, "nothing listens")][round % 2];
        assert_eq!((end.end.as_str(), end.down, end.exit), ("dial-failed", 0, Some(code)), "{end:?}");
        assert!(end.note.contains(hint), "{end:?}");
    }
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_reply_cut_short_by_the_loss_of_the_other_side_ends_in_a_reset() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.Lost+300000").start().ready();
    let rest = service.process.rest();
    let mut peer = service.connect(0);
    receive(&mut peer, SERVICE_SEED, 300_000, Pace::BULK).expect("what had come");
    peer.expect_reset();
    let end = service.end();
    assert_eq!(end.brief(), "reset up 0 down 300000 exit 255");
    assert!(end.note.contains("ended during the session"), "{end:?}");
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_reply_is_kept_when_the_call_is_over_before_anybody_looks() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.Brief+600").start().ready();
    let mut peer = service.connect(0);
    fake.wait_for_started(1);
    service.process.signal(Signal::SIGSTOP);
    fake.wait_for_ended(1);
    service.process.signal(Signal::SIGCONT);
    assert_eq!(peer.read_to_end(), b"ready\n");
    drop(peer);
    assert_eq!(service.end().brief(), "eof up 0 down 6 exit 0");
    service.stop();
}

#[test]
fn a_call_that_is_never_answered_is_ended_when_its_time_is_over() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake)
        .tcp("work test.Never setup_timeout=1")
        .tcp("work test.NeverKill setup_timeout=1")
        .start()
        .ready();
    let rest = service.process.rest();
    let mut peers = [service.connect(0), service.connect(1)];
    peers.iter_mut().for_each(Wire::expect_reset);
    for end in service.ends(2) {
        assert_eq!(end.brief(), "timeout up 0 down 0");
        assert!(end.note.contains("not connected within 1 s") && end.note.contains("ask"), "{end:?}");
    }
    fake.wait_for_ended(1);
    service.process.stderr.wait_for("ignored SIGTERM and was killed");
    service.process.wait_for_rest(&rest);
    assert_eq!((fake.started(), fake.connected()), (2, 0));
    service.stop();
}

#[test]
fn the_call_of_a_peer_that_goes_away_during_set_up_is_ended() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Never");
    let rest = service.process.rest();
    for listener in 0..2 {
        let mut peer = service.connect(listener);
        if listener == 0 {
            peer.write_all(b"unread bytes change nothing").expect("connected");
        }
        fake.wait_for_started(listener + 1);
        peer.reset();
        fake.wait_for_ended(listener + 1);
        assert_eq!(service.ends(listener + 1)[listener].brief(), "reset up 0 down 0");
        service.process.wait_for_rest(&rest);
    }
    service.stop();
}

#[test]
fn a_peer_that_only_half_closes_during_set_up_gets_its_answer() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Gate+open");
    let mut peers = Vec::new();
    for listener in 0..2 {
        let mut peer = service.connect(listener);
        peer.write_all(b"asked early").expect("connected");
        peer.half_close();
        peers.push(peer);
    }
    fake.wait_for_started(2);
    fake.open("open");
    for mut peer in peers {
        assert_eq!(peer.read_to_end(), b"asked early");
    }
    assert!(service.ends(2).iter().all(|e| e.brief() == "eof up 11 down 11 exit 0"));
    service.stop();
}

#[test]
fn a_unix_peer_that_writes_and_closes_during_set_up_loses_nothing() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Gate+open");
    let peer = service.connect(1);
    send(&peer, 1, 100_000, Pace::BULK).expect("the socket holds it");
    drop(peer);
    fake.wait_for_started(1);
    fake.open("open");
    fake.wait_for_ended(1);
    // all of it arrived there; what came back had no taker
    let arrived = |w: &What| matches!(w, What::End { up_bytes: 100_000, .. });
    assert!(fake.count(arrived) == 1 || fake.count(|w| *w == What::Terminated) == 1, "{:?}", fake.events());
    assert_eq!(service.end().up, 100_000);
    service.stop();
}

#[test]
fn nothing_is_read_from_the_peer_before_the_call_is_connected() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Gate+open");
    let peer = service.connect(1);
    peer.set_nonblocking(true);
    let mut sent = 0;
    let refused = loop {
        match (&peer).write(&[7; 4096]) {
            Ok(n) => sent += n,
            Err(e) => break e,
        }
    };
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    fake.wait_for_started(1);
    // the call is looked at again and again meanwhile; let it be, a few times
    let child = fake.events()[0].pid;
    eventually("some time goes by in set-up", || fake.events()[0].at + Duration::from_millis(300) < uptime());
    let again = (&peer).write(&[7; 4096]).expect_err("nobody has read a byte");
    assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
    fake.open("open");
    peer.set_nonblocking(false);
    peer.half_close();
    let mut peer = peer;
    assert_eq!(peer.read_to_end().len(), sent);
    assert_eq!(fake.events().iter().filter(|e| e.pid == child).count(), 3);
    service.stop();
}

/// The clock of [`FakeQrexec::events`].
pub fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").expect("proc(5)");
    Duration::from_secs_f64(text.split(' ').next().and_then(|s| s.parse().ok()).expect("proc(5)"))
}

#[test]
fn services_that_speak_first_or_second_are_served_alike() {
    let fake = FakeQrexec::new();
    let service =
        Activation::calling(&fake).tcp("work test.SpeaksFirst").unix("work test.SpeaksSecond").start().ready();
    let mut first = service.connect(0);
    first.expect(b"ready\n");
    exchange(&mut first, 1, 5_000, Pace::CRUMBS);
    let mut second = service.connect(1);
    second.write_all(b"hello\n").expect("connected");
    second.expect(b"heard: hello\n");
    exchange(&mut second, 2, 5_000, Pace::CRUMBS);
    assert!(service.ends(2).iter().all(|e| e.end == "eof" && e.exit == Some(0)));
    service.stop();
}

#[test]
fn the_call_of_a_peer_that_is_reset_is_ended() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.Echo").tcp("work test.Stall").start().ready();
    let rest = service.process.rest();
    let mut peer = service.connect(0);
    peer.write_all(b"12345").expect("connected");
    peer.expect(b"12345");
    peer.reset();
    fake.wait_for_ended(1);
    let end = service.end();
    assert_eq!((end.end.as_str(), end.up, end.down), ("reset", 5, 5));
    service.process.wait_for_rest(&rest);

    // one whose service neither reads nor writes
    let mut peer = service.connect(1);
    peer.write_all(&[1; 10_000]).expect("connected");
    fake.wait_for_connected(2);
    peer.reset();
    fake.wait_for_ended(2);
    assert_eq!(service.ends(2)[1].end, "reset");
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_flood_on_stderr_neither_stops_the_call_nor_fills_the_log() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.StderrFlood+300000");
    let mut peer = service.connect(0);
    exchange(&mut peer, 1, 500_000, Pace::BULK);
    assert_eq!(service.end().brief(), "eof up 500000 down 500000 exit 0");
    let lines = service.process.stderr.so_far();
    let told = lines.iter().filter(|l| l.contains("flood ")).count();
    assert_eq!(told, 20);
    let more = lines.iter().find(|l| l.contains("more bytes")).expect("the rest is counted");
    assert!(more.contains(&format!("{} more bytes", 300_000 - 20 * 64)), "{more}");
    service.stop();
}

#[test]
fn what_a_call_says_on_stderr_is_escaped_and_bears_its_session() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.StderrEscapes");
    exchange(&mut service.connect(0), 1, 100, Pace::BULK);
    let id = service.end().id;
    let line = service.process.stderr.wait_for("red");
    assert_eq!(line, format!("warning: session {id}: \\x1b[31mred\\x1b[0m and \\xff\\x00 end"));
    service.stop();
}

#[test]
fn eight_connections_to_an_ask_policy_make_at_most_five_prompts() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Gate+yes");
    let peers: Vec<Wire> = (0..8).map(|i| service.connect(i % 2)).collect();
    fake.wait_for_started(5);
    let fifth = fake.events()[4].at;
    // so long that the fifth is undecided too
    eventually("the fifth prompt is old", || uptime() > fifth + Duration::from_millis(2600));
    assert_eq!(fake.started(), 5);
    let line =
        service.process.stderr.wait_for("5 undecided calls of test.Gate+yes to work: unanswered prompts in dom0");
    assert!(line.ends_with("or a qube that starts slowly; further connections wait until one is decided"), "{line}");
    assert_eq!(service.process.stderr.count("undecided calls of "), 1, "once for the gate");
    fake.open("yes");
    for (seed, mut peer) in peers.into_iter().enumerate() {
        exchange(&mut peer, seed as u64, 1_000, Pace::CRUMBS);
    }
    assert_eq!(service.ends(8).iter().filter(|e| e.brief() == "eof up 1000 down 1000 exit 0").count(), 8);
    service.stop();
}

#[test]
fn max_setups_is_how_many_calls_of_a_service_may_wait_for_dom0_at_once() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Gate+yes max_setups=7");
    let peers: Vec<Wire> = (0..7).map(|i| service.connect(i % 2)).collect();
    fake.wait_for_started(7);
    fake.open("yes");
    for (seed, mut peer) in peers.into_iter().enumerate() {
        exchange(&mut peer, seed as u64, 1_000, Pace::CRUMBS);
    }
    service.stop();
}

#[test]
fn connections_that_wait_for_dom0_are_told_once_and_shown_with_what_they_wait_behind() {
    let fake = FakeQrexec::new();
    let mut service = Activation::calling(&fake)
        .tcp("work test.Gate+yes setup_timeout=300")
        .tcp("work test.Echo")
        .with_control()
        .start()
        .ready();
    let peers: Vec<Wire> = (0..12).map(|_| service.connect(0)).collect();
    let line = service.process.stderr.wait_for("for dom0 to decide");
    assert!(line.contains("12 connections wait for dom0 to decide about test.Gate+yes in work"), "{line}");
    assert!(line.contains("answer the prompt there, or wait until work has started; given up in 29"), "{line}");
    let asking = service.asking();
    let waits = |what: &str| asking.sessions().iter().filter(|session| session["waits_for"] == what).count();
    eventually("five calls are undecided", || (waits("dom0"), waits("turn")) == (5, 7));
    assert!(asking.sessions().iter().all(|session| session["behind"] == 5), "{:?}", asking.sessions());
    let table = asking.ok(&["sessions"]).stdout;
    assert_eq!(table.matches("waiting for dom0").count(), 12, "{table}");
    let turn = asking.sessions().into_iter().find(|session| session["waits_for"] == "turn").expect("seven wait");
    let details = asking.ok(&["sessions", turn["id"].as_str().expect("text")]).stdout;
    assert!(details.contains("waits for: dom0's decision, behind 5 undecided calls\n"), "{details}");
    let report = asking.ok(&["status", "--json"]).json();
    assert_eq!(
        (&report["listeners"][0]["undecided"], &report["listeners"][0]["state"]),
        (&12.into(), &"serving".into())
    );
    assert_eq!(report["listeners"][1]["undecided"], 0);
    let status = asking.ok(&["status"]).stdout;
    assert_eq!(status.matches("waiting for dom0").count(), 1, "{status}");
    assert!(status.contains("12 connections wait for dom0: answer the prompt there"), "{status}");
    let metrics = asking.ok(&["metrics"]).stdout;
    let mut gauges = metrics.lines().filter(|line| line.contains("sessions_undecided{"));
    assert!(gauges.any(|gauge| gauge.ends_with(" 12")), "{metrics}");
    assert_eq!(service.process.stderr.count("for dom0 to decide"), 1, "once for the gate, not for each call");
    // what an earlier process has told is not told again
    service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    let asking = service.asking();
    eventually("all are there again", || asking.sessions().len() == 12);
    fake.open("yes");
    for (seed, mut peer) in peers.into_iter().enumerate() {
        exchange(&mut peer, seed as u64, 1_000, Pace::CRUMBS);
    }
    assert_eq!(service.process.stderr.count("for dom0 to decide"), 0, "once, by the first process");
    assert!(!asking.ok(&["status"]).stdout.contains("waiting for dom0"));
    service.stop();
}

#[test]
fn two_hundred_sessions_over_thirty_two_calls_lose_nothing() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Echo");
    let rest = service.process.rest();
    let mut holding: Vec<Wire> = (0..32).map(|i| service.connect(i % 2)).collect();
    for peer in &mut holding {
        peer.write_all(b"x").expect("connected");
        peer.expect(b"x");
    }
    thread::scope(|scope| {
        for seed in 0..168 {
            let service = &service;
            scope.spawn(move || exchange(&mut service.connect((seed % 2) as usize), seed, 60_000, Pace::CRUMBS));
        }
        let line = service.process.stderr.wait_for("the limit of calls into work (max_calls=");
        assert!(line.contains("1 connection waits until a call ends"), "{line}");
        drop(holding);
    });
    let ends = service.ends(200);
    let whole = |end: &&Ended| end.brief() == "eof up 60000 down 60000 exit 0";
    let held = |end: &&Ended| (end.up, end.down) == (1, 1);
    assert_eq!((ends.iter().filter(whole).count(), ends.iter().filter(held).count()), (168, 32), "{ends:#?}");
    assert_eq!(fake.most_at_once(), 32);
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn the_limit_of_calls_is_shared_by_all_listeners_of_a_qube_and_no_others() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake)
        .args(["--calls-per-qube", "2"])
        .tcp("work test.SpeaksFirst")
        .unix("work test.Echo")
        .tcp("other test.SpeaksFirst")
        .start()
        .ready();
    let mut first = service.connect(0);
    first.expect(b"ready\n");
    let mut second = service.connect(1);
    second.write_all(b"x").expect("connected");
    second.expect(b"x");
    let mut third = service.connect(0);
    let line = service.process.stderr.wait_for("the limit of calls into work (max_calls=");
    assert!(line.contains("1 connection waits until a call ends"), "{line}");
    let mut other = service.connect(2);
    other.expect(b"ready\n");
    assert_eq!(fake.started(), 3);
    drop(second);
    third.expect(b"ready\n");
    service.stop();
}

#[test]
fn the_smallest_max_calls_of_a_qube_holds_and_a_reload_changes_it_without_ending_a_call() {
    let fake = FakeQrexec::new();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("qrexec-connect.toml");
    let write = |one: u32, two: u32| {
        let forward = |label: &str, max_calls: u32| {
            format!("[[forward]]\nlabel = \"{label}\"\nqrexec = \"work test.Echo\"\nmax_calls = {max_calls}\n")
        };
        std::fs::write(&file, forward("one", one) + &forward("two", two)).expect("ours");
    };
    write(3, 1);
    let mut service = Activation::calling(&fake).args(["--config"]).arg(&file).tcp("one").tcp("two").start().ready();
    let call = |service: &Activated, index: usize| {
        let mut wire = service.connect(index);
        wire.write_all(b"x").expect("the kernel takes it");
        wire
    };
    let reload = |service: &Activated, n: usize| {
        service.process.signal(Signal::SIGHUP);
        service.process.stderr.wait_for_nth("configuration reloaded", n);
    };
    let mut first = call(&service, 0);
    first.expect(b"x");
    let mut second = call(&service, 0);
    service.process.stderr.wait_for("the limit of calls into work (max_calls=1) is reached");
    assert_eq!(fake.started(), 1, "the listener of 3 has the limit of the other");
    // higher: who waits gets in
    write(3, 3);
    reload(&service, 1);
    second.expect(b"x");
    let mut third = call(&service, 1);
    third.expect(b"x");
    // lower: nobody is cut, and two of three calls have to end
    write(1, 2);
    reload(&service, 2);
    for wire in [&mut first, &mut second, &mut third] {
        wire.write_all(b"y").expect("it goes on");
        wire.expect(b"y");
    }
    let mut fourth = call(&service, 1);
    drop(first);
    service.ends(1);
    drop(second);
    service.ends(2);
    assert_eq!(fake.started(), 3, "one call is in use, and one may be");
    // the limit of the configuration holds in the next process, too
    service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    third.write_all(b"z").expect("it goes on");
    third.expect(b"z");
    assert_eq!(fake.started(), 3);
    drop(third);
    fourth.expect(b"x");
    service.stop();
}

#[test]
fn connections_that_wait_for_an_answer_leave_the_calls_of_the_qube_to_its_other_services() {
    let fake = FakeQrexec::new();
    let service =
        Activation::calling(&fake).tcp("work test.Gate+yes").tcp("work test.Echo").with_control().start().ready();
    let waiting: Vec<Wire> = (0..40).map(|_| service.connect(0)).collect();
    fake.wait_for_started(5); // as many prompts as there may be
    exchange(&mut service.connect(1), 1, 10_000, Pace::BULK);
    assert_eq!(service.end().brief(), "eof up 10000 down 10000 exit 0");
    assert_eq!(fake.started(), 6);
    let asking = service.asking();
    eventually("all are accepted", || asking.ok(&["status", "--json"]).json()["listeners"][0]["sessions"] == 40);
    drop(waiting);
    service.stop();
}

#[test]
fn the_wait_for_a_call_is_shown_and_does_not_count_into_the_setup_timeout_even_over_a_restart() {
    let fake = FakeQrexec::new();
    let mut service = Activation::calling(&fake)
        .args(["--calls-per-qube", "1"])
        .tcp("work test.SpeaksFirst setup_timeout=1")
        .with_control()
        .start()
        .ready();
    let mut first = service.connect(0);
    first.expect(b"ready\n");
    let began = uptime();
    let mut second = service.connect(0);
    let asking = service.asking();
    let listener = || asking.ok(&["status", "--json"]).json()["listeners"][0].clone();
    let queued = || listener()["queued"] == 1 && listener()["sessions"] == 2;
    eventually("one waits for the call of the other", queued);
    assert!(asking.ok(&["metrics"]).stdout.contains("sessions_queued{"));
    let waits = asking.sessions().into_iter().find(|session| session["waits_for"] == "call").expect("one waits");
    let details = asking.ok(&["sessions", waits["id"].as_str().expect("text")]).stdout;
    assert!(details.contains("as many as it may have are in use (max_calls)\n"), "{details}");
    eventually("the timeout would have passed", || uptime() > began + Duration::from_millis(1500));
    assert!(queued(), "it waits still");
    service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    eventually("it waits in the next process, too", queued);
    drop(first);
    second.expect(b"ready\n");
    assert_eq!(fake.started(), 2);
    service.stop();
}

#[test]
fn a_call_whose_output_nobody_reads_waits_and_is_ended_with_its_peer() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Source+40000000");
    let rest = service.process.rest();
    for listener in 0..2 {
        let mut peer = service.connect(listener);
        receive(&mut peer, SERVICE_SEED, 100_000, Pace::BULK).expect("the beginning");
        drop(peer); // with bytes unread
        fake.wait_for_ended(listener + 1);
    }
    assert!(service.ends(2).iter().all(|e| e.end == "reset" && e.down >= 100_000));
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn every_session_has_one_start_and_one_end_in_the_log() {
    let fake = FakeQrexec::new();
    let service = leading_to(&fake, "work test.Echo");
    for round in 0..30 {
        exchange(&mut service.connect(round % 2), round as u64, 100, Pace::BULK);
    }
    service.ends(30);
    let process = service.stop();
    let lines = process.stderr.to_the_end();
    let mut started = support::starts(&lines);
    let mut ended: Vec<String> = ends(&lines).into_iter().map(|e| e.id).collect();
    started.sort();
    ended.sort();
    assert_eq!(started, ended);
    ended.dedup();
    assert_eq!(ended.len(), 30);
}
