//! Socket units as `status` tells of them: what their files say, what systemd makes of them, what the service has.
//!
//! | systemd says | the service | state | what the row advises |
//! |---|---|---|---|
//! | `bad-setting`, `error` | whatever | down, off | what systemd-analyze(1) finds; daemon-reload when that is nothing |
//! | `not-found`, and there is a file | whatever | off | daemon-reload |
//! | active | has the socket | as the service says | restart of the socket where its unit has changed |
//! | active | runs without the socket | down | restart of the socket where nobody listens, else of the service |
//! | active, and somebody listens | does not run | ready | |
//! | active, and nobody listens | does not run | down | restart of the socket |
//! | failed | whatever | down | who has the address, or which limit was reached |
//! | inactive, enabled | whatever | down | start, or the condition that does not hold |
//! | inactive | whatever | off | |

use std::{collections::BTreeMap, ffi::OsString, time::Duration};

use super::{
    place::{ListeningSockets, SocketPlace},
    row::{ListenerRow, RowState},
    service::AskedService,
};
use crate::{
    cli::{
        check, systemctl,
        units::{self, FoundUnit, Scope},
    },
    control::api,
    log::escape,
    spec::{Config, ListenPlace, SocketKind},
};

/// What is asked of systemd about a unit.
const PROPERTIES: [&str; 12] = [
    "Id",
    "LoadState",
    "LoadError",
    "ActiveState",
    "UnitFileState",
    "Result",
    "NeedDaemonReload",
    "ConditionResult",
    "ConditionTimestampMonotonic",
    "FileDescriptorName",
    "Listen",
    "Triggers",
];
/// How long systemd-analyze may take about a unit that systemd rejects.
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket unit, as its files and as systemd say.
pub(super) struct KnownUnit {
    name: String,
    pub(super) found: Option<FoundUnit>,
    /// Why its file cannot be read.
    bad: Option<String>,
    shown: systemctl::ShownUnit,
}

/// The socket units there are: by their files, and instances of templates that systemd has loaded.
pub(super) fn all(service: &AskedService) -> Vec<KnownUnit> {
    let prefix = service.program.prefix;
    let (found, bad) = units::survey(&service.scope.search_path(), &[prefix]);
    let mut all: BTreeMap<String, (Option<FoundUnit>, Option<String>)> = BTreeMap::new();
    // A template listens nowhere itself.
    let found = found.into_iter().filter(|found| !found.name.contains("@."));
    all.extend(found.map(|found| (found.name.clone(), (Some(found), None))));
    all.extend(bad.into_iter().map(|bad| (bad.name, (None, Some(format!("{}: {}", bad.path.display(), bad.why))))));
    for name in systemctl::loaded(service.scope, prefix) {
        all.entry(name).or_default();
    }
    let names: Vec<String> = all.keys().cloned().collect();
    let shown = systemctl::show(service.scope, &PROPERTIES, &names).unwrap_or_default();
    let shown = shown.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    all.into_iter()
        .zip(shown)
        .map(|((name, (found, bad)), shown)| KnownUnit { name, found, bad, shown: shown.unwrap_or_default() })
        .collect()
}

/// What the rows of socket units are made of.
pub(super) struct UnitRows<'a> {
    pub(super) service: &'a AskedService,
    pub(super) units: &'a [KnownUnit],
    pub(super) config: &'a Config,
    /// The listeners of the service, without those that a row has.
    pub(super) theirs: Vec<api::Listener>,
    /// The service is active.
    pub(super) running: bool,
    sockets: ListeningSockets,
}

impl<'a> UnitRows<'a> {
    /// The rows of all units. What remains in `theirs` belongs to no unit.
    pub(super) fn make(
        service: &'a AskedService,
        units: &'a [KnownUnit],
        config: &'a Config,
        live: Option<&api::Status>,
    ) -> (Vec<ListenerRow>, Vec<api::Listener>) {
        let theirs = live.map(|live| live.listeners.clone()).unwrap_or_default();
        let sockets = ListeningSockets::read();
        let mut made = Self { service, units, config, theirs, running: live.is_some(), sockets };
        let rows = units.iter().flat_map(|unit| made.rows(unit)).collect();
        (rows, made.theirs)
    }

