//! Everything by which logs, metrics and answers call a listener.

use std::{fmt, sync::Arc};

use crate::{
    log::{Event, Kind},
    spec::SocketKind,
};

/// Everything by which a listener is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerIdentity {
    /// LISTENER: the local address, with ` in NETNS` behind it where the listener is in a namespace.
    pub address: Arc<str>,
    /// TRANSPORT.
    pub transport: SocketKind,
    /// LABEL of the forward.
    pub label: Option<Arc<str>>,
    /// LISTEN_NETNS: the namespace that the listener is in, as the configuration calls it.
    pub netns: Option<Arc<str>>,
}

impl ListenerIdentity {
    /// A listener of the service's own namespace.
    pub fn new(address: &str, transport: SocketKind, label: Option<&str>) -> Self {
        Self { address: address.into(), transport, label: label.map(Into::into), netns: None }
    }

    /// An event about the listener.
    pub fn event(&self, kind: Kind, text: impl Into<String>) -> Event {
        let mut event = Event::on(self.address.clone(), kind, text);
        event.transport = Some(self.transport.word());
        event.label = self.label.clone();
        event.listen_netns = self.netns.clone();
        event
    }
}

/// LISTENER.
impl fmt::Display for ListenerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}
