//! The protocol between dom0 and the agent in a VM, `qvm-remote serve`; the same frames pass between that agent and
//! a `qvm-remote` beside it.
//!
//! The VM's side begins with [`MAGIC`]. Then both sides send frames ([`frame`]): `u32 length | u32 stream | u8 type |
//! body`, big-endian. Stream 0 is the session itself; every command is a stream of its own, numbered by the VM.
//!
//! A command: OPEN (a [`Request`] with its code) and as many BODY as its text needs; then ACCEPT, or REJECT which ends
//! the stream, with any number of WAIT before either; then STDIN one way, STDOUT and STDERR the other; EXIT ends the
//! stream. Data is sent only for credit: each side may have [`CREDIT`] bytes on the way and gets more as the other
//! passes them on, so nobody keeps more than that for a stream, however much a command writes. BODY counts as STDIN.

pub mod frame;
mod request;

pub use frame::{Buffer, Fault, Frame, Hello, Raw, Refusal};
pub use request::{Mode, Request, argv, argv_payload, flags};

/// What an agent says first. Anything else is a VM without one.
pub const MAGIC: &[u8; 6] = b"QVMR2\n";
/// This version of the protocol.
pub const VERSION: u16 = 2;
/// Bytes on the way in one direction of a stream.
pub const CREDIT: u32 = 256 << 10;
/// Data in one frame at most: small enough that a flood does not delay other streams, large enough to be cheap.
pub const SLICE: usize = 32 << 10;
/// A command's text at most, as the original has it.
pub const MAX_COMMAND: usize = 1 << 20;
/// Streams of one VM at a time.
pub const MAX_STREAMS: u16 = 64;

/// Whether this may be the id of a command: a letter or digit, then up to 127 letters, digits, `.`, `_` and `-`, and
/// no `..`. Ids are never used in a path all the same.
pub fn valid_id(id: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    id.len() <= 128
        && id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && id.bytes().all(rest)
        && !id.contains("..")
}

/// Whether this may be the name of a qube: a letter, then up to 30 letters, digits, `_` and `-`.
pub fn valid_vm(name: &str) -> bool {
    name.len() <= 31
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Why a command's text is not taken, in the original's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadText {
    /// Nothing in it.
    Empty,
    /// More than [`MAX_COMMAND`] bytes: this many.
    Oversized(usize),
    /// Control characters other than TAB, LF and CR.
    Binary,
}

impl std::fmt::Display for BadText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => f.write_str("empty-command"),
            Self::Oversized(n) => write!(f, "oversized ({n} bytes)"),
            Self::Binary => f.write_str("binary-content"),
        }
    }
}

/// Checks a command's text as the original does: not empty, at most 1 MiB, no 00–08, 0B, 0C, 0E–1F.
///
/// # Errors
/// What is wrong with it.
pub fn check_text(text: &[u8]) -> Result<(), BadText> {
    if text.is_empty() {
        return Err(BadText::Empty);
    }
    if text.len() > MAX_COMMAND {
        return Err(BadText::Oversized(text.len()));
    }
    if text.iter().any(is_control) { Err(BadText::Binary) } else { Ok(()) }
}

/// What no command may hold: 00–08, 0B, 0C, 0E–1F.
fn is_control(byte: &u8) -> bool {
    matches!(byte, 0..=8 | 0x0b | 0x0c | 0x0e..=0x1f)
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this status.
    Exit(u8),
    /// By this signal.
    Signal(u8),
    /// Its time was over.
    Timeout,
    /// The client, or an operator, ended it.
    Cancelled,
    /// It wrote more than its policy allows.
    Limit,
}

impl Ending {
    /// Kind and value, as on the wire.
    pub fn to_bytes(self) -> (u8, u8) {
        match self {
            Self::Exit(status) => (0, status),
            Self::Signal(signal) => (1, signal),
            Self::Timeout => (2, 0),
            Self::Cancelled => (3, 0),
            Self::Limit => (4, 0),
        }
    }

