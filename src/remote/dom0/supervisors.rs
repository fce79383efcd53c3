//! The processes that look after commands, one each: started, and given their command.
//!
//! A supervisor costs an execve(2) and a dynamic link, which is a fifth of the time of a short command. So while a command
//! runs, one more supervisor is started, which waits for the next command. It has no command's descriptor, environment
//! or group, uses no time, and ends when the daemon does. Until its command comes, its standard error is the daemon's.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{process::Child, time::timeout};

use crate::{
    remote::{
        backchannel::{self, Instructions, Report},
        plan::SupervisorPlan,
    },
    sys::lock,
};

/// A supervisor.
#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) instructions: Instructions,
    pub(super) report: Report,
    pub(super) process: Child,
}

/// What a command gets beside its plan.
#[derive(Debug)]
pub(super) struct CommandEnds {
    /// Standard input, output and error.
    pub(super) standard: [OwnedFd; 3],
    /// The text that the command reads, where it is a script.
    pub(super) script: Option<OwnedFd>,
}

/// Starts supervisors, and keeps the one that waits.
#[derive(Debug, Default)]
pub(super) struct Supervisors {
    waiting: Mutex<Option<Supervisor>>,
}

impl Supervisors {
    /// Gives a command to the supervisor that waits, or to a new one.
    ///
    /// # Errors
    /// Nothing was executed: see [`SupervisorPlan::file`], fork(2), execve(2).
    pub(super) async fn start(self: &Arc<Self>, plan: &SupervisorPlan, ends: &CommandEnds) -> io::Result<Supervisor> {
        let file = plan.file()?;
        let [stdin, stdout, stderr] = ends.standard.each_ref().map(OwnedFd::as_fd);
        let mut descriptors = vec![file.as_fd(), stdin, stdout, stderr];
        descriptors.extend(ends.script.as_ref().map(OwnedFd::as_fd));
        let supervisor = match self.waiting().await {
            Some(supervisor) => supervisor,
            None => Supervisor::start()?,
        };
        supervisor.instructions.command(&descriptors)?;
        let all = self.clone();
        tokio::spawn(async move { all.prepare() });
        Ok(supervisor)
    }

    /// The supervisor that waits. One that was killed or stopped meanwhile gets no command, so nothing begins twice.
    async fn waiting(&self) -> Option<Supervisor> {
        let mut waiting = lock(&self.waiting).take()?;
        if waiting.report.waits(&mut waiting.instructions).await {
            return Some(waiting);
        }
        let _ = waiting.process.start_kill();
        tokio::spawn(waiting.collect(Duration::ZERO));
        None
    }

    /// Starts a supervisor for the next command. Where that fails, the next command tries it and tells why.
    fn prepare(&self) {
        let mut waiting = lock(&self.waiting);
        if waiting.is_none() {
            *waiting = Supervisor::start().ok();
        }
    }
}

impl Supervisor {
    fn start() -> io::Result<Self> {
        let (instructions, report, theirs) = backchannel::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("supervise").env_clear().current_dir("/");
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let process = tokio::process::Command::from(command).spawn()?;
        Ok(Self { instructions, report, process })
    }

    /// Collects the process, which ends by itself, or is killed when it has not after that time.
    pub(super) async fn collect(mut self, patience: Duration) {
        drop(self.instructions); // it sees the end of the stream
        if timeout(patience, self.process.wait()).await.is_err() {
            let _ = self.process.start_kill();
            let _ = self.process.wait().await;
        }
    }
}
