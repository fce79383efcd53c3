//! Changes of keys and policies, made by whatever editor or program: each is an entry of the log before anything runs by
//! it, and an event in the journal.

use std::{collections::HashSet, io, os::fd::OwnedFd, sync::Arc};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::{access::QubeAccess, state::Shared};
use crate::{
    log::{Event, Kind, emit},
    remote::{audit, pipe::AsyncPipe, policy::Policy, policy_file::PolicyFileError},
    sys::lock,
};

/// Writes down what the key and the policy of a VM are by this reading, when that is not what stands in the log already.
pub(super) fn note(shared: &Shared, vm: &str, access: &QubeAccess) {
    let text = access.entry(vm);
    {
        let mut noted = lock(&shared.noted);
        if noted.get(vm) == Some(&text) || !shared.audit.write("ACCESS", &text) {
            return; // an entry that found no room is written at the next look
        }
        noted.insert(vm.to_owned(), text.clone());
    }
    let mut event = Event::new(Kind::AccessChanged, format!("the key or the policy of {vm}: {text}"));
    event.qube = Some(vm.into());
    emit(event);
    keep_enough(shared);
}

/// Keeps as many files of the log as the quotas of all qubes need that are listed or have a key. While a policy cannot be
/// read, older files stay that a smaller number would delete.
fn keep_enough(shared: &Shared) {
    let mut vms: HashSet<String> = lock(&shared.vms).keys().cloned().collect();
    vms.extend(shared.config.vms.iter().cloned().chain(shared.keys.list()));
    let policies: Vec<_> = vms.iter().map(|vm| shared.policy(vm)).collect();
    let quota = |policy: &Result<Policy, PolicyFileError>| policy.as_ref().ok().and_then(|policy| policy.audit_quota);
    let quotas = policies.iter().map(|policy| quota(policy).unwrap_or(audit::DEFAULT));
    let sure = policies.iter().all(|policy| matches!(policy, Ok(_) | Err(PolicyFileError::Missing(_))));
    shared.audit.keep(audit::kept(quotas, shared.config.log_size), sure);
}

/// Notes every change and tells whoever waits, until the daemon ends.
pub(super) async fn watch(shared: Arc<Shared>) {
    let events = || -> io::Result<AsyncPipe> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        inotify.add_watch(&shared.paths.keys, flags | AddWatchFlags::IN_MOVED_FROM)?;
        AsyncPipe::reader(OwnedFd::from(inotify))
    };
    let events = events(); // before the first look, so that nothing comes between
    let mut buffer = vec![0; 4096];
    loop {
        let vms: Vec<String> = lock(&shared.vms).keys().cloned().collect();
        vms.iter().for_each(|vm| note(&shared, vm, &QubeAccess::read(&shared, vm)));
        lock(&shared.vms).values().for_each(|vm| vm.look_again());
        match &events {
            Ok(events) if events.read(&mut buffer).await.is_ok() => {}
            _ => return, // each command looks all the same
        }
    }
}
