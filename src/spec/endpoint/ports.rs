//! An address with one port or with a range of ports: `127.0.0.1:22`, `127.0.0.1:8000-8010`.

use std::{fmt, str::FromStr};

use super::{host::HostPort, listen::ListenAddr};
use crate::spec::error::Flaw;

/// The most ports of a range.
const MAX_PORTS: u16 = 1024;

/// An address with one port or with a range of ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports<A> {
    first: A,
    /// The ports of the range after the first one.
    more: u16,
}

/// An address with a port.
pub trait WithPort: Clone + FromStr<Err = Flaw> + fmt::Display {
    /// The port.
    fn port(&self) -> u16;

    /// The same address with another port.
    #[must_use]
    fn with_port(&self, port: u16) -> Self;
}

impl WithPort for ListenAddr {
    fn port(&self) -> u16 {
        self.addr().port()
    }

    fn with_port(&self, port: u16) -> Self {
        self.on_port(port)
    }
}

impl WithPort for HostPort {
    fn port(&self) -> u16 {
        self.port
    }

    fn with_port(&self, port: u16) -> Self {
        Self { host: self.host.clone(), port }
    }
}

impl<A: WithPort> Ports<A> {
    /// The address with its first port.
    pub fn first(&self) -> &A {
        &self.first
    }

    /// The number of ports.
    pub fn count(&self) -> usize {
        usize::from(self.more) + 1
    }

    /// Whether the address has more than one port.
    pub fn is_range(&self) -> bool {
        self.more > 0
    }

    /// The address with each port, in ascending order.
    pub(in crate::spec) fn each(&self) -> impl Iterator<Item = A> {
        let first = self.first.port();
        (first..=first.saturating_add(self.more)).map(|port| self.first.with_port(port))
    }
}

impl<A: WithPort> FromStr for Ports<A> {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        let at = text.rfind(['+', ':']).map_or(0, |at| at + 1);
        let Some((first, dash, last)) = as_range(&text[at..]) else {
            return Ok(Self { first: text.parse()?, more: 0 });
        };
        let address: A = text[..at + first.len()].parse().map_err(|flaw: Flaw| of_range(flaw, first, last))?;
        let range = &text[at..];
        let flaw = |what: String| Flaw::new(at..text.len(), what);
        let (Ok(low), Ok(high)) = (first.parse::<u16>(), last.parse::<u16>()) else {
            return Err(
                flaw(format!("\"{last}\" is not a port")).note("the ports of a range are numbers from 1 to 65535")
            );
        };
        let fix = |low: u16, high: u16| Self { first: address.with_port(low), more: high - low }.to_string();
        if low == 0 || high == 0 {
            let what = format!("the range {range} has port 0, which is only allowed as a single port to listen on");
            return Err(flaw(what).note("the ports of a range are numbers from 1 to 65535"));
        }
        if low.abs_diff(high) >= MAX_PORTS {
            let what = format!("the range {range} has {} ports; a forward has at most {MAX_PORTS}", {
                u32::from(low.abs_diff(high)) + 1
            });
            let (low, high) = (low.min(high), low.max(high).min(low.min(high) + (MAX_PORTS - 1)));
            return Err(flaw(what).example("write several forwards, the first with ", fix(low, high)));
        }
        if low > high {
            let what = format!("the range {range} ends before it begins");
            return Err(Flaw { at: at..text.len(), ..flaw(what) }.fix_address(fix(high, low)));
        }
        if dash != "-" {
            let what = format!("a range of ports is written with -, not with {dash}");
            return Err(flaw(what).fix_address(fix(low, high)));
        }
        Ok(Self { first: address, more: high - low })
    }
}

/// The parts of a range: the first port, what stands between, the last port. Other programs write `..` or a dash.
fn as_range(text: &str) -> Option<(&str, &str, &str)> {
    let first = text.find(|c: char| !c.is_ascii_digit())?;
    let last = text.rfind(|c: char| !c.is_ascii_digit())?;
    let last = last + text[last..].chars().next()?.len_utf8();
    let (first, dash, last) = (&text[..first], &text[first..last], &text[last..]);
    let known = ["-", "..", "..=", "\u{2013}", "~"].contains(&dash);
    (known && !first.is_empty() && !last.is_empty()).then_some((first, dash, last))
}

/// The flaw of an address with the first port, as one of the whole range.
fn of_range(mut flaw: Flaw, first: &str, last: &str) -> Flaw {
    let good = match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(low), Ok(high)) => low > 0 && (low..low.saturating_add(MAX_PORTS)).contains(&high),
        _ => false,
    };
    let end = format!(":{first}");
    let spanned = |address: String| (good && address.ends_with(&end)).then(|| format!("{address}-{last}"));
    flaw.fix = flaw.fix.and_then(spanned);
    if flaw.example.as_ref().is_some_and(|address| address.ends_with(&end)) {
        flaw.example = flaw.example.and_then(spanned);
        flaw.note = flaw.note.filter(|_| flaw.example.is_some());
    }
    flaw
}

