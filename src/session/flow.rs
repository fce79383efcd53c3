//! The life of a UDP flow, from its first datagram to its end event.
//!
//! # Theory
//! Nobody says when a flow is over: it is when nothing passed either way for `udp_idle_timeout`, when all answers have
//! come that `udp_responses` expects, or when it is the flow that was quiet the longest and a new flow finds no place
//! (`max_connections`) or no descriptor. An ICMP error ("nobody listens") ends nothing: the upstream may be back for the
//! next datagram. A datagram that cannot be sent at once is dropped, as anywhere on its way.
//!
//! An error and silence raise a doubt about the upstream ([`super::doubt`]). Then a second socket is connected: after a
//! look-up of the name, in the namespace that has the name now, from the source address that the kernel chooses now.
//! Where its ends are not those of the first socket, it takes the place of that one. A flow whose unit is down ends:
//! the next datagram begins another, which has the unit started.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    checkpoint,
    doubt::Cause,
    event,
    flows::{Entry, Eviction, Flow, FlowUpstream},
    info::SessionInfo,
    route::Lead,
    sessions::Sessions,
    stage::{NextStage, Stage},
    story::{DialledAt, Story},
    stream::{retry_until, with_unit},
};
use crate::{
    dial::{self, DialStep, Failure, Present, TimeLimit, Way, netns, netns::Namespace},
    log::{self, End},
    ondemand::BackendUse,
    relay::Why,
    spec::Host,
};

/// A flow that cannot have an upstream drops its datagrams for this long, before the next datagram makes it try again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often, and after which pauses, a dial is tried again after a flow had to make room for it.
const ROOM: (u32, Duration) = (50, Duration::from_millis(2));

/// Runs a flow until it is over.
pub(super) async fn live(story: &mut Story, flow: &Arc<Flow>) -> NextStage {
    let _entry = Entry(flow);
    let next = run(story, flow).await;
    flow.close();
    story.also_noted(&flow.doubt().losses());
    next
}

async fn run(story: &mut Story, flow: &Arc<Flow>) -> NextStage {
    let info = story.info.clone();
    if flow.upstream().is_none() {
        let connected = tokio::select! {
            biased;
            why = info.interrupt.requested_async() => return interrupted(story, flow, why),
            connected = begin(story, flow) => connected,
        };
        match connected {
            Ok(namespace) => {
                story.connected(&DialledAt { address: None, namespace }, &Stage::Flow(flow.clone()));
            }
            Err(failure) => {
                let next = story.failed(&failure);
                // The peer will ask again soon; that is not to be an event each time.
                tokio::select! {
                    () = sleep(PAUSE) => {}
                    _ = info.interrupt.requested_async() => {}
                }
                return next;
            }
        }
    }
    let allowed = info.route.options.udp_idle_timeout;
    let idle = sleep_until(Instant::now() + allowed.saturating_sub(flow.quiet()));
    tokio::pin!(idle);
    if info.route.options.udp_responses == Some(0) && flow.is_complete() {
        return story.over(End::Eof, "");
    }
    while let Some(upstream) = flow.upstream() {
        let (down, other) = (flow.down(&upstream), another_upstream(&info, flow, &upstream));
        tokio::pin!(down, other);
        loop {
            tokio::select! {
                biased;
                why = info.interrupt.requested_async() => return interrupted(story, flow, why),
                complete = &mut down => {
                    let (end, note) = if complete { (End::Eof, "") } else { (End::Drained, "its listener is closed") };
                    return story.over(end, note);
                }
                other = &mut other => {
                    let Some(other) = other else {
                        return story.over(End::Eof, "its unit is down; the next datagram has the unit started");
                    };
                    flow.open(other);
                    checkpoint::flow_open(&info, flow);
                    break;
                }
                () = &mut idle => {
                    // The timer is set anew when it is over, not with every datagram.
                    let quiet = flow.quiet();
                    if quiet >= allowed {
                        return story.over(End::Idle, "");
                    }
                    idle.as_mut().reset(Instant::now() + (allowed - quiet));
                }
            }
        }
    }
    story.over(End::Eof, "")
}

fn interrupted(story: &mut Story, flow: &Flow, why: Why) -> NextStage {
    match (flow.evicted(), why) {
        (Some(Eviction::MaxConnections), _) => {
            let most = story.info.route.options.max_connections;
            story.over(End::Idle, format!("it made room for another: {most} flows were there (max_connections)"))
        }
        (Some(Eviction::Descriptors), _) => {
            story.over(End::Idle, "it made room for another: the service has no descriptor left (LimitNOFILE=)")
        }
        (None, Why::Park) => {
            flow.pass_on();
            if flow.is_complete() {
                return story.over(End::Eof, "");
            }
            match flow.park() {
                Ok(stage) => story.park(stage),
                Err(e) => story.over(End::Drained, format!("it could not be handed over: {e}")),
            }
        }
        (None, why) => story.interrupted(why),
    }
}

