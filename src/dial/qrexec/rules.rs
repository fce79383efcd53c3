//! The rules of a gate, without a task or a clock: [`super::gate`] asks them.
//!
//! # Theory
//! A call is in **set-up** until dom0 has decided. It is **quick** for [`UNDECIDED`], and **undecided** after that: it waits
//! for a person or for a qube's start. It is **passed** when [`OVERTAKEN`] calls that began later were allowed while they
//! were quick: whatever it waits for, the others do not wait for it. `max` is `max_setups`, 4 by default, so that
//! `max + 1` is five.
//!
//! | state | it holds when | a call enters |
//! |---|---|---|
//! | open | what is undecided is passed, and the last answer was no refusal | while fewer than `max` are quick, and at most `max` in set-up |
//! | asking | an undecided call is not passed, or the back-off of a refusal is over | while none is quick |
//! | closed | the back-off of a refusal is not over | never |
//! | full | `max + 1` are undecided, closed or not | never |
//!
//! | event | what changes |
//! |---|---|
//! | begin | one more is quick |
//! | [`UNDECIDED`] passes | a quick call is undecided: open becomes asking, asking may become full |
//! | allowed | the call leaves; the gate is no longer closed; earlier calls may be passed |
//! | refused | the call leaves; the gate is closed for 1 s, doubling to 30 s while nothing is allowed; whoever waits is refused with it |
//! | ended without an answer | the call leaves; nothing else changes |
//! | restart | calls keep their begin times and what has passed them, a back-off goes on |
//!
//! A connection that arrives when the gate is full of calls older than [`OLD`] is turned away after [`TURN_AWAY`], unless
//! one of those leaves meanwhile. Connections that arrived earlier go on waiting.
//!
//! qrexec-daemon loses about one call in a thousand under bursts: nobody ever answers it. A call is **lost** when
//! [`OVERTAKEN`] calls that began later were allowed within [`PROMPT`] each, and [`LOST_AFTER`] has passed since the last of
//! them. It may be dialled again, [`REDIALS`] times a minute for each gate.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A set-up that takes longer waits for a person or a qube's start.
pub const UNDECIDED: Duration = Duration::from_secs(2);
/// How long the gate stays closed after the first refusal in a row, and at most.
pub(super) const CLOSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How old the calls of a full gate are before newcomers are turned away.
const OLD: Duration = Duration::from_secs(60);
/// How long a newcomer waits at a gate that is full of old calls.
const TURN_AWAY: Duration = Duration::from_secs(10);
/// A call allowed within this time was not decided by a person.
const PROMPT: Duration = Duration::from_millis(500);
/// How many such calls must have overtaken one that is lost.
const OVERTAKEN: u32 = 2;
/// How long a call that was overtaken may still be answered.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// Calls dialled again, in [`REDIALS_IN`].
const REDIALS: usize = 4;
const REDIALS_IN: Duration = Duration::from_secs(60);

/// A call in set-up.
#[derive(Clone, Debug)]
struct InSetUp {
    number: u64,
    began: Instant,
    passed: Passed,
    /// When `passed.promptly` became [`OVERTAKEN`].
    since: Option<Instant>,
}

/// The calls that have passed a call in set-up, for the next process as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Calls that began later and were allowed while they were quick.
    calls: u32,
    /// Those of them that were allowed promptly.
    promptly: u32,
    /// How long ago that became [`OVERTAKEN`], when the call was handed over.
    overtaken_ms: Option<u64>,
}

impl InSetUp {
    fn is_undecided(&self, now: Instant) -> bool {
        self.began + UNDECIDED <= now
    }
}

/// What a gate says to a connection that wants to begin a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Enter,
    /// Not yet; to be asked again when something changes, and at this time.
    Wait(Option<Instant>),
    /// The gate is full of this many old calls.
    TurnedAway(usize),
}

/// The state of a gate.
#[derive(Clone, Debug, Default)]
pub(super) struct GateState {
    calls: Vec<InSetUp>,
    /// Number of the call that began last.
    last: u64,
    /// Refusals since the last call that was allowed.
    in_row: u32,
    closed_until: Option<Instant>,
    /// Refusals so far.
    refusals: u64,
    /// When calls were dialled again.
    redials: VecDeque<Instant>,
}

impl GateState {
    /// Refusals so far.
    pub(super) fn refusals(&self) -> u64 {
        self.refusals
    }

    /// How many calls are undecided.
    pub(super) fn undecided(&self, now: Instant) -> usize {
        self.calls.iter().filter(|call| call.is_undecided(now)).count()
    }

    /// How many calls are in set-up.
    pub(super) fn in_set_up(&self) -> usize {
        self.calls.len()
    }

