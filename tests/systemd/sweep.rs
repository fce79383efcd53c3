//! One event, and a kill at a chosen instruction of what the service does about it.
//!
//! # Theory
//! A session is idle. One thing happens to it: bytes, an end, both, a reset, the last end, room after none, or the session
//! itself comes. The service is stepped through so many instructions and killed. The next process must bring the other
//! side exactly what it was to get, and the session must go on. The service has one processor, so that one thread does
//! all.
//!
//! How many instructions an event takes is learned from the kills that came too late. A debug build takes ten times as
//! many as a release build.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use crate::{
    crash::{Checkpoints, KILLED, another_than, here, lost, port},
    service::{
        assert_no_complaints_but, assert_nothing_leaked, assert_stops_clean, enable_now, main_pid, service_drop_in,
        socket,
    },
    support::{PATIENCE, Stepped, Wire, sample, strike_in_event, tell},
    tree::{As, installed_fake},
};

/// From where, and whereto.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Road {
    TcpTcp,
    UnixTcp,
    TcpUnix,
    UnixUnix,
    TcpCall,
    UnixCall,
}

const ROADS: [Road; 6] = [Road::TcpCall, Road::UnixCall, Road::TcpTcp, Road::UnixTcp, Road::TcpUnix, Road::UnixUnix];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Event {
    Up,
    Down,
    UpEnd,
    DownEnd,
    UpAndEnd,
    Reset,
    UpAndReset,
    LastEnd,
    LastEndOfPeer,
    Room,
    Connect,
}

const EVENTS: [Event; 11] = [
    Event::Up,
    Event::Down,
    Event::UpEnd,
    Event::DownEnd,
    Event::UpAndEnd,
    Event::Reset,
    Event::UpAndReset,
    Event::LastEnd,
    Event::LastEndOfPeer,
    Event::Room,
    Event::Connect,
];

impl Road {
    fn is_call(self) -> bool {
        matches!(self, Self::TcpCall | Self::UnixCall)
    }

    fn has_tcp_peer(self) -> bool {
        matches!(self, Self::TcpTcp | Self::TcpUnix | Self::TcpCall)
    }

    fn connect(self) -> Wire {
        match self {
            Self::TcpTcp => port(2001),
            Self::TcpUnix => port(2002),
            Self::TcpCall => port(2003),
            Self::UnixTcp => Wire::unix(&here("unix-tcp")),
            Self::UnixUnix => Wire::unix(&here("unix-unix")),
            Self::UnixCall => Wire::unix(&here("unix-call")),
        }
    }
}

/// What all sessions lead to.
struct Servers(TcpListener, UnixListener);

impl Servers {
    fn start() -> Self {
        let tcp = TcpListener::bind("127.0.0.1:7001").expect("a free port");
        let unix = UnixListener::bind(here("server")).expect("a free path");
        tcp.set_nonblocking(true).expect("a socket");
        unix.set_nonblocking(true).expect("a socket");
        Self(tcp, unix)
    }

