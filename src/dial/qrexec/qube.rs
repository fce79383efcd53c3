//! The calls into one qube: how many there may be at once, and who waits for one.
//!
//! # Theory
//! Free calls are the permits of a semaphore, so that those who wait get a call in the order in which they came. The limit
//! may change while calls are in use. A limit that is lowered takes no call away: what is in use above the limit is a debt,
//! and a call that ends pays the debt in place of becoming free.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{AcquireError, Semaphore};

use crate::{log::Reminder, sys::lock};

/// The calls into one qube.
#[derive(Debug)]
pub struct Qube {
    /// Calls that the qube may still have.
    free: Arc<Semaphore>,
    state: Mutex<QubeState>,
}

#[derive(Debug, Default)]
struct QubeState {
    limit: usize,
    /// Calls in use above the limit.
    debt: usize,
    /// Sessions that wait for a call.
    waiting: usize,
    reminder: Reminder,
}

/// Permission to have a call into a qube.
#[derive(Debug)]
pub struct CallPermit(Arc<Qube>);

impl Drop for CallPermit {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        match state.debt {
            0 => self.0.free.add_permits(1),
            debt => state.debt = debt - 1,
        }
    }
}

/// A session waits for a call of a qube while this lives.
#[derive(Debug)]
pub struct Waiting<'a> {
    qube: &'a Qube,
    /// How many wait, this one included, when that is worth a message: once a minute.
    pub news: Option<usize>,
}

impl Qube {
    /// A qube that may have `limit` calls.
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        let state = QubeState { limit, ..QubeState::default() };
        Self { free: Arc::new(Semaphore::new(limit)), state: Mutex::new(state) }
    }

    /// Calls that the qube may have at once.
    pub fn limit(&self) -> usize {
        lock(&self.state).limit
    }

    /// Changes the limit; calls in use stay.
    pub fn set_limit(&self, limit: usize) {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        let mut state = lock(&self.state);
        let before = std::mem::replace(&mut state.limit, limit);
        if limit < before {
            let less = before - limit;
            state.debt += less - self.free.forget_permits(less);
        } else {
            let more = limit - before;
            let paid = more.min(state.debt);
            state.debt -= paid;
            self.free.add_permits(more - paid);
        }
    }

    /// A call that is free now.
    pub(super) fn try_call(self: &Arc<Self>) -> Option<CallPermit> {
        self.free.try_acquire().ok()?.forget();
        Some(CallPermit(self.clone()))
    }

    /// The next call that is free.
    pub(super) async fn call(self: Arc<Self>) -> Result<CallPermit, AcquireError> {
        self.free.acquire().await?.forget();
        Ok(CallPermit(self))
    }

    /// A call that an earlier process has begun, also above the limit.
    pub fn resume(self: &Arc<Self>) -> CallPermit {
        self.try_call().unwrap_or_else(|| {
            lock(&self.state).debt += 1;
            CallPermit(self.clone())
        })
    }

    /// Notes that a session waits for a call.
    pub fn wait(&self) -> Waiting<'_> {
        let mut state = lock(&self.state);
        state.waiting += 1;
        let news = state.reminder.due().map(|_| state.waiting);
        Waiting { qube: self, news }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.qube.state).waiting -= 1;
    }
}

/// The qubes that calls lead to.
#[derive(Debug)]
pub struct Qubes {
    /// The limit of a qube where no listener has one of its own.
    limit: usize,
    by_name: Mutex<HashMap<String, Arc<Qube>>>,
}

impl Qubes {
    /// Qubes that may have `limit` calls each.
    pub fn new(limit: usize) -> Self {
        Self { limit, by_name: Mutex::default() }
    }

    /// The qube `name`.
    pub fn qube(&self, name: &str) -> Arc<Qube> {
        let mut qubes = lock(&self.by_name);
        Arc::clone(qubes.entry(name.to_owned()).or_insert_with(|| Arc::new(Qube::new(self.limit))))
    }

    /// Gives each qube the smallest limit of its listeners: the name of the qube, and `max_calls` where it was written.
    pub fn set_limits<'a>(&self, listeners: impl IntoIterator<Item = (&'a str, Option<u32>)>) {
        let mut smallest: HashMap<&str, usize> = HashMap::new();
        for (name, limit) in listeners {
            let limit = limit.map_or(self.limit, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
            let entry = smallest.entry(name).or_insert(limit);
            *entry = limit.min(*entry);
        }
        for (name, qube) in &*lock(&self.by_name) {
            qube.set_limit(smallest.get(name.as_str()).copied().unwrap_or(self.limit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(qube: &Arc<Qube>, n: usize) -> Vec<CallPermit> {
        std::iter::from_fn(|| qube.try_call()).take(n).collect()
    }

    #[test]
    fn a_lower_limit_takes_no_call_away_and_lets_nobody_in_until_enough_have_ended() {
        let qube = Arc::new(Qube::new(5));
        let mut calls = take(&qube, 4);
        qube.set_limit(2);
        assert!(qube.try_call().is_none());
        calls.truncate(2);
        assert!(qube.try_call().is_none(), "two of two are in use");
        calls.truncate(1);
        assert_eq!(take(&qube, 9).len(), 1);
        drop(calls);
        assert_eq!(take(&qube, 9).len(), 2);
    }

    #[test]
    fn a_higher_limit_pays_the_debt_first() {
        let qube = Arc::new(Qube::new(1));
        let calls: Vec<_> = (0..3).map(|_| qube.resume()).collect(); // of an earlier process, with a higher limit
        qube.set_limit(4);
        assert_eq!(take(&qube, 9).len(), 1);
        drop(calls);
        assert_eq!(take(&qube, 9).len(), 4);
    }

    #[test]
    fn the_smallest_limit_of_a_qube_holds_and_what_is_not_written_is_the_common_one() {
        let qubes = Qubes::new(32);
        let (work, mail) = (qubes.qube("work"), qubes.qube("mail"));
        qubes.set_limits([("work", Some(8)), ("work", None), ("work", Some(4)), ("mail", None)]);
        assert_eq!((work.limit(), mail.limit()), (4, 32));
        qubes.set_limits([("work", Some(40)), ("mail", Some(40)), ("mail", None)]);
        assert_eq!((work.limit(), mail.limit()), (40, 32), "where nothing else leads there, a limit may be higher");
        qubes.set_limits([]);
        assert_eq!((work.limit(), mail.limit()), (32, 32));
    }
}
