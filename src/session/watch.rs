//! Subscribers to what happens to sessions. While there are none, an event costs one load.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::info::SessionInfo;
use crate::{log::End, sys::lock};

/// How many events may wait for one subscriber; further events are left out and counted.
const QUEUE: usize = 1024;

/// A change of a session that subscribers get.
#[derive(Clone, Debug)]
pub enum Happened {
    /// The session was accepted.
    Began,
    /// The session has both its ends.
    Connected,
    /// The session is over.
    Ended(SessionEnding),
}

/// Reason, exit code and note of a session's end.
#[derive(Clone, Debug)]
pub struct SessionEnding {
    /// END.
    pub end: End,
    /// EXIT_CODE.
    pub exit: Option<u8>,
    /// What else is to be said of the end; may be empty.
    pub note: String,
}

impl SessionEnding {
    /// An end without an exit code.
    pub fn new(end: End, note: impl Into<String>) -> Self {
        Self { end, exit: None, note: note.into() }
    }
}

/// What happened to a session, with its figures at that moment.
#[derive(Debug)]
pub struct Happening {
    pub what: Happened,
    /// The session.
    pub info: Arc<SessionInfo>,
    /// The session's figures at that moment.
    pub figures: Figures,
}

/// The figures of a session at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Milliseconds since accept.
    pub age_ms: u64,
    /// Milliseconds from accept to connected, once the session is connected.
    pub dial_ms: Option<u64>,
    /// Bytes delivered to the upstream.
    pub up: u64,
    /// Bytes delivered to the peer.
    pub down: u64,
}

impl Figures {
    /// The figures of a session now.
    pub fn of(info: &SessionInfo) -> Self {
        Self { age_ms: info.age_ms(), dial_ms: info.dial_ms(), up: info.counters.up(), down: info.counters.down() }
    }
}

/// The sending side of one subscription.
#[derive(Debug)]
struct Watcher {
    events: Sender<Arc<Happening>>,
    dropped: Arc<AtomicU64>,
}

/// The sending sides of all subscriptions.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    count: AtomicUsize,
    all: Mutex<Vec<Watcher>>,
}

/// The receiving side of one subscription.
#[derive(Debug)]
pub struct Watching {
    events: Receiver<Arc<Happening>>,
    dropped: Arc<AtomicU64>,
}

impl Watchers {
    /// Adds a subscriber.
    pub(super) fn add(&self) -> Watching {
        let (sender, events) = mpsc::channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let mut all = lock(&self.all);
        all.push(Watcher { events: sender, dropped: dropped.clone() });
        self.count.store(all.len(), Relaxed);
        Watching { events, dropped }
    }

    /// Tells every subscriber what happened to a session.
    pub(super) fn tell(&self, what: Happened, info: &Arc<SessionInfo>) {
        if self.count.load(Relaxed) == 0 {
            return;
        }
        let happening = Arc::new(Happening { what, info: info.clone(), figures: Figures::of(info) });
        let mut all = lock(&self.all);
        all.retain(|watcher| match watcher.events.try_send(happening.clone()) {
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
    /// The next event; `None` when the service ends.
    ///
    /// # Cancel safety
    /// Safe: an event that was not returned comes the next time.
    pub async fn next(&mut self) -> Option<Arc<Happening>> {
        self.events.recv().await
    }

    /// How many events were left out since the last call.
    pub fn dropped(&self) -> u64 {
        self.dropped.swap(0, Relaxed)
    }
}
