//! Names that people give: to a forward, and to a network interface.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::spec::error::Flaw;

/// What a `[[forward]]` is called: what a socket's name says to have it, and what the log calls it. Never empty, no
/// control characters, no `=` (a name with one is a list of keys).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// A label.
    ///
    /// # Errors
    /// It is empty, or holds `=` or a control character.
    pub fn new(text: &str) -> Result<Self, Flaw> {
        if text.is_empty() {
            return Err(Flaw::new(0..0, "the label is empty"));
        }
        match text.char_indices().find(|(_, c)| *c == '=' || c.is_control()) {
            Some((at, bad)) => {
                let what = format!("a label cannot hold \"{bad}\"");
                Err(Flaw::new(at..at + bad.len_utf8(), what).note("one word, such as ssh"))
            }
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        Self::new(text)
    }
}

impl TryFrom<String> for Label {
    type Error = Flaw;

    fn try_from(text: String) -> Result<Self, Flaw> {
        Self::new(&text)
    }
}

impl From<Label> for String {
    fn from(label: Label) -> Self {
        label.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a network interface: 1 to 15 bytes without blanks, `/` and `:` (`dev_valid_name` of Linux).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Device(String);

impl Device {
    /// The name, for `SO_BINDTODEVICE`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Device {
    type Error = Flaw;

    fn try_from(text: String) -> Result<Self, Flaw> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.0
    }
}

impl FromStr for Device {
    type Err = Flaw;

    fn from_str(text: &str) -> Result<Self, Flaw> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/' || c == ':';
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(bad) {
            let what = format!("\"{text}\" cannot be the name of a network interface");
            return Err(Flaw::new(0..text.len(), what).note("at most 15 bytes, such as eth0"));
        }
        Ok(Self(text.to_owned()))
    }
}
