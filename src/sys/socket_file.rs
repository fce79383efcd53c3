//! UNIX sockets in the file system that nobody may connect to before they have their rights.
//!
//! # Theory
//! The rights of a socket file are those that umask(2) leaves when it is bound, and on Linux fchmod(2) of the socket
//! does not change them. So a socket is bound in a thread with a umask of its own (unshare(2), CLONE_FS), which leaves
//! the rights that it is to have, or none where its owner changes; owner and mode are then set on the very inode (O_PATH,
//! O_NOFOLLOW), and only after that it listens: a user without the right can never connect. A user with the right who
//! comes before listen(2) gets "connection refused"; where the owner does not change, never "permission denied".

use std::{
    fmt, fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    },
    path::Path,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind as bind_fd, socket},
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, chown, geteuid},
};

use super::socket;

/// Who may do what with a file. An owner or group that is not given stays.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    /// Permission bits.
    pub mode: u32,
    /// User.
    pub user: Option<u32>,
    /// Group.
    pub group: Option<u32>,
}

impl Rights {
    /// For this process's user alone: read and write.
    pub const PRIVATE: Self = Self { mode: 0o600, user: None, group: None };
}

/// The step that failed, and the error.
#[derive(Debug)]
pub struct BindFailure {
    pub doing: Doing,
    pub error: io::Error,
}

/// Steps that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Start a thread.
    Thread,
    /// Have a umask of its own.
    Umask,
    /// Do the work in the thread: it panicked.
    Work,
    /// Make a UNIX socket.
    Make,
    /// Bind it.
    Bind,
    /// Look at the file that was made.
    Look,
    /// Find the file that was made: something else is in its place.
    Recognise,
    /// Set the mode.
    Mode,
    /// Set the owner.
    Owner,
}

impl fmt::Display for BindFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doing = match self.doing {
            Doing::Thread => "cannot start a thread",
            Doing::Umask => "cannot set a separate umask",
            Doing::Work => "a thread failed",
            Doing::Make => "cannot make a UNIX socket",
            Doing::Bind => "cannot bind it",
            Doing::Look => "cannot look at it",
            Doing::Recognise => "it was replaced while it was being made",
            Doing::Mode => "cannot set its mode",
            Doing::Owner => "cannot set its owner",
        };
        write!(f, "{doing}: {}", self.error)
    }
}

impl From<BindFailure> for io::Error {
    fn from(failed: BindFailure) -> Self {
        Self::new(failed.error.kind(), failed.to_string())
    }
}

fn failed<E: Into<io::Error>>(doing: Doing) -> impl FnOnce(E) -> BindFailure {
    move |error| BindFailure { doing, error: error.into() }
}

/// A stream socket that is bound and does not listen yet.
#[derive(Debug)]
pub struct BoundSocket {
    /// Non-blocking, close-on-exec.
    pub socket: OwnedFd,
    /// Device and inode of its file.
    pub inode: (u64, u64),
}

impl BoundSocket {
    /// Listens. `backlog` connections may wait; the kernel's limit is net.core.somaxconn.
    ///
    /// # Errors
    /// What listen(2) says.
    pub fn listen(self, backlog: u32) -> io::Result<UnixListener> {
        socket::listen(&self.socket, backlog)?;
        Ok(UnixListener::from(self.socket))
    }
}

/// Binds a stream socket at `path`, where nothing may be, and gives its file these rights.
///
/// # Errors
/// What did not work. The file that was made is then removed, unless something else is in its place.
pub fn bind(path: &Path, rights: Rights) -> Result<BoundSocket, BindFailure> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed(Doing::Make))?;
    let address = UnixAddr::new(path).map_err(failed(Doing::Bind))?;
    let stays = rights.user.is_none() && rights.group.is_none();
    let born = if stays { rights.mode & 0o777 } else { 0 };
    with_umask(0o777 & !born, || bind_fd(fd.as_raw_fd(), &address))?.map_err(failed(Doing::Bind))?;
    let file = look(path).map_err(failed(Doing::Look))?;
    let meta = file.metadata().map_err(failed(Doing::Look))?;
    if !meta.file_type().is_socket() || meta.uid() != geteuid().as_raw() || meta.mode() & 0o777 & !born != 0 {
        return Err(failed(Doing::Recognise)(io::Error::other("who else writes to its directory?")));
    }
    let inode = (meta.dev(), meta.ino());
    if let Err(e) = grant(&file, rights) {
        if fs::symlink_metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == inode) {
            let _ = fs::remove_file(path);
        }
        return Err(e);
    }
    Ok(BoundSocket { socket: fd, inode })
}

