//! The face of `pfwd`.

mod show;

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{
    Args, CommandFactory as _, Parser, Subcommand,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};

use super::{
    arguments, check, complete,
    config::{self, Sources},
    control, effective, generator, help, refresh, reload,
    serve::{self, ServeOptions, TimestampsOption},
    units::Scope,
};
use crate::{
    dial::qrexec::CLIENT,
    report::{self, Code, Fatal},
    spec::{KeyName, LogLevel},
};

const PROGRAM: &str = "pfwd";
/// Where the configuration is, unless an argument says otherwise.
const FILE: &str = "/etc/pfwd.toml";

const CONTROLLED: control::Program = control::Program { name: PROGRAM, prefix: "pfwd-", usual: Scope::System, sources };

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_help_heading = "Commands")]
#[command(after_help = "Manuals: pfwd(1), pfwd.toml(5); `pfwd --help` has the keys and the exit codes")]
#[command(after_long_help = more_help())]
#[command(name = PROGRAM, version, about = "Forwards TCP, UDP and UNIX sockets, also from and into network namespaces")]
#[command(long_about = "\
Forwards TCP, UDP and UNIX sockets, also from and into network namespaces.

One forward for each --forward, and for each [[forward]] of the configuration:

    pfwd --forward listen=0.0.0.0:2222,namespace=qdhcp-27a7,target=192.168.31.201:22

or in two steps, over a UNIX socket that both sides can see:

    pfwd --forward listen=0.0.0.0:2222,uds=/run/qdhcp/ssh.sock \\
         --forward namespace=qdhcp-27a7,uds=/run/qdhcp/ssh.sock,target=192.168.31.201:22

The same keys serve as FileDescriptorName= of a socket unit pfwd-NAME.socket; --print-units writes those.")]
struct PfwdArguments {
    #[command(subcommand)]
    command: Option<PfwdCommand>,
    /// Read this configuration instead of /etc/pfwd.toml
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// A forward, or keys that replace those of the configuration's forward with the same label, else the same listen,
    /// else the same served uds; may be repeated
    #[arg(long, value_name = "KEY=VALUE,…")]
    forward: Vec<String>,
    /// Check the configuration and the forwards of this command line, like the command `check`
    #[arg(long, group = "instead")]
    check: bool,
    /// Print socket units for the same forwards, and exit
    #[arg(long, group = "instead")]
    print_units: bool,
    /// Print the network namespaces of the configuration, with their paths and inodes, and exit
    #[arg(long, group = "instead")]
    show_netns: bool,
    /// As the command `reload`, for ExecReload= of units from before there was one
    #[arg(long, group = "instead", hide = true)]
    reload: bool,
    /// Exit if a forward cannot be served, instead of serving all other forwards
    #[arg(long)]
    strict: bool,
    /// Create the control socket here instead of in the directory of RuntimeDirectory=
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The least serious level that is logged: error, warn, info or debug
    #[arg(long, value_name = "LEVEL", value_parser = log_level())]
    log_level: Option<LogLevel>,
    #[command(flatten)]
    timestamps: TimestampsOption,
    /// The program that makes qrexec calls
    #[arg(long, value_name = "PATH", default_value = CLIENT)]
    qrexec_client: PathBuf,
    /// Qrexec calls to one qube at a time if max_calls is not set; further connections wait until a call ends
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    calls_per_qube: u16,
    /// Exit after this many seconds without a session, if systemd passed all sockets
    #[arg(long, value_name = "SECONDS", value_parser = super::connect::seconds)]
    exit_idle_time: Option<Duration>,
}

/// The commands of `pfwd`.
#[derive(Clone, Debug, Subcommand)]
enum PfwdCommand {
    /// Show where each socket unit and each forward leads, and what is wrong
    Check(check::CheckOptions),
    /// Print each value of the running service with its origin, or, if no service runs, the values that a start would
    /// use
    Config(effective::EffectiveOptions),
    /// Reload the configuration of the running service, and wait for the result
    Reload,
    #[command(flatten)]
    Control(control::ControlCommand<WhichPfwd>),
    /// Own calls, and sessions between two processes of the service (started by pfwd-calls.service)
    #[command(hide = true)]
    Keep,
    /// Restart the service for a socket that starts (started by pfwd-refresh.service)
    #[command(hide = true)]
    Refresh,
}

