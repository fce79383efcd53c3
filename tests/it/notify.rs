//! What the manager hears: ready, status, signs of life, reloads; and the service's own end when it has nothing to do.

use std::{fs, io::Write, process::Command, time::Duration};

use nix::sys::signal::Signal;

use crate::support::{Activated, Activation, FakeQrexec, Pace, Server, exchange, notify::Message, run};

/// The first message in `messages` that assigns `value` to `key`.
fn position(messages: &[Message], key: &str, value: &str) -> usize {
    messages.iter().position(|m| m.get(key) == Some(value)).unwrap_or_else(|| panic!("{key}={value}: {messages:#?}"))
}

#[test]
fn ready_comes_with_the_status_and_when_the_listeners_are_served() {
    let name = Server::tcp().echo();
    let service = Activation::qrexec_connect().tcp(&name).unix(&name).start().ready();
    let messages = service.notifications.so_far();
    assert_eq!(messages[0].get("READY"), Some("1"));
    assert_eq!(messages[0].get("STATUS"), Some("2 listeners, 0 sessions"));
    assert_eq!(service.process.stderr.wait_for("ready: "), "ready: 2 listeners, 0 sessions");
    exchange(&mut service.connect(0), 1, 1000, Pace::BULK);
    service.stop();
}

#[test]
fn the_status_follows_the_sessions() {
    let server = Server::tcp();
    let service = Activation::qrexec_connect().tcp(&server.name()).tcp("nobody").start().ready();
    let mut peer = service.connect(0);
    let far = server.accept();
    service.notifications.wait_for("STATUS", |s| s == "1 of 2 listeners, 1 session");
    let said = service.notifications.count("STATUS", "1 of 2 listeners, 0 sessions");
    drop(far);
    peer.expect_end();
    drop(peer);
    service.notifications.wait("no session again", |messages| {
        let zero = messages.iter().filter(|m| m.get("STATUS") == Some("1 of 2 listeners, 0 sessions"));
        (zero.count() > said).then_some(())
    });
    service.stop();
}

#[test]
fn signs_of_life_come_twice_in_each_period_also_while_draining() {
    let server = Server::tcp();
    let mut service = Activation::qrexec_connect()
        .tcp(&format!("{},drain_timeout=1", server.name()))
        .watchdog(Duration::from_millis(400))
        .start()
        .ready();
    let signs = |n: usize| {
        service.notifications.wait(&format!("{n} signs of life"), |m| {
            (m.iter().filter(|m| m.get("WATCHDOG") == Some("1")).count() >= n).then_some(())
        });
    };
    signs(4);
    let _peer = service.connect(0);
    let _far = server.accept();
    service.process.signal(Signal::SIGTERM);
    service.process.wait();
    let messages = service.notifications.so_far();
    let stopping = position(&messages, "STOPPING", "1");
    let later = messages[stopping..].iter().filter(|m| m.get("WATCHDOG") == Some("1")).count();
    assert!(later >= 3, "{later} in a second");
}

/// A service whose configuration has the label `it`, which leads to `target` for now.
fn configured(target: &str) -> Activated {
    let activation = Activation::qrexec_connect().tcp("it").tcp("it");
    let file = activation.dir().join("it.toml");
    write(&activation, target);
    activation.arg("--config").arg(file).start().ready()
}

fn write(activation: &Activation, target: &str) {
    fs::write(activation.dir().join("it.toml"), toml(target)).expect("the test's directory is writable");
}

fn toml(target: &str) -> String {
    format!("[[forward]]\nlabel = \"it\"\ntarget = \"127.0.0.1:{target}\"\n")
}

/// Reloads and waits for what the manager hears of it.
#[track_caller]
fn reload(service: &Activated) {
    let ready = service.notifications.count("READY", "1");
    service.process.signal(Signal::SIGHUP);
    service.notifications.wait("ready again", |messages| {
        (messages.iter().filter(|m| m.get("READY") == Some("1")).count() > ready).then_some(())
    });
    let messages = service.notifications.so_far();
    let reloading = messages.iter().rev().find(|m| m.get("RELOADING") == Some("1")).expect("it was said");
    let at: u64 = reloading.get("MONOTONIC_USEC").expect("sd_notify(3) wants it").parse().expect("a number");
    assert!(at > 0);
}

