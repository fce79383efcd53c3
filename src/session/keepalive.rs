//! Peers that acknowledge nothing, where `keepalive` gives the times.
//!
//! # Theory
//! The kernel probes a silent connection only while nothing waits for the other side. Data in flight is sent again and
//! again instead, for about 15 minutes (tcp(7), tcp_retries2); TCP_USER_TIMEOUT would shorten that, but it also cuts a peer
//! that lives and does not read. So the session looks now and then: something waits for an acknowledgement (data, or a
//! probe of a closed window), and none has come since an earlier look. A peer that does not read answers the probes of
//! its closed window, and lives.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::info::SessionInfo;
use crate::relay::{Relay, RelayOutcome, Side};

/// The longest time between two looks; with a short limit there are two within it.
const SWEEP: Duration = Duration::from_secs(30);

/// Runs a relay; where the route has keepalive times, until a side has been silent for too long.
///
/// # Cancel safety
/// As [`Relay::run`].
pub(super) async fn run(relay: &mut Relay, info: &SessionInfo) -> RelayOutcome {
    match info.route.options.keepalive.silence() {
        None => relay.run(&info.counters, &info.interrupt).await,
        // Boxed: the future of a session without such times does not grow.
        Some(allowed) => Box::pin(watched(relay, info, allowed)).await,
    }
}

async fn watched(relay: &mut Relay, info: &SessionInfo, allowed: Duration) -> RelayOutcome {
    let mut sides = [(Side::Peer, Silence::default()), (Side::Upstream, Silence::default())];
    loop {
        tokio::select! {
            biased;
            outcome = relay.run(&info.counters, &info.interrupt) => return outcome,
            () = sleep((allowed / 2).min(SWEEP)) => {}
        }
        for (side, silence) in &mut sides {
            if silence.look(relay.unanswered(*side), Instant::now()) >= allowed {
                return RelayOutcome::Silent { side: *side, allowed };
            }
        }
    }
}

/// What the looks at one side have shown.
#[derive(Debug, Default)]
struct Silence {
    /// The first look since which something waits for an acknowledgement and none has come.
    since: Option<Instant>,
}

impl Silence {
    /// For how long the side has been silent; `unanswered` is the time since its last acknowledgement, while something
    /// waits for one. (That time alone says nothing: what waits may have been sent just now.)
    fn look(&mut self, unanswered: Option<Duration>, now: Instant) -> Duration {
        let since = self.since.filter(|since| unanswered.is_some_and(|quiet| quiet >= now - *since));
        self.since = since.or_else(|| unanswered.map(|_| now));
        since.map_or(Duration::ZERO, |since| now - since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_silent_from_the_first_look_at_what_no_look_sees_acknowledged() {
        let began = Instant::now();
        let seconds = Duration::from_secs;
        let mut silence = Silence::default();
        // (time of the look, time since the last acknowledgement while something waits): the silence
        for (at, unanswered, expected) in [
            (0, None, 0),
            (10, Some(3600), 0), // sent a moment ago, after an hour of rest
            (20, Some(3610), 10),
            (30, Some(3620), 20),
            (40, Some(2), 0), // an acknowledgement, and more that waits
            (50, Some(12), 10),
            (60, None, 0), // all is acknowledged
            (70, Some(9), 0),
            (80, Some(5), 0), // each probe of a closed window is answered
        ] {
            let silent = silence.look(unanswered.map(seconds), began + seconds(at));
            assert_eq!(silent, seconds(expected), "at {at}");
        }
    }
}
