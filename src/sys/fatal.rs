//! Signals by which a process ends through its own fault: somebody may record them first.
#![allow(unsafe_code)]

use std::{
    io,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

/// The signals: faults of the program, abort(3), and the manager's watchdog (SIGABRT, sent).
const FATAL: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// What is to be called, and the actions that were there before, by signal.
struct Recorder {
    record: fn(i32, bool),
    before: [libc::sigaction; FATAL.len()],
}

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// Has `record` called, once, when such a signal comes: with its number, and whether a process sent it. Then the signal
/// does what it did before. `record` runs in a signal handler: atomic words and nothing else.
///
/// # Errors
/// What sigaction(2) says.
pub fn on_fatal_signals(record: fn(signal: i32, sent: bool)) -> io::Result<()> {
    // SAFETY: sigaction reads and writes whole structures; the handler is async-signal-safe (see `handle`).
    unsafe {
        let mut before: [libc::sigaction; FATAL.len()] = std::mem::zeroed();
        for (signal, before) in FATAL.iter().zip(&mut before) {
            if libc::sigaction(*signal, std::ptr::null(), before) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        RECORDER.get_or_init(|| Recorder { record, before });
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        for signal in FATAL {
            if libc::sigaction(signal, &raw const action, std::ptr::null_mut()) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Records the signal and gives it back: a fault happens again when this returns, and finds the action of before (which
/// tells of a stack that overflowed); a signal that was sent is raised again, and ends the process.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    static RECORDED: AtomicBool = AtomicBool::new(false);
    let Some(recorder) = RECORDER.get() else { return };
    // SAFETY: the kernel gives a whole siginfo; sigaction(2), signal(2) and raise(3) are async-signal-safe.
    unsafe {
        // SI_USER (0) and below: sent by a process, with tgkill (raise, abort) among them.
        let code = (*info).si_code;
        if !RECORDED.swap(true, SeqCst) {
            (recorder.record)(signal, code == libc::SI_USER);
        }
        let index = FATAL.iter().position(|fatal| *fatal == signal);
        if let Some(before) = index.map(|index| &recorder.before[index]).filter(|_| code > 0) {
            libc::sigaction(signal, before, std::ptr::null_mut()); // the fault happens again
        } else {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}
