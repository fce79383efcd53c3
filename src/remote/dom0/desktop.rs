//! Tells whoever sits at dom0's desktop that a command waits for approval.
//!
//! The text has the name of a qube and the id of an approval, and nothing that a qube chose: the body of a notification
//! is markup. `notify-send` runs as the user of the session, with nothing of the daemon's environment.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::unistd::{Uid, User};
use tokio::{
    process::Command,
    time::{Instant, sleep, timeout},
};

use crate::{log::counted_waiting, remote::policy::PATH, sys::lock};

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
pub(super) struct Desktop(Mutex<Notified>);

#[derive(Debug, Default)]
struct Notified {
    last: Option<Instant>,
    /// Another notification comes at the end of the pause.
    joined: bool,
}

/// When a notification is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotificationDue {
    Now,
    /// At the end of the pause, for all that wait then.
    After(Duration),
    /// With the one that comes at the end of the pause.
    Joined,
}

impl Desktop {
    /// A command asks: when its notification is due.
    fn ask(&self, now: Instant) -> NotificationDue {
        let mut notified = lock(&self.0);
        let pause = notified.last.map_or(Duration::ZERO, |last| (last + PAUSE).saturating_duration_since(now));
        if notified.joined {
            return NotificationDue::Joined;
        }
        if pause.is_zero() {
            notified.last = Some(now);
            return NotificationDue::Now;
        }
        notified.joined = true;
        NotificationDue::After(pause)
    }

    /// The pause is over.
    fn end_of_pause(&self, now: Instant) {
        *lock(&self.0) = Notified { last: Some(now), joined: false };
    }
}

/// Notifies every session about a command of the qube `vm`, without waiting for it. What comes within the pause after a
/// notification is announced at its end, in one notification, with the number that `waiting` gives then.
pub(super) fn notify(desktop: &Arc<Desktop>, vm: &str, id: &str, waiting: impl Fn() -> usize + Send + 'static) {
    match desktop.ask(Instant::now()) {
        NotificationDue::Now => send(vm, &format!("To see it and decide, as root: qvm-remote-dom0 approve {id}")),
        NotificationDue::Joined => {}
        NotificationDue::After(pause) => {
            let (desktop, vm) = (desktop.clone(), vm.to_owned());
            tokio::spawn(async move {
                sleep(pause).await;
                desktop.end_of_pause(Instant::now());
                if let Some(body) = joined(waiting()) {
                    send(&vm, &body);
                }
            });
        }
    }
}

/// The text about all that wait; none where nothing waits any more.
fn joined(waiting: usize) -> Option<String> {
    let text =
        || format!("{}. To see and decide, as root: qvm-remote-dom0 approve", counted_waiting(waiting, "request"));
    (waiting > 0).then(text)
}

fn send(vm: &str, body: &str) {
    let title = format!("{vm} asks for approval");
    for uid in users() {
        let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { continue };
        let bus = format!("unix:path={USERS}/{uid}/bus");
        let mut command = Command::new("notify-send");
        command.args(["--app-name=qvm-remote-dom0", "--urgency=critical", "--", &title, body]);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_within_the_pause_is_told_once_at_its_end() {
        let (desktop, start) = (Desktop::default(), Instant::now());
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(desktop.ask(start), NotificationDue::Now);
        assert_eq!(desktop.ask(after(1)), NotificationDue::After(Duration::from_secs(9)));
        assert_eq!([2, 9, 12].map(|seconds| desktop.ask(after(seconds))), [NotificationDue::Joined; 3]);
        desktop.end_of_pause(after(13));
        assert_eq!(desktop.ask(after(14)), NotificationDue::After(Duration::from_secs(9)), "the next pause has begun");
        desktop.end_of_pause(after(23));
        assert_eq!(desktop.ask(after(33)), NotificationDue::Now);
        let texts = [0, 1, 3].map(joined);
        assert!(texts[0].is_none() && texts[2].as_ref().is_some_and(|text| text.starts_with("3 requests wait.")));
    }
}
