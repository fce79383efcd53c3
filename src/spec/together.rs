//! What listeners mean together: two that exclude each other, and circles of listeners that lead into each other.
//!
//! Each listener may be right by itself. The kernel gives a port to one socket only, where `0.0.0.0` and `[::]` stand
//! for every address; and a connection that comes back to its first listener makes another connection: one service stops
//! that (`dial/outgoing.rs`), two services do not.

use std::{
    collections::{HashMap, HashSet},
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

/// Places to be searched: each search looks at those of one port (TCP or UDP, in one network namespace) that have one
/// address or stand for every address, so 10,000 forwards are not compared with each other.
#[derive(Debug, Default)]
pub struct PlaceIndex<'a> {
    ports: HashMap<(u16, bool, Option<&'a Netns>), PortPlaces>,
    unix: HashMap<&'a UnixAddr, Vec<usize>>,
}

/// The places of one port, by their numbers.
#[derive(Debug, Default)]
struct PortPlaces {
    all: Vec<usize>,
    /// Those of an unspecified address.
    wild: Vec<usize>,
    by_address: HashMap<IpAddr, Vec<usize>>,
}

impl<'a> PlaceIndex<'a> {
    /// The index of places, which are numbered in their order.
    pub fn new(places: impl IntoIterator<Item = &'a ListenPlace>) -> Self {
        let mut index = Self::default();
        places.into_iter().enumerate().for_each(|(number, place)| index.add(number, place));
        index
    }

    fn add(&mut self, number: usize, place: &'a ListenPlace) {
        match place {
            ListenPlace::Unix(addr) => self.unix.entry(addr).or_default().push(number),
            ListenPlace::Port { addr, datagrams, netns, .. } => {
                let port = self.ports.entry((addr.port(), *datagrams, netns.as_ref())).or_default();
                port.all.push(number);
                let ip = addr.ip().to_canonical();
                if ip.is_unspecified() { &mut port.wild } else { port.by_address.entry(ip).or_default() }.push(number);
            }
        }
    }

    /// The numbers of all places that may exclude `place`, in ascending order; whether one does, [`ListenPlace::excludes`]
    /// tells.
    pub fn near(&self, place: &ListenPlace) -> Vec<usize> {
        match place {
            ListenPlace::Unix(addr) => self.unix.get(addr).cloned().unwrap_or_default(),
            ListenPlace::Port { addr, datagrams, netns, .. } => {
                self.of_port((addr.port(), *datagrams, netns.as_ref()), Some(addr.ip()))
            }
        }
    }

    /// The numbers of all places to which `upstream` may lead, in ascending order.
    fn behind(&self, upstream: &Upstream) -> Vec<usize> {
        let (addr, datagrams, netns) = match upstream {
            Upstream::Tcp { addr, netns } => (addr, false, netns),
            Upstream::Udp { addr, netns } => (addr, true, netns),
            Upstream::Unix(addr) => return self.unix.get(addr).cloned().unwrap_or_default(),
            Upstream::Qrexec(_) => return Vec::new(),
        };
        let ip = match &addr.host {
            Host::Ip(ip) => Some(*ip),
            Host::LinkLocal(ip, _) => Some((*ip).into()),
            Host::Name(_) => None,
        };
        self.of_port((addr.port, datagrams, netns.as_ref()), ip)
    }

    /// The places of a port that have the address or stand for every address; all of them without an address.
    fn of_port(&self, port: (u16, bool, Option<&Netns>), ip: Option<IpAddr>) -> Vec<usize> {
        let Some(port) = self.ports.get(&port) else { return Vec::new() };
        let Some(ip) = ip.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_unspecified()) else {
            return port.all.clone();
        };
        let mut numbers = port.wild.clone();
        numbers.extend(port.by_address.get(&ip).into_iter().flatten());
        numbers.sort_unstable();
        numbers
    }
}

/// The pairs of listeners that exclude each other, the earlier one first.
pub fn exclusions<T>(all: &[PlacedListener<T>]) -> Vec<(usize, usize)> {
    let index = PlaceIndex::new(all.iter().map(|listener| &listener.place));
    let mut pairs = Vec::new();
    for (number, listener) in all.iter().enumerate() {
        let excluded = |other: &usize| *other < number && all[*other].place.excludes(&listener.place);
        pairs.extend(index.near(&listener.place).into_iter().filter(excluded).map(|other| (other, number)));
    }
    pairs
}

