//! Key files: `~/.qvm-remote/auth.key` in a VM, `/etc/qubes/remote.d/VM.key` in dom0.
//!
//! dom0 may hold two keys of a VM, one a line: while a key is being changed both are taken, and the first is the new
//! one. The original wrote and read one line; its files are read as they are.
//!
//! Either may come as a credential of systemd instead (`LoadCredential=`, encrypted or not): `qvm-remote.key` for a
//! service in a VM, `VM.key` for the daemon in dom0. There a file of the directory goes before the credential, and an
//! empty one stands for no key at all: so `authorize` and `revoke` count at once, while credentials are read by systemd
//! and only when the service starts.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
};

use zeroize::Zeroizing;

use super::files;
use crate::proto::mac::Key;

/// Bytes of a key file at most: two keys, and room for line ends.
const MAX_FILE: usize = 256;
#[cfg(feature = "remote")]
/// The credential with the key of a VM, for services there.
const OWN: &str = "qvm-remote.key";

/// Where systemd has put this process's credentials (systemd.exec(5), `$CREDENTIALS_DIRECTORY`).
pub fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from).filter(|dir| dir.is_absolute())
}

#[cfg(feature = "remote")]
/// Makes a new key.
///
/// # Errors
/// What getrandom(2) says.
pub fn generate() -> io::Result<Key> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes)?;
    Ok(Key::new(*bytes))
}

#[cfg(feature = "remote")]
/// Reads the key of this VM: the credential, if `credentials` has one, else the file.
///
/// # Errors
/// `NotFound` where there is none; `InvalidData` when it is none.
pub fn read_own(path: &std::path::Path, credentials: Option<&std::path::Path>) -> io::Result<Key> {
    let credential = credentials.map(|dir| dir.join(OWN)).filter(|path| path.exists());
    let text = Zeroizing::new(files::read(credential.as_deref().unwrap_or(path), MAX_FILE)?);
    Key::from_hex(&text).ok_or_else(|| ErrorKind::InvalidData.into())
}

#[cfg(feature = "remote")]
/// Writes the key of this VM.
///
/// # Errors
/// What the file system says.
pub fn write_own(path: &std::path::Path, key: &Key) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        files::private_dir(dir)?;
    }
    files::replace(path, 0o600, format!("{}\n", *key.to_hex()).as_bytes())
}

#[cfg(feature = "dom0")]
/// The keys that dom0 holds for its VMs.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    credentials: Option<PathBuf>,
}

#[cfg(feature = "dom0")]
impl Store {
    /// Of this directory, and of a directory of credentials besides it.
    pub fn new(dir: impl Into<PathBuf>, credentials: Option<PathBuf>) -> Self {
        Self { dir: dir.into(), credentials }
    }

    /// The file of a VM. Its name is checked, so it leads nowhere else.
    ///
    /// # Errors
    /// `InvalidInput` for an invalid name of a qube.
    pub fn path(&self, vm: &str, extension: &str) -> io::Result<PathBuf> {
        if crate::proto::qube::valid_vm(vm) {
            Ok(self.dir.join(format!("{vm}.{extension}")))
        } else {
            Err(io::Error::new(ErrorKind::InvalidInput, "no qube can have this name"))
        }
    }

    /// The keys of a VM: at least one, at most two, the newest first. Read again for each request, so that a
    /// revocation counts at once.
    ///
    /// # Errors
    /// `NotFound` when it has none; `InvalidData` when one line of the file is no key; `PermissionDenied` when others
    /// may write the file or its directory.
    pub fn read(&self, vm: &str) -> io::Result<Vec<Key>> {
        let path = self.path(vm, "key")?;
        let text = match (files::read_closed(&path, MAX_FILE), &self.credentials) {
            (Err(e), Some(dir)) if e.kind() == ErrorKind::NotFound => {
                files::read_closed(&dir.join(format!("{vm}.key")), MAX_FILE)?
            }
            (read, _) => read?,
        };
        let text = Zeroizing::new(text);
        let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let keys: Option<Vec<Key>> = lines.map(Key::from_hex).collect();
        match keys {
            Some(keys) if (1..=2).contains(&keys.len()) => Ok(keys),
            Some(keys) if keys.is_empty() => Err(ErrorKind::NotFound.into()),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }

    /// Stores the key of a VM. With `keep`, the one that was newest until now is taken besides it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, vm: &str, key: &Key, keep: bool) -> io::Result<PathBuf> {
        let path = self.path(vm, "key")?;
        files::private_dir(&self.dir)?;
        let mut text = Zeroizing::new(format!("{}\n", *key.to_hex()));
        if keep {
            if let Some(old) = self.read(vm).ok().and_then(|keys| keys.into_iter().find(|old| old != key)) {
                text.push_str(&old.to_hex());
                text.push('\n');
            }
        }
        files::replace(&path, 0o600, text.as_bytes())?;
        Ok(path)
    }

