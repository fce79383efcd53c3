//! `status` beside a real systemd, in every state that a socket unit can have: each row says what is so, and what it
//! advises helps.

use std::net::TcpListener;

use serde_json::Value;

use crate::{
    service::{enable_now, settled, socket},
    support::{Pace, Wire, eventually, exchange},
    tree::{As, attempt, shell, user_unit},
};

const UNIT: &str = "qrexec-connect-x.socket";

/// The exit code of `status`, and its rows.
#[track_caller]
fn status() -> (i32, Vec<Value>) {
    let (code, stdout, stderr) = attempt("qrexec-connect status --json");
    let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}\n{stderr}"));
    (code.expect("it ends"), report["listeners"].as_array().expect("a list").clone())
}

/// The unit has one row, with this state, and a reason with these parts; what the reason advises.
#[track_caller]
fn told(state: &str, parts: &[&str]) -> String {
    let (code, rows) = status();
    let mine: Vec<_> = rows.iter().filter(|row| row["unit"] == UNIT).collect();
    let [row] = mine[..] else { panic!("one row: {rows:#?}") };
    assert_eq!(row["state"], state, "{rows:#?}");
    assert_eq!(code, i32::from(!matches!(state, "ready" | "serving" | "off")), "{rows:#?}");
    let reason = row["reason"].as_str().unwrap_or_default();
    assert!(parts.iter().all(|part| reason.contains(part)), "{reason}");
    reason.rsplit_once("run: ").map(|(_, advice)| advice.to_owned()).unwrap_or_default()
}

/// Does what a reason advises; then the unit has this state, and there is nothing more to say.
#[track_caller]
fn helps(advice: &str, state: &str) {
    assert!(advice.starts_with("systemctl --user "), "{advice}");
    shell(advice);
    eventually("the state is as expected", || {
        let (_, rows) = status();
        rows.len() == 1 && rows[0]["state"] == state && rows[0]["reason"].is_null()
    });
}

fn write(lines: &str) {
    user_unit(UNIT, &format!("[Socket]\n{lines}"));
}

const NAME: &str = "FileDescriptorName=@default test.Echo\n";

fn echoes(port: u16) {
    exchange(&mut Wire::tcp(([127, 0, 0, 1], port).into()), 1, 1000, Pace::BULK);
}

/// Gives the unit's file a later time than systemd has read: two writes can fall into one tick of the clock.
const TOUCH: &str = "touch -d '1 minute' ~/.config/systemd/user/qrexec-connect-x.socket";

