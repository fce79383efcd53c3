//! A listener of ours between two processes.

use super::bind::{Bound, SocketClaim};

/// A listener of ours that the previous process handed over, or that the next process is to have.
#[derive(Debug)]
pub struct Handed {
    /// What it listens on, as the configuration had it ([`crate::spec::Listen`]'s text).
    pub listen: String,
    /// The socket and what belongs to it.
    pub bound: Bound,
    /// The processes that served it, the last one first.
    pub before: Vec<u32>,
}

impl Handed {
    /// The next process has the listener: its files in the file system stay.
    pub fn release(self) {
        self.bound.claim.map(SocketClaim::release).unwrap_or_default();
    }
}
