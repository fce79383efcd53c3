//! An endpoint becomes a connected stream, by a deadline, or a failure that says what to do.

pub mod netns;
pub mod proxy;
pub mod qrexec;
mod tcp;
mod udp;
mod unix;
mod way;

use std::{io, time::Duration};

pub use tcp::{connect as tcp, keep_alive};
pub use udp::connect as udp;
pub use unix::connect as unix;
pub use way::Way;

use crate::stream::{Gone, Stream};

/// Why there is no connection.
#[derive(Debug)]
pub enum Failure {
    /// The call ended before it was connected: what the exit code said, `None` when it is not known (the child was
    /// taken over from an earlier process, which alone could have waited for it).
    Call(Option<crate::proto::qrexec::SetUp>),
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
