//! Which VMs are served: those of the configuration, read at the start and at SIGHUP.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{
    call, channel,
    state::{Absence, DaemonOptions, Shared, StartError},
};
use crate::{
    log::{Event, Kind, emit},
    remote::config::RemoteConfig,
    sys::lock,
};

/// Tells of names that no qube can have.
pub(super) fn bad_names(shared: &Shared, config: &RemoteConfig) {
    for bad in &config.bad {
        let (file, name) = (shared.paths.conf.display(), crate::log::escape(bad.as_bytes()));
        emit(Event::new(Kind::ConfigurationRejected, format!("{file}: no qube can have this name: {name}")));
    }
}

/// Between two looks for names of the list that no qube had, doubled from the first to the last: qvm-check may have
/// failed, or the qube comes later.
const SOUGHT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// Tells of names that no qube has, and has them looked for again: the others are served.
pub(super) fn missing(shared: &Shared, names: Vec<String>) {
    let why = "no qube has this name";
    let file = shared.paths.conf.display();
    let advice = format!("; if it is not to come, take it off QVM_REMOTE_VMS in {file}");
    look_again(shared, names, Absence::NoSuchQube, why, &advice);
}

/// Tells of names that could not be looked for, and has them looked for again.
fn unknown(shared: &Shared, names: Vec<String>, fault: Option<&StartError>) {
    let why =
        fault.map_or_else(|| "qvm-check failed".to_owned(), |fault| format!("dom0 could not look for it ({fault})"));
    look_again(shared, names, Absence::Unknown, &why, "");
}

fn look_again(shared: &Shared, names: Vec<String>, absence: Absence, why: &str, advice: &str) {
    for name in &names {
        let minutes = SOUGHT.1.as_secs() / 60;
        let text =
            format!("{name} is not served: {why}. dom0 looks for it again, every {minutes} min at the latest{advice}");
        emit(Event::new(Kind::ConfigurationRejected, text));
    }
    lock(&shared.missing).extend(names.into_iter().map(|name| (name, absence)));
    shared.sought.notify_waiters();
}

/// Looks again and again for names that no qube had, and serves the qubes that are found.
pub(super) async fn seek(shared: Arc<Shared>, channels: TaskTracker) {
    let mut wait = SOUGHT.0;
    loop {
        let mut others = pin!(shared.sought.notified());
        others.as_mut().enable(); // before the look, so that nothing comes between
        let names: Vec<String> = lock(&shared.missing).keys().cloned().collect();
        if names.is_empty() {
            others.await;
            wait = SOUGHT.0;
            continue;
        }
        if timeout(wait, others).await.is_ok() {
            wait = SOUGHT.0;
            continue;
        }
        wait = (wait * 2).min(SOUGHT.1);
        let checked = call::check(&names).await;
        for name in checked.missing {
            // the list may have been read again meanwhile
            lock(&shared.missing).entry(name).and_modify(|why| *why = Absence::NoSuchQube);
        }
        for name in checked.served {
            if lock(&shared.missing).remove(&name).is_some() && !served(&shared, &name) {
                emit(Event::new(Kind::ConfigurationReloaded, format!("{name} was found and is served")));
                open(&shared, &name, &channels);
            }
        }
    }
}

fn served(shared: &Shared, name: &str) -> bool {
    lock(&shared.vms).contains_key(name)
}

/// Begins to serve a VM.
pub(super) fn open(shared: &Arc<Shared>, name: &str, channels: &TaskTracker) {
    if let Err(e) = shared.keys.read(name) {
        let text = format!("{name} has no usable key, so it is not served ({e}); qvm-remote-dom0 authorize {name} KEY");
        shared.audit.write("AUTH-DENY", &format!("vm={name} no key"));
        emit(Event::new(Kind::ConfigurationRejected, text));
    }
    channels.spawn(channel::keep(shared.clone(), shared.vm(name)));
}

/// Reads the list of VMs again: new ones are served, of those that went every command is ended and the channel
/// closed. A file that cannot be read changes nothing.
pub(super) async fn reread(shared: &Arc<Shared>, options: &DaemonOptions, channels: &TaskTracker) {
    let config = match RemoteConfig::load(&shared.paths.conf) {
        Ok(config) => config,
        Err(e) => {
            let text = format!("{}: {e}; the list of qubes stays as it was", shared.paths.conf.display());
            emit(Event::new(Kind::ConfigurationRejected, text));
            return;
        }
    };
    bad_names(shared, &config);
    let wanted = options.vm.as_ref().map_or(config.vms, |vm| vec![vm.clone()]);
    lock(&shared.missing).retain(|name, _| wanted.contains(name)); // so that `seek` serves none that went
    let gone: Vec<_> = {
        let mut vms = lock(&shared.vms);
        let gone = vms.keys().filter(|name| !wanted.contains(*name)).cloned().collect::<Vec<_>>();
        gone.iter().filter_map(|name| vms.remove(name)).collect()
    };
    for vm in gone {
        vm.listed.store(false, Relaxed);
        shared.kill(&vm.name);
        let shared = shared.clone();
        // its commands are answered first
        tokio::spawn(async move {
            let ended = async {
                while shared.requests.list().iter().any(|request| request.vm == vm.name) {
                    sleep(Duration::from_millis(50)).await;
                }
            };
            let _ = timeout(Duration::from_secs(10), ended).await;
            vm.stop.cancel();
        });
    }
    let new: Vec<_> = wanted.iter().filter(|name| !served(shared, name)).cloned().collect();
    let mut checked = call::check(&new).await;
    // some may have been found meanwhile
    checked.served.retain(|name| !served(shared, name));
    checked.missing.retain(|name| !served(shared, name));
    checked.unknown.retain(|name| !served(shared, name));
    lock(&shared.missing).retain(|name, _| !checked.served.contains(name));
    checked.served.iter().for_each(|name| open(shared, name, channels));
    missing(shared, checked.missing);
    unknown(shared, checked.unknown, checked.fault.as_ref());
    let served: Vec<_> = wanted.iter().filter(|name| served(shared, name)).cloned().collect();
    let text = format!("serving {}", served.join(" "));
    shared.audit.write("INFO", &format!("reread vms={}", wanted.join(",")));
    let _ = sd_notify::notify(&[NotifyState::Status(&text)]);
    emit(Event::new(Kind::ConfigurationReloaded, format!("the list of qubes was read again; {text}")));
}
