//! The life of a UDP flow, from its first datagram to its end event.
//!
//! # Theory
//! Nobody says when a flow is over: it is when nothing passed either way for `udp_idle_timeout`, or when it is the flow
//! that was quiet the longest and a new peer finds all places taken. An ICMP error ("nobody listens") ends nothing: the
//! upstream may be back for the next datagram. But where a namespace has no way out any more, it is perhaps about to be
//! made anew under its name, which a flow with a busy peer would never notice: the flow ends, and the next datagram
//! begins another. A datagram that cannot be sent at once is dropped, as anywhere on its way.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    flows::{Entry, Flow},
    info::SessionInfo,
    route::Lead,
    stage::NextStage,
    story::Story,
};
use crate::{
    dial::{self, DialStep, Failure, Way, netns::Namespace},
    log::End,
    relay::Why,
};

/// A flow that cannot have an upstream drops its datagrams for this long, before the next datagram makes it try again.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a flow until it is over.
pub(super) async fn live(story: &mut Story, flow: &Arc<Flow>) -> NextStage {
    let entry = Entry(flow);
    let info = story.info.clone();
    if !flow.is_connected() {
        let connected = tokio::select! {
            biased;
            why = info.interrupt.requested_async() => return interrupted(story, flow, why),
            connected = connect(&info, flow) => connected,
        };
        match connected {
            Ok(at) => story.connected(at.as_ref()),
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
    let down = flow.down();
    tokio::pin!(idle, down);
    loop {
        tokio::select! {
            biased;
            why = info.interrupt.requested_async() => return interrupted(story, flow, why),
            () = &mut down => return story.over(End::Drained, "its listener is closed"),
            () = &mut idle => {
                // The timer is set anew when it is over, not with every datagram.
                let quiet = flow.quiet();
                if quiet >= allowed {
                    drop(entry);
                    return story.over(End::Idle, "");
                }
                idle.as_mut().reset(Instant::now() + (allowed - quiet));
            }
        }
    }
}

fn interrupted(story: &mut Story, flow: &Flow, why: Why) -> NextStage {
    if flow.was_evicted() {
        let most = story.info.route.options.max_connections;
        return story.over(End::Idle, format!("it made room for another: {most} flows were there (max_connections)"));
    }
    if flow.was_cut_off() {
        let note = "its namespace has no way there any more; the next datagram looks for one again";
        return story.over(End::Reset, note);
    }
    match why {
        Why::Park => match flow.park() {
            Ok(stage) => story.park(stage),
            Err(e) => story.over(End::Drained, format!("it could not be handed over: {e}")),
        },
        why => story.interrupted(why),
    }
}

/// Gives a flow its upstream; the namespace that the upstream is in when that is not our own.
async fn connect(info: &SessionInfo, flow: &Flow) -> Result<Option<Namespace>, Failure> {
    let (upstream, at) = dial_upstream(info).await?;
    flow.connected(upstream).map(|()| at).map_err(|error| {
        let doing = format!("watch the socket to {}", info.route.upstream_text);
        Failure::Io { step: DialStep::Other, doing, error }
    })
}

async fn dial_upstream(info: &SessionInfo) -> Result<(OwnedFd, Option<Namespace>), Failure> {
    let route = &info.route;
    let Lead::Udp { addr, netns } = &route.lead else {
        let error = io::ErrorKind::Unsupported.into();
        return Err(Failure::Io { step: DialStep::Udp, doing: format!("send to {}", route.upstream_text), error });
    };
    let at = Mutex::new(None);
    let entered = |place| route.entered(place, &at);
    let way = Way { netns: netns.as_ref(), via: Some(&route.via), entered: Some(&entered) };
    let upstream = dial::udp(addr, way, route.options.connect_timeout).await?;
    Ok((upstream, at.into_inner().unwrap_or_else(PoisonError::into_inner)))
}
