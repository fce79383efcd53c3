//! The sockets by which this service dials, and the listeners of this service through which their bytes came.
//!
//! # Theory
//! A forward that leads to itself, or to another one that leads back, makes sessions without end out of one connection,
//! and flows without end out of one datagram. The configuration does not always show it: the target may be a name, an
//! address that another machine had before, or an address in a namespace. But a forward may lead through other forwards
//! of the same service on purpose. So each socket that can lead back is noted with its *passage*: the listener of its
//! session, and the socket from which that listener had accepted the session, if this service has that one, too. From
//! passage to passage this gives the *hops* of a socket: all listeners through which its bytes came.
//!
//! | the peer of a new session is | its hops | the session |
//! |---|---|---|
//! | a socket of somebody else | none | begins, without hops before its listener |
//! | a noted socket | without this listener | begins, behind these hops |
//! | a noted socket | with this listener | is refused |
//!
//! In a circle the bytes come through each listener again, so the circle ends with the first connection or datagram that
//! comes back.
//!
//! # How a noted socket is known at its other end
//! * TCP: by both addresses. Other programs may have the same local address and port towards another address. Where the
//!   listener is in another network namespace (SO_NETNS_COOKIE), loopback addresses do not identify a socket, because each
//!   namespace has its own.
//! * UDP: by its own address and port, which no other socket of its namespace has; in another namespace by both
//!   addresses. So a broadcast that comes back is known.
//! * Unix: the kernel gives no name for a client socket that is not bound. A dial of a Unix listener of this service binds its
//!   socket to an abstract name first (one bind(2)). A listener that is reached by another path (a link) sees a peer with
//!   the number of this process and without such a name; from then on every dial of a Unix socket gets a name.
//!
//! Not known: a circle through another program, another service or another machine, and one through a firewall of this
//! machine that changes addresses (DNAT, REDIRECT).
//!
//! # When a socket is noted
//! Only a dial that can reach a listener of this service is noted ([`super::served`]); other dials cost no system
//! call, except one bind(2) in 10 s for each address that is dialled at a port of a listener on every address. Each flow is noted, because a reload may open a listener where it sends to; that costs no system call either.
//!
//! No connection can be accepted before it is noted. The port of a TCP socket is known after connect(2), so connect(2)
//! is called under the lock under which peers are compared. A Unix socket is noted before connect(2), a flow before its
//! first datagram. The note is removed before the socket is closed, so that it never matches the next socket with that port.
//!
//! A connection may be accepted after its socket was closed: until then it waits in the backlog of a listener at its
//! `max_connections`. A TCP connection is reset by then, and no session begins. The kernel keeps the bytes of a Unix
//! connection, which may be meant for the target, so its note stays until it is accepted ([`super::named`]). The hops
//! of a passage are those known at accept, where the sockets behind it have been closed since.
//!
//! After a restart the notes are made again, from the addresses of the sockets that were handed over, before the first
//! connection is accepted. A socket of an earlier version that dialled a Unix listener has no name: its session counts
//! as somebody else's.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use nix::sys::socket::{UnixAddr as NamedAddr, bind};
use socket2::{SockAddr, SockRef};
use uuid::Uuid;

use super::{
    named::NamedSockets,
    passage::{Hop, InetEnds, InetPlace, Passage, Sender, place},
    served::{DialReach, ReachableListeners, reached},
    udp::UdpEnds,
};
use crate::{
    spec::{SocketKind, UnixAddr},
    sys::{self, lock},
};

/// The most hops that are followed, so that the search ends. A longer chain of forwards is not searched to its end.
const MOST_HOPS: usize = 1024;
/// The beginning of the abstract names of outgoing Unix sockets.
const NAME: &str = "forwarded/";

/// The outgoing sockets of this process.
pub(super) static OUTGOING: LazyLock<Outgoing> = LazyLock::new(Outgoing::default);

/// Noted sockets of one transport.
#[derive(Debug, Default)]
struct InetNotes {
    /// The noted sockets, and those that are being connected.
    count: AtomicUsize,
    /// By the socket's own address.
    noted: Mutex<HashMap<InetPlace, Vec<(InetEnds, Passage)>>>,
}

/// The sockets by which this service dials and that can lead back to it.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    tcp: InetNotes,
    udp: InetNotes,
    unix: Mutex<NamedSockets>,
    pub(super) served: ReachableListeners,
}

/// An outgoing socket that is noted while this lives.
#[derive(Debug)]
pub struct NotedSocket {
    outgoing: &'static Outgoing,
    sender: Sender,
    /// Whether the connection of a Unix socket may wait in a backlog.
    connected: bool,
}

impl NotedSocket {
    /// Notes that the socket is connected.
    #[must_use]
    pub(super) fn connected(mut self) -> Self {
        self.connected = true;
        self
    }
}

