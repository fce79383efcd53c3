//! The gate: the one way from a request to a command or a transfer that runs.
//!
//! A request waits for a person, for a place, for its entry in the log; while it waits the owner may revoke the key,
//! take the qube off the list, write another policy, end the request. So after each wait everything is asked again, and
//! what the request has got by then (an approval, an entry) counts only for the decision for which it was got. Nothing
//! is awaited between the last question and the start. Only [`pass`] makes a [`Clearance`], and nothing starts without
//! one.

use std::{io, pin::pin, sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    access::QubeAccess,
    approvals::CannotWait,
    changes, desktop,
    judge::{Authentic, Judged, Sight, Task, judge, usable, words},
    ledger::{self, NotBegun},
    looks::{self, NoAnswer},
    places::CommandPlace,
    port::{Port, Receipt},
    question::SHORT_ID,
    reject::{Case, Category, Rejected},
    request::{Registration, RequestState},
    sheet::sheet,
    state::{APPROVAL, Shared},
    transfer::{self, OpenFile},
};
use crate::{
    log::{Kind, escape},
    proto::remote::{Frame, Refusal, WaitReason, flags},
    remote::{
        audit::{self, ChainPoint, LogFailure, OnLogFailure},
        clock::now_ms,
        policy::{Policy, Verdict},
        policy_file::PolicyFileError,
        program::{self, PathFault},
    },
    sys::lock,
};

/// Between two looks at a quota that is used up, from the shortest to the longest.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The client gets a message about a longer wait for a disk.
const NEWS: Duration = Duration::from_secs(2);

/// A request on its way, and all that its waits need.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) case: Case<'a>,
    pub(super) authentic: &'a Authentic,
    pub(super) payload: &'a [u8],
    pub(super) port: &'a Port,
    pub(super) registration: &'a Registration,
}

/// That a request may run now: what is done, its place, and where it stands in the log.
pub(super) struct Clearance {
    pub(super) judged: Judged,
    pub(super) place: CommandPlace,
    pub(super) receipt: Option<Receipt>,
    /// The file of a transfer.
    pub(super) file: Option<OpenFile>,
}

/// What a request has got so far.
#[derive(Default)]
struct Obtained {
    /// Bytes of the log were taken from the quota of the qube.
    room: bool,
    /// The decision that a person approved.
    approved: Option<Judged>,
    place: Option<CommandPlace>,
    /// It stands in the ledger, or need not.
    begun: bool,
    /// The decision that stands in the log, and where.
    recorded: Option<(Judged, Option<Receipt>)>,
    /// The file that was opened, and what for.
    file: Option<(Task, OpenFile)>,
}

/// What a request needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Room,
    Approval,
    Place,
    Ledger,
    Entry,
    File,
    Nothing,
}

impl Obtained {
    /// What is still missing for this decision.
    fn need(&self, judged: &Judged) -> Need {
        if !self.room {
            Need::Room
        } else if judged.verdict == Verdict::Ask && self.approved.as_ref() != Some(judged) {
            Need::Approval
        } else if self.place.is_none() {
            Need::Place
        } else if !self.begun {
            Need::Ledger
        } else if self.recorded.as_ref().is_none_or(|(recorded, _)| recorded != judged) {
            Need::Entry
        } else if !matches!(judged.task, Task::Run(_))
            && self.file.as_ref().is_none_or(|(task, _)| *task != judged.task)
        {
            Need::File
        } else {
            Need::Nothing
        }
    }
}

/// What the policy says now: of the request, and how much its qube may have.
pub(super) struct CurrentRuling {
    pub(super) judged: Judged,
    /// Bytes of the log that are the qube's.
    quota: Option<u64>,
    /// Commands of the qube at a time.
    most: usize,
}

