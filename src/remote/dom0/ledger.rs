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
    sync::{Arc, Mutex},
};

use crate::{
    proto::{
        mac::{hex, unhex},
        remote::KeyId,
    },
    remote::files,
    sys::lock,
};
use sha2::{Digest as _, Sha256};

/// Entries at most: 9 MiB of file, which is written again when it has twice as many lines. Old ones of dated requests
/// make room; those of undated ones only when their key is gone.
const MOST: usize = 60_000;
/// A dated request is refused by its date after this long: twice the skew that is allowed, in milliseconds.
const DATED: u64 = 2 * SKEW_MS;
/// How far a queued request's time may be from ours, in milliseconds.
pub const SKEW_MS: u64 = 300_000;

/// What is remembered of a request: a digest of the VM, the key and the id.
pub type Mark = [u8; 16];

/// Pseudo mark of the line that stores the floor.
const FLOOR: Mark = [0; 16];

/// A request that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Begun {
    /// When, in milliseconds; 0: it has no date of its own, so it is kept as long as its key.
    ms: u64,
    key: KeyId,
}

/// The requests that were begun: see the module. What is known is in memory and asked without waiting; what is written
/// is a [`Writing`], for a thread that may wait for the disk.
#[derive(Debug, Default)]
pub struct Ledger {
    /// `None`: a dry run, which writes nothing.
    file: Option<Arc<Mutex<LedgerFile>>>,
    /// Lines in the file, those included that mean nothing any more.
    lines: usize,
    /// Entries at most.
    most: usize,
    known: HashMap<Mark, Begun>,
    /// Dated requests, oldest first.
    order: VecDeque<Mark>,
    /// Requests of this date or an older one may have been begun and forgotten, in milliseconds. While the clock goes
    /// on, their date refuses them; when it was set back, this does.
    floor: u64,
}

/// The file.
#[derive(Debug)]
struct LedgerFile {
    path: PathBuf,
    open: Option<File>,
}

/// What is to be written before a request runs.
#[derive(Debug, Default)]
#[must_use = "a request that is not on the disk may run twice"]
pub struct Writing {
    file: Option<Arc<Mutex<LedgerFile>>>,
    /// The whole file again, where it has too many lines.
    whole: Option<String>,
    /// Lines to append.
    lines: String,
}

impl Writing {
    /// Writes, to the disk. Waits for it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(self) -> io::Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        let mut file = lock(&file);
        if let Some(text) = self.whole {
            files::replace(&file.path, 0o600, text.as_bytes())?;
            file.open = None; // the one that is open has no name any more
        }
        if self.lines.is_empty() {
            return Ok(());
        }
        if file.open.is_none() {
            file.open = Some(files::append(&file.path, 0o600)?);
        }
        let Some(open) = &mut file.open else { return Ok(()) };
        let result = open.write_all(self.lines.as_bytes()).and_then(|()| open.sync_data());
        if result.is_err() {
            file.open = None;
        }
        result
    }
}

/// Why a request is not begun.
#[derive(Debug)]
pub enum NotBegun {
    /// The request was begun before.
    Again,
    /// There is no more room for requests that have no date.
    Full,
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

fn line(mark: &Mark, begun: Begun) -> String {
    format!("{} {} {}\n", hex(mark), begun.ms, hex(&begun.key))
}

fn parse(line: &[u8]) -> Option<(Mark, Begun)> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (mark, ms, key) = (unhex(words.next()?.as_bytes())?, words.next()?.parse().ok()?, words.next()?);
    Some((mark, Begun { ms, key: unhex(key.as_bytes())? }))
}

impl Ledger {
    /// Reads the ledger, or begins one.
    ///
    /// # Errors
    /// What the file system says. A line that is damaged (the last one, after a crash) is left out.
    pub fn open(path: &Path, now_ms: u64) -> io::Result<Self> {
        Self::open_for(path, now_ms, MOST)
    }

