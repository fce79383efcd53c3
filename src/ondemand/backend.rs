//! One unit: who uses it, who waits for it, and the one task that speaks with the manager about it.
//!
//! That task, the *conductor*, does one thing at a time: this is the lock of the unit. Sessions never speak with the
//! manager; they count themselves ([`BackendUse`]) and wait ([`BackendUse::awake`]).
//!
//! The file is long because each step of the conductor reads and changes the one state of the unit.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use nix::time::{ClockId, clock_gettime};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

use super::{
    kept::{self, UnitKept, Whose},
    look::{Look, UnitState},
    manager::{LAST_LINES, Manager},
    told::{NotStopped, UnitFailure, failure, mebibytes, objection, seconds},
};
use crate::{
    log::{Kind, say},
    spec::Upstream,
    sys::lock,
};

/// The shortest time between two looks, and between two writes of the file that nothing hurries.
const QUIET: Duration = Duration::from_millis(250);
/// The pauses after failed starts: the first, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The longest time until a unit that could not be stopped is looked at again.
const AGAIN: Duration = Duration::from_secs(60);
/// The time until a unit that is on its way is looked at again.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// How long the conductor may take to end, which a question to the manager can hold up.
const ENDING: Duration = Duration::from_secs(3);

/// What the service allows conductors to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConductorMode {
    /// Sessions of an earlier process are taken up: units are started, none is stopped.
    Settling,
    /// Both.
    Serving,
    /// The service stops: as `Settling`.
    Draining,
    /// The machine or the manager goes down: nothing is started any more.
    GoingDown,
    /// The process ends: nothing is asked any more.
    Over,
}

/// What all units of a process share.
#[derive(Debug)]
pub struct Common {
    pub mode: watch::Sender<ConductorMode>,
    /// Units that are ours to stop, and that are not stopped.
    pub busy: watch::Sender<usize>,
    /// Where files of units are; none where the unit of the service has no runtime directory.
    pub directory: Mutex<Option<PathBuf>>,
    pub manager: Arc<dyn Manager>,
    /// Milliseconds of a clock that all processes until the next boot share.
    pub clock: fn() -> u64,
}

/// Finds foreign connections to a target.
pub trait WatchedTarget: fmt::Debug + Send + Sync {
    /// The target, where somebody else is connected to it. Called in a thread that may block.
    ///
    /// # Errors
    /// Nobody can tell: the unit is not stopped then.
    fn foreign(&self) -> io::Result<Option<String>>;
}

/// Watches an upstream, where that is possible.
pub type Watch = fn(&Upstream) -> Option<Arc<dyn WatchedTarget>>;

/// Where a unit stands, for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BackendPhase {
    /// A file says that it may be ours; it was not looked at yet.
    Unknown,
    /// Who wants it has it started.
    Asleep,
    Starting,
    /// Who wants it dials.
    Awake,
    Stopping,
}

#[derive(Debug)]
struct BackendState {
    phase: BackendPhase,
    users: usize,
    waiting: usize,
    /// A dial was refused, or the view is old: the unit is to be looked at.
    look: bool,
    looked: Option<Instant>,
    kept: UnitKept,
    /// Those of [`UnitKept::targets`], in the same order.
    targets: Vec<Arc<dyn WatchedTarget>>,
    /// What the file holds, and when it was written.
    written: (UnitKept, Option<Instant>),
    /// It was told that the file cannot be written.
    unwritten: bool,
    failed: Option<Failed>,
    /// When the start began that nobody was connected after yet.
    started: Option<Instant>,
    /// Somebody has waited or dialled ever since.
    awaited: bool,
    /// Why it was not stopped (reported already), and the time of the next try.
    not_stopped: Option<NotStopped>,
    again: Option<Instant>,
    unit_state: UnitState,
    since: Option<SystemTime>,
    busy: bool,
    conducted: bool,
}

/// A start that failed.
#[derive(Clone, Debug)]
struct Failed {
    why: UnitFailure,
    until: Instant,
    pause: Duration,
}

/// What is to be seen of a unit.
#[derive(Clone, Debug)]
pub struct BackendView {
    pub unit: Arc<str>,
    /// At the last look.
    pub state: UnitState,
    pub since: Option<SystemTime>,
    /// Sessions that use it.
    pub users: usize,
    /// When it is stopped, if no session comes.
    pub stops_at: Option<SystemTime>,
    pub median_start: Option<Duration>,
    pub last_start: Option<Duration>,
    /// In bytes.
    pub memory_before_stop: Option<u64>,
    /// Whether our start brought it about.
    pub ours: bool,
}

