//! The socket of one stream: what waits for it, how far it is, how it ends.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::socket::{MsgFlags, Shutdown, recv, send, setsockopt, shutdown, sockopt};

use super::wire::retry;
use crate::sys;

/// How long the bytes that came before a RESET may take to be delivered, and how long the error of a socket may take to
/// be read behind the bytes before it: without credit nobody reads them.
pub const GRACE: Duration = Duration::from_secs(2);
/// How soon a socket is asked whether all is delivered (nothing tells it by itself). Later it is asked less often.
const LOOK: Duration = Duration::from_millis(5);
/// A queue that was longer gives its memory back when it is empty.
const KEPT_QUEUE: usize = 64 << 10;

/// What a stream's socket is; decides what a short read means and how a reset is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketFamily {
    /// TCP.
    Tcp,
    /// A UNIX stream socket.
    Unix,
    /// A connected socket of datagrams.
    Datagrams,
}

/// What a read gave.
#[derive(Debug)]
pub enum SocketRead {
    /// So many bytes; whether there may be more.
    Bytes(usize, bool),
    /// The other side has ended.
    End,
    /// Nothing is there now.
    Nothing,
    /// The socket is broken.
    Broken,
}

/// The socket of one stream, non-blocking.
#[derive(Debug)]
pub struct StreamSocket {
    fd: OwnedFd,
    family: SocketFamily,
    /// connect(2) is not over.
    connecting: bool,
    writable: bool,
    /// It told an end, an error or urgent data: a short read does not mean that nothing is left.
    odd: bool,
    /// An error was told, and the read that gives it has not come.
    error: bool,
    /// A write has failed: what comes is thrown away.
    broken: bool,
    /// Bytes from the call that the socket has not taken; the stream's window bounds them.
    queue: VecDeque<u8>,
    /// Behind the queue comes the end.
    ends: bool,
    /// The end was passed on.
    shut: bool,
    /// Behind the queue comes a reset.
    resets: bool,
    /// When the socket is closed at the latest, whatever waits.
    deadline: Option<Instant>,
    /// From the near end to the far end's socket, and back.
    up: u64,
    down: u64,
    began: Instant,
}

impl StreamSocket {
    /// A new stream's.
    pub fn new(fd: OwnedFd, family: SocketFamily, connecting: bool, now: Instant) -> Self {
        if family == SocketFamily::Tcp {
            // A process that is killed is to be seen as a reset, and never as an end of data.
            linger(&fd, true);
        }
        Self {
            fd,
            family,
            connecting,
            writable: !connecting,
            odd: false,
            error: false,
            broken: false,
            queue: VecDeque::new(),
            ends: false,
            shut: false,
            resets: false,
            deadline: None,
            up: 0,
            down: 0,
            began: now,
        }
    }

    /// connect(2) is not over.
    pub fn is_connecting(&self) -> bool {
        self.connecting
    }

    /// Bytes from the call and to the call, and since when.
    pub fn counts(&self) -> (u64, u64, Instant) {
        (self.up, self.down, self.began)
    }

    /// The end of connect(2).
    ///
    /// # Errors
    /// What SO_ERROR says (connect(2), EINPROGRESS).
    pub fn connected(&mut self) -> io::Result<()> {
        self.connecting = false;
        self.writable = true;
        match nix::sys::socket::getsockopt(&self.fd, sockopt::SocketError)? {
            0 => Ok(()),
            number => Err(io::Error::from_raw_os_error(number)),
        }
    }

    /// It may take more.
    pub fn set_writable(&mut self) {
        self.writable = true;
    }

    /// It told an end or urgent data.
    pub fn set_odd(&mut self) {
        self.odd = true;
    }

    /// It told an error, which a read gives behind the bytes before it. An error of a datagram (ICMP) says nothing
    /// about the next one.
    pub fn set_error(&mut self, now: Instant) {
        self.odd = true;
        if self.family != SocketFamily::Datagrams {
            self.error = true;
            self.deadline.get_or_insert(now + GRACE);
        }
    }

    /// Whether the error that was told will be read: not when nothing is read any more.
    pub fn has_error(&self) -> bool {
        self.error || self.broken
    }

    /// Takes bytes from the call: how many of them and of the queue the socket took at once.
    pub fn deliver(&mut self, bytes: &[u8], now: Instant) -> usize {
        if self.broken {
            return 0;
        }
        let mut taken = 0;
        if self.queue.is_empty() {
            taken = self.write(bytes, now);
        }
        if !self.broken {
            self.queue.extend(&bytes[taken..]);
        }
        taken
    }

