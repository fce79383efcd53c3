//! What the journal tells: each session's story, once, by fields that can be asked for, explained by the catalog.

use std::{
    net::SocketAddr,
    os::unix::net::{SocketAddr as UnixAddress, UnixListener},
    path::PathBuf,
    thread,
};

use serde_json::Value;

use crate::{
    service::{
        assert_each_session_is_told_once, enable_now, events, journal, main_pid, message_id, messages, socket, text,
        wait_for_message,
    },
    support::{Pace, Wire, eventually, exchange},
    tree::{As, attempt, shell, user_unit},
};

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn runtime_dir() -> PathBuf {
    std::env::var_os("XDG_RUNTIME_DIR").expect("with-systemd sets it").into()
}

#[test]
fn each_session_has_one_start_and_one_end_with_all_their_fields() {
    let Some(tree) = tree!() else { return };
    let tree = tree.prepare("journalctl --update-catalog");
    tree.boot("look", As::Tester, || {
        socket("echo", "127.0.0.1:1234", "work test.Echo+x");
        socket("uds", "%t/here.sock", "uds=%t/there.sock");
        enable_now(&["echo", "uds"]);
        let mut wire = port(1234);
        let Wire::Tcp(stream) = &wire else { unreachable!("it is TCP") };
        let peer = stream.local_addr().expect("connected").to_string();
        exchange(&mut wire, 1, 70_000, Pace::CRUMBS);
        eventually("the end is told", || events("session-end").len() == 1);

        let id = text(&events("session-start")[0], "SESSION_ID").to_owned();
        let story = journal(&format!("SESSION_ID={id}"));
        assert_eq!(story.len(), 2, "{story:#?}");
        for event in &story {
            for (field, value) in [
                ("SYSLOG_IDENTIFIER", "qrexec-connect"),
                ("LISTENER", "127.0.0.1:1234"),
                ("TRANSPORT", "tcp"),
                ("PEER", &peer),
                ("UPSTREAM", "qrexec work test.Echo+x"),
                ("QREXEC_TARGET", "work"),
                ("QREXEC_SERVICE", "test.Echo+x"),
                ("PRIORITY", "6"),
                ("_SYSTEMD_USER_UNIT", "qrexec-connect.service"),
                ("_PID", &main_pid().to_string()),
            ] {
                assert_eq!(text(event, field), value, "{field}");
            }
            text(event, "DIAL_MS").parse::<u64>().expect("milliseconds");
            assert!(text(event, "MESSAGE").contains(&id[..8]), "{event:#?}");
            // nothing in lower case: journald would have dropped it, and nobody could ask for it
            assert!(event.keys().all(|k| k.chars().all(|c| !c.is_lowercase())), "{event:#?}");
        }
        let (start, end) = (&story[0], &story[1]);
        assert_eq!(text(start, "MESSAGE_ID"), message_id("session-start"));
        assert_eq!(text(end, "MESSAGE_ID"), message_id("session-end"));
        for field in ["END", "UP_BYTES", "DOWN_BYTES", "OPEN_MS", "EXIT_CODE"] {
            assert!(!start.contains_key(field), "{field} at the start");
        }
        assert_eq!((text(end, "UP_BYTES"), text(end, "DOWN_BYTES")), ("70000", "70000"));
        assert_eq!((text(end, "END"), text(end, "EXIT_CODE")), ("eof", "0"));
        let ms = |field| text(end, field).parse::<u64>().expect("milliseconds");
        assert!(ms("DIAL_MS") <= ms("OPEN_MS"), "{end:#?}");

        // a session that leads to a UNIX socket: no fields of calls, and the peer is a user and a process
        let upstream = UnixListener::bind(runtime_dir().join("there.sock")).expect("a free path");
        let server = thread::spawn(move || drop(upstream.accept().expect("the service connects")));
        Wire::unix(&runtime_dir().join("here.sock")).read_to_end();
        server.join().expect("it does not panic");
        eventually("the end is told", || events("session-end").len() == 2);
        let end = &events("session-end")[1];
        assert_eq!(text(end, "LISTENER"), runtime_dir().join("here.sock").display().to_string());
        assert!(text(end, "UPSTREAM").ends_with("/there.sock"), "{end:#?}");
        let me = format!("uid {} pid {}", nix::unistd::getuid(), std::process::id());
        assert_eq!(text(end, "PEER"), me);
        for field in ["QREXEC_TARGET", "QREXEC_SERVICE", "EXIT_CODE"] {
            assert!(!end.contains_key(field), "{field} in {end:#?}");
        }

        // the queries that people type
        assert_eq!(shell(&format!("journalctl --user -q -o cat SESSION_ID={id} | wc -l")), "2");
        assert_eq!(shell("journalctl --user -q -F SESSION_ID | wc -l"), "2");
        let explained = shell(&format!("journalctl --user -q -x SESSION_ID={id}"));
        assert!(explained.contains("-- Subject: ") || explained.contains("░░ Subject: "), "{explained}");
        assert_eq!(assert_each_session_is_told_once(), 2);
    });
}

