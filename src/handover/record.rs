//! The records of a handover: what is handed over besides descriptors.
//!
//! One line of JSON for each session and each listener, then the bytes that were held. A record says by itself which
//! version it has and which descriptors are its own, so that one that cannot be read costs one session and shifts no
//! other. Layout: `"QRXC"`, the format as u32, the length of the lines as u64 (both little-endian), the lines, the held
//! bytes.
//!
//! Fields are added with a default and ignored by older readers; a change that an older reader would misread gets a new
//! version on that line only.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{dial::qrexec::Passed, relay::Phase, session::DoubtKept, spec::SocketKind, stream::StreamKind};

/// The version of a record; a reader takes its own only.
pub(super) const VERSION: u32 = 1;
/// The version of the layout around the records.
pub(super) const FORMAT: u32 = 1;
pub(super) const MAGIC: &[u8; 4] = b"QRXC";
pub(super) const HEADER: usize = 16;

/// The part of a record that every version shares.
#[derive(Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) v: u32,
    pub(super) id: Uuid,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Record<'a> {
    pub(super) v: u32,
    pub(super) id: Uuid,
    /// Index of its first descriptor, and how many there are.
    pub(super) fds: (usize, usize),
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) listener: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) upstream: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) peer: Cow<'a, str>,
    pub(super) age_ms: u64,
    pub(super) dial_ms: Option<u64>,
    /// How long the session had waited for a call of its qube. A process that does not know this field counts that wait
    /// into `setup_timeout`; the session begins its call there at once, above the limit of calls.
    #[serde(default)]
    pub(super) queued_ms: u64,
    /// A call of the session was lost and made again. A process that does not know this field may do so once more.
    #[serde(default)]
    pub(super) redialled: bool,
    /// How long the server of a qube that has just started may still take. A process that does not know this field gives the
    /// session up when the server refuses.
    #[serde(default)]
    pub(super) starting_ms: Option<u64>,
    /// LABEL, LISTEN_NETNS and NETNS of a session whose listener may be gone. A process that does not know these fields
    /// leaves them out of the session's end, where it does not find its listener.
    #[serde(default, borrow)]
    pub(super) label: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    pub(super) listen_netns: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    pub(super) netns: Option<Cow<'a, str>>,
    /// The unit that the session uses. A process that does not know this field takes that of the listener, if it knows
    /// units.
    #[serde(default, borrow)]
    pub(super) unit: Option<Cow<'a, str>>,
    pub(super) bytes: (u64, u64),
    pub(super) stage: StageRecord,
}

#[derive(Serialize, Deserialize)]
pub(super) enum StageRecord {
    Waiting {
        peer: SocketKind,
    },
    SettingUp {
        peer: SocketKind,
        child: ChildRecord,
        taken_ms: u64,
        /// A process that does not know this field waits until two further calls have passed this one.
        #[serde(default)]
        passed: Passed,
        /// It was logged that connections wait for dom0 at the gate of the call. A process that does not know this
        /// field logs it for no call that is older than two seconds.
        #[serde(default)]
        told: bool,
    },
    Relaying {
        peer: EndRecord,
        upstream: EndRecord,
        up: DirectionRecord,
        down: DirectionRecord,
        reset_by: Option<SideRecord>,
        child: Option<ChildRecord>,
    },
    Flow {
        peer: SocketAddr,
        /// The address of ours that the peer asked, and the interface.
        at: Option<(IpAddr, u32)>,
        quiet_ms: u64,
        #[serde(default)]
        doubt: DoubtKept,
        /// Datagrams sent to the upstream, and those that it answered. A process that does not know this field counts from
        /// 0; it knows no `udp_responses` either.
        #[serde(default)]
        passed: (u64, u64),
        /// Where its datagrams are among the held bytes, which wait for its upstream, and how many bytes each has; such a
        /// flow may have no descriptor. A process that does not know this field ends the flow where it has none.
        #[serde(default)]
        held: (usize, Vec<usize>),
    },
}

#[derive(Serialize, Deserialize)]
pub(super) enum SideRecord {
    Peer,
    Upstream,
}

#[derive(Serialize, Deserialize)]
pub(super) enum EndRecord {
    Socket(SocketKind),
    Pipes { from: bool, to: bool },
}

#[derive(Serialize, Deserialize)]
pub(super) struct ChildRecord {
    pub(super) pid: u32,
    pub(super) stderr: bool,
}

#[derive(Serialize, Deserialize)]
pub(super) struct DirectionRecord {
    #[serde(with = "PhaseRecord")]
    pub(super) phase: Phase,
    /// Where its held bytes are, and how many.
    pub(super) held: (usize, usize),
    pub(super) dropped: u64,
}

/// [`Phase`] in records.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Phase")]
enum PhaseRecord {
    Open,
    Deaf,
    Done,
}

/// The kind of a stream socket, as a record has it.
pub(super) fn socket_kind(kind: StreamKind) -> SocketKind {
    match kind {
        StreamKind::Unix => SocketKind::Unix,
        StreamKind::Tcp | StreamKind::PipeReader | StreamKind::PipeWriter => SocketKind::Tcp,
    }
}

/// The kind of a stream socket, as this process has it.
pub(super) fn stream_kind(kind: SocketKind) -> Result<StreamKind, String> {
    match kind {
        SocketKind::Tcp => Ok(StreamKind::Tcp),
        SocketKind::Unix => Ok(StreamKind::Unix),
        SocketKind::Udp => Err("its record is damaged: a UDP socket carries no stream".to_owned()),
    }
}