/// One unit.
pub struct Backend {
    unit: Arc<str>,
    common: Arc<Common>,
    state: Mutex<BackendState>,
    /// Wakes the conductor.
    wake: Notify,
    /// Changes with each step of the conductor.
    steps: watch::Sender<()>,
    /// Closed when the conductor has ended.
    ended: watch::Sender<bool>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({})", self.unit)
    }
}

/// A session uses the unit while this lives, until its end.
#[derive(Debug)]
pub struct BackendUse {
    backend: Arc<Backend>,
    over: AtomicBool,
}

impl BackendUse {
    /// Waits until the unit is up, as far as is known, and has it started if need be. Whoever is refused by it after
    /// that says so ([`Self::look_again`]) and waits again.
    ///
    /// # Errors
    /// The start failed, or failed a moment ago.
    ///
    /// # Cancel safety
    /// Safe: a start goes on.
    pub async fn awake(&self) -> Result<(), UnitFailure> {
        self.backend.awake().await
    }

    /// A dial was refused: the unit may have gone.
    pub fn look_again(&self) {
        self.backend.look_again();
    }

    /// Whether the unit is down and nobody starts it, as a look at it shows now.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn is_down(&self) -> bool {
        self.backend.refresh().await;
        let state = lock(&self.backend.state);
        state.phase == BackendPhase::Asleep && state.unit_state.is_down()
    }

    /// The session has its connection.
    pub fn answered(&self) {
        self.backend.answered();
    }

    /// The session is over: it does not count any more.
    pub fn end(&self) {
        if self.over.swap(true, Relaxed) {
            return;
        }
        let mut state = lock(&self.backend.state);
        state.users -= 1;
        if state.users == 0 {
            state.kept.idle_since_ms = Some((self.backend.common.clock)());
            state.awaited = false;
            drop(state);
            self.backend.wake.notify_one();
        }
    }

    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// The unit and its state at the last look.
    pub fn standing(&self) -> (Arc<str>, UnitState) {
        (self.backend.unit.clone(), lock(&self.backend.state).unit_state)
    }
}

impl Drop for BackendUse {
    fn drop(&mut self) {
        self.end();
    }
}

/// A session waits for the unit while this lives.
struct Waits<'a>(&'a Backend);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).waiting -= 1;
    }
}

/// When the state of a unit changed.
fn since(look: &Look) -> Option<SystemTime> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?);
    SystemTime::now().checked_sub(now.saturating_sub(Duration::from_micros(look.changed?)))
}

/// What the conductor does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConductorStep {
    Start,
    Look,
    Stop,
    Write,
    Wait(Option<Instant>),
    End,
}

impl Backend {
    /// A unit; `kept` is what an earlier process has left of it, `watch` watches the targets in there.
    pub(super) fn new(unit: Arc<str>, common: Arc<Common>, kept: Option<UnitKept>, watch: Watch) -> Arc<Self> {
        let taken_up = kept.is_some();
        let mut kept = kept.unwrap_or_else(|| UnitKept { unit: unit.to_string(), ..UnitKept::default() });
        let watched =
            std::mem::take(&mut kept.targets).into_iter().filter_map(|at| watch(&at).map(|target| (at, target)));
        let (upstreams, targets) = watched.unzip();
        kept.targets = upstreams;
        let state = BackendState {
            phase: if taken_up && kept.may_be_ours() { BackendPhase::Unknown } else { BackendPhase::Asleep },
            users: 0,
            waiting: 0,
            look: true,
            looked: None,
            written: (if taken_up { kept.clone() } else { UnitKept::default() }, None),
            unwritten: false,
            kept,
            targets,
            failed: None,
            started: None,
            awaited: false,
            not_stopped: None,
            again: None,
            unit_state: UnitState::default(),
            since: None,
            busy: false,
            conducted: false,
        };
        Arc::new(Self {
            unit,
            common,
            state: Mutex::new(state),
            wake: Notify::new(),
            steps: watch::Sender::new(()),
            ended: watch::Sender::new(true),
        })
    }

    /// The unit's name.
    pub fn unit(&self) -> &Arc<str> {
        &self.unit
    }

