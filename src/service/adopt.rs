//! Taking up the sessions of the previous process.

use std::sync::Arc;

use super::{
    Resolve, Service,
    flow::Flow,
    handover::{Adopted, Lost},
    listener::Listening,
    notify::sessions,
    route::Route,
    session::{self, ParkedStage, Permits, Stage, say},
    sessions::Info,
};
use crate::{
    dial::qrexec::Call,
    log::{self, End, Kind as Event},
    relay::{Counters, ParkedEnd, Relay, Why},
    spec::{OnRemove, SocketKind},
    stream::{Kind, Stream},
};

impl Service {
    /// Takes up what waits in the descriptor store. What cannot be taken up ends, with the reason.
    pub fn adopt(&mut self, adopted: Vec<Adopted>, lost: Vec<Lost>, resolve: &Resolve) {
        lost.iter().for_each(tell);
        let (mut taken_up, mut kept, mut drained) = (0, 0, 0);
        for session in adopted {
            let here = |r: &Route| *r.listener == *session.listener && r.name == session.name;
            let listening = self.listening.iter().chain(self.own.listening()).find(|l| here(&l.route())).cloned();
            let route = listening.as_ref().map(|l| l.route());
            let orphan = route.is_none();
            let id = session.id;
            self.adopted.extend(child(&session.stage));
            let route = route.map_or_else(|| self.orphan(&session, resolve), Ok);
            let taken = match route {
                Ok(route) => self.take_up(session, route, listening.as_ref()),
                Err(why) => {
                    session.stage.abandon();
                    Err(why)
                }
            };
            match taken {
                Ok(info) => {
                    taken_up += 1;
                    match info.route.options.on_remove {
                        _ if !orphan => {}
                        OnRemove::Keep => kept += 1,
                        OnRemove::Drain => {
                            drained += 1;
                            tokio::spawn(drain(info));
                        }
                    }
                }
                Err(why) => tell(&Lost { session: Some(id), what: format!("session {id}"), why }),
            }
        }
        if taken_up > 0 {
            say(Event::HandoverAdopted, format!("{} taken up from the previous process", sessions(taken_up)));
        }
        if kept > 0 {
            say(Event::ListenerRemoved, format!("{} on after their socket was stopped (on_remove=keep)", go(kept)));
        }
        if drained > 0 {
            let text = format!("{} to end because their socket was stopped (on_remove=drain)", sessions(drained));
            say(Event::ListenerRemoved, text);
        }
    }

    /// The route of a session whose listener is gone: its name still says where it leads. One that has its upstream
    /// already goes on even where the name means nothing any more.
    fn orphan(&self, session: &Adopted, resolve: &Resolve) -> Result<Arc<Route>, String> {
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
        let mut route = match resolve(&session.name, kind) {
            Ok(forward) => {
                let leg = forward.legs.front().clone();
                Route::new(session.name.clone(), &session.listener, leg, forward.options, &self.shared.gates)?
            }
            Err(_) if relaying => Route::unknown(session.name.clone(), &session.listener),
            Err(why) => return Err(why),
        };
        route.upstream_text = session.upstream.as_str().into();
        Ok(Arc::new(route))
    }

    fn take_up(
        &self,
        session: Adopted,
        route: Arc<Route>,
        listening: Option<&Arc<Listening>>,
    ) -> Result<Arc<Info>, String> {
        let failed = |e: std::io::Error| e.to_string();
        if route.call.is_none() && matches!(session.stage, ParkedStage::SettingUp(..)) {
            session.stage.abandon();
            return Err("its name no longer means a qrexec call".to_owned());
        }
        let counters = Counters::starting_at(session.bytes.0, session.bytes.1);
        let info = Info::new(session.id, route.clone(), session.peer, session.age, counters);
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
    format!("{} go{}", sessions(n), if n == 1 { "es" } else { "" })
}

/// Tells that a session could not be taken up; that is its end.
fn tell(lost: &Lost) {
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
