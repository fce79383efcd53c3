//! Listeners that the configuration asks for and nobody passed: bound here, closed when the configuration no longer
//! wants them, opened and closed with the namespaces that they are in.
//!
//! Each leg of a forward whose listening side is ours has a [`Post`]. A post that cannot serve keeps no other from
//! serving; it is tried again when its namespace appears, when the configuration is read again, and, where something else
//! than its namespace is missing (its port is taken, say), after a while.

use std::{
    collections::HashMap,
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Service,
    bind::{self, Bound, Claim},
    control, explain,
    listener::Listening,
    netns_watch::Watch,
    refuse,
    route::Route,
    session::{Shared, say},
};
use crate::{
    dial::netns::{self, Id},
    log::{Event, Kind, emit},
    spec::{Forward, Leg, Listen, Netns, OnRemove, Options},
};

/// The pause before a listener that cannot be opened is tried again, and the longest it doubles to.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// So many processes back, a listener knows who served it: what those dialled may still wait in its backlog.
const REMEMBERED: usize = 8;

/// A leg that is to have a listener of ours.
#[derive(Clone, Debug)]
pub struct Wanted {
    leg: Leg,
    options: Options,
    /// What the log calls its forward.
    label: Option<String>,
    /// Which forward of the configuration it is of.
    number: Option<usize>,
    /// Whether it is the back leg of a forward, into which the front leg dials.
    back: bool,
}

/// The legs of a forward whose listening side is ours; `number` tells the configuration's forwards apart, and is absent
/// for what lies behind an inherited listener.
pub fn wanted(forward: &Forward, number: Option<usize>) -> Vec<Wanted> {
    let label = forward.label.as_ref().map(|label| label.as_str().to_owned());
    let legs = forward.legs.iter().enumerate().filter(|(_, leg)| leg.listen != Listen::Inherited);
    let wanted = |(index, leg): (usize, &Leg)| {
        let (leg, options, label) = (leg.clone(), forward.options.clone(), label.clone());
        Wanted { leg, options, label, number, back: index > 0 }
    };
    legs.map(wanted).collect()
}

/// A listener of ours that the previous process handed over.
#[derive(Debug)]
pub struct Kept {
    /// What it listens on, as the configuration had it ([`Listen`]'s text).
    pub listen: String,
    /// The socket and what belongs to it.
    pub bound: Bound,
    /// The processes that served it, the last one first.
    pub before: Vec<u32>,
}

impl Kept {
    /// The next process has it: what it made in the file system stays.
    pub fn release(self) {
        self.bound.claim.map(Claim::release).unwrap_or_default();
    }
}

/// One leg, and what became of it.
#[derive(Debug)]
struct Post {
    wanted: Wanted,
    /// Present while it serves.
    serving: Option<Serving>,
    /// The last reason why it does not.
    trouble: Option<String>,
    /// When it is tried again, and the pause before that; absent while it serves or waits for its namespace.
    again: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Serving {
    listening: Arc<Listening>,
    /// What it made in the file system.
    claim: Option<Claim>,
    /// The namespace that it is in.
    netns: Option<Id>,
    /// The processes that served it before, the last one first.
    before: Vec<u32>,
    /// Ends its task.
    stop: CancellationToken,
    /// Cancelled when its task has ended.
    ended: CancellationToken,
}

/// What became of the listeners of ours.
#[derive(Clone, Copy, Debug)]
pub struct Reconciled {
    /// They lead elsewhere or otherwise, or were tried again.
    pub changed: usize,
    /// New ones.
    pub opened: usize,
    /// Those that no forward wants any more.
    pub closed: usize,
}

/// All listeners of ours.
#[derive(Debug, Default)]
pub struct Own {
    posts: Vec<Post>,
    /// Taken over from the previous process while no configuration says what to do with them: who connects waits.
    held: Vec<Kept>,
}

impl Wanted {
    fn listen(&self) -> &Listen {
        &self.leg.listen
    }

