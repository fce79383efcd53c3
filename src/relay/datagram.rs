//! Datagrams: many are received in one call, and many sent.
//!
//! # Theory
//! A datagram costs the kernel more than its bytes do: a way down through the layers and a way up. A *run* saves that:
//! datagrams of one sender to one address, of equal size, the last one of which may be shorter, which the kernel takes and
//! gives as one message (udp(7)). A sender makes one with UDP_SEGMENT, or a network card as they arrive; a socket with
//! UDP_GRO receives it whole, with the size. Where no runs come, many messages are received in one call, and equal ones
//! that follow each other are sent as a run. Whatever the runs and calls, each flow is sent the same datagrams in the same
//! order, and each datagram once: runs are how datagrams travel, and nobody can tell them from single ones.
//!
//! Answers go out with sendmmsg(2), many messages in one call. To the upstream each message has a call of its own: an ICMP
//! error that an earlier datagram met is told by the next message, and sendmmsg(2) forgets the error of any but its first.
//!
//! **What refuses runs.** A way may take no run at all (EIO: IPsec and some devices) or none of datagrams so large (EMSGSIZE;
//! EINVAL before Linux 6.14: the kernel does not cut a run into fragments). The kernel sends nothing of such a run. Then its
//! datagrams are sent one by one, in one call, and [`RunLimit`] remembers it for this flow and direction. Where they go
//! neither way, or memory is short, the way is not the reason, and nothing is remembered.
//!
//! **UDP_GRO belongs to the socket, not to the process.** It stays when a socket goes to another process, and the listening
//! socket is the service manager's. A program that knows nothing of runs, such as an earlier version of this one, takes a
//! run for one large datagram. The size is told only while UDP_GRO is set, at the moment of the receive; whether a run is
//! queued whole, at the moment when it comes. So each process decides about UDP_GRO before its first receive:
//!
//! | the socket | comes from | UDP_GRO |
//! |---|---|---|
//! | a listener that is served | the manager, a handover, a crash, ourselves | set before the first receive |
//! | a listener that is refused | the same | cleared; its datagrams are dropped |
//! | an upstream of a flow that is taken up | a handover, a crash | set before the first receive |
//! | an upstream that was just dialled | ourselves | set when one receive brings several datagrams |
//! | any that leaves: stop, handover, reload | | cleared; where runs came before, with [`leave`] |
//! | any, after a crash | the process that died | as it was, until the next process sets it |
//!
//! The next process after a crash finds runs in the queue, sets UDP_GRO, and is told their sizes. Only a crash whose next
//! process is an *earlier version* has runs taken for large datagrams, until that version is replaced: nobody is left to
//! clear it.
//!
//! **Addresses.** A socket bound to a wildcard address answers from whatever address the route back prefers, which on a host
//! with several is not the one that was asked; the asker then takes the answer for a stranger's. So the kernel is asked for
//! each datagram's destination (ip(7) IP_PKTINFO, ipv6(7) IPV6_RECVPKTINFO), and told it as the source of the answer.
//!
//! A datagram is up to 65,507 bytes over IPv4 and 65,527 over IPv6 (without jumbograms), and may be empty: nothing
//! received is a datagram too, and no end.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    net::{SocketAddr, UdpSocket},
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};

pub use crate::sys::Destination;
use crate::sys::{self, DatagramRoom, MESSAGES, OutgoingMessage};

/// The largest datagram, and the largest run that is received, in bytes: a 16-bit length.
const LARGEST: usize = 65_535;
/// The largest run that is sent, in bytes. With the headers of its layers (Ethernet, IPv6, UDP: 62 bytes, and more with
/// options) it stays below what devices take in one piece, 65,536 bytes (GSO_LEGACY_MAX_SIZE of the kernel's netdevice.h).
const RUN: usize = 65_400;
/// The most datagrams of a run (UDP_MAX_SEGMENTS of the kernel's udp.h, the lowest of all versions).
const SEGMENTS: usize = 64;
/// The most pieces of memory that the messages of one call consist of.
const PARTS: usize = 64;
/// How often [`leave`] receives what waits: more than a queue of the largest default size (208 KiB) holds.
const LEAVING: usize = 16;

thread_local! {
    /// The buffers of all flows on this thread; nothing stays in them.
    static ROOM: RefCell<DatagramRoom> = RefCell::new(DatagramRoom::new(LARGEST));
}

/// What tells the flows of one listener apart: who asked, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The peer's address.
    pub peer: SocketAddr,
    /// Our address, on listeners that have several.
    pub at: Option<Destination>,
}

