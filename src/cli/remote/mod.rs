//! The face of `qvm-remote`: the original's, word for word where scripts may depend on it, and what was added.
//!
//! Options are read by hand, because the original's rules are no library's: they end at the first word, a value is a
//! word of its local, and every fault is one line and exit code 1.

mod manage;
mod options;
mod ssh;
mod submit;
mod transfer;
mod usage;
mod verbs;

use std::{
    ffi::{OsStr, OsString},
    io::IsTerminal as _,
    os::{
        fd::AsFd as _,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::Path,
    process::ExitCode,
};

use crate::{
    proto::remote::{MAX_COMMAND, Mode, argv_payload},
    remote::{
        agent,
        client::{ClientError, Home, stdio},
    },
};
use options::{ClientOptions, Typed, local_error};
use submit::submit;

pub use options::{OPTIONS, OptionEntry};
pub use verbs::{VERBS, Verb};

/// The program's name.
const PROGRAM: &str = "qvm-remote";

/// Runs `qvm-remote`.
pub fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let called = words.first().map(|w| Path::new(w).file_name().unwrap_or_default().to_owned());
    words.drain(..words.len().min(1));
    if called.is_some_and(|name| name == "qvm-remote-ssh") {
        return ssh::as_ssh(words).unwrap_or_else(|trouble| tell(&trouble));
    }
    run(words).unwrap_or_else(|trouble| tell(&trouble))
}

/// One line on standard error, and the exit code.
fn tell(trouble: &ClientError) -> ExitCode {
    let (status, text) = match trouble {
        ClientError::Refused(status, text) => (*status, text.as_str()),
        ClientError::Unauthorised(text) => (126, text.as_str()),
        ClientError::Transport(text) => (255, text.as_str()),
        ClientError::Local(text) => (1, text.as_str()),
        ClientError::Timeout(limit) => (124, limit.whose()),
        ClientError::Signal(13) => return ExitCode::from(141), // nobody reads standard error either, perhaps
        ClientError::Signal(signal) => return ExitCode::from(signal.saturating_add(128)),
    };
    eprintln!("{PROGRAM}: {text}");
    ExitCode::from(status)
}

fn run(words: Vec<OsString>) -> Result<ExitCode, ClientError> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077)); // whatever is kept is nobody else's
    let home = Home::find().map_err(|e| local_error(e.to_string()))?;
    let (options, words) = match options::read(words)? {
        Typed::Words(options, words) => (options, words),
        Typed::Help => {
            print!("{}", usage::text());
            return Ok(ExitCode::SUCCESS);
        }
        Typed::Version => {
            println!("{PROGRAM} {}", env!("CARGO_PKG_VERSION"));
            return Ok(ExitCode::SUCCESS);
        }
    };
    if words == ["serve"] && !std::io::stdin().is_terminal() {
        return agent(&home);
    }
    let verb = VERBS.iter().find(|verb| words.first().is_some_and(|word| word == verb.name));
    if let Some(verb) = verb.filter(|verb| !(options.argv && verb.program_with_argv)) {
        return (verb.run)(&home, &options, &words[1..]);
    }
    if words.is_empty() {
        if std::io::stdin().is_terminal() {
            print!("{}", usage::text());
            return Ok(ExitCode::SUCCESS);
        }
        if options.argv {
            return Err(local_error("no command specified"));
        }
        let read = stdio::file(std::io::stdin()).and_then(|mut from| stdio::read_to_end(&mut from, MAX_COMMAND));
        let text = read.map_err(|e| local_error(format!("standard input: {e}")))?;
        return submit(&home, &options, Mode::Shell, text.clone(), text);
    }
    hint_about_input(&options);
    if options.argv {
        let words: Vec<&[u8]> = words.iter().map(|w| w.as_bytes()).collect();
        return submit(&home, &options, Mode::Argv, argv_payload(&words), words.join(&b' '));
    }
    let mut text = words.join(OsStr::new(" ")).into_vec();
    text.push(b'\n');
    submit(&home, &options, Mode::Shell, text.clone(), text)
}

/// Without `-i` a command gets no input, as the original has it; a user at a terminal who pipes something in gets a
/// note.
fn hint_about_input(options: &ClientOptions) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    if options.stdin || options.quiet || !std::io::stderr().is_terminal() || std::io::stdin().is_terminal() {
        return;
    }
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0);
    let unread = crate::sys::unread(stdin.as_fd());
    if ready && unread > 0 {
        eprintln!("[qvm-remote] standard input is not passed on; for that: qvm-remote -i COMMAND");
    }
}

/// The agent, started by dom0: speaks on standard input and output, and only there.
fn agent(home: &Home) -> Result<ExitCode, ClientError> {
    let failed = |e: std::io::Error| local_error(format!("serve: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(agent::run(home.path())).map_err(failed)?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}
