//! One file of the configuration: `[defaults]` and `[[forward]]` tables in TOML.
//!
//! The file is read table by table rather than into a struct, for three reasons: all faults are wanted and not the
//! first; each value keeps its place, to be cited when it turns out wrong only beside others; and the reading of a
//! value is the one that names and arguments have.
//!
//! A fault inside one `[[forward]]` is a fault of that forward. Any other fault is one of the file: what stands in it
//! may belong to every forward.

use std::{ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Flaw, Origin, Place, Source, SpecFault},
    keys::{Item, KeyName, Keys, unknown},
    nearest::nearest,
    role::Defaults,
    value::{LogLevel, LowPort, Raw, UdsDir, Value},
};

/// Keys of `[defaults]` that are no keys of forwards.
const FOR_ALL: [&str; 3] = ["uds_dir", "log_level", "qubesdb_ports"];

/// A file, read: what it says, and what is wrong with it.
#[derive(Clone, Debug)]
pub(super) struct FileText {
    /// Whether it is a drop-in file, which takes only forwards.
    pub(super) drop_in: bool,
    pub(super) defaults: Defaults,
    pub(super) log_level: Option<LogLevel>,
    /// Ports below 1024 that a declaration in QubesDB may listen on.
    pub(super) qubesdb_ports: Vec<u16>,
    /// One for each forward, in the order in which they were written, each with its own faults.
    pub(super) forwards: Vec<(Keys, Vec<SpecFault>)>,
    /// What is wrong outside of all forwards.
    pub(super) faults: Vec<SpecFault>,
    /// `[defaults]` says who may connect, and that could not be read.
    pub(super) access_lost: Option<SpecFault>,
}

impl FileText {
    fn empty(source: &Arc<Source>, drop_in: bool) -> Self {
        let defaults = Defaults::none(Place::new(source, 0..0));
        Self {
            drop_in,
            defaults,
            log_level: None,
            qubesdb_ports: Vec::new(),
            forwards: Vec::new(),
            faults: Vec::new(),
            access_lost: None,
        }
    }

    /// A file that cannot be read, and why.
    pub(super) fn unreadable(name: &str, why: &str, drop_in: bool) -> Self {
        let source = Source::new(Origin::File(name.to_owned()), "");
        let fault = SpecFault::of_all(&source, format!("cannot be read: {why}"));
        Self { faults: vec![fault], ..Self::empty(&source, drop_in) }
    }

    /// Reads the text of a file; `name` is what faults call it.
    pub(super) fn read(name: &str, text: &str, drop_in: bool) -> Self {
        let source = Source::new(Origin::File(name.to_owned()), text);
        let mut file = Self::empty(&source, drop_in);
        let (table, errors) = DeTable::parse_recoverable(text);
        for (key, value) in table.get_ref() {
            let name = key.get_ref().as_ref();
            let place = Place::new(&source, key.span());
            match (name, value.get_ref()) {
                ("defaults", _) if drop_in => {
                    let fault = SpecFault::at(&place, "a drop-in file takes only [[forward]]");
                    file.faults.push(fault.hint("put [defaults] into the main file; they hold here, too"));
                }
                ("defaults", DeValue::Table(table)) => file.read_defaults(&source, table),
                ("defaults", _) => {
                    file.faults.push(SpecFault::at(&place, "defaults is a table").hint("write: [defaults]"));
                }
                ("forward", DeValue::Array(array)) => {
                    array.iter().for_each(|item| file.read_forward(&source, item));
                }
                ("forward", DeValue::Table(_)) => {
                    file.faults.push(SpecFault::at(&place, "there may be several forwards").hint("write: [[forward]]"));
                    file.read_forward(&source, value);
                }
                ("forward", _) => {
                    file.faults.push(SpecFault::at(&place, "forward is a table").hint("write: [[forward]]"));
                }
                _ => file.faults.push(stray(name, &place)),
            }
        }
        file.note_syntax(&source, &errors);
        // The tables come in the order of their names, a reader's eyes in that of the lines.
        let in_order = |faults: &mut Vec<SpecFault>| {
            faults.sort_by_key(|fault| (fault.line(), fault.column()));
            faults.dedup();
        };
        in_order(&mut file.faults);
        file.forwards.iter_mut().for_each(|(_, faults)| in_order(faults));
        file
    }

    /// Notes syntax errors. A table may lack what was written then: its keys are judged, what it means is not. And
    /// whatever the reader made of a line that it could not read is no news.
    fn note_syntax(&mut self, source: &Arc<Source>, errors: &[toml::de::Error]) {
        if errors.is_empty() {
            return;
        }
        let errors: Vec<SpecFault> = errors.iter().map(|error| syntax(source, error)).collect();
        let elsewhere = |fault: &SpecFault| errors.iter().all(|error| error.line() != fault.line());
        self.faults.retain(elsewhere);
        for (keys, faults) in &mut self.forwards {
            keys.incomplete = true;
            faults.retain(elsewhere);
        }
        let limits = [KeyName::AllowFrom, KeyName::AllowUid];
        let unread = |key: &KeyName| self.defaults.keys.given(*key).is_none() && in_defaults(&source.text, key.name());
        if limits.iter().any(unread) {
            self.access_lost = errors.first().cloned();
        }
        self.faults.extend(errors);
    }

