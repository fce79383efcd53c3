//! Tables for people: aligned, coloured on terminals only, and never wider than the terminal.
//!
//! A pipe and `--wide` get every column in full. A terminal gets what fits: columns that say less leave first, then the
//! long columns are cut, the widest first. Under [`NARROW`] columns, or where the least widths do not fit, each row is
//! a block of lines.

use std::io::{self, IsTerminal as _};

use clap::{Args, ValueEnum};
use unicode_width::UnicodeWidthStr as _;

use crate::{log::escape, sys};

/// The blanks between two columns.
const GAP: &str = "  ";

/// Under this width of a terminal each row is a block of lines.
const NARROW: usize = 70;
/// A terminal is taken to have at least this width.
const LEAST: usize = 40;
/// A long column is as good as whole with this width.
const COMFORTABLE: usize = 32;

/// When something is done that is for terminals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    #[default]
    Auto,
    Always,
    Never,
}

impl When {
    /// Whether it is done, where `auto` means this.
    pub(super) fn holds(self, auto: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Auto => auto(),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// How tables look.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct LookOptions {
    /// Show every column in full, also in a narrow terminal
    #[arg(long, short)]
    wide: bool,
    /// Use colours; `auto`: on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    color: When,
}

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
    /// Cells are coloured by escape sequences (ECMA-48 SGR).
    pub(super) colour: bool,
    /// Columns of the terminal; `None`: no terminal, or everything is to be shown.
    pub(super) width: Option<usize>,
}

impl Style {
    /// Standard output as it is, with what the options say.
    pub(super) fn stdout(look: LookOptions) -> Self {
        let out = io::stdout();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = look.color.holds(|| out.is_terminal() && !set("NO_COLOR") && !dumb);
        let size =
            if out.is_terminal() && !look.wide { sys::window_size(std::os::fd::AsFd::as_fd(&out)) } else { None };
        let width = size.map(|(_, columns)| usize::from(columns)).filter(|columns| *columns > 0);
        Self { colour, width: width.map(|columns| columns.max(LEAST)) }
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

/// What happens to a column where the terminal is too narrow for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ColumnNeed {
    /// The column is shown at every width.
    Needed,
    /// The column is left out where the least widths do not fit.
    Spare,
    /// It repeats what other columns say, and leaves where those cannot be shown in comfort.
    Extra,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    head: &'static str,
    /// The width below which it is not cut; `None`: it is never cut.
    least: Option<usize>,
    need: ColumnNeed,
}

impl Column {
    /// A column that is never cut.
    pub(super) const fn whole(head: &'static str) -> Self {
        Self { head, least: None, need: ColumnNeed::Needed }
    }

    /// A column whose cells are cut in the middle, down to this width.
    pub(super) const fn long(head: &'static str, least: usize) -> Self {
        Self { head, least: Some(least), need: ColumnNeed::Needed }
    }

    /// The same column, which may leave.
    pub(super) const fn spare(self) -> Self {
        Self { need: ColumnNeed::Spare, ..self }
    }

    /// The same column, which repeats what others say.
    pub(super) const fn extra(self) -> Self {
        Self { need: ColumnNeed::Extra, ..self }
    }
}

/// A column with the width that it gets.
#[derive(Clone, Copy, Debug)]
struct Placed {
    index: usize,
    column: Column,
    /// The width of its widest cell.
    natural: usize,
    width: usize,
}

impl Placed {
    /// The least width that it may get.
    fn floor(&self) -> usize {
        self.column.least.map_or(self.natural, |least| least.max(self.column.head.width()).min(self.natural))
    }

