//! Varlink on a socket: who may ask, how much, and the answers.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
    task::{JoinSet, spawn_blocking},
    time::{Instant, timeout, timeout_at},
};
use uuid::Uuid;
use varlink::{
    ConnectionHandler as _, Reply, Request, VarlinkService,
    sansio::{self, protocol::serialize_request},
};

use super::{
    api::{self, Refusal},
    ask::{Ask, Subject, WordMeaning},
    metrics,
    select::{KnownListener, Selection, select},
    view, who,
};
use crate::{
    crash,
    log::{Kind, escape, say},
    relay::Why,
    session::TallyKey,
    sys::accept,
};

/// Clients at once. They are this user's, or root's; one more finds the door shut.
const CLIENTS: usize = 32;
/// A request above this size is a mistake, in bytes.
const REQUEST: usize = 64 << 10;
/// A client that asks nothing for so long is let go.
const QUIET: Duration = Duration::from_secs(600);
/// A client that reads nothing for so long is let go.
const UNREAD: Duration = Duration::from_secs(10);
/// How long a session may take to end: two seconds for a child to obey SIGTERM, and a margin.
const ENDING: Duration = Duration::from_secs(8);
/// Sessions in one reply, when the client takes several.
const CHUNK: usize = 500;
/// The beginning of an id has at least so many digits; logs show eight.
const SHORTEST: usize = 4;

/// State that all connections share.
pub struct Server {
    subject: Subject,
    asks: mpsc::Sender<Ask>,
    service: VarlinkService,
}

/// Only its description is ours to tell by way of the library: its calls are answered here, where one can wait.
struct Described;

impl varlink::Interface for Described {
    fn get_description(&self) -> &'static str {
        api::DESCRIPTION
    }

    fn get_name(&self) -> &'static str {
        api::INTERFACE
    }

    fn call_upgraded(&self, _: &mut varlink::Call<'_>, _: &mut dyn std::io::BufRead) -> varlink::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn call(&self, _: &mut varlink::Call<'_>) -> varlink::Result<()> {
        Ok(())
    }
}

/// The connection is of no more use.
struct ClientGone;

struct ControlClient {
    server: Arc<Server>,
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    wire: sansio::Server,
}

impl Server {
    pub fn new(subject: Subject, asks: mpsc::Sender<Ask>) -> Self {
        let described: Vec<Box<dyn varlink::Interface + Send + Sync>> = vec![Box::new(Described)];
        let version = env!("CARGO_PKG_VERSION");
        let service =
            VarlinkService::new("qrexec-connect", subject.program, version, "man:qrexec-connect(1)", described);
        Self { subject, asks, service }
    }

    /// Lets clients in, for ever. Dropped, it lets all of them go.
    pub async fn run(self, listener: UnixListener) {
        let server = Arc::new(self);
        let mut clients = JoinSet::new();
        let trouble = |e: &_| say(Kind::DescriptorPressure, format!("cannot accept on the control socket: {e}"));
        loop {
            tokio::select! {
                (stream, _) = accept::next(|| listener.accept(), trouble) => {
                    if clients.len() < CLIENTS && may_ask(&stream) {
                        clients.spawn(serve(server.clone(), stream));
                    }
                }
                Some(_) = clients.join_next() => {}
            }
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).await.map_err(|_| Refusal::Stopping)?;
        answered.await.map_err(|_| Refusal::Stopping)
    }

    async fn status(&self) -> api::Status {
        let start_units = self.subject.start_units().await;
        let listeners = self.ask(Ask::Listeners).await;
        api::Status {
            program: self.subject.program.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: if listeners.is_ok() { api::Life::Serving } else { api::Life::Stopping },
            listeners: listeners.unwrap_or_default(),
            sessions: self.subject.sessions.count() as u64,
            faults: self.subject.faults.all(),
            crashes: crashes(),
            start_units,
        }
    }

    async fn sessions(&self, which: api::Which) -> Result<Vec<api::Session>, Refusal> {
        let only = which.id.as_deref().map(|id| self.meant(id)).transpose()?;
        let mut all = self.subject.sessions.all();
        all.retain(|info| only.is_none_or(|id| id == info.id));
        let mut sessions: Vec<_> = all.iter().map(|info| view::session(info)).collect();
        if sessions.iter().any(|session| session.start_unit.is_some()) {
            let units: HashMap<_, _> =
                self.subject.start_units().await.into_iter().map(|unit| (unit.unit.clone(), unit)).collect();
            for session in &mut sessions {
                session.start_unit_now = session.start_unit.as_ref().and_then(|unit| units.get(unit).cloned());
            }
        }
        if which.processes != Some(true) {
            return Ok(sessions);
        }
        let looked_up = spawn_blocking(move || {
            let processes = who::look_up(&all.iter().map(|info| who::PeerQuery::of(info)).collect::<Vec<_>>());
            sessions.iter_mut().zip(processes).for_each(|(session, process)| session.process = process);
            sessions
        });
        looked_up.await.map_err(|_| Refusal::Stopping)
    }

