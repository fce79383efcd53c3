//! Records become parked sessions and listeners again, here or in another version of this program.

use std::{
    borrow::Cow,
    io,
    ops::Range,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use uuid::Uuid;

use super::{
    listeners,
    record::{
        ChildRecord, DirectionRecord, EndRecord, FORMAT, HEADER, Head, MAGIC, Record, SideRecord, StageRecord, VERSION,
        stream_kind,
    },
};
use crate::{
    crash::Checkpoint,
    dial::qrexec::{Child, Helper, ParkedCall, Stderr},
    listener::Handed,
    log::{End, Event, Kind as EventKind, emit, escape},
    relay::{
        self, ParkedBytes, ParkedDirection, ParkedEnd, Side,
        datagram::{Asked, Destination},
    },
    session::{
        FlowKept, ListenerIdentity, ParkedPeer, ParkedStage, Peer, RedialsKept, SessionEnding, SessionInfo, Tallies,
        abandon, ended_event,
    },
    spec::SocketKind,
    stream::{Stream, StreamKind},
    sys::lock,
};

/// A session of the previous process.
#[derive(Debug)]
pub struct Adopted<'a> {
    /// SESSION_ID.
    pub id: Uuid,
    /// The fd name of its listener.
    pub name: Cow<'a, str>,
    /// Address, transport, label and namespace of the session's listener.
    pub listener: ListenerIdentity,
    /// The upstream, as logs have it.
    pub upstream: Cow<'a, str>,
    pub peer: Peer,
    /// Since it was accepted.
    pub age: Duration,
    /// Milliseconds from accept to connected.
    pub dial_ms: Option<u64>,
    /// How long the session had waited for a call of its qube, in milliseconds.
    pub queued_ms: u64,
    pub redials: RedialsKept,
    /// The unit that the session uses.
    pub unit: Option<Cow<'a, str>>,
    /// NETNS, once the upstream was dialled in a namespace.
    pub netns: Option<Arc<str>>,
    /// Bytes delivered so far: up, down.
    pub bytes: (u64, u64),
    pub stage: ParkedStage,
    /// The session's checkpoint in this process, after a crash.
    pub checkpoint: Option<Checkpoint>,
}

/// A session that could not be taken up.
#[derive(Debug)]
pub struct Lost {
    /// Its SESSION_ID, where it is known.
    pub session: Option<Uuid>,
    pub what: String,
    pub why: String,
    /// All that is known of it, and its END.
    pub known: Option<Box<(SessionInfo, End)>>,
}

impl Lost {
    /// Tells that the session could not be taken up; that is its end.
    pub fn emit(&self) {
        if let Some(known) = &self.known {
            return emit(ended_event(&known.0, &SessionEnding::new(known.1, self.why.clone())));
        }
        let text = format!("{} could not be taken up: {}", self.what, self.why);
        let mut event = Event::new(EventKind::HandoverLost, text);
        event.session = self.session;
        event.end = self.session.map(|_| End::Drained);
        emit(event);
    }

    /// Whether that cost the session anything: one that was being closed ends as it was to.
    pub fn is_loss(&self) -> bool {
        self.known.as_ref().is_none_or(|known| known.1 == End::Lost)
    }

    /// Counts the end of the session among those of its listener, where that is known.
    pub fn count(&self, tallies: &Tallies) {
        if let Some((info, end)) = self.known.as_deref() {
            tallies.of(&info.route.listener).session_ended(*end, (info.counters.up(), info.counters.down()));
        }
    }

    /// Nothing of the whole handover can be used.
    pub fn all(why: impl Into<String>) -> Self {
        Self { session: None, what: "all sessions of the previous process".into(), why: why.into(), known: None }
    }
}

/// Opens what [`write`] wrote, here or in another version of this program: the listeners, which come first, are read,
/// the sessions are left to be read.
///
/// [`write`]: super::write
pub fn open(
    bytes: Vec<u8>,
    fds: Vec<Option<OwnedFd>>,
    own_listeners: &mut Vec<Handed>,
    lost: &mut Vec<Lost>,
) -> Option<Lines> {
    let mut sessions = Lines { bytes, lines: Vec::new(), held: 0..0, fds: Mutex::new(fds) };
    match lines(&sessions.bytes) {
        Ok((lines, held)) => (sessions.lines, sessions.held) = (lines, held),
        Err(why) => {
            lost.push(Lost::all(why));
            return None;
        }
    }
    let mut own = 0;
    for line in &sessions.lines {
        match listeners::read(&sessions.bytes[line.clone()], &mut lock(&sessions.fds)) {
            Some(Ok(handed)) => own_listeners.push(handed),
            Some(Err(why)) => {
                let what = "a listener of the previous process".to_owned();
                lost.push(Lost { session: None, what, why, known: None });
            }
            None => break,
        }
        own += 1;
    }
    sessions.lines.drain(..own);
    Some(sessions)
}

