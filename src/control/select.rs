//! Which listeners a word means: the same reading for every command and for the control socket.
//!
//! | word | listeners |
//! |---|---|
//! | `ssh` | all of the forward with this label, all of the socket unit with this short name |
//! | `qrexec-connect-ssh`, `qrexec-connect-ssh.socket` | all of this socket unit |
//! | `work qubes.ConnectTCP+22` | all with this `FileDescriptorName=` |
//! | `web:8003`, `dns/udp`, `dns:53/udp` | of those that the name means, those with this port, of this transport |
//! | `127.0.0.1:53`, `127.0.0.1+53`, `[::1]:53` | the one with this address; in the service's own namespace, if one is there |
//! | `127.0.0.1:53 in qdhcp-27a7` | the one with this address in this namespace |
//! | `/run/a.sock`, `@name` | the Unix socket with this path or abstract name |
//! | `53`, `:53` | those with this port |
//! | `53/udp`, `127.0.0.1:53/udp`, `127.0.0.1:53/udp in qdhcp-27a7` | of those, the ones of this transport: `tcp`, `udp` or `unix` |
//!
//! A word is read in every way at once. All listeners of one forward, one unit or one name are one meaning; two
//! listeners with one port are two. Who changes something acts on one meaning only ([`Selection::One`]) and shows the
//! list otherwise; who shows something shows all.

use std::net::SocketAddr;

use super::api;
use crate::{
    log::escape,
    spec::{PREFIXES, SocketKind},
};

/// Bytes of the listeners that a sentence names.
const NAMED: usize = 300;

/// What a word is compared with: everything that a listener is called.
#[derive(Clone, Copy, Debug, Default)]
pub struct KnownListener<'a> {
    /// The address as logs have it, with ` in NETNS` behind it where the listener is in a namespace.
    pub address: &'a str,
    /// Absent where it is no socket that could be served.
    pub transport: Option<SocketKind>,
    /// Label of the forward; may be empty.
    pub label: &'a str,
    /// `FileDescriptorName=`, escaped; may be empty.
    pub name: &'a str,
    /// Name of the socket unit; empty where it is not known.
    pub unit: &'a str,
}

impl<'a> From<&'a api::Listener> for KnownListener<'a> {
    fn from(listener: &'a api::Listener) -> Self {
        Self {
            address: &listener.address,
            transport: listener.kind,
            label: listener.label.as_deref().unwrap_or_default(),
            name: &listener.name,
            unit: listener.unit.as_deref().unwrap_or_default(),
        }
    }
}

/// What a word means among listeners, by their indices in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    Nothing,
    /// One listener, or all listeners of one forward, one unit or one name.
    One(Vec<usize>),
    /// Listeners that have nothing else in common.
    Several(Vec<usize>),
}

impl Selection {
    /// All listeners that the word may mean.
    pub fn all(&self) -> &[usize] {
        match self {
            Self::Nothing => &[],
            Self::One(all) | Self::Several(all) => all,
        }
    }
}

