//! The descriptors of processes that died, as their shadows have given them: by what they are.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{MsgFlags, SockType, SockaddrStorage, getpeername, getsockopt, setsockopt, sockopt},
        stat::{SFlag, fstat},
    },
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    crash::{self, DescriptorKey},
    log::{Kind, say},
    session::abandon,
    sys,
    systemd::headroom::Headroom,
};

/// Descriptors in one message of a shadow.
const BATCH: usize = sys::shadow::BATCH;
/// How long nothing may come from a shadow that is not done. It gathers 8,000 descriptors in 30 ms.
const SILENCE: Duration = Duration::from_secs(5);

/// Descriptors by what they are.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    pub(super) by_key: HashMap<(Class, DescriptorKey), Vec<OwnedFd>>,
    /// Process ids, keys.
    pidfds: Vec<(u32, DescriptorKey, OwnedFd)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    Socket,
    PipeReader,
    PipeWriter,
    /// Also a datagram socket without a peer.
    Listener,
    File,
}

/// Receives what waits in the pair, until all shadows are `done` and nothing more comes.
pub(super) fn receive(from: BorrowedFd<'_>, done: impl Fn() -> bool) -> Descriptors {
    let mut all = Descriptors::default();
    let mut heard = Instant::now();
    loop {
        // Asked first: what was sent before a shadow was done is there.
        let done = done();
        let silent = !done && heard.elapsed() > SILENCE;
        if silent {
            let text =
                format!("after a crash, the process that has the descriptors is silent for {} s", SILENCE.as_secs());
            say(Kind::HandoverLost, text);
        }
        let last = done || silent;
        // What the previous process had while it was at its limit, this one may need to have too.
        let headroom = Headroom::take();
        while let Ok((n, fds)) = sys::receive::<BATCH>(from, &mut [0; 16], MsgFlags::empty()) {
            if n == 0 && fds.is_empty() {
                break;
            }
            heard = Instant::now();
            fds.into_iter().for_each(|fd| all.add(fd));
        }
        drop(headroom);
        if last {
            return all;
        }
        let _ = poll(&mut [PollFd::new(from, PollFlags::POLLIN)], PollTimeout::from(10_u8));
    }
}

/// Resets whatever a shadow gives that was given up, as long as this process lives. The sessions were reported as lost.
///
/// # Cancel safety
/// Safe.
pub async fn reset_late(take: OwnedFd) {
    let Ok(take) = sys::register(take, Interest::READABLE) else { return };
    while let Ok(mut ready) = take.readable().await {
        let come = |take: &AsyncFd<OwnedFd>| sys::receive::<BATCH>(take.as_fd(), &mut [0; 16], MsgFlags::empty());
        match ready.try_io(come) {
            Ok(Ok((n, fds))) if n > 0 || !fds.is_empty() => {
                let mut late = Descriptors::default();
                fds.into_iter().for_each(|fd| late.add(fd));
                // Those of systemd are in use here.
                late.close_unclaimed_listeners();
                late.by_key.values().flatten().for_each(abandon);
            }
            Ok(_) => return,
            Err(_would_block) => {}
        }
    }
}

impl Descriptors {
    /// Adds a descriptor.
    pub(super) fn add(&mut self, fd: OwnedFd) {
        let Ok(stat) = fstat(&fd) else { return };
        let key = crash::key(fd.as_fd());
        let class = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFSOCK if is_connected(&fd) => Class::Socket,
            SFlag::S_IFSOCK => Class::Listener,
            SFlag::S_IFREG => Class::File,
            SFlag::S_IFIFO => {
                let flags = fcntl(&fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).unwrap_or(OFlag::empty());
                if flags & OFlag::O_ACCMODE == OFlag::O_WRONLY { Class::PipeWriter } else { Class::PipeReader }
            }
            _ => {
                if let Some(pid) = pid_of(&fd) {
                    self.pidfds.push((pid, key, fd));
                }
                return;
            }
        };
        self.by_key.entry((class, key)).or_default().push(fd);
    }

    /// Takes the descriptor with this key. It may have come several times: one is enough.
    pub(super) fn claim(&mut self, class: Class, key: DescriptorKey) -> Option<OwnedFd> {
        let fd = self.by_key.remove(&(class, key)).and_then(|fds| fds.into_iter().next())?;
        if class == Class::Socket {
            // The shadow has set it, for the case that nobody claims the socket.
            let _ = setsockopt(&fd, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 });
        }
        Some(fd)
    }

    /// Closes the listeners and files that nobody has claimed: systemd's own listeners come again in another way.
    pub(super) fn close_unclaimed_listeners(&mut self) {
        self.by_key.retain(|(class, _), _| !matches!(class, Class::Listener | Class::File));
    }

    /// Whether the descriptor with this key has come, and nobody has claimed it.
    pub(super) fn has(&self, class: Class, key: DescriptorKey) -> bool {
        self.by_key.contains_key(&(class, key))
    }

    /// Bytes in the pipe with this key; `None` where there is no such pipe.
    pub(super) fn bytes_in_pipe(&self, key: DescriptorKey) -> Option<u64> {
        let pipe = self.by_key.get(&(Class::PipeReader, key)).and_then(|fds| fds.first())?;
        Some(sys::unread(pipe.as_fd()) as u64)
    }

    /// Takes the pidfd of this process; by its key where the process was collected already.
    pub(super) fn claim_process(&mut self, pid: u32, key: DescriptorKey) -> Option<OwnedFd> {
        let known = |(of, at, _): &(u32, DescriptorKey, OwnedFd)| *of == pid || (*of == 0 && *at == key);
        let index = self.pidfds.iter().position(known)?;
        Some(self.pidfds.swap_remove(index).2)
    }
}

