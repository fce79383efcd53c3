//! What ExecReload= runs: it asks the service to read its configuration again, and waits for the answer.
//!
//! # Theory
//! What ExecReload= starts has to end when the new configuration is in force (systemd.service(5)). A signal alone gives
//! no answer, and kill(1) has often ended, and the manager closed the job, before the service gets to say RELOADING=1.
//! So [`ask`] binds a datagram socket in the unit's runtime directory, which no one else may write to, sends SIGHUP and
//! waits there. After the reload the service writes to that socket, if it is there ([`answer`]): nothing, or why the
//! new configuration is not used, and what is not served with it.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::net::UnixDatagram,
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, UnixAddr, sendto},
};

use super::{headroom::datagrams, unit::runtime_directory};
use crate::{
    log::{Kind, say},
    sys,
};

/// Where an answer is waited for, in the runtime directory.
const ANSWER: &str = "reload";
/// How long the service may take; less than TimeoutStartSec=, by which the manager measures it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest answer, in bytes: a datagram of this size fits wherever it is sent.
const LONGEST: usize = 16 << 10;

/// Why a reload counts as failed.
#[derive(Debug)]
pub enum ReloadFailure {
    /// The service's answer: the new configuration is not used, or not all of it is served. The service has logged it.
    Answered(String),
    /// How the reload went is not known, and why.
    Unknown(String),
}

/// Has the process `pid`, a service of ours, read its configuration again, and waits until it has.
///
/// # Errors
/// The answer of the service, where something is not served; or why there is no answer.
pub fn ask(pid: u32) -> Result<(), ReloadFailure> {
    let directory = runtime_directory().ok_or_else(|| {
        let why = "RUNTIME_DIRECTORY is not set: this is for ExecReload= of a unit that has one";
        ReloadFailure::Unknown(why.to_owned())
    })?;
    let path = directory.join(ANSWER);
    let failed = |doing: &str, e: io::Error| ReloadFailure::Unknown(format!("cannot {doing}: {e}"));
    let process = sys::pidfd_open(pid).map_err(|e| failed(&format!("find process {pid}"), e))?;
    let _ = fs::remove_file(&path); // of one that was killed
    let answer = UnixDatagram::bind(&path).map_err(|e| failed(&format!("wait at {}", path.display()), e))?;
    let asked = sys::pidfd_send_signal(process.as_fd(), libc::SIGHUP)
        .map_err(|e| failed(&format!("send SIGHUP to process {pid}"), e));
    let answered = asked.and_then(|()| {
        let mut fds = [PollFd::new(answer.as_fd(), PollFlags::POLLIN), PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
        poll(&mut fds, timeout).map_err(|e| failed("wait for the answer", e.into()))?;
        if fds[0].any() != Some(true) {
            let ended = fds[1].any() == Some(true);
            let why = if ended { "the service has ended" } else { "the service does not answer" };
            return Err(ReloadFailure::Unknown(why.to_owned()));
        }
        let mut bytes = vec![0; LONGEST];
        let len = answer.recv(&mut bytes).map_err(|e| failed("read the answer", e))?;
        match String::from_utf8_lossy(&bytes[..len]) {
            why if why.is_empty() => Ok(()),
            why => Err(ReloadFailure::Answered(why.into_owned())),
        }
    });
    let _ = fs::remove_file(&path);
    answered
}

/// Tells whoever waits for it in the runtime directory, if anybody does, how a reload went.
pub fn answer(result: Result<(), &str>) {
    let Some(directory) = runtime_directory() else { return };
    let text = result.err().unwrap_or_default().as_bytes();
    // Whoever waits hears of it even where sessions have every other descriptor.
    let Some(socket) = datagrams() else { return };
    let sent = UnixAddr::new(&directory.join(ANSWER))
        .and_then(|to| sendto(socket.as_raw_fd(), &text[..text.len().min(LONGEST)], &to, MsgFlags::MSG_DONTWAIT));
    match sent {
        // Nobody waits: the signal came by hand.
        Ok(_) | Err(Errno::ENOENT | Errno::ECONNREFUSED) => {}
        Err(e) => say(Kind::ControlTrouble, format!("the reload is done, and its answer cannot be sent: {e}")),
    }
}
