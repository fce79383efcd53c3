//! A stand-in for `qrexec-client-vm`, for the tests: the same command line, the same use of its descriptors, the
//! same exit codes, and the service "in the other qube" in a separate thread.
//!
//! What it imitates, since callers depend on it:
//! - Set-up. Until "dom0" has answered it looks at no descriptor: closed pipes go unnoticed. When the call stands it
//!   sets O_NONBLOCK on fd 1 and fd 0 (on the file descriptions that it shares with whoever started it), and only
//!   then moves the first byte. A refused call never gets there. A missing service and a refused port do: the two
//!   sides are connected first. They are over within a millisecond, and stderr has nothing about them: that is
//!   in the other qube's log.
//! - Close. Each of fd 0 and fd 1 is made blocking again before it is closed, so the flag is gone when the call has
//!   ended; only a signal leaves it.
//! - Relay. One loop for the three streams; each direction ends on its own; the service's end of stream closes fd 1;
//!   a peer that no longer reads is not noticed, bytes for it are thrown away. The service's stderr goes to fd 2 by
//!   *blocking* writes, so an unread stderr stops the whole call.
//! - End. When the service is done and its output delivered it exits with the service's code, whatever still comes
//!   in on fd 0: 0..124 the service's own, 128+n killed by signal n, 127 missing, 126 refused, 125 qrexec trouble,
//!   1 local failure, 2 usage, 255 when the other side vanished.
//!
//! What a call does follows from the name of its service (SERVICES below). Each call may be told to a journal, one
//! line per event: `FAKE_QREXEC_LOG`, else `calls.log` in `FAKE_QREXEC_DIR`, else a `calls.log` that exists beside
//! the program as it was called, or beside the program file itself.

use std::{
    env,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process,
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigSet, SigmaskHow, Signal, kill, raise},
    unistd::{Pid, close, pipe2},
};

use support::{Pattern, SERVICE_SEED, Sum};

const USAGE: &str = "\
usage: qrexec-client-vm [OPTIONS] [--] TARGET SERVICE[+ARGUMENT]
  -h, --help
  -t, --filter-escape-chars-stdout    --no-filter-escape-chars-stdout
  -T, --filter-escape-chars-stderr    --no-filter-escape-chars-stderr
  --buffer-size=BYTES
  --agent-socket=PATH
";

/// What the services do; N, MS, BYTES, PORT, NAME stand in the argument, after the `+`.
const SERVICES: &str = "\
set-up:
  test.Refuse[+MS]      refused (126), after MS
  test.Ask+MS           the answer takes MS, then as test.Echo
  test.Brief+MS         the answer takes MS, then a line ('ready') and the end of the call, at once
  test.Gate+NAME        the answer comes when the file NAME appears beside the journal, then as test.Echo
  test.LosesOne         the first call is never answered, later ones as test.Echo
  test.Loses            a call is never answered, and adds a line to the file 'losing' beside the journal; while it
                        waits, other calls as test.Echo
  test.Starts+MS        the first answer takes MS; no server listens (125) before the file 'listening' appears beside the
                        journal, then as test.Echo
  test.Never            no answer, ever; SIGTERM ends it
  test.NeverKill        no answer, and SIGTERM does not end it either
  test.LocalFailure     1: no agent to talk to
  test.Missing          connected, and no such service (127); so is every name not told of here
  test.Broken           connected, and qrexec has trouble (125), as for a port that refuses
streams:
  test.Echo             what comes goes back; the end too
  test.SpeaksFirst      a line ('ready') at once, then as test.Echo
  test.SpeaksSecond     silent until a line came, answers 'heard: LINE', then as test.Echo
  test.HalfCloseUp      reads to the end, then answers with count and checksum ('N HEX')
  test.HalfCloseDown    ends its own sending at once, reads to the end, writes what it got to $FAKE_QREXEC_RECEIVED
                        or to the file 'received' beside the journal
  test.Sink             reads to the end, says nothing
  test.Source+BYTES     sends BYTES of the pattern, then reads to the end
  test.EndsFirst+BYTES  sends BYTES of the pattern and ends the call at once, reading nothing
  test.Stall            connected, and then neither reads nor writes
  test.Tcp+PORT         127.0.0.1:PORT, both half-closes kept
  qubes.ConnectTCP+PORT the same, but the call ends as soon as the server ends its sending
  (a file)              qubes-rpc/SERVICE beside the journal is run, if there is one, as qrexec-agent runs a service
