//! Keys, and the codes made with them: who asked for a command, and that a result is dom0's.
//!
//! One key of 256 bits per VM, as the original has it: 64 hexadecimal digits in a file. From its 32 bytes come one derived
//! key for requests and one for results. A request's code covers everything that decides what is executed
//! ([`Request::canonical`]); a result's covers the request's code, the ending, the digests of what was written and, where
//! all of the input came, that of the input ([`with_input`]).

use std::fmt;

use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::remote::{Ending, KeyId, Request};

/// Bytes of a key, of a code and of a digest.
pub const SIZE: usize = 32;

/// A SHA-256 digest.
pub type Digest = [u8; SIZE];

/// A key. Shows nothing of itself, is compared in constant time, and leaves no copy when it is dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key([u8; SIZE]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Key {}

impl Key {
    /// From the 32 bytes themselves.
    pub fn new(bytes: [u8; SIZE]) -> Self {
        Self(bytes)
    }

    /// From 64 hexadecimal digits in either case, white space around them allowed; nothing else (the original took
    /// whatever Python's `int(…, 16)` takes, signs and underscores among it).
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        unhex(text.trim_ascii()).map(Self)
    }

    /// As it stands in a key file: 64 lower-case digits.
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(&self.0))
    }

    /// The public name of the key.
    pub fn id(&self) -> KeyId {
        let digest = Sha256::new().chain_update(b"qvm-remote/2 kid").chain_update(self.0).finalize();
        std::array::from_fn(|i| digest[i])
    }

    /// The code of a request.
    pub fn request(&self, request: &Request) -> Digest {
        let key = Zeroizing::new(code(&self.0, &[b"qvm-remote/2 request"]));
        code(&*key, &[&request.canonical()])
    }

    /// Whether `given` is the code of this request.
    pub fn verify_request(&self, request: &Request, given: &Digest) -> bool {
        self.request(request).ct_eq(given).into()
    }

    /// The code of a result.
    pub fn result(&self, result: &Outcome<'_>) -> Digest {
        let key = Zeroizing::new(code(&self.0, &[b"qvm-remote/2 result"]));
        let (kind, value) = result.ending.to_bytes();
        code(
            &*key,
            &[
                b"QVMR2 result",
                &length(result.id.len()),
                result.id.as_bytes(),
                result.request,
                &[kind, value],
                result.stdout,
                result.stderr,
            ],
        )
    }

    /// Whether `given` is the code of this result.
    pub fn verify_result(&self, result: &Outcome<'_>, given: &Digest) -> bool {
        self.result(result).ct_eq(given).into()
    }
}

impl Key {
    /// The code of what dom0's log says of a request: the number of its entry, and the head of the chain behind it.
    pub fn receipt(&self, id: &str, request: &Digest, number: u64, head: &Digest) -> Digest {
        let key = Zeroizing::new(code(&self.0, &[b"qvm-remote/2 result"]));
        let parts = [b"QVMR2 log" as &[u8], &length(id.len()), id.as_bytes(), request, &number.to_be_bytes(), head];
        code(&*key, &parts)
    }

    /// Whether `given` is that code.
    pub fn verify_receipt(&self, id: &str, request: &Digest, number: u64, head: &Digest, given: &Digest) -> bool {
        self.receipt(id, request, number, head).ct_eq(given).into()
    }
}

/// What a result's code covers.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The id of the request.
    pub id: &'a str,
    /// The request's own code: binds the result to what was asked, not only to its name.
    pub request: &'a Digest,
    /// Exit code or signal of the command.
    pub ending: Ending,
    /// Digest of all it wrote on its standard output.
    pub stdout: &'a Digest,
    /// Digest of all it wrote on its standard error.
    pub stderr: &'a Digest,
}

/// What stands for the digest of standard error in a code that also covers the input of a command, or the bytes of a
/// `put`: no input, however short, has the code of a dom0 that covers none.
pub fn with_input(stderr: &Digest, input: &Digest) -> Digest {
    Sha256::new().chain_update(b"input covered").chain_update(stderr).chain_update(input).finalize().into()
}

/// The digest of nothing written.
pub fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|n| char::from(DIGITS[usize::from(n)])).collect()
}

/// The bytes that exactly `2 * N` hexadecimal digits name.
pub fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn length(n: usize) -> [u8; 8] {
    (n as u64).to_be_bytes()
}

pub(super) fn code(key: &[u8], parts: &[&[u8]]) -> Digest {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length (RFC 2104)");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::remote::fixture::any_request, *};

    fn key() -> Key {
        Key::new(std::array::from_fn(|i| u8::try_from(i).expect("below 32")))
    }

    #[test]
    fn a_key_is_64_hexadecimal_digits_and_nothing_else() {
        let text = key().to_hex();
        assert_eq!(Key::from_hex(format!("{}\n", *text).as_bytes()), Some(key()));
        assert_eq!(Key::from_hex(text.to_uppercase().as_bytes()), Some(key()));
        for bad in
            [format!("0x{}", &text[2..]), format!("+{}", &text[1..]), text[..63].to_owned(), format!("{}0", *text)]
        {
            assert_eq!(Key::from_hex(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_key_shows_nothing_of_itself() {
        assert_eq!(format!("{:?}", key()), "Key(…)");
    }

    fn outcome<'a>(id: &'a str, request: &'a Digest, ending: Ending, out: &'a Digest, err: &'a Digest) -> Outcome<'a> {
        Outcome { id, request, ending, stdout: out, stderr: err }
    }

    #[test]
    fn every_part_of_a_result_is_covered() {
        let (a, b) = (digest(b"a"), digest(b"b"));
        let good = outcome("x", &a, Ending::Exit(0), &a, &b);
        let code = key().result(&good);
        assert!(key().verify_result(&good, &code));
        for other in [
            outcome("y", &a, Ending::Exit(0), &a, &b),
            outcome("x", &b, Ending::Exit(0), &a, &b),
            outcome("x", &a, Ending::Exit(1), &a, &b),
            outcome("x", &a, Ending::Signal(0), &a, &b),
            outcome("x", &a, Ending::Exit(0), &b, &b),
            outcome("x", &a, Ending::Exit(0), &a, &a),
        ] {
            assert!(!key().verify_result(&other, &code), "{other:?}");
        }
    }

    #[test]
    fn every_part_of_a_receipt_is_covered_and_it_is_no_result() {
        let (a, b) = (digest(b"a"), digest(b"b"));
        let good = key().receipt("x", &a, 7, &b);
        assert!(key().verify_receipt("x", &a, 7, &b, &good));
        for other in [("y", &a, 7, &b), ("x", &b, 7, &b), ("x", &a, 8, &b), ("x", &a, 7, &a)] {
            assert!(!key().verify_receipt(other.0, other.1, other.2, other.3, &good), "{other:?}");
        }
        assert_ne!(key().result(&outcome("x", &a, Ending::Exit(0), &a, &b)), good);
    }

    proptest! {
        #[test]
        fn two_requests_with_one_code_are_the_same_request(one in any_request(), two in any_request()) {
            prop_assert_eq!(key().request(&one) == key().request(&two), one == two);
        }

        #[test]
        fn no_other_key_makes_the_same_code(bytes: [u8; 32], request in any_request()) {
            prop_assume!(Key::new(bytes) != key());
            prop_assert_ne!(Key::new(bytes).request(&request), key().request(&request));
            prop_assert_ne!(Key::new(bytes).id(), key().id());
        }

        #[test]
        fn reading_a_key_never_panics(bytes: Vec<u8>) {
            let _ = Key::from_hex(&bytes);
        }
    }
}
