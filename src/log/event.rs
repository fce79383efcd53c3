//! The kinds of events, each with its fixed MESSAGE_ID, and their fields.

use std::{fmt, sync::Arc};

use uuid::Uuid;

/// How serious an event is, as syslog has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// We are broken.
    Error,
    /// An operator may want to act.
    Warning,
    /// Normal life.
    Info,
    /// For whoever looks closely.
    Debug,
}

/// Why a session ended: the value of `END`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides ended their directions.
    Eof,
    /// One side was reset or vanished.
    Reset,
    /// No byte for the idle timeout.
    Idle,
    /// Policy (dom0's or ours) said no.
    Refused,
    /// The upstream could not be reached.
    DialFailed,
    /// The drain's deadline passed.
    Drained,
    /// The dial took longer than allowed.
    Timeout,
    /// Ended by an operator.
    Killed,
    /// A bug in this program; the other sessions live on.
    Panicked,
}

impl End {
    /// As the log has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eof => "eof",
            Self::Reset => "reset",
            Self::Idle => "idle",
            Self::Refused => "refused",
            Self::DialFailed => "dial-failed",
            Self::Drained => "drained",
            Self::Timeout => "timeout",
            Self::Killed => "killed",
            Self::Panicked => "panicked",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $level:ident $id:literal,)*) => {
        /// What happened. Each kind has one MESSAGE_ID for ever and an entry in the journal's catalog.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// Every kind, for the test that holds the catalog against this list.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// 128 bits in hexadecimal, chosen at random once (systemd-id128(1)).
            pub fn message_id(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// How serious it is.
            pub fn level(self) -> Level {
                match self { $(Self::$name => Level::$level,)* }
            }
        }
    };
}

kinds! {
    /// A session has both its ends.
    SessionStart Info "00000000000000000000000000000001",
    /// A session ended.
    SessionEnd Info "00000000000000000000000000000002",
    /// A session was refused by policy.
    SessionRefused Warning "00000000000000000000000000000003",
    /// A session could not be established, or broke for a reason of ours.
    SessionFailed Warning "00000000000000000000000000000004",
    /// A listener cannot be served.
    ListenerRefused Error "00000000000000000000000000000005",
    /// A listener is served.
    ListenerServing Info "00000000000000000000000000000006",
    /// A listener's socket unit is gone.
    ListenerRemoved Info "00000000000000000000000000000016",
    /// A limit makes connections wait in the backlog.
    LimitReached Warning "00000000000000000000000000000007",
    /// The service is ready.
    ServiceReady Info "00000000000000000000000000000008",
    /// The service lets its sessions end.
    ServiceDraining Info "00000000000000000000000000000009",
    /// The service ends.
    ServiceStopped Info "0000000000000000000000000000000a",
    /// Sessions were handed over to the next process.
    HandoverParked Info "0000000000000000000000000000000b",
    /// Sessions were taken up from the previous process.
    HandoverAdopted Info "0000000000000000000000000000000c",
    /// A session could not be handed over.
    HandoverLost Warning "0000000000000000000000000000000d",
    /// A new configuration is in force.
    ConfigurationReloaded Info "0000000000000000000000000000000e",
    /// A new configuration was refused; the old one stays.
    ConfigurationRejected Error "0000000000000000000000000000000f",
    /// A dial waits for its upstream to appear.
    DialWaiting Warning "00000000000000000000000000000010",
    /// A peer is not on the list of those allowed.
    AccessDenied Warning "00000000000000000000000000000011",
    /// What a call wrote on its standard error.
    CallStderr Warning "00000000000000000000000000000012",
    /// Events were dropped because the journal is slow.
    LogDropped Warning "00000000000000000000000000000013",
    /// A child had to be killed.
    ChildKilled Warning "00000000000000000000000000000014",
    /// Out of descriptors or memory for new connections.
    Exhausted Error "00000000000000000000000000000015",
}

/// One event: a kind, a sentence, and the fields that apply (DESIGN's names; see `sink`).
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// The sentence.
    pub message: String,
    /// SESSION_ID.
    pub session: Option<Uuid>,
    /// LISTENER: the local address.
    pub listener: Option<Arc<str>>,
    /// PEER: who connected.
    pub peer: Option<Arc<str>>,
    /// UPSTREAM: where the session leads.
    pub upstream: Option<Arc<str>>,
    /// QREXEC_TARGET and QREXEC_SERVICE.
    pub call: Option<(Arc<str>, Arc<str>)>,
    /// UP_BYTES and DOWN_BYTES.
    pub bytes: Option<(u64, u64)>,
    /// OPEN_MS: milliseconds from accept to end.
    pub open_ms: Option<u64>,
    /// DIAL_MS: milliseconds from accept to connected.
    pub dial_ms: Option<u64>,
    /// END.
    pub end: Option<End>,
    /// EXIT_CODE: 0..=255, of `qrexec-client-vm`.
    pub exit_code: Option<u8>,
}

impl Event {
    /// An event with no fields yet.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            session: None,
            listener: None,
            peer: None,
            upstream: None,
            call: None,
            bytes: None,
            open_ms: None,
            dial_ms: None,
            end: None,
            exit_code: None,
        }
    }

    /// How serious it is: its kind's level, but life's normal endings are no warnings.
    pub fn level(&self) -> Level {
        self.kind.level()
    }
}
