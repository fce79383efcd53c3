//! What dom0 remembers of keys beside the keys: when each came, when it was used last, when it was retired. A file for each
//! key in `/var/lib/qvm-remote/keys`, named by the id of the key; the time of its last use is the time of a second file.
//! Nothing is decided by these records: they are for the eyes of the owner, and for the reason of a refusal.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{clock::now_ms, files};
use crate::proto::{
    mac::{Key, hex},
    remote::KeyId,
};

/// Keys that are remembered at most; those that were retired first are forgotten.
const MOST: usize = 512;
/// Bytes of a record at most.
const MAX_FILE: usize = 256;

/// The records of all keys.
#[derive(Clone, Debug)]
pub(crate) struct KeyRecords(PathBuf);

/// The record of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyRecord {
    /// The qube that has the key.
    pub(crate) vm: String,
    /// When the key was authorised.
    pub(crate) added: Option<u64>,
    /// When another key took its place, or none; in seconds since 1970, as `added`.
    pub(crate) retired: Option<u64>,
    pub(crate) used: Option<SystemTime>,
}

impl KeyRecords {
    /// Below `/var/lib/qvm-remote`.
    pub(crate) fn new(state: &Path) -> Self {
        Self(state.join("keys"))
    }

    fn at(&self, key: KeyId) -> PathBuf {
        self.0.join(hex(&key))
    }

    fn at_use(&self, key: KeyId) -> PathBuf {
        self.0.join(format!("{}.used", hex(&key)))
    }

    /// Reads the record of a key; an empty one where there is none.
    pub(crate) fn read(&self, key: KeyId) -> KeyRecord {
        let text = files::read(&self.at(key), MAX_FILE).ok().and_then(|text| String::from_utf8(text).ok());
        let text = text.unwrap_or_default();
        let word = |name: &str| text.split_whitespace().find_map(|word| word.strip_prefix(name));
        let seconds = |name| word(name).and_then(|seconds| seconds.parse().ok());
        let used = fs::symlink_metadata(self.at_use(key)).and_then(|file| file.modified()).ok();
        KeyRecord {
            vm: word("vm=").unwrap_or_default().to_owned(),
            added: seconds("added="),
            retired: seconds("retired="),
            used,
        }
    }

    /// A key was used now.
    pub(crate) fn used(&self, key: KeyId) -> io::Result<()> {
        files::private_dir(&self.0)?;
        files::append(&self.at_use(key), 0o600)?.set_modified(SystemTime::now())
    }

    /// The qube has these keys now, and had those before.
    pub(crate) fn changed(&self, vm: &str, before: &[Key], now: &[Key]) -> io::Result<()> {
        for key in now.iter().filter(|key| !before.contains(key)) {
            self.write(key.id(), &KeyRecord { vm: vm.to_owned(), added: Some(seconds()), ..KeyRecord::default() })?;
        }
        for key in before.iter().filter(|key| !now.contains(key)) {
            let record = KeyRecord { vm: vm.to_owned(), retired: Some(seconds()), ..self.read(key.id()) };
            self.write(key.id(), &record)?;
        }
        self.forget_the_oldest()
    }

    fn write(&self, key: KeyId, record: &KeyRecord) -> io::Result<()> {
        files::private_dir(&self.0)?;
        let field = |name: &str, time: Option<u64>| time.map_or_else(String::new, |time| format!(" {name}={time}"));
        let text = format!("vm={}{}{}\n", record.vm, field("added", record.added), field("retired", record.retired));
        files::replace(&self.at(key), 0o600, text.as_bytes())
    }

    fn forget_the_oldest(&self) -> io::Result<()> {
        let names = fs::read_dir(&self.0)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ids: Vec<KeyId> = names.filter_map(|name| crate::proto::mac::unhex(name.as_bytes())).collect();
        let mut retired: Vec<_> = ids.iter().filter_map(|id| Some((self.read(*id).retired?, *id))).collect();
        retired.sort_unstable();
        for (_, id) in retired.into_iter().take(ids.len().saturating_sub(MOST)) {
            let _ = fs::remove_file(self.at_use(id));
            fs::remove_file(self.at(id))?;
        }
        File::open(&self.0).map(drop)
    }
}

fn seconds() -> u64 {
    now_ms() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_remembered_from_its_authorisation_over_its_use_to_its_end_and_longer() {
        let dir = tempfile::tempdir().expect("a directory");
        let records = KeyRecords::new(dir.path());
        let [old, new] = [1, 2].map(|n| Key::new([n; 32]));
        assert_eq!(records.read(old.id()), KeyRecord::default());
        records.changed("work", &[], std::slice::from_ref(&old)).expect("written");
        records.used(old.id()).expect("written");
        let record = records.read(old.id());
        assert!(record.vm == "work" && record.added.is_some() && record.used.is_some(), "{record:?}");
        records.changed("work", std::slice::from_ref(&old), &[new.clone(), old.clone()]).expect("written");
        assert_eq!((records.read(old.id()).retired, records.read(new.id()).retired), (None, None));
        records.changed("work", &[new.clone(), old.clone()], std::slice::from_ref(&new)).expect("written");
        let retired = records.read(old.id());
        assert!(
            retired.retired.is_some() && retired.added == record.added && retired.used == record.used,
            "{retired:?}"
        );
        assert_eq!(records.read(new.id()).used, None);
        // authorised again, it is a new one
        records.changed("work", &[], std::slice::from_ref(&old)).expect("written");
        assert_eq!(records.read(old.id()).retired, None);
    }

    #[test]
    fn keys_that_were_retired_first_are_forgotten_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let records = KeyRecords::new(dir.path());
        let id = |n: usize| u64::try_from(n).expect("small").to_be_bytes();
        for n in 0..MOST + 2 {
            let retired = (n != 1).then_some(1000 + n as u64);
            records.write(id(n), &KeyRecord { vm: "work".into(), retired, ..KeyRecord::default() }).expect("written");
        }
        records.forget_the_oldest().expect("removed");
        assert_eq!([0, 1, 2, 3].map(|n| records.at(id(n)).exists()), [false, true, false, true]);
    }
}
