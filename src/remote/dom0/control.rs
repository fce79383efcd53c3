//! The daemon's end of the owner's socket, which only root can open.

use std::{io, path::PathBuf, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{
    question::{Answered, CommandStatus, DaemonStatus, PATIENCE, QubeStatus, Question, SOCKET, WaitingStatus},
    request::{OpenRequest, RequestState},
    state::{Absence, Shared, StartError, Vm, io_at},
};
use crate::{
    remote::socket,
    sys::{
        lock,
        socket_file::{self, Rights},
    },
};

/// Connections that wait to be accepted, at most.
const BACKLOG: u32 = 128;
/// Clients at a time, at most.
const CLIENTS: usize = 64;

/// The socket, removed when it is dropped.
#[derive(Debug)]
pub(super) struct ControlSocket {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens. The lock is ours, so a socket that is there already is nobody's.
pub(super) fn listen(shared: Arc<Shared>) -> Result<ControlSocket, StartError> {
    let path = shared.paths.run.join(SOCKET);
    let _ = std::fs::remove_file(&path);
    let listener = socket_file::bind(&path, Rights::PRIVATE)
        .map_err(io::Error::from)
        .and_then(|bound| UnixListener::from_std(bound.listen(BACKLOG)?))
        .map_err(io_at(path.display()))?;
    let client = move |stream| {
        let shared = shared.clone();
        async move {
            let _ = timeout(PATIENCE, answer(shared, stream)).await;
        }
    };
    let task = tokio::spawn(socket::serve(listener, 0, CLIENTS, client));
    Ok(ControlSocket { path, task })
}

async fn answer(shared: Arc<Shared>, stream: UnixStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(1024)).read_line(&mut line).await?;
    let answer = match Question::parse(&line) {
        Some(Question::Status) => Answered::Status(status(&shared)),
        Some(Question::Approvals) => Answered::Approvals(shared.approvals.list()),
        Some(Question::Sheet(id)) => Answered::Sheet(shared.approvals.sheet(id)),
        Some(Question::Approve(id)) => Answered::Heard(shared.approvals.answer(id, true)),
        Some(Question::Deny(id)) => Answered::Heard(shared.approvals.answer(id, false)),
        Some(Question::Kill(vm)) => Answered::Killed(shared.kill(vm)),
        Some(Question::KillOne(vm, id)) => Answered::Killed(shared.kill_one(vm, id)),
        Some(Question::RestartWhenIdle) => Answered::Heard(!shared.draining() && shared.restart.ask(&shared.requests)),
        None => Answered::Unknown,
    };
    write.write_all(answer.to_string().as_bytes()).await
}

fn status(shared: &Shared) -> DaemonStatus {
    let vms = lock(&shared.vms);
    let qube = |vm: &Arc<Vm>| {
        let channel = (*lock(&vm.state)).to_owned();
        let v1 = shared.policy(&vm.name).is_ok_and(|p| p.v1);
        (vm.name.clone(), QubeStatus { channel, v1, keyed: shared.keys.read(&vm.name).is_ok() })
    };
    let (running, waiting): (Vec<_>, Vec<_>) =
        shared.requests.list().into_iter().partition(|request| request.state.started());
    let (background, waiting): (Vec<_>, Vec<_>) =
        waiting.into_iter().partition(|request| request.state == RequestState::Background);
    let command =
        |c: OpenRequest| CommandStatus { seconds: c.since.elapsed().as_secs(), vm: c.vm, id: c.id, shown: c.shown };
    let waiting = waiting.into_iter().map(|r| WaitingStatus {
        state: r.state.as_str().to_owned(),
        seconds: r.since.elapsed().as_secs(),
        vm: r.vm,
        id: r.id,
    });
    let absent = |(name, absence): (&String, &Absence)| {
        let keyed = shared.keys.read(name).is_ok();
        (name.clone(), QubeStatus { channel: absence.as_str().to_owned(), v1: false, keyed })
    };
    DaemonStatus {
        restart_pending_since: shared.restart.since(),
        pid: std::process::id(),
        draining: shared.draining(),
        log_failure: shared.audit.failure(),
        qubes: vms.values().map(qube).chain(lock(&shared.missing).iter().map(absent)).collect(),
        commands: running.into_iter().map(command).collect(),
        background: background.into_iter().map(command).collect(),
        waiting: waiting.collect(),
        approvals: shared.approvals.list().into_iter().collect(),
    }
}
