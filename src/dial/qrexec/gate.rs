//! How many calls one qube may have, how many set-ups of one service may run at once, and when the service may be asked
//! again.
//!
//! # Theory
//! One gate for each target and service, which all listeners that lead there share. [`super::rules`] has its table of
//! states; here are the tasks that wait. In short: up to `max` calls are set up at once; while some are undecided, one
//! at a time enters, and never more than `max + 1` are undecided, so that a browser that opens eight connections to an
//! `ask` service does not open eight prompts. After a refusal nobody asks for a while (1 s, doubling to 30 s), then one
//! at a time does, whatever else is undecided. A refusal counts for everybody who waited: they wanted the same thing
//! from the same policy.
//!
//! Whoever enters the gate gets a place among the calls of the qube with it: both at once, or neither. A session that
//! waits at the gate holds no call of the qube, so that one `ask` service cannot use up the calls of the others.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{AcquireError, Notify},
    time::{Instant, sleep_until},
};

use super::{
    qube::{CallPermit, Qube, Qubes},
    rules::{Admission, GateState, Passed, UNDECIDED},
};
use crate::{log::Reminder, spec::Call, sys::lock};

/// All gates, and the qubes behind them.
#[derive(Debug)]
pub struct Gates {
    qubes: Qubes,
    gates: Mutex<HashMap<Call, Arc<Gate>>>,
}

impl Gates {
    /// Gates that let at most `per_qube` calls into one qube at a time, where no listener has a separate limit.
    pub fn new(per_qube: usize) -> Self {
        Self { qubes: Qubes::new(per_qube), gates: Mutex::default() }
    }

    /// The qubes that calls lead to.
    pub fn qubes(&self) -> &Qubes {
        &self.qubes
    }

    /// The gate of `call`.
    pub fn gate(&self, call: &Call) -> Arc<Gate> {
        Arc::clone(lock(&self.gates).entry(call.clone()).or_default())
    }

    /// The back-off of each gate that was refused last.
    pub fn back_offs(&self) -> Vec<BackOff> {
        let now = Instant::now();
        let of = |(call, gate): (&Call, &Arc<Gate>)| {
            let (refusals, left) = lock(&gate.state).rules.back_off(now)?;
            let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            Some(BackOff { target: call.target.to_string(), service: call.service.to_string(), refusals, left_ms })
        };
        let mut all: Vec<_> = lock(&self.gates).iter().filter_map(of).collect();
        all.sort();
        all
    }

    /// Goes on with the back-offs of an earlier process. What names no call is left out.
    pub fn resume_back_offs(&self, all: &[BackOff]) {
        for BackOff { target, service, refusals, left_ms } in all {
            if let Ok(call) = Call::new(target, service) {
                let left = (*refusals, Duration::from_millis(*left_ms));
                lock(&self.gate(&call).state).rules.resume_back_off(left, Instant::now());
            }
        }
    }
}

/// The rest of a gate's back-off, for the next process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackOff {
    target: String,
    service: String,
    /// Refusals in a row.
    refusals: u32,
    /// How long the gate stays closed.
    left_ms: u64,
}

/// The gate of one target and service.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    rules: GateState,
    /// Says that the gate is full.
    notice: Reminder,
    /// Connections that wait for their turn.
    in_line: usize,
    /// Whether it was logged that connections wait for dom0. Forgotten when nothing is undecided any more.
    told: bool,
}

/// A place in the line for a call.
type InLine = Pin<Box<dyn Future<Output = Result<CallPermit, AcquireError>> + Send>>;

/// Why a session may not enter yet.
enum Missing {
    /// The gate does not let it in; to be asked again at this time, where one is given.
    Turn(Option<Instant>),
    /// The qube has no call left.
    Call,
}

/// Why a session that waited at a gate begins no call.
#[derive(Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// Another session asked the same, and the answer was no.
    Refused,
    /// This many calls have been undecided for long, and no further one is begun.
    Full(usize),
}