/// Datagrams of equal size that follow each other in memory, the last of which may be shorter; or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    bytes: &'a [u8],
    /// Size of each datagram but the last; not 0.
    size: usize,
}

impl<'a> Run<'a> {
    /// Datagrams of `size` bytes.
    fn new(bytes: &'a [u8], size: usize) -> Self {
        Self { bytes, size: size.max(1) }
    }

    /// A single datagram.
    pub fn one(bytes: &'a [u8]) -> Self {
        Self::new(bytes, bytes.len())
    }

    /// Where each datagram is.
    fn places(self) -> impl Iterator<Item = Range<usize>> {
        let len = self.bytes.len();
        (0..len.div_ceil(self.size).max(1)).map(move |n| n * self.size..len.min((n + 1) * self.size))
    }
}

/// Datagrams of one flow, in order: runs, the first datagrams of which may be done already.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams<'a> {
    runs: &'a [Run<'a>],
    done: usize,
}

impl<'a> Datagrams<'a> {
    /// All datagrams of these runs.
    pub fn of(runs: &'a [Run<'a>]) -> Self {
        Self { runs, done: 0 }
    }

    /// Those that follow the first `n` of these.
    pub fn after(self, n: usize) -> Self {
        Self { done: self.done + n, ..self }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.places().next().is_none()
    }

    /// Each datagram.
    pub fn iter(self) -> impl Iterator<Item = &'a [u8]> {
        self.places().map(move |(run, place)| &self.runs[run].bytes[place])
    }

    /// In which run each datagram is, and where.
    fn places(self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let all = self.runs.iter().enumerate().flat_map(|(index, run)| run.places().map(move |place| (index, place)));
        all.skip(self.done)
    }
}

/// What was received in one call for one flow.
#[derive(Debug)]
pub struct ReceivedGroup<'a> {
    /// The datagrams that are whole.
    pub datagrams: Datagrams<'a>,
    /// Datagrams that were larger than a buffer. They are dropped.
    pub truncated: usize,
}

/// What is left after a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfterReceive {
    /// More may wait.
    pub more: bool,
    /// Several messages came.
    pub several: bool,
    /// A run came.
    pub runs: bool,
}

/// Lets the kernel tell where each datagram was sent to, if that is not clear from the socket's own address.
///
/// # Errors
/// What setsockopt(2) says.
pub fn ask_for_destinations(socket: &UdpSocket) -> io::Result<()> {
    let local = socket.local_addr()?;
    if !local.ip().is_unspecified() {
        return Ok(());
    }
    match local {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
    }
    Ok(())
}

/// Has a socket receive runs whole, or each datagram for itself. A kernel that knows no runs (before Linux 5.0) receives
/// each for itself.
pub fn take_runs(socket: impl AsFd, whole: bool) {
    let _ = setsockopt(&socket.as_fd(), sockopt::UdpGroSegment, &whole);
}

/// Prepares a socket for a process that may know nothing of runs: none is queued whole from here on, and those that are
/// queued are received by `receive`, which tells whether it received something. It is asked a bounded number of times.
pub fn leave(socket: BorrowedFd<'_>, mut receive: impl FnMut() -> bool) {
    for _ in 0..LEAVING {
        take_runs(socket, false);
        if !waits(socket) {
            return;
        }
        // One by one in the meantime, a run that waits could not be told from a large datagram.
        take_runs(socket, true);
        if !receive() {
            break;
        }
    }
    take_runs(socket, false);
}

/// Waits until a socket has room, at most this long.
pub fn wait_for_room(socket: BorrowedFd<'_>, most: Duration) {
    let mut fds = [PollFd::new(socket, PollFlags::POLLOUT)];
    let _ = poll(&mut fds, PollTimeout::try_from(most).unwrap_or(PollTimeout::ZERO));
}

/// Whether a datagram waits. An error of the socket stays.
fn waits(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|e| e.contains(PollFlags::POLLIN))
}

/// Receives what waits, and gives it to `take`: for each flow its datagrams, in the order in which they came.
///
/// # Errors
/// What recvmsg(2) says; `WouldBlock` when none waits.
pub fn receive(socket: BorrowedFd<'_>, take: impl FnMut(Asked, ReceivedGroup<'_>)) -> io::Result<AfterReceive> {
    ROOM.with_borrow_mut(|room| receive_in(room, socket, take))
}

