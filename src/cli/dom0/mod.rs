//! The face of `qvm-remote-dom0`.

mod manage;
mod text;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::{
    log::{self, Level},
    remote::{
        config::Paths,
        dom0::{self, Refusal},
        parser::{self, Language},
        supervise::{self, Plan},
    },
    report::{self, Code, Failure},
    sys::Identity,
};

const PROGRAM: &str = "qvm-remote-dom0";

#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, about = "Runs commands of authorised qubes in dom0", long_about = text::ABOUT)]
struct Arguments {
    #[command(flatten)]
    daemon: Daemon,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Options of the daemon.
#[derive(Clone, Debug, Args)]
struct Daemon {
    /// Serve this qube, whatever the configuration lists
    #[arg(long, value_name = "VM")]
    vm: Option<String>,
    /// Do what waits now, then end
    #[arg(long)]
    once: bool,
    /// Say what would be done; touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Say more
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Store a qube's key, and a policy where it has none
    Authorize {
        /// The qube
        vm: String,
        /// Its key: 64 hexadecimal digits; asked for when it is left out
        key: Option<String>,
        /// Begin with this policy
        #[arg(long, value_name = "FILE", conflicts_with = "deny")]
        policy: Option<PathBuf>,
        /// Begin with a policy that allows nothing
        #[arg(long)]
        deny: bool,
        /// Take the key that was there until now as well, until the next authorize: for changing keys
        #[arg(long)]
        keep_old: bool,
    },
    /// Remove a qube's key
    Revoke {
        /// The qube
        vm: String,
        /// End its commands, too
        #[arg(long)]
        kill: bool,
    },
    /// List the authorised qubes
    Keys,
    /// Take the tokens of the Python client from a qube, or no longer
    V1 {
        /// The qube
        vm: String,
        /// on or off
        #[arg(value_parser = ["on", "off"])]
        state: String,
    },
    /// Start the service now and at every boot
    Enable,
    /// Stop the service, now and at every boot
    Disable,
    /// Start the service until the next boot, or for a while
    Start {
        /// For so long: 30min, 2h (systemd.time(7))
        #[arg(long, value_name = "SPAN", default_value = "1h")]
        r#for: String,
    },
    /// Allow a command that waits for approval; without an id, list those that wait
    Approve {
        /// As the log and the qube show it
        id: Option<String>,
        /// Refuse it
        #[arg(long)]
        deny: bool,
        /// Do not ask again here
        #[arg(long)]
        yes: bool,
    },
    /// What the running daemon does
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the unit file, for installers
    #[command(hide = true)]
    Unit,
    /// Read what a VM sends (started by the daemon)
    #[command(hide = true)]
    Parse {
        /// The user id to take on
        #[arg(long)]
        uid: u32,
        /// The listing of a queue instead of frames
        #[arg(long)]
        listing: bool,
    },
    /// Look after one command (started by the daemon)
    #[command(hide = true)]
    Supervise {
        /// Standard input is a terminal
        #[arg(long)]
        tty: bool,
        /// UID:GID:GROUPS
        #[arg(long, value_parser = identity)]
        identity: Option<Identity>,
        /// A control group of its own
        #[arg(long)]
        cgroup: Option<PathBuf>,
        /// Program and arguments
        #[arg(last = true)]
        words: Vec<OsString>,
    },
}

fn identity(text: &str) -> Result<Identity, String> {
    let bad = || "UID:GID:GROUPS is wanted".to_owned();
    let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
    let mut parts = text.split(':');
    let (uid, gid, groups) = (parts.next(), parts.next(), parts.next());
    let (uid, gid, groups) = (uid.ok_or_else(bad)?, gid.ok_or_else(bad)?, groups.ok_or_else(bad)?);
    let groups: Result<Vec<u32>, String> = groups.split(',').filter(|g| !g.is_empty()).map(number).collect();
    Ok(Identity { uid: number(uid)?, gid: number(gid)?, groups: groups? })
}

/// Its arguments, for the manual and for shells.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs `qvm-remote-dom0`.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let paths = Paths::default();
    let result = match arguments.command {
        None => daemon(paths, &arguments.daemon),
        Some(Command::Unit) => {
            print!("{}", include_str!("../../../units/system/qvm-remote-dom0.service"));
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Parse { uid, listing }) => {
            let language = if listing { Language::Listing } else { Language::Frames };
            parser::run(uid, language).map_err(|e| Failure::new(Code::Failure, format!("parse: {e}")))
        }
        Some(Command::Supervise { tty, identity, cgroup, words }) => {
            let plan = Plan { words, tty, identity, cgroup };
            supervise::run(plan).map_err(|e| Failure::new(Code::Failure, format!("supervise: {e}")))
        }
        Some(command) => manage::run(&paths, command),
    };
    report::end(PROGRAM, result)
}

fn daemon(paths: Paths, options: &Daemon) -> Result<ExitCode, Failure> {
    let failed = |e: std::io::Error| Failure::new(Code::Failure, e);
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(Code::Failure, "must run as root to serve commands in dom0"));
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    crate::sys::inherit_nothing();
    let level = if options.verbose { Level::Debug } else { Level::Info };
    let _log = log::start(PROGRAM, level).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let options = dom0::Options { vm: options.vm.clone(), once: options.once, dry_run: options.dry_run };
    match runtime.block_on(dom0::run(paths, options)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(refusal) => Err(explain(refusal)),
    }
}

fn explain(refusal: Refusal) -> Failure {
    let failure = Failure::new(Code::Failure, &refusal);
    match refusal {
        Refusal::Running => {
            failure.hint("what it does: qvm-remote-dom0 status; to stop it: systemctl stop qvm-remote-dom0")
        }
        Refusal::NoKeys => failure.hint("in the qube: qvm-remote key gen; here: qvm-remote-dom0 authorize VM KEY"),
        Refusal::NoVms | Refusal::NoSuchVm(_) | Refusal::Io(..) => failure,
    }
}
