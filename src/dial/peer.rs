//! The peer, while nobody reads it.

use crate::stream::{Gone, Stream};

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
