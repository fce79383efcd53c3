//! `qrexec-connect demo`: the real service, on any Linux machine, without root, Qubes or systemd.
//!
//! A small web page plays the service of another qube. The service itself is started as systemd would start it: it
//! inherits three listening sockets with names, and instead of `qrexec-client-vm` it uses a script that
//! calls [`super::stand_in`]. Everything lives in a temporary directory and ends with this command.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd, RawFd},
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{
    log::counted,
    report::{Code, Fatal},
    sys,
};

/// What the page says; `--check` looks for it.
const PAGE: &str = "It works: these bytes came through qrexec-connect.\n";
/// How long one request of `--check` may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first inherited descriptor (sd_listen_fds(3), SD_LISTEN_FDS_START), and how many the demo passes.
const PLACES: std::ops::Range<RawFd> = 3..6;

/// A listener of the demo.
struct DemoListener {
    /// Its `FileDescriptorName=`.
    name: String,
    what: &'static str,
    address: Address,
    socket: OwnedFd,
}

enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl DemoListener {
    fn tcp(name: String, what: &'static str) -> io::Result<Self> {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok(Self { name, what, address: Address::Tcp(socket.local_addr()?), socket: socket.into() })
    }

    fn unix(name: String, what: &'static str, path: PathBuf) -> io::Result<Self> {
        let socket = UnixListener::bind(&path)?.into();
        Ok(Self { name, what, address: Address::Unix(path), socket })
    }

    /// The command that fetches the page through it.
    fn curl(&self) -> String {
        match &self.address {
            Address::Tcp(address) => format!("curl http://{address}/"),
            Address::Unix(path) => format!("curl --unix-socket {} http://demo/", path.display()),
        }
    }

    /// Fetches the page through it.
    fn fetch(&self) -> io::Result<String> {
        match &self.address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                request(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                request(stream)
            }
        }
    }
}

fn request(mut stream: impl Read + Write) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.0\r\nHost: demo\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply)
}

/// Runs the demo until Ctrl-C, or, to `check`, one request through each listener.
///
/// # Errors
/// What could not be set up, or which request failed.
pub(super) fn run(check: bool) -> Result<ExitCode, Fatal> {
    let failed = |e: io::Error| Fatal::new(Code::Failure, format!("the demo cannot be set up: {e}"));
    let places = reserve().map_err(failed)?;
    let dir = TempDir::with_prefix("qrexec-connect-demo-").map_err(failed)?;
    let listeners = set_up(dir.path()).map_err(failed)?;
    for (mut place, listener) in places.into_iter().zip(&listeners) {
        nix::unistd::dup2(&listener.socket, &mut place).map_err(|e| failed(e.into()))?;
        std::mem::forget(place); // open until the end, for the service to inherit
    }
    let stop = Stop::new().map_err(failed)?;
    if !check {
        show(&listeners); // before the log of the service begins
    }
    let mut service = start(dir.path(), &listeners).map_err(failed)?;
    let result = if check { check_all(&listeners) } else { wait(&mut service, stop) };
    if let Ok(pid) = i32::try_from(service.id()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let _ = service.wait();
    result
}

/// Keeps the places of the descriptors to be passed, before anything else gets them.
fn reserve() -> io::Result<Vec<OwnedFd>> {
    let null = {
        let file = fs::File::open("/dev/null")?;
        fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(PLACES.end)).map(sys::own)? // none of the places is taken by it
    };
    PLACES.map(|number| sys::place(null.as_fd(), number)).collect()
}

/// The page, on a port and a UNIX socket of its own, and the three listeners that lead there.
fn set_up(dir: &Path) -> io::Result<Vec<DemoListener>> {
    let page = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = page.local_addr()?.port();
    let page_path = dir.join("page.sock");
    let unix_page = UnixListener::bind(&page_path)?;
    std::thread::spawn(move || page.incoming().flatten().for_each(serve_page));
    std::thread::spawn(move || unix_page.incoming().flatten().for_each(serve_page));
    Ok(vec![
        DemoListener::tcp(format!("@default qubes.ConnectTCP+{port}"), "a port in another qube (stand-in for qrexec)")?,
        DemoListener::tcp(format!("uds={}", page_path.display()), "a UNIX socket")?,
        DemoListener::unix(
            format!("target=127.0.0.1+{port}"),
            "a TCP address, from a UNIX socket",
            dir.join("here.sock"),
        )?,
    ])
}

