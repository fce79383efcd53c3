//! The sessions of a process that crashed: its checkpoints and its descriptors become what a handover gives.
//!
//! The file is long because a descriptor is claimed, used or reset in one place, whatever the stage of its session is.
//!
//! Each descriptor is claimed once, by its key. Descriptors that no checkpoint names were accepted or dialled in the
//! last moment: nothing of them was read.

use std::{
    ffi::OsString,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt as _,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use uuid::Uuid;

use super::{
    child::{self, RepairedCall},
    gathered::{Class, Descriptors, is_stream, is_unix, receive},
    guard::CrashGuard,
    ledger::{FoundBytes, InDoubt, Noted, Repaired, repair, written_to_unix},
    read::{Adopted, Lost},
};
use crate::{
    activation::Socket,
    crash::{
        Checkpoint, CrashCause, CrashVerdict, DescriptorKey, Region, SavedBases, SavedBytes, SavedDirection, SavedId,
        SavedListener, SavedPart, SavedRelay, SavedSession, SavedStage, send_owner,
    },
    dial::netns::Id,
    dial::qrexec::{Child, Helper, ParkedCall, Passed, Stderr},
    listener::{Bound, Handed, SocketClaim},
    log::End,
    relay::{
        self, Counters, ParkedBytes, ParkedDirection, ParkedEnd, Phase, Side,
        datagram::{Asked, Destination},
    },
    session::{FlowKept, ListenerIdentity, ParkedPeer, ParkedStage, Peer, RedialsKept, Routes, SessionInfo, abandon},
    spec::SocketKind,
    stream::{Stream, StreamKind},
    sys::{self, ClosedSocket, SocketCounts, lock, shadow::monotonic},
};

/// The sessions of a process that crashed, to be read one by one, by several threads if need be. Dropped, it abandons
/// the descriptors that nobody claimed.
#[derive(Debug)]
pub struct Rescued {
    region: Arc<Region>,
    /// Whether the checkpoints go on in this process.
    go_on: bool,
    slots: Vec<u32>,
    /// The listeners of its own that the process had.
    pub listeners: Vec<Handed>,
    descriptors: Mutex<Descriptors>,
    /// Why the process died.
    pub cause: CrashCause,
    verdict: CrashVerdict,
    /// A session may have descriptors here and no checkpoint: one could not be read, or was not written yet.
    damaged: AtomicBool,
    /// Sessions whose bytes were being moved and were found, and how many bytes were on their way.
    repaired: AtomicUsize,
    on_their_way: AtomicU64,
    /// The process died while it took up a handover.
    pub taking: bool,
    /// The process died while it handed over.
    pub handing: bool,
}

/// Why a session of a crash does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LostReason {
    Busy,
    Doubt,
    Private,
    Missing,
    Poison,
    ManyCrashes,
    Ending(End),
    Io,
}

impl LostReason {
    fn text(self) -> &'static str {
        match self {
            Self::Busy => "the service crashed while it moved bytes of this session: some may be missing",
            Self::Doubt => "the service crashed, and it is in doubt which bytes of this session were delivered",
            Self::Private => "the service crashed while it held bytes of this session in its memory",
            Self::Missing => "the service crashed, and a descriptor of this session did not come",
            Self::Poison => "the service crashed twice in a row while it worked on this session",
            Self::ManyCrashes => "the service crashed five times in a minute",
            Self::Ending(_) => "the service crashed while it closed this session",
            Self::Io => "the service crashed, and a descriptor of this session cannot be used",
        }
    }

    fn end(self) -> End {
        if let Self::Ending(end) = self { end } else { End::Lost }
    }
}

impl CrashGuard {
    /// Takes the sessions of the previous process, if that has crashed: `None` otherwise. It waits until the shadow of
    /// that process has given everything.
    pub fn rescue(&self) -> Option<Rescued> {
        if !self.crashed() {
            return None;
        }
        let descriptors = receive(self.take_end(), || self.earlier_are_done());
        let (cause, verdict) = self.region().judge_crash();
        Some(Rescued::new(self.region().clone(), self.has_shadow(), descriptors, cause, verdict))
    }
}

