//! A row of `status`: a listener, with its state as a client meets it.

use std::fmt;

use serde::Serialize;

use super::service::AskedService;
use crate::{
    cli::table::Colour,
    control::{
        api,
        select::{KnownListener, short_unit},
    },
    spec::{Forward, Leg, Listen, SocketKind, Upstream},
};

/// State of a listener, as a client meets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RowState {
    /// Clients are served.
    Serving,
    /// Clients are served: the first connection starts the service.
    Ready,
    /// Clients wait in the backlog.
    Paused,
    /// Clients wait or are refused: the listener cannot be served.
    Refused,
    /// Clients are refused until the listener's network namespace exists.
    Awaited,
    /// Clients are refused: the listener should be served, and systemd does not listen or the service does not run.
    Down,
    /// Clients are refused: nobody enabled the listener.
    #[default]
    Off,
}

impl RowState {
    /// The colour of the state.
    pub(super) fn colour(self) -> Colour {
        match self {
            Self::Serving | Self::Ready => Colour::Green,
            Self::Paused => Colour::Yellow,
            Self::Refused | Self::Awaited | Self::Down => Colour::Red,
            Self::Off => Colour::Dim,
        }
    }

    /// Whether the state is as it should be.
    pub(super) fn fine(self) -> bool {
        matches!(self, Self::Serving | Self::Ready | Self::Off)
    }
}

impl fmt::Display for RowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serving => "serving",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Refused => "error",
            Self::Awaited => "awaited",
            Self::Down => "down",
            Self::Off => "off",
        })
    }
}

impl From<api::State> for RowState {
    fn from(state: api::State) -> Self {
        match state {
            api::State::Serving => Self::Serving,
            api::State::Paused => Self::Paused,
            api::State::Refused => Self::Refused,
            api::State::Awaited => Self::Awaited,
        }
    }
}

/// A listener.
#[derive(Debug, Default, Serialize)]
pub(super) struct ListenerRow {
    /// Address of the listener.
    pub(super) address: String,
    /// TRANSPORT: `tcp`, `unix` or `udp`; absent where it is no socket that could be served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) transport: Option<&'static str>,
    /// Fd name or label.
    pub(super) name: String,
    /// LABEL of the forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) label: Option<String>,
    /// The network namespace of the upstream, when that is not the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) netns: Option<String>,
    /// The network namespace of the listener, when that is not the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) listen_netns: Option<String>,
    /// Where it leads, as far as that is known.
    pub(super) upstream: String,
    pub(super) state: RowState,
    /// Why, where that is not obvious.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    pub(super) sessions: u64,
    /// How many it may have, when it is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_sessions: Option<u64>,
    /// Connections in its backlog, where the kernel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) waiting: Option<u64>,
    /// Its sessions that wait for a call of the qube, where it leads to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) queued: Option<u64>,
    /// Its sessions that wait for dom0's decision about their call or about earlier ones, where it leads to a qube.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) undecided: Option<u64>,
    /// The unit that is started for its sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) start_unit: Option<String>,
    /// Socket unit that holds the listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unit: Option<String>,
    /// systemd's ActiveState of the socket unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) active: Option<String>,
    /// systemd's UnitFileState of the socket unit: `enabled`, `disabled`…
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enabled: Option<String>,
}

impl ListenerRow {
    /// What people call it: its label, else its unit without what all units have in common.
    pub(super) fn called(&self) -> &str {
        match (&self.label, &self.unit) {
            (Some(label), _) => label,
            (None, Some(unit)) => short_unit(unit),
            // A name that says where to connect is no name for people.
            (None, None) if self.name.contains([' ', '=']) => "",
            (None, None) => &self.name,
        }
    }

    /// The address with its transport.
    pub(super) fn place(&self) -> String {
        match self.transport {
            Some(transport) => format!("{transport} {}", self.address),
            None => self.address.clone(),
        }
    }

    /// Sessions that wait for dom0.
    pub(super) fn waits_for_dom0(&self) -> Option<u64> {
        self.undecided.filter(|n| *n > 0 && self.state == RowState::Serving)
    }

    /// A listener that the service named.
    pub(super) fn of_service(listener: api::Listener) -> Self {
        let served = matches!(listener.state, api::State::Serving | api::State::Paused);
        Self {
            address: listener.address,
            transport: listener.kind.map(SocketKind::word),
            name: listener.name,
            label: listener.label,
            netns: listener.netns,
            listen_netns: listener.listen_netns,
            upstream: listener.upstream,
            state: listener.state.into(),
            reason: listener.reason,
            sessions: listener.sessions,
            max_sessions: Some(listener.max_sessions).filter(|_| served),
            waiting: listener.waiting,
            queued: listener.queued,
            unit: listener.unit,
            undecided: listener.undecided,
            start_unit: listener.start_unit,
            ..Self::default()
        }
    }

    /// The listeners of a forward of the configuration whose listening side is the service's to bind, while that does
    /// not run.
    pub(super) fn of_plan(service: &AskedService, forward: &Forward) -> impl Iterator<Item = Self> {
        forward.legs.fronts().filter_map(|leg| Self::of_leg(service, forward, leg))
    }

    fn of_leg(service: &AskedService, forward: &Forward, leg: &Leg) -> Option<Self> {
        let (listen, transport, listen_netns) = match &leg.listen {
            Listen::Inherited => return None,
            Listen::Tcp { addr, netns, .. } => (addr.to_string(), SocketKind::Tcp, netns.as_ref()),
            Listen::Udp { addr, netns } => (addr.to_string(), SocketKind::Udp, netns.as_ref()),
            Listen::Unix { addr, .. } => (addr.to_string(), SocketKind::Unix, None),
        };
        let netns = match &leg.upstream {
            Upstream::Tcp { netns, .. } | Upstream::Udp { netns, .. } => netns.as_ref(),
            Upstream::Unix(_) | Upstream::Qrexec(_) => None,
        };
        let (flag, unit) = (service.scope.flag(), service.unit());
        Some(Self {
            address: listen_netns.map_or_else(|| listen.clone(), |netns| format!("{listen} in {netns}")),
            transport: Some(transport.word()),
            name: forward.label.as_ref().map(|label| label.to_string()).unwrap_or_default(),
            label: forward.label.as_ref().map(|label| label.to_string()),
            netns: netns.map(ToString::to_string),
            listen_netns: listen_netns.map(ToString::to_string),
            upstream: leg.upstream.to_string(),
            start_unit: forward.options.start_unit.as_ref().map(ToString::to_string),
            state: RowState::Down,
            reason: Some(format!("the service does not run; run: systemctl {flag}start {unit}")),
            ..Self::default()
        })
    }
}

impl<'a> From<&'a ListenerRow> for KnownListener<'a> {
    fn from(row: &'a ListenerRow) -> Self {
        Self {
            address: &row.address,
            transport: row.transport.and_then(SocketKind::from_word),
            label: row.label.as_deref().unwrap_or_default(),
            name: &row.name,
            unit: row.unit.as_deref().unwrap_or_default(),
        }
    }
}
