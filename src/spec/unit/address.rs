//! The address of a `Listen…=`, read as systemd reads it (`socket_address_parse` in its socket-util.c,
//! systemd.socket(5)).
//!
//! systemd leaves out a line whose address it cannot read, and tells only the journal. So a flaw here says what systemd
//! makes of the line, and the line that was probably meant.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use crate::spec::{error::Flaw, meant::several};

/// Longest path or abstract name of a UNIX socket, in bytes: `sun_path[108]` of unix(7) with its NUL.
const MAX_UNIX: usize = 107;

/// What a socket unit listens on, specifiers expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Ip {
        /// The address; `[::]` for a port alone.
        addr: SocketAddr,
        /// Whether only the port was written: systemd listens on every interface then.
        bare: bool,
        /// The interface of a link-local address, by its name or number.
        zone: Option<String>,
    },
    /// A path in the file system.
    Path(PathBuf),
    /// An abstract name, without the leading `@`.
    Abstract(String),
    /// A socket between virtual machines, which is not forwarded.
    Vsock,
}

impl ListenAddress {
    /// Reads an address.
    ///
    /// # Errors
    /// Why systemd leaves the line out, with the corrected value where it can be told.
    pub fn read(text: &str) -> Result<Self, Flaw> {
        let unix = |name: &str| match name.len() {
            0 => Err(Flaw::new(0..text.len(), "the abstract socket has no name").note("such as @name")),
            1..=MAX_UNIX => Ok(()),
            len => Err(Flaw::new(
                0..text.len(),
                format!("the path of a UNIX socket has at most {MAX_UNIX} bytes, this one {len}"),
            )),
        };
        if text == "/" {
            return Err(Flaw::new(0..1, "this is the root directory").note("such as /run/NAME.sock"));
        }
        if text.starts_with('/') {
            return unix(text).map(|()| Self::Path(text.into()));
        }
        if let Some(name) = text.strip_prefix('@') {
            return unix(name).map(|()| Self::Abstract(name.to_owned()));
        }
        if text.starts_with("vsock:") {
            return Ok(Self::Vsock);
        }
        if let Some(port) = port(text) {
            return Ok(Self::Ip { addr: (Ipv6Addr::UNSPECIFIED, port).into(), bare: true, zone: None });
        }
        ip(text).ok_or_else(|| flaw(text))
    }
}

/// A port: in decimal, or in hexadecimal, octal or binary with its prefix, as safe_atou16 of systemd takes it. Not 0.
fn port(text: &str) -> Option<u16> {
    let signed = text.strip_prefix('+').unwrap_or(text);
    // These two prefixes are systemd's own, which it knows only at the beginning.
    let own = |prefix: &str, radix| Some((text.strip_prefix(prefix)?, radix));
    let of_c = |prefix: &str, radix| Some((signed.strip_prefix(prefix)?, radix));
    let written = own("0b", 2).or_else(|| own("0o", 8)).or_else(|| of_c("0x", 16)).or_else(|| of_c("0", 8));
    let (digits, radix) = written.unwrap_or((signed, 10));
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u16::from_str_radix(digits, radix).ok().filter(|port| plain && *port > 0)
}

/// `127.0.0.1:80`, `[::1]:80`, `[fe80::1]:80%eth0`.
fn ip(text: &str) -> Option<ListenAddress> {
    let (text, zone) = text.split_once('%').map_or((text, None), |(text, zone)| (text, Some(zone.to_owned())));
    let (host, number) = text.rsplit_once(':')?;
    let ip: IpAddr = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into(),
        None => host.parse::<Ipv4Addr>().ok()?.into(),
    };
    Some(ListenAddress::Ip { addr: (ip, port(number)?).into(), bare: false, zone })
}

/// Why systemd cannot read an address, and what to write.
fn flaw(text: &str) -> Flaw {
    let whole = 0..text.len();
    let reads = |text: &str| match text.as_bytes() {
        [b'/' | b'@', _, ..] => text.len() <= MAX_UNIX,
        _ => port(text).is_some() || ip(text).is_some(),
    };
    // The address that was probably meant, with a separate port.
    let with_port = |host: &str, number: &str| {
        let host = if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]") } else { host.to_owned() };
        Some(format!("{host}:{number}")).filter(|text| reads(text))
    };
    if let Some(at) = text.find([' ', '\t']).filter(|at| text[*at..].trim_start().starts_with(['#', ';'])) {
        let what = "systemd knows no comment behind a value: this one is a part of the address";
        let flaw = Flaw::new(at..text.len(), what);
        return if reads(&text[..at]) { flaw.fix(&text[..at]) } else { flaw.note("put it into a separate line") };
    }
    if let Some(flaw) = several(text, "write a line for each") {
        return flaw;
    }
    if let Some((_, rest)) = text.split_once("://") {
        let flaw = Flaw::new(whole, format!("\"{text}\" is a URL, and systemd takes an address and a port"));
        let rest = rest.trim_end_matches('/');
        return if reads(rest) { flaw.fix(rest) } else { flaw.note("such as 127.0.0.1:1234") };
    }
    if let Some((host, number)) = text.rsplit_once('+') {
        if let Some(fix) = with_port(host.trim_matches(['[', ']']), number) {
            let what = "write a colon before a port here; the + is for names";
            return Flaw::new(host.len()..host.len() + 1, what).fix(fix);
        }
    }
    if text.starts_with('~') {
        return Flaw::new(0..1, "\"~\" is not expanded in a unit").note("%h is the home directory: %h/NAME.sock");
    }
    let Some((host, number)) = text.rsplit_once(':') else {
        if text.parse::<IpAddr>().is_ok() {
            return Flaw::new(whole, format!("\"{text}\" has no port")).fix(format!("{text}:1234"));
        }
        if let Some((first, _)) =
            text.split_once('-').filter(|(first, last)| port(first).is_some() && port(last).is_some())
        {
            return range(text, first);
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Flaw::new(whole, format!("{text} is not a port")).note("a number from 1 to 65535");
        }
        let what = format!("\"{text}\" is neither a port, an address with a port, nor a path that begins with /");
        return Flaw::new(whole, what).note("such as 127.0.0.1:1234, %t/NAME.sock or @NAME");
    };
    if let Some((first, _)) =
        number.split_once('-').filter(|(first, last)| port(first).is_some() && port(last).is_some())
    {
        return range(text, &format!("{host}:{first}"));
    }
    if port(number).is_none() && host.parse::<Ipv6Addr>().is_err() {
        let what = format!("\"{number}\" is not a port");
        return Flaw::new(host.len() + 1..text.len(), what).note("a number from 1 to 65535, without leading zeros");
    }
    if let Some(fix) = with_port(host, number).filter(|_| host.contains(':')) {
        let what = "systemd reads this as an IPv6 address without a port: brackets are missing";
        return Flaw::new(whole, what).fix(fix);
    }
    let flaw = Flaw::new(0..host.len(), format!("\"{host}\" is not an IP address, and systemd looks up no names here"));
    match host {
        "localhost" | "*" | "" => flaw.fix(format!("127.0.0.1:{number}")),
        _ if host.contains('%') => flaw.note("write the interface after the port: [fe80::1]:22%%eth0"),
        _ => flaw.note("127.0.0.1, [::1], or an address of this machine"),
    }
}

