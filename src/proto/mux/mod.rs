//! Many streams in one qrexec call: its frames, what they mean, who sends next. No sockets, no clock.
//!
//! A call has two ends. The *near end* made the call and opens streams; the *far end* serves it and connects each
//! stream to the port or socket that the service's argument names. No frame names one. [`MuxFrame`] is a frame,
//! [`MuxCall`] is what an end knows: it takes frames and tells what they mean ([`MuxNews`]), it is told what the
//! sockets do and says whose turn it is to send ([`MuxTurn`]). `stream.rs` has the table of what is legal when.
//!
//! Why a protocol of its own: yamux tells a reset and a dead call as an end of data, so that a cut transfer looks
//! whole; HTTP/2's guards against abuse end all streams of a connection. Neither bounds what is in flight on the call.
//!
//! What bounds what:
//! - *Credit* bounds memory. A stream may bring so many bytes that nobody has taken; 32 KiB at first, doubled up to 512
//!   KiB while they are used up at once, 64 MiB for the call. A CREDIT says that bytes were given to the socket.
//! - *In flight* bounds delay: bytes that are on their way in the call, of all streams. An ACK says that bytes were
//!   taken from the call, whoever waits for them then. The limit follows the rate (`window.rs`).
//! - *Turns* divide what is left: by bytes, and who was quiet goes first (`turns.rs`).
//! - [`MAX_STREAMS`] streams, [`MAX_OPENS`] OPENs a second, 1 MiB of answers that nobody reads.
//!
//! # What comes later
//! Shrinking the window of a stream that was fast once; leaving out the copy between a socket and the call (splice).

mod call;
mod fault;
mod frame;
mod kind;
mod stream;
mod turns;
mod window;

#[cfg(test)]
mod tests;

pub use call::{MAX_OPENS, MAX_STREAMS, MuxCall, MuxNews, MuxRole, MuxTurn};
pub use fault::MuxFault;
pub use frame::{
    MUX_FRAME, MUX_HEADER, MUX_VERSION, MuxContent, MuxFrame, MuxHello, ResetCause, data_header, datagram_header,
};
pub use kind::{MuxType, StreamId};
pub use stream::MuxStream;
pub use turns::{SendTurn, SendTurns};
pub use window::{
    CREDIT_OF_CALL, CREDIT_TAKEN, CreditWindow, FIRST_CREDIT, FLOOR, InFlight, LARGE_PAYLOAD, MAX_CREDIT, PAYLOAD,
    REMOTE_FLOOR,
};
