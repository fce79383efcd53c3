//! Bytes that a relay has delivered, in the note of the session.

use std::sync::atomic::Ordering::Relaxed;

use crate::crash::Note;

/// Bytes delivered, readable by others while the relay runs; no ending loses them. They are words of the session's
/// note, so that they outlive a crash.
#[derive(Debug, Default)]
pub struct Counters {
    note: Note,
}

impl Counters {
    /// Continues counts of an earlier process.
    pub fn starting_at(up: u64, down: u64) -> Self {
        let counters = Self::default();
        counters.note.up().store(up, Relaxed);
        counters.note.down().store(down, Relaxed);
        counters
    }

    /// Continues the note of a process that crashed, with its counts.
    pub fn resume(note: Note) -> Self {
        Self { note }
    }

    /// The note that they are in.
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// Bytes delivered to the upstream.
    pub fn up(&self) -> u64 {
        self.note.up().load(Relaxed)
    }

    /// Bytes delivered to the peer.
    pub fn down(&self) -> u64 {
        self.note.down().load(Relaxed)
    }

    /// Counts a datagram delivered to the upstream.
    pub fn add_up(&self, bytes: usize) {
        self.note.up().fetch_add(bytes as u64, Relaxed);
    }

    /// Counts a datagram delivered to the peer.
    pub fn add_down(&self, bytes: usize) {
        self.note.down().fetch_add(bytes as u64, Relaxed);
    }
}
