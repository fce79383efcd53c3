//! The control interface, asked by our own commands and by raw Varlink; metrics.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Activated, Activation, Asking, FakeQrexec, Process, Server, Wire,
    asking::{INTERFACE, receive, send},
    ends, eventually, run, skip,
    varlink::Interface,
};

const DESCRIPTION: &str = include_str!("../../src/control/org.qrexec-connect.Control.varlink");

/// A service with a control socket, of one TCP listener that leads to `server`.
fn serving(server: &Server) -> Activated {
    Activation::qrexec_connect().tcp(&server.name()).with_control().start().ready()
}

/// Lines of a table, without its heading.
fn rows(table: &str) -> Vec<&str> {
    table.lines().skip(1).collect()
}

// ------------------------------------------------------------------------------------------------- the interface

#[test]
fn every_reply_is_as_the_committed_description_says() {
    let interface = Interface::new(DESCRIPTION);
    let server = Server::tcp();
    let activation = Activation::qrexec_connect().tcp(&server.name()).tcp("bad").with_control();
    let socket = activation.dir().join("run/qrexec-connect/control");
    let service = activation.start().ready();
    assert!(fs::metadata(&socket).expect("it is there").file_type().is_socket());
    let asking = service.asking();
    let mut described = asking.connect();
    let method = "org.varlink.service.GetInterfaceDescription";
    send(&mut described, &json!({"method": method, "parameters": {"interface": INTERFACE}}));
    assert_eq!(receive(&mut described).expect("a reply")["parameters"]["description"], DESCRIPTION);

    let mut watch = asking.connect();
    send(&mut watch, &json!({"method": format!("{INTERFACE}.Watch"), "more": true}));
    let ready = receive(&mut watch).expect("a reply");
    assert_eq!((&ready["continues"], &ready["parameters"]["event"]), (&json!(true), &json!("ready")));
    let _peer = service.connect(0);
    let _far = server.accept();
    eventually("it is connected", || asking.sessions().iter().any(|s| s["connected"] == true));
    let id = asking.sessions()[0]["id"].as_str().expect("text").to_owned();
    let listener = format!("127.0.0.1:{}", service.port(0));

    let mut asked = Vec::new();
    let calls = [
        ("Status", json!({})),
        ("ListListeners", json!({})),
        ("ListSessions", json!({"processes": true})),
        ("ListSessions", json!({"id": id})),
        ("Pause", json!({"listener": listener})),
        ("Resume", json!({"listener": listener})),
        ("Metrics", json!({})),
        ("Metrics", json!({"format": "prometheus"})),
        ("Kill", json!({"id": id})),
    ];
    for (name, parameters) in calls {
        assert_eq!(interface.faults_of_call(name, &parameters), Vec::<String>::new());
        let reply = asking.call(name, &parameters);
        assert_eq!(reply.get("error"), None, "{name}: {reply}");
        assert_eq!(interface.faults_of_reply(name, &reply["parameters"]), Vec::<String>::new());
        asked.push(name);
    }
    for event in ["began", "connected", "ended"] {
        let reply = receive(&mut watch).expect("an event");
        assert_eq!(reply["parameters"]["event"], event, "{reply}");
        let faults = interface.faults_of_reply("Watch", &reply["parameters"]);
        assert_eq!(faults, Vec::<String>::new());
        asked.push("Watch");
    }
    assert!(interface.methods().iter().all(|name| asked.contains(name)), "{:?}", interface.methods());

    let mut refused = Vec::new();
    for (name, parameters) in [
        ("Kill", json!({"id": "00000000"})),
        ("Pause", json!({"listener": "nobody"})),
        ("Watch", json!({})), // without `more`
    ] {
        let reply = asking.call(name, &parameters);
        let error = reply["error"].as_str().unwrap_or_else(|| panic!("{name}: {reply}"));
        let error = error.strip_prefix(INTERFACE).and_then(|e| e.strip_prefix('.')).expect("one of ours");
        assert_eq!(interface.faults_of_error(error, &reply["parameters"]), Vec::<String>::new());
        refused.push(error.to_owned());
    }
    assert_eq!(refused, ["NoSuchSession", "NoSuchListener", "ExpectedMore"]);
    for (method, parameters, error, about) in [
        ("Kill", json!({"id": "0"}), "InvalidParameter", "id"),
        ("Kill", json!({}), "InvalidParameter", "id"),
        ("Pause", json!({"listner": "x", "listener": "y"}), "InvalidParameter", "listner"),
        ("Dance", json!({}), "MethodNotFound", "org.qrexec-connect.Control.Dance"),
    ] {
        let reply = asking.call(method, &parameters);
        assert_eq!(reply["error"], format!("org.varlink.service.{error}"), "{reply}");
        assert!(reply["parameters"].as_object().expect("it says which").values().any(|v| v == about), "{reply}");
    }
    service.stop();
}

