//! Why a command waits: a text on the wire, which older ends print as it is; an enum on both sides of it.

use std::fmt;

const COMMANDS: &str = "for other commands of this qube to end";
const APPROVAL: &str = "for approval in dom0: qvm-remote-dom0 approve ";

/// Reasons for a command to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason<'a> {
    /// The qube runs as many commands as it may.
    Commands,
    /// A person in dom0 has to approve the command, under this ticket.
    Approval(&'a str),
    /// A reason that this version does not know.
    Other(&'a str),
}

impl<'a> WaitReason<'a> {
    /// Reads the text on the wire.
    pub(super) fn parse(text: &'a str) -> Self {
        match text.strip_prefix(APPROVAL) {
            Some(ticket) => Self::Approval(ticket),
            None if text == COMMANDS => Self::Commands,
            None => Self::Other(text),
        }
    }
}

/// The text on the wire.
impl fmt::Display for WaitReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commands => f.write_str(COMMANDS),
            Self::Approval(ticket) => write!(f, "{APPROVAL}{ticket}"),
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
            (WaitReason::Approval("00ff"), "for approval in dom0: qvm-remote-dom0 approve 00ff"),
            (WaitReason::Other("for the moon"), "for the moon"),
        ] {
            assert_eq!(reason.to_string(), text);
            assert_eq!(WaitReason::parse(text), reason);
        }
    }
}
