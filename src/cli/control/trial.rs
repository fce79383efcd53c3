//! `try`: one connection through a listener, each step with its time.
//!
//! [`TrialStep`] says what each step is and who tells of it.
//!
//! The times of the middle steps are the service's own. Nothing is sent, but an empty datagram over UDP, where the last
//! step is `connected`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{
    knock::{Knock, News, NewsReceiver, NewsSender, watch},
    service::{AskedService, print, print_json},
    step::{DoneStep, FailedStep, Trial, TrialStep},
    words::select_or_ask,
};
use crate::{
    cli::{systemctl, table},
    control::{
        METRICS_UPSTREAM,
        api::{self, Happened, State},
        client::{CallFailed, ControlConnection},
        select::{KnownListener, Selection, listed, no_match, spelling},
    },
    log::{End, escape},
    proto::qrexec::SetUp,
    report::{Code, Fatal},
    spec::SocketKind,
};

/// Without a byte for so long, the service waits for the client.
const SILENCE: Duration = Duration::from_secs(3);
/// How long the service may take to accept a connection, its start included.
const ACCEPT: Duration = Duration::from_secs(20);
/// How long dom0 and the other side may take together: an `ask` prompt of the default `setup_timeout`, and a wait for a
/// turn before.
const SET_UP: Duration = Duration::from_secs(900);
/// After so long somebody may have to answer a prompt.
const UNDECIDED: Duration = Duration::from_secs(2);
/// How long after the end of a connection the service may take to tell why.
const WHY: Duration = Duration::from_secs(2);
/// Listeners that one word may have tried.
const MOST: usize = 8;
/// Listeners that are shown where a word means too many.
const LISTED: usize = 20;

/// Tries the listeners that `word` means.
///
/// # Errors
/// No such listener, several that have nothing else in common, or a service that may not be asked.
pub(super) fn run(service: &AskedService, word: &str, json: bool) -> Result<ExitCode, Fatal> {
    let listeners = listeners(service, word)?;
    let known: Vec<_> = listeners.iter().map(KnownListener::from).collect();
    let meant = match select_or_ask(service, word, &known) {
        Selection::Nothing => {
            return Err(Fatal::new(Code::Failure, table::clean(&no_match(word, "known", &known))));
        }
        Selection::One(meant) if meant.len() <= MOST => meant,
        several => {
            let (all, of) = match &several {
                Selection::One(all) => {
                    (all, format!("{} listeners of one forward, and try takes at most {MOST}", all.len()))
                }
                other => (&other.all().to_vec(), "several listeners".to_owned()),
            };
            let list: String = all.iter().take(LISTED).map(|index| format!("\n  {}", listed(&known[*index]))).collect();
            let more = match all.len().saturating_sub(LISTED) {
                0 => String::new(),
                n => format!("\n  and {n} more"),
            };
            let what = format!("{} means {of}; name one of them:{list}{more}", escape(word.as_bytes()));
            return Err(Fatal::new(Code::Failure, what));
        }
    };
    let mut works = true;
    for listener in meant.iter().map(|index| &listeners[*index]) {
        let trial = Trying::new(service, listener, json).run()?;
        works &= trial.works;
        if json {
            print_json(&trial)?;
        }
    }
    Ok(if works { ExitCode::SUCCESS } else { Code::Failure.into() })
}

/// The listeners of the service; while it does not run, those of the socket units that start it.
fn listeners(service: &AskedService, word: &str) -> Result<Vec<api::Listener>, Fatal> {
    match service.try_call::<api::Listeners>("ListListeners", &serde_json::json!({})) {
        Ok(answer) => return Ok(answer.listeners),
        Err(failed @ CallFailed::Connect(_)) if failed.is_forbidden() => return Err(service.failure(failed)),
        Err(failed) if !service.usual => return Err(service.failure(failed)),
        Err(_) => {}
    }
    let prefix = service.program.prefix;
    let mut names = systemctl::loaded(service.scope, prefix);
    let named = if word.ends_with(".socket") { word.to_owned() } else { format!("{prefix}{word}.socket") };
    if !names.contains(&named) && !named.contains(['/', ' ', ':']) {
        names.push(named);
    }
    let shown = systemctl::show(service.scope, &["Id", "ActiveState", "Listen"], &names).unwrap_or_default();
    let mut listeners = Vec::new();
    for unit in shown {
        let active = unit.last("ActiveState").as_deref() == Some("active");
        for (address, kind) in unit.listens() {
            let unix = address.starts_with(['/', '@']);
            let kind = match kind.as_str() {
                "Stream" if unix => SocketKind::Unix,
                "Stream" => SocketKind::Tcp,
                _ => SocketKind::Udp,
            };
            let state = if active { State::Serving } else { State::Refused };
            listeners.push(api::Listener {
                unit: unit.last("Id"),
                ..crate::control::troubled(&escape(address.as_bytes()), Some(kind), "", state, "")
            });
        }
    }
    Ok(listeners)
}

