//! Crashes of the last minute: what they have in common, and how fast they come. Pure.
//!
//! A crash counts when the process caused it: by a fault ([`CrashCause::Signal`], [`CrashCause::Panic`]), or by a death
//! so soon after it had said that it is ready that its work must be the reason ([`CrashCause::Soon`]). A SIGKILL at
//! another time (an operator, the kernel out of memory) says nothing about a session.

/// A session's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SavedId(pub u64, pub u64);

/// How long crashes are remembered, in nanoseconds.
const MEMORY: u64 = 60 * SECOND;
const SECOND: u64 = 1_000_000_000;
/// So many crashes without a common session end all sessions.
const MANY: usize = 5;
/// A death this soon after READY=1 counts, in nanoseconds.
const SOON: u64 = SECOND;
/// Starts within this time are too many when there are more than [`QUICK`].
const PACE: u64 = 10 * SECOND;
const QUICK: usize = 3;
/// The first pause, and the longest, in milliseconds.
const PAUSES: (u64, u64) = (200, 1000);

/// Why a process died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashCause {
    /// A signal of a fault, or the watchdog's.
    Signal(u8),
    /// The main thread panicked.
    Panic,
    /// Killed within a second of READY=1.
    Soon,
    /// Killed, by whomever; not counted.
    Killed,
}

impl CrashCause {
    /// The cause of a death: `fault` is what a handler saved, `serving` and `died` are times.
    pub fn of(fault: u64, serving: u64, died: u64) -> Self {
        match fault & 0xffff_ffff {
            0 if serving > 0 && died >= serving && died - serving < SOON => Self::Soon,
            0 => Self::Killed,
            signal @ 1..=64 => Self::Signal(signal as u8),
            _ => Self::Panic,
        }
    }

    pub fn counts(self) -> bool {
        self != Self::Killed
    }
}

impl std::fmt::Display for CrashCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Panic => f.write_str("a panic"),
            Self::Soon => f.write_str("killed within a second of its start"),
            Self::Killed => f.write_str("killed"),
        }
    }
}

/// A crash that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub at: u64,
    /// Those that threads worked on.
    pub sessions: Vec<SavedId>,
}

/// What becomes of the sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CrashVerdict {
    /// All go on.
    GoOn,
    /// These are reset before anything looks at them.
    Reset(Vec<SavedId>),
    /// All are reset.
    ResetAll,
}

/// Judges by the crashes that counted, the last one last.
pub fn judge(crashes: &[Crash], now: u64) -> CrashVerdict {
    let recent: Vec<_> = crashes.iter().filter(|crash| now.saturating_sub(crash.at) < MEMORY).collect();
    if let [.., before, last] = recent[..] {
        let common: Vec<SavedId> = last.sessions.iter().copied().filter(|id| before.sessions.contains(id)).collect();
        if !common.is_empty() {
            return CrashVerdict::Reset(common);
        }
    }
    if recent.len() >= MANY { CrashVerdict::ResetAll } else { CrashVerdict::GoOn }
}

/// How long a process waits before it serves, after these starts, its own included; in milliseconds.
pub fn pause_ms(starts: &[u64], now: u64) -> u64 {
    let recent = starts.iter().filter(|at| **at > 0 && now.saturating_sub(**at) < PACE).count();
    match recent.checked_sub(QUICK + 1) {
        None => 0,
        Some(more) => PAUSES.1.min(PAUSES.0 << more.min(8)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash(second: u64, sessions: &[u64]) -> Crash {
        Crash { at: second * SECOND, sessions: sessions.iter().map(|n| SavedId(*n, 0)).collect() }
    }

    #[test]
    fn a_session_named_in_two_crashes_in_a_row_is_reset() {
        let now = 100 * SECOND;
        assert_eq!(judge(&[], now), CrashVerdict::GoOn);
        assert_eq!(judge(&[crash(99, &[1, 2])], now), CrashVerdict::GoOn);
        assert_eq!(judge(&[crash(90, &[1, 2]), crash(99, &[3, 2])], now), CrashVerdict::Reset(vec![SavedId(2, 0)]));
        assert_eq!(
            judge(&[crash(90, &[1]), crash(95, &[2]), crash(99, &[1])], now),
            CrashVerdict::GoOn,
            "not in a row"
        );
        assert_eq!(judge(&[crash(30, &[1]), crash(99, &[1])], now), CrashVerdict::GoOn, "a minute ago");
        assert_eq!(judge(&[crash(98, &[]), crash(99, &[])], now), CrashVerdict::GoOn);
    }

    #[test]
    fn five_crashes_without_a_common_session_end_all_sessions() {
        let crashes: Vec<_> = (0..5).map(|n| crash(95 + n, &[n])).collect();
        assert_eq!(judge(&crashes[1..], 100 * SECOND), CrashVerdict::GoOn);
        assert_eq!(judge(&crashes, 100 * SECOND), CrashVerdict::ResetAll);
        assert_eq!(judge(&crashes, 156 * SECOND), CrashVerdict::GoOn, "the first is forgotten");
    }

    #[test]
    fn a_death_counts_by_a_fault_or_by_its_haste() {
        assert_eq!(CrashCause::of(11, 5, 9), CrashCause::Signal(11));
        assert_eq!(CrashCause::of(3 << 32 | 6, 0, 9), CrashCause::Signal(6));
        assert_eq!(CrashCause::of(0, SECOND, SECOND + SECOND / 2), CrashCause::Soon);
        assert_eq!(CrashCause::of(0, SECOND, 3 * SECOND), CrashCause::Killed);
        assert_eq!(CrashCause::of(0, 0, SECOND), CrashCause::Killed, "it was not ready");
        assert_eq!(CrashCause::of(super::super::thread::PANIC, 0, SECOND), CrashCause::Panic);
    }

    #[test]
    fn the_fourth_start_within_ten_seconds_waits() {
        let starts = |n: u64| (0..n).map(|n| (100 + n) * SECOND).collect::<Vec<_>>();
        let pause = |n: u64| pause_ms(&starts(n), (100 + n - 1) * SECOND);
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8].map(pause), [0, 0, 0, 200, 400, 800, 1000, 1000]);
        assert_eq!(pause_ms(&starts(8), 200 * SECOND), 0);
        assert_eq!(pause_ms(&[0; 8], SECOND), 0, "an empty ring");
    }
}
