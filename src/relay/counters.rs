//! Bytes that a relay has delivered.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes delivered, readable by others while the relay runs; no ending loses them.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
}

impl Counters {
    /// Continues counts of an earlier process.
    pub fn starting_at(up: u64, down: u64) -> Self {
        Self { up: up.into(), down: down.into() }
    }

    /// Bytes delivered to the upstream.
    pub fn up(&self) -> u64 {
        self.up.load(Relaxed)
    }

    /// Bytes delivered to the peer.
    pub fn down(&self) -> u64 {
        self.down.load(Relaxed)
    }

    /// Counts a datagram delivered to the upstream.
    pub fn add_up(&self, bytes: usize) {
        self.up.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts a datagram delivered to the peer.
    pub fn add_down(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Relaxed);
    }
}
