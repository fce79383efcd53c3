//! The unit that a forward starts when its first client comes.

use std::{fmt, str::FromStr};

use super::raw::{Raw, Value};
use crate::spec::error::Flaw;

/// The most bytes of a unit's name (`UNIT_NAME_MAX` of systemd counts the final zero).
const MAX_NAME: usize = 255;
/// The types of units that nothing starts for a client: those of systemd.unit(5) but `service` and `target`.
const OTHER_TYPES: [&str; 9] = ["socket", "device", "mount", "automount", "swap", "timer", "path", "slice", "scope"];

/// The full name of a service or a target: `localai.service`, `web@1.service`. systemd takes it as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StartUnit(String);

impl StartUnit {
    /// The name with its type.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StartUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a name as systemctl does: one without a type is a service.
impl FromStr for StartUnit {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        let flaw = |what: String| Flaw::new(0..text.len(), what);
        let (stem, unit_type) = text.rsplit_once('.').unwrap_or((text, ""));
        match unit_type {
            "socket" => {
                let what = format!("{text} is a socket unit: a stop of a socket unit leaves its service running");
                return Err(flaw(what).fix(format!("{stem}.service")));
            }
            other if OTHER_TYPES.contains(&other) => {
                let what = format!("{text} is a {other} unit, and only services and targets are started for clients");
                return Err(flaw(what).note("NAME.service or NAME.target"));
            }
            // What a Quadlet file becomes (podman-systemd.unit(5)).
            "container" | "kube" => {
                let what = format!("{text} is a Quadlet file and no unit");
                return Err(flaw(what).fix(format!("{stem}.service")));
            }
            "pod" => {
                return Err(flaw(format!("{text} is a Quadlet file and no unit")).fix(format!("{stem}-pod.service")));
            }
            _ => {}
        }
        let name = match unit_type {
            "service" | "target" => text.to_owned(),
            _ => format!("{text}.service"),
        };
        let (stem, unit_type) = name.rsplit_once('.').unwrap_or((&name, ""));
        if stem.is_empty() {
            return Err(flaw("the name of the unit is empty".to_owned()).note("such as localai.service"));
        }
        // `VALID_CHARS_WITH_AT` of systemd.
        let valid = |c: char| c.is_ascii_alphanumeric() || "@:-_.\\".contains(c);
        if let Some((at, bad)) = text.char_indices().find(|(_, c)| !valid(*c)) {
            let what = format!("the name of a unit cannot hold \"{}\"", bad.escape_default());
            return Err(Flaw::new(at..at + bad.len_utf8(), what).note("systemd-escape(1) writes such a name"));
        }
        if name.len() > MAX_NAME {
            return Err(flaw(format!("the name of the unit has {} bytes, and {MAX_NAME} are the most", name.len())));
        }
        match stem.find('@') {
            Some(0) => Err(flaw(format!("there is nothing before the \"@\" of {name}")).note("such as web@1.service")),
            Some(at) if at + 1 == stem.len() => {
                let what = format!("{name} is a template, and systemd starts instances of a template");
                Err(flaw(what).note(format!("such as {stem}INSTANCE.{unit_type}")))
            }
            _ => Ok(Self(name)),
        }
    }
}

impl Value for StartUnit {
    fn read(raw: Raw<'_>) -> Result<Self, Flaw> {
        raw.text("the name of a unit")?.parse()
    }

    fn texts(&self) -> Vec<Vec<u8>> {
        vec![self.0.clone().into_bytes()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_type_is_a_service() {
        for (written, name) in [
            ("localai", "localai.service"),
            ("localai.service", "localai.service"),
            ("ai.target", "ai.target"),
            ("llama-3.1", "llama-3.1.service"),
            ("web@1", "web@1.service"),
            ("web@a@b.service", "web@a@b.service"),
            ("a:b\\x2dc_D", "a:b\\x2dc_D.service"),
            ("-", "-.service"),
        ] {
            let unit: StartUnit = written.parse().expect(written);
            assert_eq!(unit.as_str(), name);
            assert_eq!(unit.to_string().parse(), Ok(unit));
        }
        let longest = "a".repeat(MAX_NAME - ".service".len());
        assert_eq!(longest.parse::<StartUnit>().unwrap().as_str().len(), MAX_NAME);
        assert!(format!("{longest}a").parse::<StartUnit>().is_err());
    }

    #[test]
    fn what_cannot_be_started_for_a_client_is_refused_with_what_to_write() {
        let refused = |text: &str| text.parse::<StartUnit>().expect_err(text);
        let socket = refused("localai.socket");
        assert_eq!(socket, Flaw::new(0..14, socket_reason("localai.socket")).fix("localai.service"));
        for unit_type in OTHER_TYPES {
            let what = format!("{:?}", refused(&format!("a.{unit_type}")));
            assert!(what.contains(&format!("a.{unit_type} is a {unit_type} unit")), "{what}");
        }
        for (text, meant) in
            [("web.container", "web.service"), ("web.kube", "web.service"), ("web.pod", "web-pod.service")]
        {
            assert!(format!("{:?}", refused(text)).contains(meant), "{text}");
        }
        for bad in
            ["", ".service", ".target", "a b", "a/b", "é", "@.service", "@a", "web@", "web@.target", "a\nb", "a%i"]
        {
            refused(bad);
        }
    }

    fn socket_reason(unit: &str) -> String {
        format!("{unit} is a socket unit: a stop of a socket unit leaves its service running")
    }
}
