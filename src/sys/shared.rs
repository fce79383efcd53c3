//! Memory that outlives a process: a memfd, mapped as a slice of atomic words, and behind these as buffers of bytes.
//!
//! Every value of a word is valid, and every access is atomic, so that neither another process that has the same
//! memory nor a process that was killed in the middle of a write can make a reader misbehave. What the words mean is
//! told elsewhere. A buffer has one owner at a time.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        resource::{Resource, getrlimit},
    },
};

/// The seals of such a memfd: its size stays, so that no access within it can fault (SIGBUS).
const SEALS: SealFlag = SealFlag::F_SEAL_SHRINK.union(SealFlag::F_SEAL_GROW);

/// Free buffers that keep their pages.
const WARM: usize = 16;

/// Shared words, and the memfd that they are in.
#[derive(Debug)]
pub struct SharedWords {
    memfd: OwnedFd,
    start: NonNull<AtomicU64>,
    len: usize,
    /// Bytes of the whole mapping.
    size: usize,
}

// SAFETY: the mapping belongs to the process, and its words are accessed atomically only.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Makes a memfd of `len` words, all 0, and `behind` bytes for buffers. Pages that nobody writes take no memory.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) and mmap(2) say.
    pub fn create(len: usize, behind: usize) -> io::Result<Self> {
        let bytes = (len * size_of::<AtomicU64>() + behind) as u64;
        // ftruncate(2) beyond this limit sends a signal that ends the process (SIGXFSZ).
        if getrlimit(Resource::RLIMIT_FSIZE).is_ok_and(|(soft, _)| soft < bytes) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let memfd = memfd_create(c"crash", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(memfd);
        file.set_len(bytes)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS | SealFlag::F_SEAL_SEAL))?;
        Self::open(file.into(), len)
    }

    /// Maps what an earlier process has made, with `len` words.
    ///
    /// # Errors
    /// `InvalidData` where the descriptor is no memfd whose size is sealed, or is too small; what mmap(2) says.
    pub fn open(memfd: OwnedFd, len: usize) -> io::Result<Self> {
        let seals = fcntl(&memfd, FcntlArg::F_GET_SEALS).map_err(|_| io::ErrorKind::InvalidData)?;
        if !SealFlag::from_bits_retain(seals).contains(SEALS) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let file = File::from(memfd);
        let size = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let memfd = OwnedFd::from(file);
        if size < len * size_of::<AtomicU64>() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: the kernel chooses a place that nothing of ours is at; the mapping is shared and never executable.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                memfd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { memfd, start, len, size })
    }

    /// Keeps these words in memory, where the limit allows that (mlock(2), RLIMIT_MEMLOCK): the kernel writes into them
    /// for a process that is being killed, and could not wait for a page then.
    pub fn lock(&self, words: std::ops::Range<usize>) {
        let words = &self[words];
        // SAFETY: the range is within the mapping; locking changes no byte.
        let _ = unsafe { libc::mlock(words.as_ptr().cast(), size_of_val(words)) };
    }

    /// Bytes behind the words.
    pub fn behind(&self) -> usize {
        self.size - self.len * size_of::<AtomicU64>()
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `start` is page-aligned and maps `len` words for as long as `self` lives; the memfd's size is sealed,
        // so every page is there; any bytes are a valid AtomicU64.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open` with this size, and no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

/// Buffers of one size behind the words. The process that has the memory gives each to one owner at a time.
#[derive(Debug)]
pub struct SharedBuffers {
    words: Arc<SharedWords>,
    /// Where the first one is, in bytes behind the words.
    at: usize,
    /// Bytes of each: whole pages.
    size: usize,
    state: Mutex<BufferStates>,
}

#[derive(Debug)]
struct BufferStates {
    free: Vec<u16>,
    /// Those that an earlier process has left, until somebody takes them up.
    left: Vec<u16>,
    /// Free ones from here on in the list have no pages.
    warm: usize,
}

impl SharedBuffers {
    /// `count` buffers of `size` bytes from `at` on. Those that are `left` by an earlier process are not given before
    /// [`Self::forget_left`].
    ///
    /// # Panics
    /// Where they are not all in the memory.
    pub fn new(words: Arc<SharedWords>, at: usize, size: usize, count: u16, left: Vec<u16>) -> Arc<Self> {
        assert!(at + size * usize::from(count) <= words.behind(), "the buffers are in the memory");
        let free = (0..count).rev().filter(|number| !left.contains(number)).collect();
        Arc::new(Self { words, at, size, state: Mutex::new(BufferStates { free, left, warm: 0 }) })
    }

    /// Takes a buffer; `None` when all are taken.
    pub fn take(self: &Arc<Self>) -> Option<SharedBuffer> {
        let mut state = super::lock(&self.state);
        let number = state.free.pop()?;
        state.warm = state.warm.saturating_sub(1);
        Some(SharedBuffer { of: self.clone(), number })
    }

    /// Takes up a buffer that an earlier process has left; `None` for any other.
    pub fn take_left(self: &Arc<Self>, number: u16) -> Option<SharedBuffer> {
        let mut state = super::lock(&self.state);
        let index = state.left.iter().position(|left| *left == number)?;
        state.left.swap_remove(index);
        Some(SharedBuffer { of: self.clone(), number })
    }

    /// Nobody will take up what was left: it can be given.
    pub fn forget_left(&self) {
        let mut state = super::lock(&self.state);
        let left = std::mem::take(&mut state.left);
        state.free.splice(0..0, left);
    }

    fn start(&self, number: u16) -> NonNull<u8> {
        let at = self.words.len * size_of::<AtomicU64>() + self.at + self.size * usize::from(number);
        // SAFETY: `new` has made sure that all buffers are in the mapping, and only numbers of these are given.
        unsafe { self.words.start.cast::<u8>().add(at) }
    }
}

/// One buffer, given back when it is dropped.
#[derive(Debug)]
pub struct SharedBuffer {
    of: Arc<SharedBuffers>,
    number: u16,
}

impl SharedBuffer {
    /// By which another process finds it.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The words before all buffers.
    pub fn words(&self) -> &[AtomicU64] {
        &self.of.words
    }
}

impl Deref for SharedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the buffer is in the mapping, which `of` keeps. This value is its only owner in this process; another
        // process reads or writes it only when this one is dead.
        unsafe { std::slice::from_raw_parts(self.of.start(self.number).as_ptr(), self.of.size) }
    }
}

