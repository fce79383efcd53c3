//! Many streams in one qrexec call, at work: one thread that holds the call and a socket for each stream.
//!
//! `engine.rs` is the loop of an end: it moves bytes between the call (`wire.rs`) and the sockets (`socket.rs`), as
//! [`crate::proto::mux`] says. `far.rs` serves a call in the service's qube: it connects each stream to the place that
//! the service's argument names (`place.rs`), and tells the journal how each ended.
//!
//! # How a stream ends
//! - An end of data (FIN) is passed on when all before it is delivered; the other direction goes on.
//! - After a RESET, what came before it is delivered first, for two seconds at most. Then the socket is reset.
//! - After an error of a socket, what it had sent is read first, as far as there is credit, for two seconds at most.
//!   Then the stream is reset.
//! - A TCP socket is one whose close(2) resets (SO_LINGER) until the end of data was passed on. So a far end that is
//!   killed is seen as a reset, and never as an end of data.
//! - When the call ends, all streams are reset, behind what had come. When the near end breaks the protocol, at once.
//!
//! # What comes later
//! Nothing installs a far end yet, and no unit may name these services: `qrexec-connect.TCP+8080` in a unit is an
//! ordinary call, and stays one until a near end is there.
//! 1. The near end. A process of the `-calls` unit, which outlives restarts and crashes of the service, owns
//!    `qrexec-client-vm` and the call, with this engine ([`MuxEngine::open`]). For each stream it gives the service one
//!    end of a socket pair (SOCK_STREAM; SOCK_SEQPACKET for datagrams) by SCM_RIGHTS, so that the service sees a UNIX
//!    upstream. A socket pair cannot tell a reset, so a control socket (SOCK_SEQPACKET) says "opened", "refused" and
//!    "reset" of a stream, both ways, before the stream's socket is closed ([`StreamOwner::opened`],
//!    [`StreamOwner::resets`], [`MuxEngine::reset`]); who sees an end reads the control socket first. To a new process
//!    of the service the near end says the state of all streams again, because the old one may have read a message and
//!    died. For SOCK_SEQPACKET [`StreamSocket`] has to tell an empty datagram from an end.
//! 2. The rules of a call: it ends `call_linger` after its last stream; after `call_max_age` new streams use a new one;
//!    none for `@dispvm`; 127 before HELLO says what to install, 126 what dom0's policy needs. A call that ends is
//!    closed, and its `qrexec-client-vm` killed 100 ms later.
//! 3. `status`, `sessions`, `kill`, `check` and the manuals say the same of a stream as of any session.
//! 4. The package `qrexec-connect-services` with `/etc/qubes-rpc/qrexec-connect.TCP`, `.UDP` and `.Unix`, each one
//!    line: `exec qrexec-connect far-end tcp "$QREXEC_SERVICE_ARGUMENT"`.
//! 5. What the engine does not do right yet, and no unit can meet before the near end is there:
//!    - Windows grow from the same budget that new streams need: 128 grown ones shut the call to a new stream.
//!    - At the end of the call a stream that has ended both ways, and whose bytes a slow reader has not taken, is reset.
//!    - The time without traffic counts in the first measurement of the rate: the limit in flight drops to its floor.
//!    - A stream that pauses gives up its turn, and begins before all others when it wakes: streams that write with
//!      pauses leave less than its share to one that writes without.
//!    - An ICMP error hides a datagram that waits behind it until the next event.
//!    - A UNIX server whose backlog is full refuses a stream, where TCP would wait.
//! 6. splice(2) between a socket and the call, which saves the copy; the smaller limit in flight for a RemoteVM.

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
