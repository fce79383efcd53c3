//! One pass: what is declared is compared with what is there, and the steps between them are taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    nft,
    ruleset::PortRule,
    steps::{SeenUnit, Steps, UnitFile},
    units,
};
use crate::spec::declared::{DeclaredForward, forward_of, unit_of};

/// Held during a pass: the service and `--withdraw` take turns. It is a file of root, beside the units.
const LOCK: &str = "/run/systemd/system/.qrexec-connect-lan.lock";

/// What one pass did, and what it could not do.
#[derive(Debug, Default)]
pub(super) struct PassDone {
    /// Listeners that were opened, or opened again for another value.
    pub(super) opened: Vec<u16>,
    /// Listeners that are gone.
    pub(super) closed: Vec<u16>,
    /// What could not be done, each in a sentence.
    pub(super) failed: Vec<String>,
    /// There were steps to take, with or without success.
    pub(super) acted: bool,
}

/// Makes units and rules those of `wanted`.
pub(super) fn pass(wanted: &BTreeMap<u16, DeclaredForward>) -> PassDone {
    let mut passed = PassDone::default();
    if let Err(e) = take(wanted, &mut passed) {
        passed.failed.push(format!("what dom0 declares is not served: {e}"));
    }
    let mut told = BTreeSet::new();
    passed.failed.retain(|sentence| told.insert(sentence.clone()));
    passed
}

/// What fails for one port is told, and the other ports are served.
fn take(wanted: &BTreeMap<u16, DeclaredForward>, passed: &mut PassDone) -> io::Result<()> {
    let _alone = alone()?;
    let texts: BTreeMap<u16, String> = wanted.iter().map(|(port, forward)| (*port, forward.unit_text())).collect();
    let seen = units::look(wanted.keys().copied())?;
    let mut steps = Steps::between(&texts, &seen);
    for (port, why) in &steps.refused {
        passed.failed.push(format!("port {port} is declared in dom0 and not served: {why}"));
    }
    let serves = |seen: &BTreeMap<u16, SeenUnit>, port: &u16| {
        seen.get(port).zip(texts.get(port)).is_some_and(|(unit, text)| unit.serves(text))
    };
    passed.acted = !steps.is_empty();
    if passed.acted {
        // Rules first, so that no rule is left of a port that nobody holds.
        let settled = nft::settle(&rules(wanted, |port| serves(&seen, port) && !steps.stop.contains(port)));
        passed.failed.extend(settled.told);
        if settled.may_be_left {
            let held = steps.stop.iter().filter(|port| may_have_rule(**port, &seen)).copied().collect();
            hold(&mut steps, &held, "the firewall may still let connections to it in", passed);
        }
        if !steps.stop.is_empty() {
            if let Err(e) = units::order("stop", &steps.stop) {
                passed.failed.push(e.to_string());
                let now = units::look(wanted.keys().copied())?;
                let active = |port: &&u16| now.get(port).is_some_and(|unit| unit.active);
                let held = steps.stop.iter().filter(active).copied().collect();
                hold(&mut steps, &held, "its unit does not stop", passed);
            }
        }
        change_files(&mut steps, passed);
        if steps.reload {
            if let Err(e) = units::order("daemon-reload", &[]) {
                // A start would be one of the units that systemd read before.
                passed.failed.push(format!("no listener is opened: {e}"));
                steps.start.clear();
            }
        }
        units::forget_failures(&[&steps.delete[..], &steps.start[..]].concat());
        if !steps.start.is_empty() {
            // Which of them failed is seen below, and why stands in the journal.
            let _ = units::order("start", &steps.start);
        }
    }
    let now = if passed.acted { units::look(wanted.keys().copied())? } else { seen };
    let (opened, failed): (Vec<u16>, Vec<u16>) = steps.start.iter().partition(|port| serves(&now, port));
    passed.opened = opened;
    for port in failed {
        let unit = unit_of(port);
        passed.failed.push(format!("{unit} does not start; its journal says why: journalctl -u {unit}"));
    }
    passed.failed.extend(nft::settle(&rules(wanted, |port| serves(&now, port))).told);
    Ok(())
}

/// Deletes and writes files. What fails is not started, and the next pass tries it again.
fn change_files(steps: &mut Steps, passed: &mut PassDone) {
    for port in &steps.delete {
        match units::delete(*port) {
            Ok(()) => passed.closed.push(*port),
            Err(e) => passed.failed.push(format!("the file of {} cannot be deleted: {e}", unit_of(*port))),
        }
    }
    let mut unwritten = BTreeSet::new();
    for (port, text) in &steps.write {
        if let Err(e) = units::write(*port, text) {
            passed.failed.push(format!("the file of {} cannot be written: {e}", unit_of(*port)));
            unwritten.insert(*port);
        }
    }
    steps.hold(&unwritten);
}

/// Leaves these ports as they are, and tells it.
fn hold(steps: &mut Steps, ports: &BTreeSet<u16>, why: &str, passed: &mut PassDone) {
    steps.hold(ports);
    passed.failed.extend(ports.iter().map(|port| format!("port {port} is held as it was: {why}")));
}

/// Whether there can be a rule for a port that is served as the file of its unit says.
fn may_have_rule(port: u16, seen: &BTreeMap<u16, SeenUnit>) -> bool {
    match seen.get(&port).map(|unit| &unit.file) {
        Some(UnitFile::Ours(text)) => !forward_of(port, text).is_some_and(|forward| PortRule::of(&forward).is_empty()),
        _ => true,
    }
}

/// The rules of those forwards that are served.
fn rules(wanted: &BTreeMap<u16, DeclaredForward>, serves: impl Fn(&u16) -> bool) -> Vec<PortRule> {
    wanted.iter().filter(|(port, _)| serves(port)).flat_map(|(_, forward)| PortRule::of(forward)).collect()
}

/// Waits until no other process makes a pass.
fn alone() -> io::Result<Flock<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(LOCK)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| e.into())
}
