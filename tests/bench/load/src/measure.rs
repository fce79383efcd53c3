//! The measurements.

use std::{
    io::BufRead as _,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        resource::{UsageWho, getrusage},
        socket::{self, Shutdown, SockFlag},
        time::TimeValLike as _,
    },
    unistd::{read, write},
};

use crate::{
    Options,
    endpoint::{Endpoint, accept, limit},
    fail,
};

/// A prime: a byte that is lost, doubled or moved shows.
const PERIOD: usize = 251;
/// Bytes of one read or write of a bulk transfer.
const PIECE: usize = 128 << 10;

static SENT: AtomicU64 = AtomicU64::new(0);
static RECEIVED: AtomicU64 = AtomicU64::new(0);
static WRONG: AtomicU64 = AtomicU64::new(0);

fn ends(options: &Options) -> (Endpoint, OwnedFd, i64) {
    let endpoint = |key| Endpoint::parse(options.text(key).unwrap_or_else(|| fail(&format!("--{key} is missing"))));
    let listener = endpoint("backend").listen(options.text("backend-ns"));
    (endpoint("target"), listener, options.number("timeout", 20))
}

/// User and system seconds of this process so far.
pub fn own_cpu() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0.0, |u| (u.user_time().num_microseconds() + u.system_time().num_microseconds()) as f64 / 1e6)
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match write(fd, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(e) => fail(&format!("write: {e}")),
        }
    }
}

fn read_exact(fd: &OwnedFd, mut bytes: &mut [u8]) {
    while !bytes.is_empty() {
        match read(fd, bytes) {
            Ok(0) => fail("unexpected end"),
            Ok(n) => bytes = &mut bytes[n..],
            Err(Errno::EINTR) => {}
            Err(e) => fail(&format!("read: {e}")),
        }
    }
}

fn pattern() -> Vec<u8> {
    (0..PIECE + PERIOD).map(|i| u8::try_from(i % PERIOD).unwrap_or(0)).collect()
}

/// Sends the pattern until `stop`, then half-closes.
fn send(fd: &OwnedFd, stop: &AtomicBool) {
    let (pattern, mut at, mut total) = (pattern(), 0, 0);
    while !stop.load(Relaxed) {
        match write(fd, &pattern[at..at + PIECE]) {
            Ok(n) => (at, total) = ((at + n) % PERIOD, total + n as u64),
            Err(Errno::EINTR) => {}
            Err(e) => {
                eprintln!("load: send: {e}");
                break;
            }
        }
    }
    let _ = socket::shutdown(fd.as_raw_fd(), Shutdown::Write);
    SENT.fetch_add(total, Relaxed);
}

/// Receives to the end.
fn receive(fd: &OwnedFd, verify: bool) {
    let (pattern, mut buffer, mut at, mut total) = (pattern(), vec![0; PIECE], 0, 0);
    loop {
        match read(fd, &mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                if verify && buffer[..n] != pattern[at..at + n] {
                    WRONG.fetch_add(1, Relaxed);
                }
                (at, total) = ((at + n) % PERIOD, total + n as u64);
            }
            Err(Errno::EINTR) => {}
            Err(e) => {
                eprintln!("load: receive: {e}");
                break;
            }
        }
    }
    RECEIVED.fetch_add(total, Relaxed);
}

/// Streams as fast as they go.
pub fn bulk(options: &Options) {
    let (target, listener, patience) = ends(options);
    let streams: usize = options.number("streams", 1);
    let dir = options.text("dir").unwrap_or("up");
    let (up, down) = (dir != "down", dir != "up");
    let verify = options.text("verify").is_some();
    let stop = Arc::new(AtomicBool::new(false));
    let start = Arc::new(Barrier::new(2 * streams * (usize::from(up) + usize::from(down)) + 1));
    let (mut threads, mut held) = (Vec::new(), Vec::new());
    for _ in 0..streams {
        // One byte each way first: the whole path is there before the clock starts.
        let near = target.connect();
        write_all(&near, b"g");
        let far = accept(&listener, SockFlag::empty()).unwrap_or_else(|e| fail(&format!("accept: {e}")));
        let mut byte = [0];
        read_exact(&far, &mut byte);
        write_all(&far, b"g");
        read_exact(&near, &mut byte);
        for (fd, sends, receives) in [(Arc::new(near), up, down), (Arc::new(far), down, up)] {
            limit(&fd, patience);
            if sends {
                let (fd, stop, start) = (fd.clone(), stop.clone(), start.clone());
                threads.push(thread::spawn(move || drop((start.wait(), send(&fd, &stop)))));
            }
            if receives {
                let (fd, start) = (fd.clone(), start.clone());
                threads.push(thread::spawn(move || drop((start.wait(), receive(&fd, verify)))));
            }
            held.push(fd);
        }
    }
    let cpu = own_cpu();
    start.wait();
    let began = Instant::now();
    thread::sleep(Duration::from_secs_f64(options.number("secs", 2.0)));
    stop.store(true, Relaxed);
    threads.into_iter().for_each(|t| drop(t.join()));
    let (secs, cpu) = (began.elapsed().as_secs_f64(), own_cpu() - cpu);
    let (sent, received) = (SENT.load(Relaxed), RECEIVED.load(Relaxed));
    println!(
        "{{\"secs\":{secs:.3},\"bytes\":{received},\"gbit_s\":{:.3},\"gib\":{:.4},\"lost_bytes\":{},\"wrong\":{},\"load_cpu_s\":{cpu:.3}}}",
        received as f64 * 8.0 / secs / 1e9,
        received as f64 / f64::from(1 << 30),
        sent.saturating_sub(received),
        WRONG.load(Relaxed)
    );
}

