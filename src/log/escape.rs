//! What comes from outside, made harmless for logs and terminals.

use std::fmt::Write as _;

/// `bytes` as text without anything that a terminal or a log reader could take for a command or a new line: control
/// characters (C0, DEL, C1), invisible and direction-changing ones, and bytes that are no UTF-8 become `\xNN` or
/// `\u{…}`; a backslash becomes `\\`, so that the result is unambiguous.
pub fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                ' '..='~' => out.push(c),
                '\0'..='\u{9f}' => {
                    let _ = write!(out, "\\x{:02x}", u32::from(c));
                }
                // Soft hyphen, Arabic letter mark, zero-width and direction marks, line and paragraph separators,
                // embeddings, isolates, word joiner and its kin, byte order mark, tags, private use.
                '\u{ad}'
                | '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e000}'..='\u{f8ff}'
                | '\u{e0000}'..='\u{10ffff}' => {
                    let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
                }
                _ => out.push(c),
            }
        }
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(escape("curl: (7) größer als 10 €".as_bytes()), "curl: (7) größer als 10 €");
    }

    #[test]
    fn terminal_commands_new_lines_and_direction_marks_are_spelled_out() {
        assert_eq!(escape(b"\x1b]52;c;x\x07\r\nFAKE=1"), "\\x1b]52;c;x\\x07\\x0d\\x0aFAKE=1");
        assert_eq!(escape("a\u{9b}31m\u{202e}b\u{2028}".as_bytes()), "a\\x9b31m\\u{202e}b\\u{2028}");
        assert_eq!(escape(b"\\x41 \xff"), "\\\\x41 \\xff");
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_survives(bytes: Vec<u8>) {
            let obeyed = |c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c);
            prop_assert!(!escape(&bytes).chars().any(obeyed));
        }
    }
}
