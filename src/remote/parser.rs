//! The process that reads a VM's bytes: `qvm-remote-dom0 parse`, one for each channel.
//!
//! It has no key, no privilege, a user id that nobody else has, no file besides its two pipes, and a filter that leaves
//! it nothing but reading, writing, memory and its own end. What it passes on to the daemon are whole frames that a VM
//! may send, each read to the last byte and written again; at the first fault it ends, and with it the channel.
//!
//! So what a VM sends meets first a process in which even arbitrary code could only do what the VM can do anyway: ask.

use std::{
    fs::File,
    io::{self, Write as _},
    mem::ManuallyDrop,
    os::fd::AsFd as _,
    process::ExitCode,
};

use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
    },
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use super::frames::Frames;
use crate::{
    proto::remote::{Frame, MAGIC},
    sys,
};

/// User ids for parsers: one for each channel from here on, in a range that systemd's UIDS-GIDS.md leaves unused.
pub const FIRST_UID: u32 = 0x7000_0000;
/// The exit code of the parser when the VM has no agent.
pub const NO_AGENT: u8 = 3;
/// The exit code of the parser at a fault.
pub const FAULT: u8 = 4;
/// Memory of the process at most, in bytes.
const MEMORY: u64 = 256 << 20;

/// Gives up everything as `uid`, then reads standard input and writes frames to standard output until its end.
///
/// # Errors
/// When privileges cannot be given up: nothing was read then.
pub fn run(uid: u32) -> io::Result<ExitCode> {
    confine(uid)?;
    Ok(frames().map_or_else(ExitCode::from, |()| ExitCode::SUCCESS))
}

/// Gives up every privilege, and everything but reading and writing.
pub(super) fn confine(uid: u32) -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY)?;
    if nix::unistd::geteuid().is_root() {
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
        setgroups(&[])?;
        setresgid(group, group, group)?;
        setresuid(user, user, user)?;
    }
    setrlimit(Resource::RLIMIT_NPROC, 0, 0)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, 0)?;
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    seccompiler::apply_filter(&filter()?).map_err(io::Error::other)
}

/// Reading, writing, memory, the end; anything else ends the process.
fn filter() -> io::Result<BpfProgram> {
    let calls = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_brk,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_close,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let rules = calls.into_iter().map(|call| (call, Vec::new())).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch);
    filter.map_err(io::Error::other)?.try_into().map_err(io::Error::other)
}

/// Standard input and output, unbuffered; closed by the end of the process, for the filter lets no more pass.
pub(super) fn ends() -> (ManuallyDrop<File>, ManuallyDrop<File>) {
    (ManuallyDrop::new(File::from(sys::own(0))), ManuallyDrop::new(File::from(sys::own(1))))
}

/// Passes frames on, each read whole and written again.
fn frames() -> Result<(), u8> {
    let (from, mut to) = ends();
    let mut frames = Frames::new(from.as_fd());
    let mut out = Vec::new();
    let mut greeted = false;
    let mut last_stream = 0;
    loop {
        match frames.fill_blocking() {
            Ok(true) => {}
            Ok(false) => return if greeted { Ok(()) } else { Err(NO_AGENT) },
            Err(_) => return Err(FAULT),
        }
        if !greeted {
            match frames.magic() {
                Some(true) => greeted = true,
                Some(false) => return Err(NO_AGENT),
                None => continue,
            }
            out.extend_from_slice(MAGIC);
        }
        while let Some(whole) = frames.ready().map_err(|_| FAULT)? {
            let raw = whole.raw();
            let stream = raw.stream;
            let frame = if raw.from_vm() { raw.parse().map_err(|_| FAULT)? } else { return Err(FAULT) };
            if matches!(frame, Frame::Open(..) | Frame::V1(..)) {
                if stream <= last_stream {
                    return Err(FAULT); // numbers only grow, so none ever means two commands
                }
                last_stream = stream;
            }
            frame.write(stream, &mut out);
        }
        to.write_all(&out).map_err(|_| FAULT)?;
        out.clear();
    }
}
