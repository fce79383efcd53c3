//! When the upstream socket of a flow is doubted, and how often it is changed.
//!
//! # Theory
//! A connected UDP socket keeps the target and the source address that it was connected with, also when the name has
//! another address now or the source address is gone. Two signs make the socket doubtful:
//!
//! * an error that says that nothing gets there ([`Doubt::failed`]);
//! * silence: the peer goes on sending, and for [`SILENCE`] nothing has come back.
//!
//! Then the flow's task connects a second socket, sends nothing on it, and compares ([`super::flow`]). Only where the
//! two would reach the peer in different ways is the first one replaced. So a flow in one direction, which is never
//! answered, keeps its socket as long as it is the right one.
//!
//! Between two changes passes at least a second, then twice as long each time, up to a minute; an answer begins that
//! row again. A comparison that changed nothing may be made again after a second (after silence: [`SILENCE`]); where it
//! takes a look-up of a name, that pause is doubled, too.
//!
//! Nothing here has a clock: times are milliseconds of the flow's own clock.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::sys::lock;

/// Silence that makes an upstream doubtful, in milliseconds.
const SILENCE: u64 = 5_000;
/// The first and the longest pause, in milliseconds.
const PAUSES: (u64, u64) = (1_000, 60_000);
/// [`Cause::Silence`] where error numbers stand.
const SILENT: i32 = -1;

/// Why an upstream is doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The kernel reported this error (errno(3)).
    Error(i32),
    /// The peer's datagrams are not answered.
    Silence,
}

/// The doubts about the upstream socket of one flow, and the losses of the flow.
#[derive(Debug)]
pub(super) struct Doubt {
    /// When the first datagram was sent that is not answered, plus one; 0 without one.
    unanswered: AtomicU64,
    /// Silence before this moment is no cause.
    silent_from: AtomicU64,
    /// The cause of a doubt that is not settled: an error number, or [`SILENT`]; 0 without one.
    cause: AtomicI32,
    raised: Notify,
    /// Whether an answer came since the last change or comparison.
    answered: AtomicBool,
    pace: Mutex<Pace>,
    refused: AtomicU64,
    unsent: AtomicU64,
}

/// When the next comparison may be made.
#[derive(Clone, Copy, Debug)]
struct Pace {
    not_before: u64,
    after_change: u64,
    after_comparison: u64,
}

/// State of the doubts for the next process. A process that does not know it begins without doubts and counts losses
/// from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DoubtKept {
    /// How long the first datagram that is not answered has waited, in milliseconds.
    pub unanswered_ms: Option<u64>,
    /// Milliseconds until the next comparison may be made.
    pub wait_ms: u64,
    /// The pause after the next change, in milliseconds; 0 for the first.
    pub after_change_ms: u64,
    /// The pause after the next comparison, in milliseconds; 0 for the first.
    pub after_comparison_ms: u64,
    /// Datagrams that the other side refused.
    pub refused: u64,
    /// Datagrams that could not be sent.
    pub unsent: u64,
}

impl Doubt {
    /// The doubts that an earlier process had, at the moment `now`.
    pub(super) fn resume(kept: DoubtKept, now: u64) -> Self {
        let pause = |ms: u64| if ms == 0 { PAUSES.0 } else { ms.min(PAUSES.1) };
        Self {
            unanswered: kept.unanswered_ms.map_or(0, |ms| now.saturating_sub(ms) + 1).into(),
            silent_from: 0.into(),
            cause: 0.into(),
            raised: Notify::new(),
            answered: false.into(),
            pace: Mutex::new(Pace {
                not_before: now.saturating_add(kept.wait_ms.min(PAUSES.1)),
                after_change: pause(kept.after_change_ms),
                after_comparison: pause(kept.after_comparison_ms),
            }),
            refused: kept.refused.into(),
            unsent: kept.unsent.into(),
        }
    }

    /// What the next process is to know.
    pub(super) fn keep(&self, now: u64) -> DoubtKept {
        let pace = *lock(&self.pace);
        DoubtKept {
            unanswered_ms: self.unanswered.load(Relaxed).checked_sub(1).map(|since| now.saturating_sub(since)),
            wait_ms: pace.not_before.saturating_sub(now),
            after_change_ms: pace.after_change,
            after_comparison_ms: pace.after_comparison,
            refused: self.refused.load(Relaxed),
            unsent: self.unsent.load(Relaxed),
        }
    }

