//! The life of sessions: listeners in, drain or handover out.

mod access;
mod adopt;
mod explain;
mod handover;
mod headroom;
mod limits;
mod listener;
mod manager;
mod notify;
mod route;
mod session;
mod sessions;
mod signals;
mod stop;
mod tidy;

use std::{path::PathBuf, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinSet,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use handover::NAME as STORED;
pub use headroom::keep as keep_headroom;
use listener::Listening;
use route::Route;
use session::{Parked, Shared, say};
use signals::{Order, Signals};

use crate::{
    activation,
    dial::qrexec::{Client, Group, gate::Gates},
    log::{Event, Kind, emit, escape},
    spec::Forward,
    stream,
};

/// What a name on a socket of that kind means, in the configuration that is in force; or what is wrong with it.
pub type Resolve = Box<dyn Fn(&str, stream::Kind) -> Result<Forward, String> + Send + Sync>;
/// Reads the configuration.
pub type Load = Box<dyn Fn() -> Result<Resolve, String> + Send + Sync>;

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

/// A running service.
struct Service {
    shared: Arc<Shared>,
    listening: Vec<Arc<Listening>>,
    /// The tasks that accept.
    accepting: JoinSet<()>,
    stop: CancellationToken,
    parking: UnboundedReceiver<Parked>,
    load: Load,
    /// Listeners that were passed, served or not.
    passed: usize,
    /// Children taken up from the previous process.
    adopted: Vec<u32>,
}

/// Runs a service until it is told to stop.
///
/// # Errors
/// When the configuration cannot be used, or signals cannot be had: what to print.
pub async fn run(setup: Setup) -> Result<Ended, String> {
    // First, so that from here on a SIGTERM is an order and not the end.
    let mut signals = Signals::new().map_err(|e| format!("cannot wait for signals: {e}"))?;
    let resolve = match (setup.load)() {
        Ok(resolve) => resolve,
        // Sessions that were handed over do not need it. No listener is served without it: what it limits would be open.
        Err(why) if !setup.inherited.stored.is_empty() => {
            let text = format!("the configuration is not used, and no listener is served until the next start: {why}");
            say(Kind::ConfigurationRejected, text);
            Box::new(move |_: &str, _| Err(why.clone())) as Resolve
        }
        Err(why) => return Err(why),
    };
    let (parked, parking) = unbounded_channel();
    let shared = Arc::new(Shared {
        client: Client { program: setup.client, group: Group::find() },
        gates: Gates::new(setup.calls_per_qube),
        sessions: Default::default(),
        tasks: TaskTracker::new(),
        parked,
    });
    let activation::Inherited { listeners, refused, stored } = setup.inherited;
    let passed = listeners.len() + refused.len();
    for r in refused {
        refuse(&escape(r.name.as_bytes()), None, &r.why);
    }
    let listening = listeners.into_iter().filter_map(|l| listen(l, &resolve, &shared)).collect();
    let (accepting, stop) = (JoinSet::new(), CancellationToken::new());
    let mut service =
        Service { shared, listening, accepting, stop, parking, load: setup.load, passed, adopted: Vec::new() };
    service.adopt(stored.into_iter().map(|(_, fd)| fd).collect(), &resolve);
    service.settle_children();
    let routes: Vec<_> = service.listening.iter().map(|l| l.route()).collect();
    if let Some(warning) = limits::warning(routes.iter().map(|r| &**r), service.shared.gates.per_qube()) {
        say(Kind::DescriptorPressure, warning);
    }
    service.accept();
    let told = service.shared.sessions.count();
    let status = notify::line(service.listening.len(), passed, told);
    say(Kind::ServiceReady, format!("ready: {status}"));
    notify::tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    Ok(service.until_stopped(&mut signals, setup.exit_idle, told).await)
}

/// Gives an inherited listener its route; one that cannot have one is refused, and the others are served.
fn listen(from: activation::Listener, resolve: &Resolve, shared: &Shared) -> Option<Arc<Listening>> {
    let local = from.local.to_string();
    let listening = resolve(&from.name, kind(&from.socket)).and_then(|forward| {
        let route = Route::new(from.name.clone(), &local, forward, &shared.gates)?;
        Listening::new(from.socket, Arc::new(route)).map_err(|e| e.to_string())
    });
    match listening {
        Ok(listening) => {
            let route = listening.route();
            let mut event = Event::new(Kind::ListenerServing, format!("{local} leads to {}", route.upstream_text));
            event.listener = Some(route.listener.clone());
            event.upstream = Some(route.upstream_text.clone());
            event.call = route.call_text.clone();
            emit(event);
            Some(Arc::new(listening))
        }
        Err(why) => {
            refuse(&local, Some(&from.name), &why);
            None
        }
    }
}

fn kind(socket: &activation::Socket) -> stream::Kind {
    match socket {
        activation::Socket::Tcp(_) => stream::Kind::Tcp,
        activation::Socket::Unix(_) => stream::Kind::Unix,
    }
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

    /// Starts a task for each listener.
    fn accept(&mut self) {
        for listening in &self.listening {
            self.accepting.spawn(listening.clone().serve(self.shared.clone(), self.stop.clone()));
        }
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

    /// Serves until an order comes. `told` is the number of sessions that the manager knows of.
    async fn until_stopped(mut self, signals: &mut Signals, exit_idle: Option<Duration>, told: usize) -> Ended {
        let mut keep = JoinSet::new();
        keep.spawn(notify::watchdog());
        keep.spawn(tidy::after_crowds(self.shared.sessions.watch()));
        let (served, passed) = (self.listening.len(), self.passed);
        let line = move |sessions| notify::line(served, passed, sessions);
        let status = keep.spawn(notify::status(self.shared.clone(), told, line));
        let at_most = loop {
            tokio::select! {
                order = signals.next() => match order {
                    Order::Reload => self.reload(),
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
                () = nothing_left(&self.shared, self.passed == 0, exit_idle) => {
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

    /// Reads the configuration again; what is wrong with it changes nothing.
    fn reload(&self) {
        let now = NotifyState::monotonic_usec_now();
        let _ = now.map(|now| notify::tell(&[NotifyState::Reloading, now]));
        match self.resolve_all() {
            Ok(routes) => {
                let mut changed = 0;
                for (listening, route) in self.listening.iter().zip(routes) {
                    if !listening.route().leads_as(&route) {
                        listening.set_route(Arc::new(route));
                        changed += 1;
                    }
                }
                let text = format!("configuration read again: {changed} listeners lead elsewhere or otherwise");
                say(Kind::ConfigurationReloaded, text);
            }
            Err(why) => say(Kind::ConfigurationRejected, format!("the new configuration is not used: {why}")),
        }
        notify::tell(&[NotifyState::Ready]);
    }

    fn resolve_all(&self) -> Result<Vec<Route>, String> {
        let resolve = (self.load)()?;
        let route = |l: &Arc<Listening>| {
            let old = l.route();
            Route::new(old.name.clone(), &old.listener, resolve(&old.name, l.kind())?, &self.shared.gates)
        };
        self.listening.iter().map(route).collect()
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