/// A thread that accepts for ever and sends back what comes; it closes at an end.
fn echo(listener: OwnedFd) {
    thread::spawn(move || {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap_or_else(|e| fail(&format!("epoll: {e}")));
        let _ = fcntl(&listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        let _ = epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, u64::MAX));
        let mut open: Vec<Option<OwnedFd>> = Vec::new();
        let (mut events, mut buffer) = (vec![EpollEvent::empty(); 256], vec![0; 65_536]);
        loop {
            let n = epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
            for event in &events[..n] {
                if event.data() == u64::MAX {
                    while let Ok(fd) = accept(&listener, SockFlag::empty()) {
                        let index = usize::try_from(fd.as_raw_fd()).unwrap_or(0);
                        open.resize_with(open.len().max(index + 1), || None);
                        let _ = epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, index as u64));
                        open[index] = Some(fd);
                    }
                    continue;
                }
                let slot = &mut open[usize::try_from(event.data()).unwrap_or(0)];
                let Some(fd) = slot else { continue };
                match read(&*fd, &mut buffer) {
                    Ok(n) if n > 0 => write_all(fd, &buffer[..n]),
                    _ => *slot = None,
                }
            }
        }
    });
}

/// Nanoseconds, to be told as percentiles.
#[derive(Default)]
pub struct Times(Vec<u32>);

