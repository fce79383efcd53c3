//! `get` and `put`: one file, beneath a directory that the policy names, of bounded size.
//!
//! The daemon itself reads and writes; the kernel holds the path to the directory (openat2(2), no links at all), so
//! nothing that stands in it, nor in the name, leads elsewhere.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
};

use nix::{
    fcntl::{AtFlags, OFlag},
    unistd::linkat,
};
use sha2::{Digest as _, Sha256};

use super::{
    execute::Done,
    port::{Port, StreamEvent},
};
use crate::{
    proto::{
        mac,
        remote::{Ending, Frame, SLICE, frame},
    },
    remote::files,
};

/// Sends a file as standard output.
///
/// # Errors
/// When it cannot be opened, is no regular file, or is too large; nothing was sent then.
pub async fn get(dir: &Path, path: &Path, most: u64, port: &Port) -> io::Result<Done> {
    let mut file = File::from(files::open_beneath(dir, path, OFlag::O_RDONLY, 0)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if metadata.len() > most {
        return Err(io::Error::other(format!("it has {} bytes, {most} are allowed", metadata.len())));
    }
    port.send(Frame::Accept).await;
    let (mut digest, mut bytes, mut ending) = (Sha256::new(), 0, Ending::Exit(0));
    loop {
        let credit = tokio::select! {
            credit = port.inbox.credit(0, u32::try_from(SLICE).unwrap_or(u32::MAX)) => credit,
            _ = port.inbox.abandoned() => 0,
        };
        if credit == 0 {
            ending = Ending::Cancelled;
            break;
        }
        let mut buffer = vec![0; frame::HEADER + credit as usize];
        let n = file.read(&mut buffer[frame::HEADER..])?;
        port.inbox.unused(credit - u32::try_from(n).unwrap_or(credit));
        if n == 0 {
            break;
        }
        bytes += n as u64;
        if bytes > most {
            ending = Ending::Limit; // it grew meanwhile
            break;
        }
        buffer.truncate(frame::HEADER + n);
        digest.update(&buffer[frame::HEADER..]);
        port.send_data(buffer, frame::Type::Stdout).await;
    }
    Ok(Done { ending, stdout: digest.finalize().into(), stderr: mac::digest(b""), bytes: (bytes, 0) })
}

/// Takes standard input into a file: without a name until it is whole, then under its own, which must be free.
///
/// # Errors
/// When it cannot be made; nothing is left then.
pub async fn put(dir: &Path, path: &Path, most: u64, port: &Port) -> io::Result<Done> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("it names no file"));
    };
    let parent_fd = if parent == dir {
        File::open(dir)?.into()
    } else {
        files::open_beneath(dir, parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?
    };
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
    let mut file = File::from(nix::fcntl::openat(&parent_fd, ".", flags, mode)?);
    port.send(Frame::Accept).await;
    let done = |ending, bytes| Done { ending, stdout: mac::digest(b""), stderr: mac::digest(b""), bytes: (0, bytes) };
    let mut bytes = 0;
    while let Some(data) = port.inbox.data().await {
        bytes += data.len() as u64;
        if bytes > most {
            return Ok(done(Ending::Limit, bytes));
        }
        file.write_all(&data)?;
        port.taken(data.len()).await;
    }
    // the data's end is also seen when the client or the channel is gone: half a file gets no name
    let left = tokio::time::timeout(std::time::Duration::ZERO, port.inbox.abandoned()).await;
    if matches!(left, Ok(StreamEvent::Cancel | StreamEvent::Gone)) {
        return Ok(done(Ending::Cancelled, bytes));
    }
    file.sync_data()?;
    let proc = File::open("/proc/self/fd")?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&file).to_string();
    linkat(&proc, number.as_str(), &parent_fd, name, AtFlags::AT_SYMLINK_FOLLOW)?;
    Ok(done(Ending::Exit(0), bytes))
}