/// What several listeners may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning<'a> {
    Label(&'a str),
    Unit(&'a str),
    Name(&'a str),
    Place(usize),
}

/// A word without the parts that narrow it.
#[derive(Clone, Copy, Debug)]
struct Narrowed<'w> {
    rest: &'w str,
    transport: Option<SocketKind>,
    netns: Option<&'w str>,
}

/// The listeners that `word` means.
pub fn select(word: &str, listeners: &[KnownListener<'_>]) -> Selection {
    let narrowed = Narrowed::read(word);
    let mut hits: Vec<(usize, Meaning<'_>)> = Vec::new();
    for (index, listener) in listeners.iter().enumerate() {
        hits.extend(named(word, narrowed, (index, listener)).into_iter().map(|meaning| (index, meaning)));
    }
    hits.extend(placed(word, narrowed, listeners).into_iter().map(|index| (index, Meaning::Place(index))));
    let mut all: Vec<usize> = hits.iter().map(|(index, _)| *index).collect();
    all.sort_unstable();
    all.dedup();
    let covers = |meaning| all.iter().all(|index| hits.contains(&(*index, meaning)));
    match all[..] {
        [] => Selection::Nothing,
        [_] => Selection::One(all),
        _ if hits.iter().any(|(_, meaning)| covers(*meaning)) => Selection::One(all),
        _ => Selection::Several(all),
    }
}

/// How a listener is written so that the word means it alone, unless something else is called so.
pub fn spelling(listener: &KnownListener<'_>) -> String {
    let (place, netns) = split_netns(listener.address);
    let netns = netns.map(|netns| format!(" in {netns}")).unwrap_or_default();
    match listener.transport {
        Some(transport @ (SocketKind::Tcp | SocketKind::Udp)) => format!("{place}/{}{netns}", transport.word()),
        Some(SocketKind::Unix) | None => listener.address.to_owned(),
    }
}

/// A listener as a list shows it: its spelling, with its label or its unit.
pub fn listed(listener: &KnownListener<'_>) -> String {
    let called = match (listener.label, short_unit(listener.unit)) {
        ("", "") => String::new(),
        ("", unit) => format!(" ({unit})"),
        (label, _) => format!(" ({label})"),
    };
    spelling(listener) + &called
}

/// The sentence about a word that means none of these `listeners`, which are all that are `active`, or all that are
/// `known`: with the first of them. It is not escaped.
pub fn no_match(word: &str, standing: &str, listeners: &[KnownListener<'_>]) -> String {
    let what = if standing == "active" { "active listener" } else { "listener" };
    let mut text = format!("no {what} matches {word}; {standing}: ");
    let mut room = NAMED;
    let named: Vec<String> = listeners
        .iter()
        .map(listed)
        .take_while(|name| {
            let fits = name.len() <= room;
            room = room.saturating_sub(name.len());
            fits
        })
        .collect();
    text += &named.join(", ");
    text += &match listeners.len() - named.len() {
        0 if named.is_empty() => "none".to_owned(),
        0 => String::new(),
        n => format!(", and {n} more (`status` lists all)"),
    };
    text
}

/// A unit's name without `.socket` and without the prefix of our units.
pub fn short_unit(unit: &str) -> &str {
    let stem = unit.strip_suffix(".socket").unwrap_or(unit);
    PREFIXES.iter().find_map(|prefix| stem.strip_prefix(prefix)).filter(|short| !short.is_empty()).unwrap_or(stem)
}

impl<'w> Narrowed<'w> {
    fn read(word: &'w str) -> Self {
        let (rest, netns) = split_netns(word);
        let narrowed = rest.rsplit_once('/').and_then(|(rest, transport)| {
            let transport = SocketKind::from_word(transport)?;
            Some((rest, Some(transport))).filter(|(rest, _)| !rest.is_empty())
        });
        let (rest, transport) = narrowed.unwrap_or((rest, None));
        Self { rest, transport, netns }
    }

    fn takes(&self, listener: &KnownListener<'_>) -> bool {
        self.transport.is_none_or(|transport| listener.transport == Some(transport))
    }
}

/// What `word` means as a name of `listener`, which has this index.
fn named<'a>(word: &str, narrowed: Narrowed<'_>, (index, listener): (usize, &KnownListener<'a>)) -> Vec<Meaning<'a>> {
    let whole = called(word, listener);
    if !whole.is_empty() || narrowed.netns.is_some() || !narrowed.takes(listener) {
        return whole;
    }
    let narrower = called(narrowed.rest, listener);
    let Some((name, port)) = narrowed.rest.rsplit_once([':', '+']).filter(|_| narrower.is_empty()) else {
        return narrower;
    };
    let has = parsed(listener).is_some_and(|(at, _)| Some(at.port()) == port_number(port));
    // With a port the word picks single listeners, which the name does not join again.
    if has && !called(name, listener).is_empty() { vec![Meaning::Place(index)] } else { Vec::new() }
}

/// The names of `listener` that are `word`.
fn called<'a>(word: &str, listener: &KnownListener<'a>) -> Vec<Meaning<'a>> {
    let KnownListener { label, name, unit, .. } = *listener;
    let escaped = escape(word.as_bytes());
    let is = |own: &str| !own.is_empty() && (own == word || own == escaped);
    let mut meanings = Vec::new();
    if is(label) {
        meanings.push(Meaning::Label(label));
    }
    let stem = unit.strip_suffix(".socket").unwrap_or(unit);
    if is(unit) || is(stem) || is(short_unit(unit)) {
        meanings.push(Meaning::Unit(unit));
    }
    if is(name) {
        // A unit has one name; two units with one name are two meanings.
        meanings.push(if unit.is_empty() { Meaning::Name(name) } else { Meaning::Unit(unit) });
    }
    meanings
}

/// The listeners whose address or port `word` is.
fn placed(word: &str, narrowed: Narrowed<'_>, listeners: &[KnownListener<'_>]) -> Vec<usize> {
    let those = |which: &dyn Fn(&KnownListener<'_>) -> bool| -> Vec<usize> {
        listeners.iter().enumerate().filter(|(_, listener)| which(listener)).map(|(index, _)| index).collect()
    };
    let unix = escape(word.as_bytes());
    let exact = |listener: &KnownListener<'_>| listener.address == word || listener.address == unix;
    if let Some(addr) = socket_addr(narrowed.rest) {
        let at = |netns: Option<&str>| {
            those(&|listener| narrowed.takes(listener) && parsed(listener) == Some((addr, netns)))
        };
        let here = at(narrowed.netns);
        if !here.is_empty() || narrowed.netns.is_some() {
            return here;
        }
        return those(&|listener| narrowed.takes(listener) && parsed(listener).is_some_and(|(at, _)| at == addr));
    }
    if let Some(port) = port_number(narrowed.rest.strip_prefix(':').unwrap_or(narrowed.rest)) {
        let has = |listener: &KnownListener<'_>| {
            parsed(listener).is_some_and(|(at, netns)| {
                at.port() == port && narrowed.netns.is_none_or(|wanted| netns == Some(wanted))
            })
        };
        return those(&|listener| exact(listener) || (narrowed.takes(listener) && has(listener)));
    }
    those(&exact)
}

/// The address of a listener that has one, and its namespace.
fn parsed<'a>(listener: &KnownListener<'a>) -> Option<(SocketAddr, Option<&'a str>)> {
    let (place, netns) = split_netns(listener.address);
    Some((place.parse().ok()?, netns))
}

