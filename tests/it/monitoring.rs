//! The rules and the dashboard of packaging/monitoring: what they ask for is exported, the alerts fire in the situation
//! that they are for, and the real Prometheus evaluates all of them.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    sessions::exchange_one,
    support::{Activated, Activation, Process, Server, eventually, run, skip},
};

const RULES: &str = include_str!("../../packaging/monitoring/qrexec-connect.rules.yml");
const RULES_OF_PFWD: &str = include_str!("../../packaging/monitoring/pfwd.rules.yml");
const DASHBOARD: &str = include_str!("../../packaging/monitoring/dashboard.json");
const PREFIX: &str = "qrexec_connect_";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Each expression of the dashboard, with its variables as they are for one program.
fn queries() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let expressions = targets.map(|target| target["expr"].as_str().expect("an expression"));
    let plain = |text: &str| text.replace("${program}", "qrexec_connect").replace("$instance", ".*");
    expressions.map(|text| plain(text).replace("$__rate_interval", "20s")).collect()
}

/// The names of metrics of this program in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let starts = text.match_indices(PREFIX).map(|(at, _)| &text[at..]);
    starts
        .map(|text| &text[..text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())])
        .collect()
}

/// A service with one listener that is used, one whose target refuses, one that is refused, and one for metrics.
fn service() -> (Activated, Server) {
    let server = Server::tcp();
    let service = Activation::qrexec_connect()
        .tcp(&server.name())
        .tcp("target=127.0.0.1+9")
        .tcp("nonsense")
        .tcp("metrics")
        .with_control()
        .start()
        .ready();
    let mut peer = service.connect(0);
    let mut far = server.accept();
    exchange_one(&mut peer, &mut far);
    drop(far);
    peer.expect_end();
    service.connect(1).expect_reset();
    (service, server)
}

#[test]
fn rules_and_dashboard_name_metrics_that_the_program_exports() {
    let (service, _server) = service();
    let exported = service.asking().ok(&["metrics"]).stdout;
    let exported: BTreeSet<&str> = exported.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();
    // exported only where the configuration has a fault: it/reload.rs sees it
    let sometimes = ["qrexec_connect_configuration_fault"];
    let queries = queries().join("\n");
    for (what, text, least) in [("rules", RULES, 9), ("dashboard", queries.as_str(), 15)] {
        let names = names(text);
        assert!(names.len() >= least, "{names:?}");
        for name in names.into_iter().filter(|name| !sometimes.contains(name)) {
            assert!(exported.contains(name), "{what}: {name} is not exported: {exported:#?}");
        }
    }
    service.stop();
}

/// The names after `$` in a text, as Grafana has variables: `$name` and `${name}`.
fn variables(text: &str) -> Vec<String> {
    let after = text.split('$').skip(1).map(|rest| rest.strip_prefix('{').unwrap_or(rest));
    after.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()).collect()
}

/// Debian has no Grafana. This is what its documentation says of the JSON model of a dashboard: versions, panels, the
/// grid of 24 columns, data sources, variables.
#[test]
fn the_dashboard_has_what_grafana_expects_of_one() {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| (36..=41).contains(&version)));
    assert!(dashboard["uid"].as_str().is_some_and(|uid| uid.len() <= 40 && !uid.is_empty()));
    assert!(dashboard["title"].is_string() && dashboard["time"]["from"].is_string(), "{dashboard}");
    assert!(dashboard["id"].is_null() && dashboard["annotations"]["list"].is_array());
    // the variables; each one is defined before it is used in another one
    let mut defined = vec!["__rate_interval".to_owned()];
    let kinds = ["datasource", "custom", "query"];
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        let kind = variable["type"].as_str().expect("a type");
        assert!(kinds.contains(&kind), "{variable}");
        for used in [&variable["query"], &variable["datasource"]["uid"]] {
            for name in variables(used.as_str().unwrap_or_default()) {
                assert!(defined.contains(&name), "{variable}: {name} is not defined");
            }
        }
        let current = &variable["current"]["value"];
        if kind == "custom" {
            let options: Vec<&str> = variable["query"].as_str().expect("a list").split(',').collect();
            assert!(options.contains(&current.as_str().expect("one")), "{variable}");
        }
        defined.push(variable["name"].as_str().expect("a name").to_owned());
    }
    assert_eq!(&defined[1..], ["datasource", "program", "instance"]);
    // the panels: each with an id, a place that no other has, and queries to the chosen data source
    let panels = dashboard["panels"].as_array().expect("panels");
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
        assert_eq!(panel["type"], "timeseries");
        assert!(panel["title"].is_string() && panel["description"].is_string(), "{panel}");
        let number = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
        let (x, y, w, h) = (number("x"), number("y"), number("w"), number("h"));
        assert!(w > 0 && h > 0 && x + w <= 24, "{panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{}: another panel is at {cell:?}", panel["title"]);
        }
        assert_eq!(
            (&panel["datasource"]["type"], &panel["datasource"]["uid"]),
            (&"prometheus".into(), &"${datasource}".into())
        );
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
        let targets = panel["targets"].as_array().expect("queries");
        let letters: BTreeSet<&str> =
            targets.iter().map(|target| target["refId"].as_str().expect("a letter")).collect();
        assert!(!letters.is_empty() && letters.len() == targets.len(), "{panel}");
        for target in targets {
            let (query, legend) = (target["expr"].as_str().expect("a query"), target["legendFormat"].as_str());
            assert!(query.contains("instance=~\"$instance\""), "{query}");
            for name in variables(query).iter().chain(&variables(legend.expect("a legend"))) {
                assert!(defined.contains(name), "{query}: {name} is not defined");
            }
        }
    }
    assert!(ids.len() >= 12, "{ids:?}");
}

