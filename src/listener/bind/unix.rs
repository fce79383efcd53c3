//! UNIX sockets in the file system, from nothing to listening, and away again.
//!
//! # Theory
//! Whose a path is, is settled by a lock on a file beside it (`PATH.lock`, F_OFD_SETLK of fcntl(2)), which the kernel
//! gives back whatever becomes of the holder. Connecting to find out would dial the target. Under the lock:
//!
//! | in that place | outcome |
//! |---|---|
//! | nothing | bound |
//! | a socket that nobody listens on | removed, bound: a process was killed before it could do that |
//! | a socket that some other program listens on | refused |
//! | anything else: file, directory, symbolic link … | refused, and left alone |
//!
//! The socket has its rights before it listens ([`socket_file`]): at no moment can anybody connect who may not.
//!
//! What is removed in the end is the inode that was made here, or nothing.

use std::{
    ffi::OsString,
    fs, io,
    num::NonZeroU32,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr as SockAddr, bind as bind_fd, socket},
    unistd::{Group, User},
};

use crate::{
    log::escape,
    spec::{Account, FileMode, Owner, UnixAddr, UnixRights},
    sys::{
        self, proc,
        socket_file::{self, BindFailure, Doing, Rights as Granted, look},
    },
};

/// The socket file that is ours, and the lock that says so. Dropped, both files are removed; released, they stay.
#[derive(Debug)]
pub struct SocketClaim {
    path: PathBuf,
    /// Device and inode of the socket file.
    inode: (u64, u64),
    /// Holds the lock; `None` once the claim is released.
    lock: Option<fs::File>,
}

/// Binds `addr` and listens.
///
/// # Errors
/// What is in the way, and what to do.
pub fn bind(
    addr: &UnixAddr,
    rights: &UnixRights,
    backlog: NonZeroU32,
) -> Result<(UnixListener, Option<SocketClaim>), String> {
    let (socket, claim) = match addr {
        UnixAddr::Abstract(name) => {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
                .map_err(|e| format!("cannot make a UNIX socket: {}", e.desc()))?;
            let address = SockAddr::new_abstract(name).map_err(|e| format!("cannot serve {addr}: {}", e.desc()))?;
            bind_fd(fd.as_raw_fd(), &address)
                .map_err(|e| format!("cannot serve {addr}: {}; `ss -lxp` shows who has it", e.desc()))?;
            (fd, None)
        }
        UnixAddr::Path(path) => {
            // Directories and the lock, too, get no more rights than their modes say.
            let made = socket_file::with_umask(0o077, || SocketClaim::make(path, rights));
            let (socket, claim) = made.map_err(|e| told(&e, &show(path), rights.mode))??;
            (socket, Some(claim))
        }
    };
    sys::listen(&socket, backlog.get()).map_err(|e| format!("cannot listen on {addr}: {e}"))?;
    Ok((UnixListener::from(socket), claim))
}

impl SocketClaim {
    /// Locks the path, clears it of a dead socket and binds one there with its rights; it does not listen yet.
    fn make(path: &Path, rights: &UnixRights) -> Result<(OwnedFd, Self), String> {
        let owner = ids(rights.owner.as_ref())?;
        let dir_owner = ids(rights.dir_owner.as_ref())?;
        if let Some(parent) = path.parent() {
            make_directories(parent, rights.dir_mode, dir_owner)?;
        }
        let lock = lock(path)?;
        // From here on the lock file is removed whatever happens.
        let mut claim = Self { path: path.to_owned(), inode: (0, 0), lock: Some(lock) };
        clear(path)?;
        let bound = socket_file::bind(path, granted(rights.mode, owner));
        let bound = bound.map_err(|e| told(&e, &show(path), rights.mode))?;
        claim.inode = bound.inode;
        Ok((bound.socket, claim))
    }

    /// Takes up a claim that was released in another process.
    pub fn resume(path: PathBuf, inode: (u64, u64), lock: OwnedFd) -> Self {
        let lock = fs::File::from(lock);
        sign(&lock);
        Self { path, inode, lock: Some(lock) }
    }

