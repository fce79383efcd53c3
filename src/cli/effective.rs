//! `config`: each value with its origin. Where the service runs, its values; else what a start would read.
//!
//! A running service tells its texts, which may be older than the files: a file may have been changed without a reload,
//! or have a fault. Both kinds of texts are read by the same function as the service reads them.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{
    check,
    config::{Sources, load_beside},
    control::{Program, print, print_json, socket_path},
    units::{self, Scope},
    wrap::{columns, wrapped},
};
use crate::{
    control::{
        api,
        client::{CallFailed, ControlConnection},
    },
    log::escape,
    report::{Code, Fatal},
    spec::{Beside, Config, EffectiveValue, Origin, SocketKind, Text, Texts, ValueOrigin, fdname},
    systemd::startable::StartableUnits,
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

/// Whose values these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum ReportSource {
    /// Those of the running service.
    Service,
    /// Those that a start would have.
    Files,
}

/// A text in force, beside its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum FileState {
    /// The file holds that very text.
    Same,
    /// The file holds another text, or is gone.
    Changed,
    /// The service has no text of the file.
    Unread,
}

/// A text of the running service.
#[derive(Debug, Serialize)]
struct TextInForce {
    path: String,
    /// When it came into force, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    state: FileState,
}

/// What `config --json` prints: one object. Fields may be added.
#[derive(Debug, Serialize)]
struct EffectiveReport {
    /// `qrexec-connect` or `pfwd`.
    program: &'static str,
    source: ReportSource,
    /// The command line of the running service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    arguments: Vec<String>,
    /// The texts of the running service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    texts: Vec<TextInForce>,
    /// Why the running service does not tell its values, where one runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    untold: Option<String>,
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
    /// The faults of the forward; empty when nothing is wrong.
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

/// Prints the values of the running service, or those that a start would have.
///
/// # Errors
/// Output that cannot be written. Faults are part of what is printed, and end with 78.
pub(super) fn run(
    options: &EffectiveOptions,
    sources: &Sources,
    program: Program,
    scope: Scope,
) -> Result<ExitCode, Fatal> {
    let (mut untold, mut running) = (None, None);
    if options.config.is_none() {
        let asked = ControlConnection::connect(&socket_path(program, scope))
            .and_then(|mut service| service.call::<api::Configuration>("Configuration", &serde_json::json!({})));
        match asked {
            Ok(configuration) => running = Some(configuration),
            Err(CallFailed::Connect(e)) if e.kind() != std::io::ErrorKind::PermissionDenied => {}
            Err(failed) => untold = Some(failed.to_string()),
        }
    }
    let mut report = match running {
        Some(configuration) => in_force(configuration, sources, program, scope),
        None => of_files(sources, program, scope),
    };
    report.untold = untold;
    let faults = report.listeners.iter().map(|listener| listener.faults.len()).sum::<usize>() + report.faults.len();
    if options.json {
        print_json(&report)?
    } else {
        print(&text(&report, columns()))?
    };
    Ok(if faults == 0 { ExitCode::SUCCESS } else { Code::Config.into() })
}

/// A socket with its name: where it is written, the name, the kind, the address.
type NamedSocket = (String, String, SocketKind, String);

/// The report about the files, as a start of the service would read them.
fn of_files(sources: &Sources, program: Program, scope: Scope) -> EffectiveReport {
    let sockets = sockets_of_units(program, scope);
    let texts = sources.texts();
    EffectiveReport { source: ReportSource::Files, ..report(&texts, &sockets, program, scope) }
}

fn sockets_of_units(program: Program, scope: Scope) -> Vec<NamedSocket> {
    let units = units::find(&scope.search_path(), &[program.prefix]);
    let units = units.into_iter().filter(|unit| !unit.name.contains("@."));
    let named = |unit: units::FoundUnit| {
        let all = check::named_sockets(&unit, scope).into_iter();
        all.map(|(name, kind, address)| (unit.name.clone(), name, kind, address)).collect::<Vec<_>>()
    };
    units.flat_map(named).collect()
}

/// What is in force in the running service.
fn in_force(configuration: api::Configuration, sources: &Sources, program: Program, scope: Scope) -> EffectiveReport {
    let units = sockets_of_units(program, scope);
    let sockets = configuration.sockets.into_iter().filter_map(|socket| {
        let (name, kind) = (socket.name, socket.kind?);
        let of_unit = |same_address: bool| {
            units.iter().find(|(_, other, of, address)| {
                *other == name && *of == kind && (!same_address || *address == socket.address)
            })
        };
        let unit = of_unit(true).or_else(|| of_unit(false));
        let unit = unit.map_or_else(|| "inherited socket".to_owned(), |(unit, ..)| unit.clone());
        Some((unit, name, kind, socket.address))
    });
    let sockets: Vec<NamedSocket> = sockets.collect();
    let now = sources.texts();
    let texts = configuration.files.iter().map(|file| {
        let mut present = now.main.iter().chain(&now.drop_ins);
        let same = present.any(|text| text.name == file.path && text.text.as_ref() == Ok(&file.text));
        let state = if same { FileState::Same } else { FileState::Changed };
        TextInForce { path: escape(file.path.as_bytes()), since: Some(file.since), state }
    });
    let mut texts: Vec<TextInForce> = texts.collect();
    let new =
        now.main.iter().chain(&now.drop_ins).filter(|text| !configuration.files.iter().any(|f| f.path == text.name));
    texts.extend(new.map(|text| TextInForce {
        path: escape(text.name.as_bytes()),
        since: None,
        state: FileState::Unread,
    }));
    let (drop_ins, main): (Vec<_>, Vec<_>) = configuration.files.into_iter().partition(|file| file.drop_in);
    let text = |file: api::ConfigurationFile| Text { name: file.path, text: Ok(file.text) };
    let of_service = Texts {
        main: main.into_iter().next().map(text),
        drop_ins: drop_ins.into_iter().map(text).collect(),
        forwards: configuration.forwards,
    };
    let report = report(&of_service, &sockets, program, scope);
    EffectiveReport { source: ReportSource::Service, arguments: configuration.arguments, texts, ..report }
}

/// The values of texts beside sockets.
fn report(texts: &Texts, sockets: &[NamedSocket], program: Program, scope: Scope) -> EffectiveReport {
    let names = texts.main.iter().chain(&texts.drop_ins).map(|text| escape(text.name.as_bytes())).collect();
    let beside: Vec<_> = sockets.iter().map(|(_, name, kind, _)| (name.clone(), *kind)).collect();
    let loaded = load_beside(
        texts,
        &Beside { sockets: &beside, no_namespaces: check::no_namespaces(scope) },
        &StartableUnits::of(scope),
    );
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
    for (unit, name, kind, address) in sockets {
        listeners.push(of_socket(unit, name, *kind, address, config));
    }
    let faults = loaded.faults.iter().map(ToString::to_string).collect();
    EffectiveReport {
        program: program.name,
        source: ReportSource::Files,
        arguments: Vec::new(),
        texts: Vec::new(),
        untold: None,
        files: names,
        listeners,
        faults,
    }
}

fn of_socket(unit: &str, name: &str, kind: SocketKind, address: &str, config: &Config) -> EffectiveListener {
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

/// For people. A table stays one; the sentences around it are broken where a terminal is narrower.
fn text(report: &EffectiveReport, columns: Option<usize>) -> String {
    let mut out = String::new();
    match (report.source, &report.untold) {
        (ReportSource::Service, _) => {
            let line = format!("# in force in the running service: {}\n", report.arguments.join(" "));
            out += &wrapped(&line, columns);
        }
        (ReportSource::Files, Some(why)) => {
            let line = format!("# as a start would read it; the running service does not tell its values: {why}\n");
            out += &wrapped(&line, columns);
        }
        (ReportSource::Files, None) => out += "# as a start would read it\n",
    }
    for file in &report.files {
        let kept = report.texts.iter().any(|text| text.path == *file && text.state == FileState::Changed);
        let kept = if kept {
            ": an earlier text is in force; the file was changed since then and is not loaded, `status` says why"
        } else {
            ""
        };
        out += &wrapped(&format!("# {file}{kept}\n"), columns);
    }
    for text in report.texts.iter().filter(|text| text.state == FileState::Unread) {
        out += &format!(
            "# {}: nothing of it is in force; the next reload reads it, or `status` says why not\n",
            text.path
        );
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
        listener.faults.iter().for_each(|fault| out += &wrapped(&format!("  not served: {fault}\n"), columns));
    }
    report.faults.iter().for_each(|fault| out += &wrapped(&format!("\nerror: {fault}\n"), columns));
    out
}