other:
  test.StderrFlood+BYTES  BYTES on stderr first, then as test.Echo
  test.StderrEscapes    a line with terminal escapes on stderr, then as test.Echo
  test.Args             answers with 'TARGET SERVICE+ARGUMENT' as they came
  test.Exit+N           exit code N at once
  test.Signal+N         as if the service had been killed by signal N (128+N)
  test.Lost+BYTES       sends BYTES of the pattern, then the other side vanishes (255)
  test.Die+N            this program itself dies of signal N (KILL, TERM, ABRT), once connected
";

fn main() {
    // Another thread must never end the process in the middle of a line: whoever ends it does so from here.
    let code = run();
    process::exit(code);
}

fn run() -> i32 {
    let argv: Vec<OsString> = env::args_os().collect();
    let call = match Call::read(&argv) {
        Ok(call) => call,
        Err(code) => return code,
    };
    let place = Place::find(argv.first());
    let journal = Journal::open(&place);
    witness_term(&journal, call.service == "test.NeverKill");
    journal.write(&format!("start {} {}", word(&call.target), word(&call.full_service())));

    match set_up(&call, &place) {
        Answer::Connected => {}
        Answer::Refused => {
            eprintln!("Request refused");
            journal.write("end 126 0 0");
            return 126;
        }
        Answer::LocalFailure(why) => {
            eprintln!("{why}");
            journal.write("end 1 0 0");
            return 1;
        }
    }
    for fd in [io::stdout().as_fd(), io::stdin().as_fd()] {
        set_nonblocking(fd, true);
    }
    journal.write("connected");

    let (code, up_bytes, down_bytes) = relay(call, place);
    journal.write(&format!("end {code} {up_bytes} {down_bytes}"));
    code
}

// ---------------------------------------------------------------------------------------------- the command line

struct Call {
    target: String,
    /// Without the argument.
    service: String,
    argument: Option<String>,
    filter_stdout: bool,
    filter_stderr: bool,
    agent_socket: Option<PathBuf>,
}

impl Call {
    /// Options up to the first word that is none, or up to `--`, as getopt reads them with a leading `+`.
    fn read(argv: &[OsString]) -> Result<Self, i32> {
        let usage = |why: &str| {
            eprint!("qrexec-client-vm: {why}\n{USAGE}");
            Err(2)
        };
        let (mut filter_stdout, mut filter_stderr) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let mut agent_socket = None;
        let mut words = argv.iter().skip(1).map(|w| w.to_string_lossy().into_owned()).peekable();
        while let Some(word) = words.next_if(|w| w.starts_with('-') && w.len() > 1) {
            let (name, mut value) = match word.split_once('=') {
                Some((name, value)) if word.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (word, None),
            };
            let takes_value = matches!(name.as_str(), "--buffer-size" | "--agent-socket");
            if takes_value && value.is_none() {
                value = words.next();
            }
            match (name.as_str(), value) {
                ("--", None) => break,
                ("-h" | "--help", None) => {
                    print!("{USAGE}{SERVICES}");
                    return Err(0);
                }
                ("-t" | "--filter-escape-chars-stdout", None) => filter_stdout = true,
                ("-T" | "--filter-escape-chars-stderr", None) => filter_stderr = true,
                ("--no-filter-escape-chars-stdout", None) => filter_stdout = false,
                ("--no-filter-escape-chars-stderr", None) => filter_stderr = false,
                ("--buffer-size", Some(size)) => {
                    // strtoul(3) with base 0, octal left out
                    let number = match size.strip_prefix("0x") {
                        Some(digits) => i32::from_str_radix(digits, 16),
                        None => size.parse(),
                    };
                    if number.is_err() || !size.starts_with(|c: char| c.is_ascii_digit()) {
                        eprintln!("Bad buffer size: {size}");
                        return Err(1);
                    }
                }
                ("--agent-socket", Some(path)) => agent_socket = Some(PathBuf::from(path)),
                // --use-stdin-socket among them: releases before 4.2.19 do not know it
                (name, _) => return usage(&format!("unrecognized option '{name}'")),
            }
        }
        let (Some(target), Some(service)) = (words.next(), words.next()) else {
            return usage("a target and a service are needed");
        };
        if words.next().is_some() {
            return usage("this stand-in runs no local program");
        }
        let (service, argument) = match service.split_once('+') {
            Some((name, argument)) => (name.to_owned(), Some(argument.to_owned())),
            None => (service, None),
        };
        Ok(Self { target, service, argument, filter_stdout, filter_stderr, agent_socket })
    }

