//! The service is killed, aborts or hangs: its sessions go on in the next process, and what cannot go on is reset and
//! reported.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::PathBuf,
};

use crate::{
    crowd::{Crowd, Enders, Kind, Knocker, Place, Rate},
    service::{
        assert_each_session_is_told_once, assert_each_session_is_told_once_but_at, assert_no_complaints_but,
        assert_nothing_leaked, assert_stops_clean, calls, enable_now, events, main_pid, messages, processes_called,
        property, restart, service_drop_in, sessions_told_once, settled, socket, text, wait_for_message,
    },
    support::{Moment, PATIENCE, Pace, Wire, eventually, exchange, sample, strike, tell},
    tree::{As, attempt, installed_fake, shell},
};

#[track_caller]
pub(crate) fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

pub(crate) fn here(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").expect("with-systemd sets it")).join(name)
}

/// Echoes whatever comes, without any other output, as long as the test runs.
pub(crate) fn echo_at(port: u16) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("a free port");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
}

/// What is sent through the service comes back.
#[track_caller]
fn echoes(wire: &mut Wire, text: &str) {
    wire.write_all(text.as_bytes()).expect("it is served");
    wire.expect(text.as_bytes());
}

/// What the manager complains of when the service is killed, and rightly.
pub(crate) const KILLED: [&str; 3] = ["status=9/KILL", "Failed with result 'signal'", "code=killed"];

/// Ends the service in this way, and waits for the next process.
#[track_caller]
pub(crate) fn crash(how: &str) {
    let before = main_pid();
    Checkpoints::open(before).age();
    shell(&format!("systemctl --user kill {how} qrexec-connect.service"));
    another_than(before);
}

/// Waits until another process than this serves.
#[track_caller]
pub(crate) fn another_than(before: u32) {
    eventually("another process serves", || {
        let now = main_pid();
        now != 0 && now != before && property("ActiveState") == "active"
    });
}

/// Kills all that is in the service's control group.
pub(crate) const KILL: &str = "-s KILL --kill-who=all";

/// The sessions that were reported as lost, with the reasons.
pub(crate) fn lost() -> Vec<String> {
    let is_lost = |event: &&BTreeMap<String, serde_json::Value>| event.get("END").is_some_and(|end| end == "lost");
    events("session-failed").iter().filter(is_lost).map(|event| text(event, "MESSAGE").to_owned()).collect()
}

