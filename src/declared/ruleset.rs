//! Rules of the firewall as `nft -j` writes and reads them (libnftables-json(5)). Pure.
//!
//! Qubes OS drops what comes in, but for what the chain `custom-input` of the tables `ip qubes` and `ip6 qubes` accepts
//! (qubes-core-agent-linux, network/qubes-ipv4.nft, since R4.2). Qubes leaves this chain to its user. A rule there with
//! the comment `qrexec-connect-PORT` is ours; all others are not looked at.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde_json::{Value, json};

use crate::spec::{Network, declared::DeclaredForward};

/// The chain of the user.
const CHAIN: &str = "custom-input";
/// The table that it is in.
const TABLE: &str = "qubes";
/// What the comments of our rules begin with; the port follows.
const COMMENT: &str = "qrexec-connect-";
/// The group of interfaces that lead to qubes behind this one (qubes-core-agent-linux, network/vif-route-qubes).
const DOWNSTREAM: u32 = 2;

/// The families that have tables of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A rule that accepts connections to one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortRule {
    family: Family,
    port: u16,
    /// The one address that is listened on.
    to: Option<IpAddr>,
    /// No network twice, and none inside another; empty: from everywhere.
    from: Vec<(IpAddr, u8)>,
}

impl PortRule {
    /// The rules that a forward needs: none where it listens on a loopback address.
    pub(super) fn of(forward: &DeclaredForward) -> Vec<Self> {
        let listen: SocketAddr = forward.listen();
        let ip = listen.ip();
        let families: &[Family] = match ip {
            _ if ip.is_loopback() => &[],
            // Such a socket takes IPv4, too.
            IpAddr::V6(v6) if v6.is_unspecified() => &Family::ALL,
            IpAddr::V6(_) => &[Family::V6],
            IpAddr::V4(_) => &[Family::V4],
        };
        let to = Some(ip).filter(|ip| !ip.is_unspecified());
        let rule = |family: &Family| {
            let own = forward.from().iter().map(Network::prefix).filter(|(ip, _)| Family::of(*ip) == *family);
            let own: Vec<_> = own.collect();
            // Networks of the other family alone: nobody of this one is let in.
            let nobody = own.is_empty() && !forward.from().is_empty();
            let from = if own.iter().any(|(_, bits)| *bits == 0) { Vec::new() } else { outermost(own) };
            (!nobody).then_some(Self { family: *family, port: listen.port(), to, from })
        };
        families.iter().filter_map(rule).collect()
    }

    /// What is compared: `nft` gives it back as it got it, a set in another order.
    fn expression(&self) -> Value {
        let field = |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
        let equal = |left: Value, right: Value| json!({"match": {"op": "==", "left": left, "right": right}});
        let ip = self.family.name();
        let network = |(address, bits): &(IpAddr, u8)| {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            match *bits == whole {
                true => json!(address.to_string()),
                false => json!({"prefix": {"addr": address.to_string(), "len": bits}}),
            }
        };
        let from: Vec<Value> = self.from.iter().map(network).collect();
        let from = match &from[..] {
            [] => None,
            [one] => Some(one.clone()),
            _ => Some(json!({"set": from})),
        };
        let uplink = json!({"match": {"op": "!=", "left": {"meta": {"key": "iifgroup"}}, "right": DOWNSTREAM}});
        let mut all = vec![uplink];
        all.extend(from.map(|from| equal(field(ip, "saddr"), from)));
        all.extend(self.to.map(|to| equal(field(ip, "daddr"), json!(to.to_string()))));
        all.push(equal(field("tcp", "dport"), json!(self.port)));
        all.push(json!({"accept": null}));
        Value::Array(all)
    }

