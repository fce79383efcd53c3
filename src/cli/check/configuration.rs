//! The configuration: its faults, its forwards, and what the machine says about those.

use super::{
    finding::Finding,
    meaning::{expanded, passed_name},
};
use crate::{
    cli::{
        config::Sources,
        units::{FoundUnit, Scope},
    },
    dial::netns::{self, Trouble},
    log::escape,
    spec::{Beside, Config, Forward, Listen, Origin, Plan, SocketKind, Upstream, unit::Consequence},
};

/// The configuration with its forwards and everything that was found about them.
#[derive(Debug, Default)]
pub(super) struct CheckedConfig {
    pub(super) config: Config,
    /// The forwards that a start opens, each with its place.
    pub(super) forwards: Vec<(String, Forward)>,
    pub(super) plan: Plan,
    pub(super) findings: Vec<Finding>,
}

/// Reads the configuration as a first start does, beside the sockets that the service would be passed.
pub(super) fn read(sources: &Sources, sockets: &[(String, SocketKind)]) -> CheckedConfig {
    let loaded = sources.load(&Beside { sockets, no_namespaces: None });
    let mut findings: Vec<Finding> = loaded.faults.into_iter().map(Finding::configured).collect();
    let (config, plan) = (loaded.config.clone(), loaded.config.plan());
    let mut forwards = Vec::new();
    for entry in config.entries() {
        let Some(forward) = entry.forward() else { continue };
        let (origin, line) = entry.place();
        let who = match origin {
            Origin::File(_) => format!("{origin}:{line}"),
            _ => origin.to_string(),
        };
        findings.extend(namespaces(&who, forward));
        forwards.push((who, forward.clone()));
    }
    CheckedConfig { config, forwards, plan, findings }
}

/// The sockets of units, as the service would be passed them.
pub(in crate::cli) fn sockets<'a>(
    units: impl IntoIterator<Item = &'a FoundUnit>,
    scope: Scope,
) -> Vec<(String, SocketKind)> {
    let all = units.into_iter().flat_map(|unit| named_sockets(unit, scope));
    all.map(|(name, kind, _)| (name, kind)).collect()
}

/// The sockets of a unit: the name that systemd passes, the kind, and the address.
pub(in crate::cli) fn named_sockets(unit: &FoundUnit, scope: Scope) -> Vec<(String, SocketKind, String)> {
    let name = passed_name(unit, scope);
    let address = |text: &str| expanded(text, &unit.name, scope);
    let read = unit.unit.addresses(address);
    let sockets = read.iter().filter_map(|read| Some((read.kind()?, address(&read.listening.setting.value))));
    sockets.map(|(kind, address)| (name.clone(), kind, address)).collect()
}

/// Namespaces of a forward that do not exist now. They may come later, so that is no fault.
pub(super) fn namespaces(who: &str, forward: &Forward) -> Vec<Finding> {
    let mut found = Vec::new();
    for leg in forward.legs.iter() {
        let listens = match &leg.listen {
            Listen::Tcp { netns, .. } | Listen::Udp { netns, .. } => netns.as_ref(),
            Listen::Unix { .. } | Listen::Inherited => None,
        };
        let dials = match &leg.upstream {
            Upstream::Tcp { netns, .. } | Upstream::Udp { netns, .. } => netns.as_ref(),
            Upstream::Unix(_) | Upstream::Qrexec(_) => None,
        };
        for wanted in listens.into_iter().chain(dials) {
            if let Err(Trouble::Missing(_)) = netns::find(wanted) {
                let name = wanted.to_string();
                let near = netns::nearest(&name).map(|near| format!("did you mean {}?", escape(near.as_bytes())));
                let hint =
                    near.unwrap_or_else(|| "`ip netns list` shows those that exist; it may come later".to_owned());
                let what = format!("{who}: there is no network namespace {name} now");
                found.push(Finding::plain(what, hint, Consequence::Served));
            }
        }
    }
    found
}
