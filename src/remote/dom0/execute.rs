//! One command, from its supervisor's start to its ending: output out, input in, signals, time.

use std::{
    ffi::OsString,
    fs::File,
    future::poll_fn,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::Duration,
};

use nix::{fcntl::OFlag, unistd::pipe2};
use sha2::{Digest as _, Sha256};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::descriptors;
use super::{
    groups::CommandGroup,
    port::{Inbox, Port, Receipt, StreamEvent},
    request::{Registration, RequestState},
    supervisors::{CommandEnds, Supervisor, Supervisors},
};
use crate::{
    proto::{
        mac::Digest,
        remote::{Ending, ReadMemory, SLICE, frame},
    },
    remote::{
        backchannel::{Instruction, Instructions, Report},
        pipe::{self, AsyncPipe},
        plan::SupervisorPlan,
        supervise,
    },
    sys::{self, Identity, lock},
};

/// What is left of a tree after TERM and KILL is waited for no longer than this.
const GRACE: Duration = Duration::from_secs(7);
/// How long the last output of a tree that was ended may take to be passed on.
const FLUSH: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The path to execute; `None`: there is no such program, or the script is executed.
    pub program: Option<PathBuf>,
    /// The program's name as asked, and its arguments.
    pub words: Vec<OsString>,
    /// A text for bash.
    pub script: Option<Vec<u8>>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// The directory to run in.
    pub cwd: PathBuf,
    /// The command runs in `/` where that directory is missing: nobody asked for it.
    pub cwd_optional: bool,
    /// The command's umask.
    pub umask: u32,
    /// The user to run as; `None`: the daemon's own.
    pub identity: Option<Identity>,
    /// Whether standard input is the client's.
    pub stdin: bool,
    /// Whether the command gets a terminal.
    pub tty: bool,
    /// How long the command may run.
    pub timeout: Option<Duration>,
    /// Whether that limit is the policy's.
    pub timeout_by_policy: bool,
    /// How many bytes the command may write.
    pub max_output: Option<u64>,
}

impl Launch {
    /// Whether the command may run in `/` instead of its directory.
    pub(super) fn at_root_otherwise(&self) -> bool {
        self.cwd_optional && self.cwd != Path::new("/")
    }
}

/// The result of a command.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// How the command ended.
    pub ending: Ending,
    /// The digest of its standard output.
    pub stdout: Digest,
    /// The digest of its standard error.
    pub stderr: Digest,
    /// The digest of its input, where all of that came.
    pub input: Option<Digest>,
    /// Bytes of standard output and of standard error.
    pub bytes: (u64, u64),
}

/// Our ends of the command's standard input, output and error.
struct Ends {
    stdin: Option<AsyncPipe>,
    stdout: AsyncPipe,
    /// `None` for a terminal, which is all three.
    stderr: Option<AsyncPipe>,
}

/// Starts the command: its supervisor, and our ends of its descriptors.
async fn start(
    job: &Launch,
    group: Option<&CommandGroup>,
    supervisors: &Arc<Supervisors>,
) -> io::Result<(Supervisor, Ends)> {
    let mut plan = SupervisorPlan {
        program: job.program.clone(),
        words: job.words.clone(),
        env: job.env.clone(),
        tty: job.tty,
        identity: job.identity.clone(),
        descriptors: descriptors::inherited(),
        cwd: job.cwd.clone(),
        cwd_optional: job.cwd_optional,
        umask: job.umask,
        cgroup: group.map(|group| group.path().to_owned()),
    };
    let mut script = None;
    if let Some(text) = &job.script {
        script = Some(supervise::script_file(text)?);
        plan.program = Some("/bin/bash".into());
        plan.words = vec!["/bin/bash".into(), format!("/dev/fd/{}", supervise::SCRIPT).into()];
    }
    let (standard, ends) = if job.tty { terminal(job.identity.as_ref())? } else { pipes(job.stdin)? };
    Ok((supervisors.start(&plan, &CommandEnds { standard, script }).await?, ends))
}

/// Gives the command a terminal, which belongs to whom the command runs as.
fn terminal(identity: Option<&Identity>) -> io::Result<([OwnedFd; 3], Ends)> {
    let pty = nix::pty::openpty(None, None)?;
    if let Some(identity) = identity {
        nix::unistd::fchown(&pty.slave, Some(identity.uid.into()), None)?;
    }
    let standard = [pty.slave.try_clone()?, pty.slave.try_clone()?, cloexec(pty.slave)?];
    let stdin = Some(AsyncPipe::both(cloexec(pty.master.try_clone()?)?)?);
    Ok((standard, Ends { stdin, stdout: AsyncPipe::both(cloexec(pty.master)?)?, stderr: None }))
}

