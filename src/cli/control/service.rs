//! The service that a command is about: where it is, how it is asked, and how its answers are printed.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use clap::Args;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    cli::{config::Sources, systemctl, table, units::Scope},
    control::{
        SOCKET,
        api::{self, State},
        client::{CallFailed, ControlConnection},
        select::{KnownListener, no_match},
    },
    log::escape,
    report::{Code, Fatal},
    systemd::systemctl::user_runtime_directory,
};

/// How long a service that restarts may take to answer.
const RESTART: Duration = Duration::from_secs(5);
/// Pause between two attempts.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// Which program, and which of its services.
#[derive(Clone, Copy, Debug)]
pub(in crate::cli) struct Program {
    /// Its name: that of its service and of the directory of its control socket.
    pub(in crate::cli) name: &'static str,
    /// How names of its socket units begin.
    pub(in crate::cli) prefix: &'static str,
    /// Whose service is meant unless an option says otherwise.
    pub(in crate::cli) usual: Scope,
    /// Where its configuration is, unless an argument says otherwise.
    pub(in crate::cli) sources: fn(Option<PathBuf>, Scope) -> Sources,
}

/// Which service is asked; a program that has only one has no options for that.
pub(in crate::cli) trait WhichService: Args {
    /// Whose it is.
    fn scope(&self) -> Scope;
    /// Where its control socket is, if not in its usual place.
    fn socket(&self) -> Option<&Path>;
}

/// The usual place of a control socket.
pub(in crate::cli) fn socket_path(program: Program, scope: Scope) -> PathBuf {
    let runtime = match scope {
        Scope::System => PathBuf::from("/run"),
        Scope::User => user_runtime_directory(),
    };
    runtime.join(program.name).join(SOCKET)
}

/// A service to ask.
#[derive(Debug)]
pub(super) struct AskedService {
    pub(super) program: Program,
    /// Whose it is.
    pub(super) scope: Scope,
    /// The path of the control socket.
    pub(super) socket: PathBuf,
    /// Whether that is its usual place, so that systemd knows of it.
    pub(super) usual: bool,
}

impl AskedService {
    /// The service of `program` that is meant.
    pub(super) fn new(program: Program, place: &impl WhichService) -> Self {
        let scope = place.scope();
        let usual = place.socket().is_none();
        let socket = place.socket().map_or_else(|| socket_path(program, scope), Path::to_owned);
        Self { program, scope, socket, usual }
    }

    /// The unit's name.
    pub(super) fn unit(&self) -> String {
        format!("{}.service", self.program.name)
    }

    /// systemd's ActiveState of the service; `None` where systemd does not answer, or knows nothing of this service.
    pub(super) fn active_state(&self) -> Option<String> {
        let shown = systemctl::show(self.scope, &["ActiveState"], &[self.unit()]).filter(|_| self.usual)?;
        shown.first()?.last("ActiveState")
    }

    /// Whether there is no service because nobody has connected yet: systemd listens for it.
    pub(super) fn waits_for_connection(&self, failed: &CallFailed) -> bool {
        matches!(failed, CallFailed::Connect(e) if e.kind() == io::ErrorKind::NotFound)
            && self.active_state().as_deref() == Some("inactive")
            && systemctl::listens_for(self.scope, self.program.prefix)
    }

    /// Why there can be no service of this user, where that is so.
    pub(super) fn no_manager(&self) -> Option<String> {
        let runtime = user_runtime_directory();
        let missing = self.usual && self.scope == Scope::User && !runtime.exists();
        missing.then(|| format!("this user has no service manager: {} does not exist", runtime.display()))
    }

    /// What there is to say before the first connection.
    pub(super) fn no_sessions_yet(&self) -> String {
        format!("no sessions; the first connection starts {}", self.unit())
    }

