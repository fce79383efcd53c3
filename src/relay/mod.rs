//! Two ends in, bytes moved both ways, an ending out.
//!
//! The relay knows no addresses and no services: it is given two connected [`End`]s and tells how it ended, or, when
//! interrupted, leaves everything in a state that another process can take up ([`Relay::park`]).

pub mod datagram;
mod direction;
mod end;
mod interrupt;
mod pool;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

pub use direction::{ParkedDirection, Phase};
pub use end::{End, ParkedEnd};
pub use interrupt::{Interrupt, Why};
pub use stream::{Parked, Relay};

/// Closes the pipes that are kept for the next bulk transfer: for when there is none to be expected soon.
pub fn let_go() {
    pool::empty();
}

/// Bytes delivered, readable by others while the relay runs; no ending loses them.
#[derive(Debug, Default)]
pub struct Counters {
    up: AtomicU64,
    down: AtomicU64,
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

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who connected to us.
    Peer,
    /// What we dialled.
    Upstream,
}

impl Side {
    /// The one opposite.
    pub fn other(self) -> Self {
        match self {
            Self::Peer => Self::Upstream,
            Self::Upstream => Self::Peer,
        }
    }
}

/// How a relay stopped.
#[derive(Debug)]
pub enum Outcome {
    /// Both directions ended as their senders wished, or the upstream ended and the peer's rest was dropped.
    Eof {
        /// Bytes of the peer that came after the upstream had stopped taking any: 0 for a complete transfer.
        dropped: u64,
    },
    /// One side was reset or vanished; whatever it had sent before was delivered.
    Reset {
        /// Which side.
        by: Side,
        /// What the kernel said, where it said anything.
        error: Option<io::Error>,
    },
    /// The upstream has ended its sending, and the peer was not told ([`Relay::hold_end`]). The relay goes on.
    UpstreamEnded,
    /// No byte moved for the idle timeout.
    Idle,
    /// Stopped from outside; the relay can be parked or ended.
    Interrupted(Why),
}
