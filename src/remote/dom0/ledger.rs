//! What was executed already: requests from the durable queue, each at most once, over restarts and crashes.
//!
//! A session's nonce makes a live request unrepeatable; a request in a file can be put there again. So before one is
//! executed it is written here and on the disk. An entry says that it was begun, never that it ended: what was begun
//! and has no result when the daemon comes back is answered, not repeated.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::{
    proto::mac::{hex, unhex},
    remote::files,
};
use sha2::{Digest as _, Sha256};

/// Entries at most: 4 MiB of file. Old ones of dated requests make room; those of undated ones never do.
const MOST: usize = 60_000;
/// A dated request is refused by its date after this long: twice the skew that is allowed, in milliseconds.
const DATED: u64 = 2 * SKEW_MS;
/// How far a queued request's time may be from ours, in milliseconds.
pub const SKEW_MS: u64 = 300_000;

/// What is remembered of a request: a digest of the VM, the key and the id.
type Mark = [u8; 16];

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    /// `None`: a dry run, which writes nothing.
    path: Option<PathBuf>,
    file: Option<File>,
    /// When each was begun, in milliseconds; 0: undated, kept for ever.
    known: HashMap<Mark, u64>,
    /// The dated ones, oldest first.
    order: VecDeque<Mark>,
}

/// Why a request is not begun.
#[derive(Debug)]
pub enum Refused {
    /// It was begun before.
    Again,
    /// There is no more room for requests that have no date.
    Full,
    /// It cannot be written down.
    Io(io::Error),
}

/// The mark of a request.
pub fn mark(vm: &str, key: &[u8], id: &str) -> Mark {
    let mut digest = Sha256::new();
    for part in [vm.as_bytes(), key, id.as_bytes()] {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let digest = digest.finalize();
    std::array::from_fn(|i| digest[i])
}

impl Ledger {
    /// Reads the ledger, or begins one.
    ///
    /// # Errors
    /// What the file system says. A line that is damaged (the last one, after a crash) is left out.
    pub fn open(path: &Path, now_ms: u64) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            files::private_dir(dir)?;
        }
        let text = match files::read(path, 16 << 20) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let mut ledger =
            Self { path: Some(path.to_owned()), file: None, known: HashMap::new(), order: VecDeque::new() };
        for line in text.split(|b| *b == b'\n') {
            let Some((mark, time)) = line.split_at_checked(32) else { continue };
            let time = std::str::from_utf8(time).ok().and_then(|t| t.trim().parse::<u64>().ok());
            if let (Some(mark), Some(time)) = (unhex(mark), time) {
                if time == 0 || now_ms.saturating_sub(time) <= DATED {
                    ledger.remember(mark, time);
                }
            }
        }
        ledger.rewrite()?;
        Ok(ledger)
    }

    /// One that is never written.
    pub fn in_memory() -> Self {
        Self { path: None, file: None, known: HashMap::new(), order: VecDeque::new() }
    }

    fn remember(&mut self, mark: Mark, time: u64) {
        if self.known.insert(mark, time).is_none() && time != 0 {
            self.order.push_back(mark);
        }
    }

    /// Whether a request was begun before.
    pub fn knows(&self, mark: &Mark) -> bool {
        self.known.contains_key(mark)
    }

    /// Writes down, to the disk, that a request is begun at `now_ms`; `dated` when it carries a time of its own.
    ///
    /// # Errors
    /// When it must not be begun.
    pub fn begin(&mut self, mark: Mark, dated: bool, now_ms: u64) -> Result<(), Refused> {
        if self.knows(&mark) {
            return Err(Refused::Again);
        }
        while self.known.len() >= MOST {
            match self.order.pop_front() {
                Some(old) if self.known.get(&old).is_some_and(|t| now_ms.saturating_sub(*t) > DATED) => {
                    self.known.remove(&old);
                }
                _ => return Err(Refused::Full),
            }
        }
        let time = if dated { now_ms } else { 0 };
        self.append(&mark, time).map_err(Refused::Io)?;
        self.remember(mark, time);
        Ok(())
    }

    fn append(&mut self, mark: &Mark, time: u64) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if self.file.is_none() {
            self.file = Some(files::append(path, 0o600)?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let result = file.write_all(format!("{} {time}\n", hex(mark)).as_bytes()).and_then(|()| file.sync_data());
        if result.is_err() {
            self.file = None;
        }
        result
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let lines: String = self.known.iter().map(|(mark, time)| format!("{} {time}\n", hex(mark))).collect();
        self.path.as_ref().map_or(Ok(()), |path| files::replace(path, 0o600, lines.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_begun_once_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state/ledger");
        let (a, b) = (mark("work", b"k", "a"), mark("work", b"k", "b"));
        let mut ledger = Ledger::open(&path, 1000).expect("opened");
        assert!(ledger.begin(a, true, 1000).is_ok());
        assert!(ledger.begin(b, false, 1000).is_ok());
        assert!(matches!(ledger.begin(a, true, 1000), Err(Refused::Again)));
        drop(ledger);
        let mut ledger = Ledger::open(&path, 2000).expect("opened");
        assert!(matches!(ledger.begin(a, true, 2000), Err(Refused::Again)));
        assert!(ledger.knows(&b));
        drop(ledger);
        let ledger = Ledger::open(&path, 1000 + DATED + 1).expect("opened");
        assert!(!ledger.knows(&a), "its own date refuses it now");
        assert!(ledger.knows(&b), "nothing else does");
    }

    #[test]
    fn a_line_cut_by_a_crash_costs_that_line_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        let a = mark("work", b"k", "a");
        std::fs::write(&path, format!("{} 0\n00112233", hex(&a))).expect("written");
        assert!(Ledger::open(&path, 1).expect("opened").knows(&a));
    }

    #[test]
    fn marks_differ_in_every_part() {
        let marks = [
            mark("a", b"k", "x"),
            mark("b", b"k", "x"),
            mark("a", b"l", "x"),
            mark("a", b"k", "y"),
            mark("ak", b"", "x"),
        ];
        assert_eq!(marks.iter().collect::<std::collections::HashSet<_>>().len(), 5);
    }
}
