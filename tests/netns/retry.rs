//! Dials of targets that come late: `retry_timeout`.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use crate::{
    restart::restart,
    sandbox::{echo_tcp, forwarding, inside, netns, pfwd, run, told_address},
    support::{Wire, eventually},
};

/// An address that nobody listens on yet.
fn unused(ip: &str) -> SocketAddr {
    TcpListener::bind(format!("{ip}:0")).expect("free").local_addr().expect("bound")
}

#[test]
fn a_target_that_listens_late_is_waited_for_and_without_the_key_it_is_not() {
    sandbox!();
    for ip in ["127.0.0.1", "[::1]"] {
        let target = unused(ip);
        let text = target.to_string();
        let service = pfwd()
            .args(["--forward", &format!("listen=127.0.0.1:0,target={text},retry_timeout=60,connect_timeout=1")])
            .args(["--forward", &format!("label=plain,listen=127.0.0.1:0,target={text}")])
            .with_control()
            .start()
            .ready();
        let line = service.process.stderr.wait_for("plain: 127.0.0.1:");
        let plain = line.split(' ').find_map(|word| word.parse().ok()).expect("its address");
        Wire::tcp(plain).expect_reset();
        let end = service.end();
        assert!(end.note.contains("nobody listens there (retry_timeout=SECONDS retries for that long)"), "{end:?}");
        assert_eq!(service.process.stderr.count("next try in"), 0, "it was dialled once");
        let mut wire = Wire::tcp(told_address(&service, &format!("tcp {text}")));
        service.process.stderr.wait_for("next try in 0.03 s");
        // Retries go on after connect_timeout.
        let old = |session: &serde_json::Value| session["age_ms"].as_u64().is_some_and(|age| age > 1_100);
        eventually("the session is older", || service.asking().sessions().iter().any(old));
        echo_tcp(TcpListener::bind(target).expect("still free"), "late ");
        wire.expect(b"late ");
        service.stop();
    }
}

#[test]
fn a_try_that_begins_late_has_the_whole_connect_timeout_and_no_more() {
    sandbox!();
    // The address is of this host and refuses; without the address, what is sent there goes nowhere.
    run("ip link add hole type veth peer name nowhere");
    run("ip link set hole up arp off");
    run("ip link set nowhere up");
    run("ip addr add 10.9.9.1/32 dev hole");
    run("ip route add 10.9.9.9/32 dev hole");
    run("ip addr add 10.9.9.9/32 dev lo");
    let service = pfwd()
        .args(["--forward", "listen=127.0.0.1:0,target=10.9.9.9:70,retry_timeout=300,connect_timeout=2"])
        .with_control()
        .start()
        .ready();
    let mut wire = Wire::tcp(told_address(&service, "tcp 10.9.9.9:70"));
    service.process.stderr.wait_for("next try in 0.03 s");
    let old = |session: &serde_json::Value| session["age_ms"].as_u64().is_some_and(|age| age > 2_100);
    eventually("the session is older than connect_timeout", || service.asking().sessions().iter().any(old));
    run("ip addr del 10.9.9.9/32 dev lo");
    wire.expect_reset();
    let end = service.end();
    assert!(end.end == "timeout" && end.note.contains("not connected within 2 s: nobody answers"), "{end:?}");
    let after = |line: String| line.split(": timeout after ").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    let ms = service.log().into_iter().find_map(after).expect("the end is logged");
    assert!(ms >= 2_100 + 2_000, "a try has 2 s, however late it begins: {ms} ms");
    service.stop();
}

#[test]
fn timing_a_target_that_listens_after_two_seconds_is_reached_within_a_second() {
    sandbox!();
    let target = unused("127.0.0.1");
    let text = target.to_string();
    let service = pfwd()
        .args(["--forward", &format!("listen=127.0.0.1:0,target={text},retry_timeout=5")])
        .args(["--forward", &format!("label=plain,listen=127.0.0.1:0,target={text}")])
        .start()
        .ready();
    let line = service.process.stderr.wait_for("plain: 127.0.0.1:");
    Wire::tcp(line.split(' ').find_map(|word| word.parse().ok()).expect("its address")).expect_reset();
    let after = |line: &str, word: &str| line.split(word).nth(1)?.split(' ').next()?.parse::<u64>().ok();
    let ended = service.process.stderr.wait_for("dial-failed after ");
    assert!(after(&ended, "dial-failed after ").is_some_and(|ms| ms < 50), "without the key: {ended}");
    let began = Instant::now();
    let mut wire = Wire::tcp(told_address(&service, &format!("tcp {text}")));
    thread::sleep(Duration::from_secs(2).saturating_sub(began.elapsed()));
    echo_tcp(TcpListener::bind(target).expect("still free"), "late ");
    wire.expect(b"late ");
    let connected = service.process.stderr.wait_for("connected after ");
    assert!(after(&connected, "connected after ").is_some_and(|ms| (1_900..3_000).contains(&ms)), "{connected}");
    service.stop();
}

