//! One leg of a forward whose listening side is ours: what is wanted, and what became of it.

use std::{
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    accepting::{AcceptTask, Accepting},
    bind::{self, Bound, SocketClaim},
    handed::Handed,
    listening::ServedListener,
    refuse::refuse,
};
use crate::{
    crash::{self, ListenerCheckpoint, ListenerNames},
    dial::netns::Id,
    log::{Kind, emit},
    session::{ListenerIdentity, Route, Routes, Sessions, seconds},
    spec::{Forward, Leg, Legs, Listen, ListenKey, Netns, Options, SocketKind, Upstream},
};

/// The pause before the first retry of a listener that cannot be opened, and the longest that it doubles to.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How many earlier processes a listener remembers; connections that they made may still be in its backlog.
const REMEMBERED: usize = 8;

/// A leg that is to have a listener of ours.
#[derive(Clone, Debug)]
pub struct Wanted {
    leg: Leg,
    /// The options of the leg.
    pub(super) options: Options,
    /// Label of the forward.
    label: Option<String>,
    /// The index of the forward in the configuration; `None` for what lies behind an inherited listener.
    pub(super) number: Option<usize>,
    /// Whether it is the back leg of a forward, into which the front leg dials.
    back: bool,
    /// Why no socket may be opened for it, where its forward would leave no descriptors for sessions.
    pub(super) no_room: Option<Arc<str>>,
}

/// The legs of a forward whose listening side is ours; `number` is the index of the forward in the configuration, and
/// absent for what lies behind an inherited listener.
pub fn wanted(forward: &Forward, number: Option<usize>) -> Vec<Wanted> {
    let label = forward.label.as_ref().map(|label| label.as_str().to_owned());
    let legs = forward.legs.iter().enumerate().filter(|(_, leg)| leg.listen != Listen::Inherited);
    let pipeline = matches!(forward.legs, Legs::Two { .. });
    let wanted = |(index, leg): (usize, &Leg)| {
        let back = pipeline && index > 0;
        let options = if back { forward.options.clone() } else { forward.front_options() };
        Wanted { leg: leg.clone(), options, label: label.clone(), number, back, no_room: None }
    };
    legs.map(wanted).collect()
}

/// A leg with its state.
#[derive(Debug)]
pub struct Post {
    pub(super) wanted: Wanted,
    pub(super) standing: Standing,
}

/// State of a leg.
#[derive(Debug)]
pub enum Standing {
    /// The leg has not been bound yet.
    Untried,
    /// The listener serves.
    Serving(Serving),
    /// The namespace is not there.
    Awaited {
        /// What the namespace's lookup said.
        why: String,
    },
    /// No socket is opened, because the forward would leave no descriptors for sessions. A reload decides again.
    NoRoom {
        /// The figures.
        why: Arc<str>,
    },
    /// The listener cannot be opened.
    Failed {
        /// The reason.
        why: String,
        /// Time of the next retry.
        again: Instant,
        /// The pause before that.
        pause: Duration,
    },
}

/// A listener of ours that serves.
#[derive(Debug)]
pub struct Serving {
    /// The listener.
    pub listening: Arc<ServedListener>,
    /// Socket file that the listener owns.
    claim: Option<SocketClaim>,
    /// The namespace that it is in.
    netns: Option<Id>,
    /// The processes that served it before, the last one first.
    before: Vec<u32>,
    /// Accept task, once started.
    task: Option<AcceptTask>,
    /// For the next process, should this one crash.
    checkpoint: Option<ListenerCheckpoint>,
}

impl Wanted {
    pub(super) fn listen(&self) -> &Listen {
        &self.leg.listen
    }

    pub(super) fn netns(&self) -> Option<&Netns> {
        match &self.leg.listen {
            Listen::Tcp { netns, .. } | Listen::Udp { netns, .. } => netns.as_ref(),
            Listen::Unix { .. } | Listen::Inherited => None,
        }
    }

