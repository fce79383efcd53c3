//! A value as its source has it, and what a kind of value is.

use crate::spec::error::Flaw;

/// A value as its source has it.
#[derive(Clone, Copy, Debug)]
pub(in crate::spec) enum Raw<'a> {
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
    pub(in crate::spec) fn text(self, expected: &str) -> Result<&'a str, Flaw> {
        let Self::Text(bytes) = self else {
            return Err(Flaw::new(0..0, format!("expected {expected} in quotes")));
        };
        std::str::from_utf8(bytes).map_err(|error| {
            let at = error.valid_up_to();
            Flaw::new(at..at + 1, "the value is not UTF-8").note("only a path may hold any byte")
        })
    }

    /// The bytes, when it is a text.
    pub(in crate::spec) fn bytes(self, expected: &str) -> Result<&'a [u8], Flaw> {
        match self {
            Self::Text(bytes) => Ok(bytes),
            _ => Err(Flaw::new(0..0, format!("expected {expected} in quotes"))),
        }
    }
}

/// A kind of value.
pub(in crate::spec) trait Value: Sized {
    /// Whether a key of this kind may be given several times, or an array in TOML.
    const MANY: bool = false;

    /// Reads one.
    fn read(raw: Raw<'_>) -> Result<Self, Flaw>;

    /// Takes up another value of the same key; only for kinds that are [`MANY`](Self::MANY).
    fn add(&mut self, _more: Self) {}

    /// The texts that [`read`](Self::read) takes back: one, or one for each of many.
    fn texts(&self) -> Vec<Vec<u8>>;
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
pub struct Many<T>(pub(in crate::spec) Vec<T>);

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
