//! Every role, end to end, with verified bytes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
    process::Command,
};

use nix::sys::signal::Signal;

use crate::{
    sandbox::{
        asker, echo_inside, echo_tcp, echo_udp_inside, forwarding, inode_here, inode_of, inside, netns,
        netns_with_link, pfwd, run, socat, told_address,
    },
    support::{Pace, Wire, eventually, exchange},
};

/// An address as `key=value` lists take it.
fn plus(address: SocketAddr) -> String {
    let text = address.to_string();
    let (host, port) = text.rsplit_once(':').expect("an address has a port");
    format!("{host}+{port}")
}

#[test]
fn the_two_example_command_lines_run_as_written() {
    sandbox!();
    netns_with_link("qdhcp-27a7...", "192.168.31.1/24", "192.168.31.201/24");
    let server = inside("qdhcp-27a7...", || TcpListener::bind("192.168.31.201:22").expect("nobody has it"));
    echo_tcp(server, "");
    let dir = tempfile::tempdir().expect("a directory");
    // [defaults] and the two forwards of the example, then the arguments over them
    let toml = "\
[defaults]
log_level = \"info\"
mode = 384            # octal 0o600 for the UDS
owner = \"root:root\"
uds_dir = \"/run/qdhcp\"

[[forward]]
namespace = \"qdhcp-27a7...\"
uds = \"/run/qdhcp/ssh.sock\"
target = \"192.168.31.201:22\"

[[forward]]
listen = \"0.0.0.0:2222\"
uds = \"/run/qdhcp/ssh.sock\"
";
    let config = dir.path().join("forward.toml");
    fs::write(&config, toml).expect("it is writable");
    let config = config.to_str().expect("plain");
    let arguments = [
        "--forward",
        "listen=0.0.0.0:2222,uds=/run/qdhcp/ssh.sock",
        "--forward",
        "namespace=qdhcp-27a7...,uds=/run/qdhcp/ssh.sock,target=192.168.31.201:22",
    ];
    for args in [[&["--config", config][..], &arguments].concat(), arguments.to_vec(), vec!["--config", config]] {
        let service = pfwd().args(&args).start().ready();
        assert!(service.notifications.status().expect("a status").starts_with("2 forwards, 0 sessions"), "{args:?}");
        let mode = fs::metadata("/run/qdhcp/ssh.sock").expect("it is served").permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
        exchange(&mut Wire::tcp("127.0.0.1:2222".parse().expect("one")), 5, 300_000, Pace::BULK);
        service.stop();
        assert!(!Path::new("/run/qdhcp/ssh.sock").exists(), "it is removed at a stop");
        assert!(!Path::new("/run/qdhcp/ssh.sock.lock").exists(), "and its lock");
    }
}

#[test]
fn every_role_carries_bytes_over_both_families() {
    sandbox!();
    netns("a");
    let paces = [Pace::BULK, Pace::CRUMBS, Pace::HALTING];
    for (index, (ip, any)) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]")].into_iter().enumerate() {
        let here = plus(echo_tcp(TcpListener::bind(format!("{ip}:0")).expect("free"), ""));
        let there = plus(echo_inside("a", ip, ""));
        let listen = format!("{any}+0");
        let uds = format!("/run/test/{index}");
        let roles = [
            // straight through, here and into the namespace
            format!("label=1,listen={listen},target={here}"),
            format!("label=2,listen={listen},target={there},namespace=a"),
            format!("label=3,listen={listen},target={there},setns_path=/run/netns/a"),
            // endpoint and host proxy
            format!("label=4,uds={uds}-e,target={there},namespace=a"),
            format!("label=5,listen={listen},uds={uds}-e"),
            // combined pipeline
            format!("label=6,listen={listen},uds={uds}-c,target={there},namespace=a"),
            // endpoint without a namespace, and an abstract one
            format!("label=7,uds={uds}-h,target={here}"),
            format!("label=8,uds=@{index}-abstract,target={there},namespace=a"),
            format!("label=9,listen={listen},uds=@{index}-abstract"),
            // in one namespace, out in another
            format!("label=10,listen={listen},listen_namespace=a,target={here}"),
        ];
        let service = forwarding(&roles.iter().map(String::as_str).collect::<Vec<_>>());
        let of = |label: &str| -> SocketAddr {
            let line = service.process.stderr.wait_for(&format!("{label}: {}", &any[..any.len() - 1]));
            let mut words = line.split(' ').filter_map(|word| word.parse().ok());
            words.next().unwrap_or_else(|| panic!("no address in {line}"))
        };
        for pace in paces {
            for label in ["1", "2", "3", "5", "6", "9"] {
                exchange(&mut Wire::tcp(of(label)), index as u64, 200_000, pace);
            }
            for suffix in ["e", "c", "h"] {
                exchange(&mut Wire::unix(Path::new(&format!("{uds}-{suffix}"))), 7, 200_000, pace);
            }
            exchange(&mut Wire::abstract_unix(&format!("{index}-abstract")), 8, 200_000, pace);
            let address = of("10");
            inside("a", || exchange(&mut Wire::tcp(address), 9, 200_000, pace));
        }
        service.stop();
    }
}

