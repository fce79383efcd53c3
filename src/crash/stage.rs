//! What is saved of a session: its stage with its descriptors, and where the bytes of its relay are.

use std::os::fd::BorrowedFd;

use crate::sys;

/// What a descriptor is known by ([`key`]); 0 means none.
pub type DescriptorKey = u64;

/// The key of a descriptor: the number of a socket, the inode of anything else. The kernel counts the inodes of sockets
/// and pipes in 32 bits: after a wrap, two sockets that live for long can have the same one. Pipes are few.
pub fn key(fd: BorrowedFd<'_>) -> DescriptorKey {
    sys::socket_cookie(fd).unwrap_or_else(|| nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_ino))
}

/// Stage of a session, with its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedStage {
    Waiting {
        peer: DescriptorKey,
        peer_unix: bool,
    },
    SettingUp {
        peer: DescriptorKey,
        peer_unix: bool,
        /// Our end of the child's standard input, of its output, and the second descriptor of its standard input.
        pipes: [DescriptorKey; 3],
        pidfd: DescriptorKey,
        pid: u32,
        stderr: DescriptorKey,
    },
    Sockets {
        peer: DescriptorKey,
        peer_unix: bool,
        upstream: DescriptorKey,
        upstream_unix: bool,
    },
    Pipes {
        peer: DescriptorKey,
        peer_unix: bool,
        from: DescriptorKey,
        to: DescriptorKey,
        pidfd: DescriptorKey,
        pid: u32,
        stderr: DescriptorKey,
    },
    Flow {
        upstream: DescriptorKey,
    },
}

/// State of a relay between two moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedRelay {
    pub up: SavedDirection,
    pub down: SavedDirection,
    /// The side that was reset: 0 the peer, 1 the upstream.
    pub reset_by: Option<u8>,
    /// The upstream has ended, and the peer was not told.
    pub end_held: bool,
}

impl Default for SavedRelay {
    fn default() -> Self {
        let direction = SavedDirection::default();
        Self { up: direction, down: direction, reset_by: None, end_held: false }
    }
}

impl SavedRelay {
    /// Whether bytes are in a pipe: whoever reads them there has them in memory.
    pub fn in_pipe(&self) -> bool {
        [self.up.held, self.down.held].iter().any(|held| matches!(held, SavedBytes::Pipe(_)))
    }
}

/// State of a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedDirection {
    /// 0 open, 1 deaf, 2 done.
    pub phase: u8,
    pub held: SavedBytes,
    pub dropped: u64,
}

/// Where the bytes are that were read and not written yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SavedBytes {
    #[default]
    Nothing,
    /// In this pipe.
    Pipe(DescriptorKey),
    /// In this part of a buffer that outlives the process.
    Buffer(SavedPart),
    /// In the memory of the process.
    Private,
}

/// A part of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedPart {
    /// Of the buffer.
    pub number: u16,
    /// From the first byte to the one behind the last: no buffer has more than 2²⁴ bytes.
    pub at: u32,
    pub end: u32,
}

/// Where bytes may be that a direction has read and not written, when its process died in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedIntent {
    /// A buffer, and the count of bytes that were read of the source before its first byte: the lower half.
    pub buffer: Option<(u16, u32)>,
    /// A pipe. Of a session with a child: that of the child which the direction closes, or has closed.
    pub pipe: DescriptorKey,
}

/// What the kernel had counted on the two sockets of a session, or on the one with a child, when its relay began with all
/// counts at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SavedBases {
    /// Read from the source: up, down.
    pub read: [u64; 2],
    /// Written to the destination: up, down.
    pub written: [u64; 2],
}

/// What else is known of a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    pub dial_ms: Option<u64>,
    pub queued_ms: u64,
    pub redialled: bool,
    /// Until when the server may take to start, in nanoseconds of CLOCK_MONOTONIC.
    pub starting: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpListener,
        os::{fd::AsFd as _, unix::net::UnixStream},
    };

    use nix::{sys::stat::fstat, unistd::pipe};

    use super::*;

    #[test]
    fn a_socket_is_known_by_a_number_that_no_other_gets_and_a_pipe_by_its_inode() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let keys = [key(one.as_fd()), key(other.as_fd()), key(listener.as_fd())];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && !keys.contains(&0), "{keys:?}");
        assert_eq!(keys.map(Some)[0], sys::socket_cookie(one.as_fd()));
        assert_eq!(keys[0], key(one.try_clone().expect("a descriptor").as_fd()), "a duplicate is the same socket");
        drop(one);
        let later = UnixStream::pair().expect("a pair").0;
        assert!(!keys.contains(&key(later.as_fd())), "no number comes again");
        let (reader, writer) = pipe().expect("a pipe");
        assert_eq!([key(reader.as_fd()), key(writer.as_fd())], [fstat(&reader).expect("open").st_ino; 2]);
    }
}
