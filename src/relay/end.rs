//! One end of a relay: a socket that goes both ways, or the two pipes of a child.

use std::os::fd::OwnedFd;

use crate::stream::{Stream, StreamKind};

/// What a relay reads from and writes to.
#[derive(Debug)]
pub enum RelayEnd {
    /// A connected stream socket.
    Socket(Stream),
    /// A child's standard streams. They are the rarer case, and two: boxed, they do not make sockets larger.
    Pipes(Box<Pipes>),
}

/// A child's standard streams, each `None` once it is closed.
#[derive(Debug)]
pub struct Pipes {
    /// The child's standard output.
    from: Option<Stream>,
    /// The child's standard input.
    to: Option<Stream>,
}

/// An [`RelayEnd`] taken off the runtime, ready to be handed to another process.
#[derive(Debug)]
pub enum ParkedEnd {
    /// A connected stream socket and its kind.
    Socket(StreamKind, OwnedFd),
    /// A child's standard output and input, as far as they are open.
    Pipes {
        /// The child's standard output.
        from: Option<OwnedFd>,
        /// The child's standard input.
        to: Option<OwnedFd>,
    },
}

impl RelayEnd {
    /// A child's standard output and input.
    pub fn pipes(from: Stream, to: Stream) -> Self {
        Self::Pipes(Box::new(Pipes { from: Some(from), to: Some(to) }))
    }

    /// Where bytes come from, while that is open.
    pub(super) fn reader(&self) -> Option<&Stream> {
        match self {
            Self::Socket(s) => Some(s),
            Self::Pipes(pipes) => pipes.from.as_ref(),
        }
    }

    /// Write end, while it is open.
    pub(super) fn writer(&self) -> Option<&Stream> {
        match self {
            Self::Socket(s) => Some(s),
            Self::Pipes(pipes) => pipes.to.as_ref(),
        }
    }

    /// A child's standard output, while it is open.
    pub(super) fn pipe_from(&self) -> Option<&Stream> {
        if let Self::Pipes(pipes) = self { pipes.from.as_ref() } else { None }
    }

    /// A child's standard input, while it is open.
    pub(super) fn pipe_to(&self) -> Option<&Stream> {
        if let Self::Pipes(pipes) = self { pipes.to.as_ref() } else { None }
    }

    /// Whether a failing write means that the whole end is gone, or (a pipe) only that it takes no more.
    pub(super) fn is_socket(&self) -> bool {
        matches!(self, Self::Socket(_))
    }

    /// Half-closes: the other side reads an end after the bytes sent so far.
    pub(super) fn finish(&mut self) {
        match self {
            Self::Socket(s) => s.shutdown_write(),
            Self::Pipes(pipes) => pipes.to = None,
        }
    }

    /// Closes the reading end of a pipe that gave its end; a socket stays.
    pub(super) fn finished_reading(&mut self) {
        if let Self::Pipes(pipes) = self {
            pipes.from = None;
        }
    }

    /// Closes so that the other side sees a reset, where it can; see [`Stream::reset`]. A child's pipes are closed,
    /// output first.
    pub fn reset(self) {
        match self {
            Self::Socket(s) => s.reset(),
            Self::Pipes(pipes) => {
                drop(pipes.from);
                drop(pipes.to);
            }
        }
    }

    /// Takes the descriptors off the runtime.
    pub fn park(self) -> ParkedEnd {
        match self {
            Self::Socket(s) => ParkedEnd::Socket(s.kind(), s.into_fd()),
            Self::Pipes(pipes) => {
                ParkedEnd::Pipes { from: pipes.from.map(Stream::into_fd), to: pipes.to.map(Stream::into_fd) }
            }
        }
    }

    /// Takes up what another process parked.
    pub fn resume(parked: ParkedEnd) -> std::io::Result<Self> {
        Ok(match parked {
            ParkedEnd::Socket(kind, fd) => Self::Socket(Stream::new(fd, kind)?),
            ParkedEnd::Pipes { from, to } => Self::Pipes(Box::new(Pipes {
                from: from.map(|fd| Stream::new(fd, StreamKind::PipeReader)).transpose()?,
                to: to.map(|fd| Stream::new(fd, StreamKind::PipeWriter)).transpose()?,
            })),
        })
    }
}