    /// How many calls are undecided, where that makes the gate full.
    pub(super) fn full(&self, max: usize, now: Instant) -> Option<usize> {
        Some(self.undecided(now)).filter(|undecided| *undecided > max)
    }

    /// Whether a connection that arrived at this time may begin a call.
    pub(super) fn admission(&self, max: usize, arrived: Instant, now: Instant) -> Admission {
        let quick = self.calls.iter().filter(|call| !call.is_undecided(now));
        let closed = self.closed_until.filter(|until| *until > now);
        if let Some(undecided) = self.full(max, now) {
            let mut old = self.calls.iter().filter(|call| call.began + OLD <= arrived);
            return match arrived + TURN_AWAY {
                _ if old.by_ref().count() <= max => Admission::Wait(closed),
                due if due <= now => Admission::TurnedAway(undecided),
                due => Admission::Wait(Some(due)),
            };
        }
        // The next quick call that becomes undecided changes the state.
        let next = quick.clone().map(|call| call.began + UNDECIDED).min();
        let asks = |call: &InSetUp| call.is_undecided(now) && call.passed.calls < OVERTAKEN;
        let asking = self.in_row > 0 || self.calls.iter().any(asks);
        let most = if asking { 1 } else { max };
        match closed {
            Some(opens) => Admission::Wait(Some(opens)),
            None if quick.count() < most && self.calls.len() <= max => Admission::Enter,
            None => Admission::Wait(next),
        }
    }

    /// A call begins; its number.
    pub(super) fn begin(&mut self, now: Instant) -> u64 {
        self.resume(Duration::ZERO, Passed::default(), now)
    }

    /// A call began this long ago, in an earlier process, and these have passed it since; its number.
    pub(super) fn resume(&mut self, taken: Duration, passed: Passed, now: Instant) -> u64 {
        self.last += 1;
        let ago = |time| now.checked_sub(time).unwrap_or(now);
        let since = passed.overtaken_ms.map(|ms| ago(Duration::from_millis(ms)));
        self.calls.push(InSetUp { number: self.last, began: ago(taken), passed, since });
        self.last
    }

    /// What has passed a call, for the next process.
    pub(super) fn passed(&self, number: u64, now: Instant) -> Passed {
        let Some(call) = self.calls.iter().find(|call| call.number == number) else { return Passed::default() };
        let ms = |since| u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
        Passed { overtaken_ms: call.since.map(ms), ..call.passed }
    }

    /// A call is in set-up no longer; when it began.
    pub(super) fn leave(&mut self, number: u64) -> Option<Instant> {
        let at = self.calls.iter().position(|call| call.number == number)?;
        Some(self.calls.swap_remove(at).began)
    }

    /// A call was allowed.
    pub(super) fn allowed(&mut self, number: u64, now: Instant) {
        (self.in_row, self.closed_until) = (0, None);
        let Some(began) = self.leave(number).filter(|began| now < *began + UNDECIDED) else { return };
        let prompt = now <= began + PROMPT;
        for call in self.calls.iter_mut().filter(|call| call.began < began) {
            call.passed.calls += 1;
            call.passed.promptly += u32::from(prompt);
            if prompt && call.passed.promptly == OVERTAKEN {
                call.since = Some(now);
            }
        }
    }

    /// A call was refused.
    pub(super) fn refused(&mut self, number: u64, now: Instant) {
        self.leave(number);
        let closed = CLOSED.0 * 2u32.saturating_pow(self.in_row).min(64);
        self.in_row = self.in_row.saturating_add(1);
        self.refusals += 1;
        self.closed_until = Some(now + closed.min(CLOSED.1));
    }

    /// When a call is to be ended and dialled again, as far as is known now.
    pub(super) fn lost_at(&self, number: u64) -> Option<Instant> {
        let lost = self.calls.iter().find(|call| call.number == number)?.since? + LOST_AFTER;
        let room = self.redials.len().checked_sub(REDIALS).map(|at| self.redials[at] + REDIALS_IN);
        Some(room.map_or(lost, |room| lost.max(room)))
    }

    /// A call is dialled again.
    pub(super) fn redialled(&mut self, now: Instant) {
        self.redials.push_back(now);
        self.redials.drain(..self.redials.len().saturating_sub(REDIALS));
    }

    /// Refusals in a row, where there are any, and the rest of the back-off.
    pub(super) fn back_off(&self, now: Instant) -> Option<(u32, Duration)> {
        let left = self.closed_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        (self.in_row > 0).then_some((self.in_row, left))
    }

