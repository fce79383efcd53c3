//! Which session each thread works on, so that a crash can name it.

use std::{
    cell::Cell,
    pin::Pin,
    sync::atomic::Ordering::{Relaxed, Release},
    task::{Context, Poll},
};

use super::{
    layout::header,
    region::{Region, region},
};

/// Recorded as the fault of a main thread that panicked: no signal has this number.
pub(super) const PANIC: u64 = 0x100;

thread_local! {
    /// The number of this thread among those that work on sessions, plus one; 0 while it has none.
    static THREAD: Cell<usize> = const { Cell::new(0) };
}

/// A stage of a session. While it is polled, its thread works on the session.
#[derive(Debug)]
pub struct Working<F> {
    /// The slot of the session plus one; 0 without one.
    pub slot: u64,
    pub task: Pin<Box<F>>,
}

impl<F: Future> Future for Working<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let _working = work_on(self.slot);
        self.task.as_mut().poll(cx)
    }
}

/// This thread works on the session in `slot` (plus one; 0 means none) until what this gives is dropped.
pub fn work_on(slot: u64) -> Option<WorkMark> {
    let region = region().filter(|_| slot > 0)?;
    Some(WorkMark::new(region, slot))
}

/// This thread works on a session until this is dropped: also when the session's task panics.
#[derive(Debug)]
pub struct WorkMark {
    region: &'static Region,
    thread: usize,
    /// What the thread worked on before.
    before: u64,
}

impl WorkMark {
    fn new(region: &'static Region, slot: u64) -> Self {
        let thread = THREAD.get();
        let thread = if thread > 0 { thread } else { enter(region) };
        // Its own thread alone writes the word, but for the threads beyond as many as there are words.
        let word = region.working(thread);
        let before = word.load(Relaxed);
        word.store(slot, Release);
        Self { region, thread, before }
    }
}

impl Drop for WorkMark {
    fn drop(&mut self) {
        self.region.working(self.thread).store(self.before, Release);
    }
}

#[cold]
fn enter(region: &Region) -> usize {
    let number = region.header(header::THREADS).fetch_add(1, Relaxed);
    let thread = usize::try_from(number).unwrap_or(0) % header::WORKING_ENTRIES + 1;
    THREAD.set(thread);
    thread
}

/// Records a fault, for the next process: to be called by a signal handler. A signal that another process sent is the
/// fault of no thread in particular.
pub fn record_fault(signal: i32, sent: bool) {
    let thread = if sent { 0 } else { THREAD.get() as u64 };
    record(u64::try_from(signal).unwrap_or(0) & 0xff | thread << 32);
}

/// Records that the main thread has panicked: the process ends by that.
pub(super) fn record_panic() {
    record(PANIC | (THREAD.get() as u64) << 32);
}

fn record(fault: u64) {
    if let Some(region) = region() {
        region.header(header::FAULT).store(fault, Release);
    }
}

/// Has a panic of the main thread recorded.
pub fn record_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() == Some("main") {
            record_panic();
        }
        before(info);
    }));
}
