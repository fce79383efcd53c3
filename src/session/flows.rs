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
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
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
        datagram::{self, AfterReceive, Asked, Datagrams, ReceivedGroup, Run, RunLimit, SendEvent, SendTo},
    },
    sys::{self, lock},
};

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
/// How often an answer waits for that time before it is dropped: a run in the queue of a slow network takes some of them.
const PAUSES: u32 = 20;

/// A UDP socket that is listened on, and its flows.
#[derive(Debug)]
pub struct Flows {
    io: AsyncFd<OwnedFd>,
    table: Mutex<HashMap<Asked, Arc<Flow>>>,
    /// Bytes of all datagrams that wait for an upstream.
    held: Arc<AtomicUsize>,
    /// When it was told last that these are [`HELD`].
    full: Mutex<Reminder>,
    /// Whether a run was received: another may wait.
    runs: AtomicBool,
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
    /// What the way to the peer takes.
    limit: RunLimit,
    /// Answers for which the listener's socket had no room, the first one first. They are sent before any other answer.
    unanswered: Mutex<VecDeque<Vec<u8>>>,
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
    /// What the way to it takes.
    limit: RunLimit,
    /// Whether the socket receives runs whole.
    whole: AtomicBool,
}

impl FlowUpstream {
    /// The socket of a flow of this session; it is noted.
    ///
    /// # Errors
    /// What getpeername(2) and epoll_ctl(2) say.
    pub(super) fn new(fd: OwnedFd, info: &SessionInfo) -> io::Result<Self> {
        let (ends, own) = UdpEnds::of(&fd)?;
        let noted = note_flow(&ends, own, info.passage.as_ref());
        let (limit, whole) = (RunLimit::default(), false.into());
        Ok(Self { _noted: noted, io: sys::register(fd, NEWS)?, ends, limit, whole })
    }

    fn take_runs(&self) {
        if !self.whole.swap(true, Relaxed) {
            datagram::take_runs(self.as_fd(), true);
        }
    }
}

