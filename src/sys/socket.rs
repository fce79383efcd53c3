//! Sockets: what is accepted, received and not read yet.
#![allow(unsafe_code)]

#[cfg(feature = "forward")]
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release, SeqCst},
    compiler_fence,
};
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

#[cfg(feature = "forward")]
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::MsgFlags;
#[cfg(feature = "forward")]
use socket2::SockAddr;

use super::descriptor::own;

/// Accepts one connection: its descriptor (non-blocking, close-on-exec) and the peer's address.
///
/// # Errors
/// What accept4(2) says; EAGAIN when none waits.
#[cfg(feature = "forward")]
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, SockAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: try_init gives a zeroed sockaddr_storage and its size, which accept4 fills and shortens.
    unsafe {
        SockAddr::try_init(|storage, len| {
            let fd = libc::accept4(listener.as_raw_fd(), storage.cast(), len, flags);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(own(fd)) }
        })
    }
}

/// One message with at most `MAX` descriptors, close-on-exec: the bytes received, and the descriptors. Where this
/// process has no room for all of them (EMFILE), the kernel closes the rest, and those that came are given here; that
/// is why this is not nix's recvmsg, which then gives none and leaves them open. With MSG_PEEK in `flags` the message
/// stays, and the descriptors are duplicates.
///
/// # Errors
/// What recvmsg(2) says; EAGAIN when no message waits.
pub fn receive<const MAX: usize>(
    from: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: MsgFlags,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    /// Room for one header and `MAX` descriptors, aligned as a header must be (cmsg(3)).
    #[repr(C)]
    union ControlBuffer<const MAX: usize> {
        _align: libc::cmsghdr,
        _header: [u8; 64],
        _room: [RawFd; MAX],
    }
    let flags = flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut control = [const { std::mem::MaybeUninit::<ControlBuffer<MAX>>::zeroed() }; 2];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain old data, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to `bytes` and `control` with their sizes, and both outlive the call.
    let n = unsafe { libc::recvmsg(from.as_raw_fd(), &raw mut message, flags.bits()) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled `control` with whole headers, which the macros walk within msg_controllen; a
    // header's data is what its length says, and each number in SCM_RIGHTS was installed for us just now.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(h) = header.as_ref() {
            if (h.cmsg_level, h.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let count = (h.cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                fds.extend((0..count).map(|i| own(data.add(i).read_unaligned())));
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((n, fds))
}

/// Has a bound socket listen; `backlog` connections may wait. nix refuses more than 4096, the kernel does not.
///
/// # Errors
/// What listen(2) says.
pub fn listen(socket: &OwnedFd, backlog: u32) -> io::Result<()> {
    let backlog = libc::c_int::try_from(backlog).unwrap_or(libc::c_int::MAX);
    // SAFETY: listen takes two integers.
    if unsafe { libc::listen(socket.as_raw_fd(), backlog) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number that an interface has in the network namespace of a socket, whichever thread asks (SIOCGIFINDEX,
/// netdevice(7)). A name that no interface has may be the number itself.
///
/// # Errors
/// ENODEV: there is no such interface.
pub fn interface_index(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    // SAFETY: ifreq is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: SIOCGIFINDEX reads the name, which ends in a NUL, and writes the number into the request given.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) } < 0 {
        let error = io::Error::last_os_error();
        return name.parse().map_err(|_| error);
    }
    // SAFETY: the call has succeeded, so this is the member of the union that it wrote.
    u32::try_from(unsafe { request.ifr_ifru.ifru_ifindex }).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Bytes that can be read now (FIONREAD, ioctl_tty(2), tcp(7), unix(7)); 0 when the kernel does not tell.
pub fn unread(fd: BorrowedFd<'_>) -> usize {
    let mut n: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address given, which is that of `n`.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut n) };
    if r < 0 { 0 } else { usize::try_from(n).unwrap_or(0) }
}

/// State of a socket without a connection (include/net/tcp_states.h).
const TCP_CLOSE: u8 = 7;

/// Bytes written and not yet acknowledged by a TCP peer (SIOCOUTQ, tcp(7)); 0 where there is no connection any more, or
/// the kernel does not tell.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> usize {
    if tcp_info(fd).is_none_or(|info| info.tcpi_state == TCP_CLOSE) {
        return 0;
    }
    queued(fd)
}

/// What the kernel has counted on a socket, whoever had the socket.
#[cfg(feature = "forward")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketCounts {
    /// Bytes that were read from the socket.
    pub read: u64,
    /// What was written to the socket: bytes, and one each for the SYN of a socket that was dialled and for a FIN. A
    /// UNIX socket does not count this: 0.
    pub written: u64,
    /// The connection is over: both ends came through, or one side was reset.
    pub closed: bool,
    /// The other side has ended, and no byte that it sent is missing.
    pub ended: bool,
}

/// What to do with a socket whose connection is over.
#[cfg(feature = "forward")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosedSocket {
    /// Ask whether it has ended. That takes a reset that nobody has heard of from the socket.
    Ask,
    /// Tell nothing of it.
    Leave,
}

/// Reads what TCP has counted, at one moment; `None` where the kernel does not tell or does not stop changing it, and
/// where urgent data waits, at whose mark FIONREAD stops.
#[cfg(feature = "forward")]
pub fn tcp_counts(fd: BorrowedFd<'_>, of_closed: ClosedSocket) -> Option<SocketCounts> {
    /// States after a FIN of the other side (include/net/tcp_states.h).
    const ENDED: [u8; 4] = [6, 8, 9, 11];
    const TRIES: usize = 1000;
    for _ in 0..TRIES {
        let before = tcp_totals(fd)?;
        if has_urgent(fd) || (before.state == TCP_CLOSE && of_closed == ClosedSocket::Leave) {
            return None;
        }
        let (unread, queued) = (unread(fd) as u64, queued(fd) as u64);
        let ended = match before.state {
            TCP_CLOSE => has_received_end(fd),
            state => ENDED.contains(&state),
        };
        if tcp_totals(fd)? == before && !has_urgent(fd) {
            return Some(SocketCounts {
                // An end counts as a byte that was received, and FIONREAD leaves it out.
                read: before.received.saturating_sub(unread + u64::from(ended)),
                written: before.acked + queued,
                closed: before.state == TCP_CLOSE,
                ended,
            });
        }
    }
    None
}

/// From where a UNIX stream socket counts down the bytes that are read from it. The option SO_PEEK_OFF (socket(7)) is
/// the offset of the next MSG_PEEK, and each read takes its bytes off, down to 0 (net/core/sock.c
/// `sk_peek_offset_bwd`). So such a socket must not be peeked at any more.
#[cfg(feature = "forward")]
const READS_START: libc::c_int = 1 << 30;
/// After how many bytes the reads of a UNIX socket are counted anew: long before the start is used up.
#[cfg(feature = "forward")]
pub const READS_COUNTED: u64 = 1 << 28;

/// Has a UNIX stream socket count what is read from it, from 0 on.
///
/// # Errors
/// What setsockopt(2) says.
#[cfg(feature = "forward")]
pub fn count_unix_reads(fd: BorrowedFd<'_>) -> io::Result<()> {
    let start = READS_START;
    let (at, len) = ((&raw const start).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the option's value is an int, which is read during the call.
    let r = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, at, len) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a UNIX stream socket has counted; `None` where nobody had it count.
#[cfg(feature = "forward")]
pub fn unix_counts(fd: BorrowedFd<'_>) -> Option<SocketCounts> {
    // SAFETY: the option's value is an int.
    let left: libc::c_int = unsafe { option(fd, libc::SO_PEEK_OFF) }?;
    let read = u64::try_from(READS_START.checked_sub(left)?).ok().filter(|_| left > 0)?;
    Some(SocketCounts { read, written: 0, closed: false, ended: unix_end(fd) == Some(UnixEnd::Ended) })
}

/// As [`unix_counts`], and has it count anew, from 0 on, where nobody did so yet or little room is left.
#[cfg(feature = "forward")]
pub fn unix_counts_or_begin(fd: BorrowedFd<'_>) -> Option<SocketCounts> {
    unix_counts(fd).filter(|counts| counts.read < READS_COUNTED).or_else(|| {
        count_unix_reads(fd).ok()?;
        unix_counts(fd)
    })
}

/// How a UNIX stream socket has ended from which all was read.
#[cfg(feature = "forward")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnixEnd {
    /// The other side has closed the socket, or its half of it.
    Ended,
    /// The other side has closed the socket before it had read everything (ECONNRESET).
    Reset,
}

/// Whether the other side of a UNIX stream socket has closed it (POLLHUP): nothing that is written arrives.
#[cfg(feature = "forward")]
pub fn unix_is_closed(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// Looks for the end without a read, which would take a reset from the socket; `None` while bytes wait or may come.
#[cfg(feature = "forward")]
pub fn unix_end(fd: BorrowedFd<'_>) -> Option<UnixEnd> {
    let events = || {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        fds[0].revents().unwrap_or(PollFlags::empty())
    };
    // Readable without a byte: that is an end.
    if !events().intersects(PollFlags::POLLIN | PollFlags::POLLHUP) || unread(fd) > 0 {
        return None;
    }
    // Who closes a socket marks its other side as ended first and as reset next, both under the lock of that side
    // (net/unix/af_unix.c `unix_release_sock`). shutdown(2) takes that lock, and nothing can come any more.
    let _ = nix::sys::socket::shutdown(fd.as_raw_fd(), nix::sys::socket::Shutdown::Read);
    Some(if events().contains(PollFlags::POLLERR) { UnixEnd::Reset } else { UnixEnd::Ended })
}

/// The note of one send in memory that outlives the process: a message header of sendmmsg(2), into which the kernel
/// writes how much was sent, and who sends.
#[cfg(feature = "forward")]
#[derive(Clone, Copy, Debug)]
pub struct SendNote<'a> {
    words: &'a [AtomicU64; SEND_NOTE],
    owner: u64,
    /// Bytes that the owner had sent before.
    before: u64,
}

/// Words of the note of a send.
#[cfg(feature = "forward")]
pub const SEND_NOTE: usize = 16;
/// The words behind the message header.
#[cfg(feature = "forward")]
const OWNER: usize = 8;
#[cfg(feature = "forward")]
const BEFORE: usize = 9;
/// Where the kernel writes the result: a `u32`, which this never is before.
#[cfg(feature = "forward")]
const RESULT: usize = std::mem::offset_of!(libc::mmsghdr, msg_len);
#[cfg(feature = "forward")]
const NOT_SENT: u32 = u32::MAX;
#[cfg(feature = "forward")]
const _: () = assert!(size_of::<libc::mmsghdr>() <= OWNER * size_of::<u64>());

#[cfg(feature = "forward")]
impl<'a> SendNote<'a> {
    pub fn new(words: &'a [AtomicU64; SEND_NOTE], owner: u64, before: u64) -> Self {
        Self { words, owner, before }
    }

    /// Bytes that this owner had sent after its last send that is noted in these words; `None` where there is none, or
    /// it sent nothing.
    pub fn sent(words: &[AtomicU64; SEND_NOTE], owner: u64) -> Option<u64> {
        let word = words[RESULT / 8].load(Acquire).to_ne_bytes();
        let result = u32::from_ne_bytes(word[RESULT % 8..][..4].try_into().ok()?);
        let is_noted = result != NOT_SENT && words[OWNER].load(Acquire) == owner;
        is_noted.then(|| words[BEFORE].load(Acquire).wrapping_add(result.into()))
    }

    /// Sends what fits now, with a note of how much that is.
    ///
    /// # Errors
    /// As sendmsg(2); nothing was sent then.
    pub fn send(&self, fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: a message header of zeros is a valid one.
        let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
        header.msg_hdr.msg_iov = &raw mut part;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_len = NOT_SENT;
        let at = self.words.as_ptr().cast_mut().cast::<libc::mmsghdr>();
        // SAFETY: the words have room for the header and are aligned for it; atomics may be written through a shared
        // reference, and the buffer that the note belongs to has one owner, so nobody else writes them.
        unsafe { at.write(header) };
        compiler_fence(SeqCst);
        self.words[OWNER].store(self.owner, Release);
        self.words[BEFORE].store(self.before, Release);
        compiler_fence(SeqCst);
        let flags = (MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).bits();
        loop {
            // SAFETY: the header points to `part`, which points to `bytes`; the kernel reads them during the call, and
            // writes one u32 into the header.
            let n = unsafe { libc::sendmmsg(fd.as_raw_fd(), at, 1, flags) };
            if n > 0 {
                // SAFETY: the kernel has written it.
                let sent = unsafe { (*at).msg_len };
                return Ok(sent as usize);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// Whether urgent data has come and was not passed by a read (POLLPRI, tcp(7)).
#[cfg(feature = "forward")]
pub fn has_urgent(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLPRI)];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLPRI))
}

/// State and counts of TCP_INFO.
#[cfg(feature = "forward")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TcpTotals {
    state: u8,
    acked: u64,
    received: u64,
}

