//! `sessions`: who is connected, once or as it happens.

use std::{
    collections::HashSet,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    service::{AskedService, PAUSE, print, print_json},
    start_unit,
};
use crate::{
    cli::table::{self, Cell, Colour, Column, LookOptions, Style, bytes, duration},
    control::{
        api::{self, Happened},
        client::{CallFailed, ControlConnection},
        who,
    },
    log::{counted, counted_were},
    report::{Code, Fatal},
    sys,
};

/// How long a restart may keep those who follow waiting.
const RESTART: Duration = Duration::from_secs(30);

/// Lists the sessions, or the one that is meant.
///
/// # Errors
/// No service, or no such session.
pub(super) fn list(
    service: &AskedService,
    id: Option<String>,
    json: bool,
    look: LookOptions,
) -> Result<ExitCode, Fatal> {
    let one = id.is_some();
    let which = api::Which { id, processes: Some(true) };
    let mut sessions = match all(service, &which) {
        Ok(sessions) => sessions,
        Err(failed) if service.waits_for_connection(&failed) => {
            return if json {
                print_json(&api::Sessions::default())
            } else {
                print(&format!("{}\n", service.no_sessions_yet()))
            };
        }
        Err(failed) => return Err(service.failure(failed)),
    };
    look_further(&mut sessions);
    if json {
        return print_json(&api::Sessions { sessions });
    }
    if one {
        return print(&sessions.iter().map(details).collect::<String>());
    }
    if sessions.is_empty() {
        return print("no sessions\n");
    }
    print(&table_of(Style::stdout(look), &sessions))
}

/// The sessions that are asked for, the oldest first.
pub(super) fn all(service: &AskedService, which: &api::Which) -> Result<Vec<api::Session>, CallFailed> {
    let mut all = service.patiently(|client| {
        let mut all = Vec::new();
        client.each("ListSessions", which, |part: api::Sessions| {
            all.extend(part.sessions);
            true
        })?;
        Ok(all)
    })?;
    all.sort_by(|a: &api::Session, b| b.age_ms.cmp(&a.age_ms).then_with(|| a.id.cmp(&b.id)));
    Ok(all)
}

/// The columns of `sessions`.
const COLUMNS: [Column; 10] = [
    Column::whole("ID"),
    Column::whole("AGE"),
    Column::long("NAME", 8),
    Column::long("LISTENER", 12),
    Column::whole("STATE"),
    Column::whole("UP"),
    Column::whole("DOWN"),
    Column::long("PEER", 13),
    Column::long("LEADS TO", 12).extra(),
    Column::long("PROCESS", 8).spare(),
];

/// The table of these sessions.
pub(super) fn table_of(style: Style, sessions: &[api::Session]) -> String {
    let mut columns = COLUMNS;
    // Where each session has a name, its address says nothing new.
    if sessions.iter().all(|session| !called(session).is_empty()) {
        columns[3] = columns[3].extra();
    }
    let rows: Vec<_> = sessions.iter().map(row).collect();
    table::render(style, &columns, &rows)
}

/// Looks for processes that the service may not see. It is held to few capabilities, and whoever asks is often root.
fn look_further(sessions: &mut [api::Session]) {
    let mut unknown: Vec<&mut api::Session> = sessions.iter_mut().filter(|s| s.process.is_none()).collect();
    let wanted: Vec<_> = unknown.iter().map(|session| who::PeerQuery::told(session)).collect();
    let found = who::look_up(&wanted);
    unknown.iter_mut().zip(found).for_each(|(session, process)| session.process = process);
}

/// What people call the listener of a session: its label; a name that says where to connect is none.
fn called(session: &api::Session) -> &str {
    match &session.label {
        Some(label) => label,
        None if session.name.contains([' ', '=']) => "",
        None => &session.name,
    }
}

/// The address of the listener with its transport.
fn place(session: &api::Session) -> String {
    match session.transport {
        Some(transport) => format!("{} {}", transport.word(), session.listener),
        None => session.listener.clone(),
    }
}

fn row(s: &api::Session) -> [Cell; 10] {
    [
        short(&s.id).into(),
        Cell::number(duration(s.age_ms)),
        Cell::from(called(s)),
        Cell::from(place(s)),
        state(s),
        Cell::number(bytes(s.up_bytes)),
        Cell::number(bytes(s.down_bytes)),
        Cell::from(&s.peer),
        Cell::from(&s.upstream),
        s.process.as_ref().map(process).unwrap_or_default().into(),
    ]
}

