//! systemctl(1): the one place that runs it.
//!
//! A question has an end, whatever systemd does: a time limit, a limit of output, no password prompt. Its words come back
//! as text; what they mean is the caller's business.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::headroom::Headroom;
use crate::sys;

/// The longest answer, in bytes: what `show` says of some ten thousand units.
const LONGEST: usize = 16 << 20;
/// How long an order may take. systemd gives a job 90 s (DefaultTimeoutStartSec=).
const ORDER: Duration = Duration::from_secs(120);

/// A service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The manager of the system.
    System,
    /// The manager of the user who runs this process.
    User,
}

impl Scope {
    /// The manager that this process was started by: MANAGERPID is set for services of a user's (systemd.exec(5)).
    pub fn own() -> Self {
        if env::var_os("MANAGERPID").is_some() { Self::User } else { Self::System }
    }

    fn systemctl<S: AsRef<OsStr>>(self, arguments: &[S]) -> Command {
        let mut command = Command::new("systemctl");
        if self == Self::User {
            command.arg("--user").env("XDG_RUNTIME_DIR", user_runtime_directory());
        }
        command.args(["--no-pager", "--no-ask-password"]).args(arguments).stdin(Stdio::null());
        for name in sys::OURS_ALONE {
            command.env_remove(name);
        }
        command
    }

