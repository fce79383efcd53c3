//! The requests that dom0 has taken and not answered yet: each is in the list from the moment it is authentic, before
//! it waits for anything, so that whoever ends the requests of a qube ends all of them.
//!
//! # The states of a request
//!
//! | state | what it waits for | where it goes |
//! |---|---|---|
//! | *receiving* | its text, 30 s at most | the gate; refused when the text is late or another than the one signed |
//! | *looking* | where the path of the program leads, 5 s at most; before each look at the policy | the gate; refused when there is no answer |
//! | *quota* | room for its entries in the qube's part of the log | the gate |
//! | *approval* | a person in dom0, 600 s at most | the gate; refused when the person says no, or nobody answers |
//! | *place* | the end of another command of the qube, or of a restart that does not come | the gate |
//! | *recording* | its entry in the log, on the disk | the gate; refused when the log cannot be written |
//! | *running* | the end of the command, or of the file | answered |
//! | *ending* | its processes, which get TERM and then KILL | answered |
//! | *background* | it is answered; the end of what its command left behind ([`super::background`]) | removed |
//!
//! Every state but the last two can be left for *refused* as well: the owner ended the request, the client gave up, the
//! channel ended, the daemon stops. *running* is left for *ending* for the same reasons, and when its time or its
//! output is spent. *The gate* ([`super::gate`]) asks everything again after each wait, and is the only way to
//! *running*. In *quota*, *approval* and *place* everything is asked again at each change of the key, the list or the
//! policy too, so that a request that is not allowed any more is answered at once.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::sys::lock;

/// What a request does now: see the table of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestState {
    Receiving,
    Looking,
    Quota,
    Approval,
    Place,
    Recording,
    Running,
    Ending,
    Background,
}

impl RequestState {
    /// Whether the command, or the transfer of the file, was started.
    pub(super) fn started(self) -> bool {
        matches!(self, Self::Running | Self::Ending)
    }

    /// As `status` shows it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Receiving => "receiving",
            Self::Looking => "looking",
            Self::Quota => "quota",
            Self::Approval => "approval",
            Self::Place => "place",
            Self::Recording => "recording",
            Self::Running => "running",
            Self::Ending => "ending",
            Self::Background => "background",
        }
    }
}

/// One request of the list.
#[derive(Clone, Debug)]
pub(super) struct OpenRequest {
    pub(super) vm: String,
    pub(super) id: String,
    pub(super) state: RequestState,
    /// Since when it is in this state.
    pub(super) since: Instant,
    /// What is asked, as the logs show it; empty until its text has come.
    pub(super) shown: String,
    end: CancellationToken,
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: Mutex<HashMap<u64, OpenRequest>>,
    last: AtomicU64,
    /// A request was answered.
    fewer: Notify,
}

impl Requests {
    /// Adds a request.
    pub(super) fn register(self: &Arc<Self>, vm: &str, id: &str) -> Registration {
        let number = self.last.fetch_add(1, Relaxed) + 1;
        let end = CancellationToken::new();
        let request = OpenRequest {
            vm: vm.to_owned(),
            id: id.to_owned(),
            state: RequestState::Receiving,
            since: Instant::now(),
            shown: String::new(),
            end: end.clone(),
        };
        lock(&self.open).insert(number, request);
        Registration { number, id: id.to_owned(), end, requests: self.clone() }
    }

    /// All of them, oldest first.
    pub(super) fn list(&self) -> Vec<OpenRequest> {
        let mut all: Vec<_> = lock(&self.open).iter().map(|(number, request)| (*number, request.clone())).collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, request)| request).collect()
    }

    /// How many are not answered.
    pub(super) fn open(&self) -> usize {
        lock(&self.open).values().filter(|request| request.state != RequestState::Background).count()
    }

    /// Waits until there is none of those that `count` counts.
    pub(super) async fn none(&self, count: fn(&Self) -> usize) {
        loop {
            let mut fewer = pin!(self.fewer.notified());
            fewer.as_mut().enable();
            if count(self) == 0 {
                return;
            }
            fewer.await;
        }
    }

    /// Numbers go on behind this one.
    pub(super) fn count_from(&self, number: u64) {
        self.last.fetch_max(number, Relaxed);
    }

    /// How many were started.
    pub(super) fn started(&self) -> usize {
        lock(&self.open).values().filter(|request| request.state.started()).count()
    }

    /// Ends those that `wanted` names, whatever they wait for; how many.
    pub(super) fn end(&self, wanted: impl Fn(&OpenRequest) -> bool) -> usize {
        let open = lock(&self.open);
        let these = open.values().filter(|request| wanted(request) && !request.end.is_cancelled());
        these.map(|request| request.end.cancel()).count()
    }
}

/// A request's place in the list, until it is answered.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) number: u64,
    id: String,
    end: CancellationToken,
    requests: Arc<Requests>,
}

impl Registration {
    /// The id of the request.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Waits until somebody ends the request.
    pub(super) async fn ended(&self) {
        self.end.cancelled().await;
    }

    /// Whether somebody has ended the request.
    pub(super) fn is_ended(&self) -> bool {
        self.end.is_cancelled()
    }

    pub(super) fn enter(&self, state: RequestState) {
        if let Some(request) = lock(&self.requests.open).get_mut(&self.number) {
            (request.state, request.since) = (state, Instant::now());
        }
        if state == RequestState::Background {
            self.requests.fewer.notify_waiters();
        }
    }

    /// What the request does, and since when.
    pub(super) fn standing(&self) -> Option<(RequestState, Instant)> {
        lock(&self.requests.open).get(&self.number).map(|request| (request.state, request.since))
    }

    /// Goes back to what [`standing`](Self::standing) said.
    pub(super) fn resume(&self, standing: Option<(RequestState, Instant)>) {
        if let (Some(request), Some(standing)) = (lock(&self.requests.open).get_mut(&self.number), standing) {
            (request.state, request.since) = standing;
        }
    }

    pub(super) fn show(&self, shown: &str) {
        if let Some(request) = lock(&self.requests.open).get_mut(&self.number) {
            shown.clone_into(&mut request.shown);
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.requests.open).remove(&self.number);
        self.requests.fewer.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_hears_its_end_whatever_it_waits_for_and_whenever_it_listens() {
        let requests = Arc::<Requests>::default();
        let (work, dev) = (requests.register("work", "a"), requests.register("dev", "b"));
        assert_eq!(requests.end(|request| request.vm == "work"), 1);
        assert_eq!(requests.end(|request| request.vm == "work"), 0, "it was ended already");
        work.ended().await;
        assert!(work.is_ended() && !dev.is_ended());
        dev.enter(RequestState::Running);
        assert_eq!((requests.started(), requests.list().len()), (1, 2));
        drop((work, dev));
        assert_eq!(requests.list().len(), 0);
    }
}
