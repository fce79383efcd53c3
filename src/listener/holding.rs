//! Inherited listeners that are not served, because their name means nothing.
//!
//! # Theory
//! Their descriptors are kept: what a name means may be there at the next reload. Who connects meanwhile would sit in the
//! backlog without end. So a task accepts, holds each connection for [`HOLD`], so that a reload in between serves it, and
//! then resets it; datagrams are read and dropped. A listener is in one of these states:
//!
//! | state | connections | datagrams | ends by |
//! |---|---|---|---|
//! | served | become sessions | become flows | the end of the service |
//! | refused | are held, then reset | are dropped | a reload that gives the name a meaning: served |
//! | not a listener that could be served (FIFO, SEQPACKET, vsock) | are not touched | are not touched | a restart |
//!
//! At most [`MOST`] connections are held at once, the others stay in the backlog: a client in a loop costs a few system
//! calls in a second. A restart resets what is held.

use std::{
    collections::VecDeque,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, recv};
use socket2::SockAddr;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    accepting::{AcceptTask, Accepting},
    listening::ServedListener,
};
use crate::{
    activation::Listener,
    log::{Kind, Reminder, emit},
    relay::datagram,
    session::{ListenerIdentity, Sessions},
    spec::SocketKind,
    stream::{Stream, StreamKind},
    sys::{
        self,
        accept::{Backoff, Next},
        lock,
    },
};

/// How long a connection to a refused listener waits for a reload.
const HOLD: Duration = Duration::from_secs(10);
/// How many connections wait so at each listener.
const MOST: usize = 64;
/// Datagrams that are dropped in one go, and the pause after that: a flood is the kernel's to drop.
const DROPPED: (usize, Duration) = (256, Duration::from_millis(100));

/// A listener that is refused.
#[derive(Debug)]
pub struct RefusedListener {
    /// The listener itself, for the time when it can be served.
    pub listener: Listener,
    /// The reason why the listener is refused; shared with the task.
    why: Arc<Mutex<Arc<str>>>,
    held: Arc<Mutex<HeldConnections>>,
    task: Option<AcceptTask>,
}

/// A connection that waits for a reload.
#[derive(Debug)]
struct HeldConnection {
    fd: OwnedFd,
    address: SockAddr,
    until: Instant,
}

/// The connections that wait at a listener, the first one first. Dropped, they are reset.
#[derive(Debug)]
pub struct HeldConnections {
    kind: StreamKind,
    waiting: VecDeque<HeldConnection>,
}

impl RefusedListener {
    /// A listener that is refused, and why. Its task is to be started with [`Self::hold`].
    pub fn new(listener: Listener, why: String) -> Self {
        let unix = listener.socket.kind() == SocketKind::Unix;
        let kind = if unix { StreamKind::Unix } else { StreamKind::Tcp };
        let held = Arc::new(Mutex::new(HeldConnections { kind, waiting: VecDeque::new() }));
        Self { listener, why: Arc::new(Mutex::new(why.into())), held, task: None }
    }

    /// A listener that is refused again, with what was held of it before.
    pub fn again(listener: Listener, why: String, held: HeldConnections) -> Self {
        let refused = Self::new(listener, why);
        *lock(&refused.held) = held;
        refused
    }

    /// The reason why the listener is refused.
    pub fn why(&self) -> Arc<str> {
        lock(&self.why).clone()
    }

    /// Changes the reason.
    pub fn set_why(&self, why: &str) {
        *lock(&self.why) = why.into();
    }

    /// The number of connections that are held.
    pub fn held(&self) -> usize {
        lock(&self.held).waiting.len()
    }

    /// Starts the task that holds connections, or drops datagrams.
    pub fn hold(&mut self, accepting: &mut Accepting) {
        if self.task.as_ref().is_some_and(AcceptTask::runs) {
            return;
        }
        let socket = &self.listener.socket;
        let fd = socket.as_fd().try_clone_to_owned().and_then(|fd| sys::register(fd, Interest::READABLE));
        let Ok(fd) = fd else { return }; // no descriptor left: who connects waits in the backlog
        let waiting = HoldingTask { fd, told: Told::new(&self.listener, self.why.clone()), held: self.held.clone() };
        let datagrams = socket.kind() == SocketKind::Udp;
        self.task = Some(accepting.spawn(|stop| async move {
            if datagrams {
                waiting.drop_datagrams(&stop).await;
            } else {
                waiting.hold(&stop).await;
            }
        }));
    }

