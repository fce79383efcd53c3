//! `qrexec-connect check`: what each socket unit and each forward of the configuration means, and everything that is
//! wrong with them, before systemd gets to see them.

use std::{
    env,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::config;
use crate::{
    cli::units::{self, FoundUnit, Scope},
    control::{METRICS, METRICS_UPSTREAM},
    log::escape,
    report::{Code, Fatal},
    spec::{
        Beside, Config, ConfigFault, Faults, Forward, PREFIXES, SocketKind, Upstream, fdname, policy_line,
        unit::{Listening, expand, rejected, repair},
        unnamed,
    },
};

/// Options of `check`.
#[derive(Clone, Debug, Args)]
pub(super) struct Check {
    /// Socket units (names or paths) and configuration files (*.toml); without any, every unit of the user and the
    /// configuration
    #[arg(value_name = "UNIT-OR-FILE")]
    what: Vec<String>,
    /// Look at the system's units instead of the user's
    #[arg(long)]
    system: bool,
    /// Read this configuration instead of the user's and the system's
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// What was found, for the exit code and the last line.
#[derive(Default)]
struct CheckTally {
    listeners: usize,
    faults: usize,
}

/// Checks, and prints what each listener leads to.
///
/// # Errors
/// When anything is wrong, after everything was said.
pub(super) fn run(options: &Check) -> Result<ExitCode, Fatal> {
    let scope = if options.system { Scope::System } else { Scope::User };
    let path = scope.search_path();
    let mut tally = CheckTally::default();
    let (files, names): (Vec<_>, Vec<_>) = options.what.iter().partition(|what| what.ends_with(".toml"));
    let mut found = Vec::new();
    if options.what.is_empty() {
        found = units::find(&path, &PREFIXES);
    }
    for name in names {
        match units::find_one(&path, name) {
            Ok(unit) => found.push(unit),
            Err(e) => {
                println!("{}: {e}", escape(name.as_bytes()));
                tally.faults += 1;
            }
        }
    }
    for file in files {
        config(Some(Path::new(file)), &found, &mut tally);
    }
    let config = if options.what.is_empty() || !found.is_empty() {
        config(options.config.as_deref(), &found, &mut tally)
    } else {
        Config::default()
    };
    for unit in &found {
        check_unit(unit, &config, &mut tally);
    }
    if found.is_empty() && options.what.is_empty() {
        let home = scope.home().map(|dir| dir.display().to_string()).unwrap_or_default();
        println!("no qrexec-connect-*.socket units; make one in {home}, or by `qrexec-connect add`");
    }
    let (listeners, faults) = (tally.listeners, tally.faults);
    match faults {
        0 => println!("{} can be served", count(listeners, "listener")),
        _ => return Err(Fatal::new(Code::Config, format!("{} in {}", count(faults, "fault"), units_of(&found)))),
    }
    Ok(ExitCode::SUCCESS)
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn units_of(found: &[FoundUnit]) -> String {
    match found {
        [] => "the configuration".to_owned(),
        found => format!("the configuration and {}", count(found.len(), "unit")),
    }
}

/// Loads the configuration beside these units and tells what is wrong with it.
fn config(given: Option<&Path>, units: &[FoundUnit], tally: &mut CheckTally) -> Config {
    let sockets = sockets(units);
    let beside = Beside { sockets: &sockets, no_namespaces: None };
    let loaded = config::sources(given.map(Path::to_owned)).load(&beside);
    for ConfigFault { fault, at_start, at_reload, .. } in loaded.faults {
        tell(fault.into(), tally);
        println!("  at a start: {at_start}; at a reload or a restart: {at_reload}");
    }
    loaded.config
}

/// The sockets of units, as the service would be passed them.
pub(in crate::cli) fn sockets<'a>(units: impl IntoIterator<Item = &'a FoundUnit>) -> Vec<(String, SocketKind)> {
    let of_unit = |found: &FoundUnit| {
        let kinds: Vec<_> = found.unit.listens().iter().filter_map(Listening::socket).collect();
        let name = passed_name(found);
        kinds.into_iter().map(move |kind| (name.clone(), kind)).collect::<Vec<_>>()
    };
    units.into_iter().flat_map(of_unit).collect()
}

/// The name that systemd passes: the generator's where it repairs one, else the unit's own where the written one is
/// rejected.
fn passed_name(found: &FoundUnit) -> String {
    let Some(written) = found.unit.fd_name().map(|written| written.value.clone()) else { return found.name.clone() };
    let text = match repair(&written) {
        Some(repaired) => repaired,
        None if !rejected(&written).0.is_empty() => return found.name.clone(),
        None => written,
    };
    expand(&text, |specifier| specifier_value(specifier, &found.name)).unwrap_or(text)
}

fn tell(faults: Faults, tally: &mut CheckTally) {
    tally.faults += faults.0.len();
    let colour = std::io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
    let _ = write!(std::io::stdout(), "{}", faults.render(colour));
}

fn check_unit(found: &FoundUnit, config: &Config, tally: &mut CheckTally) {
    println!("{} ({})", escape(found.name.as_bytes()), escape(found.path.as_os_str().as_encoded_bytes()));
    for fault in found.unit.dropped() {
        println!("  systemd leaves out: {fault}");
        tally.faults += 1;
    }
    if let Some(service) = found.unit.service().filter(|s| s.value != "qrexec-connect.service") {
        println!("  starts {}, which is not ours", escape(service.value.as_bytes()));
    }
    let listens = found.unit.listens();
    if listens.is_empty() {
        println!("  listens nowhere: write ListenStream=127.0.0.1:PORT or ListenStream=/PATH below [Socket]");
        tally.faults += 1;
    }
    let written = found.unit.fd_name();
    let repaired = written.and_then(|w| repair(&w.value));
    if let (Some(written), Some(repaired)) = (written, &repaired) {
        // The generator writes the repaired name, so it works as it stands; but it is better said than guessed.
        println!("  {}:{}: systemd takes no colon in a name; used is", escape(written.file.as_bytes()), written.line);
        println!("    FileDescriptorName={repaired}");
    }
    let mut told = Vec::new();
    for listening in &listens {
        let Some(kind) = listening.socket() else {
            let (at, address) = (listening.setting, escape(listening.setting.value.as_bytes()));
            println!("  {}:{}: {address} is not forwarded; use ListenStream=", escape(at.file.as_bytes()), at.line);
            tally.faults += 1;
            continue;
        };
        match meaning(found, kind, repaired.as_deref(), config) {
            Ok(forward) => {
                tally.listeners += 1;
                describe(listening, &forward);
            }
            Err(_) if is_for_metrics(found, kind) => {
                tally.listeners += 1;
                println!("  {} -> {METRICS_UPSTREAM}", escape(listening.setting.value.as_bytes()));
            }
            // The same name beside another address has the same faults: said once.
            Err(faults) if told.contains(&faults) => {}
            Err(faults) => {
                told.push(faults.clone());
                tell(faults, tally);
            }
        }
    }
}

/// Where a listener of the unit leads, as the service would say it.
///
/// # Errors
/// What is wrong with its name.
pub(in crate::cli) fn leads_to(found: &FoundUnit, kind: SocketKind, config: &Config) -> Result<Option<String>, Faults> {
    let repaired = found.unit.fd_name().and_then(|written| repair(&written.value));
    match meaning(found, kind, repaired.as_deref(), config) {
        Ok(forward) => Ok(Some(forward.legs.front().upstream.to_string())),
        Err(_) if is_for_metrics(found, kind) => Ok(Some(METRICS_UPSTREAM.to_owned())),
        Err(faults) => Err(faults),
    }
}

/// Whether a unit's listener is there for metrics, when its name means nothing else.
fn is_for_metrics(found: &FoundUnit, kind: SocketKind) -> bool {
    kind != SocketKind::Udp && found.unit.fd_name().is_some_and(|name| name.value == METRICS)
}

/// What a listener of the unit leads to.
fn meaning(found: &FoundUnit, kind: SocketKind, repaired: Option<&str>, config: &Config) -> Result<Forward, Faults> {
    let Some(written) = found.unit.fd_name() else {
        // systemd passes the unit's name, which may be that of a label.
        let name = fdname::parse(&found.name)?;
        return if name.entry(config).is_some() {
            name.resolve(kind, config)
        } else {
            Err(unnamed(&found.name, None).into())
        };
    };
    let cited = |faults: Faults| faults.cited(&written.cite());
    let text = match repaired {
        Some(repaired) => repaired,
        None => {
            let dropped = rejected(&written.value);
            if !dropped.0.is_empty() {
                return Err(cited(dropped));
            }
            &written.value
        }
    };
    let text = expand(text, |specifier| specifier_value(specifier, &found.name)).unwrap_or_else(|_| text.to_owned());
    fdname::parse(&text).and_then(|name| name.resolve(kind, config)).map_err(cited)
}

/// What systemd puts in a specifier's place (systemd.unit(5) "Specifiers"), as far as names have a use for it.
fn specifier_value(specifier: char, unit: &str) -> Option<String> {
    let stem = unit.strip_suffix(".socket").unwrap_or(unit);
    let (prefix, instance) = stem.split_once('@').unwrap_or((stem, ""));
    match specifier {
        'n' => Some(unit.to_owned()),
        'N' => Some(stem.to_owned()),
        'p' | 'P' => Some(prefix.to_owned()),
        'i' | 'I' => Some(instance.to_owned()),
        'j' | 'J' => prefix.rsplit('-').next().map(str::to_owned),
        't' => Some(env::var("XDG_RUNTIME_DIR").unwrap_or_else(|_| "/run".to_owned())),
        'h' => env::var("HOME").ok(),
        'u' => env::var("USER").ok(),
        _ => None,
    }
}

fn describe(at: &Listening<'_>, forward: &Forward) {
    let address = escape(at.setting.value.as_bytes());
    let upstreams: Vec<_> = forward.legs.iter().map(|leg| leg.upstream.to_string()).collect();
    println!("  {address} -> {}", upstreams.join(" -> "));
    if let Upstream::Qrexec(call) = &forward.legs.front().upstream {
        println!("      dom0 policy: {}", policy_line(call, None));
    }
}