/// A connection at a gate.
pub struct Visitor<'a, F, T, S> {
    /// How many calls may be set up at once.
    pub max: u32,
    /// When the connection was accepted.
    pub arrived: Instant,
    pub qube: &'a Arc<Qube>,
    /// Called when nothing but a call of the qube is missing; what it gives is held meanwhile.
    pub no_call: F,
    /// Called when it is not the connection's turn; what it gives is held meanwhile.
    pub no_turn: T,
    /// Called with their number when the gate is full of undecided calls: once a minute.
    pub full: S,
}

impl Gate {
    /// Waits for leave to begin a set-up, and for a call of the qube.
    ///
    /// # Errors
    /// See [`TurnedAway`].
    ///
    /// # Cancel safety
    /// Safe: whoever gives up has taken no place.
    pub async fn enter<G, H>(
        self: Arc<Self>,
        visitor: Visitor<'_, impl Fn() -> G, impl Fn() -> H, impl Fn(usize)>,
    ) -> Result<(Ticket, CallPermit), TurnedAway> {
        let Visitor { max, arrived, qube, no_call, no_turn, full } = visitor;
        let max = usize::try_from(max.max(1)).unwrap_or(usize::MAX - 1);
        let before = lock(&self.state).rules.refusals();
        // The place in the line for a call, kept while the gate would let this one in.
        let mut line: Option<(InLine, G)> = None;
        let mut permit = None;
        // Held while it is not the turn of this one.
        let mut turn: Option<(InLineAt<'_>, H)> = None;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (missing, crowd) = {
                let mut state = lock(&self.state);
                if state.rules.refusals() != before {
                    return Err(TurnedAway::Refused);
                }
                let now = Instant::now();
                match state.rules.admission(max, arrived, now) {
                    Admission::TurnedAway(calls) => return Err(TurnedAway::Full(calls)),
                    Admission::Wait(until) => {
                        let crowd = state.rules.full(max, now).filter(|_| state.notice.due().is_some());
                        (Missing::Turn(until), crowd)
                    }
                    Admission::Enter => match permit.take().or_else(|| qube.try_call()) {
                        Some(permit) => {
                            let number = state.rules.begin(now);
                            drop(state);
                            return Ok((Ticket { gate: self.clone(), number }, permit));
                        }
                        None => (Missing::Call, None),
                    },
                }
            };
            crowd.into_iter().for_each(&full);
            match missing {
                Missing::Turn(until) => {
                    (line, permit) = (None, None);
                    turn.get_or_insert_with(|| (InLineAt::new(&self), no_turn()));
                    match until {
                        Some(until) => tokio::select! { () = changed => {}, () = sleep_until(until) => {} },
                        None => changed.await,
                    }
                }
                Missing::Call => {
                    turn = None;
                    let new = || (Box::pin(qube.clone().call()) as InLine, no_call());
                    let (acquire, _) = line.get_or_insert_with(new);
                    tokio::select! {
                        biased;
                        acquired = acquire => {
                            (line, permit) = (None, acquired.ok());
                        }
                        () = changed => {}
                    }
                }
            }
        }
    }

    /// How many calls wait for dom0's decision for longer than a policy without a question takes.
    pub fn undecided(&self) -> usize {
        lock(&self.state).rules.undecided(Instant::now())
    }

    /// Takes up a set-up that an earlier process began this long ago, and what has passed it since. `told`: that
    /// process has logged that connections wait for dom0.
    pub fn resume(self: Arc<Self>, taken: Duration, passed: Passed, told: bool) -> Ticket {
        let number = {
            let mut state = lock(&self.state);
            state.told |= told && taken > UNDECIDED; // of the others, none was logged
            state.rules.resume(taken, passed, Instant::now())
        };
        Ticket { gate: self, number }
    }
}

/// A connection waits for its turn while this lives.
struct InLineAt<'a>(&'a Gate);

impl<'a> InLineAt<'a> {
    fn new(gate: &'a Gate) -> Self {
        lock(&gate.state).in_line += 1;
        Self(gate)
    }
}

impl Drop for InLineAt<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).in_line -= 1;
    }
}

/// A place in a gate, given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    /// The number of the call.
    number: u64,
}

impl Ticket {
    /// The call was allowed: the gate is open.
    pub fn allowed(self) {
        lock(&self.gate.state).rules.allowed(self.number, Instant::now());
    }