    fn read_defaults(&mut self, source: &Arc<Source>, table: &DeTable<'_>) {
        let faults = &mut self.faults;
        for (key, value) in table {
            let known = faults.len();
            let (name, place) = (key.get_ref().as_ref(), Place::new(source, key.span()));
            match KeyName::named(name) {
                Some(key) if key.is_option() => {
                    read_value(source, key, place, value, &mut self.defaults.keys, faults);
                    if matches!(key, KeyName::AllowFrom | KeyName::AllowUid) && faults.len() > known {
                        self.access_lost = faults.last().cloned();
                    }
                }
                Some(_) => {
                    let fault =
                        SpecFault::at(&place, format!("{name} cannot be a default: it makes one forward what it is"));
                    faults.push(fault.hint("it belongs in a [[forward]]"));
                }
                None if name == "uds_dir" => {
                    let dir: Option<UdsDir> = single(source, name, value, faults);
                    self.defaults.uds_dir = dir.map(|dir| dir.0);
                }
                None if name == "log_level" => self.log_level = single(source, name, value, faults),
                None if name == "qubesdb_ports" => {
                    let all: Vec<_> = match value.get_ref() {
                        DeValue::Array(array) => array.iter().collect(),
                        _ => vec![value],
                    };
                    let ports = all.into_iter().filter_map(|item| single::<LowPort>(source, name, item, faults));
                    self.qubesdb_ports = ports.map(|port| port.0).collect();
                }
                None => faults.push(unknown(name, &place, &FOR_ALL)),
            }
        }
    }

    fn read_forward(&mut self, source: &Arc<Source>, item: &Spanned<DeValue<'_>>) {
        let whole = Place::new(source, header(&source.text, item.span()));
        let DeValue::Table(table) = item.get_ref() else {
            self.faults.push(SpecFault::at(&whole, "a forward is a table").hint("write: [[forward]]"));
            return;
        };
        let mut keys = Keys::none(whole);
        let mut faults = Vec::new();
        for (key, value) in table {
            let (name, place) = (key.get_ref().as_ref(), Place::new(source, key.span()));
            match KeyName::named(name) {
                Some(key) => read_value(source, key, place, value, &mut keys, &mut faults),
                None if FOR_ALL.contains(&name) => {
                    let fault = SpecFault::at(&place, format!("{name} is for all forwards together"));
                    faults.push(fault.hint("it belongs in [defaults]"));
                }
                None => {
                    keys.incomplete = true;
                    faults.push(unknown(name, &place, &[]));
                }
            }
        }
        self.forwards.push((keys, faults));
    }
}

/// Reads one value, or each of an array where a key takes many, into `keys`.
fn read_value(
    source: &Arc<Source>,
    key: KeyName,
    name: Place,
    value: &Spanned<DeValue<'_>>,
    keys: &mut Keys,
    faults: &mut Vec<SpecFault>,
) {
    if let DeValue::Array(array) = value.get_ref() {
        if key.many() {
            if array.is_empty() {
                let fault =
                    SpecFault::at(&Place::new(source, value.span()), format!("{}: the array is empty", key.name()));
                faults.push(fault.hint("leave the key out to allow all"));
            }
            array.iter().for_each(|item| read_value(source, key, name.clone(), item, keys, faults));
            return;
        }
    }
    match raw(value) {
        Ok((text, raw)) => {
            let locate = |at: Option<&Range<usize>>| located(source, value, text, at);
            let fix = |fix: &str| format!("write: {} = {}", key.name(), toml_text(fix));
            keys.read(Item { key, raw, name, place: &locate, fix: &fix }, faults);
        }
        Err(flaw) => {
            keys.incomplete |= !key.is_option();
            let what = format!("{}: {}", key.name(), flaw.what);
            let fault = SpecFault::at(&Place::new(source, value.span()), what);
            faults.push(match flaw.note {
                Some(note) => fault.hint(note),
                None => fault,
            });
        }
    }
}

/// Reads the value of a key that is no key of forwards.
fn single<T: Value>(
    source: &Arc<Source>,
    name: &str,
    value: &Spanned<DeValue<'_>>,
    faults: &mut Vec<SpecFault>,
) -> Option<T> {
    let flaw = match raw(value).map(|(text, raw)| (text, T::read(raw))) {
        Ok((_, Ok(value))) => return Some(value),
        Ok((text, Err(flaw))) => Flaw { at: located(source, value, text, Some(&flaw.at)), ..flaw },
        Err(flaw) => Flaw { at: value.span(), ..flaw },
    };
    let fault = SpecFault::at(&Place::new(source, flaw.at), format!("{name}: {}", flaw.what));
    let fix = flaw.fix.map(|fix| format!("write: {name} = {}", toml_text(&fix)));
    faults.push(match fix.or(flaw.note) {
        Some(hint) => fault.hint(hint),
        None => fault,
    });
    None
}

