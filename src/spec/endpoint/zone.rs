//! Zones: the interfaces that link-local addresses belong to.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use crate::spec::error::Flaw;

/// The interface of a link-local address (RFC 4007): its name or, where no interface has that name, its number. It is
/// looked up at each bind or dial, in the network namespace of the socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Zone(String);

impl Zone {
    /// The name or number.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads `fe80::1%eth0`.
pub(super) fn zoned(host: &str, ip: &str, zone: &str) -> Result<(Ipv6Addr, Zone), Flaw> {
    let Ok(address) = ip.parse::<Ipv6Addr>() else {
        return Err(Flaw::new(0..ip.len(), format!("\"{ip}\" is not an IPv6 address")));
    };
    if !address.is_unicast_link_local() {
        let what = format!("{address} is no link-local address (fe80::/10), and only those have an interface");
        return Err(Flaw::new(0..host.len(), what).note(format!("leave out %{zone}")));
    }
    // `dev_valid_name` of Linux, and what ends an address.
    let bad = |c: char| c.is_whitespace() || c.is_control() || "/:%[]".contains(c);
    if zone.is_empty() || zone.len() > 15 || zone == "." || zone == ".." || zone.contains(bad) {
        let what = format!("\"{zone}\" cannot be the name of a network interface");
        let note = "at most 15 bytes, such as [fe80::1%eth0]:22; in a unit % is written %%";
        return Err(Flaw::new(ip.len() + 1..host.len(), what).note(note));
    }
    Ok((address, Zone(zone.to_owned())))
}

/// Whether an address is of no use without its interface.
pub(in crate::spec) fn needs_zone(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}
