//! What is wrong with a line of a policy, and how to mend the line.

use std::fmt;

/// Why a line is no rule and no setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    what: String,
    fix: String,
}

impl Complaint {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }

    /// The complaint about the line with this number, counted from 1.
    pub(super) fn at(self, line: usize) -> PolicyFault {
        PolicyFault { line, what: self.what, fix: self.fix }
    }
}

/// What is wrong with a policy. A remark has the same parts: it is about a rule that works, but not as it may seem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFault {
    /// The number of the line, counted from 1.
    pub line: usize,
    /// What is wrong: lower case, without a final stop.
    pub what: String,
    /// What to write instead.
    pub fix: String,
}

impl fmt::Display for PolicyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.what)
    }
}

impl std::error::Error for PolicyFault {}
