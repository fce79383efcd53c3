//! A request: everything that decides what is executed, in one encoding that a code can cover.

use super::{
    check::{is_control, valid_id},
    wire::{Fault, KeyId, MAX_COMMAND, Reader, put},
};

/// How dom0 interprets the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A text for bash.
    Shell,
    /// A program and its arguments; no shell reads them.
    Argv,
    /// A path to read from.
    Get,
    /// A path to write to; its bytes come as standard input.
    Put,
    /// Nothing is executed: shows that dom0 answers and knows the key.
    Ping,
}

impl Mode {
    /// Decodes the byte of the wire.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Shell, Self::Argv, Self::Get, Self::Put, Self::Ping].get(usize::from(byte)).copied()
    }

    /// Name of the mode in the audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Argv => "argv",
            Self::Get => "get",
            Self::Put => "put",
            Self::Ping => "ping",
        }
    }
}

/// Bits of [`Request::flags`].
pub mod flags {
    /// Standard input follows.
    pub const STDIN: u8 = 1;
    /// A terminal is wanted.
    pub const TTY: u8 = 2;
    /// From the durable queue: no session's nonce, so its time and the ledger protect it.
    pub const QUEUED: u8 = 4;
}

/// Among the variables of a request with input: the client wants the code of the result to cover the bytes that dom0
/// got. An older dom0 drops this variable, and its code covers none of them.
pub const COVERED_INPUT: (&[u8], &[u8]) = (b"QVM_REMOTE_COVERED", b"input");

/// Bytes of the environment at most, names and values.
const MAX_ENV: usize = 32 << 10;
/// What the encoding begins with, so that no other use of the key makes the same bytes.
const CONTEXT: &[u8] = b"QVMR2";

/// A request for one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The key that made the code.
    pub kid: KeyId,
    /// The qube, by the name that dom0 has for it: a code made in one is of no use in another.
    pub vm: String,
    /// Of dom0's HELLO; zero for a queued request.
    pub nonce: [u8; 32],
    /// Never used twice in a session; zero for a queued request.
    pub seq: u64,
    /// The id of the command, in both logs.
    pub id: String,
    /// When the request was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// How long the command may run; 0: as long as policy allows.
    pub timeout_ms: u32,
    /// Bits of [`flags`].
    pub flags: u8,
    /// The user to run as; empty: as policy says.
    pub user: String,
    /// The client's working directory, dropped unless policy names it.
    pub cwd: Vec<u8>,
    /// How dom0 interprets the payload.
    pub mode: Mode,
    /// Bytes of the payload.
    pub length: u32,
    /// Digest of the payload.
    pub payload: [u8; 32],
    /// Names and values that the client would like to have set, dropped unless policy names them.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Request {
    /// The bytes that its code covers, and that stand on the wire: every field with a fixed size or its length.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(CONTEXT);
        out.extend_from_slice(&self.kid);
        put(&mut out, self.vm.as_bytes());
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.seq.to_be_bytes());
        put(&mut out, self.id.as_bytes());
        out.extend_from_slice(&self.created_ms.to_be_bytes());
        out.extend_from_slice(&self.timeout_ms.to_be_bytes());
        out.push(self.flags);
        put(&mut out, self.user.as_bytes());
        put(&mut out, &self.cwd);
        out.push(self.mode as u8);
        out.extend_from_slice(&self.length.to_be_bytes());
        out.extend_from_slice(&self.payload);
        out.extend_from_slice(&u16::try_from(self.env.len()).unwrap_or(u16::MAX).to_be_bytes());
        for (name, value) in &self.env {
            put(&mut out, name);
            put(&mut out, value);
        }
        out
    }

    /// Reads [`canonical`](Self::canonical) back, all of it, and holds each field against its bounds.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let mut r = Reader(bytes);
        if r.take(CONTEXT.len())? != CONTEXT {
            return Err(Fault("a request of another protocol"));
        }
        let kid = r.array()?;
        let vm = r.text("the qube's name is no text")?;
        let nonce = r.array()?;
        let seq = u64::from_be_bytes(r.array()?);
        let id = r.text("the id is no text")?;
        let created_ms = u64::from_be_bytes(r.array()?);
        let timeout_ms = u32::from_be_bytes(r.array()?);
        let [flags] = r.array()?;
        let user = r.text("the user's name is no text")?;
        let cwd = r.field()?.to_vec();
        let [mode] = r.array()?;
        let mode = Mode::from_byte(mode).ok_or(Fault("a request of unknown mode"))?;
        let length = u32::from_be_bytes(r.array()?);
        let payload = r.array()?;
        let count = u16::from_be_bytes(r.array()?);
        let mut env = Vec::new();
        for _ in 0..count {
            env.push((r.field()?.to_vec(), r.field()?.to_vec()));
        }
        if !r.0.is_empty() {
            return Err(Fault("a request with bytes left over"));
        }
        let request =
            Self { kid, vm, nonce, seq, id, created_ms, timeout_ms, flags, user, cwd, mode, length, payload, env };
        request.check().map(|()| request)
    }

    /// Holds each field against its bounds.
    fn check(&self) -> Result<(), Fault> {
        let known = flags::STDIN | flags::TTY | flags::QUEUED;
        let name = |n: &[u8]| {
            !n.is_empty() && !n[0].is_ascii_digit() && n.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
        };
        let user = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        let bad = if !valid_id(&self.id) {
            "an invalid id"
        } else if !crate::proto::qube::valid_vm(&self.vm) {
            "an invalid name of a qube"
        } else if self.length as usize > MAX_COMMAND {
            "a command of more than 1 MiB"
        } else if self.flags & !known != 0 {
            "flags that are not known"
        } else if self.user.len() > 32 || !self.user.bytes().all(user) {
            "an invalid name of a user"
        } else if self.cwd.len() > 4096 || self.cwd.contains(&0) {
            "an invalid directory"
        } else if self.env.iter().any(|(n, v)| !name(n) || v.contains(&0)) {
            "an invalid environment"
        } else if self.env.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() > MAX_ENV {
            "an environment of more than 32 KiB"
        } else {
            return Ok(());
        };
        Err(Fault(bad))
    }

    /// Whether the code of the result covers the input that dom0 got, where that has an end.
    pub fn covers_input(&self) -> bool {
        let (name, value) = COVERED_INPUT;
        self.env.iter().any(|(n, v)| n == name && v == value)
    }

    /// Whether a bit of [`flags`] is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The payload of [`Mode::Argv`].
