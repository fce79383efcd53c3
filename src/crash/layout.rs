//! What the words of the region mean. Pure: words in, values out.
//!
//! The header is `HEADER` words, then come `SLOTS` slots of `SLOT` words. A slot has words, then text; a text that is
//! longer goes on in further slots. Behind the slots are a note for each buffer of the last send out of it, and the
//! buffers, which have no form.
//! The file is long because all words are named and read in one place; half of it is its tests.

use super::{
    history::SavedId,
    stage::{DescriptorKey, SavedBases, SavedBytes, SavedDirection, SavedIntent, SavedPart, SavedRelay, SavedStage},
    text::{ListenerNames, Names},
};

/// `QRXCRASH`, and the version of the layout. A reader takes its own version only.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"QRXCRASH");
pub(super) const VERSION: u64 = 3;
/// Words of the header: two pages.
pub(super) const HEADER: usize = 1024;
/// Words of a slot: 768 bytes.
pub(super) const SLOT: usize = 96;
/// Slots. A session has at least two descriptors; the units allow 262,144 of them.
pub(super) const SLOTS: usize = 131_072;

/// The words of the header.
pub(super) mod header {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 1;
    pub const SLOT_WORDS: usize = 2;
    pub const SLOTS: usize = 3;
    pub const OWNER: usize = 4;
    pub const MODE: usize = 5;
    /// The number of shadows that were started, and of those that are done.
    pub const GENERATION: usize = 6;
    pub const DONE: usize = 7;
    /// The generation whose shadow is in its place.
    pub const READY: usize = 8;
    /// Descriptors that shadows have given.
    pub const GIVEN: usize = 9;
    /// When the last process died, and when it said that it is ready; CLOCK_MONOTONIC in nanoseconds.
    pub const DIED: usize = 10;
    pub const SERVING: usize = 11;
    /// Signal of a fault, and the thread (plus one) in the upper half; 0 in the upper half means all threads.
    pub const FAULT: usize = 12;
    pub const CRASHES: usize = 13;
    pub const RESUMED: usize = 14;
    pub const LOST: usize = 15;
    /// Slots from here on were never used.
    pub const HIGH: usize = 16;
    /// The number of threads that work on sessions.
    pub const THREADS: usize = 17;
    /// Whether the process takes up what another one has handed over, of which it has not saved everything yet.
    pub const TAKING: usize = 18;
    /// Whether the process hands over: its sessions may be in the handover, too.
    pub const HANDING: usize = 19;
    /// Whether a session of the process found no slot: its descriptors look like those of nobody.
    pub const UNSAVED: usize = 20;
    /// The times of the last starts: a ring.
    pub const STARTS: usize = 32;
    pub const START_ENTRIES: usize = 8;
    /// Crashes that were counted: a ring of entries.
    pub const CRASH: usize = 64;
    pub const CRASH_WORDS: usize = 10;
    pub const CRASH_ENTRIES: usize = 8;
    /// What each thread works on: a slot plus one. It is written at each poll of a relay, so each thread has a line of
    /// the cache to itself.
    pub const WORKING: usize = 512;
    pub const WORKING_WORDS: usize = 8;
    pub const WORKING_ENTRIES: usize = 64;
    const _: () = assert!(CRASH + CRASH_WORDS * CRASH_ENTRIES <= WORKING);
    const _: () = assert!(WORKING + WORKING_WORDS * WORKING_ENTRIES <= super::HEADER);
}

