//! The conductor against a manager that is a model of systemd, with clients, other people, crashes and restarts at
//! random moments. The model holds every order of ours against the guarantees.
//!
//! The file is long because the model, its random stories and the stories that were found belong together.

use std::{
    cell::Cell,
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use proptest::prelude::*;
use tokio::{task::JoinSet, time::sleep};

use super::{
    backend::{BackendUse, WatchedTarget},
    backends::Backends,
    look::{Look, UnitState},
    manager::{Manager, ManagerAnswer},
};
use crate::{
    spec::{UnixAddr, Upstream},
    sys::lock,
};

/// The unit of all tests.
const UNIT: &str = "x.service";
/// How long it may be idle.
const IDLE: Duration = Duration::from_secs(5);

/// What systemd and the unit know.
#[derive(Debug, Default)]
struct World {
    state: Option<Invocation>,
    deactivating: bool,
    activating: bool,
    last: String,
    number: u32,
    /// A stop is queued that has not begun.
    stop_queued: bool,
    /// Somebody restarts the unit, and it is being stopped.
    restarted: bool,
    /// Between the two halves of a `Restart=`.
    between: bool,
    /// A start that waits for the end of a stop.
    start_queued: bool,
    /// Requests of one process under way.
    asking: usize,
    users: usize,
    /// Those that are connected.
    connected: usize,
    starts: usize,
    stops: usize,
    /// The start fails.
    fails: bool,
    /// How long a start takes besides.
    start_takes: Duration,
    /// How long the journal takes.
    journal: Duration,
    /// Looks that go well before one that does not.
    fails_to_show: Option<usize>,
    /// A look has shown that the last invocation of ours is over.
    known_over: bool,
    /// An active unit that needs this one.
    needed: bool,
    faults: Vec<String>,
}

#[derive(Clone, Debug)]
struct Invocation {
    restarts: u64,
    /// Our start brought it about, or `Restart=` of one that it brought about.
    ours: bool,
}

impl World {
    fn begin(&mut self, restarts: u64, ours: bool) {
        self.number += 1;
        self.last = format!("{:032x}", self.number);
        self.state = Some(Invocation { restarts, ours });
        (self.deactivating, self.activating, self.restarted, self.between) = (false, true, false, false);
        self.known_over &= !ours;
    }

    fn end(&mut self) {
        self.state = None;
        (self.deactivating, self.activating, self.stop_queued) = (false, false, false);
        (self.restarted, self.between) = (false, false);
    }

    /// Whether the next invocation, if any, has to wait.
    fn is_on_its_way(&self) -> bool {
        self.deactivating || self.between
    }

    /// Whether a dial succeeds.
    fn answers(&self) -> bool {
        self.state.is_some() && !self.deactivating && !self.activating && !self.between
    }

    fn look(&self) -> Look {
        let state = match &self.state {
            None => UnitState::Inactive,
            Some(_) if self.deactivating => UnitState::Deactivating,
            Some(_) if self.activating || self.between => UnitState::Activating,
            Some(_) => UnitState::Active,
        };
        Look {
            load: "loaded".into(),
            state,
            between: self.between,
            job: self.stop_queued || self.start_queued || self.deactivating,
            invocation: self.last.clone(),
            restarts: self.state.as_ref().map_or(0, |invocation| invocation.restarts),
            can_start: true,
            can_stop: true,
            needed_by: if self.needed { vec!["needs.service".into()] } else { Vec::new() },
            ..Look::default()
        }
    }
}

/// The manager as one process of the service sees it.
#[derive(Clone, Debug)]
struct Model {
    world: Arc<Mutex<World>>,
    /// The process is dead: nothing is asked any more.
    dead: Arc<Mutex<bool>>,
}

impl Model {
    fn ask<T: Send + 'static>(&self, answer: impl Future<Output = io::Result<T>> + Send + 'static) -> ManagerAnswer<T> {
        let model = self.clone();
        Box::pin(async move {
            if *lock(&model.dead) {
                return std::future::pending().await;
            }
            {
                let mut world = lock(&model.world);
                world.asking += 1;
                if world.asking > 1 {
                    world.faults.push("two requests at once".into());
                }
            }
            let answer = answer.await;
            if *lock(&model.dead) {
                return std::future::pending().await;
            }
            lock(&model.world).asking -= 1;
            answer
        })
    }
}

