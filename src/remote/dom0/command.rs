//! The life of one command: is it authentic, was it there before, is it allowed, is there room; then it runs, and its
//! result is signed.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    Shared, Vm,
    execute::{self, Done, Job},
    ledger::{self, Refused},
    port::Port,
    transfer,
};
use crate::{
    log::{Event, Kind, emit, escape},
    proto::{
        mac::{self, Digest, Key, Outcome, hex},
        remote::{Ending, Frame, KeyId, Mode, Refusal, Request, argv, check_text, flags},
    },
    remote::{
        audit::{Source, excerpt, now_ms},
        policy::{Asked, Decision, PATH, Policy, Verdict},
    },
    sys::Identity,
};

/// How long a client may take to send a command's text.
const BODY: Duration = Duration::from_secs(30);
/// How long a person may take to approve.
const APPROVAL: Duration = Duration::from_secs(600);
/// The longest that a command of the original's clients may run, as the original has it.
const V1_TIMEOUT: Duration = Duration::from_secs(300);

/// How a stream begins.
#[derive(Debug)]
pub enum First {
    /// A request and its code.
    Open(Box<Request>, Digest),
    /// One of the original's: id, token, length.
    Legacy(String, Vec<u8>, u32),
}

/// Why a command does not run, and what its client is told.
struct No(Refusal, String);

/// What was authenticated.
struct Known {
    id: String,
    /// Of the key that it carries a code of.
    kid: KeyId,
    /// `None`: the original's token.
    v2: Option<(Key, Digest)>,
    request: Option<Box<Request>>,
    length: u32,
}

/// What will be done.
enum Task {
    Run(Box<Job>),
    Get(PathBuf, PathBuf, u64),
    Put(PathBuf, PathBuf, u64),
}

/// Serves one stream to its end.
pub async fn serve(shared: Arc<Shared>, vm: Arc<Vm>, nonce: Option<[u8; 32]>, port: Port, first: First) {
    if let Err(No(refusal, text)) = attend(&shared, &vm, nonce.as_ref(), &port, first).await {
        port.send(Frame::Reject(refusal, &text)).await;
    }
}

