//! The support modules do what they promise: faked activation looks like systemd's, waits end, leaks are seen.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            net::{UnixDatagram, UnixStream},
            process::ExitStatusExt,
        },
    },
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::support::{
    Activated, Activation, Pace, Pattern, Process, Server, Sum, Wire, eventually, exchange, receive, run, send,
};

/// The panic message of `act`, which must panic.
fn failure(act: impl FnOnce()) -> String {
    let payload = catch_unwind(AssertUnwindSafe(act)).expect_err("it should have failed");
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_default()
}

fn sh(script: &str) -> Activation {
    Activation::of("/bin/sh").args(["-c", script, "sh"])
}

/// The shell has become the sleep at the end of its script (before that it holds copies of descriptors at times).
fn settled(process: &Process) {
    let name = format!("/proc/{}/comm", process.pid());
    eventually("the shell has become a sleep", || std::fs::read_to_string(&name).is_ok_and(|n| n == "sleep\n"));
}

fn shell(script: &str) -> Process {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    Process::start(command)
}

/// A stand-in for a service, of shell: it says `up` on stderr when it is.
fn started(activation: Activation) -> Activated {
    let service = activation.start();
    service.process.stderr.wait_for("up");
    service
}

#[test]
fn descriptors_names_and_pid_are_as_systemd_gives_them() {
    let service = started(
        sh("echo pid=$$ listen=$LISTEN_PID fds=$LISTEN_FDS names=$LISTEN_FDNAMES >&2; ls -l /proc/$$/fd >&2; \
            grep flags /proc/$$/fdinfo/[3-9]* >&2; echo up >&2; exec sleep 1000")
        .tcp("work qubes.ConnectTCP+22")
        .unix("b")
        .abstract_unix("c")
        .udp("d")
        .tcp6("e"),
    );
    let pid = service.process.pid();
    let said = service.process.stderr.so_far();
    let expected = format!("pid={pid} listen={pid} fds=5 names=work qubes.ConnectTCP+22:b:c:d:e");
    assert_eq!(said[0], expected);
    settled(&service.process);
    let mut descriptors = std::collections::BTreeMap::new();
    eventually("there are no others, once sleep(1) has read its locale", || {
        descriptors = service.process.descriptors();
        descriptors.keys().copied().eq(0..8)
    });
    assert!((3..8).all(|fd| descriptors[&fd].starts_with("socket:")), "{descriptors:?}");
    assert!((3..8).all(|fd| !service.process.nonblocking(fd)), "blocking, as systemd has them");
}

#[test]
fn every_kind_of_listener_can_be_connected_to() {
    let service = started(sh("echo up >&2; exec sleep 1000").tcp("a").unix("b").abstract_unix("c").tcp6("d"));
    for index in 0..4 {
        service.connect(index); // the kernel takes it on behalf of whoever holds the socket
    }
    assert!(failure(|| drop(service.stop())).contains("SIGTERM: signal: 15"));
}

#[test]
fn what_a_test_asks_for_can_be_wrong_on_purpose() {
    let say = "echo \"${LISTEN_FDS-none} ${LISTEN_FDNAMES-none} ${NOTIFY_SOCKET:+notify} $(ulimit -n) \
               ${WATCHDOG_USEC-none} ${WATCHDOG_PID:+pid}\" >&2; echo up >&2";
    let line = |activation: Activation| started(activation).process.stderr.so_far()[0].clone();
    let default = line(sh(say));
    assert!(default.starts_with("none none notify "), "{default}");
    let odd = sh(say).tcp("a").without_notify().with_count(7).with_names("x:y:z").nofile(77);
    assert_eq!(line(odd), "7 x:y:z  77 none ");
    let unnamed = sh(say).tcp("a").without_names().nofile(78).watchdog(Duration::from_secs(2));
    assert_eq!(line(unnamed), "1 none notify 78 2000000 pid");
    let (socket, _peer) = UnixStream::pair().expect("a pair");
    assert_eq!(line(sh(say).inherit("odd", socket).nofile(79)), "1 odd notify 79 none ");
}

