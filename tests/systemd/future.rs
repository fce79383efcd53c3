//! A stand-in for a later version of the program, as the service's process between two of ours: it takes up what was
//! handed over, writes one record again in a version that this program cannot know, and hands everything over again.

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut, Read as _, Seek as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    signal::{SigSet, Signal},
    socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
    },
};
use sd_notify::NotifyState;

/// Set when the service manager runs the stand-in.
pub(crate) const MARK: &str = "FORWARDER_TEST_FUTURE";
/// The test that is the stand-in.
pub(crate) const TEST: &str = "future::stands_in_for_a_later_version_when_systemd_runs_it";

#[test]
fn stands_in_for_a_later_version_when_systemd_runs_it() {
    if std::env::var_os(MARK).is_none() {
        return;
    }
    // before another thread could get it
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    term.thread_block().expect("SIGTERM can be blocked");
    let names: Vec<_> = sd_notify::listen_fds_with_names().expect("systemd has passed some").collect();
    let stored: Vec<RawFd> = names.iter().filter(|(_, name)| name == "handover").map(|(fd, _)| *fd).collect();
    assert_eq!(stored.len(), 2, "{names:?}");
    let messages: Vec<_> = stored.iter().flat_map(|fd| all_from(*fd)).collect();
    let (bytes, fds) = &messages[0];
    assert_eq!((&bytes[..], fds.len()), (&b"QRXC"[..], 1), "records come first");
    let mut records = Vec::new();
    let mut file = File::open(format!("/proc/self/fd/{}", fds[0])).expect("a memfd");
    file.rewind().expect("a memfd");
    file.read_to_end(&mut records).expect("a memfd");

    let later = memfd_create(c"sessions", MFdFlags::MFD_CLOEXEC).expect("memory");
    let mut file = File::from(later);
    file.write_all(&with_a_later_version(&records)).expect("memory");
    let (one, other) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
            .expect("descriptors");
    let send = |bytes: &[u8], fds: &[RawFd]| {
        let control = [ControlMessage::ScmRights(fds)];
        sendmsg::<()>(one.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), None).expect("room");
    };
    send(b"QRXC", &[file.as_raw_fd()]);
    for (bytes, fds) in &messages[1..] {
        send(bytes, fds);
    }
    let name = || NotifyState::Custom("FDNAME=handover");
    sd_notify::notify(&[NotifyState::FdStoreRemove, name()]).expect("systemd listens");
    let store = [NotifyState::FdStore, name(), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&store, &[one.as_fd(), other.as_fd()]).expect("systemd listens");
    sd_notify::notify(&[NotifyState::Ready, NotifyState::Status("a later version")]).expect("systemd listens");
    assert_eq!(term.wait().expect("it comes"), Signal::SIGTERM);
}

/// The messages that wait in one end: bytes and descriptors.
fn all_from(fd: RawFd) -> Vec<(Vec<u8>, Vec<RawFd>)> {
    let mut messages = Vec::new();
    loop {
        let (mut bytes, mut space) = ([0; 64], nix::cmsg_space!([RawFd; 253]));
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let Ok(message) = recvmsg::<()>(fd, &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT) else {
            return messages;
        };
        let (len, mut fds) = (message.bytes, Vec::new());
        for control in message.cmsgs().expect("room") {
            if let ControlMessageOwned::ScmRights(numbers) = control {
                fds.extend(numbers);
            }
        }
        if len == 0 {
            return messages;
        }
        messages.push((bytes[..len].to_vec(), fds));
    }
}

/// The layout stays, but the first record says that its version is 99 and has a field that nobody knows.
fn with_a_later_version(records: &[u8]) -> Vec<u8> {
    const HEADER: usize = 16;
    let length = u64::from_le_bytes(records[8..HEADER].try_into().expect("eight bytes"));
    let (lines, held) = records[HEADER..].split_at(usize::try_from(length).expect("it is in memory"));
    let (first, rest) = lines.split_at(lines.iter().position(|b| *b == b'\n').expect("a record is a line"));
    let mut record: serde_json::Map<_, _> = serde_json::from_slice(first).expect("a record is JSON");
    record.insert("v".into(), 99.into());
    record.insert("later".into(), true.into());
    let lines = [&serde_json::to_vec(&record).expect("it was JSON"), rest].concat();
    let length = u64::try_from(lines.len()).expect("it is in memory").to_le_bytes();
    [&records[..8], &length, &lines, held].concat()
}
