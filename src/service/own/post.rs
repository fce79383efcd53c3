//! One leg of a forward whose listening side is ours: what is wanted, and what became of it.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Kept;
use crate::{
    dial::netns::{self, Id},
    log::{Event, Kind, emit},
    service::{
        bind::{self, Bound, Claim},
        listener::Listening,
        refuse,
        session::{Route, Shared, event},
    },
    spec::{Forward, Leg, Listen, Netns, Options},
};

/// The pause before a listener that cannot be opened is tried again, and the longest it doubles to.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A leg that is to have a listener of ours.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub(super) leg: Leg,
    pub(super) options: Options,
    /// What the log calls its forward.
    pub(super) label: Option<String>,
    /// Which forward of the configuration it is of.
    pub(super) number: Option<usize>,
    /// Whether it is the back leg of a forward, into which the front leg dials.
    pub(super) back: bool,
}

/// The legs of a forward whose listening side is ours; `number` tells the configuration's forwards apart, and is absent
/// for what lies behind an inherited listener.
pub fn wanted(forward: &Forward, number: Option<usize>) -> Vec<Wanted> {
    let label = forward.label.as_ref().map(|label| label.as_str().to_owned());
    let legs = forward.legs.iter().enumerate().filter(|(_, leg)| leg.listen != Listen::Inherited);
    let wanted = |(index, leg): (usize, &Leg)| {
        let (leg, options, label) = (leg.clone(), forward.options.clone(), label.clone());
        Wanted { leg, options, label, number, back: index > 0 }
    };
    legs.map(wanted).collect()
}

/// One leg, and what became of it.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) wanted: Wanted,
    /// Present while it serves.
    pub(super) serving: Option<Serving>,
    /// The last reason why it does not.
    pub(super) trouble: Option<String>,
    /// When it is tried again, and the pause before that; absent while it serves or waits for its namespace.
    pub(super) again: Option<(Instant, Duration)>,
}

#[derive(Debug)]
pub(super) struct Serving {
    pub(super) listening: Arc<Listening>,
    /// What it made in the file system.
    pub(super) claim: Option<Claim>,
    /// The namespace that it is in.
    pub(super) netns: Option<Id>,
    /// The processes that served it before, the last one first.
    pub(super) before: Vec<u32>,
    /// Ends its task.
    pub(super) stop: CancellationToken,
    /// Cancelled when its task has ended.
    pub(super) ended: CancellationToken,
}

impl Wanted {
    pub(super) fn listen(&self) -> &Listen {
        &self.leg.listen
    }

    pub(super) fn netns(&self) -> Option<&Netns> {
        match &self.leg.listen {
            Listen::Tcp { netns, .. } | Listen::Udp { netns, .. } => netns.as_ref(),
            Listen::Unix { .. } | Listen::Inherited => None,
        }
    }

    /// Where it is to listen, for people.
    pub(super) fn address(&self) -> String {
        match &self.leg.listen {
            Listen::Tcp { addr, .. } | Listen::Udp { addr, .. } => self.called(&addr.to_string()),
            Listen::Unix { addr, .. } => addr.to_string(),
            Listen::Inherited => String::new(),
        }
    }

    /// What the log calls the listener whose address is `local`.
    fn called(&self, local: &str) -> String {
        self.netns().map_or_else(|| local.to_owned(), |netns| format!("{local} in {netns}"))
    }

    fn route(&self, listener: &str, before: &[u32], shared: &Shared) -> Result<Arc<Route>, String> {
        // No name: no socket unit has it, so no other listener's sessions are ever taken for its own.
        let mut route = Route::new(String::new(), listener, self.leg.clone(), self.options.clone(), shared)?;
        if self.back {
            route.access = route.access.and_ourselves(before);
        }
        Ok(Arc::new(route))
    }

    /// Whether a listener of `other` can go on as that of this leg.
    pub(super) fn same_place(&self, other: &Self) -> bool {
        match (self.listen(), other.listen()) {
            (Listen::Tcp { addr: a, netns: m, .. }, Listen::Tcp { addr: b, netns: n, .. })
            | (Listen::Udp { addr: a, netns: m }, Listen::Udp { addr: b, netns: n }) => a == b && m == n,
            (Listen::Unix { addr: a, .. }, Listen::Unix { addr: b, .. }) => a == b,
            _ => false,
        }
    }
}

