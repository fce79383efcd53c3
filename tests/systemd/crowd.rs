//! Many sessions at once, each of whose bytes is known: peers and, where they lead, a server, both of the test.
//!
//! # Theory
//! A peer first says in nine bytes what kind of stream it wants and the seed of its pattern; then both sides play
//! their parts until the crowd is dismissed, and verify every byte and the count of them at the end:
//!
//! * **Echo**: what the peer sends comes back. Both directions are busy until the end.
//! * **PeerEnded**: the peer ends its sending at once, and the server sends the pattern.
//! * **ServerEnded**: the server ends its sending at once, and the peer sends the pattern.
//! * **Plain**: an echo by somebody else, who knows nothing of the nine bytes.
//!
//! A session that is cut, or one byte that is lost, doubled or changed, fails [`Crowd::dismiss`].

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    runtime::Runtime,
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::support::{PATIENCE, Pattern, Wire, eventually};

/// A place to connect to.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Tcp(u16),
    Unix(PathBuf),
}

impl Place {
    fn wire(&self) -> io::Result<Wire> {
        Ok(match self {
            Self::Tcp(port) => {
                let address = SocketAddr::from(([127, 0, 0, 1], *port));
                Wire::from_tcp(std::net::TcpStream::connect_timeout(&address, PATIENCE)?)
            }
            Self::Unix(path) => Wire::from_unix(std::os::unix::net::UnixStream::connect(path)?),
        })
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Echo,
    PeerEnded,
    ServerEnded,
    Plain,
}

/// How much a peer sends: chunks of random sizes, with a pause after each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    largest: usize,
    pause: Duration,
}

impl Rate {
    /// For thousands: a message twice a second.
    pub(crate) const CALM: Self = Self { largest: 1500, pause: Duration::from_millis(500) };
    /// For those who are merely there.
    pub(crate) const RARE: Self = Self { largest: 200, pause: Duration::from_secs(10) };
    /// Without a pause: the service always moves bytes.
    pub(crate) const FLOOD: Self = Self { largest: 300_000, pause: Duration::ZERO };
    /// For some: all buffers full, all the time, of which the processors are to have something left.
    pub(crate) const BUSY: Self = Self { largest: 200_000, pause: Duration::from_millis(10) };
}

/// What all parts of a crowd share.
struct Shared {
    dismissed: watch::Sender<bool>,
    next: AtomicU64,
    connected: AtomicUsize,
    /// Peers that got their first byte.
    served: AtomicUsize,
    bytes: AtomicU64,
    /// The longest time that a BUSY echo waited for bytes, in microseconds.
    stall: AtomicU64,
    /// What the server has to say of a stream, by its seed: how many bytes it received or sent, all in order.
    verdicts: Mutex<HashMap<u64, Result<u64, String>>>,
}

/// See the module.
pub(crate) struct Crowd {
    runtime: Runtime,
    shared: Arc<Shared>,
    peers: Vec<JoinHandle<Result<(), String>>>,
}

impl Crowd {
    /// A crowd of none yet.
    pub(crate) fn new() -> Self {
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit, everybody may");
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let shared = Shared {
            dismissed: watch::Sender::new(false),
            next: AtomicU64::new(1),
            connected: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            stall: AtomicU64::new(0),
            verdicts: Mutex::default(),
        };
        Self { runtime: runtime.expect("threads can be had"), shared: Arc::new(shared), peers: Vec::new() }
    }

