//! The sessions of an earlier process, whichever way they came.

use std::os::fd::OwnedFd;

use super::{
    read::{Adopted, Lines, Lost},
    rescue::Rescued,
};
use crate::{crash::CrashCause, listener::Handed};

/// Everything that the previous process left.
#[derive(Debug, Default)]
pub struct Taken {
    pub sessions: Vec<Records>,
    /// The listeners that it had bound itself.
    pub listeners: Vec<Handed>,
    /// Sessions and listeners that cannot be taken up.
    pub lost: Vec<Lost>,
}

/// The sessions of an earlier process, to be read one by one, by several threads if need be.
#[derive(Debug)]
pub enum Records {
    /// The process parked them.
    Parked(Lines),
    /// The process crashed.
    Rescued(Rescued),
}

impl Records {
    pub fn len(&self) -> usize {
        match self {
            Self::Parked(lines) => lines.len(),
            Self::Rescued(rescued) => rescued.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads one; each can be read once.
    ///
    /// # Errors
    /// When the session cannot be taken up.
    pub fn read(&self, index: usize) -> Result<Adopted<'_>, Lost> {
        match self {
            Self::Parked(lines) => lines.read(index),
            Self::Rescued(rescued) => rescued.read(index),
        }
    }

    /// Why the process died, where it crashed.
    pub fn crash(&self) -> Option<CrashCause> {
        match self {
            Self::Parked(_) => None,
            Self::Rescued(rescued) => Some(rescued.cause),
        }
    }

    /// Sockets of a crash that no session has, and of which nothing was read. To be asked when all sessions are read.
    pub fn strangers(&self) -> Vec<OwnedFd> {
        match self {
            Self::Parked(_) => Vec::new(),
            Self::Rescued(rescued) => rescued.strangers(),
        }
    }

    /// Counts what became of the sessions of a crash.
    pub fn count(&self, resumed: usize, lost: usize) {
        if let Self::Rescued(rescued) = self {
            rescued.count(resumed, lost);
        }
    }
}
