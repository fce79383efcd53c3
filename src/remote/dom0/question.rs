//! What the owner of dom0 asks the running daemon, and its answers: one line asked, a text answered. Both ends are here.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{proto::mac::hex, remote::shown};

/// How long one question may take to be asked, and its answer to be read.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Digits of an approval's id that messages have, and that `approve` takes at least.
pub(crate) const SHORT_ID: usize = 12;
/// The name of the socket below /run/qvm-remote.
pub(super) const SOCKET: &str = "control";

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question<'a> {
    /// What the daemon does.
    Status,
    /// Which commands wait for approval.
    Approvals,
    /// Everything that is known of the command with this id of an approval.
    Sheet(&'a str),
    /// A person allows the command with this id of an approval.
    Approve(&'a str),
    /// A person refuses the command with this id of an approval.
    Deny(&'a str),
    /// Every command of this qube is to end.
    Kill(&'a str),
    /// The request of this qube with this id is to end.
    KillOne(&'a str, &'a str),
    /// The service is to be restarted when no command runs or waits.
    RestartWhenIdle,
}

impl<'a> Question<'a> {
    /// Reads a line.
    pub(super) fn parse(line: &'a str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["status"] => Some(Self::Status),
            ["approvals"] => Some(Self::Approvals),
            ["sheet", id] => Some(Self::Sheet(id)),
            ["approve", id] => Some(Self::Approve(id)),
            ["deny", id] => Some(Self::Deny(id)),
            ["kill", vm] => Some(Self::Kill(vm)),
            ["restart", "when-idle"] => Some(Self::RestartWhenIdle),
            ["kill", vm, id] => Some(Self::KillOne(vm, id)),
            _ => None,
        }
    }

    /// Asks the running daemon; its answer as text.
    fn ask(self, run: &Path) -> io::Result<String> {
        let mut stream = UnixStream::connect(run.join(SOCKET))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("{self}\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("status"),
            Self::Approvals => f.write_str("approvals"),
            Self::Sheet(id) => write!(f, "sheet {id}"),
            Self::Approve(id) => write!(f, "approve {id}"),
            Self::Deny(id) => write!(f, "deny {id}"),
            Self::Kill(vm) => write!(f, "kill {vm}"),
            Self::RestartWhenIdle => f.write_str("restart when-idle"),
            Self::KillOne(vm, id) => write!(f, "kill {vm} {id}"),
        }
    }
}

/// The answer to [`Question::Status`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DaemonStatus {
    pub(crate) pid: u32,
    /// The daemon is being stopped and takes no new commands.
    pub(crate) draining: bool,
    /// When a restart was asked for that waits for the last command, in seconds since 1970.
    pub(crate) restart_pending_since: Option<u64>,
    /// Why dom0's log cannot be written.
    pub(crate) log_failure: Option<String>,
    pub(crate) qubes: BTreeMap<String, QubeStatus>,
    pub(crate) commands: Vec<CommandStatus>,
    /// Commands that have ended and left something in the background.
    pub(crate) background: Vec<CommandStatus>,
    /// Requests that have not started.
    pub(crate) waiting: Vec<WaitingStatus>,
    /// Ids of approvals, and what waits under them.
    pub(crate) approvals: BTreeMap<String, String>,
}

/// What the daemon says of one qube.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QubeStatus {
    /// The state of its channel.
    pub(crate) channel: String,
    /// Tokens of protocol v1 are taken.
    pub(crate) v1: bool,
    /// The qube has a usable key.
    pub(crate) keyed: bool,
}

/// What the daemon says of one command that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandStatus {
    pub(crate) vm: String,
    pub(crate) id: String,
    /// Seconds since its start.
    pub(crate) seconds: u64,
    /// What is asked, as the logs show it.
    pub(crate) shown: String,
}

/// What the daemon says of one request that has not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitingStatus {
    pub(crate) vm: String,
    pub(crate) id: String,
    /// The name of its state: what the request waits for.
    pub(crate) state: String,
    /// Seconds in this state.
    pub(crate) seconds: u64,
}

impl DaemonStatus {
    /// Without what goes on over a restart.
    pub(crate) fn without_background(mut self) -> Self {
        self.background.clear();
        self
    }

