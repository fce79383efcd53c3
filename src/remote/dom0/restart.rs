//! A restart of the service that waits until no command runs or waits: an upgrade that a command of a qube makes does not
//! cut that command, nor any other.

use std::{
    pin::pin,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, task::spawn_blocking, time::sleep};

use super::request::Requests;
use crate::{
    log::{Event, Kind, emit},
    sys::lock,
    systemd::systemctl::Scope,
};

/// The service.
const UNIT: &str = "qvm-remote-dom0.service";
/// How long systemd may take to begin the restart; then it is asked again.
const BEGINS: Duration = Duration::from_secs(10);

/// A restart that was asked for.
#[derive(Debug, Default)]
pub(super) struct PendingRestart {
    since: Mutex<Option<SystemTime>>,
    asked: Notify,
}

impl PendingRestart {
    /// Asks for it; asked for twice it is one. True, as an answer.
    pub(super) fn ask(&self) -> bool {
        lock(&self.since).get_or_insert_with(SystemTime::now);
        self.asked.notify_waiters();
        true
    }

    /// When it was asked for, in seconds since 1970.
    pub(super) fn since(&self) -> Option<u64> {
        let since = (*lock(&self.since))?;
        since.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs())
    }

    /// Waits until it is due, and has systemd restart the service.
    ///
    /// # Cancel safety
    /// Safe: a restart that was ordered twice is one.
    pub(super) async fn carry_out(&self, requests: &Requests) {
        self.due(requests).await;
        self.order().await;
    }

    /// Waits until it was asked for and no request is open. What runs in the background goes on over a restart.
    async fn due(&self, requests: &Requests) {
        loop {
            let mut asked = pin!(self.asked.notified());
            asked.as_mut().enable();
            if lock(&self.since).is_some() {
                return requests.none().await;
            }
            asked.await;
        }
    }

    /// Has systemd restart the service, which ends this process.
    async fn order(&self) {
        emit(Event::new(Kind::ServiceDraining, "no command runs: the restart that was asked for begins".to_owned()));
        let ordered = spawn_blocking(|| Scope::System.order(&["--no-block", "restart", UNIT])).await;
        if ordered.is_ok_and(|result| result.is_ok_and(|status| status.success())) {
            sleep(BEGINS).await; // the stop that it begins with ends this wait
            return;
        }
        *lock(&self.since) = None;
        let text = format!("systemctl cannot restart {UNIT}, so nothing is restarted: systemctl restart {UNIT}");
        emit(Event::new(Kind::ServiceDraining, text));
    }
}
