//! The orders that the service gets by signals.
//!
//! SIGTERM is a stop or, when the service manager runs a restart, the order to hand over ([`jobs`]); SIGINT
//! is a stop; SIGHUP reads the configuration again, or is the end of the terminal ([`Hangup`]). SIGUSR1 announces that
//! the next SIGTERM is a restart, for supervisors that keep descriptors but cannot be asked.

use std::{
    io,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use tokio::signal::unix::{self, SignalKind, signal};

use super::{
    jobs::{self, Job},
    notify,
};
use crate::sys::{lock, proc::Process};

/// How long sessions get when the whole manager goes down: the machine does not wait for them.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// How long a thread waits for signals to be released; what comes before that is the end of a start that failed.
const RELEASED: Duration = Duration::from_secs(10);

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

/// What a SIGHUP means to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// Read the configuration again.
    Reload,
    /// The terminal was closed: end, as `ssh -L` and socat do.
    Stop,
    /// Nothing: whoever started the process had it ignored (nohup(1)).
    Ignore,
}

impl Hangup {
    /// To be asked at the start: when the terminal is gone, nobody can tell any more that there was one. `has_file`:
    /// whether there may be a configuration file to read again.
    pub fn meaning(has_file: bool) -> Self {
        let process = Process::own();
        let terminal = process.stat().is_some_and(|stat| stat.has_terminal());
        match (notify::managed(), has_file && !terminal) {
            (true, _) | (false, true) => Self::Reload,
            (false, false) if process.ignores(libc::SIGHUP) => Self::Ignore,
            (false, false) => Self::Stop,
        }
    }
}

/// Guard: signals that carry orders wait until it is dropped, so that none of them ends the process before [`Signals`]
/// takes it as an order. It belongs to its thread. A thread that is started meanwhile takes no such signal, nor do the
/// children that it starts (std::process passes the mask on), unless it calls [`Self::released`] first.
#[derive(Debug)]
pub struct HeldSignals {
    before: SigSet,
    released: Arc<(Mutex<bool>, Condvar)>,
}

impl HeldSignals {
    /// To be called before the first thread is started.
    pub fn hold() -> Self {
        let orders = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1];
        let orders: SigSet = orders.into_iter().collect();
        let before = orders.thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap_or_else(|_| SigSet::empty());
        Self { before, released: Arc::default() }
    }

    /// What a thread has to call as the first thing that it does: it waits until the guard is dropped, and takes
    /// signals from then on.
    pub fn released(&self) -> impl Fn() + Send + Sync + 'static {
        let (before, released) = (self.before, self.released.clone());
        move || {
            let (is_released, changed) = &*released;
            drop(changed.wait_timeout_while(lock(is_released), RELEASED, |released| !*released));
            let _ = before.thread_set_mask();
        }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        let (is_released, changed) = &*self.released;
        *lock(is_released) = true;
        changed.notify_all();
        let _ = self.before.thread_set_mask();
    }
}

/// The signals that carry orders.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
    restart: unix::Signal,
    meaning_of_hangup: Hangup,
    announced: bool,
    /// A SIGTERM whose meaning is being asked for.
    asking: bool,
}

impl Signals {
    /// Takes over the handling of all of them.
    pub fn new(meaning_of_hangup: Hangup) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            restart: signal(SignalKind::user_defined1())?,
            meaning_of_hangup,
            announced: false,
            asking: false,
        })
    }

    /// Waits for the next order.
    ///
    /// # Cancel safety
    /// Safe: what has come is kept.
    pub async fn next(&mut self) -> Order {
        loop {
            if self.asking {
                let order = tokio::select! {
                    biased;
                    // Signals that come together may be seen in either order.
                    _ = self.restart.recv() => Order::Park,
                    order = meaning_of_sigterm() => order,
                };
                self.asking = false;
                return order;
            }
            tokio::select! {
                biased;
                _ = self.restart.recv() => self.announced = true,
                _ = self.terminate.recv() => {
                    if self.announced {
                        return Order::Park;
                    }
                    self.asking = true;
                }
                _ = self.interrupt.recv() => return Order::Drain { at_most: None },
                _ = self.hangup.recv() => match self.meaning_of_hangup {
                    Hangup::Reload => return Order::Reload,
                    Hangup::Stop => return Order::Drain { at_most: None },
                    Hangup::Ignore => {}
                },
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

/// What a SIGTERM means. Without a manager, and when no job explains the signal (`systemctl kill`), it is a stop. When
/// systemd does not answer, it is a restart: a restart keeps the sessions, and a stop under such a load would hardly
/// let them end.
///
/// # Cancel safety
/// Safe; the question is left to end by itself.
async fn meaning_of_sigterm() -> Order {
    if !notify::managed() {
        return Order::Drain { at_most: None };
    }
    match jobs::own_job().await {
        Job::Restart | Job::Silent => Order::Park,
        Job::Stop { machine } => Order::Drain { at_most: machine.then_some(SHUTDOWN) },
        Job::None => Order::Drain { at_most: None },
    }
}
