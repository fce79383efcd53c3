//! Listeners that the configuration asks for and nobody passed: bound here, closed when the configuration no longer
//! wants them, opened and closed with the namespaces that they are in.
//!
//! Each leg of a forward whose listening side is ours has a [`Post`]. A post that cannot serve keeps no other from
//! serving; it is retried when its namespace appears, when the configuration is read again, and, where something else
//! than its namespace is missing (its port is taken, say), after a pause.
//!
//! # A configuration that is read again
//! A range of ports has a post for each port, so a reload compares port by port. Two listeners are the same where
//! transport, address with port, and namespace are the same.
//!
//! | listener of | before | now | its socket | its sessions | its pause and counters |
//! |---|---|---|---|---|---|
//! | in both, same route | serves | serves | stays | stay | stay |
//! | in both, another target, label or option | serves | serves | stays | stay; new ones take the new route | stay |
//! | in both, now a part of another range or of none | serves | serves | stays | stay; new ones take the new route | stay |
//! | in both | not open | serves, or not open | is tried at once | none | stay |
//! | only in the old one | serves | gone | closes before new ones open | `on_remove`; UDP flows end | a pause stays, counters until the next restart |
//! | only in the new one, of a forward that would leave no descriptors for sessions | none | not open, until a reload | is not made | none | none |
//! | only in the new one | none | serves, or not open | opens; a failure keeps no other port from serving | none | those of an earlier listener there, or none |

use std::{
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    hash::Hash,
    mem::{Discriminant, discriminant},
    sync::Arc,
};

use tokio::time::{Instant, sleep_until};

use super::{
    accepting::Accepting,
    handed::Handed,
    listening::ServedListener,
    namespaces::NamespaceWatch,
    post::{Post, Standing, Wanted, wanted},
};
use crate::{
    dial::netns,
    log::{Kind, emit, say},
    session::{Routes, Sessions, drain},
    spec::{Forward, Listen, Netns, OnRemove, beside_forwards, without_descriptors},
    sys::{self, or_never},
};

/// What became of the listeners of ours.
#[derive(Debug)]
pub struct Reconciled {
    /// Listeners that lead elsewhere or otherwise, or were retried.
    pub changed: usize,
    /// New listeners.
    pub opened: usize,
    /// Listeners that no forward wants any more.
    pub gone: usize,
    /// Their addresses, consecutive ports as ranges.
    pub closed: Vec<String>,
    /// Listeners that the previous process handed over and no forward wants.
    pub unwanted: Vec<Handed>,
}

/// What there is to do for a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Namespaces of listeners may have come or gone.
    Namespaces,
    /// A listener that could not be opened is to be retried.
    Retry,
}

/// The posts of the configuration.
#[derive(Debug, Default)]
pub struct Posts {
    posts: Vec<Post>,
    /// Taken over from the previous process while the configuration that had them is refused: who connects waits.
    held: Vec<Handed>,
    /// Follows namespaces, when one of the listeners is in one.
    watch: Option<NamespaceWatch>,
}

impl Posts {
    /// All posts, served or not.
    pub fn each(&self) -> impl Iterator<Item = &Post> {
        self.posts.iter()
    }

    /// Forwards of the configuration that are served with all their legs, and all forwards.
    pub fn count(&self) -> (usize, usize) {
        let mut served: HashMap<usize, bool> = HashMap::new();
        for post in &self.posts {
            let Some(number) = post.wanted.number else { continue };
            *served.entry(number).or_insert(true) &= post.serving().is_some();
        }
        (served.values().filter(|served| **served).count(), served.len())
    }

    /// The number of legs behind inherited listeners that are not served.
    pub fn troubled_behind(&self) -> usize {
        self.posts.iter().filter(|post| post.wanted.number.is_none() && post.serving().is_none()).count()
    }

    pub fn is_empty(&self) -> bool {
        self.posts.is_empty() && self.held.is_empty()
    }