    /// The connection that `first` comes through as its first bytes. One that ends without a byte was dialled by a process
    /// that was killed.
    #[track_caller]
    fn accept(&self, road: Road, first: &[u8]) -> Wire {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let accepted = match road {
                Road::TcpUnix | Road::UnixUnix => self.1.accept().map(|(stream, _)| {
                    stream.set_nonblocking(false).expect("a socket");
                    Wire::from_unix(stream)
                }),
                _ => self.0.accept().map(|(stream, _)| {
                    stream.set_nonblocking(false).expect("a socket");
                    Wire::from_tcp(stream)
                }),
            };
            match accepted {
                Ok(mut wire) => {
                    let mut got = vec![0; first.len()];
                    match wire.read_exact(&mut got) {
                        Ok(()) => {
                            assert_eq!(got, first, "{road:?}");
                            return wire;
                        }
                        Err(e) => assert!(Instant::now() < deadline, "{road:?}: {e}"),
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "{road:?}: no connection came");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
}

/// A session: what the peer has, and the server.
struct Session {
    peer: Wire,
    server: Wire,
}

impl Session {
    #[track_caller]
    fn new(road: Road, servers: &Servers) -> Self {
        let mut peer = road.connect();
        peer.write_all(b"hello").expect("it is served");
        let server = servers.accept(road, b"hello");
        let mut session = Self { peer, server };
        session.goes_down(b"welcome");
        session
    }

    #[track_caller]
    fn goes_up(&mut self, bytes: &[u8]) {
        self.peer.write_all(bytes).expect("it goes on");
        self.server.expect(bytes);
    }

    #[track_caller]
    fn goes_down(&mut self, bytes: &[u8]) {
        self.server.write_all(bytes).expect("it goes on");
        self.peer.expect(bytes);
    }

    /// Writes until nobody takes any more: how many bytes. All are the same.
    fn fill(&mut self) -> usize {
        self.peer.set_nonblocking(true);
        let (mut sent, mut since) = (0, Instant::now());
        while since.elapsed() < Duration::from_millis(100) {
            match self.peer.write(&[b'f'; 64 << 10]) {
                Ok(n) => (sent, since) = (sent + n, Instant::now()),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        self.peer.set_nonblocking(false);
        sent
    }
}

/// An event, and what must come of it.
fn play(road: Road, event: Event, message: &[u8], servers: &Servers, kill: impl FnOnce(&mut dyn FnMut())) {
    if event == Event::Connect {
        let mut peer = None;
        kill(&mut || peer = Some(road.connect()));
        let mut peer = peer.expect("it happened");
        peer.write_all(b"hello").expect("it is served");
        let server = servers.accept(road, b"hello");
        let mut session = Session { peer, server };
        session.goes_down(b"welcome");
        session.goes_up(b"more");
        return;
    }
    let mut session = Session::new(road, servers);
    match event {
        Event::Up => {
            kill(&mut || session.peer.write_all(message).expect("it takes it"));
            session.server.expect(message);
        }
        Event::Down => {
            kill(&mut || session.server.write_all(message).expect("it takes it"));
            session.peer.expect(message);
        }
        Event::UpEnd | Event::UpAndEnd => {
            let message = if event == Event::UpEnd { &[][..] } else { message };
            kill(&mut || {
                session.peer.write_all(message).expect("it takes it");
                session.peer.half_close();
            });
            session.server.expect(message);
            session.server.expect_end();
            session.goes_down(b"still");
            session.server.half_close();
            session.peer.expect_end();
            return;
        }
        Event::DownEnd => {
            kill(&mut || session.server.half_close());
            session.peer.expect_end();
            session.goes_up(b"still");
            session.peer.half_close();
            session.server.expect_end();
            return;
        }
        Event::LastEnd => {
            session.peer.half_close();
            session.server.expect_end();
            kill(&mut || session.server.half_close());
            session.peer.expect_end();
            return;
        }
        Event::LastEndOfPeer => {
            session.server.half_close();
            session.peer.expect_end();
            kill(&mut || session.peer.half_close());
            session.server.expect_end();
            return;
        }
        Event::Reset | Event::UpAndReset => {
            // A reset takes back what the other side has had no room for.
            let message = if event == Event::Reset { &[][..] } else { &message[..message.len().min(1000)] };
            let Session { peer, mut server } = session;
            let mut peer = Some(peer);
            kill(&mut || {
                let mut peer = peer.take().expect("it happens once");
                peer.write_all(message).expect("it takes it");
                peer.reset();
            });
            let mut got = Vec::new();
            let end = std::io::Read::read_to_end(&mut server, &mut got);
            // A child is ended with what it has not read, and it cannot pass a reset on; nor can a UNIX socket.
            assert!(message.starts_with(&got), "{road:?}: other bytes");
            assert!(got.len() == message.len() || road.is_call(), "{road:?}: {} of {} bytes", got.len(), message.len());
            assert!(end.is_err() || road != Road::TcpTcp, "{road:?}: a reset became an end");
            return;
        }
        Event::Room => {
            let sent = session.fill();
            let (mut buffer, mut got) = (vec![0; 1 << 20], 0);
            let mut read = |server: &mut Wire, most: usize| {
                let n = server.read(&mut buffer[..most.min(1 << 20)]).expect("all come");
                assert!(n > 0 && buffer[..n].iter().all(|byte| *byte == b'f'), "{road:?}: other bytes");
                n
            };
            kill(&mut || got = read(&mut session.server, sent));
            while got < sent {
                got += read(&mut session.server, sent - got);
            }
        }
        Event::Connect => unreachable!("it is played above"),
    }
    session.goes_up(b"up");
    session.goes_down(b"down");
    session.goes_up(message);
}

#[test]
fn an_event_during_which_the_service_is_killed_at_any_instruction_has_its_effect_once() {
    let Some(tree) = tree!() else { return };
    tree.boot("sweep", As::Tester, || {
        installed_fake();
        socket("tcp-tcp", "127.0.0.1:2001", "target=127.0.0.1+7001");
        socket("tcp-unix", "127.0.0.1:2002", "uds=%t/server");
        socket("tcp-call", "127.0.0.1:2003", "work test.Tcp+7001");
        socket("unix-tcp", "%t/unix-tcp", "target=127.0.0.1+7001");
        socket("unix-unix", "%t/unix-unix", "uds=%t/server");
        socket("unix-call", "%t/unix-call", "work test.Tcp+7001");
        service_drop_in("soon", "[Service]\nRestartSec=100ms\nCPUAffinity=0\n");
        enable_now(&["tcp-tcp", "tcp-unix", "tcp-call", "unix-tcp", "unix-unix", "unix-call"]);
        let servers = Servers::start();
        let all = EVENTS.into_iter().flat_map(|event| ROADS.map(|road| (road, event)));
        let can_be =
            |(road, event): &(Road, Event)| road.has_tcp_peer() || !matches!(event, Event::Reset | Event::UpAndReset);
        let all: Vec<_> = all.filter(can_be).collect();
        let kills = sample("kills at an instruction", 12, 400);
        let (mut spans, mut inside) = (HashMap::new(), 0);
        for kill in 0..kills {
            // Another road and another event each time: seven and sixty have no divisor in common.
            let (road, event) = all[kill * 7 % all.len()];
            // In each round over all of them another size and another span.
            let round = kill / all.len();
            let message = vec![b'm'; [64, 1000, 100_000][(kill + round) % 3]];
            let span = spans.get(&(road, event)).copied().unwrap_or(60_000_u32).max(1);
            // Bytes are moved early; the rest of an event is its journal and its clean-up.
            let span = if (kill + round / 3) % 2 == 0 { span.div_ceil(8) } else { span };
            let mixed = (kill as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
            let steps = (mixed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as u32 % span;
            play(road, event, &message, &servers, |happen| {
                let before = main_pid();
                Checkpoints::open(before).age();
                match strike_in_event(before, steps, happen) {
                    Stepped::NotWoken => {}
                    Stepped::At(_) => inside += 1,
                    Stepped::Through(all) => {
                        // A thread that a busy machine held up looks quiet before it is through.
                        spans.entry((road, event)).and_modify(|span: &mut u32| *span = all.max(*span)).or_insert(all);
                    }
                }
                another_than(before);
            });
            let lost = lost();
            assert!(lost.is_empty(), "kill {kill}, {road:?} {event:?} after {steps} instructions: {lost:#?}");
        }
        tell(&format!(
            "SAMPLE {inside} of {kills} kills came in the middle of an event; instructions of each: {spans:?}"
        ));
        assert!(inside > 0, "no kill came in the middle of an event");
        assert_nothing_leaked();
        assert_no_complaints_but(&KILLED);
        assert_stops_clean();
    });
}