async fn attend(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    nonce: Option<&[u8; 32]>,
    port: &Port,
    first: First,
) -> Result<(), No> {
    let known = authenticate(shared, vm, nonce, first)?;
    let id = known.id.clone();
    if !vm.listed() {
        let text = "not authorized: dom0's /etc/qubes/remote.conf does not list this qube any more";
        return Err(refuse(shared, vm, &id, "AUTH-DENY", Refusal::NotAuthorised, text));
    }
    let payload = body(port, known.length).await?;
    if let Some(request) = &known.request {
        if mac::digest(&payload) != request.payload {
            return Err(refuse(shared, vm, &id, "AUTH-FAIL", Refusal::NotAuthorised, "its text is not the one signed"));
        }
    }
    if known.request.as_ref().is_some_and(|r| r.mode == Mode::Ping) {
        return finish_ping(&known, port).await;
    }
    let policy = shared.policy(&vm.name).map_err(|e| {
        let text = format!("the policy of {} cannot be used: {e}", vm.name);
        refuse(shared, vm, &id, "POLICY", Refusal::Denied, &text)
    })?;
    if known.v2.is_none() && !policy.v1 {
        let text = format!(
            "not authorized: a token of protocol v1 (it covers no command); in dom0: qvm-remote-dom0 v1 {} on",
            vm.name
        );
        return Err(refuse(shared, vm, &id, "AUTH-DENY", Refusal::NotAuthorised, &text));
    }
    let (task, decision, shown) = judge(shared, vm, &policy, &known, &payload)?;
    let queued = known.request.as_ref().is_none_or(|r| r.has(flags::QUEUED));
    let mark = queued.then(|| ledger::mark(&vm.name, &known.kid, &id));
    if mark.as_ref().is_some_and(|mark| shared.ledger().knows(mark)) {
        return Err(again(shared, vm, &id));
    }
    if shared.dry_run {
        return dry_run(shared, vm, &known, port, &decision, &shown).await;
    }
    if decision.verdict == Verdict::Ask {
        approve(shared, vm, &id, port, &known, &payload, &shown).await?;
    }
    let _room = match vm.running.clone().try_acquire_owned() {
        Ok(permit) => permit,
        Err(_) => {
            port.send(Frame::Wait("for other commands of this qube to end")).await;
            tokio::select! {
                permit = vm.running.clone().acquire_owned() => permit.expect("it is never closed"),
                _ = port.inbox.abandoned() => return Err(abandoned(shared, vm, &id)),
            }
        }
    };
    if shared.draining() {
        return Err(No(Refusal::Draining, "qvm-remote-dom0 is being stopped".into()));
    }
    if let Some(mark) = mark {
        let begin = || shared.ledger().begin(mark, known.kid, known.request.is_some(), now_ms());
        let begun = match begin() {
            Err(Refused::Full) => {
                let keys = shared.keys.list().into_iter().filter_map(|vm| shared.keys.read(&vm).ok()).flatten();
                let active: Vec<_> = keys.map(|key| key.id()).collect();
                shared.ledger().retain_keys(&active);
                begin()
            }
            begun => begun,
        };
        begun.map_err(|refused| match refused {
            Refused::Again => again(shared, vm, &id),
            Refused::Full => {
                No(Refusal::Busy, "the ledger of v1 requests is full; in dom0, authorize a new key".into())
            }
            Refused::Io(e) => {
                No(Refusal::Failed, format!("the ledger cannot be written: {}", escape(e.to_string().as_bytes())))
            }
        })?;
    }
    let auth = if known.v2.is_some() { "v2" } else { "v1" };
    shared.audit.write("CMD", &format!("vm={} id={id} auth={auth} rule={} {shown}", vm.name, rule(&decision)));
    shared.event(Kind::CommandStart, vm, &id, format!("{} runs {shown}", vm.name), None);
    let began = Instant::now();
    let registration = shared.register(vm, &id);
    let result = match task {
        Task::Run(mut job) => {
            job.cgroup = shared.cgroup.as_ref().map(|dir| dir.join(format!("command-{}", registration.number)));
            execute::run(&job, port, registration.killed()).await
        }
        Task::Get(dir, path, most) => transfer::get(&dir, &path, most, port).await,
        Task::Put(dir, path, most) => transfer::put(&dir, &path, most, port).await,
    };
    drop(registration);
    let done = result.map_err(|e| {
        let text = format!("it could not be started: {}", escape(e.to_string().as_bytes()));
        shared.audit.write("ERROR", &format!("vm={} id={id} {text}", vm.name));
        No(Refusal::Failed, text)
    })?;
    let ms = began.elapsed().as_millis();
    let status = done.ending.status();
    let category = match done.ending {
        Ending::Exit(_) | Ending::Signal(_) => "DONE",
        Ending::Timeout => "TIMEOUT",
        Ending::Cancelled => "CANCEL",
        Ending::Limit => "LIMIT",
    };
    let text = format!("exit={status} duration={ms}ms out={} err={}", done.bytes.0, done.bytes.1);
    shared.audit.write(category, &format!("vm={} id={id} {text}", vm.name));
    shared.event(Kind::CommandEnd, vm, &id, format!("a command of {} ended: {text}", vm.name), Some(status));
    port.send(Frame::Exit(done.ending, sign(&known, &done))).await;
    Ok(())
}

