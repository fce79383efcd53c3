//! What systemd passes becomes listeners; what cannot be one is refused by name, and the others are served.

use std::{
    fs::File,
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::{UnixDatagram, UnixListener},
    process::Command,
    time::Duration,
};

use nix::{
    sys::{
        signal::Signal,
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, VsockAddr, bind, listen, socket, socketpair},
        stat::Mode,
    },
    unistd::mkfifo,
};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::support::{Activation, FakeQrexec, Pace, Server, bare, exchange, run, skip};

#[test]
fn tcp_and_unix_listeners_of_all_kinds_are_served() {
    let name = Server::tcp().echo();
    let service = Activation::qrexec_connect().tcp(&name).tcp6(&name).unix(&name).abstract_unix(&name).start().ready();
    assert_eq!(service.notifications.status().as_deref(), Some("4 listeners, 0 sessions"));
    let rest = service.process.rest();
    for index in 0..4 {
        exchange(&mut service.connect(index), index as u64, 300_000, Pace::CRUMBS);
    }
    service.ends(4);
    service.process.wait_for_rest(&rest);
    service.stop();
}

/// A listening socket of a kind that std does not make.
fn listening(
    family: AddressFamily,
    kind: SockType,
    bound: impl FnOnce(i32) -> nix::Result<()>,
) -> nix::Result<OwnedFd> {
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    bound(fd.as_raw_fd())?;
    listen(&fd, Backlog::new(8)?)?;
    Ok(fd)
}

#[test]
fn what_cannot_be_served_is_refused_by_name_and_the_others_are_served() {
    let name = Server::tcp().echo();
    let dir = tempfile::tempdir().expect("a directory");
    let somebody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let connected = TcpStream::connect(somebody.local_addr().expect("bound")).expect("it listens");
    let (unix_connected, _other) =
        socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
    let fifo = dir.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a new path");
    let fifo = File::options().read(true).write(true).open(&fifo).expect("made");
    let packets = listening(AddressFamily::Unix, SockType::SeqPacket, |fd| {
        bind(fd, &UnixAddr::new(&dir.path().join("packets")).expect("short"))
    });
    let vsock = listening(AddressFamily::Vsock, SockType::Stream, |fd| {
        bind(fd, &VsockAddr::new(libc::VMADDR_CID_ANY, libc::VMADDR_PORT_ANY))
    });
    let file = File::create(dir.path().join("file")).expect("a new path");
    let datagrams = UnixDatagram::bind(dir.path().join("datagrams")).expect("a new path");
    let mut refused = vec![
        ("tcp-connected", "a connected or unbound TCP socket"),
        ("unix-connected", "a connected or unbound UNIX socket"),
        ("fifo", "not a socket (ListenFIFO="),
        ("packets", "a SEQPACKET socket"),
        ("file", "not a socket"),
        ("datagrams", "a datagram socket"),
    ];
    let mut activation = Activation::qrexec_connect()
        .tcp(&name)
        .inherit("tcp-connected", connected)
        .inherit("unix-connected", unix_connected)
        .inherit("fifo", fifo)
        .inherit("packets", packets.expect("UNIX sockets of that kind"))
        .inherit("file", file)
        .inherit("datagrams", datagrams)
        .udp("udp");
    match vsock {
        Ok(vsock) => {
            activation = activation.inherit("vsock", vsock);
            refused.push(("vsock", "a vsock socket"));
        }
        Err(e) => skip(&format!("a vsock socket: {e}")),
    }
    let service = activation.unix(&name).start().ready();
    let status = format!("2 of {} listeners, 0 sessions", refused.len() + 3);
    assert_eq!(service.notifications.status(), Some(status));
    for (name, why) in &refused {
        let line = service.process.stderr.wait_for(&format!("error: {name} is not served: "));
        assert!(line.contains(why), "{line}");
    }
    service.process.stderr.wait_for("(FileDescriptorName=udp) is not served: ");
    let last = refused.len() + 2;
    exchange(&mut service.connect(0), 1, 10_000, Pace::BULK);
    exchange(&mut service.connect(last), 2, 10_000, Pace::BULK);
    service.stop();
}

#[test]
fn several_sockets_of_one_name_lead_to_the_same_place() {
    let name = Server::tcp().echo();
    let service = Activation::qrexec_connect().tcp(&name).unix(&name).tcp(&name).start().ready();
    for index in 0..3 {
        exchange(&mut service.connect(index), 7, 1000, Pace::CRUMBS);
    }
    assert_eq!(service.ends(3).len(), 3);
    service.stop();
}

#[test]
fn sockets_without_any_names_are_refused_and_the_service_says_what_to_write() {
    let service = Activation::qrexec_connect().tcp("lost").without_names().start().ready();
    let line = service.process.stderr.wait_for(" is not served: ");
    assert!(line.contains("unknown") && line.contains(&service.port(0).to_string()), "{line}");
    assert_eq!(service.notifications.status().as_deref(), Some("0 of 1 listener, 0 sessions"));
    service.stop();
}

