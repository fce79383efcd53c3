//! Events: what happened, told to the journal or to stderr without ever blocking a session.
//!
//! Everything that the service says is an [`Event`]: a kind with a fixed MESSAGE_ID (explained by the catalog,
//! `journalctl -x`), a sentence, and fields. [`emit`] puts it into a bounded queue; one separate thread speaks to
//! journald, because a stalled journald blocks its senders entirely. When the queue is full, events are dropped and
//! counted, and an event has the count as soon as there is room.

mod escape;
mod event;
#[cfg(feature = "events")]
mod journal;
mod number;
mod queue;
mod reminder;
mod sink;

pub use escape::escape;
pub(crate) use event::labels;
pub use event::{End, Event, Kind, Level};
#[cfg(feature = "events")]
pub use journal::tell_journal;
pub use number::{counted, counted_waiting, counted_were};
#[cfg(feature = "forward")]
pub use queue::start_in_journal;
pub use queue::{emit, say, start};
pub use reminder::Reminder;