fn receive_in(
    room: &mut DatagramRoom,
    socket: BorrowedFd<'_>,
    take: impl FnMut(Asked, ReceivedGroup<'_>),
) -> io::Result<AfterReceive> {
    let received = room.receive(socket, true)?;
    let left = AfterReceive { more: received.full, several: received.count() > 1, runs: received.runs };
    grouped(
        received.iter().filter_map(|message| {
            let asked = Asked { peer: message.from?, at: message.to };
            Some((asked, Run::new(message.bytes, message.size.unwrap_or(message.bytes.len())), message.truncated))
        }),
        take,
    );
    Ok(left)
}

/// Receives on a connected socket what waits, and gives it to `take`.
///
/// # Errors
/// What recvmsg(2) says: `WouldBlock` when none waits, `ConnectionRefused` for an ICMP error that came back.
pub fn receive_connected(socket: BorrowedFd<'_>, take: impl FnOnce(ReceivedGroup<'_>)) -> io::Result<AfterReceive> {
    ROOM.with_borrow_mut(|room| {
        let received = room.receive(socket, false)?;
        let mut runs = [Run::one(&[]); MESSAGES];
        let (mut n, mut truncated) = (0, 0);
        for message in received.iter() {
            match message.truncated {
                true => truncated += 1,
                false => {
                    runs[n] = Run::new(message.bytes, message.size.unwrap_or(message.bytes.len()));
                    n += 1;
                }
            }
        }
        take(ReceivedGroup { datagrams: Datagrams::of(&runs[..n]), truncated });
        Ok(AfterReceive { more: received.full, several: received.count() > 1, runs: received.runs })
    })
}

/// Gives `take` the runs of each flow together: at most [`MESSAGES`], in their order.
fn grouped<'a>(messages: impl Iterator<Item = (Asked, Run<'a>, bool)>, mut take: impl FnMut(Asked, ReceivedGroup<'_>)) {
    let mut waiting = [const { None }; MESSAGES];
    let mut n = 0;
    for (slot, message) in waiting.iter_mut().zip(messages) {
        *slot = Some(message);
        n += 1;
    }
    for first in 0..n {
        let Some((asked, ..)) = waiting[first] else { continue };
        let mut runs = [Run::one(&[]); MESSAGES];
        let (mut of_flow, mut truncated) = (0, 0);
        for slot in &mut waiting[first..n] {
            let Some((_, run, cut)) = slot.take_if(|(other, ..)| *other == asked) else { continue };
            match cut {
                true => truncated += 1,
                false => {
                    runs[of_flow] = run;
                    of_flow += 1;
                }
            }
        }
        take(asked, ReceivedGroup { datagrams: Datagrams::of(&runs[..of_flow]), truncated });
    }
}

/// Where datagrams go: to the other end of a connected socket, or as an answer to who asked.
#[derive(Clone, Copy, Debug)]
pub enum SendTo {
    /// The other end.
    Connected,
    /// Who asked, from the address that was asked.
    Asker(Asked),
}

/// The largest datagram of a run that a way takes, in bytes; 0: it takes no runs.
#[derive(Debug)]
pub struct RunLimit(AtomicUsize);

impl Default for RunLimit {
    fn default() -> Self {
        Self(LARGEST.into())
    }
}

impl RunLimit {
    /// The largest datagram of a run that is left where the way may have refused a run of datagrams of this size; `None`
    /// for an error of what is in it.
    fn below(size: u16, error: &io::Error) -> Option<usize> {
        match error.raw_os_error() {
            Some(libc::EMSGSIZE | libc::EINVAL) => Some(usize::from(size).saturating_sub(1)),
            Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOBUFS | libc::ENOMEM) => Some(0),
            _ => None,
        }
    }

    /// Whether the reason is the memory of this moment, rather than the way.
    fn passes(error: &io::Error) -> bool {
        matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
    }
}

/// What became of datagrams.
#[derive(Debug)]
pub enum SendEvent {
    /// So many were sent, with so many bytes in all.
    Sent { datagrams: usize, bytes: usize },
    /// An earlier one met this error, which the kernel reports now.
    Refused(io::Error),
    /// So many could not be sent.
    Unsent { datagrams: usize, error: io::Error },
}

