//! What an accept loop does when accept(2) fails: one policy for every loop of every program.
//!
//! accept(2) fails for three reasons, and each asks for something else:
//!
//! - nobody waits (EAGAIN): wait until the listener is readable;
//! - the connection that was to be taken has failed meanwhile (ECONNABORTED and other errors of that connection, EINTR):
//!   take the next one at once;
//! - this process or the kernel has run out of descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM), or an error that
//!   nobody expects: pause, because the listener stays readable and a loop without a pause takes a whole processor.
//!   Each pause is twice as long as the one before, up to a second. An accepted connection ends the row.

use std::{io, time::Duration};

#[cfg(any(feature = "remote", feature = "dom0"))]
use tokio::net::{UnixListener, UnixStream};

/// The first pause and the longest one.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// Next step of an accept loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nobody waits: wait until the listener is readable.
    Empty,
    /// That connection is lost: accept the next one.
    Again,
    /// Sleep this long, then accept again.
    Pause(Duration),
}

/// The policy of one accept loop.
#[derive(Debug)]
pub struct Backoff {
    /// The next pause.
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: PAUSE.0 }
    }
}

impl Backoff {
    /// A connection was accepted: the next pause is a short one again.
    pub fn reset(&mut self) {
        self.pause = PAUSE.0;
    }

    /// accept(2) has failed with this error.
    pub fn after(&mut self, error: &io::Error) -> Next {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Next::Empty,
            // accept(2), "Error handling": pending errors of the new connection are to be treated like EAGAIN
            Some(
                libc::EINTR
                | libc::ECONNABORTED
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
                | libc::EOPNOTSUPP,
            ) => Next::Again,
            _ => {
                let pause = self.pause;
                self.pause = (pause * 2).min(PAUSE.1);
                Next::Pause(pause)
            }
        }
    }
}

/// The next connection that `accept` gives. While there is no room for one it pauses, and says why.
///
/// # Cancel safety
/// Safe; the next call begins with the shortest pause.
pub async fn next<T, F: Future<Output = io::Result<T>>>(accept: impl Fn() -> F, trouble: impl Fn(&io::Error)) -> T {
    let mut backoff = Backoff::default();
    loop {
        match accept().await {
            Ok(accepted) => return accepted,
            Err(e) => {
                // EAGAIN is the runtime's own to wait for
                if let Next::Pause(pause) = backoff.after(&e) {
                    trouble(&e);
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// The next client of a UNIX socket.
///
/// # Cancel safety
/// As that of [`next`].
#[cfg(any(feature = "remote", feature = "dom0"))]
pub async fn unix(listener: &UnixListener) -> UnixStream {
    next(|| listener.accept(), |_| {}).await.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(backoff: &mut Backoff, errno: i32) -> Next {
        backoff.after(&io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn only_want_of_our_own_makes_accept_pause() {
        let mut backoff = Backoff::default();
        assert_eq!(after(&mut backoff, libc::EAGAIN), Next::Empty);
        for errno in [libc::ECONNABORTED, libc::EINTR, libc::EPROTO, libc::EPERM] {
            assert_eq!(after(&mut backoff, errno), Next::Again, "{errno}");
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EBADF] {
            assert_eq!(after(&mut Backoff::default(), errno), Next::Pause(PAUSE.0), "{errno}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_second_and_begin_anew_after_a_connection() {
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            pauses.push(after(&mut backoff, libc::EMFILE));
            assert_eq!(after(&mut backoff, libc::ECONNABORTED), Next::Again, "it ends no row of failures");
        }
        let expected = [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000].map(|ms| Next::Pause(Duration::from_millis(ms)));
        assert_eq!(pauses, expected);
        backoff.reset();
        assert_eq!(after(&mut backoff, libc::EMFILE), Next::Pause(PAUSE.0));
    }
}
