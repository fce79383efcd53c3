//! The loop of an end: one call, its streams, their sockets. One thread, no runtime: it waits in one place, for all.
//!
//! The order of a round: what woke, what is overdue, what the call brings, what goes to the call. All descriptors wake
//! once for each change (EPOLLET), so what is not known to be empty stays marked as ready.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    num::NonZeroU16,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{
    socket::{SocketRead, StreamSocket},
    wire::{CallReader, CallWriter},
};
use crate::proto::mux::{MUX_HEADER, MuxCall, MuxContent, MuxFault, MuxNews, MuxTurn, ResetCause, StreamId};

/// Reads of the call in one round, so that the sockets have their turn.
const READS: usize = 8;
/// What a descriptor woke for, at a time.
const EVENTS: usize = 256;
/// What a stream's socket wakes for.
const SOCKET_EVENTS: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLPRI)
    .union(EpollFlags::EPOLLET);
const READER: u64 = 0;
const WRITER: u64 = u64::MAX;

/// How a stream ended.
#[derive(Debug)]
pub enum StreamFate {
    /// Both directions came to their ends.
    Ended,
    /// The other end of the call has reset it, or the call is gone.
    ResetByCall,
    /// Its socket here was reset, or failed.
    ResetBySocket,
    /// It could not be connected here.
    NotConnected(io::Error),
    /// The far end could not connect it, or had no place for it.
    Refused(ResetCause),
}

/// A stream that is over.
#[derive(Debug)]
pub struct StreamStory {
    /// Its number.
    pub id: StreamId,
    /// How it ended.
    pub fate: StreamFate,
    /// Bytes that its socket took from the call.
    pub up: u64,
    /// Bytes that its socket gave to the call.
    pub down: u64,
    /// How long it was.
    pub time: Duration,
}

/// Why a call ended.
#[derive(Debug)]
pub enum CallEnd {
    /// The other end has closed it.
    Closed,
    /// It broke.
    Broken(io::Error),
    /// The other end did what the protocol does not allow.
    Fault(MuxFault),
}

/// Who owns the streams' sockets: makes them, and hears how they ended.
pub trait StreamOwner {
    /// Makes the socket of a stream that the other end wants. Only a far end is asked.
    ///
    /// # Errors
    /// Why there is none. The stream is refused.
    fn connect(&mut self, id: StreamId, now: Instant) -> io::Result<StreamSocket>;

    /// The far end has connected the stream. Only a near end is told.
    fn opened(&mut self, _: StreamId) {}

    /// The socket is closed next, by a reset: told before, because a UNIX socket cannot tell it itself.
    fn resets(&mut self, _: StreamId, _: &StreamFate) {}

    /// The stream is over.
    fn ended(&mut self, story: StreamStory);
}

/// One end of a call, at work.
#[derive(Debug)]
pub struct MuxEngine {
    /// `None` when the call is over.
    wires: Option<(CallReader, CallWriter)>,
    held: HeldStreams,
    end: Option<CallEnd>,
    /// Frames were read that are not to be heard yet.
    behind: bool,
}

/// The streams of a call, with their sockets.
#[derive(Debug)]
struct HeldStreams {
    epoll: Epoll,
    call: MuxCall,
    sockets: HashMap<StreamId, StreamSocket>,
    /// When which socket has to be looked at. A socket may be in it more than once.
    due: BTreeSet<(Instant, StreamId)>,
    began: Instant,
    now: Instant,
}

impl MuxEngine {
    /// An end that speaks through these descriptors, which must be non-blocking.
    ///
    /// # Errors
    /// What epoll_create(2) and epoll_ctl(2) say.
    pub fn new(call: MuxCall, from: OwnedFd, to: OwnedFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLET;
        epoll.add(&from, EpollEvent::new(flags | EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, READER))?;
        epoll.add(&to, EpollEvent::new(flags | EpollFlags::EPOLLOUT, WRITER))?;
        let now = Instant::now();
        let (sockets, due) = Default::default();
        let held = HeldStreams { epoll, call, sockets, due, began: now, now };
        Ok(Self { wires: Some((CallReader::new(from), CallWriter::new(to))), held, end: None, behind: false })
    }

