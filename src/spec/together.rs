//! What listeners mean together: two that exclude each other, and circles of listeners that lead into each other.
//!
//! Each listener may be right by itself. The kernel gives a port to one socket only, where `0.0.0.0` and `[::]` stand
//! for every address; and a connection that comes back to its first listener makes another connection: one service stops
//! that (`dial/outgoing.rs`), two services do not.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use super::{
    endpoint::{Host, ListenAddr, Netns, UnixAddr, Upstream, Zone},
    plan::Listen,
};

/// Where a listener listens, as far as the kernel compares such places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenPlace {
    /// A TCP port or, with `datagrams`, a UDP port.
    Port {
        /// The address.
        addr: SocketAddr,
        /// The interface of a link-local address, where it was given by name.
        zone: Option<Zone>,
        /// UDP.
        datagrams: bool,
        /// The network namespace; the service's own when `None`.
        netns: Option<Netns>,
        /// Whether `[::]` leaves IPv4 to others (IPV6_V6ONLY of ipv6(7)).
        only_v6: bool,
    },
    /// A UNIX socket.
    Unix(UnixAddr),
}

impl ListenPlace {
    /// The place of a listening side that is ours to bind; port 0 is never taken, and an inherited one is elsewhere.
    pub fn of(listen: &Listen) -> Option<Self> {
        let port = |listen: &ListenAddr, datagrams, netns: &Option<Netns>| {
            let (addr, zone) = (listen.addr(), listen.zone().cloned());
            let place = Self::Port { addr, zone, datagrams, netns: netns.clone(), only_v6: false };
            Some(place).filter(|_| addr.port() > 0)
        };
        match listen {
            Listen::Inherited => None,
            Listen::Tcp { addr, netns, .. } => port(addr, false, netns),
            Listen::Udp { addr, netns } => port(addr, true, netns),
            Listen::Unix { addr, .. } => Some(Self::Unix(addr.clone())),
        }
    }

    /// Whether the kernel lets only one of the two listen.
    pub fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(one), Self::Unix(another)) => one == another,
            (
                Self::Port { addr: a, zone: a_zone, datagrams, netns, only_v6: a_only },
                Self::Port { addr: b, zone: b_zone, datagrams: b_datagrams, netns: b_netns, only_v6: b_only },
            ) => {
                let covers = |wide: &SocketAddr, only_v6: bool, ip: IpAddr| {
                    let same_family = wide.is_ipv4() == ip.is_ipv4();
                    wide.ip().is_unspecified() && (same_family || (wide.is_ipv6() && !only_v6))
                };
                let (a_ip, b_ip) = (a.ip().to_canonical(), b.ip().to_canonical());
                let zones = match (a, b) {
                    (SocketAddr::V6(a), SocketAddr::V6(b)) => (a.scope_id(), a_zone) == (b.scope_id(), b_zone),
                    _ => true,
                };
                (datagrams, a.port(), netns) == (b_datagrams, b.port(), b_netns)
                    && ((a_ip == b_ip && zones) || covers(a, *a_only, b_ip) || covers(b, *b_only, a_ip))
            }
            _ => false,
        }
    }

    /// Whether whoever dials `upstream` comes here. `local` tells whether an address is one of this machine.
    fn takes(&self, upstream: &Upstream, local: &impl Fn(IpAddr) -> bool) -> bool {
        match (self, upstream) {
            (Self::Unix(addr), Upstream::Unix(dialled)) => addr == dialled,
            (Self::Port { addr, zone, datagrams: false, netns, .. }, Upstream::Tcp { addr: dialled, netns: from })
            | (Self::Port { addr, zone, datagrams: true, netns, .. }, Upstream::Udp { addr: dialled, netns: from }) => {
                let ip = addr.ip().to_canonical();
                let here = |to: IpAddr| {
                    let to = to.to_canonical();
                    // What dials an unspecified address reaches the loopback address.
                    let wild = ip.is_unspecified() && (ip.is_ipv6() || to.is_ipv4());
                    // Of another namespace's addresses only the loopback ones are known.
                    let ours = to.is_loopback() || to.is_unspecified() || (netns.is_none() && local(to));
                    ip == to || (wild && ours) || (to.is_unspecified() && ip.is_loopback())
                };
                (addr.port(), netns) == (dialled.port, from)
                    && match &dialled.host {
                        Host::Ip(to) => here(*to),
                        Host::LinkLocal(to, at) => here((*to).into()) && zone.as_ref().is_none_or(|zone| zone == at),
                        Host::Name(name) => name == "localhost" && (ip.is_loopback() || ip.is_unspecified()),
                    }
            }
            _ => false,
        }
    }

    /// What two places that exclude each other have in common.
    fn key(&self) -> (u16, Option<&UnixAddr>) {
        match self {
            Self::Port { addr, .. } => (addr.port(), None),
            Self::Unix(addr) => (0, Some(addr)),
        }
    }
}

