//! Whether units can be started for clients and stopped again: what `systemctl show` says of them.
//!
//! A unit that cannot be asked about (no systemd, no answer in time) counts as good: the start of the unit tells.

use std::{collections::HashMap, fmt, sync::Mutex, time::Duration};

use super::{shown::ShownUnit, systemctl::Scope};
use crate::sys::lock;

/// How long the manager may take to answer; it takes 8 to 40 ms.
const PATIENCE: Duration = Duration::from_secs(2);
/// Lists of units that keep a unit from being stopped while they are active (systemd.unit(5)).
const NEEDED_BY: [&str; 4] = ["RequiredBy", "WantedBy", "BoundBy", "UpheldBy"];
/// What is asked about a unit.
const PROPERTIES: &str = "--property=Id,LoadState,LoadError,RefuseManualStart,RefuseManualStop,StopWhenUnneeded,\
                          UnitFileState,RequiredBy,WantedBy,BoundBy,UpheldBy";

/// Why a unit cannot be started for clients, or not stopped again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitObstacle {
    /// There is no such unit.
    NotFound,
    /// The unit is masked.
    Masked,
    /// systemd does not load the unit; its reason.
    Broken(String),
    /// The name is an alias of this unit.
    Alias(String),
    /// `RefuseManualStart=yes`.
    RefusesStart,
    /// `RefuseManualStop=yes`, and the unit is to be stopped when it is idle.
    RefusesStop,
    /// `StopWhenUnneeded=yes`.
    StopsUnneeded,
}

impl UnitObstacle {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotFound => "correct the name, or make the unit",
            Self::Masked => "run: systemctl unmask",
            Self::Broken(_) => "systemctl status shows the error in the unit",
            Self::Alias(_) => "write that name: by two names, one unit would be taken for two",
            Self::RefusesStart => "start_unit names a unit that may be started: take that line out of the unit",
            Self::RefusesStop => "leave stop_when_idle out, or take that line out of the unit",
            Self::StopsUnneeded => "take that line out of the unit: stop_when_idle stops the unit",
        }
    }
}

/// After the name of the unit: `localai.service is masked`.
impl fmt::Display for UnitObstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("does not exist"),
            Self::Masked => f.write_str("is masked, so systemd does not start it"),
            Self::Broken(why) => write!(f, "is not loaded by systemd: {why}"),
            Self::Alias(id) => write!(f, "is an alias of {id}"),
            Self::RefusesStart => f.write_str("has RefuseManualStart=yes, so nothing can start it for a client"),
            Self::RefusesStop => f.write_str("has RefuseManualStop=yes, so nothing can stop it when it is idle"),
            Self::StopsUnneeded => {
                f.write_str("has StopWhenUnneeded=yes, so systemd would stop it while clients use it")
            }
        }
    }
}

/// What a manager has said of units. Each unit is asked about once.
#[derive(Debug)]
pub struct StartableUnits {
    scope: Scope,
    /// `None` for a unit that the manager did not answer about.
    known: Mutex<HashMap<String, Option<ShownUnit>>>,
}

impl StartableUnits {
    /// Units of this manager, none of which has been asked about.
    pub fn of(scope: Scope) -> Self {
        Self { scope, known: Mutex::default() }
    }

    /// Asks about those of `units` that are not known yet, in one call; nothing is asked where all are known.
    pub fn ask<'a>(&self, units: impl IntoIterator<Item = &'a str>) {
        let mut known = lock(&self.known);
        let mut new: Vec<&str> = units.into_iter().filter(|unit| !known.contains_key(*unit)).collect();
        new.sort_unstable();
        new.dedup();
        if new.is_empty() {
            return;
        }
        let mut arguments = vec!["show", PROPERTIES, "--"];
        arguments.extend(&new);
        let answer = self.scope.ask(&arguments, PATIENCE).ok().filter(|answer| answer.status.success());
        let shown = answer.map(|answer| ShownUnit::read_all(&answer.text)).filter(|shown| shown.len() == new.len());
        let mut shown = shown.into_iter().flatten();
        known.extend(new.into_iter().map(|unit| (unit.to_owned(), shown.next())));
    }

    /// Why a unit that was asked about cannot be started, or not stopped where it is to be stopped (`stops`).
    pub fn obstacle(&self, unit: &str, stops: bool) -> Option<UnitObstacle> {
        obstacle(unit, lock(&self.known).get(unit)?.as_ref()?, stops)
    }

    /// What keeps a unit that was asked about active, in words: `is needed by multi-user.target`.
    pub fn kept_active(&self, unit: &str) -> Option<String> {
        kept_active(lock(&self.known).get(unit)?.as_ref()?)
    }
}

