//! A stream whose every byte is known from a seed and its place, and a checksum for streams that are not.
//!
//! Shared by the fake `qrexec-client-vm` and the tests: what one side writes, the other can verify without having
//! been told more than the seed, however the bytes were cut into chunks on their way.

use std::fmt;

/// The seed of what the fake's own services send (`test.Source`, `test.EndsFirst`).
pub const SERVICE_SEED: u64 = 1;

/// A place in the stream of `seed`: writes what comes next, or checks it.
#[derive(Clone, Debug)]
pub struct Pattern {
    seed: u64,
    at: u64,
}

/// The first byte that is not what the pattern has in that place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Offset in the stream.
    pub at: u64,
    pub expected: u8,
    pub found: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} is {:#04x} and should be {:#04x}", self.at, self.found, self.expected)
    }
}

impl std::error::Error for Mismatch {}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        Self { seed, at: 0 }
    }

    /// How many bytes have been written or checked.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Writes the next bytes of the stream.
    pub fn fill(&mut self, out: &mut [u8]) {
        let into_word = (self.at % 8) as usize;
        let mut index = self.at / 8;
        self.at += out.len() as u64;
        let mut rest = out;
        if into_word != 0 {
            let n = rest.len().min(8 - into_word);
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&word(self.seed, index)[into_word..into_word + n]);
            rest = tail;
            index += 1;
        }
        let mut chunks = rest.chunks_exact_mut(8);
        for chunk in &mut chunks {
            chunk.copy_from_slice(&word(self.seed, index));
            index += 1;
        }
        let last = chunks.into_remainder();
        let n = last.len();
        last.copy_from_slice(&word(self.seed, index)[..n]);
    }

    /// Holds `bytes` against the next bytes of the stream.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let mut expected = [0; 4096];
        for chunk in bytes.chunks(expected.len()) {
            let start = self.at;
            let expected = &mut expected[..chunk.len()];
            self.fill(expected);
            if expected != chunk {
                let i = expected.iter().zip(chunk).position(|(a, b)| a != b).unwrap_or(0);
                return Err(Mismatch { at: start + i as u64, expected: expected[i], found: chunk[i] });
            }
        }
        Ok(())
    }
}

/// The eight bytes in place `index` of the stream (the finalizer of splitmix64: no two places look alike).
fn word(seed: u64, index: u64) -> [u8; 8] {
    let mut z = seed.wrapping_mul(0xd6e8_feb8_6659_fd93).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// A checksum and a count of a stream; the same however the stream is cut. Printed as `COUNT HEX`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    state: u64,
    carry: [u8; 8],
    bytes: u64,
}

impl Sum {
    pub fn new() -> Self {
        Self { state: 0x5171_0af2_39b1_7d4d, carry: [0; 8], bytes: 0 }
    }

    /// The checksum of a whole slice.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::new();
        sum.add(bytes);
        sum
    }

    /// The checksum of the first `bytes` bytes of a pattern.
    pub fn of_pattern(seed: u64, bytes: u64) -> Self {
        let (mut pattern, mut sum, mut buffer) = (Pattern::new(seed), Self::new(), [0; 4096]);
        while sum.bytes < bytes {
            let n = (bytes - sum.bytes).min(4096) as usize;
            pattern.fill(&mut buffer[..n]);
            sum.add(&buffer[..n]);
        }
        sum
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn add(&mut self, mut bytes: &[u8]) {
        let held = (self.bytes % 8) as usize;
        self.bytes += bytes.len() as u64;
        if held != 0 {
            let n = bytes.len().min(8 - held);
            self.carry[held..held + n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if held + n < 8 {
                return;
            }
            self.state = mix(self.state, self.carry);
        }
        let mut words = bytes.chunks_exact(8);
        for w in &mut words {
            self.state = mix(self.state, [w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]]);
        }
        let rest = words.remainder();
        self.carry[..rest.len()].copy_from_slice(rest);
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = (self.bytes % 8) as usize;
        let mut last = [0; 8];
        last[..held].copy_from_slice(&self.carry[..held]);
        write!(f, "{} {:016x}", self.bytes, mix(mix(self.state, last), self.bytes.to_le_bytes()))
    }
}

fn mix(state: u64, word: [u8; 8]) -> u64 {
    (state ^ u64::from_le_bytes(word)).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29)
}
