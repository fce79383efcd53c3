//! The rules of a policy: read from text, and asked.

use std::fmt;

use super::{
    fault::{Complaint, PolicyFault},
    options::{RuleOptions, size, yes},
    pattern::{ProgramPattern, Reach, WordPattern},
    program::AskedProgram,
    words::{RuleWord, without_comment, words},
};

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The command runs.
    Allow,
    /// The command does not run.
    Deny,
    /// A person in dom0 decides.
    Ask,
}

impl Verdict {
    /// As the audit has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Ask => "ask",
        }
    }
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RuleSubject {
    /// `None`: any text.
    Shell(Option<String>),
    /// A program and its words; `rest`: any further words.
    Argv { program: ProgramPattern, words: Vec<WordPattern>, rest: bool },
    /// Files beneath a directory.
    Get(String),
    /// Files beneath a directory.
    Put(String),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) line: usize,
    pub(super) verdict: Verdict,
    pub(super) subject: RuleSubject,
    pub(super) options: RuleOptions,
    /// The rule says whether it takes input.
    pub(super) stdin_stated: bool,
}

/// All rules and settings of one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub(super) rules: Vec<Rule>,
    /// This command runs instead of any other; the one asked for is in `QVM_REMOTE_ORIGINAL_COMMAND`.
    pub force: Option<String>,
    /// The original's tokens are taken, too.
    pub v1: bool,
    /// Commands at a time.
    pub max_running: Option<u16>,
    /// Bytes of dom0's log that the VM may fill in a day.
    pub audit_quota: Option<u64>,
}

/// What a VM asks for.
#[derive(Clone, Copy, Debug)]
pub enum Action<'a> {
    /// A text for bash.
    Shell(&'a [u8]),
    /// A program, and the words behind it.
    Argv(&'a AskedProgram, &'a [Vec<u8>]),
    /// To read this absolute path.
    Get(&'a [u8]),
    /// To write this absolute path.
    Put(&'a [u8]),
}

/// What the policy says of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruling<'a> {
    /// Yes, no, or ask.
    pub verdict: Verdict,
    /// The rule's line; `None` when no rule matched.
    pub line: Option<usize>,
    /// The rule's options.
    pub options: RuleOptions,
    /// For `get` and `put`: the directory that the file must lie beneath.
    pub beneath: Option<&'a str>,
}

impl Ruling<'_> {
    /// The answer where no rule matches: no.
    pub fn none() -> Self {
        Ruling { verdict: Verdict::Deny, line: None, options: RuleOptions::plain(false), beneath: None }
    }
}

/// The text that `authorize` writes: everything, as the original's description promises.
pub const EVERYTHING: &str =
    "# Any command, as root: a VM that is compromised is dom0 compromised.\nallow shell *\nallow * *\n";
