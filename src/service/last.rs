//! The texts of the configuration that were in force last, in a file of the unit's runtime directory: a restart, and a
//! start after a crash, fall back to them where a file has a fault by then. A stop and the idle exit remove the file.
//!
//! The file holds what the configuration holds, so only its owner reads it.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::PathBuf,
};

use crate::{
    log::{Kind, say},
    spec::LastTexts,
    sys::file::NewFile,
    systemd::{headroom::Headroom, unit::runtime_directory},
};

/// Its name in the runtime directory.
const FILE: &str = "configuration";
/// More than that was not written by us, in bytes: all files together, escaped.
const LIMIT: u64 = 256 << 20;

fn file() -> Option<PathBuf> {
    Some(runtime_directory()?.join(FILE))
}

/// What was in force last. A file that is not there, or that cannot be read, says nothing.
pub fn read() -> LastTexts {
    let read = || -> io::Result<LastTexts> {
        let mut bytes = Vec::new();
        File::open(file().ok_or(io::ErrorKind::NotFound)?)?.take(LIMIT).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    };
    read().unwrap_or_default()
}

/// Leaves what is in force to the next process.
pub(super) fn write(texts: &LastTexts) {
    let Some(file) = file() else { return };
    if *texts == LastTexts::default() {
        return remove();
    }
    let new = || {
        let _headroom = Headroom::take(); // sessions may have every other descriptor
        NewFile::beside(&file)
    };
    let bytes = serde_json::to_vec(texts).map_err(io::Error::from);
    let written = bytes.and_then(|bytes| new()?.replace(&file, 0o600, &bytes));
    if let Err(e) = written {
        let text = format!("a restart would not find the configuration that is in force: {}: {e}", file.display());
        say(Kind::ControlTrouble, text);
    }
}

/// The service stops: the next start begins again.
pub(super) fn remove() {
    let _ = file().map(fs::remove_file);
}
