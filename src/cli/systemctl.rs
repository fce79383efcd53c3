//! What systemd says of our units, and the orders that it gets for them.

use std::{ffi::OsStr, time::Duration};

use super::units::Scope;
use crate::report::{Code, Fatal};
pub(super) use crate::systemd::shown::ShownUnit;

/// How long systemd may take to answer; systemctl itself waits 25 s for each reply (sd_bus_set_method_call_timeout(3)).
const PATIENCE: Duration = Duration::from_secs(30);

/// These properties of these units, in the same order; `None` where systemd does not answer.
pub(super) fn show(scope: Scope, properties: &[&str], units: &[String]) -> Option<Vec<ShownUnit>> {
    if units.is_empty() {
        return Some(Vec::new());
    }
    let properties = format!("--property={}", properties.join(","));
    let mut arguments = vec!["show", &properties, "--"];
    arguments.extend(units.iter().map(String::as_str));
    let text = ask(scope, &arguments)?;
    let shown = ShownUnit::read_all(&text);
    (shown.len() == units.len()).then_some(shown)
}

/// The socket units with this prefix that systemd has loaded; instances of templates are among them.
pub(super) fn loaded(scope: Scope, prefix: &str) -> Vec<String> {
    let pattern = format!("{prefix}*.socket");
    let arguments = ["list-units", "--all", "--plain", "--no-legend", "--type=socket", &pattern];
    let text = ask(scope, &arguments).unwrap_or_default();
    text.lines().filter_map(|line| line.split_ascii_whitespace().next()).map(str::to_owned).collect()
}

/// The socket units that listen, with their addresses.
pub(super) fn listening_sockets(scope: Scope) -> Vec<ShownUnit> {
    let text = ask(scope, &["show", "--property=Id,ActiveState,Listen", "--", "*.socket"]).unwrap_or_default();
    let shown = ShownUnit::read_all(&text).into_iter();
    shown.filter(|unit| unit.last("ActiveState").as_deref() == Some("active")).collect()
}

/// Whether systemd listens for one of the socket units with this prefix.
pub(super) fn listens_for(scope: Scope, prefix: &str) -> bool {
    let pattern = format!("{prefix}*.socket");
    let text = ask(scope, &["show", "--property=ActiveState", "--", &pattern]).unwrap_or_default();
    ShownUnit::read_all(&text).iter().any(|unit| unit.last("ActiveState").as_deref() == Some("active"))
}

/// The addresses of one socket unit, each with its kind (`Stream`, `Datagram`). None of a unit that systemd does not
/// listen for: another listener may have its address.
pub(super) fn listens(scope: Scope, unit: &str) -> Vec<(String, String)> {
    let shown = show(scope, &["ActiveState", "Listen"], &[unit.to_owned()]).and_then(|units| units.into_iter().next());
    let active = shown.filter(|unit| unit.last("ActiveState").as_deref() == Some("active"));
    active.map_or_else(Vec::new, |unit| unit.listens())
}

/// Has systemctl do something; what it says goes to the terminal.
///
/// # Errors
/// The answer of systemctl, in words for the user.
pub(super) fn order(scope: Scope, arguments: &[&str]) -> Result<(), Fatal> {
    let command = format!("systemctl {}{}", scope.flag(), arguments.join(" "));
    match scope.order(arguments) {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Fatal::new(Code::Failure, format!("`{command}` failed: {status}"))),
        Err(e) => Err(Fatal::new(Code::Failure, format!("cannot run `{command}`: {e}"))),
    }
}

/// Queues a restart of this unit where it runs; whether systemd took the order. A stop that waits in the queue stays.
pub(super) fn restart_if_it_runs(scope: Scope, unit: &str) -> bool {
    scope.try_restart(unit, PATIENCE).is_ok_and(|taken| taken)
}

fn ask<S: AsRef<OsStr>>(scope: Scope, arguments: &[S]) -> Option<String> {
    let answer = scope.ask(arguments, PATIENCE).ok()?;
    answer.status.success().then_some(answer.text)
}