#[test]
fn status_tells_each_state_of_a_unit_and_how_it_ends() {
    let Some(tree) = tree!() else { return };
    tree.boot("states", As::Tester, || {
        // rejected by systemd: it listens nowhere
        write(NAME);
        shell("systemctl --user daemon-reload");
        told("off", &["systemd rejects the unit", "no Listen setting"]);
        attempt(&format!("systemctl --user enable --now {UNIT}"));
        told("down", &["systemd rejects the unit", "no Listen setting"]);
        write(&format!("ListenStream=127.0.0.1:1300\n{NAME}"));
        let advice = told("down", &["its file is correct now"]);
        helps(&advice, "ready");

        // before the first connection
        for (command, stdout) in [("sessions", "no sessions"), ("kill 01234567", "no sessions"), ("metrics", "")] {
            for environment in ["", "env -u XDG_RUNTIME_DIR "] {
                let (code, said, stderr) = attempt(&format!("{environment}qrexec-connect {command}"));
                assert_eq!((code, said.contains(stdout)), (Some(0), true), "{command}: {said}\n{stderr}");
                assert!((said + &stderr).contains("first connection starts qrexec-connect.service"), "{command}");
            }
        }
        let (code, said, _) = attempt("qrexec-connect pause x");
        assert!(code == Some(1) && !said.contains("os error"), "{said}");
        assert_eq!(shell("qrexec-connect sessions --json"), "{\"sessions\":[]}");
        assert!(shell("qrexec-connect status").contains("not running; the first connection starts it"));
        let (code, said, _) = attempt("qrexec-connect status --control /wrong --json");
        let report: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!((code, &report["served"]), (Some(1), &Value::Bool(false)), "{report}");

        // its file has changed, and systemd has not read it; then it has
        write(&format!("ListenStream=127.0.0.1:1301\n{NAME}"));
        shell(TOUCH);
        told("ready", &["the file of the unit has changed"]);
        shell("systemctl --user daemon-reload");
        let advice = told("down", &["nobody listens there"]);
        helps(&advice, "ready");

        // stopped; disabled; not known
        shell(&format!("systemctl --user stop {UNIT}"));
        let advice = told("down", &["enabled, and not started"]);
        helps(&advice, "ready");
        shell(&format!("systemctl --user disable --now {UNIT}"));
        told("off", &[""]);
        shell(&format!("systemctl --user enable --now {UNIT}"));

        // an address that is taken: by a process, then by nobody, then by another unit
        shell(&format!("systemctl --user stop {UNIT}"));
        let held = TcpListener::bind("127.0.0.1:1301").expect("a free port");
        attempt(&format!("systemctl --user start {UNIT}"));
        told("down", &["EADDRINUSE", &format!("process {} (", std::process::id())]);
        drop(held);
        let (_, rows) = status();
        let reason = rows[0]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("nothing is in the way now"), "{reason}");
        shell(&format!("systemctl --user start {UNIT}"));
        socket("second", "127.0.0.1:1301", "@default test.Echo");
        shell("systemctl --user daemon-reload");
        attempt("systemctl --user start qrexec-connect-second.socket");
        let (_, rows) = status();
        let second = rows.iter().find(|row| row["unit"] == "qrexec-connect-second.socket").expect("a row");
        assert!(second["reason"].as_str().is_some_and(|why| why.contains(&format!("by {UNIT}"))), "{second}");
        shell("rm ~/.config/systemd/user/qrexec-connect-second.socket; systemctl --user daemon-reload");
        shell("systemctl --user reset-failed");

        // served; then another name, and another port, while the service runs
        echoes(1301);
        told("serving", &[""]);
        write("ListenStream=127.0.0.1:1301\nFileDescriptorName=@default test.Other\n");
        shell(TOUCH);
        let advice = told("serving", &["the file of the unit has changed"]);
        helps(&advice, "serving");
        write(&format!("ListenStream=127.0.0.1:1301\n{NAME}"));
        shell("systemctl --user daemon-reload");
        let advice = told("serving", &["served as before"]);
        helps(&advice, "serving");
        settled();
        echoes(1301);
        write(&format!("ListenStream=127.0.0.1:1302\n{NAME}"));
        shell("systemctl --user daemon-reload");
        let (code, rows) = status();
        assert_eq!((code, rows.len()), (1, 2), "{rows:#?}");
        assert!(rows.iter().all(|row| row["unit"] == UNIT), "{rows:#?}");
        let reason = rows[0]["reason"].as_str().expect("text");
        assert!(reason.contains("127.0.0.1:1301 is still open"), "{reason}");
        // the listener that is open is still called by its unit
        assert_eq!(shell("qrexec-connect pause x"), "127.0.0.1:1301/tcp (x) is paused: connections wait in the backlog");
        shell("qrexec-connect resume x");
        assert!(shell("qrexec-connect metrics x").contains("listener=\"127.0.0.1:1301\""));
        let (code, _, why) = attempt("qrexec-connect pause y");
        assert!(code == Some(1) && why.contains("no active listener matches y; active: "), "{why}");
        let (code, _, why) = attempt("qrexec-connect kill y");
        assert!(code == Some(1) && why.contains("y means no listener, and is too short for the beginning of a session id"), "{why}");
        helps(reason.rsplit_once("run: ").expect("advice").1, "serving");
        settled();
        echoes(1302);

        // an address that systemd writes otherwise than the service does
        shell(&format!("systemctl --user disable --now {UNIT}; rm ~/.config/systemd/user/{UNIT}"));
        user_unit(
            "qrexec-connect-odd.socket",
            &format!("[Socket]\nListenStream=%t/\u{e9} \"q\".sock\nListenStream=@abs \u{e9}\nListenDatagram=127.0.0.1:1400\nListenStream=127.0.0.1:1400\n{NAME}"),
        );
        enable_now(&["odd"]);
        let (_, rows) = status();
        assert_eq!(rows.len(), 4, "{rows:#?}");
        echoes(1400);
        settled();
        let (_, rows) = status();
        let states: Vec<_> = rows.iter().map(|row| row["state"].as_str().unwrap_or_default()).collect();
        assert_eq!(states.len(), 4, "each once: {rows:#?}");
        assert_eq!(states.iter().filter(|state| **state == "serving").count(), 3, "{rows:#?}");
    });
}
