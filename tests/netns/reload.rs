//! Configurations that change, by reload and at a restart.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
};

use nix::sys::signal::Signal;

use crate::{
    life::at,
    restart::restart,
    sandbox::{asker, echo_inside, echo_tcp, echo_udp, forwarding, inside, netns, pfwd},
    support::{Pace, Wire, eventually, exchange, receive, sample, send},
};

#[test]
fn a_reload_adds_removes_and_changes_without_touching_the_others() {
    sandbox!();
    netns("a");
    let one = echo_inside("a", "127.0.0.1", "one");
    let two = echo_inside("a", "127.0.0.1", "two");
    let config = Path::new("/run/pfwd.toml");
    let forward = |port: u16, to: SocketAddr, more: &str| {
        format!("[[forward]]\nlisten = \"127.0.0.1:{port}\"\nnamespace = \"a\"\ntarget = \"{to}\"\n{more}\n")
    };
    let uds = |mode: &str| {
        format!("[[forward]]\nuds = \"/run/x.sock\"\nnamespace = \"a\"\ntarget = \"{one}\"\nmode = \"{mode}\"\n")
    };
    fs::write(config, forward(4001, one, "") + &forward(4002, one, "") + &uds("0600")).expect("ours");
    let service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    let mut kept = [Wire::tcp(at(4001)), Wire::tcp(at(4002)), Wire::unix(Path::new("/run/x.sock"))];
    kept.iter_mut().for_each(|wire| wire.expect(b"one"));
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata("/run/x.sock").expect("served"));

    fs::write(config, forward(4002, two, "") + &forward(4003, two, "") + &uds("0660")).expect("ours");
    let reload = |n: usize| {
        service.process.signal(Signal::SIGHUP);
        service.process.stderr.wait_for_nth("configuration reloaded", n);
    };
    reload(1);
    assert!(TcpStream::connect(at(4001)).is_err(), "it is gone");
    Wire::tcp(at(4002)).expect(b"two");
    Wire::tcp(at(4003)).expect(b"two");
    let now = fs::metadata("/run/x.sock").expect("served");
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&now), inode);
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&now.permissions()) & 0o777, 0o660);
    kept.iter_mut().for_each(|wire| {
        send(&mut *wire, 3, 5000, Pace::BULK).expect("it lives");
        receive(&mut *wire, 3, 5000, Pace::BULK).expect("it lives");
    });

    // a bad one changes nothing
    fs::write(config, "[[forward]]\nlisten = \"127.0.0.1:1\"\ntagret = \"x\"\n").expect("ours");
    service.process.signal(Signal::SIGHUP);
    let line = service.process.stderr.wait_for("the new configuration is not used");
    assert!(line.contains("/run/pfwd.toml:3:1") && line.contains("did you mean \"target\""), "{line}");
    Wire::tcp(at(4002)).expect(b"two");

    // an address that another takes over in the same breath; and sessions of a removed one that are to end
    fs::write(config, forward(4002, two, "on_remove = \"drain\"\ndrain_timeout = 1") + &forward(4003, two, ""))
        .expect("ours");
    reload(2);
    assert!(!Path::new("/run/x.sock").exists());
    let mut ends = Wire::tcp(at(4002));
    ends.expect(b"two");
    fs::write(config, forward(4003, two, "").replace("127.0.0.1:4003", "0.0.0.0:4003")).expect("ours");
    reload(3);
    Wire::tcp(at(4003)).expect(b"two");
    ends.expect_reset();
    let [first, drained, third] = &mut kept;
    drained.expect_reset();
    [first, third].into_iter().for_each(|wire| exchange(wire, 3, 5000, Pace::BULK));
    service.stop();
}

