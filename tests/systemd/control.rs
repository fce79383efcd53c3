//! Asking under a real systemd: what `status` says of real units, what `varlinkctl` makes of the interface, and a
//! control socket that comes back as often as the service does.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    service::{enable_now, events, main_pid, restart, settled, socket, text},
    support::{Pace, Process, Wire, eventually, exchange},
    tree::{As, attempt, shell, user_unit},
};

const DESCRIPTION: &str = include_str!("../../src/control/org.qrexec-connect.Control.varlink");

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// `COMMAND --json`, which ends with this code.
#[track_caller]
fn json(code: i32, command: &str) -> Value {
    let (ended, stdout, stderr) = attempt(&format!("{command} --json"));
    assert_eq!(ended, Some(code), "{command}: {stdout}\n{stderr}");
    serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{command}: {e}: {stdout}"))
}

/// States by unit, or by address where there is no unit.
fn states(report: &Value) -> Vec<(String, String)> {
    let rows = report["listeners"].as_array().expect("a list");
    let mut states: Vec<_> = rows
        .iter()
        .map(|row| {
            let unit = row["unit"].as_str().or(row["address"].as_str()).expect("one of them");
            let short = unit.trim_start_matches("qrexec-connect-").trim_end_matches(".socket");
            (short.to_owned(), row["state"].as_str().expect("text").to_owned())
        })
        .collect();
    states.sort();
    states
}

fn expected(states: &[(&str, &str)]) -> Vec<(String, String)> {
    states.iter().map(|(unit, state)| ((*unit).to_owned(), (*state).to_owned())).collect()
}

#[test]
fn status_says_what_systemd_and_the_service_make_of_each_unit() {
    let Some(tree) = tree!() else { return };
    tree.boot("status", As::Tester, || {
        let status = "qrexec-connect status";
        assert_eq!(shell(status), "qrexec-connect.service: not running\nno listeners are configured");
        socket("good", "127.0.0.1:1234", "@default test.Echo");
        shell("systemctl --user daemon-reload");
        assert_eq!(states(&json(0, status)), expected(&[("good", "off")]));
        enable_now(&["good"]);
        let report = json(0, status);
        assert_eq!(states(&report), expected(&[("good", "ready")]));
        assert_eq!((report["service"]["running"].as_bool(), main_pid()), (Some(false), 0), "asking starts nothing");
        assert_eq!(report["listeners"][0]["upstream"], "qrexec @default test.Echo");

        socket("late", "127.0.0.1:1235", "@default test.SpeaksFirst");
        shell("systemctl --user daemon-reload; systemctl --user enable qrexec-connect-late.socket");
        let report = json(1, status);
        assert_eq!(states(&report), expected(&[("good", "ready"), ("late", "down")]));
        assert!(report["listeners"][1]["reason"].as_str().is_some_and(|why| why.contains("--user start ")), "{report}");
        shell("systemctl --user start qrexec-connect-late.socket");
        assert_eq!(states(&json(0, status)), expected(&[("good", "ready"), ("late", "ready")]));

        // a trial is a first connection like any other: systemd listens, and the service is started by it
        let report = json(0, "qrexec-connect try late");
        let steps: Vec<_> = report["steps"].as_array().expect("a list").iter().map(|step| &step["step"]).collect();
        assert_eq!(steps, ["socket", "service", "dom0", "connected", "byte"], "{report}");
        assert_eq!(report["upstream"], "qrexec @default test.SpeaksFirst", "{report}");
        assert_ne!(main_pid(), 0);
        settled();

        exchange(&mut port(1234), 1, 1000, Pace::BULK);
        let report = json(0, status);
        assert_eq!(states(&report), expected(&[("good", "serving"), ("late", "serving")]));
        assert_eq!(report["service"]["pid"], main_pid());
        assert_eq!(
            (&report["listeners"][0]["active"], &report["listeners"][0]["enabled"]),
            (&"active".into(), &"enabled".into())
        );
        let of_one = shell("qrexec-connect metrics late");
        assert!(of_one.contains("sessions_accepted_total{listener=\"127.0.0.1:1235\""), "{of_one}");
        assert!(
            !of_one.contains("127.0.0.1:1234") && of_one == shell("qrexec-connect metrics qrexec-connect-late.socket")
        );
        // a name that means nothing, beside those that are served; and one whose port is taken
        socket("bad", "127.0.0.1:1236", "@default");
        socket("clash", "127.0.0.1:1234", "@default test.Echo");
        shell("systemctl --user daemon-reload; systemctl --user start qrexec-connect-bad.socket");
        attempt("systemctl --user enable --now qrexec-connect-clash.socket");
        settled();
        // systemd does not listen for the last one; whose that address is, is known by it
        eventually("all four are told apart", || {
            let (_, stdout, _) = attempt(&format!("{status} --json"));
            let report: Value = serde_json::from_str(&stdout).expect("JSON");
            states(&report).len() == 4
        });
        let report = json(1, status);
        let states = states(&report);
        assert!(states.contains(&("bad".into(), "refused".into())), "{report:#}");
        assert!(states.contains(&("good".into(), "serving".into())), "{report:#}");
        let (code, table, _) = attempt(status);
        assert_eq!(code, Some(1));
        assert!(table.contains("qrexec-connect.service: running, process ") && !table.contains('\x1b'), "{table}");
        shell("systemctl --user stop 'qrexec-connect-*.socket' qrexec-connect.service");
        let report = json(1, status);
        assert!(report["service"]["running"] == false && report["service"]["active"] == "inactive", "{report:#}");
        assert_eq!(attempt("ls $XDG_RUNTIME_DIR/qrexec-connect").1, "", "the directory goes with a stop");
        // a connection that is over before the service can be asked about it: the trial makes a second one
        socket("no", "127.0.0.1:1237", "@default test.Refuse");
        shell("systemctl --user daemon-reload; systemctl --user start qrexec-connect-no.socket");
        let report = json(1, "qrexec-connect try no");
        assert_eq!(report["failure"]["step"], "dom0", "{report}");
        assert_eq!(report["steps"].as_array().map(Vec::len), Some(2), "{report}");
        settled();
    });
}

