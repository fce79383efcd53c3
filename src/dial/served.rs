//! The listeners of this service, as far as a dial of this service can reach them.
//!
//! A dial is compared with them before it connects, mostly without a system call: most dials can reach none, and they are not
//! noted ([`super::outgoing`]). A listener on every address of this machine is reached where the dialled address is one of
//! this machine. The kernel tells that by a bind(2) of a UDP socket, which also knows routes of the type `local`; its
//! answer is kept for [`KEPT`].

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::passage::{InetPlace, place};
use crate::{
    spec::UnixAddr,
    sys::{self, lock},
};

/// How long the answer counts whether an address is one of this machine.
const KEPT: Duration = Duration::from_secs(10);

/// The listeners that this service has now.
#[derive(Debug)]
pub(super) struct ReachableListeners {
    /// The network namespace of the service (SO_NETNS_COOKIE).
    own: Option<u64>,
    /// TCP listeners by port: address and network namespace of each.
    tcp: Mutex<HashMap<u16, Vec<TcpPlace>>>,
    /// Unix listeners, and how many there are at each address.
    unix: Mutex<HashMap<UnixAddr, usize>>,
    /// Whether this service has dialled one of its Unix listeners by another path, such as a link.
    other_paths: AtomicBool,
    /// Addresses, whether they are of this machine, and when the kernel said so.
    local: Mutex<HashMap<IpAddr, (Instant, bool)>>,
}

/// Address and network namespace of a TCP listener.
type TcpPlace = (IpAddr, Option<u64>);

/// Where a listener is, for [`ReachableListeners`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServedPlace {
    Tcp(InetPlace, Option<u64>),
    Unix(UnixAddr),
}

/// What a TCP dial can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DialReach {
    /// No listener of this service.
    None,
    /// A listener of this service, if the dialled address has become one of this machine just now: then connect(2)
    /// succeeds at once.
    IfAtOnce,
    Listener,
}

impl Default for ReachableListeners {
    fn default() -> Self {
        Self {
            own: UnixDatagram::unbound().ok().and_then(|socket| sys::net_cookie(socket.as_fd())),
            tcp: Mutex::default(),
            unix: Mutex::default(),
            other_paths: AtomicBool::new(false),
            local: Mutex::default(),
        }
    }
}

impl ReachableListeners {
    /// The network namespace of the service.
    pub(super) fn own_netns(&self) -> Option<u64> {
        self.own
    }

    pub(super) fn add(&self, place: &ServedPlace) {
        match place {
            ServedPlace::Tcp((ip, port), netns) => lock(&self.tcp).entry(*port).or_default().push((*ip, *netns)),
            ServedPlace::Unix(addr) => *lock(&self.unix).entry(addr.clone()).or_default() += 1,
        }
    }

    pub(super) fn remove(&self, place: &ServedPlace) {
        match place {
            ServedPlace::Tcp((ip, port), netns) => {
                let mut tcp = lock(&self.tcp);
                let Some(there) = tcp.get_mut(port) else { return };
                there.iter().position(|one| *one == (*ip, *netns)).map(|at| there.swap_remove(at));
                if there.is_empty() {
                    tcp.remove(port);
                }
            }
            ServedPlace::Unix(addr) => {
                let mut unix = lock(&self.unix);
                let Some(count) = unix.get_mut(addr) else { return };
                *count -= 1;
                if *count == 0 {
                    unix.remove(addr);
                }
            }
        }
    }

    /// Whether a TCP listener of this service has this port.
    pub(super) fn has_port(&self, port: u16) -> bool {
        lock(&self.tcp).contains_key(&port)
    }

    /// What a dial of `to` can reach; `netns` gives the network namespace that it begins in.
    pub(super) fn reach(&self, to: SocketAddr, netns: impl Fn() -> Option<u64>) -> DialReach {
        let (ip, port) = place(reached(to));
        let on_every_address = {
            let tcp = lock(&self.tcp);
            let Some(there) = tcp.get(&port) else { return DialReach::None };
            let takes = |listener: &IpAddr| {
                *listener == ip || (listener.is_unspecified() && (listener.is_ipv6() || ip.is_ipv4()))
            };
            let mut there = there.iter().filter(|(listener, _)| takes(listener));
            if ip.is_loopback() {
                // Each network namespace has loopback addresses of its own.
                let netns = netns();
                return if there.any(|(_, at)| *at == netns) { DialReach::Listener } else { DialReach::None };
            }
            // Another namespace's addresses are not asked for.
            let mut own = false;
            for (listener, at) in there {
                if !listener.is_unspecified() || *at != self.own {
                    return DialReach::Listener;
                }
                own = true;
            }
            own
        };
        match on_every_address && self.is_local(to, ip) {
            true => DialReach::Listener,
            false if on_every_address => DialReach::IfAtOnce,
            false => DialReach::None,
        }
    }

