//! What root does with these commands, in dom0's log and in the journal.

use super::arguments::PROGRAM;
use crate::{
    log::{self, Event, Kind},
    remote::{
        audit,
        config::{Paths, RemoteConfig},
    },
};

/// Writes an entry. What root does here works whether or not it can be written down.
pub(super) fn append(paths: &Paths, category: &str, text: &str) {
    let limit = RemoteConfig::load(&paths.conf).ok().map(|config| config.log_size);
    if let Err(e) = audit::append(&paths.log, limit, category, text) {
        eprintln!("WARNING: {}: {e}: this is not in dom0's log: {category} {text}", paths.log.display());
    }
}

/// Writes an entry about the key or the policy of a qube, and tells the journal.
pub(super) fn record(paths: &Paths, vm: &str, category: &str, text: &str) {
    append(paths, category, text);
    let mut event = Event::new(Kind::KeyChanged, format!("{category} {text}"));
    event.qube = Some(vm.into());
    log::tell_journal(PROGRAM, &event);
}
