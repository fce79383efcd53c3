//! The only unsafe code: the few system calls that neither std nor nix offers as safe functions.
#![allow(unsafe_code)]

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::MsgFlags;
#[cfg(feature = "forward")]
use socket2::SockAddr;
use tokio::io::{Interest, unix::AsyncFd};

/// Variables by which systemd speaks to this process alone (sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)).
/// No child may see them: systemd would take a child's message to NOTIFY_SOCKET for a message of the service.
pub const OURS_ALONE: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Removes variables from the environment.
///
/// # Panics
/// When another thread exists: the environment is not to be touched then (environ(7), setenv(3) "MT-Unsafe").
pub fn unset_env<S: AsRef<OsStr>>(names: &[S]) {
    assert_eq!(thread_count(), 1, "the environment is changed before the first thread");
    for name in names {
        // SAFETY: this process has one thread (checked above), so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
}

/// Threads of this process, from /proc/self/task; 1 where /proc cannot tell.
fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Takes ownership of an inherited descriptor.
///
/// The number must come from `LISTEN_FDS`, SCM_RIGHTS or F_DUPFD and be taken once; [`crate::activation`] and the
/// handover are the only callers.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the descriptor was passed to this process and nothing else here owns it (see above).
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes `fd` available as descriptor `number` too (dup2(2)), inherited by children.
///
/// Meant for the beginning of a program that passes descriptors by their numbers, when it has opened nothing yet:
/// whatever came to it as `number` from its own parent is closed.
///
/// # Errors
/// What dup2(2) says.
pub fn place(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: nothing in this process owns `number` (see above), so no owner loses its descriptor.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(own(number))
}

/// Asks the allocator to give back what it does not use (malloc_trim(3)); only glibc's keeps much.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called by any thread at any time ("MT-Safe"), and touches nothing in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// From now on this process ends, by SIGPIPE, when nobody reads what it prints: for programs that only print. Rust's
/// start-up has had the signal ignored, and `println!` panics at EPIPE.
pub fn end_with_the_reader() {
    // SAFETY: the default action replaces no handler that anybody relies on; signal(2) touches no memory of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Registers a descriptor with the runtime.
///
/// # Errors
/// What epoll_ctl(2) says: ENOSPC at the limit of watches, ENOMEM.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and AsyncFd keeps it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// A descriptor that stands for the process `pid` (pidfd_open(2), Linux 5.3); close-on-exec.
///
/// # Errors
/// ESRCH when there is no such process; EMFILE and its kin.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(own(fd))
}

/// Sends `signal` to the process behind a pidfd (pidfd_send_signal(2)): never to another that got its number.
///
/// # Errors
/// ESRCH when it is gone.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed (NULL is allowed), the other arguments are integers.
    let r = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How the process behind a pidfd ended, as wait(2) has it, when that was collected already by whoever is its parent now
/// (PIDFD_GET_INFO with PIDFD_INFO_EXIT of linux/pidfd.h, Linux 6.15); `None` while it was not.
///
/// # Errors
/// ENOTTY, EINVAL or ESRCH where the kernel does not keep it.
pub fn pidfd_exit(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    /// `struct pidfd_info` in its first version, 64 bytes.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        /// Process, group, parent, and eight user and group ids.
        ids: [u32; 11],
        exit: i32,
    }
    const EXIT: u64 = 1 << 3;
    /// `_IOWR(0xff, 11, struct pidfd_info)`.
    const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the request reads and writes as many bytes as its number says (64), which is the size of `info`.
    if unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.mask & EXIT != 0).then_some(info.exit))
}

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
    union Control<const MAX: usize> {
        _align: libc::cmsghdr,
        _header: [u8; 64],
        _room: [RawFd; MAX],
    }
    let flags = flags | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let mut control = [const { std::mem::MaybeUninit::<Control<MAX>>::zeroed() }; 2];
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

