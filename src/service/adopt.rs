//! Taking up the sessions of the previous process.
//!
//! Sessions that have their upstream, or a call in set-up, go on at once. Sessions that wait begin last, in the order
//! in which they were accepted: they must not get a call of a qube before all calls that live have theirs, nor begin a
//! call while the children of no session are ended.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use socket2::SockRef;
use tokio::{runtime::Handle, task::JoinSet};

use super::{setup::resolve, state::RunningService};
use crate::{
    dial::{accepted_earlier, qrexec::LiveCall},
    handover::{Adopted, Lost, Records},
    listener::ServedListener,
    log::{Kind as Event, counted, say},
    relay::{Counters, Relay},
    session::{
        CallLimits, ParkedPeer, ParkedStage, Permits, Route, Routes, SessionInfo, Sessions, SettingUp, Stage, TallyKey,
        abandon, drain, resume,
    },
    spec::{Config, OnRemove, SocketKind},
    stream::Stream,
    systemd::notify::sessions as sessions_text,
};

/// The most threads that take up sessions: each registers descriptors with the same epoll instance, one at a time.
const WORKERS: usize = 4;
/// How many sessions one of them takes at a time.
const BATCH: usize = 64;

/// The listeners at each place, by address and transport; a range has many.
type ServedByKey = HashMap<TallyKey, Vec<(Arc<ServedListener>, Arc<Route>)>>;

/// Who takes up sessions.
struct Adoption {
    sessions: Arc<Sessions>,
    routes: Arc<Routes>,
    /// What is served at each place, and where it leads.
    listening: Arc<ServedByKey>,
    config: Arc<Config>,
    records: Records,
    /// The first that nobody has taken.
    next: AtomicUsize,
}

#[derive(Default)]
struct Summary {
    taken_up: usize,
    lost: usize,
    kept: usize,
    drained: usize,
    children: Vec<u32>,
    waiting: Vec<WaitingSession>,
}

/// A session that has no upstream yet: it begins when all others are taken up.
struct WaitingSession {
    info: Arc<SessionInfo>,
    stage: Stage,
    permits: Permits,
}

impl RunningService {
    /// Takes up what waits in the descriptor store. What cannot be taken up ends, with the reason. Children that no
    /// session has are ended.
    pub(super) async fn adopt(&mut self, all_records: Vec<Records>, lost: Vec<Lost>, config: Arc<Config>) {
        // Before any session goes on: one that is taken up may call again at once.
        let earlier = self.group.as_ref().map(|group| group.members()).unwrap_or_default();
        lost.iter().for_each(Lost::emit);
        let mut all = Summary::default();
        let mut listening = ServedByKey::new();
        for served in self.listening.iter().chain(self.posts.listening()) {
            let route = served.route();
            let place = (route.listener.address.clone(), route.listener.transport);
            listening.entry(place).or_default().push((served.clone(), route));
        }
        let listening = Arc::new(listening);
        let mut strangers = Vec::new();
        for records in all_records {
            let workers = Handle::current().metrics().num_workers();
            let tasks = records.len().div_ceil(BATCH).min(workers).min(WORKERS); // none for none
            let adoption = Arc::new(Adoption {
                sessions: self.sessions.clone(),
                routes: self.routes.clone(),
                listening: listening.clone(),
                config: config.clone(),
                records,
                next: AtomicUsize::new(0),
            });
            let mut working = JoinSet::new();
            for _ in 0..tasks {
                let adoption = adoption.clone();
                working.spawn(async move { adoption.work() });
            }
            let mut summary = Summary::default();
            for tally in working.join_all().await {
                summary.taken_up += tally.taken_up;
                summary.lost += tally.lost;
                all.kept += tally.kept;
                all.drained += tally.drained;
                all.children.extend(tally.children);
                all.waiting.extend(tally.waiting);
            }
            all.taken_up += tell(&adoption.records, &summary);
            strangers.extend(adoption.records.strangers());
        }
        self.sessions.for_each(|info| info.passage.iter().for_each(accepted_earlier));
        let Summary { taken_up, kept, drained, children, mut waiting, lost: _ } = all;
        if taken_up > 0 {
            say(Event::HandoverAdopted, format!("{} taken up from the previous process", sessions_text(taken_up)));
        }
        if kept > 0 {
            say(Event::ListenerRemoved, format!("{} on after their socket was stopped (on_remove=keep)", go(kept)));
        }
        if drained > 0 {
            let text = format!("{} to end because their socket was stopped (on_remove=drain)", sessions_text(drained));
            say(Event::ListenerRemoved, text);
        }
        self.settle_children(&earlier, &children);
        waiting.sort_by_key(|session| session.info.accepted);
        for WaitingSession { info, stage, permits } in waiting {
            resume(&self.sessions, info, stage, permits);
        }
        strangers.into_iter().for_each(|fd| self.accepted(fd));
    }

