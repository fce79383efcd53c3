//! Forwards as socket units: what `pfwd` would listen on, systemd can listen on for it.

use super::name::rejected;
use crate::spec::{
    config::Config,
    endpoint::{Netns, Upstream, plus},
    fdname,
    keys::{KeyName, Keys},
    plan::{Forward, Leg, Legs, Listen, SocketKind, UnixRights},
    role::{ListenSide, mean},
    text::escaped,
};

/// The text of a socket unit, and the name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketUnit {
    /// Such as `pfwd-ssh.socket`.
    pub name: String,
    /// Every line of the unit file.
    pub text: String,
}

/// Keys that the settings of a socket unit stand for.
const SETTINGS: [KeyName; 9] = [
    KeyName::Label,
    KeyName::Listen,
    KeyName::UdpListen,
    KeyName::ListenNamespace,
    KeyName::Mode,
    KeyName::Owner,
    KeyName::DirMode,
    KeyName::DirOwner,
    KeyName::Backlog,
];

/// Keys that say where a leg leads.
const TARGETS: [KeyName; 2] = [KeyName::Target, KeyName::UdpTarget];

impl Config {
    /// Socket units with this prefix that do what the forwards with a listening side of their own do: one for each leg.
    /// What `[defaults]` says is written into their names; entries that mean nothing are left out.
    pub fn socket_units(&self, prefix: &str) -> Vec<SocketUnit> {
        let mut units: Vec<SocketUnit> = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let entry = &entry.keys;
            let Ok(forward) = mean(entry, ListenSide::Own, &self.defaults) else { continue };
            let stem = stem(&forward, index);
            let defaults = self.defaults.keys.items();
            match &forward.legs {
                Legs::One(leg) => units.push(unit(prefix, &stem, entry, leg, &defaults, &[KeyName::Uds])),
                Legs::Range { .. } => units.extend(forward.legs.iter().map(|leg| {
                    let stem = leg.listen.port().map_or_else(|| stem.clone(), |port| format!("{stem}-{port}"));
                    unit(prefix, &stem, entry, leg, &defaults, &[KeyName::Uds])
                })),
                Legs::Two { front, back } => {
                    let beyond =
                        [KeyName::Target, KeyName::Qrexec, KeyName::Namespace, KeyName::SetnsPath, KeyName::AllowUid];
                    let more = [KeyName::Source, KeyName::BindDevice, KeyName::StartUnit, KeyName::StopWhenIdle];
                    let beyond = [&beyond[..], &more].concat();
                    units.push(unit(prefix, &stem, entry, front, &defaults, &beyond));
                    let before = [KeyName::Uds, KeyName::AllowFrom, KeyName::ProxyProtocol];
                    units.push(unit(prefix, &format!("{stem}-endpoint"), entry, back, &defaults, &before));
                }
            }
        }
        for index in 1..units.len() {
            let (before, rest) = units.split_at_mut(index);
            // A label such as `web-8000` beside a range with the label `web`.
            while let Some(unit) = rest.first_mut().filter(|unit| before.iter().any(|other| other.name == unit.name)) {
                unit.name = format!("{}-more.socket", unit.name.trim_end_matches(".socket"));
            }
        }
        units
    }
}

/// What a unit of a forward is called.
fn stem(forward: &Forward, index: usize) -> String {
    let plain = |label: &&str| label.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    let label = forward.label.as_ref().map(|label| label.as_str()).filter(plain);
    label.map_or_else(|| format!("{}", index + 1), ToOwned::to_owned)
}

