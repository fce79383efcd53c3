//! The socket that clients of the same user come to, and the way of one client's frames.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::net::{UnixListener, UnixStream};

use super::stream::Agent;
use crate::{
    proto::remote::{Frame, Hello, WaitReason, frame::Type},
    remote::{frames::Frames, line::TOGETHER, pipe::AsyncPipe, socket},
    sys::socket_file::{self, Rights},
};

/// The socket's directory and name below `~/.qvm-remote`.
pub const SOCKET: &str = "run/sock";
/// Clients that wait for a free stream, at most.
const CLIENTS: usize = 4096;
/// Connections that wait to be accepted, at most.
const BACKLOG: u32 = 4096;

/// Our own socket file, told from one that a later agent has put in its place.
pub(super) struct OwnSocket {
    path: PathBuf,
    /// Device and inode of the socket file.
    inode: (u64, u64),
}

impl OwnSocket {
    pub(super) fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens under its own name, then takes the place of whatever agent was there before.
pub(super) fn listen(path: &Path) -> io::Result<(UnixListener, OwnSocket)> {
    let temporary = path.with_extension(std::process::id().to_string());
    let _ = fs::remove_file(&temporary);
    let bound = socket_file::bind(&temporary, Rights::PRIVATE)?;
    let own = OwnSocket { path: path.to_owned(), inode: bound.inode };
    let listener = UnixListener::from_std(bound.listen(BACKLOG)?)?;
    fs::rename(&temporary, path)?;
    Ok((listener, own))
}

/// Serves clients until it is dropped.
pub(super) async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    let own = nix::unistd::getuid().as_raw();
    let client = |stream| {
        let agent = agent.clone();
        async move {
            let _ = client(stream, agent).await;
        }
    };
    socket::serve(listener, own, CLIENTS, client).await;
}

/// One client: greeted, heard, given a stream for its request.
async fn client(stream: UnixStream, agent: Arc<Agent>) -> io::Result<()> {
    let fd = stream.into_std()?;
    let (from, to) = (AsyncPipe::reader(fd.as_fd().try_clone_to_owned()?)?, AsyncPipe::writer(fd.into())?);
    let seq = agent.seq.fetch_add(1, Relaxed);
    to.write_all(&Frame::Hello(Hello { seq, ..agent.hello.clone() }).to_vec(0)).await?;
    let mut from = Frames::new(from);
    let first = match from.next().await? {
        Some(whole) if whole.raw().kind == Type::Open => whole.as_bytes().to_vec(),
        Some(_) => return Err(io::ErrorKind::InvalidData.into()),
        None => return Ok(()),
    };
    if agent.free.available_permits() == 0 {
        to.write_all(&Frame::Wait(WaitReason::Commands).to_vec(1)).await?;
    }
    let Some(mut stream) = agent.open(first).await else { return Ok(()) };
    loop {
        while let Some(whole) = from.ready().map_err(io::Error::other)? {
            let raw = whole.raw();
            if !raw.from_vm() || matches!(raw.kind, Type::Open | Type::V1 | Type::Ping | Type::Pong) {
                stream.abandon().await;
                return Err(io::ErrorKind::InvalidData.into());
            }
            stream.pass(whole).await;
        }
        tokio::select! {
            frame = stream.frames.recv() => {
                let Some(mut frame) = frame else { return Ok(()) };
                frame.restream(1);
                // small ones that wait already go together
                let mut together = Vec::new();
                while frame.as_bytes().len().max(together.len()) < TOGETHER {
                    let Ok(mut more) = stream.frames.try_recv() else { break };
                    more.restream(1);
                    if together.is_empty() {
                        together.extend_from_slice(frame.as_bytes());
                    }
                    together.extend_from_slice(more.as_bytes());
                }
                let bytes = if together.is_empty() { frame.as_bytes() } else { &together };
                if to.write_all(bytes).await.is_err() {
                    stream.abandon().await;
                    return Ok(());
                }
            }
            more = from.fill() => {
                if !more.is_ok_and(|more| more) {
                    stream.abandon().await;
                    return Ok(());
                }
            }
        }
    }
}
