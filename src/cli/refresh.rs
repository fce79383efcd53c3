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
//! The service drains then for as long as `drain_timeout` says, and so does the wait here. Where systemd refuses the order
//! for another reason (`RefuseManualStop=` of a drop-in), the wait ends after [`REFUSED`] orders.

use std::{process::ExitCode, thread, time::Duration};

use super::{control::Program, systemctl, units::Scope};
use crate::report::{Code, Fatal};

/// The first pause between an order and the next look, and the longest; each pause is twice as long as the one before. A
/// look takes 8 to 12 ms.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How many orders in a row systemd may refuse while the service runs.
const REFUSED: u32 = 5;

/// Waits until systemd does not refuse a socket of the service of `program`; where the service runs, that takes a restart.
///
/// # Errors
/// systemd does not answer, or does not restart the service.
pub(super) fn run(program: Program, scope: Scope) -> Result<ExitCode, Fatal> {
    let unit = format!("{}.service", program.name);
    let failed = |what: String| {
        let hint = format!("to restart it: systemctl {}restart {unit}", scope.flag());
        Err(Fatal::new(Code::Failure, what).hint(hint))
    };
    let (mut pause, mut refused) = (PAUSE.0, 0);
    loop {
        let shown = systemctl::show(scope, &["ActiveState", "Job"], std::slice::from_ref(&unit));
        let Some(shown) = shown.and_then(|units| units.into_iter().next()) else {
            return failed(format!("systemd does not answer, so {unit} is not restarted for its sockets"));
        };
        let value = |property| shown.last(property).unwrap_or_default();
        let state = value("ActiveState");
        if is_settled(&state, &value("Job")) {
            return Ok(ExitCode::SUCCESS);
        }
        let taken = systemctl::restart_if_it_runs(scope, &unit);
        refused = if taken || state == "deactivating" { 0 } else { refused + 1 };
        if refused == REFUSED {
            return failed(format!("systemd does not restart {unit} ({state}), so its new sockets are refused"));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
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
