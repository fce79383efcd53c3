//! dom0's policy: our file, which is the record of all forwards, and the lines of other files that come before it.
//!
//! qrexec reads the files of both directories in the order of their names, and the first line that matches a call decides
//! (qubes-core-qrexec, `qrexec/policy/parser.py`). Whatever is in other files is somebody else's: it is read, never
//! written.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::declared::{self, Declared, Named};
use crate::{
    log::escape,
    sys::file::{self, replace},
};

/// Where dom0's owner keeps policy files.
const DIRECTORY: &str = "/etc/qubes/policy.d";
/// Where the policy of this boot is; a file there takes the place of the one with the same name in [`DIRECTORY`].
const RUNTIME: &str = "/run/qubes/policy.d";
/// Our file.
pub(super) const NAME: &str = "30-qvm-forward.policy";
/// Where a new file is judged before it comes into place.
const DRAFT: &str = "/run/qvm-forward/draft";
/// The longest policy file that is read, in bytes.
const LONGEST: u64 = 1 << 20;
/// The most forwards of one qube; its service takes no more.
pub(super) const MOST: usize = 64;

/// What stands at the head of our file.
const HEAD: &str = "\
# Written and read by qvm-forward(8): change it with qvm-forward add and qvm-forward remove.
# Write lines of your own into another file: 20-*.policy comes before this one, 31-*.policy after it.
";
/// What begins the comment above each line.
const COMMENT: &str = "# forward ";

/// The forwards of our file, in the order of their policy lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Declarations(Vec<Declared>);

/// A line that this program has not written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ForeignLine {
    /// 1 for the first.
    line: usize,
    why: String,
}

impl fmt::Display for ForeignLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} is not as qvm-forward writes it: {}", self.line, self.why)
    }
}

/// Why a forward is not added.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// The qube listens on this port already.
    Port(Declared),
    /// The same call has another decision already.
    Decision(Declared),
    /// The qube has [`MOST`] forwards.
    Full,
}

impl Declarations {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Declared> {
        self.0.iter()
    }

    /// Reads our file.
    pub(super) fn read(text: &str) -> Result<Self, ForeignLine> {
        let body = text.strip_prefix(HEAD).unwrap_or(text);
        let first = text.lines().count() - body.lines().count() + 1;
        let mut lines = body.lines().zip(first..);
        let mut declarations = Self::default();
        while let Some((line, number)) = lines.next() {
            let foreign = |why: String| ForeignLine { line: number, why };
            let Some(comment) = line.strip_prefix(COMMENT) else {
                if line.is_empty() {
                    continue;
                }
                return Err(foreign(format!("no line \"{COMMENT}...\" belongs to it")));
            };
            let rule = lines.next().map_or("", |(rule, _)| rule);
            let declared = declared::read(comment, rule).map_err(&foreign)?;
            if declarations.find(&declared).is_some() {
                return Err(foreign(format!(
                    "port {} of {} is declared twice",
                    declared.listen.port(),
                    declared.source
                )));
            }
            declarations.0.push(declared);
        }
        Ok(declarations)
    }

    fn find(&self, like: &Declared) -> Option<&Declared> {
        self.0.iter().find(|one| one.source == like.source && one.listen.port() == like.listen.port())
    }

    /// Adds a forward, and decides how its unit names the target.
    pub(super) fn add(&mut self, mut new: Declared) -> Result<&Declared, Box<Conflict>> {
        if let Some(other) = self.find(&new) {
            return Err(Box::new(Conflict::Port(other.clone())));
        }
        if self.0.iter().filter(|one| one.source == new.source).count() >= MOST {
            return Err(Box::new(Conflict::Full));
        }
        let calls: Vec<&Declared> = self.0.iter().filter(|one| one.shares_calls(&new)).collect();
        new.named = match calls.iter().find(|one| one.named == Named::ByPolicy) {
            Some(default) if default.target.qube != new.target.qube => Named::ByUnit,
            _ => Named::ByPolicy,
        };
        let same = |one: &&&Declared| one.named == new.named && one.target.qube == new.target.qube;
        if let Some(other) = calls.iter().find(same).filter(|other| other.decision != new.decision) {
            return Err(Box::new(Conflict::Decision((*other).clone())));
        }
        let at = self.0.len();
        self.0.push(new);
        Ok(&self.0[at])
    }

    /// Puts a forward back that was taken out.
    pub(super) fn restore(&mut self, taken: Declared) {
        self.0.push(taken);
    }

    /// Takes forwards out, and returns them.
    pub(super) fn take(&mut self, which: impl Fn(&Declared) -> bool) -> Vec<Declared> {
        let (taken, kept) = std::mem::take(&mut self.0).into_iter().partition(which);
        self.0 = kept;
        taken
    }
}

/// Our file, whole.
impl fmt::Display for Declarations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HEAD)?;
        self.0.iter().try_for_each(|one| write!(f, "\n{COMMENT}{one}\n{}\n", one.rule()))
    }
}

/// The path of our file.
pub(super) fn path() -> PathBuf {
    Path::new(DIRECTORY).join(NAME)
}

