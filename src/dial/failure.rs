//! Failures of a dial.

use std::{io, path::PathBuf, time::Duration};

use super::netns;
use crate::proto::qrexec::SetUp;

/// Reasons why there is no connection.
#[derive(Debug)]
pub enum Failure {
    /// The call ended before it was connected: what the exit code said, `None` when it is not known (the child was
    /// taken over from an earlier process, which alone could have waited for it).
    Call(Option<SetUp>),
    /// Another session asked the same, and the answer was no.
    RefusedAlready,
    /// The dial took longer than allowed.
    TimedOut(Duration),
    /// The peer went away meanwhile.
    PeerGone,
    /// The network namespace to dial from could not be used.
    Netns(netns::Trouble),
    /// A program could not be started.
    Start {
        /// The path of the program.
        program: PathBuf,
        /// Error of the kernel.
        error: io::Error,
    },
    /// A system call failed.
    Io {
        /// What was being done, such as `connect to 10.0.0.5:22`.
        doing: String,
        /// Error of the kernel.
        error: io::Error,
    },
}

/// The failure of a system call.
pub(super) fn io_failure(doing: &str, error: io::Error) -> Failure {
    Failure::Io { doing: doing.to_owned(), error }
}
