//! The daemon's start, its orders (SIGHUP, SIGTERM), and its stop.

use std::{
    fs::File,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    approvals::Approvals,
    background, call, changes, control, descriptors,
    groups::CommandGroups,
    key_uses::KeyUses,
    ledger::Ledger,
    listed,
    request::RequestState,
    restart::PendingRestart,
    state::{DaemonOptions, Shared, StartError, io_at},
};
use crate::{
    log::{Event, Kind, counted, emit},
    remote::{
        audit::Audit,
        clock,
        config::{Paths, RemoteConfig},
        files,
        keys::{self, Store},
    },
    systemd::{
        jobs::{self, Job},
        notify,
        systemctl::Scope,
    },
};

/// How long running commands may take to end when the daemon is stopped.
const DRAIN: Duration = Duration::from_secs(60);
/// How long commands that are ended may take: TERM, and KILL after five seconds.
const LAST: Duration = Duration::from_secs(10);
/// How long the answers of the last commands may take to reach the qubes.
const ANSWERS: Duration = Duration::from_secs(2);

/// The timer that ends the time of `start`.
const END: &str = "qvm-remote-dom0-stop.timer";

/// Keeps the directory to ourselves: two daemons, or one with `--once` beside it, never share state.
fn lock(paths: &Paths) -> Result<Flock<File>, StartError> {
    files::private_dir(&paths.run).map_err(io_at(paths.run.display()))?;
    let path = paths.run.join("lock");
    let file = files::append(&path, 0o600).map_err(io_at(path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        nix::errno::Errno::EWOULDBLOCK => StartError::Running,
        e => StartError::Io(path.display().to_string(), e.into()),
    })
}

/// Serves until told to stop.
///
/// # Errors
/// Why it did not start.
pub async fn run(paths: Paths, options: DaemonOptions) -> Result<(), StartError> {
    let mut config = RemoteConfig::load(&paths.conf).map_err(io_at(paths.conf.display()))?;
    if let Some(vm) = &options.vm {
        config.vms = vec![vm.clone()];
    }
    descriptors::raise();
    if config.vms.is_empty() {
        return Err(StartError::NoVms);
    }
    let keys = Store::new(&paths.keys, keys::credentials());
    if config.vms.iter().all(|vm| keys.read(vm).is_err()) {
        return Err(StartError::NoKeys);
    }
    let _lock = if options.dry_run { None } else { Some(lock(&paths)?) };
    let checked = call::check(&config.vms).await;
    if let (true, Some(fault)) = (checked.served.is_empty(), checked.fault) {
        return Err(fault);
    }
    let ledger = if options.dry_run {
        Ledger::in_memory()
    } else {
        let path = paths.state.join("ledger");
        Ledger::open(&path, clock::now_ms()).map_err(io_at(path.display()))?
    };
    let audit = Audit::new((!options.dry_run).then(|| paths.log.clone()), config.log_size);
    let shared = Arc::new(Shared {
        keys,
        audit,
        ledger: Mutex::new(ledger),
        approvals: Approvals::default(),
        noted: Mutex::default(),
        requests: Arc::default(),
        dry_run: options.dry_run,
        once: options.once,
        stop: CancellationToken::new(),
        draining: CancellationToken::new(),
        tasks: TaskTracker::new(),
        groups: if options.dry_run { None } else { CommandGroups::of_daemon() },
        supervisors: Arc::default(),
        vms: Mutex::default(),
        missing: Mutex::default(),
        sought: Notify::new(),
        restart: PendingRestart::default(),
        key_uses: KeyUses::new(&paths.state, options.dry_run),
        paths,
        config,
    });
    listed::missing(&shared, checked.missing);
    serve(&shared, &options, &checked.served).await
}

async fn serve(shared: &Arc<Shared>, options: &DaemonOptions, names: &[String]) -> Result<(), StartError> {
    let text = format!("qvm-remote-dom0 {} starting (pid={})", env!("CARGO_PKG_VERSION"), std::process::id());
    shared.audit.write("INFO", &format!("{text} vms={}", names.join(",")));
    emit(Event::new(Kind::ServiceReady, format!("{text}; listening for commands from: {}", names.join(" "))));
    if let Some(groups) = &shared.groups {
        shared.requests.count_from(groups.last_number());
    }
    background::take_up(shared);
    let channels = TaskTracker::new();
    listed::bad_names(shared, &shared.config);
    names.iter().for_each(|name| listed::open(shared, name, &channels));
    channels.close();
    let changes = tokio::spawn(changes::watch(shared.clone()));
    let seeking = (!shared.once).then(|| tokio::spawn(listed::seek(shared.clone(), channels.clone())));
    let control = if shared.dry_run || shared.once { None } else { Some(control::listen(shared.clone())?) };
    let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&format!("serving {}", names.join(" ")))]);
    let watchdog = tokio::spawn(notify::watchdog());
    let mut term = signal(SignalKind::terminate()).map_err(io_at("SIGTERM"))?;
    let mut int = signal(SignalKind::interrupt()).map_err(io_at("SIGINT"))?;
    let mut hup = signal(SignalKind::hangup()).map_err(io_at("SIGHUP"))?;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => tokio::select! {
                () = listed::reread(shared, options, &channels) => {}
                _ = term.recv() => break,
                _ = int.recv() => break,
            },
            () = channels.wait(), if shared.once => break,
            () = shared.restart.carry_out(&shared.requests) => {}
        }
    }
    shared.draining.cancel(); // whatever has not started is refused
    if let Some(seeking) = seeking {
        seeking.abort();
    }
    let count = shared.requests.started();
    let commands = counted(count, "command");
    let _ = sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(&format!("stopping, {commands} left"))]);
    if count > 0 {
        let text = format!("stopping: up to {} s for {commands} to end", DRAIN.as_secs());
        emit(Event::new(Kind::ServiceDraining, text));
    }
    let timer = tokio::spawn(forget_the_end());
    shared.tasks.close();
    tokio::select! {
        () = all_ended(shared, DRAIN) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    for cut in shared.requests.list().into_iter().filter(|request| request.state.started()) {
        let text = format!("stopping: a command of {} is cut ({}): {}", cut.vm, cut.id, cut.shown);
        emit(Event::new(Kind::ServiceDraining, text));
    }
    shared.requests.end(|request| request.state != RequestState::Background);
    shared.approvals.deny_all();
    all_ended(shared, LAST).await;
    // answers on their way to qubes that read
    let _ = timeout(ANSWERS, shared.tasks.wait()).await;
    shared.stop.cancel();
    let _ = timeout(Duration::from_secs(5), channels.wait()).await;
    drop(control);
    let _ = timeout(Duration::from_secs(5), timer).await;
    watchdog.abort();
    changes.abort();
    shared.audit.write("INFO", &format!("Shutting down (pid={})", std::process::id()));
    let _ = timeout(ANSWERS, shared.audit.flush()).await;
    emit(Event::new(Kind::ServiceStopped, "qvm-remote-dom0 has stopped".to_owned()));
    Ok(())
}

/// At a stop, which no restart follows: the time that `start` gave this service is over, and stops no later one.
async fn forget_the_end() {
    if matches!(jobs::own_job().await, Job::Stop { .. }) {
        let stop = || Scope::System.ask(&["--no-block", "stop", END], Duration::from_secs(2));
        let _ = spawn_blocking(stop).await;
    }
}

/// Waits until no request is open, for this long at most. Qubes that read no answer keep nobody here.
async fn all_ended(shared: &Shared, most: Duration) {
    let ended = async {
        while shared.requests.open() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = timeout(most, ended).await;
}
