//! What `pfwd` prints instead of serving.

use std::{collections::BTreeMap, process::ExitCode};

use crate::{
    dial::netns,
    report::Code,
    spec::{Config, Legs, Listen, Netns, Plan, Upstream},
};

/// `--print-units`: socket units that do the same.
pub(super) fn units(config: &Config) -> ExitCode {
    for unit in config.socket_units("pfwd-") {
        println!("# /etc/systemd/system/{}\n{}", unit.name, unit.text);
    }
    ExitCode::SUCCESS
}

/// `--show-netns`: each namespace of the plan with its path and inode, and what it is for. Fails when one is missing.
pub(super) fn namespaces(plan: &Plan) -> ExitCode {
    let mut uses: BTreeMap<String, (&Netns, Vec<String>)> = BTreeMap::new();
    let legs = plan.forwards.iter().flat_map(|forward| forward.legs.kinds().map(move |leg| (forward, leg)));
    for (forward, leg) in legs {
        let listens = match &leg.listen {
            Listen::Tcp { netns, .. } | Listen::Udp { netns, .. } => netns.as_ref(),
            Listen::Unix { .. } | Listen::Inherited => None,
        };
        let dials = match &leg.upstream {
            Upstream::Tcp { netns, .. } | Upstream::Udp { netns, .. } => netns.as_ref(),
            Upstream::Unix(_) | Upstream::Qrexec(_) => None,
        };
        let text = match &forward.legs {
            range @ Legs::Range { .. } => range.to_string(),
            Legs::One(_) | Legs::Two { .. } => leg.to_string(),
        };
        for netns in listens.into_iter().chain(dials) {
            uses.entry(netns.to_string()).or_insert((netns, Vec::new())).1.push(text.clone());
        }
    }
    let mut missing = false;
    for (name, (netns, legs)) in uses {
        match netns::find(netns) {
            Ok(found) => println!("{name}  {}  {}", found.namespace.path.display(), found.namespace.id),
            Err(trouble) => {
                missing = true;
                println!("{name}  {trouble}");
            }
        }
        legs.iter().for_each(|leg| println!("    {leg}"));
    }
    if missing { Code::Failure.into() } else { ExitCode::SUCCESS }
}
