//! The records of listeners of our own: a listener keeps its backlog, and a UNIX socket its inode. They are written
//! before all sessions, so that listeners are never cut when the pair is full.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::VERSION;
use crate::{
    activation::Socket,
    dial::netns::Id,
    listener::{Bound, Handed, SocketClaim},
    spec::SocketKind,
};

/// A line about a listener. It has the same head as a session record, so that an older version can report it by id.
#[derive(Serialize, Deserialize)]
struct ListenerRecord {
    v: u32,
    id: Uuid,
    /// Index of its first descriptor, and how many there are: the socket, and the lock of its path.
    fds: (usize, usize),
    own: OwnRecord,
}

#[derive(Serialize, Deserialize)]
struct OwnRecord {
    /// What it listens on, as the configuration had it.
    listen: String,
    kind: SocketKind,
    /// Device and inode of its namespace, when that is not the service's own.
    netns: Option<(u64, u64)>,
    claim: Option<ClaimRecord>,
    /// The processes that served it, the last one first.
    #[serde(default)]
    before: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct ClaimRecord {
    path: Vec<u8>,
    inode: (u64, u64),
}

/// Whether a line is about a listener of ours, whatever else it holds.
#[derive(Deserialize)]
struct Probe {
    own: Option<serde::de::IgnoredAny>,
}

/// Adds a line for `handed` to `lines`, and its descriptors to `fds`.
pub(super) fn write(handed: &Handed, lines: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    let first = fds.len();
    let kind = handed.bound.socket.kind();
    fds.push(std::os::fd::AsFd::as_fd(&handed.bound.socket).try_clone_to_owned()?);
    let mut claim = None;
    if let Some((path, inode, lock)) = handed.bound.claim.as_ref().map(SocketClaim::parts).transpose()? {
        fds.push(lock);
        claim = Some(ClaimRecord { path: path.as_os_str().as_bytes().to_vec(), inode });
    }
    let netns = handed.bound.netns.map(|id| (id.device, id.inode));
    let own = OwnRecord { listen: handed.listen.clone(), kind, netns, claim, before: handed.before.clone() };
    serde_json::to_writer(
        &mut *lines,
        &ListenerRecord { v: VERSION, id: Uuid::new_v4(), fds: (first, fds.len() - first), own },
    )?;
    lines.write_all(b"\n")
}

/// Reads a line about a listener of ours; `None` when it is about something else.
pub(super) fn read(line: &[u8], fds: &mut [Option<OwnedFd>]) -> Option<Result<Handed, String>> {
    serde_json::from_slice::<Probe>(line).ok()?.own?;
    Some(read_it(line, fds))
}

fn read_it(line: &[u8], fds: &mut [Option<OwnedFd>]) -> Result<Handed, String> {
    let line: ListenerRecord = serde_json::from_slice(line).map_err(|e| format!("its record is damaged: {e}"))?;
    if line.v != VERSION {
        return Err(format!("its record has version {}, and this version reads {VERSION}", line.v));
    }
    let (first, count) = line.fds;
    let mine = first.checked_add(count).and_then(|end| fds.get_mut(first..end));
    let mut mine = mine.ok_or("its descriptors did not come")?.iter_mut();
    let mut next = || mine.next().and_then(Option::take).ok_or("a descriptor of it did not come");
    let fd = next()?;
    let claim = match line.own.claim {
        Some(record) => Some(SocketClaim::resume(OsString::from_vec(record.path).into(), record.inode, next()?)),
        None => None,
    };
    let socket = Socket::new(line.own.kind, fd);
    let local = socket.local().map_err(|e| e.to_string())?;
    let netns = line.own.netns.map(|(device, inode)| Id { device, inode });
    let bound = Bound { socket, local, claim, netns };
    Ok(Handed { listen: line.own.listen, bound, before: line.own.before })
}
