//! The life of sessions: listeners in, drain or handover out.

mod adopt;
mod bind;
pub mod control;
mod handover;
mod keeper;
mod listener;
mod netns_watch;
mod own;
mod reload;
mod session;
mod stop;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use control::{Control, api, asked};
pub use handover::{NAME as STORED, make_room};
pub use keeper::{Kept, keep};
use listener::Listening;
use netns_watch::Watch;
use own::{Own, Wanted};
use session::{Parked, Route, Shared, descriptors, tidy};

use crate::{
    activation,
    dial::qrexec::{Client, Group, gate::Gates},
    log::{Event, Kind, emit, escape, say},
    spec::{Forward, SocketKind},
    systemd::{
        notify::{self, Count},
        signals::{Order, Signals},
    },
};

/// What a name on a socket of that kind means, in the configuration that is in force; or what is wrong with it.
pub type Resolve = Box<dyn Fn(&str, SocketKind) -> Result<Forward, String> + Send + Sync>;
/// The forwards of the configuration whose listening side is ours to bind, beside sockets of these names.
pub type Forwards = Box<dyn Fn(&[String]) -> Result<Vec<Forward>, String> + Send + Sync>;
/// Reads the configuration.
pub type Load = Box<dyn Fn() -> Result<Rules, String> + Send + Sync>;

/// A configuration, as far as the service is concerned.
pub struct Rules {
    /// What names mean in it.
    pub resolve: Resolve,
    /// What it asks for beside them.
    pub forwards: Forwards,
}

/// Everything that a service needs to begin.
pub struct Setup {
    /// What was inherited.
    pub inherited: activation::Inherited,
    /// Gives a meaning to each listener's name.
    pub load: Load,
    /// The `qrexec-client-vm` to start for each call.
    pub client: PathBuf,
    /// Calls into one qube at a time, 1 or more.
    pub calls_per_qube: usize,
    /// Without a session for this long, the service ends; its sockets start it again.
    pub exit_idle: Option<Duration>,
    /// Whether to end when a listener cannot be served, rather than to serve the others.
    pub strict: bool,
    /// What it is called.
    pub program: &'static str,
    /// Where the control socket is to be, if anywhere.
    pub control: Option<PathBuf>,
}

/// How a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it was told to, or because it had nothing more to do.
    Done,
    /// Its sessions wait for the next process.
    HandedOver,
    /// A part of it panicked; systemd starts it again.
    Broken,
}

/// Why a service did not begin.
#[derive(Debug)]
pub enum Failed {
    /// The configuration cannot be used.
    Rules(String),
    /// A listener cannot be served, and all were asked for.
    Listener(String),
    /// Signals cannot be had.
    Signals(io::Error),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(why) => f.write_str(why),
            Self::Listener(why) => write!(f, "not everything can be served, which --strict asks for: {why}"),
            Self::Signals(error) => write!(f, "cannot wait for signals: {error}"),
        }
    }
}

/// A running service.
struct Service {
    shared: Arc<Shared>,
    listening: Vec<Arc<Listening>>,
    /// Legs behind inherited listeners whose own listening side is ours.
    behind: Vec<Wanted>,
    /// Listeners that we bound ourselves.
    own: Own,
    /// Hears of namespaces that come and go, when one of our own listeners is in one.
    watch: Option<Watch>,
    /// The tasks that accept.
    accepting: JoinSet<()>,
    stop: CancellationToken,
    parking: UnboundedReceiver<Parked>,
    load: Load,
    /// The names of listeners that were passed, as far as they could be taken.
    names: Vec<String>,
    /// Listeners that were passed, served or not.
    passed: usize,
    /// Children taken up from the previous process.
    adopted: Vec<u32>,
    /// Listeners that were passed and cannot be served, for those who ask.
    refused: Vec<api::Listener>,
    /// Listeners that were passed for those who scrape metrics.
    metrics: Vec<Place>,
    /// The tasks that answer those, as long as there is anything to tell.
    scraping: JoinSet<()>,
    /// For those who ask.
    control: Option<Control>,
}

/// Where a listener is that leads nowhere.
struct Place {
    address: String,
    kind: api::Kind,
}