    fn netns(&self) -> Option<&Netns> {
        match &self.leg.listen {
            Listen::Tcp { netns, .. } | Listen::Udp { netns, .. } => netns.as_ref(),
            Listen::Unix { .. } | Listen::Inherited => None,
        }
    }

    /// Where it is to listen, for people.
    fn address(&self) -> String {
        match &self.leg.listen {
            Listen::Tcp { addr, .. } | Listen::Udp { addr, .. } => self.called(&addr.to_string()),
            Listen::Unix { addr, .. } => addr.to_string(),
            Listen::Inherited => String::new(),
        }
    }

    /// What the log calls the listener whose address is `local`.
    fn called(&self, local: &str) -> String {
        self.netns().map_or_else(|| local.to_owned(), |netns| format!("{local} in {netns}"))
    }

    fn route(&self, listener: &str, before: &[u32], shared: &Shared) -> Result<Arc<Route>, String> {
        // No name: no socket unit has it, so no other listener's sessions are ever taken for its own.
        let mut route = Route::new(String::new(), listener, self.leg.clone(), self.options.clone(), shared)?;
        if self.back {
            route.access = route.access.and_ourselves(before);
        }
        Ok(Arc::new(route))
    }

    /// Whether a listener of `other` can go on as that of this leg.
    fn same_place(&self, other: &Self) -> bool {
        match (self.listen(), other.listen()) {
            (Listen::Tcp { addr: a, netns: m, .. }, Listen::Tcp { addr: b, netns: n, .. })
            | (Listen::Udp { addr: a, netns: m }, Listen::Udp { addr: b, netns: n }) => a == b && m == n,
            (Listen::Unix { addr: a, .. }, Listen::Unix { addr: b, .. }) => a == b,
            _ => false,
        }
    }
}

impl Post {
    fn new(wanted: Wanted) -> Self {
        Self { wanted, serving: None, trouble: None, again: None }
    }

    /// Tries to serve, on the socket given or on a new one.
    fn start(&mut self, kept: Option<Kept>, shared: &Shared) {
        let now = Instant::now();
        let due = self.again.take().filter(|(at, _)| *at <= now);
        let pause = due.map_or(PAUSE.0, |(_, pause)| (pause * 2).min(PAUSE.1));
        let bound = match kept {
            Some(kept) => Ok((kept.bound, kept.before)),
            None => bind::bind(self.wanted.listen()).map(|bound| (bound, Vec::new())),
        };
        let (why, awaited) = match bound {
            Ok((bound, before)) => match self.serve(bound, before, shared) {
                Ok(()) => return self.trouble = None,
                Err(why) => (why, false),
            },
            Err(bind::Trouble::NoNamespace(why)) => (why, true),
            Err(bind::Trouble::Failed(why)) => (why, false),
        };
        if !awaited {
            self.again = Some((now + pause, pause));
        }
        if self.trouble.as_ref() != Some(&why) {
            let listen = self.wanted.listen().to_string();
            let named = self.wanted.label.as_ref().map(|label| format!("{label}: ")).unwrap_or_default();
            if awaited {
                let text = format!("{named}{listen} waits for its namespace: {why}");
                let mut event = Event::new(Kind::ListenerAwaited, text);
                event.listener = Some(listen.into());
                emit(event);
            } else {
                let why = format!("{why}; next try in {} s", explain::seconds(pause));
                refuse(&format!("{named}{listen}"), None, &why);
            }
        }
        self.trouble = Some(why);
    }

    fn serve(&mut self, bound: Bound, before: Vec<u32>, shared: &Shared) -> Result<(), String> {
        let listener = self.wanted.called(&bound.local.to_string());
        let route = self.wanted.route(&listener, &before, shared)?;
        let listening = Listening::new(bound.socket, route.clone()).map_err(|e| e.to_string())?;
        let place = bound.netns.map(|id| format!(" ({id})")).unwrap_or_default();
        let named = self.wanted.label.as_ref().map(|label| format!("{label}: ")).unwrap_or_default();
        let mut text = format!("{named}{listener}{place} leads to {}{}", route.upstream_text, leads_into(&route));
        if let Some(trouble) = &self.trouble {
            text += &format!("; before, it was not served: {trouble}");
        }
        let mut event = Event::new(Kind::ListenerServing, text);
        event.listener = Some(route.listener.clone());
        event.upstream = Some(route.upstream_text.clone());
        event.call = route.call_text.clone();
        emit(event);
        self.serving = Some(Serving {
            listening: Arc::new(listening),
            claim: bound.claim,
            netns: bound.netns,
            before,
            stop: CancellationToken::new(),
            ended: ended(),
        });
        Ok(())
    }

