//! Datagrams, many in one call: recvmmsg(2), sendmmsg(2), and runs of equal size as one message (udp(7): UDP_GRO,
//! UDP_SEGMENT).
#![allow(unsafe_code)]

use std::{
    io::{self, IoSlice},
    mem::zeroed,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

use socket2::SockAddr;

/// The most messages of one call.
pub const MESSAGES: usize = 32;
/// The most messages that are received in one call while runs come: four runs are 256 KiB, which caches hold.
const RUNS: usize = 4;
/// Bytes between two buffers. Without them, the beginnings of all buffers of 64 KiB would meet in the same lines of the
/// processor's cache.
const SPACING: usize = 21 * 64;

/// The address of ours that a datagram came to, and the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The address.
    pub ip: IpAddr,
    /// The interface's number where the address means nothing without (link-local ones), else 0.
    pub interface: u32,
}

/// Control messages of one message, aligned as their headers must be (cmsg(3)).
#[derive(Clone, Copy)]
#[repr(C)]
union ControlSpace<const BYTES: usize> {
    _align: libc::cmsghdr,
    _bytes: [u8; BYTES],
}

/// What comes with one message. A destination (40 bytes) and a size (24) have room behind what systemd can ask for
/// (`Timestamping=`).
#[derive(Clone, Copy)]
struct ReceivedHead {
    name: libc::sockaddr_storage,
    control: ControlSpace<256>,
}

/// One message: a datagram, or a run of datagrams from one sender to one address.
#[derive(Clone, Copy, Debug)]
pub struct ReceivedMessage<'a> {
    /// The bytes of all datagrams.
    pub bytes: &'a [u8],
    /// In a run, the size of each datagram but the last, which may be shorter.
    pub size: Option<usize>,
    /// The sender, where it was asked for.
    pub from: Option<SocketAddr>,
    /// Where it was sent to, where the socket tells that.
    pub to: Option<Destination>,
    /// Its end is missing: it was larger than a buffer.
    pub truncated: bool,
}

/// Buffers for the messages of one call.
pub struct DatagramRoom {
    /// Bytes of each buffer.
    largest: usize,
    /// All buffers; each has [`SPACING`] behind it.
    bytes: Box<[u8]>,
    heads: Box<[ReceivedHead; MESSAGES]>,
    parts: Box<[libc::iovec; MESSAGES]>,
    headers: Box<[libc::mmsghdr; MESSAGES]>,
    /// Whether a run came with the last call.
    runs: bool,
}

impl DatagramRoom {
    /// Buffers of `largest` bytes each. They take no memory before something is received.
    pub fn new(largest: usize) -> Self {
        // SAFETY: all three are plain old data, for which all zeroes is a value.
        let (head, part, header) = unsafe { (zeroed(), zeroed(), zeroed()) };
        let (heads, parts, headers) =
            (Box::new([head; MESSAGES]), Box::new([part; MESSAGES]), Box::new([header; MESSAGES]));
        let bytes = vec![0; MESSAGES * (largest + SPACING)].into_boxed_slice();
        Self { largest, bytes, heads, parts, headers, runs: false }
    }

