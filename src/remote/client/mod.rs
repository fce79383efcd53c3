//! `qvm-remote` in a VM: asks, shows what comes as it comes, ends as the command ended.

pub mod history;
mod live;
mod spool;
pub mod stdio;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::getpid;
pub use spool::{Counts, clean, counts};

use super::{files, keys};
use crate::{
    proto::{
        mac::{Key, hex},
        remote::Mode,
    },
    sys,
};
use history::Record;

/// What is asked, and how its answer is wanted.
#[derive(Debug)]
pub struct Ask {
    /// What the payload is.
    pub mode: Mode,
    /// The command's text, its words, or a path in dom0.
    pub payload: Vec<u8>,
    /// As the logs show it.
    pub shown: Vec<u8>,
    /// How long it may take.
    pub timeout: Duration,
    /// How long dom0 may take to answer at all.
    pub connect_timeout: Duration,
    /// Standard input goes to the command.
    pub stdin: bool,
    /// The command gets a terminal.
    pub tty: bool,
    /// Whom to run as.
    pub user: String,
    /// Where it goes.
    pub way: Way,
    /// No progress.
    pub quiet: bool,
    /// Where output goes instead of standard output.
    pub output: Option<std::fs::File>,
    /// Where input comes from instead of standard input.
    pub input: Option<std::fs::File>,
    /// Whether it belongs into the history and the log.
    pub recorded: bool,
}

/// How dom0 is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the agent, now.
    Live,
    /// Through the queue, signed: waits for a daemon that is not there yet.
    Queue,
    /// Through the queue, for the Python original: neither the command nor its result is authenticated.
    V1,
}

/// Why there is no answer of a command.
#[derive(Debug)]
pub enum Trouble {
    /// dom0 said no: the status, and why.
    Refused(u8, String),
    /// dom0 cannot be reached, or what came is not from dom0.
    Transport(String),
    /// No answer in time.
    Timeout,
    /// Ended by this signal.
    Signal(u8),
    /// Ours: no key, no directory.
    Own(String),
}

/// Where this user's files lie.
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

impl Home {
    /// Below `$HOME`, taken over from the older name when it is not there yet.
    ///
    /// # Errors
    /// No `$HOME`.
    pub fn find() -> io::Result<Self> {
        let home = files::home().ok_or_else(|| io::Error::other("HOME is not set"))?;
        let (new, old) = (home.join(".qvm-remote"), home.join(".qubes-remote"));
        if !new.exists() && old.is_dir() {
            let _ = std::fs::rename(old, &new);
        }
        Ok(Self(new))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// This VM's key.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn key(&self) -> Result<Key, Trouble> {
        keys::read_own(&self.at("auth.key"), keys::credentials().as_deref()).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Trouble::Own("no key configured. Run: qvm-remote key gen".into()),
            io::ErrorKind::InvalidData => Trouble::Own("invalid key (expected 64 hex characters)".into()),
            _ => Trouble::Own(format!("failed to read key: {e}")),
        })
    }
}

/// A new id: local time, process, eight random digits, as the original has it.
///
/// # Errors
/// What getrandom(2) says.
pub fn new_id() -> io::Result<String> {
    let mut random = [0; 4];
    getrandom::fill(&mut random)?;
    let seconds = i64::try_from(super::audit::now_ms() / 1000).unwrap_or(0);
    let [year, month, day, hour, minute, second] = sys::local_time(seconds);
    let time = format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}");
    Ok(format!("{time}-{}-{}", getpid(), hex(&random)))
}

/// Asks; the command's status.
///
/// # Errors
/// Why there is none.
pub fn ask(home: &Home, ask: Ask) -> Result<u8, Trouble> {
    let own = |e: io::Error| Trouble::Own(format!("{}: {e}", home.path().display()));
    let key = home.key()?;
    let id = new_id().map_err(own)?;
    let mut record = if ask.recorded { Record::begin(home, &id, &ask.shown).map_err(own)? } else { Record::none() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(own)?;
    let seconds = ask.timeout.as_secs();
    let result = runtime.block_on(async {
        match ask.way {
            Way::Live => live::ask(home, &key, &id, ask, &mut record).await,
            Way::Queue | Way::V1 => spool::ask(home, &key, &id, ask, &mut record).await,
        }
    });
    runtime.shutdown_background(); // a thread may still wait for input that nobody wants
    match &result {
        Ok(status) => record.done(*status),
        Err(Trouble::Timeout) => record.timed_out(seconds),
        Err(Trouble::Refused(status, _)) => record.done(*status),
        Err(Trouble::Signal(signal)) => record.done(signal.saturating_add(128)),
        Err(Trouble::Transport(_) | Trouble::Own(_)) => record.done(255),
    }
    result.map_err(|trouble| match trouble {
        Trouble::Timeout => Trouble::Refused(124, format!("timed out after {seconds}s (id={id})")),
        other => other,
    })
}
