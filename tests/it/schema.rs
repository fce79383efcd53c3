//! What programs of others read: no field, method, error, value, metric, message id or exit code goes away.
//! `tests/captures` has what was promised; `tests/captures/earlier` is what the programs of commit 9498472 printed, and
//! what their sources say of fields that they print at times.

use std::{collections::BTreeSet, net::SocketAddr};

use crate::support::{Activation, Server, eventually, gone, program, run, shape, varlink::Interface};

const NOW: &str = include_str!("../../src/control/org.qrexec-connect.Control.varlink");
const PROMISED: &str = include_str!("../captures/interface.varlink");
const EARLIER: &str = include_str!("../captures/earlier/control.varlink");
const EARLIER_METRICS: &str = include_str!("../captures/earlier/metrics.txt");
const EARLIER_MESSAGES: &str = include_str!("../captures/earlier/messages.txt");
const PROMISED_JSON: &str = include_str!("../captures/json.txt");

#[test]
fn nothing_of_the_interface_goes_away() {
    let (now, promised) = (Interface::new(NOW).facts(), Interface::new(PROMISED).facts());
    for promised in [&promised, &Interface::new(EARLIER).facts()] {
        let gone: Vec<_> = promised.difference(&now).collect();
        assert!(gone.is_empty() && promised.len() > 60, "{gone:#?}");
    }
    // the comparison sees an interface that lacks one of them
    let less = NOW.replace("  max_sessions: int,\n", "").replace("(serving, paused,", "(serving,");
    let less = Interface::new(&less).facts();
    let gone: Vec<_> = promised.difference(&less).map(String::as_str).collect();
    assert_eq!(gone, ["Listener.max_sessions: int", "Listener.state: paused"]);
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
        shape(&said.json(), command, &[], &mut found);
    }
    drop((peer, far));
    follow.stdout.wait_for("\"ended\"");
    for line in follow.stdout.so_far() {
        shape(&serde_json::from_str(&line).expect("JSON"), "follow", &[], &mut found);
    }
    let (gone, all): (_, Vec<_>) = (gone(PROMISED_JSON, &found), found.iter().map(String::as_str).collect());
    assert!(gone.is_empty() && PROMISED_JSON.lines().count() > 40, "gone: {gone:#?}\nthere is:\n{}", all.join("\n"));
    service.stop();
}

/// Types of metrics, their labels, the bounds of histograms, and samples without labels.
fn metrics(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines().map(|line| line.replace("qrexec_connect_", "PROGRAM_")) {
        match (line.strip_prefix("# TYPE "), line.split_once('{')) {
            (Some(typed), _) => _ = found.insert(typed.to_owned()),
            (None, Some((name, rest))) => {
                let (labels, _) = rest.rsplit_once('}').expect("it ends");
                for (label, value) in labels.split("\",").filter_map(|label| label.split_once("=\"")) {
                    let bound = label == "le";
                    let value = value.trim_end_matches('"');
                    let what = if bound { format!("le {value}") } else { format!("label {label}") };
                    found.insert(format!("{name} {what}"));
                }
            }
            (None, None) if line.starts_with('#') => {}
            (None, None) => _ = found.insert(format!("{} sample", line.split(' ').next().expect("a name"))),
        }
    }
    found
}

#[test]
fn no_metric_and_no_label_goes_away() {
    let server = Server::tcp();
    // Bound, so that nobody else gets the port, and not listening.
    let refusing = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    refusing.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let nobody = refusing.local_addr().expect("bound").as_socket().expect("an address").port();
    let nobody = format!("target=127.0.0.1+{nobody}");
    let service = Activation::qrexec_connect().tcp(&server.name()).tcp(&nobody).with_control().start().ready();
    let asking = service.asking();
    let peer = service.connect(0);
    drop((server.accept(), peer));
    service.connect(1).expect_reset();
    service.ends(2);
    let found = metrics(&asking.ok(&["metrics"]).stdout);
    let gone = gone(EARLIER_METRICS, &found);
    assert!(gone.is_empty() && EARLIER_METRICS.lines().count() > 40, "gone: {gone:#?}\nthere is: {found:#?}");
    service.stop();
}

#[test]
fn no_message_changes_its_id() {
    let catalogs = concat!(
        include_str!("../../packaging/catalog/qrexec-connect.catalog"),
        include_str!("../../packaging/catalog/qvm-remote.catalog")
    );
    let lines: Vec<&str> = catalogs.lines().collect();
    let named = |pair: &[&str]| Some(format!("{} {}", pair[0].strip_prefix("# ")?, pair[1].strip_prefix("-- ")?));
    let found: BTreeSet<String> = lines.windows(2).filter_map(named).collect();
    let gone = gone(EARLIER_MESSAGES, &found);
    assert!(gone.is_empty() && EARLIER_MESSAGES.lines().count() > 30, "{gone:#?}");
}

/// What the earlier programs ended with. One code is another now: that of `status` where no service has the control
/// socket that was named, which was 0.
#[test]
fn no_exit_code_changes() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).tcp("bad").with_control().start().ready();
    let asking = service.asking();
    let at = format!("127.0.0.1:{}", service.port(0));
    for (arguments, code) in [
        (&["status"][..], 1),
        (&["status", "--json"], 1),
        (&["sessions"], 0),
        (&["sessions", "ffffffff"], 1),
        (&["metrics"], 0),
        (&["kill", "ffffffff"], 1),
        (&["kill"], 2),
        (&["pause", "nobody"], 1),
        (&["pause", "bad"], 1),
        (&["pause"], 2),
        (&["pause", &at], 0),
        (&["resume", &at], 0),
        (&["resume", "nobody"], 1),
    ] {
        let said = asking.say(arguments);
        assert_eq!(said.code, Some(code), "{arguments:?}: {said:?}");
    }
    let bad = service.dir().join("bad.toml");
    std::fs::write(&bad, "nonsense = 1\n").expect("ours");
    let bad = bad.to_str().expect("plain");
    for (name, arguments, code) in [
        ("qrexec-connect", &["sessions", "--control", "/nowhere"][..], 1),
        ("qrexec-connect", &["metrics", "--control", "/nowhere"], 1),
        ("qrexec-connect", &["kill", "ffffffff", "--control", "/nowhere"], 1),
        ("qrexec-connect", &["status", "--control", "/nowhere"], 1),
        ("qrexec-connect", &["nonsense"], 2),
        ("qrexec-connect", &["--nonsense"], 2),
        ("qrexec-connect", &["--help"], 0),
        ("qrexec-connect", &["--version"], 0),
        ("qrexec-connect", &["check", "nonsense="], 78),
        ("qrexec-connect", &["--config", bad], 78),
        ("pfwd", &["--config", bad], 78),
        ("pfwd", &["--check", "--config", bad], 78),
        ("pfwd", &["--config", "/nowhere"], 78),
        ("pfwd", &["--forward", "nonsense"], 78),
        ("pfwd", &["--nonsense"], 2),
        ("pfwd", &["--forward", "listen=127.0.0.1+0,target=127.0.0.1+1", "--check"], 0),
    ] {
        let mut command = std::process::Command::new(program(name));
        command.args(arguments).stdin(std::process::Stdio::null());
        let output = run(command);
        assert_eq!(output.status.code(), Some(code), "{name} {arguments:?}: {output:?}");
    }
    service.stop();
}
