//! One direction of a relay: bytes from one end to the other, by the cheapest road there is.
//!
//! The file is long because the gears share one state, and each of them notes for a crash what it is about to do.
//!
//! # Theory
//! What a direction between sockets moves, it moves in one of three gears, and between a socket and a child's pipe in
//! one way:
//!
//! * **Small**: read into the thread's scratch buffer, write at once. For messages, and the first gear of all.
//! * **Splice**: from a socket through a pipe of the [`pool`] to a socket; no byte is copied.
//! * **Copy**: through a large buffer of the pool. From a UNIX socket to a TCP socket this costs less than splicing (TCP
//!   sends small pages one by one); and it stands in for a splice when no pipe can be had.
//! * **Direct**: spliced between a socket and a child's pipe, with no pipe of ours between. There is no other way, because
//!   a pipe counts nothing: of bytes in memory, a crash would leave a doubt.
//!
//! A direction between sockets shifts up when reads come back full, and down to *Small* after some lean bursts; a **burst** is
//! what comes between finding bytes and finding none. While it waits for bytes it holds nothing: scratch, buffers and pipes are
//! taken when there is something to move. What the destination does not take at once is **held**, in the buffer or
//! the pipe where it is, and the source is not read meanwhile, so back-pressure reaches the sender. (In *Direct* there
//! is nowhere to hold it: the direction is **blocked**, its bytes still in the source.)
//!
//! **Only a read decides** that the source has nothing, or nothing more. What splice(2) says is ambiguous: EAGAIN can
//! mean an empty source, a full pipe, or a TCP urgent mark, which it cannot pass; at such a mark it even reports an end
//! that is none. So a splice that brought little is followed by a read. *Direct* must not read; it asks:
//!
//! | the splice says | bytes in the source (FIONREAD) | room (poll) | meaning |
//! |---|---|---|---|
//! | some bytes | none | | they were all: wait |
//! | some bytes | some | | go on |
//! | no byte (0) | none | | the end |
//! | EAGAIN | none | | wait |
//! | EAGAIN | some | no | blocked |
//! | EAGAIN, once | some | yes | both came in between: go on |
//! | EAGAIN, twice | some | yes | a mark: read, and note that the counts of the kernel do not tell any more |
//! | no byte (0) | some | | the same |
//!
//! The end of a UNIX socket is looked for before the splice ([`Stream::poll_end`]). Once TCP has announced an urgent byte,
//! FIONREAD stops at the mark: from there on the socket is read.

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    ops::Range,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, ready},
};

use super::{
    end::RelayEnd,
    pool::{self, Pipe, PoolBuffer, Wide, move_bytes},
};
use crate::{
    crash::{self, DirectionNotes, RegionBuffer, SavedBytes, SavedDirection, SavedPart},
    stream::{Stream, StreamKind},
};

/// Bytes read at once in the gear *Small*.
const CHUNK: usize = pool::SMALL;
/// Full reads in a row that make it shift up.
const FULL_READS: u8 = 2;
/// Bursts of less than [`CHUNK`] in a row that make it shift down.
const LEAN_BURSTS: u8 = 8;
/// Bytes moved (a small piece counts as a [`CHUNK`]) before the other direction and other sessions get their turn. It
/// also keeps one direction from using up the whole budget that the runtime gives a task.
const TURN: usize = 2 << 20;
/// Bytes asked of one splice between a socket and a child's pipe: more than any pipe holds by default.
const DIRECT: usize = 1 << 20;

thread_local! {
    /// The buffer of all relays on this thread; a relay that keeps bytes in it takes it, and the thread gets another.
    static SCRATCH: RefCell<PoolBuffer> = RefCell::new(pool::scratch());
}

/// The phase of a direction; see [`super::stream`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Bytes flow.
    #[default]
    Open,
    /// The destination takes no more; bytes are read and dropped.
    Deaf,
    /// Ended.
    Done,
}

/// How bytes are moved; see the module's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Gear {
    #[default]
    Small,
    Copy,
    Splice,
}

impl Gear {
    /// The gear for many bytes between sockets.
    pub(super) fn high(from: StreamKind, to: StreamKind) -> Self {
        if (from, to) == (StreamKind::Unix, StreamKind::Tcp) { Self::Copy } else { Self::Splice }
    }
}