#[test]
fn inherited_sockets_have_the_same_roles_in_both_programs() {
    sandbox!();
    netns("a");
    let there = plus(echo_inside("a", "127.0.0.1", ""));
    let udp = plus(echo_udp_inside("a", "127.0.0.1"));
    for program in [env!("CARGO_BIN_EXE_pfwd"), env!("CARGO_BIN_EXE_qrexec-connect")] {
        let service = support::Activation::of(program)
            .tcp(&format!("namespace=a,target={there}"))
            .tcp(&format!("uds=/run/pipe,target={there},namespace=a"))
            .unix(&format!("namespace=a,target={there}"))
            .udp(&format!("namespace=a,target={udp}"))
            .tcp6(&format!("namespace=a,target={there}"))
            .start()
            .ready();
        for index in [0, 1, 2, 4] {
            exchange(&mut service.connect(index), index as u64, 200_000, Pace::BULK);
        }
        exchange(&mut Wire::unix(Path::new("/run/pipe")), 3, 1000, Pace::CRUMBS);
        let asker = asker("127.0.0.1");
        asker.send_to(b"asked", ("127.0.0.1", service.port(3))).expect("sent");
        let mut buffer = [0; 100];
        assert_eq!(asker.recv(&mut buffer).expect("answered"), 5);
        service.stop();
        assert!(!Path::new("/run/pipe").exists());
    }
}

#[test]
fn two_namespaces_may_have_the_same_addresses() {
    sandbox!();
    let mut forwards = Vec::new();
    for (name, says) in [("qrouter-1", "one "), ("qrouter-2", "two ")] {
        netns_with_link(name, "10.1.1.1/24", "10.0.0.5/24");
        let server = inside(name, || TcpListener::bind("10.0.0.5:22").expect("free"));
        echo_tcp(server, says);
        forwards.push(format!("label={name},listen=127.0.0.1+0,namespace={name},target=10.0.0.5+22"));
        // and a listener on one address in each
        forwards.push(format!("listen=10.0.0.5+80,listen_namespace={name},namespace={name},target=10.0.0.5+22"));
    }
    let service = forwarding(&forwards.iter().map(String::as_str).collect::<Vec<_>>());
    for (name, says) in [("qrouter-1", "one "), ("qrouter-2", "two ")] {
        let address = told_address(&service, &format!("tcp 10.0.0.5:22 in {name}"));
        Wire::tcp(address).expect(says.as_bytes());
        inside(name, || Wire::tcp("10.0.0.5:80".parse().expect("one")).expect(says.as_bytes()));
        // the log says which namespace that was, as readlink does
        let line = service.process.stderr.wait_for(&format!("{name}: "));
        assert!(line.contains(&inode_of(name)), "{line}");
    }
    service.stop();
}