impl AsFd for FlowUpstream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.get_ref().as_fd()
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
        Arc::new(Self { io, table: Mutex::default(), held: Arc::default(), full: Mutex::default(), runs: false.into() })
    }

    /// Receives what waits, and gives each flow its datagrams.
    ///
    /// # Errors
    /// What recvmmsg(2) says; `WouldBlock` when none waits.
    pub fn receive(&self, take: impl FnMut(Asked, ReceivedGroup<'_>)) -> io::Result<AfterReceive> {
        let left = datagram::receive(self.as_fd(), take)?;
        if left.runs {
            self.runs.store(true, Relaxed);
        }
        Ok(left)
    }

    /// Has the socket receive runs whole, whose sizes are told.
    pub fn take_runs(&self) {
        datagram::take_runs(self.as_fd(), true);
    }

    /// Prepares the socket for another process ([`datagram::leave`]). Where no run ever came, what waits stays for that.
    pub fn pass_on(&self, mut take: impl FnMut(Asked, ReceivedGroup<'_>)) {
        match self.runs.load(Relaxed) {
            true => datagram::leave(self.as_fd(), || self.receive(&mut take).is_ok()),
            false => datagram::take_runs(self.as_fd(), false),
        }
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
            Some(upstream) => {
                let upstream = FlowUpstream::new(upstream, &flow.info)?;
                upstream.take_runs(); // a process that crashed may have left runs in its queue
                flow.open(upstream);
            }
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
            limit: RunLimit::default(),
            unanswered: Mutex::default(),
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

    /// Passes datagrams on.
    ///
    /// # Errors
    /// The flow is over, and another one has to take these.
    pub fn up<'a>(&self, mut datagrams: Datagrams<'a>) -> Result<(), Datagrams<'a>> {
        let now = self.touch();
        loop {
            // The lock is free but for moments: when the upstream comes or is changed, and at the end.
            match &mut *lock(&self.way) {
                FlowWay::Open(upstream) => {
                    self.send(upstream, datagrams, now);
                    return Ok(());
                }
                FlowWay::Waiting(held) => {
                    let mut taken = 0;
                    let full = datagrams.iter().any(|bytes| {
                        let waits = held.datagrams.len() < WAITING;
                        if waits && !held.push(bytes) {
                            return true;
                        }
                        self.doubt.lost(usize::from(!waits));
                        taken += 1;
                        false
                    });
                    datagrams = datagrams.after(taken);
                    if !full {
                        return Ok(());
                    }
                }
                FlowWay::Over => return Err(datagrams),
            }
            // Without that lock: the table's comes before the flows'.
            if !self.listener.upgrade().is_some_and(|listener| listener.make_room(self)) {
                self.doubt.lost(1);
                datagrams = datagrams.after(1);
            }
        }
    }

    /// Datagrams were dropped because they were larger than any can be.
    pub fn truncated(&self, datagrams: usize) {
        self.doubt.lost(datagrams);
    }

    /// Number of datagrams that wait for the upstream.
    fn held(&self) -> usize {
        match &*lock(&self.way) {
            FlowWay::Waiting(held) => held.datagrams.len(),
            FlowWay::Open(_) | FlowWay::Over => 0,
        }
    }

    fn send(&self, upstream: &FlowUpstream, datagrams: Datagrams<'_>, now: u64) {
        let done =
            datagram::send(upstream.as_fd(), SendTo::Connected, &upstream.limit, datagrams, |event| match event {
                SendEvent::Sent { datagrams, bytes } => self.counted(datagrams, bytes, now),
                SendEvent::Refused(error) => self.doubt.refused(&error),
                SendEvent::Unsent { datagrams, error } => self.doubt.unsent(datagrams, &error),
            });
        self.doubt.lost(datagrams.after(done).iter().count());
    }

    /// The flow has its upstream now, or another one; datagrams that waited for it go first.
    pub(super) fn open(&self, upstream: FlowUpstream) {
        let mut way = lock(&self.way);
        let before = std::mem::replace(&mut *way, FlowWay::Over);
        if let FlowWay::Waiting(waiting) = &before {
            let runs: Vec<_> = waiting.datagrams.iter().map(|bytes| Run::one(bytes)).collect();
            self.send(&upstream, Datagrams::of(&runs), self.now());
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
            let mut unsent = None;
            let one = [Run::one(&bytes)];
            let done = datagram::send(fd.as_fd(), SendTo::Connected, &upstream.limit, Datagrams::of(&one), |event| {
                if let SendEvent::Unsent { error, .. } = event {
                    unsent = Some(error);
                }
            });
            unsent.or_else(|| (done == 0).then(|| io::ErrorKind::WouldBlock.into())).map_or(Ok(()), Err)?;
            sleep(REFUSED).await;
            if let Some(refused) = SockRef::from(fd).take_error()? {
                return Err(refused);
            }
            if let FlowWay::Waiting(waiting) = &mut *lock(&self.way) {
                waiting.pop(false);
            }
            self.counted(1, bytes.len(), self.now());
        }
        self.open(upstream);
        Ok(())
    }

    fn counted(&self, datagrams: usize, bytes: usize, now: u64) {
        self.info.counters.add_up(bytes);
        self.info.counters.checkpoint().sent().fetch_add(datagrams as u64, Relaxed);
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
    /// Dropped while it waits for room to answer, it leaves the answers in the flow; the next call sends them first.
    pub(super) async fn down(&self, upstream: &FlowUpstream) -> bool {
        if let Some(listener) = self.listener.upgrade() {
            self.answer_later(&listener).await;
        }
        loop {
            let Ok(mut ready) = upstream.io.ready(NEWS).await else { return false };
            let Some(listener) = self.listener.upgrade() else { return false };
            match self.bring(upstream, &listener) {
                Ok(left) => {
                    if left.several {
                        upstream.take_runs();
                    }
                    self.answer_later(&listener).await;
                    if self.is_complete() {
                        return true;
                    }
                    match left.more {
                        true => yield_now().await,
                        false => ready.clear_ready(), // the queue was empty; what comes makes it ready again
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(e) => self.doubt.refused(&e), // an ICMP error that a datagram of ours met; the next one may not
            }
        }
    }

    /// Brings answers that wait to the peer. Those for which the listener's socket has no room stay in the flow.
    fn bring(&self, upstream: &FlowUpstream, listener: &Flows) -> io::Result<AfterReceive> {
        datagram::receive_connected(upstream.as_fd(), |group| {
            self.touch();
            self.doubt.answered();
            self.doubt.lost(group.truncated);
            let answered = self.info.counters.checkpoint().answered();
            let mut unsent = lock(&self.unanswered);
            if self.info.route.options.udp_responses.is_none() {
                let done = if unsent.is_empty() { self.answer(listener, group.datagrams) } else { 0 };
                answered.fetch_add(group.datagrams.iter().count() as u64, Relaxed);
                unsent.extend(group.datagrams.after(done).iter().map(<[u8]>::to_vec));
                return;
            }
            for bytes in group.datagrams.iter() {
                if !unsent.is_empty() || self.answer(listener, Datagrams::of(&[Run::one(bytes)])) == 0 {
                    unsent.push_back(bytes.to_vec());
                }
                answered.fetch_add(1, Relaxed);
                if self.is_complete() {
                    return;
                }
            }
        })
    }

    /// Answers the peer; the number of datagrams that are dealt with.
    fn answer(&self, listener: &Flows, datagrams: Datagrams<'_>) -> usize {
        datagram::send(listener.as_fd(), SendTo::Asker(self.asked), &self.limit, datagrams, |event| {
            if let SendEvent::Sent { bytes, .. } = event {
                self.info.counters.add_down(bytes);
            }
        })
    }

    /// Sends the answers that are left, as soon as the listener's socket has room, for a bounded time. The socket is not
    /// watched for room: the kernel would tell of that with every datagram sent.
    ///
    /// # Cancel safety
    /// Dropped, it leaves in the flow what it has not sent.
    async fn answer_later(&self, listener: &Flows) {
        let mut refused = 0;
        while !lock(&self.unanswered).is_empty() {
            sleep(FULL).await;
            refused = if self.answer_again(listener) { 0 } else { refused + 1 };
            if refused >= PAUSES {
                let mut unsent = lock(&self.unanswered);
                self.doubt.lost(unsent.len());
                unsent.clear();
            }
        }
    }

    /// Sends what fits of the answers that are left; whether some went.
    fn answer_again(&self, listener: &Flows) -> bool {
        let mut unsent = lock(&self.unanswered);
        let done = {
            let runs: Vec<_> = unsent.iter().map(|bytes| Run::one(bytes)).collect();
            self.answer(listener, Datagrams::of(&runs))
        };
        unsent.drain(..done);
        done > 0
    }

    /// Prepares the upstream's socket for another process ([`datagram::leave`]); answers that wait are brought to the peer.
    /// Where the listener's socket is full, the others wait for the next process; an ICMP error is reported and passed.
    pub(super) fn pass_on(&self) {
        let Some(listener) = self.listener.upgrade() else { return };
        if let Some(upstream) = self.upstream().filter(|upstream| upstream.whole.load(Relaxed)) {
            datagram::leave(upstream.as_fd(), || match self.bring(&upstream, &listener) {
                Ok(_) => lock(&self.unanswered).is_empty(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
                Err(e) => {
                    self.doubt.refused(&e);
                    true
                }
            });
        }
        // What is left here goes with this process, after a moment for the socket to have room.
        for _ in 0..PAUSES {
            if lock(&self.unanswered).is_empty() {
                return;
            }
            datagram::wait_for_room(listener.as_fd(), FULL);
            self.answer_again(&listener);
        }
        self.doubt.lost(lock(&self.unanswered).drain(..).count());
    }

    /// The flow for the next process.
    ///
    /// # Errors
    /// EMFILE and its kin; `NotConnected` when the flow has neither an upstream nor a datagram that waits for one.
    pub(super) fn park(&self) -> io::Result<ParkedStage> {
        let upstream = match self.upstream() {
            Some(upstream) => {
                self.take_error(&upstream);
                Some(upstream.io.get_ref().try_clone()?)
            }
            None => None,
        };
        let held = match &mut *lock(&self.way) {
            FlowWay::Waiting(waiting) => waiting.take(),
            FlowWay::Open(_) | FlowWay::Over => Vec::new(),
        };
        if upstream.is_none() && held.is_empty() {
            return Err(io::ErrorKind::NotConnected.into());
        }
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
            assert!((0..WAITING).all(|_| flow.up(Datagrams::of(&[Run::one(&datagram)])).is_ok()));
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
