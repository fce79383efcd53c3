//! A stand-in for `qrexec-client-vm`, for the demo: the "other qube" is this machine.
//!
//! It knows `qubes.ConnectTCP+PORT` only and connects to that port on 127.0.0.1. Nothing ever starts it but the demo,
//! which tells the service to by `--qrexec-client`. Like the real program it makes its standard input non-blocking
//! when the call is connected, and exits with qrexec's codes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    process::ExitCode,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::{
    relay::{Counters, Interrupt, Relay, RelayEnd},
    report::{Code, Fatal},
    stream::{Stream, StreamKind},
};

/// No such service (QREXEC_EXIT_SERVICE_NOT_FOUND, libqrexec/qrexec.h).
const MISSING: u8 = 127;
/// qrexec's own trouble, here: nobody listens on the port (QREXEC_EXIT_PROBLEM, libqrexec/qrexec.h).
const PROBLEM: u8 = 125;

/// Plays one call. `words` are the arguments of `qrexec-client-vm`.
///
/// # Errors
/// When the streams cannot be opened.
pub(super) fn run(words: &[String]) -> Result<ExitCode, Fatal> {
    let Some(port) = words.last().and_then(|w| w.strip_prefix("qubes.ConnectTCP+")?.parse::<u16>().ok()) else {
        return Ok(MISSING.into());
    };
    let Ok(service) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) else {
        return Ok(PROBLEM.into());
    };
    relay(service).map_err(|e| Fatal::new(Code::Failure, e))?;
    Ok(ExitCode::SUCCESS)
}

fn relay(service: TcpStream) -> io::Result<()> {
    service.set_nonblocking(true)?;
    let from: OwnedFd = non_blocking(io::stdin().as_fd().try_clone_to_owned()?)?;
    let to: OwnedFd = non_blocking(io::stdout().as_fd().try_clone_to_owned()?)?;
    // The copies are what is used: the originals must not keep the pipes open.
    let null = OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/null")?);
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (from, to) = (Stream::new(from, StreamKind::PipeReader)?, Stream::new(to, StreamKind::PipeWriter)?);
        let caller = RelayEnd::pipes(from, to);
        let service = RelayEnd::Socket(Stream::new(service.into(), StreamKind::Tcp)?);
        let mut relay = Relay::new(caller, service, None);
        // A call ends with its service, whatever the caller may still send.
        relay.hold_end();
        relay.run(&Counters::default(), &Interrupt::default()).await;
        Ok(())
    })
}

fn non_blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(fd)
}
