//! What a shell completes: options and commands from the definitions themselves, unit names and sessions from the
//! machine. The shell asks the program (`COMPLETE=bash qrexec-connect -- WORDS`); `packaging/completions` says so to it.
//!
//! Which arguments are units and which are sessions is read from their value names, so a command that is added takes
//! part without a word here.

use std::{collections::BTreeSet, ffi::OsStr};

use clap_complete::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate, env::CompleteEnv};

use super::{
    control::{Program, socket_path},
    units::{self, FoundUnit, Scope},
};
use crate::{
    control::{api, client::ControlConnection},
    log::escape,
    spec::{KeyName, PREFIXES},
};

/// The value name of `--forward`.
const FORWARD: &str = "KEY=VALUE,…";

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

/// `command`, whose arguments know what they may be, without what is hidden.
fn with_candidates(command: clap::Command, service: (Program, Scope)) -> clap::Command {
    let name = command.get_name().to_owned();
    // clap offers a hidden command as soon as no other fits. It takes names that live for ever; this process ends soon.
    let command = clap::Command::new(&*Box::leak(name.clone().into_boxed_str()))
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()).cloned());
    let told = command.mut_args(|arg| {
        let value = arg.get_value_names().and_then(<[_]>::first).map_or(arg.get_id().as_str(), |name| name.as_str());
        if value == FORWARD {
            return arg.add(ArgValueCompleter::new(keys));
        }
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
    let words = |listener: &api::Listener| {
        let upstream = listener.upstream.clone();
        let words = [listener.label.clone(), Some(listener.address.clone())];
        words.into_iter().flatten().filter_map(move |word| candidate(&word, &upstream))
    };
    let mut labels = BTreeSet::new(); // that of a forward with several listeners once
    let known = listeners.iter().flat_map(words).filter(|word| labels.insert(word.get_value().to_owned()));
    let known: Vec<_> = known.collect();
    known.into_iter().chain(unit_names()).collect()
}

/// The keys that may follow in `--forward`.
fn keys(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(text) = current.to_str() else { return Vec::new() };
    let (before, last) = text.rsplit_once(',').map_or(("", text), |(before, last)| (before, last));
    let before = if before.is_empty() { String::new() } else { format!("{before},") };
    let given = |key: &str| before.split(',').any(|item| item.split('=').next() == Some(key));
    let fits = KeyName::ALL.iter().map(|key| key.name()).filter(|key| key.starts_with(last) && !given(key));
    fits.map(|key| CompletionCandidate::new(format!("{before}{key}="))).collect()
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
    fn keys_of_a_forward_are_offered_once() {
        let offered = |text: &str| -> Vec<_> {
            keys(OsStr::new(text)).iter().map(|word| word.get_value().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(offered("listen_n"), ["listen_namespace="]);
        assert_eq!(offered("uds=/x,udp_t"), ["uds=/x,udp_target="]);
        assert_eq!(offered("udp_target=a:1,udp_t"), [""; 0]);
        assert!(offered("").len() == KeyName::ALL.len());
    }

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
