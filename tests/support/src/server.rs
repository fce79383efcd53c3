//! The upstream of a session, played by the test.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::{PATIENCE, Wire};

/// A listening server. Nobody can connect any more once it is dropped.
pub enum Server {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Server {
    /// On 127.0.0.1, any port.
    pub fn tcp() -> Self {
        Self::Tcp(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
    }

    #[track_caller]
    pub fn unix(path: &Path) -> Self {
        Self::Unix(UnixListener::bind(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    /// The name of a listener that leads here.
    pub fn name(&self) -> String {
        match self {
            Self::Tcp(_) => format!("target=127.0.0.1+{}", self.port()),
            Self::Unix(listener) => {
                let address = listener.local_addr().expect("it is bound");
                format!("uds={}", address.as_pathname().expect("bound to a path").display())
            }
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Tcp(listener) => listener.local_addr().expect("it is bound").port(),
            Self::Unix(_) => panic!("a UNIX socket has no port"),
        }
    }

    /// The next connection, if one waits.
    pub fn try_accept(&self) -> Option<Wire> {
        let waits = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true).expect("O_NONBLOCK can be set");
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).expect("O_NONBLOCK can be cleared");
                        Some(Wire::from_tcp(stream))
                    }
                    Err(e) if waits(&e) => None,
                    Err(e) => panic!("accept: {e}"),
                }
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true).expect("O_NONBLOCK can be set");
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).expect("O_NONBLOCK can be cleared");
                        Some(Wire::from_unix(stream))
                    }
                    Err(e) if waits(&e) => None,
                    Err(e) => panic!("accept: {e}"),
                }
            }
        }
    }

    /// The next connection, within [`PATIENCE`].
    #[track_caller]
    pub fn accept(&self) -> Wire {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(wire) = self.try_accept() {
                return wire;
            }
            assert!(Instant::now() < deadline, "nobody connected to {}", self.name());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What comes goes back, the end too, on as many connections as come, until the test's end; the listener's name.
    pub fn echo(self) -> String {
        let name = self.name();
        thread::spawn(move || {
            loop {
                let wire = match &self {
                    Self::Tcp(listener) => listener.accept().map(|(stream, _)| Wire::from_tcp(stream)),
                    Self::Unix(listener) => listener.accept().map(|(stream, _)| Wire::from_unix(stream)),
                };
                let Ok(mut wire) = wire else { return };
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || {
                        let Ok(mut back) = wire.try_clone() else { return };
                        let _ = wire.wait_for_ever();
                        if io::copy(&mut wire, &mut back).is_ok() {
                            back.half_close_if_there();
                        }
                    })
                    .expect("a thread");
            }
        });
        name
    }
}

/// A child that another thread starts at this moment has a copy of the listening socket, from fork(2) to execve(2).
/// Without shutdown(2) the copy would accept connections meanwhile.
impl Drop for Server {
    fn drop(&mut self) {
        let socket = match &*self {
            Self::Tcp(listener) => socket2::SockRef::from(listener),
            Self::Unix(listener) => socket2::SockRef::from(listener),
        };
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
}
