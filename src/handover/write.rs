//! ParkedSession sessions and listeners become records and descriptors.

use std::{borrow::Cow, io, os::fd::OwnedFd};

use super::{
    listeners,
    record::{
        ChildRecord, DirectionRecord, EndRecord, FORMAT, HEADER, MAGIC, Record, SideRecord, StageRecord, VERSION,
        socket_kind,
    },
};
use crate::{
    dial::qrexec::Helper,
    listener::Handed,
    relay::{ParkedDirection, ParkedEnd, Side},
    session::{ParkedSession, ParkedStage},
};

/// Everything that is written.
#[derive(Default)]
struct RecordWriter {
    lines: Vec<u8>,
    held: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The records and the descriptors of `listeners` and `parked`.
pub fn write(parked: Vec<ParkedSession>, listeners: &[Handed]) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut w = RecordWriter::default();
    for handed in listeners {
        listeners::write(handed, &mut w.lines, &mut w.fds)?;
    }
    for session in parked {
        w.session(session)?;
    }
    let mut all = Vec::with_capacity(HEADER + w.lines.len() + w.held.len());
    all.extend_from_slice(MAGIC);
    all.extend_from_slice(&FORMAT.to_le_bytes());
    all.extend_from_slice(&(w.lines.len() as u64).to_le_bytes());
    all.append(&mut w.lines);
    all.append(&mut w.held);
    Ok((all, w.fds))
}

impl RecordWriter {
    fn session(&mut self, ParkedSession { info, stage, .. }: ParkedSession) -> io::Result<()> {
        let first = self.fds.len();
        let (stage, redials) = (self.stage(stage), info.redials.keep());
        let record = Record {
            v: VERSION,
            id: info.id,
            fds: (first, self.fds.len() - first),
            name: Cow::Borrowed(&info.route.name),
            listener: Cow::Borrowed(&info.route.listener.address),
            upstream: Cow::Borrowed(&info.route.upstream_text),
            peer: Cow::Owned(info.peer.to_string()),
            age_ms: info.age_ms(),
            dial_ms: info.dial_ms(),
            queued_ms: info.queued_ms(),
            redialled: redials.lost,
            starting_ms: redials.starting_ms,
            label: info.route.listener.label.as_deref().map(Cow::Borrowed),
            listen_netns: info.route.listener.netns.as_deref().map(Cow::Borrowed),
            netns: info.netns().map(|netns| Cow::Owned(netns.to_string())),
            unit: info.backend().map(|backend| Cow::Borrowed(&**backend.unit())),
            bytes: (info.counters.up(), info.counters.down()),
            stage,
        };
        serde_json::to_writer(&mut self.lines, &record)?;
        self.lines.push(b'\n');
        Ok(())
    }

    fn stage(&mut self, stage: ParkedStage) -> StageRecord {
        match stage {
            ParkedStage::Waiting(peer) => {
                self.fds.push(peer.fd);
                StageRecord::Waiting { peer: socket_kind(peer.kind) }
            }
            ParkedStage::SettingUp { peer, helper, call, passed, told } => {
                self.fds.push(peer.fd);
                self.fds.extend(call.pipes);
                let taken_ms = u64::try_from(call.taken.as_millis()).unwrap_or(u64::MAX);
                let (peer, child) = (socket_kind(peer.kind), self.child(helper));
                StageRecord::SettingUp { peer, child, taken_ms, passed, told }
            }
            ParkedStage::Relaying { relay, helper } => StageRecord::Relaying {
                peer: self.end(relay.peer),
                upstream: self.end(relay.upstream),
                up: self.direction(relay.up),
                down: self.direction(relay.down),
                reset_by: relay.reset_by.map(|side| match side {
                    Side::Peer => SideRecord::Peer,
                    Side::Upstream => SideRecord::Upstream,
                }),
                child: helper.map(|helper| self.child(helper)),
            },
            ParkedStage::Flow { asked, upstream, kept, held } => {
                self.fds.extend(upstream);
                let at_held = (self.held.len(), held.iter().map(Vec::len).collect());
                held.iter().for_each(|bytes| self.held.extend_from_slice(bytes));
                let quiet_ms = u64::try_from(kept.quiet.as_millis()).unwrap_or(u64::MAX);
                let at = asked.at.map(|at| (at.ip, at.interface));
                let (doubt, passed) = (kept.doubt, kept.passed);
                StageRecord::Flow { peer: asked.peer, at, quiet_ms, doubt, passed, held: at_held }
            }
        }
    }

    fn child(&mut self, Helper { child, stderr }: Helper) -> ChildRecord {
        let pid = child.pid();
        self.fds.extend(child.release().map(|(_, fd)| fd));
        let stderr = stderr.into_fd();
        let record = ChildRecord { pid, stderr: stderr.is_some() };
        self.fds.extend(stderr);
        record
    }

    fn end(&mut self, end: ParkedEnd) -> EndRecord {
        match end {
            ParkedEnd::Socket(kind, fd) => {
                self.fds.push(fd);
                EndRecord::Socket(socket_kind(kind))
            }
            ParkedEnd::Pipes { from, to } => {
                let record = EndRecord::Pipes { from: from.is_some(), to: to.is_some() };
                self.fds.extend(from);
                self.fds.extend(to);
                record
            }
        }
    }

    fn direction(&mut self, d: ParkedDirection) -> DirectionRecord {
        let held = (self.held.len(), d.held.len());
        self.held.extend_from_slice(&d.held);
        DirectionRecord { phase: d.phase, held, dropped: d.dropped }
    }
}