    /// What the log calls the listener whose address is `local`.
    fn called(&self, local: &str) -> String {
        self.netns().map_or_else(|| local.to_owned(), |netns| format!("{local} in {netns}"))
    }

    /// The beginning of a message about the forward.
    pub(super) fn named(&self) -> String {
        self.label.as_ref().map(|label| format!("{label}: ")).unwrap_or_default()
    }

    fn backlog(&self) -> Option<i32> {
        match &self.leg.listen {
            Listen::Tcp { backlog, .. } | Listen::Unix { backlog, .. } => i32::try_from(backlog.get()).ok(),
            Listen::Udp { .. } | Listen::Inherited => None,
        }
    }

    /// The kind of the listener.
    fn kind(&self) -> SocketKind {
        match self.listen() {
            Listen::Tcp { .. } => SocketKind::Tcp,
            Listen::Udp { .. } => SocketKind::Udp,
            Listen::Unix { .. } | Listen::Inherited => SocketKind::Unix,
        }
    }

    /// What the listener whose address is `address` is called.
    fn identity(&self, address: &str) -> ListenerIdentity {
        let netns = self.netns().map(|netns| netns.to_string().into());
        ListenerIdentity { netns, ..ListenerIdentity::new(address, self.kind(), self.label.as_deref()) }
    }

    fn route(&self, address: &str, before: &[u32], routes: &Routes) -> Result<Arc<Route>, String> {
        // No name: no socket unit has it, so no other listener's sessions are ever taken for its own.
        let mut route = routes.make(String::new(), self.identity(address), self.leg.clone(), self.options.clone())?;
        if self.back {
            route.access = route.access.and_ourselves(before);
        }
        Ok(Arc::new(route))
    }

    /// Another leg with this key can go on with its listener.
    pub(super) fn key(&self) -> ListenKey {
        self.listen().key().expect("the listening side of a wanted leg is ours")
    }
}