    fn rows(&mut self, unit: &KnownUnit) -> Vec<ListenerRow> {
        let places = unit.places();
        if places.is_empty() {
            return unit.without_place(self.service.scope).into_iter().collect();
        }
        // One that systemd does not listen for may still name an address that another listens on.
        let gone = unit.shown.last("ActiveState").is_some_and(|state| matches!(state.as_str(), "inactive" | "failed"));
        let mut rows = Vec::new();
        for place in places {
            let called = unit.shown.last("FileDescriptorName").map(|name| escape(name.as_bytes()));
            let at = |listener: &&api::Listener| SocketPlace::of_service(listener) == place;
            let same = |listener: &&api::Listener| at(listener) && Some(&listener.name) == called.as_ref();
            let index = |wanted: &dyn Fn(&&api::Listener) -> bool| self.theirs.iter().position(|one| wanted(&one));
            match index(&same).or_else(|| index(&at)).filter(|_| !gone) {
                Some(index) => rows.push(self.served(unit, index, called.as_deref())),
                None => {
                    let old = if gone { None } else { self.left_behind(&place, called.as_deref()) };
                    rows.push(self.unserved(unit, &place, old.as_ref()));
                    rows.extend(old.map(|old| unit.owns(ListenerRow::of_service(old))));
                }
            }
        }
        rows
    }

    /// The row of a listener that the service has.
    fn served(&mut self, unit: &KnownUnit, index: usize, called: Option<&str>) -> ListenerRow {
        let mut row = ListenerRow::of_service(self.theirs.remove(index));
        let (flag, name) = (self.service.scope.flag(), &unit.name);
        if row.reason.is_none() {
            row.reason = if unit.is_stale() {
                Some(format!(
                    "the file of the unit has changed; run: systemctl {flag}daemon-reload; systemctl {flag}restart {name}"
                ))
            } else if called.is_some_and(|called| called != row.name) {
                let new = called.unwrap_or_default();
                Some(format!("the unit says {new} now, and is served as before; run: systemctl {flag}restart {name}"))
            } else {
                None
            };
        }
        unit.owns(row)
    }

    /// The listener that the service still has from before the unit got another address: it has the unit's name, and its
    /// address is that of no unit. It is taken.
    fn left_behind(&mut self, place: &SocketPlace, called: Option<&str>) -> Option<api::Listener> {
        let called = called?;
        let claimed = |listener: &api::Listener| {
            let theirs = SocketPlace::of_service(listener);
            self.units.iter().any(|unit| unit.places().contains(&theirs))
        };
        let is_old = |one: &api::Listener| one.name == called && one.kind == place.kind && !claimed(one);
        let index = self.theirs.iter().position(is_old)?;
        Some(self.theirs.remove(index))
    }

    /// A listener of a unit that the service, if it runs, does not have.
    fn unserved(&self, unit: &KnownUnit, place: &SocketPlace, old: Option<&api::Listener>) -> ListenerRow {
        let meant = match (&unit.found, place.kind) {
            (Some(found), Some(kind)) => {
                check::leads_to(found, kind, self.config, self.service.scope).map_err(|faults| faults.to_string())
            }
            (_, None) => Err("sockets of this kind are not forwarded; use ListenStream=".to_owned()),
            (None, Some(_)) => Ok(None),
        };
        let why = meant.as_ref().err();
        let (state, reason) = self.state(unit, place, why, old);
        let (flag, wrong) = (self.service.scope.flag(), matches!(state, RowState::Off | RowState::Ready));
        let reason = match reason {
            None if wrong && unit.is_stale() => {
                Some(format!("the file of the unit has changed; run: systemctl {flag}daemon-reload"))
            }
            reason => reason,
        };
        let written = unit.found.as_ref().and_then(|found| found.unit.fd_name());
        let label = written.and_then(|name| self.config.labelled(&name.value)?.label().map(|label| label.to_string()));
        unit.owns(ListenerRow {
            address: place.local.to_string(),
            transport: place.kind.map(SocketKind::word),
            label,
            name: written.map(|name| escape(name.value.as_bytes())).unwrap_or_default(),
            upstream: meant.ok().flatten().map(|upstream| escape(upstream.as_bytes())).unwrap_or_default(),
            state,
            reason,
            ..ListenerRow::default()
        })
    }