#[test]
fn the_control_socket_comes_back_with_every_restart_and_answers_throughout() {
    let Some(tree) = tree!() else { return };
    tree.boot("restarts", As::Tester, || {
        socket("echo", "127.0.0.1:1234", "@default test.Echo");
        enable_now(&["echo"]);
        let mut live = port(1234);
        exchange_some(&mut live);
        shell("qrexec-connect pause 127.0.0.1:1234");
        for round in 0..5 {
            restart();
            assert_eq!(json(1, "qrexec-connect status")["listeners"][0]["state"], "paused", "round {round}");
            assert_eq!(json(0, "qrexec-connect sessions")["sessions"].as_array().map(Vec::len), Some(1));
            exchange_some(&mut live);
        }
        shell("qrexec-connect resume qrexec-connect-echo.socket");
        exchange(&mut port(1234), 1, 1000, Pace::BULK);
        let metrics = shell("qrexec-connect metrics");
        assert!(metrics.contains("qrexec_connect_handovers_total 5\n"), "{metrics}");
        // sockets that come restart the service, too; whoever asks meanwhile waits and is answered
        for n in 0..4 {
            socket(&format!("more{n}"), &format!("127.0.0.1:{}", 1300 + n), "@default test.Echo");
        }
        shell(
            "systemctl --user daemon-reload; systemctl --user --no-block start qrexec-connect-more{0,1,2,3}.socket
             for i in {1..20}; do qrexec-connect sessions --json >/dev/null; done",
        );
        settled();
        eventually("all five are served", || {
            let (_, stdout, _) = attempt("qrexec-connect status --json");
            let report: Value = serde_json::from_str(&stdout).expect("JSON");
            let rows = report["listeners"].as_array().expect("a list");
            rows.len() == 5 && rows.iter().all(|row| row["state"] == "serving")
        });
        // killed by an operator, told once
        let id = json(0, "qrexec-connect sessions")["sessions"][0]["id"].as_str().expect("text").to_owned();
        shell(&format!("qrexec-connect kill {}", &id[..8]));
        live.expect_reset();
        eventually("its end is in the journal", || {
            events("session-end").iter().any(|event| text(event, "SESSION_ID") == id)
        });
        let ends = events("session-end");
        let ends: Vec<_> = ends.iter().filter(|event| text(event, "SESSION_ID") == id).collect();
        assert_eq!((ends.len(), text(ends[0], "END")), (1, "killed"));
    });
}

fn exchange_some(wire: &mut Wire) {
    wire.write_all(b"there and back").expect("connected");
    wire.expect(b"there and back");
}

#[test]
fn a_session_names_the_unit_of_its_peer() {
    let Some(tree) = tree!() else { return };
    tree.boot("tester", As::Tester, || {
        socket("echo", "127.0.0.1:1234", "@default test.Echo");
        enable_now(&["echo"]);
        shell("systemd-run --user -q --unit=visitor bash -c 'exec 5<>/dev/tcp/127.0.0.1/1234; echo x >&5; exec sleep 1000'");
        let mut process = Value::Null;
        eventually("it is known", || {
            let (_, stdout, _) = attempt("qrexec-connect sessions --json");
            let all: Value = serde_json::from_str(&stdout).unwrap_or_default();
            process = all["sessions"][0]["process"].clone();
            process["command"] == "sleep 1000"
        });
        assert_eq!(process["unit"], "visitor.service");
        let pid = shell("systemctl --user show -p MainPID --value visitor.service");
        assert_eq!(process["pid"].to_string(), pid);
        assert!(shell("qrexec-connect sessions").contains(&format!("{pid} visitor.service sleep 1000")));
    });
    tree.boot("root", As::Root, || {
        // the service has few capabilities; root, who asks, has all
        std::fs::write("/etc/pfwd.toml", "[[forward]]\nlisten = \"127.0.0.1:1400\"\ntarget = \"127.0.0.1:1401\"\n")
            .expect("root's own tree");
        let server = std::net::TcpListener::bind("127.0.0.1:1401").expect("a free port");
        assert_eq!(json(1, "pfwd status")["listeners"][0]["state"], "down");
        shell("systemctl start pfwd.service");
        assert_eq!(json(0, "pfwd status")["listeners"][0]["state"], "serving");
        shell("systemd-run -q --unit=visitor bash -c 'exec 5<>/dev/tcp/127.0.0.1/1400; exec sleep 1000'");
        let _far = server.accept().expect("it came");
        let mut process = Value::Null;
        eventually("it is known", || {
            process = json(0, "pfwd sessions")["sessions"][0]["process"].clone();
            process["command"] == "sleep 1000"
        });
        assert_eq!(process["unit"], "visitor.service");
        for command in ["status", "sessions", "kill 00000000"] {
            let (code, _, said) = attempt(&format!("setpriv --reuid=65534 --clear-groups pfwd {command}"));
            assert!(code == Some(77) && said.contains("Permission denied") && said.contains("only the user"), "{said}");
        }
    });
}

