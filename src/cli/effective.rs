//! `config`: the configuration as a start would read the files, each value with its origin.
//!
//! It is read from the files as a start would read it; what `status` says of the running service may be older.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{
    check,
    config::Sources,
    control::{Program, print, print_json},
    units::{self, Scope},
};
use crate::{
    log::escape,
    report::{Code, Fatal},
    spec::{Beside, Config, EffectiveValue, Origin, SocketKind, ValueOrigin, fdname},
};

/// Options of `config`.
#[derive(Clone, Debug, Args)]
pub(super) struct EffectiveOptions {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Read this configuration instead of the usual one
    #[arg(long, value_name = "PATH")]
    pub(super) config: Option<std::path::PathBuf>,
}

/// What `config --json` prints: one object. Fields may be added.
#[derive(Debug, Serialize)]
struct EffectiveReport {
    /// `qrexec-connect` or `pfwd`.
    program: &'static str,
    /// The files that were read, in their order.
    files: Vec<String>,
    /// The forwards of files and arguments, then the sockets of units.
    listeners: Vec<EffectiveListener>,
    /// What is wrong with files and arguments.
    faults: Vec<String>,
}

/// A forward, or a socket of a unit, with the values in force.
#[derive(Debug, Serialize)]
struct EffectiveListener {
    /// Where it is written: a file and line, an argument, or a socket unit.
    origin: String,
    /// The address, for a socket of a unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// Why it is not served; empty when nothing is wrong.
    faults: Vec<String>,
    values: Vec<OriginalValue>,
}

/// A value.
#[derive(Debug, Serialize)]
struct OriginalValue {
    key: &'static str,
    value: String,
    /// `default`, `[defaults]` with its place, or the place alone.
    origin: String,
}

/// Prints the configuration as a start would read the files.
///
/// # Errors
/// Output that cannot be written. Faults are part of what is printed, and end with 78.
pub(super) fn run(
    options: &EffectiveOptions,
    sources: &Sources,
    program: Program,
    scope: Scope,
) -> Result<ExitCode, Fatal> {
    let report = gather(sources, program, scope);
    let faults = report.listeners.iter().map(|listener| listener.faults.len()).sum::<usize>() + report.faults.len();
    if options.json {
        print_json(&report)?
    } else {
        print(&text(&report))?
    };
    Ok(if faults == 0 { ExitCode::SUCCESS } else { Code::Config.into() })
}

fn gather(sources: &Sources, program: Program, scope: Scope) -> EffectiveReport {
    let units = units::find(&scope.search_path(), &[program.prefix]);
    let units: Vec<_> = units.into_iter().filter(|unit| !unit.name.contains("@.")).collect();
    let sockets = check::sockets(&units, scope);
    let texts = sources.texts();
    let names = texts.main.iter().chain(&texts.drop_ins).map(|text| escape(text.name.as_bytes())).collect();
    let loaded = sources.load(&Beside { sockets: &sockets, no_namespaces: check::no_namespaces(scope) });
    let config = &loaded.config;
    let mut listeners: Vec<EffectiveListener> = Vec::new();
    for entry in config.entries() {
        let (origin, line) = entry.place();
        let origin = match origin {
            Origin::File(_) => format!("{origin}:{line}"),
            _ => origin.to_string(),
        };
        let faults = entry.refused().iter().map(ToString::to_string).collect();
        listeners.push(EffectiveListener {
            origin,
            address: None,
            faults,
            values: original(config.effective(entry), None),
        });
    }
    for unit in &units {
        for (name, kind, address) in check::named_sockets(unit, scope) {
            listeners.push(of_socket(&unit.name, &name, kind, address, config));
        }
    }
    let faults = loaded.faults.iter().map(ToString::to_string).collect();
    EffectiveReport { program: program.name, files: names, listeners, faults }
}

fn of_socket(unit: &str, name: &str, kind: SocketKind, address: String, config: &Config) -> EffectiveListener {
    let origin = escape(unit.as_bytes());
    let (values, faults) = match fdname::parse(name).and_then(|name| name.resolve(kind, config).map(|_| name)) {
        Ok(name) => (original(config.effective_name(&name, kind), Some(&origin)), Vec::new()),
        Err(faults) => (Vec::new(), faults.0.iter().map(ToString::to_string).collect()),
    };
    EffectiveListener { origin, address: Some(escape(address.as_bytes())), faults, values }
}

/// Values for printing; what a name says is cited by its unit.
fn original(values: Vec<EffectiveValue>, unit: Option<&str>) -> Vec<OriginalValue> {
    let origin = |origin: ValueOrigin| match (origin, unit) {
        (ValueOrigin::Written(place), Some(unit)) if place == "name" => unit.to_owned(),
        (ValueOrigin::Written(place), _) => place,
        (ValueOrigin::Defaults(place), _) => format!("[defaults] {place}"),
        (ValueOrigin::BuiltIn, _) => "default".to_owned(),
    };
    let value = |one: EffectiveValue| OriginalValue {
        key: one.key.name(),
        value: escape(one.value.as_bytes()),
        origin: origin(one.origin),
    };
    values.into_iter().map(value).collect()
}

fn text(report: &EffectiveReport) -> String {
    let mut out = String::new();
    for file in &report.files {
        out += &format!("# {file}\n");
    }
    if report.files.is_empty() {
        out += "# no configuration file\n";
    }
    for listener in &report.listeners {
        let address = listener.address.as_ref().map(|address| format!(" on {address}")).unwrap_or_default();
        out += &format!("\n{}{address}\n", listener.origin);
        let width = |part: fn(&OriginalValue) -> usize| listener.values.iter().map(part).max().unwrap_or(0);
        let (key, value) = (width(|one| one.key.len()), width(|one| one.value.chars().count()));
        for one in &listener.values {
            out += &format!("  {:key$}  {:value$}  {}\n", one.key, one.value, one.origin);
        }
        listener.faults.iter().for_each(|fault| out += &format!("  not served: {fault}\n"));
    }
    report.faults.iter().for_each(|fault| out += &format!("\nfault: {fault}\n"));
    out
}
