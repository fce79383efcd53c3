//! Whether a command runs: who asks, what is asked, and what the policy says.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::time::timeout;

use super::{
    execute::Launch,
    launch::{What, launch, variables},
    ledger,
    port::Port,
    reject::{Case, Category, Rejected},
    state::{Shared, Vm},
};
use crate::{
    log::{counted, escape},
    proto::{
        mac::{Digest, Key},
        remote::{Mode, Refusal, Request, argv, check_text, flags},
    },
    remote::{
        clock::now_ms,
        policy::{self, Action, AskedProgram, Manner, Policy, RuleOptions, Ruling, UMASK, Verdict},
        program::{FoundProgram, MAX_PATH, PathFault},
        shown::{logged, quoted, quoted_words, visible},
    },
};

/// How long a client may take to send a command's text.
const BODY: Duration = Duration::from_secs(30);

/// How a stream begins.
#[derive(Debug)]
pub enum Opening {
    /// A request and its code.
    Open(Box<Request>, Digest),
    /// A request of protocol v1: id, token, length.
    #[cfg_attr(not(feature = "v1"), expect(dead_code, reason = "refused before its token is looked at"))]
    V1(String, Vec<u8>, u32),
}

/// A request that was authenticated.
pub(super) struct Authentic {
    pub(super) id: String,
    /// The key that made its code or token.
    pub(super) key: Key,
    /// The code; `None` for a token of protocol v1.
    pub(super) code: Option<Digest>,
    pub(super) request: Option<Box<Request>>,
    pub(super) length: u32,
}

/// Is it from who it says it is, for this session, and new?
pub(super) fn authenticate(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    nonce: Option<&[u8; 32]>,
    opening: Opening,
) -> Result<Authentic, Rejected> {
    match opening {
        #[cfg(not(feature = "v1"))]
        Opening::V1(id, ..) => {
            let text = "not authorized: dom0 takes no tokens of protocol v1";
            Err(Case { shared, vm, id: &id }.refuse(Category::AuthDeny, Refusal::NotAuthorised, text))
        }
        #[cfg(feature = "v1")]
        Opening::V1(id, token, length) => {
            let case = Case { shared, vm, id: &id };
            let keys = keys(case)?;
            if token.is_empty() {
                return Err(fail(case, "not authorized: it carries no token"));
            }
            let key = keys.iter().find(|key| key.v1_verify(&id, &token));
            let key = key.ok_or_else(|| fail(case, "not authorized: its token is wrong"))?.clone();
            shared.key_uses.note(key.id());
            Ok(Authentic { id, key, code: None, request: None, length })
        }
        Opening::Open(request, mac) => {
            let case = Case { shared, vm, id: &request.id };
            let key = keys(case)?.into_iter().find(|key| key.id() == request.kid);
            let key = key.ok_or_else(|| {
                let retired = shared.key_uses.retired(&vm.name, request.kid);
                let text = retired.map_or_else(
                    || "not authorized: its key is not this qube's (not yet, or not any more)".to_owned(),
                    |time| {
                        format!(
                            "not authorized: it was signed with a key that was retired in dom0, {time}; qvm-remote ping \
                             takes a new key into use, qvm-remote key gen makes one"
                        )
                    },
                );
                fail(case, &text)
            })?;
            if !key.verify_request(&request, &mac) {
                return Err(fail(case, "not authorized: its code is wrong"));
            }
            // from here on it is whoever has the key
            if request.vm != vm.name {
                return Err(fail(case, "not authorized: it was made for another qube"));
            }
            current(case, &request, nonce)?;
            shared.key_uses.note(key.id());
            let (id, length) = (request.id.clone(), request.length);
            Ok(Authentic { id, key, code: Some(mac), request: Some(request), length })
        }
    }
}

/// Is it for this session, or young enough, and not one that was used before?
fn current(case: Case<'_>, request: &Request, nonce: Option<&[u8; 32]>) -> Result<(), Rejected> {
    let stale = |text: &str| Err(case.refuse(Category::AuthFail, Refusal::Stale, text));
    if request.has(flags::QUEUED) {
        let skew = now_ms().abs_diff(request.created_ms);
        if skew > ledger::SKEW_MS || request.nonce != [0; 32] {
            return stale(&format!("too old, or the clocks differ: by {} s, 300 are allowed", skew / 1000));
        }
        if case.shared.ledger().forgot(request.created_ms) {
            return stale("older than what dom0 remembers: its clock was set back");
        }
    } else if nonce != Some(&request.nonce) {
        return stale("made for another session");
    } else if !case.vm.replay().fresh(request.seq) {
        return stale("its number was used before");
    }
    Ok(())
}

