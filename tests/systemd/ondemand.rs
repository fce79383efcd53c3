//! Units that are started at the first connection and stopped when nobody uses them, by a real systemd.
//!
//! The program of each unit is this test binary ([`the_program_of_a_unit`]): an echo server that can come late.

use std::{
    env, fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, UdpSocket},
    ops::Range,
    os::unix::net::{UnixDatagram, UnixListener},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{
    service::{enable_now, message_id, property, service_drop_in, socket},
    support::{Wire, eventually, sample, tell},
    tree::{As, PROGRAMS, attempt, shell},
};

/// What the program of a unit is to do: words, `tcp:8001`, `udp:8001`, `unix:/run/x`, `notify`, `fail`, `late:MS` (it
/// listens late), `slow:MS` (all of it comes late).
const PROGRAM: &str = "FORWARDER_PROGRAM";

#[test]
fn the_program_of_a_unit() {
    let Ok(words) = env::var(PROGRAM) else { return };
    let value = |name: &str| words.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix(':'));
    let pause = |name| thread::sleep(Duration::from_millis(value(name).map_or(0, |ms| ms.parse().expect("a number"))));
    pause("slow");
    if words.contains("fail") {
        eprintln!("the model file is missing");
        std::process::exit(3);
    }
    pause("late");
    if let Some(port) = value("udp") {
        let socket = UdpSocket::bind(format!("127.0.0.1:{port}")).expect("a free port");
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..n], from).expect("it is sent");
        }
    }
    let tcp = value("tcp").map(|port| TcpListener::bind(format!("127.0.0.1:{port}")).expect("a free port"));
    let unix = value("unix").map(|path| {
        let _ = fs::remove_file(path);
        UnixListener::bind(path).expect("a free path")
    });
    if words.contains("notify") {
        let socket = UnixDatagram::unbound().expect("a socket");
        let at = env::var("NOTIFY_SOCKET").expect("Type=notify");
        socket.send_to(b"READY=1", at).expect("systemd listens");
    }
    loop {
        let wire = match (&tcp, &unix) {
            (Some(tcp), _) => tcp.accept().map(|(stream, _)| Wire::Tcp(stream)),
            (None, Some(unix)) => unix.accept().map(|(stream, _)| Wire::Unix(stream)),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        };
        let mut wire = wire.expect("a listener");
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = wire.read(&mut buffer) {
                let _ = wire.write_all(&buffer[..n]);
            }
        });
    }
}

/// The full name of a unit.
fn full(name: &str) -> String {
    if name.ends_with(".target") { name.to_owned() } else { format!("{name}.service") }
}

/// The words that make a manager this one: `systemctl` and `journalctl` of the system, or of the user.
#[derive(Clone, Copy)]
struct Of {
    user: bool,
}

const SYSTEM: Of = Of { user: false };

impl Of {
    fn flag(self) -> &'static str {
        if self.user { "--user" } else { "--system" }
    }

    fn unit_file(self, name: &str, text: &str) {
        if self.user {
            return crate::tree::user_unit(name, text);
        }
        let path = Path::new("/etc/systemd/system").join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("root's own tree");
        fs::write(path, text).expect("root's own tree");
    }

    /// Writes a service whose program does what `words` say.
    fn service(self, name: &str, words: &str, more: &str) {
        let kind = if words.contains("notify") { "notify" } else { "simple" };
        self.unit_file(
            &format!("{name}.service"),
            &format!(
                "[Unit]\nStartLimitIntervalSec=0\n[Service]\nType={kind}\nEnvironment=\"{PROGRAM}={words}\"\n\
                 ExecStart=/{PROGRAMS}/deps/systemd --exact ondemand::the_program_of_a_unit --nocapture\n{more}\n"
            ),
        );
    }

    #[track_caller]
    fn systemctl(self, words: &str) -> String {
        shell(&format!("systemctl {} {words}", self.flag()))
    }

    fn state(self, name: &str) -> String {
        attempt(&format!("systemctl {} show -p ActiveState --value {}", self.flag(), full(name))).1
    }

    /// The messages of the events of this kind about that unit.
    fn told(self, kind: &str, name: &str) -> Vec<String> {
        let id = message_id(kind);
        let all = attempt(&format!("journalctl {} -q -o cat MESSAGE_ID={id}", self.flag())).1;
        all.lines().filter(|line| line.contains(&full(name))).map(str::to_owned).collect()
    }

    #[track_caller]
    fn wait_for(self, kind: &str, name: &str, part: &str) {
        eventually(&format!("a {kind} of {name} with {part:?}: {:?}", self.told(kind, name)), || {
            self.told(kind, name).iter().any(|message| message.contains(part))
        });
    }

    /// Waits for its stop, not before so many seconds without a session.
    #[track_caller]
    fn wait_for_stop(self, name: &str, idle: u64) {
        self.wait_for_state(name, "inactive");
        self.wait_for("unit-stopped", name, " s without a session");
        let told = self.told("unit-stopped", name).concat();
        let after = told.split_once(" after ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok());
        assert!(after.is_some_and(|after| after >= idle), "{told}");
    }

    #[track_caller]
    fn wait_for_state(self, name: &str, state: &str) {
        eventually(&format!("{name} is {state}"), || self.state(name) == state);
    }
}

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

