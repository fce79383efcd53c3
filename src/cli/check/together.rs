//! Listeners together: who else has their places, and where they lead into each other.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use super::{
    finding::Finding,
    machine::{self, TakenPlace},
    manager,
};
use crate::spec::{ListenPlace, PlaceIndex, PlacedListener, Upstream, circles, exclusions, unit::Consequence};

/// Calls into one qube where nothing is written, in the unit of the service neither: the default of `--calls-per-qube`.
const MAX_CALLS: u32 = 32;

/// A listener of a unit or of the configuration.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// Where it is written, for people.
    pub(super) who: String,
    /// Its socket unit; `None` for a forward that the service opens itself.
    pub(super) unit: Option<String>,
    /// The interface that a unit binds its socket to.
    pub(super) device: Option<String>,
    /// How many calls its qube may have, where that is written.
    pub(super) max_calls: Option<u32>,
    /// Whether it was asked about; the others are there to be compared with.
    pub(super) asked: bool,
    /// Whether it listens now, as the manager says.
    pub(super) active: bool,
}

/// What excludes each other, leads in circles, or is taken already. `calls_per_qube` gives the option of that name in the
/// unit of the service.
pub(super) fn look(
    all: &[PlacedListener<Known>],
    program: &str,
    managed: bool,
    calls_per_qube: impl FnOnce() -> Option<u32>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut pairs = Pairs::default();
    for (first, second) in exclusions(all) {
        let (a, b) = (&all[first], &all[second]);
        // Sockets of different interfaces share a port.
        let apart = a.what.device.is_some() && b.what.device.is_some() && a.what.device != b.what.device;
        if (a.what.asked || b.what.asked) && !apart {
            let one = |one: &PlacedListener<Known>| format!("{} on {}", one.what.who, shown(&one.place));
            let units = a.what.unit.is_some() && b.what.unit.is_some();
            let consequence = if units { Consequence::CannotListen } else { Consequence::NotServed };
            pairs.add((&a.what.who, &b.what.who), &a.place, format!("{} and {}", one(a), one(b)), consequence);
        }
    }
    found.extend(pairs.told(|what| {
        (format!("{what}: only one of them can listen"), "give one of them another port, address or path")
    }));
    let mut told = BTreeSet::new();
    for circle in circles(all, machine::is_local) {
        if !circle.iter().any(|index| all[*index].what.asked) {
            continue;
        }
        let mut names: Vec<_> = circle.iter().map(|index| all[*index].what.who.as_str()).collect();
        names.push(names[0]);
        if !told.insert(names.clone()) {
            continue; // another port of the same ranges
        }
        let what =
            format!("{}: each connection makes another one, until the service resets it", names.join(" leads to "));
        found.push(Finding::plain(what, "change the target of one of these listeners", Consequence::Circle));
    }
    found.extend(differing_limits(all, calls_per_qube));
    let asked: Vec<&PlacedListener<Known>> = all
        .iter()
        .filter(|one| {
            // Which interface the holder of a port has is not in the kernel's table.
            one.what.asked && !one.what.active && one.what.device.is_none()
        })
        .collect();
    let places: Vec<ListenPlace> = asked.iter().map(|one| one.place.clone()).filter(is_here).collect();
    let taken = machine::taken(&places);
    let holders = PlaceIndex::new(taken.iter().map(|taken| &taken.place));
    let units = if taken.iter().any(TakenPlace::is_managed) { manager::listening() } else { Vec::new() };
    let by_units = PlaceIndex::new(units.iter().map(|(_, place)| place));
    let mut occupied = Pairs::default();
    for listener in asked.iter().filter(|listener| is_here(&listener.place)) {
        let excluded_by = |place: &ListenPlace| listener.place.excludes(place);
        let mut by = holders.near(&listener.place).into_iter().map(|number| &taken[number]);
        let Some(by) = by.find(|taken| excluded_by(&taken.place)) else { continue };
        let mut unit = by_units.near(&listener.place).into_iter().map(|number| &units[number]);
        let unit = unit.find(|(_, place)| excluded_by(place)).map(|(name, _)| name);
        let holder = match (unit, &listener.what.unit) {
            // It is its own.
            (Some(unit), Some(own)) if unit == own => continue,
            (Some(unit), _) => format!("the socket unit {unit}"),
            // The service serves what its configuration says.
            (None, None) if by.is_held_by(program) => continue,
            // A manager that does not answer may hold it for this very unit.
            (None, Some(_)) if by.is_managed() && !managed => continue,
            (None, _) => by.holder(),
        };
        let what = format!("{}: {} is taken already, by {holder}", listener.what.who, shown(&listener.place));
        let consequence = if listener.what.unit.is_some() { Consequence::CannotListen } else { Consequence::Retried };
        occupied.add((&listener.what.who, &holder), &listener.place, what, consequence);
    }
    found.extend(occupied.told(|what| (what, "stop that, or take another port, address or path")));
    found
}

