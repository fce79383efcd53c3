//! Three lines in a unit file, `systemctl enable`: a port that works, today and after a reboot.

use std::net::SocketAddr;

use crate::{
    service::{assert_no_complaints_but, enable_now, main_pid, restart, socket},
    support::{Pace, Wire, exchange},
    tree::{As, attempt, shell, user_unit},
};

/// A connection to a port of this machine.
#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// `test.Args` answers with the words of the call.
#[track_caller]
fn assert_calls(mut wire: Wire, call: &str) {
    assert_eq!(wire.read_to_end().escape_ascii().to_string().trim_end_matches("\\n"), call);
}

fn is_enabled(unit: &str) -> String {
    attempt(&format!("systemctl --user is-enabled {unit}")).1
}

#[test]
fn three_lines_serve_after_enable_after_a_crash_and_after_a_reboot() {
    let Some(tree) = tree!() else { return };
    const UNIT: &str = "qrexec-connect-gitweb.socket";
    tree.boot("enable", As::Tester, || {
        socket("gitweb", "127.0.0.1:1234", "@default test.Echo");
        shell("systemctl --user daemon-reload");
        assert_eq!(is_enabled(UNIT), "disabled");
        let (code, _, stderr) = attempt(&format!("systemctl --user enable --now {UNIT}"));
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stderr.starts_with("Created symlink") && stderr.lines().count() == 1, "{stderr}");
        assert_eq!(is_enabled(UNIT), "enabled");
        assert_eq!(main_pid(), 0, "nobody has connected yet");
        exchange(&mut port(1234), 1, 3_000_000, Pace::HALTING);
        let first = main_pid();
        shell(&format!("kill -KILL {first}"));
        exchange(&mut port(1234), 2, 100_000, Pace::CRUMBS);
        assert_ne!(main_pid(), first);
        restart();
        exchange(&mut port(1234), 3, 100_000, Pace::CRUMBS);
        assert_no_complaints_but(&["status=9/KILL", "Failed with result 'signal'"]);
    });
    tree.boot("after the reboot", As::Tester, || {
        assert_eq!(shell(&format!("systemctl --user is-active {UNIT}")), "active");
        exchange(&mut port(1234), 4, 1_000_000, Pace::BULK);
        shell(&format!("systemctl --user reenable {UNIT}"));
        assert_eq!(is_enabled(UNIT), "enabled");
        exchange(&mut port(1234), 5, 1000, Pace::BULK);
        shell(&format!("systemctl --user disable --now {UNIT}"));
        assert_eq!(is_enabled(UNIT), "disabled");
        assert_no_complaints_but(&["status=9/KILL", "Failed with result 'signal'"]); // of the first boot
    });
    tree.boot("after disable", As::Tester, || {
        assert_eq!(attempt(&format!("systemctl --user is-active {UNIT}")).1, "inactive");
        let error = std::net::TcpStream::connect(("127.0.0.1", 1234)).expect_err("nobody listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn enable_works_wherever_the_unit_lies() {
    let Some(tree) = tree!() else { return };
    let unit = |n: u16| format!("[Socket]\\nListenStream=127.0.0.1:{n}\\nFileDescriptorName=work test.Args+{n}\\n");
    let tree = tree.prepare(&format!(
        "mkdir -p /etc/systemd/user /usr/lib/systemd/user /usr/local/lib/systemd/user
         printf '{}' >/etc/systemd/user/qrexec-connect-etc.socket
         printf '{}' >/usr/lib/systemd/user/qrexec-connect-usr.socket
         printf '{}' >/usr/local/lib/systemd/user/qrexec-connect-local.socket",
        unit(1301),
        unit(1302),
        unit(1303)
    ));
    tree.boot("enable", As::Tester, || {
        let mine = |dir: &str, name: &str, n| {
            shell(&format!("mkdir -p {dir}; printf '{}' >{dir}/qrexec-connect-{name}.socket", unit(n)));
        };
        mine("~/.config/systemd/user", "config", 1304);
        mine("~/.local/share/systemd/user", "share", 1305);
        mine("$XDG_RUNTIME_DIR/systemd/user", "run", 1306);
        mine("~/elsewhere", "linked", 1307);
        shell("systemctl --user link ~/elsewhere/qrexec-connect-linked.socket; systemctl --user daemon-reload");
        let places = [
            ("etc", 1301),
            ("usr", 1302),
            ("local", 1303),
            ("config", 1304),
            ("share", 1305),
            ("run", 1306),
            ("linked", 1307),
        ];
        for (name, n) in places {
            let unit = format!("qrexec-connect-{name}.socket");
            let before = if name == "linked" { "linked" } else { "disabled" };
            assert_eq!(is_enabled(&unit), before, "{unit}");
            // a linked unit is forgotten in the middle of a reenable: that is systemctl's own affair
            let verbs: &[_] = if name == "linked" { &["enable --now"] } else { &["enable --now", "reenable"] };
            for verb in verbs {
                shell(&format!("systemctl --user {verb} {unit}"));
                assert_eq!(is_enabled(&unit), "enabled", "{unit} after {verb}");
            }
            let wants = format!("~/.config/systemd/user/sockets.target.wants/{unit}");
            shell(&format!("test -L {wants}"));
            assert_calls(port(n), &format!("work test.Args+{n}"));
            if name != "config" {
                // stopped first, for the file of a linked unit is gone with it
                shell(&format!("systemctl --user stop {unit}; systemctl --user disable {unit}; ! test -L {wants}"));
            }
        }
        assert_no_complaints_but(&[]);
    });
    tree.boot("again", As::Tester, || {
        assert_calls(port(1304), "work test.Args+1304");
        assert_eq!(attempt("systemctl --user is-active qrexec-connect-usr.socket").1, "inactive");
    });
}

#[test]
fn a_name_that_systemd_would_drop_for_its_colon_is_repaired() {
    let Some(tree) = tree!() else { return };
    tree.boot("enable", As::Tester, || {
        socket("one", "127.0.0.1:1401", "work test.Args:1234");
        socket("two", "127.0.0.1:1402", "@dispvm:default-dvm test.Args+x");
        // a person's own words in a drop-in of the unit count as well
        socket("three", "127.0.0.1:1403", "work test.Args");
        user_unit("qrexec-connect-three.socket.d/mine.conf", "[Socket]\nFileDescriptorName=other test.Args:7\n");
        enable_now(&["one", "two", "three"]);
        assert_calls(port(1401), "work test.Args+1234");
        assert_calls(port(1402), "@dispvm:default-dvm test.Args+x");
        assert_calls(port(1403), "other test.Args+7");
    });
}

#[test]
fn a_unit_with_its_own_install_section_is_left_alone() {
    let Some(tree) = tree!() else { return };
    tree.boot("enable", As::Tester, || {
        user_unit(
            "qrexec-connect-own.socket",
            "[Socket]\nListenStream=127.0.0.1:1501\nFileDescriptorName=work test.Args+1\n\n[Install]\nWantedBy=default.target\n",
        );
        user_unit(
            "qrexec-connect-dropin.socket",
            "[Socket]\nListenStream=127.0.0.1:1502\nFileDescriptorName=work test.Args+2\n",
        );
        user_unit("qrexec-connect-dropin.socket.d/install.conf", "[Install]\nWantedBy=timers.target\n");
        enable_now(&["own", "dropin"]);
        let wants = shell("cd ~/.config/systemd/user; ls -d *.wants/* | sort");
        assert_eq!(wants, "default.target.wants/qrexec-connect-own.socket\ntimers.target.wants/qrexec-connect-dropin.socket");
        assert_eq!(shell("ls $XDG_RUNTIME_DIR/systemd/generator 2>/dev/null | wc -l"), "0");
        assert_calls(port(1501), "work test.Args+1");
    });
    tree.boot("again", As::Tester, || assert_calls(port(1501), "work test.Args+1"));
}

#[test]
fn an_instance_of_a_template_is_enabled_like_any_other() {
    let Some(tree) = tree!() else { return };
    tree.boot("enable", As::Tester, || {
        user_unit(
            "qrexec-connect-port@.socket",
            "[Socket]\nListenStream=127.0.0.1:%i\nFileDescriptorName=work test.Args+%i\n",
        );
        shell("systemctl --user daemon-reload; systemctl --user enable --now qrexec-connect-port@1601.socket");
        assert_eq!(is_enabled("qrexec-connect-port@1601.socket"), "enabled");
        assert_calls(port(1601), "work test.Args+1601");
    });
    tree.boot("again", As::Tester, || assert_calls(port(1601), "work test.Args+1601"));
}
