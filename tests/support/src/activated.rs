//! A service started as systemd starts it: sockets from descriptor 3 on, their names, `LISTEN_PID`, a notify socket,
//! a nearly empty environment.
//!
//! [`Activation`] says what it inherits, [`Activated`] is the running service. The test keeps the sockets, as systemd
//! does, so the service can be started again on the same ones, with what it left in its descriptor store.

use std::{
    ffi::{OsStr, OsString},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixSocketAddr, UnixListener},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{FakeQrexec, Notifications, Process, SOURCE, Wire, bare, program};

/// Where a listener can be reached.
#[derive(Clone, Debug)]
pub enum Address {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
    Abstract(String),
    /// Something that the test made itself, with [`Activation::inherit`].
    Unknown,
}

struct Inherited {
    name: String,
    descriptor: OwnedFd,
    address: Address,
}

/// What a service will be started with.
pub struct Activation {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    inherited: Vec<Inherited>,
    names: Names,
    count: Option<usize>,
    notify: bool,
    nofile: Option<u64>,
    dir: tempfile::TempDir,
}

enum Names {
    /// Each listener's own.
    Own,
    /// No LISTEN_FDNAMES at all.
    Absent,
    /// LISTEN_FDNAMES as given.
    Given(String),
}

impl Activation {
    /// `qrexec-connect`, with no sockets yet.
    pub fn qrexec_connect() -> Self {
        Self::of(program("qrexec-connect"))
    }

    /// `qrexec-connect`, whose calls go to `fake`.
    pub fn calling(fake: &FakeQrexec) -> Self {
        Self::qrexec_connect().arg("--qrexec-client").arg(fake.program())
    }

    pub fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    /// Nothing but the program.
    pub fn of(program: impl AsRef<Path>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            inherited: Vec::new(),
            names: Names::Own,
            count: None,
            notify: true,
            nofile: None,
            dir: tempfile::tempdir().expect("a directory for the test"),
        }
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The directory that is the service's HOME, XDG_CONFIG_HOME (`config/`) and XDG_RUNTIME_DIR (`run/`).
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A listener on 127.0.0.1, any port.
    pub fn tcp(self, name: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = Address::Tcp(listener.local_addr().expect("it is bound"));
        self.inherited(name, listener.into(), address)
    }

    /// A listener on ::1, any port.
    pub fn tcp6(self, name: &str) -> Self {
        let listener = TcpListener::bind("[::1]:0").expect("a free port");
        let address = Address::Tcp(listener.local_addr().expect("it is bound"));
        self.inherited(name, listener.into(), address)
    }

    /// A datagram socket on 127.0.0.1, any port.
    pub fn udp(self, name: &str) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = Address::Udp(socket.local_addr().expect("it is bound"));
        self.inherited(name, socket.into(), address)
    }

    /// A UNIX stream listener at a path of the test's directory.
    pub fn unix(self, name: &str) -> Self {
        let path = self.dir().join(format!("{}.sock", self.inherited.len()));
        let listener = UnixListener::bind(&path).expect("a new path");
        self.inherited(name, listener.into(), Address::Unix(path))
    }

    /// A UNIX stream listener with an abstract name of its own.
    pub fn abstract_unix(self, name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let label = format!("forwarder-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let address = UnixSocketAddr::from_abstract_name(&label).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("a new name");
        self.inherited(name, listener.into(), Address::Abstract(label))
    }

    /// Any descriptor at all: what should be refused, say.
    pub fn inherit(self, name: &str, descriptor: impl Into<OwnedFd>) -> Self {
        self.inherited(name, descriptor.into(), Address::Unknown)
    }

    fn inherited(mut self, name: &str, descriptor: OwnedFd, address: Address) -> Self {
        self.inherited.push(Inherited { name: name.to_owned(), descriptor, address });
        self
    }

    /// Without LISTEN_FDNAMES, as `systemd-socket-activate` does it.
    pub fn without_names(mut self) -> Self {
        self.names = Names::Absent;
        self
    }

    /// With this LISTEN_FDNAMES, whatever was inherited.
    pub fn with_names(mut self, raw: &str) -> Self {
        self.names = Names::Given(raw.to_owned());
        self
    }

    /// With this LISTEN_FDS, whatever was inherited.
    pub fn with_count(mut self, count: usize) -> Self {
        self.count = Some(count);
        self
    }

    /// Without a notify socket, as `Type=simple` has none.
    pub fn without_notify(mut self) -> Self {
        self.notify = false;
        self
    }

    /// With a watchdog (`WATCHDOG_USEC`, `WATCHDOG_PID`). Nobody bites: the test counts the `WATCHDOG=1`.
    pub fn watchdog(self, interval: Duration) -> Self {
        self.env("WATCHDOG_USEC", interval.as_micros().to_string())
    }

    /// With this RLIMIT_NOFILE, soft and hard.
    pub fn nofile(mut self, limit: u64) -> Self {
        self.nofile = Some(limit);
        self
    }

    /// Starts it. Nothing is awaited: see [`Activated::ready`].
    pub fn start(self) -> Activated {
        for sub in ["config", "run", "bin"] {
            std::fs::create_dir_all(self.dir().join(sub)).expect("the test's directory is writable");
        }
        let systemctl = Path::new(SOURCE).join("tests/fakes/systemctl");
        std::os::unix::fs::symlink(systemctl, self.dir().join("bin/systemctl")).expect("the directory is new");
        let notifications = Notifications::at(self.dir().join("notify"));
        let process = self.spawn(&notifications);
        Activated { process, earlier: Vec::new(), notifications, with: self }
    }

    fn spawn(&self, notifications: &Notifications) -> Process {
        // systemd puts the sockets first and the store behind them
        let sockets = self.inherited.iter().map(|i| (i.name.clone(), i.descriptor.try_clone().expect("a descriptor")));
        let (names, descriptors): (Vec<String>, Vec<OwnedFd>) = sockets.chain(notifications.store()).unzip();

        // The pid must be that of the program itself: the shell learns its own and then becomes the program.
        let mut command = Command::new("/bin/sh");
        let limit = self.nofile.map(|n| format!("ulimit -n {n}; ")).unwrap_or_default();
        let script = format!(
            "{limit}[ -z \"$LISTEN_FDS\" ] || export LISTEN_PID=$$; \
             [ -z \"$WATCHDOG_USEC\" ] || export WATCHDOG_PID=$$; exec \"$@\""
        );
        command.arg("-c").arg(script).arg("sh").arg(&self.program).args(&self.args).stdin(Stdio::null());
        let path = format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.dir().display());
        bare(&mut command).env("PATH", path).env("LANG", "C.UTF-8");
        command.env("HOME", self.dir());
        command.env("XDG_CONFIG_HOME", self.dir().join("config")).env("XDG_RUNTIME_DIR", self.dir().join("run"));
        let count = self.count.unwrap_or(descriptors.len());
        if count > 0 {
            command.env("LISTEN_FDS", count.to_string());
            match &self.names {
                Names::Own => command.env("LISTEN_FDNAMES", names.join(":")),
                Names::Absent => &mut command,
                Names::Given(raw) => command.env("LISTEN_FDNAMES", raw),
            };
        }
        if self.notify {
            command.env("NOTIFY_SOCKET", notifications.path());
        }
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        Process::start_with(command, &descriptors)
    }
}

