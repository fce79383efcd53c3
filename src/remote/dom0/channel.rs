//! The channel to one VM: opened, greeted, kept, opened again.

use std::{collections::HashMap, io, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use nix::{
    fcntl::OFlag,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    unistd::pipe2,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    call, command,
    judge::Opening,
    port::{Inbox, Out, Port},
    replay::Replay,
    state::{Shared, Vm},
    v1::{self, Queue},
};
use crate::{
    log::{Event, Kind, emit},
    proto::remote::{Buffer, Frame, Hello, MAX_STREAMS, VERSION},
    remote::{
        line::{self, DEAD, SILENCE, WAITING},
        parser::NO_AGENT,
        pipe::{self, Pipe},
    },
};

/// How long an agent may take to greet: dom0 has to start `qvm-run`, and the VM a shell.
const GREETING: Duration = Duration::from_secs(5);
/// Between two attempts, doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A channel that lived so long was a good one: the next attempt comes at once.
const HEALTHY: Duration = Duration::from_secs(60);
/// Between two looks for an agent in a VM that had none, doubled from the first to the last: it may have been slow, or
/// it may never come.
const PROBE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(600));
/// Where qrexec's sockets of running VMs lie.
const SOCKETS: &str = "/run/qubes";

/// How an attempt ended.
enum Ended {
    /// The agent was there, for so long.
    Lived(Duration),
    /// The VM does not run, or the call failed.
    Absent,
    /// It runs and has no agent.
    NoAgent,
    /// Everything that waited is done (`--once`).
    Idle,
}

/// Keeps the channel until the daemon stops.
pub async fn keep(shared: Arc<Shared>, vm: Arc<Vm>) {
    let (mut wait, mut probe) = (RETRY.0, PROBE.0);
    let mut next_probe = Instant::now();
    let queue = Queue::default();
    loop {
        if shared.keys.read(&vm.name).is_err() {
            vm.set("no key");
            tokio::select! {
                () = sleep(RETRY.1) => continue,
                () = vm.stop.cancelled() => return,
            }
        }
        if wait_for_vm(&shared, &vm).await {
            (wait, probe, next_probe) = (RETRY.0, PROBE.0, Instant::now()); // it has just been started
        }
        if vm.stop.is_cancelled() {
            return;
        }
        let ended = if Instant::now() >= next_probe {
            tokio::select! {
                ended = attempt(&shared, &vm) => ended,
                () = vm.stop.cancelled() => return,
            }
        } else {
            Ok(Ended::NoAgent)
        };
        match ended {
            Ok(Ended::Lived(time)) => {
                vm.set("absent");
                wait = if time >= HEALTHY { RETRY.0 } else { wait };
                probe = PROBE.0;
                say(&vm, Kind::ChannelClosed, format!("the channel to {} ended after {} s", vm.name, time.as_secs()));
            }
            Ok(Ended::Idle) => return,
            Ok(Ended::Absent) => vm.set("absent"),
            Ok(Ended::NoAgent) => {
                if next_probe <= Instant::now() {
                    next_probe = Instant::now() + probe;
                    probe = (probe * 2).min(PROBE.1);
                }
                let v1 = shared.policy(&vm.name).is_ok_and(|p| p.v1);
                vm.set(if v1 { "v1 queue" } else { "no agent" });
                if v1 {
                    tokio::select! {
                        () = v1::serve(&shared, &vm, &queue, next_probe) => {}
                        () = vm.stop.cancelled() => return,
                    }
                    wait = RETRY.0;
                }
            }
            Err(e) => {
                vm.set("broken");
                say(&vm, Kind::ChannelFault, format!("the channel to {} cannot be opened: {e}", vm.name));
            }
        }
        if shared.once {
            return;
        }
        tokio::select! {
            () = sleep(jitter(wait)) => {}
            () = vm.stop.cancelled() => return,
        }
        wait = (wait * 2).min(RETRY.1);
    }
}

/// Up to a quarter more, so that many VMs do not come at once.
fn jitter(wait: Duration) -> Duration {
    let mut random = [0];
    let _ = getrandom::fill(&mut random);
    wait + wait.mul_f32(f32::from(random[0]) / 1024.0)
}