#[test]
fn a_reload_changes_where_new_sessions_lead_and_leaves_old_ones_alone() {
    let (old, new) = (Server::tcp(), Server::tcp());
    let service = configured(&old.port().to_string());
    let mut before = service.connect(0);
    let mut old_far = old.accept();
    fs::write(service.dir().join("it.toml"), toml(&new.port().to_string())).expect("writable");
    reload(&service);
    service.process.stderr.wait_for("configuration reloaded: 2 listeners changed");
    for listener in 0..2 {
        let mut peer = service.connect(listener);
        let mut far = new.accept();
        far.write_all(b"new").expect("connected");
        peer.expect(b"new");
    }
    old_far.write_all(b"old").expect("it goes on");
    before.expect(b"old");
    assert!(old.try_accept().is_none());
    reload(&service);
    service.process.stderr.wait_for("configuration reloaded: 0 listeners changed");
    service.stop();
}

#[test]
fn a_bad_new_configuration_is_refused_and_the_old_one_stays() {
    let server = Server::tcp();
    let service = configured(&server.port().to_string());
    let path = service.dir().join("it.toml");
    let bad = [
        ("[[forward]]\nlabel = \"it\"\ntarget = \"nowhere\"\n", "it.toml:3:"),
        ("[[forward]\n", "it.toml:1:"),
        ("[[forward]]\nlabel = \"other\"\ntarget = \"127.0.0.1:1\"\n", "no [[forward]] has the label \"it\""),
    ];
    for (toml, why) in bad {
        fs::write(&path, toml).expect("writable");
        reload(&service);
        let line = service.process.stderr.wait_for(why);
        assert!(line.starts_with("error: the new configuration is not used: "), "{line}");
        let mut peer = service.connect(0);
        server.accept().write_all(b"as before").expect("connected");
        peer.expect(b"as before");
    }
    service.stop();
}

#[test]
fn a_reload_with_a_missing_file_keeps_the_old_configuration() {
    let server = Server::tcp();
    let service = configured(&server.port().to_string());
    fs::remove_file(service.dir().join("it.toml")).expect("it is there");
    reload(&service);
    service.process.stderr.wait_for("error: the new configuration is not used: ");
    let _peer = service.connect(0);
    server.accept();
    service.stop();
}

