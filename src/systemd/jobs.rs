//! Which job the service manager runs for a unit, and whether a unit is there.
//!
//! systemd sends SIGTERM for a stop and for a restart alike, and a restart keeps every session. The unit's job tells
//! which of the two it is. The service asks for the job at the SIGTERM itself: systemd skips an `ExecStop=` until it
//! has read READY=1, and a burst of starting sockets causes just that.

use std::time::Duration;

use tokio::{task::spawn_blocking, time::timeout};

use super::{systemctl::Scope, unit};

/// How long the manager may take to answer; it takes 6 to 40 ms.
const PATIENCE: Duration = Duration::from_secs(2);

/// The job that the service manager runs for this process's unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// A restart or start of the unit.
    Restart,
    /// The unit stops.
    Stop {
        /// Because the whole manager goes down.
        machine: bool,
    },
    /// None, or there is no systemd.
    None,
    /// systemd does not answer.
    Silent,
}

/// Which job the service manager runs for this process's unit.
///
/// # Cancel safety
/// Safe; the question is left to end by itself.
pub async fn own_job() -> Job {
    let unit = unit::name();
    match ask(&["--no-legend", "--plain", "list-jobs", &unit]).await {
        Some(jobs) if restarts(&jobs, &unit) => Job::Restart,
        Some(jobs) => {
            let machine = ask(&["is-system-running"]).await.is_some_and(|state| state.trim() == "stopping");
            let stops = machine || types(&jobs, &unit).any(|job| job == "stop");
            if stops { Job::Stop { machine } } else { Job::None }
        }
        None if sd_notify::booted().unwrap_or(true) => Job::Silent,
        None => Job::None, // a supervisor of another kind
    }
}

/// State of a unit, as the manager reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    There,
    /// It is on its way, up or down.
    Between,
    /// It does not run, and no job will start it.
    Gone,
}

/// What the manager makes of `unit`; `None` when it does not say.
///
/// # Cancel safety
/// Safe; the question is left to end by itself.
pub async fn presence(unit: &str) -> Option<Presence> {
    let state = ask(&["show", "--property=ActiveState", "--property=Job", unit]).await?;
    let says = |line: &str| state.lines().any(|l| l == line);
    Some(if !says("Job=") {
        Presence::Between
    } else if says("ActiveState=inactive") || says("ActiveState=failed") {
        Presence::Gone
    } else if says("ActiveState=active") {
        Presence::There
    } else {
        Presence::Between
    })
}

/// Whether the jobs of `unit` will start it again.
fn restarts(jobs: &str, unit: &str) -> bool {
    types(jobs, unit).any(|job| matches!(job, "restart" | "try-restart" | "start"))
}

/// The types of the jobs of `unit`. Each line is `JOB UNIT TYPE STATE`; under a burst of restarts there are several,
/// `nop` ones among them, in any order.
fn types<'a>(jobs: &'a str, unit: &str) -> impl Iterator<Item = &'a str> {
    jobs.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        words.next().filter(|name| *name == unit).and(words.next())
    })
}

/// What the manager prints; `None` when it fails or takes too long.
async fn ask(arguments: &[&str]) -> Option<String> {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let asking = spawn_blocking(move || Scope::own().ask(&arguments, PATIENCE));
    // The limit holds even where no thread is free to ask.
    let answer = timeout(PATIENCE, asking).await.ok()?.ok()?.ok()?;
    let known = answer.status.success() || !answer.text.is_empty();
    known.then_some(answer.text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_is_seen_among_other_jobs_of_the_unit() {
        let unit = "qrexec-connect.service";
        let restart = "12 qrexec-connect.service nop waiting\n11 qrexec-connect.service restart running\n";
        assert!(restarts(restart, unit));
        assert!(restarts("7 qrexec-connect.service start waiting\n", unit));
        assert!(!restarts("7 qrexec-connect.service stop running\n", unit));
        assert!(!restarts("7 other.service restart running\n", unit));
        assert!(!restarts("", unit));
    }
}
