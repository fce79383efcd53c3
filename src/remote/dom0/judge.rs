//! Whether a command runs: who asks, what is asked, and what the policy says.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::timeout;

use super::{
    execute::Job,
    ledger,
    port::Port,
    state::{Shared, Vm},
};
use crate::{
    log::{Kind, escape},
    proto::{
        mac::{Digest, Key},
        remote::{KeyId, Mode, Refusal, Request, argv, check_text, flags},
    },
    remote::{
        audit::{Source, excerpt, now_ms},
        policy::{Asked, Decision, PATH, Policy, Verdict},
    },
    sys::Identity,
};

/// How long a client may take to send a command's text.
const BODY: Duration = Duration::from_secs(30);
/// The longest that a command of the original's clients may run, as the original has it.
const V1_TIMEOUT: Duration = Duration::from_secs(300);

/// How a stream begins.
#[derive(Debug)]
pub enum Opening {
    /// A request and its code.
    Open(Box<Request>, Digest),
    /// One of the original's: id, token, length.
    V1(String, Vec<u8>, u32),
}

/// Why a command does not run, and what its client is told.
pub(super) struct Rejected(pub(super) Refusal, pub(super) String);

/// What was authenticated.
pub(super) struct Authentic {
    pub(super) id: String,
    /// Of the key that it carries a code of.
    pub(super) kid: KeyId,
    /// `None`: the original's token.
    pub(super) v2: Option<(Key, Digest)>,
    pub(super) request: Option<Box<Request>>,
    pub(super) length: u32,
}

/// What will be done.
pub(super) enum Task {
    Run(Box<Job>),
    Get(PathBuf, PathBuf, u64),
    Put(PathBuf, PathBuf, u64),
}

/// Is it from who it says it is, for this session, and new?
pub(super) fn authenticate(
    shared: &Shared,
    vm: &Vm,
    nonce: Option<&[u8; 32]>,
    opening: Opening,
) -> Result<Authentic, Rejected> {
    let fail = |id: &str, why: &str| refuse(shared, vm, id, "AUTH-FAIL", Refusal::NotAuthorised, why);
    match opening {
        Opening::V1(id, token, length) => {
            let keys = shared.keys.read(&vm.name).map_err(|e| no_key(shared, vm, &id, &e))?;
            if token.is_empty() {
                return Err(fail(&id, "not authorized: it carries no token"));
            }
            let key = keys.iter().find(|key| key.v1_verify(&id, &token));
            let key = key.ok_or_else(|| fail(&id, "not authorized: its token is wrong"))?;
            Ok(Authentic { id, kid: key.id(), v2: None, request: None, length })
        }
        Opening::Open(request, mac) => {
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
            } else if !vm.replay().fresh(request.seq) {
                return Err(refuse(shared, vm, &id, "AUTH-FAIL", Refusal::Stale, "its number was used before"));
            }
            let length = request.length;
            Ok(Authentic { id, kid: key.id(), v2: Some((key, mac)), request: Some(request), length })
        }
    }
}

/// Takes the payload, all of it and nothing of what follows.
pub(super) async fn body(port: &Port, length: u32) -> Result<Vec<u8>, Rejected> {
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
        Ok(true) => Err(Rejected(Refusal::Invalid, "input that came before it was asked for".into())),
        Ok(false) => Err(Rejected(Refusal::Invalid, "its text was cut short".into())),
        Err(_) => Err(Rejected(Refusal::Invalid, "its text did not come in time".into())),
    }
}

/// What the policy says, and what is to be done if it says yes.
pub(super) fn judge<'a>(
    shared: &Shared,
    vm: &Vm,
    policy: &'a Policy,
    authentic: &Authentic,
    payload: &[u8],
) -> Result<(Task, Decision<'a>, String), Rejected> {
    let id = &authentic.id;
    let invalid = |why: String| refuse(shared, vm, id, "REJECT", Refusal::Invalid, &why);
    let mode = authentic.request.as_ref().map_or(Mode::Shell, |r| r.mode);
    let has = |flag| authentic.request.as_ref().is_some_and(|r| r.has(flag));
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
                .ok_or_else(|| Rejected(Refusal::Failed, format!("{}: no such program in dom0", escape(&words[0]))))?;
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
    } else if authentic.request.as_ref().is_some_and(|r| !r.user.is_empty() && options.user.as_ref() != Some(&r.user)) {
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
        _ => Task::Run(Box::new(
            job(vm, policy, &decision, authentic, words, script).map_err(|e| Rejected(Refusal::Failed, e))?,
        )),
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
    authentic: &Authentic,
    words: Vec<Vec<u8>>,
    script: Option<Vec<u8>>,
) -> Result<Job, String> {
    let options = &decision.options;
    let request = authentic.request.as_deref();
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
        ("QVM_REMOTE_ID".into(), authentic.id.clone().into()),
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

fn no_key(shared: &Shared, vm: &Vm, id: &str, error: &io::Error) -> Rejected {
    let text = match error.kind() {
        io::ErrorKind::NotFound => "not authorized: this qube has no key in dom0 (any more)".to_owned(),
        _ => format!("not authorized: its key in dom0 cannot be used: {error}"),
    };
    refuse(shared, vm, id, "AUTH-DENY", Refusal::NotAuthorised, &text)
}

pub(super) fn again(shared: &Shared, vm: &Vm, id: &str) -> Rejected {
    let text = "it was begun before and is not run twice; its result was lost (the daemon or the qube was restarted)";
    refuse(shared, vm, id, "REPLAY", Refusal::Invalid, text)
}

pub(super) fn abandoned(shared: &Shared, vm: &Vm, id: &str) -> Rejected {
    shared.audit.write("CANCEL", &format!("vm={} id={id} before it began", vm.name));
    Rejected(Refusal::Invalid, "cancelled".into())
}

pub(super) fn refuse(shared: &Shared, vm: &Vm, id: &str, category: &str, refusal: Refusal, text: &str) -> Rejected {
    let source = if category.starts_with("AUTH") { Source::Anybody } else { Source::Known };
    if shared.audit.refused(&vm.name, source, category, &format!("id={id} {text}")) {
        shared.event(Kind::CommandRefused, vm, id, format!("a command of {} was refused: {text}", vm.name), None);
    }
    Rejected(refusal, text.to_owned())
}

pub(super) fn refuse_command(shared: &Shared, vm: &Vm, id: &str, text: &str, shown: &str) -> Rejected {
    if shared.audit.refused(&vm.name, Source::Known, "DENY", &format!("id={id} {text} {shown}")) {
        let text = format!("a command of {} was refused: {text}: {shown}", vm.name);
        shared.event(Kind::CommandRefused, vm, id, text, None);
    }
    Rejected(Refusal::Denied, text.to_owned())
}