    /// The one session whose id is this, or begins so.
    fn meant(&self, id: &str) -> Result<Uuid, Refusal> {
        let beginning = id.to_ascii_lowercase();
        if beginning.len() < SHORTEST {
            return Err(Refusal::InvalidParameter("id".to_owned()));
        }
        let mut found = Vec::new();
        self.subject.sessions.for_each(|info| {
            let mut text = Uuid::encode_buffer();
            if info.id.hyphenated().encode_lower(&mut text).starts_with(&beginning) {
                found.push(info.id);
            }
        });
        match found[..] {
            [] => Err(Refusal::NoSuchSession(escape(id.as_bytes()))),
            [one] => Ok(one),
            _ => Err(Refusal::AmbiguousSession(escape(id.as_bytes()), found.len())),
        }
    }

    /// Ends a session, and waits until it is over.
    async fn kill(&self, id: &str) -> Result<api::Id, Refusal> {
        let id = self.meant(id)?;
        let sessions = &self.subject.sessions;
        let mut count = sessions.watch();
        sessions.interrupt(Why::Killed, |info| info.id == id);
        let deadline = Instant::now() + ENDING;
        while sessions.contains(&id) {
            let changed = timeout_at(deadline, count.changed()).await;
            changed.map_err(|_| Refusal::StillThere(id.to_string()))?.map_err(|_| Refusal::Stopping)?;
        }
        Ok(api::Id { id: id.to_string() })
    }

    async fn pause(&self, named: api::Named, paused: bool) -> Result<api::Addresses, Refusal> {
        let called = named.listener;
        let listener = called.clone();
        match self.ask(|answer| Ask::Pause { listener, paused, answer }).await? {
            WordMeaning::Nothing => Err(Refusal::NoSuchListener(escape(called.as_bytes()))),
            WordMeaning::One(addresses) => Ok(addresses),
            WordMeaning::Several(matches) => Err(Refusal::AmbiguousListener(escape(called.as_bytes()), matches)),
        }
    }

    /// The listeners that these words mean, each with all that it may mean.
    async fn series(&self, words: &[String]) -> Result<HashSet<TallyKey>, Refusal> {
        let listeners = self.ask(Ask::Listeners).await?;
        let known: Vec<_> = listeners.iter().map(KnownListener::from).collect();
        let mut meant = HashSet::new();
        for word in words {
            match select(word, &known) {
                Selection::Nothing => return Err(Refusal::NoSuchListener(escape(word.as_bytes()))),
                found => meant.extend(found.all().iter().filter_map(|index| {
                    let listener = &listeners[*index];
                    Some((listener.address.as_str().into(), listener.kind?))
                })),
            }
        }
        Ok(meant)
    }

    /// The answer to a call that has one.
    async fn answer(&self, method: &str, parameters: Option<Value>) -> Result<Value, Refusal> {
        let value = match method {
            "Status" => json(self.status().await),
            "Configuration" => json(self.ask(Ask::Configuration).await?),
            "ListListeners" => json(api::Listeners { listeners: self.ask(Ask::Listeners).await? }),
            "ListSessions" => json(api::Sessions { sessions: self.sessions(arguments(parameters)?).await? }),
            "Kill" => json(self.kill(&arguments::<api::Id>(parameters)?.id).await?),
            "Pause" => json(self.pause(arguments(parameters)?, true).await?),
            "Resume" => json(self.pause(arguments(parameters)?, false).await?),
            "Metrics" => {
                let asked = arguments::<api::As>(parameters)?;
                let only = match asked.listeners {
                    Some(words) => Some(self.series(&words).await?),
                    None => None,
                };
                json(api::Text { text: metrics::text(&self.subject, asked.format.unwrap_or_default(), only).await })
            }
            _ => return Err(Refusal::MethodNotFound(format!("{}.{}", api::INTERFACE, escape(method.as_bytes())))),
        };
        Ok(value)
    }
}

/// Root, or whom the service runs as. The socket's mode says the same; it is not relied upon.
fn may_ask(stream: &UnixStream) -> bool {
    let ours = nix::unistd::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == ours || peer.uid() == 0)
}

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).expect("our types have nothing that JSON has not")
}

/// The arguments of a call. serde says which one is wrong between backticks.
fn arguments<T: DeserializeOwned>(parameters: Option<Value>) -> Result<T, Refusal> {
    serde_json::from_value(parameters.unwrap_or_else(|| json!({}))).map_err(|e| {
        let text = e.to_string();
        let name = text.split('`').nth(1).unwrap_or("parameters");
        Refusal::InvalidParameter(escape(name.as_bytes()))
    })
}

fn refused(refusal: &Refusal) -> Reply {
    let (name, parameters) = refusal.reply();
    Reply::error(name, Some(parameters))
}