fn state(s: &api::Session) -> Cell {
    let word = match (s.connected, s.waits_for) {
        (true, _) => return Cell::from("connected"),
        (false, Some(api::Wait::Dom0 | api::Wait::Turn)) => "waiting for dom0",
        (false, Some(api::Wait::Call)) => "waiting for call",
        (false, None) if s.start_unit.is_some() => "waiting for unit",
        (false, None) => "dialling",
    };
    Cell::from(word).painted(Colour::Yellow)
}

/// What a session waits for, in words.
fn wait(s: &api::Session) -> Option<String> {
    let calls = |n: u64| counted(n, "undecided call");
    let behind = s.behind.unwrap_or(0);
    if let (false, None, Some(unit)) = (s.connected, s.waits_for, &s.start_unit) {
        let state = s.start_unit_state.map(|state| format!(", which is {}", state.as_str())).unwrap_or_default();
        return Some(s.start_unit_now.as_ref().map_or_else(|| format!("{unit}{state}"), start_unit::sentence));
    }
    Some(match s.waits_for? {
        api::Wait::Dom0 if behind > 1 => format!("dom0's decision about its call, beside {}", calls(behind - 1)),
        api::Wait::Dom0 => "dom0's decision about its call".to_owned(),
        api::Wait::Turn if behind == 0 => "the end of the pause after a refusal by dom0".to_owned(),
        api::Wait::Turn => format!("dom0's decision, behind {}", calls(behind)),
        api::Wait::Call => "a call of the qube: as many as it may have are in use (max_calls)".to_owned(),
    })
}

/// The unit of a session that is connected; who waits for it tells of it there.
fn on_demand(s: &api::Session) -> String {
    let unit = s.start_unit_now.as_ref().map(start_unit::sentence).or_else(|| s.start_unit.clone());
    unit.filter(|_| s.connected).unwrap_or_default()
}

