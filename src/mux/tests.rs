//! Both ends in one process, between a client and a server of TCP: what either does must look to the other as between
//! two hosts.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{setsockopt, sockopt};

use super::{
    engine::{MuxEngine, StreamOwner, StreamStory},
    far::FarCall,
    place::FarPlace,
    socket::{SocketFamily, StreamSocket},
};
use crate::{
    proto::mux::{FLOOR, MuxCall, MuxContent, MuxRole, StreamId},
    sys,
};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// Fits into no buffer of a socket or a stream at its beginning.
const MUCH: usize = 300_000;

/// A near end whose sockets are given.
struct NearTest;

impl StreamOwner for NearTest {
    fn connect(&mut self, _: StreamId, _: Instant) -> io::Result<StreamSocket> {
        unreachable!("the far end opens no stream")
    }

    fn ended(&mut self, _: StreamStory) {}
}

/// A call whose near end has these sockets. Both ends run until the call ends: when `stop` is dropped.
fn call(port: u16, sockets: Vec<OwnedFd>) -> mpsc::Sender<()> {
    let (near, far) = UnixStream::pair().expect("a pair");
    let (stop, stopped) = mpsc::channel::<()>();
    let far = OwnedFd::from(far);
    let copy = far.try_clone().expect("a descriptor");
    thread::spawn(move || FarCall::new("work".into(), FarPlace::Tcp(port)).serve(far, copy));
    let last = near.try_clone().expect("a descriptor");
    thread::spawn(move || {
        near.set_nonblocking(true).expect("an option");
        let near = OwnedFd::from(near);
        let copy = near.try_clone().expect("a descriptor");
        let call = MuxCall::new(MuxRole::Near, MuxContent::Bytes, FLOOR);
        let mut engine = MuxEngine::new(call, near, copy).expect("it works");
        while !engine.call().is_greeted() {
            engine.round(&mut NearTest).expect("it works");
        }
        for fd in sockets {
            let socket = StreamSocket::new(fd, SocketFamily::Tcp, false, Instant::now());
            engine.open(socket).map_err(|_| "no place").expect("there is a place");
        }
        while !engine.is_done() {
            engine.round(&mut NearTest).expect("it works");
        }
    });
    thread::spawn(move || {
        let _ = stopped.recv();
        let _ = last.shutdown(Shutdown::Both);
    });
    stop
}

/// Two ends of a connection of this machine; the second is non-blocking.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let (ours, _) = listener.accept().expect("it comes");
    ours.set_nonblocking(true).expect("an option");
    (client, ours)
}

/// A client and a server, joined by a stream.
struct Joined {
    client: TcpStream,
    server: TcpStream,
    _call: mpsc::Sender<()>,
}

fn joined() -> Joined {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let (client, ours) = connection();
    let stop = call(listener.local_addr().expect("bound").port(), vec![ours.into()]);
    let (server, _) = listener.accept().expect("it comes");
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(PATIENCE)).expect("an option");
        socket.set_write_timeout(Some(Duration::from_secs(1))).expect("an option");
    }
    Joined { client, server, _call: stop }
}

/// Closes it so that the other side sees a reset.
fn reset(socket: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&socket, sockopt::Linger, &linger).expect("an option");
}

/// All that comes, and whether it ended with an end.
fn read(mut socket: &TcpStream) -> (usize, Result<(), io::ErrorKind>) {
    let (mut all, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return (all, Ok(())),
            Ok(n) => all += n,
            Err(error) => return (all, Err(error.kind())),
        }
    }
}

const RESET: Result<(), io::ErrorKind> = Err(io::ErrorKind::ConnectionReset);

fn write(mut socket: &TcpStream, bytes: usize) {
    socket.write_all(&vec![7; bytes]).expect("it is read");
}

/// Writes until nothing more fits.
fn stuff(mut socket: &TcpStream) {
    while socket.write_all(&[7; 1 << 16]).is_ok() {}
}