/// Bytes on their way.
#[derive(Debug)]
enum Held {
    /// The rest of what was read into the scratch buffer, or what another process held, where no buffer is left.
    Bytes(Vec<u8>, usize),
    /// `buffer[at..end]`.
    Buffer {
        buffer: PoolBuffer,
        at: usize,
        end: usize,
    },
    Pipe(Pipe),
}

/// The same bytes in a buffer that outlives the process, where one is left.
fn kept(held: Held) -> Held {
    let Held::Bytes(bytes, at) = held else { return held };
    let rest = &bytes[at..];
    let buffer = match rest.len() {
        len if len > pool::BUFFER => None,
        len if len > pool::SMALL => pool::buffer(),
        _ => pool::small_buffer(),
    };
    match buffer.filter(|buffer| buffer.number().is_some()) {
        Some(mut buffer) => {
            buffer[..rest.len()].copy_from_slice(rest);
            Held::Buffer { buffer, at: 0, end: rest.len() }
        }
        None => Held::Bytes(bytes, at),
    }
}

/// Reads; of a UNIX socket with the note that the read may hear of a reset. An error is passed on before that is over.
fn read(
    cx: &mut Context<'_>,
    reader: &Stream,
    buffer: &mut [u8],
    notes: DirectionNotes<'_>,
) -> Poll<io::Result<usize>> {
    if reader.kind() != StreamKind::Unix {
        return reader.poll_read(cx, buffer);
    }
    let read = reader.poll_read_after(cx, buffer, || notes.hears(true));
    match read {
        Poll::Ready(Err(_)) => notes.heard(),
        Poll::Ready(Ok(_)) | Poll::Pending => notes.hears(false),
    }
    read
}

/// Writes what fits now of a part of a buffer; to a UNIX socket with a note of how much that was.
fn send(buffer: &PoolBuffer, part: Range<usize>, writer: &Stream, notes: DirectionNotes<'_>) -> io::Result<usize> {
    if writer.kind() != StreamKind::Unix {
        return writer.try_write(&buffer[part]);
    }
    let sent = match buffer.kept().and_then(|buffer| notes.send_note(buffer)) {
        Some(note) => writer.try_send(&buffer[part], &note),
        None => writer.try_write(&buffer[part]),
    };
    sent.inspect_err(|e| {
        if e.kind() != ErrorKind::WouldBlock {
            notes.heard_of_destination(); // a send takes a reset from the socket as a read does
        }
    })
}

/// What becomes of a source's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Passing {
    /// The destination is told at once.
    #[default]
    AtOnce,
    /// The destination is told when the relay's owner says so.
    WhenTold,
    /// It has come, and the destination was not told.
    Held,
}

/// Errors that stop a direction.
pub(super) enum Stuck {
    /// Its source was reset, and there is nothing more to read.
    Source(io::Error),
    /// Its source was reset, and bytes may be left to read.
    Lost(io::Error),
    /// Its destination was reset or takes no more.
    Destination(io::Error),
}

/// What a splice between a socket and a child's pipe has left open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SpliceRest {
    #[default]
    Nothing,
    /// The destination is full.
    Blocked,
    /// It said EAGAIN, although there were bytes and room.
    Puzzled,
}

/// Result of one step.
enum Step {
    Moved(usize),
    /// The source's end was read.
    End,
}

/// Bytes of a parked direction: read from the source, not yet taken by the destination.
#[derive(Debug)]
pub struct ParkedBytes(Option<Box<Held>>);

