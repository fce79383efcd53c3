//! One declared forward: who listens where, and which call of which qube each connection becomes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::proto::qube::valid_vm;

/// What the feature's name begins with: qubesd shows features `vm-config.*` to the qube, in QubesDB.
pub(super) const FEATURE: &str = "vm-config.qrexec-connect-";
/// The service whose argument is the port of the target.
const SERVICE: &str = "qubes.ConnectTCP";
/// The longest value that QubesDB takes, in bytes (qubesdb.h: QDB_MAX_DATA is 3072).
pub(super) const LONGEST_VALUE: usize = 3072;

/// The name of a qube, not of dom0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QubeName(String);

impl FromStr for QubeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("dom0") {
            return Err("dom0 neither listens nor is reached".to_owned());
        }
        if !valid_vm(text) {
            return Err("a qube's name is a letter, then letters, digits, - and _, at most 31 in all".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for QubeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A port of a qube.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LanTarget {
    pub(super) qube: QubeName,
    /// 1..=65535
    pub(super) port: u16,
}

impl FromStr for LanTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (qube, port) = text.split_once(':').ok_or("write QUBE:PORT")?;
        Ok(Self { qube: qube.parse()?, port: self::port(port)? })
    }
}

impl fmt::Display for LanTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.qube, self.port)
    }
}

fn port(text: &str) -> Result<u16, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    plain.then(|| text.parse().ok()).flatten().ok_or_else(|| format!("'{text}' is not a port; ports are 1 to 65535"))
}

/// Where to listen: `ADDRESS:PORT`, or a port of 127.0.0.1.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    let Some((address, number)) = text.rsplit_once(':') else {
        return Ok(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(text)?));
    };
    let address: IpAddr = match address.strip_prefix('[').and_then(|address| address.strip_suffix(']')) {
        Some(inner) => inner.parse().ok().filter(IpAddr::is_ipv6),
        None => address.parse().ok().filter(IpAddr::is_ipv4),
    }
    .ok_or("write ADDRESS:PORT with an IP address, such as 0.0.0.0:8443 or [::]:8443")?;
    if address.is_multicast() {
        return Err(format!("{address} is a multicast address"));
    }
    Ok(SocketAddr::new(address, port(number)?))
}

/// An address, or a network: no bit is set beyond its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LanNetwork {
    address: IpAddr,
    /// 0..=32 for IPv4, 0..=128 for IPv6.
    prefix: u8,
}

impl LanNetwork {
    fn most(address: IpAddr) -> u8 {
        if address.is_ipv4() { 32 } else { 128 }
    }
}

impl FromStr for LanNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| "write an address or a network, such as 192.168.1.0/24")?;
        let most = Self::most(address);
        let plain = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            None => most,
            Some(text) => Some(text)
                .filter(plain)
                .and_then(|text| text.parse().ok())
                .filter(|prefix| *prefix <= most)
                .ok_or_else(|| format!("the length of the prefix is 0 to {most} here"))?,
        };
        let beyond = match address {
            IpAddr::V4(ip) => u128::from(ip.to_bits()) & (u128::from(u32::MAX) >> prefix),
            IpAddr::V6(ip) => ip.to_bits() & u128::MAX.checked_shr(prefix.into()).unwrap_or(0),
        };
        if beyond != 0 {
            return Err(format!("{text} has bits set beyond the first {prefix}"));
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for LanNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == Self::most(self.address) {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

/// How the unit in the qube names the target, and so which policy line decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// `@default`: the policy line names the target.
    ByPolicy,
    /// The unit names it: another forward has the `@default` of this source, service and port already.
    ByUnit,
}

/// What dom0 does at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LanDecision {
    Allow,
    Ask,
}

impl fmt::Display for LanDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
        })
    }
}

/// A moment, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment(u64);

