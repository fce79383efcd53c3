//! The life of one command: is it authentic, was it there before, is it allowed, is there room; then it runs, and its
//! result is signed.

use std::{sync::Arc, time::SystemTime};

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
    transfer,
};
use crate::{
    log::{Kind, escape},
    proto::{
        mac::{self, Digest, Outcome},
        remote::{Ending, Frame, Mode, Refusal},
    },
};

/// Serves one stream to its end.
pub async fn serve(shared: Arc<Shared>, vm: Arc<Vm>, nonce: Option<[u8; 32]>, port: Port, opening: Opening) {
    // The request is out of the list, and its place is free, before its answer waits for the qube to read.
    match attend(&shared, &vm, nonce.as_ref(), &port, opening).await {
        Ok((ending, code)) => port.send(Frame::Exit(ending, code)).await,
        Err(Rejected(refusal, text)) => port.send(Frame::Reject(refusal, &text)).await,
    }
}

async fn attend(
    shared: &Arc<Shared>,
    vm: &Arc<Vm>,
    nonce: Option<&[u8; 32]>,
    port: &Port,
    opening: Opening,
) -> Result<(Ending, Digest), Rejected> {
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
        let done = Done { ending: Ending::Exit(0), stdout: nothing, stderr: nothing, bytes: (0, 0) };
        candidate.wait(RequestState::Receiving, port.send(Frame::Accept)).await?;
        return Ok((done.ending, sign(&authentic, &done)));
    }
    if gate::mark(case, &authentic).is_some_and(|mark| shared.ledger().knows(&mark)) {
        return Err(case.again());
    }
    let done = if shared.dry_run {
        let judged = gate::decide(candidate).await?;
        candidate.wait(RequestState::Receiving, dry_run(case, port, &judged)).await?
    } else {
        let clearance = gate::pass(candidate).await?;
        carry_out(case, clearance, port, registration).await?
    };
    Ok((done.ending, sign(&authentic, &done)))
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
    let Clearance { judged, place, receipt } = clearance;
    let mut group = None;
    // the client's own time is how long it waits; what is left in the background is bounded by the policy's
    let deadline = judged.options.timeout.map(|time| began + time);
    let registered = &registration;
    let result = match judged.task {
        Task::Run(job) => {
            match case.shared.groups.as_ref().map(|groups| groups.make(vm, registration.number)).transpose() {
                Ok(made) => {
                    group = made;
                    execute::run(&job, group.as_ref(), receipt, port, registered).await
                }
                Err(e) => Err(e),
            }
        }
        Task::Get(dir, path, most) => {
            let moved = Pumped::default();
            let transfer = transfer::get((dir, path, most), receipt, port, &moved, &case.vm.looks);
            let ending = transfer::within(judged.options.timeout, registered, port, transfer).await;
            let (stdout, bytes) = moved.finish();
            ending.map(|ending| Done { ending, stdout, stderr: mac::digest(b""), bytes: (bytes, 0) })
        }
        Task::Put(dir, path, most) => {
            let moved = Pumped::default();
            let transfer = transfer::put((dir, path, most), receipt, port, &moved, &case.vm.looks);
            let ending = transfer::within(judged.options.timeout, registered, port, transfer).await;
            let ((_, bytes), nothing) = (moved.finish(), mac::digest(b""));
            ending.map(|ending| Done { ending, stdout: nothing, stderr: nothing, bytes: (0, bytes) })
        }
    };
    drop(place);
    let left = group.filter(|group| !group.remove());
    let in_background = left.is_some();
    if let Some(group) = left {
        let over = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let _ = group.leave(case.id, over.map(|over| SystemTime::now() + over));
        background::watch(case.shared.clone(), vm.clone(), registration, group, deadline);
    }
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
    let mut text = format!("exit={status} duration={ms}ms out={} err={}", done.bytes.0, done.bytes.1);
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
        bytes: (text.len() as u64, 0),
    }
}

fn sign(authentic: &Authentic, done: &Done) -> Digest {
    let (Some(request), key) = (&authentic.code, &authentic.key) else { return [0; 32] };
    key.result(&Outcome { id: &authentic.id, request, ending: done.ending, stdout: &done.stdout, stderr: &done.stderr })
}