    fn full_service(&self) -> String {
        match &self.argument {
            Some(argument) => format!("{}+{argument}", self.service),
            None => self.service.clone(),
        }
    }

    /// The argument as a number; a test that forgot it should not pass by accident.
    fn number(&self) -> u64 {
        self.argument.as_deref().and_then(|a| a.parse().ok()).unwrap_or_else(|| {
            eprintln!("{}: a number is needed after the service's '+'", self.service);
            process::exit(2)
        })
    }
}

// ---------------------------------------------------------------------------------------------------- the journal

/// Where files of this call lie, when a test asked for any.
struct Place {
    dir: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl Place {
    fn find(argv0: Option<&OsString>) -> Self {
        let called = argv0.map(PathBuf::from).filter(|p| p.as_os_str().as_bytes().contains(&b'/'));
        let beside = [called, env::current_exe().ok()]
            .into_iter()
            .flatten()
            .filter_map(|p| Some(p.parent()?.to_owned()))
            .find(|dir| dir.join("calls.log").exists());
        let dir = env::var_os("FAKE_QREXEC_DIR").map(PathBuf::from).or(beside);
        let log = env::var_os("FAKE_QREXEC_LOG").map(PathBuf::from).or(dir.as_ref().map(|d| d.join("calls.log")));
        Self { dir, log }
    }

    /// A file beside the journal.
    fn beside(&self, name: &str) -> PathBuf {
        self.dir.as_deref().expect("this service needs a directory: FAKE_QREXEC_DIR, or a calls.log").join(name)
    }

    /// Whether this call is the first to make that file.
    fn first(&self, name: &str) -> bool {
        File::create_new(self.beside(name)).is_ok()
    }

    /// Whether no other call has that file locked. This call keeps it locked to its end then, and adds a line to it.
    fn holds(&self, name: &str) -> bool {
        let file = OpenOptions::new().append(true).create(true).open(self.beside(name)).expect("the test's directory");
        let Ok(mut locked) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return false };
        locked.write_all(b"locked\n").expect("the test's directory");
        std::mem::forget(locked);
        true
    }
}

/// Lines `PID MILLISECONDS EVENT…`, each by one write to a file opened for appending, so that calls do not mix.
/// The milliseconds count from the boot (in steps of 10).
#[derive(Clone)]
struct Journal(Option<Arc<File>>);

impl Journal {
    fn open(place: &Place) -> Self {
        Self(place.log.as_ref().map(|path| {
            let file = OpenOptions::new().append(true).create(true).open(path);
            Arc::new(file.unwrap_or_else(|e| {
                eprintln!("{}: {e}", path.display());
                process::exit(2)
            }))
        }))
    }

    fn write(&self, event: &str) {
        if let Some(mut file) = self.0.as_deref() {
            let line = format!("{} {} {event}\n", process::id(), uptime_ms());
            file.write_all(line.as_bytes()).expect("the journal can be written");
        }
    }
}

