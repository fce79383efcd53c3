//! From what is declared and what is there to the steps between them. Pure.

use std::collections::BTreeMap;

/// The file of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum UnitFile {
    None,
    /// This program wrote it, with this text.
    Ours(String),
    /// Somebody else wrote it, or a unit of this name is elsewhere: why it is left alone.
    Foreign(String),
}

/// What is there for one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenUnit {
    pub(super) file: UnitFile,
    pub(super) active: bool,
    /// systemd has read an older file, or none.
    pub(super) stale: bool,
}

/// What is done in one pass, in this order; `reload` between `write` and `start`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    pub(super) stop: Vec<u16>,
    /// Files of units that are not declared any more.
    pub(super) delete: Vec<u16>,
    pub(super) write: Vec<(u16, String)>,
    pub(super) reload: bool,
    pub(super) start: Vec<u16>,
    /// DeclaredForward, and not served because of a foreign unit.
    pub(super) refused: Vec<(u16, String)>,
}

impl Steps {
    /// The steps to `wanted`, the text of the unit of each port.
    pub(super) fn between(wanted: &BTreeMap<u16, String>, seen: &BTreeMap<u16, SeenUnit>) -> Self {
        let mut steps = Self::default();
        let gone = |port: &&u16| !wanted.contains_key(port);
        for port in seen.keys().filter(gone) {
            if let UnitFile::Ours(_) = seen[port].file {
                steps.stop.push(*port);
                steps.delete.push(*port);
            }
        }
        for (port, text) in wanted {
            let none = SeenUnit { file: UnitFile::None, active: false, stale: false };
            let seen = seen.get(port).unwrap_or(&none);
            match &seen.file {
                UnitFile::Foreign(why) => steps.refused.push((*port, why.clone())),
                UnitFile::Ours(there) if there == text && !seen.stale => {
                    if !seen.active {
                        steps.start.push(*port);
                    }
                }
                UnitFile::Ours(there) => {
                    if seen.active {
                        steps.stop.push(*port);
                    }
                    if there != text {
                        steps.write.push((*port, text.clone()));
                    }
                    steps.reload = true;
                    steps.start.push(*port);
                }
                UnitFile::None => {
                    steps.write.push((*port, text.clone()));
                    steps.start.push(*port);
                }
            }
        }
        steps.reload |= !steps.delete.is_empty() || !steps.write.is_empty();
        steps
    }

    /// Whether nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.stop.is_empty() && self.delete.is_empty() && self.start.is_empty() && !self.reload
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{
        collection::{btree_map, btree_set, vec},
        prelude::*,
    };

    use super::*;

    /// A machine: files, what systemd has read of them, which units are active and with which text.
    #[derive(Clone, Debug, Default)]
    struct Host {
        files: BTreeMap<u16, String>,
        read: BTreeMap<u16, String>,
        active: BTreeMap<u16, String>,
        foreign: BTreeSet<u16>,
    }

    impl Host {
        fn seen(&self) -> BTreeMap<u16, SeenUnit> {
            let ports = self.files.keys().chain(self.active.keys()).chain(&self.foreign).copied();
            let seen = |port: u16| {
                let file = match self.files.get(&port) {
                    _ if self.foreign.contains(&port) => UnitFile::Foreign("somebody's".into()),
                    Some(text) => UnitFile::Ours(text.clone()),
                    None => UnitFile::None,
                };
                let stale = self.read.get(&port) != self.files.get(&port);
                (port, SeenUnit { file, active: self.active.contains_key(&port), stale })
            };
            ports.map(seen).collect()
        }

        /// Takes the first `most` of the steps; whoever is killed takes no more.
        fn take(&mut self, steps: &Steps, most: usize) {
            let mut left = most;
            let mut step = |work: &mut dyn FnMut()| {
                if left > 0 {
                    left -= 1;
                    work();
                }
            };
            for port in &steps.stop {
                step(&mut || drop(self.active.remove(port)));
            }
            for port in &steps.delete {
                step(&mut || drop(self.files.remove(port)));
            }
            for (port, text) in &steps.write {
                step(&mut || drop(self.files.insert(*port, text.clone())));
            }
            if steps.reload {
                step(&mut || self.read = self.files.clone());
            }
            for port in &steps.start {
                step(&mut || drop(self.active.insert(*port, self.read[port].clone())));
            }
        }
    }

    #[test]
    fn each_row_of_the_table_has_its_steps() {
        let text = |text: &str| text.to_owned();
        let ours = |file: &str, active, stale| SeenUnit { file: UnitFile::Ours(text(file)), active, stale };
        let foreign = |active| SeenUnit { file: UnitFile::Foreign(text("why")), active, stale: false };
        let done = Steps::default;
        let all = |reload, stop: &[u16], delete: &[u16], write: &[&str], start: &[u16]| Steps {
            stop: stop.to_vec(),
            delete: delete.to_vec(),
            write: write.iter().map(|text| (1, (*text).to_owned())).collect(),
            reload,
            start: start.to_vec(),
            refused: Vec::new(),
        };
        let refused = || Steps { refused: vec![(1, text("why"))], ..done() };
        for (wanted, seen, steps) in [
            (None, None, done()),
            (None, Some(foreign(true)), done()),
            (None, Some(ours("a", true, false)), all(true, &[1], &[1], &[], &[])),
            (None, Some(ours("a", false, true)), all(true, &[1], &[1], &[], &[])),
            (Some("a"), None, all(true, &[], &[], &["a"], &[1])),
            (Some("a"), Some(ours("a", true, false)), done()),
            (Some("a"), Some(ours("a", false, false)), all(false, &[], &[], &[], &[1])),
            (Some("a"), Some(ours("a", false, true)), all(true, &[], &[], &[], &[1])),
            (Some("a"), Some(ours("b", true, false)), all(true, &[1], &[], &["a"], &[1])),
            (Some("a"), Some(ours("a", true, true)), all(true, &[1], &[], &[], &[1])),
            (Some("a"), Some(foreign(false)), refused()),
        ] {
            let wanted = wanted.map(|wanted| (1, text(wanted))).into_iter().collect();
            let seen = seen.map(|seen| (1, seen)).into_iter().collect();
            assert_eq!(Steps::between(&wanted, &seen), steps, "{wanted:?} {seen:?}");
        }
    }

    proptest! {
        /// Declarations come, change and go, and each pass but the last is killed at any point.
        #[test]
        fn whatever_came_before_the_last_pass_ends_in_what_is_declared(
            passes in vec((btree_map(1..6u16, "[ab]", 0..5), 0..12usize), 1..12),
            foreign in btree_set(1..6u16, 0..2),
        ) {
            let mut host = Host { foreign: foreign.clone(), ..Host::default() };
            let mut last = BTreeMap::new();
            for (wanted, killed_after) in passes {
                host.take(&Steps::between(&wanted, &host.seen()), killed_after);
                last = wanted;
            }
            let before = host.active.clone();
            let steps = Steps::between(&last, &host.seen());
            host.take(&steps, usize::MAX);
            let served: BTreeMap<_, _> = last.into_iter().filter(|(port, _)| !foreign.contains(port)).collect();
            prop_assert_eq!(&host.active, &served);
            prop_assert_eq!(&host.files, &served);
            let untouched = before.iter().filter(|(port, text)| served.get(port) == Some(text));
            let touched: Vec<_> = untouched.filter(|(port, _)| steps.stop.contains(port)).collect();
            prop_assert!(touched.is_empty(), "{:?}", touched);
            prop_assert!(Steps::between(&served, &host.seen()).is_empty());
        }
    }
}