/// What the shadow of the process `generation` has left with the keeper, when the service is `stopped` or no process
/// has come. `None` when a process has it.
pub fn seize(memfd: OwnedFd, take: &OwnedFd, generation: u64, stopped: bool) -> Option<Rescued> {
    let region = Region::open(memfd).ok()?;
    if !region.own_as_keeper(generation, stopped) {
        return None;
    }
    let descriptors = receive(take.as_fd(), || true);
    let cause = CrashCause::Killed;
    Some(Rescued::new(Arc::new(region), false, descriptors, cause, CrashVerdict::GoOn))
}

impl Drop for Rescued {
    fn drop(&mut self) {
        self.region.forget_left_buffers();
        // The files of a listener that nobody takes are left as a killed process leaves them.
        self.listeners.drain(..).for_each(Handed::release);
        let descriptors = std::mem::take(&mut *lock(&self.descriptors));
        descriptors.by_key.values().flatten().for_each(abandon);
    }
}

impl Rescued {
    fn new(
        region: Arc<Region>,
        go_on: bool,
        descriptors: Descriptors,
        cause: CrashCause,
        verdict: CrashVerdict,
    ) -> Self {
        let (taking, handing) = (region.was_taking(), region.was_handing());
        let unsaved = region.was_unsaved();
        let mut rescued = Self {
            slots: region.live(),
            listeners: Vec::new(),
            region,
            go_on,
            descriptors: Mutex::new(descriptors),
            cause,
            verdict,
            damaged: (taking || unsaved).into(),
            repaired: AtomicUsize::new(0),
            on_their_way: AtomicU64::new(0),
            taking,
            handing,
        };
        rescued.listeners = rescued.take_listeners();
        rescued
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds descriptors of the sessions that came in another way. They may have come already.
    pub fn add(&self, descriptors: Vec<OwnedFd>) {
        let mut all = lock(&self.descriptors);
        descriptors.into_iter().for_each(|fd| all.add(fd));
        all.close_unclaimed_listeners();
    }

    /// The listeners of its own that the process had. The others that it had are closed.
    fn take_listeners(&self) -> Vec<Handed> {
        let mut all = lock(&self.descriptors);
        let listeners = self.region.take_listeners().into_iter().filter_map(|saved| handed(saved, &mut all)).collect();
        all.close_unclaimed_listeners();
        listeners
    }

    /// Sockets that no session has: accepted in the last moment, and nothing was read of them. Where a checkpoint was
    /// damaged or is missing, the socket of that session may be among them: then there are none.
    pub fn strangers(&self) -> Vec<OwnedFd> {
        if self.damaged.load(Relaxed) {
            return Vec::new();
        }
        let mut all = lock(&self.descriptors);
        let stranger = |(class, key): &(Class, DescriptorKey), fds: &Vec<OwnedFd>| {
            let fd = fds.first()?;
            let untouched = is_stream(fd) && (is_unix(fd) || sys::is_untouched(fd.as_fd()));
            (*class == Class::Socket && untouched).then_some(*key)
        };
        let keys: Vec<_> = all.by_key.iter().filter_map(|(at, fds)| stranger(at, fds)).collect();
        keys.into_iter().filter_map(|key| all.claim(Class::Socket, key)).collect()
    }

    /// Sessions whose bytes were being moved when the process died, and bytes of them that were read and not written.
    pub fn repaired(&self) -> (usize, u64) {
        (self.repaired.load(Relaxed), self.on_their_way.load(Relaxed))
    }

    /// Counts what became of the sessions.
    pub fn count(&self, resumed: usize, lost: usize) {
        self.region.count(resumed, lost);
    }

    /// Reads one; each can be read once.
    ///
    /// # Errors
    /// When its checkpoint is damaged, or the session cannot go on.
    pub fn read(&self, index: usize) -> Result<Adopted<'static>, Lost> {
        let slot = self.slots[index];
        let mut saved = match self.region.read(slot) {
            Ok(saved) => saved,
            Err(_) => {
                self.damaged.store(true, Relaxed);
                let id = uuid(self.region.id(slot));
                self.region.forget(slot);
                let why = "its checkpoint is damaged".to_owned();
                return Err(Lost { session: Some(id), what: format!("session {id}"), why, known: None });
            }
        };
        let checkpoint = self.go_on.then(|| Checkpoint::resume(slot));
        let (mut claimed, mut repaired) = (Vec::new(), None);
        let stage = self.judged(&saved).and_then(|()| {
            let all = &mut lock(&self.descriptors);
            let (region, repaired) = (&self.region, &mut repaired);
            ClaimedDescriptors { all, region, claimed: &mut claimed, repaired }.stage(&saved)
        });
        if let (Ok(_), Some(Repaired { directions: [up, down], .. })) = (&stage, repaired) {
            self.repaired.fetch_add(1, Relaxed);
            self.on_their_way.fetch_add(up.on_their_way + down.on_their_way, Relaxed);
            let (up, down) = (up.delivered, down.delivered);
            saved.bytes = (up, down);
            if let Some(checkpoint) = &checkpoint {
                checkpoint.up().store(up, Relaxed);
                checkpoint.down().store(down, Relaxed);
            }
        }
        if checkpoint.is_none() {
            self.region.forget(slot);
        }
        match stage {
            Ok(stage) => Ok(adopted(saved, stage, checkpoint)),
            Err(why) => {
                let all = &mut lock(&self.descriptors);
                let (region, repaired) = (&self.region, &mut repaired);
                ClaimedDescriptors { all, region, claimed: &mut claimed, repaired }.rest(&saved);
                // A session that had ended well and was being closed ends well.
                if why != LostReason::Ending(End::Eof) {
                    claimed.iter().for_each(abandon);
                }
                Err(doomed(saved, checkpoint, why))
            }
        }
    }

