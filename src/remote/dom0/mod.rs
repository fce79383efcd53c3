//! The daemon in dom0: a channel to each VM, a command for each stream, an answer for every command.
//!
//! # A channel's life
//! *Absent*: the VM is halted; where /run/qubes shows that, it costs nothing until its socket appears there, else a
//! call every 30 s. *Greeting*: `qvm-run` was started, and the agent's magic is waited for, 5 s. *Live*: frames pass;
//! 45 s of silence, a fault or the end of either process end it, and all its commands with it. *Legacy*: no agent
//! answered, so the original's queue is read by calls, if the policy says `v1 = yes`; an agent is looked for again,
//! less and less often, at last every ten minutes.
//!
//! # A stop
//! SIGTERM: no new commands, those that run may end (the unit's time-out allows 90 s), then they are ended. When the
//! daemon is killed instead, each command's supervisor ends its tree by itself, and the agent in the VM answers the
//! clients: so a crash leaves nothing to recover but requests of the durable queue, which the ledger keeps from running
//! twice.

pub mod channel;
mod command;
pub mod control;
mod execute;
pub mod ledger;
mod listed;
mod port;
mod transfer;
mod v1;

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, Semaphore},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    audit::Audit,
    config::{Config, Paths},
    files,
    keys::Store,
    policy::Policy,
};
use crate::{
    log::{Event, Kind, emit},
    systemd::{notify, unit},
};
use control::Approvals;
use ledger::Ledger;

/// Commands of one VM at a time, when its policy says nothing.
const RUNNING: u16 = 8;
/// How long running commands may take to end when the daemon is stopped.
const DRAIN: Duration = Duration::from_secs(60);
/// A policy file at most, in bytes.
const MAX_POLICY: usize = 256 << 10;

/// How the daemon was started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Serve this VM only, whatever the configuration lists.
    pub vm: Option<String>,
    /// Do what waits, then end.
    pub once: bool,
    /// Say what would be done.
    pub dry_run: bool,
}

/// What all channels share.
#[derive(Debug)]
pub struct Shared {
    paths: Paths,
    config: Config,
    keys: Store,
    audit: Audit,
    ledger: Mutex<Ledger>,
    approvals: Approvals,
    /// Begun and not ended.
    commands: Mutex<HashMap<u64, Running>>,
    number: AtomicU64,
    dry_run: bool,
    once: bool,
    stop: CancellationToken,
    draining: AtomicBool,
    /// Streams.
    tasks: TaskTracker,
    /// Where commands get control groups of their own.
    cgroup: Option<PathBuf>,
    vms: Mutex<HashMap<String, Arc<Vm>>>,
}

/// A command that runs.
#[derive(Debug)]
struct Running {
    vm: String,
    id: String,
    since: Instant,
    kill: Arc<Notify>,
}

/// One VM, over all its channels.
#[derive(Debug)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Free places for commands.
    pub running: Arc<Semaphore>,
    /// Numbers used in the current session.
    window: Mutex<Window>,
    /// What the channel is, for `status`.
    state: Mutex<&'static str>,
    /// Whether the configuration still lists it.
    listed: AtomicBool,
    /// Its channel is to end: the daemon stops, or the VM is not listed any more.
    stop: CancellationToken,
}

impl Vm {
    fn sequence(&self) -> MutexGuard<'_, Window> {
        self.window.lock().expect("no panic under this lock")
    }

    fn listed(&self) -> bool {
        self.listed.load(Relaxed)
    }

    fn set(&self, state: &'static str) {
        *self.state.lock().expect("no panic under this lock") = state;
    }
}

/// Which numbers of a session were used: each at most once, in any order within a window, as clients that were given
/// theirs at the same time may come in any order.
#[derive(Debug, Default)]
struct Window {
    highest: u64,
    /// Bit n: `highest - n` was used.
    seen: u128,
}

impl Window {
    /// Whether this number is used for the first time. Those that fell out of the window count as used.
    fn fresh(&mut self, number: u64) -> bool {
        if number > self.highest {
            let shift = u32::try_from(number - self.highest).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(shift).unwrap_or(0) | 1;
            self.highest = number;
            return true;
        }
        let Some(bit) = u32::try_from(self.highest - number).ok().and_then(|n| 1u128.checked_shl(n)) else {
            return false;
        };
        let fresh = self.seen & bit == 0 && number > 0;
        self.seen |= bit;
        fresh
    }
}