/// `ADDRESS in NETNS`. A path and an abstract name hold what they like.
fn split_netns(text: &str) -> (&str, Option<&str>) {
    match text.split_once(" in ") {
        Some((place, netns)) if !text.starts_with(['/', '@']) => (place, Some(netns)),
        _ => (text, None),
    }
}

/// An address with its port behind `:` or `+`.
fn socket_addr(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| {
        let (host, port) = text.rsplit_once('+')?;
        format!("{host}:{port}").parse().ok()
    })
}

fn port_number(text: &str) -> Option<u16> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(address: &'static str) -> KnownListener<'static> {
        KnownListener { address, transport: Some(SocketKind::Tcp), ..KnownListener::default() }
    }

    fn udp(address: &'static str) -> KnownListener<'static> {
        KnownListener { transport: Some(SocketKind::Udp), ..tcp(address) }
    }

    #[test]
    fn a_word_means_a_label_a_unit_a_name_an_address_or_a_port() {
        let dns = "qrexec-connect-dns.socket";
        let listeners = [
            KnownListener { unit: dns, name: "dns", ..tcp("127.0.0.1:53") },
            KnownListener { unit: dns, name: "dns", ..udp("127.0.0.1:53") },
            KnownListener { label: "web", ..tcp("0.0.0.0:8001") },
            KnownListener { label: "web", ..tcp("0.0.0.0:8002") },
            tcp("127.0.0.1:53 in qdhcp-27a7"),
            KnownListener { transport: Some(SocketKind::Unix), label: "run", ..tcp("/run/udp") },
            KnownListener { transport: Some(SocketKind::Unix), ..tcp("@name") },
            KnownListener { name: "work qubes.ConnectTCP+22", ..tcp("[::1]:2222") },
            KnownListener { name: "work qubes.ConnectTCP+22", unit: "pfwd-b.socket", ..tcp("127.0.0.1:2222") },
            KnownListener { label: "8002", ..tcp("127.0.0.1:9000 in /proc/7/ns/net") },
            KnownListener { transport: None, name: "fifo", ..tcp("fifo") },
        ];
        use Selection::{Nothing, One, Several};
        for (word, meant) in [
            ("dns", One(vec![0, 1])),
            ("qrexec-connect-dns.socket", One(vec![0, 1])),
            ("qrexec-connect-dns", One(vec![0, 1])),
            ("dns/udp", One(vec![1])),
            ("dns:53", Several(vec![0, 1])),
            ("dns:53/tcp", One(vec![0])),
            ("dns:54", Nothing),
            ("53", Several(vec![0, 1, 4])),
            (":53", Several(vec![0, 1, 4])),
            ("53/udp", One(vec![1])),
            ("53 in qdhcp-27a7", One(vec![4])),
            ("53/udp in qdhcp-27a7", Nothing),
            ("127.0.0.1:53", Several(vec![0, 1])),
            ("127.0.0.1+53/udp", One(vec![1])),
            ("127.0.0.1:53 in qdhcp-27a7", One(vec![4])),
            ("127.0.0.1:53/tcp in qdhcp-27a7", One(vec![4])),
            ("127.0.0.1:9000", One(vec![9])), // nothing of ours is there
            ("127.0.0.1:9000 in /proc/7/ns/net", One(vec![9])),
            ("web", One(vec![2, 3])),
            ("web:8002", One(vec![3])),
            ("web/tcp", One(vec![2, 3])),
            ("web/udp", Nothing),
            ("8002", Several(vec![3, 9])), // one is called so, another has the port
            ("8002/tcp", Several(vec![3, 9])),
            ("/run/udp", One(vec![5])),
            ("run", One(vec![5])),
            ("run/unix", One(vec![5])),
            ("@name", One(vec![6])),
            ("work qubes.ConnectTCP+22", Several(vec![7, 8])),
            ("b", One(vec![8])),
            ("[::1]:2222", One(vec![7])),
            ("2222", Several(vec![7, 8])),
            ("fifo", One(vec![10])),
            ("nobody", Nothing),
            ("", Nothing),
            ("/udp", Nothing),
            (":", Nothing),
            ("70000", Nothing),
        ] {
            assert_eq!(select(word, &listeners), meant, "{word}");
        }
        assert_eq!(listed(&listeners[1]), "127.0.0.1:53/udp (dns)");
        assert_eq!(listed(&listeners[4]), "127.0.0.1:53/tcp in qdhcp-27a7");
    }

    #[test]
    fn a_label_means_all_ports_of_its_range_and_what_means_another_forward_too_is_several() {
        let web = |address| KnownListener { label: "web", ..tcp(address) };
        let mut listeners =
            vec![web("127.0.0.1:8000"), web("127.0.0.1:8001"), web("127.0.0.1:8002"), tcp("[::1]:8001")];
        use Selection::{Nothing, One, Several};
        for (word, meant) in [
            ("web", One(vec![0, 1, 2])),
            ("web:8001", One(vec![1])),
            ("web+8001", One(vec![1])),
            ("web:8001/tcp", One(vec![1])),
            ("web:8003", Nothing),
            ("web:8000-8001", Nothing),
            ("8001", Several(vec![1, 3])),
            ("127.0.0.1:8001", One(vec![1])),
        ] {
            assert_eq!(select(word, &listeners), meant, "{word}");
        }
        listeners.push(KnownListener { unit: "pfwd-web.socket", ..tcp("127.0.0.1:9000") });
        assert_eq!(select("web", &listeners), Several(vec![0, 1, 2, 4]), "a forward and a unit");
        assert_eq!(select("pfwd-web", &listeners), One(vec![4]));
        assert_eq!(select("web:8001", &listeners), One(vec![1]));
    }

    fn listener() -> impl Strategy<Value = (String, SocketKind, String, String, String)> {
        let inet = ("127\\.0\\.0\\.[12]", 1_u16..4, "( in [ab])?")
            .prop_map(|(host, port, netns)| format!("{host}:{port}{netns}"));
        let kind = prop_oneof![Just(SocketKind::Tcp), Just(SocketKind::Udp)];
        let inet = (inet, kind);
        let unix = "[/@][a-c/]{1,4}".prop_map(|address| (address, SocketKind::Unix));
        let unit = "(qrexec-connect-[xy]\\.socket)?";
        (prop_oneof![4 => inet, 1 => unix], "[pq]?", "[nm]?", unit).prop_map(|((a, kind), l, n, u)| (a, kind, l, n, u))
    }

    proptest! {
        #[test]
        fn every_listener_can_be_picked_and_a_name_means_all_that_it_names(
            mut all in prop::collection::vec(listener(), 0..8), word in "[pnxa/:+@ 1-3.tcpudin]{0,12}",
        ) {
            all.sort_by(|a, b| (&a.0, a.1.word()).cmp(&(&b.0, b.1.word())));
            all.dedup_by(|a, b| (&a.0, a.1) == (&b.0, b.1));
            let known: Vec<KnownListener<'_>> = all
                .iter()
                .map(|(address, kind, label, name, unit)| KnownListener { address, transport: Some(*kind), label, name, unit })
                .collect();
            for (index, listener) in known.iter().enumerate() {
                prop_assert_eq!(select(&spelling(listener), &known), Selection::One(vec![index]));
                if !listener.label.is_empty() {
                    let named: Vec<_> = (0..known.len()).filter(|i| known[*i].label == listener.label).collect();
                    prop_assert_eq!(select(listener.label, &known), Selection::One(named));
                }
            }
            let meant = select(&word, &known);
            prop_assert!(meant.all().is_sorted_by(|a, b| a < b));
            prop_assert_eq!(meant == Selection::Nothing, meant.all().is_empty());
            prop_assert!(!matches!(&meant, Selection::Several(all) if all.len() < 2));
        }
    }
}