    /// The call.
    pub fn call(&self) -> &MuxCall {
        &self.held.call
    }

    /// Why the call has ended, where it has. Streams may still deliver what had come.
    pub fn end(&self) -> Option<&CallEnd> {
        self.end.as_ref()
    }

    /// Whether the other end opens streams faster than it may: nothing is read from it for a moment.
    pub fn pauses(&self) -> bool {
        self.held.call.pause(self.held.time()).is_some()
    }

    /// The call has ended, and no stream is left.
    pub fn is_done(&self) -> bool {
        self.end.is_some() && self.held.sockets.is_empty()
    }

    /// Opens a stream for this socket; it comes back where the other end has not greeted yet, or has no place for one
    /// more now. Nothing was read from it then.
    ///
    /// # Errors
    /// The socket, and what epoll_ctl(2) says where that failed.
    pub fn open(&mut self, socket: StreamSocket) -> Result<StreamId, (StreamSocket, Option<io::Error>)> {
        let HeldStreams { call, sockets, epoll, began, .. } = &mut self.held;
        if self.end.is_some() {
            return Err((socket, None));
        }
        let Some(id) = call.open(began.elapsed()) else { return Err((socket, None)) };
        if let Err(error) = epoll.add(socket.as_fd(), EpollEvent::new(SOCKET_EVENTS, id.0.get().into())) {
            call.release(id);
            return Err((socket, Some(error.into())));
        }
        sockets.insert(id, socket);
        Ok(id)
    }

    /// The socket of the stream was reset, which it cannot tell itself: behind what it had sent, the stream is reset.
    pub fn reset(&mut self, id: StreamId, owner: &mut impl StreamOwner) {
        self.held.now = Instant::now();
        if let Some(socket) = self.held.sockets.get_mut(&id) {
            socket.set_error(self.held.now);
            self.held.settle(id, owner);
        }
    }

    /// One round: waits until something is to be done, and does it.
    ///
    /// # Errors
    /// What epoll_wait(2) says.
    pub fn round(&mut self, owner: &mut impl StreamOwner) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let woken = match self.held.epoll.wait(&mut events, self.timeout()) {
            Ok(n) => n,
            Err(nix::Error::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        self.held.now = Instant::now();
        for event in &events[..woken] {
            let flags = event.events();
            match (event.data(), &mut self.wires) {
                (READER, Some((reader, _))) => {
                    reader.readable = true;
                    reader.ends |=
                        flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR);
                }
                (WRITER, Some((_, writer))) => writer.writable = true,
                (number, _) => {
                    if let Some(id) = u32::try_from(number).ok().and_then(std::num::NonZeroU32::new) {
                        self.held.woke(StreamId(id), flags, owner);
                    }
                }
            }
        }
        self.held.look(owner);
        let result = self.read(owner).and_then(|()| self.write(owner));
        if let Err(end) = result {
            self.over(end, owner);
        }
        Ok(())
    }

    fn timeout(&self) -> EpollTimeout {
        let HeldStreams { call, due, began, .. } = &self.held;
        let now = Instant::now();
        let pause = call.pause(now - *began);
        let reads = self.wires.as_ref().is_some_and(|(reader, _)| reader.readable || self.behind);
        if reads && pause.is_none() && !call.is_stuffed() {
            return EpollTimeout::ZERO;
        }
        let due = due.first().map(|(at, _)| at.saturating_duration_since(now));
        let wait = [due, pause.filter(|_| reads)].into_iter().flatten().min();
        // Rounded up: a wait that is a little too short is one more round.
        let milliseconds = wait.map(|wait| u16::try_from(wait.as_millis() + 1).unwrap_or(u16::MAX));
        milliseconds.map_or(EpollTimeout::NONE, EpollTimeout::from)
    }

