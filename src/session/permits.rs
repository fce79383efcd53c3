//! What a session takes up while it lives.

use tokio::sync::OwnedSemaphorePermit;

use crate::dial::{NotedSocket, qrexec::CallPermit};

/// The places that a session takes up, on its listener, among the calls into its qube among the outgoing sockets
/// and among the users of a unit; given back when the session ends.
#[derive(Debug, Default)]
pub struct Permits {
    /// On the listener.
    pub _session: Option<OwnedSemaphorePermit>,
    /// Among the calls.
    pub _call: Option<CallPermit>,
    /// The note of the upstream socket, where it can lead back to this service.
    pub noted: Option<Box<NotedSocket>>,
}
