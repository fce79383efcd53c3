//! Tells whoever sits at dom0's desktop that a command waits for approval.
//!
//! The text has the name of a qube and the id of an approval, and nothing that a qube chose: the body of a notification
//! is markup. `notify-send` runs as the user of the session, with nothing of the daemon's environment.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    process::Stdio,
    sync::Mutex,
    time::{Duration, Instant},
};

use nix::unistd::{Uid, User};
use tokio::{process::Command, time::timeout};

use crate::{remote::policy::PATH, sys::lock};

/// Where each user who is logged in has a directory of his own (pam_systemd(8)).
const USERS: &str = "/run/user";
/// The first user who is a person (login.defs(5)).
const FIRST_PERSON: u32 = 1000;
/// How long a notification may take to be shown.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two notifications about one qube, which may ask again and again.
const PAUSE: Duration = Duration::from_secs(10);

/// The notifications about one qube.
#[derive(Debug, Default)]
pub(super) struct Desktop(Mutex<Option<Instant>>);

impl Desktop {
    /// Notifies every session, without waiting for it, unless there was a notification of late.
    pub(super) fn notify(&self, vm: &str, id: &str) {
        let mut last = lock(&self.0);
        if last.is_none_or(|last| last.elapsed() >= PAUSE) {
            *last = Some(Instant::now());
            send(vm, id);
        }
    }
}

fn send(vm: &str, id: &str) {
    let body = format!("To see it and decide, as root: qvm-remote-dom0 approve {id}");
    let title = format!("{vm} asks for approval");
    for uid in users() {
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { continue };
        let bus = format!("unix:path={USERS}/{uid}/bus");
        let mut command = Command::new("notify-send");
        command.args(["--app-name=qvm-remote-dom0", "--urgency=critical", "--", &title, &body]);
        command.env_clear().env("PATH", PATH.join(":")).env("DBUS_SESSION_BUS_ADDRESS", bus).env("HOME", &user.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.uid(uid).gid(user.gid.as_raw()).current_dir("/").kill_on_drop(true);
        tokio::spawn(async move {
            if let Ok(mut child) = command.spawn() {
                let _ = timeout(PATIENCE, child.wait()).await;
            }
        });
    }
}

/// Users with a bus of their session.
fn users() -> Vec<u32> {
    let own = |uid: u32| {
        let bus = fs::symlink_metadata(Path::new(USERS).join(uid.to_string()).join("bus"));
        bus.is_ok_and(|m| m.uid() == uid && m.file_type().is_socket())
    };
    let names = fs::read_dir(USERS).into_iter().flatten().flatten();
    let uids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    uids.filter(|uid| *uid >= FIRST_PERSON && own(*uid)).collect()
}
