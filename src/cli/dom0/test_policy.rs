//! `qvm-remote-dom0 test`: which rule decides about a command, and why; nothing runs.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::failure::fail;
use crate::{
    cli::wrap,
    log::{counted, escape},
    proto::remote::{Mode, check_text, flags},
    remote::{
        config::{Paths, RemoteConfig},
        keys::Store,
        policy::{Action, Manner, Ruling, Verdict, objection},
        policy_file,
        program::{self, FoundProgram},
        shown::quoted,
    },
    report::{Code, Fatal},
};

/// What is asked for, and how.
#[derive(Debug, Args)]
pub(super) struct TestArguments {
    /// The qube
    vm: String,
    /// This policy, instead of the qube's
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A text for bash, as qvm-remote without --argv sends it
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["get", "put", "words"])]
    shell: Option<OsString>,
    /// A file to read
    #[arg(long, value_name = "PATH", conflicts_with_all = ["put", "words"])]
    get: Option<OsString>,
    /// A file to write
    #[arg(long, value_name = "PATH", conflicts_with = "words")]
    put: Option<OsString>,
    /// As this user, as qvm-remote --user asks for
    #[arg(long, value_name = "USER", default_value = "", hide_default_value = true)]
    user: String,
    /// With standard input, as qvm-remote -i asks for
    #[arg(short = 'i', long)]
    stdin: bool,
    /// With a terminal, as qvm-remote --tty asks for
    #[arg(long)]
    tty: bool,
    /// A program and its arguments, as qvm-remote --argv sends them
    #[arg(last = true, value_name = "ARGV")]
    words: Vec<OsString>,
}

/// Runs the command: 0 where the command would run or a person would be asked, 1 where it would be refused.
pub(super) fn run(paths: &Paths, store: &Store, asked: &TestArguments) -> Result<ExitCode, Fatal> {
    let own = store.path(&asked.vm, "policy").map_err(|e| fail(format!("{}: {e}", asked.vm)))?;
    let path = asked.policy.as_ref().unwrap_or(&own);
    let (mut policy, text) =
        policy_file::read(path).map_err(|e| Fatal::new(Code::Config, escape(e.to_string().as_bytes())))?;
    program::look_up(&mut policy).map_err(|fault| fail(format!("cannot look up what the policy denies: {fault}")))?;
    let words: Vec<Vec<u8>> = asked.words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let mut found = None;
    let payload = |text: &OsString| text.clone().into_vec();
    let (shell, file) = (asked.shell.as_ref().map(payload), asked.get.as_ref().or(asked.put.as_ref()).map(payload));
    let (mode, action) = match (&shell, &file) {
        (Some(text), _) => {
            check_text(text).map_err(fail)?;
            (Mode::Shell, Some(Action::Shell(text)))
        }
        (None, Some(path)) if asked.get.is_some() => (Mode::Get, Some(Action::Get(path))),
        (None, Some(path)) => (Mode::Put, Some(Action::Put(path))),
        (None, None) => {
            let first = words.first().ok_or_else(|| {
                Fatal::new(Code::Usage, "nothing to test: -- ARGV..., --shell TEXT, --get PATH or --put PATH")
            })?;
            found = program::find_within(&policy, first);
            match &found {
                Some(found) => (Mode::Argv, Some(Action::Argv(&found.names, &words[1..]))),
                None => (Mode::Argv, None),
            }
        }
    };
    let lines: Vec<&str> = text.lines().collect();
    for (line, mismatch) in action.map(|action| policy.explain(action)).unwrap_or_default() {
        println!("line {line}: {}", escape(lines.get(line - 1).map_or("", |text| text.trim()).as_bytes()));
        println!("{}", mismatch.map_or("  matches".to_owned(), |why| format!("  does not match: {why}")));
    }
    if action.is_none() {
        println!("no rule that allows or asks can match this path, so dom0 does not look at it");
    }
    let ruling = action.map_or_else(Ruling::none, |action| policy.decide(action));
    let flags = if asked.stdin { flags::STDIN } else { 0 } | if asked.tty { flags::TTY } else { 0 };
    let refused = objection(&ruling, Manner { mode, flags, user: &asked.user });
    let refused = refused.or_else(|| match &found {
        Some(FoundProgram { path: Err(fault), .. }) if policy.force.is_none() => Some(fault.to_string()),
        _ => None,
    });
    remind(paths, store, &asked.vm);
    if let Some(why) = refused {
        println!("{}", wrap::wrapped(&format!("refused: {why}"), wrap::columns()));
        return Ok(ExitCode::FAILURE);
    }
    println!("{}", if ruling.verdict == Verdict::Ask { "asked: a person in dom0 decides" } else { "allowed" });
    if let Some(FoundProgram { names, path: Ok(path) }) = &found {
        field("executes", &quoted(path.as_os_str().as_bytes()));
        for name in names.others.iter().filter(|name| name.path != path.as_os_str().as_bytes()) {
            field("also known as", &quoted(&name.path));
        }
    }
    if let Some(force) = &policy.force {
        field("instead runs", &escape(force.as_bytes()));
    }
    details(&ruling, mode);
    Ok(ExitCode::SUCCESS)
}

/// How the command would run.
fn details(ruling: &Ruling<'_>, mode: Mode) {
    let options = &ruling.options;
    if let Some(directory) = ruling.beneath {
        field("beneath", &escape(directory.as_bytes()));
        field("size", &format!("at most {}", counted(options.max_size, "byte")));
        return;
    }
    field("user", &escape(options.user.as_deref().unwrap_or("root").as_bytes()));
    let directory = match options.cwd.as_deref() {
        Some("client") => "the client's".to_owned(),
        Some(directory) => escape(directory.as_bytes()),
        None => "the user's home, or / where it cannot be entered".to_owned(),
    };
    field("directory", &directory);
    field("umask", &format!("{:03o}", options.umask));
    let yes_no = |yes| if yes { "may be asked for" } else { "refused" };
    field("input", yes_no(options.stdin));
    field("terminal", yes_no(options.stdin && options.tty));
    let variables = escape(options.env.join(" ").as_bytes());
    field("variables", if variables.is_empty() { "none" } else { &variables });
    field("time", &options.timeout.map_or("as the client asks".to_owned(), |t| format!("at most {} s", t.as_secs())));
    field(
        "output",
        &options.max_output.map_or("no limit".to_owned(), |bytes| format!("at most {}", counted(bytes, "byte"))),
    );
    debug_assert!(matches!(mode, Mode::Shell | Mode::Argv));
}

fn field(label: &str, value: &str) {
    println!("  {label:<14}{value}");
}

/// Says what a policy alone does not decide.
fn remind(paths: &Paths, store: &Store, vm: &str) {
    if store.read(vm).is_err() {
        println!("(this qube has no usable key, so nothing of it runs)");
    }
    if !RemoteConfig::load(&paths.conf).is_ok_and(|config| config.vms.iter().any(|listed| listed == vm)) {
        println!("({} does not list this qube, so nothing of it runs)", shown(&paths.conf));
    }
}

fn shown(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}
