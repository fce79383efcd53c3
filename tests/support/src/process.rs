//! Programs started by tests: what they print, how they end, and whom they leave behind.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::{fd::OwnedFd, unix::process::CommandExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Condvar, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{PATIENCE, eventually, raw};

/// In the environment of every process that a test starts, with its own value for each start: so whoever
/// descends from it can be found, whatever became of its parents.
const MARK: &str = "FORWARDER_TEST_MARK";

/// What a program has printed so far, as lines or as bytes.
#[derive(Clone)]
pub struct Lines {
    name: &'static str,
    shared: Arc<(Mutex<Printed>, Condvar)>,
}

#[derive(Default)]
struct Printed {
    bytes: Vec<u8>,
    /// Of the first `cut` bytes.
    lines: Vec<String>,
    cut: usize,
    ended: bool,
}

impl Printed {
    /// The lines so far; what has no end of line yet is none before the end of the stream.
    fn lines(&mut self) -> &[String] {
        loop {
            let rest = &self.bytes[self.cut..];
            let line = match rest.iter().position(|b| *b == b'\n') {
                Some(end) => &rest[..=end],
                None if self.ended && !rest.is_empty() => rest,
                None => return &self.lines,
            };
            self.cut += line.len();
            self.lines.push(String::from_utf8_lossy(line).trim_end_matches('\n').to_owned());
        }
    }
}

impl Lines {
    /// Of a stream that the test reads itself.
    fn none(name: &'static str) -> Self {
        Self::collect(name, std::io::empty())
    }

    /// Collects in the background, so that the writer never blocks.
    fn collect(name: &'static str, mut from: impl Read + Send + 'static) -> Self {
        let lines = Self { name, shared: Arc::default() };
        let shared = Arc::clone(&lines.shared);
        thread::spawn(move || {
            let mut chunk = vec![0; 64 << 10];
            while let Ok(n @ 1..) = from.read(&mut chunk) {
                shared.0.lock().expect("no panic under this lock").bytes.extend(&chunk[..n]);
                shared.1.notify_all();
            }
            shared.0.lock().expect("no panic under this lock").ended = true;
            shared.1.notify_all();
        });
        lines
    }

    /// All lines so far.
    pub fn so_far(&self) -> Vec<String> {
        self.shared.0.lock().expect("no panic under this lock").lines().to_vec()
    }

    /// How many lines so far hold `text`.
    pub fn count(&self, text: &str) -> usize {
        self.so_far().iter().filter(|line| line.contains(text)).count()
    }

    /// The first line, old or new, that holds `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_for_nth(text, 1)
    }

    /// The `n`th line (from 1) that holds `text`.
    #[track_caller]
    pub fn wait_for_nth(&self, text: &str, n: usize) -> String {
        self.wait(&format!("line {n} with {text:?}"), |lines| {
            lines.iter().filter(|line| line.contains(text)).nth(n - 1).cloned()
        })
    }

    /// What `find` finds in the lines so far, as soon as it finds something.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, find: impl Fn(&[String]) -> Option<T>) -> T {
        self.wait_in(what, |printed| find(printed.lines()))
    }

    /// Waits until `text` was printed, be its line at an end or not.
    #[track_caller]
    pub fn wait_for_text(&self, text: &str) {
        self.wait_in(&format!("{text:?}"), |printed| {
            String::from_utf8_lossy(&printed.bytes).contains(text).then_some(())
        });
    }

    #[track_caller]
    fn wait_in<T>(&self, what: &str, find: impl Fn(&mut Printed) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut printed = self.shared.0.lock().expect("no panic under this lock");
        loop {
            if let Some(found) = find(&mut printed) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let why = if printed.ended { "it was closed without" } else { "not in time" };
            if printed.ended || left.is_zero() {
                printed.ended = true; // what has no end of line yet is told, too
                let lines = printed.lines().join("\n  ");
                drop(printed);
                panic!("{}: {why}: {what}; there was\n  {lines}", self.name);
            }
            printed = self.shared.1.wait_timeout(printed, left).expect("no panic under this lock").0;
        }
    }

    /// All lines, once the last holder of the writing end has closed it.
    #[track_caller]
    pub fn to_the_end(&self) -> Vec<String> {
        self.wait_for_end();
        self.so_far()
    }

    /// The same, as bytes.
    #[track_caller]
    pub fn bytes_to_the_end(&self) -> Vec<u8> {
        self.wait_for_end();
        self.shared.0.lock().expect("no panic under this lock").bytes.clone()
    }

    #[track_caller]
    fn wait_for_end(&self) {
        eventually(&format!("the end of {}", self.name), || {
            self.shared.0.lock().expect("no panic under this lock").ended
        });
    }
}

