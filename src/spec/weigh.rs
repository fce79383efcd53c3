//! What all entries together mean: the forwards, and what is wrong with them.
//!
//! An entry is judged beside the sockets that are there: one whose label a socket has is what lies behind that socket,
//! and its listening side is not ours. Then what only one forward can have is given to the first: within a file, and
//! over all files that are not refused as a whole.

use std::collections::{HashMap, hash_map::Entry};

use super::{
    config::{Config, ConfigEntry},
    error::{Origin, Place, SpecFault},
    fdname,
    file::FileText,
    keys::{At, KeyName, Keys},
    merge::overlay,
    options::{UnitFlaw, UnitUse},
    plan::{Forward, ListenKey, SocketKind},
    role::{Defaults, ListenSide, mean},
    value::{Account, Label},
};

/// What a configuration stands beside.
#[derive(Clone, Copy, Debug)]
pub struct Beside<'a> {
    /// The sockets that systemd passes: their names (`FileDescriptorName=`) and kinds.
    pub sockets: &'a [(String, SocketKind)],
    /// Why network namespaces cannot be entered, if they cannot.
    pub no_namespaces: Option<&'static str>,
}

impl Beside<'_> {
    /// No sockets, and namespaces may be entered.
    pub const NOTHING: Self = Self { sockets: &[], no_namespaces: None };
}

/// What only the machine knows of a configuration.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// Whether a user of this name exists.
    pub users: fn(&str) -> bool,
    /// For each of these uses, why the unit cannot be used so, if it cannot. All units are asked about at once.
    pub units: &'a dyn Fn(&[UnitUse<'_>]) -> Vec<Option<UnitFlaw>>,
}

impl Machine<'_> {
    /// Every user exists, and every unit can be started and stopped.
    pub const WILLING: Self = Self { users: |_| true, units: &|uses| uses.iter().map(|_| None).collect() };
}

/// How much of the configuration a fault takes away when there is no last good text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultScope {
    /// The forward that it is in.
    Forward,
    /// All forwards of the drop-in file.
    DropIn,
    /// All forwards of the main file.
    File,
}

/// A fault, and where it belongs.
#[derive(Clone, Debug)]
pub(super) struct FoundFault {
    /// The index of the file; `None` for a `--forward` argument.
    pub(super) file: Option<usize>,
    pub(super) scope: FaultScope,
    /// Two files contradict each other: each is good by itself.
    pub(super) between_files: bool,
    /// The index of the file that has what both claim, where it is in a file.
    pub(super) other_file: Option<usize>,
    pub(super) fault: SpecFault,
}

/// What the files and arguments mean together.
#[derive(Debug)]
pub(super) struct Weighed {
    pub(super) config: Config,
    /// In the order of files and lines.
    pub(super) faults: Vec<FoundFault>,
}

impl Weighed {
    /// The faults that file `index` has by itself.
    pub(super) fn own_faults(&self, index: usize) -> impl Iterator<Item = &FoundFault> {
        self.faults.iter().filter(move |found| found.file == Some(index) && !found.between_files)
    }
}

