//! The values in force of a forward: what was written, what `[defaults]` says, and what holds without a word.

use super::{
    config::{Config, ConfigEntry},
    endpoint::Upstream,
    fdname::Name,
    forward::forward,
    keys::{KeyName, Keys},
    options::START_RETRY,
    plan::{Legs, SocketKind},
    role::{ListenSide, mean},
};

/// What holds for options that nobody gave, as somebody would write it. (`idle_timeout`, `source`, `bind_device`,
/// `proxy_protocol`, `buffer_size`, `udp_responses`, `start_unit`, `stop_when_idle`, `allow_from` and `allow_uid` are off then.)
const BUILT_IN: &str = "mode=0600,dir_mode=0755,backlog=4096,connect_timeout=10,udp_idle_timeout=600,\
                        max_connections=1024,setup_timeout=300,max_setups=4,max_calls=32,drain_timeout=5,keepalive=true,on_remove=keep";

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// It was written: the file and line, the argument, or the name of a socket.
    Written(String),
    /// `[defaults]` has it: the file and line.
    Defaults(String),
    /// It is built in.
    BuiltIn,
}

/// A key with its value in force; one of a key that takes many comes several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveValue {
    /// The key.
    pub key: KeyName,
    /// The value, as it is written in a text.
    pub value: String,
    /// Where it comes from.
    pub origin: ValueOrigin,
}

impl Config {
    /// The values in force of an entry, in the order of keys.
    pub fn effective(&self, entry: &ConfigEntry) -> Vec<EffectiveValue> {
        let sides = [SocketKind::Tcp, SocketKind::Unix, SocketKind::Udp].map(ListenSide::Inherited);
        let means = |side: &ListenSide| mean(entry.keys(), *side, &self.defaults).is_ok();
        let side = [ListenSide::Own].into_iter().chain(sides).find(means).unwrap_or(ListenSide::Own);
        self.values(entry.keys(), side)
    }

    /// The values in force of a name beside a socket of that kind; those of its entry where it is a label.
    pub fn effective_name(&self, name: &Name, socket: SocketKind) -> Vec<EffectiveValue> {
        let side = ListenSide::Inherited(socket);
        match name {
            Name::Call { call, keys } => self.values(&keys.with_call(call), side),
            Name::List(keys) => self.values(keys, side),
            Name::Label(_) => name.entry(self).map_or_else(Vec::new, |entry| self.values(entry.keys(), side)),
        }
    }

    fn values(&self, keys: &Keys, side: ListenSide) -> Vec<EffectiveValue> {
        let built_in = forward(BUILT_IN).expect("the built-in values can be read");
        let (texts, defaults, rest) = (keys.texts(), self.defaults.keys.texts(), built_in.texts());
        let mut values = Vec::new();
        let mut put = |key: KeyName, texts: &[Vec<u8>], origin: ValueOrigin| {
            let values_of = texts.iter().map(|text| String::from_utf8_lossy(text).into_owned());
            values.extend(values_of.map(|value| EffectiveValue { key, value, origin: origin.clone() }));
        };
        for &key in KeyName::ALL {
            let of =
                |all: &[(KeyName, Vec<Vec<u8>>)]| all.iter().find(|(name, _)| *name == key).map(|(_, t)| t.clone());
            let place = |keys: &Keys| keys.given(key).map(|place| place.brief()).unwrap_or_default();
            if let Some(texts) = of(&texts) {
                put(key, &texts, ValueOrigin::Written(place(keys)));
            } else if let Some(texts) = of(&defaults).filter(|_| self.concerns(key, &self.defaults.keys, keys, side)) {
                put(key, &texts, ValueOrigin::Defaults(place(&self.defaults.keys)));
            } else if let Some(texts) = of(&rest).filter(|_| self.concerns(key, &built_in, keys, side)) {
                put(key, &texts, ValueOrigin::BuiltIn);
            }
        }
        if !values.iter().any(|value| value.key == KeyName::RetryTimeout) {
            if let Some(retry) = self.built_in_retry(keys, side, &values) {
                let at = values.iter().take_while(|value| value.key < retry.key).count();
                values.insert(at, retry);
            }
        }
        values
    }

    /// `retry_timeout` where nobody gave it: [`START_RETRY`] beside `start_unit`; else 0 for a TCP address, as
    /// `connect_timeout` for a UNIX socket. A pipeline, which dials both, has no single value then.
    fn built_in_retry(&self, keys: &Keys, side: ListenSide, values: &[EffectiveValue]) -> Option<EffectiveValue> {
        let key = KeyName::RetryTimeout;
        let built_in = |seconds: u64| EffectiveValue { key, value: seconds.to_string(), origin: ValueOrigin::BuiltIn };
        let forward = mean(keys, side, &self.defaults).ok()?;
        match &forward.legs.front().upstream {
            _ if forward.options.start_unit.is_some() => Some(built_in(START_RETRY.as_secs())),
            _ if matches!(forward.legs, Legs::Two { .. }) => None,
            Upstream::Tcp { .. } => Some(built_in(0)),
            Upstream::Unix(_) => {
                let dial = values.iter().find(|value| value.key == KeyName::ConnectTimeout)?;
                Some(EffectiveValue { key, ..dial.clone() })
            }
            _ => None,
        }
    }

