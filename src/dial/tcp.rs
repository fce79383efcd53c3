//! TCP endpoints.

use std::{io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::{
    failure::{DialStep, Failure, io_failure},
    way::Way,
};
use crate::{
    spec::HostPort,
    stream::{Stream, StreamKind},
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
/// [`Failure::TimedOut`]; [`Failure::Netns`]; [`Failure::Io`] for a name without an address, or with the last
/// address's error.
///
/// # Cancel safety
/// Dropped, it closes what it began.
pub async fn connect(addr: &HostPort, way: Way<'_>, allowed: Duration, keepalive: bool) -> Result<Stream, Failure> {
    way.first(addr, allowed, |address| connect_one(addr, address, way, keepalive)).await
}

async fn connect_one(addr: &HostPort, address: SocketAddr, way: Way<'_>, keepalive: bool) -> Result<Stream, Failure> {
    let socket = way.socket(Domain::for_address(address), Type::STREAM, Protocol::TCP).await?;
    let connected = async {
        socket.set_tcp_nodelay(true)?;
        if keepalive {
            keep_alive(&socket)?;
        }
        let under_way = |result: io::Result<()>| match result {
            Ok(()) => Ok(false),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY)) => Ok(true),
            Err(e) => Err(e),
        };
        let address = address.into();
        // Asked again: over loopback it is connected by now, and to wait for the event costs more.
        let pending = under_way(socket.connect(&address))? && under_way(socket.connect(&address))?;
        let stream = Stream::new(OwnedFd::from(socket), StreamKind::Tcp)?;
        if pending {
            stream.connected().await?;
        }
        Ok(stream)
    };
    connected.await.map_err(|error| io_failure(DialStep::Tcp, &format!("connect to {addr}"), error))
}
