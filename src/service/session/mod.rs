//! The life of one session, from accept to its one end event.
//!
//! # Theory
//! A session is at one of three stages, and each can be parked for the next process as it stands:
//!
//! * **Waiting**: the peer is connected to us and nothing else is: it waits for its turn, for a back-off to pass or
//!   for its upstream to answer. Nothing was read from it, so the next process can dial anew.
//! * **SettingUp**: its `qrexec-client-vm` asks dom0. It is handed over as it is: no question is asked twice.
//! * **Relaying**: bytes flow.
//!
//! While the peer is not read it is watched; when it is gone, so is the session.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, mpsc::UnboundedSender},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::TaskTracker;

mod access;
pub mod descriptors;
pub mod event;
pub mod flow;
mod route;
mod sessions;
mod tally;
pub mod tidy;
pub mod watch;

pub use access::Peer;
pub use flow::{Asked, Flow};
pub use route::Route;
pub use sessions::{Info, Sessions};
pub use tally::{Counted, DIAL_BOUNDS_MS, Kept, Reason, Tallies, Tally};
pub use watch::{Ending, Watchers};

use super::{control::api::Happened, handover};
use crate::{
    dial::{
        self, Failure, Way,
        netns::Place,
        qrexec::{
            Call, Child, Client, Decision, Exit, ParkedCall, Stderr,
            gate::{Gates, Ticket, UNDECIDED},
        },
    },
    log::{self, End, Kind},
    proto::qrexec::{LOST, SetUp},
    relay::{self, Outcome, Relay, Side, Why},
    spec::Upstream,
    stream::{self, Stream},
};

/// How long a child may take to end by itself after both its pipes have ended: what it still does is to wait for the
/// service's exit code.
const EXIT_GRACE: Duration = Duration::from_secs(10);

/// How long the end of a service's output is kept from the peer, for the exit code that says what it means. It comes
/// 1 to 2 ms after the output's end (qrexec 4.1 and 4.2, with a shell and two pipes behind the service: up to 30 ms), and
/// later only when the service ended nothing but its output.
const VERDICT: Duration = Duration::from_millis(100);

/// How long a slow receiver may take nothing before the reset that waits behind its last bytes is passed on.
const DELIVERY: Duration = Duration::from_secs(10);

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    /// What makes qrexec calls.
    pub client: Client,
    /// Limits of qrexec calls.
    pub gates: Gates,
    /// The sessions that live now.
    pub sessions: Sessions,
    /// What is counted.
    pub tallies: Tallies,
    /// Those who want to hear what happens to sessions.
    pub watchers: Watchers,
    /// Their tasks.
    pub tasks: TaskTracker,
    /// Where parked sessions go.
    pub parked: UnboundedSender<Parked>,
}

/// The places a session takes up, on its listener and among the calls into its qube; given back when it ends.
#[derive(Debug, Default)]
pub struct Permits {
    /// On the listener.
    pub _session: Option<OwnedSemaphorePermit>,
    /// Among the calls.
    pub _call: Option<OwnedSemaphorePermit>,
}

/// Where a session stands.
#[derive(Debug)]
pub enum Stage {
    /// Not dialled yet, or dialling.
    Waiting(Stream),
    /// A qrexec call that is not decided yet.
    SettingUp(Box<(Stream, Call, Ticket)>),
    /// Bytes flow; through a child where the upstream is a qrexec call.
    Relaying(Box<Relay>, Option<Box<(Child, Stderr)>>),
    /// Datagrams flow.
    Flow(Arc<Flow>),
}

/// A session for the next process.
#[derive(Debug)]
pub struct Parked {
    /// Who it is.
    pub info: Arc<Info>,
    /// Where it stood.
    pub stage: ParkedStage,
}

/// A [`Stage`], taken off the runtime.
#[derive(Debug)]
pub enum ParkedStage {
    /// The peer's socket.
    Waiting(stream::Kind, std::os::fd::OwnedFd),
    /// The peer's socket, the child and its pipes.
    SettingUp(stream::Kind, std::os::fd::OwnedFd, Child, Stderr, ParkedCall),
    /// Both ends and what was between them.
    Relaying(relay::Parked, Option<(Child, Stderr)>),
    /// A flow's upstream socket.
    Flow {
        /// Which flow of its listener.
        asked: Asked,
        /// Its socket.
        upstream: std::os::fd::OwnedFd,
        /// How long nothing had passed.
        quiet: Duration,
    },
}