#[test]
fn notifications_are_heard_and_the_store_is_kept_over_a_restart() {
    let mut service = sh("echo up >&2; exec sleep 1000").tcp("first").start();
    let socket = UnixDatagram::unbound().expect("a socket");
    let tell = |text: &str, descriptors: &[i32]| {
        let address = nix::sys::socket::UnixAddr::new(service.notifications.path()).expect("short");
        let parts = [std::io::IoSlice::new(text.as_bytes())];
        let control = [nix::sys::socket::ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &control };
        let raw = socket.as_raw_fd();
        nix::sys::socket::sendmsg(raw, &parts, control, nix::sys::socket::MsgFlags::empty(), Some(&address))
            .expect("it is received");
    };
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let raw = theirs.as_raw_fd();
    tell("STATUS=1 listener\nREADY=1", &[]);
    tell("FDSTORE=1\nFDNAME=handover\nFDPOLL=0", &[raw, raw]);
    tell("FDSTORE=1\nFDNAME=other", &[raw]);
    tell("EXTEND_TIMEOUT_USEC=5000000", &[]);
    tell("FDSTOREREMOVE=1\nFDNAME=other", &[]);
    tell("STATUS=2 listeners", &[]);
    service.notifications.wait_for("STATUS", |v| v.starts_with('2'));
    assert_eq!(service.notifications.wait_for("EXTEND_TIMEOUT_USEC", |_| true), "5000000");
    assert_eq!(service.notifications.status().as_deref(), Some("2 listeners"));
    assert_eq!(service.notifications.count("READY", "1"), 1);
    assert_eq!(service.notifications.stored(), ["handover", "handover"]);
    drop(theirs);

    service.process.stderr.wait_for("up");
    service.process.signal(Signal::SIGTERM);
    service.process.wait();
    service.start_again();
    service.process.stderr.wait_for("up");
    settled(&service.process);
    let mut descriptors = std::collections::BTreeMap::new();
    eventually("there are no others, once sleep(1) has read its libraries", || {
        descriptors = service.process.descriptors();
        descriptors.keys().copied().eq(0..6)
    });
    assert_eq!(descriptors[&4], descriptors[&5], "the same end twice: {descriptors:?}");

    // the pair's end lives in the store and in the process, and nowhere else
    service.notifications.drop_store();
    service.process.signal(Signal::SIGKILL);
    service.process.wait();
    assert_eq!((&ours).read(&mut [0; 1]).expect("an end of stream"), 0);
}

#[test]
fn a_restart_waits_for_the_next_ready_and_keeps_whom_the_first_left_behind() {
    // the shell has no datagrams: the test says READY for it, when it says so
    let service = sh("setsid sleep 1000 & echo $! >&2; echo up >&2; exec sleep 1000").tcp("a").start();
    let socket = UnixDatagram::unbound().expect("a socket");
    let path = service.notifications.path().to_owned();
    let child = service.process.stderr.wait("a pid", |lines| lines.first().cloned());
    service.process.stderr.wait_for("up");
    socket.send_to(b"READY=1", &path).expect("received");
    let mut service = service.ready();
    let status = service.restart(|process| {
        process.signal(Signal::SIGTERM);
        // what a second process would say
        socket.send_to(b"READY=1", &path).expect("received");
    });
    assert!(!status.success());
    service.process.stderr.wait_for("up");
    assert_eq!((service.earlier.len(), service.notifications.count("READY", "1")), (1, 2));
    eventually("it lives", || service.earlier[0].descendants() == [format!("{child} (sleep)")]);
    drop(service);
    eventually("it was killed", || !std::path::Path::new(&format!("/proc/{child}/exe")).exists());
}

#[test]
fn lines_come_with_a_deadline_and_a_closed_stream_fails_at_once() {
    let mut process = shell("echo one; echo two >&2; echo two again >&2");
    assert_eq!(process.stderr.wait_for_nth("two", 2), "two again");
    assert_eq!(process.stdout.to_the_end(), ["one"]);
    assert!(process.wait().success());
    let failed = failure(|| drop(process.stderr.wait_for("three")));
    assert!(failed.contains("closed without") && failed.contains("two again"), "{failed}");
}

#[test]
fn short_programs_are_run_to_their_end() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo out; echo err >&2; exit 3"]);
    let output = run(command);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!((output.stdout, output.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
}

#[test]
fn whoever_is_left_behind_is_found() {
    // a grandchild in a separate session, its parent gone
    let mut process = shell("setsid sh -c 'sleep 1000 & echo started' </dev/null; exit 0");
    process.stdout.wait_for("started");
    assert!(process.wait().success());
    eventually("only the sleep is left", || matches!(&process.descendants()[..], [one] if one.ends_with("(sleep)")));
    let left = process.descendants()[0].clone();
    drop(process);
    let pid = left.split(' ').next().expect("pid (name)").to_owned();
    eventually("it was killed", || {
        std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|e| e.is_empty())
            || !std::path::Path::new(&format!("/proc/{pid}")).exists()
    });
}

