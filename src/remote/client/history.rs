//! What was asked and what came of it: `audit.log`, and `history/YYYY-MM-DD/ID/` with `out`, `err`, `exit`, `meta`
//! and `command`, as the original has them; within a quota, oldest first out.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use super::home::Home;
use crate::{
    proto::mac::{Digest, hex},
    remote::{clock, files, spool},
};

/// Commands that are kept.
const MOST: usize = 1000;
/// Bytes of output that are kept, of all of them.
const QUOTA: u64 = 256 << 20;

/// The record of one command.
#[derive(Debug)]
pub struct HistoryEntry {
    to: Option<To>,
}

#[derive(Debug)]
struct To {
    home: PathBuf,
    dir: PathBuf,
    id: String,
    started: String,
    began: Instant,
    files: [(Option<File>, usize); 2],
    /// What dom0's log says of the command, as the line of its end has it.
    logged: String,
}

impl HistoryEntry {
    /// Nothing is recorded.
    pub fn none() -> Self {
        Self { to: None }
    }

    /// Begins: a line in the log, a directory in the history.
    ///
    /// # Errors
    /// What the file system says.
    pub fn begin(home: &Home, id: &str, command: &[u8]) -> io::Result<Self> {
        files::private_dir(home.path())?;
        let started = clock::now();
        let dir = home.at("history").join(&started[..10]).join(id);
        files::private_dir(&home.at("history"))?;
        files::private_dir(&home.at("history").join(&started[..10]))?;
        files::private_dir(&dir)?;
        fs::write(dir.join("command"), command)?;
        let shown: Vec<u8> = command.iter().take(100).map(|b| if *b == b'\n' { b' ' } else { *b }).collect();
        let text = crate::log::escape(&shown);
        let line = format!("[{started}] SUBMIT id={id} size={}B cmd={text}", command.len());
        spool::append(&home.at("audit.log"), &line)?;
        let files = ["out", "err"].map(|name| (File::create(dir.join(name)).ok(), 0));
        let to = To {
            home: home.path().to_owned(),
            dir,
            id: id.to_owned(),
            started,
            began: Instant::now(),
            files,
            logged: String::new(),
        };
        Ok(Self { to: Some(to) })
    }

    /// Keeps output (0: standard output, 1: standard error), as much of it as the original kept.
    pub fn keep(&mut self, which: usize, bytes: &[u8]) {
        let Some(to) = &mut self.to else { return };
        let (Some(file), kept) = &mut to.files[which] else { return };
        let room = spool::MAX_OUTPUT.saturating_sub(*kept);
        let part = &bytes[..bytes.len().min(room)];
        let _ = file.write_all(part);
        *kept += part.len();
        if bytes.len() > room {
            let _ = file.write_all(spool::TRUNCATED);
            to.files[which].0 = None;
        }
    }

    /// The command's entry in dom0's log: its number, and the head of the chain behind it. Kept here, so that a log which
    /// somebody edits in dom0 later can be told from the one that was.
    pub fn logged(&mut self, number: u64, head: &Digest) {
        if let Some(to) = &mut self.to {
            to.logged = format!(" log={number} head={}", hex(head));
        }
    }

    /// The command ended with this status.
    pub fn done(&self, status: u8) {
        self.end(status, |id| format!("DONE id={id} exit={status}"));
    }

    /// The command did not end in time.
    pub fn timed_out(&self, seconds: u64) {
        self.end(124, |id| format!("TIMEOUT id={id} after={seconds}s"));
    }

    fn end(&self, status: u8, line: impl Fn(&str) -> String) {
        let Some(to) = &self.to else { return };
        let ms = to.began.elapsed().as_millis();
        let _ = fs::write(to.dir.join("meta"), spool::meta(&to.id, &to.started, ms, status));
        let _ = fs::write(to.dir.join("exit"), status.to_string());
        let _ = spool::append(&to.home.join("audit.log"), &format!("[{}] {}{}", clock::now(), line(&to.id), to.logged));
        // reading the whole history costs more than most commands: one in sixteen does it, and each that wrote much
        let one_in_sixteen = to.id.ends_with("0");
        if one_in_sixteen || to.files.iter().any(|(file, _)| file.is_none()) {
            let _ = prune(&to.home.join("history"));
        }
    }
}

