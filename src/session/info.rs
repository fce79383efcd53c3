//! What every room may know about a session.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::route::Route;
use crate::relay::{Counters, Interrupt};

/// What every room may know about a session.
#[derive(Debug)]
pub struct Info {
    /// SESSION_ID.
    pub id: Uuid,
    /// The route that the session took.
    pub route: Arc<Route>,
    /// Who connected, as logs have it.
    pub peer: Arc<str>,
    /// When the peer's connection was accepted.
    pub accepted: Instant,
    /// Milliseconds from accept to connected, plus one; 0 while the session is not connected.
    dial_ms: AtomicU64,
    /// Bytes delivered.
    pub counters: Counters,
    /// Interrupts the session.
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

    /// Milliseconds from accept to connected, once the session is connected.
    pub fn dial_ms(&self) -> Option<u64> {
        self.dial_ms.load(Relaxed).checked_sub(1)
    }

    /// Notes that the session was connected `ms` milliseconds after accept.
    pub fn connected(&self, ms: u64) {
        self.dial_ms.store(ms.saturating_add(1), Relaxed);
    }

    /// Milliseconds since accept.
    pub fn age_ms(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
