//! What a rule that allows a command, or has a person asked, does not allow about the way it is asked for.

use super::rules::{Ruling, Verdict};
use crate::proto::remote::{Mode, flags};

/// How a command is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Manner<'a> {
    /// What is asked for.
    pub mode: Mode,
    /// Bits of [`flags`].
    pub flags: u8,
    /// The user to run as; empty where the client names none.
    pub user: &'a str,
}

impl Manner<'_> {
    /// Whether input comes while the command runs: `-i`, or what is typed at a terminal. The bytes of a file that is
    /// put are no input in this sense.
    pub fn streams_input(self) -> bool {
        self.mode != Mode::Put && self.flags & (flags::STDIN | flags::TTY) != 0
    }
}

/// Why the policy does not allow the command; `None` where it does, or where a person decides.
pub fn objection(ruling: &Ruling<'_>, asked: Manner<'_>) -> Option<String> {
    let options = &ruling.options;
    if ruling.verdict == Verdict::Deny {
        Some(match ruling.line {
            Some(line) => format!("line {line} of its policy says deny"),
            None => "no rule of its policy allows it".to_owned(),
        })
    } else if asked.streams_input() && !options.stdin {
        Some(match ruling.verdict {
            Verdict::Ask => {
                "its rule allows no standard input, which would come after the approval (an ask rule does with stdin=yes)"
            }
            _ => "its rule allows no standard input",
        }
        .to_owned())
    } else if asked.flags & flags::TTY != 0 && !options.tty {
        Some("its rule allows no terminal".to_owned())
    } else if !asked.user.is_empty() && options.user.as_deref() != Some(asked.user) {
        Some("its rule does not name that user".to_owned())
    } else {
        None
    }
}
