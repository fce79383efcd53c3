//! What a VM may ask for: the rules in `/etc/qubes/remote.d/VM.policy`. Pure; the first rule that matches decides, and
//! where none does, or the file is missing, the answer is no.
//!
//! ```text
//! # rules: allow|deny|ask, what, [options]
//! allow qvm-ls *                            # up to here; a word that begins so is quoted
//! ask   /usr/bin/qvm-shutdown --wait *      [timeout=120]
//! allow shell 'xl info'
//! allow get /var/log/xen                    [max-size=50M]
//! deny  shell *
//!
//! # settings of the whole VM
//! v1 = yes
//! max-running = 4
//! ```
//! A rule about a program matches only a vector of arguments (`qvm-remote --argv …`), compared word by word after the
//! program was resolved to an absolute path; no shell ever reads it, so no `;` leads out of it. A rule `shell` matches
//! the text for bash: `*` is any text, else the very text; a pattern within a text would be an illusion, and is
//! refused. `get` and `put` name directories that files must lie beneath.

use std::{fmt, time::Duration};

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

/// Options of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleOptions {
    /// The user to run as; root when the rule names none.
    pub user: Option<String>,
    /// Where to run; `client` takes the client's own directory.
    pub cwd: Option<String>,
    /// The longest that a command may run.
    pub timeout: Option<Duration>,
    /// The most that it may write, both streams together, in bytes.
    pub max_output: Option<u64>,
    /// The largest file, for `get` and `put`, in bytes.
    pub max_size: u64,
    /// Whether it may have standard input.
    pub stdin: bool,
    /// Whether it may have a terminal.
    pub tty: bool,
    /// Variables that are taken over from the client.
    pub env: Vec<String>,
}

/// The largest file that `get` and `put` move when the rule says nothing, in bytes.
const MAX_SIZE: u64 = 64 << 20;

impl Default for RuleOptions {
    fn default() -> Self {
        Self {
            user: None,
            cwd: None,
            timeout: None,
            max_output: None,
            max_size: MAX_SIZE,
            stdin: true,
            tty: true,
            env: Vec::new(),
        }
    }
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RuleSubject {
    /// `None`: any text.
    Shell(Option<String>),
    /// Patterns, the program's first; `rest`: any further words.
    Argv { words: Vec<Pattern>, rest: bool },
    /// Files beneath a directory.
    Get(String),
    /// Files beneath a directory.
    Put(String),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    line: usize,
    verdict: Verdict,
    subject: RuleSubject,
    options: RuleOptions,
}

/// All that is said about one VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
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
    /// A program by its absolute path, and its arguments.
    Argv(&'a [Vec<u8>]),
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

/// What is wrong with a policy: the line and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFault {
    /// The number of the line, counted from 1.
    pub line: usize,
    /// What is wrong: lower case, without a final stop.
    pub what: String,
}

impl fmt::Display for PolicyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.what)
    }
}

