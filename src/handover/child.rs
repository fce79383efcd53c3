//! Where a session with a child stands whose process died while it moved bytes between the child's pipes and the peer's
//! socket.
//!
//! # Theory
//! Each byte goes by one splice(2) straight from the socket to the child's standard input, or from the child's standard
//! output to the socket. A kill leaves a splice done or not done: a byte is in the source or in the destination, and
//! nothing is on its way. So no byte has to be found. What is left to decide are ends:
//!
//! * The end of the peer is passed on by the close of the child's input, the end of the child's output is followed by
//!   the close of that pipe. A direction notes the pipe before it closes the pipe. A pipe that is missing and was noted
//!   was closed by the dead process. One that is missing and was not noted has not come: the session is lost.
//! * An end that was not acted on is there still: the kernel tells it again. Only a reset is told once
//!   ([`super::ledger`]).
//! * The end of the child's output is never passed on while bytes are moved, because the exit code of the child decides
//!   what it means: the direction holds it.
//!
//! | direction, as saved | its pipe | the peer | it goes on |
//! |---|---|---|---|
//! | up, open | there | | open; delivered is what was read of the peer |
//! | up, open or deaf | closed | | done |
//! | up, deaf | there | | deaf; what was read is dropped |
//! | down, open | there | | open; delivered is what TCP has counted |
//! | down, open | closed | | done; the end is held |
//! | down, open | there | was reset | deaf |
//! | down, deaf | there or closed | | deaf, or done |
//! | done | | | done |
//!
//! A peer over TCP was reset when its connection is over, and not by two ends: one of ours, after *down* was done, and
//! one of the peer. A UNIX socket counts nothing that is written to it: of the last splice to one, the count of bytes in
//! the session's report is short.

use super::ledger::{DEAF, DONE, FoundBytes, InDoubt, Noted, OPEN, Repaired, RepairedDirection};
use crate::{crash::SavedBytes, sys::SocketCounts};

/// How the relay of a session with a child goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RepairedCall {
    pub(super) repaired: Repaired,
    /// The child's output has ended, and the peer was not told.
    pub(super) end_held: bool,
}

