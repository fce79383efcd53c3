//! What is asked of dom0, by which way, and why there may be no answer.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    log::escape,
    proto::remote::{Mode, WaitReason},
};

/// How long dom0 waits for a person.
pub(super) const APPROVAL: Duration = Duration::from_secs(600);

/// What is asked, and how its answer is wanted.
#[derive(Debug)]
pub struct Submission {
    /// What the payload is.
    pub mode: Mode,
    /// The command's text, its words, or a path in dom0.
    pub payload: Vec<u8>,
    /// The command as the logs show it.
    pub shown: Vec<u8>,
    /// How long the command may take; `None`: as long as dom0's policy has it.
    pub timeout: Option<Duration>,
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
    /// Neither progress nor what a command waits for is shown.
    pub quiet: bool,
    /// Progress is shown, unless quiet.
    pub progress: bool,
    /// Where output goes instead of standard output.
    pub output: Option<std::fs::File>,
    /// Where input comes from instead of standard input.
    pub input: Option<std::fs::File>,
    /// Whether the command belongs into the history and the log.
    pub recorded: bool,
}

impl Submission {
    /// The limit of time as a request has it: 0 for none.
    pub(super) fn timeout_ms(&self) -> u32 {
        self.timeout.map_or(0, |time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
    }
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

/// The line of progress of a command that began then and has this limit.
pub(super) fn waiting(began: Instant, limit: Option<Duration>) -> String {
    let seconds = began.elapsed().as_secs() / 30 * 30;
    let limit = limit.map_or_else(String::new, |limit| format!("/{}s", limit.as_secs()));
    format!("[qvm-remote] waiting... {seconds}s{limit}")
}

/// The line about what a command waits for.
pub(super) fn waits(reason: WaitReason<'_>) -> String {
    let most = match reason {
        WaitReason::Approval(_) => format!(" (dom0 waits {} min at most)", APPROVAL.as_secs() / 60),
        _ => String::new(),
    };
    format!("[qvm-remote] waiting {}{most}", escape(reason.to_string().as_bytes()))
}

/// Whose limit of time ended a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeOver {
    /// Of the client: an option, or its default where no terminal is attached.
    Client(Duration),
    /// Of dom0's policy.
    Policy(Duration),
}

impl TimeOver {
    /// The time in whole seconds.
    pub fn seconds(self) -> u64 {
        let (Self::Client(time) | Self::Policy(time)) = self;
        time.as_secs()
    }

    /// Whose limit it is, and how to change it.
    pub fn whose(self) -> &'static str {
        match self {
            Self::Client(_) => "the limit of this side (qvm-remote -t SECONDS; none at a terminal without -t)",
            Self::Policy(_) => "the limit of dom0's policy (timeout= of the rule that allows it)",
        }
    }
}

/// Why there is no answer of a command.
#[derive(Debug)]
pub enum ClientError {
    /// dom0 said no: the status, and why.
    Refused(u8, String),
    /// dom0 does not know the key, or not any more: why.
    Unauthorised(String),
    /// dom0 cannot be reached, or what came is not from dom0.
    Transport(String),
    /// The time of the command was over, by this limit.
    Timeout(TimeOver),
    /// Ended by this signal.
    Signal(u8),
    /// An error of this side: no key, no directory.
    Local(String),
}