    /// Begins a session for a connection that a process accepted just before it crashed; resets what was no such
    /// connection.
    fn accepted(&self, fd: OwnedFd) {
        let mut listening = self.listening.iter().chain(self.posts.listening());
        match (listening.find(|listening| listening.has_accepted(&fd)), SockRef::from(&fd).peer_addr()) {
            (Some(listening), Ok(address)) => listening.serve_accepted(&self.sessions, fd, &address),
            _ => abandon(&fd),
        }
    }

    /// Ends the `earlier` children but for those `adopted`: they are those of a process that was killed. And says when
    /// children of ours would not outlive a restart.
    fn settle_children(&self, earlier: &[u32], adopted: &[u32]) {
        let Some(group) = &self.group else { return };
        if self.listening.iter().any(|l| l.route().call().is_some()) && !group.exists() {
            let path = group.path().display();
            say(Event::CallsUnowned, format!("calls will not outlive a restart: {path} is not there"));
        }
        let strays = group.end_strays(earlier, adopted);
        if strays > 0 {
            say(
                Event::CallKilled,
                format!("ended {} of an earlier process: no session uses it any more", counted(strays, "call")),
            );
        }
    }
}

impl Adoption {
    /// Takes up sessions until there are none left. No await, on purpose: idle workers of the runtime would be woken
    /// for every registration and every session that is started.
    fn work(&self) -> Summary {
        let mut tally = Summary::default();
        loop {
            let first = self.next.fetch_add(BATCH, Relaxed);
            if first >= self.records.len() {
                return tally;
            }
            for index in first..self.records.len().min(first + BATCH) {
                match self.records.read(index) {
                    Ok(session) => self.adopt(session, &mut tally),
                    Err(lost) => {
                        tally.lost += usize::from(lost.is_loss());
                        lost.count(self.routes.tallies());
                        lost.emit();
                    }
                }
            }
        }
    }

    fn adopt(&self, session: Adopted<'_>, tally: &mut Summary) {
        let place = (session.listener.address.clone(), session.listener.transport);
        let here = self.listening.get(&place).into_iter().flatten();
        let found = here.into_iter().find(|(_, route)| route.name == session.name);
        let id = session.id;
        tally.children.extend(session.stage.helper().map(|helper| helper.child.pid()));
        let route = found.map_or_else(|| self.orphan(&session), |(_, route)| Ok(route.clone()));
        let taken = match route {
            Ok(route) => self.take_up(session, route, found.map(|(listening, _)| listening), tally),
            Err(why) => {
                session.stage.abandon();
                Err(why)
            }
        };
        match taken {
            Ok(info) => {
                tally.taken_up += 1;
                match info.route.options.on_remove {
                    _ if found.is_some() => {}
                    OnRemove::Keep => tally.kept += 1,
                    OnRemove::Drain => {
                        tally.drained += 1;
                        tokio::spawn(drain(info));
                    }
                }
            }
            Err(why) => {
                tally.lost += 1;
                Lost { session: Some(id), what: format!("session {id}"), why, known: None }.emit();
            }
        }
    }

    /// The route of a session whose listener is gone: its name still says where it leads. One that has its upstream
    /// already goes on even where the name means nothing any more.
    fn orphan(&self, session: &Adopted<'_>) -> Result<Arc<Route>, String> {
        let kind = session.listener.transport;
        if kind == SocketKind::Udp {
            return Err("its UDP listener no longer exists".to_owned());
        }
        let relaying = matches!(session.stage, ParkedStage::Relaying { .. });
        let mut route = match resolve(&self.config, &session.name, kind) {
            Ok(forward) => {
                let (leg, options) = (forward.legs.front().clone(), forward.front_options());
                self.routes.make(session.name.to_string(), session.listener.clone(), leg, options)?
            }
            Err(_) if relaying => {
                self.routes.unknown(session.name.to_string(), session.listener.clone(), &session.upstream)
            }
            Err(why) => return Err(why),
        };
        route.upstream_text = (*session.upstream).into();
        Ok(Arc::new(route))
    }

