//! Where a socket listens: an address with its transport, parsed from what systemd shows and from what the service
//! tells, so that the two can be compared.

use std::{ffi::OsString, net::SocketAddr, os::unix::ffi::OsStringExt as _, path::PathBuf};

use nix::net::if_::if_nametoindex;

use crate::{
    activation::Local,
    control::api,
    log::escape,
    spec::{
        ListenPlace, SocketKind, UnixAddr,
        unit::{ListenAddress, Listening},
    },
    sys::proc,
};

/// A listening socket.
#[derive(Clone, Debug)]
pub(super) struct SocketPlace {
    /// `None` for a kind that is not forwarded.
    pub(super) kind: Option<SocketKind>,
    pub(super) local: Local,
    /// The address of a UNIX socket, where the bytes are known.
    unix: Option<UnixAddr>,
}

impl PartialEq for SocketPlace {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, &self.local) == (other.kind, &other.local)
    }
}

impl SocketPlace {
    /// The place that `systemctl show` prints as `ADDRESS (KIND)`.
    pub(super) fn of_systemd(address: &str, kind: &str) -> Self {
        let streams = kind == "Stream";
        if !matches!(kind, "Stream" | "Datagram") {
            return Self::unknown(address);
        }
        match inet(address) {
            Some(addr) => Self::inet(addr, streams),
            None => Self::unix(unix(&uncescape(address)), streams),
        }
    }

    /// The place of a `Listen…=` line.
    pub(super) fn of_line(line: &Listening<'_>, address: &str) -> Self {
        let streams = line.socket() != Some(SocketKind::Udp);
        match (line.socket(), ListenAddress::read(address)) {
            (None, _) | (_, Ok(ListenAddress::Vsock)) => Self::unknown(address),
            (_, Ok(ListenAddress::Ip { addr, .. })) => Self::inet(addr, streams),
            (_, Ok(ListenAddress::Path(path))) => Self::unix(Some(UnixAddr::Path(path)), streams),
            (_, Ok(ListenAddress::Abstract(name))) => Self::unix(Some(UnixAddr::Abstract(name.into_bytes())), streams),
            (kind, Err(_)) => Self { kind, ..Self::unknown(address) },
        }
    }

    /// The place of a listener of the service.
    pub(super) fn of_service(listener: &api::Listener) -> Self {
        let local = match listener.kind {
            Some(SocketKind::Tcp | SocketKind::Udp) => listener.address.parse().ok().map(Local::Inet),
            Some(SocketKind::Unix) | None => None,
        };
        Self { kind: listener.kind, local: local.unwrap_or(Local::Unix(listener.address.clone())), unix: None }
    }

    fn inet(addr: SocketAddr, streams: bool) -> Self {
        let kind = if streams { SocketKind::Tcp } else { SocketKind::Udp };
        Self { kind: Some(kind), local: Local::Inet(addr), unix: None }
    }

    fn unix(addr: Option<UnixAddr>, streams: bool) -> Self {
        let text = match &addr {
            Some(UnixAddr::Path(path)) => escape(path.as_os_str().as_encoded_bytes()),
            Some(UnixAddr::Abstract(name)) => format!("@{}", escape(name)),
            None => String::new(),
        };
        Self { kind: streams.then_some(SocketKind::Unix), local: Local::Unix(text), unix: addr }
    }

    fn unknown(address: &str) -> Self {
        Self { kind: None, local: Local::Unix(escape(address.as_bytes())), unix: None }
    }

    /// The place as the kernel compares it with others.
    pub(super) fn listen_place(&self) -> Option<ListenPlace> {
        match (&self.local, self.kind?) {
            (Local::Inet(addr), kind) => {
                let datagrams = kind == SocketKind::Udp;
                Some(ListenPlace::Port { addr: *addr, zone: None, datagrams, netns: None, only_v6: false })
            }
            (Local::Unix(_), SocketKind::Unix) => self.unix.clone().map(ListenPlace::Unix),
            (Local::Unix(_), _) => None,
        }
    }
}

/// The sockets of this network namespace on which somebody listens.
#[derive(Debug)]
pub(super) struct ListeningSockets {
    tcp: Vec<SocketAddr>,
    udp: Vec<SocketAddr>,
}

impl ListeningSockets {
    /// Reads the tables of the kernel.
    pub(super) fn read() -> Self {
        let all = |datagrams| proc::bound(datagrams).into_iter().map(|socket| socket.local).collect();
        Self { tcp: all(false), udp: all(true) }
    }

    /// Whether somebody listens at this very place; `None` where the tables cannot tell.
    pub(super) fn has(&self, place: &SocketPlace) -> Option<bool> {
        // The tables have no zones.
        let same = |known: &SocketAddr, addr: &SocketAddr| (known.ip(), known.port()) == (addr.ip(), addr.port());
        match (&place.local, place.kind?) {
            (Local::Inet(addr), SocketKind::Udp) => Some(self.udp.iter().any(|known| same(known, addr))),
            (Local::Inet(addr), _) => Some(self.tcp.iter().any(|known| same(known, addr))),
            (Local::Unix(_), _) => {
                let name = match place.unix.as_ref()? {
                    UnixAddr::Path(path) => path.clone().into_os_string(),
                    UnixAddr::Abstract(name) => OsString::from_vec([b"@", &name[..]].concat()),
                };
                Some(proc::listener_at(&name).is_some())
            }
        }
    }
}

