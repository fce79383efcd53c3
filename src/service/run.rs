//! The start of a service, step by step.
//!
//! The order matters. Signals come first, so that from there on a SIGTERM is an order and not the end. What an earlier
//! process counted is taken up before there are routes, which count on. Listeners of our own are opened before sessions
//! are taken up, because flows need theirs. Children without a session are ended before sessions that wait begin. The
//! control socket opens when there is something to tell, and listeners accept last.

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use sd_notify::NotifyState;
use tokio::task::JoinSet;

use super::{
    serve::until_stopped,
    setup::{Ended, Rules, Setup, StartFailure, forwards},
    state::{MetricsListener, RunningService},
};
use crate::{
    activation,
    control::{self, Control, Subject, api},
    dial::qrexec::{Client, Group},
    handover,
    listener::{Accepting, Posts, ServedListener, Wanted, refuse, wanted},
    log::{Event, Kind, emit, escape, say},
    session::{Routes, Sessions, descriptor_warning},
    spec::{Config, Forward, SocketKind},
    systemd::{
        notify::{self, line},
        signals::Signals,
    },
};

/// Runs a service until it is told to stop.
///
/// # Errors
/// See [`StartFailure`].
pub async fn run(setup: Setup) -> Result<Ended, StartFailure> {
    let mut signals = Signals::new().map_err(StartFailure::Signals)?;
    let activation::Inherited { listeners, refused, stored } = setup.inherited;
    let names: Vec<String> = listeners.iter().map(|l| l.name.clone()).collect();
    let passed = listeners.len() + refused.len();
    let (rules, forwards) = rules(setup.config, &names, !stored.is_empty())?;
    let group = Group::find().map(Arc::new);
    let (sessions, parking) = Sessions::new(Client { program: setup.client, group: group.clone() });
    let routes = Arc::new(Routes::new(setup.calls_per_qube));
    if let Some(path) = &setup.control {
        Control::take_up(path, &routes);
    }
    let mut service = RunningService {
        sessions,
        routes,
        listening: Vec::new(),
        behind: Vec::new(),
        posts: Posts::default(),
        accepting: Accepting::default(),
        parking,
        load: setup.load,
        names,
        passed,
        group,
        refused: Vec::new(),
        metrics: Vec::new(),
        scraping: JoinSet::new(),
        control: None,
    };
    refused.iter().for_each(|refused| service.refuse(refused));
    let (scraped, listeners): (Vec<_>, Vec<_>) = listeners.into_iter().partition(|l| is_for_metrics(l, &rules));
    listeners.into_iter().for_each(|from| service.listen(from, &rules));
    service.take_over(stored, forwards, rules).await;
    service.warn_of_descriptors();
    if let Some(trouble) = service.trouble().filter(|_| setup.strict) {
        // Without sessions there is nothing to keep: what was opened here goes again.
        if notify::managed() && service.sessions.count() > 0 {
            service.hand_over(Ended::Broken).await;
        }
        return Err(StartFailure::Listener(trouble));
    }
    service.open_control(setup.control.as_deref(), setup.program);
    service.accept();
    service.accept_scrapers(scraped, setup.program);
    let told = service.sessions.count();
    let status = line(service.count(), told);
    say(Kind::ServiceReady, format!("ready: {status}"));
    notify::tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    Ok(until_stopped(service, &mut signals, setup.exit_idle, told).await)
}

/// The configuration and the forwards that it asks for; no forwards where it cannot be used. Sessions that were
/// `handed_over` do not need it. No listener is served without it: what it limits would be open.
fn rules(
    config: Result<Config, String>,
    names: &[String],
    handed_over: bool,
) -> Result<(Rules, Option<Vec<Forward>>), StartFailure> {
    match config.and_then(|config| Ok((forwards(&config, names)?, config))) {
        Ok((forwards, config)) => Ok((Rules::Usable(Box::new(config)), Some(forwards))),
        Err(why) if handed_over => {
            let text = format!("the configuration is not used, and no listener is served until the next start: {why}");
            say(Kind::ConfigurationRejected, text);
            Ok((Rules::Unusable(why), None))
        }
        Err(why) => Err(StartFailure::Rules(why)),
    }
}