#[test]
fn one_socket_is_served_by_one_process_and_dialled_by_another() {
    sandbox!();
    netns("a");
    let there = plus(echo_inside("a", "127.0.0.1", ""));
    let proxy = forwarding(&["listen=127.0.0.1+0,uds=/run/x/ssh.sock"]);
    let address = told_address(&proxy, "unix /run/x/ssh.sock");
    // the client is there before the endpoint is, and waits
    let mut early = Wire::tcp(address);
    let said = proxy.process.stderr.wait_for("does not exist yet");
    assert_eq!(
        said,
        "warning: /run/x/ssh.sock does not exist yet: its endpoint has not started; next try in 0.03 s, then less often"
    );
    let endpoint = forwarding(&[&format!("namespace=a,uds=/run/x/ssh.sock,target={there}")]);
    exchange(&mut early, 1, 100_000, Pace::BULK);
    // socat dials it too
    let mut command = Command::new("socat");
    command.args(["-u", "OPEN:/dev/null", "UNIX-CONNECT:/run/x/ssh.sock"]);
    assert!(support::run(command).status.success());
    endpoint.stop();
    proxy.stop();
}

#[test]
fn socat_on_both_sides_sees_the_same_bytes() {
    sandbox!();
    netns("a");
    let _server = socat(Some("a"), &["TCP-LISTEN:2200,bind=127.0.0.1,reuseaddr,fork", "EXEC:cat"]);
    eventually("socat listens", || inside("a", || std::net::TcpStream::connect("127.0.0.1:2200").is_ok()));
    let service = forwarding(&["listen=127.0.0.1+2201,namespace=a,target=127.0.0.1+2200"]);
    let dir = tempfile::tempdir().expect("a directory");
    let (sent, got) = (dir.path().join("sent"), dir.path().join("got"));
    let bytes: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    fs::write(&sent, &bytes).expect("room for it");
    let line = format!("socat -t 30 - TCP:127.0.0.1:2201 < {} > {}", sent.display(), got.display());
    let mut command = Command::new("sh");
    command.args(["-c", &line]);
    assert!(support::run(command).status.success());
    assert_eq!(fs::read(got).expect("it was made"), bytes);
    service.stop();
}

#[test]
fn the_upstream_hears_who_connected() {
    sandbox!();
    netns_with_link("a", "10.9.0.1/24", "10.9.0.2/24");
    let server = inside("a", || TcpListener::bind("0.0.0.0:0").expect("free"));
    server.set_nonblocking(true).expect("ours");
    let port = server.local_addr().expect("bound").port();
    run("ip addr add 10.9.0.77/32 dev lo");
    let service = forwarding(&[
        &format!("label=v1,listen=127.0.0.1+4001,namespace=a,target=127.0.0.1+{port},proxy_protocol=v1"),
        &format!("label=pipe,listen=127.0.0.1+4002,uds=/run/p,namespace=a,target=127.0.0.1+{port},proxy_protocol=v1"),
        &format!("label=source,listen=127.0.0.1+4003,target=10.9.0.2+{port},source=10.9.0.77"),
        &format!("label=device,listen=127.0.0.1+4004,namespace=a,target=127.0.0.1+{port},bind_device=lo"),
    ]);
    let dial = |from: u16| {
        let wire = Wire::tcp(SocketAddr::from(([127, 0, 0, 1], from)));
        let mut accepted = None;
        eventually("a connection comes", || {
            accepted = server.accept().ok();
            accepted.is_some()
        });
        let (accepted, peer) = accepted.expect("just now");
        accepted.set_nonblocking(false).expect("ours");
        (wire, accepted, peer)
    };
    for from in [4001, 4002] {
        let (mut wire, mut accepted, _) = dial(from);
        wire.write_all(b"first").expect("room");
        let expected = format!(
            "PROXY TCP4 127.0.0.1 127.0.0.1 {} {from}\r\nfirst",
            wire.local().rsplit(':').next().expect("port")
        );
        let mut got = vec![0; expected.len()];
        accepted.read_exact(&mut got).expect("bytes");
        assert_eq!(String::from_utf8_lossy(&got), expected);
    }
    let (_wire, _accepted, peer) = dial(4003);
    assert_eq!(peer.ip().to_string(), "10.9.0.77");
    let (_wire, _accepted, peer) = dial(4004);
    assert_eq!(peer.ip().to_string(), "127.0.0.1");
    service.stop();
}

