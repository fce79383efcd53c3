//! What the other end of a call must not do. Each of these ends the call: nothing that follows can be trusted.

use std::fmt;

use super::kind::{MuxType, StreamId};

/// What the other end did that its protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuxFault {
    /// A frame of a type that does not exist.
    UnknownType(u8),
    /// A frame with a code that its type does not have.
    UnknownCode(MuxType),
    /// A frame whose payload cannot have that length.
    WrongLength(MuxType),
    /// A frame of the call with the number of a stream, or one of a stream without.
    WrongStream(MuxType),
    /// An amount of zero.
    NoAmount(MuxType),
    /// Another frame than HELLO came first.
    NoHello(MuxType),
    /// A second HELLO.
    HelloAgain,
    /// A version that this program does not speak.
    Version(u32),
    /// One end carries bytes and the other datagrams.
    OtherContent,
    /// A frame that only the other role sends, or that belongs to the other content.
    Unexpected(MuxType),
    /// An OPEN whose number is not larger than those before.
    OldNumber(StreamId),
    /// A frame of a stream that was never opened.
    NeverOpened(MuxType, StreamId),
    /// The far end sent it before OPENED.
    BeforeOpened(MuxType, StreamId),
    /// A second OPENED.
    OpenedAgain(StreamId),
    /// A frame that the sender's own FIN rules out.
    AfterFin(MuxType, StreamId),
    /// More bytes than there was credit for.
    BeyondCredit(StreamId),
    /// More credit than a stream may have.
    TooMuchCredit(StreamId),
    /// More bytes acknowledged than were sent.
    TooMuchAcknowledged,
}

impl fmt::Display for MuxFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(number) => write!(f, "a frame of unknown type {number}"),
            Self::UnknownCode(kind) => write!(f, "{kind} with an unknown code"),
            Self::WrongLength(kind) => write!(f, "{kind} of impossible length"),
            Self::WrongStream(kind) => write!(f, "{kind} with a stream number that it cannot have"),
            Self::NoAmount(kind) => write!(f, "{kind} of 0 bytes"),
            Self::NoHello(kind) => write!(f, "{kind} before HELLO"),
            Self::HelloAgain => write!(f, "a second HELLO"),
            Self::Version(number) => write!(f, "version {number} of the protocol, which is unknown here"),
            Self::OtherContent => write!(f, "one end carries bytes and the other datagrams"),
            Self::Unexpected(kind) => write!(f, "{kind}, which this end does not take"),
            Self::OldNumber(id) => write!(f, "OPEN of stream {id}, whose number is not a new one"),
            Self::NeverOpened(kind, id) => write!(f, "{kind} of stream {id}, which was never opened"),
            Self::BeforeOpened(kind, id) => write!(f, "{kind} of stream {id} before OPENED"),
            Self::OpenedAgain(id) => write!(f, "a second OPENED of stream {id}"),
            Self::AfterFin(kind, id) => write!(f, "{kind} of stream {id} after FIN"),
            Self::BeyondCredit(id) => write!(f, "more bytes in stream {id} than there was credit for"),
            Self::TooMuchCredit(id) => write!(f, "more credit for stream {id} than a stream may have"),
            Self::TooMuchAcknowledged => write!(f, "more bytes acknowledged than were sent"),
        }
    }
}

impl std::error::Error for MuxFault {}
