//! What the owner of dom0 says to the running daemon: a socket that only root can open, one line asked, one answered.

use std::{
    collections::HashMap,
    fmt::Write as _,
    io,
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::state::{Shared, StartError, io_at};
use crate::{
    remote::socket,
    sys::socket_file::{self, Rights},
};

/// How long one question may take to be asked, and its answer to be read.
const PATIENCE: Duration = Duration::from_secs(5);
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
    let path = shared.paths.run.join("control");
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
    let words: Vec<&str> = line.split_whitespace().collect();
    let text = match words[..] {
        ["status"] => status(&shared),
        ["approvals"] => {
            let mut text = String::new();
            for (ticket, shown) in shared.approvals.list() {
                let _ = writeln!(text, "{ticket}  {shown}");
            }
            text
        }
        ["approve", ticket] => yes_no(shared.approvals.answer(ticket, true)),
        ["deny", ticket] => yes_no(shared.approvals.answer(ticket, false)),
        ["kill", vm] => format!("{}\n", shared.kill(Some(vm))),
        _ => "unknown\n".to_owned(),
    };
    write.write_all(text.as_bytes()).await
}

fn yes_no(yes: bool) -> String {
    if yes { "yes\n" } else { "no\n" }.to_owned()
}

fn status(shared: &Shared) -> String {
    let vms = shared.vms.lock().expect("no panic under this lock");
    let channels: HashMap<_, _> = vms
        .values()
        .map(|vm| {
            let state = *vm.state.lock().expect("no panic under this lock");
            let v1 = shared.policy(&vm.name).is_ok_and(|p| p.v1);
            (vm.name.clone(), json!({ "channel": state, "v1": v1, "keyed": shared.keys.read(&vm.name).is_ok() }))
        })
        .collect();
    let commands: Vec<_> = shared
        .commands()
        .values()
        .map(|c| json!({ "vm": c.vm, "id": c.id, "seconds": c.since.elapsed().as_secs() }))
        .collect();
    let waiting: HashMap<_, _> = shared.approvals.list().into_iter().collect();
    let pid = std::process::id();
    let all = json!({ "pid": pid, "draining": shared.draining(), "vms": channels, "commands": commands, "approvals": waiting });
    format!("{all}\n")
}

/// Asks the running daemon one thing.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when none runs.
pub fn ask(run: &Path, line: &str) -> io::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = StdUnixStream::connect(run.join("control"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
