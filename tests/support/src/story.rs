//! The log as a test reads it: what was said of each session's start and end.

use crate::Activated;

/// One end event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The first digits of the session's id.
    pub id: String,
    /// `127.0.0.1:40312`, `uid 0 pid 1`.
    pub peer: String,
    /// `eof`, `reset`…
    pub end: String,
    pub up: u64,
    pub down: u64,
    pub exit: Option<u8>,
    /// What was said besides.
    pub note: String,
}

impl Ended {
    /// `eof up 5 down 6 exit 0`.
    pub fn brief(&self) -> String {
        let exit = self.exit.map(|code| format!(" exit {code}")).unwrap_or_default();
        format!("{} up {} down {}{exit}", self.end, self.up, self.down)
    }

    /// `session ID from PEER on LISTENER to UPSTREAM: END after N ms, N bytes up, N down[, exit code N][; NOTE]`.
    fn read(line: &str) -> Option<Self> {
        let (id, line) = session(line)?;
        let (subject, rest) = line.split_once(" ms, ")?;
        let (subject, _ms) = subject.rsplit_once(" after ")?;
        let (subject, end) = subject.rsplit_once(": ")?;
        let (peer, _) = subject.strip_prefix("from ")?.split_once(" on ")?;
        let (up, rest) = rest.split_once(" up, ")?;
        let (up, _bytes) = up.split_once(" byte")?;
        let (down, rest) = rest.split_once(" down")?;
        let (exit, note) = rest.split_once("; ").unwrap_or((rest, ""));
        Some(Self {
            id: id.to_owned(),
            peer: peer.to_owned(),
            end: end.to_owned(),
            up: up.parse().ok()?,
            down: down.parse().ok()?,
            exit: exit.strip_prefix(", exit code ").and_then(|code| code.parse().ok()),
            note: note.to_owned(),
        })
    }
}

/// The id of the session that a line is about, and what follows it.
fn session(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix("warning: ").or(line.strip_prefix("error: ")).unwrap_or(line);
    line.strip_prefix("session ")?.split_once(' ')
}

/// The end events among `lines`.
pub fn ends(lines: &[String]) -> Vec<Ended> {
    lines.iter().filter_map(|line| Ended::read(line)).collect()
}

/// The ids of the sessions whose start is among `lines`.
pub fn starts(lines: &[String]) -> Vec<String> {
    let connected = lines.iter().filter(|line| line.contains(": connected after "));
    connected.filter_map(|line| Some(session(line)?.0.to_owned())).collect()
}

impl Activated {
    /// The end events of the running process, as soon as there are `n`.
    #[track_caller]
    pub fn ends(&self, n: usize) -> Vec<Ended> {
        self.process.stderr.wait(&format!("{n} end events"), |lines| Some(ends(lines)).filter(|ends| ends.len() >= n))
    }

    /// The one end event so far, as soon as it is there.
    #[track_caller]
    pub fn end(&self) -> Ended {
        let mut ends = self.ends(1);
        assert_eq!(ends.len(), 1, "{ends:?}");
        ends.remove(0)
    }

    /// Waits until `n` sessions have both their ends.
    #[track_caller]
    pub fn wait_for_starts(&self, n: usize) {
        self.process.stderr.wait(&format!("{n} start events"), |lines| (starts(lines).len() >= n).then_some(()));
    }
}
