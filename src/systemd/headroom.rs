//! Descriptors kept back for what the service cannot do without: to tell its manager that it lives, to ask it what a
//! SIGTERM means, and to hand its sessions over.
//!
//! The soft limit, into which accept(2), dials and calls run, is held a little below the hard one (setrlimit(2)).

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Enough for the handover: a pair, a memfd, the pipe and the socket of a notification; and as many for a program
/// that is started.
const KEPT: u64 = 16;

/// Who uses what is kept back: one at a time, so that nobody lowers the limit under another.
static IN_USE: Mutex<()> = Mutex::new(());

/// Allows as many descriptors as may be, but for those kept back. A session takes two to six, and the soft limit is
/// often 1024.
pub fn keep() {
    limit(|hard| hard - KEPT.min(hard / 4));
}

fn limit(soft: impl Fn(u64) -> u64) {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft(hard), hard); // lowering, or raising to the hard limit, is allowed
    }
}

/// Leave to use what is kept back, until it is dropped.
#[derive(Debug)]
pub struct Headroom {
    _alone: MutexGuard<'static, ()>,
}

impl Headroom {
    /// Waits until nobody else uses it.
    pub fn take() -> Self {
        let alone = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        limit(|hard| hard);
        Self { _alone: alone }
    }
}

impl Drop for Headroom {
    fn drop(&mut self) {
        keep();
    }
}