#[track_caller]
fn echoes(wire: &mut Wire) {
    wire.write_all(b"hello").expect("it is connected");
    wire.expect(b"hello");
}

/// A session through `from`, from its beginning to its end; the first answer may come late.
#[track_caller]
fn visit(from: u16) {
    let mut wire = port(from);
    wire.wait_for_ever().expect("it is connected");
    echoes(&mut wire);
}

/// One forward of a file.
fn forward(listen: u16, to: u16, more: &str) -> String {
    format!("[[forward]]\nlisten = \"127.0.0.1:{listen}\"\ntarget = \"127.0.0.1:{to}\"\n{more}\n")
}

/// One forward of datagrams, of a file; its flows are over after a second.
fn datagrams(listen: u16, to: u16, more: &str) -> String {
    format!(
        "[[forward]]\nudp_listen = \"127.0.0.1:{listen}\"\nudp_target = \"127.0.0.1:{to}\"\nudp_idle_timeout = 1\n{more}\n"
    )
}

/// Somebody who sends datagrams to a port, and waits for answers.
fn asker_of(to: u16) -> UdpSocket {
    let asker = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    asker.connect(("127.0.0.1", to)).expect("an address");
    asker.set_read_timeout(Some(Duration::from_secs(20))).expect("not zero");
    asker
}

#[track_caller]
fn asks(asker: &UdpSocket) {
    asker.send(b"hello").expect("it is sent");
    let mut answer = [0; 16];
    let n = asker.recv(&mut answer).expect("an answer");
    assert_eq!(&answer[..n], b"hello");
}

/// The keys of a unit, in a file.
fn unit(name: &str, idle: u32) -> String {
    format!("start_unit = \"{name}\"\nstop_when_idle = {idle}\n")
}

fn configure(forwards: &[String]) {
    fs::write("/etc/pfwd.toml", forwards.concat()).expect("root's own tree");
}

#[track_caller]
fn reload(forwards: &[String]) {
    configure(forwards);
    shell("systemctl reload pfwd.service");
}

#[track_caller]
fn serve(forwards: &[String]) {
    configure(forwards);
    shell("systemctl daemon-reload; systemctl start pfwd.service");
}