/// The words of a slot.
pub(super) mod slot {
    /// What the slot is for ([`super::FREE`] and so on).
    pub const USE: usize = 0;
    /// Stage, kinds, flags; the child's process id in the upper half.
    pub const STAGE: usize = 1;
    pub const ID: usize = 2;
    /// When the session was accepted and when its set-up began, in nanoseconds of CLOCK_MONOTONIC.
    pub const ACCEPTED: usize = 4;
    pub const SET_UP: usize = 5;
    /// Milliseconds until connected, plus 1.
    pub const DIALLED: usize = 6;
    pub const QUEUED: usize = 7;
    /// Until when the server may take to start, plus 1.
    pub const STARTING: usize = 8;
    /// Peer, upstream from and to, probe, pidfd, stderr.
    pub const KEYS: usize = 9;
    pub const KEY_COUNT: usize = 6;
    /// The check over all words above.
    pub const CHECK: usize = 15;
    /// Under no check: others than the session's task write them, and nothing but reports depends on them.
    pub const BYTES: usize = 16;
    /// Datagrams sent to the upstream, and those that it answered.
    pub const PASSED: usize = 18;
    /// Whether bytes are being moved, and which bank has the state of the relay as it was before.
    pub const BUSY: usize = 20;
    pub const ENDING: usize = 21;
    /// Bytes of the text; the slot where it goes on (plus 1) in the upper half.
    pub const TEXT: usize = 22;
    pub const TEXT_CHECK: usize = 23;
    /// Buffers that bytes may be in, and pipes: up, down. Each word has a check of its own. Of a session with a child,
    /// the pipe is the child's which the direction closes.
    pub const IN_BUFFER: usize = 24;
    pub const IN_PIPE: usize = 26;
    /// What TCP had counted: read up and down, written up and down; and their check, 0 where they are not known.
    pub const BASES: usize = 28;
    pub const BASES_CHECK: usize = 32;
    /// Two banks with the state of a relay. The one that is not in force is written, then BUSY changes.
    pub const BANKS: [usize; 2] = [33, 39];
    /// Whether a read of a UNIX socket is under way, which may hear of a reset, or has heard of one: up in the lower half,
    /// down in the upper.
    pub const HEARS: usize = 45;
    /// The text.
    pub const BODY: usize = 46;
    /// In a slot that another text goes on in: the next one (plus 1), then text.
    pub const MORE: usize = 1;
    pub const MORE_BODY: usize = 2;
}

/// The words of a bank.
pub(super) mod bank {
    /// What holds bytes: the key of a pipe of the pool, or a part of a buffer; up, down.
    pub const HELD: usize = 0;
    /// Phases, who was reset, an end held back, what HELD is.
    pub const RELAY: usize = 2;
    pub const DROPPED: usize = 3;
    /// The check over the words above.
    pub const CHECK: usize = 5;
    pub const WORDS: usize = 6;
    const _: () = assert!(super::slot::BANKS[0] + WORDS == super::slot::BANKS[1]);
    const _: () = assert!(super::slot::BANKS[1] + WORDS <= super::slot::HEARS);
}

/// Uses of a slot.
pub(super) const FREE: u64 = 0;
pub(super) const TAKEN: u64 = 0x5e55_0001;
pub(super) const LIVE: u64 = 0x5e55_0102;
pub(super) const MORE: u64 = 0x5e55_0203;
/// A listener of our own: its text, and the keys of its socket and of the lock of its path.
pub(super) const LISTENER: u64 = 0x5e55_0304;

/// Values of the word BUSY for each bank: far apart, so that no flipped bit makes one the other.
pub(super) const IDLE: [u64; 2] = [0x1d1e_1d1e_1d1e_1d1e, 0xe2e1_1d1e_e2e1_1d1e];
pub(super) const MOVING: [u64; 2] = [0xb051_b051_b051_b051, 0x4fae_b051_4fae_b051];

/// The bank in force by the word BUSY, and whether bytes are being moved.
pub(super) fn in_force(busy: u64) -> Option<(usize, bool)> {
    (0..2).find_map(|bank| match busy {
        word if word == IDLE[bank] => Some((bank, false)),
        word if word == MOVING[bank] => Some((bank, true)),
        _ => None,
    })
}

