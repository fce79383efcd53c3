//! One descriptor, registered with the runtime: a TCP or UNIX stream socket, or one end of a pipe.
//!
//! All kinds share one type, because a relay treats them alike: wait, read, write, half-close, reset. What `dial`
//! gives and `relay` takes.

use std::{
    io::{self, ErrorKind},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    pin::pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{self, MsgFlags},
};
use tokio::io::{
    Interest, Ready,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

pub use crate::sys::READS_COUNTED;
use crate::sys::{self, ClosedSocket, SendNote, SocketCounts, UnixEnd};

/// What the descriptor is; decides how a half-close and a reset are expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// A TCP socket.
    Tcp,
    /// A UNIX stream socket.
    Unix,
    /// The reading end of a pipe.
    PipeReader,
    /// The writing end of a pipe.
    PipeWriter,
}

/// How the other side of a stream went away, beyond a half-close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// An error is pending on the descriptor (EPOLLERR): a reset, an ICMP error, a keepalive that found nobody; for
    /// the writing end of a pipe: its reader closed it.
    Reset,
    /// Both directions are closed without an error (EPOLLHUP): a UNIX peer that called close(2).
    Closed,
}

/// What a wait for readiness gives: to be cleared when the descriptor turns out not to be ready.
pub type ReadyGuard<'a> = AsyncFdReadyGuard<'a, OwnedFd>;

/// A non-blocking stream registered with the runtime.
#[derive(Debug)]
pub struct Stream {
    io: AsyncFd<OwnedFd>,
    kind: StreamKind,
}

impl Stream {
    /// Registers `fd`, which must be non-blocking.
    ///
    /// # Errors
    /// What epoll_ctl(2) says: ENOSPC at the limit of watches, ENOMEM.
    pub fn new(fd: OwnedFd, kind: StreamKind) -> io::Result<Self> {
        let interest = match kind {
            StreamKind::Tcp | StreamKind::Unix => Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY,
            StreamKind::PipeReader => Interest::READABLE,
            StreamKind::PipeWriter => Interest::WRITABLE,
        };
        Ok(Self { io: sys::register(fd, interest)?, kind })
    }

    /// What the descriptor is.
    pub(crate) fn kind(&self) -> StreamKind {
        self.kind
    }

    /// Whether it is an end of a pipe.
    pub fn is_pipe(&self) -> bool {
        matches!(self.kind, StreamKind::PipeReader | StreamKind::PipeWriter)
    }

    /// Unregisters and gives the descriptor back.
    pub fn into_fd(self) -> OwnedFd {
        self.io.into_inner()
    }

