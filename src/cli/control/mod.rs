//! The commands about a running service, the same for `qrexec-connect` and `pfwd`: what it does, for whom, and how to
//! stop that.

#[cfg(test)]
mod captures;
mod kill;
mod knock;
mod place;
mod row;
mod service;
mod sessions;
mod socket_unit;
mod start_unit;
mod status;
mod step;
mod trial;
mod words;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};

use super::table::{self, LookOptions};
use crate::{
    control::{
        api::{self, Format},
        client::CallFailed,
    },
    report::Fatal,
};
use service::{AskedService, each};
pub(super) use service::{Program, WhichService, socket_path};
pub(super) use service::{print, print_json};
use words::listeners_of_unit;

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum ControlCommand<P: WhichService> {
    /// Show all listeners, their state, and what is wrong.
    /// Exits with 1 when a listener is not served
    Status(StatusOptions<P>),
    /// List the open sessions, with their clients
    Sessions(SessionsOptions<P>),
    /// End sessions; their END in the journal is `killed`
    Kill(KillOptions<P>),
    /// Pause a listener: new clients wait in the backlog, sessions continue
    Pause(PauseOptions<P>),
    /// Accept on a paused listener again
    Resume(PauseOptions<P>),
    /// Make one connection through a listener and show each step with its time, or the step that fails, the cause and
    /// the next command. No data is sent; over UDP, one empty datagram. Exits with 1 when a step fails
    Try(TryOptions<P>),
    /// Print the service's counters as text for Prometheus
    Metrics(MetricsOptions<P>),
}

