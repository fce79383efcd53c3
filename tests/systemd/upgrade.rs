//! An upgrade under live sessions: the service runs the programs of an earlier commit, others are put in their place,
//! the service restarts. Then the way back.
//!
//! The earlier programs are built once, from the history of this repository, and kept in the target directory. A copy
//! of the repository that has no such commit (a shallow clone, an unpacked archive) cannot run these tests: they say
//! so on stderr and pass; with `CI=true` that is a failure.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg},
    sys::signal::Signal,
};
use serde_json::Value;

use crate::{
    crash::{KILL, crash, echo_at},
    crowd::{Crowd, Kind, Place, Rate},
    faults,
    remote::{answer, with_a_qube},
    service::{
        assert_each_session_is_told_once, assert_no_complaints_but, assert_stops_clean, calls, enable_now, events,
        main_pid, messages, property, sessions_told_once, settled, socket, text,
    },
    support::{
        Activation, FakeQrexec, PATIENCE, Pace, Process, Wire, eventually, exchange, fake_qrexec::What, program, run,
        skip,
    },
    tree::{As, Tree, attempt, installed_fake, shell, user_unit},
};

/// The commit upgraded from. Its records of sessions and listeners are version 1, its counters' file too.
const EARLIER: &str = "9498472ecad32ddb4ce3cedec7383ebb7af30d7b";

const PROGRAMS: [&str; 4] = ["qrexec-connect", "pfwd", "qvm-remote", "qvm-remote-dom0"];

/// Where both pairs of programs lie inside, in `earlier` and `present`.
const VERSIONS: &str = "usr/lib/forwarder-versions";

// ---------------------------------------------------------------------------------------------- the earlier programs

/// A directory with the earlier programs; or why there is none.
fn earlier_programs() -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo's target directory");
    let place = target.join(format!("earlier-{}", &EARLIER[..7]));
    let programs = place.join("programs");
    fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", place.display()))?;
    // one test builds, the others wait for it
    let lock = fs::File::create(place.join("lock")).map_err(|e| e.to_string())?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e.to_string())?;
    if PROGRAMS.iter().all(|program| programs.join(program).exists()) {
        return Ok(programs);
    }
    let _ = fs::remove_dir_all(&programs); // it may lack one that this version of the tests wants
    let (source, part) = (place.join("source"), place.join("part"));
    for left in [&source, &part] {
        let _ = fs::remove_dir_all(left); // of a run that was interrupted
        fs::create_dir(left).map_err(|e| e.to_string())?;
    }
    let mut unpack = Command::new("/bin/bash");
    // the clone may belong to somebody else than root, who runs the tests
    let git = format!("git -c safe.directory='*' -C \"$1\" archive {EARLIER} | tar -x -C \"$2\"");
    unpack.args(["-euo", "pipefail", "-c", &git, "unpack", env!("CARGO_MANIFEST_DIR")]).arg(&source);
    let output = run(unpack);
    if !output.status.success() {
        return Err(format!("no commit {EARLIER} here: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    rename_targets(&source.join("Cargo.toml"));
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // an example, because with it the dependencies have the features that they have for tests: they are built already
    cargo.args(["build", "--locked", "--quiet", "--example", "earlier-fake-qrexec-client-vm"]);
    cargo.args(PROGRAMS.iter().flat_map(|program| ["--bin".to_owned(), format!("earlier-{program}")]));
    cargo.arg("--target-dir").arg(target).env("CARGO_INCREMENTAL", "0").current_dir(&source).stdin(Stdio::null());
    let output = cargo.output().map_err(|e| format!("cargo: {e}"))?; // takes as long as it takes
    assert!(output.status.success(), "cargo build of {EARLIER}:\n{}", String::from_utf8_lossy(&output.stderr));
    for program in PROGRAMS {
        let built = target.join("debug").join(format!("earlier-{program}"));
        fs::copy(&built, part.join(program)).map_err(|e| format!("{}: {e}", built.display()))?;
    }
    fs::rename(&part, &programs).map_err(|e| e.to_string())?;
    fs::remove_dir_all(source).map_err(|e| e.to_string())?;
    Ok(programs)
}

/// Gives what is built by a manifest other names, so that it can be built in the present target directory, beside the
/// present programs.
fn rename_targets(manifest: &Path) {
    let text = fs::read_to_string(manifest).expect("it was unpacked");
    let (package, targets) = text.split_once("\n[[bin]]").expect("it has programs");
    let package = package.lines().filter(|line| !line.starts_with("default-run")).collect::<Vec<_>>().join("\n");
    let (targets, rest) = targets.split_once("\n[dependencies]").expect("it has dependencies");
    let targets = targets.replace("\nname = \"", "\nname = \"earlier-");
    let text = format!("{package}\n\n[workspace]\n\n[[bin]]{targets}\n[dependencies]{rest}");
    fs::write(manifest, text).expect("it was unpacked");
}

/// The tree with both versions in it, the earlier one in place; None, after a loud word, where it cannot be built.
pub(crate) fn with_both_versions(tree: Tree) -> Option<Tree> {
    if tree.is_outside() {
        let earlier = match earlier_programs() {
            Ok(earlier) => earlier,
            Err(why) => {
                skip(&why);
                return None;
            }
        };
        for program in PROGRAMS {
            tree.put(&earlier.join(program), &format!("{VERSIONS}/earlier/{program}"));
        }
    }
    // what is in place can be changed by the tester, too
    Some(tree.prepare(&format!(
        "mkdir -p -m 755 /{VERSIONS}/present; mkdir -m 777 /srv/programs
         for program in {}; do
           mv /usr/bin/$program /{VERSIONS}/present; ln -s /srv/programs/$program /usr/bin
           cp /{VERSIONS}/earlier/$program /srv/programs
         done",
        PROGRAMS.join(" ")
    )))
}

/// Inside: puts a version in place as a package manager does it, another file under the same name.
pub(crate) fn install(version: &str) {
    PROGRAMS.iter().for_each(|program| install_one(version, program));
}

fn install_one(version: &str, program: &str) {
    shell(&format!(
        "cd /srv/programs; cp /{VERSIONS}/{version}/{program} new; mv -f new {program}; chmod 755 {program}"
    ));
}

/// Inside: the process runs this version's program.
#[track_caller]
pub(crate) fn assert_runs(pid: u32, version: &str, program: &str) {
    shell(&format!("cmp /proc/{pid}/exe /{VERSIONS}/{version}/{program}"));
}

// ----------------------------------------------------------------------------------------------------------- inside

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

#[track_caller]
fn exchange_some(wire: &mut Wire) {
    wire.write_all(b"there and back").expect("connected");
    wire.expect(b"there and back");
}

/// Somebody who asks over UDP, always from the same port.
struct Asker(UdpSocket);

impl Asker {
    fn new(server: u16) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.connect(("127.0.0.1", server)).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
        Self(socket)
    }

    #[track_caller]
    fn ask(&self) {
        let mut answer = [0; 64];
        self.0.send(b"a question").expect("sent");
        let len = self.0.recv(&mut answer).expect("answered");
        assert_eq!(&answer[..len], b"a question");
    }
}

fn echo_udp(port: u16) {
    let socket = UdpSocket::bind(("127.0.0.1", port)).expect("a free port");
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
}

/// One number out of what `COMMAND metrics` prints, with these labels among others: the earlier version has fewer.
#[track_caller]
fn metric(command: &str, name: &str) -> u64 {
    let all = shell(&format!("{command} metrics"));
    let parts = |sample: &str| -> Vec<String> {
        sample.split(['{', '}', ',', ' ']).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let wanted = parts(name);
    let value = all.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let (sample, value) = line.rsplit_once(' ')?;
        let has = parts(sample);
        (has[0] == wanted[0] && wanted.iter().all(|part| has.contains(part))).then_some(value)
    });
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in\n{all}"))
}