impl Post {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self { wanted, serving: None, trouble: None, again: None }
    }

    /// Tries to serve, on the socket given or on a new one.
    pub(super) fn start(&mut self, kept: Option<Kept>, shared: &Shared) {
        let now = Instant::now();
        let due = self.again.take().filter(|(at, _)| *at <= now);
        let pause = due.map_or(PAUSE.0, |(_, pause)| (pause * 2).min(PAUSE.1));
        let bound = match kept {
            Some(kept) => Ok((kept.bound, kept.before)),
            None => bind::bind(self.wanted.listen()).map(|bound| (bound, Vec::new())),
        };
        let (why, awaited) = match bound {
            Ok((bound, before)) => match self.serve(bound, before, shared) {
                Ok(()) => return self.trouble = None,
                Err(why) => (why, false),
            },
            Err(bind::Trouble::NoNamespace(why)) => (why, true),
            Err(bind::Trouble::Failed(why)) => (why, false),
        };
        if !awaited {
            self.again = Some((now + pause, pause));
        }
        if self.trouble.as_ref() != Some(&why) {
            let listen = self.wanted.listen().to_string();
            let named = self.wanted.label.as_ref().map(|label| format!("{label}: ")).unwrap_or_default();
            if awaited {
                let text = format!("{named}{listen} waits for its namespace: {why}");
                let mut event = Event::new(Kind::ListenerAwaited, text);
                event.listener = Some(listen.into());
                emit(event);
            } else {
                let why = format!("{why}; next try in {} s", event::seconds(pause));
                refuse(&format!("{named}{listen}"), None, &why);
            }
        }
        self.trouble = Some(why);
    }

    fn serve(&mut self, bound: Bound, before: Vec<u32>, shared: &Shared) -> Result<(), String> {
        let listener = self.wanted.called(&bound.local.to_string());
        let route = self.wanted.route(&listener, &before, shared)?;
        let listening = Listening::new(bound.socket, route.clone()).map_err(|e| e.to_string())?;
        let place = bound.netns.map(|id| format!(" ({id})")).unwrap_or_default();
        let named = self.wanted.label.as_ref().map(|label| format!("{label}: ")).unwrap_or_default();
        let mut text = format!("{named}{listener}{place} leads to {}{}", route.upstream_text, leads_into(&route));
        if let Some(trouble) = &self.trouble {
            text += &format!("; before, it was not served: {trouble}");
        }
        let mut event = Event::new(Kind::ListenerServing, text);
        event.listener = Some(route.listener.clone());
        event.upstream = Some(route.upstream_text.clone());
        event.call = route.call_text.clone();
        emit(event);
        self.serving = Some(Serving {
            listening: Arc::new(listening),
            claim: bound.claim,
            netns: bound.netns,
            before,
            stop: CancellationToken::new(),
            ended: ended(),
        });
        Ok(())
    }

    /// Takes over what a new configuration says of the same place.
    pub(super) fn change(&mut self, wanted: Wanted, shared: &Shared) -> bool {
        let Some(serving) = &self.serving else {
            self.wanted = wanted;
            self.start(None, shared);
            return true;
        };
        let old = serving.listening.route();
        let mut changed = false;
        match wanted.route(&old.listener, &serving.before, shared) {
            Ok(route) if !old.leads_as(&route) => {
                serving.listening.set_route(route);
                changed = true;
            }
            Ok(_) => {}
            Err(why) => refuse(&old.listener, None, &format!("it goes on as it was: {why}")),
        }
        if let (Listen::Unix { rights, .. }, Some(claim)) = (wanted.listen(), &serving.claim) {
            if matches!(self.wanted.listen(), Listen::Unix { rights: old, .. } if old != rights) {
                changed = true;
                if let Err(why) = claim.change(rights) {
                    refuse(&old.listener, None, &format!("it goes on with the rights it had: {why}"));
                }
            }
        }
        let backlog = |wanted: &Wanted| match wanted.listen() {
            Listen::Tcp { backlog, .. } | Listen::Unix { backlog, .. } => i32::try_from(backlog.get()).ok(),
            Listen::Udp { .. } | Listen::Inherited => None,
        };
        if let Some(length) = backlog(&wanted).filter(|_| backlog(&wanted) != backlog(&self.wanted)) {
            changed = true;
            let _ = socket2::SockRef::from(&serving.listening.as_fd()).listen(length);
        }
        self.wanted = wanted;
        changed
    }
}

/// The namespace that a route leads into, as it is now.
pub fn leads_into(route: &Route) -> String {
    use crate::spec::Upstream;
    match &route.upstream {
        Some(Upstream::Tcp { netns: Some(netns), .. } | Upstream::Udp { netns: Some(netns), .. }) => {
            match netns::find(netns) {
                Ok(found) => {
                    route.entered.store(found.place.id.inode, Relaxed);
                    format!(" ({})", found.place)
                }
                Err(trouble) => format!(" ({trouble})"),
            }
        }
        _ => String::new(),
    }
}

fn ended() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel(); // no task runs yet
    token
}