/// Waits for what the request needs, and asks everything again after each wait.
pub(super) async fn pass(candidate: Candidate<'_>) -> Result<Clearance, Rejected> {
    let mut held = Obtained::default();
    loop {
        let decision = decide(candidate).await?;
        candidate.registration.show(&decision.judged.shown);
        let need = candidate.take_what_is_free(&mut held, &decision);
        let judged = decision.judged;
        match need {
            // the restart of the service begins: the next daemon takes the request, or this one when none comes
            Need::Ledger | Need::Entry | Need::Nothing if candidate.case.shared.restart.holds() => {
                candidate.wait(RequestState::Place, candidate.case.shared.restart.released()).await?;
            }
            Need::Room => {
                candidate.room(&judged).await?;
                held.room = true;
            }
            Need::Approval => {
                candidate.approve(&judged).await?;
                held.approved = Some(judged);
            }
            Need::Place => held.place = Some(candidate.place().await?),
            Need::Ledger => {
                candidate.remember().await?;
                held.begun = true;
            }
            Need::Entry => {
                let receipt = candidate.record(&judged).await?;
                held.recorded = Some((judged, receipt));
            }
            Need::File => held.file = candidate.open(judged.task).await?,
            Need::Nothing => {
                let place = held.place.take().expect("it was asked for before");
                let receipt = held.recorded.take().and_then(|(_, receipt)| receipt);
                candidate.registration.enter(RequestState::Running);
                let file = held.file.take().map(|(_, file)| file);
                return Ok(Clearance { judged, place, receipt, file });
            }
        }
    }
}

/// Decides about a request, by what the owner says at this very moment.
pub(super) async fn decide(candidate: Candidate<'_>) -> Result<CurrentRuling, Rejected> {
    try_to_decide(candidate, DiskNews::Told).await?.map_err(|NoAnswer| candidate.unanswered())
}

/// Whether a request that waits is still allowed, as far as that can be told: a directory that does not answer now is
/// looked at again before the request runs.
async fn still_allowed(candidate: Candidate<'_>) -> Result<(), Rejected> {
    try_to_decide(candidate, DiskNews::Kept).await.map(drop)
}

/// Whether a client hears that a disk does not answer; one that waits for something else has heard of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskNews {
    Told,
    Kept,
}

async fn try_to_decide(candidate: Candidate<'_>, news: DiskNews) -> Result<Result<CurrentRuling, NoAnswer>, Rejected> {
    loop {
        let sight = match candidate.look(news).await? {
            Ok(sight) => sight,
            Err(no_answer) => return Ok(Err(no_answer)),
        };
        // a look was waited for, where there was one; by another policy there is more, or other things, to look at
        if sight.words.is_empty() || ask(candidate)? == sight.read {
            let judged = judge(candidate.case, candidate.authentic, candidate.payload, &sight)?;
            let most = candidate.case.shared.places(&sight.read);
            return Ok(Ok(CurrentRuling { judged, quota: quota(&sight.read), most }));
        }
    }
}

/// May this request still run? Was it ended, is the daemon stopped, is the qube listed, is the key still the qube's,
/// and what is its policy? Waits for nothing.
fn ask(candidate: Candidate<'_>) -> Result<Policy, Rejected> {
    let Candidate { case, authentic, registration, .. } = candidate;
    if registration.is_ended() {
        return Err(case.ended());
    }
    if case.shared.draining() {
        return Err(case.draining());
    }
    listed(case)?;
    let access = QubeAccess::read(case.shared, &case.vm.name);
    changes::note(case.shared, &case.vm.name, &access);
    if !usable(case, access.keys)?.contains(&authentic.key) {
        let text = "not authorized: its key is not this qube's (any more)";
        return Err(case.refuse(Category::AuthDeny, Refusal::NotAuthorised, text));
    }
    policy(case, authentic, access.policy)
}

/// Is the qube on the list?
pub(super) fn listed(case: Case<'_>) -> Result<(), Rejected> {
    if case.vm.listed() {
        return Ok(());
    }
    let text = "not authorized: dom0's /etc/qubes/remote.conf does not list this qube any more";
    Err(case.refuse(Category::AuthDeny, Refusal::NotAuthorised, text))
}

/// The policy of the VM, which must take such a request at all.
fn policy(case: Case<'_>, authentic: &Authentic, policy: Result<Policy, PolicyFileError>) -> Result<Policy, Rejected> {
    let vm = &case.vm.name;
    let policy = policy.map_err(|e| case.faulty(&e))?;
    if authentic.code.is_none() && !policy.v1 {
        let text = format!(
            "not authorized: a token of protocol v1 (it covers no command); in dom0: qvm-remote-dom0 v1 {vm} on"
        );
        return Err(case.refuse(Category::AuthDeny, Refusal::NotAuthorised, &text));
    }
    Ok(policy)
}

