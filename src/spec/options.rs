//! What a forward may and must do besides moving bytes: limits and times, who is let in, how the upstream is dialled.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use super::value::{Account, Device, Keepalive, Network, OnRemove, ProxyProtocol, StartUnit};

/// Limits and times of one forward. Every field has its default from DESIGN's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Sessions (for UDP: flows) at once on this listener, at least 1 (default 1024).
    pub max_connections: u32,
    /// How long a dial may take, above zero (default 10 s).
    pub connect_timeout: Duration,
    /// How long a dial is retried while the upstream is not there, from accept on; see [`Options::retry_for`].
    pub retry_timeout: Option<Duration>,
    /// The unit to start when a client comes and the unit is not active (default: none). Never beside a qrexec call.
    pub start_unit: Option<StartUnit>,
    /// How long `start_unit` runs on after its last session, at least 1 s (default: for ever). `None` without `start_unit`.
    pub stop_when_idle: Option<Duration>,
    /// How long a qrexec set-up may take, `ask` prompts included, above zero (default 5 min).
    pub setup_timeout: Duration,
    /// Concurrent qrexec set-ups per target and service, at least 1 (default 4).
    pub max_setups: u32,
    /// Calls into one qube at once, at least 1 (`None`: not written; 32, or what the command line says).
    pub max_calls: Option<u32>,
    /// A session without bytes for this long ends (default: never).
    pub idle_timeout: Option<Duration>,
    /// A UDP flow without datagrams for this long ends, above zero (default 600 s).
    pub udp_idle_timeout: Duration,
    /// Answers to each datagram of a UDP flow, after which the flow ends; not counted when `None`.
    pub udp_responses: Option<u32>,
    /// How long sessions get at a stop; zero ends them at once (default 5 s).
    pub drain_timeout: Duration,
    /// TCP keepalive on accepted and dialled sockets (default on).
    pub keepalive: Keepalive,
    /// What becomes of sessions when their listener goes away (default: they are kept).
    pub on_remove: OnRemove,
    /// Bytes a session moves at once, 4 KiB to 64 MiB; the relay's own choice when `None`.
    pub buffer_size: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            connect_timeout: Duration::from_secs(10),
            retry_timeout: None,
            start_unit: None,
            stop_when_idle: None,
            setup_timeout: Duration::from_secs(300),
            max_setups: 4,
            max_calls: None,
            idle_timeout: None,
            udp_idle_timeout: Duration::from_secs(600),
            udp_responses: None,
            drain_timeout: Duration::from_secs(5),
            keepalive: Keepalive::On,
            on_remove: OnRemove::Keep,
            buffer_size: None,
        }
    }
}

impl Options {
    /// How the unit that is started is used.
    pub fn unit_use(&self) -> Option<UnitUse<'_>> {
        Some(UnitUse { unit: self.start_unit.as_ref()?, stops: self.stop_when_idle.is_some() })
    }

    /// How long a dial is retried while the upstream is not there, the start of `start_unit` included: without a word
    /// [`START_RETRY`] beside `start_unit`, else a UNIX socket for as long as a dial may take, and a TCP address not at
    /// all.
    pub fn retry_for(&self, unix: bool) -> Duration {
        self.retry_timeout.unwrap_or(match &self.start_unit {
            Some(_) => START_RETRY,
            None if unix => self.connect_timeout,
            None => Duration::ZERO,
        })
    }
}

/// `retry_timeout` beside `start_unit` where nobody gave it: a start of a minute and a service that listens late.
pub const START_RETRY: Duration = Duration::from_secs(120);

/// A unit that a forward starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitUse<'a> {
    /// The unit.
    pub unit: &'a StartUnit,
    /// Whether the forward has it stopped again.
    pub stops: bool,
}

/// Why a unit cannot be started for clients, or not be stopped again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFlaw {
    /// The flaw, in a sentence that begins with the name of the unit.
    pub what: String,
    /// What to do.
    pub hint: String,
}

/// The length of a listening socket's queue when nothing else is asked for: that of the shipped units' `Backlog=`. The
/// kernel cuts it to net.core.somaxconn.
pub const DEFAULT_BACKLOG: NonZeroU32 = match NonZeroU32::new(4096) {
    Some(backlog) => backlog,
    None => NonZeroU32::MIN,
};

/// Who may connect to a listener; checked before anything is dialled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admit {
    /// Networks that peers of an IP socket may come from; empty lets everybody in.
    pub from: Vec<Network>,
    /// Users who may connect to a UNIX socket (`SO_PEERCRED`); empty lets everybody in. The back leg of a pipeline
    /// is dialled by its own front leg too, which always may.
    pub uids: Vec<Account>,
}

/// Options of the dial: source address, interface, PROXY header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Via {
    /// The address to dial from; of the upstream's family when that is a literal address.
    pub source: Option<IpAddr>,
    /// The interface to dial through.
    pub device: Option<Device>,
    /// The PROXY header to send before the first byte.
    pub proxy_protocol: Option<ProxyProtocol>,
}
