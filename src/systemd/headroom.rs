//! Descriptors kept back for what the service cannot do without: to tell its manager that it lives, to ask it what a
//! SIGTERM means, and to hand its sessions over.
//!
//! The soft limit, into which accept(2), dials and calls run, is held a little below the hard one (setrlimit(2)). The
//! limit is that of the whole process: while it is raised for one thread, sessions of other threads can take what is
//! kept back. So it is raised for as short as may be, and messages to the manager need no descriptor at all
//! ([`datagrams`]).

use std::{
    os::unix::net::UnixDatagram,
    sync::{Mutex, MutexGuard, OnceLock},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::sys::lock;

/// Enough for the handover: a pair, a memfd, the pipe and the socket of a notification; and as many for a program
/// that is started.
const KEPT: u64 = 16;

/// Whether descriptors are kept back in this process. The lock is held by whoever uses them: one at a time, so that
/// nobody lowers the limit under another.
static IN_USE: Mutex<bool> = Mutex::new(false);

/// A socket that stays open as long as the process lives.
static DATAGRAMS: OnceLock<Option<UnixDatagram>> = OnceLock::new();

/// Allows as many descriptors as may be, but for those kept back. A session takes two to six, and the soft limit is
/// often 1024.
pub fn keep() {
    DATAGRAMS.get_or_init(|| UnixDatagram::unbound().ok());
    *lock(&IN_USE) = true;
    lower();
}

/// An unbound socket for datagrams to the manager and to the unit's own programs, in a process that keeps descriptors
/// back.
pub fn datagrams() -> Option<&'static UnixDatagram> {
    DATAGRAMS.get()?.as_ref()
}

fn lower() {
    limit(|hard| hard - KEPT.min(hard / 4));
}

fn limit(soft: impl Fn(u64) -> u64) {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft(hard), hard); // lowering, or raising to the hard limit, is allowed
    }
}

/// Guard: raises the limit of descriptors to the hard one until it is dropped. It changes nothing in a process that
/// keeps none back.
#[derive(Debug)]
pub struct Headroom {
    alone: MutexGuard<'static, bool>,
}

impl Headroom {
    /// Waits until nobody else uses it.
    pub fn take() -> Self {
        let alone = lock(&IN_USE);
        if *alone {
            limit(|hard| hard);
        }
        Self { alone }
    }
}

impl Drop for Headroom {
    fn drop(&mut self) {
        if *self.alone {
            lower();
        }
    }
}