    /// The command that adds it by hand.
    pub(super) fn by_hand(&self) -> String {
        let ip = self.family.name();
        let network = |(address, bits): &(IpAddr, u8)| format!("{address}/{bits}");
        let from: Vec<String> = self.from.iter().map(network).collect();
        let from = if from.is_empty() { String::new() } else { format!("{ip} saddr {{ {} }} ", from.join(", ")) };
        let to = self.to.map(|to| format!("{ip} daddr {to} ")).unwrap_or_default();
        format!("nft add rule {ip} {TABLE} {CHAIN} 'iifgroup != {DOWNSTREAM} {from}{to}tcp dport {} accept'", self.port)
    }

    fn add(&self) -> Value {
        let comment = format!("{COMMENT}{}", self.port);
        let place = place(self.family);
        json!({"add": {"rule": {
            "family": place[0], "table": place[1], "chain": place[2], "comment": comment, "expr": self.expression(),
        }}})
    }
}

fn place(family: Family) -> [&'static str; 3] {
    [family.name(), TABLE, CHAIN]
}

/// The networks that are in no other one, in an order.
fn outermost(mut networks: Vec<(IpAddr, u8)>) -> Vec<(IpAddr, u8)> {
    networks.sort_by_key(|(address, bits)| (*bits, *address));
    let mut kept: Vec<(IpAddr, u8)> = Vec::new();
    for (address, bits) in networks {
        let inside = |(outer, most): &(IpAddr, u8)| {
            format!("{outer}/{most}").parse::<Network>().is_ok_and(|network| network.contains(address))
        };
        if !kept.iter().any(inside) {
            kept.push((address, bits));
        }
    }
    kept
}

/// What `nft -j list ruleset` says of the chains of the user.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Ruleset {
    chains: Vec<Family>,
    /// Our rules: family, port, handle, expression.
    ours: Vec<(Family, u16, u64, Value)>,
}

impl Ruleset {
    /// Reads the output of `nft -j list ruleset`.
    ///
    /// # Errors
    /// It is not what nft writes.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let all: Value = serde_json::from_str(text).map_err(|e| format!("the output of nft cannot be read: {e}"))?;
        let all = all.get("nftables").and_then(Value::as_array).ok_or("the output of nft has no list of objects")?;
        let mut ruleset = Self::default();
        for object in all {
            let text = |object: &Value, key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
            let family = |object: &Value| {
                let name = text(object, "family")?;
                let qubes = text(object, "table")? == TABLE;
                Family::ALL.into_iter().find(|family| family.name() == name && qubes)
            };
            if let Some(chain) = object.get("chain") {
                if text(chain, "name").as_deref() == Some(CHAIN) {
                    ruleset.chains.extend(family(chain));
                }
            }
            if let Some(rule) = object.get("rule") {
                let port = text(rule, "comment").and_then(|comment| {
                    let port = comment.strip_prefix(COMMENT)?;
                    port.parse::<u16>().ok().filter(|number| number.to_string() == port)
                });
                let own = text(rule, "chain").as_deref() == Some(CHAIN);
                let handle = rule.get("handle").and_then(Value::as_u64);
                if let (Some(family), Some(port), Some(handle), true) = (family(rule), port, handle, own) {
                    let expression = rule.get("expr").cloned().unwrap_or(Value::Null);
                    ruleset.ours.push((family, port, handle, expression));
                }
            }
        }
        Ok(ruleset)
    }

    /// Whether the chain of a family is there.
    pub(super) fn has(&self, family: Family) -> bool {
        self.chains.contains(&family)
    }

    /// The transaction that leaves `wanted` and none of our other rules, for `nft -j -f -`; `None` where all is so.
    /// Rules of a chain that is not there come back with it.
    pub(super) fn transaction<'a>(&self, wanted: &'a [PortRule]) -> (Option<String>, Vec<&'a PortRule>) {
        let (possible, missing): (Vec<_>, Vec<_>) = wanted.iter().partition(|rule| self.has(rule.family));
        let mut kept: BTreeMap<(Family, u16), ()> = BTreeMap::new();
        let mut commands = Vec::new();
        for (family, port, handle, expression) in &self.ours {
            let same = |rule: &&&PortRule| {
                (rule.family, rule.port) == (*family, *port) && sorted(&rule.expression()) == sorted(expression)
            };
            // The first of several that are the same.
            if possible.iter().any(|rule| same(&rule)) && kept.insert((*family, *port), ()).is_none() {
                continue;
            }
            let place = place(*family);
            commands.push(json!({"delete": {"rule": {
                "family": place[0], "table": place[1], "chain": place[2], "handle": handle,
            }}}));
        }
        let new = possible.iter().filter(|rule| !kept.contains_key(&(rule.family, rule.port)));
        commands.extend(new.map(|rule| rule.add()));
        let transaction = (!commands.is_empty()).then(|| json!({"nftables": commands}).to_string());
        (transaction, missing)
    }
}