/// A running program. Dropped, it and all its descendants are killed; when the test is panicking, what it wrote on
/// stderr is shown.
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
    /// Dropped when the program has been waited for: its pid is free then.
    leash: Option<mpsc::Sender<()>>,
    mark: String,
    kept: bool,
    /// Its standard output, as it comes.
    pub stdout: Lines,
    /// Its standard error, as it comes.
    pub stderr: Lines,
}

/// What a service holds while it serves nobody.
#[derive(Debug, PartialEq, Eq)]
pub struct Rest {
    pub descriptors: usize,
    pub children: usize,
}

/// Empty pipes that the relay keeps at most (src/relay/pool.rs).
const KEPT_PIPES: usize = 16;

impl Process {
    /// Starts `command` in a separate process group, with both outputs collected. Its stdin is as the command says.
    pub fn start(command: Command) -> Self {
        Self::start_with(command, &[])
    }

    /// The same, with `descriptors` as 3, 4, 5…
    pub(crate) fn start_with(mut command: Command, descriptors: &[OwnedFd]) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Self::spawn(command, descriptors);
        process.stdout = Lines::collect("stdout", process.child.stdout.take().expect("piped"));
        process.stderr = Lines::collect("stderr", process.child.stderr.take().expect("piped"));
        process
    }

    /// Starts `command` with `wire` as both standard input and output, as qrexec does with a service; only its standard
    /// error is collected.
    pub fn on_wire(mut command: Command, wire: OwnedFd) -> Self {
        let copy = wire.try_clone().expect("a descriptor is free");
        command.stdin(copy).stdout(wire).stderr(Stdio::piped());
        let mut process = Self::spawn(command, &[]);
        process.stderr = Lines::collect("stderr", process.child.stderr.take().expect("piped"));
        process
    }

    /// Starts `command` with three pipes whose ends the test takes itself ([`Self::stdin`], [`Self::stdout_pipe`],
    /// [`Self::stderr_pipe`]): nothing is collected. Reading a pipe knows no deadline, so the program has one: it is
    /// killed when it still runs after [`PATIENCE`].
    pub fn piped(command: Command) -> Self {
        Self::piped_for(command, PATIENCE)
    }

    /// The same, but it is killed after `time`.
    pub fn piped_for(mut command: Command, time: Duration) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Self::spawn(command, &[]);
        let (pid, (kept, released)) = (process.pid(), mpsc::channel::<()>());
        process.leash = Some(kept);
        thread::spawn(move || {
            if released.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{pid} still ran after {time:?} and was killed");
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        process
    }

    fn spawn(mut command: Command, descriptors: &[OwnedFd]) -> Self {
        guard();
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let mark = format!("{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        command.env(MARK, &mark).process_group(0);
        let copies = raw::inherit(&mut command, descriptors);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", command.get_program().to_string_lossy()));
        drop(copies);
        Self {
            child,
            status: None,
            leash: None,
            mark,
            kept: true,
            stdout: Lines::none("stdout"),
            stderr: Lines::none("stderr"),
        }
    }

    /// Dropped, the program and all that it started go on: somebody else ends them, a world of namespaces say.
    pub fn let_go(mut self) -> Self {
        self.kept = false;
        self
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("pids are small"))
    }

    /// Its stdin, when the command asked for a pipe; once.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().expect("the command was started with a piped stdin, not taken yet")
    }

    /// Its stdout, when it was started by [`Self::piped`]; once.
    pub fn stdout_pipe(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("started by `piped`, and not taken yet")
    }

    /// Its stderr, when it was started by [`Self::piped`]; once.
    pub fn stderr_pipe(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("started by `piped`, and not taken yet")
    }

    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "it has ended already");
        kill(self.pid(), signal).expect("it is our child, and not waited for yet");
    }

    pub fn running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("it is our child");
            if self.status.is_some() {
                self.leash = None;
            }
        }
        self.status.is_none()
    }

    /// How it ended, within [`PATIENCE`].
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within(PATIENCE)
    }

    /// How it ended, within `time`.
    #[track_caller]
    pub fn wait_within(&mut self, time: Duration) -> ExitStatus {
        let deadline = Instant::now() + time;
        while self.running() {
            assert!(Instant::now() < deadline, "still running after {time:?}");
            thread::sleep(Duration::from_millis(2));
        }
        self.status.expect("it does not run any more")
    }

    /// What its descriptors are, by number: `socket:[123]`, `pipe:[45]`, `/dev/null`…
    pub fn descriptors(&self) -> BTreeMap<i32, String> {
        let Ok(dir) = fs::read_dir(format!("/proc/{}/fd", self.pid())) else { return BTreeMap::new() };
        dir.filter_map(|entry| {
            let entry = entry.ok()?;
            let to = fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, to.to_string_lossy().into_owned()))
        })
        .collect()
    }

    /// Whether O_NONBLOCK is set on the file description behind its descriptor `fd`.
    pub fn nonblocking(&self, fd: i32) -> bool {
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", self.pid())).expect("it has this descriptor");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("proc(5): flags are there");
        let flags = i32::from_str_radix(flags.trim(), 8).expect("proc(5): flags are octal");
        flags & libc::O_NONBLOCK != 0
    }

    /// Its children, zombies too, as `pid (name) state`.
    pub fn children(&self) -> Vec<String> {
        let mine = self.pid().to_string();
        processes().filter(|p| p.parent == mine).map(|p| format!("{} ({}) {}", p.pid, p.name, p.state)).collect()
    }

    /// Whoever descends from this start and lives, as `pid (name)`; the program itself among them.
    pub fn descendants(&self) -> Vec<String> {
        let mark = format!("{MARK}={}", self.mark);
        processes()
            .filter(|p| {
                let environment = fs::read(format!("/proc/{}/environ", p.pid)).unwrap_or_default();
                environment.split(|b| *b == 0).any(|entry| entry == mark.as_bytes())
            })
            .map(|p| format!("{} ({})", p.pid, p.name))
            .collect()
    }

    /// What it holds now. To be asked when it serves nobody (after its READY, say).
    pub fn rest(&self) -> Rest {
        let descriptors = self.descriptors();
        let mut pipes = BTreeMap::new();
        for pipe in descriptors.values().filter(|target| target.starts_with("pipe:")) {
            *pipes.entry(pipe).or_insert(0) += 1;
        }
        // both ends in its own hands: an empty pipe that the relay keeps for later
        let kept = pipes.values().filter(|ends| **ends == 2).count().min(KEPT_PIPES);
        Rest { descriptors: descriptors.len() - 2 * kept, children: self.children().len() }
    }

    /// Waits until it holds no more than `rest`.
    #[track_caller]
    pub fn wait_for_rest(&self, rest: &Rest) {
        let back = || {
            let now = self.rest();
            now.descriptors <= rest.descriptors && now.children <= rest.children
        };
        let deadline = Instant::now() + PATIENCE;
        while !back() {
            let (descriptors, children) = (self.descriptors(), self.children());
            assert!(
                Instant::now() < deadline,
                "more than {rest:?} is left:\n  children {children:?}\n  descriptors {descriptors:#?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// It has ended, and so has everyone it started.
    #[track_caller]
    pub fn assert_nobody_left(&mut self) {
        assert!(!self.running(), "it still runs itself");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.descendants();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- stderr of {} ----\n{}\n----", self.child.id(), self.stderr.so_far().join("\n"));
        }
        if !self.kept {
            return;
        }
        for left in self.descendants() {
            if let Some(pid) = left.split(' ').next().and_then(|pid| pid.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        self.leash = None;
        let _ = self.child.wait();
    }
}

/// Watches over this test process from outside, once: when it is gone, however it went, whoever it has started and
/// still lives is killed. (PR_SET_PDEATHSIG would be about the thread that started them, and tests have many.)
fn guard() {
    /// Its input ends with this process.
    static GUARD: OnceLock<Child> = OnceLock::new();
    GUARD.get_or_init(|| {
        let script = r#"cat >/dev/null
            grep -lsz "^$1\." /proc/[0-9]*/environ | while IFS=/ read -r _ _ pid _; do kill -9 "$pid"; done"#;
        let mark = format!("{MARK}={}", std::process::id());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh", &mark]).env_remove(MARK).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("there is a shell")
    });
}

/// Takes the environment of the tests away, but for the options of a sanitizer: a program that tests/sanitize built and
/// that lacks them looks for leaks when it ends, which takes seconds and can change its exit code.
pub fn bare(command: &mut Command) -> &mut Command {
    command.env_clear().envs(std::env::var_os("ASAN_OPTIONS").map(|options| ("ASAN_OPTIONS", options)))
}

/// Runs a short program to its end; its output, within [`PATIENCE`].
#[track_caller]
pub fn run(command: Command) -> Output {
    let mut process = Process::start(command);
    let status = process.wait();
    Output { status, stdout: process.stdout.bytes_to_the_end(), stderr: process.stderr.bytes_to_the_end() }
}

/// A line of /proc.
struct Seen {
    pid: String,
    name: String,
    state: String,
    parent: String,
}

fn processes() -> impl Iterator<Item = Seen> {
    let dir = fs::read_dir("/proc").expect("/proc is mounted");
    dir.filter_map(|entry| {
        let pid = entry.ok()?.file_name().into_string().ok().filter(|n| n.bytes().all(|b| b.is_ascii_digit()))?;
        // proc(5): pid (name) state parent …; the name may hold anything, so from its last parenthesis
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = (stat.get(stat.find('(')? + 1..stat.rfind(')')?)?, stat.get(stat.rfind(')')? + 2..)?);
        let mut rest = rest.split(' ');
        Some(Seen { pid, name: name.to_owned(), state: rest.next()?.to_owned(), parent: rest.next()?.to_owned() })
    })
}