/// Which service is asked: there is one.
#[derive(Clone, Debug, Args)]
struct WhichPfwd {
    /// Use this control socket instead of /run/pfwd/control
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl control::WhichService for WhichPfwd {
    fn scope(&self) -> Scope {
        Scope::System
    }

    fn socket(&self) -> Option<&Path> {
        self.control.as_deref()
    }
}

/// From `given`, else from the usual file.
fn sources(given: Option<PathBuf>, _: Scope) -> Sources {
    Sources { file: given, places: vec![FILE.into()], forwards: Vec::new() }
}

/// Reads a level; shells and the manual learn all of them.
fn log_level() -> impl TypedValueParser<Value = LogLevel> {
    const LEVELS: [LogLevel; 5] = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];
    let values = LEVELS.map(|level| PossibleValue::new(level.as_str()).hide(level == LogLevel::Trace));
    let level = |text: String| LEVELS.into_iter().find(|level| level.as_str() == text);
    PossibleValuesParser::new(values).try_map(move |text| level(text).ok_or("no such level"))
}

/// What `--help` says at its end: every key, the service, the manuals, the exit codes.
fn more_help() -> String {
    let keys = help::listed(KeyName::ALL.iter().map(|key| key.name()));
    format!(
        "Keys of --forward and of [[forward]], explained in pfwd.toml(5):\n{keys}\n\nService: pfwd.service serves {FILE}, \
         the files of {FILE}.d and the sockets of pfwd-NAME.socket\n\n{}\n\nManuals: pfwd(1), pfwd.toml(5), \
         qrexec-connect.socket(5), qrexec-connect.journal(7)",
        help::exit_help()
    )
}

/// Its arguments, for the manual and for shells.
pub fn command() -> clap::Command {
    PfwdArguments::command()
}

/// Runs `pfwd`, or the generator when called by that name.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    if words.next().unwrap_or_default().to_string_lossy().ends_with("-generator") {
        // Of the three directories the first is for drop-ins that override nothing.
        let result = generator::run(PROGRAM, words.next().map(PathBuf::from), Scope::System);
        return report::end("pfwd-generator", result);
    }
    complete::answer(CONTROLLED, Scope::System, command);
    let arguments: PfwdArguments = arguments::parse(PROGRAM);
    report::end(PROGRAM, run(arguments))
}

fn run(arguments: PfwdArguments) -> Result<ExitCode, Fatal> {
    if arguments.reload {
        return reload::run(CONTROLLED, Scope::System);
    }
    match &arguments.command {
        Some(PfwdCommand::Check(options)) => {
            return check::run(&check::CheckRequest::new(options, CONTROLLED, Scope::System));
        }
        Some(PfwdCommand::Config(options)) => {
            return effective::run(options, &sources(options.config.clone(), Scope::System), CONTROLLED, Scope::System);
        }
        Some(PfwdCommand::Reload) => return reload::run(CONTROLLED, Scope::System),
        Some(PfwdCommand::Control(command)) => return control::run(CONTROLLED, command),
        Some(PfwdCommand::Keep) => return serve::keep(PROGRAM),
        Some(PfwdCommand::Refresh) => return refresh::run(CONTROLLED, Scope::System),
        None => {}
    }
    let named = arguments.config.is_some() || !arguments.forward.is_empty();
    let mut sources = Sources { forwards: arguments.forward, ..sources(arguments.config, Scope::System) };
    // By hand, what was written is what is wanted: the file belongs to the service, which serves it already.
    if !sources.forwards.is_empty() && sources.file.is_none() && std::env::var_os("NOTIFY_SOCKET").is_none() {
        eprintln!("{PROGRAM}: --forward by hand: {FILE} is not read (--config {FILE} reads it, too)");
        sources.places.clear();
    }
    if arguments.check {
        let (program, scope, what) = (CONTROLLED, Scope::System, Vec::new());
        return check::run(&check::CheckRequest { program, scope, what, sources, sources_named: named });
    }
    if arguments.print_units || arguments.show_netns {
        let (config, plan) = match sources.read() {
            Ok(read) => read,
            Err(faults) => return Ok(config::tell(&faults, PROGRAM, true)),
        };
        return Ok(if arguments.print_units { show::units(&config) } else { show::namespaces(&plan) });
    }
    serve::run(ServeOptions {
        program: PROGRAM,
        sources,
        qrexec_client: arguments.qrexec_client,
        calls_per_qube: arguments.calls_per_qube,
        exit_idle_time: arguments.exit_idle_time,
        strict: arguments.strict,
        control: arguments.control,
        log_level: arguments.log_level,
        timestamps: arguments.timestamps.when,
        lonely,
    })
}

/// The failure of a program that was given nothing to forward.
fn lonely() -> Fatal {
    let what = format!("nothing to forward: no --forward, no [[forward]] in {FILE}, and systemd passed no socket");
    let failure = Fatal::new(Code::Usage, what);
    if !std::io::stderr().is_terminal() {
        return failure;
    }
    failure.hint("try `pfwd --forward listen=127.0.0.1:2222,target=192.0.2.1:22`, or `pfwd --help`")
}
