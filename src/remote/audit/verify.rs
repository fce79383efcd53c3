//! Reads the log back: whether its chain holds, whether it is the log whose heads a qube has kept, and the entries of
//! one qube.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _},
    path::Path,
};

use super::{
    chain::{ChainPoint, LogLine},
    logfile::snapshot,
};
use crate::{
    log::counted,
    proto::mac::{Digest, hex, unhex},
    remote::files,
};

/// Bytes of one line at most.
const LONGEST: usize = 64 << 10;

/// Heads that a qube has kept, by the numbers of their entries. From a qube: it says what it likes.
pub(crate) type Kept = BTreeMap<u64, Digest>;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    /// The first and the last entry that were checked, and how many there are.
    pub(crate) first: u64,
    pub(crate) last: ChainPoint,
    pub(crate) entries: u64,
    /// Entries of an earlier version, which have no head.
    pub(crate) without_head: u64,
    /// What is wrong, in the order of the log.
    pub(crate) faults: Vec<String>,
    /// How many kept heads are those of the log, and how many are of entries that are not kept any more.
    pub(crate) confirmed: u64,
    pub(crate) older: u64,
}

impl fmt::Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            writeln!(f, "{fault}")?;
        }
        if self.without_head > 0 {
            let entries = counted(self.without_head, "entry");
            writeln!(f, "{entries} of an earlier version without a head: not checked")?;
        }
        let holds = if self.faults.is_empty() { "the chain holds" } else { "the chain is broken" };
        let (first, last) = (self.first, self.last);
        let entries = counted(self.entries, "entry");
        writeln!(f, "{entries}, {first} to {}: {holds}; head {}", last.number, hex(&last.head))
    }
}

/// Checks every file of the log.
///
/// # Errors
/// What the file system says.
pub(crate) fn verify(path: &Path, kept: &Kept) -> io::Result<Verified> {
    let mut found = Verified::default();
    let mut before: Option<ChainPoint> = None;
    let mut heads = Kept::new();
    for (file, open, size) in snapshot(path)? {
        let name = file.display();
        each_line(open, size, |row, line| {
            let place = format!("{name}:{row}");
            let Some(line) = line.and_then(LogLine::parse) else {
                found.faults.push(format!("{place}: this is no entry"));
                return;
            };
            found.entries += 1;
            if found.first == 0 {
                found.first = line.number;
                before = before.or_else(|| line.before());
            }
            match (line.head, before) {
                (None, Some(before)) if before.head != Digest::default() => {
                    found.faults.push(format!("{place}: entry {} has no head", line.number));
                }
                (None, _) => found.without_head += 1,
                (Some(head), before) => {
                    let before = before.unwrap_or(ChainPoint { number: line.number - 1, head: Digest::default() });
                    if line.number != before.number + 1 {
                        let text = format!("{place}: entry {} follows entry {}", line.number, before.number);
                        found.faults.push(text);
                    } else if before.next(line.text).head != head {
                        let text = format!(
                            "{place}: the head of entry {} is wrong: it, or one before it, was changed",
                            line.number
                        );
                        found.faults.push(text);
                    }
                    if kept.contains_key(&line.number) {
                        heads.insert(line.number, head);
                    }
                }
            }
            before = Some(line.point());
            found.last = line.point();
        })?;
    }
    for (number, head) in kept {
        match heads.get(number) {
            Some(ours) if ours == head => found.confirmed += 1,
            Some(_) => found.faults.push(format!("entry {number} is not the one whose head the qube has kept")),
            None if *number < found.first => found.older += 1,
            None => found.faults.push(format!("entry {number}, whose head the qube has kept, is not in the log")),
        }
    }
    if found.older > 0 && found.confirmed == 0 {
        found.faults.push("none of the heads that the qube has kept is in the log".to_owned());
    }
    Ok(found)
}

/// Reads the heads that a qube has kept, out of its log: ` log=NUMBER head=HEX` in any of its lines.
///
/// # Errors
/// What the file system says; a file of more than 16 MiB.
pub(crate) fn read_kept(path: &Path) -> io::Result<Kept> {
    let text = files::read(path, 16 << 20)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().filter_map(kept).collect())
}

fn kept(line: &str) -> Option<(u64, Digest)> {
    let value = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
    Some((value("log=")?.parse().ok()?, unhex(value("head=")?.as_bytes())?))
}

/// Calls `show` with each entry, of all qubes or of one.
///
/// # Errors
/// What the file system says.
pub(crate) fn entries_of(path: &Path, vm: Option<&str>, mut show: impl FnMut(&str)) -> io::Result<()> {
    for (_, open, size) in snapshot(path)? {
        each_line(open, size, |_, line| {
            let Some(line) = line else { return };
            let of = line.split(' ').find_map(|word| word.strip_prefix("vm="));
            if vm.is_none() || of == vm {
                show(line);
            }
        })?;
    }
    Ok(())
}

