//! What the commands of the owner have in common: how they fail, how they write a file.

use std::{io, path::Path};

use crate::{
    remote::files,
    report::{Code, Fatal},
};

pub(super) fn fail(text: impl std::fmt::Display) -> Fatal {
    Fatal::new(Code::Failure, text)
}

/// What the daemon answered, or why there is no answer.
pub(super) fn answered<T>(answer: io::Result<T>) -> Result<T, Fatal> {
    answer.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => fail("no daemon is running"),
        _ => fail(e),
    })
}

/// Writes a policy, whole, closed to others.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Fatal> {
    let made = path.parent().map_or(Ok(()), files::private_dir);
    made.and_then(|()| files::replace(path, 0o600, text.as_bytes()))
        .map_err(|e| fail(format!("{}: {e}", path.display())))
}