/// Is it from who it says it is, for this session, and new?
fn authenticate(shared: &Shared, vm: &Vm, nonce: Option<&[u8; 32]>, first: First) -> Result<Known, No> {
    let fail = |id: &str, why: &str| refuse(shared, vm, id, "AUTH-FAIL", Refusal::NotAuthorised, why);
    match first {
        First::Legacy(id, token, length) => {
            let keys = shared.keys.read(&vm.name).map_err(|e| no_key(shared, vm, &id, &e))?;
            if token.is_empty() {
                return Err(fail(&id, "not authorized: it carries no token"));
            }
            let key = keys.iter().find(|key| key.v1_verify(&id, &token));
            let key = key.ok_or_else(|| fail(&id, "not authorized: its token is wrong"))?;
            Ok(Known { id, kid: key.id(), v2: None, request: None, length })
        }
        First::Open(request, mac) => {
            let id = request.id.clone();
            let keys = shared.keys.read(&vm.name).map_err(|e| no_key(shared, vm, &id, &e))?;
            let key = keys.into_iter().find(|key| key.id() == request.kid);
            let key = key.ok_or_else(|| fail(&id, "not authorized: its key is not this qube's (any more)"))?;
            if !key.verify_request(&request, &mac) {
                return Err(fail(&id, "not authorized: its code is wrong"));
            }
            // from here on it is whoever has the key
            if request.vm != vm.name {
                return Err(fail(&id, "not authorized: it was made for another qube"));
            }
            if request.has(flags::QUEUED) {
                let skew = now_ms().abs_diff(request.created_ms);
                if skew > ledger::SKEW_MS || request.nonce != [0; 32] {
                    let text = format!("too old, or the clocks differ: by {} s, 300 are allowed", skew / 1000);
                    return Err(refuse(shared, vm, &id, "AUTH-FAIL", Refusal::Stale, &text));
                }
                if shared.ledger().forgot(request.created_ms) {
                    let text = "older than what dom0 remembers: its clock was set back";
                    return Err(refuse(shared, vm, &id, "AUTH-FAIL", Refusal::Stale, text));
                }
            } else if nonce != Some(&request.nonce) {
                return Err(refuse(shared, vm, &id, "AUTH-FAIL", Refusal::Stale, "made for another session"));
            } else if !vm.sequence().fresh(request.seq) {
                return Err(refuse(shared, vm, &id, "AUTH-FAIL", Refusal::Stale, "its number was used before"));
            }
            let length = request.length;
            Ok(Known { id, kid: key.id(), v2: Some((key, mac)), request: Some(request), length })
        }
    }
}

/// Takes the payload, all of it and nothing of what follows.
async fn body(port: &Port, length: u32) -> Result<Vec<u8>, No> {
    let length = length as usize;
    let mut payload = Vec::new();
    let collect = async {
        while payload.len() < length {
            let Some(part) = port.inbox.data().await else { return false };
            port.taken(part.len()).await;
            payload.extend_from_slice(&part);
        }
        true
    };
    match timeout(BODY, collect).await {
        Ok(true) if payload.len() == length => Ok(payload),
        Ok(true) => Err(No(Refusal::Invalid, "input that came before it was asked for".into())),
        Ok(false) => Err(No(Refusal::Invalid, "its text was cut short".into())),
        Err(_) => Err(No(Refusal::Invalid, "its text did not come in time".into())),
    }
}

