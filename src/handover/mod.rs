//! Sessions outlive this process: it gives all their descriptors to the service manager, and the next process takes
//! them up.
//!
//! # Theory
//! The manager keeps descriptors for a service that restarts (sd_pid_notify_with_fds(3), FDSTORE), but storing
//! thousands one by one takes seconds and starves it. So only two are stored: the ends of one SEQPACKET pair. In its
//! queue wait messages that carry descriptors and nothing else (SCM_RIGHTS, unix(7), at most 253 each); the first
//! carries one sealed memfd with everything that is not a descriptor ([`record`]). The pair's buffer holds about two
//! hundred such messages whatever is in the records, because the records are not in it.
//!
//! What cannot be sent, or not be read by the next process, ends that session, with the reason in its end event; the
//! others go on.

mod child;
mod gathered;
mod guard;
mod ledger;
mod listeners;
mod read;
mod record;
mod records;
mod rescue;
mod transport;
mod write;

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use sd_notify::NotifyState;

pub use gathered::reset_late;
pub use guard::{
    CRASHED, CrashGuard, Died, died, is_ours as is_of_crash, serving, set_handing, set_mode, set_taking, shadows,
};
pub use read::{Adopted, Lost};
pub use records::{Records, Taken};
pub use rescue::seize;
pub use transport::waits;

use crate::{
    listener::Handed,
    session::{ParkedSession, abandon},
    systemd::{
        headroom::Headroom,
        notify::{barrier, tell},
        unit::leave,
    },
};

/// The name of our entries in the descriptor store.
pub const NAME: &str = "handover";

/// Gives parked sessions and listeners of our own to the service manager; to be followed by the process's exit. Their
/// descriptors, which are to be closed when the region says that all was handed over: then a crash needs them no more.
///
/// # Errors
/// When the pair, the records or the store cannot be made: then nothing was handed over, and all sessions are ended.
pub fn give(parked: Vec<ParkedSession>, listeners: &[Handed]) -> io::Result<Vec<OwnedFd>> {
    let _headroom = Headroom::take();
    let (records, descriptors) = write::write(parked, listeners)?;
    let given = store(&records, &descriptors);
    if given.is_err() {
        descriptors.iter().for_each(abandon);
    }
    given.map(|()| descriptors)
}

fn store(records: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let (ours, theirs) = transport::pair()?;
    let sent = transport::send(ours.as_fd(), records, descriptors)?;
    descriptors[sent..].iter().for_each(abandon);
    let _ = leave(Some(theirs.as_fd()));
    // FDPOLL=0: the manager is not to drop them when it sees a hang-up.
    let state = [NotifyState::FdStore, NotifyState::FdName(NAME), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&state, &[ours.as_fd(), theirs.as_fd()])?;
    barrier()
}

/// Makes the table of descriptors as large as it will be when what waits in the store's entries was received.
///
/// To be called before the first thread is started: while threads share the table, each time that it grows waits for a
/// grace period of the kernel (fs/file.c, `expand_fdtable`), seven times on the way to 16,000. Received itself is
/// nothing yet: until there is somebody to take a SIGTERM as an order, it is safe where it is.
pub fn make_room(stored: &[OwnedFd]) {
    let _headroom = Headroom::take();
    stored.iter().for_each(|end| transport::make_room(end.as_fd()));
}

/// Takes what the previous process gave, and the store's entries with it.
pub fn take(stored: Vec<OwnedFd>) -> Taken {
    let taken = open(&stored);
    if !stored.is_empty() {
        tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)]);
    }
    taken
}

/// Takes a handover that a crash came into: everything in it is in the checkpoints of that process, too. Its
/// descriptors are those of the sessions, which the process may have closed already.
pub fn discard(ends: Vec<OwnedFd>) -> Vec<OwnedFd> {
    let received = ends.iter().filter_map(|end| transport::receive(end.as_fd()).ok().flatten());
    let descriptors = received.flat_map(|received| received.descriptors.into_iter().flatten()).collect();
    if !ends.is_empty() {
        tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)]);
    }
    descriptors
}

/// Takes what waits in these ends, each of another pair.
pub fn open(ends: &[OwnedFd]) -> Taken {
    let mut taken = Taken::default();
    for end in ends {
        // What the previous process had while it was at its limit, this one may need to have too.
        let _headroom = Headroom::take();
        match transport::receive(end.as_fd()) {
            Ok(Some(received)) => {
                let Taken { sessions, listeners, lost } = &mut taken;
                let opened = read::open(received.records, received.descriptors, listeners, lost);
                sessions.extend(opened.map(Records::Parked));
            }
            Ok(None) => {}
            Err(e) => taken.lost.push(Lost::all(e.to_string())),
        }
    }
    taken
}
