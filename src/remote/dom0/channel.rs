//! The channel to one VM: opened, greeted, kept, opened again.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
    unistd::pipe2,
};
use tokio::{
    process::Child,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    call,
    session::Session,
    state::{Shared, Vm},
};
use crate::{
    log::{Event, Kind, emit},
    remote::{
        frames::Frames,
        line::{self, WAITING},
        parser::NO_AGENT,
        pipe::{self, AsyncPipe},
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
/// Starts the agent. The Python client takes any word for a command, `serve` too, and would queue that for dom0; an option
/// that it does not know it refuses, with 1, as `qvm-run` ends for a qube that is halted: 127 tells both apart. Agents
/// of all versions take the option and look at the word alone.
const AGENT: &str = "qvm-remote --argv serve || exit 127";
/// How long a process that was killed is waited for.
const LAST: Duration = Duration::from_secs(2);
/// Where qrexec's sockets of running VMs lie.
const SOCKETS: &str = "/run/qubes";

/// How an attempt ended.
enum AttemptEnd {
    /// The agent was there, for so long.
    Lived(Duration),
    /// The VM does not run, or the call failed.
    Absent,
    /// The VM runs and has no agent.
    NoAgent,
    /// Everything that waited is done (`--once`).
    Idle,
}

/// Keeps the channel until the daemon stops, or the VM is listed no more.
pub(super) async fn keep(shared: Arc<Shared>, vm: Arc<Vm>) {
    vm.stop.run_until_cancelled(open_again(&shared, &vm)).await;
}

/// When the channel is opened again, and when an agent is looked for again in a VM that had none.
struct Schedule {
    wait: Duration,
    probe: Duration,
    next_probe: Instant,
}

impl Schedule {
    fn new() -> Self {
        Self { wait: RETRY.0, probe: PROBE.0, next_probe: Instant::now() }
    }

    /// The agent was there, for so long.
    fn lived(&mut self, time: Duration) {
        self.wait = if time >= HEALTHY { RETRY.0 } else { self.wait };
        self.probe = PROBE.0;
    }

    /// No agent was there when it was looked for; or it was not due yet.
    fn no_agent(&mut self) {
        if self.next_probe <= Instant::now() {
            self.next_probe = Instant::now() + self.probe;
            self.probe = (self.probe * 2).min(PROBE.1);
        }
    }

    /// Waits for the next attempt.
    async fn pause(&mut self) {
        sleep(jitter(self.wait)).await;
        self.wait = (self.wait * 2).min(RETRY.1);
    }
}

/// Opens the channel again whenever it has ended; returns with `--once` only.
async fn open_again(shared: &Arc<Shared>, vm: &Arc<Vm>) {
    let mut schedule = Schedule::new();
    let mut told = false; // that there is no agent: one line for each time that it goes
    #[cfg(feature = "v1")]
    let queue = super::v1::Queue::default();
    loop {
        let mut changed = pin!(vm.changed.notified());
        changed.as_mut().enable(); // before the look, so that nothing comes between
        if shared.keys.read(&vm.name).is_err() {
            vm.set("no key");
            if shared.once {
                return;
            }
            let _ = timeout(RETRY.1, changed).await;
            continue;
        }
        if wait_for_vm(shared, vm).await {
            schedule = Schedule::new(); // it has just been started
        }
        let due = Instant::now() >= schedule.next_probe;
        match if due { attempt(shared, vm).await } else { Ok(AttemptEnd::NoAgent) } {
            Ok(AttemptEnd::Lived(time)) => {
                told = false;
                vm.set("absent");
                schedule.lived(time);
                say(vm, Kind::ChannelClosed, format!("the channel to {} ended after {} s", vm.name, time.as_secs()));
            }
            Ok(AttemptEnd::Idle) => return,
            Ok(AttemptEnd::Absent) => vm.set("absent"),
            Ok(AttemptEnd::NoAgent) => {
                schedule.no_agent();
                vm.set("no agent");
                if !std::mem::replace(&mut told, true) {
                    let text = format!(
                        "{} runs and has no agent of qvm-remote: install qvm-remote in its template; dom0 looks \
                         for it again, every {} min at the latest",
                        vm.name,
                        PROBE.1.as_secs() / 60
                    );
                    say(vm, Kind::ChannelFault, text);
                }
                #[cfg(feature = "v1")]
                if shared.policy(&vm.name).is_ok_and(|p| p.v1) {
                    vm.set("v1 queue");
                    super::v1::serve(shared, vm, &queue, schedule.next_probe).await;
                    schedule.wait = RETRY.0;
                }
            }
            Err(e) => {
                vm.set("broken");
                say(vm, Kind::ChannelFault, format!("the channel to {} cannot be opened: {e}", vm.name));
            }
        }
        if shared.once {
            return;
        }
        tokio::select! {
            () = schedule.pause() => {}
            () = vm.changed.notified() => schedule = Schedule::new(), // another key or policy: a look is worth it
        }
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
    let watch = || -> io::Result<AsyncPipe> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(SOCKETS, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        AsyncPipe::reader(OwnedFd::from(inotify))
    };
    let Ok(events) = watch() else { return false };
    let mut waited = false;
    let mut buffer = vec![0; 4096];
    while !socket.exists() && !shared.once {
        waited = true;
        vm.set("halted");
        if events.read(&mut buffer).await.is_err() {
            break;
        }
    }
    waited
}

/// One attempt, from `qvm-run`'s start to the channel's end.
async fn attempt(shared: &Arc<Shared>, vm: &Arc<Vm>) -> io::Result<AttemptEnd> {
    vm.set("connecting");
    let (mut processes, mut frames, to) = Processes::start(vm)?;
    if !timeout(GREETING, greeted(&mut frames)).await.unwrap_or(Ok(false))? {
        let (call, parser) = processes.end().await;
        // a halted VM: nothing was said and the call failed with 1 (qvm-run); a missing program is 127 and a word
        return Ok(if call == Some(1) && parser == Some(NO_AGENT.into()) {
            AttemptEnd::Absent
        } else {
            AttemptEnd::NoAgent
        });
    }
    let began = Instant::now();
    vm.set("live");
    say(vm, Kind::ChannelOpen, format!("the agent in {} answers", vm.name));
    let (out, waiting) = mpsc::channel(WAITING);
    let writer = tokio::spawn(line::write(AsyncPipe::writer(to)?, waiting));
    let mut session = Session::begin(shared, vm, out).await?;
    let why = session.read(&mut frames).await;
    session.leave();
    let idle = session.idle;
    let why = match why {
        // what the parser did not let through; it has ended when its pipe has
        None if !idle && processes.parser_failed().await => Some("it sent what is no frame of a qube's"),
        why => why,
    };
    if let Some(why) = why {
        say(vm, Kind::ChannelFault, format!("the channel to {} is cut: {why}", vm.name));
        // never left out: a channel that is cut comes back no faster than `RETRY` has it
        shared.audit.write("CUT", &format!("vm={} {why}", vm.name));
    }
    drop(session);
    writer.abort();
    processes.end().await;
    Ok(if idle { AttemptEnd::Idle } else { AttemptEnd::Lived(began.elapsed()) })
}

/// Whether an agent greets.
async fn greeted(frames: &mut Frames<AsyncPipe>) -> io::Result<bool> {
    while frames.fill().await? {
        if let Some(greeted) = frames.magic() {
            return Ok(greeted);
        }
    }
    Ok(false)
}

/// The processes of a channel.
struct Processes {
    /// `qvm-run`.
    call: Child,
    parser: Child,
}

impl Processes {
    /// Starts both: what the parser lets through, and what the VM reads.
    fn start(vm: &Vm) -> io::Result<(Self, Frames<AsyncPipe>, OwnedFd)> {
        let (parser, raw, frames) = call::parser("parse")?;
        let (to_read, to_write) = pipe2(OFlag::O_CLOEXEC)?;
        pipe::enlarge(to_write.as_fd());
        let mut command = call::qvm_run(&vm.name, AGENT);
        command.stdin(to_read).stdout(raw);
        let call = command.spawn()?;
        drop(command); // it holds our copies of the VM's ends
        Ok((Self { call, parser }, frames, to_write))
    }

    /// Whether the parser has ended at a fault.
    async fn parser_failed(&mut self) -> bool {
        matches!(timeout(LAST, self.parser.wait()).await, Ok(Ok(status)) if !status.success())
    }

    /// Ends both; their exit codes.
    async fn end(&mut self) -> (Option<i32>, Option<i32>) {
        (end(&mut self.call).await, end(&mut self.parser).await)
    }
}

async fn end(child: &mut Child) -> Option<i32> {
    let _ = child.start_kill();
    timeout(LAST, child.wait()).await.ok()?.ok()?.code()
}

fn say(vm: &Vm, kind: Kind, text: String) {
    let mut event = Event::new(kind, text);
    event.qube = Some(vm.name.as_str().into());
    emit(event);
}
