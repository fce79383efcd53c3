//! TCP endpoints.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    failure::{DialStep, Failure, io_failure},
    outgoing::{NotedSocket, connect_noted},
    way::{TimeLimit, Way, with_zone},
};
use crate::{
    spec::{Host, HostPort, Keepalive, KeepaliveTimes},
    stream::{Stream, StreamKind},
};

/// How long an attempt may take before the next address of the name is tried beside it (RFC 8305 section 5, "Connection
/// Attempt Delay").
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Turns keepalive on for `socket`, if there is to be any; accepted sockets inherit it from their listener.
///
/// # Errors
/// What setsockopt(2) says.
pub fn keep_alive(socket: &Socket, keepalive: Keepalive) -> io::Result<()> {
    let Some(KeepaliveTimes { idle, interval, count }) = keepalive.times() else { return Ok(()) };
    let seconds = |seconds: u16| Duration::from_secs(seconds.into());
    let times = TcpKeepalive::new().with_time(seconds(idle)).with_interval(seconds(interval));
    socket.set_tcp_keepalive(&times.with_retries(count.into()))
}

/// A connection to a TCP endpoint.
#[derive(Debug)]
pub struct Connected {
    /// The connected socket.
    pub stream: Stream,
    /// The note of the socket, where it can lead back to this service.
    pub noted: Option<NotedSocket>,
    /// The address that was connected to, where the endpoint has a name.
    pub address: Option<SocketAddr>,
}

/// Connects to `addr`. The addresses of a name take part in a race (RFC 8305, "happy eyeballs"): the next attempt begins
/// when [`ATTEMPT_DELAY`] has passed or an attempt has failed, and the first that connects wins. The others are reset.
///
/// # Errors
/// [`Failure::TimedOut`]; [`Failure::Unresolved`]; [`Failure::Addresses`] for a name; [`Failure::Netns`];
/// [`Failure::Io`].
///
/// # Cancel safety
/// Dropped, it closes what it began.
pub async fn connect(
    addr: &HostPort,
    way: Way<'_>,
    limit: TimeLimit,
    keepalive: Keepalive,
) -> Result<Connected, Failure> {
    let addresses = way.resolve(addr, limit).await?;
    let is_name = matches!(addr.host, Host::Name(_));
    let &[address] = &addresses[..] else { return race(addr, addresses, way, limit, keepalive).await };
    let connected = timeout_at(limit.deadline, connect_one(addr, address, way, keepalive, AttemptClose::Plain)).await;
    match connected {
        Ok(Ok((stream, noted))) => Ok(Connected { stream, noted, address: is_name.then_some(address) }),
        Ok(Err(failure)) if is_name => {
            Err(Failure::Addresses { name: addr.to_string(), tried: vec![(address, Some(failure))], timed_out: None })
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) if is_name => Err(Failure::Addresses {
            name: addr.to_string(),
            tried: vec![(address, None)],
            timed_out: Some(limit.allowed),
        }),
        Err(_) => Err(Failure::TimedOut(limit.allowed)),
    }
}

/// An attempt to connect to one of several addresses.
type ConnectAttempt<'a> = Pin<Box<dyn Future<Output = Result<AttemptSocket, Failure>> + Send + 'a>>;
/// The socket of an attempt, and its note where it can lead back to this service.
type AttemptSocket = (Stream, Option<NotedSocket>);

