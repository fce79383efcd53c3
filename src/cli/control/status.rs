//! `status`: every listener, with its state from the configuration, from systemd and from the service.
//!
//! A row is a listener. While the service runs, the state is the one that the service reports. While it does not run,
//! the state comes from systemd: a socket on which systemd listens is `ready`, if its name has a meaning, because the
//! first connection starts the service.

use std::{collections::BTreeSet, io, process::ExitCode};

use serde::Serialize;

use super::{
    row::{ListenerRow, RowState},
    service::{AskedService, print, print_json},
    socket_unit::{self, UnitRows},
    start_unit,
};
use crate::{
    cli::{
        check,
        config::Sources,
        table::{self, Cell, Colour, Column, LookOptions, Style},
        units::FoundUnit,
    },
    control::{
        api,
        client::CallFailed,
        select::{KnownListener, no_match, select},
    },
    log::{counted, counted_waiting},
    report::{Code, Fatal},
    spec::{Beside, ConfigFault},
    systemd::startable::StartableUnits,
};

/// What `status --json` prints: one object. Fields may be added.
#[derive(Debug, Serialize)]
pub(super) struct StatusReport {
    /// `qrexec-connect` or `pfwd`.
    pub(super) program: &'static str,
    /// Whether every listener is served, or would be as soon as somebody connects.
    pub(super) served: bool,
    pub(super) service: ServiceState,
    /// Configured listeners, and those that the service has.
    pub(super) listeners: Vec<ListenerRow>,
    /// What is wrong with the configuration, and what each fault does.
    pub(super) faults: Vec<String>,
    /// The units that are started for sessions, while the service runs.
    pub(super) start_units: Vec<api::StartedUnit>,
}

/// The service, as systemd and the service itself report it.
#[derive(Debug, Serialize)]
pub(super) struct ServiceState {
    /// Name of the service unit.
    pub(super) unit: String,
    /// Whether the service answers on its control socket.
    pub(super) running: bool,
    /// systemd's ActiveState (`active`, `inactive`, `failed`…); absent where systemd does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) active: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sessions: Option<u64>,
    /// Crashes since the last stop or restart, if there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) crashes: Option<api::Crashes>,
    /// Why it does not answer although it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trouble: Option<String>,
}

impl StatusReport {
    /// Keeps the listeners that the words mean, and looks at those alone.
    ///
    /// # Errors
    /// A word that means none.
    fn keep(&mut self, words: &[String]) -> Result<(), Fatal> {
        let known: Vec<KnownListener<'_>> = self.listeners.iter().map(KnownListener::from).collect();
        let mut meant = BTreeSet::new();
        for word in words {
            let selection = select(word, &known);
            if selection.all().is_empty() {
                return Err(Fatal::new(Code::Failure, table::clean(&no_match(word, "known", &known))));
            }
            meant.extend(selection.all().to_vec());
        }
        let listeners = std::mem::take(&mut self.listeners).into_iter().enumerate();
        self.listeners = listeners.filter(|(index, _)| meant.contains(index)).map(|(_, row)| row).collect();
        self.served = self.listeners.iter().all(|row| row.state.fine());
        let named = |unit: &api::StartedUnit| {
            self.listeners.iter().any(|row| row.start_unit.as_deref() == Some(unit.unit.as_str()))
        };
        self.start_units.retain(named);
        Ok(())
    }
}

/// Prints the report; exit code 1 where a listener is not served.
///
/// # Errors
/// A service that we may not ask, or output that cannot be written.
pub(super) fn run(
    service: &AskedService,
    sources: &Sources,
    json: bool,
    look: LookOptions,
    words: &[String],
) -> Result<ExitCode, Fatal> {
    let mut report = gather(service, sources)?;
    if !words.is_empty() {
        report.keep(words)?;
    }
    let code = if report.served { ExitCode::SUCCESS } else { Code::Failure.into() };
    if json {
        print_json(&report)?;
    } else {
        print(&text(service, &report, Style::stdout(look)))?;
    }
    Ok(code)
}

