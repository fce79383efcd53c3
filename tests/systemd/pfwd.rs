//! `pfwd.service` under the system manager: a file and nothing else, and sockets of its prefix, with namespaces.

use std::{
    io::Write as _,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use crate::{
    crowd::{Crowd, Place},
    service::sessions_told_once,
    support::{Pace, Wire, eventually, exchange},
    tree::{As, attempt, shell},
};

#[track_caller]
fn port(port: u16) -> Wire {
    Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// An echo server in a namespace of its own making, by what every system has.
fn echo_in(name: &str) {
    shell(&format!(
        "ip netns add {name}; ip -n {name} link set lo up; \
         printf '[Socket]\\nListenStream=127.0.0.1:7\\nAccept=yes\\nNetworkNamespacePath=/run/netns/{name}\\n' \
           > /run/systemd/system/echo-{name}.socket; \
         printf '[Service]\\nExecStart=/bin/cat\\nStandardInput=socket\\n' > /run/systemd/system/echo-{name}@.service; \
         systemctl daemon-reload; systemctl start echo-{name}.socket"
    ));
}

#[track_caller]
fn settled() {
    eventually("pfwd is ready and no job is left", || {
        shell("systemctl is-active pfwd.service || true; systemctl list-jobs --no-legend") == "active"
    });
}

#[test]
fn a_file_is_served_from_boot_through_restarts_until_it_is_stopped() {
    let Some(tree) = tree!() else { return };
    let config = "\
[defaults]
mode = 384
owner = \"root:root\"
uds_dir = \"/run/qdhcp\"

[[forward]]
namespace = \"blue\"
uds = \"ssh.sock\"
target = \"127.0.0.1:7\"

[[forward]]
listen = \"0.0.0.0:2222\"
uds = \"/run/qdhcp/ssh.sock\"

[[forward]]
listen = \"127.0.0.1:80\"
listen_namespace = \"late\"
namespace = \"blue\"
target = \"127.0.0.1:7\"
";
    tree.boot("enable", As::Root, || {
        std::fs::write("/etc/pfwd.toml", config).expect("root's own tree");
        shell("systemctl daemon-reload; systemctl enable pfwd.service");
    });
    tree.boot("serve", As::Root, || {
        settled();
        assert!(shell("systemctl show -p StatusText --value pfwd.service").starts_with("2 of 3 forwards"));
        echo_in("blue");
        shell("ip netns add late");
        eventually("the late one is served", || {
            shell("systemctl show -p StatusText --value pfwd.service").starts_with("3 forwards")
        });
        let mut wires = [port(2222), Wire::unix(Path::new("/run/qdhcp/ssh.sock"))];
        for wire in &mut wires {
            wire.write_all(b"before").expect("it is served");
            wire.expect(b"before");
        }
        let inode = std::fs::metadata("/run/qdhcp/ssh.sock").expect("it is served").ino();
        for _ in 0..3 {
            shell("systemctl restart pfwd.service");
            assert_eq!(std::fs::metadata("/run/qdhcp/ssh.sock").expect("it is served").ino(), inode);
            exchange(&mut port(2222), 1, 10_000, Pace::BULK);
        }
        let [first, second] = &mut wires;
        exchange(first, 2, 10_000, Pace::BULK);
        exchange(second, 3, 10_000, Pace::BULK);
        for (from, to) in [(2222, 2223), (2223, 2224), (2224, 2225)] {
            // in force when systemctl returns
            shell(&format!("sed -i s/{from}/{to}/ /etc/pfwd.toml; systemctl reload pfwd.service"));
            exchange(&mut port(to), 4, 10_000, Pace::BULK);
        }
        shell("systemctl stop pfwd.service");
        assert!(!Path::new("/run/qdhcp/ssh.sock").exists());
        assert_eq!(shell("systemctl is-failed pfwd.service || true"), "inactive");
        assert_eq!(shell("journalctl -q -o cat -p warning -t systemd | grep -i pfwd || true"), "");
    });
}

#[test]
fn three_lines_lead_into_a_namespace_and_join_a_running_service() {
    let Some(tree) = tree!() else { return };
    tree.boot("sockets", As::Root, || {
        echo_in("blue");
        let socket = |name: &str, lines: &str| {
            let text = format!("[Socket]\n{lines}\n");
            std::fs::write(format!("/etc/systemd/system/pfwd-{name}.socket"), text).expect("root's own tree");
            shell(&format!("systemctl daemon-reload; systemctl enable --now pfwd-{name}.socket"));
            assert_eq!(shell(&format!("systemctl is-enabled pfwd-{name}.socket")), "enabled");
        };
        socket("ssh", "ListenStream=127.0.0.1:2222\nFileDescriptorName=namespace=blue,target=127.0.0.1+7");
        let mut wire = port(2222);
        wire.write_all(b"before").expect("it is served");
        wire.expect(b"before");
        socket("uds", "ListenStream=/run/blue.sock\nFileDescriptorName=namespace=blue,target=127.0.0.1+7");
        exchange(&mut Wire::unix(Path::new("/run/blue.sock")), 1, 10_000, Pace::BULK);
        socket("dns", "ListenDatagram=127.0.0.1:5353\nFileDescriptorName=target=127.0.0.1+5354");
        settled();
        assert!(shell("systemctl show -p StatusText --value pfwd.service").starts_with("3 listeners"));
        exchange(&mut wire, 2, 10_000, Pace::BULK);
        let (code, out, err) = attempt("journalctl -q -o cat -p warning -t systemd | grep -i pfwd || true");
        assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", ""));
    });
}

#[test]
fn the_units_it_prints_do_what_the_file_does() {
    let Some(tree) = tree!() else { return };
    let config = "\
[defaults]
mode = \"0640\"
owner = \"root:adm\"
uds_dir = \"/run/qdhcp\"

[[forward]]
label = \"end\"
namespace = \"blue\"
uds = \"ssh.sock\"
target = \"127.0.0.1:7\"

[[forward]]
label = \"proxy\"
listen = \"0.0.0.0:2222\"
uds = \"ssh.sock\"

[[forward]]
label = \"both\"
listen = \"[::1]:80\"
listen_namespace = \"blue\"
uds = \"web.sock\"
setns_path = \"/run/netns/blue\"
target = \"127.0.0.1:7\"
";
    tree.boot("units", As::Root, || {
        echo_in("blue");
        std::fs::write("/etc/pfwd.toml", config).expect("root's own tree");
        shell(
            "pfwd --print-units | awk '/^# [/]etc/ { file = $2; next } { print > file }'; rm /etc/pfwd.toml; \
             systemctl daemon-reload; \
             cd /etc/systemd/system; systemctl enable --now pfwd-end.socket pfwd-proxy.socket pfwd-both.socket \
               pfwd-both-endpoint.socket",
        );
        exchange(&mut port(2222), 1, 10_000, Pace::BULK);
        for name in ["ssh", "web"] {
            let path = format!("/run/qdhcp/{name}.sock");
            exchange(&mut Wire::unix(Path::new(&path)), 2, 10_000, Pace::BULK);
            assert_eq!(shell(&format!("stat -c '%a %U %G' {path}")), "640 root adm");
        }
        let said = shell(
            "echo hello | ip netns exec blue timeout 10 bash -c 'exec 3<>/dev/tcp/::1/80; cat >&3; head -n1 <&3'",
        );
        assert_eq!(said, "hello");
        settled();
        assert!(shell("systemctl show -p StatusText --value pfwd.service").starts_with("4 listeners"));
    });
}

#[test]
fn a_stop_on_the_heels_of_a_restart_of_pfwd_ends_every_session_with_a_reset_and_a_word() {
    let Some(tree) = tree!() else { return };
    let config = "\
[defaults]
drain_timeout = 1

[[forward]]
listen = \"127.0.0.1:2001\"
target = \"127.0.0.1:7001\"

[[forward]]
udp_listen = \"127.0.0.1:2002\"
udp_target = \"127.0.0.1:9\"
";
    tree.boot("heels-of-pfwd", As::Root, || {
        std::fs::write("/etc/pfwd.toml", config).expect("root's own tree");
        shell("systemctl daemon-reload; systemctl start pfwd.service");
        settled();
        let crowd = Crowd::new();
        crowd.serve(&Place::Tcp(7001));
        let started = || shell("journalctl -q -o cat -t pfwd | grep -c 'connected after' || true");
        let mut wanted = 0;
        // the stop meets the parking, the old process's end, the next one's start
        for pause in [4, 8, 12, 16, 20, 30] {
            let mut wires = [2001, 2001, 2001].map(port);
            let asker = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            asker.send_to(b"x", "127.0.0.1:2002").expect("sent");
            wanted += wires.len() + 1;
            eventually("all stand", || started() == wanted.to_string());
            shell(&format!(
                "systemctl restart --no-block pfwd.service; sleep 0.{pause:03}; systemctl stop pfwd.service"
            ));
            for wire in &mut wires {
                wire.expect_reset();
            }
            shell("systemctl reset-failed; systemctl start pfwd.service");
            settled();
        }
        let journal = "journalctl -q -t pfwd";
        eventually("each has an end", || sessions_told_once(journal).len() == wanted);
        assert!(sessions_told_once(journal).values().all(|end| end == "drained"));
        let kept = shell("journalctl -q -o cat -t pfwd | grep -c 'before its next process' || true");
        println!("{kept} of {wanted} were ended between two processes");
        assert_ne!(kept, "0", "no stop met a restart");
        drop(crowd);
        shell("systemctl stop pfwd.service");
        eventually("the unit of the calls has gone", || {
            attempt("systemctl is-active pfwd-calls.service").1 == "inactive"
        });
        assert_eq!(shell("systemctl is-failed pfwd.service || true"), "inactive");
        assert_eq!(shell("journalctl -q -o cat -p warning -t systemd | grep -i pfwd || true"), "");
    });
}
