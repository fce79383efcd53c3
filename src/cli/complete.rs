//! What a shell completes: options and commands from the definitions themselves, unit names and sessions from the
//! machine. The shell asks the program (`COMPLETE=bash qrexec-connect -- WORDS`); `packaging/completions` says so to it.
//!
//! Which arguments are units and which are sessions is read from their value names, so a command that is added takes
//! part without a word here.

use std::{
    env,
    process::{Command, Stdio},
};

use super::units::{self, Scope};
use crate::spec::PREFIXES;
use clap_complete::{ArgValueCandidates, CompletionCandidate, env::CompleteEnv};

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

/// Sessions of the running service.
fn sessions() -> Vec<CompletionCandidate> {
    asked("sessions")
}

/// Listeners of the running service, and the units that it may serve.
fn listeners() -> Vec<CompletionCandidate> {
    asked("listeners").into_iter().chain(unit_names()).collect()
}

/// What the hidden command `complete` says: it asks the service, in a process that may take as long as it wants to end.
fn asked(what: &str) -> Vec<CompletionCandidate> {
    let Ok(program) = env::current_exe() else { return Vec::new() };
    let mut ask = Command::new(program);
    ask.args(["complete", what]).env_remove("COMPLETE").stdin(Stdio::null()).stderr(Stdio::null());
    let Ok(output) = ask.output() else { return Vec::new() };
    let candidate = |(word, what): (String, String)| CompletionCandidate::new(word).help(Some(what.into()));
    words(&String::from_utf8_lossy(&output.stdout)).into_iter().map(candidate).collect()
}

/// The words in what `complete` says, each with what it is. A word that a shell would read otherwise is left out.
fn words(text: &str) -> Vec<(String, String)> {
    let plain =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/@[]%+".contains(&b));
    let lines = text.lines().map(|line| line.split_once('\t').unwrap_or((line, "")));
    lines.filter(|(word, _)| plain(word)).map(|(word, what)| (word.to_owned(), what.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_a_shell_would_read_otherwise_is_not_offered() {
        let offered = |text: &str| words(text).into_iter().map(|(word, _)| word).collect::<Vec<_>>().join(" ");
        assert_eq!(
            offered("819f8405\ta to b\n127.0.0.1:80\t\n@name\n[::1]:80\tx\n"),
            "819f8405 127.0.0.1:80 @name [::1]:80"
        );
        assert_eq!(offered("$(reboot)\tx\nx;y\n`z`\na b\n*\n\n"), "");
    }
}
