//! A call with a rate, a delay and a buffer, in simulated time: small messages beside bulk.

use std::{
    collections::{BTreeMap, VecDeque},
    num::NonZeroU16,
    time::Duration,
};

use super::{
    super::{
        call::{MuxCall, MuxNews},
        frame::{MuxContent, MuxFrame},
        kind::StreamId,
    },
    pair,
};

const TICK: Duration = Duration::from_micros(20);

/// One direction of a call: it takes what fits into its buffer, sends at its rate, and delays.
struct Wire {
    rate: f64,
    delay: f64,
    buffer: usize,
    inside: usize,
    free_at: f64,
    /// Bytes with the time at which they leave the buffer.
    parts: VecDeque<(f64, Vec<u8>)>,
    arrived: VecDeque<(f64, Vec<u8>)>,
}

impl Wire {
    fn new(rate: f64, delay: f64, buffer: usize) -> Self {
        let (parts, arrived) = Default::default();
        Self { rate, delay, buffer, inside: 0, free_at: 0.0, parts, arrived }
    }

    fn has_room(&self) -> bool {
        self.inside < self.buffer
    }

    fn write(&mut self, now: f64, bytes: Vec<u8>) {
        self.inside += bytes.len();
        self.free_at = self.free_at.max(now) + bytes.len() as f64 / self.rate;
        self.parts.push_back((self.free_at, bytes));
    }

    /// What has arrived by now.
    fn read(&mut self, now: f64) -> Vec<u8> {
        while self.parts.front().is_some_and(|(left, _)| *left <= now) {
            let (left, bytes) = self.parts.pop_front().expect("there is one");
            self.inside -= bytes.len();
            self.arrived.push_back((left + self.delay, bytes));
        }
        let mut all = Vec::new();
        while self.arrived.front().is_some_and(|(at, _)| *at <= now) {
            all.extend(self.arrived.pop_front().expect("there is one").1);
        }
        all
    }
}

/// What a simulated socket has to send.
enum Supply {
    Endless,
    /// The times at which messages of 64 bytes came.
    Messages(VecDeque<f64>),
}

const MESSAGE: usize = 64;

struct Outcome {
    /// Bytes of bulk a second, as a part of the wire's rate.
    used: f64,
    /// Milliseconds of the messages, the shortest first.
    waits: Vec<f64>,
}

impl Outcome {
    fn p99(&self) -> f64 {
        assert!(self.waits.len() >= 900, "only {} messages", self.waits.len());
        self.waits[self.waits.len() * 99 / 100]
    }
}

/// The first seconds are not looked at: then the limit in flight is a guess.
const LEARNING: f64 = 0.2;

/// Seconds of `bulk` streams and 32 of small messages, all upwards.
fn simulate(wire: impl Fn() -> Wire, bulk: usize, seconds: f64) -> Outcome {
    let (mut near, mut far) = pair(MuxContent::Bytes);
    let (mut up, mut down) = (wire(), wire());
    let mut supplies: BTreeMap<StreamId, Supply> = BTreeMap::new();
    let mut sent: BTreeMap<StreamId, VecDeque<f64>> = BTreeMap::new();
    for n in 0..bulk + 32 {
        let id = near.open(Duration::ZERO).expect("there is a place");
        let supply = if n < bulk { Supply::Endless } else { Supply::Messages(VecDeque::new()) };
        supplies.insert(id, supply);
        if n < bulk {
            near.wake(id);
        }
    }
    let (mut waits, mut bytes, mut clock) = (Vec::new(), 0_u64, Duration::ZERO);
    let rate = up.rate;
    let mut tick = 0_u64;
    while clock.as_secs_f64() < seconds {
        clock += TICK;
        tick += 1;
        let now = clock.as_secs_f64();
        for (n, (id, supply)) in supplies.iter_mut().enumerate() {
            if let Supply::Messages(waiting) = supply {
                if tick % 1000 == n as u64 * 7 {
                    waiting.push_back(now);
                    near.wake(*id);
                }
            }
        }
        pump(&mut near, &mut up, now, &mut supplies, &mut sent);
        pump(&mut far, &mut down, now, &mut BTreeMap::new(), &mut sent);
        hear(&mut near, &down.read(now), clock, |_, _| {});
        hear(&mut far, &up.read(now), clock, |id, length| match sent.get_mut(&id) {
            Some(times) => {
                for _ in 0..length / MESSAGE {
                    let begun = times.pop_front().expect("it was sent");
                    if begun > LEARNING {
                        waits.push((now - begun) * 1000.0);
                    }
                }
            }
            None => bytes += length as u64,
        });
    }
    waits.sort_by(f64::total_cmp);
    Outcome { used: bytes as f64 / seconds / rate, waits }
}

