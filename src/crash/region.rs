//! The region: a header, and a slot for each session.
//!
//! The file is long because the order in which the words of header and slots are written is one duty; the last fifth
//! is its tests.

use std::{
    io,
    ops::{Deref, DerefMut},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
    },
};

use super::{
    history::{self, Crash, CrashCause, CrashVerdict, SavedId},
    layout::{
        self, Damage, FREE, HEADER, LISTENER, LIVE, MAGIC, MORE, SLOT, SLOTS, SavedListener, SavedSession, TAKEN,
        VERSION, header, slot, text_check, word,
    },
    owner::{RegionMode, RegionOwner},
};
use crate::sys::{
    SEND_NOTE, SendNote, lock,
    shadow::monotonic,
    shared::{SharedBuffer, SharedBuffers, SharedWords},
};

/// No text is as long, in bytes: a length that is damaged.
const LONGEST: usize = 1 << 20;

static REGION: OnceLock<Arc<Region>> = OnceLock::new();

/// The region of this process, where it has one.
pub fn region() -> Option<&'static Region> {
    REGION.get().map(|region| &**region)
}

/// Makes this the region of this process, for ever. The first one stays.
pub fn set_region(region: Arc<Region>) {
    let _ = REGION.set(region);
}

/// Crashes since the last stop or planned restart, and what became of the sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CrashCounts {
    pub crashes: u64,
    pub resumed: u64,
    pub lost: u64,
}

/// The counts of this process and those before it.
pub fn counts() -> CrashCounts {
    region().map(Region::counts).unwrap_or_default()
}

/// Memory that outlives the process.
#[derive(Debug)]
pub struct Region {
    words: Arc<SharedWords>,
    slots: Mutex<FreeSlots>,
    small: Arc<SharedBuffers>,
    large: Arc<SharedBuffers>,
}

/// Sizes of buffers in bytes, and how many of each there are. Large ones have the numbers behind those of small ones.
const SMALL: (usize, u16) = (64 << 10, 256);
const LARGE: (usize, u16) = (256 << 10, 128);
/// Words of the notes of the last send out of each buffer, behind the slots: whole pages.
const NOTES: usize = SEND_NOTE * (SMALL.1 + LARGE.1) as usize;
/// Words of header, slots and notes.
const WORDS: usize = HEADER + SLOTS * SLOT + NOTES;
const _: () = assert!(WORDS * 8 % 4096 == 0);
/// Bytes of all buffers.
const BUFFERS: usize = SMALL.0 * SMALL.1 as usize + LARGE.0 * LARGE.1 as usize;

/// A buffer that outlives the process.
#[derive(Debug)]
pub struct RegionBuffer {
    memory: SharedBuffer,
    /// The number of the first buffer of this size.
    first: u16,
}

impl RegionBuffer {
    /// By which the next process finds it.
    pub fn number(&self) -> u16 {
        self.first + self.memory.number()
    }

    /// Where the last send out of it is noted.
    pub(super) fn send_note(&self) -> &[AtomicU64; SEND_NOTE] {
        send_note(self.memory.words(), self.number())
    }
}

/// The note of a buffer.
fn send_note(words: &[AtomicU64], number: u16) -> &[AtomicU64; SEND_NOTE] {
    let at = HEADER + SLOTS * SLOT + SEND_NOTE * usize::from(number);
    words[at..].first_chunk().unwrap_or_else(|| unreachable!("each buffer has a note"))
}

impl Deref for RegionBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory
    }
}

impl DerefMut for RegionBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

/// Slots that can be taken.
#[derive(Debug, Default)]
struct FreeSlots {
    given: Vec<u32>,
    /// The first that was never used.
    next: u32,
}

impl Region {
    /// Makes a region without sessions.
    ///
    /// # Errors
    /// What memfd_create(2) and mmap(2) say.
    pub fn create() -> io::Result<Self> {
        let words = Arc::new(SharedWords::create(WORDS, BUFFERS)?);
        let values = [
            (header::VERSION, VERSION),
            (header::SLOT_WORDS, SLOT as u64),
            (header::SLOTS, SLOTS as u64),
            (header::OWNER, RegionOwner::Free(0).word()),
            (header::MAGIC, MAGIC),
        ];
        values.iter().for_each(|(index, value)| words[*index].store(*value, Release));
        Ok(Self::new(words, &[]))
    }

