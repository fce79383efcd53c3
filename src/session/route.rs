//! Where the connections of one listener go, and under which conditions.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::sync::Semaphore;

use super::{
    access::Access,
    foreign,
    identity::ListenerIdentity,
    tally::{Snapshot, Tallies, Tally},
};
use crate::{
    dial::{
        self,
        netns::{self, Namespace},
        qrexec::{
            Qube,
            gate::{Gate, Gates},
        },
    },
    log::{Event, Kind, Reminder, emit},
    ondemand::{Backend, Backends, WatchedTarget},
    spec::{Call, HostPort, Leg, Netns, Options, UnixAddr, Upstream, Via},
    sys::lock,
};

/// A listener's forward, resolved: everything a session needs to know.
#[derive(Debug)]
pub struct Route {
    /// The fd name, by which a later process finds the same route again.
    pub name: String,
    /// What the listener is called.
    pub listener: ListenerIdentity,
    pub lead: Lead,
    /// The same, as logs have it.
    pub upstream_text: Arc<str>,
    /// Peers that may connect.
    pub access: Access,
    /// Options of the dial.
    pub via: Via,
    /// The unit that is started for sessions.
    pub backend: Option<Arc<Backend>>,
    /// Keeps the unit from being stopped while somebody else is connected to the upstream.
    _target: Option<Arc<dyn WatchedTarget>>,
    /// Timeouts, limits and the rest.
    pub options: Options,
    /// The inode of the namespace that the route led into last; 0 before the first time.
    pub entered: AtomicU64,
    /// Sessions that this listener may still have.
    pub room: Arc<Semaphore>,
    /// When the lack of local ports towards the upstream was reported last.
    pub no_port: Mutex<Reminder>,
    /// What is counted of the listener's sessions, with those of earlier routes of the same listener.
    pub tally: Arc<Tally>,
}

/// The upstream of a route's sessions.
#[derive(Debug, PartialEq, Eq)]
pub enum Lead {
    /// A service in another qube.
    Call(CallLimits),
    Unix(UnixAddr),
    Tcp {
        /// The address.
        addr: HostPort,
        /// The namespace to dial in, when that is not the service's own.
        netns: Option<Netns>,
    },
    Udp {
        /// The address.
        addr: HostPort,
        /// The namespace to dial in, when that is not the service's own.
        netns: Option<Netns>,
    },
    /// Sessions are there already while their name means nothing any more.
    Unknown,
}

/// A qrexec call, with the limits that all routes to the same place share.
#[derive(Debug)]
pub struct CallLimits {
    /// The call.
    pub call: Call,
    /// Target and service, as logs have them.
    text: (Arc<str>, Arc<str>),
    /// The calls of the qube.
    pub qube: Arc<Qube>,
    /// The gate of the service.
    pub gate: Arc<Gate>,
}

impl Lead {
    /// The namespace that the upstream is in, when that is not the service's own.
    fn netns(&self) -> Option<&Netns> {
        match self {
            Self::Tcp { netns, .. } | Self::Udp { netns, .. } => netns.as_ref(),
            Self::Call(_) | Self::Unix(_) | Self::Unknown => None,
        }
    }
}

impl PartialEq for CallLimits {
    fn eq(&self, other: &Self) -> bool {
        self.call == other.call
    }
}

impl Eq for CallLimits {}

/// Makes routes: those to one qube share the count of its calls and the gate of each service, those of one listener
/// share a tally.
#[derive(Debug)]
pub struct Routes {
    gates: Gates,
    tallies: Tallies,
    backends: Backends,
}

impl Routes {
    /// Routes that let at most `calls_per_qube` calls into one qube at a time, where no `max_calls` is given.
    pub fn new(calls_per_qube: usize) -> Self {
        Self { gates: Gates::new(calls_per_qube), tallies: Tallies::default(), backends: Backends::default() }
    }