fn fail(case: Case<'_>, why: &str) -> Rejected {
    case.refuse(Category::AuthFail, Refusal::NotAuthorised, why)
}

/// The keys of the VM.
pub(super) fn keys(case: Case<'_>) -> Result<Vec<Key>, Rejected> {
    usable(case, case.shared.keys.read(&case.vm.name))
}

/// The keys of the VM, when they were read.
pub(super) fn usable(case: Case<'_>, keys: io::Result<Vec<Key>>) -> Result<Vec<Key>, Rejected> {
    keys.map_err(|e| {
        let text = match e.kind() {
            io::ErrorKind::NotFound => "not authorized: this qube has no key in dom0 (any more)".to_owned(),
            _ => format!("not authorized: its key in dom0 cannot be used: {e}"),
        };
        case.refuse(Category::AuthDeny, Refusal::NotAuthorised, &text)
    })
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

/// What will be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Run(Box<Launch>),
    Get(PathBuf, PathBuf, u64),
    /// With the permission bits of the file.
    Put(PathBuf, PathBuf, u64, u32),
}

impl Task {
    /// Why the file of a transfer was not copied, in words for its client; `None` for a command.
    pub(super) fn not_copied(&self, e: &io::Error) -> Option<String> {
        let (verb, path) = match self {
            Self::Run(_) => return None,
            Self::Get(_, path, _) => ("read", path),
            Self::Put(_, path, ..) if e.kind() == io::ErrorKind::AlreadyExists => {
                let path = visible(path.as_os_str().as_bytes());
                return Some(format!("{path} is in dom0 already, and put replaces no file"));
            }
            Self::Put(_, path, ..) => ("written", path),
        };
        let (path, why) = (visible(path.as_os_str().as_bytes()), escape(e.to_string().as_bytes()));
        Some(format!("{path} cannot be {verb} in dom0: {why}"))
    }
}

/// What the policy says of a command, and what will be done when it may. Two that are equal are one decision: what a
/// person approved, and what stands in the log, holds for no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) task: Task,
    pub(super) verdict: Verdict,
    /// The rule's line; `None` when no rule matched.
    pub(super) line: Option<usize>,
    pub(super) options: RuleOptions,
    /// What is asked, as the logs show it.
    pub(super) shown: String,
    /// What kind of thing was asked.
    pub(super) mode: Mode,
    /// The names of the program, where one was asked for.
    pub(super) names: Option<AskedProgram>,
}

impl Judged {
    /// The command that will run; `None` for a transfer.
    pub(super) fn launch(&self) -> Option<&Launch> {
        match &self.task {
            Task::Run(launch) => Some(launch),
            Task::Get(..) | Task::Put(..) => None,
        }
    }

    /// The rule's line, as the logs show it.
    pub(super) fn rule(&self) -> String {
        self.line.map_or_else(|| "none".to_owned(), |line| line.to_string())
    }

    /// What is decided and what will run, for the log: the facts of the sheet, but no value of a variable.
    pub(super) fn entry(&self) -> String {
        let (rule, shown) = (self.rule(), &self.shown);
        let Task::Run(launch) = &self.task else { return format!("rule={rule} {shown}") };
        let user = visible(self.options.user.as_deref().unwrap_or("root").as_bytes());
        let yes = |yes| if yes { "yes" } else { "no" };
        let (directory, stdin, tty) = (launch.cwd.as_os_str().as_bytes(), yes(launch.stdin), yes(launch.tty));
        let otherwise = if launch.at_root_otherwise() { "|'/'" } else { "" };
        let cwd = logged(&quoted(directory), directory) + otherwise;
        let umask = match launch.umask {
            UMASK => String::new(),
            umask => format!(" umask={umask:03o}"),
        };
        let names: Vec<_> = variables(launch).map(|(name, _)| visible(name.as_bytes())).collect();
        format!("rule={rule} user={user} cwd={cwd}{umask} stdin={stdin} tty={tty} env={} {shown}", names.join(","))
    }

    /// The kind of command, without a word of the qube's.
    pub(super) fn kind(&self, payload: &[u8]) -> String {
        match self.mode {
            Mode::Shell | Mode::Ping => format!("a text for bash of {}", counted(payload.len(), "byte")),
            Mode::Argv => "a program".to_owned(),
            Mode::Get => "a file of dom0".to_owned(),
            Mode::Put => "a file to be written".to_owned(),
        }
    }
}

