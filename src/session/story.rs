//! One running session: what became of it so far, and its end event.

use std::{net::SocketAddr, sync::Arc};

use super::{
    checkpoint, event,
    info::SessionInfo,
    parked::{ParkedSession, ParkedStage},
    permits::Permits,
    sessions::Sessions,
    stage::{NextStage, Stage},
    tally::Reason,
    watch::{Happened, SessionEnding},
};
use crate::{
    dial::{
        Failure, NotedSocket,
        netns::Namespace,
        qrexec::{CallPermit, gate::Ticket},
    },
    log::{self, End},
    ondemand::BackendUse,
    relay::Why,
};

/// One running session. The end event is sent when the story is dropped, so that no ending misses it: a story that is
/// dropped while its fate is [`Fate::Running`] belongs to a task that panicked.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) info: Arc<SessionInfo>,
    pub(super) sessions: Arc<Sessions>,
    permits: Permits,
    fate: Fate,
}

/// Where a successful dial ended up.
#[derive(Debug, Default)]
pub(super) struct DialledAt {
    /// The address, where the upstream has a name.
    pub(super) address: Option<SocketAddr>,
    /// The namespace, where that is not the service's own.
    pub(super) namespace: Option<Namespace>,
}

/// State of a session's story.
#[derive(Debug)]
enum Fate {
    Running,
    /// The next process tells its end.
    Parked,
    Over(SessionEnding),
}

impl Drop for Story {
    fn drop(&mut self) {
        self.sessions.remove(&self.info.id);
        self.info.used.iter().for_each(BackendUse::end);
        if !matches!(self.fate, Fate::Parked) {
            self.info.counters.checkpoint().over();
        }
        match std::mem::replace(&mut self.fate, Fate::Parked) {
            Fate::Parked => {}
            Fate::Running => tell_end(&self.sessions, &self.info, SessionEnding::new(End::Panicked, "")),
            Fate::Over(ending) => tell_end(&self.sessions, &self.info, ending),
        }
    }
}

impl Story {
    pub(super) fn new(sessions: Arc<Sessions>, info: Arc<SessionInfo>, permits: Permits) -> Self {
        Self { info, sessions, permits, fate: Fate::Running }
    }

    /// Holds a place among the calls of the qube until the session ends.
    pub(super) fn hold(&mut self, call: CallPermit) {
        self.permits._call = Some(call);
    }

    /// Keeps the note of the upstream socket until the socket is closed.
    pub(super) fn hold_note(&mut self, noted: Option<NotedSocket>) {
        self.permits.noted = noted.map(Box::new);
    }

    /// The upstream socket is closed next.
    pub(super) fn release_note(&mut self) {
        self.permits.noted = None;
    }

    /// The unit that the session uses.
    pub(super) fn used(&self) -> Option<&BackendUse> {
        self.info.used.as_ref()
    }

    /// Gives that place back: the call is over, and the session makes another.
    pub(super) fn release_call(&mut self) {
        self.permits._call = None;
    }

    /// Gives the session to the next process.
    pub(super) fn park(&mut self, stage: ParkedStage) -> NextStage {
        self.park_with(stage, None)
    }

    /// Gives the session to the next process, with its place in the gate.
    pub(super) fn park_with(&mut self, stage: ParkedStage, ticket: Option<Ticket>) -> NextStage {
        self.fate = Fate::Parked;
        let _places = (std::mem::take(&mut self.permits), ticket);
        self.sessions.park(ParkedSession { info: self.info.clone(), stage, _places });
        None
    }

    /// The session has ended.
    pub(super) fn over(&mut self, end: End, note: impl Into<String>) -> NextStage {
        self.fate = Fate::Over(SessionEnding::new(end, note));
        None
    }

    /// The session is about to close its ends, and this is how it ends.
    pub(super) fn ending(&self, end: End) {
        self.info.counters.checkpoint().ending(end as u8);
    }

    /// Replaces what else is to be said of the session's end.
    pub(super) fn noted(&mut self, note: String) {
        if let Fate::Over(ending) = &mut self.fate {
            ending.note = note;
        }
    }

    /// Adds to what is to be said of the session's end.
    pub(super) fn also_noted(&mut self, more: &str) {
        if let Fate::Over(ending) = &mut self.fate {
            let between = if ending.note.is_empty() || more.is_empty() { "" } else { "; " };
            ending.note = format!("{}{between}{more}", ending.note);
        }
    }

    /// Adds the exit code of the session's child to its end.
    pub(super) fn exited(&mut self, code: Option<u8>) {
        if let Fate::Over(ending) = &mut self.fate {
            ending.exit = code;
        }
    }

    /// The session was told to end.
    pub(super) fn interrupted(&mut self, why: Why) -> NextStage {
        self.over(if why == Why::Killed { End::Killed } else { End::Drained }, "")
    }

    /// The dial failed.
    pub(super) fn failed(&mut self, failure: &Failure) -> NextStage {
        self.info.route.tally.dial_failed(Reason::from(failure), self.info.dial_ms().is_some());
        let (end, note) = event::failure(&self.info.route, failure);
        self.over(end, note)
    }

    /// The session has both its ends, and this is what it does from now on. That is saved before it is logged: a
    /// process that comes after a crash does not tell it again.
    pub(super) fn connected(&self, at: &DialledAt, stage: &Stage) {
        let ms = self.info.age_ms();
        self.info.connected(ms, at.namespace.as_ref().map(|at| at.to_string().into()));
        self.info.route.tally.dialled(ms);
        checkpoint::save(&self.info, stage);
        self.sessions.tell(Happened::Connected, &self.info);
        log::emit(event::started(&self.info, at.address));
    }
}

/// Tells that a session is over: counts it, tells subscribers, writes the end event.
pub fn tell_end(sessions: &Sessions, info: &Arc<SessionInfo>, ending: SessionEnding) {
    info.route.tally.session_ended(ending.end, (info.counters.up(), info.counters.down()));
    log::emit(event::ended(info, &ending));
    sessions.tell(Happened::Ended(ending), info);
}
