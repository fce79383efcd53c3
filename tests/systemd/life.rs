//! The service's own life: what it cannot serve, crashes, hangs, stops, and the same under the system manager.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    service::{
        assert_no_complaints_but, assert_stops_clean, enable_now, events, main_pid, property, service_drop_in, settled,
        socket, text, wait_for_message,
    },
    support::{Pace, Wire, eventually, exchange},
    tree::{As, attempt, shell},
};

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

#[test]
fn a_bad_name_beside_a_good_one_is_refused_loudly_and_the_good_one_is_served() {
    let Some(tree) = tree!() else { return };
    tree.boot("look", As::Tester, || {
        socket("good", "127.0.0.1:1234", "work test.Echo");
        socket("bad", "127.0.0.1:1235", "work tost.Echo three words");
        socket("foreign", "127.0.0.1:1236", "work test.Echo+%zz"); // no specifier: systemd gives the unit's name instead
        enable_now(&["good", "bad", "foreign"]);
        exchange(&mut port(1234), 1, 10_000, Pace::CRUMBS);
        assert!(property("StatusText").starts_with("1 of 3 listeners"), "{}", property("StatusText"));
        assert!(shell("systemctl --user status qrexec-connect.service").contains("Status: \"1 of 3 listeners"));
        eventually("the journal has both", || events("listener-refused").len() >= 2);
        let refused = events("listener-refused");
        assert_eq!(refused.len(), 2, "{refused:#?}");
        for event in &refused {
            assert_eq!(text(event, "PRIORITY"), "3");
        }
        let of = |listener: &str| {
            let event = refused.iter().find(|e| text(e, "LISTENER") == listener);
            text(event.unwrap_or_else(|| panic!("{refused:#?}")), "MESSAGE").to_owned()
        };
        assert!(of("127.0.0.1:1235").contains("work tost.Echo three words"), "{}", of("127.0.0.1:1235"));
        let dropped = of("127.0.0.1:1236");
        assert!(
            dropped.contains("qrexec-connect-foreign.socket") && dropped.contains("FileDescriptorName="),
            "{dropped}"
        );

        // repaired while it runs, it is served
        socket("foreign", "127.0.0.1:1236", "work test.Echo");
        shell("systemctl --user daemon-reload; systemctl --user restart qrexec-connect-foreign.socket");
        exchange(&mut port(1236), 2, 10_000, Pace::CRUMBS);
        eventually("the status says so", || property("StatusText").starts_with("2 of 3 listeners"));
    });
}

#[test]
fn timing_a_service_that_hangs_is_killed_by_the_watchdog_and_comes_back() {
    let Some(tree) = tree!() else { return };
    tree.boot("hang", As::Tester, || {
        service_drop_in("watchdog", "[Service]\nWatchdogSec=1\nTimeoutAbortSec=1\n");
        socket("echo", "127.0.0.1:1234", "work test.Echo");
        enable_now(&["echo"]);
        let mut wire = port(1234);
        exchange(&mut wire, 1, 1000, Pace::BULK);
        let (first, began) = (main_pid(), Instant::now());
        // alive, it outlives several periods of the watchdog
        let mut wire = port(1234);
        while began.elapsed() < Duration::from_millis(2500) {
            wire.write_all(b"x").expect("it is served");
            wire.expect(b"x");
        }
        assert_eq!(main_pid(), first);
        shell(&format!("kill -STOP {first}"));
        eventually("another process serves", || ![0, first].contains(&main_pid()));
        exchange(&mut port(1234), 2, 1000, Pace::BULK);
        assert_no_complaints_but(&[
            "Watchdog timeout",
            "Killing process",
            "code=killed",
            "code=dumped",
            "'watchdog'",
            "State 'stop-watchdog' timed out",
        ]);
        assert_stops_clean();
    });
}

