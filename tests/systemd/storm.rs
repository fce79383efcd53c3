//! Many things at once: sockets in parallel and in bursts, restarts upon restarts, the manager itself replaced.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    crowd::{Crowd, Kind, Knocker, Place, Rate},
    service::{
        assert_each_session_is_told_once, assert_no_complaints_but, assert_nothing_leaked, assert_stops_clean,
        enable_now, events, journal, main_pid, messages, property, restart, service_drop_in, settled, socket, units,
    },
    support::{Pace, Wire, eventually, exchange, sample},
    tree::{As, attempt, installed_fake, shell},
};

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// A crowd of all kinds: through `tcp` (2001) and through calls (2002).
fn crowd_of_all_kinds(n: usize) -> Crowd {
    socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
    socket("call", "127.0.0.1:2002", "work test.Tcp+7001");
    shell(&format!("systemctl --user daemon-reload; systemctl --user start {}", units(&["tcp", "call"])));
    let mut crowd = Crowd::new();
    crowd.serve(&Place::Tcp(7001));
    crowd.join(n, &Place::Tcp(2001), Kind::Echo, Rate::CALM);
    crowd.join(3, &Place::Tcp(2001), Kind::Echo, Rate::BUSY);
    crowd.join(8, &Place::Tcp(2002), Kind::Echo, Rate::CALM);
    crowd.join(1, &Place::Tcp(2002), Kind::Echo, Rate::BUSY);
    crowd.wait_until_served_but(0);
    crowd
}

/// The end of such a test: all streams whole, nothing left, nobody complained.
#[track_caller]
fn unharmed(crowd: Crowd, calls: usize) {
    settled();
    crowd.wait_for_bytes(500_000);
    crowd.dismiss_unharmed();
    assert_eq!(installed_fake().started(), calls, "no call was made twice");
    assert_nothing_leaked();
    assert_each_session_is_told_once();
    assert_eq!(messages("handover-lost"), <[String; 0]>::default());
    assert_no_complaints_but(&[]);
    assert_stops_clean();
}

fn storm_sockets() -> Vec<String> {
    let names: Vec<_> = (0..20).map(|n| format!("storm{n}")).collect();
    for (name, n) in names.iter().zip(3000..) {
        socket(name, &format!("127.0.0.1:{n}"), "target=127.0.0.1+7001");
    }
    names
}

/// Through a port that leads to the crowd's server.
#[track_caller]
fn assert_serves(n: u16) {
    let mut wire = port(n);
    std::io::Write::write_all(&mut wire, b"e\0\0\0\0\0\0\0\0").expect("it is served");
    exchange(&mut wire, n.into(), 2000, Pace::BULK);
}

#[test]
fn twenty_sockets_that_start_in_parallel_are_all_served() {
    let Some(tree) = tree!() else { return };
    tree.boot("storm", As::Tester, || {
        let names = storm_sockets();
        let crowd = crowd_of_all_kinds(200);
        let knocker = Knocker::start(Place::Tcp(2001));
        // twenty systemctl at once
        let started: Vec<_> = names
            .iter()
            .map(|name| {
                let unit = format!("qrexec-connect-{name}.socket");
                Command::new("systemctl").args(["--user", "start", &unit]).spawn().expect("systemctl is there")
            })
            .collect();
        for mut systemctl in started {
            assert!(systemctl.wait().expect("our child").success());
        }
        (3000..3020).for_each(assert_serves);
        knocker.wait_for_more(10);
        settled();
        assert!(property("StatusText").starts_with("22 listeners, "), "{}", property("StatusText"));
        // one systemctl, one transaction, each way
        let all: Vec<_> = names.iter().map(String::as_str).collect();
        shell(&format!("systemctl --user stop {}", units(&all)));
        settled();
        assert!(property("StatusText").starts_with("2 listeners, "), "{}", property("StatusText"));
        shell(&format!("systemctl --user start {}", units(&all)));
        (3000..3020).for_each(assert_serves);
        knocker.wait_for_more(11);
        knocker.assert_never_refused(20);
        unharmed(crowd, 9);
    });
}