/// The unit of one leg; `without` are the keys of the forward that the other one has, or that this leg listens on.
fn unit(prefix: &str, stem: &str, entry: &Keys, leg: &Leg, defaults: &[String], without: &[KeyName]) -> SocketUnit {
    // A host proxy dials the UNIX socket; an endpoint listens on it.
    let dials = matches!(leg.upstream, Upstream::Unix(_));
    let left_out = |item: &str| {
        let name = item.split('=').next().unwrap_or_default();
        let listed = |keys: &[KeyName]| keys.iter().any(|key| key.name() == name);
        listed(&SETTINGS) || (listed(without) && !(dials && name == KeyName::Uds.name()))
    };
    let mut items: Vec<String> = entry.items().into_iter().filter(|item| !left_out(item)).collect();
    if dials {
        // Absolute, whatever `uds_dir` said.
        items.retain(|item| !item.starts_with("uds="));
        if let Upstream::Unix(addr) = &leg.upstream {
            items.insert(0, format!("uds={}", escaped(&addr.bytes())));
        }
    }
    if let Upstream::Tcp { addr, .. } | Upstream::Udp { addr, .. } = &leg.upstream {
        // The one port of this leg, where the forward has a range of them.
        for item in &mut items {
            if let Some((key, _)) =
                item.split_once('=').filter(|(key, _)| TARGETS.iter().any(|name| name.name() == *key))
            {
                *item = format!("{key}={}", escaped(plus(addr).as_bytes()));
            }
        }
    }
    let kind = match &leg.listen {
        Listen::Udp { .. } => SocketKind::Udp,
        Listen::Unix { .. } => SocketKind::Unix,
        Listen::Tcp { .. } | Listen::Inherited => SocketKind::Tcp,
    };
    let reads = |items: &[String]| fdname::resolve(&items.join(","), kind, &Config::default()).is_ok();
    for item in defaults {
        let name = item.split('=').next().unwrap_or_default();
        let given = items.iter().any(|own| own.split('=').next() == Some(name));
        // As a default it is not for UNIX sockets that are dialled; in a name it would be.
        let for_targets = name == KeyName::ProxyProtocol.name() && leg.via.proxy_protocol.is_none();
        if !given && !for_targets && !left_out(item) {
            items.push(item.clone());
            if !reads(&items) {
                items.pop(); // it does not concern this leg
            }
        }
    }
    let name = items.join(",");
    let mut text = String::from("[Socket]\n") + &listening(&leg.listen);
    let faults = rejected(&name);
    if !faults.0.is_empty() || !reads(&items) {
        text += "# systemd would not take this as a name: give the forward a label in /etc/pfwd.toml, without its listening\n\
                 # side, and name that here.\n# ";
    }
    text += &format!("FileDescriptorName={name}\n");
    SocketUnit { name: format!("{prefix}{stem}.socket"), text }
}

/// The settings for a listening side.
fn listening(listen: &Listen) -> String {
    let namespace = |netns: &Option<Netns>| match netns {
        Some(Netns::Name(name)) => format!("NetworkNamespacePath=/run/netns/{name}\n"),
        Some(Netns::Path(path)) => format!("NetworkNamespacePath={}\n", path.display()),
        None => String::new(),
    };
    match listen {
        Listen::Inherited => String::new(),
        Listen::Tcp { addr, netns, backlog } => {
            format!("ListenStream={}\n{}Backlog={backlog}\n", addr.in_unit(), namespace(netns))
        }
        Listen::Udp { addr, netns } => format!("ListenDatagram={}\n{}", addr.in_unit(), namespace(netns)),
        Listen::Unix { addr, rights, backlog } => {
            format!("ListenStream={addr}\n{}Backlog={backlog}\n", self::rights(rights))
        }
    }
}

