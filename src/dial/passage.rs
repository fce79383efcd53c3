//! How the bytes of a session came to it: the words of [`super::outgoing`].

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use uuid::Uuid;

use crate::spec::SocketKind;

/// An address and a port, without what the kernel adds to them: scope, flow label, IPv4 inside IPv6.
pub(super) type InetPlace = (IpAddr, u16);

/// The place of an address.
pub(super) fn place(address: SocketAddr) -> InetPlace {
    (address.ip().to_canonical(), address.port())
}

/// A listener of this service through which bytes came.
#[derive(Debug, PartialEq, Eq)]
pub struct Hop {
    /// LISTENER.
    pub(super) address: Arc<str>,
    pub(super) transport: SocketKind,
    /// The network namespace; `None` for a Unix listener.
    pub(super) netns: Option<u64>,
}

/// How the bytes of a session came to it.
#[derive(Clone, Debug)]
pub struct Passage {
    pub(super) hop: Arc<Hop>,
    /// The peer, where it may be a socket of this service.
    pub(super) from: Option<Arc<Sender>>,
    /// The hops before this listener that were known at accept, the last one first. The sockets behind them may close
    /// before this session dials.
    pub(super) before: Box<[Arc<Hop>]>,
}

/// An outgoing socket, as a listener sees it: its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Tcp(InetEnds),
    Udp(InetEnds),
    Unix(Uuid),
}

/// Both addresses of a socket and its network namespace; at its other end, with the namespace there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InetEnds {
    pub(super) from: InetPlace,
    pub(super) to: InetPlace,
    pub(super) netns: Option<u64>,
}

impl InetEnds {
    /// Whether this noted socket is the one that a listener sees as `seen`.
    pub(super) fn is(&self, seen: &Self, transport: SocketKind) -> bool {
        let at_home = self.netns == seen.netns;
        let to = self.to == seen.to || (at_home && transport == SocketKind::Udp);
        self.from == seen.from && to && (at_home || !self.from.0.is_loopback())
    }
}

/// A circle: the listeners from one to itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Circle(pub(super) Vec<Arc<str>>);

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(at, hop)| write!(f, "{}{hop}", if at > 0 { " -> " } else { "" }))
    }
}
