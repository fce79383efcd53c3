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
//!
//! A look can block without end and can have effects: automounts, file systems of the network, FUSE. So a path that a
//! qube names is followed only as far as a rule that allows or asks can match ([`Policy::reaches`]), or through links that
//! root made there. And whoever calls these functions for a qube does so in a thread that may block.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use super::{
    policy::{AskedProgram, PATH, Policy, ProgramName, Verdict},
    walk::{Trust, Walk, WalkedRoute},
};

pub use super::walk::PathFault;
use crate::log::escape;

/// Bytes of a path at most (PATH_MAX of limits.h).
pub const MAX_PATH: usize = 4096;

/// A program that was looked for.
#[derive(Debug)]
pub struct FoundProgram {
    /// The names that rules match.
    pub names: AskedProgram,
    /// The path to execute, or why nothing is executed. To be told only to those whom the policy allows the program:
    /// nobody else learns which programs there are.
    pub path: Result<PathBuf, PathFault>,
}

/// The directories of [`PATH`].
#[derive(Debug)]
struct Search {
    /// As written and resolved, in the order of [`PATH`].
    directories: Vec<(PathBuf, PathBuf)>,
    /// All of them.
    names: Vec<Vec<u8>>,
}

impl Search {
    fn new() -> Self {
        let resolved = |dir: &&str| (PathBuf::from(dir), fs::canonicalize(dir).unwrap_or_else(|_| dir.into()));
        let directories: Vec<_> = PATH.iter().map(resolved).collect();
        let mut names: Vec<_> = directories.iter().flat_map(|(dir, real)| [dir, real]).cloned().map(bytes).collect();
        names.sort_unstable();
        names.dedup();
        Self { directories, names }
    }

    fn name(&self, path: PathBuf) -> ProgramName {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let in_path = self.directories.iter().any(|(dir, real)| dir == directory || real == directory);
        ProgramName { in_path, path: bytes(path) }
    }

    /// The paths that a bare name can have.
    fn candidates(&self, name: &OsStr) -> impl Iterator<Item = PathBuf> + Clone {
        self.directories.iter().map(move |(dir, _)| dir.join(name))
    }
}

/// Looks for a program that the owner of dom0 names: a bare name in [`PATH`], or an absolute path.
pub fn find(asked: &[u8]) -> FoundProgram {
    let found = search(&Search::new(), asked, |_, _| true);
    found.unwrap_or_else(|| missing(vec![ProgramName { path: asked.to_vec(), in_path: false }]))
}

/// Looks for a program that a qube names, where a rule that allows or asks can match; `None` where none can, so that the
/// program is denied. The directories of the policy were looked up ([`look_up`]).
pub fn find_within(policy: &Policy, asked: &[u8]) -> Option<FoundProgram> {
    let within = Search::new();
    search(&within, asked, |path, as_asked| {
        let as_asked = as_asked.map(|path| path.as_os_str().as_bytes());
        policy.reaches(path.as_os_str().as_bytes(), as_asked, &within.names)
    })
}

fn missing(executed: Vec<ProgramName>) -> FoundProgram {
    FoundProgram { names: AskedProgram { executed, others: Vec::new() }, path: Err(PathFault::Missing) }
}

fn search(within: &Search, asked: &[u8], may_look: impl Fn(&Path, Option<&Path>) -> bool) -> Option<FoundProgram> {
    let name = Path::new(OsStr::from_bytes(asked));
    if name.is_absolute() {
        return absolute(within, name, may_look);
    }
    if asked.contains(&b'/') {
        return Some(missing(vec![ProgramName { path: asked.to_vec(), in_path: false }]));
    }
    // the directories of PATH are looked at for any name, and a link in them where a rule can match
    let there = |path: &PathBuf| {
        let metadata = fs::symlink_metadata(path);
        metadata.is_ok_and(|at| at.is_file() || at.is_symlink() && (!may_look(path, None) || path.is_file()))
    };
    let mut candidates = within.candidates(name.as_os_str());
    match candidates.clone().find(there) {
        Some(path) => absolute(within, &path, may_look),
        None => Some(missing(candidates.by_ref().map(|path| within.name(path)).collect())),
    }
}

