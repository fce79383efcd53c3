//! Connections, and verified traffic over them.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixSocketAddr, UnixStream},
    },
    path::Path,
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::{PATIENCE, Pattern, raw};

/// One connection, whatever its family. Every read and write gives up after [`PATIENCE`] without progress.
#[derive(Debug)]
pub enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    #[track_caller]
    pub fn tcp(address: SocketAddr) -> Self {
        // Not connect_timeout: it reports a reset that follows at once as if there had been no connection.
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a free descriptor");
        socket.set_write_timeout(Some(PATIENCE)).expect("not zero");
        socket.connect(&address.into()).unwrap_or_else(|e| panic!("{address}: {e}"));
        Self::from_tcp(socket.into())
    }

    #[track_caller]
    pub fn unix(path: &Path) -> Self {
        Self::from_unix(UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    #[track_caller]
    pub fn abstract_unix(name: &str) -> Self {
        let address = UnixSocketAddr::from_abstract_name(name).expect("a short name");
        Self::from_unix(UnixStream::connect_addr(&address).unwrap_or_else(|e| panic!("@{name}: {e}")))
    }

    /// An accepted connection, of a server that the test plays itself.
    pub fn from_tcp(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
        Self::Tcp(stream)
    }

    /// An accepted connection, of a server that the test plays itself.
    pub fn from_unix(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
        Self::Unix(stream)
    }

    /// A second handle on the same connection, for a thread that reads while another writes.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// Ends the sending side; what comes can still be read.
    #[track_caller]
    pub fn half_close(&self) {
        let done = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
        done.expect("the connection stands");
    }

    /// The same, where the connection may be gone by now.
    pub fn half_close_if_there(&self) {
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
    }

    /// Without a deadline for what comes: for servers that serve as long as the test takes, and answers that come late.
    pub fn wait_for_ever(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(None).and(stream.set_write_timeout(None)),
            Self::Unix(stream) => stream.set_read_timeout(None).and(stream.set_write_timeout(None)),
        }
    }

    pub fn set_nonblocking(&self, on: bool) {
        let done = match self {
            Self::Tcp(stream) => stream.set_nonblocking(on),
            Self::Unix(stream) => stream.set_nonblocking(on),
        };
        done.expect("O_NONBLOCK can be changed");
    }

    /// Bytes that have come and were not read yet.
    pub fn unread(&self) -> usize {
        match self {
            Self::Tcp(stream) => raw::unread(stream.as_raw_fd()),
            Self::Unix(stream) => raw::unread(stream.as_raw_fd()),
        }
    }

    /// Our own address, as the log calls the peer; of TCP only.
    pub fn local(&self) -> String {
        match self {
            Self::Tcp(stream) => stream.local_addr().expect("it is connected").to_string(),
            Self::Unix(_) => panic!("a UNIX peer is known by its credentials only"),
        }
    }

    /// Goes away with a reset: over TCP an RST at once. A UNIX socket has no such thing (closing it with bytes
    /// unread comes nearest), so there this is a plain close.
    pub fn reset(self) {
        if let Self::Tcp(stream) = &self {
            socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER can be set");
        }
    }

    /// All that comes until the end, as bytes.
    #[track_caller]
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        Read::read_to_end(self, &mut bytes).unwrap_or_else(|e| panic!("after {} bytes: {e}", bytes.len()));
        bytes
    }

    /// Exactly the next bytes: `expected`.
    #[track_caller]
    pub fn expect(&mut self, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        self.read_exact(&mut bytes).unwrap_or_else(|e| panic!("waiting for {:?}: {e}", expected.escape_ascii()));
        assert_eq!(bytes.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    /// The other side ends its sending, and nothing comes before that.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let rest = self.read_to_end();
        assert!(rest.is_empty(), "{} bytes before the end: {}", rest.len(), rest[..rest.len().min(60)].escape_ascii());
    }

    /// The connection breaks (ECONNRESET, or EPIPE at a write that comes too late) and not with a plain end; what
    /// came before is thrown away.
    #[track_caller]
    pub fn expect_reset(&mut self) {
        let mut buffer = [0; 65536];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => panic!("a plain end of stream instead of a reset"),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => panic!("instead of a reset: {e}"),
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Read::read(&mut &*self, buffer)
    }
}

