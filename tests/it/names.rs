//! The name of a socket decides where it leads; a message about a bad name has the address.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Activation, FakeQrexec, Pace, Server, exchange};

#[test]
fn each_bad_name_is_cited_with_its_address_and_the_good_one_is_served() {
    let good = Server::tcp().echo();
    let bad = [
        ("", "the name is empty"),
        ("work \"qubes.ConnectTCP", "quote"),
        ("one two three", "three"),
        ("work qubes.Connect TCP+1", "TCP"),
        ("a-qube-whose-name-is-far-too-long-for-qubes svc", "31"),
        ("work svc+with\\x20blank", "_"),
        ("work svc max_connections=none", "max_connections"),
        ("target=10.0.0.5", "port"),
        ("target=10.0.0.5+22,taget=10.0.0.5+22", "target"),
        ("uds=relative/path", "absolute"),
        ("listen=127.0.0.1+1,target=127.0.0.1+2", "listen"),
        ("qrexec-connect-gone.socket", "systemd rejected"),
        ("label-of-nobody", "label-of-nobody"),
        ("/run/x.sock", "uds=/run/x.sock"),
    ];
    let activation = bad.iter().fold(Activation::qrexec_connect().tcp(&good), |a, (name, _)| a.tcp(name));
    let service = activation.start().ready();
    assert_eq!(service.notifications.status(), Some(format!("1 of {} listeners, 0 sessions", bad.len() + 1)));
    for (index, (name, why)) in bad.iter().enumerate() {
        let address = format!("error: 127.0.0.1:{} ", service.port(index + 1));
        let line = service.process.stderr.wait_for(&address);
        assert!(line.contains("is not served") && line.contains(why), "{name:?}: {line}");
    }
    exchange(&mut service.connect(0), 1, 10_000, Pace::BULK);
    service.stop();
}

#[test]
fn all_faults_of_a_name_are_told_at_once() {
    let service = Activation::qrexec_connect().tcp("target=nowhere,mode=9999,colour=red").start().ready();
    service.process.stderr.wait_for("is not served");
    service.process.signal(Signal::SIGTERM);
    let mut service = service;
    service.process.wait();
    let said = service.process.stderr.to_the_end().join("\n");
    for fault in ["nowhere", "9999", "colour"] {
        assert!(said.contains(fault), "{fault}: {said}");
    }
}

#[test]
fn labels_lead_where_the_configuration_says() {
    let fake = FakeQrexec::new();
    let target = Server::tcp().echo();
    let activation = Activation::calling(&fake);
    let file = activation.dir().join("other.toml");
    let port = target.rsplit('+').next().expect("target=HOST+PORT");
    let toml = format!(
        "[[forward]]\nlabel = \"here\"\ntarget = \"127.0.0.1:{port}\"\n\n\
         [[forward]]\nlabel = \"there\"\nqrexec = \"work test.Args+x\"\n"
    );
    fs::write(&file, toml).expect("the test's directory is writable");
    let service = activation
        .arg("--config")
        .arg(&file)
        .tcp("here")
        .tcp("there")
        .tcp("qrexec-connect-there.socket")
        .tcp("nobody")
        .start()
        .ready();
    assert_eq!(service.notifications.status().as_deref(), Some("3 of 4 listeners, 0 sessions"));
    exchange(&mut service.connect(0), 1, 10_000, Pace::BULK);
    for index in [1, 2] {
        let mut peer = service.connect(index);
        peer.expect(b"work test.Args+x\n");
        peer.expect_end();
    }
    service.stop();
}

#[test]
fn the_users_own_configuration_is_found() {
    let target = Server::tcp().echo();
    let activation = Activation::qrexec_connect().unix("ssh");
    let config = activation.dir().join("config");
    fs::create_dir(&config).expect("the test's directory is writable");
    let toml = format!("[[forward]]\nlabel = \"ssh\"\ntarget = \"{}\"\n", target.trim_start_matches("target="));
    fs::write(config.join("qrexec-connect.toml"), toml).expect("writable");
    let service = activation.start().ready();
    exchange(&mut service.connect(0), 1, 10_000, Pace::BULK);
    service.stop();
}

#[test]
fn by_hand_a_bad_configuration_ends_the_program_with_78_and_every_place() {
    let activation = Activation::qrexec_connect().tcp("ssh").without_notify();
    let file = activation.dir().join("bad.toml");
    fs::write(&file, "[[forward]]\nlabel = \"ssh\"\ntaget = \"10.0.0.5:22\"\n\n[[forward]]\nlabel = 7\n")
        .expect("writable");
    let path = file.display().to_string();
    let mut service = activation.arg("--config").arg(&file).start();
    assert_eq!(service.process.wait().code(), Some(78));
    let said = service.process.stderr.to_the_end();
    let at = |place: &str| said.iter().find(|l| l.starts_with(&format!("qrexec-connect: {path}:{place}: ")));
    let unknown = at("3:1").unwrap_or_else(|| panic!("{said:#?}"));
    assert!(unknown.contains("taget") && unknown.contains("target"), "{unknown}");
    at("6:9").unwrap_or_else(|| panic!("{said:#?}"));
    assert_eq!(service.notifications.count("READY", "1"), 0);
}

#[test]
fn by_hand_broken_toml_and_a_missing_file_end_the_program_with_78() {
    let activation = Activation::qrexec_connect().tcp("ssh").without_notify();
    let file = activation.dir().join("broken.toml");
    fs::write(&file, "[[forward]]\nlabel = \"ssh\n").expect("writable");
    let place = format!("qrexec-connect: {}:2:", file.display());
    let mut service = activation.arg("--config").arg(&file).start();
    assert_eq!(service.process.wait().code(), Some(78));
    service.process.stderr.wait_for(&place);

    let activation = Activation::qrexec_connect().tcp("ssh").without_notify();
    let mut service = activation.args(["--config", "/nonexistent/x.toml"]).start();
    assert_eq!(service.process.wait().code(), Some(78));
    service.process.stderr.wait_for("/nonexistent/x.toml: cannot be read");
}

#[test]
fn names_hold_every_byte_that_systemd_can_pass() {
    let fake = FakeQrexec::new();
    let activation = Activation::calling(&fake);
    let path = activation.dir().join("with blank, comma and €.sock");
    let _echo = Server::unix(&path).echo();
    let written: String = path
        .to_str()
        .expect("UTF-8")
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b == b'/' { char::from(b).to_string() } else { format!("\\x{b:02x}") })
        .collect();
    let service = activation
        .tcp(&format!("uds={written}"))
        .tcp("@dispvm\\x3awork test.Args+a-b_c.d")
        .tcp("  \"work\"   'test.Args'  max_connections=3 ")
        .start()
        .ready();
    assert_eq!(service.notifications.status().as_deref(), Some("3 listeners, 0 sessions"));
    exchange(&mut service.connect(0), 1, 10_000, Pace::BULK);
    service.connect(1).expect(b"@dispvm:work test.Args+a-b_c.d\n");
    service.connect(2).expect(b"work test.Args\n");
    service.stop();
}
