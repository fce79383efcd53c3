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
        (_, "UNIT" | "UNIT-OR-FILE" | "LISTENER") => Some(unit_names),
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

fn found() -> impl Iterator<Item = (Scope, units::Found)> {
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

/// Sessions of the running service, as it tells them itself.
fn sessions() -> Vec<CompletionCandidate> {
    let Ok(program) = env::current_exe() else { return Vec::new() };
    let mut ask = Command::new(program);
    ask.args(["sessions", "--json"]).env_remove("COMPLETE").stdin(Stdio::null()).stderr(Stdio::null());
    let Ok(output) = ask.output() else { return Vec::new() };
    session_ids(&output.stdout)
        .into_iter()
        .map(|(id, peer)| CompletionCandidate::new(id).help(Some(escape(peer.as_bytes()).into())))
        .collect()
}

/// The ids in what `sessions --json` says, one document or one a line, each with who connected.
fn session_ids(json: &[u8]) -> Vec<(String, String)> {
    let mut ids = Vec::new();
    for document in serde_json::Deserializer::from_slice(json).into_iter::<Value>().map_while(Result::ok) {
        collect(&document, &mut ids);
    }
    ids
}

fn collect(value: &Value, ids: &mut Vec<(String, String)>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, ids)),
        Value::Object(map) => {
            let text = |keys: &[&str]| keys.iter().find_map(|key| map.get(*key)?.as_str()).map(str::to_owned);
            match text(&["session", "id"]) {
                // an id is an id: nothing that a shell would read otherwise
                Some(id) if id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') => {
                    ids.push((id, text(&["peer"]).unwrap_or_default()));
                }
                _ => map.values().for_each(|item| collect(item, ids)),
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_found_in_one_document_and_in_lines_and_nothing_else_is_taken_for_one() {
        let ids = |json: &str| session_ids(json.as_bytes()).into_iter().map(|(id, _)| id).collect::<Vec<_>>().join(" ");
        assert_eq!(ids(r#"{"sessions":[{"id":"819f8405-0a","peer":"127.0.0.1:6"},{"id":"00"}]}"#), "819f8405-0a 00");
        assert_eq!(ids("{\"session\":\"a1\"}\n{\"session\":\"b2\"}\n"), "a1 b2");
        assert_eq!(ids(r#"[{"id":"$(reboot)"},{"id":"x;y"},{"id":7}]"#), "");
        assert_eq!(ids("error: it does not run"), "");
        assert_eq!(ids(""), "");
    }
}