    /// Counts a session among those that use the unit.
    pub fn begin_use(self: &Arc<Self>) -> BackendUse {
        {
            let mut state = lock(&self.state);
            state.users += 1;
            state.kept.idle_since_ms = None;
            state.again = None;
        }
        self.conduct_soon();
        self.wake.notify_one();
        BackendUse { backend: self.clone(), over: AtomicBool::new(false) }
    }

    /// Has foreign connections to this target keep the unit from being stopped, for as long as the answer lives or the
    /// unit may be ours: whoever is connected stays so when no listener names the target any more.
    pub fn add_target(&self, upstream: &Upstream, target: Arc<dyn WatchedTarget>) -> Arc<dyn WatchedTarget> {
        let mut state = lock(&self.state);
        state.drop_targets();
        let known = state.kept.targets.iter().zip(&state.targets).find(|(known, _)| *known == upstream);
        if let Some((_, known)) = known {
            return known.clone();
        }
        state.kept.targets.push(upstream.clone());
        state.targets.push(target.clone());
        target
    }

    /// How long the listeners that name the unit let it be idle (`None`: for ever). To be called when at least one
    /// does.
    pub(super) fn want(self: &Arc<Self>, stop_when_idle: Option<Duration>) {
        let ms = stop_when_idle.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        lock(&self.state).kept.stop_when_idle_ms = ms;
        self.conduct_soon();
        self.wake.notify_one();
    }

    async fn awake(&self) -> Result<(), UnitFailure> {
        let mut steps = self.steps.subscribe();
        let mut waits = None;
        loop {
            {
                let mut state = lock(&self.state);
                if state.phase == BackendPhase::Awake {
                    return Ok(());
                }
                let failed = state.failed.as_ref().filter(|failed| Instant::now() < failed.until);
                match (state.phase, failed) {
                    (BackendPhase::Starting, _) | (_, None) => {}
                    (_, Some(failed)) => return Err(failed.why.clone()),
                }
                if waits.is_none() {
                    state.waiting += 1;
                    waits = Some(Waits(self));
                }
            }
            self.wake.notify_one();
            if steps.changed().await.is_err() {
                return std::future::pending().await; // the sender is ours
            }
        }
    }

    pub(super) fn look_again(&self) {
        lock(&self.state).look = true;
        self.wake.notify_one();
    }

    fn answered(&self) {
        let (took, awaited) = {
            let mut state = lock(&self.state);
            state.failed = None;
            let took = state.started.take().map(|started| started.elapsed());
            // Otherwise it may have answered long before somebody dialled.
            took.filter(|_| state.awaited).into_iter().for_each(|took| state.kept.started_in(took));
            (took, state.awaited)
        };
        match took {
            Some(took) if awaited => {
                say(
                    Kind::UnitReady,
                    format!("{} answers, {} s after its start was asked for", self.unit, seconds(took)),
                );
            }
            Some(_) => {
                say(Kind::UnitReady, format!("{} answers; the client that waited for it has disconnected", self.unit))
            }
            None => {}
        }
    }

    /// What is to be seen of the unit.
    pub fn view(&self) -> BackendView {
        let state = lock(&self.state);
        let left = state.idle_left((self.common.clock)());
        BackendView {
            unit: self.unit.clone(),
            state: match state.phase {
                BackendPhase::Starting if state.unit_state.is_down() => UnitState::Activating,
                _ => state.unit_state,
            },
            since: state.since,
            users: state.users,
            stops_at: left.map(|left| SystemTime::now() + left),
            median_start: state.kept.median_start(),
            last_start: state.kept.last_start(),
            memory_before_stop: state.kept.memory_before_stop,
            ours: state.kept.ours.is_some() && state.phase != BackendPhase::Asleep,
        }
    }

    /// Sessions of an earlier process are taken up: the unit is looked after from now on.
    pub(super) fn begin(self: &Arc<Self>) {
        self.conduct_soon();
        self.wake.notify_one();
    }

    /// Has the view be that of now.
    async fn refresh(&self) {
        self.look_again();
        self.looked().await;
    }

    /// Waits for the look that was asked for. While a start or a stop is under way there is none, and nothing new to
    /// see.
    pub(super) async fn looked(&self) {
        let mut steps = self.steps.subscribe();
        let waits = || {
            let state = lock(&self.state);
            state.look && !matches!(state.phase, BackendPhase::Starting | BackendPhase::Stopping)
        };
        while waits() && steps.changed().await.is_ok() {}
    }

