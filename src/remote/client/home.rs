//! Where this user's key, log, history and queue lie.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::submission::ClientError;
use crate::{proto::mac::Key, remote::keys};

/// Where this user's files lie.
#[derive(Clone, Debug)]
pub struct Home(pub(super) PathBuf);

impl Home {
    /// Below `$HOME`, taken over from the older name when it is not there yet.
    ///
    /// # Errors
    /// No `$HOME`.
    pub fn find() -> io::Result<Self> {
        let home = user_home().ok_or_else(|| io::Error::other("HOME is not set"))?;
        let (new, old) = (home.join(".qvm-remote"), home.join(".qubes-remote"));
        if !new.exists() && old.is_dir() {
            let _ = std::fs::rename(old, &new);
        }
        Ok(Self(new))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where a new key waits until dom0 has accepted it.
    pub fn new_key_path(&self) -> PathBuf {
        self.at("auth.key.new")
    }

    /// The key that waits until dom0 has accepted it.
    pub(crate) fn new_key(&self) -> Option<Key> {
        keys::read_own(&self.new_key_path(), None).ok()
    }

    /// dom0 has accepted this new key: it takes the place of the old one. Another command may have done that already, or a
    /// newer key may wait by now: then nothing is to be done. Where a service has its key as a credential there is no
    /// old one here, and the new one stays where it is.
    pub(super) fn take_new_key(&self, accepted: &Key) -> io::Result<()> {
        let key = self.at("auth.key");
        if self.new_key().as_ref() != Some(accepted) || !key.exists() {
            return Ok(());
        }
        match std::fs::rename(self.new_key_path(), key) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        }
    }

    /// This VM's key.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn key(&self) -> Result<Key, ClientError> {
        keys::read_own(&self.at("auth.key"), keys::credentials().as_deref()).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => ClientError::Local("no key configured. Run: qvm-remote key gen".into()),
            io::ErrorKind::InvalidData => ClientError::Local("invalid key (expected 64 hex characters)".into()),
            _ => ClientError::Local(format!("failed to read key: {e}")),
        })
    }
}

/// The home directory: `$HOME`, as the original has it.
fn user_home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_takes_the_place_of_the_old_one_when_dom0_has_accepted_that_very_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home(dir.path().join(".qvm-remote"));
        let [old, new, newer] = [1, 2, 3].map(|n| Key::new([n; 32]));
        let in_use = || keys::read_own(&home.at("auth.key"), None).ok();
        keys::write_own(&home.new_key_path(), &new).expect("written");
        // the old one is a credential: none is here
        home.take_new_key(&new).expect("nothing to be done");
        assert_eq!((in_use(), home.new_key()), (None, Some(new.clone())));
        keys::write_own(&home.at("auth.key"), &old).expect("written");
        // while a command ran with the new key another one was made
        keys::write_own(&home.new_key_path(), &newer).expect("written");
        home.take_new_key(&new).expect("nothing to be done");
        assert_eq!((in_use(), home.new_key()), (Some(old), Some(newer.clone())));
        home.take_new_key(&newer).expect("moved");
        assert_eq!((in_use(), home.new_key()), (Some(newer.clone()), None));
        // another command has done it already
        home.take_new_key(&newer).expect("nothing to be done");
        assert_eq!(in_use(), Some(newer));
    }
}
