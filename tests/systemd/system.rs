//! The same under the system manager: for qubes in which no user is logged in, and for hosts.

use std::{io::Write as _, net::SocketAddr};

use crate::{
    support::{Pace, Wire, eventually, exchange},
    tree::{As, attempt, shell},
};

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// Writes the three lines of a system socket.
fn socket(name: &str, listen: &str, fd_name: &str) {
    let text = format!("[Socket]\nListenStream={listen}\nFileDescriptorName={fd_name}\n");
    std::fs::write(format!("/etc/systemd/system/qrexec-connect-{name}.socket"), text).expect("root's own tree");
}

fn main_pid() -> String {
    shell("systemctl show -p MainPID --value qrexec-connect.service")
}

/// The manager's own warnings about our units.
fn complaints() -> String {
    shell("journalctl -q -o cat -p warning -t systemd | grep -i qrexec || true")
}

#[track_caller]
fn settled() {
    eventually("the service is ready and no job is left", || {
        shell("systemctl is-active qrexec-connect.service || true; systemctl list-jobs --no-legend") == "active"
    });
}

#[test]
fn a_system_socket_keeps_its_sessions_and_calls_through_restarts_and_serves_after_a_reboot() {
    let Some(tree) = tree!() else { return };
    tree.boot("enable", As::Root, || {
        socket("echo", "127.0.0.1:81", "work test.Echo");
        shell("systemctl daemon-reload");
        assert_eq!(attempt("systemctl is-enabled qrexec-connect-echo.socket").1, "disabled");
        shell("systemctl enable --now qrexec-connect-echo.socket");
        assert_eq!(shell("systemctl is-enabled qrexec-connect-echo.socket"), "enabled");
        let mut wire = port(81);
        wire.write_all(b"before").expect("it is served");
        wire.expect(b"before");
        let first = main_pid();
        socket("new", "127.0.0.1:82", "work test.Args+7");
        shell("systemctl daemon-reload; systemctl enable --now qrexec-connect-new.socket");
        assert_eq!(port(82).read_to_end(), b"work test.Args+7\n");
        settled();
        assert_ne!(main_pid(), first);
        shell("systemctl restart qrexec-connect.service; systemctl disable --now qrexec-connect-new.socket");
        settled();
        exchange(&mut wire, 1, 100_000, Pace::CRUMBS);
        let mut drained = port(81);
        drained.write_all(b"x").expect("it is served");
        drained.expect(b"x");
        shell("systemctl stop qrexec-connect-echo.socket");
        settled();
        shell("systemctl stop qrexec-connect.service");
        drained.expect_reset();
        let ends = || shell("journalctl -q -o cat -t qrexec-connect END=drained | wc -l");
        eventually("the journal has its end", || ends() == "1");
        assert_eq!(complaints(), "");
        eventually("the unit of the calls has gone", || {
            attempt("systemctl is-active qrexec-connect-calls.service").1 == "inactive"
        });
    });
    tree.boot("after the reboot", As::Root, || {
        exchange(&mut port(81), 1, 100_000, Pace::BULK);
        assert_eq!(attempt("systemctl is-active qrexec-connect-new.socket").1, "inactive");
        assert_eq!(shell("systemctl --failed --no-legend --plain"), "");
    });
}

