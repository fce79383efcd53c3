//! The daemon notes when a key was used, and says of one that is not the qube's when it was retired.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};

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
    /// The last one of each.
    noted: Mutex<HashMap<KeyId, NotedUse>>,
}

/// A use of a key that was noted, or is being noted.
#[derive(Debug)]
struct NotedUse {
    at: Instant,
    writing: JoinHandle<io::Result<()>>,
}

impl KeyUses {
    pub(super) fn new(state: &Path, silent: bool) -> Self {
        Self { records: KeyRecords::new(state), silent, noted: Mutex::default() }
    }

    /// A request was signed with this key of a qube. Waits for nothing: a disk that does not answer holds one task for each
    /// key.
    pub(super) fn note(&self, key: KeyId) {
        let mut noted = lock(&self.noted);
        let fresh = |last: &NotedUse| last.at.elapsed() < AGAIN || !last.writing.is_finished();
        if self.silent || noted.get(&key).is_some_and(fresh) {
            return;
        }
        let records = self.records.clone();
        let writing = spawn_blocking(move || records.used(key));
        noted.insert(key, NotedUse { at: Instant::now(), writing });
    }

    /// When this key, which the qube had, was retired.
    pub(super) fn retired(&self, vm: &str, key: KeyId) -> Option<String> {
        let record = self.records.read(key);
        let retired = record.retired.filter(|_| record.vm == vm)?;
        Some(clock::local(SystemTime::UNIX_EPOCH + Duration::from_secs(retired)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_answer_holds_one_task_for_each_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let uses = KeyUses::new(dir.path(), false);
        let key = [1; 8];
        let (release, held) = channel::<()>();
        let writing = spawn_blocking(move || {
            let _ = held.recv();
            Ok(())
        });
        let began = Instant::now();
        lock(&uses.noted).insert(key, NotedUse { at: began, writing });
        let noted = || lock(&uses.noted)[&key].at;
        tokio::time::advance(AGAIN * 2).await;
        uses.note(key);
        assert_eq!(noted(), began, "the first one is not written yet");
        uses.note([2; 8]);
        assert!(lock(&uses.noted).contains_key(&[2; 8]), "another key does not wait for it");
        drop(release);
        while !lock(&uses.noted)[&key].writing.is_finished() {
            tokio::task::yield_now().await;
        }
        uses.note(key);
        assert!(noted() > began);
    }
}
