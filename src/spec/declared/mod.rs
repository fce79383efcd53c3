//! Forwards that dom0 declares: a key of QubesDB with its value becomes a socket unit.
//!
//! dom0 sets the feature `vm-config.qrexec-connect-PORT` of a qube. In the qube that is the key
//! `/vm-config/qrexec-connect-PORT` of QubesDB, with the value `ADDRESS:PORT NAME`. NAME is the name of a socket unit:
//! a qrexec call with its options.
//!
//! Every process of the qube can write these keys, so that a key and its value are data of a stranger. What they may
//! bring about is what such a process could do itself, and a rule of the firewall for its port:
//!
//! | may | may not |
//! |---|---|
//! | listen on an address of the qube, at a port from 1024 on | at a port below, unless root's configuration says so |
//! | name a qrexec call, about which dom0 decides | name a UNIX socket, an address, a namespace, a label, a unit |
//! | set the options of [`OPTIONS`] | set any other option |
//! | be one of [`MOST`] | be one more |
//!
//! The unit's text is written from the values that were read, never from the text of the declaration. So no byte of a
//! declaration reaches systemd that [`fdname::Name`] and [`SocketAddr`] do not write.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{
    config::Config,
    endpoint::ListenAddr,
    error::{Faults, Origin, Place, Source, SpecFault},
    fdname::{self, Name},
    keys::KeyName,
    plan::SocketKind,
    text::escaped,
    unit::{Unit, rejected},
    value::{LowPort, Network},
};

/// What the keys of all declarations begin with; the port follows.
pub const KEY: &str = "/vm-config/qrexec-connect-";
/// The most forwards that are declared at once.
pub const MOST: usize = 64;
/// The longest value, in bytes: a name has at most 255 characters, each at most four bytes long as it is written.
const LONGEST: usize = 1100;
/// What the name of a unit of a declaration begins with; the port follows.
const UNIT: &str = "qrexec-connect-lan-";

/// The options that a declaration may set: those of its own connections. None of them names a file, a unit or a user.
const OPTIONS: [KeyName; 13] = [
    KeyName::AllowFrom,
    KeyName::ConnectTimeout,
    KeyName::IdleTimeout,
    KeyName::SetupTimeout,
    KeyName::DrainTimeout,
    KeyName::RetryTimeout,
    KeyName::MaxConnections,
    KeyName::MaxSetups,
    KeyName::MaxCalls,
    KeyName::Keepalive,
    KeyName::OnRemove,
    KeyName::ProxyProtocol,
    KeyName::BufferSize,
];

/// A forward that is declared.
#[derive(Clone, Debug, PartialEq)]
pub struct DeclaredForward {
    /// Where it listens; never port 0.
    listen: SocketAddr,
    name: Name,
    from: Vec<Network>,
}

/// A declaration that means nothing, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclarationFault {
    /// The key, escaped and cut.
    pub key: String,
    /// Why, in one line.
    pub why: String,
}

impl fmt::Display for DeclarationFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QubesDB {}: {}", self.key, self.why)
    }
}

/// What these entries of QubesDB declare, by port, and what is wrong with the others. `low` are the ports below 1024
/// that are allowed. Above [`MOST`] forwards those with the lowest ports count.
pub fn declared<'a>(
    entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    low: &[u16],
) -> (BTreeMap<u16, DeclaredForward>, Vec<DeclarationFault>) {
    let mut values: BTreeMap<&[u8], Vec<&[u8]>> = BTreeMap::new();
    entries.into_iter().for_each(|(key, value)| values.entry(key).or_default().push(value));
    let (mut wanted, mut faults) = (BTreeMap::new(), Vec::new());
    for (key, values) in values {
        let read = match values[..] {
            [value] => port(key).and_then(|port| Ok((port, read(port, value, low)?))),
            _ => Err("the key is there twice".to_owned()),
        };
        match read {
            Ok((port, forward)) => drop(wanted.insert(port, forward)),
            Err(why) => faults.push(DeclarationFault { key: shown(key), why }),
        }
    }
    while wanted.len() > MOST {
        if let Some((port, _)) = wanted.pop_last() {
            let why = format!("{MOST} forwards are declared already, with lower ports, and that is the most");
            faults.push(DeclarationFault { key: format!("{KEY}{port}"), why });
        }
    }
    (wanted, faults)
}

/// The port of a key.
fn port(key: &[u8]) -> Result<u16, String> {
    let rest = key.strip_prefix(KEY.as_bytes()).and_then(|rest| std::str::from_utf8(rest).ok());
    let port = rest.and_then(|rest| rest.parse::<u16>().ok().filter(|port| *port > 0 && port.to_string() == rest));
    port.ok_or_else(|| "the key does not end in a port (1 to 65535, without a leading zero)".to_owned())
}

