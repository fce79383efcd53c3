//! A configuration: all entries that files and arguments gave, and what each means.

use super::{
    error::{Origin, SpecFault},
    file::FileText,
    keys::{At, KeyName, Keys},
    plan::{Forward, Plan},
    role::Defaults,
    value::{Label, LogLevel},
};

/// A configuration that is in force, or would be: [`load`](super::load) makes it.
#[derive(Clone, Debug)]
pub struct Config {
    pub(super) defaults: Defaults,
    pub(super) log_level: Option<LogLevel>,
    pub(super) qubesdb_ports: Vec<u16>,
    /// One for each forward: those of the main file, of the drop-in files, of the arguments.
    pub(super) entries: Vec<ConfigEntry>,
    /// Why whole files are refused.
    pub(super) refused_files: Vec<SpecFault>,
    /// `[defaults]` says who may connect, and that could not be read: sockets are not served without it.
    pub(super) access_lost: Option<SpecFault>,
}

/// A `[[forward]]` or a `--forward`.
#[derive(Clone, Debug)]
pub struct ConfigEntry {
    pub(super) keys: Keys,
    /// The index of its file; `None` for an argument.
    pub(super) file: Option<usize>,
    /// The faults because of which the forward is refused.
    pub(super) refused: Vec<SpecFault>,
    /// Its whole file is refused.
    pub(super) file_refused: bool,
    /// What it means, where its listening side is ours.
    pub(super) forward: Option<Forward>,
    /// It waits for a socket unit with its label.
    pub(super) waits: bool,
}

impl Default for Config {
    /// No configuration at all, which is a good one.
    fn default() -> Self {
        let none = FileText::read("", "", false);
        Self {
            defaults: none.defaults,
            log_level: None,
            qubesdb_ports: Vec::new(),
            entries: Vec::new(),
            refused_files: Vec::new(),
            access_lost: None,
        }
    }
}

impl Config {
    /// `log_level` of `[defaults]`.
    pub fn log_level(&self) -> Option<LogLevel> {
        self.log_level
    }

    /// `qubesdb_ports` of `[defaults]`: ports below 1024 that a declaration in QubesDB may listen on.
    pub fn qubesdb_ports(&self) -> &[u16] {
        &self.qubesdb_ports
    }

    /// All entries, refused ones too, in the order of files and lines.
    pub fn entries(&self) -> &[ConfigEntry] {
        &self.entries
    }

    /// The keys that `[defaults]` gives.
    pub fn defaults(&self) -> &Keys {
        &self.defaults.keys
    }

    /// The forwards whose listening side is ours, and the labels that wait for a socket.
    pub fn plan(&self) -> Plan {
        self.plan_of(|_| true)
    }

    /// As [`Self::plan`], of the entries that are `asked` about.
    pub fn plan_of(&self, asked: impl Fn(&ConfigEntry) -> bool) -> Plan {
        let mut plan = Plan { log_level: self.log_level, ..Plan::default() };
        for entry in self.entries.iter().filter(|entry| asked(entry)) {
            plan.forwards.extend(entry.forward.clone());
            plan.waiting.extend(entry.label().filter(|_| entry.waits).cloned());
        }
        plan
    }

    /// The entry that a socket of this label has: one that is served, before one that is refused.
    pub fn labelled(&self, label: &str) -> Option<&ConfigEntry> {
        let mut all = self.entries.iter().filter(|entry| entry.label().is_some_and(|own| own.as_str() == label));
        all.clone().find(|entry| entry.refused.is_empty()).or_else(|| all.next())
    }
}

impl ConfigEntry {
    pub(super) fn new(file: Option<usize>, keys: Keys, refused: Vec<SpecFault>) -> Self {
        Self { keys, file, refused, file_refused: false, forward: None, waits: false }
    }

    /// What was written, `--forward` arguments laid over it, each value with its place.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Its label.
    pub fn label(&self) -> Option<&Label> {
        self.keys.label.as_ref().map(At::value)
    }

    /// Where it was written: the file (or the argument), and the line.
    pub fn place(&self) -> (Origin, usize) {
        let whole = &self.keys.whole;
        (whole.source.origin.clone(), whole.line())
    }

    /// What it means, where its listening side is ours and nothing is wrong with it.
    pub fn forward(&self) -> Option<&Forward> {
        self.forward.as_ref()
    }

    /// The faults because of which the forward is refused; empty for a forward that is served.
    pub fn refused(&self) -> &[SpecFault] {
        &self.refused
    }

    /// Where it would listen, as it was written; empty when a socket unit says so.
    pub fn address(&self) -> String {
        let keys = &self.keys;
        let inet = keys.listen.as_ref().or(keys.udp_listen.as_ref()).map(|addr| addr.value().to_string());
        let uds = || keys.uds.as_ref().filter(|_| keys.leads_on()).map(|uds| uds.value().to_string());
        inet.or_else(uds).unwrap_or_default()
    }

    /// What makes it the same forward after a change: its label, or where it listens.
    pub(super) fn identity(&self) -> Vec<String> {
        let keys = [KeyName::Label, KeyName::Listen, KeyName::UdpListen, KeyName::ListenNamespace, KeyName::Uds];
        let named = |item: &String| keys.iter().any(|key| item.starts_with(&format!("{}=", key.name())));
        let all: Vec<String> = self.keys.items().into_iter().filter(named).collect();
        match self.label() {
            Some(_) => all.into_iter().take(1).collect(),
            None => all,
        }
    }
}
