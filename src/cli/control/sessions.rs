//! `sessions`: who is connected, once or as it happens.

use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    service::{AskedService, PAUSE, print, print_json},
    table::{self, Cell, Colour, Style, bytes, duration},
};
use crate::{
    control::{
        api::{self, Happened},
        client::{CallFailed, ControlConnection},
        who,
    },
    report::{Code, Fatal},
    sys,
};

/// How long a restart may keep those who follow waiting.
const RESTART: Duration = Duration::from_secs(30);

/// Lists the sessions, or the one that is meant.
///
/// # Errors
/// No service, or no such session.
pub(super) fn list(service: &AskedService, id: Option<String>, json: bool) -> Result<ExitCode, Fatal> {
    let one = id.is_some();
    let which = api::Which { id, processes: Some(true) };
    let all = service.patiently(|client| {
        let mut all = Vec::new();
        client.each("ListSessions", &which, |part: api::Sessions| {
            all.extend(part.sessions);
            true
        })?;
        Ok(all)
    });
    let mut sessions = match all {
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
    sessions.sort_by(|a, b| b.age_ms.cmp(&a.age_ms).then_with(|| a.id.cmp(&b.id)));
    if json {
        return print_json(&api::Sessions { sessions });
    }
    if one {
        return print(&sessions.iter().map(details).collect::<String>());
    }
    if sessions.is_empty() {
        return print("no sessions\n");
    }
    let rows: Vec<_> = sessions.iter().map(row).collect();
    let head = ["ID", "AGE", "LISTENER", "LEADS TO", "STATE", "UP", "DOWN", "PEER", "PROCESS"];
    print(&table::render(Style::stdout(), head, &rows))
}

/// Looks for processes that the service may not see. It is held to few capabilities, and whoever asks is often root.
fn look_further(sessions: &mut [api::Session]) {
    let mut unknown: Vec<&mut api::Session> = sessions.iter_mut().filter(|s| s.process.is_none()).collect();
    let wanted: Vec<_> = unknown.iter().map(|session| who::PeerQuery::told(session)).collect();
    let found = who::look_up(&wanted);
    unknown.iter_mut().zip(found).for_each(|(session, process)| session.process = process);
}

fn row(s: &api::Session) -> [Cell; 9] {
    [
        short(&s.id).into(),
        Cell::number(duration(s.age_ms)),
        Cell::from(&s.listener),
        Cell::from(&s.upstream),
        if s.connected { Cell::from("connected") } else { Cell::from("dialling").painted(Colour::Yellow) },
        Cell::number(bytes(s.up_bytes)),
        Cell::number(bytes(s.down_bytes)),
        Cell::from(&s.peer),
        s.process.as_ref().map(process).unwrap_or_default().into(),
    ]
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
        ("listener", s.listener.clone()),
        ("name", s.name.clone()),
        ("leads to", s.upstream.clone()),
        ("connected", s.dial_ms.map_or_else(|| "not yet".to_owned(), |ms| format!("after {ms} ms"))),
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
pub(super) fn follow(service: &AskedService, json: bool) -> Result<ExitCode, Fatal> {
    let style = Style::stdout();
    await_start(service, json)?;
    let (mut first, mut deadline) = (true, Instant::now() + RESTART);
    loop {
        let mut readers_gone = false;
        let watched = ControlConnection::connect(&service.socket).and_then(|mut client| {
            client.each("Watch", &serde_json::json!({}), |event: api::Event| {
                deadline = Instant::now() + RESTART;
                first = false;
                let told = if json { print_json(&event) } else { print(&line(style, &event)) };
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

/// `12:00:01  began      819f8405  127.0.0.1:60304 on 127.0.0.1:1234 to …`; nothing for what people need not see.
fn line(style: Style, event: &api::Event) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let [.., hour, minute, second] = sys::local_time(i64::try_from(now).unwrap_or(0));
    let time = style.paint(Some(Colour::Dim), &format!("{hour:02}:{minute:02}:{second:02}"));
    let Some(s) = &event.session else {
        return match event.dropped {
            Some(n) => format!("{time}  {n} events were left out: this terminal is too slow\n"),
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
    let word = style.paint(colour, &format!("{word:<9}"));
    let subject = format!("{}  {} on {} to {}", short(&s.id), s.peer, s.listener, s.upstream);
    let rest = if rest.is_empty() { rest } else { format!(": {rest}") };
    format!("{time}  {word}  {}\n", table::clean(&format!("{subject}{rest}")))
}