#[track_caller]
fn json(command: &str) -> Value {
    let said = shell(&format!("{command} --json || [ $? = 1 ]"));
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{command}: {e}: {said}"))
}

fn here(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").expect("with-systemd sets it")).join(name)
}

#[test]
fn an_upgrade_and_the_way_back_keep_every_session_call_and_counter() {
    let Some(tree) = tree!() else { return };
    let Some(tree) = with_both_versions(tree) else { return };
    tree.boot("upgrade", As::Tester, || {
        let fake = installed_fake();
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        socket("unix", "%t/unix", "uds=%t/server");
        socket("call", "127.0.0.1:2002", "work test.Tcp+7001");
        // one of each is served by the present version, the other by the earlier one again
        for n in 0..2 {
            socket(&format!("late{n}"), &format!("127.0.0.1:201{n}"), &format!("uds=%t/late{n},connect_timeout=300"));
            socket(&format!("gate{n}"), &format!("127.0.0.1:202{n}"), &format!("other{n} test.Gate+open{n}"));
        }
        socket("counted", "127.0.0.1:2005", "work test.Echo");
        socket("paused", "127.0.0.1:2006", "work test.Echo");
        user_unit(
            "qrexec-connect-udp.socket",
            "[Socket]\nListenDatagram=127.0.0.1:2007\nFileDescriptorName=target=127.0.0.1+7007\n",
        );
        enable_now(&["tcp", "unix", "call", "late0", "late1", "gate0", "gate1", "counted", "paused", "udp"]);
        echo_udp(7007);
        let asker = Asker::new(2007);
        asker.ask();
        assert_runs(main_pid(), "earlier", "qrexec-connect");

        let mut crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        crowd.serve(&Place::Unix(here("server")));
        for (place, n) in [(Place::Tcp(2001), 30), (Place::Unix(here("unix")), 30), (Place::Tcp(2002), 8)] {
            crowd.join(n, &place, Kind::Echo, Rate::CALM);
            crowd.join(2, &place, Kind::Echo, Rate::BUSY);
            crowd.join(4, &place, Kind::PeerEnded, Rate::CALM);
            crowd.join(4, &place, Kind::ServerEnded, Rate::CALM);
        }
        crowd.wait_until_served_but(0);
        for n in 0..2 {
            crowd.join(3, &Place::Tcp(2010 + n), Kind::Echo, Rate::CALM);
            crowd.join(3, &Place::Tcp(2020 + n), Kind::Plain, Rate::CALM);
        }
        let mut counted = port(2005);
        exchange_some(&mut counted);
        exchange(&mut port(2005), 1, 1000, Pace::BULK);
        shell("qrexec-connect pause 127.0.0.1:2006");
        let started = 18 + 6 + 2;
        fake.wait_for_started(started);
        let sessions = crowd.len() + 2; // those that are counted one by one, and the flow
        let all = format!("10 listeners, {sessions} sessions");
        eventually("all sessions are there", || property("StatusText").ends_with(&all));
        eventually("one of two is over", || metric("qrexec-connect", EOF) == 1);
        let children = calls();
        assert_eq!(children.len(), started - 1);

        let mut pid = main_pid();
        for (n, version) in [(0, "present"), (1, "earlier")] {
            install(version);
            shell("systemctl --user restart qrexec-connect.service");
            settled();
            assert_ne!(main_pid(), pid);
            pid = main_pid();
            assert_runs(pid, version, "qrexec-connect");
            assert_eq!(messages("handover-lost"), <[String; 0]>::default(), "lost by the {version} version");
            eventually("all sessions are there", || property("StatusText").ends_with(&all));
            // bytes flow both ways, of those who were there and of those who come
            crowd.wait_for_bytes(1_000_000);
            exchange_some(&mut counted);
            asker.ask();
            for place in [2001, 2002] {
                let mut wire = port(place);
                wire.write_all(b"e\0\0\0\0\0\0\0\0").expect("it is served");
                exchange(&mut wire, n, 2000, Pace::BULK);
            }
            assert_eq!(crowd.gone(), 0, "sessions were cut by the {version} version");
            let children_now: Vec<_> = calls().into_iter().filter(|pid| children.contains(pid)).collect();
            assert_eq!(children_now, children, "no call was lost");
            // what was counted and what was told to it
            assert_eq!(metric("qrexec-connect", "qrexec_connect_handovers_total"), n + 1);
            let accepted = "qrexec_connect_sessions_accepted_total{listener=\"127.0.0.1:2005\"}";
            assert_eq!(metric("qrexec-connect", accepted), 2);
            assert_eq!(metric("qrexec-connect", EOF), 1);
            let up = "qrexec_connect_delivered_bytes_total{listener=\"127.0.0.1:2005\",direction=\"up\"}";
            assert_eq!(metric("qrexec-connect", up), 1000 + 14 * (n + 2));
            assert_eq!(metric("qrexec-connect", "qrexec_connect_listener_paused{listener=\"127.0.0.1:2006\"}"), 1);
            // those who waited, through this restart or through both
            crowd.serve(&Place::Unix(here(&format!("late{n}"))));
            fake.open(&format!("open{n}"));
            crowd.wait_until_served_but(if n == 0 { 6 } else { 0 });
        }
        assert_eq!(fake.started(), started + 2, "each call was made once");

        crowd.dismiss_unharmed();
        drop(counted);
        eventually("the flow is alone", || property("StatusText").ends_with(", 1 session"));
        let flow = json("qrexec-connect sessions")["sessions"][0]["id"].as_str().expect("text").to_owned();
        shell(&format!("qrexec-connect kill {flow}"));
        let told = sessions + 1 + 4;
        eventually("the journal has it all", || events("session-end").len() == told);
        assert_eq!(assert_each_session_is_told_once(), told);
        for end in events("session-end") {
            let flow = text(&end, "SESSION_ID") == flow;
            assert_eq!(text(&end, "END"), if flow { "killed" } else { "eof" }, "{end:#?}");
        }
        assert_no_complaints_but(&[]);
        assert_stops_clean();
    });
}

