//! What a process does against its own crash: it has a region for its checkpoints and a shadow that shares its
//! descriptors, both before its first thread.
//!
//! The order matters. The process waits, where crashes come fast, while the keeper still has the sessions; it swaps
//! itself in as the owner, then it starts its shadow, and only then anything is taken from the pair: a process that is
//! killed while it takes up the sessions of a crashed one loses none.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::{
        signal::{Signal, kill},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use sd_notify::NotifyState;

use crate::{
    crash::{Region, RegionMode, RegionOwner, record_fault, record_panics, region, set_region},
    sys::{
        self,
        fatal::on_fatal_signals,
        shadow::{self, ShadowPlan, unix_address},
    },
    systemd::{
        notify::{barrier, tell},
        unit,
    },
};

/// Our names in the descriptor store: the memfd of the checkpoints, the end of the pair that the shadow sends into, the
/// end that the next process reads from.
const STORED: [&str; 3] = ["crash-state", "crash-in", "crash-out"];
/// The message to the keeper when a shadow has given everything.
pub const CRASHED: &[u8] = b"crashed";
/// How long the shadow may take to begin.
const BEGIN: Duration = Duration::from_secs(10);
/// How long a shadow that was killed may take to end.
const END: Duration = Duration::from_secs(1);
/// The group of the shadow, in that of the calls.
const GROUP: &str = "shadow";

/// Whether an entry of the descriptor store belongs to a crash.
pub fn is_ours(name: &str) -> bool {
    STORED.contains(&name)
}

/// What a process has against its own crash.
#[derive(Debug)]
pub struct CrashGuard {
    region: Arc<Region>,
    /// The end of the pair that descriptors of dead processes are read from.
    take: OwnedFd,
    /// The other end; the shadow sends into it, under its number.
    _give: OwnedFd,
    /// The previous process has crashed, and this one has its sessions.
    crashed: bool,
    /// The control group of the unit that owns the calls, in which the shadows are.
    calls: Option<PathBuf>,
    /// Stands for the shadow.
    shadow: Option<OwnedFd>,
    /// Why the sessions of this process would not all go on after a crash.
    trouble: Option<io::Error>,
}

/// Region and pair.
struct GuardParts {
    region: Region,
    give: OwnedFd,
    take: OwnedFd,
    crashed: bool,
}

impl CrashGuard {
    /// Begins, with what the descriptor store has of earlier processes; `calls` is the control group of the unit that
    /// owns the calls. Without that unit there is no place where a shadow would outlive this process: then it takes up
    /// what a crash has left, and no more.
    ///
    /// # Errors
    /// Why this process would not survive a crash; everything else works.
    pub fn begin(stored: Vec<(String, OwnedFd)>, calls: Option<&Path>) -> io::Result<Option<Self>> {
        let calls = calls.filter(|calls| calls.is_dir());
        let stale = !stored.is_empty();
        let began = Self::begin_with(stored, calls);
        let useless = match &began {
            Ok(None) => stale,
            Ok(Some(_)) => false,
            Err(_) => true,
        };
        if useless {
            // The next process would take them for what a crash has left.
            forget();
        }
        began
    }

    fn begin_with(stored: Vec<(String, OwnedFd)>, calls: Option<&Path>) -> io::Result<Option<Self>> {
        let GuardParts { region, give, take, crashed } = match (earlier(stored).map(paced).and_then(own), calls) {
            (Some(parts), _) => parts,
            (None, Some(_)) => own(paced(fresh()?)).ok_or(io::ErrorKind::Other)?,
            (None, None) => return Ok(None),
        };
        let region = Arc::new(region);
        make_room(take.as_fd(), region.given());
        let calls = calls.map(Path::to_owned);
        let mut guard = Self { region, take, _give: give, crashed, calls, shadow: None, trouble: None };
        match guard.start_shadow() {
            Ok(shadow) => guard.shadow = Some(shadow),
            Err(e) if !guard.crashed => return Err(e),
            Err(e) => {
                // What the crash has left is taken up nevertheless.
                guard.trouble = Some(e);
                return Ok(Some(guard));
            }
        }
        set_region(guard.region.clone());
        record_panics();
        guard.trouble = on_fatal_signals(record_fault).err();
        Ok(Some(guard))
    }

    /// Starts the shadow and waits until no kill of this unit reaches it.
    fn start_shadow(&self) -> io::Result<OwnedFd> {
        let RegionOwner::Service(generation) = self.region.owner() else { return Err(io::ErrorKind::Other.into()) };
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the unit of the calls does not run");
        let started = self.calls.as_deref().ok_or_else(missing).and_then(|calls| self.shadow(calls, generation));
        if started.is_err() {
            self.region.without_shadow();
        }
        started
    }

