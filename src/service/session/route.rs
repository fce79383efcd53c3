//! Where the connections of one listener go, and under which conditions.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::Semaphore;

use super::{
    Shared,
    access::Access,
    tally::{Tallies, Tally},
};
use crate::{
    dial::{netns::Place, qrexec::gate::Gate},
    log::{Event, Kind, emit},
    spec::{Call, Leg, Options, Upstream, Via},
};

/// A listener's forward, resolved: everything a session needs to know.
#[derive(Debug)]
pub struct Route {
    /// The fd name, by which a later process finds the same route again.
    pub name: String,
    /// The local address, as logs have it.
    pub listener: Arc<str>,
    /// Where sessions lead; `None` for sessions that are there already while their name means nothing any more.
    pub upstream: Option<Upstream>,
    /// The same, as logs have it.
    pub upstream_text: Arc<str>,
    /// Target and service of a qrexec call, as logs have them.
    pub call_text: Option<(Arc<str>, Arc<str>)>,
    /// Who may connect.
    pub access: Access,
    /// How the upstream is dialled.
    pub via: Via,
    /// Timeouts, limits and the rest.
    pub options: Options,
    /// The inode of the namespace that it led into last; 0 before the first time.
    pub entered: AtomicU64,
    /// Sessions that this listener may still have.
    pub room: Arc<Semaphore>,
    /// What is counted of its sessions, with those of earlier routes of the same listener.
    pub tally: Arc<Tally>,
    /// What all routes to one qube and to one service share.
    pub call: Option<CallLimits>,
}

/// The limits of qrexec calls, shared by all routes that lead to the same place.
#[derive(Debug)]
pub struct CallLimits {
    /// The call.
    pub call: Call,
    /// Calls that the qube may still have.
    pub room: Arc<Semaphore>,
    /// The gate of the service.
    pub gate: Arc<Gate>,
}

impl Route {
    /// The route of a listener called `name` at `listener`.
    ///
    /// # Errors
    /// What can only be found out here: a user that does not exist.
    pub fn new(name: String, listener: &str, leg: Leg, options: Options, shared: &Shared) -> Result<Self, String> {
        let gates = &shared.gates;
        let call = match &leg.upstream {
            Upstream::Qrexec(call) => {
                Some(CallLimits { call: call.clone(), room: gates.calls(&call.target), gate: gates.gate(call) })
            }
            _ => None,
        };
        let listener: Arc<str> = listener.into();
        Ok(Self {
            name,
            tally: shared.tallies.of(&listener),
            listener,
            upstream_text: leg.upstream.to_string().into(),
            call_text: call.as_ref().map(|c| (c.call.target.as_str().into(), c.call.service.as_str().into())),
            room: Arc::new(Semaphore::new(usize::try_from(options.max_connections).unwrap_or(Semaphore::MAX_PERMITS))),
            upstream: Some(leg.upstream),
            access: Access::new(&leg.admit)?,
            via: leg.via,
            entered: AtomicU64::new(0),
            options,
            call,
        })
    }

    /// The route of sessions whose name means nothing any more.
    pub fn unknown(name: String, listener: &str, tallies: &Tallies) -> Self {
        let listener: Arc<str> = listener.into();
        Self {
            name,
            tally: tallies.of(&listener),
            listener,
            upstream: None,
            upstream_text: "".into(),
            call_text: None,
            room: Arc::new(Semaphore::new(0)),
            access: Access::default(),
            via: Via::default(),
            entered: AtomicU64::new(0),
            options: Options::default(),
            call: None,
        }
    }

    /// A dial goes through this namespace, which is noted in `at`, and told when it is another than before.
    pub fn entered(&self, place: Place, at: &Mutex<Option<Place>>) {
        let id = place.id;
        *at.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
        if self.entered.swap(id.inode, Relaxed) != id.inode {
            let text = format!("{} leads to {}, which is {id} now", self.listener, self.upstream_text);
            let mut event = Event::new(Kind::ListenerServing, text);
            event.listener = Some(self.listener.clone());
            event.upstream = Some(self.upstream_text.clone());
            emit(event);
        }
    }

    /// Whether it carries datagrams.
    pub fn is_datagram(&self) -> bool {
        matches!(self.upstream, Some(Upstream::Udp { .. }))
    }

    /// Whether another route would treat a session the same.
    pub fn leads_as(&self, other: &Self) -> bool {
        self.upstream == other.upstream
            && self.access == other.access
            && self.via == other.via
            && self.options == other.options
    }
}
