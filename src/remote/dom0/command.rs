//! The life of one command: is it authentic, was it there before, is it allowed, is there room; then it runs, and its
//! result is signed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{
    approvals::CannotWait,
    desktop,
    execute::{self, Done},
    judge::{Authentic, Judged, Opening, Task, authenticate, body, judge},
    ledger::{self, Mark, NotBegun},
    port::Port,
    question::SHORT_ID,
    reject::{Case, Category, Rejected},
    sheet::sheet,
    state::{Shared, Vm},
    transfer,
};
use crate::{
    log::{Kind, escape},
    proto::{
        mac::{self, Digest, Outcome},
        remote::{Ending, Frame, Mode, Refusal, WaitReason, flags},
    },
    remote::{
        clock::now_ms,
        policy::{Policy, Verdict},
    },
};

/// How long a person may take to approve.
const APPROVAL: Duration = Duration::from_secs(600);

/// Serves one stream to its end.
pub async fn serve(shared: Arc<Shared>, vm: Arc<Vm>, nonce: Option<[u8; 32]>, port: Port, opening: Opening) {
    if let Err(Rejected(refusal, text)) = attend(&shared, &vm, nonce.as_ref(), &port, opening).await {
        port.send(Frame::Reject(refusal, &text)).await;
    }
}

async fn attend(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    nonce: Option<&[u8; 32]>,
    port: &Port,
    opening: Opening,
) -> Result<(), Rejected> {
    let authentic = authenticate(shared, vm, nonce, opening)?;
    let case = Case { shared, vm, id: &authentic.id };
    if !vm.listed() {
        let text = "not authorized: dom0's /etc/qubes/remote.conf does not list this qube any more";
        return Err(case.refuse(Category::AuthDeny, Refusal::NotAuthorised, text));
    }
    let payload = body(port, authentic.length).await?;
    if authentic.request.as_ref().is_some_and(|request| mac::digest(&payload) != request.payload) {
        let text = "its text is not the one signed";
        return Err(case.refuse(Category::AuthFail, Refusal::NotAuthorised, text));
    }
    if authentic.request.as_ref().is_some_and(|r| r.mode == Mode::Ping) {
        return finish_ping(&authentic, port).await;
    }
    let policy = policy(case, &authentic)?;
    let judged = judge(case, &policy, &authentic, &payload)?;
    let queued = authentic.request.as_ref().is_none_or(|r| r.has(flags::QUEUED));
    let mark = queued.then(|| ledger::mark(&vm.name, &authentic.kid, &authentic.id));
    if mark.as_ref().is_some_and(|mark| shared.ledger().knows(mark)) {
        return Err(case.again());
    }
    if shared.dry_run {
        return dry_run(case, &authentic, port, &judged).await;
    }
    if judged.decision.verdict == Verdict::Ask {
        approve(case, port, &authentic, &judged, &payload).await?;
    }
    let _room = room(case, port).await?;
    if shared.draining() {
        return Err(Rejected(Refusal::Draining, "qvm-remote-dom0 is being stopped".into()));
    }
    if let Some(mark) = mark {
        remember(case, &authentic, mark)?;
    }
    let done = carry_out(case, &authentic, judged, port).await?;
    port.send(Frame::Exit(done.ending, sign(&authentic, &done))).await;
    Ok(())
}

/// The policy of the VM, which must take such a request at all.
fn policy(case: Case<'_>, authentic: &Authentic) -> Result<Policy, Rejected> {
    let vm = &case.vm.name;
    let policy = case.shared.policy(vm).map_err(|e| {
        let text = format!("the policy of {vm} cannot be used: {e}");
        case.refuse(Category::Policy, Refusal::Denied, &text)
    })?;
    if authentic.v2.is_none() && !policy.v1 {
        let text = format!(
            "not authorized: a token of protocol v1 (it covers no command); in dom0: qvm-remote-dom0 v1 {vm} on"
        );
        return Err(case.refuse(Category::AuthDeny, Refusal::NotAuthorised, &text));
    }
    Ok(policy)
}

/// Waits until the VM may run another command.
async fn room(case: Case<'_>, port: &Port) -> Result<OwnedSemaphorePermit, Rejected> {
    let places = &case.vm.running;
    if let Ok(permit) = places.clone().try_acquire_owned() {
        return Ok(permit);
    }
    port.send(Frame::Wait(WaitReason::Commands)).await;
    tokio::select! {
        permit = places.clone().acquire_owned() => Ok(permit.expect("it is never closed")),
        _ = port.inbox.abandoned() => Err(case.abandoned()),
    }
}

/// Writes down that a request that can be repeated is begun.
fn remember(case: Case<'_>, authentic: &Authentic, mark: Mark) -> Result<(), Rejected> {
    let shared = case.shared;
    let begin = || shared.ledger().begin(mark, authentic.kid, authentic.request.is_some(), now_ms());
    let begun = match begin() {
        Err(NotBegun::Full) => {
            let keys = shared.keys.list().into_iter().filter_map(|vm| shared.keys.read(&vm).ok()).flatten();
            let active: Vec<_> = keys.map(|key| key.id()).collect();
            shared.ledger().retain_keys(&active);
            begin()
        }
        begun => begun,
    };
    begun.map_err(|refused| match refused {
        NotBegun::Again => case.again(),
        NotBegun::Full => {
            Rejected(Refusal::Busy, "the ledger of v1 requests is full; in dom0, authorize a new key".into())
        }
        NotBegun::Io(e) => {
            Rejected(Refusal::Failed, format!("the ledger cannot be written: {}", escape(e.to_string().as_bytes())))
        }
    })
}

