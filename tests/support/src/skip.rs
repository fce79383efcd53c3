//! What a test leaves out, said where it is seen: on descriptor 2 itself, for libtest shows what a macro prints only when
//! the test fails.

use std::{
    env,
    io::{self, Write as _},
    thread,
};

/// Says that the running test, or a part of it, cannot run here: `SKIPPED test: why`. The test then returns, and passes.
///
/// # Panics
/// Under `CI=true`: there, everything runs.
#[track_caller]
pub fn skip(why: &str) {
    assert_ne!(env::var("CI").as_deref(), Ok("true"), "CI=true, and {why}");
    tell(&format!("SKIPPED {}: {why}", test()));
}

/// The size of a storm: `few`, or `all` when `tests/run --long` asks for the full length (`LONG=true`). Says which.
pub fn sample(what: &str, few: usize, all: usize) -> usize {
    let size = if env::var("LONG").as_deref() == Ok("true") { all } else { few };
    tell(&format!("SAMPLE {}: {size} of {all} {what}", test()));
    size
}

/// The running test: libtest names its thread so.
fn test() -> String {
    thread::current().name().unwrap_or("?").to_owned()
}

/// Writes a line that is seen although the test passes; at once, so that lines of several tests do not mix.
pub fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