impl ParkedStage {
    /// Ends what nobody takes up; a child is killed when it is dropped.
    pub fn abandon(self) {
        match self {
            Self::Waiting(_, peer) | Self::SettingUp(_, peer, ..) => handover::abandon(&peer),
            Self::Relaying(relay, _) => {
                for end in [relay.peer, relay.upstream] {
                    if let relay::ParkedEnd::Socket(_, fd) = end {
                        handover::abandon(&fd);
                    }
                }
            }
            Self::Flow { .. } => {} // nobody sees the end of a datagram socket
        }
    }
}

/// Begins a session that was accepted just now.
pub fn begin(shared: &Arc<Shared>, info: Arc<Info>, stage: Stage, permits: Permits) {
    info.route.tally.session_began();
    shared.watchers.tell(Happened::Began, &info, None);
    start(shared, info, stage, permits);
}

/// Tells that a session is over.
pub(super) fn tell_end(shared: &Shared, info: &Info, end: End, exit: Option<u8>, note: &str) {
    info.route.tally.session_ended(end, (info.counters.up(), info.counters.down()));
    shared.watchers.tell(Happened::Ended, info, Some(Ending { end, exit, note }));
    log::emit(event::ended(info, end, exit, note));
}

/// Starts the session's task.
pub fn start(shared: &Arc<Shared>, info: Arc<Info>, stage: Stage, permits: Permits) {
    shared.sessions.add(info.clone());
    let story = Story { info, shared: shared.clone(), end: None, exit: None, note: String::new(), parked: false };
    shared.tasks.spawn(Session { story, _permits: permits }.run(stage));
}

/// Tells the end, once, whatever happens: the event is sent when this is dropped.
pub(super) struct Story {
    pub(super) info: Arc<Info>,
    shared: Arc<Shared>,
    end: Option<End>,
    exit: Option<u8>,
    /// What else is to be said of the end.
    pub(super) note: String,
    /// Its end is for the next process to tell.
    parked: bool,
}

impl Drop for Story {
    fn drop(&mut self) {
        self.shared.sessions.remove(&self.info.id);
        if !self.parked {
            let end = self.end.unwrap_or(End::Panicked);
            tell_end(&self.shared, &self.info, end, self.exit, &self.note);
        }
    }
}

pub(super) struct Session {
    pub(super) story: Story,
    _permits: Permits,
}

/// What comes after a stage: another, or nothing.
pub(super) type Next = Option<Stage>;

impl Session {
    /// What passes or is rare has a box of its own: thousands of sessions wait in the plain relay. (An `async fn` would
    /// keep its arguments twice.)
    #[allow(clippy::manual_async_fn)]
    fn run(mut self, mut stage: Stage) -> impl Future<Output = ()> {
        async move {
            loop {
                let next = match stage {
                    Stage::Waiting(peer) => Box::pin(self.wait(peer)).await,
                    Stage::SettingUp(call) => Box::pin(self.set_up(call)).await,
                    Stage::Relaying(relay, None) => self.relay(relay).await,
                    Stage::Relaying(relay, Some(child)) => Box::pin(self.relay_call(relay, child)).await,
                    Stage::Flow(flow) => Box::pin(self.flow(&flow)).await,
                };
                match next {
                    Some(next) => stage = next,
                    None => return,
                }
            }
        }
    }

    pub(super) fn park(&mut self, stage: ParkedStage) -> Next {
        self.story.parked = true;
        // The receiver outlives all sessions; were it gone, the session would end by closing what it holds.
        let _ = self.story.shared.parked.send(Parked { info: self.story.info.clone(), stage });
        None
    }

    pub(super) fn over(&mut self, end: End) -> Next {
        self.story.end = Some(end);
        None
    }

    pub(super) fn interrupted(&mut self, why: Why) -> Next {
        self.over(if why == Why::Killed { End::Killed } else { End::Drained })
    }