    /// Serves the streams that arrive at `place`.
    pub(crate) fn serve(&self, place: &Place) {
        let _inside = self.runtime.enter();
        let shared = self.shared.clone();
        match place {
            Place::Tcp(port) => {
                let listener = std::net::TcpListener::bind(("127.0.0.1", *port)).expect("a free port");
                listener.set_nonblocking(true).expect("a socket");
                nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXCONN).expect("a socket");
                let listener = TcpListener::from_std(listener).expect("a runtime");
                self.runtime.spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        let _ = stream.set_nodelay(true);
                        tokio::spawn(serve_one(stream, shared.clone()));
                    }
                });
            }
            Place::Unix(path) => {
                let listener = std::os::unix::net::UnixListener::bind(path).expect("a free path");
                listener.set_nonblocking(true).expect("a socket");
                nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXCONN).expect("a socket");
                let listener = UnixListener::from_std(listener).expect("a runtime");
                self.runtime.spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        tokio::spawn(serve_one(stream, shared.clone()));
                    }
                });
            }
        }
    }

    /// `n` more peers.
    pub(crate) fn join(&mut self, n: usize, place: &Place, kind: Kind, rate: Rate) {
        for _ in 0..n {
            let (shared, place) = (self.shared.clone(), place.clone());
            let seed = shared.next.fetch_add(1, Relaxed);
            self.peers.push(self.runtime.spawn(async move {
                let result = match &place {
                    Place::Tcp(port) => match TcpStream::connect(("127.0.0.1", *port)).await {
                        Ok(stream) => {
                            let _ = stream.set_nodelay(true);
                            play(stream, kind, seed, rate, &shared).await
                        }
                        Err(e) => Err(e),
                    },
                    Place::Unix(path) => match connect_unix(path).await {
                        Ok(stream) => play(stream, kind, seed, rate, &shared).await,
                        Err(e) => Err(e),
                    },
                };
                result.map_err(|e| format!("{kind:?} {seed} at {place:?}: {e}"))
            }));
        }
    }

    /// How many peers have joined.
    pub(crate) fn len(&self) -> usize {
        self.peers.len()
    }

    /// Waits until all but `others` of the peers have heard of their server.
    #[track_caller]
    pub(crate) fn wait_until_served_but(&self, others: usize) {
        let served = || self.shared.served.load(Relaxed);
        let deadline = Instant::now() + PATIENCE;
        while served() + others < self.len() {
            let failed = self.peers.iter().filter(|peer| peer.is_finished()).count();
            assert!(Instant::now() < deadline && failed == 0, "{} of {} served, {failed} failed", served(), self.len());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Bytes verified so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Relaxed)
    }

    /// The longest time that a busy echo waited for bytes since this was asked for last.
    pub(crate) fn longest_stall(&self) -> Duration {
        Duration::from_micros(self.shared.stall.swap(0, Relaxed))
    }

    /// Waits until `more` bytes have been verified from now on.
    #[track_caller]
    pub(crate) fn wait_for_bytes(&self, more: u64) {
        let goal = self.bytes() + more;
        eventually(&format!("{more} more bytes flow"), || self.bytes() >= goal);
    }

    /// Peers whose session is over before its time.
    pub(crate) fn gone(&self) -> usize {
        self.peers.iter().filter(|peer| peer.is_finished()).count()
    }

    /// Waits until `n` of the peers' sessions are over before their time.
    #[track_caller]
    pub(crate) fn wait_for_gone(&self, n: usize) {
        eventually(&format!("{n} sessions are over"), || self.gone() >= n);
    }

    /// All streams end, each verified to its last byte; what was wrong with those that were not.
    pub(crate) fn dismiss(self) -> Result<u64, Vec<String>> {
        self.shared.dismissed.send_replace(true);
        let Self { runtime, shared, peers } = self;
        let wrong: Vec<String> = runtime.block_on(async {
            let mut wrong = Vec::new();
            for peer in peers {
                match timeout(PATIENCE, peer).await {
                    Ok(Ok(Ok(()))) => {}
                    Ok(Ok(Err(why))) => wrong.push(why),
                    Ok(Err(panic)) => wrong.push(panic.to_string()),
                    Err(_) => wrong.push("a stream did not end".to_owned()),
                }
            }
            wrong
        });
        runtime.shutdown_background();
        if wrong.is_empty() { Ok(shared.bytes.load(Relaxed)) } else { Err(wrong) }
    }

    /// The same, where nothing may be wrong; the number of bytes.
    #[track_caller]
    pub(crate) fn dismiss_unharmed(self) -> u64 {
        let n = self.len();
        self.dismiss().unwrap_or_else(|wrong| {
            panic!("{} of {n} sessions were harmed:\n  {}", wrong.len(), wrong[..wrong.len().min(20)].join("\n  "))
        })
    }
}