    /// With buffers of which those with these numbers were left.
    fn new(words: Arc<SharedWords>, left: &[u16]) -> Self {
        words.lock(HEADER + SLOTS * SLOT..WORDS);
        let small = left.iter().copied().filter(|number| *number < SMALL.1).collect();
        let large = left.iter().filter_map(|number| number.checked_sub(SMALL.1)).collect();
        Self {
            small: SharedBuffers::new(words.clone(), 0, SMALL.0, SMALL.1, small),
            large: SharedBuffers::new(words.clone(), SMALL.0 * usize::from(SMALL.1), LARGE.0, LARGE.1, large),
            words,
            slots: Mutex::default(),
        }
    }

    /// A buffer of 64 KiB; `None` when all are taken.
    pub fn small_buffer(&self) -> Option<RegionBuffer> {
        self.small.take().map(|memory| RegionBuffer { memory, first: 0 })
    }

    /// A buffer of 256 KiB; `None` when all are taken.
    pub fn large_buffer(&self) -> Option<RegionBuffer> {
        self.large.take().map(|memory| RegionBuffer { memory, first: SMALL.1 })
    }

    /// The buffer with this number that the previous process has left, once; `None` where it has fewer bytes than `least`.
    pub fn left_buffer(&self, number: u16, least: usize) -> Option<RegionBuffer> {
        let size = if number < SMALL.1 { SMALL.0 } else { LARGE.0 };
        if least > size {
            return None;
        }
        match number.checked_sub(SMALL.1) {
            None => self.small.take_left(number).map(|memory| RegionBuffer { memory, first: 0 }),
            Some(number) => self.large.take_left(number).map(|memory| RegionBuffer { memory, first: SMALL.1 }),
        }
    }

    /// Bytes that a direction of a session had sent after its last send out of the buffer with this number; `None` where
    /// that is not known.
    pub fn sent(&self, number: u16, owner: u64) -> Option<u64> {
        (number < SMALL.1 + LARGE.1).then(|| SendNote::sent(send_note(&self.words, number), owner))?
    }

    /// All sessions of the previous process were read: what is left of its buffers is nobody's.
    pub fn forget_left_buffers(&self) {
        self.small.forget_left();
        self.large.forget_left();
    }

    /// The numbers of buffers that bytes of sessions may be in.
    fn buffers_in_use(&self) -> Vec<u16> {
        let mut all: Vec<u16> = self.live().into_iter().flat_map(|slot| layout::buffers(&self.copy(slot))).collect();
        all.sort_unstable();
        all.dedup();
        all.retain(|number| *number < SMALL.1 + LARGE.1);
        all
    }