/// Runs a service until it is told to stop.
///
/// # Errors
/// See [`Failed`].
pub async fn run(setup: Setup) -> Result<Ended, Failed> {
    // First, so that from here on a SIGTERM is an order and not the end.
    let mut signals = Signals::new().map_err(Failed::Signals)?;
    let activation::Inherited { listeners, refused, stored } = setup.inherited;
    let passed = listeners.len() + refused.len();
    let names: Vec<String> = listeners.iter().map(|l| l.name.clone()).collect();
    let loaded = (setup.load)().and_then(|rules| Ok(((rules.forwards)(&names)?, rules.resolve)));
    let (forwards, resolve) = match loaded {
        Ok((forwards, resolve)) => (Some(forwards), resolve),
        // Sessions that were handed over do not need it. No listener is served without it: what it limits would be open.
        Err(why) if !stored.is_empty() => {
            let text = format!("the configuration is not used, and no listener is served until the next start: {why}");
            say(Kind::ConfigurationRejected, text);
            (None, Box::new(move |_: &str, _| Err(why.clone())) as Resolve)
        }
        Err(why) => return Err(Failed::Rules(why)),
    };
    let (parked, parking) = unbounded_channel();
    let shared = Arc::new(Shared {
        client: Client { program: setup.client, group: Group::find() },
        gates: Gates::new(setup.calls_per_qube),
        sessions: Default::default(),
        tallies: Default::default(),
        watchers: Default::default(),
        tasks: TaskTracker::new(),
        parked,
    });
    if let Some(path) = &setup.control {
        Control::take_up(path, &shared);
    }
    let mut unserved: Vec<api::Listener> = Vec::new();
    for r in refused {
        let name = escape(r.name.as_bytes());
        refuse(&name, None, &r.why);
        unserved.push(control::troubled(&name, None, &r.name, api::State::Refused, &r.why));
    }
    let (scraped, listeners): (Vec<_>, Vec<_>) = listeners.into_iter().partition(|l| is_for_metrics(l, &resolve));
    let mut behind = Vec::new();
    let mut listening = Vec::new();
    for from in listeners {
        match listen(from, &resolve, &shared, &mut behind) {
            Ok(served) => listening.push(served),
            Err(refused) => unserved.push(*refused),
        }
    }
    let mut service = Service {
        shared,
        listening,
        behind,
        own: Own::default(),
        watch: None,
        accepting: JoinSet::new(),
        stop: CancellationToken::new(),
        parking,
        load: setup.load,
        names,
        passed,
        adopted: Vec::new(),
        refused: unserved,
        metrics: Vec::new(),
        scraping: JoinSet::new(),
        control: None,
    };
    let handover = handover::take(stored);
    match forwards {
        Some(forwards) => drop(service.reconcile(&forwards, handover.listeners).await),
        None => service.own.hold(handover.listeners),
    }
    service.adopt(handover.sessions, handover.lost, resolve).await;
    service.settle_children();
    let routes: Vec<_> = service.listening.iter().chain(service.own.listening()).map(|l| l.route()).collect();
    if let Some(warning) = descriptors::warning(routes.iter().map(|r| &**r), service.shared.gates.per_qube()) {
        say(Kind::DescriptorPressure, warning);
    }
    if let Some(trouble) = service.trouble().filter(|_| setup.strict) {
        // Without sessions there is nothing to keep: what was opened here goes again.
        if notify::managed() && service.shared.sessions.count() > 0 {
            service.hand_over(Ended::Broken).await;
        }
        return Err(Failed::Listener(trouble));
    }
    service.open_control(setup.control.as_deref(), setup.program);
    service.accept();
    service.accept_scrapers(scraped, setup.program);
    let told = service.shared.sessions.count();
    let status = notify::line(service.count(), told);
    say(Kind::ServiceReady, format!("ready: {status}"));
    notify::tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    Ok(service.until_stopped(&mut signals, setup.exit_idle, told).await)
}

