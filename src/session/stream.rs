//! The stages of a stream session: wait and dial, relay, close.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    checkpoint, event,
    info::{AtGate, SessionInfo},
    keepalive,
    parked::ParkedStage,
    ports,
    route::{CallLimits, Lead, Route},
    stage::{NextStage, SettingUp, Stage},
    story::{DialledAt, Story},
};
use crate::{
    dial::{
        self, Connected, DialStep, Failure, NotedSocket, RetryUntil, TimeLimit, Way,
        qrexec::{
            CallPermit, LiveCall,
            gate::{Ticket, TurnedAway, Visitor},
        },
    },
    log::{self, End, counted},
    ondemand::BackendUse,
    relay::{self, Relay, RelayOutcome, Side, Why},
    spec::{HostPort, Netns},
    stream::Stream,
};

/// How long a slow receiver may take nothing before the reset that waits behind its last bytes is passed on.
const DELIVERY: Duration = Duration::from_secs(10);

/// Result of a successful dial.
enum Dialled {
    /// A connected stream.
    Stream(Stream, DialledAt, Option<NotedSocket>),
    /// A call that is not decided yet.
    Call(LiveCall, Ticket, CallPermit),
}

/// Dials the upstream, and watches the peer meanwhile.
pub(super) async fn wait(story: &mut Story, peer: Stream) -> NextStage {
    let info = story.info.clone();
    let dialled = tokio::select! {
        biased;
        why = info.interrupt.requested_async() => Err(why),
        () = dial::abandoned(&peer) => Ok(Err(Failure::PeerGone)),
        dialled = dial(story) => Ok(dialled),
    };
    match dialled {
        Ok(Ok(Dialled::Stream(upstream, at, noted))) => {
            // What comes from our own front half has its header already.
            let version = info.route.via.proxy_protocol.filter(|_| !info.route.access.is_own(&peer));
            let preface = match version.map(|version| dial::proxy::introduce(&peer, &upstream, version)) {
                None => 0,
                Some(Ok(length)) => length as u64,
                Some(Err(failure)) => {
                    peer.reset();
                    return story.failed(&failure);
                }
            };
            checkpoint::begin(&info, [&peer, &upstream], preface);
            story.hold_note(noted);
            let (peer, upstream) = (relay::RelayEnd::Socket(peer), relay::RelayEnd::Socket(upstream));
            let stage = Stage::Relaying(Box::new(new_relay(peer, upstream, &info.route)), None);
            story.connected(&at, &stage);
            Some(stage)
        }
        Ok(Ok(Dialled::Call(call, ticket, permit))) => {
            story.hold(permit);
            Some(Stage::SettingUp(Box::new(SettingUp { peer, call, ticket })))
        }
        Ok(Err(failure)) => {
            peer.reset();
            story.failed(&failure)
        }
        Err(Why::Park) => story.park(ParkedStage::Waiting(peer.into())),
        Err(why) => {
            peer.reset();
            story.interrupted(why)
        }
    }
}

async fn dial(story: &Story) -> Result<Dialled, Failure> {
    let info = &story.info;
    // A unit that is being started is no news: the unit has its own events.
    let waiting = |failure: &Failure, pause| match story.used() {
        Some(_) => {}
        None => event::waiting(info, failure, pause),
    };
    match &info.route.lead {
        Lead::Call(limits) => begin_call(story, limits).await,
        Lead::Unix(addr) => {
            let until = retry_until(info, true, false);
            let dial =
                || with_unit(story.used(), until, || std::future::ready(dial::unix(addr, info.passage.as_ref())));
            let (upstream, noted) = dial::retrying(until, waiting, dial).await?;
            Ok(Dialled::Stream(upstream, DialledAt::default(), noted))
        }
        Lead::Tcp { addr, netns } => {
            let until = retry_until(info, false, netns.is_some());
            let again = !info.route.options.retry_for(false).is_zero();
            let dial = || with_unit(story.used(), until, || dial_tcp(info, addr, netns.as_ref(), again));
            dial::retrying(until, waiting, dial).await
        }
        Lead::Udp { .. } | Lead::Unknown => {
            let error = std::io::ErrorKind::Unsupported.into();
            Err(Failure::Io { step: DialStep::Other, doing: format!("reach {}", info.route.upstream_text), error })
        }
    }
}

/// One try, when the unit of the session is up. The unit gets the result.
pub(super) async fn with_unit<T, F: Future<Output = Result<T, Failure>>>(
    used: Option<&BackendUse>,
    until: RetryUntil,
    dial: impl FnOnce() -> F,
) -> Result<T, Failure> {
    let Some(used) = used else { return dial().await };
    match timeout_at(until.absent, used.awake()).await {
        Ok(Ok(())) => {}
        Ok(Err(failure)) => return Err(Failure::Unit(failure.to_string())),
        Err(_) => {
            let (unit, state) = used.standing();
            let state = state.as_str();
            return Err(Failure::Unit(format!("{unit} is not up yet ({state}); retry_timeout gives it more time")));
        }
    }
    let dialled = dial().await;
    match dialled {
        Ok(_) => used.answered(),
        Err(_) => used.look_again(),
    }
    dialled
}

/// Until when the dial of a session is retried; times count from accept, in whichever process that was.
pub(super) fn retry_until(info: &SessionInfo, unix: bool, in_namespace: bool) -> RetryUntil {
    let options = &info.route.options;
    let retry = options.retry_for(unix);
    RetryUntil { absent: info.accepted + retry, busy: info.accepted + retry.max(options.connect_timeout), in_namespace }
}

