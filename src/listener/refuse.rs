//! What the log says of listeners that are not served, and of peers that may not connect.

use crate::{
    activation::Listener,
    log::{End, Kind, Reminder, emit, escape},
    session::{ListenerIdentity, Peer, Route},
};

/// Tells that a listener is not served; `name` is its `FileDescriptorName=`, where it has one.
pub fn refuse(listener: &ListenerIdentity, name: Option<&str>, why: &str) {
    emit(listener.event(Kind::ListenerRefused, not_served(&listener.address, name, why)));
}

/// The sentence that says an inherited listener is not served.
pub fn refusal(listener: &Listener, why: &str) -> String {
    not_served(&listener.local.to_string(), Some(&listener.name), why)
}

fn not_served(listener: &str, name: Option<&str>, why: &str) -> String {
    let named = name.map(|n| format!(" (FileDescriptorName={})", escape(n.as_bytes()))).unwrap_or_default();
    format!("{listener}{named} is not served: {why}")
}

/// Tells that a peer may not connect; in a flood, one event a minute, with the number of those left out.
pub(super) fn deny(route: &Route, peer: &Peer, list: &str, reminder: &mut Reminder) {
    route.tally.peer_denied();
    let Some(left_out) = reminder.due() else { return };
    let more = if left_out > 0 { format!("; {left_out} more since the last such message") } else { String::new() };
    let message = format!("refused {peer} on {}: not in {list}{more}", route.listener);
    let mut event = route.event(Kind::AccessDenied, message);
    event.peer = Some(peer.to_string().into());
    event.end = Some(End::Refused);
    emit(event);
}
