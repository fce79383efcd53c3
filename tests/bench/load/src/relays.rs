//! Plain relays to compare with, and the `qrexec-client-vm` of the benchmark.

use std::{
    env, fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    process::{Command, Stdio},
    thread,
};

use nix::unistd::{read, write};

use crate::{endpoint::Endpoint, fail};

/// What a first program in Rust does: tokio's copy_bidirectional, with its buffers of 8 KiB.
pub fn plain(listen: &str, target: &str) {
    let (listen, target) = (Endpoint::parse(listen), Endpoint::parse(target));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|e| fail(&format!("runtime: {e}")));
    runtime.block_on(async {
        let fd = listen.listen(None);
        match listen {
            Endpoint::Tcp(_) => {
                let listener = TcpListener::from(fd);
                let _ = listener.set_nonblocking(true);
                let listener = tokio::net::TcpListener::from_std(listener).unwrap_or_else(|e| fail(&e.to_string()));
                loop {
                    if let Ok((peer, _)) = listener.accept().await {
                        let _ = peer.set_nodelay(true);
                        tokio::spawn(plain_session(peer, target.clone()));
                    }
                }
            }
            Endpoint::Unix(_) => {
                let listener = UnixListener::from(fd);
                let _ = listener.set_nonblocking(true);
                let listener = tokio::net::UnixListener::from_std(listener).unwrap_or_else(|e| fail(&e.to_string()));
                loop {
                    if let Ok((peer, _)) = listener.accept().await {
                        tokio::spawn(plain_session(peer, target.clone()));
                    }
                }
            }
        }
    });
}

async fn plain_session(mut peer: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, target: Endpoint) {
    match target {
        Endpoint::Tcp(addr) => {
            if let Ok(mut upstream) = tokio::net::TcpStream::connect(addr).await {
                let _ = upstream.set_nodelay(true);
                let _ = tokio::io::copy_bidirectional(&mut peer, &mut upstream).await;
            }
        }
        Endpoint::Unix(path) => {
            if let Ok(mut upstream) = tokio::net::UnixStream::connect(path).await {
                let _ = tokio::io::copy_bidirectional(&mut peer, &mut upstream).await;
            }
        }
    }
}

/// Two threads for each session, copying 64 KiB at a time between the peer and a child's pipes.
pub fn copies(listen: &str, client: &str) {
    let listener = TcpListener::from(Endpoint::parse(listen).listen(None));
    for peer in listener.incoming().flatten() {
        let client = client.to_owned();
        thread::spawn(move || {
            let _ = peer.set_nodelay(true);
            let mut words = client.split(' ');
            let mut command = Command::new(words.next().unwrap_or_default());
            command.args(words).args(["@default", "bench"]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let Ok(mut child) = command.spawn() else { return };
            let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { return };
            let Ok(other) = peer.try_clone() else { return };
            let up = thread::spawn(move || copy(other, to));
            copy(from, &peer);
            let _ = peer.shutdown(Shutdown::Write);
            let _ = up.join();
            let _ = child.wait();
        });
    }
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(n) = from.read(&mut buffer) {
        if n == 0 || to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// A `qrexec-client-vm`: says that it is connected as that does, by making its input non-blocking, and copies. It goes
/// to the control group $BENCH_CHILDREN first, so that the relay is measured without it.
pub fn child() {
    for file in env::var("BENCH_CHILDREN").unwrap_or_default().split(':').filter(|f| !f.is_empty()) {
        let _ = fs::write(file, std::process::id().to_string());
    }
    let service = env::var("BENCH_SERVICE").unwrap_or_else(|_| fail("$BENCH_SERVICE is missing"));
    let (input, output) = (std::io::stdin(), std::io::stdout());
    let _ = nix::fcntl::fcntl(&input, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK));
    match Endpoint::parse(&service) {
        Endpoint::Tcp(addr) => {
            let Ok(socket) = TcpStream::connect(addr) else { std::process::exit(1) };
            let _ = socket.set_nodelay(true);
            let Ok(other) = socket.try_clone() else { return };
            let up = thread::spawn(move || {
                copy_in(&other);
                let _ = other.shutdown(Shutdown::Write);
            });
            copy(&socket, Output(output));
            let _ = nix::unistd::close(1); // the end of the output, while input may go on
            let _ = up.join();
        }
        Endpoint::Unix(path) => {
            let Ok(socket) = UnixStream::connect(path) else { std::process::exit(1) };
            let Ok(other) = socket.try_clone() else { return };
            let up = thread::spawn(move || {
                copy_in(&other);
                let _ = other.shutdown(Shutdown::Write);
            });
            copy(&socket, Output(output));
            let _ = nix::unistd::close(1); // the end of the output, while input may go on
            let _ = up.join();
        }
    }
}

/// Standard output without its own buffer; it ends when reading from the service ends.
struct Output(std::io::Stdout);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Standard input, non-blocking, to `to`.
fn copy_in(mut to: impl Write) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let (input, mut buffer) = (std::io::stdin(), vec![0; 64 << 10]);
    loop {
        match read(&input, &mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if to.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
            Err(nix::errno::Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(input.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            }
            Err(_) => return,
        }
    }
}
