//! Where the bytes of a listener's sessions come from: the side of [`super::outgoing`] that sees peers.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    sync::Arc,
};

use socket2::{SockAddr, SockRef};

use super::{
    outgoing::{OUTGOING, Outgoing, name_of, own_address},
    passage::{Circle, Hop, InetEnds, InetPlace, Passage, Sender, place},
    served::ServedPlace,
};
use crate::{
    spec::{SocketKind, UnixAddr},
    sys,
};

/// A listener, as far as it says where the bytes of its sessions come from.
#[derive(Debug)]
pub struct Entrance {
    outgoing: &'static Outgoing,
    hop: Arc<Hop>,
    /// The address of an IP listener.
    local: Option<InetPlace>,
    /// Its place among those that a dial can reach; none for datagrams.
    served: Option<ServedPlace>,
}

impl Drop for Entrance {
    fn drop(&mut self) {
        self.served.iter().for_each(|place| self.outgoing.served.remove(place));
    }
}

impl Entrance {
    /// The entrance of a listener that logs call `address`. While it lives, dials that can reach the listener are noted.
    pub fn new(socket: BorrowedFd<'_>, address: Arc<str>, transport: SocketKind) -> Self {
        Self::among(&OUTGOING, socket, address, transport)
    }

    pub(super) fn among(
        outgoing: &'static Outgoing,
        socket: BorrowedFd<'_>,
        address: Arc<str>,
        transport: SocketKind,
    ) -> Self {
        let own = SockRef::from(&socket).local_addr().ok();
        let local = own.as_ref().and_then(SockAddr::as_socket).map(place);
        let netns = local.and_then(|_| sys::net_cookie(socket));
        let served = match transport {
            SocketKind::Tcp => local.map(|local| ServedPlace::Tcp(local, netns)),
            SocketKind::Unix => own.as_ref().and_then(unix_addr).map(ServedPlace::Unix),
            SocketKind::Udp => None,
        };
        served.iter().for_each(|place| outgoing.served.add(place));
        Self { outgoing, hop: Arc::new(Hop { address, transport, netns }), local, served }
    }

    /// The passage of a connection that was accepted from `peer`; `ours` says whether this process is the peer, where the
    /// kernel tells.
    ///
    /// # Errors
    /// The circle, where the connection has come through this listener before.
    pub fn accepted(&self, socket: BorrowedFd<'_>, peer: &SockAddr, ours: bool) -> Result<Passage, Circle> {
        let sender = match peer.as_socket() {
            Some(peer) => {
                let from = place(peer);
                let to = self.outgoing.may_be_noted(from).then(|| self.reached_at(socket)).flatten();
                to.map(|to| Sender::Tcp(InetEnds { from, to, netns: self.hop.netns }))
            }
            None => {
                let name = name_of(peer);
                if ours && name.is_none() {
                    self.outgoing.served.dialled_by_other_path();
                }
                name.map(Sender::Unix)
            }
        };
        let passage = self.pass(sender);
        if let Some(Sender::Unix(name)) = sender {
            self.outgoing.accepted(&name);
        }
        passage
    }

    /// The passage of a datagram of `peer` that came to the address `at`, where the listener has several.
    ///
    /// # Errors
    /// The circle, where the datagram has come through this listener before.
    pub fn received(&self, peer: SocketAddr, at: Option<IpAddr>) -> Result<Passage, Circle> {
        // Another socket may have the peer's address later, so what lies before the peer is looked up at each datagram.
        self.pass(self.asked(peer, at)).map(|passage| Passage { before: Box::default(), ..passage })
    }

    /// A connection of `peer` was accepted, and is refused for another reason than a circle.
    pub fn refused(&self, peer: &SockAddr) {
        if let Some(name) = name_of(peer) {
            self.outgoing.accepted(&name);
        }
    }

    /// The passage of a flow of an earlier process.
    pub fn resumed_flow(&self, peer: SocketAddr, at: Option<IpAddr>) -> Passage {
        Passage { hop: self.hop.clone(), from: self.asked(peer, at).map(Arc::new), before: Box::default() }
    }

    fn asked(&self, peer: SocketAddr, at: Option<IpAddr>) -> Option<Sender> {
        let (ip, port) = self.local?;
        let to = (at.map_or(ip, |at| at.to_canonical()), port);
        Some(Sender::Udp(InetEnds { from: place(peer), to, netns: self.hop.netns }))
    }

    /// The passage of a session that an earlier process accepted by `socket`.
    pub fn resumed(&self, socket: BorrowedFd<'_>) -> Passage {
        let peer = SockRef::from(&socket).peer_addr().ok();
        let sender = peer.and_then(|peer| match peer.as_socket() {
            Some(peer) => {
                let to = self.reached_at(socket)?;
                Some(Sender::Tcp(InetEnds { from: place(peer), to, netns: self.hop.netns }))
            }
            None => name_of(&peer).map(Sender::Unix),
        });
        Passage { hop: self.hop.clone(), from: sender.map(Arc::new), before: Box::default() }
    }

    fn pass(&self, sender: Option<Sender>) -> Result<Passage, Circle> {
        let hops = sender.map(|sender| self.outgoing.hops(&sender)).unwrap_or_default();
        if let Some(at) = hops.iter().position(|hop| *hop == self.hop) {
            let way = hops[..=at].iter().rev().chain([&self.hop]);
            return Err(Circle(way.map(|hop| hop.address.clone()).collect()));
        }
        Ok(Passage { hop: self.hop.clone(), from: sender.map(Arc::new), before: hops.into() })
    }

    /// The address at which an accepted socket was reached.
    fn reached_at(&self, socket: BorrowedFd<'_>) -> Option<InetPlace> {
        self.local.filter(|(ip, _)| !ip.is_unspecified()).or_else(|| own_address(socket).ok().map(place))
    }
}

fn unix_addr(address: &SockAddr) -> Option<UnixAddr> {
    let path = address.as_pathname().map(|path| UnixAddr::Path(path.to_owned()));
    path.or_else(|| address.as_abstract_namespace().map(|name| UnixAddr::Abstract(name.to_owned())))
}
