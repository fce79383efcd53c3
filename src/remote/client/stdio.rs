//! Standard input and output as whoever started us left them: non-blocking, it may be, as rsync does it.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Write as _},
    os::fd::AsFd,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// One of them, without the buffer that std has before it.
///
/// # Errors
/// What fcntl(2) says.
pub fn file(fd: impl AsFd) -> io::Result<File> {
    fd.as_fd().try_clone_to_owned().map(File::from)
}

/// Writes all of it, and waits where the descriptor does not.
///
/// # Errors
/// What write(2) says.
pub fn write_all(file: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) => again(file, PollFlags::POLLOUT, e)?,
        }
    }
    Ok(())
}

/// Reads what is there, 0 at the end, and waits where the descriptor does not.
///
/// # Errors
/// What read(2) says.
pub fn read(file: &mut File, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(bytes) {
            Ok(n) => return Ok(n),
            Err(e) => again(file, PollFlags::POLLIN, e)?,
        }
    }
}

/// Everything up to the end, or to one byte more than `max`.
///
/// # Errors
/// As [`read`].
pub fn read_to_end(file: &mut File, max: usize) -> io::Result<Vec<u8>> {
    let (mut all, mut bytes) = (Vec::new(), vec![0; 64 << 10]);
    while all.len() <= max {
        let room = bytes.len().min(max + 1 - all.len());
        match read(file, &mut bytes[..room])? {
            0 => break,
            n => all.extend_from_slice(&bytes[..n]),
        }
    }
    Ok(all)
}

/// Waits until it is worth another attempt; an error that is none of a moment's is given back.
fn again(file: &File, what: PollFlags, error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::Interrupted => Ok(()),
        ErrorKind::WouldBlock => match poll(&mut [PollFd::new(file.as_fd(), what)], PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        },
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::OwnedFd, thread};

    use nix::{fcntl::OFlag, unistd::pipe2};

    use super::*;

    #[test]
    fn a_descriptor_that_does_not_wait_is_waited_for() {
        let (from, to) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).expect("a pipe");
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let copy = bytes.clone();
        let writer = thread::spawn(move || write_all(&mut File::from(to), &copy));
        assert_eq!(read_to_end(&mut File::from(from), 2_000_000).expect("read"), bytes);
        writer.join().expect("no panic").expect("written");
    }

    #[test]
    fn no_more_is_read_than_one_byte_beyond_the_bound_and_a_lost_reader_is_an_error() {
        let zero = File::open("/dev/zero").expect("there");
        assert_eq!(read_to_end(&mut file(&zero).expect("a copy"), 100_000).expect("read").len(), 100_001);
        let (from, to): (OwnedFd, OwnedFd) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).expect("a pipe");
        drop(from);
        assert_eq!(write_all(&mut File::from(to), b"x").map_err(|e| e.kind()), Err(ErrorKind::BrokenPipe));
    }
}