impl Read for &Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Tcp(stream) => Read::read(&mut &*stream, buffer),
            Wire::Unix(stream) => Read::read(&mut &*stream, buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for &Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Tcp(stream) => Write::write(&mut &*stream, buffer),
            Wire::Unix(stream) => Write::write(&mut &*stream, buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a stream is cut: chunks of random sizes from 1 to `largest`, and after every `pause_every`th a pause.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub largest: usize,
    pub pause_every: Option<(u32, Duration)>,
}

impl Pace {
    /// As fast as it goes.
    pub const BULK: Self = Self { largest: 256 * 1024, pause_every: None };
    /// Many small pieces of uneven sizes.
    pub const CRUMBS: Self = Self { largest: 700, pause_every: None };
    /// Bursts with rests between them, so that buffers run both full and empty.
    pub const HALTING: Self = Self { largest: 40_000, pause_every: Some((16, Duration::from_millis(3))) };

    fn chunks(self, seed: u64) -> Chunks {
        Chunks { pace: self, dice: Pattern::new(!seed), made: 0 }
    }
}

struct Chunks {
    pace: Pace,
    dice: Pattern,
    made: u32,
}

impl Chunks {
    /// The size of the next chunk, after the pause that is due before it.
    fn next(&mut self) -> usize {
        self.made += 1;
        if let Some((every, pause)) = self.pace.pause_every {
            if self.made % every == 0 {
                thread::sleep(pause);
            }
        }
        let mut roll = [0; 8];
        self.dice.fill(&mut roll);
        1 + (u64::from_le_bytes(roll) % self.pace.largest as u64) as usize
    }
}

/// Sends the first `bytes` bytes of the pattern of `seed`.
pub fn send(mut to: impl Write, seed: u64, bytes: u64, pace: Pace) -> io::Result<()> {
    let (mut pattern, mut chunks, mut buffer) = (Pattern::new(seed), pace.chunks(seed), vec![0; pace.largest]);
    while pattern.at() < bytes {
        let n = chunks.next().min((bytes - pattern.at()) as usize);
        pattern.fill(&mut buffer[..n]);
        to.write_all(&buffer[..n])
            .map_err(|e| io::Error::new(e.kind(), format!("sending, at {} of {bytes}: {e}", pattern.at())))?;
    }
    Ok(())
}

/// Reads and verifies the first `bytes` bytes of the pattern of `seed`, and reads no further.
pub fn receive(mut from: impl Read, seed: u64, bytes: u64, pace: Pace) -> io::Result<()> {
    let (mut pattern, mut chunks, mut buffer) = (Pattern::new(seed), pace.chunks(!seed), vec![0; pace.largest]);
    while pattern.at() < bytes {
        let n = chunks.next().min((bytes - pattern.at()) as usize);
        let at = pattern.at();
        match from.read(&mut buffer[..n]) {
            Ok(0) => {
                let why = format!("the stream ended after {at} of {bytes} bytes");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
            Ok(n) => pattern.check(&buffer[..n]).map_err(io::Error::other)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io::Error::new(e.kind(), format!("reading, at {at} of {bytes}: {e}"))),
        }
    }
    Ok(())
}

/// Sends `bytes` of a pattern while it verifies that the same comes back, then half-closes and expects the end.
#[track_caller]
pub fn exchange(wire: &mut Wire, seed: u64, bytes: u64, pace: Pace) {
    let sending = wire.try_clone().expect("a free descriptor");
    let sent = thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut sending = sending;
            let sent = send(&mut sending, seed, bytes, pace);
            if sent.is_ok() {
                sending.half_close();
            }
            sent
        });
        receive(&mut *wire, seed, bytes, pace).unwrap_or_else(|e| panic!("echo of {bytes} bytes: {e}"));
        sender.join().expect("the sender does not panic")
    });
    sent.unwrap_or_else(|e| panic!("{e}"));
    wire.expect_end();
}
