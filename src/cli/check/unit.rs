//! One socket unit: what each of its listeners leads to, and what is wrong with it.

use std::{net::SocketAddr, path::Path};

use nix::net::if_::if_nametoindex;

use super::{
    configuration,
    finding::Finding,
    machine,
    meaning::{expanded, is_for_metrics, is_label, is_vague, kind_of, meaning},
};
use crate::{
    cli::{
        control::Program,
        units::{FoundUnit, Scope},
    },
    control::METRICS_UPSTREAM,
    log::escape,
    spec::{
        Config, Forward, ListenPlace, Netns, PlacedListener, SocketKind, SpecFault, UnixAddr, Upstream, policy_line,
        unit::{Consequence, ListenAddress, ReadListening, repair},
    },
};

/// A listener that systemd can open, for comparing it with others.
#[derive(Clone, Debug)]
pub(super) struct UnitListener {
    /// The unit and the line, for people.
    pub(super) who: String,
    /// The unit.
    pub(super) unit: String,
    /// The interface that it binds its socket to.
    pub(super) device: Option<String>,
    /// How many calls its qube may have, where that is written.
    pub(super) max_calls: Option<u32>,
}

/// What was found about a unit.
#[derive(Debug, Default)]
pub(super) struct UnitReport {
    /// For people: where each listener leads.
    pub(super) lines: Vec<String>,
    pub(super) findings: Vec<Finding>,
    /// What the machine says about the places where it listens.
    pub(super) places: Vec<Finding>,
    pub(super) listeners: Vec<PlacedListener<UnitListener>>,
    /// Listeners whose name means something.
    pub(super) served: usize,
}

/// Looks at a unit of `program`.
pub(super) fn look(found: &FoundUnit, config: &Config, program: Program, scope: Scope) -> UnitReport {
    let mut report = UnitReport::default();
    report.findings.extend(found.unit.judge().into_iter().map(Finding::from));
    for (file, why) in &found.unread {
        let what = format!("{}: {why}", file.display());
        report.findings.push(Finding::plain(what, "correct or remove it", Consequence::DropInLeftOut));
    }
    belonging(found, program, scope, &mut report);
    let address_of = |text: &str| expanded(text, &found.name, scope);
    let addresses = found.unit.addresses(address_of);
    if addresses.is_empty() {
        let what = format!("{} listens nowhere", found.name);
        let hint = "write ListenStream=127.0.0.1:PORT or ListenStream=/PATH below [Socket]";
        report.findings.push(Finding::plain(what, hint, Consequence::Refused));
    }
    if let Some((written, repaired)) = found.unit.fd_name().and_then(|name| Some((name, repair(&name.value)?))) {
        // The generator writes the repaired name, so it works as it stands; but it is better said than guessed.
        let (file, line) = (escape(written.file.as_bytes()), written.line);
        report.lines.push(format!("{file}:{line}: systemd takes no colon in a name; used is"));
        report.lines.push(format!("  FileDescriptorName={repaired}"));
    }
    let mut told = Vec::new();
    for read in &addresses {
        listener(found, read, config, scope, &mut told, &mut report);
    }
    report
}

/// Whether systemd and the service know the unit for theirs.
fn belonging(found: &FoundUnit, program: Program, scope: Scope, report: &mut UnitReport) {
    let (name, service) = (&found.name, format!("{}.service", program.name));
    let ours = name.starts_with(program.prefix);
    match found.unit.service() {
        Some(other) if other.value != service => {
            let what = format!("the socket starts {}, and not {service}", other.value);
            let hint = format!("leave the line out: the name of the unit says {service} already");
            report.findings.push(Finding::cited(other.fault(what, hint), Consequence::NotServed));
        }
        None if !ours => {
            let what = format!(
                "{name}: the name does not begin with {}, so the socket does not start {service}",
                program.prefix
            );
            let stem = name.strip_suffix(".socket").unwrap_or(name);
            let hint = format!("rename the file to {}{stem}.socket", program.prefix);
            report.findings.push(Finding::plain(what, hint, Consequence::NotServed));
        }
        _ => {}
    }
    let Some(dir) = found.path.parent() else { return };
    let known = |dir: &Path| dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if !scope.search_path().iter().any(|read| known(read) == known(dir)) {
        let home = scope.home().map(|home| home.display().to_string()).unwrap_or_default();
        let what = format!("systemd reads no units in {}", dir.display());
        let hint = format!("put the file into {home}");
        report.findings.push(Finding::plain(what, hint, Consequence::Refused));
    } else if scope == Scope::System && machine::is_forgotten(&found.path, Path::new("/")) {
        let what = format!("{}: this is an app qube, where the file is gone after a reboot", found.path.display());
        let hint = "put it into the template of this qube, or list it for bind-dirs; a unit of the user stays";
        report.findings.push(Finding::plain(what, hint, Consequence::Served));
    }
}

