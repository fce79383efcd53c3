//! What is wrong with a text, where, and what to write instead.
//!
//! Every text that this room reads has an [`Origin`]: a configuration file, a `--forward` argument, or a name on a
//! socket. While it is read, faults are noted with a span of its bytes; all of them are handed back together, because
//! somebody who mends one at a time restarts a service once for each. A [`SpecFault`] keeps the line it stands on, so it
//! can be shown long after the text is gone, as one line of a log or underlined for a terminal.
//!
//! A name knows neither its socket nor its unit. Whoever does says so afterwards: [`Faults::cited`].

use std::{
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// What kind of text a fault stands in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A file, by the name its reader gave it: `forward.toml`, or the path of a unit.
    File(String),
    /// The n-th `--forward` argument, counted from 1; `None` when there is only the one.
    Forward(Option<usize>),
    /// A name from `FileDescriptorName=`, with the local address of its socket once [`Faults::cited`] told it.
    Name(Option<String>),
}

/// A text that is being read, with its origin; shared by all places in it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) origin: Origin,
    pub(super) text: String,
    /// The byte offsets of its newlines: a file of 10,000 forwards has a place for each.
    newlines: OnceLock<Vec<usize>>,
}

impl Source {
    pub(super) fn new(origin: Origin, text: &str) -> Arc<Self> {
        Arc::new(Self { origin, text: text.to_owned(), newlines: OnceLock::new() })
    }

    /// The line with the byte at `offset`, counted from 1.
    fn line(&self, offset: usize) -> usize {
        let newlines = || self.text.match_indices('\n').map(|(at, _)| at).collect();
        self.newlines.get_or_init(newlines).partition_point(|newline| *newline < offset) + 1
    }
}

/// A stretch of a text: where a key or a value was written. It has no public parts: it exists to be cited by a fault.
#[derive(Clone, Debug)]
pub struct Place {
    pub(super) source: Arc<Source>,
    pub(super) span: Range<usize>,
}

impl Place {
    pub(super) fn new(source: &Arc<Source>, span: Range<usize>) -> Self {
        Self { source: Arc::clone(source), span }
    }

    /// The line on which it begins, counted from 1.
    pub(super) fn line(&self) -> usize {
        self.source.line(floor(&self.source.text, self.span.start))
    }

    /// `forward.toml:12`, for a fault elsewhere that points here.
    pub(super) fn brief(&self) -> String {
        match &self.source.origin {
            Origin::File(name) => format!("{}:{}", Shown(name), self.line()),
            origin => origin.to_string(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(name) => write!(f, "{}", Shown(name)),
            Self::Forward(Some(number)) => write!(f, "--forward #{number}"),
            Self::Forward(None) => write!(f, "--forward"),
            Self::Name(Some(listener)) => write!(f, "{}: name", Shown(listener)),
            Self::Name(None) => write!(f, "name"),
        }
    }
}

/// Where a socket's name came from, said by a caller who knows more than the name itself.
#[derive(Clone, Copy, Debug)]
pub enum Cite<'a> {
    /// At run time: the local address of the socket, such as `127.0.0.1:1234`.
    Listener(&'a str),
    /// In `check`: the line of the unit that holds the name.
    UnitLine {
        /// Path of the unit file, or of its drop-in.
        file: &'a str,
        /// Line in that file, counted from 1.
        line: usize,
        /// The whole line as it stands there.
        text: &'a str,
        /// Where in `text` the name begins, in bytes.
        value: usize,
    },
}

/// One thing that is wrong: where, what, and what to write instead when that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecFault {
    origin: Origin,
    line: usize,
    column: usize,
    excerpt: String,
    span: Range<usize>,
    what: String,
    hint: Option<String>,
}

