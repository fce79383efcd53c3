//! The process of `qrexec-connect-qubesdb.service`: it watches, and makes passes.
//!
//! Two threads. One holds the watch and does nothing but read: the daemon waits for a watcher that does not. The other
//! one makes passes, and may wait for systemd. Between them lies a mark that something has changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use super::{
    database::{self, SOCKET},
    pass::pass,
    units,
};
use crate::{
    log::{Event, Kind, emit, say},
    spec::declared::{DeclaredForward, KEY, declared, unit_of},
};

/// The pause before a watch is begun again, at first and at most; each is twice as long as the one before.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long after a change a pass begins: what dom0 sets one after the other is one batch.
const BATCH: Duration = Duration::from_millis(200);
/// The time from one pass to the next at least.
const BETWEEN: Duration = Duration::from_secs(1);
/// After so many passes in a minute that took steps or had something new to tell, each waits so long. Whoever writes keys
/// all the time keeps neither systemd nor the journal busy, whether or not a listener comes of it.
const OFTEN: (usize, Duration) = (10, Duration::from_secs(10));
const MINUTE: Duration = Duration::from_secs(60);
/// When a pass follows without a change: of a failure, at first and at most; else.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
const REST: Duration = Duration::from_secs(300);
/// How many faults are told after one pass.
const TOLD: usize = 16;

/// What reads the ports below 1024 that root allows; `None`: the configuration cannot be read, and no good one is known.
pub type ReadPorts = Box<dyn FnMut() -> Option<Vec<u16>>>;

/// Watches QubesDB and serves what is declared, for ever. `low` reads the ports below 1024 that are allowed.
///
/// # Errors
/// No thread can be had.
pub fn run(mut low: ReadPorts) -> io::Result<()> {
    let (sender, changes) = sync_channel(1);
    let watching = thread::Builder::new().name("watch".into()).spawn(move || watch_for_ever(&sender))?;
    let mut teller = Teller::default();
    let mut pace = PassPace::new();
    while !watching.is_finished() {
        let began = Instant::now();
        let outcome = once(&mut low, &mut teller);
        if wait(&changes, pace.rest(began, outcome)) {
            thread::sleep(BATCH.max(pace.between(Instant::now()).saturating_sub(began.elapsed())));
            let _ = changes.try_recv(); // of the same batch
        }
    }
    Err(io::Error::other("the thread that watches QubesDB ended"))
}

/// What came of a pass.
#[derive(Clone, Copy, Debug)]
struct PassOutcome {
    /// All was done.
    well: bool,
    /// There were steps, or something new to tell.
    busy: bool,
}

/// When the next pass comes.
#[derive(Debug)]
struct PassPace {
    /// The pause after the next pass that fails.
    retry: Duration,
    /// When the busy passes of the last minute began.
    recent: Vec<Instant>,
}

impl PassPace {
    fn new() -> Self {
        Self { retry: RETRY.0, recent: Vec::new() }
    }

    /// How long to wait after a pass where nothing changes.
    fn rest(&mut self, began: Instant, outcome: PassOutcome) -> Duration {
        self.recent.extend(outcome.busy.then_some(began));
        if outcome.well {
            self.retry = RETRY.0;
            return REST;
        }
        let rest = self.retry;
        self.retry = (rest * 2).min(RETRY.1);
        rest
    }

    /// After a change: the time from the begin of the last pass to the next one at least.
    fn between(&mut self, now: Instant) -> Duration {
        self.retry = RETRY.0;
        self.recent.retain(|at| now.duration_since(*at) < MINUTE);
        if self.recent.len() < OFTEN.0 { BETWEEN } else { OFTEN.1 }
    }
}

/// Takes away all units and rules of declarations.
///
/// # Errors
/// What could not be taken away.
pub fn withdraw() -> Result<(), String> {
    let passed = pass(&BTreeMap::new());
    if passed.failed.is_empty() { Ok(()) } else { Err(passed.failed.join("; ")) }
}

/// Whether there was a change within this time.
fn wait(changes: &Receiver<()>, rest: Duration) -> bool {
    match changes.recv_timeout(rest) {
        Ok(()) => true,
        Err(RecvTimeoutError::Timeout) => false,
        Err(RecvTimeoutError::Disconnected) => {
            thread::sleep(BETWEEN);
            false
        }
    }
}

