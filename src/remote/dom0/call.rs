//! Programs that reach a VM or read what it says: `qvm-run`, `qvm-check`, the parser.

use std::{
    io,
    os::fd::OwnedFd,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::{
    process::{Child, Command},
    sync::Semaphore,
    time::timeout,
};

use super::state::StartError;
use crate::{
    remote::{frames::Frames, parser::FIRST_UID, pipe::AsyncPipe},
    sys,
};

/// VMs that are looked for at a time.
const SIDE_BY_SIDE: usize = 32;

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
        Ok(status) if status.code().is_some() => Err(StartError::NoSuchVm(vm.to_owned())),
        Ok(status) => Err(StartError::Io("qvm-check".into(), io::Error::other(status.to_string()))),
        Err(e) => Err(StartError::Io("qvm-check".into(), e)),
    }
}

/// Which VMs of a list are served.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) served: Vec<String>,
    /// Names that no VM has.
    pub(super) missing: Vec<String>,
    /// All names, where qvm-check itself does not work.
    pub(super) unknown: Vec<String>,
    /// Why the first one of the others, or of all, was not found.
    pub(super) fault: Option<StartError>,
}

/// Looks for the VMs of a list, side by side. One about which nothing can be learned is served: its channel will tell.
pub(super) async fn check(names: &[String]) -> Checked {
    let places = Arc::new(Semaphore::new(SIDE_BY_SIDE));
    let check = |name: &String| {
        let (name, places) = (name.clone(), places.clone());
        tokio::spawn(async move {
            let _place = places.acquire_owned().await;
            let found = exists(&name).await;
            (name, found)
        })
    };
    let (mut checked, mut unknown) = (Checked::default(), 0);
    for check in names.iter().map(check).collect::<Vec<_>>() {
        let Ok((name, found)) = check.await else { continue };
        match found {
            Ok(()) => checked.served.push(name),
            Err(fault @ StartError::NoSuchVm(_)) => {
                checked.missing.push(name);
                checked.fault.get_or_insert(fault);
            }
            Err(fault) => {
                unknown += 1;
                checked.served.push(name);
                checked.fault = Some(fault);
            }
        }
    }
    if unknown == names.len() {
        checked.unknown = std::mem::take(&mut checked.served);
    }
    checked
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
