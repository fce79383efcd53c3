//! The policy file as the record of all forwards: one program at a time reads, judges and writes it.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    declared::QubeName,
    order::ToolOrder,
    policy::{self, Declarations},
    qubes,
};
use crate::report::{Code, Fatal};

pub(super) fn fail(text: impl std::fmt::Display) -> Fatal {
    Fatal::new(Code::Failure, text)
}

/// The declared forwards, as the policy file has them.
pub(super) fn load() -> Result<Declarations, Fatal> {
    let file = policy::path();
    let file = file.display();
    policy::load().map_err(|e| fail(format!("{file}: {e}")))?.map_err(|foreign| {
        Fatal::new(Code::Config, format!("{file}: {foreign}"))
            .hint("nothing was changed; move your own lines into another file, or remove this file and add the forwards again")
    })
}

/// Held while the policy file is read and written: one program of this name at a time.
pub(super) fn alone() -> Result<Flock<File>, Fatal> {
    const LOCK: &str = "/run/qvm-forward/lock";
    let made = DirBuilder::new().recursive(true).mode(0o700).create("/run/qvm-forward");
    made.map_err(|e| fail(format!("/run/qvm-forward: {e}")))?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(LOCK);
    let file = file.map_err(|e| fail(format!("{LOCK}: {e}")))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| fail(format!("{LOCK}: {e}")))
}

/// Puts the policy file in place, after qrexec's own reader has read it where that is installed.
pub(super) fn save(declarations: &Declarations) -> Result<(), Fatal> {
    policy::save(declarations, lint)
        .map_err(|e| fail(format!("{}: {e}; nothing was changed", policy::path().display())))
}

/// Has `qubes-policy-lint` read a file.
fn lint(file: &Path) -> io::Result<()> {
    let order = ToolOrder::new(["qubes-policy-lint".to_owned(), file.display().to_string()]);
    match order.installed() {
        false => Ok(()),
        true if order.holds() => Ok(()),
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "qubes-policy-lint finds an error in the new file")),
    }
}

/// Unsets a feature. A qube that is gone has none.
pub(super) fn withdraw(source: &QubeName, unset: &ToolOrder) -> Result<(), Fatal> {
    match qubes::exists(source) {
        true => unset.carry_out().map_err(|failed| {
            failed
                .hint(format!("dom0 allows no call of it any more, but {source} still listens: run the command again"))
        }),
        false => Ok(()),
    }
}