fn watch_for_ever(changed: &SyncSender<()>) {
    let mut pause = AGAIN.0;
    loop {
        let mut stood = false;
        let error = database::watch(Path::new(SOCKET), || {
            stood = true;
            let _ = changed.try_send(()); // one mark is enough
        });
        if stood {
            pause = AGAIN.0;
            say(Kind::DeclarationFailed, format!("the watch on QubesDB ended ({error}) and begins again"));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(AGAIN.1);
    }
}

/// Reads what is declared and makes one pass.
fn once(low: &mut ReadPorts, teller: &mut Teller) -> PassOutcome {
    let (entries, whole) = match database::read(Path::new(SOCKET)) {
        Ok(read) => read,
        Err(e) => {
            // What is served stays: nobody said that it is not declared any more.
            let failed = vec![format!("QubesDB ({SOCKET}) cannot be read ({e}): the service retries")];
            return PassOutcome { well: false, busy: teller.tell(Vec::new(), failed) };
        }
    };
    let pairs = entries.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
    // An earlier process has opened what is there, by the configuration that it read.
    let (wanted, faults) = declared(pairs, &low().unwrap_or_else(units::written));
    let mut refused: Vec<String> = faults.iter().map(ToString::to_string).collect();
    if !whole {
        refused.push(format!("QubesDB has too many keys that begin with {KEY}: the last of them do not count"));
    }
    let passed = pass(&wanted);
    for port in &passed.opened {
        wanted.get(port).into_iter().for_each(|forward| emit(served(forward)));
    }
    for port in &passed.closed {
        let text =
            format!("port {port} is not declared in dom0 any more: {} is gone; its sessions go on", unit_of(*port));
        say(Kind::ForwardWithdrawn, text);
    }
    let well = passed.failed.is_empty();
    PassOutcome { well, busy: teller.tell(refused, passed.failed) | passed.acted }
}

/// The event of a forward that is served from now on.
fn served(forward: &DeclaredForward) -> Event {
    let (listen, unit) = (forward.listen(), unit_of(forward.listen().port()));
    let text = format!("{listen} leads to {}: declared in dom0, served by {unit}", forward.name());
    Event::on(listen.to_string(), Kind::ForwardDeclared, text)
}

/// What was told and still holds: it is not told again.
#[derive(Debug, Default)]
struct Teller {
    told: BTreeSet<String>,
}

impl Teller {
    /// Whether there was something new.
    fn tell(&mut self, refused: Vec<String>, failed: Vec<String>) -> bool {
        let all = refused.iter().map(|text| (Kind::DeclarationRefused, text));
        let all = all.chain(failed.iter().map(|text| (Kind::DeclarationFailed, text)));
        let new: Vec<_> = all.filter(|(_, text)| !self.told.contains(*text)).collect();
        for (kind, text) in new.iter().take(TOLD) {
            say(*kind, text.as_str());
        }
        if let Some((kind, _)) = new.get(TOLD) {
            say(*kind, format!("and {} more", new.len() - TOLD));
        }
        let any = !new.is_empty();
        self.told = refused.into_iter().chain(failed).collect();
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: PassOutcome = PassOutcome { well: true, busy: true };
    const FAILED: PassOutcome = PassOutcome { well: false, busy: true };
    const NOTHING: PassOutcome = PassOutcome { well: true, busy: false };

    #[test]
    fn a_failure_is_tried_again_after_the_shortest_time_and_then_ever_later() {
        let (mut pace, now) = (PassPace::new(), Instant::now());
        let rests: Vec<_> = (0..8).map(|_| pace.rest(now, FAILED).as_secs()).collect();
        assert_eq!(rests, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!((pace.rest(now, DONE), pace.rest(now, FAILED)), (REST, RETRY.0));
        pace.between(now);
        assert_eq!(pace.rest(now, FAILED), RETRY.0, "a change may have mended it");
    }

    #[test]
    fn passes_that_take_steps_in_vain_slow_down_as_those_that_open_something() {
        for outcome in [DONE, FAILED] {
            let (mut pace, now) = (PassPace::new(), Instant::now());
            for _ in 1..OFTEN.0 {
                pace.rest(now, outcome);
            }
            for _ in 0..100 {
                pace.rest(now, NOTHING);
            }
            assert_eq!(pace.between(now), BETWEEN, "{outcome:?}");
            pace.rest(now, outcome);
            assert_eq!(pace.between(now), OFTEN.1, "{outcome:?}");
            assert_eq!(pace.between(now + MINUTE), BETWEEN, "{outcome:?}");
        }
    }

    #[test]
    fn values_that_are_refused_in_turn_are_something_new_each_time() {
        let mut teller = Teller::default();
        let refused = |text: &str| vec![text.to_owned()];
        assert!(teller.tell(refused("a"), Vec::new()) && teller.tell(refused("b"), Vec::new()));
        assert!(teller.tell(refused("a"), Vec::new()) && !teller.tell(refused("a"), Vec::new()));
        assert!(!teller.tell(Vec::new(), Vec::new()));
    }
}
