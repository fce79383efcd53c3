//! Which file is executed for the name that somebody asks for, and who could change that file.
//!
//! The directories of a name are resolved once, here; what comes out is matched by the policy and executed, by that very
//! path. So `..`, `//`, `/proc/self/root` and links among the directories lead to the same path as the plain name. The
//! last name stays as it was asked, also where it is a link: `/sbin/reboot` is a link to `systemctl`, which looks at the
//! name under which it was called. Execution is by path and not by descriptor: most tools of dom0 are scripts, and
//! execveat(2) of a script needs a descriptor that the script's interpreter inherits.
//!
//! A path that somebody beside root could change after it was resolved is no path to rely on: every directory, every
//! link and the file have to belong to root, and nobody else may write them. Then nothing but root changes what is
//! executed between the decision and the execution.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fmt, fs, io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Component, Path, PathBuf},
};

use nix::errno::Errno;

use super::policy::{AskedProgram, PATH, Policy, ProgramName, Verdict};
use crate::log::escape;

/// Bytes of a path at most (PATH_MAX of limits.h).
pub const MAX_PATH: usize = 4096;
/// Links that one path may lead through (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Why a program is not executed.
#[derive(Debug)]
pub enum ProgramFault {
    /// There is no such program.
    Missing,
    /// Somebody beside root may change this file, directory or link of the path.
    Changeable(PathBuf),
    /// This link of /proc leads elsewhere for each process, and not where its text says.
    InProc(PathBuf),
    /// The path cannot be followed.
    Io(PathBuf, io::Error),
}

impl fmt::Display for ProgramFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Path| escape(path.as_os_str().as_bytes());
        match self {
            Self::Missing => f.write_str("no such program in dom0"),
            Self::Changeable(path) => write!(
                f,
                "{} does not belong to root, or others may write it; in dom0: chown root and chmod go-w, or another \
                 place for the program",
                shown(path)
            ),
            Self::InProc(path) => {
                write!(f, "{} is in /proc, where nothing is executed; the path of the program itself", shown(path))
            }
            Self::Io(path, e) => write!(f, "{}: {e}", shown(path)),
        }
    }
}

/// A program that was looked for.
#[derive(Debug)]
pub struct FoundProgram {
    /// The names that rules match.
    pub names: AskedProgram,
    /// The path to execute, or why nothing is executed. To be told only to those whom the policy allows the program:
    /// nobody else learns which programs there are.
    pub path: Result<PathBuf, ProgramFault>,
}

/// Looks for a program: a bare name in [`PATH`], or an absolute path.
pub fn find(asked: &[u8]) -> FoundProgram {
    let name = Path::new(OsStr::from_bytes(asked));
    if name.is_absolute() {
        return absolute(name);
    }
    let unknown = |executed| FoundProgram {
        names: AskedProgram { executed, others: Vec::new() },
        path: Err(ProgramFault::Missing),
    };
    if asked.contains(&b'/') {
        return unknown(vec![ProgramName { path: asked.to_vec(), in_path: false }]);
    }
    let candidates = PATH.iter().map(|dir| Path::new(dir).join(name));
    match candidates.clone().find(|path| path.is_file()) {
        Some(path) => absolute(&path),
        None => unknown(candidates.map(|path| ProgramName { path: bytes(path), in_path: true }).collect()),
    }
}

fn absolute(asked: &Path) -> FoundProgram {
    // a path that ends with "/", "/." or "/.." is none of a program; Path would not show the first two
    let bytes_asked = asked.as_os_str().as_bytes();
    let last = bytes_asked.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let directory = Path::new(OsStr::from_bytes(&bytes_asked[..bytes_asked.len() - last.len()]));
    let mut walk = Walk::default();
    let executed = walk.follow(directory).join(OsStr::from_bytes(last));
    let no_name = matches!(last, b"" | b"." | b"..");
    walk.in_proc = None;
    let file = if no_name { executed.clone() } else { walk.follow(&executed) };
    let mut others = vec![name(asked.to_owned())];
    if file != executed {
        others.push(name(file));
    }
    // the kernel follows such a link by what it is, and not by its text
    let magic = walk.in_proc.map(ProgramFault::InProc);
    let fault = if no_name { Some(ProgramFault::Missing) } else { walk.fault.or(magic) };
    let names = AskedProgram { executed: vec![name(executed.clone())], others };
    FoundProgram { names, path: fault.map_or(Ok(executed), Err) }
}

