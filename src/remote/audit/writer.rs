//! The thread that writes the log: many entries in one write(2) and one fdatasync(2), so that a slow disk stalls nobody
//! but those who wait for their own entry.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::timeout};

use super::{chain::ChainPoint, logfile::LogFile};
use crate::{
    log::{Kind, Reminder, counted_were, say},
    remote::clock,
    sys::lock,
};

/// Entries of one write at most.
const GROUP: usize = 256;
/// Entries that wait for a disk that takes none, at most.
const WAITING: usize = 8192;
/// A disk that has not answered for so long is reported.
const SLOW: Duration = Duration::from_secs(5);
/// Between two attempts to write what waits.
const AGAIN: Duration = Duration::from_secs(1);

/// What is done with a command whose entry cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLogFailure {
    /// The command does not run.
    #[default]
    Refuse,
    /// The command runs without an entry.
    Run,
}

/// Why an entry is not on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFailure(pub(crate) String);

/// Whoever waits for an entry.
type LogAnswer = oneshot::Sender<Result<ChainPoint, LogFailure>>;

#[derive(Debug)]
enum LogJob {
    Entry(String, Option<LogAnswer>),
    /// Answered when everything before it was written, or could not be.
    Flush(oneshot::Sender<()>),
}

/// The thread, seen from outside.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Sender<LogJob>,
    shared: Arc<WriterState>,
}

#[derive(Debug, Default)]
struct WriterState {
    waiting: AtomicUsize,
    /// Why nothing can be written now.
    failure: Mutex<Option<String>>,
    /// Older files that are kept; all, until the policies were read.
    kept: AtomicUsize,
    /// Entries that found no room and are not yet counted in the log.
    lost: AtomicUsize,
    /// Since when the disk is waited for.
    busy: Mutex<Option<Instant>>,
    /// When the owner was told last that the disk does not answer.
    told: Mutex<Reminder>,
    #[cfg(test)]
    stalled: Mutex<bool>,
}

impl WriterState {
    /// That the disk has not answered for this long or longer.
    fn hangs(&self, most: Duration) -> Option<String> {
        let waited = lock(&self.busy).map(|since| since.elapsed()).filter(|waited| *waited >= most)?;
        Some(format!("the disk of the log has not answered for {} s", waited.as_secs()))
    }
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(path: PathBuf, limit: u64) -> Self {
        let (jobs, queue) = channel();
        let shared = Arc::new(WriterState { kept: AtomicUsize::new(usize::MAX), ..WriterState::default() });
        let theirs = shared.clone();
        // without a thread every entry fails, and with it, by default, every command
        let _ = thread::Builder::new().name("audit".into()).spawn(move || work(&queue, &theirs, path, limit));
        Self { jobs, shared }
    }

    /// Has an entry written; `false`: there are too many that wait.
    pub(super) fn write(&self, text: String) -> bool {
        let room = self.shared.waiting.load(Relaxed) < WAITING;
        if !room {
            self.shared.lost.fetch_add(1, Relaxed);
        }
        room && self.send(LogJob::Entry(text, None))
    }

    /// Has an entry written, and waits until it is on the disk.
    pub(super) async fn record(&self, text: String) -> Result<ChainPoint, LogFailure> {
        let (answer, written) = oneshot::channel();
        self.send(LogJob::Entry(text, Some(answer)));
        tokio::pin!(written);
        loop {
            match timeout(SLOW, &mut written).await {
                Ok(written) => return written.unwrap_or_else(|_| Err(LogFailure("its thread has ended".into()))),
                Err(_) => self.tell_of_a_hanging_disk(),
            }
        }
    }

    /// Tells the owner, now and then, where the disk does not answer. Commands wait for their entries meanwhile.
    fn tell_of_a_hanging_disk(&self) {
        if let Some(why) = self.shared.hangs(SLOW) {
            if lock(&self.shared.told).due().is_some() {
                say(Kind::LogFailed, format!("commands wait, because dom0's log is slow: {why}"));
            }
        }
    }

    /// Waits until everything so far was written.
    pub(super) async fn flush(&self) {
        let (done, written) = oneshot::channel();
        self.send(LogJob::Flush(done));
        let _ = written.await;
    }

    fn send(&self, job: LogJob) -> bool {
        self.shared.waiting.fetch_add(1, Relaxed);
        self.jobs.send(job).is_ok()
    }

    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.shared.failure).clone().or_else(|| self.shared.hangs(SLOW))
    }

    pub(super) fn keep(&self, files: usize, sure: bool) {
        if sure {
            self.shared.kept.store(files, Relaxed);
        } else {
            self.shared.kept.fetch_max(files, Relaxed);
        }
    }

    /// From now on the disk takes nothing, or everything again.
    #[cfg(test)]
    pub(super) fn stall(&self, stalled: bool) {
        *lock(&self.shared.stalled) = stalled;
    }
}