/// What a value says.
fn read(port: u16, value: &[u8], low: &[u16]) -> Result<DeclaredForward, String> {
    if value.len() > LONGEST {
        return Err(format!("the value has {} bytes, and {LONGEST} are the most", value.len()));
    }
    if let Some(at) = value.iter().position(|byte| !matches!(byte, b' '..=b'~')) {
        return Err(format!("column {}: only printable ASCII characters are allowed in a value", at + 1));
    }
    let text = std::str::from_utf8(value).map_err(|e| e.to_string())?;
    let Some((address, name)) = text.split_once(' ') else {
        return Err("column 1: a value is ADDRESS:PORT QUBE SERVICE+ARGUMENT OPTION=VALUE…".to_owned());
    };
    let listen = listen(address)?;
    if listen.port() != port {
        return Err(format!("column 1: the value says port {}, and its key another one", listen.port()));
    }
    if port < LowPort::END && !low.contains(&port) {
        let allow = format!("qubesdb_ports = [{port}] in [defaults] of /etc/qrexec-connect.toml allows it");
        return Err(format!("column 1: port {port} is below {} ({allow})", LowPort::END));
    }
    if let Some(at) = name.find('%') {
        return Err(format!("column {}: % is not allowed in a value", address.len() + at + 2));
    }
    let (name, from) = call(name)?;
    Ok(DeclaredForward { listen, name, from })
}

/// The address of a value.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let plain = |address: &ListenAddr| {
        let scope = matches!(address.addr(), SocketAddr::V6(v6) if v6.scope_id() != 0 || v6.flowinfo() != 0);
        let mapped = address.addr().ip() != address.addr().ip().to_canonical();
        address.zone().is_none() && !scope && !mapped && !address.addr().ip().is_multicast()
    };
    match text.parse::<ListenAddr>() {
        Ok(address) if plain(&address) => Ok(address.addr()),
        Ok(_) => Err("column 1: this kind of address is not allowed in a value".to_owned()),
        Err(flaw) => Err(format!("column 1: {flaw}")),
    }
}

/// The call of a name, as a unit would have it, and the networks of its clients.
fn call(text: &str) -> Result<(Name, Vec<Network>), String> {
    let one = |faults: Faults| faults.0.first().map(ToString::to_string).unwrap_or_default();
    let name = fdname::parse(text).map_err(one)?;
    let Name::Call { keys, .. } = &name else {
        let whole = Place::new(&Source::new(Origin::Name(None), text), 0..text.len());
        let what = "a value names a qrexec call (QUBE SERVICE+ARGUMENT OPTION=VALUE…) and nothing else";
        return Err(SpecFault::at(&whole, what).to_string());
    };
    if let Some((key, _)) = keys.texts().into_iter().find(|(key, _)| !OPTIONS.contains(key)) {
        let what = format!("{}= is not allowed in a value", key.name());
        return Err(keys.given(key).map_or(what.clone(), |place| SpecFault::at(place, what).to_string()));
    }
    let forward = name.resolve(SocketKind::Tcp, &Config::default()).map_err(one)?;
    let written = name.to_string();
    if !rejected(&written).0.is_empty() {
        return Err(format!(
            "systemd does not take this as a name: it has {} characters of at most 255",
            written.len()
        ));
    }
    Ok((name, forward.legs.front().admit.from.clone()))
}

/// A key for messages.
fn shown(key: &[u8]) -> String {
    escaped(&key[..key.len().min(64)])
}

impl DeclaredForward {
    /// Where it listens.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where its connections lead.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The networks that its clients come from; empty: everywhere.
    pub fn from(&self) -> &[Network] {
        &self.from
    }

    /// The text of its socket unit. After a change of this text [`is_unit_of`] has to know the old one, too: the units
    /// of an earlier version are in /run until the next boot.
    pub fn unit_text(&self) -> String {
        let Self { listen, name, .. } = self;
        let own = !listen.ip().is_unspecified() && !listen.ip().is_loopback();
        // An address that the network gives later.
        let early = if own { "FreeBind=yes\n" } else { "" };
        // Without it the answer is that of a sysctl.
        let both = if matches!(listen.ip(), IpAddr::V6(_)) { "BindIPv6Only=both\n" } else { "" };
        format!(
            "# Declared in dom0 by the feature vm-config.qrexec-connect-{port}; \
             qrexec-connect-qubesdb.service wrote this.\n[Unit]\nDescription=Port {port}, declared in dom0\n\
             [Socket]\nListenStream={listen}\n{early}{both}FileDescriptorName={name}\n",
            port = listen.port(),
        )
    }
}

/// The name of the socket unit of a port.
pub fn unit_of(port: u16) -> String {
    format!("{UNIT}{port}.socket")
}

/// The port of a socket unit by its name, if its name is one of a declaration.
pub fn port_of(unit: &str) -> Option<u16> {
    let port = unit.strip_prefix(UNIT)?.strip_suffix(".socket")?;
    port.parse().ok().filter(|number: &u16| *number > 0 && number.to_string() == port)
}

/// Whether a unit file is as [`DeclaredForward::unit_text`] writes it for a port.
pub fn is_unit_of(port: u16, text: &str) -> bool {
    let unit = Unit::parse("", text);
    let listen = unit.last("Socket", "ListenStream").map(|setting| setting.value.as_str());
    let value = listen.zip(unit.fd_name()).map(|(listen, name)| format!("{listen} {}", name.value));
    let read = value.and_then(|value| read(port, value.as_bytes(), &[port]).ok());
    read.is_some_and(|declared| declared.unit_text() == text)
}

#[cfg(test)]
mod tests;