/// Weighs the files, the main file first, with `arguments` laid over them.
pub(super) fn weigh(
    files: &[&FileText],
    arguments: &[(Keys, Vec<SpecFault>)],
    beside: &Beside<'_>,
    machine: Machine<'_>,
) -> Weighed {
    let mut config = Config::default();
    let mut parts = Vec::new(); // the entries of each file
    for (index, file) in files.iter().enumerate() {
        if !file.drop_in {
            config.defaults = file.defaults.clone();
            config.log_level = file.log_level;
            config.qubesdb_ports.clone_from(&file.qubesdb_ports);
            config.access_lost.clone_from(&file.access_lost);
        }
        let entry =
            |(keys, faults): &(Keys, Vec<SpecFault>)| ConfigEntry::new(Some(index), keys.clone(), faults.clone());
        let first = config.entries.len();
        config.entries.extend(file.forwards.iter().map(entry));
        parts.push(first..config.entries.len());
    }
    let in_files = config.entries.len();
    overlay(&mut config.entries, arguments, config.defaults.uds_dir.as_deref());
    let taken = taken(&config, beside.sockets);
    for entry in &mut config.entries {
        entry.weigh(&config.defaults, &taken, beside.no_namespaces);
        entry.refuse_unknown_users(&config.defaults, machine.users);
    }
    refuse_units(&mut config, machine);
    for part in parts.iter().cloned().chain(std::iter::once(in_files..config.entries.len())) {
        refuse_second(config.entries[part].iter_mut());
    }
    let mut faults = Vec::new();
    for ((index, file), part) in files.iter().enumerate().zip(parts) {
        faults.extend(judge(index, file, &mut config.entries[part]));
        config.refused_files.extend_from_slice(&file.faults);
    }
    if let Some(fault) = &config.access_lost {
        // The forwards of other files would let in whom the defaults keep out.
        for entry in config.entries.iter_mut().filter(|entry| entry.refused.is_empty()) {
            entry.refuse([fault.clone()]);
        }
    }
    let known: Vec<usize> = config.entries.iter().map(|entry| entry.refused.len()).collect();
    let mut others = refuse_second(config.entries.iter_mut().filter(|entry| !entry.file_refused)).into_iter();
    for (entry, known) in config.entries.iter().zip(known) {
        let found = |fault: &SpecFault| {
            let file = entry.file.filter(|_| matches!(fault.origin(), Origin::File(_)));
            let fault = fault.clone();
            FoundFault { file, scope: FaultScope::Forward, between_files: false, other_file: None, fault }
        };
        // Those of files have been told.
        let arguments = |fault: &&SpecFault| entry.file.is_none() || !matches!(fault.origin(), Origin::File(_));
        faults.extend(entry.refused[..known].iter().filter(arguments).map(found));
        let between = |fault| FoundFault { between_files: true, other_file: others.next().flatten(), ..found(fault) };
        faults.extend(entry.refused[known..].iter().map(between));
    }
    Weighed { config, faults }
}

/// The faults of a file with these entries by itself; where they concern all of it, none of its forwards is served.
fn judge(index: usize, file: &FileText, entries: &mut [ConfigEntry]) -> Vec<FoundFault> {
    let of_file = |fault: &&SpecFault| matches!(fault.origin(), Origin::File(_));
    let own: Vec<SpecFault> = entries.iter().flat_map(|entry| entry.refused.iter().filter(of_file)).cloned().collect();
    let whole = !file.faults.is_empty() || (file.drop_in && !own.is_empty());
    let found = |scope, fault: &SpecFault| {
        let fault = fault.clone();
        FoundFault { file: Some(index), scope, between_files: false, other_file: None, fault }
    };
    let scope = if file.drop_in { FaultScope::DropIn } else { FaultScope::File };
    let inside = if file.drop_in { FaultScope::DropIn } else { FaultScope::Forward };
    let mut faults: Vec<FoundFault> = file.faults.iter().map(|fault| found(scope, fault)).collect();
    faults.extend(own.iter().map(|fault| found(inside, fault)));
    faults.sort_by_key(|found| (found.fault.line(), found.fault.column()));
    if whole {
        let why = file.faults.first().or(own.first()).cloned();
        for entry in entries {
            entry.file_refused = true;
            let why = why.clone().filter(|_| entry.refused.is_empty());
            entry.refuse(why);
        }
    }
    faults
}

/// Refuses the forwards that name a unit which cannot be started for clients, or not be stopped again.
fn refuse_units(config: &mut Config, machine: Machine<'_>) {
    let defaults = &config.defaults;
    let named = |entry: &ConfigEntry| entry.unit_use(defaults).is_some();
    let named: Vec<usize> = (0..config.entries.len()).filter(|index| named(&config.entries[*index])).collect();
    if named.is_empty() {
        return; // so that no manager is asked
    }
    let uses: Vec<UnitUse<'_>> = named.iter().filter_map(|index| config.entries[*index].unit_use(defaults)).collect();
    let flaws = (machine.units)(&uses);
    for (index, flaw) in named.into_iter().zip(flaws) {
        let Some(UnitFlaw { what, hint }) = flaw else { continue };
        let entry = &mut config.entries[index];
        let place = entry.keys.start_unit.as_ref().map(|at| at.place().clone());
        entry.refuse(place.map(|place| SpecFault::at(&place, format!("start_unit: {what}")).hint(hint)));
    }
}

