//! `--forward` arguments over the forwards of the files.

use std::path::Path;

use super::{
    config::ConfigEntry,
    endpoint::UnixAddr,
    error::SpecFault,
    keys::{At, Keys},
};

/// Lays arguments over the entries of the files. Each replaces the keys it gives in the entry with the same `label`,
/// else the same `listen` or `udp_listen`, else the same *served* `uds`; otherwise it is one more forward. `namespace`
/// and `setns_path` name the same thing, so either replaces both. What is wrong with an argument is wrong with the entry:
/// it may be a limit that nobody could read.
pub(super) fn overlay(entries: &mut Vec<ConfigEntry>, arguments: &[(Keys, Vec<SpecFault>)], uds_dir: Option<&Path>) {
    let in_files = entries.len();
    for (forward, faults) in arguments {
        let Some(index) = entry_of(forward, &entries[..in_files], uds_dir) else {
            entries.push(ConfigEntry::new(None, forward.clone(), faults.clone()));
            continue;
        };
        let entry = &mut entries[index];
        let keys = &mut entry.keys;
        if forward.namespace.is_some() || forward.setns_path.is_some() {
            (keys.namespace, keys.setns_path) = (None, None);
        }
        keys.incomplete |= forward.incomplete;
        keys.replace(forward);
        entry.refused.extend_from_slice(faults);
    }
}

/// The entry that a `--forward` is about.
fn entry_of(forward: &Keys, entries: &[ConfigEntry], uds_dir: Option<&Path>) -> Option<usize> {
    let find = |same: &dyn Fn(&Keys) -> bool| entries.iter().position(|entry| same(&entry.keys));
    let absolute = |uds: &At<UnixAddr>| uds.value().under(uds_dir).ok();
    let by_label = |entry: &Keys| forward.label.is_some() && entry.label == forward.label;
    let by_listen = |entry: &Keys| {
        let namespace = forward.listen_namespace.is_none() || entry.listen_namespace == forward.listen_namespace;
        let stream = forward.listen.is_some() && entry.listen == forward.listen;
        let datagram = forward.udp_listen.is_some() && entry.udp_listen == forward.udp_listen;
        (stream || datagram) && namespace
    };
    // Beside a `listen` and without a target, the `uds` of an argument is one to be dialled.
    let uds = forward.uds.as_ref().filter(|_| forward.leads_on() || forward.listen.is_none());
    let uds = uds.and_then(absolute);
    let by_uds = |entry: &Keys| uds.is_some() && entry.leads_on() && entry.uds.as_ref().and_then(absolute) == uds;
    find(&by_label).or_else(|| find(&by_listen)).or_else(|| find(&by_uds))
}

#[cfg(test)]
mod tests;
