//! Networks that peers may come from.

use std::{fmt, net::IpAddr, str::FromStr};

use super::raw::{Raw, Value};
use crate::spec::error::Flaw;

/// An address with the number of its leading bits that count: `10.0.0.0/8`, `fd00::/8`, `192.0.2.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    /// 0..=32 for IPv4, 0..=128 for IPv6.
    bits: u8,
}

impl Network {
    /// Whether a peer's address belongs to it. An IPv4 address that a dual-stack socket shows as `::ffff:a.b.c.d`
    /// is taken for what it is.
    pub fn contains(&self, peer: IpAddr) -> bool {
        masked(peer.to_canonical(), self.bits) == Some(self.address)
    }

    /// Its first address, and how many leading bits count.
    pub fn prefix(&self) -> (IpAddr, u8) {
        (self.address, self.bits)
    }
}

/// The address with all but its first `bits` bits cleared; `None` when it has not that many.
fn masked(address: IpAddr, bits: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => {
            let host = 32u32.checked_sub(bits.into())?;
            Some(IpAddr::V4((ip.to_bits() & u32::MAX.checked_shl(host).unwrap_or(0)).into()))
        }
        IpAddr::V6(ip) => {
            let host = 128u32.checked_sub(bits.into())?;
            Some(IpAddr::V6((ip.to_bits() & u128::MAX.checked_shl(host).unwrap_or(0)).into()))
        }
    }
}

impl FromStr for Network {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        let whole = 0..text.len();
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let Ok(address) = ip.parse::<IpAddr>() else {
            let flaw = Flaw::new(0..ip.len(), format!("\"{ip}\" is not an IP address"));
            return Err(flaw.note("an address or a network such as 10.0.0.0/8"));
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let plain = |bits: &&str| bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = match bits.map(|bits| bits.parse().ok().filter(|_| plain(&bits))) {
            None => most,
            Some(Some(bits)) if bits <= most => bits,
            Some(_) => {
                let at = ip.len() + 1..text.len();
                return Err(Flaw::new(at, format!("the length of a network's prefix is 0 to {most} here")));
            }
        };
        if masked(address, bits) != Some(address) {
            let network = masked(address, bits).map_or(ip.to_owned(), |network| network.to_string());
            let what = format!("{text} has bits set beyond the first {bits}");
            return Err(Flaw::new(whole, what).fix(format!("{network}/{bits}")));
        }
        // `::ffff:10.0.0.1` and `10.0.0.1` are one peer.
        let mapped = address.to_canonical();
        let bits = if mapped != address { bits.checked_sub(96) } else { Some(bits) };
        match bits {
            Some(bits) => Ok(Self { address: mapped, bits }),
            None => Err(Flaw::new(whole, "a network of mapped IPv4 addresses").note("write it as IPv4")),
        }
    }
}

impl Value for Network {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        raw.text("an address or a network such as 10.0.0.0/8,")?.parse()
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.to_string().into_bytes()]
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = self.bits == if self.address.is_ipv4() { 32 } else { 128 };
        self.address.fmt(f)?;
        if one { Ok(()) } else { write!(f, "/{}", self.bits) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_what_shares_its_first_bits() {
        for (network, peer, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "::1", true),
            ("fd00::/8", "fdff::1", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
        ] {
            let parsed: Network = network.parse().unwrap();
            assert_eq!(parsed.contains(peer.parse().unwrap()), inside, "{network} {peer}");
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }

    #[test]
    fn a_network_with_host_bits_is_refused_with_the_network_meant() {
        assert_eq!("10.1.2.3/8".parse::<Network>().unwrap_err().fix.as_deref(), Some("10.0.0.0/8"));
        for text in
            ["", "localhost", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "::/129", "10.0.0.0/8/8", "::ffff:0:0/90"]
        {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
