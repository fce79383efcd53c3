//! What a session takes up while it lives.

use tokio::sync::OwnedSemaphorePermit;

use crate::dial::qrexec::CallPermit;

/// The places that a session takes up, on its listener and among the calls into its qube; given back when the session
/// ends.
#[derive(Debug, Default)]
pub struct Permits {
    /// On the listener.
    pub _session: Option<OwnedSemaphorePermit>,
    /// Among the calls.
    pub _call: Option<CallPermit>,
}