    pub(super) fn failed(&mut self, failure: &Failure) -> Next {
        let info = &self.story.info;
        info.route.tally.dial_failed(Reason::from(failure), info.dial_ms().is_some());
        let (end, note) = event::failure(&info.route, failure);
        self.story.note = note;
        self.over(end)
    }

    pub(super) fn connected(&self, at: Option<&Place>) {
        let (info, ms) = (&self.story.info, self.story.info.age_ms());
        info.connected(ms);
        info.route.tally.dialled(ms);
        self.story.shared.watchers.tell(Happened::Connected, info, None);
        log::emit(event::started(info, at));
    }

    async fn wait(&mut self, peer: Stream) -> Next {
        let info = self.story.info.clone();
        let dialled = tokio::select! {
            biased;
            why = info.interrupt.requested_async() => Err(why),
            () = dial::abandoned(&peer) => Ok(Err(Failure::PeerGone)),
            dialled = self.dial(&info.route) => Ok(dialled),
        };
        match dialled {
            Ok(Ok(Dialled::Stream(upstream, at))) => {
                // What comes from our own front half has its header already.
                let version = info.route.via.proxy_protocol.filter(|_| !info.route.access.is_own(&peer));
                if let Some(version) = version {
                    if let Err(failure) = dial::proxy::introduce(&peer, &upstream, version) {
                        peer.reset();
                        return self.failed(&failure);
                    }
                }
                self.connected(at.as_ref());
                let (peer, upstream) = (relay::End::Socket(peer), relay::End::Socket(upstream));
                let relay = new_relay(peer, upstream, &info.route);
                Some(Stage::Relaying(Box::new(relay), None))
            }
            Ok(Ok(Dialled::Call(call, ticket))) => Some(Stage::SettingUp(Box::new((peer, call, ticket)))),
            Ok(Err(failure)) => {
                peer.reset();
                self.failed(&failure)
            }
            Err(Why::Park) => self.park(ParkedStage::Waiting(peer.kind(), peer.into_fd())),
            Err(why) => {
                peer.reset();
                self.interrupted(why)
            }
        }
    }

    async fn dial(&self, route: &Route) -> Result<Dialled, Failure> {
        let options = &route.options;
        // A session that an earlier process accepted has had some of its time.
        let left = |allowed: Duration| allowed.saturating_sub(self.story.info.accepted.elapsed());
        match (&route.upstream, &route.call) {
            (Some(Upstream::Qrexec(_)), Some(limits)) => {
                let allowed = options.setup_timeout;
                let turn = timeout(left(allowed), limits.gate.clone().enter(options.max_setups)).await;
                let ticket = turn.map_err(|_| Failure::TimedOut(allowed))?.map_err(|_| Failure::RefusedAlready)?;
                Ok(Dialled::Call(Call::start(&self.story.shared.client, &limits.call)?, ticket))
            }
            (Some(Upstream::Unix(addr)), _) => {
                let waiting = |e: &std::io::Error, pause| event::waiting(&self.story.info, addr, e, pause);
                let dialled = dial::unix(addr, left(options.connect_timeout), waiting).await;
                dialled.map(|upstream| Dialled::Stream(upstream, None))
            }
            (Some(Upstream::Tcp { addr, netns }), _) => {
                let allowed = options.connect_timeout;
                let at = Mutex::new(None);
                let entered = |place| route.entered(place, &at);
                let way = Way { netns: netns.as_ref(), via: Some(&route.via), entered: Some(&entered) };
                let dialled = dial::tcp(addr, way, left(allowed), options.keepalive).await;
                let at = at.into_inner().unwrap_or_else(PoisonError::into_inner);
                match dialled {
                    Err(Failure::TimedOut(_)) => Err(Failure::TimedOut(allowed)),
                    result => result.map(|upstream| Dialled::Stream(upstream, at)),
                }
            }
            _ => {
                let error = std::io::ErrorKind::Unsupported.into();
                Err(Failure::Io { doing: format!("reach {}", route.upstream_text), error })
            }
        }
    }