impl PortRule {
    /// Its family.
    pub(super) fn family(&self) -> Family {
        self.family
    }
}

/// The same expression with the elements of its sets in an order.
fn sorted(expression: &Value) -> Value {
    match expression {
        Value::Object(object) => {
            let sort = |(key, value): (&String, &Value)| {
                let mut value = sorted(value);
                if let (true, Value::Array(elements)) = (key == "set", &mut value) {
                    elements.sort_by_key(ToString::to_string);
                }
                (key.clone(), value)
            };
            Value::Object(object.iter().map(sort).collect())
        }
        Value::Array(all) => Value::Array(all.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::declared::{KEY, declared};

    /// `nft -j list ruleset` of nftables 1.0.6 with the rules that qubes-core-agent-linux loads in R4.2; rules of the
    /// user and rules of ours, one of them of an older forward, are in it.
    const R4_2: &str = include_str!("../../tests/captures/nft/r4.2.json");
    /// The same of R4.3, with IPv6 switched off.
    const R4_3: &str = include_str!("../../tests/captures/nft/r4.3-without-ipv6.json");

    fn rules(values: &[&str]) -> Vec<PortRule> {
        let entries: Vec<_> = values
            .iter()
            .map(|value| {
                let port = value.split(' ').next().and_then(|address| address.rsplit_once(':')).expect("a port").1;
                (format!("{KEY}{port}"), (*value).to_owned())
            })
            .collect();
        let (wanted, faults) = declared(entries.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes())), &[]);
        assert!(faults.is_empty(), "{faults:?}");
        wanted.values().flat_map(PortRule::of).collect()
    }

    #[test]
    fn a_forward_on_the_network_has_rules_and_one_on_loopback_has_none() {
        let by_hand = |value: &str| rules(&[value]).iter().map(PortRule::by_hand).collect::<Vec<_>>();
        assert_eq!(by_hand("127.0.0.1:5432 db qubes.ConnectTCP+5432"), [""; 0]);
        assert_eq!(by_hand("[::1]:5432 db qubes.ConnectTCP+5432"), [""; 0]);
        let any = "iifgroup != 2 tcp dport 8443 accept'";
        assert_eq!(
            by_hand("0.0.0.0:8443 web qubes.ConnectTCP+443"),
            [format!("nft add rule ip qubes custom-input '{any}")]
        );
        let both = [
            format!("nft add rule ip qubes custom-input '{any}"),
            format!("nft add rule ip6 qubes custom-input '{any}"),
        ];
        assert_eq!(by_hand("[::]:8443 web qubes.ConnectTCP+443"), both);
        assert_eq!(
            by_hand("[::]:8080 web a.B allow_from=192.168.0.0/16 allow_from=192.168.1.0/24 allow_from=10.0.0.1"),
            ["nft add rule ip qubes custom-input \
              'iifgroup != 2 ip saddr { 192.168.0.0/16, 10.0.0.1/32 } tcp dport 8080 accept'"]
        );
        assert_eq!(
            by_hand("10.0.0.7:8443 web qubes.ConnectTCP+443 allow_from=0.0.0.0/0"),
            ["nft add rule ip qubes custom-input 'iifgroup != 2 ip daddr 10.0.0.7 tcp dport 8443 accept'"]
        );
        assert_eq!(by_hand("0.0.0.0:8443 web qubes.ConnectTCP+443 allow_from=fd00\\x3a\\x3a/8"), [""; 0]);
    }

    #[test]
    fn a_recorded_ruleset_of_r4_2_is_changed_by_our_own_rules_alone() {
        let ruleset = Ruleset::read(R4_2).expect("as nft wrote it");
        assert!(ruleset.has(Family::V4) && ruleset.has(Family::V6));
        assert_eq!(
            ruleset.ours.iter().map(|rule| (rule.0, rule.1)).collect::<Vec<_>>(),
            [(Family::V4, 8443), (Family::V4, 9000), (Family::V6, 8443)]
        );
        let wanted =
            rules(&["[::]:8443 web a.B allow_from=192.168.1.0/24 allow_from=10.1.2.3 allow_from=fd00\\x3a\\x3a/8"]);
        let (transaction, missing) = ruleset.transaction(&wanted);
        let handle = ruleset.ours[1].2;
        let delete =
            json!({"delete": {"rule": {"family": "ip", "table": "qubes", "chain": "custom-input", "handle": handle}}});
        assert_eq!(transaction, Some(json!({"nftables": [delete]}).to_string()), "only the rule that no forward has");
        assert_eq!(missing, Vec::<&PortRule>::new());
        let (transaction, _) = ruleset.transaction(&[]);
        let transaction = transaction.expect("all of ours go");
        assert_eq!((transaction.matches("delete").count(), transaction.matches("\"add\"").count()), (3, 0));
        assert!(!transaction.contains("flush"), "{transaction}");
    }

    #[test]
    fn a_rule_that_changes_is_replaced_in_one_transaction() {
        let ruleset = Ruleset::read(R4_2).expect("as nft wrote it");
        let wanted = rules(&["0.0.0.0:9000 web qubes.ConnectTCP+443 allow_from=10.0.0.0/8"]);
        let text = ruleset.transaction(&wanted).0.expect("something is to be done");
        let transaction: Value = serde_json::from_str(&text).expect("JSON");
        let commands = transaction["nftables"].as_array().expect("a list");
        assert_eq!(commands.len(), 4, "{text}");
        assert_eq!(commands[3]["add"]["rule"]["comment"], "qrexec-connect-9000");
        assert_eq!(commands[3]["add"]["rule"]["expr"], wanted[0].expression());
    }

    #[test]
    fn a_chain_that_is_missing_is_told_with_the_rule() {
        let ruleset = Ruleset::read(R4_3).expect("as nft wrote it");
        assert!(ruleset.has(Family::V4) && !ruleset.has(Family::V6));
        let wanted = rules(&["[::]:8443 web qubes.ConnectTCP+443"]);
        let (transaction, missing) = ruleset.transaction(&wanted);
        assert_eq!(transaction.map(|text| text.matches("\"add\"").count()), Some(1));
        assert_eq!(missing.iter().map(|rule| rule.family()).collect::<Vec<_>>(), [Family::V6]);
        let none = Ruleset::read("{\"nftables\": [{\"metainfo\": {\"version\": \"1.0.6\"}}]}").expect("no tables");
        assert_eq!((none.transaction(&wanted).0, none.transaction(&wanted).1.len()), (None, 2));
    }

    #[test]
    fn what_is_no_output_of_nft_is_refused() {
        for text in ["", "x", "[]", "{}", "{\"nftables\": 1}"] {
            assert!(Ruleset::read(text).is_err(), "{text}");
        }
        let odd =
            "{\"nftables\": [1, {\"rule\": 1}, {\"rule\": {\"comment\": \"qrexec-connect-1\"}}, {\"chain\": {}}]}";
        assert_eq!(Ruleset::read(odd), Ok(Ruleset::default()));
    }
}
