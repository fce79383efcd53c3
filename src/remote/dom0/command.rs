//! The life of one command: is it authentic, was it there before, is it allowed, is there room; then it runs, and its
//! result is signed.

use std::{io, sync::Arc, time::SystemTime};

use tokio::time::Instant;

use super::{
    background,
    execute::Pumped,
    execute::{self, Done},
    gate::{self, Candidate, Clearance},
    judge::{Authentic, Judged, Opening, Task, authenticate, body},
    port::Port,
    reject::{Case, Category, Rejected},
    request::{Registration, RequestState},
    state::{Shared, Vm},
    transfer::{self, OpenFile},
};
use crate::{
    log::Kind,
    proto::{
        mac::{self, Digest, Outcome},
        remote::{Ending, Frame, Mode, Refusal, WaitReason},
    },
};

/// Serves one stream to its end.
pub async fn serve(shared: Arc<Shared>, vm: Arc<Vm>, nonce: Option<[u8; 32]>, port: Port, opening: Opening) {
    // The request is out of the list, and its place is free, before its answer waits for the qube to read.
    match attend(&shared, &vm, nonce.as_ref(), &port, opening).await {
        Ok(CommandAnswer { ending, code, spent }) => {
            if let Some(spent) = spent {
                port.send(Frame::Wait(spent)).await;
            }
            port.send(Frame::Exit(ending, code)).await;
        }
        Err(Rejected(refusal, text)) => {
            if refusal == Refusal::Draining && shared.restart.holds() {
                port.send(Frame::Wait(WaitReason::Restart)).await;
            }
            port.send(Frame::Reject(refusal, &text)).await;
        }
    }
}

/// What the client of a request gets that was carried out.
struct CommandAnswer {
    ending: Ending,
    /// The code of the result.
    code: Digest,
    /// The limit that ended the command.
    spent: Option<WaitReason<'static>>,
}

impl CommandAnswer {
    fn of(authentic: &Authentic, done: &Done) -> Self {
        Self { ending: done.ending, code: sign(authentic, done), spent: None }
    }
}

async fn attend(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    nonce: Option<&[u8; 32]>,
    port: &Port,
    opening: Opening,
) -> Result<CommandAnswer, Rejected> {
    let authentic = authenticate(shared, vm, nonce, opening)?;
    let case = Case { shared, vm, id: &authentic.id };
    let registration = shared.requests.register(&vm.name, &authentic.id);
    gate::listed(case)?;
    let payload = {
        let candidate = Candidate { case, authentic: &authentic, payload: &[], port, registration: &registration };
        candidate.wait(RequestState::Receiving, body(port, authentic.length)).await??
    };
    if authentic.request.as_ref().is_some_and(|request| mac::digest(&payload) != request.payload) {
        let text = "its text is not the one signed";
        return Err(case.refuse(Category::AuthFail, Refusal::NotAuthorised, text));
    }
    let candidate = Candidate { case, authentic: &authentic, payload: &payload, port, registration: &registration };
    if authentic.request.as_ref().is_some_and(|r| r.mode == Mode::Ping) {
        let nothing = mac::digest(b"");
        let done = Done { ending: Ending::Exit(0), stdout: nothing, stderr: nothing, input: None, bytes: (0, 0) };
        candidate.wait(RequestState::Receiving, port.send(Frame::Accept)).await?;
        return Ok(CommandAnswer::of(&authentic, &done));
    }
    if gate::mark(case, &authentic).is_some_and(|mark| shared.ledger().knows(&mark)) {
        return Err(case.again());
    }
    if shared.dry_run {
        let judged = gate::decide(candidate).await?.judged;
        let done = candidate.wait(RequestState::Receiving, dry_run(case, port, &judged)).await?;
        return Ok(CommandAnswer::of(&authentic, &done));
    }
    let clearance = gate::pass(candidate).await?;
    let (job, policy) = (clearance.judged.launch(), clearance.judged.options.timeout);
    // the time of a transfer has no other bound in dom0
    let by_policy = policy.filter(|_| job.is_none_or(|job| job.timeout_by_policy));
    let done = carry_out(case, clearance, port, registration).await?;
    let limit = by_policy.map_or(WaitReason::SpentByClient, |time| WaitReason::Spent(time.as_secs()));
    let spent = (done.ending == Ending::Timeout).then_some(limit);
    Ok(CommandAnswer { spent, ..CommandAnswer::of(&authentic, &done) })
}

