//! What was asked, decided and done, written where the owner of the machine looks: dom0's log.
//!
//! Whatever came from a VM is escaped before it is written, so that no id and no command can forge an entry or reach a
//! terminal. Entries before authentication are rate-limited, because anybody could cause them; each VM has a rate of its
//! own, so that none can keep another's refusals, or its own later ones with a good key, out of the log.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use super::{clock::now, files};
use crate::{log, sys::lock};

/// How long a [`EntryOrigin`] counts its refusals.
const PERIOD: Duration = Duration::from_secs(10);

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
    path: Option<PathBuf>,
    /// Bytes at which it is rotated; one older file is kept.
    limit: u64,
    state: Mutex<LogState>,
}

#[derive(Debug, Default)]
struct LogState {
    file: Option<File>,
    size: u64,
    /// Of the next entry: a gap shows that entries were taken out.
    sequence: u64,
    /// As many as there are VMs in the configuration, twice.
    refused: HashMap<(String, EntryOrigin), Rate>,
}

#[derive(Debug, Default)]
struct Rate {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Audit {
    /// Writes to this file, up to `limit` bytes and as many again in one older file; `None` writes nowhere.
    pub fn new(path: Option<PathBuf>, limit: u64) -> Self {
        Self { path, limit, state: Mutex::default() }
    }

    /// Writes one entry: `[time] CATEGORY text seq=N`. `text` is escaped by whoever made it.
    pub fn write(&self, category: &str, text: &str) {
        let mut state = lock(&self.state);
        self.entry(&mut state, category, text);
    }

    /// Writes an entry about a VM that was refused something, unless there were too many of late; how many were left
    /// out is told with the next one. Whether it was written.
    pub fn refused(&self, vm: &str, source: EntryOrigin, category: &str, text: &str) -> bool {
        let mut state = lock(&self.state);
        let rate = state.refused.entry((vm.to_owned(), source)).or_default();
        if rate.since.is_none_or(|since| since.elapsed() > PERIOD) {
            *rate = Rate { since: Some(Instant::now()), written: 0, left_out: rate.left_out };
        }
        if rate.written >= source.burst() {
            rate.left_out += 1;
            return false;
        }
        rate.written += 1;
        let left_out = std::mem::take(&mut rate.left_out);
        if left_out > 0 {
            self.entry(&mut state, "INFO", &format!("vm={vm} {left_out} refusals were not written"));
        }
        self.entry(&mut state, category, &format!("vm={vm} {text}"));
        true
    }

    fn entry(&self, state: &mut LogState, category: &str, text: &str) {
        let Some(path) = &self.path else { return };
        if state.file.is_none() || state.size >= self.limit {
            if let Err(e) = open(path, self.limit, state) {
                log::emit(log::Event::new(log::Kind::LogDropped, format!("{}: {e}", path.display())));
                return;
            }
        }
        state.sequence += 1;
        let line = format!("[{}] {category} {text} seq={}\n", now(), state.sequence);
        if let Some(file) = &mut state.file {
            // one write(2), so that no other writer's entry comes into the middle of it
            if file.write_all(line.as_bytes()).is_err() {
                state.file = None;
            }
            state.size += line.len() as u64;
        }
    }
}

fn open(path: &Path, limit: u64, state: &mut LogState) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    if fs::symlink_metadata(path).is_ok_and(|m| m.len() >= limit) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
    }
    let file = files::append(path, 0o600)?;
    state.size = file.metadata()?.len();
    if state.sequence == 0 {
        state.sequence = last_sequence(path);
    }
    state.file = Some(file);
    Ok(())
}

/// The number of the last entry of an earlier process, so that the count goes on.
fn last_sequence(path: &Path) -> u64 {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let tail = files::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(8192)))?;
        let mut tail = Vec::new();
        file.take(8192).read_to_end(&mut tail)?;
        Ok(tail)
    });
    let tail = tail.unwrap_or_default();
    let text = String::from_utf8_lossy(&tail);
    text.lines().rev().find_map(|line| line.rsplit_once(" seq=")?.1.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn entries_are_counted_on_over_a_restart_and_the_file_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log/qvm-remote.log");
        for n in 1..=2 {
            let audit = Audit::new(Some(path.clone()), 1 << 20);
            audit.write("INFO", &format!("start {n}"));
            audit.write("CMD", "vm=work id=a cmd=x");
        }
        let text = fs::read_to_string(&path).expect("written");
        let numbers: Vec<_> = text.lines().filter_map(|l| l.rsplit_once(" seq=")).map(|(_, n)| n).collect();
        assert_eq!(numbers, ["1", "2", "3", "4"]);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_log_never_takes_more_than_its_quota() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let audit = Audit::new(Some(path.clone()), 1000);
        (0..200).for_each(|n| audit.write("CMD", &format!("entry {n} {}", "x".repeat(50))));
        let total: u64 =
            fs::read_dir(dir.path()).expect("there").map(|e| e.and_then(|e| e.metadata()).map_or(0, |m| m.len())).sum();
        assert!((1000..2300).contains(&total), "{total}");
        assert!(fs::read_to_string(&path).expect("there").contains("entry 199"));
    }

    #[test]
    fn refusals_that_anybody_can_cause_do_not_fill_the_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let audit = Audit::new(Some(path.clone()), 1 << 20);
        let written = (0..1000).filter(|_| audit.refused("work", EntryOrigin::Anybody, "AUTH-FAIL", "")).count();
        assert_eq!(written, 20);
        assert_eq!(fs::read_to_string(&path).expect("there").lines().count(), 20);
    }

    #[test]
    fn one_that_floods_the_log_keeps_nobody_elses_refusals_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let audit = Audit::new(Some(path.clone()), 1 << 20);
        (0..1000).for_each(|_| _ = audit.refused("work", EntryOrigin::Anybody, "AUTH-FAIL", "id=flood"));
        assert!(audit.refused("dev", EntryOrigin::Anybody, "AUTH-FAIL", "id=a"));
        assert!(audit.refused("work", EntryOrigin::Known, "DENY", "id=b"));
        let text = fs::read_to_string(&path).expect("there");
        assert!(text.contains("AUTH-FAIL vm=dev id=a") && text.contains("DENY vm=work id=b"), "{text}");
    }
}
