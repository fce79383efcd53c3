//! One task for each listener: wait for a connection, take the permits, accept.
//!
//! The order matters. A listener that nobody connects to holds no permit; a permit is there before the connection is
//! taken from the kernel, so what exceeds a limit waits in the backlog, where nothing of it can be lost.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockAddr;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::session::{
    self, Info, Peer, Permits, Route, Shared, Stage,
    flow::{self, Table},
};
use crate::{
    activation,
    log::{Event, Kind, emit, say},
    relay::{Counters, datagram},
    spec::SocketKind,
    stream::{self, Stream},
    sys,
};

/// The pause after an accept(2) that failed for want of descriptors or memory: doubling from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// How often one listener says that a limit is reached.
const REMINDER: Duration = Duration::from_secs(60);

/// A listener that is being served.
#[derive(Debug)]
pub struct Listening {
    io: AsyncFd<OwnedFd>,
    kind: SocketKind,
    route: Mutex<Arc<Route>>,
    flows: Table,
}

impl Listening {
    /// Registers a listener. Accepted TCP sockets inherit its options (tcp(7)), so they are set here, once.
    ///
    /// # Errors
    /// What setsockopt(2) or epoll_ctl(2) say.
    pub fn new(socket: activation::Socket, route: Arc<Route>) -> io::Result<Self> {
        let kind = socket.kind();
        match &socket {
            activation::Socket::Tcp(tcp) => {
                let socket = socket2::SockRef::from(tcp);
                socket.set_tcp_nodelay(true)?;
                if route.options.keepalive {
                    crate::dial::keep_alive(&socket)?;
                }
            }
            activation::Socket::Unix(_) => {}
            activation::Socket::Udp(udp) => {
                datagram::ask_for_destinations(udp)?;
            }
        }
        let io = sys::register(socket.into(), Interest::READABLE)?;
        Ok(Self { io, kind, route: Mutex::new(route), flows: Table::default() })
    }

    /// TCP, UNIX or UDP.
    pub fn kind(&self) -> SocketKind {
        self.kind
    }

    /// Its socket, as the runtime has it.
    pub fn io(&self) -> &AsyncFd<OwnedFd> {
        &self.io
    }

    /// The flows of a UDP listener.
    pub fn flows(&self) -> &Table {
        &self.flows
    }

    /// Another descriptor of its socket, as what it is.
    ///
    /// # Errors
    /// EMFILE and its kin.
    pub fn duplicate(&self) -> io::Result<activation::Socket> {
        let fd = self.io.get_ref().try_clone()?;
        Ok(match self.kind {
            SocketKind::Tcp => activation::Socket::Tcp(fd.into()),
            SocketKind::Unix => activation::Socket::Unix(fd.into()),
            SocketKind::Udp => activation::Socket::Udp(fd.into()),
        })
    }

    /// The route that new sessions take.
    pub fn route(&self) -> Arc<Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives new sessions another route.
    pub fn set_route(&self, route: Arc<Route>) {
        *self.route.lock().unwrap_or_else(PoisonError::into_inner) = route;
    }

