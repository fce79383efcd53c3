//! `pause` and `resume`.

use std::{fs, io::Write as _, net::UdpSocket};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Activation, Server, eventually};

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
    assert_eq!(said.stdout, format!("{address}/tcp is paused: connections wait in the backlog\n"));
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
