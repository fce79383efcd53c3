//! The grammar of a name: what stands in `FileDescriptorName=` of a socket unit.
//!
//! | form | example |
//! |---|---|
//! | qrexec call | `@default qubes.ConnectTCP+1234`, further words are options: `work qubes.ConnectTCP+22 max_connections=16` |
//! | list | `namespace=qdhcp-27a7,target=192.168.31.201+22` |
//! | label | `ssh` |
//!
//! Order of reading: words, then `\xNN` in each (see `text`), then the form: a first word with `=` makes a list, one
//! bare word is a label, two or more are a call. systemd takes only printable ASCII without `:` and at most 255
//! characters; a name written by [`Name`]'s `Display` is of that kind, and reads back as the same name.

use std::{fmt, sync::Arc};

use super::{
    call::{Call, Service, Target},
    config::Config,
    error::{Faults, Flaw, Origin, Place, Source, SpecFault},
    keys::{KeyName, Keys, read_list},
    plan::{Forward, SocketKind},
    text::{Blanks, Word, escaped, words},
    value::Label,
};

/// A name, read.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // a handful exist, one for each socket
pub enum Name {
    /// A qrexec call with its options.
    Call {
        /// The call.
        call: Call,
        /// Its options; never with `qrexec`.
        keys: Keys,
    },
    /// A list of keys.
    List(Keys),
    /// The label of a `[[forward]]`, or the name of the socket unit when systemd got no name it takes.
    Label(Label),
}

/// Reads a name.
///
/// # Errors
/// Everything that is wrong with it, each fault with its column and, where it can be told, the corrected name.
pub fn parse(text: &str) -> Result<Name, Faults> {
    match read(text) {
        (Some(name), faults) => faults.none_or(name),
        (None, faults) => Err(faults),
    }
}

/// Reads a name and resolves it beside its socket, so that the faults of both steps come at once.
///
/// # Errors
/// As those of [`parse`] and [`Name::resolve`]. What could not be read is not called missing.
pub fn resolve(text: &str, socket: SocketKind, config: &Config) -> Result<Forward, Faults> {
    let (name, mut faults) = read(text);
    let incomplete = |name: &Name| matches!(name, Name::Call { keys, .. } | Name::List(keys) if keys.incomplete);
    match name.filter(|name| !incomplete(name)).map(|name| name.resolve(socket, config)) {
        Some(Ok(forward)) => faults.none_or(forward),
        Some(Err(more)) => {
            faults.extend(more);
            Err(faults)
        }
        None => Err(faults),
    }
}

/// What could be read of a name, and what could not.
fn read(text: &str) -> (Option<Name>, Faults) {
    let source = Source::new(Origin::Name(None), text);
    let whole = Place::new(&source, 0..text.len());
    let words = match words(&source, Blanks::Split) {
        Ok(words) => words,
        Err(faults) => return (None, Faults(faults)),
    };
    let mut faults = Faults::default();
    let mut keys = Keys::none(whole.clone());
    let name = match words.as_slice() {
        [] => {
            let fault = SpecFault::at(&whole, "the name is empty: nothing says where connections go");
            faults
                .extend([fault.hint("write: FileDescriptorName=@default qubes.ConnectTCP+1234, or target=HOST+PORT")]);
            None
        }
        [list, more @ ..] if has_equals(list) => {
            read_list(&source, list, &mut keys, &mut faults.0);
            keys.incomplete |= !more.is_empty();
            faults.extend(stray(&source, list, more));
            Some(Name::List(keys))
        }
        [label] => word(&source, label, &mut faults).map(Name::Label),
        [target, service, options @ ..] => {
            let target = word::<Target>(&source, target, &mut faults);
            let call_service = word::<Service>(&source, service, &mut faults);
            for option in options {
                let comment = option.lossy().starts_with(['#', ';']);
                if has_equals(option) && !comment {
                    read_list(&source, option, &mut keys, &mut faults.0);
                } else {
                    faults.extend([bare(&source, service, option)]);
                }
                if comment {
                    break; // so is the rest of the line
                }
            }
            if let Some(place) = keys.given(KeyName::Qrexec) {
                let fault = SpecFault::at(place, "the name is a qrexec call, and qrexec= is another one");
                faults.extend([fault.hint("keep one of them")]);
            }
            let call = target.zip(call_service).map(|(target, service)| Call { target, service });
            call.map(|call| Name::Call { call, keys })
        }
    };
    (name, faults)
}