/// Looks at one line that listens. `told`: faults of the name that were told already.
fn listener(
    found: &FoundUnit,
    read: &ReadListening<'_>,
    config: &Config,
    scope: Scope,
    told: &mut Vec<SpecFault>,
    report: &mut UnitReport,
) {
    let setting = read.listening.setting;
    let vague = is_vague(&setting.value, &found.name, scope);
    let address = match &read.address {
        // What systemd puts in the place of a specifier is not known here, so neither is the address.
        _ if vague => None,
        Ok(address) => Some(address),
        Err(fault) => {
            report.findings.push(Finding::cited((**fault).clone(), Consequence::LeftOut));
            return;
        }
    };
    let Some(kind) = kind_of(read, &found.name, scope) else {
        let what = format!("{} is not forwarded: sockets of this kind are not served", setting.key);
        report.findings.push(Finding::cited(setting.fault(what, "use ListenStream="), Consequence::NotServed));
        return;
    };
    let shown = escape(expanded(&setting.value, &found.name, scope).as_bytes());
    let forward = match meaning(found, kind, config, scope) {
        Ok(forward) => {
            report.served += 1;
            let upstreams: Vec<_> = forward.legs.iter().map(|leg| leg.upstream.to_string()).collect();
            report.lines.push(format!("{shown} -> {}", escape(upstreams.join(" -> ").as_bytes())));
            let written = found.unit.fd_name().unwrap_or(setting);
            let missing = configuration::upstreams(&format!("{}:{}", written.file, written.line), &forward);
            // Each listener of the unit has the same name: said once.
            let is_new = |finding: &Finding| !report.findings.iter().any(|old| old.to_string() == finding.to_string());
            let missing: Vec<_> = missing.into_iter().filter(is_new).collect();
            report.findings.extend(missing);
            if let Upstream::Qrexec(call) = &forward.legs.front().upstream {
                report.lines.push(format!("    dom0 policy: {}", policy_line(call, None)));
            }
            Some(forward)
        }
        Err(_) if is_for_metrics(found, kind) => {
            report.served += 1;
            report.lines.push(format!("{shown} -> {METRICS_UPSTREAM}"));
            None
        }
        Err(faults) => {
            // The same name beside another address has the same faults: said once.
            for fault in faults.0.into_iter().filter(|fault| !told.contains(fault)).collect::<Vec<_>>() {
                told.push(fault.clone());
                let label = found.unit.fd_name().is_some() && is_label(found, scope);
                let consequence = if label { Consequence::LabelGone } else { Consequence::NotServed };
                report.findings.push(Finding::cited(fault, consequence));
            }
            None
        }
    };
    let Some(address) = address else { return };
    place(found, read, address, forward.as_ref(), scope, report);
    let max_calls = forward.as_ref().and_then(|forward| forward.options.max_calls);
    let upstream = forward.map(|forward| forward.legs.front().upstream.clone());
    if let Some(place) = place_of(found, address, kind) {
        let device = found.unit.last("Socket", "BindToDevice").map(|device| device.value.clone());
        let device = device.filter(|device| !device.is_empty());
        let who = format!("{} ({}:{})", found.name, setting.file, setting.line);
        let what = UnitListener { who, unit: found.name.clone(), device, max_calls };
        report.listeners.push(PlacedListener { what, place, upstream });
    }
}