/// A bank with this state.
pub(super) fn bank_of(relay: &SavedRelay) -> [u64; bank::WORDS] {
    let mut words = [0; bank::WORDS];
    for (n, direction) in [relay.up, relay.down].iter().enumerate() {
        words[bank::HELD + n] = direction.held.word();
        words[bank::DROPPED + n] = direction.dropped;
    }
    words[bank::RELAY] = relay.encode();
    words[bank::CHECK] = check(words[..bank::CHECK].iter().copied());
    words
}
/// Halves of the word HEARS: far from 0, so that no flipped bit makes one the other. A reset was heard, and stays so
/// until the state of the relay tells it.
pub(super) const HEARS: u64 = 0x5a3c_c3a5;
pub(super) const HEARD: u64 = 0xa5c3_3c5a;

/// The word ENDING of a session that ends; its END in the lowest byte.
pub(super) const ENDING: u64 = 0xe2d1_2600_0000_0000;

/// A check over words: each step is a bijection of the state and of the word, so that one changed word always changes
/// the result.
pub(super) fn check(words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().fold(0x9e37_79b9_7f4a_7c15, |state: u64, word| {
        (state.rotate_left(23) ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd)
    })
}

/// Why a slot cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A check is wrong.
    Words,
    /// The check of the text is wrong, or it is no text of this version.
    Text,
    /// A value that this version does not know.
    Value,
}

/// A session as its slot tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSession {
    pub id: SavedId,
    pub stage: SavedState,
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub accepted: u64,
    pub dial_ms: Option<u64>,
    pub queued_ms: u64,
    pub redialled: bool,
    /// Until when the server may take to start, in nanoseconds of CLOCK_MONOTONIC.
    pub starting: Option<u64>,
    /// Of its sockets.
    pub bases: Option<SavedBases>,
    pub intents: [SavedIntent; 2],
    /// Whether a read of a UNIX socket was under way: up, down.
    pub hears: [bool; 2],
    pub bytes: (u64, u64),
    /// Datagrams sent to the upstream, and those that it answered.
    pub passed: (u64, u64),
    /// Whether a thread was moving the session's bytes.
    pub busy: bool,
    /// How the session was about to end: an index of [`crate::log::End`].
    pub ending: Option<u8>,
    pub names: Names,
}

/// A listener of our own as its slot tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedListener {
    pub names: ListenerNames,
    pub socket: DescriptorKey,
    /// Of a UNIX socket with a path.
    pub lock: DescriptorKey,
}

/// Stage of a saved session, with its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedState {
    pub stage: SavedStage,
    /// When its set-up began, in nanoseconds of CLOCK_MONOTONIC.
    pub set_up: u64,
    pub relay: SavedRelay,
}

/// Reads a slot's words and its text.
pub(super) fn read(words: &[u64; SLOT], text: &[u8]) -> Result<SavedSession, Damage> {
    if check(words[..slot::CHECK].iter().copied()) != words[slot::CHECK] {
        return Err(Damage::Words);
    }
    if text_check(text) != words[slot::TEXT_CHECK] {
        return Err(Damage::Text);
    }
    let names: Names = serde_json::from_slice(text).map_err(|_| Damage::Text)?;
    let stage = SavedStage::decode(words[slot::STAGE], &words[slot::KEYS..slot::KEYS + slot::KEY_COUNT])?;
    let (bank, busy) = in_force(words[slot::BUSY]).ok_or(Damage::Value)?;
    let relay = SavedRelay::decode(&words[slot::BANKS[bank]..])?;
    let ending = match words[slot::ENDING] {
        0 => None,
        word if word & !0xff == ENDING => Some((word & 0xff) as u8),
        _ => return Err(Damage::Value),
    };
    let flags = words[slot::STAGE] >> 24 & 0xff;
    Ok(SavedSession {
        id: SavedId(words[slot::ID], words[slot::ID + 1]),
        stage: SavedState { stage, set_up: words[slot::SET_UP], relay },
        accepted: words[slot::ACCEPTED],
        dial_ms: words[slot::DIALLED].checked_sub(1),
        queued_ms: words[slot::QUEUED],
        redialled: flags & 1 != 0,
        starting: words[slot::STARTING].checked_sub(1),
        bases: SavedBases::decode(&words[slot::BASES..=slot::BASES_CHECK]),
        intents: [0, 1].map(|n| SavedIntent::decode(words[slot::IN_BUFFER + n], words[slot::IN_PIPE + n])),
        hears: [0, 1].map(|n| words[slot::HEARS] >> (32 * n) & 0xffff_ffff != 0),
        bytes: (words[slot::BYTES], words[slot::BYTES + 1]),
        passed: (words[slot::PASSED], words[slot::PASSED + 1]),
        busy,
        ending,
        names,
    })
}