    fn open_for(path: &Path, now_ms: u64, most: usize) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            files::private_dir(dir)?;
        }
        let text = match files::read(path, 16 << 20) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        let file = Arc::new(Mutex::new(LedgerFile { path: path.to_owned(), open: None }));
        let mut ledger = Self { file: Some(file), most, ..Self::default() };
        for (mark, begun) in text.split(|b| *b == b'\n').filter_map(parse) {
            if mark == FLOOR {
                ledger.floor = ledger.floor.max(begun.ms);
            } else if begun.ms != 0 && now_ms.saturating_sub(begun.ms) > DATED {
                ledger.forget(begun);
            } else {
                ledger.known.insert(mark, begun);
            }
        }
        ledger.rewrite().write()?;
        Ok(ledger)
    }

    /// A ledger that is never written.
    pub fn in_memory() -> Self {
        Self { most: MOST, ..Self::default() }
    }

    /// A dated one goes: it was dated at most so much later than it was begun.
    fn forget(&mut self, begun: Begun) {
        self.floor = self.floor.max(begun.ms + SKEW_MS);
    }

    /// Whether a request was begun before.
    pub fn knows(&self, mark: &Mark) -> bool {
        self.known.contains_key(mark)
    }

    /// Whether a request of this date may have been begun and forgotten: the clock was set back.
    pub fn forgot(&self, created_ms: u64) -> bool {
        created_ms <= self.floor
    }

    /// Notes that a request is begun at `now_ms`, `dated` when it carries its own time: what is to be written before
    /// it runs. Should that fail, the request is not begun again either.
    ///
    /// # Errors
    /// When it must not be begun.
    pub fn begin(&mut self, mark: Mark, key: KeyId, dated: bool, now_ms: u64) -> Result<Writing, NotBegun> {
        if self.knows(&mark) {
            return Err(NotBegun::Again);
        }
        let floor = self.floor;
        while self.known.len() >= self.most {
            let oldest = self.order.front().and_then(|mark| self.known.get(mark).copied());
            let old = oldest.filter(|begun| now_ms.saturating_sub(begun.ms) > DATED).ok_or(NotBegun::Full)?;
            self.forget(old);
            self.order.pop_front().and_then(|mark| self.known.remove(&mark));
        }
        let begun = Begun { ms: if dated { now_ms } else { 0 }, key };
        // first what is forgotten, then what is begun
        let mut text = String::new();
        if self.floor > floor {
            text += &line(&FLOOR, Begun { ms: self.floor, key: [0; 8] });
        }
        text += &line(&mark, begun);
        self.known.insert(mark, begun);
        if dated {
            self.order.push_back(mark);
        }
        self.lines += text.lines().count();
        if self.lines > 2 * self.most {
            return Ok(self.rewrite()); // it holds this one
        }
        Ok(Writing { file: self.file.clone(), whole: None, lines: text })
    }

    /// Forgets undated requests of keys that are no longer anybody's: their tokens are worth nothing now.
    pub fn retain_keys(&mut self, active: &[KeyId]) {
        self.known.retain(|_, begun| begun.ms != 0 || active.contains(&begun.key));
        self.lines = usize::MAX / 2; // the next one that is begun writes the file anew
    }

    /// The whole file again.
    fn rewrite(&mut self) -> Writing {
        let mut dated: Vec<_> = self.known.iter().filter(|(_, begun)| begun.ms != 0).map(|(m, b)| (b.ms, *m)).collect();
        dated.sort_unstable();
        self.order = dated.into_iter().map(|(_, mark)| mark).collect();
        let mut text = line(&FLOOR, Begun { ms: self.floor, key: [0; 8] });
        self.known.iter().for_each(|(mark, begun)| text += &line(mark, *begun));
        self.lines = self.known.len();
        Writing { file: self.file.clone(), whole: Some(text), lines: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyId = *b"the key.";

    impl Ledger {
        /// Notes it, and has it written.
        fn begin_now(&mut self, mark: Mark, key: KeyId, dated: bool, now_ms: u64) -> Result<(), NotBegun> {
            self.begin(mark, key, dated, now_ms).map(|writing| writing.write().expect("written"))
        }
    }

    #[test]
    fn a_request_is_begun_once_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state/ledger");
        let (a, b) = (mark("work", b"k", "a"), mark("work", b"k", "b"));
        let mut ledger = Ledger::open(&path, 1000).expect("opened");
        assert!(ledger.begin_now(a, KEY, true, 1000).is_ok());
        assert!(ledger.begin_now(b, KEY, false, 1000).is_ok());
        assert!(matches!(ledger.begin_now(a, KEY, true, 1000), Err(NotBegun::Again)));
        drop(ledger);
        let mut ledger = Ledger::open(&path, 2000).expect("opened");
        assert!(matches!(ledger.begin_now(a, KEY, true, 2000), Err(NotBegun::Again)));
        assert!(ledger.knows(&b) && !ledger.forgot(1));
        drop(ledger);
        let ledger = Ledger::open(&path, 1000 + DATED + 1).expect("opened");
        assert!(!ledger.knows(&a), "its own date refuses it now");
        assert!(ledger.knows(&b), "nothing else does");
    }

    #[test]
    fn a_clock_that_is_set_back_brings_nothing_back_that_was_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        let now = 10 * DATED;
        let mut ledger = Ledger::open(&path, now).expect("opened");
        ledger.begin_now(mark("work", b"k", "a"), KEY, true, now).expect("begun");
        drop(ledger);
        // a day later, and back again; the request's own date may be later than dom0's was, by the skew
        drop(Ledger::open(&path, now + 86_400_000).expect("opened"));
        let ledger = Ledger::open(&path, now).expect("opened");
        assert!(ledger.forgot(now) && ledger.forgot(now + SKEW_MS));
        assert!(!ledger.forgot(now + SKEW_MS + 1), "and nothing that cannot be it");
    }

    #[test]
    fn old_entries_make_room_and_the_file_stays_small() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        let mut ledger = Ledger::open_for(&path, 1, 10).expect("opened");
        let id = |n: u64| mark("work", b"k", &n.to_string());
        for n in 1..100 {
            ledger.begin_now(id(n), KEY, true, n * DATED).expect("room");
        }
        assert!(ledger.forgot(80 * DATED) && !ledger.forgot(99 * DATED));
        assert!(std::fs::metadata(&path).expect("there").len() < 40 * 60);
        let mut ledger = Ledger::open_for(&path, 99 * DATED, 10).expect("opened");
        assert!(ledger.knows(&id(99)) && ledger.forgot(80 * DATED));
        // undated ones make none, but for those of a key that is gone
        let mut n = 1000;
        while ledger.begin_now(id(n), KEY, false, 100 * DATED).is_ok() {
            n += 1;
        }
        assert!(n > 1000 && matches!(ledger.begin_now(id(n), KEY, true, 100 * DATED), Err(NotBegun::Full)));
        ledger.retain_keys(&[KEY]);
        assert!(matches!(ledger.begin_now(id(n), KEY, true, 100 * DATED), Err(NotBegun::Full)));
        ledger.retain_keys(&[]);
        assert!(ledger.begin_now(id(n), KEY, false, 100 * DATED).is_ok());
        assert!(!Ledger::open_for(&path, 100 * DATED, 10).expect("opened").knows(&id(1000)));
    }

    #[test]
    fn a_line_cut_by_a_crash_costs_that_line_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger");
        let a = mark("work", b"k", "a");
        std::fs::write(&path, format!("{} 0 {}\n00112233", hex(&a), hex(&KEY))).expect("written");
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