fn gather(service: &AskedService, sources: &Sources) -> Result<StatusReport, Fatal> {
    let answer = service.try_call::<api::Status>("Status", &serde_json::json!({}));
    let active = service.active_state();
    let path = service.socket.display();
    let (live, trouble) = match answer {
        Ok(live) => (Some(live), None),
        Err(CallFailed::Connect(e)) if e.kind() == io::ErrorKind::NotFound => {
            let runs = active.as_ref().is_some_and(|state| !matches!(state.as_str(), "inactive" | "failed"));
            let trouble = match service.usual {
                true if runs => Some(format!("it has no control socket at {path}")),
                true => service.no_manager(),
                false => Some(format!("no service has its control socket at {path}")),
            };
            (None, trouble)
        }
        Err(failed @ CallFailed::Connect(_)) if failed.is_forbidden() => return Err(service.failure(failed)),
        Err(failed) => (None, Some(failed.to_string())),
    };
    let units = if service.usual { socket_unit::all(service) } else { Vec::new() };
    let found: Vec<&FoundUnit> = units.iter().filter_map(|unit| unit.found.as_ref()).collect();
    let sockets = check::sockets(found, service.scope);
    let loaded = sources.load(
        &Beside { sockets: &sockets, no_namespaces: check::no_namespaces(service.scope) },
        &StartableUnits::of(service.scope),
    );
    let (config, plan) = (&loaded.config, loaded.config.plan().forwards);
    let faults = faults(live.as_ref(), &loaded.faults);
    let (mut listeners, others) = UnitRows::make(service, &units, config, live.as_ref());
    // What no unit accounts for: forwards of the configuration, and sockets of another supervisor.
    listeners.extend(others.into_iter().map(ListenerRow::of_service));
    if live.is_none() {
        listeners.extend(plan.iter().flat_map(|forward| ListenerRow::of_plan(service, forward)));
    }
    let stopping = live.as_ref().is_some_and(|live| live.state == api::Life::Stopping);
    let failed = active.as_deref() == Some("failed");
    let trouble = trouble.or_else(|| stopping.then(|| "it is stopping".to_owned()));
    let served = listeners.iter().all(|row| row.state.fine()) && faults.is_empty() && trouble.is_none() && !failed;
    let state = ServiceState {
        unit: service.unit(),
        running: live.is_some(),
        active,
        pid: live.as_ref().map(|live| live.pid),
        version: live.as_ref().map(|live| live.version.clone()),
        sessions: live.as_ref().map(|live| live.sessions),
        crashes: live.as_ref().and_then(|live| live.crashes),
        trouble,
    };
    let start_units = live.map(|live| live.start_units).unwrap_or_default();
    Ok(StatusReport { program: service.program.name, served, service: state, listeners, faults, start_units })
}

/// What is wrong with the configuration: as the service has read it, and in the files since then.
fn faults(live: Option<&api::Status>, now: &[ConfigFault]) -> Vec<String> {
    let Some(live) = live else { return now.iter().map(ToString::to_string).collect() };
    let mut all: Vec<String> = live.faults.iter().map(|fault| format!("{}: {}", fault.place, fault.message)).collect();
    for fault in now {
        let text = fault.fault.to_string();
        if !all.iter().any(|known| known.starts_with(&text)) {
            all.push(format!("{text}: not read yet; at a reload {}", fault.at_reload));
        }
    }
    all
}

/// The report for people.
pub(super) fn text(service: &AskedService, report: &StatusReport, style: Style) -> String {
    let state = &report.service;
    let mut out = String::new();
    let (word, colour, rest) = match (state.running, state.pid, &state.active) {
        (true, pid, _) => {
            let pid = pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
            ("running", Colour::Green, format!("{pid}, {}", counted(state.sessions.unwrap_or(0), "session")))
        }
        (false, _, Some(active)) if active == "failed" => {
            let flag = service.scope.flag();
            ("failed", Colour::Red, format!("; see: systemctl {flag}status {}", state.unit))
        }
        (false, _, Some(active)) if active == "inactive" => {
            let ready = report.listeners.iter().any(|row| row.state == RowState::Ready);
            let rest = if ready { "; the first connection starts it" } else { "" };
            ("not running", Colour::Dim, rest.to_owned())
        }
        (false, _, Some(active)) => ("no answer", Colour::Red, format!(" (systemd state: {})", table::clean(active))),
        (false, _, None) => ("no answer", Colour::Dim, String::new()),
    };
    out += &format!("{}: {}{rest}\n", state.unit, style.paint(Some(colour), word));
    if let Some(api::Crashes { crashes, resumed, lost }) = state.crashes {
        let (crashes, resumed) = (counted(crashes, "crash"), counted(resumed, "session"));
        out += &format!("  {crashes}: {resumed} resumed, {lost} lost\n");
    }
    if let Some(trouble) = &state.trouble {
        out += &format!("  {}\n", table::clean(trouble));
    }
    for fault in &report.faults {
        out += &format!("  {}\n", style.paint(Some(Colour::Red), &table::clean(fault)));
    }
    if report.listeners.is_empty() {
        out += "no listeners are configured\n";
        return out;
    }
    let rows: Vec<_> = report.listeners.iter().map(row).collect();
    out += "\n";
    out += &table::render_with_notes(style, &COLUMNS, &rows, |index| unit_of(report, index));
    // Ports of one range have one name, and often one reason.
    let mut told = BTreeSet::new();
    let reasons = report.listeners.iter().filter_map(|row| reason(style, row));
    let reasons: Vec<String> = reasons.filter(|reason| told.insert(reason.clone())).collect();
    if !reasons.is_empty() {
        out.push('\n');
    }
    out + &reasons.concat()
}