/// Sends datagrams, in order. An ICMP error that an earlier one met is reported by the next call: that is no reason not to
/// send these. `tell` hears what becomes of them.
///
/// Gives the number of those that are dealt with; less than all when there is no room for more.
pub fn send(
    socket: BorrowedFd<'_>,
    to: SendTo,
    limit: &RunLimit,
    datagrams: Datagrams<'_>,
    mut tell: impl FnMut(SendEvent),
) -> usize {
    let (address, most) = match to {
        SendTo::Connected => (None, 1),
        SendTo::Asker(asked) => (Some((asked.peer, asked.at)), MESSAGES),
    };
    let mut done = 0;
    let mut earlier = None; // it may be the error of the next one, which that is to tell
    // For the rest of this call, and for good as soon as its datagrams went one by one: an address that is gone refuses both.
    let (mut smaller, mut of_the_way) = (LARGEST, false);
    loop {
        let plan = SendPlan::new(datagrams.after(done), limit.0.load(Relaxed).min(smaller), most);
        let Some(first) = plan.messages().first() else { return done };
        match plan.send(socket, address) {
            Ok(n) => {
                earlier.take().into_iter().for_each(|error| tell(SendEvent::Refused(error)));
                if std::mem::take(&mut of_the_way) {
                    limit.0.fetch_min(smaller, Relaxed);
                }
                let sent = &plan.messages()[..n];
                let count = sent.iter().map(|message| message.datagrams).sum();
                tell(SendEvent::Sent { datagrams: count, bytes: sent.iter().map(|message| message.bytes).sum() });
                done += count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                earlier.into_iter().for_each(|error| tell(SendEvent::Refused(error)));
                return done;
            }
            Err(error) if first.size.is_some_and(|size| RunLimit::below(size, &error).is_some()) => {
                smaller = smaller.min(first.size.and_then(|size| RunLimit::below(size, &error)).unwrap_or(0));
                of_the_way = !RunLimit::passes(&error);
            }
            Err(error) if earlier.is_none() && reports_an_earlier_one(&error) => earlier = Some(error),
            Err(error) => {
                of_the_way = false;
                // A way that does not exist is an error of this one, each time.
                let before = earlier.take();
                let same = |before: &io::Error| before.raw_os_error() == error.raw_os_error() && !is_refusal(&error);
                before.into_iter().filter(|e| !same(e)).for_each(|error| tell(SendEvent::Refused(error)));
                tell(SendEvent::Unsent { datagrams: first.datagrams, error });
                done += first.datagrams;
            }
        }
    }
}

fn reports_an_earlier_one(error: &io::Error) -> bool {
    is_refusal(error) || matches!(error.raw_os_error(), Some(libc::EHOSTUNREACH | libc::ENETUNREACH))
}

fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECONNREFUSED)
}

/// A message to be sent: pieces of memory, one after the other.
#[derive(Clone, Copy, Debug, Default)]
struct PlannedMessage {
    /// The number of pieces of this message and those before it.
    pieces: usize,
    /// In a run, the size of each datagram but the last.
    size: Option<u16>,
    datagrams: usize,
    bytes: usize,
}

/// The messages of one call: datagrams of equal size that follow each other are a run.
struct SendPlan<'a> {
    runs: &'a [Run<'a>],
    /// In which run a piece is, where it begins and ends.
    pieces: [(usize, usize, usize); PARTS],
    messages: [PlannedMessage; MESSAGES],
    n: usize,
}

impl<'a> SendPlan<'a> {
    /// At most `most` messages of the first of these datagrams, none of more than `limit` bytes in a run.
    fn new(datagrams: Datagrams<'a>, limit: usize, most: usize) -> Self {
        let mut plan = Self {
            runs: datagrams.runs,
            pieces: [(0, 0, 0); PARTS],
            messages: [PlannedMessage::default(); MESSAGES],
            n: 0,
        };
        let (mut places, mut used) = (datagrams.places().peekable(), 0);
        while plan.n < most.min(MESSAGES) && used < PARTS {
            let Some((run, place)) = places.next() else { break };
            let size = place.len();
            let mut message = PlannedMessage { pieces: 0, size: None, datagrams: 1, bytes: size };
            plan.pieces[used] = (run, place.start, place.end);
            used += 1;
            let (mut open, limited) = (size > 0 && size <= limit, u16::try_from(size).ok());
            while open && message.datagrams < SEGMENTS {
                let last = plan.pieces[used - 1];
                let fits = |(run, place): &(usize, Range<usize>)| {
                    let follows = (last.0, last.2) == (*run, place.start);
                    (1..=size).contains(&place.len()) && message.bytes + place.len() <= RUN && (follows || used < PARTS)
                };
                let Some((run, place)) = places.next_if(fits) else { break };
                match (last.0, last.2) == (run, place.start) {
                    true => plan.pieces[used - 1].2 = place.end,
                    false => {
                        plan.pieces[used] = (run, place.start, place.end);
                        used += 1;
                    }
                }
                message.datagrams += 1;
                message.bytes += place.len();
                message.size = limited;
                open = place.len() == size;
            }
            message.pieces = used;
            plan.messages[plan.n] = message;
            plan.n += 1;
        }
        plan
    }