#[test]
fn requests_and_clients_are_bounded_and_nonsense_ends_only_its_connection() {
    let server = Server::tcp();
    let service = serving(&server);
    let asking = service.asking();
    for nonsense in [&b"\0"[..], b"hello\0", b"{\0", b"[]\0", b"{\"method\": 7}\0", b"\xff\xff\0"] {
        let mut wire = asking.connect();
        wire.write_all(nonsense).expect("it is taken");
        assert_eq!(receive(&mut wire), None, "{nonsense:?}");
    }
    // one endless message
    let mut wire = asking.connect();
    let sent = (0..1024).take_while(|_| wire.write_all(&[b'{'; 1024]).is_ok()).count();
    assert_eq!(receive(&mut wire), None);
    assert!(sent < 1024, "{sent} KiB were taken");
    // many clients
    let mut clients: Vec<_> = (0..40).map(|_| asking.connect()).collect();
    let status = json!({"method": format!("{INTERFACE}.Status")});
    let mut answers = 0;
    for client in &mut clients {
        let mut bytes = serde_json::to_vec(&status).expect("JSON");
        bytes.push(0);
        answers += usize::from(client.write_all(&bytes).is_ok() && receive(client).is_some());
    }
    // those of before may count a moment longer
    assert!((28..=32).contains(&answers), "{answers}");
    drop(clients);
    eventually("there is room again", || asking.say(&["status"]).code == Some(0));
    // several requests at once are answered in their order, one that wants no answer gets none
    let mut wire = asking.connect();
    let mut bytes = Vec::new();
    for message in [
        json!({"method": format!("{INTERFACE}.ListListeners"), "oneway": true}),
        json!({"method": "org.varlink.service.GetInfo"}),
        status,
    ] {
        bytes.extend(serde_json::to_vec(&message).expect("JSON"));
        bytes.push(0);
    }
    wire.write_all(&bytes).expect("it is taken");
    assert_eq!(receive(&mut wire).expect("a reply")["parameters"]["product"], "qrexec-connect");
    assert_eq!(receive(&mut wire).expect("a reply")["parameters"]["state"], "serving");
    let mut peer = service.connect(0);
    drop(server.accept());
    peer.expect_end();
    drop(peer);
    service.stop();
}

#[test]
fn only_its_user_and_root_may_ask() {
    let server = Server::tcp();
    let service = serving(&server);
    let asking = service.asking();
    let socket = asking.socket();
    assert_eq!(fs::metadata(&socket).expect("it is there").permissions().mode() & 0o777, 0o600);
    if !nix::unistd::getuid().is_root() {
        return skip("only root can ask as another user");
    }
    // as if somebody had opened all doors on the way
    let mut place = socket.as_path();
    while place != Path::new("/tmp") && place != Path::new("/") {
        fs::set_permissions(place, fs::Permissions::from_mode(0o777)).expect("root may");
        place = place.parent().expect("it ends at /");
    }
    let ask = |uid: &str| {
        let mut command = Command::new("/usr/bin/setpriv");
        let request = format!("{{\"method\":\"{INTERFACE}.Status\"}}\\0");
        let script = format!("printf '{request}' | socat -t5 - UNIX-CONNECT:{} | wc -c", socket.display());
        command.args(["--clear-groups", &format!("--reuid={uid}"), "--regid=65534", "/bin/sh", "-c", &script]);
        command.stdin(Stdio::null());
        let output = run(command);
        String::from_utf8_lossy(&output.stdout).trim().parse::<usize>().expect("a number")
    };
    assert!(ask("0") > 100);
    assert_eq!(ask("65534"), 0, "another user is let go without a word");
    service.stop();
}