    /// The table of this file.
    fn state(
        &self,
        unit: &KnownUnit,
        place: &SocketPlace,
        why: Option<&String>,
        old: Option<&api::Listener>,
    ) -> (RowState, Option<String>) {
        let (flag, name) = (self.service.scope.flag(), &unit.name);
        let idle = if unit.is_wanted() { RowState::Down } else { RowState::Off };
        if let Some(trouble) = unit.not_loaded(self.service.scope) {
            return (idle, Some(trouble));
        }
        let restart = format!("run: systemctl {flag}restart {name}");
        let Some(active) = unit.shown.last("ActiveState") else {
            return (RowState::Off, Some("systemd does not answer".to_owned()));
        };
        match (active.as_str(), why) {
            ("active" | "activating", Some(why)) => (RowState::Refused, Some(why.clone())),
            ("active" | "activating", None) if old.is_some() => {
                let old = old.map(|old| old.address.as_str()).unwrap_or_default();
                (RowState::Down, Some(format!("the unit has changed, and {old} is still open in its place; {restart}")))
            }
            ("active", None) if !unit.is_elsewhere() && self.sockets.has(place) == Some(false) => (
                RowState::Down,
                Some(format!("nobody listens there: the unit has changed since it started; {restart}")),
            ),
            ("active" | "activating", None) if !self.running => (RowState::Ready, None),
            ("active" | "activating", None) => {
                let service = self.service.unit();
                (RowState::Down, Some(format!("the service was not passed it; run: systemctl {flag}restart {service}")))
            }
            ("failed", _) => (RowState::Down, Some(self.failure(unit, place))),
            (_, Some(why)) => (idle, Some(why.clone())),
            (_, None) if unit.is_wanted() => (RowState::Down, Some(unit.not_started(flag))),
            (_, None) => (RowState::Off, None),
        }
    }

    /// Why systemd calls a unit failed, and what to do.
    fn failure(&self, unit: &KnownUnit, place: &SocketPlace) -> String {
        let (flag, name, service) = (self.service.scope.flag(), &unit.name, self.service.unit());
        let result = unit.shown.last("Result").unwrap_or_default();
        let start = format!("run: systemctl {flag}start {name}");
        match result.as_str() {
            "resources" => {
                let place = place.listen_place().filter(|_| !unit.is_elsewhere());
                let own = self.service.scope == Scope::User;
                match place.and_then(|place| check::hindrance(&place, own, |taken| self.unit_at(taken))) {
                    Some(what) => format!("systemd cannot listen there: {what}; correct that, then {start}"),
                    None => format!(
                        "systemd could not listen there (resources), and nothing is in the way now; {start}; \
                         if that fails: journalctl {flag}-u {name}"
                    ),
                }
            }
            "service-start-limit-hit" => format!(
                "{service} failed too often; see: systemctl {flag}status {service}; \
                 then run: systemctl {flag}reset-failed {service} {name}; systemctl {flag}start {name}"
            ),
            "trigger-limit-hit" | "start-limit-hit" => format!(
                "systemd stopped it because it was started too often ({result}); \
                 run: systemctl {flag}reset-failed {name}; systemctl {flag}start {name}"
            ),
            _ => format!("systemd calls it failed ({result}); see: journalctl {flag}-u {name}; then {start}"),
        }
    }

    /// The socket unit that listens at a place: one of ours, or another of either manager.
    fn unit_at(&self, taken: &ListenPlace) -> Option<String> {
        let holds = |unit: &&KnownUnit| {
            let active = unit.shown.last("ActiveState").as_deref() == Some("active");
            active && unit.places().iter().filter_map(SocketPlace::listen_place).any(|place| place.excludes(taken))
        };
        let ours = self.units.iter().find(holds).map(|unit| unit.name.clone());
        ours.or_else(|| Some(check::listening().into_iter().find(|(_, place)| place.excludes(taken))?.0))
    }
}

impl KnownUnit {
    /// What it listens on: as systemd has it, else as its file says.
    fn places(&self) -> Vec<SocketPlace> {
        let shown = self.shown.listens();
        if !shown.is_empty() {
            return shown.iter().map(|(address, kind)| SocketPlace::of_systemd(address, kind)).collect();
        }
        let found = self.found.as_ref();
        let lines = found.map(|found| found.unit.listens()).unwrap_or_default();
        lines.iter().map(|line| SocketPlace::of_line(line, &line.setting.value)).collect()
    }

    /// A row of this unit.
    fn owns(&self, row: ListenerRow) -> ListenerRow {
        ListenerRow {
            unit: Some(self.name.clone()),
            active: self.shown.last("ActiveState"),
            enabled: self.shown.last("UnitFileState"),
            ..row
        }
    }

