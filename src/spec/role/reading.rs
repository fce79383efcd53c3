//! From keys to legs: what excludes what, what is missing, which default holds.

use std::path::PathBuf;

use crate::spec::{
    endpoint::{Host, HostPort, Netns, UnixAddr, Upstream, needs_zone},
    error::{Place, SpecFault, pair},
    keys::{At, KeyName, Keys},
    options::{Admit, DEFAULT_BACKLOG, Options, Via},
    plan::{Leg, Legs, Listen, SocketKind, UnixRights},
    value::{Idle, ProxyProtocol},
};

/// Whose the listening side is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spec) enum ListenSide {
    /// Ours to bind.
    Own,
    /// A socket of this kind, which systemd made.
    Inherited(SocketKind),
}

/// What `[defaults]` says for all forwards.
#[derive(Clone, Debug)]
pub(in crate::spec) struct Defaults {
    pub(in crate::spec) keys: Keys,
    pub(in crate::spec) uds_dir: Option<PathBuf>,
}

impl Defaults {
    /// No defaults; `whole` is never cited.
    pub(in crate::spec) fn none(whole: Place) -> Self {
        Self { keys: Keys::none(whole), uds_dir: None }
    }
}

/// A set of keys that is being read.
pub(super) struct Reading<'a> {
    pub(super) keys: &'a Keys,
    pub(super) side: ListenSide,
    pub(super) defaults: &'a Defaults,
    pub(super) datagram: bool,
    /// A fault says already that a target is missing.
    pub(super) needs_target: bool,
    pub(super) faults: Vec<SpecFault>,
}

/// The value of a key: the forward's own, else the default.
macro_rules! pick {
    ($reading:expr, $field:ident) => {
        $reading.keys.$field.as_ref().or($reading.defaults.keys.$field.as_ref()).map(At::value)
    };
}