#[test]
fn a_service_whose_listeners_are_all_bad_stays_up() {
    // It would otherwise be started again by a client that waits, until systemd gives the socket up.
    let mut service = Activation::qrexec_connect()
        .tcp("nowhere")
        .tcp("x.socket")
        .watchdog(Duration::from_millis(300))
        .start()
        .ready();
    let _waiting = service.connect(0);
    service
        .notifications
        .wait("signs of life", |m| (m.iter().filter(|m| m.get("WATCHDOG") == Some("1")).count() > 2).then_some(()));
    assert!(service.process.running());
    service.stop();
}

#[test]
fn descriptors_beyond_the_names_are_refused_and_names_beyond_the_descriptors_mean_nothing() {
    let name = Server::tcp().echo();
    let few = Activation::qrexec_connect().tcp(&name).tcp("second").with_names(&name).start().ready();
    let line = few.process.stderr.wait_for("descriptor 4 is not served");
    assert!(line.contains("fewer names"), "{line}");
    assert_eq!(few.notifications.status().as_deref(), Some("1 of 2 listeners, 0 sessions"));
    exchange(&mut few.connect(0), 1, 1000, Pace::BULK);
    few.stop();

    let many = Activation::qrexec_connect().tcp(&name).with_names(&format!("{name}:{name}:more")).start().ready();
    assert_eq!(many.notifications.status().as_deref(), Some("1 listener, 0 sessions"));
    exchange(&mut many.connect(0), 1, 1000, Pace::BULK);
    many.stop();
}

#[test]
fn sockets_meant_for_another_process_are_left_alone() {
    let mut service = Activation::of("/bin/sh")
        .args(["-c", "LISTEN_PID=1 exec \"$0\"", env!("CARGO_BIN_EXE_qrexec-connect")])
        .tcp("target=127.0.0.1+1")
        .without_notify()
        .start();
    assert_eq!(service.process.wait().code(), Some(2));
    service.process.stderr.wait_for("no sockets were passed");
}

#[test]
fn a_count_that_makes_no_sense_is_a_configuration_error() {
    for (fds, said) in [("many", "LISTEN_FDS"), ("-1", "LISTEN_FDS")] {
        let mut service = Activation::of("/bin/sh")
            .args(["-c", &format!("LISTEN_FDS={fds} exec \"$0\""), env!("CARGO_BIN_EXE_qrexec-connect")])
            .tcp("target=127.0.0.1+1")
            .start();
        assert_eq!(service.process.wait().code(), Some(78), "{fds}");
        let line = service.process.stderr.wait_for("cannot take the inherited descriptors");
        assert!(line.contains(said), "{line}");
    }
}

#[test]
fn started_by_hand_without_sockets_it_says_what_it_is() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qrexec-connect"));
    bare(&mut command);
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no sockets were passed") && said.contains("systemd"), "{said}");
}

#[test]
fn started_by_a_manager_without_sockets_it_is_ready_and_done() {
    let mut service = Activation::qrexec_connect().start().ready();
    assert_eq!(service.process.wait().code(), Some(0));
    service.notifications.wait_for("STOPPING", |v| v == "1");
}

#[test]
fn calls_inherit_nothing_but_their_three_streams() {
    let fake = FakeQrexec::new();
    let service = Activation::calling(&fake).tcp("work test.Echo").unix("work test.Echo").start().ready();
    let mut peer = service.connect(0);
    exchange_one_byte(&mut peer);
    let child = fake.events()[0].pid;
    let descriptors: Vec<_> = std::fs::read_dir(format!("/proc/{child}/fd")).expect("it lives").collect();
    let names = descriptors.iter().map(|d| d.as_ref().expect("listed").file_name().into_string().expect("a number"));
    let kinds: Vec<String> = names
        .filter_map(|n| std::fs::read_link(format!("/proc/{child}/fd/{n}")).ok())
        .map(|to| to.to_string_lossy().into_owned())
        .collect();
    assert!(kinds.iter().all(|k| !k.starts_with("socket:")), "{kinds:?}");
    let environment = std::fs::read(format!("/proc/{child}/environ")).expect("it lives");
    for told_to_the_service in [&b"LISTEN_"[..], b"NOTIFY_SOCKET", b"WATCHDOG"] {
        assert!(!environment.windows(told_to_the_service.len()).any(|w| w == told_to_the_service));
    }
    drop(peer);
    service.end();
    service.stop();
}

fn exchange_one_byte(peer: &mut support::Wire) {
    use std::io::Write as _;
    peer.write_all(b"x").expect("connected");
    peer.expect(b"x");
}

#[test]
fn a_socket_path_is_there_after_the_service_has_ended() {
    let name = Server::tcp().echo();
    let service = Activation::qrexec_connect().unix(&name).start().ready();
    let support::Address::Unix(path) = service.address(0).clone() else { panic!("a path") };
    service.process.signal(Signal::SIGTERM);
    let mut service = service;
    service.process.wait();
    assert!(path.exists(), "systemd's socket is not ours to unlink");
    let waiting = UnixListener::bind(&path);
    assert!(waiting.is_err(), "it is in use");
    let mut peer = service.connect(0); // waits in the backlog
    service.start_again();
    exchange(&mut peer, 3, 1000, Pace::BULK);
    service.stop();
}