// ------------------------------------------------------------------------------------------------- status

#[test]
fn status_tells_of_each_listener_and_fails_when_one_is_not_served() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).unix("").with_control().start().ready();
    let asking = service.asking();
    let _peer = service.connect(0);
    let _far = server.accept();
    let said = asking.say(&["status"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stdout.contains("running, process "), "{said:?}");
    let port = service.port(0);
    let served = said.stdout.lines().find(|line| line.starts_with(&format!("127.0.0.1:{port} "))).expect("a row");
    assert!(served.contains("serving") && served.contains("1/1024") && served.contains("tcp 127.0.0.1:"), "{served}");
    let refused = said.stdout.lines().find(|line| line.contains("1.sock ")).expect("a row");
    assert!(refused.contains("refused"), "{refused}");
    assert!(!said.stdout.contains('\x1b'), "no colour where there is no terminal");

    let report = asking.say(&["status", "--json"]).json();
    assert_eq!((&report["program"], &report["served"]), (&json!("qrexec-connect"), &json!(false)));
    assert_eq!((&report["service"]["running"], &report["service"]["sessions"]), (&json!(true), &json!(1)));
    assert_eq!(report["listeners"][0]["address"], format!("127.0.0.1:{port}"));
    assert_eq!(report["listeners"][0]["state"], "serving");
    assert_eq!(report["listeners"][1]["state"], "refused");
    assert!(report["listeners"][1]["reason"].as_str().is_some_and(|why| !why.is_empty()), "{report}");
    service.stop();
}

