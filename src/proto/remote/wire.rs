//! What both ends agree on before they read a frame, and the reader of a body's fields.

use std::{fmt, str};

/// What an agent says first. Anything else is a VM without one.
pub const MAGIC: &[u8; 6] = b"QVMR2\n";
/// Version of the protocol that this code speaks.
pub const VERSION: u16 = 2;
/// Bytes on the way in one direction of a stream.
pub const CREDIT: u32 = 256 << 10;
/// Data in one frame at most: small enough that a flood does not delay other streams, large enough to be cheap.
pub const SLICE: usize = 64 << 10;
/// The length of a frame at most, as its header counts it.
pub(super) const MAX_LENGTH: usize = 65_552;
/// A command's text at most, as the original has it.
pub const MAX_COMMAND: usize = 1 << 20;
/// Streams of one VM at a time.
pub const MAX_STREAMS: u16 = 64;

/// Which key: the first eight bytes of a digest of it. Tells nothing about the key itself.
pub type KeyId = [u8; 8];

/// What is wrong with what the other side sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(pub &'static str);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Fault {}

/// Appends a field behind its length.
pub(super) fn put(out: &mut Vec<u8>, field: &[u8]) {
    out.extend_from_slice(&u16::try_from(field.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(field);
}

/// Bytes that are still to be read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Fault("it ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        Ok(self.take(N)?.try_into().expect("as many as asked for"))
    }

    pub(super) fn field(&mut self) -> Result<&'a [u8], Fault> {
        let length = u16::from_be_bytes(self.array()?);
        self.take(length.into())
    }

    pub(super) fn text(&mut self, fault: &'static str) -> Result<String, Fault> {
        String::from_utf8(self.field()?.to_vec()).map_err(|_| Fault(fault))
    }

    /// Data: everything left, and something must be.
    pub(super) fn data(&mut self) -> Result<&'a [u8], Fault> {
        if self.0.is_empty() { Err(Fault("a frame without data")) } else { self.take(self.0.len()) }
    }

    pub(super) fn rest_text(&mut self) -> Result<&'a str, Fault> {
        str::from_utf8(self.take(self.0.len())?).map_err(|_| Fault("a text that is not UTF-8"))
    }
}
