//! What the channels, the commands and the control socket of one daemon share.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    approvals::Approvals, descriptors, desktop::Desktop, groups::CommandGroups, key_uses::KeyUses, ledger::Ledger,
    looks::Looks, places::Places, replay::Replay, request::Requests, restart::PendingRestart, supervisors::Supervisors,
};
use crate::{
    log::{Event, Kind, Reminder, emit},
    remote::{
        audit::Audit,
        config::{Paths, RemoteConfig},
        keys::Store,
        policy::Policy,
        policy_file::{self, PolicyFileError},
    },
    sys::lock,
};

/// Commands of one VM at a time, when its policy says nothing.
const RUNNING: u16 = 8;
/// How long a person may take to approve.
pub(super) const APPROVAL: Duration = Duration::from_secs(600);

/// How the daemon was started.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
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
    pub(super) paths: Paths,
    pub(super) config: RemoteConfig,
    pub(super) keys: Store,
    pub(super) audit: Audit,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) approvals: Approvals,
    /// Keys and policies as they were written down last.
    pub(super) noted: Mutex<HashMap<String, String>>,
    /// Requests that are not answered yet.
    pub(super) requests: Arc<Requests>,
    pub(super) dry_run: bool,
    pub(super) once: bool,
    pub(super) stop: CancellationToken,
    /// The daemon is being stopped: nothing starts any more.
    pub(super) draining: CancellationToken,
    /// Tasks that serve streams.
    pub(super) tasks: TaskTracker,
    /// Where commands get control groups of their own.
    pub(super) groups: Option<CommandGroups>,
    pub(super) supervisors: Arc<Supervisors>,
    pub(super) vms: Mutex<HashMap<String, Arc<Vm>>>,
    /// Names of the list that are looked for again and again.
    pub(super) missing: Mutex<BTreeMap<String, Absence>>,
    /// Those are others now.
    pub(super) sought: Notify,
    pub(super) restart: PendingRestart,
    pub(super) key_uses: KeyUses,
}

/// Why a name of the list is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absence {
    /// qvm-check says that no qube has the name.
    NoSuchQube,
    /// qvm-check does not work.
    Unknown,
}

impl Absence {
    /// As `status` shows it, in the place of the channel's state.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoSuchQube => "no such qube",
            Self::Unknown => "not looked up: qvm-check failed",
        }
    }
}

/// One VM, over all its channels.
#[derive(Debug)]
pub struct Vm {
    /// The name of the qube.
    pub name: String,
    /// When it was told last that the qube has used up its quota of the log.
    pub(super) full: Mutex<Reminder>,
    /// Places for commands that run.
    pub(super) places: Places,
    /// The key or the policy of a qube may be another one.
    pub(super) changed: Notify,
    /// Looks at paths that the qube names.
    pub(super) looks: Looks,
    /// Notifications about commands that wait for approval.
    pub(super) desktop: Arc<Desktop>,
    /// Numbers used in the current session.
    pub(super) replay: Mutex<Replay>,
    /// What the channel is, for `status`.
    pub(super) state: Mutex<&'static str>,
    /// Whether the configuration still lists it.
    pub(super) listed: AtomicBool,
    /// Its channel is to end: the daemon stops, or the VM is not listed any more.
    pub(super) stop: CancellationToken,
}

impl Vm {
    pub(super) fn replay(&self) -> MutexGuard<'_, Replay> {
        lock(&self.replay)
    }

    pub(super) fn listed(&self) -> bool {
        self.listed.load(Relaxed)
    }

    /// Whoever waits looks at the key and the policy again.
    pub(super) fn look_again(&self) {
        self.changed.notify_waiters();
        self.places.look_again();
    }

    pub(super) fn set(&self, state: &'static str) {
        *lock(&self.state) = state;
    }
}

impl Shared {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    pub(super) fn draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// The file with a VM's policy.
    pub(super) fn policy_path(&self, vm: &str) -> Result<PathBuf, PolicyFileError> {
        self.keys.path(vm, "policy").map_err(|e| PolicyFileError::Io(vm.into(), e))
    }

    /// Reads a VM's policy again. Nothing is looked up that its rules name.
    pub(super) fn policy(&self, vm: &str) -> Result<Policy, PolicyFileError> {
        policy_file::read_installed(&self.policy_path(vm)?)
    }

    /// Commands of a VM at a time, as its policy has it now.
    pub(super) fn max_running(&self, vm: &str) -> usize {
        self.policy(vm).map_or_else(|_| self.bounded(RUNNING), |policy| self.places(&policy))
    }

    /// Commands of a VM at a time by this policy, as far as the descriptors of the daemon go.
    pub(super) fn places(&self, policy: &Policy) -> usize {
        self.bounded(policy.max_running.unwrap_or(RUNNING))
    }

    fn bounded(&self, wanted: u16) -> usize {
        usize::from(wanted).min(descriptors::places(lock(&self.vms).len()))
    }

    /// Ends every request of a VM, whether it runs, waits or left something in the background; how many.
    pub(super) fn kill(&self, vm: &str) -> usize {
        self.requests.end(|request| request.vm == vm)
    }

    /// Ends the requests of a VM with this id; how many.
    pub(super) fn kill_one(&self, vm: &str, id: &str) -> usize {
        self.requests.end(|request| request.vm == vm && request.id == id)
    }

    pub(super) fn vm(&self, name: &str) -> Arc<Vm> {
        let mut vms = lock(&self.vms);
        vms.entry(name.to_owned())
            .or_insert_with(|| {
                Arc::new(Vm {
                    name: name.to_owned(),
                    full: Mutex::default(),
                    places: Places::default(),
                    changed: Notify::new(),
                    looks: Looks::default(),
                    desktop: Arc::default(),
                    replay: Mutex::default(),
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
pub enum StartError {
    /// Another daemon runs.
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

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Running => f.write_str("another qvm-remote-dom0 is running"),
            Self::NoVms => {
                f.write_str("no VMs configured. Set QVM_REMOTE_VMS in /etc/qubes/remote.conf or use --vm VM")
            }
            Self::NoKeys => f.write_str("no VM that is listed has a key, so there is no qube to serve"),
            Self::NoSuchVm(vm) => write!(f, "VM '{vm}' does not exist"),
            Self::Io(what, e) => write!(f, "{what}: {e}"),
        }
    }
}

pub(super) fn io_at(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> StartError {
    let what = what.to_string();
    move |e| StartError::Io(what, e)
}

impl Shared {
    /// Writes an event to the journal.
    pub(super) fn event(&self, kind: Kind, vm: &Vm, id: &str, text: String, status: Option<u8>) {
        let mut event = Event::new(kind, text);
        event.qube = Some(vm.name.as_str().into());
        event.request = Some(id.into());
        event.exit_code = status;
        emit(event);
    }
}