fn absolute(within: &Search, asked: &Path, may_look: impl Fn(&Path, Option<&Path>) -> bool) -> Option<FoundProgram> {
    // a path that ends with "/", "/." or "/.." is none of a program; Path would not show the first two
    let last = asked.as_os_str().as_bytes().rsplit(|b| *b == b'/').next().unwrap_or_default();
    if matches!(last, b"" | b"." | b"..") {
        return Some(missing(vec![within.name(asked.to_owned())]));
    }
    let mut walk = Walk::new(Trust::Root);
    let WalkedRoute { asked: executed, on_the_way, behind, out_of_reach } = walk.follow(asked, may_look);
    if out_of_reach {
        return None;
    }
    let mut others: Vec<ProgramName> = Vec::new();
    for path in [asked.to_owned()].into_iter().chain(on_the_way).chain(behind.into_iter().filter(|p| *p != executed)) {
        let name = within.name(path);
        if !others.contains(&name) {
            others.push(name);
        }
    }
    // the kernel follows a link of /proc by what it is, and not by its text
    let fault = walk.fault.or(walk.in_proc.map(PathFault::InProc));
    let names = AskedProgram { executed: vec![within.name(executed.clone())], others };
    Some(FoundProgram { names, path: fault.map_or(Ok(executed), Err) })
}

fn bytes(path: PathBuf) -> Vec<u8> {
    path.into_os_string().into_vec()
}

/// Looks up the directories and the denied programs that a policy names. A rule that allows gets no directory that
/// somebody beside root could replace by another.
///
/// # Errors
/// When it cannot be told what a rule denies.
pub fn look_up(policy: &mut Policy) -> Result<(), PathFault> {
    policy.resolve_directories(|verdict, directory| {
        let mut walk = Walk::new(Trust::Root);
        let found = walk.follow(Path::new(OsStr::from_bytes(directory)), |_, _| true).file().to_owned();
        match walk.fault {
            None => Some(bytes(found)),
            Some(PathFault::Changeable(_)) if verdict != Verdict::Allow => Some(bytes(found)),
            Some(_) => None,
        }
    });
    let within = Search::new();
    policy.resolve_links(|name| behind(&within, name))
}

/// The file behind the program that a rule names, where that is a link: as a line shows it.
pub fn behind_link(name: &[u8]) -> Option<String> {
    behind(&Search::new(), name).ok()?.last().map(|path| escape(path))
}

