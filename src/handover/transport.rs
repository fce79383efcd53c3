//! Records and descriptors through one SEQPACKET pair.

use std::{
    fs::File,
    io::{self, IoSlice, Read as _, Seek as _, Write as _},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        resource::{Resource, getrlimit},
        socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair},
    },
};

use crate::sys;

/// Descriptors in one message; the kernel takes 253 (SCM_MAX_FD, unix(7)).
const BATCH: usize = 250;
/// Records are refused above this size, in bytes: 64 Ki sessions with a full buffer each would not need it.
const LIMIT: u64 = 1 << 30;
/// What the first message carries besides the records' memfd.
const MAGIC: &[u8; 4] = b"QRXC";

/// The two ends.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends the records, then as many descriptors as the pair takes: how many. The reader finds out which did not come.
pub fn send(to: BorrowedFd<'_>, records: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let memfd = memfd_create(c"sessions", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(memfd);
    file.write_all(records)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    send_one(to, MAGIC, &[file.as_raw_fd()])?;
    for (index, batch) in descriptors.chunks(BATCH).enumerate() {
        let fds: Vec<RawFd> = batch.iter().map(|fd| fd.as_raw_fd()).collect();
        let first = u32::try_from(index * BATCH).unwrap_or(u32::MAX);
        match send_one(to, &first.to_le_bytes(), &fds) {
            Ok(()) => {}
            // The pair is full, or too many descriptors are in flight: what is there is handed over.
            Err(Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => return Ok(index * BATCH),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(descriptors.len())
}

fn send_one(to: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> nix::Result<()> {
    let control = [ControlMessage::ScmRights(fds)];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// About what a record takes for each of its descriptors, in bytes: a call's 80, that of a relay of two sockets 180.
const RECORD: u64 = 100;

/// Makes the table of this process large enough for the descriptors that wait in one end, as far as that can be told
/// from the size of the records, which come first. Where it cannot, the table grows later.
pub fn make_room(from: BorrowedFd<'_>) {
    let Ok((_, fds)) = sys::receive::<BATCH>(from, &mut [0; 16], MsgFlags::MSG_PEEK) else { return };
    let size = fds.into_iter().next().and_then(|memfd| File::from(memfd).metadata().ok()).map_or(0, |m| m.len());
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    let highest = (size / RECORD).min(limit.saturating_sub(1));
    let _ = fcntl(from, FcntlArg::F_DUPFD_CLOEXEC(RawFd::try_from(highest).unwrap_or(0))).map(sys::own);
}

/// Whether a message waits in one end.
pub fn waits(from: BorrowedFd<'_>) -> bool {
    sys::receive::<1>(from, &mut [0; 16], MsgFlags::MSG_PEEK).is_ok_and(|(len, fds)| len > 0 || !fds.is_empty())
}

/// A handover as it arrives.
pub struct Received {
    /// The records, byte for byte.
    pub records: Vec<u8>,
    /// The descriptors in their order, with gaps where some did not come.
    pub descriptors: Vec<Option<OwnedFd>>,
}

/// Takes the handover that waits in one end; `None` when nothing does: the other end has it.
pub fn receive(from: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    let Some((bytes, fds)) = receive_one(from)? else { return Ok(None) };
    let bad = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let memfd = match <[OwnedFd; 1]>::try_from(fds) {
        Ok([memfd]) if bytes == MAGIC => memfd,
        _ => return Err(bad("the handover does not begin with records")),
    };
    let mut file = File::from(memfd);
    let size = file.metadata()?.len();
    if size > LIMIT {
        return Err(bad("the handover's records are too large"));
    }
    file.rewind()?;
    let mut records = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(size).read_to_end(&mut records)?;
    let mut descriptors: Vec<Option<OwnedFd>> = Vec::new();
    while let Some((bytes, fds)) = receive_one(from)? {
        let Ok(first) = <[u8; 4]>::try_from(&bytes[..]).map(u32::from_le_bytes) else { continue };
        // In order: a first index beyond what came so far by more than a few batches is damage.
        let first = first as usize;
        if first > descriptors.len() + BATCH {
            continue;
        }
        descriptors.resize_with(descriptors.len().max(first), || None);
        descriptors.truncate(first);
        descriptors.extend(fds.into_iter().map(Some));
    }
    Ok(Some(Received { records, descriptors }))
}

fn receive_one(from: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = [0; 16];
    let (len, fds) = match sys::receive::<BATCH>(from, &mut bytes, MsgFlags::empty()) {
        Ok(received) => received,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(e) => return Err(e),
    };
    if len == 0 && fds.is_empty() {
        return Ok(None); // the other end is closed and everything was read
    }
    Ok(Some((bytes[..len].to_vec(), fds)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    fn some_fds(n: usize) -> Vec<OwnedFd> {
        (0..n).map(|_| File::open("/dev/null").expect("/dev/null").into()).collect()
    }

    #[test]
    fn records_and_descriptors_arrive_complete_and_in_order() {
        let (a, b) = pair().unwrap();
        let fds = some_fds(600);
        send(a.as_fd(), b"records", &fds).unwrap();
        assert!(receive(a.as_fd()).unwrap().is_none(), "nothing waits in the end that sent");
        let Received { records, descriptors } = receive(b.as_fd()).unwrap().expect("it waits in the other end");
        assert_eq!(records, b"records");
        assert_eq!(descriptors.len(), 600);
        assert!(descriptors.iter().all(Option::is_some));
    }

    #[test]
    fn a_pair_without_records_is_refused_and_an_empty_one_is_nothing() {
        let (a, b) = pair().unwrap();
        assert!(receive(b.as_fd()).unwrap().is_none());
        send_one(a.as_fd(), b"what", &[]).unwrap();
        assert!(receive(b.as_fd()).is_err());
    }
}
