//! UDP endpoints: a socket that sends to one address and hears from no other.

use std::{net::SocketAddr, os::fd::OwnedFd, time::Duration};

use socket2::{Domain, Protocol, Type};

use super::{
    failure::{DialStep, Failure, io_failure},
    way::Way,
};
use crate::spec::HostPort;

/// A non-blocking socket connected to `addr`: to the first of its addresses that the kernel knows a way to.
///
/// # Errors
/// [`Failure::TimedOut`] for a name that is not resolved in time; what the kernel said; [`Failure::Netns`].
///
/// # Cancel safety
/// Dropped, it closes what it began.
pub async fn connect(addr: &HostPort, way: Way<'_>, allowed: Duration) -> Result<OwnedFd, Failure> {
    way.first(addr, allowed, |address| connect_one(addr, address, way)).await
}

async fn connect_one(addr: &HostPort, address: SocketAddr, way: Way<'_>) -> Result<OwnedFd, Failure> {
    let socket = way.socket(Domain::for_address(address), Type::DGRAM, Protocol::UDP).await?;
    socket.connect(&address.into()).map_err(|error| io_failure(DialStep::Udp, &format!("send to {addr}"), error))?;
    Ok(socket.into())
}