/// Finds it, by the counts of the peer's socket, and by whether the child's pipes were closed: its input, its output.
/// `tcp`: the peer's socket counts what was written to it.
pub(super) fn repair(noted: &Noted, peer: SocketCounts, tcp: bool, closed: [bool; 2]) -> Result<RepairedCall, InDoubt> {
    let (up, down) = (noted.relay.up, noted.relay.down);
    if [up.held, down.held] != [SavedBytes::Nothing; 2] {
        return Err(InDoubt);
    }
    let read = peer.read.wrapping_sub(noted.bases.read[0]);
    let written = if tcp { peer.written.wrapping_sub(noted.bases.written[1]) } else { noted.delivered[1] };
    // An end that was passed on counts as one.
    let told = down.phase == DONE && (!noted.relay.end_held || written == noted.delivered[1].wrapping_add(1));
    let reset = peer.closed && !(peer.ended && told);
    let nothing = |n: usize, phase, dropped| RepairedDirection {
        phase,
        held: FoundBytes::Nothing,
        dropped,
        delivered: noted.delivered[n],
        on_their_way: 0,
    };
    let (mut to, mut from) = (nothing(0, up.phase, up.dropped), nothing(1, down.phase, down.dropped));
    match up.phase {
        OPEN => to.delivered = read.checked_sub(up.dropped).filter(|n| *n >= to.delivered).ok_or(InDoubt)?,
        DEAF => to.dropped = read.saturating_sub(to.delivered).max(up.dropped),
        _ => {}
    }
    if closed[0] {
        to.phase = DONE;
    }
    if down.phase == OPEN {
        from.delivered = Some(written).filter(|n| *n >= from.delivered).ok_or(InDoubt)?;
        if reset {
            from.phase = DEAF;
        }
    }
    if closed[1] {
        from.phase = DONE;
    }
    let end_held = noted.relay.end_held || (closed[1] && down.phase == OPEN);
    let reset_by = noted.relay.reset_by.or(reset.then_some(0));
    Ok(RepairedCall { repaired: Repaired { reset_by, directions: [to, from] }, end_held })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::{SavedBases, SavedDirection, SavedIntent, SavedPart, SavedRelay};

    const PEER: SocketCounts = SocketCounts { read: 1000, written: 500, closed: false, ended: false };

    fn noted(up: u8, down: u8, end_held: bool) -> Noted {
        let direction = |phase| SavedDirection { phase, ..SavedDirection::default() };
        Noted {
            bases: SavedBases { read: [900, 0], written: [0, 400] },
            intents: [SavedIntent::default(); 2],
            relay: SavedRelay { up: direction(up), down: direction(down), end_held, ..SavedRelay::default() },
            delivered: [90, 80],
            in_pipe: [0; 2],
        }
    }

    /// Phases, bytes delivered, who was reset, and whether an end is held.
    fn after(noted: &Noted, peer: SocketCounts, closed: [bool; 2]) -> ([u8; 2], [u64; 2], Option<u8>, bool) {
        let RepairedCall { repaired, end_held } = repair(noted, peer, true, closed).expect("no doubt");
        let [up, down] = repaired.directions;
        ([up.phase, down.phase], [up.delivered, down.delivered], repaired.reset_by, end_held)
    }

    #[test]
    fn what_was_read_of_the_peer_has_reached_the_child_and_tcp_counts_what_the_child_has_sent() {
        let open = noted(OPEN, OPEN, false);
        assert_eq!(after(&open, PEER, [false; 2]), ([OPEN, OPEN], [100, 100], None, false));
        let unix = repair(&open, PEER, false, [false; 2]).expect("no doubt").repaired.directions;
        assert_eq!(unix.map(|direction| direction.delivered), [100, 80], "a UNIX socket counts no writes");
        let fewer = SocketCounts { read: 980, ..PEER };
        assert_eq!(repair(&open, fewer, true, [false; 2]), Err(InDoubt), "fewer than were delivered");
        let fewer = SocketCounts { written: 470, ..PEER };
        assert_eq!(repair(&open, fewer, true, [false; 2]), Err(InDoubt), "fewer than were delivered");
        let deaf = repair(&noted(DEAF, OPEN, false), PEER, true, [false; 2]).expect("no doubt");
        assert_eq!((deaf.repaired.directions[0].delivered, deaf.repaired.directions[0].dropped), (90, 10));
    }

    #[test]
    fn a_pipe_that_was_closed_ends_its_direction_and_the_end_of_the_output_is_not_told() {
        let open = noted(OPEN, OPEN, false);
        assert_eq!(after(&open, PEER, [true, false]), ([DONE, OPEN], [100, 100], None, false));
        assert_eq!(after(&open, PEER, [false, true]), ([OPEN, DONE], [100, 100], None, true));
        assert_eq!(after(&noted(OPEN, DONE, true), PEER, [false, true]), ([OPEN, DONE], [100, 80], None, true));
        assert_eq!(after(&noted(OPEN, DONE, false), PEER, [false, true]), ([OPEN, DONE], [100, 80], None, false));
    }

    #[test]
    fn a_connection_that_is_over_was_reset_unless_both_ends_came_through() {
        let over = SocketCounts { closed: true, ended: true, ..PEER };
        assert_eq!(after(&noted(OPEN, OPEN, false), over, [false; 2]), ([OPEN, DEAF], [100, 100], Some(0), false));
        assert_eq!(after(&noted(DONE, DONE, false), over, [true; 2]), ([DONE, DONE], [90, 80], None, false));
        // it was told of the end after that was held, or not
        let told = SocketCounts { written: 481, ..over };
        assert_eq!(after(&noted(DONE, DONE, true), told, [true; 2]).2, None);
        assert_eq!(after(&noted(DONE, DONE, true), SocketCounts { written: 480, ..over }, [true; 2]).2, Some(0));
        let no_end = SocketCounts { ended: false, ..told };
        assert_eq!(after(&noted(DONE, DONE, false), no_end, [true; 2]).2, Some(0));
    }

    #[test]
    fn bytes_in_memory_leave_a_doubt() {
        let mut held = noted(OPEN, OPEN, false);
        held.relay.up.held = SavedBytes::Buffer(SavedPart { number: 1, at: 0, end: 1 });
        assert_eq!(repair(&held, PEER, true, [false; 2]), Err(InDoubt));
    }
}