    fn read(&mut self, owner: &mut impl StreamOwner) -> Result<(), CallEnd> {
        let Self { wires: Some((reader, _)), held, behind, .. } = self else { return Ok(()) };
        for _ in 0..READS {
            while !held.pauses() {
                let Some((frame, size)) = reader.frame().map_err(CallEnd::Fault)? else { break };
                let news = held.call.hear(frame, held.now - held.began).map_err(CallEnd::Fault)?;
                held.news(news, owner);
                reader.heard(size);
            }
            *behind = held.pauses();
            if !reader.readable || held.pauses() {
                break;
            }
            match reader.fill() {
                Ok(0) => return Err(CallEnd::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(CallEnd::Broken(error)),
            }
        }
        Ok(())
    }

    fn write(&mut self, owner: &mut impl StreamOwner) -> Result<(), CallEnd> {
        let Self { wires: Some((_, writer)), held, .. } = self else { return Ok(()) };
        while writer.writable {
            if !writer.flush().map_err(CallEnd::Broken)? {
                break;
            }
            writer.append(held.call.answers());
            while writer.waiting() < held.call.flight().payload() {
                let Some(turn) = held.call.turn() else { break };
                held.send(turn, writer, owner);
            }
            if writer.waiting() == 0 && held.call.answers().is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// The call is gone: its descriptors are closed, and so are the sockets, by a reset.
    fn over(&mut self, end: CallEnd, owner: &mut impl StreamOwner) {
        self.wires = None;
        let at_once = matches!(end, CallEnd::Fault(_));
        self.end.get_or_insert(end);
        for id in self.held.sockets.keys().copied().collect::<Vec<_>>() {
            if at_once {
                self.held.close(id, StreamFate::ResetByCall, owner);
            } else {
                self.held.reset_behind(id, owner);
            }
        }
    }
}

impl HeldStreams {
    fn time(&self) -> Duration {
        self.now - self.began
    }

    /// Nothing is to be heard now.
    fn pauses(&self) -> bool {
        self.call.is_stuffed() || self.call.pause(self.time()).is_some()
    }

    fn news(&mut self, news: MuxNews<'_>, owner: &mut impl StreamOwner) {
        match news {
            MuxNews::Wanted(id) => self.connect(id, owner),
            MuxNews::Bytes(id, bytes) => {
                let Some(socket) = self.sockets.get_mut(&id) else { return };
                let taken = socket.deliver(bytes, self.now);
                self.call.delivered(id, taken, self.now - self.began);
                self.settle(id, owner);
            }
            MuxNews::Datagram(id, bytes) => {
                if let Some(socket) = self.sockets.get_mut(&id) {
                    socket.send_datagram(bytes);
                }
            }
            MuxNews::Ended(id) => {
                if let Some(socket) = self.sockets.get_mut(&id) {
                    socket.set_end();
                    self.settle(id, owner);
                }
            }
            MuxNews::Reset(id, ResetCause::Socket) => self.reset_behind(id, owner),
            // Nothing came of it.
            MuxNews::Reset(id, cause) => self.close(id, StreamFate::Refused(cause), owner),
            MuxNews::Opened(id) => owner.opened(id),
            MuxNews::Greeted | MuxNews::Nothing => {}
        }
    }

    fn connect(&mut self, id: StreamId, owner: &mut impl StreamOwner) {
        let connected = owner.connect(id, self.now).and_then(|socket| {
            self.epoll.add(socket.as_fd(), EpollEvent::new(SOCKET_EVENTS, id.0.get().into()))?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => {
                if !socket.is_connecting() {
                    self.call.opened(id);
                }
                self.sockets.insert(id, socket);
            }
            Err(error) => {
                self.call.reset(id, cause(&error));
                self.call.release(id);
                let fate = StreamFate::NotConnected(error);
                owner.ended(StreamStory { id, fate, up: 0, down: 0, time: Duration::ZERO });
            }
        }
    }

    /// A socket woke.
    fn woke(&mut self, id: StreamId, flags: EpollFlags, owner: &mut impl StreamOwner) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let fails = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        if socket.is_connecting() {
            if !fails && !flags.contains(EpollFlags::EPOLLOUT) {
                return;
            }
            match socket.connected() {
                Ok(()) => self.call.opened(id),
                Err(error) => {
                    self.call.reset(id, cause(&error));
                    self.close(id, StreamFate::NotConnected(error), owner);
                    return;
                }
            }
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            socket.set_writable();
        }
        if flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLPRI) {
            socket.set_odd();
        }
        if flags.contains(EpollFlags::EPOLLERR) {
            socket.set_error(self.now);
        }
        if fails || flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP) {
            self.call.wake(id);
        }
        self.settle(id, owner);
    }

    /// Behind what came for it, the socket is reset.
    fn reset_behind(&mut self, id: StreamId, owner: &mut impl StreamOwner) {
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.set_reset(self.now);
            self.settle(id, owner);
        }
    }

