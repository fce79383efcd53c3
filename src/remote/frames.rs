//! Frames out of bytes: one reader for the agent, the client, the daemon and the parser.
//!
//! A [`Frames`] owns what it reads from. [`ready`](Frames::ready) gives the frames that have come already, one after
//! the other; when there are no more, [`fill`](Frames::fill) waits for bytes. So a loop takes every whole frame before
//! it waits, and whoever waits for other things as well drops no byte. [`next`](Frames::next) does both, for those who
//! wait for nothing else.

use std::io;
#[cfg(feature = "dom0")]
use std::os::fd::AsFd;

use super::pipe::AsyncPipe;
use crate::proto::remote::{Buffer, Fault, WholeFrame};
#[cfg(feature = "dom0")]
use crate::sys;

/// Room for one read, at least.
const READ: usize = 64 << 10;

/// Frames that come from `R`.
#[derive(Debug)]
pub struct Frames<R> {
    from: R,
    buffer: Buffer,
}

impl<R> Frames<R> {
    /// Nothing was read yet.
    pub fn new(from: R) -> Self {
        Self { from, buffer: Buffer::default() }
    }

    /// The next whole frame of those that have come.
    ///
    /// # Errors
    /// What is no frame; nothing more can be read then.
    pub fn ready(&mut self) -> Result<Option<WholeFrame>, Fault> {
        self.buffer.frame()
    }

    #[cfg(feature = "dom0")]
    /// Takes the magic away when it came first; `None` when more bytes are needed.
    pub fn magic(&mut self) -> Option<bool> {
        self.buffer.magic()
    }
}

impl Frames<AsyncPipe> {
    /// Waits for bytes; `false` at the end.
    ///
    /// # Errors
    /// What read(2) says.
    ///
    /// # Cancel safety
    /// Safe: nothing was read when it is dropped.
    pub async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.from.read_into(self.buffer.room(READ), usize::MAX).await? > 0)
    }

    #[cfg(any(feature = "remote", feature = "v1"))]
    /// Waits for the next frame; `None` at the end.
    ///
    /// # Errors
    /// What read(2) says; `Other` for what is no frame.
    ///
    /// # Cancel safety
    /// Safe: what was read stays.
    pub async fn next(&mut self) -> io::Result<Option<WholeFrame>> {
        while !self.buffer.has_frame().map_err(io::Error::other)? {
            if !self.fill().await? {
                return Ok(None);
            }
        }
        self.ready().map_err(io::Error::other)
    }

    #[cfg(feature = "remote")]
    /// Waits for the greeting that comes before all else.
    ///
    /// # Errors
    /// As [`next`](Self::next); `UnexpectedEof` at the end; `InvalidData` for another frame.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn hello(&mut self) -> io::Result<crate::proto::remote::Hello> {
        use crate::proto::remote::Frame;
        let Some(whole) = self.next().await? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        match whole.raw().parse().map_err(io::Error::other)? {
            Frame::Hello(hello) => Ok(hello),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(feature = "dom0")]
impl<R: AsFd> Frames<R> {
    /// As [`fill`](Self::fill), where a thread may wait.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn fill_blocking(&mut self) -> io::Result<bool> {
        loop {
            match sys::read_into(self.from.as_fd(), self.buffer.room(READ), usize::MAX) {
                Ok(n) => return Ok(n > 0),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(all(test, feature = "remote", feature = "dom0"))]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::{fcntl::OFlag, unistd::pipe2};

    use super::*;
    use crate::proto::remote::{Frame, frame::Type};

    fn three() -> Vec<u8> {
        [Frame::Ping(1).to_vec(0), Frame::Stdout(b"data").to_vec(7), Frame::Eof.to_vec(7)].concat()
    }

    #[tokio::test]
    async fn frames_come_whole_however_their_bytes_come() {
        let (from, to): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let mut frames = Frames::new(AsyncPipe::reader(from).expect("it is registered"));
        let wire = three();
        let writer = std::thread::spawn(move || {
            for part in wire.chunks(5) {
                nix::unistd::write(&to, part).expect("somebody reads");
                std::thread::yield_now();
            }
        });
        let mut kinds = Vec::new();
        while let Some(whole) = frames.next().await.expect("frames") {
            let raw = whole.raw();
            assert_eq!(raw.parse().expect("a frame").to_vec(raw.stream), whole.as_bytes());
            kinds.push(raw.kind);
        }
        assert_eq!(kinds, [Type::Ping, Type::Stdout, Type::Eof]);
        writer.join().expect("no panic");
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error_and_the_frames_before_it_are_read() {
        let (from, to): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        nix::unistd::write(&to, &[&Frame::Eof.to_vec(1)[..], &[0xff; 9]].concat()).expect("somebody reads");
        let mut frames = Frames::new(AsyncPipe::reader(from).expect("it is registered"));
        assert!(frames.next().await.is_ok_and(|frame| frame.is_some()));
        assert!(frames.next().await.is_err());
    }

    #[test]
    fn a_thread_reads_the_same_frames() {
        let (from, to): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        nix::unistd::write(&to, &three()).expect("somebody reads");
        drop(to);
        let mut frames = Frames::new(from);
        let mut count = 0;
        while frames.fill_blocking().expect("a pipe can be read") {
            while frames.ready().expect("frames").is_some() {
                count += 1;
            }
        }
        assert_eq!(count, 3);
    }
}