/// The buffers that bytes of a session may be in.
pub(super) fn buffers(words: &[u64; SLOT]) -> Vec<u16> {
    let Some((bank, busy)) = in_force(words[slot::BUSY]) else { return Vec::new() };
    let held = SavedRelay::decode(&words[slot::BANKS[bank]..]).map(|relay| [relay.up.held, relay.down.held]);
    let part = |held| if let SavedBytes::Buffer(part) = held { Some(part.number) } else { None };
    // What an idle session has noted is of earlier moves.
    let noted = [0, 1].map(|n| SavedIntent::decode(words[slot::IN_BUFFER + n], 0).buffer.filter(|_| busy));
    let held = held.into_iter().flatten().filter_map(part);
    held.chain(noted.into_iter().flatten().map(|(number, _)| number)).collect()
}

/// Reads the slot of a listener: its text, and the keys of its socket and of the lock.
pub(super) fn read_listener(words: &[u64; SLOT], text: &[u8]) -> Result<SavedListener, Damage> {
    if check(words[..slot::CHECK].iter().copied()) != words[slot::CHECK] {
        return Err(Damage::Words);
    }
    if text_check(text) != words[slot::TEXT_CHECK] {
        return Err(Damage::Text);
    }
    let names = serde_json::from_slice(text).map_err(|_| Damage::Text)?;
    Ok(SavedListener { names, socket: words[slot::KEYS], lock: words[slot::KEYS + 1] })
}

/// The check of a text.
pub(super) fn text_check(text: &[u8]) -> u64 {
    check(std::iter::once(text.len() as u64).chain(text.chunks(8).map(word)))
}

/// Up to eight bytes as a word.
pub(super) fn word(bytes: &[u8]) -> u64 {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(all)
}

impl SavedBases {
    fn decode(words: &[u64]) -> Option<Self> {
        let known = words[4] == check(words[..4].iter().copied());
        known.then(|| Self { read: [words[0], words[1]], written: [words[2], words[3]] })
    }

    /// The words of the bases, and their check.
    pub(super) fn encode(&self) -> [u64; 5] {
        let [read, written] = [self.read, self.written];
        let words = [read[0], read[1], written[0], written[1]];
        [words[0], words[1], words[2], words[3], check(words)]
    }
}

impl SavedRelay {
    /// From the words of a bank.
    fn decode(words: &[u64]) -> Result<Self, Damage> {
        if check(words[..bank::CHECK].iter().copied()) != words[bank::CHECK] {
            return Err(Damage::Words);
        }
        Self::value(words).ok_or(Damage::Value)
    }

    fn value(words: &[u64]) -> Option<Self> {
        let word = words[bank::RELAY];
        let byte = |n: u32| (word >> (8 * n) & 0xff) as u8;
        let direction = |n: usize| {
            let (phase, word) = (byte(n as u32), words[bank::HELD + n]);
            let held = match byte(4 + n as u32) {
                0 => SavedBytes::Nothing,
                1 => SavedBytes::Pipe(word),
                2 => SavedBytes::Buffer(SavedPart::decode(word)),
                3 => SavedBytes::Private,
                _ => return None,
            };
            Some(SavedDirection { phase: (phase < 3).then_some(phase)?, held, dropped: words[bank::DROPPED + n] })
        };
        let (up, down) = (direction(0)?, direction(1)?);
        let reset_by = match byte(2) {
            0 => None,
            side @ 1..=2 => Some(side - 1),
            _ => return None,
        };
        Some(Self { up, down, reset_by, end_held: byte(3) != 0 })
    }

