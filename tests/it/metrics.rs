//! Metrics, by command and over HTTP.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::{
    sessions::exchange_one,
    support::{Activation, FakeQrexec, Server, eventually, skip},
};

/// Samples by name and labels, of a text that is held against what OpenMetrics 1.0 asks of each line.
fn samples(text: &str) -> std::collections::BTreeMap<String, f64> {
    let (mut families, mut samples) = (Vec::<(String, String)>::new(), std::collections::BTreeMap::new());
    let body = text.strip_suffix("# EOF\n").expect("it ends with an end");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (what, name, value) = (words.next(), words.next().expect("a name"), words.next().expect("a value"));
            match what {
                Some("HELP") => {
                    assert!(families.iter().all(|(known, _)| known != name), "{name} comes twice");
                    assert!(value.ends_with('.'), "{line}");
                    families.push((name.to_owned(), String::new()));
                }
                Some("TYPE") => families.last_mut().expect("after HELP").1 = value.to_owned(),
                Some("UNIT") => assert!(name.ends_with(&format!("_{value}")), "{line}"),
                _ => panic!("{line}"),
            }
            assert_eq!(families.last().expect("one").0, name, "{line}");
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect("a value");
        let name = sample.split('{').next().expect("a name");
        let (family, kind) = families.last().expect("a family");
        let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} below {family}"));
        let fine = match kind.as_str() {
            "counter" => suffix == "_total",
            "gauge" => suffix.is_empty(),
            "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
            _ => false,
        };
        assert!(fine && name.starts_with("qrexec_connect_"), "{line}: {kind}");
        let value: f64 = value.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(samples.insert(sample.to_owned(), value).is_none(), "{sample} comes twice");
    }
    samples
}

/// promtool finds nothing to say. Where there is none, the test says so; with `CI=true` it is a failure.
#[track_caller]
fn assert_promtool_is_content(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        return skip("promtool check metrics: promtool is missing (Debian: prometheus)");
    };
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

#[test]
fn metrics_count_what_happened_and_go_on_after_a_restart() {
    let fake = FakeQrexec::new();
    let server = Server::tcp();
    // Bound, so that nobody else gets the port, and not listening.
    let refusing = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    refusing.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
    let nobody = refusing.local_addr().expect("bound").as_socket().expect("an address").port();
    let mut service = Activation::calling(&fake)
        .tcp(&server.name())
        .tcp(&format!("target=127.0.0.1+{nobody}"))
        .tcp("work test.Refuse")
        .tcp(&format!("{},allow_from=10.0.0.0/8", server.name()))
        .tcp("work test.Missing")
        .with_control()
        .start()
        .ready();
    let asking = service.asking();
    let mut peer = service.connect(0);
    let mut far = server.accept();
    exchange_one(&mut peer, &mut far);
    drop(far);
    peer.expect_end();
    let mut living = service.connect(0);
    let mut living_far = server.accept();
    living.write_all(b"12345").expect("connected");
    living_far.expect(b"12345");
    service.connect(1).expect_reset();
    service.connect(2).expect_reset();
    service.connect(3).expect_reset();
    service.connect(4).expect_reset();
    service.ends(4);
    let at = |index: usize| format!("listener=\"127.0.0.1:{}\",transport=\"tcp\"", service.port(index));
    let (a, b, c, d, e) = (at(0), at(1), at(2), at(3), at(4));
    let expected = |sessions: f64, handovers: f64| {
        [
            (format!("qrexec_connect_sessions{{{a}}}"), sessions),
            (format!("qrexec_connect_sessions_accepted_total{{{a}}}"), 2.0),
            (format!("qrexec_connect_sessions_ended_total{{{a},end=\"eof\"}}"), 1.0),
            (format!("qrexec_connect_sessions_ended_total{{{b},end=\"dial-failed\"}}"), 1.0),
            (format!("qrexec_connect_sessions_ended_total{{{c},end=\"refused\"}}"), 1.0),
            (format!("qrexec_connect_delivered_bytes_total{{{a},direction=\"up\"}}"), 8.0),
            (format!("qrexec_connect_delivered_bytes_total{{{a},direction=\"down\"}}"), 0.0),
            (format!("qrexec_connect_dials_total{{{a}}}"), 2.0),
            (format!("qrexec_connect_dials_total{{{b}}}"), 1.0),
            (format!("qrexec_connect_dial_failures_total{{{b},reason=\"nobody-listens\"}}"), 1.0),
            (format!("qrexec_connect_dial_failures_total{{{c},reason=\"refused\"}}"), 1.0),
            (format!("qrexec_connect_dial_failures_total{{{e},reason=\"no-service\"}}"), 1.0),
            (format!("qrexec_connect_dials_total{{{e}}}"), 1.0),
            (format!("qrexec_connect_dial_duration_seconds_count{{{a}}}"), 2.0),
            (format!("qrexec_connect_dial_duration_seconds_bucket{{le=\"+Inf\",{a}}}"), 2.0),
            (format!("qrexec_connect_dial_duration_seconds_count{{{b}}}"), 0.0),
            (format!("qrexec_connect_peers_denied_total{{{d}}}"), 1.0),
            (format!("qrexec_connect_listener_paused{{{a}}}"), 0.0),
            ("qrexec_connect_handovers_total".into(), handovers),
            ("qrexec_connect_listeners".into(), 5.0),
            ("qrexec_connect_listeners_served".into(), 5.0),
        ]
    };
    let check = |sessions: f64, handovers: f64| {
        eventually("all bytes are counted", || {
            let text = asking.ok(&["metrics", "--openmetrics"]).stdout;
            samples(&text).get(&format!("qrexec_connect_delivered_bytes_total{{{a},direction=\"up\"}}")) == Some(&8.0)
        });
        let samples = samples(&asking.ok(&["metrics", "--openmetrics"]).stdout);
        for (name, value) in expected(sessions, handovers) {
            assert_eq!(samples.get(&name), Some(&value), "{name} in {samples:#?}");
        }
        let [open, limit] = ["open", "limit"].map(|what| samples[&format!("qrexec_connect_descriptors_{what}")]);
        assert!(open > 10.0 && open < limit, "{open} of {limit}");
        samples["qrexec_connect_start_time_seconds"]
    };
    let began = check(1.0, 0.0);
    assert_promtool_is_content(&asking.ok(&["metrics"]).stdout);
    service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    assert_eq!(check(1.0, 1.0), began, "one row of processes");
    drop((living, living_far));
    service.stop();
}