/// Whether a socket has another side. A datagram socket of a flow is connected, a listening one is not.
fn is_connected(fd: &OwnedFd) -> bool {
    let listens = getsockopt(fd, sockopt::AcceptConn).unwrap_or(false);
    !listens && (is_stream(fd) || getpeername::<SockaddrStorage>(fd.as_raw_fd()).is_ok())
}

/// A stream socket whose other side is gone has no peer name any more.
pub(super) fn is_stream(fd: &OwnedFd) -> bool {
    getsockopt(fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream)
}

pub(super) fn is_unix(fd: &OwnedFd) -> bool {
    socket2::SockRef::from(fd).local_addr().is_ok_and(|local| local.is_unix())
}

/// The process that a pidfd stands for; 0 when that has been collected. `None` for other descriptors.
fn pid_of(fd: &OwnedFd) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    Some(pid.trim().parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, IoSlice},
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
    };

    use tokio::io::AsyncReadExt as _;

    use nix::{
        sys::{
            resource::{Resource, setrlimit},
            socket::{AddressFamily, ControlMessage, SockFlag, UnixAddr, sendmsg, socketpair},
        },
        unistd::pipe,
    };

    use super::*;
    use crate::systemd::headroom;

    /// Descriptors that a process without room for them takes from a pair, of eight.
    fn taken_at_the_limit() -> u8 {
        let numbers = std::fs::read_dir("/proc/self/fd").expect("it is there").flatten();
        let highest = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()).max();
        let few = highest.expect("there are some") + 64;
        setrlimit(Resource::RLIMIT_NOFILE, few, few).expect("it is lowered");
        headroom::keep();
        let (give, take) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).expect("a pair");
        let pipes: Vec<_> = (0..4).map(|_| pipe().expect("a pipe")).collect();
        let fds: Vec<_> = pipes.iter().flat_map(|(from, to)| [from.as_raw_fd(), to.as_raw_fd()]).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<UnixAddr>(give.as_raw_fd(), &[IoSlice::new(&[0; 8])], &rights, MsgFlags::empty(), None)
            .expect("there is room");
        let _all: Vec<_> = std::iter::from_fn(|| take.try_clone().ok()).collect();
        let received = receive(take.as_fd(), || true);
        u8::try_from(received.by_key.values().map(Vec::len).sum::<usize>()).expect("few")
    }

    #[test]
    fn a_process_at_its_limit_of_descriptors_takes_what_another_had_at_its_own() {
        // No other thread may have it at the moment of the fork.
        let headroom = Headroom::take();
        let taken = sys::forked(move || {
            drop(headroom);
            taken_at_the_limit()
        });
        assert_eq!(taken, 8);
    }

    #[tokio::test]
    async fn what_comes_from_a_shadow_after_all_is_reset_and_no_listener_passes_a_linger_on() {
        let (give, take) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty()).expect("a pair");
        let late = tokio::spawn(reset_late(take));
        for _ in 0..2 {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let peer = tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await;
            let (accepted, _) = listener.accept().expect("it came");
            let fds = [listener.as_raw_fd(), accepted.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            sendmsg::<UnixAddr>(give.as_raw_fd(), &[IoSlice::new(&[0; 8])], &rights, MsgFlags::empty(), None)
                .expect("there is room");
            drop(accepted);
            let end = peer.expect("it listens").read(&mut [0]).await.map_err(|e| e.kind());
            assert_eq!(end, Err(ErrorKind::ConnectionReset));
            assert_eq!(getsockopt(&listener, sockopt::Linger).expect("a socket").l_onoff, 0);
        }
        drop(give);
        late.await.expect("it ends with the pair");
    }

    #[test]
    fn each_descriptor_is_claimed_by_its_key_as_what_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let ((one, other), (reader, writer)) = (UnixStream::pair().expect("a pair"), pipe().expect("a pipe"));
        let of: [(Class, OwnedFd); 6] = [
            (Class::Listener, listener.into()),
            (Class::Socket, peer.into()),
            (Class::Socket, one.into()),
            (Class::Socket, other.into()),
            (Class::PipeReader, reader),
            (Class::PipeWriter, writer),
        ];
        let mut all = Descriptors::default();
        let keys = of.map(|(class, fd)| {
            let key = crash::key(fd.as_fd());
            // The shadows of two processes may give the same.
            all.add(fd.try_clone().expect("a descriptor"));
            all.add(fd);
            (class, key)
        });
        for (class, key) in keys {
            let claimed = all.claim(class, key).expect("it came");
            assert_eq!(crash::key(claimed.as_fd()), key, "{class:?}");
            assert!(all.claim(class, key).is_none(), "{class:?} is claimed once");
        }
        assert!(all.by_key.is_empty());
    }
}