#[test]
fn a_unit_is_started_once_for_a_hundred_clients_and_stopped_after_the_last_session_of_both_its_listeners() {
    let Some(tree) = tree!() else { return };
    let start = sample("seconds of a start", 3, 60);
    tree.boot("hundred", As::Root, || {
        let of = SYSTEM;
        of.service("one", "tcp:8001 notify slow:500", "");
        of.service("two", "tcp:8002 late:300", "");
        of.service("path", "unix:/run/path.sock", "");
        of.service("slow", &format!("tcp:8003 notify slow:{}", 1000 * start), "");
        of.service("never", "tcp:8001", "");
        of.service("again", "tcp:8004 notify", "Restart=always\nRestartSec=100ms");
        let uds = "[[forward]]\nlisten = \"127.0.0.1:2005\"\nuds = \"/run/path.sock\"\n".to_owned() + &unit("path", 1);
        of.service("part", "tcp:8006 notify", "[Unit]\nPartOf=stack.target");
        // Its connections outlive it: somebody else serves them.
        of.service("limited", "tcp:8008 notify", "");
        of.service("server", "tcp:8007 notify", "");
        of.systemctl("start server.service");
        of.unit_file("stack.target", "[Unit]\nRequires=part.service\nAfter=part.service\n");
        let closed = "[[forward]]\nuds = \"/run/forwards/closed.sock\"\nmode = \"0666\"\ntarget = \"127.0.0.1:8001\"\n\
                      allow_uid = 12345\n"
            .to_owned();
        serve(&[
            forward(2001, 8001, &unit("one", 1)),
            forward(2002, 8001, &unit("one.service", 2)),
            forward(2003, 8002, &unit("two", 1)),
            uds,
            forward(2006, 8003, &unit("slow", 1)),
            forward(2008, 8006, &unit("stack.target", 1)),
            closed + &unit("never", 1),
            forward(2009, 8007, &(unit("limited", 600) + "max_connections = 1\n")),
            forward(2010, 8007, ""),
            forward(2004, 8004, &unit("again", 1)),
            forward(2007, 8001, &(unit("never", 1) + "allow_from = [\"192.0.2.0/24\"]\n")),
        ]);
        thread::scope(|scope| {
            scope.spawn(|| visit(2005));
            scope.spawn(|| visit(2006));
            scope.spawn(|| visit(2008));
            scope.spawn(|| {
                let mut wires: Vec<_> = (0..10).map(|_| port(2003)).collect();
                wires.iter_mut().for_each(echoes);
            });
            scope.spawn(|| {
                visit(2004);
                let invocation = || of.systemctl("show -p InvocationID --value again.service");
                let before = invocation();
                of.systemctl("kill -s KILL again.service");
                eventually("Restart= has begun another", || invocation() != before && of.state("again") == "active");
            });
            scope.spawn(|| {
                port(2007).expect_reset();
                let mut refused = Wire::unix(Path::new("/run/forwards/closed.sock"));
                assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)), "root is none of allow_uid");
            });
            let mut wires: Vec<_> = (0..100).map(|_| port(2001)).collect();
            wires.iter_mut().for_each(echoes);
            let mut other = port(2002);
            echoes(&mut other);
            drop(wires);
            // The unit is used for longer than both listeners let it be idle.
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(2500) {
                echoes(&mut other);
                thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(of.state("one"), "active");
        });
        for name in ["one", "two", "path", "slow", "again", "stack.target"] {
            of.wait_for_stop(name, if name == "one" { 2 } else { 1 });
            let told = ["unit-start", "unit-ready", "unit-stopped"].map(|kind| of.told(kind, name).len());
            assert_eq!(told, [1, 1, 1], "{name}");
        }
        of.wait_for_state("part", "inactive");
        let warnings = attempt("journalctl -q -o cat -p warning -t pfwd").1;
        for list in ["allow_from", "allow_uid"] {
            assert_eq!(warnings.matches(&format!("not in {list}")).count(), 1, "{warnings}");
        }
        let others = |line: &&str| !["not in allow_", "LimitNOFILE"].iter().any(|part| line.contains(part));
        assert_eq!(warnings.lines().find(others), None);
        assert_eq!(of.told("unit-start", "never").len() + of.told("unit-failed", "never").len(), 0, "{warnings}");
        assert_eq!(of.state("never"), "inactive");
        // A connection above the limit starts nothing until there is a place.
        let mut first = port(2009);
        echoes(&mut first);
        of.systemctl("stop limited.service");
        let looked = || _ = attempt("pfwd status");
        looked();
        let mut second = port(2009);
        second.write_all(b"hello").expect("the kernel takes it");
        echoes(&mut first);
        visit(2010);
        looked();
        assert_eq!((of.told("unit-start", "limited").len(), of.state("limited").as_str()), (1, "inactive"));
        drop(first);
        second.expect(b"hello");
        of.wait_for_state("limited", "active");
        assert_eq!(of.told("unit-start", "limited").len(), 2);
        drop(second);
        // A stop of the service stops no unit.
        visit(2001);
        shell("systemctl stop pfwd.service");
        assert_eq!(of.state("one"), "active");
        of.wait_for("unit-not-stopped", "one", "still run");
        assert!(!Path::new("/run/pfwd").exists());
    });
}

