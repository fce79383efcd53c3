//! Pipes and large buffers, shared by all relays: taken when bytes wait to be moved, given back when they are moved.
//!
//! An unprivileged user's pipes may take up 16,384 pages in all (pipe(7), pipe-user-pages-soft): 64 pipes of 1 MiB.
//! Half of that is for pipes of 1 MiB, a quarter for pipes of 256 KiB, and the rest is left to the user's other
//! programs, because beyond the quota every new pipe shrinks to two pages. Who finds no pipe here copies.

use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    unistd::{pipe2, read},
};

use crate::crash::{self, DescriptorKey, RegionBuffer};

/// The sizes of pipes, and how many of each there may be.
const SIZES: [(usize, usize); 2] = [(1 << 20, 32), (256 << 10, 64)];
/// Empty pipes that are kept for later.
const KEPT: usize = 16;
/// How long no pipe is made after the kernel has refused one, in milliseconds.
const REFUSED_MS: u64 = 1000;

/// Bytes of a large buffer; UNIX sockets hold about 208 KiB by default (wmem_default).
pub const BUFFER: usize = 256 << 10;
/// Bytes of a small one: a pipe's capacity (pipe(7)), and what loopback TCP delivers in one piece.
pub const SMALL: usize = 64 << 10;
/// Large buffers that a thread keeps for later.
const BUFFERS_KEPT: usize = 4;
/// Large buffers that stalled relays may hold in all.
const BUFFERS: usize = 128;

static PIPES: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());
static MADE: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static REFUSED_AT: AtomicU64 = AtomicU64::new(0);
static TAKEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static KEPT_BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A pipe, both ends non-blocking: a splice that waited would hold the pipe's lock meanwhile.
#[derive(Debug)]
pub struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes inside.
    inside: usize,
    /// Which of [`SIZES`].
    size: usize,
    /// By which checkpoints know the pipe.
    key: DescriptorKey,
}

/// Takes a pipe, which is empty; `None` when the budget, the quota or the descriptors are used up.
pub fn pipe() -> Option<Pipe> {
    let kept = pipes().pop();
    kept.or_else(|| (0..SIZES.len()).find_map(Pipe::new))
}

/// Closes the pipes that are kept for the next bulk transfer: for when none is expected soon. Their number.
pub fn empty() -> usize {
    let kept = std::mem::take(&mut *pipes());
    kept.len()
}

/// Number of pipes that exist.
#[cfg(test)]
pub fn made() -> usize {
    MADE.iter().map(|made| made.load(Relaxed)).sum()
}

fn pipes() -> MutexGuard<'static, Vec<Pipe>> {
    PIPES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since the first call, plus one.
fn now() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let passed = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(1)
}

impl Pipe {
    fn new(size: usize) -> Option<Self> {
        let (bytes, limit) = SIZES[size];
        if MADE[size].load(Relaxed) >= limit {
            return None;
        }
        let refused = REFUSED_AT.load(Relaxed);
        if refused != 0 && now() < refused + REFUSED_MS {
            return None;
        }
        if MADE[size].fetch_add(1, Relaxed) >= limit {
            MADE[size].fetch_sub(1, Relaxed);
            return None;
        }
        let made = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map(|(reader, writer)| {
            let key = crash::key(reader.as_fd());
            let pipe = Self { reader, writer, inside: 0, size, key };
            let wanted = i32::try_from(bytes).unwrap_or(i32::MAX);
            fcntl(&pipe.writer, FcntlArg::F_SETPIPE_SZ(wanted)).is_ok().then_some(pipe)
        });
        match made {
            Ok(Some(pipe)) => Some(pipe),
            Ok(None) => {
                if size + 1 == SIZES.len() {
                    REFUSED_AT.store(now(), Relaxed);
                }
                None
            }
            Err(_) => {
                MADE[size].fetch_sub(1, Relaxed);
                REFUSED_AT.store(now(), Relaxed);
                None
            }
        }
    }

