//! What is saved of a session: its stage with its descriptors, and where the bytes of its relay are.

use std::os::fd::BorrowedFd;

/// The inode of a descriptor; 0 means none.
pub type DescriptorKey = u64;

/// The inode of a descriptor.
pub fn key(fd: BorrowedFd<'_>) -> DescriptorKey {
    nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_ino)
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
    /// Whether a child's output and input are open.
    pub from_open: bool,
    pub to_open: bool,
}

impl Default for SavedRelay {
    fn default() -> Self {
        let direction = SavedDirection::default();
        Self { up: direction, down: direction, reset_by: None, end_held: false, from_open: true, to_open: true }
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
    /// In the memory of the process.
    Private,
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