impl Drop for NotedSocket {
    fn drop(&mut self) {
        let (ends, notes) = match &self.sender {
            Sender::Tcp(ends) => (ends, &self.outgoing.tcp),
            Sender::Udp(ends) => (ends, &self.outgoing.udp),
            Sender::Unix(name) => {
                lock(&self.outgoing.unix).closed(name, self.connected);
                return;
            }
        };
        let mut noted = lock(&notes.noted);
        if let Some(there) = noted.get_mut(&ends.from) {
            there.iter().position(|(other, _)| other == ends).map(|at| there.swap_remove(at));
            if there.is_empty() {
                noted.remove(&ends.from);
            }
        }
        notes.count.fetch_sub(1, SeqCst);
    }
}

/// A TCP socket is being connected while this lives.
struct Connecting<'a>(&'a InetNotes);

impl<'a> Connecting<'a> {
    fn begin(notes: &'a InetNotes) -> Self {
        notes.count.fetch_add(1, SeqCst);
        Self(notes)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, SeqCst);
    }
}

impl Outgoing {
    fn noted(
        &'static self,
        noted: &mut HashMap<InetPlace, Vec<(InetEnds, Passage)>>,
        sender: Sender,
        passage: &Passage,
    ) -> NotedSocket {
        if let Sender::Tcp(ends) | Sender::Udp(ends) = sender {
            noted.entry(ends.from).or_default().push((ends, passage.clone()));
            let notes = if matches!(sender, Sender::Tcp(_)) { &self.tcp } else { &self.udp };
            notes.count.fetch_add(1, SeqCst);
        }
        NotedSocket { outgoing: self, sender, connected: true }
    }

    fn connect(
        &'static self,
        socket: BorrowedFd<'_>,
        to: SocketAddr,
        elsewhere: bool,
        passage: &Passage,
        connect: impl Fn() -> io::Result<bool>,
    ) -> io::Result<(bool, Option<NotedSocket>)> {
        let netns = || if elsewhere { sys::net_cookie(socket) } else { self.served.own_netns() };
        let reach = self.served.reach(to, netns);
        if reach == DialReach::None {
            return Ok((connect()?, None));
        }
        let _connecting = Connecting::begin(&self.tcp);
        let mut noted = lock(&self.tcp.noted);
        let pending = connect()?;
        if pending && reach == DialReach::IfAtOnce {
            return Ok((pending, None));
        }
        let ends = InetEnds { from: place(own_address(socket)?), to: place(reached(to)), netns: netns() };
        Ok((pending, Some(self.noted(&mut noted, Sender::Tcp(ends), passage))))
    }

    fn name(&'static self, socket: BorrowedFd<'_>, addr: &UnixAddr, passage: &Passage) -> Option<NotedSocket> {
        if !self.served.reaches_unix(addr) {
            return None;
        }
        let name = Uuid::new_v4();
        let address = NamedAddr::new_abstract(format!("{NAME}{name}").as_bytes()).ok()?;
        // Without a name the session counts as somebody else's.
        bind(socket.as_raw_fd(), &address).ok()?;
        Some(self.note_unix(name, passage))
    }

    fn note_unix(&'static self, name: Uuid, passage: &Passage) -> NotedSocket {
        lock(&self.unix).add(name, passage.clone());
        NotedSocket { outgoing: self, sender: Sender::Unix(name), connected: false }
    }

    /// A listener has accepted the connection of a named socket.
    pub(super) fn accepted(&self, name: &Uuid) {
        lock(&self.unix).accepted(name);
    }

    /// The passage of a socket, if it is a noted one.
    fn passage(&self, sender: &Sender) -> Option<Passage> {
        let (seen, notes, transport) = match sender {
            Sender::Tcp(seen) => (seen, &self.tcp, SocketKind::Tcp),
            Sender::Udp(seen) => (seen, &self.udp, SocketKind::Udp),
            Sender::Unix(name) => return lock(&self.unix).passage(name),
        };
        let noted = lock(&notes.noted);
        let found = noted.get(&seen.from)?.iter().find(|(ends, _)| ends.is(seen, transport));
        found.map(|(_, passage)| passage.clone())
    }

    /// The hops of a socket, the last one first.
    pub(super) fn hops(&self, sender: &Sender) -> Vec<Arc<Hop>> {
        let mut hops = Vec::new();
        let Some(last) = self.passage(sender) else { return hops };
        let before = last.before.clone();
        let mut next = Some(last);
        while let Some(Passage { hop, from, .. }) = next.filter(|_| hops.len() < MOST_HOPS) {
            hops.push(hop);
            next = from.and_then(|from| self.passage(&from));
        }
        // Sockets on the way may have closed since.
        let closed: Vec<_> = before.into_iter().filter(|hop| !hops.contains(hop)).collect();
        hops.extend(closed);
        hops
    }

