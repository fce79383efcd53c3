//! What the log says of listeners that are not served, and of peers that may not connect.

use std::fmt;

use crate::{
    activation::Listener,
    dial::Circle,
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

/// When refused peers of a listener were last logged, for each reason. In a flood there is one event a minute for each
/// reason, with the number of events left out.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    denied: Reminder,
    circles: Reminder,
}

impl Refusals {
    /// A peer is not in `list`; it has sent so many datagrams, or made one connection.
    pub(super) fn deny(&mut self, route: &Route, peer: &Peer, list: &str, times: usize) {
        (0..times).for_each(|_| route.tally.peer_denied());
        refused(route, peer, Kind::AccessDenied, format_args!("not in {list}"), &mut self.denied);
    }

    /// A connection or a datagram of this service has come back to the listener.
    pub(super) fn leads_back(&mut self, route: &Route, peer: &Peer, circle: &Circle, times: usize) {
        (0..times).for_each(|_| route.tally.peer_denied());
        let why = format_args!(
            "the forward leads back to this listener ({circle}); change the target of one of these listeners"
        );
        refused(route, peer, Kind::CircleRefused, why, &mut self.circles);
    }
}

fn refused(route: &Route, peer: &Peer, kind: Kind, why: fmt::Arguments<'_>, reminder: &mut Reminder) {
    let Some(left_out) = reminder.due() else { return };
    let more = if left_out > 0 { format!("; {left_out} more since the last such message") } else { String::new() };
    let mut event = route.event(kind, format!("refused {peer} on {}: {why}{more}", route.listener));
    event.peer = Some(peer.to_string().into());
    event.end = Some(End::Refused);
    emit(event);
}
