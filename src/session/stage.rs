//! Where a session stands, and what it takes up meanwhile.

use std::sync::Arc;

use super::flows::Flow;
use crate::{
    dial::qrexec::{Helper, LiveCall, gate::Ticket},
    relay::Relay,
    stream::Stream,
};

/// Stage of a session's life.
#[derive(Debug)]
pub enum Stage {
    /// The session is not dialled yet, or dials.
    Waiting(Stream),
    /// A qrexec call that is not decided yet.
    SettingUp(Box<SettingUp>),
    /// Bytes flow; through a child where the upstream is a qrexec call.
    Relaying(Box<Relay>, Option<Box<Helper>>),
    /// Datagrams flow.
    Flow(Arc<Flow>),
}

/// A qrexec call that is not decided yet, and who waits for it.
#[derive(Debug)]
pub struct SettingUp {
    /// The peer; not read before the call is connected.
    pub peer: Stream,
    /// The call.
    pub call: LiveCall,
    pub ticket: Ticket,
}

/// The stage after this one; `None` when the session's task is done.
pub(super) type NextStage = Option<Stage>;
