//! `get` and `put`: one file, beneath a directory that the policy names, of bounded size.
//!
//! The daemon itself reads and writes; the kernel holds the path to the directory (openat2(2), no links at all), so
//! nothing that stands in it, nor in the name, leads elsewhere.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
    time::Duration,
};

use nix::{
    fcntl::{AtFlags, OFlag},
    unistd::linkat,
};
use tokio::time::sleep;

use super::{
    execute::Pumped,
    port::{Port, Receipt},
    request::Registration,
};
use crate::{
    proto::remote::{Ending, SLICE, frame},
    remote::files,
};

/// Waits for a transfer to end: by itself, because its time is spent, because its client gave up, or because somebody in
/// dom0 ended it. A transfer that is cut short is dropped, and leaves no file.
///
/// # Errors
/// When it could not be started.
pub(super) async fn within(
    time: Option<Duration>,
    registration: &Registration,
    port: &Port,
    transfer: impl Future<Output = io::Result<Ending>>,
) -> io::Result<Ending> {
    let deadline = async {
        match time {
            Some(time) => sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = registration.ended() => Ok(Ending::Cancelled),
        _ = port.inbox.abandoned() => Ok(Ending::Cancelled),
        ending = transfer => ending,
        () = deadline => Ok(Ending::Timeout),
    }
}

/// Sends a file as standard output.
///
/// # Errors
/// When it cannot be opened, is no regular file, or is too large; nothing was sent then.
pub(super) async fn get(
    (dir, path, most): (&Path, &Path, u64),
    receipt: Option<Receipt>,
    port: &Port,
    moved: &Pumped,
) -> io::Result<Ending> {
    let mut file = File::from(files::open_beneath(dir, path, OFlag::O_RDONLY, 0)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if metadata.len() > most {
        return Err(io::Error::other(format!("it has {} bytes, {most} are allowed", metadata.len())));
    }
    port.accept(receipt).await;
    let mut bytes = 0;
    loop {
        let credit = port.inbox.credit(0, u32::try_from(SLICE).unwrap_or(u32::MAX)).await;
        let Some(place) = port.place_in_line().await.filter(|_| credit > 0) else { return Ok(Ending::Cancelled) };
        let mut buffer = vec![0; frame::HEADER + credit as usize];
        let n = file.read(&mut buffer[frame::HEADER..])?;
        port.inbox.unused(credit - u32::try_from(n).unwrap_or(credit));
        if n == 0 {
            return Ok(Ending::Exit(0));
        }
        bytes += n as u64;
        if bytes > most {
            return Ok(Ending::Limit); // it grew meanwhile
        }
        buffer.truncate(frame::HEADER + n);
        moved.add(&buffer[frame::HEADER..]);
        place.send(port.data(buffer, frame::Type::Stdout));
    }
}

/// Takes standard input into a file: without a name until it is whole, then under its own, which must be free.
///
/// # Errors
/// When it cannot be made; nothing is left then.
pub(super) async fn put(
    (dir, path, most): (&Path, &Path, u64),
    receipt: Option<Receipt>,
    port: &Port,
    moved: &Pumped,
) -> io::Result<Ending> {
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
    port.accept(receipt).await;
    let mut bytes = 0;
    while let Some(data) = port.inbox.data().await {
        bytes += data.len() as u64;
        if bytes > most {
            return Ok(Ending::Limit);
        }
        file.write_all(&data)?;
        moved.add(&data);
        port.taken(data.len()).await;
    }
    // The data's end is also seen when the client or the channel is gone: `within` looks for that first, so half a file
    // gets no name.
    file.sync_data()?;
    let proc = File::open("/proc/self/fd")?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&file).to_string();
    linkat(&proc, number.as_str(), &parent_fd, name, AtFlags::AT_SYMLINK_FOLLOW)?;
    Ok(Ending::Exit(0))
}