    fn messages(&self) -> &[PlannedMessage] {
        &self.messages[..self.n]
    }

    /// Sends them; how many were sent.
    fn send(&self, socket: BorrowedFd<'_>, to: Option<(SocketAddr, Option<Destination>)>) -> io::Result<usize> {
        let mut parts = [IoSlice::new(&[]); PARTS];
        for (part, (run, start, end)) in parts.iter_mut().zip(self.pieces) {
            *part = IoSlice::new(self.runs.get(run).map_or(&[], |run| &run.bytes[start..end]));
        }
        let mut messages = [OutgoingMessage { parts: &[], size: None }; MESSAGES];
        let mut from = 0;
        for (outgoing, planned) in messages.iter_mut().zip(self.messages()) {
            *outgoing = OutgoingMessage { parts: &parts[from..planned.pieces], size: planned.size };
            from = planned.pieces;
        }
        sys::send_datagrams(socket, to, &messages[..self.n])
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use proptest::prelude::*;

    use super::*;

    /// What the kernel makes of a message.
    fn on_the_wire(plan: &SendPlan<'_>) -> Vec<Vec<u8>> {
        let mut from = 0;
        let message = |message: &PlannedMessage| {
            let pieces = &plan.pieces[from..message.pieces];
            from = message.pieces;
            let bytes: Vec<u8> = pieces.iter().flat_map(|(run, a, b)| plan.runs[*run].bytes[*a..*b].to_vec()).collect();
            assert_eq!(bytes.len(), message.bytes);
            let datagrams: Vec<Vec<u8>> = match message.size {
                None => vec![bytes],
                Some(size) => bytes.chunks(size.into()).map(<[u8]>::to_vec).collect(),
            };
            assert_eq!(datagrams.len(), message.datagrams);
            if message.size.is_some() {
                assert!((2..=SEGMENTS).contains(&datagrams.len()) && message.bytes <= RUN);
            }
            datagrams
        };
        plan.messages().iter().flat_map(message).collect()
    }

    /// The datagrams of a run, each with a content of its own.
    fn run_of(size: usize, full: usize, last: usize, seed: u8) -> (Vec<u8>, usize) {
        let len = (size * full + last).min(LARGEST);
        ((0..len).map(|n| seed.wrapping_add((n / size.max(1)) as u8)).collect(), size.max(1))
    }

    fn a_run() -> impl Strategy<Value = (Vec<u8>, usize)> {
        let small = (0usize..5, 0usize..70, 0usize..5, any::<u8>());
        let large = (1200usize..1203, 0usize..55, 0usize..1200, any::<u8>());
        let huge = (60_000usize..65_507, 1usize..2, 0usize..1, any::<u8>());
        prop_oneof![4 => small, 2 => large, 1 => huge]
            .prop_map(|(size, full, last, seed)| run_of(size, full, last % size.max(1), seed))
    }

    proptest! {
        /// However the datagrams came, and however few of the messages of a call are sent: the same ones go out, in order.
        #[test]
        fn a_flow_is_sent_its_datagrams_once_and_in_order(
            runs in prop::collection::vec(a_run(), 0..12),
            limit in prop_oneof![Just(LARGEST), Just(0), 1usize..1300],
            most in 1usize..=MESSAGES,
            sent in prop::collection::vec(1usize..=MESSAGES, 1..4),
        ) {
            let runs: Vec<_> = runs.iter().map(|(bytes, size)| Run::new(bytes, *size)).collect();
            let all = Datagrams::of(&runs);
            let mut out = Vec::new();
            for turn in 0.. {
                let mut plan = SendPlan::new(all.after(out.len()), limit, most);
                prop_assert!(plan.messages().iter().all(|m| m.size.is_none_or(|size| usize::from(size) <= limit)));
                plan.n = plan.n.min(sent[turn % sent.len()]);
                if plan.n == 0 {
                    break;
                }
                out.extend(on_the_wire(&plan));
            }
            let wanted: Vec<_> = all.iter().map(<[u8]>::to_vec).collect();
            prop_assert_eq!(out, wanted);
        }

        /// However what came is split into calls and runs: each flow has the same datagrams in the same order.
        #[test]
        fn any_split_into_calls_gives_the_same_datagrams_to_the_same_flows(
            messages in prop::collection::vec((0u16..4, a_run(), prop::bool::weighted(0.1)), 0..80),
            calls in prop::collection::vec(1usize..=MESSAGES, 1..5),
        ) {
            let asked = |port: u16| Asked { peer: SocketAddr::from(([127, 0, 0, 1], 1 + port)), at: None };
            let mut wanted: BTreeMap<u16, (Vec<Vec<u8>>, usize)> = BTreeMap::new();
            for (port, (bytes, size), cut) in &messages {
                let (whole, truncated) = wanted.entry(port + 1).or_default();
                match cut {
                    true => *truncated += 1,
                    false => whole.extend(Datagrams::of(&[Run::new(bytes, *size)]).iter().map(<[u8]>::to_vec)),
                }
            }
            let mut given: BTreeMap<u16, (Vec<Vec<u8>>, usize)> = BTreeMap::new();
            let (mut rest, mut turn) = (messages.as_slice(), 0);
            while !rest.is_empty() {
                let (call, after) = rest.split_at(calls[turn % calls.len()].min(rest.len()));
                let call = call.iter().map(|(port, (bytes, size), cut)| (asked(*port), Run::new(bytes, *size), *cut));
                let mut seen = Vec::new();
                grouped(call, |asked, group| {
                    assert!(!seen.contains(&asked), "a flow is given all of a call at once");
                    seen.push(asked);
                    let (whole, truncated) = given.entry(asked.peer.port()).or_default();
                    whole.extend(group.datagrams.iter().map(<[u8]>::to_vec));
                    *truncated += group.truncated;
                });
                (rest, turn) = (after, turn + 1);
            }
            prop_assert_eq!(given, wanted);
        }
    }

    /// A sender, connected to a receiver that takes runs whole.
    fn pair(ip: &str) -> (UdpSocket, UdpSocket) {
        let [sender, receiver] = [(); 2].map(|()| UdpSocket::bind(format!("{ip}:0")).expect("a free port"));
        sender.connect(receiver.local_addr().expect("bound")).expect("a socket");
        receiver.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
        take_runs(&receiver, true);
        (sender, receiver)
    }

    /// Sends to the other end: how many were sent, and the rest of what is told.
    fn send_all(sender: &UdpSocket, limit: &RunLimit, runs: &[Run<'_>]) -> (usize, Vec<SendEvent>) {
        let (mut sent, mut told) = (0, Vec::new());
        let done = send(sender.as_fd(), SendTo::Connected, limit, Datagrams::of(runs), |event| match event {
            SendEvent::Sent { datagrams, .. } => sent += datagrams,
            event => told.push(event),
        });
        let unsent =
            told.iter().map(|event| if let SendEvent::Unsent { datagrams, .. } = event { *datagrams } else { 0 });
        assert_eq!(done, sent + unsent.sum::<usize>());
        (sent, told)
    }

    /// Receives `n` datagrams; whether a run was among them.
    fn receive_n(receiver: &UdpSocket, n: usize) -> (Vec<Vec<u8>>, bool) {
        let (mut received, mut runs) = (Vec::new(), false);
        while received.len() < n {
            let mut fds = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, 10_000u16), Ok(1), "{} of {n} datagrams came", received.len());
            let left = receive(receiver.as_fd(), |_, group| {
                received.extend(group.datagrams.iter().map(<[u8]>::to_vec));
            });
            runs |= left.expect("a socket").runs;
        }
        assert!(!waits(receiver.as_fd()));
        (received, runs)
    }

