//! Tables for people: aligned, coloured on terminals only.

use std::io::{self, IsTerminal as _};

use unicode_width::UnicodeWidthStr as _;

use crate::{log::escape, sys};

/// The blanks between two columns.
const GAP: &str = "  ";

/// The colours that say something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    /// For a state that is as it should be.
    Green,
    /// As somebody wanted it, or on its way.
    Yellow,
    /// For a state that needs somebody's attention.
    Red,
    /// For text of less interest.
    Dim,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
            Self::Dim => "2",
        }
    }
}

/// Colours and width that standard output can show.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Style {
    /// Whether it takes colours: a terminal, unless NO_COLOR is set to anything.
    pub(super) colour: bool,
    /// Columns of the terminal; None: no terminal.
    pub(super) width: Option<usize>,
}

impl Style {
    /// Standard output as it is.
    pub(super) fn stdout() -> Self {
        let out = io::stdout();
        if !out.is_terminal() {
            return Self::default();
        }
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let width = sys::window_size(std::os::fd::AsFd::as_fd(&out)).map(|(_, columns)| columns.into());
        Self { colour: !plain, width: width.filter(|columns| *columns >= 40) }
    }

    /// `text` in a colour, where there are any.
    pub(super) fn paint(self, colour: Option<Colour>, text: &str) -> String {
        match colour.filter(|_| self.colour && !text.is_empty()) {
            Some(colour) => format!("\x1b[{}m{text}\x1b[0m", colour.code()),
            None => text.to_owned(),
        }
    }
}

/// Text that was escaped where it came in, and is made sure of once more: a terminal is not to depend on others' care.
pub(super) fn clean(text: &str) -> String {
    let escaped = escape(text.as_bytes());
    if escaped.replace("\\\\", "\\") == text { text.to_owned() } else { escaped }
}

/// A cell.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    colour: Option<Colour>,
    right: bool,
}

impl Cell {
    /// With a colour.
    pub(super) fn painted(self, colour: Colour) -> Self {
        Self { colour: Some(colour), ..self }
    }

    /// A number.
    pub(super) fn number(n: impl ToString) -> Self {
        Self { text: n.to_string(), colour: None, right: true }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: clean(text.as_ref()), colour: None, right: false }
    }
}

/// Rows under a heading, each column as wide as its widest cell. The last column is cut where the line ends.
pub(super) fn render<const N: usize>(style: Style, head: [&str; N], rows: &[[Cell; N]]) -> String {
    let mut widths = head.map(str::width);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.width());
        }
    }
    let mut out = String::new();
    let head = head.map(|text| Cell::from(text).painted(Colour::Dim));
    for (number, row) in std::iter::once(&head).chain(rows).enumerate() {
        let mut line = String::new();
        let mut used = 0;
        for (column, cell) in row.iter().enumerate() {
            let last = column + 1 == N;
            let room = style.width.filter(|_| last && number > 0).map(|width| width.saturating_sub(used).max(1));
            let text = match room {
                Some(room) if cell.text.width() > room => format!("{}…", fitting(&cell.text, room - 1)),
                _ => cell.text.clone(),
            };
            // A heading stands over its numbers.
            let right = cell.right || (number == 0 && rows.first().is_some_and(|row| row[column].right));
            let pad = " ".repeat(widths[column].saturating_sub(text.width()));
            let painted = style.paint(cell.colour, &text);
            match (right, last) {
                (true, _) => line += &format!("{pad}{painted}"),
                (false, true) => line += &painted,
                (false, false) => line += &format!("{painted}{pad}"),
            }
            if !last {
                line += GAP;
            }
            used += widths[column] + GAP.len();
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// The beginning of `text` that takes at most `columns`.
fn fitting(text: &str, columns: usize) -> &str {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| text[..*end].width() <= columns).last();
    &text[..end.unwrap_or(0)]
}

/// `350 ms`, `12 s`, `5 min`, `3 h`, `2 d`.
pub(super) fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..120 => format!("{s} s"),
        120..7200 => format!("{} min", s / 60),
        7200..172_800 => format!("{} h", s / 3600),
        _ => format!("{} d", s / 86_400),
    }
}

/// `999 B`, `1.5 KiB`, `12 MiB`.
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = usize::try_from(n.checked_ilog2().unwrap_or(0) / 10).unwrap_or(0);
    if power == 0 {
        return format!("{n} B");
    }
    let tenths = (u128::from(n) * 10) >> (10 * power);
    let unit = units[power];
    if tenths < 100 { format!("{}.{} {unit}", tenths / 10, tenths % 10) } else { format!("{} {unit}", tenths / 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_the_last_is_cut_at_the_edge() {
        let rows = [
            [Cell::from("a"), Cell::number(7), Cell::from("x".repeat(50))],
            [Cell::from("größer"), Cell::number(1000), Cell::from("short")],
        ];
        let style = Style { colour: false, width: Some(40) };
        let text = render(style, ["NAME", "N", "WHAT"], &rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "NAME       N  WHAT");
        assert_eq!(lines[1], format!("a          7  {}…", "x".repeat(25)));
        assert_eq!(lines[2], "größer  1000  short");
        assert_eq!(lines[1].chars().count(), 40);
        assert_eq!(render(Style::default(), ["A"], &[]), "A\n");
    }

    #[test]
    fn wide_and_combining_characters_shift_no_column() {
        let rows = [
            [Cell::from("日本語"), Cell::from("wide")],
            [Cell::from("cafe\u{301}"), Cell::from("combining")],
            [Cell::from("plain"), Cell::from("文字".repeat(20))],
        ];
        let text = render(Style { colour: false, width: Some(40) }, ["NAME", "WHAT"], &rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "日本語  wide");
        assert_eq!(lines[2], "cafe\u{301}    combining");
        // 31 columns are left: 15 characters of two columns each, and the mark that more was there
        assert_eq!(lines[3], format!("plain   {}文…", "文字".repeat(7)));
        assert_eq!(lines[3].width(), 39);
    }

    #[test]
    fn colours_are_for_terminals_that_take_them_and_do_not_shift_columns() {
        let rows = [[Cell::from("up").painted(Colour::Green), Cell::from("x")]];
        let plain = render(Style::default(), ["STATE", "WHAT"], &rows);
        assert_eq!(plain, "STATE  WHAT\nup     x\n");
        let painted = render(Style { colour: true, width: None }, ["STATE", "WHAT"], &rows);
        assert_eq!(painted, "\x1b[2mSTATE\x1b[0m  \x1b[2mWHAT\x1b[0m\n\x1b[32mup\x1b[0m     x\n");
    }

    #[test]
    fn no_cell_reaches_a_terminal_as_a_command() {
        assert_eq!(Cell::from("a\x1b]0;x\x07\r\n\u{202e}b").text, "a\\x1b]0;x\\x07\\x0d\\x0a\\u{202e}b");
        assert_eq!(Cell::from("escaped before: \\x1b \\\\").text, "escaped before: \\x1b \\\\");
    }

    #[test]
    fn numbers_are_short() {
        let ms = [0, 999, 1000, 119_999, 120_000, 7_199_000, 7_200_000, 172_800_000];
        assert_eq!(ms.map(duration), ["0 ms", "999 ms", "1 s", "119 s", "2 min", "119 min", "2 h", "2 d"]);
        let n = [0, 1023, 1024, 1536, 10_240, (1 << 20) - 1, 1 << 20, u64::MAX];
        assert_eq!(n.map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "10 KiB", "1023 KiB", "1.0 MiB", "15 EiB"]);
    }
}