impl<A: WithPort> fmt::Display for Ports<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        if self.is_range() { write!(f, "-{}", self.first.port().saturating_add(self.more)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::endpoint::plus;

    #[test]
    fn a_range_of_ports_is_read_and_written_back() {
        for (text, count) in [
            ("127.0.0.1:80", 1),
            ("127.0.0.1:0", 1),
            ("127.0.0.1:8000-8010", 11),
            ("127.0.0.1+8000-8010", 11),
            ("[::1]:8000-8010", 11),
            ("[fe80::1%tap0]:1-1024", 1024),
            ("0.0.0.0:64512-65535", 1024),
            ("[::1]:80-80", 1),
        ] {
            let ports: Ports<ListenAddr> = text.parse().unwrap();
            assert_eq!((ports.count(), ports.is_range()), (count, count > 1), "{text}");
            assert_eq!(plus(&ports).parse(), Ok(ports.clone()));
            let each: Vec<_> = ports.each().map(|address| address.addr().port()).collect();
            assert_eq!(each.len(), count);
            assert!(each.windows(2).all(|pair| pair[1] == pair[0] + 1), "{each:?}");
        }
        let target: Ports<HostPort> = "db-1.example.org+9000-9010".parse().unwrap();
        assert_eq!((target.to_string().as_str(), target.count()), ("db-1.example.org:9000-9010", 11));
        assert_eq!(target.each().nth(3).unwrap().to_string(), "db-1.example.org:9003");
    }

    #[test]
    fn a_range_that_is_none_says_what_to_write() {
        for (text, what, next) in [
            ("127.0.0.1:8010-8000", "ends before", "write: 127.0.0.1:8000-8010"),
            ("[::1]:1-1025", "has 1025 ports; a forward has at most 1024", "the first with [::1]:1-1024"),
            ("127.0.0.1:65535-1", "has 65535 ports", "the first with 127.0.0.1:1-1024"),
            ("127.0.0.1:0-5", "port 0", "from 1 to 65535"),
            ("127.0.0.1:0-0", "port 0", "from 1 to 65535"),
            ("127.0.0.1:1-70000", "\"70000\" is not a port", "from 1 to 65535"),
            ("127.0.0.1:1-", "is not a port", "from 1 to 65535"),
            ("127.0.0.1:-5", "is not a port", "from 1 to 65535"),
            ("127.0.0.1:1-2-3", "is not a port", "from 1 to 65535"),
            ("127.0.0.1:8000..8010", "written with -", "write: 127.0.0.1:8000-8010"),
            ("127.0.0.1:8000\u{2013}8010", "written with -", "write: 127.0.0.1:8000-8010"),
            ("8000-8010", "has no address", "write: 127.0.0.1:8000-8010"),
            ("localhost:8000-8010", "not an address to listen on", "write: 127.0.0.1:8000-8010"),
            ("*:8000-8010", "not an address to listen on", "write: [::]:8000-8010"),
            ("[fe80::1]:8000-8010", "link-local", "[fe80::1%eth0]:8000-8010"),
            ("/run/8000-8010", "UNIX socket", "uds"),
        ] {
            let flaw = text.parse::<Ports<ListenAddr>>().unwrap_err();
            let shown = flaw.to_string();
            assert!(flaw.what.contains(what) && shown.contains(next), "{text}: {shown}");
            assert!(text.get(flaw.at.clone()).is_some(), "{text}: {:?}", flaw.at);
        }
        let flaw = "10.0.0.5:0-3".parse::<Ports<HostPort>>().unwrap_err();
        assert!(flaw.what.contains("port 0"), "{flaw}");
    }

    fn text() -> impl Strategy<Value = String> {
        let host =
            prop_oneof![Just("127.0.0.1"), Just("[::1]"), Just("[fe80::1%tap0]"), Just("a.b"), Just("::1"), Just("")];
        let port = prop_oneof![3 => any::<u16>().prop_map(u32::from), 1 => 0..80_000u32];
        let dash = prop_oneof![5 => Just("-"), 1 => Just(".."), 1 => Just("--")];
        let range = (host, "[:+]", port.clone(), dash, port);
        prop_oneof![
            4 => range.prop_map(|(host, mark, low, dash, high)| format!("{host}{mark}{low}{dash}{high}")),
            1 => r"[\[\]0-9a-z.:+%@/ -]{0,30}|\PC{0,20}",
        ]
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_back_and_what_is_corrected_can_be_read(text in text()) {
            fn check<A: WithPort + PartialEq + fmt::Debug>(text: &str) -> Result<(), TestCaseError> {
                match text.parse::<Ports<A>>() {
                    Ok(ports) => {
                        prop_assert!((1..=1024).contains(&ports.count()));
                        prop_assert!(!ports.is_range() || ports.first().port() > 0);
                        prop_assert_eq!(ports.to_string().parse(), Ok(ports.clone()));
                        prop_assert_eq!(plus(&ports).parse(), Ok(ports.clone()));
                    }
                    Err(flaw) => {
                        prop_assert!(text.get(flaw.at.clone()).is_some(), "{:?}", flaw.at);
                        if let Some(fix) = &flaw.fix {
                            prop_assert!(fix.parse::<Ports<A>>().is_ok(), "{}", fix);
                        }
                    }
                }
                Ok(())
            }
            check::<ListenAddr>(&text)?;
            check::<HostPort>(&text)?;
        }
    }
}