impl SpecFault {
    /// A fault at a place. `what` is lower case, without a final stop.
    pub(super) fn at(place: &Place, what: impl Into<String>) -> Self {
        let text = &place.source.text;
        let start = floor(text, place.span.start);
        let end = floor(text, place.span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
        let excerpt = text[line_start..line_end].trim_end_matches('\r');
        let span = (start - line_start).min(excerpt.len())..(end.min(line_end) - line_start).min(excerpt.len());
        Self {
            origin: place.source.origin.clone(),
            line: place.source.line(start),
            column: excerpt[..span.start].chars().count() + 1,
            excerpt: excerpt.to_owned(),
            span,
            what: what.into(),
            hint: None,
        }
    }

    /// A fault of a text as a whole: it has no line.
    pub(super) fn of_all(source: &Arc<Source>, what: impl Into<String>) -> Self {
        Self { line: 0, column: 0, excerpt: String::new(), span: 0..0, ..Self::at(&Place::new(source, 0..0), what) }
    }

    /// Where it is, in a few characters: `/etc/pfwd.toml:12:9`, `--forward #2`.
    pub fn place(&self) -> String {
        match &self.origin {
            Origin::File(_) if self.line == 0 => self.origin.to_string(),
            Origin::File(_) if self.column == 0 => format!("{}:{}", self.origin, self.line),
            Origin::File(_) => format!("{}:{}:{}", self.origin, self.line, self.column),
            Origin::Forward(_) => self.origin.to_string(),
            Origin::Name(_) => format!("{} \"{}\", column {}", self.origin, Shown(&self.excerpt), self.column),
        }
    }

    /// The same fault with what to do about it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What kind of text it stands in.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The line, counted from 1; 0 for a fault of the text as a whole.
    pub fn line(&self) -> usize {
        self.line
    }

    /// The column in characters, counted from 1; 0 when only the line is known (a value continued over lines).
    pub fn column(&self) -> usize {
        self.column
    }

    /// The line it stands on.
    pub fn excerpt(&self) -> &str {
        &self.excerpt
    }

    /// The bytes of [`excerpt`](Self::excerpt) it is about.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// What is wrong: lower case, no final stop.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The hint: what to write or do instead.
    pub fn what_to_do(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// This fault, cited as `cite` says. Faults of files and arguments know their place already and stay as they are.
    pub(super) fn cited(mut self, cite: &Cite<'_>) -> Self {
        if !matches!(self.origin, Origin::Name(_)) {
            return self;
        }
        match *cite {
            Cite::Listener(address) => self.origin = Origin::Name(Some(address.to_owned())),
            Cite::UnitLine { file, line, text, value } => {
                self.origin = Origin::File(file.to_owned());
                self.line = line;
                if text.get(value..).is_some_and(|rest| !self.excerpt.is_empty() && rest.starts_with(&self.excerpt)) {
                    self.column += text[..value].chars().count();
                    self.span = self.span.start + value..self.span.end + value;
                    self.excerpt = text.to_owned();
                } else {
                    self.column = 0;
                }
            }
        }
        self
    }
}

impl fmt::Display for SpecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place())?;
        write!(f, "{}", Shown(&self.what))?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({})", Shown(hint)))
    }
}

impl std::error::Error for SpecFault {}

/// Everything that is wrong, never empty when it is an error. Shown one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<SpecFault>);

impl Faults {
    /// `Ok(value)` when there is no fault.
    ///
    /// # Errors
    /// All the faults, when there are any.
    pub(super) fn none_or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The same faults, those of names cited with what the caller knows of the name's socket or unit.
    #[must_use]
    pub fn cited(self, cite: &Cite<'_>) -> Self {
        Self(self.0.into_iter().map(|fault| fault.cited(cite)).collect())
    }

    /// Each fault with its line underlined and what to do below it, for a terminal; `colour` adds ANSI styles.
    pub fn render(&self, colour: bool) -> String {
        self.0.iter().map(|fault| fault.render(colour, Level::ERROR)).collect()
    }
}

impl SpecFault {
    /// The fault as [`Faults::render`] shows it, as a warning.
    pub fn render_warning(&self, colour: bool) -> String {
        self.render(colour, Level::WARNING)
    }

    fn render(&self, colour: bool, level: Level<'_>) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        render(self, &renderer, level) + "\n"
    }
}

