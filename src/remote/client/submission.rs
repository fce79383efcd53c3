//! What is asked of dom0, by which way, and why there may be no answer.

use std::time::Duration;

use crate::proto::remote::Mode;

/// What is asked, and how its answer is wanted.
#[derive(Debug)]
pub struct Submission {
    /// What the payload is.
    pub mode: Mode,
    /// The command's text, its words, or a path in dom0.
    pub payload: Vec<u8>,
    /// The command as the logs show it.
    pub shown: Vec<u8>,
    /// How long the command may take.
    pub timeout: Duration,
    /// How long dom0 may take to answer at all.
    pub connect_timeout: Duration,
    /// Standard input goes to the command.
    pub stdin: bool,
    /// The command gets a terminal.
    pub tty: bool,
    /// The user to run as.
    pub user: String,
    /// How dom0 is reached.
    pub way: Delivery,
    /// Progress is not shown.
    pub quiet: bool,
    /// Where output goes instead of standard output.
    pub output: Option<std::fs::File>,
    /// Where input comes from instead of standard input.
    pub input: Option<std::fs::File>,
    /// Whether the command belongs into the history and the log.
    pub recorded: bool,
}

/// How dom0 is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Through the agent, now.
    Live,
    /// Through the queue, signed: waits for a daemon that is not there yet.
    Queue,
    #[cfg(feature = "v1")]
    /// Through the queue, for the Python original: neither the command nor its result is authenticated.
    V1,
}

/// Why there is no answer of a command.
#[derive(Debug)]
pub enum ClientError {
    /// dom0 said no: the status, and why.
    Refused(u8, String),
    /// dom0 cannot be reached, or what came is not from dom0.
    Transport(String),
    /// No answer in time.
    Timeout,
    /// Ended by this signal.
    Signal(u8),
    /// An error of this side: no key, no directory.
    Local(String),
}
