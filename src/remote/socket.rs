//! Clients of a Unix socket: one user's only, each in a separate task, so many at a time.

use std::sync::Arc;

use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};

use crate::sys::accept;

/// Serves clients of the user `uid` until it is dropped, and ends their tasks then. Those beyond `most` wait in the
/// socket's backlog; other users' are closed at once.
pub async fn serve<F>(listener: UnixListener, uid: u32, most: usize, client: impl Fn(UnixStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(most));
    let mut clients = JoinSet::new();
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        let stream = accept::unix(&listener).await;
        if stream.peer_cred().is_ok_and(|peer| peer.uid() == uid) {
            let client = client(stream);
            clients.spawn(async move {
                client.await;
                drop(place);
            });
        }
        while clients.try_join_next().is_some() {}
    }
}