#[test]
fn a_storm_of_starts_stops_and_restarts_harms_no_session() {
    let Some(tree) = tree!() else { return };
    tree.boot("storm", As::Tester, || {
        let names = storm_sockets();
        let crowd = crowd_of_all_kinds(200);
        let knocker = Knocker::start(Place::Tcp(2001));
        let mut dice = support::Pattern::new(7);
        let mut roll = move |of: usize| {
            let mut byte = [0; 8];
            dice.fill(&mut byte);
            (u64::from_le_bytes(byte) % of as u64) as usize
        };
        for _ in 0..sample("rounds of six commands", 5, 12) {
            let commands: Vec<_> = (0..6)
                .map(|_| match roll(8) {
                    0 => "systemctl --user try-restart qrexec-connect.service &".to_owned(),
                    1 => "systemctl --user --no-block restart qrexec-connect.service".to_owned(),
                    n => {
                        let (verb, name) = (if n < 5 { "start" } else { "stop" }, &names[roll(names.len())]);
                        format!("systemctl --user {verb} qrexec-connect-{name}.socket &")
                    }
                })
                .collect();
            shell(&format!("{}\nwait", commands.join("\n")));
            knocker.wait_for_more(5);
            assert_eq!(crowd.gone(), 0);
        }
        knocker.assert_never_refused(20);
        // what is listening is served
        settled();
        let mut served = 0;
        for (name, n) in names.iter().zip(3000..) {
            if attempt(&format!("systemctl --user is-active qrexec-connect-{name}.socket")).1 == "active" {
                assert_serves(n);
                served += 1;
            }
        }
        assert!(served > 0);
        let status = property("StatusText");
        assert!(status.starts_with(&format!("{} listeners, ", served + 2)), "{served} are active: {status}");
        unharmed(crowd, 9);
    });
}

#[test]
fn a_restart_that_is_restarted_before_it_is_ready_loses_nothing() {
    let Some(tree) = tree!() else { return };
    tree.boot("burst", As::Tester, || {
        let crowd = crowd_of_all_kinds(300);
        let knocker = Knocker::start(Place::Tcp(2001));
        for _ in 0..sample("bursts of twelve restarts", 4, 8) {
            // each meets the one before at another moment: before exec, before SIGTERM is handled, before READY
            shell("for i in {1..12}; do systemctl --user --no-block restart qrexec-connect.service; done");
            settled();
            knocker.wait_for_more(6);
            assert_eq!(crowd.gone(), 0);
        }
        // and certainly before there is anybody who could handle it
        service_drop_in("slow", "[Service]\nExecStart=\nExecStart=/bin/sh -c 'sleep 1; exec qrexec-connect serve'\n");
        shell("systemctl --user daemon-reload; systemctl --user --no-block restart qrexec-connect.service");
        eventually("it is on its way", || property("ActiveState") == "activating" && main_pid() != 0);
        let early = main_pid();
        shell("systemctl --user restart qrexec-connect.service");
        assert_ne!(main_pid(), early);
        shell("rm ~/.config/systemd/user/qrexec-connect.service.d/slow.conf; systemctl --user daemon-reload");
        restart();
        knocker.assert_never_refused(20);
        unharmed(crowd, 9);
    });
}

#[test]
fn calls_that_have_just_begun_outlive_restarts() {
    let Some(tree) = tree!() else { return };
    tree.boot("begun", As::Tester, || {
        socket("call", "127.0.0.1:2002", "work test.Tcp+7001");
        enable_now(&["call"]);
        let crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        // At each restart some of their calls are about to begin, in set-up, just connected or about to end.
        let knockers: Vec<_> = (0..40).map(|_| Knocker::start(Place::Tcp(2002))).collect();
        Knocker::wait_for_each(&knockers);
        for _ in 0..sample("restarts", 6, 30) {
            restart();
            Knocker::wait_for_each(&knockers);
        }
        for knocker in knockers {
            knocker.assert_never_refused(3);
        }
        let strays = messages("call-killed").into_iter().filter(|message| message.contains("had no session"));
        assert_eq!(strays.collect::<Vec<_>>(), <[String; 0]>::default(), "each call belongs to a session");
        settled();
        assert_nothing_leaked();
        assert_each_session_is_told_once();
        assert_eq!(messages("handover-lost"), <[String; 0]>::default());
        assert_no_complaints_but(&[]);
        assert_stops_clean();
        drop(crowd);
    });
}

#[test]
fn a_manager_that_is_replaced_keeps_the_service_and_what_it_stores() {
    let Some(tree) = tree!() else { return };
    tree.boot("reexec", As::Tester, || {
        let crowd = crowd_of_all_kinds(200);
        let knocker = Knocker::start(Place::Tcp(2001));
        for _ in 0..sample("new managers", 2, 3) {
            let pid = main_pid();
            shell("systemctl --user daemon-reexec");
            eventually("the manager answers", || attempt("systemctl --user list-jobs").0 == Some(0));
            assert_eq!(main_pid(), pid);
            restart();
            crowd.wait_for_bytes(300_000);
            shell("systemctl --user daemon-reload");
            restart();
            knocker.wait_for_more(11);
            assert_eq!(crowd.gone(), 0);
        }
        knocker.assert_never_refused(20);
        unharmed(crowd, 9);
    });
}

