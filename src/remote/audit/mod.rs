//! dom0's log: what was asked, decided and done, written where the owner of the machine looks.
//!
//! Whatever came from a VM is escaped before it is written, so that no id and no command can forge an entry or reach a
//! terminal.
//!
//! # One sequence, one chain
//! All entries, of every qube, of policies and of keys, are in one sequence in one chain of files ([`logfile`]): each
//! has a number and a *head*, the SHA-256 of the head before it, the number and the entry ([`chain`]). The daemon and
//! `qvm-remote-dom0 authorize` and its kin write under one lock. The entry of a command is on the disk before the
//! command runs ([`writer`]); the qube gets its number and head with the signed answer and keeps them.
//!
//! What this proves: an entry that was changed, taken out or put in later makes every later head wrong
//! (`log --verify`); whoever makes all heads again, as root in dom0 can, has heads that are not those that the qubes
//! keep (`log --verify --against FILE`). What it does not prove: that the entries after the last head that a qube keeps
//! are untouched; that nothing was left out while it was written, by somebody who was root in dom0 then; and a qube may
//! say of its own copy what it likes: a difference accuses one of the two.
//!
//! # Room
//! A qube may fill its quota in a day (`audit-quota=`, [`quota`]: 4 MiB without one), a quarter of that again with
//! refusals, and the channel's own entries take less than 2 MiB a day: 7 MiB. A quota may be used up at once and then
//! again in the course of each day, so seven days hold eight of them. The files that are kept have room for eight days
//! of all listed qubes together, and one file more: three qubes that do nothing but fill the log need more than a week
//! to turn over 178 MiB. A restart of the daemon reads what was used of the day from the log ([`recent`]).

mod chain;
mod entries;
mod logfile;
mod quota;
mod recent;
mod verify;
mod writer;

pub(crate) use chain::ChainPoint;
pub(crate) use entries::{Audit, EntryOrigin};
pub(crate) use logfile::append;
pub(crate) use quota::{DEFAULT, kept};
pub(crate) use verify::{Kept, entries_of, read_kept, verify};
pub(crate) use writer::{LogFailure, OnLogFailure};
