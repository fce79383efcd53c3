//! `status`: what is configured, what systemd says of it, what the service makes of it, side by side.
//!
//! A row is a listener. Where the service runs, it is the service's word that counts; where it does not, systemd's: a
//! socket that systemd listens on is served as soon as somebody connects, provided that its name means something.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    process::ExitCode,
};

use serde::Serialize;

use super::{
    service::{AskedService, print, print_json},
    table::{self, Cell, Colour, Style},
};
use crate::{
    cli::{
        check,
        config::Sources,
        systemctl,
        units::{self, FoundUnit},
    },
    control::{
        api,
        client::CallFailed,
        select::{KnownListener, select},
    },
    log::escape,
    report::{Code, Fatal},
    spec::{Beside, Config, ConfigFault, Forward, Listen, SocketKind, Upstream},
};

/// What is asked of systemd about a unit.
const PROPERTIES: [&str; 8] =
    ["Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "Result", "NeedDaemonReload", "Listen"];

/// What `status --json` prints: one object. Fields may be added.
#[derive(Debug, Serialize)]
struct StatusReport {
    /// `qrexec-connect` or `pfwd`.
    program: &'static str,
    /// Whether every listener is served, or would be as soon as somebody connects.
    served: bool,
    service: ServiceState,
    /// Configured listeners, and those that the service has.
    listeners: Vec<ListenerRow>,
    /// What is wrong with the configuration, and what each fault does.
    faults: Vec<String>,
}

/// The service, as systemd and the service itself report it.
#[derive(Debug, Serialize)]
struct ServiceState {
    /// Name of the service unit.
    unit: String,
    /// Whether the service answers on its control socket.
    running: bool,
    /// systemd's ActiveState (`active`, `inactive`, `failed`…); absent where systemd does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sessions: Option<u64>,
    /// Why it does not answer although it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

/// State of a listener, as a client meets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum RowState {
    /// Clients are served.
    Serving,
    /// Clients are served: the first connection starts the service.
    Ready,
    /// Clients wait in the backlog.
    Paused,
    /// Clients wait or are refused: the listener cannot be served.
    Refused,
    /// Clients are refused until the listener's network namespace exists.
    Awaited,
    /// Clients are refused: the listener should be served, and systemd does not listen or the service does not run.
    Down,
    /// Clients are refused: nobody enabled the listener.
    #[default]
    Off,
}

impl RowState {
    fn colour(self) -> Colour {
        match self {
            Self::Serving | Self::Ready => Colour::Green,
            Self::Paused => Colour::Yellow,
            Self::Refused | Self::Awaited | Self::Down => Colour::Red,
            Self::Off => Colour::Dim,
        }
    }

    /// Whether the state is as it should be.
    fn fine(self) -> bool {
        matches!(self, Self::Serving | Self::Ready | Self::Off)
    }
}

impl fmt::Display for RowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serving => "serving",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Refused => "refused",
            Self::Awaited => "awaited",
            Self::Down => "down",
            Self::Off => "off",
        })
    }
}

impl From<api::State> for RowState {
    fn from(state: api::State) -> Self {
        match state {
            api::State::Serving => Self::Serving,
            api::State::Paused => Self::Paused,
            api::State::Refused => Self::Refused,
            api::State::Awaited => Self::Awaited,
        }
    }
}

/// A listener.
#[derive(Debug, Default, Serialize)]
struct ListenerRow {
    /// Address of the listener.
    address: String,
    /// TRANSPORT: `tcp`, `unix` or `udp`; absent where it is no socket that could be served.
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<&'static str>,
    /// Fd name or label.
    name: String,
    /// LABEL of the forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    /// The network namespace of the upstream, when that is not the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<String>,
    /// The network namespace of the listener, when that is not the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    listen_netns: Option<String>,
    /// Where it leads, as far as that is known.
    upstream: String,
    state: RowState,
    /// Why, where that is not obvious.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    sessions: u64,
    /// How many it may have, when it is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_sessions: Option<u64>,
    /// Connections in its backlog, where the kernel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<u64>,
    /// Its sessions that wait for a call of the qube, where it leads to one.
    #[serde(skip_serializing_if = "Option::is_none")]
    queued: Option<u64>,
    /// Socket unit that holds the listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    /// systemd's ActiveState of the socket unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<String>,
    /// systemd's UnitFileState of the socket unit: `enabled`, `disabled`…
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled: Option<String>,
}

