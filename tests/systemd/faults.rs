//! A configuration with a fault, under both managers: what worked goes on, what was refused comes back when the fault is
//! gone, and every surface names the place. And sockets whose unit lost its file.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    service::{enable_now, messages, property, settled, socket, wait_for_message},
    support::{Pace, Wire, eventually, exchange},
    tree::{As, attempt, shell, user_unit},
};

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

#[track_caller]
fn exchange_some(wire: &mut Wire) {
    wire.write_all(b"there and back").expect("connected");
    wire.expect(b"there and back");
}

pub(crate) fn echo_server() {
    let server = std::net::TcpListener::bind("127.0.0.1:7001").expect("a free port");
    std::thread::spawn(move || {
        for stream in server.incoming().flatten() {
            let mut other = stream.try_clone().expect("a descriptor");
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut other));
        }
    });
}

/// One manager, with the service that reads a configuration file there.
pub(crate) struct Managed {
    pub(crate) systemctl: &'static str,
    journalctl: &'static str,
    pub(crate) program: &'static str,
    /// The name of the metrics' family.
    family: &'static str,
    pub(crate) main: PathBuf,
    pub(crate) drop_in: PathBuf,
}

impl Managed {
    /// pfwd under the system's manager.
    pub(crate) fn system() -> Self {
        let systemctl = "systemctl";
        let (main, drop_in) = ("/etc/pfwd.toml".into(), "/etc/pfwd.toml.d/50-more.toml".into());
        Self { systemctl, journalctl: "journalctl", program: "pfwd", family: "pfwd", main, drop_in }
    }

    /// qrexec-connect under the system's manager.
    pub(crate) fn connect_of_the_system() -> Self {
        let (main, drop_in) = ("/etc/qrexec-connect.toml".into(), "/etc/qrexec-connect.toml.d/50-more.toml".into());
        Self { program: "qrexec-connect", family: "qrexec_connect", main, drop_in, ..Self::system() }
    }

    /// qrexec-connect under the user's manager.
    pub(crate) fn user() -> Self {
        let home = std::env::var_os("HOME").expect("with-systemd sets it");
        let config = Path::new(&home).join(".config");
        Self {
            systemctl: "systemctl --user",
            journalctl: "journalctl --user",
            program: "qrexec-connect",
            family: "qrexec_connect",
            main: config.join("qrexec-connect.toml"),
            drop_in: config.join("qrexec-connect.toml.d/50-more.toml"),
        }
    }

    /// Puts the good texts in place, and starts the service with a socket whose name is a label.
    pub(crate) fn start(&self) {
        fs::create_dir_all(self.drop_in.parent().expect("in a directory")).expect("ours");
        self.write(GOOD);
        fs::write(&self.drop_in, MORE).expect("ours");
        let (units, program) = (self.units(), self.program);
        // A crash in a test needs no pause.
        shell(&format!(
            "mkdir -p {units}/{program}.service.d; cd {units}
             printf '[Service]\\nRestartSec=100ms\\n' >{program}.service.d/soon.conf
             printf '[Socket]\\nListenStream=127.0.0.1:2003\\nFileDescriptorName=ssh\\n' >{program}-ssh.socket"
        ));
        self.order("daemon-reload; SYSTEMCTL start SERVICE; SYSTEMCTL start PROGRAM-ssh.socket");
        self.settled();
        exchange_some(&mut port(2003));
        self.settled();
    }

