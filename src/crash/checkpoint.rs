//! The checkpoint of one session: a slot of the region, or private words where there is no region.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release, SeqCst},
    compiler_fence,
};

use super::{
    history::SavedId,
    layout::{ENDING, HEARD, HEARS, IDLE, LISTENER, LIVE, MOVING, SLOT, TAKEN, bank_of, check, in_force, slot},
    region::{Region, RegionBuffer, region},
    stage::{DescriptorKey, Facts, SavedBases, SavedIntent, SavedRelay, SavedStage},
    text::{ListenerNames, Names},
};
use crate::sys::SendNote;

/// The checkpoint of one session.
#[derive(Debug)]
pub struct Checkpoint(CheckpointPlace);

/// The stage of a session without an upstream, as the word STAGE has it.
const WAITING: u64 = 1;
/// Words that a session has without a region, too: bytes up and down, datagrams sent and answered.
const COUNTS: usize = 4;

#[derive(Debug)]
enum CheckpointPlace {
    /// Of the region of this process.
    Slot(u32),
    /// The counts alone.
    Private(Box<[AtomicU64; COUNTS]>),
}

impl Default for Checkpoint {
    fn default() -> Self {
        match region().and_then(Region::take_slot_of_session) {
            Some(slot) => Self(CheckpointPlace::Slot(slot)),
            None => Self(CheckpointPlace::Private(Box::default())),
        }
    }
}

impl Checkpoint {
    /// Goes on with the slot of a session of the previous process, which it had in this region.
    pub fn resume(slot: u32) -> Self {
        Self(CheckpointPlace::Slot(slot))
    }

    /// The slot plus one; 0 without one.
    pub fn number(&self) -> u64 {
        match self.0 {
            CheckpointPlace::Slot(slot) => u64::from(slot) + 1,
            CheckpointPlace::Private(_) => 0,
        }
    }

    /// Whether the session was saved already.
    pub fn is_live(&self) -> bool {
        self.words().is_some_and(|words| words[slot::USE].load(Relaxed) == LIVE)
    }

    /// Whether anything that is saved outlives the process.
    pub fn is_kept(&self) -> bool {
        self.words().is_some()
    }

    /// Whether the session's bytes are being moved.
    pub fn is_moving(&self) -> bool {
        self.words().is_some_and(|words| in_force(words[slot::BUSY].load(Relaxed)).is_some_and(|(_, busy)| busy))
    }

