//! What a service left in its descriptor store for the next process, in the hands of a test that wants it damaged.

use std::{
    fs::File,
    io::{IoSlice, Read, Seek, Write},
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    socket::{ControlMessage, MsgFlags, sendmsg},
};

use crate::{Notifications, raw};

/// A handover: its records, and the descriptors of its sessions.
pub struct Handed {
    /// Where the next process reads it: the pair's ends in the store share one description each with these.
    to: OwnedFd,
    /// `"QRXC"`, the format, the length of the lines, the lines, the bytes.
    pub records: Vec<u8>,
    /// As many messages as there were: what they said, and what they carried.
    pub batches: Vec<(Vec<u8>, Vec<OwnedFd>)>,
}

impl Handed {
    /// Takes the handover out of the store's pair, to be put back changed.
    #[track_caller]
    pub fn take(from: &Notifications) -> Self {
        let [first, second] =
            <[_; 2]>::try_from(from.store()).map(|s| s.map(|(_, fd)| fd)).expect("the pair's two ends");
        let mut messages = Vec::new();
        let mut to = None;
        for (end, other) in [(&first, &second), (&second, &first)] {
            let mut buffer = [0; 64];
            // the ends do not block
            while let Ok((n, fds)) = raw::receive_with_descriptors(end, &mut buffer) {
                if n == 0 && fds.is_empty() {
                    break;
                }
                messages.push((buffer[..n].to_vec(), fds));
                to = Some(other.try_clone().expect("a descriptor"));
            }
        }
        let (_, memfd) = messages.remove(0);
        let mut file = File::from(memfd.into_iter().next().expect("the records come first"));
        let mut records = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut records)).expect("a memfd can be read");
        Self { to: to.expect("one of the ends has it"), records, batches: messages }
    }

    /// The lines, one for each session.
    pub fn lines(&self) -> Vec<String> {
        let length = u64::from_le_bytes(self.records[8..16].try_into().expect("eight bytes")) as usize;
        let lines = std::str::from_utf8(&self.records[16..16 + length]).expect("JSON");
        lines.lines().map(str::to_owned).collect()
    }

    /// Replaces the lines.
    pub fn set_lines(&mut self, lines: &[String]) {
        let length = u64::from_le_bytes(self.records[8..16].try_into().expect("eight bytes")) as usize;
        let bytes = self.records.split_off(16 + length);
        let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        self.records.truncate(8);
        self.records.extend((text.len() as u64).to_le_bytes());
        self.records.extend(text.bytes());
        self.records.extend(bytes);
    }

    /// Puts it back for the next process.
    pub fn put_back(self) {
        let mut memfd = File::from(memfd_create(c"sessions", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
        memfd.write_all(&self.records).expect("a memfd takes all");
        self.send(b"QRXC", &[memfd.as_raw_fd()]);
        for (said, fds) in &self.batches {
            self.send(said, &fds.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>());
        }
    }

    fn send(&self, bytes: &[u8], fds: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        sendmsg::<()>(self.to.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::empty(), None).expect("it fits");
    }
}
