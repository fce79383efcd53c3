//! What the log says: one sentence for each thing that can happen to a session, with what to do where we know it.

use std::{io, net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::{
    doubt::Cause,
    info::SessionInfo,
    route::{CallLimits, Lead, Route},
    watch::SessionEnding,
};
use crate::{
    dial::{DialStep, Failure, UdpEnds, netns, qrexec::Exit},
    log::{self, End, Event, Kind, counted, counted_waiting},
    proto::qrexec::SetUp,
    relay::Side,
    spec::policy_line,
};

/// An event about a session.
pub fn about(info: &SessionInfo, kind: Kind, message: String) -> Event {
    let mut event = info.route.event(kind, message);
    event.session = Some(info.id);
    event.peer = Some(info.peer.to_string().into());
    event.dial_ms = info.dial_ms();
    event.netns = info.netns().cloned();
    event
}

/// The first eight digits of the session's id: enough to tell it from its neighbours in a log.
fn short(info: &SessionInfo) -> String {
    format!("{:08x}", info.id.as_fields().0)
}

/// Beginning of each sentence about a session.
fn subject(info: &SessionInfo) -> String {
    let route = &info.route;
    format!("session {} from {} on {} to {}", short(info), info.peer, route.listener, route.upstream_text)
}

/// The session has both its ends; the upstream was dialled at this `address`, where it has a name.
pub fn started(info: &SessionInfo, address: Option<SocketAddr>) -> Event {
    let to = address.map(|address| format!(" to {address}")).unwrap_or_default();
    let mut message = format!("{}: connected after {} ms{to}", subject(info), info.dial_ms().unwrap_or(0));
    if let Some(at) = info.netns() {
        message += &format!(" ({at})");
    }
    about(info, Kind::SessionStart, message)
}

/// The qube has no call left; `waiting` sessions wait for one.
pub fn no_call_left(info: &SessionInfo, limits: &CallLimits, waiting: usize) -> Event {
    let sessions = counted_waiting(waiting, "connection");
    let (listener, target) = (&info.route.listener, &limits.call.target);
    let limit = limits.qube.limit();
    let text = format!(
        "{listener}: the limit of calls into {target} (max_calls={limit}) is reached; {sessions} until a call ends"
    );
    info.route.event(Kind::LimitReached, text)
}

/// No local port towards `to` is free: `used` sockets have that other end, of the `all` ports that there are.
/// `left_out` dials failed for that reason since it was reported last.
pub fn no_port_left(route: &Route, to: SocketAddr, used: usize, all: Option<u32>, left_out: u64) -> Event {
    let all = all.map(|all| format!(" of {all} (net.ipv4.ip_local_port_range)")).unwrap_or_default();
    let more = if left_out > 0 {
        format!("; {} failed since the last report", counted(left_out, "more dial"))
    } else {
        String::new()
    };
    let text = format!(
        "{}: no local port towards {to} is free: sockets to it use {used}{all}; several target addresses, other source \
         addresses (source) or a Unix socket give more{more}",
        route.listener
    );
    route.event(Kind::LimitReached, text)
}

/// Datagrams that wait for an upstream take all the room (in bytes) that a UDP listener has for them. `left_out`
/// datagrams met that since it was reported last.
pub fn datagrams_full(route: &Route, room: usize, left_out: u64) -> Event {
    let times = counted(left_out, "more time");
    let more = if left_out > 0 { format!("; {times} since the last report") } else { String::new() };
    let text = format!(
        "{}: datagrams that wait for {} take {} MiB, the most that a listener holds; the newest ones of the oldest peers \
         are dropped{more}",
        route.listener,
        route.upstream_text,
        room >> 20
    );
    route.event(Kind::LimitReached, text)
}

/// The gate of the service is full of `calls` that are undecided.
pub fn gate_full(info: &SessionInfo, limits: &CallLimits, calls: usize) -> Event {
    let (listener, call) = (&info.route.listener, &limits.call);
    let text = format!(
        "{listener}: {} of {} to {}: unanswered prompts in dom0, or a qube that starts slowly; further connections wait \
         until one is decided",
        counted(calls, "undecided call"),
        call.service,
        call.target
    );
    info.route.event(Kind::LimitReached, text)
}

/// dom0 has not decided about a call for a while; `connections` wait for that.
pub fn call_undecided(info: &SessionInfo, connections: usize) -> Event {
    let route = &info.route;
    let (target, service) = route.call_text().unwrap_or_else(|| ("?".into(), "?".into()));
    let wait = counted_waiting(connections, "connection");
    let started = if target.starts_with('@') { "the qube".into() } else { target.clone() };
    let left = info.setup_deadline(route.options.setup_timeout).saturating_duration_since(Instant::now());
    let text = format!(
        "{}: {wait} for dom0 to decide about {service} in {target}; answer the prompt there, or wait until {started} has \
         started; given up in {} s",
        route.listener,
        left.as_secs_f32().round()
    );
    route.event(Kind::CallUndecided, text)
}

/// A call that dom0 never answered was ended, and is made again.
pub fn call_lost(info: &SessionInfo) -> Event {
    let text = format!(
        "{}: dom0 has not answered the call, while it answered later calls at once; ended, and called again",
        subject(info)
    );
    about(info, Kind::CallRedialled, text)
}

/// The other side failed just after a slow set-up; the call is made again after `pause`.
pub fn server_starts(info: &SessionInfo, pause: Duration) -> Event {
    let (target, service) = info.route.call_text().unwrap_or_else(|| ("?".into(), "?".into()));
    let text =
        format!("{target} has just started, and nothing serves {service} there yet; next call in {} s", seconds(pause));
    about(info, Kind::CallRedialled, text)
}

/// The upstream socket of a flow was replaced, because of `cause`.
pub fn flow_moved(info: &SessionInfo, from: &UdpEnds, to: &UdpEnds, cause: Cause) -> Event {
    let why = match cause {
        Cause::Error(number) => io::Error::from_raw_os_error(number).to_string(),
        Cause::Silence => "no datagram came back".to_owned(),
    };
    let text = format!("{}: datagrams go to {to} now, and no longer to {from}: {why}", subject(info));
    about(info, Kind::FlowMoved, text)
}

/// The session is over.
pub fn ended(info: &SessionInfo, ending: &SessionEnding) -> Event {
    let SessionEnding { end, exit, note } = ending;
    let (up, down) = (info.counters.up(), info.counters.down());
    let mut message = format!(
        "{}: {} after {} ms, {} up, {down} down",
        subject(info),
        end.as_str(),
        info.age_ms(),
        counted(up, "byte")
    );
    if let Some(code) = exit {
        message += &format!(", exit code {code}");
    }
    if !note.is_empty() {
        message += &format!("; {note}");
    }
    let kind = match end {
        End::Eof | End::Reset | End::Idle | End::Drained | End::Killed => Kind::SessionEnd,
        End::Refused => Kind::SessionRefused,
        End::DialFailed | End::Timeout | End::Panicked | End::Lost => Kind::SessionFailed,
    };
    let mut event = about(info, kind, message);
    event.bytes = Some((up, down));
    event.open_ms = Some(info.age_ms());
    event.end = Some(*end);
    event.exit_code = *exit;
    event
}

/// Whether dom0 said no.
pub fn is_refusal(failure: &Failure) -> bool {
    matches!(failure, Failure::Call(Some(SetUp::Refused)))
}

/// What a failed dial is called, and what to do about it.
pub fn failure(route: &Route, failure: &Failure) -> (End, String) {
    match failure {
        Failure::Call(what) => call_failure(route, *what),
        Failure::RefusedAlready => (End::Refused, "refused together with another session that asked the same".into()),
        Failure::ManyUndecided(calls) => {
            let (target, service) = route.call_text().unwrap_or_else(|| ("?".into(), "?".into()));
            let why = format!(
                "not begun: {} of {service} to {target} for more than a minute; answer or cancel the prompts in dom0, or \
                 wait until the qube has started",
                counted(*calls, "undecided call")
            );
            (End::Timeout, why)
        }
        Failure::TimedOut(allowed) => {
            let hint = match route.lead {
                Lead::Call(_) => "an `ask` prompt unanswered in dom0, or a qube that does not start",
                _ => "nobody answers there",
            };
            (End::Timeout, format!("not connected within {} s: {hint}", allowed.as_secs_f32()))
        }
        Failure::Unresolved { name, allowed } => {
            let what = format!("the name {name} was not resolved within {} s", allowed.as_secs_f32());
            (End::Timeout, format!("{what}: no name server answers"))
        }
        Failure::Addresses { name, tried, timed_out } => addresses_failure(route, name, tried, *timed_out),
        Failure::PeerGone => (End::Reset, "the peer disconnected before the connection was made".into()),
        Failure::Unit(why) => (End::DialFailed, why.clone()),
        Failure::Netns(trouble @ (netns::Trouble::Missing(_) | netns::Trouble::Strange(_))) if !route.is_datagram() => {
            (End::DialFailed, format!("{trouble}{}", retry_advice(route)))
        }
        Failure::Netns(trouble) => (End::DialFailed, trouble.to_string()),
        Failure::Start { program, error } => {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => {
                    "; is this a Qubes qube with qubes-core-qrexec? (--qrexec-client names another program)"
                }
                io::ErrorKind::PermissionDenied => "; is it executable for this user?",
                _ => "",
            };
            (End::DialFailed, format!("cannot start {}: {error}{hint}", program.display()))
        }
        Failure::Io { step, doing, error } => {
            (End::DialFailed, format!("cannot {doing}: {}", kernel_error(route, *step, error)))
        }
    }
}

