//! The note of one session: a slot of the region, or private words where there is no region.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release, SeqCst},
    compiler_fence,
};

use super::{
    history::NotedId,
    layout::{ENDING, IDLE, LIVE, MOVING, SLOT, TAKEN, check, slot},
    region::region,
    stage::{DescriptorKey, Facts, HeldNote, RelayNote, StageNote},
    text::Names,
};

/// The note of one session.
#[derive(Debug)]
pub struct Note(NotePlace);

#[derive(Debug)]
enum NotePlace {
    /// Of the region of this process.
    Slot(u32),
    Private(Box<[AtomicU64; slot::BODY]>),
}

impl Default for Note {
    fn default() -> Self {
        match region().and_then(|region| region.take_slot()) {
            Some(slot) => Self(NotePlace::Slot(slot)),
            None => Self(NotePlace::Private(Box::new([const { AtomicU64::new(0) }; slot::BODY]))),
        }
    }
}

impl Note {
    /// Goes on with the slot of a session of the previous process, which it had in this region.
    pub fn resume(slot: u32) -> Self {
        Self(NotePlace::Slot(slot))
    }

    /// The slot plus one; 0 without one.
    pub fn number(&self) -> u64 {
        match self.0 {
            NotePlace::Slot(slot) => u64::from(slot) + 1,
            NotePlace::Private(_) => 0,
        }
    }

    /// Whether the session was noted already.
    pub fn is_live(&self) -> bool {
        self.is_kept() && self.word(slot::USE).load(Relaxed) == LIVE
    }

    /// Whether anything that is noted outlives the process.
    pub fn is_kept(&self) -> bool {
        matches!(self.0, NotePlace::Slot(_))
    }

    fn words(&self) -> &[AtomicU64] {
        match (&self.0, region()) {
            (NotePlace::Private(words), _) => &**words,
            (NotePlace::Slot(slot), Some(region)) => region.slot(*slot),
            (NotePlace::Slot(_), None) => &[], // a slot is given by a region
        }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.words()[index]
    }

    /// Notes who the session is.
    pub fn names(&self, id: NotedId, accepted: u64, names: &Names) {
        let (NotePlace::Slot(slot), Some(region)) = (&self.0, region()) else { return };
        let words = region.slot(*slot);
        words[slot::ID].store(id.0, Relaxed);
        words[slot::ID + 1].store(id.1, Relaxed);
        words[slot::ACCEPTED].store(accepted, Relaxed);
        words[slot::BUSY].store(IDLE, Relaxed);
        if let Ok(text) = serde_json::to_vec(names) {
            region.write_text(*slot, &text);
        }
    }

    /// Notes the stage that the session is at from now on, with what is known so far. `set_up`: when its set-up began.
    pub fn stage(&self, stage: &StageNote, set_up: u64, facts: &Facts) {
        if !self.is_kept() {
            return;
        }
        let words = self.words();
        let (word, keys) = stage.encode();
        words[slot::STAGE].store(word | u64::from(facts.redialled) << 24, Relaxed);
        keys.iter().zip(&words[slot::KEYS..]).for_each(|(key, word)| word.store(*key, Relaxed));
        words[slot::SET_UP].store(set_up, Relaxed);
        words[slot::DIALLED].store(facts.dial_ms.map_or(0, |ms| ms.saturating_add(1)), Relaxed);
        words[slot::QUEUED].store(facts.queued_ms, Relaxed);
        words[slot::STARTING].store(facts.starting.map_or(0, |at| at.saturating_add(1)), Relaxed);
        words[slot::USE].store(LIVE, Relaxed);
        self.seal(words);
    }

    /// The key of the peer, where it was noted.
    pub fn peer(&self) -> DescriptorKey {
        if self.is_kept() { self.word(slot::KEYS).load(Relaxed) } else { 0 }
    }

    /// The session's bytes are being moved.
    pub fn moving(&self) {
        if let NotePlace::Slot(_) = self.0 {
            self.word(slot::BUSY).store(MOVING, Relaxed);
            compiler_fence(SeqCst);
        }
    }

    /// The session's bytes are where this says, and are not moved.
    pub fn moved(&self, relay: &RelayNote) {
        if !self.is_kept() {
            return;
        }
        let words = self.words();
        for (n, direction) in [relay.up, relay.down].iter().enumerate() {
            words[slot::DROPPED + n].store(direction.dropped, Relaxed);
            let pipe = if let HeldNote::Pipe(pipe) = direction.held { pipe } else { 0 };
            words[slot::PIPES + n].store(pipe, Relaxed);
        }
        words[slot::RELAY].store(relay.encode(), Relaxed);
        if !relay.from_open {
            words[slot::KEYS + 1].store(0, Relaxed);
        }
        if !relay.to_open {
            words[slot::KEYS + 2].store(0, Relaxed);
        }
        self.seal(words);
        words[slot::BUSY].store(IDLE, Release);
    }

    fn seal(&self, words: &[AtomicU64]) {
        let sum = check(words[..slot::CHECK].iter().map(|word| word.load(Relaxed)));
        words[slot::CHECK].store(sum, Release);
    }

    /// The session ends now, in this way (an index of [`crate::log::End`]): what is closed from here on belongs to that.
    pub fn ending(&self, end: u8) {
        if self.is_kept() {
            self.word(slot::ENDING).store(ENDING | u64::from(end), Release);
        }
    }

    /// The session is over: nobody is to take it up.
    pub fn over(&self) {
        if self.is_kept() {
            self.word(slot::USE).store(TAKEN, Release);
        }
    }

    /// Bytes delivered: up.
    pub fn up(&self) -> &AtomicU64 {
        self.word(slot::BYTES)
    }

    /// Bytes delivered: down.
    pub fn down(&self) -> &AtomicU64 {
        self.word(slot::BYTES + 1)
    }

    /// Datagrams sent to the upstream.
    pub fn sent(&self) -> &AtomicU64 {
        self.word(slot::PASSED)
    }

    /// Datagrams that the upstream answered.
    pub fn answered(&self) -> &AtomicU64 {
        self.word(slot::PASSED + 1)
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let (NotePlace::Slot(slot), Some(region)) = (&self.0, region()) {
            region.give_slot(*slot);
        }
    }
}

const _: () = assert!(slot::TEXT_CHECK < slot::BODY && slot::BODY < SLOT);