/// A trial of one listener, with the steps that it has made.
struct Trying<'a> {
    service: &'a AskedService,
    listener: &'a api::Listener,
    json: bool,
    /// Whether the listener leads to a qube.
    call: bool,
    /// Whether this is the second connection: the service did not run at the first, which it has ended already.
    again: bool,
    trial: Trial,
}

/// What is known after a connection.
enum TrialOutcome {
    Known,
    /// The connection is over, and the service told nothing of it.
    Missed,
}

impl<'a> Trying<'a> {
    fn new(service: &'a AskedService, listener: &'a api::Listener, json: bool) -> Self {
        let trial = Trial {
            listener: listener.address.clone(),
            transport: listener.kind.map(SocketKind::word),
            label: listener.label.clone(),
            upstream: Some(listener.upstream.clone()).filter(|upstream| !upstream.is_empty()),
            session: None,
            steps: Vec::new(),
            works: false,
            failure: None,
        };
        Self { service, listener, json, call: listener.queued.is_some(), again: false, trial }
    }

    fn run(mut self) -> Result<Trial, Fatal> {
        let to = self.trial.upstream.as_ref().map(|upstream| format!(" leads to {upstream}")).unwrap_or_default();
        self.say(&format!("{}{to}\n", listed(&KnownListener::from(self.listener))))?;
        if let Some((cause, next)) = self.closed() {
            self.fail(TrialStep::Service, cause, next)?;
            return Ok(self.trial);
        }
        let (to, news) = watch(self.service.socket.clone());
        let runs = !self.listener.upstream.is_empty();
        loop {
            // Nothing of the connection is missed where the service tells before there is one.
            let first = if runs || self.again { news.recv_timeout(WHY).ok() } else { None };
            match self.knock(first, &to, &news)? {
                // The service was started by the connection, and told nothing of it yet.
                TrialOutcome::Missed if !runs && !self.again => self.again = true,
                TrialOutcome::Missed | TrialOutcome::Known => return Ok(self.trial),
            }
        }
    }

    /// Makes one connection and follows it.
    fn knock(
        &mut self,
        mut first: Option<(Instant, News)>,
        to: &NewsSender,
        news: &NewsReceiver,
    ) -> Result<TrialOutcome, Fatal> {
        let knock = match Knock::new(self.listener, to.clone()) {
            Ok(knock) => knock,
            Err(cause) => {
                let next = self.unit_command("start");
                self.fail(TrialStep::Socket, cause, next)?;
                return Ok(TrialOutcome::Known);
            }
        };
        if !self.again {
            self.done(TrialStep::Socket, Some(since(&knock, Instant::now())))?;
        }
        if self.listener.upstream == METRICS_UPSTREAM {
            self.trial.works = true; // no session comes of it
            return Ok(TrialOutcome::Known);
        }
        let mut deadline = knock.at + ACCEPT;
        let mut asks = Some(knock.at + UNDECIDED);
        let mut closed: Option<(Instant, News)> = None;
        loop {
            let until = asks.map_or(deadline, |asks| asks.min(deadline));
            let left = until.saturating_duration_since(Instant::now());
            let Ok((at, what)) = first.take().map_or_else(|| news.recv_timeout(left), Ok) else {
                if until < deadline {
                    asks = None;
                    if self.call && self.last() == Some(TrialStep::Service) {
                        self.say(
                            "            dom0 has not decided yet: answer the prompt there, or wait for the qube\n",
                        )?;
                    }
                    continue;
                }
                let missed = closed.is_some() && self.last() == Some(TrialStep::Socket) && !self.again;
                if missed && self.listener.upstream.is_empty() {
                    return Ok(TrialOutcome::Missed);
                }
                self.late(&knock, closed)?;
                return Ok(TrialOutcome::Known);
            };
            match what {
                News::Watching => self.catch_up(&knock)?,
                News::Told(event) => {
                    let Some(session) = event.session.as_ref().filter(|session| knock.is(session)) else { continue };
                    self.follow(&knock, at, session)?;
                    if event.event == Happened::Ended {
                        self.ended(&knock, at, &event, session)?;
                        return Ok(TrialOutcome::Known);
                    }
                }
                what => closed = Some((at, what)),
            }
            deadline = match (&closed, self.last()) {
                (Some((at, News::Byte)), Some(TrialStep::Dom0 | TrialStep::Connected)) => {
                    let at = since(&knock, *at);
                    self.serves()?;
                    self.done(TrialStep::Byte, Some(at))?;
                    self.trial.works = true;
                    return Ok(TrialOutcome::Known);
                }
                (Some((at, _)), _) => *at + WHY,
                (None, Some(TrialStep::Connected)) if self.listener.kind == Some(SocketKind::Udp) => {
                    self.trial.works = true;
                    return Ok(TrialOutcome::Known);
                }
                (None, Some(TrialStep::Dom0 | TrialStep::Connected)) => Instant::now() + SILENCE,
                (None, Some(TrialStep::Service)) => knock.at + SET_UP,
                (None, _) => knock.at + ACCEPT,
            };
        }
    }

