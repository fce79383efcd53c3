//! A command through the queue of files: for a daemon that is not up yet, and for the Python original.
//!
//! The token is put in place before the text, each whole, so that no daemon ever sees one without the other. Who gives
//! up takes the request back: nothing runs later that nobody waits for.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use super::{
    history::HistoryEntry,
    home::Home,
    stdio,
    submission::{APPROVAL, ClientError, Delivery, Submission, TimeOver, waiting, waits},
    terminal::{hangup, received},
};
use crate::{
    log::escape,
    proto::{
        mac::{self, Key, Outcome},
        remote::{Ending, Mode, Request, WaitReason, flags},
    },
    remote::{
        agent::{self, directories, read_mac, read_receipt, write_signed},
        clock::now_ms,
        files,
        pipe::AsyncPipe,
        spool,
    },
};

/// Between two looks, as the original has it; a change of the directory makes it look at once.
const TICK: Duration = Duration::from_millis(500);
/// A durable request is signed again so often: dom0 takes none that is older than five minutes.
const RENEW: Duration = Duration::from_secs(120);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(30);
/// How long `.meta` may take to follow `.exit` (the original's daemon writes it last).
const META: Duration = Duration::from_millis(1500);

/// What lies in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounts {
    /// Commands that wait.
    pub pending: usize,
    /// Commands that were begun.
    pub running: usize,
    /// Files of results.
    pub results: usize,
    /// Tokens without a command.
    pub orphans: usize,
}

impl QueueCounts {
    /// The number of all files.
    pub fn total(&self) -> usize {
        self.pending + self.running + self.results + self.orphans
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// QueueCounts what lies in the queue.
pub fn counts(home: &Home) -> QueueCounts {
    let queue = home.at("queue");
    let pending = names(&queue.join("pending"));
    let is_token = |n: &str| n.ends_with(".auth") || n.ends_with(".auth2");
    let commands = pending.iter().filter(|n| !is_token(n) && !n.ends_with(".cmd") && !n.ends_with(".tmp"));
    let orphan = |n: &&String| {
        let id = n.trim_end_matches('2').trim_end_matches(".auth");
        is_token(n) && !pending.iter().any(|other| other == id)
    };
    QueueCounts {
        pending: commands.count(),
        running: names(&queue.join("running")).len(),
        results: names(&queue.join("results")).len(),
        orphans: pending.iter().filter(orphan).count(),
    }
}

/// Removes everything from the queue; how many files.
pub fn clean(home: &Home) -> usize {
    let mut removed = 0;
    for dir in ["pending", "running", "results"] {
        for name in names(&home.at("queue").join(dir)) {
            removed += usize::from(fs::remove_file(home.at("queue").join(dir).join(name)).is_ok());
        }
    }
    removed
}

/// Signals by which a client takes its request back.
struct GiveUp {
    int: Signal,
    term: Signal,
    hup: Option<Signal>,
}

impl GiveUp {
    /// Made before the request is in the queue, so that none of them leaves it there.
    fn new() -> io::Result<Self> {
        Ok(Self { int: signal(SignalKind::interrupt())?, term: signal(SignalKind::terminate())?, hup: hangup()? })
    }

    /// Waits for one of them.
    ///
    /// # Cancel safety
    /// Safe: no signal is lost.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.int.recv() => 2,
            _ = self.term.recv() => 15,
            () = received(&mut self.hup) => 1,
        }
    }
}

/// A request in the queue; dropped before its answer, it takes itself back.
struct Submitted {
    queue: PathBuf,
    id: String,
    /// The request's code; `None` for the original's token.
    signed: Option<mac::Digest>,
}

impl Submitted {
    fn at(&self, dir: &str, end: &str) -> PathBuf {
        self.queue.join(dir).join(format!("{}{end}", self.id))
    }

    /// Whole, and by a name that no daemon takes for a command until then.
    fn put(&self, end: &str, bytes: &[u8]) -> io::Result<()> {
        let staged = self.queue.join(format!("{}{end}.tmp", self.id));
        files::replace(&staged, 0o600, bytes)?;
        fs::rename(&staged, self.at("pending", end))
    }

    /// Signs the request, with the time of now, and puts its code in place.
    fn put_signed(&mut self, ask: &Submission, key: &Key, vm: &str) -> io::Result<()> {
        let (request, code) = sign(ask, key, &self.id, vm);
        self.signed = Some(code);
        self.put(".auth2", write_signed(&request, &code).as_bytes())
    }