#[test]
fn nothing_but_sockets_is_ever_in_a_foreign_namespace() {
    sandbox!();
    netns("a");
    let there = plus(echo_inside("a", "127.0.0.1", ""));
    let service = forwarding(&[
        &format!("listen=127.0.0.1+4100,namespace=a,target={there}"),
        "listen=127.0.0.1+4101,namespace=gone,target=127.0.0.1+1",
    ]);
    let home = inode_here();
    let pid = service.process.pid();
    let mut foreign = 0;
    for round in 0..300 {
        drop(Wire::tcp("127.0.0.1:4101".parse().expect("one"))); // its dial fails
        let mut wire = Wire::tcp("127.0.0.1:4100".parse().expect("one"));
        wire.write_all(b"x").expect("room");
        for task in fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten() {
            let (Ok(ns), Ok(name)) =
                (fs::read_link(task.path().join("ns/net")), fs::read_to_string(task.path().join("comm")))
            else {
                continue; // it has ended
            };
            // the one kind of thread that enters does nothing else, and ends there
            if ns.to_string_lossy() != home {
                assert_eq!(name.trim(), "netns", "round {round}");
                foreign += 1;
            }
        }
        wire.expect(b"x");
    }
    eprintln!("{foreign} times a thread was seen inside");
    eventually("no thread stays", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten();
        tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).all(|name| name.trim() != "netns")
    });
    service.stop();
}

#[test]
fn who_may_connect_is_checked_in_every_role() {
    sandbox!();
    netns("a");
    let there = plus(echo_inside("a", "127.0.0.1", "yes"));
    let service = forwarding(&[
        &format!("listen=127.0.0.1+4200,namespace=a,target={there},allow_from=10.0.0.0/8"),
        &format!("uds=/run/closed,namespace=a,target={there},allow_uid=12345"),
        &format!("listen=127.0.0.1+4201,uds=/run/pipe,namespace=a,target={there},allow_from=127.0.0.1"),
        &format!("listen=127.0.0.1+4203,uds=/run/own,namespace=a,target={there},allow_uid=12345"),
        &format!("listen=127.0.0.1+4202,listen_namespace=a,namespace=a,target={there},allow_from=10.0.0.0/8"),
    ]);
    Wire::tcp("127.0.0.1:4200".parse().expect("one")).expect_reset();
    Wire::unix(Path::new("/run/closed")).expect_end();
    Wire::tcp("127.0.0.1:4201".parse().expect("one")).expect(b"yes");
    // its own front half may, others not
    Wire::tcp("127.0.0.1:4203".parse().expect("one")).expect(b"yes");
    Wire::unix(Path::new("/run/own")).expect_end();
    inside("a", || Wire::tcp("127.0.0.1:4202".parse().expect("one")).expect_reset());
    service.process.stderr.wait_for_nth("not in allow_from", 2);
    service.process.stderr.wait_for_nth("not in allow_uid", 2);
    service.stop();
}

#[test]
fn a_process_that_may_not_enter_namespaces_says_what_to_add_to_its_unit() {
    sandbox!();
    netns("a");
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--", env!("CARGO_BIN_EXE_pfwd")]);
    command.args(["--forward", "listen=127.0.0.1+0,namespace=a,target=127.0.0.1+1"]);
    let output = support::run(command);
    assert_eq!(output.status.code(), Some(77));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("AmbientCapabilities=CAP_SYS_ADMIN"), "{said}");
}