impl Moment {
    pub(super) fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    pub(super) fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_secs()))
    }

    /// As `OnCalendar=` takes it (systemd.time(7)).
    pub(super) fn calendar(self) -> String {
        self.to_string().replace('T', " ").replace('Z', " UTC")
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.0)).fmt(f)
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let time = humantime::parse_rfc3339(text).map_err(|_| format!("'{text}' is not a time"))?;
        let moment = Self(time.duration_since(UNIX_EPOCH).map_err(|_| "it is before 1970")?.as_secs());
        (moment.to_string() == text).then_some(moment).ok_or_else(|| format!("'{text}' is not a time in whole seconds"))
    }
}

/// A declared forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) source: QubeName,
    pub(super) listen: SocketAddr,
    pub(super) target: LanTarget,
    pub(super) from: Vec<LanNetwork>,
    pub(super) ends: Option<Moment>,
    pub(super) named: Named,
    pub(super) decision: LanDecision,
}

impl Declared {
    /// The feature of the listening qube.
    pub(super) fn feature(&self) -> String {
        feature(self.listen.port())
    }

    /// The feature's value: where to listen, then an fd name as in a socket unit.
    pub(super) fn value(&self) -> String {
        let target = match self.named {
            Named::ByPolicy => "@default".to_owned(),
            Named::ByUnit => self.target.qube.to_string(),
        };
        let mut value = format!("{} {target} {SERVICE}+{}", self.listen, self.target.port);
        self.from.iter().for_each(|network| value += &format!(" allow_from={network}"));
        value
    }

    /// The line of dom0's policy.
    pub(super) fn rule(&self) -> String {
        let LanTarget { qube, port } = &self.target;
        let call = format!("{SERVICE} +{port} {}", self.source);
        match (self.named, self.decision) {
            (Named::ByPolicy, LanDecision::Allow) => format!("{call} @default allow target={qube}"),
            (Named::ByPolicy, LanDecision::Ask) => format!("{call} @default ask default_target={qube}"),
            (Named::ByUnit, LanDecision::Allow) => format!("{call} {qube} allow"),
            (Named::ByUnit, LanDecision::Ask) => format!("{call} {qube} ask default_target={qube}"),
        }
    }

    /// Whether the same policy line of dom0 would decide about the calls of both.
    pub(super) fn shares_calls(&self, other: &Self) -> bool {
        self.source == other.source && self.target.port == other.target.port
    }

    /// Whether the other asks for the same, but for the end and for how the unit names the target.
    pub(super) fn is_again(&self, other: &Self) -> bool {
        let Self { source, listen, target, from, decision, ends: _, named: _ } = self;
        (source, listen, target, from, decision)
            == (&other.source, &other.listen, &other.target, &other.from, &other.decision)
    }

    /// Whether the time of this forward is over.
    pub(super) fn is_over(&self, now: Moment) -> bool {
        self.ends.is_some_and(|ends| ends <= now)
    }
}

/// The feature of a port.
pub(super) fn feature(port: u16) -> String {
    format!("{FEATURE}{port}")
}

/// `SOURCE LISTEN TARGET`, and what else was asked for: the comment above the policy line, without its sign.
impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.source, self.listen, self.target)?;
        self.from.iter().try_for_each(|network| write!(f, " from={network}"))?;
        self.ends.iter().try_for_each(|ends| write!(f, " until={ends}"))
    }
}

