//! Forwards that end by themselves.
//!
//! The end time stands in the policy file. One timer of the manager, [`TIMER`], waits for the first of them and runs
//! `qvm-forward expire`, and so does `qvm-forward-expire.service` at each boot: a timer of systemd-run(1) is gone then.

use std::process::ExitCode;

use super::{
    act::{alone, load, save, withdraw},
    declared::Moment,
    order::Order,
    policy::Declarations,
    qubes,
};
use crate::report::Fatal;

/// The timer, and the service that it starts.
const TIMER: &str = "qvm-forward-next";

/// The order that makes the timer.
pub(super) fn timer(ends: Moment) -> Order {
    let calendar = format!("--on-calendar={}", ends.calendar());
    let unit = format!("--unit={TIMER}");
    let words = ["systemd-run", "--quiet", "--collect", &unit, &calendar, "--timer-property=AccuracySec=1s"];
    Order::new(words.into_iter().chain(["--", "qvm-forward", "expire"]))
}

/// Has the timer wait for the first end, and for none where nothing ends.
pub(super) fn arm(declarations: &Declarations) -> Result<(), Fatal> {
    // A timer that is not there stops as well.
    let _ = Order::new(["systemctl", "--quiet", "stop", &format!("{TIMER}.timer")]).holds();
    declarations.iter().filter_map(|one| one.ends).min().map_or(Ok(()), |ends| {
        timer(ends).carry_out().map_err(|failed| {
            failed
                .hint("the forward is in force, but nothing ends it before the next boot: run qvm-forward expire then")
        })
    })
}

/// `expire`: removes what is over. Policy lines go first and all at once.
pub(super) fn expire() -> Result<ExitCode, Fatal> {
    let _alone = alone()?;
    let mut declarations = load()?;
    let now = Moment::now();
    let over = declarations.take(|one| one.is_over(now));
    if !over.is_empty() {
        save(&declarations)?;
    }
    let mut failed = None;
    for one in &over {
        match withdraw(&one.source, &qubes::unset(&one.source, one.listen.port())) {
            Ok(()) => println!("removed, because its time is over: {one}"),
            Err(e) => failed = Some(e),
        }
    }
    arm(&declarations)?;
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}