/// The unit of a listener, below the last of consecutive listeners that start it.
fn unit_of(report: &StatusReport, index: usize) -> Option<String> {
    let name = report.listeners[index].start_unit.as_ref()?;
    let next = report.listeners.get(index + 1).and_then(|next| next.start_unit.as_ref());
    let unit = report.start_units.iter().find(|unit| unit.unit == *name).filter(|_| next != Some(name))?;
    Some(start_unit::sentence(unit))
}

/// Why a listener is not as it should be, below the table: what to run has a separate line.
fn reason(style: Style, row: &ListenerRow) -> Option<String> {
    let waits = row.waits_for_dom0().map(|n| {
        let wait = counted_waiting(n, "connection");
        format!("{wait} for dom0: answer the prompt there, or wait until the qube has started")
    });
    let reason = row.reason.clone().or(waits)?;
    let colour = if row.state.fine() { Colour::Dim } else { row.state.colour() };
    let name = if row.called().is_empty() { row.place() } else { row.called().to_owned() };
    let width = style.width.unwrap_or(usize::MAX).saturating_sub(INDENT.len()).max(1);
    let mut out = format!("{INDENT}{}\n", style.paint(Some(colour), &table::shortened(&format!("{name}:"), width)));
    for line in reason.lines() {
        let (text, run) = match line.split_once("run: ") {
            Some((text, run)) => (text.trim_end_matches([';', ',', ' ']), Some(run)),
            None => (line, None),
        };
        for line in table::wrapped(&table::clean(text), width.saturating_sub(INDENT.len())) {
            out += &format!("{INDENT}{INDENT}{line}\n");
        }
        out.extend(run.map(|run| format!("{INDENT}{INDENT}run: {}\n", table::clean(run))));
    }
    Some(out)
}

/// The columns of `status`.
const COLUMNS: [Column; 7] = [
    Column::long("NAME", 8),
    Column::long("ADDRESS", 18),
    Column::whole("STATE"),
    Column::whole("SESSIONS"),
    Column::whole("WAITING"),
    Column::long("LEADS TO", 12),
    Column::whole("UNIT").extra(),
];
/// The indent of the lines below a table.
const INDENT: &str = "  ";

fn row(row: &ListenerRow) -> [Cell; 7] {
    let upstream = if row.upstream.is_empty() { &row.name } else { &row.upstream };
    let unit = row.unit.as_ref().map(|unit| match row.enabled.as_deref() {
        Some("enabled") | None => unit.clone(),
        Some(other) => format!("{unit} ({other})"),
    });
    // In the backlog, or accepted and waiting for dom0 or for a call of the qube: to people all of them wait.
    let waiting = [row.waiting, row.queued, row.undecided].into_iter().flatten().reduce(|a, b| a + b);
    let (state, colour) = match row.waits_for_dom0() {
        Some(_) => ("waiting for dom0".to_owned(), Colour::Yellow),
        None => (row.state.to_string(), row.state.colour()),
    };
    [
        Cell::from(row.called()),
        Cell::from(row.place()),
        Cell::from(state).painted(colour),
        Cell::number(row.max_sessions.map_or_else(|| "-".to_owned(), |most| format!("{}/{most}", row.sessions))),
        Cell::number(waiting.map_or_else(|| "-".to_owned(), |n| n.to_string())),
        Cell::from(upstream),
        Cell::from(unit.unwrap_or_default()),
    ]
}