    /// What another process needs to take the claim up: path, inode and the lock.
    ///
    /// # Errors
    /// EMFILE and its kin.
    pub fn parts(&self) -> io::Result<(&Path, (u64, u64), OwnedFd)> {
        let lock = self.lock.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok((&self.path, self.inode, lock.try_clone()?.into()))
    }

    /// Another process has it now: the files stay.
    pub fn release(mut self) {
        self.lock = None;
    }

    /// Gives the socket file other rights.
    ///
    /// # Errors
    /// When it is not ours any more, or they cannot be given.
    pub fn change(&self, rights: &UnixRights) -> Result<(), String> {
        let at = show(&self.path);
        let file = look(&self.path).map_err(|e| format!("cannot look at {at}: {e}"))?;
        if inode(&file).is_none_or(|inode| inode != self.inode) {
            return Err(format!("{at} is not the socket that was made here: it was replaced"));
        }
        grant(&file, &at, rights.mode, ids(rights.owner.as_ref())?)
    }
}

impl Drop for SocketClaim {
    fn drop(&mut self) {
        let Some(_lock) = &self.lock else { return };
        let ours =
            |path: &Path, own: (u64, u64)| fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == own);
        if ours(&self.path, self.inode) {
            let _ = fs::remove_file(&self.path);
        }
        // While it is locked: whoever waits for it finds out that it is no longer the file at that path.
        let path = lock_path(&self.path);
        if self.lock.as_ref().and_then(inode).is_some_and(|own| ours(&path, own)) {
            let _ = fs::remove_file(&path);
        }
    }
}

fn lock_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".lock");
    name.into()
}

/// Locks the file beside `path`.
fn lock(path: &Path) -> Result<fs::File, String> {
    use io::Read as _;
    let beside = lock_path(path);
    let failed = |e: io::Error| format!("cannot lock {}: {e}{}", show(&beside), hint(&e));
    loop {
        let mut options = fs::File::options();
        options.read(true).write(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(&beside).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(format!("{} is no regular file, and no lock: remove it", show(&beside)));
        }
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => {}
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                let mut pid = String::new();
                let _ = file.take(20).read_to_string(&mut pid);
                let who =
                    pid.trim().parse::<u32>().map_or("another process".to_owned(), |pid| format!("process {pid}"));
                return Err(format!("{} is served by {who} already, which has locked {}", show(path), show(&beside)));
            }
            Err(e) => return Err(failed(e.into())),
        }
        // Its last holder may have removed it between our open and our lock.
        let there = fs::symlink_metadata(&beside).ok().map(|meta| (meta.dev(), meta.ino()));
        if inode(&file) == there {
            sign(&file);
            return Ok(file);
        }
    }
}

/// Notes who holds a lock, for whoever meets it.
fn sign(lock: &fs::File) {
    use std::os::unix::fs::FileExt as _;
    let _ = lock.set_len(0).and_then(|()| lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0));
}

/// Makes room for the socket: removes one that nobody listens on, and nothing else.
fn clear(path: &Path) -> Result<(), String> {
    let at = show(path);
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(format!("cannot look at {at}: {e}{}", hint(&e))),
    };
    let kind = meta.file_type();
    if !kind.is_socket() {
        let what = if kind.is_dir() {
            "a directory"
        } else if kind.is_symlink() {
            "a symbolic link"
        } else if kind.is_file() {
            "a regular file"
        } else {
            "something else than a socket"
        };
        return Err(format!("{at} is {what}, and the service does not touch it; move it away or serve another path"));
    }
    if proc::listens(path) {
        return Err(format!("another program listens on {at}; `ss -lxp src {at}` shows which"));
    }
    fs::remove_file(path).map_err(|e| format!("cannot remove the dead socket {at}: {e}{}", hint(&e)))
}