/// One of several listeners.
#[derive(Clone, Debug)]
pub struct PlacedListener<T> {
    /// What the caller knows it by.
    pub what: T,
    /// Where it listens.
    pub place: ListenPlace,
    /// Where it leads, if that is known.
    pub upstream: Option<Upstream>,
}

/// The pairs of listeners that exclude each other, the earlier one first.
pub fn exclusions<T>(all: &[PlacedListener<T>]) -> Vec<(usize, usize)> {
    let mut seen: HashMap<_, Vec<usize>> = HashMap::new();
    let mut pairs = Vec::new();
    for (index, listener) in all.iter().enumerate() {
        let beside = seen.entry(listener.place.key()).or_default();
        pairs.extend(
            beside.iter().filter(|other| all[**other].place.excludes(&listener.place)).map(|other| (*other, index)),
        );
        beside.push(index);
    }
    pairs
}

/// The circles: each as the listeners in their order, from the first that is a part of it. `local` tells whether an
/// address is one of this machine.
pub fn circles<T>(all: &[PlacedListener<T>], local: impl Fn(IpAddr) -> bool) -> Vec<Vec<usize>> {
    let mut at: HashMap<_, Vec<usize>> = HashMap::new();
    for (index, listener) in all.iter().enumerate() {
        at.entry(listener.place.key()).or_default().push(index);
    }
    let leads: Vec<Vec<usize>> = all
        .iter()
        .map(|from| {
            let Some(upstream) = &from.upstream else { return Vec::new() };
            let key = match upstream {
                Upstream::Tcp { addr, .. } | Upstream::Udp { addr, .. } => (addr.port, None),
                Upstream::Unix(addr) => (0, Some(addr)),
                Upstream::Qrexec(_) => return Vec::new(),
            };
            let takes = |to: &usize| all[*to].place.takes(upstream, &local);
            at.get(&key).into_iter().flatten().copied().filter(takes).collect()
        })
        .collect();
    (0..all.len()).filter_map(|start| way_back(start, &leads)).collect()
}

