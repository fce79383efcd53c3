//! Commands that wait for a person in dom0.

use std::{collections::HashMap, sync::Mutex};

use tokio::sync::oneshot;

use crate::sys::lock;

/// Commands that wait for a person, by the name under which they can be approved.
#[derive(Debug, Default)]
pub(super) struct Approvals(Mutex<PendingApprovals>);

/// What is shown, and who hears the answer.
type PendingApprovals = HashMap<String, (String, Option<oneshot::Sender<bool>>)>;

impl Approvals {
    fn with<T>(&self, act: impl FnOnce(&mut PendingApprovals) -> T) -> T {
        act(&mut lock(&self.0))
    }

    /// Adds one. `shown` is escaped already. Dropped unanswered, the answer is an error.
    pub(super) fn ask(&self, ticket: &str, shown: String) -> oneshot::Receiver<bool> {
        let (answer, wait) = oneshot::channel();
        self.with(|all| all.insert(ticket.to_owned(), (shown, Some(answer))));
        wait
    }

    /// The command waits no longer.
    pub(super) fn forget(&self, ticket: &str) {
        self.with(|all| all.remove(ticket));
    }

    /// Nobody will be asked any more.
    pub(super) fn deny_all(&self) {
        self.with(PendingApprovals::clear);
    }

    pub(super) fn answer(&self, ticket: &str, yes: bool) -> bool {
        let sender = self.with(|all| all.get_mut(ticket).and_then(|(_, sender)| sender.take()));
        sender.is_some_and(|sender| sender.send(yes).is_ok())
    }

    pub(super) fn list(&self) -> Vec<(String, String)> {
        self.with(|all| all.iter().map(|(ticket, (shown, _))| (ticket.clone(), shown.clone())).collect())
    }
}