/// A UNIX socket's connect(2) does not wait for room in the backlog when it is non-blocking: EAGAIN.
async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(Duration::from_millis(5)).await,
            result => return result,
        }
    }
}

/// The peer's part.
async fn play<S>(stream: S, kind: Kind, seed: u64, rate: Rate, shared: &Arc<Shared>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    shared.connected.fetch_add(1, Relaxed);
    let (mut from, mut to) = tokio::io::split(stream);
    if kind != Kind::Plain {
        let mut header = [0; 9];
        header[0] = match kind {
            Kind::Echo | Kind::Plain => b'e',
            Kind::PeerEnded => b'd',
            Kind::ServerEnded => b'u',
        };
        header[1..].copy_from_slice(&seed.to_le_bytes());
        to.write_all(&header).await?;
    }
    let sending = async {
        let sent = match kind {
            Kind::PeerEnded => 0,
            _ => send_pattern(&mut to, seed, rate, shared).await?,
        };
        to.shutdown().await?;
        Ok::<_, io::Error>(sent)
    };
    let busy = kind == Kind::Echo && rate.largest == Rate::BUSY.largest;
    let receiving = async {
        let first = AtomicUsize::new(0);
        let count = receive_pattern(&mut from, seed, shared, busy, || {
            if first.fetch_add(1, Relaxed) == 0 {
                shared.served.fetch_add(1, Relaxed);
            }
        });
        let count = count.await?;
        if kind == Kind::ServerEnded {
            shared.served.fetch_add(1, Relaxed);
        }
        Ok(count)
    };
    let (sent, received) = tokio::try_join!(sending, receiving)?;
    let (expected, found) = match kind {
        Kind::Echo | Kind::Plain => (sent, received),
        Kind::PeerEnded => (verdict(seed, shared).await?, received),
        Kind::ServerEnded => (sent, verdict(seed, shared).await?),
    };
    if kind == Kind::ServerEnded && received != 0 {
        return Err(io::Error::other(format!("{received} bytes came from a server that sends none")));
    }
    if expected != found {
        return Err(io::Error::other(format!("{found} bytes arrived of {expected}")));
    }
    Ok(())
}

/// What the server says of the stream, as soon as it does.
async fn verdict(seed: u64, shared: &Shared) -> io::Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(verdict) = shared.verdicts.lock().expect("no panic under it").remove(&seed) {
            return verdict.map_err(|why| io::Error::other(format!("the server: {why}")));
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("the server never came to the end"));
        }
        sleep(Duration::from_millis(3)).await;
    }
}

/// The server's part.
async fn serve_one<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S, shared: Arc<Shared>) {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut header = [0; 9];
    if from.read_exact(&mut header).await.is_err() {
        return;
    }
    let mut seed = [0; 8];
    seed.copy_from_slice(&header[1..]);
    let seed = u64::from_le_bytes(seed);
    let result = match header[0] {
        b'e' => {
            let _ = tokio::io::copy(&mut from, &mut to).await; // the peer verifies it
            let _ = to.shutdown().await;
            return;
        }
        b'd' => {
            let sent = send_pattern(&mut to, seed, Rate::CALM, &shared).await;
            let _ = to.shutdown().await;
            sent
        }
        _ => {
            let _ = to.shutdown().await;
            receive_pattern(&mut from, seed, &shared, false, || {}).await
        }
    };
    let verdict = result.map_err(|e| e.to_string());
    shared.verdicts.lock().expect("no panic under it").insert(seed, verdict);
}

/// Sends the pattern until the crowd is dismissed; how many bytes.
async fn send_pattern(to: &mut (impl AsyncWrite + Unpin), seed: u64, rate: Rate, shared: &Shared) -> io::Result<u64> {
    let mut dismissed = shared.dismissed.subscribe();
    let (mut pattern, mut dice) = (Pattern::new(seed), Pattern::new(!seed));
    let mut buffer = vec![0; rate.largest];
    while !*dismissed.borrow_and_update() {
        let mut roll = [0; 8];
        dice.fill(&mut roll);
        let roll = u64::from_le_bytes(roll);
        let n = 1 + (roll % rate.largest as u64) as usize;
        pattern.fill(&mut buffer[..n]);
        to.write_all(&buffer[..n])
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("sending, at {}: {e}", pattern.at())))?;
        // not all at the same moment: half to three halves of the pause
        let pause = rate.pause / 2 + rate.pause.mul_f64((roll >> 40) as f64 / f64::from(1 << 24));
        let _ = timeout(pause, dismissed.changed()).await;
    }
    Ok(pattern.at())
}

