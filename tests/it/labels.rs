//! The label, the transport and the namespace of a forward, in every output, and the words that commands take.

use std::{
    fs,
    net::{TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
};

use serde_json::{Value, json};

use crate::support::{Process, Server, eventually, run};

const PFWD: &str = env!("CARGO_BIN_EXE_pfwd");

/// `pfwd` with TCP and UDP on one address, and a third forward.
struct Dns {
    process: Process,
    dir: tempfile::TempDir,
    port: u16,
}

impl Dns {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let target = Server::tcp().echo();
        let target = target.rsplit('+').next().expect("target=HOST+PORT").to_owned();
        let port = free_port();
        let config = dir.path().join("pfwd.toml");
        let text = format!(
            "[[forward]]\nlabel = \"dns\"\nlisten = \"127.0.0.1:{port}\"\ntarget = \"127.0.0.1:{target}\"\n\
             [[forward]]\nlabel = \"dns-udp\"\nudp_listen = \"127.0.0.1:{port}\"\nudp_target = \"127.0.0.1:{target}\"\n\
             [[forward]]\nlisten = \"127.0.0.1:0\"\ntarget = \"127.0.0.1:{target}\"\n"
        );
        fs::write(&config, text).expect("ours");
        let mut command = Command::new(PFWD);
        command.arg("--config").arg(&config).arg("--control").arg(dir.path().join("control"));
        let process = Process::start(command);
        process.stderr.wait_for("ready: 3 forwards");
        Self { process, dir, port }
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// What a command prints, what it complains of, and its exit code.
    fn say(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(PFWD);
        command.args(arguments).arg("--control").arg(self.control());
        let output = run(command);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (_, out, err) = self.say(arguments);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {out}{err}"))
    }

    /// Label, transport and state of the listeners that `status` shows.
    fn shown(&self, words: &[&str]) -> Vec<(String, String, String)> {
        let report = self.json(&[&["status", "--json"], words].concat());
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let rows = report["listeners"].as_array().expect("a list").iter();
        rows.map(|row| (text(row, "label"), text(row, "transport"), text(row, "state"))).collect()
    }
}

/// A port that is free for TCP and for UDP.
fn free_port() -> u16 {
    let both = (0..100).find_map(|_| {
        let tcp = TcpListener::bind("127.0.0.1:0").ok()?;
        let port = tcp.local_addr().ok()?.port();
        UdpSocket::bind(("127.0.0.1", port)).ok().map(|_| port)
    });
    both.expect("one of a hundred is free")
}

fn row(label: &str, transport: &str, state: &str) -> (String, String, String) {
    (label.to_owned(), transport.to_owned(), state.to_owned())
}

#[test]
fn tcp_and_udp_on_one_address_are_two_listeners_in_every_answer() {
    let dns = Dns::start();
    let (port, place) = (dns.port.to_string(), format!("127.0.0.1:{}", dns.port));
    let _tcp = TcpStream::connect(&*place).expect("it is served");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    udp.send_to(b"?", &*place).expect("sent");
    let session = |transport: &str| {
        let all = dns.json(&["sessions", "--json"]);
        let of = |session: &&Value| session["transport"] == transport;
        all["sessions"].as_array().expect("a list").iter().find(of).cloned().unwrap_or_default()
    };
    eventually("both are there", || session("tcp")["connected"] == true && session("udp")["connected"] == true);
    for (transport, label) in [("tcp", "dns"), ("udp", "dns-udp")] {
        let session = session(transport);
        assert_eq!((&session["label"], &session["name"]), (&json!(label), &json!(label)), "{session}");
    }

    assert_eq!(dns.shown(&[&port]), [row("dns", "tcp", "serving"), row("dns-udp", "udp", "serving")]);
    assert_eq!(dns.shown(&["dns"]), [row("dns", "tcp", "serving")]);
    assert_eq!(dns.shown(&[&format!("{place}/udp")]), [row("dns-udp", "udp", "serving")]);

    // what changes something does not guess
    let (code, out, err) = dns.say(&["pause", &place]);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    for word in [format!("{place}/tcp (dns)"), format!("{place}/udp (dns-udp)")] {
        assert!(err.contains(&word), "{word} is missing in {err}");
    }
    assert_eq!(dns.shown(&[&port]), [row("dns", "tcp", "serving"), row("dns-udp", "udp", "serving")]);
    let (code, out, err) = dns.say(&["pause", &format!("{port}/udp")]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(out, format!("{place}/udp (dns-udp) is paused: connections wait in the backlog\n"));
    assert_eq!(dns.shown(&[&port]), [row("dns", "tcp", "serving"), row("dns-udp", "udp", "paused")]);

    let (_, metrics, _) = dns.say(&["metrics"]);
    for line in [
        format!("pfwd_sessions_accepted_total{{listener=\"{place}\",transport=\"tcp\",label=\"dns\"}} 1"),
        format!("pfwd_sessions_accepted_total{{listener=\"{place}\",transport=\"udp\",label=\"dns-udp\"}} 1"),
        format!("pfwd_listener_paused{{listener=\"{place}\",transport=\"tcp\",label=\"dns\"}} 0"),
        format!("pfwd_listener_paused{{listener=\"{place}\",transport=\"udp\",label=\"dns-udp\"}} 1"),
    ] {
        assert!(metrics.lines().any(|one| one == line), "{line} is missing in\n{metrics}");
    }

    // of one listener, by each word that means it; of all that a word means
    let tcp = "listener=\"PLACE\",transport=\"tcp\",label=\"dns\"".replace("PLACE", &place);
    let udp = "listener=\"PLACE\",transport=\"udp\",label=\"dns-udp\"".replace("PLACE", &place);
    let tcp_port = format!("{port}/tcp");
    for (words, labels) in [
        (&["dns"][..], &[&tcp][..]),
        (&["dns-udp", "--openmetrics"], &[&udp]),
        (&[&tcp_port], &[&tcp]),
        (&[&port], &[&tcp, &udp]),
        (&[&place], &[&tcp, &udp]),
        (&["dns", "dns-udp"], &[&tcp, &udp]),
    ] {
        let (code, some, err) = dns.say(&[&["metrics"], words].concat());
        assert_eq!((code, err.as_str()), (Some(0), ""), "{words:?}");
        let series =
            |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        let of_these = |line: &String| labels.iter().any(|labels| line.contains(labels.as_str()));
        let expected: Vec<_> = series(&metrics).into_iter().filter(of_these).collect();
        assert!(series(&some) == expected && !expected.is_empty(), "{words:?}:\n{some}");
    }
    let (code, out, err) = dns.say(&["metrics", "nobody"]);
    assert!(
        code == Some(1) && out.is_empty() && err.contains("no active listener matches nobody; active: "),
        "{out}{err}"
    );

    let (code, _, err) = dns.say(&["status", "nobody"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("no listener matches nobody; known: "), "{err}");
    let (code, _, err) = dns.say(&["resume", "dns-udp"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    drop(dns.process);
}
