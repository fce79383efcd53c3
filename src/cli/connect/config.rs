//! The configuration of `qrexec-connect`: where it is. None is needed.

use std::path::{Path, PathBuf};

use crate::cli::{config::Sources, units::Scope};

/// The file's name in each directory.
const FILE: &str = "qrexec-connect.toml";

/// From `given`, else from the user's file, else the system's; a service of the system reads only the latter.
pub(super) fn sources(given: Option<PathBuf>, scope: Scope) -> Sources {
    Sources { file: given, places: places(scope), forwards: Vec::new() }
}

/// Where the file is looked for, with its drop-in files: the first place that has either counts.
fn places(scope: Scope) -> Vec<PathBuf> {
    let user = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    let user = user.filter(|_| scope == Scope::User);
    user.into_iter().chain([PathBuf::from("/etc")]).filter(|dir| dir.is_absolute()).map(|dir| dir.join(FILE)).collect()
}