    /// Whether a start of ours brought the unit about, and it is up.
    pub(super) fn is_left_running(&self) -> bool {
        let state = lock(&self.state);
        state.kept.may_be_ours()
            && matches!(state.phase, BackendPhase::Awake | BackendPhase::Starting | BackendPhase::Unknown)
    }

    /// Waits until the conductor has ended, and leaves the file as things stand. To be called when the mode is
    /// [`ConductorMode::Over`].
    pub(super) async fn end(&self) {
        self.wake.notify_one();
        let mut ended = self.ended.subscribe();
        let _ = timeout(ENDING, ended.wait_for(|ended| *ended)).await;
        self.write(true);
    }

    /// Starts the conductor, where there is none and something can run it.
    fn conduct_soon(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !std::mem::replace(&mut lock(&self.state).conducted, true) {
            self.ended.send_replace(false);
            runtime.spawn(self.clone().conduct());
        }
    }

    async fn conduct(self: Arc<Self>) {
        let mut mode = self.common.mode.subscribe();
        loop {
            let now = *mode.borrow_and_update();
            self.count_busy();
            match self.next(now) {
                ConductorStep::Start => self.start().await,
                ConductorStep::Look => self.look().await,
                ConductorStep::Stop => self.stop().await,
                ConductorStep::Write => self.write(false),
                ConductorStep::Wait(until) => {
                    let far = Instant::now() + AGAIN; // and the clocks may have parted: suspended
                    tokio::select! {
                        () = self.wake.notified() => {}
                        _ = mode.changed() => {}
                        () = sleep_until(until.unwrap_or(far).min(far)) => {}
                    }
                    continue;
                }
                ConductorStep::End => break,
            }
            self.steps.send_replace(());
        }
        self.ended.send_replace(true);
    }

    fn next(&self, mode: ConductorMode) -> ConductorStep {
        if mode == ConductorMode::Over {
            return ConductorStep::End;
        }
        let mut state = lock(&self.state);
        let now = Instant::now();
        let mut wait: Option<Instant> = None;
        let mut at = |time: Instant| wait = Some(wait.map_or(time, |wait| wait.min(time)));
        if state.waiting > 0 && state.phase != BackendPhase::Awake {
            match state.failed.as_ref().map(|failed| failed.until).filter(|until| *until > now) {
                None => return ConductorStep::Start,
                Some(until) => at(until),
            }
        }
        if state.look {
            match state.looked.map(|looked| looked + QUIET).filter(|due| *due > now) {
                None => return ConductorStep::Look,
                Some(due) => at(due),
            }
        }
        if state.users == 0 && state.kept.may_be_ours() {
            if state.kept.idle_since_ms.is_none() {
                state.kept.idle_since_ms = Some((self.common.clock)());
            }
            if let Some(left) = state.idle_left((self.common.clock)()) {
                let due = (now + left).max(state.again.unwrap_or(now));
                match due > now || mode != ConductorMode::Serving {
                    false => return ConductorStep::Stop,
                    true if mode == ConductorMode::Serving => at(due),
                    true => {}
                }
            }
        }
        let (file, written) = &state.written;
        let matters = state.kept.may_be_ours() | file.may_be_ours() | written.is_some();
        if state.kept != *file && matters && !state.unwritten {
            // What is not ours any more must not look like ours after a crash.
            let hurry = file.ours.is_some() && state.kept.ours.is_none();
            match written.map(|written| written + QUIET).filter(|due| *due > now && !hurry) {
                None => return ConductorStep::Write,
                Some(due) => at(due),
            }
        }
        if state.phase == BackendPhase::Asleep && state.unit_state == UnitState::Deactivating {
            let due = state.looked.map_or(now, |looked| looked + ON_ITS_WAY);
            if due <= now {
                return ConductorStep::Look;
            }
            at(due);
        }
        ConductorStep::Wait(wait)
    }

    /// Tells the number of units for which the service has to stay.
    fn count_busy(&self) {
        let mut state = lock(&self.state);
        let asleep = matches!(state.phase, BackendPhase::Asleep | BackendPhase::Stopping);
        let busy = !asleep && state.kept.may_be_ours() && state.kept.stop_when_idle_ms.is_some();
        if busy != state.busy {
            state.busy = busy;
            self.common.busy.send_modify(|n| if busy { *n += 1 } else { *n -= 1 });
        }
    }

