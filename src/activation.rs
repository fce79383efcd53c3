//! Inherited descriptors become named, typed listeners.
//!
//! Runs in `main` before any thread exists, because it ends by removing systemd's variables from the environment.
//! sd-notify checks that the variables are meant for this process, and listenfd takes each descriptor once and checks
//! its type. What neither checks is checked here: that there are as many names as descriptors, that a stream socket listens (SO_ACCEPTCONN, socket(7)), and that all are non-blocking (systemd passes
//! them blocking and without close-on-exec). What cannot be served is refused by name; the others are served.

use std::{
    env, fmt, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::net::UnixListener,
    },
};

use listenfd::ListenFd;
use nix::sys::socket::{AddressFamily, SockType, getsockname, getsockopt, sockopt};

use crate::{log::escape, spec::SocketKind, sys};

/// The name that systemd gives when there is none (sd_listen_fds_with_names(3)).
const UNNAMED: &str = "unknown";

/// Descriptors that this process inherited.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Sockets that connections can be accepted on.
    pub listeners: Vec<Listener>,
    /// Descriptors that cannot be served.
    pub refused: Vec<Refused>,
    /// Descriptors from the service's own store (sd_pid_notify_with_fds(3), FDSTORE), with their names.
    pub stored: Vec<(String, OwnedFd)>,
}

/// An inherited listener.
#[derive(Debug)]
pub struct Listener {
    /// Its `FileDescriptorName=`, as systemd passed it. Several listeners may share one.
    pub name: String,
    /// The socket, non-blocking and close-on-exec.
    pub socket: Socket,
    pub local: Local,
}

/// The kinds of listening sockets.
#[derive(Debug)]
pub enum Socket {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpListener),
    /// A UNIX stream socket.
    Unix(UnixListener),
    /// A UDP socket, which receives.
    Udp(UdpSocket),
}

impl Socket {
    pub fn kind(&self) -> SocketKind {
        match self {
            Self::Tcp(_) => SocketKind::Tcp,
            Self::Unix(_) => SocketKind::Unix,
            Self::Udp(_) => SocketKind::Udp,
        }
    }

    /// The descriptor of a listening socket of this kind.
    pub fn new(kind: SocketKind, fd: OwnedFd) -> Self {
        match kind {
            SocketKind::Tcp => Self::Tcp(fd.into()),
            SocketKind::Unix => Self::Unix(fd.into()),
            SocketKind::Udp => Self::Udp(fd.into()),
        }
    }

    /// The local address, for people.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn local(&self) -> io::Result<Local> {
        Ok(match self {
            Self::Tcp(tcp) => Local::Inet(tcp.local_addr()?),
            Self::Udp(udp) => Local::Inet(udp.local_addr()?),
            Self::Unix(unix) => {
                let local = unix.local_addr()?;
                Local::Unix(match (local.as_pathname(), local.as_abstract_name()) {
                    (Some(path), _) => escape(path.as_os_str().as_encoded_bytes()),
                    (None, Some(name)) => format!("@{}", escape(name)),
                    (None, None) => "an unnamed UNIX socket".to_owned(),
                })
            }
        })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
            Self::Udp(s) => s.as_fd(),
        }
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Tcp(s) => s.into(),
            Socket::Unix(s) => s.into(),
            Socket::Udp(s) => s.into(),
        }
    }
}

/// Where a listener listens; displayed, it is what logs call the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Local {
    /// A TCP or UDP address.
    Inet(SocketAddr),
    /// A UNIX path or `@abstract` name, escaped.
    Unix(String),
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(a) => a.fmt(f),
            Self::Unix(a) => f.write_str(a),
        }
    }
}

/// A descriptor that cannot be served.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub name: String,
    /// What it is, and what to pass instead.
    pub why: String,
}

/// The variables of systemd cannot be used: why.
#[derive(Debug)]
pub struct Broken(String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot take the inherited descriptors: {}", self.0)
    }
}

impl std::error::Error for Broken {}

