//! UDP: one flow for each peer of a listener, with an upstream socket of its own, so that answers find their asker.
//!
//! # Theory
//! A listener's task receives for all its flows and passes each datagram on at once; a flow's own task brings back
//! what its upstream answers. A flow is known by its peer *and* by the address of ours that the peer asked, from
//! which it is answered ([`crate::relay::datagram`]).
//!
//! Nobody says when a flow is over: it is when nothing passed either way for `udp_idle_timeout`, or when it is the one
//! that was quiet the longest and a new peer finds all places taken. An ICMP error ("nobody listens") ends nothing: the
//! upstream may be back for the next datagram. But where a namespace has no way out any more, it is perhaps about to be
//! made anew under its name, which a flow with a busy peer would never notice: it ends, and the next datagram begins
//! another. What cannot be sent at once is dropped, as anywhere on a datagram's way.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    task::yield_now,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Next, ParkedStage, Permits, Session, Shared, Stage, access::Peer, sessions::Info};
use crate::{
    dial::{self, Failure, Way, netns::Place},
    log::End,
    relay::{
        Counters, Why,
        datagram::{self, Destination},
    },
    service::listener::{Listening, Reminder, deny},
    spec::Upstream,
    sys,
};

/// Datagrams received in one go, before the task looks whether it is to stop.
const BATCH: usize = 64;
/// Datagrams that wait for a flow's upstream to be looked up; more are dropped.
const WAITING: usize = 64;
/// A flow that cannot have an upstream drops what comes for this long, before the next datagram makes it try again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an answer waits for room in the listener's socket: that of some hundred datagrams on a fast network.
const FULL: Duration = Duration::from_millis(1);
/// The pause after a receive that failed for want of memory.
const EXHAUSTED: Duration = Duration::from_millis(5);

/// Who asked, and where: what tells flows of one listener apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The peer's address.
    pub peer: SocketAddr,
    /// Our address, on listeners that have several.
    pub at: Option<Destination>,
}

/// The flows of a listener.
#[derive(Debug, Default)]
pub struct Table(Mutex<HashMap<Asked, Arc<Flow>>>);

/// One flow.
#[derive(Debug)]
pub struct Flow {
    asked: Asked,
    info: Arc<Info>,
    /// Whose flow it is; gone when the listener is closed.
    listening: Weak<Listening>,
    /// Once it is there.
    upstream: OnceLock<AsyncFd<OwnedFd>>,
    /// What came before.
    waiting: Mutex<Vec<Vec<u8>>>,
    /// When a datagram passed last, in milliseconds since the flow began.
    last_ms: AtomicU64,
    began: Instant,
    /// Another flow was given its place.
    evicted: AtomicBool,
    /// Its namespace has no way to its upstream any more.
    cut_off: AtomicBool,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<Asked, Arc<Flow>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a flow; where there are `most` already, the one that was quiet the longest ends.
    fn enter(&self, flow: &Arc<Flow>, most: u32) {
        let mut flows = self.lock();
        if flows.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
            let quietest = flows.values().max_by_key(|flow| flow.quiet()).cloned();
            if let Some(flow) = quietest {
                flows.remove(&flow.asked);
                flow.evicted.store(true, Relaxed);
                flow.info.interrupt.request(Why::Killed);
            }
        }
        flows.insert(flow.asked, flow.clone());
    }

    fn leave(&self, flow: &Arc<Flow>) {
        let mut flows = self.lock();
        if flows.get(&flow.asked).is_some_and(|there| Arc::ptr_eq(there, flow)) {
            flows.remove(&flow.asked);
        }
    }

    /// Ends all flows: their listener is closed.
    pub fn end(&self) {
        let flows = std::mem::take(&mut *self.lock());
        flows.values().for_each(|flow| flow.info.interrupt.request(Why::Drained));
    }
}

impl Flow {
    fn new(asked: Asked, info: Arc<Info>, listening: &Arc<Listening>, quiet: Duration) -> Self {
        let now = Instant::now();
        let began = now.checked_sub(quiet).unwrap_or(now);
        Self {
            asked,
            info,
            listening: Arc::downgrade(listening),
            upstream: OnceLock::new(),
            waiting: Mutex::default(),
            last_ms: AtomicU64::new(0),
            began,
            evicted: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
        }
    }

    /// Takes up a flow that the previous process had.
    ///
    /// # Errors
    /// What epoll_ctl(2) says.
    pub fn resume(
        asked: Asked,
        info: Arc<Info>,
        listening: &Arc<Listening>,
        quiet: Duration,
        upstream: OwnedFd,
    ) -> io::Result<Arc<Self>> {
        let flow = Arc::new(Self::new(asked, info, listening, quiet));
        let _ = flow.upstream.set(sys::register(upstream, Interest::READABLE)?);
        listening.flows().enter(&flow, u32::MAX);
        Ok(flow)
    }