    /// The unit is enabled: a link in a `.wants` directory starts it.
    fn is_wanted(&self) -> bool {
        self.shown.last("UnitFileState").is_some_and(|state| matches!(state.as_str(), "enabled" | "enabled-runtime"))
    }

    /// Whether its file has changed since systemd read it. Of a unit that is not loaded systemd says so at any time,
    /// because it compares drop-ins with those of loaded units (`unit_need_daemon_reload` of its unit.c).
    fn is_stale(&self) -> bool {
        self.is_loaded() && self.shown.last("NeedDaemonReload").as_deref() == Some("yes")
    }

    fn is_loaded(&self) -> bool {
        self.shown.last("LoadState").is_none_or(|state| state == "loaded")
    }

    /// Whether it listens in another network namespace, whose sockets are not in our tables.
    fn is_elsewhere(&self) -> bool {
        let set = |key| self.found.as_ref().is_none_or(|found| found.unit.last("Socket", key).is_some());
        ["NetworkNamespacePath", "PrivateNetwork", "JoinsNamespaceOf"].into_iter().any(set)
    }

    /// Why systemd has not loaded the unit, and what to do.
    fn not_loaded(&self, scope: Scope) -> Option<String> {
        let (flag, name) = (scope.flag(), &self.name);
        if let Some(bad) = &self.bad {
            return Some(escape(bad.as_bytes()));
        }
        let reload = format!("run: systemctl {flag}daemon-reload");
        match self.shown.last("LoadState").as_deref() {
            Some("bad-setting" | "error") => {
                let start = if self.is_wanted() { format!("; systemctl {flag}start {name}") } else { String::new() };
                Some(match self.rejected(scope) {
                    Some(why) => {
                        format!("systemd rejects the unit: {why}; correct its file, then {reload}{start}")
                    }
                    None => format!("systemd rejected the unit, and its file is correct now; {reload}{start}"),
                })
            }
            Some("not-found") if self.found.is_some() => Some(format!("systemd does not know the unit yet; {reload}")),
            Some("masked") => Some(format!("the unit is masked; run: systemctl {flag}unmask {name}")),
            _ => None,
        }
    }

    /// What is wrong with the file that systemd rejects, as it is now; `None` where it is correct.
    fn rejected(&self, scope: Scope) -> Option<String> {
        let told = self.shown.last("LoadError").unwrap_or_default();
        let told = told.split_once('"').map_or(told.as_str(), |(_, text)| text.trim_end_matches('"')).to_owned();
        let Some(found) = &self.found else { return Some(escape(told.as_bytes())) };
        let file: OsString = found.path.with_file_name(&self.name).into();
        let Ok(lines) = scope.verify(&[file], PATIENCE) else { return Some(escape(told.as_bytes())) };
        let fatal = lines.lines().find_map(|line| line.strip_prefix(self.name.as_str())?.strip_prefix(": "));
        let still = lines.lines().any(|line| line.contains(&self.name) && line.contains("bad unit file setting"));
        let why = fatal.or_else(|| still.then_some(told.as_str()))?;
        Some(escape(why.trim_end_matches('.').as_bytes()))
    }

    /// Why a unit that was enabled is not active.
    fn not_started(&self, flag: &str) -> String {
        let checked = self.shown.last("ConditionTimestampMonotonic").is_some_and(|at| at != "0");
        let name = &self.name;
        if checked && self.shown.last("ConditionResult").as_deref() == Some("no") {
            return format!("enabled, and a condition of the unit does not hold; see: systemctl {flag}status {name}");
        }
        format!("enabled, and not started; run: systemctl {flag}start {name}")
    }

    /// The row of a unit that listens nowhere.
    fn without_place(&self, scope: Scope) -> Option<ListenerRow> {
        let told = self.not_loaded(scope);
        if self.found.is_none() && told.is_none() {
            return None; // loaded by its name alone, because another unit names it, or its file is gone
        }
        let nowhere = "the unit listens nowhere: add ListenStream= below [Socket]".to_owned();
        let state = if self.is_wanted() || self.bad.is_some() { RowState::Down } else { RowState::Off };
        Some(self.owns(ListenerRow { state, reason: told.or(Some(nowhere)), ..ListenerRow::default() }))
    }
}
