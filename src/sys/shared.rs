//! Memory that outlives a process: a memfd, mapped as a slice of atomic words.
//!
//! Every value of a word is valid, and every access is atomic, so that neither another process that has the same
//! memory nor a process that was killed in the middle of a write can make a reader misbehave. What the words mean is
//! told elsewhere.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    ops::Deref,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
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

/// Shared words, and the memfd that they are in.
#[derive(Debug)]
pub struct SharedWords {
    memfd: OwnedFd,
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, and its words are accessed atomically only.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Makes a memfd of `len` words, all 0. Pages that nobody writes take no memory.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) and mmap(2) say.
    pub fn create(len: usize) -> io::Result<Self> {
        let bytes = (len * size_of::<AtomicU64>()) as u64;
        // ftruncate(2) beyond this limit sends a signal that ends the process (SIGXFSZ).
        if getrlimit(Resource::RLIMIT_FSIZE).is_ok_and(|(soft, _)| soft < bytes) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let memfd = memfd_create(c"crash", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let file = File::from(memfd);
        file.set_len(bytes)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SEALS | SealFlag::F_SEAL_SEAL))?;
        Self::open(file.into())
    }

    /// Maps what an earlier process has made.
    ///
    /// # Errors
    /// `InvalidData` where the descriptor is no memfd whose size is sealed; what mmap(2) says.
    pub fn open(memfd: OwnedFd) -> io::Result<Self> {
        let seals = fcntl(&memfd, FcntlArg::F_GET_SEALS).map_err(|_| io::ErrorKind::InvalidData)?;
        if !SealFlag::from_bits_retain(seals).contains(SEALS) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let file = File::from(memfd);
        let size = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let memfd = OwnedFd::from(file);
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
        Ok(Self { memfd, start, len: size / size_of::<AtomicU64>() })
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
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<AtomicU64>()) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn two_mappings_of_one_memfd_show_the_same_words() {
        let one = SharedWords::create(1024).expect("a memfd");
        let two = SharedWords::open(one.as_fd().try_clone_to_owned().expect("a descriptor")).expect("a mapping");
        one[1023].store(7, Relaxed);
        assert_eq!((two[1023].load(Relaxed), two.len()), (7, 1024));
        assert!(File::from(two.memfd.try_clone().expect("a descriptor")).set_len(8).is_err(), "its size is sealed");
    }

    #[test]
    fn a_descriptor_whose_size_can_change_is_refused() {
        let memfd = memfd_create(c"open", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
        assert!(SharedWords::open(memfd).is_err());
        assert!(SharedWords::open(File::open("/dev/null").expect("it is there").into()).is_err());
    }
}
