//! The sessions that live now.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use uuid::Uuid;

use super::route::Route;
use crate::relay::{Counters, Interrupt, Why};

/// What everybody may know about a session.
#[derive(Debug)]
pub struct Info {
    /// SESSION_ID.
    pub id: Uuid,
    /// The route it took.
    pub route: Arc<Route>,
    /// Who connected, as logs have it.
    pub peer: Arc<str>,
    /// When it was accepted.
    pub accepted: Instant,
    /// Milliseconds from then to connected, plus one; 0 while it is not.
    dial_ms: AtomicU64,
    /// Bytes delivered.
    pub counters: Counters,
    /// How it is told to stop.
    pub interrupt: Interrupt,
}

impl Info {
    /// A session accepted `age` ago.
    pub fn new(id: Uuid, route: Arc<Route>, peer: Arc<str>, age: Duration, counters: Counters) -> Self {
        let now = Instant::now();
        Self {
            id,
            route,
            peer,
            accepted: now.checked_sub(age).unwrap_or(now),
            dial_ms: AtomicU64::new(0),
            counters,
            interrupt: Interrupt::default(),
        }
    }

    /// Milliseconds from accept to connected, once it is.
    pub fn dial_ms(&self) -> Option<u64> {
        self.dial_ms.load(Relaxed).checked_sub(1)
    }

    /// It is connected, `ms` milliseconds after it was accepted.
    pub fn connected(&self, ms: u64) {
        self.dial_ms.store(ms.saturating_add(1), Relaxed);
    }

    /// Milliseconds since it was accepted.
    pub fn age_ms(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Sessions {
    live: Mutex<HashMap<Uuid, Arc<Info>>>,
    count: watch::Sender<usize>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Info>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a session.
    pub fn add(&self, info: Arc<Info>) {
        self.lock().insert(info.id, info);
        self.count.send_modify(|n| *n += 1);
    }

    /// Leaves one out.
    pub fn remove(&self, id: &Uuid) {
        if self.lock().remove(id).is_some() {
            self.count.send_modify(|n| *n -= 1);
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Follows their number.
    pub fn watch(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Whether it is among them.
    pub fn contains(&self, id: &Uuid) -> bool {
        self.lock().contains_key(id)
    }

    /// All of them, for those who take their time.
    pub fn all(&self) -> Vec<Arc<Info>> {
        self.lock().values().cloned().collect()
    }

    /// Looks at each; nobody comes or goes meanwhile.
    pub fn for_each(&self, look: impl FnMut(&Arc<Info>)) {
        self.lock().values().for_each(look);
    }

    /// Tells those for which `which` holds to stop; how many there were.
    pub fn interrupt(&self, why: Why, which: impl Fn(&Info) -> bool) -> usize {
        let chosen: Vec<_> = self.lock().values().filter(|info| which(info)).cloned().collect();
        chosen.iter().for_each(|info| info.interrupt.request(why));
        chosen.len()
    }
}
