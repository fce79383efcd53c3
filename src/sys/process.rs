//! This process, its children and other processes.
#![allow(unsafe_code)]

use std::{
    ffi::{CString, OsStr},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

use nix::sys::signal::SigSet;

use super::descriptor::own;

/// Variables by which systemd speaks to this process alone (sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3)).
/// No child may see them: systemd would take a child's message to NOTIFY_SOCKET for a message of the service.
/// The directory of credentials and the invocation's id are the service's, too (systemd.exec(5)).
pub const OURS_ALONE: [&str; 8] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
];

/// Removes variables from the environment.
///
/// # Panics
/// When another thread exists: the environment is not to be touched then (environ(7), setenv(3) "MT-Unsafe").
pub fn unset_env<S: AsRef<OsStr>>(names: &[S]) {
    assert_eq!(thread_count(), 1, "the environment is changed before the first thread");
    for name in names {
        // SAFETY: this process has one thread (checked above), so nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
}

#[cfg(feature = "remote")]
/// Whether this process ignores a signal.
pub fn is_ignored(signal: libc::c_int) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call writes the one in force, into memory of ours of that size.
    let known = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } == 0;
    // SAFETY: a `sigaction` of zeros is valid, and so is what the call has written.
    known && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Threads of this process, from /proc/self/task; 1 where /proc cannot tell.
fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

/// Asks the allocator to give back what it does not use (malloc_trim(3)); only glibc's keeps much.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called by any thread at any time ("MT-Safe"), and touches nothing in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// From now on this process ends, by SIGPIPE, when nobody reads what it prints: for programs that only print. Rust's
/// start-up has had the signal ignored, and `println!` panics at EPIPE.
pub fn end_with_the_reader() {
    // SAFETY: the default action replaces no handler that anybody relies on; signal(2) touches no memory of ours.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// A descriptor that stands for the process `pid` (pidfd_open(2), Linux 5.3); close-on-exec.
///
/// # Errors
/// ESRCH when there is no such process; EMFILE and its kin.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(own(fd))
}

/// Sends `signal` to the process behind a pidfd (pidfd_send_signal(2)): never to another that got its number.
///
/// # Errors
/// ESRCH when it is gone.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is passed (NULL is allowed), the other arguments are integers.
    let r = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How the process behind a pidfd ended, as wait(2) has it, when that was collected already by whoever is its parent
/// now (PIDFD_GET_INFO with PIDFD_INFO_EXIT of linux/pidfd.h, Linux 6.15); `None` while it was not.
///
/// # Errors
/// ENOTTY, EINVAL or ESRCH where the kernel does not keep it.
pub fn pidfd_exit(pidfd: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    /// `struct pidfd_info` in its first version, 64 bytes.
    #[repr(C)]
    #[derive(Default)]
    struct ExitInfo {
        mask: u64,
        cgroup: u64,
        /// Process, group, parent, and eight user and group ids.
        ids: [u32; 11],
        exit: i32,
    }
    const EXIT: u64 = 1 << 3;
    /// `_IOWR(0xff, 11, struct pidfd_info)`.
    const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;
    let mut info = ExitInfo { mask: EXIT, ..ExitInfo::default() };
    // SAFETY: the request reads and writes as many bytes as its number says (64), which is the size of `info`.
    if unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.mask & EXIT != 0).then_some(info.exit))
}

/// Has every descriptor from 3 on closed when another program is executed: what came from whoever started this one is
/// nobody's business (close_range(2), Linux 5.11).
pub fn inherit_nothing() {
    // SAFETY: close_range takes three integers; with CLOSE_RANGE_CLOEXEC it closes nothing now, so no owner loses its
    // descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Whom a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Has `command` lead a separate session, with its standard input as the controlling terminal when `tty`; it dies
/// with the thread that started it; it runs as somebody else when told so; it enters `directory` as whom it runs, with
/// that umask and no signal blocked.
pub fn lead_session(
    command: &mut std::process::Command,
    tty: bool,
    identity: Option<Identity>,
    directory: WorkingDirectory,
    umask: u32,
) {
    use std::os::unix::process::CommandExt as _;
    let WorkingDirectory { path, missing } = directory;
    let prepare = move || {
        // SAFETY: system calls with integers, and pointers to a vector and a C string that outlive the calls; all of
        // them are async-signal-safe.
        let failed = unsafe {
            libc::setsid() < 0
                || tty && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0
                || identity.as_ref().is_some_and(|id| {
                    libc::setgroups(id.groups.len(), id.groups.as_ptr()) < 0
                        || libc::setgid(id.gid) < 0
                        || libc::setuid(id.uid) < 0
                })
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0
                || libc::chdir(path.as_ptr()) < 0 && (missing == Unenterable::Fault || libc::chdir(c"/".as_ptr()) < 0)
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a system call with an integer; it cannot fail.
        unsafe { libc::umask(umask) };
        // whoever starts the command has SIGCHLD blocked, for a descriptor; a shell that waits would wait for ever
        SigSet::empty().thread_set_mask().map_err(io::Error::from)
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock (signal-safety(7)).
    unsafe { command.pre_exec(prepare) };
}

/// Where a command runs.
#[derive(Debug)]
pub struct WorkingDirectory {
    pub path: CString,
    /// What becomes of a command whose user cannot enter the directory.
    pub missing: Unenterable,
}

/// What becomes of a command whose user cannot enter its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unenterable {
    /// The command does not start.
    Fault,
    /// The command runs in `/`.
    Root,
}

/// Whether a user of this name exists; one whom nobody can look up is believed to.
pub fn user_exists(name: &str) -> bool {
    !matches!(nix::unistd::User::from_name(name), Ok(None))
}

/// What a child with one thread and with copies of all descriptors gives back, between 0 and 255; for tests of what may
/// be done before the first thread only.
#[cfg(all(test, feature = "forward"))]
pub fn forked(task: impl FnOnce() -> u8) -> u8 {
    use nix::{
        sys::wait::{WaitStatus, waitpid},
        unistd::{ForkResult, fork},
    };
    // SAFETY: the child has one thread, and ends without a destructor of what other threads had.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => match waitpid(child, None).expect("our child") {
            WaitStatus::Exited(_, code) => u8::try_from(code).expect("a byte"),
            other => panic!("{other:?}"),
        },
        ForkResult::Child => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task)).unwrap_or(u8::MAX);
            // SAFETY: ends the process.
            unsafe { libc::_exit(code.into()) }
        }
    }
}