    /// The directory of the manager's units.
    pub(crate) fn units(&self) -> &'static str {
        if self.systemctl == "systemctl" { "/etc/systemd/system" } else { "~/.config/systemd/user" }
    }

    pub(crate) fn write(&self, text: &str) {
        fs::write(&self.main, text).expect("ours");
    }

    #[track_caller]
    pub(crate) fn command(&self, text: &str) -> String {
        let text = text.replace("SYSTEMCTL", self.systemctl).replace("SERVICE", &format!("{}.service", self.program));
        text.replace("PROGRAM", self.program).replace("JOURNALCTL", self.journalctl)
    }

    #[track_caller]
    pub(crate) fn order(&self, text: &str) {
        shell(&self.command(&format!("SYSTEMCTL {text}")));
    }

    #[track_caller]
    fn property(&self, name: &str) -> String {
        shell(&self.command(&format!("SYSTEMCTL show -p {name} --value SERVICE")))
    }

    /// The service is ready and the manager has nothing left to do.
    #[track_caller]
    pub(crate) fn settled(&self) {
        let asked = self.command("SYSTEMCTL is-active SERVICE || true; SYSTEMCTL list-jobs --no-legend");
        eventually("the service is ready and no job is left", || shell(&asked) == "active");
    }

    #[track_caller]
    fn restart(&self) {
        self.order("restart SERVICE");
        self.settled();
    }

    #[track_caller]
    fn crash(&self) {
        let pid = self.property("MainPID");
        shell(&format!("kill -KILL {pid}"));
        eventually("another process serves", || ![pid.as_str(), "0"].contains(&&*self.property("MainPID")));
        self.settled();
    }

    /// The status line and `status` say that a fault lasts, and name its place.
    #[track_caller]
    fn assert_told(&self, place: &str) {
        let status = self.property("StatusText");
        assert!(status.starts_with("CONFIG ERROR: "), "{place}: {status}");
        let (code, json, _) = attempt(&self.command("PROGRAM status --json"));
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let faults = json["faults"].as_array().expect("a list").iter().filter_map(|fault| fault.as_str());
        assert!(code == Some(1) && faults.clone().any(|fault| fault.contains(place)), "{place}: {json}");
    }

    /// Every surface says it.
    #[track_caller]
    fn assert_told_everywhere(&self, place: &str) {
        self.assert_told(place);
        let (code, told, _) = attempt(&self.command("PROGRAM status"));
        assert!(code == Some(1) && told.contains(place), "{place}: {code:?} {told}");
        let metrics = shell(&self.command("PROGRAM metrics"));
        assert!(metrics.contains(&format!("{}_configuration_fault{{place=", self.family)), "{metrics}");
        if place.contains(':') {
            assert!(metrics.contains(place), "{place}: {metrics}");
        }
        let journal = self.command("JOURNALCTL -q -o cat -p err -t PROGRAM");
        eventually("the journal names it", || shell(&journal).contains(place));
    }

    #[track_caller]
    fn assert_all_is_well(&self) {
        let status = self.property("StatusText");
        assert!(!status.contains("CONFIG"), "{status}");
        shell(&self.command("PROGRAM status >&2"));
        assert!(!shell(&self.command("PROGRAM metrics")).contains("configuration_fault{"));
    }

    /// Each kind of broken file: a reload and a restart under 50 live sessions; a restart and a crash without any.
    fn go_through_all_kinds(&self) {
        let mut live: Vec<Wire> = (0..51).map(|n| port(PORTS[n % 3])).collect();
        live.iter_mut().for_each(exchange_some);
        for (n, (text, place)) in broken().into_iter().enumerate() {
            self.write(&text);
            assert_eq!(attempt(&self.command("PROGRAM check")).0, Some(78), "{place}");
            let (code, _, why) = attempt(&self.command("SYSTEMCTL reload SERVICE"));
            assert_ne!(code, Some(0), "{place}: {why}");
            self.assert_told_everywhere(place);
            serves();
            self.restart();
            self.assert_told(place);
            serves();
            live.iter_mut().for_each(exchange_some);
            if n % 3 == 0 {
                self.write(GOOD); // mended in between
                self.order("reload SERVICE");
                self.assert_all_is_well();
            }
        }
        drop(live);
        eventually("all sessions are over", || self.property("StatusText").ends_with(", 0 sessions"));
        for (text, place) in broken() {
            self.write(&text);
            self.restart();
            self.assert_told(place);
            self.crash();
            self.assert_told(place);
            serves();
        }
        self.write(GOOD);
        self.order("reload SERVICE");
        self.assert_all_is_well();
        self.assert_no_complaints();
    }

    /// The manager has complained of nothing but the crashes and the reloads that failed.
    #[track_caller]
    fn assert_no_complaints(&self) {
        let grep = self.command("JOURNALCTL -q -o cat -p warning -t systemd | grep -i PROGRAM || true");
        let known =
            ["Reload failed", "Control process exited", "Main process exited", "Failed with result", "status=9/KILL"];
        let warnings = shell(&grep);
        let others: Vec<_> = warnings.lines().filter(|line| !known.iter().any(|part| line.contains(part))).collect();
        assert_eq!(others, [""; 0]);
    }
}

