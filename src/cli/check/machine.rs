//! What this machine says about a place to listen at: who has it, whether it exists, who can reach it.
//!
//! Nothing is opened to find that out: a port is looked up in the kernel's tables, an address is tried with port 0, a
//! path is looked at.

use std::{
    collections::HashSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access, geteuid};

use crate::{
    log::escape,
    spec::{ListenPlace, PlaceIndex, UnixAddr},
    sys::proc::{self, Process},
};

/// A socket that somebody has where a listener is to be.
#[derive(Clone, Debug)]
pub(super) struct TakenPlace {
    /// Where it listens.
    pub(super) place: ListenPlace,
    /// Whose it is.
    user: u32,
    /// The processes that hold it, as far as they may be looked at: number and name.
    holders: Vec<(u32, String)>,
}

impl TakenPlace {
    /// Who has it, in words.
    pub(super) fn holder(&self) -> String {
        match self.holders.first() {
            Some((pid, name)) => format!("process {pid} ({name})"),
            None => format!("a process of user {}", self.user),
        }
    }

    /// Whether a service manager or one of our services has it: for a socket unit, or for a forward.
    pub(super) fn is_managed(&self) -> bool {
        self.holders.iter().any(|(_, name)| matches!(name.as_str(), "systemd" | "qrexec-connect" | "pfwd"))
            // The kernel says nothing about another user's process; systemd opens ports for root.
            || (self.holders.is_empty() && self.user == 0)
    }

    /// Whether a process of this name has it.
    pub(super) fn is_held_by(&self, name: &str) -> bool {
        self.holders.iter().any(|(_, holder)| holder == name)
    }
}

/// Who listens where the places are to be, each found once.
pub(super) fn taken(places: &[ListenPlace]) -> Vec<TakenPlace> {
    let mut found: Vec<(u64, TakenPlace)> = Vec::new();
    let mut put = |inode, place, user| found.push((inode, TakenPlace { place, user, holders: Vec::new() }));
    let index = PlaceIndex::new(places);
    for datagrams in [false, true] {
        for socket in proc::bound(datagrams) {
            let addr = SocketAddr::new(socket.local.ip().to_canonical(), socket.local.port());
            // Whether `[::]` of somebody else leaves IPv4 to others is not in the table: only its own family is
            // compared.
            let place = ListenPlace::Port { addr, zone: None, datagrams, netns: None, only_v6: true };
            if index.near(&place).iter().any(|wanted| places[*wanted].excludes(&place)) {
                put(socket.inode, place, socket.user);
            }
        }
    }
    for place in places {
        let ListenPlace::Unix(addr) = place else { continue };
        let name = match addr {
            UnixAddr::Path(path) => path.clone().into_os_string(),
            UnixAddr::Abstract(name) => format!("@{}", String::from_utf8_lossy(name)).into(),
        };
        if let Some(inode) = proc::listener_at(&name) {
            let owner = fs::symlink_metadata(Path::new(&name)).map_or(0, |meta| meta.uid());
            put(inode, place.clone(), owner);
        }
    }
    if !found.is_empty() {
        for (pid, process) in Process::all() {
            let inodes: HashSet<u64> = process.sockets().collect();
            let held = found.iter_mut().filter(|(inode, _)| inodes.contains(inode)).map(|(_, taken)| taken);
            let mut name = None;
            for taken in held {
                let name = name.get_or_insert_with(|| escape(&process.name().unwrap_or_default()));
                taken.holders.push((pid, name.clone()));
            }
        }
    }
    found.into_iter().map(|(_, taken)| taken).collect()
}

/// Whether an address is one of this machine: a socket can be bound to it, with a port of the kernel's choice.
pub(super) fn has_address(mut addr: SocketAddr) -> bool {
    let missing =
        |e: &io::Error| matches!(e.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT | libc::ENODEV));
    addr.set_port(0);
    // A link-local address needs its interface, and a multicast address is for datagrams.
    let local = |addr: &SocketAddrV6| addr.ip().is_unicast_link_local() && addr.scope_id() == 0;
    let vague = addr.ip().is_multicast() || matches!(&addr, SocketAddr::V6(addr) if local(addr));
    vague || !UdpSocket::bind(addr).is_err_and(|e| missing(&e))
}

/// Whether the kernel refuses datagrams to an address, because they would be broadcast (EACCES of connect(2)); nothing
/// is sent to find out.
pub(super) fn is_broadcast(ip: IpAddr) -> bool {
    let IpAddr::V4(ip) = ip else { return false };
    let connected = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| socket.connect((ip, 9)));
    connected.is_err_and(|e| e.raw_os_error() == Some(libc::EACCES))
}

