//! TCP endpoints.

use std::{io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::time::timeout;

use super::Failure;
use crate::{
    spec::{Host, HostPort},
    stream::{Kind, Stream},
};

/// When a silent TCP connection is probed, and how often: a dead peer is noticed after about four minutes, where the
/// kernel's own default takes over two hours (tcp(7): tcp_keepalive_time, _intvl, _probes).
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(120), Duration::from_secs(30), 4);

/// Turns keepalive on for `socket`; accepted sockets inherit it from their listener.
///
/// # Errors
/// What setsockopt(2) says.
pub fn keep_alive(socket: &Socket) -> io::Result<()> {
    let (time, interval, retries) = KEEPALIVE;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries))
}

/// Connects to `addr`, trying each address of a name in turn, all within `allowed`.
///
/// # Errors
/// [`Failure::TimedOut`]; [`Failure::Io`] for a name without an address, or with the last address's error.
///
/// # Cancel safety
/// Dropped, it closes what it began.
pub async fn connect(addr: &HostPort, allowed: Duration, keepalive: bool) -> Result<Stream, Failure> {
    let io = |error| Failure::Io { doing: format!("connect to {addr}"), error };
    let attempt = async {
        let addresses: Vec<SocketAddr> = match &addr.host {
            Host::Ip(ip) => vec![SocketAddr::new(*ip, addr.port)],
            Host::Name(name) => tokio::net::lookup_host((name.as_str(), addr.port)).await?.collect(),
        };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match connect_one(address, keepalive).await {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e,
            }
        }
        Err(last)
    };
    match timeout(allowed, attempt).await {
        Ok(result) => result.map_err(io),
        Err(_) => Err(Failure::TimedOut(allowed)),
    }
}

async fn connect_one(address: SocketAddr, keepalive: bool) -> io::Result<Stream> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if keepalive {
        keep_alive(&socket)?;
    }
    let pending = match socket.connect(&address.into()) {
        Ok(()) => false,
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => true,
        Err(e) => return Err(e),
    };
    let stream = Stream::new(OwnedFd::from(socket), Kind::Tcp)?;
    if pending {
        stream.connected().await?;
    }
    Ok(stream)
}
