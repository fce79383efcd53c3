//! A VM without an agent: its queue of files is read and answered by calls, two for each command instead of eleven.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant as StdInstant, SystemTime},
};

use bytes::Bytes;
use tokio::{
    io::AsyncWriteExt as _,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    call, command,
    judge::Opening,
    port::{Inbox, Port},
    state::{Shared, Vm},
};
use crate::{
    proto::remote::{Ending, Frame, RawFrame},
    remote::{
        audit::EntryOrigin,
        clock::local,
        spool,
        v1::{self, ResultFiles},
    },
    sys::lock,
};

/// Between two looks at the queue, as the original has it.
const TICK: Duration = Duration::from_secs(1);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(30);
/// How long a command without a token is left alone: its client writes the token after the text.
const GRACE: Duration = Duration::from_secs(5);
/// Commands of a listing at most, and of those that are served at a time.
const LISTED: usize = 16;
/// Frames of one command on their way to its answer.
const WAITING: usize = 16;

/// Ids that are being served, and those seen without a token, since when.
#[derive(Default)]
struct Seen {
    active: HashMap<String, Arc<Inbox>>,
    bare: HashMap<String, StdInstant>,
}

impl Seen {
    /// A place for a command, unless as many are served as a listing may have: a qube can list others each time.
    fn admit(&mut self, id: &str) -> Option<Arc<Inbox>> {
        (self.active.len() < LISTED).then(|| self.active.entry(id.to_owned()).or_default().clone())
    }
}

/// What is known of a VM's queue, over all the times that it is served.
#[derive(Default)]
pub struct Queue {
    seen: Arc<Mutex<Seen>>,
    streams: AtomicU32,
}

/// Serves the queue until `until`, or until a call fails. Commands that run go on.
pub async fn serve(shared: &Arc<Shared>, vm: &Arc<Vm>, queue: &Queue, until: Instant) {
    loop {
        let Ok(listing) = fetch(shared, vm).await else { return };
        let taken = take(shared, vm, listing, &queue.seen, &queue.streams);
        if shared.once {
            for task in taken {
                let _ = task.await;
            }
            return;
        }
        if Instant::now() >= until {
            return;
        }
        sleep(TICK).await;
    }
}

/// A command of the listing.
struct Listed {
    id: String,
    token: Vec<u8>,
    text: Vec<u8>,
}