/// Bytes of the log that a policy gives its qube.
fn quota(policy: &Policy) -> Option<u64> {
    Some(policy.audit_quota.unwrap_or(audit::DEFAULT))
}

impl Candidate<'_> {
    /// Takes what the request can have without a wait, so that the decision is still one of this moment; what it needs
    /// then.
    fn take_what_is_free(&self, held: &mut Obtained, decision: &CurrentRuling) -> Need {
        let CurrentRuling { judged, quota, most } = decision;
        loop {
            match held.need(judged) {
                Need::Room if self.take_room(judged, *quota).is_ok() => held.room = true,
                Need::Ledger if mark(self.case, self.authentic).is_none() => held.begun = true,
                Need::Place => match self.case.vm.places.take(*most) {
                    Some(place) => held.place = Some(place),
                    None => return Need::Place,
                },
                need => return need,
            }
        }
    }

    /// Waits for something, unless the owner ends the request, its client gives up, its channel ends or the daemon
    /// stops.
    pub(super) async fn wait<T>(&self, state: RequestState, something: impl Future<Output = T>) -> Result<T, Rejected> {
        self.registration.enter(state);
        tokio::select! {
            biased;
            () = self.registration.ended() => Err(self.case.ended()),
            _ = self.port.inbox.abandoned() => Err(self.case.abandoned()),
            () = self.case.shared.draining.cancelled() => Err(self.case.draining()),
            got = something => Ok(got),
        }
    }

    /// As [`wait`](Self::wait), for what may take long: also until the key, the list or the policy refuses the request.
    async fn wait_while_allowed<T>(
        &self,
        state: RequestState,
        something: impl Future<Output = T>,
    ) -> Result<T, Rejected> {
        let refused = async {
            let changed = &self.case.vm.changed;
            let mut next = pin!(changed.notified());
            loop {
                next.as_mut().await;
                next.set(changed.notified());
                next.as_mut().enable(); // no change is missed while this one is looked at
                let standing = self.registration.standing();
                if let Err(refused) = still_allowed(*self).await {
                    return refused;
                }
                self.registration.resume(standing);
            }
        };
        self.wait(state, async {
            tokio::select! {
                biased;
                refused = refused => Err(refused),
                got = something => Ok(got),
            }
        })
        .await?
    }

    /// Waits for a disk; a client that waits for more than a moment hears why.
    async fn wait_for_disk<T>(&self, state: RequestState, something: impl Future<Output = T>) -> Result<T, Rejected> {
        self.wait(state, async {
            tokio::pin!(something);
            tokio::select! {
                biased;
                got = &mut something => got,
                () = sleep(NEWS) => {
                    self.port.send(Frame::Wait(WaitReason::Disk)).await;
                    something.await
                }
            }
        })
        .await
    }

    /// Looks at what the file system says about the request, where that matters.
    async fn look(&self, news: DiskNews) -> Result<Result<Sight, NoAnswer>, Rejected> {
        let (case, policy) = (self.case, ask(*self)?);
        let words = words(case, self.authentic, self.payload)?;
        let Some(asked) = words.first().cloned() else { return Ok(Ok(Sight::of(policy))) };
        let read = policy.clone();
        let look = case.vm.looks.look(move || {
            let mut policy = policy;
            program::look_up(&mut policy)?;
            let found = program::find_within(&policy, &asked);
            Ok((policy, found))
        });
        let looked = match news {
            DiskNews::Told => self.wait_for_disk(RequestState::Looking, look).await?,
            DiskNews::Kept => self.wait(RequestState::Looking, look).await?,
        };
        match looked {
            Ok(Ok((policy, found))) => Ok(Ok(Sight { read, policy, words, found })),
            Ok(Err(fault)) => {
                let fault: PathFault = fault;
                let why = format!("what the policy of {} denies cannot be looked up: {fault}", case.vm.name);
                case.event(Kind::CommandRefused, why, None);
                let text = "denied: what the policy of this qube denies cannot be looked up; dom0's journal says why";
                Err(case.refuse(Category::Policy, Refusal::Denied, text))
            }
            Err(no_answer) => Ok(Err(no_answer)),
        }
    }

    /// Refuses the request: a path of it did not answer.
    fn unanswered(&self) -> Rejected {
        let text = format!(
            "denied: a directory on the way to the program, or one that the policy names, did not answer within {} s",
            looks::TIME.as_secs()
        );
        self.case.refuse(Category::Policy, Refusal::Denied, &text)
    }

    /// Takes room for the entries of the command from the qube's part of the log; else, when to try again.
    fn take_room(&self, judged: &Judged, quota: Option<u64>) -> Result<(), Duration> {
        let times = if judged.verdict == Verdict::Ask { 2 } else { 1 };
        self.case.shared.audit.room(&self.case.vm.name, &judged.entry(), times, quota)
    }

    /// Waits until the qube's part of the log has room for the entries of the command.
    async fn room(&self, judged: &Judged) -> Result<(), Rejected> {
        let (shared, vm) = (self.case.shared, &self.case.vm.name);
        let take = || self.take_room(judged, shared.policy(vm).ok().as_ref().and_then(quota));
        let text = format!("{vm} has used up its quota of dom0's log: its commands wait (audit-quota= in its policy)");
        if lock(&self.case.vm.full).due().is_some() {
            self.case.event(Kind::LogQuota, text, None);
        }
        self.wait_while_allowed(RequestState::Quota, async {
            self.port.send(Frame::Wait(WaitReason::LogRoom)).await;
            while let Err(time) = take() {
                sleep(time.clamp(LOOK.0, LOOK.1)).await; // the owner may give more meanwhile
            }
        })
        .await
    }

    /// Waits until the VM may run another command.
    async fn place(&self) -> Result<CommandPlace, Rejected> {
        let (shared, vm) = (self.case.shared, self.case.vm);
        let most = || shared.max_running(&vm.name);
        self.wait_while_allowed(RequestState::Place, async {
            self.port.send(Frame::Wait(WaitReason::Commands)).await;
            vm.places.wait(most).await
        })
        .await
    }

    /// Writes down that a request that can be repeated is begun, and waits until it is on the disk.
    async fn remember(&self) -> Result<(), Rejected> {
        let Some(mark) = mark(self.case, self.authentic) else { return Ok(()) };
        let (case, shared) = (self.case, self.case.shared);
        let (key, dated) = (self.authentic.key.id(), self.authentic.request.is_some());
        let begin = || shared.ledger().begin(mark, key, dated, now_ms());
        let begun = match begin() {
            Err(NotBegun::Full) => {
                let keys = shared.keys.list().into_iter().filter_map(|vm| shared.keys.read(&vm).ok()).flatten();
                let active: Vec<_> = keys.map(|key| key.id()).collect();
                shared.ledger().retain_keys(&active);
                begin()
            }
            begun => begun,
        };
        let writing = begun.map_err(|refused| match refused {
            NotBegun::Again => case.again(),
            NotBegun::Full => {
                Rejected(Refusal::Busy, "the ledger of v1 requests is full; in dom0, authorize a new key".into())
            }
        })?;
        // in a separate thread: a slow disk stalls nobody else
        let written = self.wait_for_disk(RequestState::Recording, spawn_blocking(|| writing.write())).await?;
        written.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(|e| {
            Rejected(Refusal::Failed, format!("the ledger cannot be written: {}", escape(e.to_string().as_bytes())))
        })
    }

    /// Writes the entry of the command, and waits until it is on the disk: what the qube gets about it, with a code,
    /// when the command starts.
    async fn record(&self, judged: &Judged) -> Result<Option<Receipt>, Rejected> {
        let (case, vm) = (self.case, &self.case.vm.name);
        let auth = if self.authentic.code.is_some() { "v2" } else { "v1" };
        let entry = format!("vm={vm} id={} auth={auth} {}", case.id, judged.entry());
        let record = case.shared.audit.record("CMD", &entry);
        let point =
            match (self.wait_for_disk(RequestState::Recording, record).await?, case.shared.config.on_log_failure) {
                (Ok(point), _) => point,
                (Err(_), OnLogFailure::Run) => {
                    case.shared.audit.write("CMD", &format!("{entry} (written late)"));
                    None
                }
                (Err(LogFailure(why)), OnLogFailure::Refuse) => {
                    let text = format!("dom0's log cannot be written, so nothing runs: {}", escape(why.as_bytes()));
                    case.event(Kind::CommandRefused, format!("a command of {vm} was refused: {text}"), None);
                    return Err(Rejected(Refusal::Failed, text));
                }
            };
        case.event(Kind::CommandStart, format!("{vm} runs {}", judged.shown), None);
        let receipt = |point: ChainPoint| {
            let code = self.authentic.code.as_ref()?;
            let code = self.authentic.key.receipt(case.id, code, point.number, &point.head);
            Some(Receipt { number: point.number, head: point.head, code })
        };
        Ok(point.and_then(receipt))
    }

    /// Opens the file that the request is about.
    async fn open(&self, task: Task) -> Result<Option<(Task, OpenFile)>, Rejected> {
        let open = transfer::open(&task, &self.case.vm.looks);
        match self.wait_for_disk(RequestState::Looking, open).await? {
            Ok(file) => Ok(file.map(|file| (task, file))),
            Err(e) => Err(match task.not_copied(&e) {
                Some(text) => self.case.not_copied(text),
                None => self.case.not_started(&e),
            }),
        }
    }

    /// Waits for a person in dom0. What is approved is the sheet, whose digest is the id of the approval.
    async fn approve(&self, judged: &Judged) -> Result<(), Rejected> {
        let (case, approvals, vm, shown) = (self.case, &self.case.shared.approvals, &self.case.vm.name, &judged.shown);
        let sheet = sheet(case.vm, self.authentic, judged, self.payload);
        let qubes = lock(&case.shared.vms).len();
        let (id, answer) = approvals.ask(qubes, vm, &judged.kind(self.payload), sheet).map_err(|why| match why {
            CannotWait::Waits => Rejected(Refusal::Busy, "it waits for approval already".into()),
            CannotWait::TooMany => {
                Rejected(Refusal::Busy, "too many commands of this qube wait for approval in dom0 already".into())
            }
            CannotWait::TooLong(most) => Rejected(
                Refusal::Busy,
                format!(
                    "the texts of this qube that wait for approval would have more than {most} bytes as dom0 shows them"
                ),
            ),
        })?;
        let (_forget, short) = (Forget(case.shared, &id), &id[..SHORT_ID]);
        case.audit("ASK", &format!("approval={id} {}", judged.entry()));
        let text = format!("{vm} asks for {shown}; to see all of it and decide: qvm-remote-dom0 approve {short}");
        case.event(Kind::CommandAsked, text, None);
        let (shared, name) = (case.shared.clone(), vm.to_owned());
        desktop::notify(&case.vm.desktop, vm, short, move || shared.approvals.count(&name));
        let answer = self
            .wait_while_allowed(RequestState::Approval, async {
                self.port.send(Frame::Wait(WaitReason::Approval(short))).await;
                timeout(APPROVAL, answer).await
            })
            .await?;
        match answer {
            Ok(Ok(true)) => {
                case.audit("APPROVE", &format!("approval={id}"));
                Ok(())
            }
            Ok(_) => Err(case.deny("denied: not approved", shown)),
            Err(_) => Err(case.deny("denied: nobody approved it in time", shown)),
        }
    }
}

/// Takes a request that waits no longer out of the approvals.
struct Forget<'a>(&'a Arc<Shared>, &'a str);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.approvals.forget(self.1);
    }
}

/// The mark of a request that can be repeated: one of the queue.
pub(super) fn mark(case: Case<'_>, authentic: &Authentic) -> Option<ledger::Mark> {
    let queued = authentic.request.as_ref().is_none_or(|r| r.has(flags::QUEUED));
    queued.then(|| ledger::mark(&case.vm.name, &authentic.key.id(), &authentic.id))
}
