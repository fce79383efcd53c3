//! Kills of a process at a chosen moment: before a system call, after it, or some instructions later (ptrace(2)).

use std::{
    collections::HashSet,
    fs,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::PATIENCE;

/// When a process is killed.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// At one of these system calls (their numbers).
    pub calls: &'static [i64],
    /// The first ones are left alone, so many.
    pub skip: u32,
    /// Before the call, or after it.
    pub before: bool,
    /// After it so many instructions of the thread are carried out.
    pub steps: u32,
}

/// How long a process is watched for its moment.
const WATCH: Duration = Duration::from_millis(500);

/// Kills a process at this moment, or when that does not come: the number of the call, where it came. The caller must not
/// have traced anything else.
///
/// # Panics
/// Where the process cannot be traced.
#[cfg(target_arch = "x86_64")]
pub fn strike(pid: u32, moment: Moment) -> Option<i64> {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a process id"));
    let mut threads = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten() {
        let thread = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw);
        let thread = thread.expect("a thread id");
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
        if ptrace::seize(thread, options).is_ok() && ptrace::interrupt(thread).is_ok() {
            threads.insert(thread);
        }
    }
    assert!(!threads.is_empty(), "{pid} cannot be traced");
    let hit = watch(&threads, moment);
    let _ = kill(pid, Signal::SIGKILL);
    // Each thread that is traced has to be collected before the process is gone; the first one ends last.
    let deadline = Instant::now() + PATIENCE;
    while !threads.is_empty() && Instant::now() < deadline {
        threads.retain(|thread| {
            let status = waitpid(*thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
            !matches!(status, Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD))
        });
        std::thread::yield_now();
    }
    hit
}

/// Lets the threads run from system call to system call until the moment is there: the number of the call.
#[cfg(target_arch = "x86_64")]
fn watch(threads: &HashSet<Pid>, moment: Moment) -> Option<i64> {
    let (deadline, mut skip) = (Instant::now() + WATCH, moment.skip);
    let mut inside = HashSet::new();
    while Instant::now() < deadline {
        let mut stopped = false;
        for thread in threads {
            let status = match waitpid(*thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                Ok(status) => status,
                Err(Errno::ECHILD) => return None,
                Err(_) => continue,
            };
            match status {
                WaitStatus::PtraceSyscall(_) => {
                    stopped = true;
                    let Ok(registers) = ptrace::getregs(*thread) else { continue };
                    let call = registers.orig_rax as i64;
                    // At its entry a call has no result yet.
                    let entry = registers.rax as i64 == -i64::from(Errno::ENOSYS as i32) && inside.insert(*thread);
                    if !entry {
                        inside.remove(thread);
                    }
                    if moment.calls.contains(&call) && entry == moment.before {
                        if skip == 0 {
                            step(*thread, if entry { 0 } else { moment.steps });
                            return Some(call);
                        }
                        skip -= 1;
                    }
                    let _ = ptrace::syscall(*thread, None);
                }
                WaitStatus::PtraceEvent(..) => {
                    stopped = true;
                    let _ = ptrace::syscall(*thread, None);
                }
                WaitStatus::Stopped(_, signal) => {
                    stopped = true;
                    let signal = (signal != Signal::SIGTRAP && signal != Signal::SIGSTOP).then_some(signal);
                    let _ = ptrace::syscall(*thread, signal);
                }
                WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return None,
                _ => {}
            }
        }
        if !stopped {
            std::thread::yield_now();
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
fn step(thread: Pid, steps: u32) {
    for _ in 0..steps {
        // A call that blocks ends it.
        let deadline = Instant::now() + Duration::from_millis(20);
        if ptrace::step(thread, None).is_err() {
            return;
        }
        while matches!(waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive)) {
            if Instant::now() > deadline {
                return;
            }
        }
    }
}

/// Elsewhere it is killed at any moment.
#[cfg(not(target_arch = "x86_64"))]
pub fn strike(pid: u32, _moment: Moment) -> Option<i64> {
    let _ = kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), Signal::SIGKILL);
    None
}
