//! What there is, put into words when somebody asks.

use std::{
    collections::HashMap,
    os::fd::AsFd as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::api;
use crate::{
    listener::{Post, RefusedListener, ServedListener, Standing},
    log::escape,
    ondemand::{BackendView, UnitState},
    session::{Figures, Happened, Happening, ListenerIdentity, Route, SessionInfo, Sessions, TallyKey, WaitsFor},
    spec::{ConfigFault, SocketKind},
    sys,
};

/// A session, without its process.
pub fn session(info: &SessionInfo) -> api::Session {
    session_with(info, Figures::of(info))
}

fn wait(wait: WaitsFor) -> api::Wait {
    match wait {
        WaitsFor::Dom0 => api::Wait::Dom0,
        WaitsFor::Turn => api::Wait::Turn,
        WaitsFor::Call => api::Wait::Call,
    }
}

fn session_with(info: &SessionInfo, figures: Figures) -> api::Session {
    let waits_for = info.waits_for().filter(|_| figures.dial_ms.is_none());
    let asks = matches!(waits_for, Some(WaitsFor::Dom0 | WaitsFor::Turn));
    let behind = info.route.call().filter(|_| asks).map(|limits| limits.gate.undecided());
    api::Session {
        id: info.id.to_string(),
        listener: info.route.listener.to_string(),
        name: name_of(&info.route),
        transport: Some(info.route.listener.transport),
        label: text(info.route.listener.label.as_ref()),
        netns: info.route.netns().map(ToString::to_string),
        listen_netns: text(info.route.listener.netns.as_ref()),
        peer: info.peer.to_string(),
        upstream: info.route.upstream_text.to_string(),
        connected: figures.dial_ms.is_some(),
        age_ms: figures.age_ms,
        dial_ms: figures.dial_ms,
        up_bytes: figures.up,
        down_bytes: figures.down,
        waits_for: waits_for.map(wait),
        behind: behind.map(|n| n as u64),
        process: None,
        start_unit: info.backend().map(|backend| backend.unit().to_string()),
        start_unit_state: info.backend().filter(|_| figures.dial_ms.is_none()).map(|b| active(b.view().state)),
        start_unit_now: None,
    }
}

fn active(state: UnitState) -> api::ActiveState {
    match state {
        UnitState::Inactive => api::ActiveState::Inactive,
        UnitState::Activating => api::ActiveState::Activating,
        UnitState::Active => api::ActiveState::Active,
        UnitState::Deactivating => api::ActiveState::Deactivating,
        UnitState::Failed => api::ActiveState::Failed,
    }
}

/// The sessions of each unit that wait until it answers: for its start, or for its socket.
pub fn waiting_by_unit(sessions: &Sessions) -> HashMap<Arc<str>, u64> {
    let mut waiting = HashMap::new();
    sessions.for_each(|info| {
        let unit = info.backend().filter(|_| info.dial_ms().is_none());
        unit.into_iter().for_each(|backend| *waiting.entry(backend.unit().clone()).or_default() += 1);
    });
    waiting
}

/// A unit that is started for sessions.
pub fn started_unit(view: &BackendView, waiting: &HashMap<Arc<str>, u64>) -> api::StartedUnit {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    api::StartedUnit {
        unit: view.unit.to_string(),
        state: active(view.state),
        since: view.since.and_then(seconds),
        sessions: view.users as u64,
        waiting: waiting.get(&view.unit).copied().unwrap_or(0),
        stops_at: view.stops_at.and_then(seconds),
        last_start_ms: view.last_start.map(ms),
        median_start_ms: view.median_start.map(ms),
        memory_before_stop: view.memory_before_stop,
        ours: view.ours,
    }
}

fn text(text: Option<&Arc<str>>) -> Option<String> {
    text.map(ToString::to_string)
}

/// The fd name, else the label; may be empty.
fn name_of(route: &Route) -> String {
    match (&*route.name, &route.listener.label) {
        ("", Some(label)) => escape(label.as_bytes()),
        (name, _) => escape(name.as_bytes()),
    }
}

fn key(route: &Route) -> TallyKey {
    (route.listener.address.clone(), route.listener.transport)
}

/// The sessions of one listener.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    sessions: u64,
    /// Of these, those that wait for a call of their qube.
    queued: u64,
    /// Of these, those that wait for dom0's decision about their call or about earlier ones.
    undecided: u64,
}

/// The sessions of each listener.
pub fn sessions_by_listener(sessions: &Sessions) -> HashMap<TallyKey, Load> {
    let mut count: HashMap<_, Load> = HashMap::new();
    sessions.for_each(|info| {
        let load = count.entry(key(&info.route)).or_default();
        load.sessions += 1;
        match info.waits_for() {
            Some(WaitsFor::Call) => load.queued += 1,
            Some(WaitsFor::Dom0 | WaitsFor::Turn) => load.undecided += 1,
            None => {}
        }
    });
    count
}