/// Calls `each` with the number and the text of each line of the first `size` bytes; `None` for one that is no text or
/// too long.
fn each_line(file: File, size: u64, mut each: impl FnMut(usize, Option<&str>)) -> io::Result<()> {
    let mut reader = BufReader::new(file.take(size));
    let mut line = Vec::new();
    for row in 1.. {
        line.clear();
        if io::Read::take(&mut reader, LONGEST as u64).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        each(row, line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::logfile::{LogFile, all},
        *,
    };

    /// A log of three files, and where its chain is behind each entry.
    fn log(path: &Path) -> Kept {
        let mut kept = Kept::new();
        for n in 0..20 {
            let text = format!("[2026-01-01T00:00:00] CMD vm={} id={n}", if n % 2 == 0 { "work" } else { "dev" });
            let points = LogFile::new(path, Some(700)).append(&[text], true, || 9).expect("written");
            kept.extend(points.iter().map(|point| (point.number, point.head)));
        }
        kept
    }

    fn faults(path: &Path, kept: &Kept) -> Vec<String> {
        verify(path, kept).expect("read").faults
    }

    #[test]
    fn a_log_that_nobody_touched_holds_also_when_its_oldest_files_are_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let kept = log(&path);
        let found = verify(&path, &kept).expect("read");
        assert_eq!((found.faults, found.confirmed, found.older, found.first), (vec![], 20, 0, 1));
        let files = all(&path);
        assert!(files.len() > 2, "{files:?}");
        fs::remove_file(&files[0]).expect("removed");
        let found = verify(&path, &kept).expect("read");
        assert!(found.faults.is_empty() && found.older > 0 && found.confirmed + found.older == 20, "{found:?}");
    }

    #[test]
    fn an_entry_that_was_changed_taken_out_or_put_in_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let kept = log(&path);
        let file = all(&path).remove(1);
        let text = fs::read_to_string(&file).expect("there");
        let lines: Vec<&str> = text.lines().collect();
        let mut without = lines.clone();
        without.remove(2);
        let mut doubled = lines.clone();
        doubled.insert(2, lines[2]);
        let changed = text.replacen("id=", "id=x", 2);
        let cut = lines[..lines.len() - 1].join("\n") + "\n";
        for other in
            [changed, without.join("\n") + "\n", doubled.join("\n") + "\n", cut, text.replacen("head=", "head=0", 1)]
        {
            fs::write(&file, other).expect("written");
            assert!(!faults(&path, &Kept::new()).is_empty());
        }
        fs::write(&file, &text).expect("written");
        assert_eq!(faults(&path, &kept), Vec::<String>::new());
    }

    #[test]
    fn a_log_that_was_made_anew_is_not_the_one_whose_heads_the_qube_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, forged) = (dir.path().join("log"), dir.path().join("forged"));
        let kept = log(&path);
        let mut file = LogFile::new(&forged, None);
        for n in 0..20 {
            file.append(&[format!("[2026-01-01T00:00:00] CMD vm=work id={}", n + usize::from(n == 10))], true, || 9)
                .expect("written");
        }
        assert_eq!(faults(&forged, &Kept::new()), Vec::<String>::new(), "its own chain holds");
        assert!(faults(&forged, &kept).iter().any(|fault| fault.contains("is not the one whose head")));
        // one that begins behind all that the qube has kept
        let later = dir.path().join("later");
        fs::write(&later, "[2026-01-01T00:00:00] CMD vm=work seq=1000\n").expect("written");
        LogFile::new(&later, None)
            .append(&["[2026-01-01T00:00:00] CMD vm=work".to_owned()], true, || 9)
            .expect("written");
        let text = fs::read_to_string(&later).expect("there");
        fs::write(&later, text.lines().last().expect("a line").to_owned() + "\n").expect("written");
        assert_eq!(faults(&later, &kept), ["none of the heads that the qube has kept is in the log"]);
        // and one that ends too early
        fs::write(dir.path().join("cut"), fs::read_to_string(&all(&path)[0]).expect("there")).expect("written");
        assert!(faults(&dir.path().join("cut"), &kept).iter().any(|fault| fault.contains("is not in the log")));
    }

    #[test]
    fn a_file_that_is_missing_between_others_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        log(&path);
        assert!(all(&path).len() > 3);
        fs::remove_file(dir.path().join("log.1")).expect("removed");
        assert!(faults(&path, &Kept::new()).iter().any(|fault| fault.contains("follows entry")));
    }

    #[test]
    fn what_a_qube_kept_is_read_out_of_its_log_and_the_rest_left() {
        let head = "ab".repeat(32);
        let line = format!("[2026-01-01T00:00:00] DONE id=a exit=0 log=17 head={head}");
        assert_eq!(kept(&line), Some((17, [0xab; 32])));
        for other in ["[…] DONE id=a exit=0", "log=17 head=ab", "log=x head=y", ""] {
            assert_eq!(kept(other), None);
        }
    }

    #[test]
    fn a_view_of_one_qube_is_its_entries() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        log(&path);
        let count = |vm| {
            let mut count = 0;
            entries_of(&path, vm, |_| count += 1).expect("read");
            count
        };
        assert_eq!((count(Some("work")), count(Some("dev")), count(Some("other"))), (10, 10, 0));
        assert!(count(None) > 20);
    }
}
