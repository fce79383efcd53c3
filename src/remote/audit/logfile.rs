//! The files of the log: `qvm-remote.log`, and `.1`, `.2`… behind it, oldest last. Whoever writes holds the lock of the
//! file that is written (flock(2)), and looks for the end of the chain where somebody else has written meanwhile.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, Flock, FlockArg, fallocate},
};

use super::chain::{ChainPoint, LINK, LogLine};
use crate::{
    proto::mac::hex,
    remote::{clock, files},
};

/// Reserved on the disk ahead of what is written, so that what began with room can be written to its end.
const RESERVE: u64 = 1 << 20;
/// Bytes of an entry at most; longer ones were not written by this program.
pub(super) const LONGEST: u64 = 64 << 10;

/// The file that is written now.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    /// Bytes at which it is rotated; `None`: never.
    limit: Option<u64>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    size: u64,
    /// Up to here the disk has room for it.
    reserved: u64,
    end: ChainPoint,
}

impl LogFile {
    pub(super) fn new(path: &Path, limit: Option<u64>) -> Self {
        Self { path: path.to_owned(), limit, open: None }
    }

    /// Writes entries, all or none, and on the disk when `sync`: where the chain is behind each. `kept` is asked how many
    /// older files stay when one more is made.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn append(
        &mut self,
        entries: &[String],
        sync: bool,
        kept: impl Fn() -> usize,
    ) -> io::Result<Vec<ChainPoint>> {
        let result = self.append_locked(entries, sync, kept);
        if result.is_err() {
            self.open = None; // looked at anew next time
        }
        result
    }

    fn append_locked(
        &mut self,
        entries: &[String],
        sync: bool,
        kept: impl Fn() -> usize,
    ) -> io::Result<Vec<ChainPoint>> {
        let mut lock = self.locked()?;
        if let (Some(limit), Some(open)) = (self.limit, &self.open) {
            if open.size >= limit {
                rotate(&self.path, kept())?; // under the lock: who waits for it looks whose name the file has
                drop(lock);
                lock = self.locked()?;
            }
        }
        let open = self.open.as_mut().ok_or(ErrorKind::NotFound)?;
        let (mut text, mut points, mut end) = (String::new(), Vec::new(), open.end);
        if open.size == 0 && end.number > 0 {
            let link = format!("[{}] {LINK} previous={}", clock::now(), hex(&end.head));
            end = end.next(&link);
            text += &end.line(&link);
        }
        for entry in entries {
            end = end.next(entry);
            text += &end.line(entry);
            points.push(end);
        }
        // one write(2) under the lock; half an entry is taken back
        if let Err(e) = open.file.write_all(text.as_bytes()) {
            let _ = open.file.set_len(open.size);
            return Err(e);
        }
        open.size += text.len() as u64;
        open.end = end;
        if sync {
            open.file.sync_data()?;
        }
        drop(lock);
        Ok(points)
    }

    /// Makes sure that the disk has room for what comes. A file system that cannot reserve is taken as it is.
    ///
    /// # Errors
    /// The disk is full, or another error of the file system.
    pub(super) fn reserve(&mut self) -> io::Result<()> {
        let _lock = self.locked()?;
        let open = self.open.as_mut().ok_or(ErrorKind::NotFound)?;
        if open.reserved >= open.size + RESERVE / 2 {
            return Ok(());
        }
        let wanted = i64::try_from(RESERVE).map_err(io::Error::other)?;
        let from = i64::try_from(open.size).map_err(io::Error::other)?;
        match fallocate(&open.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, from, wanted) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                open.reserved = open.size + RESERVE;
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Opens and locks the file at the path, and finds the end of the chain, unless it is where we left it.
    fn locked(&mut self) -> io::Result<Flock<File>> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        for _ in 0..16 {
            let file = match &self.open {
                Some(open) => open.file.try_clone()?,
                None => files::append(&self.path, 0o600)?,
            };
            let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| io::Error::from(e))?;
            let metadata = lock.metadata()?;
            let identity = (metadata.dev(), metadata.ino());
            if !fs::symlink_metadata(&self.path).is_ok_and(|at| (at.dev(), at.ino()) == identity) {
                self.open = None; // another has its name meanwhile
                continue;
            }
            if self.open.as_ref().is_none_or(|open| (open.identity, open.size) != (identity, metadata.len())) {
                let end = end_of(&self.path)?;
                let size = cut_half_entry(&lock)?;
                let reserved = self.open.as_ref().filter(|open| open.identity == identity).map_or(0, |o| o.reserved);
                self.open = Some(Open { file: lock.try_clone()?, identity, size, reserved, end });
            }
            return Ok(lock);
        }
        Err(io::Error::new(ErrorKind::ResourceBusy, "it is replaced again and again"))
    }
}

