//! A socket that starts or stops while the service stands between two states: it ends without a job, or a stop of it
//! waits in the queue.
//!
//! A file keeps a unit in such a state: as long as it is there, the unit's `ExecStopPost=` (`ExecStop=`) does not end.

use std::fs;

use crate::{
    service::{assert_no_complaints_but, enable_now, property, service_drop_in, settled, socket},
    support::{Pace, Process, Wire, eventually, exchange},
    tree::{As, attempt, shell, user_unit},
};

const HOLD: &str = "/tmp/hold";
const HOLD_SOCKET: &str = "/tmp/hold-socket";

/// The command that waits for the end of that file.
fn while_there(hold: &str) -> String {
    format!("/bin/sh -c 'while [ -e {hold} ]; do sleep 0.02; done'")
}

fn echoes(port: u16) {
    exchange(&mut Wire::tcp(([127, 0, 0, 1], port).into()), 1, 1000, Pace::BULK);
}

/// The jobs of the manager, each as `UNIT TYPE STATE`.
fn jobs() -> Vec<String> {
    let jobs = shell("systemctl --user list-jobs --no-legend --plain");
    jobs.lines().map(|job| job.split_ascii_whitespace().skip(1).collect::<Vec<_>>().join(" ")).collect()
}

fn has_job(job: &str) -> bool {
    jobs().iter().any(|there| there == job)
}

#[test]
fn a_socket_that_starts_while_the_service_ends_without_a_job_starts_when_it_has_ended() {
    let Some(tree) = tree!() else { return };
    tree.boot("ends", As::Tester, || {
        user_unit("qrexec-connect-.socket.d/often.conf", "[Unit]\nStartLimitIntervalSec=0\n");
        service_drop_in("slow", &format!("[Service]\nExecStopPost={}\n", while_there(HOLD)));
        socket("first", "127.0.0.1:1300", "@default test.Echo");
        socket("second", "127.0.0.1:1301", "@default test.Echo");
        // SIGTERM without a job: the service drains and ends, as it does when it is idle.
        enable_now(&["first"]);
        for signal in ["TERM", "KILL"] {
            echoes(1300);
            settled();
            fs::write(HOLD, "").expect("/tmp is of this boot");
            shell(&format!("systemctl --user kill --kill-whom=main -s {signal} qrexec-connect.service"));
            eventually("it is on its way down", || property("SubState") == "stop-post");
            assert_eq!(jobs(), [""; 0], "no job explains that");
            let mut start = std::process::Command::new("systemctl");
            start.args(["--user", "start", "qrexec-connect-second.socket"]);
            let mut start = Process::start(start);
            let mut looks = 0;
            eventually("the start waits, look after look", || {
                assert!(start.running(), "{:?}", start.stderr.to_the_end());
                looks = if has_job("qrexec-connect-refresh.service start running") { looks + 1 } else { 0 };
                looks == 10
            });
            fs::remove_file(HOLD).expect("it is there");
            assert!(start.wait().success(), "{:?}", start.stderr.to_the_end());
            echoes(1301);
            echoes(1300);
            shell("systemctl --user stop qrexec-connect-second.socket");
            settled();
        }
        // The last socket goes: the service, started again without one, ends by itself; meanwhile the next one comes.
        for _ in 0..3 {
            shell("systemctl --user stop qrexec-connect-first.socket");
            shell("systemctl --user start qrexec-connect-second.socket");
            echoes(1301);
            shell("systemctl --user stop qrexec-connect-second.socket");
            shell("systemctl --user start qrexec-connect-first.socket");
            echoes(1300);
        }
        assert_no_complaints_but(&["status=9/KILL", "Failed with result 'signal'"]);
        // Where systemd refuses the restart, the start fails and says why.
        service_drop_in("by-hand", "[Unit]\nRefuseManualStop=yes\n");
        shell("systemctl --user daemon-reload");
        let (code, ..) = attempt("systemctl --user start qrexec-connect-second.socket");
        assert_eq!((code, property("ActiveState").as_str()), (Some(1), "active"));
        // by the name that systemd gave the stream: journald may miss the unit of a process that has ended already
        let said = || shell("journalctl --user -q -o cat -t qrexec-connect");
        eventually("it says why", || said().contains("systemd does not restart qrexec-connect.service (active)"));
        echoes(1300);
    });
}

#[test]
fn a_stop_that_waits_its_turn_is_not_replaced_by_a_socket_that_goes_or_comes() {
    let Some(tree) = tree!() else { return };
    tree.boot("stop", As::Tester, || {
        // It stops before the service does, and takes its time.
        let slow = "[Unit]\nAfter=qrexec-connect.service\n[Service]\nExecStart=/bin/sleep infinity";
        user_unit("slow.service", &format!("{slow}\nExecStop={}\n", while_there(HOLD)));
        // Commands of drop-ins are run in the order of their names: this one before 40-departure.conf.
        let held = format!("[Socket]\nExecStopPost={}\n", while_there(HOLD_SOCKET));
        user_unit("qrexec-connect-first.socket.d/10-hold.conf", &held);
        for (name, port) in [("first", 1300), ("second", 1301), ("third", 1302)] {
            socket(name, &format!("127.0.0.1:{port}"), "@default test.Echo");
        }
        enable_now(&["first", "second"]);
        echoes(1300);
        shell("systemctl --user start slow.service");
        settled();
        for hold in [HOLD, HOLD_SOCKET] {
            fs::write(hold, "").expect("/tmp is of this boot");
        }
        shell("systemctl --user stop --no-block qrexec-connect-first.socket");
        let first = || shell("systemctl --user show -p SubState --value qrexec-connect-first.socket");
        eventually("the socket is about to ask for a restart", || first() == "stop-post");
        shell("systemctl --user stop --no-block slow.service qrexec-connect.service");
        assert!(has_job("qrexec-connect.service stop waiting"), "{:?}", jobs());
        fs::remove_file(HOLD_SOCKET).expect("it is there");
        eventually("it has asked", || first() == "dead");
        assert!(has_job("qrexec-connect.service stop waiting"), "{:?}", jobs());
        shell("systemctl --user start --no-block qrexec-connect-third.socket");
        eventually("the new socket has its turn", || {
            !has_job("qrexec-connect-refresh.service start running")
                && !has_job("qrexec-connect-refresh.service start waiting")
        });
        assert!(has_job("qrexec-connect.service stop waiting"), "{:?}", jobs());
        assert!(has_job("qrexec-connect-third.socket start waiting"), "{:?}", jobs());
        fs::remove_file(HOLD).expect("it is there");
        eventually("no job is left", || jobs().is_empty());
        assert_eq!(property("ActiveState"), "inactive");
        assert_eq!(attempt("systemctl --user is-active qrexec-connect-first.socket").1, "inactive");
        echoes(1301);
        echoes(1302);
        assert_no_complaints_but(&[]);
    });
}
