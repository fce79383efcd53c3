//! Taking up the sessions of the previous process.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::{runtime::Handle, task::JoinSet};

use super::{
    Resolve, Service,
    handover::{Adopted, Lost, Sessions},
    listener::Listening,
    session::{self, Flow, Info, ParkedStage, Permits, Route, Shared, Stage},
};
use crate::{
    dial::qrexec::Call,
    log::{self, End, Kind as Event, say},
    relay::{Counters, ParkedEnd, Relay, Why},
    spec::{OnRemove, SocketKind},
    stream::{Kind, Stream},
    systemd::notify::sessions as sessions_text,
};

/// The most threads that take up sessions: each registers descriptors with the same epoll instance, one at a time.
const HANDS: usize = 4;
/// How many sessions one of them takes at a time.
const ARMFUL: usize = 64;

/// Who takes up sessions.
struct Adoption {
    shared: Arc<Shared>,
    /// What is served, and where it leads.
    listening: Vec<(Arc<Listening>, Arc<Route>)>,
    resolve: Arc<Resolve>,
    sessions: Sessions,
    /// The first that nobody has taken.
    next: AtomicUsize,
}

/// What came of it.
#[derive(Default)]
struct Tally {
    taken_up: usize,
    kept: usize,
    drained: usize,
    children: Vec<u32>,
}

impl Service {
    /// Takes up what waits in the descriptor store. What cannot be taken up ends, with the reason.
    pub async fn adopt(&mut self, sessions: Vec<Sessions>, lost: Vec<Lost>, resolve: Resolve) {
        lost.iter().for_each(tell);
        let mut all = Tally::default();
        let listening = self.listening.iter().chain(self.own.listening());
        let listening: Vec<_> = listening.map(|l| (l.clone(), l.route())).collect();
        let resolve = Arc::new(resolve);
        for sessions in sessions.into_iter().filter(|s| s.len() > 0) {
            let workers = Handle::current().metrics().num_workers();
            let hands = sessions.len().div_ceil(ARMFUL).min(workers).min(HANDS);
            let (shared, listening, resolve) = (self.shared.clone(), listening.clone(), resolve.clone());
            let adoption = Arc::new(Adoption { shared, listening, resolve, sessions, next: AtomicUsize::new(0) });
            let mut working = JoinSet::new();
            for _ in 0..hands {
                let adoption = adoption.clone();
                working.spawn(async move { adoption.work() });
            }
            for tally in working.join_all().await {
                all.taken_up += tally.taken_up;
                all.kept += tally.kept;
                all.drained += tally.drained;
                self.adopted.extend(tally.children);
            }
        }
        let Tally { taken_up, kept, drained, .. } = all;
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
    }
}

impl Adoption {
    /// Takes up sessions until there are none left. It awaits nothing, on a worker of the runtime: while all of them are at
    /// it, none looks for events, which every registration brings, and none is woken for a session that was begun.
    fn work(&self) -> Tally {
        let mut tally = Tally::default();
        loop {
            let first = self.next.fetch_add(ARMFUL, Relaxed);
            if first >= self.sessions.len() {
                return tally;
            }
            for index in first..self.sessions.len().min(first + ARMFUL) {
                match self.sessions.read(index) {
                    Ok(session) => self.adopt(session, &mut tally),
                    Err(lost) => tell(&lost),
                }
            }
        }
    }

    fn adopt(&self, session: Adopted<'_>, tally: &mut Tally) {
        let here = |r: &Route| *r.listener == *session.listener && r.name == session.name;
        let found = self.listening.iter().find(|(_, route)| here(route));
        let id = session.id;
        tally.children.extend(child(&session.stage));
        let route = found.map_or_else(|| self.orphan(&session), |(_, route)| Ok(route.clone()));
        let taken = match route {
            Ok(route) => self.take_up(session, route, found.map(|(listening, _)| listening)),
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
            Err(why) => tell(&Lost { session: Some(id), what: format!("session {id}"), why }),
        }
    }