/// Waits until all that was written has left the socket.
fn sent(socket: &TcpStream) {
    let deadline = Instant::now() + PATIENCE;
    while sys::queued(socket.as_fd()) > 0 {
        assert!(Instant::now() < deadline, "it does not leave");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Does it from the client to the server, and from the server to the client.
fn both_ways(act: impl Fn(TcpStream, TcpStream)) {
    let Joined { client, server, _call } = joined();
    act(client, server);
    let Joined { client, server, _call } = joined();
    act(server, client);
}

#[test]
fn a_half_close_passes_and_the_other_direction_goes_on() {
    both_ways(|one, two| {
        write(&one, 10);
        one.shutdown(Shutdown::Write).expect("connected");
        assert_eq!(read(&two), (10, Ok(())));
        let reader = thread::spawn(move || read(&one));
        write(&two, MUCH);
        drop(two);
        assert_eq!(reader.join().expect("it reads"), (MUCH, Ok(())));
    });
}

/// Whether the other side reads at once or when the reset has long been on its way: more was sent than its socket
/// holds.
#[test]
fn a_reset_passes_behind_what_was_sent_before() {
    const MORE: usize = 120_000;
    for late in [Duration::ZERO, Duration::from_millis(300)] {
        both_ways(|one, two| {
            write(&one, MORE);
            sent(&one);
            reset(one);
            thread::sleep(late);
            assert_eq!(read(&two), (MORE, RESET), "read after {late:?}");
        });
    }
}

#[test]
fn a_reset_after_the_own_end_passes() {
    both_ways(|one, mut two| {
        one.shutdown(Shutdown::Write).expect("connected");
        assert_eq!(read(&two), (0, Ok(())));
        reset(one);
        // the next write finds out, at the latest
        let deadline = Instant::now() + PATIENCE;
        while two.write_all(b"x").is_ok() {
            assert!(Instant::now() < deadline, "nobody told of the reset");
            thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn a_reset_after_the_others_end_passes() {
    both_ways(|one, two| {
        two.shutdown(Shutdown::Write).expect("connected");
        assert_eq!(read(&one), (0, Ok(())));
        reset(one);
        assert_eq!(read(&two), (0, RESET));
    });
}

#[test]
fn a_close_with_bytes_unread_is_a_reset() {
    both_ways(|one, two| {
        write(&two, 10);
        let deadline = Instant::now() + PATIENCE;
        while sys::unread(one.as_fd()) < 10 {
            assert!(Instant::now() < deadline, "they do not come");
            thread::sleep(Duration::from_millis(1));
        }
        drop(one);
        assert_eq!(read(&two), (0, RESET));
    });
}

/// Nobody reads, all buffers are full, there is no credit: the reset passes within the time for what was promised.
#[test]
fn a_reset_with_all_buffers_full_passes() {
    both_ways(|one, two| {
        stuff(&one);
        reset(one);
        let deadline = Instant::now() + PATIENCE;
        // asked without a read: what was sent is not waited for
        while two.take_error().expect("an option").is_none() {
            assert!(Instant::now() < deadline, "the reset does not come");
            thread::sleep(Duration::from_millis(10));
        }
    });
}

#[test]
fn a_port_without_a_listener_is_a_reset() {
    let port = connection().0.local_addr().expect("bound").port(); // nobody listens there
    let (client, ours) = connection();
    client.set_read_timeout(Some(PATIENCE)).expect("an option");
    let _call = call(port, vec![ours.into()]);
    assert_eq!(read(&client), (0, RESET));
}

#[test]
fn the_end_of_the_call_is_a_reset_for_both() {
    let Joined { client, server, _call } = joined();
    write(&client, 10);
    let mut ten = [0; 10];
    (&server).read_exact(&mut ten).expect("they come");
    drop(_call);
    assert_eq!((read(&client), read(&server)), ((0, RESET), (0, RESET)));
}
