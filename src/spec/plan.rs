//! What was asked for, as values that cannot be wrong any more: forwards, their legs, and all of them together.

use std::{collections::BTreeMap, fmt, num::NonZeroU32};

use serde::{Deserialize, Serialize};

use super::{
    endpoint::{ListenAddr, Netns, UnixAddr, Upstream},
    options::{Admit, Options, Via},
    value::{FileMode, Label, LogLevel, Owner},
};

/// The kind of a socket that listens. Handover records have the variants by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SocketKind {
    /// A listening TCP socket, IPv4 or IPv6.
    Tcp,
    /// A listening UNIX stream socket, path or abstract.
    Unix,
    /// A bound UDP socket.
    Udp,
}

impl SocketKind {
    /// TRANSPORT of the log: `tcp`, `unix` or `udp`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Udp => "udp",
        }
    }

    /// The kind with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Tcp, Self::Unix, Self::Udp].into_iter().find(|kind| kind.word() == word)
    }
}

/// The listening side of a leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// The socket that systemd made.
    Inherited,
    /// A TCP socket that we bind and listen on.
    Tcp {
        /// Port 0 lets the kernel choose.
        addr: ListenAddr,
        /// The namespace to listen in; the service's own when `None`.
        netns: Option<Netns>,
        /// Length of its queue.
        backlog: NonZeroU32,
    },
    /// A UNIX socket that we serve.
    Unix {
        /// An absolute path or an abstract name.
        addr: UnixAddr,
        /// Rights and owners of what is made in the file system; nothing to be made when abstract.
        rights: UnixRights,
        /// Length of its queue.
        backlog: NonZeroU32,
    },
    /// A UDP socket that we bind.
    Udp {
        /// Port 0 lets the kernel choose.
        addr: ListenAddr,
        /// The namespace to receive in; the service's own when `None`.
        netns: Option<Netns>,
    },
}

/// The transport, the address with its port, and the namespace of a listener: two listeners with the same key are the
/// same listener, before and after a reload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenKey {
    /// A TCP listener.
    Tcp(ListenAddr, Option<Netns>),
    /// A UDP listener.
    Udp(ListenAddr, Option<Netns>),
    /// A UNIX listener.
    Unix(UnixAddr),
}

impl Listen {
    /// The key of a listening side that is ours to bind.
    pub fn key(&self) -> Option<ListenKey> {
        match self {
            Self::Inherited => None,
            Self::Tcp { addr, netns, .. } => Some(ListenKey::Tcp(addr.clone(), netns.clone())),
            Self::Udp { addr, netns } => Some(ListenKey::Udp(addr.clone(), netns.clone())),
            Self::Unix { addr, .. } => Some(ListenKey::Unix(addr.clone())),
        }
    }

