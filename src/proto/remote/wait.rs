//! Why a command waits: a text on the wire, which older ends print as it is; an enum on both sides of it.

use std::fmt;

use crate::proto::mac::{hex, unhex};

const COMMANDS: &str = "for other commands of this qube to end";
const APPROVAL: &str = "for approval in dom0: qvm-remote-dom0 approve ";
const LOG_ROOM: &str = "for room in dom0's log: the qube has used up its quota (audit-quota= in its policy)";
const DISK: &str = "for a disk of dom0 that does not answer";
const SPENT: &str = "no longer: its time is over, seconds by its policy: ";
const SPENT_BY_CLIENT: &str = "no longer: its time is over by the limit of its client";
const RESTART: &str = "for the restart of qvm-remote-dom0: ask again";
const RECORDED: &str = "no longer: it stands in dom0's log, entry head code: ";

/// Reasons for a command to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason<'a> {
    /// The qube runs as many commands as it may.
    Commands,
    /// A person in dom0 has to approve the command, with this id.
    Approval(&'a str),
    /// The qube has filled its part of dom0's log.
    LogRoom,
    /// A disk of dom0 does not answer: the one of the log, or one that has the program.
    Disk,
    /// The command waits no longer: its entry is on the disk. The number of the entry, the head of the log's chain
    /// behind it, and the code of both ([`Key::receipt`](crate::proto::mac::Key::receipt)).
    Recorded(u64, [u8; 32], [u8; 32]),
    /// The command waits for nothing: the limit of the policy ended it, after so many seconds. Sent before the ending.
    Spent(u64),
    /// The command waits for nothing: the limit of its client ended it. Sent before the ending.
    SpentByClient,
    /// The daemon is restarted before it begins the command: the next daemon will take it. Sent before the refusal.
    Restart,
    /// A reason that this version does not know.
    Other(&'a str),
}

impl<'a> WaitReason<'a> {
    /// Reads the text on the wire.
    pub fn parse(text: &'a str) -> Self {
        if let Some(id) = text.strip_prefix(APPROVAL) {
            return Self::Approval(id);
        }
        if let Some(seconds) = text.strip_prefix(SPENT).and_then(number) {
            return Self::Spent(seconds);
        }
        match text {
            COMMANDS => Self::Commands,
            LOG_ROOM => Self::LogRoom,
            DISK => Self::Disk,
            SPENT_BY_CLIENT => Self::SpentByClient,
            RESTART => Self::Restart,
            _ => text.strip_prefix(RECORDED).and_then(recorded).unwrap_or(Self::Other(text)),
        }
    }
}

/// A number in the one way that it is written: no sign, no zero in front.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

fn recorded<'a>(text: &str) -> Option<WaitReason<'a>> {
    let mut words = text.split(' ');
    let digest = |word: Option<&str>| word.and_then(|word| unhex(word.as_bytes()).filter(|digest| hex(digest) == word));
    let number = number(words.next()?)?;
    let (head, code) = (digest(words.next())?, digest(words.next())?);
    words.next().is_none().then_some(WaitReason::Recorded(number, head, code))
}

/// The text on the wire.
impl fmt::Display for WaitReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commands => f.write_str(COMMANDS),
            Self::Approval(id) => write!(f, "{APPROVAL}{id}"),
            Self::LogRoom => f.write_str(LOG_ROOM),
            Self::Disk => f.write_str(DISK),
            Self::Recorded(number, head, code) => write!(f, "{RECORDED}{number} {} {}", hex(head), hex(code)),
            Self::Spent(seconds) => write!(f, "{SPENT}{seconds}"),
            Self::SpentByClient => f.write_str(SPENT_BY_CLIENT),
            Self::Restart => f.write_str(RESTART),
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_the_text_that_older_clients_print_and_is_read_back_from_it() {
        for (reason, text) in [
            (WaitReason::Commands, "for other commands of this qube to end"),
            (WaitReason::Disk, "for a disk of dom0 that does not answer"),
            (WaitReason::Approval("00ff"), "for approval in dom0: qvm-remote-dom0 approve 00ff"),
            (
                WaitReason::LogRoom,
                "for room in dom0's log: the qube has used up its quota (audit-quota= in its policy)",
            ),
            (WaitReason::Spent(60), "no longer: its time is over, seconds by its policy: 60"),
            (WaitReason::SpentByClient, "no longer: its time is over by the limit of its client"),
            (WaitReason::Restart, "for the restart of qvm-remote-dom0: ask again"),
            (WaitReason::Other("for the moon"), "for the moon"),
            (
                WaitReason::Other("no longer: its time is over, seconds by its policy: x"),
                "no longer: its time is over, seconds by its policy: x",
            ),
            (
                WaitReason::Other("no longer: its time is over, seconds by its policy: 00"),
                "no longer: its time is over, seconds by its policy: 00",
            ),
        ] {
            assert_eq!(reason.to_string(), text);
            assert_eq!(WaitReason::parse(text), reason);
        }
        let recorded = WaitReason::Recorded(17, [0xab; 32], [1; 32]);
        let text = recorded.to_string();
        assert_eq!(WaitReason::parse(&text), recorded);
        for other in [
            format!("{text} x"),
            text[..text.len() - 1].to_owned(),
            text.replace("17", "-1"),
            text.replace("17", "017"),
            text.replace("ab", "AB"),
        ] {
            assert_eq!(WaitReason::parse(&other), WaitReason::Other(&other));
        }
    }
}
