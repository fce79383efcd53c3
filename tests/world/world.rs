//! A world, and what a test does in it. Dropped, everything in it ends: it lives as long as the pipe to its first
//! process.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::support::{Lines, PATIENCE, Process, eventually, run, skip};

/// A world with these qubes; None, after a loud word, where there can be none.
macro_rules! world {
    ($($vm:literal),+) => {
        match $crate::world::World::new(&[$($vm),+]) {
            Some(world) => world,
            None => return,
        }
    };
}

pub(crate) struct World {
    dir: TempDir,
    holder: Child,
    _alive: ChildStdin,
    vms: Vec<String>,
}

/// What a program printed, and its exit code (128 + n for a signal).
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// It ended so and printed this; all of it is shown when not.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, out: &str) -> &Self {
        assert!(self.code == code && self.text() == out, "wanted {code} and {out:?}, got {self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn says(&self, text: &str) -> &Self {
        assert!(self.err.contains(text), "no {text:?} in {self:#?}");
        self
    }
}

fn done(output: Output) -> Done {
    use std::os::unix::process::ExitStatusExt as _;
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    Done { code, out: output.stdout, err: String::from_utf8_lossy(&output.stderr).into_owned() }
}

/// A program that was started in a world. Dropped, it goes on: the world ends it.
pub(crate) struct Running {
    process: Process,
    stdin: Option<ChildStdin>,
    /// World, qube and a file with the number of its process there.
    at: Option<(PathBuf, String, String)>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped());
        let mut process = Process::start(command).let_go();
        let stdin = Some(process.stdin());
        Self { process, stdin, at: None }
    }

    /// Its standard input gets this.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("not closed yet").write_all(bytes).expect("it reads");
    }

    /// Waits until it has printed this.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.process.stdout.wait_for_text(text);
    }

    /// A signal for the `qvm-remote` itself.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let (dir, vm, place) = self.at.as_ref().expect("started by `remote_start`");
        let text = format!("kill -{} $(cat {place})", signal.as_str().trim_start_matches("SIG"));
        let mut command = script();
        command.arg("vm").arg(dir).arg(vm).args(["bash", "-c", &text]);
        done(run(command)).expect(0, "");
    }

    /// Whether it has said this on standard error.
    pub(crate) fn said(&self, text: &str) -> bool {
        self.process.stderr.count(text) > 0
    }

    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> bool {
        !self.process.running()
    }

    /// How it ended, within the time.
    #[track_caller]
    pub(crate) fn end_within(mut self, time: Duration) -> Done {
        self.stdin = None;
        let status = self.process.wait_within(time);
        let [stdout, stderr] = [&self.process.stdout, &self.process.stderr].map(Lines::bytes_to_the_end);
        done(Output { status, stdout, stderr })
    }

    #[track_caller]
    pub(crate) fn end(self) -> Done {
        self.end_within(PATIENCE)
    }
}

impl World {
    pub(crate) fn new(vms: &[&str]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("a world of namespaces needs root");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("qvm-world-").tempdir().expect("a directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let mut command = script();
        let programs = Path::new(env!("CARGO_BIN_EXE_qvm-remote")).parent().expect("in a directory");
        command.arg("hold").arg(dir.path()).arg(programs).args(vms);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bash is here");
        let alive = holder.stdin.take().expect("piped");
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().expect("piped")).read_line(&mut ready).expect("it speaks");
        assert_eq!(ready, "ready\n", "the world could not be made");
        let vms = vms.iter().map(|vm| (*vm).to_owned()).collect();
        let world = Self { dir, holder, _alive: alive, vms };
        world.dom0("true").expect(0, "");
        Some(world)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where a qube's user has his files, seen from outside.
    pub(crate) fn home(&self, vm: &str) -> PathBuf {
        self.path().join("vms").join(vm).join("home/user")
    }

    /// dom0's log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path().join("dom0/log/qubes/qvm-remote.log")).unwrap_or_default()
    }

    /// Calls of qvm-run so far.
    pub(crate) fn calls(&self) -> usize {
        let calls = fs::read_to_string(self.path().join("calls")).unwrap_or_default();
        calls.lines().filter(|line| line.contains("pass_io=")).count()
    }

    /// A shell text as root in dom0.
    pub(crate) fn dom0_command(&self, text: &str) -> Command {
        let mut command = script();
        command.arg("dom0").arg(self.path()).args(["bash", "-c", text]);
        command
    }

    pub(crate) fn dom0(&self, text: &str) -> Done {
        Running::start(self.dom0_command(text)).end()
    }

    pub(crate) fn dom0_start(&self, text: &str) -> Running {
        Running::start(self.dom0_command(&format!("exec {text}")))
    }

    /// A program in a qube; the process is the program itself, so signals reach it.
    pub(crate) fn vm_command(&self, vm: &str, words: &[&str]) -> Command {
        let mut command = script();
        command.arg("vm").arg(self.path()).arg(vm).args(words);
        command
    }

    pub(crate) fn vm(&self, vm: &str, words: &[&str]) -> Done {
        self.vm_start(vm, words).end()
    }