#[cfg(feature = "forward")]
fn tcp_totals(fd: BorrowedFd<'_>) -> Option<TcpTotals> {
    /// Offsets of tcpi_bytes_acked and tcpi_bytes_received in `struct tcp_info` (linux/tcp.h, Linux 4.1).
    const ACKED: usize = 120;
    const RECEIVED: usize = 128;
    let mut info = [0_u64; 64];
    let mut size = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes into `info`, and says how many.
    let r = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut size)
    };
    if r < 0 || (size as usize) < RECEIVED + 8 {
        return None;
    }
    // The state is the first byte.
    Some(TcpTotals { state: info[0].to_ne_bytes()[0], acked: info[ACKED / 8], received: info[RECEIVED / 8] })
}

/// Whether an end of the other side has come to a TCP socket whose connection is over: the hint of TCP_INQ counts it
/// (net/ipv4/tcp.c `tcp_inq_hint`), FIONREAD does not. A reset that nobody has heard of yet is none.
#[cfg(feature = "forward")]
fn has_received_end(fd: BorrowedFd<'_>) -> bool {
    /// The option, and the control message (linux/tcp.h).
    const TCP_INQ: libc::c_int = 36;
    let set = |value: libc::c_int| {
        let (at, len) = ((&raw const value).cast(), size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: the option's value is an int, which is read during the call.
        unsafe { libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, TCP_INQ, at, len) == 0 }
    };
    if !set(1) {
        return false;
    }
    let (mut byte, mut control) = ([0_u8; 1], [0_u64; 8]);
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: a message header of zeros is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header points to `byte` and `control`, with their sizes, and both outlive the call.
    let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    set(0);
    if n < 0 {
        return false;
    }
    // SAFETY: the kernel has written the control messages that the header tells of.
    let hint = unsafe {
        let first = libc::CMSG_FIRSTHDR(&raw const message);
        let is_hint = !first.is_null() && (*first).cmsg_level == libc::IPPROTO_TCP && (*first).cmsg_type == TCP_INQ;
        if is_hint { libc::CMSG_DATA(first).cast::<libc::c_int>().read_unaligned() } else { 0 }
    };
    usize::try_from(hint).is_ok_and(|hint| hint == unread(fd) + 1)
}

