//! Bytes that a relay has delivered, in the checkpoint of the session.

use std::sync::atomic::Ordering::Relaxed;

use crate::crash::Checkpoint;

/// Bytes delivered, readable by others while the relay runs; no ending loses them. They are words of the session's
/// checkpoint, so that they outlive a crash.
#[derive(Debug, Default)]
pub struct Counters {
    checkpoint: Checkpoint,
}

impl Counters {
    /// Continues counts of an earlier process.
    pub fn starting_at(up: u64, down: u64) -> Self {
        let counters = Self::default();
        counters.checkpoint.up().store(up, Relaxed);
        counters.checkpoint.down().store(down, Relaxed);
        counters
    }

    /// Continues the checkpoint of a process that crashed, with its counts.
    pub fn resume(checkpoint: Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// The checkpoint that they are in.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Bytes delivered to the upstream.
    pub fn up(&self) -> u64 {
        self.checkpoint.up().load(Relaxed)
    }

    /// Bytes delivered to the peer.
    pub fn down(&self) -> u64 {
        self.checkpoint.down().load(Relaxed)
    }

    /// Counts a datagram delivered to the upstream.
    pub fn add_up(&self, bytes: usize) {
        self.checkpoint.up().fetch_add(bytes as u64, Relaxed);
    }

    /// Counts a datagram delivered to the peer.
    pub fn add_down(&self, bytes: usize) {
        self.checkpoint.down().fetch_add(bytes as u64, Relaxed);
    }
}
