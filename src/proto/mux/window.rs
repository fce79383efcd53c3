//! Two limits: the credit of one stream, which bounds the memory, and the bytes in flight on the call, which bound how
//! long a small message waits behind large ones.

use std::{num::NonZeroU32, time::Duration};

/// Credit of a new stream. [`super::MAX_STREAMS`] of these are [`CREDIT_OF_CALL`].
pub const FIRST_CREDIT: u32 = 32 << 10;
/// The most credit of a stream. Credit of 256 KiB and of 1 MiB gave the same throughput, 64 KiB gave half.
pub const MAX_CREDIT: u32 = 512 << 10;
/// Credit of all streams of a call: what the other end can make this one hold.
pub const CREDIT_OF_CALL: u64 = 64 << 20;
/// Credit that the other end may give at most: more than any version ever does.
pub const CREDIT_TAKEN: u32 = 16 << 20;
/// A stream that uses its whole window up within this time gets a window twice as large. A window limits the rate only
/// where it is used up within one round trip, and a call's round trip is far shorter than this.
const FAST: Duration = Duration::from_millis(100);

/// How many bytes the other end may send in a stream: what it still may (`left`), what is here and not delivered yet,
/// and what was delivered and not credited yet (`delivered`) are `size` together.
#[derive(Clone, Copy, Debug)]
pub struct CreditWindow {
    size: u32,
    left: u32,
    delivered: u32,
    /// Bytes delivered since `begun`, up to `size`.
    used: u32,
    begun: Duration,
}

impl CreditWindow {
    /// A new stream's.
    pub fn new(size: u32, now: Duration) -> Self {
        Self { size, left: size, delivered: 0, used: 0, begun: now }
    }

    /// Bytes that the other end can make this one hold for the stream.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Bytes that came and were not delivered yet.
    pub fn queued(&self) -> u32 {
        self.size - self.left - self.delivered
    }

    /// Bytes have come; false where there was no credit for them.
    #[must_use]
    pub fn receive(&mut self, bytes: u32) -> bool {
        let left = self.left.checked_sub(bytes);
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// Bytes were given to the socket. Gives the credit to be sent now: when a quarter of the window was delivered. The
    /// window grows by at most `growth`.
    pub fn deliver(&mut self, bytes: u32, growth: u32, now: Duration) -> Option<NonZeroU32> {
        let bytes = bytes.min(self.queued());
        self.delivered += bytes;
        self.used = self.used.saturating_add(bytes);
        if self.delivered < self.size / 4 {
            return None;
        }
        let mut more = self.delivered;
        if self.used >= self.size {
            // Who does not read fast is not sent more at a time.
            if now.saturating_sub(self.begun) <= FAST && self.queued() == 0 {
                let growth = self.size.min(MAX_CREDIT.saturating_sub(self.size)).min(growth);
                self.size += growth;
                more += growth;
            }
            self.used = 0;
            self.begun = now;
        }
        self.left += more;
        self.delivered = 0;
        NonZeroU32::new(more)
    }
}

/// In flight: bytes of DATA and DGRAM frames that were sent and not acknowledged. The limit is what passes in 1.5 ms,
/// so that a message that comes last waits about so long. Limits by the shortest round trip were tried and halve the
/// throughput, because they take the window for delay while it buys batches; fixed small ones are no better.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    bytes: u64,
    limit: u64,
    floor: u64,
    /// Bytes acknowledged a second, smoothed.
    rate: f64,
    /// Whether the limit was reached since `begun`.
    reached: bool,
    begun: Duration,
    acknowledged: u64,
}

/// How long the last byte in flight shall wait, in seconds.
const WAIT: f64 = 0.0015;
/// The most in flight.
const CEILING: u64 = 512 << 10;
/// In flight before anything is known.
const START: u64 = 256 << 10;
/// The least time that a rate is taken of.
const PERIOD: Duration = Duration::from_millis(20);
/// How much of the rate before stays in the new one.
const KEPT: f64 = 0.7;
/// The limit from which on a frame carries [`LARGE_PAYLOAD`].
const LARGE_FROM: u64 = 256 << 10;
/// Payload of a DATA frame where the call is slow: a message waits for the frame before it.
pub const PAYLOAD: usize = 16 << 10;
/// Payload of a DATA frame where the call is fast.
pub const LARGE_PAYLOAD: usize = 32 << 10;
/// The least in flight between qubes of one machine.
pub const FLOOR: u32 = 64 << 10;
/// The least in flight to a RemoteVM.
pub const REMOTE_FLOOR: u32 = 32 << 10;
/// A frame is not made shorter than this by the limit.
const LEAST: u64 = 1 << 10;

impl InFlight {
    /// A new call's. `floor`: [`FLOOR`] or [`REMOTE_FLOOR`].
    pub fn new(floor: u32) -> Self {
        let floor = u64::from(floor);
        Self { bytes: 0, limit: START, floor, rate: 0.0, reached: false, begun: Duration::ZERO, acknowledged: 0 }
    }

    /// Bytes in flight.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The limit that holds now.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The payload of a frame, while nothing else limits it.
    pub fn payload(&self) -> usize {
        if self.limit >= LARGE_FROM { LARGE_PAYLOAD } else { PAYLOAD }
    }

