//! Where the bytes of a session are whose process died while it moved them between two sockets, from what the kernel has
//! counted.
//!
//! # Theory
//! A kill never stops the kernel half-way: each system call has happened wholly, in part with a count, or not at all; only
//! the count is lost. For a TCP socket the kernel keeps the count. A UNIX socket counts what is read from it
//! (SO_PEEK_OFF). Of what is written to it, sendmmsg(2) has left the count beside the buffer, and of a splice the pipe
//! has what was not written. So what was read of the source and not written to the
//! destination is the difference of two numbers, and these bytes are in one place: in the pipe that the direction has
//! noted, or in the buffer that it has noted, before it read them. Where the numbers and the place do not agree, the
//! session is in doubt: it is reset, and no byte is guessed.
//!
//! The kernel tells of a reset once, and the dead process may have heard it: the next read says "end". So a socket
//! whose connection is over, though it has not ended or was not told of the other end, was reset.

use crate::{
    crash::{SavedBases, SavedIntent, SavedPart, SavedRelay},
    sys::SocketCounts,
};

/// What the process knew and noted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted {
    pub(super) bases: SavedBases,
    pub(super) intents: [SavedIntent; 2],
    pub(super) relay: SavedRelay,
    /// Bytes delivered, as the process had counted them: up, down.
    pub(super) delivered: [u64; 2],
    /// Bytes in the pipes that were noted: up, down.
    pub(super) in_pipe: [u64; 2],
}

/// The state of the relay that the next process begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Repaired {
    /// The side that was reset: 0 the peer, 1 the upstream.
    pub(super) reset_by: Option<u8>,
    pub(super) directions: [RepairedDirection; 2],
}

/// The state of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RepairedDirection {
    /// As in [`crate::crash::SavedDirection`].
    pub(super) phase: u8,
    pub(super) held: FoundBytes,
    pub(super) dropped: u64,
    pub(super) delivered: u64,
    /// Bytes that are held now.
    pub(super) on_their_way: u64,
}

/// Where bytes were found that were read and not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FoundBytes {
    Nothing,
    Pipe,
    Buffer(SavedPart),
}

/// The numbers do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InDoubt;

/// Phases of a direction.
pub(super) const OPEN: u8 = 0;
pub(super) const DEAF: u8 = 1;
pub(super) const DONE: u8 = 2;

/// Bytes that a direction had written to a UNIX socket, of which it had read so many: what is not in the pipe that was
/// noted, else what the last send has left as the count. `sent`: that count, where there is one.
pub(super) fn written_to_unix(read: u64, dropped: u64, delivered: u64, pipe: Option<u64>, sent: Option<u64>) -> u64 {
    match pipe {
        Some(in_pipe) => read.wrapping_sub(dropped).wrapping_sub(in_pipe),
        None => sent.map_or(delivered, |sent| sent.max(delivered)),
    }
}

/// Finds the bytes of a session between two sockets, by the counts of the peer and of the upstream.
pub(super) fn repair(noted: &Noted, [peer, upstream]: [SocketCounts; 2]) -> Result<Repaired, InDoubt> {
    let sides = [peer, upstream];
    let saved = [noted.relay.up, noted.relay.down];
    let read = |direction: usize| sides[direction].read.wrapping_sub(noted.bases.read[direction]);
    let written = |direction: usize| sides[1 - direction].written.wrapping_sub(noted.bases.written[direction]);
    let was_reset = |side: usize| {
        // The direction that writes to this side.
        let to = 1 - side;
        let told = saved[to].phase == DONE || written(to) == read(to).wrapping_sub(saved[to].dropped).wrapping_add(1);
        sides[side].closed && !(sides[side].ended && told)
    };
    let resets = [was_reset(0), was_reset(1)];
    let reset_by = noted.relay.reset_by.or_else(|| (0..2).find(|side| resets[usize::from(*side)]));
    let nothing = |n: usize| RepairedDirection {
        phase: saved[n].phase,
        held: FoundBytes::Nothing,
        dropped: saved[n].dropped,
        delivered: noted.delivered[n],
        on_their_way: 0,
    };
    let mut directions = [nothing(0), nothing(1)];
    for (n, direction) in directions.iter_mut().enumerate() {
        let RepairedDirection { phase, dropped, delivered, .. } = *direction;
        match phase {
            OPEN if !resets[1 - n] => {
                let (read, written) = (read(n), written(n));
                let kept = read.checked_sub(dropped).ok_or(InDoubt)?;
                direction.delivered = written;
                match kept.checked_sub(written) {
                    Some(0) => {}
                    Some(missing) => {
                        direction.held = find(&noted.intents[n], noted.in_pipe[n], read, missing)?;
                        direction.on_their_way = missing;
                    }
                    // The destination was told of the end, which counts as one.
                    None if written == kept.wrapping_add(1) && sides[n].ended => direction.delivered = kept,
                    None => return Err(InDoubt),
                }
            }
            // The destination takes no more: what was not delivered is lost.
            OPEN | DEAF => {
                direction.phase = DEAF;
                direction.dropped = read(n).saturating_sub(delivered).max(dropped);
            }
            _ => {}
        }
    }
    Ok(Repaired { reset_by, directions })
}

