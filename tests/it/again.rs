//! Calls that are made again, or not yet: lost ones, those whose server starts late, and what dom0 has refused.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    qrexec::uptime,
    support::{Activation, FakeQrexec, Pace, eventually, exchange, fake_qrexec::What},
};

#[test]
fn a_call_that_dom0_never_answers_is_made_again_once_later_calls_were_answered() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.LosesOne").start().ready();
    let mut lost = service.connect(0);
    lost.write_all(b"sent before ").expect("accepted");
    fake.wait_for_started(1);
    let mut others = 0;
    eventually("the lost call is noticed", || {
        exchange(&mut service.connect(0), others, 1_000, Pace::BULK);
        others += 1;
        service.process.stderr.so_far().iter().any(|line| line.contains("ended, and called again"))
    });
    lost.write_all(b"and after").expect("connected");
    lost.half_close();
    assert_eq!(lost.read_to_end(), b"sent before and after");
    assert_eq!(fake.started() as u64, others + 2, "once");
    service.stop();
}

#[test]
fn a_lost_call_is_made_again_by_a_process_that_saw_no_later_call() {
    let fake = FakeQrexec::new();
    let mut service = Activation::calling(&fake).tcp("work test.LosesOne").start().ready();
    let mut lost = service.connect(0);
    lost.write_all(b"sent before ").expect("accepted");
    fake.wait_for_started(1);
    let (mut prompt, mut others) = (0, 0);
    while prompt < 2 {
        let began = Instant::now();
        exchange(&mut service.connect(0), others, 1_000, Pace::BULK);
        // As the service measures it, the answer took less than that.
        prompt += u32::from(began.elapsed() < Duration::from_millis(500));
        others += 1;
    }
    service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    service.process.stderr.wait_for("ended, and called again");
    lost.half_close();
    assert_eq!(lost.read_to_end(), b"sent before ");
    assert_eq!(fake.started() as u64, others + 2, "once");
    service.stop();
}

#[test]
fn a_call_that_is_lost_twice_is_made_again_once() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.Loses").start().ready();
    let unanswered = |n: usize| {
        let lines = || std::fs::read_to_string(fake.dir().join("losing")).unwrap_or_default().lines().count();
        eventually(&format!("{n} calls were never answered"), || lines() == n);
    };
    // Two later calls that are answered at once make the call a lost one.
    let overtake = |others: &mut u64| {
        let mut prompt = 0;
        while prompt < 2 {
            let began = Instant::now();
            exchange(&mut service.connect(0), *others, 1_000, Pace::BULK);
            prompt += u32::from(began.elapsed() < Duration::from_millis(500));
            *others += 1;
        }
    };
    let (lost, mut others) = (service.connect(0), 0);
    unanswered(1);
    overtake(&mut others);
    service.process.stderr.wait_for("ended, and called again");
    unanswered(2);
    overtake(&mut others);
    let second = uptime();
    eventually("a further call would have been made", || uptime() > second + Duration::from_millis(2_500));
    assert_eq!(service.process.stderr.count("called again"), 1);
    assert_eq!(fake.started() as u64, others + 2, "once");
    lost.reset();
    fake.wait_for_ended(fake.started());
    service.stop();
}

#[test]
fn a_server_that_listens_a_little_after_its_qube_has_started_is_reached() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.Starts+2100").start().ready();
    let mut peer = service.connect(0);
    peer.write_all(b"sent before ").expect("accepted");
    service
        .process
        .stderr
        .wait_for("work has just started, and nothing serves test.Starts+2100 there yet; next call in");
    fake.wait_for_started(3); // the second call is refused as well
    std::fs::File::create(fake.dir().join("listening")).expect("ours");
    peer.write_all(b"and after").expect("not reset");
    peer.half_close();
    assert_eq!(peer.read_to_end(), b"sent before and after");
    assert_eq!(service.end().brief(), "eof up 21 down 21 exit 0");
    service.stop();
}

#[test]
fn a_port_that_refuses_in_a_qube_that_runs_is_called_once() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.Broken").start().ready();
    service.connect(0).expect_reset();
    assert_eq!(service.end().brief(), "dial-failed up 0 down 0 exit 125");
    assert_eq!(fake.started(), 1);
    service.stop();
}

#[test]
fn a_restart_does_not_ask_dom0_again_before_the_back_off_is_over() {
    let fake = FakeQrexec::new();
    let mut service = Activation::calling(&fake).tcp("work test.Refuse").with_control().start().ready();
    for refused in 1..=2 {
        let _peer = service.connect(0);
        fake.wait_for_ended(refused);
        service.ends(refused);
    }
    service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    let began = uptime();
    let _peer = service.connect(0);
    eventually("dom0 is asked again", || fake.started() == 3);
    let events = fake.events();
    let refused = events.iter().filter(|event| matches!(event.what, What::End { .. })).nth(1).expect("twice").at;
    let asked = events.iter().filter(|event| matches!(event.what, What::Start { .. })).nth(2).expect("again").at;
    let waited = asked.saturating_sub(refused);
    assert!(waited >= Duration::from_millis(1_900), "closed for two seconds after the second refusal: {waited:?}");
    assert!(began < asked);
    service.stop();
}
