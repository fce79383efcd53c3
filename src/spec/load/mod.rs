//! The configuration as loaded from several files: one function decides, for `check`, start, reload and restart alike.
//!
//! # Theory
//! A configuration is a main file, the drop-in files beside it, and `--forward` arguments. Each file is judged alone. A
//! file with a fault keeps its *last good text*, the one that was in force before, and the other files take effect. A
//! file without a last good text is in one of these states:
//!
//! | fault | main file | drop-in file |
//! |---|---|---|
//! | none | in force | in force |
//! | inside one `[[forward]]` | in force without that forward | the whole file is refused |
//! | syntax, an unknown table, `[defaults]`, the file cannot be read | the whole file is refused | the whole file is refused |
//! | what another file has already: a label, an address | in force without the later forward | in force without the later forward |
//!
//! What two files claim goes to the first forward only where neither file has another last good text that ends the
//! contradiction: at a first start, say. Otherwise that text stays in force, so what an unchanged file serves is served
//! on. Where either file could give way, the one with the later forward does.
//!
//! A text that is in force with a refused forward is no good text, but the last one there is: a later faulty text
//! replaces it only where that takes no forward away.
//!
//! Two faults lie between a good text and something else. A main file whose `[defaults]` make an unchanged drop-in file
//! faulty keeps its last good text. So does a file that no longer has the label of a socket which its last good text
//! served, until the socket is stopped.
//!
//! The arguments are those of this process; there is no last good one of them.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Serialize};

use super::{
    config::{Config, ConfigEntry},
    error::{Faults, SpecFault},
    fdname::{self, Name},
    file::FileText,
    forward::read_all,
    keys::Keys,
    plan::Plan,
    weigh::{Beside, FaultScope, FoundFault, Machine, Weighed, weigh},
};

/// The text of a configuration file, or why it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// What faults call the file: its path.
    pub name: String,
    /// The text, or why there is none.
    pub text: Result<String, String>,
}

/// Everything that a configuration is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// The main file, where there is one.
    pub main: Option<Text>,
    /// The drop-in files, in the byte order of their names.
    pub drop_ins: Vec<Text>,
    /// `--forward` arguments.
    pub forwards: Vec<String>,
}

/// The texts that were in force last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastTexts {
    /// That of the main file.
    #[serde(default)]
    pub main: Option<LastText>,
    /// Those of the drop-in files, in the byte order of their names.
    #[serde(default)]
    pub drop_ins: Vec<LastText>,
}

/// The text of a file that was in force last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastText {
    /// The path of the file.
    pub name: String,
    /// All of it.
    pub text: String,
    /// When it came into force, in seconds since 1970.
    pub since: u64,
    /// Whether nothing was wrong with it.
    pub good: bool,
}

/// What a fault does. The control interface has the variants by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultEffect {
    /// The file's last text stays in force.
    Kept,
    /// The forward that it is in is not served.
    ForwardRefused,
    /// Its whole drop-in file is refused.
    DropInRefused,
    /// Its whole file is refused.
    FileRefused,
}

/// A fault of the configuration, and what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// What is wrong, and where.
    pub fault: SpecFault,
    /// What it does now.
    pub effect: FaultEffect,
    /// What it does at a start, where there is no last good text.
    pub at_start: FaultEffect,
    /// What it does at a reload or a restart of a service that runs with a good text of the file.
    pub at_reload: FaultEffect,
}

/// A configuration, loaded.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// What is in force, or would be.
    pub config: Config,
    /// What is wrong, in the order of files and lines.
    pub faults: Vec<ConfigFault>,
    /// The texts that are in force now.
    pub texts: LastTexts,
}

/// A file that takes part: its present text, or its last one.
#[derive(Clone, Debug)]
struct FileCandidate {
    name: String,
    read: FileText,
    /// What is in force when this text is; nothing when it cannot be read.
    last: Option<LastText>,
    /// Whether it is the last text rather than the present one.
    kept: bool,
}

impl FileCandidate {
    fn present(text: &Text, drop_in: bool, last: Option<&LastText>, now: u64) -> Self {
        let name = text.name.clone();
        match &text.text {
            Ok(text) => {
                let since = last.filter(|last| last.text == *text).map_or(now, |last| last.since);
                let read = FileText::read(&name, text, drop_in);
                let last = Some(LastText { name: name.clone(), text: text.clone(), since, good: true });
                Self { name, read, last, kept: false }
            }
            Err(why) => Self { read: FileText::unreadable(&name, why, drop_in), name, last: None, kept: false },
        }
    }

