//! A test connection through a listener, and all that is known about it: from the socket itself, and from
//! the service, whose events are matched by the address of this end.

use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use socket2::{Protocol, SockAddr, Socket, Type};

use super::service::PAUSE;
use crate::{
    control::{
        api::{self, Happened},
        client::ControlConnection,
        who,
    },
    dial::netns,
    spec::{Netns, SocketKind},
};

/// How long connect(2) may take.
const CONNECT: Duration = Duration::from_secs(10);

pub(super) type NewsSender = Sender<(Instant, News)>;
pub(super) type NewsReceiver = Receiver<(Instant, News)>;

/// News of a connection.
#[derive(Debug)]
pub(super) enum News {
    /// From here on the service tells everything.
    Watching,
    /// The service named a session.
    Told(Box<api::Event>),
    /// A byte came.
    Byte,
    /// The other side ended its stream.
    End,
    /// The connection broke.
    Broken(io::Error),
}

/// What the service tells, until this is dropped; a service that restarts is asked again.
pub(super) fn watch(socket: PathBuf) -> (NewsSender, NewsReceiver) {
    let (to, news) = channel();
    let teller = to.clone();
    thread::spawn(move || {
        loop {
            let mut goes_on = true;
            let watched = ControlConnection::connect(&socket).and_then(|mut client| {
                client.each("Watch", &serde_json::json!({}), |event: api::Event| {
                    let news = match event.event {
                        Happened::Ready => News::Watching,
                        _ => News::Told(Box::new(event)),
                    };
                    goes_on = teller.send((Instant::now(), news)).is_ok();
                    goes_on
                })
            });
            if !goes_on || watched.is_err_and(|failed| failed.is_forbidden()) {
                return;
            }
            thread::sleep(PAUSE);
        }
    });
    (to, news)
}

/// A connection that was made.
#[derive(Debug)]
pub(super) struct Knock {
    /// When connect(2) was called.
    pub(super) at: Instant,
    /// The address of this end; `None` over a Unix socket.
    local: Option<SocketAddr>,
    _socket: Socket,
}

impl Knock {
    /// Connects to `listener`, and tells what comes back through it. Over UDP an empty datagram is sent.
    ///
    /// # Errors
    /// The listener's address cannot be reached: why.
    pub(super) fn new(listener: &api::Listener, to: NewsSender) -> Result<Self, String> {
        let kind = listener.kind.ok_or("it is no socket that can be connected to")?;
        let (address, netns) = match listener.address.split_once(" in ") {
            Some((address, netns)) if kind != SocketKind::Unix => (address, Some(netns)),
            _ => (listener.address.as_str(), None),
        };
        let address = match kind {
            SocketKind::Unix => unix(address)?,
            SocketKind::Tcp | SocketKind::Udp => SockAddr::from(reachable(
                address.parse().map_err(|_| format!("{address} is no address that can be connected to"))?,
            )),
        };
        let (r#type, protocol) = match kind {
            SocketKind::Tcp => (Type::STREAM, Some(Protocol::TCP)),
            SocketKind::Udp => (Type::DGRAM, Some(Protocol::UDP)),
            SocketKind::Unix => (Type::STREAM, None),
        };
        let socket = match (netns, protocol) {
            (Some(netns), Some(protocol)) => {
                let netns: Netns = netns.to_owned().try_into().map_err(|flaw| format!("{flaw}"))?;
                let made = netns::socket_blocking(&netns, address.domain(), r#type, protocol);
                made.map_err(|trouble| trouble.to_string())?.0
            }
            _ => Socket::new(address.domain(), r#type, protocol).map_err(|e| e.to_string())?,
        };
        let at = Instant::now();
        match socket.connect_timeout(&address, CONNECT) {
            // A listener that keeps this peer out may have reset the connection by now.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            connected => connected.map_err(|e| e.to_string())?,
        }
        let local = socket.local_addr().map_err(|e| e.to_string())?.as_socket();
        if kind == SocketKind::Udp {
            socket.send(&[]).map_err(|e| e.to_string())?;
        } else {
            let reader = socket.try_clone().map_err(|e| e.to_string())?;
            thread::spawn(move || read(reader, &to));
        }
        Ok(Self { at, local, _socket: socket })
    }

    /// Whether a session of the service is that of this connection.
    pub(super) fn is(&self, session: &api::Session) -> bool {
        who::is_of(session, self.local)
    }
}

/// Waits for the first byte or the end.
fn read(mut from: Socket, to: &NewsSender) {
    let _ = from.set_nonblocking(false);
    let news = match from.read(&mut [0; 1]) {
        Ok(0) => News::End,
        Ok(_) => News::Byte,
        Err(e) => News::Broken(e),
    };
    let _ = to.send((Instant::now(), news)); // whoever asked may have what it wanted
}

/// Where a listener on all addresses can be reached.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The address of a Unix socket, from the text that logs have.
fn unix(text: &str) -> Result<SockAddr, String> {
    if text.contains('\\') {
        return Err("its address holds bytes that are written as \\xNN here".to_owned());
    }
    let strange = |e: io::Error| e.to_string();
    match text.strip_prefix('@') {
        None => SockAddr::unix(text).map_err(strange),
        Some(_) => SockAddr::unix(format!("\0{}", &text[1..])).map_err(strange),
    }
}
