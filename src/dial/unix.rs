//! UNIX endpoints.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr as SockAddr, connect as connect_fd, socket};

use super::{
    failure::{DialStep, Failure, io_failure},
    outgoing::{NotedSocket, note_unix},
    passage::Passage,
};
use crate::{
    spec::UnixAddr,
    stream::{Stream, StreamKind},
};

/// Connects to `addr`, at once or not at all: a connect(2) on a UNIX socket waits for nobody but a full backlog. The socket
/// is noted where it can lead back to this service.
///
/// # Errors
/// [`Failure::Io`]; EAGAIN for a full backlog (unix(7)).
pub fn connect(addr: &UnixAddr, passage: Option<&Passage>) -> Result<(Stream, Option<NotedSocket>), Failure> {
    let failed = |error| io_failure(DialStep::Unix, &format!("connect to {addr}"), error);
    connect_once(addr, passage).map_err(failed)
}

/// A non-blocking connect(2) on a UNIX socket succeeds or fails at once.
fn connect_once(addr: &UnixAddr, passage: Option<&Passage>) -> io::Result<(Stream, Option<NotedSocket>)> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let sockaddr = match addr {
        UnixAddr::Path(path) => SockAddr::new(path)?,
        UnixAddr::Abstract(name) => SockAddr::new_abstract(name)?,
    };
    let noted = note_unix(fd.as_fd(), addr, passage);
    connect_fd(fd.as_raw_fd(), &sockaddr)?;
    Ok((Stream::new(fd, StreamKind::Unix)?, noted.map(NotedSocket::connected)))
}