    async fn set_up(&mut self, call: Box<(Stream, Call, Ticket)>) -> Next {
        let (peer, mut call, mut ticket) = *call;
        let info = self.story.info.clone();
        let decision = {
            let allowed = info.route.options.setup_timeout;
            // From accept on: the wait at the gate counts.
            let deadline = info.accepted + allowed;
            let decided = call.decided(&peer, (deadline, allowed), |line| event::stderr(&info, line));
            tokio::pin!(decided);
            let mut late = false;
            loop {
                tokio::select! {
                    biased;
                    why = info.interrupt.requested_async() => break Err(why),
                    decision = &mut decided => break Ok(decision),
                    () = sleep(UNDECIDED), if !late => {
                        late = true;
                        ticket.undecided();
                    }
                }
            }
        };
        match decision {
            Ok(Decision::Connected) => {
                ticket.allowed();
                let parts = call.into_parts();
                if let Some(version) = info.route.via.proxy_protocol {
                    if let Err(failure) = dial::proxy::introduce(&peer, &parts.to, version) {
                        peer.reset();
                        let next = self.failed(&failure);
                        drop((parts.from, parts.to));
                        self.end_child(parts.child, parts.stderr).await;
                        return next;
                    }
                }
                self.connected(None);
                let upstream = relay::End::pipes(parts.from, parts.to);
                let relay = new_relay(relay::End::Socket(peer), upstream, &info.route);
                Some(Stage::Relaying(Box::new(relay), Some(Box::new((parts.child, parts.stderr)))))
            }
            Ok(Decision::Failed(failure)) => {
                if event::is_refusal(&failure) {
                    ticket.refused();
                } else {
                    drop(ticket);
                }
                let parts = call.into_parts();
                peer.reset();
                let next = self.failed(&failure);
                drop((parts.from, parts.to));
                self.end_child(parts.child, parts.stderr).await;
                next
            }
            Err(Why::Park) => {
                let (child, stderr, parked) = call.park();
                self.park(ParkedStage::SettingUp(peer.kind(), peer.into_fd(), child, stderr, parked))
            }
            Err(why) => {
                peer.reset();
                let parts = call.into_parts();
                drop((parts.from, parts.to));
                self.end_child(parts.child, parts.stderr).await;
                self.interrupted(why)
            }
        }
    }

    async fn relay(&mut self, mut relay: Box<Relay>) -> Next {
        let mut outcome = relay.run(&self.story.info.counters, &self.story.info.interrupt).await;
        if let Outcome::Reset { by, .. } = outcome {
            if let Err(why) = Box::pin(delivered(&relay, by.other(), &self.story.info)).await {
                outcome = Outcome::Interrupted(why);
            }
        }
        match outcome {
            Outcome::Interrupted(Why::Park) => self.park(ParkedStage::Relaying(relay.park(), None)),
            outcome => self.close(*relay, outcome),
        }
    }

    async fn relay_call(&mut self, mut relay: Box<Relay>, child: Box<(Child, Stderr)>) -> Next {
        let info = self.story.info.clone();
        let (mut child, mut stderr) = *child;
        relay.hold_end();
        let mut lost = None;
        let mut outcome = loop {
            let outcome = tokio::select! {
                biased;
                outcome = relay.run(&info.counters, &info.interrupt) => outcome,
                () = stderr.drain(|line| event::stderr(&info, line)) => unreachable!("it is drained for ever"),
            };
            if !matches!(outcome, Outcome::UpstreamEnded) {
                break outcome;
            }
            let exit = tokio::select! {
                biased;
                exit = timeout(VERDICT, child.exited()) => exit.unwrap_or(Exit::Unknown),
                () = stderr.drain(|line| event::stderr(&info, line)) => unreachable!("it is drained for ever"),
                _ = info.interrupt.requested_async() => Exit::Unknown,
            };
            match exit {
                Exit::Code(code) if info.counters.down() == 0 && SetUp::from_exit(code).never_began() => {
                    let (peer, upstream) = relay.into_ends();
                    peer.reset();
                    upstream.reset();
                    let next = self.failed(&Failure::Call(Some(SetUp::from_exit(code))));
                    self.end_child(child, stderr).await;
                    return next;
                }
                Exit::Code(LOST) | Exit::Signal(_) => {
                    lost = Some(exit);
                    break Outcome::Reset { by: Side::Upstream, error: None };
                }
                Exit::Code(_) | Exit::Unknown => relay.pass_end(),
            }
        };
        if lost.is_some() {
            if let Err(why) = delivered(&relay, Side::Peer, &info).await {
                outcome = Outcome::Interrupted(why);
            }
        }
        if matches!(outcome, Outcome::Eof { .. }) {
            let exited = tokio::select! {
                biased;
                exit = timeout(EXIT_GRACE, child.exited()) => Ok(exit.is_ok()),
                () = stderr.drain(|line| event::stderr(&info, line)) => unreachable!("it is drained for ever"),
                why = info.interrupt.requested_async() => Err(why),
            };
            if let Err(Why::Park) = exited {
                return self.park(ParkedStage::Relaying(relay.park(), Some((child, stderr))));
            }
        }
        if let Outcome::Interrupted(Why::Park) = outcome {
            return self.park(ParkedStage::Relaying(relay.park(), Some((child, stderr))));
        }
        let next = self.close(*relay, outcome);
        if let Some(exit) = lost {
            self.story.note = event::lost(exit);
        }
        self.end_child(child, stderr).await;
        next
    }

