//! `sessions` and `kill`: who connected, what they do, how they end.

use std::{
    fs,
    io::Write as _,
    net::UdpSocket,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    control::serving,
    support::{Activated, Activation, Asking, FakeQrexec, Process, Server, Wire, ends, eventually},
};

/// Lines of a table, without its heading.
fn rows(table: &str) -> Vec<&str> {
    table.lines().skip(1).collect()
}

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

pub(crate) fn exchange_one(peer: &mut Wire, far: &mut Wire) {
    peer.write_all(b"abc").expect("connected");
    far.expect(b"abc");
    peer.half_close();
    far.expect_end();
}

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
