//! What outlives a process of the service: whose invocation of a unit runs, and since when nobody uses it.
//!
//! Pure but for [`read`], [`write`] and [`remove`].

use std::{collections::VecDeque, fs, io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};

use super::look::Look;
use crate::{spec::Upstream, sys::file};

/// How many starts the median is of.
const STARTS: usize = 9;
/// More than that was not written by us, in bytes.
const LIMIT: u64 = 64 << 10;

/// An invocation of a unit, as systemd counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Invocation {
    pub id: String,
    /// NRestarts.
    pub restarts: u64,
}

/// What is kept of a unit. Fields are added with a default, and ignored by older readers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitKept {
    pub unit: String,
    /// The invocation that our own start brought about.
    pub ours: Option<Invocation>,
    /// While a start of ours is under way: the InvocationID from before it.
    pub starting: Option<String>,
    /// The invocation that a stop of ours was queued for, until that is done.
    pub stopping: Option<String>,
    /// Since when no session uses the unit, in milliseconds of CLOCK_BOOTTIME.
    pub idle_since_ms: Option<u64>,
    /// How long it may be idle, in milliseconds; `None`: for ever.
    pub stop_when_idle_ms: Option<u64>,
    /// How long the last starts took, until the unit answered, in milliseconds.
    pub starts_ms: VecDeque<u64>,
    /// MemoryCurrent before the last stop, in bytes.
    pub memory_before_stop: Option<u64>,
    /// Where the listeners lead that name the unit, and those that named it while it was ours: a foreign connection to
    /// one of these keeps the unit, also when the configuration has changed since.
    pub targets: Vec<Upstream>,
}

/// Whose the invocation is that runs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Ours,
    /// Somebody else started it.
    Foreign,
    /// It is between two halves of a `Restart=`: the next look tells.
    Between,
    /// None runs.
    Nobodys,
}

impl UnitKept {
    /// Whether a stop of this unit may become ours to do.
    pub fn may_be_ours(&self) -> bool {
        self.ours.is_some() || self.starting.is_some()
    }

    /// Whether the invocation of this look is that of ours, or one that `Restart=` made of it: then NRestarts grew,
    /// which begins at 0 when anybody starts the unit.
    fn continues(&self, look: &Look) -> bool {
        let Some(ours) = &self.ours else { return false };
        !look.invocation.is_empty() && (look.invocation == ours.id || look.restarts > ours.restarts)
    }

    fn take(&mut self, look: &Look) {
        self.ours = Some(Invocation { id: look.invocation.clone(), restarts: look.restarts });
    }

    /// A start of ours follows this look. To be written before the start.
    pub fn before_start(&mut self, look: &Look) {
        // The job of somebody else, such as the restart whose first half stops the unit, begins what our start joins.
        let joins = look.job && self.starting.is_none() && self.stopping.as_ref() != Some(&look.invocation);
        // A stop of ours may be queued: the unit is active still, and our start gives it another invocation.
        let follows = look.state.is_down() || self.continues(look);
        let makes_one = if look.between { self.may_be_ours() } else { follows && !joins };
        self.starting = makes_one.then(|| look.invocation.clone());
    }

    /// A start of ours was done before this look.
    pub fn after_start(&mut self, look: &Look) {
        if look.between {
            return; // the next look tells
        }
        let changed = self.starting.take().is_some_and(|before| look.invocation != before);
        match !look.invocation.is_empty() && (changed || self.continues(look)) {
            true => self.take(look),
            false => self.ours = None,
        }
    }

    /// Whose the invocation of this look is; it stays so until the next one.
    pub fn seen(&mut self, look: &Look) -> Whose {
        if !look.job || self.stopping.as_ref() != Some(&look.invocation) {
            self.stopping = None;
        }
        if look.between {
            return Whose::Between;
        }
        let changed =
            self.starting.as_ref().is_some_and(|before| !look.invocation.is_empty() && look.invocation != *before);
        if changed || self.continues(look) {
            self.take(look);
            // A start of ours may wait in the queue until the end of this invocation.
            if changed || !(look.job || look.state.is_down()) {
                self.starting = None;
            }
        } else if !look.state.is_down() {
            self.ours = None;
        }
        // What begins after an end, or after another's invocation, is no `Restart=` of ours, whatever NRestarts says.
        if look.has_ended() {
            self.ours = None;
        }
        let ours = self.ours.as_ref().is_some_and(|ours| ours.id == look.invocation);
        match (look.state.is_down(), ours) {
            (true, _) => Whose::Nobodys,
            (false, true) => Whose::Ours,
            (false, false) => Whose::Foreign,
        }
    }