    /// Removes the keys of a VM, damaged ones as well; whether there were any. An empty file stays in their place, so
    /// that no credential takes it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, vm: &str) -> io::Result<bool> {
        let path = self.path(vm, "key")?;
        if self.read(vm).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            return Ok(false);
        }
        files::private_dir(&self.dir)?;
        files::replace(&path, 0o600, b"")?;
        Ok(true)
    }

    /// The VMs that have keys, sorted.
    pub fn list(&self) -> Vec<String> {
        let dirs = [Some(&self.dir), self.credentials.as_ref()].into_iter().flatten();
        let files = dirs.filter_map(|dir| std::fs::read_dir(dir).ok()).flatten();
        let mut vms: Vec<_> = files
            .filter_map(|entry| Some(entry.ok()?.file_name().into_string().ok()?.strip_suffix(".key")?.to_owned()))
            .filter(|vm| {
                !self.read(vm).is_err_and(|e| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput))
            })
            .collect();
        vms.sort_unstable();
        vms.dedup();
        vms
    }
}

#[cfg(all(test, feature = "remote", feature = "dom0"))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_key_survives_its_file_and_the_file_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/auth.key");
        let key = generate().expect("random bytes");
        write_own(&path, &key).expect("written");
        assert_eq!(read_own(&path, None).expect("read"), key);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(dir.path().join("sub")).expect("there").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn while_a_key_is_changed_both_are_taken_and_then_only_the_new_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path(), None);
        let [one, two, three] = std::array::from_fn(|_| generate().expect("random bytes"));
        store.write("work", &one, true).expect("written");
        store.write("work", &two, true).expect("written");
        assert_eq!(store.read("work").expect("two"), [two.clone(), one.clone()]);
        store.write("work", &three, false).expect("written");
        assert_eq!(store.read("work").expect("one"), [three]);
        assert_eq!(store.list(), ["work"]);
        assert!(store.remove("work").expect("removed"));
        assert!(!store.remove("work").expect("nothing to remove"));
        assert_eq!(store.read("work").map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    }

    #[test]
    fn a_credential_is_a_key_until_the_owner_says_otherwise() {
        let (dir, credentials) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        let store = Store::new(dir.path().join("remote.d"), Some(credentials.path().to_owned()));
        let [one, two] = std::array::from_fn(|_| generate().expect("random bytes"));
        assert!(store.list().is_empty() && !store.remove("work").expect("nothing to remove"));
        fs::write(credentials.path().join("work.key"), one.to_hex().as_bytes()).expect("written");
        assert_eq!(store.read("work").expect("the credential"), std::slice::from_ref(&one));
        assert_eq!(store.list(), ["work"]);
        assert!(store.remove("work").expect("revoked") && !store.remove("work").expect("once"));
        assert_eq!(store.read("work").map_err(|e| e.kind()), Err(ErrorKind::NotFound));
        assert!(store.list().is_empty());
        store.write("work", &two, true).expect("written");
        assert_eq!(store.read("work").expect("the file"), std::slice::from_ref(&two), "what was revoked is no old key");
        let own = dir.path().join("auth.key");
        write_own(&own, &one).expect("written");
        fs::write(credentials.path().join("qvm-remote.key"), two.to_hex().as_bytes()).expect("written");
        assert_eq!(read_own(&own, Some(credentials.path())).expect("read"), two);
        assert_eq!(read_own(&own, Some(dir.path())).expect("read"), one);
    }

    #[test]
    fn a_name_that_is_a_path_leads_nowhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path().join("inner"), None);
        let key = generate().expect("random bytes");
        for name in ["../x", "a/b", "", ".", "x.y"] {
            assert!(store.write(name, &key, false).is_err(), "{name}");
            assert!(store.read(name).is_err(), "{name}");
            assert!(store.remove(name).is_err(), "{name}");
        }
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    }

    #[test]
    fn a_damaged_file_is_no_key_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path(), None);
        let good = generate().expect("random bytes").to_hex();
        for (text, kind) in [
            (String::new(), ErrorKind::NotFound),
            ("x".to_owned(), ErrorKind::InvalidData),
            (format!("{}\nx\n", *good), ErrorKind::InvalidData),
            (format!("{0}\n{0}\n{0}\n", *good), ErrorKind::InvalidData),
        ] {
            fs::write(dir.path().join("work.key"), &text).expect("written");
            assert_eq!(store.read("work").map_err(|e| e.kind()), Err(kind), "{text}");
        }
    }
}
