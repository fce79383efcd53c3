//! Sockets that we bind ourselves, where the configuration says so and systemd does not.

mod unix;

use std::{fmt, io, net::SocketAddr, os::fd::AsFd as _};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

pub use unix::SocketClaim;

use crate::{
    activation::{self, Local},
    dial::netns::{self, Id},
    spec::{Listen, ListenAddr, Netns},
    sys,
};

/// What a UDP socket of ours may have waiting, in bytes; the kernel cuts it to net.core.rmem_max. Many peers share one
/// socket, and what does not fit is lost.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A bound socket; dropped, what it made in the file system is removed.
#[derive(Debug)]
pub struct Bound {
    /// The socket, non-blocking and close-on-exec, listening.
    pub socket: activation::Socket,
    pub local: Local,
    /// Socket file that the listener owns.
    pub claim: Option<SocketClaim>,
    /// The namespace it is in, when that is not our own.
    pub netns: Option<Id>,
}

/// Reasons why a socket cannot be bound.
#[derive(Debug)]
pub enum BindTrouble {
    /// The namespace is not there, or not yet.
    NoNamespace(String),
    /// Anything else.
    Failed(String),
}

impl fmt::Display for BindTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NoNamespace(why) | Self::Failed(why)) = self;
        f.write_str(why)
    }
}

/// Binds what a leg listens on, which is not inherited.
pub fn bind(listen: &Listen) -> Result<Bound, BindTrouble> {
    match listen {
        Listen::Inherited => Err(BindTrouble::Failed("systemd has to pass its socket".to_owned())),
        Listen::Unix { addr, rights, backlog } => {
            let (socket, claim) = unix::bind(addr, rights, *backlog).map_err(BindTrouble::Failed)?;
            let local = Local::Unix(addr.to_string());
            Ok(Bound { socket: activation::Socket::Unix(socket), local, claim, netns: None })
        }
        Listen::Tcp { addr, netns, backlog } => {
            let (socket, id) = make(addr.addr(), netns.as_ref(), Type::STREAM, Protocol::TCP)?;
            let at = with_zone(&socket, addr, netns.as_ref())?;
            let listening = (|| {
                socket.set_reuse_address(true)?;
                place(&socket, at, id.is_some())?;
                socket.listen(i32::try_from(backlog.get()).unwrap_or(i32::MAX))?;
                let socket = std::net::TcpListener::from(socket);
                Ok((socket.local_addr()?, socket))
            })();
            let (local, socket) = listening.map_err(|error| refused(addr, netns.as_ref(), &error))?;
            let local = Local::Inet(local);
            Ok(Bound { socket: activation::Socket::Tcp(socket), local, claim: None, netns: id })
        }
        Listen::Udp { addr, netns } => {
            let (socket, id) = make(addr.addr(), netns.as_ref(), Type::DGRAM, Protocol::UDP)?;
            let at = with_zone(&socket, addr, netns.as_ref())?;
            let bound = (|| {
                let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
                place(&socket, at, id.is_some())?;
                let socket = std::net::UdpSocket::from(socket);
                Ok((socket.local_addr()?, socket))
            })();
            let (local, socket) = bound.map_err(|error| refused(addr, netns.as_ref(), &error))?;
            let local = Local::Inet(local);
            Ok(Bound { socket: activation::Socket::Udp(socket), local, claim: None, netns: id })
        }
    }
}

fn make(
    addr: SocketAddr,
    netns: Option<&Netns>,
    kind: Type,
    protocol: Protocol,
) -> Result<(Socket, Option<Id>), BindTrouble> {
    let (domain, kind) = (Domain::for_address(addr), kind.nonblocking().cloexec());
    match netns {
        None => {
            let socket = Socket::new(domain, kind, Some(protocol));
            socket.map(|socket| (socket, None)).map_err(|e| BindTrouble::Failed(format!("cannot make a socket: {e}")))
        }
        Some(netns) => match netns::socket_blocking(netns, domain, kind, protocol) {
            Ok((socket, place)) => Ok((socket, Some(place.id))),
            Err(trouble @ (netns::Trouble::Missing(_) | netns::Trouble::Strange(_))) => {
                Err(BindTrouble::NoNamespace(trouble.to_string()))
            }
            Err(trouble) => Err(BindTrouble::Failed(trouble.to_string())),
        },
    }
}

/// The address for bind(2): a link-local one with the number that its interface has in the namespace of the socket.
fn with_zone(socket: &Socket, addr: &ListenAddr, netns: Option<&Netns>) -> Result<SocketAddr, BindTrouble> {
    let (Some(zone), SocketAddr::V6(mut v6)) = (addr.zone(), addr.addr()) else { return Ok(addr.addr()) };
    let index = sys::interface_index(socket.as_fd(), zone.as_str()).map_err(|error| {
        let place = netns.map(|netns| format!(" in {netns}")).unwrap_or_default();
        let what =
            format!("cannot listen on {addr}{place}: the interface {zone}: {error}; `ip link` shows those that are");
        BindTrouble::Failed(what)
    })?;
    v6.set_scope_id(index);
    Ok(v6.into())
}

/// Binds. In a namespace, the addresses of which come some time after it, also to an address that is not there yet
/// (ip(7), IP_FREEBIND); here that would only hide a mistake.
fn place(socket: &Socket, addr: SocketAddr, foreign: bool) -> io::Result<()> {
    if addr.is_ipv6() && addr.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    if foreign {
        setsockopt(socket, sockopt::IpFreebind, &true)?;
    }
    socket.bind(&addr.into())
}

fn refused(addr: &ListenAddr, netns: Option<&Netns>, error: &io::Error) -> BindTrouble {
    let place = netns.map(|netns| format!(" in {netns}")).unwrap_or_default();
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "; `ss -lntup` shows who has it",
        io::ErrorKind::AddrNotAvailable => "; it is no address of this host: `ip address` shows those",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: let a socket unit listen there (`pfwd --print-units`), or \
             add the capability to CapabilityBoundingSet= of the unit"
        }
        _ => "",
    };
    BindTrouble::Failed(format!("cannot listen on {addr}{place}: {error}{hint}"))
}