    /// Whether a session may be looked at at all.
    fn judged(&self, saved: &SavedSession) -> Result<(), LostReason> {
        match &self.verdict {
            CrashVerdict::ResetAll => return Err(LostReason::ManyCrashes),
            CrashVerdict::Reset(ids) if ids.contains(&saved.id) => return Err(LostReason::Poison),
            CrashVerdict::Reset(_) | CrashVerdict::GoOn => {}
        }
        if let Some(end) = saved.ending {
            return Err(LostReason::Ending(End::ALL.get(usize::from(end)).copied().unwrap_or(End::Lost)));
        }
        let SavedRelay { up, down, .. } = saved.stage.relay;
        match saved.stage.stage {
            SavedStage::Sockets { .. } | SavedStage::Pipes { .. } => {}
            // The child gets something that it must not get twice.
            SavedStage::SettingUp { .. } if saved.busy => return Err(LostReason::Busy),
            SavedStage::Waiting { .. } | SavedStage::SettingUp { .. } | SavedStage::Flow { .. } => return Ok(()),
        }
        if saved.busy {
            return if saved.bases.is_some() { Ok(()) } else { Err(LostReason::Busy) };
        }
        if [up.held, down.held].contains(&SavedBytes::Private) { Err(LostReason::Private) } else { Ok(()) }
    }
}

/// Claims the descriptors of one session.
struct ClaimedDescriptors<'a> {
    all: &'a mut Descriptors,
    region: &'a Region,
    /// Those that were claimed for nothing, when a later one is missing.
    claimed: &'a mut Vec<OwnedFd>,
    /// Set where the session was busy.
    repaired: &'a mut Option<Repaired>,
}

