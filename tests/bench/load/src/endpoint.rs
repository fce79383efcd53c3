//! Sockets by address.

use std::{
    fs,
    net::SocketAddrV4,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, UnixAddr, setsockopt, sockopt},
        time::{TimeVal, TimeValLike},
    },
};

use crate::fail;

/// Where to listen or to connect to.
#[derive(Clone)]
pub enum Endpoint {
    Tcp(SocketAddrV4),
    Unix(String),
}

fn must<T>(doing: &str, result: nix::Result<T>) -> T {
    result.unwrap_or_else(|e| fail(&format!("{doing}: {e}")))
}

impl Endpoint {
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some(("tcp", addr)) => Self::Tcp(addr.parse().unwrap_or_else(|_| fail(&format!("bad address {text}")))),
            Some(("unix", path)) => Self::Unix(path.to_owned()),
            _ => fail(&format!("bad endpoint {text}")),
        }
    }

    fn socket(&self, flags: SockFlag) -> nix::Result<OwnedFd> {
        let family = if let Self::Tcp(_) = self { AddressFamily::Inet } else { AddressFamily::Unix };
        socket::socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)
    }

    /// Listens, inside the network namespace at `netns` when that is given.
    pub fn listen(&self, netns: Option<&str>) -> OwnedFd {
        if let Some(path) = netns {
            let (this, path) = (self.clone(), path.to_owned());
            let inside = move || {
                let file = fs::File::open(&path).unwrap_or_else(|e| fail(&format!("{path}: {e}")));
                must("setns", setns(file, CloneFlags::CLONE_NEWNET));
                this.listen(None)
            };
            return std::thread::spawn(inside).join().unwrap_or_else(|_| fail("cannot listen in the namespace"));
        }
        let fd = must("socket", self.socket(SockFlag::empty()));
        let bound = match self {
            Self::Tcp(addr) => {
                must("SO_REUSEADDR", setsockopt(&fd, sockopt::ReuseAddr, &true));
                socket::bind(fd.as_raw_fd(), &SockaddrIn::from(*addr))
            }
            Self::Unix(path) => {
                let _ = fs::remove_file(path);
                UnixAddr::new(path.as_str()).and_then(|addr| socket::bind(fd.as_raw_fd(), &addr))
            }
        };
        must("bind", bound);
        must("listen", Backlog::new(4095).and_then(|n| socket::listen(&fd, n)));
        fd
    }

    fn connect_fd(&self, fd: &OwnedFd) -> nix::Result<()> {
        match self {
            Self::Tcp(addr) => socket::connect(fd.as_raw_fd(), &SockaddrIn::from(*addr)),
            Self::Unix(path) => socket::connect(fd.as_raw_fd(), &UnixAddr::new(path.as_str())?),
        }
    }

    /// Connects and waits for it.
    pub fn connect(&self) -> OwnedFd {
        let fd = must("socket", self.socket(SockFlag::empty()));
        must("connect", self.connect_fd(&fd));
        no_delay(&fd);
        fd
    }

    /// Begins to connect.
    pub fn begin(&self) -> nix::Result<OwnedFd> {
        let fd = self.socket(SockFlag::SOCK_NONBLOCK)?;
        match self.connect_fd(&fd) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
            Err(e) => Err(e),
        }
    }
}

/// Of no consequence for a UNIX socket.
pub fn no_delay(fd: &OwnedFd) {
    let _ = setsockopt(fd, sockopt::TcpNoDelay, &true);
}

pub fn accept(listener: &OwnedFd, flags: SockFlag) -> nix::Result<OwnedFd> {
    let fd = socket::accept4(listener.as_raw_fd(), flags | SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made it, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    no_delay(&fd);
    Ok(fd)
}


/// Gives up when nothing moves for `seconds`.
pub fn limit(fd: &OwnedFd, seconds: i64) {
    let time = TimeVal::seconds(seconds);
    let _ = setsockopt(fd, sockopt::ReceiveTimeout, &time);
    let _ = setsockopt(fd, sockopt::SendTimeout, &time);
}
