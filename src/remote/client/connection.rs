//! The way to the agent: a socket that only the same user serves.

use std::{io, os::fd::AsFd as _, time::Duration};

use tokio::{
    net::UnixStream,
    time::{Instant, sleep, timeout},
};

use super::{home::Home, submission::ClientError};
use crate::{
    proto::remote::Hello,
    remote::{agent, frames::Frames, pipe::AsyncPipe},
};

/// Between two looks for the agent.
const AGAIN: Duration = Duration::from_millis(50);

/// An agent that has greeted.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) hello: Hello,
    pub(super) frames: Frames<AsyncPipe>,
    pub(super) to: AsyncPipe,
}

impl Connection {
    /// Looks for an agent until `by`.
    pub(super) async fn open(home: &Home, by: Instant) -> Result<Self, ClientError> {
        loop {
            let left = by.saturating_duration_since(Instant::now());
            match timeout(left, Self::attempt(home)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(ClientError::Transport(format!("{}: {e}", home.at(agent::SOCKET).display())));
                }
                _ => {}
            }
            if Instant::now() + AGAIN >= by {
                return Err(ClientError::Transport(
                    "no answer from dom0: is qvm-remote-dom0 running there, and is this qube listed and authorized? \
                     (--queue waits for it)"
                        .into(),
                ));
            }
            sleep(AGAIN).await;
        }
    }

    async fn attempt(home: &Home) -> io::Result<Self> {
        let stream = UnixStream::connect(home.at(agent::SOCKET)).await?;
        if stream.peer_cred()?.uid() != nix::unistd::getuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user answers"));
        }
        let fd = stream.into_std()?;
        let mut frames = Frames::new(AsyncPipe::reader(fd.as_fd().try_clone_to_owned()?)?);
        Ok(Self { hello: frames.hello().await?, frames, to: AsyncPipe::writer(fd.into())? })
    }
}