/// A command's place in the list of those that run.
struct Registration {
    number: u64,
    kill: Arc<Notify>,
    shared: Arc<Shared>,
}

impl Registration {
    async fn killed(&self) {
        self.kill.notified().await;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.commands().remove(&self.number);
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().expect("no panic under this lock")
    }

    fn commands(&self) -> MutexGuard<'_, HashMap<u64, Running>> {
        self.commands.lock().expect("no panic under this lock")
    }

    fn draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Reads a VM's policy anew.
    fn policy(&self, vm: &str) -> Result<Policy, String> {
        let path = self.keys.path(vm, "policy").map_err(|e| e.to_string())?;
        let text = files::read(&path, MAX_POLICY).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => format!("{} is missing, so nothing is allowed", path.display()),
            _ => format!("{}: {e}", path.display()),
        })?;
        let text = String::from_utf8(text).map_err(|_| format!("{}: it is no text", path.display()))?;
        Policy::parse(&text).map_err(|faults| {
            let faults: Vec<_> = faults.iter().map(|f| format!("{}:{f}", path.display())).collect();
            faults.join("; ")
        })
    }

    fn register(self: &Arc<Self>, vm: &Vm, id: &str) -> Registration {
        let number = self.number.fetch_add(1, Relaxed) + 1;
        let kill = Arc::new(Notify::new());
        let running = Running { vm: vm.name.clone(), id: id.to_owned(), since: Instant::now(), kill: kill.clone() };
        self.commands().insert(number, running);
        Registration { number, kill, shared: self.clone() }
    }

    /// Ends every command of a VM, or of all; how many.
    fn kill(&self, vm: Option<&str>) -> usize {
        let commands = self.commands();
        let these = commands.values().filter(|c| vm.is_none_or(|vm| c.vm == vm));
        these.map(|c| c.kill.notify_one()).count()
    }

    fn vm(&self, name: &str) -> Arc<Vm> {
        let mut vms = self.vms.lock().expect("no panic under this lock");
        vms.entry(name.to_owned())
            .or_insert_with(|| {
                let running = self.policy(name).ok().and_then(|p| p.max_running).unwrap_or(RUNNING);
                Arc::new(Vm {
                    name: name.to_owned(),
                    running: Arc::new(Semaphore::new(running.into())),
                    window: Mutex::default(),
                    state: Mutex::new("absent"),
                    listed: true.into(),
                    stop: self.stop.child_token(),
                })
            })
            .clone()
    }
}

/// Why the daemon did not start.
#[derive(Debug)]
pub enum Refusal {
    /// Another one runs.
    Running,
    /// The configuration lists no VM.
    NoVms,
    /// No VM that is listed has a key.
    NoKeys,
    /// A VM is listed that does not exist.
    NoSuchVm(String),
    /// Something of the system does not work: what, and why.
    Io(String, io::Error),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running => f.write_str("another qvm-remote-dom0 is running"),
            Self::NoVms => {
                f.write_str("no VMs configured. Set QVM_REMOTE_VMS in /etc/qubes/remote.conf or use --vm VM")
            }
            Self::NoKeys => f.write_str("no VM that is listed has a key, so there is nobody to serve"),
            Self::NoSuchVm(vm) => write!(f, "VM '{vm}' does not exist"),
            Self::Io(what, e) => write!(f, "{what}: {e}"),
        }
    }
}