/// `127.0.0.1:80`, `[::1]:80`, and systemd's form of a link-local address: `[fe80::1]:80%eth0`.
fn inet(text: &str) -> Option<SocketAddr> {
    let Some((address, zone)) = text.rsplit_once('%').filter(|(address, _)| address.starts_with('[')) else {
        return text.parse().ok();
    };
    let SocketAddr::V6(mut addr) = address.parse().ok()? else { return None };
    addr.set_scope_id(zone.parse().ok().or_else(|| if_nametoindex(zone).ok())?);
    Some(addr.into())
}

fn unix(bytes: &[u8]) -> Option<UnixAddr> {
    match bytes {
        [b'/', ..] => Some(UnixAddr::Path(PathBuf::from(OsString::from_vec(bytes.to_vec())))),
        [b'@', name @ ..] => Some(UnixAddr::Abstract(name.to_vec())),
        _ => None,
    }
}

/// Takes the escapes out that `cescape` of systemd's escape.c puts in: those of C, and `\ooo` for bytes above 126.
fn uncescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let (byte, used) = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                (((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'), 3)
            }
            (b'\\', [letter, ..]) => match letter {
                b'a' => (7, 1),
                b'b' => (8, 1),
                b'f' => (12, 1),
                b'n' => (b'\n', 1),
                b'r' => (b'\r', 1),
                b't' => (b'\t', 1),
                b'v' => (11, 1),
                other => (*other, 1),
            },
            (byte, _) => (*byte, 0),
        };
        out.push(byte);
        rest = &rest[used..];
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(address: &str, kind: SocketKind) -> api::Listener {
        let kind = kind.to_string().to_lowercase();
        let listener = serde_json::json!({
            "address": address, "kind": kind, "name": "", "upstream": "", "state": "serving", "sessions": 0,
            "max_sessions": 1
        });
        serde_json::from_value(listener).expect("a listener")
    }

    #[test]
    fn what_systemd_shows_and_what_the_service_tells_of_one_socket_are_equal() {
        for (shown, word, address, kind) in [
            ("127.0.0.1:1234", "Stream", "127.0.0.1:1234", SocketKind::Tcp),
            ("[::]:77", "Stream", "[::]:77", SocketKind::Tcp),
            ("[fe80::1]:80%lo", "Stream", "[fe80::1%1]:80", SocketKind::Tcp),
            ("[fe80::1]:80%7", "Stream", "[fe80::1%7]:80", SocketKind::Tcp),
            ("127.0.0.1:53", "Datagram", "127.0.0.1:53", SocketKind::Udp),
            (r#"/tmp/\303\251 \"q\" b\\\\c.sock"#, "Stream", r#"/tmp/é "q" b\\\\c.sock"#, SocketKind::Unix),
            (r"@abs \303\251\t", "Stream", r"@abs é\x09", SocketKind::Unix),
        ] {
            let (systemd, service) =
                (SocketPlace::of_systemd(shown, word), SocketPlace::of_service(&told(address, kind)));
            assert_eq!(systemd, service, "{shown}");
        }
        let tcp = SocketPlace::of_systemd("127.0.0.1:53", "Stream");
        assert_ne!(tcp, SocketPlace::of_systemd("127.0.0.1:53", "Datagram"), "TCP and UDP on one address are two");
        assert_eq!(SocketPlace::of_systemd("/run/x", "FIFO").kind, None);
    }

    #[test]
    fn a_socket_that_listens_is_found_in_the_tables_of_the_kernel() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("é \"s\"");
        let _unix = std::os::unix::net::UnixListener::bind(&path).expect("a new path");
        let sockets = ListeningSockets::read();
        let address = listener.local_addr().expect("it is bound").to_string();
        assert_eq!(sockets.has(&SocketPlace::of_systemd(&address, "Stream")), Some(true));
        assert_eq!(sockets.has(&SocketPlace::of_systemd(&address, "Datagram")), Some(false));
        let shown = format!("{}/\\303\\251 \\\"s\\\"", dir.path().display());
        assert_eq!(sockets.has(&SocketPlace::of_systemd(&shown, "Stream")), Some(true));
        assert_eq!(sockets.has(&SocketPlace::of_systemd("/nowhere", "Stream")), Some(false));
    }

    /// `cescape_char` of systemd's escape.c.
    fn cescape(bytes: &[u8]) -> String {
        let escaped = bytes.iter().map(|byte| match byte {
            7 => "\\a".to_owned(),
            8 => "\\b".to_owned(),
            12 => "\\f".to_owned(),
            b'\n' => "\\n".to_owned(),
            b'\r' => "\\r".to_owned(),
            b'\t' => "\\t".to_owned(),
            11 => "\\v".to_owned(),
            b'\\' | b'"' | b'\'' => format!("\\{}", char::from(*byte)),
            b' '..=b'~' => char::from(*byte).to_string(),
            other => format!("\\{other:03o}"),
        });
        escaped.collect()
    }

    proptest! {
        #[test]
        fn every_name_that_systemd_escapes_is_read_back(bytes: Vec<u8>) {
            prop_assert_eq!(uncescape(&cescape(&bytes)), bytes);
        }

        #[test]
        fn no_text_makes_the_reader_fail(text: String) {
            uncescape(&text);
            SocketPlace::of_systemd(&text, "Stream");
        }
    }
}