#[test]
fn sessions_of_every_kind_go_on_after_kills_and_those_that_cannot_are_reported() {
    let Some(tree) = tree!() else { return };
    tree.boot("kill", As::Tester, || {
        let fake = installed_fake();
        // TCP to TCP, UNIX to UNIX, and across; through calls; to a server that comes late; and undecided calls
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        socket("unix", "%t/unix", "uds=%t/server");
        socket("across", "%t/across", "target=127.0.0.1+7001");
        socket("call", "127.0.0.1:2002", "work test.Tcp+7001");
        socket("late", "127.0.0.1:2003", "uds=%t/late,connect_timeout=300");
        socket("gate", "127.0.0.1:2004", "other test.Gate+open");
        socket("knock", "127.0.0.1:2005", "target=127.0.0.1+7001");
        enable_now(&["tcp", "unix", "across", "call", "late", "gate", "knock"]);
        let mut crowd = Crowd::new();
        let [tcp, unix, across] = [Place::Tcp(2001), Place::Unix(here("unix")), Place::Unix(here("across"))];
        let [call, late, gate] = [2002, 2003, 2004].map(Place::Tcp);
        crowd.serve(&Place::Tcp(7001));
        crowd.serve(&Place::Unix(here("server")));
        for place in [&tcp, &unix, &across] {
            crowd.join(30, place, Kind::Echo, Rate::CALM);
            crowd.join(1, place, Kind::Echo, Rate::BUSY);
            crowd.join(5, place, Kind::PeerEnded, Rate::CALM);
            crowd.join(5, place, Kind::ServerEnded, Rate::CALM);
        }
        crowd.join(8, &call, Kind::Echo, Rate::CALM);
        crowd.join(1, &call, Kind::Echo, Rate::BUSY);
        crowd.join(2, &call, Kind::PeerEnded, Rate::CALM);
        crowd.join(2, &call, Kind::ServerEnded, Rate::CALM);
        crowd.wait_until_served_but(0);
        crowd.join(10, &late, Kind::Echo, Rate::CALM);
        crowd.join(4, &gate, Kind::Plain, Rate::CALM);
        fake.wait_for_started(13 + 4);
        eventually("all sessions are there", || {
            property("StatusText").ends_with(&format!(", {} sessions", crowd.len()))
        });
        let n = crowd.len();
        let knocker = Knocker::start(Place::Tcp(2005));
        let kills = sample("kills", 2, 20);
        for _ in 0..kills {
            crowd.wait_for_bytes(200_000);
            crash(KILL);
        }
        crowd.wait_for_bytes(200_000);
        settled();
        let knocks = knocker.assert_never_refused(kills);
        // those who waited all the time are served now
        crowd.serve(&Place::Unix(here("late")));
        fake.open("open");
        let reported = lost();
        let stall = crowd.longest_stall();
        println!("{} of {n} were lost in {kills} kills, stall {stall:?}, knocks {knocks:?}", reported.len());
        eventually("all are connected", || !shell("qrexec-connect sessions --json").contains("\"connected\":false"));
        crowd.wait_for_bytes(200_000);
        let harmed = crowd.dismiss().err().unwrap_or_default();
        assert!(harmed.len() <= reported.len(), "{harmed:#?}\n{reported:#?}");
        // one for each thread that moves bytes, and those whose bytes did not fit
        assert!(reported.len() <= 4 * kills, "{} of {n} were lost: {reported:#?}", reported.len());
        assert_eq!(fake.started(), 17, "no call was made twice");
        let status = shell("qrexec-connect status");
        assert!(status.contains(&format!("{kills} crashes: ")), "{status}");
        assert!(shell("qrexec-connect metrics").contains(&format!("qrexec_connect_crashes_total {kills}\n")));
        assert_nothing_leaked();
        assert_each_session_is_told_once_but_at("127.0.0.1:2005");
        assert_no_complaints_but(&KILLED);
        assert_stops_clean();
    });
}

#[test]
fn many_sessions_between_tcp_sockets_go_on_after_kill_after_kill() {
    let Some(tree) = tree!() else { return };
    tree.boot("many", As::Tester, || {
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001,max_connections=8000");
        service_drop_in("soon", "[Service]\nRestartSec=100ms\n");
        enable_now(&["tcp"]);
        let mut crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        let place = Place::Tcp(2001);
        let n = sample("sessions", 400, 4000);
        crowd.join(n / 2, &place, Kind::Echo, Rate::CALM);
        crowd.join(n / 2, &place, Kind::Echo, Rate::RARE);
        crowd.join(1, &place, Kind::Echo, Rate::BUSY);
        crowd.wait_until_served_but(0);
        let (n, kills) = (crowd.len(), sample("kills", 3, 20));
        for kill in 0..kills {
            crowd.wait_for_bytes(200_000);
            crash(KILL);
            assert_eq!(crowd.gone(), 0, "after kill {kill}: {:#?}", lost());
        }
        crowd.wait_for_bytes(200_000);
        let stall = crowd.longest_stall();
        crowd.dismiss_unharmed();
        println!("{n} sessions went through {kills} kills; the longest stall was {stall:?}");
        assert_eq!(lost(), [""; 0]);
        let resumed = messages("handover-adopted");
        assert_eq!(resumed.iter().filter(|text| text.starts_with(&format!("resumed {n} sessions"))).count(), kills);
        assert_nothing_leaked();
        assert_each_session_is_told_once();
        assert_no_complaints_but(&KILLED);
        assert_stops_clean();
    });
}

