//! The start of a service, step by step.
//!
//! The order matters. Signals come first, so that from there on a SIGTERM is an order and not the end. What an earlier
//! process counted is taken up before there are routes, which count on. Listeners of our own are opened before sessions
//! are taken up, because flows need theirs. Children without a session are ended before sessions that wait begin. The
//! control socket opens when there is something to tell, and listeners accept last.

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use sd_notify::NotifyState;
use tokio::{io::Interest, task::JoinSet};

use super::{
    last,
    serve::until_stopped,
    setup::{Ended, Setup, StartFailure, identity, resolve},
    state::{MetricsListener, RunningService},
    units,
};
use crate::{
    activation,
    control::{self, ConfigFaults, Control, ListenerCounts, Subject, api},
    crash::RegionMode,
    dial::qrexec::{Client, Group},
    handover::{self, CrashGuard, Records},
    listener::{Accepting, Posts, RefusedListener, ServedListener, Wanted, refuse, wanted},
    log::{Event, Kind, emit, escape, say},
    session::{Route, Routes, Sessions, descriptor_warning},
    spec::{Config, Forward, Loaded, SocketKind},
    sys,
    systemd::{notify, signals::Signals, sockets::SocketUnits, startable::StartableUnits, unit},
};

/// The directory with the files of units on demand, in the runtime directory.
const ON_DEMAND: &str = "on-demand";

/// Runs a service until an order stops it.
///
/// # Errors
/// See [`StartFailure`].
pub async fn run(mut setup: Setup) -> Result<Ended, StartFailure> {
    let mut signals = Signals::new(setup.hangup).map_err(StartFailure::Signals)?;
    drop(setup.held);
    let activation::Inherited { listeners, refused, stored: _ } = setup.inherited;
    let shadow = setup.guard.as_mut().and_then(CrashGuard::take_shadow);
    let shadow = shadow.and_then(|shadow| sys::register(shadow, Interest::READABLE).ok());
    let passed = listeners.len() + refused.len();
    let sockets = sockets(&listeners);
    let Loaded { config, faults, texts } = setup.loaded;
    let (forwards, config) = (config.plan().forwards, Arc::new(config));
    let group = Group::find().map(Arc::new);
    let (sessions, parking) = Sessions::new(Client { program: setup.client, group: group.clone() });
    let routes = Arc::new(Routes::new(setup.calls_per_qube));
    if let Some(directory) = unit::runtime_directory() {
        routes.take_up_units(directory.join(ON_DEMAND));
    }
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
        read: setup.read,
        config: config.clone(),
        texts,
        forwards: setup.forwards,
        faults,
        told_faults: ConfigFaults::default(),
        standing: ListenerCounts::default(),
        sockets,
        passed,
        group,
        strange: Vec::new(),
        refused: Vec::new(),
        units: SocketUnits::follow(),
        metrics: Vec::new(),
        scraping: JoinSet::new(),
        control: None,
        guard: setup.guard,
        shadow,
    };
    refused.iter().for_each(|refused| service.refuse(refused));
    let (scraped, listeners): (Vec<_>, Vec<_>) = listeners.into_iter().partition(|l| is_for_metrics(l, &config));
    let units = units::of_names(service.sockets.iter().cloned(), &config);
    listeners.into_iter().for_each(|from| service.listen(from, &config, &units));
    service.take_over(setup.parked, &forwards, config).await;
    service.warn_of_descriptors();
    if let Some(trouble) = service.trouble().filter(|_| setup.strict) {
        // Without sessions there is nothing to keep: what was opened here goes again.
        if notify::managed() && service.sessions.count() > 0 {
            service.hand_over(Ended::Broken).await;
        } else {
            handover::set_mode(RegionMode::Ended);
        }
        return Err(StartFailure::Listener(trouble));
    }
    service.open_control(setup.control.as_deref(), setup.program);
    service.accept();
    service.accept_scrapers(scraped, setup.program);
    let told = service.sessions.count();
    service.tell_faults();
    last::write(&service.texts);
    let status = service.status_line()(told);
    say(Kind::ServiceReady, format!("ready: {status}"));
    notify::tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    handover::serving();
    Ok(until_stopped(service, &mut signals, setup.exit_idle, told, &setup.nothing).await)
}

/// The names and kinds of inherited listeners.
pub fn sockets(listeners: &[activation::Listener]) -> Vec<(String, SocketKind)> {
    listeners.iter().map(|listener| (listener.name.clone(), listener.socket.kind())).collect()
}

/// Whether a listener is there for metrics: it is called so, and the configuration means nothing else by that name.
fn is_for_metrics(listener: &activation::Listener, config: &Config) -> bool {
    let kind = listener.socket.kind();
    listener.name == control::METRICS && kind != SocketKind::Udp && resolve(config, &listener.name, kind).is_err()
}

impl RunningService {
    /// Notes an inherited descriptor that is no listener.
    fn refuse(&mut self, refused: &activation::Refused) {
        let name = escape(refused.name.as_bytes());
        let text = format!("{name} is not served: {}", refused.why);
        emit(Event::on(name.as_str(), Kind::ListenerRefused, text));
        self.strange.push(control::troubled(&name, None, &refused.name, api::State::Refused, &refused.why));
    }

