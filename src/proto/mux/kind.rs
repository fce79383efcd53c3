//! The types of frames, and the numbers of streams.

use std::{fmt, num::NonZeroU32};

/// The number of a stream, chosen by the near end: each OPEN has a larger one than the OPEN before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub NonZeroU32);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! types {
    ($($name:ident = $number:literal),* $(,)?) => {
        /// Types of frames.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // named and explained by the variants of `MuxFrame`
        pub enum MuxType { $($name = $number),* }

        impl MuxType {
            pub(super) fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

types! { Hello = 0, Open = 1, Opened = 2, Data = 3, Credit = 4, Fin = 5, Reset = 6, Dgram = 7, Ack = 8 }

impl fmt::Display for MuxType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hello => "HELLO",
            Self::Open => "OPEN",
            Self::Opened => "OPENED",
            Self::Data => "DATA",
            Self::Credit => "CREDIT",
            Self::Fin => "FIN",
            Self::Reset => "RESET",
            Self::Dgram => "DGRAM",
            Self::Ack => "ACK",
        })
    }
}
