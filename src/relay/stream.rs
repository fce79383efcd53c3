//! The full-duplex byte relay.
//!
//! # Theory
//! A relay is two [`Direction`]s over two [`RelayEnd`]s: *up* reads the peer and writes the upstream, *down* the reverse.
//! How each moves its bytes is told in [`super::direction`]. It is in one of three phases:
//!
//! * **Open**: bytes flow.
//! * **Deaf**: the destination takes no more (its reader closed) but the source still sends. What comes is read and
//!   dropped, so that the sender, busy sending, gets to read what the other direction still brings; without that a
//!   close with unread bytes would make the kernel send a reset, which can destroy the end of a reply.
//! * **Done**: the source ended and the destination was told (a half-close), or the source is gone.
//!
//! The relay ends when both directions are done: *eof*. A half-close ends one direction and nothing else.
//!
//! A **reset** of one side (a failing read or write of a socket) first lets that side's direction deliver what was
//! sent before (a socket's queue outlives the reset), then ends the relay; the session resets the other side. The
//! read that follows a failed write says "end", not "reset", because the kernel reports a reset once: the failure is
//! remembered here, and that end is not passed on: a truncated transfer never looks complete.
//!
//! A side that nobody reads at the moment (its direction is done, or holds bytes that the other side does not take)
//! is **watched** for being gone, by its readiness to write, which costs no system call. A child that closed its
//! standard input takes no more: the direction becomes deaf. Where bytes may still be delivered or worked on (a reset
//! sender with a slow receiver; a UNIX peer that closed entirely while the upstream still thinks), the relay goes on
//! until `LINGER` or `GONE_GRACE` has passed without a byte.
//!
//! An upstream whose end alone does not say whether it sent all it wanted (a child: its exit code tells, a moment later)
//! can have that end **held back** ([`Relay::hold_end`]): the relay stops there once, to be told whether to pass it on.
//!
//! After the last byte of *down* a deaf *up* goes on: as long as a part of the reply still waits in the peer's socket, until
//! nothing has moved for `GONE_GRACE` (an uploading client may read late); after that, for at most `LINGER` or
//! `LINGER_BYTES`.
//!
//! All state lives in the [`Relay`], none in a future's locals, and every wait is for readiness: the relay can be
//! dropped or parked between any two polls without losing a byte.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use super::{
    counters::Counters,
    direction::{Direction, ParkedDirection, Passing, Phase, Stuck},
    end::{ParkedEnd, RelayEnd},
    interrupt::Interrupt,
    outcome::{RelayOutcome, Side},
};
use crate::{
    crash::{SavedBases, SavedRelay, work_on},
    stream::{Gone, READS_COUNTED, Stream, StreamKind},
};

/// How long a peer that still sends is read and dropped after the last byte to it was written; and how long the last
/// bytes of a side that was reset may wait for a receiver that takes none. The purpose and order of magnitude are those of
/// nginx's `lingering_time` (30 s); shorter, because a call holds its place among those of its qube meanwhile.
const LINGER: Duration = Duration::from_secs(10);
/// How much of it, in bytes: well above what socket buffers hold (tcp_rmem and tcp_wmem end at 6 and 4 MiB).
const LINGER_BYTES: u64 = 64 << 20;
/// How often the relay asks how much of a reply still waits in the peer's socket: no event tells.
const DELIVERY_CHECK: Duration = Duration::from_secs(1);
/// The least that is moved at a time when there is more: a page.
const LEAST: u32 = 4096;
/// How long an upstream may go on without sending a byte after a UNIX peer closed entirely: the time the kernel gives
/// an orphaned TCP socket (tcp(7), tcp_fin_timeout).
const GONE_GRACE: Duration = Duration::from_secs(60);

/// A relay taken off the runtime: all that another process needs to go on with it.
#[derive(Debug)]
pub struct Parked {
    /// The peer's end.
    pub peer: ParkedEnd,
    /// The upstream's end.
    pub upstream: ParkedEnd,
    /// Peer to upstream.
    pub up: ParkedDirection,
    /// Upstream to peer.
    pub down: ParkedDirection,
    /// The side that was reset, when the last bytes of that side are still being delivered.
    pub reset_by: Option<Side>,
    /// The upstream has ended, and the peer was not told ([`Relay::hold_end`]); after a crash only.
    pub end_held: bool,
}

