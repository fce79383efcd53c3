//! What a service needs to begin, and how it ends.

use std::{fmt, io, path::PathBuf, time::Duration};

use crate::{
    activation,
    dial::netns,
    spec::{Config, Forward, SocketKind, fdname},
    systemd::signals::Hangup,
};

/// Reads the configuration.
pub type LoadConfig = Box<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Everything that a service needs to begin.
pub struct Setup {
    pub inherited: activation::Inherited,
    /// The configuration; or why there is none.
    pub config: Result<Config, String>,
    /// Reads the configuration again.
    pub load: LoadConfig,
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
}

/// The configuration that is in force.
pub(super) enum Rules {
    Usable(Box<Config>),
    /// It cannot, and why.
    Unusable(String),
}

impl Rules {
    /// The meaning of a name on a socket of that kind.
    pub(super) fn resolve(&self, name: &str, kind: SocketKind) -> Result<Forward, String> {
        match self {
            Self::Usable(config) => resolve(config, name, kind),
            Self::Unusable(why) => Err(why.clone()),
        }
    }
}

/// The meaning, in `config`, of a name on a socket of that kind.
pub(super) fn resolve(config: &Config, name: &str, kind: SocketKind) -> Result<Forward, String> {
    fdname::resolve(name, kind, config).map_err(|faults| faults.to_string())
}

/// The forwards with a listening side of their own, without those that sockets of these names are served by.
pub(super) fn forwards(config: &Config, names: &[String]) -> Result<Vec<Forward>, String> {
    let plan = config.plan_beside_names(names).map_err(|faults| faults.to_string())?;
    if plan.enters_namespaces() && !netns::permitted() {
        return Err(netns::NEEDS.to_owned());
    }
    Ok(plan.forwards)
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
    /// The configuration cannot be used.
    Rules(String),
    /// A listener cannot be served, and all were asked for.
    Listener(String),
    /// Signals cannot be had.
    Signals(io::Error),
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(why) => f.write_str(why),
            Self::Listener(why) => write!(f, "not everything can be served, which --strict asks for: {why}"),
            Self::Signals(error) => write!(f, "cannot wait for signals: {error}"),
        }
    }
}
