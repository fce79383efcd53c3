//! Names as a unit file writes them: what systemd does with them, and how to write one so that it takes it.
//!
//! systemd expands specifiers, then drops a name with `:`, with anything but printable ASCII, or with more than 255
//! characters (`fdname_is_valid`), and names the socket after its unit instead. Only the journal has a message.

use std::fmt;

use crate::spec::{
    error::{Faults, Origin, Place, Source, SpecFault},
    text::{Blanks, Byte, Word, words},
};

/// The longest name that systemd takes, in characters: `FDNAME_MAX`.
const MAX_NAME: usize = 255;
/// What systemd expands after a `%` (systemd.unit(5), tried on 252; `D` came later; `c`, `r`, `R` are old, still
/// known).
const SPECIFIERS: &str = "aAbBcCdDEfgGhHiIjJlLmMnNopPqrRsStTuUvVwWyY%";

/// A `%` with a letter or digit that systemd has no meaning for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSpecifier {
    /// The character after the `%`.
    pub specifier: char,
    /// Where the `%` stands, in bytes.
    pub at: usize,
}

impl fmt::Display for UnknownSpecifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{} is no specifier that systemd knows", self.specifier)
    }
}

impl std::error::Error for UnknownSpecifier {}

/// The parts of a text: what stands there, and specifiers with their place.
fn specifiers(text: &str) -> impl Iterator<Item = (usize, char)> {
    let mut percent = None;
    text.char_indices().filter_map(move |(at, c)| match percent.take() {
        Some(start) => Some((start, c)),
        None => {
            percent = (c == '%').then_some(at);
            None
        }
    })
}

/// The first specifier that systemd would stumble over. A `%` before anything but a letter or digit stands for itself.
fn unknown_specifiers(text: &str) -> impl Iterator<Item = UnknownSpecifier> {
    let unknown = |c: char| c.is_ascii_alphanumeric() && !SPECIFIERS.contains(c);
    specifiers(text).filter(move |(_, c)| unknown(*c)).map(|(at, specifier)| UnknownSpecifier { specifier, at })
}

/// Where a single `%` stands before the interface of a link-local address, in bytes: `[fe80::1%tap0]:22` of a name,
/// `[fe80::1]:22%tap0` of a `Listen…=`. systemd expands what follows: `%t` is the runtime directory.
pub(super) fn single_zone_percents(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let mut rest = 0;
    while let Some(at) = text[rest..].find('%').map(|at| rest + at) {
        let double = text[at + 1..].starts_with('%');
        let address = text[..at].rfind('[').map(|bracket| &text[bracket + 1..at]);
        // A colon of a name is written \x3a.
        let link_local = |address: &str| {
            let head = address.get(..3).unwrap_or_default().to_ascii_lowercase();
            ["fe8", "fe9", "fea", "feb"].contains(&head.as_str()) && !address.contains([',', ' ', '=', '/', '%'])
        };
        if !double && address.is_some_and(link_local) {
            found.push(at);
        }
        rest = at + 1 + usize::from(double);
    }
    found
}

/// A value with the `%` before the interface of a link-local address written twice, as a unit needs it; `None` where
/// there is nothing to double.
pub fn with_double_zone_percents(text: &str) -> Option<String> {
    let at = single_zone_percents(text);
    let mut doubled = text.to_owned();
    at.iter().rev().for_each(|at| doubled.insert(*at, '%'));
    (!at.is_empty()).then_some(doubled)
}

/// Expands specifiers as systemd does, `%%` included; `value` gives what a letter stands for, and where it gives
/// nothing the specifier stays as it is.
///
/// # Errors
/// A specifier that systemd does not know, for which it drops the whole name.
pub fn expand(text: &str, value: impl Fn(char) -> Option<String>) -> Result<String, UnknownSpecifier> {
    if let Some(unknown) = unknown_specifiers(text).next() {
        return Err(unknown);
    }
    let mut expanded = String::with_capacity(text.len());
    let mut rest = 0;
    for (at, c) in specifiers(text) {
        let known =
            if c == '%' { Some("%".to_owned()) } else { Some(c).filter(char::is_ascii_alphanumeric).and_then(&value) };
        if let Some(known) = known {
            expanded.push_str(&text[rest..at]);
            expanded.push_str(&known);
            rest = at + 1 + c.len_utf8();
        }
    }
    expanded.push_str(&text[rest..]);
    Ok(expanded)
}