/// The keeper is the earlier one throughout: it knows nothing of crashes.
#[test]
fn a_crash_after_an_upgrade_costs_no_session_and_neither_does_the_way_back() {
    let Some(tree) = tree!() else { return };
    let Some(tree) = with_both_versions(tree) else { return };
    tree.boot("upgrade", As::Tester, || {
        let _fake = installed_fake();
        socket("tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        socket("call", "127.0.0.1:2002", "work test.Echo");
        enable_now(&["tcp", "call"]);
        echo_at(7001);
        let mut wires = [port(2001), port(2002)];
        let mut all_echo = || wires.iter_mut().for_each(exchange_some);
        all_echo();
        // Not before: the first connection starts the keeper.
        let keeper = shell("systemctl --user show -p MainPID --value qrexec-connect-calls.service");
        let keeper = keeper.trim().parse().expect("a number");
        install("present");
        shell("systemctl --user restart qrexec-connect.service");
        settled();
        all_echo();
        for _ in 0..2 {
            crash(KILL);
            assert_runs(main_pid(), "present", "qrexec-connect");
            all_echo();
        }
        install("earlier");
        shell("systemctl --user restart qrexec-connect.service");
        settled();
        assert_runs(main_pid(), "earlier", "qrexec-connect");
        all_echo();
        assert_eq!(messages("handover-lost"), <[String; 0]>::default());
        assert_eq!(property("NFileDescriptorStore"), "0");
        assert_runs(keeper, "earlier", "qrexec-connect");
        drop(wires);
        assert_stops_clean();
    });
}

const EOF: &str = "qrexec_connect_sessions_ended_total{listener=\"127.0.0.1:2005\",end=\"eof\"}";

// ------------------------------------------------------------------------------------------------------------- pfwd

/// In a network namespace, by a thread that stays there.
fn inside<T: Send>(namespace: Option<&str>, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Some(name) = namespace {
                let file = fs::File::open(Path::new("/run/netns").join(name)).expect("it was made");
                nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root may");
            }
            body()
        });
        thread.join().expect("no panic")
    })
}