fn pump(
    call: &mut MuxCall,
    wire: &mut Wire,
    now: f64,
    supplies: &mut BTreeMap<StreamId, Supply>,
    sent: &mut BTreeMap<StreamId, VecDeque<f64>>,
) {
    while wire.has_room() {
        let answers = std::mem::take(call.answers());
        if !answers.is_empty() {
            wire.write(now, answers);
            continue;
        }
        let Some(turn) = call.turn() else { break };
        let (length, more) = match supplies.get_mut(&turn.id).expect("it is one of ours") {
            Supply::Endless => (turn.most, true),
            Supply::Messages(waiting) => {
                let count = waiting.len().min(turn.most / MESSAGE);
                sent.entry(turn.id).or_default().extend(waiting.drain(..count));
                (count * MESSAGE, !waiting.is_empty())
            }
        };
        let Some(n) = NonZeroU16::new(u16::try_from(length).expect("a frame")) else {
            call.dry(turn);
            continue;
        };
        let mut frame = call.sent(turn, n, more).to_vec();
        frame.resize(frame.len() + length, 0);
        wire.write(now, frame);
    }
}

fn hear(call: &mut MuxCall, mut bytes: &[u8], now: Duration, mut came: impl FnMut(StreamId, usize)) {
    while let Some((frame, size)) = MuxFrame::split(bytes).expect("a frame") {
        bytes = &bytes[size..];
        match call.hear(frame, now).expect("it keeps the rules") {
            MuxNews::Wanted(id) => call.opened(id),
            MuxNews::Bytes(id, bytes) => {
                let length = bytes.len();
                came(id, length);
                call.delivered(id, length, now);
            }
            _ => {}
        }
    }
    assert!(bytes.is_empty(), "whole frames travel");
}

/// Beside one and beside eight bulk streams, on a call that buffers a MiB: 10 ms of bytes at 100 MB/s.
#[test]
fn small_messages_beside_bulk_wait_a_few_milliseconds() {
    for (rate, p99) in [(30e6, 4.0), (100e6, 3.0), (300e6, 3.0)] {
        for bulk in [1, 8] {
            let outcome = simulate(|| Wire::new(rate, 0.0001, 1 << 20), bulk, 0.8);
            let (waits, used) = (outcome.p99(), outcome.used);
            println!("{:.0} MB/s, {bulk} bulk: p99 {waits:.2} ms, {:.0} % used", rate / 1e6, used * 100.0);
            assert!(waits <= p99, "{waits:.2} ms beside {bulk} at {:.0} MB/s", rate / 1e6);
            assert!(used >= 0.9, "only {:.2} of {:.0} MB/s used by {bulk}", used, rate / 1e6);
        }
    }
}

/// Small streams get what they ask for while bulk takes the rest.
#[test]
fn no_small_message_is_kept_back_for_ever() {
    let outcome = simulate(|| Wire::new(20e6, 0.0001, 256 << 10), 64, 2.0);
    assert!(outcome.waits.len() >= 2800, "only {} of 2,880 messages came", outcome.waits.len());
    assert!(outcome.waits.last().is_some_and(|longest| *longest < 60.0), "{:?}", outcome.waits.last());
}
