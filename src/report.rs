//! The end of a program that failed: what, where, and what to do next, on stderr; and its exit code.

use std::{fmt, process::ExitCode};

/// Exit codes of our own (DESIGN's list; 77 and 78 are EX_NOPERM and EX_CONFIG of sysexits.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Failure = 1,
    /// The arguments are not valid.
    Usage = 2,
    /// A permission is missing.
    Permission = 77,
    /// Configuration, name or unit is not valid.
    Config = 78,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// A failure that ends the program.
#[derive(Debug)]
pub struct Fatal {
    code: Code,
    what: String,
    hint: Option<String>,
}

impl Fatal {
    /// `what` happened.
    pub fn new(code: Code, what: impl fmt::Display) -> Self {
        Self { code, what: what.to_string(), hint: None }
    }

    /// The hint: what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What happened, and in the next line what to do.
impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.hint.iter().try_for_each(|hint| write!(f, "\n{hint}"))
    }
}

/// What a program ends with: its exit code, after telling a failure on stderr as `program: what` with its hint.
pub fn end(program: &str, result: Result<ExitCode, Fatal>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(failure) => {
            for line in failure.what.lines() {
                eprintln!("{program}: {line}");
            }
            if let Some(hint) = failure.hint {
                eprintln!("{program}: {hint}");
            }
            failure.code.into()
        }
    }
}