    /// The port of a TCP or UDP address.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp { addr, .. } | Self::Udp { addr, .. } => Some(addr.addr().port()),
            Self::Unix { .. } | Self::Inherited => None,
        }
    }

    /// The address for people, up to the port `last` of a range, with the namespace.
    pub fn place(&self, last: Option<u16>) -> String {
        let (addr, netns) = match self {
            Self::Inherited => return String::new(),
            Self::Unix { addr, .. } => return addr.to_string(),
            Self::Tcp { addr, netns, .. } | Self::Udp { addr, netns } => (addr, netns),
        };
        let last = last.map(|port| format!("-{port}")).unwrap_or_default();
        let netns = netns.as_ref().map(|netns| format!(" in {netns}")).unwrap_or_default();
        format!("{addr}{last}{netns}")
    }

    /// The addresses with their transports, for people; consecutive ports of one address as one range.
    pub fn places<'a>(all: impl IntoIterator<Item = &'a Self>) -> Vec<String> {
        let mut of_address: BTreeMap<(String, String), BTreeMap<u16, &Self>> = BTreeMap::new();
        let mut places = Vec::new();
        for listen in all {
            let (Self::Tcp { addr, netns, .. } | Self::Udp { addr, netns }) = listen else {
                places.push(listen.span(None));
                continue;
            };
            let datagrams = matches!(listen, Self::Udp { .. });
            let without_port = (addr.addr().ip(), addr.zone().map(ToString::to_string), datagrams);
            let key = (format!("{without_port:?}"), netns.as_ref().map(ToString::to_string).unwrap_or_default());
            of_address.entry(key).or_default().insert(addr.addr().port(), listen);
        }
        for ports in of_address.into_values() {
            let mut ports = ports.into_iter().peekable();
            while let Some((first, listen)) = ports.next() {
                let mut last = first;
                while ports.next_if(|(port, _)| Some(*port) == last.checked_add(1)).is_some() {
                    last += 1;
                }
                places.push(listen.span(Some(last).filter(|last| *last > first)));
            }
        }
        places
    }

    /// The transport and the address for people, up to the port `last` of a range.
    fn span(&self, last: Option<u16>) -> String {
        let transport = match self {
            Self::Inherited => return "inherited socket".to_owned(),
            Self::Unix { .. } => SocketKind::Unix,
            Self::Tcp { .. } => SocketKind::Tcp,
            Self::Udp { .. } => SocketKind::Udp,
        };
        format!("{} {}", transport.word(), self.place(last))
    }
}

/// Rights and owners of a served UNIX socket and of the directories made for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixRights {
    /// Of the socket (default 0600).
    pub mode: FileMode,
    /// Of the socket; our own user and group where it says nothing.
    pub owner: Option<Owner>,
    /// Of directories that are made; existing ones are left alone (default 0755).
    pub dir_mode: FileMode,
    /// Of directories that are made (default: our own).
    pub dir_owner: Option<Owner>,
}

impl Default for UnixRights {
    fn default() -> Self {
        Self { mode: mode(0o600), owner: None, dir_mode: mode(0o755), dir_owner: None }
    }
}

const fn mode(bits: u32) -> FileMode {
    match FileMode::from_bits(bits) {
        Some(mode) => mode,
        None => panic!("a default mode has only permission bits"),
    }
}

/// One listening side and where its streams or datagrams go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The address on which clients connect.
    pub listen: Listen,
    /// The address that is dialled for each client.
    pub upstream: Upstream,
    /// The peers that may connect.
    pub admit: Admit,
    /// Options of the dial.
    pub via: Via,
}

impl Leg {
    /// A leg that lets everybody in and dials plainly.
    pub fn new(listen: Listen, upstream: Upstream) -> Self {
        Self { listen, upstream, admit: Admit::default(), via: Via::default() }
    }
}

/// The legs of a forward.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // one value for each forward
pub enum Legs {
    /// In here, out there.
    One(Leg),
    /// A combined pipeline: `front` accepts and dials the UNIX socket that `back` serves.
    Two {
        /// From the listening side to the UNIX socket.
        front: Leg,
        /// From the UNIX socket to where it all goes.
        back: Leg,
    },
    /// A range of ports: one leg for each, in ascending order.
    Range {
        /// The leg of the lowest port.
        first: Leg,
        /// The legs of the other ports.
        more: Vec<Leg>,
    },
}

impl Legs {
    /// The legs, the front one first.
    pub fn iter(&self) -> impl Iterator<Item = &Leg> {
        let (first, more) = match self {
            Self::One(leg) => (leg, &[][..]),
            Self::Two { front, back } => (front, std::slice::from_ref(back)),
            Self::Range { first, more } => (first, &more[..]),
        };
        std::iter::once(first).chain(more)
    }

    /// The legs that differ in more than a port: a range has one, that of its lowest port.
    pub fn kinds(&self) -> impl Iterator<Item = &Leg> {
        let back = match self {
            Self::One(_) | Self::Range { .. } => None,
            Self::Two { back, .. } => Some(back),
        };
        std::iter::once(self.front()).chain(back)
    }