impl DerefMut for SharedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.of.start(self.number).as_ptr(), self.of.size) }
    }
}

impl Drop for SharedBuffer {
    fn drop(&mut self) {
        let mut state = super::lock(&self.of.state);
        if state.warm < WARM {
            state.warm += 1;
            state.free.push(self.number);
            return;
        }
        drop(state);
        // SAFETY: the pages are those of this buffer, which nobody else has yet. Reading them gives zeros again.
        unsafe { libc::madvise(self.of.start(self.number).as_ptr().cast(), self.of.size, libc::MADV_REMOVE) };
        super::lock(&self.of.state).free.insert(0, self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn two_mappings_of_one_memfd_show_the_same_words() {
        let one = SharedWords::create(1024, 0).expect("a memfd");
        let two = SharedWords::open(one.as_fd().try_clone_to_owned().expect("a descriptor"), 1024).expect("a mapping");
        one[1023].store(7, Relaxed);
        assert_eq!((two[1023].load(Relaxed), two.len()), (7, 1024));
        assert!(File::from(two.memfd.try_clone().expect("a descriptor")).set_len(8).is_err(), "its size is sealed");
    }

    #[test]
    fn a_descriptor_whose_size_can_change_is_refused() {
        let memfd = memfd_create(c"open", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
        assert!(SharedWords::open(memfd, 0).is_err());
        assert!(SharedWords::open(File::open("/dev/null").expect("it is there").into(), 0).is_err());
    }

    fn buffers(words: SharedWords, left: &[u16]) -> Arc<SharedBuffers> {
        SharedBuffers::new(Arc::new(words), 4096, 8192, 3, left.to_vec())
    }

    #[test]
    fn a_buffer_has_one_owner_and_its_bytes_outlive_the_process() {
        let words = SharedWords::create(512, 32 << 10).expect("a memfd");
        let memfd = words.as_fd().try_clone_to_owned().expect("a descriptor");
        let one = buffers(words, &[]);
        let mut taken: Vec<_> = std::iter::from_fn(|| one.take()).collect();
        assert_eq!(taken.iter().map(SharedBuffer::number).collect::<Vec<_>>(), [0, 1, 2]);
        for buffer in &mut taken {
            let number = u8::try_from(buffer.number()).expect("few");
            buffer.fill(number + 1);
        }
        assert!(taken.iter().all(|buffer| buffer.iter().all(|byte| u16::from(*byte) == buffer.number() + 1)));
        // as a killed process: nothing is given back
        taken.into_iter().for_each(std::mem::forget);
        let two = buffers(SharedWords::open(memfd, 512).expect("a mapping"), &[1, 2]);
        let free = two.take().expect("one is free");
        assert!(free.number() == 0 && two.take().is_none() && two.take_left(0).is_none(), "others were left");
        let left = two.take_left(2).expect("it was left");
        assert!(left.len() == 8192 && left.iter().all(|byte| *byte == 3) && two.take_left(2).is_none());
        two.forget_left();
        assert_eq!(two.take().map(|buffer| buffer.number()), Some(1));
        drop((free, left));
    }
}
