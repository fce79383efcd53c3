//! Many streams in one qrexec call, at work: one thread that holds the call and a socket for each stream.
//!
//! `engine.rs` is the loop of an end: it moves bytes between the call (`wire.rs`) and the sockets (`socket.rs`), as
//! [`crate::proto::mux`] says. `far.rs` serves a call in the service's qube: it connects each stream to the place that
//! the service's argument names (`place.rs`), and tells the journal how each ended.
//!
//! # How a stream ends
//! - An end of data (FIN) is passed on when all before it is delivered; the other direction goes on.
//! - After a RESET, what came before it is delivered first, for two seconds at most. Then the socket is reset.
//! - After an error of a socket, what it had sent is read first, as far as there is credit, for two seconds at most. Then
//!   the stream is reset.
//! - A TCP socket is one whose close(2) resets (SO_LINGER) until the end of data was passed on. So a far end that is killed
//!   is seen as a reset, and never as an end of data.
//! - When the call ends, all streams are reset, behind what had come. When the near end breaks the protocol, at once.
//!
//! # What comes later
//! The near end. A process of the `-calls` unit, which outlives restarts and crashes of the service, owns
//! `qrexec-client-vm` and the call. It has the same engine with [`crate::proto::mux::MuxRole::Near`]. For each stream it
//! gives the service one end of a socket pair (SOCK_STREAM; SOCK_SEQPACKET for datagrams) by SCM_RIGHTS, so that the
//! service sees a UNIX upstream. A socket pair cannot tell a reset, so a control socket (SOCK_SEQPACKET) says "opened",
//! "refused" and "reset" of a stream, before its socket is closed; who sees an end reads the control socket first. To a new
//! process of the service the near end says the state of all streams again, because the old one may have read a message and
//! died. Until then no unit may name these services: `qrexec-connect.TCP+8080` in a unit is an ordinary call.

mod engine;
mod far;
mod place;
mod socket;
mod wire;

#[cfg(test)]
mod tests;

pub use engine::{CallEnd, MuxEngine, StreamFate, StreamOwner, StreamStory};
pub use far::{FarCall, FarFailure};
pub use place::FarPlace;
pub use socket::{SocketFamily, StreamSocket};