/// Asks for everything that waits; the parser reads the answer.
async fn fetch(shared: &Shared, vm: &Vm) -> io::Result<Vec<Listed>> {
    let (mut parser, raw, mut frames) = call::parser("parse-v1")?;
    let mut call = call::qvm_run(&vm.name, &v1::fetch(&shared.config.user));
    call.stdout(raw);
    let mut child = call.spawn()?;
    drop(call);
    let read = async {
        let mut all = Vec::<Listed>::new();
        while let Some(whole) = frames.next().await? {
            let raw = whole.raw();
            match raw.parse().map_err(io::Error::other)? {
                Frame::V1(id, token, _) => {
                    all.push(Listed { id: id.to_owned(), token: token.to_vec(), text: Vec::new() });
                }
                Frame::Body(data) => match all.last_mut() {
                    Some(last) if last.text.len() + data.len() <= 1 << 20 => last.text.extend_from_slice(data),
                    _ => return Err(io::ErrorKind::InvalidData.into()),
                },
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
            if all.len() > LISTED {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok::<_, io::Error>(all)
    };
    let all = timeout(CALL, read).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let _ = child.start_kill();
    let status = child.wait().await?;
    let _ = parser.start_kill();
    let _ = parser.wait().await;
    match all {
        Ok(all) if !all.is_empty() || status.success() => Ok(all),
        Ok(_) => Err(io::ErrorKind::NotConnected.into()), // the VM was halted
        Err(e) => {
            shared.audit.refused(&vm.name, EntryOrigin::Anybody, "ERROR", &format!("fetch-failed: {e}"));
            if status.success() { Ok(Vec::new()) } else { Err(e) }
        }
    }
}

fn take(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    listing: Vec<Listed>,
    seen: &Arc<Mutex<Seen>>,
    streams: &AtomicU32,
) -> Vec<tokio::task::JoinHandle<()>> {
    let mut tasks = Vec::new();
    let mut state = lock(seen);
    // a client that gave up took its files away: what it waited for is ended
    for (id, inbox) in &state.active {
        if !listing.iter().any(|listed| listed.id == *id) && listing.len() < LISTED {
            inbox.put(&Frame::Cancel);
        }
    }
    state.bare.retain(|id, _| listing.iter().any(|listed| listed.id == *id));
    for Listed { id, token, text } in listing {
        if state.active.contains_key(&id) || shared.dry_run && state.bare.contains_key(&id) {
            continue;
        }
        if token.is_empty() || shared.dry_run {
            let since = *state.bare.entry(id.clone()).or_insert_with(StdInstant::now);
            if token.is_empty() && since.elapsed() < GRACE && !shared.once {
                continue;
            }
        }
        let Some(inbox) = state.admit(&id) else { break };
        let (out, line) = mpsc::channel(WAITING);
        let port = Port { stream: streams.fetch_add(1, Relaxed) + 1, out, inbox: inbox.clone() };
        let (shared, vm, seen) = (shared.clone(), vm.clone(), seen.clone());
        let tasks_of = shared.tasks.clone();
        tasks.push(tasks_of.spawn(async move {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            let opening = Opening::V1(id.clone(), token, length);
            let serve = async {
                let serve = command::serve(shared.clone(), vm.clone(), None, port, opening);
                tokio::pin!(serve);
                tokio::select! {
                    () = &mut serve => {} // refused before it took its text
                    () = feed(&inbox, &text) => serve.await,
                }
            };
            let ((), answer) = tokio::join!(serve, collect(&id, line, &inbox, &text));
            inbox.gone();
            if !shared.dry_run {
                store(&shared, &vm, &answer.0, &answer.1).await;
            }
            lock(&seen).active.remove(&id);
        }));
    }
    tasks
}

/// Hands the text over as fast as it is taken.
async fn feed(inbox: &Inbox, text: &[u8]) {
    for part in text.chunks(crate::proto::remote::SLICE) {
        while !inbox.put(&Frame::Body(part)) {
            sleep(Duration::from_millis(1)).await; // its window is full
        }
    }
}

/// Puts the frames of a command together into an answer, with the line for the VM's log.
async fn collect(id: &str, mut line: mpsc::Receiver<Bytes>, inbox: &Inbox, text: &[u8]) -> (ResultFiles, String) {
    let (started, began) = (local(SystemTime::now()), StdInstant::now());
    let mut answer = ResultFiles { id: id.to_owned(), ..ResultFiles::default() };
    while let Some(bytes) = line.recv().await {
        // every message is one frame of ours
        let Ok(Some((raw, _))) = RawFrame::split(&bytes) else { continue };
        let kept = match raw.parse() {
            Ok(Frame::Stdout(data)) => {
                spool::collect(&mut answer.out, data);
                data.len()
            }
            Ok(Frame::Stderr(data)) => {
                spool::collect(&mut answer.err, data);
                data.len()
            }
            Ok(Frame::Exit(ending, _)) => {
                answer.exit = ending.status();
                if ending == Ending::Timeout {
                    answer.err.extend_from_slice(spool::timed_out(began.elapsed()).as_bytes());
                }
                0
            }
            Ok(Frame::Reject(refusal, why)) => {
                answer.exit = spool::refused(refusal);
                answer.err.extend_from_slice(format!("qvm-remote-dom0: {why} (id={id})\n").as_bytes());
                0
            }
            _ => 0,
        };
        if kept > 0 {
            inbox.put(&Frame::Credit(u32::try_from(kept).unwrap_or(0)));
        }
    }
    let ms = began.elapsed().as_millis();
    answer.meta = spool::meta(id, &started, ms, answer.exit);
    let audit = spool::audit_line(id, &started, ms, answer.exit, text);
    (answer, audit)
}

/// Writes a result, all of it in one call.
async fn store(shared: &Shared, vm: &Vm, answer: &ResultFiles, audit: &str) {
    let bytes = answer.to_bytes(audit);
    let write = async {
        let mut call = call::qvm_run(&vm.name, &v1::store(&shared.config.user));
        call.stdin(std::process::Stdio::piped());
        let mut child = call.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&bytes).await?;
        }
        child.wait().await
    };
    match timeout(CALL, write).await {
        Ok(Ok(status)) if status.success() => {}
        // the qube can make each call fail
        _ => {
            let text = format!("id={} write-failed", answer.id);
            shared.audit.refused(&vm.name, EntryOrigin::Anybody, "ERROR", &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qube_that_lists_other_commands_each_time_has_no_more_served_than_one_listing() {
        let mut seen = Seen::default();
        let admitted = (0..100).filter(|n| seen.admit(&format!("id-{n}")).is_some()).count();
        assert_eq!((admitted, seen.active.len()), (LISTED, LISTED));
        seen.active.remove("id-3");
        assert!(seen.admit("another").is_some() && seen.admit("one more").is_none());
    }
}
