//! What is written down of a session while it lives, for a process that comes after a crash ([`crate::crash`]).

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use super::{flows::Flow, info::SessionInfo, stage::Stage};
use crate::{
    crash::{Facts, Names, SavedAsker, SavedBases, SavedId, SavedStage, key},
    dial::qrexec::Helper,
    relay::{Relay, datagram::Asked},
    stream::{Stream, StreamKind},
    sys::shadow::monotonic,
};

/// Saves the stage that a session is at from now on. To be called before a descriptor of the stage before is closed.
pub(super) fn save(info: &SessionInfo, stage: &Stage) {
    if !info.counters.checkpoint().is_kept() {
        return;
    }
    match stage {
        Stage::Waiting(peer) => waiting(info, peer),
        Stage::SettingUp(call) => {
            let Helpers { pidfd, pid, stderr } = helper(&call.call.helper);
            let stage = SavedStage::SettingUp {
                peer: peer_key(info, &call.peer),
                peer_unix: is_unix(&call.peer),
                pipes: call.call.descriptors().map(key),
                pidfd,
                pid,
                stderr,
            };
            write(info, &stage, call.call.taken(), None);
        }
        Stage::Relaying(relay, child) => relaying(info, relay, child.as_deref()),
        Stage::Flow(flow) => flow_open(info, flow),
    }
}

/// Saves that the session has nothing but its peer.
pub(super) fn waiting(info: &SessionInfo, peer: &Stream) {
    if info.counters.checkpoint().is_kept() {
        let stage = SavedStage::Waiting { peer: peer_key(info, peer), peer_unix: is_unix(peer) };
        write(info, &stage, Duration::ZERO, None);
    }
}

/// Saves the upstream of a flow, once there is one.
pub(super) fn flow_open(info: &SessionInfo, flow: &Flow) {
    if let (true, Some(upstream)) = (info.counters.checkpoint().is_kept(), flow.upstream_key()) {
        write(info, &SavedStage::Flow { upstream }, Duration::ZERO, Some(flow.asked()));
    }
}

fn relaying(info: &SessionInfo, relay: &Relay, child: Option<&Helper>) {
    let [peer_stream, from, to] = relay.streams();
    let at = |stream: Option<&Stream>| stream.map_or(0, |stream| key(stream.as_fd()));
    let (peer, peer_unix) = (peer_stream.map_or(0, |s| peer_key(info, s)), peer_stream.is_some_and(is_unix));
    let stage = match child {
        Some(child) if relay.has_child() => {
            let Helpers { pidfd, pid, stderr } = helper(child);
            SavedStage::Pipes { peer, peer_unix, from: at(from), to: at(to), pidfd, pid, stderr }
        }
        _ => SavedStage::Sockets { peer, peer_unix, upstream: at(to), upstream_unix: to.is_some_and(is_unix) },
    };
    // Where its bytes are comes first: a relay that was taken up may hold some.
    let checkpoint = info.counters.checkpoint();
    if !checkpoint.has_bases() {
        relay.count_anew(&info.counters);
    }
    relay.note(&info.counters);
    // A call that was set up just now holds nothing. Its stage comes before its rest, so that no process takes the set-up up
    // again and sends what comes first (a PROXY header) a second time.
    if child.is_some() && checkpoint.is_moving() && !checkpoint.is_at(&stage) {
        write(info, &stage, Duration::ZERO, None);
    }
    checkpoint.moved(&relay.saved());
    if !checkpoint.is_at(&stage) {
        write(info, &stage, Duration::ZERO, None);
    }
}

/// Saves what the kernel has counted on the two sockets of a session, of which nothing was relayed yet. `preface`: bytes
/// that the upstream got before.
pub(super) fn begin(info: &SessionInfo, [peer, upstream]: [&Stream; 2], preface: u64) {
    let checkpoint = info.counters.checkpoint();
    if !checkpoint.is_kept() || ![peer, upstream].iter().all(|stream| stream.count_reads()) {
        return;
    }
    // Of the handshake, only the SYN of the side that dials counts. A UNIX socket does not count what is written.
    let written = if is_unix(upstream) { 0 } else { 1 + preface };
    checkpoint.bases(&SavedBases { read: [0, 0], written: [written, 0] });
}

/// The keys of a child.
struct Helpers {
    pidfd: u64,
    pid: u32,
    stderr: u64,
}

fn helper(helper: &Helper) -> Helpers {
    let at = |fd: Option<BorrowedFd<'_>>| fd.map_or(0, key);
    Helpers { pidfd: at(helper.child.pidfd()), pid: helper.child.pid(), stderr: at(helper.stderr.descriptor()) }
}

/// The key of the peer, which stays the same.
fn peer_key(info: &SessionInfo, peer: &Stream) -> u64 {
    match info.counters.checkpoint().peer() {
        0 => key(peer.as_fd()),
        saved => saved,
    }
}

fn is_unix(stream: &Stream) -> bool {
    stream.kind() == StreamKind::Unix
}

fn write(info: &SessionInfo, stage: &SavedStage, set_up: Duration, asked: Option<Asked>) {
    let (checkpoint, now) = (info.counters.checkpoint(), monotonic());
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    // The names change once: when the upstream was dialled in another namespace.
    if !checkpoint.is_live() || (info.netns().is_some() && matches!(stage, SavedStage::Sockets { .. })) {
        let (high, low) = info.id.as_u64_pair();
        let accepted = now.saturating_sub(nanos(info.accepted.elapsed()));
        checkpoint.names(SavedId(high, low), accepted, &names(info, asked));
    }
    let redials = info.redials.keep();
    let starting = redials.starting_ms.map(|ms| now.saturating_add(ms.saturating_mul(1_000_000)));
    let facts = Facts { dial_ms: info.dial_ms(), queued_ms: info.queued_ms(), redialled: redials.lost, starting };
    checkpoint.stage(stage, now.saturating_sub(nanos(set_up)), &facts);
}

fn names(info: &SessionInfo, asked: Option<Asked>) -> Names {
    let own = |text: Option<&str>| text.map(str::to_owned);
    let listener = &info.route.listener;
    Names {
        name: info.route.name.to_string(),
        listener: listener.address.to_string(),
        upstream: info.route.upstream_text.to_string(),
        peer: info.peer.to_string(),
        label: own(listener.label.as_deref()),
        listen_netns: own(listener.netns.as_deref()),
        netns: info.netns().map(ToString::to_string),
        unit: info.backend().map(|backend| backend.unit().to_string()),
        asked: asked.map(|Asked { peer, at }| SavedAsker { peer, at: at.map(|at| (at.ip, at.interface)) }),
    }
}
