//! A systemd unit file, read as systemd reads it (`config_parse` in its conf-parser.c, systemd.syntax(7)), for the
//! generator and for `check`.
//!
//! A line that ends in a backslash goes on in the next, with a blank in the backslash's place; comment lines in between
//! do not end it. A key may be given again: a list grows by it, anything else is replaced, and an empty value forgets
//! what was given before. Drop-ins are read over a unit in the same way. systemd ignores lines that it cannot read and
//! tells only the journal; here they are [`dropped`](Unit::dropped) with their place.

use std::sync::Arc;

use crate::spec::{
    error::{Cite, Origin, Place, Source, SpecFault},
    plan::SocketKind,
};

/// One `Key=value` of a unit file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The section it stands in, without brackets.
    pub section: String,
    /// The key.
    pub key: String,
    /// The value, trimmed and with continued lines joined; specifiers are not expanded.
    pub value: String,
    /// The file it stands in.
    pub file: Arc<str>,
    /// The line on which it begins, counted from 1.
    pub line: usize,
    /// The line as the file has it.
    text: String,
    /// Where in `text` the value begins, in bytes.
    at: usize,
}

impl Setting {
    /// How a fault of the value is to be cited.
    pub fn cite(&self) -> Cite<'_> {
        Cite::UnitLine { file: &self.file, line: self.line, text: &self.text, value: self.at }
    }
}

/// What kind of socket a `Listen…=` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenKind {
    /// `ListenStream=`
    Stream,
    /// `ListenDatagram=`
    Datagram,
    /// Any other: none that can be forwarded.
    Other,
}

/// One `Listen…=` of a socket unit.
#[derive(Clone, Copy, Debug)]
pub struct Listening<'a> {
    /// Which `Listen…=` setting.
    pub kind: ListenKind,
    /// The setting in its file; its value is the address.
    pub setting: &'a Setting,
}

impl Listening<'_> {
    /// The kind of socket that arrives; `None` for one that is not forwarded (UNIX datagrams, vsock, FIFOs and such).
    pub fn socket(&self) -> Option<SocketKind> {
        let unix = self.setting.value.starts_with(['/', '@', '%']);
        match self.kind {
            ListenKind::Other => None,
            _ if self.setting.value.starts_with("vsock:") => None,
            ListenKind::Stream => Some(if unix { SocketKind::Unix } else { SocketKind::Tcp }),
            ListenKind::Datagram => Some(SocketKind::Udp).filter(|_| !unix),
        }
    }
}

/// A unit with the drop-ins that were laid over it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unit {
    pub(super) settings: Vec<Setting>,
    dropped: Vec<SpecFault>,
}

impl Unit {
    /// Reads the text of a unit file; `file` is its path, for citing.
    pub fn parse(file: &str, text: &str) -> Self {
        let mut unit = Self::default();
        unit.overlay(file, text);
        unit
    }

    /// Reads a drop-in over what was read before.
    pub fn overlay(&mut self, file: &str, text: &str) {
        let mut reader =
            UnitReader { unit: self, source: Source::new(Origin::File(file.to_owned()), text), section: None };
        let file: Arc<str> = file.into();
        let mut begun: Option<Line> = None;
        // A byte order mark is no part of the first line.
        let body = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut offset = text.len() - body.len();
        for (index, physical) in body.split_inclusive('\n').enumerate() {
            let at = offset;
            offset += physical.len();
            let line = physical.trim_end_matches(['\n', '\r']);
            if line.trim_start().starts_with(['#', ';']) {
                continue;
            }
            let new = || Line { number: index + 1, at, first: line.to_owned(), joined: String::new() };
            let mut whole = begun.take().unwrap_or_else(new);
            // An odd number of backslashes at the end: the last one is not escaped itself.
            let backslashes = line.bytes().rev().take_while(|byte| *byte == b'\\').count();
            if backslashes % 2 == 1 {
                whole.joined.push_str(&line[..line.len() - 1]);
                whole.joined.push(' ');
                begun = Some(whole);
                continue;
            }
            whole.joined.push_str(line);
            reader.line(&file, &whole);
        }
        if let Some(whole) = begun {
            reader.line(&file, &whole);
        }
    }

