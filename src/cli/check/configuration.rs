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
    spec::{
        self, Beside, Config, ConfigEntry, Forward, Host, HostPort, Listen, Origin, Plan, SocketKind, UnixAddr,
        Upstream, fdname, meant_service, unit::Consequence,
    },
    systemd::startable::StartableUnits,
};

/// Warnings of files that are not read, at most.
const NOT_READ: usize = 10;

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
pub(super) fn read(
    sources: &Sources,
    sockets: &[(String, SocketKind)],
    scope: Scope,
    units: &StartableUnits,
) -> CheckedConfig {
    let loaded = sources.load(&Beside { sockets, no_namespaces: no_namespaces(scope) }, units);
    let mut findings: Vec<Finding> = loaded.faults.into_iter().map(Finding::configured).collect();
    let place = main_file(&sources.places).filter(|_| sources.file.is_none());
    findings.extend(sources.file.as_deref().or(place).and_then(writable));
    findings.extend(place.into_iter().flat_map(not_read));
    checked(loaded.config, findings, |_| true, scope)
}

/// Reads a file that was named. One in the directory of drop-in files is read as such a file, beside the others.
pub(super) fn read_file(
    file: &Path,
    program: Program,
    sockets: &[(String, SocketKind)],
    scope: Scope,
    units: &StartableUnits,
) -> CheckedConfig {
    let Some((place, name)) = as_drop_in(file) else {
        return read(&(program.sources)(Some(file.to_owned()), scope), sockets, scope, units);
    };
    let sources = Sources { file: None, places: vec![place], forwards: Vec::new() };
    let loaded = sources.load(&Beside { sockets, no_namespaces: no_namespaces(scope) }, units);
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
    places.iter().find(|place| place.exists() || directory(place).exists()).map(PathBuf::as_path)
}

/// The directory of the drop-in files of a place.
fn directory(place: &Path) -> PathBuf {
    PathBuf::from(format!("{}.d", place.display()))
}

/// Warnings of files in the directory of drop-in files whose names are none of drop-in files. What editors and package
/// managers leave is meant to be left alone.
fn not_read(place: &Path) -> Vec<Finding> {
    let directory = directory(place);
    let names = fs::read_dir(&directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let left_alone = |name: &String| {
        name.starts_with(['.', '#'])
            || name.starts_with("README")
            || name.ends_with(['~', '#'])
            || [".toml", ".bak", ".swp"].iter().any(|end| name.ends_with(end))
            || [".dpkg-", ".rpm", ".ucf-"].iter().any(|part| name.contains(part))
    };
    names.retain(|name| !left_alone(name));
    names.sort_unstable();
    let warn = |name: &String| {
        let what = format!("{}: it is not read", directory.join(name).display());
        Finding::plain(what, "names of drop-in files end in .toml", Consequence::Served)
    };
    names.iter().take(NOT_READ).map(warn).collect()
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
    let plan = config.plan_of(|entry| asked(&entry.place().0));
    let mut forwards = Vec::new();
    for entry in config.entries() {
        let Some(forward) = entry.forward() else { continue };
        if !asked(&entry.place().0) {
            continue;
        }
        let who = written(entry);
        findings.extend(upstreams(&who, forward));
        // The lowest port stands for the range: a foreign address or a privileged port is an obstacle for it, too.
        for leg in forward.legs.kinds() {
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

/// Faults of the forwards that were asked about whose listeners would leave no descriptors for sessions, beside the
/// `sockets` that the service is passed. `limit` gives the limit of the service, where it is known.
pub(super) fn without_descriptors(
    checked: &CheckedConfig,
    sockets: &[(String, SocketKind)],
    limit: impl FnOnce() -> Option<u64>,
) -> Vec<Finding> {
    if checked.plan.forwards.is_empty() {
        return Vec::new(); // so that no manager is asked
    }
    let Some(limit) = limit() else { return Vec::new() };
    let behind = |(name, kind): &(String, SocketKind)| fdname::resolve(name, *kind, &checked.config).ok();
    let behind: Vec<Forward> = sockets.iter().filter_map(behind).collect();
    let legs = behind.iter().flat_map(|forward| forward.legs.iter());
    let others = spec::beside_forwards(sockets.len(), legs.map(|leg| &leg.listen));
    // Those that were not asked about take descriptors, too.
    let entries: Vec<_> = checked.config.entries().iter().filter(|entry| entry.forward().is_some()).collect();
    let forwards = entries.iter().filter_map(|entry| entry.forward());
    let fault = |(index, why): (usize, String)| {
        let who = written(entries[index]);
        let asked = checked.forwards.iter().any(|(asked, _)| *asked == who);
        asked.then(|| Finding::plain(format!("{who}: {why}"), "", Consequence::NotServed))
    };
    spec::without_descriptors(forwards, others, |_| 0, limit).into_iter().filter_map(fault).collect()
}

/// Where an entry is written.
fn written(entry: &ConfigEntry) -> String {
    match entry.place() {
        (origin @ Origin::File(_), line) => format!("{origin}:{line}"),
        (origin, _) => origin.to_string(),
    }
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
            let refused = machine::port_obstacle(addr.addr().port(), own).map(|what| (what, "take a higher port"));
            let missing =
                || (format!("{addr} is no address of this machine, now"), "`ip address` shows those that are");
            refused.or_else(|| (addr.zone().is_none() && !machine::has_address(addr.addr())).then(missing))?
        }
        Listen::Unix { addr: UnixAddr::Path(path), .. } => {
            machine::obstacle(path, own).map(|found| (found.what, found.hint))?
        }
        Listen::Tcp { .. } | Listen::Udp { .. } | Listen::Unix { .. } | Listen::Inherited => return None,
    };
    Some(Finding::plain(format!("{who}: {what}"), hint, Consequence::Retried))
}

/// What its author should know of where a forward leads.
pub(super) fn upstreams(who: &str, forward: &Forward) -> Vec<Finding> {
    let mut found = namespaces(who, forward);
    for leg in forward.legs.kinds() {
        match &leg.upstream {
            Upstream::Qrexec(call) => found.extend(meant_service(&call.service).map(|meant| {
                let service = call.service.split('+').next().unwrap_or_default();
                let what = format!("{who}: Qubes OS has no service {service}");
                Finding::plain(what, format!("did you mean {meant}?"), Consequence::Served)
            })),
            Upstream::Udp { addr: HostPort { host: Host::Ip(ip), .. }, netns: None } if machine::is_broadcast(*ip) => {
                let what = format!("{who}: {ip} is a broadcast address, and the kernel refuses datagrams to it");
                found.push(Finding::plain(what, "write the address of one host", Consequence::Served));
            }
            Upstream::Udp { .. } | Upstream::Tcp { .. } | Upstream::Unix(_) => {}
        }
    }
    found
}

/// Namespaces of a forward that do not exist now. They may come later, so that is no fault.
fn namespaces(who: &str, forward: &Forward) -> Vec<Finding> {
    let mut found = Vec::new();
    for leg in forward.legs.kinds() {
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