    /// The word RELAY.
    pub(super) fn encode(&self) -> u64 {
        u64::from(self.up.phase)
            | u64::from(self.down.phase) << 8
            | self.reset_by.map_or(0, |side| u64::from(side) + 1) << 16
            | u64::from(self.end_held) << 24
            | self.up.held.kind() << 32
            | self.down.held.kind() << 40
    }
}

impl SavedBytes {
    /// As the word RELAY has it.
    fn kind(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Pipe(_) => 1,
            Self::Buffer(_) => 2,
            Self::Private => 3,
        }
    }

    /// The word HELD.
    pub(super) fn word(self) -> u64 {
        match self {
            Self::Nothing | Self::Private => 0,
            Self::Pipe(key) => key,
            Self::Buffer(SavedPart { number, at, end }) => {
                u64::from(number) << 48 | u64::from(at & 0xff_ffff) << 24 | u64::from(end & 0xff_ffff)
            }
        }
    }
}

impl SavedPart {
    fn decode(word: u64) -> Self {
        let part = |shift: u32| (word >> shift & 0xff_ffff) as u32;
        Self { number: (word >> 48) as u16, at: part(24), end: part(0) }
    }
}

/// A word of 48 bits with a check of 16 bits; 0 stands for nothing, and comes from what has more bits, too.
fn checked(word: u64) -> u64 {
    if word == 0 || word >> 48 != 0 {
        return 0;
    }
    word | check([word]) >> 48 << 48
}

/// What [`checked`] was made of; 0 where the check is wrong.
fn unchecked(word: u64) -> u64 {
    let value = word & ((1 << 48) - 1);
    if checked(value) == word { value } else { 0 }
}

impl SavedIntent {
    fn decode(buffer: u64, pipe: u64) -> Self {
        let word = unchecked(buffer);
        // The number is stored plus one.
        let buffer = ((word >> 32) as u16).checked_sub(1).map(|number| (number, word as u32));
        Self { buffer, pipe: unchecked(pipe) }
    }

    /// The word IN_BUFFER. `read`: bytes that were read of the source before the first one of the buffer.
    pub(super) fn in_buffer(number: u16, read: u64) -> u64 {
        checked((u64::from(number) + 1) << 32 | read & 0xffff_ffff)
    }

    /// The word IN_PIPE.
    pub(super) fn in_pipe(key: DescriptorKey) -> u64 {
        checked(key)
    }
}

impl SavedStage {
    fn decode(word: u64, keys: &[u64]) -> Result<Self, Damage> {
        let byte = |n: u32| (word >> (8 * n) & 0xff) as u8;
        let key = |n: usize| keys[n];
        let (peer_unix, upstream, pid) = (byte(1) == 1, byte(2), (word >> 32) as u32);
        Ok(match byte(0) {
            1 => Self::Waiting { peer: key(0), peer_unix },
            2 => Self::SettingUp {
                peer: key(0),
                peer_unix,
                pipes: [key(2), key(1), key(3)],
                pidfd: key(4),
                pid,
                stderr: key(5),
            },
            3 if upstream < 2 => {
                Self::Sockets { peer: key(0), peer_unix, upstream: key(1), upstream_unix: upstream == 1 }
            }
            3 => Self::Pipes { peer: key(0), peer_unix, from: key(1), to: key(2), pidfd: key(4), pid, stderr: key(5) },
            4 => Self::Flow { upstream: key(1) },
            _ => return Err(Damage::Value),
        })
    }