impl Post {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self { wanted, standing: Standing::Untried }
    }

    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// What the listener is called, served or not.
    pub fn identity(&self) -> ListenerIdentity {
        self.wanted.identity(&self.address())
    }

    /// The namespace that the upstream is in, when that is not the service's own.
    pub fn upstream_netns(&self) -> Option<&Netns> {
        match &self.wanted.leg.upstream {
            Upstream::Tcp { netns, .. } | Upstream::Udp { netns, .. } => netns.as_ref(),
            Upstream::Unix(_) | Upstream::Qrexec(_) => None,
        }
    }

    /// Where the leg is to listen, for people.
    pub fn address(&self) -> String {
        self.wanted.leg.listen.place(None)
    }

    pub fn upstream(&self) -> String {
        self.wanted.leg.upstream.to_string()
    }

    /// The listener, while it serves.
    pub fn listening(&self) -> Option<&Arc<ServedListener>> {
        self.serving().map(|serving| &serving.listening)
    }

    pub(super) fn serving(&self) -> Option<&Serving> {
        match &self.standing {
            Standing::Serving(serving) => Some(serving),
            Standing::Untried | Standing::Awaited { .. } | Standing::NoRoom { .. } | Standing::Failed { .. } => None,
        }
    }

    /// Why the leg is not served, if it is not.
    pub fn trouble(&self) -> Option<&str> {
        match &self.standing {
            Standing::Untried | Standing::Serving(_) => None,
            Standing::Awaited { why } | Standing::Failed { why, .. } => Some(why),
            Standing::NoRoom { why } => Some(why),
        }
    }

    /// When the listener is opened again, where it could not be opened.
    pub(super) fn again(&self) -> Option<Instant> {
        match &self.standing {
            Standing::Failed { again, .. } => Some(*again),
            Standing::Untried | Standing::Serving(_) | Standing::Awaited { .. } | Standing::NoRoom { .. } => None,
        }
    }

    /// Tries to serve, on the socket given or on a new one.
    pub(super) fn start(&mut self, handed: Option<Handed>, routes: &Routes) {
        if let (None, Some(why)) = (&handed, &self.wanted.no_room) {
            self.standing = Standing::NoRoom { why: why.clone() };
            return;
        }
        let bound = match handed {
            Some(handed) => Ok((handed.bound, handed.before)),
            None => bind::bind(&self.wanted.leg.listen).map(|bound| (bound, Vec::new())),
        };
        let served =
            bound.and_then(|(bound, before)| self.serve(bound, before, routes).map_err(bind::BindTrouble::Failed));
        let standing = match served {
            Ok(serving) => Standing::Serving(serving),
            Err(bind::BindTrouble::NoNamespace(why)) => self.awaited(why),
            Err(bind::BindTrouble::Failed(why)) => self.failed(why),
        };
        self.standing = standing;
        self.save();
    }

    /// Writes down what the next process needs to serve the listener, should this one crash.
    fn save(&mut self) {
        let listen = self.wanted.listen().to_string();
        let Standing::Serving(serving) = &mut self.standing else { return };
        let (mut claim, mut lock) = (None, 0);
        if let Some(Ok((path, inode, fd))) = serving.claim.as_ref().map(SocketClaim::parts) {
            claim = Some((path.as_os_str().as_bytes().to_vec(), inode));
            lock = crash::key(fd.as_fd());
        }
        let kind = match serving.listening.route().listener.transport {
            SocketKind::Tcp => 0,
            SocketKind::Unix => 1,
            SocketKind::Udp => 2,
        };
        let netns = serving.netns.map(|id| (id.device, id.inode));
        let names = ListenerNames { listen, kind, netns, claim, before: served_by(&serving.before) };
        serving.checkpoint = ListenerCheckpoint::write(&names, crash::key(serving.listening.as_fd()), lock);
    }

    fn awaited(&self, why: String) -> Standing {
        if self.trouble() != Some(&why) {
            let listen = self.wanted.listen().to_string();
            let text = format!("{}{listen} waits for its namespace: {why}", self.wanted.named());
            emit(self.identity().event(Kind::ListenerAwaited, text));
        }
        Standing::Awaited { why }
    }

    fn failed(&self, why: String) -> Standing {
        let now = Instant::now();
        let pause = match &self.standing {
            Standing::Failed { again, pause, .. } if *again <= now => (*pause * 2).min(PAUSE.1),
            _ => PAUSE.0,
        };
        if self.trouble() != Some(&why) {
            self.tell_failed(&why, pause);
        }
        Standing::Failed { why, again: now + pause, pause }
    }

    fn tell_failed(&self, why: &str, pause: Duration) {
        let named = format!("{}{}", self.wanted.named(), self.wanted.listen());
        let text = format!("{named} is not served: {why}; next try in {} s", seconds(pause));
        emit(self.identity().event(Kind::ListenerRefused, text));
    }

    fn serve(&self, bound: Bound, before: Vec<u32>, routes: &Routes) -> Result<Serving, String> {
        let listener = self.wanted.called(&bound.local.to_string());
        let route = self.wanted.route(&listener, &before, routes)?;
        let listening = ServedListener::new(bound.socket, route.clone()).map_err(|(_, e)| e.to_string())?;
        let place = bound.netns.map(|id| format!(" ({id})")).unwrap_or_default();
        let named = self.wanted.named();
        let mut text = format!("{named}{listener}{place} leads to {}{}", route.upstream_text, route.place_now());
        if let Some(trouble) = self.trouble() {
            text += &format!("; before, it was not served: {trouble}");
        }
        emit(route.event(Kind::ListenerServing, text));
        let (listening, claim, netns) = (Arc::new(listening), bound.claim, bound.netns);
        Ok(Serving { listening, claim, netns, before, task: None, checkpoint: None })
    }

    /// Takes over what a new configuration says of the same place; whether that changed anything.
    pub(super) fn change(&mut self, wanted: Wanted, routes: &Routes) -> bool {
        let Some(serving) = self.serving() else {
            let before = self.trouble().map(str::to_owned);
            self.wanted = wanted;
            self.start(None, routes);
            if let Standing::Failed { why, pause, .. } = &self.standing {
                if before.as_ref() == Some(why) {
                    self.tell_failed(why, *pause); // a reload that fails says why, each time
                }
            }
            return self.serving().is_some();
        };
        let old = serving.listening.route();
        let mut changed = false;
        match wanted.route(&old.listener.address, &serving.before, routes) {
            Ok(route) if !old.leads_as(&route) => {
                serving.listening.set_route(route);
                changed = true;
            }
            Ok(_) => {}
            Err(why) => refuse(&old.listener, None, &format!("it keeps its old configuration: {why}")),
        }
        if let (Listen::Unix { rights, .. }, Some(claim)) = (wanted.listen(), &serving.claim) {
            if matches!(self.wanted.listen(), Listen::Unix { rights: old, .. } if old != rights) {
                changed = true;
                if let Err(why) = claim.change(rights) {
                    refuse(&old.listener, None, &format!("it keeps its old mode and owner: {why}"));
                }
            }
        }
        if let Some(length) = wanted.backlog().filter(|length| Some(*length) != self.wanted.backlog()) {
            changed = true;
            let _ = socket2::SockRef::from(&serving.listening.as_fd()).listen(length);
        }
        self.wanted = wanted;
        self.save();
        changed
    }

    /// Starts the task of the listener, where it serves and has none.
    pub(super) fn accept(&mut self, sessions: &Arc<Sessions>, accepting: &mut Accepting) {
        if let Standing::Serving(serving) = &mut self.standing {
            if !serving.task.as_ref().is_some_and(AcceptTask::runs) {
                serving.task = Some(accepting.start(&serving.listening, sessions));
            }
        }
    }

    /// The listener for the next process. Its task must have ended.
    pub(super) fn hand(self) -> Option<Handed> {
        let Standing::Serving(serving) = self.standing else { return None };
        let socket = serving.listening.duplicate().ok()?;
        let local = socket.local().ok()?;
        let bound = Bound { socket, local, claim: serving.claim, netns: serving.netns };
        Some(Handed { listen: self.wanted.listen().to_string(), bound, before: served_by(&serving.before) })
    }
}

