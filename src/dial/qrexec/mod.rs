//! A service in another qube, by one `qrexec-client-vm` for each session.
//!
//! # Theory
//! The child gets two pipes as its standard input and output; the relay stands between them and the peer. (Handing
//! it the peer's socket loses the end of replies, never sees a reset and cannot time out.) Only *our* ends are
//! non-blocking.
//!
//! A call goes through **set-up**: dom0 asks its policy, perhaps its user, perhaps starts a qube; nothing tells us
//! when that is over. But `qrexec-client-vm` sets O_NONBLOCK on its standard input exactly when it is connected and
//! before any byte moves. That flag belongs to the open file description, so a second descriptor of the same pipe end
//! shows it ([`LiveCall::connected`]): no look into /proc. The other sign is the first byte of output. Until then the
//! peer is not read: its bytes stay in the kernel.
//!
//! The flag goes as it came: before `qrexec-client-vm` closes its input, at the latest when it ends, it makes it
//! blocking again. So a child that has ended is judged by what else it left: output, or an exit code that only the
//! service can have given.
//!
//! [`gate`] bounds how many set-ups of one service run at once, so that an `ask` policy does not open eight prompts,
//! and stops asking for a while what was refused ([`rules`]: its table of states).

mod child;
pub mod gate;
mod group;
mod qube;
mod rules;
mod stderr;

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::time::{Instant, sleep_until};

pub use self::child::{Child, Exit};
pub use self::group::Group;
pub use self::qube::{CallPermit, Qube};
pub use self::rules::{Passed, UNDECIDED};
pub use self::stderr::Stderr;
use super::{failure::Failure, peer::abandoned};
use crate::{
    proto::qrexec::SetUp,
    spec,
    stream::{Stream, StreamKind},
};

/// Path where Qubes installs qrexec-client-vm.
pub const CLIENT: &str = "/usr/bin/qrexec-client-vm";

/// How long a service whose qube may just have started is waited for, before the peer is read: `qrexec-client-vm`
/// learns within a few milliseconds that its server refuses the connection.
const SETTLE: Duration = Duration::from_millis(250);

/// The program that makes calls, and the group of its processes.
#[derive(Debug)]
pub struct Client {
    /// The `qrexec-client-vm`.
    pub program: PathBuf,
    /// Where its processes live; in the service's own control group when `None`.
    pub group: Option<Arc<Group>>,
}

/// The `qrexec-client-vm` of one call.
#[derive(Debug)]
pub struct Helper {
    /// The process.
    pub child: Child,
    /// What the process writes on its standard error.
    pub stderr: Stderr,
}

/// A call in set-up: the child, our ends of its pipes, and the second descriptor of its standard input.
#[derive(Debug)]
pub struct LiveCall {
    /// The `qrexec-client-vm`.
    pub helper: Helper,
    to: Stream,
    from: Stream,
    probe: OwnedFd,
    began: Instant,
}

/// How a set-up went.
#[derive(Debug)]
pub enum Decision {
    /// The other qube's service has the call.
    Connected,
    /// It does not; the child has ended or is to be ended.
    Failed(Failure),
    /// dom0 will never answer: the child is to be ended, and the call can be made again.
    Lost,
}

/// A connected call.
#[derive(Debug)]
pub struct Parts {
    /// The `qrexec-client-vm`.
    pub helper: Helper,
    /// Its standard output: the service's bytes.
    pub from: Stream,
    /// Its standard input: bytes for the service.
    pub to: Stream,
    /// The second descriptor of its standard input, to be closed when what comes next is saved.
    pub probe: OwnedFd,
}

/// The descriptors of a call in set-up, taken off the runtime.
#[derive(Debug)]
pub struct ParkedCall {
    /// Our end of the child's standard input, of its output, and the second descriptor of its standard input.
    pub pipes: [OwnedFd; 3],
    /// How long the set-up has taken so far.
    pub taken: Duration,
}

impl LiveCall {
    /// Starts a process for `call`.
    ///
    /// # Errors
    /// [`Failure::Start`] when the program cannot be started or there are no descriptors left.
    pub fn start(client: &Client, call: &spec::Call) -> Result<Self, Failure> {
        let failed = |error| Failure::Start { program: client.program.clone(), error };
        let started = Self::spawn(&client.program, call).map_err(failed)?;
        if let Some(group) = &client.group {
            // Without it the call still works, but ends at a restart; reported once, when the service began.
            let _ = group.take(started.helper.child.pid());
        }
        Ok(started)
    }

    fn spawn(program: &Path, call: &spec::Call) -> io::Result<Self> {
        let (child_in, to) = pipe()?;
        let (from, child_out) = pipe()?;
        let (err, child_err) = pipe()?;
        let probe = child_in.try_clone()?;
        let mut command = Command::new(program);
        command
            // What a terminal would need is for terminals: bytes pass unchanged, and stderr is escaped by our log.
            .args(["--no-filter-escape-chars-stdout", "--no-filter-escape-chars-stderr", "--"])
            .args([&*call.target, &*call.service])
            .stdin(Stdio::from(child_in))
            .stdout(Stdio::from(child_out))
            .stderr(Stdio::from(child_err));
        let child = Child::spawn(command)?;
        Ok(Self {
            helper: Helper { child, stderr: Stderr::new(Some(stream(err, StreamKind::PipeReader)?)) },
            to: stream(to, StreamKind::PipeWriter)?,
            from: stream(from, StreamKind::PipeReader)?,
            probe,
            began: Instant::now(),
        })
    }

