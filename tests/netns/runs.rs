//! Runs of datagrams (UDP_SEGMENT, UDP_GRO) and single ones through real ways: both families, a namespace, links that take
//! runs and links that do not. Each datagram comes through whole, once and in order.

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use nix::sys::signal::Signal;

use crate::{
    sandbox::{asker, echo_udp, forwarding, inside, netns_with_link, run},
    support::{
        runs::{RunTraffic, send_run},
        skip,
    },
};

/// Bytes that are on their way at once: a queue of the default size holds them, also as single datagrams.
const BURST: usize = 40_000;

/// Datagrams, by their sizes, and how many of each follow each other; the last piece of a run is shorter.
const SIZES: [(usize, usize, usize); 12] = [
    (0, 1, 0),
    (1, 1, 0),
    (1200, 20, 7),
    (0, 3, 0),
    (1400, 2, 1399),
    (1472, 20, 0),
    (65_507, 1, 0),
    (1, 30, 0),
    (1473, 4, 1),
    (1200, 1, 0),
    (8192, 4, 100),
    (9, 5, 8),
];

/// Sends all of [`SIZES`] to `server` and waits for the echo of each, in order.
#[track_caller]
fn exchange(client: &UdpSocket, server: SocketAddr, in_runs: bool) {
    client.connect(server).expect("a socket");
    let mut expected: Vec<Vec<u8>> = Vec::new();
    let mut buffer = vec![0; 65_536];
    let mut receive = |expected: &mut Vec<Vec<u8>>| {
        for (n, datagram) in expected.drain(..).enumerate() {
            let len = client.recv(&mut buffer).unwrap_or_else(|e| panic!("{n}, of {} bytes: {e}", datagram.len()));
            assert!(buffer[..len] == datagram, "{n}: {} bytes came for {}", len, datagram.len());
        }
    };
    for (seed, (size, count, last)) in (0u8..).zip(SIZES) {
        let sizes = std::iter::repeat_n(size, count).chain((last > 0).then_some(last));
        let datagrams: Vec<Vec<u8>> = (seed..).zip(sizes).map(|(content, size)| vec![content; size]).collect();
        // the sender's own link may take no such run: that is not what is tested
        let run = in_runs && size > 0 && size <= 1472 && send_run(client, &datagrams.concat(), size).is_ok();
        for datagram in datagrams {
            if !run {
                client.send(&datagram).expect("sent");
            }
            expected.push(datagram);
            if !run && expected.iter().map(|datagram| datagram.len() + 800).sum::<usize>() > BURST {
                receive(&mut expected);
            }
        }
        receive(&mut expected);
    }
    receive(&mut expected);
}

#[test]
fn runs_and_single_datagrams_of_every_size_come_back_in_order_over_every_way() {
    sandbox!();
    let here = netns_with_link("a", "10.3.0.1/24", "10.3.0.2/24");
    crate::sandbox::address(None, &here, "fd03::1/64");
    crate::sandbox::address(Some("a"), "inside", "fd03::2/64");
    let echo = |ip: &str| echo_udp(inside("a", || UdpSocket::bind(format!("{ip}:0")).expect("free"))).port();
    let (far, far6, within) = (echo("10.3.0.2"), echo("[fd03::2]"), echo("127.0.0.1"));
    let service = forwarding(&[
        &format!("udp_listen=127.0.0.1:5300,udp_target=10.3.0.2:{far}"),
        &format!("udp_listen=[::1]:5301,udp_target=[fd03::2]:{far6}"),
        &format!("udp_listen=[::]:5302,namespace=a,udp_target=127.0.0.1:{within}"),
        &format!("udp_listen=0.0.0.0:5303,udp_target=[fd03::2]:{far6}"),
        &format!("udp_listen=10.3.0.1:5304,udp_target=127.0.0.1:{}", echo_udp(asker("127.0.0.1")).port()),
    ]);
    let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let all = |what: &str| {
        for in_runs in [true, false] {
            println!("{what}, in runs: {in_runs}");
            for (from, server) in [
                ("127.0.0.1", "127.0.0.1:5300"),
                ("[::1]", "[::1]:5301"),
                ("127.0.0.1", "127.0.0.1:5302"),
                ("[::1]", "[::1]:5302"),
                ("127.0.0.1", "127.0.0.1:5303"),
            ] {
                exchange(&asker(from), at(server), in_runs);
            }
            // who asks comes over the link
            exchange(&inside("a", || asker("10.3.0.2")), at("10.3.0.1:5304"), in_runs);
        }
    };
    all("a link that takes runs");
    if Command::new("ethtool").arg("--version").output().is_err() {
        return skip("no ethtool: links without offloads are not tested");
    }
    let inner = "ip netns exec a ethtool -K inside";
    for (what, switches) in [
        ("no segmentation by the link", "tx-udp-segmentation off gso off"),
        ("nor checksums", "tx off sg off"),
        ("runs are made as they arrive", "gro on"),
    ] {
        for device in [format!("ethtool -K {here}"), inner.to_owned()] {
            run(&format!("{device} {switches}"));
        }
        all(what);
    }
    service.stop();
}

