//! `qrexec-connect far-end`, as a service of qrexec runs it: the test is the near end, and the servers.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    num::NonZeroU16,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use qrexec_connect::proto::mux::{
    FLOOR, MAX_STREAMS, MUX_HEADER, MuxCall, MuxContent, MuxFrame, MuxNews, MuxRole, ResetCause, StreamId,
};

use crate::support::{PATIENCE, Pattern, Process, Server, Wire, bare, eventually, program};

/// What the near end knows of a stream.
#[derive(Debug, Default)]
struct Seen {
    /// What is to be sent, and whether the end comes behind it.
    out: Vec<u8>,
    ends: bool,
    got: Vec<u8>,
    datagrams: Vec<Vec<u8>>,
    opened: bool,
    ended: bool,
    reset: Option<ResetCause>,
    /// What comes is not taken.
    unread: bool,
}

/// A near end without sockets.
struct Near {
    wire: UnixStream,
    call: MuxCall,
    read: Vec<u8>,
    written: Vec<u8>,
    streams: BTreeMap<StreamId, Seen>,
    began: Instant,
    closed: bool,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("qrexec-connect"));
    bare(&mut command).args(["far-end", "--log-to-stderr"]).args(arguments).env("QREXEC_REMOTE_DOMAIN", "work");
    command
}

/// A far end that serves what the arguments say, and its call.
fn far(arguments: &[&str]) -> (Process, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    (Process::on_wire(command(arguments), theirs.into()), ours)
}

impl Near {
    fn of(content: MuxContent, wire: UnixStream) -> Self {
        wire.set_nonblocking(true).expect("O_NONBLOCK can be set");
        let call = MuxCall::new(MuxRole::Near, content, FLOOR);
        let (read, written, streams) = Default::default();
        let mut near = Self { wire, call, read, written, streams, began: Instant::now(), closed: false };
        near.until("the far end greets", |near| near.call.is_greeted());
        near
    }

    fn tcp(server: &Server) -> (Process, Self) {
        let (process, wire) = far(&["tcp", &server.port().to_string()]);
        (process, Self::of(MuxContent::Bytes, wire))
    }

    fn open(&mut self) -> StreamId {
        let id = self.call.open(self.began.elapsed()).expect("there is a place");
        self.streams.insert(id, Seen::default());
        id
    }

    fn send(&mut self, id: StreamId, bytes: &[u8], ends: bool) {
        let seen = self.streams.get_mut(&id).expect("it was opened");
        seen.out.extend_from_slice(bytes);
        seen.ends = ends;
        self.call.wake(id);
    }

    fn datagram(&mut self, id: StreamId, bytes: &[u8]) {
        self.streams.get_mut(&id).expect("it was opened").datagrams.clear();
        self.call.wake(id);
        let turn = self.call.turn().expect("its turn");
        let length = u16::try_from(bytes.len()).expect("a datagram");
        let header = self.call.sent_datagram(turn, length, false);
        self.written.append(self.call.answers());
        self.written.extend(header);
        self.written.extend(bytes);
    }

    fn seen(&self, id: StreamId) -> &Seen {
        &self.streams[&id]
    }