    /// Accepts or receives until `stop`.
    pub async fn serve(self: Arc<Self>, shared: Arc<Shared>, stop: CancellationToken) {
        if self.kind == SocketKind::Udp {
            return flow::receive(&self, &shared, &stop).await;
        }
        let mut limits = Reminder::default();
        let mut exhausted = Reminder::default();
        let mut denied = Reminder::default();
        let mut pause = PAUSE.0;
        loop {
            let tally = self.route().tally.clone();
            let Some(()) = stop.run_until_cancelled(tally.resumed()).await else { return };
            let Some(Ok(mut ready)) = stop.run_until_cancelled(self.io.readable()).await else { return };
            let route = self.route();
            let Some(permits) = stop.run_until_cancelled(self.permits(&route, &mut limits)).await else { return };
            let Some(permits) = permits else {
                ready.clear_ready();
                continue;
            };
            if tally.paused() {
                continue; // while we waited
            }
            match sys::accept(self.io.get_ref().as_fd()) {
                Ok(accepted) => {
                    pause = PAUSE.0;
                    self.begin(&shared, route, accepted, permits, &mut denied);
                }
                Err(e) => match triage(&e) {
                    Trouble::Empty => ready.clear_ready(),
                    Trouble::Theirs => {}
                    Trouble::Ours => {
                        drop(permits);
                        if exhausted.due() {
                            say(
                                Kind::DescriptorPressure,
                                format!("cannot accept on {}: {e}; trying again", route.listener),
                            );
                        }
                        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                            return;
                        }
                        pause = (pause * 2).min(PAUSE.1);
                    }
                },
            }
        }
    }

    /// Begins a session, if the peer may have one.
    fn begin(
        &self,
        shared: &Arc<Shared>,
        route: Arc<Route>,
        (fd, address): (OwnedFd, SockAddr),
        permits: Permits,
        denied: &mut Reminder,
    ) {
        let peer = Peer::of(&fd, &address);
        let stream =
            match Stream::new(fd, if self.kind == SocketKind::Unix { stream::Kind::Unix } else { stream::Kind::Tcp }) {
                Ok(stream) => stream,
                Err(e) => {
                    return say(
                        Kind::DescriptorPressure,
                        format!("lost a connection from {peer} on {}: {e}", route.listener),
                    );
                }
            };
        if let Err(list) = route.access.check(&peer) {
            stream.reset();
            return deny(&route, &peer, list, denied);
        }
        let info = Info::new(Uuid::new_v4(), route, peer.to_string().into(), Duration::ZERO, Counters::default());
        session::begin(shared, Arc::new(info), Stage::Waiting(stream), permits);
    }

    /// Waits until the listener and, for a qrexec call, the qube have room; `None` when nobody waits for it after all.
    async fn permits(&self, route: &Route, reminder: &mut Reminder) -> Option<Permits> {
        let sessions =
            self.permit(&route.room, reminder, || format!("max_connections={}", route.options.max_connections));
        let sessions = sessions.await?;
        let Some(call) = &route.call else { return Some(Permits { _session: Some(sessions), _call: None }) };
        let limit = || format!("the limit of calls into {} (--calls-per-qube)", call.call.target);
        let calls = self.permit(&call.room, reminder, limit).await?;
        Some(Permits { _session: Some(sessions), _call: Some(calls) })
    }

    async fn permit(
        &self,
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
        if reminder.due() {
            let route = self.route();
            let waiting = match sys::tcp_backlog(self.io.get_ref().as_fd()) {
                Some(1) => "1 connection waits in the backlog".to_owned(),
                Some(n) => format!("{n} connections wait in the backlog"),
                None => "further connections wait in the backlog".to_owned(),
            };
            let mut event =
                Event::new(Kind::LimitReached, format!("{}: {} is reached; {waiting}", route.listener, limit()));
            event.listener = Some(route.listener.clone());
            event.upstream = Some(route.upstream_text.clone());
            emit(event);
        }
        room.clone().acquire_owned().await.ok()
    }

    fn somebody_waits(&self) -> bool {
        let mut fds = [PollFd::new(self.io.get_ref().as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.get_ref().as_fd()
    }
}

/// Tells that a peer may not connect; in a flood, one event a minute, with the number of those left out.
pub(super) fn deny(route: &Route, peer: &Peer, list: &str, reminder: &mut Reminder) {
    route.tally.peer_denied();
    let left_out = reminder.left_out;
    if !reminder.due() {
        return;
    }
    let more = if left_out > 0 { format!("; {left_out} more since the last such message") } else { String::new() };
    let message = format!("refused {peer} on {}: not in {list}{more}", route.listener);
    let mut event = Event::new(Kind::AccessDenied, message);
    event.listener = Some(route.listener.clone());
    event.upstream = Some(route.upstream_text.clone());
    event.peer = Some(peer.to_string().into());
    event.end = Some(crate::log::End::Refused);
    emit(event);
}

/// Says something at most once a minute.
#[derive(Debug, Default)]
pub(super) struct Reminder {
    last: Option<Instant>,
    /// How often it was not said since.
    left_out: u64,
}

impl Reminder {
    fn due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= REMINDER);
        if due {
            (self.last, self.left_out) = (Some(Instant::now()), 0);
        } else {
            self.left_out += 1;
        }
        due
    }
}

/// What a failed accept(2) means.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// Nobody waits.
    Empty,
    /// That one connection broke; the next may be fine (accept(2), "Error handling").
    Theirs,
    /// No descriptors or memory: waiting may help, trying at once does not.
    Ours,
}

fn triage(error: &io::Error) -> Trouble {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Trouble::Empty,
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::ENETDOWN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::EOPNOTSUPP
            | libc::ENETUNREACH
            | libc::EPERM,
        ) => Trouble::Theirs,
        _ => Trouble::Ours,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_want_of_our_own_makes_accept_pause() {
        let of = |errno| triage(&io::Error::from_raw_os_error(errno));
        assert_eq!(of(libc::EAGAIN), Trouble::Empty);
        assert_eq!(of(libc::ECONNABORTED), Trouble::Theirs);
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
            assert_eq!(of(errno), Trouble::Ours);
        }
    }
}
