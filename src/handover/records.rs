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

impl Taken {
    /// Tells what is lost where the previous process was killed while it took up this same handover. A handover that
    /// is still whole has lost nothing: that process had not received any of it.
    pub fn after_a_kill(&mut self) {
        if self.sessions.is_empty() {
            let (what, why) = ("sessions of a restart".to_owned(), "the process was killed while it took them up");
            self.lost = vec![Lost { session: None, what, why: why.to_owned(), known: None }];
        }
    }
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

    /// Sessions whose bytes were being moved at the moment of a crash, and how many bytes were on their way.
    pub fn repaired(&self) -> (usize, u64) {
        match self {
            Self::Parked(_) => (0, 0),
            Self::Rescued(rescued) => rescued.repaired(),
        }
    }

    /// Counts what became of the sessions of a crash.
    pub fn count(&self, resumed: usize, lost: usize) {
        if let Self::Rescued(rescued) = self {
            rescued.count(resumed, lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::super::{open, record, transport};
    use super::*;

    /// A handover without sessions, of which a process has received `messages` messages.
    fn handover(messages: usize) -> Taken {
        let (ours, theirs) = transport::pair().expect("a pair");
        let mut records = record::MAGIC.to_vec();
        records.extend(record::FORMAT.to_le_bytes());
        records.resize(record::HEADER, 0);
        let fds = [ours.try_clone().expect("a descriptor")];
        transport::send(ours.as_fd(), &records, &fds).expect("there is room");
        for _ in 0..messages {
            nix::unistd::read(&theirs, &mut [0; 16]).expect("it waits");
        }
        let mut taken = open(&[theirs]);
        taken.after_a_kill();
        taken
    }

    #[test]
    fn a_process_that_is_killed_before_it_received_any_of_a_handover_has_lost_nothing() {
        let lost = |messages| {
            let taken = handover(messages);
            (taken.sessions.len(), taken.lost.into_iter().map(|lost| lost.why).collect::<Vec<_>>())
        };
        assert_eq!(lost(0), (1, vec![]));
        let killed = vec!["the process was killed while it took them up".to_owned()];
        assert_eq!([lost(1), lost(2)], [(0, killed.clone()), (0, killed)], "once");
    }
}