#[test]
fn a_unit_that_fails_resets_its_clients_with_its_last_line_and_is_not_started_anew_for_each() {
    let Some(tree) = tree!() else { return };
    tree.boot("fails", As::Root, || {
        let of = SYSTEM;
        of.service("notify", "tcp:8001 notify fail", "");
        of.service("simple", "tcp:8002 slow:100 fail", "");
        for name in ["masked", "nowhere"] {
            of.service(name, "tcp:8003", "");
        }
        serve(&[
            forward(2001, 8001, &unit("notify", 1)),
            forward(2002, 8002, &unit("simple", 1)),
            forward(2003, 8003, &unit("masked", 1)),
            forward(2004, 8003, &unit("nowhere", 1)),
        ]);
        // The service has looked at them when it began; one that goes later is found at the start.
        shell(
            "cd /etc/systemd/system; rm masked.service nowhere.service; systemctl mask --quiet masked.service; \
             systemctl daemon-reload",
        );
        for (listen, name, why) in [
            (2001, "notify", "no new start for 1 s"),
            (2002, "simple", "no new start for 1 s"),
            (2003, "masked", "it is masked"),
            (2004, "nowhere", "there is no such unit"),
        ] {
            let mut wires: Vec<_> = (0..10).map(|_| port(listen)).collect();
            wires.iter_mut().for_each(Wire::expect_reset);
            of.wait_for("unit-failed", name, why);
            of.wait_for("session-failed", name, why);
            let told = of.told("unit-failed", name).len();
            assert!(told <= 2, "{name}: {told} failures told");
        }
        let starts: usize = ["notify", "simple"].map(|name| of.told("unit-start", name).len()).iter().sum();
        assert!((2..=4).contains(&starts), "{starts} starts for 20 clients");
        // Under load, the journal may have the last words of a unit only when the next start fails.
        for (listen, name) in [(2001, "notify"), (2002, "simple")] {
            eventually("both kinds of events tell the last line of the unit", || {
                port(listen).expect_reset();
                ["unit-failed", "session-failed"].iter().all(|kind| {
                    of.told(kind, name).iter().any(|text| text.contains("the model file is missing; no new start"))
                })
            });
        }
        // It is mended: the next client after the pause is served.
        of.service("notify", "tcp:8001 notify", "");
        shell("systemctl daemon-reload");
        eventually("a client is served", || {
            let mut wire = port(2001);
            let _ = wire.write_all(b"x");
            wire.read(&mut [0]).is_ok_and(|n| n == 1)
        });
    });
}

#[test]
fn timing_clients_of_a_unit_that_fails_are_reset_within_a_second_and_those_in_the_back_off_start_nothing() {
    let Some(tree) = tree!() else { return };
    tree.boot("soon", As::Root, || {
        let of = SYSTEM;
        of.service("soon", "tcp:8001 notify fail", "");
        serve(&[forward(2001, 8001, &unit("soon", 5))]);
        let began = Instant::now();
        let ten = || {
            let mut wires: Vec<_> = (0..10).map(|_| port(2001)).collect();
            wires.iter_mut().for_each(Wire::expect_reset);
            began.elapsed()
        };
        let (waited, in_the_back_off) = (ten(), ten());
        assert!(waited < Duration::from_secs(1), "{waited:?}");
        of.wait_for("unit-failed", "soon", "no new start for 1 s");
        assert_eq!(of.told("unit-start", "soon").len(), 1, "all were reset after {in_the_back_off:?}");
    });
}