#[test]
fn the_rules_of_pfwd_are_those_of_qrexec_connect() {
    let expected =
        RULES.replace("QrexecConnect", "Pfwd").replace("qrexec_connect", "pfwd").replace("qrexec-connect", "pfwd");
    assert_eq!(RULES_OF_PFWD, expected);
}

#[test]
fn each_alert_fires_in_the_situation_that_it_is_for() {
    if Command::new("promtool").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip("promtool is missing (Debian: prometheus)");
    }
    let promtool = |arguments: &[&str]| {
        let mut promtool = Command::new("promtool");
        promtool.args(arguments).current_dir(root());
        let output = run(promtool);
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    };
    let rules = ["packaging/monitoring/qrexec-connect.rules.yml", "packaging/monitoring/pfwd.rules.yml"];
    promtool(&["check", "rules", rules[0], rules[1]]);
    let tests = fs::read_to_string(root().join("tests/monitoring/rules.yml")).expect("tests of the rules");
    for alert in RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(
            tests.contains(&format!("        alertname: {alert}\n        exp_alerts:\n          - ")),
            "{alert} never fires"
        );
    }
    promtool(&["test", "rules", "tests/monitoring/rules.yml"]);
}

/// A Prometheus that scrapes one service.
struct Prometheus {
    process: Process,
    address: String,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    /// `None`, after a word, where there is none.
    fn start(port: u16) -> Option<Self> {
        if Command::new("prometheus").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            skip("prometheus is missing (Debian: prometheus)");
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let rules: Vec<PathBuf> =
            ["qrexec-connect", "pfwd"].map(|name| root().join(format!("packaging/monitoring/{name}.rules.yml"))).into();
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: {rules:?}\nscrape_configs:\n\
             - {{job_name: qrexec-connect, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}\n"
        );
        let config = dir.path().join("prometheus.yml");
        fs::write(&config, text).expect("ours");
        let mut command = Command::new("prometheus");
        command.arg("--web.listen-address=127.0.0.1:0").arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display())).current_dir(dir.path());
        let process = Process::start(command);
        let line = process.stderr.wait_for("msg=\"Listening on\"");
        process.stderr.wait_for("Server is ready to receive web requests");
        let address = line.split("address=").nth(1).expect("an address").split(' ').next().expect("it").to_owned();
        Some(Self { process, address, _dir: dir })
    }

    fn ask(&self, path: &str) -> serde_json::Value {
        let mut wire = TcpStream::connect(&self.address).expect("it listens");
        wire.set_read_timeout(Some(support::PATIENCE)).expect("not zero");
        write!(wire, "GET /api/v1/{path} HTTP/1.0\r\n\r\n").expect("it reads");
        let mut reply = String::new();
        wire.read_to_string(&mut reply).expect("an answer");
        let body = reply.split_once("\r\n\r\n").expect("a head").1;
        serde_json::from_str(body).unwrap_or_else(|e| panic!("{path}: {e}: {reply}"))
    }

    fn query(&self, expression: &str) -> serde_json::Value {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.ask(&format!("query?query={encoded}"));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].clone()
    }
}

#[test]
fn the_real_prometheus_scrapes_the_service_and_evaluates_every_rule_and_every_panel() {
    let (service, _server) = service();
    let Some(mut prometheus) = Prometheus::start(service.port(3)) else { return };
    eventually("two scrapes", || {
        let scraped = prometheus.query("count_over_time(qrexec_connect_listeners[1m]) >= 2");
        scraped.as_array().is_some_and(|found| !found.is_empty())
    });
    assert_eq!(prometheus.query("up")[0]["value"][1], "1");
    // every rule, and the one that has a reason waits for its five minutes
    let mut rules = Vec::new();
    eventually("every rule is evaluated", || {
        let groups = prometheus.ask("rules")["data"]["groups"].clone();
        rules = groups
            .as_array()
            .expect("groups")
            .iter()
            .flat_map(|group| group["rules"].as_array().cloned())
            .flatten()
            .collect();
        rules.iter().all(|rule| rule["health"] != "unknown") && rules.iter().any(|rule| rule["state"] == "pending")
    });
    assert_eq!(rules.len(), 14);
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        let expected = if rule["name"] == "QrexecConnectListenersNotServed" { "pending" } else { "inactive" };
        assert_eq!(rule["state"], expected, "{rule}");
    }
    let queries = queries();
    let empty = queries.iter().filter(|query| prometheus.query(query).as_array().expect("a list").is_empty()).count();
    assert_eq!(empty, 1, "only a fault of the configuration is not there: {queries:#?}");
    // the picture
    if Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip("the picture is drawn by a script in Python, and python3 is missing");
    }
    let mut draw = Command::new("python3");
    draw.arg(root().join("packaging/monitoring/draw")).arg(format!("http://{}", prometheus.address)).arg("60");
    let output = run(draw);
    let picture = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let committed = include_str!("../../packaging/doc/dashboard.svg");
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = format!(">{}</text>", panel["title"].as_str().expect("a title"));
        assert!(picture.contains(&title) && committed.contains(&title), "{title} is in both pictures");
    }
    assert!(picture.matches("class=\"line\"").count() >= 15, "{picture}");
    service.stop();
    prometheus.process.signal(nix::sys::signal::Signal::SIGTERM);
    prometheus.process.wait();
}
