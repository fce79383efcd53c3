//! `check` against what systemd and the service really do: it never says yes where one of them says no.

use std::net::{SocketAddr, TcpStream};

use crate::{
    service::{settled, socket},
    support::{Wire, eventually},
    tree::{As, attempt, shell, user_unit},
};

/// What becomes of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It starts, and a connection to its port is served.
    Served,
    /// It starts, and its listener is not served.
    Refused,
    /// It does not start.
    Fails,
}

/// Units: name, lines below [Socket], the port, what becomes of it, and a part of what `check` says.
const UNITS: &[(&str, &str, u16, Outcome, &str)] = &[
    (
        "good",
        "ListenStream=127.0.0.1:3001\nFileDescriptorName=work test.Args+x",
        3001,
        Outcome::Served,
        "can be served",
    ),
    (
        "colon",
        "ListenStream=127.0.0.1:3002\nFileDescriptorName=work test.Args:x",
        3002,
        Outcome::Served,
        "can be served",
    ),
    ("port", "ListenStream=3003\nFileDescriptorName=work test.Args+x", 3003, Outcome::Served, "every interface"),
    (
        "dirs",
        "ListenStream=%t/new/dir/x.sock\nFileDescriptorName=work test.Args+x",
        0,
        Outcome::Served,
        "can be served",
    ),
    (
        "at@3004",
        "ListenStream=127.0.0.1:%i\nFileDescriptorName=work test.Args+x",
        3004,
        Outcome::Served,
        "can be served",
    ),
    ("accept", "ListenStream=127.0.0.1:3011\nAccept=yes\nFileDescriptorName=a b", 0, Outcome::Fails, "Accept=yes"),
    ("comment", "ListenStream=127.0.0.1:3012 # web\nFileDescriptorName=a b", 0, Outcome::Fails, "no comment"),
    ("name", "ListenStream=localhost:3013\nFileDescriptorName=a b", 0, Outcome::Fails, "looks up no names"),
    ("nothing", "FileDescriptorName=a b", 0, Outcome::Fails, "listens nowhere"),
    ("low", "ListenStream=127.0.0.1:80\nFileDescriptorName=a b", 0, Outcome::Fails, "only root may open port 80"),
    ("address", "ListenStream=192.0.2.1:3014\nFileDescriptorName=a b", 0, Outcome::Fails, "no address of this machine"),
    (
        "folder",
        "ListenStream=/etc/new/x.sock\nFileDescriptorName=a b",
        0,
        Outcome::Fails,
        "you may make nothing in /etc",
    ),
    (
        "taken",
        "ListenStream=127.0.0.1:3099\nFileDescriptorName=a b",
        0,
        Outcome::Fails,
        "taken already, by the socket unit holder.socket",
    ),
    (
        "label",
        "ListenStream=127.0.0.1:3021\nFileDescriptorName=nobody",
        3021,
        Outcome::Refused,
        "no [[forward]] has the label",
    ),
    ("unnamed", "ListenStream=127.0.0.1:3022", 3022, Outcome::Refused, "nothing says where to go"),
    ("quoted", "ListenStream=127.0.0.1:3023\nFileDescriptorName=\"a b\"", 3023, Outcome::Refused, "without the quotes"),
];

fn is_served(port: u16) -> bool {
    let mut wire = match port {
        0 => Wire::unix(&std::path::Path::new(&shell("echo $XDG_RUNTIME_DIR")).join("new/dir/x.sock")),
        port => Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port))),
    };
    wire.read_to_end().starts_with(b"work test.Args+x")
}