impl Manager for Model {
    fn show(&self, _: &Arc<str>) -> ManagerAnswer<Look> {
        let world = self.world.clone();
        self.ask(async move {
            sleep(Duration::from_millis(8)).await;
            let mut now = lock(&world);
            if now.fails_to_show == Some(0) {
                now.fails_to_show = None;
                return Err(io::ErrorKind::TimedOut.into());
            }
            now.fails_to_show = now.fails_to_show.map(|looks| looks - 1);
            now.known_over = now.state.as_ref().is_none_or(|invocation| !invocation.ours);
            Ok(now.look())
        })
    }

    fn start(&self, _: &Arc<str>) -> ManagerAnswer<Result<(), String>> {
        let world = self.world.clone();
        // The job goes on without the one who asked.
        let job = tokio::spawn(async move {
            sleep(Duration::from_millis(3)).await;
            {
                let mut now = lock(&world);
                now.starts += 1;
                now.stop_queued = false; // cancelled, where it has not begun
                now.start_queued = now.deactivating;
            }
            while lock(&world).is_on_its_way() {
                sleep(Duration::from_millis(5)).await;
            }
            if lock(&world).fails {
                lock(&world).last = "f".repeat(32);
                return Ok(Err("it fails".to_owned()));
            }
            {
                let mut now = lock(&world);
                now.start_queued = false;
                if now.state.is_none() {
                    now.begin(0, true);
                }
            }
            let takes = Duration::from_millis(30) + lock(&world).start_takes;
            sleep(takes).await;
            lock(&world).activating = false;
            Ok(Ok(()))
        });
        self.ask(async { job.await.map_err(io::Error::other)? })
    }

    fn stop(&self, _: &Arc<str>) -> ManagerAnswer<Result<(), String>> {
        let world = self.world.clone();
        self.ask(async move {
            {
                let mut now = lock(&world);
                now.stops += 1;
                if now.users > 0 {
                    now.faults.push("stopped under a session".into());
                }
                if now.needed {
                    now.faults.push("stopped under a unit that needs it".into());
                }
                if now.state.as_ref().is_some_and(|invocation| !invocation.ours) {
                    now.faults.push("stopped what is not ours".into());
                }
                now.stop_queued = true;
            }
            let later = world.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(7)).await;
                {
                    let mut now = lock(&later);
                    if !now.stop_queued || now.state.is_none() {
                        return;
                    }
                    (now.stop_queued, now.deactivating) = (false, true);
                    if now.connected > 0 {
                        now.faults.push("a session was cut".into());
                    }
                }
                sleep(Duration::from_millis(40)).await;
                lock(&later).end();
            });
            sleep(Duration::from_millis(4)).await;
            Ok(Ok(()))
        })
    }

    fn first_up(&self, units: Vec<String>) -> ManagerAnswer<Option<String>> {
        self.ask(async { Ok(units.into_iter().next()) })
    }

    fn last_lines(&self, _: String) -> ManagerAnswer<Vec<String>> {
        let takes = lock(&self.world).journal;
        self.ask(async move {
            sleep(takes).await;
            Ok(vec!["a line".into()])
        })
    }

    fn goes_down(&self) -> ManagerAnswer<bool> {
        self.ask(async { Ok(false) })
    }

    fn cancel(&self) {}
}