impl Times {
    pub fn add(&mut self, since: Instant) {
        self.0.push(u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn json(&mut self, secs: f64, cpu: f64) -> String {
        self.0.sort_unstable();
        let at = |q: f64| self.0.get(((self.0.len() as f64 - 1.0) * q) as usize).map_or(0.0, |ns| f64::from(*ns) / 1e3);
        format!(
            "\"secs\":{secs:.3},\"count\":{},\"per_s\":{:.0},\"p50_us\":{:.1},\"p99_us\":{:.1},\"load_cpu_s\":{cpu:.3}",
            self.0.len(),
            self.0.len() as f64 / secs,
            at(0.5),
            at(0.99)
        )
    }
}

/// When a measurement is over: after a number of operations, or a time.
pub struct Until(Option<usize>, Duration, Instant);

impl Until {
    pub fn new(options: &Options) -> Self {
        let count = options.text("count").map(|_| options.number("count", 1));
        Self(count, Duration::from_secs_f64(options.number("secs", 2.0)), Instant::now())
    }

    pub fn secs(&self) -> f64 {
        self.2.elapsed().as_secs_f64()
    }

    pub fn over(&self, done: usize) -> bool {
        self.0.map_or_else(|| self.2.elapsed() >= self.1, |count| done >= count)
    }
}

/// Requests of a few bytes, answered in kind.
pub fn messages(options: &Options) {
    let (target, listener, patience) = ends(options);
    let conns: usize = options.number("conns", 1);
    let message = vec![0x5a; options.number("size", 64)];
    let mut buffer = vec![0; message.len()];
    echo(listener);
    let fds: Vec<OwnedFd> = (0..conns).map(|_| target.connect()).collect();
    for fd in &fds {
        limit(fd, patience);
        write_all(fd, &message);
        read_exact(fd, &mut buffer);
    }
    let (mut times, cpu, until) = (Times::default(), own_cpu(), Until::new(options));
    if let [fd] = fds.as_slice() {
        while !until.over(times.0.len()) {
            let began = Instant::now();
            write_all(fd, &message);
            read_exact(fd, &mut buffer);
            times.add(began);
        }
    } else {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap_or_else(|e| fail(&format!("epoll: {e}")));
        let mut state = Vec::new();
        for (index, fd) in fds.iter().enumerate() {
            let _ = epoll.add(fd.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64));
            state.push((Instant::now(), 0));
            write_all(fd, &message);
        }
        let mut events = vec![EpollEvent::empty(); 256];
        let wait = EpollTimeout::try_from(Duration::from_secs(patience.unsigned_abs())).unwrap_or(EpollTimeout::NONE);
        while !until.over(times.0.len()) {
            let n = epoll.wait(&mut events, wait).unwrap_or(0);
            if n == 0 {
                fail("messages stalled");
            }
            for event in &events[..n] {
                let index = usize::try_from(event.data()).unwrap_or(0);
                let (began, got) = &mut state[index];
                match read(&fds[index], &mut buffer[*got..]) {
                    Ok(n) if n > 0 => *got += n,
                    _ => fail("a connection was lost"),
                }
                if *got == message.len() {
                    times.add(*began);
                    (*began, *got) = (Instant::now(), 0);
                    write_all(&fds[index], &message);
                }
            }
        }
    }
    let secs = until.2.elapsed().as_secs_f64();
    println!("{{{}}}", times.json(secs, own_cpu() - cpu));
}

/// Connect, one byte there and back, close; many clients at a time.
pub fn churn(options: &Options) {
    let (target, listener, patience) = ends(options);
    let clients: usize = options.number("clients", 32);
    echo(listener);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap_or_else(|e| fail(&format!("epoll: {e}")));
    let (mut times, mut failed, cpu, until) = (Times::default(), 0u64, own_cpu(), Until::new(options));
    let mut state: Vec<Option<(OwnedFd, Instant, bool)>> = (0..clients).map(|_| None).collect();
    let mut idle: Vec<usize> = (0..clients).collect();
    let mut events = vec![EpollEvent::empty(); 256];
    let mut last = Instant::now();
    while !until.over(times.0.len()) {
        let mut again = Vec::new();
        for index in idle.drain(..) {
            let began = Instant::now();
            match target.begin() {
                Ok(fd) => {
                    // On loopback it is connected by now: send at once, else when there is room.
                    let sent = write(&fd, b"x") == Ok(1);
                    let wanted = if sent { EpollFlags::EPOLLIN } else { EpollFlags::EPOLLOUT };
                    let _ = epoll.add(&fd, EpollEvent::new(wanted, index as u64));
                    state[index] = Some((fd, began, sent));
                }
                Err(Errno::EAGAIN | Errno::EADDRNOTAVAIL) => again.push(index),
                Err(_) => {
                    failed += 1;
                    again.push(index);
                }
            }
        }
        idle = again;
        let n = epoll.wait(&mut events, if idle.is_empty() { 1000u16 } else { 1 }).unwrap_or(0);
        if n > 0 {
            last = Instant::now();
        } else if last.elapsed() > Duration::from_secs(patience.unsigned_abs()) {
            fail("churn stalled");
        }
        for event in &events[..n] {
            let index = usize::try_from(event.data()).unwrap_or(0);
            let Some((fd, began, sent)) = &mut state[index] else { continue };
            if !*sent {
                if write(&*fd, b"x") == Ok(1) {
                    *sent = true;
                    let _ = epoll.modify(&*fd, &mut EpollEvent::new(EpollFlags::EPOLLIN, index as u64));
                    continue;
                }
                failed += 1;
            } else if read(&*fd, &mut [0]) == Ok(1) {
                times.add(*began);
            } else {
                failed += 1;
            }
            state[index] = None;
            idle.push(index);
        }
    }
    let secs = until.2.elapsed().as_secs_f64();
    println!("{{{},\"failed\":{failed}}}", times.json(secs, own_cpu() - cpu));
}

/// Connections that have moved one byte each way and then nothing.
pub fn idle(options: &Options) {
    let (target, listener, patience) = ends(options);
    let conns: usize = options.number("conns", 1000);
    echo(listener);
    let mut byte = [0];
    let fds: Vec<OwnedFd> = (0..conns)
        .map(|_| {
            let fd = target.connect();
            limit(&fd, patience);
            write_all(&fd, b"x");
            read_exact(&fd, &mut byte);
            fd
        })
        .collect();
    let mut lines = std::io::stdin().lock().lines();
    println!("{{\"conns\":{conns}}}");
    lines.next();
    drop(fds);
    println!("{{\"closed\":{conns}}}");
    lines.next();
}