/// Whether something answers the kernel's question for a port of this machine; only an address of it can be local.
pub(super) fn is_local(ip: IpAddr) -> bool {
    !ip.is_multicast() && TcpListener::bind((ip, 0)).is_ok()
}

/// The lowest port that everybody may open (ip(7), ip_unprivileged_port_start).
fn first_free_port() -> u16 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    text.trim().parse().unwrap_or(1024)
}

/// Whether this process runs as root.
fn is_root() -> bool {
    geteuid().is_root()
}

/// Why a user may not open a port; `own` when the listener is that of this process's user.
pub(super) fn port_obstacle(port: u16, own: bool) -> Option<String> {
    let free = first_free_port();
    let refused = own && (1..free).contains(&port) && !is_root();
    refused.then(|| format!("only root may open port {port}: here users may from {free} on"))
}

/// What is in the way of a socket file.
#[derive(Clone, Debug)]
pub(super) struct PathObstacle {
    /// The obstacle, as `check` prints it.
    pub(super) what: String,
    /// The next step for the reader.
    pub(super) hint: &'static str,
    /// Whether it is a file that systemd deletes; the service leaves it alone.
    pub(super) is_file: bool,
}

impl PathObstacle {
    fn new(what: String, hint: &'static str) -> Self {
        Self { what, hint, is_file: false }
    }
}

/// What is in the way of a socket at `path`, which is made with its parent directories; `own` when that is done by this
/// process's user, whose rights can be asked for.
pub(super) fn obstacle(path: &Path, own: bool) -> Option<PathObstacle> {
    let show = |path: &Path| escape(path.as_os_str().as_encoded_bytes());
    if let Ok(meta) = fs::symlink_metadata(path) {
        if meta.is_dir() {
            return Some(PathObstacle::new(format!("{} is a directory", show(path)), "add the name of the socket"));
        }
        if !meta.file_type().is_socket() {
            let what = format!("{} is there already and is no socket", show(path));
            return Some(PathObstacle { what, hint: "choose another path, or move it away", is_file: true });
        }
    }
    let parent = path.ancestors().skip(1).find(|dir| dir.symlink_metadata().is_ok())?;
    if !parent.is_dir() {
        return Some(PathObstacle::new(format!("{} is no directory", show(parent)), "correct the path"));
    }
    // Whoever may not look there cannot tell.
    let writes = access(parent, AccessFlags::W_OK | AccessFlags::X_OK);
    if own && writes.is_err() {
        let missing = path.parent().filter(|dir| *dir != parent);
        let what = match missing {
            Some(missing) => format!("{} does not exist, and you may make nothing in {}", show(missing), show(parent)),
            None => format!("you may make nothing in {}", show(parent)),
        };
        return Some(PathObstacle::new(what, "a path below $XDG_RUNTIME_DIR is yours, in a unit: %t/NAME.sock"));
    }
    None
}

/// Why nobody can listen at a place now, with the error of bind(2); `own` when this process's user is to do that.
/// `unit_at` names the socket unit that listens there.
pub(in crate::cli) fn hindrance(
    place: &ListenPlace,
    own: bool,
    unit_at: impl Fn(&ListenPlace) -> Option<String>,
) -> Option<String> {
    match place {
        ListenPlace::Port { addr, .. } => {
            if !has_address(*addr) {
                return Some(format!("{} is no address of this machine (EADDRNOTAVAIL)", addr.ip()));
            }
            if let Some(what) = port_obstacle(addr.port(), own) {
                return Some(format!("{what} (EACCES)"));
            }
        }
        ListenPlace::Unix(UnixAddr::Path(path)) => {
            if let Some(found) = obstacle(path, own) {
                return Some(found.what);
            }
        }
        ListenPlace::Unix(UnixAddr::Abstract(_)) => {}
    }
    let taken = taken(std::slice::from_ref(place)).into_iter().next()?;
    let unit = if taken.is_managed() { unit_at(&taken.place) } else { None };
    Some(format!("the address is in use (EADDRINUSE) by {}", unit.unwrap_or_else(|| taken.holder())))
}

/// Whether users other than its owner can connect to a socket at `path`: its own mode lets them, and each directory on
/// the way does. Directories that do not exist get `dir_mode`.
pub(super) fn is_open_to_all(path: &Path, mode: u32, dir_mode: u32) -> bool {
    let existing = path.ancestors().skip(1).find(|dir| dir.exists());
    let made = path.parent() != existing;
    let real: PathBuf = existing.and_then(|dir| dir.canonicalize().ok()).unwrap_or_else(|| "/".into());
    let through = |dir: &Path| fs::metadata(dir).is_ok_and(|meta| meta.mode() & 0o001 != 0);
    mode & 0o002 != 0 && (!made || dir_mode & 0o001 != 0) && real.ancestors().all(through)
}