/// Verifies the pattern to the end of the stream; how many bytes.
async fn receive_pattern(
    from: &mut (impl AsyncRead + Unpin),
    seed: u64,
    shared: &Shared,
    measured: bool,
    arrived: impl Fn(),
) -> io::Result<u64> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let began = Instant::now();
        let n = from
            .read(&mut buffer)
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("reading, at {}: {e}", pattern.at())))?;
        if measured && pattern.at() > 0 {
            let waited = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            shared.stall.fetch_max(waited, Relaxed);
        }
        if n == 0 {
            return Ok(pattern.at());
        }
        arrived();
        pattern.check(&buffer[..n]).map_err(io::Error::other)?;
        shared.bytes.fetch_add(n as u64, Relaxed);
    }
}

/// Somebody who connects, has a few bytes echoed and ends, again and again.
pub(crate) struct Knocker {
    attempts: Arc<AtomicUsize>,
    stop: Arc<std::sync::atomic::AtomicBool>,
    thread: Option<thread::JoinHandle<Knocks>>,
}

impl Drop for Knocker {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What became of the connections.
#[derive(Debug, Default)]
pub(crate) struct Knocks {
    pub(crate) attempts: usize,
    pub(crate) failures: Vec<String>,
    pub(crate) longest: Duration,
}

impl Knocker {
    /// Begins. What is at `place` leads to the server of a [`Crowd`].
    pub(crate) fn start(place: Place) -> Self {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let attempts = Arc::new(AtomicUsize::new(0));
        let (told, counted) = (stop.clone(), attempts.clone());
        let thread = thread::spawn(move || {
            let mut knocks = Knocks::default();
            while !told.load(Relaxed) {
                let began = Instant::now();
                knocks.attempts += 1;
                if let Err(e) = knock(&place) {
                    knocks.failures.push(format!("attempt {}: {e}", knocks.attempts));
                }
                knocks.longest = knocks.longest.max(began.elapsed());
                counted.store(knocks.attempts, Relaxed);
                thread::sleep(Duration::from_millis(2)); // the others want the processors, too
            }
            knocks
        });
        Self { attempts, stop, thread: Some(thread) }
    }

    /// Waits until `n` more connections have come to their end: on a busy machine they may be slow.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, n: usize) {
        let goal = self.attempts.load(Relaxed) + n;
        eventually(&format!("{n} more attempts"), || self.attempts.load(Relaxed) >= goal);
    }

    /// Waits until a further connection of each has come to its end.
    #[track_caller]
    pub(crate) fn wait_for_each(all: &[Self]) {
        let goals: Vec<usize> = all.iter().map(|knocker| knocker.attempts.load(Relaxed) + 1).collect();
        let reached = || all.iter().zip(&goals).all(|(knocker, goal)| knocker.attempts.load(Relaxed) >= *goal);
        eventually("each has made an attempt more", reached);
    }

    /// Ends; not one connection was refused or lost, and there were more than `n`.
    #[track_caller]
    pub(crate) fn assert_never_refused(mut self, n: usize) -> Knocks {
        self.stop.store(true, Relaxed);
        let thread = self.thread.take().expect("taken only here and at the end");
        let knocks = thread.join().expect("it does not panic");
        assert!(knocks.failures.is_empty(), "{} of {}: {:?}", knocks.failures.len(), knocks.attempts, knocks.failures);
        assert!(knocks.attempts > n, "only {} attempts", knocks.attempts);
        knocks
    }
}

