//! Arguments over a file, and the plan that comes of both.

use std::{collections::HashMap, net::SocketAddr};

use super::{
    endpoint::{Netns, UnixAddr},
    error::{Faults, Place, SpecFault},
    fdname,
    file::Config,
    keys::{At, KeyName, Keys},
    plan::{Forward, Listen, Plan, SocketKind},
    role::{ListenSide, mean},
    value::Label,
};

impl Config {
    /// Lays `--forward` arguments over the file. Each replaces the keys it gives in the entry of the file with the same
    /// `label`, else the same `listen` or `udp_listen`, else the same *served* `uds`; otherwise it is one more forward.
    /// `namespace` and `setns_path` name the same thing, so either replaces both.
    #[must_use]
    pub fn merge(mut self, forwards: Vec<Keys>) -> Self {
        let in_file = self.entries.len();
        for forward in forwards {
            let Some(index) = self.entry_of(&forward, in_file) else {
                self.entries.push(forward);
                continue;
            };
            let entry = &mut self.entries[index];
            if forward.namespace.is_some() || forward.setns_path.is_some() {
                (entry.namespace, entry.setns_path) = (None, None);
            }
            entry.incomplete |= forward.incomplete;
            entry.replace(&forward);
        }
        self
    }

    /// The entry among the first `in_file` that a `--forward` is about.
    fn entry_of(&self, forward: &Keys, in_file: usize) -> Option<usize> {
        let find = |same: &dyn Fn(&Keys) -> bool| self.entries.iter().take(in_file).position(same);
        let by_label = |entry: &Keys| forward.label.is_some() && entry.label == forward.label;
        let by_listen = |entry: &Keys| {
            let namespace = forward.listen_namespace.is_none() || entry.listen_namespace == forward.listen_namespace;
            let stream = forward.listen.is_some() && entry.listen == forward.listen;
            let datagram = forward.udp_listen.is_some() && entry.udp_listen == forward.udp_listen;
            (stream || datagram) && namespace
        };
        // Beside a `listen` and without a target, the `uds` of an argument is one to be dialled.
        let uds = forward.uds.as_ref().filter(|_| goes_on(forward) || forward.listen.is_none());
        let uds = uds.and_then(|uds| self.absolute(uds));
        let by_uds = |entry: &Keys| {
            uds.is_some() && goes_on(entry) && entry.uds.as_ref().and_then(|uds| self.absolute(uds)) == uds
        };
        find(&by_label).or_else(|| find(&by_listen)).or_else(|| find(&by_uds))
    }

    fn absolute(&self, uds: &At<UnixAddr>) -> Option<UnixAddr> {
        uds.value().under(self.defaults.uds_dir.as_deref()).ok()
    }

    /// The forward that a socket of this label has, whole as it was written.
    pub fn labelled(&self, label: &str) -> Option<&Keys> {
        self.entries.iter().find(|entry| label_of(entry).is_some_and(|own| own.as_str() == label))
    }

    /// The plan: what the forwards with a listening side of their own mean.
    ///
    /// # Errors
    /// Everything that is missing, contradictory or without effect, and what two forwards both claim.
    pub fn plan(&self) -> Result<Plan, Faults> {
        self.plan_beside(&[])
    }

    /// The plan without the entries that sockets of these names are served by. A name that says nothing takes none.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_beside_names(&self, names: &[String]) -> Result<Plan, Faults> {
        let names: Vec<_> = names.iter().filter_map(|name| fdname::parse(name).ok()).collect();
        let entries = names.iter().filter_map(|name| name.entry(self));
        let taken: Vec<&Label> = entries.filter_map(|keys| keys.label.as_ref()).map(|label| label.value()).collect();
        self.plan_beside(&taken)
    }

    /// The plan without the entries whose labels inherited sockets have taken: those forwards are running already.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub fn plan_beside(&self, taken: &[&Label]) -> Result<Plan, Faults> {
        let mut plan = Plan { log_level: self.log_level(), ..Plan::default() };
        let mut faults = Faults::default();
        let mut claims = Claims::default();
        for entry in &self.entries {
            if let Some(label) = &entry.label {
                faults.extend(claims.claim(Claim::Label(label.value().clone()), label.place()));
            }
            let own_side =
                entry.listen.is_some() || entry.udp_listen.is_some() || (entry.uds.is_some() && goes_on(entry));
            match label_of(entry) {
                // Its own faults have been told.
                _ if entry.incomplete => continue,
                Some(label) if taken.contains(&label) => continue,
                Some(label) if !own_side => match mean(entry, ListenSide::Inherited(kind_for(entry)), &self.defaults) {
                    Ok(_) => plan.waiting.push(label.clone()),
                    Err(more) => faults.extend(more),
                },
                _ => match mean(entry, ListenSide::Own, &self.defaults) {
                    Ok(forward) => {
                        faults.extend(claims.sockets(entry, &forward));
                        plan.forwards.push(forward);
                    }
                    Err(more) => faults.extend(more),
                },
            }
        }
        faults.none_or(plan)
    }
}

fn label_of(entry: &Keys) -> Option<&Label> {
    entry.label.as_ref().map(At::value)
}

/// Whether a forward leads on from its `uds`, and so serves it.
fn goes_on(keys: &Keys) -> bool {
    keys.target.is_some() || keys.qrexec.is_some()
}

/// The kind of socket that a forward without a listening side can only be waiting for.
fn kind_for(entry: &Keys) -> SocketKind {
    if entry.udp_target.is_some() || entry.udp_idle_timeout.is_some() {
        SocketKind::Udp
    } else if entry.allow_uid.is_some() {
        SocketKind::Unix
    } else {
        SocketKind::Tcp
    }
}

/// What only one forward can have.
#[derive(PartialEq, Eq, Hash)]
enum Claim {
    Label(Label),
    Tcp(SocketAddr, Option<Netns>),
    Udp(SocketAddr, Option<Netns>),
    Unix(UnixAddr),
}

#[derive(Default)]
struct Claims(HashMap<Claim, Place>);

impl Claims {
    fn claim(&mut self, claim: Claim, place: &Place) -> Option<SpecFault> {
        let what = match &claim {
            Claim::Label(label) => format!("the label \"{label}\" is given to two forwards"),
            Claim::Tcp(addr, _) => format!("two forwards listen on {addr}"),
            Claim::Udp(addr, _) => format!("two forwards receive on {addr}"),
            Claim::Unix(addr) => format!("two forwards serve {addr}"),
        };
        let first = self.0.get(&claim).map(Place::brief);
        self.0.entry(claim).or_insert_with(|| place.clone());
        Some(SpecFault::at(place, what).hint(format!("the other is {}", first?)))
    }

    fn sockets(&mut self, entry: &Keys, forward: &Forward) -> Vec<SpecFault> {
        let mut faults = Vec::new();
        for leg in forward.legs.iter() {
            let (claim, key) = match &leg.listen {
                Listen::Inherited => continue,
                // With port 0 each gets a port of its own.
                Listen::Tcp { addr, .. } | Listen::Udp { addr, .. } if addr.port() == 0 => continue,
                Listen::Tcp { addr, netns, .. } => (Claim::Tcp(*addr, netns.clone()), KeyName::Listen),
                Listen::Udp { addr, netns } => (Claim::Udp(*addr, netns.clone()), KeyName::UdpListen),
                Listen::Unix { addr, .. } => (Claim::Unix(addr.clone()), KeyName::Uds),
            };
            faults.extend(entry.given(key).and_then(|place| self.claim(claim, place)));
        }
        faults
    }
}

#[cfg(test)]
mod tests;
