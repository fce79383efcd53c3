//! Times as both logs write them, and as requests carry them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::sys;

/// Now, in local time to the second, as the original writes it: `2025-11-20T10:15:00`.
pub fn now() -> String {
    local(SystemTime::now())
}

/// A time as [`now`] writes it.
pub fn local(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0));
    let [year, month, day, hour, minute, second] = sys::local_time(seconds);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