fn io_at(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Refusal {
    let what = what.to_string();
    move |e| Refusal::Io(what, e)
}

/// Keeps the directory to ourselves: two daemons, or one with `--once` beside it, never share state.
fn lock(paths: &Paths) -> Result<Flock<File>, Refusal> {
    files::private_dir(&paths.run).map_err(io_at(paths.run.display()))?;
    let path = paths.run.join("lock");
    let file = files::append(&path, 0o600).map_err(io_at(path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        nix::errno::Errno::EWOULDBLOCK => Refusal::Running,
        e => Refusal::Io(path.display().to_string(), e.into()),
    })
}

/// Serves until told to stop.
///
/// # Errors
/// Why it did not start.
pub async fn run(paths: Paths, options: Options) -> Result<(), Refusal> {
    let mut config = Config::load(&paths.conf).map_err(io_at(paths.conf.display()))?;
    if let Some(vm) = &options.vm {
        config.vms = vec![vm.clone()];
    }
    if config.vms.is_empty() {
        return Err(Refusal::NoVms);
    }
    let keys = Store::new(&paths.keys, super::keys::credentials());
    if config.vms.iter().all(|vm| keys.read(vm).is_err()) {
        return Err(Refusal::NoKeys);
    }
    let _lock = if options.dry_run { None } else { Some(lock(&paths)?) };
    for vm in &config.vms {
        channel::exists(vm).await?;
    }
    let ledger = if options.dry_run {
        Ledger::in_memory()
    } else {
        let path = paths.state.join("ledger");
        Ledger::open(&path, super::audit::now_ms()).map_err(io_at(path.display()))?
    };
    let audit = Audit::new((!options.dry_run).then(|| paths.log.clone()), config.log_size);
    let shared = Arc::new(Shared {
        keys,
        audit,
        ledger: Mutex::new(ledger),
        approvals: Approvals::default(),
        commands: Mutex::default(),
        number: AtomicU64::new(0),
        dry_run: options.dry_run,
        once: options.once,
        stop: CancellationToken::new(),
        draining: false.into(),
        tasks: TaskTracker::new(),
        cgroup: if options.dry_run { None } else { unit::delegated_group() },
        vms: Mutex::default(),
        paths,
        config,
    });
    serve(&shared, &options).await
}

async fn serve(shared: &Arc<Shared>, options: &Options) -> Result<(), Refusal> {
    let names = &shared.config.vms;
    let text = format!("qvm-remote-dom0 {} starting (pid={})", env!("CARGO_PKG_VERSION"), std::process::id());
    shared.audit.write("INFO", &format!("{text} vms={}", names.join(",")));
    emit(Event::new(Kind::ServiceReady, format!("{text}; listening for commands from: {}", names.join(" "))));
    let channels = TaskTracker::new();
    shared.bad_names(&shared.config);
    names.iter().for_each(|name| shared.open(name, &channels));
    channels.close();
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
                () = shared.reread(options, &channels) => {}
                _ = term.recv() => break,
                _ = int.recv() => break,
            },
            () = channels.wait(), if shared.once => break,
        }
    }
    shared.draining.store(true, Relaxed);
    let count = shared.commands().len();
    let _ =
        sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status(&format!("stopping, {count} commands left"))]);
    if count > 0 {
        emit(Event::new(
            Kind::ServiceDraining,
            format!("stopping: {count} commands have up to {} s to end", DRAIN.as_secs()),
        ));
    }
    shared.tasks.close();
    tokio::select! {
        _ = timeout(DRAIN, shared.tasks.wait()) => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    shared.kill(None);
    shared.approvals.deny_all();
    let _ = timeout(Duration::from_secs(10), shared.tasks.wait()).await;
    shared.stop.cancel();
    let _ = timeout(Duration::from_secs(5), channels.wait()).await;
    drop(control);
    watchdog.abort();
    shared.audit.write("INFO", &format!("Shutting down (pid={})", std::process::id()));
    emit(Event::new(Kind::ServiceStopped, "qvm-remote-dom0 has stopped".to_owned()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Window;

    #[test]
    fn a_number_is_fresh_once_in_any_order() {
        let mut window = Window::default();
        assert!([5, 3, 4, 1, 2].into_iter().all(|n| window.fresh(n)));
        assert!((0..=5).all(|n| !window.fresh(n)));
        assert!(window.fresh(1000));
        assert!(window.fresh(999) && !window.fresh(999));
        assert!(!window.fresh(800), "fell out of the window");
        assert!(window.fresh(u64::MAX) && !window.fresh(1000) && !window.fresh(u64::MAX));
    }

    proptest! {
        #[test]
        fn no_number_is_ever_fresh_twice(numbers in prop::collection::vec(0u64..400, 0..500)) {
            let (mut window, mut used) = (Window::default(), std::collections::HashSet::new());
            for n in numbers {
                if window.fresh(n) {
                    prop_assert!(used.insert(n));
                }
            }
        }
    }
}