/// Whether a listener is there for metrics: it is called so, and the configuration means nothing else by that name.
fn is_for_metrics(listener: &activation::Listener, rules: &Rules) -> bool {
    let kind = listener.socket.kind();
    listener.name == control::METRICS && kind != SocketKind::Udp && rules.resolve(&listener.name, kind).is_err()
}

impl RunningService {
    /// Notes an inherited descriptor that is no listener.
    fn refuse(&mut self, refused: &activation::Refused) {
        let name = escape(refused.name.as_bytes());
        refuse(&name, None, &refused.why);
        self.refused.push(control::troubled(&name, None, &refused.name, api::State::Refused, &refused.why));
    }

    /// Gives an inherited listener its route; one that cannot have one is refused, and the others are served.
    fn listen(&mut self, from: activation::Listener, rules: &Rules) {
        let (local, kind, name) = (from.local.to_string(), from.socket.kind(), from.name.clone());
        match self.listening_of(from, &local, rules) {
            Ok((listening, behind)) => {
                let route = listening.route();
                let text = format!("{local} leads to {}{}", route.upstream_text, route.place_now());
                emit(route.event(Kind::ListenerServing, text));
                self.listening.push(listening);
                self.behind.extend(behind);
            }
            Err(why) => {
                refuse(&local, Some(&name), &why);
                self.refused.push(control::troubled(&local, Some(kind), &name, api::State::Refused, &why));
            }
        }
    }

    /// An inherited listener with its route, and what lies behind it and is ours to bind.
    fn listening_of(
        &self,
        from: activation::Listener,
        local: &str,
        rules: &Rules,
    ) -> Result<(Arc<ServedListener>, Vec<Wanted>), String> {
        let forward = rules.resolve(&from.name, from.socket.kind())?;
        let behind = wanted(&forward, None);
        let route = self.routes.make(from.name, local, forward.legs.front().clone(), forward.options)?;
        let listening = ServedListener::new(from.socket, Arc::new(route)).map_err(|e| e.to_string())?;
        Ok((Arc::new(listening), behind))
    }

    /// Takes what the previous process left: listeners of our own, sessions, children.
    async fn take_over(&mut self, stored: Vec<OwnedFd>, forwards: Option<Vec<Forward>>, rules: Rules) {
        let taken = handover::take(stored);
        match forwards {
            Some(forwards) => {
                let wanted = (&*self.behind, &*forwards);
                self.posts.reconcile(wanted, taken.listeners, &self.sessions, &self.routes).await;
            }
            None => self.posts.hold(taken.listeners),
        }
        self.adopt(taken.sessions, taken.lost, rules).await;
    }

    fn warn_of_descriptors(&self) {
        let routes: Vec<_> = self.listening.iter().chain(self.posts.listening()).map(|l| l.route()).collect();
        if let Some(warning) = descriptor_warning(routes.iter().map(|r| &**r), self.routes.calls_per_qube()) {
            say(Kind::DescriptorPressure, warning);
        }
    }

    /// Opens the control socket. A failure is no reason to end: everything else works without the socket.
    fn open_control(&mut self, path: Option<&Path>, program: &'static str) {
        self.routes.tallies().prune();
        let Some(path) = path else { return };
        match Control::open(path, self.subject(program)) {
            Ok(control) => self.control = Some(control),
            Err(why) => {
                let text = format!("nobody can ask what goes on here: the control socket is not there: {why}");
                say(Kind::ControlTrouble, text);
            }
        }
    }

    fn subject(&self, program: &'static str) -> Subject {
        Subject { program, sessions: self.sessions.clone(), routes: self.routes.clone() }
    }

    /// Starts a task for each listener that is there for metrics. They are inherited: they come again with a restart.
    fn accept_scrapers(&mut self, scraped: Vec<activation::Listener>, program: &'static str) {
        for listener in scraped {
            let address = listener.local.to_string();
            let text = format!("{address} leads to {}", control::METRICS_UPSTREAM);
            let mut event = Event::new(Kind::ListenerServing, text);
            event.listener = Some(address.as_str().into());
            emit(event);
            self.metrics.push(MetricsListener { address, kind: listener.socket.kind() });
            self.scraping.spawn(control::serve_metrics(listener.socket, self.subject(program)));
        }
    }
}
