//! Those who want to hear what happens to sessions. While there are none, an event costs one load.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::sessions::Info;
use crate::{
    log::End,
    service::control::{api, view},
};

/// Events that may wait for one of them; more are left out, and their number is told.
const QUEUE: usize = 1024;

/// How a session ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// END.
    pub end: End,
    /// EXIT_CODE.
    pub exit: Option<u8>,
    /// What else was said.
    pub note: &'a str,
}

/// One of them, as we see it.
#[derive(Debug)]
struct Watcher {
    events: Sender<Arc<api::Event>>,
    dropped: Arc<AtomicU64>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Watchers {
    count: AtomicUsize,
    all: Mutex<Vec<Watcher>>,
}

/// One of them, as it sees us.
#[derive(Debug)]
pub struct Watching {
    events: Receiver<Arc<api::Event>>,
    dropped: Arc<AtomicU64>,
}

impl Watchers {
    fn lock(&self) -> MutexGuard<'_, Vec<Watcher>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more; from now on it is told everything.
    pub fn add(&self) -> Watching {
        let (sender, events) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut all = self.lock();
        all.push(Watcher { events: sender, dropped: dropped.clone() });
        self.count.store(all.len(), Relaxed);
        Watching { events, dropped }
    }

    /// Tells what happened to a session.
    pub fn tell(&self, event: api::Happened, info: &Info, ending: Option<Ending<'_>>) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        let event = Arc::new(api::Event {
            session: Some(view::session(info)),
            end: ending.map(|e| e.end.as_str().to_owned()),
            exit_code: ending.and_then(|e| e.exit),
            note: ending.map(|e| e.note).filter(|note| !note.is_empty()).map(str::to_owned),
            ..happened(event)
        });
        let mut all = self.lock();
        all.retain(|watcher| match watcher.events.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                watcher.dropped.fetch_add(1, Relaxed);
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        self.count.store(all.len(), Relaxed);
    }
}

impl Watching {
    /// The next event; first how many were left out, if any were. `None` when the service ends.
    ///
    /// # Cancel safety
    /// Safe: an event that was not returned comes the next time.
    pub async fn next(&mut self) -> Option<Arc<api::Event>> {
        let event = self.events.recv().await?;
        Some(event)
    }

    /// How many were left out since the last time this was asked.
    pub fn dropped(&self) -> Option<api::Event> {
        let n = self.dropped.swap(0, Relaxed);
        (n > 0).then(|| api::Event { dropped: Some(n), ..happened(api::Happened::Dropped) })
    }
}

/// An event that says no more than that.
pub fn happened(event: api::Happened) -> api::Event {
    api::Event { event, session: None, end: None, exit_code: None, note: None, dropped: None }
}
