//! Forwards that dom0 declares: what QubesDB says becomes socket units and rules of the firewall.
//!
//! # Theory
//! dom0 sets a feature of this qube, and the feature is a key of QubesDB ([`crate::spec::declared`] has its form). A
//! process of root, `qrexec-connect-qubesdb.service`, watches these keys ([`database`](self)) and makes units and rules
//! the same as what is declared. It keeps no state of its own: each pass reads what is declared and what is there, and
//! takes the steps that lie between ([`steps`](self)). So a pass after a crash, a kill at any point or an upgrade ends
//! in the same state.
//!
//! The daemon's socket is spoken to directly ([`crate::proto::qubesdb`]). Its tools do not serve: `qubesdb-watch`
//! writes its lines through a buffer of stdio that a pipe does not flush, and `qubesdb-watch -n 1` misses what changes
//! between two runs. Three properties of the daemon (`daemon/db-daemon.c`, `daemon/db-cmds.c`) decide how this is done:
//! it has one thread and writes to clients without O_NONBLOCK, so a watcher that does not read stops the daemon; it
//! does not ignore SIGPIPE, so an answer is read to its end; and `qubesdb-rm /` fires no watch of a directory, so all
//! is read again every few minutes.
//! The watch comes first and the reading after it: what changes in between is seen.
//!
//! One pass over the units, by port. A file is *ours* when it is what this program writes for what it says:
//!
//! | declared | file in /run/systemd/system | socket unit | steps |
//! |---|---|---|---|
//! | no | none, or not ours | any | none |
//! | no | ours | any | stop, delete |
//! | no | none | active: somebody deleted the file | stop |
//! | yes | none | none | write, start |
//! | yes | none | active | stop, write, start |
//! | yes | ours, the same | active, and as the file says | none |
//! | yes | ours, the same | not active | start |
//! | yes | ours, another | any | stop, write, start |
//! | yes | ours, the same | changed on disk | stop, start |
//! | yes | not ours, or a unit of this name elsewhere | any | none; one message |
//!
//! systemd reads its units again once, between deleting and writing on one side and starting on the other. A unit whose
//! stop fails keeps its file, and the next pass stops it again. Where nft fails, a port that may still have a rule is
//! not stopped. A lock beside the units keeps a second process of this kind out. The rule of a port is added after its
//! unit has started and removed before the unit is stopped: the firewall never opens a port that another process listens on. Each change
//! of rules is one transaction.
//!
//! A stop of the service changes nothing of this: forwards are served on. `withdraw` takes all away.
//!
//! # What is left to a process of the qube
//! Such a process can write a key. It gets a listener at a port from 1024 on, which this service holds and which leads
//! to a call that the process could make by itself, and a rule of the firewall for that port. It can remove what dom0
//! has declared. dom0 decides about each call.
//!
//! # Vocabulary
//! *declaration*: a key of QubesDB with its value, which asks for a forward. *pass*: one comparison of what is declared
//! with what is there, and the steps between them. *to withdraw*: to take away what a declaration brought about.

mod database;
mod nft;
mod pass;
mod ruleset;
mod run;
mod steps;
mod units;

pub use run::{ReadPorts, run, withdraw};
