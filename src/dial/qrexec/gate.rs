//! How many set-ups of one service may run at once, and when it may be asked again.
//!
//! # Theory
//! One gate for each target and service. Up to `max` set-ups run at once. One that is undecided after
//! [`UNDECIDED`] is waiting for a person or for a qube to start: it gives its place back, and while there are such,
//! only one more is let through at a time, and never more than `max + 1` in all. So a browser that opens eight
//! connections to an `ask` service does not open eight prompts.
//!
//! A refusal closes the gate for a while (1 s, doubling to 30 s while nothing is allowed); then one asks again. The
//! answer counts for everybody who waited: they wanted the same thing from the same policy.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

use crate::spec::Call;

/// A set-up that takes longer waits for a person or a qube's start.
pub const UNDECIDED: Duration = Duration::from_secs(2);
/// How long the gate stays closed after the first refusal in a row, and at most.
const CLOSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// All gates, and the count of calls into each qube.
#[derive(Debug)]
pub struct Gates {
    per_qube: usize,
    calls: Mutex<HashMap<String, Arc<Semaphore>>>,
    gates: Mutex<HashMap<Call, Arc<Gate>>>,
}

impl Gates {
    /// Gates that let at most `per_qube` calls into one qube at a time.
    pub fn new(per_qube: usize) -> Self {
        Self { per_qube, calls: Mutex::default(), gates: Mutex::default() }
    }

    /// Calls allowed into one qube at a time.
    pub fn per_qube(&self) -> usize {
        self.per_qube
    }

    /// The count of calls into `target`.
    pub fn calls(&self, target: &str) -> Arc<Semaphore> {
        let mut calls = lock(&self.calls);
        let new = || Arc::new(Semaphore::new(self.per_qube));
        Arc::clone(calls.entry(target.to_owned()).or_insert_with(new))
    }

    /// The gate of `call`.
    pub fn gate(&self, call: &Call) -> Arc<Gate> {
        Arc::clone(lock(&self.gates).entry(call.clone()).or_default())
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
    /// When the gate opens again.
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

/// Somebody who waited was told no, in the person of another.
#[derive(Debug, PartialEq, Eq)]
pub struct RefusedAlready;

impl Gate {
    /// Waits for leave to begin a set-up, where `max` may run at once.
    ///
    /// # Errors
    /// [`RefusedAlready`] when another was refused while this one waited.
    ///
    /// # Cancel safety
    /// Safe: whoever gives up has taken no place.
    pub async fn enter(self: Arc<Self>, max: u32) -> Result<Ticket, RefusedAlready> {
        let arrived = lock(&self.state).refusals;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let opens = {
                let mut state = lock(&self.state);
                if state.refusals != arrived {
                    return Err(RefusedAlready);
                }
                let now = Instant::now();
                if state.admits(max.max(1), now) {
                    state.quick += 1;
                    drop(state);
                    return Ok(Ticket { gate: self.clone(), undecided: false });
                }
                state.closed_until.filter(|t| *t > now)
            };
            match opens {
                Some(opens) => tokio::select! { () = changed => {}, () = sleep_until(opens) => {} },
                None => changed.await,
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

/// A session that panicked while it held the lock left plain counters behind, not broken ones.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// Whether the gate lets one more in at once.
    async fn enters(gate: &Arc<Gate>) -> Option<Ticket> {
        tokio::select! {
            biased;
            ticket = gate.clone().enter(4) => ticket.ok(),
            () = tokio::task::yield_now() => None,
        }
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
        let waiting = tokio::spawn(gate.clone().enter(4));
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