    #[track_caller]
    fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            self.step();
        }
    }

    fn write(&mut self) {
        loop {
            self.written.append(self.call.answers());
            while self.written.len() < 1 << 16 {
                let Some(turn) = self.call.turn() else { break };
                let seen = self.streams.get_mut(&turn.id).expect("it was opened");
                let n = seen.out.len().min(turn.most);
                let Some(length) = NonZeroU16::new(u16::try_from(n).expect("a frame")) else {
                    if seen.ends {
                        self.call.end(turn.id)
                    } else {
                        self.call.dry(turn)
                    }
                    continue;
                };
                let more = n < seen.out.len() || seen.ends;
                self.written.extend(self.call.sent(turn, length, more));
                self.written.extend(seen.out.drain(..n));
            }
            match self.wire.write(&self.written) {
                Ok(0) => return,
                Ok(n) => drop(self.written.drain(..n)),
                Err(_) => return,
            }
        }
    }

    /// Does what can be done now, or waits a moment.
    fn step(&mut self) {
        self.write();
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, !self.written.is_empty());
        let mut fds = [PollFd::new(self.wire.as_fd(), flags)];
        let _ = poll(&mut fds, PollTimeout::from(10_u8));
        let mut buffer = [0; 1 << 16];
        match self.wire.read(&mut buffer) {
            Ok(0) => self.closed = true,
            Ok(n) => self.read.extend(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
        let mut at = 0;
        while let Some((frame, size)) = MuxFrame::split(&self.read[at..]).expect("the far end writes frames") {
            at += size;
            let now = self.began.elapsed();
            let news = self.call.hear(frame, now).expect("the far end keeps the rules");
            match news {
                MuxNews::Opened(id) => self.streams.get_mut(&id).expect("opened").opened = true,
                MuxNews::Bytes(id, bytes) => {
                    let seen = self.streams.get_mut(&id).expect("opened");
                    seen.got.extend_from_slice(bytes);
                    if !seen.unread {
                        let n = bytes.len();
                        self.call.delivered(id, n, now);
                    }
                }
                MuxNews::Datagram(id, bytes) => {
                    self.streams.get_mut(&id).expect("opened").datagrams.push(bytes.to_vec());
                }
                MuxNews::Ended(id) => self.streams.get_mut(&id).expect("opened").ended = true,
                MuxNews::Reset(id, cause) => {
                    self.streams.get_mut(&id).expect("opened").reset = Some(cause);
                    self.call.release(id);
                }
                _ => {}
            }
        }
        self.read.drain(..at);
    }
}

fn bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    Pattern::new(seed).fill(&mut bytes);
    bytes
}

/// Most memory that a process has had, in kB.
fn most_memory(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// All streams of a call at once; what is sent comes back, with its end.
#[test]
fn every_byte_of_2000_streams_arrives_both_ways() {
    const STREAMS: u64 = 2000;
    const BYTES: usize = 20_000;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = listener.local_addr().expect("bound").port().to_string();
    let accepted = Arc::new(AtomicU64::new(0));
    let count = accepted.clone();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            count.fetch_add(1, SeqCst);
            let echo = move || {
                let mut all = Vec::new();
                let mut stream = stream;
                if stream.read_to_end(&mut all).is_ok() {
                    let _ = stream.write_all(&all);
                }
            };
            thread::Builder::new().stack_size(64 << 10).spawn(echo).expect("a thread");
        }
    });
    let (mut process, wire) = far(&["tcp", &port]);
    let mut near = Near::of(MuxContent::Bytes, wire);
    let mut ids = Vec::new();
    while ids.len() < STREAMS as usize {
        // the backlog of the server has room for so many
        ids.extend((0..100).map(|_| near.open()));
        near.until("the server has them", |_| accepted.load(SeqCst) == ids.len() as u64);
    }
    for (seed, id) in ids.iter().enumerate() {
        near.send(*id, &bytes(seed as u64, BYTES), true);
    }
    near.until("all have come back", |near| near.streams.values().all(|seen| seen.ended || seen.reset.is_some()));
    for (seed, id) in ids.iter().enumerate() {
        let seen = near.seen(*id);
        assert!(seen.opened && seen.ended && seen.reset.is_none(), "stream {id}: {:?}", seen.reset);
        assert_eq!(seen.got.len(), BYTES, "stream {id}");
        Pattern::new(seed as u64).check(&seen.got).expect("every byte is right");
    }
    drop(near);
    assert!(process.wait().success());
    assert_eq!(process.stderr.count("eof after"), 2000, "one line for each stream");
    let line = process.stderr.wait_for("stream 1: ");
    assert!(line.starts_with(&format!("qrexec-connect.TCP from work to 127.0.0.1:{port}: stream 1: eof")), "{line}");
    assert!(line.ends_with("20000 bytes up, 20000 down"), "{line}");
}

#[test]
fn a_port_without_a_listener_refuses_its_stream_and_the_call_goes_on() {
    let server = Server::tcp();
    let port = server.port().to_string();
    drop(server);
    let (process, wire) = far(&["tcp", &port]);
    let mut near = Near::of(MuxContent::Bytes, wire);
    for _ in 0..3 {
        let id = near.open();
        near.send(id, b"hello", false);
        near.until("the stream is refused", |near| near.seen(id).reset.is_some());
        assert_eq!(near.seen(id).reset, Some(ResetCause::Refused));
    }
    let line = process.stderr.wait_for("stream 3: dial-failed");
    assert!(line.contains("Connection refused"), "{line}");
}

