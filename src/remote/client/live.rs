//! A command through the agent: frames of one stream on a socket.

use std::{io, os::fd::AsFd as _, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::{
    net::UnixStream,
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    ask::{Ask, Trouble},
    history::Record,
    home::Home,
    stdio,
    terminal::{Raw, Signals, Writer, read_input},
};
use crate::{
    log::escape,
    proto::{
        mac::{self, Key, Outcome},
        remote::{Buffer, CREDIT, Ending, Frame, Hello, Mode, Refusal, Request, SLICE, flags},
    },
    remote::{agent, audit::now_ms, pipe::Pipe},
    sys,
};

/// Between two looks for the agent.
const AGAIN: Duration = Duration::from_millis(50);
/// How long dom0 may take to end what was cancelled: TERM, five seconds, KILL.
const CANCEL: Duration = Duration::from_secs(8);
/// dom0 watches the time-out; beyond this it has forgotten.
const MARGIN: Duration = Duration::from_secs(10);
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(30);

/// Asks, again when another request took our number's place.
pub async fn ask(home: &Home, key: &Key, id: &str, mut ask: Ask, record: &mut Record) -> Result<u8, Trouble> {
    let connect_by = Instant::now() + ask.connect_timeout;
    for _ in 0..3 {
        match once(home, key, id, &mut ask, record, connect_by).await {
            Err(Trouble::Refused(255, why)) if why.starts_with(STALE) => {}
            other => return other,
        }
    }
    Err(Trouble::Transport("dom0 keeps saying that the request is not current".into()))
}

const STALE: &str = "stale: ";

async fn connect(home: &Home, by: Instant) -> Result<(UnixStream, Hello, Buffer), Trouble> {
    let path = home.at(agent::SOCKET);
    let own = nix::unistd::getuid().as_raw();
    loop {
        let attempt = async {
            let stream = UnixStream::connect(&path).await?;
            if stream.peer_cred()?.uid() != own {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user answers"));
            }
            let mut buffer = Buffer::default();
            let mut bytes = [0; 1024];
            loop {
                stream.readable().await?;
                match stream.try_read(&mut bytes) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => buffer.add(&bytes[..n]),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(e) => return Err(e),
                }
                if let Some((raw, _)) = buffer.frame().map_err(io::Error::other)? {
                    let Frame::Hello(hello) = raw.parse().map_err(io::Error::other)? else {
                        return Err(io::ErrorKind::InvalidData.into());
                    };
                    return Ok((stream, hello, buffer));
                }
            }
        };
        let left = by.saturating_duration_since(Instant::now());
        match timeout(left, attempt).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => {
                return Err(Trouble::Transport(format!("{}: {e}", path.display())));
            }
            _ => {}
        }
        if Instant::now() + AGAIN >= by {
            return Err(Trouble::Transport(
                "no answer from dom0: is qvm-remote-dom0 running there, and is this qube listed and authorized? \
                 (--queue waits for it)"
                    .into(),
            ));
        }
        sleep(AGAIN).await;
    }
}

fn request(ask: &Ask, key: &Key, id: &str, hello: &Hello) -> Request {
    let stdin = ask.stdin || ask.tty || ask.mode == Mode::Put;
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    if matches!(ask.mode, Mode::Shell | Mode::Argv) {
        use std::os::unix::ffi::OsStringExt as _;
        let mut size = 0;
        for (name, value) in std::env::vars_os() {
            let (name, value) = (name.into_vec(), value.into_vec());
            let fine = !name.is_empty()
                && !name[0].is_ascii_digit()
                && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_');
            // dom0 drops all that its policy does not name; only what commonly is named is offered at all
            if fine && OFFERED.iter().any(|o| name == o.as_bytes() || name.starts_with(b"LC_")) && size < 16 << 10 {
                size += name.len() + value.len();
                env.push((name, value));
            }
        }
    }
    let cwd = std::env::current_dir().map(|d| d.into_os_string()).unwrap_or_default();
    Request {
        kid: key.id(),
        vm: hello.vm.clone(),
        nonce: hello.nonce,
        seq: hello.seq,
        id: id.to_owned(),
        created_ms: now_ms(),
        timeout_ms: u32::try_from(ask.timeout.as_millis()).unwrap_or(u32::MAX),
        flags: if stdin { flags::STDIN } else { 0 } | if ask.tty { flags::TTY } else { 0 },
        user: ask.user.clone(),
        cwd: std::os::unix::ffi::OsStringExt::into_vec(cwd),
        mode: ask.mode,
        length: u32::try_from(ask.payload.len()).unwrap_or(u32::MAX),
        payload: mac::digest(&ask.payload),
        env,
    }
}

