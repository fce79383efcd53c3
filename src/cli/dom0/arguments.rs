//! What is typed: the options of the daemon, and the commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{test_policy::TestArguments, text};
use crate::cli::table::LookOptions;

/// The program's name.
pub(super) const PROGRAM: &str = "qvm-remote-dom0";

#[derive(Debug, Parser)]
#[command(name = PROGRAM, version, about = "Runs commands of authorised qubes in dom0", long_about = text::ABOUT)]
pub(super) struct Dom0Arguments {
    #[command(flatten)]
    pub(super) daemon: DaemonArguments,
    #[command(subcommand)]
    pub(super) command: Option<Dom0Command>,
}

/// Options of the daemon.
#[derive(Clone, Debug, Args)]
pub(super) struct DaemonArguments {
    /// Serve this qube instead of those in the configuration
    #[arg(long, value_name = "VM")]
    pub(super) vm: Option<String>,
    /// Run the commands that wait now, then exit
    #[arg(long)]
    pub(super) once: bool,
    /// Print what would be done, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print more
    #[arg(short, long)]
    pub(super) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Dom0Command {
    /// Store a qube's key, and a policy where it has none
    Authorize {
        /// The qube
        vm: String,
        /// Its key: 64 hexadecimal digits; without it the program asks for the key
        key: Option<String>,
        /// Start with this policy
        #[arg(long, value_name = "FILE", conflicts_with = "deny")]
        policy: Option<PathBuf>,
        /// Start with a policy that allows nothing
        #[arg(long)]
        deny: bool,
        /// Accept the previous key as well, until the next `authorize`: to change keys without a gap
        #[arg(long)]
        keep_old: bool,
    },
    /// Remove a qube's key
    Revoke {
        /// The qube
        vm: String,
        /// Also end its commands: those that run, those that wait, and background processes
        #[arg(long)]
        kill: bool,
    },
    /// List the authorised qubes
    Keys {
        #[command(flatten)]
        look: LookOptions,
    },
    /// Accept the tokens of the Python client from a qube, or stop accepting them
    #[cfg(feature = "v1")]
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
    /// Start the service for some time, then stop it; a second `start` replaces the time
    Start {
        /// How long, as systemd.time(7) has it: 30min, 2h
        #[arg(long, value_name = "SPAN", default_value = "1h")]
        r#for: String,
    },
    /// Restart the service; first list the commands that the restart would end, and ask
    Restart {
        /// Wait until no command runs or waits; new commands are accepted until then
        #[arg(long, conflicts_with = "yes")]
        when_idle: bool,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Show all of a command that waits for approval, and ask whether it may run; without an id, list those that wait
    Approve {
        /// At least 12 digits of its id; all 64 with --yes
        id: Option<String>,
        /// Refuse it
        #[arg(long)]
        deny: bool,
        /// Show it and allow it without a question; needs the whole id
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        look: LookOptions,
    },
    /// Show dom0's log, or check its chain
    Log {
        /// The entries of this qube only
        #[arg(conflicts_with = "verify")]
        vm: Option<String>,
        /// Check that no entry was changed, removed or added
        #[arg(long)]
        verify: bool,
        /// Compare the log with a copy of a qube's ~/.qvm-remote/audit.log
        #[arg(long, value_name = "FILE", requires = "verify")]
        against: Option<PathBuf>,
    },
    /// Show what is wrong with the configuration, the keys and the policies, and what to write instead
    Check {
        /// A policy; without it, everything in its place
        file: Option<PathBuf>,
    },
    /// Show which rule decides about a command, and why; nothing runs
    Test(TestArguments),
    /// End a command that runs or waits, or the processes that it left in the background
    Kill {
        /// Its id, as status shows it
        id: String,
        /// Its qube, if two qubes have a command with this id
        #[arg(long, value_name = "QUBE")]
        qube: Option<String>,
    },
    /// Show what the daemon does: qubes, commands, requests that wait
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        look: LookOptions,
    },
    /// What programs call
    #[command(flatten)]
    Internal(Internal),
}

/// Commands for installers and for the daemon itself.
#[derive(Debug, Subcommand)]
pub(super) enum Internal {
    /// Print the unit file, for installers
    #[command(hide = true)]
    Unit {
        /// The one for commands
        #[arg(long)]
        commands: bool,
    },
    /// Hold the control groups of commands and of their background processes (started by
    /// qvm-remote-dom0-commands.service)
    #[command(hide = true)]
    Keep,
    /// Read what a VM sends (started by the daemon)
    #[command(hide = true)]
    Parse {
        /// The user id to take on
        #[arg(long)]
        uid: u32,
    },
    /// Read the listing of a queue (started by the daemon)
    #[cfg(feature = "v1")]
    #[command(hide = true, name = "parse-v1")]
    ParseV1 {
        /// The user id to take on
        #[arg(long)]
        uid: u32,
    },
    /// Look after one command (started by the daemon)
    #[command(hide = true)]
    Supervise,
}