/// The ports of the good texts.
const PORTS: [u16; 3] = [2001, 2002, 2003];

#[track_caller]
fn serves() {
    PORTS.iter().for_each(|n| exchange_some(&mut port(*n)));
}

pub(crate) const GOOD: &str = "\
[defaults]
max_connections = 200

[[forward]]
label = \"one\"
listen = \"127.0.0.1:2001\"
target = \"127.0.0.1:7001\"

[[forward]]
label = \"ssh\"
target = \"127.0.0.1:7001\"
";
const MORE: &str = "[[forward]]\nlabel = \"two\"\nlisten = \"127.0.0.1:2002\"\ntarget = \"127.0.0.1:7001\"\n";

/// Ten kinds of broken file: a change of the good text, and the place that every surface names.
pub(crate) fn broken() -> Vec<(String, &'static str)> {
    vec![
        (GOOD.replace("target = ", "taget = "), ".toml:7:1"),
        (GOOD.replace("127.0.0.1:2001", "127.0.0.1:99999"), ".toml:6:"),
        (GOOD.replace("[[forward]]", "[[forwards]]"), ".toml:4:3"),
        (GOOD.replace("max_connections = 200", "max_connections = \"many\""), ".toml:2:"),
        (GOOD.replace("label = \"one\"", "label = \"one"), ".toml:5:"),
        (GOOD.replace("target = \"127.0.0.1:7001\"", ""), ".toml:4:1"),
        (GOOD.replace("\"one\"", "\"ssh\""), ".toml:10:9"),
        (GOOD.replace("\"ssh\"", "\"shh\""), "no [[forward]] has the label \"ssh\""),
        (GOOD.replace("[defaults]", "[other]"), ".toml:1:2"),
        ("<<<<<<< HEAD\n".to_owned() + GOOD, ".toml:1:"),
        (String::new(), ".toml"),
    ]
}

#[test]
fn a_broken_file_takes_nothing_down_at_a_reload_a_restart_or_after_a_crash() {
    let Some(tree) = tree!() else { return };
    tree.boot("system", As::Root, || {
        echo_server();
        let pfwd = Managed::system();
        pfwd.start();
        let kept = Path::new("/run/pfwd/configuration");
        assert_eq!(fs::metadata(kept).expect("it is there").permissions().mode() & 0o7777, 0o600);
        pfwd.go_through_all_kinds();

        // a faulty drop-in file, and none that can be read
        let mut live: Vec<Wire> = PORTS.iter().map(|n| port(*n)).collect();
        live.iter_mut().for_each(exchange_some);
        fs::write(&pfwd.drop_in, "[[forward]]\nlabel = \"two\"\n[defaults]\n").expect("root's own tree");
        pfwd.restart();
        pfwd.assert_told("50-more.toml:3:2");
        serves();
        fs::remove_file(&pfwd.drop_in).expect("it is there");
        fs::create_dir(&pfwd.drop_in).expect("a directory");
        pfwd.restart();
        pfwd.assert_told("50-more.toml");
        serves();
        live.iter_mut().for_each(exchange_some);
        fs::remove_dir(&pfwd.drop_in).expect("it is there");
        fs::write(&pfwd.drop_in, MORE).expect("root's own tree");

        // A stop forgets: a first start serves what the good files say, and stays for the reload that mends the rest.
        pfwd.write("x = = 1\n");
        pfwd.order("stop pfwd-ssh.socket SERVICE");
        assert!(!kept.exists());
        pfwd.order("start SERVICE");
        pfwd.assert_told("pfwd.toml:1:");
        exchange_some(&mut port(2002));
        assert!(TcpStream::connect(("127.0.0.1", 2001)).is_err());
        pfwd.write(&GOOD.replace("label = \"one\"", "label = \"one\"\nfoo = 1"));
        attempt("systemctl reload pfwd.service");
        pfwd.assert_told("pfwd.toml:6:1");
        assert!(TcpStream::connect(("127.0.0.1", 2001)).is_err());
        pfwd.write(GOOD);
        pfwd.order("reload SERVICE; systemctl start pfwd-ssh.socket");
        pfwd.settled();
        serves();
        pfwd.assert_all_is_well();
        pfwd.assert_no_complaints();
    });
    tree.boot("user", As::Tester, || {
        echo_server();
        let connect = Managed::user();
        connect.start();
        connect.go_through_all_kinds();
        connect.order("stop PROGRAM-ssh.socket SERVICE");
        fs::remove_file(&connect.main).expect("it is there");
        fs::remove_file(&connect.drop_in).expect("it is there");
        shell("rm ~/.config/systemd/user/qrexec-connect-ssh.socket; systemctl --user daemon-reload");
        refused_listeners_are_served_by_the_reload_that_gives_their_name_a_meaning(&connect);
    });
}

