//! Every table at two widths, for names of every kind, held against what was seen to be right
//! (`tests/captures/tables.txt`).
//!
//! `UPDATE_CAPTURES=1 cargo test --lib captures` writes the file again; the difference is for a person to read.

use std::{collections::BTreeSet, fs, path::Path};

use unicode_width::UnicodeWidthStr as _;

use super::{
    row::{ListenerRow, RowState},
    service::{AskedService, Program},
    sessions,
    status::{self, ServiceState, StatusReport},
};
use crate::{
    cli::{table::Style, units::Scope},
    control::api,
    log::escape,
};

const FILE: &str = "tests/captures/tables.txt";

/// A name of each kind: short, ordinary, of OpenStack's length, of wide characters, escaped.
fn names() -> [(&'static str, String); 5] {
    let uuid = "27a7e3a4-9d07-4f1e-8f6c-5b1c2f0e9d11";
    let mut long = format!("openstack-{}", format!("port-{uuid}-").repeat(5));
    long.truncate(190);
    let escaped = escape("a\u{1b}[31m\u{202e}\\b".as_bytes());
    [
        ("short", "a".into()),
        ("ordinary", "gitweb".into()),
        ("long", long),
        ("wide", "日本語の名前".into()),
        ("escaped", escaped),
    ]
}

fn service() -> AskedService {
    let program = Program {
        name: "pfwd",
        prefix: "pfwd-",
        usual: Scope::System,
        sources: |_, _| unreachable!("no file is read"),
    };
    AskedService { program, scope: Scope::System, socket: "/run/pfwd/control".into(), usual: true }
}

fn json<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("it has all fields")
}

fn report() -> StatusReport {
    let mut listeners = Vec::new();
    for (index, (kind, name)) in names().into_iter().enumerate() {
        let states = ["serving", "paused", "refused", "awaited", "serving"];
        let address = match kind {
            "long" => format!("192.168.31.201:22 in qdhcp-{}", &name[10..]),
            "wide" => format!("/run/{name}.sock"),
            _ => format!("127.0.0.1:{}", 1234 + index),
        };
        let reason = (states[index] == "refused").then(|| {
            format!("it means nothing: no forward has the label {name}; run: systemctl restart pfwd-{name}.socket")
        });
        let mut listener = serde_json::json!({
            "address": address, "kind": if kind == "wide" { "unix" } else { "tcp" }, "name": name,
            "upstream": format!("qrexec @default qubes.ConnectTCP+{name}"), "state": states[index], "reason": reason,
            "sessions": index, "max_sessions": 1024, "waiting": 3, "queued": 0, "undecided": if index == 4 { 2 } else { 0 }
        });
        listener.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
        let unit = (index != 3).then(|| format!("pfwd-{name}.socket"));
        let start_unit = Some(format!("{kind}.service")).filter(|_| index < 3);
        listeners.push(ListenerRow { unit, start_unit, ..ListenerRow::of_service(json(listener)) });
    }
    let start_units = json(serde_json::json!([
        { "unit": "short.service", "state": "inactive", "sessions": 0, "waiting": 0, "last_start_ms": 7100,
          "median_start_ms": 6900, "memory_before_stop": 1_610_612_736u64, "ours": false },
        { "unit": "ordinary.service", "state": "active", "sessions": 3, "waiting": 1, "ours": true },
        { "unit": "long.service", "state": "active", "sessions": 0, "waiting": 0, "ours": false }
    ]));
    let state = ServiceState {
        unit: "pfwd.service".into(),
        running: true,
        active: Some("active".into()),
        pid: Some(4711),
        version: Some("0.1.0".into()),
        sessions: Some(10),
        crashes: Some(api::Crashes { crashes: 1, resumed: 9, lost: 1 }),
        trouble: None,
    };
    StatusReport { program: "pfwd", served: false, service: state, listeners, faults: Vec::new(), start_units }
}

