//! Key files: `~/.qvm-remote/auth.key` in a VM, `/etc/qubes/remote.d/VM.key` in dom0.
//!
//! dom0 may hold two keys of a VM, one a line: while a key is being changed both are taken, and the first is the new
//! one. The original wrote and read one line; its files are read as they are.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::files;
use crate::proto::{
    mac::{Key, KeyId},
    remote::valid_vm,
};

/// Bytes of a key file at most: two keys, and room for line ends.
const MAX_FILE: usize = 256;

/// Makes a new key.
///
/// # Errors
/// What getrandom(2) says.
pub fn generate() -> io::Result<Key> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes)?;
    Ok(Key::new(*bytes))
}

/// Reads the key of this VM.
///
/// # Errors
/// `NotFound` where there is none; `InvalidData` when it is none.
pub fn read_own(path: &Path) -> io::Result<Key> {
    let text = Zeroizing::new(files::read(path, MAX_FILE)?);
    Key::from_hex(&text).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// Writes the key of this VM.
///
/// # Errors
/// What the file system says.
pub fn write_own(path: &Path, key: &Key) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        files::private_dir(dir)?;
    }
    files::replace(path, 0o600, format!("{}\n", *key.to_hex()).as_bytes())
}

/// The keys that dom0 holds for its VMs.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Of this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The file of a VM. Its name is checked, so it leads nowhere else.
    ///
    /// # Errors
    /// `InvalidInput` for a name that no qube can have.
    pub fn path(&self, vm: &str, extension: &str) -> io::Result<PathBuf> {
        if valid_vm(vm) {
            Ok(self.dir.join(format!("{vm}.{extension}")))
        } else {
            Err(io::Error::new(ErrorKind::InvalidInput, "no qube can have this name"))
        }
    }

    /// The keys of a VM: at least one, at most two, the newest first. Read anew for each request, so that a
    /// revocation counts at once.
    ///
    /// # Errors
    /// `NotFound` when it has none; `InvalidData` when one line of the file is no key.
    pub fn read(&self, vm: &str) -> io::Result<Vec<Key>> {
        let text = Zeroizing::new(files::read(&self.path(vm, "key")?, MAX_FILE)?);
        let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let keys: Option<Vec<Key>> = lines.map(Key::from_hex).collect();
        match keys {
            Some(keys) if (1..=2).contains(&keys.len()) => Ok(keys),
            Some(keys) if keys.is_empty() => Err(ErrorKind::NotFound.into()),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }

    /// The key of a VM with this id.
    ///
    /// # Errors
    /// As [`read`](Self::read); `NotFound` when none of them is it.
    pub fn find(&self, vm: &str, id: &KeyId) -> io::Result<Key> {
        self.read(vm)?.into_iter().find(|key| key.id() == *id).ok_or_else(|| ErrorKind::NotFound.into())
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

    /// Removes the keys of a VM; whether there were any.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, vm: &str) -> io::Result<bool> {
        match fs::remove_file(self.path(vm, "key")?) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The VMs that have keys, sorted.
    pub fn list(&self) -> Vec<String> {
        let Ok(dir) = fs::read_dir(&self.dir) else { return Vec::new() };
        let mut vms: Vec<_> = dir
            .filter_map(|entry| Some(entry.ok()?.file_name().into_string().ok()?.strip_suffix(".key")?.to_owned()))
            .filter(|vm| valid_vm(vm))
            .collect();
        vms.sort_unstable();
        vms
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_survives_its_file_and_the_file_is_private() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("sub/auth.key");
        let key = generate().expect("random bytes");
        write_own(&path, &key).expect("written");
        assert_eq!(read_own(&path).expect("read"), key);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(dir.path().join("sub")).expect("there").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn while_a_key_is_changed_both_are_taken_and_then_only_the_new_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path());
        let [one, two, three] = std::array::from_fn(|_| generate().expect("random bytes"));
        store.write("work", &one, true).expect("written");
        store.write("work", &two, true).expect("written");
        assert_eq!(store.read("work").expect("two"), [two.clone(), one.clone()]);
        assert_eq!(store.find("work", &one.id()).expect("the old one"), one);
        store.write("work", &three, false).expect("written");
        assert_eq!(store.read("work").expect("one"), [three]);
        assert!(store.find("work", &two.id()).is_err());
        assert_eq!(store.list(), ["work"]);
        assert!(store.remove("work").expect("removed"));
        assert!(!store.remove("work").expect("nothing to remove"));
        assert_eq!(store.read("work").map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    }

    #[test]
    fn a_name_that_is_a_path_leads_nowhere() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::new(dir.path().join("inner"));
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
        let store = Store::new(dir.path());
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