    fn comfortable(&self) -> usize {
        self.column.least.map_or(self.natural, |least| least.max(COMFORTABLE).min(self.natural))
    }
}

/// Rows under a heading.
pub(super) fn render<const N: usize>(style: Style, columns: &[Column; N], rows: &[[Cell; N]]) -> String {
    render_with_notes(style, columns, rows, |_| None)
}

/// Rows under a heading, some with a note below: a sentence that begins below the second column.
pub(super) fn render_with_notes<const N: usize>(
    style: Style,
    columns: &[Column; N],
    rows: &[[Cell; N]],
    note: impl Fn(usize) -> Option<String>,
) -> String {
    let natural = |index: usize, column: &Column| {
        rows.iter().map(|row| row[index].text.width()).max().unwrap_or(0).max(column.head.width())
    };
    let placed = columns.iter().enumerate().map(|(index, column)| {
        let natural = natural(index, column);
        Placed { index, column: *column, natural, width: natural }
    });
    let mut placed: Vec<Placed> = placed.collect();
    if let Some(width) = style.width {
        // On a terminal a column without a word is not worth its place.
        placed.retain(|one| rows.is_empty() || rows.iter().any(|row| !row[one.index].text.is_empty()));
        if width < NARROW || !fit(&mut placed, width) {
            return blocks(style, width, columns, rows, note);
        }
    }
    let head = columns.map(|column| Cell::from(column.head).painted(Colour::Dim));
    let mut out = String::new();
    for (number, row) in std::iter::once(&head).chain(rows).enumerate() {
        let mut line = String::new();
        for (place, one) in placed.iter().enumerate() {
            let cell = &row[one.index];
            let text = shortened(&cell.text, one.width);
            // A heading stands over its numbers.
            let right = cell.right || (number == 0 && rows.first().is_some_and(|row| row[one.index].right));
            let pad = " ".repeat(one.width.saturating_sub(text.width()));
            let painted = style.paint(cell.colour, &text);
            match (right, place + 1 == placed.len()) {
                (true, _) => line += &format!("{pad}{painted}"),
                (false, true) => line += &painted,
                (false, false) => line += &format!("{painted}{pad}"),
            }
            if place + 1 < placed.len() {
                line += GAP;
            }
        }
        out += line.trim_end();
        out.push('\n');
        if let Some(note) = number.checked_sub(1).and_then(&note) {
            out += &noted(style, &note, placed.first().map_or(0, |first| first.width) + GAP.len());
        }
    }
    out
}

/// A note in lines that begin behind `indent` columns, or further to the left where the terminal is narrow.
fn noted(style: Style, note: &str, indent: usize) -> String {
    let width = style.width.unwrap_or(usize::MAX);
    let indent = if indent > COMFORTABLE || width.saturating_sub(indent) < COMFORTABLE { GAP.len() } else { indent };
    let lines = wrapped(&clean(note), width.saturating_sub(indent).max(1));
    lines.iter().map(|line| format!("{}{}\n", " ".repeat(indent), style.paint(Some(Colour::Dim), line))).collect()
}

/// Gives each column its width, so that a line has at most `width` columns. False where that is impossible.
fn fit(placed: &mut Vec<Placed>, width: usize) -> bool {
    let gaps = |placed: &[Placed]| GAP.len() * placed.len().saturating_sub(1);
    let total = |placed: &[Placed], of: fn(&Placed) -> usize| placed.iter().map(of).sum::<usize>() + gaps(placed);
    for (need, of) in
        [(ColumnNeed::Extra, Placed::comfortable as fn(&Placed) -> usize), (ColumnNeed::Spare, Placed::floor)]
    {
        while total(placed, of) > width {
            let Some(last) = placed.iter().rposition(|one| one.column.need == need) else { break };
            placed.remove(last);
        }
    }
    if total(placed, Placed::floor) > width {
        return false;
    }
    while total(placed, |one| one.width) > width {
        let widest = placed.iter_mut().filter(|one| one.width > one.floor()).max_by_key(|one| one.width);
        let Some(widest) = widest else { return false };
        widest.width -= 1;
    }
    true
}

/// Each row as a block of lines: the first cell, and below it the others, each behind its heading.
fn blocks<const N: usize>(
    style: Style,
    width: usize,
    columns: &[Column; N],
    rows: &[[Cell; N]],
    note: impl Fn(usize) -> Option<String>,
) -> String {
    let widest = columns.iter().skip(1).map(|column| column.head.width()).max().unwrap_or(0);
    let blocks = rows.iter().enumerate().map(|(index, row)| {
        let first = shortened(&row[0].text, width);
        let mut out = format!("{}\n", style.paint(row[0].colour, if first.is_empty() { "-" } else { &first }));
        for (column, cell) in columns.iter().zip(row).skip(1).filter(|(_, cell)| !cell.text.is_empty()) {
            let text = shortened(&cell.text, width.saturating_sub(widest + 2 * GAP.len()).max(1));
            let pad = " ".repeat(widest - column.head.width());
            let head = style.paint(Some(Colour::Dim), column.head);
            out += &format!("{GAP}{head}{pad}{GAP}{}\n", style.paint(cell.colour, &text));
        }
        out.extend(note(index).map(|note| noted(style, &note, GAP.len())));
        out
    });
    blocks.collect::<Vec<_>>().join("\n")
}

/// `text` in at most `columns`, without its middle where it is longer. Of `ADDRESS in NAMESPACE` the namespace is cut
/// first.
pub(super) fn shortened(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    if let Some((place, netns)) = text.split_once(IN) {
        let room = columns.saturating_sub(place.width() + IN.len());
        if room >= LEAST_NETNS {
            return format!("{place}{IN}{}", shortened(netns, room));
        }
    }
    let room = columns.saturating_sub(1);
    let begin = fitting(text, room.div_ceil(2));
    format!("{begin}…{}", fitting_end(text, room - begin.width().min(room)))
}

/// What stands between an address and its network namespace.
const IN: &str = " in ";
/// A namespace is not cut below this width: seven columns tell the beginning and the end of a name.
const LEAST_NETNS: usize = 7;

/// The beginning of `text` that takes at most `columns`.
fn fitting(text: &str, columns: usize) -> &str {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    let end = ends.take_while(|end| text[..*end].width() <= columns).last();
    &text[..end.unwrap_or(0)]
}

/// The end of `text` that takes at most `columns`, and begins with a character that takes a column.
fn fitting_end(text: &str, columns: usize) -> &str {
    let begins = text.char_indices().rev().map(|(at, _)| at);
    let begin = begins.take_while(|at| text[*at..].width() <= columns).last().unwrap_or(text.len());
    let tail = &text[begin..];
    let mark = |c: &char| c.len_utf8() > 1 && tail[..c.len_utf8()].width() == 0;
    tail.chars().next().filter(mark).map_or(tail, |c| &tail[c.len_utf8()..])
}

/// `text` in lines of at most `columns`, broken at blanks, and within a word where that is longer.
pub(super) fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for mut word in text.split(' ') {
        let line = lines.last_mut().expect("there is a first line");
        if line.is_empty() || line.width() + 1 + word.width() <= columns {
            let blank = if line.is_empty() { "" } else { " " };
            *line += blank;
        } else {
            lines.push(String::new());
        }
        while word.width() > columns && !fitting(word, columns).is_empty() {
            let part = fitting(word, columns);
            word = &word[part.len()..];
            lines.last_mut().expect("there is a first line").push_str(part);
            lines.push(String::new());
        }
        lines.last_mut().expect("there is a first line").push_str(word);
    }
    lines
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
    use proptest::prelude::*;