/// Whether nothing was read from an accepted TCP socket and nothing written to it, whoever had it.
#[cfg(feature = "forward")]
pub fn is_untouched(fd: BorrowedFd<'_>) -> bool {
    let Some(TcpTotals { acked, received, .. }) = tcp_totals(fd) else { return false };
    // The end of what the other side sends (FIN) counts as one byte received.
    acked == 0 && unacknowledged(fd) == 0 && received.saturating_sub(unread(fd) as u64) <= 1
}

/// How long ago a TCP peer acknowledged something, while bytes in flight or a probe of its closed window wait for an
/// acknowledgement (SIOCOUTQ, `tcpi_unacked`, `tcpi_probes` and `tcpi_last_ack_recv` of TCP_INFO, tcp(7)). A closed window
/// whose last probe was answered waits for nothing.
pub fn unanswered(fd: BorrowedFd<'_>) -> Option<Duration> {
    let info = tcp_info(fd).filter(|info| info.tcpi_unacked > 0 || info.tcpi_probes > 0)?;
    let waits = info.tcpi_state != TCP_CLOSE && queued(fd) > 0;
    waits.then(|| Duration::from_millis(info.tcpi_last_ack_recv.into()))
}

/// Bytes written to a socket that still wait (SIOCOUTQ): over TCP for an acknowledgement (tcp(7)), over UNIX for the other
/// side to read them, with what the kernel adds to each message (net/unix/af_unix.c `unix_outq_len`).
pub fn queued(fd: BorrowedFd<'_>) -> usize {
    let mut n: libc::c_int = 0;
    // SAFETY: SIOCOUTQ, which is TIOCOUTQ by another name, writes one int to the address given, which is that of `n`.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut n) };
    if r < 0 { 0 } else { usize::try_from(n).unwrap_or(0) }
}