    /// The legs to which clients connect: one, or one for each port of a range.
    pub fn fronts(&self) -> impl Iterator<Item = &Leg> {
        let back = usize::from(matches!(self, Self::Two { .. }));
        let all = self.iter().count();
        self.iter().take(all - back)
    }

    /// The leg that accepts from the listening side; that of the lowest port of a range.
    pub fn front(&self) -> &Leg {
        match self {
            Self::One(leg) | Self::Two { front: leg, .. } | Self::Range { first: leg, .. } => leg,
        }
    }
}

/// A forward whose keys were checked together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Name of the forward in the log.
    pub label: Option<Label>,
    /// The listening sides with their upstreams.
    pub legs: Legs,
    /// Limits and times of the forward.
    pub options: Options,
}

impl Forward {
    /// The options of the leg that accepts from the listening side. In a pipeline the unit is that of the back leg
    /// alone, which leads to the program of the unit; the front leg keeps the `retry_timeout` that the unit implies.
    pub fn front_options(&self) -> Options {
        let options = self.options.clone();
        match &self.legs {
            Legs::Two { .. } if options.start_unit.is_some() => Options {
                retry_timeout: Some(options.retry_for(true)),
                start_unit: None,
                stop_when_idle: None,
                ..options
            },
            Legs::One(_) | Legs::Two { .. } | Legs::Range { .. } => options,
        }
    }
}

/// All that a configuration and its `--forward` arguments ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The forwards whose listening side is ours, in the order in which they were written.
    pub forwards: Vec<Forward>,
    /// Labels of forwards without a listening side: each waits for a socket unit with its name.
    pub waiting: Vec<Label>,
    /// `log_level` of `[defaults]`.
    pub log_level: Option<LogLevel>,
}

impl fmt::Display for SocketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Unix => "UNIX",
            Self::Udp => "UDP",
        })
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.span(None))
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.listen, self.upstream)
    }
}

/// In a line: `tcp 127.0.0.1:8000-8010 -> tcp 10.0.0.5:9000-9010`.
impl fmt::Display for Legs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(leg) => leg.fmt(f),
            Self::Two { front, back } => write!(f, "{front} -> {}", back.upstream),
            Self::Range { first, more } => {
                let last = more.last().unwrap_or(first);
                let to = last.upstream.port().filter(|port| Some(*port) != first.upstream.port());
                write!(f, "{} -> ", first.listen.span(last.listen.port()))?;
                first.upstream.fmt_to(f, to)
            }
        }
    }
}

/// One line: `ssh: tcp 0.0.0.0:2222 -> unix /run/a.sock -> tcp 10.0.0.5:22 in qdhcp-27a7`.
impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label.iter().try_for_each(|label| write!(f, "{label}: "))?;
        self.legs.fmt(f)
    }
}

/// Lists the forwards, a line each.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.forwards.iter().try_for_each(|forward| writeln!(f, "{forward}"))?;
        self.waiting.iter().try_for_each(|label| writeln!(f, "{label}: waits for a socket unit of that name"))
    }
}

impl Forward {
    /// Whether it listens or dials in a network namespace.
    pub fn enters_namespaces(&self) -> bool {
        let leg = |leg: &Leg| {
            let listens = matches!(leg.listen, Listen::Tcp { netns: Some(_), .. } | Listen::Udp { netns: Some(_), .. });
            let dials =
                matches!(leg.upstream, Upstream::Tcp { netns: Some(_), .. } | Upstream::Udp { netns: Some(_), .. });
            listens || dials
        };
        self.legs.iter().any(leg)
    }
}

impl Plan {
    /// Whether a forward listens or dials in a network namespace.
    pub fn enters_namespaces(&self) -> bool {
        self.forwards.iter().any(Forward::enters_namespaces)
    }

    /// Whether no forward has a listening side that is ours to bind.
    pub fn is_idle(&self) -> bool {
        let inherited = |forward: &Forward| matches!(&forward.legs, Legs::One(leg) if leg.listen == Listen::Inherited);
        self.forwards.iter().all(inherited)
    }
}