fn name(path: PathBuf) -> ProgramName {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let same = |dir: &&str| Path::new(dir) == directory || fs::canonicalize(dir).is_ok_and(|real| real == directory);
    ProgramName { in_path: PATH.iter().any(same), path: bytes(path) }
}

fn bytes(path: PathBuf) -> Vec<u8> {
    path.into_os_string().into_vec()
}

/// Looks up the directories of a policy's rules. A rule that allows gets no directory that somebody beside root could
/// replace by another.
pub fn resolve_directories(policy: &mut Policy) {
    policy.resolve_directories(|verdict, directory| {
        let mut walk = Walk::default();
        let found = walk.follow(Path::new(OsStr::from_bytes(directory)));
        match walk.fault {
            None => Some(bytes(found)),
            Some(ProgramFault::Changeable(_)) if verdict != Verdict::Allow => Some(bytes(found)),
            Some(_) => None,
        }
    });
}

/// Follows paths, component by component, and looks at each.
#[derive(Debug, Default)]
struct Walk {
    links: usize,
    /// What was looked at last below /proc.
    in_proc: Option<PathBuf>,
    /// The first reason not to rely on the paths.
    fault: Option<ProgramFault>,
}

impl Walk {
    /// Where an absolute path leads, links followed. Behind a component that is missing, names are taken as they stand.
    fn follow(&mut self, path: &Path) -> PathBuf {
        let mut rest: VecDeque<OsString> = names(path);
        let mut at = PathBuf::from("/");
        self.look(&at);
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                at.pop(); // no link is left in it
                continue;
            }
            at.push(&name);
            if at.starts_with("/proc") {
                self.in_proc = Some(at.clone());
            }
            if !self.look(&at).is_some_and(|metadata| metadata.is_symlink()) {
                continue;
            }
            self.links += 1;
            let target = if self.links > MAX_LINKS { Err(Errno::ELOOP.into()) } else { fs::read_link(&at) };
            match target {
                Ok(target) => {
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    } else {
                        at.pop();
                    }
                    names(&target).into_iter().rev().for_each(|name| rest.push_front(name));
                }
                Err(e) => self.trouble(ProgramFault::Io(at.clone(), e)),
            }
        }
        at
    }

    /// Looks at one component. After a trouble nothing is looked at any more.
    fn look(&mut self, path: &Path) -> Option<fs::Metadata> {
        if matches!(self.fault, Some(ProgramFault::Missing | ProgramFault::Io(..))) {
            return None;
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) => {
                let closed = metadata.is_symlink() || metadata.mode() & 0o022 == 0;
                if metadata.uid() != 0 || !closed {
                    self.trouble(ProgramFault::Changeable(path.to_owned()));
                }
                Some(metadata)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                self.fault = Some(ProgramFault::Missing);
                None
            }
            Err(e) => {
                self.trouble(ProgramFault::Io(path.to_owned(), e));
                None
            }
        }
    }

    fn trouble(&mut self, fault: ProgramFault) {
        self.fault.get_or_insert(fault);
    }
}

