//! The moment after a start in which the service does not know its units yet: a word that is no listener's may be a
//! unit's, and systemd says which addresses that has.

use std::{fs, net::TcpListener};

use crate::support::{Activated, Activation, Server, Wire, asking::Said, eventually};

/// A service with one listener, which leads to an echo server; its manager does not say whose the listener is.
fn service() -> Activated {
    Activation::qrexec_connect().tcp(&Server::tcp().echo()).with_control().start().ready()
}

/// What systemd says of a socket unit.
fn unit(service: &Activated, unit: &str, state: &str, ports: &[u16]) {
    let listens: String = ports.iter().map(|port| format!("Listen=127.0.0.1:{port} (Stream)\n")).collect();
    let text = format!("ActiveState={state}\n{listens}");
    fs::write(service.dir().join("bin").join(format!("show.{unit}")), text).expect("ours");
}

/// There and back.
#[track_caller]
fn lives(wire: &mut Wire) {
    use std::io::Write as _;
    wire.write_all(b"there and back").expect("connected");
    wire.expect(b"there and back");
}

fn sessions(service: &Activated) -> usize {
    service.asking().sessions().len()
}

/// A command that fails; what it says.
#[track_caller]
fn fails(service: &Activated, args: &[&str]) -> String {
    let said: Said = service.asking().say(args);
    assert_eq!(said.code, Some(1), "{args:?}: {said:?}");
    said.stdout + &said.stderr
}

#[test]
fn commands_know_the_unit_whose_listener_the_service_has() {
    let service = service();
    unit(&service, "qrexec-connect-gitweb.socket", "active", &[service.port(0)]);
    let asking = service.asking();
    let address = format!("127.0.0.1:{}/tcp", service.port(0));
    for word in ["gitweb", "qrexec-connect-gitweb.socket"] {
        let report = asking.ok(&["try", word, "--json"]).json();
        assert!(report["works"] == true && report["session"].is_string(), "{report}");
        assert_eq!(
            asking.ok(&["pause", word]).stdout,
            format!("{address} is paused: connections wait in the backlog\n")
        );
        assert_eq!(asking.ok(&["resume", word]).stdout, format!("{address} is resumed\n"));
        assert!(asking.ok(&["metrics", word]).stdout.contains(&format!("127.0.0.1:{}", service.port(0))));
        eventually("the trial is over", || sessions(&service) == 0);
        let mut wire = service.connect(0);
        lives(&mut wire);
        let said = asking.ok(&["kill", word]).stdout;
        assert!(said.starts_with("session ") && said.ends_with(" is ended\n"), "{said}");
        wire.expect_reset();
        assert_eq!(sessions(&service), 0);
    }
    service.stop();
}

/// Its unit file has an address that a listener of another name may have by now.
#[test]
fn a_stopped_unit_and_a_pattern_mean_no_listener() {
    let service = service();
    for name in ["gitweb", "git*"] {
        let state = if name == "gitweb" { "inactive" } else { "active" };
        unit(&service, &format!("qrexec-connect-{name}.socket"), state, &[service.port(0)]);
    }
    let mut wire = service.connect(0);
    lives(&mut wire);
    for word in ["gitweb", "git*"] {
        assert!(fails(&service, &["kill", word]).contains(&format!("no session has an id that begins with {word}")));
        assert!(fails(&service, &["try", word]).contains("no listener matches"));
        for command in ["pause", "resume", "metrics"] {
            let said = fails(&service, &[command, word]);
            assert!(said.contains("no active listener matches"), "{command}: {said}");
        }
        lives(&mut wire);
    }
    assert_eq!(sessions(&service), 1);
    drop(wire);
    service.stop();
}

#[test]
fn pause_names_the_address_of_the_unit_that_is_no_listener_of_the_service() {
    let service = service();
    let other = TcpListener::bind("127.0.0.1:0").expect("free");
    let port = other.local_addr().expect("bound").port();
    unit(&service, "qrexec-connect-gitweb.socket", "active", &[port]);
    let said = fails(&service, &["pause", "gitweb"]);
    assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
    service.stop();
}
