//! Where a dial starts from: the namespace, the address and the interface of the socket that will connect.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{Instant, timeout_at};

use super::{
    failure::{DialStep, Failure, io_failure},
    lookup, netns,
    passage::Passage,
};
use crate::{
    spec::{Host, HostPort, Netns, Via},
    sys,
};

/// How long a dial may take, and when that time is over.
#[derive(Clone, Copy, Debug)]
pub struct TimeLimit {
    /// The time that the dial was allowed.
    pub allowed: Duration,
    /// The end of that time.
    pub deadline: Instant,
}

impl TimeLimit {
    /// The time limit of a dial that begins now.
    pub fn from_now(allowed: Duration) -> Self {
        Self { allowed, deadline: Instant::now() + allowed }
    }
}

/// Options for dialling an IP address.
#[derive(Clone, Copy, Default)]
pub struct Way<'a> {
    /// The namespace to dial from; our own when `None`.
    pub netns: Option<&'a Netns>,
    /// The address and the interface to dial from.
    pub via: Option<&'a Via>,
    /// How the bytes of the session came: a TCP socket is noted with it where it can lead back to this service.
    pub passage: Option<&'a Passage>,
    /// Hears which namespace it was.
    pub entered: Option<&'a (dyn Fn(netns::Namespace) + Sync)>,
}

impl Way<'_> {
    /// A non-blocking socket that can be connected to an address of `domain`.
    pub(super) async fn socket(&self, domain: Domain, kind: Type, protocol: Protocol) -> Result<Socket, Failure> {
        let kind = kind.nonblocking().cloexec();
        let socket = match self.netns {
            Some(netns) => {
                let made = netns::socket(netns, domain, kind, protocol).await;
                let (socket, place) = made.map_err(Failure::Netns)?;
                if let Some(entered) = self.entered {
                    entered(place);
                }
                socket
            }
            None => Socket::new(domain, kind, Some(protocol))
                .map_err(|error| io_failure(DialStep::Other, "make a socket", error))?,
        };
        let Some(via) = self.via else { return Ok(socket) };
        if let Some(device) = &via.device {
            socket.bind_device(Some(device.as_str().as_bytes())).map_err(|error| {
                io_failure(DialStep::Device, &format!("dial through the interface {}", device.as_str()), error)
            })?;
        }
        if let Some(source) = via.source.filter(|source| source.is_ipv4() == (domain == Domain::IPV4)) {
            bind_source(&socket, source)
                .map_err(|error| io_failure(DialStep::Source, &format!("dial from {source}"), error))?;
        }
        Ok(socket)
    }

    /// The addresses of `addr`: those that can be dialled from the source address, if one is given.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn resolve(&self, addr: &HostPort, limit: TimeLimit) -> Result<Vec<SocketAddr>, Failure> {
        let name = match &addr.host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, addr.port)]),
            Host::LinkLocal(ip, _) => return Ok(vec![SocketAddr::new((*ip).into(), addr.port)]),
            Host::Name(name) => name,
        };
        let failed = |error| io_failure(DialStep::Name, &format!("look up {name}"), error);
        if self.netns.is_some() {
            let error = io::Error::new(io::ErrorKind::Unsupported, "names are not resolved inside a namespace");
            return Err(failed(error));
        }
        let fits = |address: &SocketAddr| {
            self.via.and_then(|via| via.source).is_none_or(|source| source.is_ipv4() == address.is_ipv4())
        };
        let found = match timeout_at(limit.deadline, lookup::addresses(name, addr.port)).await {
            Ok(found) => found.map_err(failed)?,
            Err(_) => return Err(Failure::Unresolved { name: name.clone(), allowed: limit.allowed }),
        };
        let mut fitting: Vec<SocketAddr> = Vec::with_capacity(found.len());
        for address in found.into_iter().filter(fits) {
            if !fitting.contains(&address) {
                fitting.push(address); // /etc/hosts may have one twice
            }
        }
        if fitting.is_empty() {
            let error = io::Error::new(io::ErrorKind::NotFound, "it has no address that could be dialled");
            return Err(failed(error));
        }
        Ok(fitting)
    }
}

/// The address for connect(2): a link-local one with the number that its interface has in the namespace of the socket.
pub(super) fn with_zone(socket: &Socket, addr: &HostPort, address: SocketAddr) -> Result<SocketAddr, Failure> {
    let (Host::LinkLocal(_, zone), SocketAddr::V6(mut v6)) = (&addr.host, address) else { return Ok(address) };
    let index = sys::interface_index(socket.as_fd(), zone.as_str())
        .map_err(|error| io_failure(DialStep::Device, &format!("dial through the interface {zone}"), error))?;
    v6.set_scope_id(index);
    Ok(v6.into())
}

/// The port is left to connect(2), which knows the other end and so has many more to choose from (ip(7),
/// IP_BIND_ADDRESS_NO_PORT).
fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true);
    socket.bind(&SocketAddr::new(source, 0).into())
}