impl ClaimedDescriptors<'_> {
    /// All that the session has, for one that does not go on.
    fn rest(&mut self, saved: &SavedSession) {
        let (sockets, readers, writers, child): (_, _, _, Option<(u32, u64)>) = match saved.stage.stage {
            SavedStage::Waiting { peer, .. } => (vec![peer], vec![], vec![], None),
            SavedStage::SettingUp { peer, pipes: [to, from, probe], pidfd, pid, stderr, .. } => {
                (vec![peer], vec![from, probe, stderr], vec![to], Some((pid, pidfd)))
            }
            SavedStage::Sockets { peer, upstream, .. } => (vec![peer, upstream], vec![], vec![], None),
            SavedStage::Pipes { peer, from, to, pidfd, pid, stderr, .. } => {
                (vec![peer], vec![from, stderr], vec![to], Some((pid, pidfd)))
            }
            SavedStage::Flow { upstream } => (vec![upstream], vec![], vec![], None),
        };
        for (class, keys) in [(Class::Socket, sockets), (Class::PipeReader, readers), (Class::PipeWriter, writers)] {
            self.claimed.extend(keys.into_iter().filter_map(|key| self.all.claim(class, key)));
        }
        if let Some((pid, key)) = child {
            self.claimed.extend(self.all.claim_process(pid, key));
        }
    }

    /// Takes one; it is in `claimed` until the stage is whole.
    fn one(&mut self, class: Class, key: DescriptorKey) -> Result<usize, LostReason> {
        let fd = self.all.claim(class, key).ok_or(LostReason::Missing)?;
        self.claimed.push(fd);
        Ok(self.claimed.len() - 1)
    }

    fn one_if(&mut self, class: Class, key: DescriptorKey) -> Result<Option<usize>, LostReason> {
        (key != 0).then(|| self.one(class, key)).transpose()
    }

    /// Takes a pipe of a child; whether the dead process had closed it, as is `noted`.
    fn one_unless_closed(
        &mut self,
        class: Class,
        key: DescriptorKey,
        noted: DescriptorKey,
    ) -> Result<(Option<usize>, bool), LostReason> {
        let closed = key != 0 && noted == key && !self.all.has(class, key);
        let claimed = if closed { None } else { self.one_if(class, key)? };
        Ok((claimed, closed))
    }

    fn process(&mut self, pid: u32, key: DescriptorKey) -> Result<usize, LostReason> {
        let fd = self.all.claim_process(pid, key).ok_or(LostReason::Missing)?;
        self.claimed.push(fd);
        Ok(self.claimed.len() - 1)
    }

    /// The stage, with all its descriptors, or why it cannot be had.
    fn stage(mut self, saved: &SavedSession) -> Result<ParkedStage, LostReason> {
        let saved_relay = saved.stage.relay;
        match saved.stage.stage {
            SavedStage::Waiting { peer, peer_unix } => {
                self.one(Class::Socket, peer)?;
                let [fd] = self.whole();
                Ok(ParkedStage::Waiting(ParkedPeer { kind: kind(peer_unix), fd }))
            }
            SavedStage::SettingUp { peer, peer_unix, pipes: [to, from, probe], pidfd, pid, stderr } => {
                self.one(Class::Socket, peer)?;
                self.one(Class::PipeWriter, to)?;
                self.one(Class::PipeReader, from)?;
                self.one(Class::PipeReader, probe)?;
                self.process(pid, pidfd)?;
                let said = self.one_if(Class::PipeReader, stderr)?.and_then(|_| self.claimed.pop());
                let [fd, to, from, probe, pidfd] = self.whole();
                let taken = Duration::from_nanos(monotonic().saturating_sub(saved.stage.set_up));
                Ok(ParkedStage::SettingUp {
                    peer: ParkedPeer { kind: kind(peer_unix), fd },
                    helper: helper(pid, pidfd, said)?,
                    call: ParkedCall { pipes: [to, from, probe], taken },
                    // Of what has passed it nothing is saved: that is counted anew, and the notice comes once more.
                    passed: Passed::default(),
                    told: false,
                })
            }
            SavedStage::Sockets { peer, peer_unix, upstream, upstream_unix } => {
                self.one(Class::Socket, peer)?;
                self.one(Class::Socket, upstream)?;
                let (saved_relay, up, down) = match saved.bases.filter(|_| saved.busy) {
                    Some(bases) => self.repaired(saved, bases, [peer_unix, upstream_unix])?,
                    None => (saved_relay, self.direction(saved_relay.up)?, self.direction(saved_relay.down)?),
                };
                let [peer, upstream] = self.whole();
                let peer = ParkedEnd::Socket(kind(peer_unix), peer);
                let upstream = ParkedEnd::Socket(kind(upstream_unix), upstream);
                Ok(ParkedStage::Relaying { relay: parked(peer, upstream, up, down, &saved_relay), helper: None })
            }
            SavedStage::Pipes { peer, peer_unix, from, to, pidfd, pid, stderr } => {
                self.one(Class::Socket, peer)?;
                self.process(pid, pidfd)?;
                let [closes, has_read] = saved.intents.map(|intent| intent.pipe);
                let (to, to_closed) = self.one_unless_closed(Class::PipeWriter, to, closes)?;
                let (from, from_closed) = self.one_unless_closed(Class::PipeReader, from, has_read)?;
                let said = self.one_if(Class::PipeReader, stderr)?;
                let (saved_relay, up, down) = match saved.bases.filter(|_| saved.busy) {
                    Some(bases) => self.repaired_call(saved, bases, peer_unix, [to_closed, from_closed])?,
                    None => (saved_relay, self.direction(saved_relay.up)?, self.direction(saved_relay.down)?),
                };
                let mut all: Vec<_> = std::mem::take(self.claimed).into_iter().map(Some).collect();
                let mut take = |index: Option<usize>| index.and_then(|index| all[index].take());
                let (said, from, to) = (take(said), take(from), take(to));
                let (Some(peer), Some(pidfd)) = (take(Some(0)), take(Some(1))) else { return Err(LostReason::Missing) };
                let (peer, upstream) = (ParkedEnd::Socket(kind(peer_unix), peer), ParkedEnd::Pipes { from, to });
                let relay = parked(peer, upstream, up, down, &saved_relay);
                Ok(ParkedStage::Relaying { relay, helper: Some(helper(pid, pidfd, said)?) })
            }
            SavedStage::Flow { upstream } => {
                let asked = saved.names.asked.ok_or(LostReason::Missing)?;
                self.one(Class::Socket, upstream)?;
                let [upstream] = self.whole();
                let at = asked.at.map(|(ip, interface)| Destination { ip, interface });
                let kept = FlowKept { passed: saved.passed, ..FlowKept::default() };
                let asked = Asked { peer: asked.peer, at };
                Ok(ParkedStage::Flow { asked, upstream: Some(upstream), kept, held: Vec::new() })
            }
        }
    }

    /// All descriptors that were claimed.
    fn whole<const N: usize>(&mut self) -> [OwnedFd; N] {
        let all = std::mem::take(self.claimed);
        <[OwnedFd; N]>::try_from(all).unwrap_or_else(|_| unreachable!("a stage claims what it needs"))
    }

    /// A direction, with the bytes that it held.
    fn direction(&mut self, saved: SavedDirection) -> Result<ParkedDirection, LostReason> {
        let held = match saved.held {
            SavedBytes::Nothing => ParkedBytes::new(Vec::new()),
            SavedBytes::Private => return Err(LostReason::Private),
            SavedBytes::Pipe(key) => self.pipe(key)?,
            SavedBytes::Buffer(part) => self.part(part)?,
        };
        Ok(ParkedDirection { phase: phase(saved.phase), held, dropped: saved.dropped })
    }

    /// The bytes in a pipe of the pool.
    fn pipe(&mut self, key: DescriptorKey) -> Result<ParkedBytes, LostReason> {
        let reader = self.all.claim(Class::PipeReader, key).ok_or(LostReason::Missing)?;
        let writer = self.all.claim(Class::PipeWriter, key).ok_or(LostReason::Missing)?;
        let bytes = sys::unread(reader.as_fd());
        Ok(ParkedBytes::in_pipe(reader, writer, bytes))
    }

    /// The bytes in a part of a buffer.
    fn part(&self, SavedPart { number, at, end }: SavedPart) -> Result<ParkedBytes, LostReason> {
        let buffer = self.region.left_buffer(number, end as usize).ok_or(LostReason::Doubt)?;
        ParkedBytes::in_buffer(buffer, at as usize, end as usize).ok_or(LostReason::Doubt)
    }

    /// What the kernel has counted on the sockets of the peer and of the upstream, which were claimed.
    fn counts(&self, saved: &SavedSession, noted: &Noted, unix: [bool; 2]) -> Result<[SocketCounts; 2], LostReason> {
        let of = |side: usize| counts(self.claimed[side].as_fd(), unix[side]);
        let mut sides = [of(0)?, of(1)?];
        let relay = [saved.stage.relay.up, saved.stage.relay.down];
        for n in [0, 1] {
            let read = sides[n].read.wrapping_sub(noted.bases.read[n]);
            if unix[n] {
                heard_no_reset(saved, noted, n, &sides[n])?;
            }
            let to = 1 - n;
            if unix[to] {
                let intent = &saved.intents[n];
                let owner = send_owner(saved.id.1, n);
                let sent = intent.buffer.and_then(|(number, _)| self.region.sent(number, owner));
                let pipe = (intent.pipe != 0).then_some(noted.in_pipe[n]);
                let (dropped, delivered) = (relay[n].dropped, noted.delivered[n]);
                let written = written_to_unix(read, dropped, delivered, pipe, sent);
                sides[to].written = noted.bases.written[n].wrapping_add(written);
                // What is missing arrives nowhere any more, and the process may have heard so.
                let is_missing = read.wrapping_sub(dropped) != written;
                sides[to].closed = is_missing && sys::unix_is_closed(self.claimed[to].as_fd());
                sides[to].ended &= !sides[to].closed;
            }
        }
        Ok(sides)
    }

    /// The relay of a session that was busy between the peer, which was claimed first, and a child.
    fn repaired_call(
        &mut self,
        saved: &SavedSession,
        bases: SavedBases,
        unix: bool,
        closed: [bool; 2],
    ) -> Result<(SavedRelay, ParkedDirection, ParkedDirection), LostReason> {
        let noted = noted(saved, bases, [0; 2]);
        let mut peer = counts(self.claimed[0].as_fd(), unix)?;
        if unix {
            heard_no_reset(saved, &noted, 0, &peer)?;
            peer.closed = false;
        }
        let RepairedCall { repaired, end_held } =
            child::repair(&noted, peer, !unix, closed).map_err(|InDoubt| LostReason::Doubt)?;
        *self.repaired = Some(repaired);
        let Repaired { reset_by, directions } = repaired;
        let [up, down] = directions.map(|direction| ParkedDirection {
            phase: phase(direction.phase),
            held: ParkedBytes::new(Vec::new()),
            dropped: direction.dropped,
        });
        Ok((SavedRelay { reset_by, end_held, ..saved.stage.relay }, up, down))
    }

    /// The relay of a session that was busy between two sockets, which were claimed.
    fn repaired(
        &mut self,
        saved: &SavedSession,
        bases: SavedBases,
        unix: [bool; 2],
    ) -> Result<(SavedRelay, ParkedDirection, ParkedDirection), LostReason> {
        let mut in_pipe = [0; 2];
        for (bytes, intent) in in_pipe.iter_mut().zip(&saved.intents).filter(|(_, intent)| intent.pipe != 0) {
            *bytes = self.all.bytes_in_pipe(intent.pipe).ok_or(LostReason::Doubt)?;
        }
        let noted = noted(saved, bases, in_pipe);
        let sides = self.counts(saved, &noted, unix)?;
        let repaired = repair(&noted, sides).map_err(|InDoubt| LostReason::Doubt)?;
        *self.repaired = Some(repaired);
        let Repaired { reset_by, directions } = repaired;
        let mut parked = Vec::with_capacity(2);
        for (n, direction) in directions.into_iter().enumerate() {
            let held = match direction.held {
                FoundBytes::Nothing => ParkedBytes::new(Vec::new()),
                FoundBytes::Pipe => self.pipe(saved.intents[n].pipe)?,
                FoundBytes::Buffer(part) => self.part(part)?,
            };
            parked.push(ParkedDirection { phase: phase(direction.phase), held, dropped: direction.dropped });
        }
        let (Some(down), Some(up)) = (parked.pop(), parked.pop()) else { return Err(LostReason::Doubt) };
        Ok((SavedRelay { reset_by, ..saved.stage.relay }, up, down))
    }
}