    /// Takes over what a new configuration says of the same place.
    fn change(&mut self, wanted: Wanted, shared: &Shared) -> bool {
        let Some(serving) = &self.serving else {
            self.wanted = wanted;
            self.start(None, shared);
            return true;
        };
        let old = serving.listening.route();
        let mut changed = false;
        match wanted.route(&old.listener, &serving.before, shared) {
            Ok(route) if !old.leads_as(&route) => {
                serving.listening.set_route(route);
                changed = true;
            }
            Ok(_) => {}
            Err(why) => refuse(&old.listener, None, &format!("it goes on as it was: {why}")),
        }
        if let (Listen::Unix { rights, .. }, Some(claim)) = (wanted.listen(), &serving.claim) {
            if matches!(self.wanted.listen(), Listen::Unix { rights: old, .. } if old != rights) {
                changed = true;
                if let Err(why) = claim.change(rights) {
                    refuse(&old.listener, None, &format!("it goes on with the rights it had: {why}"));
                }
            }
        }
        let backlog = |wanted: &Wanted| match wanted.listen() {
            Listen::Tcp { backlog, .. } | Listen::Unix { backlog, .. } => i32::try_from(backlog.get()).ok(),
            Listen::Udp { .. } | Listen::Inherited => None,
        };
        if let Some(length) = backlog(&wanted).filter(|_| backlog(&wanted) != backlog(&self.wanted)) {
            changed = true;
            let _ = socket2::SockRef::from(&serving.listening.as_fd()).listen(length);
        }
        self.wanted = wanted;
        changed
    }
}

/// The namespace that a route leads into, as it is now.
pub fn leads_into(route: &Route) -> String {
    use crate::spec::Upstream;
    match &route.upstream {
        Some(Upstream::Tcp { netns: Some(netns), .. } | Upstream::Udp { netns: Some(netns), .. }) => {
            match netns::find(netns) {
                Ok(found) => {
                    route.entered.store(found.place.id.inode, Relaxed);
                    format!(" ({})", found.place)
                }
                Err(trouble) => format!(" ({trouble})"),
            }
        }
        _ => String::new(),
    }
}

fn ended() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel(); // no task runs yet
    token
}

impl Own {
    /// Whether a listener of ours is in a namespace, or is to be.
    pub fn in_namespaces(&self) -> bool {
        self.posts.iter().any(|post| post.wanted.netns().is_some())
    }

    /// Whether one is in a namespace that is no mount of ours to hear of.
    fn by_path(&self) -> bool {
        let path = |post: &Post| matches!(post.wanted.netns(), Some(Netns::Path(path)) if path.starts_with("/proc"));
        self.posts.iter().any(path)
    }

    /// Forwards of the configuration that are served with all their legs, and all of them.
    pub fn count(&self) -> (usize, usize) {
        let mut served: HashMap<usize, bool> = HashMap::new();
        for post in &self.posts {
            let Some(number) = post.wanted.number else { continue };
            *served.entry(number).or_insert(true) &= post.serving.is_some();
        }
        (served.values().filter(|served| **served).count(), served.len())
    }

    /// Legs behind inherited listeners that are not served.
    pub fn troubled_behind(&self) -> usize {
        self.posts.iter().filter(|post| post.wanted.number.is_none() && post.serving.is_none()).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.posts.is_empty() && self.held.is_empty()
    }

