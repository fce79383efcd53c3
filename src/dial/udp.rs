//! UDP endpoints: a socket that sends to one address and hears from no other.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::time::timeout_at;

use super::{
    failure::{DialStep, Failure, io_failure},
    way::{TimeLimit, Way, with_zone},
};
use crate::{spec::HostPort, sys};

/// The target of a socket that is to be replaced.
#[derive(Clone, Copy, Debug)]
pub struct Present {
    /// The address that the socket sends to.
    pub target: SocketAddr,
    /// Whether an error was seen there: the other addresses of the name are tried first.
    pub failed: bool,
}

/// A non-blocking socket connected to `addr`: to the first of its addresses that the kernel knows a way to. Beside a
/// `present` target, that one is preferred, or comes last when it has failed.
///
/// # Errors
/// [`Failure::Unresolved`] for a name that is not resolved in time; what the kernel said; [`Failure::Netns`].
///
/// # Cancel safety
/// Dropped, it closes what it began.
pub async fn connect(
    addr: &HostPort,
    way: Way<'_>,
    limit: TimeLimit,
    present: Option<Present>,
) -> Result<OwnedFd, Failure> {
    let mut last = None;
    for address in in_order(way.resolve(addr, limit).await?, present) {
        match timeout_at(limit.deadline, connect_one(addr, address, way)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(failure)) => last = Some(failure),
            Err(_) => return Err(Failure::TimedOut(limit.allowed)),
        }
    }
    Err(last.unwrap_or(Failure::TimedOut(limit.allowed)))
}

async fn connect_one(addr: &HostPort, address: SocketAddr, way: Way<'_>) -> Result<OwnedFd, Failure> {
    let socket = way.socket(Domain::for_address(address), Type::DGRAM, Protocol::UDP).await?;
    let address = with_zone(&socket, addr, address)?;
    let connected = connect_also_to_many(&socket, address);
    connected.map_err(|error| io_failure(DialStep::Udp, &format!("send to {addr}"), error))?;
    Ok(socket.into())
}

/// Connects, also to a broadcast address: udp(7) gives EACCES for one without SO_BROADCAST. (A route that prohibits the
/// address gives EACCES with it, too.)
fn connect_also_to_many(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let to = address.into();
    match socket.connect(&to) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            socket.set_broadcast(true)?;
            socket.connect(&to)
        }
        connected => connected,
    }
}

/// The addresses in the order in which they are tried.
fn in_order(mut addresses: Vec<SocketAddr>, present: Option<Present>) -> Vec<SocketAddr> {
    // The kernel adds the scope and the flow label to an IPv6 address.
    let is = |address: &SocketAddr, other: SocketAddr| (address.ip(), address.port()) == (other.ip(), other.port());
    if let Some(Present { target, failed }) = present {
        if let Some(at) = addresses.iter().position(|address| is(address, target)) {
            addresses.rotate_left(if failed { at + 1 } else { at });
        }
    }
    addresses
}

/// The two ends of a connected socket. Two sockets with the same ends (the port of the source left aside) reach the
/// same peer in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpEnds {
    /// The address that datagrams come from.
    pub source: IpAddr,
    /// The address that datagrams go to.
    pub target: SocketAddr,
    /// The network namespace (SO_NETNS_COOKIE); `None` before Linux 5.14.
    pub(super) namespace: Option<u64>,
    /// The number of the interface that the socket is bound to; 0 without one.
    interface: Option<i32>,
}

impl UdpEnds {
    /// The ends of a connected socket, and its own address with the port.
    ///
    /// # Errors
    /// What getsockname(2) and getpeername(2) say: ENOTCONN.
    pub fn of(socket: &impl AsFd) -> io::Result<(Self, SocketAddr)> {
        let inet = |address: socket2::SockAddr| address.as_socket().ok_or(io::ErrorKind::Unsupported);
        let shown = SockRef::from(socket);
        let own = inet(shown.local_addr()?)?;
        let ends = Self {
            source: own.ip(),
            target: inet(shown.peer_addr()?)?,
            namespace: sys::net_cookie(socket.as_fd()),
            interface: sys::bound_interface(socket.as_fd()),
        };
        Ok((ends, own))
    }
}

impl fmt::Display for UdpEnds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.target, self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_address_comes_first_while_it_lives_and_last_when_it_has_failed() {
        let read = |text: &str| text.split(' ').map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let all = "1.1.1.1:1 [::2]:1 3.3.3.3:1";
        for (target, failed, expected) in [
            ("[::2]:1", false, "[::2]:1 3.3.3.3:1 1.1.1.1:1"),
            ("[::2%4]:1", true, "3.3.3.3:1 1.1.1.1:1 [::2]:1"),
            ("3.3.3.3:1", true, all),
            ("9.9.9.9:1", false, all),
            ("9.9.9.9:1", true, all),
        ] {
            let present = Present { target: target.parse().unwrap(), failed };
            assert_eq!(in_order(read(all), Some(present)), read(expected), "{present:?}");
        }
        assert_eq!(in_order(read(all), None), read(all));
        let present = Some(Present { target: "1.1.1.1:1".parse().unwrap(), failed: true });
        assert_eq!(in_order(read("1.1.1.1:1"), present), read("1.1.1.1:1"), "the only one is tried again");
    }
}
