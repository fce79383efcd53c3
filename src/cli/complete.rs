//! What a shell completes: options and commands from the definitions themselves, unit names and sessions from the
//! machine. The shell asks the program (`COMPLETE=bash qrexec-connect -- WORDS`); `packaging/completions` says so to it.
//!
//! Which arguments are units and which are sessions is read from their value names, so a command that is added takes
//! part without a word here.

use std::{
    env,
    process::{Command, Stdio},
};

use clap_complete::{ArgValueCandidates, CompletionCandidate, env::CompleteEnv};
use serde_json::Value;

use super::units::{self, Scope};
use crate::{log::escape, spec::PREFIXES};

/// What an argument of `command` with this value name takes, if it is something that the machine knows.
fn known(command: &str, value_name: &str) -> Option<fn() -> Vec<CompletionCandidate>> {
    match (command, value_name) {
        (_, "UNIT" | "UNIT-OR-FILE") => Some(unit_names),
        (_, "LISTENER") => Some(listeners),
        ("remove", "NAME") => Some(added),
        (_, "ID" | "SESSION") => Some(sessions),
        _ => None,
    }
}

/// Answers a shell and ends the process, where it is a shell that asks. Otherwise nothing.
pub(super) fn answer(command: fn() -> clap::Command) {
    CompleteEnv::with_factory(move || with_candidates(command())).complete();
}

/// `command`, whose arguments know what they may be.
fn with_candidates(command: clap::Command) -> clap::Command {
    let name = command.get_name().to_owned();
    let told = command.mut_args(|arg| {
        let value = arg.get_value_names().and_then(<[_]>::first).map_or(arg.get_id().as_str(), |name| name.as_str());
        match known(&name, &value.to_uppercase()) {
            Some(candidates) => arg.add(ArgValueCandidates::new(candidates)),
            None => arg,
        }
    });
    told.mut_subcommands(with_candidates)
}

fn found() -> impl Iterator<Item = (Scope, units::FoundUnit)> {
    let scopes = [Scope::User, Scope::System].into_iter();
    scopes.flat_map(|scope| units::find(&scope.search_path(), &PREFIXES).into_iter().map(move |found| (scope, found)))
}

fn help(scope: Scope) -> Option<clap::builder::StyledStr> {
    Some(match scope {
        Scope::User => "of this user".into(),
        Scope::System => "of the system".into(),
    })
}

/// Socket units, by their whole names.
fn unit_names() -> Vec<CompletionCandidate> {
    found().map(|(scope, found)| CompletionCandidate::new(found.name).help(help(scope))).collect()
}

/// Socket units, as `add` calls them.
fn added() -> Vec<CompletionCandidate> {
    let short = |name: &str| Some(name.strip_prefix("qrexec-connect-")?.strip_suffix(".socket")?.to_owned());
    found().filter_map(|(scope, found)| Some(CompletionCandidate::new(short(&found.name)?).help(help(scope)))).collect()
}

/// Sessions of the running service, as it tells of them itself.
fn sessions() -> Vec<CompletionCandidate> {
    asked("sessions", "id")
}

/// Listeners of the running service, and the units that it may serve.
fn listeners() -> Vec<CompletionCandidate> {
    asked("status", "address").into_iter().chain(unit_names()).collect()
}

/// What the command `what` tells as JSON, under `key`: asked in a process of its own, which may end as it wants.
fn asked(what: &str, key: &str) -> Vec<CompletionCandidate> {
    let Ok(program) = env::current_exe() else { return Vec::new() };
    let mut ask = Command::new(program);
    ask.args([what, "--json"]).env_remove("COMPLETE").stdin(Stdio::null()).stderr(Stdio::null());
    let Ok(output) = ask.output() else { return Vec::new() };
    let candidate =
        |(word, what): (String, String)| CompletionCandidate::new(word).help(Some(escape(what.as_bytes()).into()));
    words(&output.stdout, key).into_iter().map(candidate).collect()
}

/// The values of `key` in a JSON document, each with the upstream beside it. A word that a shell would read otherwise is
/// left out.
fn words(json: &[u8], key: &str) -> Vec<(String, String)> {
    fn collect(value: &Value, key: &str, words: &mut Vec<(String, String)>) {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@[]%+".contains(&b);
        match value {
            Value::Array(items) => items.iter().for_each(|item| collect(item, key, words)),
            Value::Object(map) => match map.get(key).and_then(Value::as_str) {
                Some(word) if !word.is_empty() && word.bytes().all(plain) => {
                    let upstream = map.get("upstream").and_then(Value::as_str).unwrap_or_default();
                    words.push((word.to_owned(), upstream.to_owned()));
                }
                _ => map.values().for_each(|item| collect(item, key, words)),
            },
            _ => {}
        }
    }
    let mut found = Vec::new();
    if let Ok(document) = serde_json::from_slice(json) {
        collect(&document, key, &mut found);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_a_shell_would_read_otherwise_is_not_offered() {
        let offered =
            |json: &str| words(json.as_bytes(), "id").into_iter().map(|(word, _)| word).collect::<Vec<_>>().join(" ");
        assert_eq!(
            offered(r#"{"sessions":[{"id":"819f8405-0a","upstream":"x"},{"id":"[::1]:80"},{"id":"@name"}]}"#),
            "819f8405-0a [::1]:80 @name"
        );
        assert_eq!(offered(r#"[{"id":"$(reboot)"},{"id":"x;y"},{"id":"a b"},{"id":"*"},{"id":""},{"id":7}]"#), "");
        assert_eq!(offered("it does not run"), "");
    }
}
