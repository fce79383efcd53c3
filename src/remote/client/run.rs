//! One command from its id to its entry in the history.

use std::io;

use nix::unistd::getpid;

use super::{
    history::HistoryEntry,
    home::Home,
    live, spool,
    submission::{ClientError, Delivery, Submission},
};
use crate::{
    proto::{
        mac::{Key, hex},
        remote::Mode,
    },
    remote::clock,
    sys,
};

/// A new id: local time, process, eight random digits, as the original has it.
///
/// # Errors
/// What getrandom(2) says.
pub fn new_id() -> io::Result<String> {
    let mut random = [0; 4];
    getrandom::fill(&mut random)?;
    let seconds = i64::try_from(clock::now_ms() / 1000).unwrap_or(0);
    let [year, month, day, hour, minute, second] = sys::local_time(seconds);
    let time = format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}");
    Ok(format!("{time}-{}-{}", getpid(), hex(&random)))
}

/// Asks with this key, by the way that is wanted.
async fn with_key(
    home: &Home,
    key: &Key,
    id: &str,
    ask: &Submission,
    record: &mut HistoryEntry,
) -> Result<u8, ClientError> {
    match ask.way {
        Delivery::Live => live::ask(home, key, id, ask, record).await,
        _ => spool::ask(home, key, id, ask, record).await,
    }
}

/// Asks with the key in use, and with the new one where dom0 does not take that (any more); a ping tries the new one first.
/// Once dom0 has answered to the new one, it is the key in use.
async fn with_either_key(
    home: &Home,
    key: &Key,
    id: &str,
    ask: &Submission,
    record: &mut HistoryEntry,
) -> Result<u8, ClientError> {
    let Some(new) = home.new_key() else {
        let result = with_key(home, key, id, ask, record).await;
        // Another command may have taken a new key into use since `key` was read.
        let refused = matches!(result, Err(ClientError::Unauthorised(_)));
        let now = home.key().ok().filter(|now| refused && now != key);
        return match now {
            Some(now) => with_key(home, &now, id, ask, record).await,
            None => result,
        };
    };
    let (first, second) = if ask.mode == Mode::Ping { (&new, key) } else { (key, &new) };
    let (mut used, mut result) = (first, with_key(home, first, id, ask, record).await);
    if let Err(ClientError::Unauthorised(why)) = result {
        (used, result) = (second, with_key(home, second, id, ask, record).await);
        if matches!(result, Err(ClientError::Unauthorised(_))) {
            return Err(ClientError::Unauthorised(why));
        }
    }
    if *used == new && result.is_ok() {
        if let Err(e) = home.take_new_key(&new) {
            let path = home.new_key_path();
            let text = "dom0 has accepted the new key, which cannot take the place of auth.key beside it";
            eprintln!("[qvm-remote] {text}: {}: {e}", path.display());
        }
    }
    result
}

/// Asks; the command's status.
///
/// # Errors
/// Why there is none.
pub fn ask(home: &Home, ask: Submission) -> Result<u8, ClientError> {
    let own = |e: io::Error| ClientError::Local(format!("{}: {e}", home.path().display()));
    let key = home.key()?;
    let id = new_id().map_err(own)?;
    let mut record =
        if ask.recorded { HistoryEntry::begin(home, &id, &ask.shown).map_err(own)? } else { HistoryEntry::none() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(own)?;
    let result = runtime.block_on(with_either_key(home, &key, &id, &ask, &mut record));
    runtime.shutdown_background(); // a thread may still wait for input that nobody wants
    match &result {
        Ok(status) => record.done(*status),
        Err(ClientError::Timeout(limit)) => record.timed_out(limit.seconds()),
        Err(ClientError::Refused(status, _)) => record.done(*status),
        Err(ClientError::Unauthorised(_)) => record.done(126),
        Err(ClientError::Signal(signal)) => record.done(signal.saturating_add(128)),
        Err(ClientError::Transport(_)) => record.done(255),
        Err(ClientError::Local(_)) => record.done(1),
    }
    result.map_err(|trouble| match trouble {
        ClientError::Timeout(limit) => {
            let (seconds, whose) = (limit.seconds(), limit.whose());
            ClientError::Refused(124, format!("timed out after {seconds}s (id={id}): {whose}"))
        }
        other => other,
    })
}
