//! The parent of one command: `qvm-remote-dom0 supervise`, which the daemon starts.
//!
//! It adopts whatever the command's processes leave behind (PR_SET_CHILD_SUBREAPER), however they daemonise, so the
//! whole tree can be found and ended; and it ends that tree by itself when the daemon goes away. So a command never
//! outlives the one who answers for it, and a daemon that crashed has nothing to clean up.
//!
//! It starts with a socket to the daemon as its standard input ([`backchannel`]), and waits there for its command: a plan
//! ([`SupervisorPlan`]) and the command's standard input, output and error; descriptor 4 is the text that a script reads.
//! All of a tree that is ended gets TERM, and KILL after five seconds.
//!
//! # The text of a script
//! bash opens `/dev/fd/4` again and reads the text from that descriptor of its own, which no child inherits. Descriptor 4
//! itself would be inherited by every child, which could read the text, or rewrite what bash has not read yet. So the file
//! is sealed ([`script_file`]): nobody changes it any more, root included. And the text has [`CLOSE_SCRIPT`] in front of
//! its first line, so that the shell closes descriptor 4 before anything else runs. The lines keep their numbers; a first
//! line `#!…` is a comment as before.

use std::{
    collections::HashMap,
    ffi::CString,
    fs,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl,
        resource::{Resource, getrlimit, setrlimit},
        signal::{SigSet, Signal, kill, killpg},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    backchannel::{self, Given, Instruction},
    plan::SupervisorPlan,
};
use crate::{
    log::escape,
    proto::remote::Ending,
    sys::{
        self, Unenterable, WorkingDirectory,
        proc::{self, Process},
    },
};

/// The number of the descriptor with the command's text, where it is a script.
pub const SCRIPT: i32 = 4;
/// What stands in front of the text of a script, for any POSIX shell.
pub const CLOSE_SCRIPT: &[u8] = b"exec 4<&-; ";
/// Between TERM and KILL.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often what is left is killed again: a tree may grow while it is being ended.
const AGAIN: Duration = Duration::from_millis(20);

/// Waits for a command and runs it to its end.
///
/// # Errors
/// What could not be set up; the daemon then sees the stream end without an ending.
pub fn run() -> io::Result<ExitCode> {
    let daemon = backchannel::Daemon::inherited()?;
    let null = backchannel::above(fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.as_fd())?;
    // the numbers of the command's descriptors belong to nothing else
    for number in [0, 1, 2, SCRIPT] {
        std::mem::forget(sys::place(null.as_fd(), number)?);
    }
    prctl::set_child_subreaper(true)?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    let signals = SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let _ = nix::unistd::setsid(); // a leader of a group already is fine, too
    let Some(Given { plan, standard, script }) = daemon.command()? else { return Ok(ExitCode::SUCCESS) };
    let plan = SupervisorPlan::read(plan)?;
    for (number, fd) in (0..).zip(standard) {
        std::mem::forget(sys::place(fd.as_fd(), number)?);
    }
    let place = sys::own(SCRIPT);
    let script = match script {
        Some(file) => {
            std::mem::forget(place);
            Some(sys::place(file.as_fd(), SCRIPT)?)
        }
        None => {
            drop(place); // the number is free
            None
        }
    };
    let home = plan.cgroup.as_deref().and_then(enter);
    let started = start(&plan);
    if let Some(home) = home {
        let _ = fs::write(home.join("cgroup.procs"), "0"); // only the command stays inside
    }
    let mut tree = Tree { leader: None, cgroup: plan.cgroup, ending: None };
    match started {
        Ok(pid) => tree.leader = Some(pid),
        Err(NotStarted { status, text }) => {
            let _ = writeln!(io::stderr(), "qvm-remote-dom0: {text}");
            daemon.report(Ending::Exit(status))?;
        }
    }
    // the command's own ends must not be held open here
    for number in 0..=2 {
        std::mem::forget(sys::place(null.as_fd(), number)?);
    }
    drop(script);
    tree.watch(&daemon, &signals)
}

/// Why a command was not started: the exit status that a shell would give, and what its client reads.
struct NotStarted {
    status: u8,
    text: String,
}

