//! Descriptors: how many the listeners may need, against how many there may be.

use nix::sys::resource::{Resource, getrlimit};

use super::route::Route;

/// What the service needs besides listeners and sessions: the runtime, the log.
const BASE: u64 = 64;
/// A session between two sockets: both, and the two ends of a pipe while bytes are moved in bulk.
const SOCKETS: u64 = 4;
/// A session with a call: the peer, three pipes, the process, and during set-up a second end of one pipe.
const CALL: u64 = 6;

/// A warning when the limit of descriptors (`RLIMIT_NOFILE`, getrlimit(2)) is below what `routes` may need.
pub fn warning<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Option<String> {
    let limit = limit()?;
    let needed = needed(routes);
    (needed > limit).then(|| {
        format!(
            "the listeners may need {needed} descriptors and only {limit} are allowed: connections will wait; raise \
             LimitNOFILE= of the service, or lower max_connections of the listeners"
        )
    })
}

/// How many descriptors the process may have open (`RLIMIT_NOFILE`).
pub fn limit() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(limit, _)| limit)
}

fn needed<'a>(routes: impl IntoIterator<Item = &'a Route>) -> u64 {
    let of_listeners = routes.into_iter().map(|route| {
        let most = u64::from(route.options.max_connections);
        let sessions = match route.call() {
            // Those above the limit of calls wait, each with its peer's socket alone.
            Some(limits) => {
                let calls = u64::try_from(limits.qube.limit()).unwrap_or(u64::MAX);
                most.min(calls).saturating_mul(CALL).saturating_add(most.saturating_sub(calls))
            }
            None => most.saturating_mul(SOCKETS),
        };
        sessions.saturating_add(1) // the listening socket
    });
    of_listeners.fold(BASE, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::super::{identity::ListenerIdentity, route::Routes};
    use super::*;
    use crate::spec::{self, SocketKind};

    fn route(name: &str) -> Route {
        let forward = spec::fdname::resolve(name, SocketKind::Tcp, &spec::Config::default()).expect("a name");
        let leg = forward.legs.front().clone();
        let listener = ListenerIdentity::new("127.0.0.1:1", SocketKind::Tcp, None);
        Routes::new(32).make(name.to_owned(), listener, leg, forward.options).expect("a route")
    }

    #[test]
    fn calls_are_bounded_by_their_qube_and_sockets_by_their_listener() {
        let (call, socket) = (route("work qubes.ConnectTCP+1 max_connections=50"), route("uds=/x,max_connections=100"));
        let calls = 32 * CALL + 18; // 18 connections wait for a call
        assert_eq!(needed([&call]), BASE + 1 + calls);
        assert_eq!(needed([&call, &socket]), BASE + 2 + calls + 100 * SOCKETS);
    }

    #[test]
    fn a_warning_names_both_figures() {
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has one");
        let socket = route("uds=/x,max_connections=100");
        let many = usize::try_from(limit / 100).expect("a limit that fits");
        let text = warning(std::iter::repeat_n(&socket, many)).expect("more than the limit");
        assert!(text.contains("LimitNOFILE=") && text.contains(&limit.to_string()), "{text}");
    }
}
