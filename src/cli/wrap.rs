//! Lines for people who read a terminal: broken between words at 80 columns. What goes into a pipe or a file is left as it
//! is, so that a script finds each message in one line.

use std::io::{self, IsTerminal as _};

use unicode_width::UnicodeWidthStr as _;

use crate::sys;

/// Columns of a line at most, also where the terminal has more: longer lines are hard to read.
const COLUMNS: usize = 80;
/// Columns of a line at least: a narrower terminal breaks lines by itself.
const NARROW: usize = 40;

/// The columns that lines of standard output may have; `None` where it is no terminal.
pub(super) fn columns() -> Option<usize> {
    let out = io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let (_, columns) = sys::window_size(std::os::fd::AsFd::as_fd(&out))?;
    Some(COLUMNS.min(columns.into())).filter(|columns| *columns >= NARROW)
}

/// The text with its long lines broken; the rest of a line stands two columns to the right of its beginning. Quoted lines
/// of files, what is drawn below them, and lines to be copied are left as they are.
pub(super) fn wrapped(text: &str, columns: Option<usize>) -> String {
    let Some(columns) = columns else { return text.to_owned() };
    let lines = text.lines().map(|line| if is_fixed(line) { line.to_owned() } else { broken(line, columns) });
    let mut out = lines.collect::<Vec<_>>().join("\n");
    if text.ends_with('\n') {
        out.push('\n');
    }
    out
}

/// Whether a line is part of a drawing (`12 | text`, ` | ^^^`, `--> file`) or is to be copied (a line of a policy).
fn is_fixed(line: &str) -> bool {
    let plain = plain(line);
    let beginning = plain.trim_start().trim_start_matches(|c: char| c.is_ascii_digit());
    let drawn = beginning.trim_start().starts_with("| ") || beginning.trim() == "|" || plain.contains("--> ");
    drawn || plain.contains("dom0 policy: ")
}

fn broken(line: &str, columns: usize) -> String {
    let indent = line.len() - line.trim_start().len();
    let mut out = line[..indent].to_owned();
    let mut used = indent;
    let mut first = true;
    for word in line[indent..].split(' ') {
        let width = plain(word).width();
        if first {
            used += width;
        } else if used + 1 + width > columns && used > indent + 2 {
            out += &format!("\n{}", " ".repeat(indent + 2));
            used = indent + 2 + width;
        } else {
            out.push(' ');
            used += 1 + width;
        }
        out += word;
        first = false;
    }
    out
}

/// The text without the codes that colour it.
fn plain(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_broken_between_words_and_a_pipe_gets_it_whole() {
        let text = "  warning: one two three four five six seven\nshort\n";
        assert_eq!(wrapped(text, None), text);
        assert_eq!(wrapped(text, Some(24)), "  warning: one two three\n    four five six seven\nshort\n");
    }

    #[test]
    fn width_is_that_on_the_screen_and_colours_have_none() {
        assert_eq!(wrapped("日本語 日本語 日本語", Some(14)), "日本語 日本語\n  日本語");
        assert_eq!(wrapped("\x1b[31merror\x1b[0m: abc def", Some(14)), "\x1b[31merror\x1b[0m: abc def");
    }

    #[test]
    fn drawings_and_what_is_to_be_copied_stay_whole() {
        for line in [
            "12 | target = \"a b c d e f g h i j k l m n\"",
            "   |            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ what",
            "  --> /a/file with blanks.toml:1:2",
            "    dom0 policy: qubes.ConnectTCP  +22  SOURCE  work  allow",
        ] {
            assert_eq!(wrapped(line, Some(20)), line);
        }
        let long = "a_word_that_is_longer_than_the_line";
        assert_eq!(wrapped(long, Some(20)), long);
    }

    proptest::proptest! {
        #[test]
        fn no_word_is_lost(text in "( {0,4}[a-zé日]{1,30}( [a-zé日]{1,30}){0,9}\n){0,4}") {
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let broken = wrapped(&text, Some(40));
            proptest::prop_assert_eq!(words(&broken), words(&text));
            let fits = |line: &str| line.width() <= 40 || line.trim_start().split(' ').count() <= 2;
            proptest::prop_assert!(broken.lines().all(fits), "{}", broken);
        }
    }
}
