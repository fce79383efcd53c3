//! What the service manager hears of us: ready, status, signs of life, more time.

use std::{env, io, os::fd::AsFd as _, time::Duration};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};
use sd_notify::NotifyState;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use super::headroom::{Headroom, datagrams};
use crate::log::{Kind, counted, say};

/// How often the status is written at most.
const STATUS: Duration = Duration::from_secs(1);
/// How long the manager may take to confirm that it has read everything. It answers within milliseconds unless it is
/// overloaded. A process that left without the answer would lose its sessions.
const CONFIRM: Duration = Duration::from_secs(10);

/// Tells the manager. Without one (`NOTIFY_SOCKET` unset) it goes nowhere; a failure is logged, for there is nobody
/// else to tell.
pub fn tell(state: &[NotifyState<'_>]) {
    let told = send(state).unwrap_or_else(|| {
        let _headroom = Headroom::take();
        sd_notify::notify(state)
    });
    if let Err(e) = told {
        say(Kind::LogDropped, format!("the service manager did not take a message: {e}"));
    }
}

/// Sends over the socket that is open anyway; `None` where that cannot be done (an abstract address, for one).
fn send(state: &[NotifyState<'_>]) -> Option<io::Result<()>> {
    let path = env::var_os("NOTIFY_SOCKET").filter(|path| path.as_encoded_bytes().starts_with(b"/"))?;
    let text: String = state.iter().map(|state| format!("{state}\n")).collect();
    Some(datagrams()?.send_to(text.as_bytes(), path).map(|_| ()))
}

/// Waits until the manager has read all messages that were sent before (sd_notify_barrier(3)).
///
/// # Errors
/// What pipe(2) and sendmsg(2) say; `TimedOut` when the manager does not answer.
pub fn barrier() -> io::Result<()> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    let timeout = PollTimeout::try_from(CONFIRM).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(ours.as_fd(), PollFlags::empty())], timeout)? {
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "the service manager does not answer")),
        _ => Ok(()),
    }
}

/// Whether a service manager started this process and reads its messages.
pub fn managed() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

/// Whether the service manager started this very process (systemd.exec(5): SYSTEMD_EXEC_PID), and not a person or a
/// script below a unit.
pub fn started_by_the_manager() -> bool {
    let pid = env::var("SYSTEMD_EXEC_PID").ok().and_then(|pid| pid.parse().ok());
    pid == Some(std::process::id())
}

/// Sends signs of life twice in each watchdog period (sd_watchdog_enabled(3)), from the runtime that does the work:
/// when that hangs, they end.
pub async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut tick = interval(period / 2);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tick.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServedCount {
    pub served: usize,
    pub all: usize,
    /// Whether they are forwards of a configuration, rather than sockets that were passed.
    pub forwards: bool,
}

/// Keeps `systemctl status` up to date with the `line` for the number of sessions. An idle service sleeps.
/// `told` is the number that the manager was told last; `None` sends the status at once.
pub async fn status(mut count: watch::Receiver<usize>, mut told: Option<usize>, line: impl Fn(usize) -> String) {
    loop {
        let now = *count.borrow_and_update();
        if told != Some(now) {
            tell(&[NotifyState::Status(&line(now))]);
            told = Some(now);
            sleep(STATUS).await;
        }
        if count.changed().await.is_err() {
            return;
        }
    }
}

/// The status line of a running service: `2 of 3 listeners, 5 sessions`.
pub fn line(ServedCount { served, all, forwards }: ServedCount, sessions: usize) -> String {
    let noun = if forwards { "forward" } else { "listener" };
    let listeners = match (served, all) {
        (served, all) if served == all => counted(all, noun),
        (served, all) => format!("{served} of {}", counted(all, noun)),
    };
    format!("{listeners}, {}", self::sessions(sessions))
}

/// The status line of one that stops.
pub fn stopping(sessions: usize) -> String {
    format!("stopping, {} left", self::sessions(sessions))
}

/// `1 session`, `2 sessions`.
pub fn sessions(n: usize) -> String {
    counted(n, "session")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_says_what_is_not_served() {
        let count = |served, all, forwards| ServedCount { served, all, forwards };
        assert_eq!(line(count(3, 3, false), 5), "3 listeners, 5 sessions");
        assert_eq!(line(count(1, 1, false), 1), "1 listener, 1 session");
        assert_eq!(line(count(2, 3, true), 0), "2 of 3 forwards, 0 sessions");
    }
}
