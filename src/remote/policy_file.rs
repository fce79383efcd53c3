//! The file of a policy: read where nobody but root can have written it, parsed.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::{
    files,
    policy::{Policy, PolicyFault},
};

/// A policy file at most, in bytes.
const MAX_FILE: usize = 256 << 10;

/// Why a policy cannot be used. Without a policy nothing is allowed.
#[derive(Debug)]
pub enum PolicyFileError {
    /// There is no such file.
    Missing(PathBuf),
    /// The file cannot be read, or somebody else may write it.
    Io(PathBuf, io::Error),
    /// The file holds bytes that are no UTF-8.
    NoText(PathBuf),
    /// These lines are no rules and no settings.
    Faults(PathBuf, Vec<PolicyFault>),
}

impl fmt::Display for PolicyFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(path) => write!(f, "{} is missing, so nothing is allowed", path.display()),
            Self::Io(path, e) => write!(f, "{}: {e}", path.display()),
            Self::NoText(path) => write!(f, "{}: it is no text", path.display()),
            Self::Faults(path, faults) => {
                let faults: Vec<_> = faults.iter().map(|fault| format!("{}:{fault}", path.display())).collect();
                f.write_str(&faults.join("; "))
            }
        }
    }
}

impl PolicyFileError {
    /// The error with the first of its faults alone, for one line of a log.
    pub(super) fn first(&self) -> String {
        match self {
            Self::Faults(path, faults) => {
                faults.first().map_or_else(|| self.to_string(), |fault| format!("{}:{fault}", path.display()))
            }
            other => other.to_string(),
        }
    }
}

/// Reads a policy, and the text that it was read from. Its directories are not looked up: [`super::program::look_up`].
///
/// # Errors
/// Why it cannot be used.
pub fn read(path: &Path) -> Result<(Policy, String), PolicyFileError> {
    let text = as_text(path, files::read_unshared(path, MAX_FILE))?;
    Ok((parse(path, &text)?, text))
}

/// As [`read`], of a policy in its place: nobody else can change the directory either.
///
/// # Errors
/// Why it cannot be used.
pub fn read_installed(path: &Path) -> Result<Policy, PolicyFileError> {
    parse(path, &installed_text(path)?)
}

/// Reads the text of a policy in its place.
pub(super) fn installed_text(path: &Path) -> Result<String, PolicyFileError> {
    as_text(path, files::read_closed(path, MAX_FILE))
}

/// Reads a policy from the text of this file.
pub(super) fn parse(path: &Path, text: &str) -> Result<Policy, PolicyFileError> {
    Policy::parse(text).map_err(|faults| PolicyFileError::Faults(path.to_owned(), faults))
}

fn as_text(path: &Path, read: io::Result<Vec<u8>>) -> Result<String, PolicyFileError> {
    let text = read.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => PolicyFileError::Missing(path.to_owned()),
        _ => PolicyFileError::Io(path.to_owned(), e),
    })?;
    String::from_utf8(text).map_err(|_| PolicyFileError::NoText(path.to_owned()))
}