impl ParkedBytes {
    /// What an earlier process has handed over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self((!bytes.is_empty()).then(|| Box::new(Held::Bytes(bytes, 0))))
    }

    /// What is in a part of a buffer that an earlier process has left; `None` where the buffer has no such part.
    pub fn in_buffer(buffer: RegionBuffer, at: usize, end: usize) -> Option<Self> {
        let fits = at <= end && end <= buffer.len();
        let held = || Box::new(Held::Buffer { buffer: PoolBuffer::Kept(buffer), at, end });
        fits.then(|| Self((at < end).then(held)))
    }

    /// What is in a pipe that an earlier process has left: so many bytes.
    pub fn in_pipe(reader: OwnedFd, writer: OwnedFd, bytes: usize) -> Self {
        let pipe = Pipe::resume(reader, writer, bytes);
        Self((pipe.inside() > 0).then(|| Box::new(Held::Pipe(pipe))))
    }

    /// The bytes. A buffer that outlives the process stays as it is and is nobody's: the process may die before another
    /// one has the bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        match self.0.map(|held| *held) {
            None => Vec::new(),
            Some(Held::Bytes(bytes, at)) => bytes[at..].to_vec(),
            Some(Held::Buffer { buffer, at, end }) => {
                let bytes = buffer[at..end].to_vec();
                std::mem::forget(buffer);
                bytes
            }
            Some(Held::Pipe(pipe)) => pipe.into_bytes(),
        }
    }
}

/// A parked direction.
#[derive(Debug)]
pub struct ParkedDirection {
    pub phase: Phase,
    pub held: ParkedBytes,
    /// Bytes dropped while deaf.
    pub dropped: u64,
}

/// A direction of a relay.
#[derive(Debug, Default)]
pub(super) struct Direction {
    pub(super) phase: Phase,
    gear: Gear,
    /// *Small* and *Direct*: full moves in a row. Else: lean bursts in a row.
    run: u8,
    /// A splice brought nothing: the next step is a read.
    decide: bool,
    /// *Direct*: what the last splice has left open.
    rest: SpliceRest,
    /// It never shifts (tests).
    forced: bool,
    pub(super) end: Passing,
    /// What came of making the child's pipe wider, once that was tried.
    wide: Option<Option<Wide>>,
    /// Bytes moved at a time, at most (`buffer_size`).
    pub(super) most: u32,
    /// Bytes of this burst.
    burst: u32,
    held: Option<Box<Held>>,
    /// Bytes dropped while deaf.
    pub(super) dropped: u64,
}

impl Direction {
    pub(super) fn new() -> Self {
        Self { most: u32::MAX, ..Self::default() }
    }

    pub(super) fn resume(parked: ParkedDirection) -> Self {
        let held = parked.held.0.map(|held| Box::new(kept(*held)));
        Self { phase: parked.phase, held, dropped: parked.dropped, ..Self::new() }
    }

    pub(super) fn park(self) -> ParkedDirection {
        ParkedDirection { phase: self.phase, held: ParkedBytes(self.held), dropped: self.dropped }
    }

    /// Notes where the bytes are that are held, before anything is moved, in place of what an earlier process has noted.
    /// A `child`'s pipe that was noted as closed stays so.
    pub(super) fn note(&self, notes: DirectionNotes<'_>, child: bool) {
        let pipe = match self.held.as_deref() {
            Some(Held::Pipe(pipe)) => pipe.key(),
            Some(Held::Buffer { buffer, at, .. }) => {
                self.note_buffer(buffer, *at, notes);
                0
            }
            Some(Held::Bytes(..)) => {
                notes.in_buffer(None, 0);
                0
            }
            None => 0,
        };
        if !child {
            notes.in_pipe(pipe);
        }
        notes.forget_heard();
    }

    /// Notes that bytes are, or come, into this buffer; those before `at` were delivered.
    fn note_buffer(&self, buffer: &PoolBuffer, at: usize, notes: DirectionNotes<'_>) {
        let read = notes.delivered().load(Relaxed).wrapping_add(self.dropped);
        notes.in_buffer(buffer.number(), read.wrapping_sub(at as u64));
    }

    /// State of the direction between two moves, for the checkpoint of the relay.
    pub(super) fn saved(&self) -> SavedDirection {
        let held = match self.held.as_deref() {
            None => SavedBytes::Nothing,
            Some(Held::Bytes(..)) => SavedBytes::Private,
            Some(Held::Buffer { buffer, at, end }) => match buffer.number() {
                Some(number) => SavedBytes::Buffer(SavedPart { number, at: *at as u32, end: *end as u32 }),
                None => SavedBytes::Private,
            },
            Some(Held::Pipe(pipe)) => SavedBytes::Pipe(pipe.key()),
        };
        SavedDirection { phase: self.phase as u8, held, dropped: self.dropped }
    }

