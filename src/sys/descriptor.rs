//! Descriptors: who owns them, under which number, when they are ready.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::sys::resource::{Resource, getrlimit};
use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdRegisterError},
};

/// Takes ownership of an inherited descriptor.
///
/// The number must come from a system call or from whoever started this program (`LISTEN_FDS`, SCM_RIGHTS, F_DUPFD), and
/// be taken once.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the descriptor was passed to this process and nothing else here owns it (see above).
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Makes `fd` available as descriptor `number` too (dup2(2)), inherited by children.
///
/// For a program that passes descriptors by their numbers, to numbers that nothing in it owns: whatever was open as
/// `number` is closed.
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

/// The most descriptors that this process may have: the hard limit, up to which the soft one is raised.
pub fn hard_limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(_, hard)| hard)
}

/// Registers a descriptor with the runtime.
///
/// # Errors
/// What epoll_ctl(2) says: ENOSPC at the limit of watches, ENOMEM.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    register_or_return(fd, interest).map_err(|(_, error)| error)
}

/// As [`register`]; where that fails, the descriptor comes back with the error.
///
/// # Errors
/// Those of [`register`].
pub fn register_or_return(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: an OwnedFd names the same open descriptor for as long as it lives, and AsyncFd keeps it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(AsyncFdRegisterError::into_parts)
}

/// Reads behind what `buffer` holds, `most` bytes or as much as it has room for (read(2)): 0 at the end.
///
/// # Errors
/// What read(2) says.
#[cfg(any(feature = "remote", feature = "dom0"))]
pub fn read_into(fd: BorrowedFd<'_>, buffer: &mut bytes::BytesMut, most: usize) -> io::Result<usize> {
    let room = buffer.spare_capacity_mut();
    let most = room.len().min(most);
    // SAFETY: the kernel writes at most `most` bytes there, which is no more than there is room for.
    let n = unsafe { libc::read(fd.as_raw_fd(), room.as_mut_ptr().cast(), most) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the first `n` bytes of the room, which follow the bytes of the buffer, were written by the kernel.
    unsafe { buffer.set_len(buffer.len() + n) };
    Ok(n)
}

/// Whether a file of the nsfs is a network namespace (NS_GET_NSTYPE, ioctl_nsfs(2)).
pub fn is_net_namespace(nsfs: BorrowedFd<'_>) -> bool {
    /// `_IO(0xb7, 3)` of linux/nsfs.h.
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument and only returns a number.
    unsafe { libc::ioctl(nsfs.as_raw_fd(), NS_GET_NSTYPE) == libc::CLONE_NEWNET }
}