#[test]
fn timing_a_killed_service_comes_back_within_two_seconds_with_its_calls_and_leaves_no_stray_call() {
    let Some(tree) = tree!() else { return };
    tree.boot("kill", As::Tester, || {
        let fake = installed_fake();
        // two calls that do not notice when their pipes are closed, one of which ignores SIGTERM
        socket("deaf", "127.0.0.1:2003", "other test.Stall");
        socket("deafer", "127.0.0.1:2004", "other test.NeverKill");
        shell(&format!("systemctl --user daemon-reload; systemctl --user start {}", units(&["deaf", "deafer"])));
        let crowd = crowd_of_all_kinds(300);
        let deaf = [port(2003), port(2004)];
        fake.wait_for_started(11);
        let knocker = Knocker::start(Place::Tcp(2001));
        let killed = main_pid();
        let children = crate::service::calls();
        assert_eq!(children.len(), 11);
        crowd.wait_for_bytes(200_000);
        let began = Instant::now();
        shell(&format!("kill -KILL {killed}"));
        assert_serves(2001);
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_ne!(main_pid(), killed);
        for unit in ["tcp", "call"] {
            assert_eq!(shell(&format!("systemctl --user is-active {}", units(&[unit]))), "active");
        }
        // its sessions go on, and their calls with them; those whose bytes were being moved are reported
        crowd.wait_for_bytes(200_000);
        let lost = events("session-failed").len();
        assert!(lost <= 4, "{:?}", messages("session-failed"));
        assert!(crate::service::calls().iter().all(|child| children.contains(child)));
        assert_eq!(fake.started(), 11);
        drop(deaf);
        let harmed = crowd.dismiss().err().unwrap_or_default();
        assert!(harmed.len() <= lost, "{harmed:?}");
        drop(knocker);
        eventually("the deaf calls alone are left", || property("StatusText").ends_with(", 2 sessions"));
        assert_eq!(crate::service::calls().len(), 2);
        assert_no_complaints_but(&["status=9/KILL", "Failed with result 'signal'"]);
        assert_stops_clean();
    });
}

#[test]
fn calls_that_ignore_everything_do_not_outlive_the_service() {
    let Some(tree) = tree!() else { return };
    tree.boot("stop", As::Tester, || {
        let fake = installed_fake();
        socket("deaf", "127.0.0.1:2003", "other test.Stall drain_timeout=1");
        socket("deafer", "127.0.0.1:2004", "other test.NeverKill drain_timeout=1");
        enable_now(&["deaf", "deafer"]);
        // stopped; killed, and stopped by somebody who does not wait for its return
        for (n, how) in ["", "systemctl --user kill -s KILL qrexec-connect.service;"].into_iter().enumerate() {
            let deaf = [port(2003), port(2004)];
            fake.wait_for_started(2 * n + 2);
            eventually("both are where they belong", || crate::service::calls().len() == 2);
            shell(&format!("{how} systemctl --user stop 'qrexec-connect-*.socket' qrexec-connect.service"));
            eventually("no call is left", || crate::service::processes_called(&["qrexec-client-v"]).is_empty());
            eventually("the unit of the calls has gone", || {
                attempt("systemctl --user is-active qrexec-connect-calls.service").1 == "inactive"
            });
            drop(deaf);
            shell("systemctl --user start 'qrexec-connect-*.socket' --all");
        }
        assert_no_complaints_but(&["status=9/KILL", "Failed with result 'signal'"]);
    });
}

#[test]
fn a_service_that_ends_when_idle_never_costs_a_connection_or_a_socket() {
    let Some(tree) = tree!() else { return };
    tree.boot("idle", As::Tester, || {
        service_drop_in("idle", "[Service]\nExecStart=\nExecStart=qrexec-connect serve --exit-idle-time 1\n");
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        socket("call", "127.0.0.1:2002", "work test.Echo");
        shell(&format!("systemctl --user daemon-reload; systemctl --user start {}", units(&["tcp", "call"])));
        let crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        let mut pids = Vec::new();
        for n in 0..3 {
            assert_serves(2001);
            exchange(&mut port(2002), n, 1000, Pace::BULK);
            pids.push(main_pid());
            eventually("it ends", || property("ActiveState") == "inactive");
            assert_eq!(property("Result"), "success");
        }
        pids.dedup();
        assert_eq!(pids.len(), 3, "{pids:?}");
        // connections around the very moment of its end
        for pause in [4, 8, 10, 12, 14, 18, 25] {
            assert_serves(2001);
            std::thread::sleep(Duration::from_millis(pause));
            assert_serves(2001);
        }
        // while a session lives, it stays
        let mut wire = port(2002);
        std::io::Write::write_all(&mut wire, b"x").expect("it is served");
        wire.expect(b"x");
        let (pid, began) = (main_pid(), Instant::now());
        eventually("time passes", || began.elapsed() > Duration::from_millis(2500));
        assert_eq!(main_pid(), pid);
        // sockets may come and go meanwhile, and what is parked is not idle
        restart();
        exchange(&mut wire, 1, 1000, Pace::BULK);
        eventually("it ends", || property("ActiveState") == "inactive");
        assert_no_complaints_but(&[]);
        assert_stops_clean();
    });
}

