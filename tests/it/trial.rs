//! `try`: one connection through a listener, each step with its time, and the step that fails.

use std::net::{TcpListener, UdpSocket};

use serde_json::Value;

use crate::support::{Activated, Activation, FakeQrexec, Server, asking::Said};

/// The steps that are over, and the report.
fn tried(service: &Activated, word: &str, code: i32) -> (Vec<String>, Value) {
    let said: Said = service.asking().say(&["try", word, "--json"]);
    assert_eq!(said.code, Some(code), "{word}: {said:?}");
    let report = said.json();
    assert_eq!(report["works"], code == 0, "{report}");
    let mut before = 0;
    let steps = report["steps"].as_array().expect("a list").iter().map(|step| {
        let ms = step["ms"].as_u64().unwrap_or(before);
        assert!(ms >= before, "steps come in their order: {report}");
        before = ms;
        step["step"].as_str().expect("a word").to_owned()
    });
    (steps.collect(), report)
}

/// The cause and the next command of a step that fails.
fn failed(report: &Value, step: &str) -> (String, String) {
    let failure = &report["failure"];
    assert_eq!(failure["step"], step, "{report}");
    let text = |key: &str| failure[key].as_str().expect("text").to_owned();
    (text("cause"), text("next"))
}

#[test]
fn a_call_is_tried_up_to_the_first_byte_or_the_step_that_fails() {
    let fake = FakeQrexec::new();
    let names =
        ["work test.SpeaksFirst", "work test.Refuse", "work test.Missing", "work test.Broken", "off test.Refuse+300"];
    let activation = names.iter().fold(Activation::calling(&fake), |activation, name| activation.tcp(name));
    let service = activation.unix("work test.SpeaksFirst").with_control().start().ready();
    let port = |index: usize| service.port(index).to_string();

    let (steps, report) = tried(&service, &port(0), 0);
    assert_eq!(steps, ["socket", "service", "dom0", "connected", "byte"], "{report}");
    assert!(report["session"].is_string() && report["upstream"] == "qrexec work test.SpeaksFirst", "{report}");

    let (steps, report) = tried(&service, &port(1), 1);
    assert_eq!(steps, ["socket", "service"]);
    let (cause, next) = failed(&report, "dom0");
    assert!(cause.contains("/etc/qubes/policy.d/") && cause.contains("test.Refuse"), "{cause}");
    assert_eq!(
        next,
        format!("journalctl --user -x -t qrexec-connect SESSION_ID={}", report["session"].as_str().expect("text"))
    );

    // the two qubes are connected before the service is looked for
    let (steps, report) = tried(&service, &port(2), 1);
    assert_eq!(steps, ["socket", "service", "dom0"]);
    assert!(failed(&report, "connected").0.contains("no service test.Missing"), "{report}");
    let (steps, report) = tried(&service, &port(3), 1);
    assert_eq!(steps, ["socket", "service", "dom0"]);
    assert!(failed(&report, "connected").0.contains("nothing listens"), "{report}");

    // a halted qube that cannot be started is refused after a while
    let (steps, report) = tried(&service, &port(4), 1);
    assert_eq!(steps, ["socket", "service"]);
    assert!(failed(&report, "dom0").0.contains("cannot be started"), "{report}");

    let path =
        service.asking().ok(&["status", "--json"]).json()["listeners"][5]["address"].as_str().expect("text").to_owned();
    assert_eq!(tried(&service, &path, 0).0, ["socket", "service", "dom0", "connected", "byte"]);
    service.stop();
}

#[test]
fn people_see_each_step_with_its_time_and_what_to_do() {
    let fake = FakeQrexec::new();
    let service =
        Activation::calling(&fake).tcp("work test.Echo").tcp("work test.Missing").with_control().start().ready();
    let said = service.asking().ok(&["try", &service.port(0).to_string()]);
    for part in
        ["leads to qrexec work test.Echo", "the service took", "dom0 allowed", "the service waits for the client"]
    {
        assert!(said.stdout.contains(part), "{part} is missing in {}", said.stdout);
    }
    assert_eq!(said.stdout.matches(" ms  ").count(), 4, "{}", said.stdout);
    let said = service.asking().say(&["try", &service.port(1).to_string()]);
    assert_eq!(said.code, Some(1), "{said:?}");
    for part in ["failed  the other side cannot be reached: work has no service", "next: journalctl --user"] {
        assert!(said.stdout.contains(part), "{part} is missing in {}", said.stdout);
    }
    service.stop();
}

#[test]
fn addresses_are_tried_over_tcp_and_udp() {
    let server = Server::tcp();
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    let answering = UdpSocket::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    let service = Activation::qrexec_connect()
        .tcp(&server.name())
        .tcp(&format!("target=127.0.0.1+{nobody}"))
        .udp(&format!("target=127.0.0.1+{answering}"))
        .tcp(&format!("{},allow_from=10.0.0.0/8", server.name()))
        .with_control()
        .start()
        .ready();
    let port = |index: usize| service.port(index).to_string();
    let (steps, report) = tried(&service, &port(1), 1);
    assert_eq!(steps, ["socket", "service"]);
    assert!(failed(&report, "connected").0.contains("refused"), "{report}");
    assert_eq!(tried(&service, &port(2), 0).0, ["socket", "service", "connected"], "no byte is waited for");
    let (steps, report) = tried(&service, &port(3), 1);
    assert_eq!(steps, ["socket"]);
    assert!(failed(&report, "service").0.contains("allow_from"), "{report}");

    service.asking().ok(&["pause", &port(0)]);
    let (steps, report) = tried(&service, &port(0), 1);
    assert_eq!(steps, Vec::<String>::new());
    let (cause, next) = failed(&report, "service");
    assert!(
        cause.contains("paused") && next == format!("qrexec-connect resume \"127.0.0.1:{}/tcp\"", port(0)),
        "{next}"
    );
    let said = service.asking().say(&["try", "nobody"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("no listener matches nobody; known: "), "{said:?}");
    service.stop();
}