    /// Waits until a read would give bytes, an end or an error.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<ReadyGuard<'_>>> {
        self.io.poll_read_ready(cx)
    }

    /// Waits until a write might find room.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<ReadyGuard<'_>>> {
        self.io.poll_write_ready(cx)
    }

    /// Whether a write would find room.
    pub fn has_room(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
        let _ = nix::poll::poll(&mut fds, PollTimeout::ZERO);
        fds[0].any().unwrap_or(true)
    }

    /// Waits until [`Stream::has_room`], which was not so before.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.io.poll_write_ready(cx))?;
            if self.has_room() {
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
        }
    }

    /// Reads into `buf`: the bytes read, 0 at the end. A short read clears the readiness at once, so that the next
    /// call costs no system call to learn that nothing is there; bytes that arrive meanwhile count (the readiness is
    /// cleared for the event seen, not for later ones).
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_read_after(cx, buf, || {})
    }

    /// As [`Stream::poll_read`]; `before` is called before each system call that may take a reset from the socket.
    pub fn poll_read_after(&self, cx: &mut Context<'_>, buf: &mut [u8], before: impl Fn()) -> Poll<io::Result<usize>> {
        loop {
            let Some(mut guard) = ready!(self.poll_end(cx))? else { return Poll::Ready(Ok(0)) };
            before();
            match self.read(buf) {
                Ok((n, more)) => {
                    if n < buf.len() && !more {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(nix::Error::EAGAIN) => guard.clear_ready(),
                Err(nix::Error::EINTR) => {}
                Err(e) => return Poll::Ready(Err(e.into())),
            }
        }
    }

    /// Waits until a read would give bytes, an end or an error, and looks for the end of a UNIX socket without a read:
    /// `None` is the end.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<ReadyGuard<'_>>>> {
        let guard = ready!(self.io.poll_read_ready(cx))?;
        let end = if self.is_ending(&guard) { sys::unix_end(self.as_fd()) } else { None };
        Poll::Ready(match end {
            Some(UnixEnd::Ended) => Ok(None),
            Some(UnixEnd::Reset) => Err(nix::Error::ECONNRESET.into()),
            None => Ok(Some(guard)),
        })
    }

    /// Whether the other side of a UNIX socket has ended, so that a read without a byte would give the end. A read that
    /// gives a reset takes that from the socket: for a process that comes after a crash, it must still be there.
    pub fn is_ending(&self, guard: &ReadyGuard<'_>) -> bool {
        self.kind == StreamKind::Unix && guard.ready().is_read_closed()
    }

    /// Has a UNIX socket count what is read from it; whether the reads of this socket are counted.
    pub fn count_reads(&self) -> bool {
        match self.kind {
            StreamKind::Tcp => true,
            StreamKind::Unix => sys::count_unix_reads(self.as_fd()).is_ok(),
            StreamKind::PipeReader | StreamKind::PipeWriter => false,
        }
    }

    /// What the kernel has counted on the socket; a UNIX socket counts from here on at the latest.
    pub fn counts(&self) -> Option<SocketCounts> {
        match self.kind {
            StreamKind::Tcp => sys::tcp_counts(self.as_fd(), ClosedSocket::Leave),
            StreamKind::Unix => sys::unix_counts_or_begin(self.as_fd()),
            StreamKind::PipeReader | StreamKind::PipeWriter => None,
        }
    }

    /// Reads once: the bytes read, and whether a short read may have left some behind. That is so at a TCP urgent mark
    /// (tcp(7)), where a read stops, and after a UNIX message that carried descriptors or credentials (unix(7)).
    fn read(&self, buf: &mut [u8]) -> nix::Result<(usize, bool)> {
        if self.kind == StreamKind::Unix {
            let mut parts = [io::IoSliceMut::new(buf)];
            let got = socket::recvmsg::<()>(self.io.as_raw_fd(), &mut parts, None, MsgFlags::empty())?;
            return Ok((got.bytes, got.flags.contains(MsgFlags::MSG_CTRUNC) || self.urgent()));
        }
        Ok((nix::unistd::read(self.io.get_ref(), buf)?, self.kind == StreamKind::Tcp && self.urgent()))
    }

    /// Whether an urgent byte was ever announced. (An end was, too, where this says so; then nothing is lost by it.)
    fn urgent(&self) -> bool {
        self.io.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    /// Whether an urgent byte was ever announced.
    pub fn was_urgent(&self) -> bool {
        self.kind == StreamKind::Tcp && self.urgent() && {
            let mut ready = pin!(self.io.ready(Interest::PRIORITY));
            let ready = ready.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            matches!(ready, Poll::Ready(Ok(guard)) if guard.ready().is_priority())
        }
    }

    /// Whether an urgent byte waits.
    pub fn has_urgent(&self) -> bool {
        self.kind == StreamKind::Tcp && sys::has_urgent(self.as_fd())
    }

    /// Writes what fits now, without waiting for readiness first: nearly always the socket has room.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; else what write(2) says.
    pub fn try_write(&self, buf: &[u8]) -> io::Result<usize> {
        loop {
            match nix::unistd::write(self.io.get_ref(), buf) {
                Err(nix::Error::EINTR) => {}
                r => return Ok(r?),
            }
        }
    }

    /// As [`Self::try_write`] to a UNIX socket, with a note of how much that was, for a process that comes after a crash.
    ///
    /// # Errors
    /// As [`Self::try_write`].
    pub fn try_send(&self, buf: &[u8], note: &SendNote<'_>) -> io::Result<usize> {
        note.send(self.as_fd(), buf)
    }

    /// Writes what fits, once something does.
    pub fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |_| self.try_write(buf))
    }

    /// Does `write`, once there is room.
    pub fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.io.poll_write_ready(cx))?;
            match write(self.as_fd()) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => guard.clear_ready(),
                r => return Poll::Ready(r),
            }
        }
    }

    /// Becomes ready when the other side is gone (not merely half-closed), without reading anything.
    ///
    /// It uses up the readiness to write, so it must not be polled while a write waits on the same stream: that
    /// write notices by itself.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Gone> {
        loop {
            let Ok(mut guard) = ready!(self.io.poll_write_ready(cx)) else {
                return Poll::Ready(Gone::Reset); // the runtime is shutting down
            };
            if guard.ready().is_write_closed() {
                return Poll::Ready(self.how_gone());
            }
            guard.clear_ready_matching(Ready::WRITABLE);
        }
    }

    /// Waits until the other side is gone; see [`Stream::poll_gone`].
    ///
    /// # Cancel safety
    /// Safe: nothing is read or written.
    pub async fn gone(&self) -> Gone {
        std::future::poll_fn(|cx| self.poll_gone(cx)).await
    }

    /// Waits until a read would give bytes, an end or an error.
    ///
    /// # Cancel safety
    /// Safe: nothing is read.
    pub async fn readable(&self) {
        // An error means that the runtime is shutting down; the read that follows reports it.
        let _ = self.io.readable().await;
    }

    /// Waits until a connect(2) in progress is over.
    ///
    /// # Errors
    /// What SO_ERROR says (connect(2), EINPROGRESS).
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn connected(&self) -> io::Result<()> {
        let _ = self.io.writable().await?;
        match socket::getsockopt(&self.io, socket::sockopt::SocketError)? {
            0 => Ok(()),
            e => Err(io::Error::from_raw_os_error(e)),
        }
    }

    fn how_gone(&self) -> Gone {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::empty())];
        let _ = nix::poll::poll(&mut fds, PollTimeout::ZERO);
        match fds[0].revents() {
            Some(r) if r.contains(PollFlags::POLLERR) => Gone::Reset,
            _ => Gone::Closed,
        }
    }

    /// Says that nothing more will be written (a half-close). For the writing end of a pipe, drop the stream instead.
    pub fn shutdown_write(&self) {
        // ENOTCONN: the peer is gone already, and the next read says so.
        let _ = socket::shutdown(self.io.as_raw_fd(), socket::Shutdown::Write);
    }

    /// Bytes that wait to be read.
    pub fn unread(&self) -> usize {
        sys::unread(self.as_fd())
    }

    /// Bytes that a reset would take back from the other side: those that its kernel has not acknowledged. None over
    /// UNIX, where what was written is in the other side's queue already, and none where the connection is gone.
    pub fn undelivered(&self) -> usize {
        if self.kind == StreamKind::Tcp { sys::unacknowledged(self.as_fd()) } else { 0 }
    }

    /// How long ago the other side acknowledged something, while something waits for an acknowledgement; only over TCP.
    pub fn unanswered(&self) -> Option<Duration> {
        if self.kind == StreamKind::Tcp { sys::unanswered(self.as_fd()) } else { None }
    }

    /// How much of what was written a close with bytes unread would hide from the other side: TCP drops what is not
    /// acknowledged, and a UNIX peer sees ECONNRESET in place of the end.
    pub fn waiting(&self) -> usize {
        if self.kind == StreamKind::Unix { sys::queued(self.as_fd()) } else { self.undelivered() }
    }

    /// Closes so that the other side sees a reset where the family has one: TCP by a zero linger (tcp(7) SO_LINGER);
    /// a UNIX peer sees one when it has sent bytes that nobody read, so they are left unread.
    pub fn reset(self) {
        if self.kind == StreamKind::Tcp {
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = socket::setsockopt(&self.io, socket::sockopt::Linger, &linger);
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.get_ref().as_fd()
    }
}
