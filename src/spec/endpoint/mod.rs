//! Addresses: where a socket listens and where a connection goes. Each kind reads its text and writes it back the same.
//!
//! systemd allows no `:` in a name, so a port stands behind a `+` there; everywhere a `:` does reach us before a port,
//! both are read. People are shown the `:`.

use std::{
    ffi::OsStr,
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{call::Call, error::Flaw};

mod host;
mod listen;
mod ports;
mod zone;

pub use host::{Host, HostPort};
pub(super) use host::{local_forward, plus};
pub use listen::ListenAddr;
pub use ports::{Ports, WithPort};
pub use zone::Zone;
pub(super) use zone::needs_zone;

/// Longest path or abstract name of a UNIX socket, in bytes: `sun_path[108]` of unix(7) with its NUL.
const MAX_UNIX: usize = 107;
/// Longest file name, in bytes: `NAME_MAX` of limits.h; a namespace's name is a file name.
const MAX_NETNS: usize = 255;

/// A UNIX socket address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum UnixAddr {
    /// A path in the file system: at most 107 bytes, absolute in every [`Forward`](super::Forward).
    Path(PathBuf),
    /// An abstract name (without the leading NUL), 1 to 107 bytes, which belongs to the host's network namespace.
    Abstract(Vec<u8>),
}

/// A network namespace, by the name `ip netns` knows or by an absolute path (`setns_path`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Netns {
    /// Looked up under /run/netns and /var/run/netns; a file name.
    Name(String),
    /// An nsfs file such as /proc/PID/ns/net; absolute.
    Path(PathBuf),
}

/// The address that is dialled for an accepted stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upstream {
    /// A service in another qube.
    Qrexec(Call),
    /// A UNIX socket.
    Unix(UnixAddr),
    /// A TCP address, inside `netns` when given.
    Tcp {
        /// Address or name, and port.
        addr: HostPort,
        /// The namespace to dial from; the service's own when `None`.
        netns: Option<Netns>,
    },
    /// A UDP address for datagrams, inside `netns` when given.
    Udp {
        /// Address or name, and port.
        addr: HostPort,
        /// The namespace to dial from; the service's own when `None`.
        netns: Option<Netns>,
    },
}

impl UnixAddr {
    /// Reads a path (relative ones too) or `@name`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Flaw> {
        let whole = 0..bytes.len();
        match bytes {
            [] => Err(Flaw::new(whole, "the path of the UNIX socket is empty").note("such as uds=/run/name.sock")),
            [b'@'] => Err(Flaw::new(whole, "the abstract socket has no name").note("such as uds=@name")),
            [b'@', name @ ..] if name.len() > MAX_UNIX => {
                let what = format!("an abstract name has at most {MAX_UNIX} bytes, this one {}", name.len());
                Err(Flaw::new(whole, what))
            }
            [b'@', name @ ..] => Ok(Self::Abstract(name.to_vec())),
            [b'~', ..] => {
                let what = "\"~\" is not expanded here: the path would begin with a directory of that name";
                Err(Flaw::new(0..1, what).note("write the absolute path; in a unit %h is the home directory"))
            }
            [.., b'/'] => Err(Flaw::new(whole, "a socket's path cannot end with /").note("add the socket's name")),
            path => Self::path(PathBuf::from(OsStr::from_bytes(path))).map_err(|what| Flaw::new(whole, what)),
        }
    }

    /// A path that fits into a socket address.
    fn path(path: PathBuf) -> Result<Self, String> {
        match path.as_os_str().len() {
            0..=MAX_UNIX => Ok(Self::Path(path)),
            len => Err(format!("the path of a UNIX socket has at most {MAX_UNIX} bytes, this one {len}")),
        }
    }

    /// This address with a relative path put under `dir`.
    ///
    /// # Errors
    /// In words: there is no directory to put it under, or the whole has become too long.
    pub(super) fn under(&self, dir: Option<&Path>) -> Result<Self, String> {
        match (self, dir) {
            (Self::Path(path), Some(dir)) if path.is_relative() => Self::path(dir.join(path)),
            (Self::Path(path), None) if path.is_relative() => {
                Err(format!("relative path {}, but uds_dir is not set", path.display()))
            }
            _ => Ok(self.clone()),
        }
    }

    /// The bytes that [`read`](Self::read) takes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Path(path) => path.as_os_str().as_bytes().to_vec(),
            Self::Abstract(name) => [b"@", name.as_slice()].concat(),
        }
    }
}