fn uptime_ms() -> u64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 = uptime.split(' ').next().and_then(|s| s.parse().ok()).unwrap_or_default();
    (seconds * 1000.0) as u64
}

/// A word of the journal: without blanks, whatever the call held.
fn word(text: &str) -> String {
    text.bytes().map(|b| if b.is_ascii_graphic() { char::from(b).to_string() } else { format!("\\x{b:02x}") }).collect()
}

/// SIGTERM ends this program as it ends the real one, but the journal hears of it.
fn witness_term(journal: &Journal, immune: bool) {
    let mut term = SigSet::empty();
    term.add(Signal::SIGTERM);
    let was = term.thread_swap_mask(SigmaskHow::SIG_BLOCK).expect("masks can be set");
    if immune || was.contains(Signal::SIGTERM) {
        return; // blocked for good: by the service's wish, or because whoever started us left it so
    }
    let journal = journal.clone();
    thread::spawn(move || {
        let _ = term.wait();
        journal.write("terminated");
        let _ = term.thread_unblock();
        let _ = raise(Signal::SIGTERM);
    });
}

// --------------------------------------------------------------------------------------------------------- set-up

enum Answer {
    Connected,
    Refused,
    LocalFailure(String),
}

/// Waits for dom0's answer and looks at nothing else meanwhile.
fn set_up(call: &Call, place: &Place) -> Answer {
    if let Some(path) = &call.agent_socket {
        if let Err(e) = fs::metadata(path) {
            return Answer::LocalFailure(format!("connect to {}: {e}", path.display()));
        }
    }
    match call.service.as_str() {
        "test.Refuse" => {
            if call.argument.is_some() {
                thread::sleep(Duration::from_millis(call.number()));
            }
            Answer::Refused
        }
        "test.Ask" | "test.Brief" => {
            thread::sleep(Duration::from_millis(call.number()));
            Answer::Connected
        }
        "test.Gate" => {
            let gate = place.dir.as_deref().map(|d| d.join(call.argument.as_deref().unwrap_or_default()));
            let gate = gate.expect("test.Gate needs a directory: FAKE_QREXEC_DIR, or a calls.log beside the program");
            while !gate.exists() {
                thread::sleep(Duration::from_millis(2));
            }
            Answer::Connected
        }
        "test.LosesOne" if place.first("lost") => loop {
            thread::park();
        },
        "test.Loses" if place.holds("losing") => loop {
            thread::park();
        },
        "test.Starts" if place.first("started") => {
            thread::sleep(Duration::from_millis(call.number()));
            Answer::Connected
        }
        "test.Never" | "test.NeverKill" => loop {
            thread::park();
        },
        "test.LocalFailure" => Answer::LocalFailure("connect: No such file or directory".to_owned()),
        // the daemon refuses an empty name
        "" => Answer::Refused,
        _ => Answer::Connected,
    }
}

// ---------------------------------------------------------------------------------------------------------- relay

/// One direction: bytes read and not yet written, and which of its ends are still there.
struct Direction {
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
    source_open: bool,
    sink_open: bool,
    bytes: u64,
}

/// What the loop waits for.
#[derive(Clone, Copy, PartialEq)]
enum Wants {
    ToRead,
    ToWrite,
    /// Everything was written and the source is at its end.
    Nothing,
}

/// Whose turn it is.
enum Stream {
    Stdin,
    ToService,
    FromService,
    Stdout,
    ServiceStderr,
}

impl Direction {
    fn new() -> Self {
        Self { buffer: vec![0; 65536].into_boxed_slice(), from: 0, to: 0, source_open: true, sink_open: true, bytes: 0 }
    }

    fn wants(&self) -> Wants {
        if self.from < self.to {
            Wants::ToWrite
        } else if self.source_open {
            Wants::ToRead
        } else {
            Wants::Nothing
        }
    }