    /// Writes what waits: how many bytes the socket took.
    pub fn flush(&mut self, now: Instant) -> usize {
        let mut all = 0;
        while self.writable && !self.queue.is_empty() {
            let part = std::mem::take(&mut self.queue);
            let taken = self.write(part.as_slices().0, now);
            self.queue = part;
            if self.broken {
                self.queue = VecDeque::new();
                break;
            }
            self.queue.drain(..taken);
            all += taken;
        }
        if self.queue.is_empty() && self.queue.capacity() > KEPT_QUEUE {
            self.queue = VecDeque::new();
        }
        all
    }

    fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        if !self.writable || self.connecting || bytes.is_empty() {
            return 0;
        }
        match retry(|| send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)) {
            Ok(n) => {
                self.writable = n == bytes.len();
                self.up += n as u64;
                n
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.writable = false;
                0
            }
            Err(_) => {
                self.broken = true;
                self.deadline.get_or_insert(now + GRACE);
                0
            }
        }
    }

    /// Sends a datagram; where the socket has no room, it is lost, as on any way.
    pub fn send_datagram(&mut self, bytes: &[u8]) {
        let sent = retry(|| send(self.fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL));
        self.up += sent.unwrap_or(0) as u64;
    }

    /// Reads once.
    pub fn read(&mut self, buffer: &mut [u8]) -> SocketRead {
        if self.connecting || self.resets {
            return SocketRead::Nothing;
        }
        match retry(|| recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)) {
            Ok(0) if self.family != SocketFamily::Datagrams => {
                if self.has_error() {
                    SocketRead::Broken
                } else {
                    SocketRead::End
                }
            }
            Ok(n) => {
                self.down += n as u64;
                // A UNIX read stops behind a message with descriptors (unix(7)), a TCP read at an urgent mark (tcp(7)).
                let more = self.family != SocketFamily::Tcp || self.odd || n == buffer.len();
                SocketRead::Bytes(n, more)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => SocketRead::Nothing,
            // An ICMP error; the flow goes on.
            Err(_) if self.family == SocketFamily::Datagrams => SocketRead::Nothing,
            Err(_) => SocketRead::Broken,
        }
    }

    /// Behind what came, the stream has ended.
    pub fn set_end(&mut self) {
        self.ends = true;
    }

    /// Behind what came, the stream was reset, or the call is gone.
    pub fn set_reset(&mut self, now: Instant) {
        self.resets = true;
        self.deadline = Some(self.deadline.map_or(now + GRACE, |at| at.min(now + GRACE)));
    }

    /// Behind what came, it is reset.
    pub fn is_reset(&self) -> bool {
        self.resets
    }

    /// Passes the end on, when all before it is delivered. A call that is killed later has brought this way to its end.
    pub fn pass_end(&mut self) {
        let passes = self.ends && !self.shut && !self.resets && !self.connecting && self.queue.is_empty();
        if passes && !self.broken {
            if self.family == SocketFamily::Tcp {
                linger(&self.fd, false);
            }
            // ENOTCONN: the other side is gone already, and the next read says so.
            let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Write);
            self.shut = true;
        }
    }

    /// The end was passed on.
    pub fn is_shut(&self) -> bool {
        self.shut
    }

    /// After a reset: whether nothing is left to be delivered.
    pub fn is_drained(&self) -> bool {
        self.broken || (!self.connecting && self.queue.is_empty() && sys::queued(self.fd.as_fd()) == 0)
    }

    /// When the engine has to look at it again, whatever happens.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let look = self.resets && self.queue.is_empty() && !self.connecting;
        let passed = |at: Instant| GRACE.saturating_sub(at.saturating_duration_since(now));
        self.deadline.map(|at| if look { at.min(now + LOOK.max(passed(at) / 2)) } else { at })
    }

    /// Its time is over.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|at| at <= now)
    }

    /// Closes it so that the other side sees a reset where the family has one.
    pub fn close_by_reset(self) {
        if self.family == SocketFamily::Tcp {
            linger(&self.fd, true);
        }
    }
}

impl AsFd for StreamSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether close(2) resets the connection (SO_LINGER with a time of 0, tcp(7)).
fn linger(fd: &OwnedFd, resets: bool) {
    let linger = libc::linger { l_onoff: resets.into(), l_linger: 0 };
    let _ = setsockopt(fd, sockopt::Linger, &linger);
}