    /// Why the first that does not serve does not.
    pub fn trouble(&self) -> Option<String> {
        let post = self.posts.iter().find(|post| post.serving.is_none())?;
        let why = post.trouble.clone().unwrap_or_default();
        Some(format!("{}: {why}", post.wanted.listen()))
    }

    /// When the next of those that do not serve is to be tried again.
    pub fn next_try(&self) -> Option<Instant> {
        self.posts.iter().filter_map(|post| post.again).map(|(at, _)| at).min()
    }

    /// The listeners that serve.
    pub fn listening(&self) -> impl Iterator<Item = &Arc<Listening>> {
        self.posts.iter().filter_map(|post| post.serving.as_ref()).map(|serving| &serving.listening)
    }

    /// Their routes, with what their forwards are called.
    pub fn labelled(&self) -> impl Iterator<Item = (Arc<Route>, String)> {
        let serving = self.posts.iter().filter_map(|post| Some((post.serving.as_ref()?, post)));
        serving.map(|(serving, post)| (serving.listening.route(), post.wanted.label.clone().unwrap_or_default()))
    }

    /// All of them, served or not, as others are to see them. `sessions` are those of each listener.
    pub fn view(&self, sessions: &HashMap<Arc<str>, u64>) -> Vec<control::api::Listener> {
        let view = |post: &Post| {
            let name = post.wanted.label.as_deref().unwrap_or_default();
            if let Some(serving) = &post.serving {
                return control::listener(&serving.listening, name, sessions);
            }
            let kind = match post.wanted.listen() {
                Listen::Tcp { .. } => control::api::Kind::Tcp,
                Listen::Udp { .. } => control::api::Kind::Udp,
                Listen::Unix { .. } | Listen::Inherited => control::api::Kind::Unix,
            };
            let state = if post.trouble.is_some() && post.again.is_none() {
                control::api::State::Awaited
            } else {
                control::api::State::Refused
            };
            let upstream = post.wanted.leg.upstream.to_string();
            let why = post.trouble.as_deref().unwrap_or("it has not been tried yet");
            control::api::Listener {
                upstream,
                ..control::troubled(&post.wanted.address(), Some(kind), name, state, why)
            }
        };
        self.posts.iter().map(view).collect()
    }

    /// Keeps listeners as they are, until a configuration says what to do with them.
    pub fn hold(&mut self, kept: Vec<Kept>) {
        self.held = kept;
    }

    /// The listeners that are held.
    pub fn let_go(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.held)
    }

    /// Takes all listeners off, for the next process. Their tasks must have ended.
    pub fn park(&mut self) -> Vec<Kept> {
        let posts = std::mem::take(&mut self.posts);
        let serving = posts.into_iter().filter_map(|post| Some((post.wanted, post.serving?)));
        self.let_go().into_iter().chain(serving.filter_map(keep)).collect()
    }

    /// Closes all of them, and removes what they made.
    pub fn close(&mut self) {
        self.held.clear();
        self.posts.clear();
    }
}

fn keep((wanted, serving): (Wanted, Serving)) -> Option<Kept> {
    let socket = serving.listening.duplicate().ok()?;
    let local = socket.local().ok()?;
    let bound = Bound { socket, local, claim: serving.claim, netns: serving.netns };
    let before = [&[std::process::id()], &*serving.before].concat();
    let before = before.into_iter().take(REMEMBERED).collect();
    Some(Kept { listen: wanted.listen().to_string(), bound, before })
}

