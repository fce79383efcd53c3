//! What there is, put into words when somebody asks.

use std::{collections::HashMap, os::fd::AsFd as _, sync::Arc};

use super::api;
use crate::{
    service::{
        listener::Listening,
        session::{Info, Shared},
    },
    spec::SocketKind,
    sys,
};

/// A session, without its process.
pub fn session(info: &Info) -> api::Session {
    let dial_ms = info.dial_ms();
    api::Session {
        id: info.id.to_string(),
        listener: info.route.listener.to_string(),
        name: crate::log::escape(info.route.name.as_bytes()),
        peer: info.peer.to_string(),
        upstream: info.route.upstream_text.to_string(),
        connected: dial_ms.is_some(),
        age_ms: info.age_ms(),
        dial_ms,
        up_bytes: info.counters.up(),
        down_bytes: info.counters.down(),
        process: None,
    }
}

/// Sessions of each listener.
pub fn sessions_by_listener(shared: &Shared) -> HashMap<Arc<str>, u64> {
    let mut count = HashMap::new();
    shared.sessions.for_each(|info| *count.entry(info.route.listener.clone()).or_default() += 1);
    count
}

/// A listener that is served, or paused.
pub fn listener(listening: &Listening, name: &str, sessions: &HashMap<Arc<str>, u64>) -> api::Listener {
    let route = listening.route();
    api::Listener {
        address: route.listener.to_string(),
        kind: Some(kind(listening.kind())),
        name: crate::log::escape(name.as_bytes()),
        upstream: route.upstream_text.to_string(),
        state: if route.tally.paused() { api::State::Paused } else { api::State::Serving },
        reason: None,
        sessions: sessions.get(&route.listener).copied().unwrap_or(0),
        max_sessions: route.options.max_connections.into(),
        waiting: match listening.kind() {
            SocketKind::Tcp => sys::tcp_backlog(listening.as_fd()).map(u64::from),
            SocketKind::Unix | SocketKind::Udp => None,
        },
    }
}

/// A listener that is not served.
pub fn troubled(address: &str, kind: Option<api::Kind>, name: &str, state: api::State, why: &str) -> api::Listener {
    api::Listener {
        address: address.to_owned(),
        kind,
        name: crate::log::escape(name.as_bytes()),
        upstream: String::new(),
        state,
        reason: Some(why.to_owned()),
        sessions: 0,
        max_sessions: 0,
        waiting: None,
    }
}

/// A socket's kind.
pub fn kind(kind: SocketKind) -> api::Kind {
    match kind {
        SocketKind::Tcp => api::Kind::Tcp,
        SocketKind::Unix => api::Kind::Unix,
        SocketKind::Udp => api::Kind::Udp,
    }
}