    fn kept(last: &LastText, drop_in: bool) -> Self {
        let read = FileText::read(&last.name, &last.text, drop_in);
        Self { name: last.name.clone(), read, last: Some(last.clone()), kept: true }
    }
}

/// The files that take part, and what they mean together.
struct Loading<'a> {
    files: Vec<FileCandidate>,
    arguments: Vec<(Keys, Vec<SpecFault>)>,
    beside: &'a Beside<'a>,
    machine: Machine<'a>,
    weighed: Weighed,
    faults: Vec<ConfigFault>,
}

/// As [`load_knowing`], on a machine of which nothing is known ([`Machine::WILLING`]).
pub fn load(texts: &Texts, last: &LastTexts, beside: &Beside<'_>, now: u64) -> Loaded {
    load_knowing(texts, last, beside, now, Machine::WILLING)
}

/// Loads a configuration. `last` has the texts that were in force before, `beside` what stands beside the
/// configuration, `now` the time in seconds since 1970; `machine` says what only the machine knows.
pub fn load_knowing(texts: &Texts, last: &LastTexts, beside: &Beside<'_>, now: u64, machine: Machine<'_>) -> Loaded {
    let drop_ins: HashMap<&str, &LastText> = last.drop_ins.iter().map(|last| (&*last.name, last)).collect();
    let of_drop_in = |name: &str| drop_ins.get(name).copied();
    let of_main = |name: &str| last.main.as_ref().filter(|last| last.name == name);
    let mut files: Vec<FileCandidate> = Vec::new();
    files.extend(texts.main.iter().map(|text| FileCandidate::present(text, false, of_main(&text.name), now)));
    for text in &texts.drop_ins {
        files.push(FileCandidate::present(text, true, of_drop_in(&text.name), now));
        if text.text.is_err() {
            // Of a directory that cannot be read, every file is kept.
            let inside = format!("{}/", text.name);
            let kept = last.drop_ins.iter().filter(|last| last.name.starts_with(&inside));
            files.extend(kept.map(|last| FileCandidate::kept(last, true)));
        }
    }
    let arguments = read_all(&texts.forwards);
    let weighed = weigh_all(&files, &arguments, beside, machine);
    let mut loading = Loading { files, arguments, beside, machine, weighed, faults: Vec::new() };
    let of_main_in_force = texts.main.as_ref().and_then(|text| of_main(&text.name));
    let (mut main, mut drop_ins) = (Vec::new(), Vec::new());
    for (index, file) in loading.files.iter().enumerate() {
        if file.read.drop_in {
            drop_ins.extend(of_drop_in(&file.name).map(|old| (index, old)));
        } else {
            main.extend(of_main(&file.name).map(|old| (index, old)));
        }
    }
    loading.keep_where_faulty(main); // first: its defaults hold for the drop-ins
    loading.keep_where_faulty(drop_ins);
    loading.keep_where_contradicting(last);
    of_main_in_force.into_iter().for_each(|old| loading.keep_for_drop_ins(old, last));
    loading.keep_for_sockets(texts, last);
    loading.end()
}

fn weigh_all(
    files: &[FileCandidate],
    arguments: &[(Keys, Vec<SpecFault>)],
    beside: &Beside<'_>,
    machine: Machine<'_>,
) -> Weighed {
    weigh(&files.iter().map(|file| &file.read).collect::<Vec<_>>(), arguments, beside, machine)
}