fn refused_listeners_are_served_by_the_reload_that_gives_their_name_a_meaning(connect: &Managed) {
    socket("ssh", "127.0.0.1:1234", "ssh");
    socket("good", "127.0.0.1:1235", "work test.Echo");
    let udp = "[Socket]\nListenDatagram=127.0.0.1:1236\nFileDescriptorName=dns\n";
    user_unit("qrexec-connect-dns.socket", udp);
    user_unit("qrexec-connect-fifo.socket", "[Socket]\nListenFIFO=%t/fifo\nFileDescriptorName=ssh\n");
    enable_now(&["ssh", "good", "dns", "fifo"]);
    exchange(&mut port(1235), 1, 1000, Pace::BULK);
    settled();
    assert!(property("StatusText").starts_with("1 of 4 listeners"), "{}", property("StatusText"));
    // held, and served by the reload
    let mut waits = port(1234);
    waits.write_all(b"early").expect("the connection stands");
    let asker = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    asker.send_to(b"lost", "127.0.0.1:1236").expect("sent");
    wait_for_message("listener-refused", "dropped a datagram");
    connect.write("[[forward]]\nlabel = \"ssh\"\nqrexec = \"work test.Echo\"\n");
    let (code, _, why) = attempt("qrexec-connect reload");
    assert!(code == Some(1) && why.contains("127.0.0.1:1236 is not served: "), "two stay refused: {why}");
    assert!(why.contains("ListenFIFO") && !why.contains("127.0.0.1:1234"), "{why}");
    waits.expect(b"early");
    exchange(&mut port(1234), 2, 1000, Pace::BULK);
    wait_for_message("configuration-reloaded", "1 served that had been refused");
    assert!(property("StatusText").starts_with("2 of 4 listeners"), "{}", property("StatusText"));
    // a client in a loop costs nothing
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", property("MainPID"))).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("comm").split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    };
    let (before, until) = (ticks(), Instant::now() + Duration::from_secs(1));
    while Instant::now() < until {
        asker.send_to(b"lost", "127.0.0.1:1236").expect("sent");
    }
    assert!(ticks() - before < 30, "{} ticks in a second", ticks() - before);
}

fn a_connection_to_a_refused_listener_is_reset_after_ten_seconds() {
    socket("held", "127.0.0.1:1233", "held");
    enable_now(&["held"]);
    let began = Instant::now();
    let mut clients: Vec<Wire> = (0..70).map(|_| port(1233)).collect();
    eventually("64 are held, the others wait in the backlog", || {
        shell("ss -Hltn 'sport = 1233'").split_whitespace().nth(1) == Some("6")
    });
    let (code, status, _) = attempt("qrexec-connect status --json");
    assert!(code == Some(1) && status.contains("\"waiting\":70"), "{status}");
    clients[0].expect_reset();
    let held = began.elapsed();
    assert!((9.5..13.0).contains(&held.as_secs_f32()), "{held:?}");
    eventually("all but the last are reset", || {
        shell("ss -Hltn 'sport = 1233'").split_whitespace().nth(1) == Some("0")
    });
    wait_for_message("listener-refused", "reset a connection");
    assert_eq!(messages("listener-refused").iter().filter(|text| text.contains("reset a connection")).count(), 1);
    shell("systemctl --user disable --now qrexec-connect-held.socket");
}