    fn to_json(&self) -> Value {
        let qube = |q: &QubeStatus| json!({ "channel": q.channel, "v1": q.v1, "keyed": q.keyed });
        let command = |c: &CommandStatus| json!({ "vm": c.vm, "id": c.id, "seconds": c.seconds, "shown": c.shown });
        let waiting = |r: &WaitingStatus| json!({ "vm": r.vm, "id": r.id, "state": r.state, "seconds": r.seconds });
        json!({
            "pid": self.pid,
            "draining": self.draining,
            "restart_pending_since": self.restart_pending_since,
            "log_failure": self.log_failure,
            "vms": self.qubes.iter().map(|(name, q)| (name.clone(), qube(q))).collect::<BTreeMap<_, _>>(),
            "commands": self.commands.iter().map(command).collect::<Vec<_>>(),
            "background": self.background.iter().map(command).collect::<Vec<_>>(),
            "waiting": self.waiting.iter().map(waiting).collect::<Vec<_>>(),
            "approvals": self.approvals,
        })
    }

    fn from_json(all: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let qube = |(name, q): (&String, &Value)| {
            let (v1, keyed) = (q["v1"].as_bool()?, q["keyed"].as_bool()?);
            Some((name.clone(), QubeStatus { channel: text(&q["channel"])?, v1, keyed }))
        };
        let command = |c: &Value| {
            let (seconds, shown) = (c["seconds"].as_u64()?, text(&c["shown"]).unwrap_or_default());
            Some(CommandStatus { vm: text(&c["vm"])?, id: text(&c["id"])?, seconds, shown })
        };
        let waiting = |r: &Value| {
            let (seconds, state) = (r["seconds"].as_u64()?, text(&r["state"])?);
            Some(WaitingStatus { vm: text(&r["vm"])?, id: text(&r["id"])?, state, seconds })
        };
        Some(Self {
            pid: u32::try_from(all["pid"].as_u64()?).ok()?,
            draining: all["draining"].as_bool()?,
            restart_pending_since: all["restart_pending_since"].as_u64(),
            log_failure: text(&all["log_failure"]),
            qubes: all["vms"].as_object()?.iter().map(qube).collect::<Option<_>>()?,
            commands: all["commands"].as_array()?.iter().map(command).collect::<Option<_>>()?,
            // a daemon of an earlier version has none of these
            background: all["background"].as_array().into_iter().flatten().map(command).collect::<Option<_>>()?,
            waiting: all["waiting"].as_array().into_iter().flatten().map(waiting).collect::<Option<_>>()?,
            approvals: all["approvals"]
                .as_object()?
                .iter()
                .map(|(id, shown)| Some((id.clone(), text(shown)?)))
                .collect::<Option<_>>()?,
        })
    }
}

/// An answer of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// To [`Question::Status`].
    Status(DaemonStatus),
    /// To [`Question::Approvals`]: ids of approvals, and what waits under them.
    Approvals(Vec<(String, String)>),
    /// To [`Question::Sheet`]; `None` when nothing waits under that id.
    Sheet(Option<String>),
    /// To [`Question::Approve`] and [`Question::Deny`]: whether the command still waited.
    Heard(bool),
    /// To [`Question::Kill`] and [`Question::KillOne`]: how many commands were ended.
    Killed(usize),
    /// To a line that is no question.
    Unknown,
}

/// The text on the socket.
impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => writeln!(f, "{}", status.to_json()),
            Self::Approvals(all) => all.iter().try_for_each(|(id, shown)| writeln!(f, "{id}  {shown}")),
            Self::Sheet(sheet) => f.write_str(sheet.as_deref().unwrap_or_default()),
            Self::Heard(yes) => f.write_str(if *yes { "yes\n" } else { "no\n" }),
            Self::Killed(count) => writeln!(f, "{count}"),
            Self::Unknown => f.write_str("unknown\n"),
        }
    }
}

fn strange() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the daemon is of another version: its answer was not understood")
}

/// Asks for the status as JSON, with whatever fields the daemon has.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when no daemon runs. So it is with all questions.
pub(crate) fn status_json(run: &Path) -> io::Result<String> {
    Question::Status.ask(run)
}

/// Asks what the daemon does.
pub(crate) fn status(run: &Path) -> io::Result<DaemonStatus> {
    let all = serde_json::from_str(&status_json(run)?).map_err(io::Error::other)?;
    DaemonStatus::from_json(&all).ok_or_else(strange)
}