pub fn argv_payload<S: AsRef<[u8]>>(words: &[S]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in words {
        let word = word.as_ref();
        out.extend_from_slice(&u32::try_from(word.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(word);
    }
    out
}

/// Reads [`argv_payload`] back: at least one word, nothing in any that no command's text may hold
/// ([`check_text`](super::check::check_text)), the first not empty.
pub fn argv(payload: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
    let (mut r, mut words) = (Reader(payload), Vec::new());
    while !r.0.is_empty() {
        let length = u32::from_be_bytes(r.array()?);
        let word = r.take(usize::try_from(length).map_err(|_| Fault("a word too long"))?)?;
        if word.iter().any(is_control) {
            return Err(Fault("a word with control characters"));
        }
        words.push(word.to_vec());
    }
    if words.first().is_none_or(Vec::is_empty) {
        return Err(Fault("no program is named"));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::fixture::any_request, *};

    proptest! {
        #[test]
        fn a_request_is_read_back_as_it_was(request in any_request()) {
            prop_assert_eq!(Request::parse(&request.canonical()), Ok(request));
        }

        #[test]
        fn a_request_cut_short_or_made_longer_is_none(request in any_request(), n in 0usize..1000) {
            let mut bytes = request.canonical();
            bytes.push(0);
            prop_assert!(Request::parse(&bytes).is_err());
            bytes.truncate(n % (bytes.len() - 1));
            prop_assert!(Request::parse(&bytes).is_err());
        }

        #[test]
        fn whatever_is_taken_is_written_the_same_way(bytes: Vec<u8>, request in any_request(), at: usize, to: u8) {
            let mut changed = request.canonical();
            let at = at % changed.len();
            changed[at] = to;
            for bytes in [bytes, changed] {
                if let Ok(request) = Request::parse(&bytes) {
                    prop_assert_eq!(request.canonical(), bytes);
                }
            }
        }

        #[test]
        fn words_are_read_back_as_they_were(
            words in prop::collection::vec(prop::collection::vec(prop_oneof![99 => 0x20u8.., 1 => 1u8..], 1..20), 1..6)
        ) {
            let control = words.iter().flatten().any(is_control);
            prop_assert_eq!(argv(&argv_payload(&words)).ok(), (!control).then_some(words));
        }

        #[test]
        fn any_payload_is_words_or_a_fault(bytes: Vec<u8>) {
            if let Ok(words) = argv(&bytes) {
                prop_assert_eq!(argv_payload(&words), bytes);
            }
        }
    }

    #[test]
    fn a_payload_without_a_program_is_refused() {
        assert!(argv(b"").is_err());
        assert!(argv(&argv_payload(&["", "x"])).is_err());
        assert!(argv(&argv_payload(&["a\0b"])).is_err());
        assert!(argv(&argv_payload(&["a", "\x1b]52;c;x\x07"])).is_err());
        assert!(argv(&argv_payload(&["a", "\tb\r\n\x7f\u{9b}"])).is_ok(), "as in a text");
    }
}
