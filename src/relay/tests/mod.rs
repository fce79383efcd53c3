//! Schedules: two far sides that write, pause, stall, half-close, vanish and reset as they like, and a relay between
//! them that is parked and taken up again at any point. Every byte, the ending and the counters are checked.

mod far;
mod traps;

use std::{sync::Arc, task::Poll, time::Duration};

use proptest::prelude::*;

use super::{Counters, Interrupt, Relay, RelayOutcome, Side, Why, direction::Gear};
use far::{DEADLINE, Far, ReadEnd, Report, Script, Step, Then, What};

/// When the relay is parked and taken up again.
#[derive(Clone, Copy, Debug)]
enum Park {
    After(Duration),
    AtBytes(u64),
}

#[derive(Clone, Debug)]
struct Case {
    peer: Script,
    upstream: Script,
    parks: Vec<Park>,
    narrow: bool,
    threads: bool,
    /// `None`: it shifts as it likes.
    gear: Option<Gear>,
    /// `buffer_size`
    buffer: Option<u32>,
}

struct Ended {
    outcome: RelayOutcome,
    counters: Arc<Counters>,
    peer: Report,
    upstream: Report,
}

fn runtime(threads: bool) -> tokio::runtime::Runtime {
    let mut builder = if threads {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.worker_threads(2).enable_all().build().expect("a runtime")
}

/// Runs a relay to its end, parking it on the way.
async fn drive(
    relay: Relay,
    counters: &Counters,
    parks: &[Park],
    gear: Option<Gear>,
    buffer: Option<u32>,
) -> (Relay, RelayOutcome) {
    let set = |mut relay: Relay| {
        buffer.into_iter().for_each(|bytes| relay.limit_buffer(bytes));
        if let Some(gear) = gear { relay.force(gear) } else { relay }
    };
    let mut relay = set(relay);
    let mut parks = parks.iter();
    loop {
        let interrupt = Interrupt::default();
        let next = parks.next().copied();
        let ask = async {
            match next {
                None => std::future::pending().await,
                Some(Park::After(time)) => tokio::time::sleep(time).await,
                Some(Park::AtBytes(n)) => {
                    std::future::poll_fn(|_| {
                        if counters.up() + counters.down() >= n { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
            }
            interrupt.request(Why::Park);
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = relay.run(counters, &interrupt) => outcome,
            () = ask => unreachable!("it waits for ever"),
        };
        match outcome {
            RelayOutcome::Interrupted(Why::Park) => {
                relay = set(Relay::resume(relay.park(counters), None).expect("taken up"));
            }
            outcome => return (relay, outcome),
        }
    }
}

/// Closes both ends as a session does: what was delivered first, then the reset.
async fn close(relay: Relay, outcome: &RelayOutcome) {
    let RelayOutcome::Reset { by, .. } = outcome else { return };
    for _ in 0..500 {
        if relay.undelivered(by.other()) == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (peer, upstream) = relay.into_ends();
    if *by == Side::Peer { upstream.reset() } else { peer.reset() }
}

fn run(peer: What, upstream: What, case: &Case) -> Ended {
    let runtime = runtime(case.threads);
    let _inside = runtime.enter();
    let (far_peer, peer) = far::pair(peer, case.narrow);
    let (far_upstream, upstream) = far::pair(upstream, case.narrow);
    let go = |far: Far, script: &Script| {
        let script = script.clone();
        std::thread::spawn(move || far.run(&script))
    };
    let (far_peer, far_upstream) = (go(far_peer, &case.peer), go(far_upstream, &case.upstream));
    let counters = Arc::new(Counters::default());
    let (relay, count, parks, gear) =
        (Relay::new(peer, upstream, None), counters.clone(), case.parks.clone(), case.gear);
    let buffer = case.buffer;
    let task = runtime.spawn(async move {
        let (relay, outcome) = drive(relay, &count, &parks, gear, buffer).await;
        close(relay, &outcome).await;
        outcome
    });
    let outcome = runtime.block_on(async { tokio::time::timeout(DEADLINE, task).await });
    let outcome = outcome.unwrap_or_else(|_| panic!("the relay hangs at {counters:?}: {case:#?}")).expect("no panic");
    let (peer, upstream) = (far_peer.join().expect("no panic"), far_upstream.join().expect("no panic"));
    Ended { outcome, counters, peer, upstream }
}

/// Asserts what every schedule must keep.
fn check(peer: What, upstream: What, case: &Case) -> Result<(), TestCaseError> {
    let Ended { outcome, counters, peer: p, upstream: u } = run(peer, upstream, case);
    let dropped = if let RelayOutcome::Eof { dropped } = outcome { dropped } else { 0 };
    prop_assert!(p.correct && u.correct, "wrong bytes: {p:?} {u:?}");
    prop_assert!(p.end != ReadEnd::Hung && u.end != ReadEnd::Hung, "a far side hangs: {outcome:?} {p:?} {u:?}");
    prop_assert!(
        u.received <= counters.up() && counters.up() + dropped <= p.sent,
        "{counters:?} {outcome:?} {p:?} {u:?}"
    );
    prop_assert!(p.received <= counters.down() && counters.down() <= u.sent, "{counters:?} {p:?} {u:?}");

    if case.peer.polite() && case.upstream.polite() {
        prop_assert!(matches!(outcome, RelayOutcome::Eof { dropped: 0 }), "{outcome:?}");
        for (from, to, count, script) in
            [(&p, &u, counters.up(), &case.peer), (&u, &p, counters.down(), &case.upstream)]
        {
            prop_assert_eq!(from.sent, script.to_write());
            prop_assert_eq!(to.received, from.sent);
            prop_assert_eq!(count, from.sent);
            prop_assert_eq!(to.end, ReadEnd::Eof);
        }
    }
    if case.peer.then == Then::Reset && peer == What::Tcp && case.upstream.polite() {
        prop_assert!(matches!(outcome, RelayOutcome::Reset { by: Side::Peer, .. }), "{outcome:?}");
        // What arrived before the reset is delivered, and never looks complete.
        prop_assert!(upstream != What::Tcp || matches!(u.end, ReadEnd::Error(_)), "{u:?}");
        if upstream != What::Tcp {
            prop_assert_eq!(u.received, counters.up());
        }
    }
    if case.upstream.then == Then::Reset && upstream == What::Tcp && case.peer.polite() {
        // Where the peer had half-closed and got all, it has nothing to learn from the reset.
        prop_assert!(matches!(outcome, RelayOutcome::Reset { by: Side::Upstream, .. }), "{outcome:?}");
        prop_assert!(peer != What::Tcp || matches!(p.end, ReadEnd::Error(_)), "{p:?}");
    }
    if case.peer.then == Then::Close && peer == What::Unix && case.upstream.polite() {
        // All that a UNIX peer wrote before it closed waits in the kernel, and is delivered.
        prop_assert_eq!(u.received, p.sent);
        prop_assert_eq!(counters.up(), p.sent);
    }
    if upstream == What::Pipes && case.upstream.deaf && case.upstream.then == Then::HalfClose && case.peer.polite() {
        // A child that stops listening still says all it has to say, and what it did not take is accounted for.
        prop_assert_eq!(p.received, u.sent);
        prop_assert_eq!(p.end, ReadEnd::Eof);
        prop_assert!(matches!(outcome, RelayOutcome::Eof { .. }), "{outcome:?}");
        prop_assert_eq!(counters.up() + dropped, p.sent);
    }
    Ok(())
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 1usize..300, 2 => 300usize..20_000, 2 => 20_000usize..300_000, 1 => 300_000usize..2_500_000]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => size().prop_map(Step::Move),
        1 => (0u64..6).prop_map(|ms| Step::Pause(Duration::from_millis(ms))),
    ];
    prop::collection::vec(step, 0..8)
}

fn script(pipes: bool) -> impl Strategy<Value = Script> {
    let then = prop_oneof![6 => Just(Then::HalfClose), 1 => Just(Then::Close), 2 => Just(Then::Reset)];
    (steps(), then, steps(), prop::bool::weighted(0.3)).prop_map(move |(writes, then, reads, deaf)| Script {
        writes,
        then,
        reads,
        deaf: deaf && pipes,
    })
}

fn case(upstream: What) -> impl Strategy<Value = Case> {
    let park = prop_oneof![
        (0u64..12).prop_map(|ms| Park::After(Duration::from_millis(ms))),
        (0u64..3_000_000).prop_map(Park::AtBytes),
    ];
    let parks = prop::collection::vec(park, 0..4);
    let pipes = upstream == What::Pipes;
    let gear = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Gear::Small)),
        1 => Just(Some(Gear::Copy)),
        2 => Just((!pipes).then_some(Gear::Splice)),
    ];
    let buffer = prop::option::weighted(0.2, 1u32..100_000);
    (script(false), script(pipes), parks, any::<bool>(), any::<bool>(), gear, buffer).prop_map(
        |(peer, upstream, parks, narrow, threads, gear, buffer)| Case {
            peer,
            upstream,
            parks,
            narrow,
            threads,
            gear,
            buffer,
        },
    )
}

/// The number of schedules for each pair of ends; more with PROPTEST_CASES.
fn schedules(peer: What, upstream: What) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        max_shrink_time: 15_000,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&case(upstream), |case| check(peer, upstream, &case))
        .unwrap_or_else(|e| panic!("{peer:?}-{upstream:?}: {e}"));
}

#[test]
fn tcp_to_tcp_keeps_every_byte_and_ending() {
    schedules(What::Tcp, What::Tcp);
}

#[test]
fn tcp_to_unix_keeps_every_byte_and_ending() {
    schedules(What::Tcp, What::Unix);
}

#[test]
fn unix_to_tcp_keeps_every_byte_and_ending() {
    schedules(What::Unix, What::Tcp);
}

#[test]
fn unix_to_unix_keeps_every_byte_and_ending() {
    schedules(What::Unix, What::Unix);
}

#[test]
fn tcp_to_a_child_keeps_every_byte_and_ending() {
    schedules(What::Tcp, What::Pipes);
}

#[test]
fn unix_to_a_child_keeps_every_byte_and_ending() {
    schedules(What::Unix, What::Pipes);
}
