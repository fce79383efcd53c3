//! The options of `qvm-remote`: one table, from which words are read and the help, the manual and the completions are
//! made.
//!
//! Words are read as the Python original reads them, and as ssh does behind the host: options end at the first word
//! that is none, and all that follows belongs to the command. A value is a separate word, so neither `-t5` nor
//! `--timeout=5` nor `-iq` is an option.

use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal as _},
    time::Duration,
};

use crate::{
    log::escape,
    remote::client::{ClientError, Delivery},
};

/// The limit of time without an option, in seconds, where no terminal is attached: nobody is there to end a command.
const TIMEOUT: u32 = 300;

/// Values of the options before the first word.
#[derive(Debug)]
pub(super) struct ClientOptions {
    /// `None`: none at a terminal, else [`TIMEOUT`].
    pub(super) timeout: Option<u32>,
    /// Without a terminal there is a limit of time, also when no option says so.
    pub(super) bounded: bool,
    pub(super) connect_timeout: u32,
    pub(super) verbose: bool,
    pub(super) quiet: bool,
    pub(super) progress: bool,
    pub(super) stdin: bool,
    pub(super) tty: bool,
    pub(super) argv: bool,
    pub(super) delivery: Delivery,
    pub(super) user: String,
}

impl ClientOptions {
    /// How long the command may take; `None`: no limit of this side.
    pub(super) fn time(&self) -> Option<Duration> {
        let attached = || io::stdin().is_terminal() || io::stdout().is_terminal() || io::stderr().is_terminal();
        let seconds = self.timeout.or_else(|| (self.bounded && !attached()).then_some(TIMEOUT));
        seconds.map(|seconds| Duration::from_secs(seconds.into()))
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout: None,
            bounded: true,
            connect_timeout: 10,
            verbose: false,
            quiet: false,
            progress: true,
            stdin: false,
            tty: false,
            argv: false,
            delivery: Delivery::Live,
            user: String::new(),
        }
    }
}

/// An option of `qvm-remote`: the parser, help, the manual and completions are made of it.
#[derive(Debug)]
pub struct OptionEntry {
    /// The letter behind one hyphen.
    pub short: Option<char>,
    /// The name behind two hyphens.
    pub long: &'static str,
    /// The name of the value in texts, when the option takes one.
    pub value: Option<&'static str>,
    /// The line about the option in the help.
    pub help: &'static str,
    effect: Effect,
}

#[derive(Debug)]
enum Effect {
    Set(fn(&mut ClientOptions)),
    Seconds(fn(&mut ClientOptions, u32)),
    Text(fn(&mut ClientOptions, String)),
    Help,
    Version,
}

/// All options of `qvm-remote`, in the order of the help.
pub const OPTIONS: &[OptionEntry] = &[
    OptionEntry {
        short: Some('t'),
        long: "timeout",
        value: Some("SECONDS"),
        help: "end the command after this time and exit 124 (no limit; without a terminal 300)",
        effect: Effect::Seconds(|o, seconds| o.timeout = Some(seconds)),
    },
    OptionEntry {
        short: None,
        long: "connect-timeout",
        value: Some("SECONDS"),
        help: "exit 255 if dom0 does not answer within this time (10)",
        effect: Effect::Seconds(|o, seconds| o.connect_timeout = seconds),
    },
    flag(Some('i'), "stdin", "pass standard input on to the command", Effect::Set(|o| o.stdin = true)),
    flag(None, "tty", "give the command a terminal", Effect::Set(|o| o.tty = true)),
    flag(
        None,
        "argv",
        "no shell in dom0 reads the words: a policy can check each of them",
        Effect::Set(|o| o.argv = true),
    ),
    OptionEntry {
        short: None,
        long: "user",
        value: Some("NAME"),
        help: "run as this user of dom0, if the policy allows that user",
        effect: Effect::Text(|o, name| o.user = name),
    },
    flag(
        None,
        "queue",
        "wait for a daemon that does not run yet",
        Effect::Set(|o| {
            if o.delivery == Delivery::Live {
                o.delivery = Delivery::Queue;
            }
        }),
    ),
    #[cfg(feature = "v1")]
    flag(
        None,
        "v1",
        "use the protocol of the Python qvm-remote-dom0: it authenticates the id only",
        Effect::Set(|o| o.delivery = Delivery::V1),
    ),
    flag(Some('q'), "quiet", "no progress, no hints", Effect::Set(|o| o.quiet = true)),
    flag(Some('v'), "verbose", "print more", Effect::Set(|o| o.verbose = true)),
    flag(Some('h'), "help", "print this help", Effect::Help),
    flag(None, "version", "print the version", Effect::Version),
];

