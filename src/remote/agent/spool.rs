//! The queue of files in a VM, watched by the agent: requests of the original's client and of `qvm-remote --queue`.
//!
//! A request is complete when its text and its token are there; the agent hands it to dom0 as a stream and writes the
//! result as the original does, but each file whole, and `.exit` last.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::time::sleep;

use super::stream::{Agent, AgentStream};
use crate::{
    proto::{
        mac::{hex, unhex},
        remote::{BadText, Ending, Frame, MAX_COMMAND, Refusal, Request, SLICE, WaitReason, valid_id},
    },
    remote::{clock, files, pipe::AsyncPipe, spool},
    sys::lock,
};

/// How long a text without a token is left alone: the client writes the token after it.
const GRACE: Duration = Duration::from_secs(3);
/// A daemon that is restarted ends the channel, and this agent, within this time. It is not asked again before: of a
/// request that is on its way when the channel ends nobody knows whether it was begun.
const RESTART: Duration = Duration::from_secs(90);
/// A file of a durable request at most: a request and its code, in hexadecimal digits.
const MAX_SIGNED: usize = 128 << 10;
/// The line of `.meta` when dom0 refused a request because of its key.
pub(crate) const UNKNOWN_KEY: &str = "refused=key";
/// Requests that are handed over at a time.
const MOST: usize = 32;

/// Makes the three directories, closed to others.
///
/// # Errors
/// What the file system says.
pub fn directories(home: &Path) -> io::Result<PathBuf> {
    let queue = home.join("queue");
    for dir in [home.to_owned(), home.join("history"), queue.clone()] {
        files::private_dir(&dir)?;
    }
    for name in ["pending", "running", "results"] {
        files::private_dir(&queue.join(name))?;
    }
    Ok(queue)
}

/// Watches until the agent ends.
pub(super) async fn watch(agent: Arc<Agent>, home: PathBuf) {
    let Ok(queue) = directories(&home) else { return };
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ONLYDIR;
    let events = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).and_then(|inotify| {
        inotify.add_watch(&queue.join("pending"), flags)?;
        inotify.add_watch(&queue.join("running"), AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR)?;
        Ok(OwnedFd::from(inotify))
    });
    let Ok(events) = events.map_err(io::Error::from).and_then(AsyncPipe::reader) else { return };
    recover(&home, &queue);
    let active: Arc<Mutex<HashSet<String>>> = Arc::default();
    let mut bare: HashMap<String, Instant> = HashMap::new();
    let mut buffer = vec![0; 16 << 10];
    let mut first = true;
    loop {
        let again = scan(&agent, &home, &queue, &active, &mut bare).await;
        if std::mem::take(&mut first) {
            // for `--once`: what waited was handed over before this
            let _ = agent.out.send(Frame::Ping(0).to_vec(0).into()).await;
        }
        tokio::select! {
            read = events.read(&mut buffer) => if read.is_err() { return },
            () = sleep(Duration::from_millis(200)), if again => {}
        }
    }
}

/// Answers what an earlier channel had begun: it is not known whether it ran to its end, so it is not run again.
fn recover(home: &Path, queue: &Path) {
    let Ok(dir) = fs::read_dir(queue.join("running")) else { return };
    for name in dir.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| valid_id(name)) {
        if queue.join("results").join(format!("{name}.exit")).exists() {
            let _ = fs::remove_file(queue.join("running").join(&name)); // answered, but not cleared away
            continue;
        }
        let job = QueuedCommand { home: home.to_owned(), queue: queue.to_owned(), id: name };
        let text = files::read(&queue.join("running").join(&job.id), MAX_COMMAND).unwrap_or_default();
        let err = format!("qvm-remote-dom0: daemon restarted while this command was running (id={})\n", job.id);
        let result = CommandResult { status: 130, err: err.into_bytes(), ..CommandResult::default() };
        job.store(&result, &text, &clock::now(), Instant::now());
    }
}