    /// Closes both ends as the outcome asks.
    fn close(&mut self, relay: Relay, outcome: Outcome) -> Next {
        let (peer, upstream) = relay.into_ends();
        match outcome {
            // A plain close: a reset would take back the end of the reply from a peer that has not read it yet.
            Outcome::Eof { dropped: 0 } => self.over(End::Eof),
            Outcome::Eof { dropped } => {
                self.story.note = format!("the upstream had ended before {dropped} more bytes of the peer came");
                self.over(End::Eof)
            }
            Outcome::Reset { by, error } => {
                match by {
                    Side::Peer => upstream.reset(),
                    Side::Upstream => peer.reset(),
                }
                self.story.note = event::reset(by, error.as_ref());
                self.over(End::Reset)
            }
            // Told to go on, it says how it ends.
            Outcome::UpstreamEnded => self.over(End::Eof),
            Outcome::Idle => {
                peer.reset();
                upstream.reset();
                self.over(End::Idle)
            }
            Outcome::Interrupted(why) => {
                peer.reset();
                upstream.reset();
                self.interrupted(why)
            }
        }
    }

    /// Makes sure that the child has ended, and notes its exit code when it ended by itself.
    async fn end_child(&mut self, mut child: Child, mut stderr: Stderr) {
        let info = self.story.info.clone();
        let by_itself = timeout(Duration::ZERO, child.exited()).await;
        let exit = match by_itself {
            Ok(exit) => exit,
            Err(_) => {
                let (_, killed) = child.end().await;
                if killed {
                    let text = format!("process {} ignored SIGTERM and was killed", child.pid());
                    log::emit(event::about(&info, Kind::CallKilled, text));
                }
                Exit::Unknown
            }
        };
        stderr.finish(|line| event::stderr(&info, line));
        self.story.exit = exit.code();
    }
}

/// Waits until `side` has what was written to it, so that a reset takes nothing back. A side that acknowledges nothing
/// more for [`DELIVERY`] has itself to blame.
async fn delivered(relay: &Relay, side: Side, info: &Info) -> Result<(), Why> {
    let (mut left, mut since, mut pause) = (usize::MAX, Instant::now(), Duration::from_millis(1));
    loop {
        let now = relay.undelivered(side);
        if now == 0 || (now == left && since.elapsed() > DELIVERY) {
            return Ok(());
        }
        if now != left {
            (left, since) = (now, Instant::now());
        }
        tokio::select! {
            why = info.interrupt.requested_async() => return Err(why),
            () = sleep(pause) => pause = (pause * 2).min(Duration::from_millis(100)),
        }
    }
}

fn new_relay(peer: relay::End, upstream: relay::End, route: &Route) -> Relay {
    let mut relay = Relay::new(peer, upstream, route.options.idle_timeout);
    route.options.buffer_size.into_iter().for_each(|bytes| relay.limit_buffer(bytes));
    relay
}

/// What a dial gave.
enum Dialled {
    /// And the namespace that it was dialled in, when that is not our own.
    Stream(Stream, Option<Place>),
    Call(Call, Ticket),
}

#[cfg(test)]
pub(super) mod tests;