/// Purposes of a timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    /// The idle timeout.
    Idle,
    /// A deaf *up* after the end of *down*, a part of which still waits in the peer's socket.
    Delivery,
    /// A deaf *up* after the peer has acknowledged all of *down*; absolute.
    Linger,
    /// One side is gone; it starts again with every byte that still moves.
    Gone,
}

#[derive(Debug)]
struct Timer {
    purpose: Purpose,
    allowed: Duration,
    sleep: Pin<Box<Sleep>>,
    /// The bytes counted when they were last looked at, and when that was.
    seen: u64,
    moved: Instant,
}

impl Purpose {
    /// The longest sleep of a timer that is allowed to run for `allowed`.
    fn nap(self, allowed: Duration) -> Duration {
        if self == Self::Delivery { allowed.min(DELIVERY_CHECK) } else { allowed }
    }
}

impl Timer {
    /// Ready when the time has passed without a byte (for [`Purpose::Linger`]: has passed).
    fn poll(&mut self, cx: &mut Context<'_>, total: u64) -> Poll<()> {
        if self.seen != total && self.purpose != Purpose::Linger {
            (self.seen, self.moved) = (total, Instant::now());
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            // The deadline moves only when it is reached, not with every byte.
            let (deadline, now) = (self.moved + self.allowed, Instant::now());
            if deadline <= now {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(deadline.min(now + self.purpose.nap(self.allowed)));
        }
    }
}

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    peer: RelayEnd,
    upstream: RelayEnd,
    up: Direction,
    down: Direction,
    /// The side that was reset, and what the kernel said.
    fault: Option<Box<(Side, Option<io::Error>)>>,
    /// The time without bytes after which it ends.
    idle: Option<Duration>,
    /// Set only when there is something to wait for: an idle relay without a limit costs no timer.
    timer: Option<Box<Timer>>,
}

impl Relay {
    /// A relay between two connected ends. `idle` is the time without bytes after which it ends.
    pub fn new(peer: RelayEnd, upstream: RelayEnd, idle: Option<Duration>) -> Self {
        let (up, down) = (Direction::new(), Direction::new());
        Self { peer, upstream, up, down, fault: None, idle, timer: None }
    }

    /// Moves at most `bytes` at a time, and so holds no more; it knows best by itself.
    pub fn limit_buffer(&mut self, bytes: u32) {
        (self.up.most, self.down.most) = (bytes.max(LEAST), bytes.max(LEAST));
    }

    /// Takes up a relay that another process parked.
    pub fn resume(parked: Parked, idle: Option<Duration>) -> io::Result<Self> {
        let mut relay = Self {
            peer: RelayEnd::resume(parked.peer)?,
            upstream: RelayEnd::resume(parked.upstream)?,
            up: Direction::resume(parked.up),
            down: Direction::resume(parked.down),
            fault: parked.reset_by.map(|side| Box::new((side, None))),
            idle,
            timer: None,
        };
        if parked.end_held {
            relay.down.end = Passing::Held;
        }
        Ok(relay)
    }

    /// Keeps both directions in one gear for ever.
    #[cfg(test)]
    pub(super) fn force(mut self, gear: super::direction::Gear) -> Self {
        self.up.force(gear);
        self.down.force(gear);
        self
    }

    /// Takes the relay off the runtime, with every byte it holds. What was in a pipe is in memory from here on: a crash
    /// loses the session.
    pub fn park(mut self, counters: &Counters) -> Parked {
        if self.saved().in_pipe() {
            counters.checkpoint().moving();
        }
        self.pass_end();
        Parked {
            peer: self.peer.park(),
            upstream: self.upstream.park(),
            up: self.up.park(),
            down: self.down.park(),
            reset_by: self.fault.map(|f| f.0),
            end_held: false,
        }
    }

    /// State of the relay between two moves, for its checkpoint.
    pub fn saved(&self) -> SavedRelay {
        SavedRelay {
            up: self.up.saved(),
            down: self.down.saved(),
            reset_by: self.lost().map(|side| u8::from(side == Side::Upstream)),
            end_held: self.down.end == Passing::Held,
        }
    }

