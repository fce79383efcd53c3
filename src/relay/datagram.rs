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
//! datagrams are sent one by one, in one call, and [`RunLimit`] remembers it for this flow and direction.
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
//! | any that leaves: stop, handover, reload | | cleared, with [`leave`] |
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
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};

pub use crate::sys::Destination;
use crate::sys::{self, DatagramRoom, MESSAGES, OutgoingMessage};

/// The largest datagram, and the largest run that is received, in bytes: a 16-bit length.
const LARGEST: usize = 65_535;
/// The largest run that is sent, in bytes: what an IPv4 packet has beside its headers of 20 and 8 bytes.
const RUN: usize = 65_507;
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
pub struct Left {
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

/// Whether a datagram waits. An error of the socket stays.
fn waits(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|e| e.contains(PollFlags::POLLIN))
}

/// Receives what waits, and gives it to `take`: for each flow its datagrams, in the order in which they came.
///
/// # Errors
/// What recvmsg(2) says; `WouldBlock` when none waits.
pub fn receive(socket: BorrowedFd<'_>, take: impl FnMut(Asked, ReceivedGroup<'_>)) -> io::Result<Left> {
    ROOM.with_borrow_mut(|room| receive_in(room, socket, take))
}

fn receive_in(
    room: &mut DatagramRoom,
    socket: BorrowedFd<'_>,
    take: impl FnMut(Asked, ReceivedGroup<'_>),
) -> io::Result<Left> {
    let received = room.receive(socket, true)?;
    let left = Left { more: received.full, several: received.count() > 1, runs: received.runs };
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
pub fn receive_connected(socket: BorrowedFd<'_>, take: impl FnOnce(ReceivedGroup<'_>)) -> io::Result<Left> {
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
        Ok(Left { more: received.full, several: received.count() > 1, runs: received.runs })
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
pub enum To {
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
    /// Whether the way refused a run of datagrams of this size, rather than what is in it; that is remembered.
    fn refused(&self, size: u16, error: &io::Error) -> bool {
        let smaller = match error.raw_os_error() {
            Some(libc::EMSGSIZE | libc::EINVAL) => usize::from(size).saturating_sub(1),
            Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOBUFS | libc::ENOMEM) => 0,
            _ => return false,
        };
        self.0.fetch_min(smaller, Relaxed);
        true
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
    to: To,
    limit: &RunLimit,
    datagrams: Datagrams<'_>,
    mut tell: impl FnMut(SendEvent),
) -> usize {
    let (address, most) = match to {
        To::Connected => (None, 1),
        To::Asker(asked) => (Some((asked.peer, asked.at)), MESSAGES),
    };
    let mut done = 0;
    let mut earlier = None; // it may be the error of the next one, which that is to tell
    loop {
        let plan = SendPlan::new(datagrams.after(done), limit.0.load(Relaxed), most);
        let Some(first) = plan.messages().first() else { return done };
        match plan.send(socket, address) {
            Ok(n) => {
                earlier.take().into_iter().for_each(|error| tell(SendEvent::Refused(error)));
                let sent = &plan.messages()[..n];
                let count = sent.iter().map(|message| message.datagrams).sum();
                tell(SendEvent::Sent { datagrams: count, bytes: sent.iter().map(|message| message.bytes).sum() });
                done += count;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                earlier.into_iter().for_each(|error| tell(SendEvent::Refused(error)));
                return done;
            }
            Err(error) if first.size.is_some_and(|size| limit.refused(size, &error)) => {}
            Err(error) if earlier.is_none() && reports_an_earlier_one(&error) => earlier = Some(error),
            Err(error) => {
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