    fn touch(&self) {
        self.last_ms.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// How long nothing has passed.
    fn quiet(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Relaxed)))
    }

    /// Passes a datagram on.
    fn up(&self, bytes: &[u8]) {
        self.touch();
        match self.upstream.get() {
            Some(upstream) => self.send(upstream, bytes),
            None => {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                match self.upstream.get() {
                    Some(upstream) => self.send(upstream, bytes), // just now
                    None if waiting.len() < WAITING => waiting.push(bytes.to_vec()),
                    None => {}
                }
            }
        }
    }

    fn send(&self, upstream: &AsyncFd<OwnedFd>, bytes: &[u8]) {
        match datagram::send_connected(upstream.get_ref().as_fd(), bytes) {
            Ok(()) => self.info.counters.add_up(bytes.len()),
            Err(e) if has_no_way(&e) && self.is_elsewhere() && !self.cut_off.swap(true, Relaxed) => {
                self.info.interrupt.request(Why::Killed);
            }
            Err(_) => {}
        }
    }

    /// Whether its upstream is in another namespace than this process.
    fn is_elsewhere(&self) -> bool {
        matches!(self.info.route.upstream, Some(Upstream::Udp { netns: Some(_), .. }))
    }

    /// It has its upstream now; what waited for it goes first.
    fn connected(&self, upstream: OwnedFd) -> io::Result<()> {
        let upstream = sys::register(upstream, Interest::READABLE)?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let upstream = self.upstream.get_or_init(|| upstream);
        std::mem::take(&mut *waiting).iter().for_each(|bytes| self.send(upstream, bytes));
        Ok(())
    }

    /// Brings answers back, until the listener is closed.
    ///
    /// # Cancel safety
    /// Dropped while it waits for room to answer, it loses that answer.
    async fn down(&self) {
        let Some(upstream) = self.upstream.get() else { return };
        for count in 1usize.. {
            if count % BATCH == 0 {
                yield_now().await;
            }
            let Ok(mut ready) = upstream.readable().await else { return };
            let Some(listening) = self.listening.upgrade() else { return };
            let (peer, at) = (self.asked.peer, self.asked.at);
            let answered = datagram::receive_connected(upstream.get_ref().as_fd(), |bytes| {
                let sent = datagram::answer(listening.as_fd(), bytes, peer, at);
                let full = sent.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
                (bytes.len(), sent.is_ok(), full.then(|| bytes.to_vec()))
            });
            match answered {
                Ok((len, sent, kept)) => {
                    self.touch();
                    let sent = match kept {
                        Some(bytes) => self.answer_later(&listening, &bytes).await,
                        None => sent,
                    };
                    if sent {
                        self.info.counters.add_down(len);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(_) => {} // an ICMP error that a datagram of ours met; the next one may not
            }
        }
    }

    /// Tries once more when the listener's socket was full. It is not watched for room: the kernel would tell of that
    /// with every datagram sent.
    async fn answer_later(&self, listening: &Listening, bytes: &[u8]) -> bool {
        sleep(FULL).await;
        datagram::answer(listening.as_fd(), bytes, self.asked.peer, self.asked.at).is_ok()
    }

    fn park(&self) -> io::Result<ParkedStage> {
        let upstream = self.upstream.get().ok_or(io::ErrorKind::NotConnected)?;
        let upstream = upstream.get_ref().try_clone()?;
        Ok(ParkedStage::Flow { asked: self.asked, upstream, quiet: self.quiet() })
    }
}

/// Whether the kernel knows no way to send at all, whatever the other end may say.
fn has_no_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL))
}

/// Receives for all flows of a listener until `stop`.
pub async fn receive(listening: &Arc<Listening>, shared: &Arc<Shared>, stop: &CancellationToken) {
    let mut denied = Reminder::default();
    loop {
        let Some(Ok(mut ready)) = stop.run_until_cancelled(listening.io().readable()).await else { return };
        let mut more = true;
        for _ in 0..BATCH {
            let received = datagram::receive(listening.as_fd(), |bytes, peer, at| {
                take(listening, shared, bytes, Asked { peer, at }, &mut denied);
            });
            match received {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    more = false;
                    break;
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOMEM) || e.raw_os_error() == Some(libc::ENOBUFS) => {
                    sleep(EXHAUSTED).await;
                    break;
                }
                Err(_) => {} // an ICMP error that an answer of ours met
            }
        }
        if more {
            yield_now().await; // a flood of datagrams leaves room for others
        }
    }
}