/// Our file as it is; nothing where there is none.
pub(super) fn load() -> io::Result<Result<Declarations, ForeignLine>> {
    let bytes = match file::read(&path(), LONGEST + 1) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok(Declarations::default())),
        Err(e) => return Err(e),
    };
    if bytes.len() as u64 > LONGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let text = String::from_utf8(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(Declarations::read(&text))
}

/// Puts our file in place, whole; without a forward it is removed.
///
/// # Errors
/// What the file system says; what `judge` says of the new file, which then never comes into place.
pub(super) fn save(declarations: &Declarations, judge: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if declarations.0.is_empty() {
        return match fs::remove_file(path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    }
    let text = declarations.to_string();
    let draft = Path::new(DRAFT);
    replace(draft, 0o600, text.as_bytes())?;
    let judged = judge(draft);
    fs::remove_file(draft)?;
    judged?;
    replace(&path(), 0o644, text.as_bytes())
}

/// A line of another file that may decide about a call before ours does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Earlier {
    pub(super) file: PathBuf,
    /// 1 for the first.
    pub(super) line: usize,
    pub(super) text: String,
}

impl fmt::Display for Earlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}",
            escape(self.file.as_os_str().as_encoded_bytes()),
            self.line,
            escape(self.text.as_bytes())
        )
    }
}