    /// Notes where the bytes are that the relay has taken up, before it moves any.
    pub fn note(&self, counters: &Counters) {
        self.up.note(counters.checkpoint().notes(0), self.has_child());
        self.down.note(counters.checkpoint().notes(1), self.has_child());
    }

    /// Whether bytes are held.
    fn holds(&self) -> bool {
        self.up.holds() || self.down.holds()
    }

    /// Whether a UNIX socket has counted so much that it has to begin anew.
    fn has_counted_much(&self, counters: &Counters) -> bool {
        let has = |stream: Option<&Stream>, n: usize, delivered: u64, direction: &Direction| {
            stream.is_some_and(|stream| stream.kind() == StreamKind::Unix)
                && counters
                    .checkpoint()
                    .base(n)
                    .is_some_and(|base| base.wrapping_add(delivered + direction.not_delivered()) >= READS_COUNTED)
        };
        has(self.peer.writer(), 0, counters.up(), &self.up)
            || has(self.upstream.writer(), 1, counters.down(), &self.down)
    }

    /// Saves from where the counts of the kernel go on. To be called while no byte is being moved.
    pub fn count_anew(&self, counters: &Counters) {
        if let Some(bases) = self.bases(counters) {
            counters.checkpoint().bases(&bases);
        }
    }

    /// What the kernel had counted on the peer's socket when nothing was relayed to or from a child.
    fn bases_of_call(&self, counters: &Counters) -> Option<SavedBases> {
        if self.holds() {
            return None;
        }
        counters.checkpoint().notes(0).unsure();
        let peer = self.peer.writer()?.counts()?;
        let read = peer.read.wrapping_sub(counters.up() + self.not_delivered()[0]);
        Some(SavedBases { read: [read, 0], written: [0, peer.written.wrapping_sub(counters.down())] })
    }

    /// What the kernel has counted on the two sockets when nothing was relayed: `None` where one does not count.
    fn bases(&self, counters: &Counters) -> Option<SavedBases> {
        if self.has_child() {
            return self.bases_of_call(counters);
        }
        let [peer, _, upstream] = self.streams();
        let (peer, upstream) = (peer?, upstream?);
        // Where TCP does not tell, what was known stays. A UNIX socket may begin anew, and whoever dies in between has moved
        // no byte: nobody asks for the bases.
        let of_tcp = [peer, upstream].map(|stream| (stream.kind() == StreamKind::Tcp).then(|| stream.counts()));
        if of_tcp.contains(&Some(None)) {
            return None;
        }
        counters.checkpoint().notes(0).unsure();
        let counts = |stream: &Stream, known: Option<_>| known.unwrap_or_else(|| stream.counts());
        let (peer, upstream) = (counts(peer, of_tcp[0])?, counts(upstream, of_tcp[1])?);
        let (delivered, rest) = ([counters.up(), counters.down()], self.not_delivered());
        // An end that was passed on counts as one, which the phase of its direction tells already.
        let (sides, others) = ([&peer, &upstream], [&upstream, &peer]);
        let read = [0, 1].map(|n| sides[n].read.wrapping_sub(delivered[n] + rest[n]));
        let written = [0, 1].map(|n| others[n].written.wrapping_sub(delivered[n]));
        Some(SavedBases { read, written })
    }

    /// Bytes dropped, and bytes held: up, down.
    pub fn not_delivered(&self) -> [u64; 2] {
        [&self.up, &self.down].map(Direction::not_delivered)
    }

    /// The peer, and the upstream's output and input: descriptors as far as they are open.
    pub fn streams(&self) -> [Option<&Stream>; 3] {
        [self.peer.writer(), self.upstream.reader(), self.upstream.writer()]
    }

    /// Whether the upstream is a child.
    pub fn has_child(&self) -> bool {
        !self.upstream.is_socket()
    }

    /// Keeps the upstream's end from the peer until [`Relay::pass_end`], where it has not come yet:
    /// [`RelayOutcome::UpstreamEnded`] says when it has.
    pub fn hold_end(&mut self) {
        if self.down.phase != Phase::Done {
            self.down.end = Passing::WhenTold;
        }
    }

