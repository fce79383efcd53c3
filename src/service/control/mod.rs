//! The control interface: what the service is doing, for whom, and to whom it shall stop doing it.
//!
//! # Theory
//! A UNIX socket in the service's runtime directory speaks Varlink, for this project's own commands and for
//! `varlinkctl`. It lets in root and the user whom the service runs as, a few at a time, and reads a bounded message
//! from each. What it is asked about sessions it reads from their registry; what it is asked about listeners it asks
//! the service's own task ([`Ask`]), which alone knows all of them. Words are made when somebody asks ([`view`]); a
//! session that nobody asks for costs nothing but the numbers in its listener's tally.
//!
//! The socket goes away when the service hands over and is there again when its successor is ready; a call that this
//! cuts is made again by our commands. Beside it lies what outlives a restart besides sessions ([`state`]).

pub mod api;
pub mod client;
mod http;
mod metrics;
mod server;
mod state;
pub mod view;
pub mod who;

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

pub use http::{NAME as METRICS, UPSTREAM as METRICS_UPSTREAM, serve as serve_metrics};
pub use view::{kind, listener, troubled};

use super::{
    Service,
    bind::{self, Claim},
    session::{Kept, Shared},
};
use crate::{
    activation,
    log::{Event, Kind, emit, say},
    spec::{Listen, Rights, UnixAddr},
};

/// The socket's name in the runtime directory.
pub const SOCKET: &str = "control";
/// Clients that may wait to be let in.
const BACKLOG: NonZeroU32 = NonZeroU32::new(64).expect("it is not zero");

/// A question to the service's own task. An answer that nobody waits for any more is no matter.
#[derive(Debug)]
pub enum Ask {
    /// All listeners, served or not.
    Listeners(oneshot::Sender<Vec<api::Listener>>),
    /// Accept no more on those that are called so, or again; the answer is their addresses.
    Pause {
        /// Address, name or label.
        listener: String,
        /// No more, or again.
        paused: bool,
        /// Of those that were meant.
        answer: oneshot::Sender<Vec<String>>,
    },
}

/// The control socket, and the task behind it.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    task: JoinHandle<()>,
    /// Removes the socket when it is dropped.
    claim: Option<Claim>,
    asked: Option<mpsc::Receiver<Ask>>,
    /// What lies beside the socket is for the next process.
    handed_over: bool,
}

impl Control {
    /// What the earlier process left beside the socket at `path`; to be read before there are routes.
    pub fn take_up(path: &Path, shared: &Shared) {
        shared.tallies.take_up(&state::read(path));
    }

    /// Listens at `path`.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn open(path: &Path, program: &'static str, shared: &Arc<Shared>) -> Result<Self, String> {
        let text = path.to_str().ok_or("its path is no UTF-8")?;
        let addr: UnixAddr = text.parse().map_err(|e| format!("{e}"))?;
        let listen = Listen::Unix { addr, rights: Rights::default(), backlog: BACKLOG };
        let bound = bind::bind(&listen).map_err(|trouble| trouble.to_string())?;
        let activation::Socket::Unix(listener) = bound.socket else { return Err("it is no UNIX socket".to_owned()) };
        let listener = UnixListener::from_std(listener).map_err(|e| e.to_string())?;
        let (asks, asked) = mpsc::channel(1);
        let server = server::Server::new(program, shared.clone(), asks);
        let task = tokio::spawn(server.run(listener));
        let asked = Some(asked);
        let control = Self { path: path.to_owned(), task, claim: bound.claim, asked, handed_over: false };
        // The counts have been taken up; should this process crash, counting begins anew.
        control.save(&shared.tallies.keep(false));
        Ok(control)
    }

    fn save(&self, kept: &Kept) {
        if let Err(e) = state::write(&self.path, kept) {
            let path = self.path.display();
            say(Kind::ControlTrouble, format!("pauses and counters will not outlive a restart: {path}.state: {e}"));
        }
    }

    /// The next question.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn next(&mut self) -> Ask {
        if let Some(ask) = match &mut self.asked {
            Some(asked) => asked.recv().await,
            None => None,
        } {
            return ask;
        }
        std::future::pending().await
    }

    /// Nobody answers questions from now on; what needs none goes on.
    pub fn deaf(&mut self) {
        self.asked = None;
    }

    /// Closes the socket: whoever asks from now on is to ask the next process.
    pub fn close(&mut self) {
        self.deaf();
        self.task.abort();
        self.claim = None;
        self.handed_over = true;
    }

    /// Leaves to the next process what it has to know.
    pub fn hand_over(self, shared: &Shared) {
        self.save(&shared.tallies.keep(true));
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        if !self.handed_over {
            self.save(&Kept::default());
        }
    }
}

/// The next question, where there is a control socket.
pub async fn asked(control: &mut Option<Control>) -> Ask {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

impl Service {
    /// Answers a question.
    pub fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Listeners(answer) => drop(answer.send(self.view())),
            Ask::Pause { listener, paused, answer } => drop(answer.send(self.pause(&listener, paused))),
        }
    }

    /// All listeners, served or not.
    fn view(&self) -> Vec<api::Listener> {
        let sessions = view::sessions_by_listener(&self.shared);
        let inherited = self.listening.iter().map(|l| listener(l, &l.route().name, &sessions));
        let mut all: Vec<_> = inherited.collect();
        all.extend(self.own.view(&sessions));
        all.extend(self.metrics.iter().map(|place| api::Listener {
            upstream: METRICS_UPSTREAM.to_owned(),
            reason: None,
            ..troubled(&place.address, Some(place.kind), METRICS, api::State::Serving, "")
        }));
        all.extend(self.refused.iter().cloned());
        all
    }

    /// Has connections to the listeners that are called so wait, or no longer; their addresses.
    fn pause(&self, called: &str, paused: bool) -> Vec<String> {
        let inherited = self.listening.iter().map(|l| (l.route(), l.route().name.clone()));
        let own = self.own.labelled();
        let mut meant = Vec::new();
        for (route, name) in inherited.chain(own) {
            if *route.listener != *called && (called.is_empty() || name != called) {
                continue;
            }
            meant.push(route.listener.to_string());
            if route.tally.pause(paused) {
                let (kind, text) = if paused {
                    (Kind::ListenerPaused, format!("{} is paused: connections wait in the backlog", route.listener))
                } else {
                    (Kind::ListenerResumed, format!("{} is resumed", route.listener))
                };
                let mut event = Event::new(kind, text);
                event.listener = Some(route.listener.clone());
                event.upstream = Some(route.upstream_text.clone());
                emit(event);
            }
        }
        if let Some(control) = self.control.as_ref().filter(|_| !meant.is_empty()) {
            control.save(&self.shared.tallies.keep(false));
        }
        meant
    }
}