/// What the kernel has counted on a socket.
fn counts(fd: BorrowedFd<'_>, unix: bool) -> Result<SocketCounts, LostReason> {
    let counts = if unix { sys::unix_counts(fd) } else { sys::tcp_counts(fd, ClosedSocket::Ask) };
    counts.ok_or(LostReason::Doubt)
}

/// Makes sure that the dead process has not heard of a reset of the UNIX socket of this side, which looks like an end now.
/// A read that was under way may have heard of one, and the kernel tells it once; a read that gave bytes has not. Of
/// reads that are dropped, the process has not noted each.
fn heard_no_reset(saved: &SavedSession, noted: &Noted, side: usize, counts: &SocketCounts) -> Result<(), LostReason> {
    let direction = [noted.relay.up, noted.relay.down][side];
    let read = counts.read.wrapping_sub(noted.bases.read[side]);
    let known = direction.dropped.wrapping_add(noted.delivered[side]);
    let is_noted = noted.relay.reset_by.map(usize::from) == Some(side);
    let heard = saved.hears[side] && (read == known || phase(direction.phase) != Phase::Open);
    if heard && counts.ended && !is_noted { Err(LostReason::Doubt) } else { Ok(()) }
}

fn noted(saved: &SavedSession, bases: SavedBases, in_pipe: [u64; 2]) -> Noted {
    let delivered = [saved.bytes.0, saved.bytes.1];
    Noted { bases, intents: saved.intents, relay: saved.stage.relay, delivered, in_pipe }
}

