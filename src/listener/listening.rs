//! A listener that is served: its socket and its route.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    activation::Socket,
    dial::{self, Entrance},
    relay::datagram,
    session::{Flows, Route},
    spec::SocketKind,
    stream,
    sys::{self, lock},
};

/// A listener that is served.
#[derive(Debug)]
pub struct ServedListener {
    pub(super) io: Io,
    /// Says where the bytes of a session come from.
    entrance: Entrance,
    route: Mutex<Arc<Route>>,
}

/// The socket of a listener.
#[derive(Debug)]
pub(super) enum Io {
    /// Connections are accepted.
    Streams(Streams),
    /// Datagrams are received.
    Datagrams(Arc<Flows>),
}

/// A socket that connections are accepted on.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) fd: AsyncFd<OwnedFd>,
    /// The kind of accepted sockets.
    pub(super) kind: stream::StreamKind,
}

impl ServedListener {
    /// Registers a listener.
    ///
    /// # Errors
    /// What setsockopt(2) or epoll_ctl(2) say, with the socket: a later try may succeed.
    pub fn new(socket: Socket, route: Arc<Route>) -> Result<Self, (Socket, io::Error)> {
        let kind = socket.kind();
        let fd = match prepare(&socket, &route) {
            Ok(()) => sys::register_or_return(socket.into(), Interest::READABLE),
            Err(e) => return Err((socket, e)),
        };
        let fd = fd.map_err(|(fd, e)| (Socket::new(kind, fd), e))?;
        let entrance = Entrance::new(fd.get_ref().as_fd(), route.listener.address.clone(), kind);
        let io = match kind {
            SocketKind::Tcp => Io::Streams(Streams { fd, kind: stream::StreamKind::Tcp }),
            SocketKind::Unix => Io::Streams(Streams { fd, kind: stream::StreamKind::Unix }),
            SocketKind::Udp => Io::Datagrams(Flows::new(fd)),
        };
        Ok(Self { io, entrance, route: Mutex::new(route) })
    }

    /// TCP, UNIX or UDP.
    pub fn kind(&self) -> SocketKind {
        match &self.io {
            Io::Streams(Streams { kind: stream::StreamKind::Unix, .. }) => SocketKind::Unix,
            Io::Streams(_) => SocketKind::Tcp,
            Io::Datagrams(_) => SocketKind::Udp,
        }
    }

    /// The flows of a UDP listener.
    pub fn flows(&self) -> Option<&Arc<Flows>> {
        match &self.io {
            Io::Streams(_) => None,
            Io::Datagrams(flows) => Some(flows),
        }
    }

    pub fn entrance(&self) -> &Entrance {
        &self.entrance
    }

    /// Another descriptor of the socket, as what it is.
    ///
    /// # Errors
    /// EMFILE and its kin.
    pub fn duplicate(&self) -> io::Result<Socket> {
        Ok(Socket::new(self.kind(), self.as_fd().try_clone_to_owned()?))
    }

    /// The route that new sessions take.
    pub fn route(&self) -> Arc<Route> {
        lock(&self.route).clone()
    }

    /// Gives new sessions another route.
    pub fn set_route(&self, route: Arc<Route>) {
        let keepalive = route.options.keepalive;
        let before = std::mem::replace(&mut *lock(&self.route), route);
        if self.kind() == SocketKind::Tcp && before.options.keepalive != keepalive {
            let socket = socket2::SockRef::from(self);
            // Connections go on without it, should the kernel refuse.
            let _ = socket.set_keepalive(keepalive.times().is_some());
            let _ = dial::keep_alive(&socket, keepalive);
        }
    }
}

impl ServedListener {
    /// Whether a connected stream socket was accepted on this listener.
    pub fn has_accepted(&self, fd: &OwnedFd) -> bool {
        let (Io::Streams(_), Some(own)) = (&self.io, sys::net_cookie(self.as_fd())) else { return false };
        let local = |fd: BorrowedFd<'_>| socket2::SockRef::from(&fd).local_addr().ok();
        let (Some(listens), Some(local)) = (local(self.as_fd()), local(fd.as_fd())) else { return false };
        if sys::net_cookie(fd.as_fd()) != Some(own) {
            return false;
        }
        match (listens.as_socket(), local.as_socket()) {
            (Some(listens), Some(local)) => {
                listens.port() == local.port() && (listens.ip().is_unspecified() || listens.ip() == local.ip())
            }
            (None, None) => {
                !local.is_unnamed()
                    && listens.as_pathname() == local.as_pathname()
                    && listens.as_abstract_namespace() == local.as_abstract_namespace()
            }
            _ => false,
        }
    }
}

/// Sets the options of a listener. Accepted TCP sockets inherit them (tcp(7)), so they are set here, once.
fn prepare(socket: &Socket, route: &Route) -> io::Result<()> {
    match socket {
        Socket::Tcp(tcp) => {
            let socket = socket2::SockRef::from(tcp);
            socket.set_tcp_nodelay(true)?;
            dial::keep_alive(&socket, route.options.keepalive)
        }
        Socket::Unix(_) => Ok(()),
        Socket::Udp(udp) => {
            datagram::take_runs(udp, true);
            datagram::ask_for_destinations(udp)
        }
    }
}

impl AsFd for ServedListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.io {
            Io::Streams(streams) => streams.fd.get_ref().as_fd(),
            Io::Datagrams(flows) => flows.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::{
        session::{ListenerIdentity, Routes},
        spec::{Config, fdname},
    };

    #[test]
    fn a_socket_that_cannot_be_served_comes_back_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("x.sock")).unwrap();
        let inode = |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).unwrap().st_ino;
        let was = inode(unix.as_fd());
        let identity = ListenerIdentity::new("x", SocketKind::Tcp, None);
        let forward = fdname::resolve("target=127.0.0.1+9", SocketKind::Tcp, &Config::default()).unwrap();
        let route =
            Routes::new(1).make(String::new(), identity, forward.legs.front().clone(), forward.options).unwrap();
        // Taken for TCP, it refuses the options of TCP.
        let socket = Socket::new(SocketKind::Tcp, OwnedFd::from(unix));
        let (socket, error) = ServedListener::new(socket, Arc::new(route)).unwrap_err();
        assert_eq!(inode(socket.as_fd()), was);
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{error}");
    }
}
