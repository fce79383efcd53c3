//! `check`: what each socket unit and each forward of the configuration means, and everything that is wrong with them,
//! before systemd and the service get to see them.
//!
//! A fault is what is not served, or not as it is written; `check` exits with 78 then. A warning is something else that
//! its author should know. Units that nobody asked about are read, too: a port belongs to one of all.

mod configuration;
mod finding;
mod machine;
mod manager;
mod meaning;
mod on_demand;
mod together;
mod unit;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use configuration::CheckedConfig;
pub(super) use configuration::{named_sockets, no_namespaces, sockets};
use finding::Finding;
pub(super) use finding::Weight;
pub(super) use machine::hindrance;
use manager::ManagerWord;
pub(super) use manager::listening;
pub(super) use meaning::leads_to;
use together::Known;
use unit::UnitReport;

use super::{
    config::Sources,
    control::Program,
    systemctl,
    units::{self, FoundUnit, Scope},
    wrap::{columns, wrapped},
};
use crate::{
    log::escape,
    report::{Code, Fatal},
    spec::{
        ListenPlace, PREFIXES, PlacedListener, SocketKind,
        unit::{Consequence, Unit},
    },
    sys::hard_limit,
    systemd::startable::StartableUnits,
};

/// The units and the configuration that a check is about.
#[derive(Clone, Debug)]
pub(super) struct CheckRequest {
    /// Whose units and configuration.
    pub(super) program: Program,
    /// Which manager's units.
    pub(super) scope: Scope,
    /// Units (names or paths) and configuration files (*.toml); without any, all of them.
    pub(super) what: Vec<String>,
    /// Where the configuration comes from.
    pub(super) sources: Sources,
    /// The files were named by the caller, not found at their usual places.
    pub(super) sources_named: bool,
}

/// Prints a line, broken where a terminal is narrower.
fn say(line: &str) {
    println!("{}", wrapped(line, columns()));
}

/// What was found, for the exit code and the last line.
#[derive(Default)]
struct CheckTally {
    served: usize,
    faults: usize,
    warnings: usize,
}

impl CheckTally {
    fn tell(&mut self, findings: &[Finding], indent: &str) {
        for finding in findings {
            match finding.weight {
                Weight::Fault => self.faults += 1,
                Weight::Warning => self.warnings += 1,
            }
            for line in finding.render().lines() {
                say(&if line.is_empty() { String::new() } else { format!("{indent}{line}") });
            }
        }
    }
}

/// Checks, and prints what each listener leads to.
///
/// # Errors
/// When anything is wrong, after everything was said.
pub(super) fn run(request: &CheckRequest) -> Result<ExitCode, Fatal> {
    let (program, scope) = (request.program, request.scope);
    let mut tally = CheckTally::default();
    let (files, names): (Vec<_>, Vec<_>) = request.what.iter().partition(|what| what.ends_with(".toml"));
    let (mut all, mut named) = (Vec::new(), Vec::new());
    let start_units = StartableUnits::of(scope);
    let everything = request.what.is_empty() && !request.sources_named;
    let found = asked(request, &names, everything, &mut tally);
    let others = others(&found, scope);
    // What the service is passed decides what its configuration means: a forward may be that of a socket.
    let theirs = others.iter().filter(|(unit, of)| *of == scope && unit.name.starts_with(program.prefix));
    let sockets = sockets(found.iter().chain(theirs.map(|(unit, _)| unit)), scope);
    for file in &files {
        let mut checked = configuration::read_file(Path::new(file), program, &sockets, scope, &start_units);
        look_at_descriptors(&mut checked, request, &sockets);
        show_configuration(&checked, &mut tally);
        place_forwards(&checked, true, &mut all);
        named.extend(on_demand::of_forwards(&checked));
    }
    let config = if files.is_empty() || !names.is_empty() || request.sources_named {
        let mut checked = configuration::read(&request.sources, &sockets, scope, &start_units);
        look_at_descriptors(&mut checked, request, &sockets);
        show_configuration(&checked, &mut tally);
        place_forwards(&checked, names.is_empty(), &mut all);
        if names.is_empty() {
            named.extend(on_demand::of_forwards(&checked));
        }
        checked.config
    } else {
        CheckedConfig::default().config
    };
    let manager = ManagerWord::ask(scope, &found);
    for unit in &found {
        println!("{} ({})", escape(unit.name.as_bytes()), escape(unit.path.as_os_str().as_encoded_bytes()));
        if unit.name.contains("@.") {
            template(unit, &mut tally);
            continue;
        }
        let mut report = unit::look(unit, &config, program, scope);
        if let Some(manager) = &manager {
            let more = manager.findings(unit, &report.findings, scope);
            report.findings.append(&mut more.into_iter().collect());
        }
        report.lines.iter().for_each(|line| say(&format!("  {line}")));
        tally.tell(&report.findings, "  ");
        tally.tell(&report.places, "  ");
        // A unit that systemd refuses, or that starts another service, serves nobody.
        tally.served += report.served;
        let active = manager.as_ref().is_some_and(|manager| manager.is_active(&unit.name));
        place_unit(report, true, active, &mut all);
    }
    let asked = found.iter().filter(|unit| !unit.name.contains("@."));
    named.extend(on_demand::of_units(asked, &config, scope));
    let of_other = if scope == Scope::System { on_demand::of_other(program.name, &others) } else { Vec::new() };
    for (unit, scope) in others {
        place_unit(unit::look(&unit, &config, program, scope), false, false, &mut all);
    }
    tally.tell(&on_demand::look(&named, &of_other, &start_units), "");
    let calls_per_qube = || manager::calls_per_qube(scope, program.name);
    tally.tell(&together::look(&all, program.name, manager.is_some(), calls_per_qube), "");
    if everything && found.is_empty() && all.iter().all(|one| !one.what.asked) && tally.faults == 0 {
        let home = scope.home().map(|dir| dir.display().to_string()).unwrap_or_default();
        say(&format!("no {}*.socket units and no forwards; make a unit in {home}", program.prefix));
    }
    summary(&tally, &found)
}