#[test]
fn timing_a_stop_lets_sessions_end_for_as_long_as_they_may_whatever_systemd_allows() {
    let Some(tree) = tree!() else { return };
    tree.boot("drain", As::Tester, || {
        service_drop_in("stop", "[Service]\nTimeoutStopSec=1\n");
        socket("long", "127.0.0.1:1234", "work test.Echo drain_timeout=4");
        socket("short", "127.0.0.1:1235", "work test.Echo drain_timeout=1");
        enable_now(&["long", "short"]);
        let mut wires = [port(1234), port(1234), port(1235)];
        for wire in &mut wires {
            wire.write_all(b"before").expect("it is served");
            wire.expect(b"before");
        }
        let [mut stays, mut leaves, mut short] = wires;
        shell("systemctl --user stop 'qrexec-connect-*.socket'");
        settled(); // not in the middle of the restart that closes the ports
        let began = Instant::now();
        shell("systemctl --user stop --no-block qrexec-connect.service");
        wait_for_message("service-draining", "up to 4 s for 3 sessions");
        let refused = std::net::TcpStream::connect(("127.0.0.1", 1234)).expect_err("nobody listens any more");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        short.expect_reset();
        assert!((1.0..3.5).contains(&began.elapsed().as_secs_f32()), "{:?}", began.elapsed());
        // well beyond TimeoutStopSec=
        while began.elapsed() < Duration::from_millis(2500) {
            stays.write_all(b"during").expect("it is still served");
            stays.expect(b"during");
        }
        exchange(&mut leaves, 1, 1000, Pace::BULK);
        assert_eq!(property("ActiveState"), "deactivating");
        eventually("the status says what it waits for", || property("StatusText") == "stopping, 1 session left");
        stays.expect_reset();
        assert!(began.elapsed() > Duration::from_millis(3900), "{:?}", began.elapsed());
        eventually("it has stopped", || property("ActiveState") == "inactive");
        assert_eq!(property("Result"), "success");
        eventually("the journal has all ends", || events("session-end").len() == 3);
        let mut ends: Vec<_> = events("session-end").iter().map(|e| text(e, "END").to_owned()).collect();
        ends.sort();
        assert_eq!(ends, ["drained", "drained", "eof"]);
        let last = wait_for_message("service-stopped", "finished");
        assert!(last.contains("3 sessions were open; 1 finished, 2 cut"), "{last}");
        assert_no_complaints_but(&[]);
        assert_stops_clean();
    });
}

#[test]
fn a_stop_of_everything_at_once_drains() {
    let Some(tree) = tree!() else { return };
    tree.boot("drain", As::Tester, || {
        for (name, listen) in [("one", "127.0.0.1:1234"), ("two", "127.0.0.1:1235"), ("three", "127.0.0.1:1236")] {
            socket(name, listen, "work test.Echo drain_timeout=1");
        }
        enable_now(&["one", "two", "three"]);
        for round in 1..=3 {
            shell("systemctl --user start 'qrexec-connect-*.socket' --all");
            let mut wires = [1234, 1235, 1236].map(port);
            for wire in &mut wires {
                wire.write_all(b"x").expect("it is served");
                wire.expect(b"x");
            }
            // each socket that stops asks for a restart, which must not come instead of the stop
            shell("systemctl --user stop 'qrexec-connect-*.socket' qrexec-connect.service");
            wires.iter_mut().for_each(Wire::expect_reset);
            assert_eq!(property("ActiveState"), "inactive");
            eventually("the journal has all ends", || events("session-end").len() == 3 * round);
            let ends = events("session-end");
            assert!(ends.iter().all(|e| text(e, "END") == "drained"), "{ends:#?}");
        }
        assert_no_complaints_but(&[]);
        assert_stops_clean();
    });
}

