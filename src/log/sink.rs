//! Where events go: journald in its native protocol, or lines on stderr.

use std::{io::Write as _, os::fd::AsFd};

use tracing::{Dispatch, debug, error, info, warn};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::prelude::*;

use super::{Event, Level};

/// Where events go.
#[derive(Debug)]
pub enum Sink {
    /// Through `tracing-journald`, which encodes the fields.
    Journal(Dispatch),
    /// As lines for people.
    Stderr,
}

impl Sink {
    /// The journal when stderr is the journal, else stderr.
    pub fn open(identifier: &str) -> Self {
        if !stderr_is_the_journal() {
            return Self::Stderr;
        }
        let layer = tracing_journald::layer().map(|layer| {
            layer
                .with_field_prefix(None)
                .with_syslog_identifier(identifier.to_owned())
                .with_priority_mappings(PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() })
        });
        match layer {
            Ok(layer) => Self::Journal(Dispatch::new(tracing_subscriber::registry().with(layer))),
            Err(_) => Self::Stderr, // no socket to speak to; stderr goes to the same place
        }
    }

    /// Runs `body` with this sink as the thread's own.
    pub fn run(self, body: impl FnOnce(&Self)) {
        match &self {
            Self::Journal(dispatch) => tracing::dispatcher::with_default(dispatch, || body(&self)),
            Self::Stderr => body(&self),
        }
    }

    /// Writes one event. In the journal its message may be multi-line and its fields are bytes: readers escape them;
    /// what we print ourselves was escaped where it came in.
    pub fn write(&self, event: &Event) {
        match self {
            Self::Journal(_) => to_journal(event),
            Self::Stderr => {
                let prefix = match event.level() {
                    Level::Error => "error: ",
                    Level::Warning => "warning: ",
                    Level::Info | Level::Debug => "",
                };
                let _ = writeln!(std::io::stderr(), "{prefix}{}", event.message);
            }
        }
    }
}

fn to_journal(e: &Event) {
    let session = e.session.map(|id| id.to_string());
    let end = e.end.map(|end| end.as_str());
    let exit_code = e.exit_code.map(u64::from);
    let (target, service) = (e.call.as_ref().map(|c| &*c.0), e.call.as_ref().map(|c| &*c.1));
    macro_rules! send {
        ($macro:ident) => {
            $macro!(
                target: "qrexec_connect",
                MESSAGE_ID = e.kind.message_id(),
                SESSION_ID = session,
                LISTENER = e.listener.as_deref(),
                PEER = e.peer.as_deref(),
                UPSTREAM = e.upstream.as_deref(),
                QREXEC_TARGET = target,
                QREXEC_SERVICE = service,
                UP_BYTES = e.bytes.map(|b| b.0),
                DOWN_BYTES = e.bytes.map(|b| b.1),
                OPEN_MS = e.open_ms,
                DIAL_MS = e.dial_ms,
                NETNS = e.netns.as_deref(),
                END = end,
                EXIT_CODE = exit_code,
                QUBE = e.qube.as_deref(),
                REQUEST_ID = e.request.as_deref(),
                "{}",
                e.message
            )
        };
    }
    match e.level() {
        Level::Error => send!(error),
        Level::Warning => send!(warn),
        Level::Info => send!(info),
        Level::Debug => send!(debug),
    }
}

/// `JOURNAL_STREAM` stays set when stderr is redirected, so device and inode are compared (systemd.exec(5)).
fn stderr_is_the_journal() -> bool {
    let Some((device, inode)) = std::env::var("JOURNAL_STREAM").ok().and_then(|v| {
        let (device, inode) = v.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    }) else {
        return false;
    };
    nix::sys::stat::fstat(std::io::stderr().as_fd()).is_ok_and(|s| s.st_dev == device && s.st_ino == inode)
}
