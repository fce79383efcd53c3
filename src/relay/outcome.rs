//! How a relay stops, and by which side.

use std::{io, time::Duration};

use super::interrupt::Why;

/// The two ends of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that connected to us.
    Peer,
    /// The end that we dialled.
    Upstream,
}

impl Side {
    pub fn other(self) -> Self {
        match self {
            Self::Peer => Self::Upstream,
            Self::Upstream => Self::Peer,
        }
    }
}

/// Reason why a relay stopped.
#[derive(Debug)]
pub enum RelayOutcome {
    /// Both directions ended as their senders wished, or the upstream ended and the peer's rest was dropped.
    Eof {
        /// Bytes of the peer that came after the upstream had stopped taking any: 0 for a complete transfer.
        dropped: u64,
    },
    /// One side was reset or vanished; whatever it had sent before was delivered.
    Reset {
        by: Side,
        /// The error, where the kernel gave one.
        error: Option<io::Error>,
    },
    /// The upstream has ended its sending, and the peer was not told ([`hold_end`](super::Relay::hold_end)). The relay goes on.
    UpstreamEnded,
    /// No byte moved for the idle timeout.
    Idle,
    /// One side acknowledged nothing for this long; who runs the relay finds that out
    /// ([`unanswered`](super::Relay::unanswered)).
    Silent {
        side: Side,
        /// The time.
        allowed: Duration,
    },
    /// Stopped from outside; the relay can be parked or ended.
    Interrupted(Why),
}