/// The inode of the TCP socket that listens on `port` in a namespace: another socket has another one.
#[track_caller]
fn listening(namespace: Option<&str>, port: u16) -> String {
    let table = inside(namespace, || fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc is mounted"));
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // proc_net_tcp(5): local address, state 0A is LISTEN, inode
    let mut found = fields.filter(|f| f.len() > 9 && f[3] == "0A" && f[1].ends_with(&format!(":{port:04X}")));
    found.next().unwrap_or_else(|| panic!("nobody listens on {port} in {namespace:?}\n{table}"))[9].to_owned()
}

/// `pfwd.service` is ready and the manager has nothing left to do.
#[track_caller]
fn pfwd_settled() {
    eventually("pfwd is ready and no job is left", || {
        shell("systemctl is-active pfwd.service || true; systemctl list-jobs --no-legend") == "active"
    });
}

#[track_caller]
fn pfwd_property(name: &str) -> String {
    shell(&format!("systemctl show -p {name} --value pfwd.service"))
}

/// The earlier version knows no `start_unit`: it refuses the listener, and leaves the unit and its file alone.
#[test]
fn a_unit_started_for_sessions_goes_on_over_the_way_back_and_the_next_upgrade_stops_it() {
    let Some(tree) = tree!() else { return };
    let Some(tree) = with_both_versions(tree) else { return };
    tree.boot("upgrade", As::Root, || {
        let unit = "[Service]\nType=notify\nEnvironment=\"FORWARDER_PROGRAM=tcp:7001 notify\"\n\
                    ExecStart=/usr/lib/forwarder-tests/deps/systemd --exact ondemand::the_program_of_a_unit --nocapture\n";
        fs::write("/etc/systemd/system/echo.service", unit).expect("root's own tree");
        let never = unit.replace("tcp:7001", "tcp:7003 slow:600000");
        fs::write("/etc/systemd/system/never.service", never).expect("root's own tree");
        for (name, kind, port, to) in [
            ("plain", "Stream", 2001, "7009"),
            ("asked", "Stream", 2002, "7001,start_unit=echo,stop_when_idle=1"),
            ("waits", "Stream", 2003, "7003,start_unit=never"),
            ("sent", "Datagram", 2004, "7004,start_unit=never"),
        ] {
            let text =
                format!("[Socket]\nListen{kind}=127.0.0.1:{port}\nFileDescriptorName=target=127.0.0.1+{to}\n");
            fs::write(format!("/etc/systemd/system/pfwd-{name}.socket"), text).expect("root's own tree");
        }
        echo_at(7009);
        let sockets = "pfwd-plain.socket pfwd-asked.socket pfwd-waits.socket pfwd-sent.socket";
        shell(&format!("systemctl daemon-reload; systemctl start {sockets}"));
        let mut plain = port(2001);
        exchange_some(&mut plain);
        pfwd_settled();
        let said = |text: &str| shell("journalctl -q -o cat -t pfwd").matches(text).count();
        let state = || attempt("systemctl is-active echo.service").1;
        let become_version = |version: &str| {
            install(version);
            shell("systemctl restart pfwd.service");
            eventually("pfwd is ready", || {
                shell("systemctl is-active pfwd.service || true; systemctl list-jobs --no-legend 'pfwd*'") == "active"
            });
            assert_runs(pfwd_property("MainPID").parse().expect("a number"), version, "pfwd");
        };
        assert_runs(pfwd_property("MainPID").parse().expect("a number"), "earlier", "pfwd");
        eventually("the earlier version refuses the key", || said("start_unit") > 0);
        assert_eq!(state(), "inactive");
        // Twice: the file outlives a restart of the earlier version; its stop loses it.
        for stopped in [false, true] {
            become_version("present");
            exchange_some(&mut plain);
            let mut asked = port(2002);
            exchange_some(&mut asked);
            assert_eq!(state(), "active");
            let mut waits = None;
            if stopped {
                let wire = port(2003);
                let asker = Asker::new(2004);
                asker.0.send(b"x").expect("sent");
                let wait = || json("pfwd sessions")["sessions"].as_array().map(|all| all.iter().filter(|s| s["connected"] == false).count());
                eventually("both wait for their unit", || wait() == Some(2));
                waits = Some((wire, asker));
            }
            become_version("earlier");
            waits.into_iter().for_each(|(mut wire, _)| wire.expect_reset());
            exchange_some(&mut plain);
            exchange_some(&mut asked);
            drop(asked);
            eventually("the session is over", || pfwd_property("StatusText").ends_with(", 1 session"));
            if stopped {
                drop(plain);
                // The service first: a socket that stops asks for a restart, which keeps the file.
                shell(&format!("systemctl stop pfwd.service; systemctl stop {sockets}"));
                assert!(!Path::new("/run/pfwd").exists());
                assert_eq!(state(), "active");
                install("present");
                shell(&format!("systemctl start {sockets}"));
                exchange_some(&mut port(2002));
                eventually("it is somebody else's", || said("echo.service is not stopped when it is idle") == 1);
                break;
            }
            assert_eq!(state(), "active");
            become_version("present");
            exchange_some(&mut plain);
            eventually("it is stopped", || state() == "inactive");
            eventually("that is told", || said("echo.service is stopped after ") == 1);
        }
        assert_eq!((state().as_str(), said("echo.service is stopped after ")), ("active", 1));
        assert_eq!(said("echo.service is started for a connection"), 2);
    });
}

#[test]
fn an_upgrade_and_the_way_back_keep_the_listeners_of_the_file_with_their_sessions() {
    let Some(tree) = tree!() else { return };
    let Some(tree) = with_both_versions(tree) else { return };
    let config = "\
[defaults]
mode = \"0640\"
owner = \"root:root\"
uds_dir = \"/run/forwards\"

[[forward]]
uds = \"echo.sock\"
target = \"127.0.0.1:7001\"

[[forward]]
listen = \"127.0.0.1:2001\"
uds = \"/run/forwards/echo.sock\"

[[forward]]
listen = \"127.0.0.1:2002\"
listen_namespace = \"blue\"
target = \"127.0.0.1:7001\"

[[forward]]
listen = \"127.0.0.1:2003\"
qrexec = \"work test.Echo\"

[[forward]]
udp_listen = \"127.0.0.1:2004\"
udp_target = \"127.0.0.1:7004\"

[[forward]]
udp_listen = \"127.0.0.1:2005\"
udp_target = \"127.0.0.1:7005\"
";
    tree.boot("upgrade", As::Root, || {
        let fake = installed_fake();
        fs::write("/etc/pfwd.toml", config).expect("root's own tree");
        // the process of this unit goes on over an upgrade: it is that of the earlier version, which had no keeper
        fs::create_dir_all("/etc/systemd/system/pfwd-calls.service.d").expect("root's own tree");
        let unit = "[Service]\nExecStart=\nExecStart=/usr/bin/sleep infinity\n";
        fs::write("/etc/systemd/system/pfwd-calls.service.d/earlier.conf", unit).expect("root's own tree");
        shell("ip netns add blue; ip -n blue link set lo up; systemctl daemon-reload; systemctl start pfwd.service");
        pfwd_settled();
        let server = std::net::TcpListener::bind("127.0.0.1:7001").expect("a free port");
        thread::spawn(move || {
            for stream in server.incoming().flatten() {
                let mut other = stream.try_clone().expect("a descriptor");
                thread::spawn(move || {
                    std::io::copy(&mut &stream, &mut other).map(|_| other.shutdown(std::net::Shutdown::Write))
                });
            }
        });
        echo_udp(7004);
        let path = Path::new("/run/forwards/echo.sock");
        let in_blue = || {
            let address = SocketAddr::from(([127, 0, 0, 1], 2002));
            Wire::from_tcp(
                inside(Some("blue"), || TcpStream::connect_timeout(&address, PATIENCE)).expect("it is served"),
            )
        };
        let connect_all = || [Wire::unix(path), port(2001), in_blue(), port(2003)];
        let (asker, refused) = (Asker::new(2004), Asker::new(2005));
        refused.0.send(b"x").expect("sent");
        let mut wires = connect_all();
        wires.iter_mut().for_each(exchange_some);
        asker.ask();
        // of 2001 both halves are sessions
        let (text_before, calls) = ("6 forwards, 7 sessions", || fake.started());
        eventually("all sessions are there", || pfwd_property("StatusText") == text_before);
        assert_eq!(calls(), 1);
        let sockets = || {
            let unix = fs::symlink_metadata(path).expect("it is served");
            (
                unix.dev(),
                unix.ino(),
                [(None, 2001), (Some("blue"), 2002), (None, 2003)].map(|(ns, port)| listening(ns, port)),
            )
        };
        let before = sockets();
        let mut pid = pfwd_property("MainPID");
        for (n, version) in [(0u64, "present"), (1, "earlier")] {
            install(version);
            shell("systemctl restart pfwd.service");
            pfwd_settled();
            assert_ne!(pfwd_property("MainPID"), pid);
            pid = pfwd_property("MainPID");
            assert_runs(pid.parse().expect("a number"), version, "pfwd");
            assert_eq!(sockets(), before, "the {version} version has made sockets anew");
            wires.iter_mut().for_each(exchange_some);
            asker.ask();
            assert_eq!(pfwd_property("StatusText"), text_before, "the {version} version");
            let mut others = connect_all();
            for (seed, wire) in others.iter_mut().enumerate() {
                exchange(wire, seed as u64, 20_000, Pace::BULK);
            }
            drop(others);
            eventually("those are over", || pfwd_property("StatusText") == text_before);
            assert_eq!(metric("pfwd", "pfwd_handovers_total"), n + 1);
            let accepted = "pfwd_sessions_accepted_total{listener=\"127.0.0.1:2003\"}";
            assert_eq!(metric("pfwd", accepted), n + 2);
            assert_eq!(calls() as u64, n + 2, "each call was made once");
        }
        drop(wires);
        eventually("the flows are alone", || pfwd_property("StatusText") == "6 forwards, 2 sessions");
        // the losses of a flow are counted by the present version alone: a downgrade loses their number
        install("present");
        shell("systemctl restart pfwd.service");
        pfwd_settled();
        for bytes in 2..=3 {
            refused.0.send(b"x").expect("sent");
            let passed = |session: &Value| session["listener"] == "127.0.0.1:2005" && session["up_bytes"] == bytes;
            let sessions = || json("pfwd sessions")["sessions"].as_array().expect("a list").clone();
            eventually("it is passed on", || sessions().iter().any(passed));
        }
        shell("systemctl stop pfwd.service");
        assert!(!path.exists());
        let journal = "journalctl -q -t pfwd";
        // by each of both versions five of the second kind: 2001 has two
        eventually("the journal has it all", || sessions_told_once(journal).len() == 5 + 2 + 2 * 5);
        let ends = sessions_told_once(journal);
        let drained = ends.values().filter(|end| *end == "drained").count();
        let eof = ends.values().filter(|end| *end == "eof").count();
        assert_eq!((drained, eof), (2, 15), "the flows lived until the stop: {ends:#?}");
        let refused = "journalctl -q -o cat -t pfwd | grep -c '; 2 datagrams refused$' || true";
        eventually("the refused datagrams are counted", || shell(refused) == "1");
        assert_eq!(shell("systemctl is-failed pfwd.service || true"), "inactive");
        assert_eq!(shell("journalctl -q -o cat -p warning -t systemd | grep -i pfwd || true"), "");
    });
}

/// The earlier version has one counter and one pause for TCP and UDP on one address: the present one reads the counter
/// as that of TCP and the pause as one of both. A downgrade loses the counter and the pause of UDP.
#[test]
fn an_upgrade_reads_counters_of_an_address_as_those_of_tcp_and_a_pause_as_one_of_both() {
    let Some(tree) = tree!() else { return };
    let Some(tree) = with_both_versions(tree) else { return };
    let config = "\
[[forward]]
label = \"dns\"
listen = \"127.0.0.1:2005\"
target = \"127.0.0.1:7005\"

[[forward]]
label = \"dns-udp\"
udp_listen = \"127.0.0.1:2005\"
udp_target = \"127.0.0.1:7005\"
";
    tree.boot("upgrade", As::Root, || {
        fs::write("/etc/pfwd.toml", config).expect("root's own tree");
        shell("systemctl daemon-reload; systemctl start pfwd.service");
        pfwd_settled();
        let server = std::net::TcpListener::bind("127.0.0.1:7005").expect("a free port");
        echo_udp(7005);
        let tcp = port(2005);
        let far = server.accept().expect("it is served");
        let asker = Asker::new(2005);
        asker.ask();
        let accepted = |labels: &str| {
            metric("pfwd", &format!("pfwd_sessions_accepted_total{{listener=\"127.0.0.1:2005\"{labels}}}"))
        };
        assert_eq!(accepted(""), 2, "in one");
        shell("pfwd pause 127.0.0.1:2005");
        let restart = |version: &str| {
            install(version);
            shell("systemctl restart pfwd.service");
            pfwd_settled();
            assert_runs(pfwd_property("MainPID").parse().expect("a number"), version, "pfwd");
        };
        let states = || {
            let report = json("pfwd status");
            let rows = report["listeners"].as_array().expect("a list").clone();
            rows.iter().map(|row| row["state"].as_str().expect("a state").to_owned()).collect::<Vec<_>>()
        };
        restart("present");
        assert_eq!(states(), ["paused", "paused"]);
        assert_eq!((accepted(",transport=\"tcp\",label=\"dns\""), accepted(",transport=\"udp\"")), (2, 0));
        shell("pfwd resume 2005/udp");
        Asker::new(2005).ask();
        assert_eq!(states(), ["paused", "serving"]);
        restart("present");
        assert_eq!(states(), ["paused", "serving"]);
        assert_eq!((accepted(",transport=\"tcp\""), accepted(",transport=\"udp\",label=\"dns-udp\"")), (2, 1));
        asker.ask();
        restart("earlier");
        assert_eq!(accepted(""), 2, "without those of UDP");
        assert_eq!(states(), ["paused", "paused"], "in one");
        restart("present");
        shell("pfwd resume dns; pfwd resume dns-udp");
        assert_eq!(states(), ["serving", "serving"]);
        drop((tcp, far));
        let ends =
            |fields: &str| shell(&format!("journalctl -q -o cat -t pfwd LISTENER=127.0.0.1:2005 {fields} END=eof"));
        eventually("the end is told", || !ends("LABEL=dns TRANSPORT=tcp").is_empty());
        assert_eq!(ends("TRANSPORT=udp"), "");
        shell("systemctl stop pfwd.service");
        let drained = "journalctl -q -o cat -t pfwd LABEL=dns-udp TRANSPORT=udp END=drained | wc -l";
        eventually("the journal has the ends of both flows", || shell(drained) == "2");
    });
}

/// The earlier version keeps no last good text. So the present one, which comes with a broken file, has none; but no
/// session is cut, and who connects to a listener of the file waits. A downgrade loses the last good texts alone.
#[test]
fn an_upgrade_with_each_kind_of_broken_file_cuts_nobody_and_the_next_fault_takes_nothing_down() {
    let Some(tree) = tree!() else { return };
    let Some(tree) = with_both_versions(tree) else { return };
    tree.boot("upgrade", As::Root, || {
        faults::echo_server();
        let write = |text: &str| fs::write("/etc/pfwd.toml", text).expect("root's own tree");
        let restarted = || {
            shell("systemctl restart pfwd.service");
            pfwd_settled();
        };
        let serves = || [2001, 2003].into_iter().for_each(|n| exchange_some(&mut port(n)));
        write(faults::GOOD);
        let unit = "[Socket]\nListenStream=127.0.0.1:2003\nFileDescriptorName=ssh\n";
        fs::write("/etc/systemd/system/pfwd-ssh.socket", unit).expect("root's own tree");
        shell("systemctl daemon-reload; systemctl start pfwd.service; systemctl start pfwd-ssh.socket");
        let mut wires: Vec<Wire> = (0..50).map(|n| port(2001 + n % 2 * 2)).collect();
        wires.iter_mut().for_each(exchange_some);
        pfwd_settled();
        for (text, place) in faults::broken() {
            write(&text);
            install_one("present", "pfwd");
            restarted();
            assert_runs(pfwd_property("MainPID").parse().expect("a number"), "present", "pfwd");
            let (code, said, _) = attempt("pfwd status");
            assert!(code == Some(1) && said.contains(place), "{place}: {code:?} {said}");
            wires.iter_mut().for_each(exchange_some);
            let mut waits = [port(2001), port(2003)];
            waits.iter_mut().for_each(|wire| wire.write_all(b"early").expect("the connection stands"));
            write(faults::GOOD);
            shell("systemctl reload pfwd.service");
            waits.iter_mut().for_each(|wire| wire.expect(b"early"));
            if place.ends_with(":1:") {
                // From the reload on there is a last good text.
                write(&text);
                restarted();
                serves();
                write(faults::GOOD);
            }
            install_one("earlier", "pfwd");
            restarted();
            serves();
            waits.iter_mut().for_each(exchange_some);
        }
        wires.iter_mut().for_each(exchange_some);
        assert_eq!(pfwd_property("StatusText").split(", ").next(), Some("2 forwards"));
    });
}

/// A range takes over the listeners, sessions, pauses and counters of the forwards that an earlier version had for its
/// ports. The earlier version cannot read a range: there the sessions go on and connections wait until its file says
/// what it can read.
#[test]
fn a_range_takes_over_the_listeners_of_an_earlier_version_and_gives_them_back() {
    let Some(tree) = tree!() else { return };
    let Some(tree) = with_both_versions(tree) else { return };
    tree.boot("upgrade", As::Root, || {
        faults::echo_server();
        let target = "target = \"127.0.0.1:7001\"";
        let single = |n: u16| format!("[[forward]]\nlisten = \"127.0.0.1:{n}\"\n{target}\n");
        let singles = (2001..=2003).map(single).collect::<String>();
        let range = format!("[[forward]]\nlabel = \"web\"\nlisten = \"127.0.0.1:2001-2004\"\n{target}\n");
        let write = |text: &str| fs::write("/etc/pfwd.toml", text).expect("root's own tree");
        let restarted = |version: &str| {
            install_one(version, "pfwd");
            shell("systemctl restart pfwd.service");
            pfwd_settled();
            assert_runs(pfwd_property("MainPID").parse().expect("a number"), version, "pfwd");
        };
        let sockets = || [2001, 2002, 2003].map(|port| listening(None, port));
        write(&singles);
        shell("systemctl start pfwd.service");
        pfwd_settled();
        let mut wires: Vec<Wire> = (2001..=2003).map(port).collect();
        wires.iter_mut().for_each(exchange_some);
        shell("pfwd pause 127.0.0.1:2002");
        let before = sockets();

        write(&range);
        restarted("present");
        assert_eq!(sockets(), before, "the present version has made sockets anew");
        assert_eq!(pfwd_property("StatusText").split(", ").next(), Some("1 forward"));
        wires.iter_mut().for_each(exchange_some);
        let states = |word: &str| -> Vec<String> {
            let (_, said, _) = attempt(&format!("pfwd status --json {word}"));
            let report: Value = serde_json::from_str(&said).expect("JSON");
            let rows = report["listeners"].as_array().expect("a list").iter();
            rows.map(|row| row["state"].as_str().unwrap_or_default().to_owned()).collect()
        };
        assert_eq!(states("web"), ["serving", "paused", "serving", "serving"]);
        assert_eq!(metric("pfwd", "pfwd_sessions_accepted_total{listener=\"127.0.0.1:2001\",label=\"web\"}"), 1);
        shell("pfwd resume web");
        wires.push(port(2004));
        wires.iter_mut().for_each(exchange_some);
        let begun =
            "journalctl -q -t pfwd LABEL=web LISTENER=127.0.0.1:2004 -o cat | grep -c 'connected after' || true";
        eventually("the journal has its start", || shell(begun) == "1");

        restarted("earlier");
        assert_eq!(sockets(), before, "the earlier version has made sockets anew");
        wires.iter_mut().for_each(exchange_some);
        let mut waits = port(2001);
        waits.write_all(b"early").expect("the connection stands");
        write(&(singles + &single(2004)));
        // the unit is the present one, whose ExecReload= the earlier program does not know
        shell("systemctl kill -s HUP --kill-who=main pfwd.service");
        waits.expect(b"early");
        assert_eq!(sockets(), before, "the earlier version has made sockets anew");
        wires.iter_mut().for_each(exchange_some);
        exchange_some(&mut port(2004));
    });
}

/// The place of a program, where one version or the other is put, as a package does.
struct Installed {
    dir: tempfile::TempDir,
}

impl Installed {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("qrexec-connect")
    }

    fn put(&self, version: &Path) {
        let _ = fs::remove_file(self.program());
        std::os::unix::fs::symlink(version, self.program()).expect("a link");
    }
}

