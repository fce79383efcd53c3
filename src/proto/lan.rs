//! The bounds of a declared forward, for both sides: dom0 writes its value (`qvm-forward`), and the listening qube reads
//! it.

use std::net::IpAddr;

/// The longest value, in bytes: a name has at most [`LONGEST_NAME`] characters, each at most four bytes long as it is
/// written. QubesDB takes more (qubesdb.h: QDB_MAX_DATA is 3072).
pub const LONGEST_VALUE: usize = 1100;
/// The longest name of a socket, in characters (systemd, `fdname_is_valid`): `:` has four, `\x3a`.
pub const LONGEST_NAME: usize = 255;

/// Whether a declared forward may listen on an address.
///
/// # Errors
/// Why not.
pub fn may_listen(ip: IpAddr) -> Result<(), &'static str> {
    let link_local = matches!(ip, IpAddr::V6(six) if six.is_unicast_link_local());
    match ip {
        _ if ip.is_multicast() => Err("it is a multicast address"),
        _ if link_local => Err("a link-local address needs an interface, and a declared forward names none"),
        _ if ip != ip.to_canonical() => Err("it is an IPv4 address: write it as one"),
        _ => Ok(()),
    }
}

/// How many characters the part of a value behind its first space has as the name of a socket.
pub fn name_length(value: &str) -> usize {
    let name = value.split_once(' ').map_or("", |(_, name)| name);
    name.len() + 3 * name.matches(':').count()
}
