//! One policy for locks whose holder panicked.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; also when a holder panicked. What such a holder leaves behind here are plain counters, maps and lists, each
/// changed by one call that does not panic half-way: one session or command that panics
/// must not end the others.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