/// Whether what is written to `path` is gone after a reboot, because this is an app qube: its root file system is the
/// template's again at each start (qubes-core-agent, init/functions: persistent-rw-only), apart from /rw and what
/// bind-dirs lists.
pub(super) fn is_forgotten(path: &Path, root: &Path) -> bool {
    let kept = ["/rw", "/home", "/usr/local"].iter().any(|dir| path.starts_with(dir));
    root.join("run/qubes/persistent-rw-only").exists() && !kept && !is_bound(path, root)
}

/// Whether the configuration of bind-dirs lists `path` or a directory above it.
fn is_bound(path: &Path, root: &Path) -> bool {
    let dirs = ["etc/qubes-bind-dirs.d", "rw/config/qubes-bind-dirs.d", "usr/lib/qubes-bind-dirs.d"];
    let files = dirs.iter().flat_map(|dir| fs::read_dir(root.join(dir)).into_iter().flatten().flatten());
    let texts: Vec<String> = files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect();
    let listed = |dir: &Path| texts.iter().any(|text| text.contains(&format!("'{}'", dir.display())));
    path.ancestors().filter(|dir| dir.parent().is_some()).any(listed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt as _, net::UnixListener};

    use super::*;

    #[test]
    fn whoever_has_a_port_or_a_path_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _unix = UnixListener::bind(&path).unwrap();
        let port = |text: &str| ListenPlace::Port {
            addr: text.parse().unwrap(),
            datagrams: false,
            netns: None,
            zone: None,
            only_v6: false,
        };
        let at = listener.local_addr().unwrap().port();
        for place in [port(&format!("127.0.0.1:{at}")), port(&format!("0.0.0.0:{at}")), port(&format!("[::]:{at}"))] {
            let taken = taken(&[place]);
            assert_eq!(taken.len(), 1);
            assert!(taken[0].holder().starts_with(&format!("process {} (", std::process::id())), "{taken:?}");
            assert!(!taken[0].is_managed());
        }
        assert!(taken(&[port(&format!("127.0.0.2:{at}"))]).is_empty());
        assert_eq!(taken(&[ListenPlace::Unix(UnixAddr::Path(path))]).len(), 1);
    }

    #[test]
    fn an_address_of_another_machine_is_told_from_ours() {
        assert!(has_address("127.0.0.1:1".parse().unwrap()) && has_address("0.0.0.0:1".parse().unwrap()));
        assert!(!has_address("192.0.2.1:1".parse().unwrap()) && !has_address("[fe80::1%9999]:1".parse().unwrap()));
        assert!(is_local("127.9.9.9".parse().unwrap()) && !is_local("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn what_is_in_the_way_of_a_socket_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        let said = |path: &Path| obstacle(path, true).map(|found| found.what).unwrap_or_default();
        assert!(said(dir.path()).contains("is a directory"));
        assert!(said(&at("file")).contains("is no socket"));
        assert!(said(&at("file/x.sock")).contains("is no directory"));
        assert_eq!(said(&at("new/dir/x.sock")), "");
    }

    #[test]
    fn a_socket_is_open_to_all_when_its_mode_and_each_directory_are() {
        let dir = tempfile::tempdir().unwrap();
        let chmod = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        let path = dir.path().join("s");
        chmod(0o700);
        assert!(!is_open_to_all(&path, 0o666, 0o755));
        chmod(0o755);
        assert!(is_open_to_all(&path, 0o666, 0o755) && !is_open_to_all(&path, 0o660, 0o755));
        let deeper = dir.path().join("new/s");
        assert!(is_open_to_all(&deeper, 0o666, 0o755) && !is_open_to_all(&deeper, 0o666, 0o700));
    }

    #[test]
    fn what_an_app_qube_forgets_is_told() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let unit = Path::new("/etc/systemd/system/x.socket");
        assert!(!is_forgotten(unit, root.path()), "no qube");
        put("run/qubes/persistent-rw-only", "");
        assert!(is_forgotten(unit, root.path()));
        assert!(!is_forgotten(Path::new("/home/user/.config/systemd/user/x.socket"), root.path()));
        put("rw/config/qubes-bind-dirs.d/50_user.conf", "binds+=( '/etc/systemd/system' )\n");
        assert!(!is_forgotten(unit, root.path()));
    }
}