fn work(queue: &Receiver<LogJob>, shared: &WriterState, path: PathBuf, limit: u64) {
    let mut file = LogFile::new(&path, Some(limit));
    let mut late = VecDeque::<String>::new();
    let mut reminder = Reminder::default();
    loop {
        let first = if late.is_empty() {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(AGAIN)
        };
        let mut jobs = match first {
            Ok(job) => vec![job],
            Err(RecvTimeoutError::Timeout) => Vec::new(),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        while jobs.len() < GROUP {
            let Ok(job) = queue.try_recv() else { break };
            jobs.push(job);
        }
        shared.waiting.fetch_sub(jobs.len(), Relaxed);
        *lock(&shared.busy) = Some(Instant::now());
        #[cfg(test)]
        while *lock(&shared.stalled) {
            thread::sleep(Duration::from_millis(1));
        }
        let result = group(&mut file, jobs, &mut late, shared);
        *lock(&shared.busy) = None;
        let mut failure = lock(&shared.failure);
        match result {
            Ok(()) => *failure = None,
            Err(e) => {
                let text = format!("{}: {e}", path.display());
                if failure.is_none() || reminder.due().is_some() {
                    say(Kind::LogFailed, format!("dom0's log of commands cannot be written: {text}"));
                }
                *failure = Some(text);
            }
        }
    }
}

/// Writes a group, behind what is late. Without room on the disk, commands that wait for their entries are refused and
/// the other entries go into what was reserved.
fn group(
    file: &mut LogFile,
    jobs: Vec<LogJob>,
    late: &mut VecDeque<String>,
    shared: &WriterState,
) -> std::io::Result<()> {
    let reserved = file.reserve();
    let (mut texts, mut answers, mut flushes) = (Vec::from_iter(late.drain(..)), Vec::new(), Vec::new());
    for job in jobs {
        match (job, &reserved) {
            (LogJob::Entry(text, None), _) => texts.push(text),
            (LogJob::Entry(text, Some(answer)), Ok(())) => {
                answers.push((texts.len(), answer));
                texts.push(text);
            }
            (LogJob::Entry(_, Some(answer)), Err(e)) => _ = answer.send(Err(LogFailure(e.to_string()))),
            (LogJob::Flush(done), _) => flushes.push(done),
        }
    }
    let (own, lost) = (texts.len(), shared.lost.swap(0, Relaxed));
    if lost > 0 {
        texts.push(format!("[{}] INFO {} lost", clock::now(), counted_were(lost, "entry")));
    }
    let kept = shared.kept.load(Relaxed);
    let written = if texts.is_empty() { Ok(Vec::new()) } else { file.append(&texts, !answers.is_empty(), || kept) };
    let result = match written {
        Ok(points) => {
            for (index, answer) in answers {
                let point = points.get(index).copied().ok_or_else(|| LogFailure("it was not written".into()));
                let _ = answer.send(point);
            }
            reserved
        }
        Err(e) => {
            let waited: Vec<usize> = answers.iter().map(|(index, _)| *index).collect();
            for (_, answer) in answers {
                let _ = answer.send(Err(LogFailure(e.to_string())));
            }
            // what has happened already is written as soon as it can be
            texts.truncate(own);
            let mut others = texts.into_iter().enumerate().filter(|(index, _)| !waited.contains(index)).map(|(_, t)| t);
            late.extend(others.by_ref().take(WAITING));
            shared.lost.fetch_add(lost + others.count(), Relaxed);
            Err(e)
        }
    };
    flushes.into_iter().for_each(|done| _ = done.send(()));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_told_of_and_the_entry_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let writer = Writer::start(dir.path().join("log"), 1 << 20);
        writer.stall(true);
        let entry = writer.record("[t] CMD id=a".into());
        tokio::pin!(entry);
        assert!(timeout(Duration::from_secs(600), &mut entry).await.is_err(), "it waits for its entry");
        while lock(&writer.shared.busy).is_none() {
            thread::yield_now();
        }
        assert_eq!(writer.failure(), None, "not so long, by the clock of the machine");
        *lock(&writer.shared.busy) = Instant::now().checked_sub(Duration::from_secs(90));
        assert!(writer.failure().is_some_and(|why| why.ends_with("has not answered for 90 s")));
        assert!(timeout(Duration::from_secs(6), &mut entry).await.is_err());
        assert!(lock(&writer.shared.told).due().is_none(), "the owner was told a moment ago");
        writer.stall(false);
        tokio::time::resume();
        assert_eq!(entry.await.map(|point| point.number), Ok(1));
        writer.flush().await;
        assert_eq!(writer.failure(), None);
    }
}