    /// Receives what waits, up to [`MESSAGES`]; with the senders where they are `named`.
    ///
    /// # Errors
    /// What recvmmsg(2) says: `WouldBlock` when nothing waits, an ICMP error that came back.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, named: bool) -> io::Result<ReceivedMessages<'_>> {
        let asked = if self.runs { RUNS } else { MESSAGES };
        for (index, buffer) in self.bytes.chunks_mut(self.largest + SPACING).take(asked).enumerate() {
            let head = &mut self.heads[index];
            self.parts[index] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: self.largest };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = if named { (&raw mut head.name).cast() } else { ptr::null_mut() };
            header.msg_namelen = if named { size_of_val(&head.name) as libc::socklen_t } else { 0 };
            header.msg_iov = &raw mut self.parts[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut head.control).cast();
            header.msg_controllen = size_of_val(&head.control);
            header.msg_flags = 0;
        }
        let headers = self.headers.as_mut_ptr();
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: the first `asked` headers point to buffers, names and control messages of this room with their sizes;
        // all of these outlive the call, and none is lent out.
        let n = unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, asked as libc::c_uint, flags, ptr::null_mut()) };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        self.runs = (0..n).any(|index| self.message(index).size.is_some());
        Ok(ReceivedMessages { room: self, n, full: n == asked, runs: self.runs })
    }

    fn message(&self, index: usize) -> ReceivedMessage<'_> {
        let (head, header) = (&self.heads[index], &self.headers[index]);
        let len = usize::try_from(header.msg_len).unwrap_or(usize::MAX).min(self.largest);
        let start = index * (self.largest + SPACING);
        let (mut size, mut to) = (None, None);
        // SAFETY: the kernel has filled `control` with whole headers, which the macros walk within msg_controllen; data
        // is read as the type that this level and type stand for (ip(7), ipv6(7), udp(7)), where it is that long.
        unsafe {
            let mut at = libc::CMSG_FIRSTHDR(&raw const header.msg_hdr);
            while let Some(control) = at.as_ref() {
                let data = libc::CMSG_DATA(at);
                let has = |bytes: usize| control.cmsg_len >= libc::CMSG_LEN(bytes as libc::c_uint) as usize;
                match (control.cmsg_level, control.cmsg_type) {
                    (libc::SOL_UDP, libc::UDP_GRO) if has(size_of::<libc::c_int>()) => {
                        let told = data.cast::<libc::c_int>().read_unaligned();
                        size = usize::try_from(told).ok().filter(|size| (1..len).contains(size));
                    }
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) if has(size_of::<libc::in_pktinfo>()) && to.is_none() => {
                        let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                        let ip = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                        to = Some(Destination { ip: ip.into(), interface: 0 });
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if has(size_of::<libc::in6_pktinfo>()) && to.is_none() => {
                        let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                        let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                        let local = ip.is_unicast_link_local() || ip.is_multicast();
                        to = Some(Destination { ip: ip.into(), interface: if local { info.ipi6_ifindex } else { 0 } });
                    }
                    _ => {}
                }
                at = libc::CMSG_NXTHDR(&raw const header.msg_hdr, at);
            }
        }
        ReceivedMessage {
            bytes: &self.bytes[start..start + len],
            size,
            from: sender(&head.name, header.msg_hdr.msg_namelen),
            to,
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }
}

/// The messages that one call received.
pub struct ReceivedMessages<'a> {
    room: &'a DatagramRoom,
    n: usize,
    /// As many came as there was room for: more may wait.
    pub full: bool,
    /// A run is among them.
    pub runs: bool,
}

impl ReceivedMessages<'_> {
    /// Their number.
    pub fn count(&self) -> usize {
        self.n
    }

    /// The messages, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = ReceivedMessage<'_>> {
        (0..self.n).map(|index| self.room.message(index))
    }
}

fn sender(name: &libc::sockaddr_storage, len: libc::socklen_t) -> Option<SocketAddr> {
    if len == 0 {
        return None;
    }
    // SAFETY: the kernel has written an address of this length, in a storage that any address fits.
    unsafe { SockAddr::new(ptr::from_ref(name).cast::<socket2::SockAddrStorage>().read(), len) }.as_socket()
}

/// A message to send: a datagram, or a run.
#[derive(Clone, Copy, Debug)]
pub struct OutgoingMessage<'a> {
    /// The bytes, in order.
    pub parts: &'a [IoSlice<'a>],
    /// In a run, the size of each datagram but the last, which may be shorter.
    pub size: Option<u16>,
}

