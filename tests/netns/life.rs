//! Namespaces that come, go and come back.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use crate::{
    sandbox::{asker, echo_inside, echo_tcp, echo_udp, forwarding, inside, netns, run},
    support::{Activated, Pace, Wire, eventually, exchange},
};

pub(crate) fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn a_namespace_that_is_made_anew_is_used_at_the_next_dial() {
    sandbox!();
    netns("a");
    let listener = inside("a", || TcpListener::bind("127.0.0.1:7000").expect("free"));
    echo_tcp(listener, "first");
    let service = forwarding(&["listen=127.0.0.1+4000,namespace=a,target=127.0.0.1+7000"]);
    let mut old = Wire::tcp(at(4000));
    old.expect(b"first");
    // under load
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, served) = (stop.clone(), served.clone());
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    use std::io::Read as _;
                    let mut stream = TcpStream::connect(at(4000)).expect("the listener never goes");
                    let mut got = [0; 5];
                    if stream.read_exact(&mut got).is_ok() {
                        served.fetch_add(1, SeqCst);
                    }
                }
            })
        })
        .collect();
    for round in 0..5 {
        run("ip netns del a");
        netns("a");
        let listener = inside("a", || TcpListener::bind("127.0.0.1:7000").expect("free"));
        echo_tcp(listener, "again");
        let before = served.load(SeqCst);
        eventually("it is served again", || served.load(SeqCst) > before + 10);
        let mut new = Wire::tcp(at(4000));
        new.expect(b"again");
        // the log says which namespace that is
        let now = format!("which is {} now", crate::sandbox::inode_of("a"));
        assert!(service.process.stderr.wait_for(&now).contains("tcp 127.0.0.1:7000 in a"), "round {round}");
    }
    stop.store(true, SeqCst);
    load.into_iter().for_each(|thread| thread.join().expect("no panic"));
    // a session in a namespace that was deleted goes on
    exchange(&mut old, 4, 100_000, Pace::BULK);
    service.stop();
}

#[test]
fn listeners_in_a_namespace_come_and_go_with_it() {
    sandbox!();
    let here = echo_tcp(TcpListener::bind("127.0.0.1:0").expect("free"), "hello");
    let udp = echo_udp(std::net::UdpSocket::bind("127.0.0.1:0").expect("free"));
    let service = forwarding(&[
        &format!("listen=127.0.0.1+80,listen_namespace=late,target={here}"),
        &format!("udp_listen=10.7.0.1+53,listen_namespace=late,udp_target={udp}"),
        &format!("listen=127.0.0.1+4000,target={here}"),
    ]);
    assert_eq!(service.notifications.status().as_deref(), Some("1 of 3 forwards, 0 sessions"));
    Wire::tcp(at(4000)).expect(b"hello");
    for round in 1..=4 {
        netns("late");
        service.process.stderr.wait_for_nth("127.0.0.1:80 in late (net:[", round);
        service.process.stderr.wait_for_nth("10.7.0.1:53 in late (net:[", round);
        inside("late", || Wire::tcp(at(80)).expect(b"hello"));
        // its address comes after it
        run("ip -n late addr add 10.7.0.1/24 dev lo");
        inside("late", || {
            let asker = asker("10.7.0.1");
            asker.send_to(b"x", "10.7.0.1:53").expect("sent");
            assert_eq!(asker.recv(&mut [0; 9]).expect("answered"), 1);
        });
        service.notifications.wait_for("STATUS", |status| status.starts_with("3 forwards"));
        let mut kept = inside("late", || Wire::tcp(at(80)));
        kept.expect(b"hello");
        let inode = crate::sandbox::inode_of("late");
        run("ip netns del late");
        service.process.stderr.wait_for_nth("127.0.0.1:80 in late is closed: its namespace is gone", round);
        exchange(&mut kept, 2, 10_000, Pace::BULK);
        drop(kept);
        // nothing of ours keeps it alive
        let number = inode.trim_start_matches("net:[").trim_end_matches(']').to_owned();
        eventually("the namespace is gone", || {
            let output = std::process::Command::new("lsns").args(["-t", "net", "-n", "-o", "NS"]).output();
            !String::from_utf8_lossy(&output.expect("util-linux").stdout).contains(&number)
                && !sockets_in(&service, &number)
        });
    }
    service.stop();
}

