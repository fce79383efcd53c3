//! Numbers with a range: counts, times, sizes. A plain number of a time is seconds; a unit may say otherwise.

use std::{num::NonZeroU32, time::Duration};

use super::raw::{Raw, Value};
use crate::spec::error::Flaw;

/// The longest time that can be asked for: 366 days. Beyond it lies a slip of the pen, and deadlines that overflow.
const MAX_TIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The most that can be counted: above any number of descriptors Linux gives (`NR_OPEN_MAX` is lower in practice).
const MAX_COUNT: u32 = 1 << 30;

/// The units that a time may have, longest spelling first where one ends in another.
const TIMES: [(&str, u64); 6] =
    [("ms", 1), ("min", 60_000), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A time in milliseconds.
fn time(raw: Raw<'_>) -> Result<Duration, Flaw> {
    let text = match raw {
        Raw::Integer(number) => number.to_string(),
        Raw::Float(number) => number.to_string(),
        _ => raw.text("a number of seconds, or a time such as \"5min\",")?.to_owned(),
    };
    let flaw = || {
        let what = format!("\"{text}\" is not a time");
        Flaw::new(0..text.len(), what).note("seconds such as 30 or 0.5, or with a unit: 500ms, 30s, 5min, 2h")
    };
    let unit = TIMES.into_iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, ms)));
    let (number, unit_ms) = unit.unwrap_or((&text, 1000));
    let number = number.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') || fraction.len() > 9 {
        return Err(flaw());
    }
    let too_long = || Flaw::new(0..text.len(), format!("\"{text}\" is longer than a year")).note("at most 366d");
    let whole: u64 = whole.parse().map_err(|_| too_long())?;
    let scale = 10u64.pow(u32::try_from(fraction.len()).expect("at most nine digits"));
    let part = fraction.parse::<u64>().unwrap_or(0) * unit_ms;
    if part % scale != 0 {
        let what = format!("\"{text}\" is finer than a millisecond");
        return Err(Flaw::new(0..text.len(), what));
    }
    let ms = whole.checked_mul(unit_ms).and_then(|ms| ms.checked_add(part / scale)).ok_or_else(too_long)?;
    let time = Duration::from_millis(ms);
    if time > MAX_TIME { Err(too_long()) } else { Ok(time) }
}

/// How long something may take: above zero, at most 366 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timeout(pub(in crate::spec) Duration);

/// How long to wait before an end: zero means no waiting, at most 366 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pause(pub(in crate::spec) Duration);

/// A time without bytes after which something ends; `None`, written `0` or `off`, is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Idle(pub(in crate::spec) Option<Duration>);

/// How long a unit that a forward has started runs on without sessions: at least 1 s, at most 366 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StopWhenIdle(pub(in crate::spec) Duration);

/// A number of things at once, 1 to 2^30.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Count(pub(in crate::spec) NonZeroU32);

/// A number of answers, 0 to 2^30.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Responses(pub(in crate::spec) u32);

/// The length of a listening socket's queue, 1 to 2^30; the kernel cuts it to net.core.somaxconn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Backlog(pub(in crate::spec) NonZeroU32);

/// A size in bytes, 4 KiB to 64 MiB, for what a session moves at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferSize(pub(in crate::spec) u32);

impl Value for Timeout {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        match time(raw)? {
            Duration::ZERO => Err(Flaw::new(0..0, "a timeout of 0 would let nothing succeed")),
            time => Ok(Self(time)),
        }
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![seconds(self.0).into_bytes()]
    }
}

impl Value for Pause {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        time(raw).map(Self)
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![seconds(self.0).into_bytes()]
    }
}

impl Value for Idle {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        if let Raw::Text(b"off") | Raw::Boolean(false) = raw {
            return Ok(Self(None));
        }
        Ok(Self(Some(time(raw)?).filter(|time| !time.is_zero())))
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.map_or("0".to_owned(), seconds).into_bytes()]
    }
}

impl Value for StopWhenIdle {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        let time = time(raw)?;
        if time < Duration::from_secs(1) {
            let what = "a unit that stops within 1 s of its last session would be started for nearly every session";
            return Err(Flaw::new(0..0, what).note("at least 1 s; without the key the unit is never stopped"));
        }
        Ok(Self(time))
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![seconds(self.0).into_bytes()]
    }
}

/// A whole number from 1 to [`MAX_COUNT`].
fn count(raw: Raw<'_>) -> Result<NonZeroU32, Flaw> {
    let text = match raw {
        Raw::Integer(number) => number.to_string(),
        _ => raw.text("a whole number")?.to_owned(),
    };
    let number = text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    match number.map(u32::try_from) {
        Some(Ok(0)) => Err(Flaw::new(0..text.len(), "0 would allow no session").note("a whole number from 1")),
        Some(Ok(number)) if number <= MAX_COUNT => Ok(at_least_one(number)),
        Some(_) => Err(Flaw::new(0..text.len(), format!("{text} is too many")).note(format!("at most {MAX_COUNT}"))),
        None => Err(Flaw::new(0..text.len(), format!("\"{text}\" is not a whole number from 1"))),
    }
}