/// Writes one entry from outside the daemon, on the disk; behind a file of `limit` bytes in a new one. No older file is
/// deleted: the daemon does that, which knows the quotas.
///
/// # Errors
/// What the file system says.
pub(crate) fn append(path: &Path, limit: Option<u64>, category: &str, text: &str) -> io::Result<ChainPoint> {
    let entry = format!("[{}] {category} {text}", clock::now());
    let points = LogFile::new(path, limit).append(&[entry], true, || usize::MAX)?;
    points.first().copied().ok_or_else(|| ErrorKind::Other.into())
}

/// The file behind this one by `index`.
pub(super) fn older(path: &Path, index: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}

/// Every file of the log that is there, oldest first; also those behind a number that is missing.
pub(super) fn all(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().map(|name| format!("{}.", name.to_string_lossy())).unwrap_or_default();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix(&name)?.parse::<usize>().ok();
    let entries = path.parent().and_then(|dir| fs::read_dir(dir).ok());
    let mut numbers: Vec<_> = entries.into_iter().flatten().flatten().filter_map(number).collect();
    numbers.sort_unstable();
    let mut all: Vec<_> = numbers.into_iter().rev().map(|index| older(path, index)).collect();
    all.extend(path.exists().then(|| path.to_owned()));
    all
}

/// Every file of the log, open, with the bytes that it has: as between two entries and beside no rotation.
///
/// # Errors
/// What the file system says.
pub(super) fn snapshot(path: &Path) -> io::Result<Vec<(PathBuf, File, u64)>> {
    let _lock = loop {
        let file = match files::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => break None,
            Err(e) => return Err(e),
        };
        let lock = Flock::lock(file, FlockArg::LockShared).map_err(|(_, e)| io::Error::from(e))?;
        let ours = lock.metadata()?;
        // otherwise it was rotated meanwhile
        if fs::symlink_metadata(path).is_ok_and(|at| (at.dev(), at.ino()) == (ours.dev(), ours.ino())) {
            break Some(lock);
        }
    };
    let open = |name: PathBuf| {
        let file = files::open(&name)?;
        let size = file.metadata()?.len();
        Ok((name, file, size))
    };
    all(path).into_iter().map(open).collect()
}