    fn read(&mut self, source: BorrowedFd<'_>) {
        match nix::unistd::read(source, &mut self.buffer) {
            Ok(0) => self.source_open = false,
            Ok(n) => {
                self.bytes += n as u64;
                (self.from, self.to) = if self.sink_open { (0, n) } else { (0, 0) };
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.source_open = false,
        }
    }

    fn write(&mut self, sink: BorrowedFd<'_>) {
        match nix::unistd::write(sink, &self.buffer[self.from..self.to]) {
            Ok(n) => self.from += n,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => {
                // no end gets a message: what comes is thrown away
                self.sink_open = false;
                self.from = self.to;
            }
        }
    }
}

/// Moves bytes between our descriptors and the service until the service is done; its code, and the bytes moved.
fn relay(call: Call, place: Place) -> (i32, u64, u64) {
    let (up_from, up_to) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    let (down_from, down_to) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    let (err_from, err_to) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    set_nonblocking(up_to.as_fd(), true);
    let (filter_stdout, filter_stderr) = (call.filter_stdout, call.filter_stderr);
    let ends = Ends { up: File::from(up_from), down: Some(File::from(down_to)), err: File::from(err_to) };
    let service = thread::spawn(move || serve(&call, &place, ends));

    let (stdin, stdout) = (io::stdin(), io::stdout());
    let (mut up, mut down, mut err) = (Direction::new(), Direction::new(), Direction::new());
    let mut up_to = Some(up_to);
    let (mut stdin_open, mut stdout_open) = (true, true);
    // stderr's writing end lives as long as the service does: its end of stream is the service's end
    while err.source_open || down.wants() != Wants::Nothing {
        let (mut waits, mut streams) = (Vec::with_capacity(3), Vec::with_capacity(3));
        let mut wait = |stream, fd, flags| {
            waits.push(PollFd::new(fd, flags));
            streams.push(stream);
        };
        match up.wants() {
            Wants::ToRead => wait(Stream::Stdin, stdin.as_fd(), PollFlags::POLLIN),
            Wants::ToWrite => {
                let sink = up_to.as_ref().expect("kept while there are bytes for it");
                wait(Stream::ToService, sink.as_fd(), PollFlags::POLLOUT);
            }
            Wants::Nothing => {}
        }
        match down.wants() {
            Wants::ToRead => wait(Stream::FromService, down_from.as_fd(), PollFlags::POLLIN),
            Wants::ToWrite => wait(Stream::Stdout, stdout.as_fd(), PollFlags::POLLOUT),
            Wants::Nothing => {}
        }
        if err.source_open {
            wait(Stream::ServiceStderr, err_from.as_fd(), PollFlags::POLLIN);
        }
        match poll(&mut waits, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => panic!("poll: {e}"),
        }
        let ready: Vec<Stream> =
            streams.into_iter().zip(&waits).filter(|(_, w)| w.any().unwrap_or(true)).map(|(s, _)| s).collect();
        for stream in ready {
            match stream {
                Stream::Stdin => up.read(stdin.as_fd()),
                Stream::ToService => up.write(up_to.as_ref().expect("it was polled").as_fd()),
                Stream::FromService => {
                    down.read(down_from.as_fd());
                    filter(filter_stdout, &mut down.buffer[down.from..down.to]);
                }
                Stream::Stdout => down.write(stdout.as_fd()),
                Stream::ServiceStderr => {
                    err.read(err_from.as_fd());
                    filter(filter_stderr, &mut err.buffer[err.from..err.to]);
                    while err.wants() == Wants::ToWrite {
                        err.write(io::stderr().as_fd()); // blocks, and the two other streams with it
                    }
                }
            }
        }
        if up_to.is_some() && up.wants() == Wants::Nothing {
            up_to = None;
            close_standard(&mut stdin_open, stdin.as_fd());
        }
        if down.wants() == Wants::Nothing || !down.sink_open {
            close_standard(&mut stdout_open, stdout.as_fd());
        }
    }
    let code = service.join().unwrap_or(125);
    close_standard(&mut stdin_open, stdin.as_fd());
    (code, up.bytes, down.bytes)
}

/// All but printable ASCII, tab, newline, return, backspace and bell becomes `_`.
fn filter(on: bool, bytes: &mut [u8]) {
    if on {
        for b in bytes.iter_mut().filter(|b| !matches!(**b, b' '..=b'~' | b'\t' | b'\n' | b'\r' | 8 | 7)) {
            *b = b'_';
        }
    }
}

fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).expect("the flags of an open descriptor"));
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags)).expect("flags can be set");
}

