//! `get` and `put`: one file, beneath a directory that the policy names, of bounded size.
//!
//! The daemon itself reads and writes; the kernel holds the path to the directory (openat2(2), no links at all), so
//! nothing that stands in it, nor in the name, leads elsewhere. The disk is waited for on separate threads, so that a
//! slow one keeps no other request waiting.

use std::{
    ffi::OsString,
    fs::{File, Permissions},
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::Path,
    time::Duration,
};

use nix::{
    fcntl::{AtFlags, OFlag},
    unistd::linkat,
};
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    execute::Pumped,
    judge::Task,
    looks::{Looks, NoAnswer},
    port::{Port, Receipt},
    request::Registration,
};
use crate::{
    log::counted,
    proto::remote::{Ending, SLICE, frame},
    remote::files,
};

/// Waits for a transfer to end: by itself, because its time is spent, because its client gave up, or because somebody
/// in dom0 ended it. A transfer that is cut short is dropped, and leaves no file.
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

/// Does something that may wait for the disk.
async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

/// The file of a transfer, open: nothing of it was sent or taken yet.
#[derive(Debug)]
pub(super) enum OpenFile {
    Get(OpenSource),
    Put(OpenTarget),
}

/// A file that is read.
#[derive(Debug)]
pub(super) struct OpenSource {
    file: File,
    most: u64,
}

/// A file that is written, without a name until it is whole.
#[derive(Debug)]
pub(super) struct OpenTarget {
    file: File,
    directory: OwnedFd,
    name: OsString,
    most: u64,
    mode: u32,
}

/// Opens the file that a request is about; `None` for a command.
///
/// # Errors
/// When it cannot be opened, is no regular file, is too large, or its directory does not answer.
pub(super) async fn open(task: &Task, looks: &Looks) -> io::Result<Option<OpenFile>> {
    let opened = match task {
        Task::Run(_) => return Ok(None),
        Task::Get(dir, path, most) => {
            let (dir, path, most) = (dir.clone(), path.clone(), *most);
            looks.look(move || source(&dir, &path, most).map(OpenFile::Get)).await
        }
        Task::Put(dir, path, most, mode) => {
            let (dir, path, most, mode) = (dir.clone(), path.clone(), *most, *mode);
            looks.look(move || target(&dir, &path, most, mode).map(OpenFile::Put)).await
        }
    };
    match opened {
        Ok(opened) => opened.map(Some),
        Err(NoAnswer) => Err(io::Error::new(io::ErrorKind::TimedOut, "its directory did not answer in time")),
    }
}

fn source(dir: &Path, path: &Path, most: u64) -> io::Result<OpenSource> {
    let file = File::from(files::open_beneath(dir, path, OFlag::O_RDONLY, 0)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if metadata.len() > most {
        return Err(io::Error::other(format!(
            "it has {}, at most {most} are allowed",
            counted(metadata.len(), "byte")
        )));
    }
    Ok(OpenSource { file, most })
}

fn target(dir: &Path, path: &Path, most: u64, mode: u32) -> io::Result<OpenTarget> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("it names no file"));
    };
    let directory = if parent == dir {
        File::open(dir)?.into()
    } else {
        files::open_beneath(dir, parent, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0)?
    };
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let closed = nix::sys::stat::Mode::from_bits_truncate(0o600);
    let file = File::from(nix::fcntl::openat(&directory, ".", flags, closed)?);
    Ok(OpenTarget { file, directory, name: name.to_owned(), most, mode })
}

/// Sends a file as standard output.
///
/// # Errors
/// When it cannot be read.
pub(super) async fn get(
    OpenSource { mut file, most }: OpenSource,
    receipt: Option<Receipt>,
    port: &Port,
    moved: &Pumped,
) -> io::Result<Ending> {
    port.accept(receipt).await;
    let mut bytes = 0;
    loop {
        let credit = port.inbox.credit(0, u32::try_from(SLICE).unwrap_or(u32::MAX)).await;
        if credit == 0 {
            return Ok(Ending::Cancelled);
        }
        let n;
        let mut buffer = vec![0; frame::HEADER + credit as usize];
        (file, buffer, n) = on_disk(move || {
            let n = file.read(&mut buffer[frame::HEADER..])?;
            Ok((file, buffer, n))
        })
        .await?;
        port.inbox.unused(credit - u32::try_from(n).unwrap_or(credit));
        if n == 0 {
            return Ok(Ending::Exit(0));
        }
        bytes += n as u64;
        if bytes > most {
            return Ok(Ending::Limit); // it grew meanwhile
        }
        buffer.truncate(frame::HEADER + n);
        let Some(place) = port.place_in_line().await else { return Ok(Ending::Cancelled) };
        moved.add(&buffer[frame::HEADER..]);
        place.send(port.data(buffer, frame::Type::Stdout));
    }
}

/// Takes standard input into a file: without a name until it is whole, then under its own, which must be free.
///
/// # Errors
/// When it cannot be written; nothing is left then.
pub(super) async fn put(
    OpenTarget { mut file, directory, name, most, mode }: OpenTarget,
    receipt: Option<Receipt>,
    port: &Port,
    moved: &Pumped,
) -> io::Result<Ending> {
    port.accept(receipt).await;
    let mut bytes = 0;
    while let Some(data) = port.inbox.data().await {
        bytes += data.len() as u64;
        if bytes > most {
            return Ok(Ending::Limit);
        }
        let n = data.len();
        moved.add(&data);
        file = on_disk(move || file.write_all(&data).map(|()| file)).await?;
        port.taken(n).await;
    }
    file = on_disk(move || {
        file.set_permissions(Permissions::from_mode(mode))?; // the daemon's own umask is not the command's
        file.sync_data().map(|()| file)
    })
    .await?;
    // The data's end is also seen when the client or the channel is gone, and the request may have been ended while the
    // disk was waited for: `within` looks for both before this goes on, so such a file gets no name.
    let proc = File::open("/proc/self/fd")?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&file).to_string();
    linkat(&proc, number.as_str(), &directory, name.as_os_str(), AtFlags::AT_SYMLINK_FOLLOW)?;
    Ok(Ending::Exit(0))
}
