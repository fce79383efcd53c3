//! A running service: everything that its own task knows.

use std::{os::fd::OwnedFd, sync::Arc};

use tokio::{io::unix::AsyncFd, sync::mpsc::UnboundedReceiver, task::JoinSet};

use super::setup::ReadTexts;
use crate::{
    control::{ConfigFaults, Control, ListenerCounts, api},
    dial::qrexec::Group,
    handover::CrashGuard,
    listener::{Accepting, Posts, RefusedListener, ServedListener, Wanted},
    session::{ParkedSession, Routes, Sessions},
    spec::{Config, ConfigEntry, ConfigFault, FaultEffect, LastTexts, SocketKind},
    systemd::{notify::ServedCount, sockets::SocketUnits},
};

/// A running service.
pub(super) struct RunningService {
    pub(super) sessions: Arc<Sessions>,
    pub(super) routes: Arc<Routes>,
    /// Inherited listeners that are served.
    pub(super) listening: Vec<Arc<ServedListener>>,
    /// For each of these, the legs behind it whose own listening side is ours.
    pub(super) behind: Vec<Vec<Wanted>>,
    /// Listeners that we bound ourselves.
    pub(super) posts: Posts,
    /// The tasks of all listeners.
    pub(super) accepting: Accepting,
    /// Where parked sessions arrive.
    pub(super) parking: UnboundedReceiver<ParkedSession>,
    /// Reads the files of the configuration again.
    pub(super) read: ReadTexts,
    /// The configuration that is in force.
    pub(super) config: Arc<Config>,
    /// The texts that it was made of.
    pub(super) texts: LastTexts,
    /// The `--forward` arguments.
    pub(super) forwards: Vec<String>,
    /// What is wrong with the configuration that was read last.
    pub(super) faults: Vec<ConfigFault>,
    /// The same, for who tells of it.
    pub(super) told_faults: ConfigFaults,
    /// How many listeners are served, for who tells of it.
    pub(super) standing: ListenerCounts,
    /// The names and kinds of inherited listeners, as far as they could be taken.
    pub(super) sockets: Vec<(String, SocketKind)>,
    /// The number of inherited listeners, served or not.
    pub(super) passed: usize,
    /// The control group of the children.
    pub(super) group: Option<Arc<Group>>,
    /// Inherited descriptors that are no listeners.
    pub(super) strange: Vec<api::Listener>,
    /// Inherited listeners whose name means nothing.
    pub(super) refused: Vec<RefusedListener>,
    /// The units of inherited listeners.
    pub(super) units: SocketUnits,
    /// Inherited listeners for those who scrape metrics.
    pub(super) metrics: Vec<MetricsListener>,
    /// The tasks that answer those, as long as there is anything to tell.
    pub(super) scraping: JoinSet<()>,
    /// The control socket.
    pub(super) control: Option<Control>,
    /// What this process has against its own crash.
    pub(super) guard: Option<CrashGuard>,
    /// Stands for the shadow: readable when the shadow has ended.
    pub(super) shadow: Option<AsyncFd<OwnedFd>>,
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
        for refused in &mut self.refused {
            refused.hold(&mut self.accepting);
        }
        self.posts.accept(&self.sessions, &mut self.accepting);
    }

    /// Listeners or forwards that are served, of all.
    pub(super) fn count(&self) -> ServedCount {
        let (served, all) = self.posts.count();
        let behind = self.posts.troubled_behind();
        let all = all + self.refused_forwards().count();
        let served = served + (self.listening.len() + self.metrics.len()).saturating_sub(behind);
        ServedCount { served, all: all + self.passed, forwards: all > 0 }
    }

    /// Forwards that the configuration's faults keep from a listener of ours.
    pub(super) fn refused_forwards(&self) -> impl Iterator<Item = &ConfigEntry> {
        self.config.entries().iter().filter(|entry| !entry.refused().is_empty() && !entry.address().is_empty())
    }

    /// Whether a fault keeps a forward from being served.
    pub(super) fn refuses_forwards(&self) -> bool {
        self.faults.iter().any(|fault| fault.effect != FaultEffect::Kept)
    }

    /// Why something is not served, if anything is not.
    pub(super) fn trouble(&self) -> Option<String> {
        if let Some(fault) = self.faults.iter().find(|fault| fault.effect != FaultEffect::Kept) {
            return Some(fault.to_string());
        }
        if !self.refused.is_empty() || !self.strange.is_empty() {
            return Some("an inherited socket was refused".to_owned());
        }
        self.posts.trouble()
    }
}
