//! Addresses: where a socket listens and where a connection goes. Each kind reads its text and writes it back the same.
//!
//! systemd allows no `:` in a name, so a port stands behind a `+` there; everywhere a `:` does reach us before a port,
//! both are read. People are shown the `:`.

use std::{
    ffi::OsStr,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{call::Call, error::Flaw};

/// Longest path or abstract name of a UNIX socket, in bytes: `sun_path[108]` of unix(7) with its NUL.
const MAX_UNIX: usize = 107;
/// Longest DNS name in text, in bytes (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;
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

/// A host and a port; the host is an address, or a name resolved anew at each dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// Where.
    pub host: Host,
    /// 1..=65535.
    pub port: u16,
}

/// The host part of a [`HostPort`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A DNS name.
    Name(String),
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

/// Where an accepted stream goes.
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
                Err(format!("the path {} is relative, and no uds_dir says to what", path.display()))
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

/// Reads a host and a port, with `+` or `:` between them.
///
/// `Ok((host, port, port's place))`; the host is not empty unless it was left out.
fn host_and_port<'a>(text: &'a str, example: &str) -> Result<(&'a str, u16, std::ops::Range<usize>), Flaw> {
    let whole = 0..text.len();
    let (host, port_at) = if let Some(rest) = text.strip_prefix('[') {
        let Some((host, after)) = rest.split_once(']') else {
            return Err(Flaw::new(0..1, "the bracket [ is never closed").note("an IPv6 address: [fd00::1]+22"));
        };
        if host.parse::<Ipv6Addr>().is_err() && !host.contains('%') {
            let what = format!("\"{host}\" is not an IPv6 address, which is what brackets are for");
            return Err(Flaw::new(1..1 + host.len(), what).note("such as [fd00::1]+22"));
        }
        if !after.starts_with(['+', ':']) {
            let flaw = Flaw::new(whole, format!("\"{text}\" has no port"));
            return Err(flaw.note(format!("[{host}]+PORT, such as [{host}]+22")));
        }
        (host, host.len() + 3)
    } else {
        if text.parse::<Ipv6Addr>().is_ok() {
            let what = format!("\"{text}\" is an IPv6 address without brackets and without a certain port");
            return Err(Flaw::new(whole, what).note(format!("[{text}]+PORT")));
        }
        let Some(at) = text.rfind(['+', ':']) else {
            return Err(Flaw::new(whole, format!("\"{text}\" has no port")).note(format!("such as {example}")));
        };
        (&text[..at], at + 1)
    };
    let port = &text[port_at..];
    let place = port_at..text.len();
    let number = port.parse::<u16>().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()));
    match number {
        Some(number) => Ok((host, number, place)),
        None if port.is_empty() => Err(Flaw::new(whole, format!("\"{text}\" has no port")).note(example.to_owned())),
        None => Err(Flaw::new(place, format!("\"{port}\" is not a port")).note("a number from 1 to 65535")),
    }
}

impl FromStr for HostPort {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        if text.starts_with('/') || text.starts_with('@') {
            let what = format!("\"{text}\" is a UNIX socket, and target takes a TCP or UDP address");
            return Err(Flaw::new(0..text.len(), what).note("the key for a UNIX socket is uds"));
        }
        let (host, port, port_at) = host_and_port(text, "10.0.0.5+22")?;
        if port == 0 {
            return Err(Flaw::new(port_at, "nothing can be dialled at port 0").note("a number from 1 to 65535"));
        }
        let at = usize::from(text.starts_with('['));
        Ok(Self { host: host_name(host).map_err(|flaw| flaw.shifted(at))?, port })
    }
}

fn host_name(host: &str) -> Result<Host, Flaw> {
    let whole = 0..host.len();
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    if host.is_empty() {
        return Err(Flaw::new(whole, "there is no host before the port").note("such as 127.0.0.1+22"));
    }
    if host.contains('%') {
        let what = "an address with a zone cannot be a target";
        return Err(Flaw::new(whole, what).note("name the interface with bind_device instead"));
    }
    if host.contains([':', '+']) {
        let what = format!("\"{host}\" is neither an address nor a name");
        return Err(Flaw::new(whole, what).note("an IPv6 address stands in brackets: [fd00::1]+22"));
    }
    let labels: Vec<&str> = host.strip_suffix('.').unwrap_or(host).split('.').collect();
    let good = |label: &&str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    // A name never ends in a number (RFC 3696 §2): 10.0.0.256 is a slip of the pen, not a name to be looked up.
    let number = labels.last().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    if host.len() > MAX_HOST || number || !labels.iter().all(good) {
        return Err(Flaw::new(whole, format!("\"{host}\" is neither an address nor a host's name")));
    }
    Ok(Host::Name(host.to_owned()))
}

/// Reads the address a socket is bound to. Port 0 lets the kernel choose; the log tells which.
pub(super) fn listen_addr(text: &str) -> Result<SocketAddr, Flaw> {
    let whole = 0..text.len();
    if text.starts_with('/') || text.starts_with('@') {
        let what = format!("\"{text}\" is a UNIX socket, and listen takes an IP address and a port");
        return Err(Flaw::new(whole, what).note("a UNIX socket is served with uds and target"));
    }
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let what = format!("\"{text}\" has no address to listen on");
        return Err(Flaw::new(whole, what).fix(format!("127.0.0.1+{text}")));
    }
    let (host, port, _) = host_and_port(text, "127.0.0.1+2222")?;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    if let Some((ip, zone)) = host.split_once('%') {
        // Only the kernel knows the number of an interface; a number needs nobody's help.
        let scope = zone.parse::<u32>().ok().filter(|_| zone.bytes().all(|byte| byte.is_ascii_digit()));
        return match (ip.parse::<Ipv6Addr>(), scope) {
            (Ok(ip), Some(scope)) => Ok(SocketAddrV6::new(ip, port, 0, scope).into()),
            _ => {
                let what = format!("\"{zone}\" is not the number of an interface");
                Err(Flaw::new(whole, what).note("such as [fe80::1%2]+22; `ip link` shows the numbers"))
            }
        };
    }
    let flaw = Flaw::new(whole, format!("\"{host}\" is not an address to listen on"));
    Err(match host {
        "" | "*" => flaw.fix(format!("[::]+{port}")),
        "localhost" => flaw.fix(format!("127.0.0.1+{port}")),
        _ => flaw.note("an IP address of this host, 127.0.0.1, or 0.0.0.0 for all of them"),
    })
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// An address as a name writes it: with `+` before the port.
pub(super) fn plus(address: &impl fmt::Display) -> String {
    let text = address.to_string();
    text.rsplit_once(':').map_or(text.clone(), |(host, port)| format!("{host}+{port}"))
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
        let (kind, addr, netns) = match self {
            Self::Qrexec(call) => return write!(f, "qrexec {call}"),
            Self::Unix(addr) => return write!(f, "unix {addr}"),
            Self::Tcp { addr, netns } => ("tcp", addr, netns),
            Self::Udp { addr, netns } => ("udp", addr, netns),
        };
        write!(f, "{kind} {addr}")?;
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

as_string!(UnixAddr HostPort Netns);

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