    /// A file of the result.
    fn read(&self, end: &str) -> Vec<u8> {
        files::read(&self.at("results", end), spool::MAX_OUTPUT + 4096).unwrap_or_default()
    }

    /// What changes among the results, as something to wait for.
    fn events(&self) -> io::Result<AsyncPipe> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(&self.queue.join("results"), AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO)?;
        AsyncPipe::reader(OwnedFd::from(inotify))
    }

    /// Waits for the status; a signed request that nobody has taken is signed again from time to time.
    async fn wait(
        &mut self,
        ask: &Submission,
        key: &Key,
        vm: &str,
        mut signals: GiveUp,
        own: impl Fn(io::Error) -> ClientError,
    ) -> Result<u8, ClientError> {
        let events = self.events().map_err(&own)?;
        let (began, mut told) = (Instant::now(), String::new());
        let mut by = ask.timeout.map(|time| began + time);
        let (mut progress, mut renew) = (began + PROGRESS, began + RENEW);
        let mut buffer = vec![0; 4096];
        loop {
            if let Some(status) = exit_status(self) {
                return Ok(status);
            }
            tokio::select! {
                read = events.read(&mut buffer) => {
                    read.map_err(&own)?;
                }
                () = sleep(TICK) => {}
                () = sleep_until(by.unwrap_or(began)), if by.is_some() => {
                    return Err(ClientError::Timeout(TimeOver::Client(ask.timeout.unwrap_or_default())));
                }
                n = signals.next() => return Err(ClientError::Signal(n)),
            }
            let waits_for = String::from_utf8(self.read(".wait")).unwrap_or_default();
            if waits_for != told {
                told = waits_for;
                let reason = WaitReason::parse(&told);
                if matches!(reason, WaitReason::Approval(_)) {
                    // a person has that long, and then the command has its time
                    by = ask.timeout.map(|time| Instant::now() + APPROVAL + time);
                }
                if !ask.quiet && !told.is_empty() {
                    eprintln!("{}", waits(reason));
                }
            }
            if Instant::now() >= progress {
                progress += PROGRESS;
                if !ask.quiet && ask.progress {
                    eprintln!("{}", waiting(began, ask.timeout));
                }
            }
            if self.signed.is_some() && Instant::now() >= renew && self.at("pending", "").exists() {
                renew += RENEW;
                self.put_signed(ask, key, vm).map_err(&own)?;
            }
        }
    }

    /// The original's daemon writes `.meta` last: until then the result is not to be removed.
    async fn wait_for_meta(&self) {
        let by = Instant::now() + META;
        while !self.at("results", ".meta").exists() && Instant::now() < by {
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        for end in ["", ".auth", ".auth2", ".cmd"] {
            let _ = fs::remove_file(self.at("pending", end));
        }
        let _ = fs::remove_file(self.at("running", ""));
        let _ = fs::remove_file(self.at("pending", "")); // an agent may have put it back there just now
        for end in [".out", ".err", ".exit", ".meta", ".command", ".wait"] {
            let _ = fs::remove_file(self.at("results", end));
        }
    }
}

/// Submits, waits, and shows the result.
pub async fn ask(
    home: &Home,
    key: &Key,
    id: &str,
    ask: &Submission,
    record: &mut HistoryEntry,
) -> Result<u8, ClientError> {
    let own = |e: io::Error| ClientError::Local(format!("{}: {e}", home.path().display()));
    if ask.stdin || ask.tty || !(ask.mode == Mode::Shell || ask.mode == Mode::Argv && ask.way == Delivery::Queue) {
        return Err(ClientError::Local("the queue takes commands only: no -i, --tty, get or put".into()));
    }
    let queue = directories(home.path()).map_err(own)?;
    let vm = files::read(&home.at(agent::NAME), 64).ok().and_then(|name| String::from_utf8(name).ok());
    let vm = vm.or_else(|| nix::unistd::gethostname().ok()?.into_string().ok()).unwrap_or_default();
    let signals = GiveUp::new().map_err(own)?;
    let mut submitted = Submitted { queue, id: id.to_owned(), signed: None };
    let timeout = ask.timeout;
    match ask.way {
        #[cfg(feature = "v1")]
        Delivery::V1 => submitted.put(".auth", key.v1_token(id).as_bytes()),
        _ => submitted.put_signed(ask, key, &vm),
    }
    .map_err(own)?;
    submitted.put("", &ask.payload).map_err(own)?;
    let status = submitted.wait(ask, key, &vm, signals, own).await?;
    let (out, err) = (submitted.read(".out"), submitted.read(".err"));
    let status = match &submitted.signed {
        Some(code) => {
            let meta = submitted.read(".meta");
            let meta = String::from_utf8_lossy(&meta);
            if let Some((number, head, receipt)) = read_receipt(&meta) {
                if !key.verify_receipt(id, code, number, &head, &receipt) {
                    let text = format!("what dom0's log says is not authentic: dom0 did not write it (id={id})");
                    return Err(ClientError::Transport(text));
                }
                record.logged(number, &head);
            }
            let own = TimeOver::Client(timeout.unwrap_or_default());
            let limit = read_limit(&meta).map_or(own, TimeOver::Policy);
            verify(key, id, code, status, (&out, &err), &meta, limit)?
        }
        None => {
            submitted.wait_for_meta().await;
            status
        }
    };
    for (which, bytes) in [(0, &out), (1, &err)] {
        record.keep(which, bytes);
    }
    let broken = |e: io::Error| if e.kind() == io::ErrorKind::BrokenPipe { ClientError::Signal(13) } else { own(e) };
    stdio::file(io::stdout()).and_then(|mut to| stdio::write_all(&mut to, &out)).map_err(broken)?;
    stdio::file(io::stderr()).and_then(|mut to| stdio::write_all(&mut to, &err)).map_err(broken)?;
    Ok(status)
}