    /// Whether a dial of this address can reach a Unix listener of this service.
    pub(super) fn reaches_unix(&self, addr: &UnixAddr) -> bool {
        let unix = lock(&self.unix);
        !unix.is_empty() && (self.other_paths.load(Relaxed) || unix.contains_key(addr))
    }

    /// This service has dialled one of its Unix listeners by a path that is not the listener's: further dials are noted
    /// whatever their path is.
    pub(super) fn dialled_by_other_path(&self) {
        self.other_paths.store(true, Relaxed);
    }

    fn is_local(&self, to: SocketAddr, ip: IpAddr) -> bool {
        let now = Instant::now();
        let mut known = lock(&self.local);
        if let Some((asked, is_local)) = known.get(&ip) {
            if now.duration_since(*asked) < KEPT {
                return *is_local;
            }
        }
        known.retain(|_, (asked, _)| now.duration_since(*asked) < KEPT);
        let mut at = to;
        at.set_port(0);
        // Where the kernel does not tell (EMFILE), the dial is noted, which does no harm.
        let is_local = !UdpSocket::bind(at).is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable);
        known.insert(ip, (now, is_local));
        is_local
    }
}

/// The address that a dial of `to` reaches: connect(2) takes an unspecified address for the loopback one.
pub(super) fn reached(to: SocketAddr) -> SocketAddr {
    let ip = match to.ip().to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, to.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_can_reach_listeners_of_its_port_on_its_address() {
        let places = ReachableListeners::default();
        let (here, there) = (places.own, Some(u64::MAX));
        let listen = |at: &str, netns| ServedPlace::Tcp(place(at.parse().unwrap()), netns);
        let all = [
            listen("127.0.0.1:1", here),
            listen("0.0.0.0:2", here),
            listen("[::]:3", here),
            listen("10.9.9.9:4", there),
            listen("0.0.0.0:5", there),
            listen("127.0.0.1:6", there),
        ];
        all.iter().for_each(|place| places.add(place));
        for (to, from, expected) in [
            ("127.0.0.1:1", here, DialReach::Listener),
            ("[::ffff:127.0.0.1]:1", here, DialReach::Listener),
            ("0.0.0.0:1", here, DialReach::Listener),
            ("127.0.0.2:1", here, DialReach::None),
            ("127.0.0.1:1", there, DialReach::None),
            ("127.0.0.1:9", here, DialReach::None),
            ("127.0.0.2:2", here, DialReach::Listener),
            ("[::1]:2", here, DialReach::None),
            ("192.0.2.1:2", here, DialReach::IfAtOnce),
            ("[::]:3", here, DialReach::Listener),
            ("127.0.0.1:3", here, DialReach::Listener),
            ("[2001:db8::1]:3", here, DialReach::IfAtOnce),
            ("10.9.9.9:4", here, DialReach::Listener),
            ("10.9.9.8:4", here, DialReach::None),
            ("10.9.9.8:5", here, DialReach::Listener),
            ("127.0.0.1:5", here, DialReach::None),
            ("127.0.0.1:6", there, DialReach::Listener),
            ("127.0.0.1:6", here, DialReach::None),
        ] {
            assert_eq!(places.reach(to.parse().unwrap(), || from), expected, "{to} from {from:?}");
        }
        all.iter().for_each(|place| places.remove(place));
        assert!(lock(&places.tcp).is_empty());
    }

    #[test]
    fn a_unix_listener_is_reached_by_its_address_or_once_another_path_was_seen_by_any() {
        let places = ReachableListeners::default();
        let addr = |path: &str| UnixAddr::Path(path.into());
        let listener = ServedPlace::Unix(addr("/run/a"));
        assert!(!places.reaches_unix(&addr("/run/a")));
        places.add(&listener);
        places.add(&listener);
        places.remove(&listener);
        assert_eq!(["/run/a", "/run/b"].map(|path| places.reaches_unix(&addr(path))), [true, false]);
        places.dialled_by_other_path();
        assert!(places.reaches_unix(&addr("/run/b")));
        places.remove(&listener);
        assert!(!places.reaches_unix(&addr("/run/b")));
    }
}