/// The paths behind the link that a rule names, the file included; none where it is no link.
fn behind(within: &Search, name: &[u8]) -> Result<Vec<Vec<u8>>, PathFault> {
    let path = Path::new(OsStr::from_bytes(name));
    let candidates: Vec<PathBuf> = match path.is_absolute() {
        true => vec![path.to_owned()],
        false => within.candidates(path.as_os_str()).collect(),
    };
    let mut paths = Vec::new();
    for path in candidates {
        let mut walk = Walk::new(Trust::Root);
        let route = walk.follow(&path, |_, _| true);
        if let Some(fault @ PathFault::Io(..)) = walk.fault {
            return Err(fault);
        }
        paths.extend(route.behind.into_iter().filter(|path| *path != route.asked).map(bytes));
    }
    Ok(paths)
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
            look_up(&mut policy).expect("looked up");
            let verdict = policy.decide(super::super::policy::Action::Argv(&find(b"/bin/ls").names, &[])).line;
            assert_eq!(verdict, Some(1), "{text} {real:?}");
        }
    }

    /// A directory that nobody but root can change, where the test is root, with its path.
    fn directory() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::Builder::new().tempdir_in("/root").or_else(|_| tempfile::tempdir()).expect("a directory");
        let base = fs::canonicalize(dir.path()).expect("there");
        (dir, base)
    }

    /// A policy whose directories were looked up.
    fn looked_up(text: &str) -> Policy {
        try_look_up(text).expect("looked up")
    }

    fn try_look_up(text: &str) -> Result<Policy, PathFault> {
        let mut policy = Policy::parse(text).expect("a policy");
        look_up(&mut policy).map(|()| policy)
    }

    /// What a policy says about a program without words; `None` where the program was not looked at.
    fn verdict(policy: &Policy, asked: &Path) -> Option<Verdict> {
        let found = find_within(policy, asked.as_os_str().as_bytes())?;
        Some(policy.decide(super::super::policy::Action::Argv(&found.names, &[])).verdict)
    }

    #[test]
    fn a_path_is_followed_only_where_a_rule_can_give_a_right() {
        let (_dir, base) = directory();
        fs::create_dir_all(base.join("tools/sub")).expect("made");
        fs::create_dir_all(base.join("far/away")).expect("made");
        symlink(base.join("far"), base.join("tools/link")).expect("linked");
        symlink(base.join("tools"), base.join("alias")).expect("linked");
        let at = |path: &str| base.join(path);
        let looked = |policy: &str, path: &Path| {
            find_within(&looked_up(&policy.replace('@', &base.display().to_string())), path.as_os_str().as_bytes())
                .is_some()
        };
        for (policy, path, is_looked_at) in [
            ("allow @/tools/* *", "tools/x", true),
            ("allow @/tools/* *", "tools/sub/../x", true),
            ("allow @/tools/* *", "tools/link/../x", false), // that is beside the directory to which the link leads
            ("allow @/tools/* *", "tools/sub/x", false),
            ("allow @/tools/* *", "far/away/x", false),
            ("allow @/tools/* *", "tools/../far/x", false),
            ("allow @/tools/* *", "alias/x", false),
            ("allow @/alias/* *", "alias/x", nix::unistd::geteuid().is_root()), // the name of the rule, and root's link
            ("allow @/alias/* *", "tools/x", nix::unistd::geteuid().is_root()),
            ("allow @/tools/** *", "tools/link/away/x", false),
            ("ask @/*/x *", "alias/x", true),
            ("ask @/tools* *", "tools/sub/x", true),
            ("allow '@/tools/*'", "tools/x", false),
            ("deny @/far/** *\nallow @/tools/x *", "far/x", false),
            ("deny @/far/** *\nallow * *", "far/x", true),
            ("allow shell *\nallow get /", "tools/x", false),
        ] {
            assert_eq!(looked(policy, &at(path)), is_looked_at, "{policy} {path}");
        }
        // bare names and the directories of PATH
        for (policy, path, is_looked_at) in [
            ("allow env *", "/bin/env", true),
            ("allow env *", "/usr/bin/env", true),
            ("allow env *", "/usr/bin/true", false),
            ("allow env *", "/usr/share/../bin/env", false),
            ("allow env *", "/proc/self/root/usr/bin/env", false),
            ("allow * *", "/proc/self/root/usr/bin/env", true),
            ("ask /usr/bin/systemctl *", "/sbin/reboot", true),
            ("ask /usr/bin/systemctl *", "/usr/share/x", false),
        ] {
            assert_eq!(looked(policy, Path::new(path)), is_looked_at, "{policy} {path}");
        }
    }

    #[test]
    fn a_deny_rule_matches_every_name_on_the_way() {
        let (_dir, base) = directory();
        for made in ["real", "last"] {
            fs::create_dir(base.join(made)).expect("made");
        }
        let at = |path: &str| base.join(path);
        fs::write(at("real/tool"), "").expect("written");
        // directories: first -> second -> real; the program: last/one -> two -> three -> real/tool
        for (link, target) in [
            ("second", at("real")),
            ("first", "second".into()),
            ("last/one", "two".into()),
            ("last/two", at("last/three")),
            ("last/three", "../first/tool".into()),
        ] {
            symlink(target, at(link)).expect("linked");
        }
        let names = ["first/tool", "second/tool", "real/tool", "last/one", "last/two", "last/three"];
        let denied = |rule: &str, asked: &str| {
            let policy = looked_up(&format!("deny {} *\nallow * *", at(rule).display()));
            verdict(&policy, &at(asked)) == Some(Verdict::Deny)
        };
        // the name asked, the target of each link on the way, the file; and whatever a rule names by a link
        for asked in names {
            for rule in names {
                assert!(denied(rule, asked), "{asked} is asked for, and {rule} denied");
            }
        }
        assert!(!denied("real/other", "last/one") && !denied("last", "last/one"));
        // a rule that gives a right matches the name that is executed alone
        for rule in names {
            let policy = looked_up(&format!("allow {} *", at(rule).display()));
            let allowed = |asked: &str| verdict(&policy, &at(asked)) == Some(Verdict::Allow);
            let all: Vec<&str> = names.into_iter().filter(|asked| allowed(asked)).collect();
            assert!(all.iter().all(|asked| asked.rsplit('/').next() == rule.rsplit('/').next()), "{rule}: {all:?}");
            assert!(all.contains(&rule) || !nix::unistd::geteuid().is_root(), "{rule}: {all:?}");
        }
    }

    #[test]
    fn a_rule_that_cannot_be_looked_up_denies_everything() {
        let dir = tempfile::tempdir().expect("a directory");
        symlink("loop", dir.path().join("loop")).expect("linked");
        let look = |verdict: &str| {
            look_up(&mut Policy::parse(&format!("{verdict} {}/loop *", dir.path().display())).expect("a policy"))
        };
        assert!(matches!(look("deny"), Err(PathFault::Io(..))));
        assert!(look("allow").is_ok() && look("ask").is_ok());
    }

    /// A tree of directories, links and files: `links[i]` is where link `i` leads.
    fn tree(base: &Path, links: &[String]) {
        for dir in ["a", "a/b", "c"] {
            fs::create_dir(base.join(dir)).expect("made");
        }
        for file in ["a/f", "a/b/f", "c/f"] {
            fs::write(base.join(file), "").expect("written");
        }
        for (place, target) in ["l", "a/l", "a/b/l", "c/l", "c/m"].iter().zip(links) {
            let absolute = target.strip_prefix('/').map(|rest| base.join(rest));
            symlink(absolute.unwrap_or_else(|| target.into()), base.join(place)).expect("linked");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
        #[test]
        fn whatever_links_there_are_a_path_leads_where_the_kernel_says(
            links in prop::collection::vec("/?((a|b|c|l|m|f|\\.|\\.\\.)/{1,2}){0,2}(a|b|c|l|m|f|\\.\\.)", 5),
            asked in "(/{1,2}(a|b|c|l|m|\\.|\\.\\.)){0,4}/{1,2}(f|l|m)",
            rule in "/(a|c|l|\\*|a/b|a/\\*|\\*\\*)/(f|l|m|\\*)",
        ) {
            let (_dir, base) = directory();
            tree(&base, &links);
            let text = format!("{}{asked}", base.display());
            let asked = Path::new(&text);
            let real = fs::canonicalize(asked);
            let found = find(asked.as_os_str().as_bytes());
            // the path that is executed has no link among its directories, and leads to the same file
            let executed = Path::new(OsStr::from_bytes(&found.names.executed[0].path));
            if let Ok(real) = &real {
                prop_assert_eq!(&fs::canonicalize(executed).expect("there"), real);
                let directory = executed.parent().expect("a directory");
                prop_assert_eq!(fs::canonicalize(directory).expect("there"), directory);
                let file = real.as_os_str().as_bytes();
                prop_assert!(found.names.names().any(|name| name.path == file), "{:?} {:?}", found.names, real);
                for name in found.names.names() {
                    let name = Path::new(OsStr::from_bytes(&name.path));
                    prop_assert_eq!(&fs::canonicalize(name).expect("every name is one of the file"), real);
                }
            } else {
                prop_assert!(found.path.is_err(), "{:?}", found);
            }
            // what is not looked at, no rule would have allowed; what is, is the same as without the limit
            let allow = looked_up(&format!("allow {}{rule} *", base.display()));
            let decide = |policy: &Policy, found: &FoundProgram| {
                policy.decide(super::super::policy::Action::Argv(&found.names, &[])).verdict
            };
            match find_within(&allow, asked.as_os_str().as_bytes()) {
                Some(within) => prop_assert_eq!(&within.names, &found.names),
                // the name as asked leads through directories that the rule does not name
                None => prop_assert!(executed.as_os_str() != asked.as_os_str() || decide(&allow, &found) == Verdict::Deny, "{:?}", asked),
            }
            // a deny rule matches whatever an allow rule with the same words does
            if decide(&allow, &found) == Verdict::Allow {
                // what is denied is not known where the rule names links in a circle; then nothing runs at all
                let Ok(both) = try_look_up(&format!("deny {0}{rule} *\nallow * *", base.display())) else { return Ok(()) };
                let within = find_within(&both, asked.as_os_str().as_bytes()).expect("everything is looked at");
                prop_assert_eq!(both.decide(super::super::policy::Action::Argv(&within.names, &[])).line, Some(1));
            }
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
