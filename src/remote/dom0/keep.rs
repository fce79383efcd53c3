//! The one process of qvm-remote-dom0-commands.service: the unit stays as long as a command, or what one left in the
//! background, is in it.
//!
//! While a daemon runs, this waits for its end and does nothing. Then no daemon answers for a command that has not ended:
//! such commands get the time in which their supervisors end them, and are killed. What commands left in the background
//! goes on, up to the time of each. When nothing is left, this ends, and so does the unit.

use std::{
    io,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt::PeerCredentials},
};

use super::{groups::CommandGroups, question::SOCKET};
use crate::sys;

/// How long the first daemon may take to come: the unit starts before it.
const FIRST: Duration = Duration::from_secs(60);
/// How long the next one may take: one that is restarted finds the unit as it was.
const NEXT: Duration = Duration::from_secs(10);
/// How long supervisors may take to end their commands when the daemon has crashed: TERM, and KILL after five seconds.
const SUPERVISORS: Duration = Duration::from_secs(7);
/// Between two looks, while no daemon runs.
const TICK: Duration = Duration::from_secs(1);

/// Keeps the unit until nothing is in it.
///
/// # Errors
/// When this process is not in a group that the manager left to it.
pub fn keep(run: &Path) -> io::Result<ExitCode> {
    let groups =
        CommandGroups::of_keeper().ok_or_else(|| io::Error::other("this is a part of the service, not a command"))?;
    let (mut gone, mut expected) = (Instant::now(), FIRST);
    loop {
        if wait_for_the_end_of_the_daemon(run) {
            (gone, expected) = (Instant::now(), NEXT);
        }
        if gone.elapsed() > SUPERVISORS {
            groups.unfinished().iter().for_each(|group| group.kill());
        }
        let left = groups.left();
        let now = SystemTime::now();
        left.iter().filter(|left| left.until.is_some_and(|until| until <= now)).for_each(|left| left.group.kill());
        if left.is_empty() && groups.unfinished().is_empty() && gone.elapsed() > expected {
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(TICK);
    }
}

/// Returns when the daemon has ended; whether there was one.
fn wait_for_the_end_of_the_daemon(run: &Path) -> bool {
    let pidfd = UnixStream::connect(run.join(SOCKET)).and_then(|stream| {
        let peer = getsockopt(&stream, PeerCredentials)?;
        sys::pidfd_open(u32::try_from(peer.pid()).map_err(io::Error::other)?)
    });
    let Ok(pidfd) = pidfd else { return false };
    while poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) == Err(nix::errno::Errno::EINTR)
    {
    }
    true
}