    /// Whether a TCP connection from `from` can be one of a noted socket.
    pub(super) fn may_be_noted(&self, from: InetPlace) -> bool {
        self.tcp.count.load(SeqCst) > 0 && lock(&self.tcp.noted).contains_key(&from)
    }
}

/// Connects a TCP socket of this session by `connect`, which says whether the connection is still to come, and notes the
/// socket where it can lead back to a listener of this service. `elsewhere`: whether the socket may be in another
/// network namespace.
pub(super) fn connect_noted(
    socket: BorrowedFd<'_>,
    to: SocketAddr,
    elsewhere: bool,
    passage: Option<&Passage>,
    connect: impl Fn() -> io::Result<bool>,
) -> io::Result<(bool, Option<NotedSocket>)> {
    match passage {
        Some(passage) => OUTGOING.connect(socket, to, elsewhere, passage, connect),
        None => Ok((connect()?, None)),
    }
}

/// Notes a Unix socket of this session that is to be connected to `addr`, where that can lead back to a listener of this
/// service.
pub(super) fn note_unix(socket: BorrowedFd<'_>, addr: &UnixAddr, passage: Option<&Passage>) -> Option<NotedSocket> {
    OUTGOING.name(socket, addr, passage?)
}

/// Notes the socket of a flow, which has sent nothing yet.
pub fn note_flow(ends: &UdpEnds, own: SocketAddr, passage: Option<&Passage>) -> Option<NotedSocket> {
    let ends = InetEnds { from: place(own), to: place(ends.target), netns: ends.namespace };
    Some(OUTGOING.noted(&mut lock(&OUTGOING.udp.noted), Sender::Udp(ends), passage?))
}

/// Notes the socket of a session that was handed over, where it can lead back.
pub fn note_again(socket: BorrowedFd<'_>, passage: &Passage) -> Option<NotedSocket> {
    let outgoing = &*OUTGOING;
    let to = SockRef::from(&socket).peer_addr().ok()?;
    let Some(to) = to.as_socket() else {
        let name = SockRef::from(&socket).local_addr().ok().as_ref().and_then(name_of)?;
        return Some(outgoing.note_unix(name, passage).connected());
    };
    let netns = || sys::net_cookie(socket);
    if outgoing.served.reach(to, netns) != DialReach::Listener {
        return None;
    }
    let ends = InetEnds { from: place(own_address(socket).ok()?), to: place(to), netns: netns() };
    Some(outgoing.noted(&mut lock(&outgoing.tcp.noted), Sender::Tcp(ends), passage))
}

/// The connection of a session that was handed over came from a Unix socket of this service, perhaps: an earlier process
/// has accepted it. After [`note_again`] for all sessions.
pub fn accepted_earlier(passage: &Passage) {
    if let Some(Sender::Unix(name)) = passage.from.as_deref() {
        OUTGOING.accepted(name);
    }
}

/// Whether a TCP dial of this port can reach a listener of this service.
pub fn is_served_port(port: u16) -> bool {
    OUTGOING.served.has_port(port)
}

/// Whether a dial of this Unix socket can reach a listener of this service.
pub fn is_served_unix(addr: &UnixAddr) -> bool {
    OUTGOING.served.reaches_unix(addr)
}

