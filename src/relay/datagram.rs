//! Datagrams: received with the address they were sent to, so that answers come from it.
//!
//! A socket bound to a wildcard address answers from whatever address the route back prefers, which on a host with
//! several is not the one that was asked; the asker then takes the answer for a stranger's. So the kernel is asked for
//! each datagram's destination (ip(7) IP_PKTINFO, ipv6(7) IPV6_RECVPKTINFO), and told it as the source of the answer.
//!
//! A datagram is up to 65,507 bytes over IPv4 and 65,527 over IPv6 (without jumbograms), and may be empty: nothing
//! received is a datagram too, and no end.

use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
    },
};

/// The largest datagram there is, in bytes: a 16-bit length.
const LARGEST: usize = 65_535;

thread_local! {
    /// The buffer of all flows on this thread; nothing stays in it.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; LARGEST].into_boxed_slice());
}

/// The address of ours that a datagram came to, and the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The address.
    pub ip: IpAddr,
    /// The interface's number where the address means nothing without (link-local ones), else 0.
    pub interface: u32,
}

/// What tells the flows of one listener apart: who asked, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The peer's address.
    pub peer: SocketAddr,
    /// Our address, on listeners that have several.
    pub at: Option<Destination>,
}

/// Lets the kernel tell where each datagram was sent to, if that is not clear from the socket's own address.
///
/// # Errors
/// What setsockopt(2) says.
pub fn ask_for_destinations(socket: &UdpSocket) -> io::Result<()> {
    let local = socket.local_addr()?;
    if !local.ip().is_unspecified() {
        return Ok(());
    }
    match local {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Receives one datagram and gives it to `take`, with its sender and, where it was asked for, its destination.
///
/// # Errors
/// What recvmsg(2) says; `WouldBlock` when none waits.
pub fn receive<T>(
    socket: BorrowedFd<'_>,
    take: impl FnOnce(&[u8], SocketAddr, Option<Destination>) -> T,
) -> io::Result<T> {
    SCRATCH.with_borrow_mut(|buffer| {
        let mut control = cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo);
        let (len, from, to) = {
            let mut slices = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags)?;
            let to = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let ip = IpAddr::V4(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()));
                    Some(Destination { ip, interface: 0 })
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    let ip = std::net::Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    let local = ip.is_unicast_link_local() || ip.is_multicast();
                    Some(Destination { ip: ip.into(), interface: if local { info.ipi6_ifindex } else { 0 } })
                }
                _ => None,
            });
            (message.bytes, message.address.as_ref().and_then(inet), to)
        };
        let from = from.ok_or(io::ErrorKind::InvalidData)?;
        Ok(take(&buffer[..len], from, to))
    })
}

/// Receives one datagram on a connected socket and gives it to `take`.
///
/// # Errors
/// What recv(2) says: `WouldBlock` when none waits, `ConnectionRefused` for an ICMP error that came back.
pub fn receive_connected<T>(socket: BorrowedFd<'_>, take: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
    SCRATCH.with_borrow_mut(|buffer| {
        let len = nix::sys::socket::recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?;
        Ok(take(&buffer[..len]))
    })
}

/// What became of a datagram.
#[derive(Debug)]
pub struct SendOutcome {
    /// The error that an earlier datagram met, which the kernel reports now.
    pub earlier: Option<io::Error>,
    /// Whether this datagram was sent.
    pub sent: io::Result<()>,
}

/// Sends one datagram on a connected socket. An ICMP error that an earlier one met is reported by the next call: that
/// is no reason not to send this one.
pub fn send_connected(socket: BorrowedFd<'_>, bytes: &[u8]) -> SendOutcome {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let send = || nix::sys::socket::send(socket.as_raw_fd(), bytes, flags).map(drop).map_err(io::Error::from);
    match send() {
        Err(error) if reports_an_earlier_one(&error) => match send() {
            // A way that does not exist is an error of this one, each time.
            Err(again) if again.raw_os_error() == error.raw_os_error() && !is_refusal(&error) => {
                SendOutcome { earlier: None, sent: Err(again) }
            }
            sent => SendOutcome { earlier: Some(error), sent },
        },
        sent => SendOutcome { earlier: None, sent },
    }
}

fn reports_an_earlier_one(error: &io::Error) -> bool {
    is_refusal(error) || matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::ENETUNREACH))
}

fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNREFUSED)
}

/// Answers `to`, from the address that it had asked.
///
/// # Errors
/// What sendmsg(2) says; `WouldBlock` when there is no room.
pub fn answer(socket: BorrowedFd<'_>, bytes: &[u8], to: SocketAddr, from: Option<Destination>) -> io::Result<()> {
    let send = |control: &[ControlMessage<'_>]| {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let to = SockaddrStorage::from(to);
        sendmsg(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, Some(&to)).map(drop)
    };
    match from {
        None => send(&[]),
        Some(Destination { ip: IpAddr::V4(ip), .. }) => {
            let address = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            let info =
                libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: libc::in_addr { s_addr: 0 } };
            send(&[ControlMessage::Ipv4PacketInfo(&info)])
        }
        Some(Destination { ip: IpAddr::V6(ip), interface }) => {
            let address = libc::in6_addr { s6_addr: ip.octets() };
            send(&[ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo { ipi6_addr: address, ipi6_ifindex: interface })])
        }
    }?;
    Ok(())
}

fn inet(address: &SockaddrStorage) -> Option<SocketAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(std::net::SocketAddrV4::from(*v4).into()),
        (None, Some(v6)) => Some(std::net::SocketAddrV6::from(*v6).into()),
        (None, None) => None,
    }
}