/// The sessions of the previous process, to be read one by one, by several threads if need be. Dropped, it abandons the
/// descriptors that no record claimed.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    /// Places of the records in `bytes`.
    lines: Vec<Range<usize>>,
    /// Place of the held bytes in `bytes`.
    held: Range<usize>,
    fds: Mutex<Vec<Option<OwnedFd>>>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        let fds = self.fds.get_mut().unwrap_or_else(PoisonError::into_inner);
        fds.iter().flatten().for_each(abandon);
    }
}

impl Lines {
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Reads one; each can be read once.
    ///
    /// # Errors
    /// When its record or a descriptor of it is damaged, missing, or of another version.
    pub fn read(&self, index: usize) -> Result<Adopted<'_>, Lost> {
        let line = &self.bytes[self.lines[index].clone()];
        self.read_line(line).map_err(|why| {
            let session = serde_json::from_slice::<Head>(line).ok().map(|head| head.id);
            let what = match session {
                Some(id) => format!("session {id}"),
                None => format!("a session with the record {}", escape(&line[..line.len().min(80)])),
            };
            Lost { session, what, why, known: None }
        })
    }

    fn read_line<'a>(&'a self, line: &'a [u8]) -> Result<Adopted<'a>, String> {
        let version = |v| format!("its record has version {v}, and this version reads {VERSION}");
        let record = match serde_json::from_slice::<Record<'_>>(line) {
            Ok(record) if record.v == VERSION => record,
            Ok(record) => return Err(version(record.v)),
            // What another version writes may be anything but for its head.
            Err(e) => match serde_json::from_slice::<Head>(line) {
                Ok(head) if head.v != VERSION => return Err(version(head.v)),
                _ => return Err(format!("its record is damaged: {e}")),
            },
        };
        let mut reader =
            RecordReader { fds: self.claim(record.fds)?.into_iter(), held: &self.bytes[self.held.clone()] };
        let stage = reader.stage(record.stage);
        reader.fds.for_each(|fd| abandon(&fd));
        let stage = stage?;
        let own = |text: Option<Cow<'_, str>>| text.map(|text| text.into());
        let listener = ListenerIdentity {
            address: record.listener.into(),
            transport: stage.transport(),
            label: own(record.label),
            netns: own(record.listen_netns),
        };
        Ok(Adopted {
            id: record.id,
            name: record.name,
            listener,
            netns: own(record.netns),
            unit: record.unit,
            upstream: record.upstream,
            peer: Peer::read(&record.peer).unwrap_or(Peer::Unknown),
            age: Duration::from_millis(record.age_ms),
            dial_ms: record.dial_ms,
            queued_ms: record.queued_ms,
            redials: RedialsKept { lost: record.redialled, starting_ms: record.starting_ms },
            bytes: record.bytes,
            stage,
            checkpoint: None,
        })
    }

    /// Takes descriptors for a record: all that it names, or none.
    fn claim(&self, (first, count): (usize, usize)) -> Result<Vec<OwnedFd>, String> {
        let mut fds = lock(&self.fds);
        let mine = first.checked_add(count).and_then(|end| fds.get_mut(first..end));
        let mine = mine.ok_or("its descriptors did not come")?;
        if mine.iter().any(Option::is_none) {
            return Err("a descriptor of it did not come".to_owned());
        }
        Ok(mine.iter_mut().filter_map(Option::take).collect())
    }
}

/// Where each line is, and where the held bytes are.
fn lines(bytes: &[u8]) -> Result<(Vec<Range<usize>>, Range<usize>), String> {
    let header = bytes.split_at_checked(HEADER).filter(|(h, _)| h.starts_with(MAGIC));
    let (header, rest) = header.ok_or("the records are damaged")?;
    let format = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if format != FORMAT {
        return Err(format!("their format is {format}, and this version reads {FORMAT}"));
    }
    let mut length = [0; 8];
    length.copy_from_slice(&header[8..]);
    let split = usize::try_from(u64::from_le_bytes(length)).ok().and_then(|n| rest.split_at_checked(n));
    let (lines, held) = split.ok_or("the records are cut short")?;
    let mut at = HEADER;
    let mut found = Vec::new();
    for line in lines.split(|b| *b == b'\n') {
        if !line.is_empty() {
            found.push(at..at + line.len());
        }
        at += line.len() + 1;
    }
    Ok((found, bytes.len() - held.len()..bytes.len()))
}

struct RecordReader<'a> {
    fds: std::vec::IntoIter<OwnedFd>,
    held: &'a [u8],
}