#[test]
fn a_piped_program_that_hangs_is_killed_in_the_end() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec sleep 1000"]);
    let mut process = Process::piped_for(command, Duration::from_millis(300));
    let started = Instant::now();
    assert_eq!(process.stdout_pipe().read(&mut [0]).expect("a pipe"), 0, "its end");
    assert!(started.elapsed() >= Duration::from_millis(290));
    assert_eq!(process.wait().signal(), Some(Signal::SIGKILL as i32));
}

#[test]
fn rest_is_measured_in_descriptors_and_children() {
    let mut process = shell("sleep 1000 & echo here; wait");
    process.stdout.wait_for("here");
    let rest = process.rest();
    assert_eq!((rest.descriptors, rest.children), (3, 1));
    process.wait_for_rest(&rest);
    process.signal(Signal::SIGKILL);
    process.wait();
}

#[test]
fn wires_half_close_reset_and_verify() {
    for pace in [Pace::BULK, Pace::CRUMBS, Pace::HALTING] {
        let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut near = Wire::tcp(server.local_addr().expect("bound"));
        let mut far = Wire::from_tcp(server.accept().expect("a connection").0);
        let echo = std::thread::spawn(move || {
            let mut back = far.try_clone().expect("a descriptor");
            std::io::copy(&mut far, &mut back).expect("no fault");
            back.half_close();
        });
        exchange(&mut near, 11, 500_000, pace);
        echo.join().expect("no panic");
    }
    let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let near = Wire::tcp(server.local_addr().expect("bound"));
    let mut far = Wire::from_tcp(server.accept().expect("a connection").0);
    near.reset();
    far.expect_reset();
    let near = TcpStream::connect(server.local_addr().expect("bound")).expect("a connection");
    let mut far = Wire::from_tcp(server.accept().expect("a connection").0);
    drop(near);
    assert!(failure(|| far.expect_reset()).contains("plain end"));
}

#[test]
fn nobody_can_connect_to_a_dropped_server_while_a_copy_of_its_socket_is_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("server.sock");
    let (tcp, unix) = (Server::tcp(), Server::unix(&path));
    let port = tcp.port();
    let copies = [&tcp, &unix].map(|server| match server {
        Server::Tcp(listener) => listener.as_fd().try_clone_to_owned().expect("a descriptor"),
        Server::Unix(listener) => listener.as_fd().try_clone_to_owned().expect("a descriptor"),
    });
    let refused = |connected: Option<std::io::Error>| {
        assert_eq!(connected.expect("refused").kind(), std::io::ErrorKind::ConnectionRefused);
    };
    drop((tcp, unix));
    refused(TcpStream::connect(("127.0.0.1", port)).err());
    refused(UnixStream::connect(&path).err());
    drop(copies);
}

#[test]
fn a_wrong_a_missing_or_a_moved_byte_is_found() {
    let mut bytes = Vec::new();
    send(&mut bytes, 21, 100_000, Pace::CRUMBS).expect("a Vec takes all");
    let verify = |bytes: &[u8]| receive(bytes, 21, 100_000, Pace::HALTING).map_err(|e| e.to_string());
    assert_eq!(verify(&bytes), Ok(()));
    let mut wrong = bytes.clone();
    wrong[77_777] ^= 1;
    assert!(verify(&wrong).expect_err("wrong").starts_with("byte 77777 is "));
    assert!(verify(&bytes[..99_999]).expect_err("short").contains("ended after 99999 of 100000"));
    let mut moved = bytes.clone();
    moved.remove(4096);
    moved.push(0);
    assert!(verify(&moved).expect_err("moved").starts_with("byte 4096 "));
    assert_ne!(Sum::of(&wrong), Sum::of(&bytes));
    assert_ne!(Sum::of(&[0; 7]).to_string(), Sum::of(&[0; 8]).to_string());

    // chunking changes neither the pattern nor the checksum
    let (mut pattern, mut again, mut sum) = (Pattern::new(21), Vec::new(), Sum::new());
    for size in (0..40).cycle() {
        let mut chunk = vec![0; size];
        pattern.fill(&mut chunk);
        sum.add(&chunk);
        again.extend(chunk);
        if again.len() > 2_000 {
            break;
        }
    }
    assert_eq!(again, bytes[..again.len()]);
    assert_eq!(sum.to_string(), Sum::of(&bytes[..again.len()]).to_string());
    assert_eq!(sum.to_string(), Sum::of_pattern(21, again.len() as u64).to_string());
}