/// What there is to know about the places of a unit with that text, before it is written.
pub(super) fn of_places(name: &str, text: &str, program: Program, scope: Scope) -> Vec<Finding> {
    let path = scope.home().map(|home| home.join(name)).unwrap_or_default();
    let unit = Unit::parse(&path.to_string_lossy(), text);
    let found = FoundUnit { name: name.to_owned(), path, unit, has_install: false, unread: Vec::new() };
    let config = CheckedConfig::default().config;
    let mut all = Vec::new();
    let mut report = unit::look(&found, &config, program, scope);
    let places = std::mem::take(&mut report.places);
    place_unit(report, true, false, &mut all);
    for (other, of) in others(std::slice::from_ref(&found), scope) {
        place_unit(unit::look(&other, &config, program, of), false, false, &mut all);
    }
    let calls_per_qube = || manager::calls_per_qube(scope, program.name);
    places.into_iter().chain(together::look(&all, program.name, false, calls_per_qube)).collect()
}

fn summary(tally: &CheckTally, found: &[FoundUnit]) -> Result<ExitCode, Fatal> {
    let warnings = if tally.warnings > 0 { format!(", {}", count(tally.warnings, "warning")) } else { String::new() };
    if tally.faults > 0 {
        let units = if found.is_empty() { String::new() } else { format!(", {}", count(found.len(), "unit")) };
        let what = format!("{} found{warnings} (checked: configuration{units})", count(tally.faults, "error"));
        return Err(Fatal::new(Code::Config, what));
    }
    println!("{} can be served{warnings}", count(tally.served, "listener"));
    Ok(ExitCode::SUCCESS)
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Adds the faults of the forwards that would leave no descriptors for sessions.
fn look_at_descriptors(checked: &mut CheckedConfig, request: &CheckRequest, sockets: &[(String, SocketKind)]) {
    let by_hand = request.sources_named;
    let limit =
        || if by_hand { Some(hard_limit()) } else { manager::descriptor_limit(request.scope, request.program.name) };
    let more = configuration::without_descriptors(checked, sockets, limit);
    checked.findings.extend(more);
}

fn show_configuration(checked: &CheckedConfig, tally: &mut CheckTally) {
    print!("{}", checked.plan);
    tally.served += checked.forwards.iter().map(|(_, forward)| forward.legs.fronts().count()).sum::<usize>();
    tally.tell(&checked.findings, "");
}

/// The units that were asked about; what cannot be read is reported.
fn asked(request: &CheckRequest, names: &[&String], everything: bool, tally: &mut CheckTally) -> Vec<FoundUnit> {
    let path = request.scope.search_path();
    let (mut found, mut bad) =
        if everything { units::survey(&path, &[request.program.prefix]) } else { Default::default() };
    if everything && request.program.name == "qrexec-connect" {
        found.extend(units::without_prefix(&path, request.scope));
    }
    for name in names {
        match units::find_one(&path, &whole_name(name, request.program.prefix)) {
            Ok(unit) => found.push(unit),
            Err(unit) => bad.push(unit),
        }
    }
    // In the place of a template, or beside it, those of its instances that somebody has enabled or started.
    let templates: Vec<String> = found.iter().filter(|f| f.name.contains("@.")).map(|f| f.name.clone()).collect();
    let loaded =
        if templates.is_empty() { Vec::new() } else { systemctl::loaded(request.scope, request.program.prefix) };
    for template in templates {
        let stem = template.trim_end_matches(".socket");
        let running = loaded.iter().filter(|name| name.starts_with(stem)).cloned();
        let instances = units::enabled_instances(&path, &template).into_iter().chain(running);
        for instance in instances {
            if !found.iter().any(|unit| unit.name == instance) {
                found.extend(units::find_one(&path, &instance));
            }
        }
    }
    for unit in bad {
        let what = format!("{}: {}", unit.path.display(), unit.why);
        println!("{}", escape(unit.name.as_bytes()));
        let exists = unit.path.symlink_metadata().is_ok();
        let consequence = if exists { Consequence::Refused } else { Consequence::Unknown };
        tally.tell(&[Finding::plain(what, "correct or remove it", consequence)], "  ");
    }
    found
}

/// The name of a unit, for `gitweb` and `qrexec-connect-gitweb`, too; a path is one already.
fn whole_name(name: &str, prefix: &str) -> String {
    if name.contains('/') || name.ends_with(".socket") {
        return name.to_owned();
    }
    format!("{prefix}{}.socket", name.strip_prefix(prefix).unwrap_or(name))
}

/// A template is no listener; its lines are looked at, as far as they do not depend on the instance.
fn template(unit: &FoundUnit, tally: &mut CheckTally) {
    let example = unit.name.replace("@.", "@INSTANCE.");
    say(&format!("  a template: an instance of it, such as {example}, can be enabled and checked"));
    let findings: Vec<_> = unit.unit.judge().into_iter().map(Finding::from).collect();
    tally.tell(&findings, "  ");
}

/// The units of both managers and both programs that nobody asked about; those `found` are of one manager.
fn others(found: &[FoundUnit], asked: Scope) -> Vec<(FoundUnit, Scope)> {
    let mut others: Vec<(FoundUnit, Scope)> = Vec::new();
    for scope in [Scope::User, Scope::System] {
        for unit in units::find(&scope.search_path(), &PREFIXES) {
            let mut known = found.iter().chain(others.iter().map(|(other, _)| other));
            let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
            let known = known.any(|known| known.name == unit.name && real(&known.path) == real(&unit.path))
                || (scope == asked && found.iter().any(|known| known.name == unit.name))
                || unit.name.contains("@.");
            // The user's manager has no pfwd.
            let foreign = scope == Scope::User && unit.name.starts_with("pfwd-");
            if !known && !foreign {
                others.push((unit, scope));
            }
        }
    }
    others
}

fn place_unit(report: UnitReport, asked: bool, active: bool, all: &mut Vec<PlacedListener<Known>>) {
    all.extend(report.listeners.into_iter().map(|listener| PlacedListener {
        what: Known {
            who: listener.what.who,
            unit: Some(listener.what.unit),
            device: listener.what.device,
            max_calls: listener.what.max_calls,
            asked,
            active,
        },
        place: listener.place,
        upstream: listener.upstream,
    }));
}

fn place_forwards(checked: &CheckedConfig, asked: bool, all: &mut Vec<PlacedListener<Known>>) {
    for (who, forward) in &checked.forwards {
        let max_calls = forward.options.max_calls;
        all.extend(forward.legs.iter().filter_map(|leg| {
            Some(PlacedListener {
                what: Known { who: who.clone(), unit: None, device: None, max_calls, asked, active: false },
                place: ListenPlace::of(&leg.listen)?,
                upstream: Some(leg.upstream.clone()),
            })
        }));
    }
}

/// Options of `check`, of both programs.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CheckOptions {
    /// Socket units (names or paths) and configuration files (*.toml); without any, every unit and the configuration
    #[arg(value_name = "UNIT-OR-FILE")]
    pub(super) what: Vec<String>,
    /// Read this configuration instead of the usual one
    #[arg(long, value_name = "PATH")]
    pub(super) config: Option<PathBuf>,
}

impl CheckRequest {
    /// Plans the check that the options name.
    pub(super) fn new(options: &CheckOptions, program: Program, scope: Scope) -> Self {
        Self {
            program,
            scope,
            what: options.what.clone(),
            sources: (program.sources)(options.config.clone(), scope),
            sources_named: false,
        }
    }
}
