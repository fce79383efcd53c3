//! The far side of a relay's end, in a thread of its own: it follows a script with plain system calls and checks every
//! byte that comes.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{self, Shutdown, setsockopt, sockopt},
    unistd::{read, write},
};

use crate::{
    relay::RelayEnd,
    stream::{Stream, StreamKind},
};

/// How long any run may take: far above what the longest script needs.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// A prime: a byte that is lost, doubled or moved shows.
const PERIOD: usize = 65_521;
const LONGEST: usize = 256 << 10;

/// The stream of bytes that one side sends, as a table that every position can be read from.
fn pattern() -> &'static [u8] {
    static TABLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    TABLE.get_or_init(|| {
        (0..PERIOD + LONGEST)
            .map(|i| u32::try_from(i % PERIOD).map_or(0, |i| (i.wrapping_mul(2_654_435_761) >> 24) as u8))
            .collect()
    })
}

/// `len` bytes of the stream from `at`.
fn bytes(at: u64, len: usize) -> &'static [u8] {
    let at = usize::try_from(at % PERIOD as u64).expect("below PERIOD");
    &pattern()[at..at + len.min(LONGEST)]
}

/// What a relay's end can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Tcp,
    Unix,
    Pipes,
}

/// A step of a far side's script.
#[derive(Clone, Debug)]
pub enum Step {
    Move(usize),
    Pause(Duration),
}

/// What follows the last byte written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    HalfClose,
    /// Close everything, whatever waits to be read.
    Close,
    /// Close with a reset (TCP), else as [`Then::Close`].
    Reset,
}

/// Script of a far side.
#[derive(Clone, Debug)]
pub struct Script {
    pub writes: Vec<Step>,
    pub then: Then,
    /// Read so, and after that as fast as bytes come, to the end.
    pub reads: Vec<Step>,
    /// Pipes: close the reading side after `reads`.
    pub deaf: bool,
}

impl Script {
    pub fn to_write(&self) -> u64 {
        self.writes.iter().map(|s| if let Step::Move(n) = s { *n as u64 } else { 0 }).sum()
    }

    pub fn polite(&self) -> bool {
        self.then == Then::HalfClose && !self.deaf
    }
}

/// How reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadEnd {
    Eof,
    Error(Errno),
    /// It was the script's wish.
    Stopped,
    /// Never.
    Hung,
}

#[derive(Clone, Debug)]
pub struct Report {
    pub sent: u64,
    pub received: u64,
    pub correct: bool,
    pub end: ReadEnd,
}

/// The far side.
#[derive(Debug)]
pub struct Far {
    pub what: What,
    pub reading: Option<OwnedFd>,
    pub writing: Option<OwnedFd>,
    /// What a write met: the kernel tells it once, and the next read says "end".
    pub failed: Option<Errno>,
}

/// A far side and the relay's end of it. `narrow` makes socket buffers small (loopback TCP crawls
/// when a buffer holds less than a segment of 64 KiB).
pub fn pair(what: What, narrow: bool) -> (Far, RelayEnd) {
    let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    if what == What::Pipes {
        let (child_in, to) = nix::unistd::pipe2(flags).expect("a pipe");
        let (from, child_out) = nix::unistd::pipe2(flags).expect("a pipe");
        let end = RelayEnd::pipes(
            Stream::new(from, StreamKind::PipeReader).expect("registered"),
            Stream::new(to, StreamKind::PipeWriter).expect("registered"),
        );
        return (Far { what, reading: Some(child_in), writing: Some(child_out), failed: None }, end);
    }
    let (far, near): (OwnedFd, OwnedFd) = match what {
        What::Unix => {
            let (a, b) = std::os::unix::net::UnixStream::pair().expect("a socket pair");
            (a.into(), b.into())
        }
        _ => {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let far = std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            far.set_nodelay(true).expect("an option");
            let (near, _) = listener.accept().expect("accepted");
            near.set_nodelay(true).expect("an option");
            (far.into(), near.into())
        }
    };
    for fd in [&far, &near] {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a flag");
        if narrow {
            let size = if what == What::Tcp { 100_000 } else { 1 };
            setsockopt(fd, sockopt::SndBuf, &size).expect("an option");
            setsockopt(fd, sockopt::RcvBuf, &size).expect("an option");
        }
    }
    let kind = if what == What::Tcp { StreamKind::Tcp } else { StreamKind::Unix };
    let end = RelayEnd::Socket(Stream::new(near, kind).expect("registered"));
    (Far { what, writing: Some(far.try_clone().expect("a descriptor")), reading: Some(far), failed: None }, end)
}

