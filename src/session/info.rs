//! What every room may know about a session.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::{access::Peer, redial::Redials, route::Route};
use crate::{
    dial::{Passage, qrexec::UNDECIDED},
    ondemand::{Backend, BackendUse},
    relay::{Counters, Interrupt},
    sys::lock,
};

/// What every room may know about a session.
#[derive(Debug)]
pub struct SessionInfo {
    /// SESSION_ID.
    pub id: Uuid,
    /// The route that the session took.
    pub route: Arc<Route>,
    pub peer: Peer,
    /// How the session's bytes came here; `None` where that is not needed, or the listener is gone.
    pub passage: Option<Passage>,
    /// The use of a unit: of that of the route, but for a session of an earlier process whose name leads elsewhere by now.
    pub used: Option<BackendUse>,
    /// When the peer's connection was accepted.
    pub accepted: Instant,
    /// Milliseconds from accept to connected, plus one; 0 while the session is not connected.
    dial_ms: AtomicU64,
    /// Milliseconds that the session has waited for a call of its qube, without the present wait.
    queued_ms: AtomicU64,
    /// Milliseconds from accept to the present wait, plus one; 0 while the session does not wait for a call.
    queued_since: AtomicU64,
    /// What the session waits for at its gate, and since when.
    waits: Mutex<Option<(AtGate, Instant)>>,
    /// NETNS: path and inode of the namespace in which the upstream was dialled.
    netns: OnceLock<Arc<str>>,
    /// Calls that were made again.
    pub redials: Redials,
    /// Bytes delivered.
    pub counters: Counters,
    /// Interrupts the session.
    pub interrupt: Interrupt,
}

impl SessionInfo {
    /// A session accepted `age` ago.
    pub fn new(id: Uuid, route: Arc<Route>, peer: Peer, age: Duration, counters: Counters) -> Self {
        let now = Instant::now();
        Self {
            id,
            used: route.backend.as_ref().map(Backend::begin_use),
            route,
            peer,
            passage: None,
            accepted: now.checked_sub(age).unwrap_or(now),
            dial_ms: AtomicU64::new(0),
            queued_ms: AtomicU64::new(0),
            queued_since: AtomicU64::new(0),
            waits: Mutex::default(),
            netns: OnceLock::new(),
            redials: Redials::default(),
            counters,
            interrupt: Interrupt::default(),
        }
    }

    /// The unit that the session uses.
    pub fn backend(&self) -> Option<&Arc<Backend>> {
        self.used.as_ref().map(BackendUse::backend)
    }

    /// Notes how the session's bytes came here.
    #[must_use]
    pub fn through(self, passage: Passage) -> Self {
        Self { passage: Some(passage), ..self }
    }

    /// Milliseconds from accept to connected, once the session is connected.
    pub fn dial_ms(&self) -> Option<u64> {
        self.dial_ms.load(Relaxed).checked_sub(1)
    }

    /// Notes that the session was connected `ms` milliseconds after accept, in the namespace `netns` if that is not the
    /// service's own.
    pub fn connected(&self, ms: u64, netns: Option<Arc<str>>) {
        if let Some(netns) = netns {
            let _ = self.netns.set(netns); // a session is connected once
        }
        self.dial_ms.store(ms.saturating_add(1), Relaxed);
    }

    /// Notes that the session has waited for this for `taken`, until the guard is dropped.
    pub fn waits(self: &Arc<Self>, what: AtGate, taken: Duration) -> WaitsAtGate {
        let now = Instant::now();
        *lock(&self.waits) = Some((what, now.checked_sub(taken).unwrap_or(now)));
        WaitsAtGate(self.clone())
    }

    /// What the session waits for before it is connected, as far as that takes longer than usual.
    pub fn waits_for(&self) -> Option<WaitsFor> {
        if self.is_queued() {
            return Some(WaitsFor::Call);
        }
        let (what, _) = (*lock(&self.waits)).filter(|(_, since)| since.elapsed() >= UNDECIDED)?;
        Some(match what {
            AtGate::Turn => WaitsFor::Turn,
            AtGate::Decision => WaitsFor::Dom0,
        })
    }

    /// Path and inode of the namespace in which the upstream was dialled, if that is not the service's own.
    pub fn netns(&self) -> Option<&Arc<str>> {
        self.netns.get()
    }

    /// Notes that the session waits for a call of its qube, until the guard is dropped.
    pub fn queue(self: &Arc<Self>) -> Queued {
        self.queued_since.store(self.age_ms().saturating_add(1), Relaxed);
        Queued(self.clone())
    }

    /// Whether the session waits for a call of its qube.
    pub fn is_queued(&self) -> bool {
        self.queued_since.load(Relaxed) > 0
    }

    /// How long the session has waited for a call of its qube, in milliseconds.
    pub fn queued_ms(&self) -> u64 {
        let now = self.queued_since.load(Relaxed).checked_sub(1).map_or(0, |since| self.age_ms().saturating_sub(since));
        self.queued_ms.load(Relaxed).saturating_add(now)
    }

    /// Notes that the session waited this long for a call of its qube, in an earlier process.
    pub fn was_queued(&self, ms: u64) {
        self.queued_ms.store(ms, Relaxed);
    }

    /// When the set-up of a call is over at the latest, where it may take this long. The wait for a call of the qube
    /// does not count.
    pub fn setup_deadline(&self, allowed: Duration) -> Instant {
        self.accepted + allowed + Duration::from_millis(self.queued_ms())
    }

    /// Milliseconds since accept.
    pub fn age_ms(&self) -> u64 {
        u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Where a session stands at the gate of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtGate {
    /// It is not its turn to begin a call.
    Turn,
    /// dom0 has not decided about its call.
    Decision,
}

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// dom0 has not decided about its call.
    Dom0,
    /// It is not its turn to begin a call: dom0 has not decided about earlier ones, or has refused one just now.
    Turn,
    /// Its qube has no call left.
    Call,
}

/// A session waits at the gate of its service while this lives.
#[derive(Debug)]
pub struct WaitsAtGate(Arc<SessionInfo>);

impl Drop for WaitsAtGate {
    fn drop(&mut self) {
        *lock(&self.0.waits) = None;
    }
}

/// A session waits for a call of its qube while this lives.
#[derive(Debug)]
pub struct Queued(Arc<SessionInfo>);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.queued_ms.store(self.0.queued_ms(), Relaxed);
        self.0.queued_since.store(0, Relaxed);
    }
}