/// What the policy says, and what is to be done if it says yes.
fn judge<'a>(
    shared: &Shared,
    vm: &Vm,
    policy: &'a Policy,
    known: &Known,
    payload: &[u8],
) -> Result<(Task, Decision<'a>, String), No> {
    let id = &known.id;
    let invalid = |why: String| refuse(shared, vm, id, "REJECT", Refusal::Invalid, &why);
    let mode = known.request.as_ref().map_or(Mode::Shell, |r| r.mode);
    let has = |flag| known.request.as_ref().is_some_and(|r| r.has(flag));
    let (mut words, mut script, mut path) = (Vec::new(), None, PathBuf::new());
    let (decision, shown) = match mode {
        Mode::Shell => {
            check_text(payload).map_err(|bad| invalid(bad.to_string()))?;
            script = Some(payload.to_vec());
            (policy.decide(Asked::Shell(payload)), format!("cmd={}", excerpt(payload)))
        }
        Mode::Argv => {
            words = argv(payload).map_err(|e| invalid(e.to_string()))?;
            let given: Vec<_> = words.iter().map(|w| format!("'{}'", escape(w))).collect();
            let shown = format!("argv={}", excerpt(given.join(" ").as_bytes()).replace("\\\\", "\\"));
            words[0] = resolve(&words[0])
                .ok_or_else(|| No(Refusal::Failed, format!("{}: no such program in dom0", escape(&words[0]))))?;
            (policy.decide(Asked::Argv(&words)), shown)
        }
        Mode::Get | Mode::Put => {
            path = PathBuf::from(OsString::from_vec(payload.to_vec()));
            let asked = if mode == Mode::Get { Asked::Get(payload) } else { Asked::Put(payload) };
            (policy.decide(asked), format!("{}={}", mode.as_str(), excerpt(payload)))
        }
        Mode::Ping => return Err(invalid("a ping has no policy".into())), // answered before
    };
    let options = &decision.options;
    let why = if decision.verdict == Verdict::Deny {
        Some(match decision.line {
            Some(line) => format!("line {line} of its policy says deny"),
            None => "no rule of its policy allows it".to_owned(),
        })
    } else if has(flags::STDIN) && !options.stdin && mode != Mode::Put {
        Some("its rule allows no standard input".to_owned())
    } else if has(flags::TTY) && !options.tty {
        Some("its rule allows no terminal".to_owned())
    } else if known.request.as_ref().is_some_and(|r| !r.user.is_empty() && options.user.as_ref() != Some(&r.user)) {
        Some("its rule does not name that user".to_owned())
    } else {
        None
    };
    if let Some(why) = why {
        let text = format!("denied: {why} (/etc/qubes/remote.d/{}.policy in dom0)", vm.name);
        return Err(refuse_command(shared, vm, id, &text, &shown));
    }
    let beneath = decision.beneath.map(PathBuf::from).unwrap_or_default();
    let task = match mode {
        Mode::Get => Task::Get(beneath, path, options.max_size),
        Mode::Put => Task::Put(beneath, path, options.max_size),
        _ => Task::Run(Box::new(job(vm, policy, &decision, known, words, script).map_err(|e| No(Refusal::Failed, e))?)),
    };
    Ok((task, decision, shown))
}

/// A program's absolute path: a bare name is looked for in dom0's own PATH, a relative path is none.
fn resolve(program: &[u8]) -> Option<Vec<u8>> {
    let name = Path::new(std::ffi::OsStr::from_bytes(program));
    if name.is_absolute() {
        return Some(program.to_vec());
    }
    if program.contains(&b'/') {
        return None;
    }
    let candidates = PATH.iter().map(|dir| Path::new(dir).join(name));
    candidates.filter(|p| p.is_file()).map(|p| p.into_os_string().into_vec()).next()
}

