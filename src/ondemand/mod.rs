//! Units of the service manager that are started at the first connection and stopped when no session uses them.
//!
//! # Theory
//! A forward with `start_unit=` leads to the program of a unit. A session of it counts as a *user* of the unit
//! ([`BackendUse`]) and waits until the unit is up ([`BackendUse::awake`]) before it dials; the dial itself is the
//! check of readiness. When the last user has gone, the idle clock runs, and after `stop_when_idle` the unit is
//! stopped.
//!
//! Each unit has one task, the *conductor* ([`Backend`]), which alone speaks with the manager about it and does one
//! thing at a time. The guarantees rest on that order: when `systemctl stop --no-block` returns, the stop is queued, so
//! systemd orders a later start behind it. (When both were asked for in parallel, the unit was down afterwards in 12 of
//! 20 tries.)
//!
//! InvocationID and NRestarts decide whose a unit is ([`UnitKept`](kept::UnitKept)); its state does not: a unit whose
//! stop is queued is still active. A file for each unit in the runtime directory keeps that, for a restart and for a
//! start after a crash alike. It is written before a start, with the InvocationID from before that, after the start,
//! before a stop, when the unit becomes idle, and when a look shows that it is not ours any more. It has the targets,
//! too: a foreign connection to one of these keeps the unit, although no listener may name the target any more.
//!
//! Datagrams of a flow wait in memory. A restart hands them over; a crash loses them, and the flow.
//!
//! # The states of a unit
//! | state | means | a client comes | idle for `stop_when_idle` | a look shows it down |
//! |---|---|---|---|---|
//! | unknown | a file says: maybe ours | joins a start under way | stopped if ours | asleep, unless a start may begin yet |
//! | asleep | down, or up and not ours | `show`, `start`, `show` | nothing | nothing |
//! | starting | `systemctl start` runs | waits | the start ends first | failed |
//! | awake, ours | | dials | stopping | asleep; failed where nobody was ever connected and it has failed |
//! | awake, foreign | somebody else started it, reported once | dials | nothing: it is not ours | asleep |
//! | stopping | the stop is being queued | waits, then is started | | |
//! | asleep, stop queued | as asleep | started: systemd cancels the stop or starts after it; ours | nothing | nothing |
//! | failed | back-off, 1 to 30 s | is reset with the reason of the failure | nothing | nothing |
//!
//! A restart or a crash of the service keeps the file only; the next process begins with *unknown*. While sessions of
//! the earlier process are taken up, nothing is stopped.
//!
//! # Guarantees
//! Each has its tests in `tests/systemd/ondemand.rs`; `tests.rs` holds the conductor against a model of systemd.
//! 1. A client that is accepted while the unit is inactive, activating or deactivating is served, unless the start
//!    fails or `retry_timeout` passes.
//!    (`clients_that_come_around_the_deadline_are_all_served`)
//! 2. At most one start and one stop of ours are under way for a unit; 100 waiting clients cause one start.
//!    (`a_unit_is_started_once_for_a_hundred_clients_and_stopped_after_the_last_session_of_both_its_listeners`)
//! 3. We stop only an invocation that our own start brought about, that no session uses, for which no foreign job is
//!    pending, which no active unit needs, and to whose target no foreign connection exists. (A person's
//!    `systemctl start` of a unit that runs already leaves no trace in systemd.)
//!    (`a_unit_that_others_have_or_need_is_not_stopped_and_one_line_says_why`)
//! 4. `allow_from`, `allow_uid` and `max_connections` are checked before anything is started. (The test of 2.)
//!
//! A stop of the service and a shutdown stop no unit; at a shutdown nothing is started.
//! (`at_a_shutdown_nothing_is_started_or_stopped_and_one_line_says_what_is_left`)

mod backend;
mod backends;
mod kept;
mod look;
mod manager;
mod told;

pub use backend::{Backend, BackendUse, BackendView, WatchedTarget};
pub use backends::Backends;
pub use look::UnitState;

#[cfg(test)]
mod tests;