/// Takes one datagram: to its flow, which is begun if the peer may have one.
fn take(listening: &Arc<Listening>, shared: &Arc<Shared>, bytes: &[u8], asked: Asked, denied: &mut Reminder) {
    let known = listening.flows().lock().get(&asked).cloned();
    if let Some(flow) = known {
        return flow.up(bytes);
    }
    let route = listening.route();
    if route.tally.paused() {
        return; // those who are there go on
    }
    let peer = Peer::Inet(asked.peer);
    if let Err(list) = route.access.check(&peer) {
        return deny(&route, &peer, list, denied);
    }
    let most = route.options.max_connections;
    let info = Info::new(Uuid::new_v4(), route, peer.to_string().into(), Duration::ZERO, Counters::default());
    let info = Arc::new(info);
    let flow = Arc::new(Flow::new(asked, info.clone(), listening, Duration::ZERO));
    flow.up(bytes);
    listening.flows().enter(&flow, most);
    super::begin(shared, info, Stage::Flow(flow), Permits::default());
}

/// Takes a flow out of its table, however its task ends.
struct Entry<'a>(&'a Arc<Flow>);

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(listening) = self.0.listening.upgrade() {
            listening.flows().leave(self.0);
        }
    }
}

impl Session {
    /// A flow's task, until it is over.
    pub(super) async fn flow(&mut self, flow: &Arc<Flow>) -> Next {
        let entry = Entry(flow);
        let info = self.story.info.clone();
        if flow.upstream.get().is_none() {
            let dialled = tokio::select! {
                biased;
                why = info.interrupt.requested_async() => Err(why),
                dialled = dial_upstream(&info) => Ok(dialled),
            };
            let connected = match dialled {
                Err(why) => return self.flow_interrupted(flow, why),
                Ok(Ok((upstream, at))) => flow.connected(upstream).map(|()| at).map_err(|error| {
                    let doing = format!("watch the socket to {}", info.route.upstream_text);
                    Failure::Io { doing, error }
                }),
                Ok(Err(failure)) => Err(failure),
            };
            let at = match connected {
                Ok(at) => at,
                Err(failure) => {
                    let next = self.failed(&failure);
                    // The peer will ask again soon; it is not to be an event each time.
                    tokio::select! {
                        () = sleep(PAUSE) => {}
                        _ = info.interrupt.requested_async() => {}
                    }
                    return next;
                }
            };
            self.connected(at.as_ref());
        }
        let allowed = info.route.options.udp_idle_timeout;
        let idle = sleep_until(Instant::now() + allowed.saturating_sub(flow.quiet()));
        let down = flow.down();
        tokio::pin!(idle, down);
        loop {
            tokio::select! {
                biased;
                why = info.interrupt.requested_async() => return self.flow_interrupted(flow, why),
                () = &mut down => {
                    self.story.note = "its listener is closed".to_owned();
                    return self.over(End::Drained);
                }
                () = &mut idle => {
                    // The timer is set anew when it is over, not with every datagram.
                    let quiet = flow.quiet();
                    if quiet >= allowed {
                        drop(entry);
                        return self.over(End::Idle);
                    }
                    idle.as_mut().reset(Instant::now() + (allowed - quiet));
                }
            }
        }
    }

    fn flow_interrupted(&mut self, flow: &Flow, why: Why) -> Next {
        if flow.evicted.load(Relaxed) {
            let most = self.story.info.route.options.max_connections;
            self.story.note = format!("it made room for another: {most} flows were there (max_connections)");
            return self.over(End::Idle);
        }
        if flow.cut_off.load(Relaxed) {
            self.story.note =
                "its namespace has no way there any more; the next datagram looks for one again".to_owned();
            return self.over(End::Reset);
        }
        match why {
            Why::Park => match flow.park() {
                Ok(stage) => self.park(stage),
                Err(e) => {
                    self.story.note = format!("it could not be handed over: {e}");
                    self.over(End::Drained)
                }
            },
            why => self.interrupted(why),
        }
    }
}

/// The upstream, and the namespace that it is in when that is not our own.
async fn dial_upstream(info: &Info) -> Result<(OwnedFd, Option<Place>), Failure> {
    let route = &info.route;
    let Some(Upstream::Udp { addr, netns }) = &route.upstream else {
        let error = io::ErrorKind::Unsupported.into();
        return Err(Failure::Io { doing: format!("send to {}", route.upstream_text), error });
    };
    let at = Mutex::new(None);
    let entered = |place| route.entered(place, &at);
    let way = Way { netns: netns.as_ref(), via: Some(&route.via), entered: Some(&entered) };
    let upstream = dial::udp(addr, way, route.options.connect_timeout).await?;
    Ok((upstream, at.into_inner().unwrap_or_else(PoisonError::into_inner)))
}
