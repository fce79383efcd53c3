//! The sessions that live now: who they are, how many, and how all of them are reached at once.
//!
//! Other rooms count sessions, look at them, interrupt them and subscribe to what happens to them. Only this room
//! starts tasks, calls and hands parked sessions on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        watch,
    },
    time::sleep,
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::{
    flows::{Flow, Flows},
    info::SessionInfo,
    parked::ParkedSession,
    watch::{Happened, Watchers, Watching},
};
use crate::{dial::qrexec::Client, relay::Why, sys::lock};

/// The registry of sessions, with everything that sessions have in common.
#[derive(Debug)]
pub struct Sessions {
    /// Starts the processes of qrexec calls.
    client: Client,
    live: Mutex<HashMap<Uuid, Arc<SessionInfo>>>,
    count: watch::Sender<usize>,
    watchers: Watchers,
    tasks: TaskTracker,
    /// The flows of each UDP listener.
    flows: Mutex<Vec<Weak<Flows>>>,
    /// Takes parked sessions to whoever hands them over.
    parked: UnboundedSender<ParkedSession>,
}

impl Sessions {
    /// An empty registry whose qrexec calls are made by `client`, and where its sessions arrive when they are parked.
    pub fn new(client: Client) -> (Arc<Self>, UnboundedReceiver<ParkedSession>) {
        let (parked, parking) = unbounded_channel();
        let sessions = Self {
            client,
            live: Mutex::default(),
            count: watch::Sender::default(),
            watchers: Watchers::default(),
            tasks: TaskTracker::new(),
            flows: Mutex::default(),
            parked,
        };
        (Arc::new(sessions), parking)
    }

    /// The number of sessions.
    pub fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Follows the number of sessions.
    pub fn watch(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Whether a session has this id.
    pub fn contains(&self, id: &Uuid) -> bool {
        lock(&self.live).contains_key(id)
    }

    /// A copy of the list of all sessions, for a caller that takes its time.
    pub fn all(&self) -> Vec<Arc<SessionInfo>> {
        lock(&self.live).values().cloned().collect()
    }

    /// Looks at each session; no session begins or ends meanwhile.
    pub fn for_each(&self, look: impl FnMut(&Arc<SessionInfo>)) {
        lock(&self.live).values().for_each(look);
    }

    /// Interrupts the sessions for which `which` holds, and returns their number.
    pub fn interrupt(&self, why: Why, which: impl Fn(&SessionInfo) -> bool) -> usize {
        let chosen: Vec<_> = lock(&self.live).values().filter(|info| which(info)).cloned().collect();
        chosen.iter().for_each(|info| info.interrupt.request(why));
        chosen.len()
    }

    /// Notes the flows of a UDP listener, among which one may have to make room for those of another.
    pub fn know_flows(&self, flows: &Arc<Flows>) {
        let mut known = lock(&self.flows);
        known.retain(|flows| flows.strong_count() > 0);
        known.push(Arc::downgrade(flows));
    }

    /// The flow with an upstream that was quiet the longest, on whichever listener.
    pub(super) fn quietest_flow(&self) -> Option<Arc<Flow>> {
        let all: Vec<_> = lock(&self.flows).iter().filter_map(Weak::upgrade).collect();
        all.iter().filter_map(|flows| flows.quietest()).max_by_key(|flow| flow.quiet())
    }

    /// Subscribes to what happens to sessions from now on.
    pub fn subscribe(&self) -> Watching {
        self.watchers.add()
    }

    /// Waits until no session's task runs.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ended(&self) {
        self.tasks.close(); // else the tracker waits for tasks that may still come
        self.tasks.wait().await;
    }

    pub(super) fn add(&self, info: Arc<SessionInfo>) {
        lock(&self.live).insert(info.id, info);
        self.count.send_modify(|n| *n += 1);
    }

    pub(super) fn remove(&self, id: &Uuid) {
        if lock(&self.live).remove(id).is_some() {
            self.count.send_modify(|n| *n -= 1);
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn tell(&self, what: Happened, info: &Arc<SessionInfo>) {
        self.watchers.tell(what, info);
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// The receiver outlives all sessions; were it gone, the session would end by closing what it holds.
    pub(super) fn park(&self, session: ParkedSession) {
        let _ = self.parked.send(session);
    }
}

/// Lets a session live for its `drain_timeout`, then interrupts it.
pub async fn drain(info: Arc<SessionInfo>) {
    sleep(info.route.options.drain_timeout).await;
    info.interrupt.request(Why::Drained);
}
