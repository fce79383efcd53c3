//! A running service: everything that its own task knows.

use std::sync::Arc;

use tokio::{sync::mpsc::UnboundedReceiver, task::JoinSet};

use super::setup::LoadConfig;
use crate::{
    control::{Control, api},
    dial::qrexec::Group,
    listener::{Accepting, Posts, ServedListener, Wanted},
    session::{ParkedSession, Routes, Sessions},
    spec::SocketKind,
    systemd::notify::ServedCount,
};

/// A running service.
pub(super) struct RunningService {
    pub(super) sessions: Arc<Sessions>,
    pub(super) routes: Arc<Routes>,
    /// Inherited listeners that are served.
    pub(super) listening: Vec<Arc<ServedListener>>,
    /// Legs behind inherited listeners whose own listening side is ours.
    pub(super) behind: Vec<Wanted>,
    /// Listeners that we bound ourselves.
    pub(super) posts: Posts,
    /// The tasks of all listeners.
    pub(super) accepting: Accepting,
    /// Where parked sessions arrive.
    pub(super) parking: UnboundedReceiver<ParkedSession>,
    /// Reads the configuration again.
    pub(super) load: LoadConfig,
    /// The names of inherited listeners, as far as they could be taken.
    pub(super) names: Vec<String>,
    /// The number of inherited listeners, served or not.
    pub(super) passed: usize,
    /// The control group of the children.
    pub(super) group: Option<Arc<Group>>,
    /// Inherited listeners that cannot be served.
    pub(super) refused: Vec<api::Listener>,
    /// Inherited listeners for those who scrape metrics.
    pub(super) metrics: Vec<MetricsListener>,
    /// The tasks that answer those, as long as there is anything to tell.
    pub(super) scraping: JoinSet<()>,
    /// The control socket.
    pub(super) control: Option<Control>,
}

/// A listener for those who scrape metrics.
pub(super) struct MetricsListener {
    pub(super) address: String,
    pub(super) kind: SocketKind,
}

impl RunningService {
    /// Starts a task for each listener.
    pub(super) fn accept(&mut self) {
        for listening in &self.listening {
            self.accepting.start(listening, &self.sessions);
        }
        self.posts.accept(&self.sessions, &mut self.accepting);
    }

    /// Listeners or forwards that are served, of all.
    pub(super) fn count(&self) -> ServedCount {
        let (served, all) = self.posts.count();
        let behind = self.posts.troubled_behind();
        let served = served + (self.listening.len() + self.metrics.len()).saturating_sub(behind);
        ServedCount { served, all: all + self.passed, forwards: all > 0 }
    }

    /// Why something is not served, if anything is not.
    pub(super) fn trouble(&self) -> Option<String> {
        if !self.refused.is_empty() {
            return Some("an inherited socket was refused".to_owned());
        }
        self.posts.trouble()
    }
}