    /// Gives each qube the smallest limit of calls that the routes of all listeners have.
    pub fn limit_calls<'a>(&self, listeners: impl IntoIterator<Item = &'a Route>) {
        let limit = |route: &'a Route| Some((route.call()?.call.target.as_str(), route.options.max_calls));
        self.gates.qubes().set_limits(listeners.into_iter().filter_map(limit));
    }

    /// Gives each unit the longest time that its listeners let it be idle.
    pub fn want_units<'a>(&self, listeners: impl IntoIterator<Item = &'a Route>) {
        let wanted = |route: &'a Route| Some((route.backend.as_ref()?, route.options.stop_when_idle));
        self.backends.want(listeners.into_iter().filter_map(wanted));
    }

    /// Takes up the units that an earlier process has left in `directory`. To be called before there are routes.
    pub fn take_up_units(&self, directory: PathBuf) {
        self.backends.take_up(directory, foreign::target);
    }

    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// Takes up what an earlier process has left.
    pub fn take_up(&self, kept: &Snapshot) {
        self.tallies.take_up(kept);
        self.gates.resume_back_offs(&kept.back_offs);
    }

    /// What the next process is to have.
    pub fn hand_over(&self) -> Snapshot {
        Snapshot { back_offs: self.gates.back_offs(), ..self.tallies.keep(true) }
    }

    /// The route of `listener`, whose fd name is `name`.
    ///
    /// # Errors
    /// What can only be found out here: a user that does not exist.
    pub fn make(&self, name: String, listener: ListenerIdentity, leg: Leg, options: Options) -> Result<Route, String> {
        let upstream_text = leg.upstream.to_string().into();
        let backend = options.start_unit.as_ref().map(|unit| self.backends.of(unit));
        let watched = |backend: &Arc<Backend>| Some(backend.add_target(&leg.upstream, foreign::target(&leg.upstream)?));
        let target = backend.as_ref().and_then(watched);
        let lead = match leg.upstream {
            Upstream::Qrexec(call) => Lead::Call(CallLimits {
                text: (call.target.as_str().into(), call.service.as_str().into()),
                qube: self.gates.qubes().qube(&call.target),
                gate: self.gates.gate(&call),
                call,
            }),
            Upstream::Unix(addr) => Lead::Unix(addr),
            Upstream::Tcp { addr, netns } => Lead::Tcp { addr, netns },
            Upstream::Udp { addr, netns } => Lead::Udp { addr, netns },
        };
        let tally = self.tallies.of(&listener);
        tally.describe(&listener, lead.netns());
        Ok(Route {
            name,
            tally,
            listener,
            lead,
            upstream_text,
            room: Arc::new(Semaphore::new(usize::try_from(options.max_connections).unwrap_or(Semaphore::MAX_PERMITS))),
            access: Access::new(&leg.admit)?,
            via: leg.via,
            backend,
            _target: target,
            entered: AtomicU64::new(0),
            no_port: Mutex::default(),
            options,
        })
    }

    /// The route of sessions whose name means nothing any more.
    pub fn unknown(&self, name: String, listener: ListenerIdentity, upstream: &str) -> Route {
        Route {
            name,
            tally: self.tallies.of(&listener),
            listener,
            lead: Lead::Unknown,
            upstream_text: upstream.into(),
            room: Arc::new(Semaphore::new(0)),
            access: Access::default(),
            via: Via::default(),
            backend: None,
            _target: None,
            entered: AtomicU64::new(0),
            no_port: Mutex::default(),
            options: Options::default(),
        }
    }
}

impl Route {
    /// The call, where the route leads to one.
    pub fn call(&self) -> Option<&CallLimits> {
        match &self.lead {
            Lead::Call(limits) => Some(limits),
            Lead::Unix(_) | Lead::Tcp { .. } | Lead::Udp { .. } | Lead::Unknown => None,
        }
    }

    /// Target and service of a qrexec call, as logs have them.
    pub fn call_text(&self) -> Option<(Arc<str>, Arc<str>)> {
        self.call().map(|limits| limits.text.clone())
    }

    /// The namespace that the route leads into, when that is not the service's own.
    pub fn netns(&self) -> Option<&Netns> {
        self.lead.netns()
    }

    /// An event about the listener and where it leads.
    pub fn event(&self, kind: Kind, text: String) -> Event {
        let mut event = self.listener.event(kind, text);
        event.upstream = Some(self.upstream_text.clone());
        event.call = self.call_text();
        event
    }

    /// The namespace that the route leads into, as it is now, for the end of a sentence; empty without one.
    pub fn place_now(&self) -> String {
        let Some(netns) = self.netns() else { return String::new() };
        match netns::find(netns) {
            Ok(found) => {
                self.entered.store(found.namespace.id.inode, Relaxed);
                format!(" ({})", found.namespace)
            }
            Err(trouble) => format!(" ({trouble})"),
        }
    }

    /// Notes in `at` that a dial goes through this namespace, and tells when it is another than before.
    pub fn entered(&self, place: Namespace, at: &Mutex<Option<Namespace>>) {
        let id = place.id;
        *lock(at) = Some(place);
        if self.entered.swap(id.inode, Relaxed) != id.inode {
            let text = format!("{} leads to {}, which is {id} now", self.listener, self.upstream_text);
            emit(self.event(Kind::ListenerServing, text));
        }
    }

    /// Whether a dial of this route can reach a listener of this service, as far as that is known before it.
    pub fn may_lead_back(&self) -> bool {
        match &self.lead {
            Lead::Tcp { addr, .. } => dial::is_served_port(addr.port),
            Lead::Unix(addr) => dial::is_served_unix(addr),
            Lead::Udp { .. } => true,
            Lead::Call(_) | Lead::Unknown => false,
        }
    }

    pub fn is_datagram(&self) -> bool {
        matches!(self.lead, Lead::Udp { .. })
    }

    /// Whether another route would treat a session the same, and call it the same.
    pub fn leads_as(&self, other: &Self) -> bool {
        self.listener == other.listener
            && self.lead == other.lead
            && self.access == other.access
            && self.via == other.via
            && self.options == other.options
    }
}