/// An error of the kernel, and what to do about it.
fn kernel_error(route: &Route, step: DialStep, error: &io::Error) -> String {
    let retry = match (step, error.raw_os_error()) {
        (DialStep::Tcp, Some(libc::ECONNREFUSED)) => retry_advice(route),
        (DialStep::Tcp, Some(libc::EHOSTUNREACH | libc::ENETUNREACH)) if route.netns().is_some() => retry_advice(route),
        _ => String::new(),
    };
    format!("{error}{}{retry}", step.advice(error))
}

/// What `retry_timeout` has to do with an upstream that is not there.
fn retry_advice(route: &Route) -> String {
    match route.options.retry_for(false) {
        Duration::ZERO => " (retry_timeout=SECONDS retries for that long)".to_owned(),
        time => format!(" (retries end after {} s: retry_timeout)", seconds(time)),
    }
}

/// Names each address that was tried, and what came of it.
fn addresses_failure(
    route: &Route,
    name: &str,
    tried: &[(SocketAddr, Option<Failure>)],
    timed_out: Option<Duration>,
) -> (End, String) {
    let one = |(address, failed): &(SocketAddr, Option<Failure>)| match failed {
        None => format!("{address} did not answer"),
        Some(Failure::Io { step: step @ DialStep::Tcp, error, .. }) => {
            format!("{address}: {}", kernel_error(route, *step, error))
        }
        Some(other) => format!("{address}: {}", failure(route, other).1),
    };
    let all = tried.iter().map(one).collect::<Vec<_>>().join(", ");
    match timed_out {
        Some(allowed) => (End::Timeout, format!("{name}: not connected within {} s: {all}", allowed.as_secs_f32())),
        None => (End::DialFailed, format!("cannot connect to {name}: {all}")),
    }
}

