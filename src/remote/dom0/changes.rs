//! Changes of keys and policies, made by whatever editor or program: each is an entry of the log before anything runs by
//! it, and an event in the journal.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::time::{Instant, timeout};

use super::{
    access::QubeAccess,
    state::{Shared, Vm},
};
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

/// An editor writes a file in several steps: a change counts when nothing has changed for so long.
const QUIET: Duration = Duration::from_millis(300);
/// However often something changes, a change counts after so long.
const LATEST: Duration = Duration::from_secs(3);

/// Waits for changes until there is none for a moment; false when there will be none any more.
async fn changed(events: &AsyncPipe, buffer: &mut [u8]) -> bool {
    if events.read(buffer).await.is_err() {
        return false;
    }
    let latest = Instant::now() + LATEST;
    while Instant::now() < latest {
        match timeout(QUIET, events.read(buffer)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return false,
            Err(_) => break,
        }
    }
    true
}

/// Notes every change and tells those who wait for that qube, until the daemon ends.
pub(super) async fn watch(shared: Arc<Shared>) {
    let events = || -> io::Result<AsyncPipe> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        inotify.add_watch(&shared.paths.keys, flags | AddWatchFlags::IN_MOVED_FROM)?;
        AsyncPipe::reader(OwnedFd::from(inotify))
    };
    let events = events(); // before the first look, so that nothing comes between
    let mut buffer = vec![0; 4096];
    let mut seen: HashMap<String, String> = HashMap::new();
    loop {
        let vms: Vec<Arc<Vm>> = lock(&shared.vms).values().cloned().collect();
        seen.retain(|name, _| vms.iter().any(|vm| vm.name == *name));
        for vm in vms {
            let access = QubeAccess::read(&shared, &vm.name);
            note(&shared, &vm.name, &access);
            let entry = access.entry(&vm.name);
            if seen.get(&vm.name) != Some(&entry) {
                seen.insert(vm.name.clone(), entry);
                vm.look_again();
            }
        }
        match &events {
            Ok(events) if changed(events, &mut buffer).await => {}
            _ => return, // each command looks at the files before it runs
        }
    }
}