    /// Whether an option has something to act on in a forward: whether the forward still means something with it.
    fn concerns(&self, key: KeyName, from: &Keys, keys: &Keys, side: ListenSide) -> bool {
        let mut with = keys.clone();
        with.take(key, from);
        mean(&with, side, &self.defaults).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Options, fdname};

    fn shown(values: &[EffectiveValue]) -> Vec<String> {
        let origin = |value: &EffectiveValue| match &value.origin {
            ValueOrigin::Written(place) => place.clone(),
            ValueOrigin::Defaults(place) => format!("[defaults] {place}"),
            ValueOrigin::BuiltIn => "built in".to_owned(),
        };
        values.iter().map(|value| format!("{} {} {}", value.key.name(), value.value, origin(value))).collect()
    }

    #[test]
    fn each_value_in_force_has_its_origin_and_what_does_nothing_is_left_out() {
        let file = "[defaults]\nconnect_timeout = 3\nudp_idle_timeout = 30\n\n[[forward]]\nlabel = \"ssh\"\n\
                    listen = \"127.0.0.1:1\"\ntarget = \"10.0.0.1:2\"\nallow_from = [\"10.0.0.0/8\", \"::1\"]\n";
        let (config, _) = Config::gather(Some(("x.toml", file)), ["label=ssh,max_connections=7"]).unwrap();
        assert_eq!(
            shown(&config.effective(&config.entries()[0])),
            [
                "label ssh --forward #1",
                "listen 127.0.0.1+1 x.toml:7",
                "target 10.0.0.1+2 x.toml:8",
                "backlog 4096 built in",
                "connect_timeout 3 [defaults] x.toml:2",
                "retry_timeout 0 built in",
                "max_connections 7 --forward #1",
                "drain_timeout 5 built in",
                "keepalive true built in",
                "on_remove keep built in",
                "allow_from 10.0.0.0/8 x.toml:9",
                "allow_from ::1 x.toml:9",
            ]
        );
        let name = fdname::parse("work qubes.ConnectTCP+22 max_setups=2").unwrap();
        let values = shown(&Config::default().effective_name(&name, SocketKind::Tcp));
        assert!(values[0].starts_with("qrexec work qubes.ConnectTCP+22"), "{values:?}");
        assert!(values.iter().any(|value| value.starts_with("max_setups 2 name")), "{values:?}");
        assert!(values.contains(&"setup_timeout 300 built in".to_owned()), "{values:?}");
        assert!(!values.iter().any(|value| value.starts_with("connect_timeout")), "{values:?}");
        assert!(!values.iter().any(|value| value.starts_with("retry_timeout")), "{values:?}");
        let name = fdname::parse("uds=/run/a.sock,connect_timeout=7").unwrap();
        let values = shown(&Config::default().effective_name(&name, SocketKind::Tcp));
        assert!(values.iter().any(|value| value.starts_with("retry_timeout 7 name")), "{values:?}");
        for (written, kind) in [
            ("uds=/run/a.sock,start_unit=a", SocketKind::Tcp),
            ("target=10.0.0.1+2,start_unit=a,stop_when_idle=600", SocketKind::Udp),
            ("uds=/run/a.sock,target=10.0.0.1+2,start_unit=a.target", SocketKind::Tcp),
        ] {
            let values = shown(&Config::default().effective_name(&fdname::parse(written).unwrap(), kind));
            assert!(values.contains(&"retry_timeout 120 built in".to_owned()), "{values:?}");
            assert!(values.iter().any(|value| value.starts_with("start_unit a.")), "{values:?}");
        }
    }

    #[test]
    fn what_is_called_built_in_is_what_holds_without_a_word() {
        for (written, kind) in
            [("target=10.0.0.1+2", SocketKind::Tcp), ("a b", SocketKind::Tcp), ("target=10.0.0.1+2", SocketKind::Udp)]
        {
            let plain = fdname::resolve(written, kind, &Config::default()).unwrap();
            assert_eq!(plain.options, Options::default());
            assert!(plain.options.retry_for(false).is_zero());
            let name = fdname::parse(written).unwrap();
            let values = Config::default().effective_name(&name, kind);
            let options = values.iter().filter(|value| value.origin == ValueOrigin::BuiltIn);
            let blank = if written == "a b" { " " } else { "," };
            let all = options
                .fold(written.to_owned(), |all, value| format!("{all}{blank}{}={}", value.key.name(), value.value));
            let mut resolved = fdname::resolve(&all, kind, &Config::default()).unwrap();
            if let Some(written) = resolved.options.max_calls.take() {
                assert_eq!(written, 32); // without a word the command line decides, which says 32
            }
            assert_eq!(resolved.options.retry_for(false), plain.options.retry_for(false), "{all}");
            resolved.options.retry_timeout = plain.options.retry_timeout;
            assert_eq!(resolved, plain, "{all}");
        }
    }
}