fn call_failure(route: &Route, what: Option<SetUp>) -> (End, String) {
    let (target, service) = route.call_text().unwrap_or_else(|| ("?".into(), "?".into()));
    match what {
        Some(SetUp::Refused) => {
            let line = route.call().map(|c| policy_line(&c.call, None)).unwrap_or_default();
            let why = format!(
                "dom0 refused it: no policy allows it, an `ask` was cancelled, {target} cannot be started or has no \
                 free port (at most 128 calls); to allow it, add to /etc/qubes/policy.d/30-user.policy in dom0: {line}"
            );
            (End::Refused, why)
        }
        Some(SetUp::Missing) => {
            (End::DialFailed, format!("{target} has no service {service} (no such file in its /etc/qubes-rpc)"))
        }
        Some(SetUp::Qrexec) => (
            End::DialFailed,
            format!("the other end failed: nothing listens on the port or socket of {service} in {target}?"),
        ),
        Some(SetUp::Local) => (
            End::DialFailed,
            format!(
                "the local qrexec agent did not answer, or {target} did not connect within two minutes (\"vchan connection \
                 timeout\"); look at qubes-qrexec-agent.service in this qube, then in {target}"
            ),
        ),
        Some(SetUp::Usage) => (
            End::DialFailed,
            "qrexec-client-vm did not take its arguments: is it from a Qubes release older than 4.1?".into(),
        ),
        Some(SetUp::Service(code)) => {
            (End::DialFailed, format!("the call ended with exit code {code} before it was connected"))
        }
        None => (End::DialFailed, "the call ended before it was connected, across a restart of this service".into()),
    }
}

/// Names the side that was reset.
pub fn reset(by: Side, error: Option<&io::Error>) -> String {
    let side = match by {
        Side::Peer => "the peer",
        Side::Upstream => "the upstream",
    };
    error.map_or_else(|| format!("by {side}"), |e| format!("by {side}: {e}"))
}

/// Names the side that has acknowledged nothing for longer than `allowed`.
pub fn silent(side: Side, allowed: Duration) -> String {
    let side = match side {
        Side::Peer => "the peer",
        Side::Upstream => "the upstream",
    };
    format!("{side} acknowledged nothing for {} s although data waited for it (keepalive)", seconds(allowed))
}