/// The labels that sockets have, and the kinds of those sockets.
fn taken(config: &Config, sockets: &[(String, SocketKind)]) -> Vec<(Label, SocketKind)> {
    let label = |(name, kind): &(String, SocketKind)| {
        let entry = fdname::parse(name).ok()?.entry(config)?.label()?.clone();
        Some((entry, *kind))
    };
    sockets.iter().filter_map(label).collect()
}

impl ConfigEntry {
    /// Whatever it means, it is not served, because of these faults.
    fn refuse(&mut self, faults: impl IntoIterator<Item = SpecFault>) {
        self.refused.extend(faults);
        self.forward = None;
        self.waits = false;
    }

    /// The unit that it starts, where nothing else is wrong with it.
    fn unit_use<'a>(&'a self, defaults: &Defaults) -> Option<UnitUse<'a>> {
        let unit = self.keys.start_unit.as_ref().filter(|_| self.refused.is_empty())?.value();
        let stops = self.keys.stop_when_idle.is_some() || defaults.keys.stop_when_idle.is_some();
        Some(UnitUse { unit, stops })
    }

    /// A list with a user who does not exist would keep out whom it was written for.
    fn refuse_unknown_users(&mut self, defaults: &Defaults, users: fn(&str) -> bool) {
        let Some(at) = self.keys.allow_uid.as_ref().or(defaults.keys.allow_uid.as_ref()) else { return };
        let unknown = at.value().as_slice().iter().filter_map(|account| match account {
            Account::Name(name) if !users(name) => Some(name),
            Account::Name(_) | Account::Id(_) => None,
        });
        let fault = |name: &String| {
            let fault = SpecFault::at(at.place(), format!("allow_uid: there is no user {name}"));
            fault.hint("write a name of getent(1) or a number")
        };
        let faults: Vec<SpecFault> = unknown.map(fault).collect();
        if !faults.is_empty() && !self.keys.incomplete && self.admits_users() {
            self.refuse(faults);
        }
    }

    /// Whether peers come in over a UNIX socket of ours, or of a socket unit.
    fn admits_users(&self) -> bool {
        let unix = |forward: &Forward| forward.legs.iter().any(|leg| !leg.admit.uids.is_empty());
        self.keys.allow_uid.is_some() || self.forward.as_ref().is_some_and(unix)
    }

    /// Decides what the entry means, beside the sockets that have `taken` labels.
    fn weigh(&mut self, defaults: &Defaults, taken: &[(Label, SocketKind)], no_namespaces: Option<&'static str>) {
        // What could not be read is not called missing.
        if self.keys.incomplete {
            return;
        }
        let keys = &self.keys;
        let own_side = keys.listen.is_some() || keys.udp_listen.is_some() || (keys.uds.is_some() && keys.leads_on());
        let mut kinds: Vec<SocketKind> =
            taken.iter().filter(|(label, _)| Some(label) == self.label()).map(|(_, kind)| *kind).collect();
        let waits = kinds.is_empty() && self.label().is_some() && !own_side;
        if waits {
            kinds.push(kind_for(keys));
        }
        if kinds.is_empty() {
            match mean(keys, ListenSide::Own, defaults) {
                Ok(forward) => match no_namespaces.filter(|_| forward.enters_namespaces()) {
                    Some(why) => self.refused.push(SpecFault::at(&self.keys.whole, why)),
                    None if self.refused.is_empty() => self.forward = Some(forward),
                    None => {}
                },
                Err(faults) => self.refused.extend(faults),
            }
            return;
        }
        kinds.dedup();
        for kind in kinds {
            let faults = match mean(keys, ListenSide::Inherited(kind), defaults) {
                Ok(forward) => {
                    let why = no_namespaces.filter(|_| forward.enters_namespaces());
                    why.map(|why| SpecFault::at(&self.keys.whole, why)).into_iter().collect()
                }
                Err(faults) => faults.into_iter().collect::<Vec<_>>(),
            };
            for fault in faults {
                if !self.refused.contains(&fault) {
                    self.refused.push(fault);
                }
            }
        }
        self.waits = waits && self.refused.is_empty();
    }
}