/// Both ends of a stream whose near end the test has.
fn joined() -> (Process, Near, StreamId, Wire) {
    let server = Server::tcp();
    let (process, mut near) = Near::tcp(&server);
    let id = near.open();
    near.send(id, b"hello", false);
    near.until("it is connected", |near| near.seen(id).opened);
    let mut wire = server.accept();
    wire.expect(b"hello");
    (process, near, id, wire)
}

#[test]
fn a_half_close_of_either_side_leaves_the_other_direction_open() {
    let (_process, mut near, id, mut server) = joined();
    near.send(id, b"question", true);
    near.until("all is sent", |near| near.seen(id).out.is_empty());
    near.step();
    server.expect(b"question");
    server.expect_end();
    server.write_all(&bytes(1, 300_000)).expect("the other direction is open");
    near.until("the answer comes", |near| near.seen(id).got.len() == 300_000);
    assert!(!near.seen(id).ended);
    drop(server);
    near.until("the end comes", |near| near.seen(id).ended);

    let (_process, mut near, id, mut server) = joined();
    server.half_close();
    near.until("the end comes", |near| near.seen(id).ended);
    near.send(id, &bytes(2, 300_000), true);
    let reader = thread::spawn(move || server.read_to_end());
    near.until("all is sent", |near| near.seen(id).out.is_empty());
    while !reader.is_finished() {
        near.step();
    }
    assert_eq!(reader.join().expect("it reads"), bytes(2, 300_000));
}

#[test]
fn a_reset_of_the_server_comes_behind_its_bytes() {
    let (process, mut near, id, mut server) = joined();
    server.write_all(&bytes(1, 30_000)).expect("connected");
    near.until("they have come", |near| near.seen(id).got.len() == 30_000);
    server.reset();
    near.until("the reset comes", |near| near.seen(id).reset.is_some());
    assert_eq!(near.seen(id).reset, Some(ResetCause::Socket));
    assert!(!near.seen(id).ended, "a reset is no end");
    process.stderr.wait_for("reset by 127.0.0.1");
}

/// The server closes with bytes unread, after the near end's FIN as well as before.
#[test]
fn a_server_that_closes_with_bytes_unread_is_a_reset() {
    for ends in [false, true] {
        let (_process, mut near, id, server) = joined();
        near.send(id, b"nobody reads this", ends);
        near.until("it is sent", |near| near.seen(id).out.is_empty());
        near.step();
        eventually("it is there", || server.unread() > 0);
        drop(server);
        near.until("the reset comes", |near| near.seen(id).reset.is_some());
        assert!(!near.seen(id).ended, "a reset is no end");
    }
}

/// Bytes that were promised before a RESET are delivered before it, to a server that reads late.
#[test]
fn a_reset_of_the_near_end_comes_behind_its_bytes() {
    let (process, mut near, id, mut server) = joined();
    near.send(id, &bytes(3, 20_000), false);
    near.until("all is sent", |near| near.seen(id).out.is_empty());
    near.call.reset(id, ResetCause::Socket);
    near.step();
    let mut got = vec![0; 20_000];
    server.read_exact(&mut got).expect("they come first");
    assert_eq!(got, bytes(3, 20_000));
    server.expect_reset();
    process.stderr.wait_for("reset by the other qube");
}

/// A far end that is killed must not look like an end of data, nor one whose call ends.
#[test]
fn the_end_of_the_call_or_of_the_far_end_is_a_reset_for_the_servers() {
    let (mut process, _near, _id, mut server) = joined();
    process.signal(Signal::SIGKILL);
    server.expect_reset();
    process.wait();

    let (mut process, mut near, id, mut server) = joined();
    near.send(id, &bytes(4, 20_000), false);
    near.until("all is sent", |near| near.seen(id).out.is_empty());
    drop(near);
    let mut got = vec![0; 20_000];
    server.read_exact(&mut got).expect("what had come is delivered");
    assert_eq!(got, bytes(4, 20_000));
    server.expect_reset();
    assert!(process.wait().success());
}

/// A far end grows by less than 8 MiB. AddressSanitizer keeps freed memory (quarantine), so nothing is measured there.
#[track_caller]
fn assert_small(kib: u64) {
    assert!(kib < 8 << 10 || std::env::var_os("ASAN_OPTIONS").is_some(), "{kib} KiB more");
}

