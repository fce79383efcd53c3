//! The keys of a forward: one typed set, whoever wrote it.
//!
//! A name, a `--forward` argument and a `[[forward]]` of a TOML file hold the same keys with the same values. Each
//! value keeps its place, so that a key which turns out to be wrong only beside the others (or beside the socket) is
//! still cited where it stands. Places are no part of the meaning: two sets are equal when their values are.
//!
//! What a set of keys *means* is decided in `role`, not here.

use std::{net::IpAddr, ops::Range, sync::Arc};

use super::{
    call::Call,
    endpoint::{HostPort, ListenAddr, Netns, Ports, UnixAddr, local_forward},
    error::{Flaw, Origin, Place, Source, SpecFault},
    nearest::nearest,
    text::{Word, escaped, quoted},
    value::{
        Account, Backlog, BufferSize, Count, Device, FileMode, Idle, Keepalive, Label, Many, NetnsName, NetnsPath,
        Network, OnRemove, Owner, Pause, ProxyProtocol, Raw, Responses, StartUnit, StopWhenIdle, Timeout, Value,
    },
};

/// A value, and where it and its key were written.
#[derive(Clone, Debug)]
pub struct At<T> {
    value: T,
    key: Place,
    place: Place,
}

impl<T> At<T> {
    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Place of the value.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Place of the key.
    pub fn key(&self) -> &Place {
        &self.key
    }
}

impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

macro_rules! keys {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $key:ident, $example:literal, $beside:ident;)*) => {
        /// The name of a key.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum KeyName {
            $($(#[$doc])* $key,)*
        }

        impl KeyName {
            /// All keys, in the order in which they are written.
            pub const ALL: &'static [Self] = &[$(Self::$key),*];

            /// The key as it is written.
            pub fn name(self) -> &'static str {
                match self { $(Self::$key => stringify!($field),)* }
            }

            /// The key with a value, as a line of TOML: the example of the manual.
            pub fn example(self) -> &'static str {
                match self { $(Self::$key => concat!(stringify!($field), " = ", $example),)* }
            }

            /// Lines of TOML that make a forward together with the example.
            pub fn beside_example(self) -> &'static str {
                match self { $(Self::$key => $beside,)* }
            }

            /// Whether it may be given several times, or an array in TOML.
            pub(super) fn many(self) -> bool {
                match self { $(Self::$key => <$type as Value>::MANY,)* }
            }
        }

        /// The keys that one forward was given, each with its place. See DESIGN's table of keys and roles.
        #[derive(Clone, Debug)]
        pub struct Keys {
            /// What faults of the set as a whole cite: the text of a name, the header of a `[[forward]]`.
            pub(super) whole: Place,
            /// Some keys could not be read. Missing keys are not reported then.
            pub(super) incomplete: bool,
            $($(#[$doc])* pub $field: Option<At<$type>>,)*
        }

        impl PartialEq for Keys {
            fn eq(&self, other: &Self) -> bool {
                $(self.$field == other.$field)&&*
            }
        }

        impl Keys {
            /// No keys; faults of the set as a whole cite `whole`.
            pub(super) fn none(whole: Place) -> Self {
                Self { whole, incomplete: false, $($field: None,)* }
            }

            /// Where a key was given, if it was.
            pub fn given(&self, key: KeyName) -> Option<&Place> {
                match key { $(KeyName::$key => self.$field.as_ref().map(At::key),)* }
            }

            /// Reads a value of `key`; a second one of a key that takes only one is a flaw.
            fn put(&mut self, key: KeyName, raw: Raw<'_>, at: Place, place: Place) -> Result<(), Flaw> {
                match key { $(KeyName::$key => put(&mut self.$field, raw, at, place),)* }
            }

            /// Replaces the values that `over` gives.
            pub(super) fn replace(&mut self, over: &Self) {
                $(if over.$field.is_some() { self.$field.clone_from(&over.$field); })*
            }

            /// Takes one value from other keys, in the place of its own.
            pub(super) fn take(&mut self, key: KeyName, from: &Self) {
                match key { $(KeyName::$key => self.$field.clone_from(&from.$field),)* }
            }

            /// The texts that each given key reads back.
            pub fn texts(&self) -> Vec<(KeyName, Vec<Vec<u8>>)> {
                let mut texts = Vec::new();
                $(texts.extend(self.$field.as_ref().map(|at| (KeyName::$key, at.value.texts())));)*
                texts
            }
        }
    };
}