/// Takes all inherited descriptors and removes systemd's variables from the environment. `stored` says which names
/// are those of the service's own descriptor store.
///
/// # Errors
/// When the variables are there but mean nothing.
///
/// # Panics
/// When another thread exists.
pub fn receive(stored: impl Fn(&str) -> bool) -> Result<Inherited, Broken> {
    // Where the variables mean nothing, ListenFd has no descriptors and does not tell why.
    let _ = sd_notify::listen_fds().map_err(|e| Broken(e.to_string()))?;
    let names = env::var("LISTEN_FDNAMES").ok();
    let mut names = names.as_deref().map(|names| names.split(':'));
    let mut taken = ListenFd::from_env();
    sys::unset_env(&["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"]);
    let mut all = Inherited::default();
    for index in 0..taken.len() {
        let name = match names.as_mut().map_or(Some(UNNAMED), Iterator::next) {
            Some(name) => name.to_owned(),
            None => {
                let why = "it came without a name: LISTEN_FDNAMES has fewer names than LISTEN_FDS says".to_owned();
                all.refused.push(Refused { name: format!("descriptor {}", index + 3), why });
                continue;
            }
        };
        if stored(&name) {
            if let Ok(Some(fd)) = taken.take_raw_fd(index) {
                all.stored.push((name, sys::own(fd)));
            }
            continue;
        }
        match take(&mut taken, index) {
            Ok((socket, local)) => all.listeners.push(Listener { name, socket, local }),
            Err(why) => all.refused.push(Refused { name, why }),
        }
    }
    Ok(all)
}

/// Takes one descriptor as what it is, or says what it is.
fn take(from: &mut ListenFd, index: usize) -> Result<(Socket, Local), String> {
    let failed = |e: io::Error| e.to_string();
    if let Ok(Some(tcp)) = from.take_tcp_listener(index) {
        listening(tcp.as_fd(), "a connected or unbound TCP socket (Accept=yes?); use ListenStream= and Accept=no")?;
        tcp.set_nonblocking(true).map_err(failed)?;
        return with_local(Socket::Tcp(tcp));
    }
    if let Ok(Some(unix)) = from.take_unix_listener(index) {
        listening(unix.as_fd(), "a connected or unbound UNIX socket (Accept=yes?); use ListenStream= and Accept=no")?;
        unix.set_nonblocking(true).map_err(failed)?;
        return with_local(Socket::Unix(unix));
    }
    if let Ok(Some(udp)) = from.take_udp_socket(index) {
        let local = udp.local_addr().map_err(failed)?;
        if local.port() == 0 || udp.peer_addr().is_ok() {
            return Err("it is an unbound or connected UDP socket; use ListenDatagram= and Accept=no".to_owned());
        }
        udp.set_nonblocking(true).map_err(failed)?;
        return with_local(Socket::Udp(udp));
    }
    let fd = match from.take_raw_fd(index) {
        Ok(Some(fd)) => sys::own(fd),
        Ok(None) | Err(_) => return Err("it was taken before".to_owned()),
    };
    Err(describe(fd.as_fd()).to_owned())
}

fn with_local(socket: Socket) -> Result<(Socket, Local), String> {
    let local = socket.local().map_err(|e| e.to_string())?;
    Ok((socket, local))
}

fn listening(socket: BorrowedFd<'_>, otherwise: &str) -> Result<(), String> {
    match getsockopt(&socket, sockopt::AcceptConn) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("it is {otherwise}")),
        Err(e) => Err(e.desc().to_owned()),
    }
}

/// What a descriptor is that we do not take.
fn describe(fd: BorrowedFd<'_>) -> &'static str {
    use std::os::fd::AsRawFd as _;
    let family = getsockname::<nix::sys::socket::SockaddrStorage>(fd.as_raw_fd())
        .ok()
        .and_then(|a| nix::sys::socket::SockaddrLike::family(&a));
    match (family, getsockopt(&fd, sockopt::SockType)) {
        (_, Err(_)) => "it is not a socket (ListenFIFO= or ListenSpecial=?); use ListenStream=",
        (Some(AddressFamily::Vsock), _) => "it is a vsock socket, which is not supported; use a TCP or UNIX one",
        (_, Ok(SockType::SeqPacket)) => "it is a SEQPACKET socket, which is not supported; use ListenStream=",
        (_, Ok(SockType::Datagram)) => {
            "it is a datagram socket of the UNIX family, which is not supported; use ListenStream="
        }
        _ => "it is a socket of an unsupported kind; use ListenStream= with a TCP or UNIX address",
    }
}
