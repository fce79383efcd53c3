//! Follows a path, component by component: where it leads, which links lie on the way, and who could change that.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fmt, fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
};

use nix::{errno::Errno, unistd::geteuid};

use crate::log::escape;

/// Links that one path may lead through (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// The bit of a directory in which nobody removes or renames what belongs to another (inode(7)).
const STICKY: u32 = 0o1000;

/// Why a path is not relied on.
#[derive(Debug)]
pub enum PathFault {
    /// There is no such file.
    Missing,
    /// Somebody beside root may change this file, directory or link of the path.
    Changeable(PathBuf),
    /// This link of /proc leads elsewhere for each process, and not where its text says.
    InProc(PathBuf),
    /// The path cannot be followed.
    Io(PathBuf, io::Error),
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Path| escape(path.as_os_str().as_bytes());
        match self {
            Self::Missing => f.write_str("no such program in dom0"),
            Self::Changeable(path) => write!(
                f,
                "{} does not belong to root, or others may write it; in dom0: chown root and chmod go-w",
                shown(path)
            ),
            Self::InProc(path) => {
                write!(f, "{} is in /proc, where nothing is executed; the path of the program itself", shown(path))
            }
            Self::Io(path, e) => write!(f, "{}: {e}", shown(path)),
        }
    }
}

/// Whose directories, links and files are relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Root's, which nobody else may write.
    Root,
    /// Root's and those of the user of this process. Others may write a directory on the way that is sticky: what is
    /// relied on in it belongs to nobody else, so it cannot be replaced.
    Own,
}

impl Trust {
    fn holds(self, metadata: &fs::Metadata) -> bool {
        let (owner, mode) = (metadata.uid(), metadata.mode());
        let closed = metadata.is_symlink() || mode & 0o022 == 0;
        match self {
            Self::Root => owner == 0 && closed,
            Self::Own => (owner == 0 || owner == geteuid().as_raw()) && (closed || mode & STICKY != 0),
        }
    }
}

/// Where a path leads.
#[derive(Debug, Default)]
pub(super) struct WalkedRoute {
    /// The path with its directories resolved, and its last name as asked.
    pub(super) asked: PathBuf,
    /// The path at each link among the directories.
    pub(super) on_the_way: Vec<PathBuf>,
    /// The paths behind the last name, where that is a link: the last one is the file.
    pub(super) behind: Vec<PathBuf>,
    /// A directory on the way was not to be looked at, and the path was followed no further.
    pub(super) out_of_reach: bool,
}

impl WalkedRoute {
    /// The file: all links followed.
    pub(super) fn file(&self) -> &Path {
        self.behind.last().unwrap_or(&self.asked)
    }
}

/// One name of a path that is followed.
struct WalkedName {
    text: OsString,
    /// Of the path that was asked for, and not of a link.
    asked: bool,
}

/// Follows paths and looks at each component.
#[derive(Debug)]
pub(super) struct Walk {
    trust: Trust,
    links: usize,
    /// What of the last path is below /proc.
    pub(super) in_proc: Option<PathBuf>,
    /// The first reason not to rely on the paths.
    pub(super) fault: Option<PathFault>,
}

impl Walk {
    pub(super) fn new(trust: Trust) -> Self {
        Self { trust, links: 0, in_proc: None, fault: None }
    }