#[test]
fn a_unit_that_others_have_or_need_is_not_stopped_and_one_line_says_why() {
    let Some(tree) = tree!() else { return };
    tree.boot("others", As::Root, || {
        let of = SYSTEM;
        let names = ["by-hand", "restarted", "needed", "enabled", "refuses", "connected", "by-unix", "by-udp"];
        let mut forwards = Vec::new();
        for (n, name) in (0u16..).zip(names) {
            let (program, forward) = match name {
                "by-unix" => (
                    "unix:/run/by.sock notify".to_owned(),
                    "[[forward]]\nlisten = \"127.0.0.1:2007\"\nuds = \"/run/by.sock\"\n".to_owned() + &unit(name, 1),
                ),
                "by-udp" => ("udp:8008".to_owned(), datagrams(2008, 8008, &unit(name, 1))),
                _ => (format!("tcp:{} notify", 8001 + n), forward(2001 + n, 8001 + n, &unit(name, 1))),
            };
            of.service(name, &program, "[Install]\nWantedBy=multi-user.target");
            forwards.push(forward);
        }
        of.unit_file("needs.service", "[Unit]\nRequires=needed.service\n[Service]\nExecStart=/bin/sleep infinity\n");
        serve(&forwards);
        shell("systemctl enable --quiet enabled.service; systemctl start by-hand.service");
        let mut wires: Vec<_> = (0..7).map(|n| port(2001 + n)).collect();
        wires.iter_mut().for_each(echoes);
        asks(&asker_of(2008));
        shell("systemctl restart restarted.service; systemctl start needs.service");
        of.unit_file("refuses.service.d/stop.conf", "[Unit]\nRefuseManualStop=yes\n");
        shell("systemctl daemon-reload");
        let mut foreign = [port(8006), Wire::unix(Path::new("/run/by.sock"))];
        foreign.iter_mut().for_each(echoes);
        let foreign_asker = asker_of(8008);
        asks(&foreign_asker);
        drop(wires);
        for (name, why) in names.into_iter().zip([
            "somebody else started it",
            "somebody else started it, or restarted it",
            "needs.service is active",
            "multi-user.target is active",
            "RefuseManualStop=yes",
            "somebody else is connected to 127.0.0.1:8006",
            "somebody else is connected to /run/by.sock",
            "somebody else is connected to 127.0.0.1:8008",
        ]) {
            of.wait_for("unit-not-stopped", name, why);
        }
        for name in names {
            assert_eq!(of.state(name), "active", "{name}");
            assert_eq!(of.told("unit-stopped", name).len(), 0, "{name}");
            assert!(of.told("unit-not-stopped", name).len() <= 1, "{name}");
        }
        assert_eq!(of.told("unit-start", "by-hand").len(), 0);
        foreign.iter_mut().for_each(echoes);
        asks(&foreign_asker);
        drop((foreign, foreign_asker));
        shell("systemctl stop needs.service");
        for name in ["connected", "needed", "by-unix", "by-udp"] {
            of.wait_for_state(name, "inactive");
        }
    });
}

#[test]
fn a_unit_is_stopped_over_restarts_reloads_and_crashes_of_the_service() {
    let Some(tree) = tree!() else { return };
    tree.boot("over", As::Root, || {
        let of = SYSTEM;
        let names = ["restart", "removed", "changed", "gone", "kept", "killed", "starting", "left", "held", "long"];
        for (n, name) in (0u16..).zip(names) {
            let slow = if ["starting", "left"].contains(&name) { "slow:2500" } else { "" };
            of.service(name, &format!("tcp:{} notify {slow}", 8001 + n), "");
        }
        of.service("other", "tcp:8099 notify", "");
        let all: Vec<_> = (0u16..).zip(names).map(|(n, name)| forward(2001 + n, 8001 + n, &unit(name, 2))).collect();
        serve(&all);
        thread::scope(|scope| (0..6).for_each(|n| _ = scope.spawn(move || visit(2001 + n))));
        let mut long = port(2010);
        echoes(&mut long);
        let mut held = port(2009);
        echoes(&mut held);
        let mut kept = port(2005);
        echoes(&mut kept);
        // A paused listener does not stop the clock of its unit.
        shell("pfwd pause 127.0.0.1:2001");
        // All of them are idle from here on but for the last two, and the one that is kept.
        let mut changed = all.clone();
        changed[1] = forward(2002, 8002, "");
        changed[2] = forward(2003, 8099, &unit("other", 2));
        changed.remove(3);
        changed[3] = forward(2005, 8005, "start_unit = \"kept\"\n");
        changed[7] = forward(2009, 8009, "");
        reload(&changed);
        drop(kept);
        thread::sleep(Duration::from_millis(1000)); // a part of the idle time passes
        shell("systemctl restart pfwd.service");
        for name in ["restart", "removed", "changed", "gone", "killed"] {
            of.wait_for_stop(name, 2);
        }
        assert_eq!(of.state("kept"), "active", "its listener lets it be idle for ever");
        assert_eq!(of.state("held"), "active", "its session lives on a route that no listener has any more");
        echoes(&mut held);
        echoes(&mut long);
        drop(held); // it is stopped after the crash
        // A crash while systemctl start runs: one client waits on, another one leaves.
        let (mut stays, leaves) = (port(2007), port(2008));
        stays.write_all(b"x").expect("it is accepted");
        for name in ["starting", "left"] {
            of.wait_for_state(name, "activating");
        }
        shell("systemctl kill --kill-whom=main -s KILL pfwd.service");
        drop(leaves);
        stays.expect(b"x");
        echoes(&mut long);
        for name in ["held", "left"] {
            of.wait_for_stop(name, 2);
        }
        assert_eq!(of.told("unit-start", "left").len(), 1);
        // A restart while it runs, and a crash while the unit is idle.
        drop(stays);
        of.wait_for_state("starting", "inactive");
        let mut waits = port(2007);
        waits.write_all(b"y").expect("it is accepted");
        of.wait_for_state("starting", "activating");
        shell("systemctl restart pfwd.service");
        waits.expect(b"y");
        drop((waits, long));
        shell("systemctl kill --kill-whom=main -s KILL pfwd.service");
        for name in ["starting", "long"] {
            of.wait_for_state(name, "inactive");
        }
        for name in ["restart", "removed", "changed", "gone", "killed", "left", "held", "long"] {
            let told = ["unit-start", "unit-stopped", "unit-not-stopped"].map(|kind| of.told(kind, name).len());
            assert_eq!(told, [1, 1, 0], "{name}");
        }
        assert_eq!(of.state("kept"), "active");
        assert_eq!(of.told("unit-stopped", "kept").len(), 0);
    });
}

