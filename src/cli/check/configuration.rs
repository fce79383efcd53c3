//! The configuration: its faults, its forwards, and what the machine says about those.

use std::path::PathBuf;

use super::finding::Finding;
use crate::{
    cli::{config::Bad, config::Sources},
    dial::netns::{self, Trouble},
    log::escape,
    spec::{Config, Forward, Listen, Plan, SpecFault, Upstream, unit::Consequence},
};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct CheckedConfig {
    pub(super) config: Config,
    /// The forwards that a start opens, each with its place.
    pub(super) forwards: Vec<(String, Forward)>,
    pub(super) plan: Plan,
    pub(super) findings: Vec<Finding>,
}

/// Reads the configuration, as a start does.
pub(super) fn read(sources: &Sources) -> CheckedConfig {
    let mut checked = CheckedConfig::default();
    match sources.read() {
        Ok((config, plan)) => {
            checked.forwards = plan.forwards.iter().map(|forward| (forward.to_string(), forward.clone())).collect();
            (checked.config, checked.plan) = (config, plan);
        }
        Err(Bad::Faults(faults)) => {
            let cited = |fault: SpecFault| Finding::cited(fault, Consequence::NotServed);
            checked.findings = faults.0.into_iter().map(cited).collect();
        }
        Err(Bad::File(why)) => checked.findings.push(Finding::plain(why, "", Consequence::NotServed)),
    }
    let forwards = checked.forwards.iter();
    checked.findings.extend(forwards.flat_map(|(who, forward)| namespaces(who, forward)));
    checked
}

/// A file that was named.
pub(super) fn file(path: &str, sources: impl Fn(Option<PathBuf>) -> Sources) -> CheckedConfig {
    read(&sources(Some(path.into())))
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