/// Connections that wait in the backlog of a listening TCP socket (`tcpi_unacked` of TCP_INFO, which for a listener
/// is the length of its accept queue: net/ipv4/tcp.c `tcp_get_info`); `None` for other sockets.
pub fn tcp_backlog(fd: BorrowedFd<'_>) -> Option<u32> {
    tcp_info(fd).map(|info| info.tcpi_unacked)
}

/// The number of the network namespace that a socket is in: another one for each, as long as the machine runs
/// (SO_NETNS_COOKIE, net/core/sock.c); `None` before Linux 5.14.
#[cfg(feature = "forward")]
pub fn net_cookie(fd: BorrowedFd<'_>) -> Option<u64> {
    // SAFETY: the option's value is an unsigned integer of 64 bits.
    unsafe { option(fd, libc::SO_NETNS_COOKIE) }
}

/// The number of a socket: another one for each, as long as the machine runs (SO_COOKIE, net/core/sock_diag.c; in all
/// namespaces together since Linux 5.4). `None` for what is no socket.
#[cfg(feature = "forward")]
pub fn socket_cookie(fd: BorrowedFd<'_>) -> Option<u64> {
    // SAFETY: the option's value is an unsigned integer of 64 bits.
    unsafe { option(fd, libc::SO_COOKIE) }
}