/// Answers one request; whoever asks no complete question gets no answer.
fn serve_page(stream: impl Read + Write + Send + 'static) {
    std::thread::spawn(move || {
        let mut stream = stream;
        let (mut asked, mut buffer) = (Vec::new(), [0; 1024]);
        while !asked.windows(4).any(|w| w == b"\r\n\r\n") && asked.len() < 16 << 10 {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(n) => asked.extend_from_slice(&buffer[..n]),
            }
        }
        let head = "HTTP/1.0 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close";
        let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{PAGE}", PAGE.len());
    });
}

/// Starts this very program as systemd would: the sockets from descriptor 3 on, their names, its own process id.
fn start(dir: &Path, listeners: &[DemoListener]) -> io::Result<Child> {
    let program = std::env::current_exe()?;
    let client = dir.join("qrexec-client-vm");
    let words = shell_words(&program);
    fs::write(&client, format!("#!/bin/sh\nexec {words} stand-in \"$@\"\n"))?;
    fs::set_permissions(&client, fs::Permissions::from_mode(0o700))?;
    let names: Vec<_> = listeners.iter().map(|l| l.name.as_str()).collect();
    Command::new("/bin/sh")
        .args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"])
        .arg(&program)
        .args(["serve", "--qrexec-client"])
        .arg(&client)
        .env("LISTEN_FDS", listeners.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        .env_remove("NOTIFY_SOCKET")
        .process_group(0) // Ctrl-C is for the demo, which then ends the service
        .spawn()
}

/// A path as one word of a shell.
fn shell_words(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

fn check_all(listeners: &[DemoListener]) -> Result<ExitCode, Fatal> {
    let mut broken = 0;
    for listener in listeners {
        let result = match listener.fetch() {
            Ok(reply) if reply.ends_with(PAGE) => "ok".to_owned(),
            Ok(reply) => format!("FAILED: an unexpected reply of {}", counted(reply.len(), "byte")),
            Err(e) => format!("FAILED: {e}"),
        };
        broken += usize::from(result != "ok");
        println!("{result:<8}{:<44}{}", listener.what, listener.name);
    }
    if broken > 0 {
        return Err(Fatal::new(Code::Failure, format!("{broken} of {} requests failed", listeners.len())));
    }
    println!("all {} listeners work", listeners.len());
    Ok(ExitCode::SUCCESS)
}

/// Ctrl-C, somebody's SIGTERM, a terminal that closes: from here on none of them ends this process before it has
/// ended the service and cleared up.
struct Stop {
    runtime: Runtime,
    signals: [tokio::signal::unix::Signal; 3],
}

impl Stop {
    fn new() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let within = runtime.enter();
        let signals =
            [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
        drop(within);
        Ok(Self { runtime, signals })
    }

    fn wait(self) {
        let [mut interrupt, mut terminate, mut hangup] = self.signals;
        self.runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
    }
}

fn show(listeners: &[DemoListener]) {
    println!("The service starts, with three sockets as systemd would pass them. Try, in another terminal:\n");
    for listener in listeners {
        println!("  # {}\n  # FileDescriptorName={}\n  {}\n", listener.what, listener.name, listener.curl());
    }
    println!("Its log follows; Ctrl-C ends the demo.\n");
}

/// Waits until the demo is to end.
fn wait(service: &mut Child, stop: Stop) -> Result<ExitCode, Fatal> {
    stop.wait();
    println!();
    match service.try_wait() {
        Ok(Some(status)) => Err(Fatal::new(Code::Failure, format!("the service had ended: {status}"))),
        _ => Ok(ExitCode::SUCCESS),
    }
}
