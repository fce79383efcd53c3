//! How many calls one qube may have, how many set-ups of one service may run at once, and when the service may be asked
//! again.
//!
//! # Theory
//! One gate for each target and service. Up to `max` set-ups run at once. One that is undecided after
//! [`UNDECIDED`] is waiting for a person or for a qube to start: it gives its place back, and while there are such,
//! only one more is let through at a time, and never more than `max + 1` in all. So a browser that opens eight
//! connections to an `ask` service does not open eight prompts.
//!
//! Whoever enters the gate gets a place among the calls of the qube with it: both at once, or neither. A session that
//! waits at the gate holds no call of the qube, so that one `ask` service cannot use up the calls of the others.
//!
//! A refusal closes the gate for a while (1 s, doubling to 30 s while nothing is allowed); then one asks again. The
//! answer counts for everybody who waited: they wanted the same thing from the same policy.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use crate::{log::Reminder, spec::Call, sys::lock};

/// A set-up that takes longer waits for a person or a qube's start.
pub const UNDECIDED: Duration = Duration::from_secs(2);
/// How long the gate stays closed after the first refusal in a row, and at most.
const CLOSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// All gates, and the count of calls into each qube.
#[derive(Debug)]
pub struct Gates {
    per_qube: usize,
    qubes: Mutex<HashMap<String, Arc<Qube>>>,
    gates: Mutex<HashMap<Call, Arc<Gate>>>,
}

impl Gates {
    /// Gates that let at most `per_qube` calls into one qube at a time.
    pub fn new(per_qube: usize) -> Self {
        Self { per_qube, qubes: Mutex::default(), gates: Mutex::default() }
    }

    /// Calls allowed into one qube at a time.
    pub fn per_qube(&self) -> usize {
        self.per_qube
    }

    /// The calls into `target`.
    pub fn qube(&self, target: &str) -> Arc<Qube> {
        let mut qubes = lock(&self.qubes);
        Arc::clone(qubes.entry(target.to_owned()).or_insert_with(|| Arc::new(Qube::new(self.per_qube))))
    }

    /// The gate of `call`.
    pub fn gate(&self, call: &Call) -> Arc<Gate> {
        Arc::clone(lock(&self.gates).entry(call.clone()).or_default())
    }
}

/// The calls into one qube.
#[derive(Debug)]
pub struct Qube {
    /// Calls that the qube may still have.
    calls: Arc<Semaphore>,
    queue: Mutex<CallQueue>,
}

#[derive(Debug, Default)]
struct CallQueue {
    /// Sessions that wait for a call.
    waiting: usize,
    reminder: Reminder,
}

/// A session waits for a call of a qube while this lives.
#[derive(Debug)]
pub struct Waiting<'a> {
    qube: &'a Qube,
    /// How many wait, this one included, when that is worth a message: once a minute.
    pub news: Option<usize>,
}

impl Qube {
    fn new(calls: usize) -> Self {
        Self { calls: Arc::new(Semaphore::new(calls)), queue: Mutex::default() }
    }

    /// A call that an earlier process has begun; `None` when the limit was lowered meanwhile.
    pub fn resume(&self) -> Option<CallPermit> {
        self.calls.clone().try_acquire_owned().ok()
    }

    /// Notes that a session waits for a call.
    pub fn wait(&self) -> Waiting<'_> {
        let mut queue = lock(&self.queue);
        queue.waiting += 1;
        let news = queue.reminder.due().map(|_| queue.waiting);
        Waiting { qube: self, news }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.qube.queue).waiting -= 1;
    }
}

/// Permission to have a call into a qube.
pub type CallPermit = OwnedSemaphorePermit;

/// The gate of one target and service.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Set-ups that may still be decided quickly.
    quick: u32,
    /// Set-ups that wait for a person or a qube's start.
    undecided: u32,
    /// Refusals since the last call that was allowed.
    in_row: u32,
    /// A turn at the gate, which opens at this time if one is given.
    closed_until: Option<Instant>,
    /// Refusals so far.
    refusals: u64,
}

impl State {
    fn admits(&self, max: u32, now: Instant) -> bool {
        let running = self.quick + self.undecided;
        if self.in_row > 0 {
            self.closed_until.is_none_or(|t| t <= now) && running == 0
        } else if self.undecided > 0 {
            self.quick == 0 && running <= max
        } else {
            self.quick < max
        }
    }
}

/// A place in the line for a call.
type InLine = Pin<Box<dyn Future<Output = Result<CallPermit, AcquireError>> + Send>>;

/// Reasons why a session may not enter yet.
enum Missing {
    /// The gate does not let it in; it opens at this time at the latest, where that is known.
    Turn(Option<Instant>),
    /// The qube has no call left.
    Call,
}

/// Somebody who waited was told no, in the person of another.
#[derive(Debug, PartialEq, Eq)]
pub struct RefusedAlready;

