//! The control interface as types. `org.qrexec-connect.Control.varlink` describes them for everybody; a test holds the
//! two against each other. What `--json` prints is made of the same types, so it changes only as that interface does:
//! fields may be added.

use serde::{Deserialize, Serialize};

use crate::spec::{FaultEffect, SocketKind};

/// The interface's name.
pub const INTERFACE: &str = "org.qrexec-connect.Control";
/// Its description in Varlink's own language.
pub const DESCRIPTION: &str = include_str!("org.qrexec-connect.Control.varlink");

/// State of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Serving,
    /// Somebody told it to let connections wait.
    Paused,
    Refused,
    /// The network namespace of the listener does not exist yet.
    Awaited,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// LISTENER of the log.
    pub address: String,
    /// Kind of socket; absent where it is a kind that cannot be served.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "lowercase")]
    pub kind: Option<SocketKind>,
    /// TRANSPORT: the same as `kind`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "lowercase")]
    pub transport: Option<SocketKind>,
    /// Fd name or label; may be empty.
    pub name: String,
    /// LABEL of the forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The socket unit, where the service manager tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The namespace that the upstream is in, when that is not the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// The namespace that the listener is in, when that is not the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_netns: Option<String>,
    /// The upstream; empty where the fd name cannot be resolved.
    pub upstream: String,
    pub state: State,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub sessions: u64,
    /// Limit of sessions.
    pub max_sessions: u64,
    /// Connections in the backlog, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<u64>,
    /// Sessions that wait for a call of the qube, where the listener leads to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<u64>,
    /// Sessions that wait for dom0's decision about their call or about earlier ones, where the listener leads to a
    /// qube.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undecided: Option<u64>,
    /// The unit that is started for its sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_unit: Option<String>,
}

/// State of a unit, in systemd's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActiveState {
    Inactive,
    Activating,
    Active,
    Deactivating,
    Failed,
}

impl ActiveState {
    /// All states.
    pub const ALL: [Self; 5] = [Self::Inactive, Self::Activating, Self::Active, Self::Deactivating, Self::Failed];

    /// systemd's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inactive => "inactive",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Deactivating => "deactivating",
            Self::Failed => "failed",
        }
    }
}

/// A unit that listeners start for their sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedUnit {
    /// Full name of the unit.
    pub unit: String,
    pub state: ActiveState,
    /// When it came into that state, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// Sessions that use it, of all listeners.
    pub sessions: u64,
    /// Of these, those that wait until it answers.
    pub waiting: u64,
    /// When it will be stopped if no session comes, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops_at: Option<u64>,
    /// Milliseconds from the order to start it until it answered, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_start_ms: Option<u64>,
    /// The median of the last times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_start_ms: Option<u64>,
    /// Bytes that it had before the last stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_before_stop: Option<u64>,
    /// Whether this service started it.
    pub ours: bool,
}

/// A process of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// User of the process.
    pub uid: u32,
    /// The systemd unit that it belongs to, escaped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Its command line, escaped, cut at 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// SESSION_ID.
    pub id: String,
    /// The listener's address.
    pub listener: String,
    /// The listener's name: fd name or label; may be empty.
    pub name: String,
    /// TRANSPORT of the listener; a service of an older version does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "lowercase")]
    pub transport: Option<SocketKind>,
    /// LABEL of the forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The namespace that the upstream is in, when that is not the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// The namespace that the listener is in, when that is not the service's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_netns: Option<String>,
    pub peer: String,
    /// The upstream.
    pub upstream: String,
    /// True once the upstream is connected.
    pub connected: bool,
    /// Milliseconds since it was accepted.
    pub age_ms: u64,
    /// Milliseconds from then to connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dial_ms: Option<u64>,
    /// Bytes delivered from the peer to the upstream.
    pub up_bytes: u64,
    /// Bytes delivered from the upstream to the peer.
    pub down_bytes: u64,
    /// What it waits for, when that takes longer than usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<Wait>,
    /// Calls of its service that dom0 has not decided yet, where it waits for dom0 or for a turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
    /// Who connected, when asked for and where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The unit that is started for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_unit: Option<String>,
    /// The state of that unit, while the session waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_unit_state: Option<ActiveState>,
    /// The same unit, as `Status` tells of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_unit_now: Option<StartedUnit>,
}

/// What a session waits for before it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// dom0's decision about its call.
    Dom0,
    /// The decision about earlier calls, or the end of the pause after a refusal.
    Turn,
    /// A call of the qube.
    Call,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    Serving,
    /// The service lets its sessions end.
    Stopping,
}

/// A fault of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// File, line and column; or the argument.
    pub place: String,
    /// What is wrong, what to do about it, and what it does: a sentence without the place.
    pub message: String,
    pub effect: FaultEffect,
}

/// The reply to `Status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `qrexec-connect` or `pfwd`.
    pub program: String,
    pub version: String,
    pub pid: u32,
    pub state: Life,
    /// All listeners, served or not.
    pub listeners: Vec<Listener>,
    /// Number of sessions.
    pub sessions: u64,
    /// What is wrong with the configuration.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// Crashes since the last stop or restart, if there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crashes: Option<Crashes>,
    /// The units that are started for sessions.
    #[serde(default)]
    pub start_units: Vec<StartedUnit>,
}

/// Crashes of the service, and what became of the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crashes {
    pub crashes: u64,
    /// Sessions that went on.
    pub resumed: u64,
    /// Sessions that were reset.
    pub lost: u64,
}

/// A file of the configuration, as it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationFile {
    pub path: String,
    /// Whether it is a drop-in file.
    pub drop_in: bool,
    /// Its text, as it is.
    pub text: String,
    /// When it came into force, in seconds since 1970.
    pub since: u64,
    /// Whether nothing is wrong with it.
    pub good: bool,
}