pub(super) fn own_address(socket: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    SockRef::from(&socket).local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// The name that an outgoing Unix socket was given.
pub(super) fn name_of(address: &SockAddr) -> Option<Uuid> {
    let name = std::str::from_utf8(address.as_abstract_namespace()?).ok()?;
    name.strip_prefix(NAME)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, TcpListener},
        os::fd::AsFd as _,
        thread,
    };

    use socket2::{Domain, Socket, Type};

    use super::{super::entrance::Entrance, *};

    fn connect(outgoing: &'static Outgoing, to: SocketAddr, passage: &Passage) -> (Socket, Option<NotedSocket>) {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let noted = outgoing.connect(socket.as_fd(), to, false, passage, || match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(true),
            connected => connected.map(|()| false),
        });
        (socket, noted.unwrap().1)
    }

    fn entrance(outgoing: &'static Outgoing, listener: &TcpListener) -> Entrance {
        let address = listener.local_addr().unwrap().to_string();
        Entrance::among(outgoing, listener.as_fd(), address.into(), SocketKind::Tcp)
    }

    fn accept(listener: &TcpListener, entrance: &Entrance) -> Result<Passage, String> {
        let (socket, peer) = listener.accept().unwrap();
        entrance.accepted(socket.as_fd(), &peer.into(), false).map_err(|circle| circle.to_string())
    }

    #[test]
    fn a_connection_is_known_at_its_other_end_until_its_note_goes() {
        static OUTGOING: LazyLock<Outgoing> = LazyLock::new(Outgoing::default);
        for ip in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let (first, second) = (TcpListener::bind(ip).unwrap(), TcpListener::bind(ip).unwrap());
            let (one, two) = (entrance(&OUTGOING, &first), entrance(&OUTGOING, &second));
            let stranger = std::net::TcpStream::connect(first.local_addr().unwrap()).unwrap();
            let begin = accept(&first, &one).unwrap();
            assert!(begin.from.is_none());
            // through the second to the first: a circle
            let (_there, noted) = connect(&OUTGOING, second.local_addr().unwrap(), &begin);
            let through = accept(&second, &two).unwrap();
            let (back, noted_back) = connect(&OUTGOING, first.local_addr().unwrap(), &through);
            let text = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
            let expected = [text(&first), text(&second), text(&first)].join(" -> ");
            assert_eq!(accept(&first, &one).unwrap_err(), expected);
            // once it is gone, the port is somebody else's
            let own = back.local_addr().unwrap();
            drop((noted_back, back, noted));
            assert!(!OUTGOING.may_be_noted(place(own.as_socket().unwrap())));
            drop(stranger);
        }
        assert_eq!(OUTGOING.tcp.count.load(SeqCst), 0);
    }

    #[test]
    fn no_connection_is_accepted_before_it_is_noted() {
        static OUTGOING: LazyLock<Outgoing> = LazyLock::new(Outgoing::default);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        SockRef::from(&listener).listen(1000).unwrap(); // beyond its backlog, connections would wait for data
        let here = entrance(&OUTGOING, &listener);
        let begin = Passage { hop: here.resumed(listener.as_fd()).hop, from: None, before: Box::default() };
        let to = listener.local_addr().unwrap();
        thread::scope(|scope| {
            let connect_all = || (0..200).map(|_| connect(&OUTGOING, to, &begin)).collect::<Vec<_>>();
            let dialling: Vec<_> = (0..4).map(|_| scope.spawn(connect_all)).collect();
            for n in 0..800 {
                assert!(accept(&listener, &here).is_err(), "connection {n}");
            }
            // All stay until now, so that each has its own port.
            let all = dialling.into_iter().flat_map(|dialling| dialling.join().unwrap());
            assert_eq!(all.filter(|(_, noted)| noted.is_some()).count(), 800);
        });
    }

    #[test]
    fn a_datagram_is_known_by_its_source_in_its_namespace_and_by_both_addresses_elsewhere() {
        let at = |text: &str| place(text.parse().unwrap());
        let ends = |from: &str, to: &str, netns| InetEnds { from: at(from), to: at(to), netns: Some(netns) };
        let noted = ends("10.0.0.1:9", "10.0.0.255:7", 1);
        for (seen, udp, tcp) in [
            (ends("10.0.0.1:9", "10.0.0.255:7", 1), true, true),
            (ends("10.0.0.1:9", "10.0.0.1:7", 1), true, false),
            (ends("10.0.0.1:8", "10.0.0.255:7", 1), false, false),
            (ends("10.0.0.1:9", "10.0.0.255:7", 2), true, true),
            (ends("10.0.0.1:9", "10.0.0.1:7", 2), false, false),
        ] {
            assert_eq!((noted.is(&seen, SocketKind::Udp), noted.is(&seen, SocketKind::Tcp)), (udp, tcp), "{seen:?}");
        }
        let loopback = |netns| ends("127.0.0.1:9", "127.0.0.1:7", netns);
        assert!(!loopback(1).is(&loopback(2), SocketKind::Tcp), "each namespace has its own");
    }

    #[test]
    fn passages_that_lead_to_each_other_are_followed_to_a_limit() {
        static OUTGOING: LazyLock<Outgoing> = LazyLock::new(Outgoing::default);
        let hop = Arc::new(Hop { address: "x".into(), transport: SocketKind::Udp, netns: None });
        let at = |port| (IpAddr::from([127, 0, 0, 1]), port);
        let sender = |from, to| Sender::Udp(InetEnds { from: at(from), to: at(to), netns: None });
        let passage = |from| Passage { hop: hop.clone(), from: Some(Arc::new(from)), before: Box::default() };
        let mut udp = lock(&OUTGOING.udp.noted);
        let one = OUTGOING.noted(&mut udp, sender(1, 2), &passage(sender(3, 4)));
        let two = OUTGOING.noted(&mut udp, sender(3, 4), &passage(sender(1, 2)));
        drop(udp);
        assert_eq!(OUTGOING.hops(&sender(1, 2)).len(), MOST_HOPS);
        drop((one, two));
        assert_eq!(OUTGOING.hops(&sender(1, 2)).len(), 0);
    }
}
