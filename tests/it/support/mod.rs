//! What the tests stand on: a service under faked activation, streams that can be verified, a fake qrexec, and
//! waits that all have a deadline.
//!
//! No test sleeps to let something happen: it waits for a line, a notification, a byte, or with [`eventually`] for a
//! condition, and fails when [`PATIENCE`] is over.
#![allow(dead_code, unused_imports)] // a tool box: not every test binary needs every tool

pub(crate) mod activated;
pub(crate) mod asking;
pub(crate) mod fake_qrexec;
pub(crate) mod notify;
#[path = "../../fakes/pattern.rs"]
pub(crate) mod pattern;
pub(crate) mod process;
mod raw;
pub(crate) mod server;
pub(crate) mod store;
pub(crate) mod story;
pub(crate) mod stream;

pub(crate) use activated::{Activated, Activation, Address};
pub(crate) use asking::{Asking, Said};
pub(crate) use fake_qrexec::{Event, FakeQrexec};
pub(crate) use notify::Notifications;
pub(crate) use pattern::{Pattern, SERVICE_SEED, Sum};
pub(crate) use process::{Lines, Process, Rest, run};
pub(crate) use server::Server;
pub(crate) use store::Handed;
pub(crate) use story::{Ended, ends, starts};
pub(crate) use stream::{Pace, Wire, exchange, receive, send};

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long anything that should happen at once may take on a busy machine of two cores, before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds, which is looked at every few milliseconds.
///
/// # Panics
/// When it does not hold within [`PATIENCE`].
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(3));
    }
}

/// One of this package's example programs (`[[example]]`), which `cargo test` has built beside the tests.
pub(crate) fn example(name: &str) -> PathBuf {
    let tests = env::current_exe().expect("the test binary has a path");
    let path = tests.parent().and_then(|deps| deps.parent()).map(|profile| profile.join("examples").join(name));
    let path = path.expect("tests lie in target/PROFILE/deps");
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    // `cargo test --test NAME` builds no examples: an old one must not speak for the new source
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fakes");
    let changed = |p: &Path| p.metadata().and_then(|m| m.modified()).expect("Linux file systems have it");
    let rust = |path: &PathBuf| path.extension().is_some_and(|e| e == "rs");
    for source in fs::read_dir(sources).into_iter().flatten().flatten().map(|entry| entry.path()).filter(rust) {
        let newer = changed(&source) > changed(&path);
        assert!(!newer, "{} is older than its source: cargo build --examples", path.display());
    }
    path
}
