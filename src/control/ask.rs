//! What the control room may look at, and what it has to ask.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::api;
use crate::session::{Routes, Sessions};

/// What the control room looks at by itself: it can count, list and interrupt sessions, and read what is counted.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The name of the program.
    pub program: &'static str,
    /// The sessions.
    pub sessions: Arc<Sessions>,
    pub routes: Arc<Routes>,
}

/// A question to the service's own task, which alone knows all listeners. A dropped reply is ignored.
#[derive(Debug)]
pub enum Ask {
    /// List all listeners, served or not.
    Listeners(oneshot::Sender<Vec<api::Listener>>),
    /// Accept no more on the listeners that are called so, or accept again; the answer is their addresses.
    Pause {
        /// Address, name or label.
        listener: String,
        /// true: pause; false: resume.
        paused: bool,
        /// Addresses of the matching listeners.
        answer: oneshot::Sender<Vec<String>>,
    },
}