fn job(
    vm: &Vm,
    policy: &Policy,
    decision: &Decision<'_>,
    known: &Known,
    words: Vec<Vec<u8>>,
    script: Option<Vec<u8>>,
) -> Result<Job, String> {
    let options = &decision.options;
    let request = known.request.as_deref();
    let name = options.user.as_deref().unwrap_or("root");
    let account = nix::unistd::User::from_name(name).ok().flatten().ok_or_else(|| format!("user {name} is unknown"))?;
    let identity = match &options.user {
        Some(_) => {
            let c_name = std::ffi::CString::new(name).map_err(|e| e.to_string())?;
            let groups = nix::unistd::getgrouplist(&c_name, account.gid).map_err(|e| e.to_string())?;
            let groups = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
            Some(Identity { uid: account.uid.as_raw(), gid: account.gid.as_raw(), groups })
        }
        None => None,
    };
    let mut env: Vec<(OsString, OsString)> = vec![
        ("PATH".into(), PATH.join(":").into()),
        ("HOME".into(), account.dir.into_os_string()),
        ("USER".into(), name.into()),
        ("LOGNAME".into(), name.into()),
        ("SHELL".into(), "/bin/bash".into()),
        ("LANG".into(), "C.UTF-8".into()),
        ("QVM_REMOTE_VM".into(), vm.name.clone().into()),
        ("QVM_REMOTE_ID".into(), known.id.clone().into()),
    ];
    let tty = request.is_some_and(|r| r.has(flags::TTY));
    for (key, value) in request.map(|r| r.env.as_slice()).unwrap_or_default() {
        let harmless = |b: &u8| b.is_ascii_alphanumeric() || b"-+._".contains(b);
        let terminal = tty && key == b"TERM" && value.iter().all(harmless);
        if terminal || options.env.iter().any(|name| name.as_bytes() == key) {
            env.retain(|(name, _)| name.as_bytes() != key);
            env.push((OsString::from_vec(key.clone()), OsString::from_vec(value.clone())));
        }
    }
    let (words, script) = match &policy.force {
        Some(force) => {
            let asked = script.unwrap_or_else(|| words.join(&b' '));
            let asked = asked.strip_suffix(b"\n").unwrap_or(&asked).to_vec();
            env.push(("QVM_REMOTE_ORIGINAL_COMMAND".into(), OsString::from_vec(asked)));
            (Vec::new(), Some(force.clone().into_bytes()))
        }
        None => (words, script),
    };
    let cwd = match options.cwd.as_deref() {
        Some("client") => PathBuf::from(OsString::from_vec(request.map_or_else(|| b"/".to_vec(), |r| r.cwd.clone()))),
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from("/"),
    };
    let asked =
        request.map_or(Some(V1_TIMEOUT), |r| (r.timeout_ms > 0).then(|| Duration::from_millis(r.timeout_ms.into())));
    let timeout = [asked, options.timeout].into_iter().flatten().min();
    Ok(Job {
        words: words.into_iter().map(OsString::from_vec).collect(),
        script,
        env,
        cwd,
        identity,
        stdin: request.is_some_and(|r| r.has(flags::STDIN)),
        tty,
        timeout,
        max_output: options.max_output,
        cgroup: None,
    })
}

/// Waits for a person in dom0. What is approved is this very request: its digest is its name there.
async fn approve(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    id: &str,
    port: &Port,
    known: &Known,
    payload: &[u8],
    shown: &str,
) -> Result<(), No> {
    let bound = known.v2.as_ref().map_or_else(|| mac::digest(payload), |(_, mac)| *mac);
    let ticket = hex(&mac::digest(&[&bound[..], id.as_bytes(), vm.name.as_bytes()].concat())[..6]);
    let answer = shared.approvals.ask(&ticket, format!("{} asks for {shown}", vm.name));
    shared.audit.write("ASK", &format!("vm={} id={id} approval={ticket} {shown}", vm.name));
    let text = format!("{} asks for {shown}; to allow it: qvm-remote-dom0 approve {ticket}", vm.name);
    shared.event(Kind::CommandAsked, vm, id, text, None);
    port.send(Frame::Wait(&format!("for approval in dom0: qvm-remote-dom0 approve {ticket}"))).await;
    let answer = tokio::select! {
        answer = timeout(APPROVAL, answer) => answer,
        _ = port.inbox.abandoned() => {
            shared.approvals.forget(&ticket);
            return Err(abandoned(shared, vm, id));
        }
    };
    shared.approvals.forget(&ticket);
    match answer {
        Ok(Ok(true)) => {
            shared.audit.write("APPROVE", &format!("vm={} id={id} approval={ticket}", vm.name));
            Ok(())
        }
        Ok(_) => Err(refuse_command(shared, vm, id, "denied: not approved", shown)),
        Err(_) => Err(refuse_command(shared, vm, id, "denied: nobody approved it in time", shown)),
    }
}

