//! The log as the daemon sees it: entries that are written, entries that are waited for, refusals within their bounds.
//!
//! Refusals are rate-limited, because whoever has no key can cause them, and counted in the quota of refusals; each VM
//! has a separate rate, so that none can keep another's refusals, or its own later ones with a good key, out of the
//! log.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{
    chain::ChainPoint,
    logfile::LONGEST,
    quota::{Quotas, Use},
    recent,
    writer::{LogFailure, Writer},
};
use crate::{log::counted_were, remote::clock::now, sys::lock};

/// How long a [`EntryOrigin`] counts its refusals.
const PERIOD: Duration = Duration::from_secs(10);
/// Bytes of an entry besides its text: time, category, qube, id, head, number.
const AROUND: u64 = 320;
/// Bytes of an entry without its head and number, at most.
const MOST: usize = (LONGEST - AROUND) as usize;

/// Who caused a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryOrigin {
    /// Nobody knows: it did not authenticate.
    Anybody,
    /// Whoever has the VM's key.
    Known,
}

impl EntryOrigin {
    /// Refusals that are written for a VM in [`PERIOD`].
    fn burst(self) -> u32 {
        match self {
            Self::Anybody => 20,
            Self::Known => 200,
        }
    }
}

/// dom0's log.
#[derive(Debug)]
pub struct Audit {
    /// `None`: a dry run, which touches nothing.
    writer: Option<Writer>,
    quotas: Quotas,
    /// As many as there are VMs in the configuration, twice.
    refused: Mutex<HashMap<(String, EntryOrigin), Rate>>,
}

#[derive(Debug, Default)]
struct Rate {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Audit {
    /// Writes to this file, up to `limit` bytes and to another then; `None` writes nowhere.
    pub fn new(path: Option<PathBuf>, limit: u64) -> Self {
        let quotas = path.as_ref().map(|path| Quotas::used(recent::used(path, &now()))).unwrap_or_default();
        let writer = path.map(|path| Writer::start(path, limit));
        Self { writer, quotas, refused: Mutex::default() }
    }

    /// Writes one entry: `[time] CATEGORY text`. `text` is escaped by whoever made it. `false`: too many entries wait;
    /// the log says how many were lost.
    pub fn write(&self, category: &str, text: &str) -> bool {
        self.put(category, text)
    }

    /// Writes one entry, and waits until it is on the disk: where the chain is behind it; `None` in a dry run.
    ///
    /// # Errors
    /// Why it is not there.
    pub(crate) async fn record(&self, category: &str, text: &str) -> Result<Option<ChainPoint>, LogFailure> {
        match &self.writer {
            Some(writer) => writer.record(entry(category, text)).await.map(Some),
            None => Ok(None),
        }
    }

    /// Takes the room that the entries of a command will need from the quota of its VM, or says how long until there is
    /// as much. `text` is what is shown of it, `times` how often.
    pub(crate) fn room(&self, vm: &str, text: &str, times: u64, quota: Option<u64>) -> Result<(), Duration> {
        // its beginning and its end, and twice as many where a person is asked
        let bytes = times * (text.len() as u64 + 2 * AROUND);
        self.quotas.take(vm, Use::Run, bytes, quota)
    }

    /// Writes an entry about a VM that was refused something, unless there were too many of late; how many were left
    /// out is written with the next one. Whether it was written.
    pub fn refused(&self, vm: &str, source: EntryOrigin, category: &str, text: &str) -> bool {
        let mut refused = lock(&self.refused);
        let rate = refused.entry((vm.to_owned(), source)).or_default();
        if rate.since.is_none_or(|since| since.elapsed() > PERIOD) {
            *rate = Rate { since: Some(Instant::now()), written: 0, left_out: rate.left_out };
        }
        let bytes = text.len() as u64 + 2 * AROUND;
        if rate.written >= source.burst() || self.quotas.take(vm, Use::Refusal, bytes, None).is_err() {
            rate.left_out += 1;
            return false;
        }
        rate.written += 1;
        let left_out = std::mem::take(&mut rate.left_out);
        if left_out > 0 {
            self.put("INFO", &format!("vm={vm} {} not written", counted_were(left_out, "refusal")));
        }
        self.put(category, &format!("vm={vm} {text}"))
    }

    /// Why nothing can be written now.
    pub(crate) fn failure(&self) -> Option<String> {
        self.writer.as_ref().and_then(Writer::failure)
    }

    /// So many older files are kept; `sure`: fewer than before, too.
    pub(crate) fn keep(&self, files: usize, sure: bool) {
        if let Some(writer) = &self.writer {
            writer.keep(files, sure);
        }
    }

    /// Waits until everything so far was written.
    pub(crate) async fn flush(&self) {
        if let Some(writer) = &self.writer {
            writer.flush().await;
        }
    }

    /// From now on the disk takes nothing, or everything again.
    #[cfg(test)]
    pub(crate) fn stall(&self, stalled: bool) {
        if let Some(writer) = &self.writer {
            writer.stall(stalled);
        }
    }

    fn put(&self, category: &str, text: &str) -> bool {
        self.writer.as_ref().is_none_or(|writer| writer.write(entry(category, text)))
    }
}

/// The text of an entry, cut where whoever reads the log would take no more.
fn entry(category: &str, text: &str) -> String {
    let mut entry = format!("[{}] {category} {text}", now());
    if entry.len() > MOST {
        let end = (0..=MOST).rev().find(|end| entry.is_char_boundary(*end)).unwrap_or(0);
        entry.truncate(end);
        entry += " (cut)";
    }
    entry
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::logfile::{LogFile, all},
        *,
    };