    /// Whether it holds bytes.
    pub(super) fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Bytes that were read and are not delivered: dropped or held.
    pub(super) fn not_delivered(&self) -> u64 {
        self.dropped
            + match self.held.as_deref() {
                None => 0,
                Some(Held::Bytes(bytes, at)) => bytes.len() - at,
                Some(Held::Buffer { at, end, .. }) => end - at,
                Some(Held::Pipe(pipe)) => pipe.inside(),
            } as u64
    }

    /// Stays in `gear` for ever.
    #[cfg(test)]
    pub(super) fn force(&mut self, gear: Gear) {
        (self.gear, self.forced) = (gear, true);
    }

    /// Whether the source is being read.
    pub(super) fn reads(&self) -> bool {
        self.phase != Phase::Done && !self.stalled()
    }

    /// Whether the direction waits for its destination.
    pub(super) fn stalled(&self) -> bool {
        self.held.is_some() || self.rest == SpliceRest::Blocked
    }

    /// The destination takes no more.
    pub(super) fn deafen(&mut self) {
        let lost = match self.held.take().map(|held| *held) {
            None => 0,
            Some(Held::Bytes(bytes, at)) => bytes.len() - at,
            Some(Held::Buffer { at, end, .. }) => end - at,
            Some(Held::Pipe(pipe)) => pipe.inside(),
        };
        self.dropped += lost as u64;
        self.rest = SpliceRest::Nothing;
        if self.phase == Phase::Open {
            self.phase = Phase::Deaf;
        }
    }

    /// Ends it, whatever it holds.
    pub(super) fn give_up(&mut self) {
        self.deafen();
        self.phase = Phase::Done;
    }