/// A way from a listener back to it, by later ones alone: so each circle is found once.
fn way_back(start: usize, leads: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut seen = vec![false; leads.len()];
    let mut ways = vec![vec![start]];
    while let Some(way) = ways.pop() {
        let last = *way.last().expect("a way has a beginning");
        for next in leads[last].iter().copied().filter(|next| *next >= start) {
            if next == start {
                return Some(way);
            }
            if !std::mem::replace(&mut seen[next], true) {
                ways.push([way.as_slice(), &[next]].concat());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Config;

    fn listeners(texts: &[&str]) -> Vec<PlacedListener<usize>> {
        let (_, plan) = Config::gather(None, texts).unwrap();
        let legs = plan
            .forwards
            .iter()
            .enumerate()
            .flat_map(|(what, forward)| forward.legs.iter().map(move |leg| (what, leg)));
        legs.filter_map(|(what, leg)| {
            Some(PlacedListener { what, place: ListenPlace::of(&leg.listen)?, upstream: Some(leg.upstream.clone()) })
        })
        .collect()
    }

    #[test]
    fn listeners_that_exclude_each_other_are_found() {
        for (one, another, excluded) in [
            ("listen=0.0.0.0:80", "listen=127.0.0.1:80", true),
            ("listen=[::]:80", "listen=127.0.0.1:80", true),
            ("listen=[::]:80", "listen=0.0.0.0:80", true),
            ("listen=[::]:80", "listen=[::1]:80", true),
            ("listen=[::1]:80", "listen=127.0.0.1:80", false),
            ("listen=0.0.0.0:80", "listen=[::1]:80", false),
            ("listen=[::ffff:127.0.0.1]:80", "listen=127.0.0.1:80", true),
            ("listen=127.0.0.1:80", "listen=127.0.0.2:80", false),
            ("listen=127.0.0.1:80", "listen=127.0.0.1:81", false),
            ("listen=127.0.0.1:80", "listen=0.0.0.0:80,listen_namespace=a", false),
            ("listen=127.0.0.1:80,listen_namespace=a", "listen=0.0.0.0:80,listen_namespace=a", true),
            ("listen=127.0.0.1:0", "listen=0.0.0.0:0", false),
            ("listen=[fe80::1%a]:80", "listen=[fe80::1%b]:80", false),
            ("listen=[fe80::1%a]:80", "listen=[::]:80", true),
        ] {
            let texts = [one, another].map(|text| format!("{text},target=10.0.0.1:1"));
            let pairs = exclusions(&listeners(&[&texts[0], &texts[1]]));
            assert_eq!(!pairs.is_empty(), excluded, "{one} {another}");
        }
        let mixed = ["listen=0.0.0.0:53,target=10.0.0.1:53", "udp_listen=127.0.0.1:53,udp_target=10.0.0.1:53"];
        assert_eq!(exclusions(&listeners(&mixed)), [], "TCP and UDP have ports of their own");
    }

    #[test]
    fn circles_are_found_once_each_and_what_only_passes_through_is_none() {
        let found = |texts: &[&str]| {
            let all = listeners(texts);
            let local = |ip: IpAddr| ip == IpAddr::from([10, 0, 0, 7]);
            let circles = circles(&all, local);
            circles
                .iter()
                .map(|circle| circle.iter().map(|index| all[*index].what).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        assert_eq!(found(&["listen=127.0.0.1:80,target=127.0.0.1:80"]), [[0]]);
        assert_eq!(found(&["listen=0.0.0.0:80,target=127.0.0.5:80"]), [[0]]);
        assert_eq!(found(&["listen=0.0.0.0:80,target=10.0.0.7:80"]), [[0]]);
        assert_eq!(found(&["listen=0.0.0.0:80,target=10.0.0.8:80"]), [[0; 0]; 0]);
        assert_eq!(found(&["listen=[::]:80,target=localhost:80"]), [[0]]);
        assert_eq!(found(&["listen=127.0.0.1:80,target=0.0.0.0:80"]), [[0]]);
        assert_eq!(found(&["listen=0.0.0.0:80,listen_namespace=a,target=127.0.0.1:80,namespace=a"]), [[0]]);
        assert_eq!(found(&["listen=0.0.0.0:80,target=127.0.0.1:80,namespace=a"]), [[0; 0]; 0]);
        let two = ["listen=127.0.0.1:1,target=127.0.0.1:2", "listen=127.0.0.1:2,target=127.0.0.1:1"];
        assert_eq!(found(&two), [[0, 1]]);
        let over_unix = ["listen=127.0.0.1:1,uds=/run/a", "uds=/run/a,target=127.0.0.1:1"];
        assert_eq!(found(&over_unix), [[0, 1]]);
        assert_eq!(found(&["listen=127.0.0.1:1,uds=/run/a,target=127.0.0.1:1"]), [[0, 0]]);
        assert_eq!(found(&["listen=127.0.0.1:1,uds=/run/a,target=127.0.0.1:2"]), [[0; 0]; 0]);
        let udp = ["udp_listen=0.0.0.0:53,udp_target=127.0.0.1:53"];
        assert_eq!(found(&udp), [[0]]);
        assert_eq!(
            found(&["listen=127.0.0.1:53,target=10.0.0.1:1", "udp_listen=0.0.0.0:5,udp_target=127.0.0.1:53"]),
            [[0; 0]; 0]
        );
    }
}
