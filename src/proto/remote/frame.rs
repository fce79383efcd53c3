//! Frames: `u32 length | u32 stream | u8 type | body`. The length counts what follows it.

use std::str;

use bytes::{Buf as _, Bytes, BytesMut};

use super::{
    check::valid_id,
    ending::Ending,
    memory::ReadMemory,
    request::Request,
    wait::WaitReason,
    wire::{Fault, MAGIC, MAX_COMMAND, MAX_LENGTH, Reader, VERSION},
};

/// Bytes before the body.
pub const HEADER: usize = 9;
/// A frame below this size is copied: a part of a [`ReadMemory`] keeps all of its piece, so a small frame that waits
/// long would keep many times its size.
const SMALL: usize = 16 << 10;

/// What each side says first: dom0 to the agent, the agent to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The version of the protocol.
    pub version: u16,
    /// A number of this session alone, chosen by dom0.
    pub nonce: [u8; 32],
    /// The qube, by dom0's name for it.
    pub vm: String,
    /// Streams at a time.
    pub streams: u16,
    /// To the agent the first that may be used, to a client the one that is his.
    pub seq: u64,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No key, a wrong code, another qube's request, one used before.
    NotAuthorised,
    /// Policy says no, or a person did.
    Denied,
    /// The request is not valid.
    Invalid,
    /// dom0 has no room for the command now.
    Busy,
    /// dom0's part is being stopped.
    Draining,
    /// The session or the number is not current; asking again may help.
    Stale,
    /// The command could not be started.
    Failed,
}

impl Refusal {
    const ALL: [Self; 7] =
        [Self::NotAuthorised, Self::Denied, Self::Invalid, Self::Busy, Self::Draining, Self::Stale, Self::Failed];

    /// The client's exit status: 126 refused, 255 not possible now.
    pub fn status(self) -> u8 {
        match self {
            Self::NotAuthorised | Self::Denied | Self::Invalid => 126,
            Self::Busy | Self::Draining | Self::Stale | Self::Failed => 255,
        }
    }
}

