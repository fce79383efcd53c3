//! The face of `qvm-remote`: the original's, word for word where scripts may depend on it, and what was added.
//!
//! Options are read by hand, because the original's rules are no library's: they end at the first word, a value is a
//! word of its own, and every fault is one line and exit code 1.

mod manage;
mod usage;

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::IsTerminal as _,
    os::{
        fd::AsFd as _,
        unix::ffi::{OsStrExt as _, OsStringExt as _},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
    process::ExitCode,
    time::Duration,
};

use crate::{
    log::escape,
    proto::remote::{BadText, MAX_COMMAND, Mode, argv, argv_payload, check_text},
    remote::{
        agent,
        client::{self, Ask, Home, Trouble, Way, stdio},
    },
};

pub use usage::TEXT as USAGE;

const PROGRAM: &str = "qvm-remote";

/// What was typed before the first word.
#[derive(Debug)]
struct Options {
    timeout: u32,
    connect_timeout: u32,
    verbose: bool,
    quiet: bool,
    stdin: bool,
    tty: bool,
    argv: bool,
    queue: bool,
    v1: bool,
    user: String,
}

impl Default for Options {
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

/// Runs `qvm-remote`.
pub fn main() -> ExitCode {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let called = words.first().map(|w| Path::new(w).file_name().unwrap_or_default().to_owned());
    words.drain(..words.len().min(1));
    if called.is_some_and(|name| name == "qvm-remote-ssh") {
        return as_ssh(words);
    }
    match run(words) {
        Ok(code) => code,
        Err(trouble) => tell(&trouble),
    }
}

/// One line on standard error, and the exit code.
fn tell(trouble: &Trouble) -> ExitCode {
    let (status, text) = match trouble {
        Trouble::Refused(status, text) => (*status, text.as_str()),
        Trouble::Transport(text) => (255, text.as_str()),
        Trouble::Own(text) => (1, text.as_str()),
        Trouble::Timeout => (124, "timed out"),
        Trouble::Signal(13) => return ExitCode::from(141), // nobody reads standard error either, perhaps
        Trouble::Signal(signal) => return ExitCode::from(signal.saturating_add(128)),
    };
    eprintln!("{PROGRAM}: {text}");
    ExitCode::from(status)
}

fn own(text: impl Into<String>) -> Trouble {
    Trouble::Own(text.into())
}

/// Reads options up to the first word; what is left.
fn options(words: &[OsString]) -> Result<Result<(Options, Vec<OsString>), ExitCode>, Trouble> {
    let mut options = Options { v1: std::env::var_os("QVM_REMOTE_V1").is_some_and(|v| v == "1"), ..Options::default() };
    let mut rest = words.iter();
    let mut left = Vec::new();
    while let Some(word) = rest.next() {
        let seconds = |name: &str, value: Option<&OsString>| {
            let value = value.ok_or_else(|| own(format!("{name} requires a value")))?.to_string_lossy();
            let number: i64 = value
                .parse()
                .map_err(|_| own(format!("{name} requires an integer, got: {}", escape(value.as_bytes()))))?;
            u32::try_from(number)
                .ok()
                .filter(|n| (1..=4_000_000).contains(n))
                .ok_or_else(|| own(format!("{name} must be a positive integer")))
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
                let user = rest.next().ok_or_else(|| own("--user requires a value"))?;
                options.user = user.to_string_lossy().into_owned();
            }
            "-h" | "--help" => {
                print!("{}", usage::TEXT);
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
                return Err(own(format!("unknown option: {}", escape(text.as_bytes()))));
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

fn run(words: Vec<OsString>) -> Result<ExitCode, Trouble> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077)); // whatever is kept is nobody else's
    let home = Home::find().map_err(|e| own(e.to_string()))?;
    let (options, words) = match options(&words)? {
        Ok(found) => found,
        Err(code) => return Ok(code),
    };
    let texts: Vec<&str> = words.iter().map(|w| w.to_str().unwrap_or("\u{fffd}")).collect();
    let first = texts.first().copied().unwrap_or("");
    match first {
        "serve" if texts.len() == 1 && !std::io::stdin().is_terminal() => return agent(&home),
        "key" => return manage::key(&home, &texts[1..]),
        "ping" => return manage::ping(&home, &options),
        "status" => return manage::status(&home, &texts[1..]),
        "queue" => return manage::queue(&home, texts.get(1).copied()),
        "log" => return manage::log(&home, &texts[1..]),
        "history" => return manage::history(&home, &texts[1..]),
        "get" if !options.argv => return get(&home, &options, &words[1..]),
        "put" if !options.argv => return put(&home, &options, &words[1..]),
        _ => {}
    }
    if words.is_empty() {
        if std::io::stdin().is_terminal() {
            print!("{}", usage::TEXT);
            return Ok(ExitCode::SUCCESS);
        }
        if options.argv {
            return Err(own("no command specified"));
        }
        let read = stdio::file(std::io::stdin()).and_then(|mut from| stdio::read_to_end(&mut from, MAX_COMMAND));
        let text = read.map_err(|e| own(format!("standard input: {e}")))?;
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

/// Without `-i` a command gets no input, as the original has it; somebody at a terminal who pipes something in is told.
fn hint_about_input(options: &Options) {
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

fn submit(home: &Home, options: &Options, mode: Mode, payload: Vec<u8>, shown: Vec<u8>) -> Result<ExitCode, Trouble> {
    if mode == Mode::Shell {
        check_text(&payload).map_err(|bad| match bad {
            BadText::Empty => own("empty command"),
            BadText::Oversized(_) => own(format!("command too large ({} > {MAX_COMMAND} bytes)", payload.len())),
            BadText::Binary => own("the command contains control characters"),
        })?;
    } else if payload.len() > MAX_COMMAND {
        return Err(own(format!("command too large ({} > {MAX_COMMAND} bytes)", payload.len())));
    } else if mode == Mode::Argv {
        argv(&payload).map_err(|fault| own(format!("the command has {fault}")))?;
    }
    ask(home, options, Ask { shown, ..plain(options, mode, payload) })
}

fn plain(options: &Options, mode: Mode, payload: Vec<u8>) -> Ask {
    Ask {
        mode,
        shown: payload.clone(),
        payload,
        timeout: Duration::from_secs(options.timeout.into()),
        connect_timeout: Duration::from_secs(options.connect_timeout.into()),
        stdin: options.stdin,
        tty: options.tty,
        user: options.user.clone(),
        way: match (options.v1, options.queue) {
            (true, _) => Way::V1,
            (false, true) => Way::Queue,
            (false, false) => Way::Live,
        },
        quiet: options.quiet,
        output: None,
        input: None,
        recorded: true,
    }
}

fn ask(home: &Home, options: &Options, ask: Ask) -> Result<ExitCode, Trouble> {
    if options.verbose {
        eprintln!("[qvm-remote] submitted to dom0 ({} bytes)", ask.payload.len());
    }
    client::ask(home, ask).map(ExitCode::from)
}

/// The agent, started by dom0: speaks on standard input and output, and only there.
fn agent(home: &Home) -> Result<ExitCode, Trouble> {
    let failed = |e: std::io::Error| own(format!("serve: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime.block_on(agent::run(home.path())).map_err(failed)?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// `get REMOTE [LOCAL]`: into a file that appears whole, or `-` for standard output.
fn get(home: &Home, options: &Options, words: &[OsString]) -> Result<ExitCode, Trouble> {
    let (remote, local) = match words {
        [remote] => (remote, Path::new(remote).file_name().unwrap_or_default().to_owned()),
        [remote, local] => (remote, local.clone()),
        _ => return Err(own("get wants: get DOM0-PATH [LOCAL-PATH]")),
    };
    let shown = [b"get ", remote.as_bytes()].concat();
    let mut wanted = Ask { shown, ..plain(options, Mode::Get, remote.as_bytes().to_vec()) };
    if local == "-" {
        return ask(home, options, wanted);
    }
    let mut place = std::path::PathBuf::from(&local);
    if place.is_dir() {
        place.push(Path::new(remote).file_name().unwrap_or_default());
    }
    let mut name = place.clone().into_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = std::path::PathBuf::from(name);
    let failed = |e: std::io::Error| own(format!("{}: {e}", place.display()));
    let file = File::options().write(true).create_new(true).mode(0o600).open(&part).map_err(failed)?;
    wanted.output = Some(file);
    let result = ask(home, options, wanted);
    if matches!(&result, Ok(code) if *code == ExitCode::SUCCESS) {
        std::fs::rename(&part, &place).map_err(failed)?;
    } else {
        let _ = std::fs::remove_file(&part);
    }
    result
}

/// `put LOCAL REMOTE`; `-` is standard input.
fn put(home: &Home, options: &Options, words: &[OsString]) -> Result<ExitCode, Trouble> {
    let [local, remote] = words else { return Err(own("put wants: put LOCAL-PATH DOM0-PATH")) };
    let shown = [b"put ", remote.as_bytes()].concat();
    let mut wanted = Ask { shown, ..plain(options, Mode::Put, remote.as_bytes().to_vec()) };
    if local != "-" {
        wanted.input = Some(File::open(local).map_err(|e| own(format!("{}: {e}", escape(local.as_bytes()))))?);
    }
    ask(home, options, wanted)
}

/// Letters of ssh(1) that take a value.
const WITH_VALUE: &[u8] = b"bcDEeFIiJLlmOopQRSWw";

/// Reads ssh(1)'s words: options before and after the host, single or together, their values in the same word or the
/// next. Those that mean something here are noted; the host, and the command.
fn ssh_words(words: Vec<OsString>, options: &mut Options) -> (Option<OsString>, Vec<OsString>) {
    let (mut host, mut terminal) = (None, None);
    let mut rest = words.into_iter().peekable();
    loop {
        while let Some(word) = rest.next_if(|w| w.as_bytes().first() == Some(&b'-') && w.len() > 1) {
            if word == "--" {
                break;
            }
            for (at, letter) in word.as_bytes().iter().enumerate().skip(1) {
                match letter {
                    b'n' => options.stdin = false,
                    b't' => terminal = Some(true),
                    b'T' => terminal = Some(false),
                    b'v' => options.verbose = true,
                    _ => {}
                }
                if WITH_VALUE.contains(letter) {
                    if at + 1 == word.len() {
                        rest.next();
                    }
                    break;
                }
            }
        }
        if host.is_some() {
            break;
        }
        host = rest.next();
        if host.is_none() {
            break;
        }
    }
    // as ssh has it: a terminal is given to somebody who has one
    options.tty = terminal == Some(true) && std::io::stdin().is_terminal();
    (host, rest.collect())
}

/// `qvm-remote-ssh [ssh's options] HOST COMMAND…`: for rsync, Git and Ansible, which call `ssh` so.
fn as_ssh(words: Vec<OsString>) -> ExitCode {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let mut options = Options { stdin: true, quiet: true, timeout: 4_000_000, ..Options::default() };
    let (host, command) = ssh_words(words, &mut options);
    let result = match host {
        None => Err(own("qvm-remote-ssh wants: qvm-remote-ssh [OPTIONS] dom0 COMMAND")),
        Some(host) if host != "dom0" && !host.as_bytes().ends_with(b"@dom0") => {
            Err(Trouble::Transport("the only host is dom0".into()))
        }
        Some(_) if command.is_empty() => Err(own("a command is wanted: qvm-remote-ssh dom0 COMMAND")),
        Some(_) => Home::find().map_err(|e| own(e.to_string())).and_then(|home| {
            let mut text = command.join(OsStr::new(" ")).into_vec();
            text.push(b'\n');
            submit(&home, &options, Mode::Shell, text.clone(), text)
        }),
    };
    result.unwrap_or_else(|trouble| tell(&trouble))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ssh(words: &str) -> (Option<String>, String, Options) {
        let mut options = Options { stdin: true, ..Options::default() };
        let (host, command) = ssh_words(words.split(' ').map(OsString::from).collect(), &mut options);
        let text = |w: OsString| w.into_string().expect("text");
        (host.map(text), command.into_iter().map(text).collect::<Vec<_>>().join(" "), options)
    }

    #[test]
    fn words_for_ssh_are_read_as_ssh_reads_them() {
        // rsync, Git, Ansible, Mercurial, and what people type
        for (words, command) in [
            ("dom0 rsync --server -logDtpre.iLsfxCIvu . /root/", "rsync --server -logDtpre.iLsfxCIvu . /root/"),
            ("-l root dom0 rsync --server", "rsync --server"),
            ("-o SendEnv=GIT_PROTOCOL -p 22 dom0 git-upload-pack '/r'", "git-upload-pack '/r'"),
            (
                "-C -o ControlMaster=auto -oControlPersist=60s -o ConnectTimeout=10 -tt dom0 /bin/sh -c x",
                "/bin/sh -c x",
            ),
            ("-qCo BatchMode=yes dom0 -p 22 -- true -n", "true -n"),
            ("-qoBatchMode=yes dom0 echo -t", "echo -t"),
        ] {
            let (host, got, options) = ssh(words);
            assert_eq!((host.as_deref(), got.as_str()), (Some("dom0"), command), "{words}");
            assert!(options.stdin, "{words}");
        }
        assert!(!ssh("-nT dom0 true").2.stdin);
        assert!(ssh("-p dom0").0.is_none());
        assert!(ssh("-Gv dom0").1.is_empty());
    }
}
