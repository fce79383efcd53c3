//! The flows of one UDP listener: each has an upstream socket of its own, so that answers find their asker.
//!
//! # Theory
//! The listener's task receives for all flows and passes each datagram on at once; a flow's own task brings back what
//! its upstream answers ([`super::flow`]). A flow is known by its peer *and* by the address of ours that the peer asked,
//! from which it is answered ([`crate::relay::datagram`]).

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::yield_now,
    time::{Instant, sleep},
};

use super::{
    doubt::Doubt,
    event,
    info::SessionInfo,
    parked::{FlowKept, ParkedStage},
};
use crate::{
    crash::{self, DescriptorKey},
    dial::{NotedSocket, UdpEnds, note_flow},
    log::{self, Reminder},
    relay::{
        Why,
        datagram::{self, Asked},
    },
    sys::{self, lock},
};

/// Datagrams brought back in one go, before a flow's task lets others run.
const BATCH: usize = 64;
/// Datagrams that wait for a flow's upstream to be looked up; further datagrams are dropped.
const WAITING: usize = 64;
/// The most bytes that wait so in all flows of a listener.
const HELD: usize = 16 << 20;
/// When a refusal of a datagram is known: over loopback and veth it takes 0.3 ms.
const REFUSED: Duration = Duration::from_millis(1);
/// What a flow's task waits for: an answer, or an ICMP error.
const NEWS: Interest = Interest::READABLE.add(Interest::ERROR);
/// How long an answer waits for room in the listener's socket: that of some hundred datagrams on a fast network.
const FULL: Duration = Duration::from_millis(1);

/// A UDP socket that is listened on, and its flows.
#[derive(Debug)]
pub struct Flows {
    io: AsyncFd<OwnedFd>,
    table: Mutex<HashMap<Asked, Arc<Flow>>>,
    /// Bytes of all datagrams that wait for an upstream.
    held: Arc<AtomicUsize>,
    /// When it was told last that these are [`HELD`].
    full: Mutex<Reminder>,
}

/// A peer of a UDP listener, and its upstream socket.
#[derive(Debug)]
pub struct Flow {
    asked: Asked,
    info: Arc<SessionInfo>,
    /// The flows of the same listener; gone when the listener is closed.
    listener: Weak<Flows>,
    way: Mutex<FlowWay>,
    /// When a datagram passed last, in milliseconds of the flow's clock.
    last_ms: AtomicU64,
    /// Beginning of the flow's clock.
    began: Instant,
    /// The doubts about the upstream, and the losses.
    doubt: Doubt,
    /// Why another flow was given the place of this one.
    evicted: OnceLock<Eviction>,
}

/// Where the datagrams of a flow's peer go.
#[derive(Debug)]
enum FlowWay {
    /// They wait for the upstream.
    Waiting(HeldDatagrams),
    Open(Arc<FlowUpstream>),
    /// The flow is over: the next datagram begins another.
    Over,
}

/// The datagrams of a flow that wait for its upstream, the first one first.
#[derive(Debug)]
struct HeldDatagrams {
    datagrams: VecDeque<Vec<u8>>,
    /// Bytes of those of all flows of the listener.
    held: Arc<AtomicUsize>,
}

impl HeldDatagrams {
    fn of(listener: &Flows) -> Self {
        Self { datagrams: VecDeque::new(), held: listener.held.clone() }
    }

    /// Whether there was room for it.
    fn push(&mut self, bytes: &[u8]) -> bool {
        let room = self.held.fetch_add(bytes.len(), Relaxed) + bytes.len() <= HELD;
        match room {
            true => self.datagrams.push_back(bytes.to_vec()),
            false => _ = self.held.fetch_sub(bytes.len(), Relaxed),
        }
        room
    }

    /// Lets the first one go, or the last one (`newest`).
    fn pop(&mut self, newest: bool) {
        let popped = if newest { self.datagrams.pop_back() } else { self.datagrams.pop_front() };
        self.held.fetch_sub(popped.map_or(0, |bytes| bytes.len()), Relaxed);
    }

    fn take(&mut self) -> Vec<Vec<u8>> {
        let taken = std::mem::take(&mut self.datagrams);
        self.held.fetch_sub(taken.iter().map(Vec::len).sum(), Relaxed);
        taken.into()
    }
}

