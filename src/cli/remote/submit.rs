//! A command on its way to the client: from options and words to a submission.

use std::{process::ExitCode, time::Duration};

use super::options::{ClientOptions, local_error};
use crate::{
    log::counted,
    proto::remote::{BadText, MAX_COMMAND, Mode, argv, check_text},
    remote::client::{self, ClientError, Home, Submission},
};

/// Asks for a command whose text or words the caller has read.
pub(super) fn submit(
    home: &Home,
    options: &ClientOptions,
    mode: Mode,
    payload: Vec<u8>,
    shown: Vec<u8>,
) -> Result<ExitCode, ClientError> {
    if mode == Mode::Shell {
        check_text(&payload).map_err(|bad| match bad {
            BadText::Empty => local_error("empty command"),
            BadText::Oversized(_) => {
                local_error(format!("command too large ({} > {MAX_COMMAND} bytes)", payload.len()))
            }
            BadText::Binary => local_error("the command contains control characters"),
        })?;
    } else if payload.len() > MAX_COMMAND {
        return Err(local_error(format!("command too large ({} > {MAX_COMMAND} bytes)", payload.len())));
    } else if mode == Mode::Argv {
        argv(&payload).map_err(|fault| local_error(format!("the command has {fault}")))?;
    }
    ask(home, options, Submission { shown, ..plain(options, mode, payload) })
}

/// What is asked, as the options have it.
pub(super) fn plain(options: &ClientOptions, mode: Mode, payload: Vec<u8>) -> Submission {
    Submission {
        mode,
        shown: payload.clone(),
        payload,
        timeout: options.time(),
        connect_timeout: Duration::from_secs(options.connect_timeout.into()),
        stdin: options.stdin,
        tty: options.tty,
        user: options.user.clone(),
        way: options.delivery,
        quiet: options.quiet,
        progress: options.progress,
        output: None,
        input: None,
        recorded: true,
    }
}

/// Asks dom0, and tells of it when wanted.
pub(super) fn ask(home: &Home, options: &ClientOptions, ask: Submission) -> Result<ExitCode, ClientError> {
    if options.verbose {
        eprintln!("[qvm-remote] submitted to dom0 ({})", counted(ask.payload.len(), "byte"));
    }
    client::ask(home, ask).map(ExitCode::from)
}
