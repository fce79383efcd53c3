//! The daemon in dom0: a channel to each VM, a command for each stream, an answer for every command.
//!
//! # A channel's life
//! *Absent*: the VM is halted; where /run/qubes shows that, it costs nothing until its socket appears there, else a
//! call every 30 s. *Greeting*: `qvm-run` was started, and the agent's magic is waited for, 5 s. *Live*: frames pass;
//! 45 s of silence, a fault or the end of either process end it, and all its commands with it. *V1 queue*: no agent
//! answered, so the original's queue is read by calls, if the policy says `v1 = yes`; an agent is looked for again,
//! less and less often, every ten minutes at the latest.
//!
//! # A stop
//! SIGTERM: no new commands, those that run may end (the unit's time-out allows 90 s), then they are ended. When the
//! daemon is killed instead, each command's supervisor ends its tree by itself, and the agent in the VM answers the
//! clients: so a crash leaves nothing to recover but requests of the durable queue, which the ledger keeps from running
//! twice.

mod access;
mod approvals;
mod background;
mod call;
mod changes;
mod channel;
mod command;
mod control;
mod descriptors;
mod desktop;
mod execute;
mod gate;
mod groups;
mod judge;
mod keep;
mod key_uses;
mod launch;
mod ledger;
mod listed;
mod looks;
#[cfg(test)]
mod model;
mod places;
mod port;
pub(crate) mod question;
mod reject;
mod replay;
mod request;
mod restart;
mod run;
mod session;
mod sheet;
mod state;
mod transfer;
#[cfg(feature = "v1")]
mod v1;

pub use groups::end_without_daemon;
pub use keep::keep;
pub use run::run;
pub use state::{DaemonOptions, StartError};
