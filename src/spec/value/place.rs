//! Places: addresses, sockets, network namespaces, calls; each as one text.

use std::{
    ffi::OsString,
    net::IpAddr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use super::{
    label::{Device, Label},
    raw::{Raw, Value},
};
use crate::spec::{
    call::Call,
    endpoint::{HostPort, ListenAddr, Netns, Ports, UnixAddr, plus},
    error::Flaw,
};

/// A kind that reads and writes one text.
macro_rules! textual {
    ($type:ty, $expected:literal, $text:expr, $read:expr, $write:expr) => {
        impl Value for $type {
            fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
                $read($text(raw, $expected)?)
            }

            fn texts(&self) -> Vec<Vec<u8>> {
                vec![$write(self).into_bytes()]
            }
        }
    };
}

/// The text of an address. Other programs take a port as a number.
fn address<'a>(raw: Raw<'a>, expected: &str) -> Result<&'a str, Flaw> {
    raw.text(expected).map_err(|flaw| match raw {
        Raw::Integer(port @ 1..=0xffff) => flaw.fix_address(format!("127.0.0.1:{port}")),
        _ => flaw,
    })
}

textual!(Label, "a label", Raw::text, str::parse, |label: &Label| label.to_string());
textual!(Ports<ListenAddr>, "an address and a port", address, str::parse, |ports: &Ports<ListenAddr>| plus(ports));
textual!(Ports<HostPort>, "a host and a port", address, str::parse, |ports: &Ports<HostPort>| plus(ports));
textual!(Call, "a qrexec call", Raw::text, call, |call: &Call| call.to_string());
textual!(IpAddr, "an IP address", Raw::text, ip, |ip: &IpAddr| ip.to_string());
textual!(Device, "an interface's name", Raw::text, str::parse, |device: &Device| device.as_str().to_owned());

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
pub struct NetnsName(pub(in crate::spec) Netns);

/// A network namespace by a path, for `setns_path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetnsPath(pub(in crate::spec) Netns);

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
pub(in crate::spec) struct UdsDir(pub(in crate::spec) PathBuf);

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
