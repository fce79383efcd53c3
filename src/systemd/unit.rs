//! The unit that this process belongs to: its name, its control group, its runtime directory, the keeper beside it.

use std::{
    env, io,
    io::IoSlice,
    os::{
        fd::{AsRawFd as _, BorrowedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use crate::sys::proc::{self, Process};

/// The name of the keeper's socket in the runtime directory of the keeper's unit.
pub const KEEPER: &str = "kept";

/// The name of the unit.
pub fn name() -> String {
    let group = group().unwrap_or_default();
    let unit = group.rsplit('/').next().filter(|name| name.ends_with(".service"));
    unit.unwrap_or("qrexec-connect.service").to_owned()
}

/// The unit's own control group, when the manager left it to the unit (`Delegate=`; the marker is an attribute of the
/// directory: systemd's CGROUP_DELEGATION.md), so that commands can have groups below it.
pub fn delegated_group() -> Option<PathBuf> {
    env::var_os("INVOCATION_ID")?; // only under a manager
    let group = group()?;
    let dir = proc::unified_hierarchy()?.join(group.trim_start_matches('/'));
    (group.ends_with(".service") && dir.join("cgroup.procs").exists()).then_some(dir)
}

/// This process's control group, as a path below the root of the hierarchy.
fn group() -> Option<String> {
    Process::own().groups().unified().map(str::to_owned)
}

/// The runtime directory that the manager made for the unit: the first of RUNTIME_DIRECTORY (systemd.exec(5)).
pub fn runtime_directory() -> Option<PathBuf> {
    let all = env::var_os("RUNTIME_DIRECTORY")?;
    env::split_paths(&all).next().filter(|first| first.is_absolute())
}

/// The service whose calls this process's unit owns: `NAME.service` for `NAME-calls.service`.
pub fn service_of_calls() -> String {
    let own = name();
    own.strip_suffix("-calls.service").map_or(own.clone(), |name| format!("{name}.service"))
}

/// The socket of the keeper of `NAME-calls.service`, for a process of `NAME.service`.
pub fn keeper() -> Option<PathBuf> {
    let mut directory = runtime_directory()?.into_os_string();
    directory.push("-calls");
    Some(Path::new(&directory).join(KEEPER))
}

/// Tells the keeper of `NAME-calls.service` that this process of `NAME.service` leaves and that another will come, and
/// gives the keeper the reading end of the pair in which the sessions wait.
///
/// # Errors
/// Where there is no keeper: the sessions still continue, unless a stop comes in between.
pub fn leave(end: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let keeper = UnixAddr::new(&keeper().ok_or(io::ErrorKind::NotFound)?)?;
    let socket = UnixDatagram::unbound()?;
    let fds = end.map(|end| [end.as_raw_fd()]);
    let control = fds.as_ref().map(|fds| ControlMessage::ScmRights(fds));
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(b"left")], control.as_slice(), flags, Some(&keeper))?;
    Ok(())
}
