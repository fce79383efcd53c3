//! Which VMs are served: those of the configuration, read at the start and at SIGHUP.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use super::{
    call, channel,
    state::{DaemonOptions, Shared},
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

/// Tells of names that no qube has: the others are served.
pub(super) fn missing(shared: &Shared, names: Vec<String>) {
    for name in &names {
        let text = format!("{name} is not served: no qube has this name; the others of the list are served");
        emit(Event::new(Kind::ConfigurationRejected, text));
    }
    *lock(&shared.missing) = names.into_iter().collect();
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

/// Reads the list of VMs anew: new ones are served, of those that went every command is ended and the channel
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
    let new: Vec<_> = wanted.iter().filter(|name| !lock(&shared.vms).contains_key(*name)).cloned().collect();
    let checked = call::check(&new).await;
    if let (true, Some(fault)) = (checked.served.is_empty() && checked.missing.is_empty(), &checked.fault) {
        let text = format!("{} cannot be looked for ({fault}); they are not served", new.join(" "));
        emit(Event::new(Kind::ConfigurationRejected, text));
    }
    checked.served.iter().for_each(|name| open(shared, name, channels));
    missing(shared, checked.missing);
    let served: Vec<_> = wanted.iter().filter(|name| lock(&shared.vms).contains_key(*name)).cloned().collect();
    let text = format!("serving {}", served.join(" "));
    shared.audit.write("INFO", &format!("reread vms={}", wanted.join(",")));
    let _ = sd_notify::notify(&[NotifyState::Status(&text)]);
    emit(Event::new(Kind::ConfigurationReloaded, format!("the list of qubes was read again; {text}")));
}