/// What a command is held against: the policy, and what the file system says of the program that is asked for.
pub(super) struct Sight {
    /// The policy as it was read.
    pub(super) read: Policy,
    /// The policy, with what it names looked up.
    pub(super) policy: Policy,
    /// The program's name and its arguments, where a program is asked for.
    pub(super) words: Vec<Vec<u8>>,
    /// The program; `None` where no rule can match.
    pub(super) found: Option<FoundProgram>,
}

impl Sight {
    /// Of a command for which nothing has to be looked at.
    pub(super) fn of(policy: Policy) -> Self {
        Self { read: policy.clone(), policy, words: Vec::new(), found: None }
    }
}

fn mode(authentic: &Authentic) -> Mode {
    authentic.request.as_ref().map_or(Mode::Shell, |request| request.mode)
}

/// The words of the command, where a program is asked for.
pub(super) fn words(case: Case<'_>, authentic: &Authentic, payload: &[u8]) -> Result<Vec<Vec<u8>>, Rejected> {
    let invalid = |why: String| case.refuse(Category::Reject, Refusal::Invalid, &why);
    if mode(authentic) != Mode::Argv {
        return Ok(Vec::new());
    }
    let words = argv(payload).map_err(|e| invalid(e.to_string()))?;
    if words[0].len() > MAX_PATH {
        return Err(invalid(format!("a program's name of more than {MAX_PATH} bytes")));
    }
    Ok(words)
}

/// Holds a command against the policy.
pub(super) fn judge(case: Case<'_>, authentic: &Authentic, payload: &[u8], sight: &Sight) -> Result<Judged, Rejected> {
    let request = authentic.request.as_deref();
    let invalid = |why: String| case.refuse(Category::Reject, Refusal::Invalid, &why);
    let failed = |why: String| Rejected(Refusal::Failed, why);
    let (mode, Sight { policy, words, found, .. }) = (mode(authentic), sight);
    let path = || PathBuf::from(OsString::from_vec(payload.to_vec()));
    let decision = match mode {
        Mode::Shell => {
            check_text(payload).map_err(|bad| invalid(bad.to_string()))?;
            policy.decide(Action::Shell(payload))
        }
        Mode::Argv => match found {
            Some(found) => policy.decide(Action::Argv(&found.names, words.get(1..).unwrap_or_default())),
            None => Ruling::none(),
        },
        Mode::Get => policy.decide(Action::Get(payload)),
        Mode::Put => policy.decide(Action::Put(payload)),
        Mode::Ping => return Err(invalid("a ping has no policy".into())), // answered before
    };
    let shown = shown(mode, payload, words);
    let asked = Manner { mode, flags: request.map_or(0, |r| r.flags), user: request.map_or("", |r| &r.user) };
    if let Some(why) = policy::objection(&decision, asked) {
        let text = format!("denied: {why} (/etc/qubes/remote.d/{}.policy in dom0)", case.vm.name);
        return Err(case.deny(&text, &shown));
    }
    // only who may run the program learns what is wrong with it
    let (names, executed) = match found.as_ref().map(|found| (&found.names, &found.path)) {
        Some((names, Ok(path))) => (Some(names.clone()), Some(path.clone())),
        Some((names, Err(PathFault::Missing))) => (Some(names.clone()), None),
        // another command runs, and all names are known
        Some((_, Err(PathFault::Changeable(_) | PathFault::InProc(_)))) if policy.force.is_some() => (None, None),
        Some((_, Err(fault))) => return Err(case.deny(&format!("denied: {fault}"), &shown)),
        None => (None, None),
    };
    let beneath = decision.beneath.map(PathBuf::from).unwrap_or_default();
    let task = match mode {
        Mode::Get => Task::Get(beneath, path(), decision.options.max_size),
        Mode::Put => Task::Put(beneath, path(), decision.options.max_size, 0o666 & !decision.options.umask),
        _ => {
            let what = match mode {
                Mode::Shell => What::Script(payload.to_vec()),
                _ => What::Argv(executed, words.clone()),
            };
            Task::Run(Box::new(launch(case.vm, policy, &decision, case.id, request, what).map_err(failed)?))
        }
    };
    Ok(Judged { task, verdict: decision.verdict, line: decision.line, options: decision.options, shown, mode, names })
}

/// What is asked, as the logs show it.
fn shown(mode: Mode, payload: &[u8], words: &[Vec<u8>]) -> String {
    let (key, text) = match mode {
        Mode::Argv => ("argv", quoted_words(words)),
        Mode::Get => ("get", visible(payload)),
        Mode::Put => ("put", visible(payload)),
        Mode::Shell | Mode::Ping => ("cmd", visible(payload.strip_suffix(b"\n").unwrap_or(payload))),
    };
    format!("{key}={}", logged(&text, payload))
}
