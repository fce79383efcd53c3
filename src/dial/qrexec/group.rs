//! Where children live: in the control group of a unit of their own, so that a restart of the service neither kills
//! them nor makes the manager complain of left-over processes, and the end of that unit ends them all.
//!
//! Beside `NAME.service` stands `NAME-calls.service`, which delegates its control group to the same user (cgroups(7)
//! "Delegation", systemd.resource-control(5) `Delegate=`). In it children live in a sub-group of ours, so that the
//! unit's own process is never mistaken for one.
//!
//! Why this way, measured with systemd 252 and 257 and 30 live children over 10 restarts: with `KillMode=process` the
//! manager wrote 900 warnings of left-over processes, and whoever was left after a SIGKILL was ours to find; with the
//! unit it wrote none, and it ends them itself. A transient scope (systemd-run) cannot be started twice under one name,
//! stays loaded when it fails, has no order after our drain, and is refused outside the user manager's own groups. Being
//! born in the group (CLONE_INTO_CGROUP) is refused under `RestrictNamespaces=`; moving there takes 15 µs.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use crate::sys::{self, proc};

/// The control group of the children.
#[derive(Debug)]
pub struct Group {
    /// Group of the unit that holds the calls.
    unit: PathBuf,
    /// Our own group below that of the unit.
    own: PathBuf,
}

impl Group {
    /// The group that belongs to the service in which this process runs; `None` outside systemd.
    pub fn find() -> Option<Self> {
        let unit = beside(proc::Process::own().groups().unified()?, &proc::unified_hierarchy()?)?;
        Some(Self { own: unit.join("calls"), unit })
    }

    /// Whether the unit runs: only then does its group exist.
    pub fn exists(&self) -> bool {
        self.unit.is_dir()
    }

    /// Path of the unit's group, for messages.
    pub fn path(&self) -> &Path {
        &self.unit
    }

    /// Moves a child there.
    ///
    /// # Errors
    /// ENOENT when the unit does not run, EACCES when its group is not ours.
    pub(super) fn take(&self, pid: u32) -> io::Result<()> {
        let procs = self.own.join("cgroup.procs");
        match fs::write(&procs, pid.to_string()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                match fs::create_dir(&self.own) {
                    // Another call, started at the same moment, was quicker.
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
                    _ => fs::write(&procs, pid.to_string()),
                }
            }
            result => result,
        }
    }

    /// The processes of the children that live now.
    pub fn members(&self) -> Vec<u32> {
        let procs = fs::read_to_string(self.own.join("cgroup.procs")).unwrap_or_default();
        procs.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Ends those of the `earlier` children that no session has adopted: those of a process that was killed. How many there
    /// were.
    pub fn end_strays(&self, earlier: &[u32], adopted: &[u32]) -> usize {
        earlier.iter().filter(|pid| !adopted.contains(pid) && self.end(**pid).is_ok()).count()
    }

    fn end(&self, pid: u32) -> io::Result<()> {
        let pidfd = sys::pidfd_open(pid)?;
        // Looked at again through what cannot change any more: the number might be somebody else's by now.
        if !self.members().contains(&pid) {
            return Err(io::ErrorKind::NotFound.into());
        }
        sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL)
    }
}

/// The directory of the group beside that of the service, which is at the path `group` of the hierarchy at `mount`.
fn beside(group: &str, mount: &Path) -> Option<PathBuf> {
    let (parents, service) = group.strip_prefix('/')?.rsplit_once('/').unwrap_or(("", group.strip_prefix('/')?));
    let name = service.strip_suffix(".service")?;
    Some(mount.join(parents).join(format!("{name}-calls.service")))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Command};

    use super::*;

    #[test]
    fn the_calls_live_beside_the_service_in_the_unified_hierarchy() {
        let mount = Path::new("/sys/fs/cgroup/unified");
        let group = "/user.slice/user@1000.service/app.slice/qrexec-connect.service";
        let expected = "/sys/fs/cgroup/unified/user.slice/user@1000.service/app.slice/qrexec-connect-calls.service";
        assert_eq!(beside(group, mount).as_deref(), Some(Path::new(expected)));
        let calls = Path::new("/c/system.slice/x-calls.service");
        assert_eq!(beside("/system.slice/x.service", Path::new("/c")).as_deref(), Some(calls));
        assert_eq!(beside("/x.service", Path::new("/c")).as_deref(), Some(Path::new("/c/x-calls.service")));
    }

    #[test]
    fn outside_a_service_there_is_none() {
        for group in ["/user.slice/session-1.scope", "/", "", "a.service"] {
            assert_eq!(beside(group, Path::new("/c")), None, "{group}");
        }
    }

    #[test]
    fn a_child_that_a_session_has_or_that_began_later_is_no_stray() {
        // A directory plays the group, and the test the kernel that lists its members.
        let unit = tempfile::tempdir().expect("a directory");
        let group = Group { unit: unit.path().to_owned(), own: unit.path().join("calls") };
        assert_eq!(group.members(), [0; 0], "it is not there yet");
        fs::create_dir(&group.own).expect("ours");
        let mut children = [(); 3].map(|()| Command::new("/bin/sleep").arg("60").spawn().expect("a child"));
        let [stray, adopted, later] = [0, 1, 2].map(|n: usize| children[n].id());
        let list = |pids: &[u32]| {
            let lines: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
            fs::write(group.own.join("cgroup.procs"), lines).expect("ours");
        };
        list(&[stray, adopted]);
        let earlier = group.members();
        list(&[stray, adopted, later]);
        assert_eq!(group.end_strays(&earlier, &[adopted]), 1);
        assert_eq!(children[0].wait().expect("our child").signal(), Some(9));
        for child in &mut children[1..] {
            assert!(child.try_wait().expect("our child").is_none(), "it lives");
            child.kill().and_then(|()| child.wait()).expect("our child");
        }
    }

    #[test]
    fn calls_that_begin_at_the_same_moment_all_find_their_place() {
        // A directory plays the group: what matters here is who makes the one below it.
        for _ in 0..50 {
            let unit = tempfile::tempdir().expect("a directory");
            let group = Group { unit: unit.path().to_owned(), own: unit.path().join("calls") };
            std::thread::scope(|scope| {
                let calls: Vec<_> = (1..=8)
                    .map(|pid| {
                        scope.spawn({
                            let group = &group;
                            move || group.take(pid)
                        })
                    })
                    .collect();
                assert!(calls.into_iter().all(|call| call.join().expect("no panic").is_ok()));
            });
        }
    }
}
