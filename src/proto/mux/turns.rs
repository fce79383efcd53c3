//! Who sends next: fq_codel's two lists (RFC 8290). A stream that wakes is *new* and is served before the *old* ones,
//! for as many bytes as one frame; who has more to say then waits among the old ones. Turns are counted in bytes, not
//! in frames: else a datagram of 64 bytes waits for as many whole frames as there are streams.

use std::collections::{HashMap, VecDeque};

use super::kind::StreamId;

/// The streams that want to send.
#[derive(Debug, Default)]
pub struct SendTurns {
    /// What is in neither list wants nothing now.
    waiting: HashMap<StreamId, SendTurn>,
    /// Streams that are not in `waiting` any more, or are there in the other list, are passed over.
    new: VecDeque<StreamId>,
    old: VecDeque<StreamId>,
}

/// The turn of a stream: which list, and the bytes that are left of its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendTurn {
    /// It woke, and was not served its share since.
    is_new: bool,
    /// Below 0: it has sent more than its share, and sits out.
    left: i64,
}

impl SendTurns {
    /// A stream has something to send. `share`: the payload of a frame.
    pub fn wake(&mut self, id: StreamId, share: usize) {
        self.waiting.entry(id).or_insert_with(|| {
            self.new.push_back(id);
            SendTurn { is_new: true, left: share as i64 }
        });
    }

    /// Nobody wants to send.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes the stream whose turn it is. Who has more to send comes back by [`Self::again`].
    pub fn take(&mut self, share: usize) -> Option<(StreamId, SendTurn)> {
        loop {
            let (id, is_new) = match self.new.pop_front() {
                Some(id) => (id, true),
                None => (self.old.pop_front()?, false),
            };
            let Some(turn) = self.waiting.get(&id).filter(|turn| turn.is_new == is_new) else { continue };
            let mut turn = *turn;
            if !is_new && turn.left <= 0 {
                turn.left += share as i64;
                if turn.left <= 0 {
                    self.waiting.insert(id, turn);
                    self.old.push_back(id);
                    continue;
                }
            }
            self.waiting.remove(&id);
            return Some((id, turn));
        }
    }

    /// The stream has sent `bytes` in its turn, and has more.
    pub fn again(&mut self, id: StreamId, turn: SendTurn, bytes: usize) {
        if self.waiting.contains_key(&id) {
            return; // it woke meanwhile
        }
        let left = turn.left - bytes as i64;
        let turn = SendTurn { is_new: turn.is_new && left > 0, left };
        let list = if turn.is_new { &mut self.new } else { &mut self.old };
        if left > 0 {
            list.push_front(id)
        } else {
            list.push_back(id)
        }
        self.waiting.insert(id, turn);
    }

    /// The stream wants nothing any more.
    pub fn forget(&mut self, id: StreamId) {
        if self.waiting.remove(&id).is_some() && self.new.len() + self.old.len() > 2 * self.waiting.len() + 64 {
            let waiting = &self.waiting;
            self.new.retain(|id| waiting.get(id).is_some_and(|turn| turn.is_new));
            self.old.retain(|id| waiting.get(id).is_some_and(|turn| !turn.is_new));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{super::frame::tests::id, *};

    const SHARE: usize = 16_384;

    #[test]
    fn who_wakes_is_served_before_those_who_have_more_to_say() {
        let mut turns = SendTurns::default();
        let mut order = vec![];
        for n in 1..=3 {
            turns.wake(id(n), SHARE);
        }
        for step in 0..8 {
            if step == 4 {
                turns.wake(id(9), SHARE);
            }
            let (next, turn) = turns.take(SHARE).expect("somebody waits");
            order.push(next.0.get());
            if next != id(9) {
                turns.again(next, turn, SHARE + 8);
            }
        }
        assert_eq!(order, [1, 2, 3, 1, 9, 2, 3, 1]);
    }

    #[test]
    fn who_wakes_again_and_again_does_not_keep_the_others_out() {
        let mut turns = SendTurns::default();
        turns.wake(id(1), SHARE);
        let (first, turn) = turns.take(SHARE).expect("it waits");
        turns.again(first, turn, SHARE);
        turns.wake(id(2), SHARE);
        let mut bytes = BTreeMap::new();
        for _ in 0..5000 {
            let (next, turn) = turns.take(SHARE).expect("somebody waits");
            let sent = if next == id(2) { 200 } else { SHARE };
            *bytes.entry(next).or_insert(0) += sent;
            turns.again(next, turn, sent); // always more
        }
        let (bulk, small) = (bytes[&id(1)] as f64, bytes[&id(2)] as f64);
        assert!(bulk / small > 0.9 && small / bulk > 0.8, "{bytes:?}");
    }

    #[test]
    fn streams_that_come_and_go_leave_nothing_behind() {
        let mut turns = SendTurns::default();
        for n in 1..10_000 {
            turns.wake(id(n), SHARE);
            turns.forget(id(n));
            assert!(turns.new.len() + turns.old.len() < 100);
        }
        assert!(turns.is_empty() && turns.take(SHARE).is_none());
    }

    proptest! {
        /// Streams that always have more get equal shares of bytes, whatever the size of their frames.
        #[test]
        fn shares_are_equal_in_bytes(sizes in prop::collection::vec(1..=SHARE, 2..9)) {
            let mut turns = SendTurns::default();
            let mut sent = vec![0_usize; sizes.len()];
            for n in 0..sizes.len() {
                turns.wake(id(n as u32 + 1), SHARE);
            }
            while sent.iter().sum::<usize>() < 100 * SHARE * sizes.len() {
                let (next, turn) = turns.take(SHARE).expect("somebody waits");
                let n = next.0.get() as usize - 1;
                sent[n] += sizes[n];
                turns.again(next, turn, sizes[n]);
            }
            let (least, most) = (sent.iter().min().expect("some"), sent.iter().max().expect("some"));
            prop_assert!(most - least <= 3 * SHARE, "{:?} of frames of {:?}", sent, sizes);
        }
    }
}
