//! The configuration of `qrexec-connect`: where it is, and what it makes of a listener's name. None is needed.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use crate::{
    service::{Load, Resolve},
    spec::{Config, Faults, SocketKind, fdname},
    stream,
};

/// The file's name in each directory.
const FILE: &str = "qrexec-connect.toml";
/// A configuration file above this size is a mistake, in bytes.
const LIMIT: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug)]
pub(super) enum Bad {
    /// What is wrong in it.
    Faults(Faults),
    /// It cannot be read.
    File(String),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Faults(faults) => faults.fmt(f),
            Self::File(why) => f.write_str(why),
        }
    }
}

/// What reads the configuration each time it is called: from `given`, else from the user's file, else the system's.
pub(super) fn load(given: Option<PathBuf>) -> Load {
    Box::new(move || {
        let config = read(given.as_deref()).map_err(|bad| bad.to_string())?;
        Ok(Box::new(move |name: &str, kind| resolve(name, kind, &config)) as Resolve)
    })
}

fn resolve(name: &str, kind: stream::Kind, config: &Config) -> Result<crate::spec::Forward, String> {
    let socket = if kind == stream::Kind::Unix { SocketKind::Unix } else { SocketKind::Tcp };
    let forward = fdname::parse(name).and_then(|name| name.resolve(socket, config));
    forward.map_err(|faults| faults.to_string())
}

/// The configuration that is in force; an empty one where there is no file.
///
/// # Errors
/// What is wrong with it, each fault in a line with its place.
pub(super) fn read(given: Option<&Path>) -> Result<Config, Bad> {
    let files = match given {
        Some(path) => vec![path.to_owned()],
        None => places(),
    };
    for path in files {
        match read_text(&path) {
            Ok(text) => return Config::parse(&path.to_string_lossy(), &text).map_err(Bad::Faults),
            Err(e) if e.kind() == io::ErrorKind::NotFound && given.is_none() => {}
            Err(e) => return Err(Bad::File(format!("{}: cannot be read: {e}", path.display()))),
        }
    }
    Ok(Config::default())
}

/// Where the file is looked for: the first that exists counts.
fn places() -> Vec<PathBuf> {
    let user = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    user.into_iter().chain([PathBuf::from("/etc")]).filter(|dir| dir.is_absolute()).map(|dir| dir.join(FILE)).collect()
}

fn read_text(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    let file = fs::File::open(path)?;
    if file.take(LIMIT + 1).read_to_string(&mut text)? as u64 > LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    Ok(text)
}
