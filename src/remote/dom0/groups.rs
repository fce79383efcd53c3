//! The control groups of commands: `qube-NAME/command-N` below qvm-remote-dom0-commands.service, one for each command,
//! so that what a command started is found and ended by `cgroup.kill`, however it daemonised.
//!
//! A command that has ended and left processes in the background gets a mark: an empty group `left-UNTIL-ID` below its
//! own, with the moment when its time is over (seconds since 1970, or `never`) and the id of its request. So the next
//! daemon, and the keeper of the unit ([`super::keep`]), tell what may go on from what nobody answers for any more: a
//! group without a mark after a crash is ended.
//!
//! Outside systemd, and where that unit does not run, commands live below the daemon's own group when the manager left
//! it to the daemon, and there the stop of the daemon ends them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    proto::{qube::valid_vm, remote::valid_id},
    sys::proc,
    systemd::unit,
};

/// The unit that holds the commands.
pub(super) const UNIT: &str = "qvm-remote-dom0-commands.service";

/// Groups in groups that a command has made are removed as deep as this; the path of a deeper one is no path
/// (PATH_MAX).
const DEPTH: usize = 2048;
/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(2);

/// The groups below which the commands of all qubes live.
#[derive(Clone, Debug)]
pub(super) struct CommandGroups {
    /// Of the unit for commands; it may come and go.
    unit: PathBuf,
    /// Of the daemon.
    own: PathBuf,
}

/// What a command left when it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) vm: String,
    pub(super) id: String,
    /// When its time is over.
    pub(super) until: Option<SystemTime>,
    pub(super) group: CommandGroup,
}

/// The group of one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommandGroup(PathBuf);

impl CommandGroups {
    /// Of the daemon: those of the unit for commands, else the daemon's own; `None` outside systemd.
    pub(super) fn of_daemon() -> Option<Self> {
        let own = unit::delegated_group()?;
        Some(Self { unit: own.parent()?.join(UNIT), own })
    }

    /// Of the unit's own process.
    pub(super) fn of_keeper() -> Option<Self> {
        unit::delegated_group().map(|own| Self { unit: own.clone(), own })
    }

    /// Of the unit for commands, for a process that is in neither unit; `None` where that unit does not run.
    fn of_nobody() -> Option<Self> {
        let unit = proc::unified_hierarchy()?.join("system.slice").join(UNIT);
        unit.is_dir().then(|| Self { unit: unit.clone(), own: unit })
    }

