//! The few things of the tests that std and nix have no safe function for.
#![allow(unsafe_code)]

use std::{
    io::{self, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};

/// The first inherited descriptor, `SD_LISTEN_FDS_START` of sd-daemon.h.
const FIRST: RawFd = 3;

/// Lets `command` start with copies of `descriptors` as 3, 4, 5…, without CLOEXEC, as systemd hands them over, and
/// with nothing behind them, whatever the tests themselves were started with. The copies kept for this are returned: they can go when the process has been started.
pub(super) fn inherit(command: &mut Command, descriptors: &[OwnedFd]) -> Vec<OwnedFd> {
    // Copies far above the places to fill: dup2 must not overwrite one that is still to be copied.
    let above = FIRST + i32::try_from(descriptors.len()).expect("few descriptors") + 64;
    let copies: Vec<OwnedFd> = descriptors
        .iter()
        .map(|fd| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(above)).expect("a free descriptor"))
        // SAFETY: fcntl has just made this descriptor, and nobody else knows of it.
        .map(|raw| unsafe { OwnedFd::from_raw_fd(raw) })
        .collect();
    let sources: Vec<RawFd> = copies.iter().map(AsRawFd::as_raw_fd).collect();
    let first_other = u32::try_from(FIRST).expect("3") + u32::try_from(sources.len()).expect("few descriptors");
    let place = move || {
        for (place, source) in (FIRST..).zip(&sources) {
            // SAFETY: plain numbers; between fork and exec only this thread exists. std's own pipe, which tells of
            // a failed exec, may be overwritten: the program is /bin/sh, which does not fail to start.
            if unsafe { libc::dup2(*source, place) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: plain numbers. Not closed at once: std's own pipe is one of them.
        if unsafe { libc::close_range(first_other, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: `place` calls dup2 and close_range only, which are plain system calls, and allocates nothing.
    unsafe { command.pre_exec(place) };
    copies
}

/// One message with the descriptors that came with it.
pub(super) fn receive_with_descriptors(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 253]); // SCM_MAX_FD
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just installed these for us, and nobody else knows of them.
            descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, descriptors))
}

/// Bytes that wait to be read (FIONREAD).
pub(super) fn unread(socket: RawFd) -> usize {
    let mut n: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, to `n`.
    let done = unsafe { libc::ioctl(socket, libc::FIONREAD, &raw mut n) };
    assert!(done == 0, "FIONREAD: {}", io::Error::last_os_error());
    usize::try_from(n).expect("a count")
}