impl Service {
    /// Makes the listeners of ours those that are wanted now.
    pub async fn reconcile(&mut self, forwards: &[Forward], mut kept: Vec<Kept>) -> Reconciled {
        let mut wanted: Vec<Wanted> = Vec::new();
        for leg in self.behind.iter().cloned() {
            // Several sockets of one name share what lies behind them.
            if !wanted.iter().any(|other| other.same_place(&leg)) {
                wanted.push(leg);
            }
        }
        wanted.extend(forwards.iter().enumerate().flat_map(|(number, forward)| self::wanted(forward, Some(number))));
        let mut old = std::mem::take(&mut self.own.posts);
        let mut changed = 0;
        let mut posts = Vec::with_capacity(wanted.len());
        let mut new = Vec::new();
        for wanted in wanted {
            match old.iter().position(|post| post.wanted.same_place(&wanted)) {
                Some(index) => {
                    let mut post = old.swap_remove(index);
                    changed += usize::from(post.change(wanted, &self.shared));
                    posts.push(post);
                }
                None => new.push(wanted),
            }
        }
        // First away with the old: a new one may want the same port.
        let reconciled = Reconciled { changed, opened: new.len(), closed: old.len() };
        for post in old {
            self.remove(post).await;
        }
        for wanted in new {
            let listen = wanted.listen().to_string();
            let kept = kept.iter().position(|kept| kept.listen == listen).map(|index| kept.swap_remove(index));
            let mut post = Post::new(wanted);
            post.start(kept, &self.shared);
            posts.push(post);
        }
        self.own.posts = posts;
        self.watch = self.own.in_namespaces().then(|| Watch::new(self.own.by_path()));
        for gone in kept {
            say(Kind::ListenerRemoved, format!("{}: no forward wants it any more", gone.listen));
        }
        reconciled
    }

    async fn remove(&self, post: Post) {
        let Some(serving) = post.serving else { return };
        let route = serving.listening.route();
        let text = format!("{} is closed: no forward wants it any more", route.listener);
        let mut event = Event::new(Kind::ListenerRemoved, text);
        event.listener = Some(route.listener.clone());
        emit(event);
        self.end(serving).await;
        if post.wanted.options.on_remove == OnRemove::Drain {
            self.shared.sessions.for_each(|info| {
                if info.route.listener == route.listener && info.route.name.is_empty() {
                    tokio::spawn(super::adopt::drain(info.clone()));
                }
            });
        }
    }

    /// Closes a listener, and waits until it is closed.
    async fn end(&self, serving: Serving) {
        serving.stop.cancel();
        serving.ended.cancelled().await;
        serving.listening.flows().end();
    }

    /// Starts a task for each listener of ours that has none.
    pub fn accept_own(&mut self) {
        for post in &mut self.own.posts {
            let Some(serving) = &mut post.serving else { continue };
            if !serving.ended.is_cancelled() {
                continue;
            }
            serving.stop = self.stop.child_token();
            serving.ended = CancellationToken::new();
            let ended: DropGuard = serving.ended.clone().drop_guard();
            let (listening, shared, stop) = (serving.listening.clone(), self.shared.clone(), serving.stop.clone());
            self.accepting.spawn(async move {
                let ended = ended;
                listening.serve(shared, stop).await;
                drop(ended);
            });
        }
    }

    /// Tries again to open what could not be opened, where it is time to; whether any is served now.
    pub fn try_again(&mut self) -> bool {
        let now = Instant::now();
        let mut changed = false;
        for post in &mut self.own.posts {
            if post.again.is_some_and(|(at, _)| at <= now) {
                post.start(None, &self.shared);
                changed |= post.serving.is_some();
            }
        }
        if changed {
            self.accept_own();
        }
        changed
    }

    /// Looks at the namespaces again: closes listeners in those that are gone, opens those that have come.
    pub async fn look_at_namespaces(&mut self) -> bool {
        let mut changed = false;
        for index in 0..self.own.posts.len() {
            let post = &mut self.own.posts[index];
            let Some(netns) = post.wanted.netns() else { continue };
            let now = netns::find(netns).map(|found| found.place.id).ok();
            let was = post.serving.as_ref().map(|serving| serving.netns);
            if was == Some(now) || (was.is_none() && now.is_none()) {
                continue;
            }
            changed = true;
            if let Some(serving) = post.serving.take() {
                let listener = serving.listening.route().listener.clone();
                let mut event =
                    Event::new(Kind::ListenerRemoved, format!("{listener} is closed: its namespace is gone"));
                event.listener = Some(listener);
                emit(event);
                self.end(serving).await;
            }
            self.own.posts[index].start(None, &self.shared);
        }
        if changed {
            self.accept_own();
        }
        changed
    }
}
