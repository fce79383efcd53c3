//! The client's own ends: standard input and output in threads, the terminal's mode, signals.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    os::fd::{AsFd as _, OwnedFd},
};

use bytes::Bytes;
use nix::sys::termios::{self, SetArg, Termios};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::stdio;
use crate::{
    proto::remote::{SLICE, frame::HEADER},
    sys,
};

/// Writes what comes in a separate thread, so that a slow reader stops the output and nothing else.
pub(super) struct OutputThread {
    pub(super) to: std::sync::mpsc::Sender<Bytes>,
}

impl OutputThread {
    /// `done` hears how many bytes were written, or why they were not; that names `what`.
    pub(super) fn start(mut file: File, what: String, done: mpsc::UnboundedSender<io::Result<u32>>) -> Self {
        let (to, line) = std::sync::mpsc::channel::<Bytes>();
        std::thread::spawn(move || {
            while let Ok(bytes) = line.recv() {
                let n = u32::try_from(bytes.len()).unwrap_or(0);
                let named = |e: io::Error| io::Error::new(e.kind(), format!("{what} cannot be written: {e}"));
                let written = stdio::write_all(&mut file, &bytes).map(|()| n).map_err(named);
                let failed = written.is_err();
                if done.send(written).is_err() || failed {
                    return;
                }
            }
        });
        Self { to }
    }
}

/// A terminal in raw mode, put back when this goes.
pub(super) struct RawMode(OwnedFd, Termios);

impl RawMode {
    pub(super) fn set() -> Option<Self> {
        let fd = io::stdin().as_fd().try_clone_to_owned().ok()?;
        let old = termios::tcgetattr(&fd).ok()?;
        let mut raw = old.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&fd, SetArg::TCSANOW, &raw).ok()?;
        Some(Self(fd, old))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.0, SetArg::TCSANOW, &self.1);
    }
}

/// SIGHUP, unless whoever started this process has it ignored, as nohup(1) does.
pub(super) fn hangup() -> io::Result<Option<Signal>> {
    if sys::is_ignored(libc::SIGHUP) { Ok(None) } else { signal(SignalKind::hangup()).map(Some) }
}

/// Waits for this signal; without end where there is none to wait for.
///
/// # Cancel safety
/// Safe: no signal is lost.
pub(super) async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}

pub(super) struct ClientSignals {
    int: Signal,
    term: Signal,
    hup: Option<Signal>,
    winch: Signal,
}

impl ClientSignals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup: hangup()?,
            winch: signal(SignalKind::window_change())?,
        })
    }

    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.int.recv() => 2,
            _ = self.term.recv() => 15,
            () = received(&mut self.hup) => 1,
            _ = self.winch.recv() => 28,
        }
    }
}

/// Reads in a separate thread: a terminal, a pipe, a file alike; each part behind room for the header of its frame.
/// What cannot be read is an error, and no end.
pub(super) fn read_input(mut from: File) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (to, line) = mpsc::channel(2);
    std::thread::spawn(move || {
        loop {
            let mut frame = vec![0; HEADER + SLICE];
            match stdio::read(&mut from, &mut frame[HEADER..]) {
                Ok(0) => return,
                Ok(n) => {
                    frame.truncate(HEADER + n);
                    if to.blocking_send(Ok(frame)).is_err() {
                        return;
                    }
                }
                // the other end of a pseudo-terminal was closed: that is the end of its input
                Err(e) if e.raw_os_error() == Some(libc::EIO) && from.is_terminal() => return,
                Err(e) => {
                    let _ = to.blocking_send(Err(e));
                    return;
                }
            }
        }
    });
    line
}
