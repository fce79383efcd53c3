//! The owner of sessions that are between two processes.
//!
//! # Theory
//! Between the process that parked its sessions and the next one they are nowhere but in the descriptor store, and a
//! stop that comes just then (the restart that a departing socket asks for, and right after it `systemctl stop`) turns
//! the restart into a stop and empties the store: their peers would see an end, which makes a part look complete, and
//! nobody would tell of it. `ExecStopPost=` cannot have them: no process but the service itself is given the store.
//!
//! So the unit of the calls, which is there as long as the service may come back, holds the pair in which they wait,
//! too. Its process reads nothing of it: what the next process takes up is gone from there. When that unit is stopped,
//! which comes after the service's own end, whatever still waits is ended as any stop ends a session: by a reset, with
//! an end event.
//!
//! systemd stops the unit when nothing needs it any more (StopWhenUnneeded=), and checks that when another unit stops.
//! But `systemctl stop` of the service during a restart only cancels the queued start job, and then systemd does not
//! check. So when no process has come one second after another left, the keeper asks systemd whether one will.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::MsgFlags;
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use crate::{
    handover::{self, Adopted, Died, Lost, Records, Taken},
    log::{End, emit},
    relay::Counters,
    session::{Routes, SessionEnding, SessionInfo, ended_event},
    sys::{self, or_never},
    systemd::{
        jobs::{self, Presence},
        unit,
    },
};

/// How long after a process has left the next one may be on its way without anybody asking for it.
const RETURN: Duration = Duration::from_secs(1);

/// How long the sessions of a process that crashed wait for the next process.
const TAKEN_UP: Duration = Duration::from_secs(30);

/// How long the shadow of a process that died may take to give everything, when the keeper is stopped meanwhile.
const GIVING: Duration = Duration::from_secs(3);

/// Why sessions end that no process takes up.
const STOPPED: &str = "the service was stopped before its next process took this up";
const KILLED: &str = "the service was killed while it stopped";
const NOBODY: &str = "the service crashed, and no process came to take this up";

/// Reasons for a keeper to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Stopped,
    /// The service was stopped between two processes.
    Deserted,
}

/// Keeps what the service leaves, until SIGTERM, or until it is certain that the service does not come back; then ends
/// the sessions that nobody has taken up.
///
/// # Errors
/// When signals cannot be had.
pub async fn keep() -> io::Result<Stay> {
    let mut terminate = signal(SignalKind::terminate())?;
    let socket = listen().ok(); // without one, the unit is still the owner of the calls
    let mut kept = Vec::new();
    let mut crashed: Option<Crashed> = None;
    let mut doubt = None;
    let why = loop {
        let left = or_never(socket.as_ref().map(AsyncFd::readable));
        tokio::select! {
            biased;
            _ = terminate.recv() => break Stay::Stopped,
            left = left => {
                left?.clear_ready();
                // Those that were taken up are empty.
                kept.retain(|end: &OwnedFd| handover::waits(end.as_fd()));
                take_in(socket.as_ref(), &mut kept, &mut crashed);
                doubt = Some(Instant::now() + RETURN);
            }
            () = or_never(crashed.as_ref().map(|left| sleep_until(left.until))) => {
                crashed.take().into_iter().for_each(Crashed::end);
            }
            () = or_never(doubt.map(sleep_until)) => match jobs::presence(&unit::service_of_calls()).await {
                Some(Presence::Gone) => break Stay::Deserted,
                Some(Presence::Between) => doubt = Some(Instant::now() + RETURN),
                // Whoever cannot be asked stops this unit in the end.
                Some(Presence::There) | None => doubt = None,
            },
        }
    };
    given().await;
    take_in(socket.as_ref(), &mut kept, &mut crashed);
    crashed.into_iter().for_each(Crashed::end);
    end_all(handover::open(&kept), STOPPED, End::Drained);
    Ok(why)
}

/// Waits until there is no shadow: before it ends, it tells the keeper what it has given.
async fn given() {
    let Some(calls) = unit::delegated_group() else { return };
    let until = Instant::now() + GIVING;
    while handover::shadows(&calls) > 0 && Instant::now() < until {
        sleep(Duration::from_millis(5)).await;
    }
}

fn take_in(socket: Option<&AsyncFd<OwnedFd>>, kept: &mut Vec<OwnedFd>, crashed: &mut Option<Crashed>) {
    let mut text = [0; 16];
    let mut next = |socket: &AsyncFd<OwnedFd>| {
        let (n, fds) = sys::receive::<4>(socket.as_fd(), &mut text, MsgFlags::empty())?;
        io::Result::Ok((&text[..n] == handover::CRASHED, fds))
    };
    while let Some(Ok((crash, fds))) = socket.map(&mut next) {
        match (crash, <[OwnedFd; 2]>::try_from(fds)) {
            (true, Ok([memfd, take])) => *crashed = Crashed::new(memfd, take),
            (true, Err(_)) => {}
            (false, Ok(fds)) => kept.extend(fds),
            (false, Err(fds)) => kept.extend(fds),
        }
    }
}

/// What the shadow of a process that crashed has left.
struct Crashed {
    died: Died,
    /// The checkpoints, and the end of the pair in which the descriptors wait.
    memfd: OwnedFd,
    take: OwnedFd,
    /// Until when the next process may take it.
    until: Instant,
}

impl Crashed {
    /// `None` when the next process has it.
    fn new(memfd: OwnedFd, take: OwnedFd) -> Option<Self> {
        let died = handover::died(memfd.as_fd())?;
        let allowed = if died.stopping { Duration::ZERO } else { TAKEN_UP };
        Some(Self { died, memfd, take, until: Instant::now() + allowed })
    }

    /// Ends the sessions, if no process has taken them.
    fn end(self) {
        if let Some(rescued) = handover::seize(self.memfd, &self.take, self.died.generation) {
            let why = if self.died.stopping { KILLED } else { NOBODY };
            end_all(Taken { sessions: vec![Records::Rescued(rescued)], ..Taken::default() }, why, End::Lost);
        }
    }
}

fn listen() -> io::Result<AsyncFd<OwnedFd>> {
    let path = unit::runtime_directory().ok_or(io::ErrorKind::NotFound)?.join(unit::KEEPER);
    let _ = fs::remove_file(&path); // of an earlier process of this unit, which alone may write there
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    sys::register(socket.into(), Interest::READABLE)
}

fn end_all(taken: Taken, why: &str, end: End) {
    taken.lost.iter().for_each(Lost::emit);
    for sessions in taken.sessions {
        for index in 0..sessions.len() {
            match sessions.read(index) {
                Ok(session) => end_one(session, why, end),
                Err(lost) => lost.emit(),
            }
        }
    }
}

fn end_one(session: Adopted<'_>, why: &str, end: End) {
    let route = Routes::new(0).unknown(session.name.to_string(), session.listener, &session.upstream);
    let counters = Counters::starting_at(session.bytes.0, session.bytes.1);
    let info = SessionInfo::new(session.id, Arc::new(route), session.peer, session.age, counters);
    if let Some(ms) = session.dial_ms {
        info.connected(ms, session.netns);
    }
    let losses = session.stage.losses();
    session.stage.abandon();
    let mut note = why.to_owned();
    if !losses.is_empty() {
        note += &format!("; {losses}");
    }
    emit(ended_event(&info, &SessionEnding::new(end, note)));
}
