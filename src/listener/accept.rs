//! One task for each stream listener: wait for a connection, take a permit, accept.
//!
//! The order matters. A listener that nobody connects to holds no permit; a permit is there before the connection is
//! taken from the kernel, so connections above `max_connections` wait in the backlog, where no byte of them can be
//! lost.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockAddr;
use tokio::{sync::OwnedSemaphorePermit, time::sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    datagram,
    listening::{Io, ServedListener, Streams},
    refuse::Refusals,
};
use crate::{
    log::{Kind, Reminder, counted_waiting, emit, say},
    relay::Counters,
    session::{self, Peer, Permits, Route, SessionInfo, Sessions, Stage},
    stream::{Stream, StreamKind},
    sys::{
        self,
        accept::{Backoff, Next},
    },
};

/// Accepts or receives until `stop`.
pub(super) async fn serve(listening: &ServedListener, sessions: &Arc<Sessions>, stop: &CancellationToken) {
    match &listening.io {
        Io::Streams(streams) => accept(listening, streams, sessions, stop).await,
        Io::Datagrams(flows) => datagram::receive(listening, flows, sessions, stop).await,
    }
}

impl ServedListener {
    /// Begins a session for a connection that was accepted while the listener was refused, or by a process that
    /// crashed. Above `max_connections` it is
    /// reset.
    pub fn serve_accepted(&self, sessions: &Arc<Sessions>, fd: OwnedFd, address: &SockAddr) {
        let Io::Streams(streams) = &self.io else { return };
        let route = self.route();
        match route.room.clone().try_acquire_owned() {
            Ok(permit) => {
                self.begin(streams, sessions, route, (fd, address.clone()), permit, &mut Refusals::default());
            }
            Err(_) => {
                self.entrance().refused(address);
                drop(Stream::new(fd, streams.kind).map(Stream::reset));
            }
        }
    }

    /// Begins a session, if the peer may have one.
    fn begin(
        &self,
        streams: &Streams,
        sessions: &Arc<Sessions>,
        route: Arc<Route>,
        (fd, address): (OwnedFd, SockAddr),
        permit: OwnedSemaphorePermit,
        refusals: &mut Refusals,
    ) {
        let peer = Peer::of(&fd, &address);
        let stream = match Stream::new(fd, streams.kind) {
            Ok(stream) => stream,
            Err(e) => {
                self.entrance().refused(&address);
                let text = format!("lost a connection from {peer} on {}: {e}", route.listener);
                return say(Kind::DescriptorPressure, text);
            }
        };
        if let Err(list) = route.access.check(&peer) {
            self.entrance().refused(&address);
            stream.reset();
            return refusals.deny(&route, &peer, list, 1);
        }
        // A session whose own connection waited here, in a circle, has ended with it. Its note is gone.
        if streams.kind == StreamKind::Tcp && route.may_lead_back() && is_reset(&stream) {
            return;
        }
        let ours = matches!(peer, Peer::Unix { pid, .. } if u32::try_from(pid) == Ok(std::process::id()));
        let passage = match self.entrance().accepted(stream.as_fd(), &address, ours) {
            Ok(passage) => passage,
            Err(circle) => {
                stream.reset();
                return refusals.leads_back(&route, &peer, &circle, 1);
            }
        };
        let info = SessionInfo::new(Uuid::new_v4(), route, peer, Duration::ZERO, Counters::default()).through(passage);
        session::begin(
            sessions,
            Arc::new(info),
            Stage::Waiting(stream),
            Permits { _session: Some(permit), ..Permits::default() },
        );
    }
}

/// Whether the peer has reset the connection already (poll(2): POLLHUP, both directions of a TCP socket are closed).
fn is_reset(stream: &Stream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let polled = poll(&mut fds, PollTimeout::ZERO).is_ok();
    polled && fds[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

async fn accept(listening: &ServedListener, streams: &Streams, sessions: &Arc<Sessions>, stop: &CancellationToken) {
    let mut limits = Reminder::default();
    let mut exhausted = Reminder::default();
    let mut refusals = Refusals::default();
    let mut backoff = Backoff::default();
    loop {
        let tally = listening.route().tally.clone();
        let Some(()) = stop.run_until_cancelled(tally.resumed()).await else { return };
        let Some(Ok(mut ready)) = stop.run_until_cancelled(streams.fd.readable()).await else { return };
        let route = listening.route();
        let Some(permit) = stop.run_until_cancelled(streams.permit(&route, &mut limits)).await else { return };
        let Some(permit) = permit else {
            ready.clear_ready();
            continue;
        };
        if tally.paused() {
            continue; // paused while we waited
        }
        match sys::accept(streams.fd.get_ref().as_fd()) {
            Ok(accepted) => {
                backoff.reset();
                listening.begin(streams, sessions, route, accepted, permit, &mut refusals);
            }
            Err(e) => match backoff.after(&e) {
                Next::Empty => ready.clear_ready(),
                Next::Again => {}
                Next::Pause(pause) => {
                    drop(permit);
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
    /// Waits until the listener has room; `None` when no connection waits for it after all.
    async fn permit(&self, route: &Route, reminder: &mut Reminder) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = route.room.clone().try_acquire_owned() {
            return Some(permit);
        }
        // The readiness is that of the connection before, until an accept(2) finds nobody.
        if !self.somebody_waits() {
            return None;
        }
        if reminder.due().is_some() {
            let waiting = match sys::tcp_backlog(self.fd.get_ref().as_fd()) {
                Some(n) => format!("{} in the backlog", counted_waiting(n, "connection")),
                None => "further connections wait in the backlog".to_owned(),
            };
            let most = route.options.max_connections;
            let text = format!("{}: max_connections={most} is reached; {waiting}", route.listener);
            emit(route.event(Kind::LimitReached, text));
        }
        route.room.clone().acquire_owned().await.ok()
    }

    fn somebody_waits(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }
}
