//! Files that are there whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    hash::{BuildHasher as _, RandomState},
    io::{self, ErrorKind, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
};

/// How often a name that is taken is replaced by another.
const ATTEMPTS: usize = 16;

/// The first `limit` bytes of a file.
///
/// # Errors
/// What open(2) and read(2) say.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Puts a file in the place of whatever is at `path`, a symbolic link included.
///
/// # Errors
/// What the file system says; what was there is then untouched.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    NewFile::beside(path)?.replace(path, mode, bytes)
}

/// Makes a file at `path`, where nothing may be.
///
/// # Errors
/// `AlreadyExists`; what the file system says.
pub fn create(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    NewFile::beside(path)?.put(mode, bytes, |temporary| {
        match renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
            // Some file systems have no such flag, and most of those have hard links.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                fs::hard_link(temporary, path)?;
                let _ = fs::remove_file(temporary);
                Ok(())
            }
            done => Ok(done?),
        }
    })
}

/// A file that is to come into the place of another, open for writing.
#[derive(Debug)]
pub struct NewFile {
    temporary: PathBuf,
    file: File,
}

impl NewFile {
    /// A new file in the directory of `path`, for its owner alone, under a name that nobody can know before.
    ///
    /// # Errors
    /// What open(2) says; `AlreadyExists` where every name was taken.
    pub fn beside(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600); // O_EXCL: follows no link either
        let mut taken = io::Error::from(ErrorKind::AlreadyExists);
        for _ in 0..ATTEMPTS {
            let mut name = name.to_owned();
            // The seed of each is random (getrandom(2)), or differs from the one before.
            name.push(format!(".{:016x}.tmp", RandomState::new().hash_one(std::process::id())));
            let temporary = path.with_file_name(name);
            match options.open(&temporary) {
                Ok(file) => return Ok(Self { temporary, file }),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => taken = e,
                Err(e) => return Err(e),
            }
        }
        Err(taken)
    }

    /// Writes the file and puts it in the place of whatever is at `path`.
    ///
    /// # Errors
    /// What the file system says; what was there is then untouched.
    pub fn replace(self, path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.put(mode, bytes, |temporary| fs::rename(temporary, path))
    }

    /// Writes the file, gives it its mode, and has `settle` put it in place.
    fn put(mut self, mode: u32, bytes: &[u8], settle: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let result = self
            .file
            .write_all(bytes)
            .and_then(|()| self.file.set_permissions(fs::Permissions::from_mode(mode)))
            .and_then(|()| self.file.sync_data())
            .and_then(|()| settle(&self.temporary));
        if result.is_err() {
            let _ = fs::remove_file(&self.temporary);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(directory: &Path) -> Vec<PathBuf> {
        let mut names: Vec<PathBuf> =
            fs::read_dir(directory).expect("a directory").flatten().map(|entry| entry.path()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        symlink("/etc/passwd", &path).expect("linked");
        replace(&path, 0o640, b"new").expect("replaced");
        assert_eq!(fs::read(&path).expect("it is there"), b"new");
        let meta = fs::symlink_metadata(&path).expect("it is there");
        assert_eq!((meta.is_file(), meta.permissions().mode() & 0o7777), (true, 0o640));
        assert_eq!(names(directory.path()), [path]);
    }

    #[test]
    fn a_file_is_created_only_where_nothing_is() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, link) = (directory.path().join("file"), directory.path().join("link"));
        create(&path, 0o644, b"first").expect("created");
        symlink("nowhere", &link).expect("linked");
        for taken in [&path, &link] {
            assert_eq!(create(taken, 0o600, b"second").map_err(|e| e.kind()), Err(ErrorKind::AlreadyExists));
        }
        assert_eq!(fs::read(&path).expect("it is there"), b"first");
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777, 0o644);
        assert_eq!(names(directory.path()), [path, link]);
    }

    #[test]
    fn a_file_that_cannot_be_put_in_place_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("taken");
        fs::create_dir(&path).expect("made");
        replace(&path, 0o600, b"new").expect_err("a directory is there");
        assert_eq!(names(directory.path()), [path]);
    }
}