#[test]
fn storms_of_reloads_lose_nothing() {
    sandbox!();
    let server = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let config = Path::new("/run/pfwd.toml");
    let text = |from: u16, to: u16| -> String {
        (from..to).map(|port| format!("[[forward]]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"{server}\"\n")).collect()
    };
    let write = |text: String| {
        fs::write("/run/new.toml", text).expect("ours");
        fs::rename("/run/new.toml", config).expect("ours");
    };
    write(text(4000, 4050));
    let service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    let rest = service.process.rest();
    let mut streams: Vec<Wire> = (4000..4050).map(|port| Wire::tcp(at(port))).collect();
    for round in (0..60u16).take(sample("reloads", 25, 60)) {
        write(text(4000 + round % 7, 4050 - round % 5));
        service.process.signal(Signal::SIGHUP);
        // 4020 is always there
        exchange(&mut Wire::tcp(at(4020)), u64::from(round), 100, Pace::BULK);
    }
    write(text(4000, 4050));
    service.process.signal(Signal::SIGHUP);
    eventually("all are back", || (4000..4050).all(|port| TcpStream::connect(at(port)).is_ok()));
    streams.iter_mut().for_each(|wire| exchange(wire, 1, 1000, Pace::BULK));
    drop(streams);
    service.process.wait_for_rest(&rest);
    service.stop();
}

#[test]
fn listeners_that_a_new_configuration_does_not_want_are_not_taken_over() {
    sandbox!();
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "");
    let line = |listen: &str| format!("[[forward]]\n{listen}\ntarget = \"{here}\"\n");
    fs::write("/run/pfwd.toml", line("listen = \"127.0.0.1:4000\"") + &line("uds = \"/run/a.sock\"")).expect("ours");
    let mut service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    let mut kept = Wire::tcp(at(4000));
    send(&mut kept, 1, 100, Pace::BULK).expect("sent");
    receive(&mut kept, 1, 100, Pace::BULK).expect("came");
    fs::write("/run/pfwd.toml", line("listen = \"127.0.0.1:4001\"")).expect("ours");
    restart(&mut service);
    assert!(TcpStream::connect(at(4000)).is_err());
    assert!(!Path::new("/run/a.sock").exists());
    exchange(&mut Wire::tcp(at(4001)), 1, 100, Pace::BULK);
    exchange(&mut kept, 2, 100, Pace::BULK); // its session goes on
    service.stop();
}

#[test]
fn what_could_not_be_opened_is_opened_as_soon_as_it_can_be() {
    sandbox!();
    netns("a");
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "hello");
    let udp = echo_udp(std::net::UdpSocket::bind("127.0.0.1:0").expect("free"));
    // others have all the places, each for another reason than its namespace
    let tcp = TcpListener::bind(at(4000)).expect("free");
    let inner = inside("a", || TcpListener::bind(at(80)).expect("free"));
    let datagrams = std::net::UdpSocket::bind(at(5300)).expect("free");
    fs::write("/run/file", "").expect("ours");
    let forwards = [
        format!("label=web,listen=127.0.0.1+4000,target={here}"),
        format!("listen=127.0.0.1+80,listen_namespace=a,target={here}"),
        format!("udp_listen=127.0.0.1+5300,udp_target={udp}"),
        format!("uds=/run/file/a.sock,target={here}"), // not a directory
        format!("listen=127.0.0.1+4001,target={here}"),
    ];
    let forwards: Vec<&str> = forwards.iter().map(String::as_str).collect();
    let service = forwarding(&forwards);
    let status = |text: &str| service.notifications.wait_for("STATUS", |status| status.starts_with(text));
    status("1 of 5 forwards");
    Wire::tcp(at(4001)).expect(b"hello");
    let line = service.process.stderr.wait_for("web: tcp 127.0.0.1:4000 is not served");
    assert!(line.contains("Address already in use") && line.ends_with("next try in 1 s"), "{line}");

    drop(tcp);
    let line = service.process.stderr.wait_for("web: 127.0.0.1:4000 leads to");
    assert!(line.contains("before, it was not served: cannot listen on 127.0.0.1:4000"), "{line}");
    status("2 of 5 forwards");
    Wire::tcp(at(4000)).expect(b"hello");
    drop((inner, datagrams));
    fs::remove_file("/run/file").expect("ours");
    status("5 forwards");
    inside("a", || Wire::tcp(at(80)).expect(b"hello"));
    Wire::unix(Path::new("/run/file/a.sock")).expect(b"hello");
    let asker = asker("127.0.0.1");
    asker.send_to(b"x", at(5300)).expect("sent");
    assert_eq!(asker.recv(&mut [0; 9]).expect("answered"), 1);
    // each was told once, however often it was tried
    assert_eq!(service.process.stderr.count("is not served"), 4);
    service.stop();

    // --strict does not wait
    let _taken = TcpListener::bind(at(4001)).expect("free again");
    let uds = format!("uds=/run/strict/a.sock,target={here}");
    let mut strict = pfwd().arg("--strict").args(["--forward", &uds, "--forward", forwards[4]]).start();
    assert_eq!(strict.process.wait().code(), Some(1));
    assert!(fs::read_dir("/run/strict").expect("it was made").next().is_none(), "nothing is left in there");
}