fn phase(saved: u8) -> Phase {
    match saved {
        0 => Phase::Open,
        1 => Phase::Deaf,
        _ => Phase::Done,
    }
}

fn kind(unix: bool) -> StreamKind {
    if unix { StreamKind::Unix } else { StreamKind::Tcp }
}

fn parked(
    peer: ParkedEnd,
    upstream: ParkedEnd,
    up: ParkedDirection,
    down: ParkedDirection,
    checkpoint: &SavedRelay,
) -> relay::Parked {
    let reset_by = checkpoint.reset_by.map(|side| if side == 0 { Side::Peer } else { Side::Upstream });
    relay::Parked { peer, upstream, up, down, reset_by, end_held: checkpoint.end_held }
}

fn helper(pid: u32, pidfd: OwnedFd, stderr: Option<OwnedFd>) -> Result<Helper, LostReason> {
    let child = Child::adopt(pid, pidfd).map_err(|_| LostReason::Io)?;
    let stderr = stderr.map(|fd| Stream::new(fd, StreamKind::PipeReader)).transpose().map_err(|_| LostReason::Io)?;
    Ok(Helper { child, stderr: Stderr::new(stderr) })
}

/// A listener with its descriptors; `None` where one did not come.
fn handed(SavedListener { names, socket, lock }: SavedListener, all: &mut Descriptors) -> Option<Handed> {
    let kind = match names.kind {
        0 => SocketKind::Tcp,
        1 => SocketKind::Unix,
        2 => SocketKind::Udp,
        _ => return None,
    };
    let socket = Socket::new(kind, all.claim(Class::Listener, socket)?);
    let local = socket.local().ok()?;
    let claim = match names.claim {
        Some((path, inode)) => {
            let path = OsString::from_vec(path).into();
            Some(SocketClaim::resume(path, inode, all.claim(Class::File, lock)?))
        }
        None => None,
    };
    let netns = names.netns.map(|(device, inode)| Id { device, inode });
    Some(Handed { listen: names.listen, bound: Bound { socket, local, claim, netns }, before: names.before })
}

