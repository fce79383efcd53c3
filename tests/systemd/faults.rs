//! A configuration with a fault, under both managers: what worked goes on, what was refused comes back when the fault is
//! gone, and every surface names the place. And sockets whose unit lost its file.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
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

fn echo_server() {
    let server = std::net::TcpListener::bind("127.0.0.1:7001").expect("a free port");
    std::thread::spawn(move || {
        for stream in server.incoming().flatten() {
            let mut other = stream.try_clone().expect("a descriptor");
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut other));
        }
    });
}

#[track_caller]
fn pfwd(property: &str) -> String {
    shell(&format!("systemctl show -p {property} --value pfwd.service"))
}

#[track_caller]
fn pfwd_settled() {
    eventually("pfwd is ready and no job is left", || {
        shell("systemctl is-active pfwd.service || true; systemctl list-jobs --no-legend") == "active"
    });
}

const MAIN: &str = "/etc/pfwd.toml";
const DROP_IN: &str = "/etc/pfwd.toml.d/50-more.toml";

const GOOD: &str = "\
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
fn broken() -> Vec<(String, &'static str)> {
    vec![
        (GOOD.replace("target = ", "taget = "), "pfwd.toml:7:1"),
        (GOOD.replace("127.0.0.1:2001", "127.0.0.1:99999"), "pfwd.toml:6:"),
        (GOOD.replace("[[forward]]", "[[forwards]]"), "pfwd.toml:4:3"),
        (GOOD.replace("max_connections = 200", "max_connections = \"many\""), "pfwd.toml:2:"),
        (GOOD.replace("label = \"one\"", "label = \"one"), "pfwd.toml:5:"),
        (GOOD.replace("target = \"127.0.0.1:7001\"", ""), "pfwd.toml:4:1"),
        (GOOD.replace("\"one\"", "\"ssh\""), "pfwd.toml:10:9"),
        (GOOD.replace("\"ssh\"", "\"shh\""), "no [[forward]] has the label \"ssh\""),
        (GOOD.replace("[defaults]", "[other]"), "pfwd.toml:1:2"),
        ("<<<<<<< HEAD\n".to_owned() + GOOD, "pfwd.toml:1:"),
    ]
}

/// Every surface says that a fault lasts, and names its place.
#[track_caller]
fn assert_told(place: &str) {
    let status = pfwd("StatusText");
    assert!(status.starts_with("CONFIG ERROR: "), "{place}: {status}");
    let (code, told, _) = attempt("pfwd status");
    assert!(code == Some(1) && told.contains(place), "{place}: {code:?} {told}");
    let (code, json, _) = attempt("pfwd status --json");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let faults = json["faults"].as_array().expect("a list").iter().filter_map(|fault| fault.as_str());
    assert!(code == Some(1) && faults.clone().any(|fault| fault.contains(place)), "{json}");
    let metrics = shell("pfwd metrics");
    assert!(metrics.contains("pfwd_configuration_fault{place="), "{metrics}");
    if place.contains(':') {
        assert!(metrics.contains(place), "{place}: {metrics}");
    }
    eventually("the journal names it", || shell("journalctl -q -o cat -p err -t pfwd").contains(place));
}

#[track_caller]
fn assert_all_is_well() {
    assert!(!pfwd("StatusText").contains("CONFIG"), "{}", pfwd("StatusText"));
    assert_eq!(shell("pfwd status --json | grep -c forward-refused || true; pfwd status >&2"), "0");
    assert!(!shell("pfwd metrics").contains("configuration_fault{"));
}

