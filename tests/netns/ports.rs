//! Targets towards which no local port is free.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use crate::{
    sandbox::{echo_tcp, forwarding, inside, netns},
    support::Wire,
};

/// Leaves four local ports here and in the namespace `a`.
fn four_ports() {
    let range = || fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40003").expect("root may");
    range();
    netns("a");
    inside("a", range);
}

#[test]
fn a_lack_of_local_ports_is_reported_once_with_the_number_in_use_and_what_helps() {
    sandbox!();
    four_ports();
    let here = ["127.0.0.1:700", "[::1]:700"].map(|at| echo_tcp(TcpListener::bind(at).expect("free"), "here "));
    let there: SocketAddr = "127.0.0.1:701".parse().expect("one");
    echo_tcp(inside("a", || TcpListener::bind(there).expect("free")), "there ");
    let service = forwarding(&[
        &format!("uds=/run/four,target={}", here[0]),
        &format!("uds=/run/six,target={}", here[1]),
        &format!("uds=/run/inside,target={there},namespace=a"),
    ]);
    for (uds, target) in [("four", here[0]), ("six", here[1]), ("inside", there)] {
        let path = format!("/run/{uds}");
        let mut wires: Vec<_> = (0..4).map(|_| Wire::unix(Path::new(&path))).collect();
        wires.iter_mut().for_each(|wire| wire.expect(if uds == "inside" { b"there " } else { b"here " }));
        let further: Vec<_> = (0..3).map(|_| Wire::unix(Path::new(&path))).collect();
        for mut wire in further {
            assert_eq!(wire.read_to_end(), b"");
        }
        let line = service.process.stderr.wait_for(&format!("no local port towards {target} is free: "));
        assert!(line.contains("sockets to it use 4 of 4 (net.ipv4.ip_local_port_range)"), "{line}");
        assert!(line.contains("several target addresses, other source addresses (source) or a Unix socket"), "{line}");
    }
    let ends = service.ends(3 * (4 + 3));
    let bare = ends.iter().filter(|end| end.note.contains("no local port towards this address is free")).count();
    assert_eq!((bare, service.process.stderr.count("sockets to it use")), (9, 3), "{ends:?}");
    service.stop();
}

#[test]
fn a_source_address_shares_its_ports_among_targets() {
    sandbox!();
    four_ports();
    for ip in ["127.0.0.1", "::1"] {
        let targets = [702, 703].map(|port| echo_tcp(TcpListener::bind((ip, port)).expect("free"), "here "));
        let forwards = targets.map(|to| format!("uds=/run/{},target={to},source={ip}", to.port()));
        let service = forwarding(&forwards.each_ref().map(String::as_str));
        let path = |n: usize| format!("/run/{}", targets[n % 2].port());
        let mut wires: Vec<_> = (0..8).map(|n| Wire::unix(Path::new(&path(n)))).collect();
        wires.iter_mut().for_each(|wire| wire.expect(b"here "));
        service.stop();
    }
}
