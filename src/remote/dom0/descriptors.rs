//! Descriptors: as many as the system gives, shared out among the qubes, so that no qube's commands use up another's.
//!
//! A running command takes up to six in the daemon (three pipes or two ends of a terminal, the supervisor's socket and
//! its process, one of a file that is moved), a channel about eight, and the supervisor that waits two. The soft limit
//! of the service manager is 1024, and a command gets it back: programs that use select(2) cannot take more.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit};

use crate::systemd::headroom;

/// Descriptors for everything that belongs to no qube: the log, the ledger, the control socket and its clients.
const COMMON: u64 = 96;
/// Descriptors for the channel of a qube.
const CHANNEL: u64 = 12;
/// Descriptors for a command.
const COMMAND: u64 = 8;

/// The soft limit with which the daemon was started.
static INHERITED: OnceLock<u64> = OnceLock::new();

/// Raises the limit of this process, but for what is kept back to speak with the service manager.
pub(super) fn raise() {
    let _ = INHERITED.set(soft());
    headroom::keep();
}

/// The soft limit for commands.
pub(super) fn inherited() -> u64 {
    INHERITED.get().copied().unwrap_or_else(soft)
}

fn soft() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// Commands of each of these qubes that may run at a time, so that all have descriptors.
pub(super) fn places(qubes: usize) -> usize {
    share(soft(), qubes)
}

fn share(limit: u64, qubes: usize) -> usize {
    let each = limit.saturating_sub(COMMON) / u64::try_from(qubes.max(1)).unwrap_or(u64::MAX);
    usize::try_from(each.saturating_sub(CHANNEL) / COMMAND).unwrap_or(usize::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_qube_has_its_share() {
        assert_eq!((share(1024, 1), share(1024, 4), share(1024, 50)), (114, 27, 1));
        assert!(share(524_288, 20) > 64, "what systemd allows is enough for every policy");
        assert_eq!((share(0, 0), share(u64::MAX, 1) > 64), (1, true));
    }
}