/// Closes fd 0 or 1, once, and leaves its file description as it was found.
fn close_standard(open: &mut bool, fd: BorrowedFd<'_>) {
    if std::mem::take(open) {
        set_nonblocking(fd, false);
        let _ = close(fd.as_raw_fd());
    }
}

// ------------------------------------------------------------------------------------------------------- services

/// The service's own stdin, stdout and stderr.
struct Ends {
    up: File,
    down: Option<File>,
    err: File,
}

/// Runs the service; its exit code as the caller sees it. An error means that the caller went away in the middle of
/// what it was told, which a service survives or not: here it ends, quietly.
fn serve(call: &Call, place: &Place, mut ends: Ends) -> i32 {
    match serve_streams(call, place, &mut ends) {
        Ok(code) => code,
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => 128 + Signal::SIGPIPE as i32,
        Err(e) => {
            let _ = writeln!(ends.err, "{}: {e}", call.service);
            125
        }
    }
}

fn serve_streams(call: &Call, place: &Place, ends: &mut Ends) -> io::Result<i32> {
    let Ends { up, down, err } = ends;
    let out = down.as_mut().expect("open at the start");
    match call.service.as_str() {
        "test.Starts" if !place.beside("listening").exists() => return Ok(125),
        "test.Echo" | "test.Ask" | "test.Gate" | "test.LosesOne" | "test.Loses" | "test.Starts" => echo(up, out)?,
        "test.Brief" => out.write_all(b"ready\n")?,
        "test.SpeaksFirst" => {
            out.write_all(b"ready\n")?;
            echo(up, out)?;
        }
        "test.SpeaksSecond" => {
            let line = read_line(up)?;
            out.write_all(b"heard: ")?;
            out.write_all(&line)?;
            echo(up, out)?;
        }
        "test.HalfCloseUp" => {
            let mut sum = Sum::new();
            drain(up, |bytes| {
                sum.add(bytes);
                Ok(())
            })?;
            writeln!(out, "{sum}")?;
        }
        "test.HalfCloseDown" => {
            *down = None;
            let named = env::var_os("FAKE_QREXEC_RECEIVED").map(PathBuf::from);
            let path = named.or(place.dir.as_ref().map(|d| d.join("received")));
            let path = path.ok_or_else(|| io::Error::other("no file to write to: set FAKE_QREXEC_RECEIVED"))?;
            receive_into(up, &path)?;
        }
        "test.Sink" => drain(up, |_| Ok(()))?,
        "test.Source" => {
            source(call.number(), out)?;
            *down = None;
            drain(up, |_| Ok(()))?;
        }
        "test.EndsFirst" => source(call.number(), out)?,
        "test.Stall" => loop {
            thread::park();
        },
        "test.StderrFlood" => {
            flood(call.number(), err)?;
            echo(up, out)?;
        }
        "test.StderrEscapes" => {
            err.write_all(b"\x1b[31mred\x1b[0m and \xff\x00 end\n")?;
            echo(up, out)?;
        }
        "test.Args" => writeln!(out, "{} {}", call.target, call.full_service())?,
        "test.Exit" => return Ok((call.number() & 0xff) as i32),
        "test.Signal" => return Ok(128 + call.number() as i32),
        "test.Die" => {
            let signal = Signal::try_from(call.number() as i32).map_err(io::Error::from)?;
            kill(Pid::this(), signal)?;
            loop {
                thread::park();
            }
        }
        "test.Tcp" | "qubes.ConnectTCP" => return tcp(call, up, down),
        "test.Broken" => return Ok(125),
        "test.Lost" => {
            source(call.number(), out)?;
            *down = None;
            err.write_all(b"vchan connection closed early (fds: 1 0 -1, status: -1 -1)\n")?;
            return Ok(255);
        }
        _ => return installed(call, place, ends),
    }
    Ok(0)
}