/// The lines of other files that come before ours, as far as they can match a call of a service with an argument.
pub(super) fn earlier() -> io::Result<Vec<Earlier>> {
    let mut files = Vec::new();
    for directory in [RUNTIME, DIRECTORY] {
        match fs::read_dir(directory) {
            Ok(entries) => files.extend(entries.flatten().map(|entry| entry.path())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    let name = |path: &Path| path.file_name().map(|name| name.to_owned());
    files.retain(|path| {
        let text = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        text.ends_with(".policy") && !text.starts_with('.') && text < NAME
    });
    // A stable sort: of two files with one name the one of this boot counts.
    files.sort_by_key(|path| name(path));
    files.dedup_by_key(|path| name(path));
    let mut lines = Vec::new();
    for file in files {
        let text = String::from_utf8_lossy(&file::read(&file, LONGEST)?).into_owned();
        for (line, text) in (1..).zip(text.lines().map(str::trim)) {
            if !text.is_empty() && !text.starts_with('#') {
                lines.push(Earlier { file: file.clone(), line, text: text.to_owned() });
            }
        }
    }
    Ok(lines)
}

/// The first of these lines that may decide about the calls of a forward. A line that names tags, types or another file
/// may: what these mean is not looked up.
pub(super) fn overruled<'a>(forward: &Declared, earlier: &'a [Earlier]) -> Option<&'a Earlier> {
    let call = forward.rule();
    let mut ours = call.split(' ');
    let ours: [&str; 4] = std::array::from_fn(|_| ours.next().unwrap_or(""));
    earlier.iter().find(|line| {
        if line.text.starts_with('!') {
            return true;
        }
        let mut words = line.text.split_whitespace();
        let [service, argument, source, target]: [&str; 4] = std::array::from_fn(|_| words.next().unwrap_or(""));
        let group = |word: &str| ["@anyvm", "@tag:", "@type:", "uuid:"].iter().any(|group| word.starts_with(group));
        (service == "*" || service == ours[0])
            && (argument == "*" || argument == ours[1])
            && (source == "*" || source == ours[2] || group(source))
            // `@anyvm` is whatever is not dom0, `@default` included; a tag or type is never that of `@default`.
            && (["*", "@anyvm", ours[3]].contains(&target) || (group(target) && !ours[3].starts_with('@')))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::declared::{LanDecision, Moment, tests::declared},
        *,
    };

    fn forward(comment: &str) -> Declared {
        let source = comment.split(' ').next().expect("a word");
        let (qube, port) = comment.split(' ').nth(2).and_then(|target| target.split_once(':')).expect("a target");
        let rule = format!("qubes.ConnectTCP +{port} {source} @default allow target={qube}");
        declared::read(comment, &rule).expect(comment)
    }

    proptest! {
        #[test]
        fn a_file_that_was_written_is_read_again(forwards in prop::collection::vec(declared(), 0..20)) {
            let mut declarations = Declarations::default();
            for one in forwards {
                let _ = declarations.add(one);
            }
            prop_assert_eq!(Declarations::read(&declarations.to_string()), Ok(declarations));
        }

        #[test]
        fn the_first_line_that_matches_a_call_is_the_one_of_its_forward(forwards in prop::collection::vec(declared(), 0..40)) {
            let mut declarations = Declarations::default();
            for mut one in forwards {
                // few names, so that they meet
                one.source = ["a", "b"][usize::from(one.listen.port()) % 2].parse().expect("a name");
                one.target.qube = ["x", "y", "z"][usize::from(one.target.port) % 3].parse().expect("a name");
                one.target.port %= 2;
                one.target.port += 1;
                let _ = declarations.add(one);
            }
            let rules: Vec<String> = declarations.iter().map(Declared::rule).collect();
            for one in declarations.iter() {
                let call: Vec<String> = one.rule().split(' ').take(4).map(str::to_owned).collect();
                let decides = rules.iter().find(|rule| rule.split(' ').take(4).eq(call.iter().map(String::as_str)));
                prop_assert_eq!(decides, Some(&one.rule()));
            }
        }
    }

    #[test]
    fn a_second_target_of_the_same_call_is_named_by_its_unit() {
        let mut declarations = Declarations::default();
        declarations.add(forward("sys-net 0.0.0.0:8443 web:443")).expect("the first");
        let second = declarations.add(forward("sys-net 0.0.0.0:9443 mail:443")).expect("the second");
        assert_eq!(second.value(), "0.0.0.0:9443 mail qubes.ConnectTCP+443");
        assert_eq!(second.rule(), "qubes.ConnectTCP +443 sys-net mail allow");
        let third = declarations.add(forward("sys-net 0.0.0.0:9444 web:443")).expect("the third");
        assert_eq!(third.named, Named::ByPolicy);
    }

    #[test]
    fn a_port_belongs_to_one_forward_and_a_call_has_one_decision() {
        let mut declarations = Declarations::default();
        declarations.add(forward("sys-net 0.0.0.0:8443 web:443")).expect("the first");
        let same_port = declarations.add(forward("sys-net 127.0.0.1:8443 db:5432"));
        let same_port = same_port.map(|_| ()).map_err(|conflict| *conflict);
        assert!(matches!(same_port, Err(Conflict::Port(other)) if other.target.to_string() == "web:443"));
        let asked = Declared { decision: LanDecision::Ask, ..forward("sys-net 0.0.0.0:9443 web:443") };
        let asked = declarations.add(asked).map(|_| ()).map_err(|conflict| *conflict);
        assert!(matches!(asked, Err(Conflict::Decision(_))));
        declarations.add(forward("work 0.0.0.0:8443 web:443")).expect("another qube");
    }

    #[test]
    fn a_qube_has_a_bounded_number_of_forwards() {
        let mut declarations = Declarations::default();
        for port in 1..=MOST {
            declarations.add(forward(&format!("sys-net 0.0.0.0:{port} web:443"))).expect("there is room");
        }
        assert_eq!(declarations.add(forward("sys-net 0.0.0.0:9000 web:443")), Err(Box::new(Conflict::Full)));
    }

    #[test]
    fn a_file_that_somebody_has_edited_is_refused_with_its_line() {
        let mut declarations = Declarations::default();
        declarations.add(forward("sys-net 0.0.0.0:8443 web:443")).expect("it is new");
        let written = declarations.to_string();
        let edits = [
            (format!("{written}qubes.ConnectTCP * work @default allow target=web\n"), 6),
            (written.replace("allow", "ask"), 4),
            (written.replace("target=web", "target=mail"), 4),
            (format!("{written}# a note\n"), 6),
            (format!("{written}{}", written.strip_prefix(HEAD).expect("the head")), 7),
        ];
        for (text, line) in edits {
            assert_eq!(Declarations::read(&text).expect_err(&text).line, line, "{text}");
        }
        assert_eq!(Declarations::read(&format!("\n{written}")).expect_err("moved").line, 2);
    }

    #[test]
    fn forwards_whose_time_is_over_are_taken() {
        let mut declarations = Declarations::default();
        declarations.add(forward("a 0.0.0.0:1 web:443 until=2026-12-01T10:00:00Z")).expect("it is new");
        declarations.add(forward("a 0.0.0.0:2 web:443")).expect("it is new");
        let now: Moment = "2026-12-01T10:00:00Z".parse().expect("a time");
        let taken = declarations.take(|one| one.is_over(now));
        assert_eq!(taken.iter().map(|one| one.listen.port()).collect::<Vec<_>>(), [1]);
        assert_eq!(declarations.iter().count(), 1);
    }

    #[test]
    fn a_line_that_comes_before_ours_and_can_match_is_found() {
        let ours = forward("sys-net 0.0.0.0:8443 web:443");
        let lines =
            |text: &str| [Earlier { file: "/etc/qubes/policy.d/20-x.policy".into(), line: 7, text: text.to_owned() }];
        let yes = [
            "qubes.ConnectTCP +443 sys-net @default deny",
            "qubes.ConnectTCP * @anyvm @default deny",
            "* * @tag:net * deny",
            "qubes.ConnectTCP +443 sys-net @anyvm deny",
            "qubes.ConnectTCP +443 * * ask",
            "!include-service qubes.ConnectTCP * include/x",
        ];
        let no = [
            "qubes.ConnectTCP +444 sys-net @default deny",
            "qubes.ConnectTCP +443 work @default deny",
            "qubes.ConnectTCP +443 sys-net @tag:web deny",
            "qubes.ConnectTCP +443 sys-net web deny",
            "qubes.Gpg * * * deny",
        ];
        yes.iter().for_each(|text| assert!(overruled(&ours, &lines(text)).is_some(), "{text}"));
        no.iter().for_each(|text| assert!(overruled(&ours, &lines(text)).is_none(), "{text}"));
    }
}