    /// Ends everything of a qube; how many commands had a process left.
    fn end(&self, vm: &str) -> io::Result<usize> {
        let of_qube = self.all().into_iter().filter(|(qube, ..)| qube == vm).map(|(_, _, group)| group);
        let groups: Vec<CommandGroup> = of_qube.filter(CommandGroup::populated).collect();
        groups.iter().for_each(CommandGroup::kill);
        let until = Instant::now() + GONE;
        while groups.iter().any(CommandGroup::populated) {
            if Instant::now() > until {
                return Err(io::Error::other("its processes do not end"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(groups.len())
    }

    /// Makes the group of a command.
    pub(super) fn make(&self, vm: &str, number: u64) -> io::Result<CommandGroup> {
        let (qube, command) = (format!("qube-{vm}"), format!("command-{number}"));
        // the unit's own group is the manager's to make
        let root = if self.unit.is_dir() { &self.unit } else { &self.own };
        let qube = root.join(qube);
        match fs::create_dir(&qube) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let dir = qube.join(command);
        fs::create_dir(&dir)?;
        Ok(CommandGroup(dir))
    }

    /// The groups of all commands, with the names of their qubes and their numbers.
    fn all(&self) -> Vec<(String, u64, CommandGroup)> {
        let roots = if self.unit == self.own { vec![&self.unit] } else { vec![&self.unit, &self.own] };
        let mut all = Vec::new();
        for dir in roots.into_iter().flat_map(|root| names(root).into_iter().map(move |name| (root.join(&name), name)))
        {
            let Some(vm) = dir.1.strip_prefix("qube-").filter(|vm| valid_vm(vm)) else { continue };
            for command in names(&dir.0) {
                if let Some(number) = command.strip_prefix("command-").and_then(|n| n.parse().ok()) {
                    all.push((vm.to_owned(), number, CommandGroup(dir.0.join(&command))));
                }
            }
        }
        all
    }

    /// What commands have left in the background; groups without processes are removed.
    pub(super) fn left(&self) -> Vec<Left> {
        let left = |(vm, _, group): (String, u64, CommandGroup)| {
            if group.remove() {
                return None;
            }
            let (until, id) = group.mark()?;
            Some(Left { vm, id, until, group })
        };
        self.all().into_iter().filter_map(left).collect()
    }

    /// The groups of commands that have not ended: a daemon runs them, or has crashed.
    pub(super) fn unfinished(&self) -> Vec<CommandGroup> {
        let groups = self.all().into_iter().map(|(_, _, group)| group);
        groups.filter(|group| !group.remove() && group.mark().is_none()).collect()
    }

    /// The highest number of a command.
    pub(super) fn last_number(&self) -> u64 {
        self.all().iter().map(|(_, number, _)| *number).max().unwrap_or(0)
    }
}

/// Ends what the commands of a qube have left in the background, where no daemon answers; how many commands had left
/// any.
///
/// # Errors
/// When processes are left.
pub fn end_without_daemon(vm: &str) -> io::Result<usize> {
    CommandGroups::of_nobody().map_or(Ok(0), |groups| groups.end(vm))
}

impl CommandGroup {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Whether a process is in it.
    pub(super) fn populated(&self) -> bool {
        fs::read_to_string(self.0.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
    }

    /// Notes that the command has ended, and how long what is left may go on.
    pub(super) fn leave(&self, id: &str, until: Option<SystemTime>) -> io::Result<()> {
        let seconds = until.and_then(|until| until.duration_since(SystemTime::UNIX_EPOCH).ok());
        let until = seconds.map_or_else(|| "never".to_owned(), |since| since.as_secs().to_string());
        fs::create_dir(self.0.join(format!("left-{until}-{id}")))
    }

    /// The mark of [`leave`](Self::leave): until when, and the id.
    fn mark(&self) -> Option<(Option<SystemTime>, String)> {
        names(&self.0).iter().find_map(|name| {
            let (until, id) = name.strip_prefix("left-")?.split_once('-')?;
            let until = match until {
                "never" => None,
                seconds => Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.parse().ok()?)),
            };
            valid_id(id).then(|| (until, id.to_owned()))
        })
    }

    /// Ends every process in it (cgroup.kill, Linux 5.14; before that one by one).
    pub(super) fn kill(&self) {
        if fs::write(self.0.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for _ in 0..50 {
            let procs = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            let pids: Vec<i32> = procs.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect();
            if pids.is_empty() {
                return;
            }
            pids.into_iter().for_each(|pid| _ = kill(Pid::from_raw(pid), Signal::SIGKILL));
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Removes it, with its mark, when no process is in it; whether it is gone.
    pub(super) fn remove(&self) -> bool {
        if self.populated() {
            return false;
        }
        remove_below(&self.0, DEPTH);
        match fs::remove_dir(&self.0) {
            Ok(()) => {
                // the qube's own, when this was the last one
                let _ = self.0.parent().map(fs::remove_dir);
                true
            }
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// Removes the groups in one, the deepest first. No process is in them.
fn remove_below(dir: &Path, depth: usize) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let dirs: Vec<PathBuf> = dirs.map(|entry| entry.path()).collect(); // no descriptor stays open for a level
    for dir in dirs.iter().filter(|_| depth > 0) {
        remove_below(dir, depth - 1);
        let _ = fs::remove_dir(dir);
    }
}

/// The names of the groups in one, those that are text.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    use super::*;

    /// A directory plays the hierarchy: the test is about which processes belong to which group.
    fn populate(group: &CommandGroup) {
        fs::write(group.path().join("cgroup.events"), "populated 1\nfrozen 0\n").expect("written");
    }

    #[test]
    fn what_a_command_left_is_told_from_what_nobody_answers_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let groups = CommandGroups { unit: dir.path().to_owned(), own: dir.path().to_owned() };
        let [running, left, timed, empty] = [1, 2, 3, 4].map(|n| groups.make("work", n).expect("made"));
        [&running, &left, &timed].into_iter().for_each(populate);
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        left.leave("20251120-1-2", None).expect("marked");
        timed.leave("b", Some(until)).expect("marked");
        assert_eq!(groups.last_number(), 4);
        assert_eq!(groups.unfinished(), std::slice::from_ref(&running));
        assert!(!empty.path().exists(), "nobody was in it");
        let mut found = groups.left();
        found.sort_by_key(|left| left.group.path().to_owned());
        let of = |id: &str, until, group: &CommandGroup| Left {
            vm: "work".into(),
            id: id.into(),
            until,
            group: group.clone(),
        };
        assert_eq!(found, [of("20251120-1-2", None, &left), of("b", Some(until), &timed)]);
    }

    #[test]
    fn groups_that_a_command_made_within_its_own_are_removed_with_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let groups = CommandGroups { unit: dir.path().to_owned(), own: dir.path().to_owned() };
        let group = groups.make("work", 1).expect("made");
        fs::create_dir_all(group.path().join("a/b/c")).expect("made");
        fs::create_dir_all(group.path().join(OsStr::from_bytes(b"no text \xff")).join("d")).expect("made");
        assert!(group.remove() && !group.path().exists());
        assert_eq!(groups.unfinished(), []);
    }

    #[test]
    fn names_that_no_qube_and_no_request_can_have_are_nobodys() {
        let dir = tempfile::tempdir().expect("a directory");
        let groups = CommandGroups { unit: dir.path().to_owned(), own: dir.path().to_owned() };
        for name in ["qube-../x", "qube-a b/command-1", "qube-work/command-x", "x/command-1"] {
            let _ = fs::create_dir_all(dir.path().join(name));
        }
        let group = groups.make("work", 7).expect("made");
        populate(&group);
        fs::create_dir(group.path().join("left-soon-a")).expect("made");
        fs::create_dir(group.path().join("left-5-..x")).expect("made");
        assert_eq!((groups.left(), groups.unfinished()), (Vec::new(), vec![group]));
    }
}
