//! Where configuration comes from: a file, none of which is needed, and `--forward` arguments over it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    dial::netns,
    report::{Code, Fatal},
    service::LoadConfig,
    spec::{Config, Faults, Plan},
};

/// A configuration file above this size is a mistake, in bytes.
const LIMIT: u64 = 1 << 20;

/// Where a program's configuration comes from.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    /// The file that was named, if one was.
    pub(super) file: Option<PathBuf>,
    /// Where else a file is looked for: the first that exists counts.
    pub(super) places: Vec<PathBuf>,
    /// `--forward` arguments.
    pub(super) forwards: Vec<String>,
}

/// Why there is no configuration.
#[derive(Debug)]
pub(super) enum Bad {
    /// What is wrong in it, or in the arguments.
    Faults(Faults),
    /// It cannot be read.
    File(String),
}

/// One line for each fault.
impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Faults(faults) => faults.fmt(f),
            Self::File(why) => f.write_str(why),
        }
    }
}

impl Bad {
    /// Tells it on stderr: to people each fault with its line underlined, to a log a line for each. The exit code that
    /// goes with it.
    pub(super) fn tell(&self, program: &str, people: bool) -> ExitCode {
        let terminal = io::IsTerminal::is_terminal(&io::stderr());
        match self {
            Self::Faults(faults) if people || terminal => eprint!("{}", faults.render(terminal)),
            _ => self.to_string().lines().for_each(|line| eprintln!("{program}: {line}")),
        }
        Code::Config.into()
    }
}

impl Sources {
    /// Whether there may be a file, now or later.
    pub(super) fn may_have_file(&self) -> bool {
        self.file.is_some() || !self.places.is_empty()
    }

    /// Reads everything; where there is no file, there is nothing wrong with that.
    ///
    /// # Errors
    /// See [`Bad`].
    pub(super) fn read(&self) -> Result<(Config, Plan), Bad> {
        let file = self.text()?;
        let file = file.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
        Config::gather(file, &self.forwards).map_err(Bad::Faults)
    }

    /// Reads the file alone, without asking what it means.
    ///
    /// # Errors
    /// See [`Bad`].
    pub(super) fn config(&self) -> Result<Config, Bad> {
        match self.text()? {
            Some((name, text)) => Config::parse(&name, &text).map_err(Bad::Faults),
            None => Ok(Config::default()),
        }
    }

    /// The file that is in force, and its text.
    fn text(&self) -> Result<Option<(String, String)>, Bad> {
        let files = self.file.as_ref().map_or_else(|| self.places.clone(), |file| vec![file.clone()]);
        for path in files {
            match read_text(&path) {
                Ok(text) => return Ok(Some((path.to_string_lossy().into_owned(), text))),
                Err(e) if e.kind() == io::ErrorKind::NotFound && self.file.is_none() => {}
                Err(e) => return Err(Bad::File(format!("{}: cannot be read: {e}", path.display()))),
            }
        }
        Ok(None)
    }

    /// A function that reads the configuration each time it is called.
    pub(super) fn load(self) -> LoadConfig {
        Box::new(move || self.read().map(|(config, _)| config).map_err(|bad| bad.to_string()))
    }
}

/// The failure of a plan with namespaces in a process that may not enter any.
///
/// # Errors
/// That one.
pub(super) fn check_permission(plan: &Plan) -> Result<(), Fatal> {
    if !plan.enters_namespaces() || netns::permitted() {
        return Ok(());
    }
    Err(Fatal::new(Code::Permission, "may not enter network namespaces").hint(netns::NEEDS))
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