/// Waits for the session's turn and begins a call.
async fn begin_call(story: &Story, limits: &CallLimits) -> Result<Dialled, Failure> {
    let info = &story.info;
    let options = &info.route.options;
    let allowed = options.setup_timeout;
    if let Some(next) = info.redials.next() {
        sleep_until(next).await;
    }
    let no_call = || {
        let waiting = limits.qube.wait();
        if let Some(waiting) = waiting.news {
            log::emit(event::no_call_left(info, limits, waiting));
        }
        (waiting, info.queue())
    };
    let full = |calls| log::emit(event::gate_full(info, limits, calls));
    let (max, arrived) = (options.max_setups, info.accepted);
    let no_turn = || info.waits(AtGate::Turn, Duration::ZERO);
    let visitor = Visitor { max, arrived, qube: &limits.qube, no_call, no_turn, full };
    let (ticket, permit) = tokio::select! {
        biased;
        entered = limits.gate.clone().enter(visitor) => entered.map_err(|why| match why {
            TurnedAway::Refused => Failure::RefusedAlready,
            TurnedAway::Full(calls) => Failure::ManyUndecided(calls),
        })?,
        () = set_up_late(info, allowed) => return Err(Failure::TimedOut(allowed)),
    };
    Ok(Dialled::Call(LiveCall::start(story.sessions.client(), &limits.call)?, ticket, permit))
}

/// Waits until a set-up has taken all the time that it may.
async fn set_up_late(info: &SessionInfo, allowed: Duration) {
    loop {
        let deadline = info.setup_deadline(allowed);
        if deadline <= Instant::now() {
            return;
        }
        // The deadline moves while the session waits for a call.
        sleep_until(deadline).await;
    }
}

/// One try; with `again` one of several, of which each has the whole `connect_timeout`.
async fn dial_tcp(info: &SessionInfo, addr: &HostPort, netns: Option<&Netns>, again: bool) -> Result<Dialled, Failure> {
    let (route, options) = (&info.route, &info.route.options);
    let allowed = options.connect_timeout;
    let began = if again { Instant::now() } else { info.accepted };
    let limit = TimeLimit { allowed, deadline: began + allowed };
    let at = Mutex::new(None);
    let entered = |place| route.entered(place, &at);
    let way = Way { netns, via: Some(&route.via), passage: info.passage.as_ref(), entered: Some(&entered) };
    let dialled = dial::tcp(addr, way, limit, options.keepalive).await;
    let Connected { stream, noted, address } = dialled.inspect_err(|failure| ports::look(info, addr, failure))?;
    let at = at.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Dialled::Stream(stream, DialledAt { address, namespace: at }, noted))
}

/// Relays between two sockets.
pub(super) async fn relay(story: &mut Story, mut relay: Box<Relay>) -> NextStage {
    let mut outcome = keepalive::run(&mut relay, &story.info).await;
    if let RelayOutcome::Reset { by, .. } | RelayOutcome::Silent { side: by, .. } = outcome {
        if let Err(why) = Box::pin(delivered(&relay, by.other(), &story.info)).await {
            outcome = RelayOutcome::Interrupted(why);
        }
    }
    match outcome {
        RelayOutcome::Interrupted(Why::Park) => {
            let relay = relay.park(&story.info.counters);
            story.park(ParkedStage::Relaying { relay, helper: None })
        }
        outcome => close(story, *relay, outcome),
    }
}

/// Closes both ends as the outcome asks.
pub(super) fn close(story: &mut Story, relay: Relay, outcome: RelayOutcome) -> NextStage {
    story.release_note();
    story.ending(match outcome {
        RelayOutcome::Eof { .. } | RelayOutcome::UpstreamEnded => End::Eof,
        RelayOutcome::Reset { .. } | RelayOutcome::Silent { .. } => End::Reset,
        RelayOutcome::Idle => End::Idle,
        RelayOutcome::Interrupted(Why::Killed) => End::Killed,
        RelayOutcome::Interrupted(_) => End::Drained,
    });
    let (peer, upstream) = relay.into_ends();
    match outcome {
        // A plain close: a reset would take back the end of the reply from a peer that has not read it yet.
        RelayOutcome::Eof { dropped: 0 } => story.over(End::Eof, ""),
        RelayOutcome::Eof { dropped } => story.over(
            End::Eof,
            format!("the upstream had ended before {} of the peer came", counted(dropped, "more byte")),
        ),
        RelayOutcome::Reset { by, error } => {
            match by {
                Side::Peer => upstream.reset(),
                Side::Upstream => peer.reset(),
            }
            story.over(End::Reset, event::reset(by, error.as_ref()))
        }
        // Only a relay that holds the end back gives this outcome; who resumes it knows the end.
        RelayOutcome::UpstreamEnded => story.over(End::Eof, ""),
        RelayOutcome::Idle => {
            peer.reset();
            upstream.reset();
            story.over(End::Idle, "")
        }
        RelayOutcome::Silent { side, allowed } => {
            peer.reset();
            upstream.reset();
            story.over(End::Reset, event::silent(side, allowed))
        }
        RelayOutcome::Interrupted(why) => {
            peer.reset();
            upstream.reset();
            story.interrupted(why)
        }
    }
}

/// Waits until `side` has what was written to it, so that a reset takes nothing back. A side that acknowledges nothing
/// more for [`DELIVERY`] has itself to blame.
pub(super) async fn delivered(relay: &Relay, side: Side, info: &SessionInfo) -> Result<(), Why> {
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

/// A relay with the options of a route.
pub(super) fn new_relay(peer: relay::RelayEnd, upstream: relay::RelayEnd, route: &Route) -> Relay {
    let mut relay = Relay::new(peer, upstream, route.options.idle_timeout);
    route.options.buffer_size.into_iter().for_each(|bytes| relay.limit_buffer(bytes));
    relay
}
