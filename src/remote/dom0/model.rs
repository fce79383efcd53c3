//! The life of requests against a model: whatever the owner, the qubes, the clock and the disk do in whatever order, nothing starts
//! that the newest answer forbids, nothing runs twice, everything is answered, every run is in the log.
//!
//! Real are the gate, keys, policies, approvals, the ledger and the log; a run is a `put`, which needs no process.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    command,
    judge::Opening,
    ledger::Ledger,
    port::{Inbox, Port},
    reject::Case,
    replay::Replay,
    request::RequestState,
    state::Shared,
};
use crate::{
    proto::{
        mac::{Digest, Key, digest},
        remote::{Frame, Mode, RawFrame, Request, WaitReason, flags},
    },
    remote::{
        audit::Audit,
        clock,
        config::{Paths, RemoteConfig},
        keys::Store,
    },
};

/// What happens.
#[derive(Clone, Copy, Debug)]
enum ModelStep {
    /// A new request; from the queue or live.
    Submit(bool),
    /// A request once more, with the very same code.
    Again(usize),
    Policy(ModelRule),
    Revoke,
    Authorize,
    Approve(usize),
    Deny(usize),
    /// Nobody answers in time.
    Expire,
    /// The client sends the rest, so what runs ends.
    Finish(usize),
    /// The client gives up.
    Cancel(usize),
    /// The channel ends.
    Cut(usize),
    /// The owner ends everything of the qube.
    Kill,
    /// The disk takes nothing, or something again.
    Stall(bool),
    /// The owner takes the qube off the list, or puts it back.
    List(bool),
    /// The qube has used up its quota of the log.
    Spend,
    /// The owner gives a larger quota.
    Give,
    /// The daemon dies and another one starts.
    Restart,
}

/// What the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModelRule {
    Allow,
    Ask,
    /// Asks for something else: the same words with another option.
    AskNarrower,
    /// Allows it for no time at all.
    Brief,
    Deny,
    Missing,
    Broken,
}

fn any_step() -> impl Strategy<Value = ModelStep> {
    let rules = [
        ModelRule::Allow,
        ModelRule::Ask,
        ModelRule::AskNarrower,
        ModelRule::Brief,
        ModelRule::Deny,
        ModelRule::Missing,
        ModelRule::Broken,
    ];
    let which = 0..6usize;
    prop_oneof![
        6 => any::<bool>().prop_map(ModelStep::Submit),
        1 => which.clone().prop_map(ModelStep::Again),
        5 => prop::sample::select(rules.to_vec()).prop_map(ModelStep::Policy),
        1 => Just(ModelStep::Revoke),
        2 => Just(ModelStep::Authorize),
        4 => which.clone().prop_map(ModelStep::Approve),
        1 => which.clone().prop_map(ModelStep::Deny),
        1 => Just(ModelStep::Expire),
        4 => which.clone().prop_map(ModelStep::Finish),
        1 => which.clone().prop_map(ModelStep::Cancel),
        1 => which.prop_map(ModelStep::Cut),
        1 => Just(ModelStep::Kill),
        3 => any::<bool>().prop_map(ModelStep::Stall),
        2 => any::<bool>().prop_map(ModelStep::List),
        1 => Just(ModelStep::Spend),
        1 => Just(ModelStep::Give),
        1 => Just(ModelStep::Restart),
    ]
}

/// One time that a request was brought to the daemon.
struct Attempt {
    request: usize,
    inbox: Arc<Inbox>,
    out: mpsc::Receiver<Bytes>,
    /// The approval it waits for, and what the policy said when it was asked.
    asked_id: Option<(String, ModelRule)>,
    approved: Option<ModelRule>,
    started: bool,
    answered: usize,
    /// The daemon died, the client gave up, the channel ended.
    over: bool,
    /// Somebody ended it, before it was finished.
    ended: bool,
    finished: bool,
}

struct World {
    dir: TempDir,
    key: Key,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    nonce: [u8; 32],
    requests: Vec<(Box<Request>, Digest)>,
    attempts: Vec<Attempt>,
    authorized: bool,
    listed: bool,
    rule: ModelRule,
    /// The quota of the log, in MiB.
    quota: u64,
}