fn start(plan: &SupervisorPlan) -> Result<Pid, NotStarted> {
    let name = escape(plan.words.first().map_or(b"", |word| word.as_bytes()));
    let Some(program) = &plan.program else {
        return Err(NotStarted { status: 127, text: format!("{name}: no such program in dom0") });
    };
    let failed = |e: io::Error| {
        // the kernel does not say which of the two was missing
        let directory = escape(plan.cwd.as_os_str().as_bytes());
        match e.kind() {
            io::ErrorKind::NotFound if plan.cwd_optional || plan.cwd.is_dir() => {
                NotStarted { status: 127, text: format!("{name}: {e}") }
            }
            _ => NotStarted { status: 126, text: format!("{name}, in {directory}: {e}") },
        }
    };
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, plan.descriptors.min(hard), hard); // the daemon raised its own
    }
    let directory = CString::new(plan.cwd.as_os_str().as_bytes()).map_err(|e| failed(e.into()))?;
    let mut command = Command::new(program);
    let mut words = plan.words.iter();
    words.next().into_iter().for_each(|name| _ = command.arg0(name));
    command.args(words).env_clear().envs(plan.env.iter().map(|(name, value)| (name, value)));
    let missing = if plan.cwd_optional { Unenterable::Root } else { Unenterable::Fault };
    sys::lead_session(
        &mut command,
        plan.tty,
        plan.identity.clone(),
        WorkingDirectory { path: directory, missing },
        plan.umask,
    );
    let child = command.spawn().map_err(failed)?;
    Ok(Pid::from_raw(i32::try_from(child.id()).map_err(|e| failed(io::Error::other(e)))?))
}