    /// The word STAGE but for its flags, and the keys.
    pub(super) fn encode(&self) -> (u64, [u64; slot::KEY_COUNT]) {
        let word = |stage: u64, peer_unix: bool, upstream: u64, pid: u32| {
            stage | u64::from(peer_unix) << 8 | upstream << 16 | u64::from(pid) << 32
        };
        match *self {
            Self::Waiting { peer, peer_unix } => (word(1, peer_unix, 0, 0), [peer, 0, 0, 0, 0, 0]),
            Self::SettingUp { peer, peer_unix, pipes: [to, from, probe], pidfd, pid, stderr } => {
                (word(2, peer_unix, 2, pid), [peer, from, to, probe, pidfd, stderr])
            }
            Self::Sockets { peer, peer_unix, upstream, upstream_unix } => {
                (word(3, peer_unix, u64::from(upstream_unix), 0), [peer, upstream, 0, 0, 0, 0])
            }
            Self::Pipes { peer, peer_unix, from, to, pidfd, pid, stderr } => {
                (word(3, peer_unix, 2, pid), [peer, from, to, 0, pidfd, stderr])
            }
            Self::Flow { upstream } => (word(4, false, 0, 0), [0, upstream, 0, 0, 0, 0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stages() -> impl Strategy<Value = SavedStage> {
        let key = 1..u64::MAX;
        prop_oneof![
            (key.clone(), any::<bool>()).prop_map(|(peer, peer_unix)| SavedStage::Waiting { peer, peer_unix }),
            (key.clone(), any::<bool>(), any::<[u64; 3]>(), key.clone(), any::<u32>(), any::<u64>()).prop_map(
                |(peer, peer_unix, pipes, pidfd, pid, stderr)| SavedStage::SettingUp {
                    peer,
                    peer_unix,
                    pipes,
                    pidfd,
                    pid,
                    stderr
                }
            ),
            (key.clone(), any::<bool>(), key.clone(), any::<bool>()).prop_map(
                |(peer, peer_unix, upstream, upstream_unix)| SavedStage::Sockets {
                    peer,
                    peer_unix,
                    upstream,
                    upstream_unix
                }
            ),
            (key.clone(), any::<bool>(), any::<[u64; 2]>(), key.clone(), any::<u32>(), any::<u64>()).prop_map(
                |(peer, peer_unix, [from, to], pidfd, pid, stderr)| SavedStage::Pipes {
                    peer,
                    peer_unix,
                    from,
                    to,
                    pidfd,
                    pid,
                    stderr
                }
            ),
            key.prop_map(|upstream| SavedStage::Flow { upstream }),
        ]
    }

    fn held() -> impl Strategy<Value = SavedBytes> {
        let part = (any::<u16>(), 0..1_u32 << 24, 0..1_u32 << 24);
        prop_oneof![
            Just(SavedBytes::Nothing),
            Just(SavedBytes::Private),
            (1..u64::MAX).prop_map(SavedBytes::Pipe),
            part.prop_map(|(number, at, end)| SavedBytes::Buffer(SavedPart { number, at, end })),
        ]
    }

    fn directions() -> impl Strategy<Value = SavedDirection> {
        (0..3_u8, held(), any::<u64>()).prop_map(|(phase, held, dropped)| SavedDirection { phase, held, dropped })
    }

    fn relays() -> impl Strategy<Value = SavedRelay> {
        (directions(), directions(), proptest::option::of(0..2_u8), any::<bool>())
            .prop_map(|(up, down, reset_by, end_held)| SavedRelay { up, down, reset_by, end_held })
    }

    fn written(stage: &SavedStage, relay: &SavedRelay, id: [u64; 2]) -> ([u64; SLOT], Vec<u8>) {
        let text = serde_json::to_vec(&Names { name: "a b".into(), peer: "127.0.0.1:1".into(), ..Names::default() });
        let (text, mut words) = (text.expect("plain data"), [0; SLOT]);
        let (word, keys) = stage.encode();
        words[slot::USE] = LIVE;
        words[slot::STAGE] = word;
        words[slot::ID..slot::ID + 2].copy_from_slice(&id);
        words[slot::KEYS..slot::KEYS + slot::KEY_COUNT].copy_from_slice(&keys);
        words[slot::BANKS[1]..slot::BANKS[1] + bank::WORDS].copy_from_slice(&bank_of(relay));
        words[slot::BASES..=slot::BASES_CHECK].copy_from_slice(&SavedBases { read: id, written: id }.encode());
        for (n, direction) in [relay.up, relay.down].iter().enumerate() {
            words[slot::IN_BUFFER + n] = SavedIntent::in_buffer(7, direction.dropped);
            words[slot::IN_PIPE + n] = SavedIntent::in_pipe(id[n] >> 16);
        }
        words[slot::HEARS] = HEARS << 32;
        words[slot::BUSY] = IDLE[1];
        words[slot::CHECK] = check(words[..slot::CHECK].iter().copied());
        words[slot::TEXT_CHECK] = text_check(&text);
        (words, text)
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(stage in stages(), relay in relays(), id: [u64; 2]) {
            let (words, text) = written(&stage, &relay, id);
            let session = read(&words, &text).expect("it is whole");
            prop_assert_eq!(session.stage.stage, stage);
            prop_assert_eq!(session.stage.relay, relay);
            prop_assert_eq!(session.id, SavedId(id[0], id[1]));
            prop_assert_eq!(session.bases, Some(SavedBases { read: id, written: id }));
            prop_assert!(!session.busy);
            for (n, direction) in [relay.up, relay.down].iter().enumerate() {
                let intent = SavedIntent { buffer: Some((7, direction.dropped as u32)), pipe: id[n] >> 16 };
                prop_assert_eq!(session.intents[n], intent);
            }
            prop_assert_eq!(&*session.names.name, "a b");
        }

        #[test]
        fn no_flipped_bit_makes_another_session(stage in stages(), relay in relays(), at in 0..SLOT * 64) {
            let (mut words, text) = written(&stage, &relay, [1, 2]);
            let whole = read(&words, &text).expect("it is whole");
            words[at / 64] ^= 1 << (at % 64);
            if let Ok(read) = read(&words, &text) {
                // What is under no check: numbers of reports, and what is used by nobody.
                let SavedSession { bytes, passed, intents, bases, hears, .. } = read;
                prop_assert_eq!(SavedSession { bytes, passed, intents, bases, hears, ..whole.clone() }, read);
                // A read that was under way is never forgotten.
                prop_assert!(hears[1]);
                prop_assert!(bases.is_none() || bases == whole.bases);
                // An intent is what it was, or none.
                for (now, before) in intents.iter().zip(whole.intents) {
                    prop_assert!(now.buffer.is_none() || now.buffer == before.buffer);
                    prop_assert!(now.pipe == 0 || now.pipe == before.pipe);
                }
            }
        }

        #[test]
        fn no_flipped_bit_makes_another_text(at in 0..200_usize) {
            let (words, mut text) = written(&SavedStage::Flow { upstream: 1 }, &SavedRelay::default(), [1, 2]);
            let at = at % (text.len() * 8);
            text[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(read(&words, &text), Err(Damage::Text));
        }

        #[test]
        fn any_words_are_read_or_refused(words: [[u64; 32]; 3], text: Vec<u8>) {
            let mut all = [0; SLOT];
            all.iter_mut().zip(words.as_flattened()).for_each(|(to, from)| *to = *from);
            let _ = read(&all, &text);
            all[slot::CHECK] = check(all[..slot::CHECK].iter().copied());
            all[slot::TEXT_CHECK] = text_check(b"{}");
            let _ = read(&all, b"{}");
        }
    }

    #[test]
    fn a_busy_session_is_never_idle_by_one_bit_nor_another_bank_in_force() {
        let all = [IDLE[0], IDLE[1], MOVING[0], MOVING[1], 0];
        for (n, one) in all.iter().enumerate() {
            assert!(all[n + 1..].iter().all(|other| (one ^ other).count_ones() > 8), "{one:x}");
        }
    }
}