fn shared(dir: &TempDir) -> Arc<Shared> {
    let at = |name: &str| dir.path().join(name);
    let paths = Paths { conf: at("conf"), keys: at("keys"), run: at("run"), state: at("state"), log: at("log") };
    Arc::new(Shared {
        missing: Mutex::default(),
        sought: tokio::sync::Notify::new(),
        restart: super::restart::PendingRestart::default(),
        key_uses: super::key_uses::KeyUses::new(dir.path(), true),
        config: RemoteConfig { vms: vec!["work".into()], log_size: 1 << 20, ..RemoteConfig::default() },
        keys: Store::new(&paths.keys, None),
        audit: Audit::new(Some(paths.log.clone()), 1 << 20),
        ledger: Mutex::new(Ledger::open(&paths.state.join("ledger"), clock::now_ms()).expect("opened")),
        approvals: super::approvals::Approvals::default(),
        noted: Mutex::default(),
        requests: Arc::default(),
        dry_run: false,
        once: false,
        stop: CancellationToken::new(),
        draining: CancellationToken::new(),
        tasks: TaskTracker::new(),
        groups: None,
        supervisors: Arc::default(),
        vms: Mutex::default(),
        paths,
    })
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("in")).expect("made");
        let (key, shared) = (Key::new([7; 32]), shared(&dir));
        let mut world = Self {
            dir,
            key,
            shared,
            tasks: JoinSet::new(),
            nonce: [1; 32],
            requests: Vec::new(),
            attempts: Vec::new(),
            authorized: true,
            listed: true,
            rule: ModelRule::Allow,
            quota: 1,
        };
        world.authorize();
        world.policy(ModelRule::Allow);
        world
    }

    fn authorize(&mut self) {
        self.shared.keys.write("work", &self.key, false).expect("written");
        self.authorized = true;
    }

    fn policy(&mut self, rule: ModelRule) {
        self.rule = rule;
        let (path, dir) = (self.dir.path().join("keys/work.policy"), self.dir.path().join("in"));
        let line = match rule {
            ModelRule::Allow => format!("allow put {}", dir.display()),
            ModelRule::Ask => format!("ask put {}", dir.display()),
            ModelRule::AskNarrower => format!("ask put {} [max-size=1K]", dir.display()),
            ModelRule::Brief => format!("allow put {} [timeout=0]", dir.display()),
            ModelRule::Deny => "deny shell *".to_owned(),
            ModelRule::Broken => "nonsense".to_owned(),
            ModelRule::Missing => return fs::remove_file(path).unwrap_or_default(),
        };
        fs::write(path, format!("max-running = 2\naudit-quota = {}M\n{line}\n", self.quota)).expect("written");
    }

    fn file(&self, request: usize) -> PathBuf {
        self.dir.path().join(format!("in/file-{request}"))
    }

    fn submit(&mut self, queued: bool) {
        let number = self.requests.len();
        let payload = self.file(number).into_os_string().into_encoded_bytes();
        let request = Box::new(Request {
            kid: self.key.id(),
            vm: "work".into(),
            nonce: if queued { [0; 32] } else { self.nonce },
            seq: if queued { 0 } else { number as u64 + 1 },
            id: format!("request-{number}"),
            created_ms: clock::now_ms(),
            timeout_ms: 0,
            flags: flags::STDIN | if queued { flags::QUEUED } else { 0 },
            user: String::new(),
            cwd: Vec::new(),
            mode: Mode::Put,
            length: u32::try_from(payload.len()).expect("short"),
            payload: digest(&payload),
            env: Vec::new(),
        });
        let code = self.key.request(&request);
        self.requests.push((request, code));
        self.bring(number);
    }

    fn bring(&mut self, request: usize) {
        let (out, frames) = mpsc::channel(64);
        let inbox: Arc<Inbox> = Arc::default();
        let stream = u32::try_from(self.attempts.len() + 1).expect("few");
        let port = Port { stream, out, inbox: inbox.clone() };
        let (opened, code) = self.requests[request].clone();
        let (shared, nonce) = (self.shared.clone(), self.nonce);
        assert!(inbox.put(&Frame::Body(self.file(request).as_os_str().as_encoded_bytes())));
        self.tasks.spawn(async move {
            let vm = shared.vm("work");
            command::serve(shared, vm, Some(nonce), port, Opening::Open(opened, code)).await;
        });
        self.attempts.push(Attempt {
            request,
            inbox,
            out: frames,
            asked_id: None,
            approved: None,
            started: false,
            answered: 0,
            over: false,
            ended: false,
            finished: false,
        });
    }

    /// Attempt number `n` of those that are open.
    fn open(&mut self, n: usize) -> Option<&mut Attempt> {
        self.attempts.iter_mut().filter(|a| a.answered == 0 && !a.over).nth(n)
    }

    async fn restart(&mut self) {
        self.tasks.shutdown().await;
        self.attempts.iter_mut().for_each(|attempt| attempt.over = true);
        self.shared.audit.stall(false);
        self.shared = shared(&self.dir);
        self.nonce[0] += 1;
        self.listed = true;
        *self.shared.vm("work").replay() = Replay::default();
    }

    fn take(&mut self, step: ModelStep) {
        match step {
            ModelStep::Submit(queued) => self.submit(queued),
            ModelStep::Again(n) if n < self.requests.len() => self.bring(n),
            ModelStep::Policy(rule) => self.policy(rule),
            ModelStep::Revoke => {
                self.shared.keys.remove("work").expect("removed");
                self.authorized = false;
            }
            ModelStep::Authorize => self.authorize(),
            ModelStep::Approve(n) | ModelStep::Deny(n) => {
                let yes = matches!(step, ModelStep::Approve(_));
                let shared = self.shared.clone();
                let Some(attempt) = self.open(n) else { return };
                let Some((asked_id, rule)) = attempt.asked_id.take() else { return };
                let ids = shared.approvals.list();
                if let Some((id, _)) = ids.iter().find(|(id, _)| id.starts_with(&asked_id)) {
                    shared.approvals.answer(id, yes);
                    attempt.approved = yes.then_some(rule);
                }
            }
            ModelStep::Expire => self.shared.approvals.deny_all(),
            ModelStep::Finish(n) => {
                if let Some(attempt) = self.open(n).filter(|a| a.started && !a.finished) {
                    attempt.finished = true;
                    assert!(attempt.inbox.put(&Frame::Stdin(b"x")) && attempt.inbox.put(&Frame::Eof));
                }
            }
            ModelStep::Cancel(n) => {
                if let Some(attempt) = self.open(n) {
                    attempt.ended = !attempt.finished;
                    attempt.inbox.put(&Frame::Cancel);
                }
            }
            ModelStep::Cut(n) => {
                if let Some(attempt) = self.open(n) {
                    (attempt.over, attempt.ended) = (true, !attempt.finished);
                    attempt.inbox.gone();
                }
            }
            ModelStep::Kill => {
                self.shared.kill("work");
                for attempt in self.attempts.iter_mut().filter(|a| a.answered == 0 && !a.over) {
                    attempt.ended |= !attempt.finished;
                }
            }
            ModelStep::List(listed) => {
                self.listed = listed;
                self.shared.vm("work").listed.store(listed, Relaxed);
            }
            ModelStep::Spend => {
                for times in (0..12).rev().map(|shift| 1 << shift) {
                    while self.shared.audit.room("work", "", times, Some(self.quota << 20)).is_ok() {}
                }
            }
            ModelStep::Give => {
                self.quota = (2 * self.quota).min(1024);
                self.policy(self.rule);
            }
            ModelStep::Again(_) | ModelStep::Stall(_) | ModelStep::Restart => {}
        }
    }

    /// Looks at what the daemon has sent since the last step.
    fn look(&mut self) {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let (rule, authorized) = (self.rule, self.authorized && self.listed);
        for attempt in &mut self.attempts {
            while let Ok(bytes) = attempt.out.try_recv() {
                let (raw, _) = RawFrame::split(&bytes).expect("a frame").expect("whole");
                match raw.parse().expect("a frame") {
                    Frame::Wait(WaitReason::Approval(asked_id)) => attempt.asked_id = Some((asked_id.to_owned(), rule)),
                    Frame::Accept => {
                        let id = format!("id=request-{} ", attempt.request);
                        assert!(!attempt.started, "it started twice");
                        attempt.started = true;
                        assert!(authorized && !attempt.ended && !attempt.over, "{id}: nobody may start it");
                        let allowed = matches!(rule, ModelRule::Allow | ModelRule::Brief)
                            || matches!(rule, ModelRule::Ask | ModelRule::AskNarrower)
                                && attempt.approved == Some(rule);
                        assert!(allowed, "{id}: {rule:?}, approved {:?}", attempt.approved);
                        assert!(log.lines().any(|l| l.contains("] CMD ") && l.contains(&id)), "{id} is not in {log}");
                    }
                    Frame::Exit(..) | Frame::Reject(..) => attempt.answered += 1,
                    _ => {}
                }
            }
        }
        for number in 0..self.requests.len() {
            let of = self.attempts.iter().filter(|attempt| attempt.request == number);
            let (started, may_exist) =
                of.fold((0, false), |(n, may), a| (n + usize::from(a.started), may || a.finished && !a.ended));
            assert!(started <= 1, "request {number} ran {started} times");
            assert!(may_exist || !self.file(number).exists(), "request {number} was ended, and left its file");
        }
    }
}

