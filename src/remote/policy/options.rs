//! The options of a rule, in the square brackets behind it.

use std::time::Duration;

use super::fault::Complaint;

/// Options of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleOptions {
    /// The user to run as; root when the rule names none.
    pub user: Option<String>,
    /// Where to run, instead of the user's home directory; `client` takes the client's own directory.
    pub cwd: Option<String>,
    /// The permission bits that new files of the command, or the file of a `put`, do not get.
    pub umask: u32,
    /// The longest that a command may run.
    pub timeout: Option<Duration>,
    /// The most that it may write, both streams together, in bytes.
    pub max_output: Option<u64>,
    /// The largest file, for `get` and `put`, in bytes.
    pub max_size: u64,
    /// Whether it may have standard input that comes while it runs, a terminal's included.
    pub stdin: bool,
    /// Whether it may have a terminal.
    pub tty: bool,
    /// Variables that are taken over from the client.
    pub env: Vec<String>,
}

/// The umask of commands when the rule says nothing: as ssh has it.
pub const UMASK: u32 = 0o022;
/// The largest file that `get` and `put` move when the rule says nothing, in bytes.
const MAX_SIZE: u64 = 64 << 20;

impl RuleOptions {
    /// The options of a rule that names none. `stdin`: whether such a rule allows standard input.
    pub(super) fn plain(stdin: bool) -> Self {
        Self {
            user: None,
            cwd: None,
            umask: UMASK,
            timeout: None,
            max_output: None,
            max_size: MAX_SIZE,
            stdin,
            tty: true,
            env: Vec::new(),
        }
    }

    /// Reads the text between the brackets.
    pub(super) fn parse(text: &str, plain: Self) -> Result<Self, Complaint> {
        let mut options = plain;
        for word in text.split_whitespace() {
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| Complaint::new(format!("option \"{word}\" has no value"), format!("{word}=VALUE")))?;
            match key {
                "user" if !value.is_empty() => options.user = Some(value.to_owned()),
                "cwd" if value.starts_with('/') || value == "client" => options.cwd = Some(value.to_owned()),
                "umask" => {
                    let bits = (value.len() <= 4).then(|| u32::from_str_radix(value, 8).ok()).flatten();
                    options.umask = bits.filter(|bits| *bits <= 0o777 && !value.starts_with('+')).ok_or_else(|| {
                        Complaint::new(format!("umask={value} is no mask"), "octal digits: umask=022, umask=077")
                    })?;
                }
                "timeout" => {
                    let seconds: u32 = value.trim_end_matches('s').parse().map_err(|_| {
                        Complaint::new(format!("timeout={value} is no time"), "whole seconds: timeout=60")
                    })?;
                    options.timeout = Some(Duration::from_secs(seconds.into()));
                }
                "max-output" => options.max_output = Some(size(value)?),
                "max-size" => options.max_size = size(value)?,
                "stdin" => options.stdin = yes(value)?,
                "tty" => options.tty = yes(value)?,
                "env" => {
                    let names = value.split(',').map(str::to_owned).collect::<Vec<_>>();
                    if let Some(name) = names.iter().find(|name| !harmless(name)) {
                        return Err(Complaint::new(
                            format!("env={name}: a variable that a qube sets may make a program run the qube's code"),
                            "LANG, LC_*, TZ, NO_COLOR, COLUMNS and QVM_* (not QVM_REMOTE_*) are taken, no others",
                        ));
                    }
                    options.env = names;
                }
                _ => {
                    return Err(Complaint::new(
                        format!("unknown option \"{word}\""),
                        "options are user= cwd= umask= timeout= max-output= max-size= stdin= tty= env=",
                    ));
                }
            }
        }
        Ok(options)
    }
}

/// Whether a qube may choose the value of this variable: no program takes code, a path of code or options from it.
/// `QVM_REMOTE_*` is what dom0 itself says to a command.
fn harmless(name: &str) -> bool {
    let tail = |prefix: &str| {
        let rest = name.strip_prefix(prefix);
        rest.is_some_and(|r| !r.is_empty() && r.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
    };
    matches!(name, "LANG" | "TZ" | "NO_COLOR" | "COLUMNS")
        || tail("LC_")
        || tail("QVM_") && !name.starts_with("QVM_REMOTE_")
}

/// Reads `yes` or `no`.
pub(super) fn yes(value: &str) -> Result<bool, Complaint> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(Complaint::new(format!("\"{value}\" is neither yes nor no"), "yes or no")),
    }
}

/// `50M`, `64K`, `1G`, or bytes.
pub(super) fn size(text: &str) -> Result<u64, Complaint> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let n: Option<u64> = digits.parse().ok();
    let bytes = n.and_then(|n| n.checked_mul(1 << shift));
    bytes.ok_or_else(|| Complaint::new(format!("\"{text}\" is no size"), "bytes, or a number with K, M or G"))
}