#[test]
fn a_configuration_that_is_broken_at_a_restart_costs_no_session_and_no_waiting_client() {
    sandbox!();
    netns("a");
    let there = echo_inside("a", "127.0.0.1", "");
    let good = format!(
        "[[forward]]\nlisten = \"127.0.0.1:4000\"\nnamespace = \"a\"\ntarget = \"{there}\"\n\
         [[forward]]\nuds = \"/run/a.sock\"\nnamespace = \"a\"\ntarget = \"{there}\"\n"
    );
    let config = Path::new("/run/pfwd.toml");
    fs::write(config, &good).expect("ours");
    let mut service = pfwd().args(["--config", "/run/pfwd.toml"]).start().ready();
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata("/run/a.sock").expect("served"));
    let mut old = [Wire::tcp(at(4000)), Wire::unix(Path::new("/run/a.sock"))];
    old.iter_mut().for_each(|wire| {
        send(&mut *wire, 1, 100, Pace::BULK).expect("it is taken");
        receive(&mut *wire, 1, 100, Pace::BULK).expect("it comes back");
    });
    fs::write(config, "[[forward]]\nlisten = 1\n").expect("ours");
    let mut waiting = Vec::new();
    for round in 1..=2 {
        restart(&mut service);
        service.process.stderr.wait_for("the configuration has errors: ");
        // who comes now waits
        waiting.extend([Wire::tcp(at(4000)), Wire::unix(Path::new("/run/a.sock"))]);
        old.iter_mut().for_each(|wire| {
            send(&mut *wire, round, 100, Pace::BULK).expect("it is taken");
            receive(&mut *wire, round, 100, Pace::BULK).expect("it comes back");
        });
        assert_eq!(service.process.stderr.count("connected after"), 0);
    }
    // mended, it is in force at the next reload, or the next start
    fs::write(config, &good).expect("ours");
    service.process.signal(Signal::SIGHUP);
    waiting.iter_mut().for_each(|wire| exchange(wire, 3, 1000, Pace::BULK));
    waiting.clear();
    fs::write(config, "[[forward]]\nlisten = 1\n").expect("ours");
    restart(&mut service);
    // the READY=1 of the reload may have been taken for that of the next process, which the next signal would end
    service.process.stderr.wait_for("the configuration has errors: ");
    let mut late = Wire::tcp(at(4000));
    fs::write(config, &good).expect("ours");
    restart(&mut service);
    exchange(&mut late, 4, 1000, Pace::BULK);
    assert_eq!(std::os::unix::fs::MetadataExt::ino(&fs::metadata("/run/a.sock").expect("served")), inode);
    let [tcp, unix] = &mut old;
    exchange(tcp, 5, 1000, Pace::BULK);
    exchange(unix, 6, 1000, Pace::BULK);
    service.stop();
    assert!(!Path::new("/run/a.sock").exists());
}