#[test]
fn the_example_for_a_service_qube_listens_only_where_dom0_has_switched_it_on() {
    let Some(tree) = tree!() else { return };
    let tree = tree.prepare(
        "[ ! -e /etc/switched-on ] || { mkdir -p /run/qubes-service; touch /run/qubes-service/qrexec-connect-gitweb; }",
    );
    const UNIT: &str = "qrexec-connect-system-gitweb.socket";
    tree.boot("enable", As::Root, || {
        shell(&format!("cp /usr/share/doc/qrexec-connect/examples/{UNIT} /etc/systemd/system/"));
        // the fake leads to this machine, so to another port than the one that listens
        shell(&format!("sed -i s/ListenStream=.*/ListenStream=127.0.0.1:4321/ /etc/systemd/system/{UNIT}"));
        shell(&format!("systemctl daemon-reload; systemctl enable {UNIT}"));
    });
    tree.boot("switched off", As::Root, || {
        assert_eq!(shell(&format!("systemctl is-enabled {UNIT}")), "enabled");
        assert_eq!(shell(&format!("systemctl show -p ActiveState -p ConditionResult --value {UNIT}")), "inactive\nno");
        assert_eq!(shell("systemctl --failed --no-legend --plain"), "");
        shell("touch /etc/switched-on");
    });
    tree.boot("switched on", As::Root, || {
        let server = std::net::TcpListener::bind("127.0.0.1:1234").expect("a free port");
        let server = std::thread::spawn(move || {
            let mut wire = Wire::from_tcp(server.accept().expect("the call connects").0);
            wire.expect(b"ping");
            wire.write_all(b"pong").expect("it is there");
            wire.half_close();
            wire.expect_end();
        });
        let mut wire = port(4321);
        wire.write_all(b"ping").expect("it is served");
        wire.expect(b"pong");
        wire.half_close();
        server.join().expect("it does not panic");
    });
}

#[test]
fn the_example_without_root_restarts_and_stops_like_the_one_with() {
    let Some(tree) = tree!() else { return };
    tree.boot("unprivileged", As::Root, || {
        shell(
            "for unit in qrexec-connect qrexec-connect-calls; do
               mkdir -p /etc/systemd/system/$unit.service.d
               sed 's/^User=user/User=tester/; s/chown user /chown tester /' \
                 /usr/share/doc/qrexec-connect/examples/$unit.service.d/unprivileged.conf \
                 >/etc/systemd/system/$unit.service.d/unprivileged.conf
             done",
        );
        socket("echo", "127.0.0.1:2001", "work test.Echo");
        shell("systemctl daemon-reload; systemctl enable --now qrexec-connect-echo.socket");
        let mut wire = port(2001);
        wire.write_all(b"before").expect("it is served");
        wire.expect(b"before");
        let first = main_pid();
        assert_eq!(shell(&format!("stat -c %U /proc/{first}")), "tester");
        for _ in 0..3 {
            let before = main_pid();
            shell("systemctl restart qrexec-connect.service");
            assert_ne!(main_pid(), before);
            wire.write_all(b"after").expect("it lives");
            wire.expect(b"after");
        }
        let strays = shell("journalctl -q -o cat -t qrexec-connect -p warning");
        assert_eq!(strays, "");
        exchange(&mut wire, 1, 100_000, Pace::CRUMBS);
        shell("systemctl stop qrexec-connect-echo.socket");
        eventually("with no socket and no session it ends", || {
            // between the two halves of the restart that the socket has asked for it is inactive, too
            shell("systemctl list-jobs --no-legend").is_empty()
                && attempt("systemctl is-active qrexec-connect.service qrexec-connect-calls.service").1
                    == "inactive\ninactive"
        });
        let left = || crate::service::processes_called(&["qrexec-connect", "qrexec-client-v"]);
        assert!(left().is_empty(), "left behind: {:?}", left());
        // no bus here, so that it cannot know a stop from a restart: a stop takes no time, but harms no more than any
        shell("systemctl start qrexec-connect-echo.socket");
        let mut wires = [port(2001), port(2001)];
        for wire in &mut wires {
            wire.write_all(b"before").expect("it is served");
            wire.expect(b"before");
        }
        shell("systemctl stop qrexec-connect.service");
        wires.iter_mut().for_each(Wire::expect_reset);
        eventually("each end is told", || shell("journalctl -q -o cat -t qrexec-connect END=drained | wc -l") == "2");
        eventually("nothing is left", || left().is_empty());
        assert_eq!(complaints(), "");
    });
}
