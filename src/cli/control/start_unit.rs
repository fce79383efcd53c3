//! A unit that is started for sessions, in one sentence.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    cli::table::{bytes, duration},
    control::api::{ActiveState, StartedUnit},
    log::{counted, counted_waiting},
    sys,
};

/// After this time a time of day needs its date, in seconds.
const DAY: u64 = 24 * 60 * 60;

/// `localai.service inactive since 14:02; last start took 7.1 s`.
pub(super) fn sentence(unit: &StartedUnit) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    sentence_at(unit, now)
}

fn sentence_at(unit: &StartedUnit, now: u64) -> String {
    let since = unit.since.map(|at| format!(" since {}", clock(at, now))).unwrap_or_default();
    let mut parts = vec![format!("{} {}{since}", unit.unit, unit.state.as_str())];
    match (unit.sessions, unit.waiting) {
        (0, _) => {}
        (all, 0) => parts.push(format!("used by {}", counted(all, "session"))),
        (all, waiting) if all == waiting => parts.push(counted_waiting(waiting, "session")),
        (all, 1) => parts.push(format!("used by {}, 1 of which waits", counted(all, "session"))),
        (all, waiting) => parts.push(format!("used by {}, {waiting} of which wait", counted(all, "session"))),
    }
    let idle = unit.state == ActiveState::Active && unit.sessions == 0;
    match unit.stops_at {
        Some(at) if idle => parts.push(format!("not used, stops at {}", clock(at, now))),
        _ if idle && !unit.ours => parts.push("not used, not stopped: somebody else started it".to_owned()),
        _ if idle => parts.push("not used, not stopped".to_owned()),
        _ => {}
    }
    if matches!(unit.state, ActiveState::Inactive | ActiveState::Failed | ActiveState::Activating) {
        let (last, median) = (unit.last_start_ms.map(seconds), unit.median_start_ms.map(seconds));
        let median = median.filter(|median| last.as_ref() != Some(median));
        parts.extend(last.map(|time| format!("last start took {time}")));
        parts.extend(median.map(|time| format!("the median is {time}")));
    }
    let memory = unit.memory_before_stop.filter(|_| unit.state == ActiveState::Inactive);
    parts.extend(memory.map(|n| format!("it had {} of memory", bytes(n))));
    parts.join("; ")
}

/// A time of day here, with the date where that is not less than a day away.
fn clock(at: u64, now: u64) -> String {
    let [year, month, day, hour, minute, second] = sys::local_time(i64::try_from(at).unwrap_or(0));
    match at.abs_diff(now) {
        0..60 => format!("{hour:02}:{minute:02}:{second:02}"),
        60..DAY => format!("{hour:02}:{minute:02}"),
        _ => format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}"),
    }
}

/// `0.3 s`, `7.1 s`; above two minutes as other times.
fn seconds(ms: u64) -> String {
    if ms < 120_000 { format!("{:.1} s", ms as f64 / 1000.0) } else { duration(ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_a_sentence_with_what_matters_in_it() {
        let now = 1_800_000_000;
        let unit = StartedUnit {
            unit: "localai.service".to_owned(),
            state: ActiveState::Inactive,
            since: Some(now - 3600),
            sessions: 0,
            waiting: 0,
            stops_at: None,
            last_start_ms: Some(7120),
            median_start_ms: Some(7130), // the same, as it is shown
            memory_before_stop: None,
            ours: false,
        };
        let at = |seconds: u64| clock(seconds, now);
        let since = at(now - 3600);
        let said = |unit: &StartedUnit| sentence_at(unit, now).strip_prefix("localai.service ").unwrap().to_owned();
        assert_eq!(said(&unit), format!("inactive since {since}; last start took 7.1 s"));
        let stopped = StartedUnit { median_start_ms: Some(6000), memory_before_stop: Some(3 << 29), ..unit.clone() };
        assert_eq!(
            said(&stopped),
            format!("inactive since {since}; last start took 7.1 s; the median is 6.0 s; it had 1.5 GiB of memory")
        );
        let starting = StartedUnit { state: ActiveState::Activating, sessions: 4, waiting: 4, ..unit.clone() };
        assert_eq!(said(&starting), format!("activating since {since}; 4 sessions wait; last start took 7.1 s"));
        let active = StartedUnit { state: ActiveState::Active, ours: true, since: None, ..unit.clone() };
        assert_eq!(said(&StartedUnit { sessions: 1, ..active.clone() }), "active; used by 1 session");
        assert_eq!(
            said(&StartedUnit { sessions: 3, waiting: 1, ..active.clone() }),
            "active; used by 3 sessions, 1 of which waits"
        );
        let stops = StartedUnit { stops_at: Some(now + 300), ..active.clone() };
        assert_eq!(said(&stops), format!("active; not used, stops at {}", at(now + 300)));
        assert_eq!(said(&active), "active; not used, not stopped");
        let foreign = StartedUnit { ours: false, ..active };
        assert_eq!(said(&foreign), "active; not used, not stopped: somebody else started it");
        assert!(said(&StartedUnit { since: Some(now - 9 * DAY), ..unit }).contains("since 2027-01-"));
    }
}
