//! The socket units of this process's unit: which are active, and which of these have lost their file.
//!
//! # Theory
//! When a socket unit stops, a setting of its drop-in (`ExecStopPost=`) restarts the service, which closes the port. A
//! unit whose file is gone has no drop-in any more: after the next daemon-reload the manager calls the unit not-found
//! and still active, knows neither its addresses nor its service, and stops it without a word. The port would stay open
//! for as long as this process has the descriptor.
//!
//! | state of a unit | how it is known | what is done |
//! |---|---|---|
//! | active | the manager is asked at the start of the service | nothing |
//! | active, its file is gone | the first question after a daemon-reload | the manager is asked twice a second |
//! | inactive | any answer | the service restarts, and is not passed the socket |
//!
//! A daemon-reload makes the directories of the generators again, beside which inotify(7) listens; so nothing is asked
//! while nothing changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    future::pending,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};

use super::{
    jobs::{Job, own_job},
    notify,
    shown::ShownUnit,
    systemctl::Scope,
    unit,
};
use crate::{
    log::{Kind, escape, say},
    sys,
};

/// A daemon-reload makes several directories; one question follows all of them.
const SETTLE: Duration = Duration::from_millis(50);
/// How often a unit without its file is looked at.
const WATCH: Duration = Duration::from_millis(500);
/// How long the manager may take to answer, and how long a question without an answer is put off.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the order to restart may take; systemctl waits 25 s for a reply (sd_bus_set_method_call_timeout(3)).
const ORDER: Duration = Duration::from_secs(30);
/// How often a question without an answer is repeated.
const ATTEMPTS: u32 = 5;

/// What became of socket units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// Other units than before have lost their file.
    FileGone,
    /// One that is served has stopped.
    Stopped,
}

/// The socket units of this process's unit.
#[derive(Debug, Default)]
pub struct SocketUnits {
    /// Hears of directories that are made and removed beside those of the generators.
    beside_generators: Option<AsyncFd<OwnedFd>>,
    /// Active units that pass their sockets to this process's unit, with their addresses and the kinds of those
    /// (`Stream`, `Datagram`).
    active: BTreeMap<String, Vec<(String, String)>>,
    /// Those of them whose file is gone.
    without_file: BTreeSet<String>,
    /// When the manager is asked next.
    next: Option<Instant>,
    asking: Option<JoinHandle<Option<String>>>,
    /// Questions without an answer, in a row.
    silent: u32,
}

impl SocketUnits {
    /// Follows the units from now on; without a manager there are none.
    pub fn follow() -> Self {
        if !notify::managed() || !sd_notify::booted().unwrap_or(false) {
            return Self::default();
        }
        Self { beside_generators: watch(), next: Some(Instant::now()), ..Self::default() }
    }

    /// The unit without a file that has this address.
    pub fn without_file(&self, address: &str) -> Option<&str> {
        let has = |unit: &&String| self.active.get(*unit).is_some_and(|all| all.iter().any(|(one, _)| one == address));
        self.without_file.iter().find(has).map(String::as_str)
    }

    /// The active unit that has this address.
    pub fn of(&self, address: &str, datagrams: bool) -> Option<&str> {
        let has = |all: &[(String, String)]| {
            all.iter().any(|(one, kind)| escape(one.as_bytes()) == address && (kind == "Datagram") == datagrams)
        };
        self.active.iter().find(|(_, all)| has(all)).map(|(unit, _)| unit.as_str())
    }