fn rights(rights: &UnixRights) -> String {
    let owner = rights.owner.as_ref();
    let user = owner.and_then(|owner| owner.user()).map(|user| format!("SocketUser={user}\n"));
    let group = owner.and_then(|owner| owner.group()).map(|group| format!("SocketGroup={group}\n"));
    let (user, group) = (user.unwrap_or_default(), group.unwrap_or_default());
    format!("SocketMode={}\n{user}{group}DirectoryMode={}\n", rights.mode, rights.dir_mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[defaults]
mode = "0660"
owner = "root:adm"
uds_dir = "/run/qdhcp"
udp_idle_timeout = 30
connect_timeout = 3
proxy_protocol = "v2"

[[forward]]
label = "end"
uds = "ssh.sock"
namespace = "a"
target = "10.0.0.5:22"

[[forward]]
label = "web"
listen = "127.0.0.1:80"
listen_namespace = "b"
uds = "web.sock"
target = "[fd00::1]:80"
allow_from = ["127.0.0.0/8", "::1"]
allow_uid = 0

[[forward]]
udp_listen = "0.0.0.0:53"
udp_target = "10.0.0.5:53"
setns_path = "/run/netns/c"

[[forward]]
label = "proxy"
listen = "[::1]:81"
uds = "ssh.sock"
max_connections = 7
"#;

    #[test]
    fn each_leg_becomes_a_unit_that_means_the_same() {
        let config = Config::gather(Some(("pfwd.toml", FILE)), [""; 0]).unwrap().0;
        let units = config.socket_units("pfwd-");
        let names: Vec<_> = units.iter().map(|unit| unit.name.as_str()).collect();
        assert_eq!(names, ["end", "web", "web-endpoint", "3", "proxy"].map(|stem| format!("pfwd-{stem}.socket")));
        assert_eq!(
            units[0].text,
            "[Socket]\nListenStream=/run/qdhcp/ssh.sock\nSocketMode=0660\nSocketUser=root\nSocketGroup=adm\n\
             DirectoryMode=0755\nBacklog=4096\nFileDescriptorName=namespace=a,target=10.0.0.5+22,connect_timeout=3,proxy_protocol=v2\n"
        );
        assert!(units[1].text.contains("NetworkNamespacePath=/run/netns/b\n"), "{}", units[1].text);
        let plan = config.plan();
        let legs = plan.forwards.iter().flat_map(|forward| forward.legs.iter().map(move |leg| (leg, &forward.options)));
        let legs: Vec<_> = legs.collect();
        assert_eq!(legs.len(), units.len());
        for (unit, (leg, options)) in units.iter().zip(legs) {
            let kind = match &leg.listen {
                Listen::Udp { .. } => SocketKind::Udp,
                Listen::Unix { .. } => SocketKind::Unix,
                _ => SocketKind::Tcp,
            };
            let name = unit.text.lines().find_map(|line| line.strip_prefix("FileDescriptorName=")).expect(&unit.text);
            let forward = fdname::resolve(name, kind, &Config::default()).expect(name);
            let front = forward.legs.front();
            let mut via = leg.via.clone();
            if unit.name.ends_with("-endpoint.socket") {
                via.proxy_protocol = None; // the unit of the front leg sends it, and this one cannot tell who comes
            }
            assert_eq!((&front.upstream, &front.admit, &front.via), (&leg.upstream, &leg.admit, &via), "{name}");
            let mut options = options.clone();
            if kind != SocketKind::Udp {
                options.udp_idle_timeout = forward.options.udp_idle_timeout; // it concerns nothing here
            }
            assert_eq!(forward.options, options, "{name}");
        }
    }

    #[test]
    fn a_range_of_ports_becomes_a_unit_for_each_port() {
        let forwards = [
            "label=web,listen=127.0.0.1:8000-8002,target=[fd00::1]:9000-9002,max_connections=7",
            "udp_listen=[::1]:53-54,udp_target=10.0.0.5:53",
            "label=web-8001,listen=127.0.0.1:80,target=10.0.0.5:80",
        ];
        let units = Config::gather(None, forwards).unwrap().0.socket_units("pfwd-");
        let shown: Vec<_> = units.iter().map(|unit| (unit.name.as_str(), unit.text.as_str())).collect();
        assert_eq!(shown.len(), 6);
        assert_eq!((shown[1].0, shown[5].0), ("pfwd-web-8001.socket", "pfwd-web-8001-more.socket"));
        assert_eq!(
            shown[2],
            (
                "pfwd-web-8002.socket",
                "[Socket]\nListenStream=127.0.0.1:8002\nBacklog=4096\n\
                 FileDescriptorName=target=[fd00\\x3a\\x3a1]+9002,max_connections=7\n"
            )
        );
        assert_eq!(
            shown[4],
            ("pfwd-2-54.socket", "[Socket]\nListenDatagram=[::1]:54\nFileDescriptorName=udp_target=10.0.0.5+53\n")
        );
    }

    #[test]
    fn a_name_that_systemd_would_not_take_is_commented_out() {
        let long = format!("listen=127.0.0.1:1,uds=/{},allow_from=10.0.0.0/8", "x".repeat(100));
        let more = (0..20).map(|n| format!(",allow_from=10.{n}.0.0/16")).collect::<String>();
        let config = Config::gather(None, [long + &more]).unwrap().0;
        let units = config.socket_units("pfwd-");
        assert!(units[0].text.contains("\n# FileDescriptorName="), "{}", units[0].text);
    }
}