/// A listener that is served, or paused.
pub fn listener(listening: &ServedListener, sessions: &HashMap<TallyKey, Load>) -> api::Listener {
    let route = listening.route();
    let load = sessions.get(&key(&route)).copied().unwrap_or_default();
    api::Listener {
        address: route.listener.to_string(),
        kind: Some(listening.kind()),
        transport: Some(listening.kind()),
        name: name_of(&route),
        label: text(route.listener.label.as_ref()),
        unit: None,
        netns: route.netns().map(ToString::to_string),
        listen_netns: text(route.listener.netns.as_ref()),
        upstream: route.upstream_text.to_string(),
        state: if route.tally.paused() { api::State::Paused } else { api::State::Serving },
        reason: None,
        sessions: load.sessions,
        max_sessions: route.options.max_connections.into(),
        waiting: match listening.kind() {
            SocketKind::Tcp => sys::tcp_backlog(listening.as_fd()).map(u64::from),
            SocketKind::Unix | SocketKind::Udp => None,
        },
        queued: route.call().map(|_| load.queued),
        undecided: route.call().map(|_| load.undecided),
        start_unit: route.backend.as_ref().map(|backend| backend.unit().to_string()),
    }
}

/// A listener of ours, served or not.
pub fn post(post: &Post, sessions: &HashMap<TallyKey, Load>) -> api::Listener {
    if let Some(listening) = post.listening() {
        return listener(listening, sessions);
    }
    let state = match post.standing() {
        Standing::Awaited { .. } => api::State::Awaited,
        Standing::Untried | Standing::Serving(_) | Standing::NoRoom { .. } | Standing::Failed { .. } => {
            api::State::Refused
        }
    };
    let why = post.trouble().unwrap_or_default();
    let (upstream, identity) = (post.upstream(), post.identity());
    let netns = post.upstream_netns().map(ToString::to_string);
    let name = identity.label.clone().unwrap_or_default();
    api::Listener { upstream, netns, ..unserved(&identity, &name, state, why) }
}

/// An inherited listener that is refused; connections that are held are among those that wait.
pub fn refused(refused: &RefusedListener) -> api::Listener {
    let listener = &refused.listener;
    let kind = listener.socket.kind();
    let waiting = match kind {
        SocketKind::Tcp => sys::tcp_backlog(listener.socket.as_fd()).map(u64::from),
        SocketKind::Unix => Some(0),
        SocketKind::Udp => None,
    };
    api::Listener {
        waiting: waiting.map(|n| n + refused.held() as u64),
        ..troubled(&listener.local.to_string(), Some(kind), &listener.name, api::State::Refused, &refused.why())
    }
}

/// An event of a session, for `Watch`.
pub fn happening(Happening { what, info, figures }: &Happening) -> api::Event {
    let session = Some(session_with(info, *figures));
    match what {
        Happened::Began => api::Event { session, ..event(api::Happened::Began) },
        Happened::Connected => api::Event { session, ..event(api::Happened::Connected) },
        Happened::Ended(ending) => api::Event {
            session,
            end: Some(ending.end.as_str().to_owned()),
            exit_code: ending.exit,
            note: Some(ending.note.clone()).filter(|note| !note.is_empty()),
            ..event(api::Happened::Ended)
        },
    }
}

/// Events were left out.
pub fn dropped(n: u64) -> api::Event {
    api::Event { dropped: Some(n), ..event(api::Happened::Dropped) }
}

/// An event that says no more than that.
pub fn event(event: api::Happened) -> api::Event {
    api::Event { event, session: None, end: None, exit_code: None, note: None, dropped: None }
}

/// A fault of the configuration.
pub fn fault(fault: &ConfigFault) -> api::Fault {
    let (place, text) = (fault.fault.place(), fault.to_string());
    let message = text.strip_prefix(&format!("{place}: ")).unwrap_or(&text).to_owned();
    api::Fault { place, message, effect: fault.effect }
}

/// A listener that is not served, with all that it is called.
pub fn unserved(identity: &ListenerIdentity, name: &str, state: api::State, why: &str) -> api::Listener {
    api::Listener {
        label: text(identity.label.as_ref()),
        listen_netns: text(identity.netns.as_ref()),
        ..troubled(&identity.address, Some(identity.transport), name, state, why)
    }
}

/// A listener that is not served.
pub fn troubled(address: &str, kind: Option<SocketKind>, name: &str, state: api::State, why: &str) -> api::Listener {
    api::Listener {
        address: address.to_owned(),
        kind,
        transport: kind,
        name: escape(name.as_bytes()),
        label: None,
        unit: None,
        netns: None,
        listen_netns: None,
        upstream: String::new(),
        state,
        reason: Some(why.to_owned()),
        sessions: 0,
        max_sessions: 0,
        waiting: None,
        queued: None,
        undecided: None,
        start_unit: None,
    }
}