/// The names in a path, `..` included.
fn names(path: &Path) -> VecDeque<OsString> {
    let components = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    components.map(|c| c.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;

    use super::*;

    fn path(asked: &str) -> Result<String, String> {
        find(asked.as_bytes()).path.map(|p| p.display().to_string()).map_err(|fault| fault.to_string())
    }

    /// Whether root owns the directory of this process in /proc, as it does for dom0's daemon. Elsewhere its owner is
    /// the first fault of each path through it.
    fn owns_its_proc() -> bool {
        nix::unistd::geteuid().is_root()
    }

    /// `/usr/bin/env` as this machine has it.
    fn env() -> String {
        path("/usr/bin/env").expect("coreutils are here")
    }

    #[test]
    fn every_way_to_a_program_is_the_same_path() {
        for way in [
            "env",
            "//usr///bin/env",
            "/usr/./bin/env",
            "/usr/bin/../bin/env",
            "/../usr/bin/env",
            "/usr/share/../../usr/bin/env",
        ] {
            assert_eq!(path(way), Ok(env()), "{way}");
        }
        if owns_its_proc() {
            assert_eq!(path("/proc/self/root/usr/bin/env"), Ok(env()));
        }
    }

    #[test]
    fn the_last_name_stays_and_the_file_behind_it_is_another_name() {
        // a link that every system has: sh, or awk, or vi
        let links = fs::read_dir("/usr/bin").expect("there").flatten().filter(|e| {
            e.file_type().is_ok_and(|t| t.is_symlink()) && find(e.path().as_os_str().as_bytes()).path.is_ok()
        });
        let link = links.map(|e| e.path()).next().expect("some link");
        let found = find(link.as_os_str().as_bytes());
        assert_eq!(found.path.expect("root's"), link);
        let file = fs::canonicalize(&link).expect("there");
        assert!(found.names.others.iter().any(|name| name.path == file.as_os_str().as_bytes()), "{link:?} {file:?}");
    }

    #[test]
    fn a_path_that_others_can_change_is_no_program() {
        let dir = tempfile::tempdir().expect("a directory"); // below one that everybody may write
        symlink("/usr/bin/env", dir.path().join("env")).expect("linked");
        symlink("/usr/bin", dir.path().join("bin")).expect("linked");
        fs::copy("/usr/bin/env", dir.path().join("copy")).expect("copied");
        for name in ["env", "bin/env", "copy", "bin/../bin/env"] {
            let asked = dir.path().join(name).display().to_string();
            assert!(path(&asked).is_err_and(|why| why.contains("others may write it")), "{asked}");
        }
    }

    #[test]
    fn what_is_not_there_is_missing_under_every_name_that_it_could_have() {
        for name in ["nosuch", "/nosuch/x", "/usr/bin/env/x", "./env", "/usr/bin/", "/usr/bin/.", "/usr/bin/..", "/"] {
            assert_eq!(path(name), Err("no such program in dom0".into()), "{name}");
        }
        assert!(find(b"nosuch").names.executed.iter().any(|name| name.path == b"/usr/bin/nosuch" && name.in_path));
        assert_eq!(find(b"/nosuch/a/../x").names.executed[0].path, b"/nosuch/x");
    }

    #[test]
    fn a_link_that_the_kernel_follows_by_more_than_its_text_is_no_program() {
        let closed =
            tempfile::Builder::new().tempdir_in("/root").or_else(|_| tempfile::tempdir()).expect("a directory");
        symlink("/proc/self/exe", closed.path().join("link")).expect("linked");
        for asked in ["/proc/self/exe".to_owned(), closed.path().join("link").display().to_string()] {
            assert!(path(&asked).is_err(), "{asked}");
            assert!(find(asked.as_bytes()).names.others.len() > 1, "rules know it by its file as well: {asked}");
        }
        if owns_its_proc() {
            assert!(path("/proc/self/exe").is_err_and(|why| why.contains("is in /proc")));
        }
    }

    #[test]
    fn links_in_a_circle_end() {
        let dir = tempfile::tempdir().expect("a directory");
        symlink("b", dir.path().join("a")).expect("linked");
        symlink("a", dir.path().join("b")).expect("linked");
        assert!(path(&dir.path().join("a").display().to_string()).is_err());
        assert!(path(&dir.path().join("a/x").display().to_string()).is_err());
    }

    #[test]
    fn a_rules_directory_is_the_one_that_is_executed_from() {
        let real = fs::canonicalize("/bin").expect("there").join("ls");
        for text in ["allow /bin/ls *", "deny /bin/../bin/l*", "allow //bin/ls *"] {
            let mut policy = Policy::parse(text).expect("a policy");
            resolve_directories(&mut policy);
            let verdict = policy.decide(super::super::policy::Action::Argv(&find(b"/bin/ls").names, &[])).line;
            assert_eq!(verdict, Some(1), "{text} {real:?}");
        }
    }

    proptest! {
        #[test]
        fn a_path_to_execute_has_no_turns(parts in prop::collection::vec("(\\.|\\.\\.|usr|bin|proc|self|root|env|sh|)", 0..9)) {
            let asked = format!("/{}", parts.join("/"));
            if let Ok(path) = find(asked.as_bytes()).path {
                let text = path.display().to_string();
                prop_assert!(!text.contains("//") && !text.split('/').any(|part| part == "." || part == ".."), "{text}");
                let directory = path.parent().expect("a directory");
                prop_assert_eq!(fs::canonicalize(directory).expect("there"), directory);
            }
        }
    }
}