/// Sends up to [`MESSAGES`] messages: on a connected socket, or to an address, from an address of ours. The number of those
/// that were sent, which the first error ends.
///
/// # Errors
/// What sendmsg(2) says of the first message: `WouldBlock` when there is no room, an ICMP error that an earlier one met.
pub fn send_datagrams(
    socket: BorrowedFd<'_>,
    to: Option<(SocketAddr, Option<Destination>)>,
    messages: &[OutgoingMessage<'_>],
) -> io::Result<usize> {
    // A single one is frequent, and needs not so much to be prepared.
    if messages.len() == 1 { send::<1>(socket, to, messages) } else { send::<MESSAGES>(socket, to, messages) }
}

fn send<const MOST: usize>(
    socket: BorrowedFd<'_>,
    to: Option<(SocketAddr, Option<Destination>)>,
    messages: &[OutgoingMessage<'_>],
) -> io::Result<usize> {
    let name = to.map(|(address, _)| SockAddr::from(address));
    let from = to.and_then(|(_, from)| from);
    // SAFETY: both are plain old data, for which all zeroes is a value.
    let (mut headers, mut controls): ([libc::mmsghdr; MOST], [ControlSpace<64>; MOST]) =
        unsafe { (zeroed(), zeroed()) };
    let mut n = 0;
    for ((message, header), control) in messages.iter().zip(&mut headers).zip(&mut controls) {
        let header = &mut header.msg_hdr;
        if let Some(name) = &name {
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.len();
        }
        // An IoSlice has the layout of an iovec, and sendmmsg writes to none.
        header.msg_iov = message.parts.as_ptr().cast_mut().cast();
        header.msg_iovlen = message.parts.len();
        header.msg_control = ptr::from_mut(control).cast();
        header.msg_controllen = size_of_val(control);
        // SAFETY: the control space is that of the largest two together, CMSG_SPACE(20) + CMSG_SPACE(2), zeroed, and aligned.
        header.msg_controllen = unsafe { write_control(header, from, message.size) };
        n += 1;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `n` headers point to the name, parts and control messages with their sizes, which outlive the call.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), n, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Writes the source and the size of a run into the control space of a header: the bytes used.
///
/// # Safety
/// `header` has a control space that both fit, aligned as a header must be.
unsafe fn write_control(header: &libc::msghdr, from: Option<Destination>, size: Option<u16>) -> usize {
    /// Writes one at `at`; its space.
    unsafe fn put<T>(at: *mut libc::cmsghdr, (level, kind): (libc::c_int, libc::c_int), value: T) -> usize {
        let len = size_of::<T>() as libc::c_uint;
        // SAFETY: there is room for it, as the caller says.
        unsafe {
            (*at).cmsg_level = level;
            (*at).cmsg_type = kind;
            (*at).cmsg_len = libc::CMSG_LEN(len) as usize;
            libc::CMSG_DATA(at).cast::<T>().write_unaligned(value);
            libc::CMSG_SPACE(len) as usize
        }
    }
    let mut used = 0;
    // SAFETY: there is room for two, as the caller says; the second begins at the aligned end of the first.
    unsafe {
        let first = libc::CMSG_FIRSTHDR(header);
        match from {
            None => {}
            Some(Destination { ip: IpAddr::V4(ip), .. }) => {
                let none = libc::in_addr { s_addr: 0 };
                let source = libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: none };
                used = put(first, (libc::IPPROTO_IP, libc::IP_PKTINFO), info);
            }
            Some(Destination { ip: IpAddr::V6(ip), interface }) => {
                let source = libc::in6_addr { s6_addr: ip.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: interface };
                used = put(first, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info);
            }
        }
        if let Some(size) = size {
            used += put(first.byte_add(used), (libc::SOL_UDP, libc::UDP_SEGMENT), size);
        }
    }
    used
}

/// Sends without checksums (SO_NO_CHECK, socket(7)), which the kernel does for no run.
///
/// # Errors
/// What setsockopt(2) says.
#[cfg(test)]
pub fn send_no_checksums(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let (fd, on, len) = (socket.as_raw_fd(), libc::c_int::from(on), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the option is an int, which outlives the call.
    match unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_NO_CHECK, (&raw const on).cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
