//! TCP keepalive: off, on, or with its times.

use std::{fmt, time::Duration};

use super::raw::{Raw, Value};
use crate::spec::error::Flaw;

/// The largest idle time and interval of the kernel, in seconds (`MAX_TCP_KEEPIDLE` and `MAX_TCP_KEEPINTVL` of
/// net/tcp.h).
const MAX_SECONDS: u16 = 32_767;
/// The largest number of probes (`MAX_TCP_KEEPCNT` of net/tcp.h).
const MAX_PROBES: u8 = 127;

/// TCP keepalive of accepted and dialled sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Keepalive {
    /// No probes.
    Off,
    /// Probes at the built-in times.
    #[default]
    On,
    /// Probes at these times, and sessions with a silent peer are reset although data is in flight.
    Times(KeepaliveTimes),
}

/// When a silent connection is probed, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeepaliveTimes {
    /// Seconds without a packet before the first probe, at least 1.
    pub idle: u16,
    /// Seconds between probes, at least 1.
    pub interval: u16,
    /// Probes without an answer after which the connection is dead, at least 1.
    pub count: u8,
}

impl KeepaliveTimes {
    /// A dead peer is noticed after four minutes, where the kernel's own times take over two hours (tcp(7):
    /// tcp_keepalive_time, _intvl, _probes).
    pub const BUILT_IN: Self = Self { idle: 120, interval: 30, count: 4 };
}

impl Keepalive {
    /// The times of probes, if there are to be any.
    pub fn times(self) -> Option<KeepaliveTimes> {
        match self {
            Self::Off => None,
            Self::On => Some(KeepaliveTimes::BUILT_IN),
            Self::Times(times) => Some(times),
        }
    }

    /// How long a peer may acknowledge nothing of what waits for it, where that is limited.
    pub fn silence(self) -> Option<Duration> {
        let Self::Times(KeepaliveTimes { idle, interval, count }) = self else { return None };
        Some(Duration::from_secs(u64::from(idle) + u64::from(interval) * u64::from(count)))
    }
}

impl Value for Keepalive {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        if let Ok(on) = bool::read(raw) {
            return Ok(if on { Self::On } else { Self::Off });
        }
        let expected = "true, false or IDLE/INTERVAL/COUNT";
        let text = raw.text(expected)?;
        let whole = 0..text.len();
        let mut parts = text.split('/');
        let (Some(idle), Some(interval), Some(count), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            let flaw = Flaw::new(whole, format!("expected {expected}"));
            return Err(if text.contains('/') {
                flaw.note("seconds, seconds and a number, such as 120/30/4")
            } else {
                flaw
            });
        };
        let number = |part: &str, at: usize, most: u16| {
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            let number = part.parse::<u16>().ok().filter(|number| digits && (1..=most).contains(number));
            number.ok_or_else(|| {
                Flaw::new(at..at + part.len(), format!("\"{part}\" is not a whole number from 1 to {most}"))
            })
        };
        let second = idle.len() + 1;
        Ok(Self::Times(KeepaliveTimes {
            idle: number(idle, 0, MAX_SECONDS)?,
            interval: number(interval, second, MAX_SECONDS)?,
            count: u8::try_from(number(count, second + interval.len() + 1, MAX_PROBES.into())?).unwrap_or(MAX_PROBES),
        }))
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.to_string().into_bytes()]
    }
}

impl fmt::Display for Keepalive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("false"),
            Self::On => f.write_str("true"),
            Self::Times(KeepaliveTimes { idle, interval, count }) => write!(f, "{idle}/{interval}/{count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Result<Keepalive, Flaw> {
        Keepalive::read(Raw::Text(text.as_bytes()))
    }

    #[test]
    fn it_is_a_boolean_or_three_numbers() {
        for (written, read) in [("true", Keepalive::On), ("on", Keepalive::On), ("0", Keepalive::Off)] {
            assert_eq!(text(written), Ok(read), "{written}");
        }
        assert_eq!(Keepalive::read(Raw::Boolean(false)), Ok(Keepalive::Off));
        let times = text("60/10/3").unwrap();
        assert_eq!(times, Keepalive::Times(KeepaliveTimes { idle: 60, interval: 10, count: 3 }));
        assert_eq!(times.silence(), Some(Duration::from_secs(90)));
        assert_eq!(text(std::str::from_utf8(&times.texts()[0]).unwrap()), Ok(times));
        assert_eq!(Keepalive::On.silence(), None);
        for bad in [
            "",
            "60",
            "60/10",
            "60/10/3/1",
            "0/1/1",
            "1/0/1",
            "1/1/0",
            "32768/1/1",
            "1/1/128",
            "+1/1/1",
            "1//1",
            "a/b/c",
        ] {
            assert!(text(bad).is_err(), "{bad}");
        }
        assert_eq!(text("60/x/3").unwrap_err().at, 3..4);
    }
}