/// A TOML value as the readers of values take it, and its text when it is a string.
fn raw<'a>(value: &'a Spanned<DeValue<'_>>) -> Result<(Option<&'a str>, Raw<'a>), Flaw> {
    let refuse = |what: &str| Flaw::new(0..0, what);
    match value.get_ref() {
        DeValue::String(text) if text.contains('\0') => Err(refuse("a value cannot hold a NUL")),
        DeValue::String(text) => Ok((Some(text), Raw::Text(text.as_bytes()))),
        DeValue::Boolean(value) => Ok((None, Raw::Boolean(*value))),
        DeValue::Float(number) => {
            let number = number.as_str().parse().map_err(|_| refuse("the number cannot be read"))?;
            Ok((None, Raw::Float(number)))
        }
        DeValue::Integer(number) => {
            let number = i64::from_str_radix(number.as_str(), number.radix());
            Ok((None, Raw::Integer(number.map_err(|_| refuse("the number is too large"))?)))
        }
        DeValue::Array(_) => Err(refuse("it takes one value, not an array").note("write a [[forward]] for each")),
        DeValue::Datetime(_) | DeValue::Table(_) => Err(refuse("expected a text, a number or a boolean")),
    }
}

/// Where bytes `at` of a value stand: exactly when the string is written as it reads, else all of it.
fn located(
    source: &Arc<Source>,
    value: &Spanned<DeValue<'_>>,
    text: Option<&str>,
    at: Option<&Range<usize>>,
) -> Range<usize> {
    let span = value.span();
    match (text, at) {
        (Some(text), Some(at)) if !at.is_empty() => {
            let start = span.start + 1;
            let plain = source.text.get(start..span.end.saturating_sub(1)) == Some(text);
            if plain { start + at.start..start + at.end } else { span }
        }
        _ => span,
    }
}

/// A text as a TOML string.
fn toml_text(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// The header of a `[[forward]]`, which is what faults of it as a whole cite: its first line.
fn header(text: &str, span: Range<usize>) -> Range<usize> {
    let line = text.get(span.clone()).and_then(|text| text.find('\n')).map_or(span.end, |end| span.start + end);
    span.start..line
}

/// Whether a line of `[defaults]` begins with `word`, as far as that can be seen in a text that is not TOML.
fn in_defaults(text: &str, word: &str) -> bool {
    let mut inside = false;
    text.lines().map(str::trim_start).any(|line| {
        if line.starts_with('[') {
            inside = line.trim_start_matches(['[', ' ']).starts_with("defaults");
        }
        let inline = line.starts_with("defaults") && line.contains(word);
        inline || (inside && line.trim_start_matches(['"', '\'']).starts_with(word))
    })
}

/// The fault of a syntax error.
fn syntax(source: &Arc<Source>, error: &toml::de::Error) -> SpecFault {
    let place = Place::new(source, error.span().unwrap_or(0..0));
    let fault = SpecFault::at(&place, error.message().lines().collect::<Vec<_>>().join(", "));
    let line = fault.excerpt().trim_start();
    let leading_zero = line.split_once('=').is_some_and(|(key, value)| {
        KeyName::named(key.trim()).is_some_and(|key| matches!(key, KeyName::Mode | KeyName::DirMode))
            && value.trim().starts_with('0')
    });
    if leading_zero {
        let fix = line.replace(' ', "").replacen('=', " = \"", 1);
        return fault.hint(format!("write: {}\"", fix.split('#').next().unwrap_or_default()));
    }
    fault
}

/// The fault of a key outside of all tables.
fn stray(name: &str, place: &Place) -> SpecFault {
    match KeyName::named(name) {
        Some(_) => SpecFault::at(place, format!("{name} is in no table")).hint("put it under [[forward]]"),
        None if FOR_ALL.contains(&name) => {
            SpecFault::at(place, format!("{name} is in no table")).hint("put it under [defaults]")
        }
        None => match nearest(name, ["defaults", "forward"]) {
            Some("forward") => {
                SpecFault::at(place, format!("unknown table \"{name}\"")).hint("did you mean [[forward]]?")
            }
            Some(meant) => {
                SpecFault::at(place, format!("unknown table \"{name}\"")).hint(format!("did you mean [{meant}]?"))
            }
            None => {
                SpecFault::at(place, format!("unknown key \"{name}\"")).hint("there are [defaults] and [[forward]]")
            }
        },
    }
}

#[cfg(test)]
mod tests;