/// The running service, and the manager's side of it.
pub struct Activated {
    pub process: Process,
    /// Those before a restart, which have ended; whom they have left behind is theirs.
    pub earlier: Vec<Process>,
    pub notifications: Notifications,
    with: Activation,
}

impl Activated {
    /// Waits for `READY=1`.
    #[track_caller]
    pub fn ready(self) -> Self {
        self.notifications.wait_for("READY", |v| v == "1");
        self
    }

    /// Where the listener `index` (in the order of the calls that made them) can be reached.
    pub fn address(&self, index: usize) -> &Address {
        &self.with.inherited[index].address
    }

    /// The port of a TCP or UDP listener.
    pub fn port(&self, index: usize) -> u16 {
        match self.address(index) {
            Address::Tcp(address) | Address::Udp(address) => address.port(),
            other => panic!("{other:?} has no port"),
        }
    }

    /// A new connection to the listener `index`.
    #[track_caller]
    pub fn connect(&self, index: usize) -> Wire {
        match self.address(index) {
            Address::Tcp(address) => Wire::tcp(*address),
            Address::Unix(path) => Wire::unix(path),
            Address::Abstract(name) => Wire::abstract_unix(name),
            other => panic!("{other:?} takes no connection"),
        }
    }

    /// The test's directory: see [`Activation::dir`].
    pub fn dir(&self) -> &Path {
        self.with.dir()
    }

    /// Starts the program again, on the same sockets and with what is in the descriptor store, as systemd does after
    /// the service has ended. The first process must have ended; the notifications heard so far are kept.
    #[track_caller]
    pub fn start_again(&mut self) {
        assert!(!self.process.running(), "it has to end first");
        let next = self.with.spawn(&self.notifications);
        self.earlier.push(std::mem::replace(&mut self.process, next));
    }

    /// `systemctl restart` in short: `how` ends the process, it is started again, and it says `READY=1` once more.
    /// Returns how the first one ended. A reload says `READY=1`, too: one that is not over counts as the next process.
    #[track_caller]
    pub fn restart(&mut self, how: impl FnOnce(&Process)) -> ExitStatus {
        let before = self.notifications.count("READY", "1");
        how(&self.process);
        let status = self.process.wait();
        self.start_again();
        self.notifications.wait(&format!("READY=1, number {}", before + 1), |messages| {
            (messages.iter().filter(|m| m.get("READY") == Some("1")).count() > before).then_some(())
        });
        status
    }

    /// The first half of a restart with live sessions: the service has handed them over and has ended.
    #[track_caller]
    pub fn park(&mut self) {
        self.process.signal(Signal::SIGUSR1);
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait();
        assert!(status.success(), "a handover: {status}");
    }

    /// The socket unit of the listener `index` has stopped: what is started from now on does not get it.
    pub fn forget(&mut self, index: usize) {
        self.with.inherited.remove(index);
    }

    /// What the manager says of itself from now on: `restart` (a job of this unit), `stopping` (the whole manager).
    pub fn manager_says(&self, what: &str) {
        std::fs::write(self.dir().join("bin").join(what), "").expect("the test's directory is writable");
    }

    /// What is started from now on is given this limit of descriptors.
    pub fn set_nofile(&mut self, limit: u64) {
        self.with.nofile = Some(limit);
    }

    /// All lines of all its processes so far, the first one's first.
    pub fn log(&self) -> Vec<String> {
        self.earlier.iter().chain([&self.process]).flat_map(|p| p.stderr.so_far()).collect()
    }

    /// A real stop: `SIGTERM`, within the usual patience the end with exit code 0, and nobody left behind.
    #[track_caller]
    pub fn stop(mut self) -> Process {
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait();
        assert!(status.success(), "SIGTERM: {status}");
        for process in self.earlier.iter_mut().chain([&mut self.process]) {
            process.assert_nobody_left();
        }
        self.process
    }
}