impl std::error::Error for PolicyFault {}

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
            if let Err(what) = policy.line(line_number, line.trim()) {
                faults.push(PolicyFault { line: line_number, what });
            }
        }
        if faults.is_empty() { Ok(policy) } else { Err(faults) }
    }

    fn line(&mut self, number: usize, line: &str) -> Result<(), String> {
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
        let (line, options) = match line.strip_suffix(']').and_then(|l| l.rsplit_once(" [")) {
            Some((rule, options)) => (rule, parse_options(options)?),
            None => (line, RuleOptions::default()),
        };
        let words = words(line)?;
        let subject = subject(&words[1..])?;
        self.rules.push(Rule { line: number, verdict, subject, options });
        Ok(())
    }

    fn setting(&mut self, line: &str) -> Result<(), String> {
        let (key, value) =
            line.split_once('=').ok_or("neither a rule (allow, deny, ask) nor a setting (key = value)")?;
        let value = value.trim();
        match key.trim() {
            "force" if !value.is_empty() => self.force = Some(value.to_owned()),
            "v1" => self.v1 = yes(value)?,
            "max-running" => {
                let n = value.parse().ok().filter(|n| (1..=64).contains(n));
                self.max_running = Some(n.ok_or("max-running is a number from 1 to 64")?);
            }
            "audit-quota" => {
                let bytes = size(value).ok().filter(|bytes| (64 << 10..=1 << 30).contains(bytes));
                self.audit_quota = Some(bytes.ok_or("audit-quota is a size from 64K to 1G")?);
            }
            key => return Err(format!("unknown setting \"{key}\" (force, v1, max-running, audit-quota)")),
        }
        Ok(())
    }

    /// Finds the first rule that matches.
    pub fn decide(&self, asked: Action<'_>) -> Ruling<'_> {
        for rule in &self.rules {
            let beneath = match (&rule.subject, asked) {
                (RuleSubject::Shell(None), Action::Shell(_)) => None,
                (RuleSubject::Shell(Some(text)), Action::Shell(given)) if given.trim_ascii_end() == text.as_bytes() => {
                    None
                }
                (RuleSubject::Argv { words, rest }, Action::Argv(given)) if argv_matches(words, *rest, given) => None,
                (RuleSubject::Get(dir), Action::Get(path)) | (RuleSubject::Put(dir), Action::Put(path))
                    if beneath(dir, path) =>
                {
                    Some(dir.as_str())
                }
                _ => continue,
            };
            return Ruling { verdict: rule.verdict, line: Some(rule.line), options: rule.options.clone(), beneath };
        }
        Ruling { verdict: Verdict::Deny, line: None, options: RuleOptions::default(), beneath: None }
    }
}

fn argv_matches(patterns: &[Pattern], rest: bool, given: &[Vec<u8>]) -> bool {
    (given.len() == patterns.len() || rest && given.len() > patterns.len())
        && patterns.iter().zip(given).all(|(pattern, word)| pattern.matches(word))
}

/// Whether `path`, component by component, lies beneath `dir`. Which file that is in the end, the kernel decides.
fn beneath(dir: &str, path: &[u8]) -> bool {
    let dir = dir.trim_end_matches('/').as_bytes();
    let inside = path.strip_prefix(dir).and_then(|rest| rest.strip_prefix(b"/"));
    inside.is_some_and(|rest| !rest.is_empty() && !rest.split(|b| *b == b'/').any(|part| part == b".."))
}

fn subject(words: &[RuleWord]) -> Result<RuleSubject, String> {
    let [first, rest @ ..] = words else { return Err("a rule about nothing".into()) };
    match (first.text.as_str(), first.quoted) {
        ("shell", false) => match rest {
            [any] if any.text == "*" && !any.quoted => Ok(RuleSubject::Shell(None)),
            [] => Err("write shell * for any text, or the very text".into()),
            words if words.iter().any(|w| !w.quoted && w.text.contains(['*', '?'])) => Err(
                "a pattern within a shell text keeps nobody in: \";\" leads out of it (use a rule about a program, \
                     and qvm-remote --argv)"
                    .into(),
            ),
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
            _ => Err(format!("{verb} wants one absolute directory")),
        },
        (program, _) => {
            if !program.starts_with('/') && program.contains('/') {
                return Err(format!("\"{program}\": a program is an absolute path, or a bare name found in PATH"));
            }
            let any_rest = rest.last().is_some_and(|w| w.text == "*" && !w.quoted);
            let fixed = &rest[..rest.len() - usize::from(any_rest)];
            let mut words = vec![Pattern::program(first)];
            words.extend(fixed.iter().map(Pattern::new));
            Ok(RuleSubject::Argv { words, rest: any_rest })
        }
    }
}

