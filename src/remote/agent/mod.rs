//! The agent in a VM: `qvm-remote serve`, started by dom0 through `qvm-run`, ended with it.
//!
//! It has no key and decides nothing. Clients of the same user come to a socket in `~/.qvm-remote/run`; each gets
//! dom0's greeting with a number of its own, and its frames pass to and fro under a stream number that the agent
//! chooses. What is in the queue of files is brought to dom0 the same way ([`spool`]), so the original's client is
//! served, too, without a call.
//!
//! Nothing here holds more of a stream than its credit: data passes only as far as the other end has asked for it.

mod spool;

pub use spool::{age, directories, read_mac, write_signed};

use std::{
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    files,
    line::{self, DEAD, SILENCE, WAITING},
    pipe::{self, Pipe},
};
use crate::proto::remote::{Buffer, Frame, Hello, MAGIC, Raw, frame::Type};

/// The socket's directory and name below `~/.qvm-remote`.
pub const SOCKET: &str = "run/sock";
/// Where dom0's name for this VM is kept for the durable queue.
pub const NAME: &str = "run/vm";
/// dom0 greets at once.
const GREETING: Duration = Duration::from_secs(10);
/// How long what has arrived may take to be passed on when the channel has ended.
const LINGER: Duration = Duration::from_secs(3);
/// Clients that wait for a free stream, at most.
const CLIENTS: usize = 4096;

/// What comes from dom0 for one stream, as whole frames. Bounded by the stream's credit.
type Inward = mpsc::UnboundedSender<Vec<u8>>;

/// What clients and the queue share.
#[derive(Debug)]
pub(super) struct Agent {
    hello: Hello,
    /// To dom0.
    out: mpsc::Sender<Vec<u8>>,
    streams: Mutex<Streams>,
    /// Streams that may be opened.
    free: Arc<Semaphore>,
    seq: AtomicU64,
}

#[derive(Debug, Default)]
struct Streams {
    last: u32,
    open: HashMap<u32, Inward>,
}

/// An open stream.
#[derive(Debug)]
pub(super) struct Stream {
    number: u32,
    agent: Arc<Agent>,
    pub(super) frames: mpsc::UnboundedReceiver<Vec<u8>>,
    _free: OwnedSemaphorePermit,
}

impl Agent {
    /// Opens a stream with its first frame, when one is free.
    pub(super) async fn open(self: &Arc<Self>, mut first: Vec<u8>) -> Option<Stream> {
        let free = self.free.clone().acquire_owned().await.ok()?;
        let place = self.out.reserve().await.ok()?;
        let (inward, frames) = mpsc::unbounded_channel();
        let number = {
            // number and place in the line are taken together: dom0 wants numbers that only grow
            let mut streams = self.streams.lock().expect("no panic under this lock");
            streams.last += 1;
            let number = streams.last;
            streams.open.insert(number, inward);
            crate::proto::remote::frame::restream(&mut first, number);
            place.send(first);
            number
        };
        Some(Stream { number, agent: self.clone(), frames, _free: free })
    }

    fn deliver(&self, raw: Raw<'_>, bytes: &[u8]) {
        let mut streams = self.streams.lock().expect("no panic under this lock");
        if let Some(inward) = streams.open.get(&raw.stream) {
            let _ = inward.send(bytes.to_vec());
        }
        if matches!(raw.kind, Type::Exit | Type::Reject) {
            streams.open.remove(&raw.stream);
        }
    }
}

impl Stream {
    /// Sends a whole frame of whatever stream number as one of this stream.
    pub(super) async fn send(&self, mut frame: Vec<u8>) -> bool {
        crate::proto::remote::frame::restream(&mut frame, self.number);
        self.agent.out.send(frame).await.is_ok()
    }

    /// Its client is gone: dom0 is told, and what still comes is dropped until the stream's end.
    pub(super) async fn abandon(mut self) {
        self.send(Frame::Cancel.to_vec(1)).await;
        while let Some(bytes) = self.frames.recv().await {
            let Ok(Some((raw, _))) = Raw::split(&bytes) else { return };
            if matches!(raw.kind, Type::Stdout | Type::Stderr) {
                let n = u32::try_from(raw.body.len()).unwrap_or(0);
                self.send(Frame::Credit(n).to_vec(1)).await;
            }
        }
    }
}

