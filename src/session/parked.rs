//! A session taken off the runtime, for the next process.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};

use super::{doubt::DoubtKept, info::SessionInfo, permits::Permits, route::Route};
use crate::{
    dial::{
        self, Entrance, NotedSocket, Passage,
        qrexec::{Helper, ParkedCall, Passed, gate::Ticket},
    },
    relay::{self, datagram::Asked},
    spec::SocketKind,
    stream::{self, StreamKind},
    sys,
};

/// A session for the next process.
#[derive(Debug)]
pub struct ParkedSession {
    pub info: Arc<SessionInfo>,
    pub stage: ParkedStage,
    /// The places that the session took up. They are kept until all sessions are parked: given back earlier, they would
    /// let a session that waits begin its call in this process.
    pub(super) _places: (Permits, Option<Ticket>),
}

/// The stage of a session, taken off the runtime.
#[derive(Debug)]
pub enum ParkedStage {
    /// Not connected yet.
    Waiting(ParkedPeer),
    /// A qrexec call that is not decided yet.
    SettingUp {
        /// The peer's socket.
        peer: ParkedPeer,
        /// The child.
        helper: Helper,
        /// The child's pipes.
        call: ParkedCall,
        /// The calls that have passed this one at its gate.
        passed: Passed,
        /// It was logged that connections wait for dom0 at the gate.
        told: bool,
    },
    /// Both ends, and the bytes on their way.
    Relaying {
        /// The relay.
        relay: relay::Parked,
        /// The child, where the upstream is a qrexec call.
        helper: Option<Helper>,
    },
    /// A flow's upstream socket.
    Flow {
        /// The key of the flow among those of its listener.
        asked: Asked,
        /// The upstream socket; `None` while the unit of the flow is not up.
        upstream: Option<OwnedFd>,
        kept: FlowKept,
        /// Datagrams that wait for the upstream.
        held: Vec<Vec<u8>>,
    },
}

/// A flow for the next process, beside its socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKept {
    /// Time since the last datagram.
    pub quiet: Duration,
    /// The doubts about the upstream.
    pub doubt: DoubtKept,
    /// Datagrams sent to the upstream, and those that it answered.
    pub passed: (u64, u64),
}

/// The socket of a peer that was accepted.
#[derive(Debug)]
pub struct ParkedPeer {
    /// TCP or UNIX.
    pub kind: StreamKind,
    /// The socket.
    pub fd: OwnedFd,
}

impl From<stream::Stream> for ParkedPeer {
    fn from(peer: stream::Stream) -> Self {
        Self { kind: peer.kind(), fd: peer.into_fd() }
    }
}

impl ParkedStage {
    /// The session's child.
    pub fn helper(&self) -> Option<&Helper> {
        match self {
            Self::SettingUp { helper, .. } | Self::Relaying { helper: Some(helper), .. } => Some(helper),
            Self::Waiting(_) | Self::Relaying { helper: None, .. } | Self::Flow { .. } => None,
        }
    }

    /// How the bytes of the session came to it by `entrance`, where its upstream can lead back to this service.
    pub fn passage(&self, route: &Route, entrance: &Entrance) -> Option<Passage> {
        let peer = match self {
            // It dials later, and then there may be other listeners.
            Self::Waiting(peer) => return Some(entrance.resumed(peer.fd.as_fd())),
            Self::Relaying { relay, helper: None } => match &relay.peer {
                relay::ParkedEnd::Socket(_, fd) => fd,
                relay::ParkedEnd::Pipes { .. } => return None,
            },
            // Each flow is noted, and what it was asked says where it came from.
            Self::Flow { asked, .. } => return Some(entrance.resumed_flow(asked.peer, asked.at.map(|at| at.ip))),
            Self::SettingUp { .. } | Self::Relaying { helper: Some(_), .. } => return None,
        };
        route.may_lead_back().then(|| entrance.resumed(peer.as_fd()))
    }

    /// Notes the upstream socket of a relay, where it can lead back to this service. (A flow notes its own.)
    pub fn note_upstream(&self, passage: &Passage) -> Option<NotedSocket> {
        match self {
            Self::Relaying { relay: relay::Parked { upstream: relay::ParkedEnd::Socket(_, fd), .. }, helper: None } => {
                dial::note_again(fd.as_fd(), passage)
            }
            _ => None,
        }
    }

    /// The transport of the session's listener.
    pub fn transport(&self) -> SocketKind {
        let kind = match self {
            Self::Waiting(peer) | Self::SettingUp { peer, .. } => peer.kind,
            Self::Relaying { relay, .. } => match relay.peer {
                relay::ParkedEnd::Socket(kind, _) => kind,
                relay::ParkedEnd::Pipes { .. } => StreamKind::Tcp,
            },
            Self::Flow { .. } => return SocketKind::Udp,
        };
        if kind == StreamKind::Unix { SocketKind::Unix } else { SocketKind::Tcp }
    }

    /// What a flow has lost, for its end; empty when nothing was.
    pub fn losses(&self) -> String {
        match self {
            Self::Flow { kept, .. } => kept.doubt.losses(),
            Self::Waiting(_) | Self::SettingUp { .. } | Self::Relaying { .. } => String::new(),
        }
    }

    /// Ends what no process takes up: peers see a reset. A child is killed when it is dropped.
    pub fn abandon(self) {
        match self {
            Self::Waiting(peer) | Self::SettingUp { peer, .. } => abandon(&peer.fd),
            Self::Relaying { relay, .. } => {
                for end in [relay.peer, relay.upstream] {
                    if let relay::ParkedEnd::Socket(_, fd) = end {
                        abandon(&fd);
                    }
                }
            }
            Self::Flow { .. } => {} // nobody sees the end of a datagram socket
        }
    }
}

/// Ends a descriptor that no process takes up, whatever its kind is: the other side of a socket sees a reset and no
/// end, which would make a part look complete; a child is asked to end. Errors for other kinds of descriptors
/// (ENOTSOCK, EBADF) are ignored.
pub fn abandon(fd: &OwnedFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(fd, sockopt::Linger, &linger);
    let _ = sys::pidfd_send_signal(fd.as_fd(), libc::SIGTERM);
}