const LISTEN: &str = "listen = \"127.0.0.1:2222\"\n";
const TARGET: &str = "target = \"192.168.31.201:22\"\n";
const TCP: &str = "listen = \"127.0.0.1:2222\"\ntarget = \"192.168.31.201:22\"\n";
const UNIT: &str = "listen = \"127.0.0.1:2222\"\ntarget = \"192.168.31.201:22\"\nstart_unit = \"localai\"\n";
const SERVED: &str = "uds = \"/run/pfwd/ssh.sock\"\ntarget = \"192.168.31.201:22\"\n";
const CALL: &str = "listen = \"127.0.0.1:2222\"\nqrexec = \"work qubes.ConnectTCP+22\"\n";
const UDP_LISTEN: &str = "udp_listen = \"127.0.0.1:5353\"\n";
const UDP_TARGET: &str = "udp_target = \"192.168.31.1:53\"\n";
const UDP: &str = "udp_listen = \"127.0.0.1:5353\"\nudp_target = \"192.168.31.1:53\"\n";

// Of each key: its type, its name, the value of its example, and the lines of TOML beside that example.
keys! {
    /// What the log calls it, and what a socket's name says to have it.
    label: Label = Label, "\"ssh\"", TCP;
    /// A call into another qube: where streams go.
    qrexec: Call = Qrexec, "\"work qubes.ConnectTCP+22\"", LISTEN;
    /// The TCP address to accept on, or one for each port of a range; port 0 lets the kernel choose.
    listen: Ports<ListenAddr> = Listen, "\"127.0.0.1:2222\"", TARGET;
    /// The UDP address to receive on, or one for each port of a range; port 0 lets the kernel choose.
    udp_listen: Ports<ListenAddr> = UdpListen, "\"127.0.0.1:5353\"", UDP_TARGET;
    /// The network namespace to listen in; the service's own without it.
    listen_namespace: Netns = ListenNamespace, "\"qdhcp-27a7\"", TCP;
    /// The UNIX socket between host and namespace: dialled without `target`, served with it.
    uds: UnixAddr = Uds, "\"/run/pfwd/ssh.sock\"", TARGET;
    /// The network namespace to dial from, by name.
    namespace: NetnsName = Namespace, "\"qdhcp-27a7\"", TCP;
    /// The network namespace to dial from, by path.
    setns_path: NetnsPath = SetnsPath, "\"/run/netns/qdhcp-27a7\"", TCP;
    /// The TCP address where streams go, or one for each port of a range (or, beside an inherited datagram socket,
    /// datagrams).
    target: Ports<HostPort> = Target, "\"192.168.31.201:22\"", LISTEN;
    /// The UDP address where datagrams go, or one for each port of a range.
    udp_target: Ports<HostPort> = UdpTarget, "\"192.168.31.1:53\"", UDP_LISTEN;
    /// Mode of the served UNIX socket.
    mode: FileMode = Mode, "\"0660\"", SERVED;
    /// Owner of the served UNIX socket.
    owner: Owner = Owner, "\"root:adm\"", SERVED;
    /// Mode of directories made for the served UNIX socket.
    dir_mode: FileMode = DirMode, "\"0750\"", SERVED;
    /// Owner of directories made for the served UNIX socket.
    dir_owner: Owner = DirOwner, "\"root:adm\"", SERVED;
    /// Length of the queue of sockets that we listen on.
    backlog: Backlog = Backlog, "128", TCP;
    /// How long a dial of the upstream may take.
    connect_timeout: Timeout = ConnectTimeout, "5", TCP;
    /// How long a dial is retried while the upstream is not there.
    retry_timeout: Pause = RetryTimeout, "30", TCP;
    /// The unit to start when a client comes and the unit is not active.
    start_unit: StartUnit = StartUnit, "\"localai.service\"", TCP;
    /// How long that unit runs on after the last session of all listeners that name it.
    stop_when_idle: StopWhenIdle = StopWhenIdle, "\"10min\"", UNIT;
    /// After how long without bytes a session ends.
    idle_timeout: Idle = IdleTimeout, "\"1h\"", TCP;
    /// After how long without datagrams a flow ends.
    udp_idle_timeout: Timeout = UdpIdleTimeout, "60", UDP;
    /// The answers that are expected for each datagram; a flow ends when all have come.
    udp_responses: Responses = UdpResponses, "1", UDP;
    /// Sessions (for UDP: flows) at once.
    max_connections: Count = MaxConnections, "64", TCP;
    /// How long the set-up of a qrexec call may take.
    setup_timeout: Timeout = SetupTimeout, "\"2min\"", CALL;
    /// Concurrent set-ups of qrexec calls per target and service.
    max_setups: Count = MaxSetups, "2", CALL;
    /// Calls into one qube at once; where its listeners differ, the smallest number holds.
    max_calls: Count = MaxCalls, "16", CALL;
    /// How long sessions get at a stop.
    drain_timeout: Pause = DrainTimeout, "30", TCP;
    /// TCP keepalive.
    keepalive: Keepalive = Keepalive, "\"120/30/4\"", TCP;
    /// What becomes of sessions when their listener goes away.
    on_remove: OnRemove = OnRemove, "\"drain\"", TCP;
    /// A PROXY header for the upstream.
    proxy_protocol: ProxyProtocol = ProxyProtocol, "\"v2\"", TCP;
    /// The networks that peers may come from; may be given several times.
    allow_from: Many<Network> = AllowFrom, "\"10.0.0.0/8\"", TCP;
    /// The users who may connect over UNIX sockets; may be given several times.
    allow_uid: Many<Account> = AllowUid, "1000", SERVED;
    /// The address to dial from.
    source: IpAddr = Source, "\"192.0.2.10\"", TCP;
    /// The interface to dial through.
    bind_device: Device = BindDevice, "\"eth1\"", TCP;
    /// Bytes that a session moves at once.
    buffer_size: BufferSize = BufferSize, "\"64K\"", TCP;
}