/// Until every task waits for something that is not there.
async fn settle(world: &World, stalled: bool) {
    let on_the_disk = || {
        let waits = |state| matches!(state, RequestState::Recording | RequestState::Looking);
        !stalled && world.shared.requests.list().iter().any(|request| waits(request.state))
    };
    let mut quiet = 0;
    while quiet < 3 {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let busy = on_the_disk() || !world.shared.vm("work").looks.idle();
        quiet = if busy { 0 } else { quiet + 1 };
        if !stalled {
            world.shared.audit.flush().await;
        }
    }
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn run(steps: Vec<ModelStep>) {
    let (mut world, mut stalled) = (World::new(), false);
    for step in steps {
        match step {
            ModelStep::Restart => {
                world.restart().await;
                stalled = false;
            }
            ModelStep::Stall(stall) => {
                world.shared.audit.stall(stall);
                stalled = stall;
            }
            step => world.take(step),
        }
        settle(&world, stalled).await;
        world.look();
    }
    world.shared.audit.stall(false);
    world.take(ModelStep::Kill);
    settle(&world, false).await;
    world.look();
    for attempt in world.attempts.iter().filter(|attempt| !attempt.over) {
        assert_eq!(attempt.answered, 1, "request {} has {} answers", attempt.request, attempt.answered);
    }
    assert!(world.shared.requests.list().is_empty(), "nothing is left in the list");
    let found = crate::remote::audit::verify(&world.shared.paths.log, &Default::default()).expect("read");
    assert_eq!(found.faults, Vec::<String>::new());
}

/// What the log says after this was done for a request of a qube.
async fn logged(act: impl Fn(Case<'_>)) -> String {
    let world = World::new();
    let vm = world.shared.vm("work");
    act(Case { shared: &world.shared, vm: &vm, id: "request" });
    world.shared.audit.flush().await;
    fs::read_to_string(&world.shared.paths.log).expect("there")
}

#[tokio::test]
async fn requests_that_are_cancelled_before_they_begin_do_not_fill_the_log() {
    let log = logged(|case| (0..5000).for_each(|_| _ = (case.abandoned(), case.draining()))).await;
    let count = log.matches("CANCEL vm=work").count();
    assert!((1..=200).contains(&count), "{count} entries");
}

#[tokio::test]
async fn a_request_that_meets_a_beginning_restart_is_not_in_the_log_and_starts_when_no_restart_comes() {
    for queued in [false, true] {
        let mut world = World::new();
        world.shared.restart.ask(&world.shared.requests);
        world.shared.restart.due(&world.shared.requests).await;
        world.submit(queued);
        settle(&world, false).await;
        world.look();
        let log = || fs::read_to_string(&world.shared.paths.log).unwrap_or_default();
        assert!(!world.attempts[0].started && !log().contains("] CMD "), "queued: {queued}: {}", log());
        world.shared.restart.give_up();
        settle(&world, false).await;
        world.look();
        assert!(world.attempts[0].started, "queued: {queued}");
    }
}

#[tokio::test]
async fn a_faulty_policy_is_shown_to_the_owner_and_not_to_the_qube() {
    let log = logged(|case| {
        let policy = case.shared.keys.path("work", "policy").expect("a path");
        fs::write(policy, "secret \x1b[2J one\nsecret two\n").expect("written");
        let why = case.shared.policy("work").expect_err("a fault");
        let told = case.faulty(&why).1;
        assert!(!told.contains("secret") && told.contains("qvm-remote-dom0 check"), "{told}");
    })
    .await;
    let entry = log.lines().find(|line| line.contains("POLICY vm=work")).expect("an entry");
    assert!(entry.contains("work.policy:1") && !entry.contains("work.policy:2") && !entry.contains('\x1b'), "{entry}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_nothing_runs_that_the_newest_answer_forbids(steps in prop::collection::vec(any_step(), 1..50)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(steps));
    }
}
