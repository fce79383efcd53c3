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
    crash::key,
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
/// When signals cannot be received.
pub async fn keep() -> io::Result<Stay> {
    let mut terminate = signal(SignalKind::terminate())?;
    let socket = listen().ok(); // without one, the unit is still the owner of the calls
    let terminated = async move { _ = terminate.recv().await };
    keep_what_comes(socket, terminated, async || jobs::presence(&unit::service_of_calls()).await).await
}

/// As [`keep`]: keeps what comes over this socket, and asks for the presence of the service.
async fn keep_what_comes(
    socket: Option<AsyncFd<OwnedFd>>,
    terminated: impl Future<Output = ()>,
    presence: impl AsyncFn() -> Option<Presence>,
) -> io::Result<Stay> {
    tokio::pin!(terminated);
    let mut kept = Vec::new();
    let mut crashed: Vec<Crashed> = Vec::new();
    let mut doubt = None;
    let why = loop {
        let left = or_never(socket.as_ref().map(AsyncFd::readable));
        tokio::select! {
            biased;
            () = &mut terminated => break Stay::Stopped,
            left = left => {
                left?.clear_ready();
                // Those that were taken up are empty.
                kept.retain(|end: &OwnedFd| handover::waits(end.as_fd()));
                take_in(socket.as_ref(), &mut kept, &mut crashed);
                doubt = Some(Instant::now() + RETURN);
            }
            () = or_never(crashed.iter().map(|left| left.until).min().map(sleep_until)) => {
                let now = Instant::now();
                let (due, others): (Vec<_>, _) = crashed.into_iter().partition(|left| left.until <= now);
                crashed = others;
                due.into_iter().for_each(|left| left.end(false));
            }
            () = or_never(doubt.map(sleep_until)) => match presence().await {
                Some(Presence::Gone) => break Stay::Deserted,
                Some(Presence::Between) => doubt = Some(Instant::now() + RETURN),
                // Whoever cannot be asked stops this unit in the end.
                Some(Presence::There) | None => doubt = None,
            },
        }
    };
    given().await;
    take_in(socket.as_ref(), &mut kept, &mut crashed);
    crashed.into_iter().for_each(|left| left.end(true));
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

fn take_in(socket: Option<&AsyncFd<OwnedFd>>, kept: &mut Vec<OwnedFd>, crashed: &mut Vec<Crashed>) {
    let mut text = [0; 16];
    let mut next = |socket: &AsyncFd<OwnedFd>| {
        let (n, fds) = sys::receive::<4>(socket.as_fd(), &mut text, MsgFlags::empty())?;
        io::Result::Ok((&text[..n] == handover::CRASHED, fds))
    };
    while let Some(Ok((crash, fds))) = socket.map(&mut next) {
        match (crash, <[OwnedFd; 2]>::try_from(fds)) {
            (true, Ok([memfd, take])) => {
                // Of each region the last death counts.
                crashed.retain(|left| key(left.memfd.as_fd()) != key(memfd.as_fd()));
                crashed.extend(Crashed::new(memfd, take));
            }
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
    /// `None` when the next process has it, and a shadow.
    fn new(memfd: OwnedFd, take: OwnedFd) -> Option<Self> {
        let died = handover::died(memfd.as_fd())?;
        let allowed = if died.stopping { Duration::ZERO } else { TAKEN_UP };
        Some(Self { died, memfd, take, until: Instant::now() + allowed })
    }

    /// Ends the sessions, if no process has taken them; `stopped` says that none will.
    fn end(self, stopped: bool) {
        if let Some(rescued) = handover::seize(self.memfd, &self.take, self.died.generation, stopped) {
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

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, IoSlice, Read as _},
        net::{TcpListener, TcpStream},
        os::fd::{AsRawFd as _, BorrowedFd},
    };

    use nix::sys::socket::{AddressFamily, ControlMessage, SockFlag, SockType, UnixAddr, sendmsg, socketpair};

    use super::*;
    use crate::crash::{Region, RegionOwner};

    fn give(to: BorrowedFd<'_>, text: &[u8], fds: &[BorrowedFd<'_>]) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<UnixAddr>(to.as_raw_fd(), &[IoSlice::new(text)], &rights, MsgFlags::empty(), None).expect("room");
    }

    /// What the shadow of a process leaves: a connection in the pair, and nobody as the owner. The peer of it.
    fn left(region: &Region, pair: BorrowedFd<'_>) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        peer.set_nonblocking(true).expect("a socket");
        let (accepted, _) = listener.accept().expect("it came");
        give(pair, &[0; 8], &[accepted.as_fd()]);
        assert!(region.own(RegionOwner::Service(1)));
        let words = region.shadow_words(1);
        words.owner.0.store(words.owner.2, std::sync::atomic::Ordering::Release);
        peer
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_crash_has_left_is_reset_after_thirty_seconds_unless_a_process_has_it() {
        for taken in [false, true] {
            let region = Region::create().expect("memory");
            let (ours, theirs) =
                socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK).expect("a pair");
            let mut peer = left(&region, ours.as_fd());
            let (shadow, socket) = UnixDatagram::pair().expect("a pair");
            socket.set_nonblocking(true).expect("a socket");
            let socket = sys::register(OwnedFd::from(socket), Interest::READABLE).expect("a runtime");
            give(shadow.as_fd(), handover::CRASHED, &[region.memfd().as_fd(), theirs.as_fd()]);
            let keeping = keep_what_comes(Some(socket), std::future::pending(), async || Some(Presence::There));
            tokio::pin!(keeping);
            let mut wait = async |time: Duration| {
                tokio::select! {
                    end = &mut keeping => panic!("{end:?}"),
                    () = sleep(time) => peer.read(&mut [0]).map_err(|e| e.kind()),
                }
            };
            assert_eq!(wait(TAKEN_UP - Duration::from_secs(1)).await, Err(ErrorKind::WouldBlock));
            if taken {
                assert!(region.own(RegionOwner::Service(2)));
            }
            let end = if taken { ErrorKind::WouldBlock } else { ErrorKind::ConnectionReset };
            assert_eq!(wait(Duration::from_secs(2)).await, Err(end));
        }
    }
}