impl Value for Count {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        count(raw).map(Self)
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.to_string().into_bytes()]
    }
}

impl Value for Responses {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        match raw {
            Raw::Integer(0) | Raw::Text(b"0") => Ok(Self(0)),
            raw => count(raw).map(|number| Self(number.get())),
        }
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.to_string().into_bytes()]
    }
}

impl Value for Backlog {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        count(raw).map(Self)
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.to_string().into_bytes()]
    }
}

impl Value for BufferSize {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        let text = match raw {
            Raw::Integer(number) => number.to_string(),
            _ => raw.text("a number of bytes, or a size such as \"64K\",")?.to_owned(),
        };
        let units = [("K", 10), ("M", 20)];
        let unit = units.into_iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
        let (number, shift) = unit.unwrap_or((&text, 0));
        let number = number.parse::<u32>().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()));
        let bytes = number.and_then(|number| number.checked_mul(1 << shift));
        bytes.filter(|bytes| (4 << 10..=64 << 20).contains(bytes)).map(Self).ok_or_else(|| {
            let what = format!("\"{text}\" is not a buffer's size");
            Flaw::new(0..text.len(), what).note("bytes, or with K or M (of 1024), from 4K to 64M")
        })
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.to_string().into_bytes()]
    }
}

/// The number, or 1 instead of 0.
fn at_least_one(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

/// Seconds as the shortest text: `30`, `0.5`.
fn seconds(duration: Duration) -> String {
    let text = format!("{}.{:03}", duration.as_secs(), duration.subsec_millis());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<T: Value>(text: &str) -> Result<T, Flaw> {
        T::read(Raw::Text(text.as_bytes()))
    }

    #[test]
    fn a_plain_time_is_seconds_and_a_unit_says_otherwise() {
        for (written, ms) in [
            ("30", 30_000),
            ("0.5", 500),
            ("500ms", 500),
            ("30s", 30_000),
            ("1.5m", 90_000),
            ("5min", 300_000),
            ("2h", 7_200_000),
            ("1d", 86_400_000),
            ("5 min", 300_000),
        ] {
            let read: Timeout = text(written).unwrap();
            assert_eq!(read, Timeout(Duration::from_millis(ms)), "{written}");
            assert_eq!(Timeout::read(Raw::Text(&read.texts()[0])), Ok(read), "{written}");
        }
        assert_eq!(Timeout::read(Raw::Integer(30)), Ok(Timeout(Duration::from_secs(30))));
        assert_eq!(Timeout::read(Raw::Float(0.25)), Ok(Timeout(Duration::from_millis(250))));
        for bad in ["", "-1", "1e3", "0", "s", ".5", "5.", "0.0001", "367d", "99999999999999999999", "1 2", "+3", "5 x"]
        {
            assert!(text::<Timeout>(bad).is_err(), "{bad}");
        }
        for bad in [f64::NAN, f64::INFINITY, -1.0, 1e300, 1e-9] {
            assert!(Timeout::read(Raw::Float(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_idle_timeout_of_zero_is_off() {
        for raw in [Raw::Text(b"0"), Raw::Text(b"off"), Raw::Integer(0), Raw::Boolean(false)] {
            assert_eq!(Idle::read(raw), Ok(Idle(None)), "{raw:?}");
        }
        assert_eq!(text("90"), Ok(Idle(Some(Duration::from_secs(90)))));
        assert!(Idle::read(Raw::Boolean(true)).is_err());
    }

    #[test]
    fn a_unit_runs_on_for_at_least_a_second() {
        assert_eq!(text("600"), Ok(StopWhenIdle(Duration::from_secs(600))));
        assert_eq!(text("10min"), Ok(StopWhenIdle(Duration::from_secs(600))));
        assert_eq!(text("1"), Ok(StopWhenIdle(Duration::from_secs(1))));
        for bad in ["0", "0.999", "999ms", "off", "never", ""] {
            assert!(text::<StopWhenIdle>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_begin_at_one_and_sizes_have_units() {
        assert_eq!(text("16"), Ok(Count(at_least_one(16))));
        for bad in ["0", "", "-1", "+1", "1.0", "many", "4294967296"] {
            assert!(text::<Count>(bad).is_err(), "{bad}");
        }
        assert_eq!((text("0"), text("2")), (Ok(Responses(0)), Ok(Responses(2))));
        assert!(["", "-1", "0.5", "00x", "1073741825"].iter().all(|bad| text::<Responses>(bad).is_err()));
        assert_eq!(text("64K"), Ok(BufferSize(65536)));
        assert_eq!(text("1M"), Ok(BufferSize(1 << 20)));
        assert_eq!(text("4096"), Ok(BufferSize(4096)));
        for bad in ["0", "4095", "65M", "64KB", "K", "9999999999999M"] {
            assert!(text::<BufferSize>(bad).is_err(), "{bad}");
        }
    }
}
