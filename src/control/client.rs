//! The asking side, for our own commands: one call after the other, without a runtime.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use varlink::{
    Request,
    sansio::protocol::{parse_reply, serialize_request},
};

use super::api::INTERFACE;
use crate::log::escape;

/// How long an answer may take; ending a session takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// Limit of a reply, in bytes.
const REPLY: u64 = 64 << 20;

/// Reasons why a call has no answer.
#[derive(Debug)]
pub enum CallFailed {
    /// Nobody is there, or nobody who lets us in.
    Connect(io::Error),
    /// The connection ended in the middle: the service restarts, or has too many clients.
    Cut,
    /// The reply cannot be read: why.
    Strange(String),
    /// It said no: the error's last name, and its parameters.
    Refused(String, Value),
}

impl CallFailed {
    /// Whether somebody is there who does not let us in.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Connect(error) if error.kind() == io::ErrorKind::PermissionDenied)
    }
}

impl fmt::Display for CallFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Cut => f.write_str("the service ended the connection"),
            Self::Strange(what) => write!(f, "cannot read the service's answer: {what}"),
            Self::Refused(name, parameters) => {
                let text = |key| match &parameters[key] {
                    Value::String(text) => escape(text.as_bytes()),
                    other => other.to_string(),
                };
                match name.as_str() {
                    "NoSuchSession" => write!(f, "no session has an id that begins with {}", text("id")),
                    "AmbiguousSession" => {
                        write!(f, "{} sessions have an id that begins with {}", text("matches"), text("id"))
                    }
                    "StillThere" => write!(f, "session {} was asked to end, and still runs", text("id")),
                    "NoSuchListener" => {
                        write!(f, "no active listener matches {}; `status` lists all", text("listener"))
                    }
                    "AmbiguousListener" => {
                        write!(f, "{} means several listeners; name one of them:", text("listener"))?;
                        let matches = parameters["matches"].as_array().into_iter().flatten();
                        matches
                            .filter_map(Value::as_str)
                            .try_for_each(|one| write!(f, "\n  {}", escape(one.as_bytes())))
                    }
                    "Stopping" => f.write_str("the service is stopping"),
                    "InvalidParameter" if text("parameter") == "id" => {
                        f.write_str("an id has at least four digits, such as the eight that `sessions` shows")
                    }
                    "InvalidParameter" => write!(f, "the service did not understand \"{}\"", text("parameter")),
                    "MethodNotFound" => f.write_str("the running service is of another version and cannot do that"),
                    other => write!(f, "the service refused: {}", escape(other.as_bytes())),
                }
            }
        }
    }
}

/// A connection to a service.
#[derive(Debug)]
pub struct ControlConnection {
    stream: BufReader<UnixStream>,
}

impl ControlConnection {
    /// Connects to the service that listens at `path`.
    pub fn connect(path: &Path) -> Result<Self, CallFailed> {
        let stream = UnixStream::connect(path).map_err(CallFailed::Connect)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(CallFailed::Connect)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(CallFailed::Connect)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Makes a call that has one answer.
    pub fn call<T: DeserializeOwned>(&mut self, method: &str, arguments: &impl Serialize) -> Result<T, CallFailed> {
        self.send(method, arguments, false)?;
        Ok(self.receive()?.0)
    }

    /// One call with several answers: `take` is given each, until there are no more or it returns false. Between them
    /// any time may pass.
    pub fn each<T: DeserializeOwned>(
        &mut self,
        method: &str,
        arguments: &impl Serialize,
        mut take: impl FnMut(T) -> bool,
    ) -> Result<(), CallFailed> {
        self.send(method, arguments, true)?;
        self.stream.get_ref().set_read_timeout(None).map_err(CallFailed::Connect)?;
        loop {
            let (answer, more) = self.receive()?;
            if !take(answer) || !more {
                return Ok(());
            }
        }
    }

    fn send(&mut self, method: &str, arguments: &impl Serialize, more: bool) -> Result<(), CallFailed> {
        let strange = |e: &dyn fmt::Display| CallFailed::Strange(e.to_string());
        let arguments = serde_json::to_value(arguments).map_err(|e| strange(&e))?;
        let mut request = Request::create(format!("{INTERFACE}.{method}"), Some(arguments));
        request.more = more.then_some(true);
        let bytes = serialize_request(&request).map_err(|e| strange(&e))?;
        self.stream.get_mut().write_all(&bytes).map_err(|_| CallFailed::Cut)
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Result<(T, bool), CallFailed> {
        let mut message = Vec::new();
        match (&mut self.stream).take(REPLY).read_until(0, &mut message) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(CallFailed::Strange(format!("there was none within {} s", PATIENCE.as_secs())));
            }
            Err(_) => return Err(CallFailed::Cut),
            Ok(_) if message.pop() != Some(0) => return Err(CallFailed::Cut),
            Ok(_) => {}
        }
        let strange = |e: &dyn fmt::Display| CallFailed::Strange(escape(e.to_string().as_bytes()));
        let reply = parse_reply(&message).map_err(|e| strange(&e))?;
        if let Some(error) = reply.error {
            let name = error.rsplit('.').next().unwrap_or_default().to_owned();
            return Err(CallFailed::Refused(name, reply.parameters.unwrap_or_default()));
        }
        let parameters = reply.parameters.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        let answer = serde_json::from_value(parameters).map_err(|e| strange(&e))?;
        Ok((answer, reply.continues == Some(true)))
    }
}