/// Runs `work` in a thread with this umask, without anybody else noticing.
///
/// # Errors
/// No thread, or none with a umask of its own; then `work` was not done.
pub fn with_umask<T: Send>(mask: u32, work: impl FnOnce() -> T + Send) -> Result<T, BindFailure> {
    let alone = || {
        unshare(CloneFlags::CLONE_FS).map_err(failed(Doing::Umask))?;
        umask(Mode::from_bits_truncate(mask));
        Ok(work())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("bind".into()).spawn_scoped(scope, alone);
        let thread = thread.map_err(failed(Doing::Thread))?;
        thread.join().unwrap_or_else(|_| Err(failed(Doing::Work)(io::Error::other("it panicked"))))
    })
}

/// The very file at `path`, whatever is put in its place later; for its rights only.
///
/// # Errors
/// What open(2) says.
pub fn look(path: &Path) -> io::Result<fs::File> {
    fs::File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}

/// Sets owner and mode of a file that was opened by [`look`], through its name in /proc (open(2), O_PATH). The new
/// owner never has rights of the old mode, nor the old owner of the new one.
pub fn grant(file: &fs::File, rights: Rights) -> Result<(), BindFailure> {
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let meta = file.metadata().map_err(failed(Doing::Look))?;
    let chmod = |bits| fs::set_permissions(&name, fs::Permissions::from_mode(bits)).map_err(failed(Doing::Mode));
    let user = rights.user.filter(|user| *user != meta.uid());
    let group = rights.group.filter(|group| *group != meta.gid());
    if user.is_some() || group.is_some() {
        chmod(meta.mode() & rights.mode)?;
        chown(name.as_str(), user.map(Uid::from_raw), group.map(Gid::from_raw)).map_err(failed(Doing::Owner))?;
    }
    chmod(rights.mode)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        os::unix::net::UnixStream,
        sync::atomic::{AtomicBool, Ordering::Relaxed},
    };

    use super::*;

    #[test]
    fn nobody_connects_before_it_listens_and_it_has_its_rights_by_then() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.sock");
        let bound = bind(&path, Rights { mode: 0o640, ..Rights::PRIVATE }).expect("bound");
        let meta = fs::symlink_metadata(&path).expect("it is there");
        assert_eq!((meta.mode() & 0o7777, (meta.dev(), meta.ino())), (0o640, bound.inode));
        assert_eq!(UnixStream::connect(&path).map_err(|e| e.kind()).err(), Some(io::ErrorKind::ConnectionRefused));
        let _listener = bound.listen(1).expect("it listens");
        UnixStream::connect(&path).expect("it listens");
    }

    /// The same user asks a service that is starting: "permission denied" would be the wrong answer.
    #[test]
    fn who_may_connect_is_never_without_rights_while_it_is_made() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.sock");
        let done = AtomicBool::new(false);
        let modes = std::thread::scope(|scope| {
            let seen = scope.spawn(|| {
                let mut seen = BTreeSet::new();
                while !done.load(Relaxed) {
                    seen.extend(fs::symlink_metadata(&path).map(|meta| meta.mode() & 0o777));
                }
                seen
            });
            for _ in 0..500 {
                drop(bind(&path, Rights { mode: 0o640, ..Rights::PRIVATE }).expect("bound"));
                fs::remove_file(&path).expect("it is there");
            }
            done.store(true, Relaxed);
            seen.join().expect("it looks")
        });
        assert_eq!(modes, BTreeSet::from([0o640]));
    }

    #[test]
    fn what_is_there_already_stays_as_it_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "text").expect("written");
        let failed = bind(&path, Rights::PRIVATE).expect_err("something is there");
        assert_eq!((failed.doing, failed.error.kind()), (Doing::Bind, io::ErrorKind::AddrInUse));
        assert_eq!(fs::read(&path).expect("it is there"), b"text");
    }

    #[test]
    fn a_umask_of_its_own_is_no_other_threads() {
        let directory = tempfile::tempdir().expect("a directory");
        let mode = |name: &str| {
            let file = fs::File::create(directory.path().join(name)).expect("made");
            file.metadata().expect("it is there").mode() & 0o777
        };
        let before = mode("before");
        assert_eq!(with_umask(0o777, || mode("within")).expect("a thread"), 0);
        assert_eq!(mode("after"), before);
        let panicked = with_umask(0o777, || panic!("as if something were wrong"));
        assert_eq!(panicked.map_err(|failed: BindFailure| failed.doing), Err::<(), _>(Doing::Work));
    }
}