    /// Where an absolute path leads. Behind a component that is missing, names are taken as they stand. A component of
    /// the path itself is looked at where `may_look` says so of its place and of its name as asked (which has none behind
    /// a `..`); the components of a link that was found there are root's words, and are looked at.
    pub(super) fn follow(&mut self, path: &Path, may_look: impl Fn(&Path, Option<&Path>) -> bool) -> WalkedRoute {
        let (mut route, mut at, mut asked) = (WalkedRoute::default(), PathBuf::from("/"), Some(PathBuf::from("/")));
        let mut rest: VecDeque<WalkedName> = names(path).map(|text| WalkedName { text, asked: true }).collect();
        let mut left = rest.len();
        self.in_proc = None;
        let mut is_directory = self.look(&at).is_some();
        while let Some(name) = rest.pop_front() {
            left -= usize::from(name.asked);
            if name.text == ".." {
                if !is_directory {
                    self.fault.get_or_insert(PathFault::Missing);
                }
                at.pop(); // no link is left in it
                is_directory = true;
                asked = None;
                continue;
            }
            at.push(&name.text);
            if let Some(asked) = asked.as_mut().filter(|_| name.asked) {
                asked.push(&name.text);
            }
            if name.asked && !may_look(&at, asked.as_deref()) {
                route.out_of_reach = true;
                return route;
            }
            if name.asked && left == 0 {
                (route.asked, self.in_proc) = (at.clone(), None);
            }
            if at.starts_with("/proc") {
                self.in_proc = Some(at.clone());
            }
            let metadata = self.look(&at);
            is_directory = metadata.as_ref().is_some_and(fs::Metadata::is_dir);
            if !metadata.is_some_and(|metadata| metadata.is_symlink()) {
                continue;
            }
            let whole = rest.iter().all(|name| name.text != "..").then(|| {
                let mut whole = at.clone();
                whole.extend(rest.iter().map(|name| &name.text));
                whole
            });
            let names_before = if left == 0 { &mut route.behind } else { &mut route.on_the_way };
            names_before.extend(whole);
            self.links += 1;
            let target = if self.links > MAX_LINKS { Err(Errno::ELOOP.into()) } else { fs::read_link(&at) };
            match target {
                Ok(target) => {
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    } else {
                        at.pop();
                    }
                    is_directory = true;
                    let target: Vec<_> = names(&target).collect();
                    target.into_iter().rev().for_each(|text| rest.push_front(WalkedName { text, asked: false }));
                }
                Err(e) => self.trouble(PathFault::Io(at.clone(), e)),
            }
        }
        if route.asked.as_os_str().is_empty() {
            route.asked.clone_from(&at); // the path ends with ".."
        }
        route.behind.push(at);
        route
    }

    /// Looks at one component. After a trouble nothing is looked at any more.
    fn look(&mut self, path: &Path) -> Option<fs::Metadata> {
        if matches!(self.fault, Some(PathFault::Missing | PathFault::Io(..))) {
            return None;
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) => {
                if !self.trust.holds(&metadata) {
                    self.trouble(PathFault::Changeable(path.to_owned()));
                }
                Some(metadata)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                self.fault = Some(PathFault::Missing);
                None
            }
            Err(e) => {
                self.trouble(PathFault::Io(path.to_owned(), e));
                None
            }
        }
    }

    /// A path that cannot be followed is worse than one that somebody may change: not all of its names are known.
    fn trouble(&mut self, fault: PathFault) {
        if self.fault.is_none() || matches!((&self.fault, &fault), (Some(PathFault::Changeable(_)), PathFault::Io(..)))
        {
            self.fault = Some(fault);
        }
    }
}

/// Checks that nobody but root, or the user of this process, can change what is in a directory.
///
/// # Errors
/// What is wrong, with the path that it is wrong with.
pub(crate) fn closed(directory: &Path) -> Result<(), PathFault> {
    let mut walk = Walk::new(Trust::Own);
    let route = walk.follow(&std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned()), |_, _| true);
    let last = route.file();
    let open = || fs::symlink_metadata(last).is_ok_and(|metadata| metadata.mode() & 0o022 != 0);
    match walk.fault {
        Some(fault) => Err(fault),
        None if open() => Err(PathFault::Changeable(last.to_owned())),
        None => Ok(()),
    }
}

/// The names in a path, `..` included.
fn names(path: &Path) -> impl Iterator<Item = OsString> {
    let components = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    components.map(|c| c.as_os_str().to_owned())
}
