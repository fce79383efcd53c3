//! `packaging/qubes-rpc/qubes.ConnectUnix`, run as qrexec-agent runs a service: it joins callers with the sockets of its
//! list, whatever NAME they send.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Activation, FakeQrexec, Pace, Server, exchange, run};

/// The service, with its list where the test may write it.
fn install(dir: &Path, list: &str) -> PathBuf {
    let shipped = include_str!("../../packaging/qubes-rpc/qubes.ConnectUnix");
    let place = dir.join("connect-unix.list");
    let line = "LIST=/etc/qubes/connect-unix.list\n";
    assert_eq!(shipped.matches(line).count(), 1, "the only path in it that a test replaces");
    fs::write(&place, list).expect("ours");
    fs::create_dir_all(dir.join("qubes-rpc")).expect("ours");
    let service = dir.join("qubes-rpc/qubes.ConnectUnix");
    fs::write(&service, shipped.replace(line, &format!("LIST={}\n", place.display()))).expect("ours");
    fs::set_permissions(&service, fs::Permissions::from_mode(0o755)).expect("ours");
    service
}

#[test]
fn a_socket_of_another_qube_is_reached_by_its_name_and_every_byte_arrives() {
    let fake = FakeQrexec::new();
    let path = fake.dir().join("app.sock");
    install(fake.dir(), &format!("# a comment\nother /nowhere\napp {}\n", path.display()));
    let served = Server::unix(&path);
    served.echo();
    let service = Activation::calling(&fake).unix("@default qubes.ConnectUnix+app").start().ready();
    exchange(&mut service.connect(0), 7, 3 << 20, Pace::BULK);
    // a request whose end comes before its answer
    let mut peer = service.connect(0);
    peer.write_all(b"question").expect("connected");
    peer.half_close();
    assert_eq!(peer.read_to_end(), b"question");
    let ends = service.ends(2);
    assert!(ends.iter().all(|end| end.end == "eof"), "{ends:?}");
    service.stop();
}

/// Every ending, with the real socat: what was sent before it arrives, and it is passed on while the other side goes on.
#[test]
fn an_end_of_either_side_is_passed_on_and_the_other_side_goes_on() {
    let fake = FakeQrexec::new();
    let path = fake.dir().join("app.sock");
    install(fake.dir(), &format!("app {}\n", path.display()));
    let served = Server::unix(&path);
    let service = Activation::calling(&fake).unix("@default qubes.ConnectUnix+app").start().ready();
    let joined = || {
        let mut peer = service.connect(0);
        peer.write_all(b"hello").expect("connected");
        let mut server = served.accept();
        server.expect(b"hello");
        (peer, server)
    };

    // the server's sending ends first
    let (mut peer, mut server) = joined();
    server.write_all(b"goodbye").expect("connected");
    server.half_close();
    assert_eq!(peer.read_to_end(), b"goodbye");
    peer.write_all(b"still here").expect("that way is open");
    server.expect(b"still here");
    peer.half_close();
    server.expect_end();

    // the client's sending ends first
    let (mut peer, mut server) = joined();
    peer.half_close();
    server.expect_end();
    server.write_all(b"still here").expect("that way is open");
    peer.expect(b"still here");
    drop(server);
    peer.expect_end();

    // the server ends altogether
    let (mut peer, mut server) = joined();
    server.write_all(b"goodbye").expect("connected");
    drop(server);
    assert_eq!(peer.read_to_end(), b"goodbye");
    drop(peer);

    let mut ends: Vec<_> = service.ends(3).iter().map(|end| (end.end.clone(), end.up, end.down)).collect();
    ends.sort();
    let eof = |up, down| ("eof".to_owned(), up, down);
    assert_eq!(ends, [eof(5, 7), eof(5, 10), eof(15, 7)]);
    service.stop();
}

#[test]
fn what_is_not_in_the_list_is_refused_whatever_it_is_called() {
    let dir = tempfile::tempdir().expect("a directory");
    let witness = dir.path().join("witness");
    let here = dir.path().display();
    let list = format!(
        "app {here}/none.sock\nplain {here}/connect-unix.list\ncomma /a,exec:touch%{here}\nrelative app.sock\nthree /a b\n#off /x\n"
    );
    let service = install(dir.path(), &list);
    let exec = format!("x,exec:touch {}", witness.display());
    let shell = format!("$(touch {})", witness.display());
    let semicolon = format!("app;touch {}", witness.display());
    for (name, code, said) in [
        ("", 126, "write a name"),
        ("missing", 126, "missing is not in"),
        ("APP", 126, "APP is not in"),
        ("ap", 126, "ap is not in"),
        ("a..p", 126, "a..p is not in"),
        ("#off", 126, "write a name"),
        ("..", 126, "write a name"),
        ("-x", 126, "write a name"),
        ("../../etc/passwd", 126, "write a name"),
        ("/run/dbus/system_bus_socket", 126, "write a name"),
        ("app app", 126, "write a name"),
        ("app\nplain", 126, "write a name"),
        ("*", 126, "write a name"),
        ("a?p", 126, "write a name"),
        ("[a]pp", 126, "write a name"),
        ("\\app", 126, "write a name"),
        (&shell, 126, "write a name"),
        (&semicolon, 126, "write a name"),
        (&exec, 126, "write a name"),
        (&"a".repeat(65), 126, "too long"),
        ("three", 126, "three is not in"),
        ("app", 125, "is no socket"),
        ("plain", 125, "is no socket"),
        ("comma", 125, "holds characters"),
        ("relative", 125, "not absolute"),
    ] {
        let mut call = Command::new(&service);
        call.env_clear().env("PATH", "/usr/bin:/bin").current_dir(dir.path());
        call.arg(name).env("QREXEC_SERVICE_ARGUMENT", name).env("QREXEC_REMOTE_DOMAIN", "evil");
        let output = run(call);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{name:?}: {stderr}");
        assert!(stderr.contains(said), "{name:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "what a caller sends forges no line: {stderr}");
        assert!(output.stdout.is_empty() && !witness.exists(), "{name:?}");
    }
}

#[test]
fn the_list_that_is_shipped_can_be_read_and_the_policy_names_what_is_in_it() {
    let list = include_str!("../../packaging/qubes-rpc/connect-unix.list");
    let policy = include_str!("../../packaging/qubes-rpc/policy.d/30-connect-unix.policy");
    let names = list.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let names: Vec<_> = names.map(|line| line.split_whitespace().next().expect("a name")).collect();
    assert!(names.len() >= 2, "{names:?}");
    let rules: Vec<Vec<&str>> =
        policy.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_whitespace().collect()).collect();
    for rule in &rules {
        assert_eq!(rule[0], "qubes.ConnectUnix", "{rule:?}");
        assert!(rule[1] == "*" || names.iter().any(|name| rule[1] == format!("+{name}")), "{rule:?}");
    }
    assert_eq!(rules.last().expect("rules")[1..], ["*", "@anyvm", "@anyvm", "deny"]);
}