impl StatusReport {
    /// Keeps the listeners that the words mean, and looks at those alone.
    ///
    /// # Errors
    /// A word that means none.
    fn keep(&mut self, service: &AskedService, words: &[String]) -> Result<(), Fatal> {
        let known: Vec<KnownListener<'_>> = self.listeners.iter().map(KnownListener::from).collect();
        let mut meant = BTreeSet::new();
        for word in words {
            let selection = select(word, &known);
            if selection.all().is_empty() {
                let what = format!("no listener has the address, port, name or label {}", escape(word.as_bytes()));
                return Err(Fatal::new(Code::Failure, what).hint(format!("see `{} status`", service.program.name)));
            }
            meant.extend(selection.all().to_vec());
        }
        let listeners = std::mem::take(&mut self.listeners).into_iter().enumerate();
        self.listeners = listeners.filter(|(index, _)| meant.contains(index)).map(|(_, row)| row).collect();
        self.served = self.listeners.iter().all(|row| row.state.fine());
        Ok(())
    }
}

impl<'a> From<&'a ListenerRow> for KnownListener<'a> {
    fn from(row: &'a ListenerRow) -> Self {
        Self {
            address: &row.address,
            transport: row.transport.and_then(SocketKind::from_word),
            label: row.label.as_deref().unwrap_or_default(),
            name: &row.name,
            unit: row.unit.as_deref().unwrap_or_default(),
        }
    }
}

/// A socket unit, as its files and as systemd say.
struct KnownUnit {
    name: String,
    found: Option<FoundUnit>,
    shown: systemctl::ShownUnit,
}

/// Says how things stand.
///
/// # Errors
/// A service that we may not ask, output that cannot be written. That something is not served is told by the exit code
/// alone.
pub(super) fn run(service: &AskedService, sources: Sources, json: bool, words: &[String]) -> Result<ExitCode, Fatal> {
    let mut report = gather(service, &sources)?;
    if !words.is_empty() {
        report.keep(service, words)?;
    }
    let code = if report.served { ExitCode::SUCCESS } else { Code::Failure.into() };
    if json {
        print_json(&report)?;
    } else {
        print(&text(service, &report, Style::stdout()))?;
    }
    Ok(code)
}

