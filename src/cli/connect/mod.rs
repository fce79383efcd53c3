//! The face of `qrexec-connect`.

mod add;
mod config;
mod demo;
mod far_end;
mod qubesdb;
mod stand_in;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use super::{
    arguments, check, complete, control, effective, generator, help, refresh, reload,
    serve::{self, TimestampsOption},
    units::Scope,
};
use crate::{
    dial::qrexec::CLIENT,
    report::{self, Code, Fatal},
};

const PROGRAM: &str = "qrexec-connect";
const CONTROLLED: control::Program =
    control::Program { name: PROGRAM, prefix: "qrexec-connect-", usual: Scope::User, sources: config::sources };

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Manuals: qrexec-connect(1), qrexec-connect.socket(5); `qrexec-connect --help` has the exit codes"
)]
#[command(after_long_help = more_help())]
#[command(name = PROGRAM, version, about = "Connects local ports and UNIX sockets to services in other qubes")]
#[command(long_about = "\
Connects local ports and UNIX sockets to services in other qubes.

Write a socket unit of three lines, say ~/.config/systemd/user/qrexec-connect-gitweb.socket:

    [Socket]
    ListenStream=127.0.0.1:1234
    FileDescriptorName=@default qubes.ConnectTCP+1234

then

    systemctl --user daemon-reload
    systemctl --user enable --now qrexec-connect-gitweb.socket
    journalctl --user -t qrexec-connect -f

or let `qrexec-connect add` write it. `qrexec-connect demo` shows how it works, on any Linux machine.")]
struct ConnectArguments {
    #[command(subcommand)]
    command: Option<ConnectCommand>,
    #[command(flatten)]
    serve: Serve,
}

/// What `--help` says at its end: the service, the manuals, the exit codes.
fn more_help() -> String {
    format!(
        "Service: qrexec-connect.service serves the sockets of qrexec-connect-NAME.socket, one of each user and one of \
         the system\n\n{}\n\nManuals: qrexec-connect(1), qrexec-connect.socket(5) with the options of a name, \
         qrexec-connect.journal(7)",
        help::exit_help()
    )
}

