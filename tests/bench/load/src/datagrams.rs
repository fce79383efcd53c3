//! Datagrams: a sender and a sink, and a plain relay to compare with.

use std::{
    collections::VecDeque,
    io::IoSlice,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};

use crate::{
    Options, fail,
    measure::{Times, Until, own_cpu},
};

fn address(text: &str) -> SocketAddr {
    let address = text.strip_prefix("udp:").and_then(|address| address.parse().ok());
    address.unwrap_or_else(|| fail(&format!("bad endpoint {text}")))
}

fn bound(address: SocketAddr) -> UdpSocket {
    UdpSocket::bind(address).unwrap_or_else(|e| fail(&format!("bind: {e}")))
}

/// Sends datagrams of equal size as fast as they go: one by one, or in runs with UDP_SEGMENT, as QUIC and WireGuard do.
/// With a window, no more datagrams are on their way than that. The sink takes one by one, or runs where runs are sent.
pub fn datagrams(options: &Options) {
    let endpoint = |key| address(options.text(key).unwrap_or_else(|| fail(&format!("--{key} is missing"))));
    let (target, backend) = (endpoint("target"), endpoint("backend"));
    let (size, run): (usize, usize) = (options.number("size", 1200), options.number("run", 1));
    let window: u64 = options.number("window", 0);
    let sink = bound(backend);
    let _ = setsockopt(&sink, sockopt::UdpGroSegment, &(run > 1));
    let _ = setsockopt(&sink, sockopt::RcvBufForce, &(8 << 20));
    let received = Arc::new(AtomicU64::new(0));
    let counted = received.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((n, _)) = sink.recv_from(&mut buffer) {
            counted.fetch_add(n as u64, Relaxed);
        }
    });
    let sender = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
    sender.connect(target).unwrap_or_else(|e| fail(&format!("connect: {e}")));
    let until = |enough: u64, patience: Duration| {
        let began = Instant::now();
        while received.load(Relaxed) < enough && began.elapsed() < patience {
            thread::yield_now();
        }
        received.load(Relaxed) >= enough
    };
    // The flow is there before the clock starts.
    let bytes = vec![0x5a; size * run];
    let there = (0..100).any(|_| sender.send(&bytes[..size]).is_ok() && until(1, Duration::from_millis(100)));
    if !there {
        fail("no datagram came through");
    }
    thread::sleep(Duration::from_millis(50));
    let (mut sent, mut lost, before) = (0, 0, received.load(Relaxed));
    let (began, cpu) = (Instant::now(), own_cpu());
    let secs = Duration::from_secs_f64(options.number("secs", 2.0));
    let segment = u16::try_from(size).unwrap_or_else(|_| fail("--size is too large"));
    let control = [ControlMessage::UdpGsoSegments(&segment)];
    let control = if run > 1 { control.as_slice() } else { &[] };
    while began.elapsed() < secs {
        match sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::empty(), None) {
            Ok(n) => sent += n as u64,
            Err(nix::errno::Errno::ECONNREFUSED | nix::errno::Errno::ENOBUFS) => {}
            Err(e) => fail(&format!("send: {e}")),
        }
        let room = (window * size as u64).saturating_sub(bytes.len() as u64);
        let enough = (before + sent).saturating_sub(lost + room);
        if window > 0 && !until(enough, Duration::from_millis(20)) {
            lost = before + sent - received.load(Relaxed); // it is not waited for again
        }
    }
    let secs = began.elapsed().as_secs_f64();
    until(before + sent - lost, Duration::from_millis(200));
    let got = received.load(Relaxed) - before;
    println!(
        "{{\"secs\":{secs:.3},\"gbit_s\":{:.3},\"gb\":{:.4},\"lost\":{:.4},\"load_cpu_s\":{:.3}}}",
        got as f64 * 8.0 / secs / 1e9,
        got as f64 / 1e9,
        1.0 - got as f64 / sent.max(1) as f64,
        own_cpu() - cpu,
    );
}

/// One query, one answer, a new peer each time, as of DNS: many clients at a time.
pub fn queries(options: &Options) {
    let endpoint = |key| address(options.text(key).unwrap_or_else(|| fail(&format!("--{key} is missing"))));
    let (target, backend) = (endpoint("target"), endpoint("backend"));
    let clients: usize = options.number("clients", 32);
    let server = bound(backend);
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = server.recv_from(&mut buffer) {
            let _ = server.send_to(&buffer[..n], from);
        }
    });
    let (query, mut answer) = ([0x5a; 60], [0; 64]);
    let (mut times, mut lost, cpu, until) = (Times::default(), 0u64, own_cpu(), Until::new(options));
    let mut asked: VecDeque<(UdpSocket, Instant)> = VecDeque::new();
    while !until.over(times.len()) {
        while asked.len() < clients {
            let client = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
            let _ = client.set_read_timeout(Some(Duration::from_secs(1)));
            let sent = client.connect(target).and_then(|()| client.send(&query));
            sent.unwrap_or_else(|e| fail(&format!("send: {e}")));
            asked.push_back((client, Instant::now()));
        }
        let Some((client, began)) = asked.pop_front() else { return };
        match client.recv(&mut answer) {
            Ok(n) if answer[..n] == query => times.add(began),
            _ => lost += 1,
        }
    }
    let secs = until.secs();
    println!("{{{},\"failed\":{lost}}}", times.json(secs, own_cpu() - cpu));
}

/// What a first program does: a thread for each direction, one blocking call to receive a datagram and one to send it.
/// It serves one peer at a time, the last one.
pub fn plain(listen: &str, target: &str) {
    let listener = bound(address(listen));
    let upstream = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
    upstream.connect(address(target)).unwrap_or_else(|e| fail(&format!("connect: {e}")));
    let peer = Arc::new(Mutex::new(None));
    let (from, to, asker) = (upstream.try_clone(), listener.try_clone(), peer.clone());
    let (Ok(from), Ok(to)) = (from, to) else { fail("no descriptor") };
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        loop {
            let Ok(n) = from.recv(&mut buffer) else { continue };
            let asker: Option<SocketAddr> = *asker.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = asker.map(|asker| to.send_to(&buffer[..n], asker));
        }
    });
    let (mut buffer, mut last) = (vec![0; 65_536], None);
    loop {
        let Ok((n, from)) = listener.recv_from(&mut buffer) else { continue };
        if last != Some(from) {
            last = Some(from);
            *peer.lock().unwrap_or_else(PoisonError::into_inner) = last;
        }
        let _ = upstream.send(&buffer[..n]);
    }
}
