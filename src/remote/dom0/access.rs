//! What decides about a qube, read at one moment: its keys and its policy. The decision and the entry of the log about a
//! change come from the same reading, so they never contradict each other.

use std::io::{self, ErrorKind};

use super::state::Shared;
use crate::{
    proto::mac::{Digest, Key, digest, hex},
    remote::{
        policy::Policy,
        policy_file::{self, PolicyFileError},
    },
};

/// One reading.
pub(super) struct QubeAccess {
    pub(super) keys: io::Result<Vec<Key>>,
    pub(super) policy: Result<Policy, PolicyFileError>,
    /// The digest of the policy's text, where the text could be read.
    text: Option<Digest>,
}

impl QubeAccess {
    pub(super) fn read(shared: &Shared, vm: &str) -> Self {
        let text = shared.policy_path(vm).and_then(|path| Ok((policy_file::installed_text(&path)?, path)));
        let (policy, text) = match text {
            Ok((text, path)) => (policy_file::parse(&path, &text), Some(digest(text.as_bytes()))),
            Err(e) => (Err(e), None),
        };
        Self { keys: shared.keys.read(vm), policy, text }
    }

    /// What the log says of it.
    pub(super) fn entry(&self, vm: &str) -> String {
        let keys = match &self.keys {
            Ok(keys) => keys.iter().map(|key| hex(&key.id())).collect::<Vec<_>>().join(","),
            Err(e) if e.kind() == ErrorKind::NotFound => "none".to_owned(),
            Err(_) => "unusable".to_owned(),
        };
        let policy = match (&self.text, &self.policy) {
            (Some(digest), _) => hex(digest),
            (None, Err(PolicyFileError::Missing(_))) => "none".to_owned(),
            (None, _) => "unusable".to_owned(),
        };
        format!("vm={vm} keys={keys} policy={policy}")
    }
}