/// Variables that are offered to dom0's policy.
const OFFERED: &[&str] = &["TERM", "COLORTERM", "LANG", "TZ", "NO_COLOR", "EDITOR", "PAGER", "COLUMNS", "LINES"];

async fn once(
    home: &Home,
    key: &Key,
    id: &str,
    ask: &mut Ask,
    record: &mut Record,
    connect_by: Instant,
) -> Result<u8, Trouble> {
    let own = |e: io::Error| Trouble::Own(e.to_string());
    let lost = |what: &str| Trouble::Transport(format!("the connection to dom0 was lost {what} (id={id})"));
    let mut signals = Signals::new().map_err(own)?;
    let (stream, hello, mut buffer) = tokio::select! {
        found = connect(home, connect_by) => found?,
        n = signals.next() => return Err(Trouble::Signal(n)),
    };
    let fd = stream.into_std().map_err(own)?;
    let from = Pipe::reader(fd.as_fd().try_clone_to_owned().map_err(own)?).map_err(own)?;
    let to = Pipe::writer(fd.into()).map_err(own)?;
    let request = request(ask, key, id, &hello);
    let request_mac = key.request(&request);
    let takes_input = request.has(flags::STDIN);
    let mut first = Frame::Open(Box::new(request), request_mac).to_vec(1);
    let (mut sent, mut credit) = (0, CREDIT as usize);
    let mut fill = |out: &mut Vec<u8>, credit: &mut usize| {
        while sent < ask.payload.len() && *credit > 0 {
            let n = (ask.payload.len() - sent).min(SLICE).min(*credit);
            Frame::Body(&ask.payload[sent..sent + n]).write(1, out);
            (sent, *credit) = (sent + n, *credit - n);
        }
        sent == ask.payload.len()
    };
    let mut body_sent = fill(&mut first, &mut credit);
    to.write_all(&first).await.map_err(|_| lost("before it took the command"))?;

    let (done, mut written) = mpsc::unbounded_channel();
    let stdout = match ask.output.take() {
        Some(file) => file,
        None => stdio::file(io::stdout()).map_err(own)?,
    };
    let writers = [Writer::start(stdout, done.clone()), Writer::start(stdio::file(io::stderr()).map_err(own)?, done)];
    let mut input: Option<mpsc::Receiver<Vec<u8>>> = None;
    let mut raw = None;
    let (mut out, mut err) = (Sha256::new(), Sha256::new());
    let (mut pending, mut owed) = (0u64, 0u32);
    let (mut accepted, mut interrupted) = (false, 0u8);
    let mut give_up: Option<(Instant, Trouble)> = None;
    let mut bytes = vec![0; 64 << 10];
    let began = Instant::now();
    let guard = began + ask.timeout + MARGIN;
    let mut progress = began + PROGRESS;
    let mut dom0_by = Some(connect_by.max(Instant::now() + Duration::from_secs(2)));
    let ending = 'all: loop {
        while let Some((frame, _)) = buffer.frame().map_err(|e| Trouble::Transport(e.to_string()))? {
            match frame.parse().map_err(|e| Trouble::Transport(e.to_string()))? {
                Frame::Stdout(data) => {
                    out.update(data);
                    record.keep(0, data);
                    pending += data.len() as u64;
                    let _ = writers[0].to.send(data.to_vec());
                }
                Frame::Stderr(data) => {
                    err.update(data);
                    record.keep(1, data);
                    pending += data.len() as u64;
                    let _ = writers[1].to.send(data.to_vec());
                }
                Frame::Credit(n) => credit += n as usize,
                Frame::Accept => {
                    (accepted, dom0_by) = (true, None);
                    if takes_input {
                        if ask.tty {
                            raw = Raw::set();
                            if let Some((rows, columns)) = sys::window_size(io::stdin().as_fd()) {
                                let _ = to.write_all(&Frame::Resize(rows, columns).to_vec(1)).await;
                            }
                        }
                        let source = match ask.input.take() {
                            Some(file) => file,
                            None => stdio::file(io::stdin()).map_err(own)?,
                        };
                        input = Some(read_input(source));
                    }
                }
                Frame::Wait(why) => {
                    dom0_by = None;
                    // a busy moment is no news; a person who has to act is
                    if !ask.quiet && why.starts_with("for approval") {
                        eprintln!("[qvm-remote] waiting {}", escape(why.as_bytes()));
                    }
                }
                Frame::Reject(refusal, why) => {
                    let why = escape(why.as_bytes());
                    let why = if refusal == Refusal::Stale && !accepted { format!("{STALE}{why}") } else { why };
                    return Err(match give_up.take() {
                        Some((_, trouble)) => trouble,
                        None => Trouble::Refused(refusal.status(), why),
                    });
                }
                Frame::Exit(ending, code) => break 'all (ending, code),
                _ => return Err(Trouble::Transport("dom0 sent what makes no sense".into())),
            }
        }
        if !body_sent {
            let mut more = Vec::new();
            body_sent = fill(&mut more, &mut credit);
            to.write_all(&more).await.map_err(|_| lost("before it took the command"))?;
        }
        let late = give_up.as_ref().map(|(at, _)| *at);
        tokio::select! {
            read = from.read(&mut bytes) => match read {
                Ok(n) if n > 0 => buffer.add(&bytes[..n]),
                _ => {
                    return Err(match give_up.take() {
                        Some((_, trouble)) => trouble,
                        None if accepted => lost("while the command ran; it was ended there"),
                        None => lost("before the command was begun, or as it began"),
                    });
                }
            },
            Some(n) = written.recv() => {
                if n == 0 && give_up.is_none() {
                    let _ = to.write_all(&Frame::Cancel.to_vec(1)).await;
                    give_up = Some((Instant::now() + CANCEL, Trouble::Signal(13)));
                }
                pending -= u64::from(n);
                owed += n;
                if owed >= CREDIT / 4 || pending == 0 {
                    let _ = to.write_all(&Frame::Credit(std::mem::take(&mut owed)).to_vec(1)).await;
                }
            },
            data = next(&mut input), if body_sent && credit >= SLICE => match data {
                Some(data) => {
                    credit -= data.len();
                    let _ = to.write_all(&Frame::Stdin(&data).to_vec(1)).await;
                }
                None => {
                    input = None;
                    let _ = to.write_all(&Frame::Eof.to_vec(1)).await;
                }
            },
            n = signals.next() => match n {
                28 => if let (true, Some((rows, columns))) = (ask.tty, sys::window_size(io::stdin().as_fd())) {
                    let _ = to.write_all(&Frame::Resize(rows, columns).to_vec(1)).await;
                },
                2 if interrupted == 0 && accepted => {
                    interrupted = 1;
                    let _ = to.write_all(&Frame::Signal(2).to_vec(1)).await;
                }
                n => {
                    if give_up.is_some() {
                        return Err(Trouble::Signal(n)); // a third time: the agent cancels for us
                    }
                    let _ = to.write_all(&Frame::Cancel.to_vec(1)).await;
                    give_up = Some((Instant::now() + CANCEL, Trouble::Signal(n)));
                }
            },
            () = sleep_until(late.unwrap_or(began)), if late.is_some() => {
                return Err(give_up.take().map_or(Trouble::Timeout, |(_, trouble)| trouble));
            }
            () = sleep_until(dom0_by.unwrap_or(began)), if dom0_by.is_some() => {
                return Err(Trouble::Transport(format!("dom0 does not answer (id={id})")));
            }
            () = sleep_until(guard), if late.is_none() => {
                let _ = to.write_all(&Frame::Cancel.to_vec(1)).await;
                return Err(Trouble::Timeout);
            }
            () = sleep_until(progress) => {
                progress += PROGRESS;
                if !ask.quiet && pending == 0 && !ask.tty {
                    let seconds = began.elapsed().as_secs() / 30 * 30;
                    eprintln!("[qvm-remote] waiting... {seconds}s/{}s", ask.timeout.as_secs());
                }
            }
        }
    };
    drop(raw);
    // all of it must be out before we end; whoever reads slowly may take his time
    drop(writers);
    while let Some(n) = written.recv().await {
        if n == 0 {
            return Err(Trouble::Signal(13));
        }
    }
    if let Some((_, trouble)) = give_up {
        return Err(trouble);
    }
    let (ending, code) = ending;
    let (stdout, stderr) = (out.finalize().into(), err.finalize().into());
    let outcome = Outcome { id, request: &request_mac, ending, stdout: &stdout, stderr: &stderr };
    if !key.verify_result(&outcome, &code) {
        return Err(Trouble::Transport(format!("the result is not authentic: dom0 did not write it (id={id})")));
    }
    match ending {
        Ending::Timeout => Err(Trouble::Timeout),
        Ending::Limit => {
            Err(Trouble::Refused(125, "dom0 ended the command: it wrote more than its policy allows".into()))
        }
        Ending::Cancelled => Err(Trouble::Refused(130, "dom0 ended the command".into())),
        ending => Ok(ending.status()),
    }
}

async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(line) => line.recv().await,
        None => std::future::pending().await,
    }
}