fn uuid(SavedId(high, low): SavedId) -> Uuid {
    Uuid::from_u64_pair(high, low)
}

fn since(nanos: u64) -> Duration {
    Duration::from_nanos(monotonic().saturating_sub(nanos))
}

fn adopted(saved: SavedSession, stage: ParkedStage, checkpoint: Option<Checkpoint>) -> Adopted<'static> {
    let listener = identity(&saved, stage.transport());
    let now = monotonic();
    let starting_ms = saved.starting.map(|until| until.saturating_sub(now) / 1_000_000);
    let names = saved.names;
    Adopted {
        id: uuid(saved.id),
        name: names.name.into(),
        listener,
        upstream: names.upstream.into(),
        peer: Peer::read(&names.peer).unwrap_or(Peer::Unknown),
        age: since(saved.accepted),
        dial_ms: saved.dial_ms,
        queued_ms: saved.queued_ms,
        redials: RedialsKept { lost: saved.redialled, starting_ms },
        netns: names.netns.map(Into::into),
        unit: names.unit.map(Into::into),
        bytes: saved.bytes,
        stage,
        checkpoint,
    }
}

fn identity(saved: &SavedSession, transport: SocketKind) -> ListenerIdentity {
    let names = &saved.names;
    ListenerIdentity {
        address: names.listener.as_str().into(),
        transport,
        label: names.label.as_deref().map(Into::into),
        netns: names.listen_netns.as_deref().map(Into::into),
    }
}