    /// Writes the file; where `all` is false only for what may be ours.
    fn write(&self, all: bool) {
        let Some(directory) = lock(&self.common.directory).clone() else {
            let mut state = lock(&self.state);
            state.written = (state.kept.clone(), Some(Instant::now()));
            return;
        };
        let (kept, needless) = {
            let state = lock(&self.state);
            let matters = state.kept.may_be_ours() || state.written.0.may_be_ours();
            (state.kept.clone(), state.kept == state.written.0 || !matters)
        };
        if all && needless {
            return;
        }
        let written = kept::write(&directory, &kept);
        let mut state = lock(&self.state);
        state.written = (kept, Some(Instant::now()));
        if let Err(e) = written {
            if !std::mem::replace(&mut state.unwritten, true) {
                let path = directory.display();
                say(Kind::ControlTrouble, format!("{} may outlive a restart unstopped: {path}: {e}", self.unit));
            }
        } else {
            state.unwritten = false;
        }
    }

    /// Notes what a look has shown.
    fn seen(&self, look: &Look) -> Whose {
        let mut state = lock(&self.state);
        state.look_shows(look);
        state.kept.seen(look)
    }

    async fn start(&self) {
        let was = {
            let mut state = lock(&self.state);
            state.look = false;
            state.awaited = state.users > 0;
            std::mem::replace(&mut state.phase, BackendPhase::Starting)
        };
        self.steps.send_replace(());
        let began = Instant::now();
        let down = *self.common.mode.borrow() == ConductorMode::GoingDown;
        if down || self.common.manager.goes_down().await.unwrap_or(false) {
            return self.refused("the system shuts down: the service starts no unit", was);
        }
        let before = match self.common.manager.show(&self.unit).await {
            Ok(before) => before,
            Err(e) => return self.refused(&e.to_string(), was),
        };
        self.seen(&before);
        let stops = lock(&self.state).kept.stop_when_idle_ms.is_some();
        if let Some(objection) = objection(&before, stops).filter(|_| before.state.is_down()) {
            return self.refused(objection, was);
        }
        {
            let mut state = lock(&self.state);
            state.drop_targets();
            state.kept.before_start(&before);
        }
        self.write(false);
        if before.state.is_down() {
            {
                let mut state = lock(&self.state);
                (state.unit_state, state.since) = (UnitState::Activating, Some(SystemTime::now()));
            }
            say(
                Kind::UnitStart,
                format!("{} is started for a connection; it was {}", self.unit, before.state.as_str()),
            );
        }
        let started = self.common.manager.start(&self.unit).await;
        let said = match started {
            Ok(Ok(())) => None,
            Ok(Err(said)) => Some(said),
            // The next process has the file, and its start joins the job.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return,
            Err(e) => Some(e.to_string()),
        };
        let after = match self.common.manager.show(&self.unit).await {
            Ok(after) => after,
            // The start was asked for: the unit may be up, and ours to stop.
            Err(e) if said.is_some() => return self.refused(&e.to_string(), BackendPhase::Unknown),
            Err(_) => {
                let mut state = lock(&self.state);
                (state.phase, state.look) = (BackendPhase::Unknown, true);
                return;
            }
        };
        lock(&self.state).kept.after_start(&after);
        // At once: what somebody else starts next must not look like ours after a crash.
        self.write(false);
        let fresh = after.invocation != before.invocation || before.state != UnitState::Active;
        if !fresh && self.is_left_alone() {
            self.lost();
        }
        {
            let mut state = lock(&self.state);
            state.look_shows(&after);
            if fresh {
                (state.started, state.not_stopped) = (Some(began), None);
            }
            // A unit that systemd calls started and that has ended by now is one for the dial to find.
            if said.is_none() || !after.state.is_down() {
                state.phase = BackendPhase::Awake;
                return;
            }
        }
        self.failed(&after, &said.unwrap_or_default()).await;
    }

    /// Whether the unit runs already by somebody else, would be stopped otherwise, and nobody was told yet.
    fn is_left_alone(&self) -> bool {
        let state = lock(&self.state);
        let stops = state.kept.stop_when_idle_ms.is_some() && !state.kept.may_be_ours();
        stops && state.not_stopped != Some(NotStopped::Foreign)
    }

    /// The start is refused before it was asked for, or nobody says what became of it.
    fn refused(&self, why: &str, was: BackendPhase) {
        let why = UnitFailure(format!("cannot start {}: {why}", self.unit).into());
        self.back_off(if was == BackendPhase::Unknown { was } else { BackendPhase::Asleep }, |_| why);
    }