    /// Why the first that does not serve does not.
    pub fn trouble(&self) -> Option<String> {
        let post = self.posts.iter().find(|post| post.serving().is_none())?;
        Some(format!("{}: {}", post.wanted.listen(), post.trouble().unwrap_or_default()))
    }

    /// The posts whose listener cannot be opened, each with the reason.
    pub fn failed(&self) -> impl Iterator<Item = String> {
        // Of the ports of a range the first, and how many more; the two legs of one forward are listeners of two kinds.
        let mut all: Vec<(&Post, &str, usize)> = Vec::new();
        let mut first: HashMap<(usize, Discriminant<Listen>), usize> = HashMap::new();
        for post in &self.posts {
            let (Standing::Failed { .. } | Standing::NoRoom { .. }, Some(why)) = (post.standing(), post.trouble())
            else {
                continue;
            };
            match post.wanted.number.map(|number| first.entry((number, discriminant(post.wanted.listen())))) {
                Some(Entry::Occupied(first)) => {
                    all[*first.get()].2 += 1;
                    continue;
                }
                Some(Entry::Vacant(free)) => _ = free.insert(all.len()),
                None => {}
            }
            all.push((post, why, 0));
        }
        all.into_iter().map(|(post, why, more)| {
            let more = match more {
                0 => String::new(),
                1 => "; 1 more listener of this forward is not served".to_owned(),
                n => format!("; {n} more listeners of this forward are not served"),
            };
            let retries = if post.again().is_some() { "; the service retries" } else { "" };
            format!("{} is not served: {why}{retries}{more}", post.address())
        })
    }

    /// The listeners that serve.
    pub fn listening(&self) -> impl Iterator<Item = &Arc<ServedListener>> {
        self.posts.iter().filter_map(Post::listening)
    }

    /// Waits until there is something to do for a listener.
    ///
    /// # Cancel safety
    /// Safe: what was heard of namespaces is kept.
    pub async fn due(&mut self) -> Due {
        let retry = self.posts.iter().filter_map(Post::again).min();
        tokio::select! {
            () = or_never(self.watch.as_mut().map(NamespaceWatch::changed)) => Due::Namespaces,
            () = or_never(retry.map(sleep_until)) => Due::Retry,
        }
    }

    /// Does what is due; whether it changed what is served.
    pub async fn follow(
        &mut self,
        due: Due,
        sessions: &Arc<Sessions>,
        routes: &Routes,
        accepting: &mut Accepting,
    ) -> bool {
        let changed = match due {
            Due::Namespaces => self.look_at_namespaces(routes).await,
            Due::Retry => self.retry(routes),
        };
        if changed {
            self.accept(sessions, accepting);
        }
        changed
    }

    /// Keeps listeners that no forward wants as they are, where that may be the fault of the configuration; closes
    /// them otherwise.
    pub fn settle(&mut self, unwanted: Vec<Handed>, faulty: bool) {
        if faulty {
            self.held = unwanted;
            return;
        }
        for gone in unwanted {
            say(Kind::ListenerRemoved, format!("{}: no forward uses it any more", gone.listen));
        }
    }

    /// The listeners that were held.
    pub fn let_go(&mut self) -> Vec<Handed> {
        std::mem::take(&mut self.held)
    }

    /// Takes all listeners off, for the next process. Their tasks must have ended.
    pub fn park(&mut self) -> Vec<Handed> {
        let posts = std::mem::take(&mut self.posts);
        self.let_go().into_iter().chain(posts.into_iter().filter_map(Post::hand)).collect()
    }

    /// Closes all of them, and removes what they made.
    pub fn close(&mut self) {
        self.held.clear();
        self.posts.clear();
    }