/// Reads what [`Declared`] is written as, and the policy line below it.
pub(super) fn read(comment: &str, rule: &str) -> Result<Declared, String> {
    let mut words = comment.split(' ');
    let mut next = || words.next().ok_or("a word is missing");
    let (source, listen_text, target) = (next()?, next()?, next()?);
    let mut declared = Declared {
        source: source.parse()?,
        listen: listen(listen_text)?,
        target: target.parse()?,
        from: Vec::new(),
        ends: None,
        named: Named::ByPolicy,
        decision: LanDecision::Allow,
    };
    for word in words {
        match word.split_once('=') {
            Some(("from", network)) => declared.from.push(network.parse()?),
            Some(("until", moment)) if declared.ends.is_none() => declared.ends = Some(moment.parse()?),
            _ => return Err(format!("'{word}' has no meaning here")),
        }
    }
    for named in [Named::ByPolicy, Named::ByUnit] {
        for decision in [LanDecision::Allow, LanDecision::Ask] {
            let read = Declared { named, decision, ..declared.clone() };
            // Only what is written the same again is read, so that a rewritten file loses nothing.
            if read.rule() == rule && read.to_string() == comment {
                return Ok(read);
            }
        }
    }
    Err("the policy line below it is not the one that it describes".to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn declared() -> impl Strategy<Value = Declared> {
        let qube = || "[a-z][a-z0-9_-]{0,5}".prop_map(|name| name.parse::<QubeName>().expect("a name"));
        let network = prop_oneof![
            (any::<u32>(), 0u8..=32).prop_map(|(ip, bits)| {
                let ip = ip & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                format!("{}/{bits}", Ipv4Addr::from_bits(ip)).parse().expect("a network")
            }),
            (any::<u128>(), 0u8..=128).prop_map(|(ip, bits)| {
                let ip = ip & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                format!("{}/{bits}", std::net::Ipv6Addr::from_bits(ip)).parse().expect("a network")
            }),
        ];
        let address = prop_oneof![Just("0.0.0.0"), Just("127.0.0.1"), Just("[::]"), Just("[fd00::7]")];
        let ends = prop::option::of((0u64..9_000_000_000).prop_map(Moment));
        let kinds = (any::<bool>(), any::<bool>());
        (qube(), address, 1u16.., qube(), 1u16.., prop::collection::vec(network, 0..3), ends, kinds).prop_map(
            |(source, address, port, qube, to, from, ends, (by_unit, ask))| Declared {
                source,
                listen: listen(&format!("{address}:{port}")).expect("an address"),
                target: LanTarget { qube, port: to },
                from,
                ends,
                named: if by_unit { Named::ByUnit } else { Named::ByPolicy },
                decision: if ask { LanDecision::Ask } else { LanDecision::Allow },
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(declared in declared()) {
            prop_assert_eq!(read(&declared.to_string(), &declared.rule()), Ok(declared));
        }

        #[test]
        fn no_text_is_read_as_something_that_is_written_differently(comment in "[a-z0-9:. =-]{0,40}", rule in ".{0,60}") {
            if let Ok(declared) = read(&comment, &rule) {
                prop_assert_eq!((declared.to_string(), declared.rule()), (comment, rule));
            }
        }
    }

    #[test]
    fn the_feature_and_the_policy_line_name_one_call() {
        let mut forward = read(
            "sys-net 0.0.0.0:8443 web:443 from=192.168.1.0/24 until=2026-12-01T10:00:00Z",
            "qubes.ConnectTCP +443 sys-net @default allow target=web",
        )
        .expect("a forward");
        assert_eq!(forward.feature(), "vm-config.qrexec-connect-8443");
        assert_eq!(forward.value(), "0.0.0.0:8443 @default qubes.ConnectTCP+443 allow_from=192.168.1.0/24");
        assert_eq!(forward.ends.expect("an end").calendar(), "2026-12-01 10:00:00 UTC");
        forward.named = Named::ByUnit;
        assert_eq!(forward.value(), "0.0.0.0:8443 web qubes.ConnectTCP+443 allow_from=192.168.1.0/24");
        assert_eq!(forward.rule(), "qubes.ConnectTCP +443 sys-net web allow");
    }

    #[test]
    fn what_is_typed_is_an_address_a_port_and_a_qube() {
        assert_eq!(listen("5432").expect("a port").to_string(), "127.0.0.1:5432");
        assert_eq!(listen("[::]:80").expect("IPv6").to_string(), "[::]:80");
        for refused in
            ["", "0", "65536", "08", ":80", "::80", "[1.2.3.4]:80", "localhost:80", "224.0.0.1:80", "1.2.3.4:x"]
        {
            assert!(listen(refused).is_err(), "{refused}");
        }
        for refused in ["web", "web:", ":443", "dom0:22", "Dom0:22", "@dispvm:22", "web:443:1", "we b:443", "web\n:443"]
        {
            assert!(refused.parse::<LanTarget>().is_err(), "{refused:?}");
        }
        for refused in ["", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "x", "::1/0"] {
            assert!(refused.parse::<LanNetwork>().is_err(), "{refused}");
        }
    }
}