impl Drop for HeldDatagrams {
    fn drop(&mut self) {
        self.take();
    }
}

/// The upstream socket of a flow, and where it leads.
#[derive(Debug)]
pub(super) struct FlowUpstream {
    /// Dropped before the socket is closed.
    _noted: Option<NotedSocket>,
    io: AsyncFd<OwnedFd>,
    pub(super) ends: UdpEnds,
}

impl FlowUpstream {
    /// The socket of a flow of this session; it is noted.
    ///
    /// # Errors
    /// What getpeername(2) and epoll_ctl(2) say.
    pub(super) fn new(fd: OwnedFd, info: &SessionInfo) -> io::Result<Self> {
        let (ends, own) = UdpEnds::of(&fd)?;
        let noted = note_flow(&ends, own, info.passage.as_ref());
        Ok(Self { _noted: noted, io: sys::register(fd, NEWS)?, ends })
    }
}

/// Why a flow had to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Eviction {
    /// The listener has `max_connections` flows.
    MaxConnections,
    /// The process has no descriptor left.
    Descriptors,
}

impl Flows {
    /// The flows, none yet, of a socket.
    pub fn new(io: AsyncFd<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { io, table: Mutex::default(), held: Arc::default(), full: Mutex::default() })
    }

    /// The socket, as the runtime has it.
    pub fn io(&self) -> &AsyncFd<OwnedFd> {
        &self.io
    }

    /// The flow of a peer.
    pub fn get(&self, asked: &Asked) -> Option<Arc<Flow>> {
        lock(&self.table).get(asked).cloned()
    }

    /// Begins a flow; where there are `most` already, the flow that was quiet the longest ends.
    pub fn begin(self: &Arc<Self>, asked: Asked, info: Arc<SessionInfo>, most: u32) -> Arc<Flow> {
        let flow = Arc::new(Flow::new(asked, info, self, FlowKept::default()));
        self.enter(&flow, most);
        flow
    }

    /// Takes up a flow that the previous process had.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn resume(
        self: &Arc<Self>,
        asked: Asked,
        info: Arc<SessionInfo>,
        kept: FlowKept,
        upstream: Option<OwnedFd>,
        held: Vec<Vec<u8>>,
    ) -> io::Result<Arc<Flow>> {
        let flow = Arc::new(Flow::new(asked, info, self, kept));
        match upstream {
            Some(upstream) => flow.open(FlowUpstream::new(upstream, &flow.info)?),
            None => {
                let mut waiting = HeldDatagrams::of(self);
                flow.doubt.lost(held.iter().filter(|bytes| !waiting.push(bytes)).count());
                *lock(&flow.way) = FlowWay::Waiting(waiting);
            }
        }
        self.enter(&flow, u32::MAX);
        Ok(flow)
    }

    fn enter(&self, flow: &Arc<Flow>, most: u32) {
        let mut flows = lock(&self.table);
        if flows.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
            let quietest = flows.values().max_by_key(|flow| flow.quiet()).cloned();
            quietest.into_iter().for_each(|flow| flow.evict(&mut flows, Eviction::MaxConnections));
        }
        flows.insert(flow.asked, flow.clone());
    }

    /// The flow with an upstream that was quiet the longest.
    pub(super) fn quietest(&self) -> Option<Arc<Flow>> {
        lock(&self.table).values().filter(|flow| flow.upstream().is_some()).max_by_key(|flow| flow.quiet()).cloned()
    }

    /// Drops the newest datagram of the oldest flow that holds several, so that one of `flow` finds room. `false`: that is
    /// the oldest one.
    fn make_room(&self, flow: &Flow) -> bool {
        if let Some(left_out) = lock(&self.full).due() {
            log::emit(event::datagrams_full(&flow.info.route, HELD, left_out));
        }
        let flows = lock(&self.table);
        let several = flows.values().filter(|other| other.held() > 1 && other.began < flow.began);
        let Some(oldest) = several.min_by_key(|other| other.began) else { return false };
        if let FlowWay::Waiting(held) = &mut *lock(&oldest.way) {
            held.pop(true);
            oldest.doubt.lost(1);
        }
        true
    }

    fn leave(&self, flow: &Arc<Flow>) {
        let mut flows = lock(&self.table);
        if flows.get(&flow.asked).is_some_and(|there| Arc::ptr_eq(there, flow)) {
            flows.remove(&flow.asked);
        }
    }

    /// Ends all flows: their listener is closed.
    pub fn end(&self) {
        let flows = std::mem::take(&mut *lock(&self.table));
        flows.values().for_each(|flow| flow.info.interrupt.request(Why::Drained));
    }
}