/// A session that does not go on, with all that its end event says.
fn doomed(saved: SavedSession, checkpoint: Option<Checkpoint>, why: LostReason) -> Lost {
    let id = uuid(saved.id);
    let transport = match saved.stage.stage {
        SavedStage::Flow { .. } => SocketKind::Udp,
        SavedStage::Waiting { peer_unix: true, .. }
        | SavedStage::SettingUp { peer_unix: true, .. }
        | SavedStage::Sockets { peer_unix: true, .. }
        | SavedStage::Pipes { peer_unix: true, .. } => SocketKind::Unix,
        _ => SocketKind::Tcp,
    };
    let listener = identity(&saved, transport);
    let route = Routes::new(0).unknown(saved.names.name.clone(), listener, &saved.names.upstream);
    let (up, down) = saved.bytes;
    let counters = checkpoint.map_or_else(|| Counters::starting_at(up, down), Counters::resume);
    let peer = Peer::read(&saved.names.peer).unwrap_or(Peer::Unknown);
    let info = SessionInfo::new(id, Arc::new(route), peer, since(saved.accepted), counters);
    if let Some(ms) = saved.dial_ms {
        info.connected(ms, saved.names.netns.as_deref().map(Into::into));
    }
    let known = Some(Box::new((info, why.end())));
    Lost { session: Some(id), what: format!("session {id}"), why: why.text().to_owned(), known }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_without_a_checkpoint_is_a_new_connection_unless_a_session_had_none() {
        for unsaved in [false, true] {
            let region = Arc::new(Region::create().expect("memory"));
            if unsaved {
                region.set_unsaved();
            }
            let path = std::env::temp_dir().join(format!("stranger-{}-{unsaved}", std::process::id()));
            let listener = UnixListener::bind(&path).expect("a path");
            let _peer = UnixStream::connect(&path).expect("it listens");
            let (accepted, _) = listener.accept().expect("it came");
            std::fs::remove_file(path).expect("ours");
            let mut descriptors = Descriptors::default();
            descriptors.add(accepted.into());
            let rescued = Rescued::new(region, false, descriptors, CrashCause::Killed, CrashVerdict::GoOn);
            assert_eq!(rescued.strangers().len(), usize::from(!unsaved));
        }
    }
}