/// Words that people use for a key of another name.
const SYNONYMS: [(&str, KeyName); 26] = [
    ("upstream", KeyName::Target),
    ("dest", KeyName::Target),
    ("destination", KeyName::Target),
    ("connect", KeyName::Target),
    ("to", KeyName::Target),
    ("bind", KeyName::Listen),
    ("address", KeyName::Listen),
    ("tcp", KeyName::Listen),
    ("udp", KeyName::UdpListen),
    ("unix", KeyName::Uds),
    ("socket", KeyName::Uds),
    ("path", KeyName::Uds),
    ("netns", KeyName::Namespace),
    ("ns", KeyName::Namespace),
    ("user", KeyName::Owner),
    ("group", KeyName::Owner),
    ("permissions", KeyName::Mode),
    ("service", KeyName::Qrexec),
    ("call", KeyName::Qrexec),
    ("name", KeyName::Label),
    ("interface", KeyName::BindDevice),
    ("timeout", KeyName::ConnectTimeout),
    ("retry", KeyName::RetryTimeout),
    ("start", KeyName::StartUnit),
    ("unit", KeyName::StartUnit),
    ("stop_after", KeyName::StopWhenIdle),
];

impl KeyName {
    /// The key of this name. Times may be written with `_secs`.
    pub fn named(name: &str) -> Option<Self> {
        let exact = |name: &str| Self::ALL.iter().copied().find(|key| key.name() == name);
        exact(name).or_else(|| exact(name.strip_suffix("_secs")?).filter(|key| key.is_time()))
    }

    /// Whether its value is a time, plain numbers of which are seconds.
    fn is_time(self) -> bool {
        self.name().ends_with("_timeout") || self == Self::StopWhenIdle
    }

    /// Whether it says how to forward rather than what: such a key can stand in `[defaults]`.
    pub(super) fn is_option(self) -> bool {
        use KeyName::*;
        let place = [Label, Qrexec, Listen, UdpListen, ListenNamespace, Uds, Namespace, SetnsPath, Target, UdpTarget];
        !place.contains(&self) && self != StartUnit
    }
}

