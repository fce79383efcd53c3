//! Sockets come and go, the service is restarted and replaced; sessions stay.

use std::{fs, io::Write as _, net::SocketAddr, path::PathBuf};

use crate::{
    crowd::{Crowd, Kind, Knocker, Place, Rate},
    service::{
        assert_each_session_is_told_once, assert_no_complaints_but, assert_nothing_leaked, assert_stops_clean, calls,
        enable_now, events, main_pid, messages, property, restart, service_drop_in, settled, socket, text,
        wait_for_message,
    },
    support::{Pace, Wire, eventually, exchange, sample},
    tree::{As, attempt, installed_fake, shell},
};

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn here(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").expect("with-systemd sets it")).join(name)
}

/// Where the crowd's own server is.
const SERVER: u16 = 7001;

#[test]
fn two_thousand_sessions_notice_nothing_while_sockets_come_and_go_and_the_service_restarts() {
    let Some(tree) = tree!() else { return };
    tree.boot("restart", As::Tester, || {
        let fake = installed_fake();
        // TCP to TCP, UNIX to UNIX, and across; through calls; to a server that comes late; and undecided calls
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001,max_connections=4000");
        socket("unix", "%t/unix", "uds=%t/server,max_connections=4000");
        socket("across", "%t/across", "target=127.0.0.1+7001");
        socket("call", "127.0.0.1:2002", "work test.Tcp+7001");
        socket("late", "127.0.0.1:2003", "uds=%t/late,connect_timeout=300");
        socket("gate", "127.0.0.1:2004", "other test.Gate+open");
        enable_now(&["tcp", "unix", "across", "call", "late", "gate"]);

        let mut crowd = Crowd::new();
        let [tcp, unix, across] = [Place::Tcp(2001), Place::Unix(here("unix")), Place::Unix(here("across"))];
        let [call, late, gate] = [2002, 2003, 2004].map(Place::Tcp);
        crowd.serve(&Place::Tcp(SERVER));
        crowd.serve(&Place::Unix(here("server")));
        crowd.join(900, &tcp, Kind::Echo, Rate::CALM);
        crowd.join(900, &unix, Kind::Echo, Rate::CALM);
        for place in [&tcp, &unix, &across] {
            crowd.join(4, place, Kind::Echo, Rate::BUSY);
            crowd.join(30, place, Kind::PeerEnded, Rate::CALM);
            crowd.join(30, place, Kind::ServerEnded, Rate::CALM);
        }
        crowd.join(20, &call, Kind::Echo, Rate::CALM);
        crowd.join(2, &call, Kind::Echo, Rate::BUSY);
        crowd.join(4, &call, Kind::PeerEnded, Rate::CALM);
        crowd.join(4, &call, Kind::ServerEnded, Rate::CALM);
        crowd.wait_until_served_but(0);
        crowd.join(20, &late, Kind::Echo, Rate::CALM);
        crowd.join(4, &gate, Kind::Plain, Rate::CALM);
        fake.wait_for_started(30 + 4);
        eventually("all sessions are there", || {
            property("StatusText").ends_with(&format!(", {} sessions", crowd.len()))
        });
        assert!(crowd.len() >= 2030, "{}", crowd.len());
        let children = calls();
        assert_eq!(children.len(), 34);

        let knockers = [Knocker::start(tcp), Knocker::start(unix)];
        crowd.longest_stall();
        let mut pids = vec![main_pid()];
        let rounds = sample("rounds of one command", 8, 20);
        for n in 0..rounds {
            let flowing = crowd.bytes();
            match n % 4 {
                0 => {
                    socket("new", "127.0.0.1:2099", "work test.Echo");
                    enable_now(&["new"]);
                    // it just works, and so does what was there
                    exchange(&mut port(2099), n as u64, 10_000, Pace::CRUMBS);
                }
                1 => _ = shell("systemctl --user disable --now qrexec-connect-new.socket"),
                2 => _ = shell("systemctl --user try-restart qrexec-connect.service"),
                _ => _ = shell("systemctl --user restart qrexec-connect.service"),
            }
            settled();
            pids.push(main_pid());
            crowd.wait_for_bytes(100_000);
            knockers.iter().for_each(|knocker| knocker.wait_for_more(3));
            assert!(crowd.bytes() > flowing);
            assert_eq!(crowd.gone(), 0, "sessions were cut in round {n}");
        }
        pids.dedup();
        assert!(pids.len() > rounds, "each round was another process: {pids:?}");
        let stall = crowd.longest_stall();
        assert_eq!(calls(), children, "no child was asked again, none was lost");
        let knocks = knockers.map(|knocker| knocker.assert_never_refused(2 * rounds));
        println!("stall {stall:?}, knocks {knocks:?}");

        // those who waited all the time are served now
        crowd.serve(&Place::Unix(here("late")));
        fake.open("open");
        crowd.wait_until_served_but(0);
        let n = crowd.len();
        let bytes = crowd.dismiss_unharmed();
        assert!(bytes > rounds as u64 * 1_000_000, "{bytes}");
        let by_new = rounds.div_ceil(4);
        assert_eq!(fake.started(), 34 + by_new, "each call was made once, {by_new} of them by the new socket");
        assert_nothing_leaked();
        eventually("the journal has it all", || {
            events("session-end").len() == n + by_new + knocks.iter().map(|k| k.attempts).sum::<usize>()
        });
        let told = assert_each_session_is_told_once();
        assert_eq!(told, n + by_new + knocks.iter().map(|k| k.attempts).sum::<usize>());
        assert!(events("session-end").iter().all(|e| text(e, "END") == "eof"));
        assert_eq!(messages("handover-lost"), <[String; 0]>::default());
        assert_no_complaints_but(&[]);
        assert_stops_clean();
    });
}