/// The text that `authorize --deny` writes.
pub const NOTHING: &str = "# Nothing is allowed until rules stand here, such as:\n#allow qvm-ls *\n";

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// Every fault. A policy with a fault allows nothing.
    pub fn parse(text: &str) -> Result<Self, Vec<PolicyFault>> {
        let (mut policy, mut faults) = (Self::default(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            if let Err(complaint) = policy.line(line_number, line.trim()) {
                faults.push(complaint.at(line_number));
            }
        }
        if faults.is_empty() { Ok(policy) } else { Err(faults) }
    }

    fn line(&mut self, number: usize, line: &str) -> Result<(), Complaint> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let first = line.split_whitespace().next().unwrap_or_default();
        let verdict = match first {
            "allow" => Verdict::Allow,
            "deny" => Verdict::Deny,
            "ask" => Verdict::Ask,
            _ => return self.setting(line),
        };
        let line = without_comment(line);
        // what a person approved is what runs: input that comes later is only taken where the rule says so
        let plain = RuleOptions::plain(verdict != Verdict::Ask);
        let (line, options) = line.strip_suffix(']').and_then(|l| l.rsplit_once(" [")).unwrap_or((line, ""));
        let stdin_stated = options.split_whitespace().any(|option| option.starts_with("stdin="));
        let options = RuleOptions::parse(options, plain)?;
        let words = words(line)?;
        let subject = subject(&words[1..])?;
        self.rules.push(Rule { line: number, verdict, subject, options, stdin_stated });
        Ok(())
    }

    fn setting(&mut self, line: &str) -> Result<(), Complaint> {
        let (key, value) = line.split_once('=').ok_or_else(|| {
            Complaint::new(
                "neither a rule nor a setting",
                "allow, deny or ask in front of a rule; KEY = VALUE for a setting",
            )
        })?;
        let value = value.trim();
        match key.trim() {
            "force" if !value.is_empty() => self.force = Some(value.to_owned()),
            "v1" => self.v1 = yes(value)?,
            "max-running" => {
                let n = value.parse().ok().filter(|n| (1..=64).contains(n));
                let wrong = || Complaint::new(format!("max-running = {value} cannot be"), "a number from 1 to 64");
                self.max_running = Some(n.ok_or_else(wrong)?);
            }
            "audit-quota" => {
                let bytes = size(value).ok().filter(|bytes| (64 << 10..=1 << 30).contains(bytes));
                let wrong = || Complaint::new(format!("audit-quota = {value} cannot be"), "a size from 64K to 1G");
                self.audit_quota = Some(bytes.ok_or_else(wrong)?);
            }
            key => {
                let settings = "settings are force, v1, max-running and audit-quota";
                return Err(Complaint::new(format!("unknown setting \"{key}\""), settings));
            }
        }
        Ok(())
    }

    /// Finds the first rule that matches.
    pub fn decide(&self, asked: Action<'_>) -> Ruling<'_> {
        let mut matching = self.rules.iter().filter_map(|rule| Some((rule, rule.matches(asked).ok()?)));
        match matching.next() {
            Some((rule, beneath)) => {
                Ruling { verdict: rule.verdict, line: Some(rule.line), options: rule.options.clone(), beneath }
            }
            None => Ruling::none(),
        }
    }

    /// The rules up to the one that decides: the line of each, and why it does not match.
    pub fn explain(&self, asked: Action<'_>) -> Vec<(usize, Option<Mismatch>)> {
        let mut looked_at = Vec::new();
        for rule in &self.rules {
            let mismatch = rule.matches(asked).err();
            looked_at.push((rule.line, mismatch));
            if mismatch.is_none() {
                break;
            }
        }
        looked_at
    }

    /// Looks up the directories that rules about programs name: `/bin/ls` is `/usr/bin/ls` where `/bin` is a link.
    /// `find` gets the verdict of the rule and a directory.
    pub fn resolve_directories(&mut self, find: impl Fn(Verdict, &[u8]) -> Option<Vec<u8>>) {
        for rule in &mut self.rules {
            if let RuleSubject::Argv { program, .. } = &mut rule.subject {
                program.resolve(|directory| find(rule.verdict, directory));
            }
        }
    }

    /// Looks up the programs that rules deny by one name: where that is a link, the rules deny what is behind it too.
    ///
    /// # Errors
    /// The first that `find` has.
    pub fn resolve_links<E>(&mut self, find: impl Fn(&[u8]) -> Result<Vec<Vec<u8>>, E>) -> Result<(), E> {
        for rule in self.rules.iter_mut().filter(|rule| rule.verdict == Verdict::Deny) {
            if let RuleSubject::Argv { program, .. } = &mut rule.subject {
                let targets = program.only_name().map(&find).transpose()?;
                program.aim(targets.unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Whether a rule can give a right to a program at this path, or at a path beneath it; also the right to be shown
    /// to a person. What no rule reaches is denied, whatever it is. A rule that asks matches the path as asked too:
    /// `as_asked` is that path, up to the same component. `search` are the directories in which bare names are
    /// looked for, as written and resolved: they are system directories, and rules that ask match the file behind a
    /// link in them.
    pub fn reaches(&self, at: &[u8], as_asked: Option<&[u8]>, search: &[Vec<u8>]) -> bool {
        let above = |dir: &Vec<u8>| dir.strip_prefix(at).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"));
        let slash = at.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let in_search = search.iter().any(|dir| *dir == at[..slash]);
        search.iter().any(above)
            || self.rules.iter().any(|rule| match (&rule.subject, rule.verdict) {
                (RuleSubject::Argv { program, .. }, Verdict::Allow) => program.reaches(at, search, Reach::Component),
                (RuleSubject::Argv { program, .. }, Verdict::Ask) => {
                    let mut paths = [Some(at), as_asked].into_iter().flatten();
                    in_search || paths.any(|path| program.reaches(path, search, Reach::Everything))
                }
                _ => false,
            })
    }
}

/// Why a rule does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The rule is about something else: a text, a program, reading or writing a file.
    OtherKind,
    /// The rule names another text.
    OtherText,
    /// The rule names another program.
    OtherProgram,
    /// The rule names this program with other words.
    OtherWords,
    /// The file does not lie beneath the rule's directory.
    OtherDirectory,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherKind => "it is about another kind of request",
            Self::OtherText => "it names another text",
            Self::OtherProgram => "it names another program",
            Self::OtherWords => "it names other words behind the program",
            Self::OtherDirectory => "the file is not beneath its directory",
        })
    }
}

