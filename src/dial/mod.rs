//! An endpoint becomes a connected stream, by a deadline, or a failure that says what to do.
//!
//! # A new way to dial, in an hour
//! A way is one function: it takes what the name says and gives a [`Stream`](crate::stream::Stream), or a [`Failure`]
//! that says what was being done. Here is a whole one: a program whose standard input and output are the session.
//!
//! ```
//! use std::{io, os::unix::net::UnixStream, process::{Command, Stdio}};
//! use qrexec_connect::{dial::Failure, stream::{StreamKind, Stream}};
//!
//! /// Starts `program`, which speaks on its standard input and output.
//! ///
//! /// # Errors
//! /// [`Failure::Start`]: no socket can be made, or the program cannot be started.
//! pub fn exec(program: &str) -> Result<Stream, Failure> {
//!     let failed = |error: io::Error| Failure::Start { program: program.into(), error };
//!     let (ours, theirs) = UnixStream::pair().map_err(failed)?; // close-on-exec, both
//!     ours.set_nonblocking(true).map_err(failed)?; // only our end: it is another open file than theirs
//!     let stdin = theirs.try_clone().map_err(failed)?;
//!     // (a real one keeps the child, to wait for it)
//!     let _child = Command::new(program)
//!         .stdin(Stdio::from(std::os::fd::OwnedFd::from(stdin)))
//!         .stdout(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
//!         .spawn()
//!         .map_err(failed)?;
//!     Stream::new(ours.into(), StreamKind::Unix).map_err(failed) // a relay can half-close and reset it from here on
//! }
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
//! # runtime.block_on(async {
//! let stream = exec("cat").unwrap();
//! # let mut told = UnixStream::from(stream.into_fd());
//! # told.set_nonblocking(false).unwrap();
//! # use std::io::{Read as _, Write as _};
//! # told.write_all(b"hello").unwrap();
//! # told.shutdown(std::net::Shutdown::Write).unwrap();
//! # let mut said = String::new();
//! # told.read_to_string(&mut said).unwrap();
//! # assert_eq!(said, "hello");
//! assert!(matches!(exec("/nowhere"), Err(Failure::Start { program, .. }) if program.as_os_str() == "/nowhere"));
//! # });
//! ```
//!
//! To be named, it needs four places, which the compiler and the tests ask for one after the other:
//! 1. `spec`: a variant of [`Upstream`](crate::spec::Upstream), how it is written, a key in `keys.rs`, and in `role.rs`
//!    which keys mean it together; a row in each of their tables of tests.
//! 2. Here: the function, in a separate file, with what it promises when it is dropped.
//! 3. `session/route.rs`: a variant of `Lead`; `session/stream.rs`: the arm that calls the function; in
//!    `session/event.rs`, what to do when it fails. Where the upstream is more than one descriptor, `handover` has to
//!    carry it, too.
//! 4. `tests/it`: a scenario with the real program, which was seen failing; the key in the manual.

mod entrance;
mod failure;
mod lookup;
mod named;
pub(crate) mod netns;
mod outgoing;
mod passage;
mod peer;
pub(crate) mod proxy;
pub(crate) mod qrexec;
mod retry;
mod served;
mod tcp;
mod udp;
mod unix;
mod way;

pub(crate) use entrance::Entrance;
pub use failure::{DialStep, Failure};
pub(crate) use outgoing::{NotedSocket, accepted_earlier, is_served_port, is_served_unix, note_again, note_flow};
pub(crate) use passage::{Circle, Passage};
pub use peer::abandoned;
pub use retry::{RetryUntil, retrying};
pub use tcp::{Connected, connect as tcp, keep_alive};
pub(crate) use udp::{Present, UdpEnds, connect as udp};
pub use unix::connect as unix;
pub use way::{TimeLimit, Way};
