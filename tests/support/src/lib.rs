//! What the tests stand on: a service under faked activation, streams that can be verified, a fake qrexec, programs
//! and what they print, and waits that all have a deadline.
//!
//! No test sleeps to let something happen: it waits for a line, a notification, a byte, or with [`eventually`] for a
//! condition, and fails when [`PATIENCE`] is over. A test that cannot run here calls [`skip`].
//!
//! The suites call this crate `crate::support`. A name here that no suite uses is deleted: `it/toolbox.rs` looks.

mod activated;
pub mod asking;
pub mod fake_qrexec;
pub mod notify;
mod pattern;
mod process;
mod raw;
pub mod runs;
mod server;
mod shape;
mod skip;
mod store;
mod story;
mod stream;
mod strike;
pub mod varlink;

pub use activated::{Activated, Activation, Address};
pub use asking::{Asking, Said};
pub use fake_qrexec::{Event, FakeQrexec};
pub use notify::Notifications;
pub use pattern::{Mismatch, Pattern, SERVICE_SEED, Sum};
pub use process::{Lines, Process, Rest, bare, run};
pub use server::Server;
pub use shape::{gone, shape};
pub use skip::{sample, skip, tell};
pub use store::Handed;
pub use story::{Ended, ends, starts};
pub use stream::{Pace, Wire, exchange, receive, send};
pub use strike::{Moment, Stepped, strike, strike_in_event};

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long anything that should happen at once may take on a busy machine of two cores, before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// The root of the source.
pub const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Waits until `condition` holds, which is looked at every few milliseconds.
///
/// # Panics
/// When `condition` does not hold within [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(3));
    }
}

/// `target/PROFILE`, in whose `deps` the running test lies.
fn built() -> PathBuf {
    let test = env::current_exe().expect("the test binary has a path");
    test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").to_owned()
}

/// One of this package's programs, which cargo has built for every integration test: what `CARGO_BIN_EXE_NAME` names in
/// the tests themselves.
pub fn program(name: &str) -> PathBuf {
    built().join(name)
}

/// One of this package's example programs (`[[example]]`), which `cargo test` has built beside the tests.
///
/// # Panics
/// When the example is missing, or older than its source.
pub fn example(name: &str) -> PathBuf {
    let path = built().join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    // `cargo test --test NAME` builds no examples: an old one must not speak for the new source
    let changed = |p: &Path| p.metadata().and_then(|m| m.modified()).expect("Linux file systems have it");
    let rust = |path: &PathBuf| path.extension().is_some_and(|e| e == "rs");
    let fakes = fs::read_dir(Path::new(SOURCE).join("tests/fakes")).into_iter().flatten().flatten();
    let pattern = Path::new(SOURCE).join("tests/support/src/pattern.rs");
    for source in fakes.map(|entry| entry.path()).filter(rust).chain(pattern.exists().then_some(pattern)) {
        let newer = changed(&source) > changed(&path);
        assert!(!newer, "{} is older than its source: cargo build --examples", path.display());
    }
    path
}
