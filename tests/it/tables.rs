//! What people see of a running service: colours, times, who is there when somebody begins to follow; and commands for
//! several sessions or listeners at once.

use nix::sys::signal::Signal;

use crate::support::{Activation, Server, Wire, eventually};

#[test]
fn colours_come_where_they_are_asked_for() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).with_control().start().ready();
    let asking = service.asking();
    let painted = asking.ok(&["status", "--color=always"]).stdout;
    assert!(painted.contains("\x1b[32mserving\x1b[0m"), "{painted}");
    for arguments in [&["status"][..], &["status", "--color=auto", "--wide"], &["status", "--color=never"]] {
        assert!(!asking.ok(arguments).stdout.contains('\x1b'), "{arguments:?}: this is a pipe");
    }
    service.stop();
}

#[test]
fn sessions_that_are_there_already_stand_under_the_heading_of_those_who_follow() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).with_control().start().ready();
    let asking = service.asking();
    let peer = service.connect(0);
    let far = server.accept();
    eventually("it is connected", || asking.sessions().iter().any(|session| session["connected"] == true));
    let id = asking.sessions()[0]["id"].as_str().expect("text")[..8].to_owned();
    let follow = asking.start(&["sessions", "--follow"]);
    let line = follow.stdout.wait_for("present");
    assert!(line.contains(&id) && line.contains(": since ") && line.ends_with(", connected"), "{line}");
    let heading: Vec<String> = follow.stdout.so_far()[0].split_whitespace().map(str::to_owned).collect();
    assert_eq!(heading, ["TIME", "EVENT", "ID", "SESSION"]);
    drop((peer, far));
    assert!(follow.stdout.wait_for("ended").contains(&id));
    assert_eq!(follow.stdout.count("began"), 0, "it is told once");
    follow.signal(Signal::SIGKILL);
    service.stop();
}

#[test]
fn sessions_are_ended_by_their_listener_and_all_at_once() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).tcp(&server.name()).with_control().start().ready();
    let asking = service.asking();
    let peers: Vec<Wire> = (0..4).map(|index| service.connect(index % 2)).collect();
    let _fars: Vec<Wire> = (0..4).map(|_| server.accept()).collect();
    eventually("all are there", || asking.sessions().len() == 4);
    let first = format!("127.0.0.1:{}", service.port(0));
    assert_eq!(asking.ok(&["kill", &first]).stdout.matches(" is ended").count(), 2);
    let left = asking.sessions();
    assert!(left.len() == 2 && left.iter().all(|session| session["listener"] != first.as_str()), "{left:?}");
    assert!(asking.ok(&["kill", &first]).stdout.contains("has no sessions"));
    let several = asking.say(&["kill", &server.name()]);
    assert_eq!(several.code, Some(0), "one name is one meaning: {several:?}");
    assert!(asking.sessions().is_empty());
    drop(peers);
    let _peers: Vec<Wire> = (0..3).map(|_| service.connect(0)).collect();
    eventually("all are there", || asking.sessions().len() == 3);
    assert_eq!(asking.ok(&["kill", "--all"]).stdout.matches(" is ended").count(), 3);
    assert_eq!(asking.ok(&["kill", "--all"]).stdout, "no sessions\n");
    assert_eq!(asking.say(&["kill"]).code, Some(2));

    assert_eq!(asking.ok(&["pause", "--all"]).stdout.matches(" is paused").count(), 2);
    let report = asking.say(&["status", "--json"]).json();
    assert!(report["listeners"].as_array().expect("a list").iter().all(|row| row["state"] == "paused"), "{report}");
    assert_eq!(asking.ok(&["resume", "--all"]).stdout.matches(" is resumed").count(), 2);
    service.stop();
}

#[test]
fn a_service_that_is_not_there_is_told_by_its_path_and_fails() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).with_control().start().ready();
    let asking = service.asking();
    let said = asking.say(&["status", "--control", "/wrong", "--json"]);
    assert_eq!((said.code, &said.json()["served"]), (Some(1), &false.into()));
    let text = asking.say(&["status", "--control", "/wrong"]).stdout;
    assert!(text.contains("no service has its control socket at /wrong"), "{text}");
    let said = asking.say(&["sessions", "--control", "/wrong"]);
    assert!(said.code == Some(1) && said.stderr.contains("there is no control socket at /wrong"), "{said:?}");
    service.stop();
}

#[test]
fn lines_of_the_log_begin_with_the_time_where_that_is_asked_for() {
    let server = Server::tcp();
    for (option, timed) in [("--timestamps", true), ("--timestamps=always", true), ("--timestamps=auto", false)] {
        let service = Activation::qrexec_connect().args([option]).tcp(&server.name()).start().ready();
        let line = service.process.stderr.wait("a line", |lines| lines.first().cloned());
        let digits = line.bytes().take(12).filter(u8::is_ascii_digit).count();
        assert_eq!(digits == 9 && line.as_bytes()[2] == b':', timed, "{option}: {line}");
        service.stop();
    }
}
