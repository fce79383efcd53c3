//! Hosts and ports: where to dial. `+` and `:` before a port are one.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4},
    ops::Range,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::zone::{Zone, zoned};
use crate::spec::{call::Call, error::Flaw, meant::several};

/// Longest DNS name in text, in bytes (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;

/// A host and a port; the host is an address, or a name resolved again at each dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// An IP address or a name.
    pub host: Host,
    /// 1..=65535.
    pub port: u16,
}

/// The host part of a [`HostPort`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A link-local address and its interface.
    LinkLocal(Ipv6Addr, Zone),
    /// A DNS name.
    Name(String),
}

impl TryFrom<String> for HostPort {
    type Error = Flaw;

    fn try_from(text: String) -> Result<Self, Flaw> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(value: HostPort) -> Self {
        value.to_string()
    }
}

/// Reads a host and a port, with `+` or `:` between them.
///
/// `Ok((host, port, port's place))`; the host is not empty unless it was left out.
pub(super) fn host_and_port<'a>(text: &'a str, example: &str) -> Result<(&'a str, u16, Range<usize>), Flaw> {
    let whole = 0..text.len();
    let (host, port_at) = if let Some(rest) = text.strip_prefix('[') {
        let Some((host, after)) = rest.split_once(']') else {
            let flaw = Flaw::new(0..1, "the bracket [ is never closed");
            return Err(flaw.example("an IPv6 address: ", "[fd00::1]:22"));
        };
        if host.parse::<Ipv6Addr>().is_err() && !host.contains('%') {
            let what = format!("\"{host}\" is not an IPv6 address, which is what brackets are for");
            let flaw = Flaw::new(1..1 + host.len(), what);
            return Err(match host.parse::<SocketAddrV4>() {
                Ok(address) if after.is_empty() => Flaw { at: whole, ..flaw }.fix_address(address.to_string()),
                _ => flaw.example("such as ", "[fd00::1]:22"),
            });
        }
        if !after.starts_with(['+', ':']) {
            if let Some((inside, port)) = host.rsplit_once(':').filter(|_| after.is_empty()) {
                let port_is_decimal = port.parse::<u16>().is_ok_and(|port| port > 0);
                if port_is_decimal && inside.parse::<Ipv6Addr>().is_ok() {
                    let flaw = Flaw::new(whole, format!("\"{text}\" has its port inside of the brackets"));
                    return Err(flaw.fix_address(format!("[{inside}]:{port}")));
                }
            }
            let flaw = Flaw::new(whole, format!("\"{text}\" has no port"));
            return Err(flaw.example("such as ", format!("[{host}]:22")));
        }
        (host, host.len() + 3)
    } else {
        if text.parse::<Ipv6Addr>().is_ok() {
            let what = format!("\"{text}\" is an IPv6 address without brackets and without a certain port");
            return Err(Flaw::new(whole, what).example("", format!("[{text}]:PORT")));
        }
        let Some(at) = text.rfind(['+', ':']) else {
            return Err(Flaw::new(whole, format!("\"{text}\" has no port")).example("such as ", example));
        };
        (&text[..at], at + 1)
    };
    let port = &text[port_at..];
    let place = port_at..text.len();
    let number = port.parse::<u16>().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()));
    match number {
        Some(number) => Ok((host, number, place)),
        None if port.is_empty() => {
            Err(Flaw::new(whole, format!("\"{text}\" has no port")).example("such as ", example))
        }
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
        if let Some(flaw) = several(text, "a forward has one target; write a forward for each") {
            return Err(flaw);
        }
        if let Some((local, target)) = local_forward(text) {
            let flaw = Flaw::new(0..text.len(), format!("\"{text}\" also has a listening side, as in ssh -L"));
            return Err(flaw.example(format!("listen on {local}, with the target "), target.to_string()));
        }
        if let [target, service] = text.split(' ').collect::<Vec<_>>()[..] {
            if Call::new(target, service).is_ok() {
                let what = format!("\"{text}\" is a qrexec call, and target takes a TCP or UDP address");
                return Err(Flaw::new(0..text.len(), what).note("the key for a call to a qube is qrexec"));
            }
        }
        let (host, port, port_at) = host_and_port(text, "10.0.0.5:22")?;
        if port == 0 {
            return Err(Flaw::new(port_at, "port 0 cannot be a target").note("a number from 1 to 65535"));
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
        return Err(Flaw::new(whole, "there is no host before the port").example("such as ", "127.0.0.1:22"));
    }
    if let Some((ip, zone)) = host.split_once('%') {
        return zoned(host, ip, zone).map(|(ip, zone)| Host::LinkLocal(ip, zone));
    }
    if host.contains([':', '+']) {
        let what = format!("\"{host}\" is neither an address nor a name");
        return Err(Flaw::new(whole, what).example("write an IPv6 address in brackets: ", "[fd00::1]:22"));
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

/// `[ADDRESS:]PORT:HOST:PORT`, as `ssh -L` and qvm-connect-tcp take it: the address to listen on, and the target.
pub(in crate::spec) fn local_forward(text: &str) -> Option<(String, HostPort)> {
    let (address, local, target) = match text.split(':').collect::<Vec<_>>()[..] {
        [local, host, port] => ("", local, format!("{host}:{port}")),
        [address, local, host, port] => (address, local, format!("{host}:{port}")),
        _ => return None,
    };
    let local = local.parse::<u16>().ok()?;
    let address = if address.is_empty() || address == "localhost" { "127.0.0.1" } else { address };
    Some((format!("{address}:{local}"), target.parse().ok()?))
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::LinkLocal(ip, zone) => write!(f, "[{ip}%{zone}]:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// An address as a name writes it: with `+` before the port.
pub(in crate::spec) fn plus(address: &impl fmt::Display) -> String {
    let text = address.to_string();
    text.rsplit_once(':').map_or(text.clone(), |(host, port)| format!("{host}+{port}"))
}
