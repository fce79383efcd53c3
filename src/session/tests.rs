//! What cannot be seen from outside: how large a session is, and what becomes of one whose task panics.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};

use uuid::Uuid;

use super::{
    access::Peer,
    event,
    identity::ListenerIdentity,
    info::SessionInfo,
    permits::Permits,
    route::Routes,
    run::{resume, run},
    sessions::Sessions,
    stage::Stage,
    story::Story,
    watch::SessionEnding,
};
use crate::{
    dial::qrexec::Client,
    log::{End, Kind},
    relay::{Counters, Relay, RelayEnd},
    spec::{Config, SocketKind, fdname},
    stream::{Stream, StreamKind},
};

/// A registry whose sessions nobody takes when they are parked.
fn sessions() -> Arc<Sessions> {
    Sessions::new(Client { program: "/nonexistent".into(), group: None }).0
}

fn info() -> Arc<SessionInfo> {
    let forward = fdname::resolve("uds=/nonexistent", SocketKind::Unix, &Config::default()).expect("a name");
    let leg = forward.legs.front().clone();
    let route = Routes::new(32)
        .make(
            "uds=/nonexistent".into(),
            ListenerIdentity::new("/listener", SocketKind::Unix, None),
            leg,
            forward.options,
        )
        .expect("a route");
    Arc::new(SessionInfo::new(Uuid::new_v4(), Arc::new(route), Peer::Unknown, Duration::ZERO, Counters::default()))
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
    let sessions = sessions();
    let (stage, mut peer, mut upstream) = relayed();
    resume(&sessions, info(), stage, Permits::default());

    let doomed = info();
    sessions.add(doomed.clone());
    let story = Story::new(sessions.clone(), doomed.clone(), Permits::default());
    assert_eq!(sessions.count(), 2);
    let task = tokio::spawn(async move {
        let _story = story;
        panic!("for this test");
    });
    assert!(task.await.is_err_and(|e| e.is_panic()));
    assert_eq!(sessions.count(), 1, "the one that panicked is gone");
    let event = event::ended(&doomed, &SessionEnding::new(End::Panicked, ""));
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
    fn size<F>(_: impl Fn(Story, Stage) -> F) -> usize {
        size_of::<F>()
    }
    assert!(size(run) <= 272, "{}", size(run));
    assert!(size_of::<Relay>() <= 176, "{}", size_of::<Relay>());
}
