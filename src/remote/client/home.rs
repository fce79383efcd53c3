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

    /// dom0 has accepted the new key: it takes the place of the old one.
    pub(super) fn take_new_key(&self) -> io::Result<()> {
        std::fs::rename(self.new_key_path(), self.at("auth.key"))
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