/// Sets of system calls, by their numbers, at which a process is killed.
type Calls = [&'static [i64]; 8];
/// Of a relay between sockets: read, write, splice, recvmsg, shutdown, sendmmsg.
const OF_SOCKETS: Calls = [&[0], &[1], &[275], &[0, 47], &[0, 1, 275, 47, 48, 307], &[1, 307], &[307], &[47]];
/// Of a relay with a child: splice, ioctl (FIONREAD), close, fstat (newfstatat in glibc), poll, shutdown.
const OF_PIPES: Calls = [&[275], &[3], &[16], &[275, 3], &[3, 5, 16, 48, 262, 275], &[7, 275], &[5, 48, 262], &[275]];

/// The moment of the `n`th kill: a call of the relay, before it, after it, or a few instructions later. The first ones
/// come right after a call of each kind, when the process does not know yet what the call has done.
fn moment(n: usize, calls: &Calls) -> Moment {
    // Spread by a linear congruence, so that a failure can be run again.
    let random = |salt: usize, below: usize| {
        let mixed = (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ salt as u64;
        usize::try_from(mixed.wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(31) >> 33).unwrap_or(0) % below
    };
    if n < calls.len() {
        let skip = if is_at_once(n) { 0 } else { random(2, 12) as u32 };
        return Moment { calls: calls[n], skip, before: false, steps: 0 };
    }
    Moment {
        calls: calls[random(1, calls.len())],
        skip: random(2, 12) as u32,
        before: random(3, 3) == 0,
        steps: random(4, if random(5, 4) == 0 { 5000 } else { 200 }) as u32,
    }
}

/// Whether the `n`th kill follows the one before without traffic between them: what that one has left is not to be
/// believed a second time.
fn is_at_once(n: usize) -> bool {
    n % 4 == 3
}

#[test]
fn sessions_between_sockets_lose_nothing_in_kills_under_full_traffic() {
    let Some(tree) = tree!() else { return };
    tree.boot("ledger", As::Tester, || {
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        socket("unix", "%t/unix", "uds=%t/server");
        socket("up", "%t/up", "target=127.0.0.1+7001");
        socket("down", "127.0.0.1:2003", "uds=%t/server");
        socket("ends", "127.0.0.1:2002", "target=127.0.0.1+7002");
        service_drop_in("soon", "[Service]\nRestartSec=100ms\n");
        enable_now(&["tcp", "unix", "up", "down", "ends"]);
        let crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        crowd.serve(&Place::Unix(here("server")));
        let places = [Place::Tcp(2001), Place::Unix(here("unix")), Place::Unix(here("up")), Place::Tcp(2003)];
        lose_nothing_in_kills(crowd, &places, true, &OF_SOCKETS);
    });
}

#[test]
fn calls_lose_nothing_in_kills_under_full_traffic() {
    let Some(tree) = tree!() else { return };
    tree.boot("calls", As::Tester, || {
        installed_fake();
        socket("tcp", "127.0.0.1:2001", "work test.Tcp+7001");
        socket("unix", "%t/unix", "other test.Tcp+7001");
        socket("ends", "127.0.0.1:2002", "ends test.Tcp+7002");
        service_drop_in("soon", "[Service]\nRestartSec=100ms\n");
        enable_now(&["tcp", "unix", "ends"]);
        let crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        let places = [Place::Tcp(2001), Place::Unix(here("unix"))];
        lose_nothing_in_kills(crowd, &places, false, &OF_PIPES);
    });
}

/// Sessions of every kind at these places, and others at port 2002 that come to their ends, go through kills, and nothing
/// is lost. `resets`: the other side can tell a reset from an end.
fn lose_nothing_in_kills(mut crowd: Crowd, places: &[Place], resets: bool, calls: &Calls) {
    for (kind, rate) in [Rate::FLOOD, Rate::BUSY, Rate::CALM]
        .into_iter()
        .flat_map(|rate| [Kind::Echo, Kind::PeerEnded, Kind::ServerEnded].map(|kind| (kind, rate)))
    {
        places.iter().for_each(|place| crowd.join(2, place, kind, rate));
    }
    crowd.wait_until_served_but(0);
    let n = crowd.len();
    let enders = Enders::start(3, &Place::Tcp(2002), 7002, resets);
    let kills = sample("kills under full traffic", 12, 600);
    let mut hits = 0;
    for kill in 0..kills {
        if !is_at_once(kill) {
            crowd.wait_for_bytes(2_000_000);
        }
        let before = main_pid();
        Checkpoints::open(before).age();
        hits += usize::from(strike(before, moment(kill, calls)).is_some());
        another_than(before);
        assert_eq!(crowd.gone(), 0, "after kill {kill}, {:?}: {:#?}", moment(kill, calls), lost());
    }
    crowd.wait_for_bytes(10_000_000);
    let (ended, wrong) = enders.stop();
    let bytes = crowd.dismiss_unharmed();
    let resumed = messages("handover-adopted");
    let moved = resumed.iter().filter(|text| text.contains(" being moved at that moment, with ")).count();
    tell(&format!(
        "SAMPLE {n} sessions with {bytes} bytes went through {kills} kills, {hits} of them at a chosen system call, {moved} \
         in the middle of a move; {ended} others came to their ends meanwhile"
    ));
    assert!(wrong.is_empty(), "{} of {ended}: {wrong:#?}\n{:#?}", wrong.len(), lost());
    assert_eq!(lost(), [""; 0]);
    assert!(moved > 0, "no kill met a session that was being moved: {resumed:#?}");
    assert_nothing_leaked();
    assert_each_session_is_told_once_but_at("127.0.0.1:2002");
    assert_no_complaints_but(&KILLED);
    assert_stops_clean();
}

#[test]
fn faults_a_killed_successor_a_killed_keeper_and_a_killed_restart_cost_no_idle_session() {
    let Some(tree) = tree!() else { return };
    tree.boot("faults", As::Tester, || {
        let fake = installed_fake();
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        socket("call", "127.0.0.1:2002", "work test.Echo");
        enable_now(&["tcp", "call"]);
        echo_at(7001);
        let mut wires = [port(2001), port(2001)];
        let mut call = port(2002);
        echoes(&mut call, "1");
        let echo = |wires: &mut [Wire; 2], text: &str| wires.iter_mut().for_each(|wire| echoes(wire, text));
        echo(&mut wires, "0");
        // an assertion, a wild pointer, the watchdog: the message has the reason
        for (signal, number) in [("ABRT", 6), ("SEGV", 11)] {
            crash(&format!("-s {signal} --kill-who=main"));
            echo(&mut wires, signal);
            echoes(&mut call, signal);
            wait_for_message("handover-adopted", &format!("resumed 3 sessions after a crash (signal {number})"));
        }
        // the successor, as soon as it is there
        for _ in 0..sample("killed successors", 1, 10) {
            let before = main_pid();
            Checkpoints::open(before).age();
            shell(
                "before=$(systemctl --user show -p MainPID --value qrexec-connect.service); kill -KILL $before; \
                 until now=$(systemctl --user show -p MainPID --value qrexec-connect.service); \
                   [ $now != 0 ] && [ $now != $before ]; do :; done; kill -KILL $now",
            );
            another_than(before);
            echo(&mut wires, "3");
            echoes(&mut call, "3");
        }
        // a planned restart
        for pause in [12, 3, 0, 1, 2, 5, 8, 20].into_iter().take(sample("killed restarts", 2, 8)) {
            let before = main_pid();
            Checkpoints::open(before).age();
            shell(&format!(
                "systemctl --user restart --no-block qrexec-connect.service; sleep 0.{pause:03}; \
                 kill -KILL {before} || true"
            ));
            another_than(before);
            settled();
            echo(&mut wires, "4");
            echoes(&mut call, "4");
        }
        assert_eq!(fake.started(), 1);
        assert_eq!(lost(), [""; 0]);
        // the service and its shadow at once: no process waits for that shadow
        drop((wires, call));
        eventually("every session is over", || property("StatusText").ends_with(", 0 sessions"));
        let before = main_pid();
        shell(&format!("shadow=$(pgrep -x crash-shadow); kill -STOP $shadow; kill -KILL {before}; kill -KILL $shadow"));
        another_than(before);
        settled();
        let (mut wires, mut call) = ([port(2001), port(2001)], port(2002));
        echo(&mut wires, "4");
        echoes(&mut call, "4");
        crash(KILL);
        echo(&mut wires, "4");
        echoes(&mut call, "4");
        assert_eq!(messages("handover-lost"), [""; 0]);
        // the keeper, and with its unit the shadow and the call: the service begins again, with its sessions
        let before = main_pid();
        shell("systemctl --user kill -s KILL --kill-who=all qrexec-connect-calls.service");
        another_than(before);
        settled();
        call.expect_reset();
        echo(&mut wires, "5");
        crash(KILL);
        echo(&mut wires, "6");
        drop((wires, call));
        restart();
        assert_nothing_leaked();
        assert_no_complaints_but(
            &[
                &KILLED[..],
                &[
                    "code=dumped",
                    "status=6/ABRT",
                    "status=11/SEGV",
                    "result 'core-dump'",
                    "Failed with result",
                    "Main process exited",
                    "Failed to start",
                ],
            ]
            .concat(),
        );
        assert_stops_clean();
    });
}

#[test]
fn a_stop_wins_over_a_crash_and_ends_every_session_by_a_reset_with_a_report() {
    let Some(tree) = tree!() else { return };
    tree.boot("stop", As::Tester, || {
        let fake = installed_fake();
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001,drain_timeout=60");
        socket("call", "127.0.0.1:2002", "work test.Echo drain_timeout=60");
        // The next process takes its time: the stop comes before it.
        service_drop_in("late", "[Service]\nRestartSec=60\n");
        enable_now(&["tcp", "call"]);
        echo_at(7001);
        let mut ended = 0;
        for killed_first in [false, true] {
            let mut wires = [port(2001), port(2002)];
            for wire in &mut wires {
                echoes(wire, "before");
            }
            let pid = main_pid();
            if killed_first {
                shell(&format!("kill -KILL {pid}"));
                eventually("the shadow has given all", || {
                    property("ActiveState") == "activating" && attempt("pgrep -x crash-shadow").0 == Some(1)
                });
                shell("systemctl --user stop 'qrexec-connect-*.socket' qrexec-connect.service");
            } else {
                shell("systemctl --user stop --no-block 'qrexec-connect-*.socket' qrexec-connect.service");
                eventually("it drains", || property("StatusText").starts_with("stopping"));
                shell(&format!("kill -KILL {pid}"));
            }
            for wire in &mut wires {
                wire.expect_reset();
            }
            ended += 2;
            // the reset comes before the event
            eventually("both are reported", || lost().len() == ended);
            assert_eq!(sessions_told_once("journalctl --user -q -t qrexec-connect").len(), ended);
            eventually("the unit of the calls has gone", || {
                attempt("systemctl --user is-active qrexec-connect-calls.service").1 == "inactive"
            });
            eventually("no call is left", || calls().is_empty());
            shell("systemctl --user reset-failed; systemctl --user start 'qrexec-connect-*.socket' --all");
        }
        assert_eq!(lost().len(), ended, "{:#?}", lost());
        assert_eq!(fake.started(), 2);
        // a process that waits, because starts come fast, takes the order of its end as any other
        service_drop_in("late", "[Service]\nRestartSec=100ms\n");
        shell("systemctl --user daemon-reload");
        let mut wire = port(2001);
        echoes(&mut wire, "before");
        let before = main_pid();
        let checkpoints = Checkpoints::open(before);
        let earlier = checkpoints.hurry();
        shell(&format!("kill -KILL {before}"));
        eventually("the next process waits", || {
            Checkpoints::STARTS.into_iter().any(|word| checkpoints.read(word) != earlier)
        });
        shell("systemctl --user stop --no-block 'qrexec-connect-*.socket' qrexec-connect.service");
        eventually("it drains", || property("StatusText").starts_with("stopping"));
        echoes(&mut wire, "in the drain");
        drop(wire);
        eventually("it has ended", || property("ActiveState") == "inactive");
        let journal = "journalctl --user -q -t qrexec-connect";
        eventually("it is reported", || sessions_told_once(journal).values().any(|end| end == "eof"));
        assert_eq!(lost().len(), ended, "{:#?}", lost());
    });
}

#[test]
fn forwards_of_the_system_their_flows_and_their_own_listeners_go_on_after_kills() {
    let Some(tree) = tree!() else { return };
    let config = "\
[[forward]]
listen = \"127.0.0.1:2001\"
uds = \"/run/pfwd-test.sock\"
target = \"127.0.0.1:7001\"

[[forward]]
udp_listen = \"127.0.0.1:2002\"
udp_target = \"127.0.0.1:7002\"
";
    tree.boot("pfwd", As::Root, || {
        std::fs::write("/etc/pfwd.toml", config).expect("root's own tree");
        shell("systemctl daemon-reload; systemctl start pfwd.service");
        let mut crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        crowd.join(20, &Place::Tcp(2001), Kind::Echo, Rate::CALM);
        crowd.wait_until_served_but(0);
        let server = UdpSocket::bind("127.0.0.1:7002").expect("a free port");
        let asker = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        [&server, &asker].iter().for_each(|socket| socket.set_read_timeout(Some(PATIENCE)).expect("a socket"));
        let mut by = None;
        let mut ask = |text: &[u8]| {
            let mut buffer = [0; 64];
            asker.send_to(text, "127.0.0.1:2002").expect("sent");
            let (n, from) = server.recv_from(&mut buffer).expect("it comes");
            assert_eq!(&buffer[..n], text);
            assert_eq!(*by.get_or_insert(from), from, "the flow is the same");
            server.send_to(text, from).expect("sent");
            let n = asker.recv(&mut buffer).expect("the answer comes");
            assert_eq!(&buffer[..n], text);
        };
        ask(b"before");
        // the commands of the page
        let page = include_str!("../../packaging/doc/crash.md");
        let block = page.split("\n```").nth(1).and_then(|block| block.strip_prefix("sh\n")).expect("its commands");
        let [kill, look @ ..] = &block.lines().collect::<Vec<_>>()[..] else { panic!("no commands") };
        let show = |name: &str| shell(&format!("systemctl show -p {name} --value pfwd.service"));
        for n in 0..2 {
            crowd.wait_for_bytes(20_000);
            let before = show("MainPID");
            Checkpoints::open(before.parse().expect("a number")).age();
            // nobody accepts these two before the kill
            shell(&format!("kill -STOP {before}"));
            let path = || std::os::unix::net::UnixStream::connect("/run/pfwd-test.sock").expect("it listens");
            let backlogs = [port(2001), Wire::from_unix(path())];
            let inode = || std::fs::metadata("/run/pfwd-test.sock").expect("it is there").ino();
            let socket = inode();
            shell(kill);
            eventually("another process serves", || {
                let now = show("MainPID");
                now != "0" && now != before && show("ActiveState") == "active"
            });
            ask(format!("after {n}").as_bytes());
            // its listeners are the same, and so are their backlogs
            assert_eq!(inode(), socket);
            for mut wire in backlogs.into_iter().chain([port(2001)]) {
                wire.write_all(b"e\0\0\0\0\0\0\0\0").expect("it is served");
                exchange(&mut wire, n, 1000, Pace::BULK);
            }
        }
        let reported = shell("journalctl -q -o cat -t pfwd END=lost || true");
        let harmed = crowd.dismiss().err().unwrap_or_default();
        assert!(harmed.len() <= reported.lines().count(), "{harmed:#?}\n{reported}");
        assert!(reported.lines().count() <= 2 * 4, "{reported}");
        let said = look.iter().map(|command| shell(command)).collect::<String>();
        for part in ["resumed ", "2 crashes: ", "pfwd_crashes_total 2\n"] {
            assert!(said.contains(part), "{part} is not in\n{said}");
        }
        assert_eq!(show("NFileDescriptorStore"), "3");
        shell("systemctl stop pfwd.service");
        eventually("the unit of the calls has gone", || {
            attempt("systemctl is-active pfwd-calls.service").1 == "inactive"
        });
        eventually("no shadow is left", || processes_called(&["crash-shadow"]).is_empty());
    });
}

/// The checkpoints of the service: what the process itself writes there, a test can write, too. In words of eight
/// bytes.
pub(crate) struct Checkpoints(std::fs::File);

impl Checkpoints {
    const SERVING: u64 = 11;
    const FAULT: u64 = 12;
    const STARTS: std::ops::Range<u64> = 32..40;
    const WORKING: u64 = 512;
    const HEADER: u64 = 1024;
    const SLOT: u64 = 96;
    const ID: u64 = 2;
    const KEYS: u64 = 9;

    pub(crate) fn open(pid: u32) -> Self {
        let all = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
        let is_region =
            |path: &PathBuf| std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:crash"));
        let path = all.map(|entry| entry.path()).find(is_region).expect("it has checkpoints");
        Self(std::fs::OpenOptions::new().read(true).write(true).open(path).expect("they are ours"))
    }

    fn read(&self, word: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, word * 8).expect("they are long");
        u64::from_le_bytes(bytes)
    }

    fn write(&self, word: u64, value: u64) {
        self.0.write_all_at(&value.to_le_bytes(), word * 8).expect("they are long");
    }

    /// As if the process served for long: a kill in the first second counts as a fault, and after several starts in a
    /// row the next process waits.
    #[track_caller]
    pub(crate) fn age(&self) {
        eventually("it serves", || self.read(Self::SERVING) > 0);
        Self::STARTS.chain([Self::SERVING]).for_each(|word| self.write(word, 0));
    }

    /// As if many processes had just started: the next one waits for a second. The time of their starts.
    fn hurry(&self) -> u64 {
        let now = self.read(Self::STARTS.start);
        assert!(now > 0, "it has started");
        Self::STARTS.for_each(|word| self.write(word, now));
        now
    }

    /// The slot of the session that this wire belongs to.
    fn slot_of(&self, wire: &Wire) -> u64 {
        let started = |event: &BTreeMap<String, serde_json::Value>| text(event, "PEER") == wire.local();
        let event = events("session-start").into_iter().rfind(started).expect("it has begun");
        let id: String = text(&event, "SESSION_ID").chars().filter(|c| *c != '-').collect();
        let (high, low) = id.split_at(16);
        let half = |text: &str| u64::from_str_radix(text, 16).expect("a UUID");
        let ids = |slot: &u64| [0, 1].map(|n| self.read(Self::HEADER + slot * Self::SLOT + Self::ID + n));
        (0..1000).find(|slot| ids(slot) == [half(high), half(low)]).expect("it is saved")
    }
}

#[test]
fn a_session_with_a_damaged_note_or_named_by_two_crashes_in_a_row_is_reset_and_the_others_go_on() {
    let Some(tree) = tree!() else { return };
    tree.boot("poison", As::Tester, || {
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        enable_now(&["tcp"]);
        echo_at(7001);
        let mut wires: Vec<_> = (0..20).map(|_| port(2001)).collect();
        wires.iter_mut().for_each(|wire| echoes(wire, "before"));
        // one bit
        let mut damaged = wires.pop().expect("there are many");
        let checkpoints = Checkpoints::open(main_pid());
        let key = Checkpoints::HEADER + checkpoints.slot_of(&damaged) * Checkpoints::SLOT + Checkpoints::KEYS;
        checkpoints.write(key, checkpoints.read(key) ^ 1 << 20);
        crash(KILL);
        damaged.expect_reset();
        wires.iter_mut().for_each(|wire| echoes(wire, "a bit"));
        wait_for_message("handover-lost", "its checkpoint is damaged");
        // what a fault checkpoints: its signal, and the thread, which works on a session
        let mut poison = wires.pop().expect("there are many");
        let fault = |wire: &Wire| {
            let checkpoints = Checkpoints::open(main_pid());
            checkpoints.write(Checkpoints::WORKING, checkpoints.slot_of(wire) + 1);
            checkpoints.write(Checkpoints::FAULT, 11 | 1 << 32);
            crash(KILL);
        };
        fault(&poison);
        echoes(&mut poison, "once");
        fault(&wires[0]);
        echoes(&mut poison, "another");
        fault(&poison);
        echoes(&mut poison, "not in a row");
        fault(&poison);
        poison.expect_reset();
        assert!(lost()[0].contains("the service crashed twice in a row while it worked on this session"));
        wires.iter_mut().for_each(|wire| echoes(wire, "after"));
        assert_eq!(lost().len(), 1);
        let metrics = shell("qrexec-connect metrics");
        let mut counted = metrics.lines().filter(|line| line.contains("_sessions_ended_total{"));
        assert!(counted.any(|line| line.ends_with(",end=\"lost\"} 1")), "{metrics}");
        drop(wires);
        assert_nothing_leaked();
        assert_no_complaints_but(&KILLED);
        assert_stops_clean();
    });
}
