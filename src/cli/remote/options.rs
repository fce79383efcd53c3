//! What was typed before the first word, and what is asked of dom0 because of it.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use super::usage::TEXT as USAGE;
use crate::{
    log::escape,
    proto::remote::{BadText, MAX_COMMAND, Mode, argv, check_text},
    remote::client::{self, ClientError, Delivery, Home, Submission},
};

/// The program's name.
pub(super) const PROGRAM: &str = "qvm-remote";

/// What was typed before the first word.
#[derive(Debug)]
pub(super) struct ClientOptions {
    pub(super) timeout: u32,
    pub(super) connect_timeout: u32,
    pub(super) verbose: bool,
    pub(super) quiet: bool,
    pub(super) stdin: bool,
    pub(super) tty: bool,
    pub(super) argv: bool,
    pub(super) queue: bool,
    pub(super) v1: bool,
    pub(super) user: String,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            timeout: 300,
            connect_timeout: 10,
            verbose: false,
            quiet: false,
            stdin: false,
            tty: false,
            argv: false,
            queue: false,
            v1: false,
            user: String::new(),
        }
    }
}

/// A fault of the caller or of this machine.
pub(super) fn local_error(text: impl Into<String>) -> ClientError {
    ClientError::Local(text.into())
}

/// Reads options up to the first word; what is left.
pub(super) fn options(words: &[OsString]) -> Result<Result<(ClientOptions, Vec<OsString>), ExitCode>, ClientError> {
    let mut options =
        ClientOptions { v1: std::env::var_os("QVM_REMOTE_V1").is_some_and(|v| v == "1"), ..ClientOptions::default() };
    let mut rest = words.iter();
    let mut left = Vec::new();
    while let Some(word) = rest.next() {
        let seconds = |name: &str, value: Option<&OsString>| {
            let value = value.ok_or_else(|| local_error(format!("{name} requires a value")))?.to_string_lossy();
            let number: i64 = value
                .parse()
                .map_err(|_| local_error(format!("{name} requires an integer, got: {}", escape(value.as_bytes()))))?;
            u32::try_from(number)
                .ok()
                .filter(|n| (1..=4_000_000).contains(n))
                .ok_or_else(|| local_error(format!("{name} must be a positive integer")))
        };
        match word.to_str().unwrap_or("") {
            "-t" | "--timeout" => options.timeout = seconds("-t", rest.next())?,
            "--connect-timeout" => options.connect_timeout = seconds("--connect-timeout", rest.next())?,
            "-v" | "--verbose" => options.verbose = true,
            "-q" | "--quiet" => options.quiet = true,
            "-i" | "--stdin" => options.stdin = true,
            "--tty" => options.tty = true,
            "--argv" => options.argv = true,
            "--queue" => options.queue = true,
            "--v1" => options.v1 = true,
            "--user" => {
                let user = rest.next().ok_or_else(|| local_error("--user requires a value"))?;
                options.user = user.to_string_lossy().into_owned();
            }
            "-h" | "--help" => {
                print!("{}", USAGE);
                return Ok(Err(ExitCode::SUCCESS));
            }
            "--version" => {
                println!("{PROGRAM} {}", env!("CARGO_PKG_VERSION"));
                return Ok(Err(ExitCode::SUCCESS));
            }
            "--" => {
                left.extend(rest.cloned());
                break;
            }
            text if text.starts_with('-') && text.len() > 1 => {
                return Err(local_error(format!("unknown option: {}", escape(text.as_bytes()))));
            }
            _ => {
                left.push(word.clone());
                left.extend(rest.cloned());
                break;
            }
        }
    }
    Ok(Ok((options, left)))
}

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
        timeout: Duration::from_secs(options.timeout.into()),
        connect_timeout: Duration::from_secs(options.connect_timeout.into()),
        stdin: options.stdin,
        tty: options.tty,
        user: options.user.clone(),
        way: match (options.v1, options.queue) {
            (true, _) => Delivery::V1,
            (false, true) => Delivery::Queue,
            (false, false) => Delivery::Live,
        },
        quiet: options.quiet,
        output: None,
        input: None,
        recorded: true,
    }
}

/// Asks dom0, and tells of it when wanted.
pub(super) fn ask(home: &Home, options: &ClientOptions, ask: Submission) -> Result<ExitCode, ClientError> {
    if options.verbose {
        eprintln!("[qvm-remote] submitted to dom0 ({} bytes)", ask.payload.len());
    }
    client::ask(home, ask).map(ExitCode::from)
}
