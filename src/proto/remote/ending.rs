//! How a command ended, on the wire and as an exit status.

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The command exited with this status.
    Exit(u8),
    /// A signal ended the command.
    Signal(u8),
    /// The time of the command was over.
    Timeout,
    /// The client, or an operator, ended the command.
    Cancelled,
    /// The command wrote more than its policy allows.
    Limit,
}

impl Ending {
    /// Kind and value, as on the wire.
    pub fn to_bytes(self) -> (u8, u8) {
        match self {
            Self::Exit(status) => (0, status),
            Self::Signal(signal) => (1, signal),
            Self::Timeout => (2, 0),
            Self::Cancelled => (3, 0),
            Self::Limit => (4, 0),
        }
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(kind: u8, value: u8) -> Option<Self> {
        Some(match (kind, value) {
            (0, status) => Self::Exit(status),
            (1, signal) => Self::Signal(signal),
            (2, 0) => Self::Timeout,
            (3, 0) => Self::Cancelled,
            (4, 0) => Self::Limit,
            _ => return None,
        })
    }

    /// As a shell has it: 128 + n for a signal, 124 for a time-out, 130 for a cancel, 125 for a limit.
    pub fn status(self) -> u8 {
        match self {
            Self::Exit(status) => status,
            Self::Signal(signal) => signal.saturating_add(128),
            Self::Timeout => 124,
            Self::Cancelled => 130,
            Self::Limit => 125,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_is_the_status_that_a_shell_would_show() {
        let all = [Ending::Exit(3), Ending::Signal(9), Ending::Timeout, Ending::Cancelled, Ending::Limit];
        assert_eq!(all.map(Ending::status), [3, 137, 124, 130, 125]);
        for ending in all {
            let (kind, value) = ending.to_bytes();
            assert_eq!(Ending::from_bytes(kind, value), Some(ending));
        }
        assert_eq!((Ending::from_bytes(5, 0), Ending::from_bytes(2, 1)), (None, None));
    }
}
