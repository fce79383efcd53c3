//! Units that listeners start: whether each can be started and stopped again, and which other service starts it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use super::{
    configuration::{CheckedConfig, named_sockets},
    finding::Finding,
    meaning::{is_label, meaning},
};
use crate::{
    cli::{
        config::{Sources, load_alone},
        units::{FoundUnit, Scope},
    },
    service::unit_flaws,
    spec::{Config, Options, PREFIXES, StartUnit, UnitUse, unit::Consequence},
    systemd::startable::StartableUnits,
};

/// systemd refuses the sixth start of a unit within 10 s (DefaultStartLimitIntervalSec=, DefaultStartLimitBurst=).
const START_LIMIT: Duration = Duration::from_secs(10);

/// A unit that a listener or a forward starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedUnit {
    /// Where it is written, for people.
    who: String,
    unit: StartUnit,
    stop_when_idle: Option<Duration>,
    /// In the name of a socket, and not in a configuration, whose faults are known already.
    in_name: bool,
}

impl NamedUnit {
    fn new(who: String, options: &Options, in_name: bool) -> Option<Self> {
        let unit = options.start_unit.clone()?;
        Some(Self { who, unit, stop_when_idle: options.stop_when_idle, in_name })
    }
}

/// The units that the forwards of a configuration start.
pub(super) fn of_forwards(checked: &CheckedConfig) -> Vec<NamedUnit> {
    let named = |(who, forward): &(String, crate::spec::Forward)| NamedUnit::new(who.clone(), &forward.options, false);
    checked.forwards.iter().filter_map(named).collect()
}

/// The units that the listeners of socket units start.
pub(super) fn of_units<'a>(
    found: impl IntoIterator<Item = &'a FoundUnit>,
    config: &Config,
    scope: Scope,
) -> Vec<NamedUnit> {
    let mut named: Vec<NamedUnit> = Vec::new();
    for unit in found {
        let of_listeners = named_sockets(unit, scope).into_iter().filter_map(|(_, kind, _)| {
            let forward = meaning(unit, kind, config, scope).ok()?;
            let line = unit.unit.fd_name().map(|name| format!(" ({}:{})", name.file, name.line)).unwrap_or_default();
            NamedUnit::new(format!("{}{line}", unit.name), &forward.options, !is_label(unit, scope))
        });
        for one in of_listeners {
            if !named.contains(&one) {
                named.push(one); // each socket of the unit has the same name
            }
        }
    }
    named
}

/// The units that the other program's service of the system starts: by its configuration and by its socket units.
pub(super) fn of_other(program: &str, others: &[(FoundUnit, Scope)]) -> Vec<NamedUnit> {
    let Some(prefix) = PREFIXES.into_iter().find(|prefix| prefix.trim_end_matches('-') != program) else {
        return Vec::new();
    };
    let file = PathBuf::from(format!("/etc/{}.toml", prefix.trim_end_matches('-')));
    let sources = Sources { file: None, places: vec![file], forwards: Vec::new() };
    let config = load_alone(&sources.texts()).config;
    let theirs = |(unit, scope): &&(FoundUnit, Scope)| *scope == Scope::System && unit.name.starts_with(prefix);
    let units = of_units(others.iter().filter(theirs).map(|(unit, _)| unit), &config, Scope::System);
    let forwards = config.entries().iter().filter_map(|entry| {
        let (origin, line) = entry.place();
        NamedUnit::new(format!("{origin}:{line}"), &entry.forward()?.options, false)
    });
    units.into_iter().chain(forwards).collect()
}

/// What is wrong with the units that `named` start, and what their authors should know. `other` are those of the other
/// program's service.
pub(super) fn look(named: &[NamedUnit], other: &[NamedUnit], units: &StartableUnits) -> Vec<Finding> {
    units.ask(named.iter().map(|one| one.unit.as_str()));
    let mut found = Vec::new();
    for NamedUnit { who, unit, stop_when_idle, in_name } in named {
        let one = UnitUse { unit, stops: stop_when_idle.is_some() };
        if let Some(flaw) = unit_flaws(units, &[one]).into_iter().flatten().next() {
            if *in_name {
                let what = format!("{who}: start_unit: {}", flaw.what);
                found.push(Finding::plain(what, flaw.hint, Consequence::NotServed));
            }
            continue;
        }
        let Some(time) = stop_when_idle else { continue };
        if let Some(why) = units.kept_active(unit.as_str()) {
            let what = format!("{who}: {unit} {why}, so the service never stops it while that is so");
            let hint = format!("run: systemctl disable {unit}, or leave stop_when_idle out");
            found.push(Finding::plain(what, hint, Consequence::Served));
        }
        if *time < START_LIMIT {
            let what = format!(
                "{who}: stop_when_idle={} allows more than 5 starts of {unit} in 10 s, which systemd refuses",
                time.as_secs_f64()
            );
            let hint = "write at least 10, or set StartLimitIntervalSec= and StartLimitBurst= in the unit";
            found.push(Finding::plain(what, hint, Consequence::Served));
        }
    }
    found.extend(shared(named, other));
    found
}

/// Units that two services start: each would stop the unit while the other one's clients use it.
fn shared(named: &[NamedUnit], other: &[NamedUnit]) -> Vec<Finding> {
    let mut of_unit: BTreeMap<&StartUnit, (BTreeSet<&str>, BTreeSet<&str>)> = BTreeMap::new();
    named.iter().for_each(|one| _ = of_unit.entry(&one.unit).or_default().0.insert(&one.who));
    other.iter().for_each(|one| _ = of_unit.entry(&one.unit).or_default().1.insert(&one.who));
    let both = of_unit.into_iter().filter(|(_, (ours, theirs))| !ours.is_empty() && !theirs.is_empty());
    let words = |who: BTreeSet<&str>| who.into_iter().collect::<Vec<_>>().join(", ");
    both.map(|(unit, (ours, theirs))| {
        let what = format!("{unit} is started by listeners of two services: {} and {}", words(ours), words(theirs));
        let hint = "name the unit in listeners of one service: a service knows only its own sessions";
        Finding::plain(what, hint, Consequence::SharedUnit)
    })
    .collect()
}