/// A socket that the service was passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationSocket {
    pub address: String,
    /// The `FileDescriptorName=` of the socket.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "lowercase")]
    pub kind: Option<SocketKind>,
}

/// The reply to `Configuration`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// The command line of the service.
    pub arguments: Vec<String>,
    /// The files with the texts in force.
    pub files: Vec<ConfigurationFile>,
    /// Values of `--forward`.
    pub forwards: Vec<String>,
    pub sockets: Vec<ConfigurationSocket>,
}

/// The reply to `ListListeners`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listeners {
    /// All listeners, served or not.
    pub listeners: Vec<Listener>,
}

/// The arguments of `ListSessions`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// The id, or the beginning of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Whether the peers' processes are looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<bool>,
}

/// A reply to `ListSessions`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sessions {
    /// In no particular order.
    pub sessions: Vec<Session>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Happened {
    /// Nothing yet: all later events follow.
    Ready,
    /// A session was accepted.
    Began,
    Connected,
    Ended,
    /// Events were left out.
    Dropped,
}

/// A reply to `Watch`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    pub event: Happened,
    /// The session that the event is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// END.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// EXIT_CODE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Details of the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Number of events that were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
}

/// The arguments of `Kill` and its reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Id {
    /// SESSION_ID, or in the arguments the beginning of one.
    pub id: String,
}

/// The arguments of `Pause` and `Resume`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// A word of which `select` makes one listener, one forward or one unit.
    pub listener: String,
}

/// The reply to `Pause` and `Resume`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// Addresses of the listeners.
    pub listeners: Vec<String>,
    /// Each listener as a word that means it alone, with its label or unit behind it; an older service does not tell.
    #[serde(default)]
    pub called: Vec<String>,
}

/// The formats of `Metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// OpenMetrics 1.0.
    #[default]
    OpenMetrics,
    /// Prometheus' text format 0.0.4, which `promtool check metrics` reads.
    Prometheus,
}

/// The arguments of `Metrics`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct As {
    /// OpenMetrics where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Words that mean listeners (see [`super::select`]): the series of these alone. Everything where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listeners: Option<Vec<String>>,
}

/// The reply to `Metrics`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Text {
    /// Many lines.
    pub text: String,
}

/// The errors of the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No session has an id that starts with this.
    NoSuchSession(String),
    /// Several sessions have an id that starts with this: how many.
    AmbiguousSession(String, usize),
    /// The session did not end in time.
    StillThere(String),
    /// No listener has this address, name or label.
    NoSuchListener(String),
    /// Several listeners that have nothing else in common may be meant: each as a word that means it alone.
    AmbiguousListener(String, Vec<String>),
    /// The service is about to stop or to restart.
    Stopping,
    /// `Watch` without `more`.
    ExpectedMore,
    /// An invalid argument: its name.
    InvalidParameter(String),
    /// The interface has no such method.
    MethodNotFound(String),
}

impl Refusal {
    /// The error's name, and its parameters.
    pub fn reply(&self) -> (String, serde_json::Value) {
        use serde_json::json;
        let ours = |name: &str| format!("{INTERFACE}.{name}");
        match self {
            Self::NoSuchSession(id) => (ours("NoSuchSession"), json!({ "id": id })),
            Self::AmbiguousSession(id, matches) => (ours("AmbiguousSession"), json!({ "id": id, "matches": matches })),
            Self::StillThere(id) => (ours("StillThere"), json!({ "id": id })),
            Self::NoSuchListener(listener) => (ours("NoSuchListener"), json!({ "listener": listener })),
            Self::AmbiguousListener(listener, matches) => {
                (ours("AmbiguousListener"), json!({ "listener": listener, "matches": matches }))
            }
            Self::Stopping => (ours("Stopping"), json!({})),
            Self::ExpectedMore => (ours("ExpectedMore"), json!({})),
            Self::InvalidParameter(name) => {
                ("org.varlink.service.InvalidParameter".to_owned(), json!({ "parameter": name }))
            }
            Self::MethodNotFound(method) => {
                ("org.varlink.service.MethodNotFound".to_owned(), json!({ "method": method }))
            }
        }
    }
}

/// A kind of socket in lower case: `tcp`, `unix`, `udp`.
mod lowercase {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    use crate::spec::SocketKind;

    #[allow(clippy::ref_option)] // the signature that serde asks for
    pub fn serialize<S: Serializer>(kind: &Option<SocketKind>, serializer: S) -> Result<S::Ok, S::Error> {
        kind.map(SocketKind::word).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketKind>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let known = SocketKind::from_word(&text);
        known.map(Some).ok_or_else(|| D::Error::unknown_variant(&text, &["tcp", "unix", "udp"]))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_kind_of_socket_is_written_in_lower_case_or_not_at_all() {
        let listener = |kind: Value| {
            let mut text = json!({
                "address": "a", "name": "", "upstream": "", "state": "serving", "sessions": 0, "max_sessions": 1
            });
            if !kind.is_null() {
                text["kind"] = kind;
            }
            text
        };
        for (text, kind) in [
            (json!("tcp"), Some(SocketKind::Tcp)),
            (json!("unix"), Some(SocketKind::Unix)),
            (json!("udp"), Some(SocketKind::Udp)),
            (Value::Null, None),
        ] {
            let read: Listener = serde_json::from_value(listener(text.clone())).expect("a listener");
            assert_eq!(read.kind, kind);
            assert_eq!(serde_json::to_value(&read).expect("JSON"), listener(text));
        }
        let refused = serde_json::from_value::<Listener>(listener(json!("Tcp"))).expect_err("no such kind");
        assert_eq!(refused.to_string(), "unknown variant `Tcp`, expected one of `tcp`, `unix`, `udp`");
    }
}