/// A target to which somebody else is connected, or not.
#[derive(Debug)]
struct Somebody(&'static AtomicBool);

impl WatchedTarget for Somebody {
    fn foreign(&self) -> io::Result<Option<String>> {
        Ok(self.0.load(Relaxed).then(|| "the target".to_owned()))
    }
}

/// Whether somebody is connected to [`watch`]ed targets; of one test alone.
static CONNECTED: AtomicBool = AtomicBool::new(false);

fn watch(_: &Upstream) -> Option<Arc<dyn WatchedTarget>> {
    Some(Arc::new(Somebody(&CONNECTED)))
}

thread_local! {
    static BEGAN: Cell<Option<tokio::time::Instant>> = const { Cell::new(None) };
}

/// The clock of the runtime, which tests set.
fn clock() -> u64 {
    let began = BEGAN.get().unwrap_or_else(|| {
        let now = tokio::time::Instant::now();
        BEGAN.set(Some(now));
        now
    });
    1_000_000 + u64::try_from(began.elapsed().as_millis()).unwrap_or(0)
}

/// A process of the service, and the sessions that it has.
struct Service {
    backends: Arc<Backends>,
    model: Model,
    sessions: BTreeMap<u32, Option<BackendUse>>,
}

impl Service {
    fn begin(world: &Arc<Mutex<World>>, directory: &Path) -> Self {
        let model = Model { world: world.clone(), dead: Arc::default() };
        let backends = Arc::new(Backends::with(Arc::new(model.clone()), clock));
        backends.take_up(directory.to_owned(), watch);
        let unit = backends.named(UNIT);
        backends.want([(&unit, Some(IDLE))]);
        Self { backends, model, sessions: BTreeMap::new() }
    }

    /// The process dies without a word.
    fn crash(&mut self) {
        *lock(&self.model.dead) = true;
        self.backends.lose_directory();
        lock(&self.model.world).asking = 0;
    }
}

/// What a client does: waits for the unit, dials until it is connected.
async fn connect(used: &BackendUse, world: &Mutex<World>) -> Result<(), String> {
    let mut pause = Duration::from_millis(31);
    for _ in 0..200 {
        used.awake().await.map_err(|failure| failure.to_string())?;
        if lock(world).answers() {
            used.answered();
            return Ok(());
        }
        used.look_again();
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
    Err("not served".to_owned())
}

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A client comes and stays for so many milliseconds.
    Client(u16),
    /// Somebody starts, stops or restarts the unit.
    Start,
    Stop,
    Restart,
    /// The program dies, and `Restart=` begins it again.
    Dies,
    /// It dies for good.
    Fails,
    ServiceRestarts,
    ServiceCrashes,
    Needed(bool),
}

fn events() -> impl Strategy<Value = Vec<(u16, Event)>> {
    let event = prop_oneof![
        8 => (0u16..8000).prop_map(Event::Client),
        1 => Just(Event::Start),
        1 => Just(Event::Stop),
        1 => Just(Event::Restart),
        1 => Just(Event::Dies),
        1 => Just(Event::Fails),
        2 => Just(Event::ServiceRestarts),
        2 => Just(Event::ServiceCrashes),
        1 => any::<bool>().prop_map(Event::Needed),
    ];
    // Around the deadline more often than elsewhere.
    let pause = prop_oneof![0u16..100, 4900u16..5100, 0u16..7000];
    proptest::collection::vec((pause, event), 1..40)
}

/// The second half of a restart.
fn begin_later(world: &Arc<Mutex<World>>, restarts: u64, ours: bool) {
    let world = world.clone();
    tokio::spawn(async move {
        sleep(Duration::from_millis(40)).await;
        let mut now = lock(&world);
        if now.restarted || now.between {
            now.begin(restarts, ours);
            now.activating = false;
        }
    });
}

/// Runs one story to its end; what was wrong.
async fn story(events: Vec<(u16, Event)>, directory: &Path) -> Vec<String> {
    let world = Arc::new(Mutex::new(World::default()));
    let mut service = Service::begin(&world, directory);
    service.backends.begin();
    let mut clients = JoinSet::new();
    let left = Arc::new(Mutex::new(Vec::new()));
    let mut number = 0;
    for (pause, event) in events {
        sleep(Duration::from_millis(pause.into())).await;
        // Sessions that have ended since.
        for session in std::mem::take(&mut *lock(&left)) {
            service.sessions.remove(&session);
        }
        let somebody = matches!(event, Event::Start | Event::Stop | Event::Restart | Event::Dies | Event::Fails);
        // In the moments of a request nobody can know whose order came first; and a job of the unit orders others.
        while somebody && {
            let now = lock(&world);
            now.asking > 0 || now.activating || now.is_on_its_way() || now.start_queued || now.stop_queued
        } {
            sleep(Duration::from_millis(1)).await;
        }
        match event {
            Event::Client(stays) => {
                number += 1;
                let (session, world, left) = (number, world.clone(), left.clone());
                let used = service.backends.named(UNIT).begin_use();
                lock(&world).users += 1;
                clients.spawn(async move {
                    let outcome = connect(&used, &world).await;
                    if outcome.is_ok() {
                        lock(&world).connected += 1;
                        sleep(Duration::from_millis(stays.into())).await;
                        lock(&world).connected -= 1;
                    }
                    lock(&world).users -= 1;
                    drop(used);
                    lock(&left).push(session);
                    outcome
                });
            }
            Event::Start => {
                let mut now = lock(&world);
                if now.state.is_none() {
                    now.begin(0, false);
                    now.activating = false;
                }
            }
            Event::Stop => lock(&world).end(),
            Event::Restart => {
                let mut now = lock(&world);
                if now.state.is_some() {
                    (now.deactivating, now.restarted) = (true, true);
                    begin_later(&world, 0, false);
                }
            }
            Event::Dies => {
                let mut now = lock(&world);
                // Of a foreign one that was not looked at since it took the place of ours, nobody can know.
                let known = now.known_over;
                if let Some(invocation) = now.state.clone().filter(|invocation| invocation.ours || known) {
                    now.between = true;
                    begin_later(&world, invocation.restarts + 1, invocation.ours);
                }
            }
            Event::Fails => lock(&world).end(),
            Event::ServiceRestarts | Event::ServiceCrashes => {
                // Sessions are not carried over here: they end with the process.
                match event {
                    Event::ServiceRestarts => service.backends.end().await,
                    _ => service.crash(),
                }
                clients.abort_all();
                while clients.join_next().await.is_some() {}
                {
                    let mut now = lock(&world);
                    (now.users, now.connected) = (0, 0);
                }
                let orphaned = lock(&world).asking > 0 || lock(&world).activating;
                service = Service::begin(&world, directory);
                service.backends.begin();
                if orphaned {
                    sleep(Duration::from_millis(200)).await; // until the new process has looked
                }
                sleep(Duration::from_millis(20)).await;
            }
            Event::Needed(needed) => lock(&world).needed = needed,
        }
    }
    let mut faults = Vec::new();
    while let Some(client) = clients.join_next().await {
        faults.extend(client.expect("no panic").err());
    }
    lock(&world).needed = false;
    sleep(IDLE * 3 + Duration::from_secs(65)).await;
    let now = lock(&world);
    faults.extend(now.faults.iter().cloned());
    if now.state.as_ref().is_some_and(|invocation| invocation.ours) {
        faults.push("ours, idle and not stopped".into());
    }
    faults
}

fn paused<T>(future: impl Future<Output = T>) -> T {
    BEGAN.set(None);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().expect("a runtime").block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_guarantees_hold(events in events()) {
        let dir = tempfile::tempdir().expect("a directory");
        let faults = paused(story(events, &dir.path().join("units")));
        prop_assert!(faults.is_empty(), "{faults:?}");
    }
}

#[test]
fn a_crash_while_a_start_waits_behind_a_stop_of_ours_leaves_no_unit_behind() {
    use Event::{Client, ServiceCrashes, ServiceRestarts};
    let before = [(0, Client(0)), (52, Client(1508)), (4984, ServiceRestarts), (1518, Client(0))];
    for pause in 0..80 {
        let dir = tempfile::tempdir().expect("a directory");
        let events = before.into_iter().chain([(pause, ServiceCrashes)]).collect();
        let faults = paused(story(events, &dir.path().join("units")));
        assert!(faults.is_empty(), "after {pause} ms: {faults:?}");
    }
}

#[test]
fn a_hundred_clients_cause_one_start_and_ten_in_the_back_off_one_failure() {
    let dir = tempfile::tempdir().expect("a directory");
    paused(async {
        let world = Arc::new(Mutex::new(World::default()));
        let service = Service::begin(&world, dir.path());
        service.backends.begin();
        lock(&world).fails = true;
        let unit = service.backends.named(UNIT);
        let mut clients = JoinSet::new();
        for _ in 0..10 {
            let (world, used) = (world.clone(), unit.begin_use());
            clients.spawn(async move { connect(&used, &world).await });
        }
        for outcome in clients.join_all().await {
            let why = outcome.expect_err("the start fails");
            assert!(why.contains("it fails") && why.contains("a line"), "{why}");
        }
        assert_eq!(lock(&world).starts, 1);
        lock(&world).fails = false;
        sleep(Duration::from_millis(1100)).await;
        let mut clients = JoinSet::new();
        for _ in 0..100 {
            let (world, used) = (world.clone(), unit.begin_use());
            clients.spawn(async move { connect(&used, &world).await });
        }
        assert_eq!(service.backends.view()[0].users, 100);
        assert!(clients.join_all().await.into_iter().all(|outcome| outcome.is_ok()));
        assert_eq!(lock(&world).starts, 2);
        assert_eq!(*service.backends.busy().borrow(), 1);
        assert!(service.backends.view()[0].stops_at.is_some());
        sleep(IDLE + Duration::from_secs(1)).await;
        assert_eq!((lock(&world).stops, *service.backends.busy().borrow()), (1, 0));
    });
}

#[test]
fn the_longest_time_counts_and_a_listener_without_one_keeps_the_unit() {
    let dir = tempfile::tempdir().expect("a directory");
    paused(async {
        let world = Arc::new(Mutex::new(World::default()));
        let service = Service::begin(&world, dir.path());
        service.backends.begin();
        let unit = service.backends.named(UNIT);
        let s = |seconds| Some(Duration::from_secs(seconds));
        service.backends.want([(&unit, s(5)), (&unit, s(20)), (&unit, s(1))]);
        connect(&unit.begin_use(), &world).await.expect("it is served");
        sleep(Duration::from_secs(19)).await;
        assert_eq!(lock(&world).stops, 0);
        service.backends.want([(&unit, s(5)), (&unit, None)]);
        sleep(Duration::from_secs(100)).await;
        assert_eq!(lock(&world).stops, 0);
        service.backends.want([(&unit, s(5))]);
        service.backends.want([]); // no listener names it any more
        sleep(Duration::from_secs(1)).await;
        assert_eq!(lock(&world).stops, 1);
    });
}

#[test]
fn a_service_that_stops_stops_no_unit_and_starts_none_when_the_system_goes_down() {
    let dir = tempfile::tempdir().expect("a directory");
    paused(async {
        let world = Arc::new(Mutex::new(World::default()));
        let service = Service::begin(&world, dir.path());
        service.backends.begin();
        let unit = service.backends.named(UNIT);
        connect(&unit.begin_use(), &world).await.expect("it is served");
        service.backends.drain(false);
        sleep(IDLE * 2).await;
        assert_eq!(lock(&world).stops, 0);
        lock(&world).end();
        connect(&unit.begin_use(), &world).await.expect("a session of the drain is served");
        assert_eq!(lock(&world).starts, 2);
        lock(&world).end();
        service.backends.drain(true);
        unit.begin_use().look_again();
        sleep(Duration::from_secs(1)).await;
        let why = unit.begin_use().awake().await.expect_err("nothing is started");
        assert!(why.to_string().contains("the system shuts down"), "{why}");
        service.backends.leave().await;
        assert_eq!(lock(&world).starts, 2);
        assert_eq!(lock(&world).stops, 0);
        assert!(!dir.path().exists(), "the next start begins anew");
    });
}

#[test]
fn the_idle_time_goes_on_over_a_restart_and_over_a_crash() {
    for crash in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        paused(async {
            let world = Arc::new(Mutex::new(World::default()));
            let mut service = Service::begin(&world, dir.path());
            service.backends.begin();
            connect(&service.backends.named(UNIT).begin_use(), &world).await.expect("it is served");
            sleep(IDLE / 2).await;
            match crash {
                false => service.backends.end().await,
                true => service.crash(),
            }
            let service = Service::begin(&world, dir.path());
            service.backends.begin();
            sleep(IDLE / 2 - Duration::from_millis(200)).await;
            assert_eq!(lock(&world).stops, 0);
            sleep(Duration::from_millis(400)).await;
            assert_eq!(lock(&world).stops, 1, "crash: {crash}");
            drop(service);
        });
    }
}

