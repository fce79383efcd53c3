//! What is asked of the service manager, each as one child process.

use std::{
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use nix::{fcntl::OFlag, unistd::pipe2};
use tokio::task::spawn_blocking;

use super::look::{Look, PROPERTIES};
use crate::{
    log::escape,
    sys::lock,
    systemd::{headroom::Headroom, systemctl::Scope},
};

/// How long a question may take; it takes 6 to 40 ms.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one `systemctl start` may wait. The job goes on after that, and whoever waits still begins another, which
/// joins the job.
const START: Duration = Duration::from_secs(600);
/// How many lines of a failed invocation a message has, and how long each may be, in characters.
const LINES: (u8, usize) = (3, 200);
/// How long whoever waits for a start that failed waits for the last lines of its invocation, in all.
pub const LAST_LINES: Duration = Duration::from_millis(700);
/// How long to wait before the journal is asked again for lines that it does not have yet.
const JOURNAL: Duration = Duration::from_millis(50);

/// A request on its way.
pub type ManagerAnswer<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

/// The service manager, or what stands for it in tests.
pub trait Manager: fmt::Debug + Send + Sync {
    fn show(&self, unit: &Arc<str>) -> ManagerAnswer<Look>;
    /// Starts a unit and waits for that; what systemctl says where it fails. `Interrupted`: the service stops.
    fn start(&self, unit: &Arc<str>) -> ManagerAnswer<Result<(), String>>;
    /// Queues a stop; what systemctl says where systemd refuses it.
    fn stop(&self, unit: &Arc<str>) -> ManagerAnswer<Result<(), String>>;
    /// The first of these units that is up.
    fn first_up(&self, units: Vec<String>) -> ManagerAnswer<Option<String>>;
    /// What an invocation has logged last, as far as that is known within [`LAST_LINES`].
    fn last_lines(&self, invocation: String) -> ManagerAnswer<Vec<String>>;
    /// Whether the manager goes down.
    fn goes_down(&self) -> ManagerAnswer<bool>;
    /// Gives up all starts that wait, and those to come.
    fn cancel(&self);
}

/// The manager that started this process.
#[derive(Debug)]
pub struct Systemctl {
    scope: Scope,
    cancel: Mutex<Cancel>,
}

/// What ends a start that waits.
#[derive(Debug)]
enum Cancel {
    /// None was asked for yet.
    Unneeded,
    /// Both ends of a pipe: without the second one the first is ready.
    Open {
        ready: Arc<OwnedFd>,
        _other: OwnedFd,
    },
    Cancelled,
}

impl Systemctl {
    pub fn new() -> Self {
        Self { scope: Scope::own(), cancel: Mutex::new(Cancel::Unneeded) }
    }

    fn cancellable(&self) -> io::Result<Arc<OwnedFd>> {
        let mut cancel = lock(&self.cancel);
        if matches!(*cancel, Cancel::Unneeded) {
            let _headroom = Headroom::take();
            let (ready, other) = pipe2(OFlag::O_CLOEXEC)?;
            *cancel = Cancel::Open { ready: Arc::new(ready), _other: other };
        }
        match &*cancel {
            Cancel::Open { ready, .. } => Ok(ready.clone()),
            Cancel::Unneeded | Cancel::Cancelled => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

/// Runs what blocks in a thread.
fn ask<T: Send + 'static>(question: impl FnOnce() -> io::Result<T> + Send + 'static) -> ManagerAnswer<T> {
    let asking = spawn_blocking(question);
    Box::pin(async { asking.await.map_err(io::Error::other)? })
}

/// One line of a message, for people.
fn line(text: &str) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    escape(line.chars().take(LINES.1).collect::<String>().as_bytes())
}

impl Manager for Systemctl {
    fn show(&self, unit: &Arc<str>) -> ManagerAnswer<Look> {
        let (scope, unit) = (self.scope, unit.clone());
        ask(move || {
            let answer = scope.ask(&["show", "-p", PROPERTIES, "--", &*unit], PATIENCE)?;
            if !answer.status.success() && answer.text.is_empty() {
                return Err(io::Error::other("systemd does not answer"));
            }
            Ok(Look::parse(&answer.text))
        })
    }

    fn start(&self, unit: &Arc<str>) -> ManagerAnswer<Result<(), String>> {
        let (scope, unit, cancel) = (self.scope, unit.clone(), self.cancellable());
        ask(move || match cancel.and_then(|cancel| scope.start(&unit, START, cancel.as_fd())) {
            Ok(answer) if answer.status.success() => Ok(Ok(())),
            Ok(answer) => Ok(Err(line(&answer.text))),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => Ok(Ok(())), // the job goes on
            Err(e) => Err(e),
        })
    }

    fn stop(&self, unit: &Arc<str>) -> ManagerAnswer<Result<(), String>> {
        let (scope, unit) = (self.scope, unit.clone());
        ask(move || {
            let answer = scope.queue_stop(&unit, PATIENCE)?;
            Ok(if answer.status.success() { Ok(()) } else { Err(line(&answer.text)) })
        })
    }

    fn first_up(&self, units: Vec<String>) -> ManagerAnswer<Option<String>> {
        let scope = self.scope;
        ask(move || {
            let mut arguments = vec!["show".to_owned(), "-p".into(), "Id,ActiveState".into(), "--".into()];
            arguments.extend(units);
            let answer = scope.ask(&arguments, PATIENCE)?;
            if !answer.status.success() {
                return Err(io::Error::other("systemctl cannot show the units that need it"));
            }
            Ok(first_up(&answer.text))
        })
    }

    fn last_lines(&self, invocation: String) -> ManagerAnswer<Vec<String>> {
        let scope = self.scope;
        ask(move || {
            let until = Instant::now() + LAST_LINES;
            let left = || until.saturating_duration_since(Instant::now());
            let mut text = scope.last_lines(&invocation, LINES.0, left())?;
            while text.is_empty() && left() > JOURNAL {
                thread::sleep(JOURNAL);
                text = scope.last_lines(&invocation, LINES.0, left())?;
            }
            Ok(text.lines().map(line).filter(|line| !line.is_empty()).collect())
        })
    }

    fn cancel(&self) {
        *lock(&self.cancel) = Cancel::Cancelled;
    }

    fn goes_down(&self) -> ManagerAnswer<bool> {
        let scope = self.scope;
        ask(move || Ok(scope.ask(&["is-system-running"], PATIENCE)?.text.trim() == "stopping"))
    }
}

/// The first unit in blocks of `Id=` and `ActiveState=` that is up.
fn first_up(text: &str) -> Option<String> {
    text.split("\n\n").find_map(|block| {
        let value = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let up = matches!(value("ActiveState")?, "active" | "activating" | "reloading" | "refreshing");
        up.then(|| escape(value("Id").unwrap_or_default().as_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_unit_that_is_up_is_found() {
        let text =
            "Id=a.service\nActiveState=inactive\n\nActiveState=active\nId=b.target\n\nId=c\nActiveState=active\n";
        assert_eq!(first_up(text).as_deref(), Some("b.target"));
        assert_eq!(first_up("Id=a.service\nActiveState=failed\n"), None);
    }
}