impl Gate {
    /// Waits for leave to begin a set-up, where `max` may run at once, and for a call of the `qube`.
    /// While only the latter is missing, what `full` gives is held.
    ///
    /// # Errors
    /// [`RefusedAlready`] when another was refused while this one waited.
    ///
    /// # Cancel safety
    /// Safe: whoever gives up has taken no place.
    pub async fn enter<G>(
        self: Arc<Self>,
        max: u32,
        qube: &Qube,
        full: impl Fn() -> G,
    ) -> Result<(Ticket, CallPermit), RefusedAlready> {
        let arrived = lock(&self.state).refusals;
        let calls = &qube.calls;
        // The place in the line for a call, kept while the gate would let this one in.
        let mut line: Option<(InLine, G)> = None;
        let mut permit = None;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let missing = {
                let mut state = lock(&self.state);
                if state.refusals != arrived {
                    return Err(RefusedAlready);
                }
                let now = Instant::now();
                if !state.admits(max.max(1), now) {
                    Missing::Turn(state.closed_until.filter(|t| *t > now))
                } else if let Some(permit) = permit.take().or_else(|| calls.clone().try_acquire_owned().ok()) {
                    state.quick += 1;
                    drop(state);
                    return Ok((Ticket { gate: self.clone(), undecided: false }, permit));
                } else {
                    Missing::Call
                }
            };
            match missing {
                Missing::Turn(opens) => {
                    (line, permit) = (None, None);
                    match opens {
                        Some(opens) => tokio::select! { () = changed => {}, () = sleep_until(opens) => {} },
                        None => changed.await,
                    }
                }
                Missing::Call => {
                    let new = || (Box::pin(calls.clone().acquire_owned()) as InLine, full());
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

    /// Takes up a set-up that an earlier process began.
    pub fn resume(self: Arc<Self>) -> Ticket {
        lock(&self.state).undecided += 1;
        Ticket { gate: self, undecided: true }
    }
}

/// A place in a gate, given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    undecided: bool,
}

impl Ticket {
    /// The set-up is still undecided after [`UNDECIDED`].
    pub fn undecided(&mut self) {
        if !self.undecided {
            self.undecided = true;
            let mut state = lock(&self.gate.state);
            (state.quick, state.undecided) = (state.quick - 1, state.undecided + 1);
            drop(state);
            self.gate.changed.notify_waiters();
        }
    }

    /// The call was allowed: the gate is open.
    pub fn allowed(self) {
        let mut state = lock(&self.gate.state);
        (state.in_row, state.closed_until) = (0, None);
    }

    /// The call was refused: the gate closes for a while, and all who wait have their answer.
    pub fn refused(self) {
        let mut state = lock(&self.gate.state);
        let closed = CLOSED.0 * 2u32.saturating_pow(state.in_row).min(64);
        state.in_row = state.in_row.saturating_add(1);
        state.refusals += 1;
        state.closed_until = Some(Instant::now() + closed.min(CLOSED.1));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = lock(&self.gate.state);
        if self.undecided {
            state.undecided -= 1
        } else {
            state.quick -= 1
        }
        drop(state);
        self.gate.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Whether the gate lets one more in at once, where the qube has `calls`.
    async fn enters_with(gate: &Arc<Gate>, calls: &Arc<Qube>) -> Option<(Ticket, CallPermit)> {
        tokio::select! {
            biased;
            entered = gate.clone().enter(4, calls, || ()) => entered.ok(),
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
        prompts.iter_mut().for_each(|(ticket, _)| ticket.undecided());
        prompts.push(enters_with(&ask, &calls).await.expect("one more"));
        let waiting: Vec<_> = (0..32)
            .map(|_| {
                let (gate, calls) = (ask.clone(), calls.clone());
                tokio::spawn(async move { gate.enter(4, &calls, || ()).await.map(drop) })
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
                let entered = gate.enter(4, &calls, || ()).await.expect("nobody refuses");
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
            async move { gate.enter(4, &calls, || ()).await.map(drop) }
        });
        tokio::task::yield_now().await;
        ticket.refused();
        assert_eq!(waiting.await.unwrap(), Err(RefusedAlready));
    }

    #[tokio::test(start_paused = true)]
    async fn four_at_once_and_five_while_all_are_undecided() {
        let gate = Arc::new(Gate::default());
        let mut tickets = Vec::new();
        while let Some(ticket) = enters(&gate).await {
            tickets.push(ticket);
        }
        assert_eq!(tickets.len(), 4);
        tickets.iter_mut().for_each(Ticket::undecided);
        tickets.push(enters(&gate).await.expect("one more"));
        assert!(enters(&gate).await.is_none());
        tickets[4].undecided();
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
            async move { gate.enter(4, &plenty(), || ()).await.map(drop) }
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
}
