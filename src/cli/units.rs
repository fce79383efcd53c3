//! Socket units as systemd finds them: the search path, a unit with its drop-ins, and which of them are ours.
//!
//! The order of directories is that of systemd.unit(5) "Unit File Load Path". It is computed here and not asked of
//! `systemctl`, because the generator runs before the manager answers anybody.

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::{Path, PathBuf},
};

pub(super) use crate::systemd::systemctl::Scope;
use crate::{
    spec::{PREFIXES, fdname, unit::Unit},
    sys,
    systemd::systemctl::user_runtime_directory,
};

/// A unit file above this size is a mistake, in bytes.
const LIMIT: u64 = 1 << 20;

impl Scope {
    /// What `systemctl` needs to be told, followed by a blank.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::User => "--user ",
            Self::System => "",
        }
    }

    /// Where an administrator's (a user's) own units are written.
    pub(super) fn home(self) -> Option<PathBuf> {
        match self {
            Self::System => Some("/etc/systemd/system".into()),
            Self::User => Some(xdg("XDG_CONFIG_HOME", ".config")?.join("systemd/user")),
        }
    }

    /// The directories in which units are looked for, the strongest first. Those of generators are left out: what
    /// they hold follows from the others.
    pub(super) fn search_path(self) -> Vec<PathBuf> {
        // An empty last element stands for the usual path (systemd.unit(5)).
        let given = env::var("SYSTEMD_UNIT_PATH").unwrap_or_default();
        let usual = given.is_empty() || given.ends_with(':');
        let mut dirs: Vec<PathBuf> = given.split(':').filter(|dir| !dir.is_empty()).map(PathBuf::from).collect();
        if usual {
            dirs.append(&mut self.usual_search_path());
        }
        let mut seen = Vec::new();
        dirs.into_iter().filter(|dir| dir.is_absolute() && is_new(dir, &mut seen)).collect()
    }

    fn usual_search_path(self) -> Vec<PathBuf> {
        match self {
            Self::System => [
                "/etc/systemd/system.control",
                "/run/systemd/system.control",
                "/run/systemd/transient",
                "/etc/systemd/system",
                "/run/systemd/system",
                "/usr/local/lib/systemd/system",
                "/usr/lib/systemd/system",
                "/lib/systemd/system",
            ]
            .map(PathBuf::from)
            .to_vec(),
            Self::User => user_search_path(),
        }
    }
}

/// Whether a directory was not there before, also by another name: `/lib` is `/usr/lib` on merged systems.
fn is_new(dir: &Path, seen: &mut Vec<PathBuf>) -> bool {
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let new = !seen.contains(&real);
    if new {
        seen.push(real);
    }
    new
}

fn user_search_path() -> Vec<PathBuf> {
    let config = xdg("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("systemd"));
    let data = xdg("XDG_DATA_HOME", ".local/share").map(|dir| dir.join("systemd"));
    let runtime = Some(user_runtime_directory().join("systemd"));
    let list = |name: &str, default: &str| {
        let dirs = env::var(name).ok().filter(|dirs| !dirs.is_empty()).unwrap_or_else(|| default.to_owned());
        dirs.split(':').map(|dir| Path::new(dir).join("systemd/user")).collect::<Vec<_>>()
    };
    let mut dirs = Vec::new();
    dirs.extend(config.iter().map(|dir| dir.join("user.control")));
    dirs.extend(runtime.iter().map(|dir| dir.join("user.control")));
    dirs.extend(runtime.iter().map(|dir| dir.join("transient")));
    dirs.extend(config.iter().map(|dir| dir.join("user")));
    dirs.extend(list("XDG_CONFIG_DIRS", "/etc/xdg"));
    dirs.push("/etc/systemd/user".into());
    dirs.extend(runtime.iter().map(|dir| dir.join("user")));
    dirs.push("/run/systemd/user".into());
    dirs.extend(data.iter().map(|dir| dir.join("user")));
    dirs.extend(list("XDG_DATA_DIRS", "/usr/local/share:/usr/share"));
    dirs.extend(["/usr/local/lib/systemd/user", "/usr/lib/systemd/user", "/lib/systemd/user"].map(PathBuf::from));
    dirs
}

/// A base directory (XDG Base Directory Specification): the variable's, else the default below the home directory.
fn xdg(variable: &str, default: &str) -> Option<PathBuf> {
    let given = env::var_os(variable).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    given.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(default)))
}

