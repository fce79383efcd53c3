//! One task for each UDP listener: it receives for all flows of the listener, and begins flows.

use std::{io, sync::Arc, time::Duration};

use tokio::{task::yield_now, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{listening::ServedListener, refuse::Refusals};
use crate::{
    relay::{
        Counters,
        datagram::{Asked, ReceivedGroup},
    },
    session::{self, Flows, Peer, Permits, SessionInfo, Sessions, Stage},
};

/// The pause after a receive that failed for want of memory.
const EXHAUSTED: Duration = Duration::from_millis(5);

/// Receives for all flows of a listener until `stop`.
pub(super) async fn receive(
    listening: &ServedListener,
    flows: &Arc<Flows>,
    sessions: &Arc<Sessions>,
    stop: &CancellationToken,
) {
    let mut refusals = Refusals::default();
    flows.take_runs(); // again, where an earlier task has passed the listener on and the service goes on
    sessions.know_flows(flows);
    let mut take = |asked, group: ReceivedGroup<'_>| take(listening, flows, sessions, asked, group, &mut refusals);
    while let Some(Ok(mut ready)) = stop.run_until_cancelled(flows.io().readable()).await {
        match flows.receive(&mut take) {
            Ok(left) if left.more => yield_now().await, // a flood of datagrams leaves room for others
            Ok(_) => ready.clear_ready(),               // the queue was empty; what comes makes it ready again
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS)) => sleep(EXHAUSTED).await,
            Err(_) => {} // an ICMP error that an answer of ours met
        }
    }
    flows.pass_on(take);
}

/// Gives datagrams to their flow, which is begun if the peer may have one.
fn take(
    listening: &ServedListener,
    flows: &Arc<Flows>,
    sessions: &Arc<Sessions>,
    asked: Asked,
    group: ReceivedGroup<'_>,
    refusals: &mut Refusals,
) {
    let mut datagrams = group.datagrams;
    if let Some(flow) = flows.get(&asked) {
        flow.truncated(group.truncated);
        match flow.up(datagrams) {
            Ok(()) => return,
            Err(rest) => datagrams = rest,
        }
    }
    if datagrams.is_empty() {
        return;
    }
    let route = listening.route();
    if route.tally.paused() {
        return; // flows that are there go on
    }
    let peer = Peer::Inet(asked.peer);
    if let Err(list) = route.access.check(&peer) {
        return refusals.deny(&route, &peer, list, datagrams.iter().count());
    }
    let passage = match listening.entrance().received(asked.peer, asked.at.map(|at| at.ip)) {
        Ok(passage) => passage,
        Err(circle) => return refusals.leads_back(&route, &peer, &circle, datagrams.iter().count()),
    };
    let most = route.options.max_connections;
    let info = SessionInfo::new(Uuid::new_v4(), route, peer, Duration::ZERO, Counters::default());
    let info = Arc::new(info.through(passage));
    let flow = flows.begin(asked, info.clone(), most);
    let _taken = flow.up(datagrams); // its task has not begun, so it is not over
    session::begin(sessions, info, Stage::Flow(flow), Permits::default());
}
