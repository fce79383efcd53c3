//! The commands about a running service, the same for `qrexec-connect` and `pfwd`: what it does, for whom, and how to
//! stop that.

mod sessions;
mod status;
mod table;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use serde::{Serialize, de::DeserializeOwned};

use super::{config::Sources, systemctl, units::Scope};
use crate::{
    log::escape,
    report::{Code, Failure},
    service::control::{
        SOCKET,
        api::{self, Format},
        client::{Client, Failed},
    },
};

/// How long a service that restarts may take to answer.
const RESTART: Duration = Duration::from_secs(5);
/// How often it is tried meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

/// Which program, and which of its services.
#[derive(Clone, Copy, Debug)]
pub(super) struct Face {
    /// Its name: that of its service and of the directory of its control socket.
    pub(super) program: &'static str,
    /// How names of its socket units begin.
    pub(super) prefix: &'static str,
    /// Where its configuration is, unless an argument says otherwise.
    pub(super) sources: fn(Option<PathBuf>) -> Sources,
}

/// Which service is asked; a program that has only one has no options for that.
pub(super) trait Place: Args {
    /// Whose it is.
    fn scope(&self) -> Scope;
    /// Where its control socket is, if not in its usual place.
    fn socket(&self) -> Option<&Path>;
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command<P: Place> {
    /// Say what is configured, what systemd says of the sockets, what the service makes of them, and what is wrong.
    /// Exits with 1 when a listener is not served
    Status(Status<P>),
    /// List the sessions that live now, with who connected
    Sessions(Sessions<P>),
    /// End sessions; their END in the journal is `killed`
    Kill(Kill<P>),
    /// Accept no more on a listener: whoever connects waits in the backlog, and sessions go on
    Pause(Listeners<P>),
    /// Accept on a paused listener again
    Resume(Listeners<P>),
    /// Print the service's counters as text for Prometheus
    Metrics(Metrics<P>),
}

/// Options of `status`.
#[derive(Clone, Debug, Args)]
pub(super) struct Status<P: Place> {
    #[command(flatten)]
    place: P,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Read this configuration instead of the usual one
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// Options of `sessions`.
#[derive(Clone, Debug, Args)]
pub(super) struct Sessions<P: Place> {
    #[command(flatten)]
    place: P,
    /// Only the session with this id, or with an id that begins so
    #[arg(value_name = "ID", conflicts_with = "follow")]
    id: Option<String>,
    /// Go on and tell when sessions begin, are connected and end
    #[arg(long, short)]
    follow: bool,
    /// Print one JSON object instead of a table; with --follow one in each line
    #[arg(long)]
    json: bool,
}

/// Options of `kill`.
#[derive(Clone, Debug, Args)]
pub(super) struct Kill<P: Place> {
    #[command(flatten)]
    place: P,
    /// Ids of sessions, or their beginnings: the eight digits that `sessions` and the journal show are enough
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

/// Options of `pause` and `resume`.
#[derive(Clone, Debug, Args)]
pub(super) struct Listeners<P: Place> {
    #[command(flatten)]
    place: P,
    /// Addresses, names or labels of listeners as `status` shows them, or socket units
    #[arg(value_name = "LISTENER", required = true)]
    listeners: Vec<String>,
}

/// Options of `metrics`.
#[derive(Clone, Debug, Args)]
pub(super) struct Metrics<P: Place> {
    #[command(flatten)]
    place: P,
    /// OpenMetrics 1.0 instead of Prometheus' older format, which promtool reads
    #[arg(long)]
    openmetrics: bool,
}

/// Runs a command.
///
/// # Errors
/// See each.
pub(super) fn run<P: Place>(face: Face, command: &Command<P>) -> Result<ExitCode, Failure> {
    match command {
        Command::Status(options) => {
            let service = Service::new(face, &options.place);
            status::run(&service, (face.sources)(options.config.clone()), options.json)
        }
        Command::Sessions(options) => {
            let service = Service::new(face, &options.place);
            if options.follow {
                sessions::follow(&service, options.json)
            } else {
                sessions::list(&service, options.id.clone(), options.json)
            }
        }
        Command::Kill(options) => kill(&Service::new(face, &options.place), &options.ids),
        Command::Pause(options) => pause(&Service::new(face, &options.place), "Pause", &options.listeners),
        Command::Resume(options) => pause(&Service::new(face, &options.place), "Resume", &options.listeners),
        Command::Metrics(options) => {
            let format = if options.openmetrics { Format::OpenMetrics } else { Format::Prometheus };
            let service = Service::new(face, &options.place);
            let answer: api::Text = service.call("Metrics", &api::As { format: Some(format) })?;
            print(&answer.text)
        }
    }
}

/// A service to ask.
#[derive(Debug)]
struct Service {
    face: Face,
    scope: Scope,
    /// Its control socket.
    socket: PathBuf,
    /// Whether that is its usual place, so that systemd knows of it.
    usual: bool,
}

impl Service {
    fn new(face: Face, place: &impl Place) -> Self {
        let scope = place.scope();
        let runtime = match scope {
            Scope::System => PathBuf::from("/run"),
            // A user without one has no user manager either; then nobody is found there.
            Scope::User => std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| "/nonexistent".into(), PathBuf::from),
        };
        let usual = place.socket().is_none();
        let socket = place.socket().map_or_else(|| runtime.join(face.program).join(SOCKET), Path::to_owned);
        Self { face, scope, socket, usual }
    }

