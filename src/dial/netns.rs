//! Network namespaces: sockets that live in another one than this process does.
//!
//! # Theory
//! A socket belongs for ever to the namespace of the thread that made it; bind(2), connect(2) and everything after
//! follow the socket, from whichever thread they are called. So nothing of ours ever has to *run* in a namespace: a
//! thread is born, enters (setns(2), which concerns the calling thread alone), makes the socket, and ends. It serves
//! nothing else and never goes back, so there is no failure that could leave a thread of the runtime in a foreign
//! namespace. Nor does anything else hold on to it: the namespace is looked up again each time by its name, and a
//! deleted one lives only as long as the sessions in it.
//!
//! Names of hosts are not resolved inside: what resolv.conf(5) says here is not what holds there. `spec` refuses them.

use std::{
    fmt, fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{FsType, fstatfs},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

use crate::{
    log::escape,
    spec::Netns,
    sys::{self, proc::Process},
};

/// Where `ip netns` keeps its names (ip-netns(8)); the second is the same place where /var/run is not a link.
const DIRECTORIES: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// The file system of namespaces (NSFS_MAGIC, linux/magic.h).
const NSFS: FsType = FsType(0x6e73_6673);
/// Stack of a thread that makes two system calls, in bytes.
const STACK: usize = 64 << 10;

/// What makes a namespace that one and no other, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    /// Device of the nsfs.
    pub device: u64,
    /// What `readlink /proc/PID/ns/net` and `lsns` show.
    pub inode: u64,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

/// A namespace, and where it was found; displayed, it is what logs have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Path of the namespace.
    pub path: PathBuf,
    pub id: Id,
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", escape(self.path.as_os_str().as_encoded_bytes()), self.id)
    }
}

/// A namespace that was found; keeps it alive.
#[derive(Debug)]
pub struct Found {
    /// Where, and which.
    pub namespace: Namespace,
    file: fs::File,
}

/// Why there is no socket in a namespace.
#[derive(Debug)]
pub enum Trouble {
    /// The namespace does not exist, or not yet.
    Missing(PathBuf),
    /// Something else is in its place.
    Strange(PathBuf),
    /// We may not enter it.
    Denied(PathBuf),
    /// A system call failed.
    Io {
        /// The step that failed, as a verb phrase.
        doing: String,
        /// Error of the kernel.
        error: io::Error,
    },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |path: &Path| escape(path.as_os_str().as_encoded_bytes());
        match self {
            Self::Missing(path) => {
                write!(f, "there is no network namespace at {}: see `ip netns list`", show(path))?;
                let near = path.file_name().and_then(|name| nearest(name.to_str()?));
                near.map_or(Ok(()), |name| write!(f, "; did you mean {}?", escape(name.as_bytes())))
            }
            Self::Strange(path) => {
                write!(f, "{} is not a network namespace: `ip netns add` makes one", show(path))
            }
            Self::Denied(path) => write!(f, "may not enter {}: {NEEDS}", show(path)),
            Self::Io { doing, error } => write!(f, "cannot {doing}: {error}"),
        }
    }
}

/// What to do about [`Trouble::Denied`].
pub const NEEDS: &str = "network namespaces need CAP_SYS_ADMIN; run as root, or add to the unit's [Service]: \
                         AmbientCapabilities=CAP_SYS_ADMIN";

/// The namespace whose name is nearest to one that does not exist.
pub fn nearest(name: &str) -> Option<String> {
    let entries = DIRECTORIES.iter().flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let slips = |other: &String| strsim::osa_distance(name, other);
    names.map(|other| (slips(&other), other)).filter(|(n, _)| *n <= (name.len() / 3).max(1)).min().map(|(_, name)| name)
}

/// Whether this process has the capability that entering takes. Where the kernel does not tell, it may try.
pub fn permitted() -> bool {
    /// CAP_SYS_ADMIN of capabilities(7).
    const SYS_ADMIN: u64 = 1 << 21;
    Process::own().capabilities().is_none_or(|bits| bits & SYS_ADMIN != 0)
}

