//! What is handed over besides descriptors: one line of JSON for each session, and the bytes that were held.
//!
//! A record says by itself which version it has and which descriptors are its own, so that one that cannot be read
//! costs one session and shifts no other. Layout: `"QRXC"`, the format as u32, the length of the lines as u64 (both
//! little-endian), the lines, the held bytes.

use std::{
    borrow::Cow,
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Taken, own};
use crate::{
    dial::qrexec::{Child, ParkedCall, Stderr},
    log::escape,
    relay::{self, ParkedDirection, ParkedEnd, Phase, Side, datagram::Destination},
    service::{
        own::Kept,
        session::{Asked, Parked, ParkedStage},
    },
    stream::{Kind, Stream},
};

/// The version of a record; a reader takes its own only.
pub(super) const VERSION: u32 = 1;
/// The version of the layout around the records.
const FORMAT: u32 = 1;
const MAGIC: &[u8; 4] = b"QRXC";
const HEADER: usize = 16;

/// A session of the previous process.
#[derive(Debug)]
pub struct Adopted<'a> {
    /// SESSION_ID.
    pub id: Uuid,
    /// The fd name of its listener.
    pub name: Cow<'a, str>,
    /// The listener's address.
    pub listener: Cow<'a, str>,
    /// Where it leads, as logs have it.
    pub upstream: Cow<'a, str>,
    /// Who connected, as logs have it.
    pub peer: Cow<'a, str>,
    /// Since it was accepted.
    pub age: Duration,
    /// Milliseconds from accept to connected.
    pub dial_ms: Option<u64>,
    /// Bytes delivered so far: up, down.
    pub bytes: (u64, u64),
    /// Where it stood.
    pub stage: ParkedStage,
}

/// A session that could not be taken up.
#[derive(Debug)]
pub struct Lost {
    /// Its SESSION_ID, where it is known.
    pub session: Option<Uuid>,
    /// Which.
    pub what: String,
    /// Why.
    pub why: String,
}

impl Lost {
    /// Nothing of the whole handover can be used.
    pub fn all(why: impl Into<String>) -> Self {
        Self { session: None, what: "all sessions of the previous process".into(), why: why.into() }
    }
}

/// The part of a record that every version shares.
#[derive(Serialize, Deserialize)]
struct Head {
    v: u32,
    id: Uuid,
}

#[derive(Serialize, Deserialize)]
struct Record<'a> {
    v: u32,
    id: Uuid,
    /// Index of its first descriptor, and how many there are.
    fds: (usize, usize),
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    listener: Cow<'a, str>,
    #[serde(borrow)]
    upstream: Cow<'a, str>,
    #[serde(borrow)]
    peer: Cow<'a, str>,
    age_ms: u64,
    dial_ms: Option<u64>,
    bytes: (u64, u64),
    stage: Stage,
}