/// A range of ports.
fn range(text: &str, first: &str) -> Flaw {
    let what = "a socket has one port, and this is a range";
    Flaw::new(0..text.len(), what).note(format!("one line for each port, the first: {first}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ListenAddress, Flaw> {
        ListenAddress::read(text)
    }

    /// What `systemd-analyze verify` of 252 and 257 took without a word.
    #[test]
    fn an_address_is_read_as_systemd_reads_it() {
        let addr = |text: &str, of: &str, bare, zone: Option<&str>| {
            let expected = ListenAddress::Ip { addr: of.parse().unwrap(), bare, zone: zone.map(str::to_owned) };
            assert_eq!(read(text), Ok(expected), "{text}");
        };
        addr("127.0.0.1:1234", "127.0.0.1:1234", false, None);
        addr("[::1]:80", "[::1]:80", false, None);
        addr("1234", "[::]:1234", true, None);
        addr("0x50", "[::]:80", true, None);
        addr("+80", "[::]:80", true, None);
        addr("[fe80::1]:22%eth0", "[fe80::1]:22", false, Some("eth0"));
        assert_eq!(read("/run/x y"), Ok(ListenAddress::Path("/run/x y".into())));
        assert_eq!(read("@x"), Ok(ListenAddress::Abstract("x".into())));
        assert_eq!(read("vsock:2:1234"), Ok(ListenAddress::Vsock));
    }

    /// What `systemd-analyze verify` said it ignores, and the value that was meant.
    #[test]
    fn an_address_that_systemd_leaves_out_says_what_was_meant() {
        for (text, what, fix) in [
            ("localhost:1235", "looks up no names", Some("127.0.0.1:1235")),
            ("*:80", "looks up no names", Some("127.0.0.1:80")),
            (":80", "looks up no names", Some("127.0.0.1:80")),
            ("example.org:80", "looks up no names", None),
            ("127.0.0.1:1234 # web", "no comment", Some("127.0.0.1:1234")),
            ("127.0.0.1:1234 ; web", "no comment", Some("127.0.0.1:1234")),
            ("::1:1235", "brackets", Some("[::1]:1235")),
            ("fd00::5:1235", "brackets", Some("[fd00::5]:1235")),
            ("127.0.0.1:8000-8010", "range", None),
            ("8000-8010", "range", None),
            ("rel/path", "neither a port", None),
            ("~/x.sock", "not expanded", None),
            ("0", "not a port", None),
            ("99999", "not a port", None),
            ("127.0.0.1:0", "not a port", None),
            ("1.2.3.4:080", "not a port", None),
            ("+0o4", "neither a port", None),
            ("127.0.0.1", "no port", Some("127.0.0.1:1234")),
            ("127.1:80", "not an IP address", None),
            ("127.0.0.1+1234", "a colon before a port", Some("127.0.0.1:1234")),
            ("[::1]+1234", "a colon before a port", Some("[::1]:1234")),
            ("http://127.0.0.1:80/", "URL", Some("127.0.0.1:80")),
            ("tcp://localhost:80", "URL", None),
            ("[fe80::1%lo]:88", "not an IP address", None),
            ("@", "no name", None),
            ("/", "root directory", None),
            ("", "neither a port", None),
        ] {
            let flaw = read(text).expect_err(text);
            assert!(flaw.what.contains(what), "{text}: {flaw}");
            assert_eq!(flaw.fix.as_deref(), fix, "{text}");
            assert!(text.get(flaw.at.clone()).is_some(), "{text}: {:?}", flaw.at);
        }
        let long = format!("/{}", "x".repeat(MAX_UNIX));
        assert!(read(&long).is_err() && read(&long[1..]).is_err() && read(&long[..MAX_UNIX]).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic_and_a_corrected_value_is_read(text in r"[\[\]0-9a-z.:+%@/ #~-]{0,30}|\PC{0,20}") {
            if let Err(flaw) = read(&text) {
                proptest::prop_assert!(text.get(flaw.at.clone()).is_some(), "{:?}", flaw.at);
                let good = flaw.fix.as_deref().map(read);
                proptest::prop_assert!(good.is_none_or(|read| read.is_ok()));
            }
        }
    }
}