    /// Tells the peer of the upstream's end, if that was held back; from now on it is not.
    pub fn pass_end(&mut self) {
        if self.down.end == Passing::Held {
            self.peer.finish();
        }
        self.down.end = Passing::AtOnce;
    }

    /// The writing end of `side`, while it is open.
    fn writer(&self, side: Side) -> Option<&Stream> {
        match side {
            Side::Peer => self.peer.writer(),
            Side::Upstream => self.upstream.writer(),
        }
    }

    /// Bytes written to `side` that a reset would still take back.
    pub fn undelivered(&self, side: Side) -> usize {
        self.writer(side).map_or(0, Stream::undelivered)
    }

    /// How long ago `side` acknowledged something, while something waits for an acknowledgement.
    pub fn unanswered(&self, side: Side) -> Option<Duration> {
        self.writer(side)?.unanswered()
    }

    /// The two ends, to be closed: peer, upstream.
    pub fn into_ends(self) -> (RelayEnd, RelayEnd) {
        (self.peer, self.upstream)
    }

    /// Moves bytes until the relay ends or is interrupted.
    ///
    /// # Cancel safety
    /// Safe: dropped at any await and called again, it goes on where it was.
    pub async fn run(&mut self, counters: &Counters, interrupt: &Interrupt) -> RelayOutcome {
        std::future::poll_fn(|cx| self.poll(cx, counters, interrupt)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, counters: &Counters, interrupt: &Interrupt) -> Poll<RelayOutcome> {
        if let Poll::Ready(why) = interrupt.poll(cx) {
            return Poll::Ready(RelayOutcome::Interrupted(why));
        }
        let checkpoint = counters.checkpoint();
        let _working = work_on(checkpoint.number());
        // Of a call, nothing is counted while bytes that came with a handover are held.
        let uncounted = self.has_child() && checkpoint.is_kept() && !checkpoint.has_bases();
        if uncounted || self.has_counted_much(counters) {
            self.count_anew(counters);
        }
        checkpoint.moving();
        let outcome = self.go_on(cx, counters);
        checkpoint.moved(&self.saved());
        outcome
    }

    /// Moves what can be moved now.
    fn go_on(&mut self, cx: &mut Context<'_>, counters: &Counters) -> Poll<RelayOutcome> {
        loop {
            self.poll_direction(cx, Side::Peer, counters);
            self.poll_direction(cx, Side::Upstream, counters);
            self.poll_watches(cx);
            if self.fault.is_none() && self.down.end == Passing::Held {
                return Poll::Ready(RelayOutcome::UpstreamEnded);
            }
            let ended = match self.lost() {
                Some(Side::Peer) => self.up.phase == Phase::Done,
                Some(Side::Upstream) => self.down.phase == Phase::Done,
                None => self.up.phase == Phase::Done && self.down.phase == Phase::Done,
            };
            if ended {
                return Poll::Ready(self.outcome());
            }
            match ready!(self.poll_timer(cx, counters)) {
                Purpose::Idle => return Poll::Ready(RelayOutcome::Idle),
                Purpose::Delivery | Purpose::Linger => self.up.give_up(),
                Purpose::Gone => self.give_up(),
            }
        }
    }

    /// The side that was reset.
    fn lost(&self) -> Option<Side> {
        self.fault.as_ref().map(|fault| fault.0)
    }

    /// No byte has moved for too long after one side was gone.
    fn give_up(&mut self) {
        match self.lost() {
            Some(Side::Peer) => self.up.give_up(),
            Some(Side::Upstream) => self.down.give_up(),
            None if self.up.phase == Phase::Done => self.down.give_up(),
            None => {
                self.up.give_up();
                self.fault = Some(Box::new((Side::Peer, None)));
            }
        }
    }

    /// Moves the bytes that `side` sends.
    fn poll_direction(&mut self, cx: &mut Context<'_>, side: Side, counters: &Counters) {
        let (direction, source, destination, notes) = match side {
            Side::Peer => (&mut self.up, &mut self.peer, &mut self.upstream, counters.checkpoint().notes(0)),
            Side::Upstream => (&mut self.down, &mut self.upstream, &mut self.peer, counters.checkpoint().notes(1)),
        };
        loop {
            let lost = self.fault.as_ref().is_some_and(|fault| fault.0 == side);
            let Poll::Ready(Err(fault)) = direction.poll(cx, source, destination, notes, lost) else { return };
            let (by, error) = match fault {
                Stuck::Source(error) => {
                    direction.phase = Phase::Done;
                    (side, error)
                }
                Stuck::Lost(error) => (side, error),
                Stuck::Destination(error) => {
                    direction.deafen();
                    if !destination.is_socket() {
                        continue; // a child that closed its input goes on with its output
                    }
                    (side.other(), error)
                }
            };
            self.fault.get_or_insert_with(|| Box::new((by, Some(error))));
        }
    }

    /// Looks after the sides that nobody reads: they can vanish without a read or a write to tell.
    fn poll_watches(&mut self, cx: &mut Context<'_>) {
        if self.fault.is_some() {
            return;
        }
        if !self.up.reads() && !self.down.stalled() && self.peer.is_socket() {
            match self.peer.writer().map(|s| s.poll_gone(cx)) {
                Some(Poll::Ready(Gone::Reset)) => self.fault = Some(Box::new((Side::Peer, None))),
                // (After our own half-close this would say no more than that the peer has half-closed, too.)
                Some(Poll::Ready(Gone::Closed)) if self.down.phase != Phase::Done => {
                    Self::start(&mut self.timer, Purpose::Gone, GONE_GRACE);
                }
                _ => {}
            }
        }
        if !self.down.reads() && !self.up.stalled() && self.up.phase != Phase::Done {
            match self.upstream.writer().map(|s| s.poll_gone(cx)) {
                Some(Poll::Ready(Gone::Reset)) if self.upstream.is_socket() => {
                    self.fault = Some(Box::new((Side::Upstream, None)));
                }
                Some(Poll::Ready(_)) if self.down.phase == Phase::Done && self.up.phase == Phase::Open => {
                    self.up.deafen();
                    cx.waker().wake_by_ref(); // to read and drop from now on
                }
                _ => {}
            }
        }
    }

    fn outcome(&mut self) -> RelayOutcome {
        match &mut self.fault {
            // The side is kept: the relay may still be parked.
            Some(fault) => RelayOutcome::Reset { by: fault.0, error: fault.1.take() },
            None => RelayOutcome::Eof { dropped: self.up.dropped },
        }
    }

    /// The timer for `purpose`, set to `allowed` from now unless it runs already.
    fn start(timer: &mut Option<Box<Timer>>, purpose: Purpose, allowed: Duration) -> &mut Timer {
        if timer.as_ref().is_some_and(|t| t.purpose != purpose) {
            *timer = None;
        }
        timer.get_or_insert_with(|| {
            let sleep = Box::pin(tokio::time::sleep(purpose.nap(allowed)));
            Box::new(Timer { purpose, allowed, sleep, seen: 0, moved: Instant::now() })
        })
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, counters: &Counters) -> Poll<Purpose> {
        let mut total = counters.up() + counters.down();
        if self.fault.is_some() {
            Self::start(&mut self.timer, Purpose::Gone, LINGER); // its last bytes wait for a slow receiver
        } else if self.up.phase == Phase::Deaf && self.down.phase == Phase::Done {
            let dropped = self.up.dropped;
            // TCP counts the end (FIN) as one byte, which is no part of the reply.
            let waiting = self.peer.writer().map_or(0, Stream::waiting).saturating_sub(1) as u64;
            if waiting > 0 {
                // It grows with every byte that the peer sends or takes: nothing more is written.
                total = dropped.wrapping_sub(waiting);
                Self::start(&mut self.timer, Purpose::Delivery, GONE_GRACE);
            } else {
                let lingers = self.timer.as_ref().is_some_and(|timer| timer.purpose == Purpose::Linger);
                let timer = Self::start(&mut self.timer, Purpose::Linger, LINGER);
                if !lingers {
                    timer.seen = dropped; // what came before does not count
                } else if dropped - timer.seen > LINGER_BYTES {
                    return Poll::Ready(Purpose::Linger);
                }
            }
        } else if let (None, Some(idle)) = (&self.timer, self.idle) {
            Self::start(&mut self.timer, Purpose::Idle, idle);
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        timer.poll(cx, total).map(|()| timer.purpose)
    }
}