fn gather(service: &AskedService, sources: &Sources) -> Result<StatusReport, Fatal> {
    let (live, trouble) = match service.try_call::<api::Status>("Status", &serde_json::json!({})) {
        Ok(live) => (Some(live), None),
        Err(CallFailed::Connect(e)) if e.kind() == std::io::ErrorKind::NotFound => (None, None),
        Err(failed @ CallFailed::Connect(_)) if failed.is_forbidden() => return Err(service.failure(failed)),
        Err(failed) => (None, Some(failed.to_string())),
    };
    let active = systemctl::show(service.scope, &["ActiveState"], &[service.unit()])
        .and_then(|units| units.into_iter().next())
        .and_then(|unit| unit.last("ActiveState"))
        .filter(|_| service.usual);
    let units = if service.usual { units(service) } else { Vec::new() };
    let found: Vec<&FoundUnit> = units.iter().filter_map(|unit| unit.found.as_ref()).collect();
    let sockets = check::sockets(found, service.scope);
    let loaded = sources.load(&Beside { sockets: &sockets, no_namespaces: check::no_namespaces(service.scope) });
    let (config, plan) = (&loaded.config, loaded.config.plan().forwards);
    let faults = faults(live.as_ref(), &loaded.faults);
    let mut theirs = live.as_ref().map(|live| live.listeners.clone()).unwrap_or_default();
    let mut listeners = Vec::new();
    for unit in &units {
        listeners.extend(of_unit(service, unit, live.is_some(), &mut theirs, config));
    }
    // What no unit accounts for: forwards of the configuration, and sockets of another supervisor.
    listeners.extend(theirs.into_iter().map(|listener| of_service(listener, None)));
    if live.is_none() {
        listeners.extend(plan.iter().filter_map(|forward| of_plan(service, forward)));
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
        trouble,
    };
    Ok(StatusReport { program: service.program.name, served, service: state, listeners, faults })
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

/// The socket units there are: by their files, and instances of templates that systemd has loaded.
fn units(service: &AskedService) -> Vec<KnownUnit> {
    let prefix = service.program.prefix;
    let found = units::find(&service.scope.search_path(), &[prefix]);
    let mut all: BTreeMap<String, Option<FoundUnit>> = BTreeMap::new();
    // A template listens nowhere itself.
    all.extend(found.into_iter().filter(|f| !f.name.contains("@.")).map(|f| (f.name.clone(), Some(f))));
    for name in systemctl::loaded(service.scope, prefix) {
        all.entry(name).or_default();
    }
    let names: Vec<String> = all.keys().cloned().collect();
    let shown = systemctl::show(service.scope, &PROPERTIES, &names).unwrap_or_default();
    let shown = shown.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    all.into_iter()
        .zip(shown)
        .map(|((name, found), shown)| KnownUnit { name, found, shown: shown.unwrap_or_default() })
        .collect()
}

/// The rows of a socket unit; what the service says of its addresses is taken out of `theirs`.
fn of_unit(
    service: &AskedService,
    unit: &KnownUnit,
    running: bool,
    theirs: &mut Vec<api::Listener>,
    config: &Config,
) -> Vec<ListenerRow> {
    let mut places: Vec<(String, Option<SocketKind>)> = Vec::new();
    for (address, kind) in unit.shown.listens() {
        let unix = address.starts_with(['/', '@']);
        let kind = match kind.as_str() {
            "Stream" => Some(if unix { SocketKind::Unix } else { SocketKind::Tcp }),
            "Datagram" if !unix => Some(SocketKind::Udp),
            _ => None,
        };
        places.push((address, kind));
    }
    if let Some(found) = unit.found.as_ref().filter(|_| places.is_empty()) {
        places.extend(found.unit.listens().iter().map(|l| (l.setting.value.clone(), l.socket())));
    }
    // One that systemd does not listen for may still name an address that another listens on.
    let gone = unit.shown.last("ActiveState").is_some_and(|state| matches!(state.as_str(), "inactive" | "failed"));
    let row = |(address, kind): (String, Option<SocketKind>)| {
        let here = theirs.iter().position(|l| !gone && l.address == escape(address.as_bytes()));
        match here {
            Some(index) => of_service(theirs.remove(index), Some(unit)),
            None => unserved(service, unit, running, &address, kind, config),
        }
    };
    places.into_iter().map(row).collect()
}

/// A listener that the service told of.
fn of_service(listener: api::Listener, unit: Option<&KnownUnit>) -> ListenerRow {
    let served = matches!(listener.state, api::State::Serving | api::State::Paused);
    ListenerRow {
        address: listener.address,
        transport: listener.kind.map(SocketKind::word),
        name: listener.name,
        label: listener.label,
        netns: listener.netns,
        listen_netns: listener.listen_netns,
        upstream: listener.upstream,
        state: listener.state.into(),
        reason: listener.reason,
        sessions: listener.sessions,
        max_sessions: Some(listener.max_sessions).filter(|_| served),
        waiting: listener.waiting,
        queued: listener.queued,
        unit: unit.map(|unit| unit.name.clone()),
        active: unit.and_then(|unit| unit.shown.last("ActiveState")),
        enabled: unit.and_then(|unit| unit.shown.last("UnitFileState")),
    }
}

/// A listener of a unit that the service, if it runs, does not know.
fn unserved(
    service: &AskedService,
    unit: &KnownUnit,
    running: bool,
    address: &str,
    kind: Option<SocketKind>,
    config: &Config,
) -> ListenerRow {
    let (flag, name) = (service.scope.flag(), &unit.name);
    let meant = match (&unit.found, kind) {
        (Some(found), Some(kind)) => {
            check::leads_to(found, kind, config, service.scope).map_err(|faults| faults.to_string())
        }
        (_, None) => Err("sockets of this kind are not forwarded; use ListenStream=".to_owned()),
        (None, Some(_)) => Ok(None),
    };
    let active = unit.shown.last("ActiveState");
    let enabled = unit.shown.last("UnitFileState");
    let wanted = enabled.as_deref().is_some_and(|state| matches!(state, "enabled" | "enabled-runtime"));
    let (state, reason) = match (active.as_deref(), &meant) {
        (Some("active" | "activating"), Err(why)) => (RowState::Refused, Some(why.clone())),
        (Some("active" | "activating"), Ok(_)) if !running => (RowState::Ready, None),
        (Some("active" | "activating"), Ok(_)) => {
            let service = service.program.name;
            (RowState::Down, Some(format!("the service was not passed it; run: systemctl {flag}restart {service}")))
        }
        (Some("failed"), _) => {
            let result = unit.shown.last("Result").unwrap_or_default();
            (
                RowState::Down,
                Some(format!("systemd cannot listen there ({result}); see: systemctl {flag}status {name}")),
            )
        }
        (_, Err(why)) if wanted => (RowState::Down, Some(why.clone())),
        (Some(_), _) if wanted => {
            (RowState::Down, Some(format!("enabled, and not started; run: systemctl {flag}start {name}")))
        }
        (None, _) => (RowState::Off, Some("systemd does not answer".to_owned())),
        (Some(_), Err(why)) => (RowState::Off, Some(why.clone())),
        (Some(_), Ok(_)) => (RowState::Off, None),
    };
    let stale = unit.shown.last("NeedDaemonReload").as_deref() == Some("yes");
    let reason = match reason {
        None if stale => Some(format!("its file has changed; run: systemctl {flag}daemon-reload")),
        reason => reason,
    };
    let written = unit.found.as_ref().and_then(|found| found.unit.fd_name());
    let label = written.as_ref().and_then(|name| config.labelled(&name.value)?.label().map(|label| label.to_string()));
    ListenerRow {
        address: escape(address.as_bytes()),
        transport: kind.map(SocketKind::word),
        label,
        name: written.map(|name| escape(name.value.as_bytes())).unwrap_or_default(),
        upstream: meant.ok().flatten().map(|upstream| escape(upstream.as_bytes())).unwrap_or_default(),
        state,
        reason,
        unit: Some(unit.name.clone()),
        active,
        enabled,
        ..ListenerRow::default()
    }
}

/// A forward of the configuration whose listening side is the service's to bind, while that does not run.
fn of_plan(service: &AskedService, forward: &Forward) -> Option<ListenerRow> {
    let leg = forward.legs.front();
    let (listen, transport, listen_netns) = match &leg.listen {
        Listen::Inherited => return None,
        Listen::Tcp { addr, netns, .. } => (addr.to_string(), SocketKind::Tcp, netns.as_ref()),
        Listen::Udp { addr, netns } => (addr.to_string(), SocketKind::Udp, netns.as_ref()),
        Listen::Unix { addr, .. } => (addr.to_string(), SocketKind::Unix, None),
    };
    let netns = match &leg.upstream {
        Upstream::Tcp { netns, .. } | Upstream::Udp { netns, .. } => netns.as_ref(),
        Upstream::Unix(_) | Upstream::Qrexec(_) => None,
    };
    let (flag, unit) = (service.scope.flag(), service.unit());
    Some(ListenerRow {
        address: listen_netns.map_or_else(|| listen.clone(), |netns| format!("{listen} in {netns}")),
        transport: Some(transport.word()),
        name: forward.label.as_ref().map(|label| label.to_string()).unwrap_or_default(),
        label: forward.label.as_ref().map(|label| label.to_string()),
        netns: netns.map(ToString::to_string),
        listen_netns: listen_netns.map(ToString::to_string),
        upstream: leg.upstream.to_string(),
        state: RowState::Down,
        reason: Some(format!("the service does not run; run: systemctl {flag}start {unit}")),
        ..ListenerRow::default()
    })
}

/// The report for people.
fn text(service: &AskedService, report: &StatusReport, style: Style) -> String {
    let state = &report.service;
    let mut out = String::new();
    let of = |n: u64| format!("{n} session{}", if n == 1 { "" } else { "s" });
    let (word, colour, rest) = match (state.running, state.pid, &state.active) {
        (true, pid, _) => {
            let pid = pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
            ("running", Colour::Green, format!("{pid}, {}", of(state.sessions.unwrap_or(0))))
        }
        (false, _, Some(active)) if active == "failed" => {
            let flag = service.scope.flag();
            ("failed", Colour::Red, format!("; see: systemctl {flag}status {}", state.unit))
        }
        (false, _, Some(active)) if active == "inactive" => ("not running", Colour::Dim, String::new()),
        (false, _, Some(active)) => {
            ("not answering", Colour::Red, format!(", which systemd calls {}", table::clean(active)))
        }
        (false, _, None) => ("not answering", Colour::Dim, String::new()),
    };
    out += &format!("{}: {}{rest}\n", state.unit, style.paint(Some(colour), word));
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
    out += &table::render(style, ["LISTENER", "STATE", "SESSIONS", "WAITING", "LEADS TO", "UNIT"], &rows);
    if report.listeners.iter().any(|row| row.reason.is_some()) {
        out.push('\n');
    }
    for row in &report.listeners {
        let Some(reason) = &row.reason else { continue };
        let colour = if row.state.fine() { Colour::Dim } else { row.state.colour() };
        for (number, line) in reason.lines().enumerate() {
            let address = if number == 0 { format!("{}: ", row.address) } else { String::new() };
            out += &format!("  {}{}\n", style.paint(Some(colour), &table::clean(&address)), table::clean(line));
        }
    }
    out
}

fn row(row: &ListenerRow) -> [Cell; 6] {
    let upstream = if row.upstream.is_empty() { &row.name } else { &row.upstream };
    let unit = row.unit.as_ref().map(|unit| match row.enabled.as_deref() {
        Some("enabled") | None => unit.clone(),
        Some(other) => format!("{unit} ({other})"),
    });
    // In the backlog, or accepted and waiting for a call of the qube: to people both wait.
    let waiting = row.waiting.into_iter().chain(row.queued).reduce(|a, b| a + b);
    [
        Cell::from(&row.address),
        Cell::from(row.state.to_string()).painted(row.state.colour()),
        Cell::number(row.max_sessions.map_or_else(|| "-".to_owned(), |most| format!("{}/{most}", row.sessions))),
        Cell::number(waiting.map_or_else(|| "-".to_owned(), |n| n.to_string())),
        Cell::from(upstream),
        Cell::from(unit.unwrap_or_default()),
    ]
}