/// Looks a namespace up, now.
///
/// # Errors
/// It is not there, or is something else.
pub fn find(netns: &Netns) -> Result<Found, Trouble> {
    let candidates = match netns {
        Netns::Path(path) => vec![path.clone()],
        Netns::Name(name) => DIRECTORIES.iter().map(|dir| Path::new(dir).join(name)).collect(),
    };
    let mut missing = None;
    for path in candidates {
        match open(&path) {
            Err(Trouble::Missing(path)) => missing = missing.or(Some(path)),
            found => return found,
        }
    }
    Err(Trouble::Missing(missing.unwrap_or_default()))
}

fn open(path: &Path) -> Result<Found, Trouble> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Non-blocking: whatever else is in that place, opening it must not wait for anybody.
    let file = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = file.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Trouble::Missing(path.to_owned()),
        io::ErrorKind::PermissionDenied => Trouble::Denied(path.to_owned()),
        _ => Trouble::Io { doing: format!("open {}", path.display()), error },
    })?;
    // The type first: the request of another file's driver may mean anything.
    if !fstatfs(&file).is_ok_and(|fs| fs.filesystem_type() == NSFS) || !sys::is_net_namespace(file.as_fd()) {
        return Err(Trouble::Strange(path.to_owned()));
    }
    let meta = file.metadata().map_err(|error| Trouble::Io { doing: format!("look at {}", path.display()), error })?;
    Ok(Found { namespace: Namespace { path: path.to_owned(), id: Id { device: meta.dev(), inode: meta.ino() } }, file })
}

impl Found {
    fn make(&self, domain: Domain, kind: Type, protocol: Protocol) -> Result<Socket, Trouble> {
        let path = &self.namespace.path;
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|error| match error {
            nix::Error::EPERM => Trouble::Denied(path.clone()),
            error => Trouble::Io { doing: format!("enter {}", path.display()), error: error.into() },
        })?;
        Socket::new(domain, kind, Some(protocol))
            .map_err(|error| Trouble::Io { doing: format!("make a socket in {}", path.display()), error })
    }
}

/// Makes a socket in a namespace, and says which namespace that was.
///
/// # Cancel safety
/// Dropped, the socket is closed as soon as it is there.
pub async fn socket(
    netns: &Netns,
    domain: Domain,
    kind: Type,
    protocol: Protocol,
) -> Result<(Socket, Namespace), Trouble> {
    let (send, receive) = oneshot::channel();
    thread(netns.clone(), domain, kind, protocol, move |made| drop(send.send(made)))?;
    receive.await.unwrap_or_else(|_| Err(vanished()))
}

/// Like [`socket`], for callers that may block.
pub fn socket_blocking(
    netns: &Netns,
    domain: Domain,
    kind: Type,
    protocol: Protocol,
) -> Result<(Socket, Namespace), Trouble> {
    let (send, receive) = std::sync::mpsc::channel();
    thread(netns.clone(), domain, kind, protocol, move |made| drop(send.send(made)))?;
    receive.recv().unwrap_or_else(|_| Err(vanished()))
}

/// Runs `work` in a separate thread, which is in the namespace when one is given; nobody waits for it. Where the
/// namespace cannot be entered any more, it does not run.
pub fn spawn_inside(netns: Option<&Netns>, work: impl FnOnce() + Send + 'static) {
    let netns = netns.cloned();
    let run = move || {
        let there = netns
            .is_none_or(|netns| find(&netns).is_ok_and(|found| setns(&found.file, CloneFlags::CLONE_NEWNET).is_ok()));
        if there {
            work();
        }
    };
    let _ = std::thread::Builder::new().name("netns".into()).spawn(run);
}

fn thread(
    netns: Netns,
    domain: Domain,
    kind: Type,
    protocol: Protocol,
    give: impl FnOnce(Result<(Socket, Namespace), Trouble>) + Send + 'static,
) -> Result<(), Trouble> {
    let run = move || {
        give(find(&netns).and_then(|found| Ok((found.make(domain, kind, protocol)?, found.namespace))));
    };
    let thread = std::thread::Builder::new().name("netns".into()).stack_size(STACK).spawn(run);
    thread.map(drop).map_err(|error| Trouble::Io { doing: "start a thread to enter a network namespace".into(), error })
}

fn vanished() -> Trouble {
    Trouble::Io { doing: "make a socket in a network namespace".into(), error: io::ErrorKind::Interrupted.into() }
}
