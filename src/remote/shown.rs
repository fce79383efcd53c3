//! What a qube asks for, as a person reads it: all of it, in signs that no terminal obeys and no eye confuses.
//!
//! Two forms of the same text. [`Sheet`] is for the person who approves a command: fields and numbered lines of at most
//! 80 columns, so that nothing is beyond the edge of a terminal or behind a row of blanks. [`logged`] is for the log: one
//! line, whole up to 4 KiB, then its beginning, its end, its size and its digest.

use std::fmt::Write as _;

use crate::proto::mac::{Digest, digest, hex};

/// Columns of a sheet.
pub const COLUMNS: usize = 80;
/// Columns of a label, or of the number of a line, with what stands behind it.
const LABEL: usize = 14;
/// Bytes of a logged text that is written whole.
const WHOLE: usize = 4 << 10;
/// Bytes of the beginning and of the end of a longer one.
const PART: usize = 1 << 10;

/// `bytes` in printable ASCII: a backslash becomes `\\`, a line end `\n`, other control characters `\xNN`, what is
/// beyond ASCII `\u{…}` (many of its signs look like others, or like nothing), and bytes that are no UTF-8 `\xNN`. Two
/// different texts never look the same.
pub fn visible(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            let _ = match c {
                '\\' => write!(out, "\\\\"),
                '\n' => write!(out, "\\n"),
                ' '..='~' => write!(out, "{c}"),
                '\0'..='\u{7f}' => write!(out, "\\x{:02x}", u32::from(c)),
                _ => write!(out, "\\u{{{:x}}}", u32::from(c)),
            };
        }
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    out
}

/// A word in quotes, in which a quote is `\'`.
pub fn quoted(word: &[u8]) -> String {
    format!("'{}'", visible(word).replace('\'', "\\'"))
}

/// Words in quotes, with a blank between them.
pub fn quoted_words<W: AsRef<[u8]>>(words: &[W]) -> String {
    words.iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// A text that is visible already, for a line of the log: whole up to 4 KiB; of a longer one the beginning, the end, and
/// the size and the SHA-256 of the original bytes.
pub fn logged(visible: &str, original: &[u8]) -> String {
    if visible.len() <= WHOLE {
        return visible.to_owned();
    }
    let (head, tail) = (&visible[..PART], &visible[visible.len() - PART..]); // ASCII: every byte is a character
    format!("{head} [... {} bytes, sha256 {} ...] {tail}", original.len(), hex(&digest(original)))
}

/// The text that a person approves. Its SHA-256 is the id of the approval, so an approval is for this very text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sheet(String);

impl Sheet {
    /// A line without a label, in our own words.
    pub fn note(&mut self, text: &str) {
        for line in rows(text, COLUMNS) {
            self.line("", line);
        }
    }

    /// A field: `text` is visible already.
    pub fn field(&mut self, label: &str, text: &str) {
        for (n, row) in rows(text, COLUMNS - LABEL).enumerate() {
            let label = if n == 0 { label } else { "" };
            self.line(&format!("{label:<LABEL$}"), row);
        }
    }

    /// A text of the qube, line by line with their numbers; a row that goes on a line has `>` for the number's `|`.
    pub fn text(&mut self, text: &[u8]) {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        for (n, line) in text.split(|b| *b == b'\n').enumerate() {
            let mut line = visible(line);
            if line.ends_with(' ') {
                line.truncate(line.len() - 1);
                line.push_str("\\x20"); // a blank at the end is seen as well
            }
            for (part, row) in rows(&line, COLUMNS - LABEL).enumerate() {
                let (number, mark) = if part == 0 { ((n + 1).to_string(), '|') } else { (String::new(), '>') };
                self.line(&format!("{number:>width$} {mark} ", width = LABEL - 3), row);
            }
        }
    }

    fn line(&mut self, prefix: &str, text: &str) {
        self.0.push_str(format!("{prefix}{text}").trim_end_matches(' '));
        self.0.push('\n');
    }

    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of an approval of this text.
    pub fn id(&self) -> Digest {
        id(&self.0)
    }
}

/// The id of an approval of a sheet's text.
pub fn id(sheet: &str) -> Digest {
    digest(sheet.as_bytes())
}

/// ASCII text in rows; one row at least.
fn rows(text: &str, width: usize) -> impl Iterator<Item = &str> {
    let count = text.len().div_ceil(width).max(1);
    (0..count).map(move |n| &text[n * width..text.len().min((n + 1) * width)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sheet(text: &[u8]) -> String {
        let mut sheet = Sheet::default();
        sheet.text(text);
        sheet.as_str().to_owned()
    }

    #[test]
    fn blanks_hide_nothing() {
        let text = sheet(format!("qvm-ls{}; touch x\n", " ".repeat(200)).as_bytes());
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows.len(), 4, "{text}");
        assert_eq!((rows[0], rows[3]), ("          1 | qvm-ls", "            >         ; touch x"), "{text}");
        assert_eq!(sheet(b"true  \n"), "          1 | true \\x20\n");
    }

    #[test]
    fn every_line_has_its_number_and_every_sign_is_plain() {
        let text = sheet("a\n\n\tb\u{202e}\u{a0}\x1b[2J\r\u{430}\\".as_bytes());
        assert_eq!(
            text,
            "          1 | a\n          2 |\n          3 | \\x09b\\u{202e}\\u{a0}\\x1b[2J\\x0d\\u{430}\\\\\n"
        );
        assert_eq!(quoted_words(&["a b", "it's", ""]), "'a b' 'it\\'s' ''");
    }

    #[test]
    fn a_log_has_all_of_a_short_text_and_both_ends_of_a_long_one() {
        let short = "x".repeat(4096);
        assert_eq!(logged(&short, short.as_bytes()), short);
        let long = format!("begin{}end", "y".repeat(100_000));
        let text = logged(&visible(long.as_bytes()), long.as_bytes());
        assert!(text.starts_with("begin") && text.ends_with("end") && text.len() < 2300, "{text}");
        assert!(text.contains(&format!("100008 bytes, sha256 {}", hex(&digest(long.as_bytes())))), "{text}");
    }

    proptest! {
        #[test]
        fn nothing_is_beyond_the_edge_and_nothing_is_obeyed(bytes: Vec<u8>, label in "[a-z]{0,12}") {
            let mut sheet = Sheet::default();
            sheet.text(&bytes);
            sheet.field(&label, &visible(&bytes));
            prop_assert!(sheet.as_str().lines().all(|line| line.len() <= COLUMNS), "{}", sheet.as_str());
            prop_assert!(sheet.as_str().bytes().all(|b| b == b'\n' || (b' '..=b'~').contains(&b)));
        }

        #[test]
        fn two_texts_never_look_the_same(a in "[ab \\\\n']{0,6}", b in "[ab \\\\n']{0,6}") {
            prop_assert_eq!(visible(a.as_bytes()) == visible(b.as_bytes()), a == b);
            prop_assert_eq!(quoted_words(&[&a, &b]) == quoted_words(&[&b, &a]), a == b);
        }
    }
}