fn knock(place: &Place) -> io::Result<()> {
    use io::{Read as _, Write as _};
    let mut wire = place.wire()?;
    wire.write_all(b"e\0\0\0\0\0\0\0\0hello")?;
    let mut answer = [0; 5];
    wire.read_exact(&mut answer)?;
    if answer != *b"hello" {
        return Err(io::Error::other(format!("answered {:?}", answer.escape_ascii().to_string())));
    }
    wire.half_close();
    let mut rest = Vec::new();
    io::Read::read_to_end(&mut wire, &mut rest)?;
    if rest.is_empty() { Ok(()) } else { Err(io::Error::other(format!("{} bytes too many", rest.len()))) }
}

/// Pairs whose sessions end after a few bytes, again and again: by an end of the peer, or by a reset of it. Whatever the
/// service goes through, the server must hear of each ending as what it was.
pub(crate) struct Enders {
    stop: Arc<std::sync::atomic::AtomicBool>,
    peers: Vec<thread::JoinHandle<usize>>,
    wrong: Arc<Mutex<Vec<String>>>,
}

impl Enders {
    /// Begins: what is at `place` leads to this port, which is served here. Without `resets` every session ends by an end.
    pub(crate) fn start(n: usize, place: &Place, server: u16, resets: bool) -> Self {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let listener = std::net::TcpListener::bind(("127.0.0.1", server)).expect("a free port");
        let verdicts = wrong.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let verdicts = verdicts.clone();
                thread::spawn(move || {
                    let judged = ended_as_said(&stream);
                    judged.err().into_iter().for_each(|why| verdicts.lock().expect("no panic under it").push(why));
                });
            }
        });
        let peer = |number: usize| {
            let (stop, wrong, place) = (stop.clone(), wrong.clone(), place.clone());
            thread::spawn(move || {
                let mut count = 0;
                while !stop.load(Relaxed) {
                    if let Err(e) = end(&place, resets && (count + number) % 2 == 0, count) {
                        wrong.lock().expect("no panic under it").push(format!("peer {number}, session {count}: {e}"));
                    }
                    count += 1;
                }
                count
            })
        };
        Self { peers: (0..n).map(peer).collect(), stop, wrong }
    }

    /// Ends it: the number of sessions, and what was wrong.
    pub(crate) fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Relaxed);
        let count = self.peers.into_iter().map(|peer| peer.join().expect("no panic")).sum();
        (count, std::mem::take(&mut *self.wrong.lock().expect("no panic under it")))
    }
}

/// A session that ends by a `reset` of the peer or by an end, after all of its bytes have come back.
fn end(place: &Place, reset: bool, count: usize) -> io::Result<()> {
    use std::io::{Read as _, Write as _};
    let mut wire = place.wire()?;
    let mut sent = vec![if reset { b'r' } else { b'e' }; 1 + count * 7919 % 100_000];
    sent[1..].fill(b'.');
    let mut back = wire.try_clone()?;
    let writing = thread::spawn(move || back.write_all(&sent).map(|()| sent));
    let mut got = vec![0; 1 + count * 7919 % 100_000];
    wire.read_exact(&mut got)?;
    let sent = writing.join().map_err(|_| io::Error::other("a panic"))??;
    if got != sent {
        return Err(io::Error::other("other bytes came back"));
    }
    if reset {
        wire.reset();
        return Ok(());
    }
    wire.half_close();
    match wire.read(&mut got)? {
        0 => Ok(()),
        n => Err(io::Error::other(format!("{n} bytes after the end"))),
    }
}

/// Echoes a session to its end, which its first byte tells.
fn ended_as_said(mut stream: &std::net::TcpStream) -> Result<(), String> {
    use std::io::{Read as _, Write as _};
    let (mut buffer, mut said, mut count) = (vec![0; 64 << 10], None, 0_usize);
    let ended = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break b'e',
            Ok(n) => {
                said.get_or_insert(buffer[0]);
                count += n;
                if stream.write_all(&buffer[..n]).is_err() {
                    break b'r';
                }
            }
            Err(_) => break b'r',
        }
    };
    // A connection without a byte was dialled by a process that was killed, and dialled again by the next one.
    match said {
        None => Ok(()),
        Some(said) if said == ended => Ok(()),
        Some(said) => Err(format!(
            "a session of {count} bytes that was to end by {:?} ended by {:?}",
            said as char, ended as char
        )),
    }
}
