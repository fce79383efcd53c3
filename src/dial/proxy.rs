//! The PROXY header (haproxy's `doc/proxy-protocol.txt`): tells the upstream who the peer is, before the first byte.
//!
//! A peer over a UNIX socket has no address that the upstream could use: the header says to take that of the connection
//! itself (UNKNOWN in version 1, LOCAL in version 2; haproxy 2.6 breaks connections with the family AF_UNIX, and those
//! that are PROXY with none).
//!
//! It is at most 107 bytes, so it always fits into the buffer of a socket that has carried nothing yet: it is written
//! at once or not at all.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};
use ppp::{v1, v2};

use super::failure::{DialStep, Failure, io_failure};
use crate::{
    spec::ProxyProtocol,
    stream::{Stream, StreamKind},
};

/// Sends `upstream` the header for `peer`, whom it is connected for: its length.
pub fn introduce(peer: &Stream, upstream: &Stream, version: ProxyProtocol) -> Result<usize, Failure> {
    let sent = header(peer, version).and_then(|header| match upstream.try_write(&header)? {
        n if n == header.len() => Ok(n),
        _ => Err(io::ErrorKind::WriteZero.into()),
    });
    sent.map_err(|error| io_failure(DialStep::Other, "send the PROXY header", error))
}

/// The header for a peer: from where it connected, and to where.
fn header(peer: &Stream, version: ProxyProtocol) -> io::Result<Vec<u8>> {
    let fd = peer.as_fd().as_raw_fd();
    let addresses = match peer.kind() {
        StreamKind::Tcp => inet(&getpeername(fd)?).zip(inet(&getsockname(fd)?)),
        _ => None,
    };
    match (version, addresses) {
        (ProxyProtocol::V1, addresses) => {
            let addresses = addresses.map_or(v1::Addresses::Unknown, v1::Addresses::from);
            Ok(addresses.to_string().into_bytes())
        }
        (ProxyProtocol::V2, Some(addresses)) => {
            let command = v2::Version::Two | v2::Command::Proxy;
            v2::Builder::with_addresses(command, v2::Protocol::Stream, addresses).build()
        }
        (ProxyProtocol::V2, None) => {
            let command = v2::Version::Two | v2::Command::Local;
            let nothing = v2::Addresses::Unspecified;
            v2::Builder::with_addresses(command, v2::Protocol::Unspecified, nothing).build()
        }
    }
}

/// The address; an IPv4 one stays IPv4 also on a dual-stack socket: both of a connection are of one family.
fn inet(address: &SockaddrStorage) -> Option<SocketAddr> {
    let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddr::from(std::net::SocketAddrV4::from(*v4)),
        (None, Some(v6)) => SocketAddr::from(std::net::SocketAddrV6::from(*v6)),
        (None, None) => return None,
    };
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn accepted(listen: &str, connect: &str) -> (Stream, SocketAddr, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let far = TcpStream::connect(format!("{connect}:{port}")).unwrap();
        let (near, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        (Stream::new(near.into(), StreamKind::Tcp).unwrap(), far.local_addr().unwrap(), far)
    }

    #[tokio::test]
    async fn a_header_tells_who_connected_and_where() {
        for (listen, connect) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1")] {
            let (peer, from, far) = accepted(listen, connect);
            let text = String::from_utf8(header(&peer, ProxyProtocol::V1).unwrap()).unwrap();
            let to = far.peer_addr().unwrap().port();
            assert_eq!(text, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {to}\r\n", from.port()));
            let bytes = header(&peer, ProxyProtocol::V2).unwrap();
            let parsed = v2::Header::try_from(&bytes[..]).unwrap();
            assert_eq!(parsed.addresses, v2::Addresses::from((from, far.peer_addr().unwrap())));
        }
        let (peer, from, _far) = accepted("[::1]:0", "[::1]");
        let text = String::from_utf8(header(&peer, ProxyProtocol::V1).unwrap()).unwrap();
        assert!(text.starts_with(&format!("PROXY TCP6 ::1 ::1 {} ", from.port())), "{text}");
    }

    #[tokio::test]
    async fn a_peer_without_an_address_is_introduced_as_such() {
        let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let peer = Stream::new(near.into(), StreamKind::Unix).unwrap();
        assert_eq!(header(&peer, ProxyProtocol::V1).unwrap(), b"PROXY UNKNOWN\r\n");
        let bytes = header(&peer, ProxyProtocol::V2).unwrap();
        let parsed = v2::Header::try_from(&bytes[..]).unwrap();
        assert_eq!((parsed.command, parsed.addresses), (v2::Command::Local, v2::Addresses::Unspecified));
    }
}
