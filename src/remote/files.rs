//! Files that others may have prepared: never through a symbolic link, never a pipe or device, never more than a
//! bound, never half written.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use nix::fcntl::OFlag;

pub use crate::sys::file::replace;

/// Opens a regular file for reading: no last symbolic link, and neither a FIFO nor a device can make it wait.
///
/// # Errors
/// What open(2) says; `InvalidInput` for what is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    regular(OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?)
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file"))
    }
}

/// The whole of a regular file of at most `max` bytes.
///
/// # Errors
/// As [`open`]; `FileTooLarge` when there is more.
pub fn read(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    whole(open(path)?, max)
}

fn whole(file: File, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it is larger than {max} bytes")));
    }
    Ok(bytes)
}

#[cfg(feature = "dom0")]
/// The whole of a regular file of at most `max` bytes that nobody but root, or the user of this process, can have
/// written.
///
/// # Errors
/// As [`read`]; `PermissionDenied` when somebody else owns the file or may write it.
pub fn read_unshared(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::MetadataExt as _;
    let file = open(path)?;
    let metadata = file.metadata()?;
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let trusted = owner == 0 || owner == nix::unistd::geteuid().as_raw();
    if !trusted || mode & 0o022 != 0 {
        let text =
            format!("others may write it (owner {owner}, mode {mode:04o}), so it is not used; chown root, chmod 600");
        return Err(io::Error::new(ErrorKind::PermissionDenied, text));
    }
    whole(file, max)
}

#[cfg(feature = "dom0")]
/// As [`read_unshared`], in a directory that nobody else can change either: what is missing in it is missing, and no other
/// directory takes its place.
///
/// # Errors
/// As [`read_unshared`]; `PermissionDenied` also for the directory.
pub fn read_closed(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    use super::walk::{self, PathFault};
    match path.parent().map_or(Ok(()), walk::closed) {
        Ok(()) => read_unshared(path, max),
        Err(PathFault::Missing) => Err(ErrorKind::NotFound.into()),
        Err(PathFault::Io(_, e)) => Err(e),
        Err(fault @ (PathFault::Changeable(_) | PathFault::InProc(_))) => {
            Err(io::Error::new(ErrorKind::PermissionDenied, format!("it is not used: {fault}")))
        }
    }
}

/// Opens a file for appending, made with `mode` when it is missing.
///
/// # Errors
/// As [`open`].
pub fn append(path: &Path, mode: u32) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    regular(OpenOptions::new().append(true).create(true).mode(mode).custom_flags(flags.bits()).open(path)?)
}

