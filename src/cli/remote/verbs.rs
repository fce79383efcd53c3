//! The words of `qvm-remote` that are no commands for dom0: one table, from which they are run and the help and the
//! completions are made.

use std::{ffi::OsString, process::ExitCode};

use super::{manage, options::ClientOptions, transfer};
use crate::remote::client::{ClientError, Home};

/// A verb of `qvm-remote`.
#[derive(Debug)]
pub struct Verb {
    /// The first word.
    pub name: &'static str,
    /// Words that may follow, for completions.
    pub words: &'static [&'static str],
    /// What follows the name, as the help has it.
    pub usage: &'static str,
    /// Help, in one line.
    pub help: &'static str,
    /// With `--argv` the word is the name of a program.
    pub(super) program_with_argv: bool,
    pub(super) run: fn(&Home, &ClientOptions, &[OsString]) -> Result<ExitCode, ClientError>,
}

/// The verbs, in the order of the help.
pub const VERBS: &[Verb] = &[
    Verb {
        name: "get",
        words: &[],
        usage: "DOM0-PATH [LOCAL-PATH|-]",
        help: "copy a file out of dom0, where its policy allows",
        program_with_argv: true,
        run: transfer::get,
    },
    Verb {
        name: "put",
        words: &[],
        usage: "LOCAL-PATH|- DOM0-PATH",
        help: "copy a file into dom0, where its policy allows",
        program_with_argv: true,
        run: transfer::put,
    },
    Verb {
        name: "key",
        words: &["gen", "show", "import"],
        usage: "gen | show | import [KEY]",
        help: "make, print or import the key of this qube",
        program_with_argv: false,
        run: |home, _, words| manage::key(home, &texts(words)),
    },
    Verb {
        name: "ping",
        words: &[],
        usage: "",
        help: "ask whether dom0 answers and knows the key",
        program_with_argv: false,
        run: |home, options, _| manage::ping(home, options),
    },
    Verb {
        name: "status",
        words: &[],
        usage: "[--json]",
        help: "print the state of this side and of the connection",
        program_with_argv: false,
        run: |home, _, words| manage::status(home, &texts(words)),
    },
    Verb {
        name: "queue",
        words: &["status", "clean", "debug"],
        usage: "[status | clean | debug]",
        help: "print or remove what waits in the queue of files",
        program_with_argv: false,
        run: |home, _, words| manage::queue(home, texts(words).first().copied()),
    },
    Verb {
        name: "log",
        words: &[],
        usage: "[N]",
        help: "print the last lines of this side's log",
        program_with_argv: false,
        run: |home, _, words| manage::log(home, &texts(words)),
    },
    Verb {
        name: "history",
        words: &[],
        usage: "[N]",
        help: "print the last commands and how they ended",
        program_with_argv: false,
        run: |home, _, words| manage::history(home, &texts(words)),
    },
];

fn texts(words: &[OsString]) -> Vec<&str> {
    words.iter().map(|word| word.to_str().unwrap_or("\u{fffd}")).collect()
}