/// A shutdown of a manager, begun by `off`, with a service of ours that ends late in it.
#[track_caller]
fn shut_down(of: Of, service: &str, file: &str, off: &str) {
    for (name, words) in [("kept", "tcp:8001 notify"), ("due", "tcp:8002 notify"), ("new", "tcp:8003 notify")] {
        of.service(name, words, &format!("[Unit]\nBefore={service}")); // systemd stops it after the service
    }
    // systemd stops this one before the service: whoever comes meanwhile comes during the shutdown.
    let brake = "ExecStart=/bin/sleep infinity\nExecStop=/bin/sh -c 'until [ -e /tmp/go-on ]; do sleep 0.02; done'";
    of.unit_file("brake.service", &format!("[Unit]\nAfter={service}\n[Service]\n{brake}\n"));
    let idle = [("kept", 600), ("due", 1), ("new", 600)];
    let forwards = (0u16..).zip(idle).map(|(n, (name, idle))| forward(2001 + n, 8001 + n, &unit(name, idle)));
    fs::write(file, forwards.collect::<String>()).expect("one's own tree");
    of.systemctl("daemon-reload");
    of.systemctl(&format!("start {service} brake.service"));
    let mut due = port(2002);
    echoes(&mut due);
    visit(2001);
    shell(off);
    of.wait_for_state("brake", "deactivating");
    drop(due);
    port(2003).expect_reset();
    of.wait_for("unit-failed", "new", "the system shuts down");
    // Its time is over during the shutdown.
    of.wait_for("unit-not-stopped", "due", "another job of it is pending");
    for name in ["kept", "due"] {
        assert_eq!((of.state(name).as_str(), of.told("unit-stopped", name).len()), ("active", 0), "{name}");
    }
    fs::write("/tmp/go-on", "").expect("/tmp is for all");
    of.wait_for("unit-not-stopped", "kept", "still run");
    of.wait_for("unit-not-stopped", "due", "still run");
    let told = ["unit-start", "unit-stopped", "unit-not-stopped"];
    assert_eq!(told.map(|kind| of.told(kind, "kept").len()), [1, 0, 1]);
    assert_eq!(told.map(|kind| of.told(kind, "due").len()), [1, 0, 2]);
    assert_eq!(told.map(|kind| of.told(kind, "new").len()), [0, 0, 0]);
}

#[test]
fn at_a_shutdown_nothing_is_started_or_stopped_and_one_line_says_what_is_left() {
    let Some(tree) = tree!() else { return };
    tree.boot("machine", As::Root, || {
        // As poweroff.target, but for what pulls the plug.
        let off = "[Unit]\nDefaultDependencies=no\nRequires=shutdown.target\nAfter=shutdown.target\n";
        SYSTEM.unit_file("off.target", off);
        let off = "systemctl start --no-block --job-mode=replace-irreversibly off.target";
        shut_down(SYSTEM, "pfwd.service", "/etc/pfwd.toml", off);
        SYSTEM.wait_for_state("kept", "inactive");
    });
    tree.boot("user", As::Tester, || {
        let file = shell("echo ~/.config/qrexec-connect.toml");
        shut_down(Of { user: true }, "qrexec-connect.service", &file, "systemctl --user --no-block exit");
    });
}