#[test]
fn timing_a_second_sigterm_ends_a_drain() {
    let Some(tree) = tree!() else { return };
    tree.boot("drain", As::Tester, || {
        socket("long", "127.0.0.1:1234", "work test.Echo drain_timeout=60");
        enable_now(&["long"]);
        let mut wire = port(1234);
        wire.write_all(b"x").expect("it is served");
        wire.expect(b"x");
        shell("systemctl --user stop qrexec-connect-long.socket");
        settled();
        let began = Instant::now();
        shell("systemctl --user stop --no-block qrexec-connect.service");
        wait_for_message("service-draining", "up to 60 s for 1 session");
        shell("systemctl --user kill --kill-whom=main qrexec-connect.service");
        wire.expect_reset();
        eventually("it has stopped", || property("ActiveState") == "inactive");
        assert!(began.elapsed() < Duration::from_secs(20));
        assert_stops_clean();
    });
}

#[test]
fn timing_the_whole_manager_goes_down_in_two_seconds_whatever_sessions_may_take() {
    let Some(tree) = tree!() else { return };
    tree.boot("enable", As::Tester, || {
        socket("long", "127.0.0.1:1234", "work test.Echo drain_timeout=60");
        socket("direct", "127.0.0.1:1235", "target=127.0.0.1+7001 drain_timeout=60".replace(' ', ",").as_str());
        enable_now(&["long", "direct"]);
    });
    tree.boot("go down", As::Root, || {
        let upstream = std::net::TcpListener::bind("127.0.0.1:7001").expect("a free port");
        let mut wire = port(1234);
        wire.write_all(b"x").expect("it is served");
        wire.expect(b"x");
        let mut direct = port(1235);
        let (mut far, _) = upstream.accept().expect("the service connects");
        far.write_all(b"y").expect("connected");
        direct.expect(b"y");
        let began = Instant::now();
        shell("systemctl stop 'user@*.service'");
        let took = began.elapsed();
        assert!((1.5..6.0).contains(&took.as_secs_f32()), "{took:?}");
        wire.expect_reset();
        direct.expect_reset();
        assert!(matches!(far.read(&mut [0; 8]), Err(_) | Ok(0)));
        let ends = || shell("journalctl -q -o cat -t qrexec-connect END=drained | wc -l");
        eventually("the journal has both ends", || ends() == "2");
        let left = crate::service::processes_called(&["qrexec-connect", "qrexec-client-v"]);
        assert!(left.is_empty(), "left behind: {left:?}");
    });
}

#[test]
fn shipped_units_and_examples_are_all_right_for_systemd_analyze() {
    let Some(tree) = tree!() else { return };
    tree.boot("verify", As::Root, || {
        for (manager, examples) in [("user", "gitweb ssh-agent metrics"), ("system", "system-gitweb")] {
            shell(&format!(
                "for e in {examples}; do cp /usr/share/doc/qrexec-connect/examples/qrexec-connect-$e.socket /etc/systemd/{manager}/; done"
            ));
            let units = shell(&format!("ls -d /usr/lib/systemd/{manager}/qrexec-connect*.service /etc/systemd/{manager}/*.socket"));
            assert!(units.lines().count() >= 4, "{units}");
            let units = units.replace('\n', " ");
            let (code, stdout, stderr) = attempt(&format!("XDG_RUNTIME_DIR=/run systemd-analyze --{manager} --man=no verify {units}"));
            assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(0), "", ""), "{manager}");
        }
    });
}

#[test]
fn the_status_counts_those_who_come_while_the_service_starts() {
    let Some(tree) = tree!() else { return };
    tree.boot("burst", As::Tester, || {
        socket("echo", "127.0.0.1:1234", "work test.Echo");
        enable_now(&["echo"]);
        for _ in 0..10 {
            // they wait in the backlog while it starts, and are taken up around its READY
            let wires: Vec<_> = (0..8).map(|_| port(1234)).collect();
            eventually("all are counted", || property("StatusText") == "1 listener, 8 sessions");
            drop(wires);
            eventually("all have gone", || property("StatusText") == "1 listener, 0 sessions");
            shell("systemctl --user stop qrexec-connect.service");
        }
    });
}
