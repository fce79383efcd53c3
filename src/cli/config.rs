//! Where configuration comes from: a file, none of which is needed, and `--forward` arguments over it. What it makes
//! of the name on a listener, and which listeners it asks for beside those.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    dial::netns,
    report::{Code, Failure},
    service::{Load, Rules},
    spec::{Config, Faults, Forward, Label, Legs, Listen, Plan, Upstream, fdname},
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

    /// What reads the configuration each time it is called.
    pub(super) fn load(self) -> Load {
        Box::new(move || {
            let (config, _) = self.read().map_err(|bad| bad.to_string())?;
            let names = config.clone();
            Ok(Rules {
                resolve: Box::new(move |name: &str, kind| {
                    fdname::resolve(name, kind, &names).map_err(|faults| faults.to_string())
                }),
                forwards: Box::new(move |names: &[String]| beside(&config, names)),
            })
        })
    }
}

/// The forwards with a listening side of their own, without those that sockets of these names are served by.
fn beside(config: &Config, names: &[String]) -> Result<Vec<Forward>, String> {
    let names: Vec<_> = names.iter().filter_map(|name| fdname::parse(name).ok()).collect();
    let entries = names.iter().filter_map(|name| name.entry(config));
    let taken: Vec<&Label> = entries.filter_map(|keys| keys.label.as_ref()).map(|label| label.value()).collect();
    let plan = config.plan_beside(&taken).map_err(|faults| faults.to_string())?;
    may_enter(&plan).map_err(|()| netns::NEEDS.to_owned())?;
    Ok(plan.forwards)
}

/// Whether the namespaces of a plan can be entered, if there are any.
fn may_enter(plan: &Plan) -> Result<(), ()> {
    let enters = |forward: &Forward| {
        forward.legs.iter().any(|leg| {
            let listens = matches!(leg.listen, Listen::Tcp { netns: Some(_), .. } | Listen::Udp { netns: Some(_), .. });
            let (Upstream::Tcp { netns, .. } | Upstream::Udp { netns, .. }) = &leg.upstream else { return listens };
            listens || netns.is_some()
        })
    };
    if plan.forwards.iter().any(enters) && !netns::permitted() { Err(()) } else { Ok(()) }
}

/// The failure of a plan with namespaces in a process that may not enter any.
///
/// # Errors
/// That one.
pub(super) fn check_permission(plan: &Plan) -> Result<(), Failure> {
    may_enter(plan).map_err(|()| Failure::new(Code::Permission, "may not enter network namespaces").hint(netns::NEEDS))
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

/// Whether a plan asks for anything that is ours to do.
pub(super) fn is_idle(plan: &Plan) -> bool {
    plan.forwards.is_empty()
        || plan
            .forwards
            .iter()
            .all(|forward| matches!(&forward.legs, Legs::One(leg) if leg.listen == Listen::Inherited))
}
