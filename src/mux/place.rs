//! Where the streams of a call lead: named by the argument of the service, and by nothing that the other qube sends
//! later.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Instant,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use socket2::{Domain, Protocol, Socket, Type};

use super::socket::{SocketFamily, StreamSocket};
use crate::{log::escape, proto::mux::MuxContent};

/// Where root of this qube puts a symbolic link for each UNIX socket that may be called.
const LINKS: &str = "/etc/qrexec-connect/unix";
/// The longest name of a link.
const MAX_NAME: usize = 64;
/// What the kernel holds for a socket that is not read: left alone, it takes 5 to 7 MB for each.
const SEND_BUFFER: usize = 256 << 10;

/// Where streams lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FarPlace {
    /// A TCP port of this qube's 127.0.0.1.
    Tcp(u16),
    /// A UDP port of this qube's 127.0.0.1.
    Udp(u16),
    /// A UNIX socket, by the path of its link.
    Unix(PathBuf),
}

impl FarPlace {
    /// The port of `qrexec-connect.TCP+PORT`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn tcp(argument: &str) -> Result<Self, String> {
        port(argument).map(Self::Tcp)
    }

    /// The port of `qrexec-connect.UDP+PORT`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn udp(argument: &str) -> Result<Self, String> {
        port(argument).map(Self::Udp)
    }

    /// The name of `qrexec-connect.Unix+NAME`. `links`: the folder of the links, if not the usual one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn unix(argument: &str, links: Option<&Path>) -> Result<Self, String> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let begins = argument.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !begins || argument.len() > MAX_NAME || !argument.bytes().all(legal) {
            return Err(format!(
                "the argument is the name of a socket: 1 to {MAX_NAME} letters, digits and . _ -, the first a letter \
                 or a digit; this is \"{}\"",
                escape(argument.as_bytes())
            ));
        }
        Ok(Self::Unix(links.unwrap_or(Path::new(LINKS)).join(argument)))
    }

    /// What the streams carry.
    pub fn content(&self) -> MuxContent {
        match self {
            Self::Tcp(_) | Self::Unix(_) => MuxContent::Bytes,
            Self::Udp(_) => MuxContent::Datagrams,
        }
    }

    /// The service that leads there, as dom0's policy has it.
    pub fn service(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "qrexec-connect.TCP",
            Self::Udp(_) => "qrexec-connect.UDP",
            Self::Unix(_) => "qrexec-connect.Unix",
        }
    }

    /// A connected socket, or one that is being connected.
    ///
    /// # Errors
    /// What socket(2) and connect(2) say; EAGAIN for a UNIX socket whose backlog is full.
    pub fn connect(&self, now: Instant) -> io::Result<StreamSocket> {
        match self {
            Self::Tcp(port) => {
                let socket = inet(Type::STREAM, Protocol::TCP)?;
                socket.set_tcp_nodelay(true)?;
                let _ = socket.set_send_buffer_size(SEND_BUFFER);
                let connecting = match socket.connect(&address(*port)) {
                    Ok(()) => false,
                    Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => true,
                    Err(error) => return Err(error),
                };
                Ok(StreamSocket::new(socket.into(), SocketFamily::Tcp, connecting, now))
            }
            Self::Udp(port) => {
                let socket = inet(Type::DGRAM, Protocol::UDP)?;
                socket.connect(&address(*port))?;
                Ok(StreamSocket::new(socket.into(), SocketFamily::Datagrams, false, now))
            }
            Self::Unix(path) => {
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
                connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
                Ok(StreamSocket::new(fd, SocketFamily::Unix, false, now))
            }
        }
    }
}

impl fmt::Display for FarPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "127.0.0.1:{port}"),
            Self::Udp(port) => write!(f, "udp 127.0.0.1:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

fn inet(kind: Type, protocol: Protocol) -> io::Result<Socket> {
    Socket::new(Domain::IPV4, kind.nonblocking().cloexec(), Some(protocol))
}

fn address(port: u16) -> socket2::SockAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()
}

fn port(argument: &str) -> Result<u16, String> {
    let plain = argument.bytes().all(|byte| byte.is_ascii_digit()) && !argument.starts_with('0');
    argument
        .parse()
        .ok()
        .filter(|_| plain)
        .ok_or_else(|| format!("the argument is a port from 1 to 65535; this is \"{}\"", escape(argument.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_plain_number() {
        assert_eq!(FarPlace::tcp("8080"), Ok(FarPlace::Tcp(8080)));
        assert_eq!(FarPlace::udp("65535"), Ok(FarPlace::Udp(65535)));
        for wrong in ["", "0", "080", "+80", "65536", "-1", "80 ", "http", "8080;reboot", "１"] {
            let why = FarPlace::tcp(wrong).expect_err(wrong);
            assert!(why.contains("port from 1 to 65535"), "{why}");
        }
    }

    #[test]
    fn a_name_never_leaves_the_folder_of_the_links() {
        let place = FarPlace::unix("ssh-agent_2.x", None);
        assert_eq!(place, Ok(FarPlace::Unix("/etc/qrexec-connect/unix/ssh-agent_2.x".into())));
        for wrong in ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a b", "a\0", &"x".repeat(65)] {
            FarPlace::unix(wrong, None).expect_err(wrong);
        }
    }
}
