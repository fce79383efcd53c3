//! The protocol between dom0 and the agent in a VM, `qvm-remote serve`; the same frames pass between that agent and
//! a `qvm-remote` beside it.
//!
//! The VM's side begins with [`MAGIC`]. Then both sides send frames ([`frame`]): `u32 length | u32 stream | u8 type |
//! body`, big-endian. Stream 0 is the session itself; every command is a separate stream, numbered by the VM.
//!
//! A command: OPEN (a [`Request`] with its code) and as many BODY as its text needs; then ACCEPT, or REJECT which ends
//! the stream, with any number of WAIT before either, and one before an EXIT that needs an explanation; then STDIN one
//! way, STDOUT and STDERR the other; EXIT ends the stream. Data is sent only for credit: each side may have [`CREDIT`]
//! bytes on the way and gets more as the other passes them on, so nobody keeps more than that for a stream, however
//! much a command writes. BODY counts as STDIN.

mod check;
mod ending;
#[cfg(test)]
pub(in crate::proto) mod fixture;
pub mod frame;
mod memory;
mod request;
mod wait;
mod wire;

pub use check::{BadText, check_text, valid_id};
pub use ending::Ending;
pub use frame::{Buffer, Frame, Hello, RawFrame, Refusal, WholeFrame};
pub use memory::ReadMemory;
pub use request::{COVERED_INPUT, Mode, Request, argv, argv_payload, flags};
pub use wait::WaitReason;
pub use wire::{CREDIT, Fault, KeyId, MAGIC, MAX_COMMAND, MAX_STREAMS, SLICE, VERSION};
