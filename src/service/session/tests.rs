//! What cannot be seen from outside: how large a session is, and what becomes of one whose task panics.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
};

use tokio::sync::mpsc::unbounded_channel;
use uuid::Uuid;

use super::*;
use crate::{
    relay::{Counters, End as RelayEnd},
    spec::{Config, SocketKind, fdname},
    stream::Kind as StreamKind,
};

/// What sessions share, with nobody to speak to.
pub(in crate::service) fn shared() -> Arc<Shared> {
    let (parked, _) = unbounded_channel();
    Arc::new(Shared {
        client: Client { program: "/nonexistent".into(), group: None },
        gates: Gates::new(32),
        sessions: Sessions::default(),
        tallies: Tallies::default(),
        watchers: Watchers::default(),
        tasks: TaskTracker::new(),
        parked,
    })
}

fn info(shared: &Shared) -> Arc<Info> {
    let forward = fdname::resolve("uds=/nonexistent", SocketKind::Unix, &Config::default()).expect("a name");
    let route =
        Route::new("uds=/nonexistent".into(), "/listener", forward.legs.front().clone(), forward.options, shared)
            .expect("a route");
    Arc::new(Info::new(Uuid::new_v4(), Arc::new(route), "somebody".into(), Duration::ZERO, Counters::default()))
}

/// A relay between two pairs of sockets, and their far ends.
fn relayed() -> (Stage, UnixStream, UnixStream) {
    let end = || {
        let (near, far) = UnixStream::pair().expect("a pair");
        near.set_nonblocking(true).expect("a socket");
        (RelayEnd::Socket(Stream::new(near.into(), StreamKind::Unix).expect("a runtime")), far)
    };
    let ((peer, far_peer), (upstream, far_upstream)) = (end(), end());
    (Stage::Relaying(Box::new(Relay::new(peer, upstream, None)), None), far_peer, far_upstream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panicking_session_ends_as_panicked_and_the_others_live_on() {
    let shared = shared();
    let (stage, mut peer, mut upstream) = relayed();
    start(&shared, info(&shared), stage, Permits::default());

    let doomed = info(&shared);
    shared.sessions.add(doomed.clone());
    let story = Story {
        info: doomed.clone(),
        shared: shared.clone(),
        end: None,
        exit: None,
        note: String::new(),
        parked: false,
    };
    assert_eq!(shared.sessions.count(), 2);
    let task = shared.tasks.spawn(async move {
        let _story = story;
        panic!("for this test");
    });
    assert!(task.await.is_err_and(|e| e.is_panic()));
    assert_eq!(shared.sessions.count(), 1, "the one that panicked is gone");
    let event = event::ended(&doomed, End::Panicked, None, "");
    assert_eq!((event.kind, event.end), (Kind::SessionFailed, Some(End::Panicked)));

    peer.write_all(b"still here").expect("it lives");
    let mut got = [0; 10];
    tokio::task::spawn_blocking(move || {
        upstream.read_exact(&mut got).expect("it lives");
        assert_eq!(&got, b"still here");
    })
    .await
    .expect("the other session relays");
}

/// Thousands of sessions wait in this future, and in the relay that it owns. With what the runtime adds to a task, 272
/// bytes fit into three of the lines of 128 bytes that it is made of.
#[test]
fn a_session_is_small() {
    fn size<F>(_: impl Fn(Session, Stage) -> F) -> usize {
        size_of::<F>()
    }
    assert!(size(Session::run) <= 272, "{}", size(Session::run));
    assert!(size_of::<Relay>() <= 176, "{}", size_of::<Relay>());
}
