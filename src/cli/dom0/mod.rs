//! The face of `qvm-remote-dom0`.

mod arguments;
mod manage;
mod text;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use crate::{
    log::{self, Level},
    remote::{
        config::Paths,
        dom0::{self, StartError},
        parser::{self, Language},
        supervise::{self, SupervisorPlan},
    },
    report::{self, Code, Fatal},
};
use arguments::{DaemonArguments, Dom0Arguments, Dom0Command, PROGRAM};

/// Its arguments, for the manual and for shells.
pub fn command() -> clap::Command {
    Dom0Arguments::command()
}

/// Runs `qvm-remote-dom0`.
pub fn main() -> ExitCode {
    let arguments = Dom0Arguments::parse();
    let paths = Paths::default();
    let result = match arguments.command {
        None => daemon(paths, &arguments.daemon),
        Some(Dom0Command::Unit) => {
            print!("{}", include_str!("../../../units/system/qvm-remote-dom0.service"));
            Ok(ExitCode::SUCCESS)
        }
        Some(Dom0Command::Parse { uid, listing }) => {
            let language = if listing { Language::Listing } else { Language::Frames };
            parser::run(uid, language).map_err(|e| Fatal::new(Code::Failure, format!("parse: {e}")))
        }
        Some(Dom0Command::Supervise { script, tty, identity, cgroup, words }) => {
            let plan = SupervisorPlan { words, script, tty, identity, cgroup };
            supervise::run(plan).map_err(|e| Fatal::new(Code::Failure, format!("supervise: {e}")))
        }
        Some(command) => manage::run(&paths, command),
    };
    report::end(PROGRAM, result)
}

fn daemon(paths: Paths, options: &DaemonArguments) -> Result<ExitCode, Fatal> {
    let failed = |e: std::io::Error| Fatal::new(Code::Failure, e);
    if !nix::unistd::geteuid().is_root() {
        return Err(Fatal::new(Code::Failure, "must run as root to serve commands in dom0"));
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    crate::sys::inherit_nothing();
    let level = if options.verbose { Level::Debug } else { Level::Info };
    let _log = log::start(PROGRAM, level).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let options = dom0::DaemonOptions { vm: options.vm.clone(), once: options.once, dry_run: options.dry_run };
    match runtime.block_on(dom0::run(paths, options)) {
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
