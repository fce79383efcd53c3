//! The face of `qvm-forward`: ports of qubes, declared in dom0.
//!
//! # Theory
//! A declaration has three parts, and the first two are dom0's:
//! * a line of dom0's policy: the listening qube may call `qubes.ConnectTCP+PORT` of the target, and nothing else;
//! * a feature of the listening qube, `vm-config.qrexec-connect-PORT`. Its value says where to listen, and which call each
//!   connection becomes. qubesd shows it to the qube in QubesDB;
//! * in the qube, `qrexec-connect-qubesdb.service` reads the value, and makes a socket unit and a firewall rule of it.
//!
//! The policy file is the record of all declarations ([`policy`]): this program keeps no other. It writes the file
//! whole, by rename, and no other file of the policy.
//!
//! # States of a declaration
//! | policy line | feature | what the state is | `check` says | what ends the state |
//! |---|---|---|---|---|
//! | yes | as declared | in force | nothing | `remove`, `expire` |
//! | yes | none or another | `add` was killed, or somebody changed the feature | error | `add` again, `remove` |
//! | yes | qube is gone | the qube was removed or renamed | error | `remove` |
//! | none | yes | `remove` was killed, or the feature is not ours | error, with the command that unsets it | `remove` |
//!
//! `add` writes the line first and the feature last; `remove` takes the line away first: whatever interrupts them, dom0
//! never allows more than the file says, and nothing listens without a line that allows its calls.

mod act;
mod arguments;
mod declared;
mod expiry;
mod list;
mod order;
mod policy;
mod qubes;
mod record;

use std::{
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use clap::{CommandFactory as _, Parser as _};

use crate::report::{self, Code, Fatal};
use arguments::{LanArguments, LanCommand, PROGRAM};

/// Its arguments, for the manual and for shells.
pub fn command() -> clap::Command {
    LanArguments::command()
}

/// Runs `qvm-forward`.
pub fn main() -> ExitCode {
    let arguments = LanArguments::parse();
    report::end(PROGRAM, run(arguments.command))
}

fn run(command: LanCommand) -> Result<ExitCode, Fatal> {
    match command {
        LanCommand::Add(add) => {
            if !add.dry_run {
                become_root()?;
            }
            act::add(&add)
        }
        LanCommand::Remove(remove) => {
            if !remove.dry_run {
                become_root()?;
            }
            act::remove(&remove)
        }
        LanCommand::List(options) => list::list(&options),
        LanCommand::Check { json } => list::check(json),
        LanCommand::Expire => expiry::expire(),
    }
}

/// Runs this program again by sudo(8), which asks for no password in dom0, where the user is not root.
fn become_root() -> Result<(), Fatal> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|e| Fatal::new(Code::Failure, e))?;
    let failed = Command::new("sudo").arg("--").arg(program).args(std::env::args_os().skip(1)).exec();
    Err(Fatal::new(Code::Permission, format!("only root can change dom0's policy, and sudo cannot be run: {failed}"))
        .hint("run this command as root"))
}