    /// Moves what can be moved now. Ready when the direction is done or cannot go on. A source that is known to be
    /// `lost` tells nothing by its end: the destination is not told that it was complete.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut RelayEnd,
        destination: &mut RelayEnd,
        notes: DirectionNotes<'_>,
        lost: bool,
    ) -> Poll<Result<(), Stuck>> {
        let mut turn = TURN;
        while self.phase != Phase::Done {
            if turn == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let Some(reader) = source.reader() else {
                self.phase = Phase::Done;
                break;
            };
            let writer = destination.writer();
            let urgent = reader.was_urgent();
            if urgent {
                notes.unsure(); // TCP counts an urgent byte, which no read gives
            }
            let step = match (writer, &self.held) {
                _ if self.phase == Phase::Deaf => self.small(cx, reader, None, notes),
                (None, _) => Poll::Ready(Err(Stuck::Destination(ErrorKind::BrokenPipe.into()))),
                (Some(writer), Some(_)) => self.deliver(cx, writer, notes),
                (Some(writer), None) => match self.gear {
                    _ if self.decide => self.small(cx, reader, Some(writer), notes),
                    _ if !urgent && self.is_direct(reader, writer) => self.direct(cx, reader, writer, notes),
                    _ if lost => self.small(cx, reader, Some(writer), notes),
                    Gear::Small => self.small(cx, reader, Some(writer), notes),
                    Gear::Copy => self.copy(cx, reader, writer, notes),
                    Gear::Splice => self.splice(cx, reader, writer, notes),
                },
            };
            match ready!(step)? {
                Step::Moved(n) => turn = turn.saturating_sub(n.max(CHUNK)),
                Step::End => {
                    let closed = [source.pipe_from(), destination.pipe_to()];
                    closed.into_iter().flatten().for_each(|pipe| notes.closes(crash::key(pipe.as_fd())));
                    source.finished_reading();
                    self.phase = Phase::Done;
                    match self.end {
                        _ if lost => {}
                        Passing::AtOnce => destination.finish(),
                        Passing::WhenTold | Passing::Held => self.end = Passing::Held,
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Whether bytes go straight between a socket and a child's pipe.
    fn is_direct(&self, reader: &Stream, writer: &Stream) -> bool {
        !self.forced && (reader.is_pipe() || writer.is_pipe())
    }

    /// A read into the scratch buffer, written at once (dropped without a `writer`).
    fn small(
        &mut self,
        cx: &mut Context<'_>,
        reader: &Stream,
        writer: Option<&Stream>,
        notes: DirectionNotes<'_>,
    ) -> Poll<Result<Step, Stuck>> {
        SCRATCH.with_borrow_mut(|scratch| {
            if scratch.number().is_none() {
                pool::small_buffer().into_iter().for_each(|kept| *scratch = kept);
            }
            if writer.is_some() {
                self.note_buffer(scratch, 0, notes);
            }
            let most = CHUNK.min(self.most as usize);
            let Poll::Ready(read) = read(cx, reader, &mut scratch[..most], notes) else { return self.wait() };
            let n = read.map_err(Stuck::Source)?;
            if n == 0 {
                return Poll::Ready(Ok(Step::End));
            }
            self.decide = false;
            let Some(writer) = writer else {
                self.dropped += n as u64;
                return Poll::Ready(Ok(Step::Moved(n)));
            };
            self.count_burst(n, reader, writer);
            let written = self.write(scratch, n, writer, notes)?;
            if written < n {
                let other = scratch.number().and_then(|_| pool::small_buffer());
                if other.is_none() {
                    notes.in_buffer(None, 0); // the scratch buffer is not theirs
                }
                self.held = Some(Box::new(match other {
                    // The bytes stay where they are, for the case of a crash.
                    Some(other) => Held::Buffer { buffer: std::mem::replace(scratch, other), at: written, end: n },
                    None => Held::Bytes(scratch[written..n].to_vec(), 0),
                }));
            }
            Poll::Ready(Ok(Step::Moved(n)))
        })
    }

    /// A read into a large buffer, written at once.
    fn copy(
        &mut self,
        cx: &mut Context<'_>,
        reader: &Stream,
        writer: &Stream,
        notes: DirectionNotes<'_>,
    ) -> Poll<Result<Step, Stuck>> {
        if reader.poll_read_ready(cx).is_pending() {
            return self.wait();
        }
        let Some(mut buffer) = pool::buffer() else { return self.small(cx, reader, Some(writer), notes) };
        self.note_buffer(&buffer, 0, notes);
        let most = pool::BUFFER.min(self.most as usize);
        let Poll::Ready(read) = read(cx, reader, &mut buffer[..most], notes) else { return self.wait() };
        let end = read.map_err(Stuck::Source)?;
        if end == 0 {
            return Poll::Ready(Ok(Step::End));
        }
        self.count_burst(end, reader, writer);
        let at = self.write(&buffer, end, writer, notes)?;
        if at < end {
            self.held = Some(Box::new(Held::Buffer { buffer, at, end }));
        }
        Poll::Ready(Ok(Step::Moved(end)))
    }

    /// A splice into a pipe of the pool, and out of it at once.
    fn splice(
        &mut self,
        cx: &mut Context<'_>,
        reader: &Stream,
        writer: &Stream,
        notes: DirectionNotes<'_>,
    ) -> Poll<Result<Step, Stuck>> {
        match reader.poll_read_ready(cx) {
            Poll::Ready(Ok(guard)) if reader.is_ending(&guard) => {
                self.decide = true; // only a read hears of an end as it has to
                return Poll::Ready(Ok(Step::Moved(0)));
            }
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(e)) => return Poll::Ready(Err(Stuck::Source(e))),
            Poll::Pending => return self.wait(),
        }
        let Some(mut pipe) = pool::pipe() else {
            self.gear = Gear::Copy;
            return Poll::Ready(Ok(Step::Moved(0)));
        };
        notes.in_pipe(pipe.key());
        let hears = reader.kind() == StreamKind::Unix;
        if hears {
            notes.hears(true);
        }
        let filled = pipe.fill(reader.as_fd(), self.most as usize);
        match &filled {
            Err(e) if hears && e.kind() != ErrorKind::WouldBlock => notes.heard(),
            _ if hears => notes.hears(false),
            _ => {}
        }
        let n = match filled {
            Ok(n) if n > 0 => n,
            nothing => {
                notes.in_pipe(0);
                pipe.put();
                self.decide = true;
                return match nothing {
                    Err(e) if e.kind() != ErrorKind::WouldBlock => Poll::Ready(Err(Stuck::Lost(e))),
                    _ => Poll::Ready(Ok(Step::Moved(0))),
                };
            }
        };
        self.count_burst(n, reader, writer);
        match pipe.drain(writer.as_fd()) {
            Ok(n) => {
                notes.delivered().fetch_add(n as u64, Relaxed);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => {
                if writer.kind() == StreamKind::Unix {
                    notes.heard_of_destination();
                }
                self.dropped += pipe.inside() as u64;
                notes.in_pipe(0);
                return Poll::Ready(Err(Stuck::Destination(e)));
            }
        }
        if pipe.inside() > 0 {
            self.held = Some(Box::new(Held::Pipe(pipe)));
        } else {
            notes.in_pipe(0);
            pipe.put();
        }
        Poll::Ready(Ok(Step::Moved(n)))
    }

    /// A splice straight from the one to the other, one of which is a child's pipe. The bytes are in the one or in the
    /// other, whenever the process dies.
    fn direct(
        &mut self,
        cx: &mut Context<'_>,
        reader: &Stream,
        writer: &Stream,
        notes: DirectionNotes<'_>,
    ) -> Poll<Result<Step, Stuck>> {
        if self.rest == SpliceRest::Blocked {
            ready!(writer.poll_room(cx)).map_err(Stuck::Destination)?;
            self.rest = SpliceRest::Nothing;
        }
        // Taken before the splice: bytes that come after it count as news.
        let Poll::Ready(source) = reader.poll_end(cx) else { return self.wait() };
        let Some(mut source) = source.map_err(Stuck::Source)? else { return Poll::Ready(Ok(Step::End)) };
        let room = writer.poll_write_ready(cx); // if it knows of any: a look-out may have used that up
        let hears = reader.kind() == StreamKind::Unix;
        if hears {
            notes.hears(true);
        }
        let most = DIRECT.min(self.most as usize);
        // Of a pipe no more is asked for than is inside: sixteen pages of a splice that asks for more are sent as if more
        // came, and TCP keeps the last segment back (MSG_MORE; Linux 6.5 and later, fs/splice.c, splice_to_socket).
        let inside = reader.is_pipe().then(|| reader.unread());
        let moved = move_bytes(reader.as_fd(), writer.as_fd(), inside.map_or(most, |inside| inside.clamp(1, most)));
        // The reading end of a pipe has no errors of its own, and only writing gives EPIPE.
        let of_destination = |e: &io::Error| reader.is_pipe() || e.kind() == ErrorKind::BrokenPipe;
        match &moved {
            Err(e) if hears && e.kind() != ErrorKind::WouldBlock && !of_destination(e) => notes.heard(),
            _ if hears => notes.hears(false),
            // EPIPE takes no error from the socket.
            Err(e)
                if writer.kind() == StreamKind::Unix
                    && !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::BrokenPipe) =>
            {
                notes.heard_of_destination();
            }
            _ => {}
        }
        let before = std::mem::take(&mut self.rest);
        match moved {
            // A splice stops at an urgent byte as at an end.
            Ok(0) if reader.unread() == 0 && !reader.has_urgent() => return Poll::Ready(Ok(Step::End)),
            Ok(0) => self.read_next(notes),
            Ok(n) => {
                notes.delivered().fetch_add(n as u64, Relaxed);
                let drained = inside.map_or_else(|| reader.unread() == 0, |inside| n == inside);
                if drained {
                    source.clear_ready();
                }
                // A pipe has sixteen places, and a splice from a socket fills one with each segment: a pipe that is full
                // of small ones holds little.
                if drained || n >= CHUNK {
                    self.widen(n >= CHUNK, reader, writer);
                }
                return Poll::Ready(Ok(Step::Moved(n)));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if reader.unread() == 0 {
                    source.clear_ready();
                } else if !writer.has_room() {
                    self.rest = SpliceRest::Blocked;
                    if let Poll::Ready(Ok(mut room)) = room {
                        room.clear_ready();
                    }
                    self.widen(writer.is_pipe(), reader, writer);
                } else if before == SpliceRest::Puzzled {
                    self.read_next(notes);
                } else {
                    self.rest = SpliceRest::Puzzled;
                }
            }
            Err(e) if of_destination(&e) => return Poll::Ready(Err(Stuck::Destination(e))),
            Err(e) => return Poll::Ready(Err(Stuck::Lost(e))),
        }
        Poll::Ready(Ok(Step::Moved(0)))
    }

    /// The next step is a read, although bytes wait: of what is read, a pipe does not count what was written.
    fn read_next(&mut self, notes: DirectionNotes<'_>) {
        notes.unsure();
        self.decide = true;
    }

    /// Makes a child's pipe wider that was `full` some times in a row.
    fn widen(&mut self, full: bool, reader: &Stream, writer: &Stream) {
        self.run = if full { self.run.saturating_add(1) } else { 0 };
        if self.run >= FULL_READS && self.wide.is_none() {
            let pipe = if reader.is_pipe() { reader } else { writer };
            self.wide = Some(pool::widen(pipe.as_fd()));
        }
    }

    /// Writes what fits at once of the first `end` bytes of a buffer; how much that was. What is left of them when it
    /// fails is lost.
    fn write(
        &mut self,
        buffer: &PoolBuffer,
        end: usize,
        writer: &Stream,
        notes: DirectionNotes<'_>,
    ) -> Result<usize, Stuck> {
        match send(buffer, 0..end, writer, notes) {
            Ok(n) => {
                notes.delivered().fetch_add(n as u64, Relaxed);
                Ok(n)
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(0),
            Err(e) => {
                self.dropped += end as u64;
                Err(Stuck::Destination(e))
            }
        }
    }

    /// Moves what is held, once there is room.
    fn deliver(
        &mut self,
        cx: &mut Context<'_>,
        writer: &Stream,
        notes: DirectionNotes<'_>,
    ) -> Poll<Result<Step, Stuck>> {
        let Some(held) = &mut self.held else { return Poll::Ready(Ok(Step::Moved(0))) };
        let moved = match &mut **held {
            Held::Bytes(bytes, at) => ready!(writer.poll_write(cx, &bytes[*at..])).inspect(|n| *at += n),
            Held::Buffer { buffer, at, end } => {
                ready!(writer.poll_write_with(cx, |_| send(buffer, *at..*end, writer, notes))).inspect(|n| *at += n)
            }
            Held::Pipe(pipe) => ready!(writer.poll_write_with(cx, |fd| pipe.drain(fd))),
        };
        let n = moved.map_err(Stuck::Destination)?;
        notes.delivered().fetch_add(n as u64, Relaxed);
        let empty = match &**held {
            Held::Bytes(bytes, at) => *at == bytes.len(),
            Held::Buffer { at, end, .. } => at == end,
            Held::Pipe(pipe) => pipe.inside() == 0,
        };
        if empty {
            if let Some(Held::Pipe(pipe)) = self.held.take().map(|held| *held) {
                notes.in_pipe(0);
                pipe.put();
            }
        }
        Poll::Ready(Ok(Step::Moved(n)))
    }

    /// Bytes came: they belong to this burst, and full reads may make it shift up.
    fn count_burst(&mut self, n: usize, from: &Stream, to: &Stream) {
        self.burst = self.burst.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        if self.gear == Gear::Small && !self.forced && !self.is_direct(from, to) {
            self.run = if n < CHUNK.min(self.most as usize) { 0 } else { self.run + 1 };
            if self.run >= FULL_READS {
                (self.gear, self.run) = (Gear::high(from.kind(), to.kind()), 0);
            }
        }
    }

    /// No bytes wait: the burst is over, and lean ones may make it shift down.
    fn wait(&mut self) -> Poll<Result<Step, Stuck>> {
        self.decide = false;
        if self.gear != Gear::Small && self.burst > 0 && !self.forced {
            self.run = if (self.burst as usize) < CHUNK { self.run + 1 } else { 0 };
            if self.run >= LEAN_BURSTS {
                (self.gear, self.run) = (Gear::Small, 0);
            }
        }
        self.burst = 0;
        Poll::Pending
    }
}