fn sign(ask: &Submission, key: &Key, id: &str, vm: &str) -> (Request, mac::Digest) {
    let request = Request {
        kid: key.id(),
        vm: vm.to_owned(),
        nonce: [0; 32],
        seq: 0,
        id: id.to_owned(),
        created_ms: now_ms(),
        timeout_ms: ask.timeout_ms(),
        flags: flags::QUEUED,
        user: ask.user.clone(),
        cwd: Vec::new(),
        mode: ask.mode,
        length: u32::try_from(ask.payload.len()).unwrap_or(u32::MAX),
        payload: mac::digest(&ask.payload),
        env: Vec::new(),
    };
    let code = key.request(&request);
    (request, code)
}

/// The number in `.exit`, once it is there whole. A negative one is a signal, as the original writes it.
fn exit_status(request: &Submitted) -> Option<u8> {
    let text = files::read(&request.at("results", ".exit"), 32).ok()?;
    let number: i32 = std::str::from_utf8(&text).ok()?.trim().parse().ok()?;
    Some(if number < 0 {
        u8::try_from(128 - number).unwrap_or(255)
    } else {
        u8::try_from(number & 0xff).unwrap_or(255)
    })
}

/// The limit of the policy that ended the command.
fn read_limit(meta: &str) -> Option<Duration> {
    let seconds = meta.lines().find_map(|line| line.strip_prefix("limit="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// A result counts when dom0 signed it. What says that nothing was run carries no code, and can do no harm.
fn verify(
    key: &Key,
    id: &str,
    request: &mac::Digest,
    status: u8,
    (out, err): (&[u8], &[u8]),
    meta: &str,
    limit: TimeOver,
) -> Result<u8, ClientError> {
    let Some((code, ending)) = read_mac(meta) else {
        if matches!(status, 125 | 126 | 130) && out.is_empty() {
            let why = String::from_utf8_lossy(err);
            let why = escape(why.trim().trim_start_matches("qvm-remote-dom0: ").as_bytes());
            return Err(if meta.lines().any(|line| line == agent::UNKNOWN_KEY) {
                ClientError::Unauthorised(why)
            } else {
                ClientError::Refused(status, why)
            });
        }
        return Err(ClientError::Transport(format!(
            "the result is not authenticated, so it may not be dom0's (id={id}); for the Python qvm-remote-dom0: \
             qvm-remote --v1"
        )));
    };
    let cut = |bytes: &[u8]| bytes.len() > spool::MAX_OUTPUT;
    if cut(out) || cut(err) {
        return Err(ClientError::Transport(format!("more than 10 MiB of output: use a live connection (id={id})")));
    }
    let (stdout, stderr) = (mac::digest(out), mac::digest(err));
    let outcome = Outcome { id, request, ending, stdout: &stdout, stderr: &stderr };
    if !key.verify_result(&outcome, &code) || ending.status() != status {
        return Err(ClientError::Transport(format!("the result is not authentic: dom0 did not write it (id={id})")));
    }
    if ending == Ending::Timeout { Err(ClientError::Timeout(limit)) } else { Ok(status) }
}
