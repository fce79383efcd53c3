//! Why a dial ends without a connection.

use std::{io, time::Duration};

use super::netns;
use crate::{
    proto::qrexec::SetUp,
    stream::{Gone, Stream},
};

/// Why there is no connection.
#[derive(Debug)]
pub enum Failure {
    /// The call ended before it was connected: what the exit code said, `None` when it is not known (the child was
    /// taken over from an earlier process, which alone could have waited for it).
    Call(Option<SetUp>),
    /// Another session asked the same, and the answer was no.
    RefusedAlready,
    /// It took longer than allowed.
    TimedOut(Duration),
    /// The peer went away meanwhile.
    PeerGone,
    /// The network namespace to dial from could not be used.
    Netns(netns::Trouble),
    /// A system call failed.
    Io {
        /// What was being done, such as `connect to 10.0.0.5:22`.
        doing: String,
        /// What the kernel said.
        error: io::Error,
    },
}

/// Waits until `peer` is gone while nobody reads it. A UNIX peer that wrote and closed entirely is not gone as long
/// as its bytes wait here: they are still to be delivered.
///
/// # Cancel safety
/// Safe: nothing is read.
pub async fn abandoned(peer: &Stream) {
    if peer.gone().await == Gone::Closed && peer.unread() > 0 {
        std::future::pending::<()>().await;
    }
}