/// What is found for several ports of one range, as one finding: the first, and how many more.
#[derive(Default)]
struct Pairs {
    found: Vec<PairFinding>,
    /// Those that meet at a port, by who they are between: a forward may have a path, too.
    at_ports: HashMap<(String, String), usize>,
}

struct PairFinding {
    what: String,
    more: usize,
    consequence: Consequence,
}

impl Pairs {
    fn add(&mut self, between: (&str, &str), place: &ListenPlace, what: String, consequence: Consequence) {
        if matches!(place, ListenPlace::Port { .. }) {
            let between = (between.0.to_owned(), between.1.to_owned());
            match self.at_ports.entry(between) {
                Entry::Occupied(known) => {
                    self.found[*known.get()].more += 1;
                    return;
                }
                Entry::Vacant(free) => _ = free.insert(self.found.len()),
            }
        }
        self.found.push(PairFinding { what, more: 0, consequence });
    }

    fn told(self, words: impl Fn(String) -> (String, &'static str)) -> impl Iterator<Item = Finding> {
        self.found.into_iter().map(move |PairFinding { what, more, consequence }| {
            let (what, hint) = words(what);
            let more = match more {
                0 => String::new(),
                1 => "; the same holds for 1 more port".to_owned(),
                n => format!("; the same holds for {n} more ports"),
            };
            Finding::plain(what + &more, hint, consequence)
        })
    }
}

/// Listeners that lead to one qube and have different limits of its calls.
fn differing_limits(all: &[PlacedListener<Known>], calls_per_qube: impl FnOnce() -> Option<u32>) -> Vec<Finding> {
    let mut of_qube: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
    for listener in all {
        if let Some(Upstream::Qrexec(call)) = &listener.upstream {
            of_qube.entry(&call.target).or_default().push(&listener.what);
        }
    }
    // The manager is asked only where that can make a difference.
    let mixed = |listeners: &Vec<&Known>| {
        let written = listeners.iter().filter(|known| known.max_calls.is_some()).count();
        written > 0 && written < listeners.len()
    };
    let of_service = if of_qube.values().any(mixed) { calls_per_qube() } else { None };
    let limit = |known: &&Known| known.max_calls.or(of_service).unwrap_or(MAX_CALLS);
    let mut found = Vec::new();
    for (qube, listeners) in of_qube {
        let (Some(least), Some(most)) =
            (listeners.iter().copied().min_by_key(limit), listeners.iter().copied().max_by_key(limit))
        else {
            continue;
        };
        if limit(&least) != limit(&most) && listeners.iter().any(|known| known.asked) {
            let says = |known: &Known| {
                let which = match (known.max_calls, of_service) {
                    (Some(_), _) => "",
                    (None, Some(_)) => " (--calls-per-qube of the service)",
                    (None, None) => ", by default",
                };
                format!("{} has {}{which}", known.who, limit(&known))
            };
            let what = format!(
                "max_calls of the qube {qube}: {}, {}; the smaller one holds for both",
                says(least),
                says(most)
            );
            found.push(Finding::plain(what, "give all listeners of the qube the same max_calls", Consequence::Served));
        }
    }
    found
}

/// Whether a place is in this network namespace, whose tables can be read.
fn is_here(place: &ListenPlace) -> bool {
    matches!(place, ListenPlace::Unix(_) | ListenPlace::Port { netns: None, .. })
}

fn shown(place: &ListenPlace) -> String {
    match place {
        ListenPlace::Unix(addr) => addr.to_string(),
        ListenPlace::Port { addr, datagrams, netns, .. } => {
            let kind = if *datagrams { "UDP port " } else { "" };
            let netns = netns.as_ref().map(|netns| format!(" in {netns}")).unwrap_or_default();
            format!("{kind}{addr}{netns}")
        }
    }
}
