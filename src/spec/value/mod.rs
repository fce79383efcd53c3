//! The values that keys take: each kind reads what a name or a TOML file gave it, and writes itself back as text.
//!
//! A name and an argument hold text only; TOML has numbers and booleans besides. One reading serves both, so that
//! a forward means the same wherever it is written. What is out of range is refused here, with what to write.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    time::Duration,
};

use super::{
    call::Call,
    endpoint::{HostPort, Netns, UnixAddr, listen_addr, plus},
    error::Flaw,
};

mod account;
mod label;
mod mode;
mod network;
mod quantity;
mod word;

pub use account::{Account, Owner};
pub use label::{Device, Label};
pub use mode::Mode;
pub use network::Network;
pub use quantity::{Backlog, BufferSize, Count, Idle, Pause, Timeout};
pub use word::{LogLevel, OnRemove, ProxyProtocol};

/// A value as its source has it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Raw<'a> {
    /// Bytes of a name, or a TOML string.
    Text(&'a [u8]),
    /// A TOML integer.
    Integer(i64),
    /// A TOML float.
    Float(f64),
    /// A TOML boolean.
    Boolean(bool),
}

impl<'a> Raw<'a> {
    /// The text, when it is one; `expected` says what would be right.
    pub(super) fn text(self, expected: &str) -> Result<&'a str, Flaw> {
        let Self::Text(bytes) = self else {
            return Err(Flaw::new(0..0, format!("expected {expected} in quotes")));
        };
        std::str::from_utf8(bytes).map_err(|error| {
            let at = error.valid_up_to();
            Flaw::new(at..at + 1, "the value is not UTF-8").note("only a path may hold any byte")
        })
    }

    /// The bytes, when it is a text.
    fn bytes(self, expected: &str) -> Result<&'a [u8], Flaw> {
        match self {
            Self::Text(bytes) => Ok(bytes),
            _ => Err(Flaw::new(0..0, format!("expected {expected} in quotes"))),
        }
    }
}

/// A kind of value.
pub(super) trait Value: Sized {
    /// Whether a key of this kind may be given several times, or an array in TOML.
    const MANY: bool = false;

    /// Reads one.
    fn read(raw: Raw<'_>) -> Result<Self, Flaw>;

    /// Takes up another value of the same key; only for kinds that are [`MANY`](Self::MANY).
    fn add(&mut self, _more: Self) {}

    /// The texts that [`read`](Self::read) takes back: one, or one for each of many.
    fn texts(&self) -> Vec<Vec<u8>>;
}

/// A kind that reads and writes one text.
macro_rules! textual {
    ($type:ty, $expected:literal, $read:expr, $write:expr) => {
        impl Value for $type {
            fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
                $read(raw.text($expected)?)
            }

            fn texts(&self) -> Vec<Vec<u8>> {
                vec![$write(self).into_bytes()]
            }
        }
    };
}

textual!(Label, "a label", str::parse, |label: &Label| label.to_string());
textual!(SocketAddr, "an address and a port", listen_addr, |address: &SocketAddr| plus(address));
textual!(HostPort, "a host and a port", str::parse, |target: &HostPort| plus(target));
textual!(Call, "a qrexec call", call, |call: &Call| call.to_string());
textual!(IpAddr, "an IP address", ip, |ip: &IpAddr| ip.to_string());
textual!(Device, "an interface's name", str::parse, |device: &Device| device.as_str().to_owned());

/// Reads the two words of a call.
fn call(text: &str) -> Result<Call, Flaw> {
    let mut words = Vec::new();
    let mut end = 0;
    for word in text.split_whitespace() {
        let start = end + text[end..].find(word).expect("a word of the text is in it");
        end = start + word.len();
        words.push(start..end);
    }
    let flaw = |what: &str| Flaw::new(0..text.len(), what);
    match words.as_slice() {
        [target, service] => Ok(Call {
            target: text[target.clone()].parse().map_err(|flaw: Flaw| flaw.embedded(text, target))?,
            service: text[service.clone()].parse().map_err(|flaw: Flaw| flaw.embedded(text, service))?,
        }),
        [] => Err(flaw("the qrexec call is empty").note("such as @default qubes.ConnectTCP+1234")),
        [word] => {
            let word = &text[word.clone()];
            let flaw = flaw("a qrexec call has two words, the qube and the service");
            let service = word.contains(['+', '.']) && !word.starts_with('@');
            Err(if service {
                flaw.fix(format!("@default {word}"))
            } else {
                flaw.note(format!("{word} SERVICE+ARGUMENT"))
            })
        }
        [_, _, third, ..] => {
            let what = "a qrexec call has two words, and here is a third";
            Err(Flaw::new(third.start..text.len(), what).note("options are keys of their own here"))
        }
    }
}

fn ip(text: &str) -> Result<IpAddr, Flaw> {
    text.parse().map_err(|_| {
        Flaw::new(0..text.len(), format!("\"{text}\" is not an IP address")).note("without a port, such as 10.0.0.1")
    })
}

impl Value for UnixAddr {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        Self::read(raw.bytes("the path of a UNIX socket, or @name,")?)
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.bytes()]
    }
}

/// A network namespace by its name, for `namespace`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetnsName(pub(super) Netns);

/// A network namespace by a path, for `setns_path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetnsPath(pub(super) Netns);

impl Value for NetnsName {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        Netns::name(raw.text("the name of a network namespace")?).map(Self)
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.bytes()]
    }
}

impl Value for NetnsPath {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        Netns::path(raw.bytes("the path of a network namespace")?).map(Self)
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.bytes()]
    }
}

/// Either form, for `listen_namespace`: a text that begins with `/` is a path.
impl Value for Netns {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        match raw.bytes("the name or path of a network namespace")? {
            path @ [b'/', ..] => Self::path(path),
            _ => Self::name(raw.text("the name of a network namespace")?),
        }
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.bytes()]
    }
}

/// A directory that relative `uds` paths are put under; absolute.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct UdsDir(pub(super) PathBuf);

impl Value for UdsDir {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        match raw.bytes("the path of a directory")? {
            path @ [b'/', ..] => Ok(Self(PathBuf::from(OsString::from_vec(path.to_vec())))),
            other => Err(Flaw::new(0..other.len(), "expected an absolute path").note("such as /run/pfwd")),
        }
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.as_os_str().as_bytes().to_vec()]
    }
}

impl Value for bool {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        let text = match raw {
            Raw::Boolean(value) => return Ok(value),
            Raw::Text(_) => raw.text("true or false")?,
            _ => "",
        };
        // The words that systemd takes for a boolean (systemd.syntax(7)).
        match text {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(Flaw::new(0..text.len(), "expected true or false")),
        }
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.to_string().into_bytes()]
    }
}

/// Several values of one key, in the order in which they were given; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Many<T>(pub(super) Vec<T>);

impl<T> Many<T> {
    /// The values.
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }
}

impl<T: Value> Value for Many<T> {
    const MANY: bool = true;

    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        Ok(Self(vec![T::read(raw)?]))
    }

    fn add(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        self.0.iter().flat_map(Value::texts).collect()
    }
}

/// A number above zero for [`Count`] and friends, kept here for their readers.
pub(super) fn at_least_one(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

/// Seconds as the shortest text: `30`, `0.5`.
pub(super) fn seconds(duration: Duration) -> String {
    let text = format!("{}.{:03}", duration.as_secs(), duration.subsec_millis());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