    fn shadow(&self, calls: &Path, generation: u64) -> io::Result<OwnedFd> {
        let group = calls.join(GROUP);
        match std::fs::create_dir(&group) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let keeper = unit::keeper().and_then(|path| unix_address(&path));
        let process = sys::pidfd_open(std::process::id())?;
        let plan = ShadowPlan {
            words: self.region.shadow_words(generation),
            generation,
            process: process.as_raw_fd(),
            pair: (self._give.as_raw_fd(), self.take.as_raw_fd()),
            memfd: self.region.memfd().as_fd().as_raw_fd(),
            group: CString::new(group.join("cgroup.procs").as_os_str().as_bytes())?,
            keeper,
            message: CRASHED,
        };
        let child = shadow::start(&plan)?;
        let began = self.began(child, generation);
        match began {
            // For as long as the table is there: the shadow waits on it.
            Ok(_) => _ = process.into_raw_fd(),
            Err(_) => end(child),
        }
        began
    }

    /// Waits until the shadow is in its place.
    fn began(&self, child: u32, generation: u64) -> io::Result<OwnedFd> {
        let shadow = sys::pidfd_open(child)?;
        let until = Instant::now() + BEGIN;
        while !self.region.is_ready(generation) {
            if Instant::now() > until || has_ended(shadow.as_fd()) {
                return Err(io::Error::other("the process that shares the descriptors did not begin"));
            }
            sleep(Duration::from_micros(200));
        }
        Ok(shadow)
    }

    /// Stands for the shadow, where there is one: readable when the shadow has ended.
    pub fn take_shadow(&mut self) -> Option<OwnedFd> {
        self.shadow.take()
    }

    /// Why the sessions of this process would not all go on after a crash; to be told once.
    pub fn take_trouble(&mut self) -> Option<io::Error> {
        self.trouble.take()
    }

    /// Whether the previous process has crashed, so that a handover that it had begun is not the one that counts.
    pub fn crashed(&self) -> bool {
        self.crashed
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(super) fn take_end(&self) -> BorrowedFd<'_> {
        self.take.as_fd()
    }

    /// Whether this process has a shadow, which is among those that are not done.
    pub(super) fn has_shadow(&self) -> bool {
        region().is_some()
    }

    /// Whether no shadow of an earlier process gives anything any more: all are done, or those that are not have been
    /// killed.
    pub(super) fn earlier_are_done(&self) -> bool {
        let own = u64::from(self.has_shadow());
        let alive = |calls: &PathBuf| shadows(calls) as u64 > own;
        self.region.shadows() <= own || !self.calls.as_ref().is_some_and(alive)
    }

    /// The end at which descriptors may come after all, when a shadow was silent for too long ([`super::reset_late`]).
    pub fn late(&self) -> Option<OwnedFd> {
        let awaited = self.crashed && !self.earlier_are_done();
        awaited.then(|| self.take.try_clone().ok()).flatten()
    }
}

/// Waits where crashes come fast.
fn paced(parts: GuardParts) -> GuardParts {
    sleep(Duration::from_millis(parts.region.started()));
    parts
}

/// What the store has of an earlier process, if that can be used.
fn earlier(stored: Vec<(String, OwnedFd)>) -> Option<GuardParts> {
    if stored.is_empty() {
        return None;
    }
    let mut all = [None, None, None];
    for (name, fd) in stored {
        STORED.iter().zip(&mut all).filter(|(known, _)| **known == name).for_each(|(_, place)| {
            if place.is_none() {
                *place = fd.try_clone().ok();
            }
        });
    }
    let parts = match all {
        [Some(memfd), Some(give), Some(take)] => {
            Region::open(memfd).ok().map(|region| GuardParts { region, give, take, crashed: true })
        }
        _ => None,
    };
    parts.filter(|parts| parts.region.mode() == RegionMode::Running)
}

/// Makes this process the owner; `None` when the keeper is.
fn own(parts: GuardParts) -> Option<GuardParts> {
    let generation = parts.region.next_generation();
    let owned = parts.region.own(RegionOwner::Service(generation));
    if !owned {
        parts.region.without_shadow();
    }
    owned.then_some(parts)
}

/// A new region and a new pair, in the descriptor store from now on.
fn fresh() -> io::Result<GuardParts> {
    forget();
    let region = Region::create()?;
    let (give, take) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    for (name, fd) in STORED.iter().zip([region.memfd().as_fd(), give.as_fd(), take.as_fd()]) {
        // FDPOLL=0: the manager is not to drop them when it sees a hang-up.
        let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
        sd_notify::notify_with_fds(&state, &[fd])?;
    }
    barrier()?;
    Ok(GuardParts { region, give, take, crashed: false })
}