/// A service of the test's own, a file beside the journal: run as qrexec-agent runs one (qubes-rpc-multiplexer).
fn installed(call: &Call, place: &Place, ends: &mut Ends) -> io::Result<i32> {
    let file = place.dir.as_ref().map(|dir| dir.join("qubes-rpc").join(&call.service));
    let Some(file) = file.filter(|file| file.exists()) else { return Ok(127) };
    let mut service = process::Command::new(file);
    if let Some(argument) = &call.argument {
        service.arg(argument).env("QREXEC_SERVICE_ARGUMENT", argument);
    }
    service.env("QREXEC_SERVICE_FULL_NAME", call.full_service()).env("QREXEC_REMOTE_DOMAIN", "work");
    service.stdin(ends.up.try_clone()?).stderr(ends.err.try_clone()?);
    service.stdout(ends.down.take().expect("open at the start"));
    let mut child = service.spawn()?;
    drop(service); // it holds the ends, too
    let status = child.wait()?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

/// What comes goes back.
fn echo(up: &mut File, down: &mut File) -> io::Result<()> {
    drain(up, |bytes| down.write_all(bytes))
}

/// Hands what comes to `each`, until the caller's end of stream.
fn drain(up: &mut impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        match up.read(&mut buffer)? {
            0 => return Ok(()),
            n => each(&buffer[..n])?,
        }
    }
}

/// A line with its newline, or what there is of it; byte by byte, so that nothing behind it is taken.
fn read_line(up: &mut File) -> io::Result<Vec<u8>> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while up.read(&mut byte)? == 1 {
        line.push(byte[0]);
        if byte[0] == b'\n' {
            break;
        }
    }
    Ok(line)
}

/// The file appears in one piece: a test may wait for its name.
fn receive_into(up: &mut File, path: &Path) -> io::Result<()> {
    let partial = path.with_extension(format!("{}.part", process::id()));
    let mut file = File::create(&partial)?;
    drain(up, |bytes| file.write_all(bytes))?;
    fs::rename(&partial, path)
}

fn source(mut left: u64, down: &mut File) -> io::Result<()> {
    let (mut pattern, mut buffer) = (Pattern::new(SERVICE_SEED), vec![0; 65536]);
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        pattern.fill(&mut buffer[..n]);
        down.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    Ok(())
}

/// Numbered lines of 64 bytes, the last one cut so that it is exactly `bytes` in all.
fn flood(bytes: u64, err: &mut File) -> io::Result<()> {
    let lines = bytes.div_ceil(64);
    let mut text: Vec<u8> = (0..lines).flat_map(|i| format!("flood {i:010} {:.<46}\n", "").into_bytes()).collect();
    text.truncate(bytes as usize);
    err.write_all(&text)
}

/// Both directions between the caller and a TCP server on the loopback.
fn tcp(call: &Call, up: &mut File, down: &mut Option<File>) -> io::Result<i32> {
    let Some(port) = call.argument.as_deref().and_then(|a| a.parse::<u16>().ok()).filter(|p| *p != 0) else {
        return Ok(125);
    };
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { return Ok(125) };
    let (mut to_server, mut up, mut from_server) = (server.try_clone()?, up.try_clone()?, server);
    let upward = thread::spawn(move || {
        let _ = drain(&mut up, |bytes| to_server.write_all(bytes));
        let _ = to_server.shutdown(Shutdown::Write);
    });
    if let Some(mut out) = down.take() {
        // a reset arrives at the caller as an end: qrexec has no other word for it
        let _ = drain(&mut from_server, |bytes| out.write_all(bytes));
    }
    if call.service == "test.Tcp" {
        let _ = upward.join();
    }
    Ok(0)
}
