//! One task for each UDP listener: it receives for all flows of the listener, and begins flows.

use std::{io, os::fd::AsFd as _, sync::Arc, time::Duration};

use tokio::{task::yield_now, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{listening::ServedListener, refuse::Refusals};
use crate::{
    relay::{
        Counters,
        datagram::{self, Asked},
    },
    session::{self, Flows, Peer, Permits, SessionInfo, Sessions, Stage},
};

/// Datagrams received in one go, before the task looks whether it is to stop.
const BATCH: usize = 64;
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
    sessions.know_flows(flows);
    loop {
        let Some(Ok(mut ready)) = stop.run_until_cancelled(flows.io().readable()).await else { return };
        let mut more = true;
        for _ in 0..BATCH {
            let received = datagram::receive(flows.as_fd(), |bytes, peer, at| {
                take(listening, flows, sessions, bytes, Asked { peer, at }, &mut refusals);
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

/// Gives one datagram to its flow, which is begun if the peer may have one.
fn take(
    listening: &ServedListener,
    flows: &Arc<Flows>,
    sessions: &Arc<Sessions>,
    bytes: &[u8],
    asked: Asked,
    refusals: &mut Refusals,
) {
    if flows.get(&asked).is_some_and(|flow| flow.up(bytes)) {
        return;
    }
    let route = listening.route();
    if route.tally.paused() {
        return; // flows that are there go on
    }
    let peer = Peer::Inet(asked.peer);
    if let Err(list) = route.access.check(&peer) {
        return refusals.deny(&route, &peer, list);
    }
    let passage = match listening.entrance().received(asked.peer, asked.at.map(|at| at.ip)) {
        Ok(passage) => passage,
        Err(circle) => return refusals.leads_back(&route, &peer, &circle),
    };
    let most = route.options.max_connections;
    let info = SessionInfo::new(Uuid::new_v4(), route, peer, Duration::ZERO, Counters::default());
    let info = Arc::new(info.through(passage));
    let flow = flows.begin(asked, info.clone(), most);
    let _taken = flow.up(bytes); // its task has not begun, so it is not over
    session::begin(sessions, info, Stage::Flow(flow), Permits::default());
}
