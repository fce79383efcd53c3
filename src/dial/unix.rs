//! UNIX endpoints.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr as SockAddr, connect as connect_fd, socket};
use tokio::time::{Instant, sleep, timeout_at};

use super::failure::{DialStep, Failure};
use crate::{
    spec::UnixAddr,
    stream::{Stream, StreamKind},
};

/// The first pause before another try, and the longest: 1/32 s, that doubled comes to whole seconds.
const PAUSE: (Duration, Duration) = (Duration::from_micros(31_250), Duration::from_secs(4));

/// Connects to `addr`. While nobody serves it (ENOENT, ECONNREFUSED) or its backlog is full (EAGAIN, unix(7)) it
/// tries again, pausing 1/32 s, doubling to 4 s, until `allowed` has passed; `waiting` hears of each failed try and of
/// the pause that follows.
///
/// # Errors
/// [`Failure::Io`] with the last error, also when the time is over.
///
/// # Cancel safety
/// Dropped, it closes what it began.
pub async fn connect(
    addr: &UnixAddr,
    allowed: Duration,
    mut waiting: impl FnMut(&io::Error, Duration),
) -> Result<Stream, Failure> {
    let deadline = Instant::now() + allowed;
    let mut pause = PAUSE.0;
    loop {
        let error = match connect_once(addr) {
            Ok(stream) => return Ok(stream),
            Err(e) => e,
        };
        let again = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ECONNREFUSED | libc::EAGAIN));
        let left = deadline.saturating_duration_since(Instant::now());
        if !again || left.is_zero() {
            return Err(Failure::Io { step: DialStep::Unix, doing: format!("connect to {addr}"), error });
        }
        waiting(&error, pause.min(left));
        let _ = timeout_at(deadline, sleep(pause)).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// A non-blocking connect(2) on a UNIX socket succeeds or fails at once.
fn connect_once(addr: &UnixAddr) -> io::Result<Stream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    let sockaddr = match addr {
        UnixAddr::Path(path) => SockAddr::new(path)?,
        UnixAddr::Abstract(name) => SockAddr::new_abstract(name)?,
    };
    connect_fd(fd.as_raw_fd(), &sockaddr)?;
    Stream::new(fd, StreamKind::Unix)
}
