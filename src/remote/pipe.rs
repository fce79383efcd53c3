//! One descriptor of a pipe, socket or terminal, registered with the runtime: read and written without copies on the
//! way.

use std::{
    io::{self, ErrorKind},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use bytes::BytesMut;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::sys;

/// A descriptor that the runtime watches.
#[derive(Debug)]
pub struct AsyncPipe(AsyncFd<OwnedFd>);

impl AsyncPipe {
    /// For reading. The open file description becomes non-blocking.
    ///
    /// # Errors
    /// EPERM for a regular file; what fcntl(2) and epoll_ctl(2) say.
    pub fn reader(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::READABLE)
    }

    /// For writing. The open file description becomes non-blocking.
    ///
    /// # Errors
    /// As [`reader`](Self::reader).
    pub fn writer(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::WRITABLE)
    }

    #[cfg(feature = "dom0")]
    /// For both: a socket or a terminal.
    ///
    /// # Errors
    /// As [`reader`](Self::reader).
    pub fn both(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, Interest::READABLE | Interest::WRITABLE)
    }

    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        nonblocking(fd.as_fd())?;
        Ok(Self(sys::register(fd, interest)?))
    }

    /// Reads what is there: 0 at the end. A terminal whose other side has closed (EIO) is at its end.
    ///
    /// # Errors
    /// What read(2) says.
    ///
    /// # Cancel safety
    /// Safe: nothing was read when it is dropped.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            match nix::unistd::read(self.0.get_ref(), buffer) {
                Ok(n) => return Ok(n),
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(Errno::EIO) => return Ok(0),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// As [`read`](Self::read), behind what `buffer` holds: `most` bytes, or as much as it has room for.
    ///
    /// # Errors
    /// What read(2) says.
    ///
    /// # Cancel safety
    /// Safe: nothing was read when it is dropped.
    pub async fn read_into(&self, buffer: &mut BytesMut, most: usize) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            match sys::read_into(self.fd(), buffer, most) {
                Ok(n) => return Ok(n),
                Err(e) if e.kind() == ErrorKind::WouldBlock => guard.clear_ready(),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Err(e) => return Err(e),
            }
        }
    }

    #[cfg(feature = "dom0")]
    /// Waits until a read would not wait.
    ///
    /// # Errors
    /// What epoll_wait(2) says: the runtime is ending.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn readable(&self) -> io::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        loop {
            let mut guard = self.0.readable().await?;
            let mut fds = [PollFd::new(self.fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(0) => guard.clear_ready(),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// What write(2) says.
    ///
    /// # Cancel safety
    /// Not safe: a part may have been written.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.write(bytes).await? {
                0 => return Err(ErrorKind::WriteZero.into()),
                n => bytes = &bytes[n..],
            }
        }
        Ok(())
    }

    /// Writes as much as there is room for, when there is some.
    ///
    /// # Errors
    /// What write(2) says.
    ///
    /// # Cancel safety
    /// Safe: nothing was written when it is dropped.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.writable().await?;
            match nix::unistd::write(self.0.get_ref(), bytes) {
                Ok(n) => return Ok(n),
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The descriptor, for what is neither reading nor writing.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Makes the open file description non-blocking, for everyone who shares it.
///
/// # Errors
/// What fcntl(2) says.
pub fn nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A pipe with as much room as the kernel gives, up to 1 MiB: fewer wake-ups for large outputs.
pub fn enlarge(fd: BorrowedFd<'_>) {
    let _ = fcntl(fd, FcntlArg::F_SETPIPE_SZ(1 << 20));
}