fn render(fault: &SpecFault, renderer: &Renderer, level: Level<'_>) -> String {
    let path = match &fault.origin {
        Origin::File(name) => Shown(name).to_string(),
        origin => origin.to_string(),
    };
    let what = Shown(&fault.what).to_string();
    if fault.line == 0 {
        return renderer.render(&[Group::with_title(Level::ERROR.primary_title(format!("{path}: {what}")))]);
    }
    // The renderer pictures control characters of ASCII, but not those that came after: two bytes each, as a dot is.
    let excerpt = fault.excerpt.replace(|c: char| c.is_control() && !c.is_ascii(), "·");
    let mut group = level.primary_title(what).element(
        Snippet::source(excerpt)
            .path(path)
            .line_start(fault.line)
            .annotation(AnnotationKind::Primary.span(fault.span.clone())),
    );
    if let Some(hint) = &fault.hint {
        group = group.element(Level::HELP.message(Shown(hint).to_string()));
    }
    renderer.render(&[group])
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if index == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

impl From<SpecFault> for Faults {
    fn from(fault: SpecFault) -> Self {
        Self(vec![fault])
    }
}

impl Extend<SpecFault> for Faults {
    fn extend<I: IntoIterator<Item = SpecFault>>(&mut self, faults: I) {
        self.0.extend(faults);
    }
}

impl IntoIterator for Faults {
    type Item = SpecFault;
    type IntoIter = std::vec::IntoIter<SpecFault>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What is wrong with one value, before it is known where that value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The bytes of the value it is about.
    pub(super) at: Range<usize>,
    pub(super) what: String,
    /// The whole value as it should be, when that can be told.
    pub(super) fix: Option<String>,
    /// Advice, when it cannot.
    pub(super) note: Option<String>,
    /// An address that ends the advice as an example, with a colon before its port.
    pub(super) example: Option<String>,
    /// Whether `fix` is an address, with a colon before its port.
    pub(super) fix_is_address: bool,
}

impl Flaw {
    /// A flaw of bytes `at` of the value.
    pub(super) fn new(at: Range<usize>, what: impl Into<String>) -> Self {
        Self { at, what: what.into(), fix: None, note: None, example: None, fix_is_address: false }
    }

    /// The same flaw with the value that would be right.
    pub(super) fn fix(mut self, value: impl Into<String>) -> Self {
        self.fix = Some(value.into());
        self
    }

    /// The same flaw with the address that would be right, with a colon before its port.
    pub(super) fn fix_address(mut self, address: impl Into<String>) -> Self {
        self.fix_is_address = true;
        self.fix(address)
    }

    /// The same flaw with advice that ends in an address as an example, with a colon before its port.
    pub(super) fn example(mut self, note: impl Into<String>, address: impl Into<String>) -> Self {
        self.example = Some(address.into());
        self.note(note)
    }

    /// What would be right, as a text of this origin has it, before anything is quoted.
    pub(super) fn fix_for(&self, origin: &Origin) -> Option<String> {
        let fix = self.fix.as_ref()?;
        Some(if self.fix_is_address { port_for(fix, origin) } else { fix.clone() })
    }

    /// The advice, as a text of this origin has it.
    pub(super) fn note_for(&self, origin: &Origin) -> Option<String> {
        let note = self.note.as_ref()?;
        let Some(example) = &self.example else { return Some(note.clone()) };
        let example = port_for(example, origin);
        // Any other colon of an address is an IPv6 one.
        Some(match origin {
            Origin::Name(_) => format!("{note}{}", example.replace(':', "\\x3a")),
            _ => format!("{note}{example}"),
        })
    }

    /// The same flaw with advice.
    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// The same flaw of a value that is the part `at` of `whole`.
    pub(super) fn embedded(self, whole: &str, at: &Range<usize>) -> Self {
        let fix = self.fix.as_ref().map(|fix| format!("{}{fix}{}", &whole[..at.start], &whole[at.end..]));
        let flaw = self.shifted(at.start);
        Self { fix, ..flaw }
    }

    /// The same flaw of a value that begins `by` bytes into a larger one.
    pub(super) fn shifted(mut self, by: usize) -> Self {
        self.at = self.at.start + by..self.at.end + by;
        self
    }
}

/// An address as a text of this origin has it: systemd takes no colon in a name, so a port stands behind a `+` there.
fn port_for(address: &str, origin: &Origin) -> String {
    match (origin, address.rsplit_once(':')) {
        (Origin::Name(_), Some((host, port))) => format!("{host}+{port}"),
        _ => address.to_owned(),
    }
}

/// A key with a value for a hint, as a text of this origin has them; an address has a colon before its port.
pub(super) fn pair(key: &str, value: &str, origin: &Origin) -> String {
    match origin {
        Origin::File(_) => format!("{key} = \"{value}\""),
        _ => format!("{key}={}", port_for(value, origin)),
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Shown(&self.what))?;
        let origin = Origin::Forward(None);
        match (self.fix_for(&origin), self.note_for(&origin)) {
            (Some(fix), _) => write!(f, " (write: {})", Shown(&fix)),
            (None, Some(note)) => write!(f, " ({})", Shown(&note)),
            (None, None) => Ok(()),
        }
    }
}

impl std::error::Error for Flaw {}

/// Text from outside, shown so that it cannot steer a terminal or break a log line: control characters as `\xNN`.
pub(super) struct Shown<'a>(pub(super) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .chars()
            .try_for_each(|c| if c.is_control() { write!(f, "\\x{:02x}", u32::from(c)) } else { write!(f, "{c}") })
    }
}

/// The nearest character boundary at or below `index`.
fn floor(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

#[cfg(test)]
mod tests;
