//! Frames: `u32 stream | u8 type | u8 code | u16 length`, little endian, and `length` bytes behind that.

use std::num::{NonZeroU16, NonZeroU32};

use super::{
    fault::MuxFault,
    kind::{MuxType, StreamId},
};

/// Bytes before the payload.
pub const MUX_HEADER: usize = 8;
/// The largest frame.
pub const MUX_FRAME: usize = MUX_HEADER + u16::MAX as usize;
/// The version that this program speaks.
pub const MUX_VERSION: u32 = 1;
/// Bytes of a HELLO's payload. A later version may send more, which this one leaves out.
const HELLO: usize = 12;

/// What all streams of a call carry. The service's name decides it, so that a policy for TCP never grants UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuxContent {
    /// Bytes, with two ends: DATA, CREDIT, FIN.
    Bytes,
    /// Datagrams: DGRAM.
    Datagrams,
}

/// Why an end has ended a stream before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetCause {
    /// The socket of the stream was reset, or failed.
    Socket,
    /// Nothing listens at the port or socket.
    Refused,
    /// The socket could not be connected for another reason.
    Unreachable,
    /// The end has no place for a further stream.
    Full,
}

impl ResetCause {
    const ALL: [Self; 4] = [Self::Socket, Self::Refused, Self::Unreachable, Self::Full];
}