/// The number of the interface that a socket is bound to, 0 without one (SO_BINDTOIFINDEX, net/core/sock.c); `None`
/// before Linux 5.0.
#[cfg(feature = "forward")]
pub fn bound_interface(fd: BorrowedFd<'_>) -> Option<i32> {
    // SAFETY: the option's value is an int.
    unsafe { option(fd, libc::SO_BINDTOIFINDEX) }
}

/// An option of the level SOL_SOCKET; `None` where the kernel does not know it.
///
/// # Safety
/// The option's value is a `T`, of which all bits may have any value.
#[cfg(feature = "forward")]
unsafe fn option<T: Default>(fd: BorrowedFd<'_>, name: libc::c_int) -> Option<T> {
    let mut value = T::default();
    let mut len = libc::socklen_t::try_from(size_of::<T>()).ok()?;
    // SAFETY: the kernel writes at most `len` bytes, the size of `value`, and the caller says that they make a `T`.
    let r = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) };
    (r == 0).then_some(value)
}

/// TCP_INFO (tcp(7)); `None` for other sockets.
fn tcp_info(fd: BorrowedFd<'_>) -> Option<libc::tcp_info> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).ok()?;
    // SAFETY: the buffer is `len` bytes, and tcp_info is plain old data, valid in any state (zeroed before).
    unsafe {
        if libc::getsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut len)
            < 0
        {
            return None;
        }
        Some(info.assume_init())
    }
}