/// The processes that served a listener, the last one first: this one, and those `before`.
fn served_by(before: &[u32]) -> Vec<u32> {
    std::iter::once(std::process::id()).chain(before.iter().copied()).take(REMEMBERED).collect()
}

impl Serving {
    pub(super) fn netns(&self) -> Option<Id> {
        self.netns
    }

    /// Closes the listener, and waits until it is closed.
    pub(super) async fn end(self) {
        if let Some(task) = &self.task {
            task.end().await;
        }
        if let Some(flows) = self.listening.flows() {
            flows.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Config;

    #[test]
    fn the_unit_of_a_pipeline_is_that_of_the_leg_that_leads_to_its_program() {
        let legs = |more: &str| {
            let text = format!("listen=127.0.0.1:1,uds=/run/a,target=127.0.0.1:2,stop_when_idle=9,start_unit=a{more}");
            let forwards = Config::gather(None, [text]).unwrap().0.plan().forwards;
            let legs = wanted(&forwards[0], Some(0)).into_iter();
            let [front, back] = legs.map(|leg| leg.options).collect::<Vec<_>>().try_into().unwrap();
            assert_eq!((front.start_unit, front.stop_when_idle), (None, None));
            assert!(back.start_unit.is_some() && back.stop_when_idle.is_some());
            [front.retry_timeout, back.retry_timeout].map(|time| time.map(|time| time.as_secs()))
        };
        assert_eq!(legs(""), [Some(120), None]);
        assert_eq!(legs(",retry_timeout=7"), [Some(7), Some(7)]);
    }
}