    /// A datagram of the peer was sent.
    pub(super) fn asked(&self, now: u64) {
        match self.unanswered.load(Relaxed).checked_sub(1) {
            None => self.unanswered.store(now + 1, Relaxed),
            Some(since) if now.saturating_sub(since) >= SILENCE && now >= self.silent_from.load(Relaxed) => {
                self.silent_from.store(now + SILENCE, Relaxed);
                self.raise(SILENT);
            }
            Some(_) => {}
        }
    }

    /// The upstream has answered. (Loads first: a store would take the line of the cache from the other thread.)
    pub(super) fn answered(&self) {
        if self.unanswered.load(Relaxed) != 0 {
            self.unanswered.store(0, Relaxed);
        }
        if self.cause.load(Relaxed) != 0 {
            self.cause.store(0, Relaxed);
        }
        if !self.answered.load(Relaxed) {
            self.answered.store(true, Relaxed);
        }
    }

    /// A datagram was refused by the other side, or by a router.
    pub(super) fn refused(&self, error: &std::io::Error) {
        self.refused.fetch_add(1, Relaxed);
        self.failed(error);
    }

    /// Datagrams could not be sent.
    pub(super) fn unsent(&self, datagrams: usize, error: &std::io::Error) {
        self.lost(datagrams);
        self.failed(error);
    }

    /// Datagrams were dropped.
    pub(super) fn lost(&self, datagrams: usize) {
        if datagrams > 0 {
            self.unsent.fetch_add(datagrams as u64, Relaxed);
        }
    }

    fn failed(&self, error: &std::io::Error) {
        use libc::{EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, EINVAL, ENETDOWN, ENETUNREACH, ENODEV};
        let dead = [ECONNREFUSED, ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL, EINVAL, ENETDOWN, ENODEV];
        if let Some(number) = error.raw_os_error().filter(|number| dead.contains(number)) {
            self.raise(number);
        }
    }

    fn raise(&self, cause: i32) {
        let before = self.cause.load(Relaxed);
        if before == 0 || (before == SILENT && cause != SILENT) {
            self.cause.store(cause, Relaxed);
            self.raised.notify_one();
        }
    }

    /// The present doubt.
    pub(super) fn cause(&self) -> Option<Cause> {
        match self.cause.load(Relaxed) {
            0 => None,
            SILENT => Some(Cause::Silence),
            number => Some(Cause::Error(number)),
        }
    }

    /// Waits for a doubt. Only one task may wait.
    ///
    /// # Cancel safety
    /// Safe: the doubt stays.
    pub(super) async fn raised(&self) -> Cause {
        loop {
            if let Some(cause) = self.cause() {
                return cause;
            }
            self.raised.notified().await;
        }
    }

    /// How long to wait before the next comparison.
    pub(super) fn pause(&self, now: u64) -> Duration {
        let mut pace = lock(&self.pace);
        if self.answered.swap(false, Relaxed) {
            (pace.after_change, pace.after_comparison) = (PAUSES.0, PAUSES.0);
        }
        Duration::from_millis(pace.not_before.saturating_sub(now))
    }

    /// The socket was changed.
    pub(super) fn changed(&self, now: u64) {
        let mut pace = lock(&self.pace);
        pace.not_before = now + pace.after_change;
        pace.after_change = (pace.after_change * 2).min(PAUSES.1);
        pace.after_comparison = PAUSES.0;
        self.unanswered.store(0, Relaxed);
        self.settle(now);
    }

    /// The socket was compared and kept, or no second one could be made. `costly`: that took a look-up of a name.
    pub(super) fn compared(&self, now: u64, costly: bool) {
        let mut pace = lock(&self.pace);
        pace.not_before = now + pace.after_comparison;
        if costly {
            pace.after_comparison = (pace.after_comparison * 2).min(PAUSES.1);
        }
        self.settle(now);
    }

    fn settle(&self, now: u64) {
        self.silent_from.store(now + SILENCE, Relaxed);
        self.answered.store(false, Relaxed);
        self.cause.store(0, Relaxed);
    }

    /// What was lost, for the end of the flow; empty when nothing was.
    pub(super) fn losses(&self) -> String {
        losses(self.refused.load(Relaxed), self.unsent.load(Relaxed))
    }
}