/// Refuses what only one forward can have to all but the first. For each fault, the file of that first one.
fn refuse_second<'a>(entries: impl Iterator<Item = &'a mut ConfigEntry>) -> Vec<Option<usize>> {
    let mut claims = Claims::default();
    let mut others = Vec::new();
    for entry in entries {
        let mut faults = Vec::new();
        if let Some(label) = &entry.keys.label {
            faults.extend(claims.label(label, entry.file));
        }
        if let Some(forward) = &entry.forward {
            faults.extend(claims.sockets(&entry.keys, forward, entry.file));
        }
        // The second one of a file is reported once, not again for all files together.
        faults.retain(|(fault, _)| !entry.refused.contains(fault));
        if !faults.is_empty() {
            let (faults, of): (Vec<SpecFault>, Vec<Option<usize>>) = faults.into_iter().unzip();
            entry.refuse(faults);
            others.extend(of);
        }
    }
    others
}

/// The kind of socket that a forward without a listening side can only be waiting for.
fn kind_for(entry: &Keys) -> SocketKind {
    if entry.udp_target.is_some() || entry.udp_idle_timeout.is_some() || entry.udp_responses.is_some() {
        SocketKind::Udp
    } else if entry.allow_uid.is_some() {
        SocketKind::Unix
    } else {
        SocketKind::Tcp
    }
}

/// What only one forward can have.
#[derive(PartialEq, Eq, Hash)]
enum Claim {
    Label(Label),
    Listener(ListenKey),
}

impl Claim {
    /// What is wrong when two forwards have it.
    fn what(&self) -> String {
        match self {
            Self::Label(label) => format!("the label \"{label}\" is given to two forwards"),
            Self::Listener(ListenKey::Tcp(addr, _)) => format!("two forwards listen on {addr}"),
            Self::Listener(ListenKey::Udp(addr, _)) => format!("two forwards receive on {addr}"),
            Self::Listener(ListenKey::Unix(addr)) => format!("two forwards serve {addr}"),
        }
    }
}

/// A label or an address that two forwards claim.
struct Clash {
    what: String,
    place: Place,
    /// Where the other one is written.
    first: String,
    /// The file of the other one.
    other: Option<usize>,
    /// The number of further ports that both claim.
    more: usize,
}

impl Clash {
    fn fault(self) -> (SpecFault, Option<usize>) {
        let more = match self.more {
            0 => String::new(),
            1 => ", and on 1 more port of the range".to_owned(),
            n => format!(", and on {n} more ports of the range"),
        };
        let fault = SpecFault::at(&self.place, self.what + &more).hint(format!("the other is {}", self.first));
        (fault, self.other)
    }
}

#[derive(Default)]
struct Claims(HashMap<Claim, (Place, Option<usize>)>);

impl Claims {
    /// Claims it for a forward of file `file`; the clash where another forward has it.
    fn claim(&mut self, claim: Claim, place: &Place, file: Option<usize>) -> Option<Clash> {
        match self.0.entry(claim) {
            Entry::Vacant(free) => {
                free.insert((place.clone(), file));
                None
            }
            Entry::Occupied(taken) => {
                let (what, (first, other)) = (taken.key().what(), taken.get());
                Some(Clash { what, place: place.clone(), first: first.brief(), other: *other, more: 0 })
            }
        }
    }

    fn label(&mut self, label: &At<Label>, file: Option<usize>) -> Option<(SpecFault, Option<usize>)> {
        self.claim(Claim::Label(label.value().clone()), label.place(), file).map(Clash::fault)
    }

    fn sockets(&mut self, entry: &Keys, forward: &Forward, file: Option<usize>) -> Vec<(SpecFault, Option<usize>)> {
        let mut clashes: Vec<(KeyName, Clash)> = Vec::new();
        for leg in forward.legs.iter() {
            let Some(listener) = leg.listen.key() else { continue };
            let key = match &listener {
                // With port 0 each gets a separate port.
                ListenKey::Tcp(addr, _) | ListenKey::Udp(addr, _) if addr.addr().port() == 0 => continue,
                ListenKey::Tcp(..) => KeyName::Listen,
                ListenKey::Udp(..) => KeyName::UdpListen,
                ListenKey::Unix(_) => KeyName::Uds,
            };
            let Some(place) = entry.given(key) else { continue };
            let Some(clash) = self.claim(Claim::Listener(listener), place, file) else { continue };
            // A range may have many ports of another range: they are one fault.
            match clashes.iter_mut().find(|(of, known)| *of == key && known.first == clash.first) {
                Some((_, known)) => known.more += 1,
                None => clashes.push((key, clash)),
            }
        }
        clashes.into_iter().map(|(_, clash)| clash.fault()).collect()
    }
}