    /// The route of a session whose listener is gone: its name still says where it leads. One that has its upstream
    /// already goes on even where the name means nothing any more.
    fn orphan(&self, session: &Adopted<'_>) -> Result<Arc<Route>, String> {
        let kind = match &session.stage {
            ParkedStage::Waiting(kind, _) | ParkedStage::SettingUp(kind, ..) => *kind,
            ParkedStage::Relaying(relay, _) => match relay.peer {
                ParkedEnd::Socket(kind, _) => kind,
                ParkedEnd::Pipes { .. } => Kind::Tcp,
            },
            ParkedStage::Flow { .. } => return Err("its listener is gone, through which it was answered".to_owned()),
        };
        let kind = if kind == Kind::Unix { SocketKind::Unix } else { SocketKind::Tcp };
        let relaying = matches!(session.stage, ParkedStage::Relaying(..));
        let mut route = match (self.resolve)(&session.name, kind) {
            Ok(forward) => {
                let leg = forward.legs.front().clone();
                Route::new(session.name.to_string(), &session.listener, leg, forward.options, &self.shared)?
            }
            Err(_) if relaying => Route::unknown(session.name.to_string(), &session.listener, &self.shared.tallies),
            Err(why) => return Err(why),
        };
        route.upstream_text = (*session.upstream).into();
        Ok(Arc::new(route))
    }

    fn take_up(
        &self,
        session: Adopted<'_>,
        route: Arc<Route>,
        listening: Option<&Arc<Listening>>,
    ) -> Result<Arc<Info>, String> {
        let failed = |e: std::io::Error| e.to_string();
        if route.call.is_none() && matches!(session.stage, ParkedStage::SettingUp(..)) {
            session.stage.abandon();
            return Err("its name no longer means a qrexec call".to_owned());
        }
        let counters = Counters::starting_at(session.bytes.0, session.bytes.1);
        let info = Info::new(session.id, route.clone(), (*session.peer).into(), session.age, counters);
        if let Some(ms) = session.dial_ms {
            info.connected(ms);
        }
        let info = Arc::new(info);
        let stage = match session.stage {
            ParkedStage::Flow { asked, upstream, quiet } => {
                let listening = listening.ok_or("its listener is gone, through which it was answered")?;
                Stage::Flow(Flow::resume(asked, info.clone(), listening, quiet, upstream).map_err(failed)?)
            }
            ParkedStage::Waiting(kind, peer) => Stage::Waiting(Stream::new(peer, kind).map_err(failed)?),
            ParkedStage::SettingUp(kind, peer, child, stderr, call) => {
                let gate = &route.call.as_ref().ok_or("its name no longer means a qrexec call")?.gate;
                let ticket = gate.clone().resume();
                let peer = Stream::new(peer, kind).map_err(failed)?;
                Stage::SettingUp(Box::new((peer, Call::resume(child, stderr, call).map_err(failed)?, ticket)))
            }
            ParkedStage::Relaying(relay, child) => {
                let mut relay = Relay::resume(relay, route.options.idle_timeout).map_err(failed)?;
                route.options.buffer_size.into_iter().for_each(|bytes| relay.limit_buffer(bytes));
                Stage::Relaying(Box::new(relay), child.map(Box::new))
            }
        };
        // Over a limit that was lowered meanwhile, a session goes on all the same.
        let room = route.room.clone().try_acquire_owned().ok();
        let calls = route.call.as_ref().and_then(|c| c.room.clone().try_acquire_owned().ok());
        session::start(&self.shared, info.clone(), stage, Permits { _session: room, _call: calls });
        Ok(info)
    }
}

/// Gives a session its time to end.
pub(super) async fn drain(info: Arc<Info>) {
    tokio::time::sleep(info.route.options.drain_timeout).await;
    info.interrupt.request(Why::Drained);
}

fn go(n: usize) -> String {
    format!("{} go{}", sessions_text(n), if n == 1 { "es" } else { "" })
}

/// Tells that a session could not be taken up; that is its end.
pub(super) fn tell(lost: &Lost) {
    let text = format!("{} could not be taken up: {}", lost.what, lost.why);
    let mut event = log::Event::new(Event::HandoverLost, text);
    event.session = lost.session;
    event.end = lost.session.map(|_| End::Drained);
    log::emit(event);
}

/// The process id of a session's child.
fn child(stage: &ParkedStage) -> Option<u32> {
    match stage {
        ParkedStage::Waiting(..) | ParkedStage::Flow { .. } => None,
        ParkedStage::SettingUp(_, _, child, ..) => Some(child.pid()),
        ParkedStage::Relaying(_, child) => child.as_ref().map(|(child, _)| child.pid()),
    }
}