    /// Ends the task; the listener, and what was held.
    pub async fn release(self) -> (Listener, HeldConnections) {
        if let Some(task) = &self.task {
            task.end().await;
        }
        let (kind, waiting) = {
            let mut held = lock(&self.held);
            (held.kind, std::mem::take(&mut held.waiting))
        };
        (self.listener, HeldConnections { kind, waiting })
    }
}

impl Drop for HeldConnections {
    fn drop(&mut self) {
        self.waiting.drain(..).for_each(|held| held.reset(self.kind));
    }
}

impl HeldConnections {
    /// Begins a session for each, as if it had just been accepted.
    pub fn serve(mut self, listening: &ServedListener, sessions: &Arc<Sessions>) {
        for HeldConnection { fd, address, .. } in self.waiting.drain(..) {
            listening.serve_accepted(sessions, fd, &address);
        }
    }
}

impl HeldConnection {
    fn reset(self, kind: StreamKind) {
        if let Ok(stream) = Stream::new(self.fd, kind) {
            stream.reset();
        }
    }
}

/// The task of a refused listener.
struct HoldingTask {
    fd: AsyncFd<OwnedFd>,
    told: Told,
    held: Arc<Mutex<HeldConnections>>,
}

impl HoldingTask {
    async fn hold(mut self, stop: &CancellationToken) {
        let mut backoff = Backoff::default();
        loop {
            let (next, room) = {
                let held = lock(&self.held);
                (held.waiting.front().map(|first| first.until), held.waiting.len() < MOST)
            };
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = due => self.reset_due(),
                ready = self.fd.readable(), if room => {
                    let Ok(mut ready) = ready else { return };
                    match sys::accept(self.fd.get_ref().as_fd()) {
                        Ok((fd, address)) => {
                            backoff.reset();
                            lock(&self.held).waiting.push_back(HeldConnection { fd, address, until: Instant::now() + HOLD });
                        }
                        Err(e) => match backoff.after(&e) {
                            Next::Empty => ready.clear_ready(),
                            Next::Again => {}
                            Next::Pause(pause) => {
                                let Some(()) = stop.run_until_cancelled(sleep(pause)).await else { return };
                            }
                        },
                    }
                }
            }
        }
    }

    fn reset_due(&mut self) {
        let now = Instant::now();
        loop {
            let (kind, due) = {
                let mut held = lock(&self.held);
                let due = held.waiting.front().is_some_and(|first| first.until <= now);
                (held.kind, if due { held.waiting.pop_front() } else { None })
            };
            let Some(due) = due else { return };
            due.reset(kind);
            self.told.tell("reset a connection");
        }
    }

    async fn drop_datagrams(mut self, stop: &CancellationToken) {
        datagram::take_runs(self.fd.get_ref(), false); // for whoever has the socket next
        let mut bytes = [0; 1];
        loop {
            let Some(Ok(mut ready)) = stop.run_until_cancelled(self.fd.readable()).await else { return };
            let mut dropped = 0;
            while dropped < DROPPED.0 {
                use std::os::fd::AsRawFd as _;
                match recv(self.fd.get_ref().as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                    Err(nix::errno::Errno::EAGAIN) => break,
                    _ => dropped += 1, // an error of the socket is taken off it by that
                }
            }
            if dropped < DROPPED.0 {
                ready.clear_ready();
            }
            if dropped > 0 {
                self.told.tell("dropped a datagram");
            }
            let Some(()) = stop.run_until_cancelled(sleep(DROPPED.1)).await else { return };
        }
    }
}

/// Tells of those who were turned away, once a minute.
struct Told {
    listener: ListenerIdentity,
    why: Arc<Mutex<Arc<str>>>,
    reminder: Reminder,
}

impl Told {
    fn new(listener: &Listener, why: Arc<Mutex<Arc<str>>>) -> Self {
        let listener = ListenerIdentity::new(&listener.local.to_string(), listener.socket.kind(), None);
        Self { listener, why, reminder: Reminder::default() }
    }

    fn tell(&mut self, what: &str) {
        let Some(left_out) = self.reminder.due() else { return };
        let more = if left_out > 0 { format!(" ({left_out} more in the last minute)") } else { String::new() };
        let text = format!("{}: {what}{more}, because the listener is not served: {}", self.listener, lock(&self.why));
        emit(self.listener.event(Kind::ListenerRefused, text));
    }
}