impl Rule {
    /// Whether the rule matches; for a file, with the directory that it must lie beneath.
    fn matches(&self, asked: Action<'_>) -> Result<Option<&str>, Mismatch> {
        match (&self.subject, asked) {
            (RuleSubject::Shell(None), Action::Shell(_)) => Ok(None),
            (RuleSubject::Shell(Some(text)), Action::Shell(given)) => {
                if without_end(given) == text.as_bytes() {
                    Ok(None)
                } else {
                    Err(Mismatch::OtherText)
                }
            }
            (RuleSubject::Argv { program, words, rest }, Action::Argv(asked, given)) => {
                if !program_matches(self.verdict, program, asked) {
                    Err(Mismatch::OtherProgram)
                } else if !argv_matches(words, *rest, given) {
                    Err(Mismatch::OtherWords)
                } else {
                    Ok(None)
                }
            }
            (RuleSubject::Get(dir), Action::Get(path)) | (RuleSubject::Put(dir), Action::Put(path)) => {
                if beneath(dir, path) { Ok(Some(dir.as_str())) } else { Err(Mismatch::OtherDirectory) }
            }
            _ => Err(Mismatch::OtherKind),
        }
    }
}

/// A text without the blanks and ends of lines behind it, which mean nothing to bash. A carriage return means
/// something: it is a part of the last word.
fn without_end(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|b| !b" \t\n".contains(b)).map_or(0, |last| last + 1);
    &text[..end]
}

/// A right is given to the path that is executed alone. It is taken away from a program under any of its names.
fn program_matches(verdict: Verdict, pattern: &ProgramPattern, asked: &AskedProgram) -> bool {
    let matches = |reach| move |name| pattern.matches(name, reach);
    match verdict {
        Verdict::Allow => asked.executed.iter().any(matches(Reach::Component)),
        Verdict::Ask => asked.names().any(matches(Reach::Everything)),
        Verdict::Deny => {
            asked.names().any(|name| pattern.matches(name, Reach::Everything) || pattern.aims_at(&name.path))
        }
    }
}

fn argv_matches(patterns: &[WordPattern], rest: bool, given: &[Vec<u8>]) -> bool {
    (given.len() == patterns.len() || rest && given.len() > patterns.len())
        && patterns.iter().zip(given).all(|(pattern, word)| pattern.matches(word))
}

/// Whether `path`, component by component, lies beneath `dir`. Which file that is in the end, the kernel decides.
fn beneath(dir: &str, path: &[u8]) -> bool {
    let dir = dir.trim_end_matches('/').as_bytes();
    let inside = path.strip_prefix(dir).and_then(|rest| rest.strip_prefix(b"/"));
    inside.is_some_and(|rest| !rest.is_empty() && !rest.split(|b| *b == b'/').any(|part| part == b".."))
}

fn subject(words: &[RuleWord]) -> Result<RuleSubject, Complaint> {
    let [first, rest @ ..] = words else {
        return Err(Complaint::new("a rule about nothing", "a program, or shell, get or put, behind the first word"));
    };
    match (first.text.as_str(), first.quoted) {
        ("shell", false) => match rest {
            [any] if any.text == "*" && !any.quoted => Ok(RuleSubject::Shell(None)),
            [] => {
                Err(Complaint::new("a rule about a shell text without the text", "shell * for any, or the very text"))
            }
            words if words.iter().any(|w| !w.quoted && w.text.contains(['*', '?'])) => Err(Complaint::new(
                "a pattern within a shell text is no limit: \";\" starts another command",
                "a rule about a program, for qvm-remote --argv; or quotes for the character itself",
            )),
            words => {
                let text: Vec<_> = words.iter().map(|w| w.text.as_str()).collect();
                Ok(RuleSubject::Shell(Some(text.join(" "))))
            }
        },
        (verb @ ("get" | "put"), false) => match rest {
            [dir] if dir.text.starts_with('/') && !dir.text.split('/').any(|p| p == ".." || p == ".") => {
                let dir = dir.text.trim_end_matches("/*").to_owned();
                Ok(if verb == "get" { RuleSubject::Get(dir) } else { RuleSubject::Put(dir) })
            }
            _ => Err(Complaint::new(format!("{verb} without one absolute directory"), format!("{verb} /DIRECTORY"))),
        },
        (program, _) => {
            if !program.starts_with('/') && program.contains('/') {
                let fix = "an absolute path, or a bare name that is found in PATH";
                return Err(Complaint::new(format!("\"{program}\" is a relative path"), fix));
            }
            let any_rest = rest.last().is_some_and(|w| w.text == "*" && !w.quoted);
            let fixed = &rest[..rest.len() - usize::from(any_rest)];
            let words = fixed.iter().map(WordPattern::new).collect();
            Ok(RuleSubject::Argv { program: ProgramPattern::new(first), words, rest: any_rest })
        }
    }
}