/// Every entry: its id and directory, newest first by name.
pub fn entries(history: &Path) -> Vec<(String, PathBuf)> {
    let mut all = Vec::new();
    for day in fs::read_dir(history).into_iter().flatten().flatten() {
        for entry in fs::read_dir(day.path()).into_iter().flatten().flatten() {
            all.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    all.sort_unstable_by(|a, b| b.0.cmp(&a.0));
    all
}

/// Removes what is beyond the quota, oldest first.
fn prune(history: &Path) -> io::Result<()> {
    let mut bytes = 0;
    for (index, (_, dir)) in entries(history).into_iter().enumerate() {
        let size = |name: &str| fs::symlink_metadata(dir.join(name)).map_or(0, |m| m.len());
        bytes += size("out") + size("err") + size("command");
        if index >= MOST || bytes > QUOTA {
            fs::remove_dir_all(&dir)?;
            if let Some(day) = dir.parent() {
                let _ = fs::remove_dir(day); // when it was the last of its day
            }
        }
    }
    Ok(())
}

/// The table of the last `count` commands, as the original shows it.
pub fn table(history: &Path, count: usize) -> String {
    let all = entries(history);
    if all.is_empty() {
        return "No command history yet.\n".to_owned();
    }
    let row = |id: &str, exit: &str, duration: &str, command: &str| {
        format!("{id:<30} {exit:<6} {duration:<10} {command}").trim_end().to_owned() + "\n"
    };
    let mut text = row("ID", "EXIT", "DURATION", "COMMAND");
    text += &row(&"-".repeat(30), &"-".repeat(6), &"-".repeat(10), &"-".repeat(7));
    for (id, dir) in all.into_iter().take(count) {
        let read =
            |name: &str| files::read(&dir.join(name), 2 << 20).ok().map(|b| String::from_utf8_lossy(&b).into_owned());
        let exit = read("exit").map_or_else(|| "-".into(), |t| t.trim().to_owned());
        let meta = read("meta").unwrap_or_default();
        let ms = meta.lines().find_map(|line| line.strip_prefix("duration_ms="));
        let duration = ms.map_or_else(|| "-".into(), |ms| format!("{ms}ms"));
        let command: String =
            read("command").unwrap_or_else(|| "-".into()).replace('\n', " ").chars().take(50).collect();
        text +=
            &row(&crate::log::escape(id.as_bytes()), &exit, &duration, &crate::log::escape(command.trim().as_bytes()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_the_originals_and_keeps_within_its_quota() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home(dir.path().join(".qvm-remote"));
        assert_eq!(table(&home.at("history"), 10), "No command history yet.\n");
        let mut record = HistoryEntry::begin(&home, "20251120-101500-1-00000000", b"echo a\n\x1b[31m").expect("begun");
        record.keep(0, b"a\n");
        record.done(0);
        let (id, entry) = entries(&home.at("history")).remove(0);
        assert_eq!(id, "20251120-101500-1-00000000");
        for (name, text) in [("out", "a\n"), ("err", ""), ("exit", "0"), ("command", "echo a\n\x1b[31m")] {
            assert_eq!(fs::read_to_string(entry.join(name)).expect(name), text);
        }
        let shown = table(&home.at("history"), 10);
        assert!(shown.starts_with("ID                             EXIT   DURATION   COMMAND\n"), "{shown}");
        assert!(
            shown.lines().nth(2).is_some_and(|l| l.contains(" 0      ") && l.ends_with("echo a \\x1b[31m")),
            "{shown}"
        );
        let log = fs::read_to_string(home.at("audit.log")).expect("there");
        assert!(log.contains("] SUBMIT id=20251120-101500-1-00000000 size=12B cmd=echo a \\x1b[31m\n"), "{log}");
        assert!(log.contains("] DONE id=20251120-101500-1-00000000 exit=0\n"), "{log}");
        for n in 0..1010 {
            fs::create_dir_all(home.at("history/2020-01-01").join(format!("20200101-{n:04}"))).expect("made");
        }
        prune(&home.at("history")).expect("pruned");
        assert_eq!(entries(&home.at("history")).len(), MOST);
        assert!(entry.exists(), "the newest is kept");
    }
}