/// Makes a directory that only its owner may enter, and those above it; one that is there already is closed to others.
///
/// # Errors
/// What the file system says; a symbolic link in its place is an error.
pub fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Err(io::Error::new(ErrorKind::NotADirectory, "it is no directory"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

#[cfg(feature = "dom0")]
/// Opens `path` so that it cannot lie anywhere but beneath `dir`: the kernel refuses `..`, links that lead out, magic
/// links and mounts of /proc on the way (openat2(2), Linux 5.6).
///
/// # Errors
/// EXDEV or ELOOP for a way out; what open(2) says.
pub fn open_beneath(dir: &Path, path: &Path, flags: OFlag, mode: u32) -> io::Result<std::os::fd::OwnedFd> {
    use nix::fcntl::{OpenHow, ResolveFlag, openat2};
    let inside = path.strip_prefix(dir).map_err(|_| ErrorKind::InvalidInput)?;
    let root = File::open(dir)?;
    let mut how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_NO_SYMLINKS);
    if flags.contains(OFlag::O_CREAT) {
        how = how.mode(nix::sys::stat::Mode::from_bits_truncate(mode));
    }
    Ok(openat2(&root, inside, how)?)
}

#[cfg(all(test, feature = "dom0"))]
mod tests {
    use std::{os::unix::fs::symlink, path::PathBuf};

    use super::*;

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), b"12345").expect("written");
        symlink(at("file"), at("link")).expect("linked");
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("made");
        symlink("/dev/zero", at("zero")).expect("linked");
        assert_eq!(read(&at("file"), 5).expect("five bytes"), b"12345");
        assert_eq!(read(&at("file"), 4).map_err(|e| e.kind()), Err(ErrorKind::FileTooLarge));
        for name in ["link", "fifo", "zero", "missing"] {
            assert!(read(&at(name), 100).is_err(), "{name}");
        }
        assert!(read(Path::new("/dev/zero"), 100).is_err());
        assert!(append(&at("link"), 0o600).is_err());
    }

    #[test]
    fn a_file_that_others_may_write_is_not_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("policy");
        fs::write(&path, b"allow shell *").expect("written");
        for (mode, fine) in [(0o600, true), (0o644, true), (0o620, false), (0o602, false), (0o666, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            let read = read_unshared(&path, 100);
            assert_eq!(read.as_ref().map_err(io::Error::kind).is_ok(), fine, "{mode:o}");
            if let Err(e) = read {
                assert_eq!(e.kind(), ErrorKind::PermissionDenied);
            }
        }
        if nix::unistd::geteuid().is_root() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
            std::os::unix::fs::chown(&path, Some(1000), None).expect("root may");
            assert!(read_unshared(&path, 100).is_err());
        }
    }

    #[test]
    fn a_file_in_a_directory_that_others_may_write_is_not_read() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("above/remote.d");
        fs::create_dir_all(&dir).expect("made");
        fs::write(dir.join("policy"), b"allow shell *").expect("written");
        symlink(&dir, root.path().join("link")).expect("linked");
        let ways = [dir.join("policy"), root.path().join("link/policy"), root.path().join("link/../remote.d/policy")];
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        let read = |path: &PathBuf| read_closed(path, 100).map_err(|e| (e.kind(), e.to_string()));
        // the directory itself, and one above it; there a sticky one is fine, because nobody else renames what is in it
        for (at, bits, fine) in [
            (dir.as_path(), 0o700, true),
            (&dir, 0o755, true),
            (&dir, 0o775, false),
            (&dir, 0o757, false),
            (&dir, 0o1777, false),
            (&root.path().join("above"), 0o777, false),
            (&root.path().join("above"), 0o1777, true),
        ] {
            mode(at, bits);
            for way in &ways {
                match read(way) {
                    Ok(text) => assert!(fine && text == b"allow shell *", "{way:?} {at:?} {bits:o}"),
                    Err((kind, why)) => {
                        assert!(!fine && kind == ErrorKind::PermissionDenied, "{way:?} {at:?} {bits:o}: {why}");
                        assert!(
                            why.contains(&at.display().to_string()) && why.contains("others may write it"),
                            "{why}"
                        );
                    }
                }
            }
            mode(at, 0o700);
        }
        assert_eq!(read(&root.path().join("nosuch/policy")).map_err(|(kind, _)| kind), Err(ErrorKind::NotFound));
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(root.path().join("above"), Some(1000), None).expect("root may");
            assert!(read(&ways[0]).is_err());
        }
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        symlink("/etc/passwd", &path).expect("linked");
        replace(&path, 0o640, b"new").expect("replaced");
        assert_eq!(fs::read(&path).expect("there"), b"new");
        let metadata = fs::symlink_metadata(&path).expect("there");
        assert_eq!((metadata.is_file(), metadata.permissions().mode() & 0o777), (true, 0o640));
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
    }

    #[test]
    fn nothing_beneath_a_directory_leads_out_of_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub")).expect("made");
        fs::write(dir.path().join("secret"), b"x").expect("written");
        fs::write(root.join("sub/file"), b"x").expect("written");
        symlink("../../secret", root.join("sub/out")).expect("linked");
        symlink("/etc", root.join("etc")).expect("linked");
        let open = |path: &str| open_beneath(&root, &root.join(path), OFlag::O_RDONLY, 0);
        assert!(open("sub/file").is_ok());
        for bad in ["sub/out", "../secret", "etc/passwd", "sub/../../secret"] {
            assert!(open(bad).is_err(), "{bad}");
        }
        assert!(open_beneath(&root, Path::new("/etc/passwd"), OFlag::O_RDONLY, 0).is_err());
    }
}