    /// Goes on with the back-off of an earlier process.
    pub(super) fn resume_back_off(&mut self, (in_row, left): (u32, Duration), now: Instant) {
        (self.in_row, self.closed_until) = (in_row, Some(now + left.min(CLOSED.1)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The event that comes next; a number chooses among the calls in set-up.
    #[derive(Clone, Debug)]
    enum Step {
        Arrive,
        Pass(u64),
        Allow(usize),
        Refuse(usize),
        Lose(usize),
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => Just(Step::Arrive),
            3 => prop_oneof![Just(1), Just(300), Just(2_000), Just(61_000), 0..40_000u64].prop_map(Step::Pass),
            2 => any::<usize>().prop_map(Step::Allow),
            1 => any::<usize>().prop_map(Step::Refuse),
            1 => any::<usize>().prop_map(Step::Lose),
            1 => Just(Step::Restart),
        ]
    }

    /// A call in set-up.
    struct ModelCall {
        number: u64,
        began: u64,
        /// Calls that began later and were allowed while they were quick.
        passed: u32,
    }

    /// The table in the plainest words: what has happened, with times in milliseconds.
    #[derive(Default)]
    struct Model {
        now: u64,
        calls: Vec<ModelCall>,
        in_row: u32,
        closed_until: u64,
    }

    impl Model {
        fn state(&self, max: usize) -> &'static str {
            let undecided: Vec<_> = self.calls.iter().filter(|call| call.began + 2_000 <= self.now).collect();
            match () {
                () if undecided.len() > max => "full",
                () if self.now < self.closed_until => "closed",
                () if undecided.iter().any(|call| call.passed < 2) || self.in_row > 0 => "asking",
                () => "open",
            }
        }

        fn enters(&self, max: usize) -> bool {
            let quick = self.calls.iter().filter(|call| self.now < call.began + 2_000).count();
            match self.state(max) {
                "open" => quick < max && self.calls.len() <= max,
                "asking" => quick == 0,
                _ => false,
            }
        }

        fn take(&mut self, which: usize) -> Option<ModelCall> {
            let at = which.checked_rem(self.calls.len())?;
            Some(self.calls.remove(at))
        }
    }

    proptest! {
        #[test]
        fn a_gate_does_what_its_table_says(max in 1..6usize, steps in prop::collection::vec(step(), 1..120)) {
            let start = Instant::now();
            let at = |ms: u64| start + Duration::from_millis(ms);
            let (mut rules, mut model) = (GateState::default(), Model::default());
            for step in steps {
                let now = at(model.now);
                match step {
                    Step::Pass(ms) => model.now += ms,
                    Step::Arrive => {
                        let said = rules.admission(max, now, now);
                        prop_assert_eq!(said == Admission::Enter, model.enters(max), "{}: {:?}", model.state(max), rules);
                        if said == Admission::Enter {
                            model.calls.push(ModelCall { number: rules.begin(now), began: model.now, passed: 0 });
                        }
                    }
                    Step::Allow(which) => if let Some(allowed) = model.take(which) {
                        rules.allowed(allowed.number, now);
                        (model.in_row, model.closed_until) = (0, 0);
                        let earlier = model.calls.iter_mut().filter(|call| call.began < allowed.began);
                        earlier.for_each(|call| call.passed += u32::from(model.now < allowed.began + 2_000));
                    },
                    Step::Refuse(which) => if let Some(refused) = model.take(which) {
                        rules.refused(refused.number, now);
                        model.closed_until = model.now + [1, 2, 4, 8, 16].get(model.in_row as usize).unwrap_or(&30) * 1000;
                        model.in_row += 1;
                    },
                    Step::Lose(which) => if let Some(lost) = model.take(which) {
                        rules.leave(lost.number);
                    },
                    Step::Restart => {
                        let mut next = GateState::default();
                        rules.back_off(now).into_iter().for_each(|left| next.resume_back_off(left, now));
                        for call in &mut model.calls {
                            let passed = rules.passed(call.number, now);
                            prop_assert_eq!(passed.calls, call.passed);
                            call.number = next.resume(now - at(call.began), passed, now);
                        }
                        rules = next;
                    }
                }
                prop_assert!(model.calls.len() <= max + 1, "{} in set-up", model.calls.len());
                // Nobody waits for ever: the times that the gate names lead in, unless only an answer can.
                let (mut now, arrived) = (at(model.now), at(model.now));
                let mut looks = 0;
                loop {
                    match rules.admission(max, arrived, now) {
                        Admission::Wait(Some(next)) => {
                            prop_assert!(next > now, "it waits for the past");
                            now = next;
                        }
                        Admission::Wait(None) => {
                            prop_assert!(rules.full(max, now).is_some(), "nothing will change: {:?}", rules);
                            break;
                        }
                        Admission::Enter => break,
                        Admission::TurnedAway(calls) => {
                            prop_assert_eq!(calls, max + 1);
                            prop_assert_eq!(now, arrived + TURN_AWAY);
                            prop_assert!(model.calls.iter().all(|call| at(call.began + 60_000) <= arrived));
                            break;
                        }
                    }
                    looks += 1;
                    prop_assert!(looks < 20);
                }
            }
        }
    }

    #[test]
    fn a_call_that_nobody_answers_slows_the_others_down_only_until_they_pass_it() {
        let (mut rules, start) = (GateState::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        rules.begin(start); // lost
        for (begins, allowed) in [(2_000, 3_900), (4_000, 5_900)] {
            assert_eq!(rules.admission(4, start, at(begins)), Admission::Enter);
            let number = rules.begin(at(begins));
            assert!(matches!(rules.admission(4, start, at(begins + 1)), Admission::Wait(_)), "one at a time");
            rules.allowed(number, at(allowed));
        }
        for _ in 0..4 {
            assert_eq!(rules.admission(4, start, at(6_000)), Admission::Enter);
            rules.begin(at(6_000));
        }
        assert!(matches!(rules.admission(4, start, at(6_000)), Admission::Wait(_)), "five in set-up, not more");
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_refusal_beside_an_overlooked_prompt_closes_the_gate_for_its_back_off_only() {
        let (mut rules, start) = (GateState::default(), Instant::now());
        rules.begin(start); // nobody will ever answer it
        let cancelled = rules.begin(start);
        rules.refused(cancelled, start + ms(5_000));
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(rules.admission(4, at(5_500), at(5_500)), Admission::Wait(Some(at(6_000))));
        assert_eq!(rules.admission(4, at(5_500), at(6_000)), Admission::Enter);
        rules.begin(at(6_000));
        assert_eq!(rules.admission(4, at(6_001), at(6_001)), Admission::Wait(Some(at(8_000))), "one at a time");
        assert_eq!(rules.admission(4, at(6_001), at(8_000)), Admission::Enter);
    }

    #[test]
    fn who_arrives_when_five_are_older_than_a_minute_is_turned_away_after_ten_seconds_and_who_waits_is_not() {
        let (mut rules, start) = (GateState::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let numbers: Vec<_> = (0..5).map(|n| rules.begin(at(n * 2_000))).collect();
        let (early, late) = (at(67_999), at(68_000));
        assert_eq!(rules.admission(4, early, at(600_000)), Admission::Wait(None));
        assert_eq!(rules.admission(4, late, late), Admission::Wait(Some(at(78_000))));
        assert_eq!(rules.admission(4, late, at(77_999)), Admission::Wait(Some(at(78_000))));
        assert_eq!(rules.admission(4, late, at(78_000)), Admission::TurnedAway(5));
        rules.leave(numbers[2]);
        assert_eq!(rules.admission(4, late, at(78_000)), Admission::Enter);
        rules.begin(at(70_000));
        assert_eq!(rules.admission(4, late, at(78_000)), Admission::Wait(None), "one of the five is younger");
    }

    #[test]
    fn a_call_is_lost_two_seconds_after_the_second_that_overtook_it_promptly() {
        let (mut rules, start) = (GateState::default(), Instant::now());
        let at = |ms: u64| start + Duration::from_millis(ms);
        let earlier = rules.begin(at(0));
        let lost = rules.begin(at(10));
        let answer = |rules: &mut GateState, began, allowed| {
            let number = rules.begin(at(began));
            rules.allowed(number, at(allowed));
        };
        answer(&mut rules, 10, 11); // not later
        answer(&mut rules, 20, 521); // by a person, or after a qube's start
        rules.allowed(earlier, at(600)); // began earlier
        answer(&mut rules, 700, 1_200);
        assert_eq!(rules.lost_at(lost), None);
        answer(&mut rules, 5_000, 5_010);
        answer(&mut rules, 6_000, 6_010);
        assert_eq!(rules.lost_at(lost), Some(at(7_010)), "two seconds after the second");
        let (mut next, mut second) = (GateState::default(), GateState::default());
        let resumed = next.resume(ms(6_390), rules.passed(lost, at(6_400)), at(6_400));
        assert_eq!(next.lost_at(resumed), Some(at(7_010)), "a restart changes nothing");
        let resumed = second.resume(ms(6_490), next.passed(resumed, at(6_500)), at(6_500));
        assert_eq!(second.lost_at(resumed), Some(at(7_010)), "nor does the next one");
        let younger = rules.begin(at(6_500));
        assert_eq!(rules.lost_at(younger), None);
        (0..4).for_each(|n| rules.redialled(at(7_000 + n)));
        assert_eq!(rules.lost_at(lost), Some(at(67_000)), "at most four a minute");
        rules.redialled(at(67_000));
        assert_eq!(rules.lost_at(lost), Some(at(67_001)));
        rules.leave(lost);
        assert_eq!(rules.lost_at(lost), None);
    }
}