    /// The stage of a session, on the runtime.
    fn stage(
        &self,
        parked: ParkedStage,
        info: &Arc<SessionInfo>,
        listening: Option<&Arc<ServedListener>>,
    ) -> Result<Stage, String> {
        let failed = |e: std::io::Error| e.to_string();
        let connected = |peer: ParkedPeer| Stream::new(peer.fd, peer.kind).map_err(failed);
        Ok(match parked {
            ParkedStage::Flow { asked, upstream, kept, held } => {
                let flows = listening.and_then(|listening| listening.flows());
                let flows = flows.ok_or("its UDP listener no longer exists")?;
                Stage::Flow(flows.resume(asked, info.clone(), kept, upstream, held).map_err(failed)?)
            }
            ParkedStage::Waiting(peer) => Stage::Waiting(connected(peer)?),
            ParkedStage::SettingUp { peer, helper, call, passed, told } => {
                let Some(CallLimits { gate, .. }) = info.route.call() else {
                    ParkedStage::SettingUp { peer, helper, call, passed, told }.abandon();
                    return Err("its name is no longer a qrexec call".to_owned());
                };
                let ticket = gate.clone().resume(call.taken, passed, told);
                let peer = connected(peer)?;
                let call = LiveCall::resume(helper, call).map_err(failed)?;
                Stage::SettingUp(Box::new(SettingUp { peer, call, ticket }))
            }
            ParkedStage::Relaying { relay, helper } => {
                let mut relay = Relay::resume(relay, info.route.options.idle_timeout).map_err(failed)?;
                info.route.options.buffer_size.into_iter().for_each(|bytes| relay.limit_buffer(bytes));
                Stage::Relaying(Box::new(relay), helper.map(Box::new))
            }
        })
    }

    fn take_up(
        &self,
        session: Adopted<'_>,
        route: Arc<Route>,
        listening: Option<&Arc<ServedListener>>,
        tally: &mut Summary,
    ) -> Result<Arc<SessionInfo>, String> {
        let (up, down) = session.bytes;
        let counters = session.checkpoint.map_or_else(|| Counters::starting_at(up, down), Counters::resume);
        let mut info = SessionInfo::new(session.id, route.clone(), session.peer, session.age, counters);
        info.passage = listening.and_then(|listening| session.stage.passage(&route, listening.entrance()));
        // One that dials yet takes the unit of the route that it takes.
        if !matches!(session.stage, ParkedStage::Waiting(_)) {
            let unit = session.unit.as_deref().and_then(|unit| unit.parse().ok());
            let used = unit.map(|unit| self.routes.backends().of(&unit).begin_use());
            info.used = used.or(info.used);
        }
        if let Some(ms) = session.dial_ms {
            info.connected(ms, session.netns);
        }
        let info = Arc::new(info);
        info.was_queued(session.queued_ms);
        info.redials.resume(session.redials);
        let has_call = session.stage.helper().is_some();
        let noted = info.passage.as_ref().and_then(|passage| session.stage.note_upstream(passage)).map(Box::new);
        let stage = self.stage(session.stage, &info, listening)?;
        // Over a limit that was lowered in the meantime, a session still continues.
        let room = route.room.clone().try_acquire_owned().ok();
        let calls = route.call().filter(|_| has_call).map(|limits| limits.qube.resume());
        let permits = Permits { _session: room, _call: calls, noted };
        if matches!(stage, Stage::Waiting(_)) {
            tally.waiting.push(WaitingSession { info: info.clone(), stage, permits });
        } else {
            resume(&self.sessions, info.clone(), stage, permits);
        }
        Ok(info)
    }
}

/// Says what became of the sessions of a process that crashed. Returns the number of those that no message has.
fn tell(records: &Records, summary: &Summary) -> usize {
    let Some(cause) = records.crash() else { return summary.taken_up };
    let Summary { taken_up, lost, .. } = summary;
    if records.is_empty() {
        return 0;
    }
    records.count(*taken_up, *lost);
    let lost = match lost {
        0 => String::new(),
        1 => "; 1 session could not go on and was reset".to_owned(),
        n => format!("; {n} sessions could not go on and were reset"),
    };
    let moving = match records.repaired() {
        (0, _) => String::new(),
        (n, bytes) => {
            let were = if n == 1 { "was" } else { "were" };
            format!("; {n} {were} being moved at that moment, with {} on their way", counted(bytes, "byte"))
        }
    };
    let sessions = sessions_text(*taken_up);
    say(Event::HandoverAdopted, format!("resumed {sessions} after a crash ({cause}){moving}{lost}"));
    0
}

fn go(n: usize) -> String {
    format!("{} go{}", sessions_text(n), if n == 1 { "es" } else { "" })
}
