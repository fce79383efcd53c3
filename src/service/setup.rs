//! What a service needs to begin, and how it ends.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use super::units::unit_flaws;
use crate::{
    activation,
    dial::netns,
    handover::CrashGuard,
    session::ListenerIdentity,
    spec::{self, Beside, Config, Forward, Label, LastTexts, Loaded, Machine, SocketKind, Texts, fdname},
    sys,
    systemd::{
        signals::{Hangup, HeldSignals},
        startable::StartableUnits,
        systemctl::Scope,
    },
};

/// Reads the files of the configuration.
pub type ReadTexts = Box<dyn Fn() -> Texts + Send + Sync>;

/// Everything that a service needs to begin.
pub struct Setup {
    pub inherited: activation::Inherited,
    /// The ends of pairs in which sessions wait that were parked.
    pub parked: Vec<OwnedFd>,
    /// What this process has against its own crash.
    pub guard: Option<CrashGuard>,
    /// Signals wait until somebody takes them as orders.
    pub held: HeldSignals,
    /// The configuration, with what is wrong with it.
    pub loaded: Loaded,
    /// Reads its files again.
    pub read: ReadTexts,
    /// The `--forward` arguments.
    pub forwards: Vec<String>,
    /// The `qrexec-client-vm` to start for each call.
    pub client: PathBuf,
    /// Calls into one qube at a time, 1 or more.
    pub calls_per_qube: usize,
    /// Without a session for this long, the service ends; its sockets start it again.
    pub exit_idle: Option<Duration>,
    /// Whether to end when a listener cannot be served, rather than to serve the others.
    pub strict: bool,
    /// The name of the program.
    pub program: &'static str,
    /// Where the control socket is to be, if anywhere.
    pub control: Option<PathBuf>,
    /// What a SIGHUP means.
    pub hangup: Hangup,
    /// What to say when nothing was passed and the configuration asks for nothing.
    pub nothing: String,
}

/// Loads a configuration beside the sockets that were passed.
pub fn load(texts: &Texts, last: &LastTexts, sockets: &[(String, SocketKind)]) -> Loaded {
    let no_namespaces = (!netns::permitted()).then_some(netns::NEEDS);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let known = StartableUnits::of(Scope::own());
    let machine = Machine { users: sys::user_exists, units: &|uses| unit_flaws(&known, uses) };
    spec::load_knowing(texts, last, &Beside { sockets, no_namespaces }, now, machine)
}

/// The meaning, in `config`, of a name on a socket of that kind.
pub(super) fn resolve(config: &Config, name: &str, kind: SocketKind) -> Result<Forward, String> {
    fdname::resolve(name, kind, config).map_err(|faults| faults.to_string())
}

/// What an inherited listener is called.
pub(super) fn identity(listener: &activation::Listener, label: Option<&Label>) -> ListenerIdentity {
    ListenerIdentity::new(&listener.local.to_string(), listener.socket.kind(), label.map(Label::as_str))
}

/// How a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to end, or had nothing more to do.
    Done,
    /// Its sessions wait for the next process.
    HandedOver,
    /// A part of it panicked; systemd starts it again.
    Broken,
}

/// Why a service did not begin.
#[derive(Debug)]
pub enum StartFailure {
    /// A listener cannot be served, and all were asked for.
    Listener(String),
    /// Signals cannot be received.
    Signals(io::Error),
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(why) => write!(f, "not everything can be served, which --strict asks for: {why}"),
            Self::Signals(error) => write!(f, "cannot wait for signals: {error}"),
        }
    }
}