    /// Does what the state of a socket asks for.
    fn settle(&mut self, id: StreamId, owner: &mut impl StreamOwner) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let taken = socket.flush(self.now);
        self.call.delivered(id, taken, self.now - self.began);
        socket.pass_end();
        let is_over = self.call.stream(id).is_none_or(|stream| stream.is_over());
        if socket.is_reset() {
            if socket.is_drained() || socket.is_overdue(self.now) {
                self.close(id, StreamFate::ResetByCall, owner);
                return;
            }
        } else if is_over && socket.is_shut() {
            self.close(id, StreamFate::Ended, owner);
            return;
        } else if socket.has_error() {
            // A read tells the error, behind the bytes before it. After our own FIN there is none, and without credit
            // none comes in time.
            let reads = self.call.stream(id).is_some_and(|stream| stream.may_send());
            if !reads || socket.is_overdue(self.now) {
                self.call.reset(id, ResetCause::Socket);
                self.close(id, StreamFate::ResetBySocket, owner);
                return;
            }
            self.call.wake(id);
        }
        if let Some(at) = socket.due(self.now) {
            self.due.insert((at, id));
        }
    }

    /// Looks at the sockets whose time has come.
    fn look(&mut self, owner: &mut impl StreamOwner) {
        while let Some((at, id)) = self.due.first().copied().filter(|(at, _)| *at <= self.now) {
            self.due.remove(&(at, id));
            self.settle(id, owner);
        }
    }

    /// The stream sends what it has, as far as it may.
    fn send(&mut self, turn: MuxTurn, writer: &mut CallWriter, owner: &mut impl StreamOwner) {
        let id = turn.id;
        let Some(socket) = self.sockets.get_mut(&id) else { return self.call.dry(turn) };
        let room = writer.room(MUX_HEADER + turn.most);
        let (header, payload) = room.split_at_mut(MUX_HEADER);
        match socket.read(payload) {
            SocketRead::Bytes(n, more) => {
                let length = u16::try_from(n).unwrap_or(u16::MAX); // `most` is no more
                let written = match (self.call.content(), NonZeroU16::new(length)) {
                    (MuxContent::Bytes, Some(length)) => self.call.sent(turn, length, more),
                    (_, _) => self.call.sent_datagram(turn, length, more),
                };
                header.copy_from_slice(&written);
                writer.add(MUX_HEADER + n);
            }
            SocketRead::Nothing => self.call.dry(turn),
            SocketRead::End => {
                self.call.end(id);
                self.settle(id, owner);
            }
            SocketRead::Broken => {
                self.call.reset(id, ResetCause::Socket);
                self.close(id, StreamFate::ResetBySocket, owner);
            }
        }
    }

    /// The socket is closed: by its end, where it came to one, else by a reset.
    fn close(&mut self, id: StreamId, fate: StreamFate, owner: &mut impl StreamOwner) {
        let Some(socket) = self.sockets.remove(&id) else { return };
        let _ = self.epoll.delete(socket.as_fd());
        let (up, down, began) = socket.counts();
        if !matches!(fate, StreamFate::Ended) {
            owner.resets(id, &fate);
            socket.close_by_reset();
        }
        self.call.release(id);
        owner.ended(StreamStory { id, fate, up, down, time: self.now.saturating_duration_since(began) });
    }
}

/// What the other end is told of a failed connect(2).
fn cause(error: &io::Error) -> ResetCause {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => ResetCause::Refused,
        _ => ResetCause::Unreachable,
    }
}