/// A unit that was found.
#[derive(Debug)]
pub(super) struct FoundUnit {
    /// Name of the unit, with its suffix.
    pub(super) name: String,
    /// Path of the main file.
    pub(super) path: PathBuf,
    /// What it says, drop-ins included.
    pub(super) unit: Unit,
    /// Whether it, by itself or by drop-ins of its very name, says how it is enabled: systemd takes `[Install]` from
    /// nowhere else.
    pub(super) has_install: bool,
    /// Drop-ins that cannot be read, each with the reason; systemd goes on without them.
    pub(super) unread: Vec<(PathBuf, String)>,
}

/// A file that is called like a unit and is none that systemd can load.
#[derive(Debug)]
pub(super) struct BadUnit {
    /// The name of the unit.
    pub(super) name: String,
    /// The file.
    pub(super) path: PathBuf,
    /// What is wrong, and what to do.
    pub(super) why: String,
}

/// The units called `PREFIX*.socket`, by name. Masked ones and those that cannot be read are left out.
pub(super) fn find(path: &[PathBuf], prefixes: &[&str]) -> Vec<FoundUnit> {
    survey(path, prefixes).0
}

/// The units called `PREFIX*.socket`, by name, and files of such names that systemd cannot load. Masked ones are left
/// out.
pub(super) fn survey(path: &[PathBuf], prefixes: &[&str]) -> (Vec<FoundUnit>, Vec<BadUnit>) {
    let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
    for dir in path {
        for name in entries(dir) {
            let ours = prefixes.iter().any(|p| name.strip_prefix(p).is_some_and(|rest| rest.len() > ".socket".len()));
            if ours && name.ends_with(".socket") {
                names.entry(name.clone()).or_insert_with(|| dir.join(name));
            }
        }
    }
    let (mut found, mut bad) = (Vec::new(), Vec::new());
    for (name, file) in names {
        match load(path, name, file) {
            Ok(unit) => found.extend(unit),
            Err(unit) => bad.push(unit),
        }
    }
    (found, bad)
}

/// Socket units of the user or administrator whose names lack our prefix by mistake: they name a qrexec call.
pub(super) fn without_prefix(path: &[PathBuf], scope: Scope) -> Vec<FoundUnit> {
    let names = scope.home().map(|home| entries(&home)).unwrap_or_default();
    let foreign = names.into_iter().filter(|name| {
        name.ends_with(".socket") && !name.contains('@') && !PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    });
    let meant = |unit: &FoundUnit| {
        let name = unit.unit.fd_name().map(|name| fdname::parse(&name.value));
        unit.unit.service().is_none() && matches!(name, Some(Ok(fdname::Name::Call { .. })))
    };
    foreign.filter_map(|name| find_one(path, &name).ok()).filter(meant).collect()
}

/// One unit by its name, or by the path of its file. An instance has the file of its template.
///
/// # Errors
/// There is none, it is masked, or it cannot be read.
pub(super) fn find_one(path: &[PathBuf], unit: &str) -> Result<FoundUnit, BadUnit> {
    let (dirs, name) = match unit.rsplit_once('/') {
        Some((dir, name)) => (vec![PathBuf::from(if dir.is_empty() { "/" } else { dir })], name.to_owned()),
        None => (path.to_vec(), unit.to_owned()),
    };
    let there = |name: &str| dirs.iter().map(|dir| dir.join(name)).find(|file| file.symlink_metadata().is_ok());
    let file = there(&name).or_else(|| there(&template_of(&name)?));
    let bad = |path: PathBuf, why: &str| BadUnit { name: name.clone(), path, why: why.to_owned() };
    let Some(file) = file else {
        let mut why = "there is no such unit file".to_owned();
        let known = find(path, &PREFIXES).into_iter().map(|found| found.name);
        if let Some(meant) = known.min_by_key(|known| strsim::osa_distance(known, &name)) {
            if strsim::osa_distance(&meant, &name) <= 3 {
                why += &format!(" (did you mean {meant}?)");
            }
        }
        return Err(bad(dirs.first().map_or_else(PathBuf::new, |dir| dir.join(&name)), &why));
    };
    load(path, name.clone(), file.clone())?.ok_or_else(|| bad(file, "the unit is masked: systemd does not start it"))
}

