//! Commands in dom0 for the VMs that its owner allows: `qvm-remote` and `qvm-remote-dom0`.
//!
//! # Theory
//! dom0 opens every connection and trusts no byte that comes back. For each VM that is listed, has a key and runs, the
//! daemon (`dom0`) keeps one `qvm-run … 'qvm-remote --argv serve'`. What the agent in the VM ([`agent`]) says is read
//! by a process without key, privilege or files (`parser`), which passes on nothing but whole, valid frames. The
//! daemon then asks, in this order: is the code right ([`crate::proto::mac`]), was it used before, does the policy
//! allow it ([`policy`]); writes down the answer (`audit`); and only then starts the command under a supervisor of
//! its own (`supervise`), which outlives nobody: when the daemon dies, the command's whole tree is ended. One supervisor
//! more waits for the next command, so that its start costs no command any time.
//!
//! A VM without an agent, or with the Python original's client, is served through the original's queue of files
//! (`v1`), where the owner of dom0 allowed that.
//!
//! In the VM, `client` asks the agent through a socket that only the same user can open.

#[cfg(feature = "remote")]
pub mod agent;
#[cfg(feature = "dom0")]
pub(crate) mod audit;
#[cfg(feature = "dom0")]
pub(crate) mod backchannel;
#[cfg(feature = "remote")]
pub(crate) mod client;
pub(crate) mod clock;
#[cfg(feature = "dom0")]
pub mod config;
#[cfg(feature = "dom0")]
pub(crate) mod dom0;
pub(crate) mod files;
pub(crate) mod frames;
#[cfg(feature = "dom0")]
pub(crate) mod key_records;
pub(crate) mod keys;
pub(crate) mod line;
#[cfg(feature = "dom0")]
pub(crate) mod parser;
pub(crate) mod pipe;
#[cfg(feature = "dom0")]
pub(crate) mod plan;
#[cfg(feature = "dom0")]
pub mod policy;
#[cfg(feature = "dom0")]
pub(crate) mod policy_file;
#[cfg(feature = "dom0")]
pub mod program;
#[cfg(feature = "dom0")]
pub(crate) mod shown;
pub(crate) mod socket;
#[cfg(any(feature = "remote", feature = "v1"))]
pub(crate) mod spool;
#[cfg(feature = "dom0")]
pub(crate) mod supervise;
#[cfg(all(feature = "dom0", feature = "v1"))]
pub mod v1;
#[cfg(feature = "dom0")]
pub(crate) mod walk;
