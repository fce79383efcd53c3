//! What a forward may and must do besides moving bytes: limits and times, who is let in, how the upstream is dialled.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use super::value::{Account, Device, Network, OnRemove, ProxyProtocol};

/// Limits and times of one forward. Every field has its default from DESIGN's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Sessions (for UDP: flows) at once on this listener, at least 1 (default 1024).
    pub max_connections: u32,
    /// How long a dial may take, above zero (default 10 s).
    pub connect_timeout: Duration,
    /// How long a qrexec set-up may take, `ask` prompts included, above zero (default 5 min).
    pub setup_timeout: Duration,
    /// Concurrent qrexec set-ups per target and service, at least 1 (default 4).
    pub max_setups: u32,
    /// A session without bytes for this long ends (default: never).
    pub idle_timeout: Option<Duration>,
    /// A UDP flow without datagrams for this long ends, above zero (default 600 s).
    pub udp_idle_timeout: Duration,
    /// Answers to each datagram of a UDP flow, after which the flow ends; not counted when `None`.
    pub udp_responses: Option<u32>,
    /// How long sessions get at a stop; zero ends them at once (default 5 s).
    pub drain_timeout: Duration,
    /// TCP keepalive on accepted and dialled sockets (default on).
    pub keepalive: bool,
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
            setup_timeout: Duration::from_secs(300),
            max_setups: 4,
            idle_timeout: None,
            udp_idle_timeout: Duration::from_secs(600),
            udp_responses: None,
            drain_timeout: Duration::from_secs(5),
            keepalive: true,
            on_remove: OnRemove::Keep,
            buffer_size: None,
        }
    }
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