    /// Nothing of it is ours any more.
    pub fn forget(&mut self) {
        (self.ours, self.starting, self.idle_since_ms) = (None, None, None);
    }

    pub fn stop_when_idle(&self) -> Option<Duration> {
        self.stop_when_idle_ms.map(Duration::from_millis)
    }

    /// Notes how long a start took.
    pub fn started_in(&mut self, time: Duration) {
        self.starts_ms.truncate(STARTS - 1);
        self.starts_ms.push_front(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    pub fn last_start(&self) -> Option<Duration> {
        self.starts_ms.front().copied().map(Duration::from_millis)
    }

    pub fn median_start(&self) -> Option<Duration> {
        let mut sorted: Vec<u64> = self.starts_ms.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().map(Duration::from_millis)
    }
}

/// Everything that lies in a directory. What cannot be read says nothing.
pub fn read(directory: &Path) -> Vec<UnitKept> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| -> Option<UnitKept> {
        let kept: UnitKept = serde_json::from_slice(&file::read(&entry.path(), LIMIT).ok()?).ok()?;
        (entry.file_name().to_str() == Some(kept.unit.as_str())).then_some(kept)
    };
    entries.filter_map(read).collect()
}

/// Leaves it in the directory, whole or not at all.
///
/// # Errors
/// What the file system says.
pub fn write(directory: &Path, kept: &UnitKept) -> io::Result<()> {
    match fs::create_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    file::replace(&directory.join(&kept.unit), 0o600, &serde_json::to_vec(kept)?)
}

/// The service stops: the next start begins again.
pub fn remove(directory: &Path) {
    let _ = fs::remove_dir_all(directory);
}

#[cfg(test)]
mod tests {
    use super::{super::look::UnitState, *};

    fn look(state: UnitState, id: &str, restarts: u64) -> Look {
        Look { state, invocation: id.into(), restarts, ..Look::default() }
    }

    #[test]
    fn a_start_that_waits_behind_a_stop_of_ours_makes_an_invocation_of_ours_whoever_looks_meanwhile() {
        use UnitState::{Active, Deactivating};
        let stops = Look { job: true, ..look(Deactivating, "b", 0) };
        let mut kept = started();
        kept.stopping = Some("b".into());
        kept.before_start(&stops);
        // the process is killed, and the next one looks before the stop is done
        assert_eq!(kept.seen(&stops), Whose::Nobodys);
        assert_eq!(kept.seen(&look(Active, "c", 0)), Whose::Ours);
        // a start of a unit that runs makes none
        let mut kept = started();
        kept.before_start(&look(Active, "b", 0));
        assert_eq!(kept.seen(&look(Active, "b", 0)), Whose::Ours);
        assert_eq!(kept.seen(&look(Active, "c", 0)), Whose::Foreign);
    }

    fn started() -> UnitKept {
        let mut kept = UnitKept::default();
        kept.before_start(&look(UnitState::Inactive, "a", 0));
        kept.after_start(&look(UnitState::Active, "b", 0));
        kept
    }

    #[test]
    fn an_invocation_is_ours_when_our_start_or_a_restart_of_it_made_it() {
        use UnitState::{Activating, Active, Failed, Inactive};
        assert_eq!(started().seen(&look(Active, "b", 0)), Whose::Ours);
        assert_eq!(started().seen(&look(Active, "c", 0)), Whose::Foreign, "systemctl restart");
        assert_eq!(started().seen(&look(Active, "c", 1)), Whose::Ours, "Restart=");
        assert_eq!(started().seen(&look(Failed, "b", 0)), Whose::Nobodys);
        let mut kept = started();
        assert_eq!(kept.seen(&Look { between: true, ..look(Activating, "", 0) }), Whose::Between);
        assert_eq!(kept.seen(&look(Active, "c", 1)), Whose::Ours, "after a look between the two halves");
        let mut kept = UnitKept::default();
        kept.before_start(&look(Active, "x", 0));
        kept.after_start(&look(Active, "x", 0));
        assert_eq!(kept.seen(&look(Active, "x", 0)), Whose::Foreign, "somebody had started it");
        let mut kept = UnitKept::default();
        kept.before_start(&look(Inactive, "", 0));
        assert_eq!(kept.seen(&look(Inactive, "", 0)), Whose::Nobodys, "the start has not begun");
        assert!(kept.may_be_ours());
        assert_eq!(kept.seen(&look(Activating, "b", 0)), Whose::Ours, "we died during the start");
    }

