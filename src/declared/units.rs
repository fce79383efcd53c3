//! The socket units of declarations: their files, and what systemd knows of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::steps::{SeenUnit, UnitFile};
use crate::{
    spec::declared::{is_unit_of, port_of, unit_of},
    sys::file,
    systemd::{shown::ShownUnit, systemctl::Scope},
};

/// Where units are that vanish at a reboot (systemd.unit(5)).
pub(super) const DIRECTORY: &str = "/run/systemd/system";
/// The longest file that can be ours, in bytes.
const LONGEST: u64 = 4096;
/// How long a question to systemd may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is there for these ports and for all that have a file.
///
/// # Errors
/// The directory cannot be read; systemd does not answer.
pub(super) fn look(wanted: impl Iterator<Item = u16>) -> io::Result<BTreeMap<u16, SeenUnit>> {
    let mut ports: BTreeSet<u16> = wanted.collect();
    for entry in fs::read_dir(DIRECTORY)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        ports.extend(port_of(name));
        // Left by a process that was killed while it wrote.
        let unfinished =
            name.strip_suffix(".tmp").and_then(|name| name.rsplit_once('.')).and_then(|(name, _)| port_of(name));
        if unfinished.is_some() {
            fs::remove_file(Path::new(DIRECTORY).join(name))?;
        }
    }
    if ports.is_empty() {
        return Ok(BTreeMap::new());
    }
    let units: Vec<String> = ports.iter().copied().map(unit_of).collect();
    let mut arguments = vec!["show", "--property=LoadState,ActiveState,NeedDaemonReload,FragmentPath", "--"];
    arguments.extend(units.iter().map(String::as_str));
    let answer = Scope::System.ask(&arguments, PATIENCE)?;
    let shown = ShownUnit::read_all(&answer.text);
    if !answer.status.success() || shown.len() != units.len() {
        return Err(io::Error::other("systemd does not show the units"));
    }
    Ok(ports.into_iter().zip(shown).map(|(port, shown)| (port, seen(port, &shown))).collect())
}

fn seen(port: u16, shown: &ShownUnit) -> SeenUnit {
    let value = |property| shown.last(property).unwrap_or_default();
    let (path, fragment) = (path(port), value("FragmentPath"));
    let file = match file::read(&path, LONGEST) {
        _ if value("LoadState") == "masked" => UnitFile::Foreign(format!("{} is masked", unit_of(port))),
        _ if !fragment.is_empty() && Path::new(&fragment) != path => {
            UnitFile::Foreign(format!("{fragment} is a unit of the same name"))
        }
        Ok(text) => match String::from_utf8(text).ok().filter(|text| is_unit_of(port, text)) {
            Some(text) => UnitFile::Ours(text),
            None => UnitFile::Foreign(format!("{} is not as this service writes it", path.display())),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => UnitFile::None,
        Err(e) => UnitFile::Foreign(format!("{}: {e}", path.display())),
    };
    let active = value("ActiveState") == "active";
    SeenUnit { file, active, stale: value("NeedDaemonReload") == "yes" || value("LoadState") != "loaded" }
}

fn path(port: u16) -> PathBuf {
    Path::new(DIRECTORY).join(unit_of(port))
}

/// Writes the file of a port.
///
/// # Errors
/// What the file system says.
pub(super) fn write(port: u16, text: &str) -> io::Result<()> {
    file::replace(&path(port), 0o644, text.as_bytes())
}

/// Deletes the file of a port.
///
/// # Errors
/// What the file system says.
pub(super) fn delete(port: u16) -> io::Result<()> {
    fs::remove_file(path(port))
}

/// Has systemd do something with the units of these ports; what it says about a failure goes to the journal.
///
/// # Errors
/// systemctl cannot be run, fails, or does not end in time.
pub(super) fn order(verb: &str, ports: &[u16]) -> io::Result<()> {
    let units: Vec<String> = ports.iter().copied().map(unit_of).collect();
    let mut arguments = vec![verb];
    if !units.is_empty() {
        arguments.push("--");
        arguments.extend(units.iter().map(String::as_str));
    }
    let status = Scope::System.order(&arguments)?;
    let failed = || io::Error::other(format!("systemctl {}: {status}", arguments.join(" ")));
    if status.success() { Ok(()) } else { Err(failed()) }
}
