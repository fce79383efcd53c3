//! Failures of a dial.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use super::netns;
use crate::proto::qrexec::SetUp;

/// Reasons why there is no connection.
#[derive(Debug)]
pub enum Failure {
    /// The call ended before it was connected: what the exit code said, `None` when it is not known (the child was
    /// taken over from an earlier process, which alone could have waited for it).
    Call(Option<SetUp>),
    /// Another session asked the same, and the answer was no.
    RefusedAlready,
    /// This many calls of the same service have been undecided for long, and no further one was begun.
    ManyUndecided(usize),
    /// The dial took longer than allowed.
    TimedOut(Duration),
    /// No name server said within this time which addresses a name has.
    Unresolved {
        /// The name.
        name: String,
        /// The time allowed.
        allowed: Duration,
    },
    /// None of the addresses of a name could be connected to.
    Addresses {
        /// The name and the port.
        name: String,
        /// The addresses that were tried, in this order, and what came of each; `None` for one that did not answer.
        tried: Vec<(SocketAddr, Option<Failure>)>,
        /// The time allowed, when it was over before every address had failed.
        timed_out: Option<Duration>,
    },
    /// The peer went away meanwhile.
    PeerGone,
    /// The unit of the upstream could not be started, or is not up in time.
    Unit(String),
    /// The network namespace to dial from could not be used.
    Netns(netns::Trouble),
    /// A program could not be started.
    Start {
        /// The path of the program.
        program: PathBuf,
        /// Error of the kernel.
        error: io::Error,
    },
    /// A system call failed.
    Io {
        /// At which step.
        step: DialStep,
        /// What was being done, such as `connect to 10.0.0.5:22`.
        doing: String,
        /// Error of the kernel.
        error: io::Error,
    },
}

/// A step of a dial. One error number means another thing at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialStep {
    /// A UNIX socket was being connected to.
    Unix,
    /// A TCP address was being connected to.
    Tcp,
    /// Datagrams were being sent to a UDP address.
    Udp,
    /// A name was being looked up.
    Name,
    /// The interface of `bind_device` was being chosen.
    Device,
    /// The address of `source` was being chosen.
    Source,
    /// Anything else.
    Other,
}

impl Failure {
    /// The address to which no connection could be made because no local port is free, when that is why; `dialled` is
    /// the address that was dialled where no name was.
    pub fn without_port(&self, dialled: Option<SocketAddr>) -> Option<SocketAddr> {
        match self {
            Self::Io { step: DialStep::Tcp, error, .. } if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => dialled,
            Self::Addresses { tried, .. } => {
                tried.iter().find_map(|(address, failure)| failure.as_ref()?.without_port(Some(*address)))
            }
            _ => None,
        }
    }
}

impl DialStep {
    /// What to do about an error of the kernel at this step, behind a semicolon; empty where the error says it all.
    pub fn advice(self, error: &io::Error) -> &'static str {
        match (self, error.raw_os_error()) {
            (Self::Unix | Self::Tcp | Self::Udp, Some(libc::ECONNREFUSED)) => "; nobody listens there",
            (Self::Unix, Some(libc::ENOENT)) => "; its endpoint has not started",
            (Self::Unix, Some(libc::EACCES)) => "; check the owner and mode of the socket and its directory",
            (Self::Unix, Some(libc::EPROTOTYPE)) => "; the socket there is not for streams",
            (Self::Tcp | Self::Udp, Some(libc::EACCES | libc::EPERM)) => "; a firewall of this machine forbids it",
            (Self::Tcp | Self::Udp, Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
                "; no route leads there: see `ip route get`"
            }
            (Self::Tcp, Some(libc::EADDRNOTAVAIL)) => {
                "; no local port towards this address is free, or there is no local address of its family"
            }
            (Self::Device, Some(libc::ENODEV)) => "; there is no such interface: see `ip link`",
            (Self::Device, Some(libc::EPERM)) => "; this takes CAP_NET_RAW",
            (Self::Source, Some(libc::EADDRNOTAVAIL)) => "; this is no address of this machine: see `ip address`",
            _ => "",
        }
    }
}

/// The failure of a system call.
pub(super) fn io_failure(step: DialStep, doing: &str, error: io::Error) -> Failure {
    Failure::Io { step, doing: doing.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_knows_what_was_dialled() {
        let said = |step: DialStep, number| step.advice(&io::Error::from_raw_os_error(number));
        assert!(said(DialStep::Unix, libc::EACCES).contains("owner and mode"));
        assert!(said(DialStep::Udp, libc::EACCES).contains("firewall"));
        assert!(said(DialStep::Tcp, libc::EACCES).contains("firewall"));
        assert!(said(DialStep::Unix, libc::ENOENT).contains("endpoint"));
        assert_eq!(said(DialStep::Tcp, libc::ENOENT), "");
        assert!(said(DialStep::Device, libc::ENODEV).contains("ip link"));
        assert_eq!(said(DialStep::Other, libc::ECONNREFUSED), "");
    }

    #[test]
    fn the_address_of_a_name_towards_which_no_port_is_free_is_found_among_the_others() {
        let at = |port| SocketAddr::from(([192, 0, 2, 1], port));
        let failed = |number| Some(io_failure(DialStep::Tcp, "connect", io::Error::from_raw_os_error(number)));
        let of_name = |tried| Failure::Addresses { name: "name.test:1".into(), tried, timed_out: None };
        let others = || vec![(at(1), None), (at(2), failed(libc::ECONNREFUSED))];
        assert_eq!(of_name(others()).without_port(None), None);
        let mut tried = others();
        tried.push((at(3), failed(libc::EADDRNOTAVAIL)));
        assert_eq!(of_name(tried).without_port(None), Some(at(3)));
    }
}