async fn dry_run(
    shared: &Shared,
    vm: &Vm,
    known: &Known,
    port: &Port,
    decision: &Decision<'_>,
    shown: &str,
) -> Result<(), No> {
    let text = format!("[dry-run] {} {shown}\n", decision.verdict.as_str());
    let line = format!(
        "vm={} id={} decision={} rule={} {shown} skipped",
        vm.name,
        known.id,
        decision.verdict.as_str(),
        rule(decision)
    );
    shared.event(Kind::CommandStart, vm, &known.id, format!("DRY {line}"), None);
    port.send(Frame::Accept).await;
    port.send(Frame::Stdout(text.as_bytes())).await;
    let done = Done {
        ending: Ending::Exit(0),
        stdout: mac::digest(text.as_bytes()),
        stderr: mac::digest(b""),
        bytes: (text.len() as u64, 0),
    };
    port.send(Frame::Exit(done.ending, sign(known, &done))).await;
    Ok(())
}

async fn finish_ping(known: &Known, port: &Port) -> Result<(), No> {
    let nothing = mac::digest(b"");
    let done = Done { ending: Ending::Exit(0), stdout: nothing, stderr: nothing, bytes: (0, 0) };
    port.send(Frame::Accept).await;
    port.send(Frame::Exit(done.ending, sign(known, &done))).await;
    Ok(())
}

fn sign(known: &Known, done: &Done) -> Digest {
    let Some((key, request)) = &known.v2 else { return [0; 32] };
    key.result(&Outcome { id: &known.id, request, ending: done.ending, stdout: &done.stdout, stderr: &done.stderr })
}

fn rule(decision: &Decision<'_>) -> String {
    decision.line.map_or_else(|| "none".to_owned(), |line| line.to_string())
}

fn no_key(shared: &Shared, vm: &Vm, id: &str, error: &io::Error) -> No {
    let text = match error.kind() {
        io::ErrorKind::NotFound => "not authorized: this qube has no key in dom0 (any more)".to_owned(),
        _ => format!("not authorized: its key in dom0 cannot be used: {error}"),
    };
    refuse(shared, vm, id, "AUTH-DENY", Refusal::NotAuthorised, &text)
}

fn again(shared: &Shared, vm: &Vm, id: &str) -> No {
    let text = "it was begun before and is not run twice; its result was lost (the daemon or the qube was restarted)";
    refuse(shared, vm, id, "REPLAY", Refusal::Invalid, text)
}

fn abandoned(shared: &Shared, vm: &Vm, id: &str) -> No {
    shared.audit.write("CANCEL", &format!("vm={} id={id} before it began", vm.name));
    No(Refusal::Invalid, "cancelled".into())
}

fn refuse(shared: &Shared, vm: &Vm, id: &str, category: &str, refusal: Refusal, text: &str) -> No {
    let source = if category.starts_with("AUTH") { Source::Anybody } else { Source::Known };
    if shared.audit.refused(&vm.name, source, category, &format!("id={id} {text}")) {
        shared.event(Kind::CommandRefused, vm, id, format!("a command of {} was refused: {text}", vm.name), None);
    }
    No(refusal, text.to_owned())
}

fn refuse_command(shared: &Shared, vm: &Vm, id: &str, text: &str, shown: &str) -> No {
    if shared.audit.refused(&vm.name, Source::Known, "DENY", &format!("id={id} {text} {shown}")) {
        let text = format!("a command of {} was refused: {text}: {shown}", vm.name);
        shared.event(Kind::CommandRefused, vm, id, text, None);
    }
    No(Refusal::Denied, text.to_owned())
}

impl Shared {
    /// Tells the journal.
    pub(super) fn event(&self, kind: Kind, vm: &Vm, id: &str, text: String, status: Option<u8>) {
        let mut event = Event::new(kind, text);
        event.qube = Some(vm.name.as_str().into());
        event.request = Some(id.into());
        event.exit_code = status;
        emit(event);
    }
}