    /// The unit's name.
    fn unit(&self) -> String {
        format!("{}.service", self.face.program)
    }

    /// Makes a call, and makes it again while the service restarts.
    fn try_call<T: DeserializeOwned>(&self, method: &str, arguments: &impl Serialize) -> Result<T, Failed> {
        self.patiently(|client| client.call(method, arguments))
    }

    fn patiently<T>(&self, call: impl Fn(&mut Client) -> Result<T, Failed>) -> Result<T, Failed> {
        let deadline = Instant::now() + RESTART;
        loop {
            let failed = match Client::connect(&self.socket).and_then(|mut client| call(&mut client)) {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let passing = match &failed {
                Failed::Connect(e) => matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused),
                Failed::Cut => true,
                Failed::Refused(name, _) => name == "Stopping",
                Failed::Strange(_) => false,
            };
            if !passing || Instant::now() > deadline || !self.restarts() {
                return Err(failed);
            }
            sleep(PAUSE);
        }
    }

    /// Whether systemd has it running or on its way, although it does not answer.
    fn restarts(&self) -> bool {
        let state = systemctl::show(self.scope, &["ActiveState"], &[self.unit()]);
        let state = state.and_then(|units| units.into_iter().next()).and_then(|unit| unit.last("ActiveState"));
        self.usual && state.is_some_and(|state| !matches!(state.as_str(), "inactive" | "failed"))
    }

    /// Makes a call.
    ///
    /// # Errors
    /// What to tell the user.
    fn call<T: DeserializeOwned>(&self, method: &str, arguments: &impl Serialize) -> Result<T, Failure> {
        self.try_call(method, arguments).map_err(|failed| self.failure(failed))
    }

    /// What to tell the user.
    fn failure(&self, failed: Failed) -> Failure {
        let (path, flag) = (self.socket.display(), self.scope.flag());
        let program = self.face.program;
        match failed {
            failed if failed.is_forbidden() => Failure::new(Code::Permission, format!("{path}: {failed}"))
                .hint("only the user whom the service runs as and root may ask it"),
            Failed::Connect(e) => {
                let other = match self.scope {
                    Scope::User => format!("; for the system's service: {program} … --system"),
                    Scope::System => String::new(),
                };
                Failure::new(Code::Failure, format!("{program} does not run, or has no control socket: {path}: {e}"))
                    .hint(format!("see `{program} status` and `systemctl {flag}status {program}`{other}"))
            }
            failed => Failure::new(Code::Failure, failed),
        }
    }
}

fn kill(service: &Service, ids: &[String]) -> Result<ExitCode, Failure> {
    each(ids, |id| {
        // A restart that falls into the middle has the session go on, and it is asked for again.
        let ended: api::Id = service.call("Kill", &api::Id { id: id.to_owned() })?;
        Ok(vec![format!("session {} is ended", escape(ended.id.as_bytes()))])
    })
}

fn pause(service: &Service, method: &str, listeners: &[String]) -> Result<ExitCode, Failure> {
    let done = if method == "Pause" { "paused: connections wait in the backlog" } else { "resumed" };
    each(listeners, |called| {
        let addresses =
            if called.ends_with(".socket") { systemctl::listens(service.scope, called) } else { Vec::new() };
        let meant = if addresses.is_empty() { vec![called.to_owned()] } else { addresses };
        let mut lines = Vec::new();
        for listener in meant {
            let answer: api::Addresses = service.call(method, &api::Named { listener })?;
            lines.extend(answer.listeners.iter().map(|address| format!("{} is {done}", table::clean(address))));
        }
        Ok(lines)
    })
}

/// Does something for each word and prints what came of it; the first failure counts, after all were tried.
fn each(words: &[String], mut act: impl FnMut(&str) -> Result<Vec<String>, Failure>) -> Result<ExitCode, Failure> {
    let mut failed = None;
    for word in words {
        match act(word) {
            Ok(lines) => {
                print(&lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>())?;
            }
            Err(failure) if failed.is_none() => failed = Some(failure),
            Err(failure) => {
                let _ = writeln!(io::stderr(), "{failure}");
            }
        }
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

/// Prints, and does not mind a reader that has seen enough.
fn print(text: &str) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::Failure, format!("cannot write: {e}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints as JSON, in one line.
fn print_json(value: &impl Serialize) -> Result<ExitCode, Failure> {
    let text = serde_json::to_string(value).map_err(|e| Failure::new(Code::Failure, e))?;
    print(&format!("{}\n", harmless(&text)))
}

/// JSON that says the same without anything that a terminal obeys: JSON itself asks that of the first 32 characters only.
fn harmless(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        let mut bytes = [0; 4];
        let text: &str = c.encode_utf8(&mut bytes);
        if (' '..='~').contains(&c) || escape(text.as_bytes()) == text {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out += &format!("\\u{unit:04x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn json_holds_nothing_that_a_terminal_obeys_and_says_the_same() {
        let text = "größer \u{1b}[31m \u{7f}\u{9b}2J \u{202e} \u{e0041} \\x1b \"quoted\"";
        let json = serde_json::to_string(text).expect("text");
        let printed = harmless(&json);
        assert!(
            printed.contains("größer") && !printed.contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{printed}"
        );
        assert_eq!(serde_json::from_str::<String>(&printed).expect("JSON"), text);
    }
}
