//! Who may connect: judged before anything is dialled or asked.

use crate::support::{Activation, FakeQrexec, Pace, Server, Wire, exchange};

#[test]
fn a_peer_from_elsewhere_is_turned_away_before_anything_is_asked() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake)
        .tcp("work test.Echo allow_from=10.0.0.0/8")
        .tcp("work test.Echo allow_from=127.0.0.0/8")
        .tcp6("work test.Echo allow_from=\\x3a\\x3a1")
        .unix("work test.Echo allow_uid=4242")
        .unix("work test.Echo allow_uid=4242 allow_uid=0")
        .start()
        .ready();
    assert_eq!(service.notifications.status().as_deref(), Some("5 listeners, 0 sessions"));
    let rest = service.process.rest();
    service.connect(0).expect_reset();
    let line = service.process.stderr.wait_for("not in allow_from");
    assert!(line.contains("refused 127.0.0.1:") && line.contains(&service.port(0).to_string()), "{line}");
    service.connect(3).expect_end();
    let line = service.process.stderr.wait_for("not in allow_uid");
    assert!(line.contains("uid ") && line.contains("3.sock"), "{line}");
    assert_eq!(fake.started(), 0);
    exchange(&mut service.connect(1), 1, 1000, Pace::BULK);
    exchange(&mut service.connect(2), 2, 1000, Pace::BULK);
    if nix::unistd::getuid().is_root() {
        exchange(&mut service.connect(4), 3, 1000, Pace::BULK);
    }
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_flood_of_strangers_is_told_once_and_takes_no_places() {
    let server = Server::tcp();
    let name = format!("{},allow_from=10.0.0.0/8,max_connections=2", server.name());
    let service = Activation::qrexec_connect().tcp(&name).start().ready();
    let rest = service.process.rest();
    let strangers: Vec<Wire> = (0..50).map(|_| service.connect(0)).collect();
    for mut stranger in strangers {
        stranger.expect_reset();
    }
    service.process.stderr.wait_for("not in allow_from");
    assert_eq!(service.process.stderr.count("not in allow_from"), 1);
    assert_eq!(service.process.stderr.count("max_connections"), 0);
    assert!(server.try_accept().is_none());
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn a_list_that_names_nobody_real_refuses_the_listener() {
    let service = Activation::qrexec_connect().unix("target=127.0.0.1+1,allow_uid=nobody-of-that-name").start().ready();
    let line = service.process.stderr.wait_for("is not served");
    assert!(line.contains("nobody-of-that-name"), "{line}");
    service.stop();
}
