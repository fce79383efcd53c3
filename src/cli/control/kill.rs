//! `kill` and `pause` for more than one: sessions by their listener, and everything at once.

use std::process::ExitCode;

use super::{
    service::{AskedService, each, print},
    sessions,
    words::select_or_ask,
};
use crate::{
    cli::table,
    control::{
        api,
        client::CallFailed,
        select::{self, KnownListener, Selection, select},
    },
    log::escape,
    report::{Code, Fatal},
};

/// The shortest beginning of an id that the service takes.
const SHORTEST: usize = 4;

/// What a word of `kill` means.
enum Meant {
    /// Sessions of a listener, by their ids.
    Sessions(Vec<String>),
    /// An id, or the beginning of one: the service says whether there is one.
    Id,
}

/// Ends the sessions that the words mean.
///
/// # Errors
/// A word that means nothing or too much, a session that did not end.
pub(super) fn by_words(service: &AskedService, words: &[String]) -> Result<ExitCode, Fatal> {
    each(words, |word| match meant(service, word) {
        Ok(Meant::Sessions(ids)) if ids.is_empty() => Ok(vec![format!("{} has no sessions", table::clean(word))]),
        Ok(Meant::Sessions(ids)) => end_all(service, &ids),
        Ok(Meant::Id) => {
            // A restart that falls into the middle has the session go on, and it is asked for again.
            let ended: api::Id = service.call("Kill", &api::Id { id: word.to_owned() })?;
            Ok(vec![line(&ended.id)])
        }
        Err(Unclear::Failed(failed)) if service.waits_for_connection(&failed) => Ok(vec![service.no_sessions_yet()]),
        Err(Unclear::Failed(failed)) => Err(service.failure(failed)),
        Err(Unclear::Word(fatal)) => Err(fatal),
    })
}

/// Ends all sessions.
///
/// # Errors
/// The first session that did not end, after all were tried.
pub(super) fn everything(service: &AskedService) -> Result<ExitCode, Fatal> {
    let all = match sessions::all(service, &api::Which::default()) {
        Ok(all) => all,
        Err(failed) if service.waits_for_connection(&failed) => Vec::new(),
        Err(failed) => return Err(service.failure(failed)),
    };
    if all.is_empty() {
        return print("no sessions\n");
    }
    let ids: Vec<String> = all.into_iter().map(|session| session.id).collect();
    each(&ids, |id| end_all(service, &[id.to_owned()]))
}

/// Every listener that can be paused or resumed, each as a word that means it alone.
///
/// # Errors
/// The service does not answer.
pub(super) fn all_listeners(service: &AskedService) -> Result<Vec<String>, Fatal> {
    let status = service.try_call::<api::Status>("Status", &serde_json::json!({}));
    let status = status.map_err(|failed| not_to_be_paused(service, failed))?;
    let can = |listener: &&api::Listener| matches!(listener.state, api::State::Serving | api::State::Paused);
    Ok(status.listeners.iter().filter(can).map(|listener| select::spelling(&KnownListener::from(listener))).collect())
}

/// The error of `pause` and `resume`: before the first connection there is no service that could take it.
pub(super) fn not_to_be_paused(service: &AskedService, failed: CallFailed) -> Fatal {
    if !service.waits_for_connection(&failed) {
        return service.failure(failed);
    }
    let (unit, flag, prefix) = (service.unit(), service.scope.flag(), service.program.prefix);
    Fatal::new(Code::Failure, format!("{unit} does not run yet: the first connection starts it"))
        .hint(format!("to refuse connections: systemctl {flag}stop {prefix}NAME.socket"))
}

fn line(id: &str) -> String {
    format!("session {} is ended", escape(id.as_bytes()))
}

/// Ends sessions by their whole ids; one that has ended by itself meanwhile is no fault.
fn end_all(service: &AskedService, ids: &[String]) -> Result<Vec<String>, Fatal> {
    let mut lines = Vec::new();
    for id in ids {
        match service.try_call::<api::Id>("Kill", &api::Id { id: id.clone() }) {
            Ok(ended) => lines.push(line(&ended.id)),
            Err(CallFailed::Refused(name, _)) if name == "NoSuchSession" => {}
            Err(failed) => return Err(service.failure(failed)),
        }
    }
    Ok(lines)
}

/// Why it is not known what a word means.
enum Unclear {
    Failed(CallFailed),
    Word(Fatal),
}

fn meant(service: &AskedService, word: &str) -> Result<Meant, Unclear> {
    let status: api::Status = service.try_call("Status", &serde_json::json!({})).map_err(Unclear::Failed)?;
    let sessions = sessions::all(service, &api::Which::default()).map_err(Unclear::Failed)?;
    let known: Vec<KnownListener<'_>> = status.listeners.iter().map(KnownListener::from).collect();
    let begins = word.len() >= SHORTEST && sessions.iter().any(|session| session.id.starts_with(word));
    let listed = |all: &[usize]| all.iter().map(|index| select::listed(&known[*index])).collect::<Vec<_>>().join(", ");
    let refused = |what: String, hint: &str| {
        let word = escape(word.as_bytes());
        Err(Unclear::Word(Fatal::new(Code::Failure, format!("{word} means {what}")).hint(hint.to_owned())))
    };
    // The manager is not asked about an id.
    let selection = if begins { select(word, &known) } else { select_or_ask(service, word, &known) };
    match selection {
        Selection::Nothing if word.len() < SHORTEST => refused(
            "no listener, and is too short for the beginning of a session id (at least four digits)".to_owned(),
            "`status` lists the listeners, `sessions` the ids",
        ),
        Selection::Nothing => Ok(Meant::Id),
        selection if begins => {
            refused(format!("a session and {}", listed(selection.all())), "write the whole id, or ADDRESS:PORT")
        }
        Selection::Several(all) => refused(format!("several listeners: {}", listed(&all)), "write one of these"),
        Selection::One(all) => {
            let of = |session: &&api::Session| {
                all.iter().map(|index| &status.listeners[*index]).any(|listener| {
                    let same = session.transport.is_none() || session.transport == listener.kind;
                    session.listener == listener.address && same
                })
            };
            Ok(Meant::Sessions(sessions.iter().filter(of).map(|session| session.id.clone()).collect()))
        }
    }
}