    /// The start failed.
    async fn failed(&self, look: &Look, said: &str) {
        let lines = match look.invocation.is_empty() {
            true => Vec::new(),
            false => {
                let lines = timeout(LAST_LINES, self.common.manager.last_lines(look.invocation.clone())).await;
                lines.ok().and_then(Result::ok).unwrap_or_default()
            }
        };
        lock(&self.state).kept.forget();
        self.back_off(BackendPhase::Asleep, |pause| failure(&self.unit, look, said, &lines, pause));
    }

    fn back_off(&self, phase: BackendPhase, why: impl FnOnce(Duration) -> UnitFailure) {
        let mut state = lock(&self.state);
        let pause = state.failed.as_ref().map_or(BACK_OFF.0, |failed| (failed.pause * 2).min(BACK_OFF.1));
        let why = why(pause);
        say(Kind::UnitFailed, why.to_string());
        state.failed = Some(Failed { why, until: Instant::now() + pause, pause });
        (state.phase, state.started, state.look) = (phase, None, phase == BackendPhase::Unknown);
    }

    async fn look(&self) {
        let look = self.common.manager.show(&self.unit).await;
        {
            let mut state = lock(&self.state);
            (state.look, state.looked) = (false, Some(Instant::now()));
        }
        if let Some(look) = look.ok().filter(|look| self.take(look)) {
            self.failed(&look, "").await;
        }
    }

    /// Takes a look for what it means; whether it means that a start of ours failed.
    fn take(&self, look: &Look) -> bool {
        let was_ours = lock(&self.state).kept.ours.is_some();
        let whose = self.seen(look);
        if was_ours && whose == Whose::Foreign {
            self.lost();
        }
        let mut state = lock(&self.state);
        match (state.phase, look.state.is_down() && !look.between) {
            (BackendPhase::Awake, true) => {
                state.phase = BackendPhase::Asleep;
                // Of an invocation of ours that nobody was connected to: so a unit of Type=simple fails.
                return state.started.is_some() && look.state == UnitState::Failed;
            }
            (BackendPhase::Unknown, false) => state.phase = BackendPhase::Awake,
            // A start that was under way may begin yet.
            (BackendPhase::Unknown, true) if state.kept.starting.is_none() => {
                state.phase = BackendPhase::Asleep;
                state.kept.forget();
            }
            _ => {}
        }
        false
    }

    async fn stop(&self) {
        let idle_since = lock(&self.state).kept.idle_since_ms;
        let look = match self.common.manager.show(&self.unit).await {
            Ok(look) => look,
            Err(_) => return self.try_again_later(),
        };
        match self.seen(&look) {
            Whose::Ours => {}
            Whose::Between => return self.try_again_later(),
            Whose::Foreign => return self.not_stopped(NotStopped::Foreign),
            Whose::Nobodys => {
                let mut state = lock(&self.state);
                if state.users == 0 {
                    state.phase = BackendPhase::Asleep;
                    state.kept.forget();
                }
                return;
            }
        }
        if !look.can_stop {
            return self.not_stopped(NotStopped::Refuses);
        }
        if look.job {
            return self.not_stopped(NotStopped::Job(String::new()));
        }
        if !look.needed_by.is_empty() {
            match self.common.manager.first_up(look.needed_by).await {
                Ok(Some(unit)) => return self.not_stopped(NotStopped::Needed(unit)),
                Ok(None) => {}
                Err(_) => return self.try_again_later(),
            }
        }
        let targets = lock(&self.state).targets.clone();
        if !targets.is_empty() {
            let foreign = spawn_blocking(move || targets.iter().find_map(|target| target.foreign().transpose()));
            let Ok(foreign) = foreign.await.unwrap_or_else(|e| Some(Err(io::Error::other(e)))).transpose() else {
                return self.try_again_later();
            };
            // The connection of a session that came meanwhile is none of somebody else.
            let used = lock(&self.state).kept.idle_since_ms != idle_since;
            if let Some(target) = foreign.filter(|_| !used) {
                return self.not_stopped(NotStopped::Connected(target));
            }
        }
        let idle = {
            let mut state = lock(&self.state);
            if state.users > 0
                || state.kept.idle_since_ms != idle_since
                || *self.common.mode.borrow() != ConductorMode::Serving
            {
                return;
            }
            // From here on a session waits, and its start comes after the stop.
            state.phase = BackendPhase::Stopping;
            state.kept.stopping = Some(look.invocation.clone());
            let idle = state.kept.idle_since_ms.map_or(0, |since| (self.common.clock)().saturating_sub(since));
            Duration::from_millis(idle)
        };
        // A later start, of the next process too, has to tell this stop from the first half of a restart.
        self.write(false);
        let stopped = self.common.manager.stop(&self.unit).await;
        match stopped {
            Ok(Ok(())) => {
                let mut state = lock(&self.state);
                state.phase = BackendPhase::Asleep;
                state.unit_state = UnitState::Deactivating;
                state.since = Some(SystemTime::now());
                state.kept.memory_before_stop = look.memory.or(state.kept.memory_before_stop);
                (state.not_stopped, state.started) = (None, None);
                let memory = look.memory.map(|bytes| format!("; it had {}", mebibytes(bytes))).unwrap_or_default();
                let idle = seconds(Duration::from_secs(idle.as_secs()));
                say(Kind::UnitStopped, format!("{} is stopped after {idle} s without a session{memory}", self.unit));
            }
            Ok(Err(said)) => {
                {
                    let mut state = lock(&self.state);
                    (state.phase, state.kept.stopping) = (BackendPhase::Awake, None);
                }
                // A job of somebody else came after the look, or this service may not stop the unit.
                match self.common.manager.show(&self.unit).await {
                    Ok(look) if look.job => self.not_stopped(NotStopped::Job(said)),
                    Ok(_) => self.not_stopped(NotStopped::Refused(said)),
                    Err(_) => self.try_again_later(),
                }
            }
            Err(_) => {
                lock(&self.state).phase = BackendPhase::Awake;
                self.try_again_later();
            }
        }
    }