/// What each end says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MuxHello {
    /// The version that the end speaks.
    pub version: u32,
    /// What its streams carry.
    pub content: MuxContent,
    /// Bytes that the other end may send in each new stream before it gets CREDIT.
    pub credit: u32,
    /// Streams at a time that it takes.
    pub streams: u32,
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MuxFrame<'a> {
    /// The first frame of each end.
    Hello(MuxHello),
    /// The near end wants a stream.
    Open(StreamId),
    /// The far end has connected the stream.
    Opened(StreamId),
    /// Bytes of a stream, at least one.
    Data(StreamId, &'a [u8]),
    /// So many bytes more may be sent in the stream.
    Credit(StreamId, NonZeroU32),
    /// The sender sends nothing more in the stream.
    Fin(StreamId),
    /// The stream has ended before its time, in both directions.
    Reset(StreamId, ResetCause),
    /// A datagram, which may be empty.
    Dgram(StreamId, &'a [u8]),
    /// So many bytes of DATA and DGRAM frames, with their headers, were taken from the call.
    Ack(NonZeroU32),
}

impl<'a> MuxFrame<'a> {
    /// Reads the first frame of `bytes`: it and its size; `None` when more bytes are needed. What is wrong with a
    /// header is told when the header is there.
    ///
    /// # Errors
    /// No frame begins so. Nothing after it can be read.
    pub fn split(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, MuxFault> {
        let Some(&[a, b, c, d, kind, code, low, high]) = bytes.first_chunk::<MUX_HEADER>() else { return Ok(None) };
        let length = usize::from(u16::from_le_bytes([low, high]));
        let kind = MuxType::from_byte(kind).ok_or(MuxFault::UnknownType(kind))?;
        let stream = NonZeroU32::new(u32::from_le_bytes([a, b, c, d]));
        let right_length = match kind {
            MuxType::Hello => length >= HELLO,
            MuxType::Credit | MuxType::Ack => length == 4,
            MuxType::Data => length > 0,
            MuxType::Dgram => true,
            MuxType::Open | MuxType::Opened | MuxType::Fin | MuxType::Reset => length == 0,
        };
        if !right_length {
            return Err(MuxFault::WrongLength(kind));
        }
        let has_code = matches!(kind, MuxType::Hello | MuxType::Reset);
        if !has_code && code != 0 {
            return Err(MuxFault::UnknownCode(kind));
        }
        let of_call = matches!(kind, MuxType::Hello | MuxType::Ack);
        if of_call != stream.is_none() {
            return Err(MuxFault::WrongStream(kind));
        }
        let Some(payload) = bytes.get(MUX_HEADER..MUX_HEADER + length) else { return Ok(None) };
        let number = |at: usize| payload.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four));
        let amount = || number(0).and_then(NonZeroU32::new).ok_or(MuxFault::NoAmount(kind));
        let frame = match (kind, stream.map(StreamId)) {
            (MuxType::Open, Some(id)) => Self::Open(id),
            (MuxType::Opened, Some(id)) => Self::Opened(id),
            (MuxType::Data, Some(id)) => Self::Data(id, payload),
            (MuxType::Credit, Some(id)) => Self::Credit(id, amount()?),
            (MuxType::Fin, Some(id)) => Self::Fin(id),
            (MuxType::Reset, Some(id)) => {
                let cause = ResetCause::ALL.get(usize::from(code)).ok_or(MuxFault::UnknownCode(kind))?;
                Self::Reset(id, *cause)
            }
            (MuxType::Dgram, Some(id)) => Self::Dgram(id, payload),
            (MuxType::Ack, _) => Self::Ack(amount()?),
            (_, _) => {
                let content = match code {
                    0 => MuxContent::Bytes,
                    1 => MuxContent::Datagrams,
                    _ => return Err(MuxFault::UnknownCode(kind)),
                };
                let number = |at| number(at).ok_or(MuxFault::WrongLength(kind));
                Self::Hello(MuxHello { version: number(0)?, content, credit: number(4)?, streams: number(8)? })
            }
        };
        Ok(Some((frame, MUX_HEADER + length)))
    }

    /// The type.
    pub fn kind(&self) -> MuxType {
        match self {
            Self::Hello(_) => MuxType::Hello,
            Self::Open(_) => MuxType::Open,
            Self::Opened(_) => MuxType::Opened,
            Self::Data(..) => MuxType::Data,
            Self::Credit(..) => MuxType::Credit,
            Self::Fin(_) => MuxType::Fin,
            Self::Reset(..) => MuxType::Reset,
            Self::Dgram(..) => MuxType::Dgram,
            Self::Ack(_) => MuxType::Ack,
        }
    }

    /// Writes it behind what `out` holds.
    ///
    /// # Panics
    /// When a payload is larger than a frame can be.
    pub fn put(&self, out: &mut Vec<u8>) {
        let (stream, code, amount) = match *self {
            Self::Hello(hello) => (None, hello.content as u8, None),
            Self::Ack(n) => (None, 0, Some(n)),
            Self::Credit(id, n) => (Some(id), 0, Some(n)),
            Self::Reset(id, cause) => (Some(id), cause as u8, None),
            Self::Open(id) | Self::Opened(id) | Self::Fin(id) | Self::Data(id, _) | Self::Dgram(id, _) => {
                (Some(id), 0, None)
            }
        };
        let payload = match self {
            Self::Data(_, payload) | Self::Dgram(_, payload) => payload,
            Self::Hello(_) => &[0; HELLO][..],
            Self::Ack(_) | Self::Credit(..) => &[0; 4],
            Self::Open(_) | Self::Opened(_) | Self::Fin(_) | Self::Reset(..) => &[],
        };
        let length = u16::try_from(payload.len()).expect("a payload fits into a frame");
        out.extend_from_slice(&header(stream, self.kind(), code, length));
        match (self, amount) {
            (Self::Hello(hello), _) => {
                for number in [hello.version, hello.credit, hello.streams] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            (_, Some(n)) => out.extend_from_slice(&n.get().to_le_bytes()),
            _ => out.extend_from_slice(payload),
        }
    }
}

/// The header of a DATA frame, whose payload stands where it was read to.
pub fn data_header(id: StreamId, length: NonZeroU16) -> [u8; MUX_HEADER] {
    header(Some(id), MuxType::Data, 0, length.get())
}

/// The header of a DGRAM frame, whose payload stands where it was read to.
pub fn datagram_header(id: StreamId, length: u16) -> [u8; MUX_HEADER] {
    header(Some(id), MuxType::Dgram, 0, length)
}

fn header(stream: Option<StreamId>, kind: MuxType, code: u8, length: u16) -> [u8; MUX_HEADER] {
    let [a, b, c, d] = stream.map_or(0, |id| id.0.get()).to_le_bytes();
    let [low, high] = length.to_le_bytes();
    [a, b, c, d, kind as u8, code, low, high]
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn id(n: u32) -> StreamId {
        StreamId(NonZeroU32::new(n).expect("not zero"))
    }

    fn written(frame: MuxFrame<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        frame.put(&mut out);
        out
    }

    #[test]
    fn each_frame_has_the_bytes_of_the_table() {
        let one = NonZeroU32::new(0x0102).expect("not zero");
        let hello = MuxHello { version: 1, content: MuxContent::Datagrams, credit: 2, streams: 3 };
        for (frame, bytes) in [
            (MuxFrame::Hello(hello), &[0, 0, 0, 0, 0, 1, 12, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0][..]),
            (MuxFrame::Open(id(7)), &[7, 0, 0, 0, 1, 0, 0, 0]),
            (MuxFrame::Opened(id(7)), &[7, 0, 0, 0, 2, 0, 0, 0]),
            (MuxFrame::Data(id(0x0100_0007), b"ab"), &[7, 0, 0, 1, 3, 0, 2, 0, b'a', b'b']),
            (MuxFrame::Credit(id(7), one), &[7, 0, 0, 0, 4, 0, 4, 0, 2, 1, 0, 0]),
            (MuxFrame::Fin(id(7)), &[7, 0, 0, 0, 5, 0, 0, 0]),
            (MuxFrame::Reset(id(7), ResetCause::Full), &[7, 0, 0, 0, 6, 3, 0, 0]),
            (MuxFrame::Dgram(id(7), b""), &[7, 0, 0, 0, 7, 0, 0, 0]),
            (MuxFrame::Ack(one), &[0, 0, 0, 0, 8, 0, 4, 0, 2, 1, 0, 0]),
        ] {
            assert_eq!(written(frame), bytes);
            assert_eq!(MuxFrame::split(bytes), Ok(Some((frame, bytes.len()))));
        }
        assert_eq!(data_header(id(7), NonZeroU16::new(2).expect("not zero"))[..], [7, 0, 0, 0, 3, 0, 2, 0]);
        assert_eq!(datagram_header(id(7), 0)[..], [7, 0, 0, 0, 7, 0, 0, 0]);
    }

    /// The fault comes with the header: nobody waits for 65,535 bytes of a frame that cannot be.
    #[test]
    fn what_is_no_frame_is_told_by_its_header() {
        for (bytes, fault) in [
            ([7, 0, 0, 0, 9, 0, 0, 0], MuxFault::UnknownType(9)),
            ([0, 0, 0, 0, 3, 0, 1, 0], MuxFault::WrongStream(MuxType::Data)),
            ([1, 0, 0, 0, 8, 0, 4, 0], MuxFault::WrongStream(MuxType::Ack)),
            ([1, 0, 0, 0, 3, 0, 0, 0], MuxFault::WrongLength(MuxType::Data)),
            ([1, 0, 0, 0, 1, 0, 1, 0], MuxFault::WrongLength(MuxType::Open)),
            ([1, 0, 0, 0, 4, 0, 255, 255], MuxFault::WrongLength(MuxType::Credit)),
            ([0, 0, 0, 0, 0, 0, 11, 0], MuxFault::WrongLength(MuxType::Hello)),
            ([1, 0, 0, 0, 3, 1, 1, 0], MuxFault::UnknownCode(MuxType::Data)),
            ([1, 0, 0, 0, 6, 4, 0, 0], MuxFault::UnknownCode(MuxType::Reset)),
        ] {
            assert_eq!(MuxFrame::split(&bytes), Err(fault), "{bytes:?}");
            assert_eq!(MuxFrame::split(&bytes[..7]), Ok(None));
        }
        let nothing = [1, 0, 0, 0, 4, 0, 4, 0, 0, 0, 0, 0];
        assert_eq!(MuxFrame::split(&nothing), Err(MuxFault::NoAmount(MuxType::Credit)));
    }

    pub(in super::super) fn frames() -> impl Strategy<Value = Vec<u8>> {
        let few = 1..6_u32;
        let amount =
            prop_oneof![1..70_000_u32, any::<u32>()].prop_map(|n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN));
        let payload = prop_oneof![1..50_usize, 16_000..40_000_usize];
        let content = prop_oneof![4 => Just(MuxContent::Bytes), 1 => Just(MuxContent::Datagrams)];
        let hello = (prop_oneof![9 => Just(1_u32), 1 => any::<u32>()], content, any::<u32>(), any::<u32>());
        prop_oneof![
            1 => hello.prop_map(|(version, content, credit, streams)| {
                written(MuxFrame::Hello(MuxHello { version, content, credit, streams }))
            }),
            4 => few.clone().prop_map(|n| written(MuxFrame::Open(id(n)))),
            2 => few.clone().prop_map(|n| written(MuxFrame::Opened(id(n)))),
            8 => (few.clone(), payload.clone()).prop_map(|(n, len)| written(MuxFrame::Data(id(n), &vec![7; len]))),
            4 => (few.clone(), amount.clone()).prop_map(|(n, a)| written(MuxFrame::Credit(id(n), a))),
            2 => few.clone().prop_map(|n| written(MuxFrame::Fin(id(n)))),
            1 => (few.clone(), 0..4_usize).prop_map(|(n, c)| written(MuxFrame::Reset(id(n), ResetCause::ALL[c]))),
            1 => (few, payload).prop_map(|(n, len)| written(MuxFrame::Dgram(id(n), &vec![7; len]))),
            1 => amount.prop_map(|a| written(MuxFrame::Ack(a))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(bytes in frames()) {
            let (frame, size) = MuxFrame::split(&bytes).expect("a frame").expect("a whole one");
            prop_assert_eq!(size, bytes.len());
            prop_assert_eq!(written(frame), bytes);
        }

        #[test]
        fn a_frame_is_read_when_its_last_byte_has_come_and_not_before(
            bytes in frames(), cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(bytes.len());
            prop_assert_eq!(MuxFrame::split(&bytes[..cut]), Ok(None));
        }

        #[test]
        fn any_bytes_are_a_frame_or_a_fault_or_too_few(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            match MuxFrame::split(&bytes) {
                Ok(Some((frame, size))) => {
                    let again = written(frame);
                    prop_assert!(size <= bytes.len() && again.len() <= size);
                    if frame.kind() != MuxType::Hello {
                        prop_assert_eq!(&again, &bytes[..size]);
                    }
                }
                Ok(None) => prop_assert!(bytes.len() < MUX_FRAME),
                Err(_) => prop_assert!(bytes.len() >= MUX_HEADER),
            }
        }
    }
}