#[test]
fn who_waits_for_a_reload_hears_when_it_is_in_force_or_why_it_is_not() {
    let (old, new) = (Server::tcp(), Server::tcp());
    let activation = Activation::qrexec_connect().tcp("it");
    let (file, directory) = (activation.dir().join("it.toml"), activation.dir().to_owned());
    write(&activation, &old.port().to_string());
    let service = activation.arg("--config").arg(&file).env("RUNTIME_DIRECTORY", &directory).start().ready();
    let pid = service.process.pid();
    let ask = |program: &str, word: &str| {
        let mut command = Command::new(program);
        command.arg(word).env("RUNTIME_DIRECTORY", &directory).env("MAINPID", pid.to_string());
        let output = run(command);
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    let programs = [(env!("CARGO_BIN_EXE_qrexec-connect"), "reload"), (env!("CARGO_BIN_EXE_pfwd"), "--reload")];
    for (program, word) in programs {
        for server in [&new, &old] {
            fs::write(&file, toml(&server.port().to_string())).expect("writable");
            assert_eq!(ask(program, word), (Some(0), String::new()));
            let _peer = service.connect(0);
            server.accept();
        }
        fs::write(&file, toml("nowhere")).expect("writable");
        let (code, said) = ask(program, word);
        assert_eq!(code, Some(1));
        assert!(said.contains("the new configuration is not used") && said.contains("it.toml:3:"), "{said}");
        assert!(!directory.join("reload").exists());
    }
    service.stop();
    let (code, said) = ask(programs[0].0, programs[0].1);
    assert!(code == Some(1) && said.contains(&format!("cannot find process {pid}")), "{said}");
}

#[test]
fn timing_an_idle_service_ends_and_its_sockets_start_it_again() {
    let fake = FakeQrexec::new();
    let mut service = Activation::calling(&fake).args(["--exit-idle-time", "1"]).tcp("work test.Echo").start().ready();
    let mut peer = service.connect(0);
    peer.write_all(b"x").expect("connected");
    peer.expect(b"x");
    // a session keeps it, however idle
    let began = std::time::Instant::now();
    support::eventually("longer than the idle time", || began.elapsed() > Duration::from_millis(1500));
    assert!(service.process.running());
    exchange(&mut peer, 1, 1000, Pace::BULK);
    drop(peer);
    assert_eq!(service.process.wait().code(), Some(0));
    service.process.stderr.wait_for("nothing to do: ending until the next connection");
    service.notifications.wait_for("STOPPING", |v| v == "1");
    let mut peer = service.connect(0);
    service.start_again();
    exchange(&mut peer, 2, 1000, Pace::BULK);
    drop(peer);
    assert_eq!(service.process.wait().code(), Some(0));
}

#[test]
fn a_service_without_idle_time_stays() {
    let mut service =
        Activation::qrexec_connect().tcp(&Server::tcp().echo()).watchdog(Duration::from_millis(400)).start().ready();
    exchange(&mut service.connect(0), 1, 1000, Pace::BULK);
    service.ends(1);
    service
        .notifications
        .wait("a second of life", |m| (m.iter().filter(|m| m.get("WATCHDOG") == Some("1")).count() >= 5).then_some(()));
    assert!(service.process.running());
    service.stop();
}

#[test]
fn the_texts_in_force_are_kept_for_the_next_process_and_go_with_a_stop_and_the_idle_exit() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = Server::tcp();
    let begin = |arguments: &[&str]| {
        let activation = Activation::qrexec_connect().tcp("it");
        let (file, directory) = (activation.dir().join("it.toml"), activation.dir().to_owned());
        write(&activation, &server.port().to_string());
        let activation = activation.arg("--config").arg(&file).args(arguments.iter().copied());
        (activation.env("RUNTIME_DIRECTORY", &directory).start().ready(), directory.join("configuration"), file)
    };
    let (mut service, kept, file) = begin(&[]);
    assert_eq!(fs::metadata(&kept).expect("it is there").permissions().mode() & 0o7777, 0o600);
    let text = fs::read_to_string(&kept).expect("it is there");
    let last: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(last["main"]["name"], file.to_str().expect("UTF-8"));
    assert!(last["main"]["since"].as_u64().is_some_and(|since| since > 1_700_000_000), "{last}");

    // Over a restart and a crash, a faulty file takes nothing down; rubbish in the file counts as nothing.
    fs::write(&file, "[[forward]\n").expect("writable");
    service.restart(|process| process.signal(Signal::SIGKILL));
    service.notifications.wait_for("STATUS", |s| s.starts_with("CONFIG ERROR: ") && s.contains("; 1 listener, "));
    let _peer = service.connect(0);
    server.accept();
    assert_eq!(fs::read_to_string(&kept).expect("it is there"), text, "the same, of the same time");
    fs::write(&kept, "{\"main\": 7}").expect("writable");
    service.restart(|process| process.signal(Signal::SIGKILL));
    service.notifications.wait_for("STATUS", |s| s.starts_with("CONFIG ERROR: ") && s.contains("; 0 of 1 listener, "));
    service.process.signal(Signal::SIGTERM);
    assert!(service.process.wait().success());
    assert!(!kept.exists());

    let (mut service, kept, _) = begin(&["--exit-idle-time", "1"]);
    assert!(kept.exists());
    assert!(service.process.wait().success());
    assert!(!kept.exists());
}
