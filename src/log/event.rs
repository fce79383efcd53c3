//! The kinds of events, each with its fixed MESSAGE_ID, and their fields.

use std::sync::Arc;

#[cfg(feature = "forward")]
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
    /// Details, which only `debug` shows.
    Debug,
}

/// Defines an enum whose values have one fixed text each.
macro_rules! labels {
    ($(#[$doc:meta])* $type:ident { $($(#[$text_doc:meta])* $name:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type { $($(#[$text_doc])* $name,)* }

        impl $type {
            /// Every value, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The text that stands for the value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}
pub(crate) use labels;

labels! {
    /// Why a session ended: the value of `END`.
    End {
        /// Both sides ended their directions.
        Eof = "eof",
        /// One side was reset or vanished.
        Reset = "reset",
        /// No byte passed for the idle timeout.
        Idle = "idle",
        /// Policy (dom0's or ours) said no.
        Refused = "refused",
        /// The upstream could not be reached.
        DialFailed = "dial-failed",
        /// The drain's deadline passed.
        Drained = "drained",
        /// The dial took longer than allowed.
        Timeout = "timeout",
        /// Ended by an operator.
        Killed = "killed",
        /// A bug in this program; the other sessions live on.
        Panicked = "panicked",
        /// The process of the service crashed, and the session could not go on in the next one.
        Lost = "lost",
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident $text:literal $level:ident $id:literal,)*) => {
        /// What happened. Each kind has one MESSAGE_ID for ever and an entry in the journal's catalog.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// Every kind, for the test that holds the catalog against this list, and for the manual.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Name of the kind in the catalog and the manual.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// 128 bits in hexadecimal, chosen at random once (systemd-id128(1)).
            pub fn message_id(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// Priority of the kind in the journal.
            pub fn level(self) -> Level {
                match self { $(Self::$name => Level::$level,)* }
            }
        }
    };
}

kinds! {
    /// A session has both its ends.
    SessionStart "session-start" Info "a5a7baac02914b41a0f9ded958da70a5",
    /// A session ended.
    SessionEnd "session-end" Info "0b71b4f691ad472f837fd52e33837023",
    /// A session was refused by policy.
    SessionRefused "session-refused" Warning "fc5121aedf14423aa7fb5d3e09afe46c",
    /// A session could not be established, or broke for a reason of ours.
    SessionFailed "session-failed" Warning "1dcc3e19afe54df985ea453e19ddedb4",
    /// A listener cannot be served.
    ListenerRefused "listener-refused" Error "c606514fced643708fb348dfc5580e0c",
    /// A listener is served.
    ListenerServing "listener-serving" Info "734a9562b752423dbf57a2cd0991b69a",
    /// A listener's socket unit is gone.
    ListenerRemoved "listener-removed" Info "00d963fbd8cf40ce9c78d65b7130f8c1",
    /// A listener of our own waits for the namespace it is to be in.
    ListenerAwaited "listener-awaited" Warning "ca2a5fdd64e742829d07d9dc7a00e589",
    /// A limit makes connections wait in the backlog.
    LimitReached "limit-reached" Warning "da15f83b8b474f17b8c83f9173414efa",
    /// Connections wait for dom0 to decide about a call.
    CallUndecided "call-undecided" Warning "2324ee814f1043ab9cfb536a4f9087e2",
    /// Somebody had a listener paused.
    ListenerPaused "listener-paused" Info "3682360408bb47ab95c6fc26d2abfb41",
    /// Somebody had a listener resumed.
    ListenerResumed "listener-resumed" Info "7ca072b573794f51b5dc6150dcf3b3bd",
    /// The control socket, or what lies beside it, is not as it should be.
    ControlTrouble "control-trouble" Warning "5a3c8676e20e4978a7f31458c22b7603",
    /// The service is ready.
    ServiceReady "service-ready" Info "b78cece03afc4dc58495b5477dabef82",
    /// The service lets its sessions end.
    ServiceDraining "service-draining" Info "67f27010218948cfb5ec06c5be5fa853",
    /// The service ends.
    ServiceStopped "service-stopped" Info "f9238b745f1544ce973080b0d42262f2",
    /// Sessions were handed over to the next process.
    HandoverParked "handover-parked" Info "98efa0cebe6842fda50e8e4ffac5842b",
    /// Sessions were taken up from the previous process.
    HandoverAdopted "handover-adopted" Info "9b7a8c90228247a299ae30592cdb40f4",
    /// A session could not be handed over.
    HandoverLost "handover-lost" Warning "0b9f468ba2d64e6390af60cb6d3e5cb6",
    /// A new configuration is in force.
    ConfigurationReloaded "configuration-reloaded" Info "0b040a7633064427a88e9aba63b61fb0",
    /// A new configuration was refused; the old one stays.
    ConfigurationRejected "configuration-rejected" Error "a71489cd2f344b168c1b5edf27419230",
    /// A dial waits for its upstream to appear.
    DialWaiting "dial-waiting" Warning "3b7c104b455e4168ab9d4a739ff349f7",
    /// A peer is not on the list of those allowed.
    AccessDenied "access-denied" Warning "e3c3a90ed2344388b2f583bb03a51133",
    /// A connection or a datagram of this service came back to one of its listeners.
    CircleRefused "circle-refused" Warning "5d0c4f6e8a3b4c1f9be2d70f46a1c983",
    /// What a call wrote on its standard error.
    CallStderr "call-stderr" Warning "3e1c43228a6242a794722ff84ebb9bd0",
    /// Events were dropped because the journal is slow.
    LogDropped "log-dropped" Warning "fe849a85cf0142a89b67cbe40be70728",
    /// A child had to be killed.
    CallKilled "call-killed" Warning "06f4e18d48d34b6fa7cad6f6d9f77815",
    /// A call failed and is made again.
    CallRedialled "call-redialled" Warning "e131652965ff1c2764abfa0e32dae3ae",
    /// The upstream socket of a flow was replaced.
    FlowMoved "flow-moved" Info "80d41c86f36d4120a266b01a2b5e96b1",
    /// Children cannot be put where they outlive a restart.
    CallsUnowned "calls-unowned" Warning "eba3517ac4dd4295bf29150d3e15a73a",
    /// Out of descriptors or memory for new connections.
    DescriptorPressure "descriptor-pressure" Warning "46c2f28a3aaf41138cbc9496c5fc338b",
    /// A unit of the service manager is started for a session.
    UnitStart "unit-start" Info "7059c9e34ec74eeaaed1c2761dc9c2a5",
    /// A unit that was started answers.
    UnitReady "unit-ready" Info "d9c528c0f2784bb9a520761334883207",
    /// A unit could not be started.
    UnitFailed "unit-failed" Warning "e168d31735f44662ab00137dfed06465",
    /// A unit is stopped because no session used it.
    UnitStopped "unit-stopped" Info "d78aa61cca2b4701a6ea876b60bc266a",
    /// A unit is left running although no session uses it.
    UnitNotStopped "unit-not-stopped" Warning "3c9ab5e364ec4032acb8b4b7ab0cd929",
    /// A forward that dom0 declares is served.
    ForwardDeclared "forward-declared" Info "a593f9a1b84341c9881ce97b37b0f7de",
    /// A forward is not declared any more.
    ForwardWithdrawn "forward-withdrawn" Info "ef0b43e0560a47cfbb148b7804c682bd",
    /// A declaration means nothing, or is not allowed.
    DeclarationRefused "declaration-refused" Warning "22408ddf10bf4319b03946cca43d2f27",
    /// What is declared is not served as it should be.
    DeclarationFailed "declaration-failed" Warning "9d6bfa1ef3814a328b324a889920c0e0",
    /// A command of a VM was started in dom0.
    CommandStart "command-start" Info "fdd8a5409b8b4989a3e694cce2323758",
    /// A command of a VM ended.
    CommandEnd "command-end" Info "918805eaeedb434b81be66a2ff86e437",
    /// A VM's command was refused: not authenticated, or not allowed.
    CommandRefused "command-refused" Warning "2c3be5a79af54c02997de0d30c4feff3",
    /// A VM's command waits for a person's approval.
    CommandAsked "command-asked" Warning "ae1bfaae3f9f4d25bbb10cfaf3e3f5a8",
    /// The agent in a VM answers.
    ChannelOpen "channel-open" Info "59286f187c924ab8ab5ac275491b018a",
    /// The channel to a VM ended.
    ChannelClosed "channel-closed" Info "188be065aa56402e852890046a16ab73",
    /// A VM sent what no agent sends.
    ChannelFault "channel-fault" Warning "9c5a542bb90c48a2b297133c62791ec9",
    /// The key or the policy of a VM is another now.
    AccessChanged "access-changed" Warning "0c7ff6cf0e7a4be0a9a3d2e4a34cbd7c",
    /// dom0's log of commands cannot be written.
    LogFailed "log-failed" Error "4c1b8a6be5cb4c1f8f5f0d6d6c1d2a35",
    /// A VM has used up its quota of dom0's log.
    LogQuota "log-quota" Warning "9e0a4f1dc27f4a4b8c3b5c9f7a1e6d20",
    /// A VM's key was stored or removed.
    KeyChanged "key-changed" Warning "00fba0c6522e43ebaaf1e68f98786840",
}

/// One event: a kind, a sentence, and the fields that apply (DESIGN's names; see `sink`).
#[derive(Clone, Debug)]
pub struct Event {
    /// Kind of the event.
    pub kind: Kind,
    /// The sentence.
    pub message: String,
    /// SESSION_ID.
    #[cfg(feature = "forward")]
    pub session: Option<Uuid>,
    /// LISTENER: the local address.
    pub listener: Option<Arc<str>>,
    /// LABEL: that of the listener's forward.
    pub label: Option<Arc<str>>,
    /// TRANSPORT: `tcp`, `unix` or `udp`, of the listener.
    pub transport: Option<&'static str>,
    /// LISTEN_NETNS: the namespace that the listener is in, as the configuration calls it.
    pub listen_netns: Option<Arc<str>>,
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
    /// NETNS: path and inode of the namespace that the upstream was dialled in.
    pub netns: Option<Arc<str>>,
    /// END.
    pub end: Option<End>,
    /// EXIT_CODE: 0..=255, of `qrexec-client-vm`.
    pub exit_code: Option<u8>,
    /// QUBE: whose command, as dom0 names it.
    pub qube: Option<Arc<str>>,
    /// REQUEST_ID: of a command for dom0.
    pub request: Option<Arc<str>>,
}

impl Event {
    /// An event with no fields yet.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            #[cfg(feature = "forward")]
            session: None,
            listener: None,
            label: None,
            transport: None,
            listen_netns: None,
            peer: None,
            upstream: None,
            call: None,
            bytes: None,
            open_ms: None,
            dial_ms: None,
            netns: None,
            end: None,
            exit_code: None,
            qube: None,
            request: None,
        }
    }

    /// An event about a listener.
    #[cfg(feature = "forward")]
    pub fn on(listener: impl Into<Arc<str>>, kind: Kind, message: impl Into<String>) -> Self {
        Self { listener: Some(listener.into()), ..Self::new(kind, message) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalog_explains_every_kind_and_nothing_else() {
        let catalog = concat!(
            include_str!("../../packaging/catalog/qrexec-connect.catalog"),
            include_str!("../../packaging/catalog/qvm-remote.catalog")
        );
        let mut entries: Vec<(&str, &str)> = Vec::new();
        let mut lines = catalog.lines().peekable();
        while let Some(line) = lines.next() {
            if let (Some(name), Some(id)) =
                (line.strip_prefix("# "), lines.peek().and_then(|next| next.strip_prefix("-- ")))
            {
                entries.push((name, id));
            }
        }
        let mut kinds: Vec<_> = Kind::ALL.iter().map(|kind| (kind.name(), kind.message_id())).collect();
        entries.sort_unstable();
        kinds.sort_unstable();
        assert_eq!(entries, kinds);
        assert_eq!(kinds.len(), 51);
    }
}
