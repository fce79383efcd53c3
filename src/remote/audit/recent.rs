//! What each qube has written into the log in the last day, read from the log itself when the daemon starts: a restart
//! gives no qube a new quota.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
};

use super::{
    chain::LogLine,
    logfile::{LONGEST, all},
    quota::Use,
};
use crate::remote::files;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// Bytes of the quota of a qube that are still used: those of runs and those of refusals.
pub(super) type Used = HashMap<String, [f64; 2]>;

/// What is still used at `now`, a time as the log has it: the bytes of each entry, less what of them has come back since.
pub(super) fn used(path: &Path, now: &str) -> Used {
    let mut used = Used::new();
    let Some(now) = seconds(now) else { return used };
    for file in all(path).iter().rev() {
        let Ok(file) = files::open(file) else { continue };
        let (mut lines, mut line, mut first) = (BufReader::new(file), Vec::new(), None);
        loop {
            line.clear();
            // a longer line was not written by this program: its parts are no entries
            match lines.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let Some((age, vm, kind)) = entry(&line, now) else { continue };
            first.get_or_insert(age);
            if age < DAY {
                let part = 1.0 - age.max(0) as f64 / DAY as f64;
                used.entry(vm.to_owned()).or_default()[usize::from(kind == Use::Refusal)] += line.len() as f64 * part;
            }
        }
        if first.is_some_and(|age| age >= DAY) {
            break; // what is older is a day old
        }
    }
    used
}

/// The age of an entry in seconds, the qube that it is about, and which quota it was taken from.
fn entry(line: &[u8], now: i64) -> Option<(i64, &str, Use)> {
    let line = LogLine::parse(std::str::from_utf8(line).ok()?.trim_end_matches('\n'))?;
    let (time, rest) = line.text.strip_prefix('[')?.split_once("] ")?;
    let mut words = rest.split(' ');
    let (category, vm) = (words.next()?, words.next()?.strip_prefix("vm=")?);
    let refusals = ["AUTH-FAIL", "AUTH-DENY", "POLICY", "REJECT", "REPLAY", "DENY"];
    let kind = if refusals.contains(&category) { Use::Refusal } else { Use::Run };
    Some((now - seconds(time)?, vm, kind))
}

/// Seconds of a local time as the log writes it, counted without its zone: good for differences, but for the hour in
/// which the clock is changed.
fn seconds(time: &str) -> Option<i64> {
    let mut numbers = time.split(['-', 'T', ':']).map(|part| part.parse::<i64>().ok());
    let mut next = || numbers.next().flatten();
    let (year, month, day) = (next()?, next()?, next()?);
    let (hour, minute, second) = (next()?, next()?, next()?);
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // days since 1 March of the year 0 (each year begins with March, so that a leap day is the last one)
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::logfile::LogFile, *};

    #[test]
    fn times_differ_by_their_seconds() {
        let between = |a: &str, b: &str| Some(seconds(b)? - seconds(a)?);
        for (a, b, wanted) in [
            ("2025-12-31T23:59:58", "2026-01-01T00:00:01", 3),
            ("2024-02-28T12:00:00", "2024-03-01T12:00:00", 2 * DAY),
            ("2026-02-28T12:00:00", "2026-03-01T12:00:00", DAY),
            ("2026-07-30T00:00:00", "2026-08-01T00:00:00", 2 * DAY),
        ] {
            assert_eq!(between(a, b), Some(wanted), "{a} {b}");
        }
        assert_eq!([seconds("now"), seconds("2026-13-01T00:00:00"), seconds("2026-01-01T00:00")], [None; 3]);
    }

    #[test]
    fn entries_of_the_last_day_count_for_their_qube_and_the_older_the_less() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut log = LogFile::new(&path, Some(200)); // a file for each two entries
        for entry in [
            "[2026-01-01T00:00:00] CMD vm=work id=a cmd=x",
            "[2026-01-02T11:59:59] CMD vm=work id=b cmd=x",
            "[2026-01-02T12:00:01] CMD vm=work id=c cmd=x",
            "[2026-01-03T00:00:00] DENY vm=work id=d denied cmd=x",
            "[2026-01-03T12:00:00] CMD vm=dev id=e cmd=x",
            "[2026-01-03T12:00:00] INFO start",
        ] {
            log.append(&[entry.to_owned()], false, || 99).expect("written");
        }
        assert!(all(&path).len() > 2);
        let used = used(&path, "2026-01-03T12:00:00");
        let bytes = "[2026-01-03T12:00:00] CMD vm=dev id=e cmd=x head= seq=9\n".len() as f64 + 64.0;
        let near = |have: f64, wanted: f64| (have - wanted).abs() < 8.0;
        let [run, refusal] = used["work"];
        assert!(near(run, 0.0) && near(refusal, (bytes + 8.0) / 2.0), "{used:?}");
        assert!(near(used["dev"][0], bytes) && used["dev"][1] == 0.0 && used.len() == 2, "{used:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, time: String) {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("log");
            std::fs::write(&path, &bytes).expect("written");
            let _ = (used(&path, &time), used(&path, "2026-01-03T12:00:00"));
        }
    }
}