/// Clients that come around the deadline, one after another at each port; what those have met who got no echo.
fn arrivals(ports: &[u16], each: usize) -> Vec<String> {
    let visits = |from: u16| {
        let (mut dice, mut bad) = (u64::from(from), Vec::new());
        // When the unit is really stopped, in milliseconds after a session: its time, and what the service needs.
        let mut stop = 1050;
        for n in 0..each {
            let came = Instant::now();
            let mut wire = port(from);
            let mut bytes = [0; 5];
            match wire.write_all(b"hello").and_then(|()| wire.read_exact(&mut bytes)) {
                Ok(()) => assert_eq!(&bytes, b"hello"),
                Err(e) => bad.push(format!("{from}, client {n}: {e}")),
            }
            drop(wire);
            // A start takes longer than 30 ms: this client came after the stop.
            stop = if came.elapsed() > Duration::from_millis(30) { stop - 20 } else { stop + 20 }.clamp(1000, 1500);
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // -30 to +60 ms around it
            thread::sleep(Duration::from_millis(stop - 30 + (dice >> 33) % 90));
        }
        bad
    };
    thread::scope(|scope| {
        let all: Vec<_> = ports.iter().map(|from| scope.spawn(move || visits(*from))).collect();
        all.into_iter().flat_map(|one| one.join().expect("it connects")).collect()
    })
}

/// Services of both kinds, each of which stops at its own pace; `forwards` serves them. All clients are served, and
/// each stop is ours.
#[track_caller]
fn storm(of: Of, services: u16, each: usize, forwards: impl FnOnce(&[(String, u16)])) {
    let names: Vec<_> = (0..services).map(|n| (format!("u{n}"), n)).collect();
    for (name, n) in &names {
        let kind = if n % 2 == 0 { "notify slow:30" } else { "late:30" };
        of.service(name, &format!("tcp:{} {kind}", 8001 + n), &format!("ExecStop=/bin/sleep 0.0{}", n % 5));
    }
    forwards(&names);
    let ports: Vec<u16> = (2001..2001 + services).collect();
    let (mut bad, mut stops, mut came) = (Vec::new(), [0, 0], 0);
    // The clients of a machine that is late for once meet no stop in between: then as many come again.
    for _ in 0..5 {
        bad.extend(arrivals(&ports, each));
        (stops, came) = ([0, 0], came + each);
        for (name, n) in &names {
            of.wait_for_state(name, "inactive");
            assert_eq!(of.told("unit-not-stopped", name), [""; 0]);
            assert_eq!(of.told("unit-failed", name), [""; 0]);
            let [started, stopped] = ["unit-start", "unit-stopped"].map(|kind| of.told(kind, name).len());
            // A stop that waits in the queue still is cancelled by the next start, which then begins nothing.
            assert!(started <= stopped, "{name}: {started} starts, {stopped} stops");
            stops[usize::from(n % 2)] += stopped;
        }
        if stops[0] + stops[1] > came {
            break;
        }
    }
    let [notify, simple] = stops;
    // On stderr: on stdout the name of the test stands before it.
    tell(&format!(
        "SAMPLE {} arrivals at Type=notify, {notify} stops; as many at services that listen late, {simple} stops; {} bad",
        usize::from(services / 2) * came,
        bad.len()
    ));
    assert_eq!(bad, [""; 0]);
    assert!(notify + simple > came, "{stops:?} stops: the arrivals have missed the deadlines");
}

/// The boots of a storm: 5,000 arrivals at each kind of service, in all, where it has its full length.
fn boots_of_a_storm(each: usize) -> Range<usize> {
    0..if each >= STORM { 4 } else { 1 }
}

/// Arrivals at each of eight services, in each of four boots.
const STORM: usize = 5_000 / 4 / 4 + 1;

