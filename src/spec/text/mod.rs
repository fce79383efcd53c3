//! The lexical layer of names: words, quotes, `\xNN`.
//!
//! A text is split into words first, as a shell would, with one difference: a backslash means nothing to the
//! splitting. Only then are `\xNN` decoded, in each word by itself. So `\x20` is a blank that splits nothing, and
//! `\x22` a quote that quotes nothing. systemd takes neither `:` nor anything outside printable ASCII in a name, and
//! `\xNN`, which systemd-escape(1) writes too, stands for any byte that it does not take.
//!
//! Each byte remembers where it was written, so that a fault found much later still points at its place.

use std::{ops::Range, sync::Arc};

use super::error::{Origin, Place, Source, SpecFault};

/// One byte of a word, and where in the source it was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Byte {
    pub(super) value: u8,
    /// Offset of its first character in the source.
    pub(super) at: usize,
    /// How many bytes of the source it takes: 1, or 4 for a `\xNN`.
    len: usize,
    /// Written as `\xNN`: data, never a separator.
    pub(super) escaped: bool,
    /// Written between quotes.
    quoted: bool,
}

/// A run of bytes with the place where it was written.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub(super) bytes: Vec<Byte>,
    /// Its extent in the source, quotes included.
    pub(super) span: Range<usize>,
}

impl Word {
    /// The value.
    pub(super) fn value(&self) -> Vec<u8> {
        self.bytes.iter().map(|byte| byte.value).collect()
    }

    /// The value as text, with U+FFFD for what is not UTF-8; for messages only.
    pub(super) fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.value()).into_owned()
    }

    /// Where in the source bytes `range` of the value were written.
    pub(super) fn place(&self, range: &Range<usize>) -> Range<usize> {
        if self.bytes.is_empty() {
            return self.span.clone();
        }
        let end_of = |byte: &Byte| byte.at + byte.len;
        let end = self.span.end;
        let start = self.bytes.get(range.start).map_or(end, |byte| byte.at);
        let stop = range.end.checked_sub(1).and_then(|last| self.bytes.get(last)).map_or(end, end_of);
        start..stop.max(start)
    }

    /// The parts between `separator`s that were written as the character, not as `\xNN`.
    pub(super) fn split(&self, separator: u8) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut start = 0;
        let mut from = self.span.start;
        for (index, byte) in self.bytes.iter().enumerate() {
            if byte.value == separator && !byte.escaped {
                parts.push(Self { bytes: self.bytes[start..index].to_vec(), span: from..byte.at });
                start = index + 1;
                from = byte.at + byte.len;
            }
        }
        parts.push(Self { bytes: self.bytes[start..].to_vec(), span: from..self.span.end.max(from) });
        parts
    }

    /// What stands before and after the first `separator`, wherever it came from.
    pub(super) fn split_once(&self, separator: u8) -> Option<(Self, Self)> {
        let index = self.bytes.iter().position(|byte| byte.value == separator)?;
        let byte = self.bytes[index];
        let before = Self { bytes: self.bytes[..index].to_vec(), span: self.span.start..byte.at };
        let after_at = byte.at + byte.len;
        let after = Self { bytes: self.bytes[index + 1..].to_vec(), span: after_at..self.span.end.max(after_at) };
        Some((before, after))
    }

    /// The same without the blanks around it that were neither quoted nor escaped.
    pub(super) fn trimmed(mut self) -> Self {
        let blank = |byte: &Byte| byte.value.is_ascii_whitespace() && !byte.escaped && !byte.quoted;
        while let Some(last) = self.bytes.last().filter(|byte| blank(byte)) {
            self.span.end = last.at;
            self.bytes.pop();
        }
        let leading = self.bytes.iter().take_while(|byte| blank(byte)).count();
        if let Some(last) = self.bytes.drain(..leading).next_back() {
            self.span.start = last.at + last.len;
        }
        self
    }
}

/// Whether an unquoted blank ends a word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Blanks {
    /// It ends a word: in a name.
    Split,
    /// It is part of the one word there is: in an argument, which the shell has split already.
    Keep,
}

