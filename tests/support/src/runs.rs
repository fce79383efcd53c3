//! Traffic of datagrams in runs: datagrams of equal size that the kernel takes as one message (udp(7), UDP_SEGMENT).

use std::{
    io::{self, ErrorKind, IoSlice},
    net::UdpSocket,
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};

use crate::{PATIENCE, eventually};

/// Bytes of each datagram of [`RunTraffic`].
const SIZE: usize = 1000;
/// The datagrams of one run.
const RUN: u64 = 20;
/// Runs that are on their way at once. A queue of the default size holds them, also as single datagrams.
const ON_THE_WAY: u64 = 3;

/// Sends a run on a connected socket: datagrams of `size` bytes, the last of which may be shorter.
///
/// # Errors
/// What sendmsg(2) says.
pub fn send_run(socket: &UdpSocket, bytes: &[u8], size: usize) -> io::Result<()> {
    let segment = u16::try_from(size).map_err(|_| ErrorKind::InvalidInput)?;
    let control = [ControlMessage::UdpGsoSegments(&segment)];
    let control = if bytes.len() > size { control.as_slice() } else { &[] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::empty(), None)?;
    Ok(())
}

/// Runs through the service and back, without a pause: each datagram has a number.
pub struct RunTraffic {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    wrong: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<u64>,
}

impl RunTraffic {
    /// Between a client, connected to the service, and a server that the service leads to. Datagrams that `may_be_lost`
    /// leave a gap in the numbers; others are waited for.
    pub fn start(client: UdpSocket, server: UdpSocket, may_be_lost: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (answered, wrong) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Vec::new())));
        serve(server, wrong.clone());
        let (stopped, counted, faults) = (stop.clone(), answered.clone(), wrong.clone());
        let thread = thread::spawn(move || ask(&client, may_be_lost, &stopped, &counted, &faults));
        Self { stop, answered, wrong, thread }
    }

    /// Waits until so many more datagrams came back.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let wanted = self.answered.load(Relaxed) + more;
        eventually(&format!("{more} datagrams come back: {:?}", self.wrong()), || {
            self.answered.load(Relaxed) >= wanted || !self.wrong().is_empty()
        });
        assert_eq!(self.wrong(), [""; 0]);
    }

    fn wrong(&self) -> Vec<String> {
        self.wrong.lock().expect("no panic").clone()
    }

    /// Ends it, after the last answer: the number of datagrams that came back, each whole, once and in order.
    #[track_caller]
    pub fn stop(self) -> u64 {
        self.stop.store(true, Relaxed);
        let n = self.thread.join().expect("no panic");
        assert_eq!(*self.wrong.lock().expect("no panic"), [""; 0], "after {n} datagrams");
        n
    }
}

/// A datagram with a number.
fn numbered(n: u64) -> Vec<u8> {
    let mut bytes = vec![n as u8; SIZE];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    bytes
}

/// The number of a datagram, if it is one as it was sent.
fn number(bytes: &[u8]) -> Result<u64, String> {
    let n = bytes.first_chunk().copied().map_or(0, u64::from_be_bytes);
    if bytes == numbered(n) {
        Ok(n)
    } else {
        Err(format!("a datagram of {} bytes, beginning like number {n}", bytes.len()))
    }
}

fn fault(wrong: &Mutex<Vec<String>>, what: String) {
    let mut wrong = wrong.lock().expect("no panic");
    if wrong.len() < 10 {
        wrong.push(what);
    }
}

/// Sends back what comes, in runs.
fn serve(server: UdpSocket, wrong: Arc<Mutex<Vec<String>>>) {
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        let mut last = 0;
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            let (mut run, mut next) = (Vec::new(), Ok(len));
            while let Ok(len) = next {
                match number(&buffer[..len]) {
                    Ok(n) if n <= last => fault(&wrong, format!("number {n} comes to the server after {last}")),
                    Ok(n) => last = n,
                    Err(what) => fault(&wrong, format!("the server has {what}")),
                }
                run.extend_from_slice(&buffer[..len]);
                let full = run.len() >= SIZE * RUN as usize;
                let _ = server.set_nonblocking(true);
                next = if full { Err(ErrorKind::WouldBlock.into()) } else { server.recv(&mut buffer) };
            }
            let _ = server.set_nonblocking(false);
            let _ = server.connect(from);
            let _ = send_run(&server, &run, SIZE);
        }
    });
}

fn ask(
    client: &UdpSocket,
    may_be_lost: bool,
    stop: &AtomicBool,
    answered: &AtomicU64,
    wrong: &Mutex<Vec<String>>,
) -> u64 {
    let patience = if may_be_lost { Duration::from_millis(300) } else { PATIENCE };
    client.set_read_timeout(Some(patience)).expect("not zero");
    let _ = setsockopt(client, sockopt::UdpGroSegment, &false);
    let (mut next, mut last, mut came) = (1, 0, 0);
    let mut buffer = vec![0; 65_536];
    let mut idle = false;
    loop {
        let on_the_way = if idle { 0 } else { next - 1 - last };
        if !stop.load(Relaxed) && on_the_way <= (ON_THE_WAY - 1) * RUN {
            let run: Vec<u8> = (next..next + RUN).flat_map(numbered).collect();
            let _ = send_run(client, &run, SIZE); // a refusal of the moment between two processes is a loss
            (next, idle) = (next + RUN, false);
            continue;
        }
        if last + 1 == next {
            return came;
        }
        match client.recv(&mut buffer).map(|len| number(&buffer[..len])) {
            Ok(Ok(n)) if n == last + 1 || (may_be_lost && n > last) => (last, came) = (n, came + 1),
            Ok(Ok(n)) => fault(wrong, format!("number {n} comes back after {last}")),
            Ok(Err(what)) => fault(wrong, format!("what comes back is {what}")),
            Err(_) if may_be_lost && stop.load(Relaxed) => return came,
            Err(_) if may_be_lost => idle = true,
            Err(e) => {
                fault(wrong, format!("number {} does not come back: {e}", last + 1));
                return came;
            }
        }
        answered.store(came, Relaxed);
    }
}