/// Serves until dom0 closes the channel.
///
/// # Errors
/// When standard input and output are not dom0's, or the socket cannot be made.
pub async fn run(home: &Path) -> io::Result<()> {
    let (from, to) = (Pipe::reader(duplicate(io::stdin())?)?, Pipe::writer(duplicate(io::stdout())?)?);
    pipe::enlarge(to.fd());
    to.write_all(MAGIC).await?;
    let (mut buffer, mut bytes) = (Buffer::default(), vec![0; 64 << 10]);
    let hello = timeout(GREETING, greeting(&from, &mut buffer, &mut bytes)).await??;
    let run = home.join("run");
    files::private_dir(home)?;
    files::private_dir(&run)?;
    files::replace(&home.join(NAME), 0o600, hello.vm.as_bytes())?;
    let (listener, socket) = listen(&home.join(SOCKET))?;
    let (out, frames) = mpsc::channel(WAITING);
    let streams = usize::from(hello.streams);
    let agent = Arc::new(Agent {
        seq: AtomicU64::new(hello.seq),
        free: Arc::new(Semaphore::new(streams)),
        streams: Mutex::default(),
        out: out.clone(),
        hello,
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(line::write(to, frames));
    tasks.spawn(accept(listener, agent.clone()));
    tasks.spawn(spool::watch(agent.clone(), home.to_owned()));
    let result = read(&from, buffer, bytes, &agent).await;
    socket.remove();
    // what has arrived is still passed on, or written: every stream ends when its last frame was taken
    agent.streams.lock().expect("no panic under this lock").open.clear();
    let all = u32::from(agent.hello.streams);
    let _ = timeout(LINGER, agent.free.acquire_many(all)).await;
    result
}

/// Standard input and output under numbers of their own, so that the runtime may close them.
fn duplicate(stream: impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

async fn greeting(from: &Pipe, buffer: &mut Buffer, bytes: &mut [u8]) -> io::Result<Hello> {
    loop {
        match from.read(bytes).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => buffer.add(&bytes[..n]),
        }
        if let Some((raw, _)) = buffer.frame().map_err(io::Error::other)? {
            return match raw.parse().map_err(io::Error::other)? {
                Frame::Hello(hello) => Ok(hello),
                _ => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }
}

async fn read(from: &Pipe, mut buffer: Buffer, mut bytes: Vec<u8>, agent: &Agent) -> io::Result<()> {
    let mut heard = Instant::now();
    loop {
        while let Some((raw, whole)) = buffer.frame().map_err(io::Error::other)? {
            match raw.kind {
                Type::Ping => {
                    if let Frame::Ping(n) = raw.parse().map_err(io::Error::other)? {
                        let _ = agent.out.try_send(Frame::Pong(n).to_vec(0));
                    }
                }
                Type::Goaway => return Ok(()),
                Type::Pong | Type::Hello => {}
                _ => agent.deliver(raw, whole),
            }
        }
        tokio::select! {
            read = from.read(&mut bytes) => match read? {
                0 => return Ok(()),
                n => {
                    heard = Instant::now();
                    buffer.add(&bytes[..n]);
                }
            },
            () = sleep(SILENCE) => {
                if heard.elapsed() > DEAD {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let _ = agent.out.try_send(Frame::Ping(1).to_vec(0));
            }
        }
    }
}

/// Our own socket file, told from one that a later agent has put in its place.
struct Own {
    path: PathBuf,
    inode: u64,
}

impl Own {
    fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens under a name of its own, then takes the place of whatever agent was there before.
fn listen(path: &Path) -> io::Result<(UnixListener, Own)> {
    let temporary = path.with_extension(std::process::id().to_string());
    let _ = fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600))?;
    let inode = fs::symlink_metadata(&temporary)?.ino();
    fs::rename(&temporary, path)?;
    Ok((listener, Own { path: path.to_owned(), inode }))
}

async fn accept(listener: UnixListener, agent: Arc<Agent>) {
    let own = nix::unistd::getuid().as_raw();
    let places = Arc::new(Semaphore::new(CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                if stream.peer_cred().is_ok_and(|peer| peer.uid() == own) {
                    let agent = agent.clone();
                    clients.spawn(async move {
                        let _ = client(stream, agent).await;
                        drop(place);
                    });
                }
                while clients.try_join_next().is_some() {}
            }
            Err(_) => sleep(Duration::from_millis(50)).await, // out of descriptors; some will be closed
        }
    }
}

/// One client: greeted, heard, given a stream for its request.
async fn client(stream: UnixStream, agent: Arc<Agent>) -> io::Result<()> {
    let fd = stream.into_std()?;
    let (from, to) = (Pipe::reader(fd.as_fd().try_clone_to_owned()?)?, Pipe::writer(fd.into())?);
    let seq = agent.seq.fetch_add(1, Relaxed);
    to.write_all(&Frame::Hello(Hello { seq, ..agent.hello.clone() }).to_vec(0)).await?;
    let (mut buffer, mut bytes) = (Buffer::default(), vec![0; 64 << 10]);
    let mut stream = loop {
        if let Some((raw, whole)) = buffer.frame().map_err(io::Error::other)? {
            if raw.kind != Type::Open {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let first = whole.to_vec();
            if agent.free.available_permits() == 0 {
                to.write_all(&Frame::Wait("for other commands of this qube to end").to_vec(1)).await?;
            }
            let Some(stream) = agent.open(first).await else { return Ok(()) };
            break stream;
        }
        match from.read(&mut bytes).await? {
            0 => return Ok(()),
            n => buffer.add(&bytes[..n]),
        }
    };
    loop {
        while let Some((raw, whole)) = buffer.frame().map_err(io::Error::other)? {
            if !raw.from_vm() || matches!(raw.kind, Type::Open | Type::Legacy | Type::Ping | Type::Pong) {
                stream.abandon().await;
                return Err(io::ErrorKind::InvalidData.into());
            }
            stream.send(whole.to_vec()).await;
        }
        tokio::select! {
            frame = stream.frames.recv() => {
                let Some(mut frame) = frame else { return Ok(()) };
                crate::proto::remote::frame::restream(&mut frame, 1);
                // small ones that wait already go together
                while frame.len() < 4096 {
                    let Ok(mut more) = stream.frames.try_recv() else { break };
                    crate::proto::remote::frame::restream(&mut more, 1);
                    frame.extend_from_slice(&more);
                }
                if to.write_all(&frame).await.is_err() {
                    stream.abandon().await;
                    return Ok(());
                }
            }
            read = from.read(&mut bytes) => match read {
                Ok(n) if n > 0 => buffer.add(&bytes[..n]),
                _ => {
                    stream.abandon().await;
                    return Ok(());
                }
            },
        }
    }
}
