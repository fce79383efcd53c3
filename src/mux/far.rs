//! The far end: what a service of qrexec runs to serve the streams of one call.

use std::{io, os::fd::OwnedFd, time::Instant};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{setsockopt, sockopt},
    },
};
use uuid::Uuid;

use super::{
    engine::{CallEnd, MuxEngine, StreamFate, StreamOwner, StreamStory},
    place::FarPlace,
    socket::StreamSocket,
};
use crate::{
    log::{self, End, Event, Kind, Reminder},
    proto::mux::{FLOOR, MAX_OPENS, MAX_STREAMS, MuxCall, MuxContent, MuxFault, MuxRole, StreamId},
};

/// What is written at once into the call's socket.
const CALL_BUFFER: usize = 256 << 10;

/// A call as its service sees it.
#[derive(Clone, Debug)]
pub struct FarCall {
    /// The qube that made the call, as qrexec names it (QREXEC_REMOTE_DOMAIN).
    pub qube: String,
    /// Where its streams lead.
    pub place: FarPlace,
    /// The least in flight: [`FLOOR`], or [`crate::proto::mux::REMOTE_FLOOR`].
    pub floor: u32,
}

impl FarCall {
    /// A call between qubes of one machine.
    pub fn new(qube: String, place: FarPlace) -> Self {
        Self { qube, place, floor: FLOOR }
    }

    /// Serves the call over these descriptors, until it has ended and what had come is delivered, which takes at most
    /// two seconds more. Says each stream's end to the log.
    ///
    /// # Errors
    /// [`FarFailure`]: the call could not be served, or the near end broke the protocol.
    pub fn serve(self, from: OwnedFd, to: OwnedFd) -> Result<(), FarFailure> {
        for fd in [&from, &to] {
            let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).map_err(failed)?;
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map_err(failed)?;
        }
        // It is a socket where qrexec made it, and may be a pipe elsewhere.
        let _ = setsockopt(&to, sockopt::SndBuf, &CALL_BUFFER);
        // Each stream has a descriptor, and the soft limit is 1,024 as a rule.
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
        let call = MuxCall::new(MuxRole::Far, self.place.content(), self.floor);
        let mut engine = MuxEngine::new(call, from, to).map_err(FarFailure::Io)?;
        let mut owner = FarOwner { call: self, full: Reminder::default(), fast: Reminder::default() };
        let mut turned_away = 0;
        while !engine.is_done() {
            engine.round(&mut owner).map_err(FarFailure::Io)?;
            owner.tell_limits(&engine, &mut turned_away);
        }
        match engine.end() {
            Some(CallEnd::Fault(fault)) => Err(owner.fault(*fault)),
            Some(CallEnd::Broken(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
                log::emit(owner.event(Kind::SessionFailed, format!("the call broke: {error}")));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn failed(error: nix::Error) -> FarFailure {
    FarFailure::Io(error.into())
}

/// Why a call could not be served to its end.
#[derive(Debug)]
pub enum FarFailure {
    /// The near end did what the protocol does not allow.
    Fault(MuxFault),
    /// A system call failed.
    Io(io::Error),
}

struct FarOwner {
    call: FarCall,
    full: Reminder,
    fast: Reminder,
}

impl FarOwner {
    fn event(&self, kind: Kind, message: String) -> Event {
        let FarCall { qube, place, .. } = &self.call;
        let mut event = Event::new(kind, format!("{} from {qube} to {place}: {message}", place.service()));
        event.peer = Some(qube.as_str().into());
        event.upstream = Some(place.to_string().into());
        event
    }

    fn fault(&self, fault: MuxFault) -> FarFailure {
        let advice = "the call is ended; if both qubes have the same version of qrexec-connect, report it";
        let mut event = self.event(Kind::SessionFailed, format!("the other qube sent {fault}; {advice}"));
        event.end = Some(End::Reset);
        log::emit(event);
        FarFailure::Fault(fault)
    }

    /// Says that a limit is reached, each at most once in its time.
    fn tell_limits(&mut self, engine: &MuxEngine, told: &mut u64) {
        let turned_away = engine.call().turned_away();
        if turned_away > *told {
            *told = turned_away;
            if let Some(more) = self.full.due() {
                let text = format!(
                    "{MAX_STREAMS} streams are open, the most of a call; further ones are reset{}",
                    more_text(more)
                );
                log::emit(self.event(Kind::LimitReached, text));
            }
        }
        if engine.pauses() {
            if let Some(more) = self.fast.due() {
                let text = format!(
                    "{MAX_OPENS} streams were opened within a second, the most; the call waits for the next second{}",
                    more_text(more)
                );
                log::emit(self.event(Kind::LimitReached, text));
            }
        }
    }
}

impl StreamOwner for FarOwner {
    fn connect(&mut self, _: StreamId, now: Instant) -> io::Result<StreamSocket> {
        self.call.place.connect(now)
    }

    fn ended(&mut self, story: StreamStory) {
        let datagrams = self.call.place.content() == MuxContent::Datagrams;
        let (end, why) = match &story.fate {
            StreamFate::Ended => (End::Eof, String::new()),
            // Nothing else ends a flow.
            StreamFate::ResetByCall if datagrams => (End::Eof, String::new()),
            StreamFate::ResetByCall => (End::Reset, " by the other qube".to_owned()),
            StreamFate::ResetBySocket => (End::Reset, format!(" by {}", self.call.place)),
            // Only a near end hears this.
            StreamFate::Refused(_) => (End::Reset, String::new()),
            StreamFate::NotConnected(error) => (End::DialFailed, format!(": {error}")),
        };
        let kind = if end == End::DialFailed { Kind::SessionFailed } else { Kind::SessionEnd };
        let StreamStory { id, up, down, time, .. } = story;
        let open_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let up_bytes = log::counted(up, "byte");
        let text = format!("stream {id}: {}{why} after {open_ms} ms, {up_bytes} up, {down} down", end.as_str());
        let mut event = self.event(kind, text);
        event.session = Some(Uuid::new_v4());
        event.bytes = Some((up, down));
        event.open_ms = Some(open_ms);
        event.end = Some(end);
        log::emit(event);
    }
}

fn more_text(more: u64) -> String {
    let times = log::counted(more, "more time");
    if more > 0 { format!(" ({times} since the last report)") } else { String::new() }
}