    /// Waits until something has become of a unit.
    ///
    /// # Cancel safety
    /// Safe: what was heard and asked is kept.
    pub async fn moved(&mut self) -> Moved {
        loop {
            if let Some(asking) = &mut self.asking {
                let answer = asking.await.ok().flatten();
                self.asking = None;
                match self.learn(answer.as_deref()) {
                    Some(moved) => return moved,
                    None => continue,
                }
            }
            let due = async {
                match self.next {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = made_anew(self.beside_generators.as_ref()) => {
                    let soon = Instant::now() + SETTLE;
                    self.next = Some(self.next.map_or(soon, |next| next.min(soon)));
                }
                () = due => {
                    self.next = None;
                    let known: Vec<String> = self.active.keys().cloned().collect();
                    self.asking = Some(spawn_blocking(move || ask(&known)));
                }
            }
        }
    }

    /// Takes up what the manager says; what has changed.
    fn learn(&mut self, answer: Option<&str>) -> Option<Moved> {
        let Some(answer) = answer else {
            self.silent += 1;
            self.next = (self.silent < ATTEMPTS).then(|| Instant::now() + PATIENCE);
            return None;
        };
        self.silent = 0;
        let own = unit::name();
        let prefix = format!("{}-", own.trim_end_matches(".service"));
        let (mut without_file, mut stopped) = (BTreeSet::new(), Vec::new());
        for shown in ShownUnit::read_all(answer) {
            let Some(name) = shown.last("Id") else { continue };
            let off = matches!(shown.last("ActiveState").as_deref(), Some("inactive" | "failed"));
            let ours =
                shown.last("Triggers").is_some_and(|units| units.split_ascii_whitespace().any(|unit| unit == own));
            if ours && !off {
                // An edited unit has other addresses for the manager; the sockets that are open stay as they were.
                let listens = self.active.entry(name.clone()).or_default();
                if listens.is_empty() {
                    *listens = shown.listens();
                }
            }
            if off && self.active.contains_key(&name) {
                stopped.push(name);
            } else if !off
                && shown.last("LoadState").as_deref() == Some("not-found")
                && (self.active.contains_key(&name) || name.starts_with(&prefix))
            {
                self.active.entry(name.clone()).or_default();
                without_file.insert(name);
            }
        }
        for name in &stopped {
            self.active.remove(name);
        }
        let changed = without_file != self.without_file;
        self.without_file = without_file;
        self.next = (!self.without_file.is_empty()).then(|| Instant::now() + WATCH);
        match changed {
            _ if !stopped.is_empty() => Some(Moved::Stopped),
            true => Some(Moved::FileGone),
            false => None,
        }
    }
}

/// Has the manager restart this process's unit, if no stop of the unit waits.
pub fn restart() {
    tokio::spawn(async {
        let ordered = spawn_blocking(|| Scope::own().try_restart(&unit::name(), ORDER)).await;
        let taken = ordered.is_ok_and(|answer| answer.is_ok_and(|taken| taken));
        if !taken && !matches!(own_job().await, Job::Stop { .. } | Job::Restart) {
            let unit = unit::name();
            let text = format!("a socket was stopped and stays open: {unit} may not restart itself; restart it");
            say(Kind::ControlTrouble, text);
        }
    });
}

/// What the manager says of all its sockets, and of the `known` ones although they are gone.
fn ask(known: &[String]) -> Option<String> {
    let mut arguments = vec!["show", "--property=Id,LoadState,ActiveState,Listen,Triggers", "--", "*.socket"];
    arguments.extend(known.iter().map(String::as_str));
    let answer = Scope::own().ask(&arguments, PATIENCE).ok()?;
    answer.status.success().then_some(answer.text)
}

/// Watches the directory in which those of the generators are (systemd.generator(7)).
fn watch() -> Option<AsyncFd<OwnedFd>> {
    let dir = match Scope::own() {
        Scope::System => PathBuf::from("/run/systemd"),
        Scope::User => PathBuf::from(env::var_os("XDG_RUNTIME_DIR")?).join("systemd"),
    };
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok()?;
    let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(&dir, flags).ok()?;
    sys::register(inotify.into(), Interest::READABLE).ok()
}

/// Waits until a directory was made or removed there.
async fn made_anew(beside: Option<&AsyncFd<OwnedFd>>) {
    let Some(inotify) = beside else { return pending().await };
    let Ok(mut ready) = inotify.readable().await else { return pending().await };
    let mut events = [0; 4096];
    while nix::unistd::read(inotify.get_ref().as_fd(), &mut events).is_ok_and(|n| n > 0) {}
    ready.clear_ready();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(name: &str, load: &str, active: &str, triggers: &str, listen: &str) -> String {
        format!("Id={name}\nLoadState={load}\nActiveState={active}\nTriggers={triggers}\n{listen}\n\n")
    }

    /// Outside of a unit this is what a process believes to be of.
    const OWN: &str = "qrexec-connect.service";

    #[test]
    fn a_unit_whose_file_is_gone_is_followed_until_it_is_inactive() {
        let own = unit::name();
        assert_eq!(own, OWN, "tests run in no service");
        let mut units = SocketUnits::default();
        let here = unit("x.socket", "loaded", "active", OWN, "Listen=127.0.0.1:1 (Stream)");
        let datagrams = unit("u.socket", "loaded", "active", OWN, "Listen=127.0.0.1:1 (Datagram)");
        let other = unit("o.socket", "loaded", "active", "other.service", "Listen=127.0.0.1:2 (Stream)");
        assert_eq!(units.learn(Some(&(here.clone() + &datagrams + &other))), None);
        assert_eq!(
            (units.of("127.0.0.1:1", false), units.of("127.0.0.1:1", true)),
            (Some("x.socket"), Some("u.socket"))
        );
        assert_eq!(units.of("127.0.0.1:2", false), None, "of another service");
        assert_eq!((units.next, units.without_file("127.0.0.1:1")), (None, None));
        assert_eq!(units.learn(Some(&unit("x.socket", "not-found", "active", "", ""))), Some(Moved::FileGone));
        assert_eq!(units.without_file("127.0.0.1:1"), Some("x.socket"));
        assert!(units.next.is_some(), "it is looked at again");
        assert_eq!(units.learn(Some(&unit("x.socket", "not-found", "active", "", ""))), None);
        assert_eq!(units.learn(Some(&unit("x.socket", "not-found", "inactive", "", ""))), Some(Moved::Stopped));
        assert_eq!((units.next, units.without_file("127.0.0.1:1")), (None, None));
        assert_eq!(units.learn(Some(&unit("x.socket", "not-found", "inactive", "", ""))), None, "once");
    }

    #[test]
    fn a_unit_that_comes_back_with_its_file_is_an_ordinary_one_again() {
        let mut units = SocketUnits::default();
        let name = "qrexec-connect-y.socket";
        assert_eq!(units.learn(Some(&unit(name, "not-found", "active", "", ""))), Some(Moved::FileGone), "by its name");
        assert_eq!(units.learn(Some(&unit(name, "loaded", "active", OWN, ""))), Some(Moved::FileGone));
        assert!(units.next.is_none() && units.without_file.is_empty());
        assert_eq!(units.learn(Some(&unit("z.socket", "not-found", "active", "", ""))), None, "not ours");
        assert_eq!(units.learn(None), None);
        assert!(units.next.is_some());
    }
}
