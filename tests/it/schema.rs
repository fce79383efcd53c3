//! What programs of others read: no field, method, error or value goes away. `tests/captures` has what was promised.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Activation, Server, eventually, varlink::Interface};

const NOW: &str = include_str!("../../src/control/org.qrexec-connect.Control.varlink");
const PROMISED: &str = include_str!("../captures/interface.varlink");
const PROMISED_JSON: &str = include_str!("../captures/json.txt");

#[test]
fn nothing_of_the_interface_goes_away() {
    let (now, promised) = (Interface::new(NOW).facts(), Interface::new(PROMISED).facts());
    let gone: Vec<_> = promised.difference(&now).collect();
    assert!(gone.is_empty(), "{gone:#?}");
    // an interface without one of them is told from this one
    let less = NOW.replace("  max_sessions: int,\n", "").replace("(serving, paused,", "(serving,");
    let less = Interface::new(&less).facts();
    let gone: Vec<_> = promised.difference(&less).map(String::as_str).collect();
    assert_eq!(gone, ["Listener.max_sessions: int", "Listener.state: paused"]);
}

/// `PATH: KIND` of everything in `value`.
fn paths(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(all) => {
            all.iter().for_each(|one| paths(one, &format!("{at}[]"), found));
            "list"
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(key, one)| paths(one, &format!("{at}.{key}"), found));
            "object"
        }
    };
    found.insert(format!("{at}: {kind}"));
}

#[test]
fn nothing_of_what_json_prints_goes_away() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).tcp("bad").with_control().start().ready();
    let asking = service.asking();
    let follow = asking.start(&["sessions", "--follow", "--json"]);
    follow.stdout.wait_for("\"ready\"");
    let peer = service.connect(0);
    let far = server.accept();
    eventually("it is connected", || asking.sessions().iter().any(|session| session["connected"] == true));
    let mut found = BTreeSet::new();
    for (command, code) in [("status", 1), ("sessions", 0), ("config", 78)] {
        let said = asking.say(&[command, "--json"]);
        assert_eq!(said.code, Some(code), "{said:?}");
        paths(&said.json(), command, &mut found);
    }
    drop((peer, far));
    follow.stdout.wait_for("\"ended\"");
    for line in follow.stdout.so_far() {
        paths(&serde_json::from_str(&line).expect("JSON"), "follow", &mut found);
    }
    let promised: BTreeSet<String> = PROMISED_JSON.lines().map(str::to_owned).collect();
    let gone: Vec<_> = promised.difference(&found).collect();
    let all: Vec<_> = found.iter().map(String::as_str).collect();
    assert!(gone.is_empty() && promised.len() > 40, "gone: {gone:#?}\nthere is:\n{}", all.join("\n"));
    service.stop();
}
