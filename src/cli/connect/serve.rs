//! `qrexec-connect serve`: what qrexec-connect.service runs.

use std::{io::IsTerminal as _, process::ExitCode};

use super::{PROGRAM, Serve};
use crate::{
    activation, log,
    report::{Code, Failure},
    service::{self, Ended, Setup},
};

/// Serves what was inherited until told to stop.
///
/// # Errors
/// Nothing inherited, a configuration that cannot be used, no runtime.
pub(super) fn run(options: &Serve) -> Result<ExitCode, Failure> {
    // Before any thread: it changes the environment.
    let inherited = activation::receive(|name| name == service::STORED).map_err(|e| Failure::new(Code::Config, e))?;
    let managed = std::env::var_os("NOTIFY_SOCKET").is_some();
    let nothing = inherited.listeners.is_empty() && inherited.refused.is_empty();
    if nothing && !managed {
        return Err(lonely());
    }
    service::keep_headroom();
    let failed = |e: std::io::Error| Failure::new(Code::Failure, format!("cannot start: {e}"));
    let guard = log::start(PROGRAM, log::Level::Info).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)?;
    let setup = Setup {
        inherited,
        load: super::config::load(options.config.clone()),
        client: options.qrexec_client.clone(),
        calls_per_qube: options.calls_per_qube.into(),
        exit_idle: options.exit_idle_time,
    };
    let ended = runtime.block_on(service::run(setup));
    drop(guard);
    match ended {
        Ok(Ended::Done | Ended::HandedOver) => Ok(ExitCode::SUCCESS),
        Ok(Ended::Broken) => Ok(Code::Failure.into()),
        Err(what) => Err(Failure::new(Code::Config, what)),
    }
}

/// Started by hand, without a socket: says what this is.
fn lonely() -> Failure {
    let failure =
        Failure::new(Code::Usage, "no sockets were passed: systemd starts this for qrexec-connect-*.socket units");
    if !std::io::stderr().is_terminal() {
        return failure;
    }
    failure.hint(
        "try `qrexec-connect demo` to see it work, `qrexec-connect add NAME PORT \"@default qubes.ConnectTCP+PORT\" --now` \
         to make a socket unit, or `qrexec-connect --help`",
    )
}