/// Returns when the VM may run: at once when its socket is there, or when nothing can be told. Whether it was halted.
async fn wait_for_vm(shared: &Shared, vm: &Vm) -> bool {
    let socket = Path::new(SOCKETS).join(format!("qrexec.{}", vm.name));
    let watch = || -> io::Result<Pipe> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(SOCKETS, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        Pipe::reader(OwnedFd::from(inotify))
    };
    let Ok(events) = watch() else { return false };
    let mut waited = false;
    let mut buffer = vec![0; 4096];
    while !socket.exists() && !shared.once {
        waited = true;
        vm.set("halted");
        tokio::select! {
            read = events.read(&mut buffer) => if read.is_err() { break },
            () = vm.stop.cancelled() => break,
        }
    }
    waited
}

async fn attempt(shared: &Arc<Shared>, vm: &Arc<Vm>) -> io::Result<Ended> {
    vm.set("connecting");
    let (mut parser, raw, frames) = call::parser(false)?;
    let (to_read, to_write) = pipe2(OFlag::O_CLOEXEC)?;
    pipe::enlarge(std::os::fd::AsFd::as_fd(&to_write));
    let mut call = call::qvm_run(&vm.name, "exec qvm-remote serve");
    call.stdin(to_read).stdout(raw);
    let mut call = {
        let mut started = call;
        started.spawn()?
        // `started` goes here: it holds our copies of the VM's ends
    };
    let mut buffer = Buffer::default();
    let mut bytes = vec![0; 64 << 10];
    let greeting = async {
        loop {
            match frames.read(&mut bytes).await? {
                0 => return Ok::<_, io::Error>(false),
                n => buffer.add(&bytes[..n]),
            }
            if let Some(greeted) = buffer.magic() {
                return Ok(greeted);
            }
        }
    };
    if !timeout(GREETING, greeting).await.unwrap_or(Ok(false))? {
        let _ = call.start_kill();
        let status = timeout(Duration::from_secs(2), call.wait()).await;
        let _ = parser.start_kill();
        let told = timeout(Duration::from_secs(2), parser.wait()).await;
        // a halted VM: nothing was said and the call failed with 1 (qvm-run); a missing program is 127 and a word
        let silent = matches!(told, Ok(Ok(status)) if status.code() == Some(NO_AGENT.into()));
        let halted = matches!(status, Ok(Ok(status)) if status.code() == Some(1));
        return Ok(if halted && silent { Ended::Absent } else { Ended::NoAgent });
    }
    let began = Instant::now();
    vm.set("live");
    say(vm, Kind::ChannelOpen, format!("the agent in {} answers", vm.name));
    let (out, frames_out) = mpsc::channel(WAITING);
    let writer = tokio::spawn(line::write(Pipe::writer(to_write)?, frames_out));
    let mut session = Session { shared, vm, nonce: [0; 32], out, streams: HashMap::new(), idle: false };
    getrandom::fill(&mut session.nonce)?;
    *vm.replay() = Replay::default();
    let hello = Hello { version: VERSION, nonce: session.nonce, vm: vm.name.clone(), streams: MAX_STREAMS, seq: 1 };
    let _ = session.out.send(Frame::Hello(hello).to_vec(0)).await;
    let why = session.read(&frames, buffer, &mut bytes).await;
    session.streams.drain().for_each(|(_, inbox)| inbox.gone());
    let idle = session.idle;
    let why = match why {
        // what the parser did not let through; it has ended when its pipe has
        None if !idle => match timeout(Duration::from_secs(2), parser.wait()).await {
            Ok(Ok(status)) if !status.success() => Some("it sent what is no frame of a qube's"),
            _ => None,
        },
        why => why,
    };
    if let Some(why) = why {
        say(vm, Kind::ChannelFault, format!("the channel to {} is cut: {why}", vm.name));
        // never left out: a channel that is cut comes back no faster than `RETRY` has it
        shared.audit.write("CUT", &format!("vm={} {why}", vm.name));
    }
    drop(session);
    writer.abort();
    let _ = call.start_kill();
    let _ = timeout(Duration::from_secs(2), call.wait()).await;
    let _ = parser.start_kill();
    let _ = timeout(Duration::from_secs(2), parser.wait()).await;
    Ok(if idle { Ended::Idle } else { Ended::Lived(began.elapsed()) })
}

