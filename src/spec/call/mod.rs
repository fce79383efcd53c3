//! A qrexec call: the qube that is asked and the service it is asked for, and the policy line that would allow it.
//!
//! qrexec mends what it is given, silently: characters outside its alphabet become `_`, a name that is too long is cut
//! off, a name that no qube has is served by `@default`. Each of these calls something that nobody asked for. So both
//! words are refused here unless they reach dom0 unchanged. (Limits: `libqrexec/qrexec.h`, `daemon/qrexec-daemon.c`
//! `sanitize_name`; names of qubes: core-admin `qubes/vm/__init__.py`.)

use std::{ffi::OsStr, fmt, ops::Deref, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{error::Flaw, nearest::nearest};

/// Longest name of a qube, in bytes (Qubes OS; Xen's own limit is wider).
const MAX_QUBE_NAME: usize = 31;
/// Longest target, in bytes: `target_domain[64]` of `struct trigger_service_params3` holds a NUL too.
const MAX_TARGET: usize = 63;
/// Longest service with its argument, in bytes: the called side looks for a file of this name in /etc/qubes-rpc, and
/// `NAME_MAX` of limits.h is 255 (beyond it the call ends with exit code 125).
const MAX_SERVICE: usize = 255;
/// The words that stand for a qube, as a caller may use them.
const KEYWORDS: [&str; 4] = ["@default", "@dispvm", "@dispvm:NAME", "@adminvm"];

/// A qrexec call: the two words that `qrexec-client-vm` takes. Both reach dom0 unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Call {
    /// The qube asked for.
    pub target: Target,
    /// The service that is called in the target.
    pub service: Service,
}

impl Call {
    /// A call from its two words; `:` before the argument of the service is read as `+`.
    ///
    /// # Errors
    /// What is wrong with the first word that is wrong.
    pub fn new(target: &str, service: &str) -> Result<Self, Flaw> {
        let whole = format!("{target} {service}");
        let (first, second) = (0..target.len(), target.len() + 1..whole.len());
        Ok(Self {
            target: target.parse().map_err(|flaw: Flaw| flaw.embedded(&whole, &first))?,
            service: service.parse().map_err(|flaw: Flaw| flaw.embedded(&whole, &second))?,
        })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.target, self.service)
    }
}

macro_rules! word {
    ($type:ident) => {
        impl $type {
            /// The word as `qrexec-client-vm` takes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $type {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<OsStr> for $type {
            fn as_ref(&self) -> &OsStr {
                self.0.as_ref()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Flaw;

            fn try_from(text: String) -> Result<Self, Flaw> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(word: $type) -> Self {
                word.0
            }
        }
    };
}

/// The qube of a call: a name of at most 31 bytes, `dom0`, `@default`, `@dispvm`, `@dispvm:NAME`, `@adminvm` or
/// `uuid:…`; at most 63 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target(String);

/// Service and argument as `service` or `service+argument`, of `A-Z a-z 0-9 + - . _`; at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Service(String);

word!(Target);
word!(Service);

impl FromStr for Target {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        let whole = 0..text.len();
        if text.is_empty() {
            return Err(Flaw::new(whole, "the target of the call is empty").fix("@default"));
        }
        if let Some(name) = text.strip_prefix('$') {
            return Err(Flaw::new(0..1, "a target with $ is the spelling of Qubes 3").fix(format!("@{name}")));
        }
        if text.len() > MAX_TARGET {
            let what = format!("the target has {} bytes, and qrexec would cut it off after {MAX_TARGET}", text.len());
            return Err(Flaw::new(whole, what).note(format!("names of qubes have at most {MAX_QUBE_NAME}")));
        }
        if let Some(name) = text.strip_prefix("@dispvm:") {
            let at = text.len() - name.len();
            if name.is_empty() {
                let what = "@dispvm: lacks the name of the disposable's template";
                return Err(Flaw::new(whole, what).fix("@dispvm"));
            }
            qube(name).map_err(|flaw| flaw.shifted(at))?;
        } else if text.starts_with('@') {
            if !matches!(text, "@default" | "@dispvm" | "@adminvm") {
                let flaw = Flaw::new(whole, format!("\"{text}\" is not a target that a call can have"));
                return Err(match nearest(text, ["@default", "@dispvm", "@adminvm"]) {
                    Some(word) => flaw.fix(word),
                    None => flaw.note(format!("a qube's name or one of {}", KEYWORDS.join(", "))),
                });
            }
        } else {
            qube(text)?;
        }
        Ok(Self(text.to_owned()))
    }
}

