//! The channel to dom0, from its greeting to its end.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    clients::{self, SOCKET},
    spool,
    stream::Agent,
};
use crate::{
    proto::remote::{Frame, MAGIC, frame::Type},
    remote::{
        files,
        frames::Frames,
        line::{self, DEAD, SILENCE, WAITING},
        pipe::{self, AsyncPipe},
    },
    sys::lock,
};

/// Where dom0's name for this VM is kept for the durable queue.
pub const NAME: &str = "run/vm";
/// dom0 greets at once.
const GREETING: Duration = Duration::from_secs(10);
/// How long what has arrived may take to be passed on when the channel has ended.
const LINGER: Duration = Duration::from_secs(3);

/// Serves until dom0 closes the channel.
///
/// # Errors
/// When standard input and output are not dom0's, or the socket cannot be made.
pub async fn run(home: &Path) -> io::Result<()> {
    let (from, to) = (AsyncPipe::reader(duplicate(io::stdin())?)?, AsyncPipe::writer(duplicate(io::stdout())?)?);
    pipe::enlarge(to.fd());
    to.write_all(MAGIC).await?;
    let mut from = Frames::new(from);
    let hello = timeout(GREETING, from.hello()).await??;
    let run = home.join("run");
    files::private_dir(home)?;
    files::private_dir(&run)?;
    files::replace(&home.join(NAME), 0o600, hello.vm.as_bytes())?;
    let (listener, socket) = clients::listen(&home.join(SOCKET))?;
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
    tasks.spawn(clients::serve(listener, agent.clone()));
    tasks.spawn(spool::watch(agent.clone(), home.to_owned()));
    let result = read(from, &agent).await;
    socket.remove();
    // what has arrived is still passed on, or written: every stream ends when its last frame was taken
    lock(&agent.streams).open.clear();
    let all = u32::from(agent.hello.streams);
    let _ = timeout(LINGER, agent.free.acquire_many(all)).await;
    result
}

/// Standard input and output under numbers of their own, so that the runtime may close them.
fn duplicate(stream: impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

/// Passes on what comes from dom0 until the channel ends.
async fn read(mut from: Frames<AsyncPipe>, agent: &Agent) -> io::Result<()> {
    let mut heard = Instant::now();
    loop {
        while let Some(whole) = from.ready().map_err(io::Error::other)? {
            let raw = whole.raw();
            match raw.kind {
                Type::Ping => {
                    if let Frame::Ping(n) = raw.parse().map_err(io::Error::other)? {
                        let _ = agent.out.try_send(Frame::Pong(n).to_vec(0).into());
                    }
                }
                Type::Goaway => return Ok(()),
                Type::Pong | Type::Hello => {}
                _ => agent.deliver(whole),
            }
        }
        tokio::select! {
            more = from.fill() => match more? {
                true => heard = Instant::now(),
                false => return Ok(()),
            },
            () = sleep(SILENCE) => {
                if heard.elapsed() > DEAD {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                let _ = agent.out.try_send(Frame::Ping(1).to_vec(0).into());
            }
        }
    }
}
