//! Listeners that the configuration asks for and nobody passed: bound here, closed when the configuration no longer
//! wants them, opened and closed with the namespaces that they are in.
//!
//! Each leg of a forward whose listening side is ours has a [`Post`]. A post that cannot serve keeps no other from
//! serving; it is tried again when its namespace appears, when the configuration is read again, and, where something else
//! than its namespace is missing (its port is taken, say), after a while.

mod post;

use std::{collections::HashMap, sync::Arc};

use post::{Post, Serving};
pub use post::{Wanted, leads_into, wanted};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Service,
    bind::{Bound, Claim},
    control,
    listener::Listening,
    netns_watch::Watch,
    session::Route,
};
use crate::{
    dial::netns,
    log::{Event, Kind, emit, say},
    spec::{Forward, Listen, Netns, OnRemove},
};

/// So many processes back, a listener knows who served it: what those dialled may still wait in its backlog.
const REMEMBERED: usize = 8;

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
