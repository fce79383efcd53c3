//! `qrexec-connect far-end`: what a service in `/etc/qubes-rpc` runs to serve the streams of one call.
//!
//! Standard input and output are the call. Standard error goes to the caller's qube, so the log goes to the journal only.
//! The codes 126 and 127 have a meaning of their own for a caller, and are never used.

use std::{
    env, io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, ValueEnum};

use crate::{
    log::{self, Level, escape},
    mux::{FarCall, FarFailure, FarPlace},
    report::{Code, Fatal},
};

/// Options of `far-end`.
#[derive(Clone, Debug, Args)]
pub(super) struct FarEndOptions {
    /// What the streams are connected to
    kind: FarKind,
    /// A port of 127.0.0.1, or the name of a link in /etc/qrexec-connect/unix: the argument of the service
    argument: String,
    /// The folder of the links
    #[arg(long, value_name = "DIRECTORY")]
    links: Option<PathBuf>,
    /// Write the log to standard error
    #[arg(long)]
    log_to_stderr: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FarKind {
    Tcp,
    Udp,
    Unix,
}

/// Serves the call on standard input and output.
///
/// # Errors
/// An argument that names no place; a call that could not be served.
pub(super) fn run(program: &'static str, options: &FarEndOptions) -> Result<ExitCode, Fatal> {
    let place = match options.kind {
        FarKind::Tcp => FarPlace::tcp(&options.argument),
        FarKind::Udp => FarPlace::udp(&options.argument),
        FarKind::Unix => FarPlace::unix(&options.argument, options.links.as_deref()),
    };
    let place = place.map_err(|why| Fatal::new(Code::Usage, why))?;
    let qube = env::var_os("QREXEC_REMOTE_DOMAIN").unwrap_or_default();
    let qube = escape(std::os::unix::ffi::OsStrExt::as_bytes(&*qube)).to_string();
    let failed = |error: io::Error| Fatal::new(Code::Failure, error);
    let _log = if options.log_to_stderr {
        log::start(program, Level::Info, None)
    } else {
        log::start_in_journal(program, Level::Info)
    };
    let _log = _log.map_err(failed)?;
    let (from, to) = standard_streams().map_err(failed)?;
    match FarCall::new(qube, place).serve(from, to) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(FarFailure::Fault(fault)) => Err(Fatal::new(Code::Failure, format!("the other end sent {fault}"))),
        Err(FarFailure::Io(error)) => Err(failed(error)),
    }
}

/// Standard input and output, in whose places /dev/null is now: the originals must not keep the call open.
fn standard_streams() -> io::Result<(OwnedFd, OwnedFd)> {
    let from = io::stdin().as_fd().try_clone_to_owned()?;
    let to = io::stdout().as_fd().try_clone_to_owned()?;
    let null = OwnedFd::from(std::fs::File::options().read(true).write(true).open("/dev/null")?);
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok((from, to))
}
