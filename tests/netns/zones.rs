//! Link-local addresses with the names of their interfaces.

use std::{
    net::{SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    process::Command,
};

use nix::net::if_::if_nametoindex;

use crate::{
    sandbox::{address, echo_tcp, echo_udp, forwarding, inside, netns, pfwd, run, told_address},
    support::{PATIENCE, Wire},
};

/// An interface `tap0` here with `fe80::a9fe:1`, and its other end `inside` in the namespace `far` with `fe80::a9fe:2`.
fn link() {
    netns("far");
    run("ip link add tap0 type veth peer name inside netns far");
    run("ip link set tap0 up");
    run("ip -n far link set inside up");
    address(None, "tap0", "fe80::a9fe:1/64");
    address(Some("far"), "inside", "fe80::a9fe:2/64");
}

/// A link-local address for the calling thread's namespace.
fn at(ip: &str, port: u16, interface: &str) -> SocketAddr {
    let index = if_nametoindex(interface).expect("it was made");
    SocketAddrV6::new(ip.parse().expect("an address"), port, 0, index).into()
}

#[test]
fn an_interface_is_looked_up_by_name_where_the_socket_is() {
    sandbox!();
    link();
    echo_tcp(inside("far", || TcpListener::bind(at("fe80::a9fe:2", 70, "inside")).expect("free")), "far ");
    echo_udp(inside("far", || UdpSocket::bind(at("fe80::a9fe:2", 70, "inside")).expect("free")));
    echo_tcp(TcpListener::bind(at("fe80::a9fe:1", 71, "tap0")).expect("free"), "here ");
    let service = forwarding(&[
        "listen=127.0.0.1:0,target=[fe80::a9fe:2%tap0]:70",
        "listen=127.0.0.1:0,target=[fe80::a9fe:1%inside]:71,namespace=far",
        "listen=[fe80::a9fe:1%tap0]:72,target=[fe80::a9fe:2%tap0]:70",
        "listen=[fe80::a9fe:2%inside]:73,listen_namespace=far,target=[fe80::a9fe:1%tap0]:71",
        "udp_listen=[fe80::a9fe:1%tap0]:74,udp_target=[fe80::a9fe:2%tap0]:70",
        "listen=127.0.0.1:0,target=[fe80::a9fe:2%none0]:70",
    ]);
    Wire::tcp(told_address(&service, "tcp [fe80::a9fe:2%tap0]:70")).expect(b"far ");
    Wire::tcp(told_address(&service, "tcp [fe80::a9fe:1%inside]:71 in far")).expect(b"here ");
    inside("far", || Wire::tcp(at("fe80::a9fe:1", 72, "inside")).expect(b"far "));
    Wire::tcp(at("fe80::a9fe:2", 73, "tap0")).expect(b"here ");
    inside("far", || {
        let socket = UdpSocket::bind(at("fe80::a9fe:2", 0, "inside")).expect("free");
        socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
        socket.send_to(b"asked", at("fe80::a9fe:1", 74, "inside")).expect("sent");
        assert_eq!(socket.recv(&mut [0; 10]).expect("answered"), 5);
    });
    Wire::tcp(told_address(&service, "tcp [fe80::a9fe:2%none0]:70")).expect_reset();
    let line = service.process.stderr.wait_for("cannot dial through the interface none0");
    assert!(line.contains("there is no such interface: see `ip link`"), "{line}");
    // The interface is made again, with another number: the next dial looks it up again.
    run("ip link del tap0");
    run("ip link add tap0 type veth peer name inside netns far");
    run("ip link set tap0 up");
    run("ip -n far link set inside up");
    address(None, "tap0", "fe80::a9fe:1/64");
    address(Some("far"), "inside", "fe80::a9fe:2/64");
    echo_tcp(inside("far", || TcpListener::bind(at("fe80::a9fe:2", 70, "inside")).expect("free")), "again ");
    Wire::tcp(told_address(&service, "tcp [fe80::a9fe:2%tap0]:70")).expect(b"again ");
    service.stop();
}

#[test]
fn a_listener_waits_for_its_interface() {
    sandbox!();
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "here ");
    let forward = format!("listen=[fe80::a9fe:1%tap0]:72,target={here}");
    let service = pfwd().args(["--forward", "listen=127.0.0.1:0,target=127.0.0.1:9"]).args(["--forward", &forward]);
    let service = service.start().ready();
    service.process.stderr.wait_for("cannot listen on [fe80::a9fe:1%tap0]:72: the interface tap0: No such device");
    link();
    service.process.stderr.wait_for(&format!("leads to tcp {here}"));
    inside("far", || Wire::tcp(at("fe80::a9fe:1", 72, "inside")).expect(b"here "));
    service.stop();
}

#[test]
fn a_link_local_address_without_its_interface_is_refused() {
    for (forward, says) in [
        ("listen=[fe80::1]:80,target=127.0.0.1:80", "needs its interface"),
        ("listen=127.0.0.1:80,target=[fe80::1]:80", "needs its interface"),
        ("udp_listen=127.0.0.1:80,udp_target=[fe80::1]:80", "needs its interface"),
        ("listen=127.0.0.1:80,target=[fd00::1%eth0]:80", "is no link-local address"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pfwd"));
        command.args(["--check", "--forward", forward]);
        let said = support::run(command);
        assert_eq!(said.status.code(), Some(78), "{forward}");
        let text = String::from_utf8_lossy(&said.stderr).into_owned() + &String::from_utf8_lossy(&said.stdout);
        assert!(text.contains(says), "{forward}: {text}");
    }
}
