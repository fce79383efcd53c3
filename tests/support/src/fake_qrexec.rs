//! The fake `qrexec-client-vm` as a test uses it: a directory with the program under its real name, and the journal
//! of its calls. What the services do is listed in `tests/fakes/qrexec_client_vm.rs`.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{eventually, example};

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub pid: i32,
    /// Time since the boot, in steps of 10 ms.
    pub at: Duration,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The words of the call (blanks and the like as `\xNN`).
    Start {
        target: String,
        service: String,
    },
    Connected,
    /// SIGTERM came.
    Terminated,
    /// The exit code, and the bytes that it read on fd 0 and from the service.
    End {
        code: i32,
        up_bytes: u64,
        down_bytes: u64,
    },
}

/// A place for one test, or the one of a tree in which the fake is installed.
pub struct FakeQrexec {
    dir: PathBuf,
    _removed_at_the_end: Option<tempfile::TempDir>,
}

impl FakeQrexec {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the test");
        symlink(example("fake-qrexec-client-vm"), dir.path().join("qrexec-client-vm")).expect("the directory is new");
        File::create(dir.path().join("calls.log")).expect("the directory is new");
        Self { dir: dir.path().to_owned(), _removed_at_the_end: Some(dir) }
    }

    /// The one whose program and journal lie in `dir` already.
    pub fn installed_in(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), _removed_at_the_end: None }
    }

    /// The program, to be named in `--qrexec-client`.
    pub fn program(&self) -> PathBuf {
        self.dir.join("qrexec-client-vm")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The program with a target and a service, for tests of the fake itself.
    pub fn call(&self, target: &str, service: &str) -> Command {
        let mut command = Command::new(self.program());
        command.args(["--", target, service]);
        command
    }

    /// Lets the calls of `test.Gate+NAME` through.
    pub fn open(&self, gate: &str) {
        File::create(self.dir.join(gate)).expect("the test's directory is writable");
    }

    /// What a `test.HalfCloseDown` has received, once it has received all.
    #[track_caller]
    pub fn received(&self) -> Vec<u8> {
        let path = self.dir.join("received");
        eventually("the service has received everything", || path.exists());
        fs::read(path).expect("it exists")
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        let text = fs::read_to_string(self.dir.join("calls.log")).expect("made by us");
        // a line is written at once, but a reader may come in between
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(event).collect()
    }

    /// How many events so far are such.
    pub fn count(&self, such: impl Fn(&What) -> bool) -> usize {
        self.events().iter().filter(|e| such(&e.what)).count()
    }

    /// How many calls have been started so far.
    pub fn started(&self) -> usize {
        self.count(|w| matches!(w, What::Start { .. }))
    }

    /// How many calls have been connected so far.
    pub fn connected(&self) -> usize {
        self.count(|w| *w == What::Connected)
    }

    /// How many calls have come to their own end, or been ended by SIGTERM, so far.
    pub fn ended(&self) -> usize {
        self.count(|w| matches!(w, What::End { .. } | What::Terminated))
    }

    /// The most calls that were there at once. (A call ended by SIGKILL counts to the last: it cannot tell.)
    pub fn most_at_once(&self) -> usize {
        let (mut now, mut most) = (BTreeSet::new(), 0);
        for event in self.events() {
            match event.what {
                What::Start { .. } => now.insert(event.pid),
                What::Connected => true,
                What::Terminated | What::End { .. } => now.remove(&event.pid),
            };
            most = most.max(now.len());
        }
        most
    }

    /// Waits until `n` calls have been started.
    #[track_caller]
    pub fn wait_for_started(&self, n: usize) {
        eventually(&format!("{n} calls started"), || self.started() >= n);
    }

    /// Waits until `n` calls have been connected.
    #[track_caller]
    pub fn wait_for_connected(&self, n: usize) {
        eventually(&format!("{n} calls connected"), || self.connected() >= n);
    }

    /// Waits until `n` calls have ended.
    #[track_caller]
    pub fn wait_for_ended(&self, n: usize) {
        eventually(&format!("{n} calls ended"), || self.ended() >= n);
    }
}

/// `PID MILLISECONDS start TARGET SERVICE | connected | terminated | end CODE UP DOWN`
fn event(line: &str) -> Event {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |i: usize| words[i].parse::<u64>().unwrap_or_else(|e| panic!("calls.log: {line:?}: {e}"));
    let what = match words[2] {
        "start" => What::Start { target: words[3].to_owned(), service: words[4].to_owned() },
        "connected" => What::Connected,
        "terminated" => What::Terminated,
        "end" => What::End { code: number(3) as i32, up_bytes: number(4), down_bytes: number(5) },
        other => panic!("calls.log: {other:?} is no event"),
    };
    Event { pid: number(0) as i32, at: Duration::from_millis(number(1)), what }
}