#[test]
fn a_departing_socket_leaves_its_sessions_alone_or_drains_them_as_it_says() {
    let Some(tree) = tree!() else { return };
    tree.boot("depart", As::Tester, || {
        socket("keeps", "127.0.0.1:2001", "work test.Echo");
        socket("drains", "127.0.0.1:2002", "work test.Echo on_remove=drain drain_timeout=2");
        socket("stays", "127.0.0.1:2003", "work test.Echo");
        enable_now(&["keeps", "drains", "stays"]);
        let mut wires = [port(2001), port(2002), port(2002), port(2003)];
        let greet = |wire: &mut Wire| {
            wire.write_all(b"hello").expect("it is served");
            wire.expect(b"hello");
        };
        wires.iter_mut().for_each(greet);
        let [mut kept, mut drained, mut leaving, mut stays] = wires;
        shell("systemctl --user disable --now qrexec-connect-keeps.socket qrexec-connect-drains.socket");
        settled();
        for n in [2001, 2002] {
            let refused = std::net::TcpStream::connect(("127.0.0.1", n)).expect_err("the port is closed");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        assert_eq!(property("StatusText"), "1 listener, 4 sessions");
        for wire in [&mut kept, &mut drained, &mut leaving, &mut stays] {
            greet(wire);
        }
        exchange(&mut leaving, 1, 1000, Pace::BULK);
        drained.expect_reset();
        eventually("that is told", || events("session-end").len() == 2);
        let mut ends: Vec<_> = events("session-end").iter().map(|e| text(e, "END").to_owned()).collect();
        ends.sort();
        assert_eq!(ends, ["drained", "eof"]);
        assert!(!messages("listener-removed").is_empty());
        restart();
        exchange(&mut kept, 2, 1000, Pace::BULK);
        exchange(&mut stays, 3, 1000, Pace::BULK);
        // with its last socket gone, and its last session, the service ends
        let mut last = port(2003);
        greet(&mut last);
        shell("systemctl --user disable --now qrexec-connect-stays.socket");
        settled();
        greet(&mut last);
        exchange(&mut last, 4, 1000, Pace::BULK);
        eventually("the service has ended", || property("ActiveState") == "inactive");
        assert_eq!(assert_each_session_is_told_once(), 5);
        assert_no_complaints_but(&[]);
        assert_stops_clean();
    });
}

#[test]
fn a_reload_changes_new_sessions_and_a_bad_configuration_changes_nothing() {
    let Some(tree) = tree!() else { return };
    tree.boot("reload", As::Tester, || {
        let configure = |text: &str| {
            let home = PathBuf::from(std::env::var_os("HOME").expect("with-systemd sets it"));
            fs::write(home.join(".config/qrexec-connect.toml"), text).expect("one's own home");
        };
        socket("web", "127.0.0.1:2001", "web");
        configure("[[forward]]\nlabel = \"web\"\nqrexec = \"work test.Args+one\"\n");
        enable_now(&["web"]);
        let answer = || port(2001).read_to_end().trim_ascii().escape_ascii().to_string();
        assert_eq!(answer(), "work test.Args+one");
        let pid = main_pid();
        configure("[[forward]]\nlabel = \"web\"\nqrexec = \"work test.Echo+two\"\n");
        assert_eq!(answer(), "work test.Args+one", "before the reload nothing changes");
        shell("systemctl --user reload qrexec-connect.service");
        let mut echo = port(2001);
        echo.write_all(b"live").expect("it is served");
        echo.expect(b"live");
        for bad in ["[[forward]]\nlabel = \"web\"\nqrexec = \"one-word\"\n", "[[forward", ""] {
            configure(bad);
            let before = messages("configuration-rejected").len();
            assert_ne!(attempt("systemctl --user reload qrexec-connect.service").0, Some(0), "the operator sees it");
            eventually("it is told", || messages("configuration-rejected").len() == before + 1);
            assert_eq!(property("ActiveState"), "active");
            exchange(&mut port(2001), 1, 1000, Pace::BULK);
        }
        configure("[[forward]]\nlabel = \"web\"\nqrexec = \"work test.Args+three\"\n");
        shell("systemctl --user reload qrexec-connect.service");
        assert_eq!(answer(), "work test.Args+three");
        exchange(&mut echo, 2, 1000, Pace::BULK);
        assert_eq!(main_pid(), pid, "a reload is no restart");
        let rejected = messages("configuration-rejected").concat();
        assert!(rejected.contains("one-word") && rejected.contains("qrexec-connect.toml:"), "{rejected}");
        assert_no_complaints_but(&["Reload failed for", "Control process exited"]);
        assert_stops_clean();
    });
}

#[test]
fn a_newer_program_in_the_place_of_the_old_takes_over_under_load() {
    let Some(tree) = tree!() else { return };
    tree.boot("upgrade", As::Tester, || {
        shell("mkdir ~/bin; cp /usr/bin/qrexec-connect ~/bin/");
        service_drop_in("mine", "[Service]\nExecStart=\nExecStart=%h/bin/qrexec-connect serve\n");
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        socket("call", "127.0.0.1:2002", "work test.Tcp+7001");
        enable_now(&["tcp", "call"]);
        let mut crowd = Crowd::new();
        crowd.serve(&Place::Tcp(SERVER));
        crowd.join(200, &Place::Tcp(2001), Kind::Echo, Rate::CALM);
        crowd.join(4, &Place::Tcp(2001), Kind::Echo, Rate::BUSY);
        crowd.join(20, &Place::Tcp(2002), Kind::Echo, Rate::CALM);
        crowd.wait_until_served_but(0);
        let knocker = Knocker::start(Place::Tcp(2001));
        for n in 0..3 {
            // as a package manager does it: another file in its place
            shell("cp ~/bin/qrexec-connect ~/bin/new; printf newer >>~/bin/new; mv ~/bin/new ~/bin/qrexec-connect");
            let running = format!("/proc/{}/exe", main_pid());
            let old = fs::read_link(&running).expect("it runs");
            assert!(old.to_string_lossy().ends_with("(deleted)"), "{n}: {old:?}");
            restart();
            let new = fs::read_link(format!("/proc/{}/exe", main_pid())).expect("it runs");
            assert!(new.ends_with("bin/qrexec-connect"), "{n}: {new:?}");
            crowd.wait_for_bytes(1_000_000);
            knocker.wait_for_more(8);
        }
        knocker.assert_never_refused(20);
        crowd.dismiss_unharmed();
        assert_nothing_leaked();
        assert_no_complaints_but(&[]);
        assert_stops_clean();
    });
}

#[test]
fn a_session_with_a_record_of_an_unknown_version_ends_with_the_reason_and_the_others_go_on() {
    let Some(tree) = tree!() else { return };
    tree.boot("future", As::Tester, || {
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        enable_now(&["tcp"]);
        let mut crowd = Crowd::new();
        crowd.serve(&Place::Tcp(SERVER));
        crowd.join(10, &Place::Tcp(2001), Kind::Echo, Rate::CALM);
        crowd.wait_until_served_but(0);
        // in between, a later version of the program is in charge for a moment
        let run = format!(
            "{} --exact {} --nocapture",
            std::env::current_exe().expect("it runs").display(),
            crate::future::TEST
        );
        service_drop_in(
            "future",
            &format!("[Service]\nEnvironment={}=1\nExecStart=\nExecStart={run}\n", crate::future::MARK),
        );
        shell("systemctl --user daemon-reload; systemctl --user restart qrexec-connect.service");
        assert_eq!(property("StatusText"), "a later version");
        shell("rm ~/.config/systemd/user/qrexec-connect.service.d/future.conf; systemctl --user daemon-reload");
        shell("systemctl --user restart qrexec-connect.service");
        settled();
        let lost = wait_for_message("handover-lost", "version 99");
        let gone = &events("handover-lost")[0];
        assert!(lost.contains(text(gone, "SESSION_ID")), "{lost}");
        crowd.wait_for_gone(1);
        crowd.wait_for_bytes(50_000);
        assert_eq!(crowd.gone(), 1);
        assert_eq!(property("StatusText"), "1 listener, 9 sessions");
        let harmed = crowd.dismiss().expect_err("one session has ended early");
        assert_eq!(harmed.len(), 1, "{harmed:?}");
        eventually("all ends are told", || events("session-end").len() == 9);
        assert_eq!(assert_each_session_is_told_once(), 10);
        assert_nothing_leaked();
        assert_no_complaints_but(&[]);
        assert_stops_clean();
    });
}
