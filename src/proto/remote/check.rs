//! What may be an id, the text of a command.

use super::wire::MAX_COMMAND;

/// Whether this may be the id of a command: a letter or digit, then up to 127 letters, digits, `.`, `_` and `-`, and
/// no `..`. Even so, ids are never used in a path.
pub fn valid_id(id: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    id.len() <= 128
        && id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && id.bytes().all(rest)
        && !id.contains("..")
}

/// Why a command's text is not taken, in the original's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadText {
    /// The text is empty.
    Empty,
    /// More than [`MAX_COMMAND`] bytes: this many.
    Oversized(usize),
    /// Control characters other than TAB, LF and CR.
    Binary,
}

impl std::fmt::Display for BadText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("empty-command"),
            Self::Oversized(n) => write!(f, "oversized ({n} bytes)"),
            Self::Binary => f.write_str("binary-content"),
        }
    }
}

/// Checks a command's text as the original does: not empty, at most 1 MiB, no 00–08, 0B, 0C, 0E–1F.
pub fn check_text(text: &[u8]) -> Result<(), BadText> {
    if text.is_empty() {
        return Err(BadText::Empty);
    }
    if text.len() > MAX_COMMAND {
        return Err(BadText::Oversized(text.len()));
    }
    if text.iter().any(is_control) { Err(BadText::Binary) } else { Ok(()) }
}

/// What no command may hold: 00–08, 0B, 0C, 0E–1F.
pub(super) fn is_control(byte: &u8) -> bool {
    matches!(byte, 0..=8 | 0x0b | 0x0c | 0x0e..=0x1f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_be_a_path_or_an_option_is_none() {
        for good in ["20251120-101500-77-0a1b2c3d", "e2e-single-001", "a", &"x".repeat(128)] {
            assert!(valid_id(good), "{good}");
        }
        for bad in ["", "-x", ".x", "a..b", "../../etc/cron.d/x", "a/b", "a b", "a'b", "a\n", "é", &"x".repeat(129)] {
            assert!(!valid_id(bad), "{bad}");
        }
    }

    #[test]
    fn a_text_is_refused_in_the_originals_words() {
        assert_eq!(check_text(b"printf '\t\r\n\x7f\xc3\xa9'"), Ok(()));
        assert_eq!(check_text(b"").map_err(|e| e.to_string()), Err("empty-command".into()));
        assert_eq!(check_text(&vec![b'x'; MAX_COMMAND]), Ok(()));
        let large = check_text(&vec![b'x'; MAX_COMMAND + 1]).map_err(|e| e.to_string());
        assert_eq!(large, Err("oversized (1048577 bytes)".into()));
        for control in (0..32u8).filter(|b| !b"\t\n\r".contains(b)) {
            assert_eq!(check_text(&[b'a', control]), Err(BadText::Binary), "{control:#x}");
        }
    }
}