/// A file without a name that holds a script for a shell that reads it as descriptor [`SCRIPT`], and that nobody can
/// change.
///
/// # Errors
/// What memfd_create(2), write(2) and fcntl(2) say.
pub fn script_file(text: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(c"command", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    for mut part in [CLOSE_SCRIPT, text] {
        while !part.is_empty() {
            part = &part[nix::unistd::write(&file, part)?..];
        }
    }
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// Enters the command's group; where we come from.
fn enter(cgroup: &Path) -> Option<PathBuf> {
    let own = Process::own().groups().unified()?.trim_start_matches('/').to_owned();
    let home = proc::unified_hierarchy()?.join(own);
    fs::write(cgroup.join("cgroup.procs"), "0").ok()?;
    Some(home)
}

struct Tree {
    /// The command itself, until it was waited for.
    leader: Option<Pid>,
    cgroup: Option<PathBuf>,
    /// When TERM turns into KILL, once the tree is being ended.
    ending: Option<Instant>,
}

impl Tree {
    fn watch(mut self, daemon: &backchannel::Daemon, signals: &SignalFd) -> io::Result<ExitCode> {
        let mut heard = true;
        loop {
            let wait = match self.ending {
                Some(_) => PollTimeout::from(u16::try_from(AGAIN.as_millis()).unwrap_or(20)),
                None => PollTimeout::NONE,
            };
            let mut fds =
                [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(daemon.as_fd(), PollFlags::POLLIN)];
            let watched = if heard { 2 } else { 1 };
            match poll(&mut fds[..watched], wait) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            if heard && fds[1].any().unwrap_or(false) {
                match daemon.instruction() {
                    Some(Instruction::Leave) if self.ending.is_none() => return Ok(ExitCode::SUCCESS),
                    Some(Instruction::Leave) => {}
                    Some(Instruction::Signal(number)) => self.signal(number),
                    Some(Instruction::End) => self.end(),
                    None => {
                        heard = false;
                        self.end();
                    }
                }
            }
            while let Ok(Some(_)) = signals.read_signal() {}
            let anybody = self.reap(daemon);
            if let Some(deadline) = self.ending {
                if !anybody {
                    return Ok(ExitCode::SUCCESS);
                }
                if Instant::now() >= deadline {
                    self.kill();
                }
            }
        }
    }

    /// Waits for whoever has ended; whether anybody is left.
    fn reap(&mut self, daemon: &backchannel::Daemon) -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => return true,
                Ok(status) => {
                    if self.leader.is_some() && status.pid() == self.leader {
                        self.leader = None;
                        let ending = match status {
                            WaitStatus::Exited(_, code) => Ending::Exit(u8::try_from(code & 0xff).unwrap_or(255)),
                            WaitStatus::Signaled(_, signal, _) => {
                                Ending::Signal(u8::try_from(signal as i32).unwrap_or(9))
                            }
                            _ => continue,
                        };
                        let _ = daemon.report(ending);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn signal(&self, number: u8) {
        if let (Some(leader), Ok(signal)) = (self.leader, Signal::try_from(i32::from(number))) {
            let _ = killpg(leader, signal);
        }
    }

    /// Begins to end the tree.
    fn end(&mut self) {
        if self.ending.is_none() {
            self.ending = Some(Instant::now() + PATIENCE);
            for pid in descendants() {
                let _ = kill(pid, Signal::SIGTERM);
                let _ = kill(pid, Signal::SIGCONT); // a stopped process does not hear TERM
            }
        }
    }

    fn kill(&self) {
        if let Some(cgroup) = &self.cgroup {
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        }
        for pid in descendants() {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Everyone below this process.
fn descendants() -> Vec<Pid> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for (pid, process) in Process::all() {
        let Some(stat) = process.stat() else { continue };
        children.entry(stat.parent().unwrap_or(0)).or_default().push(pid);
    }
    let (mut found, mut look) = (Vec::new(), vec![std::process::id()]);
    while let Some(pid) = look.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            found.extend(i32::try_from(child).ok().map(Pid::from_raw));
            look.push(child);
        }
    }
    found
}

/// Kills every process that has the id of this command and the name of its qube in its environment: for the case that its
/// supervisor was killed, so that nobody else can tell its tree. Two qubes may have a command with the same id each.
pub fn kill_marked(vm: &[u8], id: &[u8]) {
    if vm.is_empty() || id.is_empty() {
        return;
    }
    let marks = [[b"QVM_REMOTE_VM=", vm].concat(), [b"QVM_REMOTE_ID=", id].concat()];
    for (pid, process) in Process::all() {
        let environment = process.environment();
        let marked = marks.iter().all(|mark| environment.contains(mark));
        if let (true, Ok(pid)) = (marked, i32::try_from(pid)) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// What a shell prints that reads this text as a script of ours.
    fn printed(shell: &str, text: &[u8]) -> String {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("exec {shell} /dev/fd/{SCRIPT} {SCRIPT}<&0 </dev/null")]);
        command.stdin(script_file(text).expect("a file in memory")).stderr(Stdio::piped()).stdout(Stdio::piped());
        let output = command.output().unwrap_or_else(|e| panic!("{shell}: {e}"));
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    #[test]
    fn a_script_is_read_whole_and_its_children_have_no_descriptor_of_it() {
        for shell in ["/bin/bash", "/bin/dash"] {
            for text in [":", "\n", "#!/nosuch", "#!/nosuch\n:"] {
                assert_eq!(printed(shell, text.as_bytes()), "", "{shell} {text:?}");
            }
            let large = format!("echo begin\n{}\necho end", "#".repeat((1 << 20) - 20));
            assert_eq!(printed(shell, large.as_bytes()), "begin\nend\n", "{shell}");
            let children = "ls -l /proc/self/fd | grep -c memfd; sh -c 'exec cat <&4' 2>/dev/null || echo closed";
            assert_eq!(printed(shell, children.as_bytes()), "0\nclosed\n", "{shell}");
            let fault = printed(shell, b"#!/bin/sh\n\nnosuch-command\n");
            assert!(fault.contains(": 3: ") || fault.contains("line 3: "), "{shell}: {fault}");
        }
    }

    #[test]
    fn a_command_of_another_qube_with_the_same_id_lives() {
        let start = |vm: &str, id: &str| {
            let mut command = Command::new("/bin/sleep");
            command.arg("60").env("QVM_REMOTE_VM", vm).env("QVM_REMOTE_ID", id).spawn().expect("started")
        };
        let mut others = [start("kill-b", "kill-1"), start("kill-a", "kill-2"), start("kill-a", "kill-11")];
        let mut own = start("kill-a", "kill-1");
        kill_marked(b"kill-a", b"");
        kill_marked(b"", b"kill-1");
        assert!(own.try_wait().expect("ours").is_none(), "half a mark is none");
        kill_marked(b"kill-a", b"kill-1");
        assert!(!own.wait().expect("ours").success());
        for other in &mut others {
            assert!(other.try_wait().expect("ours").is_none(), "{other:?}");
            other.kill().and_then(|()| other.wait()).expect("ours");
        }
    }

    #[test]
    fn nobody_changes_a_script_any_more() {
        use std::io::{Read as _, Seek as _};
        let file = fs::File::from(script_file(b"echo x\n").expect("a file in memory"));
        assert_eq!((&file).write_all(b"x").map_err(|e| e.kind()), Err(io::ErrorKind::PermissionDenied));
        assert!(file.set_len(0).is_err() && file.set_len(1 << 10).is_err());
        assert!(fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::empty())).is_err());
        let (mut file, mut text) = (file, String::new());
        file.rewind().and_then(|()| file.read_to_string(&mut text)).expect("read");
        assert_eq!(text, "exec 4<&-; echo x\n");
    }
}
