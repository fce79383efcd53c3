//! The units of a process.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::{sync::watch, time::timeout};

use super::{
    backend::{Backend, BackendView, Common, ConductorMode, Watch},
    kept,
    manager::{Manager, Systemctl},
};
use crate::{
    log::{Kind, say},
    spec::StartUnit,
    sys::lock,
};

/// How long a refreshed view may take.
const VIEW: Duration = Duration::from_secs(1);

/// The units that sessions of this process have started, or may have.
#[derive(Debug)]
pub struct Backends {
    units: Mutex<BTreeMap<Arc<str>, Arc<Backend>>>,
    common: Arc<Common>,
}

impl Default for Backends {
    fn default() -> Self {
        Self::with(Arc::new(Systemctl::new()), boot_ms)
    }
}

/// Milliseconds of CLOCK_BOOTTIME: the clock of all processes until the next boot, suspended or not.
fn boot_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |now| u64::try_from(Duration::from(now).as_millis()).unwrap_or(0))
}

impl Backends {
    /// Units of a `manager`, with a `clock` in milliseconds that processes share.
    pub(super) fn with(manager: Arc<dyn Manager>, clock: fn() -> u64) -> Self {
        let common = Common {
            mode: watch::Sender::new(ConductorMode::Settling),
            busy: watch::Sender::new(0),
            directory: Mutex::default(),
            manager,
            clock,
        };
        Self { units: Mutex::default(), common: Arc::new(common) }
    }

    /// The unit of a forward.
    pub fn of(&self, unit: &StartUnit) -> Arc<Backend> {
        self.named(unit.as_str())
    }

    /// The unit of this name.
    pub fn named(&self, unit: &str) -> Arc<Backend> {
        let mut units = lock(&self.units);
        if let Some(backend) = units.get(unit) {
            return backend.clone();
        }
        let unit: Arc<str> = unit.into();
        let backend = Backend::new(unit.clone(), self.common.clone(), None, |_| None);
        units.insert(unit, backend.clone());
        backend
    }

    /// Takes up what an earlier process has left in `directory`, and leaves things there from now on; `watch`
    /// watches where listeners of that process led. To be called before there are routes.
    pub fn take_up(&self, directory: PathBuf, watch: Watch) {
        let mut units = lock(&self.units);
        for kept in kept::read(&directory) {
            let unit: Arc<str> = kept.unit.as_str().into();
            units.insert(unit.clone(), Backend::new(unit, self.common.clone(), Some(kept), watch));
        }
        *lock(&self.common.directory) = Some(directory);
    }

    /// Gives each unit the longest time that the listeners in force let it be idle (`None`: for ever). A unit that none
    /// of them names keeps the time that it had.
    pub fn want<'a>(&self, listeners: impl IntoIterator<Item = (&'a Arc<Backend>, Option<Duration>)>) {
        let mut wanted: HashMap<&Arc<str>, (&Arc<Backend>, Option<Duration>)> = HashMap::new();
        for (backend, time) in listeners {
            let entry = wanted.entry(backend.unit()).or_insert((backend, time));
            entry.1 = entry.1.and_then(|longest| time.map(|time| time.max(longest)));
        }
        wanted.into_values().for_each(|(backend, time)| backend.want(time));
    }

    /// The sessions of an earlier process are taken up: units that nobody uses may be stopped from now on.
    pub fn begin(&self) {
        self.common.mode.send_replace(ConductorMode::Serving);
        for backend in self.all() {
            backend.begin();
        }
    }

    /// The service stops, or (`machine`) the whole manager does: no unit is stopped any more; in the latter case none
    /// is started.
    pub fn drain(&self, machine: bool) {
        self.common.mode.send_replace(if machine { ConductorMode::GoingDown } else { ConductorMode::Draining });
    }

    /// The service has stopped for good: says which units are left running.
    pub async fn leave(&self) {
        let running: Vec<_> = self.all().into_iter().filter(|backend| backend.is_left_running()).collect();
        self.end().await;
        if let Some(directory) = lock(&self.common.directory).take() {
            kept::remove(&directory);
        }
        if !running.is_empty() {
            let names: Vec<&str> = running.iter().map(|backend| &**backend.unit()).collect();
            let text = format!("units that this service started and that still run: {}", names.join(", "));
            say(Kind::UnitNotStopped, text);
        }
    }

    /// The process ends, and another one goes on: asks the manager nothing any more, and leaves the files as things
    /// stand. A start goes on in the manager. To be called before sessions are parked, which are no longer counted
    /// then.
    pub async fn end(&self) {
        self.common.mode.send_replace(ConductorMode::Over);
        self.common.manager.cancel();
        for backend in self.all() {
            backend.end().await;
        }
    }

    /// As if the process had died: nothing is written any more.
    #[cfg(test)]
    pub(super) fn lose_directory(&self) {
        *lock(&self.common.directory) = None;
    }

    fn all(&self) -> Vec<Arc<Backend>> {
        lock(&self.units).values().cloned().collect()
    }

    /// Follows the number of units for which the service has to stay, because nobody else would stop them.
    pub fn busy(&self) -> watch::Receiver<usize> {
        self.common.busy.subscribe()
    }

    /// What is to be seen of the units, as it was at the last look.
    pub fn view(&self) -> Vec<BackendView> {
        self.all().iter().map(|backend| backend.view()).collect()
    }

    /// Looks at all units side by side, for a second at most, so that the view is that of now.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn refresh(&self) {
        let all = self.all();
        all.iter().for_each(|backend| backend.look_again());
        let _ = timeout(VIEW, async {
            for backend in all {
                backend.looked().await;
            }
        })
        .await;
    }
}