#[test]
fn clients_that_come_around_the_deadline_are_all_served() {
    let each = sample("arrivals at each of 8 services, four times", 6, STORM);
    for n in boots_of_a_storm(each) {
        let Some(tree) = tree!() else { return }; // a journal of its own
        tree.boot(&format!("arrivals {n}"), As::Root, || {
            storm(SYSTEM, 8, each, |names| {
                let one = |(name, n): &(String, u16)| forward(2001 + n, 8001 + n, &unit(name, 1));
                serve(&names.iter().map(one).collect::<Vec<_>>());
            });
        });
    }
}

#[test]
fn units_of_a_user_are_started_and_stopped_by_the_service_of_that_user_which_stays_for_that() {
    let each = sample("arrivals at each of 4 services (all: 8), four times", 4, STORM);
    for n in boots_of_a_storm(each) {
        let Some(tree) = tree!() else { return }; // a journal of its own
        tree.boot(&format!("user {n}"), As::Tester, || {
            service_drop_in(
                "idle",
                "[Service]\nExecStart=\nExecStart=/usr/bin/qrexec-connect serve --exit-idle-time=1\n",
            );
            let services = if each >= STORM { 8 } else { 4 };
            storm(Of { user: true }, services, each, |names| {
                for (name, n) in names {
                    let target = format!("target=127.0.0.1+{},start_unit={name},stop_when_idle=1", 8001 + n);
                    socket(name, &format!("127.0.0.1:{}", 2001 + n), &target);
                }
                let names: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
                enable_now(&names);
            });
            // The service ends when there is nothing more to stop.
            eventually("it has ended", || property("ActiveState") == "inactive");
            visit(2001);
        });
    }
}

/// Fifty datagrams through a listener come back in order, each once.
#[track_caller]
fn fifty_datagrams(to: u16, between: impl FnOnce()) {
    let asker = asker_of(to);
    for n in 0..50u8 {
        asker.send(&[n]).expect("it is sent");
    }
    between();
    let mut answers = Vec::new();
    while answers.len() < 50 {
        let mut buffer = [0; 16];
        let n = asker.recv(&mut buffer).unwrap_or_else(|e| panic!("after {answers:?}: {e}"));
        assert_eq!(n, 1);
        answers.push(buffer[0]);
    }
    assert_eq!(answers, (0..50).collect::<Vec<u8>>());
}

#[test]
fn datagrams_wait_for_their_unit_over_a_restart_too_and_start_it_again_when_it_has_gone() {
    let Some(tree) = tree!() else { return };
    tree.boot("udp", As::Root, || {
        let of = SYSTEM;
        of.service("late", "udp:8001 late:400", "");
        of.service("slow", "udp:8002", "ExecStartPre=/bin/sleep 1");
        of.service("bad", "udp:8003 fail", "");
        of.service("gone", "udp:8004", "");
        serve(&[
            datagrams(2001, 8001, &unit("late", 1)),
            datagrams(2002, 8002, &unit("slow", 1)),
            datagrams(2003, 8003, &unit("bad", 1)),
            datagrams(2004, 8004, &unit("gone", 600)).replace("udp_idle_timeout = 1\n", "udp_idle_timeout = 600\n"),
        ]);
        fifty_datagrams(2001, || {});
        fifty_datagrams(2002, || {
            of.wait_for_state("slow", "activating");
            shell("systemctl restart pfwd.service");
        });
        let asker = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        // under load, the journal may have the last words of a unit only when the next start fails
        eventually("the client's events tell the last line of the unit", || {
            asker.send_to(b"x", "127.0.0.1:2003").expect("it is sent");
            of.told("session-failed", "bad").iter().any(|text| text.contains("the model file is missing"))
        });
        for name in ["late", "slow"] {
            of.wait_for_state(name, "inactive");
            assert_eq!(of.told("unit-start", name).len(), 1, "{name}");
        }
        // A flow that goes on when its unit has gone.
        let asker = asker_of(2004);
        asker.set_read_timeout(Some(Duration::from_secs(1))).expect("not zero");
        let answered = || asker.send(b"x").is_ok() && asker.recv(&mut [0; 16]).is_ok();
        eventually("it answers", answered);
        for starts in 2..4 {
            of.systemctl("stop gone.service");
            eventually("it answers again", answered);
            assert_eq!(of.told("unit-start", "gone").len(), starts);
        }
    });
}
