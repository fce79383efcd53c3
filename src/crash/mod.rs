//! What outlives a crash: memory in which each session is saved while it lives, so that the next process can take the
//! session up.
//!
//! # Theory
//! A process that is killed loses its memory and nothing else that a session needs. Its descriptors stay, because a
//! second process, the *shadow*, shares the table of them ([`crate::sys::shadow`]). The bytes that peers have sent stay
//! in the queues of the kernel. What is left is the knowledge which descriptor belongs to whom, and where each session
//! stands: this is written down here, in a memfd that the manager keeps from the first start on.
//!
//! * **A session is one slot** ([`layout`]): words that change while it lives, under a check word, and its names as
//!   text, under another. Whoever finds a check wrong does not use the slot: that session is reset and reported, alone.
//! * **A listener of our own is a slot, too**, so that it keeps its backlog, and a UNIX socket its inode.
//! * **A descriptor is its key**, not its number ([`key`]): a socket is its cookie, which the kernel gives once, a pipe
//!   its inode. Numbers of descriptors are used again. So a slot never means somebody else's descriptor, and the
//!   descriptors of several dead processes, which had the same numbers, can be taken together.
//! * **A session is busy** while its thread moves its bytes: then a read may have happened and the write that belongs
//!   to it not. One word says so before the first call, and one after the last. All others go on as they are.
//! * **Bytes outlive the process**: what is read goes into a buffer behind the slots or into a pipe of the pool, never
//!   into private memory, as long as there is one ([`region`], [`SavedPart`]). What a receiver does not take stays
//!   there, and the next process takes that buffer or that pipe over as it is.
//! * **An intent** ([`SavedIntent`]) is noted before a read: in which buffer the bytes will be, from which byte of the
//!   stream on, or in which pipe. For a busy session between two sockets the counts of the kernel and the intent
//!   say which bytes are missing (`handover/ledger.rs`). Between a socket and a child's pipe each byte goes by one splice,
//!   so none is missing; what is noted is the pipe that is about to be closed (`handover/child.rs`). A session whose bytes
//!   were in private memory is reset and reported, and so is a busy one of which the kernel does not tell enough.
//! * **A crash has a cause** ([`history`]): a fault of the program names the session that its thread worked on. A
//!   session that is named in two crashes in a row is reset before anything looks at it.
//!
//! Writes need an order for the compiler only: the stores that a process has made are there when it is killed.
//!
//! # States of the region
//! | mode | the process | if it dies now |
//! |---|---|---|
//! | running | serves, or takes sessions up, or parks them | the shadow gives, the next process takes |
//! | handed | has handed over as planned | the shadow leaves; the handover has everything |
//! | stopping | drains | the shadow gives, the keeper resets all at once |
//! | ended | has no session any more | the shadow leaves |
//!
//! | owner | has the sessions | becomes |
//! |---|---|---|
//! | service *n* | the *n*th process | free, by the shadow of the *n*th process; service *n*+1 |
//! | free | nobody: whoever swaps the word first | service *n*+1, keeper |
//! | keeper | the keeper, which ends them | nothing: the next process makes a new region |
//!
//! # What is not covered
//! * A stage is written as some words under one check. A kill between the first and the last of them, some nanoseconds,
//!   leaves a slot that is damaged. A session that only had its peer looks like a new connection then. One whose call was
//!   just decided is reset and reported.
//! * Bytes that a planned handover brought in memory, on their way to or from a child, or behind an urgent mark of TCP:
//!   while these are moved, a kill leaves a doubt.

mod checkpoint;
mod history;
mod layout;
mod owner;
mod region;
mod stage;
mod text;
mod thread;

pub use checkpoint::{Checkpoint, DirectionNotes, ListenerCheckpoint, send_owner};
pub use history::{CrashCause, CrashVerdict, SavedId};
pub use layout::{SavedListener, SavedSession};
pub use owner::{RegionMode, RegionOwner};
pub use region::{CrashCounts, Region, RegionBuffer, counts, region, set_region};
pub use stage::{
    DescriptorKey, Facts, SavedBases, SavedBytes, SavedDirection, SavedIntent, SavedPart, SavedRelay, SavedStage, key,
};
pub use text::{ListenerNames, Names, SavedAsker};
pub use thread::{Working, record_fault, record_panics, work_on};
