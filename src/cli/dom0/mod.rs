//! The face of `qvm-remote-dom0`.

mod approve;
mod arguments;
#[cfg(test)]
mod captures;
mod check;
mod failure;
mod logs;
mod manage;
mod record;
mod service;
mod status;
mod tables;
mod test_policy;
mod text;
#[cfg(feature = "v1")]
mod v1;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::{
    log::{self, Level},
    remote::{
        config::Paths,
        dom0::{self, StartError},
        parser, supervise,
    },
    report::{self, Code, Fatal},
};
use arguments::{DaemonArguments, Dom0Arguments, Dom0Command, Internal, PROGRAM};

/// Its arguments, for the manual and for shells.
pub fn command() -> clap::Command {
    Dom0Arguments::command()
}

/// Runs `qvm-remote-dom0`.
pub fn main() -> ExitCode {
    // One supervisor for each command: reading all arguments by clap is a third of the time of its start.
    if std::env::args_os().skip(1).eq(["supervise"]) {
        return report::end(PROGRAM, internal(Internal::Supervise));
    }
    let arguments = Dom0Arguments::parse();
    let paths = Paths::default();
    let result = match arguments.command {
        None => daemon(paths, &arguments.daemon),
        Some(Dom0Command::Internal(command)) => internal(command),
        Some(command) => manage::run(&paths, command),
    };
    report::end(PROGRAM, result)
}

/// Runs a command that only programs call.
fn internal(command: Internal) -> Result<ExitCode, Fatal> {
    let (name, result) = match command {
        Internal::Unit { commands } => {
            print!(
                "{}",
                if commands {
                    include_str!("../../../units/system/qvm-remote-dom0-commands.service")
                } else {
                    include_str!("../../../units/system/qvm-remote-dom0.service")
                }
            );
            return Ok(ExitCode::SUCCESS);
        }
        Internal::Keep => ("keep", dom0::keep(&Paths::default().run)),
        Internal::Parse { uid } => ("parse", parser::run(uid)),
        #[cfg(feature = "v1")]
        Internal::ParseV1 { uid } => ("parse-v1", crate::remote::v1::run(uid)),
        Internal::Supervise => ("supervise", supervise::run()),
    };
    result.map_err(|e| Fatal::new(Code::Failure, format!("{name}: {e}")))
}

fn daemon(paths: Paths, options: &DaemonArguments) -> Result<ExitCode, Fatal> {
    let failed = |e: std::io::Error| Fatal::new(Code::Failure, e);
    if !nix::unistd::geteuid().is_root() {
        return Err(Fatal::new(Code::Failure, "must run as root to serve commands in dom0"));
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    crate::sys::inherit_nothing();
    let level = if options.verbose { Level::Debug } else { Level::Info };
    let _log = log::start(PROGRAM, level, None).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let options = dom0::DaemonOptions { vm: options.vm.clone(), once: options.once, dry_run: options.dry_run };
    let result = runtime.block_on(dom0::run(paths, options));
    runtime.shutdown_background(); // a thread that waits for a disk without end ends with the process
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(refusal) => Err(explain(refusal)),
    }
}

fn explain(refusal: StartError) -> Fatal {
    let failure = Fatal::new(Code::Failure, &refusal);
    match refusal {
        StartError::Running => {
            failure.hint("what it does: qvm-remote-dom0 status; to stop it: systemctl stop qvm-remote-dom0")
        }
        StartError::NoKeys => failure.hint("in the qube: qvm-remote key gen; here: qvm-remote-dom0 authorize VM KEY"),
        StartError::NoVms | StartError::NoSuchVm(_) | StartError::Io(..) => failure,
    }
}
