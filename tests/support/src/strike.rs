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

/// Where a process was killed that was stepped through what it does about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepped {
    /// It did nothing about it.
    NotWoken,
    /// After so many instructions.
    At(u32),
    /// All was done, in so many instructions.
    Through(u32),
}

/// How long a process is watched for its moment.
const WATCH: Duration = Duration::from_millis(500);

/// How long a thread sleeps that has handled an event.
const QUIET: Duration = Duration::from_millis(60);
/// How long a process is waited for and stepped through: on a busy machine each step takes its time, and the service has a
/// watchdog.
const LONGEST: Duration = Duration::from_secs(5);

/// Kills a process at this moment, or when that does not come: the number of the call, where it came. The caller must not
/// have traced anything else.
///
/// # Panics
/// Where the process cannot be traced.
#[cfg(target_arch = "x86_64")]
pub fn strike(pid: u32, moment: Moment) -> Option<i64> {
    let mut threads = trace(pid);
    let hit = watch(&threads, moment);
    end(pid, &mut threads);
    hit
}

/// Kills a process after so many instructions of what it does about an `event`, which is caused when the process waits for
/// events; earlier where they take long.
///
/// # Panics
/// Where the process cannot be traced, or has nothing to do.
#[cfg(target_arch = "x86_64")]
pub fn strike_in_event(pid: u32, steps: u32, event: impl FnOnce()) -> Stepped {
    /// epoll_wait, epoll_pwait, epoll_pwait2
    const WAITS: &[i64] = &[232, 281, 441];
    let mut threads = trace(pid);
    let at = |before| Moment { calls: WAITS, skip: 0, before, steps: 0 };
    let waits = watch_for(&threads, at(true), LONGEST, |_| true);
    let (waiting, _) = waits.expect("it waits for events");
    let _ = ptrace::syscall(waiting, None);
    event();
    let woken = watch_for(&threads, at(false), LONGEST, |result| result > 0);
    let done = woken.map_or(Stepped::NotWoken, |(thread, _)| {
        // The others are not to wait for us.
        for other in threads.iter().filter(|other| **other != thread) {
            let _ = ptrace::cont(*other, None);
        }
        step_until_quiet(pid, thread, &threads, steps)
    });
    end(pid, &mut threads);
    done
}

/// Traces all threads of a process, which are stopped.
#[cfg(target_arch = "x86_64")]
fn trace(pid: u32) -> HashSet<Pid> {
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
    threads
}

/// Kills a process that is traced.
#[cfg(target_arch = "x86_64")]
fn end(pid: u32, threads: &mut HashSet<Pid>) {
    let _ = kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), Signal::SIGKILL);
    // Each thread that is traced has to be collected before the process is gone; the first one ends last.
    let deadline = Instant::now() + PATIENCE;
    while !threads.is_empty() && Instant::now() < deadline {
        threads.retain(|thread| {
            let status = waitpid(*thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
            !matches!(status, Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD))
        });
        std::thread::yield_now();
    }
}

/// Steps a thread through so many instructions, or until it sleeps.
#[cfg(target_arch = "x86_64")]
fn step_until_quiet(pid: u32, thread: Pid, threads: &HashSet<Pid>, steps: u32) -> Stepped {
    let sleeps = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('S'))
    };
    let began = Instant::now();
    for done in 0..steps {
        if began.elapsed() > LONGEST {
            return Stepped::At(done);
        }
        if ptrace::step(thread, None).is_err() {
            return Stepped::Through(done);
        }
        let mut asleep: Option<Instant> = None;
        for looks in 1_u32.. {
            match waitpid(thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {}
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return Stepped::Through(done),
                Ok(_) => break,
            }
            if looks % 1000 == 0 {
                for other in threads.iter().filter(|other| **other != thread) {
                    let stopped = waitpid(*other, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
                    if !matches!(stopped, Ok(WaitStatus::StillAlive) | Err(_)) {
                        let _ = ptrace::cont(*other, None);
                    }
                }
                asleep = sleeps().then(|| asleep.unwrap_or_else(Instant::now));
                if asleep.is_some_and(|since| since.elapsed() > QUIET) {
                    return Stepped::Through(done);
                }
                std::thread::yield_now();
            }
        }
    }
    Stepped::At(steps)
}

/// Lets the threads run from system call to system call until the moment is there: the number of the call.
#[cfg(target_arch = "x86_64")]
fn watch(threads: &HashSet<Pid>, moment: Moment) -> Option<i64> {
    let (thread, call) = watch_for(threads, moment, WATCH, |_| true)?;
    step(thread, if moment.before { 0 } else { moment.steps });
    Some(call)
}

/// The same, for a call with such a result: the thread, which is stopped, and the number of the call.
#[cfg(target_arch = "x86_64")]
fn watch_for(
    threads: &HashSet<Pid>,
    moment: Moment,
    longest: Duration,
    such: impl Fn(i64) -> bool,
) -> Option<(Pid, i64)> {
    let (deadline, mut skip) = (Instant::now() + longest, moment.skip);
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
                    let counts = entry || such(registers.rax as i64);
                    if moment.calls.contains(&call) && entry == moment.before && counts {
                        if skip == 0 {
                            return Some((*thread, call));
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

/// Elsewhere it is killed at any moment.
#[cfg(not(target_arch = "x86_64"))]
pub fn strike_in_event(pid: u32, _steps: u32, event: impl FnOnce()) -> Stepped {
    event();
    let _ = kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), Signal::SIGKILL);
    Stepped::NotWoken
}