/// `x@.socket` for `x@i.socket`.
fn template_of(name: &str) -> Option<String> {
    let (template, instance) = name.strip_suffix(".socket")?.split_once('@')?;
    (!instance.is_empty()).then(|| format!("{template}@.socket"))
}

/// The instances of a template that somebody has enabled, by name.
pub(super) fn enabled_instances(path: &[PathBuf], template: &str) -> Vec<String> {
    let mut names = Vec::new();
    for dir in path {
        let wants = entries(dir).into_iter().filter(|name| name.ends_with(".wants") || name.ends_with(".requires"));
        let linked = wants.flat_map(|wants| entries(&dir.join(wants)));
        names.extend(linked.filter(|name| template_of(name).as_deref() == Some(template)));
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// Reads a unit with its drop-ins; `None` for a masked one (a link to /dev/null).
fn load(path: &[PathBuf], name: String, file: PathBuf) -> Result<Option<FoundUnit>, BadUnit> {
    let bad = |why: String| BadUnit { name: name.clone(), path: file.clone(), why };
    let text = match read(&file) {
        Ok(text) if text.is_empty() && fs::metadata(&file).is_ok_and(|meta| meta.is_file()) => {
            return Err(bad("the file is empty, and systemd takes that for a masked unit".to_owned()));
        }
        Ok(text) if text.is_empty() => return Ok(None),
        Ok(text) => text,
        Err(e) => return Err(bad(unreadable(&file, &e))),
    };
    let mut unit = Unit::parse(&file.to_string_lossy(), &text);
    let mut has_install = unit.has_install();
    let mut unread = Vec::new();
    for (drop_in, exact) in drop_ins(path, &name) {
        let text = match read(&drop_in) {
            Ok(text) => text,
            Err(e) => {
                let why = unreadable(&drop_in, &e);
                unread.push((drop_in, why));
                continue;
            }
        };
        let drop_in = drop_in.to_string_lossy();
        has_install |= exact && Unit::parse(&drop_in, &text).has_install();
        unit.overlay(&drop_in, &text);
    }
    Ok(Some(FoundUnit { name, path: file, unit, has_install, unread }))
}

/// Why a file of a unit cannot be read.
fn unreadable(file: &Path, error: &io::Error) -> String {
    match fs::read_link(file) {
        Ok(target) if error.kind() == io::ErrorKind::NotFound => {
            format!("the link leads to {}, which does not exist", target.display())
        }
        _ if file.is_dir() => format!("this is a directory and no unit file ({error})"),
        _ => format!("the file cannot be read: {error}"),
    }
}

/// The drop-ins of a unit in the order in which systemd reads them, and whether each is of its very name (or, for an
/// instance, of its template) and not of a prefix. Of equal file names the strongest directory's counts, and one of
/// the unit's own name before one of a prefix (systemd.unit(5)).
fn drop_ins(path: &[PathBuf], name: &str) -> Vec<(PathBuf, bool)> {
    let mut found: BTreeMap<String, (PathBuf, bool)> = BTreeMap::new();
    for (dir_name, exact) in drop_in_dirs(name) {
        for dir in path {
            let dir = dir.join(&dir_name);
            for file in entries(&dir).into_iter().filter(|file| file.ends_with(".conf")) {
                found.entry(file.clone()).or_insert_with(|| (dir.join(file), exact));
            }
        }
    }
    found.into_values().collect()
}

/// `a-b@i.socket` has drop-ins in `a-b@i.socket.d`, `a-b@.socket.d`, `a-.socket.d` and `socket.d`.
fn drop_in_dirs(name: &str) -> Vec<(String, bool)> {
    let stem = name.strip_suffix(".socket").unwrap_or(name);
    let mut dirs = vec![(format!("{stem}.socket.d"), true)];
    let mut prefix = stem;
    if let Some((template, instance)) = stem.split_once('@') {
        if !instance.is_empty() {
            dirs.push((format!("{template}@.socket.d"), true));
        }
        prefix = template;
    }
    // A name that ends in a dash is its own prefix.
    let mut end = prefix.trim_end_matches('-').len();
    while let Some(dash) = prefix[..end].rfind('-') {
        dirs.push((format!("{}-.socket.d", &prefix[..dash]), false));
        end = dash;
    }
    dirs.push(("socket.d".to_owned(), false));
    dirs
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn read(file: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&sys::file::read(file, LIMIT)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let file = root.join(file);
        fs::create_dir_all(file.parent().expect("a directory")).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn drop_ins_are_those_of_the_unit_its_template_its_prefixes_and_its_type() {
        let dirs: Vec<_> = drop_in_dirs("qrexec-connect-t@i.socket").into_iter().map(|(dir, _)| dir).collect();
        assert_eq!(
            dirs,
            [
                "qrexec-connect-t@i.socket.d",
                "qrexec-connect-t@.socket.d",
                "qrexec-connect-.socket.d",
                "qrexec-.socket.d",
                "socket.d"
            ]
        );
    }

    #[test]
    fn an_instance_is_read_from_its_template_and_enabled_ones_are_found_by_their_links() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "qrexec-connect-t@.socket", "[Socket]\nListenStream=%i\n");
        write(root.path(), "sockets.target.wants/qrexec-connect-t@7.socket", "");
        write(root.path(), "sockets.target.wants/qrexec-connect-u@8.socket", "");
        let path = [root.path().to_owned()];
        assert_eq!(enabled_instances(&path, "qrexec-connect-t@.socket"), ["qrexec-connect-t@7.socket"]);
        let given = root.path().join("qrexec-connect-t@9.socket");
        for unit in ["qrexec-connect-t@9.socket", given.to_str().unwrap()] {
            let found = find_one(&path, unit).unwrap();
            assert_eq!(found.name, "qrexec-connect-t@9.socket");
            assert!(found.path.ends_with("qrexec-connect-t@.socket"));
        }
        let missing = find_one(&path, "qrexec-connect-tt@.socket").unwrap_err();
        assert!(missing.why.contains("did you mean qrexec-connect-t@.socket"), "{}", missing.why);
    }

    #[test]
    fn the_strongest_directory_wins_and_masked_units_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "strong/qrexec-connect-a.socket", "[Socket]\nFileDescriptorName=strong\n");
        write(root.path(), "weak/qrexec-connect-a.socket", "[Socket]\nFileDescriptorName=weak\n");
        write(root.path(), "weak/qrexec-connect-a.socket.d/10-x.conf", "[Install]\nWantedBy=sockets.target\n");
        write(root.path(), "weak/qrexec-connect-.socket.d/10-y.conf", "[Socket]\nBacklog=7\n[Install]\nWantedBy=x\n");
        write(root.path(), "weak/qrexec-connect-b.socket", "[Socket]\nListenStream=1\n");
        std::os::unix::fs::symlink("/dev/null", root.path().join("strong/qrexec-connect-b.socket")).unwrap();
        write(root.path(), "weak/qrexec-connect-c.socket", "[Socket]\nListenStream=1\n");
        write(root.path(), "weak/qrexec-connect-.socket", "[Socket]\nListenStream=1\n");
        write(root.path(), "weak/other.socket", "[Socket]\nListenStream=1\n");
        std::os::unix::fs::symlink("nowhere", root.path().join("weak/qrexec-connect-d.socket")).unwrap();
        fs::create_dir(root.path().join("weak/qrexec-connect-e.socket")).unwrap();
        let path = ["strong", "weak"].map(|dir| root.path().join(dir));
        let (found, bad) = survey(&path, &["qrexec-connect-"]);
        let bad: Vec<_> = bad.iter().map(|bad| (bad.name.as_str(), bad.why.split(',').next().unwrap())).collect();
        assert_eq!(bad[0], ("qrexec-connect-d.socket", "the link leads to nowhere"));
        assert!(bad[1].0 == "qrexec-connect-e.socket" && bad[1].1.contains("directory"), "{bad:?}");
        let names: Vec<_> = found.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["qrexec-connect-a.socket", "qrexec-connect-c.socket"]);
        assert_eq!(found[0].unit.fd_name().map(|s| s.value.as_str()), Some("strong"));
        assert_eq!(found[0].unit.last("Socket", "Backlog").map(|s| s.value.as_str()), Some("7"));
        assert!(found[0].has_install, "by its own drop-in");
        assert!(!found[1].has_install, "systemd ignores that of a prefix");
    }
}