impl RecordReader<'_> {
    fn fd(&mut self) -> Result<OwnedFd, String> {
        self.fds.next().ok_or_else(|| "a descriptor of it did not come".to_owned())
    }

    fn fd_if(&mut self, there: bool) -> Result<Option<OwnedFd>, String> {
        there.then(|| self.fd()).transpose()
    }

    fn stage(&mut self, stage: StageRecord) -> Result<ParkedStage, String> {
        Ok(match stage {
            StageRecord::Waiting { peer } => ParkedStage::Waiting(self.peer(peer)?),
            StageRecord::SettingUp { peer, child, taken_ms, passed, told } => {
                let peer = self.peer(peer)?;
                let pipes = [self.fd()?, self.fd()?, self.fd()?];
                let helper = self.helper(&child)?;
                let call = ParkedCall { pipes, taken: Duration::from_millis(taken_ms) };
                ParkedStage::SettingUp { peer, helper, call, passed, told }
            }
            StageRecord::Flow { peer, at, quiet_ms, doubt, passed, held } => {
                let at = at.map(|(ip, interface)| Destination { ip, interface });
                let kept = FlowKept { quiet: Duration::from_millis(quiet_ms), doubt, passed };
                let held = self.datagrams(&held)?;
                // Without one they wait for it.
                let upstream = if held.is_empty() { Some(self.fd()?) } else { self.fds.next() };
                ParkedStage::Flow { asked: Asked { peer, at }, upstream, kept, held }
            }
            StageRecord::Relaying { peer, upstream, up, down, reset_by, child } => {
                let (up, down) = (self.direction(&up)?, self.direction(&down)?);
                let (peer, upstream) = (self.end(&peer)?, self.end(&upstream)?);
                let reset_by = reset_by.map(|side| match side {
                    SideRecord::Peer => Side::Peer,
                    SideRecord::Upstream => Side::Upstream,
                });
                let helper = child.map(|child| self.helper(&child)).transpose()?;
                let relay = relay::Parked { peer, upstream, up, down, reset_by, end_held: false };
                ParkedStage::Relaying { relay, helper }
            }
        })
    }

    fn datagrams(&self, (at, lengths): &(usize, Vec<usize>)) -> Result<Vec<Vec<u8>>, String> {
        let mut rest = self.held.get(*at..).ok_or("its datagrams did not come")?;
        let mut datagram = |len: &usize| {
            let (bytes, after) = rest.split_at_checked(*len).ok_or("its datagrams did not come")?;
            rest = after;
            Ok(bytes.to_vec())
        };
        lengths.iter().map(&mut datagram).collect()
    }

    fn peer(&mut self, kind: SocketKind) -> Result<ParkedPeer, String> {
        Ok(ParkedPeer { kind: stream_kind(kind)?, fd: self.fd()? })
    }

    fn helper(&mut self, record: &ChildRecord) -> Result<Helper, String> {
        let failed = |e: io::Error| e.to_string();
        let child = Child::adopt(record.pid, self.fd()?).map_err(failed)?;
        let stderr = self.fd_if(record.stderr)?.map(|fd| Stream::new(fd, StreamKind::PipeReader)).transpose();
        Ok(Helper { child, stderr: Stderr::new(stderr.map_err(failed)?) })
    }

    fn end(&mut self, record: &EndRecord) -> Result<ParkedEnd, String> {
        Ok(match record {
            EndRecord::Socket(kind) => ParkedEnd::Socket(stream_kind(*kind)?, self.fd()?),
            EndRecord::Pipes { from, to } => ParkedEnd::Pipes { from: self.fd_if(*from)?, to: self.fd_if(*to)? },
        })
    }

    fn direction(&self, record: &DirectionRecord) -> Result<ParkedDirection, String> {
        let (at, len) = record.held;
        let held = at.checked_add(len).and_then(|end| self.held.get(at..end)).ok_or("its bytes did not come")?;
        Ok(ParkedDirection { phase: record.phase, held: ParkedBytes::new(held.to_vec()), dropped: record.dropped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{relay::Counters, session::Routes};

    fn ended(end: Option<End>, listener: &ListenerIdentity) -> Lost {
        let known = end.map(|end| {
            let route = Routes::new(0).unknown("name".into(), listener.clone(), "upstream");
            let counters = Counters::starting_at(3, 4);
            Box::new((SessionInfo::new(Uuid::nil(), Arc::new(route), Peer::Unknown, Duration::ZERO, counters), end))
        });
        Lost { session: None, what: "a session".into(), why: "a crash".into(), known }
    }

    #[test]
    fn a_session_that_a_crash_has_ended_is_counted_by_its_listener_and_one_that_was_closing_is_no_loss() {
        let listener = ListenerIdentity::new("127.0.0.1:1", SocketKind::Tcp, None);
        let tallies = Tallies::default();
        let all = [Some(End::Lost), Some(End::Eof), None].map(|end| ended(end, &listener));
        all.iter().for_each(|lost| lost.count(&tallies));
        assert_eq!(all.map(|lost| lost.is_loss()), [true, false, true]);
        let counted = tallies.of(&listener).counted();
        let ends: Vec<_> = counted.ended().filter(|(_, n)| *n > 0).collect();
        assert_eq!((ends, counted.bytes), (vec![(End::Eof, 1), (End::Lost, 1)], [6, 8]));
    }
}