/// Gives an inherited listener its route; one that cannot have one is refused, and the others are served. What lies
/// behind it and is ours to bind is added to `behind`.
fn listen(
    from: activation::Listener,
    resolve: &Resolve,
    shared: &Shared,
    behind: &mut Vec<Wanted>,
) -> Result<Arc<Listening>, Box<api::Listener>> {
    let (local, kind) = (from.local.to_string(), from.socket.kind());
    let listening = resolve(&from.name, kind).and_then(|forward| {
        behind.extend(own::wanted(&forward, None));
        let (leg, options) = (forward.legs.front().clone(), forward.options);
        let route = Route::new(from.name.clone(), &local, leg, options, shared)?;
        Listening::new(from.socket, Arc::new(route)).map_err(|e| e.to_string())
    });
    match listening {
        Ok(listening) => {
            let route = listening.route();
            let text = format!("{local} leads to {}{}", route.upstream_text, own::leads_into(&route));
            let mut event = Event::new(Kind::ListenerServing, text);
            event.listener = Some(route.listener.clone());
            event.upstream = Some(route.upstream_text.clone());
            event.call = route.call_text.clone();
            emit(event);
            Ok(Arc::new(listening))
        }
        Err(why) => {
            refuse(&local, Some(&from.name), &why);
            let kind = Some(control::kind(kind));
            Err(Box::new(control::troubled(&local, kind, &from.name, api::State::Refused, &why)))
        }
    }
}

/// Whether a listener is there for metrics: it is called so, and the configuration means nothing else by that name.
fn is_for_metrics(listener: &activation::Listener, resolve: &Resolve) -> bool {
    let kind = listener.socket.kind();
    listener.name == control::METRICS && kind != SocketKind::Udp && resolve(&listener.name, kind).is_err()
}

fn refuse(listener: &str, name: Option<&str>, why: &str) {
    let named = name.map(|n| format!(" (FileDescriptorName={})", escape(n.as_bytes()))).unwrap_or_default();
    let mut event = Event::new(Kind::ListenerRefused, format!("{listener}{named} is not served: {why}"));
    event.listener = Some(listener.into());
    emit(event);
}

impl Service {
    /// Ends the children of a process that was killed, and says when children of ours would not outlive a restart.
    fn settle_children(&self) {
        let Some(group) = &self.shared.client.group else { return };
        if self.listening.iter().any(|l| l.route().call.is_some()) && !group.exists() {
            let path = group.path().display();
            say(Kind::CallsUnowned, format!("calls will not outlive a restart: {path} is not there"));
        }
        let strays = group.end_strays(&self.adopted);
        if strays > 0 {
            say(Kind::CallKilled, format!("ended {strays} calls of an earlier process that had no session any more"));
        }
    }

    /// Opens the control socket. Without it everything else is as it was, so that this fails is no reason to end.
    fn open_control(&mut self, path: Option<&Path>, program: &'static str) {
        self.shared.tallies.prune();
        let Some(path) = path else { return };
        match Control::open(path, program, &self.shared) {
            Ok(control) => self.control = Some(control),
            Err(why) => {
                let text = format!("nobody can ask what goes on here: the control socket is not there: {why}");
                say(Kind::ControlTrouble, text);
            }
        }
    }

    /// Starts a task for each listener that is there for metrics. They are inherited: they come again with a restart.
    fn accept_scrapers(&mut self, scraped: Vec<activation::Listener>, program: &'static str) {
        for listener in scraped {
            let address = listener.local.to_string();
            let mut event =
                Event::new(Kind::ListenerServing, format!("{address} leads to {}", control::METRICS_UPSTREAM));
            event.listener = Some(address.as_str().into());
            emit(event);
            self.metrics.push(Place { address, kind: control::kind(listener.socket.kind()) });
            self.scraping.spawn(control::serve_metrics(listener.socket, self.shared.clone(), program));
        }
    }

    /// Starts a task for each listener.
    fn accept(&mut self) {
        for listening in &self.listening {
            self.accepting.spawn(listening.clone().serve(self.shared.clone(), self.stop.clone()));
        }
        self.accept_own();
    }

    /// Listeners or forwards that are served, of all.
    fn count(&self) -> Count {
        let (served, all) = self.own.count();
        let behind = self.own.troubled_behind();
        let served = served + (self.listening.len() + self.metrics.len()).saturating_sub(behind);
        Count { served, all: all + self.passed, forwards: all > 0 }
    }

