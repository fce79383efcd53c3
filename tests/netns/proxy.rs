//! The PROXY header, read by haproxy: the header comes once, whatever happens to the session.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::Path,
};

use nix::sys::signal::Signal;

use crate::{
    sandbox::{forwarding, inside, netns, netns_with_link, pfwd},
    support::{Activated, Process, Wire, eventually},
};

/// An haproxy that answers each request with the addresses of the PROXY header that the connection began with, and
/// refuses connections without one; `binds` are where it listens.
fn haproxy(namespace: &str, binds: &[&str]) -> Process {
    let config = Path::new("/run").join(format!("haproxy-{namespace}.cfg"));
    let binds: String = binds.iter().map(|bind| format!("  bind {bind} accept-proxy\n")).collect();
    let text = format!(
        "defaults\n  mode http\n  timeout client 1m\n  timeout server 1m\n  timeout connect 1m\n\
         frontend told\n{binds}\
         \x20 http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"\n"
    );
    fs::write(&config, text).expect("ours");
    let mut command = std::process::Command::new("ip");
    command.args(["netns", "exec", namespace, "haproxy", "-db", "-f"]).arg(&config).stdin(std::process::Stdio::null());
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    Process::start(command)
}

/// One request on a connection that stays; the answer's body.
#[track_caller]
fn ask(wire: &mut Wire) -> String {
    wire.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").expect("room");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        wire.read_exact(&mut byte).unwrap_or_else(|e| panic!("{e} after {}", head.escape_ascii()));
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text").to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("its length");
    let mut body = vec![0; length.trim().parse().expect("a number")];
    wire.read_exact(&mut body).expect("the body");
    String::from_utf8(body).expect("text")
}

/// What a peer's header has to say: its own address, and the one it connected to.
fn expected(wire: &Wire, to: SocketAddr) -> String {
    let from: SocketAddr = wire.local().parse().expect("an address");
    format!("{} {} {} {}", from.ip(), from.port(), to.ip(), to.port())
}

fn served(service: &Activated, count: usize) {
    assert_eq!(service.notifications.status(), Some(format!("{count} forwards, 0 sessions")));
}

#[test]
fn haproxy_hears_who_connected_in_both_versions_and_families() {
    sandbox!();
    netns_with_link("a", "10.9.0.1/24", "10.9.0.2/24");
    let _haproxy = haproxy("a", &["127.0.0.1:8000", "10.9.0.2:8000", "[::1]:8000"]);
    eventually("haproxy listens", || inside("a", || std::net::TcpStream::connect("[::1]:8000").is_ok()));
    for version in ["v1", "v2"] {
        let service = forwarding(&[
            &format!("listen=127.0.0.1+4001,namespace=a,target=127.0.0.1+8000,proxy_protocol={version}"),
            &format!("listen=[::1]+4002,namespace=a,target=[::1]+8000,proxy_protocol={version}"),
            // one family in, the other out; a dual-stack listener
            &format!("listen=[::]+4003,namespace=a,target=[::1]+8000,proxy_protocol={version}"),
            // from here over the link, and the other way
            &format!("listen=127.0.0.1+4004,target=10.9.0.2+8000,proxy_protocol={version}"),
            &format!(
                "listen=127.0.0.1+4005,listen_namespace=a,namespace=a,target=127.0.0.1+8000,proxy_protocol={version}"
            ),
            // a pipeline, and its UNIX socket dialled directly
            &format!("listen=127.0.0.1+4006,uds=/run/p,namespace=a,target=127.0.0.1+8000,proxy_protocol={version}"),
            // an endpoint, whose peers have no address
            &format!("uds=/run/e,namespace=a,target=127.0.0.1+8000,proxy_protocol={version}"),
            // two steps, the first of which says who it is
            "uds=/run/q,namespace=a,target=127.0.0.1+8000",
            &format!("listen=127.0.0.1+4007,uds=/run/q,proxy_protocol={version}"),
        ]);
        served(&service, 9);
        let told = |wire: &mut Wire, to: SocketAddr| {
            let expected = expected(wire, to);
            // twice on one connection: nothing but the first request follows the header
            assert_eq!(ask(wire), expected, "{version} to {to}");
            assert_eq!(ask(wire), expected, "{version} to {to}");
        };
        let addresses = ["127.0.0.1:4001", "[::1]:4002", "[::1]:4003", "127.0.0.1:4003", "127.0.0.1:4004"];
        for address in addresses.into_iter().chain(["127.0.0.1:4006", "127.0.0.1:4007"]) {
            let address: SocketAddr = address.parse().expect("one");
            told(&mut Wire::tcp(address), address);
        }
        inside("a", || {
            let address: SocketAddr = "127.0.0.1:4005".parse().expect("one");
            told(&mut Wire::tcp(address), address);
        });
        for path in ["/run/e", "/run/p"] {
            let mut wire = Wire::unix(Path::new(path));
            let first = ask(&mut wire);
            assert!(
                first.starts_with("127.0.0.1 "),
                "{version} {path}: haproxy says where it was dialled from: {first}"
            );
            assert_eq!(ask(&mut wire), first);
        }
        service.stop();
    }
}

#[test]
fn a_header_is_sent_once_however_often_the_session_is_handed_over() {
    sandbox!();
    netns("a");
    for version in ["v1", "v2"] {
        let mut service = pfwd()
            .args([
                "--forward",
                &format!("listen=127.0.0.1+4000,namespace=a,target=127.0.0.1+8000,proxy_protocol={version}"),
            ])
            .args(["--forward", &format!("listen=127.0.0.1+4001,uds=/run/h.sock,proxy_protocol={version}")])
            .args([
                "--forward",
                &format!(
                    "listen=127.0.0.1+4002,uds=/run/pipe,namespace=a,target=127.0.0.1+8000,proxy_protocol={version}"
                ),
            ])
            .start()
            .ready();
        let restart = |service: &mut Activated| {
            let status = service.restart(|process| {
                process.signal(Signal::SIGUSR1);
                process.signal(Signal::SIGTERM);
            });
            assert!(status.success(), "{status}");
        };
        // it waits for its upstream while the service is restarted, with a request sent already
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut early = Wire::tcp(at(4001));
        service.process.stderr.wait_for("/run/h.sock does not exist yet");
        restart(&mut service);
        restart(&mut service);
        let haproxy = haproxy("a", &["127.0.0.1:8000", "unix@/run/h.sock"]);
        let told = expected(&early, at(4001));
        assert_eq!(ask(&mut early), told, "{version}");
        let mut wires = [(Wire::tcp(at(4000)), at(4000)), (Wire::tcp(at(4002)), at(4002)), (early, at(4001))];
        for round in 0..3 {
            for (wire, to) in &mut wires {
                let told = expected(wire, *to);
                assert_eq!(ask(wire), told, "{version}, after {round} restarts");
            }
            restart(&mut service);
        }
        drop(wires);
        service.stop();
        drop(haproxy);
        let _ = fs::remove_file("/run/h.sock");
    }
}