fn http(address: (&str, u16), request: &str) -> String {
    let mut wire = TcpStream::connect(address).expect("it listens");
    wire.set_read_timeout(Some(support::PATIENCE)).expect("not zero");
    let _ = wire.write_all(request.as_bytes());
    let mut reply = Vec::new();
    wire.read_to_end(&mut reply).expect("an answer and its end");
    String::from_utf8(reply).expect("text")
}

#[test]
fn a_socket_called_metrics_is_scraped_over_http() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).tcp("metrics").with_control().start().ready();
    assert_eq!(service.notifications.status().as_deref(), Some("2 listeners, 0 sessions"));
    let at = ("127.0.0.1", service.port(1));
    let plain = http(at, "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
    let (head, text) = plain.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", text.len())), "{head}");
    assert_promtool_is_content(text);
    let open = http(at, "GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n");
    let (head, text) = open.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(samples(text).len() > 20);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("nonsense\r\n\r\n", "400"),
        (&format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(20_000)), "431"),
    ] {
        let reply = http(at, request);
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.40}: {reply}");
    }
    // those who say nothing keep nobody else out
    let _silent: Vec<_> = (0..4).map(|_| TcpStream::connect(at).expect("it listens")).collect();
    assert!(http(at, "HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
    let report = service.asking().ok(&["status", "--json"]).json();
    assert_eq!(report["listeners"][1]["upstream"], "the metrics of this service");
    service.stop();
}

#[test]
fn a_unit_that_is_started_for_sessions_has_metrics_and_promtool_takes_them() {
    let service = Activation::qrexec_connect().tcp("target=127.0.0.1+9,start_unit=ai").with_control().start().ready();
    let asking = service.asking();
    let samples = samples(&asking.ok(&["metrics", "--openmetrics"]).stdout);
    for (name, value) in [
        ("state{unit=\"ai.service\",state=\"inactive\"}", 1.0),
        ("state{unit=\"ai.service\",state=\"active\"}", 0.0),
        ("sessions{unit=\"ai.service\"}", 0.0),
        ("sessions_waiting{unit=\"ai.service\"}", 0.0),
    ] {
        assert_eq!(samples.get(&format!("qrexec_connect_start_unit_{name}")), Some(&value), "{name} in {samples:#?}");
    }
    assert_promtool_is_content(&asking.ok(&["metrics"]).stdout);
    // A service that starts no unit says nothing of units.
    let plain = Activation::qrexec_connect().tcp("target=127.0.0.1+9").with_control().start().ready();
    assert!(!plain.asking().ok(&["metrics"]).stdout.contains("start_unit"));
}

#[test]
fn a_listener_that_is_not_served_is_counted_as_one() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).tcp("nonsense").with_control().start().ready();
    let samples = samples(&service.asking().ok(&["metrics", "--openmetrics"]).stdout);
    for (name, value) in [("listeners", 2.0), ("listeners_served", 1.0)] {
        assert_eq!(samples.get(&format!("qrexec_connect_{name}")), Some(&value), "{name} in {samples:#?}");
    }
    service.stop();
}
