//! What this process says to the service manager, and what it hears from it.
//!
//! # Theory
//! A process says things by datagrams to NOTIFY_SOCKET ([`notify`]): that it is ready, its status, signs of life,
//! descriptors to keep. It gets orders by signals ([`signals`]); a SIGTERM does not say whether it means a stop or a
//! restart, so the process asks which job runs ([`jobs`], by [`systemctl`]). Telling and asking need descriptors even
//! where connections have used up all others, so some are kept back ([`headroom`]). The manager gives a process a unit
//! ([`unit`]): a name, a control group, directories. The unit's ExecReload= runs a process beside the service
//! ([`reload`]). Of the socket units that pass their sockets, the process hears when they stop ([`sockets`]).
//! Of units that are to be started for clients, it asks beforehand whether they can be ([`startable`]).
//!
//! # Vocabulary
//! *manager*: systemd, of the system or of a user. *unit*: what the manager runs this process for. *job*: what the
//! manager is doing to a unit now. *order*: what a signal tells the service to do. *descriptor store*: descriptors that
//! the manager keeps for the next process of a unit.

pub mod headroom;
#[cfg(any(feature = "forward", feature = "dom0"))]
#[cfg_attr(not(feature = "forward"), allow(dead_code))] // the daemon of dom0 asks one of its questions
pub mod jobs;
#[cfg(any(feature = "forward", feature = "dom0"))]
pub mod notify;
#[cfg(feature = "forward")]
pub mod reload;
#[cfg(feature = "forward")]
pub mod shown;
#[cfg(feature = "forward")]
pub mod signals;
#[cfg(feature = "forward")]
pub mod sockets;
#[cfg(feature = "forward")]
pub mod startable;
pub mod systemctl;
#[cfg(any(feature = "forward", feature = "dom0"))]
pub mod unit;