/// Answers one client until it goes, is quiet for too long, or sends an invalid call.
async fn serve(server: Arc<Server>, stream: UnixStream) {
    let (from, to) = stream.into_split();
    let mut client = ControlClient { server, from, to, wire: sansio::Server::new() };
    while let Ok(request) = client.next().await {
        if client.call(request).await.is_err() {
            return;
        }
    }
}

impl ControlClient {
    async fn next(&mut self) -> Result<Request<'static>, ClientGone> {
        let (mut chunk, mut incomplete) = ([0; 4096], 0);
        loop {
            match self.wire.poll_event() {
                Some(sansio::ServerEvent::Request { request }) => return Ok(request),
                Some(sansio::ServerEvent::Upgrade { .. }) => return Err(ClientGone),
                None if incomplete > REQUEST => return Err(ClientGone),
                None => {}
            }
            match timeout(QUIET, self.from.read(&mut chunk)).await {
                Ok(Ok(n)) if n > 0 => {
                    incomplete += n;
                    self.wire.handle_input(&chunk[..n]).map_err(|_| ClientGone)?;
                }
                _ => return Err(ClientGone),
            }
        }
    }

    async fn call(&mut self, request: Request<'static>) -> Result<(), ClientGone> {
        let server = self.server.clone();
        let oneway = request.oneway == Some(true);
        let more = request.more == Some(true);
        let Some(method) = request.method.strip_prefix(api::INTERFACE).and_then(|m| m.strip_prefix('.')) else {
            return self.introspect(&request, oneway).await;
        };
        match method {
            "Watch" if oneway => return Ok(()),
            "Watch" if !more => return self.reply(refused(&Refusal::ExpectedMore)).await,
            "Watch" => return self.watch().await,
            "ListSessions" if more && !oneway => {
                return match arguments(request.parameters) {
                    Ok(which) => self.many(server.sessions(which).await).await,
                    Err(refusal) => self.reply(refused(&refusal)).await,
                };
            }
            _ => {}
        }
        let answer = server.answer(method, request.parameters).await;
        if oneway {
            return Ok(());
        }
        self.reply(answer.map_or_else(|refusal| refused(&refusal), |value| Reply::parameters(Some(value)))).await
    }

    /// `org.varlink.service` is the library's.
    async fn introspect(&mut self, request: &Request<'_>, oneway: bool) -> Result<(), ClientGone> {
        let asked = serialize_request(request).map_err(|_| ClientGone)?;
        let mut reply = Vec::new();
        self.server.service.handle(&mut &asked[..], &mut reply, None).map_err(|_| ClientGone)?;
        if oneway { Ok(()) } else { self.write(&reply).await }
    }

    /// Sessions in several replies.
    async fn many(&mut self, sessions: Result<Vec<api::Session>, Refusal>) -> Result<(), ClientGone> {
        let mut sessions = match sessions {
            Ok(sessions) => sessions,
            Err(refusal) => return self.reply(refused(&refusal)).await,
        };
        loop {
            let rest = if sessions.len() > CHUNK { sessions.split_off(CHUNK) } else { Vec::new() };
            let last = rest.is_empty();
            let value = json(api::Sessions { sessions });
            self.reply(Reply { continues: Some(!last), ..Reply::parameters(Some(value)) }).await?;
            if last {
                return Ok(());
            }
            sessions = rest;
        }
    }

    /// Tells events until the client goes, or says anything: there is nothing to be said meanwhile.
    async fn watch(&mut self) -> Result<(), ClientGone> {
        let mut watching = self.server.subject.sessions.subscribe();
        self.event(&view::event(api::Happened::Ready)).await?;
        let mut ignored = [0; 16];
        loop {
            let event = tokio::select! {
                event = watching.next() => event.ok_or(ClientGone)?,
                _ = self.from.read(&mut ignored) => return Err(ClientGone),
            };
            let dropped = watching.dropped();
            if dropped > 0 {
                self.event(&view::dropped(dropped)).await?;
            }
            self.event(&view::happening(&event)).await?;
        }
    }

    async fn event(&mut self, event: &api::Event) -> Result<(), ClientGone> {
        self.reply(Reply { continues: Some(true), ..Reply::parameters(Some(json(event))) }).await
    }

    async fn reply(&mut self, reply: Reply) -> Result<(), ClientGone> {
        self.wire.send_reply(reply).map_err(|_| ClientGone)?;
        while let Some(part) = self.wire.poll_transmit() {
            self.write(&part.payload).await?;
        }
        Ok(())
    }

    async fn write(&mut self, mut bytes: &[u8]) -> Result<(), ClientGone> {
        while !bytes.is_empty() {
            match timeout(UNREAD, self.to.write(bytes)).await {
                Ok(Ok(n)) if n > 0 => bytes = &bytes[n..],
                _ => return Err(ClientGone),
            }
        }
        Ok(())
    }
}

/// What crashes amount to, if there were any.
fn crashes() -> Option<api::Crashes> {
    let crash::CrashCounts { crashes, resumed, lost } = crash::counts();
    (crashes > 0).then_some(api::Crashes { crashes, resumed, lost })
}