/// Hands over what is complete; whether to look again soon.
async fn scan(
    agent: &Arc<Agent>,
    home: &Path,
    queue: &Path,
    active: &Arc<Mutex<HashSet<String>>>,
    bare: &mut HashMap<String, Instant>,
) -> bool {
    let Ok(dir) = fs::read_dir(queue.join("pending")) else { return false };
    // names are bytes: one that is no text is no id, and stops nobody else
    let names: HashSet<String> = dir.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let is_part = |name: &str| [".auth", ".auth2", ".cmd", ".tmp"].iter().any(|end| name.ends_with(end));
    let mut ids: Vec<&String> = names.iter().filter(|n| valid_id(n) && !is_part(n)).collect();
    ids.sort_unstable();
    bare.retain(|id, _| names.contains(id));
    let mut again = false;
    for id in ids {
        let busy = {
            let active = lock(active);
            active.contains(id) || active.len() >= MOST
        };
        if busy {
            continue;
        }
        let signed = names.contains(&format!("{id}.auth2"));
        // The file may be there and the token not yet in it.
        let token = || queue.join("pending").join(format!("{id}.auth"));
        if !signed && !fs::symlink_metadata(token()).is_ok_and(|file| file.len() > 0) {
            let since = *bare.entry(id.clone()).or_insert_with(Instant::now);
            if since.elapsed() < GRACE {
                again = true;
                continue;
            }
        }
        lock(active).insert(id.clone());
        let job = QueuedCommand { home: home.to_owned(), queue: queue.to_owned(), id: id.clone() };
        let (agent, active) = (agent.clone(), active.clone());
        let (begun, wait) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            job.serve(&agent, signed, begun).await;
            lock(&active).remove(&job.id);
            // one that had no place may have waited for ours: any change of the directory makes the watch look
            let touch = job.queue.join("pending").join(format!(".{}.tmp", job.id));
            let _ = fs::write(&touch, b"").and_then(|()| fs::remove_file(&touch));
        });
        let _ = wait.await;
    }
    again
}

/// A request in the queue.
struct QueuedCommand {
    home: PathBuf,
    queue: PathBuf,
    id: String,
}

/// What the command wrote, and how it ended.
#[derive(Default)]
struct CommandResult {
    out: Vec<u8>,
    err: Vec<u8>,
    status: u8,
    /// The fifth line of `.meta`.
    mac: String,
    /// The sixth line of `.meta`.
    receipt: String,
    /// The limit of the policy that ended the command, or that dom0 does not know its key, as a line of `.meta`.
    reason: String,
}

impl QueuedCommand {
    fn pending(&self, end: &str) -> PathBuf {
        self.queue.join("pending").join(format!("{}{end}", self.id))
    }

    fn running(&self) -> PathBuf {
        self.queue.join("running").join(&self.id)
    }

    fn result(&self, end: &str) -> PathBuf {
        self.queue.join("results").join(format!("{}.{end}", self.id))
    }