/// Asks for the sheet of a command that waits for approval; `None` when it waits no longer. What comes is the text of
/// this id, or an error.
pub(crate) fn sheet(run: &Path, id: &str) -> io::Result<Option<String>> {
    let text = Question::Sheet(id).ask(run)?;
    if text.is_empty() {
        return Ok(None);
    }
    if hex(&shown::id(&text)) != id {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the daemon's text is not the one of this id"));
    }
    Ok(Some(text))
}

/// Asks which commands wait for approval: ids, and what stands for each.
pub(crate) fn approvals(run: &Path) -> io::Result<Vec<(String, String)>> {
    let text = Question::Approvals.ask(run)?;
    let entry = |line: &str| line.split_once("  ").map(|(id, shown)| (id.to_owned(), shown.to_owned()));
    text.lines().map(|line| entry(line).ok_or_else(strange)).collect()
}

/// Allows or refuses the command with this id; whether the command still waited.
pub(crate) fn decide(run: &Path, id: &str, allow: bool) -> io::Result<bool> {
    let question = if allow { Question::Approve(id) } else { Question::Deny(id) };
    Ok(question.ask(run)?.trim() == "yes")
}

/// Has the service restarted when no command runs or waits; false when its daemon is being stopped already.
///
/// # Errors
/// As [`status_json`]; `InvalidData` when the daemon is of an earlier version and cannot do that.
pub(crate) fn restart_when_idle(run: &Path) -> io::Result<bool> {
    match Question::RestartWhenIdle.ask(run)?.trim() {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(strange()),
    }
}

/// Ends every command of a qube; how many there were.
pub(crate) fn kill(run: &Path, vm: &str) -> io::Result<usize> {
    Question::Kill(vm).ask(run)?.trim().parse().map_err(|_| strange())
}

/// Ends the requests of a qube with this id; how many there were.
pub(crate) fn kill_one(run: &Path, vm: &str, id: &str) -> io::Result<usize> {
    Question::KillOne(vm, id).ask(run)?.trim().parse().map_err(|_| strange())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_the_status_are_read_back_as_they_were_written() {
        for question in [
            Question::Status,
            Question::Approvals,
            Question::Approve("00ff"),
            Question::Deny("00ff"),
            Question::Kill("work"),
            Question::KillOne("work", "a-1"),
            Question::Sheet("00ff"),
            Question::RestartWhenIdle,
        ] {
            assert_eq!(Question::parse(&format!("{question}\n")), Some(question));
        }
        assert_eq!(Question::parse("approve"), None);
        let qube = QubeStatus { channel: "live".into(), v1: false, keyed: true };
        let status = DaemonStatus {
            pid: 7,
            draining: false,
            restart_pending_since: Some(7),
            log_failure: None,
            qubes: [("work".to_owned(), qube)].into(),
            commands: vec![CommandStatus { vm: "work".into(), id: "a".into(), seconds: 3, shown: "cmd=x".into() }],
            background: Vec::new(),
            waiting: vec![WaitingStatus { vm: "work".into(), id: "b".into(), state: "place".into(), seconds: 2 }],
            approvals: [("00ff".to_owned(), "work asks for cmd=x".to_owned())].into(),
        };
        let text = Answered::Status(status.clone()).to_string();
        assert_eq!(
            text,
            "{\"approvals\":{\"00ff\":\"work asks for cmd=x\"},\
             \"background\":[],\
             \"commands\":[{\"id\":\"a\",\"seconds\":3,\"shown\":\"cmd=x\",\"vm\":\"work\"}],\"draining\":false,\"log_failure\":null,\"pid\":7,\
             \"restart_pending_since\":7,\
             \"vms\":{\"work\":{\"channel\":\"live\",\"keyed\":true,\"v1\":false}},\
             \"waiting\":[{\"id\":\"b\",\"seconds\":2,\"state\":\"place\",\"vm\":\"work\"}]}\n"
        );
        assert_eq!(DaemonStatus::from_json(&serde_json::from_str(&text).expect("JSON")), Some(status));
        assert_eq!(DaemonStatus::from_json(&json!({ "pid": 7 })), None);
    }
}