/// Whether a process has a socket that keeps a namespace alive: a listener of ours in it would be seen by its port.
fn sockets_in(service: &Activated, _inode: &str) -> bool {
    // what it holds now that no session is left: epoll, event, signals, journal, three listeners at most
    service.process.descriptors().values().filter(|to| to.starts_with("socket:")).count() > 12
}

#[test]
fn a_session_says_which_namespace_it_entered() {
    sandbox!();
    netns("a");
    let there = echo_inside("a", "127.0.0.1", "");
    let udp = crate::sandbox::echo_udp_inside("a", "127.0.0.1");
    let service = forwarding(&[
        &format!("listen=127.0.0.1+4000,namespace=a,target={there}"),
        &format!("listen=127.0.0.1+4001,setns_path=/run/netns/a,target={there}"),
        &format!("udp_listen=127.0.0.1+5300,namespace=a,udp_target={udp}"),
        "listen=127.0.0.1+4003,target=127.0.0.1+4000",
    ]);
    exchange(&mut Wire::tcp(at(4000)), 1, 100, Pace::BULK);
    exchange(&mut Wire::tcp(at(4001)), 1, 100, Pace::BULK);
    asker("127.0.0.1").send_to(b"x", at(5300)).expect("sent");
    exchange(&mut Wire::tcp(at(4003)), 1, 100, Pace::BULK);
    let inode = crate::sandbox::inode_of("a");
    service.process.stderr.wait_for_nth("connected after", 5);
    for line in service.process.stderr.so_far().iter().filter(|line| line.contains("connected after")) {
        let said = line.ends_with(&format!("(/run/netns/a, {inode})"));
        assert_eq!(said, !line.contains(" on 127.0.0.1:4003 "), "{line}");
    }
    service.stop();
}

#[test]
fn a_deleted_namespace_is_kept_by_live_sessions_only_and_busy_flows_move_to_its_successor() {
    sandbox!();
    let make = || crate::sandbox::netns_with_link("a", "10.4.0.1/24", "10.4.0.2/24");
    // when the kernel lets go of a namespace, its end of a link goes, and the other end with it
    let links = || {
        let output = std::process::Command::new("ip").args(["-o", "link", "show", "type", "veth"]).output();
        String::from_utf8(output.expect("iproute2").stdout).expect("text").lines().count()
    };
    make();
    let service = forwarding(&[
        "listen=127.0.0.1+4000,namespace=a,target=10.4.0.2+7000",
        "listen=127.0.0.1+80,listen_namespace=a,target=127.0.0.1+4000",
        "udp_listen=127.0.0.1+5300,namespace=a,udp_target=10.4.0.2+7001,udp_idle_timeout=2",
        "udp_listen=127.0.0.1+5301,namespace=a,udp_target=10.4.0.3+7001",
    ]);
    for _ in 0..3 {
        Wire::tcp(at(4000)).expect_reset(); // nobody listens there
    }
    asker("127.0.0.1").send_to(b"x", at(5300)).expect("sent");
    service.process.stderr.wait_for("udp 10.4.0.2:7001 in a: connected after");
    run("ip netns del a");
    service.process.stderr.wait_for("127.0.0.1:80 in a is closed: its namespace is gone");
    assert_eq!(links(), 1, "a flow lives in it");
    service.process.stderr.wait_for("udp 10.4.0.2:7001 in a: idle after");
    eventually("the namespace is gone for good", || links() == 0);

    // a peer that never pauses: its flow would never be idle
    make();
    let busy = asker("127.0.0.1");
    busy.set_read_timeout(Some(std::time::Duration::from_millis(20))).expect("not zero");
    let answered = || {
        busy.send_to(b"x", at(5301)).expect("sent");
        busy.recv(&mut [0; 9]).is_ok()
    };
    assert!(!answered());
    run("ip -n a link del inside");
    for _ in 0..3 {
        assert!(!answered());
    }
    run("ip netns del a");
    make();
    run("ip -n a addr add 10.4.0.3/32 dev lo");
    echo_udp(inside("a", || std::net::UdpSocket::bind("10.4.0.3:7001").expect("free")));
    eventually("the successor answers", answered);
    let flow = "udp 10.4.0.3:7001 in a";
    assert_eq!(service.process.stderr.count(&format!("{flow}: connected after")), 1, "one flow");
    service.process.stderr.wait_for(&format!("{flow}: datagrams go to 10.4.0.3:7001 from 10.4.0.3 now"));
    service.stop();
}