    /// `begun` gets a message when dom0 has the request.
    async fn serve(&self, agent: &Arc<Agent>, signed: bool, begun: tokio::sync::oneshot::Sender<()>) {
        let (started, began) = (clock::now(), Instant::now());
        let text = match files::read(&self.pending(""), MAX_COMMAND + 1) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::FileTooLarge => vec![b'x'; MAX_COMMAND + 1],
            Err(_) => {
                // a FIFO, a link, a device, or taken back: not a request
                let _ = fs::remove_file(self.pending(""));
                return;
            }
        };
        let first = self.first(signed, &text);
        let result = match first {
            Ok(first) => {
                // nobody is waiting twice for it: it leaves the queue before it may run
                let _ = fs::rename(self.pending(""), self.running());
                let Some(stream) = agent.open(first).await else { return };
                let _ = begun.send(());
                match self.attend(stream, &text).await {
                    Some(result) => result,
                    None => return,
                }
            }
            Err(why) => CommandResult {
                status: 126,
                err: format!("qvm-remote-dom0: {why} (id={})\n", self.id).into_bytes(),
                ..CommandResult::default()
            },
        };
        self.store(&result, &text, &started, began);
    }

    /// Puts a result in place and takes the request out of the queue.
    fn store(&self, result: &CommandResult, text: &[u8], started: &str, began: Instant) {
        for end in ["", ".auth", ".auth2"] {
            let _ = fs::remove_file(self.pending(end));
        }
        let ms = began.elapsed().as_millis();
        let mut meta = spool::meta(&self.id, started, ms, result.status);
        meta.push_str(&result.mac);
        meta.push_str(&result.receipt);
        meta.push_str(&result.reason);
        let put = |end: &str, bytes: &[u8]| files::replace(&self.result(end), 0o600, bytes);
        let _ = fs::remove_file(self.result("wait"));
        let written = put("out", &result.out)
            .and_then(|()| put("err", &result.err))
            .and_then(|()| put("meta", meta.as_bytes()))
            .and_then(|()| put("exit", result.status.to_string().as_bytes()));
        let _ = fs::remove_file(self.running());
        let line = spool::audit_line(&self.id, started, ms, result.status, text);
        let line = if written.is_ok() { line } else { format!("{line} (its result could not be written)") };
        let _ = spool::append(&self.home.join("audit.log"), &line);
    }

    /// The frame that opens its stream.
    fn first(&self, signed: bool, text: &[u8]) -> Result<Vec<u8>, String> {
        if text.len() > MAX_COMMAND {
            return Err(BadText::Oversized(text.len()).to_string());
        }
        #[cfg(feature = "v1")]
        if !signed {
            let token = files::read(&self.pending(".auth"), 4096).unwrap_or_default();
            let length = u32::try_from(text.len()).map_err(|e| e.to_string())?;
            return Ok(Frame::V1(&self.id, &token, length).to_vec(1));
        }
        #[cfg(not(feature = "v1"))]
        if !signed {
            return Err("not authorized: the agent of this qube takes no tokens of protocol v1".to_owned());
        }
        let bytes = files::read(&self.pending(".auth2"), MAX_SIGNED).map_err(|e| e.to_string())?;
        let bad = || "its .auth2 is damaged".to_owned();
        let (request, mac) = read_signed(&bytes).ok_or_else(bad)?;
        if request.id != self.id {
            return Err(bad());
        }
        if request.length as usize != text.len() {
            return Err("its text is not the one signed".to_owned()); // dom0 would wait for the rest
        }
        Ok(Frame::Open(Box::new(request), mac).to_vec(1))
    }

    /// Sends the text and takes the answer; `None` when the channel ended.
    async fn attend(&self, mut stream: AgentStream, text: &[u8]) -> Option<CommandResult> {
        let mut result = CommandResult::default();
        let began = Instant::now();
        let (mut sent, mut credit, mut restarts) = (0, crate::proto::remote::CREDIT as usize, false);
        loop {
            while sent < text.len() && credit > 0 {
                let n = (text.len() - sent).min(SLICE).min(credit);
                stream.send(Frame::Body(&text[sent..sent + n])).await;
                (sent, credit) = (sent + n, credit - n);
            }
            let whole = tokio::select! {
                whole = stream.frames.recv() => whole?,
                () = self.taken_back() => {
                    stream.abandon().await;
                    let _ = fs::remove_file(self.result("wait"));
                    return None;
                }
            };
            let mut taken = 0;
            match whole.raw().parse().ok()? {
                Frame::Stdout(data) => {
                    spool::collect(&mut result.out, data);
                    taken = data.len();
                }
                Frame::Stderr(data) => {
                    spool::collect(&mut result.err, data);
                    taken = data.len();
                }
                Frame::Credit(n) => credit += n as usize,
                Frame::Wait(WaitReason::Recorded(number, head, code)) => {
                    result.receipt = format!("log={number} {} {}\n", hex(&head), hex(&code));
                }
                Frame::Wait(reason @ (WaitReason::Approval(_) | WaitReason::LogRoom | WaitReason::Disk)) => {
                    self.tell(reason);
                }
                Frame::Wait(WaitReason::Spent(seconds)) => result.reason = format!("limit={seconds}\n"),
                Frame::Wait(WaitReason::Restart) => restarts = true,
                // nothing was begun: it waits for the next daemon, by the next agent
                Frame::Reject(Refusal::Draining, _) if restarts => {
                    let _ = fs::rename(self.running(), self.pending(""));
                    drop(stream); // the agent ends when all have
                    sleep(RESTART).await;
                    return None;
                }
                Frame::Reject(refusal, why) => {
                    result.status = spool::refused(refusal);
                    if refusal == Refusal::NotAuthorised {
                        result.reason = format!("{UNKNOWN_KEY}\n");
                    }
                    result.err.extend_from_slice(format!("qvm-remote-dom0: {why} (id={})\n", self.id).as_bytes());
                    return Some(result);
                }
                Frame::Exit(ending, mac) => {
                    result.status = ending.status();
                    let (kind, value) = ending.to_bytes();
                    result.mac = format!("mac={} {kind} {value}\n", hex(&mac));
                    if ending == Ending::Timeout {
                        let text = spool::timed_out(began.elapsed());
                        if mac == [0; 32] {
                            result.err.extend_from_slice(text.as_bytes());
                        }
                    }
                    return Some(result);
                }
                _ => {}
            }
            if taken > 0 {
                stream.send(Frame::Credit(u32::try_from(taken).unwrap_or(0))).await;
            }
        }
    }

    /// Tells the client what a person has to end, while it waits. The queue of the original has no such file.
    fn tell(&self, reason: WaitReason<'_>) {
        if self.pending(".auth2").exists() && self.running().exists() {
            let _ = files::replace(&self.result("wait"), 0o600, reason.to_string().as_bytes());
        }
    }

    /// Returns when the client has taken its request back: a client that gives up removes its files.
    async fn taken_back(&self) {
        loop {
            sleep(Duration::from_millis(500)).await;
            if !self.running().exists() {
                return;
            }
        }
    }
}