/// `status` tells that the file of the unit is gone; and the port is closed soon after a stop of the unit.
#[track_caller]
fn assert_closes(systemctl: &str, program: &str, unit: &str, port: u16) {
    eventually("status tells of it", || {
        let status = shell(&format!("{program} status --json || true"));
        status.contains("is gone; it closes when it is stopped") && status.contains(unit)
    });
    shell(&format!("{systemctl} stop {unit}"));
    assert_closed(port);
}

/// The port is closed within two seconds: the manager says already that its unit is inactive.
#[track_caller]
fn assert_closed(port: u16) {
    let began = Instant::now();
    eventually("the port is closed", || TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn timing_a_held_connection_is_reset_and_a_port_closes_with_its_unit_whose_file_is_gone() {
    let Some(tree) = tree!() else { return };
    tree.boot("user", As::Tester, || {
        a_connection_to_a_refused_listener_is_reset_after_ten_seconds();
        socket("stays", "127.0.0.1:1235", "work test.Echo");
        for name in ["removed", "at-once"] {
            socket(name, "127.0.0.1:1234", "work test.Echo");
            enable_now(&["stays", name]);
            let mut live = port(1234);
            exchange_some(&mut live);
            let mut stays = port(1235);
            exchange_some(&mut stays);
            let unit = format!("qrexec-connect-{name}.socket");
            if name == "removed" {
                settled();
                shell(&format!("rm ~/.config/systemd/user/{unit}; systemctl --user daemon-reload"));
                assert_closes("systemctl --user", "qrexec-connect", &unit, 1234);
            } else {
                // all that a configuration tool does, in one breath
                let rm = format!("rm ~/.config/systemd/user/{unit}; systemctl --user daemon-reload");
                shell(&format!("{rm}; systemctl --user stop {unit}"));
                assert_closed(1234);
            }
            exchange_some(&mut stays);
            exchange_some(&mut live);
            exchange_some(&mut port(1235));
        }
        // a unit that is a link: `disable --now` takes the link away, reloads, and stops
        shell("mkdir ~/dotfiles");
        let text = "[Socket]\nListenStream=127.0.0.1:1237\nFileDescriptorName=work test.Echo\n";
        let home = std::env::var("HOME").expect("with-systemd sets it");
        fs::write(format!("{home}/dotfiles/qrexec-connect-link.socket"), text).expect("one's own home");
        shell("systemctl --user link ~/dotfiles/qrexec-connect-link.socket; systemctl --user start qrexec-connect-link.socket");
        exchange_some(&mut port(1237));
        settled();
        shell("systemctl --user disable --now qrexec-connect-link.socket");
        assert_closed(1237);
        settled();
        exchange_some(&mut port(1235));
    });
    tree.boot("system", As::Root, || {
        echo_server();
        let file = "/etc/systemd/system/pfwd-gone.socket";
        fs::write(file, "[Socket]\nListenStream=127.0.0.1:81\nFileDescriptorName=target=127.0.0.1+7001\n")
            .expect("ours");
        shell("systemctl daemon-reload; systemctl start pfwd-gone.socket");
        let mut live = port(81);
        exchange_some(&mut live);
        Managed::system().settled();
        fs::remove_file(file).expect("it is there");
        shell("systemctl daemon-reload");
        assert_closes("systemctl", "pfwd", "pfwd-gone.socket", 81);
        live.write_all(b"on").expect("a restart keeps it");
        let mut bytes = [0; 2];
        live.read_exact(&mut bytes).expect("it goes on");
    });
}