#[test]
fn check_never_says_yes_where_systemd_or_the_service_says_no() {
    let Some(tree) = tree!() else { return };
    let tree = tree.prepare("sysctl -q net.ipv4.ip_unprivileged_port_start=1024 || :");
    tree.boot("check and start", As::Tester, || {
        user_unit("holder.socket", "[Socket]\nListenStream=127.0.0.1:3099\nService=holder.service\n");
        user_unit("holder.service", "[Service]\nExecStart=/bin/sleep 1000\n");
        for (name, lines, ..) in UNITS {
            let file = name.split_once('@').map_or((*name).to_owned(), |(template, _)| format!("{template}@"));
            user_unit(&format!("qrexec-connect-{file}.socket"), &format!("[Socket]\n{lines}\n"));
        }
        shell("systemctl --user daemon-reload; systemctl --user start holder.socket");
        for (name, _, port, outcome, said) in UNITS {
            let unit = format!("qrexec-connect-{name}.socket");
            let (code, out, err) = attempt(&format!("qrexec-connect check {unit}"));
            let yes = *outcome == Outcome::Served;
            assert_eq!(code, Some(if yes { 0 } else { 78 }), "{name}: {out}{err}");
            assert!(out.contains(said), "{name}: {said} is missing in\n{out}{err}");
            let (started, ..) = attempt(&format!("systemctl --user start {unit}"));
            assert_eq!(started == Some(0), *outcome != Outcome::Fails, "start {name}");
            match outcome {
                Outcome::Served => assert!(is_served(*port), "{name}"),
                // Whoever connects waits, or is turned away; nobody is served.
                Outcome::Refused => drop(TcpStream::connect(("127.0.0.1", *port)).expect("systemd listens")),
                Outcome::Fails => {}
            }
            // A unit that listens is not in its own way.
            let (again, out, err) = attempt(&format!("qrexec-connect check {unit}"));
            assert_eq!(again, code, "{name}, once more: {out}{err}");
        }
        settled();
        let (code, table, _) = attempt("qrexec-connect status");
        assert_eq!(code, Some(1), "{table}");
        for (name, _, _, outcome, _) in UNITS.iter().filter(|(.., outcome, _)| *outcome == Outcome::Refused) {
            let unit = format!("qrexec-connect-{name}.socket");
            let row = table.lines().find(|line| line.contains(&unit)).unwrap_or_else(|| panic!("{name}: {table}"));
            assert!(row.contains("error"), "{outcome:?}: {row}");
        }
        let (code, _, why) = attempt("qrexec-connect reload");
        assert_eq!(code, Some(1), "{why}");
        for (name, _, port, outcome, said) in UNITS {
            let named = why.contains(&format!(":{port} is not served: "));
            assert_eq!(named, *outcome == Outcome::Refused, "{name}: {why}");
            assert!(!named || why.contains(said), "{name}: {said} is missing in {why}");
        }
        // Two units on one port: the second cannot start, and both are named.
        socket("one", "127.0.0.1:3031", "work test.Args+x");
        socket("two", "0.0.0.0:3031", "work test.Args+x");
        shell("systemctl --user daemon-reload; systemctl --user start qrexec-connect-one.socket");
        let (code, out, _) = attempt("qrexec-connect check qrexec-connect-two.socket");
        assert!(code == Some(78) && out.contains("qrexec-connect-one.socket"), "{out}");
        assert_ne!(attempt("systemctl --user start qrexec-connect-two.socket").0, Some(0));
        shell("systemctl --user stop 'qrexec-connect-*.socket' qrexec-connect.service; rm ~/.config/systemd/user/qrexec-connect-*.socket");
        reload_by_hand_asks_the_service_and_says_why_not();
    });
}

/// In the boot of the table, when its units are stopped.
fn reload_by_hand_asks_the_service_and_says_why_not() {
    let (code, _, err) = attempt("qrexec-connect reload");
    assert!(code == Some(1) && err.contains("does not run"), "{err}");
    shell(
        "mkdir -p ~/.config; printf '[[forward]]\\nlabel = \"x\"\\nqrexec = \"work test.Args+x\"\\n' >~/.config/qrexec-connect.toml",
    );
    user_unit("qrexec-connect-x.socket", "[Socket]\nListenStream=127.0.0.1:3001\n");
    shell("systemctl --user daemon-reload; systemctl --user start qrexec-connect-x.socket");
    assert!(is_served(3001));
    assert!(shell("qrexec-connect reload").contains("has read its configuration again"));
    shell("echo junk >>~/.config/qrexec-connect.toml");
    let (code, _, err) = attempt("qrexec-connect reload");
    assert!(code == Some(1) && err.contains("qrexec-connect check") && err.contains("qrexec-connect.toml:4:"), "{err}");
    assert_eq!(attempt("qrexec-connect check qrexec-connect-x.socket").0, Some(78));
    assert!(is_served(3001), "the old configuration stays in force");
}

#[test]
fn a_pfwd_without_a_file_says_what_is_missing_and_its_units_are_enabled_by_the_generator_of_its_own() {
    let Some(tree) = tree!() else { return };
    let tree = tree.prepare("rm -f /usr/lib/systemd/system-generators/qrexec-connect-generator");
    tree.boot("enable", As::Root, || {
        shell("systemctl enable --now pfwd.service");
        eventually("it says so", || shell("journalctl -q -t pfwd -o cat").contains("/etc/pfwd.toml"));
        assert!(attempt("systemctl status pfwd.service").1.contains("/etc/pfwd.toml"));
        eventually("it has ended, without a failure", || attempt("systemctl is-failed pfwd.service").1 == "inactive");
        assert!(shell("pfwd config").contains("no configuration file"));
        std::fs::write(
            "/etc/systemd/system/pfwd-web.socket",
            "[Socket]\nListenStream=127.0.0.1:3001\nFileDescriptorName=target=127.0.0.1+3002\n",
        )
        .expect("root's own tree");
        shell("systemctl daemon-reload; systemctl enable --now pfwd-web.socket");
        assert_eq!(shell("systemctl is-enabled pfwd-web.socket"), "enabled");
        let (code, out, _) = attempt("pfwd check");
        assert!(code == Some(0) && out.contains("1 listener can be served"), "{out}");
        assert!(shell("pfwd config").contains("pfwd-web.socket on 127.0.0.1:3001"));
    });
    tree.boot("again", As::Root, || assert_eq!(shell("systemctl is-active pfwd-web.socket"), "active"));
}
