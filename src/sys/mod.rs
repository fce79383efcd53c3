//! The system calls that neither std nor nix offers as safe functions, and what is built of system calls alone.
//!
//! Nothing else in the house is unsafe. Everything here is plain: descriptors, paths and numbers in, an `io::Error`
//! out; the callers say what a failure means to an operator.

pub mod accept;
#[cfg(feature = "forward")]
mod datagrams;
mod descriptor;
#[cfg(feature = "forward")]
pub mod fatal;
pub mod file;
mod lock;
#[cfg(feature = "forward")]
mod never;
pub mod proc;
mod process;
#[cfg(feature = "forward")]
pub mod shadow;
#[cfg(feature = "forward")]
pub mod shared;
mod socket;
pub mod socket_file;
mod terminal;

#[cfg(all(test, feature = "forward"))]
pub use datagrams::send_no_checksums;
#[cfg(feature = "forward")]
pub use datagrams::{DatagramRoom, Destination, MESSAGES, OutgoingMessage, send_datagrams};
#[cfg(any(feature = "remote", feature = "dom0"))]
pub use descriptor::read_into;
pub use descriptor::{hard_limit, is_net_namespace, own, place, register, register_or_return};
pub use lock::lock;
#[cfg(feature = "forward")]
pub use never::or_never;
#[cfg(all(test, feature = "forward"))]
pub use process::forked;
#[cfg(feature = "remote")]
pub use process::is_ignored;
pub use process::{
    Identity, OURS_ALONE, Unenterable, WorkingDirectory, end_with_the_reader, inherit_nothing, lead_session,
    pidfd_exit, pidfd_open, pidfd_send_signal, trim, unset_env, user_exists,
};
#[cfg(feature = "forward")]
pub use socket::{
    ClosedSocket, READS_COUNTED, SEND_NOTE, SendNote, SocketCounts, UnixEnd, accept, bound_interface, count_unix_reads,
    has_urgent, interface_index, is_untouched, net_cookie, socket_cookie, tcp_counts, unix_counts, unix_counts_or_begin, unix_end,
    unix_is_closed,
};
pub use socket::{listen, queued, receive, tcp_backlog, unacknowledged, unanswered, unread};
pub use terminal::{local_time, set_window_size, window_size};