/// For people and records: as written, with control characters, backslashes and what is not UTF-8 as `\xNN`.
impl fmt::Display for UnixAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.bytes(), f)
    }
}

impl FromStr for UnixAddr {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        Self::read(&unshow(text)?)
    }
}

impl Netns {
    /// Reads a name.
    pub(super) fn name(text: &str) -> Result<Self, Flaw> {
        let whole = 0..text.len();
        if text.starts_with('/') {
            let what = format!("\"{text}\" is a path, and namespace takes a name that `ip netns` shows");
            return Err(Flaw::new(whole, what).note(format!("for a path: setns_path={text}")));
        }
        if text.is_empty() || text == "." || text == ".." || text.len() > MAX_NETNS || text.contains(['/', '\0']) {
            let what = format!("\"{text}\" cannot be the name of a network namespace");
            return Err(Flaw::new(whole, what).note("a name that `ip netns` shows"));
        }
        Ok(Self::Name(text.to_owned()))
    }

    /// Reads an absolute path.
    pub(super) fn path(bytes: &[u8]) -> Result<Self, Flaw> {
        if bytes.first() != Some(&b'/') {
            let text = String::from_utf8_lossy(bytes);
            let flaw = Flaw::new(0..bytes.len(), format!("expected an absolute path, not \"{text}\""));
            return Err(flaw.note("such as /var/run/netns/NAME or /proc/PID/ns/net; for a name: namespace=NAME"));
        }
        Ok(Self::Path(PathBuf::from(OsStr::from_bytes(bytes))))
    }

    /// The bytes of either.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Name(name) => name.clone().into_bytes(),
            Self::Path(path) => path.clone().into_os_string().into_vec(),
        }
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&self.bytes(), f)
    }
}

impl FromStr for Netns {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        let bytes = unshow(text)?;
        match std::str::from_utf8(&bytes) {
            Ok(name) if !name.starts_with('/') => Self::name(name),
            _ => Self::path(&bytes),
        }
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_to(f, None)
    }
}

impl Upstream {
    /// The port of a TCP or UDP address.
    pub(super) fn port(&self) -> Option<u16> {
        match self {
            Self::Tcp { addr, .. } | Self::Udp { addr, .. } => Some(addr.port),
            Self::Qrexec(_) | Self::Unix(_) => None,
        }
    }

    /// For people, up to the port `last` of a range.
    pub(super) fn fmt_to(&self, f: &mut fmt::Formatter<'_>, last: Option<u16>) -> fmt::Result {
        let (kind, addr, netns) = match self {
            Self::Qrexec(call) => return write!(f, "qrexec {call}"),
            Self::Unix(addr) => return write!(f, "unix {addr}"),
            Self::Tcp { addr, netns } => ("tcp", addr, netns),
            Self::Udp { addr, netns } => ("udp", addr, netns),
        };
        write!(f, "{kind} {addr}")?;
        last.map_or(Ok(()), |last| write!(f, "-{last}"))?;
        netns.as_ref().map_or(Ok(()), |netns| write!(f, " in {netns}"))
    }
}

macro_rules! as_string {
    ($($type:ident)*) => {$(
        impl TryFrom<String> for $type {
            type Error = Flaw;

            fn try_from(text: String) -> Result<Self, Flaw> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_string!(UnixAddr Netns);

/// Bytes as text: control characters, backslashes and what is not UTF-8 as `\xNN`.
fn show(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '\\' {
                let mut buffer = [0; 4];
                c.encode_utf8(&mut buffer).bytes().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
            } else {
                write!(f, "{c}")?;
            }
        }
        chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
    }
    Ok(())
}

/// The inverse of [`show`].
fn unshow(text: &str) -> Result<Vec<u8>, Flaw> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split("\\x");
    bytes.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        let code = part.get(..2).filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok()).filter(|byte| *byte != 0);
        bytes.push(byte.ok_or_else(|| Flaw::new(0..text.len(), format!("\"{text}\" holds a \\x that is no byte")))?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