/// Bytes that can be read now (FIONREAD, ioctl_tty(2), tcp(7), unix(7)); 0 when the kernel does not tell.
pub fn unread(fd: BorrowedFd<'_>) -> usize {
    let mut n: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address given, which is that of `n`.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut n) };
    if r < 0 { 0 } else { usize::try_from(n).unwrap_or(0) }
}

/// Bytes written and not yet acknowledged by a TCP peer (SIOCOUTQ, tcp(7)); 0 where there is no connection any more, or
/// the kernel does not tell.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> usize {
    const TCP_CLOSE: u8 = 7; // include/net/tcp_states.h
    if tcp_info(fd).is_none_or(|info| info.tcpi_state == TCP_CLOSE) {
        return 0;
    }
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

/// Whether a file of the nsfs is a network namespace (NS_GET_NSTYPE, ioctl_nsfs(2)).
pub fn is_net_namespace(nsfs: BorrowedFd<'_>) -> bool {
    /// `_IO(0xb7, 3)` of linux/nsfs.h.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument and only returns a number.
    unsafe { libc::ioctl(nsfs.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}

/// Has `command` start with these descriptors under these numbers, beside its standard ones.
pub fn pass(command: &mut std::process::Command, descriptors: Vec<(OwnedFd, RawFd)>) {
    use std::os::unix::process::CommandExt as _;
    let give = move || {
        // twice, so that none of the numbers is taken by a descriptor that is still to be passed
        let above = descriptors.iter().map(|(_, number)| *number).max().unwrap_or(0) + 1;
        let mut high = [-1; 4];
        for ((fd, _), place) in descriptors.iter().zip(&mut high) {
            // SAFETY: fcntl(2) takes integers here; it is async-signal-safe.
            *place = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) };
        }
        for ((_, number), fd) in descriptors.iter().zip(high) {
            // SAFETY: dup2(2) takes integers; it is async-signal-safe. Nothing of the child's runs any more that could
            // own the number.
            if unsafe { libc::dup2(fd, *number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock (signal-safety(7)).
    unsafe { command.pre_exec(give) };
}

/// Has every descriptor from 3 on closed when another program is executed: what came from whoever started this one is
/// nobody's business (close_range(2), Linux 5.11).
pub fn inherit_nothing() {
    // SAFETY: close_range takes three integers; with CLOSE_RANGE_CLOEXEC it closes nothing now, so no owner loses its
    // descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Whom a command runs as.
#[derive(Clone, Debug)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Has `command` lead a session of its own, with its standard input as the controlling terminal when `tty`; it dies
/// with the thread that started it; it runs as somebody else when told so.
pub fn lead_session(command: &mut std::process::Command, tty: bool, identity: Option<Identity>) {
    use std::os::unix::process::CommandExt as _;
    let prepare = move || {
        // SAFETY: system calls with integers, and one pointer to a vector that outlives the call; all of them are
        // async-signal-safe.
        let failed = unsafe {
            libc::setsid() < 0
                || tty && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0
                || identity.as_ref().is_some_and(|id| {
                    libc::setgroups(id.groups.len(), id.groups.as_ptr()) < 0
                        || libc::setgid(id.gid) < 0
                        || libc::setuid(id.uid) < 0
                })
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: as in `pass`.
    unsafe { command.pre_exec(prepare) };
}

/// Rows and columns of a terminal (TIOCGWINSZ); `None` when it is none.
pub fn window_size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the address given, which is that of `size`.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (r == 0).then_some((size.ws_row, size.ws_col))
}

/// Sets rows and columns of a terminal (TIOCSWINSZ); its foreground process group hears of it.
pub fn set_window_size(fd: BorrowedFd<'_>, rows: u16, columns: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize from the address given, which is that of `size`.
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

/// Seconds since 1970 as local year, month, day, hour, minute, second (localtime_r(3)).
pub fn local_time(seconds: i64) -> [i32; 6] {
    let mut tm = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid for the call; `tm` is plain data, valid in any state (zeroed before, in case the
    // year does not fit and nothing is written).
    let tm = unsafe {
        libc::localtime_r(&raw const seconds, tm.as_mut_ptr());
        tm.assume_init()
    };
    [tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec]
}