/// The text of `.auth2`: a request and its code in hexadecimal digits, one line each.
pub fn write_signed(request: &Request, mac: &[u8; 32]) -> String {
    format!("{}\n{}\n", hex(&request.canonical()), hex(mac))
}

/// Reads [`write_signed`] back.
pub fn read_signed(text: &[u8]) -> Option<(Request, [u8; 32])> {
    let mut lines = text.split(|b| *b == b'\n');
    let (request, mac) = (lines.next()?, lines.next()?);
    let bytes: Option<Vec<u8>> = request.chunks(2).map(|pair| unhex::<1>(pair).map(|[byte]| byte)).collect();
    Some((Request::parse(&bytes?).ok()?, unhex(mac)?))
}

/// Reads the fifth line of `.meta`: the result's code and how the command ended.
pub fn read_mac(meta: &str) -> Option<([u8; 32], Ending)> {
    let mut words = meta.lines().find_map(|line| line.strip_prefix("mac="))?.split(' ');
    let mac = unhex(words.next()?.as_bytes())?;
    Some((mac, Ending::from_bytes(words.next()?.parse().ok()?, words.next()?.parse().ok()?)?))
}

/// Reads the sixth line of `.meta`: the entry in dom0's log, the head behind it, and their code.
pub fn read_receipt(meta: &str) -> Option<(u64, [u8; 32], [u8; 32])> {
    let mut words = meta.lines().find_map(|line| line.strip_prefix("log="))?.split(' ');
    let number = words.next()?.parse().ok()?;
    Some((number, unhex(words.next()?.as_bytes())?, unhex(words.next()?.as_bytes())?))
}

/// When a file was last written, for what is shown of the queue.
pub fn age(path: &Path) -> Option<Duration> {
    SystemTime::now().duration_since(fs::symlink_metadata(path).ok()?.modified().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_what_its_request_waits_for_while_it_waits_and_nothing_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = dir.path().join(".qvm-remote");
        let queue = directories(&home).expect("made");
        let job = QueuedCommand { home, queue, id: "id-1".into() };
        let reason = WaitReason::Approval("00ff");
        let told = || fs::read_to_string(job.result("wait")).ok();
        fs::write(job.pending(".auth2"), "").expect("written");
        job.tell(reason);
        assert_eq!(told(), None, "the client has taken it back");
        fs::write(job.running(), "true").expect("written");
        job.tell(reason);
        assert_eq!(told(), Some(reason.to_string()));
        job.store(&CommandResult::default(), b"true", "now", Instant::now());
        assert!(told().is_none() && job.result("exit").exists());
        fs::write(job.running(), "true").expect("written");
        job.tell(reason);
        assert_eq!(told(), None, "one of the original has no such file");
    }
}
