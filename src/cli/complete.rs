//! What a shell completes: options and commands from the definitions themselves, unit names and sessions from the
//! machine. The shell asks the program (`COMPLETE=bash qrexec-connect -- WORDS`); `packaging/completions` says so to it.
//!
//! Which arguments are units and which are sessions is read from their value names, so a command that is added takes
//! part without a word here.

use clap_complete::{ArgValueCandidates, CompletionCandidate, env::CompleteEnv};

use super::{
    control::{Program, socket_path},
    units::{self, FoundUnit, Scope},
};
use crate::{
    control::{api, client::ControlConnection},
    log::escape,
    spec::PREFIXES,
};

/// What an argument of `command` with this value name takes, if it is something that the machine knows.
fn known(command: &str, value_name: &str, service: (Program, Scope)) -> Option<ArgValueCandidates> {
    Some(match (command, value_name) {
        (_, "UNIT" | "UNIT-OR-FILE") => ArgValueCandidates::new(unit_names),
        (_, "LISTENER") => ArgValueCandidates::new(move || listeners(service)),
        (_, "SESSION|LISTENER") => {
            ArgValueCandidates::new(move || sessions(service).into_iter().chain(listeners(service)).collect::<Vec<_>>())
        }
        ("remove", "NAME") => ArgValueCandidates::new(added),
        (_, "ID" | "SESSION") => ArgValueCandidates::new(move || sessions(service)),
        _ => return None,
    })
}

/// Answers a shell and ends the process, where it is a shell that asks. Otherwise nothing. Sessions and listeners are
/// those of the service of `program` in `scope`.
pub(super) fn answer(program: Program, scope: Scope, command: fn() -> clap::Command) {
    CompleteEnv::with_factory(move || with_candidates(command(), (program, scope))).complete();
}

/// `command`, whose arguments know what they may be.
fn with_candidates(command: clap::Command, service: (Program, Scope)) -> clap::Command {
    let name = command.get_name().to_owned();
    let told = command.mut_args(|arg| {
        let value = arg.get_value_names().and_then(<[_]>::first).map_or(arg.get_id().as_str(), |name| name.as_str());
        match known(&name, &value.to_uppercase(), service) {
            Some(candidates) => arg.add(candidates),
            None => arg,
        }
    });
    told.mut_subcommands(|subcommand| with_candidates(subcommand, service))
}

fn found() -> impl Iterator<Item = (Scope, FoundUnit)> {
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

/// Sessions of the running service.
fn sessions((program, scope): (Program, Scope)) -> Vec<CompletionCandidate> {
    let mut found = Vec::new();
    let take = |part: api::Sessions| {
        found.extend(part.sessions.iter().filter_map(|session| candidate(&session.id, &session.upstream)));
        true
    };
    // Nothing is offered where no service answers.
    let _ = ControlConnection::connect(&socket_path(program, scope))
        .and_then(|mut client| client.each("ListSessions", &api::Which::default(), take));
    found
}

/// Listeners of the running service, and the units that it may serve.
fn listeners((program, scope): (Program, Scope)) -> Vec<CompletionCandidate> {
    let answer = ControlConnection::connect(&socket_path(program, scope))
        .and_then(|mut client| client.call::<api::Listeners>("ListListeners", &serde_json::json!({})));
    let listeners = answer.map(|answer| answer.listeners).unwrap_or_default();
    let known = listeners.iter().filter_map(|listener| candidate(&listener.address, &listener.upstream));
    known.chain(unit_names()).collect()
}

/// A word with the upstream beside it; `None` where a shell would read the word otherwise.
fn candidate(word: &str, upstream: &str) -> Option<CompletionCandidate> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/@[]%+".contains(&b);
    let offered = !word.is_empty() && word.bytes().all(plain);
    offered.then(|| CompletionCandidate::new(word).help(Some(escape(upstream.as_bytes()).into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_a_shell_would_read_otherwise_is_not_offered() {
        for word in ["819f8405-0a", "[::1]:80", "@name"] {
            assert!(candidate(word, "x").is_some(), "{word}");
        }
        for word in ["$(reboot)", "x;y", "a b", "*", ""] {
            assert!(candidate(word, "x").is_none(), "{word}");
        }
    }
}