impl Reading<'_> {
    pub(super) fn fault(&mut self, key: KeyName, what: impl Into<String>, hint: &str) {
        let place = self.keys.given(key).unwrap_or(&self.keys.whole);
        let fault = SpecFault::at(place, what);
        self.faults.push(if hint.is_empty() { fault } else { fault.hint(hint) });
    }

    fn missing(&mut self, what: &str, hint: &str) {
        let fault = SpecFault::at(&self.keys.whole, what);
        self.faults.push(fault.hint(hint));
    }

    /// A key with a value, as whoever wrote these keys would write it.
    pub(super) fn pair(&self, key: KeyName, value: &str) -> String {
        pair(key.name(), value, &self.keys.whole.source.origin)
    }

    /// An inherited socket *is* the listening side: what would make another beside it is refused.
    pub(super) fn refuse_listening_keys(&mut self) {
        let ListenSide::Inherited(_) = self.side else { return };
        for (key, instead) in [
            (KeyName::Listen, "ListenStream= of the socket unit says where"),
            (KeyName::UdpListen, "ListenDatagram= of the socket unit says where"),
            (KeyName::ListenNamespace, "NetworkNamespacePath= of the socket unit says where"),
            (KeyName::Mode, "SocketMode= of the socket unit sets it"),
            (KeyName::Owner, "SocketUser= and SocketGroup= of the socket unit set it"),
            (KeyName::Backlog, "Backlog= of the socket unit sets it"),
        ] {
            if self.keys.given(key).is_some() {
                let what = format!("{} beside an inherited socket, which is the listening side already", key.name());
                self.fault(key, what, instead);
            }
        }
    }

    /// Keys that exclude each other, whatever else is there.
    pub(super) fn refuse_contradictions(&mut self) {
        let keys = self.keys;
        let origin = &keys.whole.source.origin;
        let given = |key| keys.given(key).is_some();
        if given(KeyName::Namespace) && given(KeyName::SetnsPath) {
            self.fault(KeyName::SetnsPath, "namespace and setns_path both name the namespace to dial from", "keep one");
        }
        if given(KeyName::StartUnit) && pick!(self, retry_timeout).is_some_and(|pause| pause.0.is_zero()) {
            let what = "retry_timeout is 0, and a client has to wait for the start of start_unit";
            let hint = format!("leave it out, or give the start time: {}", self.pair(KeyName::RetryTimeout, "120"));
            self.fault(KeyName::RetryTimeout, what, &hint);
        }
        if given(KeyName::Qrexec) && given(KeyName::Target) {
            self.fault(KeyName::Qrexec, "qrexec and target both say where connections go", "keep one");
        }
        for key in [KeyName::Namespace, KeyName::SetnsPath] {
            if given(key) && !given(KeyName::Target) && !given(KeyName::UdpTarget) {
                let name = key.name();
                if given(KeyName::Qrexec) {
                    let what = format!("{name} beside a qrexec call, which dom0 connects and no namespace sees");
                    self.fault(key, what, "leave it out");
                } else {
                    let target = if self.datagram && self.side == ListenSide::Own { "udp_target" } else { "target" };
                    let what = format!("{name} needs a {target}: the address to dial inside it");
                    self.fault(key, what, &format!("such as {}", pair(target, "192.168.31.201:22", origin)));
                    self.needs_target = true;
                }
            }
        }
        if given(KeyName::Namespace) || given(KeyName::SetnsPath) {
            for (key, target) in [(KeyName::Target, &keys.target), (KeyName::UdpTarget, &keys.udp_target)] {
                let name = target.as_ref().and_then(|target| match &target.value().first().host {
                    Host::Name(name) => Some(name),
                    Host::Ip(_) | Host::LinkLocal(..) => None,
                });
                if let Some(name) = name {
                    let what = format!(
                        "{name}: host names are not resolved inside a namespace, where other DNS servers may apply"
                    );
                    let example = pair(key.name(), "192.168.31.201:22", origin);
                    self.fault(key, what, &format!("use an IP address: {example}"));
                }
            }
        }
        if self.side == ListenSide::Own
            && given(KeyName::ListenNamespace)
            && !given(KeyName::Listen)
            && !given(KeyName::UdpListen)
        {
            self.fault(
                KeyName::ListenNamespace,
                "listen_namespace needs listen or udp_listen",
                "the address inside it",
            );
        }
        if self.datagram {
            self.refuse_streams();
        } else if given(KeyName::UdpTarget) {
            match self.side {
                ListenSide::Inherited(kind) => {
                    let what = format!("udp_target beside a {kind} stream socket, which carries no datagrams");
                    self.fault(KeyName::UdpTarget, what, "target for streams, or ListenDatagram= in the socket unit");
                }
                ListenSide::Own => {
                    let what = "udp_target takes datagrams, and this forward accepts streams";
                    self.fault(
                        KeyName::UdpTarget,
                        what,
                        "target for streams, or udp_listen; for both write two forwards",
                    );
                }
            }
        }
    }

    /// Keys of streams beside datagrams.
    fn refuse_streams(&mut self) {
        let keys = self.keys;
        let given = |key| keys.given(key).is_some();
        if self.side == ListenSide::Own && given(KeyName::Listen) {
            self.fault(
                KeyName::Listen,
                "listen accepts streams, and this forward takes datagrams",
                "write two forwards",
            );
        }
        if given(KeyName::Uds) {
            self.fault(KeyName::Uds, "datagrams do not go through a UNIX socket", "leave uds out");
        }
        if given(KeyName::Qrexec) {
            self.fault(
                KeyName::Qrexec,
                "a qrexec call carries streams, not datagrams",
                "udp_target says where they go",
            );
        }
        if given(KeyName::Target) && given(KeyName::UdpTarget) {
            self.fault(KeyName::Target, "target and udp_target both say where datagrams go", "keep udp_target");
        } else if given(KeyName::Target) && self.side == ListenSide::Own {
            self.fault(
                KeyName::Target,
                "udp_listen goes with udp_target, and target takes streams",
                "write: udp_target",
            );
        }
    }

    fn netns(&self) -> Option<Netns> {
        let name = self.keys.namespace.as_ref().map(|name| name.value().0.clone());
        name.or_else(|| self.keys.setns_path.as_ref().map(|path| path.value().0.clone()))
    }

    /// Where streams or datagrams go in the end.
    fn destination(&self) -> Option<Upstream> {
        let netns = self.netns();
        let (target, udp_target) = (self.keys.target.as_ref(), self.keys.udp_target.as_ref());
        if self.datagram {
            let addr = udp_target.or(target)?.value().first().clone();
            return Some(Upstream::Udp { addr, netns });
        }
        if let Some(call) = &self.keys.qrexec {
            return Some(Upstream::Qrexec(call.value().clone()));
        }
        // An udp_target here is a fault already; what else is wrong can be told as if it were the target.
        let addr = target.or(udp_target)?.value().first().clone();
        Some(Upstream::Tcp { addr, netns })
    }

    fn listening(&self) -> Option<Listen> {
        if let ListenSide::Inherited(_) = self.side {
            return Some(Listen::Inherited);
        }
        let netns = self.keys.listen_namespace.as_ref().map(|netns| netns.value().clone());
        if self.datagram {
            let addr = self.keys.udp_listen.as_ref()?.value().first().clone();
            return Some(Listen::Udp { addr, netns });
        }
        let addr = self.keys.listen.as_ref()?.value().first().clone();
        Some(Listen::Tcp { addr, netns, backlog: self.backlog() })
    }

    fn backlog(&self) -> std::num::NonZeroU32 {
        pick!(self, backlog).map_or(DEFAULT_BACKLOG, |backlog| backlog.0)
    }

    /// The UNIX socket, absolute.
    fn uds(&mut self) -> Option<UnixAddr> {
        let at = self.keys.uds.as_ref().filter(|_| !self.datagram)?;
        let absolute = at.value().under(self.defaults.uds_dir.as_deref());
        Some(absolute.unwrap_or_else(|what| {
            let hint = "write the absolute path, or set uds_dir in [defaults] of the configuration";
            self.faults.push(SpecFault::at(at.place(), what).hint(hint));
            at.value().clone()
        }))
    }

    fn served(&self, addr: UnixAddr) -> Listen {
        let rights = UnixRights::default();
        let rights = UnixRights {
            mode: pick!(self, mode).copied().unwrap_or(rights.mode),
            owner: pick!(self, owner).cloned(),
            dir_mode: pick!(self, dir_mode).copied().unwrap_or(rights.dir_mode),
            dir_owner: pick!(self, dir_owner).cloned(),
        };
        Listen::Unix { addr, rights, backlog: self.backlog() }
    }

    /// The legs, or faults that say what is missing for any.
    pub(super) fn legs(&mut self) -> Option<Legs> {
        let (listen, uds, destination) = (self.listening(), self.uds(), self.destination());
        let legs = match (listen, uds, destination) {
            (Some(listen), None, Some(to)) => self.single(Leg::new(listen, to)),
            (Some(listen), Some(uds), None) => self.single(Leg::new(listen, Upstream::Unix(uds))),
            (None, Some(uds), Some(to)) => self.single(Leg::new(self.served(uds), to)),
            (Some(listen), Some(uds), Some(to)) => {
                let mut back = Leg::new(self.served(uds.clone()), to);
                let mut front = Leg::new(listen, Upstream::Unix(uds));
                self.furnish(&mut front);
                self.furnish(&mut back);
                // Each for those who come in there; what the front leg brings has its header already.
                front.via.proxy_protocol = self.proxy_protocol();
                back.via.proxy_protocol = self.proxy_protocol();
                Legs::Two { front, back }
            }
            (listen, uds, destination) => {
                self.say_what_is_missing(listen.is_some(), uds.is_some(), destination.is_some());
                return None;
            }
        };
        self.refuse_lost_link_local();
        Some(legs)
    }

    fn proxy_protocol(&self) -> Option<ProxyProtocol> {
        pick!(self, proxy_protocol).copied().filter(|_| !self.datagram)
    }

    /// The legs of a forward without a UNIX socket on the way.
    fn single(&self, mut leg: Leg) -> Legs {
        self.furnish(&mut leg);
        // As a default it is meant for targets: a host proxy's endpoint, which has the same default, would send its own
        // header before that of the proxy.
        let unix = matches!(leg.upstream, Upstream::Unix(_));
        leg.via.proxy_protocol = self.proxy_protocol().filter(|_| !unix || self.keys.proxy_protocol.is_some());
        self.spread(leg)
    }

    /// A link-local target without its interface, which the kernel refuses at each dial (EINVAL).
    fn refuse_lost_link_local(&mut self) {
        if pick!(self, bind_device).is_some() {
            return; // it says the interface
        }
        for (key, target) in [(KeyName::Target, &self.keys.target), (KeyName::UdpTarget, &self.keys.udp_target)] {
            let first = target.as_ref().map(|target| target.value().first());
            let Some(HostPort { host: Host::Ip(ip), port }) = first else { continue };
            if needs_zone(*ip) {
                let what = format!("{ip} is a link-local address, and needs its interface");
                let example = self.pair(key, &format!("[{ip}%eth0]:{port}"));
                self.fault(key, what, &format!("such as {example}, or name the interface with bind_device"));
            }
        }
    }

    fn say_what_is_missing(&mut self, listens: bool, uds: bool, goes: bool) {
        let inherited = matches!(self.side, ListenSide::Inherited(_));
        let (listen, udp_listen) =
            (self.pair(KeyName::Listen, "ADDRESS:PORT"), self.pair(KeyName::UdpListen, "ADDRESS:PORT"));
        let (target, udp_target) =
            (self.pair(KeyName::Target, "HOST:PORT"), self.pair(KeyName::UdpTarget, "HOST:PORT"));
        let uds = (uds, self.pair(KeyName::Uds, "PATH"));
        match (listens, uds, goes) {
            _ if self.needs_target => {}
            (true, _, false) if self.datagram && !inherited => {
                self.missing("nothing says where datagrams go", &format!("{udp_target} is missing"));
            }
            (true, _, false) if self.datagram => {
                self.missing("nothing says where datagrams go", &format!("{target} is missing"));
            }
            (true, (_, uds), _) => {
                let call = self.pair(KeyName::Qrexec, "QUBE SERVICE");
                let hint = format!("one of {uds}, {target} and {call} is missing");
                self.missing("nothing says where connections go", &hint);
            }
            (false, (true, _), _) => self.missing(
                "uds alone has no client and no target",
                &format!("{listen} to dial it, or {target} to serve it, is missing"),
            ),
            (false, (false, _), true) if self.datagram => {
                self.missing("nothing says where datagrams come in", &format!("{udp_listen} is missing"));
            }
            (false, (false, uds), true) => self.missing(
                "nothing says where connections come in",
                &format!("one of {listen} and {uds} is missing, or a label for a socket unit to name"),
            ),
            (false, (false, uds), false) => self.missing(
                "the forward has no listening side and no target",
                &format!("{listen} or {uds}, and {target}, are missing"),
            ),
        }
    }

    /// Gives a leg who may connect and how it dials, as far as that concerns it.
    fn furnish(&self, leg: &mut Leg) {
        let (ip, unix) = self.families(&leg.listen);
        let from = pick!(self, allow_from).filter(|_| ip).map(|many| many.as_slice().to_vec());
        let uids = pick!(self, allow_uid).filter(|_| unix).map(|many| many.as_slice().to_vec());
        leg.admit = Admit { from: from.unwrap_or_default(), uids: uids.unwrap_or_default() };
        if let Upstream::Tcp { addr, .. } | Upstream::Udp { addr, .. } = &leg.upstream {
            let fits = |source: &std::net::IpAddr| match addr.host {
                Host::Ip(ip) => ip.is_ipv4() == source.is_ipv4(),
                Host::LinkLocal(..) => source.is_ipv6(),
                Host::Name(_) => true,
            };
            let source = pick!(self, source).copied().filter(|source| fits(source));
            leg.via = Via { source, device: pick!(self, bind_device).cloned(), proxy_protocol: None };
        }
    }

    /// Whether peers of a listening side have an IP address, and whether they have a user.
    pub(super) fn families(&self, listen: &Listen) -> (bool, bool) {
        match listen {
            Listen::Tcp { .. } | Listen::Udp { .. } => (true, false),
            Listen::Unix { .. } => (false, true),
            Listen::Inherited => match self.side {
                ListenSide::Inherited(kind) => (kind != SocketKind::Unix, kind == SocketKind::Unix),
                ListenSide::Own => (false, false),
            },
        }
    }

    pub(super) fn options(&self) -> Options {
        let default = Options::default();
        Options {
            max_connections: pick!(self, max_connections).map_or(default.max_connections, |count| count.0.get()),
            connect_timeout: pick!(self, connect_timeout).map_or(default.connect_timeout, |timeout| timeout.0),
            retry_timeout: pick!(self, retry_timeout).map(|pause| pause.0),
            start_unit: self.keys.start_unit.as_ref().map(|unit| unit.value().clone()),
            stop_when_idle: pick!(self, stop_when_idle).filter(|_| self.keys.start_unit.is_some()).map(|time| time.0),
            setup_timeout: pick!(self, setup_timeout).map_or(default.setup_timeout, |timeout| timeout.0),
            max_setups: pick!(self, max_setups).map_or(default.max_setups, |count| count.0.get()),
            max_calls: pick!(self, max_calls).map(|count| count.0.get()).or(default.max_calls),
            idle_timeout: pick!(self, idle_timeout).map_or(default.idle_timeout, |Idle(timeout)| *timeout),
            udp_idle_timeout: pick!(self, udp_idle_timeout).map_or(default.udp_idle_timeout, |timeout| timeout.0),
            udp_responses: pick!(self, udp_responses).map(|responses| responses.0).or(default.udp_responses),
            drain_timeout: pick!(self, drain_timeout).map_or(default.drain_timeout, |pause| pause.0),
            keepalive: pick!(self, keepalive).copied().unwrap_or(default.keepalive),
            on_remove: pick!(self, on_remove).copied().unwrap_or(default.on_remove),
            buffer_size: pick!(self, buffer_size).map(|size| size.0).or(default.buffer_size),
        }
    }
}