fn obstacle(unit: &str, shown: &ShownUnit, stops: bool) -> Option<UnitObstacle> {
    let yes = |key| shown.last(key).as_deref() == Some("yes");
    match shown.last("LoadState").unwrap_or_default().as_str() {
        "not-found" => return Some(UnitObstacle::NotFound),
        "masked" => return Some(UnitObstacle::Masked),
        "error" | "bad-setting" => {
            // NAME "TEXT"
            let why = shown.last("LoadError").unwrap_or_default();
            let text = why.split_once('"').map_or(why.as_str(), |(_, text)| text.trim_end_matches('"'));
            return Some(UnitObstacle::Broken(text.to_owned()));
        }
        _ => {}
    }
    if let Some(id) = shown.last("Id").filter(|id| id != unit) {
        return Some(UnitObstacle::Alias(id));
    }
    if yes("RefuseManualStart") {
        return Some(UnitObstacle::RefusesStart);
    }
    if yes("StopWhenUnneeded") {
        return Some(UnitObstacle::StopsUnneeded);
    }
    (stops && yes("RefuseManualStop")).then_some(UnitObstacle::RefusesStop)
}

fn kept_active(shown: &ShownUnit) -> Option<String> {
    let lists = NEEDED_BY.iter().flat_map(|list| shown.all(list)).flat_map(str::split_ascii_whitespace);
    let mut units: Vec<&str> = lists.collect();
    units.sort_unstable();
    units.dedup();
    let enabled = shown.last("UnitFileState").is_some_and(|state| matches!(&*state, "enabled" | "enabled-runtime"));
    match units.is_empty() {
        false => Some(format!("is needed by {}", units.join(", "))),
        true => enabled.then(|| "is enabled".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(lines: &str) -> ShownUnit {
        ShownUnit::read_all(&format!("Id=a.service\n{lines}")).remove(0)
    }

    #[test]
    fn each_obstacle_is_read_from_what_systemd_shows() {
        for (lines, starts, stops) in [
            ("LoadState=loaded\nRefuseManualStart=no\nRefuseManualStop=no\nStopWhenUnneeded=no", None, None),
            ("LoadState=not-found", Some(UnitObstacle::NotFound), Some(UnitObstacle::NotFound)),
            ("LoadState=masked", Some(UnitObstacle::Masked), Some(UnitObstacle::Masked)),
            ("LoadState=loaded\nRefuseManualStop=yes", None, Some(UnitObstacle::RefusesStop)),
            (
                "LoadState=loaded\nRefuseManualStart=yes",
                Some(UnitObstacle::RefusesStart),
                Some(UnitObstacle::RefusesStart),
            ),
            (
                "LoadState=loaded\nStopWhenUnneeded=yes",
                Some(UnitObstacle::StopsUnneeded),
                Some(UnitObstacle::StopsUnneeded),
            ),
            ("", None, None),
        ] {
            assert_eq!(
                [false, true].map(|stop| obstacle("a.service", &shown(lines), stop)),
                [starts, stops],
                "{lines}"
            );
        }
        let error =
            "LoadState=bad-setting\nLoadError=org.freedesktop.systemd1.BadUnitSetting \"Unit has no ExecStart.\"";
        assert_eq!(
            obstacle("a.service", &shown(error), false),
            Some(UnitObstacle::Broken("Unit has no ExecStart.".into()))
        );
        let alias = obstacle("alias.service", &shown("LoadState=loaded\nRefuseManualStart=yes"), false);
        assert_eq!(alias, Some(UnitObstacle::Alias("a.service".into())));
    }

    #[test]
    fn who_keeps_a_unit_active_is_read_from_all_lists() {
        let lists = "RequiredBy=b.service a.service\nWantedBy=a.service\nUpheldBy=\nUnitFileState=enabled";
        let words = |lines: &str| kept_active(&shown(lines)).unwrap_or_default();
        assert_eq!(words(lists), "is needed by a.service, b.service");
        assert_eq!(words("WantedBy=\nUnitFileState=enabled"), "is enabled");
        assert_eq!(words("WantedBy=\nUnitFileState=static"), "");
    }
}
