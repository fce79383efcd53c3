//! Forwards that end by themselves.
//!
//! The end time stands in the policy file. One timer of the manager, [`TIMER`], waits for the first of them and starts
//! [`SERVICE`], which also runs at each boot. Whoever changes the file makes the timer anew.

use std::process::ExitCode;

use super::{
    declared::Moment,
    order::ToolOrder,
    policy::Declarations,
    qubes,
    record::{alone, load, save, withdraw},
};
use crate::report::Fatal;

/// Runs `qvm-forward expire`, at each boot and at the end of a forward.
const SERVICE: &str = "qvm-forward-expire.service";
/// Waits for the first end: a transient unit, so that it is gone at the next boot.
const TIMER: &str = "qvm-forward-expire.timer";

/// The order that makes the timer.
pub(super) fn timer(ends: Moment) -> ToolOrder {
    let calendar = format!("--on-calendar={}", ends.calendar());
    // With a timer and a unit that exists, systemd-run(1) makes the timer alone.
    let unit = format!("--unit={SERVICE}");
    ToolOrder::new(["systemd-run", "--quiet", "--collect", &unit, &calendar, "--timer-property=AccuracySec=1s"])
}

/// The order that has each boot look for what is over.
pub(super) fn at_boot() -> ToolOrder {
    ToolOrder::new(["systemctl", "--quiet", "enable", SERVICE])
}

/// Has the timer wait for the first end, and for none where nothing ends.
pub(super) fn arm(declarations: &Declarations) -> Result<(), Fatal> {
    // A timer that is not there stops as well.
    let _ = ToolOrder::new(["systemctl", "--quiet", "stop", TIMER]).holds();
    let Some(ends) = declarations.iter().filter_map(|one| one.ends).min() else { return Ok(()) };
    let unarmed =
        |failed: Fatal| failed.hint("the forward is in force, and nothing ends it: run qvm-forward expire then");
    timer(ends).carry_out().map_err(unarmed)?;
    // A timer whose moment had come before the timer was made never starts anything (systemd.timer(5), OnCalendar=).
    if ends <= Moment::now() {
        ToolOrder::new(["systemctl", "--quiet", "--no-block", "start", SERVICE]).carry_out().map_err(unarmed)?;
    }
    Ok(())
}

/// `expire`: removes what is over. Policy lines go first and all at once.
pub(super) fn expire() -> Result<ExitCode, Fatal> {
    let _alone = alone()?;
    let mut declarations = load()?;
    let mut failed = None;
    loop {
        let over = declarations.take(|one| one.is_over(Moment::now()));
        if !over.is_empty() {
            save(&declarations)?;
        }
        for one in &over {
            match withdraw(&one.source, &qubes::unset(&one.source, one.listen.port())) {
                Ok(()) => println!("removed, because its time is over: {one}"),
                Err(e) => failed = Some(e),
            }
        }
        arm(&declarations)?;
        // This process is the service, so the start that `arm` orders for what ended meanwhile does nothing.
        if !declarations.iter().any(|one| one.is_over(Moment::now())) {
            return failed.map_or(Ok(ExitCode::SUCCESS), Err);
        }
    }
}