    /// The inverse of [`to_bytes`](Self::to_bytes).
    pub fn from_bytes(kind: u8, value: u8) -> Option<Self> {
        Some(match (kind, value) {
            (0, status) => Self::Exit(status),
            (1, signal) => Self::Signal(signal),
            (2, 0) => Self::Timeout,
            (3, 0) => Self::Cancelled,
            (4, 0) => Self::Limit,
            _ => return None,
        })
    }

    /// As a shell has it: 128 + n for a signal, 124 for a time-out, 130 for a cancel, 125 for a limit.
    pub fn status(self) -> u8 {
        match self {
            Self::Exit(status) => status,
            Self::Signal(signal) => signal.saturating_add(128),
            Self::Timeout => 124,
            Self::Cancelled => 130,
            Self::Limit => 125,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    pub(in crate::proto) fn any_request() -> impl Strategy<Value = Request> {
        let id = "[A-Za-z0-9][A-Za-z0-9_-]{0,40}";
        let mode = (0u8..5).prop_map(|n| Mode::from_byte(n).expect("there are five"));
        let env = vec(("[A-Z_][A-Z0-9_]{0,8}", vec(1u8.., 0..20)), 0..3)
            .prop_map(|all| all.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect());
        (
            (any::<[u8; 8]>(), "[A-Za-z][A-Za-z0-9_-]{0,30}", any::<[u8; 32]>(), any::<u64>(), id, any::<u64>()),
            (any::<u32>(), 0u8..8, "[a-z]{0,8}", vec(1u8.., 0..20), mode, 0..=1u32 << 20, any::<[u8; 32]>(), env),
        )
            .prop_map(|((kid, vm, nonce, seq, id, created_ms), rest)| {
                let (timeout_ms, flags, user, cwd, mode, length, payload, env) = rest;
                Request {
                    kid,
                    vm,
                    nonce,
                    seq,
                    id,
                    created_ms,
                    timeout_ms,
                    flags,
                    user,
                    cwd,
                    mode,
                    length,
                    payload,
                    env,
                }
            })
    }

    #[test]
    fn an_id_that_could_be_a_path_or_an_option_is_none() {
        for good in ["20251120-101500-77-0a1b2c3d", "e2e-single-001", "a", &"x".repeat(128)] {
            assert!(valid_id(good), "{good}");
        }
        for bad in ["", "-x", ".x", "a..b", "../../etc/cron.d/x", "a/b", "a b", "a'b", "a\n", "é", &"x".repeat(129)] {
            assert!(!valid_id(bad), "{bad}");
        }
    }

    #[test]
    fn a_name_that_no_qube_can_have_is_none() {
        for good in ["work", "sys-net", "Dev_1", &"x".repeat(31)] {
            assert!(valid_vm(good), "{good}");
        }
        for bad in ["", "1a", "-a", "../x", "a b", "a.b", "a;b", &"x".repeat(32)] {
            assert!(!valid_vm(bad), "{bad}");
        }
    }

    #[test]
    fn a_text_is_refused_in_the_originals_words() {
        assert_eq!(check_text(b"printf '\t\r\n\x7f\xc3\xa9'"), Ok(()));
        assert_eq!(check_text(b"").map_err(|e| e.to_string()), Err("empty-command".into()));
        assert_eq!(check_text(&vec![b'x'; MAX_COMMAND]), Ok(()));
        let large = check_text(&vec![b'x'; MAX_COMMAND + 1]).map_err(|e| e.to_string());
        assert_eq!(large, Err("oversized (1048577 bytes)".into()));
        for control in (0..32u8).filter(|b| !b"\t\n\r".contains(b)) {
            assert_eq!(check_text(&[b'a', control]), Err(BadText::Binary), "{control:#x}");
        }
    }

    #[test]
    fn an_ending_is_the_status_that_a_shell_would_show() {
        let all = [Ending::Exit(3), Ending::Signal(9), Ending::Timeout, Ending::Cancelled, Ending::Limit];
        assert_eq!(all.map(Ending::status), [3, 137, 124, 130, 125]);
        for ending in all {
            let (kind, value) = ending.to_bytes();
            assert_eq!(Ending::from_bytes(kind, value), Some(ending));
        }
        assert_eq!((Ending::from_bytes(5, 0), Ending::from_bytes(2, 1)), (None, None));
    }
}