impl Loading<'_> {
    /// Keeps the last texts of those of `files` that have faults.
    fn keep_where_faulty(&mut self, files: Vec<(usize, &LastText)>) {
        let faulty = |(index, old): &(usize, &LastText)| {
            let file = &self.files[*index];
            let same = file.last.as_ref().is_some_and(|last| last.text == old.text);
            !file.kept && !same && self.weighed.own_faults(*index).next().is_some()
        };
        let mut faulty: Vec<_> = files.into_iter().filter(faulty).collect();
        if faulty.is_empty() {
            return;
        }
        let mut files = self.files.clone();
        for (index, old) in &faulty {
            files[*index] = FileCandidate::kept(old, files[*index].read.drop_in);
        }
        let mut weighed = weigh_all(&files, &self.arguments, self.beside, self.machine);
        let tried = faulty.len();
        faulty.retain(|(index, old)| {
            let better = self.is_better(&weighed, *index, old);
            if !better {
                files[*index] = self.files[*index].clone();
            }
            better
        });
        if faulty.len() < tried {
            weighed = weigh_all(&files, &self.arguments, self.beside, self.machine);
        }
        for (index, _) in faulty {
            let own = self.weighed.own_faults(index);
            self.faults.extend(own.map(|found| ConfigFault { effect: FaultEffect::Kept, ..found.into() }));
        }
        (self.files, self.weighed) = (files, weighed);
    }

    /// Whether the last text of a file, as `weighed`, is to stay in force rather than the present one, which has faults.
    fn is_better(&self, weighed: &Weighed, index: usize, old: &LastText) -> bool {
        if old.good {
            // What a newer version finds faulty counts as absent.
            return weighed.own_faults(index).next().is_none();
        }
        let now = served(&self.weighed.config, index);
        served(&weighed.config, index).iter().any(|forward| !now.contains(forward))
    }

    /// Keeps the last good text of a file that claims what another file has: of the one whose last text ends the
    /// contradiction, and of the one with the later forward where either does.
    fn keep_where_contradicting(&mut self, last: &LastTexts) {
        let between: Vec<FoundFault> =
            self.weighed.faults.iter().filter(|found| found.between_files).cloned().collect();
        for found in between {
            for index in [found.file, found.other_file].into_iter().flatten() {
                let there = |weighed: &Weighed| weighed.faults.iter().any(|other| other.fault == found.fault);
                let file = &self.files[index];
                let mut old = last.main.iter().filter(|_| !file.read.drop_in).chain(&last.drop_ins);
                let Some(old) = old.find(|old| old.name == file.name && old.good) else { continue };
                let same = file.last.as_ref().is_some_and(|last| last.text == old.text);
                if file.kept || same || !there(&self.weighed) {
                    continue;
                }
                let mut files = self.files.clone();
                files[index] = FileCandidate::kept(old, file.read.drop_in);
                let weighed = weigh_all(&files, &self.arguments, self.beside, self.machine);
                // No new fault in exchange.
                if !there(&weighed) && weighed.faults.len() < self.weighed.faults.len() {
                    self.faults.push(ConfigFault { effect: FaultEffect::Kept, ..(&found).into() });
                    (self.files, self.weighed) = (files, weighed);
                }
            }
        }
    }

    /// Keeps the last text of the main file, where the present one is good and makes an unchanged drop-in file faulty: by
    /// its `[defaults]`.
    fn keep_for_drop_ins(&mut self, old: &LastText, last: &LastTexts) {
        let drop_ins: HashMap<&str, &LastText> = last.drop_ins.iter().map(|last| (&*last.name, last)).collect();
        let unchanged = |file: &FileCandidate| {
            file.last.as_ref().is_some_and(|own| own.good && drop_ins.get(&*own.name) == Some(&own))
        };
        let faulty = |index: &usize| {
            let file = &self.files[*index];
            file.read.drop_in && unchanged(file) && self.weighed.own_faults(*index).next().is_some()
        };
        let faulty: Vec<usize> = (0..self.files.len()).filter(faulty).collect();
        let main = self.files.iter().position(|file| !file.read.drop_in && !file.kept);
        let Some(main) = main.filter(|_| !faulty.is_empty()) else { return };
        let mut files = self.files.clone();
        files[main] = FileCandidate::kept(old, false);
        let weighed = weigh_all(&files, &self.arguments, self.beside, self.machine);
        if faulty.iter().all(|index| weighed.own_faults(*index).next().is_none()) {
            for index in faulty {
                let own = self.weighed.own_faults(index);
                self.faults.extend(own.map(|found| ConfigFault { effect: FaultEffect::Kept, ..found.into() }));
            }
            (self.files, self.weighed) = (files, weighed);
        }
    }

    /// Keeps the last text of a file, where the present one no longer has the label of a socket.
    fn keep_for_sockets(&mut self, texts: &Texts, last: &LastTexts) {
        let beside = self.beside;
        for (name, kind) in beside.sockets {
            let Ok(name @ Name::Label(_)) = fdname::parse(name) else { continue };
            if name.entry(&self.weighed.config).is_some() {
                continue;
            }
            let main = last.main.iter().map(|last| (last, false));
            for (old, drop_in) in main.chain(last.drop_ins.iter().map(|last| (last, true))) {
                let kept = FileCandidate::kept(old, drop_in);
                let place = self.files.iter().position(|file| file.name == old.name);
                if texts.place().is_some_and(|now| now != place_of(&old.name, drop_in)) {
                    continue; // places never mix
                }
                let mut files = self.files.clone();
                let index = match place {
                    Some(index) => {
                        files[index] = kept;
                        index
                    }
                    None => {
                        let later = |file: &FileCandidate| drop_in <= file.read.drop_in && old.name < file.name;
                        let index = if drop_in { files.iter().position(later).unwrap_or(files.len()) } else { 0 };
                        files.insert(index, kept);
                        index
                    }
                };
                let weighed = weigh_all(&files, &self.arguments, beside, self.machine);
                let entry = name.entry(&weighed.config).filter(|entry| entry.file == Some(index));
                let Some(entry) = entry.filter(|_| name.resolve(*kind, &weighed.config).is_ok()) else { continue };
                let label = entry.label().map(ToString::to_string).unwrap_or_default();
                let what = format!("no [[forward]] has the label \"{label}\" now, which a socket needs; it stood here");
                let fault = SpecFault::at(&entry.keys.whole, what);
                let fault = fault.hint("put it back, or stop the socket first");
                self.faults.push(ConfigFault {
                    fault,
                    effect: FaultEffect::Kept,
                    at_start: FaultEffect::ForwardRefused,
                    at_reload: FaultEffect::Kept,
                });
                (self.files, self.weighed) = (files, weighed);
                break;
            }
        }
    }

    fn end(self) -> Loaded {
        let Self { files, weighed, mut faults, .. } = self;
        faults.extend(weighed.faults.iter().map(ConfigFault::from));
        let mut texts = LastTexts::default();
        for (index, file) in files.into_iter().enumerate() {
            let Some(last) = file.last else { continue };
            let good = weighed.own_faults(index).next().is_none();
            let last = LastText { good: good && last.good, ..last };
            if file.read.drop_in { texts.drop_ins.push(last) } else { texts.main = Some(last) }
        }
        Loaded { config: weighed.config, faults, texts }
    }
}