    async fn text_of(audit: &Audit, path: &std::path::Path) -> String {
        audit.flush().await;
        fs::read_to_string(path).expect("there")
    }

    #[tokio::test]
    async fn an_entry_that_was_waited_for_is_there_and_in_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log/qvm-remote.log");
        for n in 1..=2u64 {
            let audit = Audit::new(Some(path.clone()), 1 << 20);
            audit.write("INFO", &format!("start {n}"));
            let point = audit.record("CMD", "vm=work id=a cmd=x").await.expect("written").expect("no dry run");
            assert_eq!(point.number, 2 * n);
            let text = fs::read_to_string(&path).expect("there");
            assert!(text.ends_with(&format!("head={} seq={}\n", crate::proto::mac::hex(&point.head), 2 * n)), "{text}");
        }
    }

    /// Fills the quota of a qube, with a new log: how many entries that took.
    async fn fill(path: &std::path::Path) -> usize {
        let (audit, text, quota) = (Audit::new(Some(path.to_owned()), 1 << 20), "x".repeat(1000), Some(64 << 10));
        let mut runs = 0;
        while audit.room("work", &text, 1, quota).is_ok() {
            audit.write("CMD", &format!("vm=work id={runs} {text}"));
            runs += 1;
        }
        assert!(audit.room("dev", &text, 1, quota).is_ok());
        audit.flush().await;
        runs
    }

    #[tokio::test]
    async fn a_restart_gives_no_qube_a_new_quota() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let runs = [fill(&path).await, fill(&path).await, fill(&path).await];
        // the room that was taken for the ends of commands comes back, what was written does not
        assert!(runs[0] > 30 && runs[1] < 20 && runs[2] < 10, "{runs:?}");
    }

    #[tokio::test]
    async fn refusals_that_anybody_can_cause_do_not_fill_the_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let audit = Audit::new(Some(path.clone()), 1 << 20);
        let written = (0..1000).filter(|_| audit.refused("work", EntryOrigin::Anybody, "AUTH-FAIL", "")).count();
        assert_eq!(written, 20);
        assert_eq!(text_of(&audit, &path).await.lines().count(), 20);
    }

    #[tokio::test]
    async fn one_that_floods_the_log_keeps_nobody_elses_refusals_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let audit = Audit::new(Some(path.clone()), 1 << 20);
        (0..1000).for_each(|_| _ = audit.refused("work", EntryOrigin::Anybody, "AUTH-FAIL", "id=flood"));
        assert!(audit.refused("dev", EntryOrigin::Anybody, "AUTH-FAIL", "id=a"));
        assert!(audit.refused("work", EntryOrigin::Known, "DENY", "id=b"));
        let text = text_of(&audit, &path).await;
        assert!(text.contains("AUTH-FAIL vm=dev id=a") && text.contains("DENY vm=work id=b"), "{text}");
    }

    #[tokio::test]
    async fn an_entry_is_never_longer_than_what_is_read_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let audit = Audit::new(Some(path.clone()), 1 << 20);
        audit.write("POLICY", &"ä".repeat(1 << 20));
        audit.record("CMD", &"x".repeat(1 << 20)).await.expect("written");
        let text = text_of(&audit, &path).await;
        assert!(text.lines().count() == 2 && text.lines().all(|line| line.len() < 64 << 10 && line.contains("(cut)")));
        assert_eq!(super::super::verify(&path, &Default::default()).expect("read").faults, Vec::<String>::new());
    }

    #[tokio::test]
    async fn entries_that_are_lost_are_counted_in_the_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let audit = Audit::new(Some(path.clone()), 1 << 30);
        audit.stall(true);
        let written = (0..20_000).filter(|n| audit.write("INFO", &format!("n={n}"))).count();
        audit.stall(false);
        let text = text_of(&audit, &path).await;
        let lost = format!("INFO {} entries were lost", 20_000 - written);
        assert!(written < 20_000 && text.matches(" entries were lost").count() == 1 && text.contains(&lost), "{lost}");
    }

    #[tokio::test]
    async fn the_first_entry_at_a_full_file_deletes_nothing_and_a_faulty_policy_neither() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        for n in 0..20 {
            LogFile::new(&path, Some(100)).append(&[format!("[t] CMD id={n}")], false, || 99).expect("written");
        }
        let files = all(&path).len();
        let audit = Audit::new(Some(path.clone()), 100);
        audit.write("INFO", "start");
        audit.flush().await;
        assert_eq!(all(&path).len(), files + 1);
        audit.keep(3, false);
        audit.write("INFO", "a policy has a fault");
        audit.flush().await;
        assert_eq!(all(&path).len(), files + 2);
        audit.keep(3, true);
        audit.write("INFO", "all policies were read");
        audit.flush().await;
        assert_eq!(all(&path).len(), 4);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_told_and_written_later() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        fs::create_dir(&path).expect("a directory in its place");
        let audit = Audit::new(Some(path.clone()), 1 << 20);
        audit.write("DONE", "vm=work id=a");
        assert!(audit.record("CMD", "vm=work id=b").await.is_err());
        audit.flush().await;
        assert!(audit.failure().is_some_and(|why| why.contains("no regular file") || why.contains("directory")));
        fs::remove_dir(&path).expect("removed");
        assert!(audit.record("CMD", "vm=work id=c").await.is_ok());
        let text = text_of(&audit, &path).await;
        assert!(text.contains("DONE vm=work id=a") && !text.contains("id=b") && text.contains("id=c"), "{text}");
        assert_eq!(audit.failure(), None);
    }
}