/// Finds the last `missing` of the bytes that were read.
fn find(intent: &SavedIntent, in_pipe: u64, read: u64, missing: u64) -> Result<FoundBytes, InDoubt> {
    if intent.pipe != 0 {
        return if in_pipe == missing { Ok(FoundBytes::Pipe) } else { Err(InDoubt) };
    }
    let (number, before) = intent.buffer.ok_or(InDoubt)?;
    // No buffer has as many bytes as the half of the count that was noted can tell.
    let at = (read.wrapping_sub(missing) as u32).wrapping_sub(before);
    let end = u32::try_from(missing).ok().and_then(|missing| at.checked_add(missing)).ok_or(InDoubt)?;
    Ok(FoundBytes::Buffer(SavedPart { number, at, end }))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{Shutdown, TcpListener, TcpStream},
        os::fd::AsFd as _,
    };

    use proptest::prelude::*;

    use super::*;
    use crate::{crash::SavedDirection, sys};

    /// A peer and an upstream, with the process between them: its two sockets.
    struct Between {
        client: TcpStream,
        peer: TcpStream,
        upstream: TcpStream,
        server: TcpStream,
    }

    impl Between {
        fn new() -> Self {
            let pair = || {
                let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
                let dialled = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
                (dialled, listener.accept().expect("it came").0)
            };
            let ((client, peer), (upstream, server)) = (pair(), pair());
            Self { client, peer, upstream, server }
        }

        fn counts(&self) -> [SocketCounts; 2] {
            [&self.peer, &self.upstream]
                .map(|socket| sys::tcp_counts(socket.as_fd(), sys::ClosedSocket::Ask).expect("TCP counts"))
        }

        /// What the ledger says, when this was noted for *up*.
        fn repair(&self, relay: SavedRelay, buffer: Option<(u16, u32)>, delivered: u64) -> Result<Repaired, InDoubt> {
            let intents = [SavedIntent { buffer, pipe: 0 }, SavedIntent::default()];
            let bases = SavedBases { read: [0; 2], written: [1, 0] };
            repair(&Noted { bases, intents, relay, delivered: [delivered, 0], in_pipe: [0; 2] }, self.counts())
        }
    }

    fn part(at: u32, end: u32) -> FoundBytes {
        FoundBytes::Buffer(SavedPart { number: 3, at, end })
    }

    #[test]
    fn bytes_that_were_read_and_not_written_are_found_in_the_buffer() {
        let mut between = Between::new();
        between.client.write_all(b"0123456789").expect("it takes them");
        let nothing = between.repair(SavedRelay::default(), Some((3, 0)), 0).expect("no doubt");
        assert_eq!(nothing.directions[0].held, FoundBytes::Nothing, "nothing was read");
        let mut buffer = [0; 16];
        assert_eq!(between.peer.read(&mut buffer).expect("they came"), 10);
        let all = between.repair(SavedRelay::default(), Some((3, 0)), 0).expect("no doubt");
        assert_eq!((all.directions[0].held, all.directions[0].delivered), (part(0, 10), 0));
        // a part was written, and the process did not hear of that
        between.upstream.write_all(&buffer[..4]).expect("it takes them");
        let rest = between.repair(SavedRelay::default(), Some((3, 0)), 0).expect("no doubt");
        assert_eq!((rest.directions[0].held, rest.directions[0].delivered), (part(4, 10), 4));
        assert_eq!(between.repair(SavedRelay::default(), None, 0), Err(InDoubt), "nobody knows where they are");
        between.upstream.write_all(&buffer[4..10]).expect("it takes them");
        let done = between.repair(SavedRelay::default(), None, 0).expect("no doubt");
        assert_eq!((done.directions[0].held, done.directions[0].delivered), (FoundBytes::Nothing, 10));
        between.upstream.write_all(b"!").expect("it takes it");
        assert_eq!(between.repair(SavedRelay::default(), None, 0), Err(InDoubt), "more than was read");
        between.server.read_exact(&mut [0; 11]).expect("all came");
    }

    #[test]
    fn an_end_that_was_passed_on_is_no_byte_and_a_second_one_does_no_harm() {
        let mut between = Between::new();
        between.client.write_all(b"all").expect("it takes them");
        between.client.shutdown(Shutdown::Write).expect("connected");
        let mut got = Vec::new();
        between.peer.read_to_end(&mut got).expect("the end came");
        assert_eq!(
            between.repair(SavedRelay::default(), Some((3, 0)), 0).expect("no doubt").directions[0].held,
            part(0, 3)
        );
        between.upstream.write_all(&got).expect("it takes them");
        for _ in 0..2 {
            let repaired = between.repair(SavedRelay::default(), None, 3).expect("no doubt");
            assert_eq!((repaired.reset_by, repaired.directions[0].held), (None, FoundBytes::Nothing));
            assert_eq!((repaired.directions[0].delivered, repaired.directions[0].phase), (3, OPEN));
            between.upstream.shutdown(Shutdown::Write).expect("connected");
        }
        between.server.read_to_end(&mut got).expect("the end came");
        assert_eq!(got, b"allall");
    }

    #[test]
    fn a_reset_that_only_the_dead_process_has_heard_is_a_reset_and_two_ends_are_none() {
        // reset: what the process has read is still delivered
        let mut between = Between::new();
        between.client.write_all(b"last words").expect("it takes them");
        let mut buffer = [0; 16];
        assert_eq!(between.peer.read(&mut buffer).expect("they came"), 10);
        socket2::SockRef::from(&between.client).set_linger(Some(std::time::Duration::ZERO)).expect("a socket");
        drop(std::mem::replace(&mut between.client, Between::new().client));
        assert!(between.peer.read(&mut buffer).is_err(), "the dead process hears of it");
        assert_eq!(between.peer.read(&mut buffer).expect("an end, says the kernel now"), 0);
        let repaired = between.repair(SavedRelay::default(), Some((3, 0)), 0).expect("no doubt");
        assert_eq!((repaired.reset_by, repaired.directions[0].held), (Some(0), part(0, 10)));
        assert_eq!(repaired.directions[1].phase, DEAF, "the peer takes nothing more");

        // both ends came through: the connection is over, and nobody has reset it
        let mut between = Between::new();
        between.upstream.shutdown(Shutdown::Write).expect("connected");
        between.peer.shutdown(Shutdown::Write).expect("connected");
        between.client.shutdown(Shutdown::Write).expect("connected");
        between.server.shutdown(Shutdown::Write).expect("connected");
        for socket in [&mut between.peer, &mut between.upstream, &mut between.client, &mut between.server] {
            assert_eq!(socket.read(&mut buffer).expect("the end"), 0);
        }
        let repaired = between.repair(SavedRelay::default(), None, 0).expect("no doubt");
        assert_eq!(repaired.reset_by, None, "{:?}", between.counts());
    }

    #[test]
    fn bytes_in_a_pipe_count_only_where_all_that_are_missing_are_there() {
        let mut between = Between::new();
        between.client.write_all(b"0123456789").expect("it takes them");
        assert_eq!(between.peer.read(&mut [0; 16]).expect("they came"), 10);
        let intents = [SavedIntent { buffer: Some((3, 0)), pipe: 9 }, SavedIntent::default()];
        let bases = SavedBases { read: [0; 2], written: [1, 0] };
        for (in_pipe, wanted) in [(10, Ok(FoundBytes::Pipe)), (9, Err(InDoubt)), (11, Err(InDoubt)), (0, Err(InDoubt))]
        {
            let relay = SavedRelay::default();
            let noted = Noted { bases, intents, relay, delivered: [0; 2], in_pipe: [in_pipe, 0] };
            let found = repair(&noted, between.counts()).map(|repaired| repaired.directions[0].held);
            assert_eq!(found, wanted, "{in_pipe} bytes");
        }
    }

    #[test]
    fn what_was_written_to_a_unix_socket_is_what_the_pipe_lacks_or_what_the_last_send_has_left() {
        // a splice: what was read and is not in the pipe, whatever was sent before
        assert_eq!(written_to_unix(110, 10, 60, Some(30), Some(60)), 70);
        assert_eq!(written_to_unix(110, 10, 100, Some(0), None), 100, "the pipe was noted, and nothing came");
        // a send: the process had counted it, or not yet; or there was none
        assert_eq!(written_to_unix(110, 10, 60, None, Some(85)), 85);
        assert_eq!(written_to_unix(110, 10, 85, None, Some(60)), 85, "the note is of an earlier buffer");
        assert_eq!(written_to_unix(110, 10, 60, None, None), 60);
    }

    proptest! {
        /// A direction as the process moves it, killed after any of its steps: the ledger finds what is missing.
        #[test]
        fn whatever_was_moved_the_rest_is_found(
            before in 0..u64::MAX / 2, steps in prop::collection::vec((1..65_536_u64, 0..65_536_u64), 0..20),
            read in 0..65_536_u64, wrote in 0..65_536_u64, dropped in 0..1000_u64, bases: [u32; 2], deaf: bool,
        ) {
            let moved: u64 = before + steps.iter().map(|(n, _)| n).sum::<u64>();
            let wrote = wrote.min(read);
            let bases = SavedBases { read: [bases[0].into(), 0], written: [bases[1].into(), 0] };
            let open = SocketCounts { read: 0, written: 0, closed: false, ended: false };
            let sides = [
                SocketCounts { read: bases.read[0] + moved + dropped + read, ..open },
                SocketCounts { written: bases.written[0] + moved + wrote, ..open },
            ];
            let up = SavedDirection { phase: if deaf { DEAF } else { OPEN }, dropped, ..SavedDirection::default() };
            let intent = SavedIntent { buffer: Some((3, (moved + dropped) as u32)), pipe: 0 };
            let noted = Noted {
                bases,
                intents: [intent, SavedIntent::default()],
                relay: SavedRelay { up, ..SavedRelay::default() },
                delivered: [moved, 0],
                in_pipe: [0; 2],
            };
            let up = repair(&noted, sides).expect("no doubt").directions[0];
            if deaf {
                prop_assert_eq!((up.held, up.dropped), (FoundBytes::Nothing, dropped + read));
            } else if read == wrote {
                prop_assert_eq!((up.held, up.delivered), (FoundBytes::Nothing, moved + wrote));
            } else {
                let part = SavedPart { number: 3, at: wrote as u32, end: read as u32 };
                prop_assert_eq!((up.held, up.delivered), (FoundBytes::Buffer(part), moved + wrote));
            }
        }

        #[test]
        fn any_numbers_are_repaired_or_doubted(numbers: [[u64; 6]; 2], flags: [[bool; 2]; 2], phases: [[u8; 2]; 2]) {
            let side = |n: usize| SocketCounts {
                read: numbers[n][0],
                written: numbers[n][1],
                closed: flags[n][0],
                ended: flags[n][1],
            };
            let direction = |n: usize| SavedDirection {
                phase: phases[n][0] % 3,
                dropped: numbers[n][3],
                ..SavedDirection::default()
            };
            let noted = Noted {
                bases: SavedBases { read: [numbers[0][4], numbers[1][4]], written: [numbers[0][5], numbers[1][5]] },
                intents: [SavedIntent { buffer: Some((1, numbers[0][3] as u32)), pipe: 0 }; 2],
                relay: SavedRelay { up: direction(0), down: direction(1), ..SavedRelay::default() },
                delivered: [numbers[0][0], numbers[1][1]],
                in_pipe: [0, numbers[0][5]],
            };
            let _ = repair(&noted, [side(0), side(1)]);
        }
    }
}