/// Checks a qube's name or `uuid:…`.
fn qube(name: &str) -> Result<(), Flaw> {
    let whole = 0..name.len();
    if let Some(uuid) = name.strip_prefix("uuid:") {
        let groups: Vec<&str> = uuid.split('-').collect();
        let shape = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
        if shape && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit())) {
            return Ok(());
        }
        let what = format!("\"{uuid}\" is not a UUID");
        return Err(Flaw::new(5..name.len(), what).note("such as uuid:01234567-89ab-cdef-0123-456789abcdef"));
    }
    if let Some((at, bad)) = name.char_indices().find(|(_, c)| !(c.is_ascii_alphanumeric() || "_.-".contains(*c))) {
        let what = format!("a qube's name cannot hold \"{bad}\": qrexec would turn it into _ and ask another qube");
        return Err(Flaw::new(at..at + bad.len_utf8(), what).note("letters, digits, \"_\", \".\" and \"-\""));
    }
    if name.len() > MAX_QUBE_NAME {
        let what = format!("the name of a qube has at most {MAX_QUBE_NAME} bytes, this one {}", name.len());
        return Err(Flaw::new(MAX_QUBE_NAME..name.len(), what).note("a name that no qube has is served by @default"));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        let what = format!("\"{name}\" is not a qube's name: those begin with a letter");
        let note = "two words: the qube, then the service, such as @default qubes.ConnectTCP+1234";
        return Err(Flaw::new(whole, what).note(note));
    }
    Ok(())
}

impl FromStr for Service {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        let whole = 0..text.len();
        // The argument begins at the first `+`; where a `:` reaches us before any, it is one.
        let separator = text.find(['+', ':']);
        let text = match separator {
            Some(at) => format!("{}+{}", &text[..at], &text[at + 1..]),
            None => text.to_owned(),
        };
        if text.is_empty() {
            return Err(Flaw::new(whole, "the service of the call is empty").note("such as qubes.ConnectTCP+1234"));
        }
        if separator == Some(0) {
            let flaw = Flaw::new(0..1, format!("\"{text}\" lacks the service before its argument"));
            let port = text[1..].bytes().all(|byte| byte.is_ascii_digit()) && text.len() > 1;
            return Err(if port { flaw.fix(format!("qubes.ConnectTCP{text}")) } else { flaw.note("SERVICE+ARGUMENT") });
        }
        if text.starts_with('-') {
            let what = format!("\"{text}\" begins with -, which qrexec-client-vm reads as an option");
            return Err(Flaw::new(0..1, what).note("names of services begin with a letter"));
        }
        if let Some((at, bad)) = text.char_indices().find(|(_, c)| !(c.is_ascii_alphanumeric() || "+_.-".contains(*c)))
        {
            let what = format!("a service cannot hold \"{bad}\": qrexec would turn it into _ and call another service");
            let note = "letters, digits, \"+\", \"-\", \".\" and \"_\"";
            return Err(Flaw::new(at..at + bad.len_utf8(), what).note(note));
        }
        if text.len() > MAX_SERVICE {
            let what = format!("service and argument have at most {MAX_SERVICE} bytes together, these {}", text.len());
            return Err(Flaw::new(MAX_SERVICE..text.len(), what).note("use a shorter argument"));
        }
        // `svc` and `svc+` are one call: dom0 appends the `+`. One spelling, so that both share their limits.
        let bare = text.strip_suffix('+').filter(|service| !service.contains('+'));
        Ok(Self(bare.unwrap_or(&text).to_owned()))
    }
}

/// The line that dom0 needs in a file such as `/etc/qubes/policy.d/30-user.policy` to allow a call from the qube
/// `source`; without it the line has `SOURCE` in its place, and `TARGET` where only the administrator can know.
///
/// The first matching line wins, files in the order of their names.
pub fn policy_line(call: &Call, source: Option<&str>) -> String {
    let (service, argument) = call.service.split_at(call.service.find('+').unwrap_or(call.service.len()));
    // An argument of `+` alone matches the call without argument, and only that.
    let argument = if argument.is_empty() { "+" } else { argument };
    let target = match call.target.as_str() {
        "dom0" => "@adminvm",
        target => target,
    };
    // `@default` names nobody: without `target=` the policy daemon refuses the call.
    let params = if target == "@default" { " target=TARGET" } else { "" };
    format!("{service}  {argument}  {}  {target}  allow{params}", source.unwrap_or("SOURCE"))
}

#[cfg(test)]
mod tests;