    /// What systemctl prints for these arguments. Whoever cannot wait gives a short `patience`.
    ///
    /// # Errors
    /// It cannot be run, or it does not end in time (`TimedOut`): then it is killed.
    pub fn ask<S: AsRef<OsStr>>(self, arguments: &[S], patience: Duration) -> io::Result<Answer> {
        let mut command = self.systemctl(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        run(command, patience, None)
    }

    /// Has systemd start a unit and waits until that is done; `text` is what systemctl says about a failure. It is killed
    /// when `cancel` can be read or has no other end any more: the job goes on, and the next start of the unit joins it.
    ///
    /// # Errors
    /// As [`Self::ask`]; `Interrupted` when it was cancelled.
    pub fn start(self, unit: &str, patience: Duration, cancel: BorrowedFd<'_>) -> io::Result<Answer> {
        let mut command = self.systemctl(&["start", "--", unit]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        run(command, patience, Some(cancel))
    }

    /// Queues a stop of a unit. systemd refuses it where it would replace another job (systemctl(1),
    /// `--job-mode=fail`); `text` is what systemctl says about that.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn queue_stop(self, unit: &str, patience: Duration) -> io::Result<Answer> {
        let mut command = self.systemctl(&["--no-block", "--job-mode=fail", "stop", "--", unit]);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        run(command, patience, None)
    }

    /// The last lines that an invocation of a unit has logged, where this user may read them.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn last_lines(self, invocation: &str, lines: u8, patience: Duration) -> io::Result<String> {
        let mut command = Command::new("journalctl");
        command.args(["--quiet", "--no-pager", "--output=cat"]).arg(format!("--lines={lines}"));
        command.arg(format!("_SYSTEMD_INVOCATION_ID={invocation}")).stdin(Stdio::null());
        for name in sys::OURS_ALONE {
            command.env_remove(name);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        run(command, patience, None).map(|answer| answer.text)
    }

    /// Queues a restart of this unit where it runs. Whether systemd took the order: a stop that waits in the queue stays,
    /// and refuses it (systemctl(1), `--job-mode=fail`).
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn try_restart(self, unit: &str, patience: Duration) -> io::Result<bool> {
        let order = ["--no-block", "--job-mode=fail", "--quiet", "try-restart", "--", unit];
        Ok(self.ask(&order, patience)?.status.success())
    }

    /// What systemd finds wrong in unit files (systemd-analyze(1) `verify`), a fault in each line.
    ///
    /// # Errors
    /// The program cannot be run, or it does not end in time (`TimedOut`): then it is killed.
    pub fn verify(self, files: &[OsString], patience: Duration) -> io::Result<String> {
        let mut command = Command::new("systemd-analyze");
        if self == Self::User {
            command.arg("--user");
        }
        command.args(["--no-pager", "--man=no", "verify"]).args(files).stdin(Stdio::null());
        for name in sys::OURS_ALONE {
            command.env_remove(name);
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        run(command, patience, None).map(|answer| answer.text)
    }

    /// Has systemctl do something; what it says goes where this process's words go.
    ///
    /// # Errors
    /// It cannot be run, or it does not end in time (`TimedOut`): then it is killed.
    pub fn order<S: AsRef<OsStr>>(self, arguments: &[S]) -> io::Result<ExitStatus> {
        run(self.systemctl(arguments), ORDER, None).map(|answer| answer.status)
    }
}

/// The runtime directory of this process's user: that of XDG_RUNTIME_DIR, else the one that logind makes.
pub fn user_runtime_directory() -> PathBuf {
    let given = env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    given.map_or_else(|| format!("/run/user/{}", nix::unistd::geteuid()).into(), PathBuf::from)
}

/// Exit status and standard output of a program.
#[derive(Debug)]
pub struct Answer {
    /// How it ended: `is-system-running` says "stopping" with a status that is not zero.
    pub status: ExitStatus,
    pub text: String,
}

/// Runs another program to its end, for at most `patience`; what it writes into a pipe, if there is one, comes back.
///
/// # Errors
/// As [`Scope::ask`].
pub fn bounded(command: Command, patience: Duration) -> io::Result<Answer> {
    run(command, patience, None)
}

/// Runs a program to its end, for at most `patience` and until `cancel` is ready; its piped output comes back.
fn run(mut command: Command, patience: Duration, cancel: Option<BorrowedFd<'_>>) -> io::Result<Answer> {
    let deadline = Instant::now() + patience;
    let headroom = Headroom::take();
    let mut running = Running { child: command.spawn()?, ended: false };
    let process = sys::pidfd_open(running.child.id())?;
    drop(headroom);
    let mut bytes = Vec::new();
    let output = running.child.stdout.take().map(OwnedFd::from);
    if let Some(output) = output.or_else(|| running.child.stderr.take().map(OwnedFd::from)) {
        let mut output = File::from(output);
        let mut part = [0; 16 << 10];
        loop {
            wait(&output, deadline, cancel)?;
            match output.read(&mut part)? {
                0 => break,
                n => bytes.extend_from_slice(&part[..n]),
            }
            if bytes.len() > LONGEST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the program writes too much"));
            }
        }
    }
    wait(&process, deadline, cancel)?;
    let status = running.child.wait()?;
    running.ended = true;
    Ok(Answer { status, text: String::from_utf8_lossy(&bytes).into_owned() })
}

/// Waits until something can be read there, until `deadline` or until `cancel` is ready.
fn wait(fd: &impl AsFd, deadline: Instant, cancel: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut fds = vec![PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    fds.extend(cancel.map(|cancel| PollFd::new(cancel, PollFlags::POLLIN)));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the program does not end in time"));
        }
        // Rounded up, so that a rest below a millisecond is no busy loop.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) if fds.get(1).is_some_and(|cancel| cancel.any() == Some(true)) => {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// A child that is killed and collected when it is dropped before its end.
struct Running {
    child: Child,
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    #[test]
    fn an_answer_comes_with_its_status() {
        let answer = run(shell("echo stopping; exit 1"), Duration::from_secs(30), None).expect("it runs");
        assert_eq!((answer.text.as_str(), answer.status.code()), ("stopping\n", Some(1)));
    }

    #[test]
    fn whoever_does_not_end_in_time_is_killed() {
        for script in ["exec sleep 600", "exec sleep 600 >&-", "while echo x; do sleep 0.01; done"] {
            let began = Instant::now();
            let failed = run(shell(script), Duration::from_millis(200), None).expect_err("no end");
            assert_eq!(failed.kind(), io::ErrorKind::TimedOut, "{script}");
            assert!(began.elapsed() < Duration::from_secs(60), "{script}");
        }
    }

    #[test]
    fn whoever_is_cancelled_is_killed() {
        let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
        let cancelled = std::thread::spawn(move || {
            let run = run(shell("exec sleep 600"), Duration::from_secs(60), Some(ours.as_fd()));
            run.expect_err("no end").kind()
        });
        drop(theirs);
        assert_eq!(cancelled.join().expect("no panic"), io::ErrorKind::Interrupted);
    }

    #[test]
    fn an_answer_without_end_is_cut() {
        let failed = run(shell("exec cat /dev/zero"), Duration::from_secs(60), None).expect_err("too long");
        assert_eq!(failed.kind(), io::ErrorKind::InvalidData);
    }
}