#[test]
fn timing_retries_end_that_long_after_accept_also_over_a_restart() {
    sandbox!();
    let target = unused("127.0.0.1");
    let forward = format!("target=127.0.0.1+{},retry_timeout=5", target.port());
    let mut service = pfwd().tcp(&forward).with_control().start().ready();
    let mut wire = service.connect(0);
    let old = |session: &serde_json::Value| session["age_ms"].as_u64().is_some_and(|age| age > 3_000);
    eventually("the session is older", || service.asking().sessions().iter().any(old));
    restart(&mut service);
    wire.expect_reset();
    let line = service.process.stderr.wait_for("dial-failed after "); // the second process ends it
    let ms = line.split("dial-failed after ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(ms.is_some_and(|ms| (5_000..8_000).contains(&ms)), "{line}");
    service.stop();
}

#[test]
fn retries_end_with_their_time_and_with_the_peer() {
    sandbox!();
    let target = unused("127.0.0.1");
    let service = forwarding(&[
        &format!("listen=127.0.0.1:0,target={target},retry_timeout=1"),
        "listen=127.0.0.1:0,uds=/run/nobody,retry_timeout=0",
        "listen=127.0.0.1:0,uds=/run/nobody,retry_timeout=300",
    ]);
    Wire::tcp(told_address(&service, &format!("tcp {target}"))).expect_reset();
    let end = service.end();
    assert!(end.note.contains("nobody listens there (retries end after 1 s: retry_timeout)"), "{end:?}");
    let line = service
        .process
        .stderr
        .so_far()
        .iter()
        .filter(|line| line.contains("leads to unix /run/nobody"))
        .cloned()
        .collect::<Vec<_>>();
    let addresses: Vec<SocketAddr> =
        line.iter().map(|line| line.split(' ').find_map(|word| word.parse().ok()).expect("an address")).collect();
    Wire::tcp(addresses[0]).expect_reset();
    assert!(service.ends(2)[1].note.contains("its endpoint has not started"), "{:?}", service.ends(2));
    let wire = Wire::tcp(addresses[1]);
    service.process.stderr.wait_for("/run/nobody does not exist yet");
    wire.reset();
    assert!(service.ends(3)[2].note.contains("the peer disconnected"), "{:?}", service.ends(3));
    service.stop();
}

#[test]
fn a_namespace_and_its_routes_may_come_late_too() {
    sandbox!();
    let service = forwarding(&[
        "listen=127.0.0.1:0,target=127.0.0.1:70,namespace=late,retry_timeout=60",
        "listen=127.0.0.1:0,target=10.9.0.1:70,namespace=late,retry_timeout=60",
        "listen=127.0.0.1:0,target=[2001:db8:9::1]:70,namespace=late,retry_timeout=60",
    ]);
    let mut wires = [
        (Wire::tcp(told_address(&service, "tcp 127.0.0.1:70 in late")), "one "),
        (Wire::tcp(told_address(&service, "tcp 10.9.0.1:70 in late")), "two "),
        (Wire::tcp(told_address(&service, "tcp [2001:db8:9::1]:70 in late")), "six "),
    ];
    let missing = "there is no network namespace at /run/netns/late: see `ip netns list` (retries end after 60 s";
    service.process.stderr.wait_for_nth(missing, 3); // each was dialled
    netns("late");
    // no route yet (ENETUNREACH), then nobody who listens, then a server
    service.process.stderr.wait_for("Network is unreachable");
    for (to, says) in [("10.9.0.1/32", "two "), ("2001:db8:9::1/128", "six ")] {
        run(&format!("ip -n late addr add {to} dev lo{}", if to.contains(':') { " nodad" } else { "" }));
        let ip = to.split('/').next().expect("an address");
        let at = if ip.contains(':') { format!("[{ip}]:70") } else { format!("{ip}:70") };
        echo_tcp(inside("late", || TcpListener::bind(at).expect("free")), says);
    }
    echo_tcp(inside("late", || TcpListener::bind("127.0.0.1:70").expect("free")), "one ");
    for (wire, says) in &mut wires {
        wire.expect(says.as_bytes());
    }
    service.stop();
}

/// As between the two steps of `ip netns add`.
#[test]
fn a_file_in_the_place_of_a_namespace_is_one_that_comes_late() {
    sandbox!();
    netns("other");
    echo_tcp(inside("other", || TcpListener::bind("127.0.0.1:70").expect("free")), "there ");
    fs::write("/run/netns/half", "").expect("ours");
    let service = forwarding(&["listen=127.0.0.1:0,target=127.0.0.1:70,namespace=half,retry_timeout=60"]);
    let mut wire = Wire::tcp(told_address(&service, "tcp 127.0.0.1:70 in half"));
    service
        .process
        .stderr
        .wait_for("/run/netns/half is not a network namespace: `ip netns add` makes one (retries end");
    run("mount --bind /run/netns/other /run/netns/half");
    wire.expect(b"there ");
    service.stop();
}

#[test]
fn a_restart_goes_on_with_retries() {
    sandbox!();
    let late = unused("127.0.0.1");
    let mut service = pfwd().tcp(&format!("target=127.0.0.1+{},retry_timeout=60", late.port())).start().ready();
    let mut wire = service.connect(0);
    service.process.stderr.wait_for("next try in 0.03 s");
    restart(&mut service);
    service.process.stderr.wait_for("next try in ");
    echo_tcp(TcpListener::bind(late).expect("still free"), "late ");
    wire.expect(b"late ");
    service.stop();
}