    /// Makes the listeners those that are wanted now: what lies `behind` inherited listeners, and the `forwards` of the
    /// configuration. New listeners take over the sockets of `handed`, where they fit. The tasks of new listeners are
    /// to be started with [`Self::accept`]. `behind` has an element for each inherited listener that is served;
    /// `sockets` is the number of all of them.
    pub async fn reconcile(
        &mut self,
        (sockets, behind, forwards): (usize, &[Vec<Wanted>], &[Forward]),
        handed: Vec<Handed>,
        sessions: &Sessions,
        routes: &Routes,
    ) -> Reconciled {
        let others = beside_forwards(sockets, behind.iter().flatten().map(Wanted::listen));
        let mut old = Takeable::new(std::mem::take(&mut self.posts), |post| post.wanted.key());
        let mut handed = Takeable::new(handed, |handed| handed.listen.clone());
        let is_open = |leg: &&Wanted| {
            old.with(&leg.key()).any(|post| post.serving().is_some())
                || handed.with(&leg.listen().to_string()).next().is_some()
        };
        let open = |number: usize| wanted(&forwards[number], Some(number)).iter().filter(is_open).count();
        let no_room = without_descriptors(forwards, others, open, sys::hard_limit());
        let mut changed = 0;
        let (mut posts, mut new) = (Vec::new(), Vec::new());
        for wanted in all_wanted(behind, forwards, &no_room) {
            match old.take(&wanted.key()) {
                Some(mut post) => {
                    changed += usize::from(post.change(wanted, routes));
                    posts.push(post);
                }
                None => new.push(wanted),
            }
        }
        // First away with the old: a new one may want the same port.
        let opened = new.len();
        let old: Vec<Post> = old.rest();
        let closed = Listen::places(old.iter().map(|post| post.wanted.listen()));
        let gone = old.len();
        remove(old, sessions).await;
        for wanted in new {
            let handed = handed.take(&wanted.listen().to_string());
            let mut post = Post::new(wanted);
            post.start(handed, routes);
            posts.push(post);
        }
        self.posts = posts;
        self.tell_no_room(&no_room);
        self.watch = self.in_namespaces().then(|| NamespaceWatch::new(self.in_namespaces_by_path()));
        Reconciled { changed, opened, gone, closed, unwanted: handed.rest() }
    }

    /// Logs that listeners of forwards are not opened: one message for each forward.
    fn tell_no_room(&self, no_room: &[(usize, String)]) {
        let mut posts: HashMap<usize, Vec<&Post>> = HashMap::new();
        for post in self.posts.iter().filter(|post| matches!(post.standing(), Standing::NoRoom { .. })) {
            post.wanted.number.into_iter().for_each(|number| posts.entry(number).or_default().push(post));
        }
        for (number, why) in no_room {
            let Some(posts @ [first, ..]) = posts.get(number).map(Vec::as_slice) else { continue };
            let places = Listen::places(posts.iter().map(|post| post.wanted.listen())).join(", ");
            let text = format!("{}{places} is not served: {why}", first.wanted.named());
            emit(first.identity().event(Kind::ListenerRefused, text));
        }
    }

    /// Whether a listener is in a namespace, or is to be.
    fn in_namespaces(&self) -> bool {
        self.posts.iter().any(|post| post.wanted.netns().is_some())
    }

    /// Whether a listener is in a namespace that is no mount to hear of.
    fn in_namespaces_by_path(&self) -> bool {
        let path = |post: &Post| matches!(post.wanted.netns(), Some(Netns::Path(path)) if path.starts_with("/proc"));
        self.posts.iter().any(path)
    }

    /// Starts a task for each listener that serves and has none.
    pub fn accept(&mut self, sessions: &Arc<Sessions>, accepting: &mut Accepting) {
        self.posts.iter_mut().for_each(|post| post.accept(sessions, accepting));
    }

    /// Retries listeners that could not be opened, where it is time to; whether any is served now.
    fn retry(&mut self, routes: &Routes) -> bool {
        let now = Instant::now();
        let mut changed = false;
        for post in &mut self.posts {
            if post.again().is_some_and(|at| at <= now) {
                post.start(None, routes);
                changed |= post.serving().is_some();
            }
        }
        changed
    }