    /// Gives an inherited listener its route; one that cannot have one is refused, and the others are served.
    fn listen(&mut self, from: activation::Listener, config: &Config, units: &StartableUnits) {
        match self.route_of(&from, config, units) {
            Ok((route, behind)) => {
                let text = format!("{} leads to {}{}", route.listener, route.upstream_text, route.place_now());
                let event = route.event(Kind::ListenerServing, text);
                match self.serve(from, route, behind) {
                    Ok(_) => emit(event),
                    Err((from, why)) => self.refused.push(RefusedListener::new(from, why)),
                }
            }
            Err(why) => {
                refuse(&identity(&from, None), Some(&from.name), &why);
                self.refused.push(RefusedListener::new(from, why));
            }
        }
    }

    /// The route of an inherited listener, and what lies behind it and is ours to bind.
    pub(super) fn route_of(
        &self,
        from: &activation::Listener,
        config: &Config,
        units: &StartableUnits,
    ) -> Result<(Route, Vec<Wanted>), String> {
        let forward = resolve(config, &from.name, from.socket.kind())?;
        units::usable(units, &forward.options)?;
        let behind = wanted(&forward, None);
        let identity = identity(from, forward.label.as_ref());
        let (leg, options) = (forward.legs.front().clone(), forward.front_options());
        let route = self.routes.make(from.name.clone(), identity, leg, options)?;
        Ok((route, behind))
    }

    /// Serves an inherited listener by a route. Where its socket cannot be used now, the listener comes back with the
    /// reason, which the message has.
    pub(super) fn serve(
        &mut self,
        from: activation::Listener,
        route: Route,
        behind: Vec<Wanted>,
    ) -> Result<Arc<ServedListener>, (activation::Listener, String)> {
        let identity = identity(&from, None);
        let activation::Listener { name, socket, local } = from;
        match ServedListener::new(socket, Arc::new(route)) {
            Ok(listening) => {
                let listening = Arc::new(listening);
                self.listening.push(listening.clone());
                self.behind.push(behind);
                Ok(listening)
            }
            Err((socket, e)) => {
                let why = e.to_string();
                refuse(&identity, Some(&name), &why);
                Err((activation::Listener { name, socket, local }, why))
            }
        }
    }

    /// Takes what the previous process left: listeners of our own, sessions, children.
    async fn take_over(&mut self, parked: Vec<OwnedFd>, forwards: &[Forward], config: Arc<Config>) {
        // A process that crashed while it handed over has everything in its checkpoints. A handover of another process
        // waits as it was: the one that crashed had not begun to take it up, or an earlier version served in between.
        let mut crashed = self.guard.as_ref().and_then(CrashGuard::rescue);
        let has_all = crashed.as_ref().is_some_and(|rescued| rescued.handing && rescued.len() > 0);
        handover::set_taking(!has_all && !parked.is_empty());
        let mut taken = match &crashed {
            Some(rescued) if has_all => {
                rescued.add(handover::discard(parked));
                handover::Taken::default()
            }
            _ => handover::take(parked),
        };
        if crashed.as_ref().is_some_and(|rescued| rescued.taking) {
            taken.after_a_kill();
        }
        for own in crashed.iter_mut().flat_map(|rescued| std::mem::take(&mut rescued.listeners)) {
            // The handover and the crash may have one listener twice.
            match taken.listeners.iter().any(|other| other.listen == own.listen) {
                true => own.release(),
                false => taken.listeners.push(own),
            }
        }
        taken.sessions.extend(crashed.map(Records::Rescued));
        let wanted = (self.sockets.len(), &*self.behind, forwards);
        let own = self.posts.reconcile(wanted, taken.listeners, &self.sessions, &self.routes).await;
        self.posts.settle(own.unwanted, self.refuses_forwards());
        self.share_limits();
        self.adopt(taken.sessions, taken.lost, config).await;
        self.routes.backends().begin();
        handover::set_taking(false);
        if let Some(late) = self.guard.as_ref().and_then(CrashGuard::late) {
            tokio::spawn(handover::reset_late(late));
        }
    }

    /// The routes of all listeners that are served.
    fn all_routes(&self) -> Vec<Arc<Route>> {
        self.listening.iter().chain(self.posts.listening()).map(|listening| listening.route()).collect()
    }

    /// Gives what several listeners share the limits that these listeners have now: each qube that of its calls, each
    /// unit that of its idle time.
    pub(super) fn share_limits(&self) {
        let routes = self.all_routes();
        self.routes.limit_calls(routes.iter().map(|route| &**route));
        self.routes.want_units(routes.iter().map(|route| &**route));
    }

    pub(super) fn warn_of_descriptors(&self) {
        let routes = self.all_routes();
        if let Some(warning) = descriptor_warning(routes.iter().map(|r| &**r)) {
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
                let text = format!("no control socket, so `status`, `sessions` and `kill` do not work: {why}");
                say(Kind::ControlTrouble, text);
            }
        }
    }

    fn subject(&self, program: &'static str) -> Subject {
        Subject {
            program,
            sessions: self.sessions.clone(),
            routes: self.routes.clone(),
            faults: self.told_faults.clone(),
            standing: self.standing.clone(),
        }
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
