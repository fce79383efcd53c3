//! A command through the agent: the request, and the exchange that answers it.

use std::os::unix::ffi::OsStringExt as _;

use tokio::time::Instant;

use super::{
    connection::Connection,
    exchange::{Exchange, ExchangeError},
    history::HistoryEntry,
    home::Home,
    submission::{ClientError, Submission},
    terminal::ClientSignals,
};
use crate::{
    proto::{
        mac::{self, Key},
        remote::{Hello, Mode, Request, flags},
    },
    remote::clock::now_ms,
};

/// Asks, again when another request took our number's place.
pub async fn ask(
    home: &Home,
    key: &Key,
    id: &str,
    ask: &Submission,
    record: &mut HistoryEntry,
) -> Result<u8, ClientError> {
    let connect_by = Instant::now() + ask.connect_timeout;
    for _ in 0..3 {
        let mut signals = ClientSignals::new().map_err(|e| ClientError::Local(e.to_string()))?;
        let connection = tokio::select! {
            found = Connection::open(home, connect_by) => found?,
            n = signals.next() => return Err(ClientError::Signal(n)),
        };
        let request = request(ask, key, id, &connection.hello);
        match Exchange::run(connection, request, key, ask, record, signals, connect_by).await {
            Ok(status) => return Ok(status),
            Err(ExchangeError::Stale) => {}
            Err(ExchangeError::Client(trouble)) => return Err(trouble),
        }
    }
    Err(ClientError::Transport("dom0 keeps saying that the request is not current".into()))
}

fn request(ask: &Submission, key: &Key, id: &str, hello: &Hello) -> Request {
    let stdin = ask.stdin || ask.tty || ask.mode == Mode::Put;
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    if matches!(ask.mode, Mode::Shell | Mode::Argv) {
        let mut size = 0;
        for (name, value) in std::env::vars_os() {
            let (name, value) = (name.into_vec(), value.into_vec());
            let fine = !name.is_empty()
                && !name[0].is_ascii_digit()
                && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
            // dom0 drops all that its policy does not name; only what commonly is named is offered at all
            if fine && OFFERED.iter().any(|o| name == o.as_bytes() || name.starts_with(b"LC_")) && size < 16 << 10 {
                size += name.len() + value.len();
                env.push((name, value));
            }
        }
    }
    let cwd = std::env::current_dir().map(|d| d.into_os_string()).unwrap_or_default();
    Request {
        kid: key.id(),
        vm: hello.vm.clone(),
        nonce: hello.nonce,
        seq: hello.seq,
        id: id.to_owned(),
        created_ms: now_ms(),
        timeout_ms: u32::try_from(ask.timeout.as_millis()).unwrap_or(u32::MAX),
        flags: if stdin { flags::STDIN } else { 0 } | if ask.tty { flags::TTY } else { 0 },
        user: ask.user.clone(),
        cwd: cwd.into_vec(),
        mode: ask.mode,
        length: u32::try_from(ask.payload.len()).unwrap_or(u32::MAX),
        payload: mac::digest(&ask.payload),
        env,
    }
}

/// Variables that are offered to dom0's policy.
const OFFERED: &[&str] = &["TERM", "COLORTERM", "LANG", "TZ", "NO_COLOR", "EDITOR", "PAGER", "COLUMNS", "LINES"];
