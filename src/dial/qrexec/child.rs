//! A child process by its pidfd: never by a number that somebody else might get.
//!
//! A child belongs to somebody at every moment: to the session that started it, to the next process (its pidfd is
//! handed over), or to a task that ends it. One taken over cannot be waited for, only watched: its exit code comes from
//! the kernel where that keeps it (Linux 6.15), and is lost elsewhere.

use std::{
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Command, ExitStatus},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{sleep, timeout},
};

use crate::sys;

/// How long a child has between SIGTERM and SIGKILL.
const PATIENCE: Duration = Duration::from_secs(2);

/// End of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Exit by itself, with this code.
    Code(u8),
    /// Killed by this signal.
    Signal(u8),
    /// Not known: it was started by an earlier process, and the kernel does not keep it.
    Unknown,
}

impl Exit {
    /// As a shell has it: the code, or 128 + the signal.
    pub fn code(self) -> Option<u8> {
        match self {
            Self::Code(code) => Some(code),
            Self::Signal(signal) => Some(signal.saturating_add(128)),
            Self::Unknown => None,
        }
    }
}

/// A child process. Dropped while it lives, it is killed.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    /// `None` once it was handed on.
    pidfd: Option<AsyncFd<OwnedFd>>,
    exit: Option<Exit>,
}

impl Child {
    /// Starts `command` in a separate process group, without what systemd told this process alone.
    ///
    /// # Errors
    /// What fork, exec or pidfd_open(2) say.
    pub(super) fn spawn(mut command: Command) -> io::Result<Self> {
        for name in sys::OURS_ALONE {
            command.env_remove(name);
        }
        let mut child = command.process_group(0).spawn()?;
        // Not waited for yet, so the number is still its own.
        match sys::pidfd_open(child.id()).and_then(|fd| sys::register(fd, Interest::READABLE)) {
            Ok(pidfd) => Ok(Self { pid: child.id(), pidfd: Some(pidfd), exit: None }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e)
            }
        }
    }

    /// Takes over a child of an earlier process.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn adopt(pid: u32, pidfd: OwnedFd) -> io::Result<Self> {
        Ok(Self { pid, pidfd: Some(sys::register(pidfd, Interest::READABLE)?), exit: None })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(|fd| fd.get_ref().as_fd())
    }

    /// Gives it away: its pid and pidfd.
    pub fn release(mut self) -> Option<(u32, OwnedFd)> {
        self.pidfd.take().map(|fd| (self.pid, fd.into_inner()))
    }

    /// Waits for its end.
    ///
    /// # Cancel safety
    /// Safe; called again after the end, it says the same.
    pub async fn exited(&mut self) -> Exit {
        if let (None, Some(pidfd)) = (self.exit, &self.pidfd) {
            let _ = pidfd.readable().await;
            self.exit = Some(match reap(pidfd) {
                Exit::Unknown => collected(pidfd).await,
                exit => exit,
            });
        }
        self.exit.unwrap_or(Exit::Unknown)
    }

    /// Sends SIGTERM, then, when that was not enough, SIGKILL; whether the latter was needed.
    pub async fn end(&mut self) -> (Exit, bool) {
        self.signal(libc::SIGTERM);
        if let Ok(exit) = timeout(PATIENCE, self.exited()).await {
            return (exit, false);
        }
        self.signal(libc::SIGKILL);
        (self.exited().await, true)
    }

    fn signal(&self, signal: i32) {
        if let (None, Some(pidfd)) = (self.exit, &self.pidfd) {
            let _ = sys::pidfd_send_signal(pidfd.as_fd(), signal); // ESRCH: it has ended
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        if let (None, Some(pidfd), Ok(runtime)) = (self.exit, self.pidfd.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move {
                let _ = pidfd.readable().await;
                reap(&pidfd)
            });
        }
    }
}

/// How a child of an earlier process ended: its parent now (a service manager) collects it, and the kernel keeps it
/// with the pidfd from Linux 6.15 on.
async fn collected(pidfd: &AsyncFd<OwnedFd>) -> Exit {
    for pause in [0, 1, 2, 4, 8, 16, 32] {
        sleep(Duration::from_millis(pause)).await;
        match sys::pidfd_exit(pidfd.as_fd()).map(|status| status.map(ExitStatus::from_raw)) {
            Ok(Some(status)) => return exit_of(status),
            Ok(None) => {} // not yet
            Err(_) => break,
        }
    }
    Exit::Unknown
}

fn exit_of(status: ExitStatus) -> Exit {
    let byte = |n: i32| u8::try_from(n & 0xff).unwrap_or(u8::MAX);
    let signal = || status.signal().map(|signal| Exit::Signal(byte(signal)));
    status.code().map(|code| Exit::Code(byte(code))).or_else(signal).unwrap_or(Exit::Unknown)
}

/// Collects the exit of a child whose pidfd became readable (pidfd_open(2), waitid(2) P_PIDFD).
fn reap(pidfd: &AsyncFd<OwnedFd>) -> Exit {
    match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
        Ok(WaitStatus::Exited(_, code)) => Exit::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(u8::try_from(signal as i32).unwrap_or(0)),
        Err(Errno::ECHILD) | Ok(_) | Err(_) => Exit::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_somebody_else_has_collected_is_known_where_the_kernel_keeps_it() {
        for (script, exit) in [("exit 7", Exit::Code(7)), ("kill -9 $$", Exit::Signal(9))] {
            let mut child = Command::new("/bin/sh").args(["-c", script]).spawn().expect("a shell");
            let pidfd = sys::pidfd_open(child.id()).expect("a pidfd");
            let again = pidfd.try_clone().expect("a descriptor");
            child.wait().expect("our child");
            let known = Child::adopt(child.id(), pidfd).expect("it is watched").exited().await;
            let kept = sys::pidfd_exit(again.as_fd()).is_ok();
            assert_eq!(known, if kept { exit } else { Exit::Unknown });
        }
    }
}
