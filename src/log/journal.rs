//! journald in its native protocol, where stderr is the journal.

use std::os::fd::AsFd as _;

use tracing::{Dispatch, debug, error, info, warn};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::prelude::*;

use super::event::{Event, Level};

/// The journal when stderr is the journal; None where it is not, or cannot be spoken to: stderr then does as well.
pub fn open(identifier: &str) -> Option<Dispatch> {
    if stderr_is_the_journal() { dispatch(identifier) } else { None }
}

/// The journal; None where it cannot be spoken to.
pub fn dispatch(identifier: &str) -> Option<Dispatch> {
    let layer = tracing_journald::layer().ok()?;
    let layer = layer
        .with_field_prefix(None)
        .with_syslog_identifier(identifier.to_owned())
        .with_priority_mappings(PriorityMappings { info: Priority::Informational, ..PriorityMappings::new() });
    Some(Dispatch::new(tracing_subscriber::registry().with(layer)))
}

/// Writes one event to the journal, from a program that ends soon and whose stderr is somebody's terminal. Where there is
/// no journal it goes nowhere.
pub fn tell_journal(identifier: &str, event: &Event) {
    if let Some(dispatch) = dispatch(identifier) {
        tracing::dispatcher::with_default(&dispatch, || write(event));
    }
}

/// Writes one event.
pub fn write(e: &Event) {
    #[cfg(feature = "forward")]
    let session = e.session.map(|id| id.to_string());
    #[cfg(not(feature = "forward"))]
    let session = None::<&str>;
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
                LABEL = e.label.as_deref(),
                TRANSPORT = e.transport,
                LISTEN_NETNS = e.listen_netns.as_deref(),
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
    match e.kind.level() {
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