    /// The other side serves the connection; of a call, nobody tells that but by going on.
    fn serves(&mut self) -> Result<(), Fatal> {
        if self.has(TrialStep::Connected) { Ok(()) } else { self.done(TrialStep::Connected, None) }
    }

    /// Why the listener takes no connections, and what to do about it.
    fn closed(&self) -> Option<(String, String)> {
        let program = self.service.program.name;
        let word = spelling(&KnownListener::from(self.listener));
        let reason = || self.listener.reason.clone().unwrap_or_default();
        match self.listener.state {
            State::Paused => {
                Some(("the listener is paused".to_owned(), format!("{program} resume \"{word}\"{}", self.system())))
            }
            State::Refused if reason().is_empty() => None, // the connection itself tells
            State::Refused | State::Awaited => Some((reason(), format!("{program} check{}", self.system()))),
            State::Serving => None,
        }
    }

    /// A service that has begun to tell may have had the session before.
    fn catch_up(&mut self, knock: &Knock) -> Result<(), Fatal> {
        let Ok(mut client) = ControlConnection::connect(&self.service.socket) else { return Ok(()) };
        if let Ok(answer) = client.call::<api::Listeners>("ListListeners", &serde_json::json!({})) {
            let here =
                |other: &&api::Listener| (&other.address, other.kind) == (&self.listener.address, self.listener.kind);
            self.call |= answer.listeners.iter().find(here).is_some_and(|listener| listener.queued.is_some());
        }
        let mut found = None;
        let listed = client.each("ListSessions", &api::Which::default(), |part: api::Sessions| {
            found = found.take().or_else(|| part.sessions.into_iter().find(|session| knock.is(session)));
            true
        });
        match found.filter(|_| listed.is_ok()) {
            Some(session) => self.follow(knock, Instant::now(), &session),
            None => Ok(()),
        }
    }

    /// Notes the steps that a session has behind it.
    fn follow(&mut self, knock: &Knock, at: Instant, session: &api::Session) -> Result<(), Fatal> {
        let accepted = since(knock, at).saturating_sub(session.age_ms);
        self.trial.session = Some(session.id.clone());
        self.trial.upstream = Some(session.upstream.clone());
        if !self.has(TrialStep::Service) {
            self.done(TrialStep::Service, Some(accepted))?;
        }
        let Some(dialled) = session.dial_ms.map(|ms| accepted + ms) else { return Ok(()) };
        let step = if self.call { TrialStep::Dom0 } else { TrialStep::Connected };
        if !self.has(step) {
            self.done(step, Some(dialled))?;
        }
        Ok(())
    }

    /// The session is over.
    fn ended(&mut self, knock: &Knock, at: Instant, event: &api::Event, session: &api::Session) -> Result<(), Fatal> {
        let end = End::ALL.iter().find(|end| Some(end.as_str()) == event.end.as_deref());
        let cause = event.note.clone().unwrap_or_else(|| event.end.clone().unwrap_or_default());
        let set_up = event.exit_code.map(SetUp::from_exit).filter(|_| self.call && session.down_bytes == 0);
        let next = self.journal();
        match end {
            Some(End::Eof) => {
                self.serves()?;
                let step = if session.down_bytes > 0 { TrialStep::Byte } else { TrialStep::End };
                self.done(step, Some(since(knock, at)))?;
                self.trial.works = true;
                Ok(())
            }
            _ if set_up.is_some_and(SetUp::never_began) => {
                if !self.has(TrialStep::Dom0) {
                    self.done(TrialStep::Dom0, None)?;
                }
                self.fail(TrialStep::Connected, cause, next)
            }
            Some(End::Refused) => self.fail(TrialStep::Dom0, cause, next),
            Some(End::DialFailed | End::Timeout) => {
                let asked = self.call && !self.has(TrialStep::Dom0);
                self.fail(if asked { TrialStep::Dom0 } else { TrialStep::Connected }, cause, next)
            }
            _ => {
                let connected = self.has(TrialStep::Connected) || self.has(TrialStep::Dom0);
                self.fail(if connected { TrialStep::Byte } else { TrialStep::Connected }, cause, next)
            }
        }
    }

