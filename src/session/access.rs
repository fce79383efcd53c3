//! Who connected, and whether they may: checked before anything is dialled.

use std::{
    fmt,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::{User, geteuid},
};
use socket2::SockAddr;

use crate::{
    log::escape,
    spec::{Account, Admit, Network},
    stream::Stream,
};

/// Who connected; displayed, it is what logs call the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Inet(SocketAddr),
    /// Over a UNIX socket, with these credentials (unix(7), SO_PEERCRED) and, rarely, its own address.
    Unix {
        /// The user who called connect(2).
        uid: u32,
        /// The process that did.
        pid: i32,
        /// The path it had bound.
        path: Option<String>,
    },
    /// The kernel does not tell.
    Unknown,
}

impl Peer {
    /// Who is at the other end of an accepted socket.
    pub fn of(fd: &OwnedFd, address: &SockAddr) -> Self {
        if let Some(inet) = address.as_socket() {
            return Self::Inet(inet);
        }
        match getsockopt(&fd.as_fd(), PeerCredentials) {
            Ok(c) => Self::Unix {
                uid: c.uid(),
                pid: c.pid(),
                path: address.as_pathname().map(|path| escape(path.as_os_str().as_encoded_bytes())),
            },
            Err(_) => Self::Unknown,
        }
    }

    /// The peer that is displayed so: a handover record has the text.
    pub fn read(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Inet(address));
        }
        let (uid, rest) = text.strip_prefix("uid ")?.split_once(" pid ")?;
        let (pid, path) = rest.split_once(" at ").map_or((rest, None), |(pid, path)| (pid, Some(path.to_owned())));
        Some(Self::Unix { uid: uid.parse().ok()?, pid: pid.parse().ok()?, path })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix { uid, pid, path: None } => write!(f, "uid {uid} pid {pid}"),
            Self::Unix { uid, pid, path: Some(path) } => write!(f, "uid {uid} pid {pid} at {path}"),
            Self::Unknown => f.write_str("an unknown peer"),
        }
    }
}

/// Who may connect. Empty lists let everybody in; a peer that a list cannot judge is kept out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    networks: Vec<Network>,
    uids: Vec<u32>,
    /// Processes of ours that may connect whatever the lists say: this one, and those before it, whose connections may
    /// still wait to be accepted.
    ourselves: Vec<u32>,
}

impl Access {
    /// Looks up the users by name.
    ///
    /// # Errors
    /// A user that does not exist: the list would otherwise keep out whom it was written for.
    pub fn new(admit: &Admit) -> Result<Self, String> {
        let uids: Result<_, _> = admit.uids.iter().map(uid).collect();
        Ok(Self { networks: admit.from.clone(), uids: uids?, ourselves: Vec::new() })
    }

    /// The same, and this process may connect too: the other half of a forward comes in here. So may those `before`
    /// it.
    #[must_use]
    pub fn and_ourselves(self, before: &[u32]) -> Self {
        Self { ourselves: [&[std::process::id()], before].concat(), ..self }
    }

    /// Whether the peer at the other end of `stream` is the other half of a forward.
    pub fn is_own(&self, stream: &Stream) -> bool {
        !self.ourselves.is_empty()
            && getsockopt(&stream.as_fd(), PeerCredentials).is_ok_and(|c| self.is_ours(c.uid(), c.pid()))
    }

    /// A process that ended may have left its number to another: so it is to be one of our own user, too, who may do
    /// with us what he likes anyway.
    fn is_ours(&self, uid: u32, pid: i32) -> bool {
        uid == geteuid().as_raw() && u32::try_from(pid).is_ok_and(|pid| self.ourselves.contains(&pid))
    }

    /// Whether `peer` may connect; otherwise which list it is not on.
    pub fn check(&self, peer: &Peer) -> Result<(), &'static str> {
        match peer {
            Peer::Inet(address) if !self.networks.is_empty() => {
                let known = self.networks.iter().any(|network| network.contains(address.ip()));
                if known { Ok(()) } else { Err("allow_from") }
            }
            Peer::Unix { uid, pid, .. } if !self.uids.is_empty() => {
                if self.is_ours(*uid, *pid) || self.uids.contains(uid) { Ok(()) } else { Err("allow_uid") }
            }
            Peer::Unknown if !self.uids.is_empty() => Err("allow_uid"),
            Peer::Unknown if !self.networks.is_empty() => Err("allow_from"),
            _ => Ok(()),
        }
    }
}

fn uid(account: &Account) -> Result<u32, String> {
    match account {
        Account::Id(uid) => Ok(*uid),
        Account::Name(name) => match User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(format!("allow_uid: there is no user {name}; write a name of getent(1) or a number")),
            Err(e) => Err(format!("allow_uid: cannot look up the user {name}: {e}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inet(text: &str) -> Peer {
        Peer::Inet(SocketAddr::new(text.parse().expect("an address"), 4242))
    }

    fn unix(uid: u32) -> Peer {
        Peer::Unix { uid, pid: 1, path: None }
    }

    #[test]
    fn what_a_log_calls_a_peer_can_be_read_back() {
        let at = |path: &str| Peer::Unix { uid: 7, pid: 4242, path: Some(path.into()) };
        for peer in [inet("192.0.2.1"), inet("fd00::1"), unix(1000), at("/run/a at b"), at("/x uid 1 pid 2")] {
            assert_eq!(Peer::read(&peer.to_string()), Some(peer));
        }
        for text in ["an unknown peer", "", "uid 7", "uid x pid 1", "uid 7 pid 1x at /y"] {
            assert_eq!(Peer::read(text), None, "{text}");
        }
    }

    #[test]
    fn without_lists_everybody_may_connect() {
        let access = Access::new(&Admit::default()).unwrap();
        assert_eq!([inet("192.0.2.1"), unix(0), Peer::Unknown].map(|p| access.check(&p)), [Ok(()); 3]);
    }

    #[test]
    fn only_the_networks_and_users_on_a_list_may_connect() {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|n| n.parse().unwrap()).to_vec();
        let access = Access::new(&Admit { from: networks, uids: vec![Account::Id(1000)] }).unwrap();
        assert_eq!(access.check(&inet("10.1.2.3")), Ok(()));
        assert_eq!(access.check(&inet("::ffff:10.1.2.3")), Ok(()));
        assert_eq!(access.check(&inet("fd00::1")), Ok(()));
        assert_eq!(access.check(&inet("192.0.2.1")), Err("allow_from"));
        assert_eq!(access.check(&unix(1000)), Ok(()));
        assert_eq!(access.check(&unix(0)), Err("allow_uid"));
        assert_eq!(access.check(&Peer::Unknown), Err("allow_uid"));
    }

    #[test]
    fn a_user_that_does_not_exist_is_an_error_and_not_an_empty_list() {
        let uids = vec![Account::Name("nobody-of-that-name".into())];
        assert!(Access::new(&Admit { from: Vec::new(), uids }).is_err());
        let root = Access::new(&Admit { from: Vec::new(), uids: vec![Account::Name("root".into())] }).unwrap();
        assert_eq!(root.check(&unix(0)), Ok(()));
    }
}