/// What about a name, as it stands after `FileDescriptorName=`, makes systemd drop it: one fault for each cause, none
/// when systemd takes it. Cite them with the unit's line ([`Faults::cited`]).
pub fn rejected(raw: &str) -> Faults {
    let source = Source::new(Origin::Name(None), raw);
    let repaired = repair(raw);
    let fault = |at: usize, len: usize, what: &str, hint: &str| {
        let fault =
            SpecFault::at(&Place::new(&source, at..at + len), format!("systemd drops this name silently: {what}"));
        fault.hint(repaired.as_ref().map_or(hint.to_owned(), |name| format!("write: FileDescriptorName={name}")))
    };
    let mut faults = Vec::new();
    faults.extend(raw.find(':').map(|at| fault(at, 1, "it holds a colon", "write + before a port, \\x3a elsewhere")));
    let control = raw.char_indices().find(|(_, c)| c.is_ascii_control());
    faults.extend(control.map(|(at, _)| fault(at, 1, "it holds a tab or another control character", "write \\xNN")));
    let foreign = raw.char_indices().find(|(_, c)| !c.is_ascii());
    faults.extend(
        foreign.map(|(at, c)| {
            fault(at, c.len_utf8(), &format!("\"{c}\" is not ASCII"), "write each of its bytes as \\xNN")
        }),
    );
    if raw.chars().count() > MAX_NAME {
        let what = format!("it has {} characters, and {MAX_NAME} are the most", raw.chars().count());
        let at = raw.char_indices().nth(MAX_NAME).map_or(raw.len(), |(at, _)| at);
        faults.push(fault(
            at,
            raw.len() - at,
            &what,
            "move it to a [[forward]] of the configuration and name its label",
        ));
    }
    faults.extend(unknown_specifiers(raw).map(|unknown| {
        let hint = format!("write %%{} for a percent sign that is data", unknown.specifier);
        fault(unknown.at, 2, &unknown.to_string(), &hint)
    }));
    Faults(faults)
}

/// The same name written so that systemd takes it: `+` before a port or an argument, `\xNN` for any other byte that it
/// does not take. Specifiers stay as they are.
///
/// `None` when there is nothing to repair, or when it cannot be: an unbalanced quote, an unknown specifier, more than
/// 255 characters. A name that systemd takes then and that still means nothing is refused when it is resolved, with
/// better words than systemd's.
pub fn repair(fd_name: &str) -> Option<String> {
    if fd_name.len() > MAX_NAME || unknown_specifiers(fd_name).next().is_some() {
        return None;
    }
    let words = words(&Source::new(Origin::Name(None), fd_name), Blanks::Split).ok()?;
    let ports = ports(&words);
    let mut repaired = String::with_capacity(fd_name.len());
    let inside = |at: usize| words.iter().flat_map(|word| &word.bytes).any(|byte| byte.at == at);
    for (at, byte) in fd_name.bytes().enumerate() {
        match byte {
            b':' if ports.contains(&at) => repaired.push('+'),
            // A tab between words is a blank.
            byte if byte.is_ascii_whitespace() && !inside(at) => repaired.push(' '),
            b' '..=b'~' if byte != b':' => repaired.push(char::from(byte)),
            _ => repaired.push_str(&format!("\\x{byte:02x}")),
        }
    }
    Some(repaired).filter(|name| name != fd_name && name.len() <= MAX_NAME)
}

/// Where the colons stand that are one with `+`: before a port, and between a service and its argument.
fn ports(words: &[Word]) -> Vec<usize> {
    let list = |word: &Word| word.bytes.iter().any(|byte| byte.value == b'=');
    match words {
        [] => Vec::new(),
        [first, ..] if list(first) => words.iter().flat_map(in_list).collect(),
        [_label] => Vec::new(),
        [_target, service, options @ ..] => {
            in_service(&service.bytes).into_iter().chain(options.iter().flat_map(in_list)).collect()
        }
    }
}

/// In `service:argument`: the colon that is the first separator.
fn in_service(service: &[Byte]) -> Option<usize> {
    service.iter().find(|byte| is_separator(byte)).filter(|byte| byte.value == b':').map(|byte| byte.at)
}

/// In `key=value` items.
fn in_list(word: &Word) -> Vec<usize> {
    let items = word.split(b',').into_iter().filter_map(|item| item.split_once(b'='));
    let colon = |(key, value): (Word, Word)| match key.trimmed().lossy().as_str() {
        "target" | "udp_target" | "listen" | "udp_listen" => {
            // The last separator, when it stands outside of brackets: `[fd00::1]:22`.
            let last = value.bytes.iter().rposition(is_separator)?;
            let bracket = value.bytes.iter().rposition(|byte| byte.value == b']');
            let bracketed = value.bytes.first().is_some_and(|byte| byte.value == b'[');
            // Without brackets, several colons are an address that may or may not end in a port: a guess would dial it.
            let many = value.bytes.iter().filter(|byte| byte.value == b':').count() > 1;
            let port = if bracketed { bracket.is_some_and(|bracket| bracket + 1 == last) } else { !many };
            Some(value.bytes[last]).filter(|byte| port && byte.value == b':').map(|byte| byte.at)
        }
        "qrexec" => {
            let blank = value.bytes.iter().position(|byte| byte.value.is_ascii_whitespace())?;
            in_service(&value.bytes[blank..])
        }
        _ => None,
    };
    items.filter_map(colon).collect()
}

fn is_separator(byte: &Byte) -> bool {
    matches!(byte.value, b'+' | b':') && !byte.escaped
}