/// Waits until another upstream is to take the place of `present`; `None`: the unit of the flow is down.
///
/// # Cancel safety
/// Dropped, it closes what it began.
async fn another_upstream(info: &SessionInfo, flow: &Flow, present: &FlowUpstream) -> Option<FlowUpstream> {
    let named = matches!(&info.route.lead, Lead::Udp { addr, .. } if matches!(addr.host, Host::Name(_)));
    loop {
        flow.doubt().raised().await;
        sleep(flow.doubt().pause(flow.now())).await;
        let Some(cause) = flow.doubt().cause() else { continue }; // an answer came meanwhile
        if let Some(used) = &info.used {
            if used.is_down().await {
                return None;
            }
        }
        let failed = matches!(cause, Cause::Error(_));
        let dialled = dial_upstream(info, Some(Present { target: present.ends.target, failed })).await;
        match dialled.map(|(fd, _)| FlowUpstream::new(fd, info)) {
            Ok(Ok(other)) if other.ends != present.ends => {
                log::emit(event::flow_moved(info, &present.ends, &other.ends, cause));
                flow.doubt().changed(flow.now());
                return Some(other);
            }
            _ => flow.doubt().compared(flow.now(), named),
        }
    }
}

/// Gives a flow its upstream: with a unit, when that is up and takes the first datagram.
async fn begin(story: &Story, flow: &Flow) -> Result<Option<Namespace>, Failure> {
    let info = &story.info;
    let Some(used) = story.used() else { return connect(info, flow, &story.sessions, None).await };
    let netns = info.route.netns().is_some();
    let until = retry_until(info, false, netns);
    let dial = || with_unit(Some(used), until, || connect(info, flow, &story.sessions, Some(used)));
    dial::retrying(until, |_, _| {}, dial).await
}

/// Gives a flow its upstream; the namespace that the upstream is in when that is not our own.
async fn connect(
    info: &SessionInfo,
    flow: &Flow,
    sessions: &Sessions,
    used: Option<&BackendUse>,
) -> Result<Option<Namespace>, Failure> {
    let (upstream, at) = match dial_upstream(info, None).await {
        Err(failure) if lacks_descriptors(&failure, flow) => dial_with_room(info, sessions, failure).await?,
        dialled => dialled?,
    };
    let upstream = FlowUpstream::new(upstream, info).map_err(|error| {
        let doing = format!("watch the socket to {}", info.route.upstream_text);
        Failure::Io { step: DialStep::Other, doing, error }
    })?;
    match used {
        None => flow.open(upstream),
        Some(_) => flow.open_trying(upstream).await.map_err(|error| {
            let doing = format!("send to {}", info.route.upstream_text);
            Failure::Io { step: DialStep::Udp, doing, error }
        })?,
    }
    Ok(at)
}

/// Whether a dial failed because this process, or the machine, has no descriptor left. A failed look-up does not say so.
fn lacks_descriptors(failure: &Failure, flow: &Flow) -> bool {
    let exhausted = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    match failure {
        Failure::Io { step: DialStep::Name, .. } => flow.another_descriptor().is_err_and(|error| exhausted(&error)),
        Failure::Io { error, .. } | Failure::Netns(netns::Trouble::Io { error, .. }) => exhausted(error),
        _ => false,
    }
}

/// Ends the flow that was quiet the longest, and dials when its descriptor is free.
async fn dial_with_room(
    info: &SessionInfo,
    sessions: &Sessions,
    mut failure: Failure,
) -> Result<(OwnedFd, Option<Namespace>), Failure> {
    let Some(quietest) = sessions.quietest_flow() else { return Err(failure) };
    quietest.make_room();
    drop(quietest);
    for _ in 0..ROOM.0 {
        sleep(ROOM.1).await;
        match dial_upstream(info, None).await {
            Ok(dialled) => return Ok(dialled),
            Err(again) => failure = again,
        }
    }
    Err(failure)
}

async fn dial_upstream(info: &SessionInfo, present: Option<Present>) -> Result<(OwnedFd, Option<Namespace>), Failure> {
    let route = &info.route;
    let Lead::Udp { addr, netns } = &route.lead else {
        let error = io::ErrorKind::Unsupported.into();
        return Err(Failure::Io { step: DialStep::Udp, doing: format!("send to {}", route.upstream_text), error });
    };
    let at = Mutex::new(None);
    let entered = |place| route.entered(place, &at);
    // The flow notes its socket.
    let way = Way { netns: netns.as_ref(), via: Some(&route.via), passage: None, entered: Some(&entered) };
    let limit = TimeLimit::from_now(route.options.connect_timeout);
    let upstream = dial::udp(addr, way, limit, present).await?;
    Ok((upstream, at.into_inner().unwrap_or_else(PoisonError::into_inner)))
}