#[test]
fn a_target_that_no_listener_names_any_more_keeps_the_unit_over_a_reload_and_over_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    paused(async {
        let world = Arc::new(Mutex::new(World::default()));
        let mut service = Service::begin(&world, dir.path());
        service.backends.begin();
        CONNECTED.store(true, Relaxed);
        let unit = service.backends.named(UNIT);
        let at = Upstream::Unix(UnixAddr::Path("/run/x".into()));
        let route = unit.add_target(&at, watch(&at).expect("it is watched"));
        connect(&unit.begin_use(), &world).await.expect("it is served");
        drop(route);
        sleep(IDLE * 3).await;
        assert_eq!(lock(&world).stops, 0, "after a reload");
        service.crash();
        let service = Service::begin(&world, dir.path());
        service.backends.begin();
        sleep(IDLE * 3).await;
        assert_eq!(lock(&world).stops, 0, "after a crash");
        CONNECTED.store(false, Relaxed);
        sleep(IDLE * 3).await;
        assert_eq!(lock(&world).stops, 1, "nobody is connected any more");
    });
}

/// A target of which nobody can tell whether somebody is connected to it, until this is set.
#[derive(Debug, Default)]
struct Unreadable(AtomicBool);

impl WatchedTarget for Unreadable {
    fn foreign(&self) -> io::Result<Option<String>> {
        if self.0.load(Relaxed) { Ok(None) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

#[test]
fn a_unit_is_not_stopped_while_nobody_can_tell_who_is_connected_to_its_target() {
    let dir = tempfile::tempdir().expect("a directory");
    paused(async {
        let world = Arc::new(Mutex::new(World::default()));
        let service = Service::begin(&world, dir.path());
        service.backends.begin();
        let (unit, target) = (service.backends.named(UNIT), Arc::new(Unreadable::default()));
        let _route = unit.add_target(&Upstream::Unix(UnixAddr::Path("/run/x".into())), target.clone());
        connect(&unit.begin_use(), &world).await.expect("it is served");
        sleep(IDLE * 3).await;
        assert_eq!(lock(&world).stops, 0, "nobody can tell");
        target.0.store(true, Relaxed);
        sleep(IDLE * 3).await;
        assert_eq!(lock(&world).stops, 1, "nobody is connected");
    });
}

#[test]
fn a_unit_that_nobody_saw_after_its_start_serves_and_is_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    paused(async {
        let world = Arc::new(Mutex::new(World::default()));
        let service = Service::begin(&world, dir.path());
        service.backends.begin();
        sleep(Duration::from_secs(1)).await;
        lock(&world).fails_to_show = Some(1);
        let used = service.backends.named(UNIT).begin_use();
        connect(&used, &world).await.expect("it is served");
        assert_eq!(lock(&world).fails_to_show, None, "the look after the start failed");
        drop(used);
        sleep(IDLE * 2).await;
        assert_eq!(lock(&world).stops, 1);
    });
}

#[test]
fn all_units_are_looked_at_side_by_side_and_one_that_is_being_started_keeps_nobody_waiting() {
    paused(async {
        let directory = tempfile::tempdir().expect("a directory");
        let world = Arc::new(Mutex::new(World { start_takes: Duration::from_secs(60), ..World::default() }));
        let service = Service::begin(&world, directory.path());
        service.backends.begin();
        let backend = service.backends.named(UNIT);
        let used = backend.begin_use();
        let waits = tokio::spawn(async move { used.awake().await.is_ok() });
        sleep(Duration::from_secs(1)).await;
        for n in 0..50 {
            service.backends.want([(&service.backends.named(&format!("{n}.service")), None)]);
        }
        sleep(Duration::from_secs(1)).await;
        let began = tokio::time::Instant::now(); // of the test's own clock
        service.backends.refresh().await;
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
        assert_eq!(backend.view().state, UnitState::Activating);
        assert!(backend.view().since.is_some());
        assert!(!waits.is_finished());
    });
}

#[test]
fn a_client_that_leaves_during_a_start_leaves_no_time_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    paused(async {
        let world = Arc::new(Mutex::new(World::default()));
        let service = Service::begin(&world, dir.path());
        service.backends.begin();
        let unit = service.backends.named(UNIT);
        {
            let used = unit.begin_use();
            tokio::time::timeout(Duration::from_millis(30), used.awake()).await.expect_err("it is being started");
        }
        sleep(IDLE / 2).await;
        connect(&unit.begin_use(), &world).await.expect("it is served");
        assert_eq!((lock(&world).starts, service.backends.view()[0].last_start), (1, None));
    });
}

#[test]
fn who_waits_for_a_start_that_fails_waits_no_second_for_the_journal() {
    let dir = tempfile::tempdir().expect("a directory");
    paused(async {
        let world = Arc::new(Mutex::new(World::default()));
        let service = Service::begin(&world, dir.path());
        service.backends.begin();
        {
            let mut now = lock(&world);
            (now.fails, now.journal) = (true, Duration::from_secs(20));
        }
        let used = service.backends.named(UNIT).begin_use();
        let told = tokio::time::timeout(Duration::from_secs(1), used.awake()).await.expect("at once");
        let why = told.expect_err("the start fails").to_string();
        assert!(why.contains("it fails") && !why.contains("a line"), "{why}");
    });
}
