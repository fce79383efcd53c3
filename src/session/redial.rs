//! Calls that a session makes again, because the first one failed, not by an error of the service: one that
//! dom0 never answered, and one whose qube has just started and whose server has not. Nothing of the peer was read
//! then.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::sys::lock;

/// How long a server may take to listen after its qube has started.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// The pause before the first further call, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// What a session has called again so far.
#[derive(Debug, Default)]
pub struct Redials(Mutex<RedialState>);

#[derive(Debug, Default)]
struct RedialState {
    lost: bool,
    starting: Option<Starting>,
}

/// The service's qube has just started.
#[derive(Debug)]
struct Starting {
    until: Instant,
    /// When the next call may begin.
    next: Instant,
    pause: Duration,
}

/// What of it the next process is to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RedialsKept {
    /// A call was lost.
    pub lost: bool,
    /// How long the server may still take to listen, in milliseconds.
    pub starting_ms: Option<u64>,
}

impl Redials {
    /// Whether a lost call was made again.
    pub(super) fn has_lost(&self) -> bool {
        lock(&self.0).lost
    }

    /// A call was lost, and is made again.
    pub(super) fn lost(&self) {
        lock(&self.0).lost = true;
    }

    /// Whether the qube has just started.
    pub(super) fn starting(&self) -> bool {
        lock(&self.0).starting.is_some()
    }

    /// Nobody served a call that was connected, after a `slow` set-up or a quick one: the pause before the next call;
    /// `None` when there is to be none. A second slow set-up was no qube's start but a person's answer, who is not
    /// asked again and again.
    pub(super) fn not_served(&self, slow: bool) -> Option<Duration> {
        let (mut state, now) = (lock(&self.0), Instant::now());
        let (until, pause) = match (&state.starting, slow) {
            (None, true) => (now + STARTS_WITHIN, PAUSES.0),
            (Some(starting), false) => (starting.until, (starting.pause * 2).min(PAUSES.1)),
            (None, false) | (Some(_), true) => return None,
        };
        let next = now + pause;
        (next < until).then(|| {
            state.starting = Some(Starting { until, next, pause });
            pause
        })
    }

    /// When the next call may begin, if that is not at once.
    pub(super) fn next(&self) -> Option<Instant> {
        lock(&self.0).starting.as_ref().map(|starting| starting.next)
    }

    /// For the next process.
    pub fn keep(&self) -> RedialsKept {
        let (state, now) = (lock(&self.0), Instant::now());
        let left = |s: &Starting| u64::try_from(s.until.saturating_duration_since(now).as_millis()).unwrap_or(0);
        RedialsKept { lost: state.lost, starting_ms: state.starting.as_ref().map(left) }
    }

    /// Goes on from what an earlier process has kept.
    pub fn resume(&self, kept: RedialsKept) {
        let now = Instant::now();
        let starting = kept.starting_ms.map(|ms| {
            let until = now + Duration::from_millis(ms).min(STARTS_WITHIN);
            Starting { until, next: now, pause: PAUSES.0 }
        });
        *lock(&self.0) = RedialState { lost: kept.lost, starting };
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_starts_late_is_called_for_thirty_seconds_with_growing_pauses() {
        let redials = Redials::default();
        assert_eq!(redials.not_served(false), None, "its qube has run already");
        let began = Instant::now();
        let mut pauses = Vec::new();
        let mut slow = true;
        while let Some(pause) = redials.not_served(slow) {
            pauses.push(pause.as_millis());
            advance(pause).await;
            slow = false;
        }
        assert_eq!(pauses[..5], [250, 500, 1000, 2000, 2000]);
        assert!((28..30).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_person_who_answers_slowly_is_asked_once_more_and_no_further() {
        let redials = Redials::default();
        assert!(redials.not_served(true).is_some());
        assert_eq!(redials.not_served(true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_process_goes_on_from_there() {
        let (first, second) = (Redials::default(), Redials::default());
        assert_eq!(first.keep(), RedialsKept::default());
        first.lost();
        first.not_served(true);
        advance(Duration::from_secs(10)).await;
        second.resume(first.keep());
        assert_eq!(second.keep(), RedialsKept { lost: true, starting_ms: Some(20_000) });
        assert!(second.not_served(false).is_some() && second.not_served(true).is_none());
    }
}