    /// Maps the region of an earlier process.
    ///
    /// # Errors
    /// `InvalidData` where it is none of this version.
    pub fn open(memfd: OwnedFd) -> io::Result<Self> {
        let words = SharedWords::open(memfd, WORDS)?;
        let is = |index: usize, value: u64| words[index].load(Acquire) == value;
        let fits = words.behind() == BUFFERS
            && is(header::MAGIC, MAGIC)
            && is(header::VERSION, VERSION)
            && is(header::SLOT_WORDS, SLOT as u64)
            && is(header::SLOTS, SLOTS as u64);
        if !fits {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the checkpoints of the previous process have another version",
            ));
        }
        let words = Arc::new(words);
        let left = Self::new(words.clone(), &[]).buffers_in_use();
        let region = Self::new(words, &left);
        let next = u32::try_from(region.header(header::HIGH).load(Acquire)).unwrap_or(u32::MAX).min(SLOTS as u32);
        let free = |index: &u32| matches!(region.slot(*index)[slot::USE].load(Acquire), FREE | TAKEN);
        let given: Vec<u32> = (0..next).rev().filter(free).collect();
        *lock(&region.slots) = FreeSlots { given, next };
        Ok(region)
    }

    pub fn memfd(&self) -> &SharedWords {
        &self.words
    }

    pub(super) fn header(&self, index: usize) -> &AtomicU64 {
        &self.words[index]
    }

    pub(super) fn slot(&self, index: u32) -> &[AtomicU64] {
        let at = HEADER + index as usize * SLOT;
        &self.words[at..at + SLOT]
    }

    /// What a thread works on, by its number: from 1 on.
    pub(super) fn working(&self, thread: usize) -> &AtomicU64 {
        self.header(header::WORKING + (thread - 1) % header::WORKING_ENTRIES * header::WORKING_WORDS)
    }

    /// Words that the shadow reads and writes.
    pub fn shadow_words(&self, generation: u64) -> crate::sys::shadow::ShadowWords<'_> {
        crate::sys::shadow::ShadowWords {
            ready: self.header(header::READY),
            mode: self.header(header::MODE),
            leave: [RegionMode::Handed.word(), RegionMode::Ended.word()],
            died: self.header(header::DIED),
            given: self.header(header::GIVEN),
            done: self.header(header::DONE),
            owner: (
                self.header(header::OWNER),
                RegionOwner::Service(generation).word(),
                RegionOwner::Free(generation).word(),
            ),
        }
    }

    /// The generation of the next shadow.
    pub fn next_generation(&self) -> u64 {
        self.header(header::GENERATION).fetch_add(1, AcqRel) + 1
    }

    /// Whether the shadow of this generation is in its place.
    pub fn is_ready(&self, generation: u64) -> bool {
        self.header(header::READY).load(Acquire) == generation
    }

    /// Shadows that were started and are not done.
    pub fn shadows(&self) -> u64 {
        self.header(header::GENERATION).load(Acquire).saturating_sub(self.header(header::DONE).load(Acquire))
    }

    /// A shadow could not be started, or was killed: nobody waits for it.
    pub fn without_shadow(&self) {
        self.header(header::DONE).fetch_add(1, AcqRel);
    }

    /// Descriptors that shadows have given.
    pub fn given(&self) -> u64 {
        self.header(header::GIVEN).load(Acquire)
    }

    pub fn owner(&self) -> RegionOwner {
        RegionOwner::of(self.header(header::OWNER).load(Acquire))
    }

    /// Makes `new` the owner, unless the keeper is; whether it is.
    pub fn own(&self, new: RegionOwner) -> bool {
        let took = |old| (RegionOwner::of(old) != RegionOwner::Keeper).then(|| new.word());
        self.header(header::OWNER).fetch_update(AcqRel, Acquire, took).is_ok()
    }

    /// Makes the keeper the owner, if nobody was since the death of the process `generation`; whether it is. Once the
    /// service is `stopped`, no process comes any more, and an owner without a shadow was killed before it had one.
    pub fn own_as_keeper(&self, generation: u64, stopped: bool) -> bool {
        let nobody = |old| match RegionOwner::of(old) {
            RegionOwner::Free(of) => stopped || of == generation,
            RegionOwner::Service(of) => stopped && !self.is_ready(of),
            RegionOwner::Keeper => false,
        };
        let took = |old| nobody(old).then(|| RegionOwner::Keeper.word());
        self.header(header::OWNER).fetch_update(AcqRel, Acquire, took).is_ok()
    }

    /// What is to become of the sessions; an unknown word means that they go on.
    pub fn mode(&self) -> RegionMode {
        let word = self.header(header::MODE).load(Acquire);
        RegionMode::ALL.into_iter().find(|mode| mode.word() == word).unwrap_or(RegionMode::Running)
    }

    pub fn set_mode(&self, mode: RegionMode) {
        self.header(header::MODE).store(mode.word(), Release);
    }

    /// This process has said that it is ready.
    pub fn serving(&self) {
        self.header(header::SERVING).store(monotonic(), Release);
    }

    /// This process takes up a handover, whose sessions have no checkpoints before it is done.
    pub fn set_taking(&self, taking: bool) {
        self.header(header::TAKING).store(taking.into(), Release);
    }

    /// Whether the previous process has died while it took up a handover. To be asked once for each crash.
    pub fn was_taking(&self) -> bool {
        self.header(header::TAKING).swap(0, AcqRel) > 0
    }

    /// A session of this process has no slot.
    pub fn set_unsaved(&self) {
        self.header(header::UNSAVED).store(1, Release);
    }

    /// Whether a session of the previous process had no slot. To be asked once for each crash.
    pub fn was_unsaved(&self) -> bool {
        self.header(header::UNSAVED).swap(0, AcqRel) > 0
    }

    /// This process hands its sessions over: they may be in the handover and here.
    pub fn set_handing(&self) {
        self.header(header::HANDING).store(1, Release);
    }

    /// Whether the previous process has died while it handed over. To be asked once for each crash.
    pub fn was_handing(&self) -> bool {
        self.header(header::HANDING).swap(0, AcqRel) > 0
    }

    /// What the crashes of this row of processes amount to.
    pub fn counts(&self) -> CrashCounts {
        let [crashes, resumed, lost] =
            [header::CRASHES, header::RESUMED, header::LOST].map(|index| self.header(index).load(Acquire));
        CrashCounts { crashes, resumed, lost }
    }

    /// Counts sessions of a crash.
    pub fn count(&self, resumed: usize, lost: usize) {
        self.header(header::RESUMED).fetch_add(resumed as u64, AcqRel);
        self.header(header::LOST).fetch_add(lost as u64, AcqRel);
    }

    /// Saves a start, and says how long to wait before serving, in milliseconds.
    pub fn started(&self) -> u64 {
        let now = monotonic();
        let starts = (0..header::START_ENTRIES).map(|n| self.header(header::STARTS + n));
        let times: Vec<u64> = starts.clone().map(|word| word.load(Acquire)).collect();
        if let Some(oldest) = starts.min_by_key(|word| word.load(Acquire)) {
            oldest.store(now, Release);
        }
        let kept = times.len() - 1;
        let mut times = times;
        times.sort_unstable_by(|a, b| b.cmp(a));
        times.truncate(kept);
        times.push(now);
        history::pause_ms(&times, now)
    }

    /// The previous process has crashed: why, and what becomes of its sessions. To be called once for each crash.
    pub fn judge_crash(&self) -> (CrashCause, CrashVerdict) {
        let word = |index: usize| self.header(index).load(Acquire);
        let fault = self.header(header::FAULT).swap(0, AcqRel);
        let cause = CrashCause::of(fault, self.header(header::SERVING).swap(0, AcqRel), word(header::DIED));
        let thread = usize::try_from(fault >> 32).unwrap_or(0);
        let worked: Vec<SavedId> = (1..=header::WORKING_ENTRIES)
            .filter(|n| thread == 0 || *n == thread)
            .filter_map(|n| {
                let slot = self.working(n).load(Acquire).checked_sub(1)?;
                let words = self.slot(u32::try_from(slot).ok().filter(|slot| (*slot as usize) < SLOTS)?);
                Some(SavedId(words[slot::ID].load(Acquire), words[slot::ID + 1].load(Acquire)))
            })
            .collect();
        (1..=header::WORKING_ENTRIES).for_each(|n| self.working(n).store(0, Release));
        // A process that a burst of restarts has ended before it began has not crashed.
        if cause.counts() || !self.live().is_empty() {
            self.header(header::CRASHES).fetch_add(1, AcqRel);
        }
        if !cause.counts() {
            return (cause, CrashVerdict::GoOn);
        }
        let now = monotonic();
        let mut crashes = self.crashes();
        crashes.push(Crash { at: now, sessions: worked });
        let verdict = history::judge(&crashes, now);
        if verdict == CrashVerdict::ResetAll {
            crashes.clear();
        }
        let first = crashes.len().saturating_sub(header::CRASH_ENTRIES);
        self.write_crashes(&crashes[first..]);
        (cause, verdict)
    }

    /// The crashes that counted, the last one last.
    fn crashes(&self) -> Vec<Crash> {
        let entry = |n: usize| {
            let at = header::CRASH + n * header::CRASH_WORDS;
            let words: Vec<u64> = (at..at + header::CRASH_WORDS).map(|n| self.header(n).load(Acquire)).collect();
            let named = usize::try_from(words[1]).unwrap_or(0).min(4);
            let sessions = words[2..].chunks_exact(2).take(named).map(|id| SavedId(id[0], id[1])).collect();
            (words[0] > 0).then_some(Crash { at: words[0], sessions })
        };
        (0..header::CRASH_ENTRIES).filter_map(entry).collect()
    }

    fn write_crashes(&self, crashes: &[Crash]) {
        for n in 0..header::CRASH_ENTRIES {
            let at = header::CRASH + n * header::CRASH_WORDS;
            let crash = crashes.get(n);
            let mut words = [0; header::CRASH_WORDS];
            if let Some(Crash { at, sessions }) = crash {
                words[0] = *at;
                words[1] = sessions.len().min(4) as u64;
                let ids = sessions.iter().take(4).flat_map(|id| [id.0, id.1]);
                words[2..].iter_mut().zip(ids).for_each(|(word, id)| *word = id);
            }
            words.iter().enumerate().for_each(|(n, word)| self.header(at + n).store(*word, Release));
        }
    }

    /// A slot for a session; `None`, which is saved, when all are taken.
    pub(super) fn take_slot_of_session(&self) -> Option<u32> {
        let slot = self.take_slot();
        if slot.is_none() {
            self.set_unsaved();
        }
        slot
    }

    /// A slot; `None` when all are taken.
    pub(super) fn take_slot(&self) -> Option<u32> {
        let mut slots = lock(&self.slots);
        let slot = slots.given.pop().or_else(|| {
            let next = slots.next;
            ((next as usize) < SLOTS).then(|| {
                slots.next = next + 1;
                self.header(header::HIGH).store(u64::from(next) + 1, Release);
                next
            })
        })?;
        drop(slots);
        let words = self.slot(slot);
        words[slot::USE].store(TAKEN, Release);
        words[slot::STAGE..slot::BODY].iter().for_each(|word| word.store(0, Relaxed));
        Some(slot)
    }

    /// Takes a slot back, with those that its text goes on in.
    pub(super) fn give_slot(&self, slot: u32) {
        let words = self.slot(slot);
        words[slot::USE].store(FREE, Release);
        let more = words[slot::TEXT].swap(0, AcqRel) >> 32;
        self.give_more(more);
        lock(&self.slots).given.push(slot);
    }

    fn give_more(&self, mut more: u64) {
        while let Some(slot) = self.more(more) {
            let words = self.slot(slot);
            more = words[slot::MORE].load(Acquire);
            words[slot::USE].store(FREE, Release);
            lock(&self.slots).given.push(slot);
        }
    }

    /// The slot behind a link, where a text goes on.
    fn more(&self, link: u64) -> Option<u32> {
        let slot = u32::try_from(link.checked_sub(1)?).ok().filter(|slot| (*slot as usize) < SLOTS)?;
        (self.slot(slot)[slot::USE].load(Acquire) == MORE).then_some(slot)
    }

    /// Writes the text of a slot. One that finds no room is left out: then the slot is not taken up after a crash.
    pub(super) fn write_text(&self, slot: u32, text: &[u8]) {
        let words = self.slot(slot);
        self.give_more(words[slot::TEXT].load(Acquire) >> 32);
        let (first, mut rest) = text.split_at(text.len().min(8 * (SLOT - slot::BODY)));
        let put = |words: &[AtomicU64], bytes: &[u8]| {
            bytes.chunks(8).zip(words).for_each(|(bytes, to)| to.store(word(bytes), Relaxed));
        };
        put(&words[slot::BODY..], first);
        let mut link = 0;
        let mut chain = Vec::new();
        while !rest.is_empty() {
            let Some(more) = self.take_slot() else { break };
            let (part, left) = rest.split_at(rest.len().min(8 * (SLOT - slot::MORE_BODY)));
            put(&self.slot(more)[slot::MORE_BODY..], part);
            chain.push(more);
            rest = left;
        }
        for more in chain.into_iter().rev() {
            let words = self.slot(more);
            words[slot::MORE].store(link, Relaxed);
            words[slot::USE].store(MORE, Release);
            link = u64::from(more) + 1;
        }
        words[slot::TEXT].store(text.len() as u64 | link << 32, Relaxed);
        words[slot::TEXT_CHECK].store(text_check(text), Release);
    }

    /// The text of a slot; shorter than it should be where a link is damaged.
    fn read_text(&self, words: &[u64; SLOT]) -> Vec<u8> {
        let (mut left, mut link) = ((words[slot::TEXT] & 0xffff_ffff) as usize, words[slot::TEXT] >> 32);
        let mut text = Vec::new();
        let mut take = |words: &[u64], left: &mut usize| {
            for word in words {
                let bytes = word.to_le_bytes();
                let n = bytes.len().min(*left);
                text.extend_from_slice(&bytes[..n]);
                *left -= n;
            }
        };
        take(&words[slot::BODY..], &mut left);
        // Each slot that is read makes `left` smaller: a circle of damaged links ends.
        while (1..LONGEST).contains(&left) {
            let Some(more) = self.more(link) else { break };
            let more = self.copy(more);
            link = more[slot::MORE];
            take(&more[slot::MORE_BODY..], &mut left);
        }
        text
    }

    fn copy(&self, slot: u32) -> [u64; SLOT] {
        let mut words = [0; SLOT];
        words.iter_mut().zip(self.slot(slot)).for_each(|(to, from)| *to = from.load(Acquire));
        words
    }

    /// The slots of sessions that live, or that lived when their process died.
    pub fn live(&self) -> Vec<u32> {
        let high = u32::try_from(self.header(header::HIGH).load(Acquire)).unwrap_or(u32::MAX).min(SLOTS as u32);
        // Any other value is damage: somebody is to be told of that.
        let lives = |slot: &u32| !matches!(self.slot(*slot)[slot::USE].load(Acquire), FREE | TAKEN | MORE | LISTENER);
        (0..high).filter(lives).collect()
    }

    /// Takes the listeners that a process had which died; damaged ones are left out. Their slots are free then.
    pub fn take_listeners(&self) -> Vec<SavedListener> {
        let high = u32::try_from(self.header(header::HIGH).load(Acquire)).unwrap_or(u32::MAX).min(SLOTS as u32);
        let listeners = (0..high).filter(|slot| self.slot(*slot)[slot::USE].load(Acquire) == LISTENER);
        let take = |slot: u32| {
            let words = self.copy(slot);
            let saved = layout::read_listener(&words, &self.read_text(&words)).ok();
            self.give_slot(slot);
            saved
        };
        listeners.collect::<Vec<_>>().into_iter().filter_map(take).collect()
    }

    /// Reads a slot.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn read(&self, slot: u32) -> Result<SavedSession, Damage> {
        let words = self.copy(slot);
        if words[slot::USE] != LIVE {
            return Err(Damage::Words);
        }
        layout::read(&words, &self.read_text(&words))
    }

    /// The id in a slot, whatever else is wrong with it.
    pub fn id(&self, slot: u32) -> SavedId {
        let words = self.slot(slot);
        SavedId(words[slot::ID].load(Acquire), words[slot::ID + 1].load(Acquire))
    }

    /// Frees the slot of a session that nobody takes up.
    pub fn forget(&self, slot: u32) {
        self.give_slot(slot);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::super::{
        stage::{SavedBytes, SavedDirection, SavedIntent, SavedPart, SavedRelay, SavedStage},
        text::Names,
    };
    use super::*;

    fn reopened(region: &Region) -> Region {
        Region::open(region.memfd().as_fd().try_clone_to_owned().expect("a descriptor")).expect("of this version")
    }

    /// Writes a session as [`crate::crash::Checkpoint`] does, without the region of a process.
    fn write(region: &Region, name: &str) -> u32 {
        let slot = region.take_slot().expect("there is room");
        let words = region.slot(slot);
        let text = serde_json::to_vec(&Names { name: name.into(), ..Names::default() }).expect("plain data");
        region.write_text(slot, &text);
        let (word, keys) = SavedStage::Waiting { peer: 7, peer_unix: false }.encode();
        words[slot::STAGE].store(word, Relaxed);
        words[slot::KEYS].store(keys[0], Relaxed);
        hold(region, slot, SavedBytes::Nothing);
        words[slot::USE].store(LIVE, Relaxed);
        let sum = layout::check(words[..slot::CHECK].iter().map(|word| word.load(Relaxed)));
        words[slot::CHECK].store(sum, Relaxed);
        slot
    }

    /// An idle session holds these bytes on their way up.
    fn hold(region: &Region, slot: u32, held: SavedBytes) {
        let relay = SavedRelay { up: SavedDirection { held, ..SavedDirection::default() }, ..SavedRelay::default() };
        let words = region.slot(slot);
        let bank = layout::bank_of(&relay);
        bank.iter().zip(&words[slot::BANKS[0]..]).for_each(|(word, to)| to.store(*word, Relaxed));
        words[slot::BUSY].store(layout::IDLE[0], Relaxed);
    }

    #[test]
    fn buffers_that_a_process_has_left_are_given_to_nobody_before_its_sessions_are_read() {
        let region = Region::create().expect("memory");
        let [idle, busy, over] = ["idle", "busy", "over"].map(|name| write(&region, name));
        let [held, noted, stale] = [region.large_buffer(), region.small_buffer(), region.small_buffer()];
        let [held, mut noted, stale] = [held, noted, stale].map(|buffer| buffer.expect("there are some"));
        let (held, number) = (held.number(), noted.number());
        hold(&region, idle, SavedBytes::Buffer(SavedPart { number: held, at: 1, end: 2 }));
        noted[..3].copy_from_slice(b"abc");
        for (slot, buffer) in [(busy, &noted), (over, &stale)] {
            region.slot(slot)[slot::IN_BUFFER].store(SavedIntent::in_buffer(buffer.number(), 5), Relaxed);
        }
        region.slot(busy)[slot::BUSY].store(layout::MOVING[0], Relaxed);
        let stale = stale.number();
        // killed: nothing is given back by a process that is dead, and its memory is not its own any more
        let next = reopened(&region);
        assert_eq!(next.buffers_in_use(), [number, held], "what an idle session has noted is not in use");
        let small: Vec<_> = std::iter::from_fn(|| next.small_buffer()).collect();
        let given: Vec<u16> = small.iter().map(RegionBuffer::number).collect();
        assert!(given.len() == 255 && given.contains(&stale) && !given.contains(&number));
        assert!(next.left_buffer(held, (256 << 10) + 1).is_none(), "it has fewer bytes");
        assert_eq!(next.left_buffer(number, 3).map(|buffer| buffer[..3].to_vec()), Some(b"abc".to_vec()));
        assert!(next.left_buffer(held, 2).is_some_and(|buffer| buffer.number() == held && buffer.len() == 256 << 10));
        assert!(next.left_buffer(held, 2).is_none(), "once");
        assert_eq!(next.small_buffer().map(|buffer| buffer.number()), Some(number), "it was given back");
        drop(small);
    }

    #[test]
    fn the_next_process_reads_what_this_one_wrote_however_long_it_is() {
        let region = Region::create().expect("memory");
        let names: Vec<String> = [1, 400, 600, 5000].iter().map(|n| "x".repeat(*n)).collect();
        let slots: Vec<u32> = names.iter().map(|name| write(&region, name)).collect();
        let next = reopened(&region);
        assert_eq!(next.live(), slots);
        for (slot, name) in slots.iter().zip(&names) {
            assert_eq!(&next.read(*slot).expect("it is whole").names.name, name);
        }
        for slot in &slots {
            next.forget(*slot);
        }
        assert_eq!(reopened(&region).live(), [0; 0]);
        let high = region.header(header::HIGH).load(Relaxed);
        let again = (0..high).filter_map(|_| next.take_slot()).count();
        assert_eq!(again as u64, high);
        assert_eq!(region.header(header::HIGH).load(Relaxed), high, "all slots were given back");
    }

    #[test]
    fn a_damaged_slot_or_text_is_refused_and_the_others_are_read() {
        let region = Region::create().expect("memory");
        let slots = [write(&region, "a"), write(&region, &"b".repeat(900)), write(&region, "c")];
        region.slot(slots[0])[slot::KEYS].fetch_xor(1 << 9, Relaxed);
        let more = (region.slot(slots[1])[slot::TEXT].load(Relaxed) >> 32) as u32 - 1;
        region.slot(more)[slot::MORE].store(u64::from(more) + 1, Relaxed);
        region.slot(more)[40].fetch_xor(1, Relaxed);
        let next = reopened(&region);
        assert_eq!(next.live(), slots);
        assert_eq!(next.read(slots[0]), Err(Damage::Words));
        assert_eq!(next.read(slots[1]), Err(Damage::Text));
        assert_eq!(next.read(slots[2]).expect("it is whole").names.name, "c");
    }

    #[test]
    fn a_session_that_finds_no_slot_is_known_to_the_next_process() {
        let region = Region::create().expect("memory");
        let slot = region.take_slot_of_session().expect("there is room");
        assert!(!reopened(&region).was_unsaved());
        lock(&region.slots).next = SLOTS as u32;
        assert_eq!(region.take_slot_of_session(), None);
        region.give_slot(slot);
        assert_eq!(region.take_slot_of_session(), Some(slot));
        let next = reopened(&region);
        assert!(next.was_unsaved() && !next.was_unsaved(), "once");
    }

    #[test]
    fn each_thread_has_a_line_of_the_cache_for_what_it_works_on() {
        let region = Region::create().expect("memory");
        let lines: std::collections::BTreeSet<_> =
            (1..=header::WORKING_ENTRIES).map(|n| std::ptr::from_ref(region.working(n)).addr() / 64).collect();
        assert_eq!(lines.len(), header::WORKING_ENTRIES);
    }

    #[test]
    fn whoever_swaps_the_owner_first_has_the_sessions() {
        let region = Region::create().expect("memory");
        assert!(region.own(RegionOwner::Service(1)) && !region.own_as_keeper(1, false));
        assert!(region.own(RegionOwner::Service(2)), "the next process does not wait for the shadow");
        region.header(header::OWNER).store(RegionOwner::Free(2).word(), Release);
        assert!(!region.own_as_keeper(1, false), "another process has died since");
        assert!(region.own_as_keeper(2, false));
        assert!(!region.own(RegionOwner::Service(3)) && region.owner() == RegionOwner::Keeper);
    }

    #[test]
    fn a_stop_leaves_the_keeper_what_a_process_without_a_shadow_owned() {
        let region = Region::create().expect("memory");
        region.own(RegionOwner::Service(2));
        region.header(header::READY).store(2, Release);
        assert!(!region.own_as_keeper(1, true), "its shadow gives the sessions");
        region.own(RegionOwner::Service(3));
        assert!(!region.own_as_keeper(2, false), "it may start its shadow yet");
        assert!(region.own_as_keeper(2, true) && region.owner() == RegionOwner::Keeper);
    }

    #[test]
    fn a_fault_names_the_session_of_its_thread_and_the_second_time_that_is_reset() {
        let region = Region::create().expect("memory");
        let (one, other) = (write(&region, "one"), write(&region, "other"));
        region.slot(one)[slot::ID].store(1, Relaxed);
        region.slot(other)[slot::ID].store(2, Relaxed);
        for expected in [CrashVerdict::GoOn, CrashVerdict::Reset(vec![SavedId(1, 0)])] {
            region.working(1).store(u64::from(other) + 1, Relaxed);
            region.working(2).store(u64::from(one) + 1, Relaxed);
            region.header(header::FAULT).store(11 | 2 << 32, Relaxed);
            assert_eq!(region.judge_crash(), (CrashCause::Signal(11), expected));
        }
        assert_eq!(region.judge_crash(), (CrashCause::Killed, CrashVerdict::GoOn), "a kill says nothing");
        assert_eq!(region.counts(), CrashCounts { crashes: 3, resumed: 0, lost: 0 });
    }

    #[test]
    fn a_region_of_another_version_is_refused() {
        let region = Region::create().expect("memory");
        region.header(header::VERSION).store(VERSION + 1, Relaxed);
        assert!(Region::open(region.memfd().as_fd().try_clone_to_owned().expect("a descriptor")).is_err());
    }
}