fn has_equals(word: &Word) -> bool {
    word.bytes.iter().any(|byte| byte.value == b'=')
}

/// Reads a word of a call, or a label.
fn word<T: std::str::FromStr<Err = Flaw>>(source: &Arc<Source>, word: &Word, faults: &mut Faults) -> Option<T> {
    match String::from_utf8(word.value()).map(|text| text.parse()) {
        Ok(Ok(value)) => Some(value),
        Ok(Err(flaw)) => {
            faults.extend([fault(source, word, flaw)]);
            None
        }
        Err(_) => {
            faults.extend([SpecFault::at(&Place::new(source, word.span.clone()), "the word is not UTF-8")]);
            None
        }
    }
}

/// The fault of a word's flaw, with the whole name as it should be when that is known.
fn fault(source: &Arc<Source>, word: &Word, flaw: Flaw) -> SpecFault {
    let fault = SpecFault::at(&Place::new(source, word.place(&flaw.at)), flaw.what.clone());
    match (flaw.fix_for(&source.origin), flaw.note_for(&source.origin)) {
        (Some(fix), _) => {
            let (before, after) = (&source.text[..word.span.start], &source.text[word.span.end..]);
            fault.hint(format!("write: {before}{}{after}", escaped(fix.as_bytes())))
        }
        (None, Some(note)) => fault.hint(note),
        (None, None) => fault,
    }
}

/// The fault of a bare word after the two of a call.
fn bare(source: &Arc<Source>, service: &Word, word: &Word) -> SpecFault {
    let text = word.lossy();
    let place = Place::new(source, word.span.clone());
    if text.starts_with(['#', ';']) {
        let fault = SpecFault::at(&place, "systemd knows no comment behind a value: this one is a part of the name");
        return fault.hint("put it into a separate line");
    }
    let fault = SpecFault::at(&place, format!("after the qube and the service comes key=value, not \"{text}\""));
    let argument = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    let follows = source.text[service.span.end..word.span.start].trim().is_empty();
    if argument && follows && !service.bytes.iter().any(|byte| b"+:".contains(&byte.value)) {
        // `work qubes.ConnectTCP 22`: the argument of a service is joined to it.
        let (before, after) = (&source.text[..service.span.end], &source.text[word.span.start..]);
        fault.hint(format!("write: {before}+{after}"))
    } else {
        fault.hint("QUBE SERVICE+ARGUMENT KEY=VALUE…")
    }
}

/// The faults of words after a list.
fn stray(source: &Arc<Source>, list: &Word, more: &[Word]) -> Option<SpecFault> {
    let (first, last) = (more.first()?, more.last()?);
    let place = Place::new(source, first.span.start..last.span.end);
    if first.lossy().starts_with(['#', ';']) {
        let fault = SpecFault::at(&place, "systemd knows no comment behind a value: this one is a part of the name");
        return Some(fault.hint("put it into a separate line"));
    }
    if more.iter().all(has_equals) {
        let written = [list].into_iter().chain(more).map(|word| source.text[word.span.clone()].trim_end_matches(','));
        let fault = SpecFault::at(&place, "a list has commas between its items, and no blanks");
        return Some(fault.hint(format!("write: {}", written.collect::<Vec<_>>().join(","))));
    }
    let fault = SpecFault::at(&place, format!("\"{}\" follows the list after a blank", first.lossy()));
    Some(fault.hint("write a blank in a value as \\x20, or put the value in quotes"))
}

/// The canonical form: printable ASCII that systemd takes and does not expand, which reads back as the same name.
/// It is as long as it is; systemd takes 255 characters (see `unit::rejected`).
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call { call, keys } => {
                write!(f, "{} {}", escaped(call.target.as_bytes()), escaped(call.service.as_bytes()))?;
                keys.items().iter().try_for_each(|item| write!(f, " {item}"))
            }
            Self::List(keys) => f.write_str(&keys.items().join(",")),
            Self::Label(label) => f.write_str(&escaped(label.as_str().as_bytes())),
        }
    }
}

#[cfg(test)]
mod tests;