impl AsFd for Flows {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.get_ref().as_fd()
    }
}

impl Flow {
    fn new(asked: Asked, info: Arc<SessionInfo>, listener: &Arc<Flows>, kept: FlowKept) -> Self {
        let silent = Duration::from_millis(kept.doubt.unanswered_ms.unwrap_or(0));
        let (now, age) = (Instant::now(), kept.quiet.max(silent));
        let began = now.checked_sub(age).unwrap_or(now);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        info.counters.checkpoint().sent().store(kept.passed.0, Relaxed);
        info.counters.checkpoint().answered().store(kept.passed.1, Relaxed);
        Self {
            asked,
            info,
            listener: Arc::downgrade(listener),
            way: Mutex::new(FlowWay::Waiting(HeldDatagrams::of(listener))),
            last_ms: AtomicU64::new(ms(age - kept.quiet)),
            began,
            doubt: Doubt::resume(kept.doubt, ms(age)),
            evicted: OnceLock::new(),
        }
    }

    /// The time of the flow's clock, in milliseconds.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn touch(&self) -> u64 {
        let now = self.now();
        self.last_ms.store(now, Relaxed);
        now
    }

    /// Time since the last datagram.
    pub(super) fn quiet(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.last_ms.load(Relaxed)))
    }

    pub(super) fn doubt(&self) -> &Doubt {
        &self.doubt
    }

    pub(super) fn upstream(&self) -> Option<Arc<FlowUpstream>> {
        match &*lock(&self.way) {
            FlowWay::Open(upstream) => Some(upstream.clone()),
            FlowWay::Waiting(_) | FlowWay::Over => None,
        }
    }

    /// The key of the upstream's socket.
    pub(super) fn upstream_key(&self) -> Option<DescriptorKey> {
        self.upstream().map(|upstream| crash::key(upstream.io.get_ref().as_fd()))
    }

    /// Datagrams sent to the upstream, and those that it answered.
    fn passed(&self) -> (u64, u64) {
        let checkpoint = self.info.counters.checkpoint();
        (checkpoint.sent().load(Relaxed), checkpoint.answered().load(Relaxed))
    }

    pub(super) fn asked(&self) -> Asked {
        self.asked
    }

    /// Why the flow ended, where another was given its place.
    pub(super) fn evicted(&self) -> Option<Eviction> {
        self.evicted.get().copied()
    }

    fn evict(&self, table: &mut HashMap<Asked, Arc<Self>>, why: Eviction) {
        if table.get(&self.asked).is_some_and(|there| std::ptr::eq(&raw const **there, self)) {
            table.remove(&self.asked);
        }
        let _ = self.evicted.set(why);
        self.info.interrupt.request(Why::Killed);
    }

    /// Ends the flow because the process has no descriptor left.
    pub(super) fn make_room(&self) {
        if let Some(listener) = self.listener.upgrade() {
            self.evict(&mut lock(&listener.table), Eviction::Descriptors);
        }
    }

    /// Passes a datagram on. `false`: the flow is over, and another one has to take the datagram.
    #[must_use]
    pub fn up(&self, bytes: &[u8]) -> bool {
        let now = self.touch();
        // The lock is free but for moments: when the upstream comes or is changed, and at the end.
        while !match &mut *lock(&self.way) {
            FlowWay::Open(upstream) => {
                self.send(upstream, bytes, now);
                true
            }
            FlowWay::Waiting(held) if held.datagrams.len() < WAITING => held.push(bytes),
            FlowWay::Waiting(_) => {
                self.doubt.lost(1);
                true
            }
            FlowWay::Over => return false,
        } {
            // Without that lock: the table's comes before the flows'.
            if !self.listener.upgrade().is_some_and(|listener| listener.make_room(self)) {
                self.doubt.lost(1);
                break;
            }
        }
        true
    }

    /// Number of datagrams that wait for the upstream.
    fn held(&self) -> usize {
        match &*lock(&self.way) {
            FlowWay::Waiting(held) => held.datagrams.len(),
            FlowWay::Open(_) | FlowWay::Over => 0,
        }
    }

    fn send(&self, upstream: &FlowUpstream, bytes: &[u8], now: u64) {
        let outcome = datagram::send_connected(upstream.io.get_ref().as_fd(), bytes);
        outcome.earlier.iter().for_each(|error| self.doubt.refused(error));
        match outcome.sent {
            Ok(()) => self.counted(bytes.len(), now),
            Err(error) => self.doubt.unsent(&error),
        }
    }

    /// The flow has its upstream now, or another one; datagrams that waited for it go first.
    pub(super) fn open(&self, upstream: FlowUpstream) {
        let mut way = lock(&self.way);
        let before = std::mem::replace(&mut *way, FlowWay::Over);
        if let FlowWay::Waiting(waiting) = &before {
            let now = self.now();
            waiting.datagrams.iter().for_each(|bytes| self.send(&upstream, bytes, now));
        }
        *way = FlowWay::Open(Arc::new(upstream));
    }

    /// The upstream comes to be: sends what waits for it, one by one and each until it is not refused, and opens it then.
    /// A refusal is known at the next call; the kernel has it after [`REFUSED`] at the latest where the upstream is on this
    /// machine.
    ///
    /// # Errors
    /// The first datagram that waits is refused; it waits on.
    pub(super) async fn open_trying(&self, upstream: FlowUpstream) -> io::Result<()> {
        let fd = upstream.io.get_ref();
        loop {
            let first = match &*lock(&self.way) {
                FlowWay::Waiting(waiting) => waiting.datagrams.front().cloned(),
                FlowWay::Open(_) | FlowWay::Over => return Ok(()),
            };
            let Some(bytes) = first else { break };
            let sent = datagram::send_connected(fd.as_fd(), &bytes);
            sent.sent?;
            sleep(REFUSED).await;
            if let Some(refused) = SockRef::from(fd).take_error()? {
                return Err(refused);
            }
            if let FlowWay::Waiting(waiting) = &mut *lock(&self.way) {
                waiting.pop(false);
            }
            self.counted(bytes.len(), self.now());
        }
        self.open(upstream);
        Ok(())
    }

    fn counted(&self, bytes: usize, now: u64) {
        self.info.counters.add_up(bytes);
        self.info.counters.checkpoint().sent().fetch_add(1, Relaxed);
        self.doubt.asked(now);
    }

    /// The flow is over: datagrams that still wait are lost. An error that the last one met is reported now.
    pub(super) fn close(&self) {
        match std::mem::replace(&mut *lock(&self.way), FlowWay::Over) {
            FlowWay::Waiting(waiting) => self.doubt.lost(waiting.datagrams.len()),
            FlowWay::Open(upstream) => self.take_error(&upstream),
            FlowWay::Over => {}
        }
    }

    fn take_error(&self, upstream: &FlowUpstream) {
        let error = SockRef::from(upstream.io.get_ref()).take_error();
        error.ok().flatten().iter().for_each(|error| self.doubt.refused(error));
    }

    /// A further descriptor, of the listener's socket: to find out whether there can be one.
    pub(super) fn another_descriptor(&self) -> io::Result<()> {
        self.listener.upgrade().map_or(Ok(()), |listener| listener.as_fd().try_clone_to_owned().map(drop))
    }

    /// Whether all answers have come that `udp_responses` expects; then the flow takes no further datagram.
    pub(super) fn is_complete(&self) -> bool {
        let Some(expected) = self.info.route.options.udp_responses else { return false };
        let mut way = lock(&self.way);
        let (sent, answered) = self.passed();
        let complete = sent > 0 && answered >= sent.saturating_mul(expected.into());
        if complete {
            *way = FlowWay::Over;
        }
        complete
    }

    /// Brings answers of `upstream` back, until the listener is closed or the flow is complete: whether it is.
    ///
    /// # Cancel safety
    /// Dropped while it waits for room to answer, it loses that answer.
    pub(super) async fn down(&self, upstream: &FlowUpstream) -> bool {
        for count in 1usize.. {
            if count % BATCH == 0 {
                yield_now().await;
            }
            let Ok(mut ready) = upstream.io.ready(NEWS).await else { return false };
            let Some(listener) = self.listener.upgrade() else { return false };
            let (peer, at) = (self.asked.peer, self.asked.at);
            let answered = datagram::receive_connected(upstream.io.get_ref().as_fd(), |bytes| {
                let sent = datagram::answer(listener.as_fd(), bytes, peer, at);
                let full = sent.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
                (bytes.len(), sent.is_ok(), full.then(|| bytes.to_vec()))
            });
            match answered {
                Ok((len, sent, kept)) => {
                    self.touch();
                    self.doubt.answered();
                    let sent = match kept {
                        Some(bytes) => self.answer_later(&listener, &bytes).await,
                        None => sent,
                    };
                    if sent {
                        self.info.counters.add_down(len);
                    }
                    self.info.counters.checkpoint().answered().fetch_add(1, Relaxed);
                    if self.is_complete() {
                        return true;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(e) => self.doubt.refused(&e), // an ICMP error that a datagram of ours met; the next one may not
            }
        }
        false
    }

    /// Tries once more when the listener's socket was full. The socket is not watched for room: the kernel would tell of
    /// that with every datagram sent.
    async fn answer_later(&self, listener: &Flows, bytes: &[u8]) -> bool {
        sleep(FULL).await;
        datagram::answer(listener.as_fd(), bytes, self.asked.peer, self.asked.at).is_ok()
    }

    /// The flow for the next process.
    ///
    /// # Errors
    /// EMFILE and its kin; `NotConnected` before the flow has an upstream, unless it waits for a unit.
    pub(super) fn park(&self) -> io::Result<ParkedStage> {
        let upstream = match self.upstream() {
            Some(upstream) => {
                self.take_error(&upstream);
                Some(upstream.io.get_ref().try_clone()?)
            }
            None if self.info.used.is_some() => None,
            None => return Err(io::ErrorKind::NotConnected.into()),
        };
        let held = match &mut *lock(&self.way) {
            FlowWay::Waiting(waiting) => waiting.take(),
            FlowWay::Open(_) | FlowWay::Over => Vec::new(),
        };
        let kept = FlowKept { quiet: self.quiet(), doubt: self.doubt.keep(self.now()), passed: self.passed() };
        Ok(ParkedStage::Flow { asked: self.asked, upstream, kept, held })
    }
}

/// Takes a flow out of its table when it is dropped: however the flow's task ends.
pub(super) struct Entry<'a>(pub(super) &'a Arc<Flow>);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(listener) = self.0.listener.upgrade() {
            listener.leave(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};