fn say(vm: &Vm, kind: Kind, text: String) {
    let mut event = Event::new(kind, text);
    event.qube = Some(vm.name.as_str().into());
    emit(event);
}

/// A live channel.
struct Session<'a> {
    shared: &'a Arc<Shared>,
    vm: &'a Arc<Vm>,
    nonce: [u8; 32],
    out: Out,
    streams: HashMap<u32, Arc<Inbox>>,
    /// The agent has nothing more in its queue, and this was all that was wanted.
    idle: bool,
}

/// However it ends, its commands hear of it.
impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.streams.values().for_each(|inbox| inbox.gone());
    }
}

impl Session<'_> {
    /// Reads until the end; `None` when it was an ordinary one.
    async fn read(&mut self, frames: &Pipe, mut buffer: Buffer, bytes: &mut [u8]) -> Option<&'static str> {
        let (finished, mut ends) = mpsc::unbounded_channel();
        let mut heard = Instant::now();
        let mut empty = false;
        loop {
            loop {
                match buffer.frame() {
                    Ok(Some((raw, _))) => match raw.parse() {
                        Ok(Frame::Ping(n)) => {
                            empty |= n == 0; // the agent's queue was read to its end
                            let _ = self.out.send(Frame::Pong(n).to_vec(0)).await;
                        }
                        Ok(Frame::Pong(_)) => {}
                        Ok(frame) => {
                            if let Err(why) = self.take(raw.stream, frame, &finished).await {
                                return Some(why);
                            }
                        }
                        Err(fault) => return Some(fault.0),
                    },
                    Ok(None) => break,
                    Err(fault) => return Some(fault.0),
                }
            }
            if self.shared.once && empty && self.streams.is_empty() {
                self.idle = true;
                let _ = self.out.send(Frame::Goaway("once").to_vec(0)).await;
                // what is on its way must arrive before the pipe is closed
                let _ = timeout(Duration::from_secs(5), async {
                    while self.out.capacity() < WAITING {
                        sleep(Duration::from_millis(2)).await;
                    }
                })
                .await;
                return None;
            }
            tokio::select! {
                biased;
                Some(stream) = ends.recv() => {
                    self.streams.remove(&stream);
                }
                read = frames.read(bytes) => match read {
                    Ok(0) | Err(_) => return None,
                    Ok(n) => {
                        heard = Instant::now();
                        buffer.add(&bytes[..n]);
                    }
                },
                () = sleep(SILENCE) => {
                    if heard.elapsed() > DEAD {
                        return Some("it has been silent for too long");
                    }
                    // never waits: a VM that reads nothing is noticed by its silence
                    let _ = self.out.try_send(Frame::Ping(1).to_vec(0));
                }
            }
        }
    }

    async fn take(
        &mut self,
        stream: u32,
        frame: Frame<'_>,
        finished: &mpsc::UnboundedSender<u32>,
    ) -> Result<(), &'static str> {
        let opening = match frame {
            Frame::Open(request, mac) => Opening::Open(request, mac),
            Frame::V1(id, token, length) => Opening::V1(id.to_owned(), token.to_vec(), length),
            frame => {
                // a stream that has ended meanwhile gets what was on its way
                return match self.streams.get(&stream) {
                    Some(inbox) if !inbox.put(&frame) => Err("it sent what it had no right to send"),
                    _ => Ok(()),
                };
            }
        };
        if self.streams.len() >= usize::from(MAX_STREAMS) {
            return Err("it opened more streams than there are");
        }
        if self.streams.contains_key(&stream) {
            return Err("it opened a stream twice");
        }
        let port = Port { stream, out: self.out.clone(), inbox: Arc::default() };
        self.streams.insert(stream, port.inbox.clone());
        let (shared, vm, nonce, finished) = (self.shared.clone(), self.vm.clone(), self.nonce, finished.clone());
        self.shared.tasks.spawn(async move {
            command::serve(shared, vm, Some(nonce), port, opening).await;
            let _ = finished.send(stream);
        });
        Ok(())
    }
}