#[test]
fn a_crash_loop_never_kills_a_socket() {
    let Some(tree) = tree!() else { return };
    tree.boot("loop", As::Tester, || {
        service_drop_in("crash", "[Service]\nExecStart=\nExecStart=/bin/sh -c 'kill -SEGV $$$$'\nRestartSec=100ms\n");
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        socket("call", "127.0.0.1:2002", "work test.Echo");
        shell(&format!("systemctl --user daemon-reload; systemctl --user start {}", units(&["tcp", "call"])));
        let crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        let mut waiting = [port(2002), port(2002)];
        for wire in &mut waiting {
            std::io::Write::write_all(wire, b"patience").expect("the backlog takes it");
        }
        let restarts = || property("NRestarts").parse::<u32>().expect("a number");
        eventually("it has crashed many times", || restarts() >= 15);
        for unit in ["tcp", "call"] {
            assert_eq!(shell(&format!("systemctl --user is-active {}", units(&[unit]))), "active");
        }
        shell("rm ~/.config/systemd/user/qrexec-connect.service.d/crash.conf; systemctl --user daemon-reload");
        // those who waited are served as soon as it stays up
        for wire in &mut waiting {
            wire.expect(b"patience");
        }
        assert_serves(2001);
        assert_no_complaints_but(&[
            "status=11/SEGV",
            "Failed with result 'signal'",
            "Failed with result 'core-dump'",
            "Failed to start",
        ]);
    });
}

#[test]
fn a_sigterm_that_no_job_explains_drains() {
    let Some(tree) = tree!() else { return };
    tree.boot("kill", As::Tester, || {
        let crowd = crowd_of_all_kinds(20);
        shell("systemctl --user kill --kill-whom=main qrexec-connect.service");
        eventually("it drains", || !messages("service-draining").is_empty());
        assert_eq!(crowd.gone(), 0, "sessions have their time");
        crowd.dismiss_unharmed();
        eventually("it has ended", || property("ActiveState") == "inactive");
        assert_eq!(property("Result"), "success");
        port(2002).expect_reset(); // the next connection starts it again; where it leads has gone with the crowd
        assert_stops_clean();
    });
}

#[test]
fn a_stop_on_the_heels_of_a_restart_ends_every_session_with_a_reset_and_a_word() {
    let Some(tree) = tree!() else { return };
    tree.boot("heels", As::Tester, || {
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001,drain_timeout=1");
        socket("call", "127.0.0.1:2002", "work test.Echo drain_timeout=1");
        socket("other", "127.0.0.1:2003", "work test.Echo");
        enable_now(&["tcp", "call", "other"]);
        let crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        let mut wanted = 0;
        // the departing socket asks for the restart; the stop meets the parking, the old process's end, the next one's start
        for pause in [4, 8, 10, 12, 14, 18, 25] {
            let mut wires: Vec<_> = [2001, 2001, 2001, 2002, 2002].map(port).into();
            for wire in &mut wires[3..] {
                std::io::Write::write_all(wire, b"x").expect("it is served");
                wire.expect(b"x");
            }
            wanted += wires.len();
            eventually("all stand", || events("session-start").len() == wanted);
            shell(&format!(
                "systemctl --user stop qrexec-connect-other.socket; sleep 0.{pause:03}; \
                 systemctl --user stop qrexec-connect.service"
            ));
            for wire in &mut wires {
                wire.expect_reset();
            }
            shell("systemctl --user reset-failed; systemctl --user start qrexec-connect-other.socket"); // more than five in ten seconds
        }
        eventually("each has an end", || journal("END=drained").len() == wanted);
        assert_eq!(assert_each_session_is_told_once(), wanted);
        let kept = messages("session-end").iter().filter(|message| message.contains("its next process")).count();
        println!("{kept} of {wanted} were ended between two processes");
        eventually("no call is left", || crate::service::processes_called(&["qrexec-client-v"]).is_empty());
        drop(crowd);
        assert_no_complaints_but(&[]);
        // systemd 257 keeps the pair, which the keeper has emptied, until the next process has it removed
        shell("systemctl --user start qrexec-connect.service");
        settled();
        assert_stops_clean();
    });
}