/// The fault of a key that does not exist, at `place`; `others` are names that exist there besides the keys.
pub(super) fn unknown(name: &str, place: &Place, others: &[&'static str]) -> SpecFault {
    let fault = SpecFault::at(place, format!("unknown key \"{name}\""));
    let synonym = SYNONYMS.iter().find(|(word, _)| *word == name).map(|(_, key)| key.name());
    let names = KeyName::ALL.iter().map(|key| key.name()).chain(others.iter().copied());
    let meant = || {
        let (_, key) =
            SYNONYMS.iter().find(|(word, _)| Some(*word) == nearest(name, SYNONYMS.map(|(word, _)| word)))?;
        Some(key.name())
    };
    match synonym.or_else(|| nearest(name, names)).or_else(meant) {
        Some(meant) => fault.hint(format!("did you mean \"{meant}\"?")),
        None => fault,
    }
}

fn put<T: Value>(slot: &mut Option<At<T>>, raw: Raw<'_>, key: Place, place: Place) -> Result<(), Flaw> {
    let value = T::read(raw)?;
    match slot {
        None => *slot = Some(At { value, key, place }),
        Some(at) => at.value.add(value),
    }
    Ok(())
}

impl Keys {
    /// Reads a value of a key and notes what is wrong with it. `fix` words the hint for a value that would be right.
    pub(super) fn read(&mut self, item: Item<'_>, faults: &mut Vec<SpecFault>) {
        let name = item.key.name();
        let source = &item.name.source;
        if let Some(first) = self.given(item.key).filter(|_| !item.key.many()) {
            let fault = SpecFault::at(&item.name, format!("the key \"{name}\" is given twice"));
            faults.push(fault.hint(format!("the first one is {}", first.written_as())));
            return;
        }
        let place = Place::new(source, (item.place)(None));
        if let Err(flaw) = self.put(item.key, item.raw, item.name.clone(), place) {
            self.incomplete |= !item.key.is_option();
            let at = Place::new(source, (item.place)(Some(&flaw.at)));
            let fault = SpecFault::at(&at, format!("{name}: {}", flaw.what));
            faults.push(match (flaw.fix_for(&source.origin), flaw.note_for(&source.origin)) {
                (Some(fix), _) => fault.hint((item.fix)(&fix)),
                (None, Some(note)) => fault.hint(note),
                (None, None) => fault,
            });
        }
    }

    /// The same keys with a call, which stands where the keys do.
    pub(super) fn with_call(&self, call: &Call) -> Self {
        let qrexec = Some(At { value: call.clone(), key: self.whole.clone(), place: self.whole.clone() });
        Self { qrexec, ..self.clone() }
    }

    /// Whether a forward leads on from its `uds`, and so serves it.
    pub(super) fn leads_on(&self) -> bool {
        self.target.is_some() || self.qrexec.is_some()
    }

    /// Whether none is given.
    pub fn is_empty(&self) -> bool {
        self.texts().is_empty()
    }

    /// The `key=value` items that read back as these keys, written so that systemd takes them in a name.
    pub(super) fn items(&self) -> Vec<String> {
        let texts = self.texts().into_iter();
        texts
            .flat_map(|(key, texts)| texts.into_iter().map(move |t| format!("{}={}", key.name(), escaped(&t))))
            .collect()
    }
}

impl Place {
    /// What stands at this place, for messages.
    fn written_as(&self) -> String {
        let text = self.source.text.get(self.span.clone()).unwrap_or_default();
        match &self.source.origin {
            Origin::File(_) => format!("at {}", self.brief()),
            _ => {
                let rest = self.source.text.get(self.span.start..).unwrap_or_default();
                let item = rest.split([',', ' ']).next().unwrap_or(text);
                format!("{item}, column {}", SpecFault::at(self, "").column())
            }
        }
    }
}

/// One value of a key, as its source has it, and how its source is cited.
pub(super) struct Item<'a> {
    pub(super) key: KeyName,
    pub(super) raw: Raw<'a>,
    /// Place of the key.
    pub(super) name: Place,
    /// Where bytes of the value (or all of it) were written.
    pub(super) place: &'a dyn Fn(Option<&Range<usize>>) -> Range<usize>,
    /// The hint for a value that would be right.
    pub(super) fix: &'a dyn Fn(&str) -> String,
}

/// What to write for an argument that has the form of `ssh -L`, or that is a port alone.
fn as_pairs(source: &Source, text: &str) -> Option<String> {
    if text != source.text || !matches!(source.origin, Origin::Forward(_)) {
        return None;
    }
    let port = || text.parse::<u16>().ok().filter(|port| *port > 0);
    local_forward(text)
        .map(|(local, target)| format!("write: --forward listen={local},target={target}"))
        .or_else(|| Some(format!("such as --forward listen=127.0.0.1:{},target=HOST:PORT", port()?)))
}

/// Reads `key=value` items between commas, as a name and an argument hold them, into `keys`.
pub(super) fn read_list(source: &Arc<Source>, list: &Word, keys: &mut Keys, faults: &mut Vec<SpecFault>) {
    for item in list.split(b',') {
        let item = item.trimmed();
        let place = Place::new(source, item.span.clone());
        if item.bytes.is_empty() {
            let what = "there is nothing between two commas, or beside one";
            faults.push(SpecFault::at(&place, what).hint("leave the comma out, or write \\x2c for one that is data"));
            continue;
        }
        let Some((name, value)) = item.split_once(b'=') else {
            keys.incomplete = true;
            let fault = SpecFault::at(&place, format!("\"{}\" is not key=value", item.lossy()));
            let usual = || "items are key=value; a comma that is data is written \\x2c, a blank \\x20".to_owned();
            faults.push(fault.hint(as_pairs(source, &item.lossy()).unwrap_or_else(usual)));
            continue;
        };
        let (name, value) = (name.trimmed(), value.trimmed());
        let name_place = Place::new(source, name.span.clone());
        let Some(key) = KeyName::named(&name.lossy()) else {
            keys.incomplete = true;
            faults.push(unknown(&name.lossy(), &name_place, &[]));
            continue;
        };
        let bytes = value.value();
        let locate = |at: Option<&Range<usize>>| at.map_or(value.span.clone(), |at| value.place(at));
        let fix = |fix: &str| {
            let (before, after) = (&source.text[..value.span.start], &source.text[value.span.end..]);
            format!("write: {before}{}{after}", quoted(fix, &source.origin))
        };
        let raw = Raw::Text(&bytes);
        keys.read(Item { key, raw, name: name_place, place: &locate, fix: &fix }, faults);
    }
}