#[test]
fn what_is_no_namespace_is_not_entered() {
    sandbox!();
    netns("a");
    fs::write("/run/netns/file", "").expect("a new file");
    run("mkfifo /run/netns/fifo");
    let user = "/proc/self/ns/user";
    let service = forwarding(&[
        "listen=127.0.0.1+4300,namespace=file,target=127.0.0.1+1",
        "listen=127.0.0.1+4301,namespace=fifo,target=127.0.0.1+1",
        &format!("listen=127.0.0.1+4302,setns_path={user},target=127.0.0.1+1"),
        "listen=127.0.0.1+4303,namespace=nowhere,target=127.0.0.1+1",
    ]);
    for (port, why) in [
        (4300, "/run/netns/file is not a network namespace"),
        (4301, "/run/netns/fifo is not a network namespace"),
        (4302, "/proc/self/ns/user is not a network namespace"),
        (4303, "there is no network namespace at /run/netns/nowhere"),
    ] {
        Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port))).expect_reset();
        service.process.stderr.wait_for("dial-failed after");
        service.process.stderr.wait_for(why);
    }
    service.process.signal(Signal::SIGINT);
    let mut process = service.process;
    assert!(process.wait().success());
    drop(UnixListener::bind("/run/free"));
}

#[test]
fn a_namespace_is_found_by_name_in_both_directories_and_by_the_path_of_a_process() {
    sandbox!();
    netns("a");
    let there = plus(echo_inside("a", "127.0.0.1", "inside"));
    let here = plus(echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "outside"));
    // a process in it, and then no name
    let sleeper = socat(Some("a"), &["TCP-LISTEN:7000,bind=127.0.0.1", "STDOUT"]);
    eventually("it is in there", || {
        fs::read_link(format!("/proc/{}/ns/net", sleeper.pid())).is_ok_and(|ns| ns.to_string_lossy() == inode_of("a"))
    });
    let path = format!("/proc/{}/ns/net", sleeper.pid());
    // where /var/run is no link to /run, names are there
    run("mount -t tmpfs tmpfs /var");
    fs::create_dir_all("/var/run/netns").expect("a new file system");
    fs::write("/var/run/netns/b", "").expect("new");
    run(&format!("mount --bind {path} /var/run/netns/b"));
    let inode = inode_of("a");
    let service = forwarding(&[
        &format!("listen=127.0.0.1+4400,setns_path={path},target={there}"),
        &format!("listen=127.0.0.1+4401,namespace=b,target={there}"),
        &format!("listen=127.0.0.1+4402,listen_namespace={path},target={here}"),
    ]);
    for port in [4400, 4401] {
        Wire::tcp(SocketAddr::from(([127, 0, 0, 1], port))).expect(b"inside");
    }
    inside("a", || Wire::tcp("127.0.0.1:4402".parse().expect("one")).expect(b"outside"));
    service.process.stderr.wait_for(&format!("({path}, {inode})"));
    service.process.stderr.wait_for(&format!("(/var/run/netns/b, {inode})"));
    // it goes with the process, of which no mount tells
    drop(sleeper);
    service.process.stderr.wait_for("is closed: its namespace is gone");
    Wire::tcp("127.0.0.1:4400".parse().expect("one")).expect_reset();
    service.stop();
}

#[test]
fn a_name_is_looked_up_at_each_dial() {
    sandbox!();
    run("ip addr add 10.5.0.1/32 dev lo");
    run("ip addr add 10.5.0.2/32 dev lo");
    for (address, says) in [("10.5.0.1:7000", "one"), ("10.5.0.2:7000", "two")] {
        echo_tcp(TcpListener::bind(address).expect("nobody has it"), says);
    }
    fs::write("/run/hosts", "10.5.0.1 moves.test\n").expect("ours");
    run("mount --bind /run/hosts /etc/hosts");
    let service = forwarding(&["listen=127.0.0.1+4500,target=moves.test+7000"]);
    let dial = || Wire::tcp("127.0.0.1:4500".parse().expect("one"));
    dial().expect(b"one");
    fs::write("/run/hosts", "10.5.0.2 moves.test\n").expect("ours");
    dial().expect(b"two");
    fs::write("/run/hosts", "").expect("ours");
    dial().expect_reset();
    service.process.stderr.wait_for("cannot look up moves.test");
    service.stop();
}