    /// Looks at the namespaces again: closes listeners in those that are gone, opens those that have come. Whether any
    /// listener changed.
    async fn look_at_namespaces(&mut self, routes: &Routes) -> bool {
        let mut changed = false;
        for post in &mut self.posts {
            let Some(netns) = post.wanted.netns() else { continue };
            let now = netns::find(netns).map(|found| found.namespace.id).ok();
            let was = post.serving().map(|serving| serving.netns());
            if was == Some(now) || (was.is_none() && now.is_none()) {
                continue;
            }
            if post.serving().is_some() {
                close_without_namespace(post).await;
                changed = true;
            }
            post.start(None, routes);
            changed |= post.serving().is_some();
        }
        changed
    }
}

async fn close_without_namespace(post: &mut Post) {
    let Standing::Serving(serving) = std::mem::replace(&mut post.standing, Standing::Untried) else { return };
    let listener = serving.listening.route().listener.clone();
    let text = format!("{listener} is closed: its namespace is gone");
    emit(listener.event(Kind::ListenerRemoved, text));
    serving.end().await;
}

/// What is wanted. Several sockets of one name share what lies behind them.
fn all_wanted(behind: &[Vec<Wanted>], forwards: &[Forward], no_room: &[(usize, String)]) -> Vec<Wanted> {
    let mut known = HashSet::new();
    let mut all: Vec<Wanted> = behind.iter().flatten().filter(|leg| known.insert(leg.key())).cloned().collect();
    let no_room: HashMap<usize, Arc<str>> =
        no_room.iter().map(|(number, why)| (*number, Arc::from(why.as_str()))).collect();
    all.extend(forwards.iter().enumerate().flat_map(|(number, forward)| {
        let no_room = no_room.get(&number).cloned();
        let refuse = move |mut leg: Wanted| {
            leg.no_room.clone_from(&no_room);
            leg
        };
        wanted(forward, Some(number)).into_iter().map(refuse)
    }));
    all
}

/// Closes listeners that no forward wants any more, and has their sessions drained where their forwards ask for that.
async fn remove(posts: Vec<Post>, sessions: &Sessions) {
    let mut draining = HashSet::new();
    for post in posts {
        let drains = post.wanted.options.on_remove == OnRemove::Drain;
        let Standing::Serving(serving) = post.standing else { continue };
        let listener = serving.listening.route().listener.clone();
        let text = format!("{listener} is closed: no forward uses it any more");
        emit(listener.event(Kind::ListenerRemoved, text));
        serving.end().await;
        if drains {
            draining.insert((listener.address, listener.transport));
        }
    }
    if draining.is_empty() {
        return;
    }
    sessions.for_each(|info| {
        let at = &info.route.listener;
        if info.route.name.is_empty() && draining.contains(&(at.address.clone(), at.transport)) {
            tokio::spawn(drain(info.clone()));
        }
    });
}

/// Things in their order, to be taken by key; of several with one key the first goes first.
struct Takeable<K, T> {
    things: Vec<Option<T>>,
    by_key: HashMap<K, VecDeque<usize>>,
}

impl<K: Eq + Hash, T> Takeable<K, T> {
    fn new(things: Vec<T>, key: impl Fn(&T) -> K) -> Self {
        let mut by_key: HashMap<K, VecDeque<usize>> = HashMap::new();
        for (index, thing) in things.iter().enumerate() {
            by_key.entry(key(thing)).or_default().push_back(index);
        }
        Self { things: things.into_iter().map(Some).collect(), by_key }
    }

    /// Those with a key that nobody has taken.
    fn with(&self, key: &K) -> impl Iterator<Item = &T> {
        self.by_key.get(key).into_iter().flatten().filter_map(|index| self.things[*index].as_ref())
    }

    fn take(&mut self, key: &K) -> Option<T> {
        let index = self.by_key.get_mut(key)?.pop_front()?;
        self.things[index].take()
    }

    /// Those that nobody has taken.
    fn rest(self) -> Vec<T> {
        self.things.into_iter().flatten().collect()
    }
}
