//! A child process by its pidfd: never by a number that somebody else might get.
//!
//! A child belongs to somebody at every moment: to the session that started it, to the next process (its pidfd is
//! handed over), or to a task that ends it. One taken over cannot be waited for, only watched: its exit code is lost.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::sys;

/// How long a child has between SIGTERM and SIGKILL.
const PATIENCE: Duration = Duration::from_secs(2);

/// What systemd tells this process alone (sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)): no child is to see
/// it. With NOTIFY_SOCKET a child's message would be held against the service.
pub const OURS_ALONE: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// Not known: it was started by an earlier process.
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
    /// Starts `command` in a process group of its own, without what systemd told this process alone.
    ///
    /// # Errors
    /// What fork, exec or pidfd_open(2) say.
    pub(super) fn spawn(mut command: Command) -> io::Result<Self> {
        for name in OURS_ALONE {
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

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
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
            self.exit = Some(reap(pidfd));
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

/// Collects the exit of a child whose pidfd became readable (pidfd_open(2), waitid(2) P_PIDFD).
fn reap(pidfd: &AsyncFd<OwnedFd>) -> Exit {
    match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
        Ok(WaitStatus::Exited(_, code)) => Exit::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(u8::try_from(signal as i32).unwrap_or(0)),
        Err(Errno::ECHILD) | Ok(_) | Err(_) => Exit::Unknown,
    }
}
