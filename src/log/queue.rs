//! The queue of events and the thread that writes them.

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use super::{
    event::{Event, Kind, Level},
    number::counted_were,
    sink::Sink,
};

/// Events that may wait for the journal: about 5 s of the busiest service that journald keeps up with, 3 MiB at most.
const QUEUE: usize = 8192;

static QUEUED: OnceLock<SyncSender<Message>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);
static LEVEL: OnceLock<Level> = OnceLock::new();

/// What the log's thread is given.
enum Message {
    Event(Box<Event>),
    Stop,
}

/// How long the log's thread looks away after it has written all there was.
const PAUSE: Duration = Duration::from_millis(2);

/// How long the last events may take to be written when the service ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Keeps the log's thread; dropping it writes out what is queued, for at most two seconds: a stalled journald must
/// not keep the service from ending.
#[must_use = "dropped at once, it ends the log"]
#[derive(Debug)]
pub struct Guard {
    done: mpsc::Receiver<()>,
}

/// Starts the log: natively to journald when stderr is the journal (`JOURNAL_STREAM`, systemd.exec(5)), else as
/// lines on stderr, each behind what `stamp` gives. `identifier` is what `journalctl -t` finds. Events below `level`
/// are left out.
///
/// # Errors
/// When no thread can be started.
///
/// # Panics
/// When it is called twice.
pub fn start(identifier: &'static str, level: Level, stamp: Option<fn() -> String>) -> io::Result<Guard> {
    begin(level, move || Sink::open(identifier, stamp))
}

/// Starts the log of a program whose stderr belongs to somebody else: to journald, and to nobody where there is none.
///
/// # Errors
/// When no thread can be had.
///
/// # Panics
/// When the log was started before.
#[cfg(feature = "forward")]
pub fn start_in_journal(identifier: &'static str, level: Level) -> io::Result<Guard> {
    begin(level, move || Sink::journal(identifier))
}

fn begin(level: Level, open: impl FnOnce() -> Sink + Send + 'static) -> io::Result<Guard> {
    let (sender, queue) = mpsc::sync_channel(QUEUE);
    let (finished, done) = mpsc::channel();
    let _ = LEVEL.set(level);
    assert!(QUEUED.set(sender).is_ok(), "the log is started once");
    std::thread::Builder::new().name("log".into()).spawn(move || {
        open().run(|sink| {
            // After a burst it looks again by itself before it waits to be woken: a wake-up costs a session more than
            // the event does.
            let next = || {
                queue.try_recv().or_else(|_| {
                    std::thread::sleep(PAUSE);
                    queue.try_recv().or_else(|_| queue.recv())
                })
            };
            while let Ok(Message::Event(event)) = next() {
                sink.write(&event);
                let dropped = DROPPED.swap(0, Relaxed);
                if dropped > 0 {
                    let text = format!("{} dropped: the journal is slow", counted_were(dropped, "event"));
                    sink.write(&Event::new(Kind::LogDropped, text));
                }
            }
        });
        let _ = finished.send(());
    })?;
    Ok(Guard { done })
}

/// Queues an event. Never blocks; before [`start`] it goes nowhere.
pub fn emit(event: Event) {
    if LEVEL.get().is_some_and(|level| event.kind.level() > *level) {
        return;
    }
    if let Some(queue) = QUEUED.get() {
        if queue.try_send(Message::Event(Box::new(event))).is_err() {
            DROPPED.fetch_add(1, Relaxed);
        }
    }
}

/// Queues an event that has no fields besides its kind and its sentence.
pub fn say(kind: Kind, message: impl Into<String>) {
    emit(Event::new(kind, message));
}

impl Drop for Guard {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH;
        while let Some(Err(TrySendError::Full(_))) = QUEUED.get().map(|q| q.try_send(Message::Stop)) {
            if Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}
