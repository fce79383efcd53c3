//! Programs that reach a VM or read what it says: `qvm-run`, `qvm-check`, the parser.

use std::{
    io,
    os::fd::OwnedFd,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::state::StartError;
use crate::{
    remote::{frames::Frames, parser::FIRST_UID, pipe::AsyncPipe},
    sys,
};

/// The number of the next parser.
static NEXT_UID: AtomicU32 = AtomicU32::new(0);

/// Whether a VM exists.
///
/// # Errors
/// It does not, or `qvm-check` cannot be asked.
pub(super) async fn exists(vm: &str) -> Result<(), StartError> {
    let mut command = Command::new("qvm-check");
    command.arg(vm).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let status = timeout(Duration::from_secs(30), command.status()).await;
    match status.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(StartError::NoSuchVm(vm.to_owned())),
        Err(e) => Err(StartError::Io("qvm-check".into(), e)),
    }
}

/// `qvm-run` as it is always called: no window, never starting a VM.
pub(super) fn qvm_run(vm: &str, command: &str) -> Command {
    let mut call = Command::new("qvm-run");
    call.args(["--no-gui", "--no-autostart", "--pass-io", vm, command]);
    call.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    for name in sys::OURS_ALONE {
        call.env_remove(name);
    }
    call
}

/// The process that reads what comes from a VM: what it reads from, and where its frames come out.
/// `parse` is the hidden command that reads.
pub(super) fn parser(parse: &str) -> io::Result<(Child, OwnedFd, Frames<AsyncPipe>)> {
    let (raw_read, raw_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (frames_read, frames_write) = pipe2(OFlag::O_CLOEXEC)?;
    let uid = FIRST_UID + NEXT_UID.fetch_add(1, Relaxed) % 0x0100_0000;
    let mut command = Command::new("/proc/self/exe");
    command.arg(parse).arg(format!("--uid={uid}")).env_clear();
    command.stdin(raw_read).stdout(frames_write).stderr(Stdio::null()).kill_on_drop(true);
    Ok((command.spawn()?, raw_write, Frames::new(AsyncPipe::reader(frames_read)?)))
}