fn parse_options(text: &str) -> Result<RuleOptions, String> {
    let mut options = RuleOptions::default();
    for word in text.split_whitespace() {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("option \"{word}\" has no value"))?;
        match key {
            "user" if !value.is_empty() => options.user = Some(value.to_owned()),
            "cwd" if value.starts_with('/') || value == "client" => options.cwd = Some(value.to_owned()),
            "timeout" => {
                let seconds: u32 = value.trim_end_matches('s').parse().map_err(|_| "timeout is in whole seconds")?;
                options.timeout = Some(Duration::from_secs(seconds.into()));
            }
            "max-output" => options.max_output = Some(size(value)?),
            "max-size" => options.max_size = size(value)?,
            "stdin" => options.stdin = yes(value)?,
            "tty" => options.tty = yes(value)?,
            "env" => {
                let names = value.split(',').map(str::to_owned).collect::<Vec<_>>();
                if let Some(name) = names.iter().find(|n| DANGEROUS.contains(&n.as_str()) || n.starts_with("LD_")) {
                    return Err(format!("{name} of a VM would run its code in dom0"));
                }
                options.env = names;
            }
            _ => {
                return Err(format!(
                    "option \"{word}\" makes no sense (user= cwd= timeout= max-output= max-size= stdin= tty= env=)"
                ));
            }
        }
    }
    Ok(options)
}

/// Variables that make programs run code of whoever sets them.
const DANGEROUS: &[&str] = &[
    "BASH_ENV",
    "ENV",
    "PATH",
    "IFS",
    "SHELLOPTS",
    "BASHOPTS",
    "PS4",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PERL5LIB",
    "PERL5OPT",
];

fn yes(value: &str) -> Result<bool, String> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(format!("\"{value}\" is neither yes nor no")),
    }
}

/// `50M`, `64K`, `1G`, or bytes.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let n: u64 = digits.parse().map_err(|_| format!("\"{text}\" is no size (bytes, or with K, M, G)"))?;
    n.checked_mul(1 << shift).ok_or_else(|| format!("\"{text}\" is too large"))
}

/// A word of a rule; what was quoted is taken as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RuleWord {
    text: String,
    quoted: bool,
}

/// A rule up to the word that begins with `#`, unless it is quoted.
fn without_comment(line: &str) -> &str {
    let (mut quote, mut before) = (None, ' ');
    for (at, c) in line.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if before.is_whitespace() && c == '#' => return line[..at].trim_end(),
            None if before.is_whitespace() && (c == '\'' || c == '"') => quote = Some(c),
            None => {}
        }
        before = c;
    }
    line
}

fn words(line: &str) -> Result<Vec<RuleWord>, String> {
    let (mut words, mut chars) = (Vec::new(), line.chars().peekable());
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(&first) = chars.peek() else { return Ok(words) };
        let mut word = RuleWord { text: String::new(), quoted: first == '\'' || first == '"' };
        if word.quoted {
            chars.next();
            loop {
                match chars.next() {
                    Some(c) if c == first => break,
                    Some(c) => word.text.push(c),
                    None => return Err(format!("a quote {first} that does not end")),
                }
            }
            if chars.peek().is_some_and(|c| !c.is_whitespace()) {
                return Err("a quoted word goes on after its quote".into());
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                word.text.push(c);
            }
        }
        words.push(word);
    }
}

/// A pattern for one word: `*` is any bytes, `?` one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: Vec<u8>,
    literal: bool,
    /// A program named without a directory matches its name in any directory of PATH.
    bare: bool,
}

impl Pattern {
    fn new(word: &RuleWord) -> Self {
        Self { text: word.text.clone().into_bytes(), literal: word.quoted, bare: false }
    }

    fn program(word: &RuleWord) -> Self {
        Self { bare: !word.text.contains('/'), ..Self::new(word) }
    }

    /// A bare name is compared with what follows the directory: what was asked for is an absolute path by now, found
    /// in dom0's own PATH.
    fn matches(&self, word: &[u8]) -> bool {
        let word = if self.bare {
            match PATH.iter().find_map(|dir| word.strip_prefix(dir.as_bytes())?.strip_prefix(b"/")) {
                Some(name) if !name.contains(&b'/') => name,
                _ => return self.text == b"*" && !self.literal,
            }
        } else {
            word
        };
        if self.literal { word == self.text } else { glob(&self.text, word) }
    }
}

/// Where programs are looked for, whatever the daemon's own environment says.
pub const PATH: &[&str] = &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Linear in `text` for each `*`: goes back only to the last one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut back) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(c) if *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match back {
                Some((star, from)) => {
                    back = Some((star, from + 1));
                    (p, t) = (star + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests;