/// Does what was asked, with an entry before and one after it.
async fn carry_out(case: Case<'_>, authentic: &Authentic, judged: Judged<'_>, port: &Port) -> Result<Done, Rejected> {
    let (shared, vm) = (case.shared, &case.vm.name);
    let auth = if authentic.v2.is_some() { "v2" } else { "v1" };
    case.audit("CMD", &format!("auth={auth} rule={} {}", judged.rule(), judged.shown));
    case.event(Kind::CommandStart, format!("{vm} runs {}", judged.shown), None);
    let began = Instant::now();
    let registration = shared.register(case.vm, case.id, &judged.shown);
    let result = match judged.task {
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
        case.audit("ERROR", &text);
        Rejected(Refusal::Failed, text)
    })?;
    let category = match done.ending {
        Ending::Exit(_) | Ending::Signal(_) => "DONE",
        Ending::Timeout => "TIMEOUT",
        Ending::Cancelled => "CANCEL",
        Ending::Limit => "LIMIT",
    };
    let (ms, status) = (began.elapsed().as_millis(), done.ending.status());
    let text = format!("exit={status} duration={ms}ms out={} err={}", done.bytes.0, done.bytes.1);
    case.audit(category, &text);
    case.event(Kind::CommandEnd, format!("a command of {vm} ended: {text}"), Some(status));
    Ok(done)
}

/// Waits for a person in dom0. What is approved is the sheet, whose digest is the id of the approval.
async fn approve(
    case: Case<'_>,
    port: &Port,
    authentic: &Authentic,
    judged: &Judged<'_>,
    payload: &[u8],
) -> Result<(), Rejected> {
    let (approvals, vm, shown) = (&case.shared.approvals, &case.vm.name, &judged.shown);
    let sheet = sheet(case.vm, authentic, judged, payload);
    let (id, answer) = approvals.ask(vm, &judged.kind(payload), sheet).map_err(|why| match why {
        CannotWait::Waits => Rejected(Refusal::Busy, "it waits for approval already".into()),
        CannotWait::TooMany => {
            Rejected(Refusal::Busy, "too many commands of this qube wait for approval in dom0 already".into())
        }
    })?;
    let short = &id[..SHORT_ID];
    case.audit("ASK", &format!("approval={id} rule={} {shown}", judged.rule()));
    let text = format!("{vm} asks for {shown}; to see all of it and decide: qvm-remote-dom0 approve {short}");
    case.event(Kind::CommandAsked, text, None);
    desktop::notify(vm, short);
    port.send(Frame::Wait(WaitReason::Approval(short))).await;
    let answer = tokio::select! {
        answer = timeout(APPROVAL, answer) => answer,
        _ = port.inbox.abandoned() => {
            approvals.forget(&id);
            return Err(case.abandoned());
        }
    };
    approvals.forget(&id);
    match answer {
        Ok(Ok(true)) => {
            case.audit("APPROVE", &format!("approval={id}"));
            Ok(())
        }
        Ok(_) => Err(case.deny("denied: not approved", shown)),
        Err(_) => Err(case.deny("denied: nobody approved it in time", shown)),
    }
}

async fn dry_run(case: Case<'_>, authentic: &Authentic, port: &Port, judged: &Judged<'_>) -> Result<(), Rejected> {
    let (verdict, shown) = (judged.decision.verdict.as_str(), &judged.shown);
    let text = format!("[dry-run] {verdict} {shown}\n");
    let line = format!("vm={} id={} decision={verdict} rule={} {shown} skipped", case.vm.name, case.id, judged.rule());
    case.event(Kind::CommandStart, format!("DRY {line}"), None);
    port.send(Frame::Accept).await;
    port.send(Frame::Stdout(text.as_bytes())).await;
    let done = Done {
        ending: Ending::Exit(0),
        stdout: mac::digest(text.as_bytes()),
        stderr: mac::digest(b""),
        bytes: (text.len() as u64, 0),
    };
    port.send(Frame::Exit(done.ending, sign(authentic, &done))).await;
    Ok(())
}

async fn finish_ping(authentic: &Authentic, port: &Port) -> Result<(), Rejected> {
    let nothing = mac::digest(b"");
    let done = Done { ending: Ending::Exit(0), stdout: nothing, stderr: nothing, bytes: (0, 0) };
    port.send(Frame::Accept).await;
    port.send(Frame::Exit(done.ending, sign(authentic, &done))).await;
    Ok(())
}

fn sign(authentic: &Authentic, done: &Done) -> Digest {
    let Some((key, request)) = &authentic.v2 else { return [0; 32] };
    key.result(&Outcome { id: &authentic.id, request, ending: done.ending, stdout: &done.stdout, stderr: &done.stderr })
}