/// Splits a text into words and decodes each.
///
/// # Errors
/// An unbalanced quote (alone: what follows it has no certain meaning), else every NUL and every `\x` that is no byte.
pub(super) fn words(source: &Arc<Source>, blanks: Blanks) -> Result<Vec<Word>, Vec<SpecFault>> {
    let text = source.text.as_bytes();
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut quote: Option<(u8, usize)> = None;
    for (at, &value) in text.iter().enumerate() {
        let byte = Byte { value, at, len: 1, escaped: false, quoted: quote.is_some() };
        match (quote, value) {
            (None, b'"' | b'\'') => {
                quote = Some((value, at));
                word.get_or_insert_with(|| Word { bytes: Vec::new(), span: at..at }).span.end = at + 1;
            }
            (Some((open, _)), close) if open == close => {
                quote = None;
                word.iter_mut().for_each(|word| word.span.end = at + 1);
            }
            (None, blank) if blank.is_ascii_whitespace() && blanks == Blanks::Split => words.extend(word.take()),
            _ => {
                let word = word.get_or_insert_with(|| Word { bytes: Vec::new(), span: at..at });
                word.bytes.push(byte);
                word.span.end = at + 1;
            }
        }
    }
    if let Some((open, at)) = quote {
        let open = char::from(open);
        let fault = SpecFault::at(&Place::new(source, at..at + 1), format!("the quote {open} is never closed"));
        let code = u32::from(open);
        return Err(vec![fault.hint(format!("close it, or write \\x{code:02x} for a {open} that is data"))]);
    }
    words.extend(word);
    let mut faults = Vec::new();
    for word in &mut words {
        decode(source, word, &mut faults);
    }
    if faults.is_empty() { Ok(words) } else { Err(faults) }
}

/// Replaces each `\xNN` of a word by the byte it stands for.
fn decode(source: &Arc<Source>, word: &mut Word, faults: &mut Vec<SpecFault>) {
    let digit = |byte: Option<&Byte>| byte.and_then(|byte| char::from(byte.value).to_digit(16));
    let raw = std::mem::take(&mut word.bytes);
    let mut index = 0;
    while let Some(&byte) = raw.get(index) {
        if byte.value != b'\\' || raw.get(index + 1).is_none_or(|next| next.value != b'x') {
            word.bytes.push(byte);
            index += 1;
            continue;
        }
        let (Some(high), Some(low)) = (digit(raw.get(index + 2)), digit(raw.get(index + 3))) else {
            let place = Place::new(source, byte.at..raw[index + 1].at + 1);
            let what = "\\x takes two hexadecimal digits, such as \\x3a for a colon";
            faults.push(SpecFault::at(&place, what).hint("write \\x5cx for a backslash and an x"));
            index += 2;
            continue;
        };
        let len = raw[index + 3].at + 1 - byte.at;
        let value = u8::try_from(high * 16 + low).expect("two hexadecimal digits make a byte");
        word.bytes.push(Byte { value, len, escaped: true, ..byte });
        index += 4;
    }
    for nul in word.bytes.iter().filter(|byte| byte.value == 0) {
        let place = Place::new(source, nul.at..nul.at + nul.len);
        let fault = SpecFault::at(&place, "no name, path or argument can hold a NUL byte");
        faults.push(fault.hint("leave it out; an abstract socket is written uds=@name"));
    }
}

/// Writes bytes so that systemd takes them in a name and [`words`] reads the same bytes back: what is not printable
/// ASCII, and the characters that mean something to systemd or to the grammar, as `\xNN`.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            // A percent sign begins a specifier, a comma ends an item of a list; the rest splits words or decodes.
            b'%' | b',' | b':' | b'"' | b'\'' | b'\\' | b' ' => text.push_str(&format!("\\x{byte:02x}")),
            0x21..=0x7e => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

/// A value for a hint, as a text of this origin would hold it.
pub(super) fn quoted(value: &str, origin: &Origin) -> String {
    match origin {
        Origin::Name(_) => escaped(value.as_bytes()),
        _ => value.replace('\\', "\\x5c").replace(',', "\\x2c"),
    }
}

#[cfg(test)]
mod tests;
