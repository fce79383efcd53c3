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
mod ask;
pub mod client;
mod http;
mod metrics;
pub mod select;
mod server;
mod state;
mod view;
pub mod who;

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use tokio::{net::UnixListener, sync::mpsc, task::JoinHandle};

pub use ask::{Ask, ConfigFaults, ListenerCounts, Subject, WordMeaning};
pub use http::{NAME as METRICS, UPSTREAM as METRICS_UPSTREAM, serve as serve_metrics};
pub use view::{listener, post, refused, sessions_by_listener, troubled};

use crate::{
    activation,
    listener::{SocketClaim, bind},
    log::{Kind, say},
    session::{Routes, Snapshot, Tallies},
    spec::{Listen, UnixAddr, UnixRights},
};

/// The socket's name in the runtime directory.
pub const SOCKET: &str = "control";
/// Clients that may wait to be let in.
const BACKLOG: NonZeroU32 = NonZeroU32::new(64).expect("it is not zero");

/// The open control socket, and what the service is asked through it.
#[derive(Debug)]
pub struct Control {
    state: StateFile,
    questions: mpsc::Receiver<Ask>,
    _door: Door,
}

/// The socket and the task behind it; dropped, it lets all clients go.
#[derive(Debug)]
struct Door {
    task: JoinHandle<()>,
    /// Removes the socket when it is dropped.
    _claim: Option<SocketClaim>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The file beside the socket, for the next process. Dropped, it is removed: the service has stopped. `None` once the
/// next process is to have it.
#[derive(Debug)]
pub struct StateFile(Option<PathBuf>);

impl StateFile {
    fn write(&self, snapshot: &Snapshot) {
        let Some(path) = &self.0 else { return };
        if let Err(e) = state::write(path, snapshot) {
            let path = path.display();
            say(Kind::ControlTrouble, format!("pauses and counters will not outlive a restart: {path}.state: {e}"));
        }
    }

    /// Leaves pauses, counters and the back-offs after refusals to the next process.
    pub fn hand_over(mut self, routes: &Routes) {
        self.write(&routes.hand_over());
        self.0 = None;
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        self.write(&Snapshot::default());
    }
}

impl Control {
    /// Takes up what the earlier process left beside the socket at `path`; to be called before there are routes.
    pub fn take_up(path: &Path, routes: &Routes) {
        routes.take_up(&state::read(path));
    }

    /// Listens at `path`.
    pub fn open(path: &Path, subject: Subject) -> Result<Self, String> {
        let text = path.to_str().ok_or("its path is no UTF-8")?;
        let addr: UnixAddr = text.parse().map_err(|e| format!("{e}"))?;
        let listen = Listen::Unix { addr, rights: UnixRights::default(), backlog: BACKLOG };
        let bound = bind(&listen).map_err(|trouble| trouble.to_string())?;
        let activation::Socket::Unix(listener) = bound.socket else { return Err("it is no UNIX socket".to_owned()) };
        let listener = UnixListener::from_std(listener).map_err(|e| e.to_string())?;
        let (asks, questions) = mpsc::channel(1);
        let server = server::Server::new(subject.clone(), asks);
        let door = Door { task: tokio::spawn(server.run(listener)), _claim: bound.claim };
        let control = Self { state: StateFile(Some(path.to_owned())), questions, _door: door };
        // The counts have been taken up; should this process crash, counting starts from zero.
        control.save(subject.routes.tallies());
        Ok(control)
    }

    /// Writes the pauses beside the socket, for the next process.
    pub fn save(&self, tallies: &Tallies) {
        self.state.write(&tallies.keep(false));
    }

    /// Stops answering questions; calls that need no answer of the service still work.
    pub fn deafen(&mut self) {
        self.questions.close();
        while self.questions.try_recv().is_ok() {} // whoever asked is told that the service stops
    }

    /// Closes the socket: clients ask the next process from now on.
    pub fn close(self) -> StateFile {
        self.state
    }
}

/// The next question, where there is a control socket.
///
/// # Cancel safety
/// Safe.
pub async fn asked(control: &mut Option<Control>) -> Ask {
    if let Some(control) = control {
        if let Some(ask) = control.questions.recv().await {
            return ask;
        }
    }
    std::future::pending().await
}
