//! `qrexec-connect qubesdb`: the process of qrexec-connect-qubesdb.service.

use std::process::ExitCode;

use super::config;
use crate::{
    cli::units::Scope,
    declared::{self, ReadPorts},
    log,
    report::{Code, Fatal},
    spec::{Beside, LastTexts, Machine, load_knowing},
};

/// Serves what dom0 declares, or takes all of it away.
///
/// # Errors
/// No thread can be had; something could not be taken away.
pub(super) fn run(program: &'static str, withdraw: bool) -> Result<ExitCode, Fatal> {
    if withdraw {
        declared::withdraw().map_err(|what| Fatal::new(Code::Failure, what))?;
        return Ok(ExitCode::SUCCESS);
    }
    let failed = |e: std::io::Error| Fatal::new(Code::Failure, e);
    let _guard = log::start(program, log::Level::Info, None).map_err(failed)?;
    let sources = config::sources(None, Scope::System);
    let low: ReadPorts = Box::new(move || {
        // What else is wrong with the configuration, the service itself says.
        let loaded = load_knowing(&sources.texts(), &LastTexts::default(), &Beside::NOTHING, 0, Machine::WILLING);
        loaded.config.qubesdb_ports().to_vec()
    });
    declared::run(&low).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
