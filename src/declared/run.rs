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
/// After so many passes in a minute that changed something, each waits so long: every change restarts the service of
/// the sockets, and whoever writes keys all the time does not keep it busy.
const OFTEN: (usize, Duration) = (10, Duration::from_secs(10));
const MINUTE: Duration = Duration::from_secs(60);
/// When a pass follows without a change: of a failure, at first and at most; else.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
const REST: Duration = Duration::from_secs(300);
/// How many faults are told after one pass.
const TOLD: usize = 16;

/// What reads the ports below 1024 that root allows.
pub type ReadPorts = Box<dyn Fn() -> Vec<u16>>;

/// Watches QubesDB and serves what is declared, for ever. `low` reads the ports below 1024 that are allowed.
///
/// # Errors
/// No thread can be had.
pub fn run(low: &ReadPorts) -> io::Result<()> {
    let (sender, changes) = sync_channel(1);
    let watching = thread::Builder::new().name("watch".into()).spawn(move || watch_for_ever(&sender))?;
    let mut teller = Teller::default();
    let (mut retry, mut recent) = (RETRY.0, Vec::new());
    while !watching.is_finished() {
        let began = Instant::now();
        let (well, changed) = once(low, &mut teller);
        recent.extend(changed.then_some(began));
        recent.retain(|at: &Instant| at.elapsed() < MINUTE);
        retry = if well { RETRY.0 } else { (retry * 2).min(RETRY.1) };
        let rest = if well { REST } else { retry };
        let changed = wait(&changes, rest);
        if changed {
            retry = RETRY.0;
            let between = if recent.len() < OFTEN.0 { BETWEEN } else { OFTEN.1 };
            thread::sleep(BATCH.max(between.saturating_sub(began.elapsed())));
            let _ = changes.try_recv(); // of the same batch
        }
    }
    Err(io::Error::other("the thread that watches QubesDB ended"))
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

/// Reads what is declared and makes one pass; whether all was done, and whether anything was changed.
fn once(low: &ReadPorts, teller: &mut Teller) -> (bool, bool) {
    let (entries, whole) = match database::read(Path::new(SOCKET)) {
        Ok(read) => read,
        Err(e) => {
            // What is served stays: nobody said that it is not declared any more.
            teller.tell(Vec::new(), vec![format!("QubesDB ({SOCKET}) cannot be read ({e}): the service retries")]);
            return (false, false);
        }
    };
    let pairs = entries.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
    let (wanted, faults) = declared(pairs, &low());
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
    let done = (passed.failed.is_empty(), !passed.opened.is_empty() || !passed.closed.is_empty());
    teller.tell(refused, passed.failed);
    done
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
    fn tell(&mut self, refused: Vec<String>, failed: Vec<String>) {
        let all = refused.iter().map(|text| (Kind::DeclarationRefused, text));
        let all = all.chain(failed.iter().map(|text| (Kind::DeclarationFailed, text)));
        let new: Vec<_> = all.filter(|(_, text)| !self.told.contains(*text)).collect();
        for (kind, text) in new.iter().take(TOLD) {
            say(*kind, text.as_str());
        }
        if let Some((kind, _)) = new.get(TOLD) {
            say(*kind, format!("and {} more", new.len() - TOLD));
        }
        self.told = refused.into_iter().chain(failed).collect();
    }
}
