//! What the service is told to do, by signals.
//!
//! systemd sends SIGTERM for a stop and for a restart alike. Which of the two it is, `ExecStop=` has asked the
//! manager ([`crate::cli`], `announce-stop`) and said by a signal of its own just before: SIGUSR1 announces a
//! restart, SIGUSR2 that the whole manager goes down. A SIGTERM that nobody announced is a stop.

use std::{io, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long sessions get when the whole manager goes down: the machine is not to wait for them.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// An order to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Read the configuration again.
    Reload,
    /// Hand the sessions over to the next process.
    Park,
    /// Let the sessions end, within their own time and, if given, within this.
    Drain {
        /// The upper bound for all.
        at_most: Option<Duration>,
    },
}

/// The signals that carry orders.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    restart: Signal,
    shutdown: Signal,
    announced: Option<Order>,
}

impl Signals {
    /// Takes over the handling of all of them.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            restart: signal(SignalKind::user_defined1())?,
            shutdown: signal(SignalKind::user_defined2())?,
            announced: None,
        })
    }

    /// Waits for the next order.
    ///
    /// # Cancel safety
    /// Safe: an announcement is kept for the SIGTERM that follows.
    pub async fn next(&mut self) -> Order {
        loop {
            tokio::select! {
                biased;
                _ = self.restart.recv() => self.announced = Some(Order::Park),
                _ = self.shutdown.recv() => self.announced = Some(Order::Drain { at_most: Some(SHUTDOWN) }),
                _ = self.terminate.recv() => return self.announced.unwrap_or(Order::Drain { at_most: None }),
                _ = self.interrupt.recv() => return Order::Drain { at_most: None },
                _ = self.hangup.recv() => return Order::Reload,
            }
        }
    }

    /// Waits until somebody does not want to wait any longer: SIGTERM or SIGINT while draining.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn impatient(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
