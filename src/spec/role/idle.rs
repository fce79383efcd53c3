//! Keys that were given and have nothing to act on: a limit that limits nothing is believed to protect.

use super::reading::{ListenSide, Reading};
use crate::spec::{
    endpoint::{UnixAddr, Upstream},
    keys::KeyName,
    plan::{Legs, Listen},
};

impl Reading<'_> {
    /// Keys that have nothing to act on in these legs.
    pub(super) fn refuse_idle_keys(&mut self, legs: &Legs) {
        for &key in KeyName::ALL {
            // What is wrong beside an inherited socket has been said.
            let said = matches!(self.side, ListenSide::Inherited(_))
                && matches!(key, KeyName::Mode | KeyName::Owner | KeyName::Backlog);
            if self.keys.given(key).is_none() || said {
                continue;
            }
            if let Some((why, hint)) = self.idle_because(key, legs) {
                self.fault(key, format!("{} does nothing here: {why}", key.name()), hint);
            }
        }
        let source = self.keys.source.as_ref();
        let lost = source.filter(|_| legs.iter().all(|leg| leg.via.source.is_none()) && self.dials_ip(legs));
        if let Some(source) = lost {
            let what = format!("source {} and the target are of different families", source.value());
            self.fault(KeyName::Source, what, "both IPv4, or both IPv6");
        }
    }

    fn dials_ip(&self, legs: &Legs) -> bool {
        legs.iter().any(|leg| matches!(leg.upstream, Upstream::Tcp { .. } | Upstream::Udp { .. }))
    }

    /// Why a key has nothing to act on, and what to do; `None` when it has.
    fn idle_because(&self, key: KeyName, legs: &Legs) -> Option<(&'static str, &'static str)> {
        let served = legs.iter().find_map(|leg| match &leg.listen {
            Listen::Unix { addr, .. } => Some(addr),
            _ => None,
        });
        let dials_uds = legs.iter().any(|leg| matches!(leg.upstream, Upstream::Unix(_)));
        let calls = legs.iter().any(|leg| matches!(leg.upstream, Upstream::Qrexec(_)));
        let only_calls = legs.iter().all(|leg| matches!(leg.upstream, Upstream::Qrexec(_)));
        let (ip, unix) = legs
            .iter()
            .map(|leg| self.families(&leg.listen))
            .fold((false, false), |(ip, unix), leg| (ip || leg.0, unix || leg.1));
        let leave = "leave it out";
        match key {
            KeyName::Mode | KeyName::Owner | KeyName::DirMode | KeyName::DirOwner => match served {
                Some(UnixAddr::Path(_)) => None,
                Some(UnixAddr::Abstract(_)) => {
                    Some(("an abstract socket is no file", "allow_uid says who may connect"))
                }
                None if dials_uds => Some(("the forward connects to this UNIX socket, and its server decides", leave)),
                None => Some(("no UNIX socket is served", leave)),
            },
            KeyName::Backlog if self.datagram => Some(("datagrams do not wait to be accepted", leave)),
            KeyName::ConnectTimeout if only_calls => {
                Some(("a qrexec call is not connected", "setup_timeout is its limit"))
            }
            KeyName::RetryTimeout if only_calls => {
                Some(("a qrexec call is not connected", "setup_timeout is its limit"))
            }
            KeyName::StartUnit if calls => {
                Some(("a qrexec call leads to another qube, and a unit of this system is not what answers it", leave))
            }
            KeyName::StopWhenIdle if self.keys.start_unit.is_none() => {
                Some(("it stops a unit that this forward has started", "start_unit=NAME.service names that unit"))
            }
            KeyName::RetryTimeout if self.datagram && self.keys.start_unit.is_none() => {
                Some(("datagrams are sent without a connection", leave))
            }
            KeyName::SetupTimeout | KeyName::MaxSetups if !calls => {
                Some(("no qrexec call is made", "connect_timeout limits a dial"))
            }
            KeyName::MaxCalls if !calls => Some(("no qrexec call is made", "max_connections limits sessions")),
            KeyName::IdleTimeout if self.datagram => {
                Some(("datagrams have flows, not sessions", "write: udp_idle_timeout"))
            }
            KeyName::UdpIdleTimeout if !self.datagram => {
                Some(("streams have sessions, not flows", "write: idle_timeout"))
            }
            KeyName::UdpResponses if !self.datagram => {
                Some(("a stream has an end, and needs no count", "it is for forwards with udp_target"))
            }
            KeyName::Keepalive | KeyName::ProxyProtocol | KeyName::BufferSize if self.datagram => {
                Some(("it is for streams", leave))
            }
            KeyName::AllowFrom if !ip => {
                Some(("peers of a UNIX socket have no address", "allow_uid says who may connect"))
            }
            KeyName::AllowUid if !unix => {
                Some(("peers over IP have no user", "allow_from has the networks of allowed clients"))
            }
            KeyName::Source | KeyName::BindDevice if !self.dials_ip(legs) => Some(("no IP address is dialled", leave)),
            _ => None,
        }
    }
}