/// `4711 app-firefox.scope /usr/lib/firefox …`.
fn process(p: &api::Process) -> String {
    let pid = p.pid.to_string();
    [Some(pid.as_str()), p.unit.as_deref(), p.command.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// One session, a line for each thing that is known.
fn details(s: &api::Session) -> String {
    let mut lines = vec![
        ("session", s.id.clone()),
        ("age", duration(s.age_ms)),
        ("listener", place(s)),
        ("name", s.name.clone()),
        ("label", s.label.clone().unwrap_or_default()),
        ("leads to", s.upstream.clone()),
        ("connected", s.dial_ms.map_or_else(|| "not yet".to_owned(), |ms| format!("after {ms} ms"))),
        ("waits for", wait(s).unwrap_or_default()),
        ("on demand", on_demand(s)),
        ("up", bytes(s.up_bytes)),
        ("down", bytes(s.down_bytes)),
        ("peer", s.peer.clone()),
    ];
    if let Some(p) = &s.process {
        lines.push(("process", p.pid.to_string()));
        lines.push(("user", p.uid.to_string()));
        lines.push(("unit", p.unit.clone().unwrap_or_default()));
        lines.push(("command", p.command.clone().unwrap_or_default()));
    }
    let filled = lines.iter().filter(|(_, value)| !value.is_empty());
    filled.map(|(key, value)| format!("{key:>9}: {}\n", table::clean(value))).collect()
}

/// Tells what happens to sessions until it is interrupted or the service stops. While the service restarts nothing
/// happens to them that would be told.
pub(super) fn follow(service: &AskedService, json: bool, look: LookOptions) -> Result<ExitCode, Fatal> {
    let style = Style::stdout(look);
    await_start(service, json)?;
    let (mut first, mut deadline) = (true, Instant::now() + RESTART);
    let mut present = HashSet::new();
    loop {
        let mut readers_gone = false;
        let watched = ControlConnection::connect(&service.socket).and_then(|mut client| {
            client.each("Watch", &serde_json::json!({}), |event: api::Event| {
                deadline = Instant::now() + RESTART;
                let told = match (json, std::mem::take(&mut first)) {
                    (true, _) => print_json(&event),
                    (false, true) => print(&beginning(service, style, &mut present)),
                    (false, false) if is_known(&event, &mut present) => return true,
                    (false, false) => print(&line(style, &event)),
                };
                readers_gone = told.is_err();
                !readers_gone
            })
        });
        match watched {
            _ if readers_gone => return Ok(ExitCode::SUCCESS),
            Ok(()) => {}
            Err(failed @ CallFailed::Connect(_)) if first || Instant::now() > deadline || !service.restarts() => {
                return Err(service.failure(failed));
            }
            Err(CallFailed::Connect(_) | CallFailed::Cut) => {}
            Err(failed) => return Err(Fatal::new(Code::Failure, failed)),
        }
        sleep(PAUSE);
    }
}

/// Waits until there is a service, where the first connection is to start it.
fn await_start(service: &AskedService, json: bool) -> Result<(), Fatal> {
    let there = || ControlConnection::connect(&service.socket);
    let Err(failed) = there() else { return Ok(()) };
    if !service.waits_for_connection(&failed) {
        return Ok(()); // whoever connects next says why
    }
    if !json {
        print(&format!("{}\n", service.no_sessions_yet()))?;
    }
    let mut asked = Instant::now();
    loop {
        sleep(PAUSE);
        match there() {
            Ok(_) => return Ok(()),
            Err(failed) if asked.elapsed() > RESTART => {
                asked = Instant::now();
                if !service.waits_for_connection(&failed) {
                    return Ok(());
                }
            }
            Err(_) => {}
        }
    }
}

/// The heading, and a line for each session that there is already.
fn beginning(service: &AskedService, style: Style, present: &mut HashSet<String>) -> String {
    let heading = format!("{:<8}  {:<9}  {:<8}  {}", "TIME", "EVENT", "ID", "SESSION");
    let mut out = format!("{}\n", style.paint(Some(Colour::Dim), &heading));
    // A service that ends just now: whoever follows hears of it next.
    for session in all(service, &api::Which::default()).unwrap_or_default() {
        let state = wait(&session).map_or_else(
            || if session.connected { "connected".to_owned() } else { "dialling".to_owned() },
            |wait| format!("waits for {wait}"),
        );
        let rest = format!("since {}, {state}", duration(session.age_ms));
        out += &told(style, "present", None, &session, &rest);
        present.insert(session.id);
    }
    out
}

/// Whether an event only says that a session began that is listed as present.
fn is_known(event: &api::Event, present: &mut HashSet<String>) -> bool {
    let Some(session) = &event.session else { return false };
    match event.event {
        Happened::Began => present.contains(&session.id),
        Happened::Ended => {
            present.remove(&session.id);
            false
        }
        Happened::Connected | Happened::Ready | Happened::Dropped => false,
    }
}

fn time(style: Style) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let [.., hour, minute, second] = sys::local_time(i64::try_from(now).unwrap_or(0));
    style.paint(Some(Colour::Dim), &format!("{hour:02}:{minute:02}:{second:02}"))
}

/// `12:00:01  began      819f8405  127.0.0.1:60304 on 127.0.0.1:1234 to …`.
fn told(style: Style, word: &str, colour: Option<Colour>, s: &api::Session, rest: &str) -> String {
    let word = style.paint(colour, &format!("{word:<9}"));
    let rest = if rest.is_empty() { String::new() } else { format!(": {rest}") };
    let subject = format!("{}  {} on {} to {}{rest}", short(&s.id), s.peer, s.listener, s.upstream);
    format!("{}  {word}  {}\n", time(style), table::clean(&subject))
}

/// The line of an event; nothing for what people need not see.
fn line(style: Style, event: &api::Event) -> String {
    let Some(s) = &event.session else {
        return match event.dropped {
            Some(n) => format!("{}  {} left out: this terminal is too slow\n", time(style), counted_were(n, "event")),
            None => String::new(),
        };
    };
    let (word, colour, rest) = match event.event {
        Happened::Connected => {
            ("connected", Some(Colour::Green), format!("after {} ms", s.dial_ms.unwrap_or_default()))
        }
        Happened::Ended => {
            let end = event.end.as_deref().unwrap_or_default();
            let mut rest =
                format!("{end} after {}, {} up, {} down", duration(s.age_ms), bytes(s.up_bytes), bytes(s.down_bytes));
            if let Some(code) = event.exit_code {
                rest += &format!(", exit code {code}");
            }
            if let Some(note) = &event.note {
                rest += &format!("; {note}");
            }
            let fine = matches!(end, "eof" | "idle");
            ("ended", Some(if fine { Colour::Dim } else { Colour::Yellow }), rest)
        }
        Happened::Began | Happened::Ready | Happened::Dropped => ("began", None, String::new()),
    };
    told(style, word, colour, s, &rest)
}
