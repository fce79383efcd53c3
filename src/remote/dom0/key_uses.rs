//! The daemon notes when a key was used, and says of one that is not the qube's when it was retired.

use std::{
    collections::HashMap,
    path::Path,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use tokio::{task::spawn_blocking, time::Instant};

use crate::{
    proto::remote::KeyId,
    remote::{clock, key_records::KeyRecords},
    sys::lock,
};

/// A key that is used again and again is noted so often.
const AGAIN: Duration = Duration::from_secs(10);

/// The uses of keys by this daemon.
#[derive(Debug)]
pub(super) struct KeyUses {
    records: KeyRecords,
    /// Nothing is written.
    silent: bool,
    noted: Mutex<HashMap<KeyId, Instant>>,
}

impl KeyUses {
    pub(super) fn new(state: &Path, silent: bool) -> Self {
        Self { records: KeyRecords::new(state), silent, noted: Mutex::default() }
    }

    /// A request was signed with this key of a qube. Waits for nothing.
    pub(super) fn note(&self, key: KeyId) {
        let mut noted = lock(&self.noted);
        if self.silent || noted.get(&key).is_some_and(|last| last.elapsed() < AGAIN) {
            return;
        }
        noted.insert(key, Instant::now());
        let records = self.records.clone();
        drop(spawn_blocking(move || records.used(key)));
    }

    /// When this key, which the qube had, was retired.
    pub(super) fn retired(&self, vm: &str, key: KeyId) -> Option<String> {
        let record = self.records.read(key);
        let retired = record.retired.filter(|_| record.vm == vm)?;
        Some(clock::local(SystemTime::UNIX_EPOCH + Duration::from_secs(retired)))
    }
}