#[test]
fn every_kind_of_event_has_an_explanation_in_the_installed_catalog() {
    let Some(tree) = tree!() else { return };
    let tree = tree.prepare("journalctl --update-catalog");
    tree.boot("look", As::Tester, || {
        let catalog = include_str!("../../packaging/catalog/qrexec-connect.catalog");
        let ids: Vec<_> = catalog.lines().filter_map(|line| line.strip_prefix("-- ")).collect();
        assert!(ids.len() > 20, "{ids:?}");
        for id in &ids {
            assert!(shell(&format!("journalctl --dump-catalog {id}")).contains("Subject: "), "{id}");
        }
    });
}

#[test]
fn a_refusal_is_told_with_the_line_that_dom0_would_need() {
    let Some(tree) = tree!() else { return };
    tree.boot("look", As::Tester, || {
        socket("no", "127.0.0.1:1234", "work test.Refuse");
        socket("missing", "127.0.0.1:1235", "work test.Missing");
        enable_now(&["no", "missing"]);
        port(1234).expect_reset();
        let message = wait_for_message("session-refused", "dom0 refused it");
        assert!(message.contains("test.Refuse") && message.contains("/etc/qubes/policy.d/"), "{message}");
        let event = &events("session-refused")[0];
        assert_eq!((text(event, "END"), text(event, "EXIT_CODE")), ("refused", "126"));
        assert_eq!(text(event, "PRIORITY"), "4");
        port(1235).expect_reset();
        eventually("the end is told", || journal("QREXEC_SERVICE=test.Missing EXIT_CODE=127").len() == 1);
        assert_eq!(assert_each_session_is_told_once(), 2);
    });
}

/// Bytes that a terminal or a reader of logs could take for something else than text of one line.
fn hostile(value: &Value) -> bool {
    match value {
        Value::String(text) => text.chars().any(char::is_control),
        _ => true, // journalctl writes what is no text as an array of numbers
    }
}

#[test]
fn hostile_bytes_of_names_peers_and_calls_never_reach_the_journal_as_they_are() {
    let Some(tree) = tree!() else { return };
    tree.boot("look", As::Tester, || {
        // in a name: what \xNN stands for
        socket("name", "127.0.0.1:1301", r"uds=/run/\x1b[31mred\x0aFAKE=1");
        socket("name2", "127.0.0.1:1302", r"work te\x1b]0;st.Echo\x07+1");
        // in the path of a listener
        user_unit(
            "qrexec-connect-path.socket",
            "[Socket]\nListenStream=%t/list\\x1b[31m\\x0aen\nFileDescriptorName=work test.Echo\n",
        );
        // on a call's stderr
        socket("stderr", "127.0.0.1:1303", "work test.StderrEscapes");
        socket("peer", "%t/peer.sock", "work test.Echo");
        enable_now(&["name", "name2", "path", "stderr", "peer"]);
        exchange(&mut port(1303), 1, 1000, Pace::BULK);
        for n in [1301, 1302] {
            let _ = std::io::Read::read(&mut port(n), &mut [0; 16]);
        }
        // in the address of a peer
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
        let name = runtime_dir().join("pe\x1b[31m\ner");
        let address = UnixAddress::from_pathname(&name).expect("short");
        let address = socket2::SockAddr::unix(address.as_pathname().expect("a path")).expect("short");
        socket.bind(&address).expect("a free path");
        let to = socket2::SockAddr::unix(runtime_dir().join("peer.sock")).expect("short");
        socket.connect(&to).expect("it listens");
        let mut wire = Wire::from_unix(socket.into());
        exchange(&mut wire, 2, 1000, Pace::BULK);

        eventually("the ends are told", || events("session-end").len() >= 2);
        wait_for_message("call-stderr", r"\x1b");
        assert!(messages("session-end").iter().any(|m| m.contains(r"pe\x1b[31m\x0aer")), "the peer's address is told");
        let refused = messages("listener-refused").concat();
        assert!(refused.contains(r"\x1b"), "{refused}");
        let all = journal("");
        assert!(all.len() > 8, "{all:#?}");
        for event in &all {
            let bad: Vec<_> = event.iter().filter(|(k, v)| !k.starts_with('_') && hostile(v)).collect();
            assert!(bad.is_empty(), "{bad:#?}");
            assert!(!event.contains_key("FAKE"), "{event:#?}");
        }
        assert_eq!(attempt("systemctl --user status qrexec-connect.service | grep -c $'\\x1b'").1, "0");
    });
}