    #[test]
    fn datagrams_of_every_size_and_runs_come_through_the_kernel_as_they_were() {
        for ip in ["127.0.0.1", "[::1]"] {
            let (sender, receiver) = pair(ip);
            for pieces in [
                vec![(0, 0, 0), (1, 0, 1), (0, 0, 0)],
                vec![(1200, 20, 7)],
                vec![(1200, 20, 0), (1200, 3, 1199), (1, 40, 0), (0, 0, 0), (0, 0, 0)],
                vec![(65_507, 1, 0)],
                vec![(32_000, 2, 1400), (9, 0, 3)],
                vec![(32_000, 2, 1507), (9, 0, 3)],
                vec![(4, 130, 3)],
            ] {
                let pieces: Vec<_> =
                    (0..).zip(&pieces).map(|(n, (size, full, last))| run_of(*size, *full, *last, n)).collect();
                let runs: Vec<_> = pieces.iter().map(|(bytes, size)| Run::new(bytes, *size)).collect();
                let wanted: Vec<_> = Datagrams::of(&runs).iter().map(<[u8]>::to_vec).collect();
                let (sent, told) = send_all(&sender, &RunLimit::default(), &runs);
                assert!(sent == wanted.len() && told.is_empty(), "{told:?}");
                let (received, whole) = receive_n(&receiver, wanted.len());
                assert!(received == wanted, "{ip}: {} datagrams", wanted.len());
                let equal = wanted.windows(2).any(|two| !two[1].is_empty() && two[0].len() >= two[1].len());
                assert_eq!(whole, equal, "{ip}: what can travel as a run does");
            }
        }
    }