/// The circles: each as the listeners in their order, from the first that is a part of it. `local` tells whether an
/// address is one of this machine.
pub fn circles<T>(all: &[PlacedListener<T>], local: impl Fn(IpAddr) -> bool) -> Vec<Vec<usize>> {
    let index = PlaceIndex::new(all.iter().map(|listener| &listener.place));
    let mut leads: Vec<Vec<usize>> = all
        .iter()
        .map(|from| {
            let Some(upstream) = &from.upstream else { return Vec::new() };
            let takes = |to: &usize| all[*to].place.takes(upstream, &local);
            index.behind(upstream).into_iter().filter(takes).collect()
        })
        .collect();
    drop_ends(&mut leads);
    (0..all.len()).filter_map(|start| way_back(start, &leads)).collect()
}

/// Forgets listeners that lead to no circle, from the last of each way to its first.
fn drop_ends(leads: &mut [Vec<usize>]) {
    let mut from: Vec<Vec<usize>> = vec![Vec::new(); leads.len()];
    for (number, next) in leads.iter().enumerate() {
        next.iter().for_each(|next| from[*next].push(number));
    }
    let mut ends: Vec<usize> = (0..leads.len()).filter(|number| leads[*number].is_empty()).collect();
    while let Some(end) = ends.pop() {
        for before in std::mem::take(&mut from[end]) {
            leads[before].retain(|next| *next != end);
            if leads[before].is_empty() {
                ends.push(before);
            }
        }
    }
}

/// A way from a listener back to it, by later ones alone: so each circle is found once.
fn way_back(start: usize, leads: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut seen = HashSet::new();
    let mut ways = vec![vec![start]];
    while let Some(way) = ways.pop() {
        let last = *way.last().expect("a way has a beginning");
        for next in leads[last].iter().copied().filter(|next| *next >= start) {
            if next == start {
                return Some(way);
            }
            if seen.insert(next) {
                ways.push([way.as_slice(), &[next]].concat());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

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

    fn any_place() -> impl Strategy<Value = ListenPlace> {
        let ip = prop_oneof![
            Just("0.0.0.0"),
            Just("127.0.0.1"),
            Just("127.0.0.2"),
            Just("::"),
            Just("::1"),
            Just("::ffff:127.0.0.1"),
            Just("::ffff:0.0.0.0"),
            Just("fe80::1"),
        ];
        let netns = prop_oneof![Just(None), Just(Some(Netns::Name("a".parse().unwrap())))];
        let port =
            (ip, 1..3_u16, any::<bool>(), netns, any::<bool>()).prop_map(|(ip, port, datagrams, netns, only_v6)| {
                ListenPlace::Port {
                    addr: SocketAddr::new(ip.parse().unwrap(), port),
                    zone: None,
                    datagrams,
                    netns,
                    only_v6,
                }
            });
        let unix = (0..2_u8).prop_map(|name| ListenPlace::Unix(UnixAddr::Abstract(vec![name])));
        prop_oneof![9 => port, 1 => unix]
    }

    proptest! {
        #[test]
        fn the_index_finds_all_that_a_search_of_every_pair_finds(places in vec(any_place(), 0..20)) {
            let all: Vec<_> =
                places.into_iter().map(|place| PlacedListener { what: (), place, upstream: None }).collect();
            let pairs = (0..all.len()).flat_map(|second| (0..second).map(move |first| (first, second)));
            let excluded = pairs.filter(|(first, second)| all[*first].place.excludes(&all[*second].place));
            prop_assert_eq!(exclusions(&all), excluded.collect::<Vec<_>>());
        }

        #[test]
        fn what_leads_to_no_circle_is_left_out_and_no_circle_is_lost(
            leads in (1..12_usize).prop_flat_map(|n| vec(vec(0..n, 0..3), n..=n)),
        ) {
            let mut peeled = leads.clone();
            drop_ends(&mut peeled);
            let found = |leads: &[Vec<usize>]| -> Vec<usize> {
                (0..leads.len()).filter(|start| way_back(*start, leads).is_some()).collect()
            };
            prop_assert_eq!(found(&leads), found(&peeled));
        }
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