async fn race(
    addr: &HostPort,
    addresses: Vec<SocketAddr>,
    way: Way<'_>,
    limit: TimeLimit,
    keepalive: Keepalive,
) -> Result<Connected, Failure> {
    let mut left = alternating(addresses).into_iter().peekable();
    let mut tried: Vec<(SocketAddr, Option<Failure>)> = Vec::new();
    let mut running: Vec<(usize, ConnectAttempt<'_>)> = Vec::new();
    loop {
        if let Some(address) = left.next() {
            running.push((tried.len(), Box::pin(connect_one(addr, address, way, keepalive, AttemptClose::Reset))));
            tried.push((address, None));
        } else if running.is_empty() {
            return Err(Failure::Addresses { name: addr.to_string(), tried, timed_out: None });
        }
        let next = left.peek().map(|_| Instant::now() + ATTEMPT_DELAY);
        let pause = sleep_until(next.map_or(limit.deadline, |next| next.min(limit.deadline)));
        tokio::select! {
            biased;
            (index, result) = first_done(&mut running) => match result {
                Ok((stream, noted)) => {
                    let plain = SockRef::from(&stream).set_linger(None);
                    let doing = format!("connect to {}", tried[index].0);
                    plain.map_err(|error| io_failure(DialStep::Other, &doing, error))?;
                    return Ok(Connected { stream, noted, address: Some(tried[index].0) });
                }
                Err(failure) => tried[index].1 = Some(failure),
            },
            () = pause => {
                if limit.deadline <= Instant::now() {
                    return Err(Failure::Addresses { name: addr.to_string(), tried, timed_out: Some(limit.allowed) });
                }
            }
        }
    }
}

/// The first attempt that is done, with its number, taken off the list.
///
/// # Cancel safety
/// Safe: an attempt that is not done stays.
async fn first_done(running: &mut Vec<(usize, ConnectAttempt<'_>)>) -> (usize, Result<AttemptSocket, Failure>) {
    std::future::poll_fn(|cx| {
        let done = running.iter_mut().enumerate().find_map(|(at, (_, attempt))| match attempt.as_mut().poll(cx) {
            Poll::Ready(result) => Some((at, result)),
            Poll::Pending => None,
        });
        done.map_or(Poll::Pending, |(at, result)| Poll::Ready((running.swap_remove(at).0, result)))
    })
    .await
}

/// The addresses with the families in turn, the family of the first one first (RFC 8305 section 4).
fn alternating(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut all = Vec::with_capacity(first.len() + second.len());
    loop {
        let pair = (first.next(), second.next());
        all.extend(pair.0);
        all.extend(pair.1);
        if pair == (None, None) {
            return all;
        }
    }
}

/// What a close of a socket does that nobody has used yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AttemptClose {
    /// The other side sees an end.
    Plain,
    /// The other side sees a reset, also when the attempt is dropped after it was connected.
    Reset,
}

async fn connect_one(
    addr: &HostPort,
    address: SocketAddr,
    way: Way<'_>,
    keepalive: Keepalive,
    ending: AttemptClose,
) -> Result<AttemptSocket, Failure> {
    let socket = way.socket(Domain::for_address(address), Type::STREAM, Protocol::TCP).await?;
    let address = with_zone(&socket, addr, address)?;
    let connected = async {
        socket.set_tcp_nodelay(true)?;
        keep_alive(&socket, keepalive)?;
        if ending == AttemptClose::Reset {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        let under_way = |result: io::Result<()>| match result {
            Ok(()) => Ok(false),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY)) => Ok(true),
            Err(e) => Err(e),
        };
        let to = address.into();
        // Asked again: over loopback it is connected by now, and to wait for the event costs more.
        let connect = || Ok(under_way(socket.connect(&to))? && under_way(socket.connect(&to))?);
        let elsewhere = way.netns.is_some();
        let (pending, noted) = connect_noted(socket.as_fd(), address, elsewhere, way.passage, connect)?;
        // The note is declared last, so that it is dropped first: see `outgoing`.
        let (stream, noted) = (Stream::new(OwnedFd::from(socket), StreamKind::Tcp)?, noted);
        if pending {
            stream.connected().await?;
        }
        Ok((stream, noted))
    };
    let to = || if let Host::Name(_) = addr.host { address.to_string() } else { addr.to_string() };
    connected.await.map_err(|error| io_failure(DialStep::Tcp, &format!("connect to {}", to()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keepalive_probes_begin_after_two_minutes_where_no_times_are_given() {
        for (keepalive, expected) in [
            (Keepalive::On, (120, 30, 4)),
            (Keepalive::Times(KeepaliveTimes { idle: 7, interval: 8, count: 9 }), (7, 8, 9)),
        ] {
            for domain in [Domain::IPV4, Domain::IPV6] {
                let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
                keep_alive(&socket, keepalive).unwrap();
                let seconds = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
                let read = (seconds.0.as_secs(), seconds.1.as_secs(), socket.tcp_keepalive_retries().unwrap());
                assert_eq!((socket.keepalive().unwrap(), read), (true, expected), "{keepalive} {domain:?}");
            }
        }
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        keep_alive(&socket, Keepalive::Off).unwrap();
        assert!(!socket.keepalive().unwrap());
    }

    #[test]
    fn families_take_turns_and_each_keeps_its_order() {
        let read = |text: &str| text.split_whitespace().map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        for (given, expected) in [
            ("[::1]:1 [::2]:1 [::3]:1 1.1.1.1:1", "[::1]:1 1.1.1.1:1 [::2]:1 [::3]:1"),
            ("1.1.1.1:1 2.2.2.2:1 [::1]:1 [::2]:1", "1.1.1.1:1 [::1]:1 2.2.2.2:1 [::2]:1"),
            ("1.1.1.1:1 2.2.2.2:1", "1.1.1.1:1 2.2.2.2:1"),
            ("", ""),
        ] {
            assert_eq!(alternating(read(given)), read(expected));
        }
    }
}
