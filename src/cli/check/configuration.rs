//! The configuration: its faults, its forwards, and what the machine says about those.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::unistd::{getegid, geteuid};

use super::{
    finding::Finding,
    machine,
    meaning::{expanded, kind_of, passed_name},
};
use crate::{
    cli::{
        config::Sources,
        control::Program,
        units::{FoundUnit, Scope},
    },
    dial::netns::{self, Trouble},
    log::escape,
    spec::{Beside, Config, Forward, Listen, Origin, Plan, SocketKind, UnixAddr, Upstream, unit::Consequence},
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
pub(super) fn read(sources: &Sources, sockets: &[(String, SocketKind)], scope: Scope) -> CheckedConfig {
    let loaded = sources.load(&Beside { sockets, no_namespaces: no_namespaces(scope) });
    let mut findings: Vec<Finding> = loaded.faults.into_iter().map(Finding::configured).collect();
    findings.extend(sources.file.as_deref().or_else(|| main_file(&sources.places)).and_then(writable));
    checked(loaded.config, findings, |_| true, scope)
}

/// Reads a file that was named. One in the directory of drop-in files is read as such a file, beside the others.
pub(super) fn read_file(
    file: &Path,
    program: Program,
    sockets: &[(String, SocketKind)],
    scope: Scope,
) -> CheckedConfig {
    let Some((place, name)) = as_drop_in(file) else {
        return read(&(program.sources)(Some(file.to_owned()), scope), sockets, scope);
    };
    let sources = Sources { file: None, places: vec![place], forwards: Vec::new() };
    let loaded = sources.load(&Beside { sockets, no_namespaces: no_namespaces(scope) });
    let here = |origin: &Origin| *origin == Origin::File(name.clone());
    let faults = loaded.faults.into_iter().filter(|found| here(found.fault.origin()));
    let findings = faults.map(Finding::configured).collect();
    checked(loaded.config, findings, here, scope)
}

/// The main file beside which a drop-in file is read, and the name that faults have for the latter.
fn as_drop_in(file: &Path) -> Option<(PathBuf, String)> {
    let parent = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let (dir, name) = (parent.canonicalize().ok()?, file.file_name()?);
    let place = dir.to_str()?.strip_suffix(".d").filter(|place| place.ends_with(".toml"))?;
    let name = dir.join(name);
    name.is_file().then(|| (PathBuf::from(place), name.to_string_lossy().into_owned()))
}

/// The main file of the first place that has one, or a directory of drop-in files.
fn main_file(places: &[PathBuf]) -> Option<&Path> {
    let dir = |place: &Path| PathBuf::from(format!("{}.d", place.display()));
    places.iter().find(|place| place.exists() || dir(place).exists()).map(PathBuf::as_path)
}

/// A warning where others than root and the user of this process can write to a main file.
fn writable(file: &Path) -> Option<Finding> {
    let meta = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
    let (us, our_group) = (geteuid().as_raw(), getegid().as_raw());
    let others = meta.mode() & 0o002 != 0 || (meta.mode() & 0o020 != 0 && ![0, our_group].contains(&meta.gid()));
    let path = file.display();
    let (what, hint) = if others {
        (format!("{path}: other users can write to it, and decide where connections go"), format!("chmod go-w {path}"))
    } else if ![0, us].contains(&meta.uid()) {
        (format!("{path}: it belongs to another user, who decides where connections go"), format!("chown root {path}"))
    } else {
        return None;
    };
    Some(Finding::plain(what, format!("run: {hint}"), Consequence::Served))
}

/// Looks at the forwards of the files that are `asked` about.
fn checked(config: Config, mut findings: Vec<Finding>, asked: impl Fn(&Origin) -> bool, scope: Scope) -> CheckedConfig {
    let mut plan = config.plan();
    let foreign = |forward: &Forward| {
        config.entries().iter().any(|entry| entry.forward() == Some(forward) && !asked(&entry.place().0))
    };
    plan.forwards.retain(|forward| !foreign(forward));
    plan.waiting.retain(|label| config.labelled(label.as_str()).is_some_and(|entry| asked(&entry.place().0)));
    let mut forwards = Vec::new();
    for entry in config.entries() {
        let Some(forward) = entry.forward() else { continue };
        let (origin, line) = entry.place();
        if !asked(&origin) {
            continue;
        }
        let who = match origin {
            Origin::File(_) => format!("{origin}:{line}"),
            _ => origin.to_string(),
        };
        findings.extend(namespaces(&who, forward));
        for leg in forward.legs.iter() {
            findings.extend(obstacle(&who, &leg.listen, scope));
            if let Listen::Unix { addr: addr @ UnixAddr::Abstract(_), .. } = &leg.listen {
                if leg.admit.uids.is_empty() {
                    let what = format!("{who}: every user of this machine can connect to {addr}");
                    findings.push(Finding::plain(what, "use a path, or allow_uid=USER", Consequence::Served));
                }
            }
        }
        forwards.push((who, forward.clone()));
    }
    CheckedConfig { config, forwards, plan, findings }
}

/// Why a service of this scope may enter no network namespace: that of a user runs as whoever asks.
pub(in crate::cli) fn no_namespaces(scope: Scope) -> Option<&'static str> {
    (scope == Scope::User && !netns::permitted()).then_some(netns::NEEDS)
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
    let kind = |read| kind_of(read, &unit.name, scope);
    let sockets = read.iter().filter_map(|read| Some((kind(read)?, address(&read.listening.setting.value))));
    sockets.map(|(kind, address)| (name.clone(), kind, address)).collect()
}

/// What is in the way of a listener that the service opens itself, in its own network namespace.
fn obstacle(who: &str, listen: &Listen, scope: Scope) -> Option<Finding> {
    let own = scope == Scope::User;
    let (what, hint) = match listen {
        Listen::Tcp { addr, netns: None, .. } | Listen::Udp { addr, netns: None } => {
            let refused = machine::port_obstacle(addr.port(), own).map(|what| (what, "take a higher port"));
            let missing =
                || (format!("{addr} is no address of this machine, now"), "`ip address` shows those that are");
            refused.or_else(|| (!machine::has_address(*addr)).then(missing))?
        }
        Listen::Unix { addr: UnixAddr::Path(path), .. } => {
            machine::obstacle(path, own).map(|found| (found.what, found.hint))?
        }
        Listen::Tcp { .. } | Listen::Udp { .. } | Listen::Unix { .. } | Listen::Inherited => return None,
    };
    Some(Finding::plain(format!("{who}: {what}"), hint, Consequence::Retried))
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
        let wanted = listens.map(|netns| (netns, true)).into_iter().chain(dials.map(|netns| (netns, false)));
        for (wanted, listens) in wanted {
            if let Err(Trouble::Missing(_)) = netns::find(wanted) {
                let name = wanted.to_string();
                let near = netns::nearest(&name).map(|near| format!("did you mean {}?", escape(near.as_bytes())));
                let mut hint =
                    near.unwrap_or_else(|| "`ip netns list` shows those that exist; it may come later".to_owned());
                if listens {
                    hint += "; until then the listener waits, and `status` exits with 1";
                }
                let what = format!("{who}: there is no network namespace {name} now");
                found.push(Finding::plain(what, hint, Consequence::Served));
            }
        }
    }
    found
}
