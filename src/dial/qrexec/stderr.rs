//! What a call writes on its standard error: always read (an unread pipe freezes the whole call after 64 KiB),
//! bounded, escaped, told line by line.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::{log::counted, log::escape, stream::Stream};

/// The longest line told, in bytes; the rest of it is left out.
const LINE: usize = 512;
/// Lines told for one session; later ones are counted.
const LINES: u32 = 20;

/// What `qrexec-client-vm` says when dom0 said no (agent/qrexec-client-vm.c, since R4.0).
const REFUSED: &[u8] = b"Request refused";

/// The reading end of a child's standard error.
#[derive(Debug)]
pub struct Stderr {
    /// Open until the session ends: checkpoints of the session name it.
    stream: Option<Stream>,
    ended: bool,
    line: Vec<u8>,
    refused: bool,
    told: u32,
    /// Bytes that no message has.
    left_out: u64,
}

impl Stderr {
    /// Reads `stream`; `None` for one that has ended.
    pub fn new(stream: Option<Stream>) -> Self {
        Self { ended: stream.is_none(), stream, line: Vec::new(), refused: false, told: 0, left_out: 0 }
    }

    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Takes the descriptor off the runtime.
    pub fn into_fd(mut self) -> Option<OwnedFd> {
        self.stream.take().map(Stream::into_fd)
    }

    /// Reads for ever, telling each line, escaped, to `said`.
    ///
    /// # Cancel safety
    /// Safe: a line half read is kept.
    pub async fn drain(&mut self, mut said: impl FnMut(String)) {
        let mut buffer = [0; 1024];
        while let Some(stream) = self.stream.as_ref().filter(|_| !self.ended) {
            match std::future::poll_fn(|cx| stream.poll_read(cx, &mut buffer)).await {
                Ok(0) | Err(_) => self.ended = true,
                Ok(n) => buffer[..n].iter().for_each(|b| self.take(*b, &mut said)),
            }
        }
        std::future::pending().await
    }

    /// Whether it says that dom0 refused the call. To be asked when the child has ended: all it wrote is there. Before
    /// a call is connected nobody but `qrexec-client-vm` itself writes there.
    pub fn says_refused(&mut self, said: impl FnMut(String)) -> bool {
        self.read_rest(said);
        self.refused
    }

    /// Reads what is there now. Nobody waits for more: it is all.
    fn read_rest(&mut self, mut said: impl FnMut(String)) {
        if let Some(stream) = self.stream.take().filter(|_| !std::mem::replace(&mut self.ended, true)) {
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = nix::unistd::read(&stream, &mut buffer) {
                buffer[..n].iter().for_each(|b| self.take(*b, &mut said));
            }
        }
    }

    /// Tells what is left: an unfinished line, and how much was left out.
    pub fn finish(&mut self, mut said: impl FnMut(String)) {
        self.read_rest(&mut said);
        if !self.line.is_empty() {
            self.take(b'\n', &mut said);
        }
        if self.left_out > 0 {
            said(format!("… and {}", counted(self.left_out, "more byte")));
            self.left_out = 0;
        }
    }

    fn take(&mut self, byte: u8, said: &mut impl FnMut(String)) {
        match byte {
            b'\n' if self.told < LINES => {
                self.refused |= self.line == REFUSED;
                if !self.line.is_empty() {
                    said(escape(&self.line));
                    self.told += 1;
                }
                self.line.clear();
            }
            _ if self.told < LINES && self.line.len() < LINE => self.line.push(byte),
            _ => self.left_out += 1,
        }
    }
}