/// Options of `status`.
#[derive(Clone, Debug, Args)]
pub(super) struct StatusOptions<P: WhichService> {
    #[command(flatten)]
    place: P,
    /// Only these listeners: a label, a socket unit or its short name, an address or a port; a word that means several
    /// shows all of them
    #[arg(value_name = "LISTENER")]
    listeners: Vec<String>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    look: LookOptions,
    /// Read this configuration instead of the usual one
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// Options of `sessions`.
#[derive(Clone, Debug, Args)]
pub(super) struct SessionsOptions<P: WhichService> {
    #[command(flatten)]
    place: P,
    /// Only the session with this id, or whose id starts with this
    #[arg(value_name = "ID", conflicts_with = "follow")]
    id: Option<String>,
    /// Keep running and print events: sessions begin, connect and end
    #[arg(long, short)]
    follow: bool,
    /// Print one JSON object instead of a table; with --follow one in each line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    look: LookOptions,
}

/// Options of `kill`.
#[derive(Clone, Debug, Args)]
pub(super) struct KillOptions<P: WhichService> {
    #[command(flatten)]
    place: P,
    /// Sessions: an id or its beginning (the eight digits that `sessions` and the journal show are enough), or a
    /// listener as `pause` takes it, for all its sessions
    #[arg(value_name = "SESSION|LISTENER", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<String>,
    /// End all sessions
    #[arg(long)]
    all: bool,
}

/// Options of `pause` and `resume`.
#[derive(Clone, Debug, Args)]
pub(super) struct PauseOptions<P: WhichService> {
    #[command(flatten)]
    place: P,
    /// Listeners: a label, a socket unit or its short name, an address or a port; web:8003 means only the port 8003 of
    /// web, and /tcp or /udp behind a word only that transport
    #[arg(value_name = "LISTENER", required_unless_present = "all", conflicts_with = "all")]
    listeners: Vec<String>,
    /// All listeners
    #[arg(long)]
    all: bool,
}

/// Options of `try`.
#[derive(Clone, Debug, Args)]
pub(super) struct TryOptions<P: WhichService> {
    #[command(flatten)]
    place: P,
    /// The listener: a label, a socket unit or its short name, an address or a port
    #[arg(value_name = "LISTENER")]
    listener: String,
    /// Print one JSON object for each listener that is tried, each in one line
    #[arg(long)]
    json: bool,
}

/// Options of `metrics`.
#[derive(Clone, Debug, Args)]
pub(super) struct MetricsOptions<P: WhichService> {
    #[command(flatten)]
    place: P,
    /// Only the series of these listeners: a label, a socket unit or its short name, an address or a port; a word that
    /// means several shows all of them
    #[arg(value_name = "LISTENER")]
    listeners: Vec<String>,
    /// OpenMetrics 1.0 instead of Prometheus' older format, which promtool reads
    #[arg(long)]
    openmetrics: bool,
}

/// Runs a command.
pub(super) fn run<P: WhichService>(program: Program, command: &ControlCommand<P>) -> Result<ExitCode, Fatal> {
    match command {
        ControlCommand::Status(options) => {
            let service = AskedService::new(program, &options.place);
            let sources = (program.sources)(options.config.clone(), service.scope);
            status::run(&service, &sources, options.json, options.look, &options.listeners)
        }
        ControlCommand::Sessions(options) => {
            let service = AskedService::new(program, &options.place);
            if options.follow {
                sessions::follow(&service, options.json, options.look)
            } else {
                sessions::list(&service, options.id.clone(), options.json, options.look)
            }
        }
        ControlCommand::Kill(options) => {
            let service = AskedService::new(program, &options.place);
            if options.all { kill::everything(&service) } else { kill::by_words(&service, &options.ids) }
        }
        ControlCommand::Pause(options) => pause(&AskedService::new(program, &options.place), "Pause", options),
        ControlCommand::Resume(options) => pause(&AskedService::new(program, &options.place), "Resume", options),
        ControlCommand::Try(options) => {
            trial::run(&AskedService::new(program, &options.place), &options.listener, options.json)
        }
        ControlCommand::Metrics(options) => {
            let format = if options.openmetrics { Format::OpenMetrics } else { Format::Prometheus };
            let service = AskedService::new(program, &options.place);
            match metrics(&service, format, &options.listeners) {
                Ok(answer) => print(&answer.text),
                Err(failed) if service.waits_for_connection(&failed) => {
                    eprintln!("{}", service.no_sessions_yet());
                    print(if options.openmetrics { "# EOF\n" } else { "" })
                }
                Err(failed) => Err(service.failure(failed)),
            }
        }
    }
}

/// Asks for the series of listeners; for everything where no word is given.
fn metrics(service: &AskedService, format: Format, words: &[String]) -> Result<api::Text, CallFailed> {
    let ask = |words: Vec<String>| {
        let listeners = Some(words).filter(|words| !words.is_empty());
        service.try_call("Metrics", &api::As { format: Some(format), listeners })
    };
    match ask(words.to_vec()) {
        // The service asks its manager for its units a moment after it has started.
        Err(CallFailed::Refused(name, parameters)) if name == "NoSuchListener" => {
            let of_unit = |word: &String| match listeners_of_unit(service, word) {
                found if found.is_empty() => vec![word.clone()],
                found => found,
            };
            let again: Vec<String> = words.iter().flat_map(of_unit).collect();
            if again == words { Err(CallFailed::Refused(name, parameters)) } else { ask(again) }
        }
        answer => answer,
    }
}

fn pause<P: WhichService>(service: &AskedService, method: &str, options: &PauseOptions<P>) -> Result<ExitCode, Fatal> {
    let all = if options.all { kill::all_listeners(service)? } else { Vec::new() };
    let listeners = if options.all { &all } else { &options.listeners };
    let done = if method == "Pause" { "paused: connections wait in the backlog" } else { "resumed" };
    let act = |listener: String| service.try_call::<api::Addresses>(method, &api::Named { listener });
    each(listeners, |word| {
        let answers = match act(word.to_owned()) {
            // The service asks its manager for its units a moment after it has started.
            Err(CallFailed::Refused(name, parameters)) if name == "NoSuchListener" => {
                let listeners = listeners_of_unit(service, word);
                if listeners.is_empty() {
                    Err(CallFailed::Refused(name, parameters))
                } else {
                    listeners.into_iter().map(act).collect()
                }
            }
            answer => answer.map(|answer| vec![answer]),
        };
        let answers = answers.map_err(|failed| kill::not_to_be_paused(service, failed))?;
        let called = answers.iter().flat_map(|answer| match &answer.called[..] {
            [] => &answer.listeners,
            _ => &answer.called,
        });
        Ok(called.map(|listener| format!("{} is {done}", table::clean(listener))).collect())
    })
}
