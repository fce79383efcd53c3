//! The configuration of `qrexec-connect`: where it is. None is needed.

use std::path::{Path, PathBuf};

pub(super) use crate::cli::config::Bad;
use crate::{cli::config::Sources, spec::Config};

/// The file's name in each directory.
const FILE: &str = "qrexec-connect.toml";

/// From `given`, else from the user's file, else the system's.
pub(super) fn sources(given: Option<PathBuf>) -> Sources {
    Sources { file: given, places: places(), forwards: Vec::new() }
}

/// The configuration that is in force; an empty one where there is no file.
///
/// # Errors
/// What is wrong with it, each fault in a line with its place.
pub(super) fn read(given: Option<&Path>) -> Result<Config, Bad> {
    sources(given.map(Path::to_owned)).config()
}

/// Where the file is looked for: the first that exists counts.
fn places() -> Vec<PathBuf> {
    let user = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    user.into_iter().chain([PathBuf::from("/etc")]).filter(|dir| dir.is_absolute()).map(|dir| dir.join(FILE)).collect()
}
