//! The events about a unit: one event for each thing that happens to it, not one for each client.

use std::{fmt, sync::Arc, time::Duration};

use super::look::Look;

/// Why a unit could not be started, in one sentence; the same for all who waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFailure(pub(super) Arc<str>);

impl fmt::Display for UnitFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnitFailure {}

/// Why a unit is not stopped although no session uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotStopped {
    /// Its invocation is not the one that we started.
    Foreign,
    /// RefuseManualStop=.
    Refuses,
    /// This active unit needs it.
    Needed(String),
    /// Somebody who is no session of ours is connected to its target.
    Connected(String),
    /// Somebody else has a job for it.
    Job(String),
    /// systemd refuses the stop, with these words.
    Refused(String),
}

impl NotStopped {
    /// Whether another look can find otherwise.
    pub fn may_pass(&self) -> bool {
        !matches!(self, Self::Foreign)
    }
}

impl fmt::Display for NotStopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("somebody else started it, or restarted it"),
            Self::Refuses => f.write_str("it has RefuseManualStop=yes"),
            Self::Needed(unit) => write!(f, "{unit} is active and needs or wants it"),
            Self::Connected(target) => write!(f, "somebody else is connected to {target}"),
            Self::Job(text) if text.is_empty() => f.write_str("another job of it is pending"),
            Self::Job(text) => write!(f, "another job of it is pending: {text}"),
            Self::Refused(text) => write!(
                f,
                "systemd refuses the stop: {text}; a service with User= needs a rule of polkit for start and stop"
            ),
        }
    }
}

/// Why a start of this unit is refused before it is asked for, where it is. `stops`: the unit is to be stopped, too.
pub fn objection(look: &Look, stops: bool) -> Option<&'static str> {
    match &*look.load {
        "not-found" => return Some("there is no such unit: see `systemctl list-unit-files`"),
        "masked" => return Some("it is masked: `systemctl unmask` makes it a unit again"),
        "bad-setting" | "error" => return Some("its unit file has an error: see `systemctl status`"),
        _ => {}
    }
    if !look.can_start {
        return Some("systemd does not start it by hand (RefuseManualStart=yes)");
    }
    if look.stop_when_unneeded {
        return Some("it has StopWhenUnneeded=yes: systemd would stop it under its sessions; remove that line");
    }
    if stops && !look.can_stop {
        return Some("it has RefuseManualStop=yes, so it could not be stopped; remove that line, or stop_when_idle");
    }
    None
}

/// The sentence about a start that failed.
pub fn failure(unit: &str, look: &Look, said: &str, lines: &[String], pause: Duration) -> UnitFailure {
    let mut text = format!("cannot start {unit}");
    match &*look.result {
        "" | "success" if said.is_empty() => text += ": it ended before anybody was connected",
        "" | "success" => text += &format!(": {said}"),
        result => text += &format!(": Result={result}{}", look.ending()),
    }
    if !lines.is_empty() {
        text += &format!("; its log ends with: {}", lines.join(" | "));
    }
    text += &format!("; no new start for {} s; see `systemctl status {unit}`", seconds(pause));
    UnitFailure(text.into())
}

/// A time as logs have it: 0.25, 7.1, 600.
pub fn seconds(time: Duration) -> String {
    let text = format!("{:.2}", time.as_secs_f64());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number of bytes as logs have it.
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_start_says_how_the_unit_ended_and_what_it_said() {
        let look = Look { result: "exit-code".into(), exit: Some((1, 3)), ..Look::default() };
        let lines = ["one".to_owned(), "the model file is missing".to_owned()];
        let failure = failure("m.service", &look, "Job failed", &lines, Duration::from_secs(1));
        assert_eq!(
            failure.to_string(),
            "cannot start m.service: Result=exit-code, exit status 3; its log ends with: one | the model file is missing; no \
             new start for 1 s; see `systemctl status m.service`"
        );
    }

    #[test]
    fn what_systemd_would_refuse_is_refused_before() {
        let fine = Look { load: "loaded".into(), can_start: true, can_stop: true, ..Look::default() };
        assert_eq!(objection(&fine, true), None);
        assert_eq!(objection(&Look { can_stop: false, ..fine.clone() }, false), None);
        for bad in [
            Look { load: "masked".into(), ..fine.clone() },
            Look { load: "not-found".into(), ..fine.clone() },
            Look { can_start: false, ..fine.clone() },
            Look { can_stop: false, ..fine.clone() },
            Look { stop_when_unneeded: true, ..fine },
        ] {
            assert!(objection(&bad, true).is_some(), "{bad:?}");
        }
    }
}