    /// No news came in time.
    fn late(&mut self, knock: &Knock, closed: Option<(Instant, News)>) -> Result<(), Fatal> {
        let next = self.journal();
        match (closed, self.last()) {
            (Some((at, News::End)), Some(TrialStep::Dom0 | TrialStep::Connected)) => {
                self.serves()?;
                self.done(TrialStep::End, Some(since(knock, at)))?;
                self.trial.works = true;
                Ok(())
            }
            (Some((_, News::Broken(e))), Some(TrialStep::Dom0 | TrialStep::Connected)) => {
                self.fail(TrialStep::Byte, e.to_string(), next)
            }
            (Some(_), _) => {
                let cause = "the connection was closed before it was a session: the listener may keep this peer out \
                             (allow_from, allow_uid), or is not served";
                self.fail(TrialStep::Service, cause.to_owned(), next)
            }
            (None, Some(TrialStep::Dom0 | TrialStep::Connected)) => {
                self.serves()?;
                self.done(TrialStep::Silent, Some(since(knock, Instant::now())))?;
                self.trial.works = true;
                Ok(())
            }
            (None, Some(TrialStep::Service)) => {
                let step = if self.call { TrialStep::Dom0 } else { TrialStep::Connected };
                self.fail(step, format!("no decision within {} s", SET_UP.as_secs()), next)
            }
            (None, _) => {
                let cause = format!(
                    "not accepted within {} s: the service does not start, or its limit is reached",
                    ACCEPT.as_secs()
                );
                let next = format!("{} status{}", self.service.program.name, self.system());
                self.fail(TrialStep::Service, cause, next)
            }
        }
    }

    fn has(&self, step: TrialStep) -> bool {
        self.trial.steps.iter().any(|done| done.step == step)
    }

    fn last(&self) -> Option<TrialStep> {
        self.trial.steps.last().map(|done| done.step)
    }

    /// A step is over. The service and this process tell the time of a step, each when it is scheduled: the earlier
    /// step can have the later time, and then the later one gets that time, too.
    fn done(&mut self, step: TrialStep, ms: Option<u64>) -> Result<(), Fatal> {
        let before = self.trial.steps.iter().filter_map(|done| done.ms).max();
        let ms = ms.map(|ms| before.map_or(ms, |before| ms.max(before)));
        self.trial.steps.push(DoneStep { step, ms });
        let time = ms.map_or_else(String::new, |ms| format!("{ms} ms"));
        self.say(&format!("{time:>10}  {}\n", step.done(self.call)))
    }

    fn fail(&mut self, step: TrialStep, cause: String, next: String) -> Result<(), Fatal> {
        let text = format!("{:>10}  {}: {cause}\n{:>10}  next: {next}\n", "failed", step.failed(), "");
        self.trial.failure = Some(FailedStep { step, cause, next });
        self.say(&text)
    }

    fn say(&self, text: &str) -> Result<(), Fatal> {
        if !self.json {
            print(
                &text
                    .split_inclusive('\n')
                    .map(|line| table::clean(line.trim_end_matches('\n')) + "\n")
                    .collect::<String>(),
            )?;
        }
        Ok(())
    }

    /// The option for a program that has a service of the system beside that of the user.
    fn system(&self) -> &'static str {
        self.service.place_option()
    }

    /// The command that shows what the service has logged about the session.
    fn journal(&self) -> String {
        let flag = self.service.scope.flag();
        let session = self.trial.session.as_ref().map(|id| format!(" SESSION_ID={id}")).unwrap_or_default();
        format!("journalctl {flag}-x -t {}{session}", self.service.program.name)
    }

    /// A command about the unit of the listener.
    fn unit_command(&self, verb: &str) -> String {
        let flag = self.service.scope.flag();
        let service = self.service.unit();
        format!("systemctl {flag}{verb} {}", self.listener.unit.as_deref().unwrap_or(&service))
    }
}

/// Milliseconds from connect(2) to then.
fn since(knock: &Knock, then: Instant) -> u64 {
    u64::try_from(then.saturating_duration_since(knock.at).as_millis()).unwrap_or(u64::MAX)
}