/// Has the stand-in of systemctl answer that the unit is restarted, and ends the process.
fn order_restart(process: &Process) {
    process.signal(Signal::SIGUSR1);
    process.signal(Signal::SIGTERM);
}

/// Without systemd: the service alone, under a manager that a test plays. A session that waits for a call of its qube
/// has a field in its record that the earlier version does not know: there it begins its call at once, above the limit,
/// and its wait counts into `setup_timeout`. It is not lost.
#[test]
fn a_session_that_waits_for_a_call_goes_over_an_upgrade_and_back() {
    let earlier = match earlier_programs() {
        Ok(earlier) => earlier.join("qrexec-connect"),
        Err(why) => return skip(&why),
    };
    let installed = Installed::new();
    let fake = FakeQrexec::new();
    installed.put(&earlier);
    let mut service = Activation::of(installed.program())
        .arg("--qrexec-client")
        .arg(fake.program())
        .args(["--calls-per-qube", "1"])
        .tcp("work test.SpeaksFirst")
        .start()
        .ready();
    let mut first = service.connect(0);
    first.expect(b"ready\n");
    let mut second = service.connect(0); // in the backlog: the earlier version accepts none above the limit

    installed.put(&program("qrexec-connect"));
    service.restart(order_restart);
    service.process.stderr.wait_for("1 connection waits until a call ends");
    assert_eq!(fake.started(), 1);

    installed.put(&earlier);
    service.restart(order_restart);
    second.expect(b"ready\n");
    assert_eq!(fake.started(), 2, "above the limit of 1");
    drop((first, second));
    assert_eq!(service.ends(2).iter().filter(|end| end.down == 6).count(), 2);
    service.stop();
}