#[derive(Serialize, Deserialize)]
enum Stage {
    Waiting {
        peer: SocketKind,
    },
    SettingUp {
        peer: SocketKind,
        child: ChildRecord,
        taken_ms: u64,
    },
    Relaying {
        peer: EndRecord,
        upstream: EndRecord,
        up: Direction,
        down: Direction,
        reset_by: Option<SideRecord>,
        child: Option<ChildRecord>,
    },
    Flow {
        peer: SocketAddr,
        /// The address of ours that the peer asked, and the interface.
        at: Option<(IpAddr, u32)>,
        quiet_ms: u64,
    },
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum SocketKind {
    Tcp,
    Unix,
}

#[derive(Serialize, Deserialize)]
enum SideRecord {
    Peer,
    Upstream,
}

#[derive(Serialize, Deserialize)]
enum EndRecord {
    Socket(SocketKind),
    Pipes { from: bool, to: bool },
}

#[derive(Serialize, Deserialize)]
struct ChildRecord {
    pid: u32,
    stderr: bool,
}

#[derive(Serialize, Deserialize)]
struct Direction {
    phase: PhaseRecord,
    /// Where its held bytes are, and how many.
    held: (usize, usize),
    dropped: u64,
}

#[derive(Serialize, Deserialize)]
enum PhaseRecord {
    Open,
    Deaf,
    Done,
}

/// Everything that is written.
#[derive(Default)]
struct Writer {
    lines: Vec<u8>,
    held: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The records and the descriptors of `listeners` and `parked`.
pub fn write(parked: Vec<Parked>, listeners: &[Kept]) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut w = Writer::default();
    for kept in listeners {
        own::write(kept, &mut w.lines, &mut w.fds)?;
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

impl Writer {
    fn session(&mut self, Parked { info, stage }: Parked) -> io::Result<()> {
        let first = self.fds.len();
        let stage = self.stage(stage);
        let record = Record {
            v: VERSION,
            id: info.id,
            fds: (first, self.fds.len() - first),
            name: Cow::Borrowed(&info.route.name),
            listener: Cow::Borrowed(&info.route.listener),
            upstream: Cow::Borrowed(&info.route.upstream_text),
            peer: Cow::Borrowed(&info.peer),
            age_ms: info.age_ms(),
            dial_ms: info.dial_ms(),
            bytes: (info.counters.up(), info.counters.down()),
            stage,
        };
        serde_json::to_writer(&mut self.lines, &record)?;
        self.lines.push(b'\n');
        Ok(())
    }

    fn stage(&mut self, stage: ParkedStage) -> Stage {
        match stage {
            ParkedStage::Waiting(kind, peer) => {
                self.fds.push(peer);
                Stage::Waiting { peer: kind.into() }
            }
            ParkedStage::SettingUp(kind, peer, child, stderr, call) => {
                self.fds.push(peer);
                self.fds.extend(call.pipes);
                let taken_ms = u64::try_from(call.taken.as_millis()).unwrap_or(u64::MAX);
                Stage::SettingUp { peer: kind.into(), child: self.child(child, stderr), taken_ms }
            }
            ParkedStage::Relaying(relay, child) => Stage::Relaying {
                peer: self.end(relay.peer),
                upstream: self.end(relay.upstream),
                up: self.direction(relay.up),
                down: self.direction(relay.down),
                reset_by: relay.reset_by.map(|side| match side {
                    Side::Peer => SideRecord::Peer,
                    Side::Upstream => SideRecord::Upstream,
                }),
                child: child.map(|(child, stderr)| self.child(child, stderr)),
            },
            ParkedStage::Flow { asked, upstream, quiet } => {
                self.fds.push(upstream);
                let quiet_ms = u64::try_from(quiet.as_millis()).unwrap_or(u64::MAX);
                Stage::Flow { peer: asked.peer, at: asked.at.map(|at| (at.ip, at.interface)), quiet_ms }
            }
        }
    }

    fn child(&mut self, child: Child, stderr: Stderr) -> ChildRecord {
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
                EndRecord::Socket(kind.into())
            }
            ParkedEnd::Pipes { from, to } => {
                let record = EndRecord::Pipes { from: from.is_some(), to: to.is_some() };
                self.fds.extend(from);
                self.fds.extend(to);
                record
            }
        }
    }

    fn direction(&mut self, d: ParkedDirection) -> Direction {
        let held = (self.held.len(), d.held.len());
        self.held.extend_from_slice(&d.held);
        let phase = match d.phase {
            Phase::Open => PhaseRecord::Open,
            Phase::Deaf => PhaseRecord::Deaf,
            Phase::Done => PhaseRecord::Done,
        };
        Direction { phase, held, dropped: d.dropped }
    }
}

/// Opens what [`write`] wrote, here or in another version of this program: the listeners, which come first, are read,
/// the sessions are left to be read.
pub fn open(bytes: Vec<u8>, fds: Vec<Option<OwnedFd>>, taken: &mut Taken) {
    let mut sessions = Sessions { bytes, lines: Vec::new(), held: 0..0, fds: Mutex::new(fds) };
    match lines(&sessions.bytes) {
        Ok((lines, held)) => (sessions.lines, sessions.held) = (lines, held),
        Err(why) => return taken.lost.push(Lost::all(why)),
    }
    let mut own = 0;
    for line in &sessions.lines {
        match own::read(&sessions.bytes[line.clone()], &mut sessions.fds.lock().unwrap_or_else(PoisonError::into_inner))
        {
            Some(Ok(kept)) => taken.listeners.push(kept),
            Some(Err(why)) => {
                let what = "a listener of the previous process".to_owned();
                taken.lost.push(Lost { session: None, what, why });
            }
            None => break,
        }
        own += 1;
    }
    sessions.lines.drain(..own);
    taken.sessions.push(sessions);
}

/// The sessions of the previous process, to be read one by one, by several threads if need be. Dropped, it abandons the
/// descriptors that no record claimed.
#[derive(Debug)]
pub struct Sessions {
    bytes: Vec<u8>,
    /// Where the records are.
    lines: Vec<Range<usize>>,
    /// Where the held bytes are.
    held: Range<usize>,
    fds: Mutex<Vec<Option<OwnedFd>>>,
}

impl Drop for Sessions {
    fn drop(&mut self) {
        let fds = self.fds.get_mut().unwrap_or_else(PoisonError::into_inner);
        fds.iter().flatten().for_each(super::abandon);
    }
}

impl Sessions {
    /// How many there are.
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
            Lost { session, what, why }
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
        let mut reader = Reader { fds: self.claim(record.fds)?.into_iter(), held: &self.bytes[self.held.clone()] };
        let stage = reader.stage(record.stage);
        reader.fds.for_each(|fd| super::abandon(&fd));
        let stage = stage?;
        Ok(Adopted {
            id: record.id,
            name: record.name,
            listener: record.listener,
            upstream: record.upstream,
            peer: record.peer,
            age: Duration::from_millis(record.age_ms),
            dial_ms: record.dial_ms,
            bytes: record.bytes,
            stage,
        })
    }

