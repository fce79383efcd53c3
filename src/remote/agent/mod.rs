//! The agent in a VM: `qvm-remote serve`, started by dom0 through `qvm-run`, ended with it.
//!
//! It has no key and decides nothing. Clients of the same user come to a socket in `~/.qvm-remote/run`; each gets
//! dom0's greeting with its own number, and its frames pass to and fro under a stream number that the agent
//! chooses. What is in the queue of files is brought to dom0 the same way ([`spool`]), so the original's client is
//! served, too, without a call.
//!
//! Nothing here holds more of a stream than its credit: data passes only as far as the other end has asked for it.

mod clients;
mod run;
mod spool;
mod stream;

pub(crate) use clients::SOCKET;
pub(crate) use run::{NAME, run};
pub(crate) use spool::{UNKNOWN_KEY, age, directories, write_signed};
pub use spool::{read_mac, read_receipt};