#[test]
fn a_wait_for_dom0_is_told_once_also_when_it_began_before_an_upgrade_and_again_after_a_way_back() {
    let earlier = match earlier_programs() {
        Ok(earlier) => earlier.join("qrexec-connect"),
        Err(why) => return skip(&why),
    };
    let installed = Installed::new();
    let fake = FakeQrexec::new();
    installed.put(&earlier);
    let mut service = Activation::of(installed.program())
        .arg("--qrexec-client")
        .arg(fake.program())
        .tcp("work test.Gate+yes")
        .start()
        .ready();
    let mut peer = service.connect(0);
    fake.wait_for_started(1);
    let began = fake.events()[0].at;
    // The earlier version tells nothing of it.
    let uptime = || {
        let text = fs::read_to_string("/proc/uptime").expect("proc is mounted");
        Duration::from_secs_f64(text.split(' ').next().expect("two numbers").parse().expect("seconds"))
    };
    eventually("the call is old", || uptime() > began + Duration::from_millis(2500));

    let present = program("qrexec-connect");
    installed.put(&present);
    service.restart(order_restart);
    service.process.stderr.wait_for("1 connection waits for dom0 to decide about test.Gate+yes in work");
    service.restart(order_restart);
    installed.put(&earlier); // it tells nothing, and forgets that it was told
    service.restart(order_restart);
    let told = |process: &Process| {
        process.stderr.to_the_end().iter().filter(|line| line.contains("for dom0 to decide")).count()
    };
    let [_, first, second] = &service.earlier[..] else { panic!("three were before") };
    assert_eq!((told(first), told(second)), (1, 0));
    installed.put(&present);
    service.restart(order_restart);
    service.process.stderr.wait_for("1 connection waits for dom0 to decide");
    fake.open("yes");
    exchange(&mut peer, 1, 1_000, Pace::CRUMBS);
    assert_eq!(service.process.stderr.count("for dom0 to decide"), 1);
    drop(peer);
    service.stop();
}

