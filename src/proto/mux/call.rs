//! One call with its streams, as one of its ends sees it: frames in, meaning out; what the sockets have to say in,
//! frames out. It knows the time only as it is told.

use std::{
    collections::HashMap,
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use super::{
    fault::MuxFault,
    frame::{MUX_HEADER, MUX_VERSION, MuxContent, MuxFrame, MuxHello, ResetCause, data_header, datagram_header},
    kind::{MuxType, StreamId},
    stream::MuxStream,
    turns::{SendTurn, SendTurns},
    window::{CREDIT_OF_CALL, CREDIT_TAKEN, FIRST_CREDIT, InFlight},
};

/// Streams of a call at a time.
pub const MAX_STREAMS: u32 = 2048;
/// OPENs that the far end takes within [`OPENS_TIME`]. Each is a connect(2) there, which no policy counts.
pub const MAX_OPENS: u32 = 5000;
const OPENS_TIME: Duration = Duration::from_secs(1);
/// An ACK is sent when so many bytes were taken from the call: far fewer than any limit in flight.
const ACK_FROM: u32 = 8 << 10;
/// Answers that may wait for the call. While more wait, nothing more is read: the other end does not read either.
const MAX_ANSWERS: usize = 1 << 20;

/// Which end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuxRole {
    /// Made the call, and opens streams.
    Near,
    /// Serves the call, and connects streams.
    Far,
}