impl DoubtKept {
    /// What was lost, for the end of the flow; empty when nothing was.
    pub fn losses(&self) -> String {
        losses(self.refused, self.unsent)
    }
}

fn losses(refused: u64, unsent: u64) -> String {
    let datagrams = |n: u64| if n == 1 { "1 datagram".to_owned() } else { format!("{n} datagrams") };
    let parts = [(refused, "refused"), (unsent, "not sent")];
    let parts = parts.iter().filter(|(n, _)| *n > 0).map(|(n, how)| format!("{} {how}", datagrams(*n)));
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn new() -> Doubt {
        Doubt::resume(DoubtKept::default(), 0)
    }

    fn error(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn silence_is_a_doubt_only_while_the_peer_goes_on() {
        let doubt = new();
        doubt.asked(1_000);
        doubt.asked(5_999);
        assert_eq!(doubt.cause(), None);
        doubt.asked(6_000);
        assert_eq!(doubt.cause(), Some(Cause::Silence));
        doubt.answered();
        assert_eq!(doubt.cause(), None, "an answer settles it");
        doubt.asked(20_000);
        assert_eq!(doubt.cause(), None, "the silence begins with a datagram that is not answered");
        doubt.asked(25_000);
        assert_eq!(doubt.cause(), Some(Cause::Silence));
        doubt.compared(25_000, false);
        doubt.asked(29_999);
        assert_eq!(doubt.cause(), None);
        doubt.asked(30_000);
        assert_eq!(doubt.cause(), Some(Cause::Silence), "a silence that goes on is looked at every 5 s");
    }

    #[test]
    fn an_error_that_says_nothing_of_the_way_is_no_doubt() {
        let doubt = new();
        for number in [libc::EAGAIN, libc::EMSGSIZE, libc::ENOBUFS, libc::EPERM] {
            doubt.unsent(1, &error(number));
            assert_eq!(doubt.cause(), None, "{number}");
        }
        for number in [libc::ECONNREFUSED, libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EADDRNOTAVAIL, libc::EINVAL] {
            let doubt = new();
            doubt.refused(&error(number));
            assert_eq!(doubt.cause(), Some(Cause::Error(number)));
        }
        assert_eq!(doubt.losses(), "4 datagrams not sent");
        doubt.refused(&error(libc::ECONNREFUSED));
        assert_eq!(doubt.losses(), "1 datagram refused, 4 datagrams not sent");
        assert_eq!(new().losses(), "");
    }

    #[test]
    fn changes_are_a_second_apart_then_twice_as_long_up_to_a_minute_and_an_answer_begins_anew() {
        let doubt = new();
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..8 {
            doubt.changed(now);
            let pause = u64::try_from(doubt.pause(now).as_millis()).expect("short");
            pauses.push(pause / 1000);
            now += pause;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        doubt.answered();
        assert_eq!(doubt.pause(now), Duration::ZERO, "the last pause is over");
        doubt.changed(now);
        assert_eq!(doubt.pause(now), Duration::from_secs(1));
    }

    #[test]
    fn comparisons_that_look_up_a_name_become_rare() {
        let (plain, costly) = (new(), new());
        for _ in 0..3 {
            plain.compared(0, false);
            costly.compared(0, true);
        }
        assert_eq!(plain.pause(0), Duration::from_secs(1));
        assert_eq!(costly.pause(0), Duration::from_secs(4));
    }

    #[test]
    fn the_next_process_goes_on_with_the_doubts_and_the_losses() {
        let doubt = new();
        doubt.asked(1_000);
        doubt.changed(2_000);
        doubt.changed(3_000);
        doubt.asked(3_500);
        doubt.unsent(1, &error(libc::EAGAIN));
        let kept = doubt.keep(4_000);
        let text = serde_json::to_string(&kept).expect("plain data");
        assert_eq!(serde_json::from_str::<DoubtKept>(&text).expect("as it was written"), kept);
        assert_eq!(serde_json::from_str::<DoubtKept>("{}").expect("older"), DoubtKept::default());
        let next = Doubt::resume(kept, 10_000);
        assert_eq!(next.keep(10_000), kept);
        assert_eq!((next.pause(10_000), next.losses()), (Duration::from_secs(1), "1 datagram not sent".to_owned()));
        next.asked(14_499);
        assert_eq!(next.cause(), None);
        next.asked(14_500);
        assert_eq!(next.cause(), Some(Cause::Silence));
    }
}