    /// Bytes that a frame may carry now; `None` at the limit, which is noted: somebody has more to send.
    pub fn room(&mut self) -> Option<usize> {
        let Some(left) = self.limit.checked_sub(self.bytes).filter(|left| *left > 0) else {
            self.reached = true;
            return None;
        };
        usize::try_from(left.max(LEAST)).ok().map(|left| left.min(self.payload()))
    }

    /// A frame was sent.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }

    /// The other end has acknowledged bytes; false where so many were not in flight.
    #[must_use]
    pub fn acknowledge(&mut self, bytes: u32, now: Duration) -> bool {
        let bytes = u64::from(bytes);
        let Some(left) = self.bytes.checked_sub(bytes) else { return false };
        self.bytes = left;
        self.acknowledged += bytes;
        let time = now.saturating_sub(self.begun);
        if !self.reached {
            // What passes while nobody has more to send tells nothing of what could.
            (self.begun, self.acknowledged) = (now, 0);
        } else if time >= PERIOD {
            let rate = self.acknowledged as f64 / time.as_secs_f64();
            self.rate = if self.rate > 0.0 { KEPT * self.rate + (1.0 - KEPT) * rate } else { rate };
            self.limit = ((self.rate * WAIT) as u64).clamp(self.floor, CEILING);
            (self.begun, self.acknowledged, self.reached) = (now, 0, false);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn credit_comes_back_when_a_quarter_was_delivered() {
        let mut window = CreditWindow::new(1000, ms(0));
        assert!(window.receive(1000) && !window.receive(1));
        assert_eq!((window.queued(), window.deliver(249, 0, ms(1))), (1000, None));
        assert_eq!(window.deliver(1, 0, ms(1)).map(NonZeroU32::get), Some(250));
        assert_eq!(window.queued(), 750);
        assert!(window.receive(250) && !window.receive(1));
        assert_eq!(window.deliver(u32::MAX, 0, ms(1)).map(NonZeroU32::get), Some(1000));
    }

    #[test]
    fn a_window_that_is_used_up_fast_grows_to_its_end_and_no_further_than_there_is_room() {
        let mut window = CreditWindow::new(FIRST_CREDIT, ms(0));
        let mut sizes = vec![];
        for n in 0..6 {
            assert!(window.receive(window.size()));
            assert_eq!(window.deliver(u32::MAX, u32::MAX, ms(n)).map(NonZeroU32::get), Some(window.left));
            sizes.push(window.size() >> 10);
        }
        assert_eq!(sizes, [64, 128, 256, 512, 512, 512]);
        let mut window = CreditWindow::new(FIRST_CREDIT, ms(0));
        assert!(window.receive(FIRST_CREDIT));
        window.deliver(u32::MAX, 5, ms(1));
        assert_eq!(window.size(), FIRST_CREDIT + 5);
    }

    #[test]
    fn a_window_that_is_used_up_slowly_or_not_delivered_stays() {
        let mut slow = CreditWindow::new(FIRST_CREDIT, ms(0));
        assert!(slow.receive(FIRST_CREDIT));
        slow.deliver(u32::MAX, u32::MAX, ms(101));
        assert_eq!(slow.size(), FIRST_CREDIT);
        let mut unread = CreditWindow::new(FIRST_CREDIT, ms(0));
        for _ in 0..8 {
            assert!(unread.receive(FIRST_CREDIT - unread.queued()));
            unread.deliver(FIRST_CREDIT / 4, u32::MAX, ms(1));
        }
        assert_eq!(unread.size(), FIRST_CREDIT);
    }

    /// At 100 MB/s, 150 KB pass in 1.5 ms.
    #[test]
    fn the_limit_in_flight_follows_the_rate() {
        let mut flight = InFlight::new(FLOOR);
        let run = |flight: &mut InFlight, begin: u64, bytes: u32| {
            for n in begin..begin + 1000 {
                while flight.room().is_some() {
                    flight.sent(PAYLOAD);
                }
                assert!(flight.acknowledge(bytes, ms(n)));
            }
            flight.limit()
        };
        let limit = run(&mut flight, 0, 100_000);
        assert!((148_000..=152_000).contains(&limit), "{limit}");
        assert_eq!(flight.payload(), PAYLOAD);
        assert_eq!(run(&mut flight, 1000, 1000), u64::from(FLOOR));
        let mut fast = InFlight::new(FLOOR);
        fast.sent(10 << 20);
        assert_eq!(run(&mut fast, 0, 1_000), u64::from(FLOOR));
        assert_eq!((InFlight::new(FLOOR).payload(), InFlight::new(FLOOR).limit()), (LARGE_PAYLOAD, START));
    }

    #[test]
    fn the_limit_in_flight_stays_while_nobody_has_more_to_send() {
        let mut flight = InFlight::new(FLOOR);
        for n in 0..1000 {
            flight.sent(100);
            assert!(flight.acknowledge(100, ms(n)));
        }
        assert_eq!(flight.limit(), START);
        assert!(!flight.acknowledge(1, ms(1001)));
    }
}