/// Moves every file one further; those beyond `kept` go.
fn rotate(path: &Path, kept: usize) -> io::Result<()> {
    let count = (1..).take_while(|index| older(path, *index).exists()).count();
    if let Ok(file) = files::append(path, 0o600) {
        let _ = file.set_len(file.metadata()?.len()); // what was reserved is given back
        file.sync_data()?; // a later entry is never on the disk without those before it
    }
    for index in (kept.max(1)..=count).rev() {
        fs::remove_file(older(path, index))?;
    }
    for index in (1..=count.min(kept.max(1) - 1)).rev() {
        fs::rename(older(path, index), older(path, index + 1))?;
    }
    fs::rename(path, older(path, 1))?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// The end of the chain: behind the last whole entry of this file, or of the one before it.
fn end_of(path: &Path) -> io::Result<ChainPoint> {
    for file in [path.to_owned(), older(path, 1)] {
        let tail = match tail(&file) {
            Ok(tail) => tail,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let whole = tail.rfind('\n').map_or("", |end| &tail[..end]);
        if let Some(line) = whole.lines().rev().find_map(LogLine::parse) {
            return Ok(line.point());
        }
    }
    Ok(ChainPoint::default())
}

/// The last bytes of a file: enough for two entries.
fn tail(path: &Path) -> io::Result<String> {
    let mut file = files::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(2 * LONGEST)))?;
    let mut tail = Vec::new();
    file.take(2 * LONGEST).read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

/// Cuts what a crash left of an entry: nobody was told that it is there. The size.
fn cut_half_entry(file: &File) -> io::Result<u64> {
    use std::os::unix::fs::FileExt as _;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LONGEST);
    let mut bytes = vec![0; usize::try_from(length - from).map_err(io::Error::other)?];
    // opened for appending alone, so it is read by way of /proc
    let reader = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
    reader.read_exact_at(&mut bytes, from)?;
    match bytes.iter().rposition(|b| *b == b'\n') {
        Some(end) if end + 1 < bytes.len() => {
            let size = from + end as u64 + 1;
            file.set_len(size)?;
            Ok(size)
        }
        None if from == 0 && length > 0 => {
            file.set_len(0)?;
            Ok(0)
        }
        _ => Ok(length),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn entry(n: usize) -> String {
        format!("[2026-01-01T00:00:00] CMD vm=work id={n}")
    }

    fn numbers(path: &Path) -> Vec<u64> {
        let text = fs::read_to_string(path).expect("there");
        text.lines().map(|line| LogLine::parse(line).expect("a line").number).collect()
    }

    #[test]
    fn two_writers_make_one_sequence_and_the_file_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log/qvm-remote.log");
        let (mut one, mut two) = (LogFile::new(&path, Some(1 << 20)), LogFile::new(&path, None));
        for n in 0..3 {
            one.append(&[entry(n), entry(n)], true, || 1).expect("written");
            two.append(&[entry(n)], false, || 1).expect("written");
        }
        assert_eq!(numbers(&path), (1..=9).collect::<Vec<_>>());
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_chain_goes_on_over_files_restarts_crashes_and_an_earlier_version() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        fs::write(
            &path,
            "[2026-01-01T00:00:00] CMD vm=work seq=1\n[2026-01-01T00:00:00] DONE vm=work seq=2\nhalf an en",
        )
        .expect("written");
        for n in 0..20 {
            LogFile::new(&path, Some(500)).append(&[entry(n)], true, || 3).expect("written");
        }
        let files = all(&path);
        assert_eq!(files.len(), 4, "{files:?}");
        let mut last = 0;
        for number in files.iter().flat_map(|file| numbers(file)) {
            assert!(last == 0 || number == last + 1, "{number} follows {last}");
            last = number;
        }
        assert!(last > 22, "the links between files are entries, too");
        assert!(!fs::read_to_string(older(&path, 3)).expect("there").contains("half"));
    }

    #[test]
    fn a_writer_beside_the_daemon_makes_a_new_file_too_and_deletes_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        (0..5).for_each(|_| _ = append(&path, Some(100), "REVOKE", "vm=work kill=false").expect("written"));
        assert_eq!(all(&path).len(), 5);
    }

    #[test]
    fn a_reader_waits_for_the_writer() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut file = LogFile::new(&path, None);
        file.append(&[entry(1)], true, || 1).expect("written");
        let lock = file.locked().expect("locked");
        let reader = std::thread::spawn({
            let path = path.clone();
            move || snapshot(&path).expect("read").remove(0).2
        });
        let open = file.open.as_mut().expect("open");
        open.file.write_all(b"half an entry, ").and_then(|()| open.file.write_all(b"and the rest\n")).expect("written");
        let size = open.file.metadata().expect("there").len();
        drop(lock);
        assert_eq!(reader.join().expect("ended"), size);
    }

    #[test]
    fn room_is_reserved_ahead_and_costs_no_size() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut file = LogFile::new(&path, None);
        file.reserve().expect("room");
        file.append(&[entry(1)], true, || 1).expect("written");
        let metadata = fs::metadata(&path).expect("there");
        assert!(metadata.len() < 200 && metadata.blocks() * 512 >= RESERVE, "{metadata:?}");
    }
}