macro_rules! types {
    ($($name:ident = $number:literal),* $(,)?) => {
        /// Types of frames.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // named and explained by the variants of `Frame`
        pub enum Type { $($name = $number),* }

        impl Type {
            fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

types! {
    Hello = 1, Open = 2, Body = 3, Accept = 4, Reject = 5, Wait = 6, Stdin = 7, Stdout = 8, Stderr = 9, Eof = 10,
    Credit = 11, Signal = 12, Resize = 13, Cancel = 14, Exit = 15, Ping = 16, Pong = 17, Goaway = 18, V1 = 19,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The first frame of each side.
    Hello(Hello),
    /// A request and its code.
    Open(Box<Request>, [u8; 32]),
    /// A part of the payload.
    Body(&'a [u8]),
    /// The command runs.
    Accept,
    /// The command does not run; ends the stream.
    Reject(Refusal, &'a str),
    /// The command does not run yet, and why.
    Wait(WaitReason<'a>),
    /// Standard input for the command.
    Stdin(&'a [u8]),
    /// Standard output of the command.
    Stdout(&'a [u8]),
    /// Standard error of the command.
    Stderr(&'a [u8]),
    /// Standard input has ended.
    Eof,
    /// How many bytes more the other side may send.
    Credit(u32),
    /// A signal for the process group of the command.
    Signal(u8),
    /// Rows and columns of the client's terminal.
    Resize(u16, u16),
    /// The command is to be ended.
    Cancel,
    /// The command ended; the code of its result. Ends the stream.
    Exit(Ending, [u8; 32]),
    /// Asks whether the other end lives.
    Ping(u64),
    /// Answers a ping.
    Pong(u64),
    /// The session ends, and why.
    Goaway(&'a str),
    /// A request of protocol v1: its id, its token (empty: none), the length of its text. Every build reads it, so that
    /// a daemon without `v1` refuses the request and keeps the channel.
    V1(&'a str, &'a [u8], u32),
}

/// A frame whose body was not looked at yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawFrame<'a> {
    /// The number of the stream; 0 is the session.
    pub stream: u32,
    /// The type of the frame.
    pub kind: Type,
    /// The bytes behind the header.
    pub body: &'a [u8],
}

impl<'a> RawFrame<'a> {
    /// Reads the first frame of `bytes`: it and its size; `None` when more bytes are needed.
    ///
    /// # Errors
    /// A length or type that no frame has. Nothing after it can be read.
    pub fn split(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, Fault> {
        let Some(length) = bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if !(HEADER - 4..=MAX_LENGTH).contains(&length) {
            return Err(Fault("a frame of impossible length"));
        }
        // told as soon as it can be known, not when the rest has come
        let kind = match bytes.get(HEADER - 1) {
            Some(byte) => Type::from_byte(*byte).ok_or(Fault("a frame of unknown type"))?,
            None => return Ok(None),
        };
        let Some(frame) = bytes.get(4..4 + length) else { return Ok(None) };
        let stream = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
        Ok(Some((Self { stream, kind, body: &frame[5..] }, 4 + length)))
    }

    /// Reads the body, all of it.
    pub fn parse(&self) -> Result<Frame<'a>, Fault> {
        let mut r = Reader(self.body);
        let session = matches!(self.kind, Type::Hello | Type::Ping | Type::Pong | Type::Goaway);
        if session != (self.stream == 0) {
            return Err(Fault("a frame on a stream where it does not belong"));
        }
        let frame = match self.kind {
            Type::Hello => Frame::Hello(hello(&mut r)?),
            Type::Open => {
                let mac = r.array()?;
                Frame::Open(Box::new(Request::parse(r.take(r.0.len())?)?), mac)
            }
            Type::Body => Frame::Body(r.data()?),
            Type::Accept => Frame::Accept,
            Type::Reject => {
                let [code] = r.array()?;
                let refusal = Refusal::ALL.get(usize::from(code)).ok_or(Fault("a refusal of unknown kind"))?;
                Frame::Reject(*refusal, r.rest_text()?)
            }
            Type::Wait => Frame::Wait(WaitReason::parse(r.rest_text()?)),
            Type::Stdin => Frame::Stdin(r.data()?),
            Type::Stdout => Frame::Stdout(r.data()?),
            Type::Stderr => Frame::Stderr(r.data()?),
            Type::Eof => Frame::Eof,
            Type::Credit => Frame::Credit(u32::from_be_bytes(r.array()?)),
            Type::Signal => match r.array()? {
                [n @ 1..=31] => Frame::Signal(n),
                _ => return Err(Fault("an invalid signal")),
            },
            Type::Resize => Frame::Resize(u16::from_be_bytes(r.array()?), u16::from_be_bytes(r.array()?)),
            Type::Cancel => Frame::Cancel,
            Type::Exit => {
                let [kind, value] = r.array()?;
                let ending = Ending::from_bytes(kind, value).ok_or(Fault("an ending of unknown kind"))?;
                Frame::Exit(ending, r.array()?)
            }
            Type::Ping => Frame::Ping(u64::from_be_bytes(r.array()?)),
            Type::Pong => Frame::Pong(u64::from_be_bytes(r.array()?)),
            Type::Goaway => Frame::Goaway(r.rest_text()?),
            Type::V1 => {
                let length = u32::from_be_bytes(r.array()?);
                let id = str::from_utf8(r.field()?).ok().filter(|id| valid_id(id));
                let id = id.ok_or(Fault("an invalid id"))?;
                let token = r.take(r.0.len())?;
                if length as usize > MAX_COMMAND || token.len() > 4096 {
                    return Err(Fault("a command that is too large"));
                }
                Frame::V1(id, token, length)
            }
        };
        if r.0.is_empty() { Ok(frame) } else { Err(Fault("a frame with bytes left over")) }
    }

    /// Whether a VM may send such a frame.
    pub fn from_vm(&self) -> bool {
        matches!(
            self.kind,
            Type::Open
                | Type::Body
                | Type::Stdin
                | Type::Eof
                | Type::Credit
                | Type::Signal
                | Type::Resize
                | Type::Cancel
                | Type::Ping
                | Type::Pong
                | Type::V1
        )
    }
}

fn hello(r: &mut Reader<'_>) -> Result<Hello, Fault> {
    let version = u16::from_be_bytes(r.array()?);
    if version < VERSION {
        return Err(Fault("an older protocol"));
    }
    let nonce = r.array()?;
    let streams = u16::from_be_bytes(r.array()?);
    let seq = u64::from_be_bytes(r.array()?);
    let vm = r.rest_text()?;
    if !crate::proto::qube::valid_vm(vm) || streams == 0 {
        return Err(Fault("a greeting with a wrong name or no streams"));
    }
    Ok(Hello { version, nonce, vm: vm.to_owned(), streams, seq })
}

impl Frame<'_> {
    /// The type of the frame.
    pub fn kind(&self) -> Type {
        match self {
            Self::Hello(_) => Type::Hello,
            Self::Open(..) => Type::Open,
            Self::Body(_) => Type::Body,
            Self::Accept => Type::Accept,
            Self::Reject(..) => Type::Reject,
            Self::Wait(_) => Type::Wait,
            Self::Stdin(_) => Type::Stdin,
            Self::Stdout(_) => Type::Stdout,
            Self::Stderr(_) => Type::Stderr,
            Self::Eof => Type::Eof,
            Self::Credit(_) => Type::Credit,
            Self::Signal(_) => Type::Signal,
            Self::Resize(..) => Type::Resize,
            Self::Cancel => Type::Cancel,
            Self::Exit(..) => Type::Exit,
            Self::Ping(_) => Type::Ping,
            Self::Pong(_) => Type::Pong,
            Self::Goaway(_) => Type::Goaway,
            Self::V1(..) => Type::V1,
        }
    }

    /// Appends the frame to `out`.
    pub fn write(&self, stream: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&stream.to_be_bytes());
        out.push(self.kind() as u8);
        match self {
            Self::Hello(hello) => {
                out.extend_from_slice(&hello.version.to_be_bytes());
                out.extend_from_slice(&hello.nonce);
                out.extend_from_slice(&hello.streams.to_be_bytes());
                out.extend_from_slice(&hello.seq.to_be_bytes());
                out.extend_from_slice(hello.vm.as_bytes());
            }
            Self::Open(request, mac) => {
                out.extend_from_slice(mac);
                out.extend_from_slice(&request.canonical());
            }
            Self::Body(data) | Self::Stdin(data) | Self::Stdout(data) | Self::Stderr(data) => {
                out.extend_from_slice(data);
            }
            Self::Reject(refusal, text) => {
                out.push(*refusal as u8);
                out.extend_from_slice(text.as_bytes());
            }
            Self::Wait(reason) => out.extend_from_slice(reason.to_string().as_bytes()),
            Self::Goaway(text) => out.extend_from_slice(text.as_bytes()),
            Self::Credit(n) => out.extend_from_slice(&n.to_be_bytes()),
            Self::Signal(n) => out.push(*n),
            Self::Resize(rows, columns) => {
                out.extend_from_slice(&rows.to_be_bytes());
                out.extend_from_slice(&columns.to_be_bytes());
            }
            Self::Exit(ending, mac) => {
                let (kind, value) = ending.to_bytes();
                out.extend_from_slice(&[kind, value]);
                out.extend_from_slice(mac);
            }
            Self::Ping(n) | Self::Pong(n) => out.extend_from_slice(&n.to_be_bytes()),
            Self::V1(id, token, length) => {
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(&u16::try_from(id.len()).unwrap_or(u16::MAX).to_be_bytes());
                out.extend_from_slice(id.as_bytes());
                out.extend_from_slice(token);
            }
            Self::Accept | Self::Eof | Self::Cancel => {}
        }
        finish(&mut out[start..]);
    }

    /// Encodes the frame.
    pub fn to_vec(&self, stream: u32) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        self.write(stream, &mut out);
        out
    }
}

/// Writes the header of a frame whose body stands from [`HEADER`] on already: data read into its place needs no copy.
pub fn seal(frame: &mut [u8], stream: u32, kind: Type) {
    frame[4..8].copy_from_slice(&stream.to_be_bytes());
    frame[8] = kind as u8;
    finish(frame);
}

/// Gives a whole frame another stream's number.
pub fn restream(frame: &mut [u8], stream: u32) {
    frame[4..8].copy_from_slice(&stream.to_be_bytes());
}

/// A frame that came whole: its bytes, which lie where they were read to unless they are few. Only [`Buffer::frame`]
/// makes one.
#[derive(Debug)]
pub struct WholeFrame {
    bytes: BytesMut,
    kind: Type,
}

impl WholeFrame {
    /// The frame, its body still to be parsed.
    pub fn raw(&self) -> RawFrame<'_> {
        let stream = u32::from_be_bytes([self.bytes[4], self.bytes[5], self.bytes[6], self.bytes[7]]);
        RawFrame { stream, kind: self.kind, body: &self.bytes[HEADER..] }
    }

    /// The header and the body.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Gives it another stream's number.
    pub fn restream(&mut self, stream: u32) {
        restream(&mut self.bytes, stream);
    }

    /// The header and the body, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }

    /// The body, without a copy.
    pub fn into_body(self) -> Bytes {
        let mut bytes = self.bytes.freeze();
        bytes.advance(HEADER);
        bytes
    }
}

fn finish(frame: &mut [u8]) {
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_be_bytes());
}

/// Bytes as they come, frames as they are whole. Keeps at most one frame beyond what was added at once.
#[derive(Debug, Default)]
pub struct Buffer(ReadMemory);

impl Buffer {
    /// Where bytes are appended, with room for at least so many.
    pub fn room(&mut self, least: usize) -> &mut BytesMut {
        self.0.room(least)
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// As [`RawFrame::split`]; after a fault nothing more can be read.
    pub fn frame(&mut self) -> Result<Option<WholeFrame>, Fault> {
        let bytes = self.0.bytes();
        let Some((raw, size)) = RawFrame::split(bytes)? else { return Ok(None) };
        let kind = raw.kind;
        let mut bytes = bytes.split_to(size);
        if size < SMALL {
            bytes = BytesMut::from(&bytes[..]);
        }
        Ok(Some(WholeFrame { bytes, kind }))
    }

    /// Whether the buffer holds a whole frame.
    pub fn has_frame(&mut self) -> Result<bool, Fault> {
        RawFrame::split(self.0.bytes()).map(|frame| frame.is_some())
    }

    /// Takes [`MAGIC`] away when it is what comes first; `None` when more bytes are needed.
    pub fn magic(&mut self) -> Option<bool> {
        let bytes = self.0.bytes();
        let n = bytes.len().min(MAGIC.len());
        if bytes[..n] != MAGIC[..n] {
            return Some(false);
        }
        (n == MAGIC.len()).then(|| {
            bytes.advance(n);
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{super::fixture::any_request, *};

    fn any_hello() -> impl Strategy<Value = Hello> {
        ("[A-Za-z][A-Za-z0-9_-]{0,30}", any::<[u8; 32]>(), 1u16.., any::<u64>())
            .prop_map(|(vm, nonce, streams, seq)| Hello { version: VERSION, nonce, vm, streams, seq })
    }

    proptest! {
        #[test]
        fn frames_are_read_back_however_they_are_cut(
            request in any_request(), hello in any_hello(), data in vec(any::<u8>(), 1..500), text: String, n: u64,
            mac: [u8; 32], cut in 1usize..300, id in "[A-Za-z0-9][A-Za-z0-9_-]{0,20}",
        ) {
            let frames = [
                Frame::Hello(hello), Frame::Open(Box::new(request), mac), Frame::Body(&data), Frame::Accept,
                Frame::Reject(Refusal::Busy, &text), Frame::Wait(WaitReason::parse(&text)), Frame::Stdin(&data), Frame::Stdout(&data),
                Frame::Stderr(&data), Frame::Eof, Frame::Credit(7), Frame::Signal(15), Frame::Resize(24, 80),
                Frame::Cancel, Frame::Exit(Ending::Signal(9), mac), Frame::Ping(n), Frame::Pong(n),
                Frame::Goaway(&text), Frame::V1(&id, &data, 77),
            ];
            let stream = |f: &Frame<'_>| u32::from(!matches!(
                f, Frame::Hello(_) | Frame::Ping(_) | Frame::Pong(_) | Frame::Goaway(_)
            ));
            let mut wire = Vec::new();
            frames.iter().for_each(|f| f.write(stream(f), &mut wire));
            let (mut buffer, mut read) = (Buffer::default(), 0);
            for part in wire.chunks(cut) {
                buffer.room(0).extend_from_slice(part);
                while let Some(mut whole) = buffer.frame()? {
                    let raw = whole.raw();
                    let frame = raw.parse()?;
                    prop_assert_eq!(&frame, &frames[read]);
                    prop_assert_eq!(frame.to_vec(raw.stream), whole.as_bytes());
                    let other = frame.to_vec(7);
                    whole.restream(7);
                    prop_assert_eq!(whole.as_bytes(), &other);
                    prop_assert_eq!(whole.into_body(), &other[HEADER..]);
                    read += 1;
                }
            }
            prop_assert_eq!(read, frames.len());
        }

        #[test]
        fn any_bytes_are_frames_or_a_fault(bytes in vec(any::<u8>(), 0..400)) {
            let mut buffer = Buffer::default();
            buffer.room(0).extend_from_slice(&bytes);
            while let Ok(Some(whole)) = buffer.frame() {
                let raw = whole.raw();
                if let Ok(frame) = raw.parse() {
                    prop_assert_eq!(frame.to_vec(raw.stream), whole.as_bytes());
                }
            }
        }

        #[test]
        fn any_body_is_a_frame_or_a_fault(kind in 1u8..=19, stream in 0u32..2, body in vec(any::<u8>(), 0..100)) {
            let kind = Type::from_byte(kind).expect("there are nineteen");
            if let Ok(frame) = (RawFrame { stream, kind, body: &body }).parse() {
                prop_assert_eq!(&frame.to_vec(stream)[HEADER..], &body);
            }
        }
    }

    #[test]
    fn a_length_that_no_frame_has_is_told_before_its_bytes_come() {
        for length in [0u32, 4, 65_553, u32::MAX] {
            assert!(RawFrame::split(&length.to_be_bytes()).is_err(), "{length}");
        }
        assert_eq!(RawFrame::split(&5u32.to_be_bytes()), Ok(None));
        assert!(RawFrame::split(&[0, 0, 0, 5, 0, 0, 0, 1, 99]).is_err());
    }

    #[test]
    fn the_magic_is_told_from_everything_else_as_early_as_can_be() {
        let try_it = |bytes: &[u8]| {
            let mut buffer = Buffer::default();
            buffer.room(0).extend_from_slice(bytes);
            buffer.magic()
        };
        assert_eq!((try_it(b""), try_it(b"QVM"), try_it(b"QVMR2\nx")), (None, None, Some(true)));
        assert_eq!((try_it(b"bash: qvm-remote"), try_it(b"QVMR1\n")), (Some(false), Some(false)));
    }

    #[test]
    fn a_sealed_buffer_is_the_frame_that_write_makes() {
        let mut frame = vec![0; HEADER];
        frame.extend_from_slice(b"data");
        seal(&mut frame, 7, Type::Stdout);
        assert_eq!(frame, Frame::Stdout(b"data").to_vec(7));
        restream(&mut frame, 9);
        assert_eq!(frame, Frame::Stdout(b"data").to_vec(9));
    }
}