    /// Why something is not served, if anything is not.
    fn trouble(&self) -> Option<String> {
        if !self.refused.is_empty() {
            return Some("an inherited socket was refused".to_owned());
        }
        self.own.trouble()
    }

    /// Ends the tasks that accept; whether one of them had panicked.
    async fn stop_accepting(&mut self) -> bool {
        self.stop.cancel();
        let mut panicked = false;
        while let Some(ended) = self.accepting.join_next().await {
            panicked |= ended.is_err();
        }
        self.stop = CancellationToken::new();
        panicked
    }

    /// Keeps the manager's status up to date with what is served now. `told` is the number of sessions that the manager
    /// was told last; `None` sends the status at once.
    fn tell_status(&self, keep: &mut JoinSet<()>, told: Option<usize>) -> AbortHandle {
        let count = self.count();
        keep.spawn(notify::status(self.shared.sessions.watch(), told, move |sessions| notify::line(count, sessions)))
    }

    /// Serves until an order comes. `told` is the number of sessions that the manager knows of.
    async fn until_stopped(mut self, signals: &mut Signals, exit_idle: Option<Duration>, told: usize) -> Ended {
        let mut keep = JoinSet::new();
        keep.spawn(notify::watchdog());
        keep.spawn(tidy::after_crowds(self.shared.sessions.watch()));
        let mut status = self.tell_status(&mut keep, Some(told));
        let at_most = loop {
            // What nobody passed, nobody would start again.
            let exit_idle = exit_idle.filter(|_| self.own.is_empty());
            let nothing = self.passed == 0 && self.own.is_empty();
            tokio::select! {
                order = signals.next() => match order {
                    Order::Reload => {
                        self.reload().await;
                        status.abort();
                        status = self.tell_status(&mut keep, None);
                    }
                    Order::Park if notify::managed() => return self.hand_over(Ended::HandedOver).await,
                    // Nobody would keep what is parked.
                    Order::Park => break None,
                    Order::Drain { at_most } => break at_most,
                },
                Some(ended) = self.accepting.join_next() => {
                    if ended.is_err() {
                        say(Kind::ServiceStopped, "a listener's task panicked: starting anew, with all sessions");
                        if !notify::managed() {
                            self.drain(signals, None).await;
                            return Ended::Broken;
                        }
                        return self.hand_over(Ended::Broken).await;
                    }
                }
                ask = asked(&mut self.control) => self.answer(ask),
                () = moved(&mut self.watch) => {
                    if self.look_at_namespaces().await {
                        status.abort();
                        status = self.tell_status(&mut keep, None);
                    }
                }
                () = due(self.own.next_try()) => {
                    if self.try_again() {
                        status.abort();
                        status = self.tell_status(&mut keep, None);
                    }
                }
                () = nothing_left(&self.shared, nothing, exit_idle) => {
                    self.stop_accepting().await;
                    if self.shared.sessions.count() == 0 {
                        say(Kind::ServiceStopped, "nothing to do: ending until the next connection");
                        notify::tell(&[NotifyState::Stopping]);
                        return Ended::Done;
                    }
                    self.accept(); // one came in at the last moment
                }
            }
        };
        status.abort();
        self.drain(signals, at_most).await
    }
}

/// Ready when namespaces of our listeners may have come or gone.
async fn moved(watch: &mut Option<Watch>) {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Ready at that time.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Ready when the service has nothing to do: it was passed no listeners and has no sessions, or it had no session for
/// the time after which it is to end. One whose listeners were all refused stays: whoever waits in their backlogs would
/// have systemd start it again at once, until that gives the sockets up.
async fn nothing_left(shared: &Shared, no_listeners: bool, exit_idle: Option<Duration>) {
    let patience = match exit_idle {
        _ if no_listeners => Duration::ZERO,
        Some(patience) => patience,
        None => return std::future::pending().await,
    };
    let mut count = shared.sessions.watch();
    loop {
        let busy = *count.borrow_and_update() > 0;
        tokio::select! {
            changed = count.changed() => if changed.is_err() { return },
            () = sleep(patience), if !busy => return,
        }
    }
}