    use super::*;

    const fn on(width: usize) -> Style {
        Style { colour: false, width: Some(width) }
    }

    #[test]
    fn the_widest_column_is_cut_in_its_middle_until_the_line_fits() {
        let columns = [Column::long("NAME", 6), Column::whole("N"), Column::long("WHAT", 10)];
        let rows = [
            [Cell::from("a"), Cell::number(7), Cell::from(format!("{}{}", "x".repeat(50), "y".repeat(50)))],
            [Cell::from("größer"), Cell::number(1000), Cell::from("short")],
        ];
        let text = render(on(80), &columns, &rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "NAME       N  WHAT");
        assert_eq!(lines[1], format!("a          7  {}…{}", "x".repeat(33), "y".repeat(32)));
        assert_eq!(lines[2], "größer  1000  short");
        assert_eq!(lines[1].width(), 80);
        let whole = render(Style::default(), &columns, &rows);
        assert!(whole.contains(&"x".repeat(50)) && whole.contains(&"y".repeat(50)), "a pipe gets everything: {whole}");
        assert_eq!(render(Style::default(), &[Column::whole("A")], &[]), "A\n");
    }

    #[test]
    fn wide_and_combining_characters_shift_no_column() {
        let columns = [Column::long("NAME", 6), Column::long("WHAT", 10)];
        let rows = [
            [Cell::from("日本語"), Cell::from("wide")],
            [Cell::from("cafe\u{301}"), Cell::from("combining")],
            [Cell::from("plain"), Cell::from("文字".repeat(40))],
        ];
        let text = render(on(71), &columns, &rows);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "日本語  wide");
        assert_eq!(lines[2], "cafe\u{301}    combining");
        // 63 columns are left: 31 characters of two columns each, and the mark that more was there
        assert_eq!(lines[3].width(), 71);
        assert_eq!(lines[3].matches(['文', '字']).count(), 31);
    }

    #[test]
    fn columns_that_say_less_leave_before_others_are_cut_to_nothing() {
        let columns = [
            Column::long("NAME", 8),
            Column::long("LEADS TO", 12),
            Column::long("WHO", 20).spare(),
            Column::whole("UNIT").extra(),
        ];
        let row = ["n".repeat(30), "l".repeat(30), "w".repeat(30), "u".repeat(30)].map(Cell::from);
        let head = |width| {
            render(on(width), &columns, std::slice::from_ref(&row)).lines().next().unwrap_or_default().to_owned()
        };
        assert!(head(126).ends_with("UNIT"));
        let narrower = head(125);
        assert!(narrower.contains("WHO") && !narrower.contains("UNIT"), "{narrower}");
        let empty = ["n", "l", "", "u"].map(Cell::from);
        assert_eq!(render(on(80), &columns, &[empty]), "NAME  LEADS TO  UNIT\nn     l         u\n");
    }

    #[test]
    fn a_narrow_terminal_gets_a_block_for_each_row() {
        let columns = [Column::long("NAME", 8), Column::whole("STATE"), Column::long("LEADS TO", 12)];
        let rows = [["a", "up", "x"].map(Cell::from), ["", "down", ""].map(Cell::from)];
        assert_eq!(render(on(69), &columns, &rows), "a\n  STATE     up\n  LEADS TO  x\n\n-\n  STATE     down\n");
    }

    #[test]
    fn a_note_stands_below_its_row_and_is_no_wider_than_the_terminal() {
        let columns = [Column::long("NAME", 8), Column::whole("STATE"), Column::long("LEADS TO", 12)];
        let rows = [["localai", "up", "x"].map(Cell::from), ["b", "down", "y"].map(Cell::from)];
        let note = |index| (index == 0).then(|| "localai.service inactive".to_owned() + &" word".repeat(14));
        let text = render_with_notes(Style::default(), &columns, &rows, note);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[2].starts_with("         localai.service inactive word") && lines[3].starts_with("b  "),
            "{text}"
        );
        let text = render_with_notes(on(80), &columns, &rows, note);
        assert!(text.lines().nth(3).is_some_and(|line| line.starts_with("         word")), "{text}");
        let text = render_with_notes(on(60), &columns, &rows, note);
        assert!(text.contains("  LEADS TO  x\n  localai.service inactive word"), "{text}");
        assert!(text.lines().all(|line| line.width() <= 60), "{text}");
    }

    #[test]
    fn a_namespace_is_cut_before_its_address() {
        let text = "tcp 192.168.31.201:22 in qdhcp-27a7e3a4-9d07-4f1e-8f6c-5b1c2f0e9d11";
        assert_eq!(shortened(text, 40), "tcp 192.168.31.201:22 in qdhcp-2…f0e9d11");
        assert_eq!(shortened(text, 20).width(), 20);
        assert_eq!(shortened(text, text.len()), text);
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let columns = [Column::whole("STATE"), Column::whole("WHAT")];
        let rows = [[Cell::from("up").painted(Colour::Green), Cell::from("x")]];
        let plain = render(Style::default(), &columns, &rows);
        assert_eq!(plain, "STATE  WHAT\nup     x\n");
        let painted = render(Style { colour: true, width: None }, &columns, &rows);
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

    #[test]
    fn lines_are_broken_at_blanks() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("a verylongword b", 5), ["a", "veryl", "ongwo", "rd b"]);
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_terminal(
            width in 40..250usize,
            rows in prop::collection::vec(prop::array::uniform4("[ -~é日\u{301}]{0,190}"), 0..5),
        ) {
            let columns =
                [Column::long("NAME", 8), Column::long("ADDRESS", 16), Column::long("PEER", 8).spare(), Column::long("UNIT", 8).extra()];
            let rows: Vec<_> = rows.into_iter().map(|row| row.map(Cell::from)).collect();
            for line in render(on(width), &columns, &rows).lines() {
                prop_assert!(line.width() <= width, "{} > {}: {}", line.width(), width, line);
            }
        }
    }
}