/// Gives the command pipes; standard input only where it is the client's.
fn pipes(input: bool) -> io::Result<([OwnedFd; 3], Ends)> {
    let (out_read, out_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (err_read, err_write) = pipe2(OFlag::O_CLOEXEC)?;
    pipe::enlarge(out_read.as_fd());
    let (in_read, stdin) = if input {
        let (in_read, in_write) = pipe2(OFlag::O_CLOEXEC)?;
        (in_read, Some(AsyncPipe::writer(in_write)?))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let ends = Ends { stdin, stdout: AsyncPipe::reader(out_read)?, stderr: Some(AsyncPipe::reader(err_read)?) };
    Ok(([in_read, out_write, err_write], ends))
}

fn cloexec(fd: OwnedFd) -> io::Result<OwnedFd> {
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Runs a command, until it has ended or `registration` hears that it shall. With its result comes its supervisor, which
/// may end a moment later: the answer need not wait for it.
///
/// # Errors
/// When it could not be started; nothing was executed then.
pub(super) async fn run(
    job: &Launch,
    group: Option<&CommandGroup>,
    receipt: Option<Receipt>,
    port: &Port,
    registration: &Registration,
    supervisors: &Arc<Supervisors>,
) -> io::Result<(Done, Option<JoinHandle<()>>)> {
    let (mut supervisor, ends) = start(job, group, supervisors).await?;
    let Supervisor { instructions, report, process } = &mut supervisor;
    let deadline = job.timeout.map(|t| Instant::now() + t);
    let budget = Budget { left: job.max_output.unwrap_or(u64::MAX).into(), over: false.into() };
    let Ends { stdin, stdout, stderr } = ends;
    let master = job.tty.then(|| stdin.as_ref().and_then(|s| s.fd().try_clone_to_owned().ok())).flatten();

    let pumped = [Pumped::default(), Pumped::default()];
    let input = Input::default();
    let out = pump(&stdout, frame::Type::Stdout, 0, port, &budget, &pumped[0]);
    let err = async {
        if let Some(pipe) = &stderr {
            pump(pipe, frame::Type::Stderr, 1, port, &budget, &pumped[1]).await;
        }
    };
    // Whatever waits for the qube to read is in here, beside the reasons to cut the command short.
    let mut work = Box::pin(async {
        port.accept(receipt).await;
        let ended = async { tokio::join!(out, err, ending(report, job, group)).2 };
        let fed = async {
            feed(stdin, job.tty, port, &input).await;
            std::future::pending().await
        };
        // until the command has ended and nobody holds its output open any more; its input is passed on meanwhile
        tokio::select! {
            biased;
            ending = ended => ending,
            never = fed => never,
        }
    });
    let (ending, cut) = tokio::select! {
        biased;
        ending = &mut work => (ending, None),
        why = reason(&budget, deadline, registration, port, master, instructions) => {
            registration.enter(RequestState::Ending);
            instructions.give(Instruction::End).await;
            // the supervisor ends when the tree has; a qube that reads nothing loses the last output then
            let ended = async {
                if timeout(GRACE, process.wait()).await.is_err() {
                    let _ = process.start_kill(); // its command may have stopped it
                    kill_tree(job, group);
                }
                sleep(FLUSH).await;
            };
            let ending = tokio::select! {
                biased;
                ending = &mut work => ending,
                () = ended => Ending::Signal(9),
            };
            (ending, Some(why))
        }
    };
    drop(work);
    if cut.is_none() {
        instructions.give(Instruction::Leave).await;
    }
    let mut supervisor = Some(tokio::spawn(supervisor.collect(GRACE)));
    if cut.is_some() {
        gone(supervisor.take()).await;
        if let Some(group) = group {
            group.kill();
        }
    }
    let [(stdout, out), (stderr, err)] = pumped.map(Pumped::finish);
    let input = input.whole.into_inner().then(|| input.taken.finish().0);
    Ok((Done { ending: cut.unwrap_or(ending), stdout, stderr, input, bytes: (out, err) }, supervisor))
}

/// Waits until a supervisor has ended and was collected.
pub(super) async fn gone(supervisor: Option<JoinHandle<()>>) {
    if let Some(supervisor) = supervisor {
        let _ = supervisor.await;
    }
}

/// How the command ended, as its supervisor reports it.
async fn ending(report: &mut Report, job: &Launch, group: Option<&CommandGroup>) -> Ending {
    if let Some(ending) = report.ending().await {
        return ending;
    }
    // the supervisor itself was killed, and the command with it; whatever else it had started is left
    kill_tree(job, group);
    Ending::Signal(9)
}

/// Ends a command, and all that it has started, without its supervisor.
fn kill_tree(job: &Launch, group: Option<&CommandGroup>) {
    if let Some(group) = group {
        group.kill();
    }
    let variable = |wanted: &str| job.env.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_bytes());
    supervise::kill_marked(
        variable("QVM_REMOTE_VM").unwrap_or_default(),
        variable("QVM_REMOTE_ID").unwrap_or_default(),
    );
}

/// Waits for a reason to cut the command short: what it ends with. Passes on what the client orders until then.
async fn reason(
    budget: &Budget,
    deadline: Option<Instant>,
    registration: &Registration,
    port: &Port,
    master: Option<OwnedFd>,
    instructions: &mut Instructions,
) -> Ending {
    loop {
        tokio::select! {
            biased;
            () = budget.spent() => return Ending::Limit,
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return Ending::Timeout,
            () = registration.ended() => return Ending::Cancelled,
            order = port.inbox.order() => match order {
                StreamEvent::Signal(number) => instructions.give(Instruction::Signal(number)).await,
                StreamEvent::Resize(rows, columns) => {
                    if let Some(master) = &master {
                        sys::set_window_size(master.as_fd(), rows, columns);
                    }
                }
                StreamEvent::Cancel | StreamEvent::Gone => return Ending::Cancelled,
            },
        }
    }
}

/// What a command may still write. Looked at each time that its output makes the task turn.
struct Budget {
    left: AtomicU64,
    over: AtomicBool,
}

impl Budget {
    /// Waits until the command wrote more than it may. Whoever finds that out runs in the task that waits here, so
    /// nobody has to wake it.
    async fn spent(&self) {
        poll_fn(|_| if self.over.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// What was passed on so far; kept outside of whoever passes it on, so that no ending loses it.
#[derive(Default)]
pub(super) struct Pumped(Mutex<(Sha256, u64)>);

impl Pumped {
    pub(super) fn add(&self, bytes: &[u8]) {
        let mut inside = lock(&self.0);
        inside.0.update(bytes);
        inside.1 += bytes.len() as u64;
    }

    pub(super) fn finish(self) -> (Digest, u64) {
        let (digest, bytes) = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        (digest.finalize().into(), bytes)
    }
}

/// Passes output on, as much as there is credit for, until its end.
async fn pump(pipe: &AsyncPipe, kind: frame::Type, who: usize, port: &Port, budget: &Budget, pumped: &Pumped) {
    let most = u32::try_from(SLICE).unwrap_or(u32::MAX);
    let mut memory = ReadMemory::default();
    loop {
        if pipe.readable().await.is_err() {
            break;
        }
        let credit = port.inbox.credit(who, most).await;
        if credit == 0 {
            break; // nobody reads any more
        }
        let Some(place) = port.place_in_line().await else { break };
        let buffer = memory.room(frame::HEADER + credit as usize);
        buffer.extend_from_slice(&[0; frame::HEADER]);
        let n = pipe.read_into(buffer, credit as usize).await.unwrap_or_default();
        let room = usize::try_from(budget.left.load(Relaxed)).unwrap_or(usize::MAX);
        let kept = n.min(room);
        port.inbox.unused(credit - u32::try_from(kept).unwrap_or(credit));
        if n == 0 {
            break;
        }
        budget.left.fetch_sub(kept as u64, Relaxed);
        if kept > 0 {
            buffer.truncate(frame::HEADER + kept);
            pumped.add(&buffer[frame::HEADER..]);
            place.send(port.data(buffer.split(), kind));
        }
        if kept < n {
            budget.over.store(true, Relaxed);
            break;
        }
    }
}

/// The input of a command, as far as it came.
#[derive(Default)]
struct Input {
    taken: Pumped,
    /// Whether the qube sent the end of the input.
    whole: AtomicBool,
}

/// Passes input on until its end. What a command does not want is taken too, so that its client ends. Where the channel
/// ends first, the input stays open until the command has been ended: a part of the input never looks like all of it.
async fn feed(stdin: Option<AsyncPipe>, tty: bool, port: &Port, input: &Input) {
    let inbox: &Inbox = &port.inbox;
    let mut stdin = stdin;
    while let Some(data) = inbox.data().await {
        input.taken.add(&data);
        if let Some(pipe) = &stdin {
            if pipe.write_all(&data).await.is_err() {
                stdin = None;
            }
        }
        port.taken(data.len()).await;
    }
    if !inbox.has_ended() {
        std::future::pending::<()>().await; // `run` ends the command, because the channel has ended
    }
    input.whole.store(true, Relaxed);
    if let (Some(pipe), true) = (&stdin, tty) {
        let _ = pipe.write_all(&[4]).await; // VEOF, as a terminal says it
        std::future::pending::<()>().await; // its other half is still read
    }
}