    #[test]
    fn a_way_that_refuses_runs_loses_none_of_them_and_is_remembered() {
        let (sender, receiver) = pair("127.0.0.1");
        let limit = RunLimit::default();
        let (bytes, size) = run_of(1000, 10, 5, 1);
        let (smaller, of) = run_of(900, 10, 5, 2);
        // Without checksums the kernel refuses runs (EINVAL, net/ipv4/udp.c udp_send_skb).
        let no_checksums = |on| sys::send_no_checksums(sender.as_fd(), on).expect("an option");
        no_checksums(true);
        let (sent, told) = send_all(&sender, &limit, &[Run::new(&bytes, size)]);
        assert!(sent == 11 && told.is_empty(), "{told:?}");
        let (received, whole) = receive_n(&receiver, 11);
        assert!(received.concat() == bytes && !whole);
        assert_eq!(limit.0.load(Relaxed), 999);
        // Now it takes them again: smaller ones go as a run, those that were refused do not.
        no_checksums(false);
        for (bytes, size, run) in [(&bytes, size, false), (&smaller, of, true)] {
            assert_eq!(send_all(&sender, &limit, &[Run::new(bytes, size)]).0, 11);
            let (received, whole) = receive_n(&receiver, 11);
            assert!(received.concat() == *bytes);
            assert_eq!(whole, run);
        }
        let below = |number| RunLimit::below(900, &io::Error::from_raw_os_error(number));
        assert_eq!(below(libc::EIO), Some(0), "no run at all");
        assert_eq!(below(libc::EPERM), None, "that is no word about runs");
    }

    #[test]
    fn a_way_that_takes_single_datagrams_no_more_than_runs_is_not_remembered_as_one_without_runs() {
        let (sender, receiver) = pair("127.0.0.1");
        drop(receiver);
        // The far side of this pair has a port, and this side an address that it does not have: both are refused (EINVAL).
        let limit = RunLimit::default();
        let (bytes, size) = run_of(1000, 10, 5, 1);
        let datagrams = [Run::new(&bytes, size)];
        let peer = sender.peer_addr().expect("a pair");
        let unconnected = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let gone = Destination { ip: "192.0.2.77".parse().expect("an address"), interface: 0 };
        let mut unsent = 0;
        let to = To::Asker(Asked { peer, at: Some(gone) });
        let done = send(unconnected.as_fd(), to, &limit, Datagrams::of(&datagrams), |event| {
            if let SendEvent::Unsent { datagrams, .. } = event {
                unsent += datagrams;
            }
        });
        assert_eq!((done, unsent), (11, 11));
        assert_eq!(limit.0.load(Relaxed), LARGEST);
    }

    #[test]
    fn a_datagram_that_is_larger_than_a_buffer_is_dropped_and_told() {
        let (sender, receiver) = pair("127.0.0.1");
        let (small, large) = ([1; 100], [2; 101]);
        send_all(&sender, &RunLimit(0.into()), &[Run::one(&small), Run::one(&large), Run::one(&small)]);
        let mut room = DatagramRoom::new(100);
        let mut groups = Vec::new();
        let left = receive_in(&mut room, receiver.as_fd(), |_, group| {
            groups.push((group.datagrams.iter().map(<[u8]>::to_vec).collect::<Vec<_>>(), group.truncated));
        });
        assert_eq!(left.expect("a socket"), AfterReceive { more: false, several: true, runs: false });
        assert_eq!(groups, [(vec![small.to_vec(); 2], 1)]);
    }