    #[test]
    fn a_start_that_joins_what_somebody_else_began_makes_nothing_ours() {
        use UnitState::{Activating, Active, Deactivating};
        let mut kept = UnitKept::default();
        let between = Look { between: true, ..look(Activating, "x", 1) };
        assert_eq!(kept.seen(&between), Whose::Between);
        kept.before_start(&between);
        kept.after_start(&look(Active, "y", 1));
        assert_eq!(kept.seen(&look(Active, "y", 1)), Whose::Foreign, "Restart= of a foreign one");

        let stops = Look { job: true, ..look(Deactivating, "b", 0) };
        let mut kept = started();
        kept.seen(&stops);
        kept.before_start(&stops);
        kept.after_start(&look(Active, "c", 0));
        assert_eq!(kept.seen(&look(Active, "c", 0)), Whose::Foreign, "the stop half of systemctl restart");

        let mut kept = UnitKept { stopping: Some("b".into()), ..started() };
        kept.seen(&stops);
        kept.before_start(&stops);
        kept.after_start(&look(Active, "c", 0));
        assert_eq!(kept.seen(&look(Active, "c", 0)), Whose::Ours, "a stop of ours");
        assert_eq!(kept.stopping, None);
    }

    #[test]
    fn a_restart_of_what_somebody_started_later_is_not_ours() {
        use UnitState::{Active, Deactivating, Failed, Inactive};
        for end in [Inactive, Failed] {
            let mut kept = started();
            assert_eq!(kept.seen(&look(end, "b", 0)), Whose::Nobodys);
            assert_eq!(kept.seen(&look(Active, "d", 1)), Whose::Foreign, "after {end:?}");
        }
        let mut kept = started();
        assert_eq!(kept.seen(&look(Active, "c", 0)), Whose::Foreign, "systemctl restart");
        assert_eq!(kept.seen(&look(Active, "d", 1)), Whose::Foreign, "Restart= of that");
        let mut kept = started();
        assert_eq!(kept.seen(&look(Deactivating, "b", 0)), Whose::Nobodys);
        assert_eq!(kept.seen(&look(Active, "c", 1)), Whose::Ours, "the first half of Restart= was seen");
    }

    #[test]
    fn a_queued_stop_of_ours_makes_the_next_invocation_ours_too() {
        let mut kept = started();
        kept.before_start(&look(UnitState::Active, "b", 0));
        let mut crashed = kept.clone();
        kept.after_start(&look(UnitState::Active, "c", 0));
        assert_eq!(kept.seen(&look(UnitState::Active, "c", 0)), Whose::Ours);
        assert_eq!(crashed.seen(&look(UnitState::Active, "c", 0)), Whose::Ours);
    }

    #[test]
    fn what_is_written_is_read_back_and_rubbish_says_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let directory = dir.path().join("on-demand");
        assert_eq!(read(&directory), []);
        let kept = UnitKept { unit: "x.service".into(), stop_when_idle_ms: Some(7), ..started() };
        write(&directory, &kept).expect("it is written");
        fs::write(directory.join("y.service"), "{\"unit\":\"x.service\"}").expect("ours");
        fs::write(directory.join("z.service"), "{").expect("ours");
        assert_eq!(read(&directory), [kept]);
        let older = r#"{"unit":"x.service","ours":{"id":"b","of a later version":1},"also":2}"#;
        fs::write(directory.join("x.service"), older).expect("ours");
        assert_eq!(read(&directory)[0].ours, Some(Invocation { id: "b".into(), restarts: 0 }));
        remove(&directory);
        assert_eq!(read(&directory), []);
    }

    #[test]
    fn the_median_is_of_the_last_nine_starts() {
        let mut kept = UnitKept::default();
        assert_eq!((kept.last_start(), kept.median_start()), (None, None));
        (1..=20).for_each(|s| kept.started_in(Duration::from_secs(s)));
        assert_eq!(kept.last_start(), Some(Duration::from_secs(20)));
        assert_eq!(kept.median_start(), Some(Duration::from_secs(16)));
        assert_eq!(kept.starts_ms.len(), STARTS);
    }
}