/// `qvm-remote` of either version with dom0 of the other, live and through the queue. The earlier dom0 goes on with the
/// sequence of the log and makes no heads: `log --verify` names its entries.
#[test]
fn a_qube_and_dom0_of_either_version_speak_with_each_other() {
    let Some(tree) = tree!() else { return };
    let Some(tree) = with_both_versions(tree) else { return };
    let tree = with_a_qube(tree);
    tree.boot("upgrade", As::Root, || {
        let both_ways = |text: &str| {
            shell("systemctl reset-failed qvm-remote-dom0; systemctl restart qvm-remote-dom0");
            eventually("the agent answers", || {
                attempt("runuser -u tester -- env HOME=/home/tester qvm-remote ping").0 == Some(0)
            });
            assert_eq!(answer(&format!("'echo {text}'")), text);
            assert_eq!(answer(&format!("--queue -t 20 'echo {text} queued'")), format!("{text} queued"));
            // a file, whose result the present versions sign with its bytes, and an ending that they explain
            let path = format!("/root/in/{}", text.replace(' ', "-"));
            answer(&format!("put /usr/lib/os-release {path}"));
            assert_eq!(answer(&format!("get {path} -")), shell("cat /usr/lib/os-release"));
            let ended = attempt("runuser -u tester -- env HOME=/home/tester qvm-remote --argv sleep 4767");
            assert_eq!(ended.0, Some(124), "{ended:?}");
        };
        shell("qvm-remote-dom0 authorize work $(cat /root/work.key); mkdir /root/in");
        let policy = "allow shell *\nallow * * [timeout=1]\nallow put /root/in\nallow get /root/in\n";
        shell(&format!("printf '{policy}' >/etc/qubes/remote.d/work.policy; systemctl start qvm-remote-dom0"));
        both_ways("both earlier");
        install_one("present", "qvm-remote-dom0");
        both_ways("an earlier qube");
        let (code, text, _) = attempt("qvm-remote-dom0 log --verify");
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("of an earlier version without a head"), "{text}");
        install_one("present", "qvm-remote");
        both_ways("both present");
        assert!(
            shell("qvm-remote-dom0 log --verify --against /home/tester/.qvm-remote/audit.log").contains("5 confirmed")
        );
        install_one("earlier", "qvm-remote-dom0");
        both_ways("an earlier dom0");
        install("present");
        both_ways("and back");
        let numbers = shell("sed 's/.* seq=//' /var/log/qubes/qvm-remote.log");
        let numbers: Vec<u64> = numbers.lines().map(|n| n.parse().expect("a number")).collect();
        assert!(numbers.windows(2).all(|two| two[1] == two[0] + 1), "{numbers:?}");
        let (code, text, _) = attempt("qvm-remote-dom0 log --verify");
        assert!(code == Some(1) && text.contains("has no head"), "{text}");
    });
}