    /// Its words in the region.
    fn words(&self) -> Option<&'static [AtomicU64]> {
        let CheckpointPlace::Slot(slot) = self.0 else { return None };
        Some(region()?.slot(slot))
    }

    /// A count.
    fn count(&self, index: usize) -> &AtomicU64 {
        match (&self.0, region()) {
            (CheckpointPlace::Private(counts), _) => &counts[index],
            (CheckpointPlace::Slot(slot), Some(region)) => &region.slot(*slot)[slot::BYTES + index],
            (CheckpointPlace::Slot(_), None) => unreachable!("a slot is given by a region"),
        }
    }

    /// Saves who the session is.
    pub fn names(&self, id: SavedId, accepted: u64, names: &Names) {
        let (CheckpointPlace::Slot(slot), Some(region)) = (&self.0, region()) else { return };
        let words = region.slot(*slot);
        words[slot::ID].store(id.0, Relaxed);
        words[slot::ID + 1].store(id.1, Relaxed);
        words[slot::ACCEPTED].store(accepted, Relaxed);
        if words[slot::BUSY].load(Relaxed) == 0 {
            self.moved(&SavedRelay::default());
        }
        if let Ok(text) = serde_json::to_vec(names) {
            region.write_text(*slot, &text);
        }
    }

    /// Saves the stage that the session is at from now on, with what is known so far. `set_up`: when its set-up began.
    pub fn stage(&self, stage: &SavedStage, set_up: u64, facts: &Facts) {
        let Some(words) = self.words() else { return };
        let (word, keys) = stage.encode();
        // Until its words are whole again, a session that nobody has read anything of looks like a new connection.
        if !matches!(stage, SavedStage::Waiting { .. }) && words[slot::STAGE].load(Relaxed) & 0xff == WAITING {
            words[slot::USE].store(TAKEN, Release);
        }
        words[slot::STAGE].store(word | u64::from(facts.redialled) << 24, Relaxed);
        keys.iter().zip(&words[slot::KEYS..]).for_each(|(key, word)| word.store(*key, Relaxed));
        words[slot::SET_UP].store(set_up, Relaxed);
        words[slot::DIALLED].store(facts.dial_ms.map_or(0, |ms| ms.saturating_add(1)), Relaxed);
        words[slot::QUEUED].store(facts.queued_ms, Relaxed);
        words[slot::STARTING].store(facts.starting.map_or(0, |at| at.saturating_add(1)), Relaxed);
        let sum = check(std::iter::once(LIVE).chain(words[1..slot::CHECK].iter().map(|word| word.load(Relaxed))));
        words[slot::CHECK].store(sum, Release);
        words[slot::USE].store(LIVE, Release);
    }

    /// Whether this is the stage that is saved already.
    pub fn is_at(&self, stage: &SavedStage) -> bool {
        let (word, keys) = stage.encode();
        self.is_live()
            && self.words().is_some_and(|words| {
                words[slot::STAGE].load(Relaxed) & !(0xff << 24) == word
                    && keys.iter().zip(&words[slot::KEYS..]).all(|(key, word)| word.load(Relaxed) == *key)
            })
    }

    /// Saves what the kernel had counted on the two sockets of the session when its relay began.
    pub fn bases(&self, bases: &SavedBases) {
        let Some(words) = self.words() else { return };
        words[slot::BASES_CHECK].store(0, Release);
        let all = bases.encode();
        all.iter().zip(&words[slot::BASES..]).for_each(|(base, word)| word.store(*base, Release));
    }

    /// What the source of a direction had counted when nothing was read of it: 0 up, 1 down; `None` where that is not
    /// known.
    pub fn base(&self, direction: usize) -> Option<u64> {
        let words = self.words().filter(|words| words[slot::BASES_CHECK].load(Relaxed) != 0)?;
        Some(words[slot::BASES + direction].load(Relaxed))
    }

    /// Whether the bases are known.
    pub fn has_bases(&self) -> bool {
        self.words().is_some_and(|words| words[slot::BASES_CHECK].load(Relaxed) != 0)
    }

    /// The notes of a direction: 0 up, 1 down.
    pub fn notes(&self, direction: usize) -> DirectionNotes<'_> {
        DirectionNotes { words: self.words(), direction, delivered: self.count(direction) }
    }

    /// The key of the peer, where it was saved.
    pub fn peer(&self) -> DescriptorKey {
        self.words().map_or(0, |words| words[slot::KEYS].load(Relaxed))
    }

    /// The session's bytes are being moved.
    pub fn moving(&self) {
        if let Some(words) = self.words() {
            let (bank, _) = in_force(words[slot::BUSY].load(Relaxed)).unwrap_or_default();
            words[slot::BUSY].store(MOVING[bank], Relaxed);
            compiler_fence(SeqCst);
        }
    }

    /// The session's bytes are where this says, and are not moved.
    pub fn moved(&self, relay: &SavedRelay) {
        let Some(words) = self.words() else { return };
        let (bank, _) = in_force(words[slot::BUSY].load(Relaxed)).unwrap_or_default();
        let other = 1 - bank;
        let to = &words[slot::BANKS[other]..];
        bank_of(relay).iter().zip(to).for_each(|(word, to)| to.store(*word, Relaxed));
        compiler_fence(SeqCst);
        words[slot::BUSY].store(IDLE[other], Release);
    }

    /// The session ends now, in this way (an index of [`crate::log::End`]): what is closed from here on belongs to
    /// that.
    pub fn ending(&self, end: u8) {
        if let Some(words) = self.words() {
            words[slot::ENDING].store(ENDING | u64::from(end), Release);
        }
    }

    /// The session is over: nobody is to take it up.
    pub fn over(&self) {
        if let Some(words) = self.words() {
            words[slot::USE].store(TAKEN, Release);
        }
    }

    /// Bytes delivered: up.
    pub fn up(&self) -> &AtomicU64 {
        self.count(0)
    }

    /// Bytes delivered: down.
    pub fn down(&self) -> &AtomicU64 {
        self.count(1)
    }

    /// Datagrams sent to the upstream.
    pub fn sent(&self) -> &AtomicU64 {
        self.count(2)
    }

    /// Datagrams that the upstream answered.
    pub fn answered(&self) -> &AtomicU64 {
        self.count(3)
    }
}

/// What a direction notes while its session is busy, so that its bytes are found when the process dies in between.
#[derive(Clone, Copy, Debug)]
pub struct DirectionNotes<'a> {
    words: Option<&'static [AtomicU64]>,
    direction: usize,
    delivered: &'a AtomicU64,
}