    fn try_again_later(&self) {
        let mut state = lock(&self.state);
        let pause = state.kept.stop_when_idle().unwrap_or(AGAIN).clamp(ON_ITS_WAY, AGAIN);
        state.again = Some(Instant::now() + pause);
    }

    /// Somebody else started the unit: told once.
    fn lost(&self) {
        let why = NotStopped::Foreign;
        say(Kind::UnitNotStopped, format!("{} is not stopped when it is idle: {why}", self.unit));
        lock(&self.state).not_stopped = Some(why);
    }

    /// The unit stays up, and this is why: told once.
    fn not_stopped(&self, why: NotStopped) {
        let again = why.may_pass();
        let told = {
            let mut state = lock(&self.state);
            if !again {
                state.phase = BackendPhase::Asleep;
                state.kept.forget();
            }
            let told = state.not_stopped.as_ref() == Some(&why);
            state.not_stopped = Some(why.clone());
            told
        };
        if !told {
            let then = if again { "; the service checks it again later" } else { "; the service will not stop it" };
            say(Kind::UnitNotStopped, format!("{} is idle and not stopped: {why}{then}", self.unit));
        }
        if again {
            self.try_again_later();
        }
    }
}

impl BackendState {
    /// Drops the targets that no route names any more, unless the unit may be ours.
    fn drop_targets(&mut self) {
        if self.kept.may_be_ours() {
            return;
        }
        let pairs = std::mem::take(&mut self.kept.targets).into_iter().zip(std::mem::take(&mut self.targets));
        (self.kept.targets, self.targets) = pairs.filter(|(_, target)| Arc::strong_count(target) > 1).unzip();
    }

    /// Notes the state of the unit. systemd forgets the times of a unit that it unloads: such a change has the time of
    /// the look that shows it, where an earlier look showed another state.
    fn look_shows(&mut self, look: &Look) {
        let known = if self.unit_state == look.state { self.since } else { self.looked.map(|_| SystemTime::now()) };
        self.since = since(look).or(known);
        (self.unit_state, self.looked) = (look.state, Some(Instant::now()));
    }

    /// The time until the unit has been idle for long enough; `None` where it is not idle, not ours or never stopped.
    fn idle_left(&self, now_ms: u64) -> Option<Duration> {
        let up = matches!(self.phase, BackendPhase::Awake | BackendPhase::Unknown);
        let since = self.kept.idle_since_ms.filter(|_| up && self.users == 0 && self.kept.may_be_ours())?;
        let idle = Duration::from_millis(now_ms.saturating_sub(since));
        Some(self.kept.stop_when_idle()?.saturating_sub(idle))
    }
}