/// Where a script stands in one direction.
struct Progress<'a> {
    steps: std::slice::Iter<'a, Step>,
    left: usize,
    until: Option<Instant>,
    over: bool,
}

impl<'a> Progress<'a> {
    fn new(steps: &'a [Step]) -> Self {
        Self { steps: steps.iter(), left: 0, until: None, over: false }
    }

    /// How many bytes are to be moved now: 0 during a pause, or when the script is `over`.
    fn wanted(&mut self) -> usize {
        loop {
            if let Some(until) = self.until {
                if Instant::now() < until {
                    return 0;
                }
                self.until = None;
            }
            if self.left > 0 || self.over {
                return self.left;
            }
            match self.steps.next() {
                Some(Step::Move(n)) => self.left = *n,
                Some(Step::Pause(d)) => self.until = Some(Instant::now() + *d),
                None => self.over = true,
            }
        }
    }
}

impl Far {
    /// Follows `script` to its end.
    pub fn run(mut self, script: &Script) -> Report {
        let began = Instant::now();
        let mut report = Report { sent: 0, received: 0, correct: true, end: ReadEnd::Hung };
        let (mut writes, mut reads) = (Progress::new(&script.writes), Progress::new(&script.reads));
        let mut buffer = vec![0; LONGEST];
        loop {
            let to_write = if self.writing.is_some() { writes.wanted() } else { 0 };
            if writes.over && self.writing.is_some() {
                match script.then {
                    Then::HalfClose => self.half_close(),
                    then => {
                        self.close(then == Then::Reset);
                        report.end = ReadEnd::Stopped;
                        return report;
                    }
                }
            }
            let mut to_read = reads.wanted();
            if reads.over {
                if script.deaf && self.reading.take().is_some() {
                    report.end = ReadEnd::Stopped;
                }
                to_read = LONGEST;
            }
            if self.reading.is_none() && self.writing.is_none() {
                return report;
            }
            if began.elapsed() > DEADLINE {
                return report;
            }
            let now = Instant::now();
            let pause =
                [&writes, &reads].iter().filter_map(|p| p.until).map(|u| u.saturating_duration_since(now)).min();
            let mut fds = Vec::new();
            if let (Some(fd), true) = (&self.reading, to_read > 0) {
                fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            }
            if let (Some(fd), true) = (&self.writing, to_write > 0) {
                fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLOUT));
            }
            let wait = pause.unwrap_or(Duration::from_millis(500)) + Duration::from_micros(900);
            let _ = poll(&mut fds, PollTimeout::try_from(wait).expect("short"));
            drop(fds);
            if to_read > 0 {
                self.read(&mut buffer[..to_read.min(LONGEST)], &mut reads, &mut report);
            }
            if to_write > 0 {
                self.write(to_write, &mut writes, &mut report);
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8], reads: &mut Progress<'_>, report: &mut Report) {
        let Some(fd) = &self.reading else { return };
        let end = match read(fd, buffer) {
            Ok(0) => self.failed.map_or(ReadEnd::Eof, ReadEnd::Error),
            Ok(n) => {
                report.correct &= buffer[..n] == *bytes(report.received, n);
                report.received += n as u64;
                reads.left = reads.left.saturating_sub(n);
                return;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(e) => {
                self.writing = None;
                ReadEnd::Error(e)
            }
        };
        report.end = end;
        self.reading = None;
    }

    fn write(&mut self, to_write: usize, writes: &mut Progress<'_>, report: &mut Report) {
        let Some(fd) = &self.writing else { return };
        match write(fd, bytes(report.sent, to_write)) {
            Ok(n) => {
                report.sent += n as u64;
                writes.left -= n;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => (self.writing, self.failed) = (None, Some(e)),
        }
    }

    fn half_close(&mut self) {
        if let (Some(fd), true) = (self.writing.take(), self.what != What::Pipes) {
            let _ = socket::shutdown(fd.as_raw_fd(), Shutdown::Write);
        }
    }

    fn close(&mut self, reset: bool) {
        if let (Some(fd), true) = (&self.writing, reset && self.what == What::Tcp) {
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            let _ = setsockopt(fd, sockopt::Linger, &linger);
        }
        (self.reading, self.writing) = (None, None);
    }
}
