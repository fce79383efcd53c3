//! What the control room may look at, and what it has to ask.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::oneshot;

use super::{api, view};
use crate::{
    session::{Routes, Sessions},
    spec::ConfigFault,
    sys::lock,
};

/// What the control room looks at by itself: it can count, list and interrupt sessions, and read what is counted.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The name of the program.
    pub program: &'static str,
    /// The sessions.
    pub sessions: Arc<Sessions>,
    pub routes: Arc<Routes>,
    /// What is wrong with the configuration.
    pub faults: ConfigFaults,
    /// How many listeners are served.
    pub standing: ListenerCounts,
}

impl Subject {
    /// The units that are started for sessions, as they are now.
    pub(super) async fn start_units(&self) -> Vec<api::StartedUnit> {
        let backends = self.routes.backends();
        backends.refresh().await;
        let waiting = view::waiting_by_unit(&self.sessions);
        backends.view().iter().map(|unit| view::started_unit(unit, &waiting)).collect()
    }
}

/// What is wrong with the configuration that the service read last; shared with who tells of it.
#[derive(Clone, Debug, Default)]
pub struct ConfigFaults(Arc<Mutex<Vec<api::Fault>>>);

impl ConfigFaults {
    /// Another configuration was read.
    pub fn set(&self, faults: &[ConfigFault]) {
        *lock(&self.0) = faults.iter().map(view::fault).collect();
    }

    /// All of them.
    pub fn all(&self) -> Vec<api::Fault> {
        lock(&self.0).clone()
    }
}

/// How many listeners there are, and how many are served; the service's own task writes it, metrics read it.
#[derive(Clone, Debug, Default)]
pub struct ListenerCounts(Arc<[AtomicUsize; 2]>);

impl ListenerCounts {
    /// Listeners were opened, closed or refused.
    pub fn set(&self, served: usize, all: usize) {
        self.0[0].store(served, Relaxed);
        self.0[1].store(all, Relaxed);
    }

    /// Served listeners, and all of them.
    pub fn get(&self) -> (usize, usize) {
        (self.0[0].load(Relaxed), self.0[1].load(Relaxed))
    }
}

/// A question to the service's own task, which alone knows all listeners. A dropped reply is ignored.
#[derive(Debug)]
pub enum Ask {
    /// List all listeners, served or not.
    Listeners(oneshot::Sender<Vec<api::Listener>>),
    /// What the service was made of.
    Configuration(oneshot::Sender<api::Configuration>),
    /// Accept no more on the listeners that a word means, or accept again.
    Pause {
        /// See [`super::select`].
        listener: String,
        /// true: pause; false: resume.
        paused: bool,
        answer: oneshot::Sender<WordMeaning>,
    },
}

/// The listeners that a word means, and whether they were paused or resumed.
#[derive(Debug)]
pub enum WordMeaning {
    Nothing,
    /// The listeners were paused or resumed.
    One(api::Addresses),
    /// No listener was changed: each one, as a word that means this one alone.
    Several(Vec<String>),
}
