//! The flows of one UDP listener: each has an upstream socket of its own, so that answers find their asker.
//!
//! # Theory
//! The listener's task receives for all flows and passes each datagram on at once; a flow's own task brings back what
//! its upstream answers ([`super::flow`]). A flow is known by its peer *and* by the address of ours that the peer asked,
//! from which it is answered ([`crate::relay::datagram`]).

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    task::yield_now,
    time::{Instant, sleep},
};

use super::{info::SessionInfo, parked::ParkedStage};
use crate::{
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
/// How long an answer waits for room in the listener's socket: that of some hundred datagrams on a fast network.
const FULL: Duration = Duration::from_millis(1);

/// A UDP socket that is listened on, and its flows.
#[derive(Debug)]
pub struct Flows {
    io: AsyncFd<OwnedFd>,
    table: Mutex<HashMap<Asked, Arc<Flow>>>,
}

#[derive(Debug)]
pub struct Flow {
    asked: Asked,
    info: Arc<SessionInfo>,
    /// The flows of the same listener; gone when the listener is closed.
    listener: Weak<Flows>,
    /// Set once it is connected.
    upstream: OnceLock<AsyncFd<OwnedFd>>,
    /// Datagrams that came before.
    waiting: Mutex<Vec<Vec<u8>>>,
    /// When a datagram passed last, in milliseconds since the flow began.
    last_ms: AtomicU64,
    began: Instant,
    /// Another flow was given the place of this one.
    evicted: AtomicBool,
    /// The namespace of the flow has no way to the upstream any more.
    cut_off: AtomicBool,
}

impl Flows {
    /// The flows, none yet, of a socket.
    pub fn new(io: AsyncFd<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { io, table: Mutex::default() })
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
        let flow = Arc::new(Flow::new(asked, info, self, Duration::ZERO));
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
        quiet: Duration,
        upstream: OwnedFd,
    ) -> io::Result<Arc<Flow>> {
        let flow = Arc::new(Flow::new(asked, info, self, quiet));
        let _ = flow.upstream.set(sys::register(upstream, Interest::READABLE)?);
        self.enter(&flow, u32::MAX);
        Ok(flow)
    }

    fn enter(&self, flow: &Arc<Flow>, most: u32) {
        let mut flows = lock(&self.table);
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
    fn new(asked: Asked, info: Arc<SessionInfo>, listener: &Arc<Flows>, quiet: Duration) -> Self {
        let now = Instant::now();
        let began = now.checked_sub(quiet).unwrap_or(now);
        Self {
            asked,
            info,
            listener: Arc::downgrade(listener),
            upstream: OnceLock::new(),
            waiting: Mutex::default(),
            last_ms: AtomicU64::new(0),
            began,
            evicted: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
        }
    }

    fn touch(&self) {
        self.last_ms.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Time since the last datagram.
    pub(super) fn quiet(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Relaxed)))
    }

    pub(super) fn is_connected(&self) -> bool {
        self.upstream.get().is_some()
    }

    /// Whether the flow ended because another was given its place.
    pub(super) fn was_evicted(&self) -> bool {
        self.evicted.load(Relaxed)
    }

    /// Whether the flow ended because its namespace has no way to the upstream any more.
    pub(super) fn was_cut_off(&self) -> bool {
        self.cut_off.load(Relaxed)
    }

    /// Passes a datagram on.
    pub fn up(&self, bytes: &[u8]) {
        self.touch();
        match self.upstream.get() {
            Some(upstream) => self.send(upstream, bytes),
            None => {
                let mut waiting = lock(&self.waiting);
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
            Err(e) if has_no_way(&e) && self.info.route.netns().is_some() && !self.cut_off.swap(true, Relaxed) => {
                self.info.interrupt.request(Why::Killed);
            }
            Err(_) => {}
        }
    }

    /// The flow has its upstream now; datagrams that waited for it go first.
    pub(super) fn connected(&self, upstream: OwnedFd) -> io::Result<()> {
        let upstream = sys::register(upstream, Interest::READABLE)?;
        let mut waiting = lock(&self.waiting);
        let upstream = self.upstream.get_or_init(|| upstream);
        std::mem::take(&mut *waiting).iter().for_each(|bytes| self.send(upstream, bytes));
        Ok(())
    }

    /// Brings answers back, until the listener is closed.
    ///
    /// # Cancel safety
    /// Dropped while it waits for room to answer, it loses that answer.
    pub(super) async fn down(&self) {
        let Some(upstream) = self.upstream.get() else { return };
        for count in 1usize.. {
            if count % BATCH == 0 {
                yield_now().await;
            }
            let Ok(mut ready) = upstream.readable().await else { return };
            let Some(listener) = self.listener.upgrade() else { return };
            let (peer, at) = (self.asked.peer, self.asked.at);
            let answered = datagram::receive_connected(upstream.get_ref().as_fd(), |bytes| {
                let sent = datagram::answer(listener.as_fd(), bytes, peer, at);
                let full = sent.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
                (bytes.len(), sent.is_ok(), full.then(|| bytes.to_vec()))
            });
            match answered {
                Ok((len, sent, kept)) => {
                    self.touch();
                    let sent = match kept {
                        Some(bytes) => self.answer_later(&listener, &bytes).await,
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

    /// Tries once more when the listener's socket was full. The socket is not watched for room: the kernel would tell of
    /// that with every datagram sent.
    async fn answer_later(&self, listener: &Flows, bytes: &[u8]) -> bool {
        sleep(FULL).await;
        datagram::answer(listener.as_fd(), bytes, self.asked.peer, self.asked.at).is_ok()
    }

    /// The flow for the next process.
    ///
    /// # Errors
    /// EMFILE and its kin; `NotConnected` before the flow has an upstream.
    pub(super) fn park(&self) -> io::Result<ParkedStage> {
        let upstream = self.upstream.get().ok_or(io::ErrorKind::NotConnected)?;
        let upstream = upstream.get_ref().try_clone()?;
        Ok(ParkedStage::Flow { asked: self.asked, upstream, quiet: self.quiet() })
    }
}

/// Whether the kernel knows no way to send at all, whatever the other end may say.
fn has_no_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL))
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
