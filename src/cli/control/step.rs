//! The steps of a connection that `try` makes, and what is printed of them.
//!
//! | step | it is over when | told by |
//! |---|---|---|
//! | `socket` | connect(2) has returned | the kernel |
//! | `service` | the service has accepted the connection | the service: `began` |
//! | `dom0` | dom0 has allowed the call and both qubes are connected (calls only) | the service: `connected` |
//! | `connected` | the other side serves the connection | the service: `connected`; of a call, that it goes on |
//! | `byte`, `end`, `silent` | a byte came, the stream ended, or nothing came for 3 s | the connection |

use serde::Serialize;

/// What `try --json` prints: one object for each listener that is tried, one in each line. Fields may be added.
#[derive(Debug, Serialize)]
pub(super) struct Trial {
    /// Address of the listener.
    pub(super) listener: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) transport: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) label: Option<String>,
    /// Where it leads, once that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) upstream: Option<String>,
    /// SESSION_ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<String>,
    /// Steps that are over, in their order.
    pub(super) steps: Vec<DoneStep>,
    /// Every step of the connection was done.
    pub(super) works: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<FailedStep>,
}

/// A step of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TrialStep {
    Socket,
    Service,
    Dom0,
    Connected,
    Byte,
    End,
    Silent,
}

impl TrialStep {
    /// The step when it is over.
    pub(super) fn done(self, call: bool) -> &'static str {
        match self {
            Self::Socket => "the socket takes connections",
            Self::Service => "the service took the connection",
            Self::Dom0 => "dom0 allowed the call",
            Self::Connected if call => "the other qube serves it",
            Self::Connected => "the upstream is connected",
            Self::Byte => "the first byte came",
            Self::End => "the other side ended the stream without a byte",
            Self::Silent => "connected; the service waits for the client",
        }
    }

    /// The step when it has failed.
    pub(super) fn failed(self) -> &'static str {
        match self {
            Self::Socket => "the socket takes no connection",
            Self::Service => "the service does not take the connection",
            Self::Dom0 => "dom0 did not allow the call",
            Self::Connected => "the other side cannot be reached",
            Self::Byte | Self::End | Self::Silent => "the connection broke",
        }
    }
}

#[derive(Debug, Serialize)]
pub(super) struct DoneStep {
    pub(super) step: TrialStep,
    /// Milliseconds since connect(2); absent where the service did not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ms: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct FailedStep {
    pub(super) step: TrialStep,
    pub(super) cause: String,
    /// The next command to run.
    pub(super) next: String,
}