/// Does what was asked, with an entry at its end.
async fn carry_out(
    case: Case<'_>,
    clearance: Clearance,
    port: &Port,
    registration: Registration,
) -> Result<Done, Rejected> {
    let vm = &case.vm.name;
    let began = Instant::now();
    let Clearance { judged, place, receipt, file } = clearance;
    let limit = if judged.launch().is_none_or(|job| job.timeout_by_policy) { "policy" } else { "client" };
    let transferred = judged.launch().is_none().then(|| judged.task.clone());
    let (mut group, mut supervisor) = (None, None);
    // the client's own time is how long it waits; what is left in the background is bounded by the policy's
    let deadline = judged.options.timeout.map(|time| began + time);
    let registered = &registration;
    let result = match (judged.task, file) {
        (Task::Run(job), _) => {
            match case.shared.groups.as_ref().map(|groups| groups.make(vm, registration.number)).transpose() {
                Ok(made) => {
                    group = made;
                    let supervisors = &case.shared.supervisors;
                    let ran = execute::run(&job, group.as_ref(), receipt, port, registered, supervisors).await;
                    ran.map(|(done, ends)| {
                        supervisor = ends;
                        done
                    })
                }
                Err(e) => Err(e),
            }
        }
        (_, Some(OpenFile::Get(source))) => {
            let moved = Pumped::default();
            let transfer = transfer::get(source, receipt, port, &moved);
            let ending = transfer::within(judged.options.timeout, registered, port, transfer).await;
            let (stdout, bytes) = moved.finish();
            ending.map(|ending| Done { ending, stdout, stderr: mac::digest(b""), input: None, bytes: (bytes, 0) })
        }
        (_, Some(OpenFile::Put(target))) => {
            let moved = Pumped::default();
            let transfer = transfer::put(target, receipt, port, &moved);
            let ending = transfer::within(judged.options.timeout, registered, port, transfer).await;
            let ((digest, bytes), nothing) = (moved.finish(), mac::digest(b""));
            ending.map(|ending| {
                // of a file that is not whole both sides know another part
                let input = (ending == Ending::Exit(0)).then_some(digest);
                Done { ending, stdout: nothing, stderr: nothing, input, bytes: (0, bytes) }
            })
        }
        (_, None) => Err(io::Error::other("its file is not open")),
    };
    drop(place);
    let mut left = group.filter(|group| !group.remove());
    if left.is_some() {
        execute::gone(supervisor).await; // what was just ending is no background
        left = left.filter(|group| !group.remove());
    }
    let in_background = left.is_some();
    if let Some(group) = left {
        let over = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let _ = group.leave(case.id, over.map(|over| SystemTime::now() + over));
        background::watch(case.shared.clone(), vm.clone(), registration, group, deadline);
    }
    let done = result.map_err(|e| match transferred.and_then(|task| task.not_copied(&e)) {
        Some(text) => case.not_copied(text),
        None => case.not_started(&e),
    })?;
    let category = match done.ending {
        Ending::Exit(_) | Ending::Signal(_) => "DONE",
        Ending::Timeout => "TIMEOUT",
        Ending::Cancelled => "CANCEL",
        Ending::Limit => "LIMIT",
    };
    let (ms, status) = (began.elapsed().as_millis(), done.ending.status());
    let mut text = format!("exit={status} duration={ms}ms out={} err={}", done.bytes.0, done.bytes.1);
    if done.ending == Ending::Timeout {
        text += &format!(" limit={limit}");
    }
    if in_background {
        text += " background=yes";
    }
    case.audit(category, &text);
    case.event(Kind::CommandEnd, format!("a command of {vm} ended: {text}"), Some(status));
    Ok(done)
}

/// Says what would be done.
async fn dry_run(case: Case<'_>, port: &Port, judged: &Judged) -> Done {
    let (verdict, shown) = (judged.verdict.as_str(), &judged.shown);
    let text = format!("[dry-run] {verdict} {shown}\n");
    let line = format!("vm={} id={} decision={verdict} rule={} {shown} skipped", case.vm.name, case.id, judged.rule());
    case.event(Kind::CommandStart, format!("DRY {line}"), None);
    port.send(Frame::Accept).await;
    port.send(Frame::Stdout(text.as_bytes())).await;
    Done {
        ending: Ending::Exit(0),
        stdout: mac::digest(text.as_bytes()),
        stderr: mac::digest(b""),
        input: None,
        bytes: (text.len() as u64, 0),
    }
}

fn sign(authentic: &Authentic, done: &Done) -> Digest {
    let (Some(request), key) = (&authentic.code, &authentic.key) else { return [0; 32] };
    let covers = authentic.request.as_ref().is_some_and(|request| request.covers_input());
    let input = done.input.filter(|_| covers);
    let stderr = input.map_or(done.stderr, |input| mac::with_input(&done.stderr, &input));
    key.result(&Outcome { id: &authentic.id, request, ending: done.ending, stdout: &done.stdout, stderr: &stderr })
}