#[test]
fn status_without_a_service_says_what_is_configured_and_what_is_wrong() {
    let activation = Activation::qrexec_connect();
    let dir = activation.dir().to_owned();
    for sub in ["units", "config", "bin", "run"] {
        fs::create_dir_all(dir.join(sub)).expect("writable");
    }
    let mut service = activation.tcp("x").with_control().start().ready();
    let asking = service.asking();
    let unit = |name: &str, fd_name: &str| {
        let text = format!("[Socket]\nListenStream=127.0.0.1:7001\nFileDescriptorName={fd_name}\n");
        fs::write(dir.join("units").join(name), text).expect("writable");
    };
    service.process.signal(Signal::SIGINT);
    assert!(service.process.wait().success());
    let said = asking.say(&["sessions"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("does not run"), "{said:?}");
    assert_eq!(asking.ok(&["status"]).stdout, "qrexec-connect.service: not answering\nno listeners are configured\n");

    // as systemd shows a socket that it listens on
    fs::write(dir.join("bin/show.qrexec-connect.service"), "ActiveState=inactive\n").expect("writable");
    unit("qrexec-connect-a.socket", "work qubes.ConnectTCP+22");
    let shown = |active: &str, file: &str| {
        let text = format!(
            "Id=qrexec-connect-a.socket\nActiveState={active}\nUnitFileState={file}\nResult=resources\nListen=127.0.0.1:7001 (Stream)\n"
        );
        fs::write(dir.join("bin/show.qrexec-connect-a.socket"), text).expect("writable");
    };
    let state = |code: i32| {
        let said = asking.say(&["status", "--json"]);
        assert_eq!(said.code, Some(code), "{said:?}");
        let report = said.json();
        let row = &report["listeners"][0];
        assert_eq!(row["unit"], "qrexec-connect-a.socket");
        assert_eq!(report["listeners"].as_array().map(Vec::len), Some(1), "{report}");
        (row["state"].as_str().expect("text").to_owned(), row["reason"].as_str().unwrap_or_default().to_owned())
    };
    shown("active", "enabled");
    assert_eq!(state(0), ("ready".into(), String::new()));
    assert_eq!(asking.ok(&["status"]).stdout.lines().filter(|l| l.contains("qubes.ConnectTCP+22")).count(), 1);
    shown("inactive", "enabled");
    let (state_now, why) = state(1);
    assert!(state_now == "down" && why.contains("systemctl --user start qrexec-connect-a.socket"), "{why}");
    shown("inactive", "disabled");
    assert_eq!(state(0), ("off".into(), String::new()));
    shown("failed", "enabled");
    let (state_now, why) = state(1);
    assert!(state_now == "down" && why.contains("(resources)"), "{why}");
    shown("active", "enabled");
    unit("qrexec-connect-a.socket", "work qubes.ConnectTCP+22 max_conections=7");
    let (state_now, why) = state(1);
    assert!(state_now == "refused" && why.contains("max_connections"), "{why}");
    fs::write(dir.join("config/qrexec-connect.toml"), "nonsense = 1\n").expect("writable");
    let report = asking.say(&["status", "--json"]).json();
    assert!(report["faults"][0].as_str().is_some_and(|fault| fault.contains("nonsense")), "{report}");
}

// ------------------------------------------------------------------------------------------------- sessions

#[test]
fn a_session_shows_who_connected() {
    let server = Server::tcp();
    let name = server.name();
    let service = Activation::qrexec_connect().tcp(&name).unix(&name).tcp6(&name).with_control().start().ready();
    let asking = service.asking();
    for listener in 0..3 {
        let mut peer = service.connect(listener);
        let mut far = server.accept();
        peer.write_all(b"12345").expect("connected");
        far.expect(b"12345");
        let mut session = Value::Null;
        eventually("the bytes are counted", || {
            session = asking.sessions().remove(0);
            session["up_bytes"] == 5
        });
        assert_eq!(session["connected"], true);
        assert_eq!(session["process"]["pid"], std::process::id(), "listener {listener}: {session}");
        assert_eq!(session["process"]["uid"], nix::unistd::getuid().as_raw());
        let command = session["process"]["command"].as_str().expect("text");
        assert!(command.contains("/it"), "{command}");
        let table = asking.ok(&["sessions"]).stdout;
        assert_eq!(rows(&table).len(), 1, "{table}");
        assert!(table.contains(&session["id"].as_str().expect("text")[..8]) && table.contains("5 B"), "{table}");
        let one = asking.ok(&["sessions", &session["id"].as_str().expect("text")[..8]]).stdout;
        assert!(one.contains(&format!("process: {}", std::process::id())), "{one}");
        drop(far);
        peer.expect_end();
        drop(peer);
        eventually("it is over", || asking.sessions().is_empty());
    }
    assert_eq!(asking.ok(&["sessions"]).stdout, "no sessions\n");
    service.stop();
}

#[test]
fn no_command_line_of_a_peer_reaches_a_terminal() {
    let server = Server::tcp();
    let name = server.name();
    let service = Activation::qrexec_connect().tcp(&name).unix(&name).with_control().start().ready();
    let asking = service.asking();
    let hostile = "\u{1b}]0;owned\u{7}\u{1b}[2J\r\nFAKE-ROW  1 ms\u{9b}31m\u{202e}\u{7f}\u{e0041}\\x1b";
    let mut command = Command::new("/bin/bash");
    let script = format!("exec 5<>/dev/tcp/127.0.0.1/{}; echo up; read line", service.port(0));
    command.args(["-c", &script, hostile]).stdin(Stdio::piped());
    let peer = Process::start(command);
    peer.stdout.wait_for("up");
    let mut unix = Command::new("/bin/bash");
    let path = service.dir().join("1.sock");
    // socat becomes the peer, with a name of our choice
    unix.args(["-c", &format!("exec -a $'soc\\e[31mat\\n' socat -u UNIX-CONNECT:{} STDOUT", path.display())]);
    let unix = Process::start(unix);
    let fars = [server.accept(), server.accept()];
    eventually("both are known", || {
        asking.sessions().iter().filter(|s| s["process"]["command"].is_string()).count() == 2
    });
    let ids: Vec<String> = asking.sessions().iter().map(|s| s["id"].as_str().expect("text").to_owned()).collect();
    let mut shown = vec![asking.ok(&["sessions"]).stdout, asking.ok(&["sessions", "--json"]).stdout];
    shown.extend(ids.iter().map(|id| asking.ok(&["sessions", id]).stdout));
    shown.push(asking.call("ListSessions", &json!({"processes": true})).to_string());
    for text in &shown {
        let obeyed = |c: char| (c.is_control() && c != '\n' && c != '\t') || "\u{202e}\u{e0041}".contains(c);
        assert!(!text.contains(obeyed), "{text:?}");
        assert!(!text.lines().any(|line| line.starts_with("FAKE-ROW")), "{text}");
    }
    assert!(shown[0].contains("\\x1b]0;owned\\x07\\x1b[2J\\x0d\\x0aFAKE-ROW"), "{}", shown[0]);
    assert!(shown[0].contains("soc\\x1b[31mat\\x0a"), "{}", shown[0]);
    drop((peer, unix, fars));
    service.stop();
}

#[test]
fn those_who_follow_hear_of_every_session_also_over_a_restart() {
    let server = Server::tcp();
    let mut service = serving(&server);
    let asking = service.asking();
    let people = asking.start(&["sessions", "--follow"]);
    let machine = asking.start(&["sessions", "--follow", "--json"]);
    machine.stdout.wait_for("ready");
    let round = |service: &Activated, n: usize| {
        let mut peer = service.connect(0);
        let mut far = server.accept();
        exchange_one(&mut peer, &mut far);
        drop(far);
        peer.expect_end();
        drop(peer);
        machine.stdout.wait_for_nth("\"ended\"", n);
    };
    // the other one may have come later
    eventually("people are told", || {
        let before = machine.stdout.count("\"ended\"");
        round(&service, before + 1);
        people.stdout.count("ended") > 0
    });
    fs::write(service.dir().join("bin/show.qrexec-connect.service"), "ActiveState=active\n").expect("writable");
    let before = machine.stdout.count("\"ended\"");
    service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    machine.stdout.wait_for_nth("ready", 2);
    round(&service, before + 1);
    let events: Vec<Value> =
        machine.stdout.so_far().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let last: Vec<&str> = events.iter().rev().take(3).map(|e| e["event"].as_str().expect("text")).collect();
    assert_eq!(last, ["ended", "connected", "began"]);
    let end = events.last().expect("there are some");
    assert_eq!((&end["end"], &end["session"]["up_bytes"]), (&json!("eof"), &json!(3)), "{end}");
    let line = people.stdout.wait_for("ended");
    assert!(line.contains("eof after") && line.contains("3 B up"), "{line}");
    service.stop();
}

fn exchange_one(peer: &mut Wire, far: &mut Wire) {
    peer.write_all(b"abc").expect("connected");
    far.expect(b"abc");
    peer.half_close();
    far.expect_end();
}

// ------------------------------------------------------------------------------------------------- kill

/// The one session that there is now.
#[track_caller]
fn the_session(asking: &Asking) -> String {
    let mut id = String::new();
    eventually("there is one session", || {
        let sessions = asking.sessions();
        id = sessions.first().and_then(|s| s["id"].as_str()).unwrap_or_default().to_owned();
        sessions.len() == 1
    });
    id
}

#[test]
fn a_killed_session_ends_as_killed_once_wherever_it_stands() {
    let fake = FakeQrexec::new();
    let server = Server::tcp();
    let dir = tempfile::tempdir().expect("a directory");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let service = Activation::calling(&fake)
        .tcp(&server.name())
        .unix(&server.name())
        .tcp("work test.Echo")
        .tcp("ask test.Gate+never")
        .tcp(&format!("uds={},connect_timeout=300", dir.path().join("later").display()))
        .udp(&format!("target=127.0.0.1+{}", udp.local_addr().expect("bound").port()))
        .with_control()
        .start()
        .ready();
    let asking = service.asking();
    let rest = service.process.rest();
    let kill = |n: usize| {
        let id = the_session(&asking);
        let said = asking.ok(&["kill", &id[..8]]);
        assert_eq!(said.stdout, format!("session {id} is ended\n"));
        let ends = service.ends(n);
        let end = ends.last().expect("n of them");
        assert_eq!((end.end.as_str(), ends.len()), ("killed", n));
        assert!(id.starts_with(&end.id));
        // at once: the command returns when it is over
        assert_eq!(asking.sessions(), Vec::<Value>::new());
        let again = asking.say(&["kill", &id]);
        assert!(again.code == Some(1) && again.stderr.contains("no session has an id"), "{again:?}");
    };
    for (n, listener) in [(1, 0), (2, 1)] {
        let mut peer = service.connect(listener);
        let mut far = server.accept();
        peer.write_all(b"half").expect("connected");
        far.expect(b"half");
        kill(n);
        if listener == 0 {
            peer.expect_reset(); // a cut transfer never looks complete
        }
        far.expect_reset();
    }
    let mut call = service.connect(2);
    exchange_some(&mut call);
    kill(3);
    call.expect_reset();
    let mut asking_peer = service.connect(3);
    fake.wait_for_started(2);
    kill(4);
    asking_peer.expect_reset();
    let mut waiting = service.connect(4);
    service.process.stderr.wait_for("does not exist yet");
    kill(5);
    waiting.expect_reset();
    let peer = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    peer.send_to(b"x", ("127.0.0.1", service.port(5))).expect("sent");
    udp.recv_from(&mut [0; 8]).expect("it came");
    kill(6);
    // the next datagram begins another flow
    peer.send_to(b"x", ("127.0.0.1", service.port(5))).expect("sent");
    udp.recv_from(&mut [0; 8]).expect("it came");
    kill(7);

    fake.wait_for_ended(2);
    drop((call, asking_peer, waiting));
    service.process.wait_for_rest(&rest);
    let said = asking.say(&["kill", "0", "zzzz", "00000000"]);
    assert_eq!(said.code, Some(1));
    for part in ["at least four digits", "begins with zzzz", "begins with 00000000"] {
        assert!(said.stderr.contains(part), "{part}: {said:?}");
    }
    let process = service.stop();
    assert_eq!(ends(&process.stderr.so_far()).len(), 7);
}

fn exchange_some(peer: &mut Wire) {
    peer.write_all(b"there and back").expect("connected");
    peer.expect(b"there and back");
}

// ------------------------------------------------------------------------------------------------- pause

#[test]
fn a_paused_listener_keeps_its_sessions_and_has_others_wait_also_over_a_restart() {
    let server = Server::tcp();
    let mut service =
        Activation::qrexec_connect().tcp(&server.name()).unix(&server.name()).with_control().start().ready();
    let asking = service.asking();
    let mut before = service.connect(0);
    let mut before_far = server.accept();
    let name = server.name();
    let address = format!("127.0.0.1:{}", service.port(0));
    let said = asking.ok(&["pause", &address]);
    assert_eq!(said.stdout, format!("{address} is paused: connections wait in the backlog\n"));
    service.process.stderr.wait_for(&format!("{address} is paused"));

    let mut late = service.connect(0);
    late.write_all(b"patient").expect("the kernel takes it");
    let state = || asking.say(&["status", "--json"]).json()["listeners"][0].clone();
    eventually("it waits", || state()["waiting"] == 1);
    assert_eq!((&state()["state"], &state()["sessions"]), (&json!("paused"), &json!(1)));
    assert_eq!(asking.say(&["status"]).code, Some(1), "a paused listener is not served");
    before.write_all(b"goes on").expect("connected");
    before_far.expect(b"goes on");
    // the other listener is not concerned
    let mut other = service.connect(1);
    drop(server.accept());
    other.expect_end();
    drop(other);

    service.restart(|process| {
        process.signal(Signal::SIGUSR1);
        process.signal(Signal::SIGTERM);
    });
    eventually("it waits still", || state()["waiting"] == 1 && state()["state"] == "paused");
    assert!(server.try_accept().is_none());
    before.write_all(b"goes on").expect("connected");
    before_far.expect(b"goes on");
    // both have that name
    let said = asking.ok(&["resume", &name]);
    assert_eq!(said.stdout.lines().count(), 2, "{said:?}");
    let mut far = server.accept();
    far.expect(b"patient");
    assert_eq!(asking.say(&["status"]).code, Some(0));

    // a stop ends a pause
    asking.ok(&["pause", &address]);
    service.process.signal(Signal::SIGINT);
    drop((before, before_far, late, far));
    assert!(service.process.wait().success());
    assert_eq!(
        fs::read_dir(asking.socket().parent().expect("a directory"))
            .expect("it is there")
            .flatten()
            .map(|e| e.file_name())
            .filter(|name| name != "control.lock")
            .count(),
        0
    );
    service.start_again();
    let mut peer = service.connect(0);
    drop(server.accept());
    peer.expect_end();
    drop(peer);
    service.stop();
}

#[test]
fn a_paused_udp_listener_serves_whom_it_knows() {
    let upstream = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let port = upstream.local_addr().expect("bound").port();
    let service = Activation::qrexec_connect().udp(&format!("target=127.0.0.1+{port}")).with_control().start().ready();
    let asking = service.asking();
    let known = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let to = ("127.0.0.1", service.port(0));
    let mut buffer = [0; 16];
    let mut next = || {
        let (n, _) = upstream.recv_from(&mut buffer).expect("it came");
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    known.send_to(b"first", to).expect("sent");
    assert_eq!(next(), "first");
    asking.ok(&["pause", &format!("127.0.0.1:{}", service.port(0))]);
    stranger.send_to(b"dropped", to).expect("sent");
    known.send_to(b"second", to).expect("sent");
    assert_eq!(next(), "second");
    asking.ok(&["resume", &format!("127.0.0.1:{}", service.port(0))]);
    stranger.send_to(b"third", to).expect("sent");
    assert_eq!(next(), "third");
    service.stop();
}

#[test]
fn a_control_socket_that_a_crash_left_is_taken_over_and_one_that_cannot_be_had_stops_nothing() {
    let server = Server::tcp();
    let mut service = serving(&server);
    let asking = service.asking();
    service.process.signal(Signal::SIGKILL);
    service.process.wait();
    assert!(asking.socket().exists());
    let before = service.notifications.count("READY", "1");
    service.start_again();
    eventually("ready again", || service.notifications.count("READY", "1") > before);
    asking.ok(&["status"]);
    service.process.signal(Signal::SIGINT);
    assert!(service.process.wait().success());
    assert!(!asking.socket().exists(), "it goes with the service");

    fs::write(asking.socket(), "somebody's own").expect("writable");
    service.start_again();
    service.process.stderr.wait_for("the control socket is not there");
    let mut peer = service.connect(0);
    drop(server.accept());
    peer.expect_end();
    service.process.signal(Signal::SIGINT);
    assert!(service.process.wait().success());
    assert_eq!(fs::read_to_string(asking.socket()).expect("untouched"), "somebody's own");
}

// ------------------------------------------------------------------------------------------------- metrics

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

/// promtool finds nothing to say. Where there is none, that is said; with `CI=true` it is a failure.
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
    let at = |index: usize| format!("listener=\"127.0.0.1:{}\"", service.port(index));
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
