//! The life of one command: is it authentic, was it there before, is it allowed, is there room; then it runs, and its
//! result is signed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    execute::{self, Done},
    judge::{Authentic, Opening, Rejected, Task, abandoned, again, authenticate, body, judge, refuse, refuse_command},
    ledger::{self, Refused},
    port::Port,
    state::{Shared, Vm},
    transfer,
};
use crate::{
    log::{Kind, escape},
    proto::{
        mac::{self, Digest, Outcome, hex},
        remote::{Ending, Frame, Mode, Refusal, flags},
    },
    remote::{
        audit::now_ms,
        policy::{Decision, Verdict},
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
    let id = authentic.id.clone();
    if !vm.listed() {
        let text = "not authorized: dom0's /etc/qubes/remote.conf does not list this qube any more";
        return Err(refuse(shared, vm, &id, "AUTH-DENY", Refusal::NotAuthorised, text));
    }
    let payload = body(port, authentic.length).await?;
    if let Some(request) = &authentic.request {
        if mac::digest(&payload) != request.payload {
            return Err(refuse(shared, vm, &id, "AUTH-FAIL", Refusal::NotAuthorised, "its text is not the one signed"));
        }
    }
    if authentic.request.as_ref().is_some_and(|r| r.mode == Mode::Ping) {
        return finish_ping(&authentic, port).await;
    }
    let policy = shared.policy(&vm.name).map_err(|e| {
        let text = format!("the policy of {} cannot be used: {e}", vm.name);
        refuse(shared, vm, &id, "POLICY", Refusal::Denied, &text)
    })?;
    if authentic.v2.is_none() && !policy.v1 {
        let text = format!(
            "not authorized: a token of protocol v1 (it covers no command); in dom0: qvm-remote-dom0 v1 {} on",
            vm.name
        );
        return Err(refuse(shared, vm, &id, "AUTH-DENY", Refusal::NotAuthorised, &text));
    }
    let (task, decision, shown) = judge(shared, vm, &policy, &authentic, &payload)?;
    let queued = authentic.request.as_ref().is_none_or(|r| r.has(flags::QUEUED));
    let mark = queued.then(|| ledger::mark(&vm.name, &authentic.kid, &id));
    if mark.as_ref().is_some_and(|mark| shared.ledger().knows(mark)) {
        return Err(again(shared, vm, &id));
    }
    if shared.dry_run {
        return dry_run(shared, vm, &authentic, port, &decision, &shown).await;
    }
    if decision.verdict == Verdict::Ask {
        approve(shared, vm, &id, port, &authentic, &payload, &shown).await?;
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
        return Err(Rejected(Refusal::Draining, "qvm-remote-dom0 is being stopped".into()));
    }
    if let Some(mark) = mark {
        let begin = || shared.ledger().begin(mark, authentic.kid, authentic.request.is_some(), now_ms());
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
                Rejected(Refusal::Busy, "the ledger of v1 requests is full; in dom0, authorize a new key".into())
            }
            Refused::Io(e) => {
                Rejected(Refusal::Failed, format!("the ledger cannot be written: {}", escape(e.to_string().as_bytes())))
            }
        })?;
    }
    let auth = if authentic.v2.is_some() { "v2" } else { "v1" };
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
        Rejected(Refusal::Failed, text)
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
    port.send(Frame::Exit(done.ending, sign(&authentic, &done))).await;
    Ok(())
}

/// Waits for a person in dom0. What is approved is this very request: its digest is its name there.
async fn approve(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    id: &str,
    port: &Port,
    authentic: &Authentic,
    payload: &[u8],
    shown: &str,
) -> Result<(), Rejected> {
    let bound = authentic.v2.as_ref().map_or_else(|| mac::digest(payload), |(_, mac)| *mac);
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
    authentic: &Authentic,
    port: &Port,
    decision: &Decision<'_>,
    shown: &str,
) -> Result<(), Rejected> {
    let text = format!("[dry-run] {} {shown}\n", decision.verdict.as_str());
    let line = format!(
        "vm={} id={} decision={} rule={} {shown} skipped",
        vm.name,
        authentic.id,
        decision.verdict.as_str(),
        rule(decision)
    );
    shared.event(Kind::CommandStart, vm, &authentic.id, format!("DRY {line}"), None);
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

fn rule(decision: &Decision<'_>) -> String {
    decision.line.map_or_else(|| "none".to_owned(), |line| line.to_string())
}
