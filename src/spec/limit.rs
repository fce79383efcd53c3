//! The listeners of a configuration against the limit of descriptors (`RLIMIT_NOFILE`, getrlimit(2)).

use std::collections::HashSet;

use super::plan::{Forward, Listen, ListenKey};

/// Descriptors that listeners leave to the service itself and to a few sessions. Of a small limit it is half.
const RESERVED: u64 = 144;

/// The forwards, by their index, whose listeners would leave no descriptors for sessions, each with the reason.
/// `others`: listeners beside those of the forwards ([`beside_forwards`]); `open`: how many listeners of a forward are open
/// already, and stay open. A forward counts whole; one that is refused leaves its room to the next ones, but for what it
/// has open.
pub fn without_descriptors<'a>(
    forwards: impl IntoIterator<Item = &'a Forward>,
    others: usize,
    open: impl Fn(usize) -> usize,
    limit: u64,
) -> Vec<(usize, String)> {
    let most = limit - RESERVED.min(limit / 2);
    let mut taken = others as u64;
    let mut refused = Vec::new();
    for (index, forward) in forwards.into_iter().enumerate() {
        let own = forward.legs.iter().filter(|leg| leg.listen != Listen::Inherited).count() as u64;
        if taken.saturating_add(own) > most {
            refused.push((index, reason(own, taken, most, limit)));
            taken += open(index) as u64;
        } else {
            taken += own;
        }
    }
    refused
}

/// The listeners of a service beside those of its forwards: the `sockets` that systemd passes, served or not, and what the
/// service opens `behind` them. Sockets of one name share what lies behind them.
pub fn beside_forwards<'a>(sockets: usize, behind: impl IntoIterator<Item = &'a Listen>) -> usize {
    let places: HashSet<ListenKey> = behind.into_iter().filter_map(Listen::key).collect();
    sockets + places.len()
}

fn reason(own: u64, taken: u64, most: u64, limit: u64) -> String {
    let listeners = if own == 1 { "1 listener".to_owned() } else { format!("{own} listeners") };
    let beside = match taken {
        0 => String::new(),
        1 => " beside 1 other".to_owned(),
        n => format!(" beside {n} others"),
    };
    format!(
        "{listeners}{beside} would leave no descriptors for sessions: the limit is {limit}, of which listeners may \
         have {most}; forward fewer ports, or raise LimitNOFILE= of the service (by hand: ulimit -Hn)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Config, SocketKind, fdname};

    fn refused(forwards: &[&str], others: usize, open: usize, limit: u64) -> Vec<usize> {
        let (_, plan) = Config::gather(None, forwards).unwrap();
        without_descriptors(&plan.forwards, others, |_| open, limit).into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn sockets_of_one_name_count_each_and_what_lies_behind_them_once() {
        let name = "namespace=x,target=10.0.0.5+22,uds=/run/a.sock";
        let (behind, other) = (pipeline(name), pipeline(&name.replace("a.sock", "b.sock")));
        for (sockets, forwards, expected) in
            [(0, &[][..], 0), (3, &[], 3), (2, &[&behind, &behind], 3), (2, &[&behind, &other], 4)]
        {
            let legs = forwards.iter().flat_map(|forward| forward.legs.iter());
            assert_eq!(beside_forwards(sockets, legs.map(|leg| &leg.listen)), expected);
        }
    }

    /// The forward of an inherited TCP socket of this name.
    fn pipeline(name: &str) -> Forward {
        fdname::resolve(name, SocketKind::Tcp, &Config::default()).expect("a name")
    }

    #[test]
    fn a_forward_that_leaves_no_descriptors_for_sessions_is_refused_and_the_others_are_not() {
        let range = "listen=127.0.0.1:8000-9023,target=10.0.0.5:80";
        let small = "listen=127.0.0.1:7000-7099,target=10.0.0.5:80";
        let other = "listen=127.0.0.1:7100-7199,target=10.0.0.5:80";
        let both = "listen=127.0.0.1:22,uds=/run/a.sock,target=10.0.0.5:22"; // two listeners
        for (forwards, (others, open), limit, expected) in [
            (&[range][..], (0, 0), 1024 + RESERVED, &[][..]),
            (&[range], (1, 0), 1024 + RESERVED, &[0]),
            (&[range], (0, 0), 1023 + RESERVED, &[0]),
            (&[range, small, both], (0, 0), 1024, &[0]),
            (&[small, range, both], (0, 0), 1024, &[1]),
            (&[small, other, both], (0, 0), 302, &[1]), // listeners may have 158
            (&[both], (30, 0), 64, &[]),
            (&[both], (31, 0), 64, &[0]),
            (&[both], (0, 0), 0, &[0]),
            (&[range, small], (0, 300), 512, &[0, 1]), // listeners may have 368, and 300 of the range are open
            (&[range], (0, 0), u64::MAX, &[]),
        ] {
            assert_eq!(refused(forwards, others, open, limit), expected, "{forwards:?} beside {others}, limit {limit}");
        }
    }
}