/// What a frame means to those who hold the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuxNews<'a> {
    /// The other end is there. Streams can be opened from now on.
    Greeted,
    /// A stream is wanted. [`MuxCall::opened`] or [`MuxCall::reset`] answers.
    Wanted(StreamId),
    /// The far end has connected the stream.
    Opened(StreamId),
    /// Bytes for the socket. [`MuxCall::delivered`] tells when the socket has taken them.
    Bytes(StreamId, &'a [u8]),
    /// A datagram for the socket.
    Datagram(StreamId, &'a [u8]),
    /// Behind the bytes that came, the stream has ended.
    Ended(StreamId),
    /// Behind the bytes that came, the stream was reset.
    Reset(StreamId, ResetCause),
    /// It was about the call itself, or about a stream that is over.
    Nothing,
}

/// Who sends now, and how much. Must come back by [`MuxCall::sent`] or [`MuxCall::dry`], else the stream sends nothing
/// more until it wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the stream sends nothing more if it is dropped"]
pub struct MuxTurn {
    /// The stream.
    pub id: StreamId,
    /// The most bytes that it may send. Of datagrams, one.
    pub most: usize,
    turn: SendTurn,
}

/// One end of a call.
#[derive(Debug)]
pub struct MuxCall {
    role: MuxRole,
    content: MuxContent,
    /// What the other end said first.
    hello: Option<MuxHello>,
    streams: HashMap<StreamId, MuxStream>,
    /// The largest number of a stream so far.
    last: u32,
    turns: SendTurns,
    flight: InFlight,
    /// Frames that wait for the call, and go before all DATA and DGRAM.
    answers: Vec<u8>,
    /// Bytes taken from the call and not acknowledged.
    taken: u32,
    /// Windows of all streams.
    windows: u64,
    /// OPENs since the moment.
    opens: (u32, Duration),
    turned_away: u64,
}

impl MuxCall {
    /// A new call, whose HELLO waits in [`Self::answers`]. `floor`: the least in flight.
    pub fn new(role: MuxRole, content: MuxContent, floor: u32) -> Self {
        let hello = MuxHello { version: MUX_VERSION, content, credit: FIRST_CREDIT, streams: MAX_STREAMS };
        let mut answers = Vec::new();
        MuxFrame::Hello(hello).put(&mut answers);
        Self {
            role,
            content,
            hello: None,
            streams: HashMap::new(),
            last: 0,
            turns: SendTurns::default(),
            flight: InFlight::new(floor),
            answers,
            taken: 0,
            windows: 0,
            opens: (0, Duration::ZERO),
            turned_away: 0,
        }
    }

    /// What its streams carry.
    pub fn content(&self) -> MuxContent {
        self.content
    }

    /// Whether the other end is there.
    pub fn is_greeted(&self) -> bool {
        self.hello.is_some()
    }

    /// What it knows of a stream.
    pub fn stream(&self, id: StreamId) -> Option<&MuxStream> {
        self.streams.get(&id)
    }

    /// Streams that were not released.
    pub fn held(&self) -> usize {
        self.streams.len()
    }

    /// Streams that the other end wanted and that had no place.
    pub fn turned_away(&self) -> u64 {
        self.turned_away
    }

    /// Bytes that the other end can make this one hold.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// What is in flight, and its limit.
    pub fn flight(&self) -> &InFlight {
        &self.flight
    }

    /// How long nothing is to be read from the call; `None`: read on.
    pub fn pause(&self, now: Duration) -> Option<Duration> {
        let (count, since) = self.opens;
        (count >= MAX_OPENS).then(|| (since + OPENS_TIME).saturating_sub(now)).filter(|left| !left.is_zero())
    }

    /// Whether so many answers wait that nothing is to be read from the call.
    pub fn is_stuffed(&self) -> bool {
        self.answers.len() > MAX_ANSWERS
    }

    /// Takes what a frame says.
    ///
    /// # Errors
    /// The other end does what the protocol does not allow: the call is to be ended.
    pub fn hear<'a>(&mut self, frame: MuxFrame<'a>, now: Duration) -> Result<MuxNews<'a>, MuxFault> {
        let kind = frame.kind();
        let fits = match kind {
            MuxType::Hello | MuxType::Reset | MuxType::Ack => true,
            MuxType::Open => self.role == MuxRole::Far,
            MuxType::Opened => self.role == MuxRole::Near,
            MuxType::Data | MuxType::Credit | MuxType::Fin => self.content == MuxContent::Bytes,
            MuxType::Dgram => self.content == MuxContent::Datagrams,
        };
        if self.hello.is_none() && kind != MuxType::Hello {
            return Err(MuxFault::NoHello(kind));
        }
        if !fits {
            return Err(MuxFault::Unexpected(kind));
        }
        if let MuxFrame::Data(_, payload) | MuxFrame::Dgram(_, payload) = frame {
            self.taken = self.taken.saturating_add((MUX_HEADER + payload.len()) as u32);
        }
        let is_news = |news, is_news| if is_news { news } else { MuxNews::Nothing };
        Ok(match frame {
            MuxFrame::Hello(hello) => self.greet(hello)?,
            MuxFrame::Ack(bytes) => {
                if !self.flight.acknowledge(bytes.get(), now) {
                    return Err(MuxFault::TooMuchAcknowledged);
                }
                MuxNews::Nothing
            }
            MuxFrame::Open(id) => self.want(id, now)?,
            MuxFrame::Opened(id) => match self.known(kind, id)? {
                Some(stream) => is_news(MuxNews::Opened(id), stream.opened(id)?),
                None => MuxNews::Nothing,
            },
            MuxFrame::Data(id, payload) => match self.known(kind, id)? {
                Some(stream) => is_news(MuxNews::Bytes(id, payload), stream.data(id, payload.len() as u32)?),
                None => MuxNews::Nothing,
            },
            MuxFrame::Dgram(id, payload) => match self.known(kind, id)? {
                Some(stream) => is_news(MuxNews::Datagram(id, payload), stream.datagram(id)?),
                None => MuxNews::Nothing,
            },
            MuxFrame::Credit(id, bytes) => {
                let share = self.flight.payload();
                if let Some(stream) = self.known(kind, id)? {
                    if stream.credited(id, bytes)? {
                        self.turns.wake(id, share);
                    }
                }
                MuxNews::Nothing
            }
            MuxFrame::Fin(id) => match self.known(kind, id)? {
                Some(stream) => is_news(MuxNews::Ended(id), stream.ended(id)?),
                None => MuxNews::Nothing,
            },
            MuxFrame::Reset(id, cause) => match self.known(kind, id)? {
                Some(stream) => {
                    let first = stream.reset();
                    self.turns.forget(id);
                    is_news(MuxNews::Reset(id, cause), first)
                }
                None => MuxNews::Nothing,
            },
        })
    }

    fn greet(&mut self, hello: MuxHello) -> Result<MuxNews<'static>, MuxFault> {
        if self.hello.is_some() {
            return Err(MuxFault::HelloAgain);
        }
        // Both ends speak the smaller of the two versions.
        if hello.version < MUX_VERSION {
            return Err(MuxFault::Version(hello.version));
        }
        if hello.content != self.content {
            return Err(MuxFault::OtherContent);
        }
        self.hello = Some(MuxHello { credit: hello.credit.min(CREDIT_TAKEN), ..hello });
        Ok(MuxNews::Greeted)
    }

    /// A stream that is held; `None` for one that is over and released.
    fn known(&mut self, kind: MuxType, id: StreamId) -> Result<Option<&mut MuxStream>, MuxFault> {
        if id.0.get() > self.last {
            return Err(MuxFault::NeverOpened(kind, id));
        }
        Ok(self.streams.get_mut(&id))
    }

    fn want(&mut self, id: StreamId, now: Duration) -> Result<MuxNews<'static>, MuxFault> {
        if id.0.get() <= self.last {
            return Err(MuxFault::OldNumber(id));
        }
        self.last = id.0.get();
        if now.saturating_sub(self.opens.1) >= OPENS_TIME {
            self.opens = (0, now);
        }
        self.opens.0 += 1;
        if !self.has_place() {
            self.turned_away += 1;
            MuxFrame::Reset(id, ResetCause::Full).put(&mut self.answers);
            return Ok(MuxNews::Nothing);
        }
        self.hold(id, now);
        Ok(MuxNews::Wanted(id))
    }

    fn has_place(&self) -> bool {
        self.streams.len() < MAX_STREAMS as usize && self.windows + u64::from(self.first_window()) <= CREDIT_OF_CALL
    }

    fn first_window(&self) -> u32 {
        if self.content == MuxContent::Bytes { FIRST_CREDIT } else { 0 }
    }

    fn hold(&mut self, id: StreamId, now: Duration) {
        let window = self.first_window();
        let credit = self.hello.map_or(0, |hello| hello.credit);
        self.windows += u64::from(window);
        self.streams.insert(id, MuxStream::new(self.role == MuxRole::Near, credit, window, now));
    }

    /// Opens a stream; `None` where the other end has not greeted yet, or has no place for one more now.
    pub fn open(&mut self, now: Duration) -> Option<StreamId> {
        let hello = self.hello.filter(|_| self.role == MuxRole::Near)?;
        let number = self.last.checked_add(1).and_then(NonZeroU32::new)?;
        if self.streams.len() >= hello.streams as usize || !self.has_place() {
            return None;
        }
        self.last = number.get();
        let id = StreamId(number);
        self.hold(id, now);
        MuxFrame::Open(id).put(&mut self.answers);
        Some(id)
    }

    /// The socket of a wanted stream is connected.
    pub fn opened(&mut self, id: StreamId) {
        if self.streams.get_mut(&id).is_some_and(MuxStream::open) {
            MuxFrame::Opened(id).put(&mut self.answers);
        }
    }

    /// The socket has something to send, or its end.
    pub fn wake(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.may_send()) else { return };
        stream.wants = true;
        if stream.credit > 0 || self.content == MuxContent::Datagrams {
            self.turns.wake(id, self.flight.payload());
        }
    }

    /// Whose turn it is; `None` when nobody wants to send, or as much as allowed is in flight.
    pub fn turn(&mut self) -> Option<MuxTurn> {
        loop {
            if self.turns.is_empty() {
                return None;
            }
            let room = self.flight.room()?;
            let (id, turn) = self.turns.take(self.flight.payload())?;
            let Some(stream) = self.streams.get(&id).filter(|stream| stream.may_send()) else { continue };
            let most = match self.content {
                MuxContent::Bytes => room.min(stream.credit() as usize),
                MuxContent::Datagrams => u16::MAX.into(),
            };
            if most > 0 {
                return Some(MuxTurn { id, most, turn });
            }
        }
    }

    /// The stream sends `bytes` now, and perhaps has more. Gives the header, which goes before them.
    pub fn sent(&mut self, turn: MuxTurn, bytes: NonZeroU16, more: bool) -> [u8; MUX_HEADER] {
        self.count(turn, usize::from(bytes.get()), more);
        data_header(turn.id, bytes)
    }

    /// The stream sends a datagram now, and perhaps has more. Gives the header, which goes before it.
    pub fn sent_datagram(&mut self, turn: MuxTurn, bytes: u16, more: bool) -> [u8; MUX_HEADER] {
        self.count(turn, bytes.into(), more);
        datagram_header(turn.id, bytes)
    }

    fn count(&mut self, turn: MuxTurn, bytes: usize, more: bool) {
        self.flight.sent(MUX_HEADER + bytes);
        let Some(stream) = self.streams.get_mut(&turn.id) else { return };
        stream.wants = more;
        if self.content == MuxContent::Bytes {
            stream.sent(bytes as u32);
        }
        if more && (stream.credit > 0 || self.content == MuxContent::Datagrams) {
            self.turns.again(turn.id, turn.turn, MUX_HEADER + bytes);
        }
    }

    /// The socket has nothing to send, though it woke.
    pub fn dry(&mut self, turn: MuxTurn) {
        if let Some(stream) = self.streams.get_mut(&turn.id) {
            stream.wants = false;
        }
    }

    /// The socket has ended: FIN, behind all that was sent.
    pub fn end(&mut self, id: StreamId) {
        if self.streams.get_mut(&id).is_some_and(MuxStream::end) {
            self.turns.forget(id);
            MuxFrame::Fin(id).put(&mut self.answers);
        }
    }

    /// The stream ends before its time: RESET, behind all that was sent.
    pub fn reset(&mut self, id: StreamId, cause: ResetCause) {
        if self.streams.get_mut(&id).is_some_and(|stream| !stream.is_over() && stream.reset()) {
            self.turns.forget(id);
            MuxFrame::Reset(id, cause).put(&mut self.answers);
        }
    }

    /// The socket has taken bytes.
    pub fn delivered(&mut self, id: StreamId, bytes: usize, now: Duration) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = stream.window();
        let growth = u32::try_from(CREDIT_OF_CALL.saturating_sub(self.windows)).unwrap_or(u32::MAX);
        let credit = stream.delivered(u32::try_from(bytes).unwrap_or(u32::MAX), growth, now);
        self.windows += u64::from(stream.window() - before);
        if let Some(credit) = credit {
            MuxFrame::Credit(id, credit).put(&mut self.answers);
        }
    }

    /// Nobody holds a socket of the stream any more, and nothing of it waits. A stream that is not over is reset.
    pub fn release(&mut self, id: StreamId) {
        self.reset(id, ResetCause::Socket);
        if let Some(stream) = self.streams.remove(&id) {
            self.windows -= u64::from(stream.window());
        }
    }

    /// Frames that go before the next DATA or DGRAM, behind all that was sent. Whoever takes them sends them.
    pub fn answers(&mut self) -> &mut Vec<u8> {
        if self.taken >= ACK_FROM {
            if let Some(taken) = NonZeroU32::new(self.taken) {
                MuxFrame::Ack(taken).put(&mut self.answers);
            }
            self.taken = 0;
        }
        &mut self.answers
    }
}