fn all_sessions() -> Vec<api::Session> {
    let states = [(true, None), (true, None), (false, Some("call")), (false, Some("dom0")), (false, Some("turn"))];
    let session = |(index, (kind, name)): (usize, (&str, String))| {
        let listener = match kind {
            "long" => format!("192.168.31.201:22 in qdhcp-{}", &name[10..]),
            "wide" => format!("/run/{name}.sock"),
            _ => "127.0.0.1:1234".to_owned(),
        };
        let (connected, waits_for) = states[index];
        let process = serde_json::json!({ "pid": 4711, "uid": 1000, "unit": "app-firefox.scope", "command": format!("/usr/bin/{name} --new") });
        json(serde_json::json!({
            "id": format!("819f8405-9d07-4f1e-8f6c-5b1c2f0e9d1{index}"), "listener": listener, "transport": if kind == "wide" { "unix" } else { "tcp" }, "name": name,
            "peer": if kind == "wide" { "uid 1000 pid 4711".to_owned() } else { format!("127.0.0.1:6030{index}") },
            "upstream": format!("qrexec @default qubes.ConnectTCP+{name}"), "connected": connected,
            "age_ms": 1000_u64 << (4 * index), "up_bytes": 1023_u64 << (10 * index), "down_bytes": 0, "waits_for": waits_for,
            "behind": waits_for.map(|_| 5), "process": process
        }))
    };
    let mut sessions: Vec<api::Session> = names().into_iter().enumerate().map(session).collect();
    sessions.push(api::Session {
        connected: false,
        start_unit: Some("ordinary.service".into()),
        start_unit_state: Some(api::ActiveState::Activating),
        ..sessions[1].clone()
    });
    sessions
}

/// What `--json` prints is filled in every field, and each state is printed.
#[test]
fn no_field_that_json_printed_goes_away() {
    let full = |fields: &serde_json::Value| {
        let listener = ListenerRow {
            reason: Some("why".into()),
            max_sessions: Some(1),
            waiting: Some(1),
            active: Some("active".into()),
            enabled: Some("enabled".into()),
            unit: Some("x.socket".into()),
            ..ListenerRow::of_service(json(fields.clone()))
        };
        let service = ServiceState {
            unit: "pfwd.service".into(),
            running: true,
            active: Some("active".into()),
            pid: Some(1),
            version: Some("0".into()),
            sessions: Some(1),
            crashes: Some(api::Crashes { crashes: 1, resumed: 1, lost: 1 }),
            trouble: Some("it does not answer".into()),
        };
        StatusReport {
            program: "pfwd",
            served: true,
            service,
            listeners: vec![listener],
            faults: vec!["x".into()],
            start_units: Vec::new(),
        }
    };
    let listener = serde_json::json!({
        "address": "a", "kind": "tcp", "name": "n", "upstream": "u", "state": "serving", "sessions": 1, "max_sessions": 1
    });
    let mut session = serde_json::to_value(&all_sessions()[0]).expect("JSON");
    session["dial_ms"] = 1.into();
    let session: api::Session = json(session);
    let event: api::Event = json(serde_json::json!({
        "event": "ended", "session": session, "end": "eof", "exit_code": 1, "note": "n", "dropped": 1
    }));
    let mut found = BTreeSet::new();
    let mut shape = |at: &str, value: serde_json::Value| support::shape(&value, at, &[], &mut found);
    shape("status", serde_json::to_value(full(&listener)).expect("JSON"));
    shape("sessions", serde_json::to_value(api::Sessions { sessions: vec![session] }).expect("JSON"));
    shape("follow", serde_json::to_value(event).expect("JSON"));
    let earlier = include_str!("../../../tests/captures/earlier/json.txt");
    let gone = support::gone(earlier, &found);
    assert!(gone.is_empty() && earlier.lines().count() > 55, "gone: {gone:#?}\nthere is: {found:#?}");

    let states = [
        RowState::Serving,
        RowState::Ready,
        RowState::Paused,
        RowState::Refused,
        RowState::Awaited,
        RowState::Down,
        RowState::Off,
    ];
    let states = states.map(|state| serde_json::to_value(state).expect("JSON"));
    assert_eq!(states, ["serving", "ready", "paused", "refused", "awaited", "down", "off"]);
}

#[test]
fn every_table_is_as_it_was_seen_to_be_right() {
    let (service, report, sessions) = (service(), report(), all_sessions());
    let mut all = String::new();
    for width in [Some(60), Some(80), Some(200), None] {
        let style = Style { colour: false, width };
        let name = width.map_or_else(|| "a pipe".to_owned(), |width| format!("{width} columns"));
        for (what, text) in
            [("status", status::text(&service, &report, style)), ("sessions", sessions::table_of(style, &sessions))]
        {
            // A command is never cut, so that it can be copied.
            for line in text.lines().filter(|line| !line.contains("run: ")) {
                assert!(width.is_none_or(|width| line.width() <= width), "{name}: {line}");
            }
            all += &format!("=== {what}, {name}\n{text}\n");
        }
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    if std::env::var_os("UPDATE_CAPTURES").is_some() {
        fs::write(&file, &all).expect("writable");
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(all, known, "see the head of this file");
}
