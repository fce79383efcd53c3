//! The two ends of the call's descriptors: bytes that were read and are not heard yet, bytes that wait to be written.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::unistd::{read, write};

use crate::proto::mux::{MUX_FRAME, MuxFault, MuxFrame};

/// Read at a time.
const READ: usize = 256 << 10;

/// The reading end of a call.
#[derive(Debug)]
pub struct CallReader {
    fd: OwnedFd,
    /// A part of a frame fits beside a whole read.
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    /// It may have more to read.
    pub readable: bool,
    /// It tells its end (EPOLLHUP, EPOLLRDHUP) and will not wake again for what is left.
    pub ends: bool,
}

impl CallReader {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, buffer: vec![0; READ + MUX_FRAME], from: 0, to: 0, readable: true, ends: false }
    }

    /// Reads once: the bytes read, 0 at the end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; else what read(2) says.
    pub fn fill(&mut self) -> io::Result<usize> {
        self.buffer.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        let most = READ.min(self.buffer.len() - self.to);
        match retry(|| read(&self.fd, &mut self.buffer[self.to..][..most])) {
            Ok(n) => {
                self.to += n;
                self.readable = n == most || self.ends;
                Ok(n)
            }
            Err(error) => {
                self.readable = error.kind() != io::ErrorKind::WouldBlock;
                Err(error)
            }
        }
    }

    /// The next whole frame, and its size, which [`Self::heard`] takes; `None` when more bytes are needed.
    ///
    /// # Errors
    /// What comes is no frame.
    pub fn frame(&self) -> Result<Option<(MuxFrame<'_>, usize)>, MuxFault> {
        MuxFrame::split(&self.buffer[self.from..self.to])
    }

    /// A frame of that size is done with.
    pub fn heard(&mut self, size: usize) {
        self.from += size;
    }
}

impl AsFd for CallReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The writing end of a call.
#[derive(Debug)]
pub struct CallWriter {
    fd: OwnedFd,
    /// Grows to the largest batch, and is never made smaller: what is read for it is not set to zero first.
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    /// A write may find room.
    pub writable: bool,
}

impl CallWriter {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, buffer: Vec::new(), from: 0, to: 0, writable: true }
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.to - self.from
    }

    /// Room for `bytes` behind what waits. What is written there counts after [`Self::add`].
    pub fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.buffer.len() < self.to + bytes {
            self.buffer.resize(self.to + bytes, 0);
        }
        &mut self.buffer[self.to..][..bytes]
    }

    /// The first `bytes` of the room wait now.
    pub fn add(&mut self, bytes: usize) {
        self.to += bytes;
    }

    /// Takes all bytes, which wait now.
    pub fn append(&mut self, bytes: &mut Vec<u8>) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.add(bytes.len());
        bytes.clear();
    }

    /// Writes what fits; whether nothing waits any more.
    ///
    /// # Errors
    /// What write(2) says, but for `WouldBlock`.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.from < self.to {
            match retry(|| write(&self.fd, &self.buffer[self.from..self.to])) {
                Ok(n) => self.from += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable = false;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        (self.from, self.to) = (0, 0);
        Ok(true)
    }
}

impl AsFd for CallWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Calls again where a signal came in between.
pub fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::Error::EINTR) => {}
            result => return result.map_err(Into::into),
        }
    }
}
