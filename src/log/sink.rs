//! Where events go: journald in its native protocol, or lines on stderr.

use std::io::Write as _;

use super::event::{Event, Level};
#[cfg(feature = "events")]
use super::journal;

/// The destination of events.
#[derive(Debug)]
pub enum Sink {
    /// Through `tracing-journald`, which encodes the fields.
    #[cfg(feature = "events")]
    Journal(tracing::Dispatch),
    /// Lines on stderr, for people, each behind the time where one is wanted.
    Stderr(Option<fn() -> String>),
    /// To nobody.
    #[cfg(feature = "forward")]
    Nowhere,
}

impl Sink {
    /// The journal when stderr is the journal, else stderr.
    pub fn open(identifier: &str, stamp: Option<fn() -> String>) -> Self {
        #[cfg(feature = "events")]
        if let Some(dispatch) = journal::open(identifier) {
            return Self::Journal(dispatch);
        }
        let _ = identifier; // lines bear no name
        Self::Stderr(stamp)
    }

    /// The journal, whatever stderr is.
    #[cfg(feature = "forward")]
    pub fn journal(identifier: &str) -> Self {
        journal::dispatch(identifier).map_or(Self::Nowhere, Self::Journal)
    }

    /// Runs `body` with this sink as the thread's own.
    pub fn run(self, body: impl FnOnce(&Self)) {
        match &self {
            #[cfg(feature = "events")]
            Self::Journal(dispatch) => tracing::dispatcher::with_default(dispatch, || body(&self)),
            Self::Stderr(_) => body(&self),
            #[cfg(feature = "forward")]
            Self::Nowhere => body(&self),
        }
    }

    /// Writes one event. In the journal its message may be multi-line and its fields are bytes: readers escape them;
    /// what we print ourselves was escaped where it came in.
    pub fn write(&self, event: &Event) {
        match self {
            #[cfg(feature = "events")]
            Self::Journal(_) => journal::write(event),
            #[cfg(feature = "forward")]
            Self::Nowhere => {}
            Self::Stderr(stamp) => {
                let time = stamp.map(|stamp| stamp() + "  ").unwrap_or_default();
                let prefix = match event.kind.level() {
                    Level::Error => "error: ",
                    Level::Warning => "warning: ",
                    Level::Info | Level::Debug => "",
                };
                let _ = writeln!(std::io::stderr(), "{time}{prefix}{}", event.message);
            }
        }
    }
}