    #[test]
    fn a_refusal_is_told_once_and_stops_nothing() {
        let (sender, receiver) = pair("127.0.0.1");
        let address = receiver.local_addr().expect("bound");
        drop(receiver);
        let (first, rest) = ([1; 10], [[2; 10], [3; 10]]);
        // runs are not allowed, so that these are three calls; the first and the second are refused
        let runs = [Run::one(&first), Run::one(&rest[0]), Run::one(&rest[1])];
        let (sent, told) = send_all(&sender, &RunLimit(0.into()), &runs);
        assert_eq!(sent, 3, "{told:?}");
        assert!(
            matches!(&told[..], [SendEvent::Refused(a), SendEvent::Refused(b)] if is_refusal(a) && is_refusal(b)),
            "{told:?}"
        );
        let receiver = UdpSocket::bind(address).expect("it was free");
        assert_eq!(send_all(&sender, &RunLimit::default(), &[Run::one(&first)]).0, 1);
        receive_n(&receiver, 1);
    }

    /// Why UDP_GRO must be cleared before a socket leaves, and when it can be.
    #[test]
    fn a_run_that_is_queued_whole_is_told_apart_only_while_runs_are_taken() {
        let (sender, receiver) = pair("127.0.0.1");
        let (bytes, size) = run_of(1000, 5, 0, 1);
        let mut buffer = vec![0; LARGEST];
        for again in [false, true] {
            send_all(&sender, &RunLimit::default(), &[Run::new(&bytes, size)]);
            take_runs(&receiver, false);
            if again {
                take_runs(&receiver, true); // the next process, after a crash of this one
                assert_eq!(receive_n(&receiver, 5), (bytes.chunks(size).map(<[u8]>::to_vec).collect(), true));
            } else {
                assert_eq!(
                    receiver.recv(&mut buffer).expect("it waits"),
                    5000,
                    "an earlier version: one large datagram"
                );
            }
            take_runs(&receiver, true);
        }
    }

    #[test]
    fn a_socket_that_leaves_has_no_run_for_a_process_that_knows_none() {
        let (sender, receiver) = pair("127.0.0.1");
        let (bytes, size) = run_of(1000, 20, 0, 1);
        let (limit, run) = (RunLimit::default(), [Run::new(&bytes, size)]);
        send_all(&sender, &limit, &run);
        let mut received = Vec::new();
        let mut receives = 0;
        leave(receiver.as_fd(), || {
            receives += 1;
            let came =
                receive(receiver.as_fd(), |_, group| received.extend(group.datagrams.iter().map(<[u8]>::to_vec)));
            if receives == 1 {
                send_all(&sender, &limit, &run); // it comes while runs are still taken
            }
            came.is_ok()
        });
        assert_eq!((receives, received.len()), (2, 40));
        send_all(&sender, &limit, &run);
        let mut buffer = vec![0; LARGEST];
        for _ in 0..20 {
            assert_eq!(receiver.recv(&mut buffer).expect("it waits"), 1000);
        }
        // What never ends is not waited for.
        let mut turns = 0;
        send_all(&sender, &limit, &run);
        leave(receiver.as_fd(), || {
            turns += 1;
            true
        });
        assert_eq!(turns, LEAVING);
    }

    #[test]
    fn answers_come_from_the_address_that_was_asked_in_runs_and_without() {
        for (bind, asked) in [("0.0.0.0", "127.0.0.7"), ("[::]", "127.0.0.7"), ("[::]", "[::1]")] {
            let listener = UdpSocket::bind(format!("{bind}:0")).expect("a free port");
            ask_for_destinations(&listener).expect("an option");
            take_runs(&listener, true);
            let port = listener.local_addr().expect("bound").port();
            let home = if asked.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
            let asker = UdpSocket::bind(home).expect("a free port");
            asker.connect(format!("{asked}:{port}")).expect("a socket");
            take_runs(&asker, true);
            asker.send(b"?").expect("sent");
            let mut who = None;
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, 10_000u16), Ok(1));
            receive(listener.as_fd(), |asked, _| who = Some(asked)).expect("it waits");
            let who = who.expect("somebody asked");
            let (bytes, size) = run_of(500, 6, 3, 1);
            let odd = [[1; 9].as_slice(), &[], &[2; 20]];
            let runs = [Run::new(&bytes, size), Run::one(odd[0]), Run::one(odd[1]), Run::one(odd[2])];
            let mut sent = 0;
            let done =
                send(listener.as_fd(), SendTo::Asker(who), &RunLimit::default(), Datagrams::of(&runs), |event| {
                    assert!(matches!(event, SendEvent::Sent { .. }), "{event:?}");
                    sent += 1;
                });
            assert_eq!((done, sent), (10, 1), "one call");
            // the asker is connected: it hears that address alone
            let (received, whole) = receive_n(&asker, 10);
            assert!(whole && received.concat() == [bytes.as_slice(), odd[0], odd[2]].concat());
        }
    }
}
