//! File modes. `mode = 384` of the first configuration files is 0600 in decimal, so a bare number cannot be read as
//! octal; but whoever writes `mode = 600` means 0600. Numbers that could be meant so are refused with both readings.

use std::fmt;

use super::raw::{Raw, Value};
use crate::spec::error::Flaw;

/// The permissions of a file or directory, 0 to 0o777.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileMode(u32);

/// Decimal numbers that are 0o777 at most and yet look like the octal digits of a mode.
const LOOK_OCTAL: [u32; 3] = [400, 440, 444];

impl FileMode {
    /// A mode from its bits; `None` when there are others than 0o777.
    pub const fn from_bits(bits: u32) -> Option<Self> {
        if bits <= 0o777 { Some(Self(bits)) } else { None }
    }

    /// The bits, 0 to 0o777.
    pub const fn bits(self) -> u32 {
        self.0
    }

    fn number(number: u32, text: &str) -> Result<Self, Flaw> {
        let octal = || u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777);
        let flaw = |what: String| Flaw::new(0..text.len(), what);
        match (Self::from_bits(number), octal()) {
            (Some(mode), Some(bits)) if LOOK_OCTAL.contains(&number) => {
                let what = format!("{number} is a decimal number and means {mode}");
                Err(flaw(what).note(format!("write \"0{bits:o}\" or \"{mode}\"")))
            }
            (Some(mode), _) => Ok(mode),
            (None, Some(bits)) => {
                let what = format!("{number} is a decimal number, not a file mode");
                Err(flaw(what).fix(format!("0{bits:o}")))
            }
            (None, None) => Err(flaw(format!("{number} is not a mode")).note("from \"0000\" to \"0777\"")),
        }
    }
}

impl Value for FileMode {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        if let Raw::Integer(number) = raw {
            let text = number.to_string();
            let number = u32::try_from(number).map_err(|_| {
                Flaw::new(0..text.len(), format!("{text} is not a mode")).note("from \"0000\" to \"0777\"")
            })?;
            return Self::number(number, &text);
        }
        let text = raw.text("a mode such as \"0600\"")?;
        let flaw = || Flaw::new(0..text.len(), format!("\"{text}\" is not a mode")).note("such as \"0600\"");
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.strip_prefix("0o").or(text.strip_prefix('0').filter(|_| text.len() > 1)) {
            Some(octal) if octal.bytes().all(|byte| byte.is_ascii_digit()) => {
                u32::from_str_radix(octal, 8).ok().and_then(Self::from_bits).ok_or_else(flaw)
            }
            None if digits => Self::number(text.parse().map_err(|_| flaw())?, text),
            _ => Err(flaw()),
        }
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.to_string().into_bytes()]
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0{:03o}", self.0)
    }
}

impl fmt::Debug for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileMode({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_octal_and_numbers_are_what_they_say() {
        for (raw, bits) in [
            (Raw::Text(b"0600"), 0o600),
            (Raw::Text(b"0o660"), 0o660),
            (Raw::Text(b"0777"), 0o777),
            (Raw::Text(b"0"), 0),
            (Raw::Text(b"384"), 0o600),
            (Raw::Integer(384), 0o600),
            (Raw::Integer(511), 0o777),
            (Raw::Integer(0), 0),
        ] {
            assert_eq!(FileMode::read(raw).map(FileMode::bits), Ok(bits), "{raw:?}");
        }
    }

    #[test]
    fn numbers_meant_as_octal_are_refused_with_the_text_to_write() {
        for number in [600, 640, 660, 666, 700, 755, 777] {
            let flaw = FileMode::read(Raw::Integer(number)).unwrap_err();
            assert_eq!(flaw.fix, Some(format!("0{number}")), "{number}");
            let text = number.to_string();
            assert_eq!(FileMode::read(Raw::Text(text.as_bytes())), Err(flaw));
        }
        let both = FileMode::read(Raw::Integer(400)).unwrap_err();
        assert_eq!(both.note.as_deref(), Some("write \"0400\" or \"0620\""));
        for raw in [Raw::Integer(512), Raw::Integer(-1), Raw::Integer(999), Raw::Integer(i64::MAX), Raw::Float(6.0)] {
            assert!(FileMode::read(raw).is_err(), "{raw:?}");
        }
        for text in ["", "0o", "0888", "0o1777", "01777", "rw-", "0x1ff", "+600", "0+60"] {
            assert!(FileMode::read(Raw::Text(text.as_bytes())).is_err(), "{text}");
        }
    }
}