    /// Takes up a pipe of the pool of an earlier process, with the bytes that are `inside`.
    pub fn resume(reader: OwnedFd, writer: OwnedFd, inside: usize) -> Self {
        let key = crash::key(reader.as_fd());
        // It counts as one of ours.
        let bytes = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).ok().and_then(|bytes| usize::try_from(bytes).ok());
        let size = usize::from(bytes.unwrap_or(0) < SIZES[0].0);
        MADE[size].fetch_add(1, Relaxed);
        Self { reader, writer, inside, size, key }
    }

    /// By which checkpoints know the pipe.
    pub fn key(&self) -> DescriptorKey {
        self.key
    }

    /// Bytes inside.
    pub fn inside(&self) -> usize {
        self.inside
    }

    /// Moves what `from` has, at most `most` bytes, into the pipe, which is empty, so that EAGAIN means one thing only.
    ///
    /// # Errors
    /// What splice(2) says, and that is about `from`.
    pub fn fill(&mut self, from: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        debug_assert_eq!(self.inside, 0);
        self.inside = move_bytes(from, self.writer.as_fd(), most.min(SIZES[self.size].0))?;
        Ok(self.inside)
    }

    /// Moves bytes from the pipe, which is not empty, to `to`; how many.
    ///
    /// # Errors
    /// What splice(2) says, and that is about `to`.
    pub fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<usize> {
        let n = move_bytes(self.reader.as_fd(), to, self.inside)?;
        self.inside -= n;
        Ok(n)
    }

    /// Reads the bytes that are inside.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; self.inside];
        let mut at = 0;
        while at < bytes.len() {
            match read(&self.reader, &mut bytes[at..]) {
                Ok(n) if n > 0 => at += n,
                Err(Errno::EINTR) => {}
                _ => break,
            }
        }
        bytes.truncate(at);
        bytes
    }

    /// Gives the pipe back; one with bytes inside is closed.
    pub fn put(self) {
        if self.inside > 0 {
            return;
        }
        let mut pipes = pipes();
        if pipes.len() < KEPT {
            pipes.push(self);
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        MADE[self.size].fetch_sub(1, Relaxed);
    }
}

/// A pipe of somebody else that was made wider; it counts as one of ours.
#[derive(Debug)]
pub struct Wide(());

/// Makes a child's pipe hold more than the usual 64 KiB, where the budget and the quota allow.
pub fn widen(pipe: BorrowedFd<'_>) -> Option<Wide> {
    let (bytes, limit) = SIZES[1];
    if MADE[1].fetch_add(1, Relaxed) >= limit {
        MADE[1].fetch_sub(1, Relaxed);
        return None;
    }
    let wide = Wide(());
    let wanted = i32::try_from(bytes).unwrap_or(i32::MAX);
    fcntl(pipe, FcntlArg::F_SETPIPE_SZ(wanted)).is_ok().then_some(wide)
}

impl Drop for Wide {
    fn drop(&mut self) {
        MADE[1].fetch_sub(1, Relaxed);
    }
}

/// splice(2), never waiting.
pub fn move_bytes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
    loop {
        match splice(from, None, to, None, most, SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE) {
            Err(Errno::EINTR) => {}
            r => return Ok(r?),
        }
    }
}

/// A buffer, given back when dropped.
#[derive(Debug)]
pub enum PoolBuffer {
    /// It outlives the process.
    Kept(RegionBuffer),
    /// In the memory of the process.
    Private(PrivateBuffer),
}

/// A large buffer in the memory of the process.
#[derive(Debug)]
pub struct PrivateBuffer(Option<Box<[u8]>>);

impl PoolBuffer {
    /// The buffer, where it outlives the process.
    pub fn kept(&self) -> Option<&RegionBuffer> {
        if let Self::Kept(buffer) = self { Some(buffer) } else { None }
    }

    /// By which checkpoints know it.
    pub fn number(&self) -> Option<u16> {
        self.kept().map(RegionBuffer::number)
    }
}

/// Takes a large buffer; `None` when stalled relays hold too many.
pub fn buffer() -> Option<PoolBuffer> {
    if let Some(kept) = crash::region().and_then(crash::Region::large_buffer) {
        return Some(PoolBuffer::Kept(kept));
    }
    if TAKEN.fetch_add(1, Relaxed) >= BUFFERS {
        TAKEN.fetch_sub(1, Relaxed);
        return None;
    }
    let kept = KEPT_BUFFERS.with_borrow_mut(Vec::pop);
    let private = PrivateBuffer(Some(kept.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())));
    Some(PoolBuffer::Private(private))
}

/// Takes a buffer of [`SMALL`] bytes that outlives the process; `None` where there is none.
pub fn small_buffer() -> Option<PoolBuffer> {
    crash::region().and_then(crash::Region::small_buffer).map(PoolBuffer::Kept)
}

/// A buffer of [`SMALL`] bytes for what is read and written at once.
pub fn scratch() -> PoolBuffer {
    small_buffer().unwrap_or_else(|| {
        TAKEN.fetch_add(1, Relaxed);
        PoolBuffer::Private(PrivateBuffer(Some(vec![0; SMALL].into_boxed_slice())))
    })
}

impl std::ops::Deref for PoolBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Kept(buffer) => buffer,
            Self::Private(buffer) => buffer.0.as_deref().unwrap_or_default(),
        }
    }
}

impl std::ops::DerefMut for PoolBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Kept(buffer) => buffer,
            Self::Private(buffer) => buffer.0.as_deref_mut().unwrap_or_default(),
        }
    }
}

impl Drop for PrivateBuffer {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Relaxed);
        // A thread that is ending has nowhere to keep it.
        let _ = KEPT_BUFFERS.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < BUFFERS_KEPT && self.0.as_ref().is_some_and(|buffer| buffer.len() == BUFFER) {
                kept.extend(self.0.take());
            }
        });
    }
}
