//! Hears of namespaces that come and go, for the listeners inside them.
//!
//! A named namespace is a mount (ip-netns(8)), so the kernel's list of mounts (proc(5), /proc/self/mountinfo) tells of
//! its coming and going when it is polled for. inotify(7) on /run/netns would not: it tells of the *file*, which is
//! there some time before the namespace is mounted on it, is not there to be watched before the first namespace is
//! made, and says nothing of other directories. What is no mount (`/proc/PID/ns/net`) is looked at now and then.

use std::{fs::File, future::pending, os::fd::OwnedFd, time::Duration};

use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep_until},
};

use crate::sys;

/// Mounts often come in bursts; namespaces are looked at this long after the first, once for all.
const SETTLE: Duration = Duration::from_millis(20);
/// How often what is no mount is looked at.
const NOW_AND_THEN: Duration = Duration::from_secs(2);

/// Says when to look at namespaces again.
#[derive(Debug)]
pub struct NamespaceWatch {
    mounts: Option<AsyncFd<OwnedFd>>,
    /// Polls too, where a namespace is named by a path below /proc.
    others: bool,
    /// Time of the next poll.
    due: Option<Instant>,
}

impl NamespaceWatch {
    /// Hears of mounts from now on, and looks once soon, for what has changed just before. Where /proc does not tell, it
    /// only looks now and then; `others` says whether there are namespaces that are no mounts.
    pub fn new(others: bool) -> Self {
        let mounts = File::open("/proc/self/mountinfo").and_then(|file| sys::register(file.into(), Interest::PRIORITY));
        let others = others || mounts.is_err();
        Self { mounts: mounts.ok(), others, due: Some(Instant::now() + SETTLE) }
    }

    /// Waits until it is time to look.
    ///
    /// # Cancel safety
    /// Safe: what was heard is kept.
    pub async fn changed(&mut self) {
        loop {
            let settled = Instant::now() + SETTLE;
            let mounted = async {
                match &self.mounts {
                    // While it is to look soon anyway, it need not hear of more.
                    Some(mounts) if self.due.is_none_or(|due| due > settled) => {
                        if let Ok(mut ready) = mounts.ready(Interest::PRIORITY).await {
                            ready.clear_ready();
                        }
                    }
                    _ => pending().await,
                }
            };
            let due = async {
                match self.due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = mounted => self.due = Some(Instant::now() + SETTLE),
                () = due => {
                    self.due = self.others.then(|| Instant::now() + NOW_AND_THEN);
                    return;
                }
            }
        }
    }
}