/// Streams that nobody reads hold their credit and nothing more, and the others do not notice.
#[test]
fn streams_that_nobody_reads_stop_and_the_others_go_on() {
    let server = Server::tcp();
    let (process, mut near) = Near::tcp(&server);
    let before = most_memory(&process);
    let mut held = vec![];
    for n in 0..8 {
        let id = near.open();
        near.streams.get_mut(&id).expect("opened").unread = true;
        if n % 2 == 0 {
            near.send(id, &vec![0; 64 << 20], false);
        }
        near.until("it is connected", |near| near.seen(id).opened);
        let wire = server.accept();
        if n % 2 == 1 {
            let mut copy = wire.try_clone().expect("a descriptor");
            thread::spawn(move || drop(copy.write_all(&vec![0; 64 << 20])));
        }
        held.push(wire);
    }
    let id = near.open();
    near.send(id, &bytes(9, 4 << 20), true);
    near.until("it is connected", |near| near.seen(id).opened);
    let mut wire = server.accept();
    let reader = thread::spawn(move || wire.read_to_end());
    while !reader.is_finished() {
        near.step();
    }
    assert_eq!(reader.join().expect("it reads").len(), 4 << 20);
    assert_small(most_memory(&process) - before);
    drop(held);
}

/// What a hostile near end sends ends its call, at once, and whatever it sends the far end stays small.
#[test]
fn a_near_end_that_breaks_the_protocol_ends_its_call_alone() {
    let server = Server::tcp();
    let hello = |call: &mut MuxCall| std::mem::take(call.answers());
    for (what, tail) in [
        ("garbage", vec![0xff; 4096]),
        ("a stream that was never opened", vec![9, 0, 0, 0, 3, 0, 1, 0, 7]),
        ("a second HELLO", vec![0, 0, 0, 0, 0, 0, 12, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]),
        ("a number again", [[1, 0, 0, 0, 1, 0, 0, 0]; 2].concat()),
        ("an acknowledgement", vec![0, 0, 0, 0, 8, 0, 4, 0, 1, 0, 0, 0]),
        ("a datagram", vec![1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]),
    ] {
        let (mut process, mut wire) = far(&["tcp", &server.port().to_string()]);
        wire.write_all(&hello(&mut MuxCall::new(MuxRole::Near, MuxContent::Bytes, FLOOR))).expect("it reads");
        wire.write_all(&tail).expect("it reads");
        assert_eq!(process.wait().code(), Some(1), "{what}");
        process.stderr.wait_for("qrexec-connect: the other end sent ");
    }
    // more than the credit of one stream, to a server that does not read
    let (mut process, mut wire) = far(&["tcp", &server.port().to_string()]);
    wire.write_all(&hello(&mut MuxCall::new(MuxRole::Near, MuxContent::Bytes, FLOOR))).expect("it reads");
    wire.write_all(&[1, 0, 0, 0, 1, 0, 0, 0]).expect("it reads");
    let mut frame = vec![1, 0, 0, 0, 3, 0, 0xff, 0xff];
    frame.resize(MUX_HEADER + 0xffff, 0);
    let _unread = server.accept();
    for _ in 0..1000 {
        if wire.write_all(&frame).is_err() {
            break;
        }
    }
    assert_eq!(process.wait().code(), Some(1));
    process.stderr.wait_for("than there was credit for");
}

/// A million OPENs from a near end that reads no answer: the far end stops reading, and stays small.
#[test]
fn opens_without_end_are_taken_slowly_and_in_little_memory() {
    let server = Server::tcp();
    let (process, mut wire) = far(&["tcp", &server.port().to_string()]);
    wire.write_all(MuxCall::new(MuxRole::Near, MuxContent::Bytes, FLOOR).answers()).expect("it reads");
    // its HELLO comes when its program is loaded
    wire.read_exact(&mut [0; MUX_HEADER + 12]).expect("it greets");
    wire.set_nonblocking(true).expect("O_NONBLOCK can be set");
    let before = most_memory(&process);
    let open = |n: u32| [&n.to_le_bytes()[..], &[1, 0, 0, 0]].concat();
    let opens: Vec<u8> = (1..=1_000_000).flat_map(open).collect();
    let mut at = 0;
    // one second's OPENs are taken at once, and the next ones not
    eventually("it stops", || {
        at += wire.write(&opens[at..]).unwrap_or(0);
        process.stderr.count("streams were opened within a second") == 1
    });
    process.stderr.wait_for(&format!("{MAX_STREAMS} streams are open"));
    assert!(at < opens.len() / 2, "{at} bytes taken");
    assert_small(most_memory(&process) - before);
}