#[test]
fn a_broken_file_takes_nothing_down_at_a_reload_a_restart_or_after_a_crash() {
    let Some(tree) = tree!() else { return };
    tree.boot("broken", As::Root, || {
        echo_server();
        fs::create_dir_all("/etc/pfwd.toml.d").expect("root's own tree");
        let write = |path: &str, text: &str| {
            let _ = fs::remove_dir(path);
            fs::write(path, text).expect("root's own tree");
        };
        write(MAIN, GOOD);
        write(DROP_IN, MORE);
        let text = "[Socket]\nListenStream=127.0.0.1:2003\nFileDescriptorName=ssh\n";
        fs::write("/etc/systemd/system/pfwd-ssh.socket", text).expect("root's own tree");
        shell("systemctl daemon-reload; systemctl start pfwd.service; systemctl enable --now pfwd-ssh.socket");
        exchange_some(&mut port(2003));
        pfwd_settled();
        let ports = [2001, 2002, 2003];
        let serves = || ports.iter().for_each(|n| exchange_some(&mut port(*n)));
        let mut live: Vec<Wire> = (0..51).map(|n| port(ports[n % 3])).collect();
        live.iter_mut().for_each(exchange_some);
        let kept = Path::new("/run/pfwd/configuration");
        assert_eq!(fs::metadata(kept).expect("it is there").permissions().mode() & 0o7777, 0o600);
        for (n, (text, place)) in broken().into_iter().enumerate() {
            write(MAIN, &text);
            assert_eq!(attempt("pfwd --check").0, Some(78), "{place}");
            let (code, _, why) = attempt("systemctl reload pfwd.service");
            assert_ne!(code, Some(0), "{place}: {why}");
            assert_told(place);
            serves();
            shell("systemctl restart pfwd.service");
            pfwd_settled();
            assert_told(place);
            serves();
            live.iter_mut().for_each(exchange_some);
            if n % 3 == 0 {
                // mended in between
                write(MAIN, GOOD);
                shell("systemctl reload pfwd.service");
                assert_all_is_well();
            }
        }
        // a faulty drop-in file, and none that can be read
        write(MAIN, GOOD);
        write(DROP_IN, "[[forward]]\nlabel = \"two\"\n[defaults]\n");
        shell("systemctl restart pfwd.service");
        pfwd_settled();
        assert_told("50-more.toml:3:2");
        serves();
        fs::remove_file(DROP_IN).expect("it is there");
        fs::create_dir(DROP_IN).expect("a directory");
        shell("systemctl restart pfwd.service");
        assert_told("50-more.toml");
        serves();
        live.iter_mut().for_each(exchange_some);
        drop(live);
        eventually("all sessions are over", || pfwd("StatusText").ends_with(", 0 sessions"));

        // without sessions, and after a crash
        write(DROP_IN, MORE);
        write(MAIN, "x = = 1\n");
        shell("systemctl restart pfwd.service");
        pfwd_settled();
        serves();
        let pid = pfwd("MainPID");
        shell(&format!("kill -KILL {pid}"));
        eventually("another process serves", || ![pid.as_str(), "0"].contains(&&*pfwd("MainPID")));
        pfwd_settled();
        assert_told("pfwd.toml:1:");
        serves();

        // A stop forgets: a first start serves what the good files say, and stays for the reload that mends the rest.
        shell("systemctl stop pfwd-ssh.socket pfwd.service");
        assert!(!kept.exists());
        shell("systemctl start pfwd.service");
        assert_told("pfwd.toml:1:");
        exchange_some(&mut port(2002));
        assert!(TcpStream::connect(("127.0.0.1", 2001)).is_err());
        write(MAIN, &GOOD.replace("label = \"one\"", "label = \"one\"\nfoo = 1"));
        attempt("systemctl reload pfwd.service");
        assert_told("pfwd.toml:6:1");
        assert!(TcpStream::connect(("127.0.0.1", 2001)).is_err());
        write(MAIN, GOOD);
        shell("systemctl reload pfwd.service; systemctl start pfwd-ssh.socket");
        pfwd_settled();
        serves();
        assert_all_is_well();
        let warnings = shell("journalctl -q -o cat -p warning -t systemd | grep -i pfwd || true");
        let known =
            ["Reload failed", "Control process exited", "Main process exited", "Failed with result", "status=9/KILL"];
        let others: Vec<_> = warnings.lines().filter(|line| !known.iter().any(|part| line.contains(part))).collect();
        assert_eq!(others, [""; 0]);
    });
}

#[test]
fn a_refused_listener_is_served_by_the_reload_that_gives_its_name_a_meaning() {
    let Some(tree) = tree!() else { return };
    tree.boot("refused", As::Tester, || {
        let home = std::env::var_os("HOME").expect("with-systemd sets it");
        let file = Path::new(&home).join(".config/qrexec-connect.toml");
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
        fs::write(&file, "[[forward]]\nlabel = \"ssh\"\nqrexec = \"work test.Echo\"\n").expect("one's own home");
        shell("systemctl --user reload qrexec-connect.service");
        waits.expect(b"early");
        exchange(&mut port(1234), 2, 1000, Pace::BULK);
        wait_for_message("configuration-reloaded", "1 that were refused are served");
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
    });
}

#[test]
fn timing_a_connection_to_a_refused_listener_is_reset_after_ten_seconds() {
    let Some(tree) = tree!() else { return };
    tree.boot("held", As::Tester, || {
        socket("ssh", "127.0.0.1:1234", "ssh");
        enable_now(&["ssh"]);
        let began = Instant::now();
        let mut clients: Vec<Wire> = (0..70).map(|_| port(1234)).collect();
        eventually("64 are held, the others wait in the backlog", || {
            shell("ss -Hltn 'sport = 1234'").split_whitespace().nth(1) == Some("6")
        });
        let (code, status, _) = attempt("qrexec-connect status --json");
        assert!(code == Some(1) && status.contains("\"waiting\":70"), "{status}");
        clients[0].expect_reset();
        let held = began.elapsed();
        assert!((9.5..13.0).contains(&held.as_secs_f32()), "{held:?}");
        eventually("all but the last are reset", || {
            shell("ss -Hltn 'sport = 1234'").split_whitespace().nth(1) == Some("0")
        });
        wait_for_message("listener-refused", "reset a connection");
        assert_eq!(messages("listener-refused").iter().filter(|text| text.contains("reset a connection")).count(), 1);
    });
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
fn timing_a_port_closes_with_its_unit_whose_file_is_gone() {
    let Some(tree) = tree!() else { return };
    tree.boot("user", As::Tester, || {
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
        pfwd_settled();
        fs::remove_file(file).expect("it is there");
        shell("systemctl daemon-reload");
        assert_closes("systemctl", "pfwd", "pfwd-gone.socket", 81);
        live.write_all(b"on").expect("a restart keeps it");
        let mut bytes = [0; 2];
        live.read_exact(&mut bytes).expect("it goes on");
    });
}
