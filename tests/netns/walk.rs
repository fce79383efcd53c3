//! The page about pfwd, and the forwards of the README, as they are written there.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;

use crate::{
    sandbox::{asker, echo_tcp, echo_udp, inode_of, inside, netns, run},
    support::{Activation, Pace, Process, Wire, exchange},
};

const README: &str = include_str!("../../README.md");
const PAGE: &str = include_str!("../../packaging/doc/pfwd.md");

/// The blocks of a text: their language, and their text.
fn blocks(text: &'static str) -> Vec<(&'static str, &'static str)> {
    let blocks = text.split("\n```").skip(1).step_by(2);
    blocks.map(|block| block.split_once('\n').expect("a language, then lines")).collect()
}

/// A command line of a page, with this pfwd in the path.
fn shell(line: &str) -> Command {
    let binaries = Path::new(env!("CARGO_BIN_EXE_pfwd")).parent().expect("a directory");
    let mut command = Command::new("/bin/sh");
    command.args(["-euc", line]).stdin(Stdio::null());
    command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", binaries.display()));
    command
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn the_page_is_followed_step_by_step() {
    sandbox!();
    let (dhcp, router, metadata) = ("qdhcp-27a7...", "qrouter-5b0a...", "ovnmeta-0c2d...");
    for (name, address) in [(dhcp, "192.168.31.201"), (dhcp, "192.168.31.2"), (router, "10.0.0.12")] {
        if !Path::new("/run/netns").join(name).exists() {
            netns(name);
        }
        run(&format!("ip -n {name} addr add {address}/32 dev lo"));
    }
    let tcp = |name: &str, address: &str, says: &'static str| {
        echo_tcp(inside(name, || TcpListener::bind(address).expect("nobody has it")), says)
    };
    tcp(dhcp, "192.168.31.201:22", "ssh");
    tcp(router, "10.0.0.12:80", "web");
    echo_udp(inside(dhcp, || UdpSocket::bind("192.168.31.2:53").expect("nobody has it")));
    echo_tcp(TcpListener::bind("127.0.0.1:8775").expect("nobody has it"), "metadata");

    let blocks = blocks(PAGE);
    let languages: Vec<&str> = blocks.iter().map(|(language, _)| *language).collect();
    assert_eq!(languages, ["sh", "sh", "toml", "ini", "sh"]);

    // on the command line, straight and in two steps
    for (_, line) in &blocks[..2] {
        let mut process = Process::start(shell(&format!("exec {line}")));
        process.stderr.wait_for("ready:");
        let mut wire = Wire::tcp(at(2222));
        wire.expect(b"ssh");
        drop(wire);
        process.signal(Signal::SIGTERM);
        assert!(process.wait().success());
    }

    // the file; the namespace that comes late is served when it is there
    fs::write("/run/pfwd.toml", blocks[2].1).expect("ours");
    let checked = support::run(shell("pfwd --check --config /run/pfwd.toml"));
    assert!(checked.status.success());
    let mut service = Process::start(shell("exec pfwd --config /run/pfwd.toml"));
    service.stderr.wait_for("ready: 2 of 3 forwards");
    let mut web = Wire::tcp(at(8080));
    web.expect(b"web");
    let asker = asker("127.0.0.1");
    asker.send_to(b"name?", at(5353)).expect("sent");
    assert_eq!(asker.recv(&mut [0; 9]).expect("answered"), 5);
    netns(metadata);
    run(&format!("ip -n {metadata} addr add 169.254.169.254/32 dev lo"));
    service.stderr.wait_for("169.254.169.254:80 in ovnmeta-0c2d... (net:[");
    inside(metadata, || Wire::tcp("169.254.169.254:80".parse().expect("one")).expect(b"metadata"));

    // which namespace is it?
    let commands: Vec<&str> = blocks[4].1.lines().filter_map(|line| line.split('#').next()).map(str::trim).collect();
    let said = |line: &str| {
        let output = support::run(shell(line));
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let [show, journal, inodes, sockets] = commands[..] else { panic!("{commands:?}") };
    let shown = said(&format!("{show} --config /run/pfwd.toml"));
    for name in [dhcp, router, metadata] {
        assert!(shown.contains(&format!("{name}  /run/netns/{name}  {}", inode_of(name))), "{shown}");
    }
    // there is no journal here: the log is on stderr
    let pattern = journal.rsplit("-g ").next().expect("a pattern").trim_matches('\'').replace('\\', "");
    assert!(service.stderr.so_far().iter().any(|line| line.contains(&pattern)), "{pattern}");
    let inodes = said(&inodes.replace("PID", &service.pid().to_string()));
    let number = inode_of(router).trim_start_matches("net:[").trim_end_matches(']').to_owned();
    assert!(inodes.contains(&crate::sandbox::inode_here()) && inodes.contains(&number), "{inodes}");
    let sockets = said(&sockets.replace(dhcp, router));
    assert!(sockets.contains("10.0.0.12:80") && sockets.contains("pfwd"), "{sockets}");
    web.write_all(b"x").expect("it lives");
    web.expect(b"x");
    drop(web);
    service.signal(Signal::SIGTERM);
    assert!(service.wait().success());

    // systemd listens
    let name = blocks[3].1.lines().find_map(|line| line.strip_prefix("FileDescriptorName=")).expect("a name");
    let service = Activation::of(env!("CARGO_BIN_EXE_pfwd")).tcp(name).start().ready();
    let mut wire = service.connect(0);
    wire.expect(b"ssh");
    exchange(&mut wire, 1, 1000, Pace::BULK);
    service.stop();
}

/// What takes the place of five lines of socat is one file; each of its forwards serves.
#[test]
fn the_forwards_of_the_readme_are_served() {
    sandbox!();
    let (dhcp, router, metadata) = ("qdhcp-27a7...", "qrouter-5b0a...", "ovnmeta-0c2d...");
    for (name, address) in
        [(dhcp, "192.168.31.201"), (dhcp, "192.168.31.2"), (router, "10.0.0.12"), (metadata, "169.254.169.254")]
    {
        if !Path::new("/run/netns").join(name).exists() {
            netns(name);
        }
        run(&format!("ip -n {name} addr add {address}/32 dev lo"));
    }
    for (name, address, says) in
        [(dhcp, "192.168.31.201:22", "ssh"), (router, "10.0.0.12:9000", "first"), (router, "10.0.0.12:9010", "last")]
    {
        echo_tcp(inside(name, || TcpListener::bind(address).expect("nobody has it")), says);
    }
    echo_udp(inside(dhcp, || UdpSocket::bind("192.168.31.2:53").expect("nobody has it")));
    echo_tcp(TcpListener::bind("127.0.0.1:8775").expect("nobody has it"), "metadata");

    let (_, section) = README.split_once("\n## pfwd: forwards into network namespaces\n").expect("the section");
    let blocks = blocks(section.split("\n## ").next().expect("its end"));
    let [("toml", file), ("sh", commands)] = blocks[..] else { panic!("{blocks:?}") };
    let commands: Vec<&str> = commands.lines().collect();
    // tests/package enables the unit, tests/systemd asks for the status: there is no manager here
    let ["pfwd check", "systemctl enable --now pfwd.service", "pfwd status"] = commands[..] else {
        panic!("{commands:?}")
    };
    fs::write("/run/pfwd.toml", file).expect("ours");
    let checked = support::run(shell(&format!("{} --config /run/pfwd.toml", commands[0])));
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    let mut service = Process::start(shell("exec pfwd --config /run/pfwd.toml"));
    service.stderr.wait_for("ready: 4 forwards");
    for (port, says) in [(2222, "ssh"), (8000, "first"), (8010, "last")] {
        Wire::tcp(at(port)).expect(says.as_bytes());
    }
    let asker = asker("127.0.0.1");
    asker.send_to(b"name?", at(5353)).expect("sent");
    assert_eq!(asker.recv(&mut [0; 9]).expect("answered"), 5);
    inside(metadata, || Wire::tcp("169.254.169.254:80".parse().expect("one")).expect(b"metadata"));
    service.signal(Signal::SIGTERM);
    assert!(service.wait().success());
}
