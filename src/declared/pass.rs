//! One pass: what is declared is compared with what is there, and the steps between them are taken.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{nft, ruleset::PortRule, steps::Steps, units};
use crate::spec::declared::{DeclaredForward, unit_of};

/// What one pass did, and what it could not do.
#[derive(Debug, Default)]
pub(super) struct PassDone {
    /// Listeners that were opened, or opened again for another value.
    pub(super) opened: Vec<u16>,
    /// Listeners that are gone.
    pub(super) closed: Vec<u16>,
    /// What could not be done, each in a sentence.
    pub(super) failed: Vec<String>,
}

/// Makes units and rules those of `wanted`.
pub(super) fn pass(wanted: &BTreeMap<u16, DeclaredForward>) -> PassDone {
    let mut passed = PassDone::default();
    if let Err(e) = take(wanted, &mut passed) {
        passed.failed.push(format!("what dom0 declares is not served: {e}"));
    }
    passed
}

fn take(wanted: &BTreeMap<u16, DeclaredForward>, passed: &mut PassDone) -> io::Result<()> {
    let texts = wanted.iter().map(|(port, forward)| (*port, forward.unit_text())).collect();
    let seen = units::look(wanted.keys().copied())?;
    let steps = Steps::between(&texts, &seen);
    for (port, why) in &steps.refused {
        passed.failed.push(format!("port {port} is declared in dom0 and not served: {why}"));
    }
    if !steps.is_empty() {
        // Rules first, so that no rule is left of a port that nobody holds.
        let stays = |port: &u16| seen.get(port).is_some_and(|unit| unit.active) && !steps.stop.contains(port);
        passed.failed.extend(nft::settle(&rules(wanted, stays)));
        let stopped = if steps.stop.is_empty() { Ok(()) } else { units::order("stop", &steps.stop) };
        if stopped.is_ok() {
            for port in &steps.delete {
                units::delete(*port)?;
                passed.closed.push(*port);
            }
            for (port, text) in &steps.write {
                units::write(*port, text)?;
            }
        }
        if steps.reload {
            units::order("daemon-reload", &[])?;
        }
        stopped?;
        if !steps.start.is_empty() {
            // Which of them failed is seen below, and why stands in the journal.
            let _ = units::order("start", &steps.start);
        }
    }
    let now = if steps.is_empty() { seen } else { units::look(wanted.keys().copied())? };
    let serves = |port: &u16| now.get(port).is_some_and(|unit| unit.active && !refused(&steps, port));
    let (opened, failed): (Vec<u16>, Vec<u16>) = steps.start.iter().partition(|port| serves(port));
    passed.opened = opened;
    for port in failed {
        let unit = unit_of(port);
        passed.failed.push(format!("{unit} does not start; its journal says why: journalctl -u {unit}"));
    }
    passed.failed.extend(nft::settle(&rules(wanted, serves)));
    let mut told = BTreeSet::new();
    passed.failed.retain(|sentence| told.insert(sentence.clone()));
    Ok(())
}

fn refused(steps: &Steps, port: &u16) -> bool {
    steps.refused.iter().any(|(refused, _)| refused == port)
}

/// The rules of those forwards that are served.
fn rules(wanted: &BTreeMap<u16, DeclaredForward>, serves: impl Fn(&u16) -> bool) -> Vec<PortRule> {
    wanted.iter().filter(|(port, _)| serves(port)).flat_map(|(_, forward)| PortRule::of(forward)).collect()
}