    /// All assignments of a key, in their order, empty ones included.
    pub fn all<'a>(&'a self, section: &'a str, key: &'a str) -> impl DoubleEndedIterator<Item = &'a Setting> {
        self.settings.iter().filter(move |setting| setting.section == section && setting.key == key)
    }

    /// The last assignment of a key, unless that is empty.
    pub fn last<'a>(&'a self, section: &'a str, key: &'a str) -> Option<&'a Setting> {
        self.all(section, key).next_back().filter(|setting| !setting.value.is_empty())
    }

    /// The `FileDescriptorName=` that counts, as it was written; systemd may still reject it (see [`rejected`]).
    pub fn fd_name(&self) -> Option<&Setting> {
        self.last("Socket", "FileDescriptorName")
    }

    /// The service that the socket starts, when the unit says so; without, it is the one of the socket's own name.
    pub fn service(&self) -> Option<&Setting> {
        // systemd ignores a value that is no service.
        self.all("Socket", "Service").rfind(|setting| setting.value.ends_with(".service"))
    }

    /// The sockets it makes. An empty assignment of any of the keys forgets all that came before.
    pub fn listens(&self) -> Vec<Listening<'_>> {
        let mut listens = Vec::new();
        for setting in self.settings.iter().filter(|setting| setting.section == "Socket") {
            let kind = match setting.key.as_str() {
                "ListenStream" => ListenKind::Stream,
                "ListenDatagram" => ListenKind::Datagram,
                "ListenSequentialPacket"
                | "ListenFIFO"
                | "ListenSpecial"
                | "ListenNetlink"
                | "ListenMessageQueue"
                | "ListenUSBFunction" => ListenKind::Other,
                _ => continue,
            };
            if setting.value.is_empty() {
                listens.clear();
            } else {
                listens.push(Listening { kind, setting });
            }
        }
        listens
    }

    /// Whether it has an `[Install]` section with anything in it: then how it is enabled is its author's business.
    pub fn has_install(&self) -> bool {
        self.settings.iter().any(|setting| setting.section == "Install")
    }

    /// The files that it was read from, as far as they set anything.
    pub fn files(&self) -> Vec<String> {
        let mut files: Vec<String> = Vec::new();
        for setting in &self.settings {
            if !files.iter().any(|file| **file == *setting.file) {
                files.push(setting.file.to_string());
            }
        }
        files
    }

    /// Lines that systemd cannot read and leaves out, each with its place.
    pub fn dropped(&self) -> &[SpecFault] {
        &self.dropped
    }
}

/// A line with those that continue it.
struct Line {
    /// Of the first one, counted from 1.
    number: usize,
    /// Where the first one begins, in bytes.
    at: usize,
    first: String,
    joined: String,
}

struct UnitReader<'a> {
    unit: &'a mut Unit,
    source: Arc<Source>,
    /// `None` before the first section and in one whose header cannot be read.
    section: Option<String>,
}

impl UnitReader<'_> {
    fn line(&mut self, file: &Arc<str>, line: &Line) {
        let joined = line.joined.trim();
        if joined.is_empty() {
            return;
        }
        if let Some(header) = joined.strip_prefix('[') {
            self.section = header.strip_suffix(']').map(str::to_owned);
            if self.section.is_none() {
                self.drop(line, "a section's header has no ]: systemd refuses the whole file", "write: [Socket]");
            }
            return;
        }
        let Some(section) = &self.section else {
            self.drop(line, "this line is in no section, and systemd ignores it", "put it under [Socket]");
            return;
        };
        match joined.split_once('=') {
            None => self.drop(line, "this is not Key=value, and systemd ignores it", ""),
            Some(("", _)) => self.drop(line, "there is no key before the =, and systemd ignores it", ""),
            Some((key, value)) => {
                // Where the value begins on the first line; at its end when the value is all on later ones.
                let after = line.first.find('=').map_or(line.first.len(), |at| at + 1);
                let blanks = line.first[after..].len() - line.first[after..].trim_start().len();
                let setting = Setting {
                    section: section.clone(),
                    key: key.trim_end().to_owned(),
                    value: value.trim().to_owned(),
                    file: Arc::clone(file),
                    line: line.number,
                    text: line.first.clone(),
                    at: after + blanks,
                };
                self.unit.settings.push(setting);
            }
        }
    }

    fn drop(&mut self, line: &Line, what: &str, hint: &str) {
        let start = line.at + line.first.len() - line.first.trim_start().len();
        let fault = SpecFault::at(&Place::new(&self.source, start..line.at + line.first.trim_end().len()), what);
        self.unit.dropped.push(if hint.is_empty() { fault } else { fault.hint(hint) });
    }
}