/// Takes region and pair out of the descriptor store.
fn forget() {
    for name in STORED {
        tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }
}

/// Says what is to become of the sessions from now on, if this process dies.
pub fn set_mode(mode: RegionMode) {
    let Some(region) = region() else { return };
    region.set_mode(mode);
    if matches!(mode, RegionMode::Handed | RegionMode::Ended) {
        forget();
    }
}

/// The processes of the shadows that live, where `calls` is the control group of the unit that owns the calls.
pub fn shadows(calls: &Path) -> usize {
    std::fs::read_to_string(calls.join(GROUP).join("cgroup.procs")).map_or(0, |pids| pids.lines().count())
}

/// What the keeper needs to know of a process that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Died {
    /// Which process of this region it was.
    pub generation: u64,
    /// Whether it was stopping: then nobody takes its sessions up.
    pub stopping: bool,
}

/// The process that left these checkpoints; `None` when the next one has them already, and a shadow.
pub fn died(memfd: BorrowedFd<'_>) -> Option<Died> {
    let region = memfd.try_clone_to_owned().and_then(Region::open).ok()?;
    let generation = match region.owner() {
        RegionOwner::Free(generation) => generation,
        RegionOwner::Service(generation) if !region.is_ready(generation) => generation,
        RegionOwner::Service(_) | RegionOwner::Keeper => return None,
    };
    Some(Died { generation, stopping: region.mode() == RegionMode::Stopping })
}

/// This process takes up a handover, or has done so.
pub fn set_taking(taking: bool) {
    region().into_iter().for_each(|region| region.set_taking(taking));
}

/// This process hands its sessions over from now on.
pub fn set_handing() {
    region().into_iter().for_each(Region::set_handing);
}

/// This process has said that it is ready.
pub fn serving() {
    region().into_iter().for_each(Region::serving);
}

/// As [`super::make_room`], for `descriptors` that were given.
fn make_room(end: BorrowedFd<'_>, descriptors: u64) {
    let highest = RawFd::try_from(descriptors).unwrap_or(0);
    let _ = fcntl(end, FcntlArg::F_DUPFD_CLOEXEC(highest)).map(sys::own);
}

/// Kills a child and collects it: nobody else does, and a zombie would stay as long as this process lives.
fn end(child: u32) {
    let Ok(child) = i32::try_from(child).map(Pid::from_raw) else { return };
    let _ = kill(child, Signal::SIGKILL);
    let until = Instant::now() + END;
    let lives = || matches!(waitpid(child, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR));
    while lives() && Instant::now() < until {
        sleep(Duration::from_micros(200));
    }
}

/// Whether a process has ended.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of open descriptors, that of this look included.
    fn open() -> usize {
        std::fs::read_dir("/proc/self/fd").expect("it is there").count()
    }

    /// Starts a shadow that cannot move to its group; what is wrong then, in bits.
    fn failed_start(calls: &Path) -> u8 {
        let region = Region::create().expect("memory");
        let (give, take) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a pair");
        let parts = own(GuardParts { region, give, take, crashed: false }).expect("nobody else has it");
        let GuardParts { region, give, take, crashed } = parts;
        let (region, calls) = (Arc::new(region), Some(calls.to_owned()));
        let guard = CrashGuard { region, take, _give: give, crashed, calls, shadow: None, trouble: None };
        let before = open();
        let began = guard.start_shadow().is_ok();
        let child = waitpid(None, Some(WaitPidFlag::WNOHANG)) != Err(Errno::ECHILD);
        let (descriptor, awaited) = (open() > before, guard.region.shadows() > 0);
        [began, child, descriptor, awaited].into_iter().rev().fold(0, |bits, wrong| bits << 1 | u8::from(wrong))
    }

    #[test]
    fn a_shadow_that_cannot_begin_leaves_no_child_and_no_descriptor() {
        let calls = std::env::temp_dir().join(format!("calls-{}", std::process::id()));
        // Nobody can write to it, not even root.
        std::fs::create_dir_all(calls.join(GROUP).join("cgroup.procs")).expect("a directory");
        let wrong = sys::forked(|| failed_start(&calls));
        std::fs::remove_dir_all(calls).expect("ours");
        assert_eq!(wrong, 0, "1: it began; 2: a child is left; 4: a descriptor; 8: the next process would wait for it");
    }
}
