//! The Unix sockets by which this service dials its own listeners, by the names that they were bound to
//! ([`super::outgoing`]).
//!
//! | socket | its connection | note |
//! |---|---|---|
//! | open | waits, or was accepted | is there |
//! | closed | was accepted, or the dial failed | is gone |
//! | closed | waits in the backlog | stays until the connection is accepted |
//!
//! A name is never used again, so a note that stays matches no other socket.

use std::collections::{HashMap, VecDeque};

use uuid::Uuid;

use super::passage::Passage;

/// So many notes stay behind closed sockets; a backlog holds that many connections (net.core.somaxconn). When there are
/// twice as many, the oldest go, so that a close costs the same however many there are.
const MOST_CLOSED: usize = 4096;

/// The named sockets.
#[derive(Debug, Default)]
pub(super) struct NamedSockets {
    noted: HashMap<Uuid, SocketNote>,
    /// Names of sockets that were closed before their connections were accepted, the oldest first. Some of the
    /// connections may be accepted by now.
    closed: VecDeque<Uuid>,
}

#[derive(Debug)]
struct SocketNote {
    passage: Passage,
    state: SocketState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketState {
    /// Open, and its connection was not accepted, as far as this process knows.
    Open,
    /// Open, and its connection was accepted.
    Accepted,
    /// Closed before its connection was accepted.
    Closed,
}

impl NamedSockets {
    pub(super) fn add(&mut self, name: Uuid, passage: Passage) {
        self.noted.insert(name, SocketNote { passage, state: SocketState::Open });
    }

    pub(super) fn passage(&self, name: &Uuid) -> Option<Passage> {
        self.noted.get(name).map(|socket| socket.passage.clone())
    }

    /// A listener has accepted the connection of a socket.
    pub(super) fn accepted(&mut self, name: &Uuid) {
        match self.noted.get_mut(name) {
            Some(socket) if socket.state == SocketState::Open => socket.state = SocketState::Accepted,
            Some(socket) if socket.state == SocketState::Closed => drop(self.noted.remove(name)),
            _ => {}
        }
    }

    /// A socket is closed; `connected`: whether its connection may wait in a backlog.
    pub(super) fn closed(&mut self, name: &Uuid, connected: bool) {
        match self.noted.get_mut(name) {
            Some(socket) if connected && socket.state == SocketState::Open => socket.state = SocketState::Closed,
            _ => {
                self.noted.remove(name);
                return;
            }
        }
        self.closed.push_back(*name);
        if self.closed.len() < 2 * MOST_CLOSED {
            return;
        }
        self.closed.retain(|name| self.noted.contains_key(name)); // others were accepted meanwhile
        let most = self.closed.len().saturating_sub(MOST_CLOSED);
        for oldest in self.closed.drain(..most) {
            self.noted.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{super::passage::Hop, *};
    use crate::spec::SocketKind;

    #[test]
    fn a_note_stays_behind_a_closed_socket_until_its_connection_is_accepted() {
        let hop = Arc::new(Hop { address: "x".into(), transport: SocketKind::Unix, netns: None });
        let passage = Passage { hop, from: None, before: Box::default() };
        let mut sockets = NamedSockets::default();
        // accepted before the close, accepted after it, not connected; and whether the note stays at each step
        for (first, connected, then, stays) in [
            (true, true, false, [true, false, false]),
            (false, true, true, [true, true, false]),
            (false, false, false, [true, false, false]),
        ] {
            let name = Uuid::new_v4();
            let mut seen = Vec::new();
            sockets.add(name, passage.clone());
            if first {
                sockets.accepted(&name);
            }
            seen.push(sockets.passage(&name).is_some());
            sockets.closed(&name, connected);
            seen.push(sockets.passage(&name).is_some());
            if then {
                sockets.accepted(&name);
            }
            seen.push(sockets.passage(&name).is_some());
            assert_eq!(seen, stays);
        }
        let close = |sockets: &mut NamedSockets| {
            let name = Uuid::new_v4();
            sockets.add(name, passage.clone());
            sockets.closed(&name, true);
            name
        };
        // None of them is accepted: the last ones stay.
        let names: Vec<_> = (0..5 * MOST_CLOSED).map(|_| close(&mut sockets)).collect();
        assert!(sockets.noted.len() < 2 * MOST_CLOSED && sockets.closed.len() == sockets.noted.len());
        assert!(names[4 * MOST_CLOSED..].iter().all(|name| sockets.passage(name).is_some()));
        // Accepted ones push none out.
        let mut sockets = NamedSockets::default();
        let waits = close(&mut sockets);
        for _ in 0..5 * MOST_CLOSED {
            let name = close(&mut sockets);
            sockets.accepted(&name);
        }
        assert_eq!((sockets.passage(&waits).is_some(), sockets.noted.len()), (true, 1));
    }
}
