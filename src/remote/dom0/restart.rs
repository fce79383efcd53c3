//! A restart of the service that waits until no command runs or waits: an upgrade that a command of a qube makes does not
//! cut that command, nor any other. Requests that wait delay it for [`WAITERS`] at most, so that no qube keeps an old
//! daemon alive. From the moment that the restart is due until systemd stops the service nothing begins: requests are
//! held, and their clients ask the next daemon.

use std::{
    io,
    pin::pin,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::{Instant, sleep, timeout_at},
};

use super::request::Requests;
use crate::{
    log::{Event, Kind, emit},
    sys::lock,
    systemd::systemctl::Scope,
};

/// The service.
const UNIT: &str = "qvm-remote-dom0.service";
/// How long systemd may take to begin the restart.
const BEGINS: Duration = Duration::from_secs(30);
/// How long requests that wait delay a restart.
const WAITERS: Duration = Duration::from_secs(600);
/// Between two lines of the journal about a restart that waits.
const REMINDER: Duration = Duration::from_secs(3600);

/// A restart that was asked for.
#[derive(Debug, Default)]
pub(super) struct PendingRestart {
    since: Mutex<Option<SystemTime>>,
    asked: Notify,
    /// Nothing begins: the restart does.
    held: watch::Sender<bool>,
}

impl PendingRestart {
    /// Asks for it; asked for twice it is one. True, as an answer.
    pub(super) fn ask(&self, requests: &Requests) -> bool {
        let first = lock(&self.since).is_none();
        lock(&self.since).get_or_insert_with(SystemTime::now);
        if first {
            tell(requests);
        }
        self.asked.notify_waiters();
        true
    }

    /// When it was asked for, in seconds since 1970.
    pub(super) fn since(&self) -> Option<u64> {
        let since = (*lock(&self.since))?;
        since.duration_since(SystemTime::UNIX_EPOCH).ok().map(|since| since.as_secs())
    }

    /// Whether the restart begins, so that no request does.
    pub(super) fn holds(&self) -> bool {
        *self.held.borrow()
    }

    /// Waits until requests may begin again.
    pub(super) async fn released(&self) {
        let mut held = self.held.subscribe();
        let _ = held.wait_for(|held| !*held).await;
    }

    /// Waits until it is due, and has systemd restart the service.
    ///
    /// # Cancel safety
    /// Safe: a restart that was ordered twice is one, and requests stay held for the stop that ended the wait.
    pub(super) async fn carry_out(&self, requests: &Requests) {
        self.due(requests).await;
        emit(Event::new(Kind::ServiceDraining, "no command runs: the restart that was asked for begins".to_owned()));
        let failed = order().await;
        self.give_up();
        let text = format!("{UNIT} is not restarted: {failed}; see systemctl status {UNIT}");
        emit(Event::new(Kind::ServiceDraining, text));
    }

    /// No restart comes: requests begin again.
    pub(super) fn give_up(&self) {
        *lock(&self.since) = None;
        self.held.send_replace(false);
    }

    /// Waits until it was asked for and is due; then nothing begins. What runs in the background goes on over a restart.
    pub(super) async fn due(&self, requests: &Requests) {
        let since = loop {
            let mut asked = pin!(self.asked.notified());
            asked.as_mut().enable();
            if let Some(since) = *lock(&self.since) {
                break since;
            }
            asked.await;
        };
        let mut reminder = Instant::now() + REMINDER;
        loop {
            // Held first: on this one thread nothing begins between the two.
            self.held.send_replace(true);
            let rest = WAITERS.saturating_sub(since.elapsed().unwrap_or_default());
            let delaying: fn(&Requests) -> usize = if rest.is_zero() { Requests::started } else { Requests::open };
            if delaying(requests) == 0 {
                return;
            }
            self.held.send_replace(false);
            let news = if rest.is_zero() { reminder } else { reminder.min(Instant::now() + rest) };
            let _ = timeout_at(news, requests.none(delaying)).await;
            if Instant::now() >= reminder {
                tell(requests);
                reminder += REMINDER;
            }
        }
    }
}

/// Has systemd restart the service where it runs, which ends this process; why it does not.
async fn order() -> String {
    let ordered = spawn_blocking(|| Scope::System.try_restart(UNIT, BEGINS)).await;
    match ordered.unwrap_or_else(|e| Err(io::Error::other(e))) {
        Ok(true) => {
            sleep(BEGINS).await; // the stop that it begins with ends this wait
            "systemd took the order and did not stop the service (this daemon may not be that of the unit)".to_owned()
        }
        Ok(false) => "systemd refused it (a stop may be under way)".to_owned(),
        Err(e) => format!("systemctl: {e}"),
    }
}

/// Tells the owner what a restart waits for.
fn tell(requests: &Requests) {
    let running = requests.list().into_iter().filter(|request| request.state.started());
    let names: Vec<_> = running.map(|request| format!("{} ({})", request.vm, request.id)).collect();
    let text = match &names[..] {
        [] => "a restart was asked for".to_owned(),
        _ => format!(
            "a restart waits for the commands of: {}; to restart now: qvm-remote-dom0 restart",
            names.join(", ")
        ),
    };
    emit(Event::new(Kind::ServiceDraining, text));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::request::RequestState, *};

    #[tokio::test]
    async fn a_restart_is_due_when_the_last_command_has_ended_and_holds_what_comes_then() {
        let (restart, requests) = (Arc::<PendingRestart>::default(), Arc::<Requests>::default());
        let runs = requests.register("work", "a");
        runs.enter(RequestState::Running);
        restart.ask(&requests);
        let due = {
            let (restart, requests) = (restart.clone(), requests.clone());
            tokio::spawn(async move { restart.due(&requests).await })
        };
        tokio::task::yield_now().await;
        assert!(!due.is_finished() && !restart.holds(), "a command runs");
        drop(runs);
        due.await.expect("it is due");
        assert!(restart.holds());
        let held = {
            let restart = restart.clone();
            tokio::spawn(async move { restart.released().await })
        };
        tokio::task::yield_now().await;
        assert!(!held.is_finished());
        restart.held.send_replace(false);
        held.await.expect("no restart came");
    }

    #[tokio::test]
    async fn requests_that_wait_delay_a_restart_for_some_time_only() {
        let (restart, requests) = (PendingRestart::default(), Arc::<Requests>::default());
        let waits = requests.register("work", "a");
        waits.enter(RequestState::Approval);
        *lock(&restart.since) = Some(SystemTime::now() - WAITERS);
        restart.due(&requests).await;
        assert!(restart.holds() && requests.open() == 1);
    }
}