#[test]
fn a_way_that_takes_no_such_run_any_more_loses_nothing() {
    sandbox!();
    let here = netns_with_link("a", "10.3.0.1/24", "10.3.0.2/24");
    let server = inside("a", || UdpSocket::bind("10.3.0.2:7007").expect("free"));
    let service = forwarding(&["udp_listen=127.0.0.1:5300,udp_target=10.3.0.2:7007"]);
    let client = asker("127.0.0.1");
    client.connect("127.0.0.1:5300").expect("a socket");
    let traffic = RunTraffic::start(client, server, false);
    traffic.wait_for(1_000);
    // Datagrams of 1,000 bytes fit no more: the kernel refuses runs of them, and sends each in fragments.
    for mtu in [900, 1500] {
        run(&format!("ip route replace 10.3.0.2/32 dev {here} mtu {mtu}"));
        traffic.wait_for(2_000);
    }
    assert!(traffic.stop() >= 5_000);
    let rest = service.stop();
    assert_eq!(rest.stderr.count("not sent"), 0);
    assert_eq!(rest.stderr.count("connected after"), 1);
}

#[test]
fn runs_go_over_restarts_in_full_traffic_without_loss() {
    sandbox!();
    let bound = |at: &str| UdpSocket::bind(at).expect("free");
    let (server, client) = (bound("127.0.0.1:7007"), bound("127.0.0.1:0"));
    let mut service = forwarding(&["udp_listen=127.0.0.1:5300,udp_target=127.0.0.1:7007"]);
    client.connect("127.0.0.1:5300").expect("a socket");
    let traffic = RunTraffic::start(client, server, false);
    for _ in 0..10 {
        traffic.wait_for(500);
        let status = service.restart(|process| {
            process.signal(Signal::SIGUSR1);
            process.signal(Signal::SIGTERM);
        });
        assert!(status.success(), "{status}");
    }
    traffic.wait_for(500);
    traffic.stop();
    assert_eq!(service.log().iter().filter(|line| line.contains("connected after")).count(), 1);
    service.stop();
}

#[test]
fn a_flood_of_one_flow_leaves_room_for_others() {
    sandbox!();
    let bound = |at: &str| UdpSocket::bind(at).expect("free");
    let server = echo_udp(bound("127.0.0.1:0"));
    let silent = bound("127.0.0.1:0"); // it takes what comes, and drops what finds no room
    let service = forwarding(&[
        &format!("udp_listen=127.0.0.1:5300,udp_target={}", silent.local_addr().expect("bound")),
        &format!("udp_listen=127.0.0.1:5301,udp_target={server}"),
    ]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let flooder = bound("127.0.0.1:0");
                flooder.connect("127.0.0.1:5300").expect("a socket");
                let run = vec![1; 1200 * 40];
                while !stop.load(Relaxed) {
                    let _ = send_run(&flooder, &run, 1200);
                }
            });
        }
        service.process.stderr.wait_for_nth("connected after", 2);
        let client = asker("127.0.0.1");
        client.connect("127.0.0.1:5301").expect("a socket");
        for n in 0..200u8 {
            client.send(&[n]).expect("sent");
            let mut answer = [0; 2];
            let len = client.recv(&mut answer);
            stop.store(len.is_err(), Relaxed);
            assert_eq!((len.expect("answered"), answer[0]), (1, n));
        }
        stop.store(true, Relaxed);
    });
    service.stop();
}