    /// What stands behind a command about this service, where it is not the program's usual one.
    pub(super) fn place_option(&self) -> &'static str {
        // A program whose usual service is the system's has no such option.
        if self.scope == Scope::System && self.program.usual == Scope::User { " --system" } else { "" }
    }

    /// Makes a call, and makes it again while the service restarts.
    pub(super) fn try_call<T: DeserializeOwned>(
        &self,
        method: &str,
        arguments: &impl Serialize,
    ) -> Result<T, CallFailed> {
        self.patiently(|client| client.call(method, arguments))
    }

    /// Has `call` done by the service, and does it again while the service restarts.
    pub(super) fn patiently<T>(
        &self,
        call: impl Fn(&mut ControlConnection) -> Result<T, CallFailed>,
    ) -> Result<T, CallFailed> {
        let deadline = Instant::now() + RESTART;
        loop {
            let failed = match ControlConnection::connect(&self.socket).and_then(|mut client| call(&mut client)) {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let passing = match &failed {
                CallFailed::Connect(e) => {
                    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
                }
                CallFailed::Cut => true,
                CallFailed::Refused(name, _) => name == "Stopping",
                CallFailed::Strange(_) => false,
            };
            if !passing || Instant::now() > deadline || !self.restarts() {
                return Err(failed);
            }
            sleep(PAUSE);
        }
    }

    /// Whether systemd has the service running or on its way, although the service does not answer. Between the two
    /// halves of a restart the unit is inactive, with a job.
    pub(super) fn restarts(&self) -> bool {
        let shown = systemctl::show(self.scope, &["ActiveState", "Job"], &[self.unit()]);
        let Some(unit) = shown.and_then(|units| units.into_iter().next()) else { return false };
        let runs = unit.last("ActiveState").is_some_and(|state| !matches!(state.as_str(), "inactive" | "failed"));
        self.usual && (runs || unit.last("Job").is_some())
    }

    /// Makes a call.
    ///
    /// # Errors
    /// The failure in words for the user, with the next step.
    pub(super) fn call<T: DeserializeOwned>(&self, method: &str, arguments: &impl Serialize) -> Result<T, Fatal> {
        self.try_call(method, arguments).map_err(|failed| self.failure(failed))
    }

    /// The failure in words for the user, with the next step.
    pub(super) fn failure(&self, failed: CallFailed) -> Fatal {
        let (path, flag) = (self.socket.display(), self.scope.flag());
        let program = self.program.name;
        match failed {
            failed if failed.is_forbidden() => Fatal::new(Code::Permission, format!("{path}: {failed}"))
                .hint("only the user whom the service runs as and root may ask it"),
            CallFailed::Connect(e) => {
                if let Some(what) = self.no_manager() {
                    let enable = "log in as this user, or run as root: loginctl enable-linger USER";
                    let hint = format!("{enable}; for the system's service: {program} … --system");
                    return Fatal::new(Code::Failure, what).hint(hint);
                }
                let other = match self.scope {
                    Scope::User => format!("; for the system's service: {program} … --system"),
                    Scope::System => String::new(),
                };
                let why = match e.kind() {
                    io::ErrorKind::NotFound => format!("there is no control socket at {path}"),
                    io::ErrorKind::ConnectionRefused => format!("nobody listens on its control socket {path}"),
                    _ => format!("{path}: {e}"),
                };
                Fatal::new(Code::Failure, format!("{program} does not run: {why}"))
                    .hint(format!("see `{program} status` and `systemctl {flag}status {program}`{other}"))
            }
            CallFailed::Refused(name, parameters) if name == "NoSuchListener" => {
                let refused = || Fatal::new(Code::Failure, CallFailed::Refused(name, parameters.clone()));
                let word = parameters["listener"].as_str().unwrap_or_default();
                self.no_active_listener(word).map_or_else(refused, |what| Fatal::new(Code::Failure, what))
            }
            failed => Fatal::new(Code::Failure, failed),
        }
    }

    /// The sentence about a word that means no active listener; nothing where the service does not answer any more.
    fn no_active_listener(&self, word: &str) -> Option<String> {
        let all: api::Listeners = self.try_call("ListListeners", &serde_json::json!({})).ok()?;
        let active = |listener: &&api::Listener| matches!(listener.state, State::Serving | State::Paused);
        let active: Vec<_> = all.listeners.iter().filter(active).map(KnownListener::from).collect();
        Some(table::clean(&no_match(word, "active", &active)))
    }
}

/// Does something for each word and prints what came of it; the first failure counts, after all were tried.
pub(super) fn each(
    words: &[String],
    mut act: impl FnMut(&str) -> Result<Vec<String>, Fatal>,
) -> Result<ExitCode, Fatal> {
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
pub(in crate::cli) fn print(text: &str) -> Result<ExitCode, Fatal> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Fatal::new(Code::Failure, format!("cannot write: {e}"))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints as JSON, in one line.
pub(in crate::cli) fn print_json(value: &impl Serialize) -> Result<ExitCode, Fatal> {
    let text = serde_json::to_string(value).map_err(|e| Fatal::new(Code::Failure, e))?;
    print(&format!("{}\n", harmless(&text)))
}

/// JSON that says the same without anything that a terminal obeys: JSON itself asks that of the first 32 characters
/// only.
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
