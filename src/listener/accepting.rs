//! The tasks of all listeners.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{accept, listening::ServedListener};
use crate::session::Sessions;

/// The tasks that accept or receive, one for each listener.
#[derive(Debug, Default)]
pub struct Accepting {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

/// The task of one listener.
#[derive(Debug)]
pub struct AcceptTask {
    stop: CancellationToken,
    /// Cancelled when the task has ended.
    ended: CancellationToken,
}

impl Accepting {
    /// Starts the task of a listener.
    pub fn start(&mut self, listening: &Arc<ServedListener>, sessions: &Arc<Sessions>) -> AcceptTask {
        let (listening, sessions) = (listening.clone(), sessions.clone());
        self.spawn(|stop| async move { accept::serve(&listening, &sessions, &stop).await })
    }

    /// Starts a task that accepts until it is told to stop.
    pub(super) fn spawn<T: Future<Output = ()> + Send + 'static>(
        &mut self,
        work: impl FnOnce(CancellationToken) -> T,
    ) -> AcceptTask {
        let task = AcceptTask { stop: self.stop.child_token(), ended: CancellationToken::new() };
        let ended: DropGuard = task.ended.clone().drop_guard();
        let work = work(task.stop.clone());
        self.tasks.spawn(async move {
            let ended = ended;
            work.await;
            drop(ended);
        });
        task
    }

    /// Waits until a task panicked; for ever when none does.
    ///
    /// # Cancel safety
    /// Safe: what has ended is looked at once.
    pub async fn panicked(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if ended.is_err() {
                return;
            }
        }
        std::future::pending().await
    }

    /// Ends all tasks. New ones can be started afterwards.
    pub async fn stop(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.stop = CancellationToken::new();
    }
}

impl AcceptTask {
    pub fn runs(&self) -> bool {
        !self.ended.is_cancelled()
    }

    /// Ends the task, and waits until it has ended.
    pub async fn end(&self) {
        self.stop.cancel();
        self.ended.cancelled().await;
    }
}