#[test]
fn varlinkctl_introspects_and_calls() {
    let Some(tree) = tree!() else { return };
    tree.boot("varlinkctl", As::Tester, || {
        if attempt("command -v varlinkctl").0 != Some(0) {
            return; // systemd 252 has none; tests/run has 257 do it
        }
        socket("echo", "127.0.0.1:1234", "@default test.Echo");
        enable_now(&["echo"]);
        let mut live = port(1234);
        exchange_some(&mut live);
        let control = "$XDG_RUNTIME_DIR/qrexec-connect/control";
        let interface = "org.qrexec-connect.Control";
        assert_eq!(
            shell(&format!("varlinkctl list-interfaces {control}")),
            format!("{interface}\norg.varlink.service")
        );
        // it writes the same in its own layout
        let plain = |text: &str| text.split_whitespace().collect::<String>();
        let told = shell(&format!("varlinkctl introspect {control} {interface}"));
        assert_eq!(plain(&told), plain(DESCRIPTION));
        shell(&format!("varlinkctl introspect {control} org.varlink.service; varlinkctl info {control}"));
        let call = |method: &str, parameters: &str| -> Value {
            let said = shell(&format!("varlinkctl call -j {control} {interface}.{method} '{parameters}'"));
            serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
        };
        assert_eq!(call("Status", "{}")["listeners"][0]["address"], "127.0.0.1:1234");
        let session = call("ListSessions", "{\"processes\":true}")["sessions"][0].clone();
        assert_eq!(session["process"]["pid"], std::process::id());
        call("Pause", "{\"listener\":\"127.0.0.1:1234\"}");
        assert_eq!(call("ListListeners", "{}")["listeners"][0]["state"], "paused");
        call("Resume", "{\"listener\":\"127.0.0.1:1234\"}");
        assert!(call("Metrics", "{}")["text"].as_str().expect("text").ends_with("# EOF\n"));
        let mut watch = Command::new("/bin/bash");
        watch.args(["-c", &format!("exec varlinkctl call --more -j {control} {interface}.Watch '{{}}'")]);
        let watch = Process::start(watch);
        watch.stdout.wait_for("\"ready\"");
        let id = session["id"].as_str().expect("text");
        assert_eq!(call("Kill", &format!("{{\"id\":\"{id}\"}}"))["id"], id);
        live.expect_reset();
        assert!(watch.stdout.wait_for("\"ended\"").contains("\"killed\""));
        watch.signal(Signal::SIGKILL);
        let (code, _, stderr) = attempt(&format!("varlinkctl call {control} {interface}.Kill '{{\"id\":\"{id}\"}}'"));
        assert!(code != Some(0) && stderr.contains("NoSuchSession"), "{stderr}");
    });
}

#[test]
fn a_socket_unit_called_metrics_is_for_scrapers() {
    let Some(tree) = tree!() else { return };
    tree.boot("metrics", As::Tester, || {
        user_unit(
            "qrexec-connect-metrics.socket",
            "[Socket]\nListenStream=127.0.0.1:9187\nFileDescriptorName=metrics\n",
        );
        enable_now(&["metrics"]);
        assert!(shell("qrexec-connect check").contains("127.0.0.1:9187 -> the metrics of this service"));
        assert_eq!(states(&json(0, "qrexec-connect status")), expected(&[("metrics", "ready")]));
        let scrape = || {
            let mut wire = TcpStream::connect("127.0.0.1:9187").expect("systemd listens");
            wire.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("connected");
            let mut reply = String::new();
            wire.read_to_string(&mut reply).expect("an answer");
            assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
            reply
        };
        // the scrape starts the service, which stays
        assert!(scrape().contains("qrexec_connect_handovers_total 0\n"));
        let pid = main_pid();
        scrape();
        assert_eq!(main_pid(), pid);
        restart();
        assert!(scrape().contains("qrexec_connect_handovers_total 1\n"));
        assert_eq!(states(&json(0, "qrexec-connect status")), expected(&[("metrics", "serving")]));
    });
}