impl DirectionNotes<'_> {
    /// Bytes delivered.
    pub fn delivered(&self) -> &AtomicU64 {
        self.delivered
    }

    /// Who sends: another value for each direction of each session.
    fn owner(&self) -> u64 {
        self.words.map_or(0, |words| send_owner(words[slot::ID + 1].load(Relaxed), self.direction))
    }

    /// A read of a UNIX socket, which is the source, is under way from here on, or is over.
    pub fn hears(&self, hears: bool) {
        self.change_hears(self.direction, |before| match before {
            HEARD => HEARD,
            _ if hears => HEARS,
            _ => 0,
        });
    }

    /// The source has told of a reset. The kernel tells that once.
    pub fn heard(&self) {
        self.change_hears(self.direction, |_| HEARD);
    }

    /// As [`Self::heard`], of the destination.
    pub fn heard_of_destination(&self) {
        self.change_hears(1 - self.direction, |_| HEARD);
    }

    /// The state of the relay tells all that was heard.
    pub fn forget_heard(&self) {
        self.change_hears(self.direction, |_| 0);
    }

    fn change_hears(&self, direction: usize, to: impl FnOnce(u64) -> u64) {
        if let Some(words) = self.words {
            let (half, all) = (32 * direction, words[slot::HEARS].load(Relaxed));
            let now = to(all >> half & 0xffff_ffff) << half;
            compiler_fence(SeqCst);
            words[slot::HEARS].store(all & !(0xffff_ffff << half) | now, Relaxed);
            compiler_fence(SeqCst);
        }
    }

    /// For a send out of this buffer, of which the next process is to know how much was sent; `None` without a
    /// checkpoint.
    pub fn send_note<'b>(&self, buffer: &'b RegionBuffer) -> Option<SendNote<'b>> {
        self.words?;
        Some(SendNote::new(buffer.send_note(), self.owner(), self.delivered.load(Relaxed)))
    }

    /// From here on the counts of the kernel do not tell which bytes were delivered.
    pub fn unsure(&self) {
        if let Some(words) = self.words {
            words[slot::BASES_CHECK].store(0, Relaxed);
            compiler_fence(SeqCst);
        }
    }

    /// From here on bytes may be in this buffer; `read` bytes of the source were read before its first byte. To be
    /// called before the first of them is read. `None`: they may be where nobody finds them.
    pub fn in_buffer(&self, number: Option<u16>, read: u64) {
        if let Some(words) = self.words {
            let word = number.map_or(0, |number| SavedIntent::in_buffer(number, read));
            words[slot::IN_BUFFER + self.direction].store(word, Relaxed);
            compiler_fence(SeqCst);
        }
    }

    /// From here on bytes may be in the pipe with this key; 0: in none. To be called before the first byte comes in,
    /// and before the empty pipe is given to another session.
    pub fn in_pipe(&self, key: DescriptorKey) {
        if let Some(words) = self.words {
            compiler_fence(SeqCst);
            words[slot::IN_PIPE + self.direction].store(SavedIntent::in_pipe(key), Relaxed);
            compiler_fence(SeqCst);
        }
    }

    /// The direction closes the pipe of its child with this key: where that is missing from here on, it was closed.
    pub fn closes(&self, key: DescriptorKey) {
        self.in_pipe(key);
    }
}

/// Who sends, by the lower half of the id of the session and the direction: 0 up, 1 down.
pub fn send_owner(id: u64, direction: usize) -> u64 {
    id ^ direction as u64
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        if let (CheckpointPlace::Slot(slot), Some(region)) = (&self.0, region()) {
            region.give_slot(*slot);
        }
    }
}

/// The checkpoint of a listener of our own, for as long as this process serves it.
#[derive(Debug)]
pub struct ListenerCheckpoint(u32);

impl ListenerCheckpoint {
    /// Writes it; `None` where nothing outlives the process, or no slot is left.
    pub fn write(names: &ListenerNames, socket: DescriptorKey, lock: DescriptorKey) -> Option<Self> {
        let region = region()?;
        let text = serde_json::to_vec(names).ok()?;
        let slot = region.take_slot()?;
        region.write_text(slot, &text);
        let words = region.slot(slot);
        words[slot::KEYS].store(socket, Relaxed);
        words[slot::KEYS + 1].store(lock, Relaxed);
        words[slot::USE].store(LISTENER, Relaxed);
        let sum = check(words[..slot::CHECK].iter().map(|word| word.load(Relaxed)));
        words[slot::CHECK].store(sum, Release);
        Some(Self(slot))
    }
}

impl Drop for ListenerCheckpoint {
    fn drop(&mut self) {
        if let Some(region) = region() {
            region.give_slot(self.0);
        }
    }
}

const _: () = assert!(slot::TEXT_CHECK < slot::BODY && slot::BODY < SLOT);
// The counts are side by side.
const _: () = assert!(slot::PASSED == slot::BYTES + 2 && slot::BUSY == slot::BYTES + COUNTS);
