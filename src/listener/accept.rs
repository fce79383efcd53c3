//! One task for each stream listener: wait for a connection, take the permits, accept.
//!
//! The order matters. A listener that nobody connects to holds no permit; a permit is there before the connection is
//! taken from the kernel, so what exceeds a limit waits in the backlog, where nothing of it can be lost.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockAddr;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    datagram,
    listening::{Io, Listening, Streams},
    refuse::deny,
    reminder::Reminder,
};
use crate::{
    log::{Kind, emit, say},
    relay::Counters,
    session::{self, Info, Peer, Permits, Route, Sessions, Stage},
    stream::Stream,
    sys::{
        self,
        accept::{Backoff, Next},
    },
};

/// Accepts or receives until `stop`.
pub(super) async fn serve(listening: &Listening, sessions: &Arc<Sessions>, stop: &CancellationToken) {
    match &listening.io {
        Io::Streams(streams) => accept(listening, streams, sessions, stop).await,
        Io::Datagrams(flows) => datagram::receive(listening, flows, sessions, stop).await,
    }
}

async fn accept(listening: &Listening, streams: &Streams, sessions: &Arc<Sessions>, stop: &CancellationToken) {
    let mut limits = Reminder::default();
    let mut exhausted = Reminder::default();
    let mut denied = Reminder::default();
    let mut backoff = Backoff::default();
    loop {
        let tally = listening.route().tally.clone();
        let Some(()) = stop.run_until_cancelled(tally.resumed()).await else { return };
        let Some(Ok(mut ready)) = stop.run_until_cancelled(streams.fd.readable()).await else { return };
        let route = listening.route();
        let Some(permits) = stop.run_until_cancelled(streams.permits(&route, &mut limits)).await else { return };
        let Some(permits) = permits else {
            ready.clear_ready();
            continue;
        };
        if tally.paused() {
            continue; // paused while we waited
        }
        match sys::accept(streams.fd.get_ref().as_fd()) {
            Ok(accepted) => {
                backoff.reset();
                streams.begin(sessions, route, accepted, permits, &mut denied);
            }
            Err(e) => match backoff.after(&e) {
                Next::Empty => ready.clear_ready(),
                Next::Again => {}
                Next::Pause(pause) => {
                    drop(permits);
                    if exhausted.due().is_some() {
                        let text = format!("cannot accept on {}: {e}; trying again", route.listener);
                        say(Kind::DescriptorPressure, text);
                    }
                    let Some(()) = stop.run_until_cancelled(sleep(pause)).await else { return };
                }
            },
        }
    }
}

impl Streams {
    /// Begins a session, if the peer may have one.
    fn begin(
        &self,
        sessions: &Arc<Sessions>,
        route: Arc<Route>,
        (fd, address): (OwnedFd, SockAddr),
        permits: Permits,
        denied: &mut Reminder,
    ) {
        let peer = Peer::of(&fd, &address);
        let stream = match Stream::new(fd, self.kind) {
            Ok(stream) => stream,
            Err(e) => {
                let text = format!("lost a connection from {peer} on {}: {e}", route.listener);
                return say(Kind::DescriptorPressure, text);
            }
        };
        if let Err(list) = route.access.check(&peer) {
            stream.reset();
            return deny(&route, &peer, list, denied);
        }
        let info = Info::new(Uuid::new_v4(), route, peer.to_string().into(), Duration::ZERO, Counters::default());
        session::begin(sessions, Arc::new(info), Stage::Waiting(stream), permits);
    }

    /// Waits until the listener and, for a qrexec call, the qube have room; `None` when nobody waits for it after all.
    async fn permits(&self, route: &Route, reminder: &mut Reminder) -> Option<Permits> {
        let sessions = self
            .permit(route, &route.room, reminder, || format!("max_connections={}", route.options.max_connections))
            .await?;
        let Some(call) = route.call() else { return Some(Permits { _session: Some(sessions), _call: None }) };
        let limit = || format!("the limit of calls into {} (--calls-per-qube)", call.call.target);
        let calls = self.permit(route, &call.room, reminder, limit).await?;
        Some(Permits { _session: Some(sessions), _call: Some(calls) })
    }

    async fn permit(
        &self,
        route: &Route,
        room: &Arc<Semaphore>,
        reminder: &mut Reminder,
        limit: impl Fn() -> String,
    ) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = room.clone().try_acquire_owned() {
            return Some(permit);
        }
        // The readiness is that of the connection before, until an accept(2) finds nobody.
        if !self.somebody_waits() {
            return None;
        }
        if reminder.due().is_some() {
            let waiting = match sys::tcp_backlog(self.fd.get_ref().as_fd()) {
                Some(1) => "1 connection waits in the backlog".to_owned(),
                Some(n) => format!("{n} connections wait in the backlog"),
                None => "further connections wait in the backlog".to_owned(),
            };
            let text = format!("{}: {} is reached; {waiting}", route.listener, limit());
            emit(route.event(Kind::LimitReached, text));
        }
        room.clone().acquire_owned().await.ok()
    }

    fn somebody_waits(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }
}