    use uuid::Uuid;

    use super::*;
    use crate::{
        relay::Counters,
        session::{access::Peer, identity::ListenerIdentity, route::Routes},
        spec::{Config, SocketKind, fdname},
    };

    #[tokio::test]
    async fn datagrams_that_wait_take_a_bounded_room_and_the_oldest_flow_gives_way() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let flows = Flows::new(sys::register(socket.into(), Interest::READABLE).unwrap());
        let forward = fdname::resolve("udp_target=127.0.0.1+9", SocketKind::Udp, &Config::default()).unwrap();
        let identity = ListenerIdentity::new("x", SocketKind::Udp, None);
        let (leg, options) = (forward.legs.front().clone(), forward.options);
        let route = Arc::new(Routes::new(1).make(String::new(), identity, leg, options).unwrap());
        let datagram = [0; 65_000];
        let flow = |port| {
            let info =
                SessionInfo::new(Uuid::new_v4(), route.clone(), Peer::Unknown, Duration::ZERO, Counters::default());
            let asked = Asked { peer: SocketAddr::from(([127, 0, 0, 1], port)), at: None };
            let flow = flows.begin(asked, Arc::new(info), u32::MAX);
            assert!((0..WAITING).all(|_| flow.up(&datagram)));
            flow
        };
        let begun: Vec<_> = (1..7).map(flow).collect();
        let held: Vec<usize> = begun.iter().map(|flow| flow.held()).collect();
        assert_eq!(held, [1, 1, WAITING, WAITING, WAITING, WAITING]);
        assert_eq!(flows.held.load(Relaxed), (4 * WAITING + 2) * datagram.len());
        assert!(flows.held.load(Relaxed) <= HELD);
        assert_eq!(begun[0].doubt().losses(), "63 datagrams not sent");
        begun.iter().for_each(|flow| flow.close());
        assert_eq!(flows.held.load(Relaxed), 0);
    }
}
