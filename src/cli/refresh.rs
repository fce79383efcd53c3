//! `refresh`: has the service restarted for a socket that starts, and waits for the moment in which systemd takes both.
//!
//! systemd refuses to start a socket of a service that runs or that is ending, and orders the socket only behind *jobs*
//! of the service. NAME-refresh.service first has the service restarted (`try-restart`); then this looks whether there is
//! a job:
//!
//! | the service is | its job | what `try-restart` did | the socket |
//! |---|---|---|---|
//! | inactive, failed | none | nothing | may start |
//! | anything | restart, start | queued the restart | starts between the two halves of the restart |
//! | anything | stop | gave way (`--job-mode=fail`) | starts when the service has stopped |
//! | deactivating | none | nothing | would be refused: again |
//! | active, activating, reloading | none | came too early | would be refused: again |
//!
//! A service deactivates without a job when it ends by itself (idle, or without listeners), and when somebody kills it.
//! systemd bounds that time (`TimeoutStopSec=`), and so the wait here.

use std::{process::ExitCode, thread, time::Duration};

use super::{control::Program, systemctl, units::Scope};
use crate::report::{Code, Fatal};

/// Between an order and the next look; each of them takes 8 to 12 ms.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until systemd does not refuse a socket of the service of `program`; where the service runs, that takes a restart.
///
/// # Errors
/// systemd does not answer.
pub(super) fn run(program: Program, scope: Scope) -> Result<ExitCode, Fatal> {
    let unit = format!("{}.service", program.name);
    loop {
        let shown = systemctl::show(scope, &["ActiveState", "Job"], std::slice::from_ref(&unit));
        let Some(shown) = shown.and_then(|units| units.into_iter().next()) else {
            let what = format!("systemd does not answer, so {unit} is not restarted for its sockets");
            let hint = format!("to restart it: systemctl {}restart {unit}", scope.flag());
            return Err(Fatal::new(Code::Failure, what).hint(hint));
        };
        let value = |property| shown.last(property).unwrap_or_default();
        if is_settled(&value("ActiveState"), &value("Job")) {
            return Ok(ExitCode::SUCCESS);
        }
        systemctl::restart_if_it_runs(scope, &unit);
        thread::sleep(PAUSE);
    }
}

/// Whether systemd accepts the start of a socket of a service in this state: now, or when the job allows it.
fn is_settled(active_state: &str, job: &str) -> bool {
    matches!(active_state, "inactive" | "failed") || !matches!(job, "" | "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_waits_for_a_service_that_is_neither_off_nor_has_a_job() {
        for (state, job, settled) in [
            ("inactive", "", true),
            ("failed", "", true),
            ("active", "12", true),
            ("activating", "12", true),
            ("deactivating", "12", true),
            ("deactivating", "", false),
            ("deactivating", "0", false),
            ("active", "", false),
            ("activating", "", false),
            ("reloading", "", false),
            ("maintenance", "", false),
        ] {
            assert_eq!(is_settled(state, job), settled, "{state} {job:?}");
        }
    }
}