    /// Whether the call is connected, by the flag that the child sets.
    pub fn connected(&self) -> bool {
        fcntl(self.probe.as_fd(), FcntlArg::F_GETFL)
            .is_ok_and(|f| OFlag::from_bits_truncate(f).contains(OFlag::O_NONBLOCK))
    }

    /// Waits until the set-up is over, until `deadline` at most: the end of the time `allowed`.
    ///
    /// # Cancel safety
    /// Safe: the call goes on, and this can be called again.
    pub async fn decided(
        &mut self,
        peer: &Stream,
        (deadline, allowed): (Instant, Duration),
        mut said: impl FnMut(String),
    ) -> Decision {
        let mut output_ended = false;
        loop {
            if self.connected() {
                return Decision::Connected;
            }
            // The flag makes no event, so it is looked at: often at first, ever less often later; never more than an
            // eighth late.
            let pause = (self.began.elapsed() / 8).clamp(Duration::from_millis(1), Duration::from_millis(100));
            let next = deadline.min(Instant::now() + pause);
            tokio::select! {
                biased;
                exit = self.helper.child.exited() => {
                    // Over already, and the flag with it, unless the child was killed.
                    let served = matches!(exit, Exit::Code(code) if SetUp::from_exit(code).is_the_services());
                    if served || self.connected() || self.from.unread() > 0 {
                        return Decision::Connected; // what it wrote is in the pipe
                    }
                    let by_code = exit.code().map(SetUp::from_exit);
                    let refused = || self.helper.stderr.says_refused(&mut said).then_some(SetUp::Refused);
                    return Decision::Failed(Failure::Call(by_code.or_else(refused)));
                }
                () = abandoned(peer) => return Decision::Failed(Failure::PeerGone),
                () = self.from.readable(), if !output_ended => {
                    if self.from.unread() > 0 {
                        return Decision::Connected;
                    }
                    output_ended = true; // without a byte: the flag or the exit code will tell why
                }
                () = self.helper.stderr.drain(&mut said) => {}
                () = sleep_until(next) => {
                    if Instant::now() >= deadline {
                        return Decision::Failed(Failure::TimedOut(allowed));
                    }
                }
            }
        }
    }

    /// Waits, once the call is connected, until the service has sent a byte, has ended, or has done neither for a
    /// moment: whether it is still connected then.
    ///
    /// # Cancel safety
    /// Safe: the call goes on, and this can be called again.
    pub async fn settled(&mut self, peer: &Stream, mut said: impl FnMut(String)) -> Decision {
        let until = Instant::now() + SETTLE;
        let mut output_ended = false;
        while self.from.unread() == 0 {
            tokio::select! {
                biased;
                exit = self.helper.child.exited() => {
                    let what = exit.code().map(SetUp::from_exit).filter(|what| what.never_began());
                    return match what {
                        Some(what) if self.from.unread() == 0 => Decision::Failed(Failure::Call(Some(what))),
                        _ => Decision::Connected,
                    };
                }
                () = abandoned(peer) => return Decision::Failed(Failure::PeerGone),
                () = self.from.readable(), if !output_ended => output_ended = self.from.unread() == 0,
                () = self.helper.stderr.drain(&mut said) => {}
                () = sleep_until(until) => break,
            }
        }
        Decision::Connected
    }

    /// How long the call has taken so far.
    pub fn taken(&self) -> Duration {
        self.began.elapsed()
    }

    /// Our end of the child's standard input, of its output, and the second descriptor of its standard input.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.to.as_fd(), self.from.as_fd(), self.probe.as_fd()]
    }

    /// The parts of a connected call.
    pub fn into_parts(self) -> Parts {
        Parts { helper: self.helper, from: self.from, to: self.to, probe: self.probe }
    }

    /// Takes a call in set-up off the runtime: it is never asked again.
    pub fn park(self) -> (Helper, ParkedCall) {
        let pipes = [self.to.into_fd(), self.from.into_fd(), self.probe];
        (self.helper, ParkedCall { pipes, taken: self.began.elapsed() })
    }

    /// Takes up what [`LiveCall::park`] gave another process.
    pub fn resume(helper: Helper, parked: ParkedCall) -> io::Result<Self> {
        let [to, from, probe] = parked.pipes;
        let now = Instant::now();
        Ok(Self {
            helper,
            to: Stream::new(to, StreamKind::PipeWriter)?,
            from: Stream::new(from, StreamKind::PipeReader)?,
            probe,
            began: now.checked_sub(parked.taken).unwrap_or(now),
        })
    }
}

/// A pipe, close-on-exec and blocking: reading end, writing end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// Our end of a child's pipe, made non-blocking: the child's end is a separate description and stays as it is.
fn stream(fd: OwnedFd, kind: StreamKind) -> io::Result<Stream> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Stream::new(fd, kind)
}