/// A gate's back-off and a call that waits for a server to start are fields that the earlier version does not know: it
/// asks dom0 again at once, and gives the session up when the server refuses once more. Neither costs a session or a
/// counter.
#[test]
fn a_back_off_and_a_server_that_starts_late_go_over_an_upgrade_and_back() {
    let earlier = match earlier_programs() {
        Ok(earlier) => earlier.join("qrexec-connect"),
        Err(why) => return skip(&why),
    };
    let installed = Installed::new();
    let fake = FakeQrexec::new();
    installed.put(&earlier);
    let mut service = Activation::of(installed.program())
        .arg("--qrexec-client")
        .arg(fake.program())
        .tcp("work test.Refuse")
        .tcp("work test.Starts+2100")
        .with_control()
        .start()
        .ready();
    service.connect(0).expect_reset();

    installed.put(&program("qrexec-connect"));
    service.restart(order_restart);
    service.connect(0).expect_reset(); // the earlier version leaves no back-off
    let mut late = service.connect(1);
    late.write_all(b"kept").expect("accepted");
    service.process.stderr.wait_for("work has just started");
    fs::File::create(fake.dir().join("listening")).expect("ours");

    installed.put(&earlier);
    service.restart(order_restart);
    service.connect(0).expect_reset(); // asked at once
    late.half_close();
    assert_eq!(late.read_to_end(), b"kept");
    let metrics = service.asking().ok(&["metrics"]).stdout;
    assert!(metrics.contains("qrexec_connect_handovers_total 2"), "{metrics}");
    assert!(fake.count(|what| matches!(what, What::End { code: 126, .. })) == 3, "{:#?}", fake.events());
    service.stop();
}