    /// Takes descriptors for a record: all that it names, or none.
    fn claim(&self, (first, count): (usize, usize)) -> Result<Vec<OwnedFd>, String> {
        let mut fds = self.fds.lock().unwrap_or_else(PoisonError::into_inner);
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

struct Reader<'a> {
    fds: std::vec::IntoIter<OwnedFd>,
    held: &'a [u8],
}

impl Reader<'_> {
    fn fd(&mut self) -> Result<OwnedFd, String> {
        self.fds.next().ok_or_else(|| "a descriptor of it did not come".to_owned())
    }

    fn fd_if(&mut self, there: bool) -> Result<Option<OwnedFd>, String> {
        there.then(|| self.fd()).transpose()
    }

    fn stage(&mut self, stage: Stage) -> Result<ParkedStage, String> {
        Ok(match stage {
            Stage::Waiting { peer } => ParkedStage::Waiting(peer.into(), self.fd()?),
            Stage::SettingUp { peer, child, taken_ms } => {
                let socket = self.fd()?;
                let pipes = [self.fd()?, self.fd()?, self.fd()?];
                let (child, stderr) = self.child(&child)?;
                let call = ParkedCall { pipes, taken: Duration::from_millis(taken_ms) };
                ParkedStage::SettingUp(peer.into(), socket, child, stderr, call)
            }
            Stage::Flow { peer, at, quiet_ms } => {
                let at = at.map(|(ip, interface)| Destination { ip, interface });
                let quiet = Duration::from_millis(quiet_ms);
                ParkedStage::Flow { asked: Asked { peer, at }, upstream: self.fd()?, quiet }
            }
            Stage::Relaying { peer, upstream, up, down, reset_by, child } => {
                let (up, down) = (self.direction(&up)?, self.direction(&down)?);
                let (peer, upstream) = (self.end(&peer)?, self.end(&upstream)?);
                let reset_by = reset_by.map(|side| match side {
                    SideRecord::Peer => Side::Peer,
                    SideRecord::Upstream => Side::Upstream,
                });
                let child = child.map(|c| self.child(&c)).transpose()?;
                ParkedStage::Relaying(relay::Parked { peer, upstream, up, down, reset_by }, child)
            }
        })
    }

    fn child(&mut self, record: &ChildRecord) -> Result<(Child, Stderr), String> {
        let failed = |e: io::Error| e.to_string();
        let child = Child::adopt(record.pid, self.fd()?).map_err(failed)?;
        let stderr = self.fd_if(record.stderr)?.map(|fd| Stream::new(fd, Kind::PipeReader)).transpose();
        Ok((child, Stderr::new(stderr.map_err(failed)?)))
    }

    fn end(&mut self, record: &EndRecord) -> Result<ParkedEnd, String> {
        Ok(match record {
            EndRecord::Socket(kind) => ParkedEnd::Socket((*kind).into(), self.fd()?),
            EndRecord::Pipes { from, to } => ParkedEnd::Pipes { from: self.fd_if(*from)?, to: self.fd_if(*to)? },
        })
    }

    fn direction(&self, record: &Direction) -> Result<ParkedDirection, String> {
        let (at, len) = record.held;
        let held = at.checked_add(len).and_then(|end| self.held.get(at..end)).ok_or("its bytes did not come")?;
        let phase = match record.phase {
            PhaseRecord::Open => Phase::Open,
            PhaseRecord::Deaf => Phase::Deaf,
            PhaseRecord::Done => Phase::Done,
        };
        Ok(ParkedDirection { phase, held: held.to_vec(), dropped: record.dropped })
    }
}

impl From<Kind> for SocketKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Unix => Self::Unix,
            Kind::Tcp | Kind::PipeReader | Kind::PipeWriter => Self::Tcp,
        }
    }
}

impl From<SocketKind> for Kind {
    fn from(kind: SocketKind) -> Self {
        match kind {
            SocketKind::Tcp => Self::Tcp,
            SocketKind::Unix => Self::Unix,
        }
    }
}
