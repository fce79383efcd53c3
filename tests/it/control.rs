//! The control interface, asked by raw Varlink and by `status`; its socket.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    Activated, Activation, Server,
    asking::{INTERFACE, receive, send},
    eventually, run, skip,
    varlink::Interface,
};

const DESCRIPTION: &str = include_str!("../../src/control/org.qrexec-connect.Control.varlink");

/// A service with a control socket, of one TCP listener that leads to `server`.
pub(crate) fn serving(server: &Server) -> Activated {
    Activation::qrexec_connect().tcp(&server.name()).with_control().start().ready()
}

/// Two listeners with one port, of IPv4 and of IPv6.
fn one_port() -> (TcpListener, TcpListener) {
    let both = (0..100).find_map(|_| {
        let v4 = TcpListener::bind("127.0.0.1:0").ok()?;
        let v6 = TcpListener::bind(("::1", v4.local_addr().ok()?.port())).ok()?;
        Some((v4, v6))
    });
    both.expect("one of a hundred is free")
}

#[test]
fn every_reply_is_as_the_committed_description_says() {
    let interface = Interface::new(DESCRIPTION);
    let server = Server::tcp();
    let (v4, v6) = one_port();
    let port = v4.local_addr().expect("bound").port();
    let activation = Activation::qrexec_connect().tcp(&server.name()).tcp("bad").with_control();
    let activation = activation.inherit(&server.name(), v4).inherit(&format!("{} ", server.name()), v6);
    let activation = activation.tcp("target=127.0.0.1+9,start_unit=ai");
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
        ("Configuration", json!({})),
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
    let status = asking.call("Status", &json!({}))["parameters"].take();
    let units = status["start_units"].as_array().expect("a list");
    assert_eq!(
        units[..],
        [json!({"unit": "ai.service", "state": "inactive", "sessions": 0, "waiting": 0, "ours": false})]
    );
    let named = status["listeners"].as_array().expect("a list").iter().filter(|l| l["start_unit"] == "ai.service");
    assert_eq!(named.count(), 1, "{status}");
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
        ("Pause", json!({"listener": format!("{port}")})),
        ("Watch", json!({})), // without `more`
    ] {
        let reply = asking.call(name, &parameters);
        let error = reply["error"].as_str().unwrap_or_else(|| panic!("{name}: {reply}"));
        let error = error.strip_prefix(INTERFACE).and_then(|e| e.strip_prefix('.')).expect("one of ours");
        assert_eq!(interface.faults_of_error(error, &reply["parameters"]), Vec::<String>::new());
        refused.push(error.to_owned());
    }
    assert_eq!(refused, ["NoSuchSession", "NoSuchListener", "AmbiguousListener", "ExpectedMore"]);
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
    let served = said.stdout.lines().find(|line| line.contains(&format!("tcp 127.0.0.1:{port} "))).expect("a row");
    assert!(served.contains("serving") && served.contains("1/1024") && served.contains("tcp 127.0.0.1:"), "{served}");
    let refused = said.stdout.lines().find(|line| line.contains("1.sock ")).expect("a row");
    assert!(refused.contains("error"), "{refused}");
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
    let held = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = held.local_addr().expect("it is bound");
    let unit = |name: &str, fd_name: &str| {
        let text = format!("[Socket]\nListenStream={address}\nFileDescriptorName={fd_name}\n");
        fs::write(dir.join("units").join(name), text).expect("writable");
    };
    service.process.signal(Signal::SIGINT);
    assert!(service.process.wait().success());
    let said = asking.say(&["sessions"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("does not run"), "{said:?}");
    assert_eq!(asking.ok(&["status"]).stdout, "qrexec-connect.service: no answer\nno listeners are configured\n");

    // as systemd shows a socket that it listens on
    fs::write(dir.join("bin/show.qrexec-connect.service"), "ActiveState=inactive\n").expect("writable");
    unit("qrexec-connect-a.socket", "work qubes.ConnectTCP+22");
    let shown = |active: &str, file: &str| {
        let text = format!(
            "Id=qrexec-connect-a.socket\nActiveState={active}\nUnitFileState={file}\nResult=resources\nListen={address} (Stream)\n"
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
    assert!(
        state_now == "down" && why.contains("EADDRINUSE") && why.contains(&std::process::id().to_string()),
        "{why}"
    );
    drop(held);
    let (_, why) = state(1);
    assert!(why.contains("nothing is in the way now"), "{why}");
    shown("active", "enabled");
    let (state_now, why) = state(1);
    assert!(state_now == "down" && why.contains("systemctl --user restart qrexec-connect-a.socket"), "{why}");
    unit("qrexec-connect-a.socket", "work qubes.ConnectTCP+22 max_conections=7");
    let (state_now, why) = state(1);
    assert!(state_now == "refused" && why.contains("max_connections"), "{why}");
    fs::write(dir.join("config/qrexec-connect.toml"), "nonsense = 1\n").expect("writable");
    let report = asking.say(&["status", "--json"]).json();
    assert!(report["faults"][0].as_str().is_some_and(|fault| fault.contains("nonsense")), "{report}");
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
    service.process.stderr.wait_for("no control socket");
    let mut peer = service.connect(0);
    drop(server.accept());
    peer.expect_end();
    service.process.signal(Signal::SIGINT);
    assert!(service.process.wait().success());
    assert_eq!(fs::read_to_string(asking.socket()).expect("untouched"), "somebody's own");
}
