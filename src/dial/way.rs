//! Where a dial starts from: the namespace, the address and the interface of the socket that will connect.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

use super::{
    failure::{DialStep, Failure, io_failure},
    netns,
};
use crate::spec::{Host, HostPort, Netns, Via};

/// Options for dialling an IP address.
#[derive(Clone, Copy, Default)]
pub struct Way<'a> {
    /// The namespace to dial from; our own when `None`.
    pub netns: Option<&'a Netns>,
    /// The address and the interface to dial from.
    pub via: Option<&'a Via>,
    /// Hears which namespace it was.
    pub entered: Option<&'a (dyn Fn(netns::Namespace) + Sync)>,
}

impl Way<'_> {
    /// The first connection among the addresses of `addr`, which are tried one after the other within `allowed`.
    pub(super) async fn first<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        addr: &HostPort,
        allowed: Duration,
        connect: impl Fn(SocketAddr) -> F,
    ) -> Result<T, Failure> {
        let attempt = async {
            let mut last = None;
            for address in self.resolve(addr).await? {
                match connect(address).await {
                    Ok(connected) => return Ok(connected),
                    Err(failure) => last = Some(failure),
                }
            }
            Err(last.unwrap_or(Failure::TimedOut(allowed)))
        };
        timeout(allowed, attempt).await.unwrap_or(Err(Failure::TimedOut(allowed)))
    }

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
    pub(super) async fn resolve(&self, addr: &HostPort) -> Result<Vec<SocketAddr>, Failure> {
        let name = match &addr.host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, addr.port)]),
            Host::Name(name) => name,
        };
        if self.netns.is_some() {
            let error = io::Error::new(io::ErrorKind::Unsupported, "names are not resolved inside a namespace");
            return Err(io_failure(DialStep::Name, &format!("look up {name}"), error));
        }
        let fits = |address: &SocketAddr| {
            self.via.and_then(|via| via.source).is_none_or(|source| source.is_ipv4() == address.is_ipv4())
        };
        let found = tokio::net::lookup_host((name.as_str(), addr.port)).await;
        let found: Vec<_> = found
            .map_err(|error| io_failure(DialStep::Name, &format!("look up {name}"), error))?
            .filter(fits)
            .collect();
        if found.is_empty() {
            let error = io::Error::new(io::ErrorKind::NotFound, "it has no address that could be dialled");
            return Err(io_failure(DialStep::Name, &format!("look up {name}"), error));
        }
        Ok(found)
    }
}

/// The port is left to connect(2), which knows the other end and so has many more to choose from (ip(7),
/// IP_BIND_ADDRESS_NO_PORT).
fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    let _ = nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true);
    socket.bind(&SocketAddr::new(source, 0).into())
}
