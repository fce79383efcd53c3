//! Which numbers of a session were used: no request is run twice.

/// Which numbers of a session were used: each at most once, in any order within a window, as clients that were given
/// theirs at the same time may come in any order.
#[derive(Debug, Default)]
pub(super) struct Replay {
    highest: u64,
    /// Bit n: `highest - n` was used.
    seen: u128,
}

impl Replay {
    /// Whether this number is used for the first time. Those that fell out of the window count as used.
    pub(super) fn fresh(&mut self, number: u64) -> bool {
        if number > self.highest {
            let shift = u32::try_from(number - self.highest).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(shift).unwrap_or(0) | 1;
            self.highest = number;
            return true;
        }
        let Some(bit) = u32::try_from(self.highest - number).ok().and_then(|n| 1u128.checked_shl(n)) else {
            return false;
        };
        let fresh = self.seen & bit == 0 && number > 0;
        self.seen |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_fresh_once_in_any_order() {
        let mut replay = Replay::default();
        assert!([5, 3, 4, 1, 2].into_iter().all(|n| replay.fresh(n)));
        assert!((0..=5).all(|n| !replay.fresh(n)));
        assert!(replay.fresh(1000));
        assert!(replay.fresh(999) && !replay.fresh(999));
        assert!(!replay.fresh(800), "fell out of the window");
        assert!(replay.fresh(u64::MAX) && !replay.fresh(1000) && !replay.fresh(u64::MAX));
    }

    proptest! {
        #[test]
        fn no_number_is_ever_fresh_twice(numbers in prop::collection::vec(0u64..400, 0..500)) {
            let (mut replay, mut used) = (Replay::default(), std::collections::HashSet::new());
            for n in numbers {
                if replay.fresh(n) {
                    prop_assert!(used.insert(n));
                }
            }
        }
    }
}