/// The place that a file belongs to: the path of its main file.
fn place_of(name: &str, drop_in: bool) -> &str {
    let directory = || name.rsplit_once('/').map_or(name, |(directory, _)| directory);
    if drop_in { directory().trim_end_matches(".d") } else { name }
}

/// What is served of a file, by what makes each forward the same after a change.
fn served(config: &Config, index: usize) -> Vec<Vec<String>> {
    let entries = config.entries.iter().filter(|entry| entry.file == Some(index) && entry.refused.is_empty());
    entries.map(ConfigEntry::identity).collect()
}

impl From<&FoundFault> for ConfigFault {
    fn from(found: &FoundFault) -> Self {
        let at_start = match found.scope {
            FaultScope::Forward => FaultEffect::ForwardRefused,
            FaultScope::DropIn => FaultEffect::DropInRefused,
            FaultScope::File => FaultEffect::FileRefused,
        };
        let at_reload = if found.file.is_some() { FaultEffect::Kept } else { at_start };
        Self { fault: found.fault.clone(), effect: at_start, at_start, at_reload }
    }
}

impl Loaded {
    /// The configuration and its plan, for who takes only one without faults.
    ///
    /// # Errors
    /// All faults of files and arguments, and of what they mean together.
    pub fn strict(self) -> Result<(Config, Plan), Faults> {
        let plan = self.config.plan();
        Faults(self.faults.into_iter().map(|fault| fault.fault).collect()).none_or((self.config, plan))
    }
}

impl Texts {
    /// A main file and arguments.
    pub fn of<T: AsRef<str>>(main: Option<(&str, &str)>, forwards: impl IntoIterator<Item = T>) -> Self {
        let main = main.map(|(name, text)| Text { name: name.to_owned(), text: Ok(text.to_owned()) });
        let forwards = forwards.into_iter().map(|text| text.as_ref().to_owned()).collect();
        Self { main, drop_ins: Vec::new(), forwards }
    }

    /// The place that the files belong to, if there is any.
    fn place(&self) -> Option<&str> {
        let drop_in = || self.drop_ins.iter().find(|text| text.text.is_ok()).map(|text| place_of(&text.name, true));
        self.main.as_ref().map(|main| place_of(&main.name, false)).or_else(drop_in)
    }
}

impl Config {
    /// Reads a main file and `--forward` arguments, where nothing was in force before.
    ///
    /// # Errors
    /// All faults of the file, of the arguments and of what they mean together. What could not be read is not called
    /// missing.
    pub fn gather<T: AsRef<str>>(
        file: Option<(&str, &str)>,
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<(Self, Plan), Faults> {
        load(&Texts::of(file, arguments), &LastTexts::default(), &Beside::NOTHING, 0).strict()
    }
}

impl FaultEffect {
    /// One word, as the control interface has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::ForwardRefused => "forward_refused",
            Self::DropInRefused => "drop_in_refused",
            Self::FileRefused => "file_refused",
        }
    }
}

/// For people.
impl fmt::Display for FaultEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kept => "the last good text of the file stays in force",
            Self::ForwardRefused => "this forward is not served",
            Self::DropInRefused => "the whole drop-in file is refused",
            Self::FileRefused => "the whole file is refused",
        })
    }
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault, self.effect)
    }
}

#[cfg(test)]
mod tests;
