//! A configuration: `[defaults]` and `[[forward]]` tables of a TOML file, with `--forward` arguments laid over them.
//!
//! The file is read table by table rather than into a struct, for three reasons: all faults are wanted and not the
//! first; each value keeps its place, to be cited when it turns out wrong only beside others; and the reading of a
//! value is the one that names and arguments have.

use std::{ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Faults, Flaw, Origin, Place, Source, SpecFault},
    forward::read_all,
    keys::{Item, KeyName, Keys, unknown},
    nearest::nearest,
    plan::Plan,
    role::Defaults,
    value::{LogLevel, Raw, UdsDir, Value},
};

/// A configuration, read but not yet given its meaning: what an entry means depends on the socket beside it, and
/// whether it stands alone on `--forward` arguments.
#[derive(Clone, Debug)]
pub struct Config {
    pub(super) defaults: Defaults,
    log_level: Option<LogLevel>,
    /// One for each forward, in the order in which they were written.
    pub(super) entries: Vec<Keys>,
}

impl Default for Config {
    /// No configuration at all, which is a good one.
    fn default() -> Self {
        Self::empty(&Source::new(Origin::File(String::new()), ""))
    }
}

impl Config {
    fn empty(source: &Arc<Source>) -> Self {
        Self { defaults: Defaults::none(Place::new(source, 0..0)), log_level: None, entries: Vec::new() }
    }

    /// `log_level` of `[defaults]`.
    pub fn log_level(&self) -> Option<LogLevel> {
        self.log_level
    }

    /// Reads the text of a configuration file; `source_name` is what faults call it.
    ///
    /// # Errors
    /// All faults of the text: its syntax, unknown keys, values out of range.
    pub fn parse(source_name: &str, text: &str) -> Result<Self, Faults> {
        let (config, faults) = Self::read(source_name, text);
        faults.none_or(config)
    }

    /// Reads a configuration file and `--forward` arguments together and makes the plan, so that the faults of all
    /// three steps come at once. What could not be read is not called missing.
    ///
    /// # Errors
    /// All faults of the file, of the arguments and of what they mean together.
    pub fn gather<T: AsRef<str>>(
        file: Option<(&str, &str)>,
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<(Self, Plan), Faults> {
        let (config, mut faults) = file.map(|(name, text)| Self::read(name, text)).unwrap_or_default();
        let (forwards, more) = read_all(arguments);
        faults.extend(more);
        let config = config.merge(forwards);
        match config.plan() {
            Ok(plan) => faults.none_or((config, plan)),
            Err(more) => {
                faults.extend(more);
                Err(faults)
            }
        }
    }

    /// What could be read, and what could not.
    fn read(source_name: &str, text: &str) -> (Self, Faults) {
        let source = Source::new(Origin::File(source_name.to_owned()), text);
        let mut config = Self::empty(&source);
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut faults: Vec<SpecFault> = errors.iter().map(|error| syntax(&source, error)).collect();
        let incomplete = !faults.is_empty();
        for (key, value) in table.get_ref() {
            let name = key.get_ref().as_ref();
            let place = Place::new(&source, key.span());
            match (name, value.get_ref()) {
                ("defaults", DeValue::Table(table)) => config.read_defaults(&source, table, &mut faults),
                ("defaults", _) => faults.push(SpecFault::at(&place, "defaults is a table").hint("write: [defaults]")),
                ("forward", DeValue::Array(array)) => {
                    for item in array.iter() {
                        config.read_forward(&source, item, &mut faults);
                    }
                }
                ("forward", DeValue::Table(_)) => {
                    faults.push(SpecFault::at(&place, "there may be several forwards").hint("write: [[forward]]"));
                    config.read_forward(&source, value, &mut faults);
                }
                ("forward", _) => faults.push(SpecFault::at(&place, "forward is a table").hint("write: [[forward]]")),
                _ => faults.push(stray(name, &place)),
            }
        }
        // After a syntax error a table may lack what was written: its keys are judged, what it means is not. And
        // whatever the reader made of a line that it could not read is no news.
        config.entries.iter_mut().for_each(|entry| entry.incomplete |= incomplete);
        let lines: Vec<usize> = faults.iter().take(errors.len()).map(SpecFault::line).collect();
        let mut index = 0;
        faults.retain(|fault| {
            index += 1;
            index <= lines.len() || !lines.contains(&fault.line())
        });
        // The tables come in the order of their names, a reader's eyes in that of the lines.
        faults.sort_by_key(|fault| (fault.line(), fault.column()));
        faults.dedup();
        (config, Faults(faults))
    }

    fn read_defaults(&mut self, source: &Arc<Source>, table: &DeTable<'_>, faults: &mut Vec<SpecFault>) {
        for (key, value) in table {
            let (name, place) = (key.get_ref().as_ref(), Place::new(source, key.span()));
            match KeyName::named(name) {
                Some(key) if key.is_option() => read_value(source, key, place, value, &mut self.defaults.keys, faults),
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
                None => faults.push(unknown(name, &place, &["uds_dir", "log_level"])),
            }
        }
    }

    fn read_forward(&mut self, source: &Arc<Source>, item: &Spanned<DeValue<'_>>, faults: &mut Vec<SpecFault>) {
        let whole = Place::new(source, header(&source.text, item.span()));
        let DeValue::Table(table) = item.get_ref() else {
            faults.push(SpecFault::at(&whole, "a forward is a table").hint("write: [[forward]]"));
            return;
        };
        let mut keys = Keys::none(whole);
        for (key, value) in table {
            let (name, place) = (key.get_ref().as_ref(), Place::new(source, key.span()));
            match KeyName::named(name) {
                Some(key) => read_value(source, key, place, value, &mut keys, faults),
                None if name == "uds_dir" || name == "log_level" => {
                    let fault = SpecFault::at(&place, format!("{name} is for all forwards together"));
                    faults.push(fault.hint("it belongs in [defaults]"));
                }
                None => {
                    keys.incomplete = true;
                    faults.push(unknown(name, &place, &[]));
                }
            }
        }
        self.entries.push(keys);
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
                faults.push(fault.hint("leave the key out to let everybody in"));
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
            faults.push(SpecFault::at(&Place::new(source, value.span()), what));
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
        DeValue::Array(_) => Err(refuse("it takes one value, not an array")),
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
        Some(_) => SpecFault::at(place, format!("{name} stands in no table")).hint("put it under [[forward]]"),
        None if name == "uds_dir" || name == "log_level" => {
            SpecFault::at(place, format!("{name} stands in no table")).hint("put it under [defaults]")
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