    pub(crate) fn vm_start(&self, vm: &str, words: &[&str]) -> Running {
        Running::start(self.vm_command(vm, words))
    }

    /// `qvm-remote` in a qube.
    pub(crate) fn remote(&self, vm: &str, words: &[&str]) -> Done {
        self.remote_start(vm, words).end()
    }

    pub(crate) fn remote_start(&self, vm: &str, words: &[&str]) -> Running {
        // nsenter stands between, so signals go to the number that it leaves here
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let place = format!("/home/user/.pid-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let note = format!("cd; echo $$ >{place}; exec \"$@\"");
        let mut running = self.vm_start(vm, &[&["bash", "-c", &note, "note", "qvm-remote"], words].concat());
        running.at = Some((self.path().to_owned(), vm.to_owned(), place));
        running
    }

    /// A shell text in a qube.
    pub(crate) fn shell(&self, vm: &str, text: &str) -> Done {
        self.vm(vm, &["bash", "-c", &format!("cd; {text}")])
    }

    pub(crate) fn stop(&self, vm: &str) {
        let mut command = script();
        command.arg("stop").arg(self.path()).arg(vm);
        done(run(command)).expect(0, "");
    }

    pub(crate) fn boot(&self, vm: &str) {
        let mut command = script();
        command.arg("start").arg(self.path()).arg(vm);
        done(run(command)).expect(0, "");
    }

    /// Keys for all qubes, listed and authorised, as the description has it.
    pub(crate) fn authorize(&self) {
        let list = self.vms.join(" ");
        self.dom0(&format!("echo 'QVM_REMOTE_VMS=\"{list}\"' >/etc/qubes/remote.conf")).expect(0, "");
        for vm in &self.vms {
            let key = self.remote(vm, &["key", "gen"]);
            let done = self.dom0(&format!("qvm-remote-dom0 authorize {vm} {}", key.text().trim()));
            assert_eq!(done.code, 0, "{done:#?}");
        }
    }

    /// The policy of a qube.
    pub(crate) fn policy(&self, vm: &str, text: &str) {
        // by way of dom0: a file put under a mounted overlay may not be seen; and whole, so that the daemon reads no part
        let place = format!("/etc/qubes/remote.d/{vm}.policy");
        let mut write =
            self.dom0_start(&format!("bash -c 'cat >/etc/qubes/{vm}.new && mv /etc/qubes/{vm}.new {place}'"));
        write.write(text.as_bytes());
        write.end().expect(0, "");
    }

    /// The daemon, once every running qube's channel is live.
    #[track_caller]
    pub(crate) fn daemon(&self) -> Daemon<'_> {
        let daemon = Daemon { world: self, running: Some(self.dom0_start("qvm-remote-dom0")) };
        for vm in &self.vms {
            if self.path().join("vms").join(vm).join("pid").exists() {
                daemon.wait_for_channel(vm, "live");
            }
        }
        daemon
    }

    /// All of it, as most tests want it.
    pub(crate) fn ready(&self) -> Daemon<'_> {
        self.authorize();
        self.daemon()
    }

    /// Processes in this dom0 and its qubes whose command line begins so.
    pub(crate) fn processes(&self, text: &str) -> usize {
        self.dom0(&format!("pgrep -c -f '^{text}'")).text().trim().parse().expect("a number")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // its first process reads the pipe's end when `_alive` goes; to be sure that nothing is left, it is killed
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The daemon of a world.
pub(crate) struct Daemon<'a> {
    world: &'a World,
    running: Option<Running>,
}

impl Daemon<'_> {
    #[track_caller]
    pub(crate) fn wait_for_channel(&self, vm: &str, state: &str) {
        let wanted = format!("\"{vm}\":{{\"channel\":\"{state}\"");
        eventually(&format!("{vm} {state}"), || {
            self.world.dom0("qvm-remote-dom0 status --json").text().contains(&wanted)
        });
    }

    pub(crate) fn pid(&self) -> String {
        let status: serde_json::Value =
            serde_json::from_str(&self.world.dom0("qvm-remote-dom0 status --json").text()).expect("JSON");
        status["pid"].to_string()
    }

    /// Resident memory, in KiB.
    pub(crate) fn memory(&self) -> usize {
        let text = self.world.dom0(&format!("grep VmRSS /proc/{}/status", self.pid())).text();
        text.split_whitespace().nth(1).expect("VmRSS: N kB").parse().expect("a number")
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        let text = self.world.dom0(&format!("ls /proc/{}/fd | wc -l", self.pid())).text();
        text.trim().parse().expect("a number")
    }

    pub(crate) fn kill(mut self) {
        let pid = self.pid();
        self.world.dom0(&format!("kill -KILL {pid}")).expect(0, "");
        self.running.take().expect("once").end();
    }

    /// Stops it as systemd does; what it said.
    pub(crate) fn stop(mut self) -> Done {
        let pid = self.pid();
        self.world.dom0(&format!("kill -TERM {pid}")).expect(0, "");
        self.running.take().expect("once").end()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- dom0's log ----\n{}----", self.world.log());
        }
    }
}

fn script() -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/world/world"));
    command.stdin(Stdio::null());
    command
}