#[test]
fn datagrams_go_both_ways_each_whole_and_an_empty_one_too() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    server.set_read_timeout(Some(PATIENCE)).expect("an option");
    let port = server.local_addr().expect("bound").port().to_string();
    let (process, wire) = far(&["udp", &port]);
    let mut near = Near::of(MuxContent::Datagrams, wire);
    let (one, two) = (near.open(), near.open());
    let mut peers = vec![];
    for (id, sent) in [(one, &b""[..]), (two, b"two"), (one, &bytes(5, 9000)), (two, &bytes(6, 60_000))] {
        near.datagram(id, sent);
        near.step();
        let mut buffer = vec![0; 1 << 16];
        let (n, peer) = server.recv_from(&mut buffer).expect("it comes");
        assert_eq!(&buffer[..n], sent);
        peers.push(peer);
        server.send_to(sent, peer).expect("it goes back");
        near.until("it comes back", |near| near.seen(id).datagrams == [sent]);
    }
    assert!(peers[0] == peers[2] && peers[1] == peers[3] && peers[0] != peers[1], "a flow is one socket: {peers:?}");
    near.call.release(one);
    near.step();
    process.stderr.wait_for("stream 1: eof");
    // nobody there for a moment: the flow goes on
    drop(server);
    near.datagram(two, b"lost");
    near.step();
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, port.parse().expect("a port"))).expect("it is free again");
    server.set_read_timeout(Some(PATIENCE)).expect("an option");
    let mut buffer = [0; 10];
    eventually("it comes", || {
        near.datagram(two, b"found");
        near.step();
        server.set_read_timeout(Some(Duration::from_millis(50))).expect("an option");
        server.recv(&mut buffer).is_ok_and(|n| &buffer[..n] == b"found")
    });
}

#[test]
fn a_unix_socket_is_reached_by_the_name_of_its_link() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("app.sock");
    let server = Server::unix(&path);
    let links = dir.path().join("links");
    fs::create_dir(&links).expect("ours");
    std::os::unix::fs::symlink(&path, links.join("app")).expect("ours");
    let links = links.display().to_string();
    let (_process, wire) = far(&["unix", "app", "--links", &links]);
    let mut near = Near::of(MuxContent::Bytes, wire);
    let id = near.open();
    near.send(id, b"hello", true);
    near.until("it is connected", |near| near.seen(id).opened);
    let mut wire = server.accept();
    assert_eq!(wire.read_to_end(), b"hello");
    wire.write_all(b"bye").expect("connected");
    drop(wire);
    near.until("the answer comes", |near| near.seen(id).ended);
    assert_eq!(near.seen(id).got, b"bye");

    let (process, wire) = far(&["unix", "other", "--links", &links]);
    let mut near = Near::of(MuxContent::Bytes, wire);
    let id = near.open();
    near.until("the stream is refused", |near| near.seen(id).reset.is_some());
    assert_eq!(near.seen(id).reset, Some(ResetCause::Refused));
    process.stderr.wait_for("No such file");
}

/// 126 and 127 would tell the caller that dom0 refused, or that the service is missing.
#[test]
fn an_argument_that_names_no_place_is_told_without_the_codes_of_qrexec() {
    for arguments in [["tcp", "0"], ["tcp", "http"], ["udp", "65536"], ["unix", "../etc/shadow"], ["sctp", "1"]] {
        let (mut process, _wire) = far(&arguments);
        assert_eq!(process.wait().code(), Some(2), "{arguments:?}");
        assert!(!process.stderr.to_the_end().is_empty());
    }
}

/// Its standard error goes to the other qube.
#[test]
fn the_log_does_not_go_to_standard_error() {
    let server = Server::tcp();
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut command = Command::new(program("qrexec-connect"));
    bare(&mut command).args(["far-end", "tcp", &server.port().to_string()]);
    let mut process = Process::on_wire(command, OwnedFd::from(theirs));
    drop(server);
    let mut near = Near::of(MuxContent::Bytes, ours);
    let id = near.open();
    near.until("the stream is refused", |near| near.seen(id).reset.is_some());
    drop(near);
    assert!(process.wait().success());
    assert_eq!(process.stderr.to_the_end(), Vec::<String>::new());
}
