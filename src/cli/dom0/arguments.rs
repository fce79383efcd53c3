//! What is typed: the options of the daemon, and the commands.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use super::{test_policy::TestArguments, text};
use crate::{cli::table::LookOptions, sys::Identity};

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
    /// Serve this qube, whatever the configuration lists
    #[arg(long, value_name = "VM")]
    pub(super) vm: Option<String>,
    /// Do what waits now, then end
    #[arg(long)]
    pub(super) once: bool,
    /// Say what would be done; touch nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Say more
    #[arg(short, long)]
    pub(super) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Dom0Command {
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
        /// End its commands, too, with those that wait and what they left in the background
        #[arg(long)]
        kill: bool,
    },
    /// List the authorised qubes
    Keys {
        #[command(flatten)]
        look: LookOptions,
    },
    /// Take the tokens of the Python client from a qube, or no longer
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
    /// Start the service for a while; then it is stopped. Again: another while
    Start {
        /// For so long: 30min, 2h (systemd.time(7))
        #[arg(long, value_name = "SPAN", default_value = "1h")]
        r#for: String,
    },
    /// Restart the service; first show which commands that would cut, and ask
    Restart {
        /// When no command runs or waits; everybody is served until then
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
        /// Show it, but do not ask: for the whole id
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
        /// Check that no entry was changed, taken out or put in
        #[arg(long)]
        verify: bool,
        /// Compare it with what a qube has kept: a copy of its ~/.qvm-remote/audit.log
        #[arg(long, value_name = "FILE", requires = "verify")]
        against: Option<PathBuf>,
    },
    /// Say what is wrong with the configuration, the keys and the policies, and what to write instead
    Check {
        /// A policy; without it, everything in its place
        file: Option<PathBuf>,
    },
    /// Say which rule decides about a command, and why; nothing runs
    Test(TestArguments),
    /// End a command that runs, waits, or left processes in the background
    Kill {
        /// Its id, as status shows it
        id: String,
        /// Its qube, where two qubes have a command with this id
        #[arg(long, value_name = "QUBE")]
        qube: Option<String>,
    },
    /// What the running daemon does
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
    /// Own commands, and what they leave in the background (started by qvm-remote-dom0-commands.service)
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
    Supervise {
        /// The path to execute; without it there is no such program
        #[arg(long)]
        program: Option<PathBuf>,
        /// Descriptor 4 is the text that the program reads
        #[arg(long)]
        script: bool,
        /// Standard input is a terminal
        #[arg(long)]
        tty: bool,
        /// UID:GID:GROUPS
        #[arg(long, value_parser = identity)]
        identity: Option<Identity>,
        /// Descriptors that the command may have
        #[arg(long)]
        descriptors: u64,
        /// The directory to run in
        #[arg(long)]
        cwd: PathBuf,
        /// Run in / where that directory cannot be entered
        #[arg(long)]
        cwd_optional: bool,
        /// The umask, as a decimal number
        #[arg(long)]
        umask: u32,
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