/// An option without a value.
const fn flag(short: Option<char>, long: &'static str, help: &'static str, effect: Effect) -> OptionEntry {
    OptionEntry { short, long, value: None, help, effect }
}

impl OptionEntry {
    fn is(&self, word: &str) -> bool {
        match word.strip_prefix("--") {
            Some(long) => long == self.long,
            None => word.strip_prefix('-').is_some_and(|short| short.chars().eq(self.short)),
        }
    }

    /// The option as error messages write it.
    fn name(&self) -> String {
        self.short.map_or_else(|| format!("--{}", self.long), |short| format!("-{short}"))
    }
}

/// A parsed command line.
#[derive(Debug)]
pub(super) enum Typed {
    Help,
    Version,
    /// Options, and the words from the first one on that is none.
    Words(ClientOptions, Vec<OsString>),
}

/// A fault of the caller or of this machine.
pub(super) fn local_error(text: impl Into<String>) -> ClientError {
    ClientError::Local(text.into())
}

/// How dom0 is reached when no option says so.
pub(super) fn default_delivery() -> Delivery {
    match env::var_os("QVM_REMOTE_V1") {
        #[cfg(feature = "v1")]
        Some(value) if value == "1" => Delivery::V1,
        _ => Delivery::Live,
    }
}

/// Reads what was typed.
pub(super) fn read(words: Vec<OsString>) -> Result<Typed, ClientError> {
    let mut options = ClientOptions { delivery: default_delivery(), ..ClientOptions::default() };
    let mut rest = words.into_iter().peekable();
    while let Some(word) = rest.next_if(|word| word.len() > 1 && word.as_encoded_bytes()[0] == b'-') {
        if word == "--" {
            break;
        }
        let entry = word.to_str().and_then(|word| OPTIONS.iter().find(|entry| entry.is(word)));
        let unknown = || local_error(format!("unknown option: {}", escape(word.as_encoded_bytes())));
        let entry = entry.ok_or_else(unknown)?;
        let mut value = || rest.next().ok_or_else(|| local_error(format!("{} requires a value", entry.name())));
        match entry.effect {
            Effect::Set(set) => set(&mut options),
            Effect::Seconds(set) => set(&mut options, seconds(&entry.name(), &value()?)?),
            Effect::Text(set) => set(&mut options, value()?.to_string_lossy().into_owned()),
            Effect::Help => return Ok(Typed::Help),
            Effect::Version => return Ok(Typed::Version),
        }
    }
    Ok(Typed::Words(options, rest.collect()))
}

fn seconds(name: &str, value: &OsString) -> Result<u32, ClientError> {
    let value = value.to_string_lossy();
    let integer = || local_error(format!("{name} requires an integer, got: {}", escape(value.as_bytes())));
    let number: i64 = value.parse().map_err(|_| integer())?;
    let seconds = u32::try_from(number).ok().filter(|n| (1..=4_000_000).contains(n));
    seconds.ok_or_else(|| local_error(format!("{name} must be a positive integer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(words: &str) -> Result<Typed, String> {
        let words = words.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect();
        read(words).map_err(|error| match error {
            ClientError::Local(text) => text,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn options_end_at_the_first_word_and_the_rest_is_the_commands() {
        let Ok(Typed::Words(options, words)) = typed("-i --timeout 7 --user me -q ls -t 5 --version -- x") else {
            panic!("words are wanted")
        };
        assert!(
            options.stdin && options.quiet && !options.verbose && options.timeout == Some(7) && options.user == "me"
        );
        assert_eq!(words, ["ls", "-t", "5", "--version", "--", "x"]);
        let Ok(Typed::Words(_, words)) = typed("-v -- -t -- x") else { panic!("words are wanted") };
        assert_eq!(words, ["-t", "--", "x"]);
        let Ok(Typed::Words(_, words)) = typed("- x") else { panic!("words are wanted") };
        assert_eq!(words, ["-", "x"], "a hyphen alone is a word");
    }

    #[test]
    fn what_is_no_option_of_the_table_is_a_fault() {
        for (words, fault) in [
            ("-t5 x", "unknown option: -t5"),
            ("--timeout=5 x", "unknown option: --timeout=5"),
            ("-iq x", "unknown option: -iq"),
            ("--timeo 5 x", "unknown option: --timeo"),
            ("--t 5 x", "unknown option: --t"),
            ("--timeout", "-t requires a value"),
            ("--connect-timeout x", "--connect-timeout requires an integer, got: x"),
            ("-t -1 x", "-t must be a positive integer"),
            ("--user", "--user requires a value"),
        ] {
            assert_eq!(typed(words).map(|_| ()), Err(fault.to_owned()), "{words}");
        }
        assert!(matches!(typed("-i --version -x"), Ok(Typed::Version)));
        assert!(matches!(typed("-h"), Ok(Typed::Help)));
    }
}