/// What the machine says about the place.
fn place(
    found: &FoundUnit,
    read: &ReadListening<'_>,
    address: &ListenAddress,
    forward: Option<&Forward>,
    scope: Scope,
    report: &mut UnitReport,
) {
    let setting = read.listening.setting;
    let mut put = |what: String, hint: &str, consequence| {
        report.places.push(Finding::cited(setting.fault(what, hint), consequence));
    };
    let limited = forward.is_some_and(|forward| !forward.legs.front().admit.uids.is_empty());
    let elsewhere = found.unit.last("Socket", "NetworkNamespacePath").is_some();
    match address {
        ListenAddress::Ip { addr, bare, zone } => {
            let port = addr.port();
            if *bare {
                let what = format!("port {port} without an address is open on every interface of this machine");
                put(
                    what,
                    &format!("write: {}=127.0.0.1:{port}, or [::]:{port} to listen on every interface", setting.key),
                    Consequence::Served,
                );
            }
            if let Some(what) = machine::port_obstacle(port, scope == Scope::User) {
                put(what, "take a higher port, or make it a system unit", Consequence::CannotListen);
            }
            if zone.is_none() && matches!(addr, SocketAddr::V6(addr) if addr.ip().is_unicast_link_local()) {
                let what = format!("{} is a link-local address, and needs its interface", addr.ip());
                let hint = format!("write: {}={addr}%%eth0, with the interface's name", setting.key);
                put(what, &hint, Consequence::CannotListen);
            }
            let any = found.unit.last("Socket", "FreeBind").is_some_and(|free| free.is_yes());
            if !elsewhere && !any && zone.is_none() && !machine::has_address(*addr) {
                let what = format!("{} is no address of this machine, now", addr.ip());
                put(
                    what,
                    "`ip address` shows those that are; FreeBind=yes takes one that comes later",
                    Consequence::CannotListen,
                );
            }
        }
        ListenAddress::Path(path) => {
            if let Some(found) = machine::obstacle(path, scope == Scope::User) {
                let consequence = if found.is_file { Consequence::Deletes } else { Consequence::CannotListen };
                put(found.what, found.hint, consequence);
            }
            let mode = |key: &str, default| {
                let written = found.unit.last("Socket", key).and_then(|mode| u32::from_str_radix(&mode.value, 8).ok());
                written.unwrap_or(default)
            };
            // The defaults of systemd.socket(5).
            let (own, dirs) = (mode("SocketMode", 0o666), mode("DirectoryMode", 0o755));
            let group = found.unit.last("Socket", "SocketGroup").filter(|group| !group.value.is_empty());
            if let Some(group) = group.filter(|_| !limited && own & 0o020 != 0 && own & 0o002 == 0) {
                let what = format!("every member of the group {} can connect (mode {own:04o})", group.value);
                put(what, "if that is too many: SocketMode=0600, or allow_uid=USER", Consequence::Served);
            }
            if !limited && machine::is_open_to_all(path, own, dirs) {
                let what =
                    format!("every user of this machine can connect (mode {own:04o}), and is served as its owner is");
                put(what, "add below [Socket]: SocketMode=0600, or allow_uid=USER to the name", Consequence::Served);
            }
        }
        ListenAddress::Abstract(name) if !limited => {
            let what = format!("every user of this machine can connect to @{name}, and is served as its owner is");
            put(what, "use %t/NAME.sock with SocketMode=0600, or add allow_uid=USER to the name", Consequence::Served);
        }
        ListenAddress::Abstract(_) | ListenAddress::Vsock => {}
    }
}

/// The place, as the kernel compares it with others.
fn place_of(found: &FoundUnit, address: &ListenAddress, kind: SocketKind) -> Option<ListenPlace> {
    let only_v6 = found.unit.last("Socket", "BindIPv6Only").is_some_and(|only| only.value == "ipv6-only");
    let shared = found.unit.last("Socket", "ReusePort").is_some_and(|reuse| reuse.is_yes());
    let netns = found.unit.last("Socket", "NetworkNamespacePath").map(|path| Netns::Path(path.value.clone().into()));
    match address {
        ListenAddress::Ip { addr, zone, .. } if !shared => {
            let mut addr = *addr;
            if let (SocketAddr::V6(addr), Some(zone)) = (&mut addr, zone) {
                addr.set_scope_id(zone.parse().or_else(|_| if_nametoindex(zone.as_str())).ok()?);
            }
            Some(ListenPlace::Port { addr, zone: None, datagrams: kind == SocketKind::Udp, netns, only_v6 })
        }
        ListenAddress::Path(path) => Some(ListenPlace::Unix(UnixAddr::Path(path.clone()))),
        ListenAddress::Abstract(name) => Some(ListenPlace::Unix(UnixAddr::Abstract(name.clone().into_bytes()))),
        ListenAddress::Ip { .. } | ListenAddress::Vsock => None,
    }
}