/// How a call was lost in the middle.
pub fn lost(exit: Exit) -> String {
    match exit {
        Exit::Signal(n) => format!("qrexec-client-vm was killed by signal {n}"),
        Exit::Code(_) | Exit::Unknown => {
            "the other qube or its qrexec agent ended during the session, or the service ended with this code"
                .to_owned()
        }
    }
}

/// A line that a call wrote on its standard error, escaped already.
pub fn stderr(info: &SessionInfo, line: String) {
    log::emit(about(info, Kind::CallStderr, format!("session {}: {line}", short(info))));
}

/// A pause as logs have it: 0.03, 0.5, 2.
pub fn seconds(pause: Duration) -> String {
    let text = format!("{:.2}", pause.as_secs_f32());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A dial waits for its upstream to appear.
pub fn waiting(info: &SessionInfo, failure: &Failure, pause: Duration) {
    let number = match failure {
        Failure::Io { error, .. } => error.raw_os_error(),
        _ => None,
    };
    let why = match (&info.route.lead, number) {
        (Lead::Unix(addr), Some(libc::ENOENT)) => format!("{addr} does not exist yet: its endpoint has not started"),
        (Lead::Unix(addr), Some(libc::ECONNREFUSED)) => {
            format!("no program listens on {addr}: its endpoint has stopped")
        }
        (Lead::Unix(addr), _) => format!("{addr} has a full backlog: its endpoint does not accept"),
        _ => format!("{}: {}", info.route.upstream_text, self::failure(&info.route, failure).1),
    };
    let less_often = if pause < Duration::from_secs(1) { ", then less often" } else { "" };
    log::emit(about(info, Kind::DialWaiting, format!("{why}; next try in {} s{less_often}", seconds(pause))));
}

#[cfg(test)]
mod tests {
    use super::{
        super::{identity::ListenerIdentity, route::Routes},
        *,
    };
    use crate::spec::{Config, SocketKind, fdname};

    fn route() -> Route {
        let forward = fdname::resolve("work qubes.ConnectTCP+1234", SocketKind::Tcp, &Config::default());
        let forward = forward.expect("a name");
        let (leg, listener) = (forward.legs.front().clone(), ListenerIdentity::new("x:1", SocketKind::Tcp, None));
        Routes::new(32).make(String::new(), listener, leg, forward.options).expect("a route")
    }

    #[test]
    fn why_a_session_failed_has_at_most_160_characters_before_what_to_do() {
        let error = || io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let set_ups = [SetUp::Refused, SetUp::Missing, SetUp::Qrexec, SetUp::Local, SetUp::Usage, SetUp::Service(3)];
        let namespace = std::path::PathBuf::from("/run/netns/qdhcp-27a7c0de-5eed-4a11-8bad-f00dfeedbeef");
        let allowed = Duration::from_secs(300);
        let others = [
            Failure::Call(None),
            Failure::RefusedAlready,
            Failure::ManyUndecided(5),
            Failure::TimedOut(allowed),
            Failure::Unresolved { name: "db.internal.example.org".to_owned(), allowed },
            Failure::PeerGone,
            Failure::Netns(netns::Trouble::Missing(namespace.clone())),
            Failure::Netns(netns::Trouble::Strange(namespace.clone())),
            Failure::Netns(netns::Trouble::Denied(namespace)),
            Failure::Start { program: "/usr/bin/qrexec-client-vm".into(), error: error() },
        ];
        let steps = [DialStep::Unix, DialStep::Tcp, DialStep::Udp, DialStep::Name, DialStep::Device, DialStep::Source];
        let io = steps.map(|step| Failure::Io {
            step,
            doing: "connect to [2001:db8:85a3::8a2e:370:7334]:2222".to_owned(),
            error: error(),
        });
        let calls = set_ups.map(|set_up| Failure::Call(Some(set_up)));
        for failed in calls.into_iter().chain(others).chain(io) {
            let (_, note) = failure(&route(), &failed);
            let what = note.split("; ").next().expect("there is a first");
            assert!(what.chars().count() <= 160, "{} characters: {what}", what.chars().count());
        }
    }

    #[test]
    fn a_call_that_is_not_begun_says_how_many_are_undecided_and_what_to_do() {
        let (end, why) = failure(&route(), &Failure::ManyUndecided(5));
        assert_eq!(
            (end, why.as_str()),
            (
                End::Timeout,
                "not begun: 5 undecided calls of qubes.ConnectTCP+1234 to work for more than a minute; answer or cancel the prompts \
                 in dom0, or wait until the qube has started"
            )
        );
    }
}