#[derive(Debug, Subcommand)]
enum ConnectCommand {
    /// Serve the sockets that systemd passes (the default; started by qrexec-connect.service)
    Serve(Serve),
    /// Show where each socket unit leads, and what is wrong
    Check(Check),
    /// Print each value of the running service with its origin, or, if no service runs, the values that a start would
    /// use
    Config {
        #[command(flatten)]
        options: effective::EffectiveOptions,
        /// Show the system's configuration instead of the user's
        #[arg(long)]
        system: bool,
    },
    /// Write a socket unit
    Add(add::Add),
    /// Stop, disable and delete a socket unit that `add` wrote
    Remove(add::Remove),
    #[command(flatten)]
    Control(control::ControlCommand<WhichConnect>),
    /// Show how it works on this machine, without root, Qubes or systemd
    Demo {
        /// Make one request through each listener, then exit
        #[arg(long)]
        check: bool,
    },
    /// Reload the configuration of the running service, and wait for the result
    Reload {
        /// Use the system's service instead of the user's
        #[arg(long)]
        system: bool,
    },
    /// Own calls, and sessions between two processes of the service (started by qrexec-connect-calls.service)
    #[command(hide = true)]
    Keep,
    /// Restart the service for a socket that starts (started by qrexec-connect-refresh.service)
    #[command(hide = true)]
    Refresh {
        /// Use the system's service instead of the user's
        #[arg(long)]
        system: bool,
    },
    /// Serve what dom0 declares in QubesDB (started by qrexec-connect-qubesdb.service)
    #[command(hide = true)]
    Qubesdb {
        /// Take all of it away instead, and end
        #[arg(long)]
        withdraw: bool,
    },
    /// Serve many streams of one call (started by a service in /etc/qubes-rpc)
    #[command(hide = true)]
    FarEnd(far_end::FarEndOptions),
    /// Play qrexec-client-vm for the demo
    #[command(hide = true)]
    StandIn {
        /// The arguments of qrexec-client-vm
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Which service is asked: there is one for each user, and one of the system.
#[derive(Clone, Debug, Args)]
struct WhichConnect {
    /// Ask the system's service instead of the user's
    #[arg(long)]
    system: bool,
    /// Use this control socket
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl control::WhichService for WhichConnect {
    fn scope(&self) -> Scope {
        if self.system { Scope::System } else { Scope::User }
    }

    fn socket(&self) -> Option<&Path> {
        self.control.as_deref()
    }
}

/// Options of `check`.
#[derive(Clone, Debug, Args)]
struct Check {
    #[command(flatten)]
    check: check::CheckOptions,
    /// Look at the system's units instead of the user's
    #[arg(long)]
    system: bool,
}

impl Check {
    fn scope(&self) -> Scope {
        if self.system { Scope::System } else { Scope::User }
    }
}

/// Options of `serve`.
#[derive(Clone, Debug, Args)]
struct Serve {
    /// The program that makes qrexec calls
    #[arg(long, value_name = "PATH", default_value = CLIENT)]
    qrexec_client: PathBuf,
    /// Read this configuration instead of the user's and the system's
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Calls to one qube at a time if max_calls is not set; further connections wait until a call ends
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    calls_per_qube: u16,
    /// Create the control socket here instead of in the directory of RuntimeDirectory=
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(flatten)]
    timestamps: TimestampsOption,
    /// Exit after this many seconds without a session; the next connection starts the service again
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    exit_idle_time: Option<Duration>,
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: u32 = text.trim_end_matches('s').parse().map_err(|_| "write a whole number of seconds")?;
    if seconds == 0 {
        return Err("at least one second".to_owned());
    }
    Ok(Duration::from_secs(seconds.into()))
}

/// Its arguments, for the manual and for shells.
pub fn command() -> clap::Command {
    ConnectArguments::command()
}

/// Runs `qrexec-connect`, or the generator when called by that name.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next().unwrap_or_default();
    if called.to_string_lossy().ends_with("-generator") {
        // Of the three directories the first is for drop-ins that override nothing.
        let scope = if called.to_string_lossy().contains("user-generators") { Scope::User } else { Scope::System };
        let result = generator::run(PROGRAM, words.next().map(PathBuf::from), scope);
        return report::end("qrexec-connect-generator", result);
    }
    complete::answer(CONTROLLED, Scope::User, command);
    let arguments: ConnectArguments = arguments::parse(PROGRAM);
    let result = match arguments.command.unwrap_or(ConnectCommand::Serve(arguments.serve)) {
        ConnectCommand::Serve(options) => serve(options),
        ConnectCommand::Check(options) => {
            check::run(&check::CheckRequest::new(&options.check, CONTROLLED, options.scope()))
        }
        ConnectCommand::Add(options) => add::add(&options, CONTROLLED),
        ConnectCommand::Remove(options) => add::remove(&options),
        ConnectCommand::Control(command) => control::run(CONTROLLED, &command),
        ConnectCommand::Demo { check } => demo::run(check),
        ConnectCommand::Config { options, system } => {
            let scope = if system { Scope::System } else { Scope::User };
            effective::run(&options, &config::sources(options.config.clone(), scope), CONTROLLED, scope)
        }
        ConnectCommand::Reload { system } => reload::run(CONTROLLED, if system { Scope::System } else { Scope::User }),
        ConnectCommand::Keep => serve::keep(PROGRAM),
        ConnectCommand::Refresh { system } => {
            refresh::run(CONTROLLED, if system { Scope::System } else { Scope::User })
        }
        ConnectCommand::Qubesdb { withdraw } => qubesdb::run(PROGRAM, withdraw),
        ConnectCommand::FarEnd(options) => far_end::run(PROGRAM, &options),
        ConnectCommand::StandIn { words } => stand_in::run(&words),
    };
    report::end(PROGRAM, result)
}

/// `qrexec-connect serve`: what qrexec-connect.service runs.
fn serve(options: Serve) -> Result<ExitCode, Fatal> {
    serve::run(serve::ServeOptions {
        program: PROGRAM,
        // A manager of the system gives its service no HOME.
        sources: config::sources(options.config, Scope::User),
        qrexec_client: options.qrexec_client,
        calls_per_qube: options.calls_per_qube,
        exit_idle_time: options.exit_idle_time,
        strict: false,
        control: options.control,
        log_level: None,
        timestamps: options.timestamps.when,
        lonely,
    })
}

/// Started by hand, without a socket: says what this is.
fn lonely() -> Fatal {
    let failure =
        Fatal::new(Code::Usage, "no sockets were passed: systemd starts this for qrexec-connect-*.socket units");
    if !std::io::stderr().is_terminal() {
        return failure;
    }
    failure.hint(
        "try `qrexec-connect demo` to see it work, `qrexec-connect add NAME PORT \"@default qubes.ConnectTCP+PORT\" --now` \
         to make a socket unit, or `qrexec-connect --help`",
    )
}