/// Makes the directories that are missing, with these rights; existing ones are left as they are.
fn make_directories(path: &Path, mode: FileMode, owner: Ids) -> Result<(), String> {
    let at = show(path);
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directories(parent, mode, owner)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            let made = look(path).map_err(|e| format!("cannot look at {at}: {e}"))?;
            grant(&made, &at, mode, owner)
        }
        // Somebody else was quicker.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(format!("cannot make the directory {at}: {e}{}", hint(&e))),
    }
}

fn inode(file: &fs::File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
}

fn granted(mode: FileMode, (user, group): Ids) -> Granted {
    Granted { mode: mode.bits(), user, group }
}

/// Sets owner and mode of a file that was opened by [`look`].
fn grant(file: &fs::File, at: &str, mode: FileMode, owner: Ids) -> Result<(), String> {
    socket_file::grant(file, granted(mode, owner)).map_err(|e| told(&e, at, mode))
}

/// What to tell of a file that could not be made or given its mode.
fn told(failed: &BindFailure, at: &str, mode: FileMode) -> String {
    let error = &failed.error;
    let errno = error.raw_os_error().map(Errno::from_raw);
    let desc = errno.map_or_else(|| error.to_string(), |errno| errno.desc().to_owned());
    match failed.doing {
        Doing::Bind => format!("cannot serve {at}: {desc}{}", hint(error)),
        Doing::Look => format!("cannot look at {at}: {error}"),
        Doing::Recognise => format!("{at} was replaced while it was being made: {error}"),
        Doing::Mode => format!("cannot set the mode of {at} to {mode}: {error}"),
        Doing::Owner => {
            let hint = "; another owner takes CAP_CHOWN: add it to CapabilityBoundingSet= of the unit";
            format!("cannot set the owner of {at}: {desc}{}", if errno == Some(Errno::EPERM) { hint } else { "" })
        }
        Doing::Thread => format!("cannot start a thread: {error}"),
        Doing::Work => "a thread panicked".to_owned(),
        Doing::Umask => format!("cannot set a separate umask: {desc}"),
        Doing::Make => format!("cannot make a UNIX socket: {desc}"),
    }
}

/// A user and a group; what is not given stays.
type Ids = (Option<u32>, Option<u32>);

fn ids(owner: Option<&Owner>) -> Result<Ids, String> {
    let Some(owner) = owner else { return Ok((None, None)) };
    let user = owner.user().map(|account| match account {
        Account::Id(id) => Ok(*id),
        Account::Name(name) => match User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            _ => Err(format!("there is no user {name}: owner takes a name of `getent passwd` or a number")),
        },
    });
    let group = owner.group().map(|account| match account {
        Account::Id(id) => Ok(*id),
        Account::Name(name) => match Group::from_name(name) {
            Ok(Some(group)) => Ok(group.gid.as_raw()),
            _ => Err(format!("there is no group {name}: owner takes a name of `getent group` or a number")),
        },
    });
    Ok((user.transpose()?, group.transpose()?))
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; check the owner and mode of its directory",
        io::ErrorKind::ReadOnlyFilesystem => "; is its directory in ReadWritePaths= or RuntimeDirectory= of the unit?",
        _ => "",
    }
}

fn show(path: &Path) -> String {
    escape(path.as_os_str().as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_removes_the_socket_and_its_lock_but_nothing_of_others() {
        let dir = tempfile::tempdir().unwrap();
        for replaced in [false, true] {
            let path = dir.path().join("a.sock");
            let addr = UnixAddr::Path(path.clone());
            let ended = std::thread::scope(|scope| {
                let panics = scope.spawn(|| {
                    let _bound = bind(&addr, &UnixRights::default(), NonZeroU32::MIN).unwrap();
                    if replaced {
                        fs::remove_file(&path).unwrap();
                        fs::write(&path, "another's").unwrap();
                    }
                    assert!(!path.exists(), "as if something were wrong");
                });
                panics.join()
            });
            assert!(ended.is_err());
            assert_eq!((path.exists(), lock_path(&path).exists()), (replaced, false));
        }
    }
}
