//! Text to meaning: what a name, a `--forward` or a configuration file says, as validated values.
//!
//! Pure: no sockets, no files, no clock, no environment; whoever calls reads the file and hands over its text.

use std::{net::IpAddr, path::PathBuf, time::Duration};

/// A qrexec call: the two words that `qrexec-client-vm` takes. Both parts are within qrexec's limits and alphabet,
/// so they reach dom0 unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// The qube asked for: a name, `@default`, `@dispvm`, `@dispvm:NAME`, `uuid:…`; at most 63 bytes.
    pub target: String,
    /// Service and argument as `service` or `service+argument`; at most 255 bytes.
    pub service: String,
}

/// A UNIX socket address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UnixAddr {
    /// A path in the file system.
    Path(PathBuf),
    /// An abstract name (without the leading NUL), which belongs to the host's network namespace.
    Abstract(Vec<u8>),
}

/// A host and a port; the host is an address, or a name resolved anew at each dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Where.
    pub host: Host,
    /// 1..=65535.
    pub port: u16,
}

/// The host part of a [`HostPort`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A DNS name.
    Name(String),
}

/// A network namespace, by the name `ip netns` knows or by an absolute path (`setns_path`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Netns {
    /// Looked up under /run/netns and /var/run/netns.
    Name(String),
    /// An nsfs file such as /proc/PID/ns/net.
    Path(PathBuf),
}

/// Where an accepted stream goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Upstream {
    /// A service in another qube.
    Qrexec(Call),
    /// A UNIX socket.
    Unix(UnixAddr),
    /// A TCP address, inside `netns` when given.
    Tcp {
        /// Address or name, and port.
        addr: HostPort,
        /// The namespace to dial from; the service's own when `None`.
        netns: Option<Netns>,
    },
    /// A UDP address for datagrams, inside `netns` when given.
    Udp {
        /// Address or name, and port.
        addr: HostPort,
        /// The namespace to dial from; the service's own when `None`.
        netns: Option<Netns>,
    },
}

/// What one forward may and must do besides moving bytes. Every field has its default from DESIGN's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Sessions at once on this listener (default 1024).
    pub max_connections: u32,
    /// How long a dial may take (default 10 s).
    pub connect_timeout: Duration,
    /// How long a qrexec set-up may take, `ask` prompts included (default 5 min).
    pub setup_timeout: Duration,
    /// Concurrent qrexec set-ups per target and service (default 4).
    pub max_setups: u32,
    /// A session without bytes for this long ends (default: never).
    pub idle_timeout: Option<Duration>,
    /// How long sessions get at a stop (default 5 s).
    pub drain_timeout: Duration,
    /// TCP keepalive on accepted and dialled sockets (default on).
    pub keepalive: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            connect_timeout: Duration::from_secs(10),
            setup_timeout: Duration::from_secs(300),
            max_setups: 4,
            idle_timeout: None,
            drain_timeout: Duration::from_secs(5),
            keepalive: true,
        }
    }
}
impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self)
    }
}
impl std::fmt::Display for UnixAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self)
    }
}
impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self)
    }
}
