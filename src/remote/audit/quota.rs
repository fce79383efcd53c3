//! How much of the log a qube may fill: its quota for a day, which comes back evenly in the course of the day.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::sys::lock;

/// Bytes of a day, where the policy says nothing.
pub(crate) const DEFAULT: u64 = 4 << 20;
/// Bytes that a qube may cause in a day beside its quotas: its channel, opened and cut again and again.
const CHANNEL: u64 = 2 << 20;
/// Days of all quotas that the kept files have room for: a week, and the first day's, which may come at once.
const DAYS: u64 = 8;
const DAY: Duration = Duration::from_secs(86_400);

/// What is left of the quotas of all qubes.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    buckets: Mutex<HashMap<String, [Bucket; 2]>>,
    /// What was used before the daemon started.
    used: HashMap<String, [f64; 2]>,
}

/// Which of a qube's two quotas: one for what runs, one for what was refused, so that neither keeps the other out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Run,
    Refusal,
}

#[derive(Debug)]
struct Bucket {
    /// Bytes of a day.
    most: u64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(most: u64) -> Self {
        Self { most, left: most as f64, at: Instant::now() }
    }

    /// Takes bytes, or says how long until there are as many. What is larger than a day's quota takes all of it.
    fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let rate = self.most as f64 / DAY.as_secs_f64();
        let more = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        (self.left, self.at) = ((self.left + more).min(self.most as f64), now);
        let bytes = bytes.min(self.most) as f64;
        if self.left >= bytes {
            self.left -= bytes;
            return Ok(());
        }
        Err(Duration::try_from_secs_f64((bytes - self.left) / rate).unwrap_or(DAY).min(DAY))
    }
}

impl Quotas {
    /// Of qubes that have used so much already.
    pub(super) fn used(used: HashMap<String, [f64; 2]>) -> Self {
        Self { buckets: Mutex::default(), used }
    }

    /// Takes bytes of a qube's quota, or says how long until there are as many. `quota` is the policy's, if it was read.
    pub(super) fn take(&self, vm: &str, kind: Use, bytes: u64, quota: Option<u64>) -> Result<(), Duration> {
        let mut all = lock(&self.buckets);
        let buckets = all.entry(vm.to_owned()).or_insert_with(|| {
            let quota = quota.unwrap_or(DEFAULT);
            let mut buckets = [Bucket::new(quota), Bucket::new(quota / 4)];
            for (bucket, used) in buckets.iter_mut().zip(self.used.get(vm).copied().unwrap_or_default()) {
                bucket.left = (bucket.left - used).max(0.0);
            }
            buckets
        });
        if let Some(quota) = quota {
            for (bucket, most) in buckets.iter_mut().zip([quota, quota / 4]) {
                if bucket.most < most {
                    bucket.left += (most - bucket.most) as f64; // the owner gives more, and it counts at once
                }
                bucket.most = most;
            }
        }
        buckets[usize::from(kind == Use::Refusal)].take(bytes, Instant::now())
    }
}

/// How many older files of `size` bytes are kept, for qubes with these quotas.
pub(crate) fn kept(quotas: impl Iterator<Item = u64>, size: u64) -> usize {
    let day: u64 = quotas.map(|quota| quota.saturating_add(quota / 4).saturating_add(CHANNEL)).sum();
    let files = day.saturating_mul(DAYS).div_ceil(size.max(1)) + 1;
    usize::try_from(files).unwrap_or(usize::MAX).clamp(2, 10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_comes_back_in_the_course_of_a_day() {
        let mut bucket = Bucket::new(86_400);
        let now = bucket.at;
        assert_eq!(bucket.take(86_400, now), Ok(()));
        assert_eq!(bucket.take(10, now).map_err(|wait| wait.as_secs()), Err(10));
        assert_eq!(bucket.take(10, now + Duration::from_secs(11)), Ok(()));
        assert_eq!(
            bucket.take(u64::MAX, now + 3 * DAY),
            Ok(()),
            "what is larger than the quota is not refused for ever"
        );
    }

    #[test]
    fn without_a_word_of_the_policy_a_qube_has_four_mebibytes_a_day() {
        let quotas = Quotas::default();
        assert!(quotas.take("work", Use::Run, 4 << 20, None).is_ok());
        // A quarter of it comes back in a quarter of a day.
        let wait = quotas.take("work", Use::Run, 1 << 20, None).expect_err("nothing is left");
        assert!((21_590..=21_600).contains(&wait.as_secs()), "{wait:?}");
    }

    #[test]
    fn a_week_of_floods_of_all_qubes_is_less_than_what_is_kept() {
        for qubes in [1, 3, 20] {
            for quota in [64 << 10, DEFAULT, 100 << 20] {
                let size = 10 << 20;
                // seven days, the first of which begins with a whole quota, beside what comes back
                let week = (quota + quota / 4) * (7 + 1) + CHANNEL * 7;
                let files = kept(std::iter::repeat_n(quota, qubes), size) as u64;
                assert!(qubes as u64 * week <= (files - 1) * size, "{qubes} qubes with {quota}: {files} files");
            }
        }
    }

    #[test]
    fn the_entries_of_a_channel_that_is_cut_all_day_have_room() {
        // with the queue of v1, an attempt waits for the agent and for the next look, five seconds each
        let cuts = 86_400 / 10;
        let text = format!("[2026-01-01T00:00:00] CUT vm={} it sent what is no frame of a qube's", "q".repeat(31));
        let entry = format!("{text} head={} seq={}\n", "0".repeat(64), 10_000_000);
        assert!(cuts * entry.len() as u64 <= CHANNEL, "{} bytes", cuts * entry.len() as u64);
    }

    #[test]
    fn refusals_and_runs_keep_each_other_not_out() {
        let quotas = Quotas::default();
        assert!(quotas.take("work", Use::Refusal, 250, Some(1000)).is_ok());
        assert!(quotas.take("work", Use::Refusal, 250, None).is_err());
        assert!(quotas.take("work", Use::Run, 1000, None).is_ok() && quotas.take("work", Use::Run, 1, None).is_err());
        assert!(quotas.take("dev", Use::Run, 1, None).is_ok());
        assert!(quotas.take("work", Use::Run, 500, Some(2000)).is_ok(), "the owner gave more");
    }
}
