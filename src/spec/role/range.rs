//! Ranges of ports: one forward, a leg for each port.
//!
//! | listening side | where it leads | meaning |
//! |---|---|---|
//! | N ports | N ports | port by port, in ascending order |
//! | N ports | one port, or one qrexec call | all lead there |
//! | one port | several | a fault |
//! | N ports | another number of ports above 1 | a fault |
//! | N ports | a UNIX socket, with or without a target behind it | a fault |
//! | a socket of systemd, or a UNIX socket | several ports | a fault: there is one listening socket |

use super::reading::{ListenSide, Reading};
use crate::spec::{
    endpoint::{HostPort, ListenAddr, Ports, Upstream},
    keys::{At, KeyName},
    plan::{Leg, Legs, Listen},
};

impl Reading<'_> {
    /// The ports to listen on, with their key.
    fn listening_ports(&self) -> Option<(KeyName, &Ports<ListenAddr>)> {
        let (key, at) = if self.datagram {
            (KeyName::UdpListen, &self.keys.udp_listen)
        } else {
            (KeyName::Listen, &self.keys.listen)
        };
        at.as_ref().filter(|_| self.side == ListenSide::Own).map(|at| (key, at.value()))
    }

    /// Ranges of ports that mean nothing together.
    pub(super) fn refuse_ranges(&mut self) {
        let keys = self.keys;
        let listens = self.listening_ports().map(|(key, ports)| (key, ports.count()));
        if let Some((key, _)) = listens.filter(|(_, count)| *count > 1 && keys.uds.is_some()) {
            let what = format!("{} has a range of ports, which cannot go through a UNIX socket", key.name());
            self.fault(key, what, "leave uds out, or write a forward for each port");
        }
        for (key, target) in [(KeyName::Target, &keys.target), (KeyName::UdpTarget, &keys.udp_target)] {
            let Some(target) = target.as_ref().map(At::value).filter(|target| target.is_range()) else { continue };
            let (name, count) = (key.name(), target.count());
            let first = self.pair(key, &target.first().to_string());
            match listens {
                None => {
                    let what = format!("{name} has {count} ports, and there is one listening socket");
                    self.fault(key, what, &format!("write one port, such as {first}"));
                }
                Some((_, ports)) if ports == count => {}
                Some((listen, ports)) => {
                    let what = format!("{name} has {count} ports, and {} has {ports}", listen.name());
                    self.fault(key, what, &format!("write the same number, or one port for all, such as {first}"));
                }
            }
        }
    }

    /// The legs for each port of a range, made from the leg of the first port.
    pub(super) fn spread(&self, leg: Leg) -> Legs {
        let Some((_, ports)) = self.listening_ports().filter(|(_, ports)| ports.is_range()) else {
            return Legs::One(leg);
        };
        let target = self.keys.udp_target.as_ref().or(self.keys.target.as_ref()).map(At::value);
        let mut targets = target.filter(|target| target.is_range()).into_iter().flat_map(Ports::each);
        let mut legs = ports.each().map(|addr| on_port(leg.clone(), addr, targets.next()));
        let first = legs.next().unwrap_or_else(|| leg.clone());
        Legs::Range { first, more: legs.collect() }
    }
}

/// The same leg from another address to another target.
fn on_port(mut leg: Leg, listen: ListenAddr, target: Option<HostPort>) -> Leg {
    if let Listen::Tcp { addr, .. } | Listen::Udp { addr, .. } = &mut leg.listen {
        *addr = listen;
    }
    if let (Upstream::Tcp { addr, .. } | Upstream::Udp { addr, .. }, Some(target)) = (&mut leg.upstream, target) {
        *addr = target;
    }
    leg
}