#[cfg(all(test, feature = "forward"))]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::Shutdown,
        os::{fd::AsFd as _, unix::net::UnixStream},
    };

    use nix::fcntl::{SpliceFFlags, splice};

    use super::*;

    fn reads(socket: &UnixStream) -> Option<u64> {
        unix_counts(socket.as_fd()).map(|counts| counts.read)
    }

    #[test]
    fn a_unix_socket_counts_what_is_read_in_any_way_and_begins_anew_before_it_runs_out() {
        let (mut here, mut there) = UnixStream::pair().expect("a pair");
        assert_eq!(reads(&here), None, "nobody had it count");
        there.write_all(b"0123456789").expect("room");
        assert_eq!(unix_counts_or_begin(here.as_fd()).map(|counts| counts.read), Some(0));
        here.read_exact(&mut [0; 3]).expect("they came");
        let (from, to) = nix::unistd::pipe().expect("a pipe");
        let spliced = splice(&here, None, &to, None, 4, SpliceFFlags::SPLICE_F_NONBLOCK).expect("they came");
        assert_eq!((spliced, reads(&here), unread(here.as_fd())), (4, Some(7), 3));
        assert_eq!(unix_counts_or_begin(here.as_fd()).map(|counts| counts.read), Some(7), "it goes on");
        drop((from, to));
        let low = READS_START - READS_COUNTED as libc::c_int;
        // SAFETY: the option's value is an int, which is read during the call.
        let set = unsafe {
            let at = (&raw const low).cast();
            libc::setsockopt(here.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, at, size_of_val(&low) as _)
        };
        assert_eq!((set, reads(&here)), (0, Some((READS_START - low) as u64)));
        assert_eq!(unix_counts_or_begin(here.as_fd()).map(|counts| counts.read), Some(0));
    }

    #[test]
    fn an_end_and_a_reset_of_a_unix_socket_are_seen_and_stay() {
        let (mut here, mut there) = UnixStream::pair().expect("a pair");
        assert_eq!(unix_end(here.as_fd()), None);
        there.write_all(b"x").expect("room");
        there.shutdown(Shutdown::Write).expect("connected");
        assert_eq!(unix_end(here.as_fd()), None, "a byte waits");
        here.read_exact(&mut [0; 1]).expect("it came");
        assert_eq!([(); 2].map(|()| unix_end(here.as_fd())), [Some(UnixEnd::Ended); 2]);
        here.write_all(b"the other half is open").expect("room");
        there.read_exact(&mut [0; 22]).expect("it came");

        let (mut here, there) = UnixStream::pair().expect("a pair");
        here.write_all(b"unread").expect("room");
        drop(there);
        assert_eq!([(); 2].map(|()| unix_end(here.as_fd())), [Some(UnixEnd::Reset); 2]);
        assert!(here.read(&mut [0]).is_err(), "nobody has taken it from the socket");
        assert_eq!(unix_end(here.as_fd()), Some(UnixEnd::Ended), "the kernel tells a reset once");
    }

    #[test]
    fn a_send_leaves_how_much_was_sent_and_one_that_sends_nothing_leaves_nothing() {
        let words: [AtomicU64; SEND_NOTE] = Default::default();
        let (here, there) = UnixStream::pair().expect("a pair");
        let send = |owner: u64, before: u64| SendNote::new(&words, owner, before).send(here.as_fd(), &[7; 5000]);
        assert_eq!(SendNote::sent(&words, 0), Some(0), "words of zeros say that nothing was sent");
        assert_eq!(send(9, 100).expect("room"), 5000);
        assert_eq!((SendNote::sent(&words, 9), SendNote::sent(&words, 8)), (Some(5100), None));
        let mut all = 5000;
        let full = loop {
            match send(9, all) {
                Ok(n) => all += n as u64,
                Err(e) => break e.kind(),
            }
            assert_eq!(SendNote::sent(&words, 9), Some(all));
        };
        assert_eq!((full, SendNote::sent(&words, 9)), (io::ErrorKind::WouldBlock, None));
        drop(there);
        assert_eq!(send(9, all).map_err(|e| e.kind()), Err(io::ErrorKind::BrokenPipe));
        assert_eq!(SendNote::sent(&words, 9), None);
    }
}