    /// The call was refused: the gate closes for a while, and all who wait have their answer.
    pub fn refused(self) {
        lock(&self.gate.state).rules.refused(self.number, Instant::now());
    }

    /// The calls that have passed this one, for the next process.
    pub fn passed(&self) -> Passed {
        lock(&self.gate.state).rules.passed(self.number, Instant::now())
    }

    /// How many connections wait for dom0, this one included, where that was not logged yet.
    pub fn news(&self) -> Option<usize> {
        let mut state = lock(&self.gate.state);
        let told = std::mem::replace(&mut state.told, true);
        (!told).then(|| state.rules.in_set_up() + state.in_line)
    }

    /// Whether it was logged that connections wait for dom0, for the next process.
    pub fn told(&self) -> bool {
        lock(&self.gate.state).told
    }

    /// Waits until nobody will answer the call, and it may be dialled again; counts that.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn lost(&self) {
        loop {
            let changed = self.gate.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let lost_at = {
                let rules = &mut lock(&self.gate.state).rules;
                let (lost_at, now) = (rules.lost_at(self.number), Instant::now());
                if lost_at.is_some_and(|at| at <= now) {
                    return rules.redialled(now);
                }
                lost_at
            };
            match lost_at {
                Some(at) => tokio::select! { () = changed => {}, () = sleep_until(at) => {} },
                None => changed.await,
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = lock(&self.gate.state);
        state.rules.leave(self.number);
        state.told &= state.rules.undecided(Instant::now()) > 0;
        drop(state);
        self.gate.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::{super::rules::CLOSED, *};

    /// Waits at the gate for its turn and a call.
    async fn waits(gate: Arc<Gate>, qube: Arc<Qube>) -> Result<(Ticket, CallPermit), TurnedAway> {
        let arrived = Instant::now();
        gate.enter(Visitor { max: 4, arrived, qube: &qube, no_call: || (), no_turn: || (), full: |_| () }).await
    }

    /// Whether the gate lets one more in at once, where the qube has `calls`.
    async fn enters_with(gate: &Arc<Gate>, calls: &Arc<Qube>) -> Option<(Ticket, CallPermit)> {
        tokio::select! {
            biased;
            entered = waits(gate.clone(), calls.clone()) => entered.ok(),
            () = tokio::task::yield_now() => None,
        }
    }

    /// Whether the gate lets one more in at once, where the qube has calls enough.
    async fn enters(gate: &Arc<Gate>) -> Option<Ticket> {
        enters_with(gate, &plenty()).await.map(|(ticket, _)| ticket)
    }

    fn plenty() -> Arc<Qube> {
        Arc::new(Qube::new(100))
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_wait_at_one_gate_leave_the_calls_to_other_services() {
        let (ask, other) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        let calls = Arc::new(Qube::new(6));
        let mut prompts = Vec::new();
        for _ in 0..4 {
            prompts.push(enters_with(&ask, &calls).await.expect("room"));
        }
        advance(UNDECIDED).await;
        prompts.push(enters_with(&ask, &calls).await.expect("one more"));
        let waiting: Vec<_> = (0..32)
            .map(|_| {
                let (gate, calls) = (ask.clone(), calls.clone());
                tokio::spawn(async move { waits(gate, calls).await.map(drop) })
            })
            .collect();
        tokio::task::yield_now().await;
        let entered = enters_with(&other, &calls).await.expect("five prompts hold five calls of six");
        assert!(enters_with(&other, &calls).await.is_none(), "the qube is full now");
        drop(entered);
        assert!(enters_with(&other, &calls).await.is_some());
        waiting.into_iter().for_each(|task| task.abort());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_call_enters_when_one_is_free_in_the_order_of_arrival() {
        let gate = Arc::new(Gate::default());
        let calls = Arc::new(Qube::new(1));
        let (ticket, call) = enters_with(&gate, &calls).await.expect("room");
        ticket.allowed();
        let (arrived, mut came) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..3 {
            let (gate, calls, arrived) = (gate.clone(), calls.clone(), arrived.clone());
            tokio::spawn(async move {
                let entered = waits(gate, calls).await.expect("nobody refuses");
                arrived.send(number).expect("it is read");
                entered.0.allowed();
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(entered.1);
            });
            tokio::task::yield_now().await;
        }
        assert!(came.try_recv().is_err());
        drop(call);
        for number in 0..3 {
            assert_eq!(came.recv().await, Some(number));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_reaches_those_who_wait_for_a_call_too() {
        let gate = Arc::new(Gate::default());
        let calls = Arc::new(Qube::new(1));
        let (ticket, _call) = enters_with(&gate, &calls).await.expect("room");
        let waiting = tokio::spawn({
            let (gate, calls) = (gate.clone(), calls.clone());
            async move { waits(gate, calls).await.map(drop) }
        });
        tokio::task::yield_now().await;
        ticket.refused();
        assert_eq!(waiting.await.unwrap(), Err(TurnedAway::Refused));
    }

    #[tokio::test(start_paused = true)]
    async fn four_at_once_and_five_while_all_are_undecided() {
        let gate = Arc::new(Gate::default());
        let mut tickets = Vec::new();
        while let Some(ticket) = enters(&gate).await {
            tickets.push(ticket);
        }
        assert_eq!(tickets.len(), 4);
        advance(UNDECIDED).await;
        tickets.push(enters(&gate).await.expect("one more"));
        assert!(enters(&gate).await.is_none());
        advance(UNDECIDED).await;
        assert!(enters(&gate).await.is_none(), "five prompts are enough");
        tickets.clear();
        assert!(enters(&gate).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_answers_all_who_wait_and_then_one_asks_again() {
        let gate = Arc::new(Gate::default());
        let tickets = [enters(&gate).await, enters(&gate).await, enters(&gate).await, enters(&gate).await];
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { waits(gate, plenty()).await.map(drop) }
        });
        tokio::task::yield_now().await;
        let [first, rest @ ..] = tickets;
        first.expect("entered").refused();
        drop(rest);
        assert!(waiting.await.unwrap().is_err());
        assert!(enters(&gate).await.is_none(), "closed for a second");
        advance(Duration::from_millis(1001)).await;
        let again = enters(&gate).await.expect("one asks again");
        assert!(enters(&gate).await.is_none(), "only one");
        again.refused();
        advance(Duration::from_millis(1001)).await;
        assert!(enters(&gate).await.is_none(), "closed for two seconds now");
        advance(Duration::from_millis(1000)).await;
        enters(&gate).await.expect("asks again").allowed();
        assert!(enters(&gate).await.is_some());
        assert!(enters(&gate).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_gate_never_stays_closed_for_more_than_thirty_seconds() {
        let gate = Arc::new(Gate::default());
        for _ in 0..40 {
            enters(&gate).await.expect("open again").refused();
            advance(CLOSED.1 + Duration::from_millis(1)).await;
        }
        assert!(enters(&gate).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_full_of_old_prompts_turns_newcomers_away_after_ten_seconds_and_lets_those_wait_who_waited() {
        let gate = Arc::new(Gate::default());
        let mut prompts = Vec::new();
        for _ in 0..5 {
            prompts.push(enters(&gate).await.expect("room"));
            advance(UNDECIDED).await;
        }
        let early = tokio::spawn(waits(gate.clone(), plenty()));
        advance(Duration::from_secs(60)).await;
        let late = Instant::now();
        let turned_away = waits(gate.clone(), plenty()).await.map(drop);
        assert_eq!((turned_away, late.elapsed().as_secs()), (Err(TurnedAway::Full(5)), 10));
        assert!(!early.is_finished());
        drop(prompts.pop());
        assert!(early.await.expect("no panic").is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_call_is_told_of_two_seconds_after_it_was_overtaken_twice() {
        let gate = Arc::new(Gate::default());
        let lost = enters(&gate).await.expect("room");
        for _ in 0..2 {
            advance(Duration::from_millis(10)).await;
            enters(&gate).await.expect("room").allowed();
        }
        let overtaken = Instant::now();
        lost.lost().await;
        assert_eq!(overtaken.elapsed().as_secs(), 2);
    }
}
